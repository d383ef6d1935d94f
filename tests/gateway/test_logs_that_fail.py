"""Standard output and standard error as operators lose them: closed, full, not read, or with a reader that is gone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from gateway.sinks import why
from sandbox.__main__ import ROOT, command
from sandbox.ports import free_port, listening
from tests.conftest import Record, Server, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from sandbox.secret_manager import SecretManager


@pytest.fixture
def start(tmp_path: Path, upstream: Appgregator, secret_manager: SecretManager) -> Iterator[Callable[..., Server]]:
    """Start the server with its record on standard output, which is ``out``; None: it is closed. So with ``err``."""
    (tmp_path / "policy.yaml").write_text(policy(upstream.origin))
    environ = {
        "PATH": os.environ["PATH"],
        "POLICY": str(tmp_path / "policy.yaml"),
        "STORE": "memory",
        "THREADS": "16",
        "SECRET_MANAGER_ENDPOINT": secret_manager.address,
    }
    with contextlib.ExitStack() as stack:

        def started(out: int | None, err: int | None = -1, *, wait: bool = True) -> Server:
            port, errors = free_port(), tmp_path / "stderr"
            with errors.open("wb") as file:
                closed = [f"{number}>&-" for number, stream in ((1, out), (2, err)) if stream is None]
                words = ["sh", "-c", f'exec "$@" {" ".join(closed)}', "sh", *command(port)]
                process = subprocess.Popen(
                    words, cwd=ROOT, env=environ, stdout=out, stderr=file if err in {-1, None} else err
                )
            running = Server(process, port, Record(tmp_path / "none"), errors)
            stack.callback(running.stop)
            deadline = time.monotonic() + 60
            while wait and not listening(port) and time.monotonic() < deadline:
                assert process.poll() is None, errors.read_text()
                time.sleep(0.05)
            return running

        yield started


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def fill(end: int) -> None:
    os.set_blocking(end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(end, b"x" * 4096)
    os.set_blocking(end, True)


def refused(running: Server) -> None:
    status, headers, body = running.call()
    assert (status, json.loads(body)["reason"]) == (503, "record-unavailable")
    assert json.loads(body)["detail"].startswith("The call cannot be recorded just now. Nothing was sent")
    assert headers["retry-after"] == "1"


def cries(running: Server) -> list[str]:
    return [json.loads(line)["message"] for line in running.errors.read_text().splitlines()]


def test_standard_output_that_is_closed_stops_the_start(start: Callable[..., Server]) -> None:
    """Whatever is opened next gets its number: the record would go there."""
    running = start(None, wait=False)
    assert running.process.wait(timeout=60) == 1
    assert running.errors.read_text() == (
        "countersign cannot start: AUDIT: standard output is closed. Start it with one, or write AUDIT=file:PATH.\n"
    )


def test_disk_that_is_full_is_named_with_what_to_do(start: Callable[..., Server], upstream: Appgregator) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    running = start(full)
    os.close(full)
    refused(running)
    assert cries(running) == ["countersign: a refusal could not be recorded: the disk is full: make room"]
    assert json.loads(running.call("/-/ready", None, key=None, method="GET")[2])["parts"]["record"] == "down"
    assert not upstream.calls


def test_reader_that_is_gone_is_named_with_what_to_do(
    start: Callable[..., Server], upstream: Appgregator, pipe: tuple[int, int]
) -> None:
    running = start(pipe[1])
    os.close(pipe[1])
    assert running.call()[0] == 200
    os.close(pipe[0])
    refused(running)
    assert cries(running) == [
        "countersign: a refusal could not be recorded: whoever read the record is gone: start a new instance"
    ]
    assert upstream.invoices == 1


def test_log_that_takes_nothing_holds_up_no_answer_where_both_streams_lead_there(
    start: Callable[..., Server], upstream: Appgregator, pipe: tuple[int, int]
) -> None:
    """As in a container, whose two streams are one pipe. Nothing can be said, and calls are refused all the same."""
    running = start(pipe[1], pipe[1])
    fill(pipe[1])
    for _ in range(3):
        refused(running)
    assert not upstream.calls
    os.set_blocking(pipe[0], False)
    with contextlib.suppress(BlockingIOError):
        while os.read(pipe[0], 65536):
            pass
    assert running.call()[0] == 200


def test_log_that_takes_nothing_is_named_with_what_to_do(start: Callable[..., Server], pipe: tuple[int, int]) -> None:
    running = start(pipe[1])
    fill(pipe[1])
    refused(running)
    (cry,) = cries(running)
    assert cry.endswith("whoever reads the record takes nothing: look at what collects the logs")


def test_standard_error_that_is_closed_changes_no_answer(
    start: Callable[..., Server], upstream: Appgregator, pipe: tuple[int, int]
) -> None:
    running = start(pipe[1], None)
    os.close(pipe[1])
    assert running.call()[0] == 200
    os.close(pipe[0])
    refused(running)
    assert upstream.invoices == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full: make room"),
        (OSError(errno.EDQUOT, "x"), "the disk is full: make room"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(), "OSError"),
        (ValueError("embedded null byte"), "ValueError"),
    ],
)
def test_why_is_in_words_where_there_are_any(error: OSError | ValueError, says: str) -> None:
    assert why(error) == says
