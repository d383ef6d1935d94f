"""Reads exports of the record: files, standard input, gzip; a JSON value a line, or the array that gcloud prints.

Memory is bounded whatever the size: a file is read in chunks, and handed on one entry at a time.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
import zlib
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from io import BufferedIOBase

CHUNK: Final = 256 * 1024
#: Cloud Logging takes 256 KB an entry. What is longer is cut off, and so not JSON.
MAX_ENTRY: Final = 4 * 1024 * 1024
#: The beginning of a line as we write it. It is found behind the stump of another, too, which a full disk has left:
#: inside a line its quotation marks would be escaped.
LINE: Final = b'{"severity":"'

#: Where a line as we write it has its labels. Cloud Logging moves them to the entry, and adds others.
LABELS: Final = "logging.googleapis.com/labels"

_GZIP: Final = b"\x1f\x8b"
#: What Windows' shells begin a file with: in UTF-8, and in UTF-16, which PowerShell's > writes.
_BYTE_ORDER_MARK: Final = codecs.BOM_UTF8
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BETWEEN = re.compile(rb"[\s,\[\]]*")
#: A string, a brace, or the beginning of a string whose end was not read yet.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}"]', re.DOTALL)
#: The end of an entry in an array as gcloud prints it.
_INDENTED: Final = b"\n  }"
_NEXT_ENTRY = re.compile(rb"\n\s*\{")
#: More digits are no number of ours, and Python refuses to read thousands of them.
_MAX_DIGITS: Final = 20
NESTED: Final = "it is nested more deeply than any line of the record"

_decode: Final = msgspec.json.Decoder().decode
_validate: Final = msgspec.json.Decoder(msgspec.Raw).decode
_encode: Final = msgspec.json.Encoder().encode
#: What msgspec raises for bytes that are not JSON in UTF-8, or nested too deeply.
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)


class ExportError(Exception):
    """A file that cannot be read, or not to its end. The text says which, and why."""


class BrokenError(Exception):
    """Not JSON."""


class ForgedError(Exception):
    """An entry that the record does not have, whoever wrote it. The text says why."""


@dataclass(slots=True)
class Meter:
    """How far the reading came, in bytes as they lie on the disk."""

    total: int | None = None
    """Of all files; None if there is a stream among them."""
    read: int = 0


def size_of(paths: Iterable[str]) -> int | None:
    """Return the bytes of all files; None if there is a stream among them. Raises :class:`ExportError`."""
    total: int | None = 0
    for path in paths:
        if path == "-":
            total = None
            continue
        try:
            file = Path(path).stat()
        except OSError as error:
            raise ExportError(f"{path}: it cannot be read ({error.strerror})") from None
        total = None if total is None or not Path(path).is_file() else total + file.st_size
    return total


def entries(path: str, meter: Meter) -> Iterator[tuple[int, bytes]]:
    """Yield each entry of a file, or of standard input for ``-``, with the number of its first line.

    Raises :class:`ExportError`, after what could be read.
    """
    if path == "-":
        yield from _split(_in_utf_8(_chunks(cast("BufferedIOBase", sys.stdin.buffer), path, meter)))
        return
    try:
        with Path(path).open("rb") as file:
            yield from _split(_in_utf_8(_chunks(file, path, meter)))
    except OSError as error:
        raise ExportError(f"{path}: it cannot be read ({error.strerror})") from None


class Found(NamedTuple):
    """A line of the record, as an entry holds it."""

    content: dict[str, Any]
    severity: Any
    message: Any
    labels: Mapping[str, Any]


def content_of(raw: bytes) -> tuple[Found | None, bytes | None]:
    """Return the line of the record that an entry holds, None for another program's; and a stump before it, if any.

    Raises :class:`BrokenError` and :class:`ForgedError`.
    """
    try:
        return _strictly(raw), None
    except BrokenError:
        if raw.startswith(_BYTE_ORDER_MARK):  # of the second of two files that were put into one
            return content_of(raw.removeprefix(_BYTE_ORDER_MARK))
        begins = raw.rfind(LINE)
        if begins <= 0:
            raise
    return _strictly(raw[begins:]), raw[:begins]


def _strictly(raw: bytes) -> Found | None:
    try:  # what is written again as it was read has no name twice
        entry = _decode(raw)
        written = _encode(entry)
        if written == raw or written == msgspec.json.format(raw, indent=-1):
            return _ours(entry)
    except UNREADABLE:
        pass
    return _by_json(raw)


def _by_json(raw: bytes) -> Found | None:
    """Read what Python's own reader takes, too, and refuse what that reads differently from others."""
    odd = _Oddities()
    try:
        entry = json.loads(
            raw,
            object_pairs_hook=odd.members,
            parse_int=odd.integer,
            parse_float=odd.number,
            parse_constant=odd.number,
        )
    except RecursionError:
        raise ForgedError(NESTED) from None
    except ValueError:
        raise BrokenError from None
    found = _ours(entry)
    if odd.repeated and (found is not None or {"countersign", "jsonPayload"} & set(odd.repeated)):
        raise ForgedError(f"it has {odd.repeated[0]!a} twice, so that two readers would read it differently")
    if found is None:
        return None
    if odd.beyond:
        raise ForgedError("it holds a number that is larger than any of the record's")
    try:
        _encode(found)
    except UnicodeEncodeError:
        raise ForgedError("it holds half a character (a lone surrogate), which the record never does") from None
    except RecursionError:
        raise ForgedError(NESTED) from None
    return found


