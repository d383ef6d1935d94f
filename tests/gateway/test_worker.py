"""The server's worker, on real sockets: it stays with a busy connection, and with no other."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName, NoMoreData

from gateway.arriving import Arriving
from gateway.serving import configure
from gateway.stopping import SEND_SECONDS
from gateway.worker import MOMENT_MILLISECONDS, Connection, _parsed, _pass, _Response
from sandbox.__main__ import ROOT
from tests.conftest import CUSTOMER, FORM, KEY, TARGET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from tests.conftest import Server

HEADERS = {"Content-Type": FORM, "x-api-key": KEY}


def call(connection: HTTPConnection) -> int:
    connection.request("POST", TARGET, CUSTOMER, HEADERS)
    response = connection.getresponse()
    response.read()
    return response.status


def test_many_calls_on_one_connection_are_all_answered(server: Callable[..., Server], upstream: Appgregator) -> None:
    running = server()
    with closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as connection:
        assert [call(connection) for _ in range(50)] == [200] * 50
    # The thread stayed, and with it its connection to the upstream: others have their own.
    assert len({received.connection for received in upstream.calls}) == 1


def test_quiet_connections_hold_no_thread(server: Callable[..., Server]) -> None:
    """With two threads and ten connections that were used and are kept open, an eleventh is answered at once."""
    running = server(THREADS="2")
    quiet = [HTTPConnection("127.0.0.1", running.port, timeout=60) for _ in range(10)]
    assert [call(connection) for connection in quiet] == [200] * 10
    time.sleep(3 * MOMENT_MILLISECONDS / 1000)
    assert running.call()[0] == 200
    assert [call(connection) for connection in quiet] == [200] * 10
    for connection in quiet:
        connection.close()


@pytest.mark.parametrize("threads", ["1", "2"])
def test_more_busy_connections_than_threads_are_all_served(server: Callable[..., Server], threads: str) -> None:
    running = server(THREADS=threads)
    statuses: list[int] = []

    def busy() -> None:
        with closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as connection:
            statuses.extend(call(connection) for _ in range(20))

    clients = [threading.Thread(target=busy) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(timeout=120)
    assert statuses == [200] * 160


def test_connection_that_is_never_idle_does_not_keep_its_thread_from_another(server: Callable[..., Server]) -> None:
    """The one thread always finds a next call of the busy client, and must let the other client have its turn."""
    running = server(THREADS="1")
    one, ahead = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", 20
    begun, over = threading.Event(), threading.Event()
    answered = 0

    def busy() -> None:
        nonlocal answered
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
            sock.sendall(one * ahead)
            while not over.is_set():
                came = sock.recv(65536).count(b"HTTP/1.1 404 ")
                answered += came
                begun.set()
                sock.sendall(one * came)

    client = threading.Thread(target=busy)
    client.start()
    try:
        assert begun.wait(60)
        assert [running.call(timeout=60)[0] for _ in range(5)] == [200] * 5
        before = answered
        assert [running.call(timeout=60)[0] for _ in range(5)] == [200] * 5
        assert answered > before, "the busy client was cut off, so this shows nothing"
    finally:
        over.set()
        client.join(timeout=60)


def test_calls_that_come_in_one_piece_are_answered_in_turn(server: Callable[..., Server]) -> None:
    running = server()
    body = CUSTOMER.encode()
    one = (
        f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nx-api-key: {KEY}\r\nContent-Type: {FORM}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    received = running.raw(one * 3 + one.replace(b"Host: a", b"Host: a\r\nConnection: close"))
    assert received.count(b"HTTP/1.1 200 OK") == 4


def test_instance_stops_at_once_though_a_connection_was_just_used(server: Callable[..., Server]) -> None:
    running = server()
    over = threading.Event()
    ends: list[Exception] = []

    def busy() -> None:
        with closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as connection:
            while not over.is_set():
                try:
                    assert call(connection) == 200
                except (OSError, AssertionError) as error:
                    ends.append(error)
                    return

    client = threading.Thread(target=busy)
    client.start()
    time.sleep(0.2)
    running.process.terminate()
    assert running.process.wait(timeout=60) == 0
    over.set()
    client.join(timeout=60)
    assert not [end for end in ends if isinstance(end, AssertionError)]
    assert running.record.lines()[-1]["countersign"]["kind"] == "stop"  # it was not killed over it
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", running.port), timeout=60)


def test_call_under_way_ends_within_the_grace_and_is_the_last_of_its_connection(
    server: Callable[..., Server], upstream: Appgregator
) -> None:
    """One call ends within the platform's ten seconds. Another does not: its send is ended, and it is answered, too."""
    running = server()
    upstream.delay = 4
    with (
        closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as ends,
        closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as hangs,
    ):
        for connection, fault in ((ends, "slow"), (hangs, "hang")):
            connection.request("POST", TARGET, f"customer=cus_fault_{fault}", HEADERS)
        while len(upstream.calls) < 2:
            time.sleep(0.01)
        began = time.monotonic()
        running.process.terminate()
        response = ends.getresponse()
        assert response.status == 200
        assert response.headers["Connection"] == "close"
        response = hangs.getresponse()
        answer = json.loads(response.read())
        assert (response.status, answer["reason"]) == (424, "outcome-unknown")
        assert response.headers["Connection"] == "close"
        assert running.process.wait(timeout=60) == 0
        # Left alone, it would hang for 25 s. That the rest fits into the ten that there are is a figure's to show.
        assert SEND_SECONDS < time.monotonic() - began < 20
    kinds = [line["countersign"]["kind"] for line in running.record.lines()]
    assert sorted(kinds[1:-1]) == ["intent", "intent", "outcome", "outcome"]
    assert kinds[-1] == "stop"


