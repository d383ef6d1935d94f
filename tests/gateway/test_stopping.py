"""A call's time begins when the server learns of it, and ends when the instance does."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import socket
import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from gateway.record import BEGAN, CALL_SECONDS, PATIENCE_SECONDS
from gateway.stopping import LEAST_SECONDS, SEND_SECONDS, STOPPING, Stopping
from gateway.upstreams.transport import NotSentError, Transport
from policies.concealed import Concealed
from policies.dialect import FORM, KeyPlace, Outgoing
from sandbox.__main__ import ROOT, UPSTREAM_KEY
from sandbox.ports import listening
from tests.conftest import CUSTOMER, KEY, TARGET
from tests.strangers import KINDS, strangers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from tests.conftest import Function, Server


def a_post(origin: str) -> Outgoing:
    return Outgoing("POST", origin + TARGET, KeyPlace.X_API_KEY, {"Content-Type": FORM}, CUSTOMER.encode())


def asked(port: int, customer: str = CUSTOMER) -> socket.socket:
    """Ask for an invoice and return the connection, on which the answer has yet to come."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.sendall(
        f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nx-api-key: {KEY}\r\nContent-Type: {FORM}\r\n"
        f"Content-Length: {len(customer)}\r\n\r\n{customer}".encode()
    )
    return sock


def test_call_whose_caller_is_gone_is_not_sent(server: Callable[..., Server], upstream: Appgregator) -> None:
    """One thread. The second call waits for the first; the others until their callers have hung up."""
    running = server(THREADS="1")
    upstream.delay = 3 * PATIENCE_SECONDS
    socks = [asked(running.port, "customer=cus_fault_slow") for _ in range(5)]
    while len(upstream.calls) < 2:  # and the second takes three seconds from here
        time.sleep(0.01)
    for sock in socks[1:]:
        sock.close()
    assert socks[0].recv(20).startswith(b"HTTP/1.1 200 OK")
    socks[0].close()
    assert running.call()[0] == 200  # behind all of them, and its caller is there
    assert len(upstream.calls) == 3
    refused = running.record.entries("refusal")
    assert [entry["reason"] for entry in refused] == ["waited-too-long"] * 3
    assert {entry["note"] for entry in refused} == {"the caller has hung up"}
    assert [entry["kind"] for entry in running.record.entries()].count("intent") == 3


@pytest.fixture
def stopping() -> Iterator[Stopping]:
    yield STOPPING
    STOPPING.ends = math.inf


@pytest.mark.parametrize(
    ("waited", "status"),
    [(0.0, 200), (CALL_SECONDS - LEAST_SECONDS - 9, 200), (CALL_SECONDS - LEAST_SECONDS, 503), (CALL_SECONDS + 1, 503)],
)
def test_time_of_a_call_began_when_the_server_learned_of_it(
    function: Callable[..., Function], upstream: Appgregator, waited: float, status: int
) -> None:
    client = function().app.test_client()
    answer = client.post(
        TARGET,
        data=CUSTOMER,
        content_type=FORM,
        headers={"x-api-key": KEY, "Idempotency-Key": "one-key-for-it"},
        environ_overrides={BEGAN: time.monotonic() - waited},
    )
    assert answer.status_code == status
    assert len(upstream.calls) == (status == 200)
    if status == 503:
        assert json.loads(answer.data)["reason"] == "waited-too-long"
        again = client.post(
            TARGET, data=CUSTOMER, content_type=FORM, headers={"x-api-key": KEY, "Idempotency-Key": "one-key-for-it"}
        )
        assert again.status_code == 200  # its key was released


def test_call_that_waited_is_not_sent_by_an_instance_that_stops(
    function: Callable[..., Function], upstream: Appgregator, stopping: Stopping
) -> None:
    client = function().app.test_client()
    stopping.begin(time.monotonic() - SEND_SECONDS + LEAST_SECONDS)
    answer = client.post(
        TARGET,
        data=CUSTOMER,
        content_type=FORM,
        headers={"x-api-key": KEY},
        environ_overrides={BEGAN: time.monotonic() - PATIENCE_SECONDS - 1},
    )
    assert (answer.status_code, json.loads(answer.data)["reason"]) == (503, "waited-too-long")
    assert not upstream.calls


