"""WSGI environment -> Call: what is read of a request, and how long its body is waited for."""

from __future__ import annotations

import io
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import EnvironBuilder

from gateway import reading
from gateway.reading import MAX_BODY, MAX_TARGET, read
from policies.concealed import Concealed
from policies.refusals import (
    BodyIncomplete,
    BodyTimeout,
    BodyTooLarge,
    HeaderMalformed,
    MediaTypeUnsupported,
    MethodNotAllowed,
    PathUnknown,
    QueryMalformed,
    TargetTooLong,
)
from tests.conftest import CUSTOMER, FORM, TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.refusals import Refusal


def environ(target: str = TARGET, body: bytes = CUSTOMER.encode(), **members: Any) -> dict[str, Any]:
    """Write the WSGI environment of a call; a member of None is left out."""
    built = EnvironBuilder(method="POST", data=body, content_type=FORM).get_environ()
    merged = {**built, "RAW_URI": target, **members}
    return {name: value for name, value in merged.items() if value is not None}


def test_call_is_read_as_it_was_written() -> None:
    call = read(
        environ(
            f"{TARGET}&validate_only=true",
            HTTP_X_API_KEY="key",
            HTTP_IDEMPOTENCY_KEY="order-1",
            HTTP_AUTHORIZATION="Bearer token",
        )
    )
    assert (call.operation, call.name, call.connection_name) == ("invoices.create", "ft-4", "stripe-1")
    assert call.credentials == {"x-api-key": Concealed("key"), "Authorization": Concealed("Bearer token")}
    assert call.idempotency_key == "order-1"
    assert (call.media, call.body, call.validate_only) == ("form", CUSTOMER.encode(), True)
    for secret in ("key'", "token", CUSTOMER):
        assert secret not in repr(call)


def test_headers_that_were_not_sent_are_none() -> None:
    call = read(environ())
    assert (call.credentials, call.idempotency_key, call.validate_only) == ({}, None, False)


def test_connection_may_be_named_in_the_path() -> None:
    call = read(environ("/ft-4/stripe-1/v1/invoices"))
    assert (call.name, call.connection_name) == ("ft-4", "stripe-1")


def test_connection_may_be_left_to_the_credential() -> None:
    call = read(environ("/v1/invoices"))
    assert (call.operation, call.name, call.connection_name) == ("invoices.create", "", "")
    looked = read(environ("/v1/invoices/in_1?expand[]=customer", b"", REQUEST_METHOD="GET"))
    assert (looked.operation, looked.name, looked.path_parameters) == ("invoices.retrieve", "", {"invoice": "in_1"})


@pytest.mark.parametrize(
    "target", ["/v1/invoices/", "/v1//invoices", "//v1/invoices", "/stripe/v1/invoices", "/ft-4/v1/invoices", "/v1/"]
)
def test_connection_is_left_to_the_credential_at_one_path_alone(target: str) -> None:
    with pytest.raises(PathUnknown):
        read(environ(target))


