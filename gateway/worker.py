"""The server's worker: gunicorn's threaded one, which stays with a connection for a moment after an answer.

A connection in use brings its next call right behind the last. gunicorn hands it back to its dispatcher each time,
which costs more than the whole call does here: under load, more than half of the process's time. The thread that
wrote an answer waits a moment for the next call instead, unless another connection waits for a thread, and only then
lets the dispatcher wait for it.
"""

from __future__ import annotations

import select
from collections import deque
from typing import Any, Final

from gunicorn.workers.gthread import ThreadWorker

#: Long enough for a busy client's next call, short enough that a thread is hardly ever missed.
MOMENT_MILLISECONDS: Final = 5


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Answers calls in threads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: deque[Any] = deque()

    def enqueue_req(self, conn: Any) -> None:
        """Have a thread answer a connection's call."""
        self._waiting.append(conn)
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """Answer a connection's call, and those that follow at once. Return what gunicorn's own does of the last."""
        self._waiting.popleft()  # one of those that waited has a thread now; which, does not matter
        kept = super().handle(conn)
        while kept is True and self.alive and not self._waiting and _ready(conn):
            kept = super().handle(conn)
        return kept


def _ready(conn: Any) -> bool:
    """Whether more comes on this connection within a moment; its end counts, which the parser finds."""
    if conn.parser.unreader.buf.getvalue():
        return True
    poll = select.poll()
    poll.register(conn.sock, select.POLLIN)
    return bool(poll.poll(MOMENT_MILLISECONDS))
