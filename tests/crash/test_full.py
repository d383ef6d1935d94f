"""A ledger in memory that one caller fills, with the longest answers that are kept, as fast as it can."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from policies.idempotency import MAX_KEPT
from sandbox import invoice
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from tests.conftest import FORM, KEY, OTHER_KEY, TARGET, policy
from tests.crash.forms import form

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandbox.server import Answer
    from tests.conftest import Server

pytestmark = pytest.mark.figures

CALLS: Final = form(5_000, long=100_000)
CALLERS: Final = 8
#: One call in so many is followed by one of another caller.
OTHERS: Final = 200
#: Bytes of all processes of an instance. The default instance on the platform has 256 MB, ours are given 512.
ROOM: Final = 300 * 2**20
#: A little shorter than what is kept whole; and now and then one as long as an answer may be at all.
LONG, LONGEST, RARELY = MAX_KEPT - 4096, 1000 * 1000, 50


class Verbose(Appgregator):
    """Answers at length."""

    def _create(self, form: Mapping[str, str], key: str) -> Answer:
        answer = super()._create(form, key)
        length = LONGEST if self.invoices % RARELY == RARELY - 1 else LONG
        return replace(answer, body=invoice.encode(json.loads(answer.body) | {"description": "x" * length}))


def resident(process: int) -> int:
    """Return how many bytes a process and those under it have in memory."""
    here = Path(f"/proc/{process}")
    (line,) = (line for line in (here / "status").read_text().splitlines() if line.startswith("VmRSS"))
    under = (here / "task" / str(process) / "children").read_text().split()
    return int(line.split()[1]) * 1024 + sum(resident(int(child)) for child in under)


def test_caller_who_fills_the_ledger_in_memory_harms_nobody_else(server: Callable[..., Server]) -> None:
    told, other, sizes = Counter[int](), Counter[str](), list[int]()
    with Verbose(keys=[UPSTREAM_KEY], accounts=None, keep=0) as upstream:
        instance = server(policy(upstream.origin))
        lock = threading.Lock()

        def call(connection: HTTPConnection, key: str, credential: str, target: str) -> tuple[int, bytes, bool]:
            headers = {"Content-Type": FORM, "x-api-key": credential, "Idempotency-Key": key}
            connection.request("POST", target, "customer=cus_1", headers)
            response = connection.getresponse()
            return response.status, response.read(), response.getheader("Retry-After") is not None

        def fill(worker: int) -> None:
            connection = HTTPConnection("127.0.0.1", instance.port, timeout=60)
            for number in range(worker, CALLS, CALLERS):
                status, body, waits = call(connection, f"order-{number}", KEY, TARGET)
                full = status == 503 and waits and b"So many idempotency keys" in body
                with lock:
                    told[status if status == 200 or full else -status] += 1
                if number % OTHERS == 0:
                    elsewhere = TARGET.replace("stripe-1", "stripe-2")
                    answers = [call(connection, f"own-{number}", OTHER_KEY, elsewhere) for _ in range(2)]
                    with lock:
                        other["well" if [a[0] for a in answers] == [200, 200] else str(answers)] += 1
                        other["two invoices"] += len({a[1] for a in answers}) - 1
                        sizes.append(resident(instance.process.pid))
            connection.close()

        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(fill, range(CALLERS)))
        most = max(*sizes, resident(instance.process.pid))
    figure = (
        f"{told.total()} calls of one caller with answers of {LONG // 1000} KB, the ledger in memory: {told[200]} "
        f"invoices, {told[503]} refused since its share is full; {most / 2**20:.0f} MB at most; another caller made "
        f"{other['well']} calls, none of them refused"
    )
    print(f"\n{figure}")
    assert most < ROOM, figure
    assert set(told) == {200, 503}, f"{figure}: {told}"
    assert other == Counter({"well": CALLS // OTHERS, "two invoices": 0}), f"{figure}: {other}"
