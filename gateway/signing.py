"""The record key: Ed25519 (RFC 8032), which signs checkpoints of the record. The public key alone verifies them.

A private key is PEM (PKCS 8, as ``openssl genpkey -algorithm ed25519`` writes it) or the base64 of its 32 bytes; a
public key likewise. ``cryptography`` is imported only where there is such a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
from typing import TYPE_CHECKING, Final

from gateway.kept import DownError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Seconds between a failed read of the key and the next, which one call waits for.
PAUSE_SECONDS: Final = 60.0
_RAW: Final = 32


class RecordKey:
    """Signs checkpoints, once it could be read. It is read at the start, and again by calls if that failed.

    A key that was read stays until the process ends: to rotate it, add a version and deploy again.
    """

    def __init__(
        self,
        name: str,
        first: bytes | DownError,
        read: Callable[[], bytes | DownError],
        clock: Callable[[], float],
    ) -> None:
        """``first`` is what was read at ``name``, or why not; ``read`` reads it again."""
        self.name, self._read, self._clock = name, read, clock
        self._reading, self._reporting = threading.Lock(), threading.Lock()
        self._private: Ed25519PrivateKey | None = None
        self._problem: str | None = None
        self._reported = False
        self.id = ""
        """Names the key in checkpoints: see :func:`key_id`."""
        self._take(first)

    def _take(self, found: bytes | DownError) -> None:
        self._tried = self._clock()
        try:
            if isinstance(found, DownError):
                raise found
            private = private_key(found)
        except (DownError, ValueError) as error:
            self._problem = str(error)
        else:
            self.id, self._private = key_id(private.public_key()), private

    def ready(self) -> bool:
        """Whether it can sign. Reads it if a minute has passed since that failed; one call at a time waits for it."""
        if (
            self._private is None
            and self._clock() - self._tried >= PAUSE_SECONDS
            and self._reading.acquire(blocking=False)
        ):
            try:
                self._take(self._read())
            finally:
                self._reading.release()
        return self._private is not None

    def unreported(self) -> str | None:
        """Return why the key could not be read, to one caller only."""
        with self._reporting:
            problem = None if self._reported else self._problem
            self._reported = self._reported or problem is not None
        return problem

    def sign(self, data: bytes) -> str:
        """Return the signature of ``data`` in base64. The key must be ready."""
        assert self._private is not None  # noqa: S101 - ready() said so
        return base64.b64encode(self._private.sign(data)).decode()


def private_key(data: bytes) -> Ed25519PrivateKey:
    """Read a private key. Raises ValueError, whose text is ours and holds nothing of ``data``."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - see the module
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    raw = _raw(data)
    if raw is not None:
        return Ed25519PrivateKey.from_private_bytes(raw)
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(  # noqa: TRY004 - it is what the bytes say
            "it holds no Ed25519 private key, in PEM without a password or as base64 of 32 bytes"
        )
    return key


def public_key(data: bytes) -> Ed25519PublicKey:
    """Read a public key. Raises ValueError, whose text is ours."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - see the module
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    raw = _raw(data)
    try:
        key = Ed25519PublicKey.from_public_bytes(raw) if raw is not None else load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("it is no Ed25519 public key, in PEM or as base64 of 32 bytes")  # noqa: TRY004 - the same
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key pair: the first 16 digits of the SHA-256 of the public key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def verifies(key: Ed25519PublicKey, signature: object, data: bytes) -> bool:
    """Whether ``signature``, base64 of any origin, is the key's own for ``data``."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - see the module

    try:
        key.verify(base64.b64decode(str(signature), validate=True), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _raw(data: bytes) -> bytes | None:
    try:
        raw = base64.b64decode(data.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == _RAW else None


def new_key() -> Ed25519PrivateKey:
    """Make a key pair."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - see the module

    return Ed25519PrivateKey.generate()


def text_of(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """Return a private key as PEM, which says what it is; a public key as one word of base64, to be pasted."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see the module
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    if isinstance(key, Ed25519PublicKey):
        return base64.b64encode(key.public_bytes_raw()).decode()
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
