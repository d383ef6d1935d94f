"""Fifty calls under way at SIGTERM, and thirty that wait: each is answered and on record, and `stop` is last."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import pytest

from sandbox import faults
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from tests.conftest import MAIN, policy
from tests.crash.forms import form

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.server import Answer
    from tests.conftest import Server

pytestmark = pytest.mark.figures

ROUNDS: Final = form(1, long=5)
UNDER_WAY, WAITING = 50, 30
#: Of an upstream, in turn.
SECONDS: Final = (2.0, 8.0, 20.0)
#: The platform kills after ten.
GONE_SECONDS: Final = 9.5


class Slow(Appgregator):
    """Answers each call after another time."""

    def __init__(self) -> None:
        super().__init__(keys=[UPSTREAM_KEY])
        self._delays = itertools.cycle(SECONDS)

    def _fail(self, fault: str, made: bytes, key: str) -> Answer:
        return self.faults[fault](faults.Ask(made, key, self.origin, next(self._delays)))


def test_every_call_under_way_at_sigterm_is_answered_and_on_record(
    server: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    answers: Counter[str] = Counter()
    longest = gone = 0.0
    for _ in range(ROUNDS):
        with Slow() as upstream, ThreadPoolExecutor(UNDER_WAY + WAITING) as callers:
            running = server(policy(upstream.origin), source=MAIN, THREADS=str(UNDER_WAY))
            asked = [callers.submit(timed, running) for _ in range(UNDER_WAY + WAITING)]
            deadline = time.monotonic() + 60
            while len(upstream.calls) < UNDER_WAY and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(upstream.calls) >= UNDER_WAY
            began = time.monotonic()
            running.process.terminate()
            assert running.process.wait(timeout=60) == 0
            took = time.monotonic() - began
            assert took < GONE_SECONDS
            told = [one.result() for one in asked]
        answers.update(what for what, _ in told)
        longest, gone = max(longest, *(at - began for _, at in told)), max(gone, took)
        kinds = Counter(line["countersign"]["kind"] for line in running.record.lines())
        assert kinds["intent"] == kinds["outcome"] == len(upstream.calls)
        assert kinds["intent"] + kinds["refusal"] == len(told)
        assert kinds["stop"] == 1
        assert running.record.lines()[-1]["countersign"]["kind"] == "stop"
        reasons = {what for what, _ in told}
        assert reasons <= {"200", "424 outcome-unknown", "503 waited-too-long"}
        assert {"200", "424 outcome-unknown"} <= reasons
    with capsys.disabled():
        said = ", ".join(f"{count} x {what}" for what, count in sorted(answers.items()))
        print(
            f"\n{ROUNDS} x {UNDER_WAY} calls under way at SIGTERM on upstreams of {SECONDS} s, {WAITING} more waiting: "
            f"{said}; the last answer after {longest:.1f} s, the process gone after {gone:.1f} s"
        )


def timed(running: Server) -> tuple[str, float]:
    """Make a call; return its answer in short, and when it came."""
    status, _, body = running.call(body=b"customer=cus_fault_slow")
    reason = "" if status == 200 else f" {json.loads(body)['reason']}"
    return f"{status}{reason}", time.monotonic()
