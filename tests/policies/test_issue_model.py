"""The plan of a whole invoice, tried in every order of events that one idempotency key can meet.

As in ``test_ledger_model``: ``claim_for``, ``advance``, ``settle_for`` and ``resolve`` alone move the ledger, and what
happens within a call is decided by ``Upstreams.send``, its walk, ``policies.issuing`` and Stripe's dialect themselves.
A call is run again from its start with the answers so far, up to its next request or its next step in the ledger. Only
the world is made here: the callers, the store, Stripe, people, the clock.

What is assumed, beside what is assumed there: a look is answered as things stand; lines, finalize, send and delete are
each carried out whole or not at all; an invoice is changed by people only while it is a draft.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qs

import pytest
from msgspec.structs import replace

from gateway.answering import answer_to
from gateway.stopping import LEAST_SECONDS
from gateway.upstreams import sending
from gateway.upstreams.sending import Upstreams
from gateway.upstreams.transport import LostError, NotSentError, Received
from policies import idempotency, issuing, lines, outcomes
from policies.access import decide
from policies.idempotency import LEASE, Verdict
from policies.issuing import Stage
from policies.model import Admission, Answer, Entry, Outcome, State
from policies.outcomes import Reply
from policies.refusals import LedgerRefusal, StoreUnavailable, TotalDiffers
from policies.upstreams import stripe
from tests.policies import storm
from tests.policies.conftest import call, only_caller, read
from tests.policies.storm import (
    ACTIVE,
    DAY,
    DIFFERS,
    ENDLESS,
    HELD,
    HOLLOW,
    LIE,
    LOCKED,
    NOTHING,
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
    Search,
    Settle,
    Storm,
    Try,
    ended,
    in_order,
    scene,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policies.dialect import Outgoing
    from policies.issuing import Progress
    from policies.model import Grant, Step

SUM: Final = "finalized with another sum than was asked for"
TOLD: Final = "a success was told of another sum than was asked for"
LEFT: Final = "a draft is left that no key names"
MAILED: Final = "mailed twice"
UNMAILED: Final = "told that it was mailed, and it was not"
BLAME: Final = "told that the sum differs, and nobody but us has touched the draft"
FENCE: Final = "finalized, and the ledger does not name it"

# ---------------------------------------------------------------- what callers ask for, and what Stripe says

DOCUMENT: Final = """\
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: stripe, origin: https://upstream.example,
            secret: file:key}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}}]
    limits: [30/minute]
    grants:
      - connection: billing
        operation: invoices.issue
        response: [id, description, status, total, sent]
        amount: {{max: 1000, currency: [usd]}}
        lines: {{max: 2}}
        parameters:
          {{customer: , description: , send: , collection_method: , days_until_due: , footer: {{fixed: "{footer}"}}}}
"""
#: What each letter that a caller may ask for comes to. ``m`` is mailed.
SUMS: Final = {"x": 100, "y": 200, "m": 300}
#: A line that somebody adds to a draft in the Dashboard.
EXTRA: Final = 7


@lru_cache
def granted(asks: str, footer: str) -> Grant:
    """A call for a whole invoice with the description ``asks``, while the document fixes ``footer``."""
    asked = {"customer": "cus_1", "currency": "usd", "description": asks, "lines[0][amount]": str(SUMS[asks])}
    if asks == "m":
        asked |= {"send": "true", "collection_method": "send_invoice", "days_until_due": "30"}
    policies = read(DOCUMENT.format(footer=footer))
    return decide(policies, only_caller(policies), call(asked, key="order-1", operation="invoices.issue"))


@lru_cache(10_000)
def received(name: str) -> Received:
    """The answer of a name: an invoice, such as "draft 0 x 100" or "deleted 0", or one of the single call's."""
    kind, *rest = name.removesuffix(" again").split()
    headers = {"idempotent-replayed": "true"} if name.endswith(" again") else {}
    match kind:
        case "draft" | "open":
            return Received(200, json.dumps(_invoice(kind, *rest)).encode(), headers)
        case "deleted":
            return Received(200, json.dumps({"object": "invoice", "id": f"in_{rest[0]}", "deleted": True}).encode())
        case "found":  # their stamps, in the order in which they were made
            listed = [{"id": f"in_{one}", "metadata": {lines.STAMP: stamp}} for one, stamp in enumerate(rest)]
            return Received(200, json.dumps({"object": "list", "data": listed[::-1]}).encode())
        case "waits":
            return storm.received(name.removesuffix(" again"))
        case "missing" | "unfit":
            told = {"type": "invalid_request_error"}
            return Received({"missing": 404, "unfit": 400}[kind], json.dumps({"error": told}).encode(), headers)
        case "failed":
            return Received(200, json.dumps({"status": "failed"}).encode())
        case _:
            return storm.received(name)


