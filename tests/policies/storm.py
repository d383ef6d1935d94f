"""What the models of the ledger share: callers of one key, who meet misfortunes in every order of events.

A call comes, claims the key, sends what it sends, waits, and ends; it may be killed or get no answer meanwhile. What it
sends, and what an upstream makes of that, each model says itself.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from gateway.answering import answer_to
from gateway.secrets import Secret
from gateway.upstreams.transport import LostError, NotSentError, Received
from policies.idempotency import LEASE
from policies.model import Admission, Entry, State
from policies.outcomes import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from policies.dialect import Outgoing
    from policies.idempotency import Verdict
    from policies.model import Answer, Grant

TWICE: Final = "two invoices of one key"
LIE: Final = "told that nothing was created, and an invoice exists or comes to be"
HOLLOW: Final = "told of an invoice that does not exist"
OTHER: Final = "told of an invoice that was not asked for"
DIFFERS: Final = "two successes were told of one key"
CHANGED: Final = "a settled answer changed"
EXPIRES: Final = "an open entry expires"
HELD: Final = "told that nothing was created, and the key is not free"
LOCKED: Final = "a free key does not lead to an invoice in fair weather"
ENDLESS: Final = "the same call does not settle an open key in fair weather, though its caller is told so"

DAY: Final = 24 * 3600

#: What the document of a model begins with, up to its caller's limits.
HEAD: Final = """\
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: {upstream}, origin: https://upstream.example,
            secret: file:key}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}}]
