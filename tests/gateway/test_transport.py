"""The one way out, against real sockets that misbehave."""

from __future__ import annotations

import inspect
import ipaddress
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pycurl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from gateway.upstreams import transport as transport_module
from gateway.upstreams.transport import (
    _NOT_TAKEN,
    PRIVATE,
    LostError,
    NotSentError,
    Received,
    Transport,
)
from policies.concealed import Concealed
from policies.dialect import FORM, KeyPlace, Outgoing
from policies.model import Step
from policies.upstreams import UPSTREAMS
from sandbox.__main__ import ROOT, UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from tests.conftest import policy
from tests.gateway.conftest import at_once, granted
from tests.wire import answered, listening, talking

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/stripe/invoices/?name=ft-4&connection_name=stripe-1"
HEADERS = {"Content-Type": FORM, "Accept": "application/json"}
UPSTREAM = Concealed(UPSTREAM_KEY)
#: The same for who speaks to libcurl directly.
LINES = [f"x-api-key: {UPSTREAM_KEY}", *(f"{name}: {value}" for name, value in HEADERS.items())]
BODY = b"customer=cus_1"


@pytest.fixture
def transport() -> Transport:
    return Transport()


def outgoing(url: str, body: bytes | None = BODY, method: str = "POST", **more: Any) -> Outgoing:
    return Outgoing(method, url, KeyPlace.X_API_KEY, HEADERS, body, **more)


def post(
    transport: Transport, origin: str, *, seconds: float = 60, body: bytes = BODY, private: bool = False
) -> Received:
    return transport.send(outgoing(origin + PATH, body, private=private), UPSTREAM, seconds)


def test_answer_comes_with_status_and_body(transport: Transport, upstream: Appgregator) -> None:
    received = post(transport, upstream.origin)
    assert received.status == 200
    assert json.loads(received.body)["object"] == "invoice"
    assert received.headers == {}
    assert upstream.calls[0].body == BODY


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 429, 500, 503])
def test_every_status_is_an_answer(transport: Transport, upstream: Appgregator, status: int) -> None:
    upstream.fail_next(f"error_{status}")
    received = post(transport, upstream.origin)
    assert (received.status, received.headers) == (status, {"retry-after": "7"} if status == 429 else {})


def test_only_our_own_headers_go_out(transport: Transport, upstream: Appgregator) -> None:
    post(transport, upstream.origin)
    assert dict(upstream.calls[0].headers) == {
        "Host": upstream.origin.removeprefix("http://"),
        "User-Agent": "countersign",
        "Accept-Encoding": "identity",
        "x-api-key": UPSTREAM_KEY,
        "Content-Type": "application/x-www-form-urlencoded",
        "Accept": "application/json",
        "Content-Length": str(len(BODY)),
    }
    assert len(upstream.calls[0].headers) == 7


def test_key_does_not_stay_in_the_handle_after_a_call(transport: Transport, upstream: Appgregator) -> None:
    post(transport, upstream.origin)
    curl = transport._handle(upstream.origin, guarded=False)
    curl.setopt(pycurl.POSTFIELDSIZE, 0)
    curl.perform()
    assert len(upstream.calls) == 2
    assert "x-api-key" not in dict(upstream.calls[1].headers)


@pytest.mark.parametrize("failure", ["lost", "not sent"])
def test_key_does_not_stay_in_the_handle_after_a_failure(
    transport: Transport, upstream: Appgregator, failure: str
) -> None:
    upstream.fail_next("truncated")
    with pytest.raises(LostError) if failure == "lost" else pytest.raises(NotSentError):
        post(transport, upstream.origin if failure == "lost" else "http://127.0.0.1:1")
    curl = transport._handle(upstream.origin, guarded=False)
    curl.setopt(pycurl.URL, upstream.origin + PATH)
    curl.setopt(pycurl.POSTFIELDSIZE, 0)
    curl.perform()
    assert "x-api-key" not in dict(upstream.calls[-1].headers)


@pytest.mark.parametrize("size", [0, 1, 100_000, 300_000])
def test_body_of_any_size_arrives_whole(transport: Transport, upstream: Appgregator, size: int) -> None:
    body = b"customer=" + b"c" * size
    post(transport, upstream.origin, body=body)
    assert upstream.calls[0].body == body


def test_large_body_goes_out_without_asking_first(transport: Transport, upstream: Appgregator) -> None:
    """libcurl sends ``Expect: 100-continue`` before a body of more than 1 MB, and waits."""
    post(transport, upstream.origin, body=BODY + b"&unknown=" + b"c" * 2_000_000)
    assert "expect" not in {name.lower() for name, _ in upstream.calls[0].headers}


def test_post_without_a_body_is_a_post(transport: Transport, upstream: Appgregator) -> None:
    post(transport, upstream.origin, body=b"")
    assert dict(upstream.calls[0].headers)["Content-Length"] == "0"


def test_handle_turns_from_post_to_get_and_back(transport: Transport, upstream: Appgregator) -> None:
    assert post(transport, upstream.origin).status == 200
    assert transport.send(outgoing(upstream.origin + PATH, None, "GET"), UPSTREAM, 60).status == 405
    assert post(transport, upstream.origin).status == 200
    assert [call.body for call in upstream.calls] == [BODY, BODY]
    assert upstream.connections == 2  # the GET had one of its own


