"""Many keys, many callers, several processes; and a Redis that is killed again and again under load."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.conftest import policy
from tests.gateway.test_redis import contend

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from sandbox.redis_server import RedisServer
    from tests.conftest import Server

pytestmark = pytest.mark.figures

KEYS, CALLERS, PROCESSES = 1000, 100, 4
RESTARTS = 50


def test_a_thousand_keys_with_a_hundred_callers_at_once_are_sent_once_each(redis_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(PROCESSES), context.Queue()
    arguments = (redis_url, KEYS, CALLERS // PROCESSES, barrier, queue)
    processes = [context.Process(target=contend, args=arguments) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    counts = [queue.get(timeout=240) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    sends, refused, replays = (sum(count[name] for count in counts) for name in ("sends", "refused", "replays"))
    told = f"{sends} sends, {replays} replays, {refused} 409"
    figure = f"{KEYS} keys, {CALLERS} callers at once each, over {PROCESSES} processes: {told}"
    print(f"\n{figure}")
    assert (sends, sends + refused + replays) == (KEYS, KEYS * CALLERS), figure


def test_redis_killed_and_restarted_under_load_never_lets_a_key_be_sent_twice(
    server: Callable[..., Server], upstream: Appgregator, redis_server: RedisServer
) -> None:
    """With ``appendfsync always``. Each key is called until it is answered for good, and once more after that."""
    instance = server(policy(upstream.origin), STORE=redis_server.url)
    over = threading.Event()
    told: Counter[str] = Counter()
    lock = threading.Lock()

    def call(worker: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            order = f"{worker}-{number}"
            for _ in range(20):
                status, _, body = instance.call(
                    body=f"customer=cus_1&metadata[order_id]={order}".encode(), headers={"Idempotency-Key": order}
                )
                with lock:
                    told[f"{status}"] += 1
                if status == 200 or b"outcome-unknown" in body or over.is_set():
                    break
                time.sleep(0.05)

    workers = [threading.Thread(target=call, args=(worker,)) for worker in range(6)]
    for thread in workers:
        thread.start()
    for _ in range(RESTARTS):
        time.sleep(0.1)
        redis_server.kill()
        redis_server.start()
    time.sleep(0.5)
    over.set()
    for thread in workers:
        thread.join(timeout=60)
    created = Counter(call.body for call in upstream.calls if call.created)
    twice = sum(times > 1 for times in created.values())
    figure = f"Redis killed {RESTARTS} times under load: {len(created)} keys created, {twice} of them twice"
    print(f"\n{figure}")
    assert twice == 0, figure
    assert len(created) > RESTARTS, figure
    assert told["503"] > 0, f"the kills were never noticed: {dict(told)}"
