"""What an upstream's answer means, and that its words stay where they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies.model import Budget, Limit, Outcome, Step
from policies.outcomes import Approval, Decision
from policies.refusals import (
    OutcomeUnknown,
    Refusal,
    UpstreamBusy,
    UpstreamKeyRefused,
    UpstreamMisrouted,
    UpstreamRejected,
)
from policies.upstreams import UPSTREAMS
from policies.upstreams.stripe import CODES
from sandbox.invoice import EXAMPLE, encode
from tests.policies.conftest import decided, written

if TYPE_CHECKING:
    from policies.model import Grant
    from policies.outcomes import Reply

#: What comes of the calls here, which are all for this customer.
INVOICE = encode({**EXAMPLE, "customer": "cus_1"})
CANARY = "sk_live_canary4242"
#: What an upstream may say of an error, with a secret wherever it has room for one.
LOUD = {
    "error": {
        "type": CANARY,
        "code": CANARY,
        "message": f"Invalid API Key provided: {CANARY}",
        "param": CANARY,
        "doc_url": CANARY,
        "request_log_url": CANARY,
        "decline_code": CANARY,
    },
    CANARY: CANARY,
}
BODIES = [
    INVOICE,
    b"",
    json.dumps(LOUD).encode(),
    f"<html>{CANARY}</html>".encode(),
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"null",
]


def judge(grant: Grant, status: int, body: bytes, wait: int | None = None) -> Reply:
    """Have the dialect of the grant's upstream judge an answer."""
    headers = {} if wait is None else {"retry-after": str(wait)}
    return UPSTREAMS[grant.entitlement.connection.upstream].judge(grant, Step("key"), status, headers, body)


def said(reply: Reply) -> dict[str, Any]:
    assert reply.refusal is not None
    return reply.refusal.problem("id")


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:12]))
@pytest.mark.parametrize(
    ("status", "outcome", "kind", "answered"),
    [
        *((status, Outcome.REJECTED, UpstreamRejected, status) for status in (400, 402, 422)),
        *((status, Outcome.RELEASED, UpstreamKeyRefused, 503) for status in (401, 403)),
        (429, Outcome.RELEASED, UpstreamBusy, 503),
        *((status, Outcome.UNKNOWN, OutcomeUnknown, 424) for status in (500, 501, 502, 503, 504, 520, 599)),
        *((status, Outcome.UNKNOWN, OutcomeUnknown, 424) for status in (100, 302, 303, 408, 409, 413)),
        *((status, Outcome.UNKNOWN, OutcomeUnknown, 424) for status in (415, 418, 424, 425, 0, 600, 999)),
    ],
)
def test_status_means_the_same_whatever_the_body_if_that_says_nothing_in_the_upstreams_own_words(
    grant: Grant, *, body: bytes, status: int, outcome: Outcome, kind: type[Refusal], answered: int
) -> None:
    reply = judge(grant, status, body)
    assert reply.outcome is outcome
    assert type(reply.refusal) is kind
    assert said(reply)["status"] == answered
    assert said(reply)["decided_by"] == "upstream"
    assert reply.answer is None
    assert reply.created is None
    assert reply.reached
    assert reply.upstream_status == status
    assert "canary" not in repr((said(reply), reply.refusal.note, reply.alarm))


@pytest.mark.parametrize("status", [301, 307, 308, 404, 405, 410, 421])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:12]))
def test_front_end_that_says_no_such_place_without_json_is_not_the_upstream(
    grant: Grant, status: int, body: bytes
) -> None:
    reply = judge(grant, status, body)
    if body[:1] != b"{":
        assert (reply.outcome, type(reply.refusal)) == (Outcome.RELEASED, UpstreamMisrouted)
        assert (said(reply)["status"], "retry_after" in said(reply)) == (502, False)
        assert reply.alarm is not None
    else:
        assert reply.outcome is (Outcome.REJECTED if status == 404 else Outcome.UNKNOWN)


# ---------------------------------------------------------------- what a refusal proves, and of which send

