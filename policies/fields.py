"""Trims an answer to the fields that a grant lists. Nothing else passes.

An upstream may add fields, leave some out, or put an object in the place of an id (as ``expand`` does). So a leaf
passes only a value of the shape that the catalogue gives; anything else, or a missing field, is answered as null.
So is a list or an object of more entries than any upstream answers with: each becomes all fields of the grant.
"""

from __future__ import annotations

import json
from functools import cache, partial
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from policies.model import Shape
from policies.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from policies.model import Entitlement

    _Decode = Callable[[bytes], msgspec.Struct]
    _Tree = Mapping[str, Shape | Mapping[str, object]]
    #: The members that we read ourselves, and what the grant lets through.
    _Read = tuple[Mapping[str, Any], Mapping[str, object]]
    _Reader = Callable[[bytes, Entitlement], _Read]

#: What an answer is, and what tells it from the answer to another call.
_OWN: Final = ("object", "id", "customer", "livemode", "metadata")
#: Entries of one list or one object of any names. A page of Stripe's has at most 100, and metadata 50.
MAX_ENTRIES: Final = 250
#: Entries, members, objects and lists of a whole answer: 16 bytes each in the largest answer, less than any real one
#: has. A decoder needs up to some hundred bytes for each.
MAX_PARTS: Final = 65_536
#: A shorter body has no room for so many.
_ROOM: Final = 2 * MAX_PARTS
_SCALAR: Final = str | int | float | bool | None
_BOUND: Final = msgspec.Meta(max_length=MAX_ENTRIES)
_TYPES: Final[dict[object, Any]] = {
    Shape.SCALAR: _SCALAR,
    Shape.SCALARS: Annotated[list[_SCALAR], _BOUND] | None,  # type: ignore[valid-type]  # msgspec accepts it
    Shape.MAP: Annotated[dict[str, _SCALAR], _BOUND] | None,  # type: ignore[valid-type]
}


def tree_of(paths: Iterable[str], shapes: Mapping[str, Shape]) -> dict[str, Shape | Mapping[str, object]]:
    """Turn dotted paths into the tree that :func:`trim` walks: ``lines.data.amount`` is one branch."""
    tree: dict[str, Shape | Mapping[str, object]] = {}
    for path in paths:
        *parents, leaf = path.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})  # type: ignore[assignment]  # catalogue paths never pass through a leaf
        node[leaf] = shapes[path]
    return tree


def read(body: bytes, entitlement: Entitlement) -> _Read:
    """Read an answer: the members that we read ourselves, and what the grant lets through.

    A grant lists few of an invoice's hundred members, so only those are decoded. An answer that does not match the
    catalogue is decoded whole and trimmed. An answer that is not a JSON object counts as an empty one; so does one of
    more than ``MAX_PARTS``.
    """
    if len(body) > _ROOM and _crowded(body):
        return _whole(None, entitlement.response)
    return _READERS[entitlement.operation.id, entitlement.response_fields](body, entitlement)


def _exact(decode: _Decode, body: bytes, entitlement: Entitlement) -> _Read:
    """Read an answer with the decoder of the grant's own list."""
    tree = entitlement.response
    try:
        members = msgspec.to_builtins(decode(body))
    except (ValueError, RecursionError):
        return _whole(decoded(body), tree)
    return members, {name: members[name] for name in tree}


def _shared(body: bytes, entitlement: Entitlement) -> _Read:
    """Read an answer with the decoder of all fields, and pick those that the grant lists."""
    operation = entitlement.operation.id
    try:
        every = _every(operation)(body)
    except (ValueError, RecursionError):
        answer = decoded(body)
        if answer is None:  # a field that is unreadable but not granted must not hide the granted ones
            return _exact(_decoder(operation, entitlement.response_fields), body, entitlement)
        return _whole(answer, entitlement.response)
    return {name: getattr(every, name) for name in own(operation)}, _picked(every, entitlement.response)


def _whole(answer: object, tree: _Tree) -> _Read:
    members = answer if isinstance(answer, dict) else {}
    return members, trim(members, tree)


def _picked(value: Any, branch: Any) -> Any:
    if isinstance(value, list):
        return [_picked(item, branch) for item in value]
    if value is None:
        return None
    return {
        name: _picked(getattr(value, name), inner) if isinstance(inner, dict) else getattr(value, name)
        for name, inner in branch.items()
    }


