"""What the gateway's tests share: a clock that only moves when told to, and grants made the way calls make them."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from policies import document
from policies.access import decide
from policies.concealed import Concealed
from policies.model import Call, Proof, Webhook
from tests.conftest import CUSTOMER, KEY, policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from policies.model import Grant

T = TypeVar("T")

#: A signing secret of every test's webhook, as Standard Webhooks writes them.
SIGNING = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


class Clock:
    """Seconds, moved by hand."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


def concealed(header: str | None) -> Concealed[str] | None:
    return None if header is None else Concealed(header)


def call(  # every argument is a header or a part of the call
    body: str = CUSTOMER,
    *,
    key: str | None = KEY,
    authorization: str | None = None,
    idempotency_key: str | None = None,
    account: str = "stripe-1",
    validate_only: bool = False,
    serverless: str | None = None,
    webhook: Webhook | None = None,
    invoice: str | None = None,
) -> Call:
    """Make a call as ``read`` does: for an invoice, or to look at ``invoice``."""
    return Call(
        operation="invoices.create" if invoice is None else "invoices.retrieve",
        path_parameters={} if invoice is None else {"invoice": invoice},
        name="ft-4",
        connection_name=account,
        api_key=concealed(key),
        authorization=concealed(authorization),
        media="form",
        body=body.encode(),
        idempotency_key=idempotency_key,
        validate_only=validate_only,
        serverless_authorization=concealed(serverless),
        webhook=webhook,
    )


def granted(
    text: str | None = None,
    body: str = CUSTOMER,
    *,
    key: str = KEY,
    account: str = "stripe-1",
    idempotency_key: str | None = None,
    invoice: str | None = None,
) -> Grant:
    """Have a policy document grant a call."""
    policies = document.read(text or policy("http://127.0.0.1:9"), "policy.yaml")
    asked = call(body, key=key, account=account, idempotency_key=idempotency_key, invoice=invoice)
    return decide(policies, policies.callers[Proof("key", hashlib.sha256(key.encode()).digest())], asked)


def at_once(threads: int, work: Callable[[int], T]) -> list[T]:
    """Do ``work`` in so many threads that all begin together; each is given its number."""
    start = threading.Barrier(threads)

    def run(number: int) -> T:
        start.wait(timeout=10)
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))
