"""WSGI environment -> Call. Everything a caller sends is bounded and, except for the body, parsed here."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, unquote_plus

import msgspec
from gunicorn.http.errors import ParseException

from gateway.address import HOST
from gateway.credentials import KINDS, environ_name
from gateway.credentials.google import SERVERLESS
from gateway.forks import PerProcess
from policies.callerkeys import mentioned_in
from policies.concealed import Concealed
from policies.forms import shown
from policies.model import NAME, Call
from policies.operations import OPERATIONS
from policies.parameters import BOOLEANS
from policies.refusals import (
    BadCall,
    BodyIncomplete,
    BodyMalformed,
    BodyTimeout,
    BodyTooLarge,
    HeaderMalformed,
    MediaTypeUnsupported,
    MethodNotAllowed,
    PathUnknown,
    QueryMalformed,
    TargetTooLong,
)
from policies.suggestions import closest
from policies.upstreams import UPSTREAMS

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterator

#: The largest real call, every parameter at its longest, is well below this.
MAX_BODY: Final = 256 * 1024
#: The two names at their longest, percent-encoded, fit several times over.
MAX_TARGET: Final = 2048
#: A server on the other side of a cloud sends 256 KB in well under a second.
BODY_SECONDS: Final = 10.0
#: Where our worker says that it has read what there will be of a call's body: True if the rest did not come in time.
LATE: Final = "countersign.late"
#: Where our worker says why it could not read a call, in the one that stands for it: see gateway/unreadable.py.
UNREADABLE: Final = "countersign.unreadable"
#: Longer than any key of ours or Google's; bounds what is hashed.
MAX_HEADER: Final = 4096

#: A function named ``stripe`` is reached under /stripe and sees the rest; a service sees the whole path.
_PLAIN = re.compile(r"(?:/stripe)?/(.+?)/?")
#: For Stripe's own clients, which append a fixed path to the base address. Some are given a host
#: and no path; then the connection is the credential's own.
_STRIPE = re.compile(rf"(?:/({NAME.pattern})/({NAME.pattern}))?/v1/(.+)")
#: An id in a path: nothing that could be read as more than one segment.
_ID: Final = r"[A-Za-z0-9_-]{1,255}"
#: An absolute-form target, as for a proxy: RFC 9112, 3.2.2.
_ORIGIN: Final = r"\A[A-Za-z]+://[^/]*"
_ADDRESS: Final = frozenset({"name", "connection_name", "validate_only"})
#: What other services call a key in an address, in small letters without dashes.
_KEY_NAMES: Final = frozenset(
    {"key", "apikey", "xapikey", "callerkey", "token", "accesstoken", "authorization", "bearer", "secret", "password"}
)
_KEY_SEEN: Final = (
    "Addresses end up in logs: send the caller key in the x-api-key header, and ask the operator of Countersign for a "
    "new one."
)
_TRUE: Final = "|".join(text for text, value in BOOLEANS.items() if value == "true")
_TRIES: Final = rf"[?&]validate_only=(?:{_TRUE})(?:&|$)"
_ODD: Final = r"[^A-Za-z0-9._-]"
_CHARACTERS: Final = {" ": "the space", "\n": "the line break", "\r": "the line break", "\t": "the tab"}
_CREDENTIALS: Final = {
    environ_name(name): name
    for name in (SERVERLESS, *(name for kind in KINDS for headers in kind.HEADERS for name in headers))
}
_ACCOUNTS: Final = {environ_name(name): name for dialect in UPSTREAMS.values() for name in dialect.account_headers}
_MEDIA: Final = {"application/x-www-form-urlencoded": "form", "application/json": "json"}
_UTF_8: Final = frozenset({"utf-8", "utf8"})


def read(environ: Mapping[str, Any]) -> Call:
    """Read a request from its WSGI environment.

    Raises one of the ``BadCall`` refusals. The body is read whole, in bounded size and time, and not yet parsed, so
    that an unknown caller costs little.
    """
    target: str = environ["RAW_URI"]  # PATH_INFO has %2F decoded and // folded, and hides an absolute-form target
    if len(target) > MAX_TARGET:
        raise TargetTooLong
    if not HOST.fullmatch(environ.get("HTTP_HOST", "")):
        raise _hostless(environ)
    path, _, query = target.partition("?")
    route = _route(path)
    if route is None:
        raise PathUnknown(_meant(path))
    operation = route.operations.get(environ["REQUEST_METHOD"])
    if operation is None:
        raise _wrong_method(environ, route.operations)
    bodyless = OPERATIONS[operation].bodyless
    names, validate_only, rest = _query(query, named_in_path=route.account is not None, bodyless=bodyless)
    name, connection_name = route.account or names
    media = (
        "form"
        if bodyless or (route.parameters and _empty(environ))
        else _media(environ.get("CONTENT_TYPE", ""), environ.get("HTTP_CONTENT_ENCODING", "identity"))
    )
    body = _body(environ)
    if bodyless and body:
        raise BodyMalformed(f"A {environ['REQUEST_METHOD']} has no body: write parameters in the address.")
    return Call(
        operation=operation,
        name=name,
        connection_name=connection_name,
        path_parameters=route.parameters,
        accounts={} if environ.keys().isdisjoint(_ACCOUNTS) else _accounts(environ),
        credentials={
            (name := _CREDENTIALS[key]): Concealed(_header(environ, key, name) or "")
            for key in environ.keys() & _CREDENTIALS.keys()
        },
        idempotency_key=_header(environ, "HTTP_IDEMPOTENCY_KEY", "Idempotency-Key"),
        media=media,
        body=rest if bodyless else body,
        validate_only=validate_only,
        environ=environ,
    )


def read_own(
    environ: Mapping[str, Any], allowed: Collection[str], names: Collection[str] = ()
) -> tuple[Call, dict[str, str]]:
    """Read a request for a door of our own: who asks, and which of ``names`` its query gives.

    The call names no operation; ``body`` is that of a method which has one. Raises what :func:`read` does.
    """
    target: str = environ["RAW_URI"]
    if len(target) > MAX_TARGET:
        raise TargetTooLong
    if not HOST.fullmatch(environ.get("HTTP_HOST", "")):
        raise _hostless(environ)
    if environ["REQUEST_METHOD"] not in allowed:
        raise _wrong_method(environ, dict.fromkeys(allowed, ""))
    query = target.partition("?")[2]
    if mentioned_in(unquote_plus(query)):
        raise QueryMalformed(f"A caller key must not be written in the address. {_KEY_SEEN}")
    given: dict[str, str] = {}
    for name, value in _pairs(query):
        if name not in names:
            takes = f"It takes {' and '.join(names)}." if names else "It takes no parameters."
            raise QueryMalformed(f"{shown(name) or 'An empty name'} does not belong in this address. {takes}")
        if name in given or not value:
            fault = "given twice" if name in given else "empty"
            raise QueryMalformed(f"{name} is {fault} in the address. Write it once, with a value.", parameter=name)
        given[name] = value
    body = _body(environ)
    if body and environ["REQUEST_METHOD"] != "POST":
        raise BodyMalformed("A GET has no body: write parameters in the address.")
    credentials = {
        (name := _CREDENTIALS[key]): Concealed(_header(environ, key, name) or "")
        for key in environ.keys() & _CREDENTIALS.keys()
    }
    return Call("", "", "", credentials, "json", body, None, validate_only=False, environ=environ), given


def _hostless(environ: Mapping[str, Any]) -> BadCall:
    """Return why a request names no host: it may stand for one that our worker could not read."""
    unreadable: BadCall | None = environ.get(UNREADABLE)
    return unreadable or HeaderMalformed("The Host header is not a host's name.")


def only_tries(environ: Mapping[str, Any]) -> bool:
    """Whether a request that could not be read asks for ``validate_only``."""
    return re.search(_TRIES, environ["RAW_URI"][:MAX_TARGET]) is not None


def speaks_stripe(environ: Mapping[str, Any]) -> bool:
    """Whether a request came from one of Stripe's own clients, which need refusals in Stripe's format.

    True also if their base address is wrong, so that they can show the refusal.
    """
    target: str = environ["RAW_URI"]
    return "/v1/" in target[:MAX_TARGET].partition("?")[0]


class _Route(msgspec.Struct, frozen=True):
    """What a path means: an operation for each method, whose account it names, and the parameters that it holds.

    ``account`` is None if the query names it, and two empty texts if it is the credential's own.
    """

    operations: Mapping[str, str]
    account: tuple[str, str] | None
    parameters: Mapping[str, str]


@lru_cache(1024)  # callers use the same few paths
def _route(path: str) -> _Route | None:
    sdk = _STRIPE.fullmatch(path)
    plain = None if sdk else _PLAIN.fullmatch(path)
    below = sdk[3] if sdk else plain[1] if plain else ""
    for pattern, operations in _PATTERNS:
        match = re.fullmatch(pattern, below)
        if match is not None:
            return _Route(operations, (sdk[1] or "", sdk[2] or "") if sdk else None, match.groupdict())
    return None


def _meant(path: str) -> str | None:
    """Return a sentence with the path that a sender may have meant; None if none is close."""
    tidy = re.sub("/+", "/", unquote(re.sub(_ORIGIN, "", path)))
    for meant in (tidy, tidy.lower(), tidy.rstrip("/"), tidy.lower().rstrip("/")):
        if not mentioned_in(meant) and _route(meant) is not None:
            return f"{PathUnknown.sentence} You may mean {meant}."
    return None


def _wrong_method(environ: Mapping[str, Any], operations: Mapping[str, str]) -> MethodNotAllowed:
    """``operations`` are those of the path by their methods; doors of our own have none."""
    method: str = environ["REQUEST_METHOD"]
    allowed = ", ".join(operations)
    if method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
        said = "A page of another site may not call this: it would hold the caller key. Call it from your own server."
    else:
        what_for = " to create an invoice" if operations == {"POST": "invoices.create"} else ""
        said = f"This method is not supported here: {shown(method)}. Use {allowed}{what_for}."
    return MethodNotAllowed(said, allowed=allowed)


def _patterns() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each path of the operations' table, and its operations by method."""
    # ``invoices/issue`` before ``invoices/{invoice}``: a name of ours is no id.
    for path in sorted({operation.path: None for operation in OPERATIONS.values()}, key=lambda path: "{" in path):
        parts = (rf"(?P<{part[1:-1]}>{_ID})" if part.startswith("{") else part for part in path.split("/"))
        yield "/".join(parts), {o.method: o.id for o in OPERATIONS.values() if o.path == path}


