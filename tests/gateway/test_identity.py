"""Credential -> Caller."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.identity import identify
from policies import document
from policies.refusals import CredentialMissing, CredentialsConflict, CredentialUnknown, Refusal
from tests.conftest import sha256
from tests.gateway.conftest import call

FIRST, SECOND, REVOKED = "csk_first_key_0001", "csk_second_key_0002", "csk_revoked_key_0003"
EXPIRY = datetime(2027, 3, 1, tzinfo=UTC).timestamp()
POLICIES = document.read(
    f"""
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: appgregator, origin: "http://127.0.0.1:9",
            secret: projects/p/secrets/s/versions/latest}}
callers:
  app:
    owner: tests
    credentials:
      - key: {{id: k1, sha256: {sha256(FIRST)}, expires: 2027-03-01}}
      - key: {{id: k2, sha256: {sha256(SECOND)}}}
    limits: [30/minute]
    grants: [{{connection: billing, operation: invoices.create, parameters: {{customer: }}, response: [id]}}]
""",
    "policy.yaml",
)


def refused(*, now: float = EXPIRY - 1, key: str | None = None, authorization: str | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        identify(POLICIES, call(key=key, authorization=authorization), now)
    return caught.value


@pytest.mark.parametrize(("key", "credential"), [(FIRST, "k1"), (SECOND, "k2")])
def test_either_of_two_keys_is_the_same_caller(key: str, credential: str) -> None:
    caller = identify(POLICIES, call(key=key), EXPIRY - 1)
    assert (caller.id, caller.credential) == ("app", credential)


def test_key_works_until_the_moment_it_expires_and_the_other_goes_on() -> None:
    assert identify(POLICIES, call(key=FIRST), EXPIRY - 0.001).credential == "k1"
    assert isinstance(refused(key=FIRST, now=EXPIRY), CredentialUnknown)
    assert identify(POLICIES, call(key=SECOND), EXPIRY).credential == "k2"


def test_unknown_expired_and_revoked_keys_are_answered_alike() -> None:
    answers = [
        refused(key="csk_nobody_has_this_key"),
        refused(key=FIRST, now=EXPIRY + 1),
        refused(key=REVOKED),
        refused(authorization=f"Bearer {REVOKED}"),
        refused(authorization="Basic YXBwOnBhc3N3b3Jk"),
    ]
    assert {type(refusal) for refusal in answers} == {CredentialUnknown}
    assert len({str(sorted(refusal.problem("id").items())) for refusal in answers}) == 1
    assert len({str(sorted(refusal.headers.items())) for refusal in answers}) == 1
    assert answers[0].problem("one") != answers[0].problem("another")


def test_record_alone_is_told_that_a_key_has_expired() -> None:
    refusal = refused(key=FIRST, now=EXPIRY)
    assert refusal.note == "credential k1 of app has expired"
    assert "expired" not in str(refusal.problem("id"))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_bearer_is_read_in_any_case(scheme: str) -> None:
    assert identify(POLICIES, call(key=None, authorization=f"{scheme} {SECOND}"), 0).id == "app"


@pytest.mark.parametrize("key", [SECOND, "", "csk_wrong"])
def test_two_credentials_are_a_conflict_even_where_both_are_right(key: str) -> None:
    assert isinstance(refused(key=key, authorization=f"Bearer {SECOND}"), CredentialsConflict)


@pytest.mark.parametrize("key", [f"{SECOND},{SECOND}", f"{FIRST}, {SECOND}", ","])
def test_key_header_sent_twice_is_a_conflict(key: str) -> None:
    assert isinstance(refused(key=key), CredentialsConflict)


@pytest.mark.parametrize(
    ("key", "authorization"), [(None, None), ("", None), (None, "")], ids=["none", "empty key", "empty authorization"]
)
def test_no_credential_is_missing(key: str | None, authorization: str | None) -> None:
    refusal = refused(key=key, authorization=authorization)
    assert isinstance(refusal, CredentialMissing)
    assert refusal.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("key", ["csk_clé", "\xff\xfe", "csk_€", "\udcff", "csk_key\n", f" {SECOND}", SECOND.upper()])
@pytest.mark.parametrize("header", ["x-api-key", "Authorization"])
def test_odd_key_is_401_and_no_exception(header: str, key: str) -> None:
    refusal = refused(key=key) if header == "x-api-key" else refused(authorization=f"Bearer {key}\t")
    assert (refusal.status, type(refusal)) == (401, CredentialUnknown)


@pytest.mark.parametrize(
    "authorization",
    ["Bearer", "Bearer ", f"Basic {SECOND}", f"Bearer {SECOND} {SECOND}", f"Bearer {SECOND}, Bearer {SECOND}", SECOND],
)
def test_authorization_of_any_other_form_is_401(authorization: str) -> None:
    assert refused(authorization=authorization).status == 401


def test_refused_key_is_in_no_text_of_the_refusal() -> None:
    refusal = refused(key="csk_almost_right")
    assert "almost" not in f"{refusal!r}{refusal.note}{refusal.problem('id')}{refusal.headers}"
