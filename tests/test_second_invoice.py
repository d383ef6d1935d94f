"""Roads to a second invoice (A), and keys that stayed locked though nothing was created (B): each row by its name.

Each runs from end to end, on the sockets of the sandbox's upstreams. Where a row has its tests elsewhere:

=====  ================================================================================================================
A1     test_hostile_upstream.py::test_empty_form_is_sent_once_though_the_kept_connection_dies
A2     gateway/test_transport.py::test_request_is_sent_once_though_the_kept_connection_dies
A3     here
A4-A6  test_keys.py
A7     here
A8     here
A11    test_hostile_upstream.py and test_stripe.py::test_second_answer_is_never_told_to_the_next_call
A12    test_stripe.py::test_account_of_another_in_a_header_is_refused_at_every_path
A13    test_keys.py::test_order_number_is_one_key_however_it_is_written
A14    here
A15    here
B1-B9  here
=====  ================================================================================================================

A9 and A10 are about the worker: callers who have hung up.
"""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from console.__main__ import main
from gateway.stores.memory import Memory
from gateway.stores.redis import Redis
from gateway.upstreams.sending import FURTHER, Upstreams
from policies.idempotency import LEASE
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import KEPT_SECONDS, Rules, Stripe
from tests.conftest import CUSTOMER, MAIN, TARGET, Clock, policy, sha256
from tests.problems import as_replayed, refused, stripe_refused
from tests.waiting import PATIENCE
from tests.wire import answered, talking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from werkzeug.test import TestResponse

    from policies.outcomes import Reply
    from sandbox.appgregator import Appgregator
    from sandbox.redis_server import RedisServer
    from tests.conftest import Function, Server

UNKNOWN = "outcome-unknown"
SDK_TARGET = "/ft-4/stripe-1/v1/invoices"
HOUR = 3600
#: A second credential of the caller, which is tied to its connection and names none.
TIED = "csk_tied"


