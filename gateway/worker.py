"""The server's worker: no thread of it waits for a peer, except for the next call of a busy one, and that for 5 ms.

The main thread is the poller. It reads each connection until a whole call is there, and then gives it to a thread;
it sends what a socket did not take at once, and waits for the peer's end of a connection that is closed. Each of these
has a deadline. So strangers who send nothing, send slowly, do not read or do not hang up hold a socket, and no thread.
If connections run out, they are the first to lose theirs.

A busy client sends its next call right after the last. To return the connection to the poller each time would cost more
than the whole call does here. So the thread that wrote the response waits for the next call itself, for a moment,
unless another connection waits for a thread.

Every system call releases the GIL, and taking it back is the largest cost under load. So a response is one write, and
waiting for a call and reading it are one read.

It stands on gunicorn's internals, and so on the versions that it is tested with; :mod:`gateway.serving` takes it only
for those.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import selectors
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from functools import lru_cache, partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from gunicorn import util
from gunicorn.http import get_parser, wsgi
from gunicorn.http.errors import LimitRequestHeaders, NoMoreData, ParseException
from gunicorn.workers.base import Worker as Base

from gateway.answering import AUDIT_ID
from gateway.arriving import MAX_HEAD, Arriving
from gateway.doors import OURS
from gateway.reading import BODY_SECONDS, LATE, UNREADABLE
from gateway.record import BEGAN
from gateway.stopping import SEND_SECONDS, STOPPING
from gateway.unreadable import stand_in, why

if TYPE_CHECKING:
    from collections.abc import Callable

    from policies.refusals import BadCall

#: Our own end comes before that, and its last line is on record, whatever peers do.
STOP_SECONDS: Final = SEND_SECONDS + 1.5
#: Until then peers are waited for, once all calls have ended: what is owed to the store may take a second more.
PEERS_SECONDS: Final = SEND_SECONDS + 0.5
#: A client of a kept connection may be sending its next call as we stop: it is answered, and the last.
LAST_CALL_SECONDS: Final = 2.0
#: Long enough for a busy client's next call, short enough not to starve the pool.
MOMENT_MILLISECONDS: Final = 5
#: From the first byte of a call to its last, and from a connection to its first byte.
ARRIVING_SECONDS: Final = BODY_SECONDS
#: A caller takes its answer in this time, of which most is sent at once.
SENDING_SECONDS: Final = 10.0
#: A peer that is told of the end hangs up in this time. Closed at once, what it is still sending would reset the
#: connection, and take our last answer with it.
LEAVING_SECONDS: Final = 2.0
#: So much is read of what such a peer goes on sending.
MAX_LEFT: Final = 1024 * 1024
#: Bytes of unfinished calls and unread answers, of all connections: beyond it the largest is closed.
MAX_HELD: Final = 32 * 1024 * 1024
#: What the kernel keeps of unread answers for each connection, of which it would otherwise take megabytes.
SEND_BUFFER: Final = 64 * 1024
#: How often deadlines are looked at, and how often while the instance stops.
TURN_SECONDS: Final = 0.5
LAST_TURNS_SECONDS: Final = 0.1
#: File descriptors that are no connections of ours: one or two a thread to upstreams, a store's, files.
OTHER_FILES: Final = 100
#: As many bytes as gunicorn reads at once.
_READ: Final = 8192
_MOMENT: Final = struct.pack("@ll", 0, MOMENT_MILLISECONDS * 1000)
_TOKEN = re.compile(r"[A-Za-z0-9-]+")
_WORDS = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NOW: Final = socket.MSG_DONTWAIT


class Connection:
    """A client's connection, and what has come on it."""

    __slots__ = (
        "answered",
        "arriving",
        "began",
        "client",
        "ended",
        "held",
        "keeps",
        "late",
        "left",
        "parser",
        "server",
        "shelf",
        "since",
        "sock",
        "unreadable",
        "unsent",
    )

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _MOMENT)  # for a thread; the poller never waits
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.sock, self.client, self.server = sock, client, server
        self.parser = get_parser(cfg, (), client)
        self.arriving = Arriving()
        self.began = time.monotonic()
        """When the server learned of the next call."""
        self.keeps, self.answered, self.late, self.ended = True, False, False, False
        """Whether it is kept; whether a caller's call on it succeeded, so that it is no stranger's; whether the call is
        overdue; whether the peer's side is closed."""
        self.unreadable: BadCall | None = None
        """Why the call cannot be read."""
        self.unsent: memoryview = memoryview(b"")
        self.left = MAX_LEFT
        """Bytes that are still read of it once it is being closed."""
        self.shelf: dict[Connection, float] | None = None
        """Where the poller has it; None while a thread does."""
        self.since = self.began
        """Since when it is there."""
        self.held = 0
        """Bytes of it that count for :data:`MAX_HELD`."""

    def take(self, flags: int = 0) -> bool:
        """Read some of the next call. Return whether a thread can take it.

        Raises :class:`BlockingIOError` if nothing came; any other :class:`OSError` if the connection broke.
        """
        data = self.sock.recv(_READ, flags)
        arriving = self.arriving
        if not arriving.data:
            self.began = time.monotonic()
        if not data:
            self.ended = True
            return arriving.head
        arriving.data += data
        return arriving.ready()

    def more(self) -> bool:
        """Whether the next call comes within a moment."""
        if self.arriving.ready():
            return True
        try:
            return self.take() or (not self.ended and self.take())  # clients send head and body apart
        except BlockingIOError:
            return False
        except OSError:
            self.keeps = False
            return False

    def send(self, data: bytes | memoryview) -> None:
        """Send what the socket takes at once; the rest is the poller's. Raises :class:`OSError`."""
        try:
            sent = self.sock.send(data, _NOW)
        except BlockingIOError:
            sent = 0
        self.unsent = memoryview(data)[sent:]


