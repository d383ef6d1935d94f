"""Signed webhooks -> Caller, by the Standard Webhooks specification and with its own library.

Everything that can be checked without a secret is checked first, and strictly, so that a stranger costs little and the
library gets no input that it cannot handle.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.signers import possible, signer
from policies.refusals import WebhookNotVerified

if TYPE_CHECKING:
    from gateway.means import Means
    from policies.concealed import Concealed
    from policies.model import Call, Caller, PolicySet

#: The specification's names, which its library takes too, and those of Svix, from whose format it was made.
STANDARD: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")
HEADERS: Final = (STANDARD, ("svix-id", "svix-timestamp", "svix-signature"))

#: The most that the sender's clock may differ from ours, either way; the library's own.
TOLERANCE_SECONDS: Final = 300
#: Signatures in one header: one for each secret that the sender is rotating.
MAX_SIGNATURES: Final = 8
#: The length of a secret in bytes, by the specification.
SECRET_BYTES: Final = range(24, 65)

#: No comma, since a header sent twice arrives joined by one; no full stop, since what is signed is joined by those.
_ID: Final = r"[!-+\-/-~]{1,255}"
_TIMESTAMP: Final = r"[1-9][0-9]{0,11}"
_SIGNATURE: Final = r"v1,[A-Za-z0-9+/]{43}="
#: Other schemes, such as v1a, which a sender may add; they are ignored.
_OTHER: Final = r"v(?!1,)[a-z0-9]{1,8},[A-Za-z0-9+/]{1,128}={0,2}"
_WHSEC: Final = r"whsec_([A-Za-z0-9+/]+)={0,2}"


def caller(means: Means, policy_set: PolicySet, call: Call, now: float, deadline: float) -> Caller | None:
    """See :class:`gateway.credentials.Kind`. Its secrets are those of the callers who may use the call's connection.

    Raises :class:`IdentityUnavailable` if none of the secrets that could be read has signed, but not all could.
    """
    names = next((names for names in HEADERS if not call.credentials.keys().isdisjoint(names)), None)
    if names is None:
        return None
    headers = _checked(call, names, now)
    signed = partial(_signed, headers, call.body)
    candidates = [(proof, proof.value.decode(), signed) for proof in possible(policy_set, call, "webhook")]
    found = signer(means, policy_set, candidates, deadline)
    if found is None:
        raise WebhookNotVerified(note="no secret of a caller of this connection has signed it")
    return found


def _checked(call: Call, names: tuple[str, ...], now: float) -> dict[str, str]:
    """Return the headers for the library, with only the signatures that it can check."""
    sent = [call.credentials[name].reveal() if name in call.credentials else "" for name in names]
    name, timestamp, signature = sent
    signatures = signature.split(" ")
    ours = [signature for signature in signatures if re.fullmatch(_SIGNATURE, signature)]
    if (
        not re.fullmatch(_ID, name)
        or not re.fullmatch(_TIMESTAMP, timestamp)
        or not 0 < len(ours) <= len(signatures) <= MAX_SIGNATURES
        or not all(re.fullmatch(_SIGNATURE, signature) or re.fullmatch(_OTHER, signature) for signature in signatures)
    ):
        raise WebhookNotVerified(note="its headers are not as the specification has them")
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise WebhookNotVerified(note="it is not of the last five minutes")
    return dict(zip(STANDARD, (name, timestamp, " ".join(ours)), strict=True))


def usable(secret: Concealed[str]) -> bool:
    """Whether ``secret`` is a signing secret as the specification has it."""
    match = re.fullmatch(_WHSEC, secret.reveal())
    if match is None:
        return False
    try:
        # Padding may be left out; the library adds it, too.
        return len(base64.b64decode(match[1] + "=" * (-len(match[1]) % 4))) in SECRET_BYTES
    except binascii.Error:
        return False


def _signed(headers: dict[str, str], body: bytes, secret: Concealed[str]) -> bool:
    if not usable(secret):
        raise ValueError("it is not whsec_ and the base64 of 24 to 64 bytes")
    from standardwebhooks import Webhook, WebhookVerificationError  # noqa: PLC0415 - only paid for where it is used

    try:
        Webhook(secret.reveal()).verify(body, headers, json_parse=False)
    except (WebhookVerificationError, ValueError):  # the latter for a body that is not UTF-8, which we never take
        return False
    return True
