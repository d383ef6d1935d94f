"""A load generator of low cost: a few keep-alive connections, one thread, no parsing beyond the length."""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import time
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: *([0-9]+)\r\n")
_CHUNKED = re.compile(rb"\r\n[Tt]ransfer-[Ee]ncoding: *chunked\r\n")


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    began: float
    received: bytearray = field(default_factory=bytearray)


def run(port: int, request: bytes, *, connections: int, seconds: float, warm: float = 0.2) -> list[float]:
    """Call for ``warm`` and then ``seconds``, one call at a time on each connection.

    Return the durations, in seconds, of the calls that ended within ``seconds``, so that their number over ``seconds``
    is the rate. Raises RuntimeError for any answer but 200: refusals are fast, and would make a server look better.
    """
    took: list[float] = []
    with contextlib.ExitStack() as opened:
        selector = opened.enter_context(selectors.DefaultSelector())
        begin = time.perf_counter() + warm
        end = begin + seconds
        for _ in range(connections):
            sock = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ, _Connection(sock, time.perf_counter()))
            sock.sendall(request)
        while selector.get_map():
            ready = selector.select(30)
            if not ready:
                raise RuntimeError("no answer for 30 s")
            for key, _ in ready:
                connection: _Connection = key.data
                connection.received += _received(connection.sock)
                if not _complete(connection.received):
                    continue
                now = time.perf_counter()
                if begin <= now < end:
                    took.append(now - connection.began)
                if now >= end:
                    selector.unregister(connection.sock)
                    continue
                connection.received.clear()
                connection.began = now
                connection.sock.sendall(request)
    return took


def once(port: int, request: bytes) -> None:
    """Make one call as soon as a server listens. Raises as :func:`run`, or TimeoutError after 60 s."""
    deadline = time.monotonic() + 60
    while True:
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=60)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise TimeoutError("nobody listens") from None
            time.sleep(0.001)
    with sock:
        sock.sendall(request)
        received = bytearray()
        while not _complete(received):
            received += _received(sock)


def _received(sock: socket.socket) -> bytes:
    chunk = sock.recv(65536)
    if not chunk:
        raise RuntimeError("the server closed the connection")
    return chunk


def _complete(received: bytearray) -> bool:
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    if not received.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"not 200: {bytes(received[:600])!r}")
    length = _LENGTH.search(received, 0, end + 2)
    if length is None:
        if not _CHUNKED.search(received, 0, end + 2):
            raise RuntimeError(f"an answer without a length: {bytes(received[:600])!r}")
        return received.endswith(b"\r\n0\r\n\r\n")
    return len(received) >= end + 4 + int(length[1])
