"""Invoices raised at Stripe itself: the failure table row by row, and looking at one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from console import audit
from gateway.sinks import File
from gateway.stores.memory import Memory
from gateway.upstreams.sending import Upstreams
from policies import compiled, document
from policies.idempotency import LEASE
from policies.model import DocumentError
from sandbox import faults, invoice
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import KEPT_SECONDS, Stripe
from tests.conftest import CUSTOMER, KEY, OTHER_KEY, RESPONSE, TARGET, Clock, launch, policy, sha256
from tests.problems import as_replayed, parsed, refused, stripe_refused
from tests.waiting import until
from tests.wire import answered, talking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from werkzeug.test import TestResponse

    from policies.outcomes import Reply
    from tests.conftest import Function, Server

#: What a call may take that gets no answer, in the place of 25 s.
SECONDS = 2.0
UNANSWERED = {"hang", "trickle"}
UNKNOWN = "outcome-unknown"
SDK_TARGET = "/ft-4/stripe-1/v1/invoices"
QUERY = TARGET.partition("?")[2]
#: What may be asked of an invoice that exists.
LOOK = "{invoice: {prefix: in_}, expand: {one_of: [customer, charge]}}"


@pytest.fixture
def gate(
    function: Callable[..., Function], stripe: Stripe, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Function]:
    """Load the function in front of Stripe; nothing waits between tries, and the ledger's time is the test's."""
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    monkeypatch.setattr("gateway.upstreams.sending.PAUSES", (0.0, 0.0))
    monkeypatch.setattr("gateway.settings.Memory", lambda _: Memory(clock))

    def load(document: str | None = None, **settings: str) -> Function:
        written = policy(stripe.origin, upstream="stripe", retrieve=LOOK, secret=f"file:{tmp_path / 'key'}")
        return function(document or written, **settings)

    return load


def outcomes(gate: Function) -> list[tuple[str, int, int]]:
    """What the record says of each send: its result, the status that was answered, and the tries."""
    return [(entry["result"], entry["status"], entry["attempts"]) for entry in gate.record.entries("outcome")]


# ---------------------------------------------------------------- the answer to another call


@pytest.mark.parametrize("arrived", [True, False], ids=["before the next call", "during the next call"])
@pytest.mark.parametrize("customer", [CUSTOMER, "customer=cus_2"], ids=["same customer", "another"])
def test_second_answer_is_never_told_to_the_next_call(
    gate: Callable[..., Function], stripe: Stripe, customer: str, *, arrived: bool
) -> None:
    loaded = gate()
    stripe.delay = 0.3
    stripe.strays.held = not arrived
    stripe.fail_next("twice")
    first = loaded.post(Idempotency_Key="order-1")
    if arrived:
        until(lambda: stripe.strays.sent)
    else:
        stripe.fail_next("slow")
    second = loaded.post(body=customer, Idempotency_Key="order-2")
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json is not None
    assert second.json is not None
    assert second.json["customer"] == customer.partition("=")[2]
    made = {json.loads(body)["id"] for body in stripe._books.invoices.values()}
    assert {first.json["id"], second.json["id"]} == made
    assert outcomes(loaded) == [("succeeded", 200, 1), ("succeeded", 200, 1 if arrived else 2)]
    outcome = loaded.record.lines()[-1]
    assert (outcome["severity"] == "ALERT", "alarm" in outcome["countersign"]) == (not arrived, not arrived)
    assert len({call.connection for call in stripe.calls}) == 2
    # Nothing of it is left for those who come later.
    third = loaded.post(body="customer=cus_3", Idempotency_Key="order-3")
    assert (third.json or {})["customer"] == "cus_3"
    assert outcomes(loaded)[-1] == ("succeeded", 200, 1)


@pytest.mark.parametrize("fault", ["other_customer", "other_key", "other_key_400"])
def test_answer_to_another_call_that_stays_is_unknown_and_settled_by_the_same_key(
    gate: Callable[..., Function], stripe: Stripe, fault: str
) -> None:
    loaded = gate()
    stripe.fail_next(fault, times=3)
    first = loaded.post(Idempotency_Key="order-1")
    assert refused(first, 504, UNKNOWN)["retry_after"] == 5
    assert "another_call" not in first.text
    assert loaded.record.lines()[-1]["severity"] == "ALERT"
    assert "to another call" in loaded.record.lines()[-1]["countersign"]["alarm"]
    assert loaded.post(Idempotency_Key="order-1").status_code == 200
    assert stripe.invoices == 1
    assert outcomes(loaded) == [("unknown", 504, 3), ("succeeded", 200, 1)]


@pytest.mark.parametrize(("mode", "fault"), [("live", None), ("test", "other_mode")])
def test_invoice_of_the_other_mode_is_unknown(
    gate: Callable[..., Function], stripe: Stripe, tmp_path: Path, mode: str, fault: str | None
) -> None:
    """The key's prefix does not tell here, so only the answer does."""
    text = policy(stripe.origin, upstream="stripe", secret=f"file:{tmp_path / 'key'}")
    loaded = gate(text.replace("upstream: stripe\n", f"upstream: stripe\n    mode: {mode}\n", 1))
    stripe.fail_next(fault, 3) if fault else None
    refused(loaded.post(Idempotency_Key="order-1"), 504, UNKNOWN)
    assert "not the mode that was sent" in loaded.record.lines()[-1]["countersign"]["alarm"]


