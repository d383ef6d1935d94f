"""The measurements, a section of the table each. Within a section the rows are measured in turn."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import load, stages
from bench.peers import PEERS, MissingError
from bench.servers import SLOW_CUSTOMER, SLOW_SECONDS, request
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.servers import Server, World

CONNECTIONS: Final = 8
CROWD: Final = 200

UPSTREAM, EMPTY, BARE, HAND = "upstream alone", "empty function", "bare pass-through", "hand-written"
OURS, OURS_REDIS = "Countersign, memory", "Countersign, Redis"
HAND_SECRET, MOUNTED, MANAGED = (
    "hand-written, Secret Manager",
    "Countersign, mounted key",
    "Countersign, Secret Manager",
)

Spread = dict[str, float]
Section = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Effort:
    """The amount of measurements. The default takes about five minutes."""

    rounds: int = 5
    seconds: float = 2.0
    starts: int = 7
    crowd_rounds: int = 2
    crowd_seconds: float = 4.0
    #: At least this many calls before the last measurement of memory; 0 takes the calls of the rounds.
    calls: int = 0
    peers: bool = True


def spread(values: Iterable[float]) -> Spread:
    """Return the least, the median and the most."""
    known = sorted(values)
    return {"min": round(known[0], 3), "median": round(statistics.median(known), 3), "max": round(known[-1], 3)}


def ratio(ones: list[float], others: list[float]) -> Spread:
    """Return the spread of the ratios within each round; zeros where nothing was measured, as CPU without /proc."""
    return spread([one / other for one, other in zip(ones, others, strict=True) if other] or [0])


# ---------------------------------------------------------------- throughput


def throughput(world: World, effort: Effort, left_out: dict[str, str]) -> Section:
    """Return calls a second, times and CPU of every row; a row that cannot be measured goes into ``left_out``."""
    with contextlib.ExitStack() as opened:
        servers = _everybody(world, opened, effort, left_out)
        seen: dict[str, _Seen] = {name: _Seen() for name in servers}
        for number in range(effort.rounds):
            for name in _in_turn(servers, number):
                print(f"  round {number + 1} of {effort.rounds}: {name:<30}", end="\r", flush=True)
                seen[name].add(servers[name], effort.seconds)
        for name in (HAND, OURS):
            while seen[name].calls < effort.calls:
                print(f"  {seen[name].calls} of {effort.calls} calls: {name:<30}", end="\r", flush=True)
                took = load.run(servers[name].port, servers[name].call, connections=CONNECTIONS, seconds=effort.seconds)
                seen[name].calls += len(took)
            seen[name].memory.append((seen[name].calls, servers[name].megabytes))
    return {name: each.row(seen) for name, each in seen.items()}


def _everybody(
    world: World, opened: contextlib.ExitStack, effort: Effort, left_out: dict[str, str]
) -> dict[str, Server]:
    function = world.function
    servers = {UPSTREAM: world.upstream}
    for name, program in ((EMPTY, "empty"), (BARE, "bare"), (HAND, "handwritten"), (OURS, "countersign")):
        servers[name] = opened.enter_context(function(program))
    redis = RedisServer(world.folder)
    try:
        redis.start()
    except FileNotFoundError as error:
        left_out[OURS_REDIS] = str(error)
    else:
        opened.callback(redis.stop)
        servers[OURS_REDIS] = opened.enter_context(function("countersign", {"STORE": redis.url}))
    for name, peer in PEERS.items() if effort.peers else ():
        try:
            servers[name] = opened.enter_context(peer(world))
        except MissingError as error:
            left_out[name] = str(error)
    for name, server in list(servers.items()):
        print(f"  waiting for {name:<30}", end="\r", flush=True)
        try:
            load.once(server.port, server.call)
            load.run(server.port, server.call, connections=CONNECTIONS, seconds=effort.seconds / 2)
        except (OSError, RuntimeError) as error:
            if name not in PEERS:
                raise
            left_out[name] = f"does not work here: {error}"
            del servers[name]
    return servers


class _Seen:
    """The measurements of one row, round by round."""

    def __init__(self) -> None:
        self.calls = 0
        self.memory: list[tuple[int, float]] = []
        self.rates: list[float] = []
        self._p50: list[float] = []
        self._p99: list[float] = []
        self.cpu: list[float] = []

    def add(self, server: Server, seconds: float) -> None:
        before = server.cpu_seconds
        took = load.run(server.port, server.call, connections=CONNECTIONS, seconds=seconds, warm=0)
        self.cpu.append(1000 * (server.cpu_seconds - before) / len(took))
        self.calls += len(took)
        self.memory.append((self.calls, round(server.megabytes, 1)))
        self.rates.append(len(took) / seconds)
        self._p50.append(1000 * statistics.median(took))
        self._p99.append(1000 * sorted(took)[len(took) * 99 // 100])

    def row(self, seen: dict[str, _Seen]) -> dict[str, Any]:
        return {
            "calls_per_second": spread(self.rates),
            "of_hand_written": ratio(self.rates, seen[HAND].rates),
            "of_bare": ratio(self.rates, seen[BARE].rates),
            "of_empty": ratio(self.rates, seen[EMPTY].rates),
            "of_memory": ratio(self.rates, seen[OURS].rates),
            "p50_milliseconds": spread(self._p50),
            "p99_milliseconds": spread(self._p99),
            "cpu_milliseconds": spread(self.cpu),
            "cpu_of_empty": ratio(self.cpu, seen[EMPTY].cpu),
            "megabytes_after_calls": self.memory,
        }


# ---------------------------------------------------------------- start


def start(world: World, effort: Effort) -> Section:
    """Return the milliseconds from a process's start to its first invoice, and its memory then.

    Ours reads its policy as ``deploy/deploy`` sends it, compiled.
    """
    (world.folder / "key").write_text(UPSTREAM_KEY)
    mounted = stages.compiled(Path(world.policy("mounted.yaml", f"file:{world.folder / 'key'}")))
    managed = stages.compiled(Path(world.policy("managed.yaml")))
    kinds: dict[str, tuple[str, dict[str, str]]] = {
        EMPTY: ("empty", {}),
        HAND: ("handwritten", {}),
        HAND_SECRET: ("handwritten_secret", {}),
        MOUNTED: ("countersign", {"POLICY": str(mounted)}),
        MANAGED: ("countersign", {"POLICY": str(managed)}),
    }
    took: dict[str, list[float]] = {name: [] for name in kinds}
    memory: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(-1, effort.starts):  # the first round warms the disk and compiles, and does not count
        for name in _in_turn(kinds, number):
            print(f"  start {max(number, 0) + 1} of {effort.starts}: {name:<30}", end="\r", flush=True)
            program, settings = kinds[name]
            began = time.perf_counter()
            with world.function(program, settings) as server:
                load.once(server.port, server.call)
                if number >= 0:
                    took[name].append(1000 * (time.perf_counter() - began))
                    memory[name].append(server.megabytes)
    return {
        name: {
            "milliseconds": spread(took[name]),
            "of_empty": ratio(took[name], took[EMPTY]),
            "of_hand_written_with_secret_manager": ratio(took[name], took[HAND_SECRET]),
            "megabytes": spread(memory[name]),
            "megabytes_of_hand_written": ratio(memory[name], memory[HAND]),
            "megabytes_of_hand_written_with_secret_manager": ratio(memory[name], memory[HAND_SECRET]),
        }
        for name in kinds
    }


# ---------------------------------------------------------------- a crowd


def crowd(world: World, effort: Effort) -> Section:
    """Return the throughput of 200 calls at once on a slow upstream, with as many threads as calls."""
    programs = {BARE: "bare", HAND: "handwritten", OURS: "countersign"}
    call = request(SLOW_CUSTOMER)
    took: dict[str, list[list[float]]] = {name: [] for name in programs}
    memory: dict[str, list[float]] = {name: [] for name in programs}
    with contextlib.ExitStack() as opened:
        servers = {n: opened.enter_context(world.function(program, threads=CROWD)) for n, program in programs.items()}
        for server in servers.values():
            load.once(server.port, server.call)
            load.run(server.port, call, connections=CROWD, seconds=0.5, warm=1)
        for number in range(effort.crowd_rounds):
            for name in _in_turn(programs, number):
                print(
                    f"  {CROWD} at once, round {number + 1} of {effort.crowd_rounds}: {name:<30}", end="\r", flush=True
                )
                port = servers[name].port
                took[name].append(load.run(port, call, connections=CROWD, seconds=effort.crowd_seconds, warm=1))
                memory[name].append(servers[name].megabytes)
    limit = CROWD / SLOW_SECONDS
    return {
        name: {
            "calls_per_second": spread(len(each) / effort.crowd_seconds for each in took[name]),
            "of_limit": spread(len(each) / effort.crowd_seconds / limit for each in took[name]),
            "p50_milliseconds": spread(1000 * statistics.median(each) for each in took[name]),
            "p99_milliseconds": spread(1000 * sorted(each)[len(each) * 99 // 100] for each in took[name]),
            "megabytes": spread(memory[name]),
        }
        for name in programs
    }


def _in_turn(names: Iterable[str], number: int) -> list[str]:
    """Reverse the order in every other round, so that no row always follows the same one."""
    ordered = list(names)
    return ordered[::-1] if number % 2 else ordered
