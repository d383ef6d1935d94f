"""The upstream on a real socket: it counts what it is asked, and fails on request.

    POST /stripe/invoices/?name=ft-4&connection_name=stripe-1     x-api-key, customer=cus_...
    GET  /_sandbox                                                {"calls", "invoices", "connections"}

A fault stands in for the answer to a call that would otherwise have created an invoice. Any client asks
for one with the customer `cus_fault_<name>`; a test in this process can also call `fail_next(name)`.
The mark + means that the invoice is created, and counted, whatever the client gets to see.

    name               what the client gets
    redirect_302, redirect_307   Location: a path here that adds to `redirected`
    html_200        +  a page of HTML with status 200
    html_502           the same with status 502, as from a front end
    gzip            +  the invoice, compressed though nobody asked
    gzip_bomb       +  about 200 KB that inflate to 200 MB of JSON
    trickle         +  one byte each 50 ms, for at most 60 s
    slow            +  the invoice after `delay` seconds
    hang            +  nothing, until the client or the server goes away
    echo_key           400; its message holds the key raw, in base64 and in hex
    leak_key        +  an invoice that holds the key raw, in base64, in hex and URL-encoded
    set_cookie      +  the invoice and a cookie
    error_400, error_401, error_402, error_403, error_404, error_409, error_429 (Retry-After: 7),
    error_500, error_503   Stripe's JSON for that status
    close_before       nothing: closed. By `fail_next` already when the head is in, so it is no call
    close_after     +  nothing: closed
    reset_after     +  nothing: reset (RST)
    truncated       +  half of the declared length, then closed
    oversize        +  an invoice of about 3 MB
    not_json        +  200 application/json that is not JSON
    nan             +  an invoice with a NaN in it
    deep            +  an invoice with 100,000 nested arrays in it
    no_id           +  an invoice without its id
    array           +  a JSON array
    empty           +  200 without a body
    wrong_object    +  an invoice that says it is an error
    huge_header     +  the invoice behind a header of 400 KB
    expanded        +  an invoice whose customer is an object, with fields that nobody may see
"""

import argparse
import asyncio
import base64
import functools
import gzip
import http.client
import itertools
import json
import re
import signal
import socket
import struct
import threading
import urllib.parse
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, Self

from sandbox import invoice

__all__ = ["FAULTS", "Appgregator", "Received"]

_PATHS: Final = ("/stripe/invoices", "/stripe/invoices/")
_FAULT: Final = "cus_fault_"
_STATUS: Final = "/_sandbox"
_REDIRECTED: Final = "/redirected"
_FORM: Final = "application/x-www-form-urlencoded"
_MAX_HEAD: Final = 64 * 1024
_MAX_BODY: Final = 16 * 1024 * 1024
_TRICKLE: Final = 0.05  # seconds between bytes
_TRICKLE_BYTES: Final = int(60 / _TRICKLE)

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Received:
    """A create request that arrived in full."""

    path: str
    query: str  # as on the wire
    headers: Headers  # names and values as sent
    body: bytes
    created: bool
    connection: int  # counted from 1, never reset: equal numbers shared a connection


# --- Answers


@dataclass(frozen=True, slots=True)
class _Answer:
    """What goes out on the wire, when, and what becomes of the connection."""

    data: bytes
    creates: bool = False
    after: float = 0  # seconds before the first byte
    pace: float = 0  # seconds between single bytes; 0 sends all at once
    then: Literal["keep", "close", "reset", "hang"] = "keep"


@functools.cache
def _status_line(status: int, media: str) -> bytes:
    return f"HTTP/1.1 {status} {http.client.responses[status]}\r\nContent-Type: {media}\r\n".encode()


def _message(status: int, body: bytes, *headers: str, media: str = "application/json") -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return _status_line(status, media) + f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _created(body: bytes, *headers: str, media: str = "application/json") -> _Answer:
    return _Answer(_message(200, body, *headers, media=media), creates=True)


def _error(status: int, message: str, *headers: str, **fields: str) -> _Answer:
    """An error as Stripe writes it."""
    error = {"type": "invalid_request_error", "message": message} | fields
    return _Answer(_message(status, invoice.encode({"error": error}), *headers))


_UNAUTHORIZED: Final = _error(401, "The API key is not valid.")
_NO_ACCOUNT: Final = _error(404, "No account is stored under this name and connection_name.")
_NO_PATH: Final = _error(404, "There is nothing at this address.")
_NOT_ALLOWED: Final = _error(405, "An invoice is created with POST.", "Allow: POST")
_NOT_A_FORM: Final = _error(400, f"The content type must be {_FORM}.")
_NO_CUSTOMER: Final = _error(400, "A customer is required.", param="customer", code="parameter_missing")


