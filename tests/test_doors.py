"""Every door that callers come by, end to end: keys in three places, Google's tokens, signed webhooks."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import standardwebhooks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies import compiled, document
from sandbox.google import AUDIENCE, stripped
from tests.conftest import CUSTOMER, FORM, KEY, OTHER_KEY, TARGET, policy
from tests.gateway.conftest import SIGNING
from tests.problems import as_replayed, parsed, refused, without_id
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from werkzeug.test import TestResponse

    from sandbox.appgregator import Appgregator
    from sandbox.google import Google
    from sandbox.secret_manager import SecretManager
    from tests.conftest import Function, Server

APP = "billing-app@acme.iam.gserviceaccount.com"
WEBHOOK = "projects/acme/secrets/n8n-signing"
OTHER_TARGET = TARGET.replace("stripe-1", "stripe-2")
BODY = json.dumps({"customer": "cus_MQqeLuPp19Qbk8", "description": "Café"}).encode()
NEW_SIGNING = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def doors(
    function: Callable[..., Function], upstream: Appgregator, google: Google, secret_manager: SecretManager
) -> Callable[..., Function]:
    """The function with every door open, as ``doors(idempotency="required", IAM="guards")``."""
    secret_manager.add(WEBHOOK, SIGNING.encode())

    def load(idempotency: str = "optional", webhook: str = f"{WEBHOOK}/versions/latest", **environ: str) -> Function:
        document = policy(
            upstream.origin, idempotency=idempotency, credentials=[f"google: {APP}", f"webhook: {webhook}"]
        )
        return function(document, **{"AUDIENCE": AUDIENCE, "GOOGLE_CERTS_ENDPOINT": google.address, **environ})

    return load


def signed(body: bytes = BODY, *, secret: str = SIGNING, name: str = "msg_1", late: float = 0) -> dict[str, str]:
    """Sign as the library of the specification's authors does."""
    moment = datetime.fromtimestamp(int(time.time() - late), UTC)
    return {
        "webhook-id": name,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": standardwebhooks.Webhook(secret).sign(name, moment, body.decode()),
    }


def post(
    function: Function, webhook: dict[str, str], body: bytes = BODY, *, target: str = TARGET, **headers: str
) -> TestResponse:
    return function.post(target, body, key=None, media="application/json", **webhook, **headers)


def test_every_door_opens_by_a_compiled_policy_too(
    doors: Callable[..., Function], upstream: Appgregator, google: Google, tmp_path: Path
) -> None:
    credentials = [f"google: {APP}", f"webhook: {WEBHOOK}/versions/latest"]
    read = document.read(policy(upstream.origin, credentials=credentials), "policy.yaml")
    (tmp_path / "acme.policy").write_bytes(compiled.write(read))
    running = doors(POLICY=str(tmp_path / "acme.policy"))
    assert running.post().status_code == 200
    assert running.post(key=None, Authorization=f"Bearer {google.mint(APP)}").status_code == 200
    assert post(running, signed()).status_code == 200
    assert running.post(key="csk_of_nobody").status_code == 401
    assert running.post(key=None, Authorization=f"Bearer {google.mint('bob@acme.example')}").status_code == 401
    assert post(running, signed(secret=NEW_SIGNING)).status_code == 401
    assert post(running, signed(), target=OTHER_TARGET).status_code == 401
    assert [entry["credential"] for entry in running.record.entries("intent")] == [
        "k1",
        f"google:{APP}",
        f"webhook:{WEBHOOK}/versions/latest",
    ]


def test_webhook_must_name_its_connection(doors: Callable[..., Function], upstream: Appgregator) -> None:
    answer = post(doors(), signed(), target="/v1/invoices")
    assert (answer.status_code, answer.json and answer.json["error"]["code"]) == (401, "webhook_not_verified")
    assert "must name its connection in the address" in answer.text
    assert not upstream.calls


