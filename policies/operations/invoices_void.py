"""``invoices.void``: void an invoice that was finalized, for good, as data.

Parameters are those of Stripe's ``POST /v1/invoices/{invoice}/void``; response fields are those of ``invoices.create``.
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Verb, Words
from policies.operations.invoices_create import EXPAND, FIELDS, IDS, MEANINGS  # noqa: F401 - its fields are the same

WORDS: Final = {
    "invoice": Words("Invoice", "Which invoice to void, by its id at Stripe.", "in_1MtHbELkdIwHu7ixl4OzzPMv"),
}

OPERATION: Final = Operation(
    id="invoices.void",
    effect=Effect.CHANGES,
    method="POST",
    path="invoices/{invoice}/void",
    upstreams=("stripe",),
    parameters={
        parameter.path: parameter
        for parameter in (
            Parameter("invoice", Kind.STRING, Risk.UNDOES, max_length=255),
            *EXPAND,
        )
    },
    fields=FIELDS,
    answers="invoice",
    noun="invoice",
    ids=IDS,
    own_verb=Verb("void", "voided"),
)
