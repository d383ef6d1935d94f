"""What every store promises. A store needs only a constructor in ``STORES`` to be held to it."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest
from msgspec.structs import replace

from gateway.stores.firestore import LEDGER, WINDOWS, Firestore
from gateway.stores.memory import Memory
from gateway.stores.redis import PREFIX, Redis
from policies import idempotency
from policies.idempotency import LEASE, RETENTION, Verdict
from policies.issuing import Progress, Stage
from policies.model import Admission, Answer, Entry, Outcome, State
from policies.operations import OPERATIONS
from policies.outcomes import Reply
from policies.quota import parse_limit
from policies.refusals import (
    AwaitingApproval,
    BudgetSpent,
    CeilingReached,
    KeyInUse,
    KeyReused,
    KeyUsedElsewhere,
    LimitReached,
    OutcomeStillUnknown,
    OutcomeUnknown,
    QuotaRefusal,
    Refusal,
    StoreUnavailable,
    UpstreamBusy,
    UpstreamRejected,
    UpstreamUnreachable,
)
from tests.conftest import CUSTOMER, OTHER_KEY, Clock, policy
from tests.gateway.conftest import admit, at_once, budget, budgeted, granted, in_doubt

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.stores import Shared, Store
    from policies.model import Grant

#: By name: the fixture that prepares a store, if any, and the store on the clock of the test, empty.
STORES: dict[str, tuple[str | None, Callable[..., Store]]] = {
    "memory": (None, lambda clock, _: Memory(clock)),
    "redis": ("redis_url", lambda clock, url: Redis(url, clock)),
    # An emulator is no measure of Firestore's speed.
    "firestore": ("firestore_url", lambda clock, url: Firestore(url, clock, seconds=10)),
}
#: Those that a server of their own stands behind.
SERVERS = [pytest.param(name, marks=pytest.mark.stores) for name in STORES if name != "memory"]

ANSWER = Answer(200, '{"id":"in_1","description":"é  kept as it is"}'.encode())
SUCCEEDED = Reply(Outcome.SUCCEEDED, answer={"id": "in_1"})
REJECTED = Reply(Outcome.REJECTED, refusal=UpstreamRejected(402, "No.", code=None, parameter=None))
FREED = Reply(Outcome.FREED, refusal=UpstreamRejected(400, "No.", code=None, parameter=None))
WAITS = Reply(Outcome.UNKNOWN, refusal=AwaitingApproval(retry_after=300), approval="areq_1")
UNKNOWN = Reply(Outcome.UNKNOWN, refusal=OutcomeUnknown())
BUSY = Reply(Outcome.RELEASED, refusal=UpstreamBusy(retry_after=7))
UNREACHED = Reply(Outcome.RELEASED, refusal=UpstreamUnreachable(retry_after=5), reached=False)


@pytest.fixture(params=["memory", *SERVERS])
def store(request: pytest.FixtureRequest, clock: Clock) -> Store:
    fixture, make = STORES[request.param]
    return make(clock, request.getfixturevalue(fixture) if fixture else None)


def limited(limits: str, *, ceiling: str = "100000/second", key: str | None = None, body: str = "customer=c") -> Grant:
    """Make a grant under these limits, also ones that a policy document may not put together."""
    grant = granted(body=body, idempotency_key=key)
    connection = replace(grant.entitlement.connection, ceiling=parse_limit(ceiling))
    return replace(
        grant,
        caller=replace(grant.caller, limits=tuple(map(parse_limit, limits.split(", ")))),
        entitlement=replace(grant.entitlement, connection=connection),
    )


def keyed(key: str = "order-1", *, body: str = "customer=cus_1", limits: str = "1000/minute") -> Grant:
    return limited(limits, key=key, body=body)


def used(store: Store, grant: Grant) -> int:
    """How many calls of its only limit a caller has used: what admitting one more leaves, undone again."""
    admission = admit(store, grant)
    store.release(grant, admission)
    (standing,) = admission.standings
    return standing.limit.calls - standing.remaining - 1


def outcome_of(store: Store, grant: Grant) -> Admission | Refusal:
    try:
        return admit(store, grant)
    except Refusal as refusal:
        return refusal


def count(results: list[Admission | Refusal], kind: type) -> int:
    return sum(type(result) is kind for result in results)


# ---------------------------------------------------------------- limits


def test_exactly_the_limit_is_admitted_of_fifty_at_once(store: Store) -> None:
    grant = limited("20/minute")
    results = at_once(50, lambda _: outcome_of(store, grant))
    assert count(results, LimitReached) == 30
    assert len({result.owner for result in results if not isinstance(result, Refusal)}) == 20


def test_every_limit_of_a_caller_holds(store: Store, clock: Clock) -> None:
    grant = limited("3/second, 5/minute")
    admitted = []
    for _ in range(4):
        results = [outcome_of(store, grant) for _ in range(4)]
        admitted.append(sum(not isinstance(result, Refusal) for result in results))
        clock.tick(2)
    assert admitted == [3, 2, 0, 0]


def test_limit_holds_in_every_window_however_calls_are_spread(store: Store, clock: Clock) -> None:
    grant = limited("10/minute")
    admitted: list[float] = []
    for _ in range(1000):
        if not isinstance(outcome_of(store, grant), Refusal):
            admitted.append(clock())
        clock.tick(0.37)
    most = max(sum(begin <= moment < begin + 60 for moment in admitted) for begin in admitted)
    assert most == 10
    # A bucket of a 128th of the window is all that may be lost.
    assert len(admitted) >= int(370 / 60 / (1 + 2 / 128) * 10)


def test_ceiling_holds_over_all_callers_of_a_connection(store: Store) -> None:
    grant = limited("1000/minute", ceiling="20/second")
    grants = [grant, replace(grant, caller=replace(grant.caller, id="other", first="other"))]
    results = at_once(50, lambda number: outcome_of(store, grants[number % 2]))
    assert count(results, CeilingReached) == 30


def test_callers_do_not_use_up_each_others_limits(store: Store) -> None:
    grant = limited("1/minute")
    admit(store, grant)
    assert isinstance(outcome_of(store, grant), LimitReached)
    admit(store, replace(grant, caller=replace(grant.caller, id="other", first="other")))


def test_refusal_by_one_limit_uses_up_nothing_of_the_others(store: Store, clock: Clock) -> None:
    grant = limited("1/second, 3/minute")
    assert not isinstance(outcome_of(store, grant), Refusal)
    for _ in range(10):
        assert isinstance(outcome_of(store, grant), LimitReached)
    clock.tick(2)
    assert [standing.remaining for standing in admit(store, grant).standings] == [0, 1]


def test_refusal_by_the_ceiling_uses_up_nothing_of_the_limits(store: Store, clock: Clock) -> None:
    grant = limited("10/minute", ceiling="1/second")
    admit(store, grant)
    for _ in range(5):
        assert isinstance(outcome_of(store, grant), CeilingReached)
    clock.tick(2)
    assert admit(store, grant).standings[0].remaining == 8


def test_refusal_by_a_limit_claims_no_key(store: Store, clock: Clock) -> None:
    grant = keyed(limits="1/second")
    admit(store, limited("1/second"))
    with pytest.raises(LimitReached):
        admit(store, grant)
    clock.tick(2)
    assert admit(store, grant).replay is None


@pytest.mark.parametrize("limit", ["1/second", "3/minute", "7/hour", "2/day"])
@pytest.mark.parametrize("offset", [0.0, 0.4, 17.123])
def test_retry_after_is_when_a_call_passes(store: Store, clock: Clock, limit: str, offset: float) -> None:
    clock.tick(offset)
    grant = limited(limit)
    while not isinstance(refusal := outcome_of(store, grant), Refusal):
        clock.tick(0.01)
    assert isinstance(refusal, LimitReached)
    assert refusal.retry_after is not None
    clock.tick(refusal.retry_after - 1)
    assert isinstance(outcome_of(store, grant), LimitReached)
    clock.tick(1)
    assert not isinstance(outcome_of(store, grant), Refusal)


def test_retry_after_of_several_full_limits_satisfies_all(store: Store, clock: Clock) -> None:
    grant = limited("1/second, 3/minute")
    for _ in range(3):
        clock.tick(2)
        admit(store, grant)
    with pytest.raises(LimitReached) as caught:
        admit(store, grant)
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 50
    clock.tick(caught.value.retry_after)
    admit(store, grant)


def test_retry_after_of_the_ceiling_is_when_a_call_passes(store: Store, clock: Clock) -> None:
    grant = limited("1000/minute", ceiling="2/hour")
    for _ in range(2):
        admit(store, grant)
    with pytest.raises(CeilingReached) as caught:
        admit(store, grant)
    assert caught.value.retry_after is not None
    clock.tick(caught.value.retry_after)
    admit(store, grant)


@pytest.mark.parametrize(
    ("ceiling", "amount", "refusal", "words"),
    [
        ("9/hour", 9, LimitReached, "3 calls a minute"),
        ("3/hour", 9, CeilingReached, "This connection is busy"),
        ("3/hour", 6, BudgetSpent, "0.06 USD a day"),
    ],
)
def test_of_all_that_is_full_what_stays_so_longest_is_told(  # noqa: PLR0917 - the case, and the fixtures
    store: Store, clock: Clock, ceiling: str, amount: int, refusal: type[QuotaRefusal], words: str
) -> None:
    """A call at the time that is told is admitted, and not refused by the next limit."""
    grant = limited("1/second, 3/minute", ceiling=ceiling)
    grant = budgeted(grant, budget(amount), reserve=2)
    for _ in range(3):
        clock.tick(2)
        spend(store, grant, 2)
    told = outcome_of(store, grant)
    assert isinstance(told, refusal)
    assert words in told.detail
    assert told.retry_after is not None
    clock.tick(told.retry_after - 30)
    assert isinstance(outcome_of(store, grant), Refusal)
    clock.tick(30)
    assert not isinstance(outcome_of(store, grant), Refusal)


def test_numbers_of_a_limit_and_of_a_budget_are_told_and_none_of_a_ceiling(store: Store) -> None:
    """A ceiling that is full is full of other callers' calls, which are nobody's business."""
    often = limited("1/minute")
    admit(store, often)
    full = outcome_of(store, often)
    assert isinstance(full, LimitReached)
    assert full.told == {"limit": 1, "window": 60, "left": 0}
    spend(store, daily(5000), 9000)
    spent = outcome_of(store, daily(5000))
    assert isinstance(spent, BudgetSpent)
    assert spent.told == {"limit": 5000, "currency": "usd", "window": 86400, "left": 0, "asked": 1}
    assert "50.00 USD a day" in spent.detail
    busy = limited("1000/minute", ceiling="1/hour")
    admit(store, busy)
    over = outcome_of(store, busy)
    assert isinstance(over, CeilingReached)
    assert over.told == {}
    assert "1/hour" not in over.detail
    assert "1 call" not in over.detail


def test_standings_say_what_is_left_of_each_limit_and_when_there_is_more(store: Store, clock: Clock) -> None:
    grant = limited("3/second, 30/minute")
    admit(store, grant)
    clock.tick(0.5)
    first, second = admit(store, grant).standings
    assert (first.limit.text, first.remaining, first.reset) == ("3/second", 1, 1)
    assert (second.limit.text, second.remaining, second.reset) == ("30/minute", 28, 60)
    clock.tick(second.reset)
    assert [standing.remaining for standing in admit(store, grant).standings] == [2, 28]


def test_refusals_carry_the_standings_too(store: Store) -> None:
    grant = limited("1/minute")
    admit(store, grant)
    with pytest.raises(LimitReached) as caught:
        admit(store, grant)
    (standing,) = caught.value.standings
    assert (standing.remaining, standing.reset) == (0, caught.value.retry_after)
    assert "1 call a minute" in caught.value.detail


# ---------------------------------------------------------------- what a call uses up


def test_release_gives_everything_back_and_frees_the_key(store: Store) -> None:
    grant = keyed(limits="5/minute")
    before = used(store, limited("5/minute"))
    store.release(grant, admit(store, grant))
    assert used(store, limited("5/minute")) == before == 0
    assert admit(store, grant).replay is None


def test_release_gives_the_ceiling_back(store: Store) -> None:
    grant = limited("100/minute", ceiling="1/minute")
    for _ in range(5):
        store.release(grant, admit(store, grant))
    admit(store, grant)
    with pytest.raises(CeilingReached):
        admit(store, grant)


def test_release_after_the_window_has_passed_gives_nothing_of_the_next(store: Store, clock: Clock) -> None:
    grant = limited("2/second")
    old = admit(store, grant)
    clock.tick(5)
    admit(store, grant)
    store.release(grant, old)
    admit(store, grant)
    with pytest.raises(LimitReached):
        admit(store, grant)


def test_call_that_did_not_reach_the_upstream_is_given_back_and_may_be_sent_again(store: Store) -> None:
    grant = keyed(limits="5/minute")
    assert store.settle(grant, admit(store, grant), UNREACHED, ANSWER)
    assert used(store, limited("5/minute")) == 0
    assert admit(store, grant).replay is None


@pytest.mark.parametrize("reply", [SUCCEEDED, REJECTED, UNKNOWN, BUSY], ids=lambda reply: str(reply.outcome))
def test_call_that_reached_the_upstream_counts_whatever_came_back(store: Store, reply: Reply) -> None:
    for grant in (keyed(limits="5/minute"), limited("5/minute")):
        store.settle(grant, admit(store, grant), reply, ANSWER)
    assert used(store, limited("5/minute")) == 2


# ---------------------------------------------------------------- the ledger


def test_one_of_fifty_with_the_same_key_is_admitted_and_the_others_told_to_wait(store: Store) -> None:
    grant = keyed(limits="100/minute")
    results = at_once(50, lambda _: outcome_of(store, grant))
    assert count(results, KeyInUse) == 49
    assert all(result.retry_after == 1 for result in results if isinstance(result, KeyInUse))
    assert used(store, limited("100/minute")) == 1


def test_different_keys_run_side_by_side(store: Store) -> None:
    results = at_once(50, lambda number: outcome_of(store, keyed(f"order-{number}")))
    assert not any(isinstance(result, Refusal) for result in results)


@pytest.mark.parametrize("reply", [None, SUCCEEDED, REJECTED, UNKNOWN], ids=lambda r: str(r and r.outcome))
def test_key_with_other_parameters_is_refused_in_every_state(store: Store, reply: Reply | None) -> None:
    grant = keyed()
    admission = admit(store, grant)
    if reply is not None:
        store.settle(grant, admission, reply, ANSWER)
    with pytest.raises(KeyReused if reply is not None else KeyInUse):
        admit(store, keyed(body="customer=cus_2"))
    assert used(store, limited("1000/minute")) == 1


def test_id_that_is_not_granted_any_more_is_not_told_to_other_parameters(store: Store) -> None:
    """Also where an operator named it: what is kept may hold more than the policy grants today."""
    grant = keyed()
    store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
    asked = keyed(body="customer=cus_2")
    with pytest.raises(KeyReused) as told:
        admit(store, asked)
    assert "went through: invoice in_1." in told.value.detail
    less = {name: inner for name, inner in asked.entitlement.response.items() if name != "id"}
    with pytest.raises(KeyReused) as silent:
        admit(store, replace(asked, entitlement=replace(asked.entitlement, response=less)))
    assert "went through: invoice." in silent.value.detail


def test_same_key_of_another_caller_is_another_key(store: Store) -> None:
    grant = keyed()
    store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
    other = granted(key=OTHER_KEY, account="stripe-2", idempotency_key="order-1")
    assert admit(store, other).replay is None


@pytest.mark.parametrize("reply", [SUCCEEDED, REJECTED], ids=lambda reply: str(reply.outcome))
def test_answer_is_repeated_byte_for_byte_and_uses_up_nothing(store: Store, reply: Reply) -> None:
    grant = keyed(limits="1/minute")
    assert store.settle(grant, admit(store, grant), reply, ANSWER)
    for _ in range(5):  # although the limit is used up
        admission = admit(store, grant)
        assert admission.replay == ANSWER
        assert [standing.remaining for standing in admission.standings] == [0]


def test_replay_is_not_taken_for_a_claim_when_released(store: Store) -> None:
    grant = keyed()
    store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
    for outcome in (SUCCEEDED, UNKNOWN, BUSY):
        store.settle(grant, replace(admit(store, grant), owner="somebody else"), outcome, Answer(500, b""))
    assert admit(store, grant).replay == ANSWER


def test_unknown_outcome_is_never_sent_again(store: Store, clock: Clock) -> None:
    grant = keyed()
    assert store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)
    for seconds in (0, LEASE, 3600, 40 * 3600):
        clock.tick(seconds)
        with pytest.raises(OutcomeStillUnknown):
            admit(store, grant)


def test_released_key_runs_fresh(store: Store) -> None:
    grant = keyed()
    store.settle(grant, admit(store, grant), BUSY, ANSWER)
    admission = admit(store, grant)
    assert admission.replay is None
    store.settle(grant, admission, SUCCEEDED, ANSWER)
    assert admit(store, grant).replay == ANSWER


def test_claim_whose_lease_ran_out_may_have_been_sent(store: Store, clock: Clock) -> None:
    grant = keyed()
    admission = admit(store, grant)
    clock.tick(LEASE - 0.001)
    with pytest.raises(KeyInUse):
        admit(store, grant)
    clock.tick(0.001)
    with pytest.raises(OutcomeStillUnknown):
        admit(store, grant)
    # Whoever claimed it was only slow.
    store.settle(grant, admission, SUCCEEDED, ANSWER)
    assert admit(store, grant).replay == ANSWER


def test_late_settlement_does_not_touch_a_claim_of_somebody_else(store: Store) -> None:
    grant = keyed()
    first = admit(store, grant)
    store.release(grant, first)
    second = admit(store, grant)
    store.settle(grant, first, SUCCEEDED, ANSWER)
    with pytest.raises(KeyInUse):
        admit(store, grant)
    store.settle(grant, second, SUCCEEDED, ANSWER)
    assert admit(store, grant).replay == ANSWER


@pytest.mark.parametrize("reply", [SUCCEEDED, REJECTED], ids=lambda reply: str(reply.outcome))
def test_settled_key_is_kept_for_the_retention_and_runs_fresh_after_it(
    store: Store, clock: Clock, reply: Reply
) -> None:
    grant = keyed()
    store.settle(grant, admit(store, grant), reply, ANSWER)
    clock.tick(RETENTION - 0.001)
    assert admit(store, grant).replay == ANSWER
    clock.tick(0.001)
    assert admit(store, grant).replay is None


@pytest.mark.parametrize("reply", [UNKNOWN, WAITS, None], ids=["unknown", "waits for a person", "never settled"])
@pytest.mark.parametrize("days", [3, 31, 400])
def test_open_key_is_never_forgotten(store: Store, clock: Clock, reply: Reply | None, days: int) -> None:
    grant = keyed()
    admission = admit(store, grant)
    if reply is not None:
        store.settle(grant, admission, reply, ANSWER)
    clock.tick(days * 86_400)
    if reply is WAITS:
        entry = admit(store, grant).entry
        assert entry is not None
        assert (entry.approval, entry.sent) == ("areq_1", admission.taken)
    else:
        with pytest.raises(OutcomeStillUnknown):
            admit(store, grant)
    if not isinstance(store, Memory):
        assert [held.key for held in cast("Shared", store).held()] == [grant.ledger_key]


def test_refusal_that_created_nothing_frees_the_key_for_mended_parameters(store: Store) -> None:
    grant, mended = stripes(), replace(stripes(), fingerprint="mended", written="mended")
    store.settle(grant, admit(store, grant), FREED, ANSWER)
    for asked in (mended, grant):
        entry = admit(store, asked).entry
        assert entry is not None
        assert (entry.refused, entry.doubt, entry.fingerprint) == (True, False, asked.fingerprint)
        store.settle(asked, Admission((), entry.owner, 0.0, entry), FREED, ANSWER)


def test_generation_that_a_call_has_come_to_is_where_the_next_begins(store: Store) -> None:
    grant = stripes()
    for generation, reply in enumerate((BUSY, FREED, UNKNOWN), 1):
        store.settle(grant, admit(store, grant), replace(reply, generation=generation), ANSWER)
    entry = admit(store, grant).entry
    assert entry is not None
    assert (entry.generation, entry.doubt) == (3, True)


def test_released_key_goes_back_to_where_it_was(store: Store) -> None:
    grant = stripes()
    store.settle(grant, admit(store, grant), replace(FREED, generation=2), ANSWER)
    store.release(grant, admit(store, grant))
    entry = admit(store, grant).entry
    assert entry is not None
    assert (entry.generation, entry.refused) == (2, True)


def test_invoice_of_another_place_is_not_repeated(store: Store) -> None:
    grant = keyed()
    store.settle(grant, store.admit(grant, "there test"), SUCCEEDED, ANSWER)
    with pytest.raises(KeyUsedElsewhere):
        store.admit(grant, "there live")
    assert store.admit(grant, "there test").replay == ANSWER


@pytest.mark.parametrize(("before", "after", "left"), [("9/minute", "5/minute", 1), ("5/minute", "9/minute", 5)])
def test_limit_that_an_operator_has_changed_keeps_its_count(store: Store, before: str, after: str, left: int) -> None:
    for _ in range(3):
        admit(store, limited(before))
    assert admit(store, limited(after)).standings[0].remaining == left


def test_limit_that_is_below_what_was_used_refuses(store: Store) -> None:
    for _ in range(3):
        admit(store, limited("9/minute"))
    with pytest.raises(LimitReached):
        admit(store, limited("2/minute"))


def test_ceiling_that_an_operator_has_changed_keeps_its_count_under_another_label(store: Store) -> None:
    first = limited("1000/minute", ceiling="3/second")
    for _ in range(3):
        admit(store, first)
    other = limited("1000/minute", ceiling="2/second")
    connection = replace(other.entitlement.connection, id="tidied")
    with pytest.raises(CeilingReached):
        admit(store, replace(other, entitlement=replace(other.entitlement, connection=connection)))


def test_budget_that_was_lowered_below_what_was_spent_refuses(store: Store) -> None:
    spend(store, daily(5000), 4000)
    with pytest.raises(BudgetSpent):
        admit(store, daily(3000))
    assert admit(store, daily(4001)).replay is None


def test_all_that_an_entry_says_is_kept(store: Store) -> None:
    """Also what a call in several steps will say of itself: the format changes once."""
    grant = stripes()
    admission = admit(store, grant)
    assert admission.entry is not None
    more = {"step": "lines", "id": "in_1"}
    claimed = replace(admission.entry, **more)
    if isinstance(store, Memory):
        store._ledger[str(grant.ledger_key)] = claimed
    store.settle(grant, replace(admission, entry=claimed), WAITS, ANSWER)
    entry = admit(store, grant).entry
    assert entry is not None
    if not isinstance(store, Firestore):  # which settles what it reads, not what it was told
        assert {name: getattr(entry, name) for name in more} == more
    said = msgspec.msgpack.decode(msgspec.msgpack.encode(claimed), type=Entry)
    assert said == claimed


def test_call_without_a_key_is_never_repeated_or_held_back(store: Store) -> None:
    grant = limited("1000/minute")
    assert grant.ledger_key is None
    for _ in range(3):
        admission = admit(store, grant)
        assert admission.replay is None
        assert store.settle(grant, admission, SUCCEEDED, ANSWER)


def test_no_count_is_lost_under_a_storm_of_admissions_and_releases(store: Store) -> None:
    grant = limited("1000/minute")

    def admitted() -> Admission:
        for _ in range(9):
            with suppress(StoreUnavailable):  # all at one document of Firestore's; nothing was counted
                return admit(store, grant)
        return admit(store, grant)

    def work(number: int) -> None:
        for turn in range(20):
            admission = admitted()
            if (number + turn) % 2:
                store.release(grant, admission)

    at_once(20, work)
    assert used(store, grant) == 200


# ---------------------------------------------------------------- budgets


def daily(amount: int, *, key: str | None = None, per: int = 86400, reserve: int = 1) -> Grant:
    return budgeted(limited("1000/minute", key=key), budget(amount, per), reserve=reserve)


def spend(store: Store, grant: Grant, amount: int) -> None:
    assert store.settle(grant, admit(store, grant), spent(amount), ANSWER)


def spent(amount: int) -> Reply:
    return replace(SUCCEEDED, spent=amount, spent_in="usd")


@pytest.mark.parametrize("key", [None, "order-1"])
def test_caller_is_refused_once_what_it_created_comes_to_its_budget(store: Store, key: str | None) -> None:
    spend(store, daily(5000, key=key), 4999)
    spend(store, daily(5000), 1)
    with pytest.raises(BudgetSpent) as caught:
        admit(store, daily(5000))
    assert caught.value.standings[0].remaining == 998


@pytest.mark.parametrize(
    ("more", "refusal"),
    [
        ("limits: [1/minute]", LimitReached),
        ("limits: [5/minute]\n    budget: {currency: usd, amount: 90, per: day}", BudgetSpent),
    ],
)
def test_caller_with_another_name_keeps_its_keys_and_counts(store: Store, more: str, refusal: type[Refusal]) -> None:
    app = policy("http://127.0.0.1:9").replace("limits: [100000/minute]", more)
    app = app.replace("        idempotency:", "        amount: {max: 1}\n        idempotency:", 1)
    stranger = app.replace("  app:\n", "  shop:\n")
    shop = app.replace("  app:\n", "  shop:\n    formerly: app\n")
    before, after, another = (granted(text, idempotency_key="order-1") for text in (app, shop, stranger))
    spend(store, before, 90)
    assert (after.caller.id, admit(store, after).replay) == ("shop", ANSWER)
    assert isinstance(outcome_of(store, granted(shop)), refusal)
    assert admit(store, another).replay is None


def test_budget_of_one_caller_is_not_spent_by_another(store: Store) -> None:
    spend(store, daily(1), 1)
    grant = daily(1)
    assert admit(store, replace(grant, caller=replace(grant.caller, id="other", first="other"))).replay is None


def test_replay_is_told_even_when_the_budget_is_spent(store: Store) -> None:
    spend(store, daily(1, key="order-1"), 1)
    assert admit(store, daily(1, key="order-1")).replay == ANSWER


# ---------------------------------------------------------------- sent again where the upstream deduplicates

DAY = 24 * 3600


def stripes(key: str | None = "order-1", *, limits: str = "1000/minute", more: str = "") -> Grant:
    """Make a grant at Stripe, which answers the same key with the same invoice for a day."""
    text = policy("http://127.0.0.1:9", upstream="stripe", limits=limits)
    return granted(text.replace("upstream: stripe\n", f"upstream: stripe\n{more}"), idempotency_key=key)


def leave_unknown(store: Store, grant: Grant) -> None:
    assert store.settle(grant, admit(store, grant), UNKNOWN, ANSWER)


def test_first_send_of_a_key_is_in_no_doubt(store: Store) -> None:
    for grant in (stripes("a"), stripes(None), keyed("b")):
        assert not in_doubt(admit(store, grant))


def test_unknown_is_sent_again_in_doubt_and_under_an_owner_of_its_own(store: Store) -> None:
    grant = stripes()
    first = admit(store, grant)
    store.settle(grant, first, UNKNOWN, ANSWER)
    again = admit(store, grant)
    assert (in_doubt(again), again.replay) == (True, None)
    assert again.owner != first.owner
    with pytest.raises(KeyInUse):
        admit(store, grant)
    store.settle(grant, again, SUCCEEDED, ANSWER)
    assert admit(store, grant).replay == ANSWER


def test_unknown_is_sent_again_only_while_the_upstream_is_sure_to_know_the_key(store: Store, clock: Clock) -> None:
    for key, seconds in (("in time", DAY - LEASE), ("too late", DAY - LEASE + 0.001)):
        leave_unknown(store, stripes(key))
        clock.tick(seconds)
        if key == "in time":
            assert in_doubt(admit(store, stripes(key)))
        else:
            with pytest.raises(OutcomeStillUnknown):
                admit(store, stripes(key))


def test_window_counts_from_the_first_send_whatever_came_of_the_second(store: Store, clock: Clock) -> None:
    grant = stripes()
    leave_unknown(store, grant)
    for seconds in (DAY / 2, DAY / 2 - LEASE):
        clock.tick(seconds)
        leave_unknown(store, grant)
    clock.tick(0.001)
    with pytest.raises(OutcomeStillUnknown):
        admit(store, grant)


def test_window_of_a_key_that_was_released_counts_from_its_next_send(store: Store, clock: Clock) -> None:
    grant = stripes()
    store.settle(grant, admit(store, grant), BUSY, ANSWER)
    clock.tick(DAY)
    leave_unknown(store, grant)
    clock.tick(DAY - LEASE)
    assert in_doubt(admit(store, grant))


def test_claim_is_sent_again_once_its_lease_has_run_out_and_not_before(store: Store, clock: Clock) -> None:
    grant = stripes()
    first = admit(store, grant)
    clock.tick(LEASE - 0.001)
    with pytest.raises(KeyInUse):
        admit(store, grant)
    clock.tick(0.001)
    second = admit(store, grant)
    assert in_doubt(second)
    for reply in (SUCCEEDED, REJECTED, UNKNOWN, BUSY, UNREACHED):  # the first owner was only slow, and is too late
        store.settle(grant, first, reply, Answer(500, b""))
    store.release(grant, first)
    with pytest.raises(KeyInUse):
        admit(store, grant)
    store.settle(grant, second, SUCCEEDED, ANSWER)
    assert admit(store, grant).replay == ANSWER


@pytest.mark.parametrize("reply", [BUSY, UNREACHED, None], ids=["busy", "unreached", "not sent"])
def test_second_send_that_created_nothing_leaves_the_doubt(store: Store, clock: Clock, reply: Reply | None) -> None:
    grant = stripes()
    leave_unknown(store, grant)
    for _ in range(2):
        again = admit(store, grant)
        assert in_doubt(again)
        if reply is None:
            store.release(grant, again)
        else:
            assert store.settle(grant, again, reply, ANSWER)
    clock.tick(DAY)
    with pytest.raises(OutcomeStillUnknown):
        admit(store, grant)


def test_rejection_of_a_second_send_is_kept_and_repeated(store: Store) -> None:
    grant = stripes()
    leave_unknown(store, grant)
    store.settle(grant, admit(store, grant), REJECTED, ANSWER)
    assert admit(store, grant).replay == ANSWER


def test_one_of_fifty_is_sent_again(store: Store) -> None:
    grant = stripes()
    leave_unknown(store, grant)
    results = at_once(50, lambda _: outcome_of(store, grant))
    assert count(results, KeyInUse) == 49
    assert [in_doubt(result) for result in results if not isinstance(result, Refusal)] == [True]


def test_second_send_counts_against_the_limits_and_is_refused_by_them(store: Store, clock: Clock) -> None:
    grant = stripes(limits="2/second")
    leave_unknown(store, grant)
    leave_unknown(store, grant)
    with pytest.raises(LimitReached):
        admit(store, grant)
    clock.tick(2)
    again = admit(store, grant)  # refused, it was not taken for sent
    assert (in_doubt(again), again.standings[0].remaining) == (True, 1)
    store.release(grant, again)
    assert admit(store, grant).standings[0].remaining == 1  # given back like any other


@pytest.mark.parametrize(
    "more",
    ["    account: acct_1\n", "    version: 2022-11-15\n", ""],
    ids=["another account", "another version", "the same"],
)
def test_unknown_is_sent_again_only_to_the_same_account(store: Store, more: str) -> None:
    leave_unknown(store, stripes())
    result = outcome_of(store, stripes(more=more))
    assert isinstance(result, OutcomeStillUnknown if "account" in more else Admission)


def test_call_that_another_upstream_may_have_taken_is_not_sent_again(store: Store) -> None:
    """The policy has moved the connection to Stripe meanwhile."""
    leave_unknown(store, keyed(body=CUSTOMER))
    assert keyed(body=CUSTOMER).ledger_key == stripes().ledger_key
    with pytest.raises(OutcomeStillUnknown):
        admit(store, stripes())


def test_other_parameters_are_refused_whatever_may_be_sent_again(store: Store) -> None:
    leave_unknown(store, stripes())
    with pytest.raises(KeyReused):
        admit(store, replace(stripes(), fingerprint="other"))


@pytest.mark.parametrize("store", SERVERS, indirect=True)  # whose ledger no operator reaches
@pytest.mark.parametrize("created", [True, False])
def test_operator_resolves_a_key_that_is_in_doubt(store: Store, clock: Clock, *, created: bool) -> None:
    grant = stripes()
    began = clock()
    leave_unknown(store, grant)
    clock.tick(60)
    again = admit(store, grant)
    ledger: Any = store
    (held,) = ledger.held()
    assert (held.state, held.since, held.running, held.open) == (State.SENT, began, True, False)
    assert ledger.resolve(grant.ledger_key, None) is Verdict.RUNNING
    store.settle(grant, again, BUSY, ANSWER)
    (held,) = ledger.held()
    assert (held.state, held.since, held.open) == (State.UNKNOWN, began, True)
    assert ledger.resolve(grant.ledger_key, ANSWER if created else None) is Verdict.RESOLVED
    after = admit(store, grant)
    assert (after.replay, in_doubt(after)) == (ANSWER if created else None, False)


# ---------------------------------------------------------------- an operator's decision, taken back

#: No operator reaches the ledger of an instance's memory, so nothing in it was ever decided by one.
reachable = pytest.mark.parametrize("store", SERVERS, indirect=True)


def entry_of(store: Any, key: str | None) -> Entry | None:
    """Read an entry as it is stored."""
    if isinstance(store, Redis):
        return store._read(f"{PREFIX}ledger:{key}")
    path = f"countersign-ledger/{key}"
    document = store._read([path], store._deadline())[0].documents[path]
    return document and idempotency.unpacked(document["entry"])


def left(store: Any, clock: Clock, how: str) -> Grant:
    """Leave a key about which an operator may decide."""
    grant = stripes() if how == "in doubt" else keyed()
    match how:
        case "in doubt":
            leave_unknown(store, grant)
            clock.tick(60)
            store.settle(grant, admit(store, grant), replace(UNKNOWN, generation=2), ANSWER)
        case "cut off":
            admit(store, grant)
        case "rejected":
            store.settle(grant, admit(store, grant), REJECTED, Answer(402, b"{}"))
        case "cannot be asked about":
            store.settle(grant, admit(store, grant), replace(WAITS, mute=True), ANSWER)
    clock.tick(LEASE)
    return grant


@reachable
@pytest.mark.parametrize("created", [True, False])
@pytest.mark.parametrize("how", ["in doubt", "cut off", "rejected", "cannot be asked about"])
@pytest.mark.parametrize("later", [0, 3600, RETENTION - 1])
def test_decision_that_is_taken_back_leaves_the_key_as_it_was(
    store: Any, clock: Clock, how: str, later: int, *, created: bool
) -> None:
    grant = left(store, clock, how)
    before, (held,) = entry_of(store, grant.ledger_key), store.held()
    for _ in range(2):
        assert store.resolve(grant.ledger_key, ANSWER if created else None, "Ann: so it is") is Verdict.RESOLVED
        (decided,) = store.held()
        assert (decided.said, decided.told, decided.reopens) == ("Ann: so it is", 0.0, held.state)
        clock.tick(later)
        assert store.reopen(grant.ledger_key) is Verdict.REOPENED
        after = entry_of(store, grant.ledger_key)
        assert after is not None
        if how == "rejected":  # it is kept as long as the decision would have been: ended, it would free the key
            assert after.expires == clock() - later + RETENTION
            after = replace(after, expires=before and before.expires)
        assert after == before
    clock.tick(RETENTION + LEASE if how != "rejected" else 0)
    assert [one.key for one in store.held()] == [grant.ledger_key]
    assert store.reopen(grant.ledger_key) is Verdict.UNDECIDED


@reachable
@pytest.mark.parametrize("comes", ["the same", "other parameters", "another place"])
def test_created_stands_once_a_call_has_met_it(store: Any, clock: Clock, comes: str) -> None:
    grant = left(store, clock, "in doubt")
    store.resolve(grant.ledger_key, ANSWER, "Ann: created in_1")
    clock.tick(5)
    met = clock()
    if comes == "the same":
        assert admit(store, grant).replay == ANSWER
    else:
        other = comes == "other parameters"
        with pytest.raises(KeyReused if other else KeyUsedElsewhere):
            store.admit(
                replace(grant, fingerprint="other") if other else grant,
                grant.entitlement.connection.place if other else "elsewhere",
            )
    for _ in range(2):
        clock.tick(60)
        assert store.reopen(grant.ledger_key) is Verdict.TOLD
        (held,) = store.held()
        assert (held.told, held.reopens, held.said) == (met, None, "Ann: created in_1")
        assert admit(store, grant).replay == ANSWER
    clock.tick(RETENTION)
    assert store.reopen(grant.ledger_key) is Verdict.ABSENT


@reachable
@pytest.mark.parametrize("then", [None, BUSY, SUCCEEDED, UNKNOWN], ids=lambda reply: str(reply and reply.outcome))
def test_not_created_stands_once_the_key_was_used_again(store: Any, clock: Clock, then: Reply | None) -> None:
    grant = left(store, clock, "in doubt")
    store.resolve(grant.ledger_key, None, "Ann: not created")
    clock.tick(5)
    met, admission = clock(), admit(store, grant)
    if then is not None:
        store.settle(grant, admission, then, ANSWER)
    if then is BUSY:
        clock.tick(60)
        store.release(grant, admit(store, grant))
    assert store.reopen(grant.ledger_key) is Verdict.TOLD
    (held,) = store.held()
    assert (held.told, held.said) == (met, "Ann: not created")


@reachable
def test_decision_about_a_key_that_another_decision_freed_can_be_taken_back(store: Any, clock: Clock) -> None:
    grant = left(store, clock, "in doubt")
    store.resolve(grant.ledger_key, None, "Ann: not created")
    leave_unknown(store, grant)
    before = entry_of(store, grant.ledger_key)
    assert store.resolve(grant.ledger_key, ANSWER, "Bob: created in_1") is Verdict.RESOLVED
    assert store.reopen(grant.ledger_key) is Verdict.REOPENED
    assert entry_of(store, grant.ledger_key) == before


@reachable
@pytest.mark.parametrize("created", [True, False])
def test_decision_that_has_expired_cannot_be_taken_back(store: Any, clock: Clock, *, created: bool) -> None:
    grant = left(store, clock, "in doubt")
    store.resolve(grant.ledger_key, ANSWER if created else None, "Ann: so it is")
    clock.tick(RETENTION)
    assert store.reopen(grant.ledger_key) is Verdict.ABSENT
    assert admit(store, grant).replay is None


@reachable
def test_outcome_that_no_operator_decided_cannot_be_taken_back(store: Any) -> None:
    assert store.reopen("0" * 64) is Verdict.ABSENT
    for reply in (SUCCEEDED, REJECTED, FREED, UNKNOWN):
        grant = keyed(str(reply.outcome))
        store.settle(grant, admit(store, grant), reply, ANSWER)
        before = entry_of(store, grant.ledger_key)
        assert store.reopen(grant.ledger_key) is Verdict.UNDECIDED
        assert entry_of(store, grant.ledger_key) == before


@reachable
@pytest.mark.parametrize("created", [True, False])
def test_call_that_comes_while_a_decision_is_taken_back_has_it_stand(
    store: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch, *, created: bool
) -> None:
    grant, judge = left(store, clock, "in doubt"), idempotency.reopen
    came: list[Admission] = []
    store.resolve(grant.ledger_key, ANSWER if created else None, "Ann: so it is")

    def overtaken(held: Entry | None, *, now: float) -> tuple[Verdict, Entry | None]:
        verdict = judge(held, now=now)
        if not came:
            came.append(admit(store, grant))
        return verdict

    monkeypatch.setattr(idempotency, "reopen", overtaken)
    assert store.reopen(grant.ledger_key) is Verdict.TOLD
    assert came[0].replay == (ANSWER if created else None)


@reachable
@pytest.mark.parametrize("created", [True, False])
def test_decision_that_is_taken_back_while_a_call_comes_is_told_to_nobody(
    store: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch, *, created: bool
) -> None:
    grant, judge = left(store, clock, "cannot be asked about"), idempotency.met
    verdicts: list[Verdict] = []
    store.resolve(grant.ledger_key, ANSWER if created else None, "Ann: so it is")

    def overtaken(held: Entry | None, *, now: float) -> Entry | None:
        marked = judge(held, now=now)
        if held is not None and not verdicts:
            verdicts.append(store.reopen(grant.ledger_key))
        return marked

    monkeypatch.setattr(idempotency, "met", overtaken)
    with pytest.raises(OutcomeStillUnknown):
        admit(store, grant)
    assert verdicts == [Verdict.REOPENED]


@reachable
def test_in_a_storm_either_nobody_was_told_or_the_decision_stands(store: Any, clock: Clock) -> None:
    for turn in range(10):
        grant = keyed(str(turn))
        leave_unknown(store, grant)
        store.resolve(grant.ledger_key, ANSWER, "Ann: created in_1")

        def come(number: int, grant: Grant = grant) -> Any:
            return outcome_of(store, grant) if number else store.reopen(grant.ledger_key)

        results = at_once(8, come)
        told = [result for result in results[1:] if isinstance(result, Admission)]
        assert all(isinstance(result, Admission | OutcomeStillUnknown) for result in results[1:])
        assert (results[0], bool(told)) in {(Verdict.REOPENED, False), (Verdict.TOLD, True)}


@reachable
def test_only_the_first_call_that_meets_a_decision_writes(
    store: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant, writes = left(store, clock, "in doubt"), 0
    store.resolve(grant.ledger_key, ANSWER, "Ann: created in_1")
    method = "_write_over" if isinstance(store, Redis) else "_commit"
    write = getattr(store, method)

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal writes
        writes += 1
        return write(*arguments, **options)

    monkeypatch.setattr(store, method, counted)
    for _ in range(3):
        assert admit(store, grant).replay == ANSWER
        assert writes == 1


# ---------------------------------------------------------------- a call in several steps

DRAFTED = Progress(Stage.LINES, 0, "in_1", Stage.LINES)


def halfway(store: Store, grant: Grant, progress: Progress = DRAFTED) -> Admission:
    """Leave a call whose owner has written how far it came, and nothing more."""
    admission = store.advance(grant, admit(store, grant), progress)
    assert admission is not None
    return admission


def test_who_comes_back_is_told_how_far_the_call_has_come(store: Store, clock: Clock) -> None:
    grant = stripes()
    first = halfway(store, grant)
    store.advance(grant, first, replace(DRAFTED, stage=Stage.FINALIZE, reached=Stage.FINALIZE))
    clock.tick(LEASE)
    entry = admit(store, grant).entry
    assert entry is not None
    assert (entry.id, entry.step, entry.doubt, entry.generation) == ("in_1", "finalize", True, 0)


def test_progress_of_a_call_that_lost_its_key_is_not_written(store: Store, clock: Clock) -> None:
    grant = stripes()
    first = admit(store, grant)
    clock.tick(LEASE)
    second = admit(store, grant)
    assert store.advance(grant, first, DRAFTED) is None
    store.settle(grant, second, SUCCEEDED, ANSWER)
    assert store.advance(grant, second, DRAFTED) is None
    assert admit(store, grant).replay == ANSWER


def test_call_that_stops_half_way_keeps_what_it_works_on_and_one_that_ends_does_not(store: Store) -> None:
    grant = stripes()
    stopped = replace(UNKNOWN, id="in_1", step="finalize", harmless=True)
    store.settle(grant, halfway(store, grant), stopped, ANSWER)
    again = admit(store, grant)
    assert again.entry is not None
    assert (again.entry.id, again.entry.step, again.entry.doubt) == ("in_1", "finalize", False)
    store.settle(grant, again, replace(FREED, generation=1, fresh=True), ANSWER)
    fresh = admit(store, grant).entry
    assert fresh is not None
    assert (fresh.id, fresh.step, fresh.generation, fresh.refused) == (None, "", 1, False)


def test_key_that_names_a_draft_goes_on_after_the_upstream_forgot_it(store: Store, clock: Clock) -> None:
    lone = stripes()
    grant = replace(lone, entitlement=replace(lone.entitlement, operation=OPERATIONS["invoices.issue"]))
    store.settle(grant, halfway(store, grant), replace(UNKNOWN, id="in_1", step="lines"), ANSWER)
    clock.tick(10 * 86400)
    entry = admit(store, grant).entry
    assert entry is not None
    assert entry.id == "in_1"


@pytest.mark.parametrize("store", SERVERS, indirect=True)
def test_operator_takes_no_key_that_names_a_draft_for_not_created(store: Any, clock: Clock) -> None:
    grant = stripes()
    store.settle(grant, halfway(store, grant), replace(UNKNOWN, id="in_1", step="lines"), ANSWER)
    clock.tick(LEASE)
    assert store.resolve(grant.ledger_key, None) is Verdict.NAMED


# ---------------------------------------------------------------- asking without taking


def asked_of(ask: Callable[[], Admission]) -> dict[str, Any]:
    """Return what a store says of a call, without what is each call's own."""
    try:
        said = ask()
    except Refusal as refusal:
        return {**refusal.problem(""), "standings": refusal.standings}
    claim = said.entry and replace(said.entry, owner="")
    return {"standings": said.standings, "claim": claim, "replay": said.replay}


