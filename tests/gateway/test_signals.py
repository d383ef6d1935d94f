"""What each signal does to the server: those that end it end it as SIGTERM does; none makes a second process."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway import serving
from sandbox.__main__ import ROOT
from tests.gateway.test_stock_worker import STOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from tests.conftest import Server

#: What the upstream takes for a call that is under way.
SECONDS = 2.0
ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
#: With gunicorn, one more process, one less, a second server, and a new process in place of this one.
IGNORED = [signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2, signal.SIGHUP]
#: With which gunicorn itself does no harm.
HARMLESS = [signal.SIGUSR1, signal.SIGWINCH]


@pytest.fixture(params=["ours", "stock"])
def start(request: pytest.FixtureRequest, server: Callable[..., Server], tmp_path: Path) -> Callable[..., Server]:
    """Start the function with our worker, or with gunicorn's own."""
    if request.param == "ours":
        return server
    (tmp_path / "stock.py").write_text(STOCK)
    return partial(server, source=tmp_path / "stock.py", PYTHONPATH=str(ROOT))


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def under_way(running: Server, upstream: Appgregator, seconds: float = SECONDS) -> tuple[threading.Thread, list[int]]:
    """Make a call, and return once it has reached the upstream: what it was answered is in the list when it ends."""
    upstream.delay = seconds
    answered: list[int] = []
    before = len(upstream.calls)

    def work() -> None:
        with suppress(OSError):
            answered.append(running.call(body=b"customer=cus_fault_slow")[0])

    call = threading.Thread(target=work)
    call.start()
    deadline = time.monotonic() + 60
    while len(upstream.calls) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    return call, answered


@pytest.mark.parametrize("whom", ["master", "both"])
@pytest.mark.parametrize("ending", ENDING)
def test_call_under_way_is_answered_whatever_ends_the_server(
    start: Callable[[], Server], upstream: Appgregator, ending: signal.Signals, whom: str
) -> None:
    """A process manager tells the master; Ctrl-C in a terminal tells both."""
    running = start()
    assert running.call()[0] == 200
    call, answered = under_way(running, upstream)
    (worker,) = children(running.process.pid)
    running.process.send_signal(ending)
    if whom == "both":
        os.kill(worker, ending)
    call.join()
    assert answered == [200]
    assert running.process.wait(timeout=60) == 0
    assert [line["kind"] for line in running.record.entries()] == ["intent", "outcome"] * 2
    assert json.loads(running.record.text().splitlines()[-1])["countersign"]["kind"] == "stop"
    assert upstream.invoices == 2


@pytest.mark.parametrize("ignored", [*IGNORED, *HARMLESS])
def test_signal_that_would_make_a_second_process_is_ignored(
    start: Callable[[], Server], upstream: Appgregator, ignored: signal.Signals
) -> None:
    running = start()
    call, answered = under_way(running, upstream)
    before = children(running.process.pid)
    assert len(before) == 1
    running.process.send_signal(ignored)
    os.kill(before[0], ignored)
    call.join()
    time.sleep(1.5)  # the master looks at its signals once a second
    assert answered == [200]
    assert running.process.poll() is None
    assert children(running.process.pid) == before
    assert running.call()[0] == 200
    kinds = [json.loads(line)["countersign"]["kind"] for line in running.record.text().splitlines()]
    assert kinds.count("start") == 1
    assert "stop" not in kinds


def test_nobody_can_have_a_second_process_made_by_a_socket_of_the_server(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    """Gunicorn's own is in the folder of whoever runs it: who writes ``worker add`` there gets one."""
    running = start(HOME=str(tmp_path))
    assert running.call()[0] == 200
    assert len([*Path(f"/proc/{running.process.pid}/task").iterdir()]) == 1  # none waits for commands
    running.stop()
    assert not (tmp_path / ".gunicorn").exists()


def alerts(running: Server) -> list[str]:
    lines = [json.loads(line) for line in running.errors.read_text().splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if line["severity"] == "ALERT"]


@pytest.mark.parametrize("dies", [signal.SIGSEGV, signal.SIGKILL])
def test_worker_that_dies_is_told_and_another_takes_its_place(
    start: Callable[[], Server], upstream: Appgregator, dies: signal.Signals
) -> None:
    running = start()
    told = alerts(running)  # that the stock worker serves
    call, answered = under_way(running, upstream, 60)
    (worker,) = children(running.process.pid)
    os.kill(worker, dies)
    call.join()
    assert answered == []
    assert running.call()[0] == 200
    (alert,) = alerts(running)[len(told) :]
    assert "died" in alert
    assert [line["kind"] for line in running.record.entries()] == ["intent", "intent", "outcome"]
    running.stop()
    assert len(alerts(running)) == len(told) + 1


def test_signals_that_are_ignored_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert set(serving.IGNORED) == set(IGNORED)
    for one in (*ENDING, *IGNORED, *HARMLESS):
        assert f"`{one.name}`" in page
