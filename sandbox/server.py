"""HTTP/1.1 on 127.0.0.1: the part that an upstream with faults on request needs."""

from __future__ import annotations

import asyncio
import functools
import http.client
import itertools
import re
import socket
import struct
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from ssl import SSLContext

__all__ = ["SECOND", "Answer", "Head", "Headers", "Server", "Strays"]

_MAX_HEAD: Final = 64 * 1024
_MAX_BODY: Final = 16 * 1024 * 1024

#: Long enough for the next request to be under way, short enough to be read as its answer.
SECOND: Final = 0.03

Headers = tuple[tuple[str, str], ...]


# --- Answers


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent, when, and what happens to the connection then."""

    status: int
    body: bytes = b""
    headers: tuple[str, ...] = ()  # whole lines
    media: str = "application/json"
    creates: bool = False  # an invoice exists because of it
    after: float = 0  # seconds before the first byte
    pace: float = 0  # seconds between single bytes; 0 sends all at once
    cut: int | None = None  # where a slice of the data ends: 0 sends nothing, None all of it
    then: Literal["keep", "close", "reset", "hang"] = "keep"
    second: Answer | None = None  # sent later on the same connection, to nobody's request: see `Strays`

    @property
    def data(self) -> bytes:
        """The bytes on the wire."""
        lines = "".join(f"{line}\r\n" for line in (*self.headers, f"Content-Length: {len(self.body)}"))
        return (_status_line(self.status, self.media) + f"{lines}\r\n".encode("latin-1") + self.body)[: self.cut]


@functools.cache
def _status_line(status: int, media: str) -> bytes:
    return f"HTTP/1.1 {status} {http.client.responses[status]}\r\nContent-Type: {media}\r\n".encode()


@dataclass(slots=True)
class Strays:
    """Second answers: each is sent after `SECOND` seconds, or while `held` once the next request has arrived."""

    held: bool = False
    sent: int = 0


# --- Reading


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request. ``fields`` are its headers by their lower-case names."""

    method: str
    path: str
    query: str
    headers: Headers  # names and values as sent
    fields: Mapping[str, str]
    length: int
    expects: bool  # the client waits for 100 Continue before it sends the body
    keep: bool

    @property
    def media(self) -> str:
        """The content type without its parameters."""
        return self.fields.get("content-type", "").partition(";")[0].strip().lower()


class _MalformedError(Exception):
    """The request is not valid HTTP for this server: the status to answer with, and why."""


_REQUEST_LINE: Final = re.compile(r"([A-Z]+) (/[!-~]*) HTTP/1\.([01])")
_HEADER_LINE: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*?)[ \t]*")
#: Headers that would be ambiguous if they came twice.
_ONCE: Final = frozenset(
    ("authorization", "content-length", "content-type", "expect", "host", "idempotency-key", "stripe-account",
     "stripe-version", "x-api-key")
)  # fmt: skip


# Cached, since a client that keeps its connection sends the same head over and over.
@functools.lru_cache(maxsize=128)
def _parse(head: bytes) -> Head:
    first, *lines = head.decode("latin-1").split("\r\n")
    request = _REQUEST_LINE.fullmatch(first)
    found = [_HEADER_LINE.fullmatch(line) for line in lines]
    if request is None:
        raise _MalformedError(400, "The request line is not one of HTTP/1.")
    headers = tuple((line[1], line[2]) for line in found if line)
    if len(headers) < len(lines):
        raise _MalformedError(400, "A header is malformed.")
    fields: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in fields and lower in _ONCE:
            raise _MalformedError(400, f"The header {lower} may come only once.")
        fields[lower] = f"{fields[lower]}, {value}" if lower in fields else value
    if "host" not in fields:
        raise _MalformedError(400, "A Host header is required.")
    path, _, query = request[2].partition("?")
    connection = fields.get("connection", "").lower()
    return Head(
        method=request[1],
        path=path,
        query=query,
        headers=headers,
        fields=fields,
        length=_length(request[1], fields),
        expects=fields.get("expect", "").lower() == "100-continue",
        keep=("keep-alive" in connection if request[3] == "0" else "close" not in connection),
    )


def _length(method: str, fields: Mapping[str, str]) -> int:
    declared = fields.get("content-length")
    if "transfer-encoding" in fields or (declared is None and method in ("POST", "PUT", "PATCH")):
        raise _MalformedError(411, "A body must come with its Content-Length.")
    if declared is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", declared):
        raise _MalformedError(400, "The Content-Length is not a number.")
    if int(declared) > _MAX_BODY:
        raise _MalformedError(413, "The body is too large.")
    return int(declared)