def written_in(store: Store) -> object:
    """Return all that a store holds, and until when."""
    match store:
        case Memory():
            return {name: window.buckets for name, window in store._windows.items()}, {**store._ledger}
        case Redis():
            ask = partial(store._client.ask, seconds=10.0)
            return {key: (ask("DUMP", key), ask("PEXPIRETIME", key)) for key in ask("KEYS", "*")}
        case Firestore():
            parent, client = f"{store._database}/documents", store._client.get()
            found = (
                document
                for collection in (WINDOWS, LEDGER)
                for document in client.list_documents({"parent": parent, "collection_id": collection})
            )
            return {document.name: document.update_time for document in found}
        case _:
            raise AssertionError(store)


def bounded(
    key: str | None, body: str, *, limits: str = "3/second, 9/minute", most: int = 250, reserve: int = 50
) -> Grant:
    """Make a grant at Stripe with a budget a minute, a ceiling and two limits, all of which are soon full."""
    grant = limited(limits, ceiling="4/second", key=key, body=body)
    stripe = stripes(key).entitlement
    connection = replace(stripe.connection, ceiling=parse_limit("4/second"))
    entitlement = replace(stripe, connection=connection, rules=grant.entitlement.rules)
    grant = replace(grant, entitlement=entitlement, resend_seconds=stripes(key).resend_seconds)
    # What a customer may have by itself is soon full, too.
    mine, each = budget(most, 60), budget(150, 60, each="customer")
    return budgeted(replace(grant, parameters=dict([body.split("=")])), mine, each, reserve=reserve)


