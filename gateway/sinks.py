"""Where the record's lines go: standard output, or a file."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import sys
from pathlib import Path
from typing import Final, Protocol

#: A log that accepts nothing for this many seconds is down, and the call is refused.
WRITE_SECONDS: Final = 0.5
#: What an operator does about a line that could not be written.
_WHY: Final = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the disk is full: make room",
    errno.EPIPE: "whoever read the record is gone: start a new instance",
    errno.ETIMEDOUT: "whoever reads the record takes nothing: look at what collects the logs",
}


def why(error: OSError | ValueError) -> str:
    """Say why a line could not be written, and what to do if there is a word for it."""
    if isinstance(error, OSError) and error.strerror:
        return _WHY.get(error.errno or 0, error.strerror)
    return type(error).__name__


class Sink(Protocol):
    """Writes whole lines."""

    def write(self, line: bytes) -> None:
        """Write one line. Raises OSError if it is not written."""


#: The C library's write(2), called while holding the GIL: lines are written one at a time, and releasing the GIL for
#: these few microseconds would only let other threads run into the lock.
_C: Final = ctypes.PyDLL(None, use_errno=True)
_write = _C.write
_write.argtypes, _write.restype = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t), ctypes.c_ssize_t


class Descriptor:
    """Standard output, or any open file. Unbuffered, so that a line is out when the call goes on."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._torn = self._stuck = False
        self._ready = select.poll()
        self._ready.register(descriptor, select.POLLOUT)
        self._pipe = _non_blocking(descriptor)

    def write(self, line: bytes) -> None:
        """See :class:`Sink`. A truncated line is ended before the next one, which stays readable."""
        if self._torn:
            line = b"\n" + line
        while line:
            written = self._write(line) if self._pipe is None else _write(self._pipe, line, len(line))
            if written < 0:
                self._wait(ctypes.get_errno())
                continue
            self._stuck = False
            line = line[written:]
            self._torn = line != b""

    def _write(self, line: bytes) -> int:
        """Write a part of the line. A non-pipe may block, so this path releases the GIL."""
        if not self._ready.poll(0):
            self._wait(errno.EAGAIN)
        # A pipe that is ready accepts this much without blocking.
        return os.write(self._descriptor, line[: select.PIPE_BUF])

    def _wait(self, reason: int) -> None:
        if reason not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(reason, "the record cannot be written")
        # If the log is stuck, only the first writer waits; the rest fail at once.
        if self._stuck or not self._ready.poll(WRITE_SECONDS * 1000):
            self._stuck = True
            raise TimeoutError(errno.ETIMEDOUT, "the log accepts nothing")


def _non_blocking(descriptor: int) -> int | None:
    """Reopen the pipe non-blocking on its own file description. Return None if fd is not a pipe.

    Standard output is a pipe on the platform. Its other writers keep their blocking file description.
    """
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return None
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # no /proc, or a pipe without a reader
        return None


def standard_output() -> Sink:
    """Return the sink of ``AUDIT=stdout``. Raises OSError if that is closed: another file may be 1 by now."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    return Descriptor(1)


class File:
    """A file at a path, which other instances may append to, and which logrotate may move away or remove."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._path = Path(path)
        self._torn = False
        self._open()

    def write(self, line: bytes) -> None:
        """See :class:`Sink`. One system call a line: the kernel puts it whole behind the lines of others."""
        if self._moved():
            old = self._descriptor
            self._open()
            os.close(old)
        written = os.write(self._descriptor, b"\n" + line if self._torn else line) - self._torn
        self._torn = written < len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, "the record was written in part")

    def _open(self) -> None:
        self._descriptor = _append_to(self._path)
        self._opened = os.fstat(self._descriptor)
        self._torn = self._ends_within_a_line()

    def _moved(self) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), self._opened)
        except FileNotFoundError:
            return True

    def _ends_within_a_line(self) -> bool:
        """Whether the last line was cut off by a full disk, or by the end of the process that wrote it."""
        if not self._opened.st_size:
            return False
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"


def _append_to(path: str | Path, flags: int = 0) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)


def to_file(path: str) -> Sink:
    """Return the sink of ``AUDIT=file:PATH``, appended to and readable by its owner alone. Raises OSError.

    What is not a regular file, such as a pipe, is written as standard output is.
    """
    try:
        regular = stat.S_ISREG(Path(path).stat().st_mode)
    except FileNotFoundError:
        regular = True
    if regular:
        return File(path)
    descriptor = _append_to(path, os.O_NONBLOCK)  # a pipe that nobody reads fails, and is not waited for
    os.set_blocking(descriptor, True)
    return Descriptor(descriptor)
