"""The plan of finalizing or mailing one invoice, tried in every order of events that one idempotency key can meet.

See ``walking``, whose calls in several steps these are, by ``policies.finalizing``.

What is assumed, beside what is assumed there: a look is answered as things stand; finalize and send are each carried
out whole or not at all; Stripe finalizes a draft that it is told to mail, and mails nothing that is void.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from msgspec.structs import replace

from gateway.upstreams.transport import Received
from policies import finalizing, idempotency
from policies.access import decide
from policies.idempotency import LEASE
from policies.issuing import Stage
from policies.model import Outcome, State
from policies.outcomes import Decision, Reply
from policies.upstreams import stripe
from tests.policies import storm
from tests.policies.conftest import call, only_caller, read
from tests.policies.storm import (
    ACTIVE,
    DAY,
    ENDLESS,
    HEAD,
    HELD,
    HOLLOW,
    LIE,
    LOCKED,
    OWNERS,
    PENDING,
    REJECTED,
    End,
    Event,
    Form,
    Search,
    Try,
    scene,
)
from tests.policies.walking import Approval, Known, Ledger, Request, Walking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.dialect import Outgoing
    from policies.issuing import Progress
    from policies.model import Admission, Answer, Entry, Grant
    from tests.policies.storm import Scene

ABOVE: Final = "finalized or mailed, and the policy does not allow it"
UNSAID: Final = "an invoice that the policy does not allow was told as a success, and nobody was told to look"
MAILED: Final = "mailed twice"
VOID: Final = "Stripe was told to mail an invoice that was seen to be void"
UNFENCED: Final = "something was sent that finalizes or mails, and the ledger does not say so"

# ---------------------------------------------------------------- what callers ask for, and what Stripe says

#: ``f`` finalizes the invoice, ``s`` mails it.
OPERATIONS: Final = {"f": "invoices.finalize", "s": "invoices.send"}
MOST: Final = 1000
DOCUMENT: Final = (
    HEAD
    + """\
    limits: [30/minute]
    grants:
      - connection: billing
        operation: {operation}
        response: [id, status, total]
        amount: {{max: 1000, currency: [usd]}}
        parameters: {{invoice: {{prefix: in_}}{more}}}
"""
)


@lru_cache
def granted(asks: str, footer: str) -> Grant:
    """A call to finalize or mail the invoice. What the document fixes of it is ``footer``."""
    more = ", auto_advance: {fixed: 'true'}" if footer == "2" else ""
    policies = read(DOCUMENT.format(upstream="stripe", operation=OPERATIONS[asks], more=more))
    asked = call({"invoice": "in_0"}, key="order-1", operation=OPERATIONS[asks])
    return decide(policies, only_caller(policies), asked)


class Invoice(NamedTuple):
    """What lies at Stripe."""

    status: str = "draft"
    total: int = 100
    currency: str = "usd"
    mailed: int = 0
    ours: bool = False
    """Whether a call of ours has finalized it."""
    touched: bool = False
    """Whether somebody changed it while a call was under way."""

    @property
    def allowed(self) -> bool:
        """Whether it may be finalized and mailed."""
        asks = self.total > 0 or self.status != "draft"
        return asks and self.total <= MOST and self.currency == "usd"

    @property
    def shown(self) -> str:
        """What a look says."""
        return "missing" if self.status == "deleted" else f"{self.status} 0 {self.total} {self.currency}"


DRAFT: Final = Invoice()


@lru_cache(10_000)
def received(name: str) -> Received:
    """The answer of a name: an invoice, such as "draft 0 100 usd", or one of the single call's."""
    kind, *rest = name.removesuffix(" again").split()
    headers = {"idempotent-replayed": "true"} if name.endswith(" again") else {}
    match kind:
        case "draft" | "open" | "paid" | "void":
            total, currency = int(rest[1]), rest[2]
            shown = {
                "object": "invoice",
                "id": "in_0",
                "status": kind,
                "currency": currency,
                **dict.fromkeys(("subtotal", "total", "amount_due"), total),
                "customer_email": "account@accdemo.com",
                "lines": {"data": [{"amount": total}], "has_more": False},
            }
            return Received(200, json.dumps(shown).encode(), headers)
        case "waits":
            return storm.received(name.removesuffix(" again"))
        case "missing" | "unfit":
            told = {"type": "invalid_request_error"}
            return Received({"missing": 404, "unfit": 400}[kind], json.dumps({"error": told}).encode(), headers)
        case "failed":
            return Received(200, json.dumps({"status": "failed"}).encode())
        case _:
            return storm.received(name)