_PATTERNS: Final = tuple(_patterns())


@lru_cache(1024)  # the same
def _query(query: str, *, named_in_path: bool, bodyless: bool) -> tuple[tuple[str, str], bool, bytes]:
    """Parse a query: the two names, ``validate_only``, and the other parameters of a call without a body, unparsed."""
    if mentioned_in(unquote_plus(query)):
        raise QueryMalformed(f"A caller key must not be written in the address. {_KEY_SEEN}")
    fields = query.split("&")
    others = [field for field in fields if _named(field) not in _ADDRESS] if bodyless else []
    rest = "&".join(others).encode("ascii", "replace")
    apart = frozenset(others)
    values = _values("&".join(field for field in fields if field not in apart))
    validate_only = BOOLEANS.get(values.pop("validate_only", "false"))
    if validate_only is None:
        raise QueryMalformed("validate_only must be true or false.", parameter="validate_only")
    for name in dict.fromkeys(map(_named, others)):
        _refuse_secret(name)
        if not named_in_path and closest(name, _ADDRESS) not in {None, "validate_only", *values}:
            raise _stranger(name)
    if named_in_path:
        for name in values:
            raise QueryMalformed(
                f"At this path the query must not name the connection: take out {name}.", parameter=name
            )
        return ("", ""), validate_only == "true", rest
    return (_place(values, "name"), _place(values, "connection_name")), validate_only == "true", rest


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError:
        raise QueryMalformed("The address is not valid UTF-8. Write it in UTF-8, percent-encoded.") from None