def _invoice(status: str, number: str, asks: str, *lines: str) -> dict[str, Any]:
    total = sum(int(line) for line in lines)
    return {
        "object": "invoice",
        "id": f"in_{number}",
        "description": asks,
        "status": status,
        "currency": "usd",
        **dict.fromkeys(("subtotal", "total", "amount_due"), total),
        "customer_email": "account@accdemo.com",
        "lines": {"data": [{"amount": int(line)} for line in lines], "has_more": False},
    }


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


class Script(storm.Script):
    """Of one call the transport, the clock, the secrets, the store and the record, whose answers are given.

    An answer is the name of one of Stripe's, or the store's: the entry, or why not.
    """

    admission: Admission | None = None

    def __init__(self, answers: tuple[str | Entry, ...]) -> None:
        super().__init__(())
        self._left = iter(answers)

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
        return received(name.removeprefix("late "))

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


def run(grant: Grant, admission: Admission, answers: tuple[str | Entry, ...]) -> Next:
    """Run a call with the answers so far. Return what it does next, or how it ended."""
    script: Any = Script(answers)
    upstreams = Upstreams(script, script, script.clock, script.sleep, script)
    try:
        reply = upstreams.send(grant, admission, SECRET, 25.0, script)
    except (Asked, Advancing) as ahead:
        return ahead
    told = "" if reply.refusal is None else reply.refusal.detail
    bare = Reply(
        reply.outcome,
        reached=reply.reached,
        generation=reply.generation,
        doubt=reply.doubt,
        mute=reply.mute,
        approval=reply.approval,
        id=reply.id,
        step=reply.step,
        harmless=reply.harmless,
        fresh=reply.fresh,
    )
    nothing, reason = NOTHING.search(told) is not None, "" if reply.refusal is None else reply.refusal.reason
    return End(bare, answer_to(reply, grant, "audit"), nothing, reply.alarm is not None, reason)


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


class Invoice(NamedTuple):
    asks: str
    stamp: str
    lines: tuple[int, ...] = ()
    status: str = "draft"
    mailed: int = 0
    touched: bool = False
    """Somebody changed it while a call was under way."""
    theirs: bool = False
    """Somebody finalized it in the Dashboard."""


class World(NamedTuple):
    """Everything that the next event depends on."""

    faults: int
    """How many misfortunes may still come."""
    tries: tuple[Try, ...]
    days: tuple[int, ...]
    entry: Entry | None = None
    now: float = 0.0
    wire: tuple[Request, ...] = ()
    known: tuple[Known, ...] = ()
    approvals: tuple[Approval, ...] = ()
    invoices: tuple[Invoice, ...] = ()
    told: frozenset[str] = frozenset()
    """The ids of the successes that callers were told."""
    footer: str = "1"
    lost: bool = False
    """Whether the ledger was lost."""

    def at(self, who: int, now: Try) -> World:
        return self._replace(tries=(*self.tries[:who], now, *self.tries[who + 1 :]))

    def unlucky(self) -> World:
        return self._replace(faults=self.faults - 1)

    def change(self, number: int, **changes: Any) -> World:
        changed = self.invoices[number]._replace(**changes)
        return self._replace(invoices=(*self.invoices[:number], changed, *self.invoices[number + 1 :]))

    def shown(self, number: int) -> str:
        """What a look at an invoice says."""
        if number >= len(self.invoices) or self.invoices[number].status == "deleted":
            return "missing"
        one = self.invoices[number]
        return " ".join([one.status, str(number), one.asks, *map(str, one.lines)])

    @property
    def quiet(self) -> bool:
        """Whether no call is under way, nor anything that one has sent."""
        return not self.wire and not any(one.phase in ACTIVE for one in self.tries)


