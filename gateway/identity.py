"""Call -> Caller. One call brings one credential, of one of the kinds in ``gateway.credentials``.

Behind IAM (``IAM=guards``), every call also brings the token that Google's front end has checked, in
``X-Serverless-Authorization`` or else in ``Authorization``, which the platform passes on with its signature removed.
Without another credential, that token says who calls. A key or a webhook in the same request takes precedence, unless
the policy knows the token's e-mail address as somebody else's.

Only that one header is trusted without a signature: the platform looks at ``Authorization`` only where there is no
``X-Serverless-Authorization``, so beside one it is whatever the caller wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from gateway.authorization import bearer
from gateway.credentials import KINDS, environ_name, google
from gateway.means import Means
from gateway.tokens import Token, stripped
from policies.concealed import Concealed
from policies.refusals import CredentialMissing, CredentialsConflict, CredentialUnknown, TokenNotAccepted

if TYPE_CHECKING:
    from collections.abc import Collection

    from policies.model import Call, Caller, PolicySet

#: By the headers of a credential, the kinds that it may be of; and by each of these headers, all of them.
_KINDS: Final = {
    headers: tuple(kind for kind in KINDS if headers in kind.HEADERS) for each in KINDS for headers in each.HEADERS
}
_HEADERS: Final = {name: headers for headers in _KINDS for name in headers}
#: The kinds whose headers the policy names.
_NAMED: Final = tuple(kind for kind in KINDS if not kind.HEADERS)


class Identity(msgspec.Struct, frozen=True):
    """Identifies callers."""

    means: Means
    behind_iam: bool
    """Whether the operator says that IAM guards the function."""

    def identify(self, policy_set: PolicySet, call: Call, now: float, deadline: float) -> Caller:
        """Say who calls. ``now`` is in unix seconds, ``deadline`` on the clock of certificates and secrets.

        Raises :class:`CredentialMissing`, :class:`CredentialsConflict`, :class:`CredentialUnknown`,
        :class:`TokenNotAccepted`, :class:`WebhookNotVerified`, and :class:`IdentityUnavailable`. Whatever is wrong
        with a credential, its answer is the same; only the record says more.
        """
        passed = None
        if self.behind_iam or google.SERVERLESS in call.credentials:
            passed, call = self._passed(call)
        brought = {_HEADERS[name] for name in call.credentials if name in _HEADERS}
        if policy_set.signature_headers:
            named = _named(call, policy_set.signature_headers)
            call = replace(call, credentials={**call.credentials, **named})
            brought |= {(name,) for name in named}
        if passed is not None and not self.behind_iam:
            note = f"{google.SERVERLESS} is only taken with IAM=guards"
            raise CredentialsConflict(note=note) if brought else TokenNotAccepted(note=note)
        if len(brought) > 1:
            raise CredentialsConflict
        if not brought:
            return self._by_token(policy_set, passed, now, deadline)
        for kind in _KINDS.get(brought.pop(), _NAMED):
            caller = kind.caller(self.means, policy_set, call, now, deadline)
            if caller is not None:
                break
        else:
            raise CredentialUnknown
        if passed is not None:
            other = _claimed(policy_set, passed)
            if other is not None and other.id != caller.id:
                raise CredentialsConflict(note=f"{caller.credential} of {caller.id} beside a token of {other.id}")
        return caller

    def _passed(self, call: Call) -> tuple[str | None, Call]:
        """Return the header that Google's front end has checked, and the call with only its own credentials."""
        passed = call.credentials.get(google.SERVERLESS)
        if passed is None and self.behind_iam:
            authorization = call.credentials.get("Authorization")
            if authorization is not None and stripped(bearer(authorization.reveal()) or ""):
                others = {name: value for name, value in call.credentials.items() if name != "Authorization"}
                return authorization.reveal(), replace(call, credentials=others)
        return passed and passed.reveal(), call

    def _by_token(self, policy_set: PolicySet, passed: str | None, now: float, deadline: float) -> Caller:
        """Return the caller by the token that Google's front end has checked, as nothing else says who calls."""
        if passed is None:
            raise CredentialMissing
        token = Token.of(bearer(passed) or "")
        # One that still has its signature did not come by way of IAM, whatever the setting says.
        checks = self.means.google
        email = checks.verified(token, now, deadline) if token.signed else checks.vouched(token, now)
        return google.known(policy_set, email)


def _named(call: Call, names: Collection[str]) -> dict[str, Concealed[str]]:
    """Return those headers of a call that the policy names."""
    sent = {name: call.environ.get(environ_name(name)) for name in names}
    return {name: Concealed(str(value)) for name, value in sent.items() if value is not None}


def _claimed(policy_set: PolicySet, passed: str) -> Caller | None:
    """Return the caller that an unverified token names. Use it only to refuse a call."""
    try:
        return google.known(policy_set, Token.of(bearer(passed) or "").claims.email)
    except TokenNotAccepted:
        return None
