"""The operations of the upstreams, as data: one module each, which defines ``OPERATION``.

It may also say what people read: ``WORDS`` of its parameters, and ``MEANINGS`` of the fields of its answer, by their
paths. These are not part of the operation, so that a better wording leaves compiled documents as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policies import modules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Operation, Words

_MODULES: Final = {module.OPERATION.id: module for module in modules.of(__name__, __path__)}

OPERATIONS: Final[Mapping[str, Operation]] = {name: module.OPERATION for name, module in _MODULES.items()}


def words(operation: str) -> Mapping[str, Words]:
    """Return what people read of an operation's parameters. A path that is not in it says itself."""
    said: Mapping[str, Words] = vars(_MODULES[operation]).get("WORDS", {})
    return said


def meanings(operation: str) -> Mapping[str, str]:
    """Return what the fields of an operation's answer mean. The same."""
    said: Mapping[str, str] = vars(_MODULES[operation]).get("MEANINGS", {})
    return said
