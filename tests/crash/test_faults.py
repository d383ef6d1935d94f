"""Every fault on the way to the upstream, to Redis and to Secret Manager: who is told what, and what there is of it.

A row is a fault, where it strikes and how often; ``due`` says what its caller may be told, and how many invoices there
are then. The same key is sent again once all is well.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

import pytest

from sandbox.__main__ import ROOT, SECRET, UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from sandbox.stripe import Stripe
from tests.conftest import launch, policy
from tests.crash.counting import NOTHING_CREATED, NOTHING_SENT, created, sent
from tests.crash.forms import SEED, form
from tests.crash.proxy import FAULTS, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sandbox.secret_manager import SecretManager
    from sandbox.upstream import Upstream
    from tests.conftest import Server

pytestmark = pytest.mark.figures

ROUNDS: Final = form(1, long=2)
#: A fault that outlasts the call.
ALWAYS: Final = 99
#: Seconds for one call, of 25, so that what waits in vain does so for less long; a lease is longer, as ever.
CALL_SECONDS, LEASE = 4.0, 6
SHORT: Final = {"gateway.record.CALL_SECONDS": CALL_SECONDS, "policies.idempotency.LEASE": LEASE}
ALTERED: Final = Path(__file__).with_name("altered.py")
UPSTREAMS: Final[dict[str, type[Appgregator | Stripe]]] = {"appgregator": Appgregator, "stripe": Stripe}
#: For which a key is used before it is read again, of 60 s: each call reads it.
FRESH_SECONDS: Final = 0.2
#: For a step of Redis, of 0.4 s: a machine that stands still for so long would be taken for a fault.
STEP_SECONDS: Final = 0.8
SLOWER: Final = {"gateway.stores.connecting.Client.STEP": STEP_SECONDS}
TRIES: Final = 5

Told = tuple[str, int]
"""An answer in short, and how many invoices there are when it is given."""

DONE: Final = ("200 created", 1)
UNKNOWN, PENDING = "424 outcome-unknown", "504 outcome-unknown"


class Row(NamedTuple):
    fault: str
    times: int
    skip: int = 0
    """How many requests pass before."""


def at_upstream(kind: str, row: Row) -> set[Told]:
    """Return what may be told of a fault between us and the upstream."""
    if row.fault == "refused":
        return {("503 upstream-unreachable", 0)}
    made = 0 if row.fault == "reset_before" else 1
    if kind == "appgregator":
        return {(UNKNOWN, made)}
    takes_all_time = row.fault in {"stalled", "late", "trickle"}
    return {(PENDING, made)} if takes_all_time or row.times == ALWAYS else {DONE}


def at_redis(_kind: str, row: Row) -> set[Told]:
    """Return what may be told of a fault at the claim (nothing is skipped) or at the settlement."""
    if row.skip:
        return {DONE}  # what was raised is told, whatever the ledger says; it is owed
    # One loss is repaired within the call. An answer that trickles is as lost as one that never comes.
    return {DONE} if row.times == 1 and row.fault != "refused" else {("503 store-unavailable", 0)}


def at_secret_manager(kind: str, row: Row) -> set[Told]:
    """Return what may be told of a fault at the reading of the key: with one that was read before, nothing."""
    if kind == "kept":
        return {DONE}
    refused = ("503 secret-unavailable", 0)
    # Google's client repeats what is lost at once, as long as there is time.
    return {refused} if row.times == ALWAYS else {refused, DONE}


class Leg(NamedTuple):
    """Our way to one of the three."""

    server: Server
    proxy: Proxy
    upstream: Upstream
    kind: str


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def told(answer: tuple[int, Mapping[str, str], bytes]) -> str:
    status, _, body = answer
    return f"{status} {json.loads(body).get('reason', 'created')}"


def call(leg: Leg, order: str) -> tuple[int, dict[str, str], bytes]:
    body = f"customer=cus_1&metadata[order_id]={order}".encode()
    return leg.server.call(body=body, headers={"Idempotency-Key": order}, timeout=60)


@dataclass
class Found:
    """What came of all the faults."""

    counts: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Faults during which nobody came by."""
    wrong: list[str] = field(default_factory=list)


def strike(leg: Leg, row: Row, order: str, due: set[Told], found: Found) -> None:
    """Make one call under a fault, and bring it back once all is well."""
    time.sleep(FRESH_SECONDS)
    leg.proxy.spoil(row.fault, row.times, skip=row.skip)
    answer = call(leg, order)
    spoilt = leg.proxy.heal()
    time.sleep(0.3)  # what is late has arrived by then
    made, came = created(leg.upstream)[order], sent(leg.upstream)[order]
    text = answer[2].decode()
    if not spoilt:
        found.missed += 1  # the client waits for a while before it connects again
    found.counts[f"{row.fault:<12} {leg.kind:<11} {told(answer)}, {made} made"] += 1
    where = f"{leg.kind} {row} {order}"
    if (told(answer), made) not in due:
        found.wrong.append(f"{where}: {told(answer)} and {made} invoices, where {due} was due")
    if (NOTHING_SENT.search(text) and came) or (NOTHING_CREATED.search(text) and made):
        found.wrong.append(f"{where}: {made} invoices of {came} calls, and was told: {text}")
    last = answer
    for _ in range(TRIES):
        last = call(leg, order)
        if last[0] in {200, 424}:
            break
        time.sleep(1.1)
    expected = UNKNOWN if told(answer) == UNKNOWN else "200 created"
    if told(last) != expected:
        found.wrong.append(f"{where}: at last {told(last)}, where {expected} was due")
    if (made := created(leg.upstream)[order]) != (1 if last[0] == 200 else made):
        found.wrong.append(f"{where}: at last {told(last)}, and {made} invoices")


