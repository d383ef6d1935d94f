"""Whole invoices over two instances, with one store between them, and SIGKILL at every boundary of their steps.

Stripe's sandbox counts the invoices; nothing else is believed. Half of the calls come back after it has forgotten their
keys, which it does after a minute here, and not after a day.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import BadStatusLine, HTTPConnection
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import pytest

from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import Stripe
from tests.conftest import FORM, KEY, sha256
from tests.crash.forms import SEED, form
from tests.crash.test_kills import CLIENTS, FASTER, LEASE, WHOLE, Answered, Instance, Pair
from tests.test_issue import DOCUMENT, SENT, TARGET, TOTAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.figures

#: Seconds after which Stripe forgets a key, and the function counts on that; a day in reality.
REMEMBERED: Final = 60
#: Between which a call dies. A step is dead before it was sent, after its last byte, and after its answer came.
POINTS: Final = (
    "before-claim",
    "after-claim",
    *(f"{when}-{step}" for step in ("create", "lines", "finalize", "send") for when in ("before", "during", "after")),
    *(f"{when}-writing-{step}" for step in ("lines", "finalize", "send") for when in ("before", "after")),
    "before-settle",
    "after-settle",
)


class Issuing(Instance):
    """An instance that is asked for whole invoices. The key is the customer's, too."""

    def call(self, key: str) -> Answered | None:
        """Make the call that has this key; None if the instance died over it."""
        body = "&".join(f"{name}={value}" for name, value in {**SENT, "customer": customer_of(key)}.items())
        headers = {"Content-Type": FORM, "x-api-key": KEY, "Idempotency-Key": key}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", TARGET, body, headers)
            response = connection.getresponse()
            content = response.read()
        except (ConnectionError, BadStatusLine):
            return None
        finally:
            connection.close()
        replayed = response.getheader("Idempotent-Replayed") == "true"
        return Answered(response.status, json.loads(content).get("reason"), replayed, content, time.monotonic())


def customer_of(key: str) -> str:
    return f"cus_{key.replace('-', '')}"


def pair_of(folder: Path, stripe: Stripe, **settings: str) -> Pair:
    (folder / "key").write_text(UPSTREAM_KEY)
    document, number = folder / "policy.yaml", count()
    document.write_text(
        DOCUMENT.format(origin=stripe.origin, secret=folder / "key", key=sha256(KEY), credit="false", lines=50)
    )
    altered = {"policies.idempotency.LEASE": LEASE, "policies.upstreams.stripe.Stripe.deduplicates": REMEMBERED}
    settings = {"POLICY": str(document), "ALTERED": json.dumps(altered), **settings}
    return Pair(lambda: Issuing(folder / f"instance{next(number)}", settings))


def killed(pair: Pair, times: int, said: str, lot: random.Random) -> Iterator[str]:
    """Kill one of the two at each point, so many times, with a fresh key each. Yield the key of each call that died."""
    for number in range(times):
        for place, point in enumerate(POINTS):
            key = f"{list(CLIENTS)[(place + number) % len(CLIENTS)]}-{point}-{number}-{said}"
            pair.kill(pair.next(), key, point, whole=lot.randrange(WHOLE) == 0)
            yield key


def repeated(pair: Pair, keys: Iterable[str]) -> dict[str, int]:
    """Repeat each call as its client does, from when its key is there. Return how often each was."""
    with ThreadPoolExecutor(32) as pool:
        running = {key: pool.submit(CLIENTS[key.partition("-")[0]].run, pair, key) for key in keys}
        return {key: one.result() for key, one in running.items()}


