"""Files that an operator names: what is no file, what is endless, and what never answers."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from gateway import files
from gateway.files import MissingError, UnreadableError, read
from tests.gateway.conftest import at_once

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.gateway.conftest import Held


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "file"]


def why(path: Path) -> str:
    with pytest.raises(UnreadableError) as caught:
        read(str(path), 10)
    return str(caught.value)


def test_file_is_read_whole_or_as_much_of_it_as_is_asked_for(file: Path) -> None:
    assert [read(str(file), most) for most in (11, 10, 3)] == [b"0123456789", b"0123456789", b"012"]
    file.write_bytes(b"")
    assert read(str(file), 10) == b""


def test_link_leads_to_its_file_and_a_file_without_a_size_is_read_too(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    assert read(str(tmp_path / "link"), 99) == b"0123456789"
    assert read("/proc/self/stat", 4096).startswith(str(os.getpid()).encode())


def test_read_leaves_no_thread_behind_so_that_the_process_may_be_forked(file: Path) -> None:
    for _ in range(200):
        read(str(file), 10)
        assert reading() == []


def test_file_that_is_larger_than_memory_is_read_as_far_as_is_asked_for(file: Path) -> None:
    os.truncate(file, 1 << 40)
    assert len(read(str(file), 1000)) == 1000


def test_what_is_no_file_is_told_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        for name, kind in {
            "fifo": "a pipe",
            "socket": "a socket",
            ".": "a folder",
            "/dev/zero": "a device",
            "/dev/full": "a device",
        }.items():
            assert why(tmp_path / name) == f"the path leads to {kind}"


def test_what_is_missing_or_no_path_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no such file"):
        read(str(tmp_path / "absent"), 10)
    assert why(tmp_path / "file\0") == "ValueError"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert why(tmp_path / "loop") in {"OSError", "RuntimeError"}


def test_file_that_does_not_answer_costs_one_thread_and_one_wait_whoever_asks_and_is_read_once_it_does(
    file: Path, hold: Callable[[Path], Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "READ_SECONDS", 0.3)
    held = hold(file)
    assert at_once(20, lambda _: why(file)) == ["reading it takes longer than 0.3 s"] * 20
    assert len(reading()) == 1
    monkeypatch.setattr(files, "READ_SECONDS", 60.0)
    for _ in range(20):
        assert why(file).startswith("reading it takes longer than")  # at once: nobody waits for the one left behind
    assert len(reading()) == 1
    file.with_name("other").write_bytes(b"other")
    assert read(str(file.with_name("other")), 10) == b"other"
    left = reading()
    held.let_go()
    left[0].join(60)
    assert read(str(file), 10) == b"0123456789"
    assert reading() == []


def test_one_who_asks_while_another_reads_gets_what_is_there_after_that(
    file: Path, hold: Callable[[Path], Held]
) -> None:
    held = hold(file)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(read(str(file), 10))) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not reading():
        time.sleep(0.001)
    assert len(reading()) == 1
    held.let_go()
    for thread in threads:
        thread.join(60)
    assert found == [b"0123456789"] * 2


def test_read_that_cannot_begin_is_told_and_the_next_one_begins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", start)
        assert why(file) == "no thread could be started"
    assert read(str(file), 10) == b"0123456789"


def test_forked_process_reads_what_its_parent_waits_for(
    file: Path, hold: Callable[[Path], Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "READ_SECONDS", 0.3)
    held = hold(file)
    why(file)
    left = reading()
    child = os.fork()
    if child == 0:
        os._exit(0 if not files._READINGS.get() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    held.let_go()
    left[0].join(60)
