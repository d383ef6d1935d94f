from __future__ import annotations

from itertools import combinations

import pytest

from sandbox.ports import first, free_port


@pytest.mark.parametrize("process", [2, 4711, 4_194_000])
def test_processes_that_are_started_together_begin_far_from_each_other(process: int) -> None:
    places = [first(process + number) for number in range(50)]
    gaps = [abs(one - other) for one, other in combinations(places, 2)]
    assert min(min(gap, 22_000 - gap) for gap in gaps) > 100


def test_no_port_is_given_twice() -> None:
    assert len({free_port() for _ in range(100)}) == 100
