"""A flood of unauthenticated calls costs the other callers nothing, and the record a few lines."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from console import audit
from gateway.chain import FLOOD
from tests.conftest import CUSTOMER, FORM, TARGET, policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from tests.conftest import Server

CALLS = 3200
CALLERS = 8
#: What each call of the flood sends, and is refused for.
KEYS = {"csk_nobody": "credential-unknown", "": "credential-missing"}


def flood(port: int, calls: int) -> Counter[int]:
    """Make many calls on one kept connection; return how often each status came."""
    statuses: Counter[int] = Counter()
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    for number in range(calls):
        key = tuple(KEYS)[number % len(KEYS)]
        connection.request("POST", TARGET, CUSTOMER.encode(), {"Content-Type": FORM, "x-api-key": key})
        response = connection.getresponse()
        response.read()
        statuses[response.status] += 1
    connection.close()
    return statuses


def test_flood_of_unauthenticated_calls_drowns_neither_the_record_nor_another_caller(
    server: Callable[..., Server], upstream: Appgregator
) -> None:
    running = server(policy(upstream.origin, limits="40/hour"))
    assert running.call()[0] == 200  # whatever is loaded with the first call is loaded
    began = time.monotonic()
    waits: list[float] = []
    answers = []
    with ThreadPoolExecutor(CALLERS) as callers:
        floods = [callers.submit(flood, running.port, CALLS // CALLERS) for _ in range(CALLERS)]
        time.sleep(0.3)
        for _ in range(20):
            asked = time.monotonic()
            answers.append(running.call())
            waits.append(time.monotonic() - asked)
        during = not all(one.done() for one in floods)
        statuses = sum((one.result() for one in floods), Counter[int]())
    seconds = time.monotonic() - began
    assert statuses == {401: CALLS}
    assert during  # else nothing of this was a flood
    assert [answer[0] for answer in answers] == [200] * 20
    assert max(waits) < 3
    assert "r=19;" in answers[-1][1]["ratelimit"]
    assert upstream.invoices == 21

    running.stop()
    entries = running.record.entries()
    written = Counter(entry["reason"] for entry in entries if entry["kind"] == "refusal")
    counted: Counter[str] = Counter()
    for entry in entries:
        if entry["kind"] == "counted":
            counted[entry["reason"]] += entry["count"]
    assert written + counted == Counter(dict.fromkeys(KEYS.values(), CALLS // len(KEYS)))
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
