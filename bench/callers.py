"""What many callers in the policy cost: the start, and each call. Every size has a process of its own.

Run as ``python -m bench.callers COUNT FORM``, it loads such a policy and says how many seconds that took; for each line
that it is then given it makes a batch of calls, each by another caller, and says the median microseconds of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import stages
from bench.servers import process, said
from sandbox.__main__ import POLICY

COUNTS = (10, 1_000, 10_000)
BATCH = 400
BATCHES = 15
_SEED = 5


def policy(count: int) -> str:
    """Write the sandbox's policy with this many callers, each with a key and grants of its own."""
    head, _, caller = POLICY.read_text("utf-8").partition("  demo-app:\n")
    before, _, after = caller.partition("sha256: ")
    after = after[64:]
    return head + "".join(
        f"  app-{number}:\n{before}sha256: {hashlib.sha256(_key(number).encode()).hexdigest()}{after}"
        for number in range(count)
    )


def measure() -> dict[str, dict[str, float]]:
    """Return, by the number of callers, the seconds that loading took and the microseconds of a call."""
    with contextlib.ExitStack() as opened:
        loaded = {}
        running = {}
        for count in COUNTS:
            print(f"  {count:,} callers are read", end="\r", flush=True)
            arguments = [sys.executable, "-m", "bench.callers", str(count)]
            running[count] = opened.enter_context(process(arguments, {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            loaded[count] = float(said(running[count]))
        laps: dict[int, list[float]] = {count: [] for count in COUNTS}
        for number in range(BATCHES):
            for count in COUNTS if number % 2 else reversed(COUNTS):
                asked = running[count].stdin
                assert asked is not None
                asked.write(b"\n")
                asked.flush()
                laps[count].append(float(said(running[count])))
        per_call = {count: statistics.median(each) for count, each in laps.items()}
        fewest = laps[COUNTS[0]]
        return {
            f"{count:,}": {
                "load_seconds": round(loaded[count], 3),
                "call_microseconds": round(per_call[count], 1),
                "ratio": round(statistics.median(a / b for a, b in zip(laps[count], fewest, strict=True)), 3),
            }
            for count in COUNTS
        }


def _key(number: int) -> str:
    return f"csk_bench_{number:06}_xxxxxxxxxxxxxxxxxxxxxxxxxxxx"


def _main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = policy(count)
        began = time.perf_counter()
        gate = stages.a_gate(Path(folder), text)
        print(time.perf_counter() - began, flush=True)
        callers = list(range(count))
        random.Random(_SEED).shuffle(callers)  # noqa: S311 - so that no two runs differ
        keys = itertools.cycle(_key(number) for number in callers)
        for _ in sys.stdin:
            laps: dict[str, list[float]] = {}
            for key in itertools.islice(keys, BATCH):
                stages.one(gate, laps, key)
            print(statistics.median(laps["all"]) * 1e6, flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
