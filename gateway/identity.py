"""Credential -> Caller. One call brings one credential: a caller key, a Google token or a signed webhook.

A key is at least 256 random bits and is known here by its SHA-256 alone. It may come in ``x-api-key``, as
``Authorization: Bearer``, or as HTTP Basic, which is all that some no-code tools can set: the key is the password, or
the name where the password is empty.

Behind IAM (``IAM=guards``), every call also brings the token that Google's door has asked for, in
``X-Serverless-Authorization`` or else in ``Authorization``, which the platform hands on with its signature removed.
That token says who calls if nothing else in the call does. A key or a webhook beside it says so in its place, unless
the policy knows the token's e-mail address as somebody else's.

Only that one header is believed without a signature: the platform looks at ``Authorization`` only where there is no
``X-Serverless-Authorization``, so beside one it is whatever the caller wrote.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.google import Token, looks_like_token, stripped
from policies.model import Proof
from policies.refusals import CredentialMissing, CredentialsConflict, CredentialUnknown, TokenNotAccepted

if TYPE_CHECKING:
    from gateway.google import Google
    from gateway.webhooks import Webhooks
    from policies.model import Call, Caller, PolicySet

#: RFC 6750, 2.1: the scheme in any case, one space, the token.
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+)")
#: RFC 7617, 2.
_BASIC = re.compile(r"[Bb][Aa][Ss][Ii][Cc] +([A-Za-z0-9+/]+={0,2})")
_NAME_AND_PASSWORD = re.compile(rb"([ -9;-~]*):([ -~]*)")


@dataclass(frozen=True, slots=True)
class Identity:
    """The callers' door."""

    google: Google
    webhooks: Webhooks
    behind_iam: bool
    """Whether the operator says that IAM guards the function."""

    def identify(self, policy_set: PolicySet, call: Call, now: float, deadline: float) -> Caller:
        """Say who calls. ``now`` is in unix seconds, ``deadline`` on the clock that certificates and secrets go by.

        Raises :class:`CredentialMissing`, :class:`CredentialsConflict`, :class:`CredentialUnknown`,
        :class:`TokenNotAccepted`, :class:`WebhookNotVerified`, and :class:`IdentityUnavailable`. Whatever is wrong
        with a credential, its answer is the same; the record alone is told.
        """
        passed, authorization = self._passed(call)
        shown = [shown for shown in (call.api_key, authorization, call.webhook) if shown is not None]
        if passed is not None and not self.behind_iam:
            note = "X-Serverless-Authorization is only taken with IAM=guards"
            raise CredentialsConflict(note=note) if shown else TokenNotAccepted(note=note)
        if len(shown) > 1:
            raise CredentialsConflict
        if not shown:
            return self._by_token(policy_set, passed, now, deadline)
        if call.webhook is not None:
            proofs = policy_set.signers.get((call.name, call.connection_name), ())
            caller = policy_set.callers[self.webhooks.signer(proofs, call.webhook, call.body, now, deadline)]
        elif call.api_key is not None:
            caller = _by_key(policy_set, call.api_key.reveal(), now)
        else:
            caller = self._by_authorization(policy_set, authorization or "", now, deadline)
        if passed is not None:
            other = _claimed(policy_set, passed)
            if other is not None and other.id != caller.id:
                raise CredentialsConflict(note=f"{caller.credential} of {caller.id} beside a token of {other.id}")
        return caller

    def _passed(self, call: Call) -> tuple[str | None, str | None]:
        """Return the header that Google's door has looked at, and ``Authorization`` where that is another."""
        passed = call.serverless_authorization and call.serverless_authorization.reveal()
        authorization = call.authorization and call.authorization.reveal()
        if not self.behind_iam or passed is not None or authorization is None:
            return passed, authorization
        if stripped(_bearer(authorization) or ""):
            return authorization, None
        return None, authorization

    def _by_token(self, policy_set: PolicySet, passed: str | None, now: float, deadline: float) -> Caller:
        """Return the caller that nothing says but the token at Google's door."""
        if passed is None:
            raise CredentialMissing
        token = Token.of(_bearer(passed) or "")
        if token.signed:  # not by way of IAM, whatever the setting says
            return _known(policy_set, self.google.verified(token, now, deadline))
        return _known(policy_set, self.google.vouched(token, now))

    def _by_authorization(self, policy_set: PolicySet, authorization: str, now: float, deadline: float) -> Caller:
        key = _bearer(authorization)
        if key is None:
            return _by_key(policy_set, _basic(authorization), now)
        if looks_like_token(key) and _proof(key) not in policy_set.callers:
            if "google" not in policy_set.kinds:
                raise TokenNotAccepted(note="the policy names no Google identity")
            return _known(policy_set, self.google.verified(Token.of(key), now, deadline))
        return _by_key(policy_set, key, now)


def _by_key(policy_set: PolicySet, key: str, now: float) -> Caller:
    """Look a key up.

    It is done by digest, so that finding one takes the same time whatever the key is, and its time says nothing of any
    other key.
    """
    if not key:
        raise CredentialMissing
    caller = policy_set.callers.get(_proof(key))
    if caller is None:
        if "," in key:  # how a key sent twice arrives
            raise CredentialsConflict
        raise CredentialUnknown
    if caller.expires is not None and caller.expires <= now:
        raise CredentialUnknown(note=f"credential {caller.credential} of {caller.id} has expired")
    return caller


def _proof(key: str) -> Proof:
    # A header arrives as latin-1 text; its bytes are what was sent.
    return Proof("key", hashlib.sha256(key.encode("latin-1", "replace")).digest())


def _known(policy_set: PolicySet, email: str) -> Caller:
    caller = policy_set.callers.get(Proof("google", email.encode()))
    if caller is None:
        raise TokenNotAccepted(note="the policy does not name its e-mail address")
    return caller


def _claimed(policy_set: PolicySet, passed: str) -> Caller | None:
    """Return the caller that a token claims to be of. That is good enough to refuse by, and for nothing else."""
    try:
        return _known(policy_set, Token.of(_bearer(passed) or "").claims.email)
    except TokenNotAccepted:
        return None


def _bearer(authorization: str) -> str | None:
    match = _BEARER.fullmatch(authorization)
    return match[1] if match else None


def _basic(authorization: str) -> str:
    """Return the key in a Basic ``authorization``. Raises :class:`CredentialMissing` and :class:`CredentialUnknown`."""
    if not authorization:
        raise CredentialMissing
    match = _BASIC.fullmatch(authorization)
    if match is None:
        raise CredentialUnknown(note="Authorization is neither of the Bearer nor of the Basic scheme")
    try:
        pair = _NAME_AND_PASSWORD.fullmatch(base64.b64decode(match[1], validate=True))
    except binascii.Error:
        pair = None
    key = (pair[2] or pair[1]).decode("ascii") if pair else ""
    if not key:
        raise CredentialUnknown(note="Authorization is of the Basic scheme and holds no key")
    return key
