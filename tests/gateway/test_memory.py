"""What the memory store has of its own: a ledger with an end."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from gateway.stores.memory import ENTRY_BYTES, SHARE, Memory
from policies.idempotency import RETENTION
from policies.model import Answer, Outcome
from policies.outcomes import Reply
from policies.refusals import KeyInUse, OutcomeStillUnknown, StoreUnavailable
from tests.conftest import Clock, policy
from tests.gateway.conftest import admit, granted

if TYPE_CHECKING:
    from policies.model import Grant

SUCCEEDED = Reply(Outcome.SUCCEEDED, answer={})
ANSWER = Answer(200, b"{}")


def keyed(key: str) -> Grant:
    return granted(idempotency_key=key)


def of_another(key: str, caller: str = "another") -> Grant:
    grant = keyed(key)
    return replace(grant, caller=replace(grant.caller, id=caller, first=caller), ledger_key=f"{caller}{key}".ljust(64))


def kept_long(customer: str) -> Grant:
    text = policy("http://127.0.0.1:9", idempotency="{from: customer, for: 240h}")
    return granted(text, f"customer={customer}")


def room_for(keys: int) -> int:
    """Return the room of a store in which one caller may have so many keys with short answers."""
    return SHARE * (keys * ENTRY_BYTES - 1)


def settled(store: Memory, grant: Grant, answer: Answer = ANSWER) -> None:
    assert store.settle(grant, admit(store, grant), SUCCEEDED, answer)


def refused(store: Memory, grant: Grant) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as caught:
        admit(store, grant)
    assert caught.value.detail.startswith("So many idempotency keys were used lately")
    return caught.value


def test_full_share_refuses_new_keys_and_goes_on_with_all_else() -> None:
    store = Memory(Clock(), room=room_for(2))
    first, second = keyed("order-1"), keyed("order-2")
    settled(store, first)
    admission = admit(store, second)
    refused(store, keyed("order-3"))
    assert admit(store, first).replay == ANSWER
    with pytest.raises(KeyInUse):
        admit(store, second)
    admit(store, granted())  # without a key
    store.release(second, admission)
    admit(store, keyed("order-3"))


def test_caller_that_fills_its_share_is_refused_alone_and_told_when_there_is_room() -> None:
    clock = Clock()
    store = Memory(clock, room=room_for(2))
    settled(store, keyed("order-1"))
    clock.tick(RETENTION - 100)
    settled(store, keyed("order-2"))
    assert refused(store, keyed("order-3")).retry_after == 100
    admit(store, of_another("order-3"))
    clock.tick(100)
    admit(store, keyed("order-3"))


def test_no_caller_fills_more_than_all_have_together() -> None:
    store = Memory(Clock(), room=room_for(2))
    for caller in range(SHARE * 2):
        admit(store, of_another("order-1", f"caller-{caller}"))
    refused(store, of_another("order-1", "one more"))


def test_long_answers_fill_a_share_sooner() -> None:
    store = Memory(Clock(), room=room_for(100))
    settled(store, keyed("order-1"), Answer(200, b'{"id":"%b"}' % (b"x" * 30_000)))
    for number in range(3):
        settled(store, keyed(f"order-2{number}"), Answer(200, b'{"id":"%b"}' % (b"x" * 30_000)))
    refused(store, keyed("order-3"))


def test_refusal_of_a_full_ledger_uses_up_nothing() -> None:
    store = Memory(Clock(), room=0)
    refused(store, keyed("order-1"))
    assert admit(store, granted()).standings[0].remaining == 99_999


def test_full_ledger_takes_new_keys_once_settled_ones_have_expired_and_never_forgets_an_open_one() -> None:
    clock = Clock()
    store = Memory(clock, room=room_for(2))
    settled(store, keyed("order-1"))
    admit(store, keyed("order-2"))
    clock.tick(100 * RETENTION)
    settled(store, keyed("order-3"))
    with pytest.raises(OutcomeStillUnknown):
        admit(store, keyed("order-2"))
    refused(store, keyed("order-4"))


def test_key_that_is_kept_for_longer_does_not_keep_expired_ones_in_the_way() -> None:
    clock = Clock()
    store = Memory(clock, room=room_for(2))
    settled(store, kept_long("cus_1"))
    settled(store, keyed("order-1"))
    clock.tick(RETENTION)
    admit(store, keyed("order-2"))
    refused(store, keyed("order-3"))


def test_room_is_counted_as_the_interpreter_takes_it() -> None:
    """The count is an estimate. It must not be far below what is taken, by which an instance's memory is chosen."""
    body = b'{"id":"%b"}' % (b"x" * 500)
    tracemalloc.start()
    try:
        store, before = Memory(Clock()), tracemalloc.get_traced_memory()[0]
        grant = keyed("order-1")
        for number in range(2_000):
            one = replace(grant, ledger_key=f"{number:064x}")
            settled(store, one, Answer(200, bytes(bytearray(body))))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.5 * taken < store._filled.total() < 2 * taken