def _no_such_customer(customer: str) -> _Answer:
    return _error(404, f"There is no customer {customer!r}.", param="customer", code="resource_missing")


# --- Faults


@dataclass(frozen=True, slots=True)
class _Ask:
    """What a fault is made from: the invoice that would have been the answer, and the call's surroundings."""

    invoice: bytes
    key: str
    origin: str
    delay: float

    def changed(self, **changes: object) -> bytes:
        return json.dumps(json.loads(self.invoice) | changes).encode()


_Fault = Callable[[_Ask], _Answer]
_PAGE: Final = b"<!doctype html><title>Error</title><h1>Server Error</h1><p>Please try again in 30 seconds.</p>"


def _redirect(status: int) -> _Fault:
    def fault(ask: _Ask) -> _Answer:
        return _Answer(_message(status, _PAGE, f"Location: {ask.origin}{_REDIRECTED}", media="text/html"))

    return fault


@functools.cache
def _bomb() -> bytes:
    packer = zlib.compressobj(level=9, wbits=31)
    filler = b" " * 1_000_000
    body = [packer.compress(b'{"id":"in_bomb","object":"invoice","footer":"')]
    body += [packer.compress(filler) for _ in range(200)]
    return b"".join([*body, packer.compress(b'"}'), packer.flush()])


def _encodings(key: str) -> dict[str, str]:
    raw = key.encode("latin-1")
    return {
        "raw": key,
        "base64": base64.b64encode(raw).decode(),
        "hex": raw.hex(),
        "url": urllib.parse.quote(raw, safe=""),
    }


def _echo_key(ask: _Ask) -> _Answer:
    key = _encodings(ask.key)
    return _error(400, f"Invalid API Key provided: {key['raw']} ({key['base64']}, {key['hex']})")


def _leak_key(ask: _Ask) -> _Answer:
    key = _encodings(ask.key)
    return _created(
        ask.changed(
            account_name=key["base64"],
            description=f"Raised with {key['raw']}",
            hosted_invoice_url=f"https://pay.example/i?key={key['url']}",
            metadata=key | {key["raw"]: "as a name"},
            number=key["hex"],
        )
    )


