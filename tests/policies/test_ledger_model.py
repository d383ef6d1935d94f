"""The ledger's moves, tried in every order of events that one idempotency key can meet.

A few callers bring one key, with the same or with mended parameters, and each may be under way while the others are.
The ledger is moved by ``claim_for``, ``settle_for`` and ``resolve`` alone, and what happens within a call is decided by
``Upstreams.send`` and the dialects themselves: it is run again from its start with the answers so far, up to the next
request that it makes. Only the world around them is made here: the callers, the store, the upstream, people, the clock.

A scene says which misfortunes there are, and how many of them may come together. What brings nobody harm costs nothing:
calls that meet, a lease that runs out, a person who decides, an operator who looks.

What is assumed: a call sends nothing after its lease, and what it sent arrives within its lease or never; Stripe
repeats the first result under a key, also a refusal of what it began to carry out and a 500, but not a failed
validation; another form under a known key is an ``idempotency_error``; a key may be forgotten after a day, and is
after three.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import pytest
from msgspec.structs import replace

from gateway.upstreams import sending
from gateway.upstreams.sending import Upstreams
from policies import idempotency, outcomes
from policies.dialect import Dialect
from policies.idempotency import LEASE, RETENTION, Verdict
from policies.model import Admission, Answer, Entry, Outcome, State
from policies.outcomes import Decision, Means, Reply
from policies.refusals import LedgerRefusal
from policies.upstreams import stripe
from tests.policies.conftest import decided
from tests.policies.storm import (
    ACTIVE,
    CHANGED,
    DAY,
    DIFFERS,
    ENDLESS,
    EXPIRED,
    EXPIRES,
    HEAD,
    HELD,
    HOLLOW,
    LIE,
    LOCKED,
    OTHER,
    OWNERS,
    PENDING,
    REJECTED,
    SECRET,
    SUCCEEDED,
    TWICE,
    Asked,
    Claim,
    End,
    Event,
    Form,
    Resolve,
    Scene,
    Script,
    Search,
    Settle,
    Storm,
    Try,
    end_of,
    ended,
    in_order,
    invoice_body,
    scene,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.secrets import Secret
    from policies.dialect import Outgoing
    from policies.model import Grant, Step

FORM: Final = "another form is sent while the outcome of the first is open"
MUTE: Final = "sent again although the upstream repeats an answer that proves nothing"
WAITS: Final = "sent again while a person has yet to approve it"
PERSON: Final = "a person's refusal is not kept"
TAKEN: Final = "a decision is taken back that a call has met"
LEFT: Final = "a key whose decision is taken back is not as it was"
GHOST: Final = "an owner that gave up holds the key"

# ---------------------------------------------------------------- what callers ask for, and what an upstream says

DOCUMENT: Final = (
    HEAD
    + """\
    limits: [30/minute]
    grants:
      - connection: billing
        operation: invoices.create
        idempotency: required
        response: [id, description]
        parameters: {{customer: , description: , footer: {{fixed: "{footer}"}}}}
"""
)


@lru_cache
def granted(upstream: str, asks: str, footer: str) -> Grant:
    """A call that asks for the description ``asks`` while the document fixes ``footer``."""
    asked = {"customer": "cus_1", "description": asks}
    return decided(DOCUMENT.format(upstream=upstream, footer=footer), asked, key="order-1")


# ---------------------------------------------------------------- the code under test


class Met(Protocol):
    def __call__(self, held: Entry | None, *, now: float) -> Entry | None: ...


class Reopen(Protocol):
    def __call__(self, held: Entry | None, *, now: float) -> tuple[Verdict, Entry | None]: ...


class Ledger(NamedTuple):
    claim: Claim = idempotency.claim_for
    settle: Settle = idempotency.settle_for
    resolve: Resolve = idempotency.resolve
    met: Met = idempotency.met
    reopen: Reopen = idempotency.reopen
    marks: tuple[str, ...] = ("deleted", "missed")
    """Whose owners the store remembers: of entries that it deleted, and of claims to release that it did not find."""


def run(grant: Grant, admission: Admission, answers: tuple[str, ...]) -> Outgoing | End:
    """Run a call with the answers so far. Return the request that it makes next, or how it ended."""
    script = Script(answers)
    upstreams = Upstreams(script, script, script.clock, script.sleep)  # type: ignore[arg-type]  # a method of each
    try:
        reply = upstreams.send(grant, admission, SECRET, deadline=25.0)
    except Asked as asked:
        return asked.outgoing
    return end_of(grant, reply)


# ---------------------------------------------------------------- the world


class Request(NamedTuple):
    """What is on its way to the upstream."""

    owner: str
    place: str
    key: str
    form: Form
    until: float
    """It arrives before then, or never."""
    awaited: bool = True
    void: bool = False
    """Somebody was told since that nothing was created."""


class Late(NamedTuple):
    """A claim that the store has yet to take. It is written only over the version that it was judged by."""

    owner: str
    form: Form
    version: str
    until: float


class Known(NamedTuple):
    """What the upstream keeps under a key."""

    place: str
    key: str
    form: Form
    result: str
    since: float


class Approval(NamedTuple):
    """What waits for a person, who has it carried out, rejects it, or lets it lapse."""

    form: Form
    state: str = PENDING
    void: bool = False


class World(NamedTuple):
    """Everything that the next event depends on."""

    faults: int
    """How many misfortunes may still come."""
    tries: tuple[Try, ...]
    days: tuple[int, ...]
    entry: Entry | None = None
    now: float = 0.0
    wire: tuple[Request, ...] = ()
    late: tuple[Late, ...] = ()
    marked: frozenset[str] = frozenset()
    """The owners that the store will not let claim again."""
    gone: frozenset[str] = frozenset()
    """The owners that gave their claim back, and heard so."""
    known: tuple[Known, ...] = ()
    approvals: tuple[Approval, ...] = ()
    invoices: tuple[str, ...] = ()
    """What each was asked for."""
    told: frozenset[bytes] = frozenset()
    """The successes that callers were told."""
    footer: str = "1"
    place: str = "there"
    lost: bool = False
    """Whether the ledger was lost."""
    undone: Entry | None = None
    """What an operator's decision was about, until a call meets that decision."""

    def at(self, who: int, now: Try) -> World:
        return self._replace(tries=(*self.tries[:who], now, *self.tries[who + 1 :]))

    def unlucky(self) -> World:
        return self._replace(faults=self.faults - 1)