@dataclass
class Play(Storm[World]):
    """All that may happen in a scene."""

    scene: Scene
    ledger: Ledger = field(default_factory=Ledger)
    runs: dict[Any, Next] = field(default_factory=dict, repr=False)

    def start(self) -> World:
        return World(self.scene.faults, (Try(),) * self.scene.tries, self.scene.days)

    def at_rest(self, world: World) -> Iterator[str]:
        return wrong_at_rest(self, world)

    def restarted(self, world: World) -> World:
        """Start the clock again where nothing depends on it, which keeps the worlds few."""
        return world._replace(now=0.0) if world.quiet and not (world.entry or world.known) else world

    def shown(self, world: World) -> str:
        """Say in a few words what a world is like."""
        entry = world.entry
        held = storm.shown(entry)
        if entry is not None and entry.id is not None:
            held += f", {entry.step} {entry.id}"
        seen = [world.shown(number) for number in range(len(world.invoices))]
        return f"{held}; invoices: {', '.join(seen)}" if seen else held

    def events(self, world: World) -> Iterator[Event]:
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
    def phases(self) -> dict[str, Callable[[World, int], Iterator[tuple[Any, ...]]]]:
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

    def _claiming(self, world: World, who: int, form: Form) -> Iterator[tuple[Any, ...]]:
        owner, asks, grant = OWNERS[who], f"asks for {form.asks}", granted(*form)
        try:
            held = self.ledger.claim(grant, world.entry, owner=owner, place="there", now=world.now)
        except LedgerRefusal as refusal:
            yield f"{asks}: is refused: {type(refusal).__name__}", world.at(who, Try("over"))
            return
        if isinstance(held, Entry):
            admission = Admission((), "me", world.now, _mine(held))
            yield f"{asks}: claims", world._replace(entry=held).at(who, Try("calling", form, admission))
        elif held is not None:
            told, found = tell(world, held, form)
            yield f"{asks}: gets the answer again", told.at(who, Try("over")), *found

    def _calling(self, world: World, who: int) -> Iterator[tuple[Any, ...]]:
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
        stage, number = _about(asked)
        entry = world.entry
        wrongs = []
        owns = not (world.lost or self._asleep(world, one))
        if stage in {Stage.FINALIZE, Stage.SEND} and owns and (entry is None or entry.id != f"in_{number}"):
            wrongs.append(FENCE)
        lease = (world.now if self._asleep(world, one) else one.admission.taken) + LEASE
        form = asked.url.encode() + (asked.body or b"")
        key, stamp = asked.headers.get("Idempotency-Key", ""), _stamp_of(asked)
        request = Request(owner, stage, number, key, form, one.form.asks, stamp, lease)
        yield f"sends {stage}", in_order(world, (*world.wire, request)).at(who, one._replace(phase="waiting")), *wrongs
        if self.has(world, "no connection"):
            yield "gets no connection", self._answered(world.unlucky(), who, "no connection")

    def _advancing(self, world: World, who: int, progress: Progress) -> Iterator[tuple[Any, ...]]:
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

    def _looking(self, world: World, who: int, asked: Outgoing) -> Iterator[tuple[Any, ...]]:
        kind, _, number = asked.url.rpartition("/")[2].rpartition("_")
        match kind:
            case "areq":
                seen = world.approvals[int(number)].state
            case "in":
                seen = world.shown(int(number))
            case _:
                seen = " ".join(["found", *("-" if i.status == "deleted" else i.stamp for i in world.invoices)])
        yield f"looks: {seen}", self._answered(world, who, seen)
        for misfortune in ("no answer", "a reset", "429", "500"):
            if self.has(world, misfortune):
                yield f"looks: {misfortune}", self._answered(world.unlucky(), who, misfortune)
        if self.has(world, "late"):
            yield f"looks: late {seen}", self._answered(world.unlucky(), who, f"late {seen}")

    def _run(self, one: Try) -> Next:
        told = (one.form, one.admission, one.answers)
        if told not in self.runs:
            assert one.admission is not None
            assert len(one.answers) < MOST, f"more answers than any call has: {one.answers}"
            self.runs[told] = run(granted(*one.form), one.admission, one.answers)
        return self.runs[told]

    def _ending(self, world: World, who: int) -> Iterator[tuple[Any, ...]]:
        one = world.tries[who]
        assert one.end is not None
        told, wrongs = world, tuple[str, ...]()
        if self._asleep(world, one):
            pass  # whoever called has hung up
        elif one.end.nothing:
            told, wrongs = tell_nothing(world)
        elif one.end.reply.outcome is Outcome.SUCCEEDED:
            told, wrongs = tell(world, one.end.answer, one.form)
        outcome, settled = one.end.reply.outcome.value, self._settled(told, who)
        ours = world.entry is not None and (world.entry.state, world.entry.owner) == (State.SENT, OWNERS[who])
        free = settled.entry is None or settled.entry.state in {State.FREE, State.REJECTED}
        if ours and one.end.nothing and not free:
            wrongs = (*wrongs, HELD)
        if one.end.reason == TotalDiffers.reason and not any("edits" in what for what in self.scene.menu):
            wrongs = (*wrongs, BLAME)
        yield f"writes {outcome}, and tells", settled.at(who, Try("over")), *wrongs
        if self.has(world, "settlement"):
            owing = one._replace(phase="owing", admission=None)
            unlucky = told.unlucky()
            yield f"writes {outcome}, and does not hear so", self._settled(unlucky, who).at(who, owing), *wrongs
            yield f"cannot write {outcome}, and tells", unlucky.at(who, owing), *wrongs

    @staticmethod
    def _asleep(world: World, one: Try) -> bool:
        """Whether a call slept past its lease."""
        return one.admission is not None and world.now >= one.admission.taken + LEASE

    def _settled(self, world: World, who: int) -> World:
        one = world.tries[who]
        assert one.end is not None
        ended = self.ledger.settle(
            granted(*one.form), world.entry, owner=OWNERS[who], reply=one.end.reply, answer=one.end.answer
        )
        return world._replace(entry=None if ended is not None and idempotency.blank(ended) else ended)

    # ------------------------------------------------------------ Stripe

    def arrival(self, world: World, request: Request) -> Iterator[tuple[str, World, tuple[str, ...]]]:
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

    def _fresh(self, world: World, request: Request) -> Iterator[tuple[str, World, tuple[str, ...]]]:
        made, answer, wrongs = carried_out(world, request)
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
        if held and (self.has(world, "a person") or self.has(world, "a person anywhere")):
            waits = f"waits {len(world.approvals)}"
            asked = world.unlucky()._replace(approvals=(*world.approvals, Approval(request._replace(awaited=False))))
            kept = asked if "not kept" in self.scene.menu else self._keep(asked, request, waits)
            yield self._heard("needs a person", kept, request, waits)

    def _heard(
        self, what: str, world: World, request: Request, answer: str, wrongs: tuple[str, ...] = ()
    ) -> tuple[str, World, tuple[str, ...]]:
        if request.awaited:
            who = OWNERS.index(request.owner)
            return f"its {request.stage} {what}: {answer}", self._answered(world, who, answer), wrongs
        return f"its {request.stage}, not awaited, {what}: {answer}", world, wrongs

    def _keep(self, world: World, request: Request, result: str) -> World:
        if not request.key:
            return world
        rest = tuple(k for k in world.known if k.key != request.key)
        return world._replace(known=tuple(sorted((*rest, Known(request.key, request.form, result, world.now)))))

    # ------------------------------------------------------------ everybody else

    def _people(self, world: World) -> Iterator[Event]:
        for number, approval in enumerate(world.approvals):
            if approval.state == PENDING:
                made, answer, wrongs = carried_out(world, approval.request)
                done = f"{SUCCEEDED} {answer.split()[1]}" if answer[:4] in {"draf", "open", "dele"} else "failed"
                yield Event("", "a person approves, and it is carried out", ended(made, number, done), wrongs)
                yield Event("", "a person rejects", ended(world, number, REJECTED))
        touch = "edits meanwhile" in self.scene.menu
        if self.has(world, "edits meanwhile") or (self.has(world, "edits") and world.quiet):
            for number, one in enumerate(world.invoices):
                if one.status != "draft":
                    continue
                unlucky = world.unlucky()
                if len(one.lines) < 2:
                    more = unlucky.change(number, lines=(*one.lines, EXTRA), touched=touch)
                    yield Event("", "somebody adds a line", more)
                if one.lines:
                    yield Event("", "somebody takes the lines out", unlucky.change(number, lines=(), touched=touch))
                yield Event("", "somebody deletes the draft", unlucky.change(number, status="deleted"))
                opened = unlucky.change(number, status="open", theirs=True, touched=touch)
                yield Event("", "somebody finalizes the draft", opened)
        if "operator" in self.scene.menu and not any(approval.state == PENDING for approval in world.approvals):
            verdict, entry = self.ledger.resolve(world.entry, None, now=world.now, said="")
            if verdict is Verdict.RESOLVED and all(one.status == "deleted" for one in world.invoices):
                told, wrongs = tell_nothing(world)
                yield Event("", "an operator looks, and says: not created", told._replace(entry=entry), wrongs)

    def _elsewhere(self, world: World) -> Iterator[Event]:
        if self.has(world, "document") and world.footer == "1":
            yield Event("", "the document fixes something else", world.unlucky()._replace(footer="2"))
        if world.entry is not None and (
            self.has(world, "lost") or (world.quiet and self.has(world, "lost in between"))
        ):
            yield Event("", "the ledger is lost", world.unlucky()._replace(entry=None, lost=True))

    def _time(self, world: World) -> Iterator[Event]:
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


