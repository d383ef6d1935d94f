"""Budgets through the function: money is booked before a call is sent, and what is not spent is given back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from policies.idempotency import LEASE
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import Customer, Stripe
from tests.conftest import KEY, policy, sha256
from tests.problems import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from werkzeug.test import TestResponse

    from gateway.stores.memory import Memory
    from sandbox.appgregator import Appgregator
    from tests.conftest import Clock, Function

TARGET = "/stripe/invoices/issue?name=ft-4&connection_name=stripe-1"
DOCUMENT = """\
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: stripe, origin: {origin}, secret: "file:{secret}"}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: {key}}}]
    limits: [100000/minute]
    budget: {budget}
    grants:
      - connection: billing
        operation: invoices.issue
        response: [id, status, total]
        amount: {amount}
        parameters: {{customer: , description: , {more}}}
"""
DAY = 86_400
#: Of the longest that money counts: its bucket ends a 128th later.
WINDOW = DAY * 129 / 128 + LEASE


@pytest.fixture
def gate(function: Callable[..., Function], stripe: Stripe, memory: Memory, tmp_path: Path) -> Callable[..., Function]:
    """Load the function in front of Stripe."""
    (tmp_path / "key").write_text(UPSTREAM_KEY)

    def load(
        budget: str = "{currency: usd, amount: 10000, per: day}",
        *,
        amount: str = "{currency: [usd, eur]}",
        more: str = "",
    ) -> Function:
        written = {"budget": budget, "amount": amount, "more": more}
        return function(
            DOCUMENT.format(origin=stripe.origin, secret=tmp_path / "key", key=sha256(KEY), **written),
            POLICY_SECONDS="0.001",
        )

    return load


def issue(loaded: Function, amount: int, order: str, customer: str = "cus_1", currency: str = "usd") -> TestResponse:
    body = f"customer={customer}&currency={currency}&lines[0][amount]={amount}"
    return loaded.post(target=TARGET, body=body, Idempotency_Key=order)


def finalized(stripe: Stripe) -> int:
    """What all invoices that were put in front of a customer come to."""
    return sum(made["total"] for made in stripe.made if made["status"] != "draft")


def left(loaded: Function, customer: str | None = None) -> list[int | None]:
    """What is left of each budget, as its caller is told: of this customer, as a call that is only tried is told."""
    if customer is None:
        me: dict[str, Any] = loaded.post(target="/-/me", body=b"", media=None, method="GET").json or {}
        return [one["left"] for one in me["standings"] if one["kind"] == "budget"]
    body = f"customer={customer}&currency=usd&lines[0][amount]=50"
    told: dict[str, Any] = loaded.post(target=f"{TARGET}&validate_only=true", body=body, Idempotency_Key="x").json or {}
    return [one["left"] for one in told["left"] if one["kind"] == "budget"]


# ---------------------------------------------------------------- reserved, spent, given back


def test_invoices_come_to_the_budget_and_not_a_minor_unit_more(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded = gate()
    assert issue(loaded, 6000, "a").status_code == 200
    assert left(loaded) == [4000]
    problem = refused(issue(loaded, 4001, "b"), 429, "budget-spent")
    assert problem["detail"].startswith(
        "This call may come to 40.01 USD, and 40.00 USD are left of your budget of 100.00 USD a day. Nothing was sent."
    )
    numbers = {name: problem[name] for name in ("limit", "currency", "window", "left", "asked")}
    assert numbers == {"limit": 10000, "currency": "usd", "window": DAY, "left": 4000, "asked": 4001}
    assert issue(loaded, 4000, "b").status_code == 200
    assert left(loaded) == [0]
    used_up = refused(issue(loaded, 50, "c"), 429, "budget-spent")
    assert used_up["detail"].startswith("Your invoices have used up your budget of 100.00 USD a day. Nothing was sent.")
    assert finalized(stripe) == 10000


def test_call_that_no_wait_would_help_is_not_told_to_wait(gate: Callable[..., Function], stripe: Stripe) -> None:
    response = issue(gate(), 10001, "a")
    problem = refused(response, 429, "budget-spent")
    assert problem["detail"] == (
        "This call may come to 100.01 USD, and your whole budget is 100.00 USD a day. Nothing was sent. Ask for less, "
        "or ask the operator of Countersign for a larger budget."
    )
    assert "Retry-After" not in response.headers
    assert "resets_at" not in problem
    assert stripe.invoices == 0


def test_time_that_is_told_is_when_the_same_call_passes(
    gate: Callable[..., Function], clock: Clock, stripe: Stripe
) -> None:
    loaded = gate()
    for order, amount in (("a", 6000), ("b", 4000)):
        assert issue(loaded, amount, order).status_code == 200
        clock.tick(1000)
    wait = refused(issue(loaded, 7000, "c"), 429, "budget-spent")["retry_after"]
    clock.tick(wait - DAY / 128)
    refused(issue(loaded, 7000, "c"), 429, "budget-spent")
    clock.tick(DAY / 128)
    assert issue(loaded, 7000, "c").status_code == 200
    assert finalized(stripe) == 17000


def test_c2_ten_invoices_of_fifty_at_once(function: Callable[..., Function], upstream: Appgregator) -> None:
    """The sandbox's invoices at Appgregator come to 2,000 each."""
    gate = function(at_appgregator(upstream.origin, "{currency: usd, amount: 20000, per: day}"))
    with ThreadPoolExecutor(50) as pool:
        answers = [*pool.map(lambda number: gate.post(Idempotency_Key=f"order-{number}").status_code, range(50))]
    assert (answers.count(200), answers.count(429)) == (10, 40)
    assert upstream.invoices == 10


