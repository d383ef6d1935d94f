"""Files that an operator names: read within a bounded time and up to a bounded size, or not at all.

A pipe that nobody writes to, or a mount whose server is gone (NFS, FUSE), makes open() and read() wait in the kernel,
and even stat(); no timeout ends that. So a thread reads, and is left behind if it takes too long: one for each path at
most, since a path that has such a thread is not read until that has ended.
"""

from __future__ import annotations

import stat
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from gateway.forks import PerProcess

#: Long enough for a mounted volume that fetches what it is asked for, short enough to leave a call 20 of its 25 s.
READ_SECONDS: Final = 5.0

#: What a path may lead to instead of a file. Nothing of it is opened: opening some devices sets them off.
_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnreadableError(Exception):
    """The file cannot be read. The text says why, in words that may go on record."""


class MissingError(UnreadableError):
    """There is no such file."""


class _Reading(msgspec.Struct, frozen=True):
    """A read in progress. ``found`` is filled just before it ends."""

    until: float
    ended: threading.Event = msgspec.field(default_factory=threading.Event)
    found: list[bytes | UnreadableError] = msgspec.field(default_factory=list)


#: By path. A forked process has none of its parent's threads.
_READINGS: Final[PerProcess[dict[str, _Reading]]] = PerProcess(dict)


def read(path: str, most: int) -> bytes:
    """Return the bytes of a file, the first ``most`` if there are more. Raises :class:`UnreadableError`."""
    readings = _READINGS.get()
    while True:
        mine = _Reading(time.monotonic() + READ_SECONDS)
        ahead = readings.setdefault(path, mine)
        if ahead is mine:
            break
        # What it finds may be older than the caller is content with, so nobody shares it.
        if not ahead.ended.wait(max(0.0, ahead.until - time.monotonic())):
            raise _late()

    def work() -> None:
        try:
            mine.found.append(_read(path, most))
        finally:
            del readings[path]
            mine.ended.set()

    # A daemon, so that the process can end without it.
    thread = threading.Thread(target=work, name="file", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread can be started, as at the end of the process
        del readings[path]
        mine.ended.set()
        raise UnreadableError("no thread could be started") from None
    thread.join(READ_SECONDS)  # not just until it has found it: a process that has threads is not forked
    if not mine.found:
        raise _late()
    if isinstance(mine.found[0], UnreadableError):
        raise mine.found[0]
    return mine.found[0]


def _late() -> UnreadableError:
    return UnreadableError(f"reading it takes longer than {READ_SECONDS:g} s")


def _read(path: str, most: int) -> bytes | UnreadableError:
    try:
        kind = stat.S_IFMT(Path(path).stat().st_mode)
        if kind != stat.S_IFREG:
            return UnreadableError(f"the path leads to {_KINDS.get(kind, 'no file')}")
        with Path(path).open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        return MissingError("there is no such file")
    except PermissionError:
        return UnreadableError("this process may not read it")
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        return UnreadableError(type(error).__name__)
