"""``invoiceitems.create``: add an item to a draft, as data.

Parameters are those of Stripe's ``POST /v1/invoiceitems``. ``invoice`` is required here: an item without it waits for
whatever invoice the customer gets next, and two programs that bill one customer would mix their lines.
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Shape, Verb, Words
from policies.operations.invoices_create import EXPAND

STRING, INTEGER, BOOLEAN, TIMESTAMP = Kind.STRING, Kind.INTEGER, Kind.BOOLEAN, Kind.TIMESTAMP
CURRENCY, OBJECT, ARRAY = Kind.CURRENCY, Kind.OBJECT, Kind.ARRAY
PLAIN, CHANGES, REROUTES = Risk.PLAIN, Risk.CHANGES, Risk.REROUTES
_BEHAVIORS: Final = ("exclusive", "inclusive", "unspecified")

# fmt: off
PARAMETERS: Final = (
    Parameter("amount", INTEGER, CHANGES),
    Parameter("currency", CURRENCY, PLAIN),
    Parameter("customer", STRING, PLAIN, max_length=5000),
    Parameter("customer_account", STRING, REROUTES, max_length=5000),
    Parameter("description", STRING, PLAIN, max_length=5000, free=True),
    Parameter("discountable", BOOLEAN, CHANGES),
    Parameter("discounts", ARRAY, CHANGES, unsets=True),
    Parameter("discounts[{i}]", OBJECT, CHANGES),
    Parameter("discounts[{i}][coupon]", STRING, CHANGES, max_length=5000),
    Parameter("discounts[{i}][discount]", STRING, CHANGES, max_length=5000),
    Parameter("discounts[{i}][promotion_code]", STRING, CHANGES, max_length=5000),
    *EXPAND,
    Parameter("invoice", STRING, PLAIN, max_length=5000, needed=True),
    Parameter("metadata", OBJECT, PLAIN, max_items=50, max_key=40, unsets=True),
    Parameter("metadata[{key}]", STRING, PLAIN, max_length=500, free=True),
    Parameter("period", OBJECT, PLAIN),
    Parameter("period[end]", TIMESTAMP, PLAIN, needed=True),
    Parameter("period[start]", TIMESTAMP, PLAIN, needed=True),
    Parameter("price_data", OBJECT, CHANGES),
    Parameter("price_data[currency]", CURRENCY, CHANGES, needed=True),
    Parameter("price_data[product]", STRING, CHANGES, max_length=5000, needed=True),
    Parameter("price_data[tax_behavior]", STRING, CHANGES, one_of=_BEHAVIORS),
    Parameter("price_data[unit_amount]", INTEGER, CHANGES),
    Parameter("price_data[unit_amount_decimal]", STRING, CHANGES),
    Parameter("pricing", OBJECT, CHANGES),
    Parameter("pricing[price]", STRING, CHANGES, max_length=5000),
    Parameter("quantity", INTEGER, CHANGES),
    Parameter("quantity_decimal", STRING, CHANGES),
    Parameter("subscription", STRING, CHANGES, max_length=5000),
    Parameter("tax_behavior", STRING, CHANGES, one_of=_BEHAVIORS),
    Parameter("tax_code", STRING, CHANGES, unsets=True),
    Parameter("tax_rates", ARRAY, CHANGES),
    Parameter("tax_rates[{i}]", STRING, CHANGES, max_length=5000),
    Parameter("unit_amount_decimal", STRING, CHANGES),
)
# fmt: on

_SCALARS: Final = (
    "id object amount currency customer customer_account date description discountable invoice livemode net_amount "
    "period.end period.start proration quantity quantity_decimal test_clock "
    "pricing.type pricing.unit_amount_decimal pricing.price_details.price pricing.price_details.product "
    "parent.type parent.subscription_details.subscription parent.subscription_details.subscription_item "
    "tax_rates.display_name tax_rates.id tax_rates.inclusive tax_rates.percentage"
)
_CENTS: Final = "in the smallest unit of its currency"
_BEHAVIOR: Final = Words(
    "Tax in the price", "Whether the price includes the tax, or the tax comes on top.", "exclusive"
)

WORDS: Final = {
    "amount": Words("Amount", f"What the item comes to, {_CENTS}: 12000 is 120.00. Less than 0 lowers it.", "12000"),
    "currency": Words("Currency", "The currency of the item, which is the invoice's.", "usd"),
    "customer": Words("Customer", "Whom the invoice is for, by the customer's id at Stripe.", "cus_MQqeLuPp19Qbk8"),
    "description": Words("Text", "What the item is for, as the customer reads it.", "Workshop in May"),
    "discountable": Words("Discounts on it", "Whether the discounts on the invoice lower this item, too.", "true"),
    "discounts": Words("Discounts", "The discounts on this item alone.", ""),
    "discounts[{i}][coupon]": Words("Coupon", "A coupon to take off, by its id at Stripe.", "Z4OV52SU"),
    "discounts[{i}][discount]": Words(
        "Discount", "A discount that exists already, by its id at Stripe.", "di_1M6vk22eZvKYlo2C"
    ),
    "discounts[{i}][promotion_code]": Words(
        "Promotion code", "A promotion code to take off, by its id at Stripe.", "promo_1Mg8jZ2eZvKYlo2C"
    ),
    "invoice": Words("Invoice", "Which draft it goes on, by its id at Stripe.", "in_1MtHbELkdIwHu7ixl4OzzPMv"),
    "metadata": Words("Your own data", "Names and values of your own. The customer does not see them.", ""),
    "metadata[{key}]": Words("Your own data", "A name and a value of your own. The customer does not see it.", "1001"),
    "period[end]": Words("End of the period", "The day until which the item is for.", "1830254400"),
    "period[start]": Words("Start of the period", "The day from which the item is for.", "1827576000"),
    "price_data[currency]": Words("Currency of each", "The currency of a new price, which is the invoice's.", "usd"),
    "price_data[product]": Words("Product", "What is sold at a new price, by its id at Stripe.", "prod_NKBSkWUk0npqzT"),
    "price_data[tax_behavior]": _BEHAVIOR,
    "price_data[unit_amount]": Words("Amount of each", f"What one comes to at a new price, {_CENTS}.", "2500"),
    "price_data[unit_amount_decimal]": Words(
        "Amount of each", f"What one comes to at a new price, {_CENTS}, with up to 12 decimals.", "2500.5"
    ),
    "pricing[price]": Words(
        "Price", "A price that is kept at Stripe, by its id. It goes with a quantity.", "price_1MtHbELkdIwHu7ix"
    ),
    "quantity": Words("How many", "How many of it, with an amount of each or a price.", "3"),
    "quantity_decimal": Words("How many", "How many of it, with up to 12 decimals.", "2.5"),
    "subscription": Words(
        "Subscription", "The subscription that the item belongs to, by its id at Stripe.", "sub_1MowQVLkdIwHu7ix"
    ),
    "tax_behavior": _BEHAVIOR,
    "tax_code": Words("Tax code", "The code by which Stripe knows how it is taxed.", "txcd_10000000"),
    "tax_rates[{i}]": Words("Tax rate", "A tax rate of this item, by its id at Stripe.", "txr_1MVtFE2eZvKYlo2C"),
    "unit_amount_decimal": Words(
        "Amount of each", f"What one comes to, {_CENTS}, with up to 12 decimals. It goes with a quantity.", "2500"
    ),
}
MEANINGS: Final = {
    "id": "The item's id at Stripe.",
    "object": "What kind of thing this is: invoiceitem.",
    "amount": f"What it comes to, {_CENTS}.",
    "currency": "Its currency, in three small letters.",
    "customer": "Whom it is for, by the customer's id at Stripe.",
    "description": "What it is for.",
    "invoice": "The invoice that it is on, by its id at Stripe.",
    "quantity": "How many of it.",
    "livemode": "true for real money, false for a test.",
    "metadata": "Your own data.",
}

OPERATION: Final = Operation(
    id="invoiceitems.create",
    effect=Effect.CREATES,
    method="POST",
    path="invoiceitems",
    upstreams=("stripe",),
    parameters={parameter.path: parameter for parameter in PARAMETERS},
    fields={
        **dict.fromkeys(_SCALARS.split(), Shape.SCALAR),
        "discounts": Shape.SCALARS,
        "metadata": Shape.MAP,
        "parent.subscription_details.metadata": Shape.MAP,
    },
    answers="invoiceitem",
    noun="invoice item",
    ids="ii_[A-Za-z0-9]{1,64}",
    own_verb=Verb("add", "added"),
)
