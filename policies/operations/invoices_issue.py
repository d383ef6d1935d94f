"""``invoices.issue``: a whole invoice, from its lines to the finalized invoice, as data.

It is not one call of Stripe's but several (``policies.issuing``). Parameters are those of Stripe's
``POST /v1/invoices``, without what would let an invoice differ from what was asked or be finalized by itself, and the
lines. Response fields are those of ``invoices.create``, and ``sent``.
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Shape, Spending
from policies.operations.invoices_create import FIELDS, IDS, PARAMETERS

#: What is ours to say, or would bring in other lines than those that were asked for.
_NOT_HERE: Final = (
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
            Parameter("send", Kind.BOOLEAN, Risk.COLLECTS),
        )
    },
    fields={**FIELDS, "sent": Shape.SCALAR},
    answers="invoice",
    noun="invoice",
    ids=IDS,
    spends=Spending(amount="total", currency="currency"),
)
