"""The record in large numbers: forgeries are found, honest exports accused of nothing, and what that costs."""

from __future__ import annotations

import io
import json
import random
import resource
import shutil
import subprocess
import time
from collections import Counter
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Any, Final

import pytest

from console.audit import verify
from gateway.chain import CHECKPOINT_SECONDS, Audit
from gateway.signing import RecordKey, new_key, text_of
from policies.refusals import PathUnknown
from sandbox.__main__ import ROOT
from tests.conftest import Clock
from tests.console.test_verify import exported, honest
from tests.crash.forms import SEED, form
from tests.gateway.conftest import Lines, granted, refused, sent
from tests.gateway.test_signing import chain_of, fitted, lines

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.figures

FORGERIES: Final = form(1500, long=10_000)
HONEST: Final = form(200, long=1000)
#: Lines of an export whose verifying is measured, and how often.
LINES: Final = form(20_000, long=1_000_000)
TIMES: Final = form(3, long=5)
#: Calls by which the cost of a checkpoint is measured.
CALLS: Final = form(4000, long=40_000)

PAIR = new_key()
PEM, PUBLIC = text_of(PAIR).encode(), PAIR.public_key()
Chain = list[dict[str, Any]]


def a_chain(lot: random.Random) -> Chain:
    """Record some calls with a checkpoint now and then; the instance ends, or is killed and has no stop line."""
    sink, clock = Lines(), Clock()
    key = RecordKey("file:k", PEM, lambda: PEM, clock)
    audit, grant = Audit(sink, policy="p" * 64, key=key, clock=clock, monotonic=clock), granted()
    for _ in range(lot.randrange(4, 16)):
        clock.tick(lot.choice([0.01, 0.4, 0.7, 2.0]))
        if lot.random() < 0.2:
            refused(audit, PathUnknown())
        else:
            sent(audit, grant)
    if lot.random() < 0.6:
        audit.close()
    return chain_of(sink)


def changed(line: dict[str, Any], lot: random.Random) -> dict[str, Any]:
    """Change one member of a line, or add one."""
    name = lot.choice([*(line.keys() - {"sequence", "prev", "hash", "audit_id", "instance"}), "added"])
    value = line.get(name)
    return line | {name: value + 1 if isinstance(value, int) else f"{value}x"}


def forge(chain: Chain, how: str, lot: random.Random) -> Chain:
    """Change a chain as a forger may, who does not sign."""
    place, other = sorted(lot.sample(range(len(chain)), 2))
    match how:
        case "edited":
            return [*chain[:place], changed(chain[place], lot), *chain[place + 1 :]]
        case "deleted":
            return [*chain[:place], *chain[lot.choice([place + 1, other]) :]]
        case "inserted":
            return [*chain[:place], changed(chain[lot.choice([place, other])], lot), *chain[place:]]
        case "swapped":
            return [*chain[:place], chain[other], *chain[place + 1 : other], chain[place], *chain[other + 1 :]]
    # The rest is made up; half of the forgers leave out the checkpoints, which they cannot sign.
    rest = [changed(line, lot) for line in chain[place:]]
    return chain[:place] + [line for line in rest if line["kind"] != "checkpoint" or lot.random() < 0.5]


def test_whatever_is_changed_before_the_last_presented_checkpoint_is_found() -> None:
    lot, before, after = random.Random(SEED), Counter[str](), Counter[str]()
    while before.total() < FORGERIES:
        chain, how = a_chain(lot), lot.choice(["edited", "deleted", "inserted", "swapped", "tail recomputed"])
        forged = forge(chain, how, lot)
        first = next((n for n, (old, new) in enumerate(zip(chain, forged, strict=False)) if old != new), len(forged))
        fits = how == "tail recomputed" or lot.random() < 0.7
        report = verify(lines(fitted(forged) if fits else forged), keys=[PUBLIC])
        found = "WRONG" if report.faults else "look at" if report.doubts else "nothing"
        if any(line["kind"] == "checkpoint" for line in forged[first:]):
            # Of what may be innocent, hashes and all, it says to look at it: lines moved as they are, and a window.
            window = how == "deleted" and first == 0
            innocent = not fits and (how == "swapped" or window)
            assert found == ("look at" if innocent else "WRONG"), (how, fits, first, report)
            before[f"{how} as they are" if innocent else how] += 1
        else:
            after[found] += 1
    kinds = ", ".join(f"{count} {how}" for how, count in sorted(before.items()))
    print(f"\n{before.total()} forgeries before the last presented checkpoint ({kinds}): all found")
    beyond = ", ".join(f"{count} {found}" for found, count in sorted(after.items()))
    print(f"{after.total()} others behind it, which no signature covers: {beyond}")