def at_appgregator(origin: str, budget: str, most: int = 2000) -> str:
    document = policy(origin).replace("    owner: tests\n", f"    owner: tests\n    budget: {budget}\n", 1)
    return document.replace(
        "        idempotency: optional\n", f"        idempotency: optional\n        amount: {{max: {most}}}\n", 1
    )


def test_c3_budget_that_was_lowered_below_what_was_spent_refuses(gate: Callable[..., Function]) -> None:
    assert issue(gate("{currency: usd, amount: 30000, per: day}"), 20000, "a").status_code == 200
    loaded = gate("{currency: usd, amount: 10000, per: day}")
    refused(issue(loaded, 50, "b"), 429, "budget-spent")
    assert left(loaded) == [0]
    assert issue(gate("{currency: usd, amount: 20050, per: day}"), 50, "b").status_code == 200


def test_c5_unknown_ones_keep_what_was_reserved(
    function: Callable[..., Function], upstream: Appgregator, clock: Clock, memory: Memory
) -> None:
    """The upstream creates each, and its answer is lost."""
    gate = function(at_appgregator(upstream.origin, "{currency: usd, amount: 20000, per: day}"))
    upstream.fail_next("close_after", times=150)
    answers = [gate.post(Idempotency_Key=f"order-{number}").status_code for number in range(150)]
    assert (answers.count(424), answers.count(429)) == (10, 140)
    assert upstream.invoices == 10


def test_refused_invoice_gives_its_money_back(gate: Callable[..., Function], stripe: Stripe) -> None:
    loaded = gate()
    for number, (step, fault) in enumerate(
        [("create", "error_400"), ("add_lines", "error_400"), ("finalize", "error_402")]
    ):
        if step == "create":
            stripe.fail_next(fault)
        else:
            stripe.fail_at(step, fault)
        assert issue(loaded, 10000, f"order-{number}").status_code in {400, 402}
        assert left(loaded) == [10000]
    assert issue(loaded, 10000, "order-9").status_code == 200


def test_whoever_comes_back_reserves_nothing_again(gate: Callable[..., Function], stripe: Stripe, clock: Clock) -> None:
    """Ledger rule 20: the reservation belongs to the key."""
    loaded = gate()
    for _ in range(5):
        stripe.fail_at("finalize", "error_429")
        assert issue(loaded, 6000, "a").status_code == 504
        assert left(loaded) == [4000]
        clock.tick(LEASE)
    assert issue(loaded, 6000, "a").status_code == 200
    assert left(loaded) == [4000]
    assert finalized(stripe) == 6000


