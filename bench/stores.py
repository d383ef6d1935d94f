"""The time that a store adds to a call with an idempotency key: one admission and one settlement."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bench import stages
from gateway.stores.memory import Memory
from gateway.stores.redis import Redis
from policies import document
from policies.access import decide
from policies.model import Answer, Call, Outcome
from policies.outcomes import Reply
from sandbox.__main__ import POLICY
from sandbox.firestore import FirestoreEmulator
from sandbox.redis_server import RedisServer

if TYPE_CHECKING:
    from gateway.stores import Store
    from policies.model import Grant

CALLS = 3000
#: The emulator is slow, and its time is not that of Firestore.
FEWER = 10
REPLY, ANSWER = Reply(Outcome.SUCCEEDED, answer={}), Answer(200, b'{"id":"in_1","status":"draft"}')


def measure() -> dict[str, float]:
    """Return the median milliseconds of each store: Redis and Firestore's emulator on loopback, if installed."""
    with tempfile.TemporaryDirectory() as folder:
        medians = {"memory": _median(Memory(time.monotonic))}
        server = RedisServer(Path(folder))
        try:
            server.start()
        except FileNotFoundError as error:
            print(f"  left out: Redis. {error}")
            return medians | _firestore()
        try:
            medians["redis"] = _median(Redis(server.url))
        finally:
            server.stop()
    return medians | _firestore()


def _firestore() -> dict[str, float]:
    emulator = FirestoreEmulator()
    try:
        emulator.start()
    except (FileNotFoundError, TimeoutError) as error:
        print(f"  left out: Firestore. {error}")
        return {}
    os.environ["FIRESTORE_EMULATOR_HOST"] = emulator.address  # as Google's client reads it
    try:
        from gateway.stores.firestore import Firestore  # noqa: PLC0415 - heavy, and only needed where there is one

        return {"firestore": _median(Firestore("firestore://bench-project"), CALLS // FEWER)}
    finally:
        del os.environ["FIRESTORE_EMULATOR_HOST"]
        emulator.stop()


def _median(store: Store, calls: int | None = None) -> float:
    grant = _grant()
    took = []
    for number in range(calls or CALLS):
        asked = replace(grant, ledger_key=f"{number:064x}")
        began = time.perf_counter()
        store.settle(asked, store.admit(asked, asked.entitlement.connection.place), REPLY, ANSWER)
        took.append(time.perf_counter() - began)
    return round(1000 * statistics.median(took), 4)


def _grant() -> Grant:
    policies = document.read(stages.roomy(POLICY.read_text("utf-8")), "sandbox.yaml")
    (caller,) = policies.callers.values()
    call = Call("invoices.create", "ft-4", "stripe-1", {}, "form", stages.BODY, "key", validate_only=False)
    return decide(policies, caller, call)
