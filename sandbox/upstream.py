"""The base of both upstreams: a server that counts its calls, and fails on request.

GET  /_sandbox                                                {"calls", "invoices", "connections"}
"""

from __future__ import annotations

import argparse
import signal
import urllib.parse
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from sandbox import faults, invoice
from sandbox.server import Answer, Head, Headers, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["FORM", "NO_PATH", "STATUS", "Received", "Upstream", "form_of", "run"]

FORM: Final = "application/x-www-form-urlencoded"
NO_PATH: Final = faults.error(404, "There is nothing at this address.")
_FAULT: Final = "cus_fault_"
STATUS: Final = "/_sandbox"


@dataclass(frozen=True, slots=True)
class Received:
    """A create request that arrived in full."""

    path: str
    query: str  # as on the wire
    headers: Headers  # names and values as sent
    body: bytes
    created: bool
    connection: int  # counted from 1, never reset: equal numbers shared a connection


@dataclass(slots=True)
class _Tally:
    kept: deque[Received]
    calls: int = 0
    invoices: int = 0
    connections: int = 0
    redirected: int = 0


class Upstream(Server):
    """An upstream on 127.0.0.1. `keep` is how many of the newest calls are kept; the counts include all.

    `delay` is what the fault `slow` waits, in seconds.
    """

    faults: ClassVar[Mapping[str, faults.Fault]] = faults.FAULTS

    def __init__(self, keys: Iterable[str], port: int, keep: int) -> None:
        super().__init__(port)
        self.delay = 1.0
        self._keys = frozenset(keys)
        self._tally = _Tally(deque(maxlen=keep))
        self._failures: deque[str] = deque()

    @property
    def calls(self) -> tuple[Received, ...]:
        """The create requests that arrived in full, refused ones included."""
        return tuple(self._tally.kept)

    @property
    def invoices(self) -> int:
        """How many invoices were created."""
        return self._tally.invoices

    @property
    def connections(self) -> int:
        """How many TCP connections were accepted."""
        return self._tally.connections

    @property
    def redirected(self) -> int:
        """How many requests followed a redirect that should not have been followed."""
        return self._tally.redirected

    def accept(self, *keys: str) -> None:
        """Accept these keys and no others from the next call on."""
        self._keys = frozenset(keys)

    def fail_next(self, name: str, times: int = 1) -> None:
        """Answer the next calls that would get an invoice with this fault instead, `times` times."""
        if name not in self.faults:
            raise ValueError(f"there is no fault {name!r}")
        self._failures.extend([name] * times)

    def forget(self) -> None:
        """Clear calls, counts and the faults still to come."""
        self._failures.clear()
        # One assignment, so that a call that is just being counted goes to one tally as a whole.
        self._tally = _Tally(deque(maxlen=self._tally.kept.maxlen))

    def _creates(self, head: Head) -> bool:
        """Whether this is a request to create an invoice."""
        raise NotImplementedError

    def _refusal(self, head: Head) -> Answer | None:
        """The refusal of a create request by its head alone, if it gets one."""
        raise NotImplementedError

    def _decide(self, head: Head, body: bytes) -> Answer:
        """Answer a request to one of the upstream's own paths, or to an unknown one."""
        raise NotImplementedError

    def _counts(self) -> dict[str, object]:
        """The content of the status page."""
        tally = self._tally
        return {"calls": tally.calls, "invoices": self.invoices, "connections": tally.connections}

    def _connected(self) -> None:
        self._tally.connections += 1

    def _refuse(self, status: int, sentence: str) -> Answer:
        return faults.error(status, sentence, "Connection: close")

    def _answer(self, connection: int, head: Head, body: bytes) -> Answer:
        tally = self._tally
        if head.path == faults.REDIRECTED:
            tally.redirected += 1
            return Answer(200, invoice.fresh({}))
        if head.path == STATUS and head.method == "GET":
            return Answer(200, invoice.encode(self._counts()))
        answer = self._decide(head, body)
        if self._creates(head):
            tally.calls += 1
            tally.invoices += answer.creates
            tally.kept.append(
                Received(head.path, head.query, head.headers, body, answer.creates, connection),
            )
        return answer

    def _cuts_off(self, head: Head) -> bool:
        due = bool(self._failures) and self._failures[0] == "close_before"
        if due and self._creates(head) and self._refusal(head) is None:
            self._failures.popleft()
            return True
        return False

    def _fault(self, customer: str) -> str | None:
        """The fault that is due for this customer; it is due only once."""
        if self._failures:
            return self._failures.popleft()
        if customer.startswith(f"{_FAULT}at_"):  # of a later step
            return None
        return customer.removeprefix(_FAULT) if customer.startswith(_FAULT) else None

    def _fail(self, fault: str, made: bytes, key: str) -> Answer:
        """Answer with a fault instead of this invoice."""
        if fault not in self.faults:
            return faults.error(400, f"There is no fault {fault!r}.", param="customer")
        return self.faults[fault](faults.Ask(made, key, self.origin, self.delay))


def form_of(body: bytes) -> dict[str, str]:
    """The parameters of a form; of a repeated name the last one counts."""
    return dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))


def run(program: str, upstream: Callable[[int], Upstream]) -> None:
    """Run an upstream, made from its port, as a process of its own until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description="The sandbox's upstream.")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--delay", type=float, default=1.0, help="seconds that cus_fault_slow waits")
    options = parser.parse_args()
    # Before any thread starts: each inherits the mask, so the signal waits for sigwait below.
    signals = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    made = upstream(options.port)
    made.delay = options.delay
    with made:
        print(f"listening on {made.origin}", flush=True)
        signal.sigwait(signals)
