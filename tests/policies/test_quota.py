"""Limits hold in any window, not only in the clock's own, and give away at most 1%."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.quota import BUCKETS, UNITS, Window, parse_limit, shares, together, whole_seconds

if TYPE_CHECKING:
    from policies.model import Limit

#: Times are multiples of this, which floats hold exactly, so that a test's own sums are exact.
TICK = 1 / 1024
LIMITS = st.builds(lambda calls, unit: parse_limit(f"{calls}/{unit}"), st.integers(1, 12), st.sampled_from(list(UNITS)))
#: A clock may count from anything: the start of a process, or 1970.
STARTS = st.sampled_from([0.0, TICK, 59.5, 1_790_000_000.0, 1_790_000_000.0 + TICK])


@st.composite
def moments(draw: st.DrawFn, limit: Limit) -> list[float]:
    """Draw times that never run backwards: bursts, crumbs of a bucket, and leaps to a window's edge."""
    width = limit.seconds / BUCKETS
    steps = st.one_of(
        st.just(0.0),
        st.just(TICK),
        st.integers(0, int(limit.seconds / TICK)).map(lambda ticks: ticks * TICK),
        st.sampled_from([limit.seconds - TICK, limit.seconds, limit.seconds + width, limit.seconds + width - TICK]),
    )
    now = draw(STARTS)
    times = []
    for step in draw(st.lists(steps, max_size=60)):
        now += step
        times.append(now)
    return times


@settings(max_examples=200)
@given(st.data(), LIMITS)
def test_limit_is_never_exceeded_in_any_window(data: st.DataObject, limit: Limit) -> None:
    window, admitted = Window(limit), list[float]()
    width = limit.seconds / BUCKETS
    for now in data.draw(moments(limit)):
        surely = [moment for moment in admitted if now - moment < limit.seconds]
        perhaps = [moment for moment in admitted if now - moment < limit.seconds + width]
        remaining = window.remaining(now)
        assert limit.calls - len(perhaps) <= remaining <= limit.calls - len(surely)
        assert window.standing(now).remaining == remaining
        assert (window.wait(now) == 0) is (remaining > 0)
        if remaining > 0:
            window.take(now)
            admitted.append(now)
    for first, last in zip(admitted, admitted[limit.calls :], strict=False):
        assert last - first >= limit.seconds


@pytest.mark.parametrize("limit", ["1/second", "7/second", "30/minute", "500/minute", "3/hour", "1000/day"])
def test_greedy_caller_gets_at_least_99_percent(limit: str) -> None:
    window = Window(parse_limit(limit))
    windows = 50
    now, end, admitted = 0.0, float(windows * window.limit.seconds), 0
    while now < end:
        while window.remaining(now) > 0:
            window.take(now)
            admitted += 1
        now += max(window.wait(now), TICK)
    assert 0.99 * windows * window.limit.calls <= admitted <= windows * window.limit.calls


@settings(max_examples=200)
@given(st.data(), LIMITS)
def test_call_passes_after_the_wait_and_not_before(data: st.DataObject, limit: Limit) -> None:
    window = Window(limit)
    now = 0.0
    for now in data.draw(moments(limit)):
        if window.remaining(now) > 0:
            window.take(now)
    while window.remaining(now) > 0:
        window.take(now)
    wait = window.wait(now)
    assert 0 < wait <= limit.seconds + limit.seconds / BUCKETS
    assert window.standing(now).reset == whole_seconds(wait)
    before = now + wait - TICK
    assert before <= now or window.remaining(before) == 0
    assert window.remaining(now + wait) >= 1
    assert window.wait(now + wait) == 0


@settings(max_examples=100)
@given(st.data(), LIMITS)
def test_call_given_back_uses_up_nothing(data: st.DataObject, limit: Limit) -> None:
    window, model = Window(limit), Window(limit)
    for now in data.draw(moments(limit)):
        assert window.remaining(now) == model.remaining(now)
        if window.remaining(now) > 0:
            window.take(now)
            if data.draw(st.booleans()):
                window.give_back(now)
            else:
                model.take(now)
        assert window.wait(now) == model.wait(now)


@settings(max_examples=200)
@given(st.data(), LIMITS)
def test_wait_of_a_budget_is_the_first_moment_with_room_and_bounded(data: st.DataObject, limit: Limit) -> None:
    """Money that is told late may exceed a budget by any sum."""
    window, now, amount = Window(limit), 0.0, data.draw(st.integers(1, limit.calls + 1))
    for now in data.draw(moments(limit)):
        window.take(now, data.draw(st.integers(1, 40)))
    wait = window.wait(now, amount)
    assert (wait == math.inf) == (amount > limit.calls)
    if wait and wait != math.inf:
        assert 0 < wait <= limit.seconds + limit.seconds / BUCKETS
        assert window.remaining(now + wait - TICK) < amount
        assert window.remaining(now + wait) >= amount


