"""WSGI environment -> Call: what is read of a request, and how long its body is waited for."""

from __future__ import annotations

import gc
import io
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import EnvironBuilder

from gateway import reading
from gateway.reading import MAX_BODY, MAX_HEADER, MAX_TARGET, read
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
    "media",
    [
        "application/json",
        "Application/JSON; Charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/json; charset='utf-8'",
        "application/json; charset=utf8",
        "application/json;",
        "application/json; odata=verbose",
        "application/json; charset=utf-8; v=1",
    ],
)
def test_json_may_say_its_charset(media: str) -> None:
    assert read(environ(CONTENT_TYPE=media)).media == "json"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"CONTENT_TYPE": None}, "Content-Type is missing. Write application/json for JSON, or application/x-www"),
        ({"CONTENT_TYPE": ""}, "Content-Type is missing."),
        ({"CONTENT_TYPE": "text/plain;charset=UTF-8"}, "Content-Type is text/plain. Write application/json"),
        ({"CONTENT_TYPE": "text/json"}, "Content-Type is text/json."),
        ({"CONTENT_TYPE": "application/vnd.api+json"}, "Content-Type is application/vnd.api+json."),
        ({"CONTENT_TYPE": "*/*"}, "Content-Type is */*."),
        ({"CONTENT_TYPE": "a\x1b[31m\xe9"}, "Content-Type is a\\x1b[31m\\xe9."),
        ({"CONTENT_TYPE": "Multipart/Form-Data; boundary=x"}, "The body is multipart/form-data, which is for files. "),
        ({"CONTENT_TYPE": f"{FORM}; charset=ISO-8859-1"}, "The charset of the body is iso-8859-1. Send it in UTF-8."),
        ({"CONTENT_TYPE": f"{FORM}; charset="}, "The charset of the body is empty. Send it in UTF-8."),
        ({"HTTP_CONTENT_ENCODING": "gzip"}, "The body is compressed (gzip). Send it as it is."),
    ],
)
def test_media_type_that_is_not_read_is_told_what_to_send_instead(members: dict[str, Any], said: str) -> None:
    with pytest.raises(MediaTypeUnsupported) as refusal:
        read(environ(**members))
    assert refusal.value.detail.startswith(said)
    assert refusal.value.detail.isascii()
    assert refusal.value.detail.isprintable()


@pytest.mark.parametrize(
    ("query", "parameter", "said"),
    [
        ("name=ft-4&connection_name=stripe-1&utm_source=x", "utm_source", "utm_source does not belong in the address."),
        ("q=x&name=ft-4&connection_name=stripe-1", "q",
         "q does not belong in the address. The address takes name, connection_name and validate_only; parameters go"),
        ("name=ft-4&connection_name=stripe-1&customer=cus_1", "customer", "customer does not belong in the address."),
        ("api_key=k&name=ft-4&connection_name=stripe-1", "api_key", "api_key does not belong in the address."),
        ("name=ft-4&amp;connection_name=stripe-1", "amp;connection_name",
         "amp;connection_name does not belong in the address. Did you mean connection_name?"),
        ("name=ft-4&connectionName=stripe-1", "connectionName",
         "connectionName does not belong in the address. Did you mean connection_name?"),
        ("Name=ft-4&connection_name=stripe-1", "Name", "Name does not belong in the address. Did you mean name?"),
        ("name=ft-4&connection_name=stripe-1&validateonly=true", "validateonly",
         "validateonly does not belong in the address. Did you mean validate_only?"),
        ("name=ft-4&connection_name=stripe-1&=x", "", "An empty name does not belong in the address."),
        ("name=ft-4&connection_name=stripe-1&validate_only=yes", "validate_only",
         "validate_only must be true or false."),
        ("name=ft-4&connection_name=stripe-1&name=ft-4", "name", "name is given twice in the address. Write it once."),
        ("name=ft-4", "connection_name",
         "connection_name is missing in the address: write ?name=ft-4&connection_name=stripe-1."),
        ("name=&connection_name=stripe-1", "name", "name is empty in the address: write ?name=ft-4&connection_name=s"),
        ("name&connection_name=stripe-1", "name", "name is empty in the address"),
        ("", "name", "name is missing in the address"),
        ("name=ft 4&connection_name=stripe-1", "name", "name must be a plain name, such as ft-4"),
        ("name=%FF&connection_name=stripe-1", None, "The address is not valid UTF-8."),
    ],
)  # fmt: skip
def test_query_that_is_not_right_names_what_is_wrong(query: str, parameter: str | None, said: str) -> None:
    with pytest.raises(QueryMalformed) as refusal:
        read(environ(f"/stripe/invoices/?{query}"))
    assert refusal.value.parameter == parameter
    assert refusal.value.detail.startswith(said)


