"""``make run``: one command, two calls to paste, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from sandbox.__main__ import ROOT, UPSTREAM_KEY
from sandbox.ports import free_port, listening

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {"PATH": os.environ["PATH"]}  # none of ours: no proxy, no DEBUG, no POLICY


@contextmanager
def running(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run the sandbox in a process group of its own until it has said hello."""
    told = folder / "told"
    with told.open("wb") as out:
        process = start(port, out)
    try:
        deadline = time.monotonic() + 40
        while "Ctrl-C stops everything" not in told.read_text():
            assert process.poll() is None, told.read_text()
            assert time.monotonic() < deadline, told.read_text()
            time.sleep(0.05)
        yield process, told
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)


def start(port: object, out: IO[bytes]) -> subprocess.Popen[bytes]:
    environ = {**ENVIRONMENT, "PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-m", "sandbox"], cwd=ROOT, env=environ, stdout=out, stderr=out, start_new_session=True
    )


def shell(command: str) -> tuple[int, dict[str, object]]:
    """Paste a command; return the status and the body of what it printed."""
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    head, _, body = run.stdout.replace("\r\n", "\n").partition("\n\n")
    return int(head.split()[1]), json.loads(body)


def descendants(process: int) -> set[int]:
    """Return the processes that a process started, and those that these started."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    more = {process}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return found


def served(process: int) -> set[int]:
    """Return them once the function's worker is among them; its port is open before that is forked."""
    deadline = time.monotonic() + 20
    while len(children := descendants(process)) < 2:  # the master and its worker
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return children


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(shutil.which("curl") is None, reason="what is pasted is curl")
def test_both_printed_calls_work_as_pasted(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, port) as (_, told):
        commands = re.findall(r"^curl (?:.*\\\n)*.*$", told.read_text(), re.MULTILINE)
        assert len(commands) == 2
        status, invoice = shell(commands[0])
        assert status == 200
        assert str(invoice["id"]).startswith("in_")
        assert set(invoice) == {
            "id", "status", "amount_due", "currency", "customer", "hosted_invoice_url", "lines", "audit_id",
        }  # fmt: skip
        assert shell(commands[0]) == (200, invoice)
        status, problem = shell(commands[1])
        assert (status, problem["reason"]) == (400, "parameter-not-granted")
        assert problem["parameter"] == "transfer_data[destination]"
        text = told.read_text()
        lines = [json.loads(line)["countersign"] for line in text.splitlines() if line.startswith('{"severity"')]
        assert [line["kind"] for line in lines] == ["start", "intent", "outcome", "replay", "refusal"]
        assert str(invoice["audit_id"]) in text
        assert UPSTREAM_KEY not in text


ON_LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells whose child a process is")


@ON_LINUX
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing_behind(tmp_path: Path, stop: signal.Signals) -> None:
    port = free_port()
    with running(tmp_path, port) as (process, told):
        children = served(process.pid)
        process.send_signal(stop)
        assert process.wait(timeout=20) == 0
        assert "Traceback" not in told.read_text()
        assert "Stopping." in told.read_text()
        assert not listening(port)
        assert not [child for child in children if alive(child)]
        last = [line for line in told.read_text().splitlines() if line.startswith("{")]
        assert not last or json.loads(last[-1])["countersign"]["kind"] == "stop"


@ON_LINUX
def test_second_ctrl_c_does_not_leave_the_function_behind(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, port) as (process, _):
        children = served(process.pid)
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
        assert not listening(port)
        assert not [child for child in children if alive(child)]


def said(port: object) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "sandbox"],
        cwd=ROOT,
        env={**ENVIRONMENT, "PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert run.stdout == ""
    return run.returncode, run.stderr


def test_port_in_use_is_said_in_one_line() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        status, words = said(port)
    assert status == 1
    assert words.count("\n") == 1
    assert f"Port {port} is in use" in words
    assert "PORT=" in words


@pytest.mark.parametrize("port", ["", "http", "65536", "\u00b2"])
def test_wrong_port_is_said_in_one_line(port: str) -> None:
    status, words = said(port)
    assert status == 2
    assert words.count("\n") == 1
    assert words.startswith("PORT must be a port number")
