"""How clients speak HTTP, and where they put their key: each call works, or its sender is told what to change.

The bytes are those that curl, browsers, HTTP libraries and no-code tools send; what they send in the body is in
``test_shapes``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import socket
import subprocess
import urllib.request
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import requests

from policies.refusals import PathUnknown
from sandbox.__main__ import SECRET, UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from sandbox.secret_manager import SecretManager
from tests.conftest import CUSTOMER, FORM, KEY, TARGET, Server, launch, policy
from tests.problems import parsed, refused
from tests.tools import CURL, NODE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.problems import Answer

JSON = "application/json"
OF_THE_SDK = "/ft-4/stripe-1/v1/invoices"
NEW_KEY = "send the caller key in the x-api-key header, and ask the operator of Countersign for a new one."


@dataclass
class World:
    """A server of one test module, and what has reached the upstream behind it."""

    server: Server
    upstream: Appgregator

    @property
    def bodies(self) -> list[str]:
        return [call.body.decode() for call in self.upstream.calls]


@pytest.fixture(scope="module")
def whole_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("server")
    with Appgregator(keys=[UPSTREAM_KEY], accounts={("ft-4", "stripe-1")}) as upstream, SecretManager() as manager:
        manager.add(SECRET, UPSTREAM_KEY.encode())
        server = launch(place, policy(upstream.origin), SECRET_MANAGER_ENDPOINT=manager.address)
        try:
            yield World(server, upstream)
        finally:
            server.stop()
    assert server.errors.read_text() == ""
    assert KEY not in server.record.text()


@pytest.fixture
def world(whole_module: World) -> World:
    whole_module.upstream.forget()
    return whole_module


def request(*headers: str, line: str = f"POST {TARGET} HTTP/1.1", body: bytes = CUSTOMER.encode(),
            key: str | None = f"x-api-key: {KEY}", media: str = FORM) -> bytes:  # fmt: skip
    """Write a request. A length is added unless it is chunked."""
    lines = [line, "Host: countersign", f"Content-Type: {media}", *([key] if key else []), *headers]
    if not any(header.lower().startswith("transfer-encoding") for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def basic(pair: str) -> str:
    return "Authorization: Basic " + base64.b64encode(pair.encode()).decode()


CLOSE = "Connection: close"
CHUNKS = b"8\r\ncustomer\r\n7;ext=1\r\n=cus_10\r\n0\r\n\r\n"

#: A request of each shape that works.
WORKS: dict[str, bytes] = {
    "header names in small letters": request(CLOSE).replace(b"Content-", b"content-").replace(b"Host", b"host"),
    "header names in capitals": request(CLOSE).replace(b"x-api-key", b"X-API-KEY").replace(b"Content-T", b"CONTENT-T"),
    "HTTP/1.0": request(line=f"POST {TARGET} HTTP/1.0"),
    "HTTP/1.0 that stays": request("Connection: keep-alive", line=f"POST {TARGET} HTTP/1.0"),
    "chunked, with an extension": request("Transfer-Encoding: chunked", CLOSE, body=CHUNKS),
    "chunked, with trailers": request(
        "Transfer-Encoding: chunked", "Trailer: X-Sum", CLOSE, body=CHUNKS[:-2] + b"X-Sum: 1\r\n\r\n"
    ),
    "TE": request("TE: trailers", CLOSE),
    "Content-Encoding: identity": request("Content-Encoding: identity", CLOSE),
    "an upgrade to h2c (Java, curl --http2)": request(
        "Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"
    ),
    "a cookie of 6 KB": request(f"Cookie: a={'x' * 6000}", CLOSE),
    "60 headers": request(*(f"X-Header-{number}: {number}" for number in range(56)), CLOSE),
    "Accept: text/html": request("Accept: text/html", CLOSE),
    "Accept-Encoding": request("Accept-Encoding: gzip, deflate, br, zstd", CLOSE),
    "Origin (a browser's fetch)": request("Origin: https://s.example", "Referer: https://s.example/", CLOSE),
    "X-HTTP-Method-Override": request("X-HTTP-Method-Override: DELETE", CLOSE),
    "traces": request("traceparent: 00-" + "1" * 32 + "-" + "2" * 16 + "-01", "X-Request-Id: 7", CLOSE),
    **{
        f"path and query {target}": request(CLOSE, line=f"POST {target} HTTP/1.1")
        for target in (
            TARGET, TARGET.replace("/?", "?"), TARGET.removeprefix("/stripe"), OF_THE_SDK, f"{TARGET}&", f"{TARGET}&&",
            "/stripe/invoices/?connection_name=stripe-1&name=ft-4", TARGET.replace("ft-4", "ft%2D4"),
            TARGET.replace("connection_name", "connection%5Fname"), f"{TARGET}&validate_only=false",
        )
    },
    **{
        f"credential {header.partition('csk')[0]}": request(CLOSE, key=header)
        for header in (
            f"x-api-key: {KEY} ", f"x-api-key:{KEY}", f"x-api-key:\t{KEY}", f"Authorization: Bearer {KEY}",
            f"Authorization: bearer  {KEY} ", basic(f"app:{KEY}"), basic(f"{KEY}:"), basic(f":{KEY}"),
        )
    },
    "Idempotency-Key": request("Idempotency-Key: order-1", CLOSE),
    "Idempotency-Key of a UUID": request("Idempotency-Key: 2f1c2a44-7d4f-4d52-9d0e-0c6c6b0f6a11", CLOSE),
}  # fmt: skip

PUT, GET = (f"{method} {TARGET} HTTP/1.1" for method in ("PUT", "GET"))
AT = "POST /stripe/invoices/?{} HTTP/1.1"

#: A request of each shape that is refused, with status, reason, and how the sentence begins.
TOLD: dict[str, tuple[bytes, int, str, str]] = {
    **{
        f"credential {header.replace(KEY, 'KEY')}": (request(key=header), 401, "credential-unknown", said)
        for header, said in {
            f'x-api-key: "{KEY}"': "The caller key has quotation marks around it. Send it alone in x-api-key",
            f"x-api-key: Bearer {KEY}": "The caller key has Bearer in front of it. Send it alone in x-api-key",
            "x-api-key: $KEY": "What was sent as the caller key is a placeholder, so a field or a variable was not",
            "x-api-key: {{ $json.key }}": "What was sent as the caller key is a placeholder",
            f"x-api-key: {KEY[:-1]}": "This caller key was mistyped or cut off. Copy it again",
            f"Authorization: {KEY}": "Authorization has no Bearer in front of the caller key. Send Authorization: Bear",
            f"Authorization: Token {KEY}": "The caller key has Token in front of it. Send Authorization: Bearer, a spa",
            f'Authorization: Bearer "{KEY}"': "The caller key has quotation marks around it.",
            f"Authorization: Bearer Bearer {KEY}": "The caller key has Bearer Bearer in front of it.",
            basic(f"{KEY}:x"): "This caller key is not known, or no longer valid.",
        }.items()
    },
    "no credential": (request(key=None), 401, "credential-missing", "Send your caller key in the x-api-key header."),
    "empty x-api-key": (request(key="x-api-key:"), 401, "credential-missing", "x-api-key is empty. Send your caller k"),
    "empty Bearer": (
        request(key="Authorization: Bearer "), 401, "credential-missing", "Authorization holds no key. Send Authoriz"
    ),
    "key in a cookie": (request(key=f"Cookie: x-api-key={KEY}"), 401, "credential-missing", "Send your caller key in"),
    "two credentials": (
        request(f"Authorization: Bearer {KEY}"), 401, "credentials-conflict", "Send one credential and send it once"
    ),
    "x-api-key twice": (request(f"x-api-key: {KEY}"), 401, "credentials-conflict", "Send one credential and send it"),
    "Authorization twice": (
        request(f"Authorization: Bearer {KEY}", key=f"Authorization: Bearer {KEY}"),
        401, "credentials-conflict", "Send one credential and send it once",
    ),
    **{
        f"query {query.replace(KEY, 'KEY')}": (request(line=AT.format(query)), 400, "query-malformed", said)
        for query, said in {
            "name=ft-4&amp;connection_name=stripe-1": "amp;connection_name does not belong in the address. Did you "
            "mean connection_name? Write & alone, not &amp; as in HTML.",
            "name=ft-4&connection_name=stripe-1&utm_source=x": "utm_source does not belong in the address. The address",
            "name=ft-4&connection_name=stripe-1&customer=cus_1": "customer does not belong in the address. The address "
            "takes name, connection_name and validate_only; parameters go in the body.",
            "NAME=ft-4&connection_name=stripe-1": "NAME does not belong in the address. Did you mean name?",
            "name=ft-4": "connection_name is missing in the address: write ?name=ft-4&connection_name=stripe-1.",
            "name=ft-4&name=ft-4&connection_name=stripe-1": "name is given twice in the address. Write it once.",
            "name=ft-4&connection_name=stripe-1#top": "connection_name must be a plain name, such as ft-4: letters, "
            "digits, dots, dashes, underscores. Leave out # and what follows it.",
            "name=ft-4&connection_name=stripe-1%20": "connection_name must be a plain name, such as ft-4: letters, "
            "digits, dots, dashes, underscores. Leave out the space.",
            'name=%22ft-4%22&connection_name=stripe-1': "name must be a plain name, such as ft-4: letters, digits, "
            'dots, dashes, underscores. Leave out ".',
            f"name=ft-4&connection_name=stripe-1&api_key={KEY}": f"A caller key must not be written in the address. "
            f"Addresses end up in logs: {NEW_KEY}",
            "name=ft-4&connection_name=stripe-1&x-api-key=some": "x-api-key does not belong in the address. Addresses "
            f"end up in logs: {NEW_KEY}",
            f"name=ft-4&connection_name=stripe-1&{KEY}": "A caller key must not be written in the address.",
            f"name=ft-4&connection_name={KEY}": "A caller key must not be written in the address.",
            f"name=ft-4&connection_name=stripe-1&k=csk%5F{KEY[4:]}": "A caller key must not be written in the address.",
        }.items()
    },
    **{
        f"path {path}": (request(line=f"POST {path}{TARGET[17:]} HTTP/1.1"), 404, "path-unknown", said)
        for path, said in {
            "/Stripe/Invoices/": f"{PathUnknown.sentence} You may mean /stripe/invoices/.",
            "//stripe/invoices/": f"{PathUnknown.sentence} You may mean /stripe/invoices/.",
            "/stripe//invoices": f"{PathUnknown.sentence} You may mean /stripe/invoices.",
            "/stripe%2Finvoices/": f"{PathUnknown.sentence} You may mean /stripe/invoices/.",
            "http://countersign/stripe/invoices/": f"{PathUnknown.sentence} You may mean /stripe/invoices/.",
            "/": "There is nothing at this path. Invoices are at /stripe/invoices/",
            "/invoice": "There is nothing at this path. Invoices are at /stripe/invoices/",
        }.items()
    },
    **{
        f"a probe of {path}": (request(line=f"GET {path} HTTP/1.1", body=b"", key=None), 404, "path-unknown", "There")
        for path in ("/", "/favicon.ico", "/healthz", "/_ah/warmup", "/robots.txt")
    },
    "PUT (curl -T)": (request(line=PUT), 405, "method-not-allowed", "This method is not supported here: PUT. Use POST"),
    "GET with a body (curl -X GET -d)": (
        request(line=GET),
        405, "method-not-allowed", "This method is not supported here: GET. Use POST to create an invoice.",
    ),
    "GET with parameters (curl -G)": (
        request(line=GET.replace(TARGET, f"{TARGET}&customer=cus_1"), body=b""),
        405, "method-not-allowed", "This method is not supported here: GET. Use POST to create an invoice.",
    ),
    "a browser's preflight": (
        request("Origin: https://s.example", "Access-Control-Request-Method: POST", key=None, body=b"",
                line=f"OPTIONS {TARGET} HTTP/1.1"),
        405, "method-not-allowed", "A page of another site may not call this: it would hold the caller key.",
    ),
    "gzip": (
        request("Content-Encoding: gzip", body=gzip.compress(CUSTOMER.encode())),
        415, "media-type-unsupported", "The body is compressed (gzip). Send it as it is.",
    ),
    "deflate": (
        request("Content-Encoding: deflate", body=zlib.compress(CUSTOMER.encode())),
        415, "media-type-unsupported", "The body is compressed (deflate). Send it as it is.",
    ),
    **{
        f"Idempotency-Key {shape}": (
            request(*headers), 400, "idempotency-key-invalid",
            "The idempotency key must be 1 to 255 printable ASCII characters without a comma. Send it once.",
        )
        for shape, headers in {
            "empty": ["Idempotency-Key:"], "in UTF-8": ["Idempotency-Key: Z\xc3\xbcrich-1"],
            "twice": ["Idempotency-Key: order-1", "Idempotency-Key: order-1"],
            "too long": [f"Idempotency-Key: {'1' * 256}"],
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("sent", WORKS.values(), ids=[shape.replace(KEY, "KEY") for shape in WORKS])
def test_shape_that_works(world: World, sent: bytes) -> None:
    status, headers, body = parsed(world.server.raw(sent))
    assert status == 200, body
    assert headers["content-type"] == JSON
    assert "content-encoding" not in headers
    assert [body.partition("_")[0] for body in world.bodies] == ["customer=cus"]


@pytest.mark.parametrize("row", TOLD.values(), ids=list(TOLD))
def test_shape_that_is_told_what_to_change(world: World, row: tuple[bytes, int, str, str]) -> None:
    sent, status, reason, said = row
    answer = parsed(
        world.server.raw(sent.replace(b"Host: countersign\r\n", b"Host: countersign\r\nConnection: close\r\n"))
    )
    assert refused(answer, status, reason)["detail"].startswith(said)
    assert KEY[4:].encode() not in answer[2]
    assert not world.upstream.calls
    assert KEY[4:] not in world.server.record.text()


# ---------------------------------------------------------------- connections


@contextlib.contextmanager
def connected(world: World) -> Iterator[Any]:
    """Open a connection, and read it as http.client does: by its lengths."""
    with socket.create_connection(("127.0.0.1", world.server.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection, connection.makefile("rb")


def answer(stream: Any) -> Answer:
    """Read one response."""
    lines = [*iter(stream.readline, b"\r\n")]
    status, headers, _ = parsed(b"".join(lines).removesuffix(b"\r\n"))
    return status, headers, stream.read(int(headers.get("content-length", 0)))


def test_client_that_waits_for_100_continue_gets_it(world: World) -> None:
    sent = request("Expect: 100-continue", CLOSE)
    head, body = sent[: -len(CUSTOMER)], sent[-len(CUSTOMER) :]
    with connected(world) as (connection, stream):
        connection.sendall(head)
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert stream.readline() == b"\r\n"
        connection.sendall(body)
        assert answer(stream)[0] == 200
    assert len(world.bodies) == 1


@pytest.mark.parametrize("together", [True, False], ids=["pipelined", "one after another"])
def test_connection_serves_calls_in_order_also_after_one_that_was_refused(world: World, *, together: bool) -> None:
    calls = [
        request(),
        request(body=b"customer=cus_2"),
        request(key="x-api-key: nobody"),
        request(body=b"customer=cus_3"),
    ]
    with connected(world) as (connection, stream):
        if together:
            connection.sendall(b"".join(calls))
        statuses = []
        for call in calls:
            if not together:
                connection.sendall(call)
            statuses.append(answer(stream)[0])
    assert statuses == [200, 200, 401, 200]
    assert world.bodies == [CUSTOMER, "customer=cus_2", "customer=cus_3"]


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (request(f"Cookie: a={'x' * 9000}"), 431, "headers-too-large"),
        (request(*(f"X-Header-{number}: {number}" for number in range(120))), 431, "headers-too-large"),
        (request("Expect: 200-nonsense"), 400, "header-malformed"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "not-http"),
    ],
    ids=["a cookie of 9 KB", "120 headers", "Expect", "HTTP/2 at once (curl --http2-prior-knowledge)"],
)
def test_request_that_cannot_be_read_is_refused_as_any_other(
    world: World, sent: bytes, status: int, reason: str
) -> None:
    answer = parsed(world.server.raw(sent))
    refused(answer, status, reason)
    assert answer[1]["connection"] == "close"
    assert not world.upstream.calls


# ---------------------------------------------------------------- libraries and tools


def address(world: World) -> str:
    return f"http://127.0.0.1:{world.server.port}{TARGET}"


HEADERS = {"x-api-key": KEY}
TYPE = {"Content-Type": FORM}
DATA = {"customer": "cus_1", "metadata[order_id]": "7"}
NESTED: dict[str, Any] = {"customer": "cus_1", "metadata": {"order_id": "7"}}
GOES_OUT = "customer=cus_1&metadata%5Border_id%5D=7"


def with_urllib(at: str) -> int:
    """Python's own; its form gets a Content-Type by itself."""
    sent = urllib.request.Request(at, b"customer=cus_1&metadata[order_id]=7", HEADERS)
    with urllib.request.urlopen(sent, timeout=20) as response:
        status: int = response.status
    return status


