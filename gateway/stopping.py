"""The end of this instance: between SIGTERM and SIGKILL it has ten seconds.

What is being sent ends early enough that each call is still settled, recorded and answered by its own thread. The
server's worker notes the SIGTERM here; the stock worker does not, and a call that lasts longer is killed.
"""

from __future__ import annotations

from math import inf
from typing import Final

#: Seconds from SIGTERM to the end of every send: a second and a half for what follows, of the ten there are.
SEND_SECONDS: Final = 7.0


#: Nothing is sent with less time left than this: its outcome would be unknown.
LEAST_SECONDS: Final = 1.0


class Stopping:
    """When sends must have ended."""

    def __init__(self) -> None:
        self.ends = inf
        """By the monotonic clock; infinite while the instance runs on."""

    def begin(self, now: float) -> None:
        """Note a SIGTERM at ``now``. Only the first counts."""
        self.ends = min(self.ends, now + SEND_SECONDS)

    def left(self, deadline: float, now: float) -> float:
        """Return how many seconds a call has from ``now`` until its deadline or the end of sends."""
        return min(deadline, self.ends) - now


#: This process's.
STOPPING: Final = Stopping()