# ---------------------------------------------------------------- the contract


def test_call_raises_one_invoice_and_answers_the_granted_fields(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded = gate()
    response = loaded.post(Idempotency_Key="order-1")
    assert response.status_code == 200, response.text
    assert response.json is not None
    assert list(response.json) == list(dict.fromkeys(name.partition(".")[0] for name in RESPONSE.split(", ")))
    again = loaded.post(Idempotency_Key="order-1")
    assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(response.data), "true")
    assert (stripe.invoices, len(stripe.calls)) == (1, 1)
    intent, outcome, replay = loaded.record.entries()
    assert [entry["kind"] for entry in (intent, outcome, replay)] == ["intent", "outcome", "replay"]
    assert outcome["upstream_request"].startswith("req_")
    assert outcome["created"] == response.json["id"]
    assert UPSTREAM_KEY not in loaded.record.text() + response.text
    with loaded.record.path.open() as lines:
        assert audit.verify(lines).faults == []


def test_tied_key_raises_and_looks_at_an_invoice_where_no_connection_is_named(
    gate: Callable[..., Function], stripe: Stripe, tmp_path: Path
) -> None:
    tied = f"key: {{id: k2, sha256: {sha256('csk_tied')}, connection: billing}}"
    written = policy(
        stripe.origin, upstream="stripe", retrieve=LOOK, secret=f"file:{tmp_path / 'key'}", credentials=[tied]
    )
    (tmp_path / "acme.policy").write_bytes(compiled.write(document.read(written, "policy.yaml")))
    for settings in ({}, {"POLICY": str(tmp_path / "acme.policy")}):
        loaded = gate(written, **settings)
        created = loaded.post("/v1/invoices", key="csk_tied", Idempotency_Key="order-1")
        assert created.status_code == 200, created.text
        assert created.json is not None
        same = loaded.post(SDK_TARGET, key="csk_tied", Idempotency_Key="order-1")
        assert (same.data, same.headers["Idempotent-Replayed"]) == (as_replayed(created.data), "true")
        found = look(loaded, created.json["id"], target="/v1/invoices/", key="csk_tied")
        assert (found.status_code, found.json["id"], found.json["object"]) == (200, created.json["id"], "invoice")
        for target in (SDK_TARGET.replace("stripe-1", "stripe-2"), "/ft-4/stripe-2/v1/invoices"):
            elsewhere = loaded.post(target, key="csk_tied")
            assert (elsewhere.status_code, elsewhere.json and elsewhere.json["error"]["code"]) == (
                403,
                "connection_not_granted",
            )
        unnamed = loaded.post("/v1/invoices")
        assert unnamed.json is not None
        assert (unnamed.status_code, unnamed.json["error"]["type"]) == (403, "invalid_request_error")
        assert "Write /NAME/CONNECTION_NAME/v1/... instead" in unnamed.json["error"]["message"]
    assert stripe.invoices == 1


