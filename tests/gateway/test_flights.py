"""Work that no time limit ends: one thread does it, and all who ask wait for that."""

from __future__ import annotations

import threading
from typing import NoReturn

import pytest

from gateway.flights import SingleFlight
from tests.gateway.conftest import at_once


def test_one_thread_does_it_and_goes_on_for_who_asks_next_when_all_have_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flights: SingleFlight[str] = SingleFlight("test")
    go_on, by = threading.Event(), list[str]()

    def work() -> str:
        by.append(threading.current_thread().name)
        go_on.wait(60)
        return "first"

    def give_up(_: int) -> None:
        with pytest.raises(TimeoutError):
            flights.get("key", work, 0.05)

    at_once(20, give_up)
    assert by == ["test"]
    assert flights.get("another", lambda: "other", 30) == "other"
    ended = flights._under_way.get()["key"].ended
    wait = ended.wait

    def waited_for(seconds: float) -> bool:
        go_on.set()  # now that somebody asks again
        return wait(seconds)

    monkeypatch.setattr(ended, "wait", waited_for)
    assert flights.get("key", lambda: "second", 30) == "first"
    assert flights.get("key", lambda: "second", 30) == "second"


def test_failure_is_that_of_all_and_the_next_tries_again() -> None:
    flights: SingleFlight[str] = SingleFlight("test")

    def fail() -> NoReturn:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        flights.get("key", fail, 30)
    assert flights.get("key", lambda: "yes", 30) == "yes"


def test_work_is_done_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert SingleFlight[str]("test").get("key", lambda: "yes", 30) == "yes"