def test_call_that_comes_in_the_last_second_is_not_sent(
    function: Callable[..., Function], upstream: Appgregator, stopping: Stopping
) -> None:
    called = function()
    stopping.begin(time.monotonic() - SEND_SECONDS)
    answer = called.post()
    assert (answer.status_code, json.loads(answer.data)["reason"]) == (503, "upstream-unreachable")
    assert not upstream.calls


def test_send_is_ended_when_the_instance_stops_and_its_outcome_is_unknown(
    function: Callable[..., Function], upstream: Appgregator, stopping: Stopping
) -> None:
    called = function()
    assert called.post().status_code == 200  # all that a call needs is at hand, and the next is sent at once
    upstream.delay = 60
    stopping.begin(time.monotonic() - SEND_SECONDS + LEAST_SECONDS + 2)
    began = time.monotonic()
    answer = called.post(body="customer=cus_fault_slow")
    assert (answer.status_code, json.loads(answer.data)["reason"]) == (424, "outcome-unknown")
    assert time.monotonic() - began < 15  # of the 25 that a call has
    assert [line["kind"] for line in called.record.entries()] == ["intent", "outcome"] * 2


def test_send_that_began_before_is_ended_and_its_own_thread_says_what_became_of_it(
    function: Callable[..., Function], upstream: Appgregator, stopping: Stopping
) -> None:
    called = function()
    assert called.post().status_code == 200  # its connection is kept, and the next call waits on it
    upstream.delay = 60
    began = time.monotonic()

    def end() -> None:
        while len(upstream.calls) < 2:
            time.sleep(0.01)
        stopping.end_sends()

    ending = threading.Thread(target=end)
    ending.start()
    answer = called.post(body="customer=cus_fault_slow")
    ending.join()
    assert (answer.status_code, json.loads(answer.data)["reason"]) == (424, "outcome-unknown")
    assert time.monotonic() - began < 15  # of the 25 that a call has
    assert [line["kind"] for line in called.record.entries()] == ["intent", "outcome"] * 2


def test_connection_that_is_opened_as_sends_end_is_refused(upstream: Appgregator, stopping: Stopping) -> None:
    transport = Transport()
    stopping.ends = time.monotonic()
    with pytest.raises(NotSentError):
        transport.send(a_post(upstream.origin), Concealed(UPSTREAM_KEY), 60)
    assert not upstream.calls


def test_no_connection_is_noted_that_is_closed(upstream: Appgregator, capfd: pytest.CaptureFixture[str]) -> None:
    """Its number may be another's by then, which :meth:`Stopping.end_sends` would shut down."""
    before = set(STOPPING._connections)
    transport = Transport()
    transport.send(a_post(upstream.origin), Concealed(UPSTREAM_KEY), 60)
    (kept,) = STOPPING._connections - before
    assert os.fstat(kept)
    transport.hang_up()
    assert kept not in STOPPING._connections
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)
    post = a_post(upstream.origin)
    transport.send(replace(post, method="GET", body=None), Concealed(UPSTREAM_KEY), 60)  # a connection of its own
    assert set(STOPPING._connections) <= before
    assert capfd.readouterr() == ("", "")  # where pycurl writes that a callback is wrong


def test_ending_sends_twice_or_with_nothing_under_way_does_no_harm() -> None:
    stopping = Stopping()
    stopping.end_sends()
    mine, other = socket.socketpair()
    stopping.opened(mine.detach())
    fresh = socket.socket().detach()  # connected to nobody yet
    stopping.opened(fresh)
    stopping.end_sends()
    stopping.end_sends()
    with other:
        assert other.recv(1) == b""
    for number in tuple(stopping._connections):
        stopping.close(number)
    assert not stopping._connections


