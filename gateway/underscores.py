"""Headers whose name is written with an underscore.

WSGI does not tell ``Idempotency_Key`` from ``Idempotency-Key``, so gunicorn drops the former without a word. Without
its key a call that is repeated makes a second invoice, and without its account it may go to another; so these are
refused.
"""

from __future__ import annotations

from typing import Final

from gunicorn.http.errors import InvalidHeaderName

from policies.upstreams import UPSTREAMS

_NAMES: Final = {"Idempotency-Key", *(name for dialect in UPSTREAMS.values() for name in dialect.account_headers)}
_MEANT: Final = {name.upper().replace("-", "_"): name for name in sorted(_NAMES)}


class UnderscoreError(InvalidHeaderName):  # type: ignore[misc]  # gunicorn has no types
    """A call has such a header. Its text is for the caller: gunicorn's own worker answers with it."""

    def __str__(self) -> str:
        """Name the header as it was meant."""
        return f"Write {self.hdr} with a hyphen, not with an underscore. Nothing was sent."


class Underscores:
    """Stands for gunicorn's ``forwarder_headers``: the names with an underscore that are let through.

    gunicorn asks for each such name and for no other, so that no other call pays for it.
    """

    def __contains__(self, name: object) -> bool:
        """Let none through. Raises :class:`UnderscoreError` with the name that was meant."""
        meant = _MEANT.get(str(name))
        if meant is not None:
            raise UnderscoreError(meant)
        return False