def with_requests(**members: Any) -> Callable[[str], int]:
    return lambda at: requests.post(at, timeout=20, **{"headers": HEADERS, **members}).status_code


def with_aiohttp(**members: Any) -> Callable[[str], int]:
    async def post(at: str) -> int:
        async with aiohttp.ClientSession(headers=HEADERS) as session, session.post(at, **members) as response:
            return response.status

    return lambda at: asyncio.run(post(at))


@pytest.mark.parametrize(
    "send",
    [
        with_urllib,
        with_requests(data=DATA), with_requests(json=NESTED), with_requests(data=DATA | {"description": None}),
        with_requests(data=iter([b"customer=cus_1&", b"metadata[order_id]=7"]), headers={**HEADERS, **TYPE}),
        with_requests(data=DATA, headers={}, auth=("app", KEY)), with_requests(data=DATA, headers={}, auth=(KEY, "")),
        with_aiohttp(data=DATA), with_aiohttp(json=NESTED),
    ],
    ids=["urllib", "requests data", "requests json", "requests None", "requests generator", "requests auth",
         "requests auth, key as user", "aiohttp data", "aiohttp json"],
)  # fmt: skip
def test_library_as_it_comes(world: World, send: Callable[[str], int]) -> None:
    assert send(address(world)) == 200
    assert world.bodies == [GOES_OUT]


