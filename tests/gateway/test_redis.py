"""What the Redis store promises beyond every store: shared, and closed when Redis is not there."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import threading
import time
from bisect import bisect_left, bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from redis.crc import key_slot

from gateway.stores.connecting import STEP_SECONDS, Client, LostError, RedisError, RefusedError, Script, UnreachedError
from gateway.stores.memory import Memory
from gateway.stores.redis import Redis
from policies.idempotency import RETENTION, wanted
from policies.issuing import Progress, Stage
from policies.model import Admission, Answer, Entry, Outcome
from policies.outcomes import InvoiceSeen, Reply
from policies.quota import parse_limit
from policies.refusals import (
    BudgetSpent,
    KeyInUse,
    LimitReached,
    OutcomeStillUnknown,
    OutcomeUnknown,
    Refusal,
    StoreUnavailable,
)
from sandbox.redis_server import RedisServer
from tests.conftest import Clock, policy, running
from tests.gateway.conftest import admit, at_once, budget, budgeted, granted
from tests.wire import listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

    from gateway.stores import Store
    from policies.model import Grant

pytestmark = pytest.mark.stores

ANSWER = Answer(200, b'{"id":"in_1"}')
SUCCEEDED = Reply(Outcome.SUCCEEDED, answer={"id": "in_1"}, spent=2, spent_in="usd")


def limited(limit: str, *, key: str | None = None) -> Grant:
    grant = granted(idempotency_key=key)
    return replace(grant, caller=replace(grant.caller, limits=(parse_limit(limit),)))


def attempt(store: Store, grant: Grant) -> Admission | Refusal:
    try:
        return admit(store, grant)
    except Refusal as refusal:
        return refusal


# ---------------------------------------------------------------- the same arithmetic as the policy's

Step = tuple[str, float, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["admit", "goes on", "settle", "unreached", "unknown", "release", "freed", "moved", "waits", "mute"]
        ),
        # All are whole in microseconds and in binary, so that both stores' clocks say exactly the same.
        st.sampled_from([0.0, 1 / 64, 26 / 64, 1.0, 7 + 58 / 64, 30.0, 31.0, 61.0, 12 * 3600.0]),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_redis_says_what_memory_says_whatever_happens(
    shared_redis: RedisServer, patience: None, steps: list[Step]
) -> None:
    with redis.Redis(port=shared_redis.port) as client:
        client.flushall()
    clock = Clock()
    assert_alike((Memory(clock), Redis(shared_redis.url, clock)), clock, steps)


def assert_alike(stores: tuple[Store, Store], clock: Clock, steps: list[Step]) -> None:
    """Take two stores through the same history, of calls that may be sent again and calls that may not."""
    text = policy("http://127.0.0.1:9")
    once = granted(text, idempotency_key="k")
    again = granted(text.replace("appgregator\n", "stripe\n"), idempotency_key="k")
    caller = replace(
        once.caller,
        limits=(parse_limit("2/second"), parse_limit("5/minute")),
    )
    budgets = budget(9, 3600), budget(5, 3600, each="customer")
    grants = [
        budgeted(replace(grant, caller=caller, ledger_key=key), *budgets, reserve=reserve)
        for grant, key, reserve in ((once, "a" * 64, 2), (again, "b" * 64, 3), (again, "a" * 64, 6), (once, None, 1))
    ]
    held: list[tuple[Grant, tuple[Admission, Admission]]] = []
    for what, wait, which in steps:
        clock.tick(wait)
        if what == "admit" or not held:
            first, second = (attempt(store, grants[which]) for store in stores)
            assert said(first) == said(second)
            if not isinstance(first, Refusal) and not isinstance(second, Refusal) and first.replay is None:
                held.append((grants[which], (first, second)))
            continue
        asked, admissions = held.pop(which % len(held))
        if what == "goes on":
            further = [goes_on(store, asked, one, which) for store, one in zip(stores, admissions, strict=True)]
            assert said(further[0]) == said(further[1])
            kept = [new if isinstance(new, Admission) else old for new, old in zip(further, admissions, strict=True)]
            held.append((asked, (kept[0], kept[1])))
            continue
        for store, admission in zip(stores, admissions, strict=True):
            end(store, asked, admission, what)
        left = [store.left(asked.caller, (), asked.parameters["customer"]) for store in stores]
        assert left[0] == left[1]


def goes_on(store: Store, grant: Grant, admission: Admission, total: int) -> Admission | Refusal | None:
    """Finalize an invoice that comes to ``total``."""
    ahead = Progress(Stage.FINALIZE, id="in_1", reached=Stage.FINALIZE, seen=InvoiceSeen("draft", total=total))
    try:
        return store.advance(grant, admission, ahead)
    except BudgetSpent as refusal:
        return refusal


def said(result: Admission | Refusal | None) -> tuple[object, ...]:
    if result is None:
        return ()
    if isinstance(result, Refusal):
        return type(result), result.retry_after, result.detail, result.standings
    return result.standings, result.replay, result.entry and replace(result.entry, owner="")


ENDS = {
    "freed": Reply(Outcome.FREED),
    "moved": Reply(Outcome.UNKNOWN, generation=2),
    "waits": Reply(Outcome.UNKNOWN, approval="areq_1"),
    "mute": Reply(Outcome.UNKNOWN, mute=True),
}


def end(store: Store, grant: Grant, admission: Admission, how: str) -> None:
    if how == "release":
        store.release(grant, admission)
    elif how == "unknown":
        store.settle(grant, admission, Reply(Outcome.UNKNOWN, refusal=OutcomeUnknown()), Answer(502, b"{}"))
    elif how in ENDS:
        store.settle(grant, admission, ENDS[how], Answer(502, b"{}"))
    elif how == "unreached":
        store.settle(grant, admission, Reply(Outcome.RELEASED, reached=False), Answer(502, b"{}"))
    else:
        store.settle(grant, admission, SUCCEEDED, ANSWER)


def claim_of(grant: Grant, owner: str = "nobody") -> Entry:
    return wanted(grant, owner=owner, place="there", now=0.0)


def refused(store: Store, grant: Grant) -> tuple[str | None, int | None]:
    """Have a store refuse a call since it is unavailable. Return the cause, and when to come back."""
    with pytest.raises(StoreUnavailable) as caught:
        admit(store, grant)
    return caught.value.note, caught.value.retry_after


# ---------------------------------------------------------------- Redis is not there, or slow, or back


def test_store_that_is_down_refuses_and_the_next_call_works_when_it_is_back(redis_server: RedisServer) -> None:
    store = Redis(redis_server.url)
    admit(store, limited("9/minute", key="before"))
    redis_server.kill()
    assert refused(store, limited("9/minute", key="meanwhile")) == ("nobody listens", 1)
    redis_server.start()
    admission = admit(store, limited("9/minute", key="after"))
    assert admission.standings[0].remaining == 7


def test_nobody_listening_is_a_refusal_that_names_no_address() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # so that nobody else listens there either
        with pytest.raises(StoreUnavailable) as caught:
            admit(Redis(f"redis://:hunter2@127.0.0.1:{bound.getsockname()[1]}/0"), limited("9/minute"))
    assert caught.value.note == "nobody listens"
    assert "hunter2" not in str(caught.value.problem("id"))


def test_address_that_cannot_be_looked_up_is_a_refusal() -> None:
    assert refused(Redis("redis://a..b:6379/0"), limited("9/minute", key="k")) == ("no such host", 1)


def left_behind(operator: redis.Redis) -> bool:
    """Whether our connections are closed. Redis takes a moment to see it."""
    deadline = time.monotonic() + 30
    while "countersign" in [client["name"] for client in operator.client_list()]:
        if time.monotonic() > deadline:
            return False
    return True


def test_demoted_primary_refuses_and_its_connections_are_left_behind(redis_server: RedisServer) -> None:
    """After a failover the address may name another server, which only a new connection finds."""
    store = Redis(redis_server.url)
    grant = limited("5/minute", key="k")
    store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
    with redis.Redis(port=redis_server.port) as operator:
        before = operator.client_info()["id"]
        operator.replicaof("127.0.0.1", "1")
        with pytest.raises(StoreUnavailable):
            admit(store, limited("5/minute", key="other"))
        assert left_behind(operator)
        operator.replicaof("NO", "ONE")
        assert admit(store, grant).replay == ANSWER
        newest = max(int(client["id"]) for client in operator.client_list() if client["name"] == "countersign")
    assert newest > int(before)


@contextlib.contextmanager
def configured(operator: redis.Redis, **options: str) -> Iterator[None]:
    names = {name.replace("_", "-"): value for name, value in options.items()}
    before = {name: str(operator.config_get(name)[name]) for name in names}
    for name, value in names.items():
        operator.config_set(name, value)
    yield
    for name, value in before.items():
        operator.config_set(name, value)


@contextlib.contextmanager
def cut_off(operator: redis.Redis) -> Iterator[None]:
    """A replica that has lost its primary, and was told not to answer from old data then."""
    with configured(operator, replica_serve_stale_data="no"):
        operator.replicaof("127.0.0.1", "1")
        yield
        operator.replicaof("NO", "ONE")


@contextlib.contextmanager
def busy(operator: redis.Redis) -> Iterator[None]:
    """Somebody's script does not end."""
    port = operator.get_connection_kwargs()["port"]
    with configured(operator, busy_reply_threshold="1"), redis.Redis(port=port) as other, ThreadPoolExecutor(1) as pool:
        running = pool.submit(other.eval, "while true do end", 0)
        while True:
            try:
                operator.ping()
            except redis.ResponseError:
                break
        try:
            yield
        finally:
            operator.script_kill()
        assert isinstance(running.exception(timeout=60), redis.ResponseError)


