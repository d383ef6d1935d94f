"""``invoices.delete``: delete a draft, as data.

As Stripe's ``DELETE /v1/invoices/{invoice}``, which takes a draft alone, and no idempotency key: it is idempotent.
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Shape, Verb, Words
from policies.operations.invoices_create import IDS

WORDS: Final = {
    "invoice": Words("Invoice", "Which draft to delete, by its id at Stripe.", "in_1MtHbELkdIwHu7ixl4OzzPMv"),
}
MEANINGS: Final = {
    "id": "The invoice's id at Stripe.",
    "object": "What kind of thing this is: invoice.",
    "deleted": "true: it is deleted.",
}

OPERATION: Final = Operation(
    id="invoices.delete",
    effect=Effect.CHANGES,
    method="DELETE",
    path="invoices/{invoice}",
    upstreams=("stripe",),
    parameters={"invoice": Parameter("invoice", Kind.STRING, Risk.UNDOES, max_length=255)},
    fields=dict.fromkeys(MEANINGS, Shape.SCALAR),
    answers="invoice",
    noun="invoice",
    ids=IDS,
    own_verb=Verb("delete", "deleted"),
)
