"""Webhooks in the written scheme: an HMAC-SHA256 of the body, as senders write it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.certificates import Certificates
from gateway.credentials import KINDS
from gateway.credentials import signatures as kind
from gateway.credentials.google import SERVERLESS
from gateway.identity import Identity
from gateway.means import Means
from gateway.secrets import PAUSE_SECONDS, Mounted, SecretManager, Secrets
from gateway.stores.memory import Memory
from gateway.tokens import Google
from policies import compiled, document, signing
from policies.access import decide
from policies.idempotency import RETENTION
from policies.model import Answer
from policies.refusals import (
    CredentialMissing,
    CredentialsConflict,
    IdentityUnavailable,
    Refusal,
    WebhookNotVerified,
)
from sandbox.secret_manager import SecretManager as Sandbox
from tests.conftest import FORM, KEY, TARGET, Clock, policy
from tests.gateway.conftest import SUCCEEDED, admit, call
from tests.problems import as_replayed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policies.model import Admission, Caller, PolicySet
    from sandbox.appgregator import Appgregator
    from tests.conftest import Function, Server

SECRET = "projects/acme/secrets/shop"
JSON = "application/json"
#: GitHub's own example: docs.github.com, "Validating webhook deliveries", testing the webhook payload validation.
GITHUB_SECRET = "It's a Secret to Everybody"
GITHUB_BODY = b"Hello, World!"
GITHUB_SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

BODY = json.dumps({"customer": "cus_1", "description": "Café"}).encode()
#: As the senders' own pages write it: the header, the encoding and the prefix.
SENDERS = {
    "Shopify": ("X-Shopify-Hmac-Sha256", "base64", ""),
    "GitHub": ("X-Hub-Signature-256", "hex", "sha256="),
    "Typeform": ("Typeform-Signature", "base64", "sha256="),
    "WooCommerce": ("X-WC-Webhook-Signature", "base64", ""),
}


def webhook(sender: str = "GitHub", secret: str = f"{SECRET}/versions/latest", more: str = "") -> str:
    """Write a credential."""
    header, encoding, prefix = SENDERS[sender]
    said = f"secret: {secret}, scheme: hmac, header: {header}, encoding: {encoding}"
    return f"webhook: {{{said}{f', prefix: {prefix}' if prefix else ''}{more}}}"


def signed(body: bytes = BODY, secret: str = GITHUB_SECRET, sender: str = "GitHub") -> dict[str, str]:
    """Sign as a sender does."""
    header, encoding, prefix = SENDERS[sender]
    digest = hmac.new(secret.encode(), body, hashlib.sha256)
    return {header: prefix + (digest.hexdigest() if encoding == "hex" else base64.b64encode(digest.digest()).decode())}


def read(*credentials: str, others: tuple[str, ...] = ()) -> PolicySet:
    """Read a policy in which ``app`` has ``credentials``, and another caller of its connection has ``others``."""
    text = policy("https://upstream.example", credentials=credentials)
    if others:
        app = text[text.index("  app:") : text.index("  other:")]
        held = app[app.index("      - key:") : app.index("    limits:")]
        third = app.replace("  app:", "  third:").replace(held, "".join(f"      - {one}\n" for one in others))
        text = text.replace("  other:", f"{third}  other:")
    return document.read(text, "policy.yaml")


@pytest.fixture
def manager() -> Iterator[Sandbox]:
    with Sandbox() as running:
        running.add(SECRET, GITHUB_SECRET.encode())
        yield running


@pytest.fixture
def identity(manager: Sandbox, clock: Clock, patience: None) -> Iterator[Identity]:
    source = SecretManager(manager.address)
    secrets = Secrets(manager=source, mounted=Mounted(), clock=clock)
    yield Identity(Means(secrets, Google(Certificates("http://127.0.0.1:9/", time.monotonic), ())), behind_iam=False)
    source.close()


def asked(body: bytes = BODY, headers: dict[str, str] | None = None, key: str | None = None, **more: Any) -> Any:
    environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in (headers or {}).items()}
    return replace(call(body, key=key, **more), environ=environ)


def caller_of(identity: Identity, policy_set: PolicySet, headers: dict[str, str], body: bytes = BODY) -> Caller:
    return identity.identify(policy_set, asked(body, headers), time.time(), 1e12)


def refused(identity: Identity, policy_set: PolicySet, headers: dict[str, str], body: bytes = BODY) -> Refusal:
    with pytest.raises(Refusal) as caught:
        caller_of(identity, policy_set, headers, body)
    return caught.value


def test_githubs_own_example_is_verified(identity: Identity) -> None:
    headers = {"X-Hub-Signature-256": GITHUB_SIGNATURE}
    assert signed(GITHUB_BODY) == headers
    caller = caller_of(identity, read(webhook()), headers, GITHUB_BODY)
    assert (caller.id, caller.credential) == ("app", f"webhook:{SECRET}/versions/latest")


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("made", ["read", "compiled"])
def test_senders_are_verified_as_they_sign_and_with_another_body_refused(
    identity: Identity, sender: str, made: str
) -> None:
    policy_set = read(webhook(sender))
    if made == "compiled":
        policy_set = compiled.read(compiled.write(policy_set), "acme.policy")
    headers = signed(sender=sender)
    assert caller_of(identity, policy_set, headers).id == "app"
    for body in (BODY + b"\n", BODY[:-1], b"", b"\xff", BODY.replace(b"cus_1", b"cus_2")):
        assert isinstance(refused(identity, policy_set, headers, body), WebhookNotVerified)
    assert isinstance(refused(identity, policy_set, signed(secret="another secret", sender=sender)), WebhookNotVerified)
    assert isinstance(refused(identity, policy_set, {}), CredentialMissing)


@pytest.mark.parametrize(
    "secret", ["shpss_0123456789abcdef", "ein geheimes Wort", "schlüssel-für-alle", "+/=&% \t'", "a" * 4096]
)
def test_secret_is_used_as_it_is_written_without_the_line_break_at_its_end(
    identity: Identity, manager: Sandbox, secret: str
) -> None:
    manager.add(SECRET, f"{secret}\r\n".encode())
    assert caller_of(identity, read(webhook()), signed(secret=secret)).id == "app"


@pytest.mark.parametrize("value", [b"", b"\n", b"short", b"\xff" * 40, b"a" * 4097])
def test_secret_that_is_none_is_unavailable_and_never_shown(identity: Identity, manager: Sandbox, value: bytes) -> None:
    manager.add(SECRET, value)
    refusal = refused(identity, read(webhook()), signed())
    assert isinstance(refusal, IdentityUnavailable)
    assert refusal.note == (
        f"{SECRET}/versions/latest: version 2 holds no signing secret: a text of 8 to 4096 characters in UTF-8"
    )


RIGHT = signed(sender="GitHub")["X-Hub-Signature-256"]


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "sha256=", RIGHT[7:], f"{RIGHT} ", f" {RIGHT}", f"{RIGHT}\n", f"{RIGHT},{RIGHT}", f"{RIGHT}, {RIGHT}",
        f"{RIGHT} {RIGHT}", f"sha1={RIGHT[7:]}", f"SHA256={RIGHT[7:]}", f"sha256=sha256={RIGHT[7:]}", RIGHT[:-1],
        f"{RIGHT}0", "sha256=" + " ".join(RIGHT[7:][n : n + 2] for n in range(0, 64, 2)), f"sha256={'é' * 64}",
        "sha256=" + base64.b64encode(bytes.fromhex(RIGHT[7:])).decode(), f"sha256={'٣' * 64}", "x" * 8000,
    ],
)  # fmt: skip
def test_header_of_any_other_form_is_refused_before_any_secret_is_read(
    identity: Identity, manager: Sandbox, value: str
) -> None:
    refusal = refused(identity, read(webhook()), {"X-Hub-Signature-256": value})
    assert isinstance(refusal, WebhookNotVerified)
    assert manager.accesses == ()


def test_digits_of_a_signature_may_be_capital_letters(identity: Identity) -> None:
    assert caller_of(identity, read(webhook()), {"X-Hub-Signature-256": f"sha256={RIGHT[7:].upper()}"}).id == "app"


def test_answer_is_the_same_whatever_is_wrong_and_does_not_speak_of_time(identity: Identity) -> None:
    policy_set = read(webhook())
    answers = [
        refused(identity, policy_set, {"X-Hub-Signature-256": "nonsense"}),
        refused(identity, policy_set, signed(), b"{}"),
        refused(identity, policy_set, signed(secret="another secret")),
    ]
    assert len({str(answer.problem("id")) for answer in answers}) == 1
    assert answers[0].detail.startswith("The webhook's signature is not valid. Sign the body exactly as it is sent")
    assert "five minutes" not in answers[0].detail


def test_two_callers_with_one_header_are_told_apart_by_their_secrets(identity: Identity, manager: Sandbox) -> None:
    manager.add("projects/acme/secrets/second", b"the secret of another")
    second = webhook(secret="projects/acme/secrets/second/versions/1")
    policy_set = read(webhook(), others=(second,))
    assert caller_of(identity, policy_set, signed()).id == "app"
    assert caller_of(identity, policy_set, signed(secret="the secret of another")).id == "third"
    assert isinstance(refused(identity, policy_set, signed(secret="a third secret")), WebhookNotVerified)


def test_two_callers_may_write_one_header_differently(identity: Identity, manager: Sandbox) -> None:
    manager.add("projects/acme/secrets/second", b"the secret of another")
    header = "header: X-Hub-Signature-256, encoding: base64"
    second = f"webhook: {{secret: projects/acme/secrets/second/versions/1, scheme: hmac, {header}}}"
    policy_set = read(webhook(), others=(second,))
    digest = hmac.digest(b"the secret of another", BODY, "sha256")
    assert caller_of(identity, policy_set, {"x-hub-signature-256": base64.b64encode(digest).decode()}).id == "third"
    assert caller_of(identity, policy_set, signed()).id == "app"


def test_either_of_two_secrets_will_do_while_they_change(identity: Identity, manager: Sandbox) -> None:
    manager.add(SECRET, b"the secret that follows")
    policy_set = read(webhook(secret=f"{SECRET}/versions/2"), webhook(secret=f"{SECRET}/versions/1"))
    for _ in range(3):
        assert caller_of(identity, policy_set, signed()).credential == f"webhook:{SECRET}/versions/1"
        caller = caller_of(identity, policy_set, signed(secret="the secret that follows"))
        assert caller.credential == f"webhook:{SECRET}/versions/2"
    assert sorted(manager.accesses) == [f"{SECRET}/versions/1", f"{SECRET}/versions/2"]


def test_standard_webhook_beside_it_is_not_tried_with_its_signature(identity: Identity, manager: Sandbox) -> None:
    manager.add("projects/acme/secrets/standard", b"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
    standard = "webhook: projects/acme/secrets/standard/versions/1"
    policy_set = read(standard, webhook())
    assert caller_of(identity, policy_set, signed()).credential == f"webhook:{SECRET}/versions/latest"
    assert manager.accesses == (f"{SECRET}/versions/latest",)


def test_secret_that_cannot_be_had_is_503_and_one_read_in_five_seconds(
    identity: Identity, manager: Sandbox, clock: Clock
) -> None:
    policy_set = read(webhook())
    manager.down(grpc.StatusCode.UNKNOWN)
    for _ in range(20):
        assert isinstance(refused(identity, policy_set, signed()), IdentityUnavailable)
    assert len(manager.accesses) == 1
    clock.tick(PAUSE_SECONDS)
    assert isinstance(refused(identity, policy_set, signed()), IdentityUnavailable)
    assert len(manager.accesses) == 2


@pytest.mark.parametrize("more", [{"webhook-id": "a"}, {"svix-signature": "a"}, {"Authorization": f"Bearer {KEY}"}])
def test_signature_beside_another_credential_is_refused(identity: Identity, more: dict[str, str]) -> None:
    policy_set, made = read(webhook()), asked(headers=signed())
    beside = replace(made, credentials=call(key=KEY, authorization="x").credentials)
    for both in (beside, replace(made, credentials=dict.fromkeys(more, beside.credentials["x-api-key"]))):
        with pytest.raises(CredentialsConflict):
            identity.identify(policy_set, both, time.time(), 1e12)


def test_two_headers_that_the_policy_names_are_refused(identity: Identity) -> None:
    policy_set = read(webhook("Shopify"), webhook("GitHub", secret="file:/absent"))
    assert isinstance(refused(identity, policy_set, {**signed(), **signed(sender="Shopify")}), CredentialsConflict)


def test_header_that_no_policy_names_is_no_credential(identity: Identity) -> None:
    assert isinstance(refused(identity, read(webhook("Shopify")), signed()), CredentialMissing)
    by_key = identity.identify(read(webhook("Shopify")), asked(headers=signed(), key=KEY), time.time(), 1e12)
    assert by_key.credential == "k1"


def test_call_that_asks_in_its_address_is_not_covered(identity: Identity, manager: Sandbox) -> None:
    text = policy("https://upstream.example", upstream="stripe", retrieve="{invoice: }", credentials=[webhook()])
    policy_set = document.read(text, "policy.yaml")
    with pytest.raises(WebhookNotVerified) as caught:
        identity.identify(policy_set, asked(b"", signed(b""), invoice="in_1"), time.time(), 1e12)
    assert "covers the body alone" in caught.value.detail
    assert manager.accesses == ()
    assert caller_of(identity, policy_set, signed()).id == "app"


def test_names_of_headers_that_we_read_are_taken() -> None:
    ours = {name.lower() for each in KINDS for headers in each.HEADERS for name in headers} | {SERVERLESS.lower()}
    assert ours < signing.TAKEN
    assert kind.HEADERS == ()


_SENT = st.text(st.characters(max_codepoint=255), max_size=80)


@given(value=st.one_of(_SENT, _SENT.map("sha256=".__add__), st.binary(min_size=32, max_size=32).map(bytes.hex)))
def test_whatever_is_sent_without_the_secret_is_not_verified(value: str) -> None:
    class One:
        def read(self, _name: str) -> tuple[str, bytes]:
            return "1", GITHUB_SECRET.encode()

    secrets = Secrets(manager=One(), mounted=One(), clock=time.monotonic)
    door = Identity(Means(secrets, Google(Certificates("http://127.0.0.1:9/", time.monotonic), ())), behind_iam=False)
    for written in (value, f"sha256={value}"):
        assert isinstance(refused(door, read(webhook()), {"X-Hub-Signature-256": written}), WebhookNotVerified)


# ---------------------------------------------------------------- end to end


def served(
    function: Callable[..., Any], upstream: Appgregator, idempotency: str = "required", *credentials: str
) -> Any:
    return function(policy(upstream.origin, idempotency=idempotency, credentials=credentials or [webhook()]))


def post(
    running: Function, headers: dict[str, str], body: bytes = BODY, target: str = TARGET, media: str = JSON, **more: str
) -> Any:
    return running.post(target, body, key=None, media=media, **{**headers, **more})


@pytest.mark.parametrize("sender", SENDERS)
def test_webhook_of_every_sender_raises_one_invoice_however_often_it_is_sent(
    server: Callable[..., Server], upstream: Appgregator, manager: Sandbox, sender: str
) -> None:
    running = server(
        policy(upstream.origin, idempotency="required", credentials=[webhook(sender)]),
        SECRET_MANAGER_ENDPOINT=manager.address,
    )
    manager.add("projects/sandbox/secrets/appgregator-x-api-key", b"sandbox-upstream-key")
    headers = {"Content-Type": "application/json", **signed(sender=sender)}
    status, _, first = running.call(body=BODY, headers=headers, key=None)
    assert status == 200, first
    status, again, body = running.call(body=BODY, headers=headers, key=None)
    assert (status, again["idempotent-replayed"], body) == (200, "true", as_replayed(first))
    status, _, body = running.call(body=BODY.replace(b"cus_1", b"cus_2"), headers=headers, key=None)
    assert (status, json.loads(body)["reason"]) == (401, "webhook-not-verified")
    assert upstream.invoices == 1
    [header] = signed(sender=sender)
    twice = f"{header}: {signed(sender=sender)[header]}\r\n" * 2
    request = f"POST {TARGET} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n"
    assert running.raw(f"{request}{twice}\r\n".encode() + BODY).startswith(b"HTTP/1.1 401")
    assert GITHUB_SECRET not in running.record.text()
    running.stop()
    assert running.errors.read_text() == ""


@pytest.fixture
def shop(function: Callable[..., Function], upstream: Appgregator, secret_manager: Sandbox) -> Callable[..., Function]:
    secret_manager.add(SECRET, GITHUB_SECRET.encode())
    return lambda idempotency="required", *credentials: served(function, upstream, idempotency, *credentials)


@pytest.mark.parametrize("mode", ["required", "optional"])
def test_body_is_the_key(shop: Callable[..., Function], upstream: Appgregator, mode: str) -> None:
    running = shop(mode)
    first = post(running, signed())
    again = post(running, signed())
    assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(first.data), "true")
    other = BODY.replace(b"cus_1", b"cus_2")
    assert post(running, signed(other), other).status_code == 200
    assert upstream.invoices == 2


@pytest.mark.parametrize("key", ["order-1", "body," + hashlib.sha256(BODY).hexdigest(), ""])
def test_key_that_nobody_signed_is_refused(shop: Callable[..., Function], upstream: Appgregator, key: str) -> None:
    running = shop()
    answer = post(running, signed(), Idempotency_Key=key)
    assert (answer.status_code, answer.json and answer.json["reason"]) == (400, "idempotency-key-invalid")
    assert answer.json["detail"].startswith("Leave out the Idempotency-Key header: your signature does not cover it.")
    assert not upstream.calls
    assert post(running, signed()).status_code == 200
    # The caller's key of that text, by another credential, is another's name for another call.
    if key.startswith("order"):
        assert running.post(body=BODY, media="application/json", Idempotency_Key=key).status_code == 200
        assert upstream.invoices == 2


def test_parameter_may_be_the_key_and_then_no_header_takes_its_place(
    shop: Callable[..., Function], upstream: Appgregator
) -> None:
    running = shop('{from: "metadata[order_id]"}')
    bodies = [json.dumps({"customer": "cus_1", "metadata": {"order_id": "7"}}, indent=n).encode() for n in (None, 1)]
    first, again = (post(running, signed(body), body, Idempotency_Key=body.hex()[:9]) for body in bodies)
    assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(first.data), "true")
    mended = json.dumps({"customer": "cus_2", "metadata": {"order_id": "7"}}).encode()
    assert post(running, signed(mended), mended).status_code == 422
    assert upstream.invoices == 1


def test_body_that_was_signed_for_one_connection_is_nobodys_at_another(
    shop: Callable[..., Function], upstream: Appgregator
) -> None:
    running = shop()
    for target in (TARGET.replace("stripe-1", "stripe-2"), TARGET.replace("ft-4", "ft-5")):
        assert post(running, signed(), target=target).json["reason"] == "webhook-not-verified"
    answer = post(running, signed(), target="/v1/invoices")
    assert (answer.status_code, "must name its connection" in answer.text) == (401, True)
    assert not upstream.calls


def test_form_may_be_signed_as_well_and_only_looked_at(shop: Callable[..., Function], upstream: Appgregator) -> None:
    running, form = shop(), b"customer=cus_MQqeLuPp19Qbk8"
    answer = post(running, signed(form), form, f"{TARGET}&validate_only=true", media=FORM)
    assert json.loads(answer.data)["would_send"]["body"] == form.decode()
    assert not upstream.calls
    assert post(running, signed(form), form, TARGET, media=FORM).status_code == 200


def test_body_that_is_sent_again_after_weeks_is_still_the_same_invoice(identity: Identity) -> None:
    """A signature without a time is never too old: the ledger alone recognises it."""
    for written in ("required", '{from: "metadata[order_id]", for: 72h}'):
        text = policy("https://upstream.example", idempotency=written, credentials=[webhook()])
        policy_set = document.read(text, "policy.yaml")
        for one in (policy_set, compiled.read(compiled.write(policy_set), "acme.policy")):
            [granted] = caller_of(identity, one, signed()).entitlements.values()
            assert granted.idempotency.seconds == signing.UNDATED_SECONDS > 365 * 86400 > RETENTION


def test_replay_after_a_year_is_answered_from_the_ledger_and_not_sent(identity: Identity) -> None:
    policy_set, clock = read(webhook()), Clock()
    store, replayed = Memory(clock), asked(headers=signed())

    def taken() -> Admission:
        grant = decide(policy_set, identity.identify(policy_set, replayed, time.time(), 1e12), replayed)
        admission = admit(store, grant)
        if admission.replay is None:
            assert store.settle(grant, admission, SUCCEEDED, Answer(200, b"{}"))
        return admission

    replayed = replace(replayed, body=BODY, media="json")
    assert taken().replay is None
    for days in (3, 30, 360):
        clock.tick(days * 86400)
        assert taken().replay == Answer(200, b"{}")
    clock.tick(10 * 86400)
    assert taken().replay is None
