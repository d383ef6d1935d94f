"""Credential -> Caller. A caller key is at least 256 random bits and is known here by its SHA-256 alone."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from policies.refusals import CredentialMissing, CredentialsConflict, CredentialUnknown

if TYPE_CHECKING:
    from policies.model import Call, Caller, PolicySet

#: RFC 6750, 2.1: the scheme in any case, one space, the token.
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+)")


def identify(policy_set: PolicySet, call: Call, now: float) -> Caller:
    """Say who calls; ``now`` is in unix seconds.

    Keys are looked up by digest, so that finding one takes the same time whatever the key is, and its time says
    nothing of any other key. Raises :class:`CredentialMissing`, :class:`CredentialsConflict`, and for an unknown, an
    expired and a revoked key alike :class:`CredentialUnknown`.
    """
    key = _presented(call)
    # A header arrives as latin-1 text; its bytes are what was sent. A key sent twice arrives joined by a comma.
    caller = policy_set.keys.get(hashlib.sha256(key.encode("latin-1", "replace")).digest())
    if caller is None:
        if "," in key:
            raise CredentialsConflict
        raise CredentialUnknown
    if caller.expires is not None and caller.expires <= now:
        raise CredentialUnknown(note=f"credential {caller.credential} of {caller.id} has expired")
    return caller


def _presented(call: Call) -> str:
    if call.api_key is not None and call.authorization is not None:
        raise CredentialsConflict
    if call.api_key:
        return call.api_key
    if not call.authorization:
        raise CredentialMissing
    match = _BEARER.fullmatch(call.authorization)
    if match is None:
        raise CredentialUnknown(note="Authorization is not of the Bearer scheme")
    return match[1]
