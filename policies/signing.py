"""The written webhook scheme: an HMAC-SHA256 of the body alone, in a header that the policy names.

Such a signature covers neither the address nor a time. So its credential is tied to one connection, it proves only
calls that say all they ask in their body, and the answers of these calls are kept for as long as
:data:`UNDATED_SECONDS` says: a body that is sent again is the same invoice.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from policies.model import Proof

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policies.model import Operation

#: The kind of the proofs, and the name of the scheme in a document.
HMAC: Final = "hmac"
ENCODINGS: Final = ("base64", "hex")

#: A signature without a time is never too old, so only the ledger recognises a body that was sent before. Longer than a
#: year, so that a secret that is changed once a year is gone before the first answer is forgotten.
UNDATED_SECONDS: Final = 400 * 86400

#: Headers that mean something already: credentials of other kinds, what we read, and what servers and proxies use up.
TAKEN: Final = frozenset(
    (
        "x-api-key", "authorization", "x-serverless-authorization", "proxy-authorization",
        "webhook-id", "webhook-timestamp", "webhook-signature", "svix-id", "svix-timestamp", "svix-signature",
        "idempotency-key", "stripe-account", "stripe-context", "stripe-version",
        "accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "cookie",
        "date", "expect", "forwarded", "host", "keep-alive", "origin", "referer", "te", "trailer", "traceparent",
        "transfer-encoding", "upgrade", "user-agent", "via", "x-cloud-trace-context", "x-forwarded-for",
        "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "function-execution-id",
    )
)  # fmt: skip


class Signing(msgspec.Struct, frozen=True, array_like=True):
    """How a body is signed, and the place of the secret."""

    secret: str
    header: str
    """In lower case."""
    encoding: str
    """How the 32 bytes are written: one of :data:`ENCODINGS`."""
    prefix: str
    """What stands before them, such as ``sha256=``; often empty."""


_signing: Final = msgspec.json.Decoder(Signing).decode


def proof_of(signing: Signing) -> Proof:
    """Return what a policy knows of the credential."""
    return Proof(HMAC, msgspec.json.encode(signing))


@lru_cache(1024)  # as many as there are credentials of this kind, which are few
def signing_of(proof: Proof) -> Signing:
    """Return what a proof of the kind says. Raises msgspec's errors for one that :func:`proof_of` did not make."""
    return _signing(proof.value)


def headers(proofs: Iterable[Proof]) -> frozenset[str]:
    """Return the headers, in lower case, that signatures of this kind arrive in. Raises as :func:`signing_of` does."""
    return frozenset(signing_of(proof).header for proof in proofs if proof.kind == HMAC)


def covers(operation: Operation) -> bool:
    """Whether a call of ``operation`` says all that it asks in its body, which is what is signed."""
    return not operation.repeatable and "{" not in operation.path
