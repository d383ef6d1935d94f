"""A whole invoice through the function, at Stripe: what ends in one finalized invoice, and what in nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from console.__main__ import main
from policies import document
from policies.idempotency import LEASE, resolve
from policies.model import DocumentError
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import KEPT_SECONDS, Customer, Stripe
from tests.conftest import KEY, Clock, sha256
from tests.problems import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from werkzeug.test import TestResponse

    from gateway.stores.memory import Memory
    from tests.conftest import Function

TARGET = "/stripe/invoices/issue?name=ft-4&connection_name=stripe-1"
DOCUMENT = """\
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: stripe, origin: {origin}, secret: "file:{secret}"}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: {key}}}]
    limits: [100000/minute]
    grants:
      - connection: billing
        operation: invoices.issue
        response: [id, number, status, total, hosted_invoice_url, sent]
        amount: {{max: {most}, currency: [{currency}]}}
        lines: {{max: {lines}, credit: {credit}}}
        parameters:
          customer: {{prefix: cus_}}
          collection_method:
          days_until_due:
          description:
          send:
          "lines[{{i}}][price]":
          "lines[{{i}}][metadata][sku]": {{max_length: 3}}
          "metadata[{{key}}]":
"""
#: Three lines of 408.50 USD in all.
LINES = {
    "lines[0][description]": "Workshop",
    "lines[0][amount]": "30000",
    "lines[1][description]": "Travel",
    "lines[1][unit_amount]": "2500",
    "lines[1][quantity]": "3",
    "lines[2][amount]": "3350",
}
CALL = {"customer": "cus_1", "currency": "usd", **LINES}
SENT = {**CALL, "send": "true", "collection_method": "send_invoice", "days_until_due": "30"}
TOTAL = 40850


def written(stripe: Stripe, tmp_path: Path, **said: object) -> str:
    usual = {"credit": "false", "lines": 50, "most": 50000, "currency": "usd, eur"}
    return DOCUMENT.format(origin=stripe.origin, secret=tmp_path / "key", key=sha256(KEY), **{**usual, **said})


@pytest.fixture
def gate(function: Callable[..., Function], stripe: Stripe, memory: Memory, tmp_path: Path) -> Callable[..., Function]:
    """Load the function in front of Stripe."""
    (tmp_path / "key").write_text(UPSTREAM_KEY)

    def load(**said: object) -> Function:
        return function(written(stripe, tmp_path, **said))

    return load


def issue(loaded: Function, call: dict[str, str] | None = None, order: str = "order-1") -> TestResponse:
    form = "&".join(f"{name}={value}" for name, value in (call or CALL).items())
    return loaded.post(target=TARGET, body=form, Idempotency_Key=order)


def finalized(stripe: Stripe) -> list[dict[str, Any]]:
    return [made for made in stripe.made if made["status"] != "draft"]


def steps(loaded: Function) -> list[str]:
    return [entry["step"] for entry in loaded.record.entries("step")]


def test_lines_in_one_finalized_invoice_out(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded = gate()
    response = issue(loaded)
    assert response.status_code == 200, response.text
    assert response.json is not None
    (made,) = finalized(stripe)
    assert response.json == {
        "id": made["id"],
        "number": made["number"],
        "status": "open",
        "total": TOTAL,
        "hosted_invoice_url": made["hosted_invoice_url"],
        "sent": False,
    }
    told = [(line["description"], line["amount"]) for line in made["lines"]["data"]]
    assert told == [("Workshop", 30000), ("3 x 25.00 Travel", 7500), (None, 3350)]
    assert made["auto_advance"] is False
    assert steps(loaded) == ["create", "lines", "finalize"]
    outcome = loaded.record.entries("outcome")[-1]
    assert (outcome["created"], outcome["amount"], outcome["currency"]) == (made["id"], TOTAL, "usd")
    again = issue(loaded)
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert len(stripe.made) == 1


def test_whole_invoice_with_all_the_metadata_that_a_caller_may_send(
    gate: Callable[..., Function], stripe: Stripe
) -> None:
    loaded = gate()
    fits = {**CALL, **{f"metadata[n{number}]": "x" for number in range(48)}}
    problem = refused(issue(loaded, {**fits, "metadata[more]": "x"}), 400, "parameter-invalid")
    assert problem["detail"] == "metadata has too many entries: 48 at most."
    assert not stripe.calls
    assert issue(loaded, fits).status_code == 200
    assert len(finalized(stripe)[0]["metadata"]) == 50


def test_whole_invoice_with_the_longest_description_of_a_line(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded, before = gate(), "3 x 25.00 "
    fits = {**CALL, "lines[1][description]": "x" * (5000 - len(before))}
    refused(issue(loaded, {**fits, "lines[1][description]": "x" * 4991}), 400, "parameter-invalid")
    assert not stripe.calls
    assert issue(loaded, fits).status_code == 200
    assert finalized(stripe)[0]["lines"]["data"][1]["description"] == before + fits["lines[1][description]"]


@pytest.mark.parametrize("blank", [0, 1, 3])
def test_blank_line_of_a_form_is_as_if_it_was_not_there(
    gate: Callable[..., Function], stripe: Stripe, blank: int
) -> None:
    loaded, form = gate(), {"customer": "cus_1", "currency": "usd"}
    for name, value in LINES.items():
        number = int(name[len("lines[")])
        form[f"lines[{number + (number >= blank)}]{name[len('lines[0]') :]}"] = value
    form |= {f"lines[{blank}][amount]": "", f"lines[{blank}][description]": ""}
    assert issue(loaded, form).status_code == 200
    assert issue(loaded).headers["Idempotent-Replayed"] == "true"
    (made,) = finalized(stripe)
    assert [line["amount"] for line in made["lines"]["data"]] == [30000, 7500, 3350]


def test_send_mails_it_once(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded = gate()
    assert (issue(loaded, SENT).json or {})["sent"] is True
    assert (issue(loaded, SENT).json or {})["sent"] is True
    assert [made["mailed"] for made in stripe.made] == [1]


@pytest.mark.parametrize("step", ["add_lines", "finalize", "send"])
@pytest.mark.parametrize("fault", ["close_after", "truncated", "error_500_created", "not_json"])
def test_lost_answer_at_any_step_still_ends_in_one_invoice(
    gate: Callable[..., Function], stripe: Stripe, memory: Memory, step: str, fault: str
) -> None:
    loaded = gate()
    stripe.fail_at(step, fault)
    first = issue(loaded, SENT)
    last = first if first.status_code == 200 else issue(loaded, SENT)
    assert first.status_code in {200, 504}, first.text
    if last.status_code == 504:  # Stripe keeps the 500
        assert fault == "error_500_created"
    else:
        assert last.status_code == 200, last.text
    (made,) = stripe.made
    assert (made["status"], made["total"], made.get("mailed")) == ("open", TOTAL, 1)


@pytest.mark.parametrize("step", ["add_lines", "finalize"])
@pytest.mark.parametrize("fault", ["error_400", "error_402", "error_404", "action_blocked"])
def test_refusal_at_a_step_leaves_nothing_and_frees_the_key(
    gate: Callable[..., Function], stripe: Stripe, step: str, fault: str
) -> None:
    loaded = gate()
    stripe.fail_at(step, fault)
    first = issue(loaded)
    assert first.status_code in {400, 402, 404}, first.text
    assert "othing was created" in (first.json or {})["detail"]
    assert stripe.made == []
    assert issue(loaded).status_code == 200
    assert len(finalized(stripe)) == 1


@pytest.mark.parametrize(
    ("customer", "reason"),
    [
        (Customer(discount=10), None),
        (Customer(tax=19), None),
        (Customer(tax=30), "total-differs"),
        (Customer(owes=20000), "total-differs"),
        (Customer(email=None), "email-missing"),
        (Customer(located=False), "upstream-rejected"),
    ],
    ids=["coupon", "tax within", "tax beyond", "debt", "no address", "no place"],
)
def test_what_the_customer_brings_with_it(
    gate: Callable[..., Function], stripe: Stripe, customer: Customer, reason: str | None
) -> None:
    loaded = gate()
    stripe.customers["cus_1"] = customer
    response = issue(loaded, SENT)
    if reason is None:
        assert response.status_code == 200, response.text
        assert len(finalized(stripe)) == 1
    else:
        assert (response.json or {})["reason"] == reason, response.text
        assert stripe.made == []


def test_wrong_origin_raises_one_alarm(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded = gate()
    stripe.fail_next("html_404", times=2)
    for _ in range(2):
        refused(issue(loaded), 502, "upstream-misrouted")
    assert [line["severity"] for line in loaded.record.lines()].count("ALERT") == 1
    assert issue(loaded).status_code == 200


@pytest.mark.parametrize("change", ["line", "finalized", "deleted"])
def test_draft_that_somebody_touched_meanwhile(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock, change: str
) -> None:
    loaded = gate()
    stripe.fail_at("finalize", "error_429", times=1)
    first = issue(loaded)
    assert first.status_code == 504, first.text
    assert "begun and is not finished" in (first.json or {})["detail"]
    (at, name), body = next(iter(stripe._books.invoices.items()))
    made = json.loads(body)
    if change == "deleted":
        del stripe._books.invoices[at, name]
    else:
        made |= {"status": "open"} if change == "finalized" else {}
        made["lines"]["data"].append(made["lines"]["data"][0])
        made |= {"subtotal": TOTAL + 30000, "total": TOTAL + 30000, "amount_due": TOTAL + 30000}
        stripe._books.invoices[at, name] = json.dumps(made).encode()
    second = issue(loaded)
    if change == "line":
        assert refused(second, 422, "total-differs")["detail"].startswith("You asked for 408.50 USD")
        assert stripe.made == []
        assert issue(loaded).status_code == 200
    elif change == "finalized":
        for again in (second, issue(loaded)):  # nobody is alarmed twice
            assert "is not what you asked for" in refused(again, 424, "outcome-unknown")["detail"]
        assert [line["severity"] for line in loaded.record.lines()].count("ALERT") == 1
        assert list(stripe._books.invoices) == [(at, name)]
    else:
        assert second.status_code == 200, second.text
        assert [made["total"] for made in finalized(stripe)] == [TOTAL]


def test_invoice_that_was_voided_meanwhile_is_not_raised_again_by_its_key(
    gate: Callable[..., Function], stripe: Stripe, memory: Memory, clock: Clock
) -> None:
    loaded = gate()
    stripe.fail_at("finalize", "close_after")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.upstreams.sending.PAUSES", ())
        assert issue(loaded).status_code == 504
    ((at, name), body), *_ = stripe._books.invoices.items()
    stripe._books.invoices[at, name] = json.dumps(json.loads(body) | {"status": "void"}).encode()
    refused(issue(loaded), 409, "invoice-voided")
    repeated = issue(loaded)
    assert (repeated.status_code, (repeated.json or {})["replayed"]) == (409, True)
    assert [made["status"] for made in stripe.made] == ["void"]
    ((key, held),) = memory._ledger.items()
    verdict, freed = resolve(held, None, now=clock.now + LEASE)  # an operator who frees the key
    assert verdict == "resolved"
    assert freed is not None
    memory._ledger[key] = freed
    assert issue(loaded).status_code == 200
    assert [made["status"] for made in stripe.made] == ["void", "open"]


def test_comes_back_after_the_upstream_forgot_its_keys(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock
) -> None:
    loaded = gate()
    stripe.fail_at("send", "error_429")
    assert issue(loaded, SENT).status_code == 504
    clock.now += KEPT_SECONDS + LEASE
    response = issue(loaded, SENT)
    assert response.status_code == 200, response.text
    assert (response.json or {})["sent"] is False
    assert [made["status"] for made in stripe.made] == ["open"]
    assert loaded.record.lines()[-1]["severity"] == "WARNING"


@pytest.mark.parametrize("fault", ["close_after", "error_500_created", "error_500"])
@pytest.mark.parametrize("later", [0, KEPT_SECONDS + LEASE])
def test_draft_whose_create_got_no_answer_is_found(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock, fault: str, later: int
) -> None:
    loaded = gate()
    stripe.fail_next(fault)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.upstreams.sending.PAUSES", ())
        assert issue(loaded, SENT).status_code == 504
    clock.now += later + 1
    response = issue(loaded, SENT)
    assert response.status_code == 200, response.text
    assert [(made["status"], made["total"], made["mailed"]) for made in stripe.made] == [("open", TOTAL, 1)]


@pytest.mark.parametrize("fault", ["error_500_created", "error_500"])
def test_failure_of_finalize_that_stripe_keeps_is_settled_by_a_look(
    gate: Callable[..., Function], stripe: Stripe, fault: str
) -> None:
    loaded = gate()
    stripe.fail_at("finalize", fault)
    response = issue(loaded)
    if fault == "error_500":
        assert refused(response, 503, "upstream-busy")["detail"].startswith("The upstream is busy and created nothing")
        assert stripe.made == []
        response = issue(loaded)
    assert response.status_code == 200, response.text
    assert [(made["status"], made["total"]) for made in stripe.made] == [("open", TOTAL)]


@pytest.mark.parametrize("count", [10, 11, 50])
def test_any_number_of_lines_up_to_fifty(gate: Callable[..., Function], stripe: Stripe, count: int) -> None:
    loaded = gate()
    lines = {f"lines[{number}][amount]": "100" for number in range(count)}
    response = issue(loaded, {"customer": "cus_1", "currency": "usd", **lines})
    assert response.status_code == 200, response.text
    assert [(made["total"], len(made["lines"]["data"])) for made in stripe.made] == [(count * 100, count)]


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"lines[0][amount]": "0"}, "lines[0][amount]"),
        ({"lines[0][amount]": "-5"}, "lines[0][amount]"),
        ({"lines[1][quantity]": "0"}, "lines[1][quantity]"),
        ({"lines[1][quantity]": "1.5"}, "lines[1][quantity]"),
        ({"lines[0][price]": "price_1"}, "lines[0]"),
        ({"lines[0][amount]": "40000"}, "lines"),
        ({"lines[0][amount]": "100000000"}, "lines[0]"),
        ({"currency": "gbp"}, "currency"),
        ({"send": "true"}, "send"),
        ({"metadata[countersign]": "another"}, "metadata[countersign]"),
        ({"lines[3][description]": "Nothing"}, "lines[3]"),
    ],
    ids=str,
)
def test_what_is_wrong_with_lines_is_refused_before_anything_is_sent(
    gate: Callable[..., Function], stripe: Stripe, change: dict[str, str], parameter: str
) -> None:
    response = issue(gate(), {**CALL, **change})
    assert response.status_code == 400, response.text
    assert (response.json or {})["parameter"] == parameter
    assert stripe.calls == ()


def test_fifty_one_lines_are_refused(gate: Callable[..., Function], stripe: Stripe) -> None:
    lines = {f"lines[{number}][amount]": "100" for number in range(51)}
    response = issue(gate(), {"customer": "cus_1", "currency": "usd", **lines})
    assert response.status_code == 400
    assert stripe.calls == ()


def test_line_that_lowers_the_sum_needs_credit(gate: Callable[..., Function], stripe: Stripe) -> None:
    response = issue(gate(credit="true"), {**CALL, "lines[2][amount]": "-3350"})
    assert response.status_code == 200, response.text
    assert [made["total"] for made in stripe.made] == [30000 + 7500 - 3350]


def test_price_is_the_upstreams_to_say(gate: Callable[..., Function], stripe: Stripe) -> None:
    stripe.prices["price_1"] = (1000, "usd")
    call = {"customer": "cus_1", "currency": "usd", "lines[0][price]": "price_1", "lines[0][quantity]": "4"}
    response = issue(gate(), call)
    assert response.status_code == 200, response.text
    assert [made["total"] for made in stripe.made] == [4000]


def test_why_tells_of_a_whole_invoice_and_of_one_that_was_cut_off(
    gate: Callable[..., Function], stripe: Stripe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit_id = issue(gate()).headers["Countersign-Audit-Id"]
    record = tmp_path / "audit.jsonl"
    assert main(["why", audit_id, str(record)]) == 0
    said, _, *lines = capsys.readouterr().out.splitlines()
    assert f"It went through: invoice {stripe.made[0]['id']} of 408.50 USD." in said
    assert [line.split()[1] for line in lines] == ["intent", "step", "step", "step", "outcome"]
    cut = tmp_path / "cut.jsonl"
    cut.write_text(
        "".join(line for line in record.read_text().splitlines(keepends=True) if '"kind":"outcome"' not in line)
    )
    assert main(["why", audit_id, str(cut)]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert "It was under way: the step finalize was succeeded, and no line says what came after." in said
    assert "It went through" not in said
    assert "Next: ./countersign ledger show" in said


def test_stamp_that_is_ours_is_an_error_of_the_document(stripe: Stripe, tmp_path: Path) -> None:
    text = written(stripe, tmp_path)
    stamp = '"stamp": "metadata[countersign]"\n        lines: {max'
    stamped = text.replace('"metadata[{key}]":\n', "\n").replace("lines: {max", stamp)
    with pytest.raises(DocumentError, match=r"stamp: invoices\.issue writes metadata\[countersign\] itself"):
        document.read(stamped, "policy.yaml")


def test_trial_says_how_many_lines_there_are_and_what_they_come_to(gate: Callable[..., Function]) -> None:
    loaded = gate()
    form = "&".join(f"{name}={value}" for name, value in CALL.items())
    told = loaded.post(target=f"{TARGET}&validate_only=true", body=form, Idempotency_Key="order-1").json
    assert told is not None
    assert told["asks_for"] == {"lines": 3, "total": TOTAL, "currency": "usd"}
    form += "&lines[3][price]=price_1&lines[3][quantity]=1"  # which only Stripe knows
    told = loaded.post(target=f"{TARGET}&validate_only=true", body=form, Idempotency_Key="order-1").json
    assert told is not None
    assert told["asks_for"] == {"lines": 4, "total": None, "currency": "usd"}


def test_name_that_the_policy_chose_in_a_line_is_held_to_its_rule(
    gate: Callable[..., Function], stripe: Stripe
) -> None:
    loaded = gate()
    assert issue(loaded, CALL | {"lines[1][metadata][sku]": "W-1"}).status_code == 200
    (made,) = finalized(stripe)
    assert [line["metadata"] for line in made["lines"]["data"]] == [{}, {"sku": "W-1"}, {}]
    refused(issue(loaded, CALL | {"lines[1][metadata][sku]": "W-17"}, "order-2"), 400, "parameter-invalid")
    refused(issue(loaded, CALL | {"lines[1][metadata][x]": "1"}, "order-3"), 400, "parameter-not-granted")


@pytest.mark.parametrize("operation", ["invoices.issue", "invoices.create"])
@pytest.mark.parametrize("name", ["countersign", "countersign_lines"])
def test_nobody_is_granted_the_metadata_that_is_ours(
    stripe: Stripe, tmp_path: Path, function: Callable[..., Function], operation: str, name: str
) -> None:
    text = written(stripe, tmp_path)
    if operation == "invoices.create":
        parts = ("        amount: {max: 50000, currency: [usd, eur]}\n", "        lines: {max: 50, credit: false}\n")
        named = (
            "          send:\n",
            '          "lines[{i}][price]":\n',
            '          "lines[{i}][metadata][sku]": {max_length: 3}\n',
        )
        for part in (*parts, *named, ", sent"):
            text = text.replace(part, "")
        text = text.replace("invoices.issue", operation)
    with pytest.raises(DocumentError, match="is written by Countersign itself"):
        document.read(text.replace("          description:\n", f'          "metadata[{name}]":\n'), "policy.yaml")
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    target = TARGET if operation == "invoices.issue" else TARGET.replace("/issue", "/")
    form = "&".join(
        f"{path}={value}" for path, value in (CALL if operation == "invoices.issue" else {"customer": "cus_1"}).items()
    )
    response = function(text).post(
        target=target, body=f"{form}&metadata[{name}]=0123456789abcdef.0", Idempotency_Key="order-1"
    )
    assert refused(response, 400, "parameter-not-granted")["parameter"] == f"metadata[{name}]"
    assert stripe.calls == ()


# ---------------------------------------------------------------- bad input: refused before, or nothing is left of it


@pytest.mark.parametrize("media", ["form", "json"])
@pytest.mark.parametrize(
    ("currency", "amount", "parameter"),
    [
        ("usd", "49", "lines"),
        ("usd", "50", None),
        ("usd", "99999999", None),
        ("usd", "100000000", "lines[0]"),
        ("inr", "999999999", None),
        ("inr", "1000000000", "lines[0]"),
        ("idr", "999999999999", None),
        ("idr", "1000000000000", "lines[0]"),
        ("jpy", "49", "lines"),
        ("usd", "10.50", "lines[0][amount]"),
        ("usd", "1e3", "lines[0][amount]"),
        ("usd", "-100", "lines[0][amount]"),
        ("usd", "0", "lines[0][amount]"),
    ],
)
def test_sum_must_be_one_that_can_be_invoiced(  # noqa: PLR0917 - fixtures and one case
    gate: Callable[..., Function], stripe: Stripe, media: str, currency: str, amount: str, parameter: str | None
) -> None:
    loaded = gate(most=10**12, currency=currency)
    call = {"customer": "cus_1", "currency": currency}
    if media == "form":
        response = issue(loaded, {**call, "lines[0][amount]": amount})
    else:
        response = issue_json(loaded, {**call, "lines": [{"amount": amount}]})
    if parameter is None:
        assert response.status_code == 200, response.text
        assert [made["total"] for made in finalized(stripe)] == [int(amount)]
    else:
        assert refused(response, 400, "parameter-invalid")["parameter"] == parameter
        assert stripe.calls == ()


def issue_json(loaded: Function, call: dict[str, Any]) -> TestResponse:
    return loaded.post(target=TARGET, body=json.dumps(call), media="application/json", Idempotency_Key="order-1")


def test_sum_may_be_what_is_granted_and_not_one_more(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded = gate()
    most = {"customer": "cus_1", "currency": "usd", "lines[0][amount]": "50000"}
    over = refused(issue(loaded, {**most, "lines[1][amount]": "1"}), 400, "parameter-invalid")
    assert over["parameter"] == "lines"
    assert "come to 500.01 USD. You may raise 500.00 USD at most." in over["detail"]
    assert stripe.calls == ()
    assert issue(loaded, most).status_code == 200


@pytest.mark.parametrize("body", ["currency=usd&currency=eur", "currency=usd&lines[0][currency]=eur"])
def test_two_currencies_are_refused(gate: Callable[..., Function], stripe: Stripe, body: str) -> None:
    response = gate().post(target=TARGET, body=f"customer=cus_1&{body}&lines[0][amount]=100", Idempotency_Key="order-1")
    assert response.status_code == 400, response.text
    assert stripe.calls == ()


@pytest.mark.parametrize("way", ["price", "customer"])
def test_another_currency_at_the_upstream_leaves_nothing(
    gate: Callable[..., Function], stripe: Stripe, way: str
) -> None:
    """A price has one currency, and some customers only take one (docs.stripe.com, multi-currency customers)."""
    loaded = gate()
    call = {"customer": "cus_1", "currency": "usd", "lines[0][price]": "price_1", "lines[0][quantity]": "1"}
    stripe.prices["price_1"] = (1000, "eur" if way == "price" else "usd")
    if way == "customer":
        stripe.fail_at("add_lines", "error_400")
    response = issue(loaded, call)
    assert response.status_code == 400, response.text
    assert "othing was created" in (response.json or {})["detail"]
    assert stripe.made == []
    stripe.prices["price_1"] = (1000, "usd")
    assert issue(loaded, call).status_code == 200


def test_tax_that_lies_in_the_lines_leaves_the_sum_as_it_is(gate: Callable[..., Function], stripe: Stripe) -> None:
    stripe.customers["cus_1"] = Customer(tax=19, inclusive=True)
    assert issue(gate()).status_code == 200
    assert [made["total"] for made in finalized(stripe)] == [TOTAL]


def test_what_the_customer_has_in_credit_may_bring_it_under_the_least_charge(
    gate: Callable[..., Function], stripe: Stripe
) -> None:
    loaded = gate()
    stripe.customers["cus_1"] = Customer(owes=30 - TOTAL)
    response = issue(loaded)
    assert (response.status_code, (response.json or {})["status"]) == (200, "paid")
    assert "its sum is below what can be charged" in loaded.record.entries("outcome")[-1]["warning"]
    assert loaded.record.lines()[-1]["severity"] == "WARNING"


def test_sum_that_credit_lowers_too_far_is_refused(gate: Callable[..., Function], stripe: Stripe) -> None:
    lines = {"lines[0][amount]": "100", "lines[1][amount]": "-60"}
    response = issue(gate(credit="true"), {"customer": "cus_1", "currency": "usd", **lines})
    assert "come to 0.40 USD" in refused(response, 400, "parameter-invalid")["detail"]
    assert stripe.calls == ()


def test_time_that_ends_between_two_steps_is_told_and_the_same_key_goes_on(
    gate: Callable[..., Function], stripe: Stripe
) -> None:
    loaded = gate()
    for reached in (["create"], ["create", "look"]):  # each call comes one step further, until there is time
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gateway.upstreams.sending.LEAST_SECONDS", 1000.0)
            stopped = issue(loaded, SENT)
        assert "begun and is not finished" in refused(stopped, 504, "outcome-unknown")["detail"]
        assert stopped.headers["Retry-After"]
        assert steps(loaded) == reached
        assert finalized(stripe) == []
    assert "ALERT" not in [line["severity"] for line in loaded.record.lines()]
    assert issue(loaded, SENT).status_code == 200
    assert [(made["total"], made["mailed"]) for made in stripe.made] == [(TOTAL, 1)]


@pytest.mark.parametrize("step", ["create", "add_lines", "finalize", "send"])
@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("fault", ["lock_429", "retry_409"])
def test_object_that_is_held_by_another_call_is_tried_again(
    gate: Callable[..., Function], stripe: Stripe, step: str, times: int, fault: str
) -> None:
    loaded = gate()
    if step == "create":
        stripe.fail_next(fault, times=times)
    else:
        stripe.fail_at(step, fault, times=times)
    first = issue(loaded, SENT)
    if first.status_code != 200:
        assert times == 3, first.text  # there are three tries in one call
        assert first.status_code in {503, 504}
        assert first.headers["Retry-After"]
        assert issue(loaded, SENT).status_code == 200
    assert [(made["status"], made["total"], made["mailed"]) for made in stripe.made] == [("open", TOTAL, 1)]


def test_create_that_a_rule_blocks_leaves_nothing(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded = gate()
    stripe.fail_next("action_blocked")
    assert issue(loaded).status_code == 400
    assert stripe.made == []
    assert issue(loaded).status_code == 200
