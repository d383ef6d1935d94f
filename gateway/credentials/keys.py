"""Caller keys: at least 256 random bits, known here by their SHA-256 alone.

A key arrives in ``x-api-key``, as ``Authorization: Bearer``, or as HTTP Basic, which is all that some no-code tools can
set: the key is the password, or the user name if the password is empty.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from gateway.authorization import basic, bearer, looks_like_token
from policies.callerkeys import Place, advice
from policies.model import Proof
from policies.refusals import CredentialMissing, CredentialsConflict, CredentialUnknown

if TYPE_CHECKING:
    from gateway.means import Means
    from policies.model import Call, Caller, PolicySet

HEADERS: Final = (("x-api-key",), ("Authorization",))


def caller(_means: Means, policy_set: PolicySet, call: Call, now: float, _deadline: float) -> Caller | None:
    """See :class:`gateway.credentials.Kind`.

    Keys are looked up by digest, so that a look-up takes the same time whatever the key is.
    """
    header = call.credentials.get("x-api-key")
    if header is not None:
        key = header.reveal()
    elif (authorization := call.credentials.get("Authorization")) is not None:
        text = authorization.reveal()
        key = bearer(text) or basic(text)
    else:
        return None
    if not key:
        raise CredentialMissing("x-api-key is empty. Send your caller key in it.")
    found = policy_set.callers.get(proof(key))
    if found is None:
        if header is None and looks_like_token(key):
            return None
        if "," in key:  # how a header sent twice arrives
            raise CredentialsConflict
        raise CredentialUnknown(advice(key, _place(call)))
    if found.expires is not None and found.expires <= now:
        # By its form alone, like one that is not known.
        raise CredentialUnknown(
            advice(key, _place(call)), note=f"credential {found.credential} of {found.id} has expired"
        )
    return found


def _place(call: Call) -> Place:
    if "x-api-key" in call.credentials:
        return Place.X_API_KEY
    return Place.AUTHORIZATION if bearer(call.credentials["Authorization"].reveal()) else Place.BASIC


def proof(key: str) -> Proof:
    """Return what a policy knows of a key. A header arrives as latin-1 text; its bytes are what was sent."""
    return Proof("key", hashlib.sha256(key.encode("latin-1", "replace")).digest())
