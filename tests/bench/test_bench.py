"""The benchmark runs and measures what it says; how fast anything is, no test asserts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import bench.__main__ as benchmark
from bench import load, stages, stores
from sandbox.__main__ import CALLER_KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server


def test_one_short_run_fills_every_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "ROUNDS", 2)
    monkeypatch.setattr(benchmark, "SECONDS", 0.3)
    monkeypatch.setattr(stages, "ROUNDS", 20)
    monkeypatch.setattr(stores, "CALLS", 20)
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results.json")
    benchmark.main()
    results = json.loads((tmp_path / "results.json").read_text())
    printed = capsys.readouterr().out
    assert set(results["rows"]) == {"hand-written", "countersign"}
    for row in results["rows"].values():
        assert row["calls_per_second"]["min"] > 0
        assert row["p50_milliseconds"]["min"] > 0
    assert results["throughput_ratio"]["median"] > 0
    cost = results["policy_microseconds"]
    assert cost["all"] >= max(value for name, value in cost.items() if name != "all")
    for name in (*results["rows"], *cost, *results["store_milliseconds"], "aim 2.5"):
        assert name in printed


def test_refusals_are_not_counted_as_speed(server: Callable[..., Server]) -> None:
    running = server()
    unknown = benchmark.REQUEST.replace(CALLER_KEY.encode(), b"csk_nobody_has_this_key_at_all_____")
    with pytest.raises(RuntimeError, match="not 200"):
        load.run(running.port, unknown, connections=1, seconds=0.2)
