"""What has arrived of the next call on a connection, and whether a thread can take it without waiting for more.

It reads no more of a head than where it ends and how long the body is; gunicorn's parser then reads all of it, and
refuses what is not HTTP. The rules of the two must agree, or a call is given to a thread too early, and refused as
incomplete.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.reading import MAX_BODY

#: Of the request line: our own limit for the target is half of that, and is told on record.
MAX_LINE: Final = 4094
#: Of the whole head, request line included.
MAX_HEAD: Final = 32 * 1024
#: Of a head, and a body in chunks with what is around them.
MAX_CHUNKED: Final = MAX_HEAD + 2 * MAX_BODY
#: Of a length. More are refused, whatever it is.
MAX_DIGITS: Final = 9
#: Of the line before a chunk.
MAX_SIZE: Final = 256
#: Of a body's chunks: the parser takes microseconds for each, and no client cuts so short a body so finely.
MAX_CHUNKS: Final = 4096

_END: Final = b"\r\n\r\n"
#: A line break that HTTP does not know, so that the head may never end.
_BARE = re.compile(rb"(?:\A|[^\r])\n")
_FRAMING = re.compile(rb"\r\n((?i:content-length|transfer-encoding|expect)):[ \t]*([^\r\n]*)")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,6}")


class Arriving:
    """Bytes of a connection, from where its next call begins."""

    __slots__ = ("_chunk", "_counted", "_searched", "_unclear", "awaits_continue", "data", "need")

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        #: How many bytes the call has; 0 while that is unknown.
        self.need = 0
        #: Whether the client holds its body back until it is told to go on (RFC 9110, 10.1.1).
        self.awaits_continue = False
        #: How much was searched for the end of the head, or of the trailers; where the next chunk begins, 0 for a body
        #: without chunks; how many are before it.
        self._searched = self._chunk = self._counted = 0
        #: Whether the body is longer than is read, or its end is unclear: then the connection ends with the call.
        self._unclear = False

    @property
    def whole(self) -> bool:
        """Whether all of the call is there."""
        return 0 < self.need <= len(self.data) and not self._unclear

    @property
    def head(self) -> bool:
        """Whether its head is there."""
        return bool(self.need or self._chunk)

    def ready(self) -> bool:
        """Whether a thread can take the call: all of it is there, or enough to refuse it. To ask whenever more came."""
        if self.need:
            return self.whole or self._unclear
        if not self._chunk:
            data, since = self.data, self._searched
            end = data.find(_END, max(0, since - 3))
            if end < 0:
                self._searched = len(data)
                return self.excessive() or _BARE.search(data, max(0, since - 1)) is not None
            self._frame(end + 4)
            if not self._chunk:
                return self.ready()
        return self._chunks() or self.whole or len(self.data) > MAX_CHUNKED

    def excessive(self) -> bool:
        """Whether the head is longer than it may be, though it has not ended."""
        size = len(self.data)
        return size > MAX_HEAD or (size > MAX_LINE + 2 and self.data.find(b"\r\n", 2, MAX_LINE + 4) < 0)

    def _frame(self, end: int) -> None:
        """Find out how the body is delimited. Where that is unclear, the connection ends with the call."""
        said = {}
        for name, value in _FRAMING.findall(self.data, 0, end):
            name = name.lower()  # noqa: PLW2901 - the same
            if name in said:
                self.need, self._unclear = end, True
                return
            said[name] = value.strip()
        length, coding = said.get(b"content-length"), said.get(b"transfer-encoding")
        if length is None and coding is None:
            self.need = end
            return
        self.awaits_continue = said.get(b"expect", b"").lower() == b"100-continue"
        if coding is None and length is not None and length.isdigit():
            self._unclear = len(length) > MAX_DIGITS or int(length) > MAX_BODY
            self.need = end + (1 if self._unclear else int(length))
        elif length is None and coding is not None and coding.lower().endswith(b"chunked"):
            self._chunk = end
        else:
            self.need, self._unclear = end, True

    def _chunks(self) -> bool:
        """Go on to the last chunk. Return whether the parser will refuse what is there."""
        data = self.data
        while (line := data.find(b"\r\n", self._chunk)) >= 0:
            size = _SIZE.fullmatch(data[self._chunk : line].partition(b";")[0].strip())
            if size is None:
                return True
            if not int(size[0], 16):  # the last; trailers may follow
                end = data.find(_END, max(line, self._searched - 3))
                self.need, self._searched = end + 4 if end >= 0 else 0, len(data)
                return end < 0 and len(data) - line > MAX_HEAD
            self._chunk, self._counted = line + 2 + int(size[0], 16) + 2, self._counted + 1
            if self._counted > MAX_CHUNKS:
                return True
        return len(data) - self._chunk > MAX_SIZE
