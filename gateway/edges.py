"""The meaning of a library's exceptions. Each edge has one table of them; this looks an exception up."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


def meaning(table: Mapping[type[BaseException], T], error: BaseException) -> T | None:
    """Return the entry of the error's class or of its nearest base; None if there is none."""
    return next((table[kind] for kind in type(error).__mro__ if kind in table), None)
