"""Google's ID tokens -> the e-mail address that Google vouches for.

A token is a JWT that Google has signed. Its signature is checked with Google's certificates, which are fetched over
HTTPS, kept as long as Google says within bounds, and renewed by one call while the others go on with those at hand;
none is fetched for a call. What a token claims is checked first, so that a stranger's costs neither.

Behind Cloud Run's IAM the platform has checked the token and taken its signature away, so that only the claims are
left to read. Whether that may be believed is for :mod:`gateway.identity` to say.
"""

from __future__ import annotations

import base64
import re
import threading
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Final

import certifi
import msgspec
import pycurl

from gateway.upstreams.transport import careful_handle
from policies.refusals import IdentityUnavailable, TokenNotAccepted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

#: Where Google publishes the certificates of its ID tokens, in PEM by key id.
CERTIFICATES: Final = "https://www.googleapis.com/oauth2/v1/certs"
#: Google writes its name in both ways.
ISSUERS: Final = frozenset({"accounts.google.com", "https://accounts.google.com"})
#: Two machines of Google's, or one and a laptop, agree on the time within this.
SKEW_SECONDS: Final = 10
#: What Cloud Run writes where the signature of a token that it has verified was.
REMOVED: Final = "SIGNATURE_REMOVED_BY_GOOGLE"

#: How long certificates are used, whatever their Cache-Control says; Google's own is about six hours.
MIN_FRESH_SECONDS: Final = 300.0
MAX_FRESH_SECONDS: Final = 86400.0
#: The share of that time after which one call renews them.
RENEW_AFTER: Final = 0.8
#: How long they are used beyond it while Google cannot be reached.
LAST_GOOD_SECONDS: Final = 3600.0
#: A token whose key is not at hand has them fetched again, but not more often than this; a failed fetch waits for less.
NEW_KEY_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 5.0
#: A fetch in all, and what it may bring. Google's certificates are about 4 KB.
FETCH_SECONDS: Final = 3.0
MAX_FETCHED: Final = 64 * 1024
MAX_CERTIFICATES: Final = 32

_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")
_MAX_AGE = re.compile(rb"(?i)cache-control:.*?\bmax-age=([0-9]{1,9})\b")


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


@dataclass(frozen=True, slots=True)
class Token:
    """A token, taken apart. Nothing of it is proved."""

    text: str
    header: _Header
    claims: _Claims
    signed: bool
    """Whether the signature is there still."""

    @classmethod
    def of(cls, text: str) -> Token:
        """Take a token apart. Raises :class:`TokenNotAccepted`."""
        match = _TOKEN.fullmatch(text)
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


def looks_like_token(text: str) -> bool:
    """Whether ``text`` has the form of a JWT."""
    return _TOKEN.fullmatch(text) is not None


def stripped(text: str) -> bool:
    """Whether ``text`` is a token whose signature was removed, or says so."""
    return looks_like_token(text) and text.endswith(f".{REMOVED}")


def _decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


class Google:
    """Says whom a token proves. ``audiences`` are what it may have been made for."""

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
        :class:`IdentityUnavailable` where there is nothing to check it with.
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
        except (
            ValueError,
            TypeError,
            RecursionError,
        ):  # it reads what a stranger wrote before it looks at the signature
            raise TokenNotAccepted(note="its signature or its times do not hold") from None
        return email

    def vouched(self, token: Token, now: float) -> str:
        """Return the e-mail address in a token whose signature somebody else has checked; all else is checked here."""
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


class _FetchError(Exception):
    """The certificates could not be fetched. The text is ours."""


@dataclass(frozen=True, slots=True)
class _Held:
    """Certificates in PEM by key id, and until when they serve, on the clock given at the start."""

    by_key_id: Mapping[str, str]
    fetched: float
    renew_at: float
    good_until: float


