"""Budgets as a document writes them, and what a call is held to: no budget that could not do what it says."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from policies import compiled
from policies.access import decide
from policies.model import Budget, DocumentError, Grant, Limit, Reserved
from policies.quota import BUCKETS, Window, budget_of, budgets_of, move, spend
from tests.policies.conftest import call, only_caller, read

DOCUMENT = """\
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: {upstream}, secret: file:key{origin}}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}}]
    limits: [{limits}]
    budget: {budget}
    grants:
      - connection: billing
        operation: {operation}
        response: [id]
        parameters: {{customer: {customer}, {parameters}}}{more}
"""
#: Where these stand: the errors name them.
BUDGET, GRANT = "policy.yaml:8: callers.app.budget", "policy.yaml:10: callers.app.grants[0]"
USD = "{currency: usd, amount: 5000, per: day}"


def written(  # every argument is a part of the document
    budget: str = USD,
    *,
    operation: str = "invoices.issue",
    upstream: str = "stripe",
    customer: str = "",
    parameters: str = "",
    amount: str | None = None,
    lines: str | None = None,
    limits: str = "30/minute",
) -> str:
    more = "".join(f"\n        {key}: {value}" for key, value in (("amount", amount), ("lines", lines)) if value)
    origin = ", origin: https://upstream.example" if upstream == "appgregator" else ""
    return DOCUMENT.format(
        budget=budget, operation=operation, upstream=upstream, customer=customer, parameters=parameters, more=more,
        limits=limits, origin=origin,
    )  # fmt: skip


def error_of(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        read(text)
    return str(caught.value)


SEVERAL = "[{currency: usd, amount: 5000, per: day}, {currency: usd, amount: 1000, per: day, each: customer}]"


@pytest.mark.parametrize("budget", [USD, f"[{USD}]", SEVERAL, "[{currency: eur, amount: 50, per: hour}]"])
def test_budget_is_one_or_several(budget: str) -> None:
    policies = read(written(budget))
    assert len(only_caller(policies).budgets) == budget.count("currency")
    again = compiled.read(compiled.write(policies), "x")
    assert only_caller(again).budgets == only_caller(policies).budgets


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        (
            written(operation="invoices.create"),
            BUDGET,
            "a draft of 0, and a budget counts what is finalized: grant invoices.issue, or invoices.finalize for",
        ),
        (
            written("[{currency: usd, amount: 1, per: day}, {currency: usd, amount: 2, per: day}]"),
            f"{BUDGET}[0]",
            "two budgets count the same",
        ),
        (
            written("[{currency: usd, amount: 100, per: hour}, {currency: usd, amount: 2400, per: day}]"),
            f"{BUDGET}[1]",
            "24.00 USD a day can never be reached, since 1.00 USD an hour is stricter. Remove it",
        ),
        (
            written("[{currency: usd, amount: 90, per: day}, {currency: usd, amount: 90, per: day, each: customer}]"),
            f"{BUDGET}[1]",
            "0.90 USD a day for each customer can never be reached, since 0.90 USD a day is stricter. Remove it",
        ),
        (written(amount="{currency: [eur]}"), BUDGET, "no grant of this caller raises invoices in usd"),
        (written(parameters="currency: {fixed: eur}"), BUDGET, "no grant of this caller raises invoices in usd"),
        (written(parameters="currency: {one_of: [eur]}"), BUDGET, "no grant of this caller raises invoices in usd"),
        *(
            (written(parameters=parameters), GRANT, "such as amount: {max: 50000}")
            for parameters in (
                '"lines[{i}][price]": ',
                '"lines[{i}][tax_rates][{i}]": ',
                '"automatic_tax[enabled]": ',
                '"automatic_tax[enabled]": {fixed: true}',
                "default_tax_rates: ",
            )
        ),
        (written(parameters='"automatic_tax[enabled]": ', amount="{currency: [usd]}"), GRANT, "amount: {max: 50000}"),
        (written(operation="invoices.create", upstream="appgregator"), GRANT, "such as amount: {max: 50000}"),
        (
            written(operation="invoices.create", upstream="appgregator", amount="{max: 5001}"),
            GRANT,
            "every call reserves amount.max, 50.01 USD, and the budget is 50.00 USD a day, so no call could pass",
        ),
        (
            written(
                "{currency: usd, amount: 5000, per: day, each: customer}",
                operation="invoices.create",
                upstream="appgregator",
                amount="{max: 50}",
            ),
            BUDGET,
            "need not name the customer, so this could not count them. Write customer: {required: true} there",
        ),
        (
            written(limits="5/day", amount="{max: 1000}"),
            BUDGET,
            "can never be reached: the limits let 5 invoices through in that time, of 10.00 USD at most",
        ),
        (written("{currency: usd, amount: 5, per: day, each: order}"), f"{BUDGET}.each", "Write one of: customer"),
        (written("{currency: usd, amount: 5, per: day, eech: customer}"), f"{BUDGET}.eech", "Did you mean each?"),
        (written("[]"), BUDGET, "this list is empty"),
        (written("5000"), BUDGET, "write a list here"),
        (
            written(lines="{credit: true}", parameters='"automatic_tax[enabled]": ', amount="{max: 100}"),
            "policy.yaml:15: callers.app.grants[0].lines.credit",
            "the upstream works out no tax over lines that lower the sum. Remove one of the two",
        ),
        (
            written(operation="invoices.create", amount="{max: 100}"),
            "policy.yaml:14: callers.app.grants[0].amount",
            "invoices.create asks nobody for money at stripe",
        ),
    ],
)
def test_budget_that_would_not_do_what_it_says_is_an_error_with_its_line(text: str, where: str, says: str) -> None:
    told = error_of(text)
    assert told.startswith(f"{where}: "), told
    assert says in told


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("auto_advance:", True),
        ("automatically_finalizes_at:", True),
        ("auto_advance: {fixed: true}", True),
        ("auto_advance: {fixed: false}", False),
    ],
)
def test_draft_that_stripe_finalizes_by_itself_is_spent_past_every_budget(path: str, *, wrong: bool) -> None:
    draft = f"""\
      - connection: billing
        operation: invoices.create
        response: [id]
        parameters: {{customer: , {path} }}
