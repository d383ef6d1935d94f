"""Many keys, many callers, several processes; and a Redis that is killed again and again under load."""

from __future__ import annotations

import multiprocessing
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sandbox.__main__ import UPSTREAM_KEY
from sandbox.redis_server import RedisServer
from sandbox.stripe import Stripe
from tests.conftest import MAIN, policy, running
from tests.crash.counting import created
from tests.crash.forms import SEED, form
from tests.gateway.test_redis import contend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from sandbox.upstream import Upstream
    from tests.conftest import Server

pytestmark = pytest.mark.figures

KEYS, CALLERS, PROCESSES = form(100, long=1000), 100, 4
RESTARTS = form(20, long=50)
#: Seconds that a Redis stands still: a slow disk, a snapshot, a failover.
STOPS = (0.3, 0.6, 1.0, 2.0) * form(1, long=10)
CALLS_AT_A_STOP = 30
TRIES = 5


def test_many_keys_with_a_hundred_callers_at_once_are_sent_once_each(redis_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(PROCESSES), context.Queue()
    arguments = (redis_url, KEYS, CALLERS // PROCESSES, barrier, queue)
    processes = [context.Process(target=contend, args=arguments) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    counts = [queue.get(timeout=240) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    sends, refused, replays = (sum(count[name] for count in counts) for name in ("sends", "refused", "replays"))
    told = f"{sends} sends, {replays} replays, {refused} at work"
    figure = f"{KEYS} keys, {CALLERS} callers at once each, over {PROCESSES} processes: {told}"
    print(f"\n{figure}")
    assert (sends, sends + refused + replays) == (KEYS, KEYS * CALLERS), figure


def storm(instance: Server, redis: RedisServer) -> Counter[str]:
    """Kill Redis again and again under load; return how often each status was answered.

    Each key is called until it is answered for good, and once more after that.
    """
    over = threading.Event()
    told: Counter[str] = Counter()
    lock = threading.Lock()

    def call(worker: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            order = f"{worker}-{number}"
            answered = False
            for _ in range(20):
                status, _, body = instance.call(
                    body=f"customer=cus_1&metadata[order_id]={order}".encode(), headers={"Idempotency-Key": order}
                )
                with lock:
                    told[f"{status}"] += 1
                if answered or over.is_set():
                    break
                answered = status == 200 or b"outcome-unknown" in body
                if not answered:
                    time.sleep(0.05)

    workers = [threading.Thread(target=call, args=(worker,)) for worker in range(6)]
    for thread in workers:
        thread.start()
    for _ in range(RESTARTS):
        time.sleep(0.1)
        redis.kill()
        redis.start()
    time.sleep(0.5)
    over.set()
    for thread in workers:
        thread.join(timeout=60)
    return told


def judge(upstream: Upstream, told: Counter[str], which: str) -> None:
    created = Counter(call.body for call in upstream.calls if call.created)
    twice = sum(times > 1 for times in created.values())
    again = len(upstream.calls) - upstream.invoices
    figure = (
        f"{which} killed {RESTARTS} times under load: {len(created)} keys created, {twice} of them twice, "
        f"{again} sent again and answered with the first invoice"
    )
    print(f"\n{figure}")
    assert twice == 0, figure
    assert len(created) > RESTARTS, figure
    assert told["503"] > 0, f"the kills were never noticed: {dict(told)}"


def test_redis_that_writes_first_never_lets_a_key_be_sent_twice_however_often_it_is_killed(
    server: Callable[..., Server], upstream: Appgregator, redis_server: RedisServer
) -> None:
    """With ``appendfsync always``, and an upstream that makes an invoice of every call."""
    told = storm(server(policy(upstream.origin), source=MAIN, STORE=redis_server.url), redis_server)
    judge(upstream, told, "Redis (appendfsync always)")
    assert len(upstream.calls) == upstream.invoices


def test_redis_that_forgets_everything_lets_no_key_have_two_invoices_where_the_upstream_deduplicates(
    server: Callable[..., Server], tmp_path: Path
) -> None:
    """Without any file: each kill empties the ledger, and what was sent is sent again under the same derived key."""
    with running(RedisServer(tmp_path)) as redis, Stripe(keys=[UPSTREAM_KEY]) as stripe:
        document = policy(stripe.origin).replace("upstream: appgregator", "upstream: stripe")
        told = storm(server(document, source=MAIN, STORE=redis.url), redis)
        judge(stripe, told, "Redis (no file)")
        assert stripe.replays > 0


def tries_of(pair: list[Server], order: str, first: int, wait: float) -> int:
    """Call one of two instances and then the other, as they say; return how many tries it took, 0 for never."""
    time.sleep(wait)
    for number in range(TRIES):
        body = f"customer=cus_1&metadata[order_id]={order}".encode()
        status, headers, _ = pair[(first + number) % 2].call(body=body, headers={"Idempotency-Key": order})
        if status == 200:
            return number + 1
        time.sleep(int(headers.get("retry-after", "1")))
    return 0


def test_redis_that_stands_still_for_a_while_costs_no_key_its_invoice(
    server: Callable[..., Server], upstream: Appgregator, redis_server: RedisServer
) -> None:
    """Under an upstream that makes an invoice of every call: so nothing is sent again."""
    pair = [server(policy(upstream.origin), source=MAIN, STORE=redis_server.url, THREADS="32") for _ in range(2)]
    lot, tries = random.Random(SEED), Counter[int]()
    process = redis_server.process
    assert process is not None
    for number, seconds in enumerate(STOPS):
        with ThreadPoolExecutor(CALLS_AT_A_STOP) as pool:
            # Some come before, so that they are caught half way.
            waits = [lot.uniform(0, 0.1 + seconds / 2) for _ in range(CALLS_AT_A_STOP)]
            calls = [pool.submit(tries_of, pair, f"{number}-{n}", n, wait) for n, wait in enumerate(waits)]
            time.sleep(lot.uniform(0, 0.1))
            process.send_signal(signal.SIGSTOP)
            try:
                time.sleep(seconds)
            finally:
                process.send_signal(signal.SIGCONT)
            tries.update(call.result() for call in calls)
    made = created(upstream)
    twice = sum(times > 1 for times in made.values())
    told = ", ".join(f"{count} in {number}" for number, count in sorted(tries.items()))
    figure = f"Redis stood still {len(STOPS)} times under {CALLS_AT_A_STOP} calls: {twice} keys twice; tries: {told}"
    print(f"\n{figure}")
    assert twice == 0, figure
    assert tries[0] == 0, figure
    assert len(made) == tries.total(), figure
    assert tries[1] < tries.total(), f"{figure}: nobody noticed"
