"""Eight processes that spend from twenty budgets, and are killed at it. ``test_budgets`` runs it.

Each process writes down what it does as it does it, one line for each event, so that a kill loses none. What is spent
is spent when it is written down, between the admission and the settlement.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from gateway.stores import shared
from policies import idempotency, quota
from policies.model import Answer, Budget, Limit, Outcome
from policies.outcomes import Reply
from policies.refusals import BudgetSpent, OutcomeUnknown, StoreUnavailable, UpstreamRejected
from tests.conftest import policy
from tests.crash.forms import form
from tests.gateway.conftest import admit, granted

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.stores import Store
    from policies.model import Admission, Grant

PROCESSES: Final = 8
BUDGETS: Final = 20
#: A budget's time: the store's own clock counts, and many of these go by.
SECONDS = 1
#: One call in so many is killed between the admission and its settlement; its money stays for a window. In the short
#: form there are some 1,200 that may be.
KILLED: Final = form(80, long=400)
UNREAD: Final = Reply(Outcome.UNKNOWN, refusal=OutcomeUnknown())
FREED: Final = Reply(Outcome.FREED, refusal=UpstreamRejected(400, "No.", code=None, parameter=None))

ANSWER: Final = Answer(200, b"{}")


def grants(limit: int) -> list[Grant]:
    """Return a call at Stripe of each of twenty callers, each with a budget of ``limit`` minor units."""
    made = granted(policy("http://127.0.0.1:9", upstream="stripe"), idempotency_key="k")
    budgets = (Budget("usd", Limit(limit, SECONDS, "")),)
    callers = [replace(made.caller, id=f"c{one}", first=f"c{one}", budgets=budgets) for one in range(BUDGETS)]
    return [replace(made, caller=caller, budgets=budgets) for caller in callers]


class Spender:
    """Spends, and says so. ``die`` ends a call between its admission and its settlement."""

    def __init__(
        self, store: Store, say: Callable[..., None], seed: str, die: Callable[[], None], *, limit: int
    ) -> None:
        self._store, self._say, self._die = store, say, die
        self._lots, self._grants, self._seed, self._number = random.Random(seed), grants(limit), seed, 0

    def once(self) -> None:
        """Make one admission, or two of a key that comes back."""
        self._number += 1
        budget, most = self._lots.randrange(BUDGETS), self._lots.choice([1, 7, 50, 199, 400])
        grant = replace(self._grants[budget], ledger_key=f"{self._seed}-{self._number}", reserve=most)
        name = f"{self._seed}-{self._number}"
        admission = self._admitted(grant, budget, name)
        if admission is None:
            return
        lot = self._lots.random()
        if lot < 0.15:
            self._store.settle(grant, admission, UNREAD, ANSWER)
            admission = self._admitted(grant, budget, name)
            if admission is None:
                return
        if lot < 0.3:
            self._settle(grant, admission, name, FREED)
            return
        spent = self._lots.choice([most, most, self._lots.randint(0, most)])
        if self._lots.random() < 1 / KILLED:
            if self._lots.random() < 0.5:
                self._say("spent", name, spent)
            self._die()
            return
        self._say("spent", name, spent)
        self._settle(grant, admission, name, Reply(Outcome.SUCCEEDED, answer={}, spent=spent, spent_in="usd"))

    def _admitted(self, grant: Grant, budget: int, name: str) -> Admission | None:
        self._say("asks", name, budget, grant.reserve)
        try:
            admission = admit(self._store, grant)
        except BudgetSpent:
            self._say("refused", name)
            return None
        except StoreUnavailable:
            self._say("busy", name)
            return None
        self._say("admitted", name, admission.taken)
        return admission

    def _settle(self, grant: Grant, admission: Admission, name: str, reply: Reply) -> None:
        if self._store.settle(grant, admission, reply, ANSWER):
            self._say("settled", name, reply.spent or 0)


def _work(address: str, seed: str, count: int, file: Path, *, limit: int) -> None:
    store = shared(address)
    assert store is not None
    written = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(*said: object) -> None:
        os.write(written, (json.dumps([time.time(), *said]) + "\n").encode())

    spender = Spender(store, say, seed, lambda: os.kill(os.getpid(), signal.SIGKILL), limit=limit)
    for _ in range(count):
        spender.once()


def main(address: str, count: int, seed: str, folder: Path, limit: int) -> None:
    """Have eight processes ask ``count`` times in all. Whoever is killed is followed by another."""
    share, running = count // PROCESSES, dict[int, int]()

    def follow(worker: int, life: int, left: int) -> None:
        process = os.fork()
        if not process:
            failed = 1
            try:
                _work(address, f"{seed}-{worker}-{life}", left, folder / f"{worker}", limit=limit)
                failed = 0
            finally:
                os._exit(failed)
        running[process] = worker

    for worker in range(PROCESSES):
        follow(worker, 0, share)
    life = 0
    while running:
        ended, status = os.wait()
        worker, life = running.pop(ended), life + 1
        if not os.WIFSIGNALED(status):
            assert not os.waitstatus_to_exitcode(status), worker
        elif (left := share - (folder / f"{worker}").read_text().count('"asks"')) > 0:
            follow(worker, life, left)


if __name__ == "__main__":
    # Money counts from a lease later on. Here windows of a second are to go by, and no call lasts as long. The store in
    # Redis, which writes a lease into its scripts, is imported after this.
    assert "gateway.stores.redis" not in sys.modules
    vars(idempotency)["LEASE"] = vars(quota)["LEASE"] = 0
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
