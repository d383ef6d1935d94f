"""Budgets, tried in every order of events that a few calls with a few keys can meet.

Calls with the same keys or with others share a caller's budgets, and are killed, refused, lost or come back while the
window rolls on. The store in memory itself moves the money, by ``policies.quota`` and ``policies.idempotency``; it is
filled with what a world holds before each event, and emptied into the next world. Only what is around it is made here:
the callers, the upstream, the operator, the clock. What happens within a call is ``policies.issuing`` in short: a look
at what the key has begun, its total booked, and one request that finalizes. That plan has a model of its own,
``test_issue_model``.

What is held against the store is a bookkeeping of its own (``Play.booked``): what each key holds by its entry, what
each call without a key has booked, and what was spent. Each bucket of each window must come to that sum.

What is assumed: a call sends nothing after its lease, and what it sent is carried out within its lease or never; the
upstream carries one key out once; an operator says "not created" only where nothing was, and may take that back.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from msgspec.structs import replace

from gateway.stores import Settled, memory
from gateway.stores.memory import Memory
from policies import idempotency, quota
from policies.access import decide
from policies.idempotency import LEASE, Verdict
from policies.issuing import Progress, Stage
from policies.model import Admission, Answer, Entry, Limit, Outcome, State
from policies.outcomes import InvoiceSeen, Reply
from policies.quota import BUCKETS, Short, Window
from policies.refusals import ApprovalRejected, BudgetSpent, Refusal
from tests.policies.conftest import call, only_caller, read
from tests.policies.storm import (
    ACTIVE,
    HEAD,
    OWNERS,
    PENDING,
    REJECTED,
    SUCCEEDED,
    End,
    Event,
    Form,
    Scene,
    Search,
    Storm,
    Try,
    ended,
    in_order,
    scene,
    wrong_between,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policies.model import Grant

SPENT: Final = "more is finalized within the time of a budget than it allows"
BOOKED: Final = "more is booked in a budget than it allows"
COUNTED: Final = "a window does not count what is held and spent"
KEPT: Final = "a settled call holds more than it spent"
TWICE: Final = "a key that comes back holds its money twice"
REFUSED: Final = "refused by a budget that has room"
SOONER: Final = "room is told later than there is"
LATER: Final = "room is told sooner than there is"
STAYS: Final = "money is counted although its time is over"
SILENT: Final = "more was spent than a budget allows, and nobody is told"
ASKED: Final = "a call that only asks what became of an approval is refused by a budget"
FORESEEN: Final = "a preview says something else than the call is told"

# ---------------------------------------------------------------- what callers ask for

HOUR: Final = 3600
WIDTH: Final = HOUR / BUCKETS
#: When all has left the windows that was counted before.
ROLLED: Final = HOUR + WIDTH + LEASE

DOCUMENT: Final = (
    HEAD
    + """\
    limits: [1000/minute]
    budget: [{budget}]
    grants:
      - connection: billing
        operation: {operation}
        idempotency: {idempotency}
        response: [id]
        amount: {{max: 1000, currency: [usd]}}
        parameters: {{{parameters}}}
"""
)
#: By upstream: the operation that spends there, whether it needs a key, and the parameters that it is granted with.
OPERATIONS: Final = {
    "stripe": ("invoices.issue", "required", "customer: {required: true}"),
    "appgregator": ("invoices.create", "optional", "customer: {required: true}, amount: , currency: "),
}
ONE: Final = "{currency: usd, amount: 1000, per: hour}"
#: The first is stricter for a customer, the last for all in a day.
SEVERAL: Final = (
    "{currency: usd, amount: 700, per: hour, each: customer}, {currency: usd, amount: 1000, per: hour}, "
    "{currency: usd, amount: 1300, per: day}"
)
#: What the document says by its edition, which ``World.edition`` counts.
EDITIONS: Final = (ONE, "{currency: usd, amount: 500, per: hour}", "{currency: usd, amount: 900, per: day}", ONE)


class Order(NamedTuple):
    key: str
    """Empty for a call without one."""
    asks: int
    """What the call says that it comes to."""
    total: int
    """What its draft comes to."""
    customer: str = "cus_1"


#: By the letters that a scene may have callers ask for.
ORDERS: Final = {
    "x": Order("x", 600, 600),
    "X": Order("x", 400, 400),  # the same key, with mended parameters
    "y": Order("y", 600, 600),
    "z": Order("z", 500, 500, "cus_2"),
    "t": Order("t", 400, 700),  # with tax that its customer brings
    "o": Order("", 500, 500),
}


@lru_cache
def granted(upstream: str, budget: str, asks: str) -> Grant:
    order, (operation, key, parameters) = ORDERS[asks], OPERATIONS[upstream]
    text = DOCUMENT.format(
        upstream=upstream, operation=operation, idempotency=key, parameters=parameters, budget=budget
    )
    asked = {"customer": order.customer, "currency": "usd"}
    asked |= {"lines[0][amount]" if upstream == "stripe" else "amount": str(order.asks)}
    policies = read(text)
    return decide(policies, only_caller(policies), call(asked, key=order.key or None, operation=operation))


# ---------------------------------------------------------------- the world


class Request(NamedTuple):
    """What is on its way to the upstream: it finalizes the invoice of a generation of a key."""

    owner: str
    asks: str
    generation: int
    until: float
    """It arrives before then, or never."""
    awaited: bool = True


class Invoice(NamedTuple):
    asks: str
    owner: str
    """Who began it, of a call without a key."""
    generation: int
    at: float | None
    """When it was finalized; None once its draft is deleted."""
    late: bool = False
    """A person approved it."""


class Approval(NamedTuple):
    """What waits for a person."""

    request: Request
    state: str = PENDING
    draft: bool = False
    """Whether it only begins a draft."""


class Money(NamedTuple):
    """What was booked in windows, and is no key's to give back."""

    at: float
    amount: int
    windows: tuple[tuple[str, int], ...]
    owner: str = ""
    """Who booked it, of a call without a key that has not spent it."""