# ---------------------------------------------------------------- the world


class World(NamedTuple):
    """Everything that the next event depends on."""

    faults: int
    """How many misfortunes may still come."""
    tries: tuple[Try, ...]
    days: tuple[int, ...]
    invoice: Invoice
    entry: Entry | None = None
    now: float = 0.0
    wire: tuple[Request, ...] = ()
    known: tuple[Known, ...] = ()
    approvals: tuple[Approval, ...] = ()
    footer: str = "1"
    lost: bool = False
    """Whether the ledger was lost."""

    def at(self, who: int, now: Try) -> World:
        return self._replace(tries=(*self.tries[:who], now, *self.tries[who + 1 :]))

    def unlucky(self) -> World:
        return self._replace(faults=self.faults - 1)

    def change(self, **changes: Any) -> World:
        return self._replace(invoice=self.invoice._replace(**changes))

    @property
    def quiet(self) -> bool:
        """Whether no call is under way, nor anything that one has sent."""
        return not self.wire and not any(one.phase in ACTIVE for one in self.tries)


@dataclass
class Play(Walking[World]):
    """All that may happen in a scene, to an invoice."""

    invoice: Invoice = DRAFT

    def start(self) -> World:
        return World(self.scene.faults, (Try(),) * self.scene.tries, self.scene.days, self.invoice)

    def at_rest(self, world: World) -> Iterator[str]:
        return wrong_at_rest(self, world)

    def shown(self, world: World) -> str:
        """Say in a few words what a world is like."""
        entry = world.entry
        step = f", {entry.step}" if entry is not None and entry.step else ""
        return f"{storm.shown(entry)}{step}; {world.invoice.shown}, mailed {world.invoice.mailed}"

    def granted(self, form: Form) -> Grant:
        return granted(*form)

    def received(self, name: str) -> Received:
        return received(name)

    def request(self, asked: Outgoing, owner: str, asks: str, until: float) -> Request:
        stage = Stage.SEND if asked.url.endswith("/send") else Stage.FINALIZE
        return Request(owner, stage, 0, asked.headers["Idempotency-Key"], asked.body or b"", asks, "", until)

    def unfit(self, world: World, request: Request) -> tuple[str, ...]:
        """Say what is wrong with sending a request."""
        one, entry = world.invoice, world.entry
        # What finalizes must be on record as that, since its sum is booked then.
        named = entry is not None and entry.step in {Stage.FINALIZE, *[Stage.SEND] * (one.status != "draft")}
        return (
            *[VOID] * (one.status == "void" and not one.touched),
            *[ABOVE] * (not one.allowed and not one.touched),
            *[UNFENCED] * (not named and not one.touched),
        )

    def carried_out(self, world: World, request: Request) -> tuple[World, str, tuple[str, ...]]:
        """Carry a request out: the world, what it answers, and what is wrong."""
        one, mails = world.invoice, request.stage == Stage.SEND
        if one.status == "deleted":
            return world, "missing", ()
        if one.status not in ({"draft", "open", "paid"} if mails else {"draft"}):
            return world, "unfit", ()
        wrongs = (
            *[ABOVE] * (not one.allowed and not one.touched),
            *[MAILED] * (mails and one.mailed > 0),
            *[LIE] * (request.void and not world.lost),
        )
        if one.status == "draft":
            world = world.change(status="paid" if one.total < 50 else "open", ours=True)
        world = world.change(mailed=one.mailed + mails)
        return world, world.invoice.shown, wrongs

    def tell(self, world: World, answer: Answer, form: Form) -> tuple[World, tuple[str, ...]]:
        if answer.status != 200:
            return world, ()
        one, told = world.invoice, json.loads(answer.body)
        done = one.mailed > 0 if form.asks == "s" else one.status not in {"draft", "deleted"}
        return world, (HOLLOW,) * (not done or told["status"] not in {"open", "paid"})

    def told(self, world: World, who: int) -> tuple[World, tuple[str, ...]]:
        one, settled = world.tries[who], self._settled(world, who)
        assert one.end is not None
        ours = world.entry is not None and (world.entry.state, world.entry.owner) == (State.SENT, OWNERS[who])
        free = settled.entry is None or settled.entry.state is State.FREE
        ended = free or (settled.entry is not None and settled.entry.state is State.REJECTED)
        if self._asleep(world, one):
            return world, ()  # whoever called has hung up
        if one.end.nothing or (ours and free):
            held = (HELD,) * (ours and one.end.nothing and not ended)
            told, wrongs = tell_nothing(world, one.form)
            return told, (*wrongs, *held)
        if one.end.reply.outcome is Outcome.SUCCEEDED:
            told, wrongs = self.tell(world, one.end.answer, one.form)
            unsaid = not world.invoice.allowed and not one.end.alarm and not world.invoice.touched
            return told, (*wrongs, *[UNSAID] * unsaid)
        return world, ()

    def _looking(self, world: World, who: int, asked: Outgoing) -> Iterator[tuple[Any, ...]]:
        kind, _, number = asked.url.rpartition("/")[2].rpartition("_")
        seen = world.approvals[int(number)].state if kind == "areq" else world.invoice.shown
        yield f"looks: {seen}", self._answered(world, who, seen)
        for misfortune in ("no answer", "a reset", "429", "500"):
            if self.has(world, misfortune):
                yield f"looks: {misfortune}", self._answered(world.unlucky(), who, misfortune)
        if self.has(world, "late"):
            yield f"looks: late {seen}", self._answered(world.unlucky(), who, f"late {seen}")

    def _people(self, world: World) -> Iterator[Event]:
        yield from self._persons(world)
        touched = "edits meanwhile" in self.scene.menu or any(one.state == PENDING for one in world.approvals)
        if not (self.has(world, "edits meanwhile") or (self.has(world, "edits") and world.quiet)):
            return
        after = world.unlucky().change(touched=touched)
        match world.invoice.status:
            case "draft":
                if world.invoice.allowed:
                    yield Event("", "somebody adds a line", after.change(total=2 * MOST))
                yield Event("", "somebody deletes the draft", after.change(status="deleted"))
                yield Event("", "somebody finalizes the draft", after.change(status="open"))
            case "open":
                yield Event("", "somebody voids the invoice", after.change(status="void"))