@dataclass
class Play(Storm[World]):
    """All that may happen in a scene."""

    scene: Scene
    ledger: Ledger = field(default_factory=Ledger)
    runs: dict[Any, Outgoing | End] = field(default_factory=dict, repr=False)

    def start(self) -> World:
        return World(self.scene.faults, (Try(),) * self.scene.tries, self.scene.days)

    def at_rest(self, world: World) -> Iterator[str]:
        return wrong_in_fair_weather(self, world)

    def restarted(self, world: World) -> World:
        """Start the clock again where nothing depends on it, which keeps the worlds few."""
        if world.entry or world.known or world.wire or world.late or not world.now:
            return world
        return world if any(one.phase in ACTIVE for one in world.tries) else world._replace(now=0.0)

    def shown(self, world: World) -> str:
        """Say in a few words what a world is like."""
        held = shown(world.entry)
        return f"{held}; invoices: {', '.join(world.invoices)}" if world.invoices else held

    def events(self, world: World) -> Iterator[Event]:
        for who, owner in enumerate(OWNERS[: self.scene.tries]):
            for what, after, *wrongs in self.turn(world, who):
                yield Event(owner, what, after, tuple(wrongs))
        for request in world.wire:
            for what, after, found in self.arrival(world, request):
                yield Event(request.owner, what, after, found)
        for late in world.late:
            yield Event(late.owner, "has its late claim taken by the store", *self._taken_late(world, late))
        yield from self._people(world)
        yield from self._elsewhere(world)
        yield from self._time(world)

    # ------------------------------------------------------------ a call

    @cached_property
    def phases(self) -> dict[str, Callable[[World, int], Iterator[tuple[Any, ...]]]]:
        """What a call is about: it comes, is admitted, waits for the upstream, has its result, and is over.

        It may owe its result to the store, or its release.
        """
        return {
            "away": self._coming,
            "asking": lambda world, who: self._claiming(world, who, world.tries[who].form),
            "calling": self._calling,
            "waiting": self._waiting,
            "ended": self._ending,
            "owing": lambda world, who: iter([("pays what it owes", self._settled(world, who).at(who, Try("over")))]),
            "releasing": lambda world, who: iter([("gives its claim back", self._released(world, who))]),
            "over": lambda world, who: iter(()),
        }

    def _claiming(self, world: World, who: int, form: Form) -> Iterator[tuple[Any, ...]]:
        owner, asks, came = OWNERS[who], f"asks for {form.asks}", world
        world = self._meeting(world, owner)
        held = self._claim(world, owner, form)
        if isinstance(held, Entry):
            wrongs = tuple(self._wrong_claim(world, held, form))
            taken = world._replace(entry=held)
            admission = Admission((), owner, world.now, held)
            yield f"{asks}: claims", taken.at(who, Try("calling", form, admission)), *wrongs
            if self.has(world, "store"):
                yield f"{asks}: claims, and does not hear so", taken.unlucky().at(who, Try("releasing", form)), *wrongs
                yield (
                    f"{asks}: claims, does not hear so; asks again",
                    taken.unlucky().at(who, Try("asking", form)),
                    *wrongs,
                )
        elif isinstance(held, Answer):
            told, found = tell(world, held, form)
            yield f"{asks}: gets the answer again", told.at(who, Try("over")), *found
        else:
            yield f"{asks}: is refused: {held}", world.at(who, Try("over"))
        if self.has(came, "store") and not any(late.owner == owner for late in came.late):
            late = Late(owner, form, _version(came.entry), came.now + LEASE)
            held_up = came.unlucky()._replace(late=(*world.late, late))
            yield f"{asks}: the claim is held up; gives up", held_up.at(who, Try("releasing", form))
            yield f"{asks}: the claim is held up; asks again", held_up.at(who, Try("asking", form))

    def _meeting(self, world: World, owner: str) -> World:
        """Have the store mark an operator's decision that a call is about to meet."""
        if owner in world.marked:
            return world
        marked = self.ledger.met(world.entry, now=world.now)
        return world._replace(entry=world.entry if marked is None else marked, undone=None)

    def _claim(self, world: World, owner: str, form: Form) -> Entry | Answer | str:
        """Bring the key to the store. Return the entry to write, the answer to repeat, or why not."""
        if owner in world.marked:
            return "given back"
        grant = granted(self.scene.upstream, *form)
        try:
            held = self.ledger.claim(grant, world.entry, owner=owner, place=world.place, now=world.now)
        except LedgerRefusal as refusal:
            return type(refusal).__name__
        assert held is not None
        return held

    def _wrong_claim(self, world: World, after: Entry, form: Form) -> Iterator[str]:
        before = world.entry
        if before is None or before.state not in {State.SENT, State.UNKNOWN} or after == before:
            return
        if before.approval is not None and after.approval is None:
            yield WAITS
        looks = before.approval is not None and after.approval is not None
        if before.written != granted(self.scene.upstream, *form).written and not looks:
            yield FORM
        if before.mute:
            yield MUTE

    def _taken_late(self, world: World, late: Late) -> tuple[World, tuple[str, ...]]:
        rest = world._replace(late=tuple(other for other in world.late if other != late))
        held = self._claim(rest, late.owner, late.form) if late.version == _version(world.entry) else None
        if not isinstance(held, Entry):
            return rest, ()
        return rest._replace(entry=held, undone=None), (GHOST,) if late.owner in world.gone else ()

    def _calling(self, world: World, who: int) -> Iterator[tuple[Any, ...]]:
        one, owner = world.tries[who], OWNERS[who]
        asked = self._run(one)
        assert not isinstance(asked, End)
        assert one.admission is not None
        if asked.method == "GET":
            looked = _look(world, asked.url)
            after = self._answered(world, who, looked)
            end = after.tries[who].end
            kept = looked != REJECTED or (end is not None and end.reply.outcome is Outcome.REJECTED)
            yield f"asks after the approval: {looked}", after, *([] if kept else [PERSON])
            if self.has(world, "no answer"):
                yield "asks after the approval: no answer", self._answered(world.unlucky(), who, "no answer")
            return
        entry = one.admission.entry
        assert entry is not None
        pending = entry.approval is not None and any(
            f"areq_{number}" == entry.approval and approval.state == PENDING
            for number, approval in enumerate(world.approvals)
        )
        key = asked.headers.get("Idempotency-Key", "")
        request = Request(owner, entry.place, key, one.form, entry.lease_until)
        yield (
            "sends",
            in_order(world, (*world.wire, request)).at(who, one._replace(phase="waiting")),
            *([WAITS] if pending else []),
        )
        if self.has(world, "no connection"):
            yield "gets no connection", self._answered(world.unlucky(), who, "no connection")
        if self.has(world, "record") and not one.answers:
            yield "cannot record its intent", world.unlucky().at(who, Try("releasing", one.form))

    def _run(self, one: Try) -> Outgoing | End:
        told = (one.form, one.admission, one.answers)
        if told not in self.runs:
            assert one.admission is not None
            self.runs[told] = run(granted(self.scene.upstream, *one.form), one.admission, one.answers)
        return self.runs[told]

    def _ending(self, world: World, who: int) -> Iterator[tuple[Any, ...]]:
        one = world.tries[who]
        assert one.end is not None
        told, wrongs = world, tuple[str, ...]()
        if one.end.nothing:
            told, wrongs = tell_nothing(world)
        elif one.end.reply.outcome is Outcome.SUCCEEDED:
            told, wrongs = tell(world, one.end.answer, one.form)
        outcome, settled = one.end.reply.outcome.value, self._settled(told, who)
        ours = world.entry is not None and (world.entry.state, world.entry.owner) == (State.SENT, OWNERS[who])
        free = settled.entry is None or settled.entry.state in {State.FREE, State.REJECTED}
        if ours and one.end.nothing and not free:
            wrongs = (*wrongs, HELD)
        yield f"writes {outcome}, and tells", settled.at(who, Try("over")), *wrongs
        if self.has(world, "settlement"):
            owing = one._replace(phase="owing", admission=None)
            unlucky = told.unlucky()
            yield f"writes {outcome}, and does not hear so", self._settled(unlucky, who).at(who, owing), *wrongs
            yield f"cannot write {outcome}, and tells", unlucky.at(who, owing), *wrongs

    # ------------------------------------------------------------ the store

    def _settled(self, world: World, who: int) -> World:
        one = world.tries[who]
        assert one.end is not None
        return self._write_end(world, who, one.form, one.end.reply, one.end.answer)

    def _released(self, world: World, who: int) -> World:
        reply = Reply(Outcome.RELEASED, reached=False)
        after = self._write_end(world, who, world.tries[who].form, reply, None)
        return after._replace(gone=after.gone | {OWNERS[who]}).at(who, Try("over"))

    def _write_end(self, world: World, who: int, form: Form, reply: Reply, answer: Answer | None) -> World:
        """End a claim as the stores do: an entry that says nothing is deleted, and its owner is marked."""
        owner, held = OWNERS[who], world.entry
        grant = granted(self.scene.upstream, *form)
        ended = self.ledger.settle(grant, held, owner=owner, reply=reply, answer=answer)
        deleted = ended is not None and ended is not held and idempotency.blank(ended)
        missed = reply.outcome is Outcome.RELEASED and ended is held
        marks = (deleted and "deleted" in self.ledger.marks) or (missed and "missed" in self.ledger.marks)
        marked = world.marked | {owner} if marks else world.marked
        return world._replace(entry=None if deleted else ended, marked=marked)

    # ------------------------------------------------------------ the upstream

    def arrival(self, world: World, request: Request) -> Iterator[tuple[str, World, tuple[str, ...]]]:
        """What the upstream may make of a request: what that is, the world, and what is wrong.

        What happens in fair weather comes first.
        """
        wire = list(world.wire)
        wire.remove(request)
        world = world._replace(wire=tuple(wire))
        known = next((k for k in world.known if (k.place, k.key) == (request.place, request.key)), None)
        age = 0.0 if known is None else world.now - known.since
        if known is not None and age < RETENTION:
            answer = _again(known.result) if known.form == request.form else "another form"
            yield self._heard("is answered again", world, request, answer)
        if known is None or age >= DAY:
            yield from self._fresh(world, request)
        for misfortune in ("429", "401", "a wrong door"):
            if self.has(world, misfortune):
                yield self._heard("meets", world.unlucky(), request, misfortune)
        if self.has(world, "in flight") and any((r.place, r.key) == (request.place, request.key) for r in world.wire):
            yield self._heard("meets", world.unlucky(), request, "in flight")

    def _fresh(self, world: World, request: Request) -> Iterator[tuple[str, World, tuple[str, ...]]]:
        made, answer, wrongs = _made(world, request.form, void=request.void)
        yield self._heard("is carried out", self._keep(made, request, answer), request, answer, wrongs)
        if self.has(world, "refused"):
            yield self._heard("fails validation", world.unlucky(), request, "refused")
        if self.has(world, "declined"):
            declined = self._keep(world.unlucky(), request, "declined")
            yield self._heard("is declined", declined, request, "declined")
        for failure in ("500", "foreign words"):
            if self.has(world, failure):
                failed = self._keep(made.unlucky(), request, failure)
                yield self._heard("is carried out, and answered with", failed, request, failure, wrongs)
                failed = self._keep(world.unlucky(), request, failure)
                yield self._heard("fails, and is answered with", failed, request, failure)
        if self.has(world, "a person"):
            waits = f"waits {len(world.approvals)}"
            asked = world.unlucky()._replace(approvals=(*world.approvals, Approval(request.form, void=request.void)))
            yield self._heard("needs a person", self._keep(asked, request, waits), request, waits)

    def _heard(
        self, what: str, world: World, request: Request, answer: str, wrongs: tuple[str, ...] = ()
    ) -> tuple[str, World, tuple[str, ...]]:
        if request.awaited:
            who = OWNERS.index(request.owner)
            return f"its call {what}: {answer}", self._answered(world, who, answer), wrongs
        return f"its call, not awaited, {what}: {answer}", world, wrongs

    def _keep(self, world: World, request: Request, result: str) -> World:
        if not self.scene.deduplicates:
            return world
        rest = tuple(k for k in world.known if (k.place, k.key) != (request.place, request.key))
        new = Known(request.place, request.key, request.form, result, world.now)
        return world._replace(known=tuple(sorted((*rest, new))))

    # ------------------------------------------------------------ everybody else

    def _people(self, world: World) -> Iterator[Event]:
        for number, approval in enumerate(world.approvals):
            if approval.state == PENDING:
                made, answer, wrongs = _made(world, approval.form, void=approval.void)
                done = f"{SUCCEEDED} {answer.split()[1]}"
                yield Event("", "a person approves, and it is carried out", ended(made, number, done), wrongs)
                yield Event("", "a person rejects", ended(world, number, REJECTED))
                yield Event("", "nobody decides in time", ended(world, number, EXPIRED))
        # Of an approval that the ledger does not know the operator learns at the upstream.
        known = world.entry.approval if world.entry else None
        pending = {f"areq_{n}" for n, approval in enumerate(world.approvals) if approval.state == PENDING}
        if "operator" in self.scene.menu and not pending - {known}:
            seen = Answer(200, invoice_body(0, world.invoices[0])) if world.invoices else None
            word = "created" if seen else "not created"
            verdict, entry = self.ledger.resolve(world.entry, seen, now=world.now, said=word)
            if verdict is Verdict.RESOLVED:
                told, wrongs = (world, ()) if seen else tell_nothing(world)
                decided = told._replace(entry=entry, undone=world.entry)
                yield Event("", f"an operator looks, and says: {word}", decided, wrongs)
        if "operator" in self.scene.menu:
            verdict, entry = self.ledger.reopen(world.entry, now=world.now)
            if verdict is Verdict.REOPENED:
                wrongs = tuple(_wrong_reopening(world, entry))
                back = world._replace(entry=entry, undone=None)
                yield Event("", "an operator takes a decision back", back, wrongs)

    def _elsewhere(self, world: World) -> Iterator[Event]:
        if self.has(world, "document") and world.footer == "1":
            yield Event("", "the document fixes something else", world.unlucky()._replace(footer="2"))
        if self.has(world, "place"):
            place = "elsewhere" if world.place == "there" else "there"
            yield Event("", f"the connection leads {place}", world.unlucky()._replace(place=place))
        quiet = not world.wire and not any(one.phase in ACTIVE for one in world.tries)
        if world.entry is not None and (self.has(world, "lost") or (quiet and self.has(world, "lost in between"))):
            yield Event(
                "",
                "the ledger is lost",
                world.unlucky()._replace(entry=None, marked=frozenset(), lost=True, undone=None),
            )

    def _time(self, world: World) -> Iterator[Event]:
        entry, later = world.entry, world.now + self.scene.tick
        if any(one.phase == "asking" for one in world.tries):
            return  # that takes a few seconds at most
        leases = [one.admission.entry.lease_until for one in world.tries if one.admission and one.admission.entry]
        running = entry is not None and (
            (entry.state is State.SENT and world.now < entry.lease_until)
            or (entry.state is State.UNKNOWN and world.now < entry.until)
        )
        if (running or world.wire or world.late) and all(later < lease for lease in leases):
            passed = world._replace(
                now=later,
                wire=tuple(request for request in world.wire if later < request.until),
                late=tuple(late for late in world.late if later < late.until),
            )
            yield Event("", "time passes", passed)
        if world.days and not (running or world.wire or world.late or leases):
            later = world.now + world.days[0]
            ends = entry is not None and entry.expires is not None and entry.expires <= later
            if not (ends and entry is not None and entry.state is not State.FREE):
                passed = world._replace(now=later, days=world.days[1:])
                passed = passed._replace(entry=None, undone=None) if ends else passed
                yield Event("", f"{world.days[0] / DAY:.1f} days pass", passed)


