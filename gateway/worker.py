"""The server's worker: gunicorn's threaded one, which stays with a connection for a moment after an answer.

A connection in use brings its next call right behind the last. gunicorn hands it back to its dispatcher each time,
which costs more than the whole call does here: under load, more than half of the process's time. The thread that
wrote an answer waits a moment for the next call instead, unless another connection waits for a thread, and only then
lets the dispatcher wait for it.

Every system call lets another thread have the interpreter, and getting it back is what costs most under load. So an
answer goes out whole, in one, and the wait for a call is the read of it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from typing import Any, Final

import gunicorn.config
from gunicorn.http import wsgi
from gunicorn.workers.gthread import ThreadWorker

#: Cloud Run's own default for the calls that one instance gets at once; deploy/ sets both to the same number.
DEFAULT_THREADS: Final = "80"
#: An instance has ten seconds between SIGTERM and SIGKILL: calls that end by then are still recorded.
GRACE_SECONDS: Final = 9
#: Long enough for a busy client's next call, short enough that a thread is hardly ever missed.
MOMENT_MILLISECONDS: Final = 5
_MOMENT: Final = struct.pack("@ll", 0, MOMENT_MILLISECONDS * 1000)
_FOREVER: Final = struct.pack("@ll", 0, 0)
#: As much of a call as gunicorn reads at once.
_READ: Final = 8192


def configure() -> None:
    """Have the framework's server work this way. It is configured after ``main.py`` is loaded, and reads these."""
    os.environ.setdefault("THREADS", DEFAULT_THREADS)
    gunicorn.config.GracefulTimeout.default = GRACE_SECONDS
    gunicorn.config.WorkerClass.default = "gateway.worker.Worker"


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
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer a call, and those that follow at once. Return whether the connection is kept."""
        while True:
            if not self._answer(req, conn):
                return False
            if not self.alive or self._waiting or not _read_to_its_end(req) or not _more(conn):
                return True
            conn.parser.mesg = None  # it is done, and making sure takes three more system calls
            req = next(conn.parser)

    def _answer(self, req: Any, conn: Any) -> bool:
        """Do what gunicorn's own does, but for its hooks and its access log, which nothing here sets."""
        answer, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg)
        environ["wsgi.multithread"] = True
        if not self.alive or len(self.keepalived_conns) >= self.max_keepalived:
            answer.force_close()
        answer.sock = pieces = _Pieces()
        parts = self.wsgi(environ, answer.start_response)
        if req.body.failed:  # where the next call would begin is not known
            answer.force_close()
        for part in parts:
            answer.write(part)
        answer.close()
        conn.sock.sendall(b"".join(pieces))
        return not answer.should_close()


class _Pieces(list[bytes]):
    """Takes what gunicorn writes of an answer, to go out together."""

    sendall = list.append


def _read_to_its_end(req: Any) -> bool:
    """Whether a call's body was read as far as its Content-Length says; gunicorn drains what was not."""
    return getattr(req.body.reader, "length", None) == 0


def _more(conn: Any) -> bool:
    """Whether more comes on this connection within a moment; its end counts, which the parser finds."""
    if conn.parser.unreader.buf.getvalue():
        return True
    conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _MOMENT)
    try:
        conn.parser.unreader.unread(conn.sock.recv(_READ))
    except BlockingIOError:
        return False
    finally:
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _FOREVER)
    return True
