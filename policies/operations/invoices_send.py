"""``invoices.send``: mail an invoice to its customer, as data.

Parameters are those of Stripe's ``POST /v1/invoices/{invoice}/send``; response fields are those of ``invoices.create``.
Sending a draft finalizes it, so it is read first and judged as ``invoices.finalize`` judges it
(``policies.finalizing``).
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Spending, Verb, Words
from policies.operations.invoices_create import EXPAND, FIELDS, IDS, MEANINGS  # noqa: F401 - its fields are the same

WORDS: Final = {
    "invoice": Words("Invoice", "Which invoice to mail, by its id at Stripe.", "in_1MtHbELkdIwHu7ixl4OzzPMv"),
}

OPERATION: Final = Operation(
    id="invoices.send",
    effect=Effect.CHANGES,
    method="POST",
    path="invoices/{invoice}/send",
    upstreams=("stripe",),
    parameters={
        parameter.path: parameter
        for parameter in (
            Parameter("invoice", Kind.STRING, Risk.MAILS, max_length=255),
            *EXPAND,
        )
    },
    fields=FIELDS,
    answers="invoice",
    noun="invoice",
    ids=IDS,
    spends=Spending(amount="total", currency="currency"),
    own_verb=Verb("mail", "mailed"),
    plan="finalizing",
)
