"""Credential -> Caller."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.certificates import Certificates
from gateway.identity import Identity
from gateway.means import Means
from gateway.secrets import Mounted, Secrets
from gateway.tokens import Google
from policies import document
from policies.callerkeys import MISTYPED, NOT_FILLED_IN, Place, checked
from policies.refusals import (
    CredentialMissing,
    CredentialsConflict,
    CredentialUnknown,
    IdentityUnavailable,
    Refusal,
    TokenNotAccepted,
    Unauthenticated,
)
from sandbox.google import AUDIENCE, stripped
from sandbox.google import Google as Sandbox
from tests.conftest import sha256
from tests.gateway.conftest import Webhook, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policies.model import Call, Caller

FIRST, REVOKED, NOBODYS = (checked(f"csk_{letter * 43}") for letter in "abc")
#: Made by hand, not by `countersign key`: the policy knows them, so they are as good.
SECOND, OTHER, DOTTED, ENDED = "csk_second_key_0002", "csk_key_of_another_0004", "csk.with.dots", "csk_ended_0005"
ANN, APP = "ann@acme.example", "billing-app@acme.iam.gserviceaccount.com"
EXPIRY = datetime(2027, 3, 1, tzinfo=UTC).timestamp()
GRANTS = "[{connection: billing, operation: invoices.create, parameters: {customer: }, response: [id]}]"
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
      - key: {{id: k3, sha256: {sha256(DOTTED)}}}
      - key: {{id: k4, sha256: {sha256(ENDED)}, expires: 2020-01-01}}
      - google: {APP}
    limits: [30/minute]
    grants: {GRANTS}
  other:
    owner: tests
    credentials:
      - key: {{id: k1, sha256: {sha256(OTHER)}}}
      - google: {ANN}
    limits: [30/minute]
    grants: {GRANTS}
""",
    "policy.yaml",
)
SIGNED = Webhook("msg_1", "1", "v1,x")


def door(
    address: str = "http://127.0.0.1:9/", *, iam: bool = False, audiences: tuple[str, ...] = (AUDIENCE,)
) -> Identity:
    secrets = Secrets(manager=Mounted(), mounted=Mounted(), clock=time.monotonic)
    google = Google(Certificates(address, time.monotonic), audiences)
    return Identity(Means(secrets, google), behind_iam=iam)


DOOR, GUARDED = door(), door(iam=True)


def identify(asked: Call, now: float | None = None, *, at: Identity = DOOR) -> Caller:
    return at.identify(POLICIES, asked, time.time() if now is None else now, time.monotonic() + 25)


def turned_away(asked: Call, now: float | None = None, *, at: Identity = DOOR) -> Refusal:
    with pytest.raises(Refusal) as caught:
        identify(asked, now, at=at)
    return caught.value


def refused(*, now: float = EXPIRY - 1, key: str | None = None, authorization: str | None = None) -> Refusal:
    return turned_away(call(key=key, authorization=authorization), now)


def basic(pair: str | bytes) -> str:
    return "Basic " + base64.b64encode(pair.encode() if isinstance(pair, str) else pair).decode()


@pytest.fixture(scope="module")
def google() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(("key", "credential"), [(FIRST, "k1"), (SECOND, "k2")])
def test_either_of_two_keys_is_the_same_caller(key: str, credential: str) -> None:
    caller = identify(call(key=key), EXPIRY - 1)
    assert (caller.id, caller.credential) == ("app", credential)


def test_key_works_until_the_moment_it_expires_and_the_other_goes_on() -> None:
    assert identify(call(key=FIRST), EXPIRY - 0.001).credential == "k1"
    assert isinstance(refused(key=FIRST, now=EXPIRY), CredentialUnknown)
    assert identify(call(key=SECOND), EXPIRY).credential == "k2"


