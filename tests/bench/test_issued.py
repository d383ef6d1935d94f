"""What a whole invoice costs us, as against a single call: the CPU of the process that serves both."""

from __future__ import annotations

import statistics
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from bench.servers import family
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import Stripe
from tests import test_issue as whole
from tests.conftest import FORM, KEY
from tests.conftest import TARGET as SINGLE
from tests.crash.forms import form

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.conftest import Server

GRANT: Final = """\
      - connection: billing
        operation: invoices.create
        response: [id, number, status, total, hosted_invoice_url]
        parameters: {customer: {prefix: cus_}, currency: , description: }
"""
CALL: Final = {"customer": "cus_1", "currency": "usd", "description": "Workshop"}
#: Calls of one kind, and then of the other, so that what else the machine does befalls both.
BATCH: Final = 50
#: What is aimed at, and what no noise of a busy machine reaches: one more request to the upstream would.
AIM, MOST = 2.5, 3.5


def cpu(pid: int) -> float:
    """Return the milliseconds that a process and all below it have run, which is what getrusage adds up."""
    tasks = (task for each in family(pid) for task in Path(f"/proc/{each}/task").glob("*/schedstat"))
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e6


@pytest.mark.figures
def test_whole_invoice_costs_little_more_than_a_single_call(
    server: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    orders = count()
    with Stripe(keys=[UPSTREAM_KEY], keep=1000) as stripe:
        running = server(whole.written(stripe, tmp_path) + GRANT)

        def batch(target: str, call: Mapping[str, str]) -> float:
            body = "&".join(f"{name}={value}" for name, value in call.items())
            connection = HTTPConnection("127.0.0.1", running.port)
            began = cpu(running.process.pid)
            for _ in range(BATCH):
                sent = {"Content-Type": FORM, "x-api-key": KEY, "Idempotency-Key": f"order-{next(orders)}"}
                connection.request("POST", target, body, sent)
                response = connection.getresponse()
                assert response.status == 200, response.read()
                response.read()
            connection.close()
            return (cpu(running.process.pid) - began) / BATCH

        batch(SINGLE, CALL)
        batch(whole.TARGET, whole.CALL)
        rounds = [(batch(SINGLE, CALL), batch(whole.TARGET, whole.CALL)) for _ in range(form(15, long=60))]
    single, issued = (statistics.median(costs) for costs in zip(*rounds, strict=True))
    ratio = statistics.median(two / one for one, two in rounds)
    with capsys.disabled():
        print(
            f"\na whole invoice of three lines costs {issued:.2f} ms of CPU, a single call {single:.2f} ms: "
            f"{ratio:.2f} times (median of {len(rounds)} rounds of {BATCH} calls each; the aim is {AIM})"
        )
    assert ratio <= MOST
