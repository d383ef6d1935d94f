"""Whatever strangers do with their connections, others are served. ``tests/crash/test_strangers.py`` has the figure."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gunicorn.config import Config

from gateway.worker import ARRIVING_SECONDS
from sandbox.__main__ import ROOT
from tests.conftest import CUSTOMER, FORM, KEY, TARGET
from tests.strangers import KINDS, Honest, strangers

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from tests.conftest import Server

#: Less than strangers need to hold up two threads with any kind of connection if one of these is waited for.
PATIENCE = 9.0


@pytest.mark.parametrize("kind", KINDS)
def test_strangers_hold_up_nobody(server: Callable[..., Server], upstream: Appgregator, kind: str) -> None:
    running = server(THREADS="2")
    honest = Honest(PATIENCE)
    with strangers(running.port, kind, 30) as seen:
        honest.calls(running.port, 2.5)
    assert seen["opened"] >= 30
    assert not honest.problems
    assert honest.sent(upstream) == {1: len(honest.names)}


# ---------------------------------------------------------------- more connections than there may be

#: Loaded by the framework in place of ``main.py``: a server of ten connections.
FEW = """
from gateway import worker
worker._capacity = lambda cfg: 10
from main import countersign
"""


@pytest.fixture
def few(server: Callable[..., Server], tmp_path: Path) -> Server:
    source = tmp_path / "few.py"
    source.write_text(FEW)
    return server(source=source, PYTHONPATH=str(ROOT), THREADS="2")


@pytest.mark.parametrize("kind", KINDS)
def test_who_calls_takes_the_place_of_a_stranger(few: Server, upstream: Appgregator, kind: str) -> None:
    honest = Honest(PATIENCE)
    with strangers(few.port, kind, 30):
        honest.calls(few.port, 2.5)
    assert not honest.problems
    assert honest.sent(upstream) == {1: len(honest.names)}


def request(connection: HTTPConnection) -> None:
    connection.request("POST", TARGET, CUSTOMER, {"Content-Type": FORM, "x-api-key": KEY})


def test_strangers_lose_their_connections_before_a_client_that_has_called(few: Server) -> None:
    with closing(HTTPConnection("127.0.0.1", few.port, timeout=60)) as known:
        request(known)
        assert known.getresponse().read()
        silent = [socket.create_connection(("127.0.0.1", few.port), timeout=60) for _ in range(20)]
        request(known)
        assert known.getresponse().status == 200
        assert silent[0].recv(1) == b""  # the oldest first
        for sock in silent:
            sock.close()


def test_client_whose_call_is_there_already_keeps_its_connection(few: Server, upstream: Appgregator) -> None:
    """The poller finds the strangers and the call in one turn, and must look for the call before it closes anything."""
    clients = [HTTPConnection("127.0.0.1", few.port, timeout=60) for _ in range(9)]
    for client in clients:
        request(client)
        assert client.getresponse().read()
    for pid in processes(few):
        os.kill(pid, signal.SIGSTOP)
    try:
        silent = [socket.create_connection(("127.0.0.1", few.port), timeout=60) for _ in range(20)]
        for client in clients:
            request(client)
        time.sleep(worker_keepalive() + 0.5)  # they would be closed for that, too
    finally:
        for pid in processes(few):
            os.kill(pid, signal.SIGCONT)
    for client in clients:
        assert client.getresponse().status == 200
        client.close()
    for sock in silent:
        sock.close()
    assert upstream.invoices == 18


def processes(server: Server) -> list[int]:
    """Return the process ids of a server's workers."""
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def worker_keepalive() -> float:
    return float(Config().keepalive)


# ---------------------------------------------------------------- what a peer is waited for, and by whom

LARGE = """
from gateway.serving import configure
configure()
def countersign(request):
    return "x" * 5_000_000
"""


def test_answer_larger_than_a_socket_takes_reaches_a_slow_reader_whole(
    server: Callable[..., Server], tmp_path: Path
) -> None:
    """Two slow readers, and one thread: the poller sends the rest to both."""
    source = tmp_path / "main.py"
    source.write_text(LARGE)
    running = server(source=source, PYTHONPATH=str(ROOT), THREADS="1")
    socks = [socket.create_connection(("127.0.0.1", running.port), timeout=60) for _ in range(2)]
    for sock in socks:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    time.sleep(0.5)
    for sock in reversed(socks):
        received = b""
        while len(received.partition(b"\r\n\r\n")[2]) < 5_000_000:
            came = sock.recv(1 << 20)
            assert came
            received += came
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")  # the connection goes on
        assert sock.recv(20).startswith(b"HTTP/1.1 200 OK")
        sock.close()


def test_refusal_reaches_a_client_that_is_still_sending(server: Callable[..., Server]) -> None:
    """A connection that is closed while bytes arrive is reset, and the answer is lost."""
    running = server()
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
        sock.sendall(
            f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nContent-Type: {FORM}\r\nContent-Length: 900000\r\n\r\n".encode()
        )
        for _ in range(10):
            sock.sendall(b"x" * 50_000)
            time.sleep(0.02)
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_silent_connection_is_closed_and_a_head_that_never_ends_too(server: Callable[..., Server]) -> None:
    running = server()
    with (
        socket.create_connection(("127.0.0.1", running.port), timeout=ARRIVING_SECONDS + 60) as silent,
        socket.create_connection(("127.0.0.1", running.port), timeout=ARRIVING_SECONDS + 60) as half,
    ):
        half.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n")
        assert silent.recv(1) == b""
        assert half.recv(1) == b""