def test_connection_is_used_again_in_one_thread(transport: Transport, upstream: Appgregator) -> None:
    for _ in range(5):
        post(transport, upstream.origin)
    assert upstream.connections == 1


def test_threads_share_nothing(transport: Transport, upstream: Appgregator) -> None:
    bodies = at_once(20, lambda number: post(transport, upstream.origin, body=b"customer=cus_%d" % number).body)
    assert [json.loads(body)["customer"] for body in bodies] == [f"cus_{number}" for number in range(20)]


# ---------------------------------------------------------------- answers that do harm


@pytest.mark.parametrize("status", [302, 307])
def test_redirect_is_an_answer_and_never_followed(transport: Transport, upstream: Appgregator, status: int) -> None:
    upstream.fail_next(f"redirect_{status}")
    assert post(transport, upstream.origin).status == status
    assert upstream.redirected == 0
    assert len(upstream.calls) == 1


def test_cookie_is_never_sent_back(transport: Transport, upstream: Appgregator) -> None:
    upstream.fail_next("set_cookie")
    for _ in range(2):
        assert post(transport, upstream.origin).status == 200
    assert upstream.connections == 1
    assert [name for name, _ in upstream.calls[1].headers if name.lower() == "cookie"] == []


def test_compressed_answer_is_read_though_nobody_asked(transport: Transport, upstream: Appgregator) -> None:
    upstream.fail_next("gzip")
    assert json.loads(post(transport, upstream.origin).body)["object"] == "invoice"


@pytest.mark.parametrize("fault", ["gzip_bomb", "oversize", "huge_header"])
def test_answer_past_the_cap_is_lost(transport: Transport, upstream: Appgregator, fault: str) -> None:
    upstream.fail_next(fault)
    with pytest.raises(LostError):
        post(transport, upstream.origin)
    assert len(upstream.calls) == 1


def test_gzip_bomb_costs_little_memory(upstream: Appgregator) -> None:
    """200 MB when inflated; measured in a process of its own, whose peak is its own."""
    program = f"""
import resource
from gateway.upstreams.transport import LostError, Transport
from policies.concealed import Concealed
from policies.dialect import KeyPlace, Outgoing
transport = Transport()
outgoing = Outgoing("POST", {upstream.origin + PATH!r}, KeyPlace.X_API_KEY, {HEADERS!r}, {BODY!r})
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def post():
    return transport.send(outgoing, Concealed({UPSTREAM_KEY!r}), 20)
assert post().status == 200
before = peak()
try:
    post()
except LostError:
    print(peak() - before)
"""
    upstream.fail_next("gzip_bomb", 2)
    upstream._failures.appendleft("gzip")
    grown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 30, "megabytes"


def served(answer: bytes) -> Any:
    """A server that reads one request and gives this answer, then closes."""

    @contextmanager
    def serve() -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def run() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(60)
                    received = b""
                    while BODY not in received:
                        received += connection.recv(65536)
                    with suppress(OSError):  # a client that has had enough hangs up
                        connection.sendall(answer)

            listener.settimeout(60)
            thread = threading.Thread(target=run)
            thread.start()
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                thread.join()

    return serve()


@pytest.mark.parametrize("size", [1_048_576, 1_048_577])
def test_cap_is_exact(transport: Transport, size: int) -> None:
    with served(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size) as origin:
        if size <= 1_048_576:
            assert len(post(transport, origin).body) == size
        else:
            with pytest.raises(LostError):
                post(transport, origin)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"not HTTP at all",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhalf",
    ],
    ids=["nothing", "not HTTP", "cut", "cut in a chunk", "not gzip", "two lengths"],
)
def test_answer_that_cannot_be_read_whole_is_lost(transport: Transport, answer: bytes) -> None:
    with served(answer) as origin, pytest.raises(LostError) as caught:
        post(transport, origin)
    assert str(caught.value).startswith("libcurl error ")


def heard(transport: Transport, *headers: bytes, heard: frozenset[bytes]) -> dict[str, str]:
    """What is heard of an answer with these headers."""
    with served(b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: 2", *headers, b"", b"{}"])) as origin:
        return dict(transport.send(outgoing(origin + PATH, heard=heard), UPSTREAM, 60).headers)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], (None, None)),
        ([b"Stripe-Should-Retry: true", b"Request-Id: req_1"], (True, "req_1")),
        ([b"STRIPE-SHOULD-RETRY:false", b"request-id:\t req_a_Z9 "], (False, "req_a_Z9")),
        ([b"Stripe-Should-Retry: yes", b"Request-Id: evt_1"], (None, None)),
        ([b"Stripe-Should-Retry: TRUE", b"Request-Id: req_" + b"a" * 65], (None, None)),
        ([b"Stripe-Should-Retry:", b"Request-Id: req_\xff"], (None, None)),
        ([b"X-Request-Id: req_1", b"Stripe-Should-Retry-: true"], (None, None)),
    ],
)
def test_headers_of_stripe_are_read_where_they_are_asked_for(
    transport: Transport, headers: list[bytes], said: tuple[bool | None, str | None]
) -> None:
    grant = granted(policy("http://127.0.0.1:9", upstream="stripe"))
    stripe = UPSTREAMS["stripe"]
    got = heard(transport, *headers, heard=stripe.request(grant, Step("key")).heard)
    reply = stripe.judge(grant, Step("key"), 409, got, b"{}")
    again, request = said
    assert (reply.again, reply.upstream_request) == (True if again is None else again, request)
    assert stripe.judge(grant, Step("key"), 424, got, b"{}").again == bool(again)
    assert heard(transport, *headers, heard=frozenset()) == {}