def test_unknown_expired_and_revoked_keys_are_answered_alike() -> None:
    answers = [
        refused(key=NOBODYS),
        refused(key=FIRST, now=EXPIRY + 1),
        refused(key=REVOKED),
        refused(authorization=f"Bearer {REVOKED}"),
        refused(authorization="Basic YXBwOnBhc3N3b3Jk"),
        refused(authorization=basic(f"{FIRST}:"), now=EXPIRY + 1),
    ]
    assert {type(refusal) for refusal in answers} == {CredentialUnknown}
    assert len({str(sorted(refusal.problem("id").items())) for refusal in answers}) == 1
    assert len({str(sorted(refusal.headers.items())) for refusal in answers}) == 1
    assert answers[0].problem("one") != answers[0].problem("another")


QUOTED, UNSCHEMED = (
    "The caller key has quotation marks around it.",
    "Authorization has no Bearer in front of the caller",
)
AROUND, BEARER = "The caller key has something in it or around it", "The caller key has Bearer in front of it."


@pytest.mark.parametrize(
    ("header", "sent", "says", "advice"),
    [
        *(
            ("x-api-key", sent, says, Place.X_API_KEY)
            for sent, says in {
                f"Bearer {FIRST}": BEARER, f"bearer {FIRST}": BEARER.replace("B", "b"), f'"{FIRST}"': QUOTED,
                f"'{FIRST}'": QUOTED, f"\xe2\x80\x9c{FIRST}\xe2\x80\x9d": QUOTED, f"key={FIRST}": AROUND,
                f"x-api-key: {FIRST}": AROUND, f"\xef\xbb\xbf{FIRST}": AROUND, f" {FIRST}": AROUND,
                f"Bearer {FIRST[:-1]}": BEARER, f"Token: {FIRST}": "The caller key has Token in front of it.",
                f"<{FIRST}>": AROUND, f"${{{FIRST}}}": AROUND,
            }.items()
        ),
        *(
            ("Authorization", sent, says, Place.AUTHORIZATION)
            for sent, says in {
                FIRST: UNSCHEMED, FIRST[:-1]: UNSCHEMED, f'"{FIRST}"': QUOTED,
                f"Token {FIRST}": "The caller key has Token in front of it.",
                f"ApiKey {FIRST}": "The caller key has ApiKey in front of it.",
                f"Basic {FIRST}": "The caller key has Basic in front of it.",
                f"Bearer: {FIRST}": BEARER, f"Bearer{FIRST}": AROUND, f'Bearer "{FIRST}"': QUOTED,
                f'"Bearer {FIRST}"': QUOTED, f"Bearer Bearer {FIRST}": BEARER.replace("Bearer", "Bearer Bearer"),
                f"Bearer {FIRST[:9]} {FIRST[9:]}": BEARER, f"x-api-key {FIRST}": AROUND, f"Hush {FIRST}": AROUND,
            }.items()
        ),
        *(
            ("Authorization", basic(pair), says, Place.BASIC)
            for pair, says in {
                f'app:"{FIRST}"': QUOTED, f"app:Bearer {FIRST}": BEARER, f"'{FIRST}':": QUOTED,
                f"app:x:{FIRST}": AROUND,
            }.items()
        ),
        *(
            ("x-api-key", sent, MISTYPED, MISTYPED)
            for sent in (
                FIRST[:-1], FIRST + "0", FIRST[:20] + "0" + FIRST[21:], FIRST.upper(), "csk_", "csk_your_own_key",
                f"{FIRST[:9]} {FIRST[9:]}", f"{FIRST[:9]}\\n{FIRST[9:]}", f'{FIRST}"', f"{FIRST};", f"{FIRST}\xa0",
                f"{FIRST} {FIRST}", "csk_\xe9",
            )
        ),
        ("Authorization", f"Bearer {FIRST[:-1]}", MISTYPED, MISTYPED),
        ("Authorization", basic(f"app:{FIRST[:-1]}"), MISTYPED, MISTYPED),
        *(
            ("x-api-key", sent, NOT_FILLED_IN, NOT_FILLED_IN)
            for sent in (
                "$KEY", "${COUNTERSIGN_KEY}", "%KEY%", "{{ $env.KEY }}", "<your caller key>", "undefined", "null",
                "None", "YOUR_CALLER_KEY",
            )
        ),
        ("Authorization", "Bearer $KEY", NOT_FILLED_IN, NOT_FILLED_IN),
        ("Authorization", "{{key}}", NOT_FILLED_IN, NOT_FILLED_IN),
        ("Authorization", basic("app:${KEY}"), NOT_FILLED_IN, NOT_FILLED_IN),
        *(
            ("x-api-key", sent, CredentialUnknown.sentence, "")
            for sent in ("nobody", "sk_test_1", "csk", f"{DOTTED}x")
        ),
        ("Authorization", "Bearer nobody", CredentialUnknown.sentence, ""),
        ("Authorization", "Digest nobody", CredentialUnknown.sentence, ""),
        ("Authorization", basic("app:nobody"), CredentialUnknown.sentence, ""),
    ],
)  # fmt: skip
def test_key_that_was_wrapped_or_mistyped_is_said_to_be_and_shown_nowhere(
    header: str, sent: str, says: str, advice: str
) -> None:
    asked = call(key=sent) if header == "x-api-key" else call(key=None, authorization=sent)
    refusal = turned_away(asked, EXPIRY - 1)
    assert isinstance(refusal, CredentialUnknown)
    assert refusal.detail.startswith(says)
    assert refusal.detail.endswith(advice)
    shown = f"{refusal.note}{refusal.problem('id')}{refusal.headers}"
    assert FIRST[:9] not in shown
    assert FIRST[-9:] not in shown