def tell_nothing(world: World, form: Form) -> tuple[World, tuple[str, ...]]:
    """Tell somebody that nothing was changed: what is under way must not change anything, either."""
    one = world.invoice
    wrong = (one.mailed > 0 if form.asks == "s" else one.ours) and not world.lost
    void = world._replace(
        approvals=tuple(a._replace(request=a.request._replace(void=True)) for a in world.approvals),
        wire=tuple(request._replace(void=True) for request in world.wire),
    )
    return void, (LIE,) * wrong


# ---------------------------------------------------------------- what must hold


def wrong_at_rest(play: Play, world: World) -> Iterator[str]:
    """What nobody may meet who comes once the weather is fair."""
    entry = world.entry
    if world.lost or world.wire or any(one.phase in {*ACTIVE, "owing"} for one in world.tries):
        return
    if entry is None or entry.state is State.FREE:
        calm, wrong = world, LOCKED
    elif entry.state in {State.UNKNOWN, State.SENT} and world.footer == "1":
        calm, wrong = world._replace(now=max(world.now, entry.until, entry.lease_until)), ENDLESS
    else:
        return
    for asks in play.scene.asks:
        how, found, _ = play.in_fair_weather(calm, asks, how_it_ends, AGAIN)
        yield from found
        if how not in well(calm, asks):
            yield wrong


#: After these a caller comes again.
AGAIN: Final = frozenset({"released", "freed", "unknown", "awaits"})


def how_it_ends(world: World, what: str, end: End | None) -> str:
    """Say what a caller meets in fair weather."""
    if end is None:
        return "success" if "gets the answer again" in what else what
    reply, states = end.reply, {approval.state for approval in world.approvals}
    if reply.approval is not None:
        return "person" if PENDING in states else "awaits"
    if reply.outcome is Outcome.REJECTED:
        return "person" if REJECTED in states else "voided"
    return "success" if reply.outcome is Outcome.SUCCEEDED else "mute" if reply.mute else reply.outcome.value