def _version(entry: Entry | None) -> str:
    return "" if entry is None else f"{entry.owner} {entry.state} {entry.said} {entry.told}"


def _wrong_reopening(world: World, after: Entry | None) -> Iterator[str]:
    """What is wrong with taking a decision back. A refusal may be kept for longer than it would have been."""
    before = world.undone
    if before is None:
        yield TAKEN
    elif (
        after is None
        or before != replace(after, expires=before.expires)
        or (after.expires is None) != (before.expires is None)
    ):
        yield LEFT


def _made(world: World, form: Form, *, void: bool) -> tuple[World, str, tuple[str, ...]]:
    """Make an invoice."""
    made = world._replace(invoices=(*world.invoices, form.asks))
    wrongs = (*([TWICE] if world.invoices else []), *([LIE] if void and not world.lost else []))
    return made, f"invoice {len(world.invoices)} {form.asks}", wrongs


def _again(result: str) -> str:
    return f"{result} again" if result in {"declined", "500", "foreign words"} else result


def _look(world: World, url: str) -> str:
    kind, _, number = url.rpartition("/")[2].rpartition("_")
    return world.approvals[int(number)].state if kind == "areq" else f"invoice {number} {world.invoices[int(number)]}"


def tell(world: World, answer: Answer, form: Form) -> tuple[World, tuple[str, ...]]:
    """Give a caller an answer of the ledger or of the upstream."""
    if answer.status != 200:
        return world, ()
    told = json.loads(answer.body)
    number = int(told["id"].removeprefix("in_"))
    wrongs = []
    if number >= len(world.invoices):
        wrongs.append(HOLLOW)
    elif (world.invoices[number], told["description"]) != (form.asks, form.asks):
        wrongs.append(OTHER)
    if world.told - {told["id"].encode()}:
        wrongs.append(DIFFERS)
    return world._replace(told=world.told | {told["id"].encode()}), tuple(wrongs)


