"""Fork awareness: gunicorn forks its workers after the function is loaded, and connections do not survive that."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

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
