"""What every store promises of money: booked before it is sent, given back where it was booked, never spent twice."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

import pytest
from msgspec.structs import replace

from gateway.stores import Settled
from gateway.stores import memory as memory_module
from gateway.stores.firestore import Firestore
from gateway.stores.memory import Memory
from policies.idempotency import LEASE, Verdict
from policies.issuing import Progress, Stage
from policies.model import Admission
from policies.outcomes import InvoiceSeen, Reply
from policies.quota import parse_limit
from policies.refusals import ApprovalRejected, BudgetSpent, LimitReached, StoreUnavailable
from tests.gateway.conftest import admit, at_once, budget, budgeted
from tests.gateway.test_stores import (
    ANSWER,
    BUSY,
    FREED,
    REJECTED,
    SERVERS,
    STORES,
    SUCCEEDED,
    UNKNOWN,
    UNREACHED,
    WAITS,
    daily,
    outcome_of,
    reachable,
    spent,
    stripes,
)

if TYPE_CHECKING:
    from typing import Any

    from gateway.stores import Store
    from policies.model import Grant
    from tests.conftest import Clock

DAY = 86_400
HOUR = 3_600
#: When all that was booked has left the hour: it counts from a lease later on.
ROLLED = HOUR * 129 / 128 + LEASE


@pytest.fixture(params=["memory", *SERVERS])
def store(request: pytest.FixtureRequest, clock: Clock) -> Store:
    fixture, make = STORES[request.param]
    return make(clock, request.getfixturevalue(fixture) if fixture else None)


def left(store: Store, grant: Grant, customer: str | None = None) -> int | None:
    """What is left of the first budget of a call's caller, as money."""
    return next(one.remaining for one in store.left(grant.caller, (), customer) if one.kind == "budget")


def order(key: str | None, amount: int = 60, *, of: int = 100, seconds: int = HOUR) -> Grant:
    """Make a call for an invoice at Stripe that may come to ``amount``."""
    return budgeted(stripes(key), budget(of, seconds), reserve=amount)


def comes_to(total: int) -> Progress:
    return Progress(Stage.FINALIZE, id="in_1", reached=Stage.FINALIZE, seen=InvoiceSeen("draft", total=total))


# ---------------------------------------------------------------- booked, and given back


def test_call_books_what_it_may_come_to_and_gives_back_what_it_did_not_spend(store: Store) -> None:
    for key in ("a", None):
        grant = order(key, 60)
        admission = admit(store, grant)
        assert left(store, grant) == (40 if key else 30)
        assert store.settle(grant, admission, spent(10), ANSWER) is Settled.WRITTEN
        assert left(store, grant) == (90 if key else 80)


@pytest.mark.parametrize("key", ["a", None])
@pytest.mark.parametrize(
    ("reply", "stays"),
    [
        (spent(60), True),
        (SUCCEEDED, True),  # whose sum nobody could read
        (UNKNOWN, True),
        (REJECTED, True),  # in words that do not prove that nothing was created
        (replace(REJECTED, refusal=ApprovalRejected()), False),
        (FREED, False),
        (BUSY, False),
        (UNREACHED, False),
        (None, False),  # never sent
    ],
)
def test_money_stays_where_there_may_be_an_invoice_and_comes_back_where_there_is_none(
    store: Store, reply: Reply | None, key: str | None, *, stays: bool
) -> None:
    grant = order(key)
    admission = admit(store, grant)
    if reply is None:
        store.release(grant, admission)
    else:
        assert store.settle(grant, admission, reply, ANSWER) is Settled.WRITTEN
    assert left(store, grant) == (40 if stays else 100)


def test_exactly_what_fits_is_admitted_of_fifty_at_once(store: Store) -> None:
    results = at_once(50, lambda number: outcome_of(store, order(f"order-{number}", 7)))
    assert sum(isinstance(result, Admission) for result in results) <= 14
    more = [outcome_of(store, order(f"later-{number}", 7)) for number in range(20)]  # some may have met contention
    assert sum(isinstance(result, Admission) for result in [*results, *more]) == 14
    assert left(store, order(None)) == 2