@pytest.mark.parametrize(("header", "seconds"), [(b"1", 1), (b"7", 7), (b"0", None), (b"-1", None), (b"soon", None)])
def test_retry_after_is_in_seconds(transport: Transport, header: bytes, seconds: int | None) -> None:
    with served(b"HTTP/1.1 503 Busy\r\nRetry-After: %b\r\nContent-Length: 2\r\n\r\n{}" % header) as origin:
        assert post(transport, origin) == Received(503, b"{}", {} if seconds is None else {"retry-after": str(seconds)})


def test_interim_answers_are_not_the_answer(transport: Transport) -> None:
    with served(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}") as origin:
        assert post(transport, origin) == Received(201, b"{}")


# ---------------------------------------------------------------- time


def test_deadline_bounds_the_whole_call(transport: Transport) -> None:
    """Whoever waits for an answer that never comes, or for every byte of one that trickles, has none in a minute."""

    def lost(number: int) -> float:
        with Appgregator(keys=[UPSTREAM_KEY]) as upstream:
            upstream.delay = 120
            upstream.fail_next(("hang", "trickle", "slow")[number])
            began = time.monotonic()
            with pytest.raises(LostError, match=f"libcurl error {pycurl.E_OPERATION_TIMEDOUT}"):
                post(transport, upstream.origin, seconds=3)
            assert len(upstream.calls) == 1
            return time.monotonic() - began

    assert all(2.9 < seconds < 40 for seconds in at_once(3, lost))


def test_host_that_never_opens_a_connection_is_not_sent_to(transport: Transport) -> None:
    """A listener whose backlog is full leaves connections unopened."""
    with socket.socket() as listener, socket.socket() as one, socket.socket() as two:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (one, two):
            filler.setblocking(False)  # noqa: FBT003 - the socket's own signature
            filler.connect_ex(listener.getsockname())
        with pytest.raises(NotSentError):
            post(transport, f"http://127.0.0.1:{listener.getsockname()[1]}", seconds=0.5)


def test_opening_is_bounded_apart_from_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.upstreams.transport.CONNECT_SECONDS", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections and says nothing, so TLS never begins
        began = time.monotonic()
        with pytest.raises(NotSentError):
            post(Transport(), f"https://127.0.0.1:{listener.getsockname()[1]}", seconds=60, private=True)
        assert 0.3 < time.monotonic() - began < 40


def test_least_time_is_not_no_bound(transport: Transport, upstream: Appgregator) -> None:
    """libcurl takes 0 ms for no timeout."""
    upstream.delay = 60
    upstream.fail_next("slow")
    began = time.monotonic()
    with pytest.raises((NotSentError, LostError)):
        post(transport, upstream.origin, seconds=0.0004)
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("seconds", [0, -1, -0.001])
def test_nothing_is_sent_without_time(transport: Transport, upstream: Appgregator, seconds: float) -> None:
    with pytest.raises(NotSentError):
        post(transport, upstream.origin, seconds=seconds)
    assert upstream.connections == 0


@pytest.mark.parametrize("used", [False, True], ids=["new handle", "used handle"])
def test_nothing_is_sent_where_nothing_listens(transport: Transport, upstream: Appgregator, *, used: bool) -> None:
    if used:
        post(transport, upstream.origin)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # so that nobody else listens there either
        with pytest.raises(NotSentError):
            post(transport, f"http://127.0.0.1:{bound.getsockname()[1]}")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:9/", "file:///etc/hostname", "gopher://127.0.0.1:9/"])
def test_only_http_is_spoken(transport: Transport, url: str) -> None:
    with pytest.raises(NotSentError):
        transport.send(outgoing(url), UPSTREAM, 5)


@pytest.mark.parametrize("scheme", ["ftp", "gopher", "telnet", "dict", "ws"])
def test_nothing_but_http_is_connected_to(transport: Transport, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(NotSentError, match=f"libcurl error {pycurl.E_UNSUPPORTED_PROTOCOL}"):
            post(transport, f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", seconds=0.2, private=True)
        assert accepted(listener) == 0


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://\u00fcpstream.example/", UPSTREAM_KEY),
        ("https://upstream.example/\ud800", UPSTREAM_KEY),
        ("https://upstream.example/\0", UPSTREAM_KEY),
        ("https://upstream.example/\r\nx: y", UPSTREAM_KEY),
        ("https://upstream.example/a b", UPSTREAM_KEY),
        ("https://upstream.example/" + "a" * 9_000_000, UPSTREAM_KEY),
        ("https://", UPSTREAM_KEY),
        ("https://[::1/", UPSTREAM_KEY),
        ("https://upstream.example:65536/", UPSTREAM_KEY),
        ("", UPSTREAM_KEY),
        ("http://127.0.0.1", "\u00fc"),
        ("http://127.0.0.1", "\ud800"),
        ("http://127.0.0.1", "a\0b"),
        ("http://127.0.0.1", "a\r\nStripe-Account: acct_1"),
        ("http://127.0.0.1", "a\nStripe-Account: acct_1"),
    ],
)
def test_request_that_cannot_be_written_as_http_is_not_sent(
    transport: Transport, upstream: Appgregator, url: str, key: str
) -> None:
    """Also on a handle whose call before was sent, which is what libcurl's counter still says."""
    post(transport, upstream.origin)
    post_to = upstream.origin + PATH if url == "http://127.0.0.1" else url
    with pytest.raises(NotSentError) as caught:
        transport.send(outgoing(post_to, private=True), Concealed(key), 5)
    assert re.fullmatch("the request cannot be written as HTTP|libcurl error [0-9]+", str(caught.value))
    assert post(transport, upstream.origin).status == 200
    assert len(upstream.calls) == 2


