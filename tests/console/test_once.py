"""What takes long to make is made once, however many ask for it at the same moment."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from console.once import once

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_value_is_made_by_the_first_and_the_others_wait_for_it() -> None:
    made, begun, goes_on = list[str](), threading.Event(), threading.Event()

    @once
    def value() -> str:
        made.append(threading.current_thread().name)
        begun.set()
        assert goes_on.wait(10)
        return "made"

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(value)
        assert begun.wait(10)
        others = [pool.submit(value) for _ in range(7)]
        assert not any(one.done() for one in others)
        goes_on.set()
        assert [one.result(10) for one in (first, *others)] == ["made"] * 8
    assert len(made) == 1
    assert value() == "made"
    assert len(made) == 1


def test_what_could_not_be_made_is_tried_again() -> None:
    results: Iterator[OSError | str] = iter([OSError("gone"), "made"])

    @once
    def value() -> str:
        result = next(results)
        if isinstance(result, OSError):
            raise result
        return result

    with pytest.raises(OSError, match="gone"):
        value()
    assert value() == "made"
