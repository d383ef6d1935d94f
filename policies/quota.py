"""Rolling-window limits and budgets: the arithmetic.

``30/minute`` means never more than 30 admitted calls in any 60 seconds, however they are spread. Calls are counted
in buckets of a 128th of the window, and a bucket counts until its last instant has left the window. So a call counts
for at least the window and at most a 128th longer: the limit is never exceeded, and a caller who uses it up without
pause gets at least 99.2% of it. A window costs one entry for each bucket in use, 129 at most, whatever the limit.

Money is counted in the same way, an amount in minor units in place of a call. What a call may come to is *reserved*:
booked in the windows of its budgets when it is admitted, so that a call that is killed has counted already and holds
nothing for longer than a window. Whoever comes back to an open call moves that to the present. When the call is
settled it is given back where it was booked, and what was spent is booked instead. What nobody knows stays. All money
counts from a lease later on, when the call must have ended: one that is killed may raise its invoice until then.

Functions take the time from their caller, in seconds, of a clock that never runs backwards.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec.structs import replace

from policies.idempotency import LEASE
from policies.model import Left, Limit, Outcome, Reserved, Standing
from policies.refusals import BudgetSpent, CeilingReached, LimitReached
from policies.wording import budget_in_words, limit_in_words, money

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from policies.model import Budget, Caller, Connection, Grant
    from policies.outcomes import Reply
    from policies.refusals import QuotaRefusal

#: 1/128 is 0.8%, under the 1% that a limit may err on the safe side.
BUCKETS: Final = 128

UNITS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_LIMIT: Final = r"([1-9][0-9]{0,8})/(second|minute|hour|day)"


def parse_limit(text: str) -> Limit:
    """Read ``30/minute``. Raises ValueError, whose text says what to write instead."""
    match = re.fullmatch(_LIMIT, text)
    if match is None:
        raise ValueError(f"write a limit as a whole number of calls per {', '.join(UNITS)}, such as 30/minute")
    return Limit(int(match[1]), UNITS[match[2]], text)


#: A window's name, the same for every call that it counts, and what bounds it.
Counted = tuple[str, Limit]


def limits_of(caller: Caller) -> list[Counted]:
    """Return the windows of a caller's limits.

    A window is named by what it counts and its length, not by its number: a changed limit keeps its count.
    """
    first = caller.first
    return [(f"caller:{first}:{limit.seconds}", limit) for limit in caller.limits]


def ceiling_of(connection: Connection) -> Counted | None:
    """Return the window of a connection's ceiling."""
    ceiling = connection.ceiling
    if ceiling is None:
        return None
    name, connection_name = connection.first
    return f"connection:{name}:{connection_name}:{ceiling.seconds}", ceiling


def budget_of(caller: Caller, budget: Budget, whose: str | None = None) -> Counted:
    """Return the window of a caller's budget; of one ``each``, that of ``whose``."""
    each = "" if budget.each is None else f"{budget.each}:{hashlib.sha256((whose or '').encode()).hexdigest()[:32]}:"
    return f"budget:{caller.first}:{budget.currency}:{each}{budget.limit.seconds}", budget.limit


def budgets_of(grant: Grant) -> dict[str, Budget]:
    """Return the budgets that a call counts against, by the names of their windows."""
    return _named(grant, grant.budgets)


def spent_of(grant: Grant, reply: Reply) -> tuple[dict[str, Budget], int]:
    """Return the budgets that count what a call has spent, by the names of their windows, and how much that is."""
    if reply.outcome is not Outcome.SUCCEEDED or reply.spent is None:
        return {}, 0
    return _named(grant, [one for one in grant.caller.budgets if one.currency == reply.spent_in]), reply.spent


def _named(grant: Grant, budgets: Iterable[Budget]) -> dict[str, Budget]:
    caller, asked = grant.caller, grant.parameters
    return {budget_of(caller, one, one.each and asked.get(one.each))[0]: one for one in budgets}


class Bound(NamedTuple):
    """One limit, ceiling or budget: the name of its window, and what :class:`Left` says of it."""

    name: str
    limit: Limit
    kind: str
    currency: str = ""
    connection: str = ""
    each: str | None = None
    told: bool = True
    """False of a budget ``each`` if it is not said of whom."""