#: So many answers no call of a scene has.
MOST: Final = 40
_STAGES: Final = {"add_lines": Stage.LINES, "finalize": Stage.FINALIZE, "send": Stage.SEND}


def _about(asked: Outgoing) -> tuple[str, int]:
    """What a request that changes something does, and to which invoice."""
    if asked.url.endswith("/v1/invoices"):
        return Stage.CREATE, -1
    name, _, step = asked.url.partition("/v1/invoices/")[2].partition("/")
    return Stage.DELETE if asked.method == "DELETE" else _STAGES[step], int(name.removeprefix("in_"))


def _stamp_of(asked: Outgoing) -> str:
    (stamp,) = parse_qs((asked.body or b"").decode()).get(f"metadata[{lines.STAMP}]", [""])
    return stamp


def _mine(entry: Entry) -> Entry:
    """An entry as its call sees it: nothing depends on the owner's token."""
    return replace(entry, owner="me")


def carried_out(world: World, request: Request) -> tuple[World, str, tuple[str, ...]]:
    """Carry a request out: the world, what it answers, and what is wrong."""
    number = request.number
    if request.stage == Stage.CREATE:
        number = len(world.invoices)
        made = world._replace(invoices=(*world.invoices, Invoice(request.asks, request.stamp)))
        return made, made.shown(number), ()
    one = world.invoices[number]
    if one.status == "deleted":
        return world, "missing", ()
    if (one.status == "draft") != (request.stage != Stage.SEND):
        return world, "unfit", ()
    wrongs: tuple[str, ...] = ()
    match request.stage:
        case Stage.LINES:
            world = world.change(number, lines=(*one.lines, SUMS[request.asks]))
        case Stage.FINALIZE:
            world = world.change(number, status="open")
            wrongs = (
                *[TWICE] * any(other.status == "open" for at, other in enumerate(world.invoices) if at != number),
                *[SUM] * (one.lines != (SUMS[one.asks],) and not one.touched),
                *[LIE] * (request.void and not world.lost),
            )
        case Stage.SEND:
            world = world.change(number, mailed=one.mailed + 1)
            wrongs = (MAILED,) * bool(one.mailed)
        case _:
            return world.change(number, status="deleted"), f"deleted {number}", ()
    return world, world.shown(number), wrongs