def test_refusal_by_a_budget_books_nothing_anywhere_and_claims_no_key(store: Store) -> None:
    wide, narrow = budget(1000), budget(50, HOUR)
    grant = budgeted(stripes("a"), wide, narrow, reserve=60)
    with pytest.raises(BudgetSpent) as caught:
        admit(store, grant)
    assert caught.value.retry_after is None
    assert [one.remaining for one in store.left(grant.caller, ())][-2:] == [1000, 50]
    assert grant.ledger_key is not None
    assert store.state_of(grant.ledger_key) is None


def test_what_no_longer_counts_is_given_back_nowhere(store: Store, clock: Clock) -> None:
    slow = order("a")
    admission = admit(store, slow)
    clock.tick(ROLLED)
    admit(store, order("b", 50))
    store.settle(slow, admission, FREED, ANSWER)
    assert left(store, slow) == 50


# ---------------------------------------------------------------- the key holds it


def test_whoever_comes_back_moves_what_the_key_holds_and_books_nothing_again(store: Store, clock: Clock) -> None:
    """Ledger rule 20."""
    grant = order("a")
    for _ in range(5):
        store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
        assert left(store, grant) == 40
        clock.tick(HOUR / 2)  # so it counts for an hour from the last try on
    store.settle(grant, admit(store, grant), spent(20), ANSWER)
    assert left(store, grant) == 80


def test_call_that_was_killed_holds_its_money_for_one_window_and_whoever_comes_back_goes_on(
    store: Store, clock: Clock
) -> None:
    grant = order("a")
    admit(store, grant)
    clock.tick(LEASE)
    again = admit(store, grant)
    assert left(store, grant) == 40
    store.settle(grant, again, spent(60), ANSWER)
    killed = order("b", 40)
    admit(store, killed)
    assert left(store, grant) == 0
    clock.tick(ROLLED)
    assert left(store, grant) == 100


def test_what_has_left_the_window_is_judged_anew(store: Store, clock: Clock) -> None:
    """Ledger rule 21."""
    grant, other = order("a"), order("b", 50)
    store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
    clock.tick(ROLLED)
    store.settle(other, admit(store, other), spent(50), ANSWER)
    with pytest.raises(BudgetSpent) as caught:
        admit(store, grant)
    assert caught.value.told["left"] == 50
    assert left(store, grant) == 50
    clock.tick(ROLLED)
    admit(store, grant)
    assert left(store, grant) == 40


def test_what_is_still_held_is_enough_though_the_budget_was_lowered(store: Store, clock: Clock) -> None:
    grant = order("a")
    store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
    lowered = order("a", of=30)
    again = admit(store, lowered)
    assert left(store, lowered) == 0
    assert store.settle(lowered, again, spent(60), ANSWER) is Settled.WRITTEN
    assert isinstance(outcome_of(store, order("b", 1, of=30)), BudgetSpent)


def test_money_in_a_budget_that_is_gone_is_given_back_there(store: Store) -> None:
    grant = order("a")
    store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
    daily_now = budgeted(stripes("a"), budget(500), reserve=60)
    again = admit(store, daily_now)
    assert left(store, grant) == 100
    assert left(store, daily_now) == 440
    without = budgeted(stripes("a"))
    store.settle(daily_now, again, UNKNOWN, ANSWER)
    admit(store, without)
    assert left(store, daily_now) == 500


def test_approval_is_asked_about_whatever_is_left_and_what_it_spent_late_raises_an_alarm(
    store: Store, clock: Clock
) -> None:
    grant, other = order("a"), order("b", 70)
    store.settle(grant, admit(store, grant), WAITS, ANSWER)
    clock.tick(ROLLED)
    store.settle(other, admit(store, other), spent(70), ANSWER)
    again = admit(store, grant)  # it sends nothing
    assert left(store, grant) == 30
    assert store.settle(grant, again, spent(60), ANSWER) is Settled.OVER
    assert left(store, grant) == 0


