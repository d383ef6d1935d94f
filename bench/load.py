"""A load generator that costs little itself: a few keep-alive connections, one thread, no parsing beyond the length."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from dataclasses import dataclass


@dataclass
class _Connection:
    sock: socket.socket
    received: bytearray
    began: float


def run(port: int, request: bytes, *, connections: int, seconds: float) -> list[float]:
    """Call for ``seconds``, one call at a time on each connection. Return the seconds that each call took.

    Raises RuntimeError for any answer but 200: a refusal is quick, and would flatter whoever gives it.
    """
    took: list[float] = []
    with contextlib.ExitStack() as opened:
        selector = opened.enter_context(selectors.DefaultSelector())
        for _ in range(connections):
            sock = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ, _Connection(sock, bytearray(), time.perf_counter()))
            sock.sendall(request)
        end = time.perf_counter() + seconds
        while selector.get_map():
            for key, _ in selector.select(30):
                connection: _Connection = key.data
                connection.received += connection.sock.recv(65536)
                if not _complete(connection.received):
                    continue
                now = time.perf_counter()
                took.append(now - connection.began)
                if now >= end:
                    selector.unregister(connection.sock)
                    continue
                connection.received.clear()
                connection.began = now
                connection.sock.sendall(request)
    return took


def _complete(received: bytearray) -> bool:
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        if not received:
            raise RuntimeError("the server closed the connection")
        return False
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"not 200: {bytes(received[:600])!r}")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) >= length
