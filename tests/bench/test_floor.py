"""The policy layer costs no more than what is written down, whatever machine it is; and the floor would notice.

The floor is moved on purpose, with `make floor`, in the commit that has the reason.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from bench import floor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FLOORS = json.loads(floor.FLOOR.read_text())
SLOWER = 1.15


@pytest.fixture
def written() -> dict[str, Any]:
    found: dict[str, Any] | None = FLOORS.get(floor.version())
    if found is None:
        pytest.skip(f"no floor is written down for Python {floor.version()}; `make floor` does that")
    return found


@pytest.fixture
def ratio(written: dict[str, Any]) -> float:
    """Return the ratio that is written down for this CPU."""
    if written.get("cpu") != floor.cpu_model():
        pytest.skip(f"no ratio is written down for a CPU such as {floor.cpu_model()}; `make floor` does that")
    found: float = written["ratio"]
    return found


@pytest.fixture
def layer(tmp_path: Path) -> Callable[[], object]:
    return floor.layer(tmp_path)


@pytest.mark.parametrize("figure", ["bytecodes", "c_calls"])
def test_policy_layer_carries_out_as_many_instructions_as_are_written_down(
    written: dict[str, float], layer: Callable[[], object], figure: str
) -> None:
    now = floor.count(layer)[figure] / written[figure]
    assert now <= 1 + floor.TOLERANCE, f"{figure}: {now:.3f} of the floor. If that has its reason: make floor"
    assert now >= 1 - floor.TOLERANCE, f"{figure}: only {now:.3f} of the floor. Keep what was won: make floor"


@pytest.mark.timed
def test_policy_layer_takes_as_long_beside_the_reference_as_is_written_down(
    ratio: float, layer: Callable[[], object]
) -> None:
    now = floor.ratio(layer, floor.reference) / ratio
    assert now <= 1 + floor.TIMED_TOLERANCE, f"{now:.3f} of the floor. If that has its reason: make floor"


def test_floor_notices_a_loop_that_makes_a_call_15_percent_slower(
    written: dict[str, float], layer: Callable[[], object]
) -> None:
    some = round(written["bytecodes"] * (SLOWER - 1))

    def slower() -> None:
        layer()
        exec(LOOP, {"rounds": some // BYTECODES_A_ROUND})

    assert floor.count(slower)["bytecodes"] > written["bytecodes"] * (1 + floor.TOLERANCE)


#: Compiled under a name that is no file of the benchmark's, so that it counts.
LOOP = compile("for _ in range(rounds):\n    rounds = rounds + 0\n", "<a loop>", "exec")
BYTECODES_A_ROUND = 6


@pytest.mark.timed
def test_floor_notices_c_code_that_makes_a_call_15_percent_slower(ratio: float, layer: Callable[[], object]) -> None:
    # How much hashing is a sixth of a call, this machine says.
    share = floor.ratio(lambda: hashlib.sha256(bytes(100_000)), layer)
    size = round(100_000 * (SLOWER - 1) / share)

    def slower() -> None:
        layer()
        hashlib.sha256(bytes(size))

    assert floor.ratio(slower, floor.reference) > ratio * (1 + floor.TIMED_TOLERANCE)
