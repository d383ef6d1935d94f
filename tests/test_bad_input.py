"""Bad input: a clear refusal, nothing sent, nothing lost."""

from __future__ import annotations

import gzip
import json
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.reading import BODY_SECONDS
from sandbox.__main__ import SECRET, UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from sandbox.secret_manager import SecretManager
from tests.conftest import CUSTOMER, FORM, KEY, OTHER_KEY, PATIENT, TARGET, Server, launch, policy
from tests.problems import parsed, plain, refused, stripe_refused
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Function

JSON = "application/json"
PATH = "/stripe/invoices/"
CAP = 256 * 1024
THREADS = 16


class World:
    """A server, and the upstream behind it, that the whole module calls."""

    def __init__(self, server: Server, upstream: Appgregator) -> None:
        self.server, self.upstream = server, upstream

    def send(self, line: str | bytes, *headers: str | bytes, body: bytes = b"") -> bytes:
        """Send one request as it is written, on a connection of its own, and return all that comes."""
        host = [] if any(isinstance(h, str) and h.startswith("Host:") for h in headers) else ["Host: countersign"]
        parts = [line, *host, *headers, "Connection: close", "", ""]
        head = b"\r\n".join(part if isinstance(part, bytes) else part.encode("latin-1") for part in parts)
        return self.server.raw(head + body)


@pytest.fixture(scope="module")
def whole_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("server")
    accounts = {("ft-4", "stripe-1"), ("ft-4", "stripe-2")}
    with Appgregator(keys=[UPSTREAM_KEY], accounts=accounts) as upstream, SecretManager() as secret_manager:
        secret_manager.add(SECRET, UPSTREAM_KEY.encode())
        document, endpoint = policy(upstream.origin), secret_manager.address
        server = launch(place, document, source=PATIENT, SECRET_MANAGER_ENDPOINT=endpoint, THREADS=str(THREADS))
        try:
            yield World(server, upstream)
        finally:
            server.stop()


@pytest.fixture
def world(whole_module: World) -> World:
    whole_module.upstream.forget()
    return whole_module


def head(*more: str, key: str | None = KEY, media: str | None = FORM) -> list[str]:
    """Write the headers of a call."""
    return [*([f"x-api-key: {key}"] if key else []), *([f"Content-Type: {media}"] if media else []), *more]


def receive(connection: socket.socket) -> bytes:
    """Return one whole answer of a connection that stays open."""
    received = b""
    while b"\r\n\r\n" not in received or len(parsed(received)[2]) < int(parsed(received)[1]["content-length"]):
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
    return received


def length(body: bytes) -> str:
    return f"Content-Length: {len(body)}"


def chunked(body: bytes, size: int = 4096) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def query(name: str = "ft-4", connection_name: str = "stripe-1", more: str = "") -> str:
    """Write a target; values are percent-encoded here, ``more`` is not."""
    return f"{PATH}?name={quote(name, safe='')}&connection_name={quote(connection_name, safe='')}{more}"


# ---------------------------------------------------------------- the method and the path


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "POSTPOST"])
def test_wrong_method_is_refused(function: Callable[..., Function], upstream: Appgregator, method: str) -> None:
    response = function().post(method=method)
    refused(response, 405, "method-not-allowed")
    assert response.headers["Allow"] == "POST"
    assert not upstream.calls


def test_head_gets_the_refusal_without_its_body(world: World) -> None:
    status, headers, body = parsed(world.send(f"HEAD {TARGET} HTTP/1.1", *head()))
    assert (status, headers["allow"], body) == (405, "POST", b"")
    assert not world.upstream.calls


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/stripe",
        "/Stripe/Invoices/",
        "/stripe/invoices/stripe/invoices/",
        "/stripe/invoices;x",
        "/stripe%2Finvoices/",
        "/stripe%2finvoices",
        "/stripe/invoices%2F",
        "/stripe/%69nvoices/",
        "/stripe/invoices%00",
        "/stripe/invoices%0A",
        "/stripe/invoices/%0d%0aSet-Cookie:%20a=b",
        "/stripe/./invoices/",
        "/stripe/../stripe/invoices/",
        "/..",
        "/../../../../etc/passwd",
        "/stripe/invoices/%2e%2e/",
        "//",
        "//stripe/invoices/",
        "//evil.example/stripe/invoices/",
        "/stripe//invoices/",
        "/stripe/invoices//",
        "/\\evil.example/",
        "/static/x",
        "/static/../main.py",
        "/_sandbox",
        "/v1/v1/invoices",
        "/ft-4/v1/invoices",
        "/ft-4%2Fstripe-1/v1/invoices",
        "/ft-4/../v1/invoices",
        "/ft-4/stripe-1%0A/v1/invoices",
        "/ft-4/https:%2F%2Fevil.example/v1/invoices",
        "/<script>alert(1)</script>",
        "http://countersign/stripe/invoices/",
        "http://evil.example/stripe/invoices/",
        "https://evil.example:443/",
    ],
)
def test_wrong_path_is_refused_and_never_redirected(world: World, path: str) -> None:
    body = CUSTOMER.encode()
    line = f"POST {path}?name=ft-4&connection_name=stripe-1 HTTP/1.1"
    answer = parsed(world.send(line, *head(length(body)), body=body))
    (stripe_refused if "/v1/" in path else refused)(answer, 404, "path-unknown")
    assert "location" not in answer[1]
    assert not world.upstream.calls


