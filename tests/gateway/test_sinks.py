"""Where lines go: a pipe, a socket or a file, and what a log that takes nothing does to calls."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from console.audit import verify
from gateway.answering import respond
from gateway.chain import Audit
from gateway.sinks import Descriptor, to_file
from policies.refusals import PathUnknown, RecordUnavailable
from sandbox.__main__ import ROOT
from tests.gateway.conftest import at_once, found, granted, refused, sent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_line_that_was_torn_does_not_spoil_the_next() -> None:
    """The reader of a log takes half a line and no more, and later all."""
    reader, writer = os.pipe()
    audit = Audit(Descriptor(writer), policy="p" * 64)
    sent(audit)
    with pytest.raises(RecordUnavailable):
        audit.write("intent", {"long": "x" * 2 * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)}, "INFO", "intent")
    lines = os.read(reader, 1_000_000)
    sent(audit)
    audit.close()
    lines += os.read(reader, 1_000_000)
    os.close(reader)
    os.close(writer)
    report = verify(lines.decode().splitlines())
    assert (report.lines, report.faults, len(report.doubts)) == (6, [], 1)
    assert report.doubts[0].startswith("line 4: this is not a whole line.")


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads, full to the last page."""
    reader, writer = os.pipe()
    os.write(writer, b"x" * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_log_that_nobody_takes_refuses_calls_within_a_second_however_many_wait(full_pipe: tuple[int, int]) -> None:
    audit = Audit(Descriptor(full_pipe[1]), policy="p" * 64)
    grant = granted()

    def call(_: int) -> tuple[int, float]:
        began = time.monotonic()
        return respond(sent(audit, grant)).status, time.monotonic() - began

    results = at_once(20, call)
    assert {status for status, _ in results} == {503}
    assert max(seconds for _, seconds in results) < 10  # one after the other they would take twenty


def test_log_that_is_taken_again_is_written_again(full_pipe: tuple[int, int]) -> None:
    reader, writer = full_pipe
    audit = Audit(Descriptor(writer), policy="p" * 64)
    assert respond(sent(audit)).status == 503
    os.read(reader, fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    assert respond(sent(audit)).status == 200
    audit.close()
    assert not found(os.read(reader, 65536).decode().splitlines())


def test_whoever_shares_the_pipe_still_waits_for_room(full_pipe: tuple[int, int]) -> None:
    """Its other writers expect a write to wait, and a flag on what they share would have theirs fail."""
    _, writer = full_pipe
    sink = Descriptor(writer)
    with pytest.raises(TimeoutError):
        sink.write(b"x")
    assert os.get_blocking(writer)


@pytest.mark.parametrize("kind", ["socket", "pipe without /proc"])
def test_log_that_is_no_pipe_of_ours_is_written_and_given_up_the_same_way(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "socket":
        left, right = socket.socketpair()
        reader, writer = left.detach(), right.detach()
    else:
        monkeypatch.setattr("gateway.sinks._non_blocking", lambda _: None)
        reader, writer = os.pipe()
    sink = Descriptor(writer)
    assert sink._pipe is None
    sink.write(b"a line\n")
    assert os.read(reader, 100) == b"a line\n"
    filled = iter(lambda: sink.write(b"x" * 4000), "never")
    with pytest.raises(TimeoutError):
        list(filled)
    os.close(reader)
    with pytest.raises(OSError, match=r"pipe|reset"):
        sink.write(b"x")
    os.close(writer)


def test_pipe_whose_reader_is_gone_is_refused() -> None:
    reader, writer = os.pipe()
    sink = Descriptor(writer)
    os.close(reader)
    with pytest.raises(OSError, match="cannot be written"):
        sink.write(b"x")
    os.close(writer)


def test_line_longer_than_a_pipe_arrives_whole_while_somebody_reads() -> None:
    reader, writer = os.pipe()
    received = b""

    def read() -> None:
        nonlocal received
        while chunk := os.read(reader, 65536):
            received += chunk

    thread = threading.Thread(target=read)
    thread.start()
    sink = Descriptor(writer)
    audit = Audit(sink, policy="p" * 64)
    audit.write("intent", {"long": "x" * 300_000}, "INFO", "intent")
    audit.close()
    for end in (writer, sink._pipe):
        if end is not None:
            os.close(end)
    thread.join(timeout=60)
    os.close(reader)
    assert verify(received.decode().splitlines()).faults == []
    assert len(received) > 300_000


def test_file_is_appended_to_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(2):
        audit = Audit(to_file(str(path)), policy="p" * 64)
        refused(audit, PathUnknown())
        audit.close()
    report = verify(path.read_text().splitlines())
    assert (report.instances, report.lines, report.faults, report.doubts) == (2, 6, [], [])
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("moved", ["renamed", "removed", "replaced"])
def test_file_that_logrotate_took_is_opened_again_at_the_next_line(tmp_path: Path, moved: str) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    audit = Audit(to_file(str(path)), policy="p" * 64)
    sent(audit)
    if moved == "removed":
        path.unlink()
    else:
        path.rename(old)
    if moved == "replaced":
        path.touch()
    assert respond(sent(audit)).status == 200
    audit.close()
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    if moved != "removed":
        report = verify([*old.read_text().splitlines(), *lines])
        assert (report.lines, report.faults, report.doubts) == (6, [], [])


def test_file_that_cannot_be_opened_again_refuses_calls_until_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    audit = Audit(to_file(str(folder / "audit.jsonl")), policy="p" * 64)
    sent(audit)
    folder.rename(tmp_path / "moved")
    assert respond(sent(audit)).status == 503
    (tmp_path / "log").touch()  # not a folder
    assert respond(sent(audit)).status == 503
    (tmp_path / "log").unlink()
    folder.mkdir()
    assert respond(sent(audit)).status == 200
    audit.close()
    both = [tmp_path / "moved" / "audit.jsonl", folder / "audit.jsonl"]
    report = verify([line for path in both for line in path.read_text().splitlines()])
    assert (report.lines, report.faults, report.doubts) == (6, [], [])


WRITER = """
import sys
from gateway.chain import Audit
from gateway.sinks import to_file
audit = Audit(to_file(sys.argv[1]), policy="p")
for number in range(300):
    audit.write("preview", {"long": "x" * 9000}, "INFO", "preview")
"""


def test_lines_of_any_length_of_two_instances_in_one_file_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    command = [sys.executable, "-c", WRITER, str(path)]
    for writer in [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]:
        assert writer.wait(timeout=180) == 0
    report = verify(path.read_text().splitlines())
    assert (report.instances, report.lines, report.faults, report.doubts) == (3, 3 * 302, [], [])


def test_stump_that_another_process_left_is_ended_before_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"severity":"INFO","time":"20')
    audit = Audit(to_file(str(path)), policy="p" * 64)
    audit.write("preview", {}, "INFO", "preview")
    audit.close()
    stump, *lines = path.read_text().splitlines()
    assert stump == '{"severity":"INFO","time":"20'
    assert verify(lines).doubts == []


def test_disk_that_fills_up_within_a_line_refuses_the_call_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    sink = to_file(str(path))
    sink.write(b"a line\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        with pytest.raises(OSError, match="in part"):
            sink.write(b"a second line that is too long\n")
        with pytest.raises(OSError, match="too large"):
            sink.write(b"a third\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    sink.write(b"a fourth\n")
    assert path.read_bytes() == b"a line\na second line\na fourth\n"