@pytest.mark.parametrize("error", [pycurl.error, TypeError, ValueError, OverflowError, MemoryError])
def test_whatever_setting_an_option_raises_nothing_is_sent(
    transport: Transport, upstream: Appgregator, error: type[Exception]
) -> None:
    class Failing(dict[str, str]):
        def items(self) -> Any:
            raise error

    with pytest.raises(NotSentError, match="cannot be written as HTTP"):
        transport.send(replace(outgoing(upstream.origin + PATH), headers=Failing()), UPSTREAM, 5)
    assert upstream.connections == 0


def test_every_exception_class_of_pycurl_is_mapped() -> None:
    classes = {value for value in vars(pycurl).values() if isinstance(value, type) and issubclass(value, BaseException)}
    assert classes, "pycurl has some"
    assert {found for found in classes if not issubclass(found, _NOT_TAKEN)} == set()


def test_every_exception_that_setting_an_option_raises_is_mapped() -> None:
    """With values of every kind, for every option that we set."""
    values = ["", "\u00fc", "\0", b"\xff", None, -1, 2**70, 0.5, object(), [1], ["\u00fc"], [None], {}, lambda: None]
    options = re.findall(r"setopt\(\s*(pycurl\.[A-Z_]+)", inspect.getsource(transport_module))
    assert len(options) > 15
    for option in set(options):
        for value in values:
            curl = pycurl.Curl()
            with suppress(*_NOT_TAKEN):
                curl.setopt(getattr(pycurl, option.removeprefix("pycurl.")), value)


def test_handle_works_on_after_every_failure(transport: Transport, upstream: Appgregator) -> None:
    for fault in ("close_after", "oversize", "truncated", "reset_after"):
        upstream.fail_next(fault)
        with pytest.raises(LostError):
            post(transport, upstream.origin)
        assert post(transport, upstream.origin).status == 200


# ---------------------------------------------------------------- never twice


@pytest.mark.parametrize("reused", [False, True], ids=["new connection", "reused connection"])
@pytest.mark.parametrize("fault", ["close_before", "close_after", "reset_after", "truncated"])
def test_connection_that_dies_is_lost_and_the_call_not_repeated(
    transport: Transport, upstream: Appgregator, fault: str, *, reused: bool
) -> None:
    if reused:
        post(transport, upstream.origin)
    upstream.fail_next(fault)
    with pytest.raises(LostError):
        post(transport, upstream.origin)
    # Cut off before its body was read, it is no call to the upstream; had it been repeated, that would be one.
    assert len(upstream.calls) == reused + (fault != "close_before")
    assert upstream.invoices == len(upstream.calls)
    assert upstream.connections == 1


@pytest.mark.parametrize("fault", ["close_before", "close_after", "reset_after"])
def test_libcurl_left_to_itself_would_repeat_the_call(upstream: Appgregator, fault: str) -> None:
    """What the test above guards against does happen, with the same libcurl and the usual way to hand a body over."""
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, upstream.origin + PATH)
    curl.setopt(pycurl.HTTPHEADER, LINES)
    curl.setopt(pycurl.POSTFIELDS, BODY)
    curl.setopt(pycurl.PROXY, "")
    curl.setopt(pycurl.WRITEFUNCTION, BytesIO().write)
    curl.perform()
    upstream.fail_next(fault)
    curl.perform()
    curl.close()
    assert upstream.invoices == (2 if fault == "close_before" else 3)
    assert upstream.connections == 2


METHODS = pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
BODIES = pytest.mark.parametrize("body", [None, b"", b"x=1"], ids=["no body", "empty body", "a body"])


@METHODS
@BODIES
def test_request_is_sent_once_though_the_kept_connection_dies(
    transport: Transport, method: str, body: bytes | None
) -> None:
    """Whatever it is, and although a connection is kept: the upstream may have taken it."""
    with talking(answered()) as (origin, requests):
        assert post(transport, origin).status == 200
        with pytest.raises(LostError):
            transport.send(outgoing(origin + PATH, body, method), UPSTREAM, 60)
        assert requests == [b"POST " + BODY, method.encode() + b" " + (body or b"")]


@METHODS
@pytest.mark.parametrize("body", [None, b"", BODY], ids=["no body", "empty body", "a body"])
def test_libcurl_left_to_itself_would_repeat_the_request(method: str, body: bytes | None) -> None:
    """The control of the test above. A read callback alone does not help where there is nothing to rewind."""
    curl = pycurl.Curl()
    curl.setopt(pycurl.HTTPHEADER, LINES)
    curl.setopt(pycurl.PROXY, "")
    curl.setopt(pycurl.WRITEFUNCTION, BytesIO().write)
    if body is not None:
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.POSTFIELDSIZE, len(body))
        curl.setopt(pycurl.POSTFIELDS if body else pycurl.READFUNCTION, body or BytesIO().read)
    curl.setopt(pycurl.CUSTOMREQUEST, method)
    with talking(answered()) as (origin, requests):
        curl.setopt(pycurl.URL, origin + PATH)
        curl.perform()
        with pytest.raises(pycurl.error):  # it is the third that is closed on a new connection
            curl.perform()
        assert requests == [method.encode() + b" " + (body or b"")] * 3
        curl.close()