def test_server_that_was_told_nothing_has_as_many_threads_as_deploy_sends_it_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("THREADS", raising=False)
    configure()
    assert f"concurrency={os.environ['THREADS']} " in (ROOT / "deploy" / "deploy").read_text("utf-8")
    monkeypatch.setenv("THREADS", "7")
    configure()
    assert os.environ["THREADS"] == "7"


SERVER = """
from gateway.stopping import SEND_SECONDS
from gateway.serving import configure
configure()
def countersign(request):
    return str(request.environ["wsgi.multithread"])
"""


def test_application_is_told_that_it_runs_in_threads(server: Callable[..., Server], tmp_path: Path) -> None:
    source = tmp_path / "main.py"
    source.write_text(SERVER)
    assert server(source=source, PYTHONPATH=str(ROOT)).call()[2] == b"True"


# ---------------------------------------------------------------- what a thread does between two calls


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Connection]]:
    """Return a client's socket, and the server's connection to it."""
    client, ours = socket.socketpair()
    with client, ours:
        yield client, Connection(Config(), ours, ("127.0.0.1", 1), ("127.0.0.1", 2))


CALL = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"


def test_silent_connection_is_given_back_within_a_moment(ends: tuple[socket.socket, Connection]) -> None:
    client, connection = ends
    late = threading.Timer(30, client.close)  # so that a wait without end ends, and fails
    late.start()
    began = time.monotonic()
    assert not connection.more()
    took = time.monotonic() - began
    late.cancel()
    assert 0.002 < took < 20


def test_call_that_never_ends_is_given_back_within_moments(ends: tuple[socket.socket, Connection]) -> None:
    client, connection = ends
    over = threading.Event()

    def trickle() -> None:
        with suppress(OSError):
            while not over.wait(MOMENT_MILLISECONDS / 5000):
                client.sendall(b"a")

    trickling = threading.Thread(target=trickle)
    trickling.start()
    late = threading.Timer(30, client.close)
    late.start()
    began = time.monotonic()
    assert not connection.more()
    took = time.monotonic() - began
    over.set()
    late.cancel()
    trickling.join()
    assert took < 20


