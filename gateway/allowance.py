"""How often a caller may ask what costs it nothing: previews, and the questions about itself.

Such a call uses up no limit of the policy, so it has one of its own, which all of them share. It is counted in each
instance by itself. Strangers, who may ask for what is put together for everybody, share one: theirs is nobody's.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from policies.refusals import AskedTooOften

if TYPE_CHECKING:
    from collections.abc import Callable

#: In any second. A form that is checked while somebody types asks twice or three times.
CALLS: Final = 10
SECONDS: Final = 1.0


class Allowance:
    """The free calls of each caller. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: When each caller's last calls were, oldest first. Who has asked nothing for a second is left out.
        self._asked: dict[str | None, deque[float]] = {}
        self._tidied = 0.0

    def take(self, caller: str | None) -> None:
        """Count one call of ``caller``, by its id; None is a stranger. Raises :class:`AskedTooOften`, uncounted."""
        with self._lock:
            now = self._clock()
            if now - self._tidied >= SECONDS:
                self._asked = {who: times for who, times in self._asked.items() if now - times[-1] < SECONDS}
                self._tidied = now
            times = self._asked.setdefault(caller, deque(maxlen=CALLS))
            if len(times) == CALLS and now - times[0] < SECONDS:
                raise AskedTooOften(None if caller is not None else AskedTooOften.strangers, retry_after=1)
            times.append(now)
