"""What this process still owes its store: claims to give back, and outcomes to write down.

A claim that nobody gives back makes its key wait for a lease, and then counts as sent. So a call tries for a while to
give back its own. What the store has not taken by then is tried first thing by the next call, and when the process
ends. No thread does it: an instance has no processor between calls.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.chain import alert
from gateway.stores import Settled
from policies.model import Outcome
from policies.outcomes import Reply
from policies.refusals import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from policies.model import Admission, Answer, Grant

#: How long a call tries to give its claim back, in seconds: a failover, or a stalled disk, is often over by then.
PATIENCE: Final = 3.0
#: Between two tries. Each has a time limit of its own.
PAUSE: Final = 0.1
#: How long one call may spend on what others owe.
ERRAND: Final = 0.5
#: Each holds its call and its answer. What is beyond is left to its lease.
MOST: Final = 1_000

_UNSENT: Final = Reply(Outcome.RELEASED, reached=False)


class Debt(NamedTuple):
    """The end of a call, as the store takes it."""

    grant: Grant
    admission: Admission
    reply: Reply
    answer: Answer | None


class Debts:
    """Writes the ends of calls into a store.

    ``end`` returns what became of it, or raises :class:`StoreUnavailable`.
    """

    def __init__(self, end: Callable[[Debt], Settled], clock: Callable[[], float] = time.monotonic) -> None:
        self._end, self._clock = end, clock
        self._owed: deque[Debt] = deque()
        self._paying = threading.Lock()

    def release(self, grant: Grant, admission: Admission) -> None:
        """Give a claim back. Never raises."""
        debt = Debt(grant, admission, _UNSENT, None)
        until = self._clock() + PATIENCE
        while True:
            try:
                self._end(debt)
            except StoreUnavailable:
                if self._clock() + PAUSE >= until:
                    self._owe(debt)
                    return
                time.sleep(PAUSE)
            else:
                return

    def settle(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer) -> Settled:
        """Write an outcome. Return what became of it; never raises."""
        debt = Debt(grant, admission, reply, answer)
        try:
            return self._end(debt)
        except StoreUnavailable:
            self._owe(debt)
            return Settled.OWED

    def pay(self) -> None:
        """Write what is owed, for a short time. Raises :class:`StoreUnavailable` if the store still takes nothing."""
        if not self._owed or not self._paying.acquire(blocking=False):
            return
        try:
            until = self._clock() + ERRAND
            while self._owed and self._clock() < until:
                debt = self._owed[0]
                if self._end(debt) is Settled.OVER:
                    alert(f"the invoices of {debt.grant.caller.id} come to more than its budget now")
                self._owed.popleft()
        finally:
            self._paying.release()

    def _owe(self, debt: Debt) -> None:
        if debt.grant.ledger_key is None or len(self._owed) >= MOST:
            return
        self._owed.append(debt)
        atexit.unregister(self._last)  # once is enough
        atexit.register(self._last)

    def _last(self) -> None:
        try:
            self.pay()
        except StoreUnavailable:
            return  # what is left is told by the leases