@pytest.mark.parametrize("key", [SECOND, OTHER, FIRST])
def test_key_is_never_looked_up_without_its_wrapping(key: str) -> None:
    for sent in (f"Bearer {key}", f'"{key}"', f"{key}x"):
        known, nobodys = refused(key=sent), refused(key=sent.replace(key, NOBODYS))
        assert known.problem("id") == nobodys.problem("id")
    assert refused(authorization=key).problem("id") == refused(authorization=NOBODYS).problem("id")


def test_key_that_has_expired_is_answered_like_an_unknown_one_of_its_form() -> None:
    ended, unknown = refused(key=ENDED), refused(key=ENDED + "0")
    assert ended.problem("id") == unknown.problem("id")
    assert ended.detail == MISTYPED
    assert ended.note == "credential k4 of app has expired"


def test_record_alone_is_told_that_a_key_has_expired() -> None:
    refusal = refused(key=FIRST, now=EXPIRY)
    assert refusal.note == "credential k1 of app has expired"
    assert "expired" not in str(refusal.problem("id"))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_bearer_is_read_in_any_case(scheme: str) -> None:
    assert identify(call(key=None, authorization=f"{scheme} {SECOND}"), 0).id == "app"


def test_key_that_has_the_form_of_a_token_is_still_a_key() -> None:
    assert identify(call(key=None, authorization=f"Bearer {DOTTED}")).credential == "k3"


@pytest.mark.parametrize("pair", [f"app:{SECOND}", f":{SECOND}", f"{SECOND}:", f"somebody else:{SECOND}"])
@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
def test_key_is_the_password_or_the_name_where_the_password_is_empty(scheme: str, pair: str) -> None:
    assert identify(call(key=None, authorization=basic(pair).replace("Basic", scheme))).credential == "k2"


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic ", "Basic :", f"Basic {SECOND}", "Basic ====", "Basic YQ", "Basic YQ=", "Basic YQ===",
        "Basic Y Q==", basic(""), basic(SECOND), basic(f"{SECOND}:x"), basic(f"{SECOND}:{SECOND}x"),
        basic(f"app:{SECOND}\n"), basic(f"app:\0{SECOND}"), basic(f"{SECOND}\0:"), basic(f"é:{SECOND}"),
        basic(b"\xff\xfe:\xff"), basic(f"app:{SECOND}:"), basic(f"app::{SECOND}"), basic(f"{SECOND}::"),
        basic(f"app:{SECOND}") + "\t",
        f"Basic {base64.urlsafe_b64encode(b'??>>??>>:' + SECOND.encode()).decode()}",
    ],
)  # fmt: skip
def test_basic_of_any_other_form_is_401(authorization: str) -> None:
    assert isinstance(refused(authorization=authorization), CredentialUnknown)


