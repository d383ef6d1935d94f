"""Limits and the ledger in this process. Exact under threads, not shared, lost with the process."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from policies import idempotency
from policies.idempotency import Entry, State
from policies.model import Admission, Outcome
from policies.outcomes import Reply
from policies.quota import Window, refuse_if_full, standings
from policies.refusals import LedgerRefusal, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from policies.model import Answer, Grant, Limit

#: About a kilobyte each. A full ledger refuses calls rather than forget a key, which could mean a second invoice.
MAX_ENTRIES: Final = 100_000


class Memory:
    """The ``memory`` store. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float], max_entries: int = MAX_ENTRIES) -> None:
        self._clock, self._max_entries = clock, max_entries
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, str, str], Window] = {}
        self._ledger: OrderedDict[str, Entry] = OrderedDict()
        self._next_sweep = 0.0

    def admit(self, grant: Grant) -> Admission:
        """See :class:`gateway.stores.Store`."""
        owner = os.urandom(16).hex()
        with self._lock:
            now = self._clock()
            limits, ceiling, spent = self._limits(grant), self._ceiling(grant), self._budget(grant)
            try:
                claim = self._claim(grant, owner, now)
            except LedgerRefusal as refusal:
                refusal.standings = standings(limits, now)
                raise
            if claim is not None and not isinstance(claim, Entry):
                return Admission(standings(limits, now), owner, now, replay=claim)
            refuse_if_full(limits, ceiling, spent, grant.budget, now)
            for window in limits:
                window.take(now)
            if ceiling is not None:
                ceiling.take(now)
            if grant.ledger_key is not None and claim is not None:
                self._ledger[grant.ledger_key] = claim
            doubt = claim is not None and claim.doubt
            return Admission(standings(limits, now), owner, now, doubt=doubt)

    def release(self, grant: Grant, admission: Admission) -> None:
        """See :class:`gateway.stores.Store`."""
        self._end(grant, admission, Reply(Outcome.RELEASED, reached=False), None)

    def settle(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer) -> bool:
        """See :class:`gateway.stores.Store`."""
        self._end(grant, admission, reply, answer)
        return True

    def _claim(self, grant: Grant, owner: str, now: float) -> Entry | Answer | None:
        key = grant.ledger_key
        if key is None:
            return None
        while self._ledger and next(iter(self._ledger.values())).expires <= now:
            self._ledger.popitem(last=False)
        held = self._ledger.get(key)
        if held is None and len(self._ledger) >= self._max_entries:
            self._sweep(now)
            if len(self._ledger) >= self._max_entries:
                raise StoreUnavailable(note="the ledger in memory is full")
        return idempotency.claim_for(grant, held, owner=owner, now=now)

    def _sweep(self, now: float) -> None:
        """Delete expired keys behind one that is kept longer. At most once a second, since it scans all of them."""
        if now >= self._next_sweep:
            self._next_sweep = now + 1
            for key in [key for key, entry in self._ledger.items() if entry.expires <= now]:
                del self._ledger[key]

    def _end(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer | None) -> None:
        key = grant.ledger_key
        with self._lock:
            if key is not None:
                held = self._ledger.get(key)
                if held is None or held.state is not State.SENT or held.owner != admission.owner:
                    return  # already settled, or claimed by another call, which counts for itself
                entry = idempotency.settle(held, owner=admission.owner, outcome=reply.outcome, answer=answer)
                if entry is None:
                    del self._ledger[key]
                else:
                    self._ledger[key] = entry
            if not reply.reached:
                for window in self._counting(grant):
                    window.give_back(admission.taken)
            budget = self._budget(grant)
            if budget is not None and reply.spent:
                budget.take(self._clock(), reply.spent)

    def _counting(self, grant: Grant) -> list[Window]:
        """Return the windows that an admission is counted in."""
        ceiling = self._ceiling(grant)
        return [*self._limits(grant), *([ceiling] if ceiling is not None else ())]

    def _limits(self, grant: Grant) -> list[Window]:
        return [self._window("caller", grant.caller.first, limit) for limit in grant.caller.limits]

    def _ceiling(self, grant: Grant) -> Window | None:
        connection = grant.entitlement.connection
        return self._window("connection", connection.id, connection.ceiling) if connection.ceiling else None

    def _budget(self, grant: Grant) -> Window | None:
        budget = grant.budget
        return self._window("budget", grant.caller.first, budget.limit) if budget is not None else None

    def _window(self, kind: str, name: str, limit: Limit) -> Window:
        place = (kind, name, limit.text)
        window = self._windows.get(place)
        if window is None:
            window = self._windows[place] = Window(limit)
        return window
