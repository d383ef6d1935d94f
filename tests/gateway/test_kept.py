"""What is kept: read once however many ask, renewed ahead, paused after a failure, last good for a bounded time."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from gateway.kept import SWEEP_SECONDS, DownError, GoneError, Kept, Lifetime
from tests.gateway.conftest import at_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Clock

RENEW, STALE, GOOD, PAUSE = 60.0, 90.0, 600.0, 5.0
FAR = 1e9


@dataclass
class Elsewhere:
    """Where values are read. Each read brings another value, or whatever ``fails`` says, once it may ``go_on``."""

    reads: list[str] = field(default_factory=list)
    fails: BaseException | None = None
    value: str | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.go_on.set()

    def read(self, key: str, _deadline: float) -> str:
        self.reads.append(key)
        number = len(self.reads)
        self.begun.set()
        assert self.go_on.wait(60)
        if self.fails is not None:
            raise self.fails
        return self.value or f"{key} {number}"


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


def on_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work).start()


@pytest.fixture(params=["the call reads", "a thread reads"])
def kept(request: pytest.FixtureRequest, elsewhere: Elsewhere, clock: Clock) -> Kept[str]:
    """The same contract holds for both ways to read."""
    lifetime = Lifetime(RENEW, STALE, GOOD)
    if request.param == "the call reads":
        return Kept(elsewhere.read, lambda _: lifetime, pause=PAUSE, clock=clock)
    return Kept(elsewhere.read, lambda _: lifetime, pause=PAUSE, clock=clock, run=on_a_thread)


def idle(kept: Kept[str]) -> None:
    """Wait until nothing is being read."""
    for reading in list(kept._reading.values()):
        assert reading.wait(60)


def failure(kept: Kept[str], key: str = "a", deadline: float = FAR) -> tuple[type[DownError], str]:
    with pytest.raises(DownError) as caught:
        kept.get(key, deadline)
    return caught.type, str(caught.value)


# ---------------------------------------------------------------- one read


def test_fifty_who_ask_at_once_cost_one_read(kept: Kept[str], elsewhere: Elsewhere) -> None:
    elsewhere.go_on.clear()
    threading.Timer(0.2, elsewhere.go_on.set).start()
    assert at_once(50, lambda _: kept.get("a", FAR)) == ["a 1"] * 50
    assert elsewhere.reads == ["a"]


def test_fifty_who_find_it_stale_cost_one_read(kept: Kept[str], elsewhere: Elsewhere, clock: Clock) -> None:
    kept.get("a", FAR)
    clock.tick(STALE)
    elsewhere.go_on.clear()
    threading.Timer(0.2, elsewhere.go_on.set).start()
    assert at_once(50, lambda _: kept.get("a", FAR)) == ["a 2"] * 50


def test_each_key_has_its_own_value_and_waits_for_no_other(kept: Kept[str], elsewhere: Elsewhere) -> None:
    elsewhere.go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(kept.get, "slow", FAR)
        assert elsewhere.begun.wait(60)
        kept.put("b", "at hand", 1_000_000.0)
        assert kept.get("b", FAR) == "at hand"
        elsewhere.go_on.set()
        assert slow.result() == "slow 1"


def test_one_who_waits_does_so_until_its_deadline(kept: Kept[str], elsewhere: Elsewhere, clock: Clock) -> None:
    elsewhere.go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(kept.get, "a", FAR)
        assert elsewhere.begun.wait(60)
        began = time.monotonic()
        assert failure(kept, deadline=clock() + 0.1) == (DownError, "another call's read took too long")
        assert 0.1 <= time.monotonic() - began < 30
        elsewhere.go_on.set()
        assert first.result() == "a 1"
    assert kept.get("a", FAR) == "a 1"
    assert elsewhere.reads == ["a"]


def test_one_whose_deadline_comes_first_goes_on_with_the_last_good_value(
    kept: Kept[str], elsewhere: Elsewhere, clock: Clock
) -> None:
    kept.get("a", FAR)
    clock.tick(STALE)
    elsewhere.begun.clear()
    elsewhere.go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(kept.get, "a", FAR)
        assert elsewhere.begun.wait(60)
        assert kept.get("a", clock() + 0.05) == "a 1"
        elsewhere.go_on.set()
        assert first.result() == "a 2"


# ---------------------------------------------------------------- fresh, and renewed ahead


def test_value_is_fresh_until_it_is_to_be_renewed(kept: Kept[str], elsewhere: Elsewhere, clock: Clock) -> None:
    assert kept.get("a", FAR) == "a 1"
    clock.tick(RENEW - 0.001)
    assert kept.get("a", FAR) == "a 1"
    assert elsewhere.reads == ["a"]


def test_exactly_one_renews_ahead_while_the_others_go_on(kept: Kept[str], elsewhere: Elsewhere, clock: Clock) -> None:
    kept.get("a", FAR)
    clock.tick(RENEW)
    elsewhere.go_on.clear()
    elsewhere.begun.clear()
    with ThreadPoolExecutor(1) as pool:
        one = pool.submit(kept.get, "a", FAR)
        assert elsewhere.begun.wait(60)
        before = time.monotonic()
        assert at_once(20, lambda _: kept.get("a", FAR)) == ["a 1"] * 20
        assert time.monotonic() - before < 30
        elsewhere.go_on.set()
        assert one.result() in {"a 1", "a 2"}
    idle(kept)
    assert kept.get("a", FAR) == "a 2"
    assert elsewhere.reads == ["a", "a"]


def test_age_counts_from_when_the_read_began(elsewhere: Elsewhere, clock: Clock) -> None:
    def slow(key: str, deadline: float) -> str:
        clock.tick(10)
        return elsewhere.read(key, deadline)

    kept = Kept(slow, lambda _: Lifetime(RENEW, STALE, GOOD), pause=PAUSE, clock=clock)
    kept.get("a", FAR)
    clock.tick(RENEW - 10)
    assert kept.get("a", FAR) == "a 2"


def test_read_that_takes_longer_than_its_value_lasts_is_made_once_a_call(elsewhere: Elsewhere, clock: Clock) -> None:
    def slow(key: str, deadline: float) -> str:
        clock.tick(STALE)
        return elsewhere.read(key, deadline)

    kept = Kept(slow, lambda _: Lifetime(RENEW, STALE, GOOD), pause=PAUSE, clock=clock)
    assert [kept.get("a", FAR) for _ in range(2)] == ["a 1", "a 2"]


def test_value_says_itself_how_long_it_lasts(elsewhere: Elsewhere, clock: Clock) -> None:
    def lifetime(value: str) -> Lifetime:
        ends = 10.0 if value.startswith("short") else 100.0
        return Lifetime(ends, ends, ends)

    kept = Kept(elsewhere.read, lifetime, pause=PAUSE, clock=clock)
    for key in ("short", "long"):
        kept.get(key, FAR)
    clock.tick(10)
    assert [kept.get(key, FAR) for key in ("short", "long")] == ["short 3", "long 2"]


def test_read_that_began_before_a_long_standstill_is_not_new_enough(
    kept: Kept[str], elsewhere: Elsewhere, clock: Clock
) -> None:
    elsewhere.go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(kept.get, "a", FAR)
        assert elsewhere.begun.wait(60)
        clock.tick(STALE)
        after = pool.submit(kept.get, "a", FAR)
        time.sleep(0.05)
        elsewhere.go_on.set()
        assert before.result() in {"a 1", "a 2"}
        assert after.result() == "a 2"


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("fails", [DownError("it says no"), GoneError("it says no")], ids=["down", "gone"])
def test_failure_is_shared_by_those_who_wait_and_lasts_as_long_as_the_pause(
    kept: Kept[str], elsewhere: Elsewhere, clock: Clock, fails: DownError
) -> None:
    elsewhere.fails = fails
    elsewhere.go_on.clear()
    threading.Timer(0.2, elsewhere.go_on.set).start()
    assert at_once(50, lambda _: failure(kept)) == [(type(fails), "it says no")] * 50
    assert elsewhere.reads == ["a"]
    elsewhere.fails = None
    clock.tick(PAUSE - 0.001)
    assert failure(kept) == (type(fails), "it says no")
    assert elsewhere.reads == ["a"]
    clock.tick(0.001)
    assert kept.get("a", FAR) == "a 2"


def test_pause_of_one_key_stops_no_other(kept: Kept[str], elsewhere: Elsewhere) -> None:
    elsewhere.fails = DownError("x")
    failure(kept, "a")
    elsewhere.fails = None
    assert kept.get("b", FAR) == "b 2"


@pytest.mark.parametrize("age", [RENEW, STALE], ids=["renewed ahead", "stale"])
def test_last_good_value_serves_while_reads_fail_with_one_read_a_pause(
    kept: Kept[str], elsewhere: Elsewhere, clock: Clock, age: float
) -> None:
    kept.get("a", FAR)
    elsewhere.fails = DownError("x")
    clock.tick(age)
    for reads in (2, 3):
        for _ in range(10):
            assert kept.get("a", FAR) == "a 1"
            idle(kept)
        assert len(elsewhere.reads) == reads
        clock.tick(PAUSE)
    elsewhere.fails = None
    kept.get("a", FAR)
    idle(kept)
    assert kept.get("a", FAR) == "a 4"


def test_last_good_value_serves_for_a_bounded_time(kept: Kept[str], elsewhere: Elsewhere, clock: Clock) -> None:
    kept.get("a", FAR)
    elsewhere.fails = DownError("x")
    clock.tick(GOOD - 0.001)
    assert kept.get("a", FAR) == "a 1"
    clock.tick(0.001)
    assert failure(kept) == (DownError, "x")


def test_value_that_is_gone_stops_at_once_and_does_not_come_back(
    kept: Kept[str], elsewhere: Elsewhere, clock: Clock
) -> None:
    kept.get("a", FAR)
    elsewhere.fails = GoneError("gone")
    clock.tick(STALE)
    assert failure(kept) == (GoneError, "gone")
    elsewhere.fails = DownError("down")
    clock.tick(PAUSE)
    assert failure(kept) == (DownError, "down")


def test_unforeseen_error_is_down_and_its_text_stays_inside(
    kept: Kept[str], elsewhere: Elsewhere, clock: Clock
) -> None:
    elsewhere.fails = ValueError("injected")
    assert failure(kept) == (DownError, "ValueError")
    elsewhere.fails = None
    clock.tick(PAUSE)
    assert kept.get("a", FAR) == "a 2"
    elsewhere.fails = ValueError("injected")
    clock.tick(STALE)
    assert kept.get("a", FAR) == "a 2"


def test_read_that_is_broken_off_leaves_nobody_waiting(elsewhere: Elsewhere, clock: Clock) -> None:
    kept = Kept(elsewhere.read, lambda _: Lifetime(RENEW, STALE, GOOD), pause=PAUSE, clock=clock)
    elsewhere.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kept.get("a", FAR)
    assert failure(kept) == (DownError, "the read was broken off")


def test_read_that_cannot_begin_is_a_failure(elsewhere: Elsewhere, clock: Clock) -> None:
    def none(_: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    kept = Kept(elsewhere.read, lambda _: Lifetime(RENEW, STALE, GOOD), pause=PAUSE, clock=clock, run=none)
    assert failure(kept) == (DownError, "no thread could be started")


def test_failure_keeps_nothing_of_what_was_read_alive(elsewhere: Elsewhere, clock: Clock) -> None:
    class Data:
        pass

    remembered: list[weakref.ref[Data]] = []

    def read(key: str, deadline: float) -> str:
        data = Data()
        remembered.append(weakref.ref(data))
        return elsewhere.read(key, deadline)

    kept = Kept(read, lambda _: Lifetime(RENEW, STALE, GOOD), pause=PAUSE, clock=clock)
    elsewhere.fails = DownError("x")
    failure(kept)
    elsewhere.fails = None
    gc.collect()
    assert remembered[0]() is None


def test_calls_wait_for_one_stuck_read_only_so_long_all_in_all(elsewhere: Elsewhere, clock: Clock) -> None:
    lifetime = Lifetime(RENEW, STALE, GOOD)
    kept = Kept(elsewhere.read, lambda _: lifetime, pause=PAUSE, clock=clock, run=on_a_thread, patience=15)
    kept.get("a", FAR)
    elsewhere.go_on.clear()
    clock.tick(RENEW)
    assert kept.get("a", FAR) == "a 1"  # and here the read gets stuck
    clock.tick(STALE)
    assert kept.get("a", clock() + 0.05) == "a 1"
    clock.tick(15)
    began = time.monotonic()
    assert kept.get("a", FAR) == "a 1"
    assert time.monotonic() - began < 30
    elsewhere.go_on.set()
    idle(kept)
    assert len(elsewhere.reads) == 2


# ---------------------------------------------------------------- refused


def test_refused_value_is_renewed_once_however_many_were_refused(kept: Kept[str], elsewhere: Elsewhere) -> None:
    refused = kept.get("a", FAR)
    elsewhere.go_on.clear()
    threading.Timer(0.2, elsewhere.go_on.set).start()
    assert at_once(50, lambda _: kept.renew("a", refused, FAR)) == ["a 2"] * 50
    assert kept.renew("a", refused, FAR) == kept.get("a", FAR) == "a 2"
    assert len(elsewhere.reads) == 2


def test_refused_value_that_comes_again_is_a_failure_and_pauses(
    kept: Kept[str], elsewhere: Elsewhere, clock: Clock
) -> None:
    refused = elsewhere.value = kept.get("a", FAR)
    for reads in (2, 3):
        for _ in range(5):
            with pytest.raises(DownError, match="it has not changed"):
                kept.renew("a", refused, FAR)
            assert kept.get("a", FAR) == refused
        assert len(elsewhere.reads) == reads
        clock.tick(PAUSE)


def test_last_good_value_is_no_answer_to_whom_it_failed(kept: Kept[str], elsewhere: Elsewhere) -> None:
    refused = kept.get("a", FAR)
    elsewhere.fails = DownError("x")
    with pytest.raises(DownError, match="x"):
        kept.renew("a", refused, FAR)
    assert kept.get("a", FAR) == refused


def test_dropped_value_is_read_before_it_is_used_and_used_only_if_that_fails(
    kept: Kept[str], elsewhere: Elsewhere, clock: Clock
) -> None:
    kept.drop("a", kept.get("a", FAR))
    assert kept.get("a", FAR) == "a 2"
    kept.drop("a", "a 1")  # late: it has been replaced
    assert kept.get("a", FAR) == "a 2"
    elsewhere.fails = DownError("x")
    kept.drop("a", "a 2")
    for _ in range(5):
        assert kept.get("a", FAR) == "a 2"
    assert len(elsewhere.reads) == 3


# ---------------------------------------------------------------- memory


def test_values_that_nobody_asks_for_are_forgotten_and_no_number_of_them_costs_another_read(
    kept: Kept[str], elsewhere: Elsewhere, clock: Clock
) -> None:
    for _ in range(2):
        for number in range(2000):
            kept.get(f"k{number}", FAR)
    assert len(elsewhere.reads) == 2000
    clock.tick(SWEEP_SECONDS - GOOD + 1)
    kept.get("last good", FAR)
    clock.tick(GOOD - 1)
    kept.get("a", FAR)
    assert set(kept._held) == {"last good", "a"}
    assert kept._reading == {}
