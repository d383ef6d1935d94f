"""Rolling-window limits: the arithmetic.

``30/minute`` means never more than 30 admitted calls in any 60 seconds, however they are spread. Calls are counted
in buckets of a 128th of the window, and a bucket counts until its last instant has left the window. So a call counts
for at least the window and at most a 128th longer: the limit is never exceeded, and a caller who uses it up without
pause gets at least 99.2% of it. A window costs one entry for each bucket in use, 129 at most, whatever the limit.

Functions take the time from their caller, in seconds, of a clock that never runs backwards.
"""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from policies.model import Budget, Left, Limit, Standing
from policies.refusals import BudgetSpent, CeilingReached, LimitReached
from policies.wording import budget_in_words, limit_in_words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policies.model import Caller, Connection
    from policies.refusals import QuotaRefusal

#: 1/128 is 0.8%, under the 1% that a limit may err on the safe side.
BUCKETS: Final = 128

UNITS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_LIMIT = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")


def parse_limit(text: str) -> Limit:
    """Read ``30/minute``. Raises ValueError, whose text says what to write instead."""
    match = _LIMIT.fullmatch(text)
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


def budget_of(caller: Caller, budget: Budget) -> Counted:
    """Return the window of a caller's budget."""
    return f"budget:{caller.first}:{budget.currency}:{budget.limit.seconds}", budget.limit


class Bound(NamedTuple):
    """One limit, ceiling or budget: the name of its window, and what :class:`Left` says of it."""

    name: str
    limit: Limit
    kind: str
    currency: str = ""
    connection: str = ""


def bounds_of(caller: Caller, connections: Iterable[Connection]) -> list[Bound]:
    """Return all that bounds a caller on these connections: its limits, its budget, their ceilings."""
    bounds = [Bound(*counted, "limit") for counted in limits_of(caller)]
    if (budget := caller.budget) is not None:
        bounds.append(Bound(*budget_of(caller, budget), "budget", currency=budget.currency))
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

    def give_back(self, taken: float) -> bool:
        """Uncount one call that was counted at ``taken`` and used nothing. False if it has already left the window."""
        number = int(taken / self._width)
        for bucket in reversed(self._buckets):
            if bucket[0] == number and bucket[1]:
                bucket[1] -= 1
                self._total -= 1
                return True
        return False

    def wait(self, now: float) -> float:
        """Seconds from ``now`` until a call would be admitted; 0 if one would be now."""
        if self.remaining(now) > 0:
            return 0.0
        # Under a limit, only the oldest call must leave. A budget may be exceeded by far, and then more must leave.
        left = self._total
        for number, calls in self._buckets:
            left -= calls
            if left < self.limit.calls:
                return max(0.0, (number + BUCKETS + 1) * self._width - now)
        raise AssertionError  # pragma: no cover - an empty window is never full

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
    told = {"currency": bound.currency, "connection": bound.connection}
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


def refuse_if_full(
    limits: list[Window], ceiling: Window | None, spent: Window | None, budget: Budget | None, now: float
) -> None:
    """Refuse if a limit of the caller, the connection's ceiling or the caller's budget is full.

    ``spent`` is the window of ``budget``. Raises what :func:`refusal_for` returns.
    """
    full: list[tuple[float, Limit | Budget | None]] = [
        (window.wait(now), window.limit) for window in limits if window.remaining(now) < 1
    ]
    if ceiling is not None and ceiling.remaining(now) < 1:
        full.append((ceiling.wait(now), None))
    if spent is not None and spent.remaining(now) < 1:
        full.append((spent.wait(now), budget))
    if full:
        raise refusal_for(full, standings(limits, now))


def refusal_for(full: list[tuple[float, Limit | Budget | None]], standings: tuple[Standing, ...]) -> QuotaRefusal:
    """Return the refusal for what is full: the caller's limits, None for the ceiling, its budget.

    Each comes with the seconds until it has room. The longest wait is told, since a call before it would be refused
    again. ``left`` is 0: the refusal is for what has nothing left.
    """
    wait, what = max(full, key=lambda one: one[0])
    seconds = whole_seconds(wait)
    if what is None:
        return CeilingReached(retry_after=seconds, standings=standings)
    if isinstance(what, Budget):
        return BudgetSpent(
            f"Your invoices have used up your budget of {budget_in_words(what)}. Nothing was sent.",
            told={"limit": what.limit.calls, "currency": what.currency, "window": what.limit.seconds, "left": 0},
            retry_after=seconds,
            standings=standings,
        )
    return LimitReached(
        f"You have reached your limit of {limit_in_words(what)}. Nothing was sent.",
        told={"limit": what.calls, "window": what.seconds, "left": 0},
        retry_after=seconds,
        standings=standings,
    )


def whole_seconds(seconds: float) -> int:
    """Round up, so that a caller who waits that long is admitted. At least 1, since ``Retry-After: 0`` is no wait."""
    return max(1, math.ceil(seconds))