def bounds_of(caller: Caller, connections: Iterable[Connection], customer: str | None = None) -> list[Bound]:
    """Return all that bounds a caller on these connections: its limits, its budgets, their ceilings.

    ``customer`` is whose budgets are meant, of those that each customer has.
    """
    bounds = [Bound(*counted, "limit") for counted in limits_of(caller)]
    for one in caller.budgets:
        counted, told = budget_of(caller, one, customer), one.each is None or customer is not None
        bounds.append(Bound(*counted, "budget", currency=one.currency, each=one.each, told=told))
    shared = ((one.id, ceiling_of(one)) for one in connections)
    return bounds + [Bound(*ceiling, "ceiling", connection=name) for name, ceiling in shared if ceiling is not None]


class Window:
    """The calls recently admitted under one limit."""

    __slots__ = ("_buckets", "_total", "_width", "limit")

    def __init__(self, limit: Limit, buckets: Iterable[tuple[int, int]] = ()) -> None:
        self.limit = limit
        self._width = limit.seconds / BUCKETS
        self._buckets = deque([number, calls] for number, calls in buckets)  # oldest first
        self._total = sum(calls for _, calls in self._buckets)

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """The state that a store keeps: the number and the calls of each bucket, oldest first."""
        return [(number, calls) for number, calls in self._buckets]

    def remaining(self, now: float) -> int:
        """How many more calls may be admitted at ``now``."""
        # A call at t lies in bucket floor(t / width), which ends before t + width. It expires once that end is a whole
        # window ago.
        first, buckets = int(now / self._width) - BUCKETS, self._buckets
        while buckets and buckets[0][0] < first:
            self._total -= buckets.popleft()[1]
        return self.limit.calls - self._total

    def take(self, now: float, amount: int = 1) -> None:
        """Count one call at ``now``, or an ``amount`` of money. Ask :meth:`remaining` first."""
        bucket = int(now / self._width)
        if self._buckets and self._buckets[-1][0] == bucket:
            self._buckets[-1][1] += amount
        else:
            self._buckets.append([bucket, amount])
        self._total += amount

    def give_back(self, taken: float, amount: int = 1) -> int:
        """Uncount what was counted at ``taken`` and is not used. Return how much of it had not left the window yet.

        Ask :meth:`remaining` first.
        """
        number = int(taken / self._width)
        for bucket in reversed(self._buckets):
            if bucket[0] == number:
                back = min(bucket[1], amount)
                bucket[1] -= back
                self._total -= back
                return back
        return 0

    def wait(self, now: float, amount: int = 1) -> float:
        """Seconds from ``now`` until ``amount`` would be admitted: 0 if it would be now, infinite if it never is."""
        if self.remaining(now) >= amount:
            return 0.0
        # Under a limit, only the oldest call must leave. Money may be past its budget, and then more must.
        left = self._total
        for number, calls in self._buckets:
            left -= calls
            if left + amount <= self.limit.calls:
                return max(0.0, (number + BUCKETS + 1) * self._width - now)
        return math.inf

    @property
    def empty(self) -> bool:
        """Whether nothing is counted. Ask :meth:`remaining` first."""
        return not self._total

    def standing(self, now: float) -> Standing:
        """Say how much is left and when more will be, as the RateLimit header wants it."""
        remaining = self.remaining(now)
        for number, calls in self._buckets:
            if calls:
                return Standing(self.limit, remaining, whole_seconds((number + BUCKETS + 1) * self._width - now))
        return Standing(self.limit, remaining, 1)

    def left(self, now: float) -> tuple[int, int, int, int]:
        """Say how much is left, how much more there is next, in how many seconds, and in how many all is."""
        remaining = max(0, self.remaining(now))
        rest, more, reset, full = self._total, 0, 0, 0
        for number, calls in self._buckets:
            rest -= calls
            if calls:
                full = whole_seconds((number + BUCKETS + 1) * self._width - now)
            if not more and self.limit.calls - rest > remaining:  # a budget may be exceeded by far
                more, reset = self.limit.calls - rest - remaining, full
        return remaining, more, reset, full


