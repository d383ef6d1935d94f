"""The only way out: HTTP/1.1 over libcurl, with every surprising feature off and every size and time bounded in C.

libcurl repeats a request by itself, a POST too, when a reused connection dies before it answers, which would raise a
second invoice. It cannot do so without rewinding the body, so the body comes from a read callback, and there is no seek
callback. A request without a body, of any method, has a connection of its own.

What an upstream sends unasked would be read as the answer to the next call. So a kept connection is used only while it
is quiet, and :meth:`Transport.hang_up` drops the connections of a thread that was given another call's answer.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import certifi
import msgspec
import pycurl

from gateway.stopping import STOPPING
from policies.egress import public

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from policies.concealed import Concealed
    from policies.dialect import Outgoing

#: Bytes, after decompression. An invoice with a hundred lines is about 150 KB.
MAX_ANSWER: Final = 1024 * 1024
#: The server may close a connection that was idle for longer just as we use it, and then the outcome is unknown.
MAX_IDLE_SECONDS: Final = 30
#: Connecting takes two or three round trips; a host that needs more time than this is down.
CONNECT_SECONDS: Final = 5.0

PRIVATE: Final = "the host resolves to a private address; write private: true if that is intended"
#: What setting a libcurl option can raise: pycurl's only exception class, and Python's own for an unusable value.
_NOT_TAKEN: Final = (pycurl.error, TypeError, ValueError, OverflowError, MemoryError)
_NO_SOCKET: Final[int] = pycurl.SOCKET_BAD


class NotSentError(Exception):
    """No byte of the request was written, so nothing can have happened."""


class LostError(Exception):
    """The request was written, wholly or in part, and no readable answer came."""


class Received(msgspec.Struct, frozen=True):
    """An answer: any status, a body of at most ``MAX_ANSWER`` bytes, and the headers that the dialect reads.

    A positive ``retry-after`` is always included, in whole seconds.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


class Transport:
    """Makes requests. Thread-safe: each thread has its own handles, and so its own connections.

    ``resolve`` holds entries of libcurl's RESOLVE (``host:port:address,address``), which are used instead of DNS.
    ``public`` decides whether an address may be connected to without ``private``.
    """

    def __init__(
        self,
        ca_file: str | None = None,
        *,
        resolve: Sequence[str] = (),
        idle_seconds: int = MAX_IDLE_SECONDS,
        public: Callable[[str], bool] = public,
    ) -> None:
        self._ca_file = ca_file or certifi.where()
        self._resolve, self._idle_seconds, self._public = list(resolve), idle_seconds, public
        self._local = threading.local()

    def send(self, outgoing: Outgoing, key: Concealed[str], seconds: float) -> Received:
        """Send one request with its key, never twice. ``seconds`` is the total timeout, DNS included.

        Raises :class:`NotSentError` or :class:`LostError`, whose texts are all ours.
        """
        if seconds <= 0:
            raise NotSentError("no time was left")
        guarded = not outgoing.private and not outgoing.url.startswith("http:")  # the policy allows it on loopback only
        origin = "/".join(outgoing.url.split("/", 3)[:3])
        answer = BytesIO()
        headers: dict[str, str] = {}

        def hear(line: bytes) -> None:
            name, _, value = line.partition(b":")
            if (name := name.lower()) in outgoing.heard:
                headers[name.decode("ascii")] = value.strip().decode("latin-1")

        def write(chunk: bytes) -> int:
            # libcurl aborts if fewer bytes are written than it passed.
            return answer.write(chunk) if answer.tell() + len(chunk) <= MAX_ANSWER else 0

        try:
            curl = self._handle(origin, guarded=guarded)
            curl.setopt(pycurl.WRITEFUNCTION, write)
            _set(curl, outgoing, key, hear, seconds)
        except _NOT_TAKEN:
            raise NotSentError("the request cannot be written as HTTP") from None
        try:
            _perform(curl)
        finally:
            curl.unsetopt(pycurl.HTTPHEADER)  # the key stays no longer than the call
            if outgoing.body:
                curl.kept[origin] = curl.getinfo(pycurl.ACTIVESOCKET)
        wait = curl.getinfo(pycurl.RETRY_AFTER)
        if wait > 0:
            headers["retry-after"] = str(wait)
        return Received(curl.getinfo(pycurl.RESPONSE_CODE), answer.getvalue(), headers)

    def hang_up(self) -> None:
        """Close the connections of this thread: one of them brought the answer to another call."""
        vars(self._local).clear()

    def _opener(self, refused: list[str], *, guarded: bool) -> Callable[[int, Any], int]:
        """Return a callback that opens a socket; if ``guarded``, to a public address alone.

        It adds any other to ``refused``. libcurl calls it for each address that it tries. A reused connection was
        checked when it was opened.
        """

        def open_socket(_purpose: int, address: Any) -> int:
            if guarded and not self._public(address.addr[0]):
                refused.append(address.addr[0])
                return _NO_SOCKET
            if STOPPING.over:
                return _NO_SOCKET
            try:
                number = socket.socket(address.family, address.socktype, address.protocol).detach()
            except OSError:  # such as no file descriptors left; pycurl would print a traceback
                return _NO_SOCKET
            STOPPING.opened(number)
            return number

        return open_socket

    def _handle(self, origin: str, *, guarded: bool) -> Any:
        # Two handles, so that a connection opened for a private host is never reused without ``private``.
        name = "guarded" if guarded else "unguarded"
        curl = getattr(self._local, name, None)
        if curl is None or _stirs(curl.kept.get(origin, _NO_SOCKET)):
            curl = self._new_handle(guarded=guarded)
            setattr(self._local, name, curl)  # only when configured: before, it would use the environment's proxy
        return curl

    def _new_handle(self, *, guarded: bool) -> Any:
        curl = careful_handle(self._ca_file)
        curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTPS | pycurl.PROTO_HTTP)  # the policy document decides which
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, int(CONNECT_SECONDS * 1000))
        curl.setopt(pycurl.MAXAGE_CONN, self._idle_seconds)
        curl.setopt(pycurl.RESOLVE, self._resolve)
        curl.kept = {}  # the socket of the one connection that is kept to each origin
        curl.refused = []  # the private addresses that were not connected to
        curl.setopt(pycurl.OPENSOCKETFUNCTION, self._opener(curl.refused, guarded=guarded))
        curl.setopt(pycurl.CLOSESOCKETFUNCTION, STOPPING.close)
        return curl


