"""Google's tokens and certificates, against a Google on a real socket."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_pem_x509_certificate

from gateway.certificates import (
    CERTIFICATES,
    LAST_GOOD_SECONDS,
    MAX_CERTIFICATES,
    MAX_FETCHED,
    MAX_FRESH_SECONDS,
    MIN_FRESH_SECONDS,
    NEW_KEY_SECONDS,
    PAUSE_SECONDS,
    Certificates,
)
from gateway.tokens import Google, Token
from policies.refusals import IdentityUnavailable, TokenNotAccepted
from sandbox.google import AUDIENCE, stripped
from sandbox.google import Google as Sandbox
from tests.gateway.conftest import at_once
from tests.gateway.test_transport import LOOPBACK, Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Clock

ANN = "ann@acme.example"
MAX_AGE = 22000.0


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


@pytest.fixture
def certificates(sandbox: Sandbox, clock: Clock, patience: None) -> Certificates:
    return Certificates(sandbox.url, clock)


@pytest.fixture
def google(certificates: Certificates) -> Google:
    return Google(certificates, [AUDIENCE, "https://countersign.example/stripe"])


def proved(google: Google, token: str, now: float | None = None) -> str:
    # Whatever the injected clock says, this is far away.
    return google.verified(Token.of(token), time.time() if now is None else now, 1e12)


def refused(google: Google, token: str, now: float | None = None) -> str:
    with pytest.raises(TokenNotAccepted) as caught:
        proved(google, token, now)
    assert caught.value.detail == TokenNotAccepted.sentence
    assert caught.value.note
    assert token not in caught.value.note
    return caught.value.note


def segment(content: Any) -> str:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("issuer", ["https://accounts.google.com", "accounts.google.com"])
@pytest.mark.parametrize("audience", [AUDIENCE, "https://countersign.example/stripe"])
def test_token_of_google_for_us_proves_its_address(
    google: Google, sandbox: Sandbox, issuer: str, audience: str
) -> None:
    assert proved(google, sandbox.mint(ANN, audience, iss=issuer)) == ANN


@pytest.mark.parametrize(
    ("claims", "note"),
    [
        ({"audience": f"{AUDIENCE}/"}, "for another audience"),
        ({"audience": "https://countersign.example.evil.example"}, "for another audience"),
        ({"aud": [AUDIENCE]}, "no ID token"),
        ({"aud": None}, "no ID token"),
        ({"iss": "https://accounts.google.com/"}, "issuer"),
        ({"iss": "https://securetoken.google.com/acme"}, "issuer"),
        ({"iss": None}, "no ID token"),
        ({"exp": None}, "no ID token"),
        ({"exp": "4000000000"}, "no ID token"),
        ({"exp": 1e400}, "no ID token"),
        ({"exp": -(10**1000)}, "expired"),
        ({"exp": True}, "no ID token"),
        ({"iat": None}, "no ID token"),
        ({"email": None}, "no ID token"),
        ({"email": ["ann@acme.example"]}, "no ID token"),
        ({"email_verified": False}, "not verified"),
        ({"email_verified": None}, "no ID token"),
        ({"email_verified": "true"}, "no ID token"),
        ({"email_verified": 1}, "no ID token"),
        ({"header": {"alg": "none"}}, "RS256"),
        ({"header": {"alg": "HS256"}}, "RS256"),
        ({"header": {"alg": "ES256"}}, "RS256"),
        ({"header": {"alg": ["RS256"]}}, "no ID token"),
        ({"header": {"kid": None}}, "no ID token"),
        ({"header": {"kid": "sandbox" + "0" * 33}}, "key is not one of Google's"),
        ({"header": {"kid": ""}}, "key is not one of Google's"),
    ],
    ids=str,
)
def test_token_with_a_wrong_claim_proves_nobody(
    google: Google, sandbox: Sandbox, claims: dict[str, Any], note: str
) -> None:
    assert note in refused(google, sandbox.mint(**{"email": ANN, **claims}))


def test_token_is_good_until_it_expires_and_a_little_longer(google: Google, sandbox: Sandbox) -> None:
    now = int(time.time())
    assert proved(google, sandbox.mint(ANN, iat=now - 3600, exp=now - 5)) == ANN
    assert proved(google, sandbox.mint(ANN, iat=now + 5)) == ANN
    token = sandbox.mint(ANN)
    assert "expired" in refused(google, token, now + 3615)
    assert "not valid yet" in refused(google, token, now - 15)


def test_expired_token_is_refused_by_both_clocks(google: Google, sandbox: Sandbox) -> None:
    """Google's library looks at the machine's clock; ours is the call's."""
    now = int(time.time())
    token = sandbox.mint(ANN, iat=now - 7200, exp=now - 3600)
    assert "expired" in refused(google, token)
    assert "validity period" in refused(google, token, now - 5000)


