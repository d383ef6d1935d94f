"""Times in words, for sentences."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"))


def ago(seconds: float) -> str:
    """Say how long ago something was, in its largest unit: ``3 hours ago``, ``just now`` for less than a minute."""
    for size, unit in _UNITS:
        count = int(seconds // size)
        if count:
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"
