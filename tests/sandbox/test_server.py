from __future__ import annotations

import gc
import socket
import threading
from typing import TYPE_CHECKING

from sandbox.server import Answer, Server
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from sandbox.server import Head


class Held(Server):
    """A server that stands still with its first connection, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.goes_on = threading.Event()

    def _connected(self) -> None:
        self.reached.set()
        assert self.goes_on.wait(PATIENCE)

    def _cuts_off(self, head: Head) -> bool:
        raise AssertionError(head)

    def _answer(self, connection: int, head: Head, body: bytes) -> Answer:
        raise AssertionError(connection, head, body)

    def _refuse(self, status: int, sentence: str) -> Answer:
        raise AssertionError(status, sentence)


def connected(server: Server) -> socket.socket:
    host, _, port = server.origin.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


# What is not closed is told when the garbage is collected, in whichever test that is.
def test_connection_that_comes_as_the_server_stops_is_closed() -> None:
    server = Held()
    server.start()
    assert server._stopping is not None
    thread, stop = server._stopping
    with connected(server) as first:
        assert server.reached.wait(PATIENCE)
        stop()
        with connected(server) as last:
            server.goes_on.set()
            thread.join(PATIENCE)
            assert not thread.is_alive()
            assert (first.recv(1), last.recv(1)) == (b"", b"")
    gc.collect()