def test_claims_that_were_changed_after_signing_prove_nobody(google: Google, sandbox: Sandbox) -> None:
    header, claims, signature = sandbox.mint("bob@acme.example").split(".")
    content = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert "signature" in refused(google, f"{header}.{segment({**content, 'email': ANN})}.{signature}")


def test_token_signed_by_another_key_of_the_same_name_proves_nobody(google: Google, sandbox: Sandbox) -> None:
    assert "signature" in refused(google, Sandbox().mint(ANN))


def test_public_certificate_is_no_shared_secret(google: Google, sandbox: Sandbox) -> None:
    """The old trick: HS256, with the certificate that everybody has as its key."""
    header, claims, _ = sandbox.mint(ANN, header={"alg": "HS256"}).split(".")
    certificate = sandbox._keys[0].certificate
    for key in (certificate.encode(), load_pem_x509_certificate(certificate.encode()).public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )):  # fmt: skip
        signature = hmac.digest(key, f"{header}.{claims}".encode(), hashlib.sha256)
        assert "RS256" in refused(google, f"{header}.{claims}.{segment(signature)}")


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", "é.b.c", f"{segment(b'x')}.{segment(b'x')}.x", "a" * 4000,
     f"{segment([])}.{segment([])}.x", f"{segment({'alg': 'none', 'kid': 'k'})}.{segment({})}.",
     f"{segment(b'[' * 1500)}.{segment(b'[' * 1400)}.x", f"{segment(b'null')}.{segment(b'NaN')}.x",
     f"{segment({'alg': 'RS256', 'kid': 'k'})}.{segment(bytes(range(128, 200)))}.x", "a.b.c\n"],
    ids=lambda token: token[:30],
)  # fmt: skip
def test_what_is_no_token_proves_nobody_and_fetches_nothing(google: Google, sandbox: Sandbox, token: str) -> None:
    with pytest.raises(TokenNotAccepted):
        Token.of(token)
    assert sandbox.fetches == 0