def storm(legs: list[Leg], rows: list[Row], which: str, due_at: Callable[[str, Row], set[Told]]) -> None:
    """Let all rows strike on all legs at once, one after another on each; print and judge."""
    found = Found()

    def run(leg: Leg) -> None:
        call(leg, "first")  # the connections are there, and what is loaded once
        mine = rows * ROUNDS
        random.Random(f"{SEED} {which} {leg.kind}").shuffle(mine)
        for number, row in enumerate(mine):
            strike(leg, row, f"{leg.kind}-{number}", due_at(leg.kind, row), found)

    with ThreadPoolExecutor(len(legs)) as pool:
        list(pool.map(run, legs))
    twice = sum(times > 1 for leg in legs for times in created(leg.upstream).values())
    figure = (
        f"{found.counts.total() - found.missed} faults on the way to {which}: {twice} keys with two invoices, "
        f"{len(found.wrong)} wrongly told"
    )
    print(f"\n{figure}", *(f"  {count:3} {row}" for row, count in sorted(found.counts.items())), sep="\n")
    assert found.missed <= found.counts.total() // 4, f"{figure}: {found.missed} struck nobody"
    assert not twice, figure
    assert not found.wrong, "\n".join([figure, *found.wrong])


@contextlib.contextmanager
def launched(place: Path, document: str, altered: Mapping[str, float], **settings: str) -> Iterator[Server]:
    """Start the function with other times."""
    place.mkdir()
    settings |= {"PYTHONPATH": str(ROOT), "ALTERED": json.dumps(altered)}
    server = launch(place, document, wait=True, source=ALTERED, **settings)
    try:
        yield server
    finally:
        server.stop()


def document(folder: Path, origin: str, kind: str) -> str:
    """Return a policy whose upstream key is mounted."""
    (folder / "key").write_text(UPSTREAM_KEY)
    text = policy(origin, secret=f"file:{folder / 'key'}", idempotency="required")
    return text.replace("upstream: appgregator", f"upstream: {kind}")


def test_whatever_befalls_a_call_on_its_way_to_the_upstream(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        legs = []
        for kind, maker in UPSTREAMS.items():
            upstream = stack.enter_context(maker(keys=[UPSTREAM_KEY]))
            proxy = stack.enter_context(Proxy(port_of(upstream.origin), mark=b"POST ", seed=SEED))
            origin = f"http://127.0.0.1:{proxy.port}"
            server = stack.enter_context(launched(tmp_path / kind, document(tmp_path, origin, kind), SHORT))
            legs.append(Leg(server, proxy, upstream, kind))
        rows = [Row(fault, times) for fault in FAULTS for times in (1, ALWAYS)]
        storm(legs, rows, "the upstream", at_upstream)


def test_whatever_befalls_a_call_on_its_way_to_redis(tmp_path: Path, redis_url: str) -> None:
    with contextlib.ExitStack() as stack:
        legs = []
        for kind, maker in UPSTREAMS.items():
            upstream = stack.enter_context(maker(keys=[UPSTREAM_KEY]))
            proxy = stack.enter_context(Proxy(port_of(redis_url), mark=b"EVALSHA", seed=SEED))
            text, store = document(tmp_path, upstream.origin, kind), f"redis://127.0.0.1:{proxy.port}/0"
            server = stack.enter_context(launched(tmp_path / kind, text, SLOWER, STORE=store))
            legs.append(Leg(server, proxy, upstream, kind))
        rows = [Row(fault, times, skip) for fault in FAULTS for times in (1, 2, ALWAYS) for skip in (0, 1)]
        # A refusal has no moment: what was connected is reset, and nobody is let in.
        rows = [row for row in rows if row.fault != "refused" or (row.skip, row.times) == (0, 1)]
        storm(legs, rows, "Redis", at_redis)


def test_whatever_befalls_a_call_on_its_way_to_secret_manager(tmp_path: Path, secret_manager: SecretManager) -> None:
    with contextlib.ExitStack() as stack:
        legs = []
        for kind, good in {"kept": 3600.0, "first": FRESH_SECONDS}.items():
            upstream = stack.enter_context(Appgregator(keys=[UPSTREAM_KEY]))
            proxy = stack.enter_context(Proxy(int(secret_manager.address.rpartition(":")[2]), seed=SEED))
            altered = {"FRESH_SECONDS": FRESH_SECONDS, "PAUSE_SECONDS": 0.5, "LAST_GOOD_SECONDS": good}
            server = launched(
                tmp_path / kind,
                policy(upstream.origin, secret=f"{SECRET}/versions/latest"),
                {f"gateway.secrets.{name}": seconds for name, seconds in altered.items()},
                SECRET_MANAGER_ENDPOINT=f"127.0.0.1:{proxy.port}",
            )
            legs.append(Leg(stack.enter_context(server), proxy, upstream, kind))
        storm(
            legs, [Row(fault, times) for fault in FAULTS for times in (1, ALWAYS)], "Secret Manager", at_secret_manager
        )
