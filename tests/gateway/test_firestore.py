"""What the Firestore store promises beyond every store: shared, sharded, and closed when Firestore is not there."""

from __future__ import annotations

import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import msgspec
import pytest
from google.api_core.exceptions import Aborted, ServiceUnavailable
from google.cloud import firestore
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from gateway.forks import PerProcess
from gateway.stores.firestore import LEDGER, MOST_SHARDS, TOTAL_SECONDS, WINDOWS, Firestore, _OvertakenError
from gateway.stores.memory import Memory
from policies.idempotency import LEASE, RETENTION, wanted
from policies.model import Admission, Answer, Entry, Outcome, State
from policies.outcomes import Reply
from policies.quota import parse_limit
from policies.refusals import BudgetSpent, CeilingReached, KeyInUse, LimitReached, Refusal, StoreUnavailable
from sandbox.ports import free_port
from tests.conftest import Clock
from tests.gateway.conftest import admit, at_once, budget, budgeted, granted
from tests.gateway.test_redis import STEPS, Step, assert_alike
from tests.problems import as_replayed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policies.model import Grant
    from sandbox.appgregator import Appgregator
    from sandbox.firestore import FirestoreEmulator
    from tests.conftest import Function, Server

pytestmark = pytest.mark.stores

ANSWER = Answer(200, b'{"id":"in_1"}')
SUCCEEDED = Reply(Outcome.SUCCEEDED, answer={"id": "in_1"})
UNREACHED = Reply(Outcome.RELEASED, reached=False)
#: An emulator on a busy machine is no measure of Firestore's speed.
PATIENCE = 10


def limited(limits: str, *, key: str | None = None, ceiling: str | None = None) -> Grant:
    grant = granted(idempotency_key=key)
    connection = replace(grant.entitlement.connection, ceiling=parse_limit(ceiling) if ceiling else None)
    return replace(
        grant,
        caller=replace(grant.caller, limits=tuple(map(parse_limit, limits.split(", ")))),
        entitlement=replace(grant.entitlement, connection=connection),
    )


def attempt(store: Firestore | Memory, grant: Grant) -> Admission | Refusal:
    try:
        return admit(store, grant)
    except Refusal as refusal:
        return refusal


def documents(url: str, collection: str) -> dict[str, dict[str, Any]]:
    """What lies in Firestore, read with Google's own client."""
    client = firestore.Client(project=url.removeprefix("firestore://"))
    return {found.id: found.to_dict() or {} for found in client.collection(collection).stream()}


# ---------------------------------------------------------------- the same arithmetic as the policy's