class World(NamedTuple):
    """Everything that the next event depends on."""

    faults: int
    tries: tuple[Try, ...]
    days: tuple[float, ...]
    now: float
    entries: tuple[tuple[str, Entry], ...] = ()
    """By key, in order."""
    windows: tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...] = ()
    """Name, seconds and buckets of each, in order."""
    money: tuple[Money, ...] = ()
    wire: tuple[Request, ...] = ()
    invoices: tuple[Invoice, ...] = ()
    approvals: tuple[Approval, ...] = ()
    edition: int = 0

    @property
    def footer(self) -> str:
        """What a call's form says of the document."""
        return str(self.edition)

    def at(self, who: int, now: Try) -> World:
        return self._replace(tries=(*self.tries[:who], now, *self.tries[who + 1 :]))

    def unlucky(self) -> World:
        return self._replace(faults=self.faults - 1)

    @property
    def quiet(self) -> bool:
        """Whether no call is under way, nor anything that one has sent."""
        return not self.wire and not any(one.phase in {*ACTIVE, "owing"} for one in self.tries)

    def invoice(self, request: Request) -> Invoice | None:
        key = ORDERS[request.asks].key
        for one in self.invoices:
            same = ORDERS[one.asks].key == key if key else one.owner == request.owner
            if same and one.generation == request.generation:
                return one
        return None


class Kept(NamedTuple):
    """What is counted in the windows by our own bookkeeping: in each bucket of each, and by whom."""

    at: float
    amount: int
    window: str
    seconds: int
    key: str