"""

# ---------------------------------------------------------------- what an upstream says


def error(status: int, *, replayed: bool = False, **said: object) -> Received:
    headers = {"idempotent-replayed": "true"} if replayed else {}
    return Received(status, json.dumps({"error": said}).encode(), headers)


#: What an upstream may answer, by the names that the steps of a trace give it.
ANSWERS: Final = {
    "refused": error(400, type="invalid_request_error"),
    "declined": error(402, type="card_error"),
    "declined again": error(402, type="card_error", replayed=True),
    "500": error(500, type="api_error"),
    "500 again": error(500, type="api_error", replayed=True),
    "429": error(429, type="invalid_request_error"),
    "401": error(401, type="invalid_request_error"),
    "in flight": error(409, type="idempotency_error", code="idempotency_key_in_use"),
    "another form": error(400, type="idempotency_error"),
    "a wrong door": Received(404, b"<html>"),
    "foreign words": Received(400, b"StripeConnectionError"),
    "foreign words again": Received(400, b"StripeConnectionError", {"idempotent-replayed": "true"}),
}
#: What becomes of an approval, as Stripe names it, and what ends with it.
PENDING, SUCCEEDED, REJECTED, EXPIRED = "pending", "succeeded", "rejected", "expired"


def received(name: str) -> Received:
    """The answer of a name: one of ``ANSWERS``, or "invoice 0 x", "waits 0", "rejected", "succeeded 0"."""
    kind, _, rest = name.partition(" ")
    match kind:
        case "invoice":
            number, asks = rest.split()
            return Received(200, invoice_body(int(number), asks))
        case "waits":
            return error(402, code="approval_required", approval_request={"id": f"areq_{rest}"})
        case "pending" | "rejected" | "expired":
            return Received(200, json.dumps({"status": kind}).encode())
        case "succeeded":
            details = {"succeeded": {"result": {"id": f"in_{rest}"}}}
            return Received(200, json.dumps({"status": kind, "status_details": details}).encode())
        case _:
            return ANSWERS[name]


def invoice_body(number: int, asks: str) -> bytes:
    return json.dumps({"object": "invoice", "id": f"in_{number}", "description": asks}).encode()


#: What says, in any of our sentences, that nothing came of a key.
NOTHING: Final = re.compile(r"(?<!Probably )[Nn]othing was (created|sent|changed)|created nothing")

# ---------------------------------------------------------------- the code under test


class Claim(Protocol):
    def __call__(
        self, grant: Grant, held: Entry | None, *, owner: str, place: str, now: float
    ) -> Entry | Answer | None: ...


class Settle(Protocol):
    def __call__(
        self, grant: Grant, held: Entry | None, *, owner: str, reply: Reply, answer: Answer | None
    ) -> Entry | None: ...


class Resolve(Protocol):
    def __call__(
        self, held: Entry | None, answer: Answer | None, *, now: float, said: str
    ) -> tuple[Verdict, Entry | None]: ...


class Asked(BaseException):
    """A call makes a request for which the script has no answer yet."""

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing


class Script:
    """A transport, a clock and the secrets of one call, whose answers are given."""

    def __init__(self, answers: tuple[str, ...]) -> None:
        self._answers, self._now = iter(answers), 0.0

    def send(self, outgoing: Outgoing, key: object, seconds: float) -> Received:
        match next(self._answers, None):
            case None:
                raise Asked(outgoing)
            case "no connection":
                raise NotSentError
            case "no answer":  # until the deadline
                self._now += seconds
                raise LostError
            case "a reset":
                raise LostError
            case name:
                return received(name)

    def clock(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds

    def renew(self, grant: Grant, refused: Secret, deadline: float) -> Secret | None:
        return None


SECRET: Final = Secret.of("key", "1", b"sk_test_1234567890abcdef")


class End(NamedTuple):
    """How a call ended."""

    reply: Reply
    """No more of it than the ledger takes."""
    answer: Answer
    nothing: bool
    """Whether its caller is told that nothing was created."""
    alarm: bool = False
    """Whether somebody is told to look."""
    reason: str = ""
    """Of the refusal."""


def end_of(grant: Grant, reply: Reply) -> End:
    """Return how a call ended whose sends came to ``reply``."""
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


class Scene(NamedTuple):
    """Which misfortunes there are, how many of them may come together, and who comes."""

    menu: frozenset[str]
    upstream: str = "stripe"
    faults: int = 2
    tries: int = 3
    asks: str = "x"
    """What callers may ask for: a letter for each description."""
    tick: int = LEASE
    """How much time passes at a step while anything is under way."""
    days: tuple[int, ...] = ()
    """How much time may pass while nothing is, in this order."""

    @property
    def deduplicates(self) -> bool:
        return self.upstream == "stripe"


def scene(menu: str, **more: Any) -> Scene:
    return Scene(frozenset(menu.split(", ")), **more)


class Form(NamedTuple):
    """What is sent: what a caller asks for, and what the document fixed when the call came."""

    asks: str
    footer: str


class Try(NamedTuple):
    """One call that brings the key. Its owner token is the letter of its place."""

    phase: str = "away"
    form: Form = Form("", "")
    admission: Admission | None = None
    answers: tuple[Any, ...] = ()
    end: End | None = None


#: A world: a named tuple with ``faults``, ``tries``, ``wire`` and ``approvals``, and what a model adds.
W = TypeVar("W", bound=Any)


def deaf(world: W, owner: str) -> W:
    """Let nobody await what an owner sent."""
    wire = (r._replace(awaited=False) if r.owner == owner else r for r in world.wire)
    return in_order(world, wire)


def in_order(world: W, wire: Iterable[Any]) -> W:
    """Put what is on its way in an order that does not depend on how it came there."""
    ordered: W = world._replace(wire=tuple(sorted(wire)))
    return ordered


def ended(world: W, number: int, state: str) -> W:
    """Have an approval end like this."""
    one = world.approvals[number]._replace(state=state)
    after: W = world._replace(approvals=(*world.approvals[:number], one, *world.approvals[number + 1 :]))
    return after


#: The last three come once the weather is fair.
OWNERS: Final = "abcdefg"
#: A call in one of these has a lease, and ends before it is over.
ACTIVE: Final = frozenset({"calling", "waiting", "ended"})


class Event(NamedTuple):
    """What may happen next: to whom, what, and what comes of it."""

    who: str
    what: str
    world: Any
    wrongs: tuple[str, ...] = ()


@dataclass
class Storm(ABC, Generic[W]):
    """How the callers of a scene come, and what befalls them."""

    scene: Scene

    @property
    @abstractmethod
    def phases(self) -> dict[str, Callable[[W, int], Iterator[tuple[Any, ...]]]]:
        """What a call may do next in each phase."""

    @abstractmethod
    def _claiming(self, world: W, who: int, form: Form) -> Iterator[tuple[Any, ...]]:
        """Bring the key to the store."""

    @abstractmethod
    def _run(self, one: Try) -> Any:
        """Run a call with the answers so far. Return how it ended, or what it does next."""

    def between(self, world: W, after: W, what: str) -> Iterator[str]:
        """What is wrong with an event."""
        if after.entry is not world.entry:
            yield from wrong_between(world.entry, after.entry, what)

    def has(self, world: W, what: str) -> bool:
        return world.faults > 0 and what in self.scene.menu

    def turn(self, world: W, who: int) -> Iterator[tuple[Any, ...]]:
        """What one call may do next: what that is, the world, and what is wrong. What befalls nobody comes first."""
        one = world.tries[who]
        yield from self.phases[one.phase](world, who)
        if one.phase in ACTIVE and self.has(world, "killed"):
            yield "is killed", deaf(world.unlucky(), OWNERS[who]).at(who, Try("over"))

    def _coming(self, world: W, who: int) -> Iterator[tuple[Any, ...]]:
        if who == 0 or world.tries[who - 1].phase != "away":  # they differ in nothing but their names
            for asks in self.scene.asks:
                yield from self._claiming(world, who, Form(asks, world.footer))

    def _waiting(self, world: W, who: int) -> Iterator[tuple[Any, ...]]:
        for misfortune in ("no answer", "a reset"):
            if self.has(world, misfortune):
                yield f"gets {misfortune}", self._answered(deaf(world.unlucky(), OWNERS[who]), who, misfortune)

    def _answered(self, world: W, who: int, answer: str | Entry) -> W:
        one = world.tries[who]
        one = one._replace(phase="calling", answers=(*one.answers, answer))
        end = self._run(one)
        after: W = world.at(who, one._replace(phase="ended", answers=(), end=end) if isinstance(end, End) else one)
        return after


# ---------------------------------------------------------------- the search


@dataclass
class Search:
    """Every world of a scene, the nearest first, up to the first that is wrong as ``until`` says."""

    play: Any
    until: str | None = None
    came: dict[Any, tuple[Any, str, str] | None] = field(default_factory=dict, repr=False)
    """Every world met, and the event by which it was met first."""
    events: set[str] = field(default_factory=set, repr=False)
    wrongs: dict[str, str] = field(default_factory=dict)
    """What is wrong, and the shortest way there."""

    def run(self) -> Search:
        start = self.play.start()
        self.came[start] = None
        ahead = deque([start])
        while ahead and (self.until is None or self.until not in self.wrongs):
            world = ahead.popleft()
            for who, what, after, found in self.play.events(world):
                self.events.add(what)
                wrongs = [*found, *self.play.between(world, after, what)]
                following = self.play.restarted(after)
                if following not in self.came:
                    self.came[following] = (world, who, what)
                    wrongs += self.play.at_rest(following)
                    if TWICE not in wrongs:
                        ahead.append(following)
                for wrong in wrongs:
                    if wrong not in self.wrongs:
                        self.wrongs[wrong] = self._trace(wrong, world, who, what, following)
        return self

    def _trace(self, wrong: str, world: Any, who: str, what: str, following: Any) -> str:
        steps = [(who, what, following)]
        while came := self.came[world]:
            steps.append((*came[1:], world))
            world = came[0]
        return "\n".join(
            [f"{wrong}:"]
            + [
                f"{number:4}. {who:2}{what:60}{self.play.shown(after)}"
                for number, (who, what, after) in enumerate(reversed(steps), 1)
            ]
        )


def shown(entry: Entry | None) -> str:
    """Say in a few words what an entry is like."""
    if entry is None:
        return "nothing held"
    more = [f"generation {entry.generation}"] * bool(entry.generation) + ["in doubt"] * entry.doubt
    return ", ".join([f"{entry.state} by {entry.owner}", *more])


# ---------------------------------------------------------------- what must hold


def wrong_between(before: Entry | None, entry: Entry | None, what: str) -> Iterator[str]:
    """What no event may do to a settled entry, or to an open one."""
    if entry is not None and entry.state in {State.SENT, State.UNKNOWN} and entry.expires is not None:
        yield EXPIRES
    if before is None or before == entry or "the ledger is lost" in what or "an operator" in what:
        return
    if entry is not None and replace(before, told=entry.told, before=None) == entry:
        return  # an operator's decision that a call has met is marked
    if before.state in {State.SUCCEEDED, State.REJECTED}:
        yield CHANGED
