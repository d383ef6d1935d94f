"""A policy document that an operator names on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.model import DocumentError

if TYPE_CHECKING:
    from pathlib import Path


def opened(path: Path) -> bytes:
    """Return what the file at ``path`` holds. Raises :class:`DocumentError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{path}: it cannot be read ({error.strerror})") from None