REFUSED = {"error": {"type": "invalid_request_error", "code": "resource_missing"}}
DECLINED = {"error": {"type": "card_error", "code": "card_declined"}}
OTHER_FORM = {"error": {"type": "idempotency_error"}}
BLOCKED = {"error": {"type": "invalid_request_error", "code": "action_blocked"}}
LOCKED = {"error": {"type": "invalid_request_error", "code": "lock_timeout"}}
IN_USE = {"error": {"type": "invalid_request_error", "code": "idempotency_key_in_use"}}
AWAITS = {
    "error": {
        "type": "invalid_request_error",
        "code": "approval_required",
        "approval_request": {"id": "areq_1", "dashboard_url": "https://dashboard.stripe.com/approvals/areq_1"},
    }
}
REPLAYED = {"idempotent-replayed": "true"}
#: The first send of a key; one of a key that was refused before; one after a send of unknown outcome that can no longer
#: arrive, and one after such a send that still can.
FIRST = Step("key")
FREED = Step("key", generation=1, refused=True)
QUIET = Step("key", doubt=True, quiet=True)
DOUBT = Step("key", doubt=True, quiet=False)


@pytest.mark.parametrize(
    ("status", "answer", "headers", "first", "freed", "quiet", "doubt"),
    [
        (400, REFUSED, {}, "freed", "freed", "freed", "unknown"),
        (404, REFUSED, {}, "freed", "freed", "freed", "unknown"),
        (402, DECLINED, {}, "freed", "freed", "freed", "unknown"),
        (402, DECLINED, REPLAYED, "closed", "closed", "closed", "closed"),
        (400, REFUSED, REPLAYED, "closed", "closed", "closed", "closed"),
        (400, BLOCKED, {}, "freed", "freed", "freed", "unknown"),
        (403, BLOCKED, {}, "freed", "freed", "freed", "unknown"),
        (500, BLOCKED, {}, "freed", "freed", "freed", "unknown"),
        (400, OTHER_FORM, {}, "unknown", "closed", "unknown", "unknown"),
        (400, {"error": {"type": "StripeInvalidRequestError"}}, {}, "freed", "freed", "freed", "unknown"),
        (400, {"error": {"type": "api_error"}}, {}, "rejected", "rejected", "unknown", "unknown"),
        (400, "StripeConnectionError", {}, "rejected", "rejected", "unknown", "unknown"),
        (422, {"problem": "no"}, {}, "rejected", "rejected", "unknown", "unknown"),
        (401, REFUSED, {}, "released", "released", "unknown", "unknown"),
        (403, REFUSED, {}, "released", "released", "unknown", "unknown"),
        (429, REFUSED, {}, "released", "released", "unknown", "unknown"),
        (429, LOCKED, {}, "released", "released", "unknown", "unknown"),
        (400, LOCKED, {}, "released", "released", "unknown", "unknown"),
        (404, "<html>", {}, "released", "released", "unknown", "unknown"),
        (301, "<html>", {}, "released", "released", "unknown", "unknown"),
        (302, "<html>", {}, "unknown", "unknown", "unknown", "unknown"),
        (200, "<html>", {}, "unknown", "unknown", "unknown", "unknown"),
        (409, IN_USE, {}, "unknown", "unknown", "unknown", "unknown"),
        (424, REFUSED, {}, "unknown", "unknown", "unknown", "unknown"),
        (500, {"error": {"type": "api_error"}}, {}, "unknown", "unknown", "unknown", "unknown"),
        (500, {"error": {"type": "api_error"}}, REPLAYED, "mute", "closed", "mute", "mute"),
        *((status, AWAITS, {}, "waits", "waits", "waits", "waits") for status in (200, 202, 400, 402, 403, 409, 500)),
        (400, {"error": {"code": "approval_required"}}, {}, "mute", "mute", "mute", "mute"),
        (400, {"error": {"approval_request": {"id": "areq_1"}}}, {}, "waits", "waits", "waits", "waits"),
    ],
)
def test_answer_frees_a_key_only_if_no_send_of_it_can_have_had_an_effect(  # one row of the table
    *, stripes: Grant, status: int, answer: object, headers: dict[str, str], first: str, freed: str, quiet: str,
    doubt: str,
) -> None:  # fmt: skip
    body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    dialect = UPSTREAMS["stripe"]
    replies = [dialect.judge(stripes, step, status, headers, body) for step in (FIRST, FREED, QUIET, DOUBT)]
    assert [meant(reply) for reply in replies] == [first, freed, quiet, doubt]


