"""Limits and the ledger in this process. Exact under threads, not shared, lost with the process."""

from __future__ import annotations

import heapq
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from gateway.stores import Settled
from policies import idempotency
from policies.model import Admission, Answer, Outcome, Seen
from policies.outcomes import Reply
from policies.quota import (
    Window,
    bounds_of,
    budgets_of,
    ceiling_of,
    holds,
    left_of,
    limits_of,
    money_of,
    move,
    refusal_for,
    refuse_if_full,
    rise,
    spend,
    spent_of,
    standings,
    whole_seconds,
)
from policies.refusals import LedgerRefusal, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policies.issuing import Progress
    from policies.model import Budget, Caller, Connection, Entry, Grant, Left, Limit, Reserved
    from policies.quota import Full

#: What all entries together may take, as far as it is counted. A full ledger refuses calls rather than forget a key,
#: which could mean a second invoice.
MAX_BYTES: Final = 128 * 2**20
#: The part of that which one caller may fill. Then it is refused, and the others are not.
SHARE: Final = 4
#: An entry with its texts and its place in the tables, as measured, without its answer's body.
ENTRY_BYTES: Final = 1_200
#: Windows of budgets for each customer, of all callers together: 20 MB. Beyond that a call for yet another customer is
#: refused rather than not counted.
MOST_EACH: Final = 100_000
#: Nobody is asked to wait longer than this before the next try.
MAX_WAIT: Final = 3600