def _set(curl: Any, outgoing: Outgoing, key: Concealed[str], hear: Callable[[bytes], None], seconds: float) -> None:
    """Set what is particular to a request. Raises what ``_NOT_TAKEN`` lists."""
    lines = [outgoing.key + key.reveal(), *[f"{name}: {value}" for name, value in outgoing.headers.items()]]
    if not "".join(lines).isprintable():
        raise ValueError("a control character")  # libcurl sends a line break as it is, and so a second header
    curl.setopt(pycurl.URL, outgoing.url)
    body = outgoing.body or b""
    if body or outgoing.method == "POST":
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.POSTFIELDSIZE, len(body))
        curl.setopt(pycurl.READFUNCTION, BytesIO(body).read)
    else:
        curl.setopt(pycurl.HTTPGET, 1)
    curl.setopt(pycurl.CUSTOMREQUEST, outgoing.method)
    # Without a body there is nothing to rewind, so libcurl would repeat the request if a reused connection died. It is
    # not kept either: of two connections to one origin, we could not tell which one libcurl takes next.
    curl.setopt(pycurl.FRESH_CONNECT, not body)
    curl.setopt(pycurl.FORBID_REUSE, not body)
    if outgoing.heard:
        curl.setopt(pycurl.HEADERFUNCTION, hear)
    else:
        curl.unsetopt(pycurl.HEADERFUNCTION)
    curl.setopt(pycurl.TIMEOUT_MS, max(1, int(seconds * 1000)))  # 0 would be no timeout
    # Last, so that no failure leaves the key in the handle. Without "Expect: 100-continue", which costs a round trip.
    curl.setopt(pycurl.HTTPHEADER, [*lines, "Expect:"])


def _perform(curl: Any) -> None:
    """Send what was set."""
    curl.refused.clear()
    try:
        curl.perform()
    except pycurl.error as error:
        code = error.args[0]
        if curl.getinfo(pycurl.REQUEST_SIZE) > 0:
            raise LostError(f"libcurl error {code}") from None
        private = curl.refused and code == pycurl.E_COULDNT_CONNECT
        raise NotSentError(PRIVATE if private else f"libcurl error {code}") from None


def careful_handle(ca_file: str) -> Any:
    """Return a libcurl handle with every surprising feature off."""
    curl = pycurl.Curl()
    # The version that "a POST is never sent twice" is tested with; libcurl would use HTTP/2 where it is offered.
    curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    curl.setopt(pycurl.FOLLOWLOCATION, 0)
    curl.setopt(pycurl.PROXY, "")  # "" also ignores HTTP_PROXY and the like
    curl.setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
    curl.setopt(pycurl.CAINFO, ca_file)
    curl.setopt(pycurl.NOSIGNAL, 1)  # signals are not thread-safe
    # Asks for no compression, but decodes a compressed answer all the same, so that a cap counts decoded bytes.
    curl.setopt(pycurl.ACCEPT_ENCODING, "identity")
    curl.setopt(pycurl.USERAGENT, "countersign")
    return curl


def _stirs(number: int) -> bool:
    """Whether a kept connection was closed while idle, or brought bytes that no request asked for.

    libcurl itself looks only once a second.
    """
    if number == _NO_SOCKET:
        return False
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))
