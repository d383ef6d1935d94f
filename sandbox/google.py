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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

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


class Google:
    """A Google on 127.0.0.1.

    Settable while it runs: `cache_control`, `status`, `body` (instead of the certificates), `headers` (additional
    ones), and `delay` (seconds before each answer). `fetches` counts the fetches of certificates.
    """

    def __init__(self) -> None:
        self.cache_control: str | None = "public, max-age=22000, must-revalidate, no-transform"
        self.status = 200
        self.body: bytes | None = None
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.fetches = 0
        self._lock = threading.Lock()
        self._made = 0
        self._keys: list[_Key] = []
        self.rotate()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; after a restart on the same port."""
        google = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                google._answer(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening. The keys stay."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """Where the certificates are."""
        return f"http://{self.address}{PATH}"

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

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        if url.path == METADATA and request.headers["Metadata-Flavor"] == "Google":
            asked = parse_qs(url.query)
            email: dict[str, Any] = {} if asked.get("format") == ["full"] else {"email": None, "email_verified": None}
            token = self.mint(audience=asked["audience"][0], **email).encode()
            request.send_response(200)
            request.send_header("Content-Length", str(len(token)))
            request.end_headers()
            request.wfile.write(token)
            return
        with self._lock:
            self.fetches += 1
        time.sleep(self.delay)
        body = json.dumps({key.id: key.certificate for key in self._keys}).encode() if self.body is None else self.body
        request.send_response(self.status if request.path == PATH else 404)
        request.send_header("Content-Type", "application/json; charset=UTF-8")
        request.send_header("Content-Length", str(len(body)))
        if self.cache_control is not None:
            request.send_header("Cache-Control", self.cache_control)
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


def stripped(token: str) -> str:
    """Return a token as Cloud Run passes it on: verified there, its signature removed."""
    return f"{token.rpartition('.')[0]}.SIGNATURE_REMOVED_BY_GOOGLE"


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