def figure_of(folder: Path, stripe: Stripe, times: int, **settings: str) -> tuple[str, list[str]]:
    """Kill, repeat, and count. Return what came of it in words, and whatever is wrong."""
    began, lot = time.monotonic(), random.Random(f"{SEED} issued")
    with pair_of(folder, stripe, **settings) as pair:
        late = list(killed(pair, (times + 1) // 2, "late", lot))
        forgotten = time.monotonic() + REMEMBERED + 2 * LEASE
        soon = repeated(pair, killed(pair, times // 2, "soon", lot))
        time.sleep(max(0.0, forgotten - time.monotonic()))
        again = soon | repeated(pair, late)
        time.sleep(LEASE + 0.1)
        with ThreadPoolExecutor(4) as pool:  # at last somebody tries each of them once more
            last = dict(zip(again, pool.map(lambda key: pair.call(pair.next(), key), again), strict=True))
    made: dict[str, list[dict[str, Any]]] = {key: [] for key in last}
    names = {customer_of(key): key for key in last}
    for one in stripe.made:
        made[names[one["customer"]]].append(one)
    raised = {key: [one for one in mine if one["status"] != "draft"] for key, mine in made.items()}
    twice = [key for key, mine in raised.items() if len(mine) > 1]
    others = [key for key, mine in raised.items() if any(one["total"] != TOTAL for one in mine)]
    left = [key for key, mine in made.items() if any(one["status"] == "draft" for one in mine)]
    mailed = Counter(one.get("mailed", 0) for mine in raised.values() for one in mine)
    figure = (
        f"{len(last)} kills at {len(POINTS)} boundaries of whole invoices, two instances, {len(late)} of them repeated "
        f"after Stripe forgot their keys, {sum(again.values())} repetitions as {', '.join(CLIENTS)} make them (every "
        f"wait {FASTER} times shorter, the lease 30 times): {len(twice)} customers with two invoices, {len(others)} "
        f"with another sum, {len(left)} drafts left; mailed {dict(sorted(mailed.items()))}; "
        f"{time.monotonic() - began:.0f} s"
    )
    wrong = [f"two invoices: {key}" for key in twice] + [f"another sum: {key}" for key in others]
    wrong += [f"a draft is left: {key}" for key in left]
    wrong += [f"{key}: at last {answered and answered.told}" for key, answered in last.items() if not fine(answered)]
    wrong += [f"{key} has no invoice" for key, mine in raised.items() if not mine]
    wrong += [f"mailed {times} times" for times in mailed if times > 1]
    return figure, wrong


def fine(answered: Answered | None) -> bool:
    return answered is not None and answered.status == 200


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.stripe.KEPT_SECONDS", REMEMBERED)


@pytest.mark.usefixtures("forgetful")
def test_whoever_dies_between_which_steps_a_customer_gets_one_invoice_of_the_right_sum_and_no_draft_is_left(
    tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stripe(keys=[UPSTREAM_KEY]) as stripe:
        figure, wrong = figure_of(tmp_path, stripe, form(2, long=200), STORE=redis_url)
    with capsys.disabled():
        print(f"\n{figure}")
    assert not wrong, "\n".join([figure, *wrong])


@pytest.mark.stores
@pytest.mark.usefixtures("forgetful")
def test_the_same_over_firestore(
    tmp_path: Path, firestore_url: str, shared_firestore: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"STORE": firestore_url, "FIRESTORE_EMULATOR_HOST": shared_firestore}
    with Stripe(keys=[UPSTREAM_KEY]) as stripe:
        figure, wrong = figure_of(tmp_path, stripe, form(2, long=40), **settings)
    with capsys.disabled():
        print(f"\nfirestore: {figure}")
    assert not wrong, "\n".join([figure, *wrong])


def test_the_sandbox_does_count_the_draft_of_a_function_that_trusts_stripe_for_too_long(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.stripe.KEPT_SECONDS", LEASE)
    with Stripe(keys=[UPSTREAM_KEY]) as stripe, pair_of(tmp_path, stripe, STORE=redis_url) as pair:
        pair.kill(0, "order-1", "after-create", whole=False)
        time.sleep(LEASE + 0.1)
        assert fine(pair.call(1, "order-1"))
        assert sorted(one["status"] for one in stripe.made) == ["draft", "open"]
