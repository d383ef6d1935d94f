"""A cold instance that gets its first calls all at once: all that is done for the first time, many threads do at once.

Its threads dawdle (``tests.crash.dawdling``), so that they meet. What can be told from outside must be as if one call
came after the other.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import pytest

from console.audit import verify
from gateway.signing import new_key, text_of
from policies import compiled, document
from sandbox.__main__ import ROOT, SECRET
from sandbox.google import AUDIENCE
from tests.crash.counting import created
from tests.crash.first_calls import AFFORDED, FEW, STRIPE_SECRET, TOGETHER, Answered, Call, World, at_once, calls
from tests.crash.forms import SEED, form
from tests.gateway.test_signals import children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sandbox.google import Google
    from sandbox.secret_manager import SecretManager
    from tests.conftest import Server

pytestmark = pytest.mark.figures

STARTS, BROKEN_OFF_STARTS = form(2, long=25), form(1, long=25)
AT_ONCE: Final = 40
DAWDLING: Final = ROOT / "tests" / "crash" / "dawdling.py"
ROTATED: Final = "sandbox-upstream-key-2"
#: Seconds from one policy document to the next.
CHANGE_SECONDS: Final = 0.05
#: What a caller may be told when the process ends, too.
BROKEN_OFF: Final = {0, 424, 503, 504}
PAIR: Final = new_key()


@pytest.fixture
def world(google: Google, secret_manager: SecretManager) -> Iterator[World]:
    made = World(google, secret_manager)
    with made.appgregator, made.stripe:
        yield made


@pytest.fixture
def start(server: Callable[..., Server], world: World, tmp_path: Path) -> Callable[..., Server]:
    """Start the function with everything in use; POLICY names its policy."""
    (tmp_path / "record.pem").write_text(text_of(PAIR))

    def started(*, wait: bool, **settings: str) -> Server:
        told = {
            "AUDIENCE": AUDIENCE,
            "GOOGLE_CERTS_ENDPOINT": world.google.address,
            "RECORD_KEY": f"file:{tmp_path / 'record.pem'}",
            "PYTHONPATH": str(ROOT),
            "PYTHONFAULTHANDLER": "1",
            "THREADS": "80",
        }
        return server(wait=wait, source=DAWDLING, **told, **settings)

    return started


def written(policy: dict[str, Any], *, compile_it: bool) -> bytes:
    """Write a policy: JSON is YAML."""
    text = json.dumps(policy)
    return compiled.write(document.read(text, "policy.yaml")) if compile_it else text.encode()


@contextmanager
def changing(world: World, file: Path, policy: dict[str, Any]) -> Iterator[None]:
    """Meanwhile, change the policy again and again, and the upstreams' key once."""
    over = threading.Event()

    def change() -> None:
        for number in range(1_000_000):
            if over.wait(CHANGE_SECONDS):
                return
            next(iter(policy["callers"].values()))["owner"] = f"tests {number}"
            new = file.with_name("new")
            new.write_bytes(written(policy, compile_it=True))
            new.replace(file)
            if number == 20:  # the first calls are under way, or about to be
                world.give(SECRET, STRIPE_SECRET, key=ROTATED)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        world.give(SECRET, STRIPE_SECRET)