def test_honest_exports_are_never_called_wrong(tmp_path: Path) -> None:
    with redirect_stderr(io.StringIO()):  # the alerts of its full disks
        honest(range(1000 * SEED, 1000 * SEED + HONEST), tmp_path)
    print(f"\n{HONEST} honest exports (windows, orders, duplicates, rotations, floods, kills, clock steps): none WRONG")


def test_checkpoints_cost_a_part_of_a_second_that_nobody_notices() -> None:
    """One a second, whatever the rate: so what one costs is its share of a core at full rate."""
    clock, grant = Clock(), granted(idempotency_key="order-1")
    key = RecordKey("file:k", PEM, lambda: PEM, clock)
    took: dict[bool, list[float]] = {False: [], True: []}
    audit = Audit(Lines(), policy="p" * 64, key=key, clock=clock, monotonic=clock)
    for number in range(CALLS):
        signs = number % 4 == 0
        clock.tick(CHECKPOINT_SECONDS if signs else 0.0)
        began = time.thread_time()
        sent(audit, grant)
        took[signs].append(time.thread_time() - began)
    with_one, without = (sorted(took[signs])[len(took[signs]) // 2] for signs in (True, False))
    share = (with_one - without) / CHECKPOINT_SECONDS
    print(
        f"\na checkpoint costs {1e6 * (with_one - without):.0f} microseconds of CPU, once a second: {share:.4%} of a "
        f"core at full rate; the two lines of a call cost {1e6 * without:.0f}"
    )
    assert with_one > without


class File:
    """A sink that keeps nothing in memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.lines = 0

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self.lines += 1

    def close(self) -> None:
        self._file.close()


def written(path: Path) -> None:
    """Write the record of four instances that answer the same callers, at some hundred lines a second."""
    lot, clock, sink = random.Random(SEED), Clock(), File(path)
    key = RecordKey("file:k", PEM, lambda: PEM, clock)
    audits = [Audit(sink, policy="p" * 64, key=key, clock=clock, monotonic=clock) for _ in range(4)]
    orders = [f"order-{number}" for number in range(500)]
    grants = [granted(body=f"customer=cus_{one}&metadata[order_id]={one}", idempotency_key=one) for one in orders]
    while sink.lines < LINES:
        clock.tick(0.01 * lot.random())
        audit = lot.choice(audits)
        if lot.random() < 0.07:
            refused(audit, PathUnknown())
        else:
            sent(
                audit,
                lot.choice(grants),
                HTTP_TRACEPARENT=f"00-{lot.getrandbits(128):032x}-{lot.getrandbits(64):016x}-01",
            )
    for audit in audits:
        audit.close()
    sink.close()


def cpu_seconds(*command: object) -> float:
    """Return the CPU time of a command that succeeds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(word) for word in command], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="the measure is sha256sum: install coreutils")
def test_verifying_costs_a_few_times_as_much_as_a_checksum(tmp_path: Path) -> None:
    ours, cloud, array = (tmp_path / name for name in ("as written", "Cloud Logging", "gcloud"))
    written(ours)
    with ours.open() as record, cloud.open("w") as one_a_line, array.open("w") as all_in_one:
        for number, line in enumerate(record):
            entry = exported(line, number)
            one_a_line.write(json.dumps(entry, separators=(",", ":")) + "\n")
            indented = json.dumps(entry, indent=2).replace("\n", "\n  ")
            all_in_one.write(f"{',' if number else '['}\n  {indented}")
        all_in_one.write("\n]\n")
    command = ROOT / "countersign"
    start = min(cpu_seconds(command, "audit", "verify", "-h") for _ in range(TIMES))  # once, whatever the length
    for path, most in ((ours, 3), (cloud, 8), (array, 8)):
        ratios: list[float] = []
        while len(ratios) < TIMES or (min(ratios) > most and len(ratios) < 4 * TIMES):  # others disturb the one more
            ratios.append((cpu_seconds(command, "audit", "verify", path) - start) / cpu_seconds("sha256sum", path))
        ratios.sort()
        print(
            f"\n{LINES} lines {path.name}: verify takes {ratios[len(ratios) // 2]:.2f} times as long as sha256sum "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
        assert ratios[0] <= most