def well(world: World, asks: str) -> set[str]:
    """What a caller may meet in fair weather: it depends on what there is at Stripe."""
    one, person = world.invoice, {"person"} if world.approvals else set[str]()
    match one.status:
        case "draft":
            return {"success" if one.allowed else "freed"} | person
        case "open" | "paid" if asks == "f":  # told as a success if the call may have done it
            return {"success", "freed"} | person
        case "open" | "paid":  # what may have been mailed is nobody's to mail again
            doubt = world.entry is not None and (world.entry.doubt or world.entry.state is State.SENT)
            return {"success", *["mute"] * doubt, *["freed"] * (not one.allowed)} | person
        case "void":
            return {"voided", "freed"} | person
    return {"freed"} | person


# ---------------------------------------------------------------- the scenes

DAYS: Final = (DAY - 2 * LEASE, 2 * LEASE)
LARGE, EURO, TINY = Invoice(total=2 * MOST), Invoice(currency="eur"), Invoice(total=30)
OPEN, PAID, GONE = Invoice("open"), Invoice("paid"), Invoice("deleted")
VOIDED, LARGE_OPEN = Invoice("void"), Invoice("open", 2 * MOST)
#: Each with a number of worlds that it has at least, and the invoice that it begins with.
SCENES: Final[dict[str, tuple[int, Scene, Invoice]]] = {
    **{
        f"{name}, {what}": (least, scene(menu, asks=asks, **more), DRAFT)
        for asks, what in (("f", "finalized"), ("s", "mailed"))
        for name, least, menu, more in (
            ("steps", 500, "no answer, a reset, killed, refused, declined, 429", {}),
            ("three", 500, "a reset, killed, 429", {"faults": 3}),
            ("failures", 500, "a reset, 500, in flight, 401, a wrong door, no connection", {"tries": 2}),
            ("failures, a day", 500, "500, killed, a reset", {"days": DAYS[:1], "tries": 2}),
            ("late", 200, "a reset, no answer, late, killed, store, settlement", {"tries": 2}),
            ("within a lease", 500, "a reset, no answer, killed, refused", {"tries": 2, "tick": LEASE // 2}),
            ("days", 500, "no answer, a reset, killed, declined", {"tries": 2, "days": DAYS}),
            ("edited", 500, "edits, no answer, killed, 429", {"faults": 3}),
            ("edited meanwhile", 500, "edits meanwhile, no answer, killed", {"tries": 2, "faults": 3}),
            ("approval", 200, "a person anywhere, a reset, killed", {}),
            ("approval, a reset", 200, "a person anywhere, a reset, no answer", {"tries": 2, "faults": 3}),
            ("approval, not kept", 100, "a person anywhere, not kept, 429, 500", {"faults": 3}),
            ("approval, edited", 100, "a person anywhere, edits, 429", {"faults": 3}),
            ("lost", 500, "lost, no answer, a reset, killed, declined", {"tries": 2}),
            ("frozen", 200, "frozen, a reset, killed, 429", {"tries": 2}),
        )
    },
    # A mail that is held once and not held the next time goes out twice if that is approved, whatever we do.
    "approval, heard, finalized": (
        500,
        scene("a person anywhere, heard, not kept, a reset, no answer", asks="f", tries=2, faults=3),
        DRAFT,
    ),
    "document": (100, scene("document, no answer, killed, declined", asks="f", tries=2), DRAFT),
    **{
        f"{name}, {what}": (10, scene("a reset, killed, 429, edits", asks=asks), invoice)
        for asks, what in (("f", "finalized"), ("s", "mailed"))
        for name, invoice in {
            "above": LARGE,
            "nothing": Invoice(total=0),
            "another currency": EURO,
            "tiny": TINY,
            "open": OPEN,
            "open and above": LARGE_OPEN,
            "paid": PAID,
            "void": VOIDED,
            "gone": GONE,
        }.items()
    },
}


def searched(name: str, ledger: Ledger | None = None, until: str | None = None) -> Search:
    _, where, invoice = SCENES[name]
    return Search(Play(where, ledger or Ledger(), invoice=invoice), until=until).run()


@pytest.mark.parametrize("name", SCENES)
def test_no_order_of_events_breaks_a_promise(name: str) -> None:
    search = searched(name)
    assert not search.wrongs, "\n\n".join(search.wrongs.values())
    assert len(search.came) >= SCENES[name][0]


#: By what is in a scene's menu: events that it makes.
MISFORTUNES: Final = {
    "no answer": ("gets no answer",),
    "a reset": ("gets a reset",),
    "killed": ("is killed",),
    "late": ("its {step} is carried out: late open 0 100 usd",),
    "settlement": ("writes succeeded, and does not hear so", "cannot write succeeded, and tells", "pays what it owes"),
    "store": ("cannot write {step}", "writes {step}, and does not hear so"),
    "a person anywhere": ("its {step} needs a person: waits 0", "looks: pending", "looks: rejected"),
    "edits": ("somebody adds a line", "somebody voids the invoice", "looks: void 0 100 usd", "looks: missing"),
    "lost": ("the ledger is lost",),
    "frozen": ("time passes, and nobody moves",),
}


@pytest.mark.parametrize("name", [name for name, (_, _, invoice) in SCENES.items() if invoice == DRAFT])
def test_what_a_scene_is_about_happens_in_it(name: str) -> None:
    _, where, _ = SCENES[name]
    step = "finalize" if where.asks == "f" else "send"
    always = f"its {step} is carried out: open 0 100 usd", f"asks for {where.asks}: gets the answer again"
    made = {event.format(step=step) for one in where.menu for event in MISFORTUNES.get(one, ())}
    events = searched(name).events
    assert made | {*always, f"goes on to {step}", "writes succeeded, and tells"} <= events


# ---------------------------------------------------------------- mistakes that the search must find


def found(name: str, wrong: str, ledger: Ledger | None = None) -> str | None:
    """Search a scene, from the nearest world on, for one wrong. Return the way there."""
    return searched(name, ledger, until=wrong).wrongs.get(wrong)


def step_is_not_named(held: Entry | None, progress: Progress, *, owner: str) -> Entry | None:
    entry = idempotency.advance(held, progress, owner=owner)
    return entry and replace(entry, step="")


def nobody_is_held_up(held: Entry | None, progress: Progress, *, owner: str) -> Entry | None:
    if held is None:
        return None
    return idempotency.advance(replace(held, state=State.SENT, answer=None), progress, owner=held.owner)


def unknown_is_free(grant: Grant, held: Entry | None, *, reply: Reply, **rest: Any) -> Entry | None:
    if reply.outcome is Outcome.UNKNOWN:
        reply = replace(reply, outcome=Outcome.FREED)
    return idempotency.settle_for(grant, held, reply=reply, **rest)


def approval_is_forgotten(grant: Grant, held: Entry | None, *, reply: Reply, **rest: Any) -> Entry | None:
    return idempotency.settle_for(grant, held, reply=replace(reply, approval=None), **rest)


@pytest.mark.parametrize(
    ("name", "ledger", "wrong"),
    [
        ("steps, mailed", Ledger(advance=step_is_not_named), UNFENCED),
        ("steps, mailed", Ledger(settle=unknown_is_free), LIE),
        ("approval, not kept, mailed", Ledger(settle=approval_is_forgotten), MAILED),
    ],
)
def test_mistake_in_the_ledger_is_found(name: str, ledger: Ledger, wrong: str) -> None:
    assert found(name, wrong, ledger)


BEGIN, AFTER, APPROVED, REFUSED = finalizing.begin, finalizing.after, finalizing.approved, finalizing._refused
OPEN_, TOLD, DECIDED = finalizing._open, finalizing._told, finalizing._decided


def everything_is_remembered(grant: Grant, admission: Admission) -> Progress:
    return replace(BEGIN(grant, admission), remembered=True)


def nothing_was_sent(grant: Grant, admission: Admission) -> Progress:
    return replace(BEGIN(grant, admission), sent=False)


def nothing_is_in_doubt(grant: Grant, admission: Admission) -> Progress:
    return replace(BEGIN(grant, admission), doubt=False)


def nothing_arrives_late(grant: Grant, admission: Admission) -> Progress:
    return replace(BEGIN(grant, admission), quiet=True)


def goes_on_without_a_look(grant: Grant, admission: Admission) -> Progress:
    at = BEGIN(grant, admission)
    return replace(at, stage=Stage.SEND) if at.sent else at


def earlier_try_is_no_send(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    return AFTER(grant, at, replace(reply, doubt=False))


def lost_answer_is_sent_again_under_another_key(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if at.stage is Stage.SEND and reply.outcome is Outcome.UNKNOWN and reply.approval is None and at.drafts < 5:
        return replace(at, generation=at.generation + 1, drafts=at.drafts + 1)
    return AFTER(grant, at, reply)


def approval_in_its_course_has_lapsed(
    at: Progress, decision: Decision, created: str | None, reply: Reply
) -> Progress | Reply:
    if decision is Decision.WAITS:
        return Reply(Outcome.RELEASED, generation=at.generation + 1)
    return APPROVED(at, decision, created, reply)


def decision_is_told_unseen(at: Progress, decision: Decision, created: str | None, reply: Reply) -> Progress | Reply:
    return APPROVED(at, decision, created, reply) if decision is Decision.DONE else reply


def decision_is_forgotten_without_a_look(
    at: Progress, decision: Decision, created: str | None, reply: Reply
) -> Progress | Reply:
    ahead = APPROVED(at, decision, created, reply)
    return ahead if isinstance(ahead, Reply) else replace(ahead, approval=None)


def refusal_frees_whatever_was_sent(at: Any, why: Any, reply: Reply | None = None) -> Reply:
    return REFUSED(replace(at, doubt=False), why, reply)


def stopped_call_is_harmless(at: Any, reply: Reply) -> Reply:
    return replace(OPEN_(at, reply), harmless=True)


def nobody_is_told_to_look(grant: Grant, at: Any, reply: Reply) -> Reply:
    return replace(TOLD(grant, at, reply), alarm=None)


def anything_goes(grant: Grant, seen: Any) -> None:
    return None


def what_is_over_is_told_as_done(at: Any) -> Reply:
    answer = {"id": "in_0", "status": "void", "total": 100}
    return Reply(Outcome.SUCCEEDED, answer=answer, created="in_0")


def key_is_without_its_generation(name: str, generation: int = 0, stage: str = "") -> str:
    return idempotency.upstream_key(name, 0, stage)


@pytest.mark.parametrize(
    ("name", "module", "function", "mistake", "wrong"),
    [
        ("days, mailed", finalizing, "begin", everything_is_remembered, MAILED),
        ("steps, mailed", finalizing, "begin", nothing_was_sent, LIE),
        ("edited meanwhile, mailed", finalizing, "begin", nothing_is_in_doubt, LIE),
        ("within a lease, finalized", finalizing, "begin", nothing_arrives_late, LIE),
        ("edited, mailed", finalizing, "begin", goes_on_without_a_look, ABOVE),
        ("steps, mailed", finalizing, "after", earlier_try_is_no_send, MAILED),
        ("three, mailed", finalizing, "after", lost_answer_is_sent_again_under_another_key, MAILED),
        ("approval, not kept, mailed", finalizing, "approved", approval_in_its_course_has_lapsed, LIE),
        ("approval, heard, finalized", finalizing, "approved", decision_is_told_unseen, LIE),
        ("approval, not kept, mailed", finalizing, "approved", decision_is_forgotten_without_a_look, MAILED),
        ("steps, finalized", finalizing, "_refused", refusal_frees_whatever_was_sent, LIE),
        ("edited meanwhile, finalized", finalizing, "_open", stopped_call_is_harmless, LIE),
        ("edited, finalized", finalizing, "_told", nobody_is_told_to_look, UNSAID),
        ("above, mailed", finalizing, "differs", anything_goes, ABOVE),
        ("another currency, finalized", finalizing, "differs", anything_goes, ABOVE),
        ("void, mailed", finalizing, "differs", anything_goes, VOID),
        ("edited, finalized", finalizing, "_voided", what_is_over_is_told_as_done, HOLLOW),
        ("failures, finalized", stripe, "upstream_key", key_is_without_its_generation, ENDLESS),
    ],
)
def test_mistake_in_the_plan_is_found(
    monkeypatch: pytest.MonkeyPatch, *, name: str, module: Any, function: str, mistake: Any, wrong: str
) -> None:
    monkeypatch.setattr(module, function, mistake)
    assert found(name, wrong)