def left_of(bound: Bound, window: Window, now: float) -> Left:
    """Return what is left of ``bound``, whose ``window`` it is."""
    remaining, more, reset, full = window.left(now)
    told: dict[str, Any] = {"currency": bound.currency, "connection": bound.connection, "each": bound.each}
    if not bound.told:
        return Left(bound.kind, bound.limit, None, 0, 0, 0, **told)
    if bound.kind == "ceiling":
        return Left(bound.kind, bound.limit, None if remaining else 0, 0, 0 if remaining else reset, 0, **told)
    return Left(bound.kind, bound.limit, remaining, more, reset, full, **told)


def shares(limit: Limit, most: int) -> tuple[Limit, ...]:
    """Split a limit into shares of about one call a second each, at most ``most`` of them.

    The shares add up to the limit exactly. So the limit is kept if each share is, and while the limit has calls left,
    so has a share.
    """
    counters = min(most, math.ceil(limit.calls / limit.seconds))
    each, over = divmod(limit.calls, counters)
    return tuple(replace(limit, calls=each + (place < over)) for place in range(counters))


def together(limit: Limit, windows: Iterable[Window]) -> Window:
    """Merge windows into one that counts the calls of all of them."""
    calls: Counter[int] = Counter()
    for window in windows:
        calls.update(dict(window.buckets))
    return Window(limit, sorted(calls.items()))


def standings(limits: Iterable[Window], now: float) -> tuple[Standing, ...]:
    """Return the standing of each of a caller's limits."""
    return tuple([window.standing(now) for window in limits])


# ---------------------------------------------------------------- what a call may come to


class Short(NamedTuple):
    """A budget without room for a call."""

    budget: Budget
    left: int
    """What is left of it, in minor units. Below 0 if more was spent than it allows by now."""
    asked: int
    """What the call may come to."""


#: What has no room, and how many seconds it has none: a limit of the caller, None for the ceiling, a budget.
Full = tuple[float, "Limit | Short | None"]


def holds(grant: Grant, held: Reserved | None) -> int:
    """Return what a call books when it is admitted: what it may come to, and no less than its key holds already."""
    return grant.reserve if held is None else max(grant.reserve, held.amount)


def money_of(budgets: Mapping[str, Budget], held: Reserved | None) -> dict[str, Limit]:
    """Return the windows that a call's money lies in or goes to, with what bounds each.

    What is held in a budget that the document has no more is only given back.
    """
    lies = {name: Limit(0, seconds, "") for name, seconds in held.windows} if held is not None else {}
    return lies | {name: budget.limit for name, budget in budgets.items()}


def move(
    budgets: Mapping[str, Budget], windows: Mapping[str, Window], held: Reserved | None, amount: int, now: float
) -> tuple[Reserved | None, list[Full]]:
    """Give back what is ``held``, and book ``amount`` now in its place. Return that, and which budgets have no room.

    ``windows`` are those of :func:`money_of`, and are worthless if one has none. All that is held in a window is
    enough there, however much was spent meanwhile, unless it was booked ``anew``.
    """
    full: list[Full] = []
    for name, window in windows.items():
        back = _returned(name, window, held, now)
        if name in budgets and back < amount and window.remaining(now) < amount:
            full.append((window.wait(now, amount), Short(budgets[name], window.remaining(now), amount)))
    for name in budgets:
        windows[name].take(now + LEASE, amount)
    lies = tuple((name, budget.limit.seconds) for name, budget in budgets.items())
    return (Reserved(amount, now, lies) if lies else None), full


def spend(
    budgets: Mapping[str, Budget], windows: Mapping[str, Window], held: Reserved | None, amount: int, now: float
) -> bool:
    """Give back what is ``held``, and count ``amount`` as spent in these budgets now. Return whether one is over.

    It is if more was spent than it still held: by an invoice that is told late, or came to more than was asked for.
    """
    over = False
    for name, window in windows.items():
        back = _returned(name, window, held, now)
        if name in budgets and amount:
            window.take(now + LEASE, amount)
            over = over or (back < amount and window.remaining(now) < 0)
    return over