class Kept:
    """A ledger in memory that outlives a new load of the function, until it is lost."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.lose()

    def lose(self) -> None:
        self.memory = Memory(self._clock)


@pytest.fixture(autouse=True)
def ledger(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Kept:
    kept = Kept(clock)
    monkeypatch.setattr("gateway.settings.Memory", lambda _: kept.memory)
    monkeypatch.setattr("gateway.upstreams.sending.PAUSES", (0.0, 0.0))
    return kept


@pytest.fixture
def at_stripe(function: Callable[..., Function], stripe: Stripe, tmp_path: Path) -> Callable[..., Any]:
    """Load the function in front of Stripe: ``at_stripe((was, becomes), …)`` with a changed document."""
    key = tmp_path / "key"
    key.write_text(UPSTREAM_KEY)
    return lambda *changes: function(written(stripe.origin, "stripe", *changes, secret=f"file:{key}"))


@pytest.fixture
def at_appgregator(function: Callable[..., Function], upstream: Appgregator) -> Callable[..., Any]:
    """Load the function in front of Appgregator, in the same way."""
    return lambda *changes: function(written(upstream.origin, "appgregator", *changes))


def written(origin: str, upstream: str, *changes: tuple[str, str], **more: str) -> str:
    tied = f"key: {{id: k2, sha256: {sha256(TIED)}, connection: billing}}"
    text = policy(origin, upstream=upstream, credentials=[tied], **more)
    for was, becomes in changes:
        assert was in text
        text = text.replace(was, becomes)
    return text


def told(response: TestResponse) -> dict[str, Any]:
    answer: dict[str, Any] = response.json or {}
    return answer


def results(gate: Function) -> list[str]:
    return [entry["result"] for entry in gate.record.entries("outcome")]


def alarms(gate: Function) -> int:
    return [line["severity"] for line in gate.record.lines()].count("ALERT")


# ---------------------------------------------------------------- A3

CALLER = ("  app:\n", "  shop:\n    formerly: app\n")
LABEL = ("billing", "acme")
NAME = (
    "    connection_name: stripe-1\n",
    "    connection_name: stripe-9\n    formerly: {name: ft-4, connection_name: stripe-1}\n",
)


@pytest.mark.parametrize("lost", [False, True], ids=["ledger kept", "ledger lost"])
@pytest.mark.parametrize("target", [TARGET, SDK_TARGET, "/v1/invoices"])
@pytest.mark.parametrize(
    "changes", [[CALLER], [LABEL], [NAME], [CALLER, LABEL, NAME]], ids=["caller", "label", "name", "all three"]
)
def test_a3_label_that_was_renamed_raises_no_second_invoice(
    at_stripe: Callable[..., Function], stripe: Stripe, ledger: Kept, changes: list[tuple[str, str]], target: str, *,
    lost: bool,
) -> None:  # fmt: skip
    first = at_stripe().post(target, key=TIED, Idempotency_Key="order-1")
    assert first.status_code == 200
    if lost:
        ledger.lose()
    renamed = target.replace("stripe-1", "stripe-9") if NAME in changes else target
    again = at_stripe(*changes).post(renamed, key=TIED, Idempotency_Key="order-1")
    assert (again.status_code, told(again)["id"]) == (200, told(first)["id"])
    assert (again.headers.get("Idempotent-Replayed"), stripe.replays) == ((None, 1) if lost else ("true", 0))
    assert stripe.invoices == 1


@pytest.mark.parametrize("changes", [[CALLER], [LABEL], [NAME]], ids=["caller", "label", "name"])
def test_a3_label_that_was_renamed_sends_nothing_again_to_an_upstream_that_would_not_know_it(
    at_appgregator: Callable[..., Function], upstream: Appgregator, changes: list[tuple[str, str]]
) -> None:
    upstream.fail_next("close_after")
    for key, status in (("lost", 424), ("raised", 200)):
        assert at_appgregator().post("/v1/invoices", key=TIED, Idempotency_Key=key).status_code == status
    for key, status in (("lost", 424), ("raised", 200)):
        assert at_appgregator(*changes).post("/v1/invoices", key=TIED, Idempotency_Key=key).status_code == status
    assert (upstream.invoices, len(upstream.calls)) == (2, 2)


# ---------------------------------------------------------------- A7


@pytest.mark.parametrize("target", [TARGET, SDK_TARGET])
def test_a7_mended_call_whose_first_answer_was_lost_is_told_to_use_no_other_key(
    at_appgregator: Callable[..., Function], upstream: Appgregator, target: str
) -> None:
    gate = at_appgregator()
    upstream.fail_next("close_after")
    refused(gate.post(Idempotency_Key="order-1"), 424, UNKNOWN)
    mended = gate.post(target, f"{CUSTOMER}&description=mended", Idempotency_Key="order-1")
    if target == TARGET:
        detail = refused(mended, 422, "idempotency-key-reused")["detail"]
    else:
        error = stripe_refused(mended, 400, "idempotency-key-reused")
        assert error["type"] == "idempotency_error"
        detail = error["message"]
    assert "the invoice may exist. Do not use another key, which might raise a second invoice." in detail
    assert "new key" not in detail
    assert (upstream.invoices, len(upstream.calls)) == (1, 1)


# ---------------------------------------------------------------- A8


def held(gate: Function, stripe: Stripe, key: str = "order-1") -> str:
    """Have a call wait for a person; return the name of the approval."""
    before = set(stripe.approvals)
    stripe.fail_next("approval")
    refused(gate.post(Idempotency_Key=key), 503, "awaiting-approval")
    (approval,) = set(stripe.approvals) - before
    return approval


@pytest.mark.parametrize("status", [400, 402, 403])
@pytest.mark.parametrize("kept", [False, True], ids=["not kept", "kept"])
@pytest.mark.parametrize("earlier", [False, True], ids=["public preview", "earlier preview"])
def test_a8_call_that_waits_for_a_person_is_never_sent_again_and_told_once_it_is_approved(
    at_stripe: Callable[..., Function], stripe: Stripe, status: int, *, kept: bool, earlier: bool
) -> None:
    stripe.rules = Rules(status=status, kept=kept, seconds=60, earlier=earlier)
    gate = at_stripe()
    approval = held(gate, stripe)
    for _ in range(2):
        response = gate.post(Idempotency_Key="order-1")
        problem = refused(response, 503, "awaiting-approval")
        assert problem["retry_after"] == 300
        assert "Do not use another key" in problem["detail"]
        assert "othing was created" not in problem["detail"]
        sdk = gate.post(SDK_TARGET, Idempotency_Key="order-1")
        assert stripe_refused(sdk, 409, "awaiting-approval")["type"] == "api_error"
        assert sdk.headers["Stripe-Should-Retry"] == "false"
        if stripe.approvals[approval] == "requires_review":
            stripe.decide(approval, "approve")  # which Stripe carries out a minute later
    assert stripe.invoices == 0
    stripe.forward(60)
    done = gate.post(Idempotency_Key="order-1")
    assert done.status_code == 200, done.text
    assert told(done)["customer"] == CUSTOMER.partition("=")[2]
    assert gate.post(Idempotency_Key="order-1").data == as_replayed(done.data)
    assert (stripe.invoices, len(stripe.calls)) == (1, 1)
    assert results(gate) == ["unknown"] * 5 + ["succeeded"]


def test_a8_each_answer_says_where_it_is_approved(at_stripe: Callable[..., Function], stripe: Stripe) -> None:
    gate = at_stripe()
    stripe.fail_next("approval")
    for _ in range(3):
        problem = refused(gate.post(Idempotency_Key="order-1"), 503, "awaiting-approval")
        (approval,) = stripe.approvals
        assert problem["approval"] == f"https://dashboard.stripe.com/approval_requests/{approval}"
    stripe.fail_next("approval")
    for _ in range(2):
        sdk = gate.post(SDK_TARGET, Idempotency_Key="order-2")
        said = stripe_refused(sdk, 409, "awaiting-approval")["message"]
        assert "https://dashboard.stripe.com/approval_requests/" in said


@pytest.mark.parametrize("kept", [False, True], ids=["not kept", "kept"])
@pytest.mark.parametrize("decision", ["reject", "cancel"])
def test_a8_call_that_a_person_refuses_is_told_so_and_not_sent_again(
    at_stripe: Callable[..., Function], stripe: Stripe, decision: str, *, kept: bool
) -> None:
    stripe.rules = Rules(status=402, kept=kept)
    gate = at_stripe()
    stripe.decide(held(gate, stripe), decision)
    first = gate.post(Idempotency_Key="order-1")
    assert "Nothing was created" in refused(first, 403, "approval-rejected")["detail"]
    again = gate.post(Idempotency_Key="order-1")
    assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(first.data), "true")
    mended = gate.post(body=f"{CUSTOMER}&description=mended", Idempotency_Key="order-1")
    assert "A person has refused" in refused(mended, 422, "idempotency-key-reused")["detail"]
    assert (stripe.invoices, len(stripe.calls)) == (0, 1)


@pytest.mark.parametrize("kept", [False, True], ids=["not kept", "kept"])
@pytest.mark.parametrize("decision", ["expire", "fail", "a week"])
def test_a8_approval_that_lapses_lets_the_same_call_run_fresh(
    at_stripe: Callable[..., Function], stripe: Stripe, decision: str, *, kept: bool
) -> None:
    stripe.rules = Rules(kept=kept)
    gate = at_stripe()
    approval = held(gate, stripe)
    stripe.forward(7 * 24 * HOUR) if decision == "a week" else stripe.decide(approval, decision)
    lapsed = refused(gate.post(Idempotency_Key="order-1"), 503, "approval-lapsed")
    assert lapsed["retry_after"] == 1
    assert gate.post(Idempotency_Key="order-1").status_code == 200
    assert (stripe.invoices, len(stripe.calls)) == (1, 2)
    assert gate.post(Idempotency_Key="order-1").headers["Idempotent-Replayed"] == "true"


def test_a8_approval_that_has_lapsed_is_no_doubt_of_what_comes_next(
    at_stripe: Callable[..., Function], stripe: Stripe
) -> None:
    gate = at_stripe()
    stripe.decide(held(gate, stripe), "expire")
    refused(gate.post(Idempotency_Key="order-1"), 503, "approval-lapsed")
    stripe.fail_next("error_429")
    refused(gate.post(Idempotency_Key="order-1"), 503, "upstream-busy")
    assert gate.post(body=f"{CUSTOMER}&description=mended", Idempotency_Key="order-1").status_code == 200
    assert stripe.invoices == 1


def test_a8_call_that_waits_keeps_its_key_from_another_call(at_stripe: Callable[..., Function], stripe: Stripe) -> None:
    gate = at_stripe()
    approval = held(gate, stripe)
    mended = gate.post(body=f"{CUSTOMER}&description=mended", Idempotency_Key="order-1")
    detail = refused(mended, 422, "idempotency-key-reused")["detail"]
    assert f"which a person has to approve at the upstream ({approval})" in detail
    assert "may exist. Do not use another key" in detail
    assert "not known" not in detail
    assert len(stripe.calls) == 1


def test_a8_call_without_a_key_is_for_the_operator(at_stripe: Callable[..., Function], stripe: Stripe) -> None:
    gate = at_stripe()
    stripe.fail_next("approval", times=2)
    detail = refused(gate.post(), 424, UNKNOWN)["detail"]
    assert "https://dashboard.stripe.com/approval_requests/" in detail
    assert "Do not use another key" in detail
    assert stripe_refused(gate.post(SDK_TARGET), 424, UNKNOWN)["type"] == "api_error"


@pytest.mark.parametrize("silence", ["no right", "down"])
def test_a8_approval_that_cannot_be_looked_up_still_waits(
    at_stripe: Callable[..., Function], stripe: Stripe, silence: str
) -> None:
    gate = at_stripe()
    approval = held(gate, stripe)
    stripe.decide(approval, "approve")
    if silence == "down":
        stripe.stop()
    else:
        stripe.restrict(UPSTREAM_KEY, "rak_invoice_write")
    problem = refused(gate.post(Idempotency_Key="order-1"), 503, "awaiting-approval")
    assert problem["detail"].endswith(f" At the upstream it waits as {approval}.")
    if silence == "down":
        stripe.start()
    else:
        stripe.restrict(UPSTREAM_KEY, "rak_invoice_write", "approval_requests.read")
    assert gate.post(Idempotency_Key="order-1").status_code == 200
    assert (stripe.invoices, len(stripe.calls)) == (1, 1)


def test_a8_approval_behind_an_upstream_that_cannot_be_asked_is_for_the_operator(
    at_appgregator: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = at_appgregator()
    upstream.fail_next("approval")
    for _ in range(3):
        response = gate.post(Idempotency_Key="order-1")
        assert "a person approve this call" in refused(response, 424, UNKNOWN)["detail"]
    assert len(upstream.calls) == alarms(gate) == 1


# ---------------------------------------------------------------- A14


@pytest.fixture
def on_redis(function: Callable[..., Function], redis_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The function with a ledger that an operator can reach, which goes by the test's clock."""
    monkeypatch.setattr("gateway.stores.redis.Redis", lambda url: Redis(url, clock))
    monkeypatch.setenv("STORE", redis_url)
    return function(STORE=redis_url)


