"""The type of values that must not be shown."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

T = TypeVar("T")

HIDDEN: Final = "(hidden)"


@dataclass(init=False, repr=False, eq=False)
class Concealed(str, Generic[T]):
    """A secret (a text or a tuple of texts) that is its own redacted twin.

    ``repr``, ``str``, ``json``, ``pickle`` and format strings see the text :data:`HIDDEN`. msgspec sees a dataclass
    without fields, and so an empty object. Code that logs or sends a value need not know which part of it is secret.
    Only :meth:`reveal` returns the secret.
    """

    __slots__ = ("_secret",)
    if TYPE_CHECKING:  # annotated at run time, it would be a dataclass field, which msgspec encodes
        _secret: T

    def __new__(cls, secret: T) -> Self:
        """Conceal ``secret``."""
        concealed = str.__new__(cls, HIDDEN)
        concealed._secret = secret  # noqa: SLF001 - our own
        return concealed

    def reveal(self) -> T:
        """Return the secret."""
        return self._secret

    def __eq__(self, other: object) -> bool:
        """Whether both conceal the same secret, compared in constant time. A plain text is never equal."""
        if not isinstance(other, Concealed):
            return False
        return hmac.compare_digest(_bytes(self), _bytes(other))

    def __ne__(self, other: object) -> bool:
        """Negate ``==``. Without this method, that of ``str`` would apply."""
        return not self == other

    def __hash__(self) -> int:
        """Agree with ``==`` and reveal nothing of the secret."""
        return hash(hashlib.sha256(_bytes(self)).digest())

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Copy and pickle only the redacted twin."""
        return str, (str(self),)


def _bytes(concealed: Concealed[Any]) -> bytes:
    return ascii(concealed.reveal()).encode("ascii")