def _truncated(ask: _Ask) -> _Answer:
    return _Answer(_message(200, ask.invoice)[: -len(ask.invoice) // 2], creates=True, then="close")


def _trickle(ask: _Ask) -> _Answer:
    data = _message(200, ask.invoice)[:_TRICKLE_BYTES]
    return _Answer(data, creates=True, pace=_TRICKLE, then="close")


def _oversize(ask: _Ask) -> _Answer:
    lines = json.loads(ask.invoice)["lines"]
    return _created(ask.changed(lines=lines | {"data": lines["data"] * 3000}))


def _deep(ask: _Ask) -> _Answer:
    return _created(ask.changed(metadata="deep").replace(b'"deep"', b"[" * 100_000 + b"]" * 100_000))


def _no_id(ask: _Ask) -> _Answer:
    found = json.loads(ask.invoice)
    del found["id"]
    return _created(invoice.encode(found))


def _expanded(ask: _Ask) -> _Answer:
    found = json.loads(ask.invoice)
    customer = {
        "id": found["customer"],
        "object": "customer",
        "email": "expanded@secret.example",
        "name": "Expanded Secret",
        "phone": "+15550100",
        "invoice_settings": {"default_payment_method": "pm_secret"},
    }
    secret = {"internal_cost": 1234, "price_secret": "expanded-line-secret"}
    lines = found["lines"] | {"data": [line | secret for line in found["lines"]["data"]]}
    return _created(ask.changed(customer=customer, lines=lines))


def _always(answer: _Answer) -> _Fault:
    return lambda _: answer


_ERRORS: Final = (
    _error(400, "The parameter is not one we know.", code="parameter_unknown", param="footer",
           request_log_url="https://dashboard.example/logs/req_sandbox"),
    _error(401, "The API key is not valid."),
    _error(402, "The card was declined.", type="card_error", code="card_declined", decline_code="do_not_honor"),
    _error(403, "The API key may not do this.", code="more_permissions_required"),
    _error(404, "There is no such customer.", code="resource_missing", param="customer"),
    _error(409, "Another call holds this customer.", code="lock_timeout"),
    _error(429, "Too many calls.", "Retry-After: 7", code="rate_limit"),
    _error(500, "Something went wrong here.", type="api_error"),
    _error(503, "Not available for now.", type="api_error"),
)  # fmt: skip

_FAULTS: Final[Mapping[str, _Fault]] = MappingProxyType(
    {
        "redirect_302": _redirect(302),
        "redirect_307": _redirect(307),
        "html_200": _always(_created(_PAGE, media="text/html")),
        "html_502": _always(_Answer(_message(502, _PAGE, media="text/html"))),
        "gzip": lambda ask: _created(gzip.compress(ask.invoice), "Content-Encoding: gzip"),
        "gzip_bomb": lambda _: _created(_bomb(), "Content-Encoding: gzip"),
        "trickle": _trickle,
        "slow": lambda ask: _Answer(_message(200, ask.invoice), creates=True, after=ask.delay),
        "hang": _always(_Answer(b"", creates=True, then="hang")),
        "echo_key": _echo_key,
        "leak_key": _leak_key,
        "set_cookie": lambda ask: _created(ask.invoice, "Set-Cookie: sandbox=of-another-caller; Path=/"),
        "close_before": _always(_Answer(b"", then="close")),
        "close_after": _always(_Answer(b"", creates=True, then="close")),
        "reset_after": _always(_Answer(b"", creates=True, then="reset")),
        "truncated": _truncated,
        "oversize": _oversize,
        "not_json": _always(_created(b'{"id": "in_1", "object": "invoice", "amount_due": 20')),
        "nan": lambda ask: _created(ask.changed(amount_due=float("nan"))),
        "deep": _deep,
        "no_id": _no_id,
        "array": lambda ask: _created(b"[" + ask.invoice + b"]"),
        "empty": _always(_created(b"")),
        "wrong_object": lambda ask: _created(ask.changed(object="error")),
        "huge_header": lambda ask: _created(ask.invoice, "X-Huge: " + "h" * 400_000),
        "expanded": _expanded,
    }
    | {f"error_{answer.data[9:12].decode()}": _always(answer) for answer in _ERRORS}
)

FAULTS: Final = frozenset(_FAULTS)
"""The names of all faults."""


# --- Reading HTTP/1.1


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    path: str
    query: str
    headers: Headers
    key: str | None
    media: str
    length: int
    expects: bool  # the client waits for 100 Continue before it sends the body
    keep: bool

    @property
    def creates(self) -> bool:
        return self.method == "POST" and self.path in _PATHS


class _MalformedError(Exception):
    """What came is not HTTP as this server reads it: the status to answer with, and why."""


_REQUEST_LINE: Final = re.compile(r"([A-Z]+) (/[!-~]*) HTTP/1\.([01])")
_HEADER_LINE: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*?)[ \t]*")


# A client that keeps its connection sends the same head over and over, so a few are worth remembering.
@functools.lru_cache(maxsize=128)
def _parse(head: bytes) -> _Head:
    first, *lines = head.decode("latin-1").split("\r\n")
    request = _REQUEST_LINE.fullmatch(first)
    fields = [_HEADER_LINE.fullmatch(line) for line in lines]
    if request is None:
        raise _MalformedError(400, "The request line is not one of HTTP/1.")
    headers = tuple((found[1], found[2]) for found in fields if found)
    if len(headers) < len(lines):
        raise _MalformedError(400, "A header is malformed.")
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value)

    def only(name: str) -> str | None:
        if len(found := values.get(name, [])) > 1:
            raise _MalformedError(400, f"The header {name} may come only once.")
        return found[0] if found else None

    if only("host") is None:
        raise _MalformedError(400, "A Host header is required.")
    path, _, query = request[2].partition("?")
    connection = ",".join(values.get("connection", [])).lower()
    return _Head(
        method=request[1],
        path=path,
        query=query,
        headers=headers,
        key=only("x-api-key"),
        media=(only("content-type") or "").partition(";")[0].strip().lower(),
        length=_length(request[1], only("content-length"), chunked="transfer-encoding" in values),
        expects=(only("expect") or "").lower() == "100-continue",
        keep=("keep-alive" in connection if request[3] == "0" else "close" not in connection),
    )


def _length(method: str, declared: str | None, *, chunked: bool) -> int:
    if chunked or (declared is None and method in ("POST", "PUT", "PATCH")):
        raise _MalformedError(411, "A body must come with its Content-Length.")
    if declared is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", declared):
        raise _MalformedError(400, "The Content-Length is not a number.")
    if int(declared) > _MAX_BODY:
        raise _MalformedError(413, "The body is too large.")
    return int(declared)


