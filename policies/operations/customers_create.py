"""``customers.create``: put a customer on file, as data.

Parameters are those of Stripe's ``POST /v1/customers`` (2026-10-28.endive). What decides which money pays, and what a
customer owes or is owed from the start, is granted by name alone.
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Shape, Verb, Words
from policies.operations.invoices_create import EXPAND

STRING, INTEGER, BOOLEAN, OBJECT, ARRAY = Kind.STRING, Kind.INTEGER, Kind.BOOLEAN, Kind.OBJECT, Kind.ARRAY
PLAIN, CHANGES, REROUTES = Risk.PLAIN, Risk.CHANGES, Risk.REROUTES

_ADDRESS: Final = ("city", "country", "line1", "line2", "postal_code", "state")


def _address(parent: str, *, needed: bool = False) -> tuple[Parameter, ...]:
    return (
        Parameter(parent, OBJECT, PLAIN, needed=needed, unsets=not needed),
        *(Parameter(f"{parent}[{part}]", STRING, PLAIN, max_length=5000, free=True) for part in _ADDRESS),
    )


# fmt: off
PARAMETERS: Final = (
    *_address("address"),
    Parameter("balance", INTEGER, REROUTES),
    Parameter("business_name", STRING, PLAIN, max_length=150, unsets=True, free=True),
    Parameter("cash_balance", OBJECT, REROUTES),
    Parameter("cash_balance[settings]", OBJECT, REROUTES),
    Parameter("cash_balance[settings][reconciliation_mode]", STRING, REROUTES, one_of=(
        "automatic", "manual", "merchant_default"
    )),
    Parameter("description", STRING, PLAIN, max_length=5000, free=True),
    Parameter("email", STRING, PLAIN, max_length=512),
    *EXPAND,
    Parameter("individual_name", STRING, PLAIN, max_length=150, unsets=True, free=True),
    Parameter("invoice_prefix", STRING, CHANGES, max_length=12),
    Parameter("invoice_settings", OBJECT, CHANGES),
    Parameter("invoice_settings[custom_fields]", ARRAY, CHANGES, max_items=4, unsets=True),
    Parameter("invoice_settings[custom_fields][{i}]", OBJECT, CHANGES),
    Parameter("invoice_settings[custom_fields][{i}][name]", STRING, CHANGES, max_length=40, needed=True, free=True),
    Parameter("invoice_settings[custom_fields][{i}][value]", STRING, CHANGES, max_length=140, needed=True, free=True),
    Parameter("invoice_settings[default_payment_method]", STRING, REROUTES, max_length=5000),
    Parameter("invoice_settings[footer]", STRING, CHANGES, max_length=5000, free=True),
    Parameter("invoice_settings[rendering_options]", OBJECT, CHANGES, unsets=True),
    Parameter("invoice_settings[rendering_options][amount_tax_display]", STRING, CHANGES, one_of=(
        "exclude_tax", "include_inclusive_tax"
    ), unsets=True),
    Parameter("invoice_settings[rendering_options][template]", STRING, CHANGES, max_length=5000),
    Parameter("metadata", OBJECT, PLAIN, max_items=50, max_key=40, unsets=True),
    Parameter("metadata[{key}]", STRING, PLAIN, max_length=500, free=True),
    Parameter("name", STRING, PLAIN, max_length=256, free=True),
    Parameter("next_invoice_sequence", INTEGER, CHANGES),
    Parameter("payment_method", STRING, REROUTES, max_length=5000),
    Parameter("phone", STRING, PLAIN, max_length=20, free=True),
    Parameter("preferred_locales", ARRAY, PLAIN),
    Parameter("preferred_locales[{i}]", STRING, PLAIN, max_length=5000),
    Parameter("shipping", OBJECT, PLAIN, unsets=True),
    *_address("shipping[address]", needed=True),
    Parameter("shipping[name]", STRING, PLAIN, max_length=5000, needed=True, free=True),
    Parameter("shipping[phone]", STRING, PLAIN, max_length=5000, free=True),
    Parameter("source", STRING, REROUTES, max_length=5000),
    Parameter("tax", OBJECT, CHANGES),
    Parameter("tax[ip_address]", STRING, CHANGES, unsets=True),
    Parameter("tax[validate_location]", STRING, CHANGES, one_of=("deferred", "immediately")),
    Parameter("tax_exempt", STRING, CHANGES, one_of=("exempt", "none", "reverse"), unsets=True),
    Parameter("tax_id_data", ARRAY, CHANGES),
    Parameter("tax_id_data[{i}]", OBJECT, CHANGES),
    Parameter("tax_id_data[{i}][type]", STRING, CHANGES, max_length=5000, needed=True),
    Parameter("tax_id_data[{i}][value]", STRING, CHANGES, max_length=5000, needed=True),
    Parameter("test_clock", STRING, CHANGES, max_length=5000),
    Parameter("validate", BOOLEAN, REROUTES),
)
# fmt: on

_SCALARS: Final = (
    "id object balance business_name created currency customer_account default_source delinquent description email "
    "individual_name invoice_prefix livemode name next_invoice_sequence phone tax_exempt test_clock "
    "address.city address.country address.line1 address.line2 address.postal_code address.state "
    "discount.end discount.id discount.start "
    "invoice_settings.custom_fields.name invoice_settings.custom_fields.value invoice_settings.default_payment_method "
    "invoice_settings.footer invoice_settings.rendering_options.amount_tax_display "
    "invoice_settings.rendering_options.template "
    "shipping.name shipping.phone shipping.address.city shipping.address.country shipping.address.line1 "
    "shipping.address.line2 shipping.address.postal_code shipping.address.state"
)
FIELDS: Final = {
    **dict.fromkeys(_SCALARS.split(), Shape.SCALAR),
    "metadata": Shape.MAP,
    "preferred_locales": Shape.SCALARS,
}
#: The ids of customers. Old accounts have short ones.
IDS: Final = "[a-z]{2,12}_[A-Za-z0-9]{1,64}"


def _of_address(parent: str, whose: str) -> dict[str, Words]:
    return {
        f"{parent}[city]": Words(f"City {whose}", "The city.", "Berlin"),
        f"{parent}[country]": Words(f"Country {whose}", "The country, in two letters.", "DE"),
        f"{parent}[line1]": Words(f"Street {whose}", "The street and the number of the house.", "Invalidenstr. 117"),
        f"{parent}[line2]": Words(f"Second line {whose}", "The floor, the apartment or the building.", "3rd floor"),
        f"{parent}[postal_code]": Words(f"Postal code {whose}", "The postal code or ZIP code.", "10115"),
        f"{parent}[state]": Words(f"State {whose}", "The state, the province or the region.", "Berlin"),
    }


WORDS: Final = {
    "address": Words("Address", "Where the customer is.", ""),
    **_of_address("address", "of the customer"),
    "business_name": Words("Business", "The name of the customer's business.", "Rosen GmbH"),
    "description": Words("Note", "A note on the customer, for your own people.", "Ordered at the fair"),
    "email": Words("E-mail", "The address that invoices are mailed to.", "jenny@example.com"),
    "individual_name": Words("Person", "The full name of the customer, a person.", "Jenny Rosen"),
    "invoice_prefix": Words(
        "Beginning of invoice numbers", "How the numbers of the customer's invoices begin: 1 to 12 letters.", "ROSEN"
    ),
    "invoice_settings[custom_fields]": Words("Extra fields", "Names and values at the head of each invoice.", ""),
    "invoice_settings[custom_fields][{i}][name]": Words(
        "Name of the extra field", "The name that is printed at the head of each invoice.", "Purchase order"
    ),
    "invoice_settings[custom_fields][{i}][value]": Words(
        "Value of the extra field", "What is printed beside that name.", "PO-4711"
    ),
    "invoice_settings[footer]": Words("Footer", "A text at the foot of each invoice.", "Thank you for your order."),
    "invoice_settings[rendering_options]": Words("Print", "How the customer's invoices are printed.", ""),
    "invoice_settings[rendering_options][amount_tax_display]": Words(
        "Amounts with tax", "Whether the lines are printed with or without the tax that they include.", "exclude_tax"
    ),
    "invoice_settings[rendering_options][template]": Words(
        "Template", "The template of the customer's invoices, by its id at Stripe.", "inrtem_1Mg8jZ2eZvKYlo2C"
    ),
    "metadata": Words("Your own data", "Names and values of your own. The customer does not see them.", ""),
    "metadata[{key}]": Words("Your own data", "A name and a value of your own. The customer does not see it.", "1001"),
    "name": Words("Name", "The name of the customer, a person or a business.", "Jenny Rosen"),
    "next_invoice_sequence": Words(
        "Next number", "The number of the customer's next invoice, where each customer has a series.", "1"
    ),
    "phone": Words("Phone", "The customer's phone number.", "+4930123456"),
    "preferred_locales[{i}]": Words("Language", "A language that the customer reads, the first one first.", "de"),
    "shipping": Words("Delivery", "Where the customer is delivered to.", ""),
    **_of_address("shipping[address]", "of delivery"),
    "shipping[name]": Words("Recipient", "The name of whoever gets the delivery.", "Jenny Rosen"),
    "shipping[phone]": Words("Recipient's phone", "The phone number of whoever gets the delivery.", "+4930123456"),
    "tax[ip_address]": Words("IP address", "An address that the customer was seen at, to work out tax.", "192.0.2.7"),
    "tax[validate_location]": Words("Check of the place", "When Stripe checks where the customer is.", "deferred"),
    "tax_exempt": Words("Tax", "none: the customer pays tax. exempt: not. reverse: the customer declares it.", "none"),
    "tax_id_data[{i}][type]": Words("Kind of tax id", "What kind of tax id it is.", "eu_vat"),
    "tax_id_data[{i}][value]": Words("Tax id", "A tax id of the customer.", "DE123456789"),
    "test_clock": Words("Test clock", "In test mode, the clock that the customer goes by.", "clock_1Mg8jZ2eZvKYlo2C"),
}
MEANINGS: Final = {
    "id": "The customer's id at Stripe, which invoices name.",
    "object": "What kind of thing this is: customer.",
    "name": "The name of the customer.",
    "email": "The address that invoices are mailed to.",
    "phone": "The customer's phone number.",
    "description": "A note on the customer.",
    "balance": "What the customer owes from before, in the smallest unit of the currency; less than 0 is credit.",
    "currency": "The customer's currency, in three small letters.",
    "created": "When the customer was put on file, in unix seconds.",
    "livemode": "true for real money, false for a test.",
    "metadata": "Your own data.",
}

OPERATION: Final = Operation(
    id="customers.create",
    effect=Effect.CREATES,
    method="POST",
    path="customers",
    upstreams=("stripe",),
    parameters={parameter.path: parameter for parameter in PARAMETERS},
    fields=FIELDS,
    answers="customer",
    noun="customer",
    ids=IDS,
    own_verb=Verb("create", "created"),
)
