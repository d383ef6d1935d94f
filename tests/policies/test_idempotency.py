"""The ledger's moves: no order of claims, losses and settlements sends one key twice."""

from __future__ import annotations

import re
from itertools import product
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from policies.idempotency import (
    LEASE,
    LEAST_FREE,
    PROVABLE,
    RETENTION,
    Verdict,
    claim,
    identity,
    resolve,
    settle,
    upstream_key,
)
from policies.model import Answer, Entry, Outcome, State
from policies.outcomes import Reply
from policies.refusals import KeyInUse, KeyReused, KeyUsedElsewhere, LedgerRefusal, OutcomeStillUnknown

ANSWER = Answer(200, b'{"id":"in_1"}')
NOW = 1000.0
SENT = Entry(State.SENT, "a", "app", "billing", "invoices.create", "print", "form", "there", NOW, NOW + LEASE)
SUCCEEDED = replace(SENT, state=State.SUCCEEDED, answer=ANSWER, expires=NOW + RETENTION)
REJECTED = replace(SENT, state=State.REJECTED, answer=Answer(400, b"{}"), expires=NOW + RETENTION)
UNKNOWN = replace(SENT, state=State.UNKNOWN, doubt=True, until=NOW + LEASE)
FREE = replace(SENT, state=State.FREE, refused=True, generation=3, expires=NOW + RETENTION)
SETTLED = [SUCCEEDED, REJECTED]
AWAITING = replace(SENT, state=State.UNKNOWN, approval="areq_1")


def claimed(
    entry: Entry | None,
    owner: str = "b",
    *,
    fingerprint: str = "print",
    written: str = "form",
    now: float = NOW,
    place: str = "there",
    resend: int = 0,
) -> Entry | Answer:
    wanted = replace(
        SENT, owner=owner, fingerprint=fingerprint, written=written, place=place, sent=now, lease_until=now + LEASE
    )
    return claim(entry, wanted, resend=resend, now=now)


def settled(entry: Entry | None, outcome: Outcome, owner: str = "a", **reply: object) -> Entry | None:
    ended = replace(Reply(outcome), **reply)
    return settle(entry, owner=owner, reply=ended, answer=ANSWER, retention=RETENTION)


def test_first_claim_is_sent_under_a_lease() -> None:
    assert claimed(None, "a") == SENT
    assert SENT.expires is None


def test_claim_whose_reply_was_lost_is_made_again_by_its_owner() -> None:
    assert claimed(SENT, "a") == SENT
    assert claimed(SENT, "a", now=NOW + LEASE - 0.001) == SENT


def test_claim_is_nobodys_once_its_lease_is_over() -> None:
    """Whoever asks again so late may have been taken for dead, and its call sent by somebody else."""
    with pytest.raises(OutcomeStillUnknown):
        claimed(SENT, "a", now=NOW + LEASE)


@pytest.mark.parametrize("now", [NOW, NOW + LEASE - 0.001])
def test_running_call_keeps_its_key_to_itself(now: float) -> None:
    with pytest.raises(KeyInUse) as refusal:
        claimed(SENT, now=now)
    assert refusal.value.retry_after == 1


@pytest.mark.parametrize("now", [NOW + LEASE, NOW + RETENTION - 0.001])
def test_claim_that_outlives_its_lease_is_unknown(now: float) -> None:
    with pytest.raises(OutcomeStillUnknown):
        claimed(SENT, now=now)


@pytest.mark.parametrize("entry", [SUCCEEDED, REJECTED])
@pytest.mark.parametrize("owner", ["a", "b"])
@pytest.mark.parametrize("now", [NOW, NOW + RETENTION - 0.001])
def test_settled_answer_is_repeated_to_whoever_brings_the_key(entry: Entry, owner: str, now: float) -> None:
    assert claimed(entry, owner, now=now) == entry.answer


@pytest.mark.parametrize("owner", ["a", "b"])
@pytest.mark.parametrize("entry", [UNKNOWN, SENT, replace(SUCCEEDED, answer=None, expires=None)])
@pytest.mark.parametrize("later", [LEASE, RETENTION, 100 * RETENTION])
def test_unknown_outcome_is_left_by_nobody_and_never_forgotten(owner: str, entry: Entry, later: float) -> None:
    with pytest.raises(OutcomeStillUnknown):
        claimed(entry, owner, now=NOW + later)