def test_call_given_back_late_changes_nothing() -> None:
    window = Window(parse_limit("1/minute"))
    window.take(10)
    assert window.remaining(200) == 1
    window.take(200)
    window.give_back(10)
    assert window.remaining(200) == 0


def test_call_given_back_leaves_later_ones_counted() -> None:
    window = Window(parse_limit("2/minute"))
    window.take(0)
    window.take(30)
    window.give_back(0)
    assert window.remaining(30) == 1
    window.take(31)
    assert window.wait(31) == (30 // 0.46875 + BUCKETS + 1) * 0.46875 - 31


@pytest.mark.parametrize("limit", ["999999999/second", "1000000/minute", "1000000/day"])
def test_window_costs_the_same_however_many_calls_it_counts(limit: str) -> None:
    window = Window(parse_limit(limit))
    step = window.limit.seconds / 1000
    for tick in range(5000):
        assert window.remaining(tick * step) > 0
        window.take(tick * step)
    assert len(window._buckets) <= BUCKETS + 1


def test_unused_window_has_its_whole_limit_left() -> None:
    standing = Window(parse_limit("30/minute")).standing(1000)
    assert (standing.limit.text, standing.remaining, standing.reset) == ("30/minute", 30, 1)


@given(st.integers(1, 999_999_999), st.sampled_from(list(UNITS)), st.integers(1, 64))
def test_shares_come_to_the_limit_exactly_and_none_is_empty(calls: int, unit: str, most: int) -> None:
    limit = parse_limit(f"{calls}/{unit}")
    parts = [part.calls for part in shares(limit, most)]
    assert sum(parts) == calls
    assert 1 <= min(parts) <= max(parts) <= min(parts) + 1
    assert (len(parts) - 1) * limit.seconds < calls  # no more of them than it takes
    assert len(parts) == most or max(parts) <= limit.seconds


@settings(max_examples=100)
@given(st.data(), LIMITS)
def test_shared_out_or_whole_a_limit_says_the_same(data: st.DataObject, limit: Limit) -> None:
    whole, parts = Window(limit), [Window(part) for part in shares(limit, 5)]
    taken: list[float] = []
    for now in data.draw(moments(limit)):
        seen = together(limit, parts)
        assert seen.standing(now) == whole.standing(now)
        assert seen.wait(now) == whole.wait(now)
        roomy = [part for part in parts if part.remaining(now) > 0]
        assert bool(roomy) is (whole.remaining(now) > 0)
        undo: bool = data.draw(st.booleans())
        if taken and undo:
            moment = taken.pop()
            assert bool(whole.give_back(moment)) is any(part.give_back(moment) for part in parts)
        elif roomy:
            whole.take(now)
            data.draw(st.sampled_from(roomy)).take(now)
            taken.append(now)


def test_window_goes_on_from_what_was_kept_of_it() -> None:
    window = Window(parse_limit("5/minute"))
    for now in (0.0, 0.1, 30.0):
        window.take(now)
    assert window.buckets == [(0, 2), (64, 1)]
    kept = Window(window.limit, window.buckets)
    assert kept.give_back(30.0)
    assert not kept.give_back(30.0)
    assert [kept.remaining(30.0), window.remaining(30.0), kept.remaining(61.0)] == [3, 2, 5]


@pytest.mark.parametrize(("seconds", "whole"), [(0.0, 1), (0.001, 1), (1.0, 1), (1.001, 2), (59.0, 59), (59.5, 60)])
def test_wait_is_rounded_up_to_whole_seconds(seconds: float, whole: int) -> None:
    assert whole_seconds(seconds) == whole


@pytest.mark.parametrize(
    ("text", "calls", "seconds"),
    [("1/second", 1, 1), ("30/minute", 30, 60), ("5/hour", 5, 3600), ("999999999/day", 999_999_999, 86400)],
)
def test_limit_is_read_as_calls_per_unit(text: str, calls: int, seconds: int) -> None:
    limit = parse_limit(text)
    assert (limit.calls, limit.seconds, limit.text) == (calls, seconds, text)


@pytest.mark.parametrize(
    "text",
    ["", "30", "/minute", "0/minute", "-1/minute", "030/minute", "1.5/minute", "30/Minute", "30/minutes", "30 / minute",
     "30/minute\n", "1000000000/day", "1e3/day", "30/week", "\u0663/minute"],
)  # fmt: skip
def test_anything_else_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError, match=r"^write a limit as .*30/minute$"):
        parse_limit(text)


def test_units_divide_each_other() -> None:
    """That a limit is unreachable beside another is worked out by whole windows."""
    assert all(longer % shorter == 0 for shorter, longer in pairwise(sorted(UNITS.values())))