def worker_of(running: Server) -> int:
    """Return the process that answers, once there is one."""
    deadline = time.monotonic() + 60
    while not (found := children(running.process.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    (worker,) = found
    return worker


def wrong_with(asked: Sequence[Call], first: Sequence[Answered], again: Sequence[Answered]) -> Iterator[str]:
    """Say what is wrong with the answers to calls that were made twice."""
    for call, one, two in zip(asked, first, again, strict=True):
        for which, answer in (("first", one), ("again", two)):
            if answer.status not in call.allowed:
                yield f"{which}, {call.kind}: {answer}"
            if call.headers and "countersign-audit-id" not in answer.headers:
                yield f"{which}, {call.kind}: no audit id: {answer}"
        if call.kept and one.status == 200 and not replayed(one, two):
            yield f"{call.kind}: {one} is not given again: {two}"
    for kind, most in (("few", FEW), ("poor", AFFORDED)):
        fits = Counter(one.status == 200 for call, one in zip(asked, first, strict=True) if call.kind == kind)
        if fits[True] != min(most, fits.total()):
            yield f"{fits[True]} of {fits.total()} of {kind} fit, not {most}"


def replayed(one: Answered, two: Answered) -> bool:
    """Whether an answer is given again, which says so."""
    if two.headers.get("idempotent-replayed") != "true":
        return False
    contents = [{**json.loads(answer.body), "replayed": True} for answer in (one, two)]
    return contents[0] == contents[1]


def answered(asked: Sequence[Call], answers: Sequence[Answered]) -> set[str]:
    """Return the orders whose callers got an invoice."""
    return {call.order for call, answer in zip(asked, answers, strict=True) if call.order and answer.status == 200}


def invoices(world: World, asked: Sequence[Call]) -> dict[str, int]:
    """Return how many invoices there are of each order of these calls."""
    made = created(world.appgregator) + created(world.stripe)
    return {order: made[order] for order in {call.order for call in asked} if made[order]}


def wrong_with_record(running: Server, answers: Sequence[Answered]) -> list[str]:
    """Say what is wrong with the record of a server that was stopped in order."""
    ids = [answer.headers.get("countersign-audit-id", "") for answer in answers]
    lines = running.record.text().splitlines()
    report = verify(lines, [one for one in ids if one.count("-") == 1], [PAIR.public_key()])
    kinds = Counter(line["countersign"]["kind"] for line in running.record.lines())
    uneven = [] if kinds["intent"] == kinds["outcome"] else [f"{kinds}"]
    return [*report.faults, *report.doubts, *uneven, *(one for one in ids if "unwritten" in one)]


@pytest.mark.parametrize("mix", ["memory", "Redis", "stock worker", "changes"])
def test_first_calls_that_come_all_at_once_are_answered_as_one_after_the_other(
    start: Callable[..., Server], world: World, redis_url: str, tmp_path: Path, mix: str
) -> None:
    lot, file, told = random.Random(f"{SEED} {mix}"), tmp_path / "policy", Counter[int]()
    for number in range(STARTS):
        policy = world.document(lot, f"{number}")
        asked = calls(world, lot, f"{mix}-{number}".replace(" ", "-"), AT_ONCE)
        file.write_bytes(written(policy, compile_it=mix == "changes"))
        settings = {"POLICY": str(file), "STORE": redis_url if mix == "Redis" else "memory"}
        settings |= {"changes": {"POLICY_SECONDS": "0.1"}, "stock worker": {"STOCK": "1"}}.get(mix, {})
        # Every second one gets them before it takes any: they connect while the process is being made.
        running = start(wait=number % 2 == 0, **settings)
        with changing(world, file, policy) if mix == "changes" else nullcontext():
            first = at_once(running.port, asked)
            worker = worker_of(running)
            again = at_once(running.port, asked)
        assert [*wrong_with(asked, first, again)] == []
        assert worker_of(running) == worker
        running.stop()
        assert running.process.returncode == 0
        said = [line for line in running.errors.read_text().splitlines() if "is not a version that" not in line]
        assert said == []
        assert wrong_with_record(running, [*first, *again]) == []
        assert invoices(world, asked) == dict.fromkeys(answered(asked, first), 1)
        told.update(answer.status for answer in [*first, *again])
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(told.items()))
    print(f"\n{STARTS} cold starts with {AT_ONCE} first calls at once, {mix}: {statuses}; no process died")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_end_in_the_midst_of_the_first_calls_raises_nothing_twice_and_loses_no_answer(
    start: Callable[..., Server], world: World, redis_url: str, tmp_path: Path, how: signal.Signals
) -> None:
    """The process that answers is killed, and another takes its place; or the instance is told to end."""
    lot, file, told = random.Random(f"{SEED} {how.name}"), tmp_path / "policy", Counter[int]()
    for number in range(BROKEN_OFF_STARTS):
        name = f"{how.name}-{number}".lower()
        asked = calls(world, lot, name, AT_ONCE)
        file.write_bytes(written(world.document(lot, name), compile_it=False))
        running = start(wait=number % 2 == 0, POLICY=str(file), STORE=redis_url)
        before, under_way = world.reached, lot.randrange(1, 12)
        with ThreadPoolExecutor(1) as aside:
            calling = aside.submit(at_once, running.port, asked)
            while world.reached < before + under_way and not calling.done():
                time.sleep(0.001)
            time.sleep(lot.uniform(0, TOGETHER / 2))
            if how is signal.SIGKILL:
                os.kill(worker_of(running), how)
            else:
                running.process.send_signal(how)
            first = calling.result()
        told.update(answer.status for answer in first)
        for call, one in zip(asked, first, strict=True):
            assert one.status in {*call.allowed, *BROKEN_OFF}, (call, one)
        if how is signal.SIGKILL:
            again = at_once(running.port, asked)
            for call, one, two in zip(asked, first, again, strict=True):
                assert two.status in {*call.allowed, *BROKEN_OFF} - {0}, (call, one, two)
                assert not (call.kept and one.status == 200) or replayed(one, two), (call, one, two)
            running.stop()
            assert set(invoices(world, asked).values()) <= {1}
        else:
            assert running.process.wait(timeout=60) == 0
            assert wrong_with_record(running, first) == []
            heard = {call.order for call, one in zip(asked, first, strict=True) if one.status}
            assert set(invoices(world, asked).values()) <= {1}
            assert invoices(world, asked).keys() <= heard
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(told.items()))
    print(f"\n{BROKEN_OFF_STARTS} cold starts with {AT_ONCE} first calls at once, {how.name} in the midst: {statuses}")
