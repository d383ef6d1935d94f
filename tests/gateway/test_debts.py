"""What a process owes its store, and when it pays."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gateway.stores import Settled, debts
from gateway.stores.debts import MOST, Debt, Debts
from policies.idempotency import wanted
from policies.model import Admission, Answer, Outcome
from policies.outcomes import Reply
from policies.refusals import StoreUnavailable
from tests.gateway.conftest import granted

if TYPE_CHECKING:
    from policies.model import Grant

ANSWER = Answer(200, b'{"id":"in_1"}')
SUCCEEDED = Reply(Outcome.SUCCEEDED)


class Store:
    """Takes what it is given, unless it is away."""

    def __init__(self) -> None:
        self.away, self.took = False, list[str]()

    def end(self, debt: Debt) -> Settled:
        if self.away:
            raise StoreUnavailable
        self.took.append(f"{debt.admission.owner} {debt.reply.outcome}")
        return Settled.WRITTEN


def admitted(owner: str, key: str | None = "k") -> tuple[Grant, Admission]:
    grant = granted(idempotency_key=key)
    entry = wanted(grant, owner=owner, place="there", now=0.0) if key is not None else None
    return grant, Admission((), owner, 0.0, entry)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(debts, "PATIENCE", 0.0)
    return Store()


def test_what_the_store_did_not_take_is_paid_in_order_by_whoever_comes_next(store: Store) -> None:
    owing = Debts(store.end)
    store.away = True
    owing.release(*admitted("first"))
    assert not owing.settle(*admitted("second"), SUCCEEDED, ANSWER)
    with pytest.raises(StoreUnavailable):
        owing.pay()
    assert store.took == []
    store.away = False
    owing.pay()
    owing.pay()
    assert store.took == ["first released", "second succeeded"]


def test_call_without_a_key_owes_nothing(store: Store) -> None:
    owing = Debts(store.end)
    store.away = True
    owing.release(*admitted("first", key=None))
    store.away = False
    owing.pay()
    assert store.took == []


def test_debts_have_an_end(store: Store) -> None:
    owing = Debts(store.end)
    store.away = True
    grant, admission = admitted("first")
    for _ in range(MOST + 10):
        owing.settle(grant, admission, SUCCEEDED, ANSWER)
    assert len(owing._owed) == MOST


def test_call_tries_for_a_while_to_give_back_its_own_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    store, tries = Store(), list[float]()

    def pause(seconds: float) -> None:
        tries.append(seconds)
        store.away = len(tries) < 3

    monkeypatch.setattr("gateway.stores.debts.time.sleep", pause)
    store.away = True
    Debts(store.end, clock=lambda: sum(tries)).release(*admitted("first"))
    assert store.took == ["first released"]
    assert len(tries) == 3


ENDING = """
from tests.gateway.test_debts import ANSWER, SUCCEEDED, Store, admitted, debts
debts.PATIENCE = 0.0
store = Store()
owing = debts.Debts(lambda debt: store.end(debt) and print(store.took, flush=True) is None)
store.away = True
owing.release(*admitted("first"))
owing.settle(*admitted("second"), SUCCEEDED, ANSWER)
store.away = {away}
"""


@pytest.mark.parametrize("away", [False, True])
def test_process_that_ends_pays_what_it_can(away: bool) -> None:  # noqa: FBT001 - a parameter of the test
    ended = subprocess.run(
        [sys.executable, "-c", ENDING.format(away=away)], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stderr == ""
    assert ("second succeeded" in ended.stdout) is not away
