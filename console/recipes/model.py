"""The data types of recipes. A recipe is filled with holes, and every hole is text that may hold anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

#: What a program reads the caller key from; a tool that keeps credentials names its own after it.
KEY_NAME: Final = "COUNTERSIGN_KEY"
#: How a page shows the text of a recipe that is typed in, not pasted: ``Cells`` as JSON.
CELLS: Final = "application/vnd.countersign.cells+json"


@dataclass(frozen=True, slots=True)
class Input:
    """What is different in every call: a recipe takes it from an argument, or from the step before."""

    name: str
    """A name in every language: small letters, digits and underscores, a letter first."""
    example: str


Value: TypeAlias = tuple[str | Input, ...]
"""Texts and inputs, joined in this order."""
Tree: TypeAlias = "Value | Mapping[str, Tree] | list[Tree]"
"""Parameters as they are nested; a leaf is a value."""


@dataclass(frozen=True, slots=True)
class Holes:
    """All that a recipe is filled with."""

    root: str
    """The function's address, percent-encoded, without a slash at its end."""
    url: Value
    """The address of the call, with the connection in it. An input in it is an id, to be percent-encoded."""
    connection: tuple[str, str]
    """Its ``name`` and ``connection_name``."""
    operation: str
    method: str
    """``POST``, ``GET`` or ``DELETE``."""
    noun: str
    """What the call is about: ``invoice``."""
    fields: Mapping[str, Value]
    """What is sent, by bracket path, without what is in the address."""
    ids: tuple[Value, ...]
    """The parameters that are in the address."""
    key: Value | None
    """The Idempotency-Key header. None where a field is the key, and where nothing is created."""
    order: Input | None
    """What names the order, and so is the idempotency key but for its prefix. It is never a fixed text."""
    inputs: tuple[Input, ...]
    """``order`` and every needed field, each once, the order first."""
    tied: bool
    """Whether the credential means this connection and no other, so that an address need not name it."""
    whole: bool = False
    """Whether it raises a whole invoice. Then ``fields`` have its lines, as they were filled in or as an example."""
    token: str | None = None
    """A command that prints an identity token, for a function behind Google's IAM."""

    @property
    def besides(self) -> Mapping[str, Value]:
        """The fields without the lines, for a tool that takes those from the order."""
        return {path: value for path, value in self.fields.items() if not (self.whole and path.startswith("lines["))}

    def item(self) -> dict[str, Any]:
        """Return an order as an example: every input, and the lines as JSON has them."""
        order: dict[str, Any] = {one.name: one.example for one in self.inputs}
        besides = self.besides
        lines = tree_of({path: value for path, value in self.fields.items() if path not in besides})
        return order | {name: _plain(tree) for name, tree in lines.items()}

    def headers(self, caller_key: str) -> dict[str, str | Value]:
        """Return the headers of the call; ``caller_key`` stands for the key, and is put in as it is."""
        return {"x-api-key": caller_key, **({} if self.key is None else {"Idempotency-Key": self.key})}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One tool's recipe.

    ``kind`` says what the text is: ``code`` to run, a ``flow`` to import or paste, or ``cells`` to type in.
    ``steps`` says what a person does with it, a sentence or two each; ``proven`` how we know that it works, and is
    said last. ``lacking`` says why the tool cannot make this call, or is None; then there is no text.
    """

    id: str
    title: str
    kind: str
    mime: str
    proven: str
    steps: Callable[[Holes], tuple[str, ...]]
    make: Callable[[Holes], str]
    lacking: Callable[[Holes], str | None] = lambda _: None
    maps_lines: bool = False
    """Whether it takes the lines of a whole invoice from the order. In all others they are as they were filled in."""


#: Whole numbers in a line, as JSON has them.
_NUMBERS: Final = ("amount", "quantity", "unit_amount")


def _plain(tree: Tree, name: str = "") -> Any:
    """Return a tree as JSON has it, with the examples of its inputs."""
    if isinstance(tree, Mapping):
        return {part: _plain(inner, part) for part, inner in tree.items()}
    if isinstance(tree, list):
        return [_plain(inner) for inner in tree]
    text = "".join(part.example if isinstance(part, Input) else part for part in tree)
    return int(text) if name in _NUMBERS and _WHOLE.fullmatch(text) else text


_WHOLE: Final = re.compile("-?[0-9]{1,15}")

RUN: Final = "A test runs this as it is copied."


def tree_of(fields: Mapping[str, Value]) -> Mapping[str, Tree]:
    """Nest bracket paths. Whatever is numbered from 0 without a gap is a list, which is the same on the wire."""
    nested: dict[str, Tree] = {}
    for path, value in fields.items():
        *parents, last = path.replace("]", "").split("[")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})  # type: ignore[assignment]  # an object: fields hold no conflicts
        place[last] = value
    return {name: _listed(branch) for name, branch in nested.items()}


def _listed(branch: Tree) -> Tree:
    if not isinstance(branch, Mapping):
        return branch
    parts = {name: _listed(part) for name, part in branch.items()}
    numbered = list(map(str, range(len(parts))))
    return [parts[index] for index in numbered] if parts.keys() == set(numbered) else parts


def merged(parts: Iterable[str | Input]) -> Value:
    """Join neighbouring texts."""
    joined: list[str | Input] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)