def test_claim_that_is_nested_too_deeply_for_googles_library_proves_nobody(google: Google, sandbox: Sandbox) -> None:
    header, claims, signature = sandbox.mint(ANN).split(".")
    plain = base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))
    for depth in (100, 900, 1500):
        deep = plain[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"
        with pytest.raises(TokenNotAccepted):
            proved(google, f"{header}.{segment(deep)}.{signature}")


def test_signature_that_was_removed_or_left_out_proves_nobody(google: Google, sandbox: Sandbox) -> None:
    token = sandbox.mint(ANN)
    assert "was removed" in refused(google, stripped(token))
    with pytest.raises(TokenNotAccepted):
        proved(google, token.rpartition(".")[0] + ".")
    assert "signature" in refused(google, token.rpartition(".")[0] + ".AAAA")
    assert sandbox.fetches == 1


def test_what_google_checks_for_iam_is_read_without_certificates(google: Google, sandbox: Sandbox) -> None:
    assert google.vouched(Token.of(stripped(sandbox.mint(ANN))), time.time()) == ANN
    assert sandbox.fetches == 0


def test_without_an_audience_no_signed_token_is_enough(certificates: Certificates, sandbox: Sandbox) -> None:
    google = Google(certificates, [])
    assert "AUDIENCE" in refused(google, sandbox.mint(ANN))
    assert google.vouched(Token.of(stripped(sandbox.mint(ANN, "https://anything.example"))), time.time()) == ANN


# ---------------------------------------------------------------- certificates


def test_none_is_fetched_per_call_nor_by_a_token_whose_claims_are_wrong(google: Google, sandbox: Sandbox) -> None:
    refused(google, sandbox.mint(ANN, "https://elsewhere.example"))
    assert sandbox.fetches == 0
    for _ in range(100):
        assert proved(google, sandbox.mint(ANN)) == ANN
    assert sandbox.fetches == 1


def test_fifty_calls_that_wait_cost_one_fetch(google: Google, sandbox: Sandbox) -> None:
    sandbox.delay = 0.3
    token = sandbox.mint(ANN)
    assert at_once(50, lambda _: proved(google, token)) == [ANN] * 50
    assert sandbox.fetches == 1


def test_they_are_kept_as_long_as_google_says_and_renewed_ahead(google: Google, sandbox: Sandbox, clock: Clock) -> None:
    token = sandbox.mint(ANN)
    proved(google, token)
    clock.tick(0.79 * MAX_AGE)
    proved(google, token)
    assert sandbox.fetches == 1
    clock.tick(0.02 * MAX_AGE)
    assert [proved(google, token) for _ in range(3)] == [ANN] * 3
    assert sandbox.fetches == 2


@pytest.mark.parametrize(
    ("cache_control", "kept"),
    [
        (None, MIN_FRESH_SECONDS),
        ("no-store", MIN_FRESH_SECONDS),
        ("max-age=0", MIN_FRESH_SECONDS),
        ("max-age=-5", MIN_FRESH_SECONDS),
        ("max-age=x", MIN_FRESH_SECONDS),
        ("s-maxage=9000", MIN_FRESH_SECONDS),
        ("Public, MAX-AGE=9000", 9000.0),
        ("max-age=999999999", MAX_FRESH_SECONDS),
        ("max-age=99999999999999999999", MIN_FRESH_SECONDS),
    ],
)
def test_cache_control_counts_within_bounds(
    google: Google, sandbox: Sandbox, clock: Clock, cache_control: str | None, kept: float
) -> None:
    sandbox.cache_control = cache_control
    token = sandbox.mint(ANN)
    proved(google, token)
    clock.tick(0.79 * kept)
    proved(google, token)
    assert sandbox.fetches == 1
    clock.tick(0.02 * kept)
    proved(google, token)
    assert sandbox.fetches == 2


def test_one_call_renews_while_the_others_go_on(google: Google, sandbox: Sandbox, clock: Clock) -> None:
    token = sandbox.mint(ANN)
    proved(google, token)
    clock.tick(0.9 * MAX_AGE)
    done = list[int]()

    def prove(number: int) -> None:
        assert proved(google, token) == ANN
        done.append(number)

    with ThreadPoolExecutor(8) as pool:
        with sandbox._lock:  # it answers nobody
            calls = [pool.submit(prove, number) for number in range(8)]
            while len(done) < 7:
                assert not any(call.done() and call.exception() for call in calls)
                time.sleep(0.01)
        for call in calls:
            call.result()
    assert sandbox.fetches == 2


def test_new_key_is_taken_up_and_one_that_was_taken_away_is_dropped(
    google: Google, sandbox: Sandbox, clock: Clock
) -> None:
    old = sandbox.mint(ANN)
    proved(google, old)
    sandbox.rotate()
    clock.tick(NEW_KEY_SECONDS)
    assert proved(google, sandbox.mint(ANN)) == proved(google, old) == ANN
    assert sandbox.fetches == 2
    sandbox.rotate(keep=False)
    clock.tick(MAX_AGE)
    assert proved(google, sandbox.mint(ANN)) == ANN
    assert "not one of Google's" in refused(google, old)


def test_unknown_keys_cost_one_fetch_a_minute_however_many_come(google: Google, sandbox: Sandbox, clock: Clock) -> None:
    proved(google, sandbox.mint(ANN))
    forged = [sandbox.mint(ANN, header={"kid": f"{number:040x}"}) for number in range(20)]
    for token in forged:
        refused(google, token)
    assert sandbox.fetches == 1
    clock.tick(NEW_KEY_SECONDS)
    at_once(20, lambda number: refused(google, forged[number]))
    assert sandbox.fetches == 2


def test_last_good_ones_serve_while_google_is_down_with_one_attempt_in_five_seconds(
    google: Google, sandbox: Sandbox, clock: Clock
) -> None:
    token = sandbox.mint(ANN)
    proved(google, token)
    sandbox.status = 503
    clock.tick(MAX_AGE)
    for _ in range(5):
        assert proved(google, token) == ANN
    assert sandbox.fetches == 2
    clock.tick(PAUSE_SECONDS)
    assert proved(google, token) == ANN
    assert sandbox.fetches == 3
    clock.tick(LAST_GOOD_SECONDS)
    with pytest.raises(IdentityUnavailable):
        proved(google, token)
    sandbox.status = 200
    clock.tick(PAUSE_SECONDS)
    assert proved(google, token) == ANN


def test_unknown_key_while_google_is_down_is_not_called_wrong(google: Google, sandbox: Sandbox, clock: Clock) -> None:
    """It may be the key of tomorrow; whoever holds the token should try again."""
    proved(google, sandbox.mint(ANN))
    sandbox.rotate()
    sandbox.status = 500
    clock.tick(NEW_KEY_SECONDS)
    for _ in range(3):
        with pytest.raises(IdentityUnavailable):
            proved(google, sandbox.mint(ANN))
    assert sandbox.fetches == 2
    sandbox.status = 200
    clock.tick(PAUSE_SECONDS)
    assert proved(google, sandbox.mint(ANN)) == ANN


def test_google_that_was_never_reached_is_tried_once_in_five_seconds(sandbox: Sandbox, clock: Clock) -> None:
    sandbox.stop()
    google = Google(Certificates(sandbox.url, clock), [AUDIENCE])
    for _ in range(3):
        with pytest.raises(IdentityUnavailable) as caught:
            proved(google, sandbox.mint(ANN))
        assert caught.value.retry_after == PAUSE_SECONDS
    sandbox.start()
    with pytest.raises(IdentityUnavailable):
        proved(google, sandbox.mint(ANN))
    assert sandbox.fetches == 0
    clock.tick(PAUSE_SECONDS)
    assert proved(google, sandbox.mint(ANN)) == ANN


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b"<html>", b'{"a": 1}', b'{"a": "not a certificate"}', b'{"keys": []}', b"[" * 60000,
     b"\xff", b'{"a": "' + b"x" * MAX_FETCHED + b'"}',
     json.dumps({str(number): "x" for number in range(MAX_CERTIFICATES + 1)}).encode()],
    ids=lambda body: body[:12],
)  # fmt: skip
def test_what_are_no_certificates_never_take_the_place_of_good_ones(
    google: Google, sandbox: Sandbox, clock: Clock, body: bytes
) -> None:
    good = sandbox.mint(ANN)
    sandbox.body = body
    with pytest.raises(IdentityUnavailable):
        proved(google, good)
    sandbox.body = None
    clock.tick(PAUSE_SECONDS)
    proved(google, good)
    sandbox.body = body
    clock.tick(MAX_AGE)
    assert proved(google, good) == ANN
    assert sandbox.fetches == 3