def test_money_that_comes_back_the_next_day_counts_then(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock
) -> None:
    """Ledger rule 21: reserved on Monday, finalized on Tuesday, it counts on Tuesday."""
    loaded = gate()
    stripe.fail_at("finalize", "error_429")
    assert issue(loaded, 6000, "monday").status_code == 504
    assert left(loaded) == [4000]
    clock.tick(WINDOW)
    assert left(loaded) == [10000]
    assert issue(loaded, 5000, "tuesday").status_code == 200
    problem = refused(issue(loaded, 6000, "monday"), 429, "budget-spent")  # what it had reserved has left the day
    assert (problem["left"], problem["asked"]) == (5000, 6000)
    assert finalized(stripe) == 5000
    clock.tick(WINDOW)
    assert issue(loaded, 6000, "monday").status_code == 200
    assert left(loaded) == [4000]
    assert finalized(stripe) == 11000


@pytest.mark.parametrize(("budget", "status"), [(11900, 200), (11899, 429)])
def test_tax_raises_what_is_reserved_or_the_draft_goes(
    gate: Callable[..., Function], stripe: Stripe, budget: int, status: int
) -> None:
    """Ledger rule 22: the total with tax is booked before the invoice is finalized."""
    stripe.customers["cus_1"] = Customer(tax=19)
    loaded = gate(f"{{currency: usd, amount: {budget}, per: day}}")
    response = issue(loaded, 10000, "a")
    assert response.status_code == status
    if status == 200:
        assert left(loaded) == [0]
        return
    problem = refused(response, 429, "budget-spent")
    assert problem["detail"] == (
        "The invoice would come to 119.00 USD, and your whole budget is 118.99 USD a day. It was not raised. "
        "Ask for less, or ask the operator of Countersign for a larger budget."
    )
    assert stripe.made == []
    assert left(loaded) == [budget]
    (outcome,) = loaded.record.entries("outcome")
    assert outcome["budget"] == {"amount": budget, "currency": "usd", "window": DAY, "left": budget, "asked": 11900}
    stripe.customers["cus_1"] = Customer()
    assert issue(loaded, 10000, "a").status_code == 200  # the key is free


def test_tax_that_a_later_call_can_have_is_told_with_its_time(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock
) -> None:
    loaded = gate("{currency: usd, amount: 20000, per: day}")
    assert issue(loaded, 9000, "a").status_code == 200
    stripe.customers["cus_1"] = Customer(tax=19)
    problem = refused(issue(loaded, 10000, "b"), 429, "budget-spent")
    assert problem["detail"].startswith(
        "The invoice would come to 119.00 USD, and 110.00 USD are left of your budget of 200.00 USD a day. It was not "
        "raised. You can call again at "
    )
    assert finalized(stripe) == 9000
    clock.tick(problem["retry_after"])
    assert issue(loaded, 10000, "b").status_code == 200


def test_discount_gives_back_what_was_not_spent(gate: Callable[..., Function], stripe: Stripe) -> None:
    stripe.customers["cus_1"] = Customer(tax=0)
    loaded = gate(amount="{max: 9000, currency: [usd]}", more='"lines[{i}][tax_rates]":')
    assert issue(loaded, 5000, "a").status_code == 200
    assert left(loaded) == [5000]


# ---------------------------------------------------------------- several budgets, and one for each customer


def test_every_budget_holds_and_each_customer_has_its_own(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock
) -> None:
    loaded = gate(
        "[{currency: usd, amount: 10000, per: day}, {currency: usd, amount: 5000, per: hour}, "
        "{currency: usd, amount: 4000, per: day, each: customer}, {currency: eur, amount: 100, per: day}]"
    )
    assert issue(loaded, 3000, "a").status_code == 200
    told = refused(issue(loaded, 1001, "b"), 429, "budget-spent")
    assert told["detail"].startswith(
        "This call may come to 10.01 USD, and 10.00 USD are left of your budget of 40.00 USD a day for each customer."
    )
    assert told["each"] == "customer"
    assert issue(loaded, 2000, "c", customer="cus_2").status_code == 200
    refused(issue(loaded, 50, "d", customer="cus_3"), 429, "budget-spent")  # this hour's
    clock.tick(3600 * 129 / 128 + LEASE)
    assert issue(loaded, 4000, "e", customer="cus_3").status_code == 200
    assert refused(issue(loaded, 1001, "f", customer="cus_4"), 429, "budget-spent")["limit"] == 10000
    assert issue(loaded, 100, "g", currency="eur").status_code == 200
    refused(issue(loaded, 50, "h", currency="eur"), 429, "budget-spent")
    assert [left(loaded, customer) for customer in ("cus_1", "cus_9")] == [[1000, 1000, 1000, 0], [1000, 1000, 4000, 0]]


