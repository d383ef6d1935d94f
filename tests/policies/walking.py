"""What the models of calls in several steps share: each step is written, sent, and answered in some order.

``claim_for``, ``advance``, ``settle_for`` and ``resolve`` alone move the ledger, and what happens within a call is
decided by ``Upstreams.send``, its walk, the plan and Stripe's dialect themselves. A call is run again from its start
with the answers so far, up to its next request or its next step in the ledger. Only the world is made here: the
callers, the store, Stripe, people, the clock. What there is at Stripe, and what a step makes of it, each model says
itself.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from gateway.stopping import LEAST_SECONDS
from gateway.upstreams.sending import Upstreams
from gateway.upstreams.transport import LostError, NotSentError, Received
from policies import idempotency
from policies.idempotency import LEASE
from policies.issuing import Stage
from policies.model import Admission, Entry, State
from policies.refusals import LedgerRefusal, StoreUnavailable
from tests.policies.storm import (
    DAY,
    OWNERS,
    PENDING,
    REJECTED,
    SECRET,
    SUCCEEDED,
    Asked,
    Claim,
    End,
    Event,
    Form,
    Resolve,
    Script,
    Settle,
    Storm,
    Try,
    end_of,
    ended,
    in_order,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policies.dialect import Outgoing
    from policies.issuing import Progress
    from policies.model import Answer, Grant
    from policies.outcomes import Reply

#: So many answers no call of a scene has.
MOST: Final = 40

# ---------------------------------------------------------------- the code under test


class Advance(Protocol):
    def __call__(self, held: Entry | None, progress: Progress, *, owner: str) -> Entry | None: ...


class Ledger(NamedTuple):
    claim: Claim = idempotency.claim_for
    advance: Advance = idempotency.advance
    settle: Settle = idempotency.settle_for
    resolve: Resolve = idempotency.resolve


class Advancing(BaseException):
    """A call writes how far it has come, and the script does not say yet what came of that."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress


class Walk(Script):
    """Of one call the transport, the clock, the secrets, the store and the record, whose answers are given.

    An answer is the name of one of Stripe's, or the store's: the entry, or why not.
    """

    admission: Admission | None = None

    def __init__(self, answers: tuple[str | Entry, ...], received: Callable[[str], Received]) -> None:
        super().__init__(())
        self._left, self._received = iter(answers), received

    def send(self, outgoing: Outgoing, key: object, seconds: float) -> Received:
        name = next(self._left, None)
        assert not isinstance(name, Entry)
        if name is None:
            raise Asked(outgoing)
        if name == "no connection":
            raise NotSentError
        slow = name.startswith("late ")
        if slow or name == "no answer":
            self._now += seconds - slow * LEAST_SECONDS / 2
        if name in {"no answer", "a reset"}:
            raise LostError
        return self._received(name.removeprefix("late "))

    def advance(self, grant: Grant, admission: Admission, progress: Progress) -> Admission | None:
        match next(self._left, None):
            case None:
                raise Advancing(progress)
            case Entry() as entry:
                return replace(admission, entry=entry)
            case "the store is down":
                raise StoreUnavailable(note="")
            case _:
                return None

    def step(self, at: Progress, reply: Reply) -> None:
        """Put nothing on record."""


Next = Asked | Advancing | End


def run(
    grant: Grant, admission: Admission, answers: tuple[str | Entry, ...], received: Callable[[str], Received]
) -> Next:
    """Run a call with the answers so far. Return what it does next, or how it ended.

    ``received`` gives the answer of a name.
    """
    script: Any = Walk(answers, received)
    upstreams = Upstreams(script, script, script.clock, script.sleep, script)
    try:
        reply = upstreams.send(grant, admission, SECRET, 25.0, script)
    except (Asked, Advancing) as ahead:
        return ahead
    return end_of(grant, reply)


# ---------------------------------------------------------------- the world


class Request(NamedTuple):
    """What is on its way to Stripe."""

    owner: str
    stage: str
    number: int
    """Of the invoice that it is about."""
    key: str
    form: bytes
    asks: str
    stamp: str
    until: float
    """It arrives before then, or never."""
    awaited: bool = True
    void: bool = False
    """Somebody was told since that nothing was created."""


class Known(NamedTuple):
    """What Stripe keeps under a key."""

    key: str
    form: bytes
    result: str
    since: float


class Approval(NamedTuple):
    """What waits for a person, who has it carried out, rejects it, or lets it lapse."""

    request: Request
    state: str = PENDING


#: A world, with what a model of calls in several steps reads and changes in it.
W = TypeVar("W", bound=Any)


