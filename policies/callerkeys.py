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


NOT_FILLED_IN: Final = (
    "What was sent as the caller key is a placeholder, so a field or a variable was not filled in. Put your caller key "
    "there."
)
_QUOTES: Final = "\"'`\u201c\u201d\u2018\u2019"
_SCHEME: Final = r"(?i)((?:Bearer )?Bearer|Token|Key|Api-?Key|Basic|Digest)[ :]"
#: What shells, cmd.exe, no-code tools and docs write for a value, and what languages write for none.
_PLACEHOLDER: Final = r"(?ai)\$\{?\w+\}?|%\w+%|\{\{.*\}\}|\$\{.*\}|<.*>|undefined|null|None|YOUR[_-]\w+"


class Place(StrEnum):
    """Where a caller key may stand: how to send it there."""

    X_API_KEY = "Send it alone in x-api-key, as it was given to you."
    AUTHORIZATION = "Send Authorization: Bearer, a space, and the caller key as it was given to you."
    BASIC = "Send it alone as the password, as it was given to you."


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
    if whole(key):
        return None
    if key.lower().startswith(PREFIX):
        return MISTYPED
    return _wrapped(key, place)


def advice_on_header(authorization: str) -> str | None:
    """Return the same of an ``Authorization`` of no scheme that is known here."""
    return _wrapped(authorization, Place.AUTHORIZATION)


def _wrapped(text: str, place: Place) -> str | None:
    if mentioned_in(text):
        return f"{_around(text)} {place.value}"
    return NOT_FILLED_IN if re.fullmatch(_PLACEHOLDER, text) else None


def _around(text: str) -> str:
    """Say what stands around a key, in its sender's terms."""
    written = text.encode("latin-1", "replace").decode("utf-8", "replace")  # a header arrives as latin-1 text
    if written[0] in _QUOTES or written[-1] in _QUOTES:
        return "The caller key has quotation marks around it."
    if text.lower().startswith(PREFIX):
        return "Authorization has no Bearer in front of the caller key."
    scheme = re.match(_SCHEME, text)
    if scheme is not None:
        return f"The caller key has {scheme[1]} in front of it."
    return "The caller key has something in it or around it that does not belong to it."


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