SEEN = "Addresses end up in logs: send the caller key in the x-api-key header, and ask the operator of Countersign for"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("name=ft-4&amp;connection_name=stripe-1", "amp;connection_name does not belong in the address. Did you"),
        ("NAME=ft-4&connection_name=stripe-1", "NAME does not belong in the address. Did you mean name?"),
        ("name=ft-4&connection_name=stripe-1&api_key=k", f"api_key does not belong in the address. {SEEN}"),
        ("name=ft-4&connection_name=stripe-1&ACCESS-TOKEN=k", f"ACCESS-TOKEN does not belong in the address. {SEEN}"),
        ("name=ft-4&connection_name=stripe-1&csk_1", f"A caller key must not be written in the address. {SEEN}"),
        ("name=ft-4&connection_name=stripe-1&x=%63sk%5F1", f"A caller key must not be written in the address. {SEEN}"),
        ("name=csk_1&connection_name=stripe-1", f"A caller key must not be written in the address. {SEEN}"),
        ("name=ft-4", "connection_name is missing in the address"),
        ("name=ft-4&connection_name=stripe-1#top", "connection_name must be a plain name, such as ft-4"),
    ],
)  # fmt: skip
def test_address_of_a_look_up_is_read_by_the_rule_of_one_that_creates(query: str, said: str) -> None:
    details = []
    for path, method, body in (("/stripe/invoices/", "POST", b"customer=c"), ("/stripe/invoices/in_1", "GET", b"")):
        with pytest.raises(QueryMalformed) as refusal:
            read(environ(f"{path}?{query}", body, REQUEST_METHOD=method))
        details.append(refusal.value.detail)
        assert "csk_" not in str(refusal.value.problem("id"))
    assert details[0] == details[1]
    assert details[0].startswith(said)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/ft-4/stripe-1/v1/invoices/", "/ft-4/stripe-1/v1/invoices"),
        ("/ft-4/stripe-1//v1/invoices", "/ft-4/stripe-1/v1/invoices"),
        ("/v1/invoices/", "/v1/invoices"),
        ("/V1/Invoices", "/v1/invoices"),
        ("/Invoices", "/invoices"),
        ("https://countersign.example/stripe/invoices/in_1", "/stripe/invoices/in_1"),
        ("/stripehttps://countersign.example/invoices", None),  # an origin is looked for where it begins, in one place
        ("/stripe//invoices/csk_1", None),
        ("/ft-4/v1/invoices", None),
    ],
)
def test_path_that_is_almost_right_is_answered_with_the_right_one(path: str, meant: str | None) -> None:
    with pytest.raises(PathUnknown) as refusal:
        read(environ(path))
    assert refusal.value.detail == (f"{PathUnknown.sentence} You may mean {meant}." if meant else PathUnknown.sentence)


@pytest.mark.parametrize("more", ["&", "&&", "&validate_only=false", "&validate_only=0"])
def test_query_may_have_empty_pairs(more: str) -> None:
    call = read(environ(f"{TARGET}{more}"))
    assert (call.name, call.connection_name, call.validate_only) == ("ft-4", "stripe-1", False)


