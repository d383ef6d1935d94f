"""What may come out: an answer is trimmed to the fields a grant lists, and nothing else passes.

An upstream may add fields, leave some out, or put an object where a name used to be (as ``expand`` does). So a leaf
lets only what the catalogue says it holds through; everything else, absent ones included, is answered as null.
"""

from __future__ import annotations

from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import asdict

from policies.model import Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


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


@lru_cache(1024)  # as many as there are kinds of grants
def reader(names: tuple[str, ...]) -> Callable[[bytes], dict[str, Any]]:
    """Return what reads the named members of a JSON object, null for those it lacks, and builds no other.

    A grant names few of an invoice's hundred members, and building them all would take most of the time of a call's
    judging. What is returned raises ValueError or RecursionError for what is no JSON object.
    """
    decoder = msgspec.json.Decoder(msgspec.defstruct("Members", [(name, Any, None) for name in names]))
    return lambda body: asdict(decoder.decode(body))


def trim(answer: object, tree: Mapping[str, Shape | Mapping[str, object]]) -> dict[str, object]:
    """Return only what ``tree`` names, in its order, with null for what is absent or not of its shape."""
    given = answer if isinstance(answer, dict) else {}
    return {name: _leaf(given.get(name), branch) for name, branch in tree.items()}


def narrow(answer: Mapping[str, object], tree: Mapping[str, object]) -> dict[str, object]:
    """Return what ``tree`` still names of an answer that was trimmed before, in the order it was given then.

    A kept answer is repeated as it was, unless the policy grants less by now.
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
        return value if isinstance(value, list) and all(map(_scalar, value)) else None
    if branch is Shape.MAP:
        return value if isinstance(value, dict) and all(map(_scalar, value.values())) else None
    if isinstance(value, list):
        return [trim(item, branch) for item in value]  # type: ignore[arg-type]  # a branch that is no leaf
    return trim(value, branch) if isinstance(value, dict) else None  # type: ignore[arg-type]  # the same


def _scalar(value: object) -> bool:
    # A float may be infinite, since 1e999 is read as one; JSON has no way to write it.
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and isfinite(value))