class _Oddities:
    """Notes what a reader of JSON drops or changes without a word."""

    def __init__(self) -> None:
        self.repeated: list[str] = []
        self.beyond = False
        """Whether there is a number that Python takes for infinite or none, which is hashed as null is."""

    def members(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self.repeated.extend(name for name in found if names.count(name) > 1)
        return found

    def integer(self, digits: str) -> int | float:
        return int(digits) if len(digits) <= _MAX_DIGITS else self.number("inf")

    def number(self, text: str) -> float:
        found = float(text)
        self.beyond = self.beyond or not isfinite(found)
        return found


def _ours(entry: Any) -> Found | None:
    if not isinstance(entry, dict):
        return None
    payload = entry.get("jsonPayload")
    nested = payload.get("countersign") if isinstance(payload, dict) else None
    beside = entry.get("countersign")
    if isinstance(beside, dict) and payload is not None:
        raise ForgedError("it has two contents, one beside jsonPayload. Cloud Logging writes one")
    content, around = (beside, entry) if payload is None else (nested, payload)
    if not isinstance(content, dict):
        return None
    labels = entry.get(LABELS if payload is None else "labels")
    return Found(content, entry.get("severity"), around.get("message"), labels if isinstance(labels, dict) else {})


def _chunks(file: BufferedIOBase, path: str, meter: Meter) -> Iterator[bytes]:
    chunk = _metered(file, meter)
    if chunk == _GZIP[:1]:  # of a slow pipe
        chunk += _metered(file, meter)
    if not chunk.startswith(_GZIP):
        while chunk:
            yield chunk
            chunk = _metered(file, meter)
        return
    unzip = zlib.decompressobj(wbits=31)
    try:
        while chunk:
            yield unzip.decompress(chunk, CHUNK)
            chunk = unzip.unconsumed_tail
            if unzip.eof:  # gzipped files may be put one behind the other
                chunk = unzip.unused_data.lstrip(b"\0") or _metered(file, meter)
                unzip = zlib.decompressobj(wbits=31) if chunk else unzip
            chunk = chunk or _metered(file, meter)
    except zlib.error:
        raise ExportError(f"{path}: it is damaged. What stands behind the damage was not read") from None
    if not unzip.eof:
        raise ExportError(f"{path}: it ends in the middle of its compressed data. Copy the whole file") from None


def _metered(file: BufferedIOBase, meter: Meter) -> bytes:
    chunk = file.read1(CHUNK)  # read() goes on within C, where Ctrl-C may be missed until a pipe has more
    meter.read += len(chunk)
    return chunk


def plain(data: bytes) -> bytes:
    """Return a text in UTF-8 and without a byte order mark, as Linux' shells would have written it."""
    return b"".join(_in_utf_8(iter((data,)))).removeprefix(_BYTE_ORDER_MARK)


def _in_utf_8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same text in UTF-8. What is damaged in it becomes a character that no line of the record has."""
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) >= len(_BYTE_ORDER_MARK):
            break
    if not first.startswith(_UTF_16):
        yield first
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder("utf-16")("replace")
    yield decoder.decode(first).encode()
    for chunk in chunks:
        yield decoder.decode(chunk).encode()
    yield decoder.decode(b"", final=True).encode()


def _split(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield entries: of an array, or of objects that take several lines, if the file begins like one; else lines."""
    first = b""
    for chunk in chunks:
        first = (first + chunk).removeprefix(_BYTE_ORDER_MARK)
        if first.strip():
            break
    if first.lstrip()[:1] == b"[" or first.lstrip().partition(b"\n")[0].strip() == b"{":
        yield from _values(first, chunks)
    else:
        yield from _lines(first, chunks)


def _lines(rest: bytes, chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    chunk: bytes | None = rest
    rest = b""
    while chunk is not None:
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()[:MAX_ENTRY]
        for number, line in enumerate(lines, number + 1):  # noqa: B020 - goes on counting
            yield number, line
        chunk = next(chunks, None)
    yield number + 1, rest


def _values(buffer: bytes, chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    number, at, more = 1, 0, True
    while True:
        begin = at + len(_BETWEEN.match(buffer, at)[0])  # type: ignore[index]  # it matches nothing, too
        number += buffer.count(b"\n", at, begin)
        end = _end_of_value(buffer, begin)
        if not end and more and len(buffer) - begin < MAX_ENTRY:
            chunk = next(chunks, None)
            more = chunk is not None
            buffer, at = buffer[begin:] + (chunk or b""), 0
            continue
        if begin == len(buffer):
            return
        value = buffer[begin : end or begin + MAX_ENTRY]
        if not end or not _is_value(value):  # goes on with what looks like the next entry
            following = _NEXT_ENTRY.search(buffer, begin + 1)
            end = following.start() if following is not None else len(buffer)
        yield number, value
        number += buffer.count(b"\n", begin, end)
        at = end


def _end_of_value(buffer: bytes, begin: int) -> int:
    """Return where the value ends; 0 if that was not read yet. Only objects matter; others end with their line."""
    if not buffer.startswith(b"{", begin):
        return buffer.find(b"\n", begin) + 1
    end = buffer.find(_INDENTED, begin) + len(_INDENTED)
    if end >= len(_INDENTED) and _is_value(buffer[begin:end]):
        return end
    depth = 0
    for token in _TOKEN.finditer(buffer, begin):
        match token[0]:
            case b"{":
                depth += 1
            case b"}":
                depth -= 1
                if depth == 0:
                    return token.end()
            case b'"':
                return 0
    return 0


def _is_value(text: bytes) -> bool:
    try:
        _validate(text)
    except UNREADABLE:
        return False
    return True