class _Connection(asyncio.Protocol):
    """One TCP connection: requests in order, answers one at a time."""

    def __init__(
        self,
        cuts_off: Callable[[Head], bool],
        answer: Callable[[Head, bytes], Answer],
        refuse: Callable[[int, str], Answer],
        connections: set[asyncio.Transport],
        strays: Strays,
    ) -> None:
        self._cuts_off = cuts_off
        self._answer = answer
        self._refuse = refuse
        self._open = connections
        self._strays = strays
        self._stray = b""
        self._buffer = bytearray()
        self._head: Head | None = None
        self._answering = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows what a TCP server always passes
        self.transport = transport
        self._open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._task is not None:
            self._task.cancel()
        self._open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._read()

    def _read(self) -> None:
        try:
            while not self._answering and (call := self._next()):
                self._send(self._answer(*call), keep=call[0].keep)
        except _MalformedError as error:
            self._send(self._refuse(*error.args), keep=False)

    def _next(self) -> tuple[Head, bytes] | None:
        """The next request, once it has arrived in full."""
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if (len(self._buffer) if end < 0 else end) > _MAX_HEAD:
                raise _MalformedError(431, "The head is too large.")
            if end < 0:
                return None
            head = _parse(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            if self._cuts_off(head):
                self._send(Answer(200, cut=0, then="close"), keep=False)
                return None
            if head.expects and head.length > len(self._buffer):
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._head = head
        head = self._head
        if len(self._buffer) < head.length:
            return None
        body = bytes(self._buffer[: head.length])
        del self._buffer[: head.length]
        self._head = None
        if self._strays.held:
            self._send_stray()
        return head, body

    def _send(self, answer: Answer, *, keep: bool) -> None:
        self._answering = True
        if answer.after or answer.pace:
            self._task = asyncio.ensure_future(self._send_slowly(answer, keep=keep))
        else:
            self.transport.write(answer.data)
            self._finish(answer, keep=keep)
        if answer.second is not None:
            self._stray = answer.second.data
            if not self._strays.held:
                asyncio.get_running_loop().call_later(SECOND, self._send_stray)

    def _send_stray(self) -> None:
        if self._stray:
            self.transport.write(self._stray)
            self._stray = b""
            self._strays.sent += 1

    async def _send_slowly(self, answer: Answer, *, keep: bool) -> None:
        await asyncio.sleep(answer.after)
        data = answer.data
        step = 1 if answer.pace else len(data)
        for start in range(0, len(data), step):
            self.transport.write(data[start : start + step])
            await asyncio.sleep(answer.pace)
        self._finish(answer, keep=keep)
        self._read()

    def _finish(self, answer: Answer, *, keep: bool) -> None:
        if answer.then == "reset":
            # Closing a socket with a linger time of 0 sends RST instead of FIN.
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        elif answer.then == "close" or (answer.then == "keep" and not keep):
            self.transport.close()
        else:
            self._answering = answer.then == "hang"


# --- Serving


class Server:
    """A server on 127.0.0.1; a port of 0 takes a free one, and keeps it over a restart.

    Settable: `strays` while it runs, and `tls` before it starts.

    A subclass defines what it serves: every hook below runs on the server's own thread, one at a time.
    """

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._numbers = itertools.count(1)
        self._open: set[asyncio.Transport] = set()
        self.strays = Strays()
        self.tls: SSLContext | None = None
        self._stopping: tuple[threading.Thread, Callable[[], object]] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        ready: Future[Callable[[], object]] = Future()
        # A thread of its own, so that a test may block while it is being answered.
        name = type(self).__name__.lower()
        run = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name=name, daemon=True)
        run.start()
        self._stopping = run, ready.result()

    def stop(self) -> None:
        """Stop listening and drop every connection. Counts and calls stay."""
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            thread, stop = stopping
            stop()
            thread.join()

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._port}"

    def _connected(self) -> None:
        """Count a TCP connection."""
        raise NotImplementedError

    def _cuts_off(self, head: Head) -> bool:
        """Whether the connection closes before the body is read."""
        raise NotImplementedError

    def _answer(self, connection: int, head: Head, body: bytes) -> Answer:
        """Answer a request; connections are counted from 1."""
        raise NotImplementedError

    def _refuse(self, status: int, sentence: str) -> Answer:
        """Answer what is not HTTP."""
        raise NotImplementedError

    def _connect(self) -> _Connection:
        self._connected()
        answer = functools.partial(self._answer, next(self._numbers))
        return _Connection(self._cuts_off, answer, self._refuse, self._open, self.strays)

    async def _serve(self, ready: Future[Callable[[], object]]) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        try:
            server = await loop.create_server(self._connect, "127.0.0.1", self._port, ssl=self.tls, backlog=1024)
        except OSError as error:
            ready.set_exception(error)
            return
        self._port = server.sockets[0].getsockname()[1]
        ready.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
        await stopped.wait()
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
        # Connections just accepted get their transports, which asyncio refuses them once their server is closed.
        await asyncio.sleep(0.01)
        server.close()
        while self._open:
            for transport in tuple(self._open):
                transport.abort()
            await asyncio.sleep(0)