REPLIES = [
    spent(99), spent(20), REJECTED, FREED, UNKNOWN, BUSY, UNREACHED, WAITS, None,
    replace(FREED, generation=2), replace(UNKNOWN, mute=True),
]  # fmt: skip


#: Seconds between calls: most come at once, the others at the edge of a bucket, a window or a lease.
MOMENTS = [*[0.0] * 14, 0.01, 1 / 128, 0.3, 1, 129 / 128, 5, LEASE - 0.001, LEASE, 60, 60 * 129 / 128]


@pytest.mark.parametrize("seed", range(3))
def test_peek_says_what_admit_says_right_behind_it_and_writes_nothing(store: Store, clock: Clock, seed: int) -> None:
    lots = random.Random(seed)
    told: Counter[str] = Counter()
    for step in range(400 if isinstance(store, Memory) else 60):
        key = lots.choice([None, f"{step // 9}{lots.choice('abc')}"])
        limits, most = lots.choice(["3/second, 9/minute"] * 3 + ["2/second, 7/minute"]), lots.choice([250, 250, 100])
        reserve, body = lots.choice([20, 50, 99, 300]), f"customer=cus_{lots.choice('11112')}"
        grant = bounded(key, body, limits=limits, most=most, reserve=reserve)
        place = grant.entitlement.connection.place + lots.choice([""] * 9 + [" live"])
        admission: list[Admission] = []

        def peeked(grant: Grant = grant, place: str = place) -> Admission:
            return store.peek(grant, place)

        def admitted(grant: Grant = grant, place: str = place, kept: list[Admission] = admission) -> Admission:
            kept.append(store.admit(grant, place))
            return kept[0]

        asked_of(peeked)  # what has expired may be forgotten
        before = written_in(store)
        foreseen = asked_of(peeked)
        assert written_in(store) == before
        assert asked_of(admitted) == foreseen
        told[str(foreseen.get("reason", "replay" if foreseen.get("replay") else "admitted"))] += 1
        reply = lots.choice(REPLIES)
        if admission and admission[0].replay is None and reply is not None:
            store.settle(grant, admission[0], reply, ANSWER)
        clock.tick(lots.choice(MOMENTS))
    assert len(told) >= (7 if isinstance(store, Memory) else 4), told