def counts(at: float, seconds: int, now: float) -> bool:
    """Whether what was booked at a time still counts.

    It does from a lease later on, until the last instant of that bucket is a window ago.
    """
    width = seconds / BUCKETS
    return ((at + LEASE) // width + 1) * width + seconds > now


@dataclass
class Play(Storm[World]):
    """All that may happen in a scene."""

    scene: Scene
    budgets: tuple[str, ...] = (ONE,)
    """What the document says, in its editions."""

    def start(self) -> World:
        # Money is booked just before the end of a bucket, and so counts no longer than it must.
        return World(self.scene.faults, (Try(),) * self.scene.tries, self.scene.days, now=12 * WIDTH - LEASE - 0.125)

    def restarted(self, world: World) -> World:
        """Forget what no longer counts, which keeps the worlds few."""
        money = tuple(sorted(one for one in world.money if any(counts(one.at, s, world.now) for _, s in one.windows)))
        windows = []
        for name, seconds, buckets in world.windows:
            width = seconds / BUCKETS
            live = tuple(
                (number, sum_) for number, sum_ in buckets if sum_ and (number + 1) * width + seconds > world.now
            )
            if live:
                windows.append((name, seconds, live))
        return world._replace(money=money, windows=tuple(windows))

    def shown(self, world: World) -> str:
        held = [
            f"{key}: {e.state}, holds {e.reserved and (e.reserved.amount, e.reserved.at)}" for key, e in world.entries
        ]
        counted = [f"{name} {list(buckets)}" for name, _, buckets in world.windows]
        invoices = [f"{one.asks} at {one.at}" for one in world.invoices]
        return "; ".join([f"{world.now}", *held, *counted, *invoices])

    def events(self, world: World) -> Iterator[Event]:
        for who, owner in enumerate(OWNERS[: self.scene.tries]):
            for what, after, *wrongs in self.turn(world, who):
                yield Event(owner, what, after, tuple(wrongs))
        for request in world.wire:
            for what, after in self._arrival(world, request):
                yield Event(request.owner, what, after)
        yield from self._people(world)
        yield from self._time(world)

    # ------------------------------------------------------------ the store

    def grant(self, form: Form) -> Grant:
        """A call as the document granted it when it came."""
        return granted(self.scene.upstream, self.budgets[int(form.footer)], form.asks)

    def store(self, world: World, now: float | None = None) -> Memory:
        """Return a store that holds what a world does."""
        store = Memory(lambda: world.now if now is None else now)
        for key, entry in world.entries:
            store._keep(key, entry)
        for name, seconds, buckets in world.windows:
            store._windows[name] = Window(Limit(0, seconds, ""), buckets)
            if ":customer:" in name:
                store._each.setdefault(seconds, {})[name] = None
        return store

    @staticmethod
    def taken(world: World, store: Memory) -> World:
        """Return the world once the store holds something else."""
        windows = [
            (name, window.limit.seconds, tuple(window.buckets))
            for name, window in store._windows.items()
            if name.startswith("budget:")
        ]
        return world._replace(
            entries=tuple(sorted(store._ledger.items(), key=lambda one: one[0])), windows=tuple(sorted(windows))
        )

    def booked(self, world: World) -> Iterator[Kept]:
        """What must be counted now, by what each key holds, and what was spent."""
        for key, entry in world.entries:
            if entry.reserved is not None:
                at, amount = entry.reserved.at, entry.reserved.amount
                for name, seconds in entry.reserved.windows:
                    if counts(at, seconds, world.now):
                        yield Kept(at, amount, name, seconds, key)
        for one in world.money:
            for name, seconds in one.windows:
                if counts(one.at, seconds, world.now):
                    yield Kept(one.at, one.amount, name, seconds, one.owner)

    # ------------------------------------------------------------ a call

    @cached_property
    def phases(self) -> dict[str, Callable[[World, int], Iterator[tuple[Any, ...]]]]:
        """What a call is about: it comes, is admitted, does its steps, has its result, owes it, and is over."""
        return {
            "away": self._coming,
            "calling": self._calling,
            "waiting": self._waiting,
            "ended": self._ending,
            "owing": lambda world, who: iter([self._settled(world, who, "pays what it owes")]),
            "over": lambda world, who: iter(()),
        }

    def _run(self, one: Try) -> Any:
        raise AssertionError("what a call does is in _calling")

    def _claiming(self, world: World, who: int, form: Form) -> Iterator[tuple[Any, ...]]:
        asks, owner, grant = form.asks, OWNERS[who], self.grant(form)
        says, place, store = f"asks for {asks}", grant.entitlement.connection.place, self.store(world)
        foreseen = self._peeked(world, grant)
        try:
            admission = store.admit(grant, place)
        except BudgetSpent as refusal:
            wrongs = [*self._wrongly_refused(world, grant, refusal), *[FORESEEN] * (foreseen is not BudgetSpent)]
            yield f"{says}: has no room", world.at(who, Try("over")), *wrongs
            return
        except Refusal as refusal:
            yield f"{says}: is refused: {type(refusal).__name__}", world.at(who, Try("over"))
            return
        wrongs = [FORESEEN] * (foreseen is not Admission)
        if admission.replay is not None:
            yield f"{says}: gets the answer again", world.at(who, Try("over")), *wrongs
            return
        entry, key = admission.entry, grant.ledger_key
        if entry is not None and key is not None:
            entry = replace(entry, owner=owner)
            store._keep(key, entry)
        after = self.taken(world, store)
        if admission.reserved is not None:
            reserved = admission.reserved
            money = Money(reserved.at, reserved.amount, reserved.windows, owner)
            after = after._replace(money=(*after.money, money))
        mine = Admission((), owner, admission.taken, entry, reserved=admission.reserved)
        wrongs += self._wrong_admission(world, after, grant)
        yield f"{says}: is admitted", after.at(who, Try("calling", form, mine)), *wrongs

    def _peeked(self, world: World, grant: Grant) -> type:
        store = self.store(world)
        try:
            store.peek(grant, grant.entitlement.connection.place)
        except Refusal as refusal:
            return type(refusal)
        return Admission

    def _wrongly_refused(self, world: World, grant: Grant, refusal: BudgetSpent) -> Iterator[str]:
        """What is wrong with a refusal: it must be needed, and say when it no longer is."""
        entry = dict(world.entries).get(grant.ledger_key or "")
        if entry is not None and entry.approval is not None and not entry.mute:
            yield ASKED
        if self._fits(world, grant):
            yield REFUSED
        wait = refusal.retry_after
        if wait is None:
            return
        for seconds, wrong in ((wait, LATER), (wait - 1, SOONER)):
            later = self._peeked(world._replace(now=world.now + seconds), grant)
            if (later is BudgetSpent) == (seconds == wait):
                yield wrong

    def _fits(self, world: World, grant: Grant, amount: int = 0) -> bool:
        """Whether there is room for a call in each of its budgets, by our own bookkeeping."""
        counted, own = Counter[str](), Counter[str]()
        held = next((e.reserved for key, e in world.entries if key == grant.ledger_key), None)
        for one in self.booked(world):
            counted[one.window] += one.amount
            if one.key == grant.ledger_key:
                own[one.window] += one.amount
        amount = max(amount, grant.reserve, held.amount if held is not None else 0)
        enough = held is not None and not held.anew
        return all(
            (enough and own[name] >= amount) or counted[name] - own[name] + amount <= budget.limit.calls
            for name, budget in quota.budgets_of(grant).items()
        )

    def _wrong_admission(self, world: World, after: World, grant: Grant) -> Iterator[str]:
        entry = dict(world.entries).get(grant.ledger_key or "")
        asks_only = entry is not None and entry.approval is not None and entry.state is not State.FREE
        if not asks_only and not self._fits(world, grant):
            yield BOOKED
        for name in quota.budgets_of(grant):
            holds = [one.amount for one in self.booked(after) if one.key == grant.ledger_key and one.window == name]
            if len(holds) > 1:
                yield TWICE

    def _calling(self, world: World, who: int) -> Iterator[tuple[Any, ...]]:
        one, owner = world.tries[who], OWNERS[who]
        assert one.admission is not None
        entry = one.admission.entry
        generation = entry.generation if entry is not None else 0
        request = Request(owner, one.form.asks, generation, one.admission.taken + LEASE)
        if one.answers:
            yield "sends", self._sent(world, who, request)
            if self.has(world, "no connection"):
                yield "gets no connection", self._over(world.unlucky(), who, _stopped(request))
            return
        if entry is not None and entry.approval is not None:
            yield from self._asking(world, who, request, entry.approval)
            return
        if self.has(world, "unsent"):
            yield "cannot record its intent", *self._released(world.unlucky(), who)
            if entry is not None and entry.id is None:
                busy = Reply(Outcome.RELEASED, generation=generation)
                yield "meets: 429", self._over(world.unlucky(), who, _end(busy))
        if self.scene.upstream == "stripe":
            yield from self._looking(world, who, request)
        else:
            yield "sends", self._sent(world, who, request)

    def _asking(self, world: World, who: int, request: Request, name: str) -> Iterator[tuple[Any, ...]]:
        asked = world.approvals[int(name.removeprefix("areq_"))]
        if asked.draft and asked.state == SUCCEEDED:
            yield from self._advancing(world, who, request)
        else:
            yield f"asks after the approval: {asked.state}", self._decided(world, who, request, asked, name)

    def _looking(self, world: World, who: int, request: Request) -> Iterator[tuple[Any, ...]]:
        """See what became of the draft, and go on with it or with another."""
        seen = world.invoice(request)
        if seen is not None and seen.at is not None:
            yield "looks: open", self._over(world, who, _went_through(request))
            return
        if seen is not None:
            request = request._replace(generation=request.generation + 1)
        yield from self._advancing(world, who, request)
        if self.has(world, "a person"):
            asked = Approval(request._replace(awaited=False), draft=True)
            yield "its draft needs a person", self._waits(world, who, request, asked)

    def _advancing(self, world: World, who: int, request: Request) -> Iterator[tuple[Any, ...]]:
        """Book what the draft comes to, before it is finalized."""
        one, order = world.tries[who], ORDERS[request.asks]
        assert one.admission is not None
        grant, store = self.grant(one.form), self.store(world)
        progress = Progress(
            Stage.FINALIZE,
            request.generation,
            id="in_1",
            reached=Stage.FINALIZE,
            seen=InvoiceSeen("draft", total=order.total),
        )
        try:
            admission = store.advance(grant, one.admission, progress)
        except BudgetSpent:
            wrongs = [REFUSED] * self._fits(world, grant, order.total)
            yield "has no room for the total", self._deleted(world, who, request), *wrongs
            return
        if admission is None:
            yield "cannot go on", world.at(who, Try("over"))
            return
        after = self.taken(world, store)
        wrongs = [] if self._fits(world, grant, order.total) else [BOOKED]
        on = one._replace(admission=admission, answers=("goes on",))
        yield "goes on", after.at(who, on), *wrongs
        if self.has(world, "store"):
            yield "writes its total, and does not hear so", self._over(after.unlucky(), who, _stopped(request)), *wrongs

    def _sent(self, world: World, who: int, request: Request) -> World:
        return in_order(world, (*world.wire, request)).at(who, world.tries[who]._replace(phase="waiting"))

    def _over(self, world: World, who: int, end: End) -> World:
        one = world.tries[who]
        return world.at(who, one._replace(phase="ended", answers=(), end=end))

    def _deleted(self, world: World, who: int, request: Request) -> World:
        """Delete the draft, unless it was finalized meanwhile."""
        seen = world.invoice(request)
        if seen is not None and seen.at is not None:
            return self._over(world, who, _went_through(request))
        gone = Invoice(request.asks, request.owner, request.generation, None)
        after = world if seen is not None else world._replace(invoices=tuple(sorted((*world.invoices, gone), key=repr)))
        freed = Reply(Outcome.FREED, generation=request.generation + 1, fresh=True)
        return self._over(after, who, _end(freed))

    def _waits(self, world: World, who: int, request: Request, asked: Approval) -> World:
        name = f"areq_{len(world.approvals)}"
        unlucky = world.unlucky()._replace(approvals=(*world.approvals, asked))
        return self._decided(unlucky, who, request, asked, name)

    def _decided(self, world: World, who: int, request: Request, asked: Approval, name: str) -> World:
        if asked.state == SUCCEEDED:
            return self._over(world, who, _went_through(request))
        if asked.state == REJECTED and not asked.draft:
            return self._deleted(world, who, request)
        if asked.state == REJECTED:
            return self._over(world, who, _end(Reply(Outcome.REJECTED, refusal=ApprovalRejected())))
        waits = Reply(Outcome.UNKNOWN, generation=request.generation, approval=name)
        waits = waits if asked.draft else replace(waits, id="in_1", step=Stage.FINALIZE.value)
        return self._over(world, who, _end(waits))

    def _waiting(self, world: World, who: int) -> Iterator[tuple[Any, ...]]:
        request = next(one for one in world.wire if one.owner == OWNERS[who])
        if self.has(world, "no answer"):
            deaf = world.unlucky()._replace(wire=())
            deaf = in_order(deaf, (r._replace(awaited=False) if r == request else r for r in world.wire))
            lost = _stopped(request)
            reply = replace(lost.reply, harmless=False, mute=self.scene.upstream != "stripe", doubt=True)
            yield "gets no answer", self._over(deaf, who, _end(reply))

    def _released(self, world: World, who: int) -> tuple[Any, ...]:
        one, store = world.tries[who], self.store(world)
        assert one.admission is not None
        store.release(self.grant(one.form), one.admission)
        return self._without(self.taken(world, store), OWNERS[who]).at(who, Try("over")), *self._kept(world, who, store)

    @staticmethod
    def _without(world: World, owner: str) -> World:
        return world._replace(money=tuple(one for one in world.money if one.owner != owner))

    def _ending(self, world: World, who: int) -> Iterator[tuple[Any, ...]]:
        one = world.tries[who]
        assert one.end is not None
        outcome = one.end.reply.outcome.value
        yield self._settled(world, who, f"writes {outcome}")
        if self.has(world, "settlement") and one.form.asks != "o":
            owing = one._replace(phase="owing")
            yield f"cannot write {outcome}", world.unlucky().at(who, owing)
            what, after, *wrongs = self._settled(world.unlucky(), who, f"writes {outcome}, and does not hear so")
            yield what, after.at(who, owing), *wrongs

    def _settled(self, world: World, who: int, what: str) -> tuple[Any, ...]:
        one, owner = world.tries[who], OWNERS[who]
        assert one.end is not None
        assert one.admission is not None
        grant, store, reply = self.grant(one.form), self.store(world), one.end.reply
        held = dict(world.entries).get(grant.ledger_key or "")
        ours = held is not None and (held.state, held.owner) == (State.SENT, owner)
        done = store.settle(grant, one.admission, reply, Answer(200, b"{}"))
        after, wrongs = self.taken(world, store).at(who, Try("over")), list[str]()
        if not grant.ledger_key or ours:
            if grant.ledger_key is None and reply.outcome is not Outcome.UNKNOWN:
                after = self._without(after, owner)
            if reply.spent is not None:
                names = tuple((name, one.limit.seconds) for name, one in quota.budgets_of(grant).items())
                after = after._replace(money=(*after.money, Money(world.now, reply.spent, names)))
                wrongs = [SILENT] * ((done is Settled.OVER) != self._over_by(world, after, who))
        return what, after, *self._kept(world, who, store), *wrongs

    def _kept(self, world: World, who: int, store: Memory) -> Iterator[str]:
        """A call that is settled holds nothing, and one whose outcome nobody knows what it held."""
        one = world.tries[who]
        key = self.grant(one.form).ledger_key
        before, entry = dict(world.entries).get(key or ""), store._ledger.get(key or "")
        if before is None or entry is None or before == entry or one.end is None:
            return
        if (entry.reserved is None) != (entry.state is not State.UNKNOWN):
            yield KEPT

    def _over_by(self, world: World, after: World, who: int) -> bool:
        """Whether a budget is exceeded by what a call has spent, and did not hold."""
        one = world.tries[who]
        assert one.end is not None
        grant, spends = self.grant(one.form), one.end.reply.spent or 0
        own, counted = Counter[str](), Counter[str]()
        for booked in self.booked(world):
            own[booked.window] += booked.amount * (booked.key == (grant.ledger_key or OWNERS[who]))
        for booked in self.booked(after):
            counted[booked.window] += booked.amount
        budgets = quota.budgets_of(grant).items()
        return any(counted[name] > budget.limit.calls and own[name] < spends for name, budget in budgets)

    # ------------------------------------------------------------ everybody else

    def _arrival(self, world: World, request: Request) -> Iterator[tuple[str, World]]:
        wire = list(world.wire)
        wire.remove(request)
        world = world._replace(wire=tuple(wire))
        who, seen = OWNERS.index(request.owner), world.invoice(request)
        if seen is not None and seen.at is None:
            yield self._heard(world, request, "its draft is gone", self._deleted)
            return
        made = world if seen is not None else self._made(world, request)
        yield self._heard(made, request, "is carried out", lambda w, n, r: self._over(w, n, _went_through(r)))
        if self.has(world, "refused") and seen is None:
            yield self._heard(world.unlucky(), request, "is refused", self._refused)
        if self.has(world, "a person") and seen is None and request.awaited:
            yield "needs a person", self._waits(world, who, request, Approval(request._replace(awaited=False)))

    def _refused(self, world: World, who: int, request: Request) -> World:
        if self.scene.upstream == "stripe":
            return self._deleted(world, who, request)
        return self._over(world, who, _end(Reply(Outcome.FREED)))

    @staticmethod
    def _made(world: World, request: Request, *, late: bool = False) -> World:
        made = Invoice(request.asks, request.owner, request.generation, world.now, late)
        return world._replace(invoices=tuple(sorted((*world.invoices, made), key=repr)))

    def _heard(
        self, world: World, request: Request, what: str, then: Callable[[World, int, Request], World]
    ) -> tuple[str, World]:
        if not request.awaited:
            return f"its request, not awaited, {what}", world
        return f"its request {what}", then(world, OWNERS.index(request.owner), request)

    def _people(self, world: World) -> Iterator[Event]:
        for number, approval in enumerate(world.approvals):
            if approval.state == PENDING:
                for state in (SUCCEEDED, REJECTED):
                    after = ended(world, number, state)
                    if state == SUCCEEDED and not approval.draft:
                        after = self._made(after, approval.request, late=True)
                    yield Event("", f"a person decides: {state}", after)
        if "operator" in self.scene.menu and world.quiet:
            yield from self._operator(world)
        if "document" in self.scene.menu and world.edition + 1 < len(self.budgets) and world.quiet:
            yield Event("", "the document says something else", world._replace(edition=world.edition + 1))

    def _operator(self, world: World) -> Iterator[Event]:
        for key, held in world.entries:
            raised = any(
                one.at is not None and self.grant(Form(one.asks, world.footer)).ledger_key == key
                for one in world.invoices
            )
            verdict, entry = idempotency.resolve(held, None, now=world.now, said="Ann")
            if verdict is Verdict.RESOLVED and not raised:
                yield Event("", "an operator says: not created", self._redecided(world, key, held, entry))
            verdict, entry = idempotency.resolve(held, Answer(200, b"{}"), now=world.now, said="Ann")
            if verdict is Verdict.RESOLVED and raised:
                yield Event("", "an operator says: created", self._redecided(world, key, held, entry))
            verdict, entry = idempotency.reopen(held, now=world.now)
            if verdict is Verdict.REOPENED and self.has(world, "operator"):
                after = self._redecided(world.unlucky(), key, held, entry)
                yield Event("", "an operator takes that back", after)

    def _redecided(self, world: World, key: str, held: Entry, entry: Entry | None) -> World:
        assert entry is not None
        store = self.store(world)
        lies = quota.money_of({}, held.reserved or entry.reserved)
        money = {name: store._copy(name, limit) for name, limit in lies.items()}
        entry = replace(entry, reserved=quota.redecide(money, held.reserved, entry.reserved, world.now))
        store._windows.update(money)
        store._keep(key, entry)
        return self.taken(world, store)

    def _time(self, world: World) -> Iterator[Event]:
        later = world.now + self.scene.tick
        leases = [one.admission.taken + LEASE for one in world.tries if one.admission and one.phase in ACTIVE]
        running = any(entry.state is State.SENT and world.now < entry.lease_until for _, entry in world.entries)
        if running or world.wire:
            if all(later < lease for lease in leases):
                wire = tuple(r for r in world.wire if later < r.until)
                yield Event("", "time passes", world._replace(now=later, wire=wire))
        elif world.days and world.quiet:
            passed = world._replace(now=world.now + world.days[0], days=world.days[1:])
            yield Event("", f"{world.days[0]} s pass", passed)

    # ------------------------------------------------------------ what must hold

    def between(self, world: World, after: World, what: str) -> Iterator[str]:
        before = dict(world.entries)
        for key, entry in after.entries:
            if before.get(key) is not entry:
                yield from wrong_between(before.get(key), entry, what)

    def at_rest(self, world: World) -> Iterator[str]:
        expected: dict[tuple[str, int], int] = Counter()
        for one in self.booked(world):
            expected[one.window, int((one.at + LEASE) / (one.seconds / BUCKETS))] += one.amount
        counted = {(name, number): sum_ for name, _, buckets in world.windows for number, sum_ in buckets}
        if counted != {place: sum_ for place, sum_ in expected.items() if sum_}:
            yield COUNTED
        if len(self.budgets) == 1 and not any(one.late for one in world.invoices):
            yield from self._over_budget(world)
        if world.quiet:
            yield from self._rolled_on(world)

    def _over_budget(self, world: World) -> Iterator[str]:
        """Whether more was finalized in any time of a budget than it allows."""
        for budget in self.grant(Form("y", world.footer)).caller.budgets:
            for last in world.invoices:
                if last.at is None:
                    continue
                customers = {ORDERS[last.asks].customer} if budget.each else {"cus_1", "cus_2"}
                seconds = budget.limit.seconds
                sums = (
                    ORDERS[one.asks].total
                    for one in world.invoices
                    if one.at is not None
                    and last.at - seconds < one.at <= last.at
                    and ORDERS[one.asks].customer in customers
                )
                if sum(sums) > budget.limit.calls:
                    yield SPENT

    def _rolled_on(self, world: World) -> Iterator[str]:
        """Nothing is counted for ever, whoever was killed."""
        longest = max((seconds for _, seconds, _ in world.windows), default=HOUR)
        later = world._replace(now=world.now + longest * (1 + 1 / BUCKETS) + LEASE)
        for asks in self.scene.asks:
            grant = self.grant(Form(asks, world.footer))
            possible = all(grant.reserve <= one.limit.calls for one in grant.budgets)
            if possible and self._peeked(later, grant) is BudgetSpent:
                yield STAYS


def _end(reply: Reply) -> End:
    return End(reply, Answer(200, b"{}"), nothing=False)


def _went_through(request: Request) -> End:
    total = ORDERS[request.asks].total
    return _end(Reply(Outcome.SUCCEEDED, generation=request.generation, spent=total, spent_in="usd"))


def _stopped(request: Request) -> End:
    """A call that stops half way, and has sent nothing that is in doubt."""
    reply = Reply(Outcome.UNKNOWN, generation=request.generation, id="in_1", step=Stage.FINALIZE.value, harmless=True)
    return _end(reply)


# ---------------------------------------------------------------- the scenes

ROLLING: Final = (ROLLED - 2 * LEASE, LEASE, LEASE)
#: What is booked leaves the hour, and what a call that was killed has finalized since has not.
SHORT: Final = (HOUR - 25, 12)
#: Each with a number of worlds that it has at least, and what the document says.
SCENES: Final = {
    "kills": (900, scene("killed, no answer", asks="xyz"), (ONE,)),
    "rolling": (8_000, scene("killed, no answer", asks="xy", days=ROLLING), (ONE,)),
    "within a lease": (3_000, scene("killed, no answer", asks="xy", tries=2, tick=LEASE // 2, days=SHORT), (ONE,)),
    "refusals": (6_000, scene("refused, unsent, no connection, killed", asks="xXy"), (ONE,)),
    "tax": (10_000, scene("killed, no answer, store, refused", asks="ty", days=(ROLLED,)), (ONE,)),
    "several": (4_000, scene("killed, no answer", asks="xyz", days=(ROLLED,)), (SEVERAL,)),
    "no key": (
        2_000,
        scene("killed, no answer, refused, unsent", asks="oy", upstream="appgregator", days=(ROLLED,)),
        (ONE,),
    ),
    "settlement": (1_500, scene("settlement, no answer, refused", asks="xy"), (ONE,)),
    "a person": (3_000, scene("a person, killed, no answer", asks="xy", days=(ROLLED,)), (ONE,)),
    "operator": (3_000, scene("operator, no answer, killed", asks="xy", days=(ROLLED,)), (ONE,)),
    "operator, nothing deduplicates": (
        4_000,
        scene("operator, no answer, killed, refused", asks="xXy", upstream="appgregator"),
        (ONE,),
    ),
    "document": (5_000, scene("document, killed, no answer", asks="xy"), EDITIONS),
}
#: By what is in a scene's menu: events that it makes.
MISFORTUNES: Final = {
    "killed": ("is killed",),
    "no answer": ("gets no answer", "its request, not awaited, is carried out"),
    "no connection": ("gets no connection",),
    "refused": ("its request is refused", "writes freed"),
    "unsent": ("cannot record its intent", "meets: 429", "writes released"),
    "store": ("writes its total, and does not hear so", "has no room for the total"),
    "settlement": ("cannot write succeeded", "writes succeeded, and does not hear so", "pays what it owes"),
    "a person": (
        "needs a person",
        "its draft needs a person",
        "a person decides: succeeded",
        "a person decides: rejected",
        "asks after the approval: pending",
        "asks after the approval: succeeded",
        "asks after the approval: rejected",
    ),
    "operator": (
        "an operator says: created",
        "an operator says: not created",
        "an operator takes that back",
    ),
    "document": ("the document says something else",),
}
ALWAYS: Final = (
    "is admitted",
    "has no room",
    "gets the answer again",
    "is refused: KeyInUse",
)


@pytest.mark.parametrize("name", SCENES)
def test_no_order_of_events_spends_more_than_a_budget_or_loses_count(name: str) -> None:
    least, where, budgets = SCENES[name]
    search = Search(Play(where, budgets)).run()
    assert not search.wrongs, "\n\n".join(search.wrongs.values())
    assert len(search.came) >= least
    met = {event.partition(": ")[2] if event.startswith("asks for") else event for event in search.events}
    expected = {event for misfortune in where.menu for event in MISFORTUNES[misfortune]} | {*ALWAYS, "time passes"}
    expected |= {f"{seconds} s pass" for seconds in where.days}
    assert expected <= met, expected - met


# ---------------------------------------------------------------- mistakes that the search must find


def found(name: str, wrong: str) -> str | None:
    """Search a scene, from the nearest world on, for one wrong. Return the way there."""
    _, where, budgets = SCENES[name]
    return Search(Play(where, budgets), until=wrong).run().wrongs.get(wrong)


MOVE, SPEND, RISE, MOVES, GIVES_BACK, REOPEN = (
    quota.move,
    quota.spend,
    quota.rise,
    idempotency.moves,
    idempotency.gives_back,
    idempotency.reopen,
)
GIVE_BACK, REMAINING = Window.give_back, Window.remaining


def every_try_books(budgets: Any, windows: Any, held: Any, amount: int, now: float) -> Any:
    return MOVE(budgets, windows, None, amount, now)


def comes_back_for_nothing(budgets: Any, windows: Any, held: Any, amount: int, now: float) -> Any:
    return (held, []) if held is not None else MOVE(budgets, windows, held, amount, now)


def what_is_held_is_always_enough(budgets: Any, windows: Any, held: Any, amount: int, now: float) -> Any:
    reserved, full = MOVE(budgets, windows, held, amount, now)
    return reserved, full if held is None else []


def what_is_held_is_never_enough(budgets: Any, windows: Any, held: Any, amount: int, now: float) -> Any:
    return MOVE(budgets, windows, replace(held, anew=True) if held is not None else None, amount, now)


def first_budget_is_the_only_one(budgets: Any, windows: Any, held: Any, amount: int, now: float) -> Any:
    reserved, full = MOVE(budgets, windows, held, amount, now)
    first = budgets[next(iter(budgets))]
    return reserved, [(wait, short) for wait, short in full if isinstance(short, Short) and short.budget is first]


def spent_beside_what_is_held(budgets: Any, windows: Any, held: Any, amount: int, now: float) -> bool:
    return SPEND(budgets, windows, None, amount, now)


def nothing_is_said_of_too_much(budgets: Any, windows: Any, held: Any, amount: int, now: float) -> bool:
    SPEND(budgets, windows, held, amount, now)
    return False


def total_is_no_matter(budgets: Any, held: Any, comes_to: int | None, taken: float) -> int | None:
    return None


def only_more_is_booked(budgets: Any, held: Any, comes_to: int | None, taken: float) -> int | None:
    return RISE(budgets, held, comes_to, 0.0)


def every_call_moves(claim: Entry | None) -> bool:
    return True


def unknown_gives_back(reply: Reply) -> bool:
    return GIVES_BACK(reply) or reply.outcome is Outcome.UNKNOWN


def nothing_gives_back(reply: Reply) -> bool:
    return False


def anything_is_given_back(window: Window, taken: float, amount: int = 1) -> int:
    GIVE_BACK(window, taken, amount)
    if window._buckets:
        back = min(window._buckets[-1][1], amount)
        window._buckets[-1][1] -= back
        window._total -= back
    return amount


def bucket_leaves_too_soon(window: Window, now: float) -> int:
    return REMAINING(window, now + WIDTH)


def taken_back_is_as_before(held: Entry | None, *, now: float) -> tuple[Verdict, Entry | None]:
    verdict, entry = REOPEN(held, now=now)
    if entry is None or entry.reserved is None:
        return verdict, entry
    return verdict, replace(entry, reserved=replace(entry.reserved, anew=False))


@pytest.mark.parametrize(
    ("name", "place", "function", "mistake", "wrong"),
    [
        ("kills", memory, "move", every_try_books, COUNTED),
        ("rolling", memory, "move", comes_back_for_nothing, SPENT),
        ("rolling", memory, "move", what_is_held_is_always_enough, BOOKED),
        ("document", memory, "move", what_is_held_is_never_enough, REFUSED),
        ("several", memory, "move", first_budget_is_the_only_one, BOOKED),
        ("kills", memory, "spend", spent_beside_what_is_held, COUNTED),
        ("a person", memory, "spend", nothing_is_said_of_too_much, SILENT),
        ("tax", memory, "rise", total_is_no_matter, BOOKED),
        ("a person", memory, "rise", only_more_is_booked, BOOKED),
        ("a person", idempotency, "moves", every_call_moves, ASKED),
        ("no key", idempotency, "gives_back", unknown_gives_back, SPENT),
        ("refusals", idempotency, "gives_back", nothing_gives_back, KEPT),
        ("rolling", Window, "give_back", anything_is_given_back, COUNTED),
        ("within a lease", quota, "LEASE", 0, SPENT),
        ("rolling", Window, "remaining", bucket_leaves_too_soon, BOOKED),
        ("operator", idempotency, "reopen", taken_back_is_as_before, SPENT),
    ],
)
def test_mistake_about_money_is_found(
    monkeypatch: pytest.MonkeyPatch, *, name: str, place: Any, function: str, mistake: Any, wrong: str
) -> None:
    monkeypatch.setattr(place, function, mistake)
    assert found(name, wrong)