@pytest.mark.parametrize(
    ("members", "status", "said"),
    [
        (
            {"data": {"customer": "cus_1", "metadata": {"order_id": "7"}}},
            400,
            "metadata cannot be a value: send its parts, such as metadata[order_id].",
        ),
        ({"data": "customer=cus_1"}, 415, "Content-Type is missing. Write application/json for JSON, or"),
        ({"data": json.dumps(NESTED)}, 415, "Content-Type is missing."),
        ({"data": DATA, "files": {"file": b"x"}}, 415, "The body is multipart/form-data, which is for files."),
        ({"params": DATA}, 400, "customer does not belong in the address."),
    ],
    ids=["nested dict", "text", "JSON as text", "files", "params"],
)
def test_requests_otherwise_is_told_what_to_change(
    world: World, members: dict[str, Any], status: int, said: str
) -> None:
    response = requests.post(address(world), headers=HEADERS, timeout=20, **members)
    assert response.status_code == status
    assert response.json()["detail"].startswith(said)
    assert not world.upstream.calls


@CURL
@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["-d", CUSTOMER], 200), (["--data-urlencode", CUSTOMER], 200), (["--json", '{"customer":"cus_1"}'], 200),
        (["-d", CUSTOMER, "--http1.0"], 200), (["-d", CUSTOMER, "--http2"], 200),
        (["-d", CUSTOMER, "--compressed", "--location"], 200), (["-d", CUSTOMER, "-H", "Expect: 100-continue"], 200),
        (["-d", CUSTOMER, "-H", "Transfer-Encoding: chunked"], 200),
        (["-d", '{"customer":"cus_1"}'], 400), (["--data-binary", f"{CUSTOMER}\n"], 400), (["-G", "-d", CUSTOMER], 405),
        (["-F", CUSTOMER], 415), (["-X", "POST"], 415), (["-X", "GET", "-d", CUSTOMER], 405),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)  # fmt: skip