def test_only_an_operator_ends_what_has_been_unknown_for_a_month() -> None:
    with pytest.raises(OutcomeStillUnknown) as early:
        claimed(UNKNOWN, now=NOW + PROVABLE - 1)
    assert "ask, and give the audit id" not in early.value.detail
    with pytest.raises(OutcomeStillUnknown) as late:
        claimed(UNKNOWN, now=NOW + PROVABLE)
    assert "sent 30 days ago" in late.value.detail
    assert "Only the operator of Countersign can still settle this" in late.value.detail


@pytest.mark.parametrize("entry", [SUCCEEDED, REJECTED, UNKNOWN, AWAITING], ids=lambda entry: entry.state)
@pytest.mark.parametrize("owner", ["a", "b"])
def test_key_with_other_parameters_is_refused_whatever_became_of_the_first(entry: Entry, owner: str) -> None:
    with pytest.raises(KeyReused):
        claimed(entry, owner, fingerprint="other", now=NOW + LEASE)


def test_key_with_other_parameters_waits_for_a_call_that_may_leave_it_free() -> None:
    with pytest.raises(KeyInUse):
        claimed(SENT, fingerprint="other")


@pytest.mark.parametrize("fingerprint", ["print", "other"])
@pytest.mark.parametrize("now", [NOW, NOW + LEASE])
def test_free_key_runs_with_whatever_parameters_from_where_it_was_at_the_upstream(fingerprint: str, now: float) -> None:
    fresh = replace(claimed(None, fingerprint=fingerprint, now=now), generation=3)
    assert claimed(replace(FREE, refused=False), fingerprint=fingerprint, now=now) == fresh
    # What was refused was sent then, and the upstream may forget that from then on.
    assert claimed(FREE, fingerprint=fingerprint, now=now) == replace(fresh, refused=True, sent=NOW)
    assert claimed(FREE, place="elsewhere", now=now) == claimed(None, place="elsewhere", now=now)


def test_invoice_of_another_account_is_not_repeated() -> None:
    with pytest.raises(KeyUsedElsewhere):
        claimed(SUCCEEDED, place="elsewhere")
    assert claimed(REJECTED, place="elsewhere") == REJECTED.answer


@pytest.mark.parametrize("entry", SETTLED, ids=lambda entry: entry.state)
@pytest.mark.parametrize("fingerprint", ["print", "other"])
def test_expired_key_is_free(entry: Entry, fingerprint: str) -> None:
    now = NOW + RETENTION
    assert claimed(entry, fingerprint=fingerprint, now=now) == claimed(None, fingerprint=fingerprint, now=now)


def test_record_outlives_a_replay_40_hours_later() -> None:
    assert RETENTION >= 72 * 3600
    assert claimed(SUCCEEDED, now=NOW + 40 * 3600) == ANSWER


@pytest.mark.parametrize(
    ("outcome", "after"),
    [
        (Outcome.SUCCEEDED, SUCCEEDED),
        (Outcome.REJECTED, replace(REJECTED, answer=ANSWER)),
        (Outcome.UNKNOWN, UNKNOWN),
        (Outcome.RELEASED, replace(FREE, refused=False, generation=0)),
        (Outcome.FREED, replace(FREE, generation=0)),
    ],
)
def test_owner_settles_what_it_sent(outcome: Outcome, after: Entry | None) -> None:
    assert settled(SENT, outcome) == after


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize(
    ("entry", "owner"),
    [(None, "a"), (SENT, "b"), *product([SUCCEEDED, REJECTED, UNKNOWN], ["a", "b"])],
)
def test_settlement_by_another_or_a_second_time_changes_nothing(
    entry: Entry | None, owner: str, outcome: Outcome
) -> None:
    assert settled(entry, outcome, owner) == entry


# ---------------------------------------------------------------- where the upstream deduplicates

#: For how long: long enough for a few leases.
KNOWN = 100
DOUBTFUL = replace(SENT, owner="b", doubt=True, until=NOW + LEASE)


@pytest.mark.parametrize("now", [NOW, NOW + LEASE, NOW + KNOWN - LEASE])
def test_unknown_is_sent_again_while_the_upstream_knows_the_key(now: float) -> None:
    again = replace(DOUBTFUL, lease_until=now + LEASE)
    assert claimed(UNKNOWN, resend=KNOWN, now=now) == again
    assert again.sent == NOW  # the first send's: what the upstream knows ages from there


