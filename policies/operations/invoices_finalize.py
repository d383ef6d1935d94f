"""``invoices.finalize``: finalize a draft, as data.

Parameters are those of Stripe's ``POST /v1/invoices/{invoice}/finalize``; response fields are those of
``invoices.create``. The draft is read first (``policies.finalizing``).
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Spending, Verb, Words
from policies.operations.invoices_create import EXPAND, FIELDS, IDS, MEANINGS  # noqa: F401 - its fields are the same

WORDS: Final = {
    "invoice": Words("Invoice", "Which draft to finalize, by its id at Stripe.", "in_1MtHbELkdIwHu7ixl4OzzPMv"),
}

OPERATION: Final = Operation(
    id="invoices.finalize",
    effect=Effect.CHANGES,
    method="POST",
    path="invoices/{invoice}/finalize",
    upstreams=("stripe",),
    parameters={
        parameter.path: parameter
        for parameter in (
            Parameter("invoice", Kind.STRING, Risk.COLLECTS, max_length=255),
            Parameter("auto_advance", Kind.BOOLEAN, Risk.COLLECTS),
            *EXPAND,
        )
    },
    fields=FIELDS,
    answers="invoice",
    noun="invoice",
    ids=IDS,
    spends=Spending(amount="total", currency="currency"),
    own_verb=Verb("finalize", "finalized"),
    plan="finalizing",
)
