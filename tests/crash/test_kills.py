"""Two instances behind one address, one store between them, and SIGKILL at every point of a call.

The upstream counts the invoices, and looks for each call's intent in the record at the moment the call arrives;
nothing else is believed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import BadStatusLine, HTTPConnection
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import pytest
import redis

from console.__main__ import main as operator
from console.audit import verify
from gateway.stores.redis import Redis
from policies.idempotency import SHORT, identity
from sandbox.__main__ import ROOT, UPSTREAM_KEY, command
from sandbox.appgregator import Appgregator
from sandbox.ports import free_port, listening
from sandbox.stripe import Stripe
from sandbox.upstream import Upstream
from tests.conftest import FORM, KEY, TARGET, policy
from tests.crash.counting import created, order_of, sent
from tests.crash.forms import SEED, form

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from sandbox.server import Answer, Head

pytestmark = pytest.mark.figures

KILLABLE = Path(__file__).with_name("killable.py")
#: Seconds that a dead call's key is held for; 30 in production.
LEASE = 1
#: How an instance's times differ from production's. Redis has longer to answer: a machine that is busy with tests is no
#: measure of its speed.
ALTERED = json.dumps({"policies.idempotency.LEASE": LEASE, "gateway.stores.connecting.Client.STEP": 10})
KILLS_PER_POINT = form(5, long=30)
KILLS_WITH_STRIPE = form(4, long=10)
#: At each kind of upstream, of clients that repeat as they do.
KILLS_OF_CLIENTS = form(24, long=250)
#: One kill in so many takes the whole instance, supervisor and all; the others take the process that answers.
WHOLE = 3

#: What is true of a call that died at each point: (it was sent, what the ledger then holds of its key).
POINTS = {
    "before-claim": (False, "nothing"),
    "after-claim": (False, "sent"),
    "before-send": (False, "sent"),
    "during-send": (True, "sent"),
    "after-applied": (True, "sent"),
    "before-settle": (True, "sent"),
    "after-settle": (True, "answer"),
}


class Witness(Upstream):
    """An upstream of the sandbox. As each call arrives, it looks whether the call's intent is on record already."""

    def __init__(self) -> None:
        super().__init__(keys=[UPSTREAM_KEY])  # type: ignore[call-arg]  # of the upstream that a subclass names
        self.records: list[Path] = []
        self.unrecorded: list[str] = []
        self._read: Counter[Path] = Counter()
        self._intents: set[str] = set()

    def _answer(self, connection: int, head: Head, body: bytes) -> Answer:
        order = order_of(body)
        if order not in self._intents:
            for record in tuple(self.records):
                self._read_on(record)
        if order not in self._intents:
            self.unrecorded.append(order)
        return super()._answer(connection, head, body)

    def _read_on(self, record: Path) -> None:
        if not record.exists():
            return
        with record.open("rb") as file:
            file.seek(self._read[record])
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._read[record] += len(line)
                content = json.loads(line)["countersign"]
                if content["kind"] == "intent":
                    self._intents.add(content["values"]["metadata[order_id]"])


class WitnessAppgregator(Witness, Appgregator):
    """Makes an invoice of every call."""


class WitnessStripe(Witness, Stripe):
    """Answers a call whose key it knows with the first one's invoice."""


@dataclass(frozen=True)
class Answered:
    """What a caller got; ``came`` is when, on this process's clock."""

    status: int
    reason: str | None
    replayed: bool
    body: bytes
    came: float

    @property
    def told(self) -> str:
        """The answer in one word."""
        return f"{self.status} {'replay' if self.replayed else self.reason or 'created'}"

    @property
    def first(self) -> bytes:
        """The body as the first call had it: a replay says that it is one."""
        return self.body.removesuffix(b',"replayed":true}') + b"}" if self.replayed else self.body


def customer_of(key: str) -> str:
    """Return the customer of the call that has this key, and of no other."""
    return f"cus_{key.replace('-', '')}"


