"""Signed webhooks -> Caller, signed by the library that the specification's authors wrote."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
import pytest
import standardwebhooks
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.certificates import Certificates
from gateway.credentials import webhooks as kind
from gateway.credentials.webhooks import MAX_SIGNATURES, TOLERANCE_SECONDS
from gateway.means import Means
from gateway.secrets import PAUSE_SECONDS, Mounted, SecretManager, Secrets
from gateway.tokens import Google
from policies.model import WEBHOOK_IDS, Caller, PolicySet, Proof
from policies.refusals import IdentityUnavailable, Refusal, WebhookNotVerified
from sandbox.secret_manager import SecretManager as Sandbox
from tests.gateway.conftest import SIGNING, Webhook, call

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Clock

BODY = b'{"customer": "cus_1", "description": "caf\xc3\xa9"}'
OTHER_SIGNING = "whsec_" + base64.b64encode(b"another secret of 24 bytes").decode()
SECRET, OTHER_SECRET = "projects/acme/secrets/n8n", "projects/acme/secrets/make"
FIRST, SECOND, OTHER = f"{SECRET}/versions/1", f"{SECRET}/versions/2", f"{OTHER_SECRET}/versions/latest"


def a_caller(name: str) -> Caller:
    return Caller(name, name, "tests", f"webhook:{name}", None, (), (), {})


CANDIDATES = {FIRST: a_caller("app"), OTHER: a_caller("other")}


def signed(
    body: bytes = BODY,
    *,
    secret: str = SIGNING,
    name: str = "msg_1",
    at: float | None = None,
) -> Webhook:
    moment = datetime.fromtimestamp(int(time.time() if at is None else at), UTC)
    signature = standardwebhooks.Webhook(secret).sign(name, moment, body.decode())
    return Webhook(name, str(int(moment.timestamp())), signature)


def means(secrets: Secrets) -> Means:
    return Means(secrets, Google(Certificates("http://127.0.0.1:9/", time.monotonic), ()))


@pytest.fixture
def manager() -> Iterator[Sandbox]:
    with Sandbox() as running:
        running.add(SECRET, SIGNING.encode())
        running.add(OTHER_SECRET, OTHER_SIGNING.encode())
        yield running


@pytest.fixture
def webhooks(manager: Sandbox, clock: Clock, patience: None) -> Iterator[Means]:
    source = SecretManager(manager.address)
    yield means(Secrets(manager=source, mounted=Mounted(), clock=clock))
    source.close()


def caller_of(
    webhooks: Means, webhook: Webhook, body: bytes = BODY, candidates: dict[str, Caller] = CANDIDATES
) -> Caller:
    proofs = {Proof("webhook", secret.encode()): caller for secret, caller in candidates.items()}
    signers = {("ft-4", "stripe-1"): tuple(proofs)} if proofs else {}
    policy_set = PolicySet("", {}, proofs, frozenset(), frozenset(), signers)
    asked = call(body, key=None, webhook=webhook)
    caller = kind.caller(webhooks, policy_set, asked, time.time(), 1e12)
    assert caller is not None
    return caller


def refused(
    webhooks: Means, webhook: Webhook, body: bytes = BODY, candidates: dict[str, Caller] = CANDIDATES
) -> Refusal:
    with pytest.raises(Refusal) as caught:
        caller_of(webhooks, webhook, body, candidates)
    return caught.value


def test_signature_says_which_of_the_callers_it_is(webhooks: Means) -> None:
    assert caller_of(webhooks, signed()).id == "app"
    assert caller_of(webhooks, signed(secret=OTHER_SIGNING)).id == "other"


def test_headers_may_have_the_names_that_svix_gives_them(webhooks: Means) -> None:
    policy_set = PolicySet(
        "", {}, {Proof("webhook", FIRST.encode()): a_caller("app")}, frozenset(), frozenset(),
        {("ft-4", "stripe-1"): (Proof("webhook", FIRST.encode()),)},
    )  # fmt: skip
    asked = call(BODY, key=None, webhook=signed())
    named = {name.replace("webhook-", "svix-"): value for name, value in asked.credentials.items()}
    caller = kind.caller(webhooks, policy_set, replace(asked, credentials=named), time.time(), 1e12)
    assert caller is not None
    assert caller.id == "app"


def test_policies_know_the_headers_that_an_id_arrives_in() -> None:
    assert {names[0] for names in kind.HEADERS} == WEBHOOK_IDS


def test_either_of_two_secrets_will_do_while_they_change_and_secrets_are_read_once(
    webhooks: Means, manager: Sandbox
) -> None:
    manager.add(SECRET, OTHER_SIGNING.encode())
    both = {FIRST: a_caller("app"), SECOND: a_caller("app")}
    for _ in range(10):
        assert caller_of(webhooks, signed(), candidates=both).id == "app"
        assert caller_of(webhooks, signed(secret=OTHER_SIGNING), candidates=both).id == "app"
    assert manager.accesses == (FIRST, SECOND)


def test_one_of_several_signatures_is_enough(webhooks: Means) -> None:
    webhook = signed()
    right = webhook.signature
    wrong = signed(secret="whsec_" + base64.b64encode(b"x" * 32).decode()).signature
    for signatures in (
        [wrong, right],
        [right, wrong],
        [
            "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==",
            right,
        ],
        [*[wrong] * (MAX_SIGNATURES - 1), right],
    ):
        assert caller_of(webhooks, webhook._replace(signature=" ".join(signatures))).id == "app"


@pytest.mark.parametrize(
    "body",
    [b'{"customer":"cus_1","description":"caf\xc3\xa9"}', BODY + b"\n", BODY[:-1], b"",
     BODY.replace(b"cus_1", b"cus_2"), b"\xef\xbb\xbf" + BODY, b"\xff\xfe", BODY.decode().encode("latin-1")],
    ids=["re-serialised", "line break", "cut", "empty", "changed", "byte order mark", "no text", "other encoding"],
)  # fmt: skip
def test_any_other_body_is_refused(webhooks: Means, body: bytes) -> None:
    assert isinstance(refused(webhooks, signed(), body), WebhookNotVerified)


def test_other_id_or_other_time_is_refused(webhooks: Means) -> None:
    webhook = signed()
    assert isinstance(refused(webhooks, webhook._replace(id="msg_2")), WebhookNotVerified)
    later = webhook._replace(timestamp=str(int(webhook.timestamp) + 1))
    assert isinstance(refused(webhooks, later), WebhookNotVerified)


@pytest.mark.parametrize("late", [-TOLERANCE_SECONDS + 5, TOLERANCE_SECONDS - 5])
def test_clocks_may_differ_by_five_minutes(webhooks: Means, late: int) -> None:
    assert caller_of(webhooks, signed(at=time.time() - late)).id == "app"


@pytest.mark.parametrize("late", [-TOLERANCE_SECONDS - 5, TOLERANCE_SECONDS + 5, 86400, 1_700_000_000])
def test_stale_or_early_one_is_refused_before_any_secret_is_read(webhooks: Means, manager: Sandbox, late: int) -> None:
    refusal = refused(webhooks, signed(at=time.time() - late))
    assert isinstance(refusal, WebhookNotVerified)
    assert refusal.note == "it is not of the last five minutes"
    assert manager.accesses == ()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *(("id", value) for value in ("", "a b", "a,b", "a.b", "é", "a\n", "a\0", "x" * 256)),
        *(
            ("timestamp", value)
            for value in ("", "0", "-1", "1e9", "nan", "inf", "1.5", " 1", "1\n", "0x1", "9" * 13, "1_0", "١٢", "1,1")
        ),
        *(
            ("signature", value)
            for value in (
                "", " ", "v1", "v1,", ",", "v1,,", "v1,AAAA", "v1,é", "v1,x y", "v1,a,b", "v2,AAAA", "V1,{}",
                "{},{}", "{}, {}", "{}  {}", " {}", "{} ", "{}\n", "{} v1,AAAA", "v1,AAAA {}", "{} nonsense", "{} v1",
                "v1,====", "{}=", " ".join(["{}"] * (MAX_SIGNATURES + 1)),
            )
        ),
    ],
)  # fmt: skip
def test_header_of_any_other_form_is_refused_before_any_secret_is_read(
    webhooks: Means, manager: Sandbox, header: str, value: str
) -> None:
    right = signed()
    written = value.replace("{}", right.signature)
    refusal = refused(webhooks, right._replace(**{header: written}))
    assert isinstance(refusal, WebhookNotVerified)
    assert manager.accesses == ()


def test_nobody_to_ask_is_answered_like_a_wrong_signature(webhooks: Means) -> None:
    nobody, wrong = refused(webhooks, signed(), candidates={}), refused(webhooks, signed(), b"{}")
    assert nobody.problem("id") == wrong.problem("id")
    assert nobody.headers == wrong.headers


@pytest.mark.parametrize(
    "value",
    [b"C2FVsBQIhrscChlQIMV+b5sSYspob7oD", b"whsec_", b"whsec_short", b"whsec_" + base64.b64encode(b"x" * 23),
     b"whsec_" + base64.b64encode(b"x" * 65), b"whsec_C2FVsBQIhrscChlQIMV-b5sSYspob7oD", b"whsec_AAAAA" * 9,
     b"WHSEC_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", b"\xff" * 40, b""],
)  # fmt: skip
def test_secret_that_is_none_is_unavailable_and_never_shown(webhooks: Means, manager: Sandbox, value: bytes) -> None:
    manager.add(SECRET, value)
    refusal = refused(webhooks, signed(), candidates={SECOND: a_caller("app")})
    assert isinstance(refusal, IdentityUnavailable)
    assert len(value) < 10 or value.decode("latin-1")[6:] not in f"{refusal.note}{refusal.problem('id')}"


@pytest.mark.parametrize("size", [24, 25, 26, 32, 64])
def test_secret_of_every_allowed_size_signs_with_padding_or_without(
    webhooks: Means, manager: Sandbox, size: int
) -> None:
    padded = "whsec_" + base64.b64encode(bytes(range(200, 200 + size % 50)) + b"x" * (size - size % 50)).decode()
    for value in {padded, padded.rstrip("=")}:
        number = manager.add(SECRET, value.encode() + b"\n")
        candidates = {f"{SECRET}/versions/{number}": a_caller("app")}
        assert caller_of(webhooks, signed(secret=padded), candidates=candidates).id == "app"


def test_secret_that_cannot_be_had_stops_nobody_who_signs_with_another(
    webhooks: Means, manager: Sandbox, clock: Clock
) -> None:
    manager.disable(SECRET, 1)
    assert caller_of(webhooks, signed(secret=OTHER_SIGNING)).id == "other"
    refusal = refused(webhooks, signed())
    assert isinstance(refusal, IdentityUnavailable)
    assert refusal.headers == {"Retry-After": str(int(PAUSE_SECONDS))}
    manager.enable(SECRET, 1)
    clock.tick(PAUSE_SECONDS)
    assert caller_of(webhooks, signed()).id == "app"


def test_strangers_cost_one_read_in_five_seconds_where_a_secret_cannot_be_had(
    webhooks: Means, manager: Sandbox, clock: Clock
) -> None:
    manager.down(grpc.StatusCode.UNKNOWN)
    for _ in range(20):
        assert isinstance(refused(webhooks, signed(), b"{}", {FIRST: a_caller("app")}), IdentityUnavailable)
    assert list(manager.accesses) == [FIRST]
    clock.tick(PAUSE_SECONDS)
    refused(webhooks, signed(), b"{}", {FIRST: a_caller("app")})
    assert list(manager.accesses) == [FIRST, FIRST]


class _One:
    """A source of one secret, whatever its name."""

    def read(self, _name: str) -> tuple[str, bytes]:
        return "1", SIGNING.encode()


WITH_A_SECRET = means(Secrets(manager=_One(), mounted=_One(), clock=time.monotonic))


@given(
    name=st.one_of(st.just("msg_1"), st.text(max_size=300)),
    timestamp=st.one_of(st.just("now"), st.text(max_size=14), st.floats().map(str), st.integers().map(str)),
    signature=st.one_of(
        st.text(max_size=100),
        st.lists(st.sampled_from(["v1", "v1a", "", ",", "v1,", "v1,AAAA", f"v1,{'A' * 43}=", "é"])).map(" ".join),
        st.binary(min_size=32, max_size=32).map(lambda digest: f"v1,{base64.b64encode(digest).decode()}"),
    ),
    body=st.binary(max_size=40),
)  # fmt: skip
@example(name="msg_1", timestamp="now", signature=f"v1,{'A' * 43}=", body=b"\xff")
def test_whatever_is_sent_without_the_secret_is_not_verified(
    name: str,
    timestamp: str,
    signature: str,
    body: bytes,
) -> None:
    webhook = Webhook(name, str(int(time.time())) if timestamp == "now" else timestamp, signature)
    assert isinstance(refused(WITH_A_SECRET, webhook, body, {"file:it": a_caller("app")}), WebhookNotVerified)


def test_mounted_secret_does_as_well(tmp_path: Path) -> None:
    (tmp_path / "signing").write_text(f"{SIGNING}\n")
    webhooks = means(Secrets(manager=Mounted(), mounted=Mounted(), clock=time.monotonic))
    assert caller_of(webhooks, signed(), candidates={f"file:{tmp_path / 'signing'}": a_caller("app")}).id == "app"
