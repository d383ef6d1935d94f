"""``invoices.retrieve``: read an invoice, as data.

Parameters are those of Stripe's ``GET /v1/invoices/{invoice}``; response fields are those of ``invoices.create``.
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Words
from policies.operations.invoices_create import EXPAND, FIELDS, IDS, MEANINGS  # noqa: F401 - its fields are the same

WORDS: Final = {
    "invoice": Words("Invoice", "Which invoice to look at, by its id at Stripe.", "in_1MtHbELkdIwHu7ixl4OzzPMv"),
}

OPERATION: Final = Operation(
    id="invoices.retrieve",
    effect=Effect.LOOKS,
    method="GET",
    path="invoices/{invoice}",
    upstreams=("stripe",),
    parameters={
        parameter.path: parameter
        for parameter in (
            Parameter("invoice", Kind.STRING, Risk.PLAIN, max_length=255),
            *EXPAND,
        )
    },
    fields=FIELDS,
    answers="invoice",
    noun="invoice",
    ids=IDS,
)