"""
    text = written() + draft
    if not wrong:
        assert read(text)
        return
    told = error_of(text)
    assert told.startswith(f"{BUDGET}: invoices.create on billing may set {path.partition(':')[0]}, ")
    assert "invoices.issue, or invoices.finalize" in told


# ---------------------------------------------------------------- what a call reserves


def granted(text: str, **asked: str) -> Grant:
    policies = read(text)
    operation = "invoices.issue" if "invoices.issue" in text else "invoices.create"
    return decide(policies, only_caller(policies), call({"customer": "cus_1", **asked}, key="k", operation=operation))


LINES = {"currency": "usd", "lines[0][amount]": "300", "lines[1][unit_amount]": "25", "lines[1][quantity]": "4"}
ROOM = "{max: 4000, currency: [usd, eur]}"


def test_call_reserves_the_sum_of_its_lines() -> None:
    grant = granted(written(amount=ROOM), **LINES)
    assert (grant.reserve, grant.currency, len(grant.budgets)) == (400, "usd", 1)


@pytest.mark.parametrize(
    "asked",
    [
        {"lines[2][price]": "price_1", "lines[2][quantity]": "1"},
        {"lines[0][tax_rates][0]": "txr_1"},
        {"automatic_tax[enabled]": "true"},
        {"default_tax_rates[0]": "txr_1"},
    ],
)
def test_call_that_may_come_to_more_than_its_lines_reserves_what_the_grant_allows(asked: dict[str, str]) -> None:
    parameters = (
        '"lines[{i}][price]": , "lines[{i}][tax_rates][{i}]": , "automatic_tax[enabled]": , default_tax_rates: '
    )
    text = written(amount=ROOM, parameters=parameters)
    assert granted(text, **LINES).reserve == 400
    assert granted(text, **LINES, **asked).reserve == 4000


def test_call_counts_against_the_budgets_of_its_currency() -> None:
    budgets = "[{currency: usd, amount: 5000, per: day}, {currency: eur, amount: 6000, per: day}]"
    grant = granted(written(budgets, amount=ROOM), **{**LINES, "currency": "eur"})
    assert [one.currency for one in grant.budgets] == ["eur"]
    unnamed = granted(
        written(budgets, operation="invoices.create", upstream="appgregator", amount="{max: 4000}"),
    )
    assert (unnamed.reserve, unnamed.currency, len(unnamed.budgets)) == (4000, "", 2)


def test_caller_without_a_budget_reserves_nothing() -> None:
    text = written(amount=ROOM).replace(f"    budget: {USD}\n", "")
    grant = granted(text, **LINES)
    assert (grant.reserve, grant.budgets) == (0, ())


def test_window_is_named_by_what_it_counts_and_not_by_how_much() -> None:
    caller = only_caller(read(written()))
    one, more = (Budget("usd", Limit(amount, 86_400, "")) for amount in (1, 2))
    assert budget_of(caller, one)[0] == budget_of(caller, more)[0] == "budget:app:usd:86400"
    each = replace(one, each="customer")
    names = {budget_of(caller, each, whose)[0] for whose in ("cus_1", "cus_2", "a/b:c")}
    assert len(names) == 3
    assert all(name.startswith("budget:app:usd:customer:") and "/" not in name for name in names)


# ---------------------------------------------------------------- the arithmetic


def test_money_is_given_back_only_where_it_was_booked() -> None:
    width = 86_400 / BUCKETS
    window = Window(Limit(100, 86_400, ""))
    window.take(0.5, 10)
    window.take(width + 1, 30)
    window.remaining(width + 2)
    assert [window.give_back(0.5, 25), window.give_back(2 * width, 5), window.give_back(width + 1, 20)] == [10, 0, 20]
    assert window.remaining(width + 2) == 90


def test_all_that_is_held_is_enough_and_less_is_judged() -> None:
    grant = granted(written(amount=ROOM), **LINES)
    budgets = budgets_of(grant)
    (name,) = budgets
    window = Window(budgets[name].limit)
    window.take(5.0, 5000)
    window.take(6.0, 400)
    held = Reserved(400, 6.0, ((name, 86_400),))
    moved, full = move(budgets, {name: window}, held, 400, 7.0)
    assert (moved, full) == (Reserved(400, 7.0, ((name, 86_400),)), [])
    _, full = move(budgets, {name: window}, moved, 401, 8.0)
    ((_, short),) = full
    assert (short.left, short.asked) == (0, 401)  # type: ignore[union-attr]  # a budget's


def test_what_is_told_late_is_over_only_if_it_was_not_held() -> None:
    budgets = budgets_of(granted(written(amount=ROOM), **LINES))
    (name,) = budgets
    window = Window(budgets[name].limit)
    window.take(1.0, 4900)
    window.take(2.0, 400)  # over already, by what came before
    assert not spend(budgets, {name: window}, Reserved(400, 2.0, ((name, 86_400),)), 400, 3.0)
    assert spend(budgets, {name: window}, None, 1, 4.0)
