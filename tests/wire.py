"""Servers that say on a socket just what they are told, which no server of a framework would."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def answered(body: bytes = b"{}", status: bytes = b"200 OK", *headers: bytes) -> bytes:
    """Return an answer as it goes over the wire."""
    return b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", body])


@contextmanager
def listening(converse: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """Have each connection be served by ``converse``, which is given its number, from 1 on. Yield the origin."""

    def talk(connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError):
            converse(connection, number)

    def serve(listener: socket.socket) -> None:
        number = 0
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                number += 1
                threading.Thread(target=talk, args=(connection, number), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            server.join()


@contextmanager
def talking(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives these answers, one for each request on any connection, and then closes that connection.

    Yield its origin, and the method and the body of each request that arrived in full.
    """
    requests: list[bytes] = []
    left = list(answers)

    def converse(connection: socket.socket, _number: int) -> None:
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
            if not _whole(received):
                continue
            head, _, body = received.partition(b"\r\n\r\n")
            received = b""
            requests.append(head.partition(b" ")[0] + b" " + body)
            if not left:
                return
            connection.sendall(left.pop(0))

    with listening(converse) as origin:
        yield origin, requests


def _whole(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


@dataclass
class Held:
    """A server that answers nothing until it may."""

    origin: str = ""
    requests: list[bytes] = field(default_factory=list)
    goes_on: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def wait(self) -> None:
        """Wait until one more request has arrived in full."""
        assert self.arrived.acquire(timeout=PATIENCE), "no request has arrived"


@contextmanager
def holding(answer: bytes) -> Iterator[Held]:
    """A server that gives this answer to every request, the first ones not before ``goes_on`` is set."""
    held = Held()

    def converse(connection: socket.socket, _number: int) -> None:
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
            if _whole(received):
                held.requests.append(received)
                received = b""
                held.arrived.release()
                held.goes_on.wait(PATIENCE)
                connection.sendall(answer)

    with listening(converse) as held.origin:
        try:
            yield held
        finally:
            held.goes_on.set()