@pytest.mark.parametrize("authorization", ["", "Bearer", "bearer", "Basic", basic(":")])
def test_authorization_without_a_key_is_one_that_is_missing_as_an_empty_x_api_key_is(authorization: str) -> None:
    for refusal in (refused(authorization=authorization), refused(key="")):
        assert isinstance(refusal, CredentialMissing)
        assert refusal.detail.endswith((" your caller key.", " your caller key in it."))


@pytest.mark.parametrize("pair", [("Bearer {}", "Bearer {}"), ("bearer {}", "basic YTpi"), ("Basic YTpi", "Bearer {}")])
@pytest.mark.parametrize("between", [", ", ","])
def test_header_that_was_sent_twice_is_a_conflict_in_either_place(pair: tuple[str, str], between: str) -> None:
    assert isinstance(refused(authorization=between.join(pair).format(SECOND, SECOND)), CredentialsConflict)
    assert isinstance(refused(key=between.join((SECOND, SECOND))), CredentialsConflict)


@pytest.mark.parametrize("key", [SECOND, "", "csk_wrong"])
def test_two_credentials_are_a_conflict_even_where_both_are_right(key: str) -> None:
    assert isinstance(refused(key=key, authorization=f"Bearer {SECOND}"), CredentialsConflict)
    assert isinstance(refused(key=key, authorization=basic(f"{SECOND}:")), CredentialsConflict)
    assert isinstance(turned_away(call(key=key, webhook=SIGNED)), CredentialsConflict)
    assert isinstance(
        turned_away(call(key=None, authorization=f"Bearer {SECOND}", webhook=SIGNED)), CredentialsConflict
    )


@pytest.mark.parametrize("key", [f"{SECOND},{SECOND}", f"{FIRST}, {SECOND}", ","])
def test_key_header_sent_twice_is_a_conflict(key: str) -> None:
    assert isinstance(refused(key=key), CredentialsConflict)


@pytest.mark.parametrize(
    ("key", "authorization"), [(None, None), ("", None), (None, "")], ids=["none", "empty key", "empty authorization"]
)
def test_no_credential_is_missing(key: str | None, authorization: str | None) -> None:
    for at in (DOOR, GUARDED):
        refusal = turned_away(call(key=key, authorization=authorization), at=at)
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


# ---------------------------------------------------------------- Google's tokens


def test_token_is_the_caller_whom_the_policy_gives_its_address(google: Sandbox) -> None:
    for email, name in ((APP, "app"), (ANN, "other")):
        caller = identify(call(key=None, authorization=f"Bearer {google.mint(email)}"), at=door(google.url))
        assert (caller.id, caller.credential, caller.expires) == (name, f"google:{email}", None)


@pytest.mark.parametrize("email", ["bob@acme.example", "Ann@acme.example", "ANN@ACME.EXAMPLE", "ann@acme.example ", ""])
def test_address_that_the_policy_does_not_name_is_answered_like_a_forged_token(google: Sandbox, email: str) -> None:
    at = door(google.url)
    answers = [
        turned_away(call(key=None, authorization=f"Bearer {token}"), at=at)
        for token in (google.mint(email), google.mint(ANN)[:-4] + "AAAA", google.mint(ANN, "https://elsewhere.example"))
    ]
    assert {type(answer) for answer in answers} == {TokenNotAccepted}
    assert len({str(answer.problem("id")) for answer in answers}) == 1


def test_token_in_a_header_for_keys_is_an_unknown_key(google: Sandbox) -> None:
    token = google.mint(ANN)
    at = door(google.url)
    assert isinstance(turned_away(call(key=token), at=at), CredentialUnknown)
    assert isinstance(turned_away(call(key=None, authorization=basic(f"ann:{token}")), at=at), CredentialUnknown)
    assert isinstance(turned_away(call(key=None, authorization=f"Token {token}"), at=at), CredentialUnknown)