class _Readers(dict[tuple[str, tuple[str, ...]], "_Reader"]):
    """The reader for each response list, by operation and list.

    A decoder takes 0.03 to 3 ms to build, and about 1 KB of memory for each field. So decoders are never evicted. Once
    they have ``room`` fields in all, further lists share the decoder of all fields, which takes some 6 microseconds
    more per call and no memory.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def __missing__(self, key: tuple[str, tuple[str, ...]]) -> _Reader:
        operation, paths = key
        size = len(paths)
        if size > self._room:
            return _shared
        self._room -= size
        reader = partial(_exact, _decoder(operation, paths))
        if self.setdefault(key, reader) is not reader:  # another thread's, which has counted it
            self._room += size
        return reader


#: About 1,000 lists of eight fields, or 8 to 13 MB.
_READERS: Final = _Readers(room=8_192)


@cache  # one for each operation
def _every(operation: str) -> _Decode:
    return _decoder(operation, OPERATIONS[operation].fields)


@cache
def own(operation: str) -> tuple[str, ...]:
    """Return the members that we read ourselves, whatever the grant lists."""
    spends = OPERATIONS[operation].spends
    return (*_OWN, *((spends.amount, spends.currency) if spends is not None else ()))


def _decoder(operation: str, paths: Iterable[str]) -> _Decode:
    fields = OPERATIONS[operation].fields
    tree = tree_of((path for path in paths if path in fields), fields)
    return msgspec.json.Decoder(_type_of({**dict.fromkeys(own(operation)), **tree})).decode


def _type_of(tree: Mapping[str, object]) -> type[msgspec.Struct]:
    """Return the type of an object with the members that ``tree`` names. A missing member is null."""
    return _struct(tuple((name, _type_of_member(branch), None) for name, branch in tree.items()))


@cache  # most lists have the same branches
def _struct(members: tuple[tuple[str, Any, None], ...]) -> type[msgspec.Struct]:
    made = msgspec.defstruct("Members", members)
    # msgspec finds out what a type holds when it first decodes it. Another thread that decodes it meanwhile crashes the
    # process, so that is done before another thread can have it.
    msgspec.json.Decoder(made)
    return made


def _type_of_member(branch: object) -> Any:
    if isinstance(branch, dict):
        inner: Any = _type_of(branch)
        return inner | Annotated[list[inner], _BOUND] | None
    return _TYPES.get(branch, Any)


def trim(answer: object, tree: _Tree) -> dict[str, object]:
    """Return only what ``tree`` names, in its order. A member that is missing or has another shape is null."""
    given = answer if isinstance(answer, dict) else {}
    return {name: _leaf(given.get(name), branch) for name, branch in tree.items()}


def narrow(answer: Mapping[str, object], tree: Mapping[str, object]) -> dict[str, object]:
    """Trim an already trimmed answer again, keeping its order.

    A kept answer is repeated as it was, unless the policy now grants less.
    """
    return {name: _narrowed(value, tree[name]) for name, value in answer.items() if name in tree}


def _narrowed(value: object, branch: object) -> object:
    if not isinstance(branch, dict):
        return value
    if isinstance(value, list):
        return [_narrowed(item, branch) for item in value]
    return narrow(value, branch) if isinstance(value, dict) else value


def _leaf(value: object, branch: object) -> object:
    if branch is Shape.SCALAR:
        return value if _scalar(value) else None
    if branch is Shape.SCALARS:
        return value if isinstance(value, list) and len(value) <= MAX_ENTRIES and all(map(_scalar, value)) else None
    if branch is Shape.MAP:
        few = isinstance(value, dict) and len(value) <= MAX_ENTRIES
        return value if few and all(map(_scalar, value.values())) else None  # type: ignore[attr-defined]  # a dict
    if isinstance(value, list):
        few = len(value) <= MAX_ENTRIES
        return [trim(item, branch) for item in value] if few else None  # type: ignore[arg-type]  # no leaf
    return trim(value, branch) if isinstance(value, dict) else None  # type: ignore[arg-type]  # the same


def _scalar(value: object) -> bool:
    # 1e999 is read as an infinite float, which JSON cannot express.
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and isfinite(value))


def decoded(body: bytes) -> Any:
    """Decode JSON. Return None if it cannot be read, or has more than ``MAX_PARTS``."""
    if len(body) > _ROOM and _crowded(body):
        return None
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        return None
    except ValueError:
        # Tolerated here: a lone surrogate, which a JavaScript upstream writes where it truncates a text, and a number
        # too large for msgspec. Neither is a reason to hide that an invoice was created.
        try:
            return _mended(json.loads(body.decode(), parse_constant=_refused))
        except (ValueError, RecursionError):
            return None


def _crowded(body: bytes) -> bool:
    """Whether JSON has more than ``MAX_PARTS``: what begins an object or a list, or follows a comma in one."""
    return body.count(b",") + body.count(b"{") + body.count(b"[") > MAX_PARTS


def _mended(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_mended(name): _mended(inner) for name, inner in value.items()}
        case list():
            return [_mended(inner) for inner in value]
    return value


def _refused(constant: str) -> None:
    raise ValueError(constant)
