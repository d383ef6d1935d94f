"""The catalogue has the parameters that Stripe's newest SDK knows, of the version that it speaks."""

from __future__ import annotations

import importlib
import typing
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from policies.operations import OPERATIONS
from policies.upstreams.stripe import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of each operation: the SDK's type of its parameters, and what is in the path or left out on purpose.
TYPES = {
    "invoices.create": ("InvoiceCreateParams", {"amount"}, set()),
    "invoices.finalize": ("InvoiceFinalizeInvoiceParams", {"invoice"}, set()),
    "invoices.send": ("InvoiceSendInvoiceParams", {"invoice"}, set()),
    "invoices.void": ("InvoiceVoidInvoiceParams", {"invoice"}, set()),
    "invoices.delete": ("InvoiceDeleteParams", {"invoice"}, set()),
    "invoices.retrieve": ("InvoiceRetrieveParams", {"invoice"}, set()),
    "invoiceitems.create": ("InvoiceItemCreateParams", set(), set()),
    "customers.create": ("CustomerCreateParams", set(), set()),
    "customers.list": (
        "CustomerListParams",
        set(),
        {"created", "ending_before", "expand", "starting_after", "test_clock"},
    ),
}
_OPTIONS = {"api_key", "content_type", "headers", "idempotency_key", "max_network_retries", "stripe_account",
            "stripe_context", "stripe_version"}  # fmt: skip


def paths(module: Any, kind: Any, parent: str = "") -> Iterator[str]:
    """Yield the paths below a type of the SDK, as the catalogue writes them."""
    origin, within = typing.get_origin(kind), typing.get_args(kind)
    if origin in {list, dict}:
        part = f"{parent}[{{i}}]" if origin is list else f"{parent}[{{key}}]"
        yield part
        yield from paths(module, within[-1], part)
        return
    for one in within if not isinstance(origin, type) else ():  # a class stands beside the dict of the same
        yield from paths(module, one, parent)
    if hasattr(kind, "__required_keys__"):  # a TypedDict, whoever made it
        for name, inner in typing.get_type_hints(
            kind, {**vars(module), "StripeContext": object, "Mapping": dict}
        ).items():
            if parent or name not in _OPTIONS:
                path = f"{parent}[{name}]" if parent else name
                yield path
                yield from paths(module, inner, path)


@pytest.mark.parametrize("operation", TYPES)
def test_parameters_are_those_of_the_newest_sdk(operation: str) -> None:
    kind, ours, left_out = TYPES[operation]
    words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind)
    module = importlib.import_module(f"stripe.params.{words}")
    published = {path for path in paths(module, getattr(module, kind)) if path.partition("[")[0] not in left_out}
    assert set(OPERATIONS[operation].parameters) - ours == published


def test_version_is_the_one_that_the_sdk_speaks() -> None:
    assert stripe.api_version == VERSION