@contextlib.contextmanager
def disk_gone(operator: redis.Redis) -> Iterator[None]:
    """It cannot write its snapshots, and takes no writes then."""
    Path(str(operator.config_get("dir")["dir"])).rmdir()
    with configured(operator, save="3600 1"):
        operator.bgsave()
        while operator.info("persistence")["rdb_last_bgsave_status"] == "ok":
            time.sleep(0.01)
        yield


@pytest.mark.parametrize(
    ("state", "note"),
    [
        pytest.param(lambda operator: configured(operator, requirepass="p"), "password", id="NOAUTH"),
        pytest.param(lambda operator: configured(operator, maxmemory="1"), "out of memory", id="OOM"),
        pytest.param(lambda operator: configured(operator, maxclients="1"), "too many clients", id="too many clients"),
        pytest.param(
            lambda operator: configured(operator, min_replicas_to_write="1"), "too few replicas", id="NOREPLICAS"
        ),
        pytest.param(disk_gone, "cannot write to its disk", id="MISCONF"),
        pytest.param(cut_off, "replica without its primary", id="MASTERDOWN"),
        pytest.param(busy, "busy with a script", id="BUSY"),
    ],
)
def test_redis_that_will_not_serve_is_a_refusal_and_claims_nothing(
    tmp_path: Path, patience: None, state: Callable[[redis.Redis], AbstractContextManager[None]], note: str
) -> None:
    (tmp_path / "data").mkdir()
    with running(RedisServer(tmp_path / "data")) as server, redis.Redis(port=server.port) as operator:
        store, grant = Redis(server.url), limited("9/minute", key="k")
        with state(operator):
            assert refused(store, grant) == (note, 1)
            assert not store.settle(grant, Admission((), "nobody", 0.0, claim_of(grant)), SUCCEEDED, ANSWER)
        assert operator.keys() == []
        assert admit(store, grant).standings[0].remaining == 8


