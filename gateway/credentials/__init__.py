"""The kinds of credential: one module for each, which says where it arrives and whose it is.

How a policy document writes a kind is one line in ``policies.document``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, cast

from policies import modules

if TYPE_CHECKING:
    from gateway.means import Means
    from policies.model import Call, Caller, PolicySet


class Kind(Protocol):
    """What each module of this package has."""

    HEADERS: tuple[tuple[str, ...], ...]
    """The headers that a credential arrives in; those of one tuple make one credential. Empty if the policy
    names them."""

    def caller(self, means: Means, policy_set: PolicySet, call: Call, now: float, deadline: float) -> Caller | None:
        """Return whose the call's only credential is, None if it is not of this kind.

        ``now`` is in unix seconds, ``deadline`` on the clock of certificates and secrets. Raises a refusal of
        ``Unauthenticated`` for one that proves nobody, and :class:`IdentityUnavailable`.
        """


KINDS: Final = cast("tuple[Kind, ...]", tuple(modules.of(__name__, __path__)))


def environ_name(header: str) -> str:
    """Return a header's name in a WSGI environment (PEP 3333)."""
    return f"HTTP_{header.upper().replace('-', '_')}"
