"""Twenty budgets under eight processes that are killed while they hold money. What they wrote down is summed up."""

from __future__ import annotations

import bisect
import json
import math
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.stores.memory import Memory
from policies import quota
from tests.crash.forms import SEED, form
from tests.crash.spending import BUDGETS, KILLED, PROCESSES, SECONDS, Spender

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.figures

ASKED, OF_FIRESTORE = form(8_000, long=100_000), form(240, long=10_000)
#: Minor units of each budget. An emulator is slow, and would never spend as much.
LIMIT, LIMIT_OF_FIRESTORE = 2_000, 400
ROOT = Path(__file__).parents[2]


@dataclass
class Call:
    """One admission and what came of it. Times are in unix seconds."""

    budget: int
    amount: int
    asked: float
    came: str = "killed"
    heard: float = 0.0
    booked: float = 0.0
    spent: int = 0
    at: float = 0.0
    settled: float = math.inf

    @property
    def lasted(self) -> float:
        """How long it held what it reserved, if it was not killed: then a window."""
        return self.settled - self.asked if self.settled != math.inf else 0.0


def read(lines: Iterable[str]) -> list[Call]:
    """Read what was written down. A key that came back is one more call, and what it held ends then."""
    calls: list[Call] = []
    last: dict[str, Call] = {}
    for line in lines:
        when, what, name, *said = json.loads(line)
        match what:
            case "asks":
                if name in last:
                    last[name].settled = when
                last[name] = Call(said[0], said[1], when)
                calls.append(last[name])
            case "admitted" | "refused" | "busy":
                last[name].came, last[name].heard = what, when
                last[name].booked = said[0] if said else when
            case "spent":
                last[name].spent, last[name].at = said[0], when
            case "settled":
                last[name].settled = when
    return calls


def most_in_any_window(calls: list[Call]) -> int:
    """The most that was spent in any so many seconds.

    What a killed call spent counts from when it was booked. A call that takes longer than a window, as on a machine
    that stands still, is none that a budget holds here: what it reserved has left the window before it spends.
    """
    spent = sorted(
        (call.booked if call.settled == math.inf else call.at, call.spent)
        for call in calls
        if call.spent and call.lasted < SECONDS
    )
    times, sums = [at for at, _ in spent], [0, *accumulate(sum_ for _, sum_ in spent)]
    return max(
        (sums[bisect.bisect_left(times, at + SECONDS)] - sums[place] for place, at in enumerate(times)), default=0
    )


def wrongly_refused(calls: list[Call], limit: int) -> int:
    """How many of the calls of one budget were refused although they would have fitted."""
    calls = sorted(calls, key=lambda call: call.asked)
    asked, longest = [call.asked for call in calls], max(call.lasted for call in calls)
    return sum(
        would_have_fitted(call, calls[bisect.bisect_left(asked, call.asked - SECONDS - longest) :], limit)
        for call in calls
        if call.came == "refused"
    )


def would_have_fitted(refused: Call, calls: list[Call], limit: int) -> bool:
    """Whether all that may have counted while a call was refused left room for it.

    That is what was spent in the window before, and what calls under way, or killed in it, had reserved.
    """
    counted = 0
    for call in calls:
        if call.asked > refused.heard:
            break
        if call is refused or call.came in {"refused", "busy"}:
            continue
        if call.settled > refused.asked:  # it holds what it reserved, if not for longer than a window
            counted += call.amount if call.heard == 0.0 or call.heard > refused.asked - SECONDS else 0
        elif call.settled > refused.asked - SECONDS:
            counted += call.spent
    return counted + refused.amount <= limit


def figure_of(lines: Iterable[str], where: str, limit: int = LIMIT) -> str:
    by_budget: defaultdict[int, list[Call]] = defaultdict(list)
    for call in read(lines):
        by_budget[call.budget].append(call)
    every = [call for calls in by_budget.values() for call in calls]
    came = Counter(call.came for call in every)
    killed = sum(call.came == "admitted" and call.settled == math.inf for call in every)
    most = max(map(most_in_any_window, by_budget.values()))
    wrong = sum(wrongly_refused(calls, limit) for calls in by_budget.values())
    figure = (
        f"{len(every)} admissions over {BUDGETS} budgets in {where}: {came['admitted']} admitted, {came['refused']} "
        f"refused, {wrong} of them ({wrong / len(every):.2%} of all) although they would have fitted, {came['busy']} "
        f"met contention; {killed} killed between reserve and settle; at most {most} of {limit} minor units spent in "
        f"any {SECONDS} s"
    )
    print(f"\n{figure}")
    assert len(by_budget) == BUDGETS, figure
    assert most <= limit, figure
    assert wrong <= len(every) / 100, figure
    assert came["refused"] > len(every) / 50, f"{figure}: too few to show anything"
    return figure


def spending(address: str, count: int, folder: Path, limit: int = LIMIT) -> list[str]:
    command = [sys.executable, "-m", "tests.crash.spending", address, str(count), f"{SEED}", str(folder), f"{limit}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=3000)
    return [line for worker in range(PROCESSES) for line in (folder / f"{worker}").read_text("utf-8").splitlines()]


def test_budgets_in_memory_under_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process: what is killed there is a call that nobody settles."""
    monkeypatch.setattr(quota, "LEASE", 0)  # as in ``spending``
    store, said, lock = Memory(time.time), list[str](), threading.Lock()

    def say(*words: object) -> None:
        with lock:
            said.append(json.dumps([time.time(), *words]))

    def work(worker: int) -> None:
        spender = Spender(store, say, f"{SEED}-{worker}", lambda: None, limit=LIMIT)
        for _ in range(ASKED // PROCESSES):
            spender.once()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figure_of(said, f"memory under {PROCESSES} threads")


@pytest.mark.stores
def test_budgets_in_redis_under_processes_that_are_killed(redis_url: str, tmp_path: Path) -> None:
    figure = figure_of(spending(redis_url, ASKED, tmp_path), f"Redis under {PROCESSES} processes")
    assert ASKED < 2 * KILLED or " 0 killed" not in figure, figure


@pytest.mark.stores
def test_budgets_in_firestore_under_processes_that_are_killed(firestore_url: str, tmp_path: Path) -> None:
    """On Google's emulator. Contention is no refusal by a budget, and never spends."""
    lines = spending(firestore_url, OF_FIRESTORE, tmp_path, LIMIT_OF_FIRESTORE)
    figure_of(lines, f"Firestore's emulator under {PROCESSES} processes", LIMIT_OF_FIRESTORE)