def test_replica_without_its_primary_is_left_behind_as_a_demoted_primary_is(redis_server: RedisServer) -> None:
    store, grant = Redis(redis_server.url), limited("9/minute", key="k")
    admit(store, grant)
    with redis.Redis(port=redis_server.port) as operator, cut_off(operator):
        assert refused(store, grant) == ("replica without its primary", 1)
        assert left_behind(operator)


@pytest.mark.parametrize(
    ("error", "attempts"), [(UnreachedError("w"), 2), (LostError("w"), 2), (RefusedError("w", "ERR"), 1)], ids=repr
)
def test_only_a_call_whose_answer_was_lost_is_repeated_and_only_one_with_a_key(
    monkeypatch: pytest.MonkeyPatch, error: RedisError, attempts: int
) -> None:
    made: list[Script] = []

    def fail(script: Script, *_: object) -> None:
        if script is store._admit:  # and not the release that follows
            made.append(script)
        raise error

    monkeypatch.setattr("gateway.stores.debts.PATIENCE", 0.1)
    for key, expected in (("k", attempts), (None, 1)):
        made.clear()
        store = Redis("redis://127.0.0.1:9/0")
        store._client.run = fail  # type: ignore[assignment, method-assign]
        assert refused(store, limited("9/minute", key=key)) == ("w", 1)
        assert len(made) == expected


