"""What an ``Authorization`` header holds."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from policies.callerkeys import advice_on_header
from policies.refusals import CredentialMissing, CredentialsConflict, CredentialUnknown

#: RFC 6750, 2.1: the scheme in any case, one space, the token.
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+)")
#: RFC 7617, 2.
_BASIC: Final = r"[Bb][Aa][Ss][Ii][Cc] +([A-Za-z0-9+/]+={0,2})"
_NAME_AND_PASSWORD: Final = rb"([ -9;-~]*):([ -~]*)"
#: How a header that was sent twice arrives.
_TWO: Final = r"(?i)(?:Bearer|Basic) +[^, ]+(?: *, *(?:Bearer|Basic) +[^, ]+)+"
NO_KEY: Final = "Authorization holds no key. Send Authorization: Bearer, a space, and your caller key."
#: A JWT, RFC 7519, 3: header, claims and signature, which may have been removed.
TOKEN: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")


def bearer(authorization: str) -> str | None:
    """Return the token of a Bearer ``authorization``, None if it is of another scheme."""
    match = _BEARER.fullmatch(authorization)
    return match[1] if match else None


def basic(authorization: str) -> str:
    """Return the key in a Basic ``authorization``.

    Raises :class:`CredentialMissing`, :class:`CredentialsConflict` and :class:`CredentialUnknown`.
    """
    if not authorization or authorization.lower() in {"bearer", "basic"}:
        raise CredentialMissing(NO_KEY)
    match = re.fullmatch(_BASIC, authorization)
    if match is None:
        if re.fullmatch(_TWO, authorization):
            raise CredentialsConflict
        raise CredentialUnknown(
            advice_on_header(authorization), note="Authorization is neither of the Bearer nor of the Basic scheme"
        )
    try:
        pair = re.fullmatch(_NAME_AND_PASSWORD, base64.b64decode(match[1], validate=True))
    except binascii.Error:
        pair = None
    if pair is None:
        raise CredentialUnknown(note="Authorization is of the Basic scheme and holds no key")
    key = (pair[2] or pair[1]).decode("ascii")
    if not key:
        raise CredentialMissing(NO_KEY)
    return key


def looks_like_token(text: str) -> bool:
    """Whether ``text`` has the form of a JWT."""
    return TOKEN.fullmatch(text) is not None
