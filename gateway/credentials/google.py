"""Google identities: an ID token for an e-mail address that the policy names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.authorization import bearer, looks_like_token
from gateway.credentials.keys import proof
from gateway.tokens import Token
from policies.model import Proof
from policies.refusals import TokenNotAccepted

if TYPE_CHECKING:
    from gateway.means import Means
    from policies.model import Call, Caller, PolicySet

HEADERS: Final = (("Authorization",),)
#: Where Cloud Run looks first for the token that its IAM checks. :mod:`gateway.identity` says when it counts.
SERVERLESS: Final = "X-Serverless-Authorization"


def caller(means: Means, policy_set: PolicySet, call: Call, now: float, deadline: float) -> Caller | None:
    """See :class:`gateway.credentials.Kind`. A token is told from a caller key by its form."""
    authorization = call.credentials.get("Authorization")
    text = bearer(authorization.reveal()) if authorization is not None else None
    if text is None or not looks_like_token(text) or proof(text) in policy_set.callers:
        return None
    if "google" not in policy_set.kinds:
        raise TokenNotAccepted(note="the policy names no Google identity")
    return known(policy_set, means.google.verified(Token.of(text), now, deadline))


def known(policy_set: PolicySet, email: str) -> Caller:
    """Return the caller with a proved e-mail address. Raises :class:`TokenNotAccepted`."""
    found = policy_set.callers.get(Proof("google", email.encode()))
    if found is None:
        raise TokenNotAccepted(note="the policy does not name its e-mail address")
    return found