def tell_nothing(world: World) -> tuple[World, tuple[str, ...]]:
    """Tell somebody that nothing was created: what is under way must not come to be, either."""
    wire = (request._replace(void=True) for request in world.wire)
    approvals = tuple(a._replace(void=True) if a.state == PENDING else a for a in world.approvals)
    wrong = world.invoices and not world.lost
    return in_order(world, wire)._replace(approvals=approvals), (LIE,) if wrong else ()


# ---------------------------------------------------------------- what must hold


def wrong_in_fair_weather(play: Play, world: World) -> Iterator[str]:
    """What nobody may meet who comes once the weather is fair."""
    entry = world.entry
    if world.lost or world.place != "there" or any(one.phase in ACTIVE for one in world.tries):
        return
    if entry is None or entry.state is State.FREE:
        if world.wire or "place" in play.scene.menu:  # what was refused at one place is forgotten at the other
            return
        if not all(in_fair_weather(play, world, asks) in WELL for asks in play.scene.asks):
            yield LOCKED
    elif (entry.state, entry.place, world.footer) == (State.UNKNOWN, "there", "1") and play.scene.deduplicates:
        now = max(world.now, entry.until)
        if entry.mute or now + 4 * LEASE > entry.sent + DAY:
            return
        calm = world._replace(now=now, wire=(), late=())
        asks = next(a for a in play.scene.asks if granted(play.scene.upstream, a, "1").fingerprint == entry.fingerprint)
        if in_fair_weather(play, calm, asks) not in {*WELL, "mute"}:
            yield ENDLESS


#: What a caller may meet in fair weather. A person's decision is one.
WELL: Final = frozenset({"invoice", "person"})


def in_fair_weather(play: Play, world: World, asks: str) -> str:
    """Have one more caller come, whom nothing befalls, and who comes again where it is told to. Return how it ends."""
    how = ""
    for who in range(len(OWNERS) - 3, len(OWNERS)):
        world, how = _fair_call(play, world, who, Form(asks, world.footer))
        if how not in {"released", "unknown", "awaits"}:
            break
        world = world._replace(now=world.now + LEASE)
    return how


