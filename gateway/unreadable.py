"""What a client sends that the server cannot read as a call -> the refusal that says why.

gunicorn would answer with a page of HTML, of which there is no record, and which repeats a header that may hold a key.
"""

from __future__ import annotations

import re
from typing import Final

from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidHeader,
    InvalidHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ObsoleteFolding,
    UnsupportedTransferCoding,
)

from gateway.edges import meaning
from gateway.underscores import UnderscoreError
from policies.refusals import BadCall, HeaderMalformed, HeadersTooLarge, NotHttp, TargetTooLong

#: So much of the address is recorded of such a call: its names come early.
MAX_NAMED: Final = 1024

#: By the name that the parser gives. It may also give the whole line, and so a key: no text of its own is told.
_SENTENCES: Final = {
    **{
        name.upper(): f"{name} must be written once, in plain characters and without a line break."
        for name in ("Host", "Content-Type", "Authorization", "x-api-key", "Idempotency-Key")
    },
    "CONTENT-LENGTH": "Content-Length must be a whole number, written once, and not beside Transfer-Encoding.",
    "TRANSFER-ENCODING": "Transfer-Encoding must be chunked, written once, or left out.",
}
_LINE: Final = "A header cannot be read. Write each on a line of its own: a name without spaces, a colon, a value."
_MEANS: Final[dict[type[BaseException], tuple[type[BadCall], str | None]]] = {
    LimitRequestLine: (TargetTooLong, None),
    LimitRequestHeaders: (HeadersTooLarge, None),
    InvalidHeader: (HeaderMalformed, _LINE),
    InvalidHeaderName: (HeaderMalformed, _LINE),
    ObsoleteFolding: (HeaderMalformed, _LINE),
    UnsupportedTransferCoding: (HeaderMalformed, _SENTENCES["TRANSFER-ENCODING"]),
    ExpectationFailed: (HeaderMalformed, "Expect must be 100-continue, or left out."),
}
#: Only what every parser takes for an address: what comes behind another character is left out.
_FIRST_LINE: Final = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/[A-Za-z0-9._~%%?&=+/-]{0,%d})" % MAX_NAMED
)
_ACCEPT: Final = re.compile(rb"\r\n((?i:accept):[ -~]{1,255}\r\n)")


def why(error: Exception) -> BadCall:
    """Return the refusal of a call that gunicorn's parser did not take."""
    kind, said = meaning(_MEANS, error) or (NotHttp, None)
    if isinstance(error, UnderscoreError):
        return kind(str(error))
    return kind(_SENTENCES.get(str(getattr(error, "hdr", None)), said))


def stand_in(data: bytes | bytearray, ours: tuple[str, ...]) -> bytes:
    """Return the head of a call that stands for one that cannot be read, with what is legible of it.

    No host has its name, so that it is refused. A path that begins as one in ``ours`` is left out: not all that lies
    there reads the call.
    """
    line, accept = _FIRST_LINE.match(data), _ACCEPT.search(data)
    method, target = line.groups() if line is not None else (b"GET", b"/")
    if target.startswith(tuple(one.encode() for one in ours)):
        target = b"/"
    return b"%b %b HTTP/1.1\r\nHost: /\r\n%b\r\n" % (method, target, accept[1] if accept is not None else b"")