def redecide(
    windows: Mapping[str, Window], held: Reserved | None, again: Reserved | None, now: float
) -> Reserved | None:
    """Move money as an operator's decision does: give back what is ``held``, or book ``again`` what was given back.

    It is booked whatever is left, since there may be an invoice. ``windows`` are those of :func:`money_of`. Return what
    is held from now on.
    """
    if (held is None) is (again is None):
        return again
    for name, window in windows.items():
        _returned(name, window, held, now)
        if again is not None:
            window.take(now + LEASE, again.amount)
    return replace(again, at=now) if again is not None else None


def _returned(name: str, window: Window, held: Reserved | None, now: float) -> int:
    """Give back what is held in a window. Return how much of that had not left it, and needs no other room."""
    window.remaining(now)
    if held is None or all(name != other for other, _ in held.windows):
        return 0
    back = window.give_back(held.at + LEASE, held.amount)
    return 0 if held.anew else back


def rise(budgets: Collection[str], held: Reserved | None, comes_to: int | None, taken: float) -> int | None:
    """Return what must be booked before an invoice that ``comes_to`` so much is finalized; None if that is held.

    ``taken`` is when the call was admitted. What is held since before may have left its windows by now.
    """
    if comes_to is None or not (budgets or held):
        return None
    if held is None:
        return comes_to
    if held.at >= taken and comes_to <= held.amount:
        return None
    return max(comes_to, held.amount)


def refuse_if_full(limits: list[Window], ceiling: Window | None, short: list[Full], now: float) -> None:
    """Refuse if a limit of the caller or the connection's ceiling is full, or if its budgets fall ``short``.

    Raises what :func:`refusal_for` returns.
    """
    full: list[Full] = [(window.wait(now), window.limit) for window in limits if window.remaining(now) < 1]
    if ceiling is not None and ceiling.remaining(now) < 1:
        full.append((ceiling.wait(now), None))
    full += short
    if full:
        raise refusal_for(full, standings(limits, now))


def refusal_for(full: list[Full], standings: tuple[Standing, ...], *, draft: bool = False) -> QuotaRefusal:
    """Return the refusal for what is full.

    The longest wait is told, since a call before it would be refused again. ``draft``: it is what the draft comes to
    that has no room, and the draft goes.
    """
    wait, what = max(full, key=lambda one: one[0])
    seconds = None if wait == math.inf else whole_seconds(wait)
    if what is None:
        return CeilingReached(retry_after=seconds, standings=standings)
    if isinstance(what, Short):
        budget, left = what.budget, max(0, what.left)
        told = {
            "limit": budget.limit.calls,
            "currency": budget.currency,
            "window": budget.limit.seconds,
            "left": left,
            "asked": what.asked,
        }
        return BudgetSpent(
            _short_in_words(what, seconds, draft=draft),
            told=told if budget.each is None else told | {"each": budget.each},
            retry_after=seconds,
            standings=standings,
        )
    return LimitReached(
        f"You have reached your limit of {limit_in_words(what)}. Nothing was sent.",
        told={"limit": what.calls, "window": what.seconds, "left": 0},
        retry_after=seconds,
        standings=standings,
    )


def _short_in_words(short: Short, seconds: int | None, *, draft: bool) -> str:
    budget = short.budget
    whole, asked = budget_in_words(budget), money(short.asked, budget.currency)
    ends = "It was not raised." if draft else "Nothing was sent."
    comes = f"The invoice would come to {asked}" if draft else f"This call may come to {asked}"
    if seconds is None:
        return (
            f"{comes}, and your whole budget is {whole}. {ends} Ask for less, or ask the operator of Countersign for a "
            "larger budget."
        )
    if short.left <= 0 and not draft:
        return f"Your invoices have used up your budget of {whole}. {ends}"
    left = money(max(0, short.left), budget.currency)
    return f"{comes}, and {left} are left of your budget of {whole}. {ends}"


def whole_seconds(seconds: float) -> int:
    """Round up, so that a caller who waits that long is admitted. At least 1, since ``Retry-After: 0`` is no wait."""
    return max(1, math.ceil(seconds))