def test_what_was_read_ahead_is_the_next_call_without_a_look_at_the_socket(
    ends: tuple[socket.socket, Connection],
) -> None:
    _, connection = ends
    connection.arriving = Arriving(CALL + CALL)
    connection.sock.close()
    assert connection.more()


@pytest.mark.parametrize("cut", [0, 10, len(CALL) - 3])
def test_call_that_comes_within_the_moment_is_found_in_one_piece_or_two(
    ends: tuple[socket.socket, Connection], cut: int
) -> None:
    client, connection = ends
    client.sendall(CALL[:cut])
    second = threading.Timer(MOMENT_MILLISECONDS / 5000, client.sendall, [CALL[cut:]])
    second.start()
    found = connection.more() or connection.more()  # the timer of a busy machine may be late
    second.join()
    assert found or connection.more()
    assert connection.arriving.data == CALL


def test_end_of_a_connection_is_no_call(ends: tuple[socket.socket, Connection]) -> None:
    client, connection = ends
    client.close()
    assert not connection.more()
    assert connection.ended


def given(connection: Connection, data: bytes) -> Arriving:
    """Return what has arrived once ``data`` has."""
    connection.arriving = Arriving(data)
    assert connection.arriving.ready()
    return connection.arriving


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("data", [CALL, CHUNKED + b"1\r\na\r\n" * 4000 + b"0\r\n\r\n"], ids=["length", "chunks"])
def test_parser_gets_this_call_alone_and_in_pieces(ends: tuple[socket.socket, Connection], data: bytes) -> None:
    """For each chunk it copies the rest of the piece that it has: of all at once that would take seconds."""
    _, connection = ends
    given(connection, data + CALL)
    connection.sock.close()  # it never reads the socket
    request = _parsed(connection)
    assert len(request.unreader.buf.getvalue()) <= 8192
    assert len(request.body.read()) == (3 if data is CALL else 4000)
    _pass(request, connection)
    assert connection.keeps
    assert connection.arriving.data == CALL


@pytest.mark.parametrize("data", [CALL[:-1], CHUNKED + b"3\r\na"])
def test_thread_waits_for_no_rest_of_a_late_call(ends: tuple[socket.socket, Connection], data: bytes) -> None:
    client, connection = ends
    client.sendall(b"bc")  # it comes when the call is a thread's already
    connection.arriving = Arriving(data)
    connection.arriving.ready()
    with suppress(NoMoreData):
        assert len(_parsed(connection).body.read()) < 3


def test_connection_ends_where_the_parser_finds_another_end(ends: tuple[socket.socket, Connection]) -> None:
    _, connection = ends
    given(connection, CALL + CALL).need += 5
    request = _parsed(connection)
    assert request.body.read() == b"abc"
    _pass(request, connection)
    assert not connection.keeps


SCARCE = """
import threading
from main import countersign
start, tries = threading.Thread.start, 0
def scarce(self):
    global tries
    if self.name.startswith("call-"):
        tries += 1
        if tries < 3:
            raise RuntimeError("can't start new thread")
    start(self)
threading.Thread.start = scarce
"""


def test_call_is_answered_as_soon_as_there_can_be_a_thread_for_it(
    server: Callable[..., Server], tmp_path: Path
) -> None:
    source = tmp_path / "scarce.py"
    source.write_text(SCARCE)
    running = server(source=source, PYTHONPATH=str(ROOT))
    assert [running.call()[0] for _ in range(2)] == [200, 200]


BROKEN = """
from flask import current_app
from gateway.serving import configure
configure()
def countersign(request): ...
def broken(environ, start):
    raise {fault}("not the caller's")
current_app.wsgi_app = broken
"""


