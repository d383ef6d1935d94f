"""``invoices.issue``: a whole invoice, from its lines to the finalized invoice, as data.

It is not one call of Stripe's but several (``policies.issuing``). Parameters are those of Stripe's
``POST /v1/invoices``, without what would let an invoice differ from what was asked or be finalized by itself, and the
lines. Response fields are those of ``invoices.create``, and ``sent``.
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Shape, Spending, Words
from policies.operations.invoices_create import FIELDS, IDS, PARAMETERS
from policies.operations.invoices_create import MEANINGS as MEANINGS_OF_AN_INVOICE
from policies.operations.invoices_create import WORDS as WORDS_OF_AN_INVOICE

#: What is ours to say, or would bring in other lines than those that were asked for.
_NOT_HERE: Final = (
    "amount",
    "automatically_finalizes_at",
    "from_invoice",
    "pending_invoice_items_behavior",
    "shipping_cost",
    "subscription",
)

# fmt: off
LINES: Final = (
    Parameter("lines", Kind.ARRAY, Risk.CHANGES, max_items=50),
    Parameter("lines[{i}]", Kind.OBJECT, Risk.CHANGES),
    Parameter("lines[{i}][amount]", Kind.INTEGER, Risk.CHANGES),
    Parameter("lines[{i}][description]", Kind.STRING, Risk.CHANGES, max_length=5000, free=True),
    Parameter("lines[{i}][metadata]", Kind.OBJECT, Risk.CHANGES, max_items=50, max_key=40),
    Parameter("lines[{i}][metadata][{key}]", Kind.STRING, Risk.CHANGES, max_length=500, free=True),
    Parameter("lines[{i}][price]", Kind.STRING, Risk.CHANGES, max_length=5000),
    Parameter("lines[{i}][quantity]", Kind.INTEGER, Risk.CHANGES),
    Parameter("lines[{i}][tax_rates]", Kind.ARRAY, Risk.CHANGES, max_items=5),
    Parameter("lines[{i}][tax_rates][{i}]", Kind.STRING, Risk.CHANGES, max_length=5000),
    Parameter("lines[{i}][unit_amount]", Kind.INTEGER, Risk.CHANGES),
)
# fmt: on


def _taken(parameter: Parameter) -> bool:
    return parameter.path.partition("[")[0] not in _NOT_HERE


WORDS: Final = {
    **{path: words for path, words in WORDS_OF_AN_INVOICE.items() if path.partition("[")[0] not in _NOT_HERE},
    "currency": Words("Currency", "The currency of the invoice and of all its lines.", "usd"),
    "lines[{i}][amount]": Words(
        "Amount of the line", "What the line comes to, in the currency's smallest unit: 12000 is 120.00.", "12000"
    ),
    "lines[{i}][description]": Words(
        "Text of the line", "What the line is for, as the customer reads it.", "Workshop in May"
    ),
    "lines[{i}][metadata][{key}]": Words("Note on the line", "A note of your own on this line, by its name.", "W-17"),
    "lines[{i}][price]": Words(
        "Price", "A price that is kept at Stripe, by its id. It goes with a quantity.", "price_1MtHbELkdIwHu7ix"
    ),
    "lines[{i}][quantity]": Words("How many", "How many of it, with a unit amount or a price.", "3"),
    "lines[{i}][tax_rates][{i}]": Words("Tax rate", "A tax rate of this line, by its id at Stripe.", "txr_1MtHbELk"),
    "lines[{i}][unit_amount]": Words(
        "Amount of each", "What one comes to, in the currency's smallest unit. It goes with a quantity.", "2500"
    ),
    "send": Words("Mail it", "Whether Stripe mails the invoice to the customer once it is finalized.", "true"),
}
MEANINGS: Final = {**MEANINGS_OF_AN_INVOICE, "sent": "Whether it was mailed to the customer."}

OPERATION: Final = Operation(
    id="invoices.issue",
    effect=Effect.CREATES,
    method="POST",
    path="invoices/issue",
    upstreams=("stripe",),
    parameters={
        parameter.path: parameter
        for parameter in (
            *filter(_taken, PARAMETERS),
            *LINES,
            Parameter("send", Kind.BOOLEAN, Risk.MAILS),
        )
    },
    fields={**FIELDS, "sent": Shape.SCALAR},
    answers="invoice",
    noun="invoice",
    ids=IDS,
    spends=Spending(amount="total", currency="currency"),
    plan="issuing",
)
