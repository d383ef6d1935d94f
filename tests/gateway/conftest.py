"""What the gateway's tests share: a clock that only moves when told to, grants, and a record in memory."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pytest
from msgspec.structs import replace

from console.audit import verify
from gateway.answering import answer_to
from gateway.chain import Audit
from gateway.record import Record
from gateway.stores import Settled
from gateway.stores.memory import Memory
from policies import document
from policies.access import decide
from policies.concealed import Concealed
from policies.foresight import foresee
from policies.model import Admission, Budget, Call, Limit, Outcome, Proof
from policies.outcomes import Reply
from tests.conftest import CUSTOMER, KEY, TARGET, Clock, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gateway.stores import Store
    from policies.model import Grant

T = TypeVar("T")

#: A signing secret of every test's webhook, as Standard Webhooks writes them.
SIGNING = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


class Webhook(NamedTuple):
    """The headers of a signed webhook."""

    id: str
    timestamp: str
    signature: str

    @property
    def headers(self) -> dict[str, str]:
        return {f"webhook-{name}": value for name, value in self._asdict().items()}


def call(  # every argument is a header or a part of the call
    body: str | bytes = CUSTOMER,
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
    credentials = {"x-api-key": key, "Authorization": authorization, "X-Serverless-Authorization": serverless}
    credentials |= webhook.headers if webhook is not None else {}
    return Call(
        operation="invoices.create" if invoice is None else "invoices.retrieve",
        path_parameters={} if invoice is None else {"invoice": invoice},
        name="ft-4",
        connection_name=account,
        credentials={name: Concealed(header) for name, header in credentials.items() if header is not None},
        media="form",
        body=body.encode() if isinstance(body, str) else body,
        idempotency_key=idempotency_key,
        validate_only=validate_only,
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


def admit(store: Store, grant: Grant) -> Admission:
    """Admit a call to where its connection leads."""
    return store.admit(grant, grant.entitlement.connection.place)


def foreseen(grant: Grant) -> dict[str, Any]:
    """Return what is said of a call with a fresh key that would be sent."""
    return foresee(grant, Memory(Clock()).peek(grant, grant.entitlement.connection.place), (), 0.0)[1]


def budgeted(grant: Grant, *budgets: Budget, reserve: int = 1) -> Grant:
    """Give a call's caller budgets, in each of which it reserves so much."""
    return replace(grant, caller=replace(grant.caller, budgets=budgets), budgets=budgets, reserve=reserve)


def budget(amount: int, seconds: int = 86_400, currency: str = "usd", each: str | None = None) -> Budget:
    return Budget(currency, Limit(amount, seconds, f"{amount} {currency}"), each)


def in_doubt(admission: Admission) -> bool:
    return admission.entry is not None and admission.entry.doubt


def at_once(threads: int, work: Callable[[int], T]) -> list[T]:
    """Do ``work`` in so many threads that all begin together; each is given its number."""
    start = threading.Barrier(threads)

    def run(number: int) -> T:
        start.wait(timeout=60)
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


class Held:
    """A regular file that keeps whoever opens it waiting in the kernel, as one on a dead mount does.

    It is a write lease (fcntl(2), F_SETLEASE) that this process does not give up when it is asked to.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # how it is asked
        fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def let_go(self) -> None:
        """Answer those who wait."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@pytest.fixture
def hold() -> Iterator[Callable[[Path], Held]]:
    """Hold a file: ``hold(path)``."""
    held: list[Held] = []

    def one(path: Path) -> Held:
        held.append(Held(path))
        return held[-1]

    yield one
    for each in held:
        each.let_go()
    for thread in threading.enumerate():  # those that waited are none of the next test's
        if thread.name == "file":
            thread.join(60)


# ---------------------------------------------------------------- the record


ADMISSION = Admission((), "0123456789abcdef", 0)


SUCCEEDED = Reply(Outcome.SUCCEEDED, answer={"id": "in_1"}, created="in_1", upstream_status=200)


class Lines:
    """A sink in memory, which can be told to fail."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failing = False
        self.tries = 0

    def write(self, line: bytes) -> None:
        self.tries += 1
        if self.failing:
            raise OSError("no space left")
        self.lines.append(line.decode("ascii"))

    def ours(self, *kinds: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = [json.loads(line)["countersign"] for line in self.lines]
        return [entry for entry in entries if not kinds or entry["kind"] in kinds]


@pytest.fixture
def sink() -> Lines:
    return Lines()


@pytest.fixture
def audit(sink: Lines, clock: Clock) -> Audit:
    return Audit(sink, policy="p" * 64, clock=clock, monotonic=clock)


def sent(audit: Audit, grant: Grant | None = None, reply: Reply = SUCCEEDED, **environ: str) -> Record:
    """Record a call that is sent."""
    grant = grant or granted()
    with Record(audit, {"RAW_URI": TARGET, **environ}) as record:
        record.caller, record.grant, record.admission = grant.caller, grant, ADMISSION
        record.intent(ADMISSION)
        record.answer = answer_to(reply, grant, record.audit_id)
        record.close(reply, settled=Settled.WRITTEN)
    return record


def refused(audit: Audit, refusal: Exception, **environ: str) -> Record:
    with Record(audit, {"RAW_URI": TARGET, **environ}) as record:
        raise refusal
    return record


def found(lines: list[str], *anchors: str) -> bool:
    report = verify(lines, anchors)
    return bool(report.faults or report.doubts)