def test_refusal_of_a_call_that_holds_enough_names_what_is_full_and_no_budget(store: Store, clock: Clock) -> None:
    """Of a lowered budget, what the key still holds is enough: its wait and its sum are no reason for the refusal."""
    grant = order("a")
    store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
    lowered = budgeted(stripes("a"), budget(30, HOUR), budget(50, DAY), reserve=60)
    told = outcome_of(store, lowered)
    assert isinstance(told, BudgetSpent)
    assert (told.told["window"], told.told["limit"]) == (DAY, 50)


def test_limit_is_named_to_a_call_that_holds_enough_of_a_lowered_budget(store: Store) -> None:
    grant, lowered = (
        replace(one, caller=replace(one.caller, limits=(parse_limit("1/minute"),)))
        for one in (order("a"), order("a", of=30))
    )
    store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
    assert isinstance(outcome_of(store, lowered), LimitReached)


# ---------------------------------------------------------------- before it is finalized


@pytest.mark.parametrize(("total", "then"), [(50, 40), (60, 40), (61, 39), (100, 0)])
def test_total_is_booked_before_an_invoice_is_finalized(store: Store, clock: Clock, total: int, then: int) -> None:
    """Ledger rule 22."""
    grant = order("a")
    admission = admit(store, grant)
    clock.tick(10)
    further = store.advance(grant, admission, comes_to(total))
    assert further is not None
    assert left(store, grant) == then
    assert store.settle(grant, further, spent(total), ANSWER) is Settled.WRITTEN
    assert left(store, grant) == 100 - total


def test_total_without_room_is_refused_and_all_stays_as_it_was(store: Store) -> None:
    grant, other = order("a"), order("b", 30)
    admission = admit(store, grant)
    admit(store, other)
    with pytest.raises(BudgetSpent) as caught:
        store.advance(grant, admission, comes_to(71))
    assert caught.value.told["left"] == 70
    assert left(store, grant) == 10
    store.settle(grant, admission, replace(FREED, generation=1, fresh=True), ANSWER)
    assert left(store, grant) == 70
    assert admit(store, grant).replay is None


def test_money_that_was_raised_belongs_to_the_key_whoever_was_killed(store: Store, clock: Clock) -> None:
    grant = order("a")
    store.advance(grant, admit(store, grant), comes_to(80))
    clock.tick(LEASE)
    again = admit(store, grant)
    assert left(store, grant) == 20
    further = store.advance(grant, again, comes_to(80))
    assert further is not None
    assert left(store, grant) == 20
    store.settle(grant, further, spent(80), ANSWER)
    assert left(store, grant) == 20


def test_total_is_booked_once_though_the_reply_to_it_was_lost(store: Store, clock: Clock) -> None:
    """A budget is new, and the approval that the call asks about moved nothing at admission."""
    grant, other = order("a"), order("b", 20)
    store.settle(grant, admit(store, grant), WAITS, ANSWER)
    daily_now = budgeted(stripes("a"), budget(500), budget(100, HOUR), reserve=60)
    again = admit(store, daily_now)
    clock.tick(1)
    for _ in range(2):  # the store's reply to the first was lost
        assert store.advance(daily_now, again, comes_to(70)) is not None
    assert left(store, daily_now) == 430
    store.settle(other, admit(store, budgeted(stripes("b"), budget(500), reserve=20)), UNKNOWN, ANSWER)
    # The call stops with what it knew before that.
    store.settle(daily_now, again, UNKNOWN, ANSWER)
    assert left(store, daily_now) == 410
    clock.tick(LEASE)
    ended = admit(store, daily_now)
    assert left(store, daily_now) == 410
    store.settle(daily_now, ended, spent(10), ANSWER)
    assert left(store, daily_now) == 470


def test_approved_draft_is_judged_before_it_is_finalized(store: Store, clock: Clock) -> None:
    grant, other = order("a"), order("b", 70)
    store.settle(grant, admit(store, grant), WAITS, ANSWER)
    clock.tick(ROLLED)
    admit(store, other)
    again = admit(store, grant)
    with pytest.raises(BudgetSpent):
        store.advance(grant, again, comes_to(60))
    assert left(store, grant) == 30


