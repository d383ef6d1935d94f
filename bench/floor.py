"""The floor: the cost of the policy layer, in figures that do not depend on the speed or the load of a machine.

Two, since each detects what the other does not:

- ``bytecodes``: the instructions that Python executes for one call, and its calls into C. They are counted, not timed,
  so they are the same on every machine with the same Python and the same libraries.
- ``ratio``: the time of one call relative to a reference, fixed work of the same kind, measured alternately in one
  process. It also detects C code that has become slower. From one CPU model to another it differs by a sixth, since one
  hashes faster and another jumps faster; so ``cpu`` says which it was.

``make floor`` writes the current figures. Tests hold the policy layer to them: to the counts wherever they run, to the
ratio at the end of ``make bench``.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import platform
import re
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from bench import stages
from sandbox.__main__ import POLICY

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

FLOOR: Final = Path(__file__).with_name("floor.json")
#: How far a call's cost may be above or below that of the file. A lower cost must be written to the file. This leaves
#: room for a library's patch release, and none for 15 %.
TOLERANCE: Final = 0.05
#: The same for the ratio of two times, which is not exact.
TIMED_TOLERANCE: Final = 0.075

TURNS: Final = 600
WINDOWS: Final = 7
_HERE: Final = str(Path(__file__).parent)


def version() -> str:
    """Return the Python version of the counts: each compiles the same code to other instructions."""
    return ".".join(platform.python_version_tuple()[:2])


def count(call: Callable[[], object]) -> dict[str, int]:
    """Return the bytecodes and the calls into C of one ``call``, the benchmark's own left out."""
    for _ in range(20):  # fill caches and let Python specialize
        call()
    return {"bytecodes": _bytecodes(call), "c_calls": _c_calls(call)}


def _bytecodes(call: Callable[[], object]) -> int:
    counted = 0
    if sys.version_info >= (3, 12):
        monitoring = sys.monitoring

        def instruction(code: CodeType, _: int) -> None:
            nonlocal counted
            counted += not code.co_filename.startswith(_HERE)

        monitoring.use_tool_id(monitoring.PROFILER_ID, "floor")
        monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.INSTRUCTION, instruction)
        monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.INSTRUCTION)
        try:
            call()
        finally:
            monitoring.set_events(monitoring.PROFILER_ID, 0)
            monitoring.free_tool_id(monitoring.PROFILER_ID)
        return counted

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal counted
        if frame.f_code.co_filename.startswith(_HERE):
            return None
        if event == "opcode":
            counted += 1
        else:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return counted


def _c_calls(call: Callable[[], object]) -> int:
    counted = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal counted
        counted += event == "c_call" and not frame.f_code.co_filename.startswith(_HERE)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return counted


def ratio(call: Callable[[], object], reference: Callable[[], object]) -> float:
    """Return the time of ``call`` relative to ``reference``, measured alternately.

    Within a window the shortest of many counts, since a busy machine disturbs most of them. Of several windows the
    median counts, since a busy neighbour on the same core slows both for a while, but not equally.
    """
    single = _shortest(call, reference)
    # Long work is disturbed more often than short work, so both are made about equally long.
    times = max(1, round(single[1] / single[0]))

    def repeated() -> None:
        for _ in range(times):
            call()

    windows = [_shortest(repeated, reference) for _ in range(WINDOWS)]
    return statistics.median(ours / theirs for ours, theirs in windows) / times


def _shortest(*works: Callable[[], object]) -> list[float]:
    shortest = [float("inf")] * len(works)
    for _ in range(TURNS):
        for number, work in enumerate(works):
            began = time.perf_counter()
            work()
            shortest[number] = min(shortest[number], time.perf_counter() - began)
    return shortest


# ---------------------------------------------------------------- the reference


@dataclass(frozen=True, slots=True)
class _Thing:
    name: str
    value: str
    allowed: bool = True


_NAME = re.compile(r"[a-z_]+(?:\[[a-z_]+\])*")
_LOCK = threading.Lock()
_TEXT = b"customer=cus_1&description=x&metadata[order_id]=1&days_until_due=30"
_ENCODER = msgspec.json.Encoder(order="sorted")
_INVOICE = json.loads(stages.ANSWER)


def _piece(before: bytes) -> bytes:
    form: dict[str, str] = {}
    for pair in _TEXT.split(b"&"):
        name, _, value = pair.decode("ascii").partition("=")
        if not _NAME.fullmatch(name) or name in form:
            raise ValueError(name)
        form[name] = value
    things = [_Thing(name, value, allowed=len(value) < 40) for name, value in form.items()]
    with _LOCK:
        kept = {thing.name: thing.value for thing in things if thing.allowed}
    line = _ENCODER.encode({**kept, "prev": before.hex(), "kind": "reference", "milliseconds": 1})
    return hashlib.sha256(line).digest()


#: Copies, since a call's code is long and rarely loops: the reference must use the CPU's caches in the same way.
_PIECES = [FunctionType(_piece.__code__.replace(), globals()) for _ in range(4)]


def reference() -> bytes:
    """Work like a policy layer, never to be changed: parse, match, build values, decode and encode JSON, hash."""
    form = urllib.parse.urlencode(urllib.parse.parse_qsl(_TEXT.decode("ascii")))
    urllib.parse.urlsplit("https://user@host.example/a/b?" + form)
    ipaddress.ip_address("192.0.2.1")
    text = json.dumps(_INVOICE, indent=1) + datetime.fromtimestamp(1_700_000_000, UTC).isoformat()
    chain = hashlib.sha256(text.encode()).digest()
    for piece in _PIECES:
        chain = piece(chain)
    msgspec.json.decode(stages.ANSWER)
    return chain


# ---------------------------------------------------------------- ours


class _Nowhere:
    """A record that is not written: the cost of a system call is the machine's, not ours."""

    def write(self, line: bytes) -> None:
        pass


def layer(folder: Path) -> Callable[[], object]:
    """Return one call through everything but sockets and files, to be made over and over."""
    gate = stages.a_gate(stages.a_policy(folder, POLICY.read_text("utf-8")))
    gate.audit._sink = _Nowhere()  # noqa: SLF001
    return lambda: stages.one(gate, {})


def measure() -> dict[str, float | str]:
    """Return the figures of the floor for the current policy layer."""
    with tempfile.TemporaryDirectory() as folder:
        call = layer(Path(folder))
        return {**count(call), "ratio": round(ratio(call, reference), 3), "cpu": cpu_model()}


def cpu_model() -> str:
    """Return the name of this machine's CPU, as far as it tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Write the floor of this Python version, and keep those of others."""
    floors = json.loads(FLOOR.read_text()) if FLOOR.exists() else {}
    before, now = floors.get(version(), {}), measure()
    for name, value in now.items():
        print(f"{name:<10} {before.get(name, '-'):>8} -> {value}")
    floors[version()] = now
    FLOOR.write_text(json.dumps(dict(sorted(floors.items())), indent=2) + "\n")


if __name__ == "__main__":
    main()
