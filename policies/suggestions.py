"""Did you mean …? The known name that is closest to an unknown one."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


def closest(word: str, known: Collection[str]) -> str | None:
    """Return the name in ``known`` that is most like ``word``, in its own case or in lower case; None if none is."""
    for spelt in dict.fromkeys((word, word.lower())):
        for close in get_close_matches(spelt, known, 1):
            return close
    return None
