"""What the exceptions of a library mean to us: one table for each edge."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


def meaning(table: Mapping[type[BaseException], T], error: BaseException) -> T | None:
    """Return what ``table`` says of the nearest class that ``error`` is of, None if it names none of them."""
    return next((table[kind] for kind in type(error).__mro__ if kind in table), None)
