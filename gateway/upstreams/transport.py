"""The one way out. HTTP over libcurl, with everything that could surprise us switched off or bounded in C.

libcurl repeats a POST by itself when a reused connection dies before it answers, which would raise a second invoice.
It cannot where it has no way to rewind the body, so the body is handed over through a read callback, and without one
to seek with.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import certifi
import msgspec
import pycurl

if TYPE_CHECKING:
    from policies.concealed import Concealed
    from policies.dialect import Outgoing

#: An invoice with a hundred lines is about 150 KB. Counted after decompression.
MAX_ANSWER: Final = 1024 * 1024
#: A connection idle for longer may be closed by the other side just as we use it, and then the outcome is unknown.
MAX_IDLE_SECONDS: Final = 30
#: Opening takes two or three round trips; a host that needs more time than this is down.
CONNECT_SECONDS: Final = 5.0


class NotSentError(Exception):
    """No byte of the request was written, so nothing can have happened."""


class LostError(Exception):
    """The request was written, wholly or in part, and no answer came that can be read."""


class Received(msgspec.Struct, frozen=True):
    """An answer: any status, a body of at most ``MAX_ANSWER`` bytes, and the headers that were listened to.

    ``retry-after`` is always among these where it says something, in whole seconds.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


class Transport:
    """Makes requests. Safe for threads: each has its own handle, and so its own connections."""

    def __init__(self, ca_file: str | None = None) -> None:
        self._ca_file = ca_file or certifi.where()
        self._local = threading.local()

    def send(self, outgoing: Outgoing, key: Concealed[str], seconds: float) -> Received:
        """Send one request with its key, and never twice. ``seconds`` bounds it all, from name look-up to last byte.

        Raises :class:`NotSentError` or :class:`LostError`; neither carries a word of the other side.
        """
        if seconds <= 0:
            raise NotSentError("no time was left")
        curl = self._handle()
        answer = BytesIO()
        headers: dict[str, str] = {}

        def hear(line: bytes) -> None:
            name, colon, value = line.partition(b":")
            if colon and (name := name.lower()) in outgoing.heard:
                headers[name.decode("ascii")] = value.strip().decode("latin-1")

        def write(chunk: bytes) -> int:
            # Fewer bytes than were given makes libcurl give up.
            return answer.write(chunk) if answer.tell() + len(chunk) <= MAX_ANSWER else 0

        lines = [f"{name}: {value}" for name, value in outgoing.headers.items()]
        # "Expect:" so that no round trip asks whether a body is welcome.
        curl.setopt(pycurl.URL, outgoing.url)
        curl.setopt(pycurl.HTTPHEADER, [outgoing.key + key.reveal(), *lines, "Expect:"])
        if outgoing.body is not None:
            curl.setopt(pycurl.POST, 1)
            curl.setopt(pycurl.POSTFIELDSIZE, len(outgoing.body))
            curl.setopt(pycurl.READFUNCTION, BytesIO(outgoing.body).read)
        else:
            curl.setopt(pycurl.HTTPGET, 1)
        if outgoing.heard:
            curl.setopt(pycurl.HEADERFUNCTION, hear)
        else:
            curl.unsetopt(pycurl.HEADERFUNCTION)
        curl.setopt(pycurl.WRITEFUNCTION, write)
        curl.setopt(pycurl.TIMEOUT_MS, max(1, int(seconds * 1000)))
        try:
            curl.perform()
        except pycurl.error as error:
            code = error.args[0]
            if curl.getinfo(pycurl.REQUEST_SIZE) == 0:
                raise NotSentError(f"libcurl error {code}") from None
            raise LostError(f"libcurl error {code}") from None
        finally:
            curl.unsetopt(pycurl.HTTPHEADER)  # the key stays no longer than the call
        wait = curl.getinfo(pycurl.RETRY_AFTER)
        if wait > 0:
            headers["retry-after"] = str(wait)
        return Received(curl.getinfo(pycurl.RESPONSE_CODE), answer.getvalue(), headers)

    def _handle(self) -> Any:
        curl = getattr(self._local, "curl", None)
        if curl is None or _closed_by_the_other_side(curl):
            # Kept only once it is set up whole: half a handle would obey the environment's proxy.
            curl = self._local.curl = self._new_handle()
        return curl

    def _new_handle(self) -> Any:
        curl = careful_handle(self._ca_file)
        curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTPS | pycurl.PROTO_HTTP)  # which, the policy document decides
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, int(CONNECT_SECONDS * 1000))
        curl.setopt(pycurl.MAXAGE_CONN, MAX_IDLE_SECONDS)
        return curl


def careful_handle(ca_file: str) -> Any:
    """Return a libcurl handle with everything off that could surprise us."""
    curl = pycurl.Curl()
    curl.setopt(pycurl.FOLLOWLOCATION, 0)
    curl.setopt(pycurl.PROXY, "")  # "" also keeps HTTP_PROXY and its like out
    curl.setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
    curl.setopt(pycurl.CAINFO, ca_file)
    curl.setopt(pycurl.NOSIGNAL, 1)  # signals and threads do not go together
    # Asks for no compression, and undoes one that comes all the same, so that a cap is on what was meant.
    curl.setopt(pycurl.ACCEPT_ENCODING, "identity")
    curl.setopt(pycurl.USERAGENT, "countersign")
    return curl


def _closed_by_the_other_side(curl: Any) -> bool:
    """Whether the last connection has ended while idle. libcurl looks itself only after a second of idleness."""
    number = curl.getinfo(pycurl.ACTIVESOCKET)
    if number < 0:
        return False
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))  # nothing is due between calls, so whatever comes is an end or not to be trusted
