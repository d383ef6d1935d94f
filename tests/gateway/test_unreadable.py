"""What the server cannot read as a call is refused as any other: in words, in JSON, on record, without a key in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from gunicorn.config import Config
from gunicorn.http import errors, get_parser
from hypothesis import given
from hypothesis import strategies as st

from gateway.doors import OURS
from gateway.unreadable import MAX_NAMED, stand_in, why
from policies.refusals import NotHttp
from tests.conftest import KEY, TARGET
from tests.problems import parsed, refused, stripe_refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from tests.conftest import Server


def call(*lines: str, target: str = TARGET, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: a", f"x-api-key: {KEY}", *lines, "", ""]).encode()


HEADER = "A header cannot be read. Write each on a line"
UNREADABLE = {
    "a key without its colon": (call(f"x-api-key {KEY}"), 400, "header-malformed", HEADER),
    "a name with a space": (call("x api key: 1"), 400, "header-malformed", HEADER),
    "a folded header": (call("A: 1", " 2"), 400, "header-malformed", HEADER),
    "two hosts": (call("Host: b"), 400, "header-malformed", "Host must be written once"),
    "two types": (call("Content-Type: a/b", "Content-Type: c/d"), 400, "header-malformed", "Content-Type must be"),
    "a null byte in a key": (call("Authorization: a\0b"), 400, "header-malformed", "Authorization must be"),
    "two lengths": (call("Content-Length: 1", "Content-Length: 2"), 400, "header-malformed", "Content-Length must be"),
    "a length in words": (call("Content-Length: ten"), 400, "header-malformed", "Content-Length must be"),
    "chunks in HTTP/1.0": (
        call("Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0"), 400, "header-malformed", "Transfer-Enc",
    ),
    "a made-up coding": (call("Transfer-Encoding: a"), 400, "header-malformed", "Transfer-Encoding must be chunked"),
    "another expectation": (call("Expect: much"), 400, "header-malformed", "Expect must be 100-continue"),
    "an underscore": (call("Idempotency_Key: 1"), 400, "header-malformed", "Write Idempotency-Key with a hyphen"),
    "a cookie of 9 KB": (call(f"Cookie: {'x' * 9000}"), 431, "headers-too-large", "The headers are too large"),
    "many headers": (call(*[f"A{n}: 1" for n in range(120)]), 431, "headers-too-large", "The headers are too large"),
    "a head without an end": (call(f"Cookie: {'x' * 40_000}")[:-4], 431, "headers-too-large", "The headers are"),
    "an address of 5 KB": (call(target=f"{TARGET}&a={'a' * 5000}"), 414, "target-too-long", "The address is too"),
    "HTTP/2 at once": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "not-http", "What came cannot be read"),
    "another version": (call().replace(b"HTTP/1.1", b"HTTP/3.1"), 400, "not-http", "What came cannot be read"),
    "bare line feeds": (call().replace(b"\r\n", b"\n"), 400, "not-http", "What came cannot be read"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", 400, "not-http", "What came cannot be read"),
    "nonsense": (b"\0\r\n\r\n", 400, "not-http", "What came cannot be read"),
}  # fmt: skip


def test_it_is_refused_and_recorded_and_no_key_is_told(server: Callable[..., Server], upstream: Appgregator) -> None:
    running = server()
    for sent, status, reason, says in UNREADABLE.values():
        answer = parsed(running.raw(sent))
        problem = refused(answer, status, reason)
        assert problem["detail"].startswith(says)
        assert answer[1]["connection"] == "close"
        line = running.record.entries()[-1]
        assert (line["kind"], line["status"], line["reason"]) == ("refusal", status, reason)
        assert line["asked"] == (f"POST {TARGET}" if sent.startswith(b"POST ") else "GET /")
        assert KEY not in json.dumps(problem) + json.dumps(line)
    assert not upstream.calls
    assert running.call()[0] == 200
    running.stop()
    assert running.errors.read_text() == ""


def test_it_has_the_form_that_its_client_reads(server: Callable[..., Server]) -> None:
    running = server()
    told = parsed(running.raw(call("x y", target="/ft-4/stripe-1/v1/invoices")))
    assert stripe_refused(told, 400, "header-malformed")["message"].startswith(HEADER)
    assert stripe_refused(
        parsed(running.raw(call(f"A: {'x' * 9000}", target="/v1/invoices"))), 400, "headers-too-large"
    )
    status, headers, _ = parsed(running.raw(call("accept: application/json,text/html", "x y")))
    assert (status, headers["content-type"]) == (400, "application/json")
    assert parsed(running.raw(call("x y", method="HEAD")))[2] == b""


@pytest.mark.parametrize("path", ["/-/health", "/portal", "/portal/docs/refusals", "/openapi.json"])
def test_no_door_answers_it(server: Callable[..., Server], path: str) -> None:
    refused(parsed(server().raw(call("x y", target=path, method="GET"))), 400, "header-malformed")


def test_second_call_of_a_connection_is_refused_behind_the_answer_to_the_first(server: Callable[..., Server]) -> None:
    first, _, second = server().raw(call(method="GET", target="/x") + call("x y")).partition(b"HTTP/1.1 400 ")
    assert parsed(first)[0] == 404
    refused(parsed(b"HTTP/1.1 400 " + second), 400, "header-malformed")


def test_every_complaint_of_the_parser_has_a_refusal_of_our_own_words() -> None:
    for kind in errors.ParseException.__subclasses__():
        error = kind.__new__(kind)
        error.hdr = "x-api-key csk_secret"
        assert "csk_secret" not in why(error).detail
    assert isinstance(why(errors.ParseException()), NotHttp)


@pytest.mark.parametrize(
    ("data", "legible"),
    [
        (b"", b"GET /"),
        (b"POST /a?name=b HTTP/1.1\r\n", b"POST /a?name=b"),
        (b"POST /a\r\nHost: evil", b"POST /a"),
        (b"POST /" + b"a" * 5000, b"POST /" + b"a" * MAX_NAMED),
        (b"POST http://a/b HTTP/1.1\r\n", b"GET /"),
        (b"post /a", b"GET /"),
        (b"GET /\xff\0", b"GET /"),
        (b"GET /a?expand[]=b HTTP/1.1", b"GET /a?expand"),
        (b"CONNECT /a HTTP/1.1", b"GET /"),
        (b"GET /-/me?key=1 HTTP/1.1", b"GET /"),
    ],
)
def test_what_stands_for_it_has_no_more_of_it_than_is_legible(data: bytes, legible: bytes) -> None:
    assert stand_in(data, OURS) == legible + b" HTTP/1.1\r\nHost: /\r\n\r\n"


#: What a first line may be made of, and what else may come.
LIKELY = st.sampled_from(
    [b"GET ", b"POST ", b"CONNECT ", b"/", b"//", b"[", b"%", b"?", b"#", b" HTTP/1.1", b"\r\n", b"\n"]
)
HEADS = st.lists(LIKELY | st.sampled_from([b"Accept: ", b"a", b":", b"*/*"]) | st.binary(max_size=4)).map(b"".join)


@given(HEADS)
def test_what_stands_for_it_can_always_be_read(data: bytes) -> None:
    read = next(get_parser(Config(), iter([stand_in(data, OURS)]), ("127.0.0.1", 1)))
    assert dict(read.headers)["HOST"] == "/"
    assert read.uri.startswith("/")