def _fair_call(play: Play, world: World, who: int, form: Form) -> tuple[World, str]:
    world = world._replace(faults=0, wire=(), tries=(*[Try("over")] * who, Try("asking", form)))
    what, world, *_ = next(play.turn(world, who))
    while world.tries[who].phase in {"calling", "waiting"}:
        if world.wire:
            _, world, *_ = next(play.arrival(world, world.wire[0]))
        else:
            what, world, *_ = next(play.turn(world, who))
    end = world.tries[who].end
    if end is None:
        return world, "invoice" if "gets the answer again" in what else what
    _, world, *_ = next(play.turn(world, who))
    reply, states = end.reply, {approval.state for approval in world.approvals}
    if reply.approval is not None:
        return world, "person" if PENDING in states else "awaits"
    if reply.outcome is Outcome.REJECTED and REJECTED in states:
        return world, "person"
    return world, "invoice" if reply.outcome is Outcome.SUCCEEDED else "mute" if reply.mute else reply.outcome.value


# ---------------------------------------------------------------- the scenes

#: By what is in a scene's menu: the events that it makes.
MISFORTUNES: Final = {
    "no answer": ("gets no answer",),
    "a reset": ("gets a reset",),
    "no connection": ("gets no connection",),
    "killed": ("is killed",),
    "refused": ("its call fails validation: refused",),
    "declined": ("its call is declined: declined", "its call is answered again: declined again"),
    "500": (
        "its call is carried out, and answered with: 500",
        "its call fails, and is answered with: 500",
        "its call is answered again: 500 again",
    ),
    "foreign words": (
        "its call is carried out, and answered with: foreign words",
        "its call fails, and is answered with: foreign words",
    ),
    "429": ("its call meets: 429",),
    "401": ("its call meets: 401",),
    "a wrong door": ("its call meets: a wrong door",),
    "in flight": ("its call meets: in flight",),
    "record": ("cannot record its intent", "gives its claim back"),
    "settlement": (
        "writes succeeded, and does not hear so",
        "cannot write succeeded, and tells",
        "pays what it owes",
    ),
    "store": (
        "asks for x: claims, and does not hear so",
        "asks for x: claims, does not hear so; asks again",
        "asks for x: the claim is held up; gives up",
        "asks for x: the claim is held up; asks again",
        "has its late claim taken by the store",
        "gives its claim back",
    ),
    "a person": (
        "its call needs a person: waits 0",
        "its call is answered again: waits 0",
        "a person approves, and it is carried out",
        "a person rejects",
        "nobody decides in time",
        *(f"asks after the approval: {looked}" for looked in (PENDING, REJECTED, EXPIRED, f"{SUCCEEDED} 0")),
        "writes rejected, and tells",
    ),
    "operator": (
        "an operator looks, and says: created",
        "an operator looks, and says: not created",
        "an operator takes a decision back",
    ),
    "document": ("the document fixes something else",),
    "place": ("the connection leads elsewhere", "asks for x: is refused: KeyUsedElsewhere"),
    "lost": ("the ledger is lost",),
    "lost in between": ("the ledger is lost",),
}
ALWAYS: Final = (
    "asks for x: claims",
    "asks for x: gets the answer again",
    "asks for x: is refused: KeyInUse",
    "sends",
    "its call is carried out: invoice 0 x",
    "writes succeeded, and tells",
    "time passes",
)


#: Each with a number of worlds that it has at least.
SCENES: Final = {
    "everything": (
        50_000,
        scene(
            "no answer, a reset, no connection, killed, refused, declined, 500, foreign words, 429, 401, a wrong door, "
            "in flight, record, settlement",
            faults=3,
            asks="xy",
        ),
    ),
    "doubt": (10_000, scene("no answer, a reset, killed, refused, declined, in flight", faults=4)),
    "busy": (6_000, scene("no answer, killed, declined, 429, 401, a wrong door, no connection", faults=3, asks="xy")),
    "within a lease": (7_000, scene("no answer, a reset, killed, refused", faults=3, tick=LEASE // 2)),
    "failures": (10_000, scene("no answer, a reset, 500, foreign words, operator", faults=4)),
    "document": (5_000, scene("no answer, killed, refused, declined, document", faults=4)),
    "place": (3_000, scene("no answer, declined, place", faults=4)),
    "store": (10_000, scene("store, record, settlement, refused", faults=3)),
    "approval": (4_000, scene("a person, no answer, killed, operator", faults=4)),
    "approval, mended": (5_000, scene("a person, no answer, killed, refused, 429", faults=3, asks="xy")),
    "approval, days": (10_000, scene("a person, no answer, killed, document", faults=3, days=(DAY,))),
    "lost": (15_000, scene("lost, no answer, killed, declined", faults=3, asks="xy")),
    "lost, approval": (20_000, scene("lost, a person, no answer", faults=3, asks="xy")),
    "lost in between": (5_000, scene("lost in between, no answer, killed, refused, declined", faults=3, asks="xy")),
    "days": (
        30_000,
        scene(
            "no answer, killed, refused, declined", faults=3, asks="xy", days=(DAY - 2 * LEASE, 2 * LEASE, RETENTION)
        ),
    ),
    "operator, days": (
        15_000,
        scene("no answer, 500, operator", faults=2, asks="xy", days=(DAY - 2 * LEASE, 2 * LEASE, 2 * DAY)),
    ),
    "a day, four": (
        15_000,
        scene("no answer, killed, declined", faults=4, tries=4, days=(DAY - 2 * LEASE,)),
    ),
    "forwarded": (
        2_000,
        scene(
            "no answer, no connection, killed, refused, 500, foreign words, 429, a wrong door, operator",
            upstream="appgregator",
            faults=4,
            asks="xy",
        ),
    ),
    "forwarded, store": (
        10_000,
        scene("store, record, settlement, operator", upstream="appgregator", faults=3),
    ),
    "forwarded, days": (
        1_000,
        scene(
            "no answer, killed, refused, foreign words, operator",
            upstream="appgregator",
            faults=3,
            days=(RETENTION + LEASE,),
        ),
    ),
}


@pytest.mark.parametrize("name", SCENES)
def test_no_order_of_events_breaks_a_promise(name: str) -> None:
    least, where = SCENES[name]
    search = Search(Play(where)).run()
    assert not search.wrongs, "\n\n".join(search.wrongs.values())
    assert len(search.came) >= least
    expected = {event for misfortune in where.menu for event in MISFORTUNES[misfortune]} | {*ALWAYS}
    expected |= {f"{days / DAY:.1f} days pass" for days in where.days}
    if not where.deduplicates:
        expected = {event for event in expected if "answered again" not in event}
    assert expected <= search.events, expected - search.events
    if len(where.asks) > 1:
        assert "asks for y: is refused: KeyReused" in search.events
        assert "its call is answered again: another form" in search.events or not where.menu & {"declined", "document"}


@pytest.mark.parametrize("name", ["doubt", "busy", "a day, four"])
def test_call_with_no_time_left_for_the_next_key_breaks_no_promise(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sending, "FURTHER", 0)
    search = Search(Play(SCENES[name][1])).run()
    assert not search.wrongs, "\n\n".join(search.wrongs.values())


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        # The ledger forgets a call that is under way and takes a refusal for the reason of another form's answer.
        (scene("lost, refused", faults=2, asks="xy"), TWICE),
        # It went on to a second refused key before it was killed, and the ledger has only the first.
        (scene("operator, killed, declined", faults=3, asks="xy"), LOCKED),
    ],
)
def test_holes_that_are_known_are_left(where: Scene, wrong: str) -> None:
    """Whoever closes one moves its scene to those above."""
    assert set(Search(Play(where)).run().wrongs) <= {wrong, ENDLESS}
    assert wrong in Search(Play(where), until=wrong).run().wrongs