@pytest.mark.parametrize("written", ["true", "True", "TRUE", "1"])
def test_validate_only_is_read_as_any_boolean(written: str) -> None:
    assert read(environ(f"{TARGET}&validate_only={written}")).validate_only


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("name=ft-4", "At this path the query must not name the connection: take out name."),
        ("expand[]=customer", "expand[] does not belong in the address."),
    ],
)
def test_query_where_the_path_names_the_connection_names_what_is_too_much(query: str, said: str) -> None:
    with pytest.raises(QueryMalformed) as refusal:
        read(environ(f"/ft-4/stripe-1/v1/invoices?{query}"))
    assert refusal.value.detail.startswith(said)


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


@pytest.mark.parametrize(
    "name",
    [
        "x-api-key", "Authorization", "X-Serverless-Authorization", "Idempotency-Key",
        "webhook-id", "webhook-timestamp", "webhook-signature",
    ],
)  # fmt: skip
def test_header_that_is_too_long_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(HeaderMalformed) as refusal:
        read({**environ(), f"HTTP_{name.upper().replace('-', '_')}": "a" * (MAX_HEADER + 1)})
    assert f" {name} " in refusal.value.detail


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
def watch(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[reading._Watch]:
    """Watch bodies for 0.3 s, or as long as a test says, which a busy machine may not keep."""
    watch = reading._Watch(getattr(request, "param", 0.3), tick=0.02)
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


IN_TIME = pytest.mark.parametrize("watch", [60.0], indirect=True, ids=["in time"])


@IN_TIME
def test_body_that_is_there_is_not_waited_for(watch: reading._Watch, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(CUSTOMER.encode())
    assert read(from_socket(ours, len(CUSTOMER))).body == CUSTOMER.encode()
    watch._end(time.monotonic() + 120)
    theirs.sendall(b"next")
    assert ours.recv(4) == b"next"  # the connection was left alone


@IN_TIME
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
    assert 0.3 <= time.monotonic() - began < 30
    ours.sendall(b"answer")
    assert theirs.recv(6) == b"answer"


def test_many_overdue_bodies_are_given_up_together(watch: reading._Watch) -> None:
    pairs = [socket.socketpair() for _ in range(40)]
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
        thread.join(timeout=60)
    assert time.monotonic() - began < 10  # one after the other they would take twelve
    assert outcomes == ["body-timeout"] * 40
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
    until = time.monotonic() + 60
    while token in watch._waiting:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert watch.done(token)
    with pytest.raises(BodyTimeout):
        read(from_socket(pair[0], 5))


def test_next_body_of_a_thread_is_not_taken_for_its_overdue_one(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """The watch looks at a body just as that ends and the next one of the same thread begins."""
    watch = reading._Watch(0.3, tick=600)  # it looks when it is told to
    ours, theirs = pair
    first = watch.over(ours)
    tokens: list[int] = []

    class Racing(dict[int, Any]):
        def copy(self) -> dict[int, Any]:  # what the watch has read is old by the time it acts
            seen = super().copy()
            if not tokens:
                watch.done(first)
                tokens.append(watch.over(ours))
            return seen

    watch._waiting = Racing(watch._waiting)
    watch._end(time.monotonic() + 60)
    assert not watch.done(tokens[0])  # still watched, and in time
    theirs.sendall(b"next")
    assert ours.recv(4) == b"next"


def test_watch_goes_on_while_calls_begin_as_it_looks(pair: tuple[socket.socket, socket.socket]) -> None:
    """The garbage collector may run anywhere, and what it runs lets another thread begin a call."""
    watch = reading._Watch(600, tick=600)  # it looks when it is told to

    class Finalized:
        def __init__(self) -> None:
            self.itself = self  # so that only the garbage collector finds it

        def __del__(self) -> None:
            watch.over(pair[0])

    for _ in range(5_000):  # more pairs than Python has in store
        watch.over(pair[0])
    gc.collect()
    threshold = gc.get_threshold()
    gc.set_threshold(1_000, 1, 1)
    try:
        Finalized()
        watch._end(time.monotonic())
    finally:
        gc.set_threshold(*threshold)
    assert len(watch._waiting) >= 5_000  # it let go of none