@METHODS
@BODIES
@pytest.mark.parametrize(
    "answer",
    [
        answered(b"{}", b"401 Unauthorized", b'WWW-Authenticate: Basic realm="x"'),
        answered(b"{}", b"401 Unauthorized", b"WWW-Authenticate: NTLM"),
        answered(b"{}", b"401 Unauthorized", b"WWW-Authenticate: Negotiate"),
        answered(b"{}", b"407 Proxy Authentication Required", b'Proxy-Authenticate: Basic realm="x"'),
        answered(b"{}", b"408 Request Timeout", b"Connection: close"),
        answered(b"{}", b"417 Expectation Failed"),
        answered(b"{}", b"421 Misdirected Request"),
        answered(b"{}", b"425 Too Early"),
        answered(b"{}", b"429 Too Many Requests", b"Retry-After: 1"),
        answered(b"{}", b"503 Service Unavailable", b"Retry-After: 1"),
        *(answered(b"{}", b"%d Moved" % status, b"Location: /") for status in (301, 302, 303, 307, 308)),
        answered(b"{}", b"426 Upgrade Required", b"Upgrade: h2c", b"Connection: Upgrade"),
    ],
    ids=lambda answer: b" ".join(answer.split()[1:2] + answer.split()[-2:-1]).decode(),
)
def test_no_answer_makes_libcurl_send_again(
    transport: Transport, method: str, body: bytes | None, answer: bytes
) -> None:
    """On a new connection and on a kept one."""
    with talking(answer, answered(), answer) as (origin, requests):
        status = int(answer.split()[1])
        assert transport.send(outgoing(origin + PATH, body, method), UPSTREAM, 60).status == status
        assert post(transport, origin).status == 200
        assert transport.send(outgoing(origin + PATH, body, method), UPSTREAM, 60).status == status
        assert len(requests) == 3


def test_no_answer_sends_the_next_call_elsewhere(transport: Transport, upstream: Appgregator) -> None:
    """Not an alternative service (RFC 7838), nor what a host says of its own security."""
    elsewhere = upstream.origin.removeprefix("http://")
    headers = (b'Alt-Svc: http/1.1="%b"; ma=3600' % elsewhere.encode(), b"Strict-Transport-Security: max-age=3600")
    with talking(answered(b"{}", b"200 OK", *headers), answered()) as (origin, requests):
        for _ in range(2):
            assert post(transport, origin).status == 200
        assert (len(requests), upstream.connections) == (2, 0)


# ---------------------------------------------------------------- an answer to nobody's request


STRAY = answered(b'{"stray": true}')


@contextmanager
def talkative(after: float) -> Iterator[tuple[str, threading.Event]]:
    """A server that answers the first request twice, the second time ``after`` seconds later, which sets the event.

    Its answers are the numbers of the connections.
    """
    spoken = threading.Event()

    def converse(connection: socket.socket, number: int) -> None:
        while connection.recv(65536):
            connection.sendall(answered(b"%d" % number))
            if number == 1:
                time.sleep(after)
                try:
                    connection.sendall(STRAY)
                finally:
                    spoken.set()

    with listening(converse) as origin:
        yield origin, spoken


@pytest.mark.parametrize("after", [0.0, 0.03])
def test_second_answer_is_not_read_as_the_next_calls(transport: Transport, after: float) -> None:
    with talkative(after) as (origin, spoken):
        assert post(transport, origin).body == b"1"
        assert spoken.wait(60)
        assert post(transport, origin).body == b"2"


@pytest.mark.parametrize("between", ["another origin", "no body", "DELETE"])
def test_second_answer_is_not_read_by_a_later_call_either(
    transport: Transport, upstream: Appgregator, between: str
) -> None:
    """The connection that brings it is not the last that this thread used."""
    with talkative(0.1) as (origin, spoken):
        assert post(transport, origin).body == b"1"
        match between:
            case "another origin":
                assert post(transport, upstream.origin).status == 200
            case "no body":
                assert post(transport, origin, body=b"").body == b"2"
            case "DELETE":
                assert transport.send(outgoing(origin + PATH, None, "DELETE"), UPSTREAM, 60).body == b"2"
        assert spoken.wait(60)
        assert post(transport, origin).body == (b"2" if between == "another origin" else b"3")


@pytest.mark.parametrize("body", [None, b""])
def test_request_without_a_body_leaves_no_connection_to_the_next(transport: Transport, body: bytes | None) -> None:
    with talkative(0.03) as (origin, spoken):
        assert transport.send(outgoing(origin + PATH, body), UPSTREAM, 60).body == b"1"
        assert spoken.wait(60)
        assert post(transport, origin).body == b"2"


def test_libcurl_left_to_itself_would_read_the_second_answer_as_the_next_calls() -> None:
    """Unless it looked, which it does once a second: so a machine that stood still for so long tries again."""

    def answers() -> list[bytes]:
        curl = pycurl.Curl()
        curl.setopt(pycurl.HTTPHEADER, LINES)
        curl.setopt(pycurl.POSTFIELDS, BODY)
        curl.setopt(pycurl.PROXY, "")
        found = []
        with talkative(0.03) as (origin, spoken):
            curl.setopt(pycurl.URL, origin + PATH)
            for _ in range(2):
                curl.setopt(pycurl.WRITEFUNCTION, (received := BytesIO()).write)
                curl.perform()
                found.append(received.getvalue())
                assert spoken.wait(60)
            curl.close()
        return found

    assert any(answers() == [b"1", b'{"stray": true}'] for _ in range(5))


