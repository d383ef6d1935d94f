"""Whole invoices over two instances, with one store between them, and SIGKILL at every boundary of their steps.

Stripe's sandbox counts the invoices; nothing else is believed. Half of the calls come back a day later, when it has
forgotten their keys: its clock and the store's are put on.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import pytest

from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import KEPT_SECONDS, Stripe
from tests.crash.forms import SEED, form
from tests.crash.test_kills import ALTERED, CLIENTS, FASTER, LEASE, Answered, Instance, Pair, customer_of
from tests.test_issue import LINES, SENT, TARGET, TOTAL, written

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.figures

#: Of a store that was too slow, before a call was sent or between two of its steps. Firestore's emulator often is.
SLOW: Final = ("503 store-unavailable", "504 outcome-unknown")
#: One kill in so many takes the whole instance, which is slow to start anew; the others take the process that answers.
WHOLE: Final = 50


def around(*steps: str) -> Iterator[str]:
    """Name the ends of a step: before it was sent, after its last byte, and after its answer came."""
    return (f"{when}-{step}" for step in steps for when in ("before", "during", "after"))


#: Where a call dies, and where it dies before that, so that it gets there: one that comes back looks, and deletes a
#: draft whose lines may have been sent.
DEATHS: Final = (
    *((point,) for point in ("before-claim", "after-claim", "before-settle", "after-settle")),
    *((point,) for point in around("create", "lines", "count", "finalize", "send")),
    *((f"{when}-writing-{step}",) for step in ("lines", "finalize", "send") for when in ("before", "after")),
    *(("before-lines", point) for point in around("look", "delete")),
)
#: The same of a call that seeks its draft by its stamp, since Stripe has forgotten the key.
SOUGHT: Final = tuple(("during-create", point) for point in around("find"))
#: More lines than one answer shows, so that they are counted. They come to the same.
MANY: Final = {f"lines[{number}][amount]": str(4000 if number else TOTAL - 10 * 4000) for number in range(11)}


class Issuing(Instance):
    """An instance that is asked for whole invoices."""

    target: ClassVar[str] = TARGET

    def form_of(self, key: str) -> dict[str, str]:
        """Return what the call that has this key sends."""
        call = {name: value for name, value in SENT.items() if name not in LINES}
        return {**call, **(MANY if "count" in key else LINES), "customer": customer_of(key)}


@dataclass(frozen=True)
class Call:
    """A call, and where it dies."""

    key: str
    deaths: tuple[str, ...]
    late: bool
    """Whether it comes back when Stripe has forgotten its key."""


def calls_of(times: int) -> list[Call]:
    """Return a call for each time that one dies at each point. Half come back late, and all that seek their draft."""
    names = list(CLIENTS)
    return [
        Call(
            f"{names[(place + number) % len(names)]}-{deaths[-1]}-{number}",
            deaths,
            late=deaths in SOUGHT or (place + number) % 2 == 1,
        )
        for number in range(times)
        for place, deaths in enumerate(DEATHS + SOUGHT)
    ]


class World:
    """Two instances before Stripe, with a clock that can be put on for all of them."""

    def __init__(self, folder: Path, stripe: Stripe, **settings: str) -> None:
        (folder / "key").write_text(UPSTREAM_KEY)
        self._stripe, self._ahead, number = stripe, folder / "ahead", count()
        self._ahead.write_text("0")
        document = folder / "policy.yaml"
        document.write_text(written(stripe, folder))
        settings = {"POLICY": str(document), "ALTERED": ALTERED, "AHEAD": str(self._ahead), **settings}
        self.pair = Pair(lambda: Issuing(folder / f"instance{next(number)}", settings))
        self._lot = random.Random(f"{SEED} issued")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.pair.__exit__(*error)

    def kill(self, call: Call, death: int) -> Call:
        """Kill one of the two over this call, at the point of this death. Return the call."""
        whole = self._lot.randrange(WHOLE) == 0
        self.pair.kill(self.pair.next(), call.key, call.deaths[death], whole=whole, again=SLOW)
        return call

    def kill_all(self, calls: Iterable[Call]) -> Iterator[Call]:
        """Have each of these calls die as often as it does. Yield those that have."""
        again = []
        for call in calls:
            self.kill(call, 0)
            if len(call.deaths) > 1:
                again.append(call)
            else:
                yield call
        time.sleep(LEASE)
        yield from (self.kill(call, 1) for call in again)

    def repeat(self, calls: Iterable[Call]) -> dict[str, int]:
        """Repeat each call as its client does, from when it is there. Return how often each was."""
        with ThreadPoolExecutor(32) as pool:
            running = {
                call.key: pool.submit(CLIENTS[call.key.partition("-")[0]].run, self.pair, call.key) for call in calls
            }
            return {key: one.result() for key, one in running.items()}

    def call(self, key: str) -> Answered | None:
        """Make a call, until the store was quick enough."""
        for _ in range(20):
            answered = self.pair.call(self.pair.next(), key)
            if answered is None or answered.told not in SLOW:
                break
            time.sleep(0.2)
        return answered

    def forget(self) -> None:
        """Let the day pass for which Stripe keeps an answer."""
        self._stripe.forward(KEPT_SECONDS)
        self._ahead.write_text(str(KEPT_SECONDS))


def figure_of(folder: Path, stripe: Stripe, times: int, **settings: str) -> tuple[str, list[str]]:
    """Kill, repeat, and count. Return what came of it in words, and whatever is wrong."""
    began, calls = time.monotonic(), calls_of(times)
    sought = [call for call in calls if call.deaths in SOUGHT]
    late = [call for call in calls if call.late and call not in sought]
    with World(folder, stripe, **settings) as world:
        for call in sought:
            world.kill(call, 0)
        back = list(world.kill_all(late))
        world.forget()
        dying = chain((world.kill(call, 1) for call in sought), world.kill_all(call for call in calls if not call.late))
        again = world.repeat(chain(back, dying))
        time.sleep(LEASE)
        with ThreadPoolExecutor(4) as pool:  # at last somebody makes each of them once more
            last = dict(zip(again, pool.map(world.call, again), strict=True))
    made: dict[str, list[dict[str, Any]]] = {call.key: [] for call in calls}
    names = {customer_of(key): key for key in made}
    for one in stripe.made:
        made[names[one["customer"]]].append(one)
    raised = {key: [one for one in mine if one["status"] != "draft"] for key, mine in made.items()}
    twice = [key for key, mine in raised.items() if len(mine) > 1]
    others = [key for key, mine in raised.items() if any(one["total"] != TOTAL for one in mine)]
    left = [key for key, mine in made.items() if any(one["status"] == "draft" for one in mine)]
    mailed = {key: sum(one.get("mailed", 0) for one in mine) for key, mine in raised.items()}
    deaths = sum(len(call.deaths) for call in calls)
    figure = (
        f"{deaths} kills, {times} at each of {len(DEATHS + SOUGHT)} boundaries of whole invoices, two instances; "
        f"{len(back + sought)} of {len(calls)} calls came back after Stripe's 24 h, {sum(again.values())} repetitions "
        f"as {', '.join(CLIENTS)} make them (every wait {FASTER} times shorter, the lease 30 times): {len(twice)} "
        f"customers with two invoices, {len(others)} with another sum, {len(left)} drafts left; "
        f"mailed {dict(sorted(Counter(mailed.values()).items()))}; {time.monotonic() - began:.0f} s"
    )
    wrong = [f"two invoices: {key}" for key in twice] + [f"another sum: {key}" for key in others]
    wrong += [f"a draft is left: {key}" for key in left]
    wrong += [f"{key}: at last {answered and answered.told}" for key, answered in last.items() if not fine(answered)]
    wrong += [f"{key} has no invoice" for key, mine in raised.items() if not mine]
    for call in calls:  # what may have been mailed is not mailed again once Stripe has forgotten that
        if mailed[call.key] != 1 and not (call.late and mailed[call.key] == 0):
            wrong.append(f"{call.key}: mailed {mailed[call.key]} times")
    return figure, wrong


def fine(answered: Answered | None) -> bool:
    return answered is not None and answered.status == 200


def test_whoever_dies_between_which_steps_a_customer_gets_one_invoice_of_the_right_sum_and_no_draft_is_left(
    tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stripe(keys=[UPSTREAM_KEY]) as stripe:
        figure, wrong = figure_of(tmp_path, stripe, form(1, long=200), STORE=redis_url)
    with capsys.disabled():
        print(f"\n{figure}")
    assert not wrong, "\n".join([figure, *wrong])


@pytest.mark.stores
def test_the_same_over_firestore(
    tmp_path: Path, firestore_url: str, shared_firestore: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"STORE": firestore_url, "FIRESTORE_EMULATOR_HOST": shared_firestore}
    with Stripe(keys=[UPSTREAM_KEY]) as stripe:
        figure, wrong = figure_of(tmp_path, stripe, form(1, long=40), **settings)
    with capsys.disabled():
        print(f"\nfirestore: {figure}")
    assert not wrong, "\n".join([figure, *wrong])


def test_the_sandbox_does_count_the_draft_of_a_function_that_trusts_stripe_for_too_long(
    tmp_path: Path, redis_url: str
) -> None:
    with Stripe(keys=[UPSTREAM_KEY]) as stripe, World(tmp_path, stripe, STORE=redis_url) as world:
        world.kill(Call("order-1", ("after-create",), late=True), 0)
        stripe.forward(KEPT_SECONDS)  # and the function's clock is not put on
        time.sleep(LEASE)
        assert fine(world.pair.call(1, "order-1"))
        assert sorted(one["status"] for one in stripe.made) == ["draft", "open"]