def test_peek_creates_no_window_and_no_entry(store: Store) -> None:
    before = written_in(store)
    assert store.peek(bounded("a", "customer=cus_1"), "p").entry is not None
    assert written_in(store) == before


@reachable
@pytest.mark.parametrize("created", [True, False])
def test_peek_at_what_an_operator_has_decided_does_not_use_the_decision(
    store: Any, clock: Clock, *, created: bool
) -> None:
    grant = left(store, clock, "cut off")
    store.resolve(grant.ledger_key, ANSWER if created else None, "Ann: so it is")
    before = written_in(store)
    peeked = store.peek(grant, grant.entitlement.connection.place)
    assert written_in(store) == before
    assert (peeked.replay is not None) == created
    assert store.reopen(grant.ledger_key) is Verdict.REOPENED
    store.resolve(grant.ledger_key, ANSWER if created else None, "Ann: so it is")
    assert admit(store, grant).replay == peeked.replay


def test_ceiling_full_by_one_document_is_peeked_at_whole(store: Store) -> None:
    grant = limited("100000/minute", ceiling="3/second")
    for _ in range(3):
        assert store.peek(grant, "p").standings
        admit(store, grant)
    with pytest.raises(CeilingReached):
        store.peek(grant, "p")


def test_left_says_what_there_is_and_when_there_is_more(store: Store, clock: Clock) -> None:
    grant = bounded(None, "customer=cus_1", reserve=10)
    caller, connection = grant.caller, grant.entitlement.connection
    every = [(one.kind, one.remaining, one.more, one.reset, one.full) for one in store.left(caller, [connection])]
    assert every == [
        ("limit", 3, 0, 0, 0),
        ("limit", 9, 0, 0, 0),
        ("budget", 250, 0, 0, 0),
        ("budget", None, 0, 0, 0),
        ("ceiling", None, 0, 0, 0),
    ]
    spend(store, grant, 90)
    clock.tick(30)
    spend(store, grant, 10)
    admit(store, grant)  # reserves 10
    before = written_in(store)
    second, minute, money, each, ceiling = store.left(caller, [connection], "cus_1")
    assert written_in(store) == before
    assert (second.remaining, second.more, second.limit.text) == (1, 2, "3/second")
    assert (minute.remaining, minute.more, minute.reset, minute.full) == (6, 1, 31, 61)
    assert (money.remaining, money.more, money.reset, money.full) == (140, 90, 31 + LEASE, 61 + LEASE)
    assert money.currency == "usd"
    assert (each.remaining, each.more, each.each, each.limit.calls) == (40, 90, "customer", 150)
    assert (ceiling.remaining, ceiling.reset, ceiling.connection) == (None, 0, connection.id)
    admit(store, grant)
    other = replace(grant, caller=replace(caller, id="other", first="other"))
    admit(store, other)
    full = store.left(caller, [connection])
    assert [(one.kind, one.remaining, one.reset) for one in (full[0], full[-1])] == [("limit", 0, 2), ("ceiling", 0, 2)]


def test_state_of_a_key_is_what_the_ledger_holds_until_it_expires(store: Store, clock: Clock) -> None:
    grant = keyed()
    assert grant.ledger_key is not None
    assert store.state_of(grant.ledger_key) is None
    admission = admit(store, grant)
    assert store.state_of(grant.ledger_key) == (admission.entry, clock())
    store.settle(grant, admission, SUCCEEDED, ANSWER)
    clock.tick(100)
    settled = store.state_of(grant.ledger_key)
    assert settled is not None
    assert (settled.entry.state, settled.entry.answer) == (State.SUCCEEDED, ANSWER)
    assert settled.now - settled.entry.sent == 100
    clock.tick(RETENTION)
    assert store.state_of(grant.ledger_key) is None