@pytest.mark.parametrize(
    "credential", [["-H", f"x-api-key: {KEY}"], ["-u", f"{KEY}:"], ["-u", f"app:{KEY}"]], ids="xub"
)
def test_curl(world: World, options: list[str], status: int, credential: list[str]) -> None:
    command = ["curl", "-sS", *credential, *options, "-o", "-", "-w", "\n%{http_code}", address(world)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    body, _, code = run.stdout.rpartition("\n")
    assert int(code) == status, body
    assert len(world.upstream.calls) == (status == 200)
    if status != 200:
        assert json.loads(body)["detail"].endswith(".")


FETCH = """
const [at, key, how] = process.argv.slice(1);
const form = new URLSearchParams({customer: "cus_1", "metadata[order_id]": "7"});
const files = new FormData();
files.set("customer", "cus_1");
const text = JSON.stringify({customer: "cus_1", metadata: {order_id: "7"}});
const bodies = {form: [form], files: [files], text: [text], json: [text, {"Content-Type": "application/json"}]};
const [body, more] = bodies[how];
const response = await fetch(at, {method: "POST", headers: {"x-api-key": key, ...more}, body});
console.log(JSON.stringify([response.status, await response.json()]));
"""


@NODE
@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("form", 200, ""), ("json", 200, ""),
        ("files", 415, "The body is multipart/form-data, which is for files."),
        ("text", 415, "Content-Type is text/plain. Write application/json for JSON"),
    ],
)  # fmt: skip
def test_fetch_of_node(world: World, how: str, status: int, said: str) -> None:
    command = ["node", "--input-type=module", "-e", FETCH, address(world), KEY, how]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    got, body = json.loads(run.stdout)
    assert (got, body.get("detail", "").startswith(said)) == (status, True), body
    assert world.bodies == ([GOES_OUT] if status == 200 else [])
