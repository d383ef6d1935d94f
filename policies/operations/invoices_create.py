"""``invoices.create``: its parameters and response fields, as data.

Parameters are those of Stripe's ``POST /v1/invoices``, which the Appgregator endpoint forwards to: 154 paths, from
Stripe's published OpenAPI description (2026-05-27) and what came since (2026-10-28). Lengths that the description gives
only in words are included. Appgregator takes ``amount``, too. Fields are those of the invoice that both upstreams
answer with, of the API versions since 2022-11-15. A field that an upstream no longer has is answered as null.
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Shape, Spending, Words

STRING, INTEGER, BOOLEAN, TIMESTAMP = Kind.STRING, Kind.INTEGER, Kind.BOOLEAN, Kind.TIMESTAMP
CURRENCY, OBJECT, ARRAY = Kind.CURRENCY, Kind.OBJECT, Kind.ARRAY
PLAIN, CHANGES, REROUTES, COLLECTS, WIDENS = Risk.PLAIN, Risk.CHANGES, Risk.REROUTES, Risk.COLLECTS, Risk.WIDENS

#: Of every operation that answers with an object: what it is to show of others.
EXPAND: Final = (Parameter("expand", ARRAY, WIDENS), Parameter("expand[{i}]", STRING, WIDENS, max_length=5000))

# fmt: off
PARAMETERS: Final = (
    Parameter("account_tax_ids", ARRAY, CHANGES, unsets=True),
    Parameter("account_tax_ids[{i}]", STRING, CHANGES, max_length=5000),
    Parameter("application_fee_amount", INTEGER, REROUTES),
    Parameter("auto_advance", BOOLEAN, COLLECTS),
    Parameter("automatic_tax", OBJECT, CHANGES),
    Parameter("automatic_tax[enabled]", BOOLEAN, CHANGES, needed=True),
    Parameter("automatic_tax[liability]", OBJECT, REROUTES),
    Parameter("automatic_tax[liability][account]", STRING, REROUTES),
    Parameter("automatic_tax[liability][type]", STRING, REROUTES, one_of=("account", "self"), needed=True),
    Parameter("automatically_finalizes_at", TIMESTAMP, COLLECTS),
    Parameter("collection_method", STRING, PLAIN, one_of=("charge_automatically", "send_invoice")),
    Parameter("currency", CURRENCY, PLAIN),
    Parameter("custom_fields", ARRAY, PLAIN, max_items=4, unsets=True),
    Parameter("custom_fields[{i}]", OBJECT, PLAIN),
    Parameter("custom_fields[{i}][name]", STRING, PLAIN, max_length=40, needed=True, free=True),
    Parameter("custom_fields[{i}][value]", STRING, PLAIN, max_length=140, needed=True, free=True),
    Parameter("customer", STRING, PLAIN, max_length=5000),
    Parameter("customer_account", STRING, REROUTES, max_length=5000),
    Parameter("days_until_due", INTEGER, PLAIN),
    Parameter("default_payment_method", STRING, REROUTES, max_length=5000),
    Parameter("default_source", STRING, REROUTES, max_length=5000),
    Parameter("default_tax_rates", ARRAY, CHANGES),
    Parameter("default_tax_rates[{i}]", STRING, CHANGES, max_length=5000),
    Parameter("description", STRING, PLAIN, max_length=1500, free=True),
    Parameter("discounts", ARRAY, CHANGES, unsets=True),
    Parameter("discounts[{i}]", OBJECT, CHANGES),
    Parameter("discounts[{i}][coupon]", STRING, CHANGES, max_length=5000),
    Parameter("discounts[{i}][discount]", STRING, CHANGES, max_length=5000),
    Parameter("discounts[{i}][promotion_code]", STRING, CHANGES, max_length=5000),
    Parameter("due_date", TIMESTAMP, PLAIN),
    Parameter("effective_at", TIMESTAMP, PLAIN),
    *EXPAND,
    Parameter("footer", STRING, PLAIN, max_length=5000, free=True),
    Parameter("from_invoice", OBJECT, CHANGES),
    Parameter("from_invoice[action]", STRING, CHANGES, one_of=("revision",), needed=True),
    Parameter("from_invoice[invoice]", STRING, CHANGES, max_length=5000, needed=True),
    Parameter("issuer", OBJECT, REROUTES),
    Parameter("issuer[account]", STRING, REROUTES),
    Parameter("issuer[type]", STRING, REROUTES, one_of=("account", "self"), needed=True),
    Parameter("metadata", OBJECT, PLAIN, max_items=50, max_key=40, unsets=True),
    Parameter("metadata[{key}]", STRING, PLAIN, max_length=500, free=True),
    Parameter("number", STRING, CHANGES, max_length=26),
    Parameter("on_behalf_of", STRING, REROUTES),
    Parameter("payment_settings", OBJECT, REROUTES),
    Parameter("payment_settings[default_mandate]", STRING, REROUTES, max_length=5000, unsets=True),
    Parameter("payment_settings[payment_method_options]", OBJECT, REROUTES),
    Parameter("payment_settings[payment_method_options][acss_debit]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][acss_debit][mandate_options]", OBJECT, REROUTES),
    Parameter("payment_settings[payment_method_options][acss_debit][mandate_options][transaction_type]",
        STRING, REROUTES, one_of=(
        "business", "personal"
    )),
    Parameter("payment_settings[payment_method_options][acss_debit][verification_method]", STRING, REROUTES, one_of=(
        "automatic", "instant", "microdeposits"
    )),
    Parameter("payment_settings[payment_method_options][bancontact]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][bancontact][preferred_language]", STRING, REROUTES, one_of=(
        "de", "en", "fr", "nl"
    )),
    Parameter("payment_settings[payment_method_options][billie]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][billie][company_details]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][billie][company_details][registered_address]",
        OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][billie][company_details][registered_address][city]",
        STRING, REROUTES, free=True),
    Parameter("payment_settings[payment_method_options][billie][company_details][registered_address][country]",
        STRING, REROUTES),
    Parameter("payment_settings[payment_method_options][billie][company_details][registered_address][line1]",
        STRING, REROUTES, free=True),
    Parameter("payment_settings[payment_method_options][billie][company_details][registered_address][line2]",
        STRING, REROUTES, free=True),
    Parameter("payment_settings[payment_method_options][billie][company_details][registered_address][postal_code]",
        STRING, REROUTES, free=True),
    Parameter("payment_settings[payment_method_options][billie][company_details][registered_address][state]",
        STRING, REROUTES, free=True),
    Parameter("payment_settings[payment_method_options][billie][company_details][registered_name]",
        STRING, REROUTES, free=True),
    Parameter("payment_settings[payment_method_options][billie][company_details][registration_number]",
        STRING, REROUTES),
    Parameter("payment_settings[payment_method_options][billie][company_details][registration_type]",
        STRING, REROUTES, one_of=(
        "ch_ein", "de_hrb", "dk_cvr", "es_cif", "fi_tunnus", "fr_siren", "fr_siret", "it_rea", "nl_kvk",
        "no_org_number", "no_pno", "se_org_number", "se_pno", "uk_crn"
    ), unsets=True),
    Parameter("payment_settings[payment_method_options][billie][company_details][vat]", STRING, REROUTES),
    Parameter("payment_settings[payment_method_options][billie][reference]", STRING, REROUTES, free=True),
    Parameter("payment_settings[payment_method_options][blik]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][card]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][card][installments]", OBJECT, REROUTES),
    Parameter("payment_settings[payment_method_options][card][installments][enabled]", BOOLEAN, REROUTES),
    Parameter("payment_settings[payment_method_options][card][installments][plan]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][card][installments][plan][count]", INTEGER, REROUTES),
    Parameter("payment_settings[payment_method_options][card][installments][plan][interval]", STRING, REROUTES, one_of=(
        "month",
    )),
    Parameter("payment_settings[payment_method_options][card][installments][plan][type]", STRING, REROUTES, one_of=(
        "bonus", "fixed_count", "revolving"
    ), needed=True),
    Parameter("payment_settings[payment_method_options][card][request_three_d_secure]", STRING, REROUTES, one_of=(
        "any", "automatic", "challenge"
    )),
    Parameter("payment_settings[payment_method_options][customer_balance]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][customer_balance][bank_transfer]", OBJECT, REROUTES),
    Parameter("payment_settings[payment_method_options][customer_balance][bank_transfer][eu_bank_transfer]",
        OBJECT, REROUTES),
    Parameter("payment_settings[payment_method_options][customer_balance][bank_transfer][eu_bank_transfer][country]",
        STRING, REROUTES, max_length=5000, needed=True),
    Parameter("payment_settings[payment_method_options][customer_balance][bank_transfer][type]", STRING, REROUTES),
    Parameter("payment_settings[payment_method_options][customer_balance][funding_type]", STRING, REROUTES),
    Parameter("payment_settings[payment_method_options][konbini]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][payto]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][payto][mandate_options]", OBJECT, REROUTES),
    Parameter("payment_settings[payment_method_options][payto][mandate_options][amount]", INTEGER, REROUTES),
    Parameter("payment_settings[payment_method_options][payto][mandate_options][purpose]", STRING, REROUTES, one_of=(
        "dependant_support", "government", "loan", "mortgage", "other", "pension", "personal", "retail",
        "salary", "tax", "utility"
    )),
    Parameter("payment_settings[payment_method_options][pix]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][pix][amount_includes_iof]", STRING, REROUTES, one_of=(
        "always", "never"
    )),
    Parameter("payment_settings[payment_method_options][pix][expires_after_seconds]", INTEGER, REROUTES),
    Parameter("payment_settings[payment_method_options][sepa_debit]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][upi]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][upi][mandate_options]", OBJECT, REROUTES),
    Parameter("payment_settings[payment_method_options][upi][mandate_options][amount]", INTEGER, REROUTES),
    Parameter("payment_settings[payment_method_options][upi][mandate_options][amount_type]", STRING, REROUTES, one_of=(
        "fixed", "maximum"
    )),
    Parameter("payment_settings[payment_method_options][upi][mandate_options][description]",
        STRING, REROUTES, max_length=20, free=True),
    Parameter("payment_settings[payment_method_options][upi][mandate_options][end_date]", TIMESTAMP, REROUTES),
    Parameter("payment_settings[payment_method_options][us_bank_account]", OBJECT, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_options][us_bank_account][financial_connections]", OBJECT, REROUTES),
    Parameter("payment_settings[payment_method_options][us_bank_account][financial_connections][filters]",
        OBJECT, REROUTES),
    Parameter("payment_settings[payment_method_options][us_bank_account][financial_connections][filters][account_subcategories]",
        ARRAY, REROUTES),
    Parameter("payment_settings[payment_method_options][us_bank_account][financial_connections][filters][account_subcategories][{i}]",
        STRING, REROUTES, one_of=(
        "checking", "savings"
    )),
    Parameter("payment_settings[payment_method_options][us_bank_account][financial_connections][permissions]",
        ARRAY, REROUTES),
    Parameter("payment_settings[payment_method_options][us_bank_account][financial_connections][permissions][{i}]",
        STRING, REROUTES, one_of=(
        "balances", "ownership", "payment_method", "transactions"
    )),
    Parameter("payment_settings[payment_method_options][us_bank_account][financial_connections][prefetch]",
        ARRAY, REROUTES),
    Parameter("payment_settings[payment_method_options][us_bank_account][financial_connections][prefetch][{i}]",
        STRING, REROUTES, one_of=(
        "balances", "ownership", "transactions"
    )),
    Parameter("payment_settings[payment_method_options][us_bank_account][verification_method]",
        STRING, REROUTES, one_of=(
        "automatic", "instant", "microdeposits"
    )),
    Parameter("payment_settings[payment_method_types]", ARRAY, REROUTES, unsets=True),
    Parameter("payment_settings[payment_method_types][{i}]", STRING, REROUTES, one_of=(
        "ach_credit_transfer", "ach_debit", "acss_debit", "affirm", "alipay", "amazon_pay", "au_becs_debit",
        "bacs_debit", "bancontact", "billie", "blik", "boleto", "card", "cashapp", "crypto", "custom",
        "customer_balance", "eps", "fpx", "giropay", "grabpay", "ideal", "jp_credit_transfer", "kakao_pay", "klarna",
        "konbini", "kr_card", "link", "mb_way", "multibanco", "naver_pay", "nz_bank_account", "p24", "pay_by_bank",
        "payco", "paynow", "paypal", "payto", "pix", "promptpay", "revolut_pay", "satispay", "sepa_credit_transfer",
        "sepa_debit", "sequra", "sofort", "swish", "twint", "upi", "us_bank_account", "wechat_pay"
    )),
    Parameter("pending_invoice_items_behavior", STRING, CHANGES, one_of=("exclude", "include")),
    Parameter("rendering", OBJECT, PLAIN),
    Parameter("rendering[amount_tax_display]", STRING, PLAIN, one_of=(
        "exclude_tax", "include_inclusive_tax"
    ), unsets=True),
    Parameter("rendering[pdf]", OBJECT, PLAIN),
    Parameter("rendering[pdf][page_size]", STRING, PLAIN, one_of=("a4", "auto", "letter")),
    Parameter("rendering[template]", STRING, PLAIN, max_length=5000),
    Parameter("rendering[template_version]", INTEGER, PLAIN, unsets=True),
    Parameter("shipping_cost", OBJECT, CHANGES),
    Parameter("shipping_cost[shipping_rate]", STRING, CHANGES, max_length=5000),
    Parameter("shipping_cost[shipping_rate_data]", OBJECT, CHANGES),
    Parameter("shipping_cost[shipping_rate_data][delivery_estimate]", OBJECT, CHANGES),
    Parameter("shipping_cost[shipping_rate_data][delivery_estimate][maximum]", OBJECT, CHANGES),
    Parameter("shipping_cost[shipping_rate_data][delivery_estimate][maximum][unit]", STRING, CHANGES, one_of=(
        "business_day", "day", "hour", "month", "week"
    ), needed=True),
    Parameter("shipping_cost[shipping_rate_data][delivery_estimate][maximum][value]", INTEGER, CHANGES, needed=True),
    Parameter("shipping_cost[shipping_rate_data][delivery_estimate][minimum]", OBJECT, CHANGES),
    Parameter("shipping_cost[shipping_rate_data][delivery_estimate][minimum][unit]", STRING, CHANGES, one_of=(
        "business_day", "day", "hour", "month", "week"
    ), needed=True),
    Parameter("shipping_cost[shipping_rate_data][delivery_estimate][minimum][value]", INTEGER, CHANGES, needed=True),
    Parameter("shipping_cost[shipping_rate_data][display_name]",
        STRING, CHANGES, max_length=100, needed=True, free=True),
    Parameter("shipping_cost[shipping_rate_data][fixed_amount]", OBJECT, CHANGES),
    Parameter("shipping_cost[shipping_rate_data][fixed_amount][amount]", INTEGER, CHANGES, needed=True),
    Parameter("shipping_cost[shipping_rate_data][fixed_amount][currency]", CURRENCY, CHANGES, needed=True),
    Parameter("shipping_cost[shipping_rate_data][fixed_amount][currency_options]",
        OBJECT, CHANGES, max_items=50, max_key=3),
    Parameter("shipping_cost[shipping_rate_data][fixed_amount][currency_options][{key}]", OBJECT, CHANGES),
    Parameter("shipping_cost[shipping_rate_data][fixed_amount][currency_options][{key}][amount]",
        INTEGER, CHANGES, needed=True),
    Parameter("shipping_cost[shipping_rate_data][fixed_amount][currency_options][{key}][tax_behavior]",
        STRING, CHANGES, one_of=(
        "exclusive", "inclusive", "unspecified"
    )),
    Parameter("shipping_cost[shipping_rate_data][metadata]", OBJECT, CHANGES, max_items=50, max_key=40),
    Parameter("shipping_cost[shipping_rate_data][metadata][{key}]", STRING, CHANGES, max_length=500, free=True),
    Parameter("shipping_cost[shipping_rate_data][tax_behavior]", STRING, CHANGES, one_of=(
        "exclusive", "inclusive", "unspecified"
    )),
    Parameter("shipping_cost[shipping_rate_data][tax_code]", STRING, CHANGES),
    Parameter("shipping_cost[shipping_rate_data][type]", STRING, CHANGES, one_of=("fixed_amount",)),
    Parameter("shipping_details", OBJECT, CHANGES),
    Parameter("shipping_details[address]", OBJECT, CHANGES, needed=True),
    Parameter("shipping_details[address][city]", STRING, CHANGES, max_length=5000, free=True),
    Parameter("shipping_details[address][country]", STRING, CHANGES, max_length=5000),
    Parameter("shipping_details[address][line1]", STRING, CHANGES, max_length=5000, free=True),
    Parameter("shipping_details[address][line2]", STRING, CHANGES, max_length=5000, free=True),
    Parameter("shipping_details[address][postal_code]", STRING, CHANGES, max_length=5000, free=True),
    Parameter("shipping_details[address][state]", STRING, CHANGES, max_length=5000, free=True),
    Parameter("shipping_details[name]", STRING, CHANGES, max_length=5000, needed=True, free=True),
    Parameter("shipping_details[phone]", STRING, CHANGES, max_length=5000, unsets=True, free=True),
    Parameter("statement_descriptor", STRING, CHANGES, max_length=22, free=True),
    Parameter("subscription", STRING, CHANGES, max_length=5000),
    Parameter("transfer_data", OBJECT, REROUTES),
    Parameter("transfer_data[amount]", INTEGER, REROUTES),
    Parameter("transfer_data[destination]", STRING, REROUTES, needed=True),
)
# fmt: on

_ADDRESS = "city country line1 line2 postal_code state"


def _under(parent: str, names: str) -> str:
    return " ".join(f"{parent}.{name}" for name in names.split())


_SCALARS = " ".join(
    (
        "id object account_country account_name amount_due amount_overpaid amount_paid amount_paid_off_stripe",
        "amount_remaining",
        "amount_shipping application application_fee_amount attempt_count attempted auto_advance",
        "automatically_finalizes_at billing_reason charge collection_method created currency customer",
        "customer_account customer_email customer_name customer_phone customer_tax_exempt default_payment_method",
        "default_source description due_date effective_at ending_balance footer hosted_invoice_url invoice_pdf",
        "latest_revision livemode next_payment_attempt number on_behalf_of paid paid_out_of_band payment_intent",
        "period_end period_start post_payment_credit_notes_amount pre_payment_credit_notes_amount quote",
        "receipt_number starting_balance statement_descriptor status subscription subtotal",
        "subtotal_excluding_tax tax test_clock total total_excluding_tax webhooks_delivered_at",
        _under("automatic_tax", "disabled_reason enabled provider status liability.account liability.type"),
        _under("confirmation_secret", "client_secret type"),
        _under("custom_fields", "name value"),
        _under("customer_address", _ADDRESS),
        _under("customer_shipping", "name phone"),
        _under("customer_shipping.address", _ADDRESS),
        _under("customer_tax_ids", "type value"),
        _under("default_tax_rates", "display_name id inclusive percentage"),
        _under("discount", "coupon.id end id start"),
        _under("from_invoice", "action invoice"),
        _under("issuer", "account type"),
        _under("last_finalization_error", "code decline_code message param type"),
        _under("lines", "has_more object total_count url"),
        _under("lines.data", "amount amount_excluding_tax currency description discountable id invoice invoice_item"),
        _under("lines.data", "livemode object proration quantity quantity_decimal subscription subtotal type"),
        _under("lines.data", "unit_amount_excluding_tax period.end period.start"),
        _under("lines.data.discount_amounts", "amount discount"),
        _under("lines.data.parent", "type"),
        _under("lines.data.parent.invoice_item_details", "invoice_item proration subscription"),
        _under("lines.data.parent.subscription_item_details", "invoice_item proration subscription subscription_item"),
        _under("lines.data.pretax_credit_amounts", "amount credit_balance_transaction discount type"),
        _under("lines.data.plan", "amount currency id interval interval_count nickname product"),
        _under("lines.data.price", "active billing_scheme created currency id livemode lookup_key nickname object"),
        _under("lines.data.price", "product tax_behavior tiers_mode type unit_amount unit_amount_decimal"),
        _under("lines.data.price.recurring", "interval interval_count usage_type"),
        _under("lines.data.pricing", "price_details.price price_details.product type unit_amount_decimal"),
        _under("lines.data.tax_amounts", "amount inclusive tax_rate taxable_amount"),
        _under("lines.data.tax_rates", "display_name id inclusive percentage"),
        _under("lines.data.taxes", "amount tax_behavior taxability_reason taxable_amount type"),
        _under("parent", "quote_details.quote subscription_details.subscription type"),
        "payment_settings.default_mandate",
        _under("payments.data", "amount_paid amount_requested created currency id is_default status"),
        _under("rendering", "amount_tax_display pdf.page_size template template_version"),
        "rendering_options.amount_tax_display",
        _under("shipping_cost", "amount_subtotal amount_tax amount_total shipping_rate"),
        _under("shipping_details", "name phone"),
        _under("shipping_details.address", _ADDRESS),
        _under("status_transitions", "finalized_at marked_uncollectible_at paid_at voided_at"),
        _under("threshold_reason", "amount_gte item_reasons.usage_gte"),
        _under("total_discount_amounts", "amount discount"),
        _under("total_pretax_credit_amounts", "amount credit_balance_transaction discount type"),
        _under("total_tax_amounts", "amount inclusive tax_rate taxable_amount"),
        _under("total_taxes", "amount tax_behavior taxability_reason taxable_amount type"),
        _under("transfer_data", "amount destination"),
    )
)
_LISTS = (
    "account_tax_ids discounts lines.data.discounts payment_settings.payment_method_types "
    "threshold_reason.item_reasons.line_item_ids"
)
_MAPS = "metadata lines.data.metadata lines.data.price.metadata parent.subscription_details.metadata"

FIELDS: Final = {
    **dict.fromkeys(_SCALARS.split(), Shape.SCALAR),
    **dict.fromkeys(_LISTS.split(), Shape.SCALARS),
    **dict.fromkeys(_MAPS.split(), Shape.MAP),
}

#: The ids of invoices, at Stripe and at upstreams in front of it.
IDS: Final = "[a-z]{2,12}_[A-Za-z0-9]{1,64}"

_OWN: Final = Words("Your own data", "A name and a value of your own. The customer does not see them.", "1001")
_BEHAVIOR: Final = Words(
    "Tax in the price", "Whether the price includes the tax, or the tax comes on top.", "exclusive"
)

#: Written by hand for all that a policy may grant as a group.
WORDS: Final = {
    "account_tax_ids": Words("Your tax ids", "Your own tax ids, which are printed on the invoice.", ""),
    "account_tax_ids[{i}]": Words(
        "Your tax id",
        "A tax id of your own that is printed on the invoice, by its id at Stripe.",
        "txi_1Mg8jZ2eZvKYlo2C",
    ),
    "amount": Words(
        "Amount", "What the invoice comes to, in the smallest unit of the currency: 12000 is 120.00.", "12000"
    ),
    "automatic_tax[enabled]": Words("Tax by Stripe", "Whether Stripe works out the tax and adds it.", "true"),
    "collection_method": Words(
        "How it is paid",
        "send_invoice: the customer is sent the invoice and pays it. charge_automatically: the payment method that is "
        "on file is charged.",
        "send_invoice",
    ),
    "currency": Words("Currency", "The currency of the invoice. Without it, the customer's own.", "usd"),
    "custom_fields": Words("Extra fields", "Up to four names and values at the head of the invoice.", ""),
    "custom_fields[{i}][name]": Words(
        "Name of the extra field", "The name that is printed at the head of the invoice.", "Purchase order"
    ),
    "custom_fields[{i}][value]": Words("Value of the extra field", "What is printed beside that name.", "PO-4711"),
    "customer": Words("Customer", "Whom the invoice is for, by the customer's id at Stripe.", "cus_MQqeLuPp19Qbk8"),
    "days_until_due": Words("Days until due", "How many days the customer has to pay the invoice.", "30"),
    "default_tax_rates[{i}]": Words(
        "Tax rate", "A tax rate for the lines that have none of their own, by its id at Stripe.", "txr_1MVtFE2eZvKYlo2C"
    ),
    "description": Words("Description", "A text for the customer, above the lines.", "Consulting in March"),
    "discounts": Words("Discounts", "The discounts on the whole invoice. Without it, the customer's own.", ""),
    "discounts[{i}][coupon]": Words("Coupon", "A coupon to take off, by its id at Stripe.", "Z4OV52SU"),
    "discounts[{i}][discount]": Words(
        "Discount", "A discount that exists already, by its id at Stripe.", "di_1M6vk22eZvKYlo2C"
    ),
    "discounts[{i}][promotion_code]": Words(
        "Promotion code", "A promotion code to take off, by its id at Stripe.", "promo_1Mg8jZ2eZvKYlo2C"
    ),
    "due_date": Words("Due date", "The day by which the customer has to pay the invoice.", "1830254400"),
    "effective_at": Words(
        "Date of the invoice",
        "The date that is printed on the invoice, if it is not the day it is raised.",
        "1830254400",
    ),
    "footer": Words("Footer", "A text at the foot of the invoice.", "Thank you for your order."),
    "from_invoice[action]": Words("What to do with it", "revision: this invoice replaces the other one.", "revision"),
    "from_invoice[invoice]": Words(
        "Invoice to replace", "The invoice that this one replaces, by its id at Stripe.", "in_1MtHbELkdIwHu7ixl4OzzPMv"
    ),
    "metadata": Words("Your own data", "Names and values of your own. The customer does not see them.", ""),
    "metadata[{key}]": _OWN,
    "number": Words(
        "Number", "The number that is printed on the invoice, in place of the next one of the series.", "2026-0042"
    ),
    "pending_invoice_items_behavior": Words(
        "Waiting items", "Whether items that wait for the customer's next invoice go on this one.", "exclude"
    ),
    "rendering[amount_tax_display]": Words(
        "Amounts with tax", "Whether the lines are printed with or without the tax that they include.", "exclude_tax"
    ),
    "rendering[pdf][page_size]": Words("Page size", "The size of the pages of the PDF.", "a4"),
    "rendering[template]": Words(
        "Template", "The template that the invoice is printed by, by its id at Stripe.", "inrtem_1Mg8jZ2eZvKYlo2C"
    ),
    "rendering[template_version]": Words("Version of the template", "Which version of that template.", "1"),
    "shipping_cost[shipping_rate]": Words(
        "Shipping rate", "What shipping costs, by the id of the rate at Stripe.", "shr_1Mg8jZ2eZvKYlo2C"
    ),
    "shipping_cost[shipping_rate_data][delivery_estimate][maximum][unit]": Words(
        "Longest delivery, unit", "The unit in which the longest delivery is given.", "day"
    ),
    "shipping_cost[shipping_rate_data][delivery_estimate][maximum][value]": Words(
        "Longest delivery", "How long the delivery takes at most, in that unit.", "5"
    ),
    "shipping_cost[shipping_rate_data][delivery_estimate][minimum][unit]": Words(
        "Shortest delivery, unit", "The unit in which the shortest delivery is given.", "day"
    ),
    "shipping_cost[shipping_rate_data][delivery_estimate][minimum][value]": Words(
        "Shortest delivery", "How long the delivery takes at least, in that unit.", "2"
    ),
    "shipping_cost[shipping_rate_data][display_name]": Words(
        "Name of the shipping", "What the customer reads beside the cost of shipping.", "Standard delivery"
    ),
    "shipping_cost[shipping_rate_data][fixed_amount][amount]": Words("Cost of shipping", "What shipping costs.", "500"),
    "shipping_cost[shipping_rate_data][fixed_amount][currency]": Words(
        "Currency of shipping", "The currency of that cost.", "usd"
    ),
    "shipping_cost[shipping_rate_data][fixed_amount][currency_options][{key}][amount]": Words(
        "Cost of shipping in another currency", "What shipping costs in the currency that the name says.", "500"
    ),
    "shipping_cost[shipping_rate_data][fixed_amount][currency_options][{key}][tax_behavior]": _BEHAVIOR,
    "shipping_cost[shipping_rate_data][metadata][{key}]": _OWN,
    "shipping_cost[shipping_rate_data][tax_behavior]": _BEHAVIOR,
    "shipping_cost[shipping_rate_data][tax_code]": Words(
        "Tax code of shipping", "The code by which Stripe knows how shipping is taxed.", "txcd_92010001"
    ),
    "shipping_cost[shipping_rate_data][type]": Words(
        "How shipping is priced", "fixed_amount: shipping costs the same, whatever is sent.", "fixed_amount"
    ),
    "shipping_details[address][city]": Words("City of delivery", "The city that it is delivered to.", "Berlin"),
    "shipping_details[address][country]": Words(
        "Country of delivery", "The country that it is delivered to, in two letters.", "DE"
    ),
    "shipping_details[address][line1]": Words("Street", "The street and the number of the house.", "Invalidenstr. 117"),
    "shipping_details[address][line2]": Words("Second line", "The floor, the apartment or the building.", "3rd floor"),
    "shipping_details[address][postal_code]": Words("Postal code", "The postal code or ZIP code.", "10115"),
    "shipping_details[address][state]": Words("State", "The state, the province or the region.", "Berlin"),
    "shipping_details[name]": Words("Recipient", "The name of whoever gets the delivery.", "Jenny Rosen"),
    "shipping_details[phone]": Words(
        "Recipient's phone", "The phone number of whoever gets the delivery.", "+4930123456"
    ),
    "statement_descriptor": Words(
        "Text on the bank statement", "What the customer reads on the bank statement.", "ACME CONSULTING"
    ),
    "subscription": Words(
        "Subscription",
        "The subscription whose waiting items are invoiced, by its id at Stripe.",
        "sub_1MowQVLkdIwHu7ix",
    ),
}

_CENTS: Final = "in the smallest unit of its currency"

#: What the fields of an answer mean, by the same paths. What is not here says its path.
MEANINGS: Final = {
    "id": "The invoice's id at Stripe.",
    "object": "What kind of thing this is: invoice.",
    "number": "The number that is printed on the invoice.",
    "status": "draft, open, paid, uncollectible or void.",
    "paid": "Whether it is paid.",
    "currency": "Its currency, in three small letters.",
    "customer": "Whom it is for, by the customer's id at Stripe.",
    "customer_name": "The name of the customer.",
    "customer_email": "The e-mail address that it is sent to.",
    "description": "The text for the customer, above the lines.",
    "footer": "The text at its foot.",
    "metadata": "Your own data.",
    "amount_due": f"What the customer has to pay, {_CENTS}.",
    "amount_paid": f"What the customer has paid, {_CENTS}.",
    "amount_remaining": f"What the customer has yet to pay, {_CENTS}.",
    "subtotal": f"The sum of the lines, {_CENTS}.",
    "total": f"What it comes to, with discounts and tax, {_CENTS}.",
    "total_excluding_tax": f"What it comes to without tax, {_CENTS}.",
    "tax": f"The tax on it, {_CENTS}.",
    "created": "When it was raised, in unix seconds.",
    "due_date": "When the customer has to pay it by, in unix seconds.",
    "effective_at": "The date that is printed on it, in unix seconds.",
    "collection_method": "Whether the customer is sent the invoice, or the payment method on file is charged.",
    "auto_advance": "Whether Stripe goes on with it by itself: finalizes it and collects the money.",
    "hosted_invoice_url": "The page on which the customer sees the invoice and pays it.",
    "invoice_pdf": "Where the invoice is as a PDF.",
    "livemode": "true for real money, false for a test.",
    "statement_descriptor": "What the customer reads on the bank statement.",
    "subscription": "The subscription that it belongs to.",
    "lines.data.id": "A line's id at Stripe.",
    "lines.data.amount": f"What a line comes to, {_CENTS}.",
    "lines.data.currency": "A line's currency, in three small letters.",
    "lines.data.description": "What a line is for.",
    "lines.data.quantity": "How many of it.",
    "lines.has_more": "Whether it has more lines than are here.",
    "lines.total_count": "How many lines it has.",
    "status_transitions.finalized_at": "When it was finalized, in unix seconds.",
    "status_transitions.paid_at": "When it was paid, in unix seconds.",
    "status_transitions.voided_at": "When it was voided, in unix seconds.",
}

#: What Appgregator alone takes, from its page on invoice items: the invoice then has one line of this sum.
AMOUNT: Final = Parameter("amount", INTEGER, CHANGES, minimum=1, upstreams=("appgregator",))

OPERATION: Final = Operation(
    id="invoices.create",
    effect=Effect.CREATES,
    method="POST",
    path="invoices",
    upstreams=("appgregator", "stripe"),
    parameters={parameter.path: parameter for parameter in (AMOUNT, *PARAMETERS)},
    fields=FIELDS,
    answers="invoice",
    noun="invoice",
    ids=IDS,
    # At Stripe it makes a draft, which asks nobody for money until it is finalized.
    spends=Spending(amount="amount_due", currency="currency", at=("appgregator",)),
)
