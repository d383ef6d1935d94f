"""What the memory store has of its own: a ledger with an end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.stores.memory import Memory
from policies.idempotency import RETENTION
from policies.model import Answer, Outcome
from policies.outcomes import Reply
from policies.refusals import KeyInUse, StoreUnavailable
from tests.conftest import policy
from tests.gateway.conftest import Clock, granted

if TYPE_CHECKING:
    from policies.model import Grant

SUCCEEDED = Reply(Outcome.SUCCEEDED, answer={})
ANSWER = Answer(200, b"{}")


def keyed(key: str) -> Grant:
    return granted(idempotency_key=key)


def kept_long(customer: str) -> Grant:
    text = policy("http://127.0.0.1:9", idempotency="{from: customer, for: 240h}")
    return granted(text, f"customer={customer}")


def test_full_ledger_refuses_new_keys_and_goes_on_with_all_else() -> None:
    store = Memory(Clock(), max_entries=2)
    first, second = keyed("order-1"), keyed("order-2")
    store.settle(first, store.admit(first), SUCCEEDED, ANSWER)
    admission = store.admit(second)
    with pytest.raises(StoreUnavailable):
        store.admit(keyed("order-3"))
    assert store.admit(first).replay == ANSWER
    with pytest.raises(KeyInUse):
        store.admit(second)
    store.admit(granted())  # without a key
    store.release(second, admission)
    store.admit(keyed("order-3"))


def test_refusal_of_a_full_ledger_uses_up_nothing() -> None:
    store = Memory(Clock(), max_entries=0)
    with pytest.raises(StoreUnavailable):
        store.admit(keyed("order-1"))
    assert store.admit(granted()).standings[0].remaining == 99_999


def test_full_ledger_takes_new_keys_once_old_ones_have_expired() -> None:
    clock = Clock()
    store = Memory(clock, max_entries=2)
    store.admit(keyed("order-1"))
    store.admit(keyed("order-2"))
    clock.tick(RETENTION)
    store.admit(keyed("order-3"))
    assert len(store._ledger) == 1


def test_key_that_is_kept_for_longer_does_not_keep_expired_ones_in_the_way() -> None:
    clock = Clock()
    store = Memory(clock, max_entries=2)
    store.admit(kept_long("cus_1"))
    store.admit(keyed("order-1"))
    clock.tick(RETENTION)
    store.admit(keyed("order-2"))
    with pytest.raises(StoreUnavailable):
        store.admit(keyed("order-3"))