@dataclass
class Instance:
    """One instance: the framework's supervisor, and the process under it that answers."""

    target: ClassVar[str] = TARGET
    """Where its calls go."""

    folder: Path
    settings: dict[str, str]
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.armed = self.folder / "armed"
        self.armed.mkdir()
        self.record, self.errors = self.folder / "audit.jsonl", self.folder / "stderr"
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "AUDIT": f"file:{self.record}",
            "CRASH": str(self.armed),
            "THREADS": "4",
            **self.settings,
        }
        with self.errors.open("wb") as out:
            self.process = subprocess.Popen(
                command(self.port, source=KILLABLE), cwd=ROOT, env=environ, stdout=out, stderr=out
            )

    @property
    def ready(self) -> bool:
        """Whether it takes calls."""
        return self.process.poll() is None and listening(self.port)

    def form_of(self, key: str) -> dict[str, str]:
        """Return what the call that has this key sends."""
        return {"customer": customer_of(key), "metadata[order_id]": key}

    def call(self, key: str) -> Answered | None:
        """Make the call that has this key; None if the instance died over it."""
        body = "&".join(f"{name}={value}" for name, value in self.form_of(key).items())
        headers = {"Content-Type": FORM, "x-api-key": KEY, "Idempotency-Key": key}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", self.target, body, headers)
            response = connection.getresponse()
            content = response.read()
        except (ConnectionError, BadStatusLine):
            return None
        finally:
            connection.close()
        replayed = response.getheader("Idempotent-Replayed") == "true"
        reason = json.loads(content).get("reason")
        return Answered(response.status, reason, replayed, content, time.monotonic())

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pair:
    """Two instances of one function, called in turn. One that dies is replaced by one that was started ahead."""

    def __init__(self, start: Callable[[], Instance]) -> None:
        self._start = start
        self.started = [start() for _ in range(4)]
        self.pair, self._spare = self.started[:2], self.started[2:]
        self._turn = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor(len(self.started)) as pool:
            list(pool.map(Instance.stop, self.started))

    def next(self) -> int:
        return next(self._turn) % 2

    def call(self, which: int, key: str) -> Answered | None:
        """Make a call to one of them, once it takes calls: it may have to be replaced first."""
        deadline = time.monotonic() + 90
        while not (instance := self.pair[which]).ready:
            assert time.monotonic() < deadline, instance.errors.read_text()
            time.sleep(0.02)
        return instance.call(key)

    def kill(self, victim: int, key: str, point: str, *, whole: bool, again: Container[str] = ()) -> None:
        """Let one of them die over this call, and see that it did, at that point.

        The call is made again after these answers.
        """
        instance = self.pair[victim]
        armed = instance.armed / key
        armed.write_text(f"{point} whole" if whole else point)
        deadline = time.monotonic() + 60
        while (answered := self.call(victim, key)) is not None and answered.told in again:
            assert time.monotonic() < deadline, f"{point}: {answered}"
            time.sleep(0.1)
        assert answered is None, f"{point}: {answered}"
        assert not armed.exists(), f"{point}: {instance.errors.read_text()}"
        if whole:
            assert instance.process.wait(timeout=60) == -signal.SIGKILL
            self.pair[victim] = self._spare.pop(0)
            self.started.append(self._start())
            self._spare.append(self.started[-1])


@dataclass
class Found:
    """What came of all the kills."""

    kills: int = 0
    whole: int = 0
    wrong: list[str] = field(default_factory=list)
    first: dict[str, bytes] = field(default_factory=dict)

    def judge(self, key: str, answered: Answered | None, *due: str) -> None:
        """Note an answer that is not one of those that are due, and a success that differs from the first."""
        if answered is None or answered.told not in due:
            self.wrong.append(f"{key}: {answered and answered.told} where {' or '.join(due)} was due")
        elif answered.status == 200 and self.first.setdefault(key, answered.first) != answered.first:
            self.wrong.append(f"{key}: the replay is not what was answered first")


def kill_at(
    point: str, pair: Pair, number: Iterator[int], times: int, found: Found, *, deduplicates: bool = False
) -> None:
    """Kill one of the two at a point, with a fresh key each time, and bring each key back, to both, for long enough."""
    keys = [f"{point}-{next(number)}" for _ in range(times)]
    for key in keys:
        victim, whole = pair.next(), found.kills % WHOLE == WHOLE - 1
        began = time.monotonic()
        pair.kill(victim, key, point, whole=whole)
        found.kills += 1
        found.whole += whole
        other = pair.call(1 - victim, key)
        late = due_at_last(point, deduplicates=deduplicates)
        found.judge(key, other, *due_at_once(point, other, began, "200 created", late))
        again = pair.call(victim, key)
        found.judge(key, again, *due_at_once(point, again, began, "200 replay", late))
    time.sleep(LEASE + 0.1)
    # Nobody is held for any more. Both instances are asked at once, and then again.
    with ThreadPoolExecutor(2) as pool:
        for key in keys * 2:
            for answered in pool.map(pair.call, (0, 1), (key, key)):
                found.judge(key, answered, *due_at_last(point, deduplicates=deduplicates))


def due_at_last(point: str, *, deduplicates: bool) -> tuple[str, ...]:
    """Return what may be answered once nobody is held for any more."""
    if POINTS[point][1] != "sent":
        return ("200 replay",)
    # Of two that are asked at once, one sends again and the other may meet it at work.
    return ("200 created", "200 replay", "503 idempotency-key-in-use") if deduplicates else ("424 outcome-unknown",)