@pytest.mark.parametrize(
    "media", ["application/json", "Application/JSON; Charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_may_say_its_charset(media: str) -> None:
    assert read(environ(CONTENT_TYPE=media)).media == "json"


@pytest.mark.parametrize("encoding", ["identity", " Identity "])
def test_identity_is_no_encoding(encoding: str) -> None:
    assert read(environ(HTTP_CONTENT_ENCODING=encoding)).body


@pytest.mark.parametrize(
    ("members", "refusal"),
    [
        ({"RAW_URI": "/" + "a" * MAX_TARGET}, TargetTooLong),
        ({"RAW_URI": "/stripe/invoices/x/y"}, PathUnknown),
        ({"RAW_URI": "/stripe%2Finvoices/", "PATH_INFO": "/stripe/invoices/"}, PathUnknown),
        ({"RAW_URI": "//stripe/invoices/", "PATH_INFO": "/stripe/invoices/"}, PathUnknown),
        ({"RAW_URI": f"http://countersign{TARGET}", "PATH_INFO": "/stripe/invoices/"}, PathUnknown),
        ({"REQUEST_METHOD": "GET"}, MethodNotAllowed),
        ({"REQUEST_METHOD": "post"}, MethodNotAllowed),
        ({"RAW_URI": "/stripe/invoices/"}, QueryMalformed),
        ({"RAW_URI": f"{TARGET}&name=ft-4"}, QueryMalformed),
        ({"CONTENT_TYPE": None}, MediaTypeUnsupported),
        ({"HTTP_CONTENT_ENCODING": "gzip"}, MediaTypeUnsupported),
        ({"HTTP_X_API_KEY": "k" * 4097}, HeaderMalformed),
        ({"CONTENT_LENGTH": "x"}, HeaderMalformed),
        ({"CONTENT_LENGTH": "-1"}, HeaderMalformed),
        ({"CONTENT_LENGTH": "\u00b2"}, HeaderMalformed),
        ({"CONTENT_LENGTH": str(MAX_BODY + 1)}, BodyTooLarge),
        ({"CONTENT_LENGTH": "9" * 400}, BodyTooLarge),
        ({"CONTENT_LENGTH": "1000"}, BodyIncomplete),
    ],
)
def test_first_thing_that_is_wrong_is_refused(members: dict[str, Any], refusal: type[Refusal]) -> None:
    with pytest.raises(refusal):
        read(environ(**members))


def test_no_more_than_the_cap_is_read_of_a_body_without_a_length() -> None:
    stream = io.BytesIO(b"x" * (4 * MAX_BODY))
    members: dict[str, Any] = {"CONTENT_LENGTH": None, "wsgi.input_terminated": True, "wsgi.input": stream}
    with pytest.raises(BodyTooLarge):
        read(environ(**members))
    assert stream.tell() <= MAX_BODY + 1


def test_no_length_and_no_end_is_no_body() -> None:
    """Without either, a server has nothing to give, and reading on would wait for the next request."""
    members: dict[str, Any] = {
        "CONTENT_LENGTH": None,
        "wsgi.input_terminated": None,
        "wsgi.input": io.BytesIO(b"next request"),
    }
    assert read(environ(**members)).body == b""


@pytest.mark.parametrize("error", [OSError, ConnectionResetError, TimeoutError])
def test_connection_that_breaks_is_an_incomplete_body(error: type[OSError]) -> None:
    class Broken(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise error

    broken = {**environ(), "wsgi.input": Broken()}
    with pytest.raises(BodyIncomplete):
        read(broken)


# ---------------------------------------------------------------- waiting for a body


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[reading._Watch]:
    watch = reading._Watch(0.3, tick=0.02)
    monkeypatch.setattr(reading, "_WATCH", watch)
    yield watch
    assert not watch._waiting  # nothing is watched that is not being read


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def from_socket(ours: socket.socket, length: int) -> dict[str, Any]:
    return {**environ(), "wsgi.input": ours.makefile("rb"), "gunicorn.socket": ours, "CONTENT_LENGTH": str(length)}


def test_body_that_is_there_is_not_waited_for(watch: reading._Watch, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(CUSTOMER.encode())
    assert read(from_socket(ours, len(CUSTOMER))).body == CUSTOMER.encode()
    time.sleep(0.5)
    theirs.sendall(b"next")
    assert ours.recv(4) == b"next"  # the connection was left alone


def test_body_that_comes_slowly_but_in_time_is_read(
    watch: reading._Watch, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    later = threading.Timer(0.1, theirs.sendall, [b"us_1"])
    theirs.sendall(b"customer=c")
    later.start()
    assert read(from_socket(ours, 14)).body == b"customer=cus_1"
    later.join()


def test_overdue_body_is_given_up_and_the_answer_still_goes_out(
    watch: reading._Watch, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.sendall(b"cust")
    call = from_socket(ours, 500)
    began = time.monotonic()
    with pytest.raises(BodyTimeout):
        read(call)
    assert 0.3 <= time.monotonic() - began < 1.5
    ours.sendall(b"answer")
    assert theirs.recv(6) == b"answer"


def test_many_overdue_bodies_are_given_up_together(watch: reading._Watch) -> None:
    pairs = [socket.socketpair() for _ in range(20)]
    outcomes: list[str] = []

    def call(ours: socket.socket) -> None:
        try:
            read(from_socket(ours, 500))
        except BodyTimeout as refusal:
            outcomes.append(refusal.reason)

    threads = [threading.Thread(target=call, args=(ours,)) for ours, _ in pairs]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=5)
    assert time.monotonic() - began < 2
    assert outcomes == ["body-timeout"] * 20
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_socket_that_is_gone_does_not_stop_the_watch(
    watch: reading._Watch, pair: tuple[socket.socket, socket.socket]
) -> None:
    gone, other = socket.socketpair()
    token = watch.over(gone)
    gone.close()
    other.close()
    time.sleep(0.5)
    assert watch.done(token)
    with pytest.raises(BodyTimeout):
        read(from_socket(pair[0], 5))
