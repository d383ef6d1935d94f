"""A ledger that is lost at any moment, under refusals that are mended and answers that are lost, before Stripe.

What the ledger forgets, Stripe remembers: each key here leads to the same row of keys there. The callers do not all do
what they are told: some change the call although its outcome is unknown.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import TYPE_CHECKING, Final

import pytest
import redis

from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import Stripe
from tests.conftest import launch, policy
from tests.crash.counting import NOTHING_CREATED, created
from tests.crash.forms import SEED, form

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server

pytestmark = pytest.mark.figures

ORDERS: Final = form(600, long=5000)
CALLERS: Final = 8
#: Calls for one order, at most.
TRIES: Final = 7
#: Orders are raised for these: refused and not kept, refused and kept, carried out with the answer lost, and others.
CUSTOMERS: Final = (
    *("cus_fault_error_400", "cus_fault_error_402", "cus_fault_error_404", "cus_missing", "cus_fault_no_line_items"),
    *("cus_fault_close_after", "cus_fault_reset_after", "cus_fault_truncated", "cus_fault_not_json"),
    *("cus_fault_error_500_created", "cus_fault_error_500", "cus_fault_error_429", "cus_fault_html_404"),
    *("cus_fault_working", "cus_fault_other_customer", "cus_well", "cus_well", "cus_well"),
)
#: One caller in so many mends a call whose outcome is unknown, or that went through.
HEEDLESS: Final = 4


class Callers:
    """Callers who raise orders, and what they were told that is not true."""

    def __init__(self, stripe: Stripe, current: Callable[[], Server]) -> None:
        self._stripe, self._current = stripe, current
        self.told: Counter[int] = Counter()
        self.ended = 0
        self.lies: list[str] = []

    def raise_order(self, order: str) -> None:
        """Call until there is an invoice, and once more, mending what is refused."""
        lot = random.Random(f"{SEED} {order}")
        customer, invoices = lot.choice(CUSTOMERS), set()
        for _ in range(TRIES):
            form = f"customer={customer}&metadata[order_id]={order}".encode()
            try:
                status, _, body = self._current().call(body=form, headers={"Idempotency-Key": order})
            except (OSError, HTTPException):  # the instance has just gone
                continue
            self.told[status] += 1
            if NOTHING_CREATED.search(body.decode()) and created(self._stripe)[order]:
                self.lies.append(f"{order}: {body.decode()}")
            if status == 200:
                invoices.add(json.loads(body)["id"])
            if status in {400, 402, 404} or not lot.randrange(HEEDLESS):
                customer = lot.choice(CUSTOMERS)
        self.ended += bool(invoices)
        if len(invoices) > 1:
            self.lies.append(f"{order}: told of {invoices}")


@contextlib.contextmanager
def again_and_again(what: Callable[[], None], shortest: float, longest: float) -> Iterator[list[float]]:
    """Do something at moments drawn by lot. Yield when it was done."""
    over, lot, done = threading.Event(), random.Random(SEED), list[float]()

    def run() -> None:
        while not over.wait(lot.uniform(shortest, longest)):
            what()
            done.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join(timeout=60)


def judge(stripe: Stripe, callers: Callers, lost: list[float], how: str) -> None:
    made = created(stripe)
    twice = sorted(order for order, invoices in made.items() if invoices > 1)
    figure = (
        f"{how} {len(lost)} times under {callers.told.total()} calls for {ORDERS} orders at Stripe: {len(twice)} "
        f"orders with two invoices, {len(callers.lies)} wrongly told, {callers.ended} ended in an invoice; "
        f"{stripe.replays} sends answered with what Stripe kept"
    )
    print(f"\n{figure}")
    assert not twice, f"{figure}: {twice}"
    assert not callers.lies, "\n".join([figure, *callers.lies])
    assert len(lost) >= 5, figure
    assert callers.ended > ORDERS // 2, f"{figure}: {dict(callers.told)}"
    assert stripe.replays > ORDERS // 10, figure


def test_redis_that_is_emptied_at_any_moment_lets_no_order_have_two_invoices(
    server: Callable[..., Server], redis_url: str
) -> None:
    with Stripe(keys=[UPSTREAM_KEY]) as stripe, redis.Redis.from_url(redis_url) as client:
        stripe.delay = 0.2
        document = policy(stripe.origin).replace("upstream: appgregator", "upstream: stripe")
        instance = server(document, STORE=redis_url)
        callers = Callers(stripe, lambda: instance)
        with again_and_again(client.flushall, 0.02, 0.5) as lost, ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(callers.raise_order, map(str, range(ORDERS))))
    judge(stripe, callers, lost, "Redis emptied")


def test_memory_that_is_replaced_at_any_moment_lets_no_order_have_two_invoices(tmp_path: Path) -> None:
    with Stripe(keys=[UPSTREAM_KEY]) as stripe, contextlib.ExitStack() as stack:
        stripe.delay = 0.2
        (tmp_path / "key").write_text(UPSTREAM_KEY)
        document = policy(stripe.origin, secret=f"file:{tmp_path / 'key'}").replace("appgregator", "stripe")
        instances: list[Server] = []

        def replace() -> None:
            place = tmp_path / f"instance{len(instances)}"
            place.mkdir()
            instances.append(launch(place, document))
            if len(instances) > 2:
                instances[-3].stop()

        @stack.callback
        def end() -> None:
            for instance in instances[-2:]:
                instance.stop()

        replace()
        callers = Callers(stripe, lambda: instances[-1])
        with again_and_again(replace, 0.0, 0.5) as lost, ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(callers.raise_order, map(str, range(ORDERS))))
    judge(stripe, callers, lost, "The memory of an instance lost")
