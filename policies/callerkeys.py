"""The form of a caller key, and what can be told from it alone about one that does not work.

A key is ``csk_``, 43 random characters of 62 (256 bits), and 6 that are the CRC-32 of all before them: so that a search
for leaked keys knows one when it sees one, and a mistyped or cut-off key is told from a revoked one. Keys that were
made otherwise are as good; no key has to have the form.

Nothing here looks a key up. What a caller is told says how it was sent, never whether the policy knows it.
"""

from __future__ import annotations

import re
import string
import zlib
from enum import StrEnum
from math import ceil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PREFIX: Final = "csk_"
DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM: Final = 43
_CHECK: Final = 6
_FORM = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{RANDOM + _CHECK}}}")

#: Time to make a key, hand it over and have it put to use, holidays included.
SOON_SECONDS: Final = 14 * 86400

MISTYPED: Final = "This caller key was mistyped or cut off. Copy it again, all of it and nothing else."


class Place(StrEnum):
    """Where a caller key may stand: the sentence for a caller who wrote something around it there."""

    X_API_KEY = (
        "Send the caller key alone in x-api-key, as it was given to you, without Bearer in front of it or quotation "
        "marks around it."
    )
    AUTHORIZATION = (
        "Send Authorization: Bearer, a space, and the caller key as it was given to you, without quotation marks or "
        "anything else in it or around it."
    )
    BASIC = (
        "Send the caller key alone as the password, as it was given to you, without Bearer in front of it or quotation "
        "marks around it."
    )


def checked(unchecked: str) -> str:
    """Return a key with its checksum, of all that stands before that."""
    return unchecked + _checksum(unchecked)


def whole(key: str) -> bool:
    """Say whether a key has the form, with nothing mistyped, left out or turned round."""
    return _FORM.fullmatch(key) is not None and _checksum(key[:-_CHECK]) == key[-_CHECK:]


def mentioned_in(text: str) -> bool:
    """Say whether a key of ours, or a part of one, seems to stand in ``text``."""
    return PREFIX in text.lower()


def advice(key: str, place: Place) -> str | None:
    """Return what is wrong with the form of a key that does not work, in a sentence; None if nothing is.

    ``key`` is what was read at ``place``. The sentence holds no part of it.
    """
    if whole(key) or not mentioned_in(key):
        return None
    return MISTYPED if key.lower().startswith(PREFIX) else place.value


def ending(ends: Mapping[str, float], caller: str, now: float) -> Iterator[tuple[str, str]]:
    """Yield each key of a caller that has expired, or that ends soon and no other follows, with what to say.

    ``ends`` has the end of each key by its id, infinite for none. All times are in unix seconds.
    """
    for key, end in ends.items():
        if end <= now:
            yield key, "this key has expired, so nobody can call with it"
        elif end == max(ends.values()) and end < now + SOON_SECONDS:
            days = ceil((end - now) / 86400)
            yield key, f"this is the last key of {caller}, and it ends in {'a day' if days == 1 else f'{days} days'}"


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode("ascii")), ""
    for _ in range(_CHECK):
        number, digit = divmod(number, len(DIGITS))
        digits = DIGITS[digit] + digits
    return digits