def within(seconds: float, work: Callable[[], object]) -> bool:
    """Whether ``work`` ends in this time, in a thread of its own."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_handle_that_is_freed_as_sends_end_holds_up_nobody(
    upstream: Appgregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = Stopping()
    monkeypatch.setattr("gateway.upstreams.transport.STOPPING", stopping)
    kept = Transport()
    kept.send(a_post(upstream.origin), Concealed(UPSTREAM_KEY), 30)
    (left,) = stopping._connections
    ring = Transport()  # its handle leads back to it
    ring.send(a_post(upstream.origin), Concealed(UPSTREAM_KEY), 30)
    assert len(stopping._connections) == 2
    del ring

    class Collecting(socket.socket):
        def __init__(self, *, fileno: int) -> None:
            gc.collect()  # as it may with whatever is made
            super().__init__(fileno=fileno)

    monkeypatch.setattr("gateway.stopping.socket", SimpleNamespace(socket=Collecting, SHUT_RDWR=socket.SHUT_RDWR))
    assert within(30, stopping.end_sends)
    assert stopping._connections == {left}
    kept.hang_up()
    assert not stopping._connections


def test_connection_that_is_closed_as_it_is_shut_down_keeps_its_number_until_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is closed by the thread that ends the sends, where that frees a handle, or by another."""
    stopping = Stopping()
    ends = [socket.socketpair() for _ in range(2)]
    mine, others = (end.detach() for end, _ in ends)
    for number in (mine, others):
        stopping.opened(number)
    met = []

    class Meeting(socket.socket):
        def shutdown(self, how: int) -> None:
            number = self.fileno()
            if number == mine:
                stopping.close(number)
            else:
                assert within(30, partial(stopping.close, number))
            assert os.fstat(number)
            super().shutdown(how)
            met.append(number)

    monkeypatch.setattr("gateway.stopping.socket", SimpleNamespace(socket=Meeting, SHUT_RDWR=socket.SHUT_RDWR))
    assert within(30, stopping.end_sends)
    assert sorted(met) == sorted((mine, others))
    assert not stopping._connections
    for number in (mine, others):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    for _, other in ends:
        other.close()


def test_only_the_first_sigterm_counts() -> None:
    stopping = Stopping()
    stopping.begin(100.0)
    stopping.begin(105.0)
    assert stopping.ends == 100.0 + SEND_SECONDS


def test_record_ends_with_stop_whatever_peers_do(server: Callable[..., Server]) -> None:
    running = server()
    assert running.call()[0] == 200
    with contextlib.ExitStack() as them:
        for kind in KINDS:
            them.enter_context(strangers(running.port, kind, 5))
        running.process.terminate()
        assert running.process.wait(timeout=60) == 0
    kinds = [line["countersign"]["kind"] for line in running.record.lines()]
    assert kinds[:3] == ["start", "intent", "outcome"]
    assert kinds[-1] == "stop"
    assert kinds.count("stop") == 1


#: Loaded by the framework in place of ``main.py``: a busy machine may not send the rest of a call within two seconds.
LATER = """
from gateway import worker
worker.LAST_CALL_SECONDS = 6
from tests.served.patient import countersign
"""


def test_call_on_its_way_as_the_instance_stops_is_answered(
    server: Callable[..., Server], upstream: Appgregator, tmp_path: Path
) -> None:
    """On a connection that was kept, one that was only opened, and one that holds half of a call."""
    (tmp_path / "later.py").write_text(LATER)
    running = server(source=tmp_path / "later.py", PYTHONPATH=str(ROOT))
    kept = asked(running.port)
    assert kept.recv(65536).startswith(b"HTTP/1.1 200 OK")
    opened = socket.create_connection(("127.0.0.1", running.port), timeout=60)
    half = socket.create_connection(("127.0.0.1", running.port), timeout=60)
    whole = (
        f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nx-api-key: {KEY}\r\nContent-Type: {FORM}\r\n"
        f"Content-Length: {len(CUSTOMER)}\r\n\r\n{CUSTOMER}"
    ).encode()
    half.sendall(whole[:-5])
    time.sleep(0.2)
    running.process.terminate()
    while listening(running.port):
        time.sleep(0.01)
    half.sendall(whole[-5:])
    opened.sendall(whole)
    kept.sendall(whole)
    for sock in (kept, opened, half):
        answer = b""
        while came := sock.recv(65536):
            answer += came
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close\r\n" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["id"]
        sock.close()
    assert running.process.wait(timeout=60) == 0
    assert upstream.invoices == 4