def test_key_of_another_kind_proves_nobody(google: Google, sandbox: Sandbox) -> None:
    elliptic = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = elliptic.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    sandbox.body = json.dumps({sandbox._keys[0].id: pem.decode()}).encode()
    assert "signature" in refused(google, sandbox.mint(ANN))


@pytest.mark.parametrize("status", [204, 301, 302, 307, 404, 500])
def test_no_redirect_is_followed_and_no_other_status_taken(
    google: Google, sandbox: Sandbox, clock: Clock, status: int
) -> None:
    with Sandbox() as elsewhere:
        sandbox.status, sandbox.headers = status, {"Location": elsewhere.url}
        with pytest.raises(IdentityUnavailable) as caught:
            proved(google, sandbox.mint(ANN))
        assert caught.value.note == f"Google's certificates cannot be fetched: status {status}"
        assert elsewhere.fetches == 0


def test_proxy_of_the_environment_is_not_obeyed(
    google: Google, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert proved(google, sandbox.mint(ANN)) == ANN


def test_google_that_says_nothing_is_waited_for_no_longer_than_the_call_has_time(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        certificates = Certificates(f"http://127.0.0.1:{silent.getsockname()[1]}/", time.monotonic)
        began = time.monotonic()
        with pytest.raises(IdentityUnavailable):
            certificates.find("k", time.monotonic() + 0.2)
        assert time.monotonic() - began < 60  # on a busy machine; it would wait for ever


def test_certificates_come_from_google_over_https_and_its_name_is_checked(sandbox: Sandbox) -> None:
    assert CERTIFICATES.startswith("https://www.googleapis.com/")
    # A server that does not speak TLS is not spoken to.
    with pytest.raises(IdentityUnavailable):
        Certificates(sandbox.url.replace("http:", "https:"), time.monotonic).find("k", time.monotonic() + 60)
    assert sandbox.fetches == 0


def test_certificates_are_taken_from_nobody_whom_no_trusted_authority_vouches_for(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    sandbox.stop()
    sandbox.tls = authority.context(LOOPBACK)
    sandbox.start()
    address, key_id = sandbox.url.replace("http:", "https:"), Token.of(sandbox.mint(ANN)).header.kid
    with pytest.raises(IdentityUnavailable):
        Certificates(address, time.monotonic).find(key_id, time.monotonic() + 60)
    assert sandbox.fetches == 0
    trusting = Certificates(address, time.monotonic, str(authority.file))
    assert trusting.find(key_id, time.monotonic() + 60) is not None