class Memory:
    """The ``memory`` store. ``clock`` is monotonic, in seconds; ``room`` is in bytes."""

    def __init__(self, clock: Callable[[], float], room: int = MAX_BYTES) -> None:
        self._clock, self._room = clock, room
        self._lock = threading.Lock()
        self._windows: dict[str, Window] = {}
        self._each: dict[int, dict[str, None]] = {}
        """The names of the windows of budgets for each customer, by their seconds, the one used last at the end."""
        self._ledger: dict[str, Entry] = {}
        self._expiring: list[tuple[float, str]] = []
        self._filled: Counter[str] = Counter()

    def admit(self, grant: Grant, place: str) -> Admission:
        """See :class:`gateway.stores.Store`."""
        owner = os.urandom(16).hex()
        with self._lock:
            admission = self._judge(grant, owner, place, takes=True)
            if grant.ledger_key is not None and admission.entry is not None:
                self._keep(grant.ledger_key, admission.entry)
            return admission

    def peek(self, grant: Grant, place: str) -> Admission:
        """See :class:`gateway.stores.Store`."""
        with self._lock:
            return self._judge(grant, os.urandom(16).hex(), place, takes=False)

    def left(self, caller: Caller, connections: Iterable[Connection], customer: str | None = None) -> tuple[Left, ...]:
        """See :class:`gateway.stores.Store`."""
        with self._lock:
            now = self._clock()
            bounds = bounds_of(caller, connections, customer)
            return tuple(left_of(bound, self._copy(bound.name, bound.limit), now) for bound in bounds)

    def state_of(self, key: str) -> Seen | None:
        """See :class:`gateway.stores.Store`."""
        with self._lock:
            held, now = self._ledger.get(key), self._clock()
            return None if held is None or idempotency.over(held, now) else Seen(held, now)

    def _judge(self, grant: Grant, owner: str, place: str, *, takes: bool) -> Admission:
        """Judge a call and count it, or with ``takes`` off count it in copies of the windows."""
        now, window = self._clock(), self._window if takes else self._copy
        limits, ceiling = _limits(grant, window), _ceiling(grant, window)
        try:
            claim = self._claim(grant, owner, place, now)
        except LedgerRefusal as refusal:
            refusal.standings = standings(limits, now)
            raise
        if isinstance(claim, Answer):
            return Admission(standings(limits, now), owner, now, replay=claim)
        reserved = claim.reserved if claim is not None else None
        budgets: dict[str, Budget] = {}
        money: dict[str, Window] = {}
        full: list[Full] = []
        if (grant.budgets or reserved is not None) and idempotency.moves(claim):
            budgets = budgets_of(grant)
            money = self._money(budgets, reserved)
            reserved, full = move(budgets, money, reserved, holds(grant, reserved), now)
        refuse_if_full(limits, ceiling, full, now)
        if money:
            self._refuse_if_many(budgets, now)
        for one in limits:
            one.take(now)
        if ceiling is not None:
            ceiling.take(now)
        if takes and money:
            self._save(money, budgets)
        if claim is None:
            return Admission(standings(limits, now), owner, now, reserved=reserved)
        if money:
            claim = replace(claim, reserved=reserved)
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
            budgets, now = budgets_of(grant), self._clock()
            amount = rise(budgets, entry.reserved, progress.comes_to, admission.taken)
            if amount is not None:
                money = self._money(budgets, entry.reserved)
                reserved, full = move(budgets, money, entry.reserved, amount, now)
                if full:
                    raise refusal_for(full, admission.standings, draft=True)
                self._save(money, budgets)
                entry = replace(entry, reserved=reserved)
            self._keep(key, entry)
        return replace(admission, entry=entry)

    def settle(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer) -> Settled:
        """See :class:`gateway.stores.Store`."""
        return self._end(grant, admission, reply, answer)

    def _end(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer | None) -> Settled:
        key, reserved, known = grant.ledger_key, admission.reserved, idempotency.gives_back(reply)
        with self._lock:
            now = self._clock()
            if key is not None:
                held = self._ledger.get(key)
                ended = idempotency.settle_for(grant, held, owner=admission.owner, reply=reply, answer=answer)
                if ended is held or ended is None or held is None:
                    return Settled.WRITTEN  # already settled, or claimed by another call, which counts for itself
                self._keep(key, None if idempotency.blank(ended) else ended)
                reserved, known = held.reserved, ended.reserved is None
            if not reply.reached:
                ceiling = _ceiling(grant, self._window)
                for window in [*_limits(grant, self._window), *([ceiling] if ceiling is not None else ())]:
                    window.give_back(admission.taken)
            return self._spend(grant, reserved, reply, now) if known else Settled.WRITTEN

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

    # ---------------------------------------------------------------- money

    def _money(self, budgets: Mapping[str, Budget], held: Reserved | None) -> dict[str, Window]:
        """Return copies of the windows that a call's money lies in or goes to."""
        return {name: self._copy(name, limit) for name, limit in money_of(budgets, held).items()}

    def _spend(self, grant: Grant, held: Reserved | None, reply: Reply, now: float) -> Settled:
        """Give back what a call held, and count what it has spent."""
        budgets, amount = spent_of(grant, reply)
        money = self._money(budgets, held)
        over = spend(budgets, money, held, amount, now)
        self._save(money, budgets)
        return Settled.OVER if over else Settled.WRITTEN

    def _save(self, money: Mapping[str, Window], budgets: Mapping[str, Budget]) -> None:
        """Write windows back. Those of budgets for each customer are kept only while something is counted in them."""
        for name, window in money.items():
            self._windows[name] = window
            used = self._each.setdefault(window.limit.seconds, {})
            if name in used or (name in budgets and budgets[name].each is not None):
                used.pop(name, None)
                used[name] = None  # at the end, so that the first is empty before all others
                if window.empty:
                    del used[name], self._windows[name]

    def _emptied(self, name: str, now: float) -> bool:
        window = self._windows[name]
        return window.remaining(now) == window.limit.calls

    def _refuse_if_many(self, budgets: Mapping[str, Budget], now: float) -> None:
        """Drop windows in which nothing is counted any more, and refuse a call that needs one too many."""
        new = [name for name, one in budgets.items() if one.each is not None and name not in self._windows]
        if not new:
            return
        for used in self._each.values():
            while used and self._emptied(first := next(iter(used)), now):
                del used[first], self._windows[first]
        if sum(map(len, self._each.values())) + len(new) > MOST_EACH:
            raise StoreUnavailable(
                "So many customers were invoiced lately that no more of their budgets can be counted just now. Nothing "
                "was sent; try again later.",
                note=f"{MOST_EACH} budgets for each customer are counted",
                retry_after=MAX_WAIT,
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
