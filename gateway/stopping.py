"""The end of this instance: between SIGTERM and SIGKILL it has ten seconds.

What is being sent ends early enough that each call is still settled, recorded and answered by its own thread. The
server's worker notes the SIGTERM here, and ends the sends; the stock worker does not, and a call that lasts longer is
killed.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from math import inf
from typing import Final

#: Seconds from SIGTERM to the end of every send: a second and a half for what follows, of the ten there are.
SEND_SECONDS: Final = 7.0


#: Nothing is sent with less time left than this: its outcome would be unknown.
LEAST_SECONDS: Final = 1.0


class Stopping:
    """When sends must have ended, and the connections on which they are made."""

    def __init__(self) -> None:
        self.ends = inf
        """By the monotonic clock; infinite while the instance runs on."""
        self._connections: set[int] = set()
        self._ended: deque[int] = deque()
        """Those of them that wait to be closed."""
        self._closing = threading.Lock()
        """Who has it may close connections, or keeps others from it. Only :meth:`end_sends` waits for it."""

    @property
    def over(self) -> bool:
        """Whether sends must have ended by now."""
        return time.monotonic() >= self.ends

    def begin(self, now: float) -> None:
        """Note a SIGTERM at ``now``. Only the first counts."""
        self.ends = min(self.ends, now + SEND_SECONDS)

    def left(self, deadline: float, now: float) -> float:
        """Return how many seconds a call has from ``now`` until its deadline or the end of sends."""
        return min(deadline, self.ends) - now

    def opened(self, number: int) -> None:
        """Note a connection to an upstream, by its file descriptor."""
        self._connections.add(number)

    def close(self, number: int) -> int:
        """Close such a connection. Nobody else may, or :meth:`end_sends` could meet another with its number.

        The garbage collector may free a handle anywhere, also in the thread that has the lock. So this waits for
        nobody: whoever has the lock closes the connection next. Return 0, which tells libcurl that it is closed.
        """
        self._ended.append(number)
        self._close_ended()
        return 0

    def end_sends(self) -> None:
        """Shut all of them down, whatever is under way there. Whoever sends learns of it at once, in its own thread.

        To have each send ask for the time itself would take the GIL ten times a call, which doubles what a call waits.
        """
        with self._closing:
            for number in self._connections.copy():  # others go on opening connections
                connection = socket.socket(fileno=number)
                with suppress(OSError):  # it is not connected yet, or not any more
                    connection.shutdown(socket.SHUT_RDWR)
                connection.detach()
        self._close_ended()

    def _close_ended(self) -> None:
        # Whoever finds the lock taken has left its connection where this looks once more after the lock was released.
        while self._ended and self._closing.acquire(blocking=False):
            try:
                while self._ended:
                    number = self._ended.popleft()
                    self._connections.discard(number)
                    os.close(number)
            finally:
                self._closing.release()


#: This process's.
STOPPING: Final = Stopping()
