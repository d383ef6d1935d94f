"""A Google that signs ID tokens and publishes its certificates, on a real socket.

GET /oauth2/v1/certs
    {"<key id>": "<certificate in PEM>", ...} with Cache-Control, as the real one
GET /computeMetadata/v1/instance/service-accounts/default/identity?audience=...&format=full
    an ID token, as a machine's own metadata server; without `format=full` it has no e-mail address
"""

from __future__ import annotations

import base64
import json
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from sandbox.server import Answer, Server

if TYPE_CHECKING:
    from sandbox.server import Head

__all__ = ["AUDIENCE", "Google", "stripped"]

PATH: Final = "/oauth2/v1/certs"
METADATA: Final = "/computeMetadata/v1/instance/service-accounts/default/identity"
AUDIENCE: Final = "https://countersign.example"
LIFETIME: Final = 3600


@dataclass(frozen=True, slots=True)
class _Key:
    id: str
    private: rsa.RSAPrivateKey
    certificate: str

    @classmethod
    def new(cls, number: int) -> _Key:
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "federated-signon.sandbox")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(private.public_key())
            .serial_number(number)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=16))
            .sign(private, hashes.SHA256())
        )
        return cls(f"sandbox{number:033x}", private, certificate.public_bytes(serialization.Encoding.PEM).decode())


class Google(Server):
    """A Google on 127.0.0.1, on the same port after a restart; its keys stay.

    Settable while it runs: `cache_control`, `status`, `body` (instead of the certificates), `headers` (additional
    ones), and `delay` (seconds before each answer). `fetches` counts the fetches of certificates.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cache_control: str | None = "public, max-age=22000, must-revalidate, no-transform"
        self.status = 200
        self.body: bytes | None = None
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.fetches = 0
        self._lock = threading.Lock()  # whoever holds it keeps everybody from being answered
        self._made = 0
        self._keys: list[_Key] = []
        self.rotate()

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """Where the certificates are."""
        return f"{self.origin}{PATH}"

    def rotate(self, *, keep: bool = True) -> None:
        """Sign with a new key from now on; without `keep` earlier certificates are removed."""
        self._made += 1
        self._keys = [_Key.new(self._made), *(self._keys if keep else [])]

    def mint(
        self, email: str = "billing-app@acme.iam.gserviceaccount.com", audience: str = AUDIENCE, **claims: Any
    ) -> str:
        """Sign an ID token. A claim given as None is left out; `header` is merged into the header."""
        now = int(time.time())
        header = {"alg": "RS256", "kid": self._keys[0].id, "typ": "JWT", **claims.pop("header", {})}
        content = {
            "iss": "https://accounts.google.com",
            "aud": audience,
            "azp": "114000000000000000000",
            "sub": "114000000000000000000",
            "email": email,
            "email_verified": True,
            "iat": now,
            "exp": now + LIFETIME,
            **claims,
        }
        parts = ({k: v for k, v in part.items() if v is not None} for part in (header, content))
        signing = ".".join(_segment(json.dumps(part).encode()) for part in parts)
        signature = self._keys[0].private.sign(signing.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signing}.{_segment(signature)}"

    def _connected(self) -> None:
        pass

    def _cuts_off(self, head: Head) -> bool:  # noqa: ARG002 - it never does
        return False

    def _refuse(self, status: int, sentence: str) -> Answer:
        return Answer(status, sentence.encode(), media="text/plain", then="close")

    def _answer(self, connection: int, head: Head, body: bytes) -> Answer:  # noqa: ARG002 - it looks at the head alone
        if head.path == METADATA and head.fields.get("metadata-flavor") == "Google":
            asked = parse_qs(head.query)
            email: dict[str, Any] = {} if asked.get("format") == ["full"] else {"email": None, "email_verified": None}
            return Answer(200, self.mint(audience=asked["audience"][0], **email).encode(), media="text/plain")
        with self._lock:
            self.fetches += 1
        content = json.dumps({key.id: key.certificate for key in self._keys}).encode()
        headers = self.headers if self.cache_control is None else self.headers | {"Cache-Control": self.cache_control}
        return Answer(
            self.status if head.path == PATH else 404,
            content if self.body is None else self.body,
            tuple(f"{name}: {value}" for name, value in headers.items()),
            "application/json; charset=UTF-8",
            after=self.delay,
            then="close",
        )


def stripped(token: str) -> str:
    """Return a token as Cloud Run passes it on: verified there, its signature removed."""
    return f"{token.rpartition('.')[0]}.SIGNATURE_REMOVED_BY_GOOGLE"


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