def test_caller_on_hold_is_refused_at_every_door_and_gets_no_replay(
    doors: Callable[..., Function],
    upstream: Appgregator,
    google: Google,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The document is changed while the function runs; it is looked at a thousand times as often as otherwise."""
    monkeypatch.setattr("gateway.reloading.CHECK_SECONDS", 0.02)
    monkeypatch.setattr("gateway.reloading.MUST_SECONDS", 0.05)
    running, file = doors(), tmp_path / "policy.yaml"
    free = file.read_text()
    held = free.replace("  app:\n", "  app:\n    paused: true\n").encode()
    first = running.post(Idempotency_Key="order-1")
    assert first.status_code == 200
    for written in (held, compiled.write(document.read(held.decode(), "policy.yaml"))):
        file.write_bytes(written)
        time.sleep(0.05)
        for answer in (
            running.post(Idempotency_Key="order-1"),
            running.post(f"{TARGET}&validate_only=true"),
            running.post(OTHER_TARGET),
            running.post(key=None, Authorization=f"Bearer {google.mint(APP)}"),
            post(running, signed()),
        ):
            refused(answer, 403, "caller-paused")
        refused(running.post(key="nobody"), 401, "credential-unknown")
    entries = [entry for entry in running.record.entries("refusal") if entry["reason"] == "caller-paused"]
    assert {(entry["caller"], entry["credential"]) for entry in entries} == {
        ("app", "k1"), ("app", f"google:{APP}"), ("app", f"webhook:{WEBHOOK}/versions/latest")
    }  # fmt: skip
    assert running.post(OTHER_TARGET, key=OTHER_KEY, Idempotency_Key="order-1").status_code == 200
    file.write_text(free)
    time.sleep(0.05)
    again = running.post(Idempotency_Key="order-1")
    assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(first.data), "true")
    assert upstream.invoices == 2


# ---------------------------------------------------------------- Google identity


def test_google_identity_raises_an_invoice_and_is_on_record(
    doors: Callable[..., Function], upstream: Appgregator, google: Google
) -> None:
    running = doors()
    token = google.mint(APP)
    for _ in range(20):
        assert running.post(key=None, Authorization=f"Bearer {token}").status_code == 200
    assert upstream.invoices == 20
    assert google.fetches == 1
    (intent, *_) = running.record.entries("intent")
    assert (intent["caller"], intent["credential"]) == ("app", f"google:{APP}")
    assert token not in running.record.text()
    assert token.rpartition(".")[2] not in running.record.text()
    assert not [value for name, value in upstream.calls[0].headers if name.lower() == "authorization"]


def test_token_that_proves_nobody_is_refused_alike_and_its_reason_is_only_on_record(
    doors: Callable[..., Function], upstream: Appgregator, google: Google
) -> None:
    running = doors()
    token = google.mint(APP)
    head, claims, _ = token.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"k"}').rstrip(b"=").decode()
    wrong = {
        google.mint(APP, "https://elsewhere.example"): "it is for another audience",
        google.mint(APP, exp=int(time.time()) - 60): "it has expired, or is not valid yet",
        google.mint("bob@acme.example"): "the policy does not name its e-mail address",
        f"{none}.{claims}.": "its algorithm is not RS256",
        f"{none}.{claims}.AAAA": "its algorithm is not RS256",
        f"{head}.{claims}.AAAA": "bad signature, or outside its validity period",
        stripped(token): "its signature was removed, and no IAM is said to have checked it",
    }
    answers = [
        refused(running.post(key=None, Authorization=f"Bearer {each}"), 401, "token-not-accepted") for each in wrong
    ]
    assert len({str(without_id(answer)) for answer in answers}) == 1
    assert [entry["note"] for entry in running.record.entries()] == list(wrong.values())
    refused(running.post(key=token), 401, "credential-unknown")
    refused(running.post(key=None, X_Serverless_Authorization=f"Bearer {token}"), 401, "token-not-accepted")
    refused(running.post(key=KEY, Authorization=f"Bearer {token}"), 401, "credentials-conflict")
    refused(running.post(key=KEY, X_Serverless_Authorization=f"Bearer {token}"), 401, "credentials-conflict")
    assert not upstream.calls


def test_google_that_cannot_be_reached_is_503_and_stops_no_key(
    doors: Callable[..., Function], upstream: Appgregator, google: Google
) -> None:
    running = doors()
    google.stop()
    answer = running.post(key=None, Authorization=f"Bearer {google.mint(APP)}")
    problem = refused(answer, 503, "identity-unavailable")
    assert answer.headers["Retry-After"] == str(problem["retry_after"]) == "5"
    assert "libcurl error 7" in running.record.entries()[-1]["note"]
    assert running.post().status_code == 200
    assert upstream.invoices == 1


def test_google_identity_under_the_production_server(
    server: Callable[..., Server], upstream: Appgregator, google: Google
) -> None:
    document = policy(upstream.origin, credentials=[f"google: {APP}"])
    running = server(document, AUDIENCE=AUDIENCE, GOOGLE_CERTS_ENDPOINT=google.address)

    def ask(token: str) -> tuple[int, dict[str, str], bytes]:
        return running.call(headers={"Authorization": f"Bearer {token}"}, key=None)

    assert ask(google.mint(APP))[0] == 200
    assert ask(google.mint(APP))[0] == 200
    refused(ask(google.mint(APP, "https://elsewhere.example")), 401, "token-not-accepted")
    assert google.fetches == 1
    assert upstream.invoices == 2
    running.stop()
    assert running.errors.read_text() == ""


def test_policy_with_a_google_identity_does_not_start_without_an_audience(
    server: Callable[..., Server], upstream: Appgregator
) -> None:
    running = server(policy(upstream.origin, credentials=[f"google: {APP}"]), wait=False)
    assert running.process.wait(timeout=PATIENCE) != 0
    said = running.errors.read_text()
    assert "countersign cannot start: POLICY names a Google identity" in said
    assert "Traceback" not in said


# ---------------------------------------------------------------- behind IAM


@pytest.mark.parametrize("header", ["X_Serverless_Authorization", "Authorization"])
def test_identity_that_cloud_run_vouches_for(
    doors: Callable[..., Function], upstream: Appgregator, google: Google, header: str
) -> None:
    running = doors(IAM="guards")
    assert running.post(key=None, **{header: f"Bearer {stripped(google.mint(APP))}"}).status_code == 200
    assert running.record.entries("intent")[0]["credential"] == f"google:{APP}"
    other = stripped(google.mint(APP, "https://elsewhere.example"))
    refused(running.post(key=None, **{header: f"Bearer {other}"}), 401, "token-not-accepted")
    assert (upstream.invoices, google.fetches) == (1, 0)


def test_key_beside_the_token_that_iam_asks_for(
    doors: Callable[..., Function], upstream: Appgregator, google: Google
) -> None:
    running = doors(IAM="guards")
    nobody, app = (f"Bearer {stripped(google.mint(email))}" for email in ("zapier@acme.iam.gserviceaccount.com", APP))
    for headers in (
        {"key": KEY, "X_Serverless_Authorization": nobody},
        {"key": KEY, "Authorization": nobody},
        {"key": None, "X_Serverless_Authorization": nobody, "Authorization": f"Bearer {KEY}"},
        {"key": KEY, "X_Serverless_Authorization": app},
    ):
        assert running.post(**headers).status_code == 200
    assert {entry["credential"] for entry in running.record.entries("intent")} == {"k1"}
    refused(running.post(OTHER_TARGET, key=OTHER_KEY, X_Serverless_Authorization=app), 401, "credentials-conflict")
    refused(running.post(key=None, X_Serverless_Authorization=nobody, Authorization=app), 401, "token-not-accepted")
    assert post(running, signed(), X_Serverless_Authorization=nobody).status_code == 200
    assert upstream.invoices == 5


# ---------------------------------------------------------------- keys


def raw(server: Server, *headers: str) -> tuple[int, dict[str, str], bytes]:
    """Send headers exactly as they are written."""
    body = CUSTOMER.encode()
    lines = [f"POST {TARGET} HTTP/1.1", "Host: countersign", f"Content-Type: {FORM}", f"Content-Length: {len(body)}"]
    head = "\r\n".join([*lines, *headers, "Connection: close", "", ""]).encode("latin-1")
    return parsed(server.raw(head + body))


def basic(name: str, password: str = "") -> str:
    return "Authorization: Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_key_in_each_of_its_places_and_nowhere_else(server: Callable[..., Server], upstream: Appgregator) -> None:
    running = server()
    places = [f"x-api-key: {KEY}", f"Authorization: Bearer {KEY}", basic("app", KEY), basic(KEY), basic("", KEY)]
    for place in places:
        assert raw(running, place)[0] == 200, place
    assert upstream.invoices == len(places)
    for first in places:
        for second in places:
            status, _, body = raw(running, first, second)
            # gunicorn itself refuses two of some headers, before anybody of ours reads them.
            assert (status == 401 and json.loads(body)["reason"].startswith("credential")) or status == 400
    for wrong in (
        basic(KEY, "x"),
        basic("app", KEY[:-1]),
        f"X-Serverless-Authorization: Bearer {KEY}",
        f"Proxy-Authorization: Bearer {KEY}",
        f"Cookie: x-api-key={KEY}",
        f"x-api-key: Bearer {KEY}",
    ):
        assert raw(running, wrong)[0] == 401, wrong
    assert upstream.invoices == len(places)


@pytest.mark.parametrize("names", ["x_api_key", "X_API_KEY", "x-api_key", "x_api-key"])
def test_header_that_folds_into_another_is_never_taken_for_it(
    server: Callable[..., Server], upstream: Appgregator, names: str
) -> None:
    running = server(IAM="guards")
    refused(raw(running, f"{names}: {KEY}"), 401, "credential-missing")
    assert raw(running, f"x-api-key: {KEY}", f"{names}: csk_wrong")[0] == 200
    refused(raw(running, "x-api-key: csk_wrong", f"{names}: {KEY}"), 401, "credential-unknown")
    # Nor one that would stand for the header that only Google's door may speak in.
    refused(raw(running, f"X_Serverless_Authorization: Bearer {KEY}"), 401, "credential-missing")
    refused(raw(running, "webhook_id: a", "webhook_signature: b"), 401, "credential-missing")
    assert upstream.invoices == 1


HEADERS = (
    "x-api-key",
    "Authorization",
    "X-Serverless-Authorization",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "svix-id",
    "svix-timestamp",
    "svix-signature",
)


def test_odd_bytes_in_any_header_are_refused_and_never_an_error(
    server: Callable[..., Server], upstream: Appgregator
) -> None:
    running = server(IAM="guards")
    for header in HEADERS:
        for value in (
            "k\xe9y",
            "\xff\xfe",
            "Bearer \xe9",
            "Basic \xff",
            "a\x7fb",
            "a\tb",
            "Basic ====",
            "Bearer a.b.c",
        ):
            status, headers, body = raw(running, f"{header}: {value}")
            assert status in {400, 401}, (header, value)
            assert status == 400 or headers["content-type"] == "application/problem+json"
            assert b"Traceback" not in body
    assert not upstream.calls
    running.stop()
    assert running.errors.read_text() == ""


# ---------------------------------------------------------------- signed webhooks


def test_webhook_sent_twice_is_one_invoice_and_a_replay(server: Callable[..., Server], upstream: Appgregator,
    secret_manager: SecretManager) -> None:  # fmt: skip
    secret_manager.add(WEBHOOK, SIGNING.encode())
    running = server(
        policy(upstream.origin, idempotency="required", credentials=[f"webhook: {WEBHOOK}/versions/latest"])
    )
    headers = {"Content-Type": "application/json", **signed()}
    status, first, body = running.call(body=BODY, headers=headers, key=None)
    assert status == 200
    assert "idempotent-replayed" not in first
    again = running.call(body=BODY, headers=headers, key=None)
    # As a sender repeats it that signs each attempt anew: the same id, another time.
    later = running.call(body=BODY, headers={**headers, **signed(late=7)}, key=None)
    for status, replayed, repeated in (again, later):
        assert (status, replayed["idempotent-replayed"], repeated) == (200, "true", as_replayed(body))
    assert upstream.invoices == 1
    assert [entry["kind"] for entry in running.record.entries()] == ["intent", "outcome", "replay", "replay"]
    assert {entry["credential"] for entry in running.record.entries("intent", "replay")} == {
        f"webhook:{WEBHOOK}/versions/latest"
    }
    assert SIGNING.removeprefix("whsec_") not in running.record.text()
    running.stop()
    assert running.errors.read_text() == ""


def svix(webhook: dict[str, str]) -> dict[str, str]:
    return {name.replace("webhook-", "svix-"): value for name, value in webhook.items()}


def test_webhook_by_svixs_names_is_the_same_webhook(doors: Callable[..., Function], upstream: Appgregator) -> None:
    running = doors()
    first = post(running, svix(signed()))
    assert first.status_code == 200, first.text
    again = post(running, signed(late=7))
    assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(first.data), "true")
    refused(post(running, svix(signed(secret=NEW_SIGNING))), 401, "webhook-not-verified")
    assert upstream.invoices == 1


@pytest.mark.parametrize("more", [("id", "timestamp", "signature"), ("id",), ("signature",)])
def test_webhook_by_both_names_is_refused(
    doors: Callable[..., Function], upstream: Appgregator, more: tuple[str, ...]
) -> None:
    both = {f"svix-{name}": signed()[f"webhook-{name}"] for name in more}
    refused(post(doors(), {**signed(), **both}), 401, "credentials-conflict")
    assert not upstream.calls


def test_id_is_the_key_and_no_header_takes_its_place(doors: Callable[..., Function], upstream: Appgregator) -> None:
    running = doors()
    assert post(running, signed(), Idempotency_Key="a").status_code == 200
    assert post(running, signed(), Idempotency_Key="b").headers["Idempotent-Replayed"] == "true"
    assert upstream.invoices == 1
    assert post(running, signed(name="msg_2"), Idempotency_Key="a").status_code == 200
    # The same caller's key of the same text is another's name for another call.
    assert running.post(body=BODY, media="application/json", Idempotency_Key="msg_1").status_code == 200
    assert upstream.invoices == 3
    other = json.dumps({"customer": "cus_other"}).encode()
    refused(post(running, signed(other), other), 422, "idempotency-key-reused")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY, {"late": 3600.0}),
        (BODY, {"late": -3600.0}),
        (BODY, {"secret": NEW_SIGNING}),
        (json.dumps(json.loads(BODY), separators=(",", ":")).encode(), {}),
        (json.dumps(json.loads(BODY), ensure_ascii=False).encode(), {}),
        (BODY + b"\n", {}),
        (b"\xff", {}),
    ],
    ids=["stale", "early", "another secret", "re-serialised", "other characters", "a line break more", "no text"],
)
def test_webhook_that_is_not_right_is_refused(
    doors: Callable[..., Function], upstream: Appgregator, body: bytes, headers: dict[str, Any]
) -> None:
    running = doors()
    refused(post(running, signed(**headers), body), 401, "webhook-not-verified")
    assert not upstream.calls


@pytest.mark.parametrize("left_out", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_webhook_without_one_of_its_headers_is_refused(doors: Callable[..., Function], left_out: str) -> None:
    headers = signed()
    del headers[left_out]
    refused(post(doors(), headers), 401, "webhook-not-verified")


def test_webhook_for_a_connection_that_its_sender_may_not_use_is_nobodys(doors: Callable[..., Function]) -> None:
    running = doors()
    refused(post(running, signed(), target=OTHER_TARGET), 401, "webhook-not-verified")
    refused(post(running, signed(), target=TARGET.replace("ft-4", "ft-5")), 401, "webhook-not-verified")


def test_webhook_beside_another_credential_is_refused(doors: Callable[..., Function], google: Google) -> None:
    running = doors()
    for more in (
        {"x_api_key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"Bearer {google.mint(APP)}"},
    ):
        refused(post(running, {**signed(), **more}), 401, "credentials-conflict")


@pytest.mark.parametrize("header", HEADERS)
def test_overlong_header_is_refused(doors: Callable[..., Function], header: str) -> None:
    refused(post(doors(), {header: "a" * 5000}), 400, "header-malformed")


def test_secret_may_be_rotated_without_a_gap(
    doors: Callable[..., Function], upstream: Appgregator, secret_manager: SecretManager
) -> None:
    secret_manager.add(WEBHOOK, NEW_SIGNING.encode())
    running = doors(webhook=f"{WEBHOOK}/versions/1\n      - webhook: {WEBHOOK}/versions/2")
    for number, secret in enumerate((SIGNING, NEW_SIGNING)):
        assert post(running, signed(secret=secret, name=f"msg_{number}")).status_code == 200
    both = {**signed(name="msg_9"), "webhook-signature": " ".join(
        signed(name="msg_9", secret=secret)["webhook-signature"] for secret in (NEW_SIGNING, SIGNING))}  # fmt: skip
    assert post(running, both).status_code == 200
    assert upstream.invoices == 3


def test_signing_secret_that_cannot_be_had_is_503_and_stops_no_key(
    doors: Callable[..., Function], secret_manager: SecretManager
) -> None:
    running = doors(webhook="projects/acme/secrets/absent/versions/latest")
    refused(post(running, signed()), 503, "identity-unavailable")
    assert running.post().status_code == 200


def test_form_may_be_signed_as_well_and_only_looked_at(
    doors: Callable[..., Function], upstream: Appgregator, tmp_path: Path
) -> None:
    (tmp_path / "signing").write_text(SIGNING)
    running = doors(webhook=f"file:{tmp_path / 'signing'}")
    headers = signed(CUSTOMER.encode())
    answer = running.post(f"{TARGET}&validate_only=true", key=None, **headers)
    assert json.loads(answer.data)["would_send"]["body"] == CUSTOMER
    assert running.post(key=None, **headers).status_code == 200
    assert upstream.invoices == 1


# ---------------------------------------------------------------- whatever is sent


LATIN = st.text(st.characters(max_codepoint=255), max_size=60)
AUTHORIZATION = st.one_of(
    LATIN,
    LATIN.map(lambda text: f"Bearer {text}"),
    LATIN.map(lambda text: "Basic " + base64.b64encode(text.encode("latin-1")).decode()),
    st.lists(LATIN.map(lambda text: base64.urlsafe_b64encode(text.encode("latin-1")).decode().rstrip("="))).map(
        lambda parts: "Bearer " + ".".join(parts)
    ),
)


@pytest.fixture
def loaded(doors: Callable[..., Function]) -> dict[str, Function]:
    return {iam: doors(IAM=iam) for iam in ("", "guards")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_headers_hold_nobody_is_let_in_and_nothing_breaks(
    data: st.DataObject, loaded: dict[str, Function], upstream: Appgregator
) -> None:
    running = loaded[data.draw(st.sampled_from(["", "guards"]))]
    environ = {
        f"HTTP_{name.upper().replace('-', '_')}": value
        for name in HEADERS
        if (value := data.draw(st.none() | (AUTHORIZATION if "Auth" in name else LATIN))) is not None
    }
    if data.draw(st.booleans()):  # so that what is made up stands beside what is right
        environ.update({f"HTTP_{name.upper().replace('-', '_')}": value for name, value in signed().items()})
        broken = data.draw(st.sampled_from(["ID", "TIMESTAMP", "SIGNATURE"]))
        environ[f"HTTP_WEBHOOK_{broken}"] = data.draw(LATIN)
    client = running.app.test_client()
    answer = client.open(TARGET, method="POST", data=BODY, content_type="application/json", environ_overrides=environ)
    assert answer.status_code == 401, environ
    assert not upstream.calls
