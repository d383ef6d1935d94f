"""The ledger's moves, tried in every order that three callers, a store and an upstream can bring about.

Three callers bring one key and the same parameters, each up to twice (once where the upstream deduplicates). A caller
may hang up and try again while its first try is still at work, so six tries may be under way at once, each with its
own owner token. Any message to the store or the upstream may be lost, on its way there or back; a call may reach the
upstream long after whoever sent it stopped waiting; a lease may run out, and a try may crash, between any two steps.
What the ledger holds is moved by the functions under test and by nothing else.

It is tried with two upstreams. One makes an invoice of every call that reaches it. The other deduplicates: it answers a
call whose key it knows with the invoice of the first, and forgets a key a while after it first saw it; a call to it
reaches it within the lease that it was sent under, or never.

A call lost before the upstream is one that stays on the wire for ever, and a store that cannot be reached changes
nothing. Where no entry is held nothing depends on the time, so the clock starts again: that keeps the worlds finite
and loses none of them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import pytest
from msgspec.structs import replace

from policies import idempotency
from policies.idempotency import LEASE, RETENTION, Entry, State
from policies.model import Answer, Outcome
from policies.refusals import KeyInUse, LedgerRefusal, OutcomeStillUnknown

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The tries by their owner tokens: a caller's letter, and whether it is its first or its second.
OWNERS: Final = ("a1", "a2", "b1", "b2", "c1", "c2")
SUCCESS: Final = {owner: Answer(200, owner.encode()) for owner in OWNERS}
REJECTION: Final = {owner: Answer(400, owner.encode()) for owner in OWNERS}
#: A store is handed an answer whatever the outcome; this one it must never repeat.
EXCUSE: Final = Answer(502, b"")
#: A mistaken ledger may renew leases for ever; its search ends here.
HORIZON: Final = 8 * LEASE
#: For how long the upstream that deduplicates knows a key: long enough for a second send, and a third.
KNOWN: Final = 3 * LEASE
FORGOTTEN: Final = KNOWN + 2 * LEASE

TWICE: Final = "the upstream applied one key twice"
FREE: Final = "a key is free although a call with it went out"
HOLLOW: Final = "a success was told of an invoice that does not exist"
DIFFERS: Final = "two answers were given to one key"
UNREPEATED: Final = "the answer that was settled is not repeated"
UNKNOWN_LEFT: Final = "an unknown outcome was left"
INTRUSION: Final = "somebody changed an entry of another owner"
NOT_RELEASED: Final = "a released key cannot be claimed afresh"
OWN_CLAIM_LOST: Final = "an owner whose claim's reply was lost cannot claim again"

# ---------------------------------------------------------------- the ledger under test


class Claim(Protocol):
    def __call__(
        self, entry: Entry | None, *, owner: str, fingerprint: str, place: str, retention: int, resend: int, now: float
    ) -> Entry | Answer: ...


class Settle(Protocol):
    def __call__(self, entry: Entry | None, *, owner: str, outcome: Outcome, answer: Answer | None) -> Entry | None: ...


class Ledger(NamedTuple):
    claim: Claim = idempotency.claim
    settle: Settle = idempotency.settle
    resend: int = 0
    """For how long its upstream deduplicates."""

    def asked(self, world: World, owner: str) -> Entry | Answer | type[LedgerRefusal]:
        try:
            return self.claim(
                world.entry,
                owner=owner,
                fingerprint="same",
                place="there",
                retention=RETENTION,
                resend=self.resend,
                now=world.now,
            )
        except LedgerRefusal as refusal:
            return type(refusal)


# ---------------------------------------------------------------- the world


class World(NamedTuple):
    entry: Entry | None = None
    now: float = 0
    tries: tuple[str, ...] = ("away",) * len(OWNERS)
    """What each try is about."""
    wire: frozenset[str] = frozenset()
    """Whose calls are on their way to the upstream, for ever if they are lost."""
    invoices: tuple[str, ...] = ()
    """Whose calls made one."""
    told: frozenset[Answer] = frozenset()
    """What callers were answered, refusals of ours aside."""
    known_since: float | None = None
    """When an upstream that deduplicates first saw the key."""

    def at(self, who: int, phase: str) -> World:
        tries = (*self.tries[:who], phase, *self.tries[who + 1 :])
        return World(self.entry, self.now, tries, self.wire, self.invoices, self.told, self.known_since)

    def holding(self, entry: Entry | None) -> World:
        if entry is self.entry:
            return self
        # An upstream that knows the key goes by the clock too.
        return self._replace(entry=entry, now=self.now if entry or self.known_since is not None else 0)

    def telling(self, answer: Answer | None) -> World:
        return self if answer is None or answer in self.told else self._replace(told=self.told | {answer})


#: What a try does by itself: from what it is about, to what, and how a trace tells it.
ALONE: Final = {
    "claimed": [("releasing", "cannot record its intent, or connect")],
    "waiting": [("keeping an unknown", "waits in vain")],
    "accepted": [("keeping a success", "reads a success"), ("keeping an unknown", "loses the reply to its call")],
    "put off": [
        ("releasing", "reads a refusal for now"),
        ("keeping an unknown", "loses the reply to its call"),
    ],
    "declined": [
        ("keeping a rejection", "reads a refusal for good"),
        ("releasing", "reads a refusal for now"),
        ("keeping an unknown", "loses the reply to its call"),
    ],
}
OUTCOMES: Final = {
    "releasing": Outcome.RELEASED,
    "keeping a success": Outcome.SUCCEEDED,
    "keeping a rejection": Outcome.REJECTED,
    "keeping an unknown": Outcome.UNKNOWN,
}
ANSWERS: Final = {"keeping a success": SUCCESS, "keeping a rejection": REJECTION}


def may_begin(world: World, who: int) -> bool:
    """A caller tries a second time once it has tried a first time, whatever became of that.

    The callers differ in nothing but their names, so they are named in the order in which they come.
    """
    return who == 0 or world.tries[who - 1 if who % 2 else who - 2] != "away"


def claiming(world: World, who: int, ledger: Ledger) -> Iterator[tuple[str, World]]:
    held = ledger.asked(world, OWNERS[who])
    if isinstance(held, Entry):
        yield "claims", world.holding(held).at(who, "claimed")
        yield "claims, and the reply is lost", world.holding(held).at(who, "asking")
    else:
        yield (
            "is refused or repeated an answer",
            world.at(who, "over").telling(held if isinstance(held, Answer) else None),
        )
        yield "is refused or repeated an answer, and that is lost", world.at(who, "asking")


def settling(world: World, who: int, ledger: Ledger) -> Iterator[tuple[str, World]]:
    phase, owner = world.tries[who], OWNERS[who]
    answer = answer_of(world, who, ledger) if phase in ANSWERS else None
    kept = world.holding(ledger.settle(world.entry, owner=owner, outcome=OUTCOMES[phase], answer=answer or EXCUSE))
    yield f"is done {phase}", kept.at(who, "over").telling(answer)
    yield f"is done {phase}, and does not hear of it", kept
    if answer is not None:
        yield f"fails in {phase}, and tells its caller all the same", world.at(who, "over").telling(answer)


def answer_of(world: World, who: int, ledger: Ledger) -> Answer:
    """What the upstream told this try: of a success, one that deduplicates tells everybody the same."""
    phase, owner = world.tries[who], OWNERS[who]
    if phase == "keeping a success" and ledger.resend and world.invoices:
        return SUCCESS[world.invoices[-1]]
    return ANSWERS[phase][owner]


def turn(world: World, who: int, ledger: Ledger) -> Iterator[tuple[str, World]]:
    """Everything that one try may do next."""
    phase = world.tries[who]
    if phase == "over" or (phase == "away" and not may_begin(world, who)):
        return
    if phase in {"away", "asking"}:
        yield from claiming(world, who, ledger)
    if phase in OUTCOMES:
        yield from settling(world, who, ledger)
    if phase == "claimed":
        yield "sends", world.at(who, "waiting")._replace(wire=world.wire | {OWNERS[who]})
    for following, what in ALONE.get(phase, ()):
        yield what, world.at(who, following)
    if phase != "away":
        yield "crashes", world.at(who, "over")


def arrival(world: World, who: int, ledger: Ledger) -> Iterator[tuple[str, World]]:
    """What the upstream may make of a call, be it awaited still or not."""
    landed = world._replace(wire=world.wire - {OWNERS[who]})
    known = world.known_since is not None and world.now < world.known_since + ledger.resend
    if known:
        applied = landed
    else:
        since = world.now if ledger.resend else None
        applied = landed._replace(invoices=(*world.invoices, OWNERS[who]), known_since=since)
    if world.tries[who] == "waiting":
        yield "has its call applied", applied.at(who, "accepted")
        # One that knows the key may be too busy to say so, but never says that the call was wrong.
        yield "has its call declined", landed.at(who, "put off" if known else "declined")
    elif not known:
        yield "has its call applied, which it no longer awaits", applied
    else:
        yield "has its call answered, which it no longer awaits", applied


# ---------------------------------------------------------------- what must hold


def wrong_in(world: World, ledger: Ledger) -> Iterator[str]:
    """What no world may show."""
    entry = world.entry
    if len(world.invoices) > 1:
        yield TWICE
    if (world.invoices or world.wire) and (entry is None or entry.expires <= world.now):
        yield FREE
    if any(answer.status == 200 and answer.body.decode() not in world.invoices for answer in world.told):
        yield HOLLOW
    answers = world.told | ({entry.answer} if entry and entry.answer else set())
    if ledger.resend:  # a refusal that could not be kept is no refusal any more once the call is sent again
        answers = frozenset(answer for answer in answers if answer.status == 200)
    if len(answers) > 1:
        yield DIFFERS
    if entry and entry.state is State.SENT:
        who = OWNERS.index(entry.owner)
        if world.tries[who] == "asking" and world.now < entry.lease_until and ledger.asked(world, entry.owner) != entry:
            yield OWN_CLAIM_LOST
        if world.tries[who] in OUTCOMES:
            yield from wrong_settlement(world, who, ledger)


def wrong_settlement(world: World, who: int, ledger: Ledger) -> Iterator[str]:
    """What the next to bring the key must not meet once the owner has settled."""
    phase = world.tries[who]
    entry = world.entry
    _, settled = next(settling(world, who, ledger))
    met = ledger.asked(settled, "next")
    match OUTCOMES[phase]:
        case Outcome.RELEASED if entry and not entry.doubt:
            if not isinstance(met, Entry) or (met.state, met.owner, met.doubt) != (State.SENT, "next", False):
                yield NOT_RELEASED
        case Outcome.UNKNOWN | Outcome.RELEASED:
            again = entry and world.now + LEASE <= entry.sent + ledger.resend
            if not (isinstance(met, Entry) and met.doubt if again else met is OutcomeStillUnknown):
                yield UNKNOWN_LEFT
        case Outcome.SUCCEEDED | Outcome.REJECTED:
            if met != answer_of(world, who, ledger):
                yield UNREPEATED


def wrong_between(world: World, owner: str, after: Entry | None, ledger: Ledger) -> Iterator[str]:
    """What no step of a try may do to an entry."""
    before = world.entry
    if before is None or before == after:
        return
    resent = (
        after is not None
        and (after.state, after.owner, after.sent, after.doubt) == (State.SENT, owner, before.sent, True)
        and (before.state is State.UNKNOWN or world.now >= before.lease_until)
        and world.now + LEASE <= before.sent + ledger.resend
    )
    if before.state is State.UNKNOWN and not resent:
        yield UNKNOWN_LEFT
    if before.owner != owner and not resent:
        yield INTRUSION


# ---------------------------------------------------------------- the search


@dataclass
class Search:
    """Every world that a ledger can lead to, the nearest first, up to the first that is wrong as ``until`` says."""

    ledger: Ledger
    until: str | None = None
    start: World = field(default_factory=World)
    came: dict[World, tuple[World, int | None, str] | None] = field(default_factory=dict, repr=False)
    """Every world met, and the step by which it was met first."""
    events: set[str] = field(default_factory=set, repr=False)
    wrongs: dict[str, str] = field(default_factory=dict)
    """What is wrong, and the shortest way there."""

    def run(self) -> Search:
        self.came[self.start] = None
        ahead = deque([self.start])
        while ahead and (self.until is None or self.until not in self.wrongs):
            world = ahead.popleft()
            for who, what, following in self._steps(world):
                self.events.add(what)
                wrongs: list[str] = []
                if who is not None and following.entry is not world.entry:
                    wrongs += wrong_between(world, OWNERS[who], following.entry, self.ledger)
                if following not in self.came:
                    self.came[following] = (world, who, what)
                    ahead.append(following)
                    wrongs += wrong_in(following, self.ledger)
                for wrong in wrongs:
                    self.wrongs.setdefault(wrong, self._trace(wrong, world, who, what, following))
        return self

    def _steps(self, world: World) -> Iterator[tuple[int | None, str, World]]:
        for who, owner in enumerate(OWNERS):
            arriving = arrival(world, who, self.ledger) if owner in world.wire else ()
            for what, following in chain(turn(world, who, self.ledger), arriving):
                yield who, what, following
        entry = world.entry
        horizon = FORGOTTEN if self.ledger.resend else HORIZON
        if entry and entry.state is State.SENT and world.now < min(entry.lease_until, horizon):
            yield None, "the lease runs out", self._later(world, entry.lease_until)
        elif entry and entry.state is State.UNKNOWN and self.ledger.resend and world.now < FORGOTTEN:
            yield None, "time passes", self._later(world, world.now + LEASE)

    def _later(self, world: World, now: float) -> World:
        if not self.ledger.resend:
            return world._replace(now=now)
        # A call to an upstream that deduplicates has a deadline within its lease, and is not sent or under way after.
        tries = tuple("releasing" if phase == "claimed" else phase for phase in world.tries)
        return world._replace(now=now, tries=tries, wire=frozenset())

    def _trace(self, wrong: str, world: World, who: int | None, what: str, following: World) -> str:
        steps = [(who, what, following)]
        while came := self.came[world]:
            steps.append((came[1], came[2], world))
            world = came[0]
        return "\n".join(
            [f"{wrong}:"]
            + [
                f"{number:4}. {'' if who is None else OWNERS[who]:3}{what:56}{shown(after)}"
                for number, (who, what, after) in enumerate(reversed(steps), 1)
            ]
        )


def shown(world: World) -> str:
    held = f"{world.entry.state} by {world.entry.owner}" if world.entry else "nothing held"
    return f"{held}, invoices of {' and '.join(world.invoices)}" if world.invoices else held


@pytest.fixture(scope="module")
def searched() -> Search:
    return Search(Ledger()).run()


def deduplicated(ledger: Ledger, until: str | None = None) -> Search:
    """Three callers, once each: what the upstream remembers makes far more worlds."""
    once = World(tries=("away", "over") * 3)
    return Search(ledger._replace(resend=KNOWN), until=until, start=once).run()


@pytest.fixture(scope="module")
def searched_again() -> Search:
    return deduplicated(Ledger())


def test_no_order_of_events_breaks_a_promise_where_the_upstream_deduplicates(searched_again: Search) -> None:
    assert not searched_again.wrongs, "\n\n".join(searched_again.wrongs.values())


def test_search_meets_calls_that_are_sent_again(searched_again: Search) -> None:
    assert len(searched_again.came) > 50_000
    held = [world for world in searched_again.came if world.entry and world.entry.doubt]
    assert {world.entry.state for world in held if world.entry} == set(State)
    assert any(world.told == {SUCCESS["a1"]} and world.entry and world.entry.owner == "c1" for world in held)
    assert any(world.now >= (world.known_since or 0) + KNOWN for world in held)
    assert {"time passes", "the lease runs out", "has its call answered, which it no longer awaits"} <= (
        searched_again.events
    )


def test_no_order_of_events_breaks_a_promise(searched: Search) -> None:
    assert not searched.wrongs, "\n\n".join(searched.wrongs.values())


def test_search_meets_every_state_and_every_event(searched: Search) -> None:
    assert len(searched.came) > 50_000
    assert {world.entry.state for world in searched.came if world.entry} == set(State)
    assert {phase for world in searched.came for phase in world.tries} == {
        *("away", "asking", "waiting", "over"),
        *(ALONE.keys() - {"put off"}),
        *OUTCOMES,
    }
    assert {world.invoices for world in searched.came} == {(), *((owner,) for owner in OWNERS)}
    assert searched.events == {
        "claims",
        "claims, and the reply is lost",
        "is refused or repeated an answer",
        "is refused or repeated an answer, and that is lost",
        "sends",
        "crashes",
        "has its call applied",
        "has its call applied, which it no longer awaits",
        "has its call declined",
        "the lease runs out",
        *(what for moves in ALONE.values() for _, what in moves),
        *(f"is done {phase}, and does not hear of it" for phase in OUTCOMES),
        *(f"is done {phase}" for phase in OUTCOMES),
        *(f"fails in {phase}, and tells its caller all the same" for phase in ANSWERS),
    }


@pytest.mark.parametrize(
    ("state", "invoices", "told"),
    [
        (State.SENT, ("b2",), {SUCCESS["b2"]}),  # the answer was told and could not be kept
        (State.UNKNOWN, ("b2",), set()),  # the call was applied after it was given up
        (State.UNKNOWN, (), set()),
        (State.SUCCEEDED, ("b2",), {SUCCESS["b2"]}),
        (State.REJECTED, (), {REJECTION["b2"]}),
    ],
)
def test_search_meets_a_second_try_that_follows_a_release_still_repeated(
    searched: Search, state: State, invoices: tuple[str, ...], told: set[Answer]
) -> None:
    assert any(
        world.entry
        and (world.entry.state, world.entry.owner) == (state, "b2")
        and world.invoices == invoices
        and world.told == told
        and world.tries[0] == "releasing"
        for world in searched.came
    )


# ---------------------------------------------------------------- mistakes that the search must find


def lease_lets_another_send(entry: Entry | None, *, now: float, **rest: Any) -> Entry | Answer:
    if entry and entry.state is State.SENT and entry.lease_until <= now:
        entry = None
    return idempotency.claim(entry, now=now, **rest)


def owner_is_the_caller(entry: Entry | None, *, owner: str, **rest: Any) -> Entry | Answer:
    if entry and entry.state is State.SENT and entry.owner[0] == owner[0]:
        entry = replace(entry, owner=owner)
    return idempotency.claim(entry, owner=owner, **rest)


def running_claim_is_taken_for_a_lost_one(entry: Entry | None, **rest: Any) -> Entry | Answer:
    if entry and entry.state is State.SENT:
        return entry
    return idempotency.claim(entry, **rest)


def lost_claim_is_refused_to_its_owner(entry: Entry | None, *, owner: str, **rest: Any) -> Entry | Answer:
    if entry and entry.state is State.SENT and entry.owner == owner:
        raise KeyInUse(retry_after=1)
    return idempotency.claim(entry, owner=owner, **rest)


def unknown_is_free(entry: Entry | None, **rest: Any) -> Entry | Answer:
    if entry and entry.state is State.UNKNOWN:
        entry = None
    return idempotency.claim(entry, **rest)


def running_call_is_answered_as_a_success(entry: Entry | None, *, owner: str, **rest: Any) -> Entry | Answer:
    if entry and entry.state is State.SENT and entry.owner != owner:
        return SUCCESS[entry.owner]
    return idempotency.claim(entry, owner=owner, **rest)


def key_is_kept_no_longer_than_its_lease(entry: Entry | None, *, retention: int, **rest: Any) -> Entry | Answer:
    return idempotency.claim(entry, retention=LEASE, **rest)


def timeout_releases(entry: Entry | None, *, outcome: Outcome, **rest: Any) -> Entry | None:
    outcome = Outcome.RELEASED if outcome is Outcome.UNKNOWN else outcome
    return idempotency.settle(entry, outcome=outcome, **rest)


def timeout_is_a_rejection(entry: Entry | None, *, outcome: Outcome, **rest: Any) -> Entry | None:
    outcome = Outcome.REJECTED if outcome is Outcome.UNKNOWN else outcome
    return idempotency.settle(entry, outcome=outcome, **rest)


def rejection_is_forgotten(entry: Entry | None, *, outcome: Outcome, **rest: Any) -> Entry | None:
    outcome = Outcome.RELEASED if outcome is Outcome.REJECTED else outcome
    return idempotency.settle(entry, outcome=outcome, **rest)


def running_claim_is_settled_by_anybody(entry: Entry | None, *, owner: str, **rest: Any) -> Entry | None:
    return idempotency.settle(entry, owner=entry.owner if entry else owner, **rest)


def settlement_overwrites_whatever_is_held(entry: Entry | None, *, owner: str, **rest: Any) -> Entry | None:
    if entry:
        entry, owner = replace(entry, state=State.SENT, answer=None), entry.owner
    return idempotency.settle(entry, owner=owner, **rest)


def release_is_left_to_the_lease(entry: Entry | None, *, outcome: Outcome, **rest: Any) -> Entry | None:
    if outcome is Outcome.RELEASED:
        return entry
    return idempotency.settle(entry, outcome=outcome, **rest)


def answer_is_not_kept(entry: Entry | None, *, answer: Answer | None, **rest: Any) -> Entry | None:
    return idempotency.settle(entry, answer=None, **rest)


@pytest.mark.parametrize(
    ("mistake", "wrong"),
    [
        (lease_lets_another_send, TWICE),
        (lease_lets_another_send, INTRUSION),
        (owner_is_the_caller, TWICE),
        (running_claim_is_taken_for_a_lost_one, TWICE),
        (lost_claim_is_refused_to_its_owner, OWN_CLAIM_LOST),
        (unknown_is_free, TWICE),
        (unknown_is_free, UNKNOWN_LEFT),
        (running_call_is_answered_as_a_success, HOLLOW),
        (key_is_kept_no_longer_than_its_lease, TWICE),
    ],
)
def test_mistake_in_claiming_is_found(mistake: Claim, wrong: str) -> None:
    assert wrong in Search(Ledger(claim=mistake), until=wrong).run().wrongs


def key_is_sent_again_for_ever(entry: Entry | None, *, resend: int, **rest: Any) -> Entry | Answer:
    return idempotency.claim(entry, resend=RETENTION, **rest)


def second_send_is_taken_for_the_first(entry: Entry | None, *, now: float, **rest: Any) -> Entry | Answer:
    claimed = idempotency.claim(entry, now=now, **rest)
    return replace(claimed, sent=now) if isinstance(claimed, Entry) and claimed is not entry else claimed


def owner_may_come_back_at_any_time(entry: Entry | None, *, owner: str, **rest: Any) -> Entry | Answer:
    if entry and entry.state is State.SENT and entry.owner == owner:
        return entry
    return idempotency.claim(entry, owner=owner, **rest)


def doubt_is_forgotten(entry: Entry | None, *, outcome: Outcome, **rest: Any) -> Entry | None:
    return idempotency.settle(entry and replace(entry, doubt=False), outcome=outcome, **rest)


@pytest.mark.parametrize(
    ("mistake", "wrong"),
    [
        (key_is_sent_again_for_ever, TWICE),
        (second_send_is_taken_for_the_first, TWICE),
        (owner_may_come_back_at_any_time, TWICE),
    ],
)
def test_mistake_in_sending_again_is_found(mistake: Claim, wrong: str) -> None:
    assert wrong in deduplicated(Ledger(claim=mistake), until=wrong).wrongs


def test_release_of_a_second_send_that_frees_the_key_is_found() -> None:
    assert deduplicated(Ledger(settle=doubt_is_forgotten), until=FREE).wrongs


@pytest.mark.parametrize(
    ("mistake", "wrong"),
    [
        (timeout_releases, TWICE),
        (timeout_releases, FREE),
        (timeout_is_a_rejection, UNKNOWN_LEFT),
        (rejection_is_forgotten, DIFFERS),
        (running_claim_is_settled_by_anybody, TWICE),
        (settlement_overwrites_whatever_is_held, UNKNOWN_LEFT),
        (release_is_left_to_the_lease, NOT_RELEASED),
        (answer_is_not_kept, UNREPEATED),
    ],
)
def test_mistake_in_settling_is_found(mistake: Settle, wrong: str) -> None:
    assert wrong in Search(Ledger(settle=mistake), until=wrong).run().wrongs


def test_what_is_found_is_told_step_by_step() -> None:
    told = Search(Ledger(claim=lease_lets_another_send), until=TWICE).run().wrongs[TWICE]
    assert [" ".join(line.split()) for line in told.splitlines()] == [
        "the upstream applied one key twice:",
        "1. a1 claims sent by a1",
        "2. a1 sends sent by a1",
        "3. a1 has its call applied sent by a1, invoices of a1",
        "4. the lease runs out sent by a1, invoices of a1",
        "5. a2 claims sent by a2, invoices of a1",
        "6. a2 sends sent by a2, invoices of a1",
        "7. a2 has its call applied sent by a2, invoices of a1 and a2",
    ]