@pytest.mark.parametrize("path", ["/ft-4/stripe-1/v1/invoices/", "/ft-4/stripe-1/v1/charges", "/a/b/v1/v1/invoices"])
def test_wrong_path_of_a_stripe_client_is_refused_in_its_words(world: World, path: str) -> None:
    stripe_refused(world.server.call(path), 404, "path-unknown")
    assert not world.upstream.calls


def test_method_that_a_path_does_not_know_is_refused_with_those_it_does(world: World) -> None:
    answer = world.server.call("/stripe/invoices/in_1?name=ft-4&connection_name=stripe-1")
    refused(answer, 405, "method-not-allowed")
    assert answer[1]["allow"] == "DELETE, GET"


@pytest.mark.parametrize(
    "host", ["good/#", "good/", "good?x", "a@b", "a b", "http://good", "good:port", "[::1", "good,bad"]
)
def test_host_that_is_none_is_refused(world: World, host: str) -> None:
    body = CUSTOMER.encode()
    answer = world.send(f"POST {TARGET} HTTP/1.1", f"Host: {host}", *head(length(body)), body=body)
    refused(parsed(answer), 400, "header-malformed")
    assert not world.upstream.calls


@pytest.mark.parametrize("host", ["good.example", "good.example:443", "127.0.0.1:8080", "[::1]:8080", ""])
def test_host_of_any_kind_is_taken(world: World, host: str) -> None:
    body = CUSTOMER.encode()
    answer = world.send(f"POST {TARGET} HTTP/1.1", f"Host: {host}", *head(length(body)), body=body)
    assert parsed(answer)[0] == 200


def test_asterisk_is_no_path(world: World) -> None:
    refused(parsed(world.send("OPTIONS * HTTP/1.1", *head())), 404, "path-unknown")


