"""The cost of many callers in the policy: of the start, and of each call. Every size has a process of its own.

``python -m bench.callers COUNT [compiled]`` loads such a policy and prints how many seconds that took. For each line of
input it then makes a batch of calls and prints the median microseconds of one. Every caller has its own grant and
response list, of equal size, and up to 200 callers call in turn.
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
from policies.model import Shape
from policies.operations.invoices_create import FIELDS
from sandbox.__main__ import POLICY

COUNTS = (10, 1_000, 10_000)
#: More than a cache of 128 holds, and each still calls more than once in a batch.
ACTIVE = 200
BATCH = 2_000
BATCHES = 15
_SEED = 5


def policy(count: int) -> str:
    """Write the sandbox's policy with this many callers, each with a key, a grant and a response list of its own."""
    head, _, caller = POLICY.read_text("utf-8").partition("  demo-app:\n")
    before, _, after = caller.partition("sha256: ")
    after = after[64:]
    scalars = [
        name for name, shape in FIELDS.items() if shape is Shape.SCALAR and "." not in name and name not in after
    ]
    return head + "".join(
        f"  app-{number}:\n{before}sha256: {hashlib.sha256(_key(number).encode()).hexdigest()}"
        + after.replace("max: 60", f"max: {60 + number}").replace("audit_id]", f"{', '.join(three)}, audit_id]")
        for number, three in enumerate(itertools.islice(itertools.combinations(scalars, 3), count))
    )


def measure() -> dict[str, dict[str, float]]:
    """Return, for each policy, the seconds that loading took and the microseconds of a call."""
    with contextlib.ExitStack() as opened:
        loaded: dict[str, float] = {}
        running: dict[str, subprocess.Popen[bytes]] = {}
        for count, compiled in [*((count, False) for count in COUNTS), (COUNTS[-1], True)]:
            name = f"{count:,}{' compiled' if compiled else ''}"
            print(f"  {name} callers are read         ", end="\r", flush=True)
            arguments = [sys.executable, "-m", "bench.callers", str(count), *(["compiled"] if compiled else [])]
            started = opened.enter_context(process(arguments, {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            if took := said(started):
                loaded[name], running[name] = float(took), started
        laps: dict[str, list[float]] = {name: [] for name in running}
        for number in range(BATCHES):
            for name in running if number % 2 else reversed(running):
                asked = running[name].stdin
                assert asked is not None
                asked.write(b"\n")
                asked.flush()
                laps[name].append(float(said(running[name])))
        fewest = next(iter(laps.values()))
        return {
            name: {
                "load_seconds": round(loaded[name], 3),
                "call_microseconds": round(statistics.median(each), 1),
                "ratio": round(statistics.median(a / b for a, b in zip(each, fewest, strict=True)), 3),
            }
            for name, each in laps.items()
        }


def _key(number: int) -> str:
    return f"csk_bench_{number:06}_xxxxxxxxxxxxxxxxxxxxxxxxxxxx"


def _main(count: int, *, compiled: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        document = stages.a_policy(Path(folder), policy(count))
        if compiled:
            document = stages.compiled(document)
        began = time.perf_counter()
        gate = stages.a_gate(document)
        print(time.perf_counter() - began, flush=True)
        callers = list(range(count))
        random.Random(_SEED).shuffle(callers)  # noqa: S311 - so that no two runs differ
        keys = itertools.cycle(_key(number) for number in callers[:ACTIVE])
        for _ in sys.stdin:
            laps: dict[str, list[float]] = {}
            for key in itertools.islice(keys, BATCH):
                stages.one(gate, laps, key)
            print(statistics.median(laps["all"]) * 1e6, flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), compiled="compiled" in sys.argv)