@pytest.mark.parametrize("now", [NOW + KNOWN - LEASE + 0.001, NOW + KNOWN, NOW + KNOWN + 1, NOW + RETENTION - 0.001])
def test_unknown_is_not_sent_again_where_the_send_might_outlast_what_the_upstream_knows(now: float) -> None:
    for entry in (UNKNOWN, SENT, DOUBTFUL):
        with pytest.raises(OutcomeStillUnknown):
            claimed(entry, "c", resend=KNOWN, now=now)


def test_window_of_a_second_send_is_the_first_ones() -> None:
    held: Entry | None = UNKNOWN
    for number in range(3):
        again = claimed(held, resend=KNOWN, now=NOW + number * LEASE)
        assert isinstance(again, Entry)
        held = settled(again, Outcome.UNKNOWN, "b")
    with pytest.raises(OutcomeStillUnknown):
        claimed(held, resend=KNOWN, now=NOW + 3 * LEASE)


@pytest.mark.parametrize("resend", [0, 1, LEASE - 1])
def test_window_shorter_than_a_call_is_none(resend: int) -> None:
    with pytest.raises(OutcomeStillUnknown):
        claimed(UNKNOWN, resend=resend)


@pytest.mark.parametrize("entry", [SENT, DOUBTFUL], ids=["first", "second"])
@pytest.mark.parametrize("now", [NOW, NOW + LEASE - 0.001])
def test_running_call_is_not_sent_again(entry: Entry, now: float) -> None:
    with pytest.raises(KeyInUse):
        claimed(entry, "c", resend=KNOWN, now=now)


def test_claim_that_outlives_its_lease_is_sent_again_even_by_its_owner() -> None:
    again = claimed(SENT, "a", resend=KNOWN, now=NOW + LEASE)
    assert again == replace(SENT, lease_until=NOW + 2 * LEASE, doubt=True, until=NOW + LEASE)


def test_second_claim_whose_reply_was_lost_is_made_again_and_still_in_doubt() -> None:
    again = claimed(UNKNOWN, resend=KNOWN, now=NOW + 1)
    assert isinstance(again, Entry)
    assert claimed(again, resend=KNOWN, now=NOW + 2) == again


@pytest.mark.parametrize("entry", [SUCCEEDED, REJECTED])
def test_settled_answer_is_repeated_and_not_sent_again(entry: Entry) -> None:
    for now in (NOW, NOW + LEASE, NOW + KNOWN):
        assert claimed(entry, resend=KNOWN, now=now) == entry.answer


@pytest.mark.parametrize("entry", [UNKNOWN, SENT])
def test_call_is_sent_again_only_to_where_it_was_sent(entry: Entry) -> None:
    """A policy may send a connection's calls elsewhere by now, and nobody knows the key there."""
    with pytest.raises(OutcomeStillUnknown):
        claimed(entry, place="elsewhere", resend=KNOWN, now=NOW + LEASE)


@pytest.mark.parametrize("entry", [UNKNOWN, SENT, DOUBTFUL])
def test_other_parameters_are_refused_and_not_sent_again(entry: Entry) -> None:
    with pytest.raises(KeyReused):
        claimed(entry, fingerprint="other", resend=KNOWN, now=NOW + LEASE)


def test_call_whose_form_would_be_another_by_now_is_not_sent_again() -> None:
    """A fixed value of the policy has changed: the upstream would not take it for the same call."""
    for entry in (UNKNOWN, SENT):
        with pytest.raises(OutcomeStillUnknown):
            claimed(entry, written="another", resend=KNOWN, now=NOW + LEASE)


def test_call_to_which_the_upstream_repeats_nothing_but_an_error_is_not_sent_again() -> None:
    mute = settled(SENT, Outcome.UNKNOWN, mute=True)
    with pytest.raises(OutcomeStillUnknown):
        claimed(mute, resend=KNOWN, now=NOW + 1)


@pytest.mark.parametrize("now", [NOW + 1, NOW + 100 * RETENTION])
@pytest.mark.parametrize("written", ["form", "another"])
def test_call_that_waits_for_a_person_is_claimed_at_any_time_to_ask_what_became_of_it(now: float, written: str) -> None:
    again = claimed(AWAITING, "c", written=written, now=now)
    assert again == replace(AWAITING, state=State.SENT, owner="c", lease_until=now + LEASE)
    for outcome in (Outcome.RELEASED, Outcome.UNKNOWN):
        waits = settle(
            again if isinstance(again, Entry) else None,
            owner="c",
            reply=Reply(outcome, approval="areq_1"),
            answer=None,
            retention=RETENTION,
        )
        assert waits is not None
        assert (waits.state, waits.approval, waits.doubt) == (State.UNKNOWN, "areq_1", False)