class _Connection(asyncio.Protocol):
    """One TCP connection: requests in, in their order; answers out, one at a time."""

    def __init__(
        self,
        cuts_off: Callable[[_Head], bool],
        answer: Callable[[_Head, bytes], _Answer],
        connections: set[asyncio.Transport],
    ) -> None:
        self._cuts_off = cuts_off
        self._answer = answer
        self._open = connections
        self._buffer = bytearray()
        self._head: _Head | None = None
        self._answering = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows what a TCP server always passes
        self.transport = transport
        self._open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._task is not None:
            self._task.cancel()
        self._open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._read()

    def _read(self) -> None:
        try:
            while not self._answering and (call := self._next()):
                self._send(self._answer(*call), keep=call[0].keep)
        except _MalformedError as error:
            status, sentence = error.args
            self._send(_error(status, sentence, "Connection: close"), keep=False)

    def _next(self) -> tuple[_Head, bytes] | None:
        """The next request, once it is there in full."""
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if (len(self._buffer) if end < 0 else end) > _MAX_HEAD:
                raise _MalformedError(431, "The head is too large.")
            if end < 0:
                return None
            head = _parse(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            if self._cuts_off(head):
                self._send(_Answer(b"", then="close"), keep=False)
                return None
            if head.expects and head.length > len(self._buffer):
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._head = head
        head = self._head
        if len(self._buffer) < head.length:
            return None
        body = bytes(self._buffer[: head.length])
        del self._buffer[: head.length]
        self._head = None
        return head, body

    def _send(self, answer: _Answer, *, keep: bool) -> None:
        self._answering = True
        if answer.after or answer.pace:
            self._task = asyncio.ensure_future(self._send_slowly(answer, keep=keep))
        else:
            self.transport.write(answer.data)
            self._finish(answer, keep=keep)

    async def _send_slowly(self, answer: _Answer, *, keep: bool) -> None:
        await asyncio.sleep(answer.after)
        step = 1 if answer.pace else len(answer.data)
        for start in range(0, len(answer.data), step):
            self.transport.write(answer.data[start : start + step])
            await asyncio.sleep(answer.pace)
        self._finish(answer, keep=keep)
        self._read()

    def _finish(self, answer: _Answer, *, keep: bool) -> None:
        if answer.then == "reset":
            # Closing a socket that lingers for no time sends RST in place of FIN.
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        elif answer.then == "close" or (answer.then == "keep" and not keep):
            self.transport.close()
        else:
            self._answering = answer.then == "hang"


# --- The server


@dataclass(slots=True)
class _Tally:
    kept: deque[Received]
    calls: int = 0
    invoices: int = 0
    connections: int = 0
    redirected: int = 0


class Appgregator:
    """The upstream on 127.0.0.1; a port of 0 takes a free one, and keeps it over a restart.

    `delay` is what the fault `slow` waits, in seconds. `keep` is how many of the newest calls are kept to
    look at; the counts go on past it.
    """

    def __init__(
        self,
        keys: Iterable[str] = ("sandbox-upstream-key",),
        accounts: Iterable[tuple[str, str]] = (("ft-4", "stripe-1"),),
        port: int = 0,
        *,
        keep: int = 100_000,
    ) -> None:
        self.delay = 1.0
        self._keys = frozenset(keys)
        self._accounts = frozenset(accounts)
        self._port = port
        self._tally = _Tally(deque(maxlen=keep))
        self._failures: deque[str] = deque()
        self._numbers = itertools.count(1)
        self._open: set[asyncio.Transport] = set()
        self._stopping: tuple[threading.Thread, Callable[[], object]] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        ready: Future[Callable[[], object]] = Future()
        # A thread of its own, so that a test may block while it is being answered.
        run = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name="appgregator", daemon=True)
        run.start()
        self._stopping = run, ready.result()

    def stop(self) -> None:
        """Stop listening and drop every connection. Counts and calls stay."""
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            thread, stop = stopping
            stop()
            thread.join()

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def calls(self) -> tuple[Received, ...]:
        """The create requests that arrived in full, refused ones included."""
        return tuple(self._tally.kept)

    @property
    def invoices(self) -> int:
        """How many invoices were really created."""
        return self._tally.invoices

    @property
    def connections(self) -> int:
        """How many TCP connections were accepted."""
        return self._tally.connections

    @property
    def redirected(self) -> int:
        """How many requests followed a redirect that should not have been followed."""
        return self._tally.redirected

    def accept(self, *keys: str) -> None:
        """Accept these keys and no others from the next call on."""
        self._keys = frozenset(keys)

    def fail_next(self, name: str, times: int = 1) -> None:
        """Answer with this fault, as often as asked, where an invoice would have been created next."""
        if name not in FAULTS:
            raise ValueError(f"there is no fault {name!r}")
        self._failures.extend([name] * times)

    def forget(self) -> None:
        """Clear calls, counts and the faults still to come."""
        self._failures.clear()
        # A new tally in one assignment: what is being counted right now goes to either, never to half of one.
        self._tally = _Tally(deque(maxlen=self._tally.kept.maxlen))

    async def _serve(self, ready: Future[Callable[[], object]]) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        try:
            server = await loop.create_server(self._connect, "127.0.0.1", self._port, backlog=1024)
        except OSError as error:
            ready.set_exception(error)
            return
        self._port = server.sockets[0].getsockname()[1]
        ready.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
        await stopped.wait()
        server.close()
        await asyncio.sleep(0.01)  # connections just accepted get their transports, so that these can be closed
        while self._open:
            for transport in tuple(self._open):
                transport.abort()
            await asyncio.sleep(0)

    def _connect(self) -> _Connection:
        self._tally.connections += 1
        answer = functools.partial(self._answer, next(self._numbers))
        return _Connection(self._cuts_off, answer, self._open)

    def _answer(self, connection: int, head: _Head, body: bytes) -> _Answer:
        answer = self._decide(head, body)
        tally = self._tally
        if head.creates:
            tally.calls += 1
            tally.invoices += answer.creates
            tally.kept.append(
                Received(head.path, head.query, head.headers, body, answer.creates, connection),
            )
        return answer

    def _decide(self, head: _Head, body: bytes) -> _Answer:
        if head.path not in _PATHS:
            return self._elsewhere(head)
        if head.method != "POST":
            return _NOT_ALLOWED
        form = dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        return self._refusal(head) or self._create(form, head.key or "")

    def _elsewhere(self, head: _Head) -> _Answer:
        tally = self._tally
        if head.path == _REDIRECTED:
            tally.redirected += 1
            return _created(invoice.fresh({}))
        if head.path == _STATUS and head.method == "GET":
            counts = {"calls": tally.calls, "invoices": tally.invoices, "connections": tally.connections}
            return _Answer(_message(200, invoice.encode(counts)))
        return _NO_PATH

    def _refusal(self, head: _Head) -> _Answer | None:
        """What the head alone is refused for."""
        if head.media != _FORM:
            return _NOT_A_FORM
        if head.key not in self._keys:
            return _UNAUTHORIZED
        if _account(head.query) not in self._accounts:
            return _NO_ACCOUNT
        return None

    def _cuts_off(self, head: _Head) -> bool:
        """Whether the connection closes before the body is read."""
        due = bool(self._failures) and self._failures[0] == "close_before"
        if due and head.creates and self._refusal(head) is None:
            self._failures.popleft()
            return True
        return False

    def _create(self, form: Mapping[str, str], key: str) -> _Answer:
        customer = form.get("customer", "")
        if not customer:
            return _NO_CUSTOMER
        if customer == "cus_missing":
            return _no_such_customer(customer)
        try:
            made = invoice.fresh(form)
        except ValueError as error:
            return _error(400, f"{error} must be an integer.", param=str(error), code="parameter_invalid_integer")
        if self._failures:
            fault = self._failures.popleft()
        elif customer.startswith(_FAULT):
            fault = customer.removeprefix(_FAULT)
        else:
            return _created(made)
        if fault not in _FAULTS:
            return _error(400, f"There is no fault {fault!r}.", param="customer")
        return _FAULTS[fault](_Ask(made, key, self.origin, self.delay))


@functools.lru_cache(maxsize=128)
def _account(query: str) -> tuple[str, ...]:
    values = dict(urllib.parse.parse_qsl(query))
    return values.get("name", ""), values.get("connection_name", "")


def main() -> None:
    """Run the upstream as a process of its own until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.appgregator", description="The sandbox's upstream.")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--delay", type=float, default=1.0, help="seconds that cus_fault_slow waits")
    options = parser.parse_args()
    # Before any thread starts: each inherits the mask, so the signal waits for sigwait below.
    signals = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    # Nobody can look at the calls of another process; keeping none keeps its memory flat.
    upstream = Appgregator(port=options.port, keep=0)
    upstream.delay = options.delay
    with upstream:
        print(f"listening on {upstream.origin}", flush=True)
        signal.sigwait(signals)


if __name__ == "__main__":
    main()