@given(STEPS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_firestore_says_what_memory_says_whatever_happens(firestore_url: str, steps: list[Step]) -> None:
    clock = Clock()
    fresh = Firestore(f"{firestore_url}/db-{time.monotonic_ns()}", clock, PATIENCE)
    assert_alike((Memory(clock), fresh), clock, steps)


# ---------------------------------------------------------------- hot counters are sharded


def test_every_call_of_a_sharded_limit_can_be_used_and_not_one_more(firestore_url: str) -> None:
    store, grant = Firestore(firestore_url, Clock(), PATIENCE), limited("45/second")

    results = [
        result for results in at_once(8, lambda _: [attempt(store, grant) for _ in range(7)]) for result in results
    ]
    assert [type(result) for result in results if isinstance(result, Refusal)] == [LimitReached] * 11
    assert len(results) == 45 + 11
    assert len(documents(firestore_url, WINDOWS)) == MOST_SHARDS


def test_slow_limit_is_one_document_and_a_fast_one_as_many_as_calls_a_second(firestore_url: str) -> None:
    store = Firestore(firestore_url, Clock(), PATIENCE)
    for _ in range(60):
        attempt(store, limited("3/second, 30/minute"))
        attempt(
            store, replace(limited("100/day"), caller=replace(limited("100/day").caller, id="other", first="other"))
        )
    assert sorted(documents(firestore_url, WINDOWS)) == [
        "caller:app:1:0", "caller:app:1:1", "caller:app:1:2", "caller:app:60:0", "caller:other:86400:0",
    ]  # fmt: skip


def test_ceiling_of_which_few_documents_are_read_still_gives_all_its_calls_and_not_one_more(firestore_url: str) -> None:
    store, grant = Firestore(firestore_url, Clock(), PATIENCE), limited("1000/minute", ceiling="12/second")
    results = [attempt(store, grant) for _ in range(15)]
    assert [type(result) for result in results[12:]] == [CeilingReached] * 3
    assert not any(isinstance(result, Refusal) for result in results[:12])


def test_instances_that_meet_at_one_document_never_exceed_its_limit(firestore_url: str) -> None:
    """Each store stands for an instance; nothing but Firestore is between them."""
    stores = [Firestore(firestore_url, Clock(), PATIENCE) for _ in range(4)]
    results = at_once(12, lambda number: attempt(stores[number % 4], limited("7/minute")))
    assert sorted(type(result).__name__ for result in results) == ["Admission"] * 7 + ["LimitReached"] * 5


def test_instances_that_meet_at_one_key_send_it_once(firestore_url: str) -> None:
    stores = [Firestore(firestore_url, None, PATIENCE) for _ in range(4)]
    results = at_once(12, lambda number: attempt(stores[number % 4], limited("1000/minute", key="k")))
    assert sorted(type(result).__name__ for result in results) == ["Admission"] + ["KeyInUse"] * 11


def test_limit_is_never_exceeded_in_any_window_of_the_clock_of_firestore(
    firestore_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)  # whatever this machine believes
    stores = [Firestore(firestore_url, None, PATIENCE) for _ in range(2)]
    stop = threading.Event()

    admitted: list[float] = []

    def work(number: int) -> None:
        while not stop.is_set():
            result = attempt(stores[number % 2], limited("20/second"))
            assert isinstance(result, LimitReached) or not isinstance(result, Refusal)
            if isinstance(result, Refusal):
                stop.wait(0.005)
            else:
                admitted.append(result.taken)

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work, number) for number in range(8)]
        until = time.monotonic() + 60
        while len(admitted) <= 40 and time.monotonic() < until and not any(one.done() for one in running):
            time.sleep(0.01)
        stop.set()
        for one in running:
            one.result()
    admitted.sort()
    assert abs(admitted[-1] - real()) < 60
    assert len(admitted) > 40
    assert min(later - earlier for earlier, later in zip(admitted, admitted[20:], strict=False)) >= 1.0


def test_budget_lies_in_one_document(firestore_url: str) -> None:
    """So that it is judged to the last minor unit. A contended one is a 503, never over."""
    store, grant = Firestore(firestore_url, Clock(), PATIENCE), budgeted(limited("1000/minute"), budget(20), reserve=2)
    for _ in range(10):
        assert store.settle(grant, admit(store, grant), replace(SUCCEEDED, spent=2, spent_in="usd"), ANSWER)
    with pytest.raises(BudgetSpent):
        admit(store, grant)
    kept = [name for name in documents(firestore_url, WINDOWS) if name.startswith("budget:")]
    assert kept == ["budget:app:usd:86400:0"]


# ---------------------------------------------------------------- Firestore is not there, or slow, or back


class Asked:
    """Stands before a store's client and notes for how many seconds it lets each of its calls run."""

    def __init__(self, store: Firestore) -> None:
        self._client, self.seconds = store._client.get(), list[float]()
        store._client = PerProcess(lambda: self)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **members: Any) -> Any:
            self.seconds.append(members["timeout"])
            return getattr(self._client, name)(*args, **members)

        return call


class Overtaking:
    """Stands for a client: it finds nothing, and every commit fails."""

    def __init__(self, kind: type[Exception]) -> None:
        self._kind = kind

    def batch_get_documents(self, *_: Any, **__: Any) -> list[Any]:
        return []

    def commit(self, *_: Any, **__: Any) -> None:
        raise self._kind("x")


@pytest.mark.parametrize(
    ("kind", "seconds", "note"),
    [
        (Aborted, 60.0, "Contention"),  # it has tried as often as it may
        (Aborted, 0.02, "Contention"),  # or as long
        (ServiceUnavailable, 60.0, "ServiceUnavailable"),
        (Aborted, 0.0, "Timeout"),
    ],
)
def test_refusal_tells_contention_from_a_firestore_that_does_not_serve(
    kind: type[Exception], seconds: float, note: str
) -> None:
    store = Firestore("firestore://acme-prod", Clock(), seconds)
    store._client = PerProcess(lambda: Overtaking(kind))
    with pytest.raises(StoreUnavailable) as caught:
        admit(store, limited("9/minute"))
    assert (caught.value.note, caught.value.retry_after) == (note, 1)


