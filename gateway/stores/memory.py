"""Limits and the ledger in this process. Exact under threads, not shared, lost with the process."""

from __future__ import annotations

import heapq
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from policies import idempotency
from policies.model import Admission, Answer, Outcome, Seen
from policies.outcomes import Reply
from policies.quota import (
    Window,
    bounds_of,
    budget_of,
    ceiling_of,
    left_of,
    limits_of,
    refuse_if_full,
    standings,
    whole_seconds,
)
from policies.refusals import LedgerRefusal, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policies.issuing import Progress
    from policies.model import Caller, Connection, Entry, Grant, Left, Limit

#: What all entries together may take, as far as it is counted. A full ledger refuses calls rather than forget a key,
#: which could mean a second invoice.
MAX_BYTES: Final = 128 * 2**20
#: The part of that which one caller may fill. Then it is refused, and the others are not.
SHARE: Final = 4
#: An entry with its texts and its place in the tables, as measured, without its answer's body.
ENTRY_BYTES: Final = 1_200
#: Nobody is asked to wait longer than this before the next try.
MAX_WAIT: Final = 3600


class Memory:
    """The ``memory`` store. ``clock`` is monotonic, in seconds; ``room`` is in bytes."""

    def __init__(self, clock: Callable[[], float], room: int = MAX_BYTES) -> None:
        self._clock, self._room = clock, room
        self._lock = threading.Lock()
        self._windows: dict[str, Window] = {}
        self._ledger: dict[str, Entry] = {}
        self._expiring: list[tuple[float, str]] = []
        self._filled: Counter[str] = Counter()

    def admit(self, grant: Grant, place: str) -> Admission:
        """See :class:`gateway.stores.Store`."""
        owner = os.urandom(16).hex()
        with self._lock:
            admission = self._judge(grant, owner, place, self._window)
            if grant.ledger_key is not None and admission.entry is not None:
                self._keep(grant.ledger_key, admission.entry)
            return admission

    def peek(self, grant: Grant, place: str) -> Admission:
        """See :class:`gateway.stores.Store`."""
        with self._lock:
            return self._judge(grant, os.urandom(16).hex(), place, self._copy)

    def left(self, caller: Caller, connections: Iterable[Connection]) -> tuple[Left, ...]:
        """See :class:`gateway.stores.Store`."""
        with self._lock:
            now = self._clock()
            bounds = bounds_of(caller, connections)
            return tuple(left_of(bound, self._copy(bound.name, bound.limit), now) for bound in bounds)

    def state_of(self, key: str) -> Seen | None:
        """See :class:`gateway.stores.Store`."""
        with self._lock:
            held, now = self._ledger.get(key), self._clock()
            return None if held is None or idempotency.over(held, now) else Seen(held, now)

    def _judge(self, grant: Grant, owner: str, place: str, window: _Windows) -> Admission:
        """Judge a call and count it in the windows that ``window`` returns: the store's own, or copies of them."""
        now, budget = self._clock(), grant.budget
        limits, ceiling = _limits(grant, window), _ceiling(grant, window)
        spent = window(*budget_of(grant.caller, budget)) if budget is not None else None
        try:
            claim = self._claim(grant, owner, place, now)
        except LedgerRefusal as refusal:
            refusal.standings = standings(limits, now)
            raise
        if isinstance(claim, Answer):
            return Admission(standings(limits, now), owner, now, replay=claim)
        refuse_if_full(limits, ceiling, spent, budget, now)
        for one in limits:
            one.take(now)
        if ceiling is not None:
            ceiling.take(now)
        return Admission(standings(limits, now), owner, now, claim)

    def release(self, grant: Grant, admission: Admission) -> None:
        """See :class:`gateway.stores.Store`."""
        self._end(grant, admission, Reply(Outcome.RELEASED, reached=False), None)

    def advance(self, grant: Grant, admission: Admission, progress: Progress) -> Admission | None:
        """See :class:`gateway.stores.Store`."""
        key = grant.ledger_key
        with self._lock:
            held = self._ledger.get(key) if key is not None else None
            entry = idempotency.advance(held, progress, owner=admission.owner)
            if key is None or entry is None:
                return None
            self._keep(key, entry)
        return replace(admission, entry=entry)

    def settle(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer) -> bool:
        """See :class:`gateway.stores.Store`."""
        self._end(grant, admission, reply, answer)
        return True

    def _end(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer | None) -> None:
        key = grant.ledger_key
        with self._lock:
            now = self._clock()
            if key is not None:
                held = self._ledger.get(key)
                ended = idempotency.settle_for(grant, held, owner=admission.owner, reply=reply, answer=answer)
                if ended is held or ended is None:
                    return  # already settled, or claimed by another call, which counts for itself
                self._keep(key, None if idempotency.blank(ended) else ended)
            if not reply.reached:
                ceiling = _ceiling(grant, self._window)
                for window in [*_limits(grant, self._window), *([ceiling] if ceiling is not None else ())]:
                    window.give_back(admission.taken)
            budget = grant.budget
            if budget is not None and reply.spent:
                self._window(*budget_of(grant.caller, budget)).take(now, reply.spent)

    # ---------------------------------------------------------------- the ledger

    def _claim(self, grant: Grant, owner: str, place: str, now: float) -> Entry | Answer | None:
        if grant.ledger_key is None:
            return None
        self._forget(now)
        held = self._ledger.get(grant.ledger_key)
        if held is None:
            self._refuse_if_crowded(grant.caller.id, now)
        return idempotency.claim_for(grant, held, owner=owner, place=place, now=now)

    def _keep(self, key: str, entry: Entry | None) -> None:
        held = self._ledger.pop(key, None)
        if held is not None:
            self._filled[held.caller] -= _size(held)
            if not self._filled[held.caller]:
                del self._filled[held.caller]
        if entry is not None:
            self._ledger[key] = entry
            self._filled[entry.caller] += _size(entry)
            if entry.expires is not None:
                heapq.heappush(self._expiring, (entry.expires, key))

    def _forget(self, now: float) -> None:
        """Delete what has expired. An entry that is open never does."""
        while self._expiring and self._expiring[0][0] <= now:
            expires, key = heapq.heappop(self._expiring)
            held = self._ledger.get(key)
            if held is not None and held.expires == expires:
                self._keep(key, None)

    def _refuse_if_crowded(self, caller: str, now: float) -> None:
        own = self._filled.get(caller, 0)
        if own < self._room // SHARE and self._filled.total() < self._room:
            return
        wait = self._expiring[0][0] - now if self._expiring else MAX_WAIT
        raise StoreUnavailable(
            "So many idempotency keys were used lately that no more can be remembered just now. Nothing was sent; try "
            "again later.",
            note=f"the ledger in memory is full: {self._filled.total()} bytes, {own} of this caller",
            retry_after=min(whole_seconds(wait), MAX_WAIT),
        )

    # ---------------------------------------------------------------- the windows

    def _window(self, name: str, limit: Limit) -> Window:
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = Window(limit)
        window.limit = limit  # which may have changed
        return window

    def _copy(self, name: str, limit: Limit) -> Window:
        """Return a copy of a window: neither it, nor that there is none yet, is changed by what is tried on it."""
        window = self._windows.get(name)
        return Window(limit, window.buckets if window is not None else ())


#: What returns the window of a name and a limit.
_Windows = Callable[[str, "Limit"], Window]


def _limits(grant: Grant, window: _Windows) -> list[Window]:
    return [window(name, limit) for name, limit in limits_of(grant.caller)]


def _ceiling(grant: Grant, window: _Windows) -> Window | None:
    return window(*ceiling) if (ceiling := ceiling_of(grant.entitlement.connection)) is not None else None


def _size(entry: Entry) -> int:
    return ENTRY_BYTES + (len(entry.answer.body) if entry.answer is not None else 0)
