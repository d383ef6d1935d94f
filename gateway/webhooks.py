"""Signed webhooks -> Caller, by the Standard Webhooks specification and with its own library.

A webhook does not name its caller: the callers who may use the connection that it asks for are tried, secret by secret.
What can be checked without a secret is checked first, and strictly, so that a stranger costs little and the library
sees nothing that it would trip over.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

from gateway.secrets import PAUSE_SECONDS
from policies.refusals import IdentityUnavailable, SecretUnavailable, WebhookNotVerified

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.secrets import Secret, Secrets
    from policies.model import Proof, Webhook

#: How far the sender's clock may be from ours, either way; the library's own.
TOLERANCE_SECONDS: Final = 300
#: Signatures in one header: one for each secret that the sender is rotating.
MAX_SIGNATURES: Final = 8
#: What the specification says a secret is, in bytes.
SECRET_BYTES: Final = range(24, 65)

#: No comma, since a header sent twice arrives joined by one; no full stop, since what is signed is joined by those.
_ID = re.compile(r"[!-+\-/-~]{1,255}")
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}")
_SIGNATURE = re.compile(r"v1,[A-Za-z0-9+/]{43}=")
#: Schemes that are not ours to check, such as v1a, which a sender may write beside.
_OTHER = re.compile(r"v(?!1,)[a-z0-9]{1,8},[A-Za-z0-9+/]{1,128}={0,2}")
_SECRET = re.compile(r"whsec_([A-Za-z0-9+/]+)={0,2}")


class Webhooks:
    """Says whose secret has signed a webhook."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def signer(self, proofs: Iterable[Proof], webhook: Webhook, body: bytes, now: float, deadline: float) -> Proof:
        """Return the proof whose secret has signed. Each says where its secret lies.

        ``now`` is in unix seconds, ``deadline`` on the secrets' clock. Raises :class:`WebhookNotVerified`, and
        :class:`IdentityUnavailable` if none has signed that could be read, but not all could.
        """
        headers = _checked(webhook, now)
        unread: IdentityUnavailable | None = None
        for proof in proofs:
            try:
                secret = self._secret(proof.value.decode(), deadline)
            except IdentityUnavailable as refusal:
                unread = refusal
                continue
            if _signed(secret, headers, body):
                return proof
        raise unread or WebhookNotVerified(note="no secret of a caller of this connection has signed it")

    def _secret(self, name: str, deadline: float) -> Secret:
        try:
            secret = self._secrets.named(name, deadline)
            problem = None if usable(secret.value.reveal()) else "it is not whsec_ and the base64 of 24 to 64 bytes"
        except SecretUnavailable as refusal:
            problem = refusal.note
        if problem is not None:
            raise IdentityUnavailable(note=f"{name}: {problem}", retry_after=int(PAUSE_SECONDS))
        return secret


def _checked(webhook: Webhook, now: float) -> dict[str, str]:
    """Return the headers as the library takes them, with only the signatures that it can check."""
    signatures = webhook.signature.reveal().split(" ")
    ours = [signature for signature in signatures if _SIGNATURE.fullmatch(signature)]
    if (
        not _ID.fullmatch(webhook.id)
        or not _TIMESTAMP.fullmatch(webhook.timestamp)
        or not 0 < len(ours) <= len(signatures) <= MAX_SIGNATURES
        or not all(_SIGNATURE.fullmatch(signature) or _OTHER.fullmatch(signature) for signature in signatures)
    ):
        raise WebhookNotVerified(note="its headers are not as the specification has them")
    if abs(now - int(webhook.timestamp)) > TOLERANCE_SECONDS:
        raise WebhookNotVerified(note="it is not of the last five minutes")
    return {
        "webhook-id": webhook.id,
        "webhook-timestamp": webhook.timestamp,
        "webhook-signature": " ".join(ours),
    }


def usable(value: str) -> bool:
    """Whether ``value`` is a signing secret as the specification has it."""
    match = _SECRET.fullmatch(value)
    if match is None:
        return False
    try:
        # Padding may be left out; the library adds it, too.
        return len(base64.b64decode(match[1] + "=" * (-len(match[1]) % 4))) in SECRET_BYTES
    except binascii.Error:
        return False


def _signed(secret: Secret, headers: dict[str, str], body: bytes) -> bool:
    from standardwebhooks import Webhook, WebhookVerificationError  # noqa: PLC0415 - only paid for where it is used

    try:
        Webhook(secret.value.reveal()).verify(body, headers, json_parse=False)
    except (WebhookVerificationError, ValueError):  # the latter for a body that is not UTF-8, which we never take
        return False
    return True
