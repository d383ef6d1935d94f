"""``make bench``: the cost of Countersign compared with others, in one run on one machine.

All functions run under functions-framework's production server with the same threads, and all call the same upstream.
Within a section the rows are measured in turn, so that a machine that slows down slows all of them, and ratios are
taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import callers, report, rows, stages, stores
from bench.floor import cpu_model
from bench.rows import Effort
from bench.servers import world

RESULTS = Path(__file__).with_name("results.json")
FULL_CALLS = 100_000
#: With a higher load, other programs would be measured too.
BUSY = 0.5


def main(effort: Effort) -> None:
    """Measure; print the tables; write ``results.json``, ``results.md`` and ``results.svg``."""
    load_before = os.getloadavg()[0]
    if load_before > BUSY:
        print(f"This machine is busy (load {load_before:.1f}): expect noise.", flush=True)
    left_out: dict[str, str] = {}
    results: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "cores": os.cpu_count(),
            "model": cpu_model(),
            "system": f"{platform.system()} {platform.machine()}",
            "load_before": load_before,
        },
        "python": platform.python_version(),
        "left_out": left_out,
    }
    looks = [stages.measure()]
    with world() as around:
        _say("Throughput: everybody in turn")
        results["throughput"] = rows.throughput(around, effort, left_out)
        _say("Start to first invoice")
        results["start"] = rows.start(around, effort)
        looks.append(stages.measure())
        _say(f"{rows.CROWD} calls at once")
        results["crowd"] = rows.crowd(around, effort)
    _say("The policy layer alone")
    looks.append(stages.measure())
    # A call's cost is the same in each measurement, but a shared machine's speed is not.
    quietest = min(looks, key=lambda look: look["all"])
    results["policy_microseconds"] = {name: round(took, 1) for name, took in quietest.items()}
    results["policy_microseconds_looks"] = [round(look["all"], 1) for look in looks]
    _say("Many callers in the policy; 10,000 take some time to read")
    results["callers"] = callers.measure()
    _say("What each store adds")
    results["store_milliseconds"] = stores.measure()
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    pages = f"{report.markdown(results)}\nOne instance:\n\n{report.profile(results)}"
    RESULTS.with_suffix(".md").write_text(pages)
    RESULTS.with_suffix(".svg").write_text(report.picture(results))
    print(f"{'':<60}\n{report.text(results)}\n\nFor docs/load.md:\n\n{pages}")
    print(f"All of it: {RESULTS.name}; for the documents: {RESULTS.stem}.md; as docs/load.svg: {RESULTS.stem}.svg")


def _say(words: str) -> None:
    print(f"{words:<60}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="100,000 calls of ours and of the hand-written function, for the memory"
    )
    parser.add_argument("--no-peers", action="store_true", help="only our own rows")
    options = parser.parse_args()
    main(Effort(calls=FULL_CALLS if options.full else 0, peers=not options.no_peers))
