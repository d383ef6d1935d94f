"""Appgregator on a real socket: counts its calls, and fails on request as `sandbox.faults` says.

POST /stripe/invoices/?name=ft-4&connection_name=stripe-1     x-api-key, customer=cus_..., perhaps amount and currency
GET  /_sandbox                                                {"calls", "invoices", "connections"}
"""

from __future__ import annotations

import functools
import json
import re
import urllib.parse
from typing import TYPE_CHECKING, Final

from sandbox import faults, invoice
from sandbox.upstream import FORM, NO_PATH, Received, Upstream, form_of, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandbox.server import Answer, Head

__all__ = ["FAULTS", "Appgregator", "Received"]

FAULTS: Final = frozenset(faults.FAULTS)
"""The names of all faults."""

_WHOLE: Final = re.compile(r"[0-9]{1,12}")
_PATHS: Final = ("/stripe/invoices", "/stripe/invoices/")
_UNAUTHORIZED: Final = faults.error(401, "The API key is not valid.")
_NO_ACCOUNT: Final = faults.error(404, "No account is stored under this name and connection_name.")
_NOT_ALLOWED: Final = faults.error(405, "An invoice is created with POST.", "Allow: POST")
_NOT_A_FORM: Final = faults.error(400, f"The content type must be {FORM}.")
_NO_CUSTOMER: Final = faults.error(400, "A customer is required.", param="customer", code="parameter_missing")


class Appgregator(Upstream):
    """The upstream on 127.0.0.1; a port of 0 takes a free one, and keeps it over a restart.

    `accounts` are the names and connection names that it knows; None: it knows any. `delay` is what the fault `slow`
    waits, in seconds. `keep` is how many of the newest calls are kept to look at; the counts go on past it.
    """

    def __init__(
        self,
        keys: Iterable[str] = ("sandbox-upstream-key",),
        accounts: Iterable[tuple[str, str]] | None = (("ft-4", "stripe-1"),),
        port: int = 0,
        *,
        keep: int = 100_000,
    ) -> None:
        super().__init__(keys, port, keep)
        self._accounts = None if accounts is None else frozenset(accounts)

    def _creates(self, head: Head) -> bool:
        return head.method == "POST" and head.path in _PATHS

    def _decide(self, head: Head, body: bytes) -> Answer:
        if head.path not in _PATHS:
            return NO_PATH
        if head.method != "POST":
            return _NOT_ALLOWED
        return self._refusal(head) or self._create(form_of(body), head.fields["x-api-key"])

    def _refusal(self, head: Head) -> Answer | None:
        if head.media != FORM:
            return _NOT_A_FORM
        if head.fields.get("x-api-key") not in self._keys:
            return _UNAUTHORIZED
        if self._accounts is not None and _account(head.query) not in self._accounts:
            return _NO_ACCOUNT
        return None

    def _create(self, form: Mapping[str, str], key: str) -> Answer:
        customer = form.get("customer", "")
        if not customer:
            return _NO_CUSTOMER
        if customer == "cus_missing":
            return faults.error(404, f"There is no customer {customer!r}.", param="customer", code="resource_missing")
        try:
            made = invoice.fresh(form)
        except ValueError as error:
            return faults.error(400, f"{error} must be an integer.", param=str(error), code="parameter_invalid_integer")
        if "amount" in form:
            wrong = _amount_problem(form)
            if wrong is not None:
                return wrong
            made = _of_amount(made, int(form["amount"]))
        fault = self._fault(customer)
        return faults.created(made) if fault is None else self._fail(fault, made, key)


def _amount_problem(form: Mapping[str, str]) -> Answer | None:
    if not _WHOLE.fullmatch(form["amount"]):
        return faults.error(400, "amount must be an integer.", param="amount", code="parameter_invalid_integer")
    if "currency" not in form:
        return faults.error(400, "A currency is required.", param="currency", code="parameter_missing")
    return None


def _of_amount(made: bytes, amount: int) -> bytes:
    """The invoice with one line of this sum."""
    found = json.loads(made)
    [line] = found["lines"]["data"]
    line |= {"amount": amount, "amount_excluding_tax": amount, "unit_amount_excluding_tax": str(amount)}
    line["price"] |= {"unit_amount": amount, "unit_amount_decimal": str(amount)}
    sums = ("amount_due", "amount_remaining", "subtotal", "subtotal_excluding_tax", "total", "total_excluding_tax")
    return invoice.encode(found | dict.fromkeys(sums, amount))


@functools.lru_cache(maxsize=128)
def _account(query: str) -> tuple[str, ...]:
    values = dict(urllib.parse.parse_qsl(query))
    return values.get("name", ""), values.get("connection_name", "")


if __name__ == "__main__":
    # The calls cannot be read from another process; keeping none keeps the memory flat.
    run("sandbox.appgregator", lambda port: Appgregator(port=port, keep=0))