# ---------------------------------------------------------------- generations of a key


def test_next_generation_is_in_no_doubt_of_the_one_before() -> None:
    moved = settled(DOUBTFUL, Outcome.RELEASED, "b", generation=1)
    assert moved is not None
    assert (moved.state, moved.generation, moved.refused, moved.doubt) == (State.FREE, 1, False, False)
    lost = settled(replace(DOUBTFUL, refused=True), Outcome.UNKNOWN, "b", generation=1)
    assert lost is not None
    assert (lost.state, lost.generation, lost.refused, lost.doubt) == (State.UNKNOWN, 1, False, True)
    assert lost.sent == DOUBTFUL.lease_until - LEASE


def test_refused_generation_stays_refused_until_something_else_is_known() -> None:
    again = claimed(FREE)
    assert isinstance(again, Entry)
    for outcome, refused in ((Outcome.RELEASED, True), (Outcome.UNKNOWN, True), (Outcome.FREED, True)):
        after = settled(again, outcome, "b", generation=3)
        assert after is not None
        assert (after.generation, after.refused) == (3, refused)


def test_settlement_never_goes_back_a_generation() -> None:
    assert settled(replace(SENT, generation=2), Outcome.RELEASED) == replace(FREE, refused=False, generation=2)


def test_free_key_is_remembered_for_longer_than_any_upstream_remembers_it() -> None:
    brief = settle(SENT, owner="a", reply=Reply(Outcome.FREED), answer=None, retention=60)
    assert brief is not None
    assert brief.expires == SENT.lease_until + LEAST_FREE > NOW + 24 * 3600


# ---------------------------------------------------------------- an operator's word


@pytest.mark.parametrize(
    ("entry", "now", "verdict"),
    [
        (None, NOW, Verdict.ABSENT),
        (SUCCEEDED, NOW + RETENTION, Verdict.ABSENT),
        (SENT, NOW, Verdict.RUNNING),
        (SUCCEEDED, NOW, Verdict.SETTLED),
        (REJECTED, NOW, Verdict.RESOLVED),
        (FREE, NOW, Verdict.SETTLED),
        (UNKNOWN, NOW + LEASE - 1, Verdict.RUNNING),
        (UNKNOWN, NOW + LEASE, Verdict.RESOLVED),
        (SENT, NOW + LEASE, Verdict.RESOLVED),
        (AWAITING, NOW + LEASE, Verdict.WAITING),
    ],
)
def test_nothing_created_is_believed_only_once_nothing_can_arrive_any_more(
    entry: Entry | None, now: float, verdict: Verdict
) -> None:
    said, decided = resolve(entry, None, now=now)
    assert said is verdict
    if verdict is Verdict.RESOLVED:
        assert decided is not None
        assert (decided.state, decided.expires) == (State.FREE, now + RETENTION)
        assert isinstance(claimed(decided, fingerprint="other", now=now), Entry)
    else:
        assert decided == entry


@pytest.mark.parametrize("entry", [UNKNOWN, AWAITING, REJECTED])
def test_invoice_that_an_operator_found_is_believed_at_once(entry: Entry) -> None:
    verdict, decided = resolve(entry, ANSWER, now=NOW)
    assert verdict is Verdict.RESOLVED
    assert claimed(decided, now=NOW + RETENTION - 1) == ANSWER


@pytest.mark.parametrize(
    ("outcome", "after"),
    [
        (Outcome.SUCCEEDED, replace(SUCCEEDED, owner="b", until=NOW + LEASE)),
        (Outcome.REJECTED, replace(SUCCEEDED, state=State.REJECTED, owner="b", until=NOW + LEASE)),
        (Outcome.UNKNOWN, replace(DOUBTFUL, state=State.UNKNOWN)),
        (Outcome.RELEASED, replace(DOUBTFUL, state=State.UNKNOWN)),  # an earlier send may have created an invoice
    ],
)
def test_second_owner_settles_what_it_sent(outcome: Outcome, after: Entry) -> None:
    assert settled(DOUBTFUL, outcome, "b") == after


