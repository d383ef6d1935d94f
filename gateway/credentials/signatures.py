"""Webhooks in the written scheme -> Caller: an HMAC-SHA256 of the body, in a header that the policy names.

The signature covers the body alone; :mod:`policies.signing` says what follows from that.
"""

from __future__ import annotations

import base64
import hmac
import re
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.signers import possible, signer
from policies.operations import OPERATIONS
from policies.refusals import WebhookNotVerified
from policies.signing import HMAC, covers, signing_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.means import Means
    from gateway.signers import Candidate
    from policies.concealed import Concealed
    from policies.model import Call, Caller, PolicySet

#: The policy names them: ``PolicySet.signature_headers``.
HEADERS: Final[tuple[tuple[str, ...], ...]] = ()

#: By encoding: how the 32 bytes are written, and how that is read.
_WRITTEN: Final[dict[str, tuple[str, Callable[[str], bytes]]]] = {
    "base64": (r"[A-Za-z0-9+/]{43}=", base64.b64decode),
    "hex": (r"[0-9A-Fa-f]{64}", bytes.fromhex),
}
_SENTENCE: Final = (
    "The webhook's signature is not valid. Sign the body exactly as it is sent, with the secret as it was given to "
    "you, and send one signature."
)
_UNCOVERED: Final = (
    "Your signature covers the body alone, and this call asks for something in its address. Use a caller key for it."
)


def caller(means: Means, policy_set: PolicySet, call: Call, _now: float, deadline: float) -> Caller | None:
    """See :class:`gateway.credentials.Kind`. Its secrets are those that sign in this header for the call's connection.

    Raises :class:`IdentityUnavailable` if none of the secrets that could be read has signed, but not all could.
    """
    header = next((name for name in policy_set.signature_headers if name in call.credentials), None)
    if header is None:
        return None
    operation = OPERATIONS.get(call.operation)
    if operation is None or not covers(operation):
        raise WebhookNotVerified(_UNCOVERED)
    candidates = list(_candidates(policy_set, call, header))
    found = signer(means, policy_set, candidates, deadline)
    if found is None:
        note = "no secret of a caller of this connection has signed it" if candidates else "not a signature as written"
        raise WebhookNotVerified(_SENTENCE, note=note)
    return found


def _candidates(policy_set: PolicySet, call: Call, header: str) -> Iterator[Candidate]:
    """Yield those whose signatures have the form of this one, so that a stranger costs no read of a secret."""
    sent = call.credentials[header].reveal()
    for proof in possible(policy_set, call, HMAC):
        signing = signing_of(proof)
        form, read = _WRITTEN[signing.encoding]
        written = sent.removeprefix(signing.prefix)
        if signing.header == header and sent.startswith(signing.prefix) and re.fullmatch(form, written):
            yield proof, signing.secret, partial(_signed, call.body, read(written))


def _signed(body: bytes, signature: bytes, secret: Concealed[str]) -> bool:
    return hmac.compare_digest(hmac.digest(secret.reveal().encode(), body, "sha256"), signature)
