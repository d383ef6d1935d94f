"""Edits a caller's keys in the text of a policy document. Comments and layout are kept.

An edit is a few cuts and insertions at positions that the YAML reader gives. It covers both of YAML's styles, but not
every possible layout, so :mod:`console.keys` reads the result again and checks its meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from policies.document import LOADER

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The usual indentation, for a caller that is not in the document yet.
_INDENT: Final = 6

_COMMA = re.compile(r"\s*,[ \t]*")
_SPREAD = re.compile(r"\s*,\s*")
_DASH = re.compile(r" *- +")
_REST = re.compile(r"[ \t]*,?[ \t]*(#.*)?\r?\n")


class LayoutError(Exception):
    """A layout that cannot be edited here. The text says where it is."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The position of one key of a caller in the text."""

    text: str
    credentials: Any
    number: int
    item: Any
    """The entry of ``credentials``, and in it the object behind ``key:``."""
    key: Any

    @property
    def newline(self) -> str:
        return "\r\n" if "\r\n" in self.text else "\n"

    def odd(self) -> LayoutError:
        return LayoutError(f"line {self.item.start_mark.line + 1}")


#: A start, an end, and the text to write between them.
_Edit = tuple[int, int, str]


def entry(key_id: str, sha256: str, *, expires: str | None = None, connection: str | None = None) -> str:
    """Return the entry of a key in a document. ``connection`` is the one that it is tied to."""
    said = {"id": key_id, "sha256": sha256, "expires": expires, "connection": connection}
    return f"key: {{{', '.join(f'{name}: {value}' for name, value in said.items() if value is not None)}}}"


def line(text: str, caller: str, said: str) -> str:
    """Return an entry as a line below ``credentials``, indented as this caller's others are."""
    node = _credentials(text, caller)
    if node is not None and node.flow_style:
        return f", {{{said}}}"
    return f"{' ' * (_INDENT if node is None else node.start_mark.column)}- {said}"


def rotated(text: str, caller: str, key_id: str, said: str, expires: str | None) -> str:
    """Insert a new entry after a key's and, with ``expires``, give the key that date. Raises LayoutError."""
    place = _find(text, caller, key_id)
    return _applied(text, [*([] if expires is None else [_expiry(place, expires)]), _behind(place, said)])


def without(text: str, caller: str, key_id: str) -> str:
    """Remove a key that is not its caller's only credential. Raises LayoutError."""
    place = _find(text, caller, key_id)
    return _applied(text, [_removal_of_item(place) if place.credentials.flow_style else _removal_of_lines(place)])


def credentials_of(text: str, caller: str) -> int:
    """Return how many credentials of any kind a caller has."""
    node = _credentials(text, caller)
    return 0 if node is None else len(node.value)


def _credentials(text: str, caller: str) -> Any:
    """Return the list node of a caller's credentials, or None if the document does not have the caller."""
    # libyaml does not count a byte order mark.
    found: Any = yaml.compose(text.removeprefix("\ufeff"), Loader=LOADER)
    for name in ("callers", caller, "credentials"):
        found = None if found is None else _member(found, name)
    return found


def _member(node: Any, name: str) -> Any:
    return next((value for key, value in node.value if key.value == name), None)


def _find(text: str, caller: str, key_id: str) -> _Place:
    text = text.removeprefix("\ufeff")
    credentials = _credentials(text, caller)
    for number, item in enumerate(credentials.value):
        key = _member(item, "key")
        if key is not None and _member(key, "id").value == key_id:
            return _Place(text, credentials, number, item, key)
    raise LayoutError(f"line {credentials.start_mark.line + 1}")


def _applied(text: str, edits: Iterable[_Edit]) -> str:
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    text, done, written = text.removeprefix("\ufeff"), 0, []
    for start, end, instead in sorted(edits, key=lambda edit: edit[0]):
        written += [text[done:start], instead]
        done = end
    return mark + "".join(written) + text[done:]


def _end(node: Any) -> int:
    """The end of a node's last character. The end mark of a block comes after comments and empty lines."""
    while not isinstance(node, yaml.ScalarNode) and not node.flow_style:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    end: int = node.end_mark.index
    return end


def _end_of_line(text: str, index: int) -> int:
    end = text.find("\n", index)
    if end < 0:
        return len(text)
    return end - (text[end - 1] == "\r")


def _expiry(place: _Place, date: str) -> _Edit:
    written = _member(place.key, "expires")
    if written is not None:
        return written.start_mark.index, written.end_mark.index, date
    if place.key.flow_style:
        end = _end(place.key.value[-1][1])
        return end, end, f", expires: {date}"
    end = _end_of_line(place.text, _end(place.key))
    return end, end, f"{place.newline}{' ' * place.key.start_mark.column}expires: {date}"


def _behind(place: _Place, said: str) -> _Edit:
    if place.credentials.flow_style:
        end = _end(place.item)
        return end, end, f", {{{said}}}"
    end = _end_of_line(place.text, _end(place.item))
    return end, end, f"{place.newline}{' ' * place.credentials.start_mark.column}- {said}"


def _removal_of_lines(place: _Place) -> _Edit:
    start = place.text.rfind("\n", 0, place.item.start_mark.index) + 1
    if not _DASH.fullmatch(place.text, start, place.item.start_mark.index):
        raise place.odd()
    end = place.text.find("\n", _end(place.item)) + 1
    return start, end or len(place.text), ""


def _removal_of_item(place: _Place) -> _Edit:
    text, start, end = place.text, place.item.start_mark.index, _end(place.item)
    line, rest = text.rfind("\n", 0, start) + 1, _REST.match(text, end)
    if rest and not text[line:start].strip():  # it has its lines to itself; a comma before them may stay
        return line, rest.end(), ""
    before = _end(place.credentials.value[place.number - 1]) if place.number else end
    if _COMMA.fullmatch(text, before, start):
        return before, end, ""
    comma = _COMMA.match(text, end)
    if comma:
        return start, comma.end(), ""
    if not _SPREAD.fullmatch(text, before, start):
        raise place.odd()
    return before, end, ""