@pytest.mark.parametrize("outcome", Outcome)
def test_first_owner_settles_nothing_once_somebody_else_has_claimed(outcome: Outcome) -> None:
    assert settled(DOUBTFUL, outcome, "a") == DOUBTFUL


def test_upstream_key_is_made_of_nothing_that_a_store_could_lose_and_tells_nothing() -> None:
    name = identity("app", "ft-4", "stripe-1", "invoices.create", "order-7")
    assert upstream_key(name) == upstream_key(name) != upstream_key(name[:-1])
    assert re.fullmatch(r"countersign-[0-9a-f]{48}", upstream_key(name))
    assert name[:16] not in upstream_key(name)


# ---------------------------------------------------------------- a key's name


def test_identity_is_64_hexadecimal_digits_that_say_nothing_of_the_key() -> None:
    name = identity("app", "ft-4", "stripe-1", "invoices.create", "order-7")
    assert len(bytes.fromhex(name)) == 32
    assert name == identity("app", "ft-4", "stripe-1", "invoices.create", "order-7")


def test_identity_differs_in_every_part_however_the_parts_are_cut() -> None:
    parts = [
        ("a", "b", "c", "d", "e"),
        ("x", "b", "c", "d", "e"),
        ("a", "x", "c", "d", "e"),
        ("a", "b", "x", "d", "e"),
        ("a", "b", "c", "x", "e"),
        ("a", "b", "c", "d", "x"),
        ("ab", "", "c", "d", "e"),
        ("", "ab", "c", "d", "e"),
        ("a", "b", "c", "de", ""),
        ("a", 'b","c', "", "d", "e"),
        ("a", "b", "c", "d", 'e"]'),
        ("a", "b", "c", "d", "ü"),
        ("a", "b", "c", "d", "\\u00fc"),
    ]
    assert len({identity(*part) for part in parts}) == len(parts)


# ---------------------------------------------------------------- every order of two callers


class World(NamedTuple):
    """All that two calls with one key can have done so far."""

    entry: Entry | None = None
    now: float = 0.0
    doing: tuple[str, str] = ("idle", "idle")
    sent: tuple[str, ...] = ()
    """Whose call went upstream and may have made an invoice."""


def after(world: World, who: int) -> list[World]:
    """Everything that one of the two may do next, the store's replies lost or not."""
    owner = "ab"[who]

    def does(doing: str, entry: Entry | None = world.entry, sent: tuple[str, ...] = world.sent) -> World:
        both = (doing, world.doing[1]) if who == 0 else (world.doing[0], doing)
        return World(entry, world.now, both, sent)

    match world.doing[who]:
        case "idle":
            try:
                entry = claimed(world.entry, owner, now=world.now)
            except LedgerRefusal:
                return []  # may come back whenever the world has moved on
            if isinstance(entry, Answer):
                return [does("answered")]
            sending = does("sending", entry=entry, sent=(*world.sent, owner))
            return [does("idle", entry=entry), does("released", entry=entry), sending, does("dead", entry=entry)]
        case "released":
            return [does("idle", entry=settled(world.entry, Outcome.RELEASED, owner))]
        case "sending":
            nothing = list(world.sent)
            nothing.remove(owner)
            return [
                does("dead"),
                does("done", entry=settled(world.entry, Outcome.SUCCEEDED, owner)),
                does("done", entry=settled(world.entry, Outcome.UNKNOWN, owner)),
                does("done", entry=settled(world.entry, Outcome.REJECTED, owner), sent=tuple(nothing)),
                does("idle", entry=settled(world.entry, Outcome.RELEASED, owner), sent=tuple(nothing)),
                does("done"),  # it succeeded, and settling failed
            ]
    return []


def test_two_callers_never_send_one_key_twice_whatever_happens_to_them() -> None:
    seen: set[World] = set()
    ahead = [World()]
    while ahead:
        world = ahead.pop()
        if world in seen:
            continue
        seen.add(world)
        assert len(world.sent) <= 1, world
        ahead += [*after(world, 0), *after(world, 1)]
        if world.now < 3 * LEASE:
            ahead.append(world._replace(now=world.now + LEASE / 2))
    assert len(seen) > 300
    assert {world.entry.state for world in seen if world.entry} == set(State)
    assert any(world.doing == ("answered", "done") for world in seen)
    assert any(world.doing == ("idle", "dead") and world.sent == ("b",) for world in seen)