def test_what_is_left_is_told_as_money_to_the_caller(gate: Callable[..., Function]) -> None:
    loaded = gate("[{currency: usd, amount: 10000, per: day}, {currency: usd, amount: 4000, per: day, each: customer}]")
    assert issue(loaded, 3000, "a").status_code == 200
    me: dict[str, Any] = loaded.post(target="/-/me", body=b"", media=None, method="GET").json or {}
    every, each = (one for one in me["standings"] if one["kind"] == "budget")
    assert (every["text"], every["of"], every["left"], every["unit"]) == ("100.00 USD a day", 10000, 7000, "usd")
    assert (each["text"], each["of"], each["left"]) == ("40.00 USD a day for each customer", 4000, None)
    assert (each["each"], each["more"]) == ("customer", None)
    body = "customer=cus_1&currency=usd&lines[0][amount]=50"
    tried: dict[str, Any] = (
        loaded.post(target=f"{TARGET}&validate_only=true", body=body, Idempotency_Key="x").json or {}
    )
    said = [one["detail"].partition(", ")[0] for one in tried["left"] if one["kind"] == "budget"]
    assert said == ["70.00 USD of 100.00 USD a day are left", "10.00 USD of 40.00 USD a day for each customer are left"]


def test_call_that_is_only_tried_says_what_a_budget_would_say(gate: Callable[..., Function]) -> None:
    loaded = gate()
    assert issue(loaded, 6000, "a").status_code == 200
    body = "customer=cus_1&currency=usd&lines[0][amount]=4001"
    tried = loaded.post(target=f"{TARGET}&validate_only=true", body=body, Idempotency_Key="b")
    problem = refused(tried, 429, "budget-spent")
    real = refused(issue(loaded, 4001, "b"), 429, "budget-spent")
    assert problem["would"] == "wait"
    assert {name: problem[name] for name in ("left", "asked", "limit")} == {
        name: real[name] for name in ("left", "asked", "limit")
    }


# ---------------------------------------------------------------- what comes late


def test_draft_that_a_person_approves_when_the_money_is_gone_goes(
    gate: Callable[..., Function], stripe: Stripe, clock: Clock
) -> None:
    """What it had reserved has left the day, and others have used the budget up: it is judged anew."""
    loaded = gate()
    stripe.fail_next("approval")
    refused(issue(loaded, 6000, "a"), 503, "awaiting-approval")
    assert left(loaded) == [4000]
    clock.tick(WINDOW)
    assert issue(loaded, 8000, "b").status_code == 200
    ((approval, _),) = stripe.approvals.items()
    stripe.decide(approval, "approve")
    problem = refused(issue(loaded, 6000, "a"), 429, "budget-spent")
    assert "60.00 USD, and 20.00 USD are left" in problem["detail"]
    assert left(loaded) == [2000]
    assert finalized(stripe) == 8000
    clock.tick(WINDOW)
    assert issue(loaded, 6000, "a").status_code == 200


def test_appgregator_invoice_above_what_the_grant_says_is_counted_in_full_with_an_alarm(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function(at_appgregator(upstream.origin, "{currency: usd, amount: 2500, per: day}", most=1000))
    for order in "ab":
        gate.post(Idempotency_Key=order)
    first, *rest = gate.record.entries("outcome")
    assert "more than amount.max allows" in first["alarm"]
    assert rest == []  # 500 are left, and 1,000 would be reserved
    refused(gate.post(Idempotency_Key="c"), 429, "budget-spent")