@pytest.mark.parametrize(
    ("who", "note"), [(":wrong", "password"), ("clerk:p", "permissions")], ids=["WRONGPASS", "NOPERM"]
)
def test_redis_that_does_not_know_us_or_allows_us_too_little_is_a_refusal(
    redis_server: RedisServer, who: str, note: str
) -> None:
    with redis.Redis(port=redis_server.port) as operator:
        operator.acl_setuser("clerk", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all", "-evalsha"])
        operator.config_set("requirepass", "p")
        store = Redis(f"redis://{who}@127.0.0.1:{redis_server.port}/0")
        assert refused(store, limited("9/minute", key="k")) == (note, 1)
        assert operator.keys() == []


def test_redis_that_is_still_loading_is_a_refusal(redis_server: RedisServer) -> None:
    store, grant = Redis(redis_server.url), limited("9/minute", key="k")
    store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
    with redis.Redis(port=redis_server.port) as operator, operator.pipeline(transaction=False) as many:
        for number in range(64 * 1024):  # it looks for clients between two times 1,024 commands
            many.set("other", number)
        many.execute()
    redis_server.kill()
    redis_server.options = {"key-load-delay": "100"}  # microseconds, for each of them
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(redis_server.start)
        results: list[str | None] = []
        while "still loading" not in results:
            assert not starting.done(), results
            result = attempt(store, grant)
            results.append(result.note if isinstance(result, Refusal) else None)
        with redis.Redis(port=redis_server.port) as operator:
            operator.config_set("key-load-delay", 0)  # the rest of it at once
        starting.result()
    assert admit(store, grant).replay == ANSWER


def test_scripts_that_redis_has_forgotten_are_given_to_it_again(redis_url: str) -> None:
    store, grant = Redis(redis_url), limited("9/minute", key="k")
    admission = admit(store, grant)
    with redis.Redis.from_url(redis_url) as operator:
        operator.script_flush()
        assert store.settle(grant, admission, SUCCEEDED, ANSWER)
        operator.script_flush()
        assert admit(store, grant).replay == ANSWER


def test_settling_while_redis_is_down_is_not_kept_and_does_not_raise(redis_server: RedisServer) -> None:
    store, grant = Redis(redis_server.url), limited("9/minute", key="k")
    admission = admit(store, grant)
    redis_server.kill()
    assert not store.settle(grant, admission, SUCCEEDED, ANSWER)
    redis_server.start()
    assert admit(store, grant).replay == ANSWER  # what was owed is paid first


def test_release_while_redis_is_away_for_long_is_owed_and_paid_by_the_next_call(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.stores.debts.PATIENCE", 0.2)
    store, grant = Redis(redis_server.url), limited("9/minute", key="k")
    admission = admit(store, grant)
    redis_server.kill()
    store.release(grant, admission)
    with pytest.raises(StoreUnavailable):
        admit(store, limited("9/minute", key="other"))
    redis_server.start()
    assert admit(store, limited("9/minute", key="other")).standings[0].remaining == 8
    assert admit(store, grant).standings[0].remaining == 7


def test_claim_whose_answers_are_lost_again_and_again_is_given_back_by_its_own_call(
    redis_url: str, shared_redis: RedisServer
) -> None:
    proxy = Lossy(shared_redis.port)
    with proxy.listening() as address:
        store, grant = Redis(address), limited("9/minute", key="k")
        store.release(grant, admit(store, grant))  # the scripts are loaded now
        proxy.lose_next = 2
        with pytest.raises(StoreUnavailable):
            admit(store, grant)
        assert not proxy.lose_next, "the proxy did not swallow both, so this shows nothing"
        assert admit(Redis(redis_url), grant).standings[0].remaining == 8


def test_claim_that_arrives_after_its_release_takes_no_key(redis_url: str) -> None:
    """Redis stood still: it reads the release, on another connection, before the claim that was given up."""
    store, grant = Redis(redis_url), limited("9/minute", key="k")
    claim = claim_of(grant, "late")
    store.release(grant, Admission((), "late", 0.0, claim))
    with pytest.raises(StoreUnavailable) as caught:
        store._claim(grant, "late", None, claim)
    assert caught.value.note == "Released"
    assert admit(store, grant).standings[0].remaining == 8


@pytest.mark.parametrize("reached", [False, True])
def test_second_copy_of_a_claim_that_arrives_after_its_release_takes_no_key(redis_url: str, *, reached: bool) -> None:
    """A claim whose answer is late is asked for once more, so it may arrive once more when the call is over."""
    store, grant = Redis(redis_url), limited("9/minute", key="k")
    claim = claim_of(grant, "late")
    admission = store._claim(grant, "late", None, claim)
    assert isinstance(admission, Admission)
    assert store.settle(grant, admission, Reply(Outcome.RELEASED, reached=reached), ANSWER)
    with pytest.raises(StoreUnavailable) as caught:
        store._claim(grant, "late", None, claim)
    assert caught.value.note == "Released"
    assert admit(store, grant).entry


def test_redis_that_stands_still_for_a_while_leaves_no_key_claimed(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    grants = [limited("1000/minute", key=f"order-{number}") for number in range(30)]
    store = Redis(redis_server.url)
    admit(store, limited("1000/minute"))  # the scripts are loaded now
    assert redis_server.process is not None
    redis_server.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr("gateway.stores.debts.PATIENCE", 60.0)
    given_up, release = threading.Event(), store._debts.release

    def give_back(grant: Grant, admission: Admission) -> None:
        given_up.set()
        release(grant, admission)

    monkeypatch.setattr(store._debts, "release", give_back)
    process = redis_server.process

    def wake() -> None:
        assert given_up.wait(60)
        process.send_signal(signal.SIGCONT)

    with monkeypatch.context() as impatient, ThreadPoolExecutor(1) as pool:
        impatient.setattr(Client, "STEP", STEP_SECONDS)
        waking = pool.submit(wake)
        results = at_once(30, lambda number: attempt(store, grants[number]))
        waking.result()
    assert any(isinstance(result, StoreUnavailable) for result in results)
    for grant, result in zip(grants, results, strict=True):
        if isinstance(result, Refusal):
            assert admit(Redis(redis_server.url), grant).replay is None


def test_claim_survives_a_crash_of_redis_that_writes_before_it_answers(redis_server: RedisServer) -> None:
    store, grant = Redis(redis_server.url), limited("9/minute", key="k")
    store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
    redis_server.kill()
    redis_server.start()
    assert admit(store, grant).replay == ANSWER


class Lossy:
    """Passes bytes to Redis and back, but swallows the next answers and hangs up instead."""

    def __init__(self, port: int) -> None:
        self._target, self.lose_next = port, 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """Yield the address of a store behind it."""
        with listening(self._serve) as origin:
            yield origin.replace("http:", "redis:") + "/0"

    def _serve(self, client: socket.socket, _number: int) -> None:
        with socket.create_connection(("127.0.0.1", self._target)) as server:
            while asked := client.recv(1 << 20):
                server.sendall(asked)
                answer = server.recv(1 << 20)
                if self.lose_next and b"EVALSHA" in asked and not answer.startswith(b"-NOSCRIPT"):
                    self.lose_next -= 1
                    return
                client.sendall(answer)


def test_claim_whose_answer_was_lost_is_made_once_and_counted_once(redis_url: str, shared_redis: RedisServer) -> None:
    proxy = Lossy(shared_redis.port)
    with proxy.listening() as address:
        store, grant = Redis(address), limited("9/minute", key="k")
        store.release(grant, admit(store, grant))  # the scripts are loaded now
        proxy.lose_next = 1
        admission = admit(store, grant)
        assert not proxy.lose_next, "the proxy swallowed nothing, so this shows nothing"
        assert admission.standings[0].remaining == 8
        proxy.lose_next = 1
        assert store.settle(grant, admission, SUCCEEDED, ANSWER)
        assert not proxy.lose_next
        assert admit(Redis(redis_url), grant).replay == ANSWER


def test_call_without_a_key_is_not_counted_twice_when_the_answer_was_lost(
    redis_url: str, shared_redis: RedisServer
) -> None:
    proxy = Lossy(shared_redis.port)
    with proxy.listening() as address:
        store, grant = Redis(address), limited("9/minute")
        admit(store, grant)
        proxy.lose_next = 1
        with pytest.raises(StoreUnavailable):
            admit(store, grant)
        assert admit(Redis(redis_url), grant).standings[0].remaining == 6


def test_every_key_of_a_deployment_lies_on_one_node_of_a_cluster(redis_url: str) -> None:
    store, grant = Redis(redis_url), limited("9/minute", key="k")
    admit(store, grant)
    with redis.Redis.from_url(redis_url) as client:
        keys = client.keys()
        assert keys.pop(keys.index(b"{countersign}:clock"))
        assert len(keys) == 3
        assert len({key_slot(key) for key in keys}) == 1
        (entry,) = [key for key in keys if b"ledger" in key]
        assert all(client.pttl(key) > 0 for key in keys if key != entry)
        assert client.pttl(entry) == -1  # while it is open


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (SUCCEEDED, RETENTION),
        (Reply(Outcome.REJECTED), RETENTION),
        (Reply(Outcome.FREED), RETENTION),
        (Reply(Outcome.UNKNOWN), None),
    ],
    ids=lambda value: str(value.outcome) if isinstance(value, Reply) else "",
)
def test_only_a_settled_key_has_an_end_in_redis(redis_url: str, reply: Reply, seconds: int | None) -> None:
    store, grant = Redis(redis_url), limited("9/minute", key="k")
    store.settle(grant, admit(store, grant), reply, ANSWER)
    with redis.Redis.from_url(redis_url) as client:
        ((ends,),) = [[client.ttl(key)] for key in client.keys("*ledger*")]
    assert ends == -1 if seconds is None else seconds < ends <= seconds + 61


def test_window_in_redis_stays_small_however_many_calls_it_counts(redis_url: str) -> None:
    clock = Clock()
    store, grant = Redis(redis_url, clock), limited("100000/minute")
    for _ in range(1500):
        admit(store, grant)
        clock.tick(0.11)
    with redis.Redis.from_url(redis_url) as client:
        assert client.hlen("{countersign}:caller:app:60") <= 129 + 3


# ---------------------------------------------------------------- a clock that somebody sets


BACK = [0.5, 59.0, 3600.0, 30 * 86400.0]


@pytest.mark.parametrize("seconds", BACK)
def test_clock_set_back_refuses_nobody_for_longer_than_the_window(redis_url: str, seconds: float) -> None:
    clock = Clock()
    store, grant = Redis(redis_url, clock), limited("3/minute")
    for _ in range(3):
        admit(store, grant)
    clock.tick(-seconds)
    for _ in range(5):
        result = attempt(store, grant)
        assert isinstance(result, LimitReached)
        assert 0 < (result.retry_after or 0) <= 61
        assert store.left(grant.caller, [])[0].remaining == 0
    clock.tick(61)
    assert store.left(grant.caller, [])[0].remaining == 3
    assert admit(store, grant).standings[0].remaining == 2


@pytest.mark.parametrize("seconds", BACK)
def test_clock_set_back_leaves_a_key_in_use_for_no_longer_than_its_lease(redis_url: str, seconds: float) -> None:
    clock = Clock()
    store, grant = Redis(redis_url, clock), limited("9/minute", key="k")
    admit(store, grant)
    clock.tick(-seconds)
    assert isinstance(attempt(store, grant), KeyInUse)
    clock.tick(31)
    assert isinstance(attempt(store, grant), OutcomeStillUnknown)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, 7.5, 30.0]), st.sampled_from([0.0, 0.0, 0.5, 5.0, 4000.0]))))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_clock_that_is_set_back_again_and_again_never_admits_more_than_the_limit(
    shared_redis: RedisServer, patience: None, steps: list[tuple[float, float]]
) -> None:
    with redis.Redis(port=shared_redis.port) as client:
        client.flushall()
    clock, real, admitted = Clock(), 0.0, list[float]()
    store, grant = Redis(shared_redis.url, clock), limited("3/minute")
    for passes, back in steps:
        real += passes
        clock.tick(passes - back)
        if isinstance(attempt(store, grant), Admission):
            admitted.append(real)
        assert len([moment for moment in admitted if moment > real - 60]) <= 3
    clock.tick(61)
    assert admit(store, grant).standings[0].remaining == 2