@pytest.mark.parametrize(
    "path", ["/static/x", "/static/%2e%2e/main.py", "/static/%0a", "/robots.txt", "/favicon.ico", "/\xff"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_the_framework_would_answer_by_itself_is_refused_alike(world: World, method: str, path: str) -> None:
    line = f"{method} {quote(path, safe='/%')} HTTP/1.1"
    refused(parsed(world.send(line, *head(length(b"")))), 404, "path-unknown")


@pytest.mark.parametrize(
    "line",
    [
        f"POST POST {TARGET} HTTP/1.1",
        f"post {TARGET} HTTP/1.1",
        f"POST,POST {TARGET} HTTP/1.1",
        f"POST  {TARGET} HTTP/1.1",
        f"POST {TARGET}",
        f"POST {TARGET} HTTP/1.1 HTTP/1.1",
        f"POST {TARGET} HTTP/2.0",
        f"POST\t{TARGET}\tHTTP/1.1",
        "POST stripe/invoices/ HTTP/1.1",
        "POST * HTTP/1.1",
        "POST  HTTP/1.1",
        f"POST {TARGET}\xff HTTP/1.1",
        f"POST {TARGET}\n HTTP/1.1",
        "<script>alert(1)</script>",
    ],
)
def test_what_is_not_http_is_answered_400_and_reaches_nobody(world: World, line: str) -> None:
    status, _, body = parsed(world.send(line, *head(length(CUSTOMER.encode())), body=CUSTOMER.encode()))
    assert status == 400
    assert b"<script>alert" not in body
    assert not world.upstream.calls


# ---------------------------------------------------------------- the query

BAD_QUERIES = [
    PATH,
    f"{PATH}?",
    f"{PATH}?name=ft-4",
    f"{PATH}?connection_name=stripe-1",
    f"{PATH}?name=ft-4&connection_name=",
    f"{PATH}?name&connection_name=stripe-1",
    f"{PATH}?Name=ft-4&Connection_Name=stripe-1",
    f"{PATH}?name=ft-4;connection_name=stripe-1",
    query(more="&name=ft-4"),
    query(more="&connection_name=stripe-1"),
    query(more="&connection_name=stripe-2"),
    query(more="&connection%5Fname=stripe-2"),
    query(more="&connection_name[]=stripe-2"),
    query(more="&customer=cus_1"),
    query(more="&x-api-key=1"),
    query(more="&a=1&b=2&c=3&d=4&e=5&f=6&g=7&h=8&i=9"),
    query(more="&validate_only=yes"),
    query(more="&validate_only="),
    query(more="&validate_only=true&validate_only=true"),
    query(more="&validate_only=true&validate_only=false"),
    query(connection_name="http://evil.example/"),
    query(connection_name="https://evil.example:443/stripe"),
    query(connection_name="//evil.example"),
    query(connection_name="stripe-1@evil.example"),
    query(connection_name="\uff53\uff54\uff52\uff49\uff50\uff45-1"),
    query(connection_name="stripe-\uff11"),
    query(connection_name="stripe\u20101"),
    query(connection_name="stripe-1\n"),
    query(connection_name="stripe-1\r\nx-api-key: other"),
    query(connection_name="stripe-1\0"),
    query(connection_name="stripe-1 "),
    query(connection_name=" stripe-1"),
    query(connection_name="stripe-1\u2028"),
    query(connection_name="\x1b[31mstripe-1"),
    query(connection_name=".."),
    query(connection_name="../stripe-1"),
    query(connection_name="stripe-1/.."),
    query(connection_name="stripe-1%2F"),
    query(connection_name="stripe-1&name=ft-5"),
    query(connection_name="stripe-1#"),
    query(connection_name="<script>alert(1)</script>"),
    query(connection_name="s" * 65),
    query(name="ft-4\n"),
    query(name="../ft-4"),
    f"{PATH}?name=ft-4&connection_name=stripe-1%FF",
    f"{PATH}?name=ft-4&connection_name=%ED%A0%80",
]


@pytest.mark.parametrize("target", BAD_QUERIES)
def test_wrong_query_is_refused(world: World, target: str) -> None:
    refused(world.server.call(target), 400, "query-malformed")
    assert not world.upstream.calls


@pytest.mark.parametrize("query", ["name=ft-4&connection_name=stripe-1", "expand[]=customer"])
def test_wrong_query_of_a_stripe_client_is_refused_in_its_words(world: World, query: str) -> None:
    for path in ("/ft-4/stripe-1/v1/invoices", "/v1/invoices"):
        stripe_refused(world.server.call(f"{path}?{query}"), 400, "query-malformed")
    assert not world.upstream.calls


def test_raw_bytes_in_the_query_are_refused(world: World) -> None:
    line = f"POST {TARGET}".encode() + b"\xef\xbc\x91 HTTP/1.1"
    assert world.send(line, *head(length(b"")))[:12] == b"HTTP/1.1 400"
    assert not world.upstream.calls


@pytest.mark.parametrize("target", [f"{TARGET}&{'x' * 2000}=1", f"/{'a' * 4000}"], ids=["query", "path"])
def test_overlong_target_is_refused(world: World, target: str) -> None:
    refused(world.server.call(target), 414, "target-too-long")
    assert not world.upstream.calls


def test_endless_target_is_refused_by_the_server(world: World) -> None:
    assert world.send(f"GET /{'a' * 60_000} HTTP/1.1", *head())[:12] == b"HTTP/1.1 414"


# ---------------------------------------------------------------- the key


@pytest.mark.parametrize(
    ("key", "authorization", "reason"),
    [
        (None, None, "credential-missing"),
        ("", None, "credential-missing"),
        (None, "", "credential-missing"),
        ("", "", "credentials-conflict"),
        ("csk_nobody", None, "credential-unknown"),
        (KEY.upper(), None, "credential-unknown"),
        (KEY[:-1], None, "credential-unknown"),
        (f"{KEY}a", None, "credential-unknown"),
        (f'"{KEY}"', None, "credential-unknown"),
        (f"Bearer {KEY}", None, "credential-unknown"),
        ("k\xe9y\xff", None, "credential-unknown"),
        (None, KEY, "credential-unknown"),
        (None, "Bearer", "credential-missing"),
        (None, "Basic", "credential-missing"),
        (None, "Basic Og==", "credential-missing"),
        (None, f"Basic {KEY}", "credential-unknown"),
        (None, f"Bearer {KEY} {KEY}", "credential-unknown"),
        (None, f"Bearer {KEY}, Bearer {KEY}", "credentials-conflict"),
        (None, f"Basic eDp5,Bearer {KEY}", "credentials-conflict"),
        (KEY, f"Bearer {KEY}", "credentials-conflict"),
        (KEY, "Bearer x", "credentials-conflict"),
        (KEY, "", "credentials-conflict"),
        (f"{KEY},{KEY}", None, "credentials-conflict"),
        (f"{KEY},{OTHER_KEY}", None, "credentials-conflict"),
    ],
)
def test_wrong_or_doubled_key_is_refused(world: World, key: str | None, authorization: str | None, reason: str) -> None:
    headers = {} if key is None else {"x-api-key": key}
    if authorization is not None:
        headers["Authorization"] = authorization
    answer = world.server.call(headers=headers, key=None)
    refused(answer, 401, reason)
    assert answer[1]["www-authenticate"].startswith("Bearer ")
    assert KEY.encode() not in answer[2]
    assert not world.upstream.calls


@pytest.mark.parametrize("second", [KEY, OTHER_KEY, "x", ""])
def test_key_header_sent_twice_is_refused(world: World, second: str) -> None:
    body = CUSTOMER.encode()
    answer = world.send(f"POST {TARGET} HTTP/1.1", *head(f"x-api-key: {second}", length(body)), body=body)
    refused(parsed(answer), 401, "credentials-conflict")
    assert not world.upstream.calls


def test_key_in_a_header_with_an_underscore_is_no_key(world: World) -> None:
    answer = world.server.call(headers={"x_api_key": KEY}, key=None)
    refused(answer, 401, "credential-missing")


@pytest.mark.parametrize("written", ["Idempotency_Key", "IDEMPOTENCY_KEY", "Stripe_Account", "stripe_context"])
def test_header_that_must_not_be_missed_is_refused_if_it_is_written_with_an_underscore(
    world: World, written: str
) -> None:
    """The server cannot tell it from the one with a hyphen, and would drop it: the call would go on without."""
    answer = world.server.call(headers={written: "order-1"})
    meant = written.replace("_", "-").title()
    said = refused(answer, 400, "header-malformed")["detail"]
    assert said == f"Write {meant} with a hyphen, not with an underscore. Nothing was sent."
    assert answer[1]["connection"] == "close"
    assert not world.upstream.calls


def test_other_headers_with_an_underscore_are_left_out(world: World) -> None:
    assert world.server.call(headers={"X_Made_Up": "1", "x_forwarded_host": "evil.example"})[0] == 200


@pytest.mark.parametrize("name", ["x-api-key", "Authorization", "Idempotency-Key"])
def test_overlong_header_is_refused(world: World, name: str) -> None:
    refused(world.server.call(headers={name: "a" * 5000}), 400, "header-malformed")
    assert not world.upstream.calls


@pytest.mark.parametrize(
    "key", ["", " ", "a,b", "\x1b[31m", "k\xe9y", "a\tb", "a" * 256, "a\x7f"], ids=lambda key: ascii(key)[:12]
)
def test_wrong_idempotency_key_is_refused(function: Callable[..., Function], upstream: Appgregator, key: str) -> None:
    refused(function().post(Idempotency_Key=key), 400, "idempotency-key-invalid")
    assert not upstream.calls


def test_idempotency_key_sent_twice_is_refused(world: World) -> None:
    headers = head("Idempotency-Key: a", "Idempotency-Key: a", length(CUSTOMER.encode()))
    answer = world.send(f"POST {TARGET} HTTP/1.1", *headers, body=CUSTOMER.encode())
    refused(parsed(answer), 400, "idempotency-key-invalid")
    assert not world.upstream.calls


# ---------------------------------------------------------------- the content type


@pytest.mark.parametrize(
    ("media", "encoding"),
    [
        (None, None),
        ("", None),
        ("text/plain", None),
        ("application/xml", None),
        ("application/jsonp", None),
        ("application/json+x", None),
        ("application/x-www-form-urlencoded-x", None),
        ("application/json, application/json", None),
        ("multipart/form-data; boundary=x", None),
        (f"{FORM}; charset=latin-1", None),
        (f"{FORM}; charset=utf-16", None),
        (f"{JSON}; charset=utf-8; charset=utf-7", None),
        (f"{JSON}; q=1; charset=utf-7", None),
        (f"{JSON}; charset=", None),
        (FORM, "gzip"),
        (JSON, "gzip"),
        (FORM, "x-gzip"),
        (FORM, "br"),
        (FORM, "deflate"),
        (FORM, "identity, gzip"),
        (FORM, ""),
    ],
)
def test_wrong_content_type_is_refused(
    function: Callable[..., Function], upstream: Appgregator, media: str | None, encoding: str | None
) -> None:
    body = gzip.compress(CUSTOMER.encode()) if encoding else CUSTOMER.encode()
    headers = {} if encoding is None else {"Content_Encoding": encoding}
    refused(function().post(body=body, media=media, **headers), 415, "media-type-unsupported")
    assert not upstream.calls


@pytest.mark.parametrize(
    "media",
    [
        f"{FORM}; charset=UTF-8",
        FORM.upper(),
        f"{FORM} ; charset=utf-8",
        f"{FORM};",
        f"{FORM}; charset=utf8",
        f"{FORM};charset='utf-8'",
        f"{FORM}; q=1",
        f"{FORM}; boundary=x; charset=UTF8",
    ],
)  # fmt: skip
def test_content_type_may_say_that_it_is_utf_8(function: Callable[..., Function], media: str) -> None:
    assert function().post(media=media, Content_Encoding="identity").status_code == 200


def test_gzip_that_claims_to_be_a_form_is_refused(function: Callable[..., Function], upstream: Appgregator) -> None:
    refused(function().post(body=gzip.compress(CUSTOMER.encode())), 400, "body-malformed")
    assert not upstream.calls


# ---------------------------------------------------------------- the form


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("customer=cus_1&customer=cus_2", "body-malformed"),
        ("customer=cus_1&customer=cus_1", "body-malformed"),
        ("customer=cus_1&%63ustomer=cus_2", "body-malformed"),
        ("customer=cus_1&metadata[order_id]=1&metadata%5Border_id%5D=2", "body-malformed"),
        ("customer[]=cus_1", "parameter-not-granted"),
        ("customer%5B%5D=cus_1", "parameter-not-granted"),
        ("customer=cus_1&customer[]=cus_2", "body-malformed"),
        ("customer=cus_1&metadata[]=1", "parameter-not-granted"),
        ("customer=cus_1&custom_fields[][name]=a&custom_fields[][value]=b", "body-malformed"),
        ("customer=cus_1&customer[id]=cus_2", "body-malformed"),
        ("customer[id]=cus_1&customer=cus_2", "body-malformed"),
        ("customer[=cus_1", "body-malformed"),
        ("customer]=cus_1", "body-malformed"),
        ("[customer]=cus_1", "body-malformed"),
        ("metadata[a]b=1&customer=cus_1", "body-malformed"),
        ("metadata[[a]]=1&customer=cus_1", "body-malformed"),
        ("=cus_1", "body-malformed"),
        ("customer", "body-malformed"),
        ("customer=cus_1&=&", "body-malformed"),
        ("customer=cus_1\r\n", "parameter-invalid"),
        ("customer=cus_1+", "parameter-invalid"),
        ("customer=%zz", "body-malformed"),
        ("customer=%", "body-malformed"),
        ("customer=%ff", "body-malformed"),
        (b"customer=\xff", "body-malformed"),
        (b"customer=\xc0\xaf", "body-malformed"),
        (b"\xff\xfec\0u\0s\0", "body-malformed"),
        ("customer=%ed%a0%80", "body-malformed"),
        ("customer=%00", "body-malformed"),
        ("customer=cus_1%00", "body-malformed"),
        ("customer=%1b[31mred", "body-malformed"),
        ("cust%00omer=1", "body-malformed"),
        ("cust%1bomer=1", "body-malformed"),
        ('{"customer": "cus_1"}', "body-malformed"),
        ("&".join(f"metadata[k{i}]=1" for i in range(513)), "body-malformed"),
        ("&".join(["a=1"] * 60_000), "body-malformed"),
        (f"customer=cus_1&{'a' * 300}=1", "body-malformed"),
        ("", "parameter-missing"),
        ("description=x", "parameter-missing"),
        ("customer=", "parameter-missing"),
        ("customer=cus_1&amount=1", "parameter-not-granted"),
        ("customer=cus_1&Customer=cus_2", "parameter-not-granted"),
        ("customer=cus_1&customer =cus_2", "parameter-not-granted"),
        ("customer=cus_1&customer%0A=cus_2", "parameter-not-granted"),
        ("customer=cus_1&\uff43ustomer=cus_2", "parameter-not-granted"),
        ("customer=cus_1&__proto__=1", "parameter-not-granted"),
        ("customer=cus_1&<script>alert(1)</script>=1", "parameter-not-granted"),
        ("customer=cus_1&x%E2%80%A8%1f=1", "body-malformed"),
        ("customer=cus_1&x%E2%80%A8=1", "parameter-not-granted"),
        ("customer=cus_1&transfer_data[destination]=acct_1", "parameter-not-granted"),
        ("customer=cus_1&auto_advance=true", "parameter-not-granted"),
        ("customer=cus_1&expand[0]=customer", "parameter-not-granted"),
        ("customer=cus_1&metadata[other]=1", "parameter-not-granted"),
        ("customer=cus_1&metadata[order_id][x]=1", "parameter-not-granted"),
        ("customer=cus_1&metadata=1", "parameter-not-granted"),
        ("customer=cus_1&name=ft-5&connection_name=stripe-2", "parameter-not-granted"),
        ("customer=cus_1&custom_fields[1][name]=a&custom_fields[1][value]=b", "parameter-invalid"),
        ("customer=cus_1&custom_fields[00][name]=a&custom_fields[00][value]=b", "parameter-not-granted"),
        ("customer=cus_1&custom_fields[0][name]=a", "parameter-missing"),
        ("customer=cus_1&days_until_due=0", "parameter-invalid"),
        ("customer=cus_1&days_until_due=61", "parameter-invalid"),
        ("customer=cus_1&days_until_due=-0", "parameter-invalid"),
        ("customer=cus_1&days_until_due=03", "parameter-invalid"),
        ("customer=cus_1&days_until_due=3.0", "parameter-invalid"),
        ("customer=cus_1&days_until_due=3e0", "parameter-invalid"),
        ("customer=cus_1&days_until_due=0x3", "parameter-invalid"),
        ("customer=cus_1&days_until_due=%2B3", "parameter-invalid"),
        ("customer=cus_1&days_until_due=+3", "parameter-invalid"),
        ("customer=cus_1&days_until_due=3%0A", "parameter-invalid"),
        ("customer=cus_1&days_until_due=\uff13\uff10", "parameter-invalid"),
        ("customer=cus_1&days_until_due=\u0663", "parameter-invalid"),
        (f"customer=cus_1&days_until_due={'9' * 5000}", "parameter-invalid"),
        ("customer=cus_1&metadata[cost_center]=amer", "parameter-invalid"),
        ("customer=cus_1&metadata[cost_center]=emea%0A", "parameter-invalid"),
        (f"customer=cus_1&description={'x' * 201}", "parameter-invalid"),
        (f"customer=cus_1&metadata[order_id]={'x' * 65}", "parameter-invalid"),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_bad_form_is_refused(
    function: Callable[..., Function], upstream: Appgregator, body: str | bytes, reason: str
) -> None:
    gate = function()
    problem = refused(gate.post(body=body.encode() if isinstance(body, str) else body), 400, reason)
    assert not upstream.calls
    assert len(problem["detail"]) < 600
    (entry,) = gate.record.entries()
    assert (entry["kind"], entry["reason"], entry["audit_id"]) == ("refusal", reason, problem["audit_id"])


# ---------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "body-malformed"),
        (" ", "body-malformed"),
        ("null", "body-malformed"),
        ("[]", "body-malformed"),
        ('"customer"', "body-malformed"),
        ("7", "body-malformed"),
        ("{", "body-malformed"),
        ("{}{}", "body-malformed"),
        ("{'customer': 'cus_1'}", "body-malformed"),
        ('{"customer": "cus_1",}', "body-malformed"),
        ('{"customer": "cus_1"} //', "body-malformed"),
        ('\ufeff\ufeff{"customer": "cus_1"}', "body-malformed"),
        ("customer=cus_1", "body-malformed"),
        ('{"customer": "cus_1", "customer": "cus_2"}', "body-malformed"),
        ('{"customer": "cus_1", "\\u0063ustomer": "cus_2"}', "body-malformed"),
        ('{"customer": "cus_1", "metadata": {"order_id": "1", "order_id": "2"}}', "body-malformed"),
        ('{"customer": "cus_1", "metadata[order_id]": "1"}', "body-malformed"),
        ('{"customer": "cus_1", "metadata": {"order_id[x]": "1"}}', "body-malformed"),
        ('{"customer[]": ["cus_1"]}', "body-malformed"),
        ('{"": "cus_1"}', "body-malformed"),
        ('{"customer": NaN}', "body-malformed"),
        ('{"customer": Infinity}', "body-malformed"),
        ('{"customer": -Infinity}', "body-malformed"),
        ('{"customer": "cus_1", "days_until_due": 1e999}', "body-malformed"),
        ('{"customer": "cus_1", "days_until_due": -1e999}', "body-malformed"),
        ('{"customer": "cus_1", "days_until_due": 3.5}', "parameter-invalid"),
        ('{"customer": "cus_1", "days_until_due": 3e-1}', "parameter-invalid"),
        ('{"customer": "cus_1", "days_until_due": %s}' % ("9" * 5000), "body-malformed"),
        ('{"customer": "cus_1", "days_until_due": -%s}' % ("9" * 5000), "body-malformed"),
        ('{"customer": "cus_1", "days_until_due": 99999999999999999999}', "parameter-invalid"),
        ("[" * 100_000, "body-malformed"),
        ("[" * 100_000 + "]" * 100_000, "body-malformed"),
        ('{"customer":' + "[" * 100_000 + "]" * 100_000 + "}", "body-malformed"),
        ('{"a":' * 40_000 + "1" + "}" * 40_000, "body-malformed"),
        ('{"metadata": {"order_id": [[[[[[[[["x"]]]]]]]]]}}', "body-malformed"),
        ('{"customer": "\\ud800"}', "body-malformed"),
        ('{"customer": "\\udc00\\ud800"}', "body-malformed"),
        ('{"\\ud800": "cus_1"}', "body-malformed"),
        ('{"customer": "cus_1", "metadata": {"\\udfff": "1"}}', "body-malformed"),
        ('{"customer": "\\u0000"}', "body-malformed"),
        ('{"customer": "\\u001b[31m"}', "body-malformed"),
        ('{"customer": "cus_1\x1b"}', "body-malformed"),
        (b'{"customer": "\xff"}', "body-malformed"),
        (b'{"customer": "\xed\xa0\x80"}', "body-malformed"),
        ('{"customer": "cus_1"}'.encode("utf-16"), "body-malformed"),
        (json.dumps({"metadata": {f"k{i}": "1" for i in range(600)}}), "body-malformed"),
        ("{}", "parameter-missing"),
        ('{"customer": null}', "parameter-missing"),
        ('{"customer": []}', "parameter-missing"),
        ('{"customer": ""}', "parameter-missing"),
        ('{"customer": {"id": "cus_1"}}', "parameter-not-granted"),
        ('{"customer": ["cus_1"]}', "parameter-not-granted"),
        ('{"customer": "cus_1", "amount": 1}', "parameter-not-granted"),
        ('{"customer": "cus_1", "transfer_data": {"destination": "acct_1"}}', "parameter-not-granted"),
        ('{"customer": "cus_1", "expand": ["customer"]}', "parameter-not-granted"),
        ('{"customer": "cus_1", "x\\u2028\\u202e": "1"}', "parameter-not-granted"),
        ('{"customer": "cus_1", "days_until_due": true}', "parameter-invalid"),
        ('{"customer": "cus_1", "days_until_due": "\uff13"}', "parameter-invalid"),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_bad_json_is_refused(
    function: Callable[..., Function], upstream: Appgregator, body: str | bytes, reason: str
) -> None:
    gate = function()
    refused(gate.post(body=body.encode() if isinstance(body, str) else body, media=JSON), 400, reason)
    assert not upstream.calls
    (entry,) = gate.record.entries()
    assert (entry["kind"], entry["reason"]) == ("refusal", reason)


def test_one_doubled_key_among_many_is_found_in_little_time(function: Callable[..., Function]) -> None:
    names = [f'"{number:05x}":0' for number in range(23_000)]
    gate = function()
    worked = time.thread_time()
    refused(gate.post(body="{" + ",".join([*names, names[-1]]) + "}", media=JSON), 400, "body-malformed")
    assert time.thread_time() - worked < 2


# ---------------------------------------------------------------- the body's size and length

WHOLE = b'{"customer":"cus_1"}'


@pytest.mark.parametrize("chunks", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(("size", "status"), [(CAP, 200), (CAP + 1, 413), (3 * CAP, 413)])
def test_body_cap_is_exact(world: World, size: int, status: int, *, chunks: bool) -> None:
    body = WHOLE.ljust(size)
    headers = head("Transfer-Encoding: chunked" if chunks else length(body), media=JSON)
    answer = parsed(world.send(f"POST {TARGET} HTTP/1.1", *headers, body=chunked(body) if chunks else body))
    if status == 413:
        refused(answer, 413, "body-too-large")
    assert answer[0] == status
    assert len(world.upstream.calls) == (status == 200)


@pytest.mark.parametrize("announced", [CAP + 1, 10**9, 10**30])
def test_announced_length_over_the_cap_is_refused_before_a_byte_of_it(world: World, announced: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", world.server.port), timeout=PATIENCE)) as connection:
        lines = [f"POST {TARGET} HTTP/1.1", "Host: c", *head(f"Content-Length: {announced}"), "", ""]
        connection.sendall("\r\n".join(lines).encode())
        refused(parsed(receive(connection)), 413, "body-too-large")  # and not 408, ten seconds later
    assert not world.upstream.calls


@pytest.mark.parametrize("size", [1, 5, 4096])
def test_chunked_body_works(world: World, size: int) -> None:
    headers = head("Transfer-Encoding: chunked")
    answer = world.send(f"POST {TARGET} HTTP/1.1", *headers, body=chunked(CUSTOMER.encode(), size))
    assert parsed(answer)[0] == 200
    assert [call.body.decode() for call in world.upstream.calls] == [CUSTOMER]


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\ncustomer=cus_1\r\n0\r\n\r\n",
        b"-e\r\ncustomer=cus_1\r\n0\r\n\r\n",
        b"e\r\ncustomer=cus_12\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\ncustomer=cus_1",
        b"customer=cus_1",
    ],
)
def test_malformed_chunks_are_refused(world: World, body: bytes) -> None:
    with closing(socket.create_connection(("127.0.0.1", world.server.port), timeout=PATIENCE)) as connection:
        lines = [f"POST {TARGET} HTTP/1.1", "Host: c", *head("Transfer-Encoding: chunked", "Connection: close"), "", ""]
        connection.sendall("\r\n".join(lines).encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 4")
    assert not world.upstream.calls


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: abc"],
        ["Content-Length: -1"],
        ["Content-Length: +14"],
        ["Content-Length: 1e1"],
        ["Content-Length: 0x0e"],
        ["Content-Length: 14 14"],
        ["Content-Length: 14, 14"],
        ["Content-Length: \xb2"],
        ["Content-Length:"],
        ["Content-Length: 14", "Content-Length: 14"],
        ["Content-Length: 14", "Content-Length: 15"],
        ["Content-Length: 14", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: banana"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Content-Length: 14", "Content-Type: application/json"],
        ["Content-Length: 14", "Host: countersign", "Host: another"],
        ["Content-Length: 14", " folded"],
        ["Content-Length: 14", "no colon"],
        ["Content-Length: 14", "bad name: x"],
    ],
)
def test_garbled_headers_are_refused_by_the_server(world: World, lines: list[str]) -> None:
    status, _, _ = parsed(world.send(f"POST {TARGET} HTTP/1.1", *head(*lines), body=b"customer=cus_1"))
    assert status in {400, 501}
    assert not world.upstream.calls


def test_call_without_any_body_lacks_its_customer(world: World) -> None:
    refused(parsed(world.send(f"POST {TARGET} HTTP/1.1", *head())), 400, "parameter-missing")


@pytest.mark.parametrize("sent", [b"", b"customer=cus_1"])
def test_body_that_ends_early_is_refused(world: World, sent: bytes) -> None:
    with closing(socket.create_connection(("127.0.0.1", world.server.port), timeout=PATIENCE)) as connection:
        lines = [f"POST {TARGET} HTTP/1.1", "Host: countersign", *head("Content-Length: 500"), "", ""]
        connection.sendall("\r\n".join(lines).encode() + sent)
        connection.shutdown(socket.SHUT_WR)
        refused(parsed(receive(connection)), 400, "body-incomplete")
    assert not world.upstream.calls


def test_what_follows_a_refused_body_is_no_second_call(world: World) -> None:
    """A body that nobody read must not be taken for the next request of its connection."""
    inner = (
        f"POST {TARGET} HTTP/1.1\r\nHost: c\r\n" + "\r\n".join(head("Content-Length: 14")) + "\r\n\r\ncustomer=cus_1"
    )
    last = "GET / HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n"
    for headers in (head("Content-Encoding: gzip"), head(key="nobody"), head(media="text/plain")):
        lines = [f"POST {TARGET} HTTP/1.1", "Host: c", *headers, f"Content-Length: {len(inner)}", "", inner + last]
        answer = world.server.raw("\r\n".join(lines).encode())
        assert answer.count(b"HTTP/1.1 ") == 2
        assert answer.count(b"HTTP/1.1 404") == 1
    assert not world.upstream.calls


@contextmanager
def stalled(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open connections that announce a body: one in two trickles it, one in four chunks it, none ends it."""
    connections: list[socket.socket] = []
    for number in range(count):
        connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        how, start = ("Transfer-Encoding: chunked", "5\r\n") if number % 4 == 3 else ("Content-Length: 500", "c")
        connection.sendall("\r\n".join([f"POST {TARGET} HTTP/1.1", "Host: c", *head(how), "", start]).encode())
        connections.append(connection)
    over = threading.Event()

    def trickle() -> None:
        while not over.wait(0.2):
            for connection in connections[::2]:
                with suppress(OSError):  # the answer is there, and the other side has closed
                    connection.sendall(b"u")

    trickling = threading.Thread(target=trickle)
    trickling.start()
    try:
        yield connections
    finally:
        over.set()
        trickling.join()
        for connection in connections:
            connection.close()


def test_stalled_and_trickled_bodies_are_answered_408_and_cost_nobody_else(world: World) -> None:
    """Half of all threads are held by callers who do not send what they announced; the rest serve on."""
    began = time.monotonic()
    with stalled(world.server.port, THREADS // 2) as connections:
        for _ in range(20):
            assert world.server.call()[0] == 200
        assert select.select(connections, (), (), 0)[0] == []  # so none of these calls has waited for one of them
        answers = [receive(connection) for connection in connections]
    assert BODY_SECONDS - 1 < time.monotonic() - began < 4 * BODY_SECONDS  # at a byte each 0.2 s it would take 100 s
    for answer in answers:
        refused(parsed(answer), 408, "body-timeout")
    assert len(world.upstream.calls) == 20
    # Every thread is free again: as many calls at once as there are threads.
    with ThreadPoolExecutor(THREADS) as callers:
        statuses = list(callers.map(lambda _: world.server.call()[0], range(THREADS)))
    assert statuses == [200] * THREADS


# ---------------------------------------------------------------- what reaches the record

HOSTILE_VALUES = [
    'a\r\n{"severity":"ALERT","countersign":{"kind":"intent"}}',
    "a\nb",
    "a\rb",
    "a\u2028b\u2029c",
    "a\x85b",
    "\x9b31mred",
    "\u202egnp.exe",
    "\ufeff\u200b",
    '"},"countersign":{"kind":"stop"}}',
    "\\u001b[31m\\",
    "\U0001f4b8" * 64,
    "\x7f",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x00",
    "a\x0bb\x0cc",
]


@pytest.mark.parametrize("media", [FORM, JSON], ids=["form", "json"])
@pytest.mark.parametrize("value", HOSTILE_VALUES, ids=lambda value: ascii(value)[:30])
def test_recorded_value_cannot_break_or_colour_the_record(
    function: Callable[..., Function], upstream: Appgregator, value: str, media: str
) -> None:
    gate = function()
    form = f"{CUSTOMER}&metadata%5Border_id%5D={quote(value, safe='')}"
    body = form if media == FORM else json.dumps({"customer": "cus_1", "metadata": {"order_id": value}})
    response = gate.post(body=body, media=media, traceparent=f"00-{value.encode().hex()[:30]}\u00ff-x-01")
    raw = gate.record.path.read_bytes()
    assert raw.isascii()
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in raw)
    lines = [json.loads(line) for line in raw.splitlines()]
    if response.status_code == 200:
        assert [line["countersign"]["kind"] for line in lines] == ["start", "intent", "outcome"]
        assert lines[1]["countersign"]["values"] == {"metadata[order_id]": value}
        assert ("metadata[order_id]", value) in parse_qsl(upstream.calls[0].body.decode())
    else:
        refused(response, 400, "body-malformed")
        assert [line["countersign"]["kind"] for line in lines] == ["start", "refusal"]
        assert not upstream.calls


@pytest.mark.parametrize(
    "header",
    ["x-api-key", "Authorization", "Idempotency-Key", "traceparent", "X-Cloud-Trace-Context", "User-Agent", "Host"],
)
def test_hostile_header_does_not_reach_the_record(world: World, header: str) -> None:
    marker = f"{header}canary"
    line = f"{header}: \x1b[31m{marker}\x85\xff"
    key = None if header == "x-api-key" else KEY
    headers = head(line, length(CUSTOMER.encode()), key=key)
    world.send(f"POST {TARGET} HTTP/1.1", *(h for h in headers), body=CUSTOMER.encode())
    raw = world.server.record.path.read_bytes()
    assert raw.isascii()
    assert b"\x1b" not in raw
    assert marker.encode() not in raw


# ---------------------------------------------------------------- anything at all

_TEXT = st.text(alphabet=st.sampled_from("customer=&[]%5B0aé \x00\x1b\u2028\ud800'\"{}:,"), max_size=60)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_PARAMETERS = st.dictionaries(
    st.sampled_from(["customer", "description", "days_until_due", "metadata", "custom_fields", "amount"]), _VALUES
)
_BODIES = st.one_of(
    st.binary(max_size=200),
    _TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.tuples(st.just(CUSTOMER.encode() + b"&"), st.binary(max_size=40)).map(b"".join),
    _VALUES.map(lambda value: json.dumps(value).encode()),
    _PARAMETERS.map(lambda value: json.dumps({"customer": "cus_1", **value}).encode()),
)
_HEADER = st.text(alphabet=st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40)


def loosely(text: str) -> str:
    """Percent-encode what a request line cannot hold, and nothing else."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="=&[]%'\"{}:,;@!$")


def test_no_bytes_whatever_cause_a_5xx_or_an_unapproved_send(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function()
    allowed = {"customer", "description", "days_until_due", "metadata[order_id]", "metadata[cost_center]"}

    @example(body=CUSTOMER.encode(), media=FORM, more="", key=KEY, headers={})
    @settings(max_examples=300, database=None, suppress_health_check=list(HealthCheck))
    @given(
        body=_BODIES,
        media=st.one_of(st.just(FORM), st.just(JSON), st.just(JSON), _HEADER),
        more=st.one_of(
            st.just(""),
            st.just(""),
            st.just("&validate_only=true"),
            st.binary(max_size=20).map(quote),
            _TEXT.map(loosely),
        ),
        key=st.one_of(st.just(KEY), st.just(KEY), st.just(KEY), _HEADER),
        headers=st.dictionaries(
            st.sampled_from(["Idempotency_Key", "Content_Encoding", "Transfer_Encoding", "traceparent", "X_Any"]),
            _HEADER,
            max_size=2,
        ),
    )
    def check(body: bytes, media: str, more: str, key: str, headers: dict[str, str]) -> None:
        before = len(upstream.calls)
        response = gate.post(TARGET + more, body, key=key, media=media, **headers)
        sent = len(upstream.calls) - before
        if response.status_code == 200:
            assert key == KEY
            assert sent == (0 if "would_send" in response.text or "Idempotent-Replayed" in response.headers else 1)
        else:
            assert response.status_code < 500
            assert sent == 0
            refused(response, response.status_code, response.get_json(force=True)["reason"])
        for call in upstream.calls[before:]:
            names = {name for name, _ in parse_qsl(call.body.decode("ascii"), keep_blank_values=True)}
            assert {name for name in names if not name.startswith("custom_fields")} <= allowed

    check()
    assert upstream.invoices > 0  # some of it was valid, or this would show nothing
    raw = gate.record.path.read_bytes()
    assert raw.isascii()
    assert all(json.loads(line) for line in raw.splitlines())


def test_answers_of_the_test_client_and_of_the_server_are_alike(
    function: Callable[..., Function], world: World
) -> None:
    """What the tests above see through the one is what a caller meets through the other."""
    inside, outside = plain(function().post(body="[customer]=x")), world.server.call(body=b"[customer]=x")
    assert refused(inside, 400, "body-malformed")["detail"] == refused(outside, 400, "body-malformed")["detail"]