class Worker(Base):  # type: ignore[misc]  # gunicorn has no types
    """Answers calls in threads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # gunicorn looks a setting up in two tables whenever it is asked for, which is some twenty times a call.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        self._poller = selectors.DefaultSelector()
        self._capacity = _capacity(self.cfg)
        #: What the poller has, each in the order of their deadlines.
        self._arriving: dict[Connection, float] = {}
        self._kept: dict[Connection, float] = {}
        self._sending: dict[Connection, float] = {}
        self._leaving: dict[Connection, float] = {}
        self._held = 0
        #: What threads have, or wait for one; what they are done with; how many threads there are.
        self._out: set[Connection] = set()
        self._queue: SimpleQueue[Connection] = SimpleQueue()
        self._back: deque[Connection] = deque()
        self._threads = 0
        self._listening = False
        self._full_until = 0.0
        self._looked = 0.0

    # ------------------------------------------------------------ in the main thread

    def handle_exit(self, sig: int, frame: object) -> None:
        """Begin to stop, at SIGTERM. The poller wakes up by the signal."""
        STOPPING.begin(time.monotonic())
        super().handle_exit(sig, frame)

    def run(self) -> None:
        """Serve until SIGTERM, and then what is under way."""
        self._poller.register(self.PIPE[0], selectors.EVENT_READ, self._woken)
        for listener in self.sockets:
            listener.settimeout(0)
        while self.alive:
            self._listen(on=self._room() > 0 and time.monotonic() >= self._full_until)
            self._turn(TURN_SECONDS)
        self._stop()

    def _stop(self) -> None:
        began = time.monotonic()
        STOPPING.begin(began)  # also if gunicorn's master is gone
        for listener in self.sockets:  # who waits there gets an answer, too
            self._accept(listener)
        self._listen(on=False)
        for listener in self.sockets:
            listener.close()
        while time.monotonic() < began + (STOP_SECONDS if self._out else PEERS_SECONDS):
            self._turn(LAST_TURNS_SECONDS)
            if STOPPING.over:
                STOPPING.end_sends()
            if time.monotonic() > began + LAST_CALL_SECONDS:
                for conn in [*self._arriving, *self._kept]:
                    self._part(conn)
            if not (self._out or self._sending or self._arriving or self._kept or self._leaving):
                break

    def _turn(self, most: float) -> None:
        for key, _ in self._poller.select(most):
            key.data(key.fileobj)
        while self._back:
            self._take_back(self._back.popleft())
        now = time.monotonic()
        if now - self._looked >= most:
            self._looked = now
            self.notify()
            self._expire(now)
            self._start_thread()
            if self.ppid != os.getppid():  # the master is gone
                self.alive = False

    def _woken(self, pipe: int) -> None:
        with suppress(BlockingIOError):
            os.read(pipe, _READ)

    def _listen(self, *, on: bool) -> None:
        if on is not self._listening:
            self._listening = on
            for listener in self.sockets:
                if on:
                    self._poller.register(listener, selectors.EVENT_READ, self._accept)
                else:
                    self._poller.unregister(listener)

    def _room(self) -> int:
        """Return how many more connections there may be, those included that can be closed for it."""
        return self._capacity - len(self._out)

    def _accept(self, listener: Any) -> None:
        try:
            for _ in range(max(0, min(self._room(), self.cfg.backlog))):
                sock, client = listener.accept()
                if self._count() >= self._capacity:
                    self._close_one()
                self._put(Connection(self.cfg, sock, client, listener.getsockname()), self._arriving, ARRIVING_SECONDS)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self._full_until = time.monotonic() + TURN_SECONDS
                self._close_one()

    def _count(self) -> int:
        return sum(map(len, (self._arriving, self._kept, self._sending, self._leaving, self._out)))

    def _close_one(self) -> None:
        """Close the connection that has stood still for longest: of those that are over, of strangers, of all.

        None whose call is there by now.
        """
        waiting = (self._arriving, self._kept, self._sending)
        for shelves, of_all in (((self._leaving,), True), (waiting, False), (waiting, True)):
            while oldest := [one for shelf in shelves if (one := _oldest(shelf, of_all=of_all)) is not None]:
                conn = min(oldest, key=lambda one: one.since)
                shelf = conn.shelf
                if shelf is not self._sending and shelf is not self._leaving:
                    self._read(conn)
                if conn.shelf is shelf:
                    self._drop(conn)
                    return

    # ------------------------------------------------------------ where the poller has a connection

    def _put(self, conn: Connection, shelf: dict[Connection, float], seconds: float) -> None:
        """Keep a connection until something happens on it, or its time is over."""
        conn.since = time.monotonic()
        shelf[conn] = conn.since + seconds
        conn.shelf = shelf
        act = self._send if shelf is self._sending else self._drain if shelf is self._leaving else self._read
        event = selectors.EVENT_WRITE if shelf is self._sending else selectors.EVENT_READ
        self._poller.register(conn.sock, event, partial(_on, act, conn))
        self._hold(conn)

    def _take(self, conn: Connection) -> None:
        """Take a connection away from the poller."""
        assert conn.shelf is not None  # noqa: S101 - the poller has it
        del conn.shelf[conn]
        conn.shelf = None
        self._held -= conn.held
        conn.held = 0
        self._poller.unregister(conn.sock)

    def _hold(self, conn: Connection) -> None:
        """Count the bytes that are held of a connection. If that is too much, close the one with the most."""
        held = len(conn.arriving.data) + len(conn.unsent)
        self._held += held - conn.held
        conn.held = held
        if self._held > MAX_HELD:
            self._drop(max((*self._arriving, *self._sending), key=lambda one: one.held))

    def _drop(self, conn: Connection) -> None:
        """Close a connection at once."""
        if conn.shelf is not None:
            self._take(conn)
        conn.sock.close()

    def _part(self, conn: Connection) -> None:
        """Close a connection once its peer has done so too, or its time is over (RFC 9112, 9.6)."""
        if conn.shelf is not None:
            self._take(conn)
        conn.arriving = Arriving()
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the peer is gone
            conn.ended = True
        if conn.ended:
            conn.sock.close()
        else:
            self._put(conn, self._leaving, LEAVING_SECONDS)

    def _expire(self, now: float) -> None:
        """End what is overdue."""
        for shelf, end in (
            (self._arriving, self._overdue),
            (self._kept, self._overdue),
            (self._sending, self._drop),
            (self._leaving, self._drop),
        ):
            while (conn := next(iter(shelf), None)) is not None and shelf[conn] <= now:
                end(conn)

    def _overdue(self, conn: Connection) -> None:
        """End the wait for a call. One that is there by now is answered; one that began is answered that it is late."""
        shelf, until = conn.shelf, time.monotonic()
        self._read(conn)
        if conn.shelf is None or conn.shelf is not shelf or conn.shelf[conn] > until:
            return
        if conn.arriving.head:
            conn.late = True
            self._take(conn)
            self._give(conn)
        else:
            self._part(conn)

    # ------------------------------------------------------------ what happens on a connection

    def _read(self, conn: Connection) -> None:
        first = not conn.arriving.data
        try:
            ready = conn.take(_NOW)
        except BlockingIOError:
            return
        except OSError:
            self._drop(conn)
            return
        if ready:
            self._take(conn)
            self._give(conn)
        elif conn.ended:
            self._drop(conn)
        else:
            if first and conn.shelf is not None:  # from here on the call has its time
                del conn.shelf[conn]
                conn.shelf = self._arriving
                conn.since = conn.began
                self._arriving[conn] = conn.began + ARRIVING_SECONDS
            self._go_ahead(conn)
            self._hold(conn)

    def _go_ahead(self, conn: Connection) -> None:
        """Tell a client that holds its body back to send it."""
        if conn.arriving.awaits_continue:
            conn.arriving.awaits_continue = False
            with suppress(OSError):  # who takes nothing is overdue before long
                conn.sock.send(_CONTINUE, _NOW)

    def _send(self, conn: Connection) -> None:
        try:
            conn.send(conn.unsent)
        except OSError:
            self._drop(conn)
            return
        if conn.unsent:
            self._hold(conn)
        else:
            self._take(conn)
            self._go_on(conn)

    def _drain(self, conn: Connection) -> None:
        try:
            data = conn.sock.recv(_READ, _NOW)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        conn.left -= len(data)
        if not data or conn.left < 0:
            self._drop(conn)

    def _give(self, conn: Connection) -> None:
        """Queue a connection for a thread."""
        self._out.add(conn)
        self._queue.put(conn)
        self._start_thread()

    def _start_thread(self) -> None:
        """Start one more thread if there is work for it. If none can be started now, those there are take the queue."""
        if self._threads < min(self.cfg.threads, len(self._out)):
            thread = threading.Thread(target=self._work, name=f"call-{self._threads + 1}", daemon=True)
            with suppress(RuntimeError):
                thread.start()
                self._threads += 1

    def _take_back(self, conn: Connection) -> None:
        """Take a connection back from its thread."""
        self._out.discard(conn)
        if conn.unsent:
            self._put(conn, self._sending, SENDING_SECONDS)
        else:
            self._go_on(conn)

    def _go_on(self, conn: Connection) -> None:
        """Do what follows an answer that was sent."""
        if not conn.keeps:
            self._part(conn)
        elif conn.arriving.ready():
            self._give(conn)
        elif conn.ended:
            self._drop(conn)
        elif conn.arriving.data:
            self._put(conn, self._arriving, ARRIVING_SECONDS)
            self._go_ahead(conn)
        else:
            self._put(conn, self._kept, self.cfg.keepalive)

    # ------------------------------------------------------------ in a thread

    def _work(self) -> None:
        while True:
            conn = self._queue.get()
            try:
                self._serve(conn)
            finally:
                self._back.append(conn)
                with suppress(BlockingIOError):  # then it wakes up anyway
                    os.write(self.PIPE[1], b"\0")

    def _serve(self, conn: Connection) -> None:
        """Answer a call and those that follow within a moment."""
        req = None
        try:
            while True:
                arriving = conn.arriving
                try:
                    req, whole = _parsed(conn), arriving.whole
                except (ParseException, NoMoreData, StopIteration) as error:
                    req, whole = self._stand_in(conn, error), False
                conn.keeps = self._answer(req, conn, whole=whole)
                if not conn.keeps:
                    return
                _pass(req, conn)
                if not conn.keeps or conn.unsent or not self._queue.empty() or not conn.more():
                    return
        except BaseException as error:  # noqa: BLE001 - a thread that ended here would take its call to the next
            conn.keeps = False
            pieces = _Pieces()
            self.handle_error(req, pieces, conn.client, error)
            with suppress(OSError):
                conn.send(b"".join(pieces))

    def _stand_in(self, conn: Connection, error: Exception) -> Any:
        """Return the call that stands for one that cannot be read, so that it is refused and recorded as any other."""
        conn.unreadable = why(error)
        return next(get_parser(self.cfg, iter([stand_in(conn.arriving.data, OURS)]), conn.client))

    def _answer(self, req: Any, conn: Connection, *, whole: bool) -> bool:
        """Answer one call, without gunicorn's hooks and its access log, which nothing here sets.

        Return whether the connection is kept.
        """
        req._expected_100_continue = False  # noqa: SLF001 - the poller has said so
        answer, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg, response_class=_Response)
        environ["wsgi.multithread"] = True
        environ[BEGAN] = conn.began
        environ[LATE] = conn.late
        environ[UNREADABLE] = conn.unreadable
        answer.sock = pieces = _Pieces()
        parts = self.wsgi(environ, answer.start_response)
        # After a body that is not whole or could not be read, the start of the next call is unknown.
        if not whole or req.body.failed or not self.alive:
            answer.force_close()
        for part in parts:
            answer.write(part)
        answer.close()
        if not conn.answered and answer.status_code < 300:  # pages for everybody have no audit id
            conn.answered = any(name == AUDIT_ID and value for name, value in answer.headers)
        try:
            conn.send(b"".join(pieces))
        except OSError:  # the caller is gone
            return False
        return not answer.should_close()


class _Response(wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's own, quicker about what is the same in most responses: it takes a tenth of a call."""

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        """Take plain headers as they are, and leave all others to gunicorn, which knows what to do with them."""
        others = []
        for header in headers:
            if _plain(header[0]) and _WORDS.fullmatch(header[1]):
                self.headers.append(header)
            else:
                others.append(header)
        super().process_headers(others)

    def default_headers(self) -> list[str]:
        """Return what every response begins with. None of ours changes the protocol."""
        major, minor = self.req.version
        headers = [
            f"HTTP/{major}.{minor} {self.status}\r\n",
            f"Date: {_date(int(time.time()))}\r\n",
            f"Connection: {'close' if self.should_close() else 'keep-alive'}\r\n",
        ]
        if self.chunked:
            headers.append("Transfer-Encoding: chunked\r\n")
        return headers


