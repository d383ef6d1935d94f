"""Fork awareness: gunicorn forks its workers after the function is loaded, and connections do not survive that."""

from __future__ import annotations

import os
import pickle
import threading
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that each process makes for itself on first use. Safe for threads."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: tuple[int, T] | None = None

    def get(self) -> T:
        """Return this process's value. Raises what making it raises; the next use then tries again."""
        made = self._made
        if made is not None and made[0] == os.getpid():
            return made[1]
        with self._lock:
            value = self.made()
            if value is None:
                value = self._make()
                self._made = os.getpid(), value
            return value

    def made(self) -> T | None:
        """Return this process's value; None if it has not made one."""
        made = self._made
        return made[1] if made is not None and made[0] == os.getpid() else None

    def drop(self) -> T | None:
        """Forget this process's value, so that the next use makes another; return what :meth:`made` would."""
        with self._lock:
            value, self._made = self.made(), None
            return value


def apart(work: Callable[[], T]) -> T:
    """Do ``work`` in a child process and return its value, or raise its exception; both must be picklable.

    For what the server's master does with gRPC. Its threads end some time after its last channel is closed; a worker
    that is forked meanwhile inherits their locks, and its own first call then hangs for ever (4 of 100 starts).
    A process that has threads of its own is not that master, and must not be forked either: there it is a plain call.
    Raises :class:`ChildProcessError` if the child ends without a result.
    """
    if threading.active_count() > 1:
        return work()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _tell(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    if not told:
        raise ChildProcessError
    error, value = pickle.loads(told)  # noqa: S301 - of our own child
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]  # pickle has no types


def _tell(work: Callable[[], object], writing: int) -> NoReturn:
    """Write the exception and the value of ``work``, one of them None, and end the process: no handler, no flush."""
    try:
        try:
            told = pickle.dumps((None, work()))
        except Exception as error:  # noqa: BLE001 - it is raised in the parent
            told = pickle.dumps((error, None))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(told)
    finally:
        os._exit(0)