def _values(query: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in _pairs(query):
        if name not in _ADDRESS:
            raise _stranger(name)
        if name in values:
            raise QueryMalformed(f"{name} is given twice in the address. Write it once.", parameter=name)
        values[name] = value
    return values


def _stranger(name: str) -> QueryMalformed:
    _refuse_secret(name)
    said = f"{shown(name) or 'An empty name'} does not belong in the address."
    close = closest(name, _ADDRESS)
    if close is None:
        said += " The address takes name, connection_name and validate_only; parameters go in the body."
    else:
        said += f" Did you mean {close}?"
    if name.startswith("amp;"):
        said += " Write & alone, not &amp; as in HTML."
    return QueryMalformed(said, parameter=shown(name))


def _refuse_secret(name: str) -> None:
    if re.sub("[^a-z]", "", name.lower()) in _KEY_NAMES:
        raise QueryMalformed(f"{shown(name)} does not belong in the address. {_KEY_SEEN}", parameter=shown(name))


def _place(values: Mapping[str, str], name: str) -> str:
    value = values.get(name, "")
    if not value:
        said = "empty" if name in values else "missing"
        raise QueryMalformed(
            f"{name} is {said} in the address: write ?name=ft-4&connection_name=stripe-1.", parameter=name
        )
    if not NAME.fullmatch(value):
        said = f"{name} must be a plain name, such as ft-4: letters, digits, dots, dashes, underscores."
        odd = re.search(_ODD, value)
        if odd is not None:
            said += f" Leave out {_CHARACTERS.get(odd[0], shown(odd[0]))}"
            said += " and what follows it." if odd[0] in "#&;?" else "."
        raise QueryMalformed(said, parameter=name)
    return value


def _named(field: str) -> str:
    return unquote_plus(field.partition("=")[0])


def _header(environ: Mapping[str, Any], key: str, name: str) -> str | None:
    value: str | None = environ.get(key)
    if value is not None and len(value) > MAX_HEADER:
        raise HeaderMalformed(f"The {name} header is too long.")
    return value


def _accounts(environ: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for key, name in _ACCOUNTS.items() if (value := _header(environ, key, name))}


def _empty(environ: Mapping[str, Any]) -> bool:
    """Whether a request has no body and says nothing of one: all that some calls ask is in their path."""
    announced = environ.get("CONTENT_LENGTH") not in {None, "", "0"} or "HTTP_TRANSFER_ENCODING" in environ
    return not announced and not environ.get("CONTENT_TYPE")


@lru_cache(64)  # the same, and these may be longer
def _media(content_type: str, encoding: str) -> str:
    if encoding.strip().lower() != "identity":
        raise MediaTypeUnsupported(
            f"The body is compressed ({shown(encoding) or 'an empty Content-Encoding'}). Send it as it is."
        )
    kind, *parameters = content_type.split(";")
    kind = kind.strip().lower()
    if kind == "multipart/form-data":
        raise MediaTypeUnsupported(
            "The body is multipart/form-data, which is for files. Send the same fields as "
            "application/x-www-form-urlencoded, or as application/json."
        )
    media = _MEDIA.get(kind)
    if media is None:
        said = f"Content-Type is {shown(kind)}" if kind else "Content-Type is missing"
        raise MediaTypeUnsupported(
            f"{said}. Write application/json for JSON, or application/x-www-form-urlencoded for a form."
        )
    for parameter in parameters:  # RFC 2046, 1: one that is not known is ignored
        name, _, value = parameter.partition("=")
        charset = value.strip().strip("\"'").lower()
        if name.strip().lower() == "charset" and charset not in _UTF_8:
            raise MediaTypeUnsupported(f"The charset of the body is {shown(charset) or 'empty'}. Send it in UTF-8.")
    return media


def _body(environ: Mapping[str, Any]) -> bytes:
    announced: str = environ.get("CONTENT_LENGTH") or ""
    if announced and not announced.isdecimal():
        raise HeaderMalformed("Content-Length must be a whole number.")
    if announced and (len(announced) > 9 or int(announced) > MAX_BODY):
        raise BodyTooLarge
    if not announced and not environ.get("wsgi.input_terminated"):
        return b""
    length = int(announced) if announced else None
    late: bool | None = environ.get(LATE)
    sock = environ.get("gunicorn.socket") if late is None else None
    watched = _WATCH.over(sock) if sock is not None else None
    try:
        body: bytes = environ["wsgi.input"].read(MAX_BODY + 1 if length is None else length)
    except (OSError, ParseException):
        body, length = b"", -1
    if watched is not None:
        late = _WATCH.done(watched)
    if late or (length is not None and len(body) != length):
        # The rest of this body may still arrive, and is not a call; with this, gunicorn closes the connection.
        with suppress(AttributeError):
            environ["wsgi.input"].failed = True
    if late:
        raise BodyTimeout
    if len(body) > MAX_BODY:
        raise BodyTooLarge
    if length is not None and len(body) != length:
        raise BodyIncomplete
    return body


class _Watch:
    """Ends the wait for an overdue body under the stock worker. Ours gives no call to a thread before it is there.

    gunicorn's threads read a body for as long as it trickles, so a few callers who send nothing could starve the pool.
    Shutting down the reading side of the socket makes that read return, and the answer can still be sent. One thread,
    started with the first call, watches all calls, so that a call in time costs only two dictionary operations.
    """

    def __init__(self, seconds: float, tick: float) -> None:
        self._seconds, self._tick = seconds, tick
        self._waiting: dict[int, tuple[float, socket.socket]] = {}
        self._tokens = itertools.count()
        self._thread = PerProcess(self._start)

    def over(self, sock: socket.socket) -> int:
        """Watch the body that arrives on ``sock``; return a token for :meth:`done`."""
        token = next(self._tokens)  # of this body: a thread's next one must not be taken for it
        self._waiting[token] = (time.monotonic() + self._seconds, sock)
        self._thread.get()
        return token

    def done(self, token: int) -> bool:
        """Stop watching. Return whether the body was overdue and the socket was shut down for reading."""
        return self._waiting.pop(token, None) is None

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="body-watch", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while True:
            time.sleep(self._tick)
            self._end(time.monotonic())

    def _end(self, now: float) -> None:
        # Copied at once: a list of pairs is made pair by pair, and the garbage collector may let a call in meanwhile.
        for token, (deadline, sock) in self._waiting.copy().items():
            if deadline < now and not self.done(token):
                _close_ears(sock)


def _close_ears(sock: socket.socket) -> None:
    try:
        sock.shutdown(0)  # SHUT_RD
    except OSError:  # already closed
        return


_WATCH: Final = _Watch(BODY_SECONDS, tick=0.5)