@lru_cache(256)  # of our own making, so few
def _plain(name: str) -> bool:
    """Whether a response header says nothing of the connection, or of where the response ends."""
    return bool(_TOKEN.fullmatch(name)) and not util.is_hoppish(name) and name.lower() != "content-length"


@lru_cache(1)
def _date(second: int) -> str:
    return str(util.http_date(second))


class _Pieces(list[bytes]):
    """Collects what gunicorn writes of a response, to be sent at once."""

    sendall = list.append

    def gettimeout(self) -> float:
        """Return what a non-blocking socket does."""
        return 0.0


def _on(act: Callable[[Connection], None], conn: Connection, _sock: socket.socket) -> None:
    """Do what an event asks for, unless the connection was closed by another of the same turn."""
    if conn.shelf is not None:
        act(conn)


def _oldest(shelf: dict[Connection, float], *, of_all: bool) -> Connection | None:
    """Return the connection that stands there for longest, of strangers or of all."""
    return next((conn for conn in shelf if of_all or not conn.answered), None)


def _parsed(conn: Connection) -> Any:
    """Return the call that has arrived. Raises what gunicorn's parser does."""
    arriving = conn.arriving
    if not arriving.head and len(arriving.data) > MAX_HEAD:
        raise LimitRequestHeaders("the head has no end")
    # No more than is there and is this call's, and in pieces: of one the parser copies what is left for each chunk.
    size = arriving.need if arriving.whole else len(arriving.data)
    conn.parser.unreader.iter = iter([bytes(arriving.data[at : min(at + _READ, size)]) for at in range(0, size, _READ)])
    return next(conn.parser)


def _pass(req: Any, conn: Connection) -> None:
    """Go on behind a call's body, read or not: it is all there."""
    parser, arriving = conn.parser, conn.arriving
    if (getattr(req.body.reader, "length", None) != 0 and not _finished(parser)) or parser.unreader.read():
        conn.keeps = False  # we and the parser do not agree where it ends
    parser.mesg = None  # the parser would look again for what is left of it
    conn.arriving = Arriving(bytes(arriving.data[arriving.need :]))


def _finished(parser: Any) -> bool:
    try:
        return bool(parser.finish_body())
    except (ParseException, OSError):
        return False


def _capacity(cfg: Any) -> int:
    """Return how many connections there may be, as far as there are file descriptors for them."""
    others = 2 * cfg.threads + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in {soft, hard}:
        return int(cfg.worker_connections)
    if soft < cfg.worker_connections + others:
        soft = min(hard, cfg.worker_connections + others)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return int(max(cfg.threads, min(cfg.worker_connections, soft - others)))