# ---------------------------------------------------------------- several, and for each customer


def of_customer(customer: str, amount: int, key: str | None = None) -> Grant:
    grant = replace(stripes(key), parameters={"customer": customer})
    return budgeted(grant, budget(50, HOUR, each="customer"), budget(100, HOUR), reserve=amount)


def test_each_customer_has_a_budget_of_its_own_and_all_have_one_together(store: Store) -> None:
    for customer in ("cus_1", "cus_2"):
        admit(store, of_customer(customer, 40))
    told = outcome_of(store, of_customer("cus_1", 11))
    assert isinstance(told, BudgetSpent)
    assert (told.told["each"], told.told["left"]) == ("customer", 10)
    admit(store, of_customer("cus_1", 10))
    whole = outcome_of(store, of_customer("cus_3", 11))
    assert isinstance(whole, BudgetSpent)
    assert "each" not in whole.told
    some = of_customer("cus_1", 1)
    assert [left(store, some, customer) for customer in ("cus_1", "cus_2", "cus_3", None)] == [0, 10, 50, None]


def test_customer_of_a_refused_call_leaves_nothing_in_memory(clock: Clock) -> None:
    store = Memory(clock)
    admit(store, of_customer("cus_1", 50))
    before = set(store._windows)
    for number in range(20):
        assert isinstance(outcome_of(store, of_customer(f"cus_x{number}", 51)), BudgetSpent)
        assert isinstance(store.peek(of_customer(f"cus_y{number}", 1), "p"), Admission)
    assert set(store._windows) == before


