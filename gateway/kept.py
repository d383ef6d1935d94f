"""Values that are read elsewhere and kept here: keys, webhook secrets, certificates, the policy document.

What a call does depends on the age of the value, counted from when its read began:

- up to ``renew``: it uses the value;
- up to ``stale``: one call has it read again, and the others go on with the value at hand;
- up to ``good``: all calls wait for that read, and use the value at hand if the read fails or takes too long;
- past that: all calls wait, and fail if the read does.

There is one read at a time (single flight); the calls that wait for it share its failure. After a failure nothing is
read for a pause: calls get the last good value or, if there is none, the same failure.
"""

from __future__ import annotations

import threading
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec
from cachetools import TTLCache
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: How often values that are too old to be used are deleted. They are few, since keys come from the policy.
SWEEP_SECONDS: Final = 3600.0


class DownError(Exception):
    """The value cannot be read just now. The text is ours and may go on record."""


class GoneError(DownError):
    """The value does not exist, or no longer, or is forbidden: the last good one is not used either."""


_Failure = tuple[type[DownError], str]


class Lifetime(msgspec.Struct, frozen=True):
    """The ages at which a value changes its state, in seconds: ``renew <= stale <= good``."""

    renew: float
    stale: float
    good: float


class _Held(msgspec.Struct, Generic[T], frozen=True):
    value: T
    read_at: float
    renew_at: float
    stale_at: float
    good_until: float


class _Reading(threading.Event):
    """A read in progress; set once it is over. Calls wait up to ``until``, set by the first call that must wait."""

    until = inf


class Kept(Generic[T]):
    """Values by key. Safe for threads.

    ``read(key, deadline)`` returns a value. It raises :class:`GoneError` to drop the value at hand; any other exception
    counts as :class:`DownError`. ``run`` executes a read: the calling thread does, unless it starts another.
    ``pause`` is the seconds between a failure and the next read; ``patience`` is how long calls wait for one read, in
    seconds from the first that has to. Deadlines are on ``clock``.
    """

    def __init__(  # noqa: PLR0913 - independent properties of the cache
        self,
        read: Callable[[str, float], T],
        lifetime: Callable[[T], Lifetime],
        *,
        pause: float,
        clock: Callable[[], float],
        run: Callable[[Callable[[], None]], None] = lambda work: work(),
        patience: float = inf,
    ) -> None:
        self._read, self._lifetime, self._clock = read, lifetime, clock
        self._run, self._patience = run, patience
        self._lock = threading.Lock()
        self._held: dict[str, _Held[T]] = {}
        # As class and text: an exception would keep its stack frames alive.
        self._paused: TTLCache[str, _Failure] = TTLCache(inf, pause, timer=clock)
        self._reading: dict[str, _Reading] = {}
        self._sweep_at = clock() + SWEEP_SECONDS

    def get(self, key: str, deadline: float) -> T:
        """Return the value. Raises :class:`DownError`, or :class:`GoneError` if there is none."""
        held = self._held.get(key)  # no lock on the hot path: a _Held never changes
        if held is not None and self._clock() < held.renew_at:
            return held.value
        return self._renewed(key, deadline, None)

    def renew(self, key: str, refused: T, deadline: float) -> T:
        """Return a value other than ``refused``: the one at hand if it differs, else a new one.

        Raises as :meth:`get` does, and :class:`DownError` if the value is still ``refused``.
        """
        return self._renewed(key, deadline, refused)

    def drop(self, key: str, refused: T) -> None:
        """Use ``refused`` only as the last good value from now on: the next call reads, and all wait for it."""
        with self._lock:
            held = self._held.get(key)
            if held is not None and held.value == refused:
                self._held[key] = replace(held, read_at=-inf, renew_at=-inf, stale_at=-inf)

    def put(self, key: str, value: T, read_at: float) -> None:
        """Keep a value whose read began at ``read_at``."""
        ages = self._lifetime(value)
        held = _Held(value, read_at, read_at + ages.renew, read_at + ages.stale, read_at + ages.good)
        with self._lock:
            now = self._clock()
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP_SECONDS
                for old in [name for name, each in self._held.items() if now >= each.good_until]:
                    del self._held[old]
            self._held[key] = held

    def _renewed(self, key: str, deadline: float, refused: T | None) -> T:
        arrived = self._clock()
        late: _Failure | None = None
        while True:
            with self._lock:
                now = self._clock()
                held = self._held.get(key)
                if held is not None and held.value == refused:
                    held = None
                # A read that began after this call arrived is new enough for it, however long it took.
                if held is not None and (now < held.renew_at or held.read_at >= arrived):
                    return held.value
                failure = self._paused.get(key) or late
                if failure is not None:
                    if held is not None and now < held.good_until:
                        return held.value
                    kind, text = failure
                    raise kind(text)
                reading = self._reading.get(key)
                mine = reading is None
                if reading is None:
                    reading = self._reading[key] = _Reading()
                must_wait = held is None or now >= held.stale_at
                if must_wait:
                    reading.until = min(reading.until, now + self._patience)
            if mine:
                self._begin(key, reading, deadline, refused)
            if not reading.wait(max(0.0, min(deadline, reading.until) - now) if must_wait else 0.0):
                late = DownError, "another call's read took too long"

    def _begin(self, key: str, reading: _Reading, deadline: float, refused: T | None) -> None:
        try:
            self._run(partial(self._carry_out, key, reading, deadline, refused))
        except RuntimeError:  # no thread can be started, as at the end of the process
            self._end(key, reading, (DownError, "no thread could be started"))

    def _carry_out(self, key: str, reading: _Reading, deadline: float, refused: T | None) -> None:
        began = self._clock()
        failure: _Failure | None = DownError, "the read was broken off"
        try:
            value = self._read(key, deadline)
            self.put(key, value, began)
            failure = (DownError, "it has not changed") if value == refused else None
        except DownError as error:
            failure = type(error), str(error)
        except Exception as error:  # noqa: BLE001 - unforeseen, and its text may contain anything
            failure = DownError, type(error).__name__
        finally:
            self._end(key, reading, failure)

    def _end(self, key: str, reading: _Reading, failure: _Failure | None) -> None:
        with self._lock:
            del self._reading[key]
            if failure is not None:
                self._paused[key] = failure
                if issubclass(failure[0], GoneError):
                    self._held.pop(key, None)
        reading.set()