# ---------------------------------------------------------------- mistakes that the search must find


def found(name: str, ledger: Ledger, wrong: str) -> str | None:
    """Search a scene, from the nearest world on, for one wrong. Return the way there."""
    return Search(Play(SCENES[name][1], ledger), until=wrong).run().wrongs.get(wrong)


def open_is_free(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    return idempotency.claim_for(grant, None if held and held.state is State.UNKNOWN else held, **rest)


def lease_over_is_free(grant: Grant, held: Entry | None, *, now: float, **rest: Any) -> Entry | Answer | None:
    over = held is not None and held.state is State.SENT and held.lease_until <= now
    return idempotency.claim_for(grant, None if over else held, now=now, **rest)


def running_claim_is_taken_for_a_lost_one(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    return held if held and held.state is State.SENT else idempotency.claim_for(grant, held, **rest)


def running_call_is_answered_as_a_success(
    grant: Grant, held: Entry | None, *, owner: str, **rest: Any
) -> Entry | Answer | None:
    if held and held.state is State.SENT and held.owner != owner:
        return Answer(200, invoice_body(7, "x"))
    return idempotency.claim_for(grant, held, owner=owner, **rest)


def parameters_are_not_compared(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    return idempotency.claim_for(grant, held and replace(held, fingerprint=grant.fingerprint), **rest)


def form_is_not_compared(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    return idempotency.claim_for(grant, held and replace(held, written=grant.written), **rest)


def place_is_not_compared(grant: Grant, held: Entry | None, *, place: str, **rest: Any) -> Entry | Answer | None:
    return idempotency.claim_for(grant, held and replace(held, place=place), place=place, **rest)


def sent_again_for_ever(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    return idempotency.claim_for(replace(grant, resend_seconds=RETENTION), held, **rest)


def sent_again_up_to_the_last_second(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    return idempotency.claim_for(replace(grant, resend_seconds=DAY + LEASE), held, **rest)


def sent_again_where_nothing_deduplicates(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    return idempotency.claim_for(replace(grant, resend_seconds=DAY), held, **rest)


def second_send_is_taken_for_the_first(
    grant: Grant, held: Entry | None, *, now: float, **rest: Any
) -> Entry | Answer | None:
    claimed = idempotency.claim_for(grant, held, now=now, **rest)
    return replace(claimed, sent=now) if isinstance(claimed, Entry) and claimed is not held else claimed


def freed_key_is_as_young_as_its_claim(
    grant: Grant, held: Entry | None, *, now: float, **rest: Any
) -> Entry | Answer | None:
    claimed = idempotency.claim_for(grant, held, now=now, **rest)
    fresh = isinstance(claimed, Entry) and held is not None and held.state is State.FREE
    return replace(claimed, sent=now) if fresh and isinstance(claimed, Entry) else claimed


def killed_call_leaves_no_doubt(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    claimed = idempotency.claim_for(grant, held, **rest)
    gone = held is not None and held.state is State.SENT and not held.doubt
    return replace(claimed, doubt=False) if gone and isinstance(claimed, Entry) else claimed


def answer_that_proves_nothing_is_asked_for_again(
    grant: Grant, held: Entry | None, **rest: Any
) -> Entry | Answer | None:
    claimed = idempotency.claim_for(grant, held and replace(held, mute=False), **rest)
    return replace(claimed, mute=held.mute) if isinstance(claimed, Entry) and held else claimed


def approval_is_not_asked_for(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    claimed = idempotency.claim_for(grant, held, **rest)
    return replace(claimed, approval=None) if isinstance(claimed, Entry) else claimed


def key_that_is_not_known_is_a_refused_one(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    claimed = idempotency.claim_for(grant, held, **rest)
    return replace(claimed, refused=True) if held is None and isinstance(claimed, Entry) else claimed


@pytest.mark.parametrize(
    ("name", "mistake", "wrong"),
    [
        ("forwarded", open_is_free, TWICE),
        ("doubt", open_is_free, LIE),
        ("forwarded", lease_over_is_free, TWICE),
        ("forwarded", running_claim_is_taken_for_a_lost_one, TWICE),
        ("forwarded", running_call_is_answered_as_a_success, HOLLOW),
        ("forwarded", running_call_is_answered_as_a_success, DIFFERS),
        ("busy", parameters_are_not_compared, OTHER),
        ("document", form_is_not_compared, FORM),
        ("place", place_is_not_compared, TWICE),
        ("days", sent_again_for_ever, TWICE),
        ("days", sent_again_up_to_the_last_second, TWICE),
        ("forwarded", sent_again_where_nothing_deduplicates, TWICE),
        ("days", second_send_is_taken_for_the_first, TWICE),
        ("a day, four", freed_key_is_as_young_as_its_claim, TWICE),
        ("busy", killed_call_leaves_no_doubt, LIE),
        ("failures", answer_that_proves_nothing_is_asked_for_again, MUTE),
        ("approval", approval_is_not_asked_for, WAITS),
        ("lost", key_that_is_not_known_is_a_refused_one, TWICE),
    ],
)
def test_mistake_in_claiming_is_found(name: str, mistake: Claim, wrong: str) -> None:
    assert found(name, Ledger(claim=mistake), wrong)


def timeout_releases(grant: Grant, held: Entry | None, *, reply: Reply, **rest: Any) -> Entry | None:
    if reply.outcome is Outcome.UNKNOWN:
        reply = replace(reply, outcome=Outcome.RELEASED, doubt=False)
    return idempotency.settle_for(grant, held, reply=reply, **rest)


def rejection_releases(grant: Grant, held: Entry | None, *, reply: Reply, **rest: Any) -> Entry | None:
    if reply.outcome is Outcome.REJECTED:
        reply = replace(reply, outcome=Outcome.RELEASED)
    return idempotency.settle_for(grant, held, reply=reply, **rest)


def release_under_doubt_frees(grant: Grant, held: Entry | None, *, reply: Reply, **rest: Any) -> Entry | None:
    if reply.outcome is Outcome.RELEASED:
        return idempotency.settle_for(grant, held and replace(held, doubt=False), reply=reply, **rest)
    return idempotency.settle_for(grant, held, reply=reply, **rest)


def anybody_settles(grant: Grant, held: Entry | None, *, owner: str, **rest: Any) -> Entry | None:
    return idempotency.settle_for(grant, held, owner=held.owner if held else owner, **rest)


def settled_entry_is_overwritten(grant: Grant, held: Entry | None, *, owner: str, **rest: Any) -> Entry | None:
    if held and held.state is State.SUCCEEDED:
        held = replace(held, state=State.SENT, owner=owner)
    return idempotency.settle_for(grant, held, owner=owner, **rest)


def refusal_is_left_to_the_lease(grant: Grant, held: Entry | None, *, reply: Reply, **rest: Any) -> Entry | None:
    if reply.outcome is Outcome.FREED:
        return held
    return idempotency.settle_for(grant, held, reply=reply, **rest)


def answer_is_not_kept(grant: Grant, held: Entry | None, **rest: Any) -> Entry | None:
    return idempotency.settle_for(grant, held, **rest | {"answer": None})


def open_entry_expires(grant: Grant, held: Entry | None, **rest: Any) -> Entry | None:
    ended = idempotency.settle_for(grant, held, **rest)
    return replace(ended, expires=ended.sent + RETENTION) if ended and ended.state is State.UNKNOWN else ended


def free_forgets_the_generation(grant: Grant, held: Entry | None, **rest: Any) -> Entry | None:
    ended = idempotency.settle_for(grant, held, **rest)
    return replace(ended, generation=0) if ended and ended.state is State.FREE else ended


def free_forgets_the_refusal(grant: Grant, held: Entry | None, **rest: Any) -> Entry | None:
    ended = idempotency.settle_for(grant, held, **rest)
    return replace(ended, refused=False) if ended and ended.state is State.FREE else ended


def next_generation_is_as_young_as_its_last_claim(grant: Grant, held: Entry | None, **rest: Any) -> Entry | None:
    ended = idempotency.settle_for(grant, held, **rest)
    moved = ended is not None and held is not None and ended.generation > held.generation
    return replace(ended, sent=ended.lease_until - LEASE) if moved and ended else ended


def approval_of_the_last_generation_is_kept(grant: Grant, held: Entry | None, **rest: Any) -> Entry | None:
    ended = idempotency.settle_for(grant, held, **rest)
    moved = ended is not None and held is not None and held.approval and ended.generation > held.generation
    return replace(ended, state=State.UNKNOWN, approval=held.approval) if moved and ended and held else ended


def lease_of_a_lost_send_is_forgotten(grant: Grant, held: Entry | None, **rest: Any) -> Entry | None:
    ended = idempotency.settle_for(grant, held, **rest)
    return replace(ended, until=0.0) if ended and ended is not held else ended


@pytest.mark.parametrize(
    ("name", "mistake", "wrong"),
    [
        ("forwarded", timeout_releases, TWICE),
        ("doubt", timeout_releases, LIE),
        ("forwarded", rejection_releases, TWICE),
        ("forwarded, store", anybody_settles, TWICE),
        ("store", settled_entry_is_overwritten, CHANGED),
        ("doubt", refusal_is_left_to_the_lease, HELD),
        ("doubt", answer_is_not_kept, CHANGED),
        ("forwarded, days", open_entry_expires, EXPIRES),
        ("forwarded, days", open_entry_expires, TWICE),
        ("everything", free_forgets_the_generation, LOCKED),
        ("everything", free_forgets_the_refusal, LOCKED),
        ("a day, four", next_generation_is_as_young_as_its_last_claim, TWICE),
        ("approval", approval_of_the_last_generation_is_kept, HELD),
        ("doubt", lease_of_a_lost_send_is_forgotten, LIE),
        ("everything", release_under_doubt_frees, LOCKED),
    ],
)
def test_mistake_in_settling_is_found(name: str, mistake: Settle, wrong: str) -> None:
    assert found(name, Ledger(settle=mistake), wrong)


def word_is_taken_at_once(
    held: Entry | None, answer: Answer | None, *, now: float, said: str
) -> tuple[Verdict, Entry | None]:
    return idempotency.resolve(held and replace(held, until=0.0), answer, now=now, said=said)


def word_is_taken_of_a_running_call(
    held: Entry | None, answer: Answer | None, *, now: float, said: str
) -> tuple[Verdict, Entry | None]:
    running = held is not None and held.state is State.SENT
    return idempotency.resolve(
        replace(held, state=State.UNKNOWN) if running and held else held, answer, now=now, said=said
    )


def word_is_taken_before_a_person_decides(
    held: Entry | None, answer: Answer | None, *, now: float, said: str
) -> tuple[Verdict, Entry | None]:
    return idempotency.resolve(held and replace(held, approval=None), answer, now=now, said=said)


@pytest.mark.parametrize(
    ("name", "mistake", "wrong"),
    [
        ("forwarded", word_is_taken_at_once, TWICE),
        ("forwarded", word_is_taken_of_a_running_call, TWICE),
        ("approval", word_is_taken_before_a_person_decides, LIE),
    ],
)
def test_mistake_in_taking_an_operators_word_is_found(name: str, mistake: Resolve, wrong: str) -> None:
    assert found(name, Ledger(resolve=mistake), wrong)


def decision_is_told_without_a_mark(held: Entry | None, *, now: float) -> Entry | None:
    return None


def freed_key_is_claimed_without_a_mark(grant: Grant, held: Entry | None, **rest: Any) -> Entry | Answer | None:
    claimed = idempotency.claim_for(grant, held, **rest)
    freed = held is not None and held.state is State.FREE and isinstance(claimed, Entry)
    return replace(claimed, before=held.before) if freed and held and isinstance(claimed, Entry) else claimed


def marked_decision_is_taken_back(held: Entry | None, *, now: float) -> tuple[Verdict, Entry | None]:
    if held is not None and held.said and held.state is State.SUCCEEDED:
        return Verdict.REOPENED, replace(held, state=State.UNKNOWN, said="", told=0.0, answer=None, expires=None)
    return idempotency.reopen(held, now=now)


def key_is_open_again_beyond_doubt(held: Entry | None, *, now: float) -> tuple[Verdict, Entry | None]:
    verdict, before = idempotency.reopen(held, now=now)
    return verdict, replace(before, doubt=False) if before and verdict is Verdict.REOPENED else before


def key_is_opened_from_what_the_decision_left(held: Entry | None, *, now: float) -> tuple[Verdict, Entry | None]:
    verdict, before = idempotency.reopen(held, now=now)
    if held is None or verdict is not Verdict.REOPENED:
        return verdict, before
    opened = replace(held, state=State.UNKNOWN, answer=None, expires=None, said="", before=None)
    return verdict, opened


@pytest.mark.parametrize(
    ("mistake", "wrong"),
    [
        (Ledger(met=decision_is_told_without_a_mark), TAKEN),
        (Ledger(claim=freed_key_is_claimed_without_a_mark), TAKEN),
        (Ledger(reopen=marked_decision_is_taken_back), TAKEN),
        (Ledger(reopen=key_is_open_again_beyond_doubt), LEFT),
        (Ledger(reopen=key_is_opened_from_what_the_decision_left), LEFT),
    ],
)
def test_mistake_in_taking_a_decision_back_is_found(mistake: Ledger, wrong: str) -> None:
    assert found("forwarded", mistake, wrong)


@pytest.mark.parametrize("marks", [(), ("missed",), ("deleted",)])
def test_store_that_lets_a_late_claim_take_the_key_is_found(marks: tuple[str, ...]) -> None:
    assert found("forwarded, store", Ledger(marks=marks), GHOST)


def every_call_is_quiet(dialect: Dialect, grant: Grant, admission: Admission) -> Step:
    return replace(STEP(dialect, grant, admission), quiet=True)


def key_is_of_the_owner(dialect: Dialect, grant: Grant, admission: Admission) -> Step:
    return replace(STEP(dialect, grant, admission), name=admission.owner)


def every_key_was_refused(dialect: Dialect, grant: Grant, admission: Admission) -> Step:
    return replace(STEP(dialect, grant, admission), refused=True)


def key_is_without_its_generation(name: str, *_: object) -> str:
    return idempotency.upstream_key(name)


def next_key_is_beyond_doubt(step: Any, **changes: Any) -> Any:
    return replace(step, **changes, **({"doubt": False} if "refused" in changes else {}))


def release_is_told_under_doubt(grant: Grant, step: Step, reply: Reply) -> Reply:
    return reply


def wrong_door_frees_under_doubt(grant: Grant, step: Step, status: int) -> Reply:
    return MISROUTED(grant, replace(step, doubt=False), status)


def refusal_closes_its_key(grant: Grant, step: Step, status: int, said: Any) -> Reply:
    return FREED(grant, step, status, replace(said, kept=True))


def refusal_frees_under_doubt(grant: Grant, step: Step, status: int, said: Any) -> Reply:
    return FREED(grant, replace(step, doubt=False), status, said)


def kept_refusal_is_like_any_other(grant: Grant, step: Step, status: int, said: Any) -> Reply:
    return FREED(grant, step, status, replace(said, kept=False))


def kept_answer_is_like_any_other(grant: Grant, step: Step, status: int, headers: Any, said: Any) -> Reply:
    return REFUSED(grant, step, status, headers, said if said.means is Means.REFUSED else replace(said, kept=False))


def kept_answer_closes_its_key(grant: Grant, step: Step, status: int, headers: Any, said: Any) -> Reply:
    return REFUSED(grant, replace(step, refused=True, doubt=False) if said.kept else step, status, headers, said)


def approval_is_taken_for_a_fresh_call(  # noqa: PLR0917 - those of what it stands for
    upstreams: Any, dialect: Any, grant: Grant, step: Step, approval: str, secret: Secret, deadline: float
) -> Reply:
    reply: Reply = upstreams._attempt(dialect, grant, step, secret, deadline)
    return reply


STEP: Final = Dialect.first
REFUSED: Final = outcomes._refused
MISROUTED: Final = outcomes._misrouted
FREED: Final = outcomes._freed


@pytest.mark.parametrize(
    ("name", "module", "function", "mistake", "wrong"),
    [
        ("doubt", Dialect, "first", every_call_is_quiet, LIE),
        ("lost in between", Dialect, "first", every_call_is_quiet, TWICE),
        ("doubt", Dialect, "first", key_is_of_the_owner, TWICE),
        ("lost", Dialect, "first", every_key_was_refused, TWICE),
        ("busy", sending, "replace", next_key_is_beyond_doubt, LIE),
        ("doubt", stripe, "upstream_key", key_is_without_its_generation, LOCKED),
        ("approval", Upstreams, "_ask", approval_is_taken_for_a_fresh_call, WAITS),
        ("failures", outcomes, "_refused", kept_answer_is_like_any_other, LOCKED),
        ("failures", outcomes, "_refused", kept_answer_is_like_any_other, ENDLESS),
        ("failures", outcomes, "_refused", kept_answer_closes_its_key, TWICE),
        ("busy", outcomes, "_released", release_is_told_under_doubt, LIE),
        ("busy", outcomes, "_misrouted", wrong_door_frees_under_doubt, LIE),
        ("doubt", outcomes, "_freed", refusal_closes_its_key, TWICE),
        ("doubt", outcomes, "_freed", refusal_frees_under_doubt, LIE),
        ("doubt", outcomes, "_freed", kept_refusal_is_like_any_other, LOCKED),
    ],
)
def test_mistake_within_a_call_is_found(
    monkeypatch: pytest.MonkeyPatch, *, name: str, module: Any, function: str, mistake: Any, wrong: str
) -> None:
    monkeypatch.setattr(module, function, mistake)
    assert found(name, Ledger(), wrong)


@pytest.mark.parametrize(
    ("name", "table", "says", "mistake", "wrong"),
    [
        ("busy", "_BY_TYPE", "idempotency_error", Means.REFUSED, LOCKED),
        ("approval", "_DECISIONS", PENDING, Decision.LAPSED, TWICE),
        ("approval", "_DECISIONS", REJECTED, Decision.LAPSED, PERSON),
        ("approval", "_DECISIONS", EXPIRED, Decision.WAITS, ENDLESS),
    ],
)
def test_mistake_in_what_stripe_says_is_found(
    monkeypatch: pytest.MonkeyPatch, *, name: str, table: str, says: str, mistake: object, wrong: str
) -> None:
    monkeypatch.setitem(getattr(stripe, table), says, mistake)
    assert found(name, Ledger(), wrong)


def test_what_is_found_is_told_step_by_step() -> None:
    told = found("forwarded", Ledger(claim=lease_over_is_free), TWICE)
    assert told is not None
    assert [" ".join(line.split()) for line in told.splitlines()] == [
        "two invoices of one key:",
        "1. a asks for x: claims sent by a",
        "2. a sends sent by a",
        "3. a is killed sent by a",
        "4. a its call, not awaited, is carried out: invoice 0 x sent by a; invoices: x",
        "5. time passes sent by a; invoices: x",
        "6. b asks for x: claims sent by b; invoices: x",
        "7. b sends sent by b; invoices: x",
        "8. b its call is carried out: invoice 1 x sent by b; invoices: x, x",
    ]
