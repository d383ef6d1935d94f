"""What takes long to make is made by the first who asks for it, and by nobody else at the same time."""

from __future__ import annotations

from functools import wraps
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def once(make: Callable[[], T]) -> Callable[[], T]:
    """Have a value made by the first call. Others that come meanwhile wait for it; what ``make`` raises is not kept.

    ``functools.cache`` would have each of them make it, too: eighty strangers who ask for one page at once would have
    all pages rendered eighty times.
    """
    lock, kept = Lock(), list[T]()

    @wraps(make)
    def get() -> T:
        if not kept:
            with lock:
                if not kept:
                    kept.append(make())
        return kept[0]

    return get
