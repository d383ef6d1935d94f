"""The benchmark runs and measures what it says; how fast anything is, no test asserts."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

import bench.__main__ as benchmark
from bench import callers, load, rows, servers, stages, stores
from bench.peers import PEERS
from bench.rows import Effort
from policies import document

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server

SHORT = Effort(rounds=1, seconds=0.2, starts=1, crowd_rounds=1, crowd_seconds=0.4, calls=600, peers=False)
OWN = {rows.UPSTREAM, rows.EMPTY, rows.BARE, rows.HAND, rows.OURS, rows.OURS_REDIS}


@pytest.mark.figures  # it takes most of a minute
def test_one_short_run_fills_every_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(stages, "ROUNDS", 20)
    monkeypatch.setattr(stores, "CALLS", 20)
    monkeypatch.setattr(callers, "COUNTS", (2, 10))
    monkeypatch.setattr(callers, "BATCHES", 1)
    monkeypatch.setattr(rows, "CROWD", 20)
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results.json")
    benchmark.main(SHORT)
    results = json.loads((tmp_path / "results.json").read_text())
    printed = capsys.readouterr().out
    assert results["throughput"].keys() | results["left_out"].keys() == OWN
    for row in results["throughput"].values():
        assert row["calls_per_second"]["min"] > 0
        assert row["p50_milliseconds"]["min"] > 0
    (first, _), *_, (last, megabytes) = results["throughput"][rows.OURS]["megabytes_after_calls"]
    assert first < last >= 600
    assert megabytes > 0
    assert all(row["of_empty"]["median"] > 0 for row in results["start"].values())
    assert results["crowd"][rows.OURS]["p99_milliseconds"]["min"] > 1000 * servers.SLOW_SECONDS
    cost = results["policy_microseconds"]
    assert cost["all"] >= max(value for name, value in cost.items() if name != "all")
    assert list(results["callers"])[:2] == ["2", "10"]
    for section in ("throughput", "left_out", "start", "crowd", "policy_microseconds", "store_milliseconds"):
        for name in results[section]:
            assert name in printed
    markdown = (tmp_path / "results.md").read_text()
    assert markdown in printed
    assert "times hand-written | at least 3 |" in markdown
    assert "Redis, times that with memory | at least 0.75 |" in markdown or rows.OURS_REDIS in results["left_out"]
    drawn = "".join(ET.fromstring((tmp_path / "results.svg").read_text()).itertext())
    assert rows.OURS in drawn
    assert rows.MANAGED in drawn


def test_refusals_are_not_counted_as_speed(server: Callable[..., Server]) -> None:
    running = server()
    unknown = servers.request(header="x-api-key: csk_nobody_has_this_key_at_all_____")
    with pytest.raises(RuntimeError, match="not 200"):
        load.run(running.port, unknown, connections=1, seconds=0.2)


def test_upstream_of_the_benchmark_takes_json_and_still_no_wrong_key() -> None:
    with servers.world() as world:
        port, call = world.upstream.port, world.upstream.call
        body = b'{"customer": "cus_1"}'
        head = call.partition(b"\r\n\r\n")[0].replace(b"x-www-form-urlencoded", b"json")
        as_json = head.replace(b"Length: 27", b"Length: %d" % len(body)) + b"\r\n\r\n" + body
        load.once(port, as_json)
        for wrong in (call, as_json):
            with pytest.raises(RuntimeError, match="not 200"):
                load.once(port, wrong.replace(b"sandbox-upstream-key", b"sandbox-upstream-yek"))


@pytest.mark.timed  # it takes peers that `make bench-peers` installs, and half a minute
@pytest.mark.parametrize("name", PEERS)
def test_peer_lets_its_caller_through_and_nobody_else(name: str) -> None:
    with servers.world() as world:
        try:
            with PEERS[name](world) as peer:
                load.once(peer.port, peer.call)
                with pytest.raises(RuntimeError, match="not 200"):
                    load.once(peer.port, peer.call.replace(b"csk_", b"ksc_").replace(b"wl_live_", b"lw_live_"))
        except Exception as error:
            if type(error).__name__ != "MissingError":
                raise
            pytest.skip(f"{name}: {error}")


def test_every_caller_of_the_benchmark_has_a_grant_and_a_response_list_of_its_own() -> None:
    by_proof = document.read(callers.policy(300), "policy.yaml").callers
    entitlements = [one for caller in by_proof.values() for one in caller.entitlements.values()]
    assert len({one.response_fields for one in entitlements}) == 300
    assert len({one.rules["days_until_due"].maximum for one in entitlements}) == 300
