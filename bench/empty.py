"""A function that does nothing: the cost of the framework and its server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Request


def empty(_request: Request) -> str:
    """Answer."""
    return "{}"