def test_kept_connection_outlives_a_request_that_has_its_own(transport: Transport, upstream: Appgregator) -> None:
    for body in (BODY, b"", BODY, b"", BODY):
        post(transport, upstream.origin, body=body)
    assert len({call.connection for call in upstream.calls if call.body}) == 1
    assert len({call.connection for call in upstream.calls}) == 3


def test_connections_of_a_thread_are_closed_when_it_hangs_up(transport: Transport, upstream: Appgregator) -> None:
    post(transport, upstream.origin)
    transport.hang_up()
    post(transport, upstream.origin)
    assert upstream.connections == 2
    transport.hang_up()
    transport.hang_up()  # with nothing to close, it does nothing


def test_other_threads_keep_their_connections(transport: Transport, upstream: Appgregator) -> None:
    post(transport, upstream.origin)
    other = threading.Thread(target=transport.hang_up)
    other.start()
    other.join()
    post(transport, upstream.origin)
    assert upstream.connections == 1


def test_connection_closed_while_idle_is_replaced_before_anything_is_sent(
    transport: Transport, upstream: Appgregator
) -> None:
    post(transport, upstream.origin)
    upstream.stop()
    upstream.start()
    assert post(transport, upstream.origin).status == 200
    assert len(upstream.calls) == 2


@pytest.mark.parametrize(
    ("transport", "connections"),
    [(Transport(idle_seconds=1), 2), (Transport(), 1)],
    ids=["idle for too long", "idle for a while"],
)
def test_connection_idle_for_too_long_is_not_used_again(
    transport: Transport, upstream: Appgregator, connections: int
) -> None:
    post(transport, upstream.origin)
    time.sleep(1.3)
    assert post(transport, upstream.origin).status == 200
    assert upstream.connections == connections


# ---------------------------------------------------------------- the environment has no say


PROGRAM = """
import sys, json, pycurl, os
from gateway.upstreams.transport import Transport
from policies.concealed import Concealed
from policies.dialect import KeyPlace, Outgoing
url, headers = sys.argv[1], json.loads(sys.argv[2])
if sys.argv[3] == "ours":
    key = Concealed(headers[0].removeprefix(KeyPlace.X_API_KEY))
    named = dict(header.split(": ") for header in headers[1:])
    print(Transport().send(Outgoing("POST", url, KeyPlace.X_API_KEY, named, b"customer=cus_1"), key, 60).status)
else:
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, url)
    curl.setopt(pycurl.HTTPHEADER, headers)
    curl.setopt(pycurl.POSTFIELDS, b"customer=cus_1")
    curl.setopt(pycurl.NETRC, pycurl.NETRC_OPTIONAL)
    curl.setopt(pycurl.WRITEFUNCTION, lambda data: None)
    curl.setopt(pycurl.TIMEOUT_MS, 60000)
    try:
        curl.perform()
    except pycurl.error:
        pass
"""


class CountingProxy(HTTPServer):
    """Takes connections, counts them, and answers each request with a 502."""

    def __init__(self) -> None:
        self.connections = 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_error(502)

            do_CONNECT = do_POST  # noqa: N815 - the server's own names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def verify_request(self, request: object, client_address: object) -> bool:
        self.connections += 1
        return True