@pytest.mark.parametrize("fault", ["ConnectionResetError", "StopIteration", "SystemExit", "GeneratorExit"])
def test_fault_of_the_application_is_answered_whatever_its_kind(
    server: Callable[..., Server], tmp_path: Path, fault: str
) -> None:
    """Of some kinds a thread would end, and take its call to the next until none is left."""
    source = tmp_path / "broken.py"
    source.write_text(BROKEN.replace("{fault}", fault))
    running = server(source=source, PYTHONPATH=str(ROOT), THREADS="2")
    assert [running.call(timeout=60)[0] for _ in range(3)] == [500] * 3
    assert "not the caller's" in running.errors.read_text()


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize(
    "headers",
    [
        {"SCRIPT_NAME": "/elsewhere"},
        {"PATH_INFO": "/elsewhere"},
        {"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "off"},
    ],
)
def test_no_header_changes_how_a_call_is_read_not_even_of_a_neighbour(
    server: Callable[..., Server], headers: dict[str, str]
) -> None:
    """gunicorn trusts whoever calls from the same machine, such as a container beside ours."""
    assert server().call(headers=headers)[0] == 200


@pytest.fixture
def answer() -> _Response:
    connection = Connection(Config(), socket.socket(), ("127.0.0.1", 1), ("127.0.0.1", 2))
    connection.arriving = Arriving(CALL)
    with connection.sock:
        return _Response(_parsed(connection), connection.sock, Config())


def test_head_of_an_answer_says_what_it_must(answer: _Response) -> None:
    answer.start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2"), ("Odd", "a  b\t")])
    before = int(time.time())
    (line, date, connection) = answer.default_headers()
    after = time.time()
    assert (line, connection) == ("HTTP/1.1 200 OK\r\n", "Connection: keep-alive\r\n")
    assert before <= parsedate_to_datetime(date.removeprefix("Date: ").strip()).timestamp() <= after
    assert answer.response_length == 2
    assert sorted(answer.headers) == [("Content-Length", "2"), ("Content-Type", "application/json"), ("Odd", "a  b")]
    answer.force_close()
    assert answer.default_headers()[2] == "Connection: close\r\n"


def test_answer_without_a_length_comes_in_chunks(answer: _Response) -> None:
    answer.start_response("200 OK", [("Content-Type", "text/plain")])
    assert answer.default_headers()[-1] == "Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b", "\x7f", "a\u0141"])
def test_no_header_of_an_answer_begins_another_one(answer: _Response, value: str) -> None:
    for name in ("Countersign-Audit-Id", "Content-Type"):
        with pytest.raises(InvalidResponseHeader):
            answer.process_headers([(name, value)])
    with pytest.raises(InvalidResponseHeaderName):
        answer.process_headers([(f"A{value[1:] or value}", "b")])


@pytest.mark.parametrize("name", ["Connection", "connection", "Transfer-Encoding", "Keep-Alive", "Date", "Server"])
def test_what_the_server_says_itself_nobody_else_says(answer: _Response, name: str) -> None:
    answer.process_headers([(name, "close")])
    assert not answer.headers


def test_answer_arrives_in_one_piece(server: Callable[..., Server]) -> None:
    """Head and body in two would wake up whoever waits for them twice."""
    running = server()
    body = CUSTOMER.encode()
    head = f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nx-api-key: {KEY}\r\nContent-Type: {FORM}\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
        for _ in range(3):
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            received = sock.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 OK\r\n")
            assert received.endswith(b"}")


def test_connection_goes_on_behind_a_refusal_whose_body_nobody_read(server: Callable[..., Server]) -> None:
    running = server()
    with closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as connection:
        for _ in range(3):
            connection.request("POST", "/elsewhere", "x" * 5000, HEADERS)
            response = connection.getresponse()
            response.read()
            assert response.status == 404
            assert call(connection) == 200


def test_connection_goes_on_behind_a_refusal_whose_chunks_nobody_read(server: Callable[..., Server]) -> None:
    running = server()
    with closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as connection:
        for _ in range(3):
            connection.request("POST", "/elsewhere", iter([b"x" * 5000] * 2), HEADERS, encode_chunked=True)
            response = connection.getresponse()
            response.read()
            assert response.status == 404
            assert call(connection) == 200