def test_token_costs_nothing_where_the_policy_names_no_google_identity(google: Sandbox) -> None:
    before = google.fetches
    policies = document.read(
        f"""
connections:
  b: {{name: a, connection_name: b, upstream: appgregator, origin: "http://127.0.0.1:9", secret: "file:x"}}
callers:
  app: {{owner: tests, credentials: [key: {{id: k1, sha256: {sha256(FIRST)}}}], limits: [30/minute],
        grants: {GRANTS.replace("billing", "b")}}}
""",
        "policy.yaml",
    )
    with pytest.raises(TokenNotAccepted):
        door(google.url).identify(policies, call(key=None, authorization=f"Bearer {google.mint(ANN)}"), 0, 0)
    assert google.fetches == before


# ---------------------------------------------------------------- behind IAM


@pytest.mark.parametrize("audiences", [(), (AUDIENCE,)])
@pytest.mark.parametrize("header", ["serverless", "authorization"])
def test_token_that_iam_has_checked_is_believed_in_either_header(
    google: Sandbox, header: str, audiences: tuple[str, ...]
) -> None:
    before = google.fetches
    at = door(google.url, iam=True, audiences=audiences)
    asked = call(key=None, **{header: f"Bearer {stripped(google.mint(ANN))}"})  # type: ignore[arg-type]
    assert identify(asked, at=at).credential == f"google:{ANN}"
    assert google.fetches == before


@pytest.mark.parametrize("header", ["serverless", "authorization"])
def test_stripped_token_is_never_believed_without_iam(google: Sandbox, header: str) -> None:
    asked = call(key=None, **{header: f"Bearer {stripped(google.mint(ANN))}"})  # type: ignore[arg-type]
    assert isinstance(turned_away(asked, at=door(google.url)), TokenNotAccepted)


def test_header_of_googles_door_is_refused_where_there_is_no_door(google: Sandbox) -> None:
    token = f"Bearer {google.mint(ANN)}"
    at = door(google.url)
    assert isinstance(turned_away(call(key=None, serverless=token), at=at), TokenNotAccepted)
    for asked in (call(key=SECOND, serverless=token), call(key=None, authorization=f"Bearer {SECOND}", serverless="")):
        refusal = turned_away(asked, at=at)
        assert isinstance(refusal, CredentialsConflict)
        assert refusal.note == "X-Serverless-Authorization is only taken with IAM=guards"


def test_stripped_token_beside_the_one_that_iam_has_checked_is_a_forgery(google: Sandbox) -> None:
    """The platform hands Authorization on as it came when there is X-Serverless-Authorization."""
    checked, forged = (f"Bearer {stripped(google.mint(email))}" for email in ("bob@acme.example", ANN))
    at = door(google.url, iam=True)
    assert isinstance(turned_away(call(key=None, serverless=checked, authorization=forged), at=at), TokenNotAccepted)
    assert isinstance(turned_away(call(key=None, serverless="", authorization=forged), at=at), TokenNotAccepted)


@pytest.mark.parametrize("header", ["serverless", "authorization"])
def test_token_with_its_signature_is_verified_in_full_behind_iam(google: Sandbox, header: str) -> None:
    at = door(google.url, iam=True)
    token = google.mint(ANN)
    ask: Callable[[str], Call] = lambda token: call(key=None, **{header: f"Bearer {token}"})  # type: ignore[arg-type]  # noqa: E731
    assert identify(ask(token), at=at).id == "other"
    assert isinstance(turned_away(ask(token[:-4] + "AAAA"), at=at), TokenNotAccepted)
    without_audience = door(google.url, iam=True, audiences=())
    assert isinstance(turned_away(ask(token), at=without_audience), TokenNotAccepted)


@pytest.mark.parametrize(
    "claims",
    [
        {"audience": "https://elsewhere.example"}, {"iss": "https://accounts.google.com.evil.example"}, {"exp": 1},
        {"iat": 4_000_000_000, "exp": 4_000_000_001}, {"email_verified": False}, {"email": None}, {"aud": None},
        {"header": {"alg": "none"}}, {"header": {"alg": "HS256"}},
    ],
)  # fmt: skip
def test_claims_are_checked_behind_iam_too(google: Sandbox, claims: dict[str, object]) -> None:
    token = stripped(google.mint(**{"email": ANN, **claims}))  # type: ignore[arg-type]
    assert isinstance(turned_away(call(key=None, serverless=f"Bearer {token}"), at=GUARDED), TokenNotAccepted)


