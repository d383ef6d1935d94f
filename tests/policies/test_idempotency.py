"""The ledger's moves: no order of claims, losses and settlements sends one key twice."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import pytest

from policies.idempotency import LEASE, RETENTION, Entry, State, claim, identity, settle
from policies.model import Answer, Outcome
from policies.refusals import KeyInUse, KeyReused, LedgerRefusal, OutcomeStillUnknown

ANSWER = Answer(200, b'{"id":"in_1"}')
NOW = 1000.0
SENT = Entry(State.SENT, "a", "print", NOW, NOW + LEASE, NOW + RETENTION)
SUCCEEDED = replace(SENT, state=State.SUCCEEDED, answer=ANSWER)
REJECTED = replace(SENT, state=State.REJECTED, answer=Answer(400, b"{}"))
UNKNOWN = replace(SENT, state=State.UNKNOWN)
HELD = [SENT, SUCCEEDED, REJECTED, UNKNOWN]


def claimed(
    entry: Entry | None,
    owner: str = "b",
    *,
    fingerprint: str = "print",
    now: float = NOW,
    retention: int = RETENTION,
    resend: int = 0,
) -> Entry | Answer:
    return claim(entry, owner=owner, fingerprint=fingerprint, retention=retention, resend=resend, now=now)


def settled(entry: Entry | None, outcome: Outcome, owner: str = "a") -> Entry | None:
    return settle(entry, owner=owner, outcome=outcome, answer=ANSWER)


def test_first_claim_is_sent_under_a_lease() -> None:
    assert claimed(None, "a") == SENT
    assert claimed(None, "a", retention=10 * RETENTION) == replace(SENT, expires=NOW + 10 * RETENTION)


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
@pytest.mark.parametrize("entry", [UNKNOWN, replace(SUCCEEDED, answer=None)])
def test_unknown_outcome_is_left_by_nobody(owner: str, entry: Entry) -> None:
    with pytest.raises(OutcomeStillUnknown):
        claimed(entry, owner, now=NOW + RETENTION - 0.001)


@pytest.mark.parametrize("entry", HELD, ids=lambda entry: entry.state)
@pytest.mark.parametrize("owner", ["a", "b"])
def test_key_with_other_parameters_is_refused_whatever_became_of_the_first(entry: Entry, owner: str) -> None:
    with pytest.raises(KeyReused):
        claimed(entry, owner, fingerprint="other")


@pytest.mark.parametrize("entry", HELD, ids=lambda entry: entry.state)
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
        (Outcome.RELEASED, None),
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


def test_identity_is_64_hexadecimal_digits_that_say_nothing_of_the_key() -> None:
    name = identity("app", "billing", "invoices.create", "order-7")
    assert len(bytes.fromhex(name)) == 32
    assert name == identity("app", "billing", "invoices.create", "order-7")


def test_identity_differs_in_every_part_however_the_parts_are_cut() -> None:
    quadruples = [
        ("a", "b", "c", "d"),
        ("x", "b", "c", "d"),
        ("a", "x", "c", "d"),
        ("a", "b", "x", "d"),
        ("a", "b", "c", "x"),
        ("ab", "", "c", "d"),
        ("", "ab", "c", "d"),
        ("a", "b", "cd", ""),
        ("a", 'b","c', "", "d"),
        ("a", "b", "c", 'd"]'),
        ("a", "b", "c", "ü"),
        ("a", "b", "c", "\\u00fc"),
    ]
    assert len({identity(*quadruple) for quadruple in quadruples}) == len(quadruples)


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