class Certificates:
    """Google's certificates, kept. Safe for threads; nothing is fetched before the first token comes."""

    def __init__(self, address: str, clock: Callable[[], float], ca_file: str | None = None) -> None:
        self._address, self._clock, self._ca_file = address, clock, ca_file or certifi.where()
        self._turn = threading.Lock()
        self._held: _Held | None = None
        self._again = float("-inf")

    def find(self, key_id: str, deadline: float) -> str | None:
        """Return the certificate of a key, or None where Google has no such key.

        ``deadline`` is on the clock given at the start. Raises :class:`IdentityUnavailable`.
        """
        held, now = self._held, self._clock()
        if held is None or now >= held.good_until:
            held = self._renewed(held, deadline)
        elif now >= held.renew_at and now >= self._again and self._turn.acquire(blocking=False):
            try:  # the others go on with what there is
                if self._held is held:
                    held = self._fetch(deadline)
            except IdentityUnavailable:
                pass
            finally:
                self._turn.release()
        if key_id not in held.by_key_id and self._clock() >= held.fetched + NEW_KEY_SECONDS:
            held = self._renewed(held, deadline)
        return held.by_key_id.get(key_id)

    def _renewed(self, old: _Held | None, deadline: float) -> _Held:
        """Return what is newer than ``old``: fetched by us, or by whoever is at it."""
        if not self._turn.acquire(timeout=max(0.0, min(deadline - self._clock(), 2 * FETCH_SECONDS))):
            raise _unavailable("another call's fetch of Google's certificates takes too long")
        try:
            if self._held is not None and self._held is not old:
                return self._held
            if self._clock() < self._again:
                raise _unavailable("Google's certificates could not be fetched a moment ago")
            return self._fetch(deadline)
        finally:
            self._turn.release()

    def _fetch(self, deadline: float) -> _Held:
        now = self._clock()
        try:
            by_key_id, max_age = _read(self._address, self._ca_file, min(FETCH_SECONDS, deadline - now))
        except _FetchError as error:
            self._again = self._clock() + PAUSE_SECONDS
            raise _unavailable(str(error)) from None
        fresh = min(max(max_age, MIN_FRESH_SECONDS), MAX_FRESH_SECONDS)
        self._held = _Held(by_key_id, now, now + RENEW_AFTER * fresh, now + fresh + LAST_GOOD_SECONDS)
        return self._held


def _unavailable(note: str) -> IdentityUnavailable:
    return IdentityUnavailable(note=note, retry_after=int(PAUSE_SECONDS))


def _read(address: str, ca_file: str, seconds: float) -> tuple[Mapping[str, str], float]:
    """Fetch certificates by key id, and for how many seconds Google says to keep them."""
    head, body = _get(address, ca_file, seconds)
    try:
        by_key_id = _usable(_CERTIFICATES.decode(body))
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise _FetchError("what Google's certificates should be is something else") from None
    match = _MAX_AGE.search(head)
    return by_key_id, float(match[1]) if match else 0.0


def _usable(by_key_id: Mapping[str, str]) -> Mapping[str, str]:
    """Return certificates that can all be read. Raises ValueError."""
    from google.auth.crypt import RSAVerifier  # noqa: PLC0415 - imported by Google.prepare()

    if not 0 < len(by_key_id) <= MAX_CERTIFICATES:
        raise ValueError(len(by_key_id))
    for certificate in by_key_id.values():
        RSAVerifier.from_string(certificate)  # type: ignore[no-untyped-call]  # it has no types
    return by_key_id


_CERTIFICATES = msgspec.json.Decoder(dict[str, str])


def _get(address: str, ca_file: str, seconds: float) -> tuple[bytes, bytes]:
    """GET: head and body, both bounded."""
    head, body = BytesIO(), BytesIO()

    def at_most(into: BytesIO) -> Callable[[bytes], int]:
        # Fewer bytes than were given makes libcurl give up.
        return lambda chunk: into.write(chunk) if into.tell() + len(chunk) <= MAX_FETCHED else 0

    curl = careful_handle(ca_file)
    try:
        curl.setopt(pycurl.URL, address)
        curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTPS if address.startswith("https:") else pycurl.PROTO_HTTP)
        curl.setopt(pycurl.TIMEOUT_MS, max(1, int(seconds * 1000)))
        curl.setopt(pycurl.HEADERFUNCTION, at_most(head))
        curl.setopt(pycurl.WRITEFUNCTION, at_most(body))
        curl.perform()
        status = curl.getinfo(pycurl.RESPONSE_CODE)
    except pycurl.error as error:
        raise _FetchError(f"Google's certificates cannot be fetched: libcurl error {error.args[0]}") from None
    finally:
        curl.close()
    if status != 200:
        raise _FetchError(f"Google's certificates cannot be fetched: status {status}")
    return head.getvalue(), body.getvalue()
