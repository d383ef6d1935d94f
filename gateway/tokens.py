"""Google's ID tokens -> the e-mail address that Google vouches for.

A token is a JWT that Google has signed. Its signature is checked with Google's certificates, which
:mod:`gateway.certificates` keeps. The claims are checked first, so that a stranger's token costs neither a fetch nor a
signature check.

Behind Cloud Run's IAM the platform has checked the token and removed its signature, so only the claims can be read.
:mod:`gateway.identity` decides whether they may be trusted.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.authorization import TOKEN, looks_like_token
from policies.refusals import TokenNotAccepted

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway.certificates import Certificates

#: Google uses both forms.
ISSUERS: Final = frozenset({"accounts.google.com", "https://accounts.google.com"})
#: Two machines of Google's, or one and a laptop, agree on the time within this.
SKEW_SECONDS: Final = 10
#: Cloud Run writes this in place of the signature of a token that it has verified.
REMOVED: Final = "SIGNATURE_REMOVED_BY_GOOGLE"


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str


class _Claims(msgspec.Struct, frozen=True):
    iss: str
    aud: str
    iat: int
    exp: int
    email: str
    email_verified: bool


class Token(msgspec.Struct, frozen=True):
    """A parsed token. Nothing in it is verified."""

    text: str
    header: _Header
    claims: _Claims
    signed: bool
    """Whether it still has a signature."""

    @classmethod
    def of(cls, text: str) -> Token:
        """Parse a token. Raises :class:`TokenNotAccepted`."""
        match = TOKEN.fullmatch(text)
        try:
            header = _HEADER.decode(_decoded(match[1])) if match else None
            claims = _CLAIMS.decode(_decoded(match[2])) if match else None
        except (ValueError, msgspec.MsgspecError, RecursionError):
            header = claims = None
        if match is None or header is None or claims is None:
            raise TokenNotAccepted(note="it is no ID token of Google's with a verified e-mail address")
        return cls(text, header, claims, signed=not stripped(text))


_HEADER = msgspec.json.Decoder(_Header)
_CLAIMS = msgspec.json.Decoder(_Claims)


def stripped(text: str) -> bool:
    """Whether ``text`` is a token whose signature was removed, or claims to be one."""
    return looks_like_token(text) and text.endswith(f".{REMOVED}")


def _decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


class Google:
    """Verifies tokens. ``audiences`` are those that a token may have."""

    def __init__(self, certificates: Certificates, audiences: Collection[str]) -> None:
        self._certificates = certificates
        self._audiences = frozenset(audiences)

    @staticmethod
    def prepare() -> None:
        """Import Google's library, which takes a while, before the first call needs it."""
        import google.auth.jwt  # noqa: F401, PLC0415 - a policy without a Google identity does without it

    def verified(self, token: Token, now: float, deadline: float) -> str:
        """Return the e-mail address that a signed token proves.

        ``now`` is in unix seconds, ``deadline`` on the certificates' clock. Raises :class:`TokenNotAccepted`, and
        :class:`policies.refusals.IdentityUnavailable` where there is nothing to check it with.
        """
        if not token.signed:
            raise TokenNotAccepted(note="its signature was removed, and no IAM is said to have checked it")
        if not self._audiences:
            raise TokenNotAccepted(note="IAM has not checked it, and AUDIENCE does not say what it must be for")
        email = self.vouched(token, now)
        certificate = self._certificates.find(token.header.kid, deadline)
        if certificate is None:
            raise TokenNotAccepted(note="its key is not one of Google's")
        from google.auth import jwt  # noqa: PLC0415 - imported by prepare()

        try:
            jwt.decode(  # type: ignore[no-untyped-call]  # it has no types
                token.text,
                certs={token.header.kid: certificate},
                audience=list(self._audiences),
                clock_skew_in_seconds=SKEW_SECONDS,
            )
        except (ValueError, TypeError, RecursionError):  # it parses before it checks the signature
            raise TokenNotAccepted(note="bad signature, or outside its validity period") from None
        return email

    def vouched(self, token: Token, now: float) -> str:
        """Return the e-mail address in a token, after checking all but its signature."""
        claims = token.claims
        problem = None
        if token.header.alg != "RS256":
            problem = "its algorithm is not RS256"
        elif claims.iss not in ISSUERS:
            problem = "its issuer is not Google"
        elif self._audiences and claims.aud not in self._audiences:
            problem = "it is for another audience"
        elif not claims.iat - SKEW_SECONDS <= now <= claims.exp + SKEW_SECONDS:
            problem = "it has expired, or is not valid yet"
        elif not claims.email_verified:
            problem = "its e-mail address is not verified"
        if problem is not None:
            raise TokenNotAccepted(note=problem)
        return claims.email
