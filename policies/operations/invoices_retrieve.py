"""``invoices.retrieve``: look at an invoice, as data.

Parameters are those of Stripe's ``GET /v1/invoices/{invoice}``; the answer is the same invoice as a new one's.
"""

from __future__ import annotations

from typing import Final

from policies.model import Kind, Operation, Parameter, Risk
from policies.operations.invoices_create import FIELDS

INVOICES_RETRIEVE: Final = Operation(
    id="invoices.retrieve",
    method="GET",
    path="invoices/{invoice}",
    parameters={
        parameter.path: parameter
        for parameter in (
            Parameter("invoice", Kind.STRING, Risk.PLAIN, max_length=255),
            Parameter("expand", Kind.ARRAY, Risk.WIDENS),
            Parameter("expand[{i}]", Kind.STRING, Risk.WIDENS, max_length=5000),
        )
    },
    fields=FIELDS,
    answers="invoice",
)
