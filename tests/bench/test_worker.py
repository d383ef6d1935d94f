"""What a call costs with our worker, and with gunicorn's own beside it: ratios within one run, in pairs."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench import load
from bench.servers import family
from sandbox.__main__ import ROOT
from tests.bench.test_issued import cpu
from tests.conftest import CUSTOMER, FORM, KEY, MAIN, TARGET
from tests.crash.forms import form
from tests.gateway.test_stock_worker import STOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

CALL = (
    f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nx-api-key: {KEY}\r\nContent-Type: {FORM}\r\n"
    f"Content-Length: {len(CUSTOMER)}\r\n\r\n{CUSTOMER}"
).encode()
#: One busy client waits for each answer; eight are what the benchmark has.
CONNECTIONS = (1, 8)
SECONDS = 0.5
#: What no noise of a busy machine reaches; a round through the poller for each call would.
MOST = 1.1
#: How often the threads of our worker wait in a call, for the GIL too: 14 to 16 times with eight connections. Each
#: system call and each callback from C may be one more, which costs more than its work; libcurl's progress made it 33.
MOST_WAITS = 20


def waits(pid: int) -> int:
    """Return how often the threads of a process and of all below it have given their core away."""
    tasks = (task for each in family(pid) for task in Path(f"/proc/{each}/task").glob("*/status"))
    lines = (line for task in tasks for line in task.read_text().splitlines())
    return sum(int(line.rpartition("\t")[2]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def pairs(one: Server, other: Server, connections: int, rounds: int) -> tuple[float, float, float]:
    """Return how many calls a second, and how much CPU a call, ``one`` has for each of the other's; and its waits."""
    rates, costs, waited = [], [], []
    for number in range(rounds):
        seen = {}
        for running in (one, other) if number % 2 else (other, one):
            before, idle = cpu(running.process.pid), waits(running.process.pid)
            took = load.run(running.port, CALL, connections=connections, seconds=SECONDS, warm=0)
            seen[running.port] = len(took), cpu(running.process.pid) - before, waits(running.process.pid) - idle
        (calls, spent, times), (others, theirs, _) = seen[one.port], seen[other.port]
        if calls and others:  # a machine that stands still says nothing
            rates.append(calls / others)
            costs.append(spent / calls / (theirs / others))
            waited.append(times / calls)
    return statistics.median(rates), statistics.median(costs), statistics.median(waited)


@pytest.mark.figures
@pytest.mark.parametrize("connections", CONNECTIONS)
def test_our_worker_costs_no_more_than_the_stock_one(
    server: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str], connections: int
) -> None:
    source = tmp_path / "stock.py"
    source.write_text(STOCK)
    ours, stock = server(source=MAIN), server(source=source, PYTHONPATH=str(ROOT))
    for running in (ours, stock):  # whatever is loaded with the first calls
        load.run(running.port, CALL, connections=connections, seconds=2 * SECONDS, warm=0)
    rounds = form(11, long=41)
    rate, cost, waited = pairs(ours, stock, connections, rounds)
    with capsys.disabled():
        print(
            f"\n{connections} connections: our worker serves {rate:.2f} times the calls of gunicorn's own, "
            f"at {cost:.2f} times its CPU a call, and waits {waited:.1f} times in each (medians of {rounds} pairs of "
            f"{SECONDS} s)"
        )
    assert cost <= MOST
    assert waited <= MOST_WAITS