@pytest.fixture
def proxy() -> Iterator[CountingProxy]:
    with CountingProxy() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_with(environ: dict[str, str], origin: str, whose: str) -> str:
    command = [sys.executable, "-c", PROGRAM, origin + PATH, json.dumps(LINES), whose]
    inherited = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    run = subprocess.run(command, cwd=ROOT, env=inherited | environ, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_proxies_of_the_environment_have_no_effect(upstream: Appgregator, proxy: CountingProxy) -> None:
    address = f"http://127.0.0.1:{proxy.server_address[1]}"
    names = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    environ = dict.fromkeys(names, address)
    run_with(environ, upstream.origin, "libcurl's own")
    assert (proxy.connections, upstream.connections) == (1, 0), "this environment does redirect a plain handle"
    assert run_with(environ, upstream.origin, "ours") == "200"
    assert (proxy.connections, upstream.connections) == (1, 1)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_each_proxy_variable_alone_has_no_effect(upstream: Appgregator, proxy: CountingProxy, name: str) -> None:
    environ = {name: f"http://127.0.0.1:{proxy.server_address[1]}"}
    assert run_with(environ, upstream.origin, "ours") == "200"
    assert (proxy.connections, upstream.connections) == (0, 1)


def test_netrc_has_no_effect(upstream: Appgregator, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\ndefault login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    for whose in ("libcurl's own", "ours"):
        run_with({"HOME": str(tmp_path)}, upstream.origin, whose)
    sent = ["Authorization" in dict(received.headers) for received in upstream.calls]
    assert sent == [True, False]


# ---------------------------------------------------------------- TLS


class Authority:
    """A certificate authority of the test's own, which signs certificates for the host it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test's authority")])
        certificate = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.file = folder / "ca.pem"
        self.file.write_bytes(self._signed(certificate))

    def context(self, name: x509.GeneralName, days: int = 1) -> ssl.SSLContext:
        """Return a server's context with a certificate for ``name``; expired where ``days`` is negative."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test's server")])
        certificate = self._builder(subject, key, days).add_extension(
            x509.SubjectAlternativeName([name]), critical=False
        )
        file = self._folder / f"server-{x509.random_serial_number()}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + self._signed(certificate)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 1) -> x509.CertificateBuilder:
        end = datetime.now(UTC) + timedelta(days=days)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=3))
            .not_valid_after(end)
        )

    def _signed(self, certificate: x509.CertificateBuilder) -> bytes:
        return certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class TlsServer(HTTPServer):
    """Answers every POST with 200, keeps the bodies it was sent, and ends each connection after ``most`` of them."""

    def __init__(self, context: ssl.SSLContext, most: int, host: str) -> None:
        self.bodies = bodies = list[bytes]()
        self.connections = 0
        self.spoken = list[str | None]()
        """What ALPN chose for each connection."""
        self._context = context
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                if len(bodies) % most == 0:
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        super().__init__((host, 0), Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections += 1
        try:
            wrapped = self._context.wrap_socket(connection, server_side=True)
        except OSError:  # the client hung up on our certificate
            connection.close()
            raise
        self.spoken.append(wrapped.selected_alpn_protocol())
        return wrapped, address


@contextmanager
def serving(context: ssl.SSLContext, most: int = 1, host: str = "127.0.0.1") -> Iterator[TlsServer]:
    with TlsServer(context, most, host) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_server_with_a_certificate_of_a_trusted_authority_is_sent_to(authority: Authority) -> None:
    with serving(authority.context(LOOPBACK)) as server:
        transport = Transport(ca_file=str(authority.file))
        assert post(transport, f"https://127.0.0.1:{server.server_address[1]}", private=True).status == 200
        assert server.bodies == [BODY]


def test_connection_over_tls_is_used_again(authority: Authority) -> None:
    with serving(authority.context(LOOPBACK), most=3) as server:
        transport = Transport(ca_file=str(authority.file))
        for _ in range(3):
            assert post(transport, f"https://127.0.0.1:{server.server_address[1]}", private=True).status == 200
        assert server.connections == 1


def test_server_with_a_certificate_of_another_authority_is_sent_nothing(
    transport: Transport, authority: Authority
) -> None:
    with serving(authority.context(LOOPBACK)) as server:
        with pytest.raises(NotSentError):
            post(transport, f"https://127.0.0.1:{server.server_address[1]}", private=True)
        assert server.bodies == []


@pytest.mark.parametrize(
    ("name", "days"),
    [
        (x509.DNSName("appgregator.example"), 1),
        (x509.IPAddress(ipaddress.ip_address("127.0.0.2")), 1),
        (LOOPBACK, -1),
    ],
    ids=["another name", "another address", "expired"],
)
def test_server_with_a_certificate_that_is_not_for_it_is_sent_nothing(
    authority: Authority, name: x509.GeneralName, days: int
) -> None:
    with serving(authority.context(name, days)) as server:
        transport = Transport(ca_file=str(authority.file))
        with pytest.raises(NotSentError):
            post(transport, f"https://127.0.0.1:{server.server_address[1]}", private=True)
        assert server.bodies == []


def test_https_to_a_server_without_tls_is_sent_nothing(transport: Transport, upstream: Appgregator) -> None:
    with pytest.raises(NotSentError):
        post(transport, upstream.origin.replace("http:", "https:"), seconds=0.5, private=True)
    assert upstream.calls == ()


def test_http_2_is_never_spoken(authority: Authority) -> None:
    context = authority.context(LOOPBACK)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with serving(context) as server:
        origin = f"https://127.0.0.1:{server.server_address[1]}"
        curl = pycurl.Curl()
        curl.setopt(pycurl.URL, origin)
        curl.setopt(pycurl.CAINFO, str(authority.file))
        with pytest.raises(pycurl.error):
            curl.perform()  # the server chooses HTTP/2 and cannot speak it
        assert post(Transport(ca_file=str(authority.file)), origin, private=True).status == 200
        assert server.spoken == ["h2", "http/1.1"]


# ---------------------------------------------------------------- where it may go


HOST = "upstream.example"


def resolving(authority: Authority, port: int, *addresses: str, **more: Any) -> Transport:
    """A transport for which ``HOST`` has these addresses."""
    literal = ",".join(f"[{address}]" if ":" in address else address for address in addresses)
    return Transport(str(authority.file), resolve=[f"{HOST}:{port}:{literal}"], **more)


def accepted(listener: socket.socket) -> int:
    """How many connections were opened to a listener that nobody serves."""
    listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
    count = 0
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_host_with_a_private_address_is_sent_to_where_the_connection_says_private(
    authority: Authority, address: str
) -> None:
    with serving(authority.context(x509.DNSName(HOST)), host=address) as server:
        port = server.server_address[1]
        assert post(resolving(authority, port, address), f"https://{HOST}:{port}", private=True).status == 200
        assert server.bodies == [BODY]


@pytest.mark.parametrize(
    ("family", "bound", "address"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", "0.0.0.0"),
        (socket.AF_INET, "127.0.0.1", "::ffff:127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::1", "::"),
    ],
    ids=["loopback", "unspecified", "mapped", "loopback 6", "unspecified 6"],
)
def test_host_with_a_private_address_is_not_connected_to(
    authority: Authority, family: socket.AddressFamily, bound: str, address: str
) -> None:
    with socket.create_server((bound, 0), family=family) as listener:
        port = listener.getsockname()[1]
        transport = resolving(authority, port, address)
        with pytest.raises(NotSentError, match="resolves to a private address; write private: true"):
            post(transport, f"https://{HOST}:{port}")
        assert accepted(listener) == 0
        listener.settimeout(60)

        def hang_up() -> None:
            listener.accept()[0].close()

        with ThreadPoolExecutor(1) as pool:
            hung_up = pool.submit(hang_up)
            with pytest.raises(NotSentError, match=f"libcurl error {pycurl.E_SSL_CONNECT_ERROR}"):
                post(transport, f"https://{HOST}:{port}", seconds=60, private=True)
            hung_up.result()  # this address does lead there


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["192.168.1.1"],
        ["100.64.0.1"],
        ["169.254.169.254"],
        ["fd00::1"],
        ["fe80::1"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::10.0.0.1"],
        ["10.0.0.1", "fd00::1", "192.168.1.1"],
    ],
    ids=" ".join,
)
def test_address_that_is_not_public_is_refused_at_once(authority: Authority, addresses: list[str]) -> None:
    began = time.monotonic()
    with pytest.raises(NotSentError) as caught:
        post(resolving(authority, 443, *addresses), f"https://{HOST}", seconds=60)
    assert str(caught.value) == PRIVATE
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "2130706433", "0x7f.1", "127.1"])
def test_address_written_as_a_host_is_looked_at_too(transport: Transport, host: str) -> None:
    with pytest.raises(NotSentError) as caught:
        post(transport, f"https://{host}:1")
    assert str(caught.value) == PRIVATE


