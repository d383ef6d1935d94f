"""The plan of a whole invoice, tried in every order of events that one idempotency key can meet.

See ``walking``, whose calls in several steps these are, by ``policies.issuing``.

What is assumed, beside what is assumed there: a look is answered as things stand; lines, finalize, send and delete are
each carried out whole or not at all; an invoice is changed by people only while it is a draft.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs

import pytest
from msgspec.structs import replace

from gateway.upstreams import sending
from gateway.upstreams.transport import Received
from policies import idempotency, issuing, lines, outcomes
from policies.access import decide
from policies.idempotency import LEASE, Verdict
from policies.issuing import Stage
from policies.model import Admission, Answer, Entry, Outcome, State
from policies.outcomes import Reply
from policies.refusals import TotalDiffers
from policies.upstreams import stripe
from tests.policies import storm
from tests.policies.conftest import call, only_caller, read
from tests.policies.storm import (
    ACTIVE,
    DAY,
    DIFFERS,
    ENDLESS,
    HEAD,
    HELD,
    HOLLOW,
    LIE,
    LOCKED,
    OTHER,
    OWNERS,
    PENDING,
    REJECTED,
    TWICE,
    End,
    Event,
    Form,
    Search,
    Settle,
    Try,
    in_order,
    scene,
)
from tests.policies.walking import Advance, Approval, Known, Ledger, Request, Walking

if TYPE_CHECKING:
    from collections.abc import Iterator

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

DOCUMENT: Final = (
    HEAD
    + """\
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
)
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
    policies = read(DOCUMENT.format(upstream="stripe", footer=footer))
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


# ---------------------------------------------------------------- the world


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
class Play(Walking[World]):
    """All that may happen in a scene."""

    def start(self) -> World:
        return World(self.scene.faults, (Try(),) * self.scene.tries, self.scene.days)

    def at_rest(self, world: World) -> Iterator[str]:
        return wrong_at_rest(self, world)

    def shown(self, world: World) -> str:
        """Say in a few words what a world is like."""
        entry = world.entry
        held = storm.shown(entry)
        if entry is not None and entry.id is not None:
            held += f", {entry.step} {entry.id}"
        seen = [world.shown(number) for number in range(len(world.invoices))]
        return f"{held}; invoices: {', '.join(seen)}" if seen else held

    def granted(self, form: Form) -> Grant:
        return granted(*form)

    def received(self, name: str) -> Received:
        return received(name)

    def request(self, asked: Outgoing, owner: str, asks: str, until: float) -> Request:
        stage, number = _about(asked)
        form, key = asked.url.encode() + (asked.body or b""), asked.headers.get("Idempotency-Key", "")
        return Request(owner, stage, number, key, form, asks, _stamp_of(asked), until)

    def unfit(self, world: World, request: Request) -> tuple[str, ...]:
        unnamed = world.entry is None or world.entry.id != f"in_{request.number}"
        return (FENCE,) * (request.stage in {Stage.FINALIZE, Stage.SEND} and unnamed)

    def carried_out(self, world: World, request: Request) -> tuple[World, str, tuple[str, ...]]:
        return carried_out(world, request)

    def tell(self, world: World, answer: Answer, form: Form) -> tuple[World, tuple[str, ...]]:
        return tell(world, answer, form)

    def told(self, world: World, who: int) -> tuple[World, tuple[str, ...]]:
        one = world.tries[who]
        assert one.end is not None
        told, wrongs = world, tuple[str, ...]()
        if self._asleep(world, one):
            pass  # whoever called has hung up
        elif one.end.nothing:
            told, wrongs = tell_nothing(world)
        elif one.end.reply.outcome is Outcome.SUCCEEDED:
            told, wrongs = tell(world, one.end.answer, one.form)
        settled = self._settled(told, who)
        ours = world.entry is not None and (world.entry.state, world.entry.owner) == (State.SENT, OWNERS[who])
        free = settled.entry is None or settled.entry.state in {State.FREE, State.REJECTED}
        if ours and one.end.nothing and not free:
            wrongs = (*wrongs, HELD)
        if one.end.reason == TotalDiffers.reason and not any("edits" in what for what in self.scene.menu):
            wrongs = (*wrongs, BLAME)
        return told, wrongs

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

    def _people(self, world: World) -> Iterator[Event]:
        yield from self._persons(world)
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
            how, found, last = play.in_fair_weather(world, asks, how_it_ends, AGAIN)
            yield from found
            if how not in WELL:
                yield LOCKED
    elif entry.state in {State.UNKNOWN, State.SENT} and world.footer == "1":
        calm = world._replace(now=max(world.now, entry.until, entry.lease_until))
        asks = next(a for a in play.scene.asks if granted(a, "1").fingerprint == entry.fingerprint)
        how, found, last = play.in_fair_weather(calm, asks, how_it_ends, AGAIN)
        yield from found
        left = any(one.status == "draft" for one in last.invoices)
        if how in WELL and left and not excused:
            yield LEFT
        if how not in WELL:
            yield ENDLESS