def test_clock_set_forward_is_time_that_has_passed(redis_url: str) -> None:
    clock = Clock()
    store, grant = Redis(redis_url, clock), limited("1/minute", key="k")
    assert store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
    clock.tick(3600)
    assert admit(store, limited("1/minute", key="other"))
    assert admit(store, grant).replay == ANSWER
    clock.tick(RETENTION)
    assert admit(store, grant).replay is None
    clock.tick(-3600 - RETENTION)  # set right: our time goes on from there
    assert isinstance(attempt(store, limited("1/minute", key="third")), LimitReached)
    clock.tick(61)
    assert admit(store, limited("1/minute", key="third"))


def test_refused_call_writes_nothing_while_the_clock_is_right(redis_url: str) -> None:
    clock = Clock()
    store, grant = Redis(redis_url, clock), limited("1/minute")
    admit(store, grant)
    with redis.Redis.from_url(redis_url) as client:
        before = client.hgetall("{countersign}:clock")
        clock.tick(1)
        assert isinstance(attempt(store, grant), LimitReached)
        assert client.hgetall("{countersign}:clock") == before


# ---------------------------------------------------------------- several processes


#: A process's admissions, by Redis's clock; and for each refusal, moments before and after it.
Tale = tuple[list[float], list[tuple[float, float]]]