def test_store_that_is_down_refuses_within_a_second_and_the_next_call_works_when_it_is_back(
    firestore_emulator: FirestoreEmulator,
) -> None:
    store = Firestore("firestore://acme-prod", seconds=PATIENCE)
    admit(store, limited("9/minute", key="before"))
    firestore_emulator.kill()
    store._seconds = TOTAL_SECONDS
    asked = Asked(store)
    for _ in range(8):
        with pytest.raises(StoreUnavailable) as caught:
            admit(store, limited("9/minute", key="meanwhile"))
        assert caught.value.retry_after == 1
        assert 1 <= len(asked.seconds) <= 2
        assert sum(asked.seconds) < TOTAL_SECONDS < 1
        asked.seconds.clear()
    firestore_emulator.start()
    store._seconds = PATIENCE
    assert admit(store, limited("9/minute", key="after")).replay is None


def test_settling_while_firestore_is_down_is_not_kept_and_does_not_raise(firestore_emulator: FirestoreEmulator) -> None:
    store, grant = Firestore("firestore://acme-prod", seconds=PATIENCE), limited("9/minute", key="k")
    admission = admit(store, grant)
    firestore_emulator.kill()
    assert not store.settle(grant, admission, SUCCEEDED, ANSWER)
    store.release(grant, admission)
    with pytest.raises(StoreUnavailable):
        list(store.held())
    with pytest.raises(StoreUnavailable):
        store.resolve(str(grant.ledger_key), None)


def test_store_that_hangs_refuses_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        store = Firestore("firestore://acme-prod")
        asked = Asked(store)
        with pytest.raises(StoreUnavailable):
            admit(store, limited("9/minute", key="k"))
        assert 1 <= len(asked.seconds) <= 2
        assert sum(asked.seconds) < TOTAL_SECONDS < 1


def test_nobody_listening_is_a_refusal_that_names_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # so that nobody else listens there either
        port = bound.getsockname()[1]
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{port}")
        with pytest.raises(StoreUnavailable) as caught:
            admit(Firestore("firestore://acme-prod", seconds=PATIENCE), limited("9/minute"))
    assert caught.value.note == "ServiceUnavailable"
    assert str(port) not in str(caught.value.problem("id"))


def test_channel_that_was_closed_is_a_refusal(firestore_url: str) -> None:
    store, grant = Firestore(firestore_url, seconds=PATIENCE), limited("9/minute", key="k")
    admission = admit(store, grant)
    store._client.get().transport.close()
    with pytest.raises(StoreUnavailable) as caught:
        admit(store, grant)
    assert (caught.value.note, caught.value.retry_after) == ("ValueError", 1)
    assert not store.settle(grant, admission, SUCCEEDED, ANSWER)


@pytest.mark.parametrize(
    ("setting", "value", "note"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/", "IsADirectoryError"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere", "DefaultCredentialsError"),
        ("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "", "EmptyUniverseError"),
    ],
)
def test_client_that_cannot_be_made_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str, note: str
) -> None:
    if setting == "GOOGLE_CLOUD_UNIVERSE_DOMAIN":
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv(setting, value)
    with pytest.raises(StoreUnavailable) as caught:
        admit(Firestore("firestore://acme-prod", seconds=PATIENCE), limited("9/minute", key="k"))
    assert caught.value.note == note


def test_calls_are_refused_in_time_while_google_does_not_say_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked = threading.Event(), list[str]()

    def silent(**_: object) -> None:
        asked.append("who")
        assert answer.wait(60), "somebody has waited for it"

    monkeypatch.setattr("google.auth.default", silent)
    store = Firestore("firestore://acme-prod")

    def note(_: int) -> str | None:
        with pytest.raises(StoreUnavailable) as caught:
            store.state_of("0" * 64)
        return caught.value.note

    assert at_once(20, note) == ["Timeout"] * 20
    assert asked == ["who"]
    answer.set()