def due_at_once(
    point: str, answered: Answered | None, began: float, fresh: str, late: tuple[str, ...]
) -> tuple[str, ...]:
    """Return what may be answered to the key of a call that has just died; ``fresh`` if it had left nothing.

    ``late`` is what may be answered once its lease is over.
    """
    held = POINTS[point][1]
    if held != "sent":
        return (fresh if held == "nothing" else "200 replay",)
    if answered is not None and answered.came < began + LEASE:
        return ("503 idempotency-key-in-use",)
    return "503 idempotency-key-in-use", *late


def pair_of(folder: Path, upstream: Witness, store: str, *, kind: str = "appgregator") -> Pair:
    """Start two instances with one policy and one store. Their key is a mounted one, which is the quickest to read."""
    (folder / "key").write_text(UPSTREAM_KEY)
    document, number = folder / "policy.yaml", count()
    text = policy(upstream.origin, secret=f"file:{folder / 'key'}", idempotency="required")
    document.write_text(text.replace("upstream: appgregator", f"upstream: {kind}"))
    settings = {"POLICY": str(document), "STORE": store, "ALTERED": ALTERED}

    def start() -> Instance:
        instance = Instance(folder / f"instance{next(number)}", settings)
        upstream.records.append(instance.record)
        return instance

    return Pair(start)


@dataclass(frozen=True)
class Client:
    """How a client of somebody else repeats a call: after these times, and after which answers.

    Sources: Zapier's, Make's and n8n's help on errors. What comes much later is what comes later here, too.
    """

    waits: tuple[float, ...]
    """Seconds before each repetition, in reality."""
    codes: frozenset[int] | None = None
    """None: whatever is not a success. A call that got no answer is repeated by all."""

    def run(self, pair: Pair, key: str) -> int:
        """Repeat a call that got no answer. Return how often."""
        for times, seconds in enumerate(self.waits, 1):
            time.sleep(seconds / FASTER)
            answered = pair.call(pair.next(), key)
            if answered is not None and (
                answered.status == 200 or (self.codes is not None and answered.status not in self.codes)
            ):
                return times
        return len(self.waits)


#: So much shorter is every wait of a client here. A lease is 30 times shorter, so that more of them fall into one.
FASTER = 150
CLIENTS = {
    "Zapier": Client((5 * 60, 30 * 60)),
    "Make": Client((60, 10 * 60, 10 * 60), frozenset((429, 503, 504))),
    "n8n": Client((5, 5, 5, 5)),
}


@pytest.fixture
def witness() -> Iterator[Witness]:
    with WitnessAppgregator() as upstream:
        yield upstream


def test_whoever_dies_wherever_no_key_gets_two_invoices_and_nothing_is_sent_without_its_intent(
    tmp_path: Path, witness: Witness, redis_url: str
) -> None:
    found, number, began = Found(), count(1), time.monotonic()
    with pair_of(tmp_path, witness, redis_url) as pair:
        for point in POINTS:
            kill_at(point, pair, number, KILLS_PER_POINT, found)
    made, came = created(witness), sent(witness)
    twice = sorted(key for key, invoices in made.items() if invoices > 1)
    figure = (
        f"{found.kills} kills over two instances: {len(twice)} keys with two invoices, "
        f"{len(witness.unrecorded)} sends without an intent"
    )
    lines = [line for record in witness.records if record.exists() for line in record.read_text("ascii").splitlines()]
    intents = Counter(
        content["values"]["metadata[order_id]"]
        for content in (json.loads(line)["countersign"] for line in lines)
        if content["kind"] == "intent"
    )
    print(f"{figure} ({found.whole} of whole instances, {time.monotonic() - began:.0f} s)")

    assert not twice, figure
    assert not witness.unrecorded, f"{figure}: {witness.unrecorded}"
    assert not found.wrong, "\n".join([figure, *found.wrong])
    assert found.kills == KILLS_PER_POINT * len(POINTS), figure
    for point, (was_sent, held) in POINTS.items():
        expected = KILLS_PER_POINT if was_sent or held == "nothing" else 0
        assert len([key for key in came if key.startswith(point)]) == expected, f"{figure}: sends at {point}"
        assert sum(n for key, n in made.items() if key.startswith(point)) == expected, f"{figure}: at {point}"
        expected = 0 if point == "after-claim" else KILLS_PER_POINT
        assert sum(n for key, n in intents.items() if key.startswith(point)) == expected, f"{figure}: intents, {point}"
    assert verify(lines).faults == [], figure  # and whoever was killed left a record that still hangs together


