"""Google's certificates -> the one that a token names. They are fetched over HTTPS and kept as long as Google says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Final

import certifi
import msgspec
import pycurl

from gateway.kept import DownError, Kept, Lifetime
from gateway.upstreams.transport import careful_handle
from policies.refusals import IdentityUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

#: Where Google publishes the certificates of its ID tokens, in PEM by key id.
CERTIFICATES: Final = "https://www.googleapis.com/oauth2/v1/certs"
#: How long certificates are used, whatever their Cache-Control says; Google's own is about six hours.
MIN_FRESH_SECONDS: Final = 300.0
MAX_FRESH_SECONDS: Final = 86400.0
#: The share of that time after which one call renews them.
RENEW_AFTER: Final = 0.8
#: How long they are used beyond it while Google cannot be reached.
LAST_GOOD_SECONDS: Final = 3600.0
#: A token with an unknown key causes another fetch, but not more often than this; a failed fetch is retried sooner.
NEW_KEY_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 5.0
#: The timeout of a fetch, and the most bytes of its answer. Google's certificates are about 4 KB.
FETCH_SECONDS: Final = 3.0
MAX_FETCHED: Final = 64 * 1024
MAX_CERTIFICATES: Final = 32

_MAX_AGE: Final = rb"(?i)cache-control:.*?\bmax-age=([0-9]{1,9})\b"
_CERTIFICATES = msgspec.json.Decoder(dict[str, str])


class _Fetched(msgspec.Struct, frozen=True):
    """Certificates in PEM by key id, when they were fetched, and for how many seconds Google says to keep them."""

    by_key_id: Mapping[str, str]
    at: float
    max_age: float


class Certificates:
    """Google's certificates, kept. Safe for threads; nothing is fetched before the first token comes."""

    def __init__(self, address: str, clock: Callable[[], float], ca_file: str | None = None) -> None:
        self._address, self._clock, self._ca_file = address, clock, ca_file or certifi.where()
        self._kept = Kept(self._fetch, _lifetime, pause=PAUSE_SECONDS, clock=clock, patience=FETCH_SECONDS)

    def find(self, key_id: str, deadline: float) -> str | None:
        """Return the certificate of a key, or None where Google has no such key.

        ``deadline`` is on the clock given at the start. Raises :class:`IdentityUnavailable`.
        """
        try:
            fetched = self._kept.get(self._address, deadline)
            if key_id not in fetched.by_key_id and self._clock() >= fetched.at + NEW_KEY_SECONDS:
                fetched = self._kept.renew(self._address, fetched, deadline)
        except DownError as error:
            raise IdentityUnavailable(note=str(error), retry_after=int(PAUSE_SECONDS)) from None
        return fetched.by_key_id.get(key_id)

    def _fetch(self, address: str, deadline: float) -> _Fetched:
        now = self._clock()
        head, body = _get(address, self._ca_file, min(FETCH_SECONDS, deadline - now))
        try:
            by_key_id = _usable(_CERTIFICATES.decode(body))
        except (ValueError, msgspec.MsgspecError, RecursionError):
            raise DownError("what Google's certificates should be is something else") from None
        match = re.search(_MAX_AGE, head)
        return _Fetched(by_key_id, now, float(match[1]) if match else 0.0)


def _lifetime(fetched: _Fetched) -> Lifetime:
    fresh = min(max(fetched.max_age, MIN_FRESH_SECONDS), MAX_FRESH_SECONDS)
    return Lifetime(renew=RENEW_AFTER * fresh, stale=fresh, good=fresh + LAST_GOOD_SECONDS)


def _usable(by_key_id: Mapping[str, str]) -> Mapping[str, str]:
    """Return certificates that can all be read. Raises ValueError."""
    from google.auth.crypt import RSAVerifier  # noqa: PLC0415 - imported by Google.prepare()

    if not 0 < len(by_key_id) <= MAX_CERTIFICATES:
        raise ValueError(len(by_key_id))
    for certificate in by_key_id.values():
        RSAVerifier.from_string(certificate)  # type: ignore[no-untyped-call]  # it has no types
    return by_key_id


def _get(address: str, ca_file: str, seconds: float) -> tuple[bytes, bytes]:
    """GET: head and body, both bounded."""
    head, body = BytesIO(), BytesIO()

    def at_most(into: BytesIO) -> Callable[[bytes], int]:
        # libcurl aborts if fewer bytes are written than it passed.
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
        raise DownError(f"Google's certificates cannot be fetched: libcurl error {error.args[0]}") from None
    finally:
        curl.close()
    if status != 200:
        raise DownError(f"Google's certificates cannot be fetched: status {status}")
    return head.getvalue(), body.getvalue()