def tell(world: World, answer: Answer, form: Form) -> tuple[World, tuple[str, ...]]:
    """Give a caller an answer of the ledger or of Stripe."""
    if answer.status != 200:
        return world, ()
    told = json.loads(answer.body)
    number = int(told["id"].removeprefix("in_"))
    one = world.invoices[number]
    wrongs = (
        *[HOLLOW] * (one.status != "open"),
        *[OTHER] * ((one.asks, told["description"]) != (form.asks, form.asks)),
        *[TOLD] * (told["total"] != SUMS[form.asks] or (one.lines != (SUMS[form.asks],) and not one.touched)),
        *[UNMAILED] * (told["sent"] and not one.mailed),
        *[DIFFERS] * bool(world.told - {told["id"]}),
    )
    return world._replace(told=world.told | {told["id"]}), wrongs


def tell_nothing(world: World) -> tuple[World, tuple[str, ...]]:
    """Tell somebody that nothing was created: what is under way must not finalize anything, either."""
    wrong = any(one.status == "open" and not one.theirs for one in world.invoices) and not world.lost
    void = world._replace(approvals=tuple(a._replace(request=a.request._replace(void=True)) for a in world.approvals))
    return in_order(void, (request._replace(void=True) for request in world.wire)), (LIE,) * wrong


# ---------------------------------------------------------------- what must hold


def wrong_at_rest(play: Play, world: World) -> Iterator[str]:
    """What nobody may meet who comes once the weather is fair."""
    entry = world.entry
    if world.lost or any(one.phase in {*ACTIVE, "owing"} for one in world.tries):
        return
    if world.wire:
        return
    # An approval that nobody heard of may yet make a draft, and so may a call that slept past its lease, or a request
    # that arrives just after Stripe has forgotten the refusal that its repetition met. Settling deletes those.
    day = world.days != play.scene.days and "declined" in play.scene.menu
    excused = bool(world.approvals) or day or "frozen" in play.scene.menu
    settled = entry is None or entry.state in {State.FREE, State.SUCCEEDED, State.REJECTED}
    if settled and not excused and any(one.status == "draft" for one in world.invoices):
        yield LEFT
    if entry is None or entry.state is State.FREE:
        for asks in play.scene.asks:
            how, found, last = in_fair_weather(play, world, asks)
            yield from found
            if how not in WELL:
                yield LOCKED
    elif entry.state in {State.UNKNOWN, State.SENT} and world.footer == "1":
        calm = world._replace(now=max(world.now, entry.until, entry.lease_until))
        asks = next(a for a in play.scene.asks if granted(a, "1").fingerprint == entry.fingerprint)
        how, found, last = in_fair_weather(play, calm, asks)
        yield from found
        left = any(one.status == "draft" for one in last.invoices)
        if how in WELL and left and not excused:
            yield LEFT
        if how not in WELL:
            yield ENDLESS


#: What a caller may meet in fair weather. A person's decision is one, and so is a draft that somebody finalized.
WELL: Final = frozenset({"invoice", "person", "alarm"})


def in_fair_weather(play: Play, world: World, asks: str) -> tuple[str, tuple[str, ...], World]:
    """Have one more caller come, whom nothing befalls, and who comes again where it is told to.

    Return how it ends, what was wrong on the way, and the world then.
    """
    how, wrongs = "", list[str]()
    for who in range(len(OWNERS) - 3, len(OWNERS)):
        world, how = _fair_call(play, world, who, Form(asks, world.footer), wrongs)
        if how not in {"released", "freed", "unknown", "awaits"}:
            break
        world = world._replace(now=world.now + LEASE)
    return how, tuple(wrongs), world


def _fair_call(play: Play, world: World, who: int, form: Form, wrongs: list[str]) -> tuple[World, str]:
    world = world._replace(faults=0, wire=(), tries=(*[Try("over")] * who, Try("asking", form)))
    what, world, *found = next(play.turn(world, who))
    while world.tries[who].phase in {"calling", "waiting"}:
        wrongs += found
        if world.wire:
            _, world, found = next(play.arrival(world, world.wire[0]))  # type: ignore[assignment]  # a tuple
        else:
            what, world, *found = next(play.turn(world, who))
    wrongs += found
    end = world.tries[who].end
    if end is None:
        return world, "invoice" if "gets the answer again" in what else what
    _, world, *found = next(play.turn(world, who))
    wrongs += found
    reply, states = end.reply, {approval.state for approval in world.approvals}
    if reply.approval is not None:
        return world, "person" if PENDING in states else "awaits"
    if reply.outcome is Outcome.REJECTED and REJECTED in states:
        return world, "person"
    edited = any(one.theirs or one.touched for one in world.invoices)
    if edited and (end.alarm or (reply.mute and reply.id is not None)):  # told by this call, or by one before
        return world, "alarm"
    return world, "invoice" if reply.outcome is Outcome.SUCCEEDED else "mute" if reply.mute else reply.outcome.value


