"""``customers.list``: find a customer by the exact e-mail address, as data.

Of Stripe's ``GET /v1/customers``, which lists everybody without ``email``, only the search by it. Stripe tells capital
letters from small ones there.
"""

from __future__ import annotations

from typing import Final

from policies.model import Effect, Kind, Operation, Parameter, Risk, Shape, Verb, Words
from policies.operations.customers_create import FIELDS as FIELDS_OF_A_CUSTOMER
from policies.operations.customers_create import IDS
from policies.operations.customers_create import MEANINGS as MEANINGS_OF_A_CUSTOMER

WORDS: Final = {
    "email": Words("E-mail", "The address that the customer is on file with, letter by letter.", "jenny@example.com"),
    "limit": Words("At most", "How many customers are answered at most. Two with one address are refused.", "1"),
}
MEANINGS: Final = {
    "object": "What kind of thing this is: list.",
    "has_more": "Whether there are more.",
    "url": "Where the list is at Stripe.",
    **{f"data.{path}": means for path, means in MEANINGS_OF_A_CUSTOMER.items()},
}

OPERATION: Final = Operation(
    id="customers.list",
    effect=Effect.LOOKS,
    method="GET",
    path="customers",
    upstreams=("stripe",),
    parameters={
        parameter.path: parameter
        for parameter in (
            Parameter("email", Kind.STRING, Risk.PLAIN, max_length=512, needed=True),
            # docs.stripe.com/api/pagination
            Parameter("limit", Kind.INTEGER, Risk.PLAIN, minimum=1, maximum=100),
        )
    },
    fields={
        **dict.fromkeys(("object", "has_more", "url"), Shape.SCALAR),
        **{f"data.{path}": shape for path, shape in FIELDS_OF_A_CUSTOMER.items()},
    },
    answers="list",
    noun="customer",
    ids=IDS,
    own_verb=Verb("find", "found"),
    finds="email",
)
