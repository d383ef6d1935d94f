"""Money in a store, by whatever happens in whatever order: what is left is what nobody holds and nobody has spent.

The model in ``tests/policies/test_money_model.py`` tries every order of few events, on the store in memory. Here lots
are drawn, of more events and amounts, and every store is held to the same bookkeeping: what each key's entry says that
it holds, what each call without a key has booked, and what was spent.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from gateway.stores import Settled
from gateway.stores.memory import Memory
from policies.idempotency import LEASE, Verdict
from policies.issuing import Progress, Stage
from policies.model import Outcome, Reserved, State
from policies.outcomes import InvoiceSeen, Reply
from policies.quota import BUCKETS, budgets_of
from policies.refusals import ApprovalRejected, BudgetSpent, Refusal
from tests.gateway.conftest import admit, budget, budgeted
from tests.gateway.test_stores import (
    ANSWER,
    BUSY,
    FREED,
    REJECTED,
    STORES,
    SUCCEEDED,
    UNKNOWN,
    UNREACHED,
    WAITS,
    spent,
    stripes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.stores import Store
    from policies.model import Admission, Budget, Grant
    from tests.conftest import Clock

HOUR: Final = 3_600
DAY: Final = 86_400
#: What the document may say, one after the other.
DOCUMENTS: Final[tuple[tuple[Budget, ...], ...]] = (
    (budget(100, HOUR),),
    (budget(40, HOUR),),
    (budget(100, HOUR), budget(150, DAY)),
    (budget(60, HOUR, each="customer"), budget(100, HOUR)),
    (budget(500, DAY),),
    (),
)
#: The windows of all of these, wide enough to tell whatever is counted.
WIDE: Final = 1_000_000
EVERY: Final = (budget(WIDE, HOUR), budget(WIDE, DAY), budget(WIDE, HOUR, each="customer"))
CUSTOMERS: Final = ("cus_1", "cus_2")
#: Each key's customer. None stands for a call without a key.
KEYS: Final = {"a": "cus_1", "b": "cus_1", "c": "cus_2", None: "cus_2"}
AMOUNTS: Final = st.sampled_from([0, 1, 20, 40, 41, 60, 100])
#: How a call ends that does not hear whether its total was booked.
STOPS: Final = replace(UNKNOWN, id="in_1", step="finalize", harmless=True)
#: How a call ends that has spent nothing that anybody knows of.
ENDS: Final = (
    UNKNOWN,
    WAITS,
    FREED,
    BUSY,
    UNREACHED,
    REJECTED,
    SUCCEEDED,
    replace(REJECTED, refusal=ApprovalRejected()),
    STOPS,
)
#: Exact as floats, so that an example repeats.
TIMES: Final = (0.125, 10, 28.125, LEASE, HOUR / 2, HOUR - LEASE, HOUR * 129 / 128, HOUR * 129 / 128 + LEASE)


asked = lru_cache(stripes)


class Spent(NamedTuple):
    """What was spent, or a call without a key has booked."""

    at: float
    amount: int
    windows: tuple[tuple[str, int], ...]


class Call(NamedTuple):
    """A call that is under way."""

    key: str | None
    grant: Grant
    admission: Admission


class Budgets(RuleBasedStateMachine):
    """Callers, an upstream, an operator and time, on one store. ``store`` and ``clock`` are given by the test."""

    store: Store
    clock: Clock
    examples = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).examples += 1
        # A store's time never goes back, and each example begins at the same place in every bucket.
        self.clock.now = (self.clock() // DAY + 1) * DAY
        self.caller = f"app{self.examples}"
        self.spent: list[Spent] = []
        self.loose: dict[str, Spent] = {}
        """By owner: what calls without a key have booked."""
        self.calls: list[Call] = []
        self.budgets = DOCUMENTS[0]

    # ------------------------------------------------------------ what happens

    def grant(self, key: str | None, amount: int, budgets: tuple[Budget, ...]) -> Grant:
        grant = asked(key)
        grant = replace(
            grant,
            caller=replace(grant.caller, id=self.caller, first=self.caller),
            parameters={"customer": KEYS[key]},
            ledger_key=None if key is None else f"{self.examples:060x}{ord(key):04x}",
        )
        return budgeted(grant, *budgets, reserve=amount)

    @rule(document=st.sampled_from(DOCUMENTS))
    def the_document_says(self, document: tuple[Budget, ...]) -> None:
        self.budgets = document

    @rule(key=st.sampled_from([*KEYS]), amount=AMOUNTS)
    def comes(self, key: str | None, amount: int) -> None:
        grant = self.grant(key, amount, self.budgets)
        held, asks = self.held(grant), self.only_asks(grant)
        fits = self.fits(grant, max(amount, held.amount if held is not None else 0), held)
        try:
            admission = admit(self.store, grant)
        except BudgetSpent:
            assert not fits
            assert not asks
            return
        except Refusal:
            return
        if admission.replay is not None:
            return
        assert fits or asks
        if admission.reserved is not None:
            self.loose[admission.owner] = Spent(*self.lies(admission.reserved))
        self.calls.append(Call(key, grant, admission))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), total=AMOUNTS, again=st.booleans(), heard=st.booleans())
    def goes_on(self, data: st.DataObject, total: int, *, again: bool, heard: bool) -> None:
        """Book a total. The store may do so and not be heard, and its client may then try once more."""
        call = self.drawn(data)
        assume(call.key is not None)
        progress = Progress(Stage.FINALIZE, id="in_1", reached=Stage.FINALIZE, seen=InvoiceSeen("draft", total=total))
        held, mine = self.held(call.grant), self.mine(call)
        most = max(total, held.amount if held is not None else 0)
        fits = self.fits(call.grant, most, held)
        for _ in range(1 + again):
            try:
                admission = self.store.advance(call.grant, call.admission, progress)
            except BudgetSpent:
                assert not fits
                return
        assert (admission is not None) == mine
        if admission is not None:
            now_held = self.held(call.grant)
            assert (now_held.amount if now_held is not None else 0) >= (total if budgets_of(call.grant) else 0)
            if heard:
                self.calls[self.calls.index(call)] = call._replace(admission=admission)
            else:
                self.ends(call, STOPS, again=again)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), amount=AMOUNTS, again=st.booleans())
    def succeeds(self, data: st.DataObject, amount: int, *, again: bool) -> None:
        self.ends(self.drawn(data), spent(amount), again=again)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), reply=st.sampled_from(ENDS), again=st.booleans())
    def ends_otherwise(self, data: st.DataObject, reply: Reply, *, again: bool) -> None:
        self.ends(self.drawn(data), reply, again=again)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def is_not_sent(self, data: st.DataObject) -> None:
        call = self.drawn(data)
        self.store.release(call.grant, call.admission)
        self.loose.pop(call.admission.owner, None)
        self.calls.remove(call)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def is_killed(self, data: st.DataObject) -> None:
        self.calls.remove(self.drawn(data))

    @precondition(lambda self: not isinstance(self.store, Memory))
    @rule(key=st.sampled_from(["a", "b", "c"]), created=st.booleans())
    def an_operator_decides(self, key: str, *, created: bool) -> None:
        store: Any = self.store
        ledger_key, now = self.grant(key, 0, ()).ledger_key, self.clock()
        seen = store.state_of(ledger_key)
        verdict = store.resolve(ledger_key, ANSWER if created else None, "Ann")
        assert verdict is not Verdict.RESOLVED or not self.running(seen.entry, now)

    @precondition(lambda self: not isinstance(self.store, Memory))
    @rule(key=st.sampled_from(["a", "b", "c"]))
    def an_operator_takes_it_back(self, key: str) -> None:
        store: Any = self.store
        store.reopen(self.grant(key, 0, ()).ledger_key)

    @rule(seconds=st.sampled_from(TIMES))
    def time_passes(self, seconds: float) -> None:
        self.clock.tick(seconds)
        # Whoever is not over by the end of its lease is gone.
        self.calls = [call for call in self.calls if self.clock() < call.admission.taken + LEASE]

    # ------------------------------------------------------------ our own bookkeeping

    def drawn(self, data: st.DataObject) -> Call:
        return data.draw(st.sampled_from(self.calls))

    @staticmethod
    def running(entry: Any, now: float) -> bool:
        return entry.state is State.SENT and now < entry.lease_until

    @staticmethod
    def lies(reserved: Reserved) -> tuple[float, int, tuple[tuple[str, int], ...]]:
        return reserved.at, reserved.amount, reserved.windows

    def held(self, grant: Grant) -> Reserved | None:
        """What the ledger says that the key of a call holds."""
        if grant.ledger_key is None:
            return None
        seen = self.store.state_of(grant.ledger_key)
        return seen.entry.reserved if seen is not None else None

    def mine(self, call: Call) -> bool:
        assert call.grant.ledger_key is not None
        seen = self.store.state_of(call.grant.ledger_key)
        return seen is not None and (seen.entry.state, seen.entry.owner) == (State.SENT, call.admission.owner)

    def only_asks(self, grant: Grant) -> bool:
        seen = self.store.state_of(grant.ledger_key) if grant.ledger_key is not None else None
        entry = seen.entry if seen is not None else None
        return entry is not None and entry.approval is not None and not entry.mute and entry.state is not State.FREE

    def booked(self) -> Iterator[tuple[str, int, str | None]]:
        """What counts now: in which window, how much, and of which key."""
        every: list[tuple[Spent, str | None]] = [(one, None) for one in (*self.spent, *self.loose.values())]
        for letter in ("a", "b", "c"):
            reserved = self.held(self.grant(letter, 0, ()))
            if reserved is not None:
                every.append((Spent(*self.lies(reserved)), letter))
        for one, key in every:
            for name, seconds in one.windows:
                width = seconds / BUCKETS
                if ((one.at + LEASE) // width + 1) * width + seconds > self.clock():
                    yield name, one.amount, key

    def fits(self, grant: Grant, amount: int, held: Reserved | None) -> bool:
        counted, own = Counter[str](), Counter[str]()
        letter = None if grant.ledger_key is None else chr(int(grant.ledger_key[-4:], 16))
        for name, sum_, key in self.booked():
            counted[name] += sum_
            own[name] += sum_ * (key is not None and key == letter)
        enough = held is not None and not held.anew
        return all(
            not amount or (enough and own[name] >= amount) or counted[name] - own[name] + amount <= one.limit.calls
            for name, one in budgets_of(grant).items()
        )

    def ends(self, call: Call, reply: Reply, *, again: bool) -> None:
        key, grant, admission = call
        mine = key is None or self.mine(call)
        at = self.clock()
        done = self.store.settle(grant, admission, reply, ANSWER)
        if again and key is not None:  # the reply was lost
            self.store.settle(grant, admission, reply, ANSWER)
        self.calls.remove(call)
        if not mine:
            return
        assert done is not Settled.OWED
        known = reply.spent is not None or reply.outcome in {Outcome.FREED, Outcome.RELEASED}
        if key is None and (known or isinstance(reply.refusal, ApprovalRejected)):
            self.loose.pop(admission.owner, None)
        if reply.spent:
            names = tuple((name, one.limit.seconds) for name, one in budgets_of(grant).items())
            self.spent.append(Spent(at, reply.spent, names))

    @invariant()
    def what_is_left_is_what_nobody_holds_or_has_spent(self) -> None:
        expected = Counter[str]()
        for name, amount, _ in self.booked():
            expected[name] += amount
        for customer in CUSTOMERS:
            grant = self.grant(next(key for key, whose in KEYS.items() if whose == customer), 0, EVERY)
            told = [one for one in self.store.left(grant.caller, (), customer) if one.kind == "budget"]
            for name, one in zip(budgets_of(grant), told, strict=True):
                assert one.remaining == WIDE - expected[name], name


@pytest.mark.parametrize(
    ("name", "examples", "steps"),
    [
        ("memory", 50, 30),
        pytest.param("redis", 50, 30, marks=pytest.mark.stores),
        pytest.param("firestore", 4, 20, marks=pytest.mark.stores),
    ],
)
def test_what_is_left_is_what_nobody_holds_or_has_spent(
    request: pytest.FixtureRequest, clock: Clock, name: str, examples: int, steps: int
) -> None:
    fixture, make = STORES[name]
    store = make(clock, request.getfixturevalue(fixture) if fixture else None)
    machine = type("OfStore", (Budgets,), {"store": store, "clock": clock})
    drawn = settings(
        max_examples=examples,
        database=None,
        stateful_step_count=steps,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=drawn)