def greedy(url: str, skew: float, seconds: float, barrier: Barrier, queue: Queue[Tale]) -> None:
    """Admit as fast as it goes. The process's own clock is off, which must not matter."""
    real = time.time
    time.time = lambda: real() + skew
    Client.STEP = 30.0  # of a busy machine, as in the fixture ``patience``
    store, grant = Redis(url), limited("200/second")
    barrier.wait(timeout=120)
    admitted: list[float] = []
    refused: list[tuple[float, float]] = []
    before, end = store._seconds(), time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            before = admit(store, grant).taken
            admitted.append(before)
        except LimitReached:
            refused.append((before, after := store._seconds()))
            before = after
            time.sleep(0.001)
    queue.put((admitted, refused))


def test_eight_processes_with_clocks_apart_never_exceed_one_limit_and_waste_under_one_percent(redis_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(8), context.Queue()
    processes = [
        context.Process(target=greedy, args=(redis_url, 5.0 * (number - 4), 6.0, barrier, queue)) for number in range(8)
    ]
    for process in processes:
        process.start()
    tales: list[Tale] = [queue.get(timeout=180) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    admitted = sorted(moment for admitted, _ in tales for moment in admitted)
    # In any second, on Redis's own clock: the call that comes 200 calls later comes at least a second later.
    closest = min(later - earlier for earlier, later in zip(admitted, admitted[200:], strict=False))
    assert closest >= 1.0
    # Nobody is refused unless the limit is used up, within a window of a second and a 128th.
    refused = [moments for _, refused in tales for moments in refused]
    assert len(refused) > 100
    for before, after in refused:
        used = bisect_right(admitted, after) - bisect_left(admitted, before - 1 - 1 / 128)
        assert used >= 0.99 * 200


def contend(url: str, keys: int, callers: int, barrier: Barrier, queue: Queue[dict[str, int]]) -> None:
    Client.STEP = 30.0  # of a busy machine, as in the fixture ``patience``
    store = Redis(url)
    barrier.wait(timeout=120)
    sends = refused = replays = 0
    for key in range(keys):
        grant = limited("100000000/day", key=f"key-{key}")

        def one(_: int, grant: Grant = grant) -> Admission | Refusal:
            result = attempt(store, grant)
            if not isinstance(result, Refusal) and result.replay is None:
                assert store.settle(grant, result, SUCCEEDED, ANSWER)
            return result

        for result in at_once(callers, one):
            if isinstance(result, KeyInUse):
                refused += 1
            elif isinstance(result, Refusal):
                raise result
            elif result.replay is None:
                sends += 1
            else:
                replays += 1
    queue.put({"sends": sends, "refused": refused, "replays": replays})


def test_four_processes_with_many_callers_at_once_send_each_key_once(redis_url: str) -> None:
    keys, callers = 60, 25
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(4), context.Queue()
    arguments = (redis_url, keys, callers // 5, barrier, queue)
    processes = [context.Process(target=contend, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    counts = [queue.get(timeout=180) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sum(count["sends"] for count in counts) == keys
    assert sum(sum(count.values()) for count in counts) == keys * 4 * (callers // 5)