class Between(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Stands between a store and Firestore. ``faults`` says of commits to come what happens to them."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[self])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self.faults: list[str] = []

    def service(self, details: Any) -> Any:
        """Pass bytes on, whatever they are; on the wire, one answer is a stream of one."""
        kept = [pair for pair in details.invocation_metadata if pair[0] in {"authorization", "x-goog-request-params"}]

        def ask(asked: bytes) -> list[bytes]:
            return list(self._channel.unary_stream(details.method)(asked, metadata=kept, timeout=60))

        def forward(asked: bytes, context: Any) -> Iterator[bytes]:
            fault = self.faults.pop() if self.faults and details.method.endswith("/Commit") else None
            try:
                answers = ask(asked)
                if fault == "twice":
                    ask(asked)
            except grpc.RpcError as error:
                refused: Any = error  # which is the call, too
                context.abort(refused.code(), refused.details())
            if fault == "lost":
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
            yield from answers

        return grpc.unary_stream_rpc_method_handler(forward)

    def close(self) -> None:
        self._server.stop(1).wait()
        self._channel.close()


@pytest.fixture
def between(shared_firestore: str) -> Iterator[Between]:
    between = Between(shared_firestore)
    yield between
    between.close()


@pytest.fixture
def through(between: Between, firestore_url: str, monkeypatch: pytest.MonkeyPatch) -> Firestore:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", between.address)
    return Firestore(firestore_url, None, PATIENCE)


def test_claim_whose_answer_was_lost_is_made_once_and_counted_once(through: Firestore, between: Between) -> None:
    grant = limited("9/minute", key="k")
    between.faults = ["lost"]
    admission = admit(through, grant)
    assert not between.faults, "nothing was lost, so this shows nothing"
    assert admission.standings[0].remaining == 8
    between.faults = ["lost"]
    assert through.settle(grant, admission, replace(SUCCEEDED, spent=5, spent_in="usd"), ANSWER)
    assert not between.faults
    assert admit(through, grant).replay == ANSWER


def test_call_without_a_key_is_not_counted_twice_when_the_answer_was_lost(through: Firestore, between: Between) -> None:
    grant = limited("9/minute")
    between.faults = ["lost"]
    with pytest.raises(StoreUnavailable) as caught:
        admit(through, grant)
    assert caught.value.note == "ServiceUnavailable"
    assert admit(through, grant).standings[0].remaining == 7


def test_claim_whose_answer_was_lost_gives_back_what_it_was_counted_at(through: Firestore, between: Between) -> None:
    grant = limited("9/minute", key="k")
    between.faults = ["lost"]
    assert through.settle(grant, admit(through, grant), UNREACHED, ANSWER)
    assert admit(through, grant).standings[0].remaining == 8


def test_commit_that_arrives_twice_is_carried_out_once(through: Firestore, between: Between) -> None:
    """The second is refused, and whoever was told so finds its own claim."""
    between.faults = ["twice"]
    assert admit(through, limited("9/minute", key="k")).standings[0].remaining == 8
    assert not between.faults


# ---------------------------------------------------------------- what lies in Firestore


def test_every_document_says_when_firestore_may_delete_it(firestore_url: str) -> None:
    clock = Clock()
    store, grant = Firestore(firestore_url, clock, PATIENCE), limited("9/minute, 20/day", key="k", ceiling="2/second")
    grant = budgeted(grant, budget(500, 3600))
    store.settle(grant, admit(store, grant), replace(SUCCEEDED, spent=9, spent_in="usd"), ANSWER)
    windows, (entry,) = documents(firestore_url, WINDOWS), documents(firestore_url, LEDGER).values()
    assert len(windows) == 4
    for name, window in windows.items():
        seconds = int(name.split(":")[-2])
        assert seconds < window["expire_at"].timestamp() - clock() < seconds * 1.01 + 61
    assert entry["expire_at"] == datetime.fromtimestamp(clock() + RETENTION + 60, UTC)


def test_ledger_holds_the_answer_and_whose_key_it_is_and_nothing_of_what_was_asked(firestore_url: str) -> None:
    store, grant = Firestore(firestore_url, Clock(), PATIENCE), limited("9/minute", key="k")
    store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
    ((name, entry),) = documents(firestore_url, LEDGER).items()
    assert name == grant.ledger_key
    kept = msgspec.msgpack.decode(entry["entry"], type=Entry)
    assert (kept.state, kept.answer) == (State.SUCCEEDED, ANSWER)
    assert (kept.caller, kept.connection, kept.operation) == ("app", "billing", "invoices.create")
    assert b"cus_" not in entry["entry"]


def test_document_of_a_key_that_is_open_is_never_deleted(firestore_url: str) -> None:
    store, grant = Firestore(firestore_url, Clock(), PATIENCE), limited("9/minute", key="k")
    admission = admit(store, grant)
    for _ in range(2):
        (entry,) = documents(firestore_url, LEDGER).values()
        assert "expire_at" not in entry
        store.settle(grant, admission, Reply(Outcome.UNKNOWN), ANSWER)


def test_claim_that_arrives_after_its_release_takes_no_key(firestore_url: str) -> None:
    """Each step writes only over what it has read, so whoever gives up a claim that may be on its way changes that."""
    store, grant = Firestore(firestore_url, Clock(), PATIENCE), limited("9/minute", key="k")
    path = f"{LEDGER}/{grant.ledger_key}"
    deadline = time.monotonic() + PATIENCE
    for owner in ("a", "b"):  # of a key that nobody has, and then of one that is there
        _, times = store._read([path], deadline)
        claim = wanted(grant, owner=owner, place="there", now=Clock()())
        store.release(grant, Admission((), owner, 0.0, claim))
        with pytest.raises(_OvertakenError):
            store._commit({path: {"entry": b"late"}}, times, deadline)
    assert admit(store, grant).replay is None


def test_what_has_expired_is_gone_although_firestore_has_not_deleted_it(firestore_url: str) -> None:
    clock = Clock()
    store, grant = Firestore(firestore_url, clock, PATIENCE), limited("1/minute", key="k")
    store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
    assert len(list(store.held())) == 1
    clock.tick(RETENTION)
    assert list(store.held()) == []
    assert store.resolve(str(grant.ledger_key), None) == "absent"
    assert len(documents(firestore_url, LEDGER)) == 1
    again = admit(store, grant)
    assert (again.replay, again.standings[0].remaining) == (None, 0)
    with pytest.raises(KeyInUse):  # nothing of the old answer is left
        admit(store, grant)
    clock.tick(LEASE)
    assert [held.open for held in store.held()] == [True]


def test_keys_are_listed_by_how_they_begin_and_page_by_page(
    firestore_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.stores.firestore.PAGE", 2)
    store, grant = Firestore(firestore_url, None, PATIENCE), limited("1000/minute", key="k")
    keys = sorted(start + "0" * (64 - len(start)) for start in ("00", "a", "ab0", "ab1", "ab2", "abf", "ac", "ff"))
    for key in keys:
        admit(store, replace(grant, ledger_key=key))
    assert [held.key for held in store.held()] == keys
    assert [held.key for held in store.held("ab")] == keys[2:6]
    assert [held.key for held in store.held("ab1")] == [keys[3]]
    assert [held.key for held in store.held("b")] == []


# ---------------------------------------------------------------- the function


def test_call_and_its_repetition_go_end_to_end(
    function: Callable[..., Function], upstream: Appgregator, firestore_url: str
) -> None:
    gate = function(STORE=firestore_url)
    sys.modules["main"].gate.store._seconds = PATIENCE
    first = gate.post(Idempotency_Key="order-1")
    assert first.status_code == 200, first.text
    again = gate.post(Idempotency_Key="order-1")
    assert (again.status_code, again.data) == (200, as_replayed(first.data))
    assert again.headers["Idempotent-Replayed"] == "true"
    left = [response.headers["RateLimit"].partition(";t=")[0] for response in (first, again)]
    assert left == ['"100000/minute";r=99999'] * 2
    assert upstream.invoices == 1


def test_store_that_is_down_sends_nothing(
    function: Callable[..., Function], upstream: Appgregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    response = function(STORE="firestore://acme-prod").post(Idempotency_Key="order-1")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert upstream.invoices == 0


def test_instances_share_limits_and_ledger(
    server: Callable[..., Server], upstream: Appgregator, firestore_url: str, shared_firestore: str
) -> None:
    running = [server(STORE=firestore_url, FIRESTORE_EMULATOR_HOST=shared_firestore) for _ in range(2)]
    answers = at_once(8, lambda place: running[place % 2].call(headers={"Idempotency-Key": "order-1"}))
    assert {status for status, _, _ in answers} <= {200, 503}
    until = time.monotonic() + 60
    while True:  # the emulator of a busy machine may need longer than a call has for it
        status, headers, body = running[0].call(headers={"Idempotency-Key": "order-1"})
        if status != 503 or time.monotonic() > until:
            break
    assert (status, headers.get("idempotent-replayed")) == (200, "true"), body
    assert upstream.invoices == 1