# ---------------------------------------------------------------- the scenes

DAYS: Final = (DAY - 2 * LEASE, 2 * LEASE)
#: Each with a number of worlds that it has at least.
SCENES: Final = {
    "steps": (6_000, scene("no answer, a reset, killed, refused, declined, 429", tries=2)),
    "three": (20_000, scene("a reset, killed, 429", faults=3)),
    "mended": (20_000, scene("no answer, killed, refused, declined", asks="xy")),
    "failures": (5_000, scene("a reset, 500, in flight, 401, a wrong door, no connection", tries=2)),
    "failures, a day": (10_000, scene("500, killed", days=DAYS[:1])),
    "late": (4_000, scene("a reset, no answer, late, killed, store, settlement", tries=2)),
    "within a lease": (20_000, scene("a reset, no answer, killed, refused", tries=2, tick=LEASE // 2)),
    "days": (20_000, scene("no answer, a reset, killed, declined, 429", tries=2, days=DAYS)),
    "mailed": (20_000, scene("a reset, killed, refused, 429, 500", asks="m", tries=2, days=DAYS[:1])),
    "two drafts, days": (1_000, scene("a reset, killed", tries=2, days=DAYS)),
    "mailed, days": (20_000, scene("a reset, killed", asks="m", days=(DAY - LEASE, LEASE, LEASE))),
    "edited": (20_000, scene("edits, no answer, killed, 429", faults=3)),
    "edited meanwhile": (2_000, scene("edits meanwhile, no answer, killed", tries=2)),
    "edited, mended": (10_000, scene("edits, no answer, refused, killed", asks="xy")),
    "approval": (10_000, scene("a person, no answer, killed, refused", asks="xy")),
    "approval of any step": (5_000, scene("a person anywhere, a reset, killed")),
    "approval that is not kept": (5_000, scene("a person anywhere, not kept, a reset, killed")),
    "lost": (10_000, scene("lost, no answer, a reset, killed, refused, declined", tries=2)),
    "lost, three": (10_000, scene("lost, no answer, killed")),
    "lost, edited": (10_000, scene("lost, edits, killed", faults=3)),
    "frozen": (5_000, scene("frozen, a reset, killed, refused, 429", tries=2)),
    "operator": (5_000, scene("operator, no answer, a reset, killed", tries=2, asks="xy")),
    "document": (1_000, scene("document, no answer, killed, declined", tries=2)),
}


#: By what is in a scene's menu: events that it makes.
MISFORTUNES: Final = {
    "no answer": ("gets no answer",),
    "a reset": ("gets a reset",),
    "no connection": ("gets no connection",),
    "killed": ("is killed",),
    "refused": ("its create fails validation: refused",),
    "declined": ("its create is declined: declined", "its create is answered again: declined again"),
    "500": ("its create fails, and is answered with: 500", "its create is answered again: 500 again", "looks: found"),
    "429": ("its create meets: 429", "its lines meets: 429", "its finalize meets: 429", "looks: 429"),
    "401": ("its lines meets: 401",),
    "a wrong door": ("its lines meets: a wrong door",),
    "in flight": ("its create meets: in flight",),
    "late": ("its create is carried out: late draft 0 x", "its lines is carried out: late draft 0 x 100"),
    "store": ("cannot write lines", "writes finalize, and does not hear so"),
    "settlement": ("writes succeeded, and does not hear so", "cannot write succeeded, and tells", "pays what it owes"),
    "a person": ("its create needs a person: waits 0", "a person approves, and it is carried out", "a person rejects"),
    "a person anywhere": ("its lines needs a person: waits 0", "its finalize needs a person: waits 0"),
    "not kept": (),
    "edits": (
        "somebody adds a line",
        "somebody takes the lines out",
        "somebody deletes the draft",
        "somebody finalizes the draft",
        "looks: missing",
        f"looks: draft 0 x 100 {EXTRA}",
    ),
    "edits meanwhile": ("somebody adds a line",),
    "lost": ("the ledger is lost", "cannot go on to finalize"),
    "frozen": ("time passes, and nobody moves", "cannot go on to finalize"),
    "operator": ("an operator looks, and says: not created",),
    "document": ("the document fixes something else", "asks for x: is refused: OutcomeStillUnknown"),
}
ALWAYS: Final = (
    "asks for x: claims",
    "asks for x: gets the answer again",
    "sends create",
    "goes on to lines",
    "goes on to finalize",
    "its finalize is carried out: open 0 x 100",
    "writes succeeded, and tells",
    "time passes",
)


@pytest.mark.parametrize("name", SCENES)
def test_no_order_of_events_breaks_a_promise(name: str) -> None:
    least, where = SCENES[name]
    search = Search(Play(where)).run()
    assert not search.wrongs, "\n\n".join(search.wrongs.values())
    assert len(search.came) >= least
    expected = {event for misfortune in where.menu for event in MISFORTUNES[misfortune]} | {*ALWAYS}
    expected |= {f"{days / DAY:.1f} days pass" for days in where.days}
    if where.asks == "m":
        expected = {event.replace("for x", "for m").replace(" x 100", " m 300") for event in expected}
        expected |= {
            "goes on to send",
            "its send is carried out: open 0 m 300",
            "its send is answered again: open 0 m 300 again",
        }
    assert expected <= search.events, expected - search.events


# ---------------------------------------------------------------- mistakes that the search must find


def found(name: str, ledger: Ledger, wrong: str) -> str | None:
    """Search a scene, from the nearest world on, for one wrong. Return the way there."""
    return Search(Play(SCENES[name][1], ledger), until=wrong).run().wrongs.get(wrong)


def draft_is_not_named(held: Entry | None, progress: Progress, *, owner: str) -> Entry | None:
    return idempotency.advance(held, replace(progress, id=None), owner=owner)


def step_is_not_named(held: Entry | None, progress: Progress, *, owner: str) -> Entry | None:
    return idempotency.advance(held, replace(progress, reached=Stage.CREATE), owner=owner)


def nobody_is_held_up(held: Entry | None, progress: Progress, *, owner: str) -> Entry | None:
    if held is None:
        return None
    return idempotency.advance(replace(held, state=State.SENT, answer=None), progress, owner=held.owner)


@pytest.mark.parametrize(
    ("name", "mistake", "wrong"),
    [
        ("steps", draft_is_not_named, FENCE),
        ("approval that is not kept", step_is_not_named, BLAME),
        ("mailed, days", step_is_not_named, MAILED),
        ("frozen", nobody_is_held_up, TWICE),
    ],
)
def test_mistake_in_naming_what_is_worked_on_is_found(name: str, mistake: Advance, wrong: str) -> None:
    assert found(name, Ledger(advance=mistake), wrong)


def draft_is_forgotten(grant: Grant, held: Entry | None, *, reply: Reply, **rest: Any) -> Entry | None:
    ended = idempotency.settle_for(grant, held, reply=reply, **rest)
    return replace(ended, id=None) if ended is not None and ended.state is State.UNKNOWN else ended


def half_done_is_free(grant: Grant, held: Entry | None, *, reply: Reply, **rest: Any) -> Entry | None:
    if reply.harmless:
        reply = replace(reply, outcome=Outcome.FREED)
    return idempotency.settle_for(grant, held, reply=reply, **rest)


def unknown_is_free(grant: Grant, held: Entry | None, *, reply: Reply, **rest: Any) -> Entry | None:
    if reply.outcome is Outcome.UNKNOWN:
        reply = replace(reply, outcome=Outcome.FREED)
    return idempotency.settle_for(grant, held, reply=reply, **rest)


@pytest.mark.parametrize(
    ("name", "mistake", "wrong"),
    [
        ("days", draft_is_forgotten, TWICE),
        ("mended", half_done_is_free, LEFT),
        ("mended", unknown_is_free, TWICE),
    ],
)
def test_mistake_in_settling_is_found(name: str, mistake: Settle, wrong: str) -> None:
    assert found(name, Ledger(settle=mistake), wrong)


BEGIN: Final = issuing.begin
FINALIZED: Final = issuing._finalized


def goes_on_without_a_look(grant: Grant, admission: Admission) -> Progress:
    at = BEGIN(grant, admission)
    return replace(at, stage=at.reached) if at.stage is Stage.LOOK and at.reached is not Stage.CREATE else at


def lines_are_not_in_doubt(grant: Grant, admission: Admission) -> Progress:
    return replace(BEGIN(grant, admission), lines_sent=False)


def everything_is_remembered(grant: Grant, admission: Admission) -> Progress:
    at = replace(BEGIN(grant, admission), remembered=True)
    return replace(at, stage=Stage.CREATE) if at.stage is Stage.FIND else at


def lost_calls_leave_no_doubt(grant: Grant, admission: Admission) -> Progress:
    return replace(BEGIN(grant, admission), doubt=False)


def next_draft_is_beyond_doubt(grant: Grant, admission: Admission, at: Progress, dialect: Any) -> Step:
    step = STEP_OF(grant, admission, at, dialect)
    return replace(step, doubt=False, quiet=True) if at.drafts > 1 else step


def any_draft_will_do(grant: Grant, seen: Any) -> None:
    return None


def any_finalized_one_will_do(asked: Any, seen: Any) -> bool:
    return True


def no_answer_to_a_delete_is_one(reply: Reply) -> bool:
    return True


def nothing_was_refused(reply: Reply) -> bool:
    return False


def approved_step_is_the_last(at: Progress, decision: Any, created: str | None, reply: Reply) -> Progress | Reply:
    if decision is outcomes.Decision.DONE and created is not None:
        answer = {"id": created, "description": "x", "status": "open", "total": 100, "sent": False}
        return Reply(Outcome.SUCCEEDED, answer=answer, created=created)
    return APPROVED(at, decision, created, reply)


def what_is_told_is_true_of_the_request(why: Any) -> Any:
    return why


def kept_answer_is_a_fresh_one(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    return AFTER[at.stage](grant, at, replace(reply, kept=False))


def kept_lines_are_sent_again(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    following = AFTER[Stage.LINES](grant, at, reply)
    return replace(following, lines_sent=at.lines_sent) if not isinstance(following, Reply) else following


def lines_are_sent_again(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if reply.outcome is Outcome.UNKNOWN:
        return replace(at, stage=Stage.LINES)
    return AFTER[Stage.LINES](grant, at, reply)


def refused_finalize_frees(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if reply.outcome is Outcome.FREED:
        return replace(reply, generation=at.generation + 1, fresh=True)
    return AFTER[Stage.FINALIZE](grant, at, reply)


def refused_delete_is_one(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if reply.outcome is Outcome.FREED:
        return issuing._given_up(at, at.why) if at.why is not None else issuing._anew(at)
    return AFTER[Stage.DELETE](grant, at, reply)


def kept_failure_is_like_any_other(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    return AFTER[at.stage](grant, at, replace(reply, mute=False))


def every_step_has_one_key(step: Step) -> str:
    return idempotency.upstream_key(step.name, step.generation)


def key_is_without_its_generation(name: str, generation: int = 0, stage: str = "") -> str:
    return idempotency.upstream_key(name, 0, stage)


AFTER: Final = {**issuing._AFTER}
STEP_OF: Final = sending._step_of
APPROVED: Final = issuing.approved


@pytest.mark.parametrize(
    ("name", "module", "function", "mistake", "wrong"),
    [
        ("edited", issuing, "begin", goes_on_without_a_look, SUM),
        ("approval that is not kept", issuing, "begin", lines_are_not_in_doubt, BLAME),
        ("mailed, days", issuing, "begin", everything_is_remembered, MAILED),
        ("two drafts, days", issuing, "begin", everything_is_remembered, LEFT),
        ("two drafts, days", issuing, "begin", lost_calls_leave_no_doubt, LEFT),
        ("three", sending, "_step_of", next_draft_is_beyond_doubt, LEFT),
        ("edited", issuing, "differs", any_draft_will_do, SUM),
        ("edited", issuing, "_as_asked", any_finalized_one_will_do, TOLD),
        ("steps", issuing, "_gone", no_answer_to_a_delete_is_one, LEFT),
        ("steps", issuing, "_refused", nothing_was_refused, HELD),
        ("approval", issuing, "approved", approved_step_is_the_last, HOLLOW),
        ("steps", issuing, "_half_way", what_is_told_is_true_of_the_request, HELD),
        ("failures", stripe, "_key", every_step_has_one_key, LOCKED),
        ("steps", stripe, "upstream_key", key_is_without_its_generation, LOCKED),
    ],
)
def test_mistake_in_the_plan_is_found(
    monkeypatch: pytest.MonkeyPatch, *, name: str, module: Any, function: str, mistake: Any, wrong: str
) -> None:
    monkeypatch.setattr(module, function, mistake)
    assert found(name, Ledger(), wrong)


@pytest.mark.parametrize(
    ("name", "stage", "mistake", "wrong"),
    [
        ("lost, edited", Stage.LINES, kept_answer_is_a_fresh_one, SUM),
        ("approval that is not kept", Stage.LINES, lines_are_sent_again, BLAME),
        ("steps", Stage.FINALIZE, refused_finalize_frees, LEFT),
        ("steps", Stage.DELETE, refused_delete_is_one, LEFT),
        ("failures", Stage.FINALIZE, kept_failure_is_like_any_other, ENDLESS),
        ("failures", Stage.CREATE, kept_failure_is_like_any_other, ENDLESS),
        ("mailed", Stage.SEND, kept_failure_is_like_any_other, ENDLESS),
    ],
)
def test_mistake_after_a_step_is_found(
    monkeypatch: pytest.MonkeyPatch, *, name: str, stage: Stage, mistake: Any, wrong: str
) -> None:
    monkeypatch.setitem(issuing._AFTER, stage, mistake)
    assert found(name, Ledger(), wrong)


def test_call_that_sends_its_lines_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(issuing._AFTER, Stage.LINES, kept_lines_are_sent_again)
    with pytest.raises(AssertionError, match="more answers than any call has"):
        found("edited", Ledger(), ENDLESS)
