"""A flood of unauthenticated calls costs the other callers nothing, and the record a few lines."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from console import audit
from gateway.chain import FLOOD
from tests.conftest import CUSTOMER, FORM, TARGET, policy
from tests.waiting import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from tests.conftest import Server

CALLS = 3200
CALLERS = 8
#: What each call of the flood sends, and is refused for.
KEYS = {"csk_nobody": "credential-unknown", "": "credential-missing"}


def flood(port: int, over: threading.Event, seen: list[tuple[int, str]]) -> None:
    """Make calls on one kept connection until it is over; note the status of each, and what it was refused for."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        for key, reason in itertools.cycle(KEYS.items()):
            if over.is_set():
                return
            connection.request("POST", TARGET, CUSTOMER.encode(), {"Content-Type": FORM, "x-api-key": key})
            response = connection.getresponse()
            response.read()
            seen.append((response.status, reason))


def test_flood_of_unauthenticated_calls_drowns_neither_the_record_nor_another_caller(
    server: Callable[..., Server], upstream: Appgregator
) -> None:
    running = server(policy(upstream.origin, limits="40/hour"))
    assert running.call()[0] == 200  # whatever is loaded with the first call is loaded
    began = time.monotonic()
    over, seen = threading.Event(), list[tuple[int, str]]()
    overtaken, answers = [], []
    with ThreadPoolExecutor(CALLERS) as callers:
        floods = [callers.submit(flood, running.port, over, seen) for _ in range(CALLERS)]
        try:
            until(lambda: len(seen) > 10 * CALLERS)
            for _ in range(20):
                before = len(seen)
                answers.append(running.call())
                overtaken.append(len(seen) - before)
            until(lambda: len(seen) > CALLS)
        finally:
            over.set()
        for one in floods:
            one.result()
    seconds = time.monotonic() - began
    assert {status for status, _ in seen} == {401}
    assert [answer[0] for answer in answers] == [200] * 20
    assert max(overtaken) < CALLS // 2
    assert "r=19;" in answers[-1][1]["ratelimit"]
    assert upstream.invoices == 21

    running.stop()
    entries = running.record.entries()
    written = Counter(entry["reason"] for entry in entries if entry["kind"] == "refusal")
    counted: Counter[str] = Counter()
    for entry in entries:
        if entry["kind"] == "counted":
            counted[entry["reason"]] += entry["count"]
    assert written + counted == Counter(reason for _, reason in seen)
    assert max(written.values()) <= FLOOD * (int(seconds) + 2)
    assert len(entries) - 42 <= len(KEYS) * (FLOOD + 1) * (int(seconds) + 2)
    with running.record.path.open() as lines:
        report = audit.verify(lines)
    assert (report.faults, report.doubts) == ([], [])


def test_flooded_caller_gets_an_audit_id_with_every_answer(server: Callable[..., Server]) -> None:
    running = server()
    ids = {running.call(key="nobody")[1]["countersign-audit-id"] for _ in range(3 * FLOOD)}
    assert len(ids) == 3 * FLOOD
    assert len({audit_id.partition("-")[0] for audit_id in ids}) == 1