#: What a caller may meet in fair weather. A person's decision is one, and so is a draft that somebody finalized.
WELL: Final = frozenset({"invoice", "person", "alarm"})


#: After these a caller comes again.
AGAIN: Final = frozenset({"released", "freed", "unknown", "awaits"})


def how_it_ends(world: World, what: str, end: End | None) -> str:
    """Say what a caller meets in fair weather."""
    if end is None:
        return "invoice" if "gets the answer again" in what else what
    reply, states = end.reply, {approval.state for approval in world.approvals}
    if reply.approval is not None:
        return "person" if PENDING in states else "awaits"
    if reply.outcome is Outcome.REJECTED and REJECTED in states:
        return "person"
    edited = any(one.theirs or one.touched for one in world.invoices)
    if edited and (end.alarm or (reply.mute and reply.id is not None)):  # told by this call, or by one before
        return "alarm"
    return "invoice" if reply.outcome is Outcome.SUCCEEDED else "mute" if reply.mute else reply.outcome.value


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
    "mail that a person approves": (5_000, scene("a person anywhere, a reset, killed", asks="m", tries=2)),
    # Where an approval is not kept, and nobody hears of it, the mail goes out again: only a person can prevent that.
    "mail, not kept": (1_000, scene("a person anywhere, not kept, 429", asks="m", faults=3)),
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
        }
    if where.asks == "m" and "not kept" not in where.menu:
        expected |= {"its send is answered again: open 0 m 300 again"}
    assert expected <= search.events, expected - search.events


# ---------------------------------------------------------------- mistakes that the search must find


def found(name: str, ledger: Ledger, wrong: str) -> str | None:
    """Search a scene, from the nearest world on, for one wrong. Return the way there."""
    return Search(Play(SCENES[name][1], ledger), until=wrong).run().wrongs.get(wrong)


def draft_is_not_named(held: Entry | None, progress: Progress, *, owner: str) -> Entry | None:
    return idempotency.advance(held, replace(progress, id=None), owner=owner)


def step_is_not_named(held: Entry | None, progress: Progress, *, owner: str) -> Entry | None:
    return idempotency.advance(held, replace(progress, reached=Stage.CREATE), owner=owner)


def approval_of_the_step_before_is_kept(held: Entry | None, progress: Progress, *, owner: str) -> Entry | None:
    entry = idempotency.advance(held, progress, owner=owner)
    return replace(entry, approval=held.approval) if held is not None and entry is not None else None


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
        ("mail that a person approves", approval_of_the_step_before_is_kept, UNMAILED),
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


def approved_mail_is_sent_again(at: Progress, decision: Any, created: str | None, reply: Reply) -> Progress | Reply:
    ahead = APPROVED(at, decision, created, reply)
    return ahead if isinstance(ahead, Reply) else replace(ahead, mailed=None)


def decision_is_forgotten_without_a_look(
    at: Progress, decision: Any, created: str | None, reply: Reply
) -> Progress | Reply:
    ahead = APPROVED(at, decision, created, reply)
    return ahead if isinstance(ahead, Reply) else replace(ahead, approval=None)


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
        ("mail, not kept", issuing, "approved", approved_mail_is_sent_again, MAILED),
        ("mail, not kept", issuing, "approved", decision_is_forgotten_without_a_look, MAILED),
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