@dataclass
class Walking(Storm[W]):
    """All that may happen to calls in several steps."""

    ledger: Ledger = field(default_factory=Ledger)
    runs: dict[Any, Next] = field(default_factory=dict, repr=False)

    @abstractmethod
    def granted(self, form: Form) -> Grant:
        """Return the grant of a call."""

    @abstractmethod
    def received(self, name: str) -> Received:
        """Return the answer of a name."""

    @abstractmethod
    def request(self, asked: Outgoing, owner: str, asks: str, until: float) -> Request:
        """Return what is on its way, of a request that changes something."""

    @abstractmethod
    def unfit(self, world: W, request: Request) -> tuple[str, ...]:
        """Say what is wrong with sending a request."""

    @abstractmethod
    def carried_out(self, world: W, request: Request) -> tuple[W, str, tuple[str, ...]]:
        """Carry a request out: the world, what it answers, and what is wrong."""

    @abstractmethod
    def tell(self, world: W, answer: Answer, form: Form) -> tuple[W, tuple[str, ...]]:
        """Give a caller an answer of the ledger or of Stripe."""

    @abstractmethod
    def told(self, world: W, who: int) -> tuple[W, tuple[str, ...]]:
        """Tell a caller how its call ended."""

    @abstractmethod
    def _looking(self, world: W, who: int, asked: Outgoing) -> Iterator[tuple[Any, ...]]:
        """Look at something at Stripe."""

    @abstractmethod
    def _people(self, world: W) -> Iterator[Event]:
        """What people do."""

    def restarted(self, world: W) -> W:
        """Start the clock again where nothing depends on it, which keeps the worlds few."""
        again: W = world._replace(now=0.0) if world.quiet and not (world.entry or world.known) else world
        return again

    def events(self, world: W) -> Iterator[Event]:
        for who, owner in enumerate(OWNERS[: self.scene.tries]):
            for what, after, *wrongs in self.turn(world, who):
                yield Event(owner, what, after, tuple(wrongs))
        for request in world.wire:
            for what, after, found in self.arrival(world, request):
                yield Event(request.owner, what, after, found)
        yield from self._people(world)
        yield from self._elsewhere(world)
        yield from self._time(world)

    # ------------------------------------------------------------ a call

    @cached_property
    def phases(self) -> dict[str, Callable[[W, int], Iterator[tuple[Any, ...]]]]:
        """What a call is about: it comes, is admitted, does its steps, has its result, owes it, and is over."""
        return {
            "away": self._coming,
            "asking": lambda world, who: self._claiming(world, who, world.tries[who].form),
            "calling": self._calling,
            "waiting": self._waiting,
            "ended": self._ending,
            "owing": lambda world, who: iter([("pays what it owes", self._settled(world, who).at(who, Try("over")))]),
            "over": lambda world, who: iter(()),
        }

    def _claiming(self, world: W, who: int, form: Form) -> Iterator[tuple[Any, ...]]:
        owner, asks, grant = OWNERS[who], f"asks for {form.asks}", self.granted(form)
        try:
            held = self.ledger.claim(grant, world.entry, owner=owner, place="there", now=world.now)
        except LedgerRefusal as refusal:
            yield f"{asks}: is refused: {type(refusal).__name__}", world.at(who, Try("over"))
            return
        if isinstance(held, Entry):
            admission = Admission((), "me", world.now, _mine(held))
            yield f"{asks}: claims", world._replace(entry=held).at(who, Try("calling", form, admission))
        elif held is not None:
            told, found = self.tell(world, held, form)
            yield f"{asks}: gets the answer again", told.at(who, Try("over")), *found

    def _calling(self, world: W, who: int) -> Iterator[tuple[Any, ...]]:
        one, owner = world.tries[who], OWNERS[who]
        ahead = self._run(one)
        assert one.admission is not None
        assert not isinstance(ahead, End)
        if isinstance(ahead, Advancing):
            yield from self._advancing(world, who, ahead.progress)
            return
        asked = ahead.outgoing
        if asked.method == "GET":
            yield from self._looking(world, who, asked)
            return
        lease = (world.now if self._asleep(world, one) else one.admission.taken) + LEASE
        request = self.request(asked, owner, one.form.asks, lease)
        wrongs = () if world.lost or self._asleep(world, one) else self.unfit(world, request)
        sent = in_order(world, (*world.wire, request)).at(who, one._replace(phase="waiting"))
        yield f"sends {request.stage}", sent, *wrongs
        if self.has(world, "no connection"):
            yield "gets no connection", self._answered(world.unlucky(), who, "no connection")

    def _advancing(self, world: W, who: int, progress: Progress) -> Iterator[tuple[Any, ...]]:
        entry = self.ledger.advance(world.entry, progress, owner=OWNERS[who])
        if entry is None:
            yield f"cannot go on to {progress.stage}", self._answered(world, who, "not ours")
            return
        written = world._replace(entry=entry)
        yield f"goes on to {progress.stage}", self._answered(written, who, _mine(entry))
        if self.has(world, "store"):
            yield f"cannot write {progress.stage}", self._answered(world.unlucky(), who, "the store is down")
            down = self._answered(written.unlucky(), who, "the store is down")
            yield f"writes {progress.stage}, and does not hear so", down

    def _run(self, one: Try) -> Next:
        told = (one.form, one.admission, one.answers)
        if told not in self.runs:
            assert one.admission is not None
            assert len(one.answers) < MOST, f"more answers than any call has: {one.answers}"
            self.runs[told] = run(self.granted(one.form), one.admission, one.answers, self.received)
        return self.runs[told]

    def _ending(self, world: W, who: int) -> Iterator[tuple[Any, ...]]:
        one = world.tries[who]
        assert one.end is not None
        told, wrongs = self.told(world, who)
        outcome, settled = one.end.reply.outcome.value, self._settled(told, who)
        yield f"writes {outcome}, and tells", settled.at(who, Try("over")), *wrongs
        if self.has(world, "settlement"):
            owing = one._replace(phase="owing", admission=None)
            unlucky = told.unlucky()
            yield f"writes {outcome}, and does not hear so", self._settled(unlucky, who).at(who, owing), *wrongs
            yield f"cannot write {outcome}, and tells", unlucky.at(who, owing), *wrongs

    @staticmethod
    def _asleep(world: W, one: Try) -> bool:
        """Whether a call slept past its lease."""
        return one.admission is not None and world.now >= one.admission.taken + LEASE

    def _settled(self, world: W, who: int) -> W:
        one = world.tries[who]
        assert one.end is not None
        ended = self.ledger.settle(
            self.granted(one.form), world.entry, owner=OWNERS[who], reply=one.end.reply, answer=one.end.answer
        )
        after: W = world._replace(entry=None if ended is not None and idempotency.blank(ended) else ended)
        return after

    # ------------------------------------------------------------ Stripe

    def arrival(self, world: W, request: Request) -> Iterator[tuple[str, W, tuple[str, ...]]]:
        """What Stripe may make of a request: what that is, the world, and what is wrong. The fair comes first."""
        wire = list(world.wire)
        wire.remove(request)
        world = world._replace(wire=tuple(wire))
        known = next((k for k in world.known if request.key and k.key == request.key), None)
        age = 0.0 if known is None else world.now - known.since
        if known is not None and age < idempotency.RETENTION:
            answer = f"{known.result} again" if known.form == request.form else "another form"
            yield self._heard("is answered again", world, request, answer)
        if known is None or age >= DAY:
            yield from self._fresh(world, request)
        for misfortune in ("429", "401", "a wrong door"):
            if self.has(world, misfortune):
                yield self._heard("meets", world.unlucky(), request, misfortune)
        if self.has(world, "in flight") and any(request.key and r.key == request.key for r in world.wire):
            yield self._heard("meets", world.unlucky(), request, "in flight")

    def _fresh(self, world: W, request: Request) -> Iterator[tuple[str, W, tuple[str, ...]]]:
        made, answer, wrongs = self.carried_out(world, request)
        kept = self._keep(made, request, answer)
        yield self._heard("is carried out", kept, request, answer, wrongs)
        if self.has(world, "late") and request.awaited:
            yield self._heard("is carried out", kept.unlucky(), request, f"late {answer}", wrongs)
        if self.has(world, "refused"):
            yield self._heard("fails validation", world.unlucky(), request, "refused")
        if self.has(world, "declined") and request.key:
            declined = self._keep(world.unlucky(), request, "declined")
            yield self._heard("is declined", declined, request, "declined")
        if self.has(world, "500"):
            failed = self._keep(made.unlucky(), request, "500")
            yield self._heard("is carried out, and answered with", failed, request, "500", wrongs)
            failed = self._keep(world.unlucky(), request, "500")
            yield self._heard("fails, and is answered with", failed, request, "500")
        held = request.stage == Stage.CREATE or "a person anywhere" in self.scene.menu
        heard = request.awaited or "heard" not in self.scene.menu
        if held and heard and (self.has(world, "a person") or self.has(world, "a person anywhere")):
            waits = f"waits {len(world.approvals)}"
            asked = world.unlucky()._replace(approvals=(*world.approvals, Approval(request._replace(awaited=False))))
            kept = asked if "not kept" in self.scene.menu else self._keep(asked, request, waits)
            yield self._heard("needs a person", kept, request, waits)

    def _heard(
        self, what: str, world: W, request: Request, answer: str, wrongs: tuple[str, ...] = ()
    ) -> tuple[str, W, tuple[str, ...]]:
        if request.awaited:
            who = OWNERS.index(request.owner)
            return f"its {request.stage} {what}: {answer}", self._answered(world, who, answer), wrongs
        return f"its {request.stage}, not awaited, {what}: {answer}", world, wrongs

    def _keep(self, world: W, request: Request, result: str) -> W:
        if not request.key:
            return world
        rest = tuple(k for k in world.known if k.key != request.key)
        keeps = tuple(sorted((*rest, Known(request.key, request.form, result, world.now))))
        after: W = world._replace(known=keeps)
        return after

    # ------------------------------------------------------------ everybody else

    def _persons(self, world: W) -> Iterator[Event]:
        """What a person may decide of what waits for it."""
        for number, approval in enumerate(world.approvals):
            if approval.state == PENDING:
                made, answer, wrongs = self.carried_out(world, approval.request)
                kind, *of = answer.split()
                done = "failed" if kind in {"missing", "unfit"} else f"{SUCCEEDED} {of[0]}"
                yield Event("", "a person approves, and it is carried out", ended(made, number, done), wrongs)
                yield Event("", "a person rejects", ended(world, number, REJECTED))

    def _elsewhere(self, world: W) -> Iterator[Event]:
        if self.has(world, "document") and world.footer == "1":
            yield Event("", "the document fixes something else", world.unlucky()._replace(footer="2"))
        if world.entry is not None and (
            self.has(world, "lost") or (world.quiet and self.has(world, "lost in between"))
        ):
            yield Event("", "the ledger is lost", world.unlucky()._replace(entry=None, lost=True))

    def _time(self, world: W) -> Iterator[Event]:
        entry, later = world.entry, world.now + self.scene.tick
        leases = [one.admission.taken + LEASE for one in world.tries if one.admission is not None]
        running = entry is not None and (
            (entry.state is State.SENT and world.now < entry.lease_until)
            or (entry.state is State.UNKNOWN and world.now < entry.until)
        )
        if running or world.wire:
            passed = world._replace(now=later, wire=tuple(r for r in world.wire if later < r.until))
            awake = [one for one in world.tries if one.admission is not None and one.phase != "calling"]
            if all(later < lease for lease in leases):
                yield Event("", "time passes", passed)
            elif self.has(world, "frozen") and not awake:
                yield Event("", "time passes, and nobody moves", passed.unlucky())
        if world.days and not (running or world.wire or leases):
            later = world.now + world.days[0]
            ends = entry is not None and entry.expires is not None and entry.expires <= later
            if not (ends and entry is not None and entry.state is not State.FREE):
                passed = world._replace(now=later, days=world.days[1:], entry=None if ends else entry)
                yield Event("", f"{world.days[0] / DAY:.1f} days pass", passed)

    # ------------------------------------------------------------ fair weather

    def in_fair_weather(
        self, world: W, asks: str, how: Callable[[W, str, End | None], str], again: frozenset[str]
    ) -> tuple[str, tuple[str, ...], W]:
        """Have one more caller come, whom nothing befalls, and who comes again after what ends as ``again`` says.

        Return how it ends, in the words of ``how``; what was wrong on the way; and the world then.
        """
        ends, wrongs = "", list[str]()
        for who in range(len(OWNERS) - 3, len(OWNERS)):
            world, ends = self._fair_call(world, who, Form(asks, world.footer), wrongs, how)
            if ends not in again:
                break
            world = world._replace(now=world.now + LEASE)
        return ends, tuple(wrongs), world

    def _fair_call(
        self, world: W, who: int, form: Form, wrongs: list[str], how: Callable[[W, str, End | None], str]
    ) -> tuple[W, str]:
        world = world._replace(faults=0, wire=(), tries=(*[Try("over")] * who, Try("asking", form)))
        what, world, *found = next(self.turn(world, who))
        while world.tries[who].phase in {"calling", "waiting"}:
            wrongs += found
            if world.wire:
                _, world, came = next(self.arrival(world, world.wire[0]))
                found = list(came)
            else:
                what, world, *found = next(self.turn(world, who))
        wrongs += found
        end = world.tries[who].end
        if end is not None:
            _, world, *found = next(self.turn(world, who))
            wrongs += found
        return world, how(world, what, end)


def _mine(entry: Entry) -> Entry:
    """An entry as its call sees it: nothing depends on the owner's token."""
    return replace(entry, owner="me")