def test_a14_call_that_was_never_settled_is_not_forgotten(
    on_redis: Function, upstream: Appgregator, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = on_redis
    upstream.fail_next("close_after")
    refused(gate.post(Idempotency_Key="order-1"), 424, UNKNOWN)
    (intent,) = gate.record.entries("intent")
    for later, says in ((73 * HOUR, "was not sent again"), (31 * 24 * HOUR, "was sent 34 days ago")):
        clock.tick(later)
        assert says in refused(gate.post(Idempotency_Key="order-1"), 424, UNKNOWN)["detail"]
        capsys.readouterr()
        assert main(["ledger", "list"]) == 0
        assert f"\n{intent['ledger']}  unknown " in capsys.readouterr().out
    assert "Only the operator" in told(gate.post(Idempotency_Key="order-1"))["detail"]
    assert (upstream.invoices, len(upstream.calls)) == (1, 1)


# ---------------------------------------------------------------- A15


@pytest.mark.parametrize(("first", "then"), [("sk_test_51a", "sk_live_51b"), ("rk_live_51a", "rk_test_51b")])
def test_a15_order_raised_with_test_data_is_no_answer_to_a_live_one(
    function: Callable[..., Function], clock: Clock, tmp_path: Path, first: str, then: str
) -> None:
    with Stripe(keys=[first, then], clock=clock) as stripe:
        text = policy(stripe.origin, upstream="stripe", secret=f"file:{tmp_path / 'key'}")
        (tmp_path / "key").write_text(first)
        raised = function(text).post(Idempotency_Key="order-1")
        assert raised.status_code == 200
        (tmp_path / "key").write_text(then)
        gate = function(text)
        for target in (TARGET, SDK_TARGET):
            answer = gate.post(target, Idempotency_Key="order-1")
            if target == TARGET:
                refused(answer, 422, "key-used-elsewhere")
            else:
                stripe_refused(answer, 422, "key-used-elsewhere")
            assert told(raised)["id"] not in answer.text
        seen = gate.post("/-/me?key=order-1", "", media=None, method="GET")
        assert [one["state"] for one in told(seen)["became"]] == ["elsewhere"]
        assert told(raised)["id"] not in seen.text
        assert (stripe.invoices, len(stripe.calls)) == (1, 1)
        (tmp_path / "key").write_text(first)
        assert function(text).post(Idempotency_Key="order-1").data == as_replayed(raised.data)


# ---------------------------------------------------------------- B1, B2, B6: refused, and mended

#: Faults of Stripe that are refusals: kept under the key, and not.
KEPT_REFUSALS = {"no_line_items": 400, "error_402": 402, "error_404": 404}
REFUSALS = {**KEPT_REFUSALS, "error_400": 400}


@pytest.mark.parametrize("fault", REFUSALS)
def test_b1_same_call_runs_fresh_once_what_was_wrong_is_mended_at_stripe(
    at_stripe: Callable[..., Function], stripe: Stripe, fault: str
) -> None:
    gate = at_stripe()
    stripe.fail_next(fault)
    first = gate.post(Idempotency_Key="order-1")
    assert "Nothing was created" in refused(first, REFUSALS[fault], "upstream-rejected")["detail"]
    mended = gate.post(Idempotency_Key="order-1")
    assert (mended.status_code, "Idempotent-Replayed" in mended.headers) == (200, False)
    assert gate.post(Idempotency_Key="order-1").data == as_replayed(mended.data)
    assert stripe.invoices == 1
    assert results(gate) == ["freed", "succeeded"]


@pytest.mark.parametrize("fault", ["error_400", "error_402", "error_404", "action_blocked"])
def test_b1_same_call_runs_fresh_once_what_was_wrong_is_mended_behind_appgregator(
    at_appgregator: Callable[..., Function], upstream: Appgregator, fault: str
) -> None:
    gate = at_appgregator()
    upstream.fail_next(fault)
    assert "Nothing was created" in told(gate.post(Idempotency_Key="order-1"))["detail"]
    assert gate.post(Idempotency_Key="order-1").status_code == 200
    assert upstream.invoices == 1


@pytest.mark.parametrize("fault", REFUSALS)
def test_b2_mended_parameters_run_fresh_under_the_same_key(
    at_stripe: Callable[..., Function], stripe: Stripe, fault: str
) -> None:
    gate = at_stripe()
    stripe.fail_next(fault)
    refused(gate.post(Idempotency_Key="order-1"), REFUSALS[fault], "upstream-rejected")
    for description in ("mended", "and again"):
        stripe.fail_next(fault)
        body = f"{CUSTOMER}&description={description}"
        refused(gate.post(body=body, Idempotency_Key="order-1"), REFUSALS[fault], "upstream-rejected")
    body = f"{CUSTOMER}&description=at+last"
    assert gate.post(body=body, Idempotency_Key="order-1").status_code == 200
    assert gate.post(body=body, Idempotency_Key="order-1").headers["Idempotent-Replayed"] == "true"
    assert stripe.invoices == 1


def test_b2_mended_parameters_run_fresh_behind_appgregator(
    at_appgregator: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = at_appgregator()
    refused(gate.post(body="customer=cus_missing", Idempotency_Key="order-1"), 404, "upstream-rejected")
    assert gate.post(Idempotency_Key="order-1").status_code == 200
    assert upstream.invoices == 1


@pytest.mark.parametrize("fault", REFUSALS)
@pytest.mark.parametrize("refusals", [1, 2, 5])
def test_b6_ledger_that_is_lost_after_refusals_is_caught_by_stripe(
    at_stripe: Callable[..., Function], stripe: Stripe, ledger: Kept, fault: str, refusals: int
) -> None:
    gate = at_stripe()
    for _ in range(refusals):
        stripe.fail_next(fault)
        refused(gate.post(Idempotency_Key="order-1"), REFUSALS[fault], "upstream-rejected")
    raised = gate.post(Idempotency_Key="order-1")
    assert raised.status_code == 200
    ledger.lose()
    again = at_stripe().post(Idempotency_Key="order-1")
    assert (again.status_code, told(again)["id"]) == (200, told(raised)["id"])
    assert stripe.invoices == 1


def test_b6_ledger_that_is_lost_after_more_refusals_than_a_call_passes_is_caught_by_the_next_call(
    at_stripe: Callable[..., Function], stripe: Stripe, ledger: Kept
) -> None:
    gate = at_stripe()
    for _ in range(2 + FURTHER):
        stripe.fail_next("error_402")
        refused(gate.post(Idempotency_Key="order-1"), 402, "upstream-rejected")
    raised = gate.post(Idempotency_Key="order-1")
    ledger.lose()
    assert refused(at_stripe().post(Idempotency_Key="order-1"), 503, "upstream-busy")["retry_after"] == 1
    assert told(at_stripe().post(Idempotency_Key="order-1"))["id"] == told(raised)["id"]
    assert stripe.invoices == 1


@pytest.mark.parametrize("fault", REFUSALS)
def test_b6_ledger_that_is_lost_after_a_mended_form_raises_no_second_invoice(
    at_stripe: Callable[..., Function], stripe: Stripe, ledger: Kept, fault: str
) -> None:
    """Where Stripe keeps the first form, that may be one whose invoice exists, for all we know: unknown, never free."""
    gate = at_stripe()
    stripe.fail_next(fault)
    refused(gate.post(Idempotency_Key="order-1"), REFUSALS[fault], "upstream-rejected")
    body = f"{CUSTOMER}&description=mended"
    raised = gate.post(body=body, Idempotency_Key="order-1")
    assert raised.status_code == 200
    ledger.lose()
    for _ in range(2):
        again = at_stripe().post(body=body, Idempotency_Key="order-1")
        if fault in KEPT_REFUSALS:
            refused(again, 504, UNKNOWN)
        else:
            assert told(again)["id"] == told(raised)["id"]
    assert stripe.invoices == 1


# ---------------------------------------------------------------- B3


@pytest.mark.parametrize("upstream_of", ["stripe", "appgregator"])
@pytest.mark.parametrize("fault", ["html_404", "redirect_307"])
def test_b3_wrong_origin_is_told_as_that_and_the_same_key_runs_fresh_once_it_is_right(
    request: pytest.FixtureRequest, upstream_of: str, fault: str
) -> None:
    gate: Function = request.getfixturevalue(f"at_{upstream_of}")()
    upstream: Stripe | Appgregator = request.getfixturevalue("stripe" if upstream_of == "stripe" else "upstream")
    upstream.fail_next(fault, times=2)
    for _ in range(2):
        response = gate.post(Idempotency_Key="order-1")
        refused(response, 502, "upstream-misrouted")
        assert "Retry-After" not in response.headers
    assert alarms(gate) == 1  # of a connection in ten minutes
    assert gate.post(Idempotency_Key="order-1").status_code == 200
    assert (upstream.invoices, upstream.redirected) == (1, 0)


def test_b3_wrong_origin_says_nothing_of_an_earlier_send(at_stripe: Callable[..., Function], stripe: Stripe) -> None:
    gate = at_stripe()
    stripe.fail_next("close_after", times=3)
    refused(gate.post(Idempotency_Key="order-1"), 504, UNKNOWN)
    stripe.fail_next("html_404")
    refused(gate.post(Idempotency_Key="order-1"), 504, UNKNOWN)
    refused(gate.post(body=f"{CUSTOMER}&description=x", Idempotency_Key="order-1"), 422, "idempotency-key-reused")
    assert gate.post(Idempotency_Key="order-1").status_code == 200
    assert stripe.invoices == 1


# ---------------------------------------------------------------- B4


def test_b4_redis_that_stops_for_a_second_under_thirty_keyed_calls_locks_no_key(
    server: Callable[..., Server], upstream: Appgregator, redis_server: RedisServer
) -> None:
    instances = [server(source=MAIN, STORE=redis_server.url, THREADS="40") for _ in range(2)]
    process = redis_server.process
    assert process is not None
    keys = range(30)

    def call(key: int, turn: int, name: str = "order") -> int:
        body = f"{CUSTOMER}&metadata[order_id]={name}-{key}".encode()
        return instances[(key + turn) % 2].call(body=body, headers={"Idempotency-Key": f"{name}-{key}"})[0]

    def settle(open_: Iterable[int], name: str, within: float) -> None:
        """Make the same calls again and again, now here and now there, until each is answered."""
        until, turn = time.monotonic() + within, 0
        while open_:
            assert time.monotonic() < until, open_
            turn += 1
            statuses = dict(zip(open_, callers.map(partial(call, turn=turn, name=name), open_), strict=True))
            assert set(statuses.values()) <= {200, 503}, statuses
            open_ = [key for key, status in statuses.items() if status != 200]

    with ThreadPoolExecutor(30) as callers:
        settle(keys, "before", PATIENCE)
        process.send_signal(signal.SIGSTOP)
        first = [callers.submit(call, key, 0) for key in keys]
        wait(first, return_when=FIRST_COMPLETED)
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        assert {answer.result() for answer in first} <= {200, 503}
        met = [key for key, answer in zip(keys, first, strict=True) if answer.result() != 200]
        assert met
        settle(met, "order", LEASE / 2)  # whatever holds a key holds it for a lease
    assert upstream.invoices == len(upstream.calls) == 60


# ---------------------------------------------------------------- B5


@pytest.mark.parametrize(("fault", "invoices"), [("error_500", 0), ("error_500_created", 1), ("no_retry_500", 0)])
def test_b5_error_that_stripe_keeps_is_told_at_once_with_one_alert_for_its_key(
    at_stripe: Callable[..., Function], stripe: Stripe, clock: Clock, fault: str, invoices: int
) -> None:
    gate = at_stripe()
    stripe.fail_next(fault)
    if fault == "no_retry_500":  # whether it is kept, only another send can tell
        refused(gate.post(Idempotency_Key="order-1"), 504, UNKNOWN)
    for _ in range(4):
        response = gate.post(Idempotency_Key="order-1")
        refused(response, 424, UNKNOWN)
        assert "Retry-After" not in response.headers
        clock.tick(HOUR)
    assert len(stripe.calls) == 2
    assert alarms(gate) == (2 if fault == "no_retry_500" else 1)
    assert stripe.invoices == invoices


# ---------------------------------------------------------------- B7

FIXED = ("customer: {required: true}", "customer: {required: true}\n          footer: {fixed: Thank you}")


@pytest.mark.parametrize("lost", [False, True], ids=["ledger kept", "ledger lost"])
def test_b7_call_whose_form_the_policy_has_changed_meanwhile_is_unknown_and_never_free(
    at_stripe: Callable[..., Function], stripe: Stripe, ledger: Kept, clock: Clock, *, lost: bool
) -> None:
    stripe.fail_next("close_after", times=3)
    refused(at_stripe().post(Idempotency_Key="order-1"), 504, UNKNOWN)
    if lost:
        ledger.lose()
    gate = at_stripe(FIXED)
    for later in (0, LEASE, HOUR):
        clock.tick(later)
        if lost:  # Stripe says that it knows the key with another form
            refused(gate.post(Idempotency_Key="order-1"), 504, UNKNOWN)
        else:
            refused(gate.post(Idempotency_Key="order-1"), 424, UNKNOWN)
    reused = gate.post(body=f"{CUSTOMER}&description=x", Idempotency_Key="order-1")
    assert "Do not use another key" in refused(reused, 422, "idempotency-key-reused")["detail"]
    clock.tick(KEPT_SECONDS)
    refused(gate.post(Idempotency_Key="order-1"), 424, UNKNOWN)
    assert stripe.invoices == 1
    if not lost:  # the document as it was settles it, as long as Stripe remembers
        clock.now -= KEPT_SECONDS
        assert at_stripe().post(Idempotency_Key="order-1").status_code == 200
        assert stripe.invoices == 1


# ---------------------------------------------------------------- B8


def test_b8_refusal_in_words_that_are_not_stripes_is_kept_and_told_as_probable(
    function: Callable[..., Function],
) -> None:
    refusal = answered(b"StripeConnectionError", b"400 Bad Request", b"Content-Type: text/plain")
    with talking(refusal) as (origin, requests):
        gate = function(policy(origin))
        first = gate.post(Idempotency_Key="order-1")
        detail = refused(first, 400, "upstream-rejected")["detail"]
        assert "Probably nothing was created. This key is not sent again. Do not use another key" in detail
        for _ in range(2):
            again = gate.post(Idempotency_Key="order-1")
            assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(first.data), "true")
        mended = gate.post(body=f"{CUSTOMER}&description=mended", Idempotency_Key="order-1")
        detail = refused(mended, 422, "idempotency-key-reused")["detail"]
        assert "Probably nothing was created" in detail
        assert "Do not use another key" in detail
        assert len(requests) == 1
    assert results(gate) == ["rejected"]


# ---------------------------------------------------------------- B9


def in_use(response: TestResponse, target: str) -> None:
    """Assert what a tool that counts a 409 as an error repeats by itself; Stripe's own clients repeat a 409."""
    if target == TARGET:
        assert refused(response, 503, "idempotency-key-in-use")["retry_after"] >= 1
    else:
        stripe_refused(response, 409, "idempotency-key-in-use")
        assert response.headers["Stripe-Should-Retry"] == "true"
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("target", [TARGET, SDK_TARGET])
def test_b9_call_that_is_still_running_is_repeated_by_every_client(
    at_appgregator: Callable[..., Function], upstream: Appgregator, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    gate = at_appgregator()
    during: list[TestResponse] = []
    send = Upstreams.send

    def meanwhile(*given: Any) -> Reply:
        during.append(gate.post(target, Idempotency_Key="order-1"))
        return send(*given)

    monkeypatch.setattr(Upstreams, "send", meanwhile)
    first = gate.post(target, Idempotency_Key="order-1")
    in_use(during[0], target)
    again = gate.post(target, Idempotency_Key="order-1")
    assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(first.data), "true")
    assert len(during) == upstream.invoices == 1


@pytest.mark.parametrize("target", [TARGET, SDK_TARGET])
@pytest.mark.parametrize("upstream_of", ["stripe", "appgregator"])
def test_b9_call_that_was_killed_ten_seconds_ago_is_repeated_and_then_unknown(
    request: pytest.FixtureRequest, clock: Clock, monkeypatch: pytest.MonkeyPatch, upstream_of: str, target: str
) -> None:
    gate: Function = request.getfixturevalue(f"at_{upstream_of}")()
    upstream: Stripe | Appgregator = request.getfixturevalue("stripe" if upstream_of == "stripe" else "upstream")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Memory, "settle", die)
        with pytest.raises(KeyboardInterrupt):
            gate.post(target, Idempotency_Key="order-1")
    clock.tick(10)
    in_use(gate.post(target, Idempotency_Key="order-1"), target)
    clock.tick(LEASE - 10)
    last = gate.post(target, Idempotency_Key="order-1")
    assert last.status_code == (200 if upstream_of == "stripe" else 424)
    assert upstream.invoices == 1
    assert json.loads(last.data)
