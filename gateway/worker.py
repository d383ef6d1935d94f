"""The server's worker: a gthread worker that keeps reading from the same connection for 5 ms after a response.

A busy client sends its next call right after the last. gunicorn's own worker returns the connection to its poller each
time, which costs more than the whole call does here: under load, more than half of the process's time. Here the thread
that wrote the response waits for the next call itself, unless another connection waits for a thread.

Every system call releases the GIL, and taking it back is the largest cost under load. So a response is one write, and
waiting for a call and reading it are one read.
"""

from __future__ import annotations

import logging
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
#: Long enough for a busy client's next call, short enough not to starve the pool.
MOMENT_MILLISECONDS: Final = 5
_MOMENT: Final = struct.pack("@ll", 0, MOMENT_MILLISECONDS * 1000)
_FOREVER: Final = struct.pack("@ll", 0, 0)
#: As many bytes as gunicorn reads at once.
_READ: Final = 8192


def configure() -> None:
    """Make this the worker of the framework's server, which is configured after ``main.py`` is loaded."""
    os.environ.setdefault("THREADS", DEFAULT_THREADS)
    # The server of --debug logs the first line of every call; of one that it cannot read, that may be a key.
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    gunicorn.config.GracefulTimeout.default = GRACE_SECONDS
    gunicorn.config.WorkerClass.default = "gateway.worker.Worker"


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Answers calls in threads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: deque[Any] = deque()

    def enqueue_req(self, conn: Any) -> None:
        """Queue a connection for a thread."""
        self._waiting.append(conn)
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """Serve a connection, in a thread. Return what gunicorn's own worker does."""
        self._waiting.popleft()  # only the count matters, so pop any
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer a call and those that follow within a moment. Return whether the connection is kept alive."""
        while True:
            if not self._answer(req, conn):
                return False
            if self._waiting or not _read_to_its_end(req) or not _more(conn):
                return True
            conn.parser.mesg = None  # its body is read; the parser would check that with three more system calls
            req = next(conn.parser)

    def _answer(self, req: Any, conn: Any) -> bool:
        """Do what gunicorn's own worker does, without its hooks and its access log, which nothing here sets."""
        answer, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg)
        environ["wsgi.multithread"] = True
        answer.sock = pieces = _Pieces()
        parts = self.wsgi(environ, answer.start_response)
        # After a body that could not be read, the start of the next call is unknown.
        if req.body.failed or not self.alive or len(self.keepalived_conns) >= self.max_keepalived:
            answer.force_close()
        for part in parts:
            answer.write(part)
        answer.close()
        conn.sock.sendall(b"".join(pieces))
        return not answer.should_close()


class _Pieces(list[bytes]):
    """Collects what gunicorn writes of a response, to be sent at once."""

    sendall = list.append


def _read_to_its_end(req: Any) -> bool:
    """Whether a call's body was read to the end of its Content-Length; gunicorn drains any other."""
    return getattr(req.body.reader, "length", None) == 0


def _more(conn: Any) -> bool:
    """Whether the connection is readable within a moment. A closed one is, too; the parser then notices."""
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