def test_whoever_dies_wherever_a_call_that_is_sent_again_is_answered_with_the_one_invoice(
    tmp_path: Path, redis_url: str
) -> None:
    found, number = Found(), count(1)
    with WitnessStripe() as stripe, pair_of(tmp_path, stripe, redis_url, kind="stripe") as pair:
        for point in POINTS:
            kill_at(point, pair, number, KILLS_WITH_STRIPE, found, deduplicates=True)
    twice = sorted(key for key, invoices in created(stripe).items() if invoices > 1)
    figure = (
        f"{found.kills} kills over two instances, the upstream deduplicates: {len(twice)} keys with two invoices, "
        f"{len(stripe.unrecorded)} sends without an intent, {stripe.replays} sends answered with the first invoice"
    )
    print(f"\n{figure}")
    assert not twice, figure
    assert not stripe.unrecorded, f"{figure}: {stripe.unrecorded}"
    assert not found.wrong, "\n".join([figure, *found.wrong])
    assert len(created(stripe)) == found.kills == KILLS_WITH_STRIPE * len(POINTS), figure  # every order has its invoice
    assert stripe.replays >= KILLS_WITH_STRIPE * 2, figure


@pytest.mark.parametrize("kind", ["appgregator", "stripe"])
def test_whoever_dies_clients_that_repeat_as_they_do_raise_nothing_twice_and_nothing_open_is_lost_sight_of(
    tmp_path: Path, redis_url: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lot, whole, keys = random.Random(f"{SEED} {kind}"), 0, []
    upstream: Witness = WitnessStripe() if kind == "stripe" else WitnessAppgregator()
    with upstream, pair_of(tmp_path, upstream, redis_url, kind=kind) as pair:
        with ThreadPoolExecutor(32) as pool:
            repeating = []
            for number in range(KILLS_OF_CLIENTS):
                client, point = list(CLIENTS)[number % len(CLIENTS)], lot.choice(list(POINTS))
                keys.append(f"{client}-{point}-{number}")
                takes_all = lot.randrange(WHOLE) == 0
                whole += takes_all
                pair.kill(pair.next(), keys[-1], point, whole=takes_all)
                repeating.append(pool.submit(CLIENTS[client].run, pair, keys[-1]))
            repeated = sum(running.result() for running in repeating)
        time.sleep(LEASE + 0.1)
        # At last somebody tries each of them once more.
        with ThreadPoolExecutor(4) as pool:
            last = dict(zip(keys, pool.map(lambda key: pair.call(pair.next(), key), keys), strict=True))
    made = created(upstream)
    twice = sorted(key for key, invoices in made.items() if invoices > 1)
    unknown = {key for key, answered in last.items() if answered is not None and answered.status == 424}
    figure = (
        f"{len(keys)} kills ({whole} of whole instances) over two instances and {kind}, {repeated} repetitions as "
        f"Zapier, Make and n8n make them: {len(twice)} keys with two invoices, {len(upstream.unrecorded)} sends "
        f"without an intent, {len(unknown)} unknown"
    )
    with capsys.disabled():
        print(f"\n{figure}")
    assert not twice, f"{figure}: {twice}"
    assert not upstream.unrecorded, f"{figure}: {upstream.unrecorded}"
    for key, answered in last.items():
        assert answered is not None, f"{figure}: {key}"
        assert answered.status == 200 or key in unknown, f"{figure}: {key} at last {answered.told}"
        assert made[key] == 1 or key in unknown, f"{figure}: {key} has {made[key]} invoices"
    assert not unknown if kind == "stripe" else unknown, figure
    names = {identity("app", "ft-4", "stripe-1", "invoices.create", key)[:SHORT] for key in unknown}
    for hours in (0, 73, 31 * 24):
        monkeypatch.setattr(
            "console.ledger.ledger_of", lambda _, hours=hours: Redis(redis_url, lambda: time.time() + hours * 3600)
        )
        capsys.readouterr()
        assert operator(["ledger", "list"]) == 0
        listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " unknown " in line}
        assert listed == names, f"{figure}, after {hours} h"
    with redis.Redis.from_url(redis_url) as client_of_redis:  # Redis itself has no clock that a test moves
        lives = {
            client_of_redis.pttl(key)
            for name in names
            for key in client_of_redis.scan_iter(match=f"*ledger:{name}*", count=1000)
        }
    assert lives <= {-1}, f"{figure}: an entry that is open expires"


def test_the_upstream_does_count_the_second_invoice_of_stores_that_share_nothing(
    tmp_path: Path, witness: Witness
) -> None:
    with pair_of(tmp_path, witness, "memory") as pair:
        kill_at("after-applied", pair, count(1), 1, Found())
    assert max(created(witness).values()) > 1