def meant(reply: Reply) -> str:
    if reply.closed:
        assert reply.outcome is Outcome.RELEASED
        return "closed"
    if reply.mute or reply.approval:
        assert reply.outcome is Outcome.UNKNOWN
        return "mute" if reply.mute else "waits"
    return reply.outcome.value


@pytest.fixture
def stripes() -> Grant:
    """A call with a key at Stripe."""
    text = written("customer:").replace("upstream: appgregator", "upstream: stripe")
    return decided(text, {"customer": "cus_1"}, key="order-1")


def stripe_said(
    grant: Grant, status: int, answer: object, step: Step = FIRST, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    return said(UPSTREAMS["stripe"].judge(grant, step, status, headers or {}, json.dumps(answer).encode()))


def test_call_that_waits_for_a_person_says_where_and_when_to_come_back(stripes: Grant) -> None:
    problem = stripe_said(stripes, 403, AWAITS)
    assert (problem["status"], problem["reason"], problem["retry_after"]) == (503, "awaiting-approval", 300)
    assert problem["approval"] == "https://dashboard.stripe.com/approvals/areq_1"
    assert problem["detail"].endswith("It is approved at https://dashboard.stripe.com/approvals/areq_1")
    assert "Nothing was created" not in problem["detail"]


@pytest.mark.parametrize(
    "look", ["http://dashboard.stripe.com/x", "https://dashboard.stripe.com.evil.example/x", CANARY, "", None, 7, []]
)
def test_place_that_is_not_stripes_own_is_not_passed_on(stripes: Grant, look: object) -> None:
    error = {"code": "approval_required", "approval_request": {"id": "areq_1", "dashboard_url": look}}
    problem = stripe_said(stripes, 400, {"error": error})
    assert "approval" not in problem
    assert problem["reason"] == "awaiting-approval"


@pytest.mark.parametrize(
    "step", [Step("owner", resumes=False), FIRST], ids=["without a key", "an approval without an id"]
)
def test_caller_who_cannot_ask_again_is_not_told_to(stripes: Grant, step: Step) -> None:
    error = dict(AWAITS["error"]) if not step.resumes else {"code": "approval_required"}
    problem = stripe_said(stripes, 400, {"error": error}, step)
    assert (problem["status"], problem["reason"]) == (424, "outcome-unknown")
    assert "a person approve this call" in problem["detail"]
    assert "Do not use another key" in problem["detail"]


def test_refusal_while_an_earlier_send_may_still_arrive_says_when_it_no_longer_can(stripes: Grant) -> None:
    problem = stripe_said(stripes, 400, REFUSED, DOUBT)
    assert (problem["status"], problem["reason"], problem["retry_after"]) == (504, "outcome-unknown", 30)


def test_error_that_the_upstream_keeps_is_not_worth_another_try(stripes: Grant) -> None:
    problem = stripe_said(stripes, 500, {}, headers=REPLAYED)
    assert (problem["status"], "retry_after" in problem) == (424, False)


def test_refusal_in_unknown_words_is_not_told_as_nothing(grant: Grant) -> None:
    problem = said(judge(grant, 400, b"StripeConnectionError"))
    assert "Probably nothing was created. This key is not sent again. Do not use another key" in problem["detail"]


@pytest.mark.parametrize(
    ("status", "body", "decision", "created"),
    [
        (200, {"status": "pending"}, Decision.WAITS, None),
        (200, {"status": "approved"}, Decision.WAITS, None),
        (200, {"status": "requires_execution"}, Decision.WAITS, None),
        (200, {"status": "something new"}, Decision.WAITS, None),
        (200, {"status": "succeeded"}, Decision.WAITS, None),
        (200, {"status": "succeeded", "status_details": []}, Decision.WAITS, None),
        (
            200,
            {"status": "succeeded", "status_details": {"succeeded": {"result": {"id": "in_1", "object": "invoice"}}}},
            Decision.DONE,
            "in_1",
        ),
        (
            200,
            {"status": "succeeded", "status_details": {"succeeded": {"result": {"id": "../evil"}}}},
            Decision.WAITS,
            None,
        ),
        (200, {"status": "rejected"}, Decision.REFUSED, None),
        (200, {"status": "canceled"}, Decision.REFUSED, None),
        (200, {"status": "expired"}, Decision.LAPSED, None),
        (200, {"status": "failed"}, Decision.LAPSED, None),
        (200, {"status": "execution_failed"}, Decision.LAPSED, None),
        (200, [], Decision.WAITS, None),
        (403, {"status": "rejected"}, Decision.WAITS, None),
        (404, {"status": "expired"}, Decision.WAITS, None),
    ],
)
def test_approval_ends_by_the_upstreams_own_word_alone(
    status: int, body: object, decision: Decision, created: str | None
) -> None:
    approvals = UPSTREAMS["stripe"].approvals
    assert approvals is not None
    assert approvals.decided(status, json.dumps(body).encode()) == Approval(decision, created)


@pytest.mark.parametrize(
    ("look", "told"),
    [
        ("https://dashboard.stripe.com/approvals/areq_1", "https://dashboard.stripe.com/approvals/areq_1"),
        ("https://dashboard.stripe.com.evil.example/x", None),
        (7, None),
        (None, None),
    ],
)
def test_approval_that_waits_is_told_with_stripes_own_address(look: object, told: str | None) -> None:
    approvals = UPSTREAMS["stripe"].approvals
    assert approvals is not None
    answer = {"id": "areq_1", "status": "requires_review", "dashboard_url": look}
    assert approvals.decided(200, json.dumps(answer).encode()) == Approval(look=told)


@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_whole_invoice_is_a_success_and_trimmed(grant: Grant, status: int) -> None:
    reply = judge(grant, status, INVOICE)
    assert reply.outcome is Outcome.SUCCEEDED
    assert reply.refusal is None
    assert reply.answer == {
        "id": EXAMPLE["id"],
        "status": "draft",
        "customer": "cus_1",
        "lines": {"data": [{"amount": 2000}]},
        "metadata": {},
    }
    assert reply.created == EXAMPLE["id"]
    assert reply.upstream_status == status


@pytest.mark.parametrize(("field", "answered"), [('"status": "cut \\ud83d"', "cut ?"), ('"status": 1e999', None)])
def test_text_cut_within_a_character_or_too_large_a_number_hides_no_success(
    grant: Grant, field: str, answered: str | None
) -> None:
    reply = judge(grant, 200, f'{{"object": "invoice", "id": "in_1", {field}}}'.encode())
    assert reply.outcome is Outcome.SUCCEEDED
    assert reply.answer is not None
    assert reply.answer["status"] == answered


@pytest.mark.parametrize("value", [b'"\xff"', b"9" * 5000, b"1e999", b'"\\ud83d"'])
def test_what_cannot_be_read_hides_no_success_where_it_is_not_granted(grant: Grant, value: bytes) -> None:
    reply = judge(grant, 200, b'{"object": "invoice", "id": "in_1", "tax": %b}' % value)
    assert (reply.outcome, reply.created) == (Outcome.SUCCEEDED, "in_1")
    assert "tax" not in (reply.answer or {})


@pytest.mark.parametrize("created", ["in_1\n", "x", "in_" + "a" * 65, "IN_1", "in_é", "sk-live canary"])
def test_success_with_a_strange_id_stays_a_success_and_out_of_the_record(grant: Grant, created: str) -> None:
    """Hiding a success invites a second invoice."""
    reply = judge(grant, 200, json.dumps({"object": "invoice", "id": created}).encode())
    assert reply.outcome is Outcome.SUCCEEDED
    assert reply.created is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(INVOICE[:-1], id="cut off"),
        pytest.param(INVOICE[: len(INVOICE) // 2], id="cut in half"),
        pytest.param(INVOICE + b"}", id="too long"),
        pytest.param(INVOICE + INVOICE, id="two"),
        pytest.param(b"[" + INVOICE + b"]", id="in a list"),
        pytest.param(json.dumps(INVOICE.decode()).encode(), id="in a text"),
        pytest.param(b'{"object": "invoice"}', id="no id"),
        pytest.param(b'{"object": "invoice", "id": ""}', id="empty id"),
        pytest.param(b'{"object": "invoice", "id": null}', id="null id"),
        pytest.param(b'{"object": "invoice", "id": 7}', id="number for an id"),
        pytest.param(b'{"id": "in_1"}', id="no object"),
        pytest.param(b'{"object": "customer", "id": "cus_1"}', id="another object"),
        pytest.param(b'{"object": "invoice", "id": "in_1", "total": NaN}', id="NaN"),
        pytest.param(b'{"object": "invoice", "id": "in_1", "status": "\xff"}', id="invalid UTF-8"),
        pytest.param(INVOICE.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"object": "invoice", "id": "in_1", "status": ' + b"9" * 5000 + b"}", id="5,000 digits"),
        pytest.param(b'{"object": "invoice", "id": "in_1", "x": ' + b"[" * 100_000, id="100,000 brackets"),
        pytest.param(json.dumps(LOUD).encode(), id="an error"),
    ],
)
def test_success_that_is_no_whole_invoice_is_unknown(grant: Grant, body: bytes) -> None:
    reply = judge(grant, 200, body)
    assert reply.outcome is Outcome.UNKNOWN
    assert type(reply.refusal) is OutcomeUnknown
    assert "canary" not in repr((said(reply), reply.refusal.note))


# ---------------------------------------------------------------- the answer to another call


#: Where a boolean or an object is expected: it says nothing.
ODD: tuple[object, ...] = (None, "true", 0, 1, [], {})


def changed(**changes: object) -> bytes:
    return encode({**EXAMPLE, "customer": "cus_1", **changes})


def assert_stray(reply: Reply, what: str) -> None:
    assert (reply.outcome, reply.stray, reply.answer, reply.created) == (Outcome.UNKNOWN, True, None, None)
    assert reply.alarm is not None
    assert f"not the {what} that was sent" in reply.alarm
    assert reply.again


@pytest.mark.parametrize("response", ["id", "id, customer, metadata, livemode"])
@pytest.mark.parametrize("customer", ["cus_2", "CUS_1", "cus_1 ", "", {"id": "cus_2", "object": "customer"}])
def test_invoice_of_another_customer_belongs_to_another_call(response: str, customer: object) -> None:
    grant = decided(written(response=response), {"customer": "cus_1"})
    reply = judge(grant, 200, changed(customer=customer))
    assert_stray(reply, "customer")
    assert "cus_" not in repr((said(reply), reply.alarm))


@pytest.mark.parametrize("response", ["id", "id, customer"])
@pytest.mark.parametrize("customer", ["cus_1", {"id": "cus_1"}, None, {}, {"id": None}, 7, ["cus_2"], True])
def test_only_a_customer_that_the_answer_names_is_compared(response: str, customer: object) -> None:
    grant = decided(written(response=response), {"customer": "cus_1"})
    reply = judge(grant, 200, changed(customer=customer))
    assert (reply.outcome, reply.stray, reply.alarm) == (Outcome.SUCCEEDED, False, None)


def test_only_a_customer_that_was_sent_is_compared() -> None:
    assert judge(decided(written("description:"), {"description": "a"}), 200, changed()).outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("response", ["id", "id, livemode"])
@pytest.mark.parametrize(
    ("mode", "livemode", "belongs"),
    [
        ("live", True, True), ("live", False, False), ("test", False, True), ("test", True, False),
        ("", True, True), ("", False, True),
        *((mode, odd, True) for mode in ("live", "test") for odd in ODD),
    ],
)  # fmt: skip
def test_invoice_of_the_other_mode_belongs_to_another_call(
    response: str, mode: str, livemode: object, *, belongs: bool
) -> None:
    grant = decided(written(response=response), {"customer": "cus_1"})
    connection = replace(grant.entitlement.connection, mode=mode)
    grant = replace(grant, entitlement=replace(grant.entitlement, connection=connection))
    reply = judge(grant, 200, changed(livemode=livemode))
    if belongs:
        assert (reply.outcome, reply.alarm) == (Outcome.SUCCEEDED, None)
    else:
        assert_stray(reply, "mode")


@pytest.mark.parametrize("path", ["metadata[order_id]", "metadata[countersign]"], ids=["key", "stamp"])
@pytest.mark.parametrize("response", ["id", "id, metadata"])
def test_invoice_with_the_name_of_another_call_belongs_to_that(path: str, response: str) -> None:
    """Its key, where that is a metadata entry, and its stamp: also of two invoices of one customer."""
    text = written(
        "customer:\nmetadata[order_id]:\nmetadata[note]:",
        idempotency='{from: "metadata[order_id]"}\n        stamp: "metadata[countersign]"',
        response=response,
    )
    grant = decided(text, {"customer": "cus_1", "metadata[order_id]": "7", "metadata[note]": "a"})
    name = path[len("metadata[") : -1]
    metadata = {"order_id": "7", "countersign": grant.parameters["metadata[countersign]"], "note": " A "}
    for odd in (metadata, *ODD, {name: None}, {name: 7}, {name: {}}):
        assert judge(grant, 200, changed(metadata=odd)).outcome is Outcome.SUCCEEDED
    assert_stray(judge(grant, 200, changed(metadata={**metadata, name: "8"})), path)


# ---------------------------------------------------------------- what an invoice counts against a budget


@pytest.fixture
def budgeted(grant: Grant) -> Grant:
    """A call of a caller with a budget in US dollars."""
    budget = Budget("usd", Limit(10**15, 86_400, "10 usd/day"))
    return replace(grant, caller=replace(grant.caller, budgets=(budget,)))


def created(grant: Grant, amount: str, currency: str = '"usd"') -> Reply:
    """Have an invoice come back whose amount due and currency are written like this."""
    body = f'{{"object": "invoice", "id": "in_1", "amount_due": {amount}, "currency": {currency}}}'
    reply = judge(grant, 200, body.encode(), None)
    assert (reply.outcome, reply.created) == (Outcome.SUCCEEDED, "in_1")  # whatever it counts, it is there
    return reply


@pytest.mark.parametrize(
    ("amount", "spent"),
    [
        (0, 0), (1, 1), (2000, 2000), (10**12 - 1, 10**12 - 1), (10**12, 10**12),
        (-1, 0), (-2000, 0), (-(10**18), 0),
        (10**12 + 1, 10**12), (10**18, 10**12), (2**63, 10**12), (10**30, 10**12),
    ],
)  # fmt: skip
def test_invoice_counts_its_amount_but_never_less_than_nothing_nor_more_than_a_counter_holds(
    budgeted: Grant, amount: int, spent: int
) -> None:
    reply = created(budgeted, str(amount))
    assert (reply.spent, reply.spent_in, reply.alarm) == (spent, "usd", None)


@pytest.mark.parametrize("amount", ["true", "false", "null", '"2000"', "2000.5", "[2000]", '{"usd": 2000}', "1e999"])
def test_amount_that_is_no_whole_number_leaves_the_reservation_and_raises_an_alarm(
    budgeted: Grant, amount: str
) -> None:
    reply = created(budgeted, amount)
    assert reply.spent is None
    assert "no budget of the caller counts" in (reply.alarm or "")


@pytest.mark.parametrize("currency", ['"eur"', '"USD"', '""', "null", "7", "true", '["usd"]', '{"usd": "usd"}'])
def test_invoice_in_another_currency_leaves_the_reservation_and_raises_an_alarm(budgeted: Grant, currency: str) -> None:
    reply = created(budgeted, "2000", currency)
    assert reply.spent is None
    assert "another currency" in (reply.alarm or "")


def test_invoice_that_names_neither_amount_nor_currency_alarms_the_operator(budgeted: Grant) -> None:
    reply = judge(budgeted, 200, b'{"object": "invoice", "id": "in_1"}', None)
    assert (reply.outcome, reply.spent, reply.alarm is None) == (Outcome.SUCCEEDED, None, False)


@pytest.mark.parametrize("amount", ["2000", "true", "null"])
def test_invoice_of_a_caller_without_a_budget_counts_nothing_and_alarms_nobody(grant: Grant, amount: str) -> None:
    reply = created(grant, amount, '"eur"')
    assert (reply.spent, reply.alarm) == (None, None)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["invoice", "in_1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "object", "error"]), inner),
    max_leaves=8,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=80) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_nothing_is_a_success_but_an_invoice_with_an_id(grant: Grant, body: bytes) -> None:
    reply = judge(grant, 200, body)
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    whole = (
        isinstance(answer, dict)
        and answer.get("object") == "invoice"
        and isinstance(answer.get("id"), str)
        and answer["id"] != ""
    )
    assert reply.outcome is (Outcome.SUCCEEDED if whole else Outcome.UNKNOWN)
    assert (reply.answer is None) is not whole


def rejected(grant: Grant, status: int = 400, **error: object) -> dict[str, Any]:
    answer = {"error": {"type": "invalid_request_error", **error}}
    return said(judge(grant, status, json.dumps(answer).encode()))


@pytest.mark.parametrize("code", sorted(CODES))
def test_known_code_is_passed_on_in_our_own_words(grant: Grant, code: str) -> None:
    problem = rejected(grant, code=code, message=CANARY)
    assert problem["upstream_code"] == code
    assert problem["detail"] == f"{CODES[code]}. Nothing was created."


@pytest.mark.parametrize(
    "code", [CANARY, "", "resource_missing ", "RESOURCE_MISSING", None, 7, ["resource_missing"], {}]
)
def test_any_other_code_is_not_passed_on(grant: Grant, code: object) -> None:
    problem = rejected(grant, code=code, message=CANARY)
    assert "upstream_code" not in problem
    assert problem["detail"] == "The upstream refused the invoice as written. Nothing was created."


@pytest.mark.parametrize("param", ["customer", "metadata[order_id]"])
def test_parameter_that_was_sent_is_named(grant: Grant, param: str) -> None:
    problem = rejected(grant, 404, code="resource_missing", param=param)
    assert problem["parameter"] == param
    assert problem["detail"] == (f"The upstream has no such object ({param}). Nothing was created.")


@pytest.mark.parametrize("param", [CANARY, "", "description", "metadata", "cus_1", "7", None, 7, ["customer"], {}])
def test_parameter_that_was_not_sent_is_not_named(grant: Grant, param: object) -> None:
    problem = rejected(grant, 402, param=param)
    assert "parameter" not in problem
    assert problem["detail"] == (
        "The upstream refused the invoice, although the call was in order. Nothing was created."
    )


@pytest.mark.parametrize("error", [None, [], "text", 7, {"error": {}}])
def test_error_of_no_known_shape_still_is_a_refusal(grant: Grant, error: object) -> None:
    reply = judge(grant, 400, json.dumps({"error": error}).encode())
    assert reply.outcome is Outcome.REJECTED
    assert set(said(reply)) == {"type", "title", "status", "detail", "reason", "decided_by", "audit_id"}


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(status=st.sampled_from([200, 302, 400, 401, 402, 404, 409, 429, 500]), data=st.data())
def test_no_text_of_the_upstream_is_in_a_refusal(grant: Grant, status: int, data: st.DataObject) -> None:
    canary = st.text(max_size=3).map(lambda text: f"{CANARY}{text}")
    names = st.sampled_from(["error", "code", "param", "message", "id", "type", CANARY])
    value = data.draw(
        st.recursive(canary, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5))
    )
    body = data.draw(st.sampled_from([json.dumps(value).encode(), repr(value).encode("utf-8", "replace")]))
    reply = judge(grant, status, body)
    assert reply.refusal is not None
    assert "canary" not in repr((reply.refusal.problem("id"), reply.refusal.headers, reply.refusal.note, reply.alarm))


@pytest.mark.parametrize(
    ("given_wait", "told"),
    [(None, 5), (-5, 1), (0, 1), (1, 1), (30, 30), (3600, 3600), (3601, 3600), (10**12, 3600)],
)
def test_wait_of_a_busy_upstream_is_passed_on_within_bounds(grant: Grant, given_wait: int | None, told: int) -> None:
    reply = judge(grant, 429, b"", given_wait)
    assert said(reply)["retry_after"] == told
    assert reply.refusal is not None
    assert reply.refusal.headers == {"Retry-After": str(told)}


def test_refused_key_of_ours_alarms_the_operator(grant: Grant) -> None:
    assert {status: judge(grant, status, b"").alarm is not None for status in (200, 400, 401, 403, 429, 500)} == {
        200: False, 400: False, 401: True, 403: True, 429: False, 500: False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"amount_due": "2000"},
        {"amount_due": True},
        {"amount_due": -1},
        {"amount_due": 10**13},
        {"amount_due": [2000]},
        {"currency": CANARY},
        {"currency": "USD"},
        {"currency": {"usd": 1}},
        {"currency": None},
    ],
    ids=str,
)
def test_sum_goes_on_record_only_if_it_looks_like_one(grant: Grant, changes: dict[str, Any]) -> None:
    whole = judge(grant, 200, INVOICE)
    assert (whole.amount, whole.currency) == (EXAMPLE["amount_due"], EXAMPLE["currency"])
    odd = judge(grant, 200, encode({**EXAMPLE, "customer": "cus_1", **changes}))
    assert (odd.outcome, odd.amount, odd.currency) == (Outcome.SUCCEEDED, None, None)