def test_calls_in_chunks_are_answered_one_after_the_other(server: Callable[..., Server]) -> None:
    running = server()
    with closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as connection:
        for _ in range(3):
            connection.request(
                "POST", TARGET, iter([b"customer=", CUSTOMER.encode()[9:]]), HEADERS, encode_chunked=True
            )
            response = connection.getresponse()
            response.read()
            assert response.status == 200


def test_call_that_comes_in_bits_on_a_kept_connection_is_answered(server: Callable[..., Server]) -> None:
    """The moment that a thread waits for a call's first bytes is no limit for the rest of it."""
    running = server()
    body = CUSTOMER.encode()
    head = f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nx-api-key: {KEY}\r\nContent-Type: {FORM}\r\n"
    whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
        for cut in (1, 40, len(whole) - len(body), len(whole) - 3):
            sock.sendall(whole[:cut])
            time.sleep(5 * MOMENT_MILLISECONDS / 1000)
            sock.sendall(whole[cut:])
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("held_back", ["Expect: 100-continue\r\n", ""])
def test_second_call_is_told_to_go_on_as_the_first_is(server: Callable[..., Server], held_back: str) -> None:
    running = server()
    body = CUSTOMER.encode()
    head = (
        f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nx-api-key: {KEY}\r\nContent-Type: {FORM}\r\n{held_back}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
        for _ in range(3):
            sock.sendall(head)
            if held_back:
                assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(body)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_second_call_that_is_no_http_ends_the_connection(server: Callable[..., Server]) -> None:
    running = server()
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
        for sent, status in ((b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", b"404"), (b"\0\r\n\r\n", b"400")):
            sock.sendall(sent)
            assert sock.recv(65536).startswith(b"HTTP/1.1 " + status)
        assert sock.recv(65536) == b""


def test_rest_of_a_body_that_came_too_late_is_no_call(server: Callable[..., Server], upstream: Appgregator) -> None:
    running = server()
    late = f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nx-api-key: {KEY}\r\nContent-Type: {FORM}\r\nContent-Length: "
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
        sock.sendall(f"{late}300\r\n\r\nabc".encode())
        received = sock.recv(65536)
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b"Connection: close\r\n" in received
        with suppress(OSError):
            sock.sendall(f"{late}{len(CUSTOMER)}\r\n\r\n{CUSTOMER}".encode())
            assert sock.recv(65536) == b""
    assert not upstream.calls


@pytest.mark.parametrize("head", ["GET /x HTTP/1.1\r\nHost: a\r\nConnection: close", "GET /x HTTP/1.0\r\nHost: a"])
def test_connection_that_its_client_does_not_keep_is_closed_behind_the_answer(
    server: Callable[..., Server], head: str
) -> None:
    running = server()
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as sock:  # half of what a kept one gets
        sock.sendall(f"{head}\r\n\r\n".encode())
        received = b""
        while came := sock.recv(65536):
            received += came
    assert received.split(b" ")[1] == b"404"


def test_head_is_answered_without_a_body_and_without_a_word_in_the_log(server: Callable[..., Server]) -> None:
    running = server()
    with closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as connection:
        for _ in range(2):
            connection.request("HEAD", TARGET)
            assert connection.getresponse().read() == b""
    assert running.errors.read_text() == ""


@pytest.mark.parametrize(
    "framing", ["Content-Length: 300000", "Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 9"]
)
def test_bytes_of_a_body_are_never_answered_as_a_call(server: Callable[..., Server], framing: str) -> None:
    """A body that is too long, or whose end is unclear, ends the connection with its answer."""
    with socket.create_connection(("127.0.0.1", server().port), timeout=60) as sock:
        sock.sendall(f"POST /nowhere HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode() + CALL)
        answered = b""
        with suppress(ConnectionResetError):
            while came := sock.recv(65536):
                answered += came
    assert answered.count(b"HTTP/1.1 ") == 1