def test_key_in_use_is_told_to_stripes_clients_as_what_a_retry_mends(
    gate: Callable[..., Function], stripe: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = gate()
    during: list[TestResponse] = []
    send = Upstreams.send

    def meanwhile(*given: Any) -> Reply:
        if not during:
            during.append(loaded.post(SDK_TARGET, Idempotency_Key="order-1"))
        return send(*given)

    monkeypatch.setattr(Upstreams, "send", meanwhile)
    assert loaded.post(SDK_TARGET, Idempotency_Key="order-1").status_code == 200
    error = stripe_refused(during[0], 409, "idempotency-key-in-use")
    assert (error["type"], during[0].headers["Stripe-Should-Retry"]) == ("api_error", "true")
    assert stripe.invoices == 1


@pytest.mark.parametrize("prefix", ["sk", "rk"])
@pytest.mark.parametrize(("mode", "other"), [("live", "test"), ("test", "live")])
def test_key_of_the_other_mode_is_no_key(
    function: Callable[..., Function], tmp_path: Path, mode: str, other: str, prefix: str
) -> None:
    right, wrong, silent = f"{prefix}_{mode}_51abc", f"{prefix}_{other}_51xyz", "some-other-key"
    with Stripe(keys=[right, wrong, silent]) as stripe:
        text = policy(stripe.origin, upstream="stripe", secret=f"file:{tmp_path / 'key'}")
        text = text.replace("    upstream: stripe\n", f"    upstream: stripe\n    mode: {mode}\n")
        (tmp_path / "key").write_text(wrong)
        loaded = function(text)
        for target in (TARGET, TARGET):
            refused(loaded.post(target, Idempotency_Key="order-1"), 503, "secret-unavailable")
        notes = {entry["note"] for entry in loaded.record.entries("refusal")}
        assert notes == {f"the file holds a {other} key, and its connection is for {mode} data"}
        [line] = [line for line in loaded.record.lines() if line["countersign"]["kind"] == "secret"]
        assert (line["severity"], line["countersign"]["secret"]) == ("ERROR", f"file:{tmp_path / 'key'}")
        assert line["countersign"]["problem"] in notes
        assert not stripe.calls
        assert wrong[3:] not in loaded.record.text()
        # A key that does not say is used. Its mode here is test, and the invoice says so.
        for key, status in ((right, 200), (silent, 200 if mode == "test" else 504)):
            (tmp_path / "key").write_text(key)
            assert function(text).post(Idempotency_Key=f"order-of-{key}").status_code == status
        (tmp_path / "key").write_text(wrong)
        unsaid = policy(stripe.origin, upstream="stripe", secret=f"file:{tmp_path / 'key'}")
        assert function(unsaid).post(Idempotency_Key="order-1").status_code == 200


@pytest.mark.parametrize(("following", "status"), [("sk_test_second", 200), ("sk_live_second", 503)])
def test_key_of_the_other_mode_does_not_follow_one_that_stripe_refuses(
    function: Callable[..., Function], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, following: str, status: int
) -> None:
    """A refused key is read again at once, and a changed one is sent in its place."""
    send = Upstreams.send

    def rotated(*given: Any) -> Reply:
        (tmp_path / "key").write_text(following)
        return send(*given)

    monkeypatch.setattr(Upstreams, "send", rotated)
    (tmp_path / "key").write_text("sk_test_first")
    with Stripe(keys=["sk_test_second", "sk_live_second"]) as stripe:
        text = policy(stripe.origin, upstream="stripe", secret=f"file:{tmp_path / 'key'}")
        loaded = function(text.replace("    upstream: stripe\n", "    upstream: stripe\n    mode: test\n"))
        assert loaded.post(Idempotency_Key="order-1").status_code == status
        assert stripe.invoices == (status == 200)
        assert "sk_live_second" not in str([call.headers for call in stripe.calls])


def test_no_header_of_the_caller_goes_to_stripe(server: Callable[..., Server], stripe: Stripe) -> None:
    running = server(policy(stripe.origin, upstream="stripe"))
    names = (
        "Stripe-Version Stripe-Livemode X-Stripe-Client-User-Agent Cookie Accept User-Agent Idempotency-Key X-Canary"
    )
    canaries = dict.fromkeys(names.split(), "canary")
    for target, key in ((TARGET, {"x-api-key": KEY}), (SDK_TARGET, {"Authorization": f"Bearer {KEY}"})):
        status, told, body = running.call(target, headers={**canaries, **key}, key=None)
        assert status == 200, body
        assert not {"stripe-account", "stripe-version", "set-cookie"} & told.keys()
    sent = {name.lower(): value for name, value in stripe.calls[0].headers}
    assert set(sent) == {
        "host", "user-agent", "accept", "accept-encoding", "authorization", "stripe-version", "idempotency-key",
        "content-type", "content-length",
    }  # fmt: skip
    assert "canary" not in str(stripe.calls)
    assert KEY not in str(stripe.calls)
    assert sent["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert (len(stripe.calls), stripe.invoices) == (1, 1)  # one key, by either door


def test_account_is_acted_for_only_where_the_policy_says_so(gate: Callable[..., Function], stripe: Stripe) -> None:
    document = policy(stripe.origin, upstream="stripe", retrieve=LOOK)
    acting = document.replace("upstream: stripe\n", "upstream: stripe\n    account: acct_1\n", 1)
    created = (gate(acting).post().json or {})["id"]
    assert dict(stripe.calls[0].headers)["Stripe-Account"] == "acct_1"
    look = f"/invoices/{created}?{QUERY}"
    refused(gate(document).post(look, "", media=None, method="GET"), 404, "upstream-rejected")
    assert gate(acting).post(look, "", media=None, method="GET").status_code == 200


ACCOUNT_HEADERS = ("Stripe-Account", "Stripe-Context")


@pytest.mark.parametrize("header", ACCOUNT_HEADERS)
@pytest.mark.parametrize("named", [None, "acct_1"], ids=["no account in the policy", "an account in the policy"])
def test_account_of_another_in_a_header_is_refused_at_every_path(
    gate: Callable[..., Function], stripe: Stripe, tmp_path: Path, header: str, named: str | None
) -> None:
    """A12: the caller believes that the invoice is another account's."""
    document = policy(
        stripe.origin, upstream="stripe", retrieve=LOOK, secret=f"file:{tmp_path / 'key'}",
        credentials=[f"key: {{id: k2, sha256: {sha256('csk_tied')}, connection: billing}}"],
    )  # fmt: skip
    if named is not None:
        document = document.replace("upstream: stripe\n", f"upstream: stripe\n    account: {named}\n", 1)
    loaded = gate(document)
    for value in ("acct_other", "acct_1,acct_1", "ACCT_1", "acct_1/acct_other"):
        sent = {header.replace("-", "_"): value}
        for answer in (
            loaded.post(Idempotency_Key="order-1", **sent),
            loaded.post(f"{TARGET}&validate_only=true", Idempotency_Key="order-1", **sent),
            look(loaded, "in_1", **sent),
        ):
            assert header in refused(answer, 400, "account-not-granted")["detail"]
        for target, key in ((SDK_TARGET, KEY), ("/v1/invoices", "csk_tied")):
            answer = loaded.post(target, key=key, Idempotency_Key="order-1", **sent)
            assert stripe_refused(answer, 400, "account-not-granted")["type"] == "invalid_request_error"
    assert not stripe.calls
    fitting = {each.replace("-", "_"): value for each in ACCOUNT_HEADERS for value in ["", named] if value is not None}
    assert loaded.post(Idempotency_Key="order-1", **fitting).status_code == 200
    assert dict(stripe.calls[0].headers).get("Stripe-Account") == named
    assert "Stripe-Context" not in dict(stripe.calls[0].headers)


def test_validate_only_shows_what_would_be_sent(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded = gate()
    shown: dict[str, Any] = loaded.post(f"{TARGET}&validate_only=true", Idempotency_Key="order-1").json or {}
    assert not stripe.calls
    loaded.post(Idempotency_Key="order-1")
    (call,) = stripe.calls
    would = shown["would_send"]
    assert (would["method"], would["url"], would["body"]) == (
        "POST", f"{stripe.origin}/v1/invoices", call.body.decode(),
    )  # fmt: skip
    sent = dict(call.headers)
    assert would["headers"].pop("Authorization") == "Bearer (hidden)"
    assert would["headers"].items() <= sent.items()
    assert would["headers"]["Idempotency-Key"].startswith("countersign-")


# ---------------------------------------------------------------- the failure table

#: Each is lost however often it is tried, within one call.
LOST = ["hang", "trickle", "close_after", "reset_after", "truncated", "oversize", "gzip_bomb", "huge_header"]
UNREADABLE = ["html_200", "not_json", "nan", "deep", "no_id", "array", "empty", "wrong_object"]
NOTHING_KEPT = ["error_409", "error_503", "html_502", "redirect_302", "retry_409", "retry_503"]


@pytest.mark.parametrize("fault", LOST + UNREADABLE + NOTHING_KEPT)
@pytest.mark.parametrize("target", [TARGET, SDK_TARGET], ids=["plain", "sdk"])
def test_call_of_unknown_outcome_is_settled_by_the_same_key(
    gate: Callable[..., Function], stripe: Stripe, monkeypatch: pytest.MonkeyPatch, fault: str, target: str
) -> None:
    loaded = gate()
    faults.bomb()  # made once, and that takes a while
    stripe.fail_next(fault, times=3)
    with monkeypatch.context() as impatient:
        if fault in UNANSWERED:
            impatient.setattr("gateway.record.CALL_SECONDS", SECONDS)
            impatient.setattr("gateway.upstreams.sending.LEAST_SECONDS", 0.1)
        first = loaded.post(target, Idempotency_Key="order-1")
    if target is TARGET:
        assert refused(first, 504, UNKNOWN)["retry_after"] == 5
    else:
        stripe_refused(first, 504, UNKNOWN)
        assert first.headers["Stripe-Should-Retry"] == "true"
    assert first.headers["Retry-After"] == "5"
    assert stripe.invoices == (fault not in NOTHING_KEPT)
    stripe._failures.clear()
    second = loaded.post(target, Idempotency_Key="order-1")
    assert (second.status_code, "Idempotent-Replayed" in second.headers) == (200, False), second.text
    third = loaded.post(target, Idempotency_Key="order-1")
    assert (third.data, third.headers["Idempotent-Replayed"]) == (as_replayed(second.data), "true")
    assert stripe.invoices == 1
    assert [result for result, _, _ in outcomes(loaded)] == ["unknown", "succeeded"]
    assert stripe.redirected == 0
    keys = {dict(call.headers)["Idempotency-Key"] for call in stripe.calls}
    assert len(keys) == 1


def test_lost_call_is_settled_at_once_where_another_try_brings_the_answer(
    gate: Callable[..., Function], stripe: Stripe
) -> None:
    loaded = gate()
    stripe.fail_next("close_after")
    assert loaded.post(Idempotency_Key="order-1").status_code == 200
    assert outcomes(loaded) == [("succeeded", 200, 2)]
    assert stripe.invoices == 1


@pytest.mark.parametrize(("fault", "invoices"), [("error_500", 0), ("error_500_created", 1)])
def test_failure_that_lies_under_the_key_is_unknown_at_once_and_not_asked_for_again(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock, fault: str, invoices: int
) -> None:
    loaded = gate()
    stripe.fail_next(fault)
    refused(loaded.post(Idempotency_Key="order-1"), 424, UNKNOWN)
    assert len(stripe.calls) == 2  # the second of which got the kept answer
    for later in (1, 3600, KEPT_SECONDS, 30 * KEPT_SECONDS):
        clock.tick(later)
        response = loaded.post(Idempotency_Key="order-1")
        assert "was not sent again" in refused(response, 424, UNKNOWN)["detail"]
        assert "Retry-After" not in response.headers
    assert len(stripe.calls) == 2
    assert stripe.invoices == invoices
    assert {entry["upstream_status"] for entry in loaded.record.entries("outcome")} == {500}
    assert [line["severity"] for line in loaded.record.lines()].count("ALERT") == 1


def test_call_is_sent_again_to_the_end_of_the_window_and_never_after(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock
) -> None:
    loaded = gate()
    for key in ("in time", "too late"):
        stripe.fail_next("close_after", times=3)
        refused(loaded.post(Idempotency_Key=key), 504, UNKNOWN)
    clock.tick(KEPT_SECONDS - LEASE)
    assert loaded.post(Idempotency_Key="in time").status_code == 200
    clock.tick(0.001)
    for _ in range(2):
        response = loaded.post(Idempotency_Key="too late")
        refused(response, 424, UNKNOWN)
        assert "Retry-After" not in response.headers
        clock.tick(KEPT_SECONDS)
    assert stripe.invoices == 2


@pytest.mark.parametrize("fault", ["close_after", "error_500", "html_200"])
def test_call_without_a_key_that_is_lost_is_for_the_operator(
    gate: Callable[..., Function], stripe: Stripe, fault: str
) -> None:
    loaded = gate()
    stripe.fail_next(fault, times=3)
    response = loaded.post()
    refused(response, 424, UNKNOWN)
    assert "Retry-After" not in response.headers
    stripe._failures.clear()
    stripe.fail_next(fault, times=3)
    error = stripe_refused(loaded.post(SDK_TARGET), 424, UNKNOWN)
    assert error["type"] == "api_error"


@pytest.mark.parametrize(
    ("then", "alarm"), [("error_429", False), ("error_401", True), ("error_403", True), ("error_503", False)]
)
def test_refusal_after_a_loss_leaves_the_doubt_and_the_key(
    gate: Callable[..., Function], stripe: Stripe, then: str, *, alarm: bool
) -> None:
    loaded = gate()
    stripe.fail_next("close_after", times=3)
    refused(loaded.post(Idempotency_Key="order-1"), 504, UNKNOWN)
    stripe.fail_next(then, times=3 if then == "error_503" else 1)
    refused(loaded.post(Idempotency_Key="order-1"), 504, UNKNOWN)
    assert ("alarm" in loaded.record.entries("outcome")[-1]) == alarm
    refused(loaded.post(body=f"{CUSTOMER}&description=x", Idempotency_Key="order-1"), 422, "idempotency-key-reused")
    assert loaded.post(Idempotency_Key="order-1").status_code == 200
    assert stripe.invoices == 1


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [("error_429", 503, "upstream-busy"), ("error_401", 503, "upstream-key-refused"),
     ("error_403", 503, "upstream-key-refused")],
)  # fmt: skip
def test_refusal_of_a_first_send_frees_the_key(
    gate: Callable[..., Function], stripe: Stripe, fault: str, status: int, reason: str
) -> None:
    loaded = gate()
    stripe.fail_next(fault)
    response = loaded.post(Idempotency_Key="order-1")
    refused(response, status, reason)
    assert ("Retry-After" in response.headers) == (fault == "error_429")
    assert loaded.post(body=f"{CUSTOMER}&description=x", Idempotency_Key="order-1").status_code == 200
    assert stripe.invoices == 1


@pytest.mark.parametrize(
    ("customer", "status", "kind"),
    [("cus_fault_error_400", 400, "invalid_request_error"), ("cus_fault_error_402", 402, "card_error"),
     ("cus_missing", 400, "invalid_request_error"), ("cus_fault_error_404", 404, "invalid_request_error")],
)  # fmt: skip
def test_refusal_in_stripes_own_words_frees_the_key_and_is_told_in_the_words_of_the_door(
    gate: Callable[..., Function], stripe: Stripe, customer: str, status: int, kind: str
) -> None:
    loaded = gate()
    body = f"customer={customer}"
    first = loaded.post(body=body, Idempotency_Key="order-1")
    refused(first, status, "upstream-rejected")
    again = loaded.post(SDK_TARGET, body, Idempotency_Key="order-1")
    assert again.status_code == status
    assert (again.json or {})["error"]["type"] == kind
    assert "Idempotent-Replayed" not in again.headers
    assert again.headers["Stripe-Should-Retry"] == "false"
    assert loaded.post(Idempotency_Key="order-1").status_code == 200  # with a mended customer
    assert stripe.invoices == 1


def test_process_that_died_mid_call_is_followed_by_one_that_sends_again(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    loaded = gate()
    with monkeypatch.context() as killed:
        killed.setattr("gateway.stores.memory.Memory.settle", die)
        with pytest.raises(KeyboardInterrupt):
            loaded.post(Idempotency_Key="order-1")
    assert stripe.invoices == 1
    refused(loaded.post(Idempotency_Key="order-1"), 503, "idempotency-key-in-use")
    clock.tick(LEASE)
    assert loaded.post(Idempotency_Key="order-1").status_code == 200
    assert (stripe.invoices, stripe.replays) == (1, 1)


def test_error_of_ours_after_the_send_is_settled_by_the_same_key(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    loaded = gate()
    created = (loaded.post().json or {})["id"]
    with monkeypatch.context() as fault:
        fault.setattr("policies.outcomes.judge", broken)
        refused(loaded.post(Idempotency_Key="order-1"), 504, UNKNOWN)
        refused(loaded.post(), 424, UNKNOWN)
        refused(look(loaded, created), 502, "upstream-failed")
    assert stripe.invoices == 3
    refused(loaded.post(Idempotency_Key="order-1"), 503, "idempotency-key-in-use")
    clock.tick(LEASE)
    assert loaded.post(Idempotency_Key="order-1").status_code == 200
    assert stripe.invoices == 3


def test_second_send_that_cannot_be_recorded_is_not_made_and_leaves_the_doubt(
    gate: Callable[..., Function], stripe: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = gate()
    stripe.fail_next("close_after", times=3)
    refused(loaded.post(Idempotency_Key="order-1"), 504, UNKNOWN)
    calls = len(stripe.calls)

    def full(*_: object) -> None:
        raise OSError

    with monkeypatch.context() as broken:
        broken.setattr(File, "write", full)
        refused(loaded.post(Idempotency_Key="order-1"), 503, "record-unavailable")
    assert len(stripe.calls) == calls
    refused(loaded.post(body=f"{CUSTOMER}&description=x", Idempotency_Key="order-1"), 422, "idempotency-key-reused")
    assert loaded.post(Idempotency_Key="order-1").status_code == 200
    assert stripe.invoices == 1


def test_c1_budget_over_drafts_is_an_error_that_names_what_spends(stripe: Stripe) -> None:
    text = policy(stripe.origin, upstream="stripe", retrieve=LOOK)
    budget = "budget: {currency: usd, amount: 1, per: day}\n    grants:"
    with pytest.raises(DocumentError, match=r"budget: no grant .* invoices.issue, or invoices.finalize for drafts"):
        document.read(text.replace("grants:", budget, 1), "policy.yaml")


# ---------------------------------------------------------------- looking at an invoice


def look(gate: Function, invoice: str, more: str = "", *, target: str = "/stripe/invoices/", **headers: str) -> Any:
    """Ask for an invoice; ``more`` stands in the query, behind the names where they stand there."""
    query = f"?{QUERY}{more and '&' + more}" if target == "/stripe/invoices/" else f"?{more}" if more else ""
    return gate.post(f"{target}{invoice}{query}", b"", media=None, method="GET", **headers)


@pytest.fixture
def looked(gate: Callable[..., Function]) -> tuple[Function, dict[str, Any]]:
    """The function, and an invoice that it has raised."""
    loaded = gate()
    answer: dict[str, Any] = loaded.post(body=f"{CUSTOMER}&description=mine").json or {}
    return loaded, answer


@pytest.mark.parametrize("target", ["/stripe/invoices/", f"{SDK_TARGET}/"], ids=["plain", "sdk"])
def test_invoice_is_looked_at_and_trimmed(looked: tuple[Function, dict[str, Any]], stripe: Stripe, target: str) -> None:
    loaded, created = looked
    response = look(loaded, created["id"], target=target, Idempotency_Key="order-1")
    assert response.status_code == 200, response.text
    found = response.json
    assert found.pop("object", "invoice") == "invoice"  # which the door of the SDKs adds
    assert {**found, "audit_id": ""} == {**created, "audit_id": ""}
    assert found["audit_id"] == response.headers["Countersign-Audit-Id"] != created["audit_id"]
    again = look(loaded, created["id"], target=target, Idempotency_Key="order-1")
    assert "Idempotent-Replayed" not in again.headers
    assert stripe.invoices == 1
    intent, outcome = loaded.record.entries()[-2:]
    assert (intent["operation"], intent["parameters"].keys()) == ("invoices.retrieve", {"invoice"})
    assert "ledger" not in intent
    assert (outcome["result"], outcome["attempts"]) == ("succeeded", 1)
    assert "created" not in outcome
    assert created["id"] not in json.dumps([intent, outcome])


@pytest.mark.parametrize("path", ["/stripe/invoices/{}", "/stripe/invoices/{}/", "/invoices/{}", "/invoices/{}/"])
def test_every_path_of_the_contract_looks_alike(looked: tuple[Function, dict[str, Any]], path: str) -> None:
    loaded, created = looked
    response = loaded.post(f"{path.format(created['id'])}?{QUERY}", b"", media=None, method="GET")
    assert response.status_code == 200, response.text


def test_looking_is_granted_by_itself(function: Callable[..., Function], stripe: Stripe) -> None:
    loaded = function(policy(stripe.origin, upstream="stripe"))
    created = (loaded.post().json or {})["id"]
    refused(look(loaded, created), 403, "connection-not-granted")
    refused(look(loaded, created, key=OTHER_KEY), 403, "connection-not-granted")
    stripe_refused(look(loaded, created, target=f"{SDK_TARGET}/"), 403, "connection-not-granted")
    assert len(stripe.calls) == 1


def test_look_that_gets_another_invoice_is_failed_and_alarms_the_operator(
    gate: Callable[..., Function], tmp_path: Path
) -> None:
    other = answered(invoice.encode({**invoice.EXAMPLE, "id": "in_other"}))
    with talking(other, other, other) as (origin, requests):
        loaded = gate(policy(origin, upstream="stripe", retrieve=LOOK, secret=f"file:{tmp_path / 'key'}"))
        response = look(loaded, "in_mine")
        assert "Nothing was changed" in refused(response, 502, "upstream-failed")["detail"]
        assert "in_other" not in response.text + loaded.record.text()
        assert requests == [b"GET "] * 3
    assert loaded.record.lines()[-1]["severity"] == "ALERT"
    assert outcomes(loaded) == [("released", 502, 3)]


def test_looking_that_dies_on_its_connection_is_sent_as_often_as_the_record_says(
    gate: Callable[..., Function], tmp_path: Path
) -> None:
    """libcurl would repeat a GET by itself on a kept connection, and nobody would count it."""
    found = answered(invoice.encode({**invoice.EXAMPLE, "id": "in_mine"}))
    with talking(found) as (origin, requests):
        loaded = gate(policy(origin, upstream="stripe", retrieve=LOOK, secret=f"file:{tmp_path / 'key'}"))
        assert look(loaded, "in_mine").status_code == 200
        refused(look(loaded, "in_mine"), 502, "upstream-failed")
        assert len(requests) == 4
    assert outcomes(loaded) == [("succeeded", 200, 1), ("released", 502, 3)]


def test_looking_counts_against_the_limits(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded = gate(policy(stripe.origin, upstream="stripe", retrieve=LOOK, limits="3/minute"))
    created = (loaded.post().json or {})["id"]
    assert [look(loaded, created).status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize("target", ["/stripe/invoices/", f"{SDK_TARGET}/"], ids=["plain", "sdk"])
def test_invoice_that_is_not_there_is_told(gate: Callable[..., Function], target: str) -> None:
    response = look(gate(), "in_nowhere", target=target)
    if target == "/stripe/invoices/":
        problem = refused(response, 404, "upstream-rejected")
        assert (problem["upstream_code"], problem["parameter"]) == ("resource_missing", "invoice")
        assert "Nothing was created" not in problem["detail"]
    else:
        error = (response.json or {})["error"]
        assert (response.status_code, error["type"], error["code"], error["param"]) == (
            404, "invalid_request_error", "resource_missing", "invoice",
        )  # fmt: skip


def test_look_that_is_lost_is_failed_and_may_be_tried_again(
    looked: tuple[Function, dict[str, Any]], stripe: Stripe
) -> None:
    loaded, created = looked
    stripe.stop()
    response = look(loaded, created["id"])
    problem = refused(response, 503, "upstream-unreachable")
    assert problem["retry_after"] == 5
    assert loaded.record.entries("outcome")[-1]["attempts"] == 3


@pytest.mark.parametrize(
    "path",
    [
        "in_1/..", "..", ".", "%2e%2e", "in_1%2F..", "in_1%2fvoid", "in_1/pay", "in_1//", "//in_1",
        "in_1%00", "in_1%0a", "in_1%0d%0ax:y", "in_1%20", "in_1;x", "in_1%3Fx=y", "in_1%23", "in.1", "in_%C3%A9",
        "i" * 256, "i" * 300, "%69n_1", "in_1\\", "*", "{invoice}", "in_1@evil.example", ":80",
    ],
)  # fmt: skip
def test_hostile_id_is_no_path(world: World, path: str) -> None:
    for target in (f"/stripe/invoices/{path}?{QUERY}", f"{SDK_TARGET}/{path}"):
        status, _, body = parsed(world.send(f"GET {target} HTTP/1.1"))
        assert status == 404, target
        assert b"path" in body
        assert b"unknown" in body
    assert world.stripe.connections == 0


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "OPTIONS"])
def test_other_method_on_an_invoice_is_refused(world: World, method: str) -> None:
    status, headers, body = parsed(world.send(f"{method} /stripe/invoices/in_1?{QUERY} HTTP/1.1", "Content-Length: 0"))
    assert (status, headers["allow"]) == (405, "DELETE, GET")
    assert (body == b"") == (method == "HEAD")
    assert world.stripe.connections == 0


@pytest.mark.parametrize(
    ("body", "more"),
    [(b"{}", ()), (CUSTOMER.encode(), ("Content-Type: application/x-www-form-urlencoded",)), (b"\0", ())],
)
def test_body_of_a_get_is_refused(world: World, body: bytes, more: tuple[str, ...]) -> None:
    line = f"GET /stripe/invoices/in_1?{QUERY} HTTP/1.1"
    refused(parsed(world.send(line, f"Content-Length: {len(body)}", *more, body=body)), 400, "body-malformed")
    refused(parsed(world.send(line, "Content-Length: 999999999")), 413, "body-too-large")
    assert world.stripe.connections == 0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("&name=ft-4", "query-malformed"),
        ("&n%61me=ft-4", "query-malformed"),
        ("&validate_only=yes", "query-malformed"),
        ("&validate_only=true&validate_only=true", "query-malformed"),
        ("&expand[0]=customer&expand[0]=customer", "body-malformed"),
        ("&expand[0]=customer&expand%5B0%5D=charge", "body-malformed"),
        ("&expand[]=customer&expand[0]=customer", "body-malformed"),
        ("&expand=customer", "parameter-not-granted"),
        ("&expand[1]=customer", "parameter-invalid"),
        ("&expand[0]=payment_intent", "parameter-invalid"),
        ("&invoice=in_2", "body-malformed"),
        ("&customer=cus_1", "parameter-not-granted"),
        ("&x=%zz", "body-malformed"),
        ("&x", "body-malformed"),
        ("&api_base=https://evil.example", "parameter-not-granted"),
    ],
)
def test_wrong_query_of_a_look_is_refused(world: World, more: str, reason: str) -> None:
    refused(parsed(world.send(f"GET /stripe/invoices/in_1?{QUERY}{more} HTTP/1.1")), 400, reason)
    assert world.stripe.connections == 0


def test_ungranted_expand_is_refused_and_a_granted_one_goes_out(
    gate: Callable[..., Function], function: Callable[..., Function], stripe: Stripe
) -> None:
    loaded = gate()
    created = (loaded.post().json or {})["id"]
    assert look(loaded, created, "expand[0]=customer&expand[1]=charge").status_code == 200
    for written in (
        "expand[0]=customer",
        "expand[]=customer",
        "&expand%5B%5D=customer&",
        "expand[]=&expand[]=customer",
    ):
        shown = look(loaded, created, f"{written}&validate_only=true").json
        assert shown["would_send"]["url"] == f"{stripe.origin}/v1/invoices/{created}?expand%5B0%5D=customer"
    narrow = function(policy(stripe.origin, upstream="stripe", retrieve="{invoice: }"))
    refused(look(narrow, created, "expand[0]=customer"), 400, "parameter-not-granted")
    refused(look(gate(), "ii_1"), 400, "parameter-invalid")  # the policy wants in_


@pytest.mark.parametrize("target", ["/stripe/invoices/", f"{SDK_TARGET}/"], ids=["plain", "sdk"])
def test_validate_only_of_a_look_sends_and_uses_up_nothing(
    gate: Callable[..., Function], stripe: Stripe, target: str
) -> None:
    loaded = gate(policy(stripe.origin, upstream="stripe", retrieve=LOOK, limits="1/minute"))
    for _ in range(3):
        shown = look(loaded, "in_1", "validate_only=true", target=target).json
        assert (shown["would_send"]["method"], shown["would_send"]["body"]) == ("GET", "")
        assert shown["would_send"]["url"] == f"{stripe.origin}/v1/invoices/in_1"
        assert shown["would_send"]["headers"]["Authorization"] == "Bearer (hidden)"
    assert stripe.connections == 0
    assert [entry["kind"] for entry in loaded.record.entries()] == ["preview"] * 3


class World:
    """The function under its own server in front of Stripe."""

    def __init__(self, server: Server, stripe: Stripe) -> None:
        self.server, self.stripe = server, stripe

    def send(self, line: str, *headers: str, body: bytes = b"") -> bytes:
        """Send one request as it is written, with the caller's key, and return all that comes."""
        head = [line, "Host: countersign", f"x-api-key: {KEY}", *headers, "Connection: close", "", ""]
        return self.server.raw("\r\n".join(head).encode("latin-1") + body)


@pytest.fixture(scope="module")
def whole_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("server")
    with Stripe(keys=[UPSTREAM_KEY]) as stripe:
        secret = place / "secret"
        secret.write_text(UPSTREAM_KEY)
        document = policy(stripe.origin, upstream="stripe", retrieve=LOOK, secret=f"file:{secret}")
        server = launch(place, document)
        try:
            yield World(server, stripe)
        finally:
            server.stop()


@pytest.fixture
def world(whole_module: World) -> World:
    whole_module.stripe.forget()
    return whole_module