def test_customers_with_nothing_counted_leave_the_memory(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Memory(clock)
    for number in range(50):
        grant = of_customer(f"cus_{number}", 1)
        admission = admit(store, grant)
        if number % 2:
            store.release(grant, admission)
    assert sum(":customer:" in name for name in store._windows) == 25
    clock.tick(ROLLED)
    admit(store, of_customer("cus_new", 1))
    assert sum(":customer:" in name for name in store._windows) == 1


def test_customers_are_bounded_and_one_too_many_is_refused(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "MOST_EACH", 10)
    store = Memory(clock)
    for number in range(10):
        admit(store, of_customer(f"cus_{number}", 1))
    with pytest.raises(StoreUnavailable, match="store-unavailable"):
        admit(store, of_customer("cus_10", 1))
    with pytest.raises(StoreUnavailable):
        store.peek(of_customer("cus_10", 1), "p")
    admit(store, of_customer("cus_9", 1))
    clock.tick(ROLLED)
    admit(store, of_customer("cus_10", 1))


# ---------------------------------------------------------------- an operator's word


@reachable
def test_operators_word_gives_the_money_back_and_taken_back_books_it_again(store: Any, clock: Clock) -> None:
    grant = order("a", seconds=DAY)
    store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
    clock.tick(LEASE)
    key = grant.ledger_key
    assert store.resolve(key, None, "Ann: not created") is Verdict.RESOLVED
    assert left(store, grant) == 100
    assert store.reopen(key) is Verdict.REOPENED
    assert left(store, grant) == 40
    assert store.resolve(key, ANSWER, "Ann: created") is Verdict.RESOLVED
    assert left(store, grant) == 40
    clock.tick(ROLLED * 24)
    assert left(store, grant) == 100


@reachable
def test_key_whose_decision_is_taken_back_is_judged_anew_for_the_room_that_others_took(
    store: Any, clock: Clock
) -> None:
    grant, other = order("a"), order("b", 70)
    store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
    clock.tick(LEASE)
    store.resolve(grant.ledger_key, None, "Ann: not created")
    store.settle(other, admit(store, other), spent(70), ANSWER)
    assert store.reopen(grant.ledger_key) is Verdict.REOPENED
    assert left(store, grant) == 0  # there may be an invoice of 60 after all
    told = outcome_of(store, grant)
    assert isinstance(told, BudgetSpent)
    assert told.told["left"] == 30
    clock.tick(ROLLED)
    store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
    assert left(store, grant) == 40
    again = admit(store, order("a", of=30))  # what it was judged for is enough from then on
    assert store.settle(grant, again, spent(60), ANSWER) is Settled.WRITTEN


# ---------------------------------------------------------------- whatever happens


class Held(NamedTuple):
    grant: Grant
    admission: Admission


def most_in_any_window(told: list[tuple[float, int]], seconds: int) -> int:
    return max((sum(sum_ for at, sum_ in told if begin <= at < begin + seconds) for begin, _ in told), default=0)


@pytest.mark.parametrize("seed", range(8))
def test_no_window_ever_has_more_spent_than_its_budget_and_nothing_leaks(store: Store, clock: Clock, seed: int) -> None:
    """Calls are admitted, go on, are killed, come back, are settled, in random order at random times.

    An approval that is told late may exceed a budget; it is left out here, and raises an alarm.
    """
    lots, limit = random.Random(seed), 100
    told: list[tuple[float, int]] = []
    open_: dict[str, Held] = {}
    known: list[str] = []
    for step in range(60 if isinstance(store, Firestore) else 600):
        what = lots.choice(["admit"] * 5 + ["settle"] * 4 + ["advance"] * 2 + ["killed", "release"])
        if what == "admit":
            key = lots.choice([f"order-{step}"] * 2 + known[-6:])
            known.append(key)
            grant = order(key, lots.choice([1, 10, 20, 33, 60]), of=limit)
            admission = outcome_of(store, grant)
            if isinstance(admission, Admission) and admission.replay is None:
                open_[key] = Held(grant, admission)
        elif open_:
            grant, admission = open_.pop(lots.choice([*open_]))
            assert admission.entry is not None
            assert admission.entry.reserved is not None
            most = admission.entry.reserved.amount
            match what:
                case "release":
                    store.release(grant, admission)
                case "advance":
                    open_[f"advanced-{step}"] = goes_on(store, grant, admission, lots.randint(1, 70))
                case "settle":
                    reply = lots.choice([spent(most), spent(lots.randint(0, most)), UNKNOWN, FREED, BUSY, UNREACHED])
                    if store.settle(grant, admission, reply, ANSWER) and reply.spent is not None:
                        told.append((clock(), reply.spent))
        clock.tick(lots.choice([0] * 8 + [0.1] * 4 + [3, 28.125, LEASE, 400, 1800]))
        # Whoever sent the others is gone, or their sends are not answered in time.
        open_ = {key: one for key, one in open_.items() if clock() - one.admission.taken < LEASE}
    assert most_in_any_window(told, HOUR) <= limit
    if not isinstance(store, Firestore):  # of which there are too few
        assert sum(sum_ for _, sum_ in told) > limit
    clock.tick(ROLLED)
    assert left(store, order(None, of=limit)) == limit
    admit(store, order("last", limit, of=limit))


def goes_on(store: Store, grant: Grant, admission: Admission, total: int) -> Held:
    try:
        return Held(grant, store.advance(grant, admission, comes_to(total)) or admission)
    except BudgetSpent:
        return Held(grant, admission)


def test_concurrent_calls_of_one_key_and_others_never_book_twice(store: Store, clock: Clock) -> None:
    grant = order("a", 30)
    store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
    results = at_once(12, lambda number: outcome_of(store, grant if number % 2 else order(f"o{number}", 10)))
    others = sum(isinstance(one, Admission) for one in results[::2])
    assert left(store, grant) == 100 - 30 - 10 * others
    assert others <= 7


def test_plain_daily_budget_of_a_call_without_a_key(store: Store) -> None:
    grant = daily(100, reserve=70)
    admission = admit(store, grant)
    assert isinstance(outcome_of(store, grant), BudgetSpent)
    store.settle(grant, admission, spent(20), ANSWER)
    admit(store, grant)
    assert left(store, grant) == 10