@pytest.mark.parametrize("order", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")])
def test_of_several_addresses_only_the_public_ones_are_connected_to(
    authority: Authority, order: tuple[str, str]
) -> None:
    """127.0.0.1 counts as public here."""
    with serving(authority.context(x509.DNSName(HOST))) as server:
        port = server.server_address[1]
        with socket.create_server(("127.0.0.2", port)) as listener:
            transport = resolving(authority, port, *order, public=lambda address: address == "127.0.0.1")
            assert post(transport, f"https://{HOST}:{port}").status == 200
            assert accepted(listener) == 0
        assert server.bodies == [BODY]


def test_private_address_is_not_named_where_a_public_one_was_connected_to(authority: Authority) -> None:
    with serving(authority.context(LOOPBACK)) as server:  # a certificate for another name
        port = server.server_address[1]
        transport = resolving(authority, port, "127.0.0.2", "127.0.0.1", public=lambda address: address == "127.0.0.1")
        with pytest.raises(NotSentError, match="libcurl error 60"):
            post(transport, f"https://{HOST}:{port}")


def test_connection_to_a_private_address_is_not_reused_without_private(authority: Authority) -> None:
    with serving(authority.context(x509.DNSName(HOST)), most=2) as server:
        port = server.server_address[1]
        transport = resolving(authority, port, "127.0.0.1")
        assert post(transport, f"https://{HOST}:{port}", private=True).status == 200
        with pytest.raises(NotSentError) as caught:
            post(transport, f"https://{HOST}:{port}")
        assert str(caught.value) == PRIVATE
        assert post(transport, f"https://{HOST}:{port}", private=True).status == 200
        assert (server.connections, len(server.bodies)) == (1, 2)


def test_connection_to_a_public_address_is_reused(authority: Authority) -> None:
    with serving(authority.context(x509.DNSName(HOST)), most=3) as server:
        port = server.server_address[1]
        transport = resolving(authority, port, "127.0.0.1", public=lambda _: True)
        for _ in range(3):
            assert post(transport, f"https://{HOST}:{port}").status == 200
        assert server.connections == 1


def test_socket_is_not_inherited_and_is_closed_with_its_handle(authority: Authority) -> None:
    with serving(authority.context(x509.DNSName(HOST)), most=2) as server:
        port = server.server_address[1]
        before = set(Path("/proc/self/fd").iterdir())
        transport = resolving(authority, port, "127.0.0.1", public=lambda _: True)
        post(transport, f"https://{HOST}:{port}")
        curl = transport._handle(f"https://{HOST}:{port}", guarded=True)
        assert not os.get_inheritable(curl.getinfo(pycurl.ACTIVESOCKET))
        curl.close()
    assert set(Path("/proc/self/fd").iterdir()) <= before


def test_nothing_is_sent_or_printed_without_a_free_file_descriptor() -> None:
    program = f"""
import os, resource
from gateway.upstreams.transport import NotSentError, Transport
from policies.concealed import Concealed
from policies.dialect import KeyPlace, Outgoing
transport = Transport(public=lambda address: address != "127.0.0.9")
def post(host):
    try:
        outgoing = Outgoing("POST", f"https://{{host}}:1/", KeyPlace.X_API_KEY, {HEADERS!r}, {BODY!r})
        transport.send(outgoing, Concealed("key"), 5)
    except NotSentError as error:
        print(error)
post("127.0.0.9")  # libcurl opens what it needs itself
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.open("/dev/null", os.O_RDONLY)
except OSError:
    post("127.0.0.1")
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == (f"{PRIVATE}\nlibcurl error 7\n", "")