@pytest.mark.parametrize("email", ["bob@acme.example", APP])
def test_key_beside_the_token_of_nobody_else_says_who_calls(google: Sandbox, email: str) -> None:
    token = f"Bearer {stripped(google.mint(email))}"
    for asked in (
        call(key=SECOND, serverless=token),
        call(key=SECOND, authorization=token),
        call(key=None, authorization=f"Bearer {SECOND}", serverless=token),
        call(key=None, authorization=basic(f"{SECOND}:"), serverless=token),
    ):
        assert identify(asked, at=GUARDED).credential == "k2"


@pytest.mark.parametrize("passed", ["", "Bearer", "Bearer opaque", "Bearer a.b.c", "Bearer a.b.c, Bearer a.b.c", "x"])
def test_key_counts_beside_whatever_else_iam_has_let_through(passed: str) -> None:
    assert identify(call(key=SECOND, serverless=passed), at=GUARDED).credential == "k2"
    assert turned_away(call(key=None, serverless=passed), at=GUARDED).status == 401


def test_key_of_one_caller_beside_the_token_of_another_is_a_conflict(google: Sandbox) -> None:
    token = f"Bearer {stripped(google.mint(ANN))}"
    for asked in (call(key=SECOND, serverless=token), call(key=SECOND, authorization=token)):
        refusal = turned_away(asked, at=GUARDED)
        assert isinstance(refusal, CredentialsConflict)
        assert refusal.note == "k2 of app beside a token of other"
    assert identify(call(key=OTHER, serverless=token), at=GUARDED).credential == "k1"


def test_wrong_key_is_not_saved_by_the_token_beside_it(google: Sandbox) -> None:
    token = f"Bearer {stripped(google.mint(ANN))}"
    assert isinstance(turned_away(call(key="csk_wrong", serverless=token), at=GUARDED), CredentialUnknown)
    assert isinstance(turned_away(call(key="", serverless=token), at=GUARDED), CredentialMissing)
    assert turned_away(call(key=None, webhook=SIGNED, serverless=token), at=GUARDED).reason == "webhook-not-verified"
    both = call(key=SECOND, authorization=f"Bearer {SECOND}", serverless=token)
    assert isinstance(turned_away(both, at=GUARDED), CredentialsConflict)


# ---------------------------------------------------------------- whatever is sent


MINTER = Sandbox()
HEADER = st.one_of(
    st.none(),
    st.text(st.characters(max_codepoint=255), max_size=80),
    st.binary(max_size=60).map(basic),
    st.from_regex(r"(?i)(bearer|basic) +[!-~]{0,60}", fullmatch=True),
    st.tuples(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=20)).map(
        lambda parts: "Bearer " + ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
    ),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5).map(
        lambda claim: f"Bearer {stripped(MINTER.mint(ANN, exp=claim))}"
    ),
)


@given(
    key=st.one_of(st.none(), st.text(max_size=40)),
    authorization=HEADER,
    serverless=HEADER,
    webhook=st.one_of(
        st.none(),
        st.builds(Webhook, st.text(max_size=20), st.text(max_size=14), st.text(max_size=60)),
    ),
    iam=st.booleans(),
)
def test_whatever_is_sent_is_401_and_nobody(
    key: str | None, authorization: str | None, serverless: str | None, webhook: Webhook | None, *, iam: bool
) -> None:
    asked = call(key=key, authorization=authorization, serverless=serverless, webhook=webhook)
    with pytest.raises(Unauthenticated):
        identify(asked, at=GUARDED if iam else DOOR)


def test_token_is_unavailable_where_google_cannot_be_reached() -> None:
    refusal = turned_away(call(key=None, authorization=f"Bearer {MINTER.mint(ANN)}"))
    assert isinstance(refusal, IdentityUnavailable)
    assert refusal.headers == {"Retry-After": "5"}
