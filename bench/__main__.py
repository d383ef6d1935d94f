"""``make bench``: ours beside the hand-written function, in one run on one machine, and the policy layer alone.

Both run under functions-framework's production server with the same threads, against the same sandbox upstream. Their
rounds are interleaved, so that a machine that slows down slows both, and what is quoted is the ratio within a pair.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench import load, stages, stores
from sandbox.__main__ import CALLER_KEY, PLACEHOLDER, POLICY, ROOT, SECRET, UPSTREAM_KEY, command
from sandbox.ports import free_port, listening
from sandbox.secret_manager import SecretManager

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 8
ROUNDS = 7
SECONDS = 3.0
THREADS = "16"
AIM = 2.5
RESULTS = Path(__file__).with_name("results.json")

BODY = b"customer=cus_MQqeLuPp19Qbk8"
REQUEST = (
    b"POST /stripe/invoices/?name=ft-4&connection_name=stripe-1 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"x-api-key: " + CALLER_KEY.encode() + b"\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: " + str(len(BODY)).encode() + b"\r\n\r\n" + BODY
)


def main() -> None:
    """Measure, print a table, and write ``bench/results.json``."""
    print(f"{CONNECTIONS} connections, {ROUNDS} pairs of {SECONDS:.0f} s, one worker each. Under a minute.", flush=True)
    rounds = _pairs()
    print("The policy layer alone.", flush=True)
    microseconds = stages.measure()
    results = _results(rounds, microseconds) | {"store_milliseconds": stores.measure()}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    _print(results)


def _pairs() -> dict[str, list[list[float]]]:
    with contextlib.ExitStack() as world:
        folder = Path(world.enter_context(tempfile.TemporaryDirectory()))
        secret_manager = world.enter_context(SecretManager())
        secret_manager.add(SECRET, UPSTREAM_KEY.encode())
        upstream = world.enter_context(_process([sys.executable, "-m", "sandbox.appgregator", "--port=0"], {}))
        origin = _announced(upstream)
        policy = folder / "policy.yaml"
        policy.write_text(stages.roomy(POLICY.read_text("utf-8").replace(PLACEHOLDER, origin)))
        ports = {"hand-written": free_port(), "countersign": free_port()}
        hand = command(ports["hand-written"], target="handwritten", source=ROOT / "bench" / "handwritten.py")
        world.enter_context(_process(hand, {"UPSTREAM": origin, "UPSTREAM_KEY": UPSTREAM_KEY}))
        settings = {
            "POLICY": str(policy),
            "SECRET_MANAGER_ENDPOINT": secret_manager.address,
            "STORE": "memory",
            "AUDIT": f"file:{folder / 'audit.jsonl'}",
        }
        world.enter_context(_process(command(ports["countersign"]), settings))
        for port in ports.values():
            _await(port)
            load.run(port, REQUEST, connections=CONNECTIONS, seconds=1.0)
        rounds: dict[str, list[list[float]]] = {name: [] for name in ports}
        for number in range(ROUNDS):
            print(f"  pair {number + 1} of {ROUNDS}", end="\r", flush=True)
            for name in ports if number % 2 else reversed(ports):
                rounds[name].append(load.run(ports[name], REQUEST, connections=CONNECTIONS, seconds=SECONDS))
        return rounds


def _results(rounds: dict[str, list[list[float]]], microseconds: dict[str, float]) -> dict[str, object]:
    rates = {name: [len(took) / SECONDS for took in each] for name, each in rounds.items()}
    medians = {name: [statistics.median(took) for took in each] for name, each in rounds.items()}
    ours, theirs = "countersign", "hand-written"
    throughput = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
    p50 = [a / b for a, b in zip(medians[theirs], medians[ours], strict=True)]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "connections": CONNECTIONS,
        "rows": {
            name: {
                "calls_per_second": _spread(rates[name]),
                "p50_milliseconds": _spread([1000 * value for value in medians[name]]),
            }
            for name in rounds
        },
        "throughput_ratio": _spread(throughput),
        "p50_ratio": _spread(p50),
        "aim": AIM,
        "policy_microseconds": {name: round(value, 1) for name, value in microseconds.items()},
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }


def _print(results: dict[str, object]) -> None:
    rows: dict[str, dict[str, dict[str, float]]] = results["rows"]  # type: ignore[assignment]
    best = max(row["calls_per_second"]["median"] for row in rows.values())
    print(f"\n{results['date']}, {results['machine']}, Python {results['python']}: median (min - max)\n")
    for name, row in rows.items():
        rate, p50 = row["calls_per_second"], row["p50_milliseconds"]
        bar = "█" * round(40 * rate["median"] / best)
        print(f"  {name:<13}{rate['median']:>7.0f} calls/s ({rate['min']:.0f} - {rate['max']:.0f})  {bar}")
        print(f"  {'':<13}{p50['median']:>7.1f} ms p50  ({p50['min']:.1f} - {p50['max']:.1f})")
    for name in ("throughput_ratio", "p50_ratio"):
        ratio: dict[str, float] = results[name]  # type: ignore[assignment]
        verdict = "reached" if ratio["median"] >= AIM else "not reached"
        print(f"\n  {name:<17}{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f}); aim {AIM}: {verdict}")
    costs: dict[str, float] = results["policy_microseconds"]  # type: ignore[assignment]
    print("\n  Everything but sockets, microseconds at the median:\n")
    for name, cost in costs.items():
        print(f"  {name:<15}{cost:>7.1f}  {'█' * round(40 * cost / costs['all'])}")

    print("\n  A store's share of a call with a key, admitted and settled, milliseconds at the median:\n")
    shares: dict[str, float] = results["store_milliseconds"]  # type: ignore[assignment]
    for name, share in shares.items():
        print(f"  {name:<15}{share:>8.3f}  {'█' * round(40 * share / max(shares.values()))}")


@contextlib.contextmanager
def _process(arguments: list[str], settings: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    environ = os.environ | {"THREADS": THREADS} | settings
    process = subprocess.Popen(arguments, cwd=ROOT, env=environ, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=15)
        if process.stdout is not None:
            process.stdout.close()


def _announced(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().rpartition(" ")[2].strip()


def _await(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if listening(port):
            return
        time.sleep(0.05)
    raise SystemExit("a server did not start; its own words, if any, stand above")


if __name__ == "__main__":
    main()
