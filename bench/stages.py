"""The policy layer alone: one call through every stage without a socket, in microseconds."""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.answering import answer_to, respond
from gateway.reading import read
from gateway.record import Record
from gateway.secrets import placed
from gateway.settings import load
from gateway.upstreams.transport import Received
from policies.access import decide
from sandbox import invoice
from sandbox.__main__ import CALLER_KEY, POLICY, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.settings import Gate
    from policies.model import Grant

BODY = b"customer=cus_MQqeLuPp19Qbk8"
ROUNDS = 4000


class _Canned:
    """Replaces the transport, so that only our own code is measured."""

    def send(self, _outgoing: object, _key: object, _seconds: float) -> Received:
        return Received(200, ANSWER)


ANSWER = invoice.fresh({"customer": "cus_MQqeLuPp19Qbk8"})


def roomy(policy: str) -> str:
    """Return the sandbox's policy with limits that no benchmark reaches; all of them are still counted."""
    return (
        policy.replace("5000/second", "5000000/second")
        .replace("60000/minute", "6000000/minute")
        .replace("10000000/day", "900000000/day")
    )


def measure() -> dict[str, float]:
    """Return the median microseconds of each stage, and of ``all`` of them in one pass."""
    with tempfile.TemporaryDirectory() as folder:
        gate = a_gate(a_policy(Path(folder), POLICY.read_text("utf-8")))
        laps: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            one(gate, laps)
    return {name: statistics.median(times) * 1e6 for name, times in laps.items()}


def a_policy(folder: Path, policy: str) -> Path:
    """Write a policy document, with its key in a file beside it, and return its path."""
    key, document = folder / "key", folder / "policy.yaml"
    key.write_text("sandbox-upstream-key")
    document.write_text(roomy(policy).replace(f"{SECRET}/versions/latest", f"file:{key}"))
    return document


def compiled(document: Path) -> Path:
    """Compile a policy document beside it, as ``deploy/deploy`` does, and return the path."""
    form = document.with_suffix(".compiled")
    command = [sys.executable, "-m", "console", "check", str(document), "--compile", str(form)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return form


def a_gate(document: Path) -> Gate:
    """Return what a call passes through, with no socket anywhere."""
    gate = load({"POLICY": str(document), "AUDIT": "file:/dev/null"})
    gate.upstreams._transport = _Canned()  # type: ignore[assignment]  # noqa: SLF001
    return gate


def environ(key: str = CALLER_KEY) -> dict[str, Any]:
    """Return the WSGI environment of one call."""
    return {
        "REQUEST_METHOD": "POST",
        "RAW_URI": "/stripe/invoices/?name=ft-4&connection_name=stripe-1",
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
        "CONTENT_LENGTH": str(len(BODY)),
        "HTTP_X_API_KEY": key,
        "wsgi.input": io.BytesIO(BODY),
    }


def one(gate: Any, laps: dict[str, list[float]], key: str = CALLER_KEY) -> None:
    """Make one call, as ``main.py`` does, and note the seconds of each stage. Raises RuntimeError for any refusal."""
    asked = environ(key)
    lap = _Laps(laps)
    with Record(gate.audit, asked) as record:
        call = record.call = lap("read", lambda: read(asked))
        policies = record.policies = lap("policies", lambda: gate.policies.current(record.deadline))
        identify = gate.identity.identify
        caller = record.caller = lap("identify", lambda: identify(policies, call, record.now, record.deadline))
        grant: Grant = lap("decide", lambda: decide(policies, caller, call))
        record.grant = grant
        secret = record.secret = lap("secret", lambda: gate.secrets.access(grant, record.deadline))
        admission = record.admission = lap("admit", lambda: gate.store.admit(grant, placed(grant.entitlement, secret)))
        lap("intent", lambda: record.intent(admission))
        send = gate.upstreams.send
        reply = lap("judge and trim", lambda: send(grant, admission, secret, record.deadline))
        answer = record.answer = lap("answer", lambda: answer_to(reply, grant, record.audit_id))
        settled = lap("settle", lambda: gate.store.settle(grant, admission, reply, answer))
        lap("outcome", lambda: record.close(reply, settled=settled))
    response = lap("respond", lambda: respond(record))
    if response.status != 200:
        raise RuntimeError(f"refused: {response.body!r}")
    laps.setdefault("all", []).append(lap.total)


class _Laps:
    def __init__(self, laps: dict[str, list[float]]) -> None:
        self._laps, self.total = laps, 0.0

    def __call__(self, name: str, stage: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = stage()
        took = time.perf_counter() - began
        self._laps.setdefault(name, []).append(took)
        self.total += took
        return result
