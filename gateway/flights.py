"""Single flight: work that no time limit ends, such as ``getaddrinfo`` or what Google's client does to sign in.

A thread does it, one for each key. All who ask for the same wait for that thread, each for its own time. The work goes
on when they have given up, and who asks next waits for what is under way.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from gateway.forks import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


class _Flight(msgspec.Struct, Generic[T], frozen=True):
    """Work under way. ``found`` is filled just before it ends."""

    ended: threading.Event = msgspec.field(default_factory=threading.Event)
    found: list[T | Exception] = msgspec.field(default_factory=list)


class SingleFlight(Generic[T]):
    """Work by key. Safe for threads; ``name`` is that of those that do it."""

    def __init__(self, name: str) -> None:
        self._name = name
        # A forked process has none of its parent's threads.
        self._under_way: PerProcess[dict[Hashable, _Flight[T]]] = PerProcess(dict)

    def get(self, key: Hashable, work: Callable[[], T], seconds: float) -> T:
        """Return what ``work`` does, or raise what it raises. Raises :class:`TimeoutError` after ``seconds``."""
        under_way = self._under_way.get()
        mine: _Flight[T] = _Flight()
        flight = under_way.setdefault(key, mine)

        def fly() -> None:
            try:
                mine.found.append(work())
            except Exception as error:  # noqa: BLE001 - it is raised below
                mine.found.append(error)
            finally:
                del under_way[key]
                mine.ended.set()

        if flight is mine:
            try:
                threading.Thread(target=fly, name=self._name, daemon=True).start()
            except RuntimeError:  # no thread can be started, as at the end of the process
                fly()
        if not flight.ended.wait(max(0.0, seconds)):
            raise TimeoutError
        found = flight.found[0]
        if isinstance(found, Exception):
            raise found
        return found

    def make(self, value: PerProcess[T], seconds: float) -> T:
        """Return this process's value, making it if there is none yet. Raises as :meth:`get` does."""
        made = value.made()
        return self.get(value, value.get, seconds) if made is None else made
