"""The single operations through the function, at Stripe: a draft is judged before it is finalized, and changed once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from policies.idempotency import LEASE, resolve
from policies.model import State
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import KEPT_SECONDS, Customer, Stripe
from tests.conftest import KEY, sha256
from tests.problems import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from werkzeug.test import TestResponse

    from gateway.stores.memory import Memory
    from tests.conftest import Clock, Function

DOCUMENT = """\
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: stripe, origin: {origin}, secret: "file:{secret}"}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: {key}}}]
    limits: [100000/minute]
    {budget}
    grants:
      - connection: billing
        operation: invoices.create
        parameters: {{customer: , currency: , collection_method: , days_until_due: , auto_advance: }}
        response: [id, status]
      - connection: billing
        operation: invoiceitems.create
        parameters: {{customer: , invoice: , amount: , currency: , description: }}
        response: [id, amount, currency, invoice, description]
      - connection: billing
        operation: invoices.finalize
        parameters: {{invoice: {{prefix: in_}}}}
        amount: {{max: 50000, currency: [usd]}}
        response: [id, status, number, total, auto_advance]
      - connection: billing
        operation: invoices.send
        parameters: {{invoice: {{prefix: in_}}}}
        amount: {{max: 50000, currency: [usd]}}
        response: [id, status, total]
      - connection: billing
        operation: invoices.void
        parameters: {{invoice: {{prefix: in_}}}}
        response: [id, status]
      - connection: billing
        operation: invoices.delete
        parameters: {{invoice: {{prefix: in_}}}}
        response: [id, deleted]
      - connection: billing
        operation: customers.create
        parameters: {{email: , name: }}
        response: [id, email]
      - connection: billing
        operation: customers.list
        parameters: {{email: , limit: }}
        response: [data.id, data.email]
"""


@pytest.fixture
def gate(function: Callable[..., Function], stripe: Stripe, memory: Memory, tmp_path: Path) -> Callable[..., Function]:
    """Load the function in front of Stripe."""
    (tmp_path / "key").write_text(UPSTREAM_KEY)

    def load(budget: str = "", text: str = DOCUMENT) -> Function:
        return function(text.format(origin=stripe.origin, secret=tmp_path / "key", key=sha256(KEY), budget=budget))

    return load


@pytest.fixture
def loaded(gate: Callable[..., Function]) -> Function:
    return gate()


def ask(loaded: Function, path: str, method: str = "POST", key: str | None = None, **form: Any) -> TestResponse:
    """Call one operation, under a key of its own unless one is given."""
    query = f"/stripe/{path}?name=ft-4&connection_name=stripe-1"
    written = "&".join(f"{name}={value}" for name, value in form.items())
    headers = (
        {}
        if method == "GET"
        else {"Idempotency_Key": key or re.sub("[^A-Za-z0-9_]+", "-", f"{method}-{path}-{written}.")}
    )
    if method == "POST":
        return loaded.post(target=query, body=written, **headers)
    return loaded.post(target=f"{query}&{written}" if written else query, body="", method=method, **headers)


def draft(loaded: Function, amount: int = 40850, order: str = "order-1", **more: str) -> str:
    """Make a draft of one item, and return its id."""
    form = {"customer": "cus_1", "currency": "usd", "collection_method": "send_invoice", "days_until_due": "30", **more}
    created = ask(loaded, "invoices/", key=order, **form).json
    assert created is not None
    name: str = created["id"]
    item: dict[str, Any] = {"customer": "cus_1", "invoice": name, "amount": amount, "currency": form["currency"]}
    assert ask(loaded, "invoiceitems/", key=order, **item).status_code == 200
    return name


def made(stripe: Stripe, name: str) -> dict[str, Any]:
    [one] = [one for one in stripe.made if one["id"] == name]
    return one


# ---------------------------------------------------------------- finalize


def test_draft_is_finalized_once_and_collects_nothing_by_itself(loaded: Function, stripe: Stripe) -> None:
    name = draft(loaded, auto_advance="true")
    first = ask(loaded, f"invoices/{name}/finalize", key="order-1")
    assert first.status_code == 200, first.text
    number = made(stripe, name)["number"]
    assert first.json == {"id": name, "status": "open", "number": number, "total": 40850, "auto_advance": False}
    again = ask(loaded, f"invoices/{name}/finalize", key="order-1")
    assert (again.json, again.headers["Idempotent-Replayed"]) == (first.json, "true")


def test_draft_above_the_grant_stays_a_draft(loaded: Function, stripe: Stripe) -> None:
    for operation in ("finalize", "send"):
        name = draft(loaded, amount=50001, order=operation)
        response = ask(loaded, f"invoices/{name}/{operation}")
        told = refused(response, 422, "total-not-granted")
        assert "comes to 500.01 USD" in told["detail"]
        assert "You may raise 500.00 USD at most. Nothing was changed." in told["detail"]
        assert told["decided_by"] == "policy"
        assert made(stripe, name)["status"] == "draft"
        within = draft(loaded, amount=50000, order=f"{operation}-within")
        assert ask(loaded, f"invoices/{within}/{operation}").status_code == 200


@pytest.mark.parametrize("operation", ["finalize", "send"])
@pytest.mark.parametrize(
    ("customer", "currency", "said"),
    [
        (Customer(tax=30), "usd", "comes to 531.05 USD"),
        (Customer(owes=20000), "usd", "asks for 608.50 USD"),
        (Customer(), "eur", "is in EUR. You may raise invoices in USD only"),
    ],
    ids=["tax", "debt", "currency"],
)
def test_what_the_customer_brings_with_it_counts(  # noqa: PLR0917 - the case, and who is in it
    loaded: Function, stripe: Stripe, operation: str, customer: Customer, currency: str, said: str
) -> None:
    stripe.customers["cus_1"] = customer
    name = draft(loaded, currency=currency)
    assert said in refused(ask(loaded, f"invoices/{name}/{operation}"), 422, "total-not-granted")["detail"]
    assert made(stripe, name)["status"] == "draft"


def test_empty_draft_is_not_finalized_and_the_key_is_free(loaded: Function, stripe: Stripe) -> None:
    empty = (ask(loaded, "invoices/", customer="cus_1", currency="usd").json or {})["id"]
    refused(ask(loaded, f"invoices/{empty}/finalize", key="order-1"), 422, "invoice-empty")
    assert made(stripe, empty)["status"] == "draft"
    ask(loaded, "invoiceitems/", customer="cus_1", invoice=empty, amount=500, currency="usd")
    assert ask(loaded, f"invoices/{empty}/finalize", key="order-1").status_code == 200


@pytest.mark.parametrize("operation", ["finalize", "send"])
@pytest.mark.parametrize("amounts", [[-5000], [1000, -1000]], ids=["below nothing", "nothing"])
def test_draft_that_asks_for_nothing_is_not_finalized(
    loaded: Function, stripe: Stripe, operation: str, amounts: list[int]
) -> None:
    """It would be marked paid at once, and what is below 0 be given to the customer."""
    first, *others = amounts
    name = draft(loaded, first)
    for amount in others:
        ask(loaded, "invoiceitems/", customer="cus_1", invoice=name, amount=amount, currency="usd")
    said = refused(ask(loaded, f"invoices/{name}/{operation}", key="order-1"), 422, "invoice-empty")["detail"]
    assert "asks for nothing" in said
    assert made(stripe, name)["status"] == "draft"
    ask(loaded, "invoiceitems/", customer="cus_1", invoice=name, amount=6000, currency="usd")
    assert ask(loaded, f"invoices/{name}/{operation}", key="order-1").status_code == 200


def test_mail_to_nobody_is_refused_before_anything_is_finalized(loaded: Function, stripe: Stripe) -> None:
    stripe.customers["cus_1"] = Customer(email=None)
    name = draft(loaded)
    refused(ask(loaded, f"invoices/{name}/send"), 422, "email-missing")
    assert made(stripe, name)["status"] == "draft"


def test_invoice_of_another_form_or_of_nobody_is_not_found(loaded: Function) -> None:
    refused(ask(loaded, "invoices/in_nobody/finalize"), 404, "upstream-rejected")
    refused(ask(loaded, "invoices/cus_1/finalize"), 400, "parameter-invalid")
    refused(ask(loaded, "invoices/in_1%2Fpay/finalize"), 404, "path-unknown")


def test_key_names_one_invoice(loaded: Function, stripe: Stripe) -> None:
    for operation in ("finalize", "void"):
        one, other = draft(loaded, order=f"{operation}-1"), draft(loaded, order=f"{operation}-2")
        assert ask(loaded, f"invoices/{one}/finalize", key=f"f-{operation}").status_code == 200
        if operation == "void":
            assert ask(loaded, f"invoices/{other}/finalize", key="f-other").status_code == 200
            assert ask(loaded, f"invoices/{one}/void", key="f-void").status_code == 200
        refused(ask(loaded, f"invoices/{other}/{operation}", key=f"f-{operation}"), 422, "idempotency-key-reused")
        assert made(stripe, other)["status"] == ("draft" if operation == "finalize" else "open")


def test_finalized_invoice_is_not_finalized_under_another_key(loaded: Function, stripe: Stripe) -> None:
    name = draft(loaded)
    assert ask(loaded, f"invoices/{name}/finalize", key="order-1").status_code == 200
    assert refused(ask(loaded, f"invoices/{name}/finalize", key="order-2"), 400, "upstream-rejected")
    assert made(stripe, name)["status"] == "open"


@pytest.mark.parametrize("fault", ["close_after", "reset_after", "truncated", "not_json", "error_500_created", "twice"])
@pytest.mark.parametrize("operation", ["finalize", "send"])
def test_lost_answer_ends_in_one_finalized_invoice(
    loaded: Function, stripe: Stripe, operation: str, fault: str
) -> None:
    name = draft(loaded)
    stripe.fail_at(operation, fault)
    first = ask(loaded, f"invoices/{name}/{operation}", key="order-1")
    again = ask(loaded, f"invoices/{name}/{operation}", key="order-1")
    one = made(stripe, name)
    assert (one["status"], one.get("mailed", 0)) == ("open", operation == "send")
    if operation == "send" and fault == "error_500_created":  # Stripe keeps the 500, and nothing tells of a mail
        assert (first.status_code, again.status_code) == (424, 424)
    else:
        assert first.status_code == (504 if (operation, fault) == ("send", "not_json") else 200), first.text
        assert again.status_code == 200, again.text


@pytest.mark.parametrize("operation", ["finalize", "send"])
def test_refusal_is_told_and_the_mended_call_runs_under_the_same_key(
    loaded: Function, stripe: Stripe, operation: str
) -> None:
    stripe.customers["cus_1"] = Customer(located=False)
    name = draft(loaded)
    first = refused(ask(loaded, f"invoices/{name}/{operation}", key="order-1"), 400, "upstream-rejected")
    assert "Nothing was changed" in first["detail"]
    stripe.customers["cus_1"] = Customer()
    assert ask(loaded, f"invoices/{name}/{operation}", key="order-1").status_code == 200
    assert made(stripe, name)["status"] == "open"


@pytest.mark.parametrize("fault", ["error_500", "no_retry_500"])
def test_failure_that_stripe_keeps_without_effect_is_passed_by(loaded: Function, stripe: Stripe, fault: str) -> None:
    for operation in ("finalize", "send"):
        name = draft(loaded, order=operation)
        stripe.fail_at(operation, fault)
        answers = [ask(loaded, f"invoices/{name}/{operation}", key=operation).status_code for _ in range(2)]
        assert answers[-1] == 200
        assert (made(stripe, name)["status"], made(stripe, name).get("mailed", 0)) == ("open", operation == "send")


def test_ledger_that_forgets_is_caught_by_stripe(loaded: Function, stripe: Stripe, memory: Memory) -> None:
    name = draft(loaded)
    assert ask(loaded, f"invoices/{name}/send", key="order-1").status_code == 200
    memory.__init__(memory._clock)  # type: ignore[misc]
    assert ask(loaded, f"invoices/{name}/send", key="order-1").status_code == 200
    assert made(stripe, name)["mailed"] == 1


def test_mail_of_unknown_outcome_is_not_sent_again_once_stripe_has_forgotten(
    loaded: Function, stripe: Stripe, clock: Clock
) -> None:
    name = draft(loaded)
    stripe.fail_at("send", "close_after")
    stripe.fail_next("close_after", 9)  # its repeats
    refused(ask(loaded, f"invoices/{name}/send", key="order-1"), 504, "outcome-unknown")
    clock.now += KEPT_SECONDS
    refused(ask(loaded, f"invoices/{name}/send", key="order-1"), 424, "outcome-unknown")
    assert made(stripe, name)["mailed"] == 1


def test_finalize_of_unknown_outcome_is_settled_by_a_look_however_late(
    loaded: Function, stripe: Stripe, clock: Clock
) -> None:
    name = draft(loaded)
    stripe.fail_at("finalize", "close_before", 9)
    late = ask(loaded, f"invoices/{name}/finalize", key="order-1")
    assert late.status_code == 504, late.text
    assert made(stripe, name)["status"] == "draft"
    stripe.forget_faults()
    clock.now += KEPT_SECONDS
    assert ask(loaded, f"invoices/{name}/finalize", key="order-1").status_code == 200
    assert made(stripe, name)["status"] == "open"


def test_open_invoice_is_mailed_and_what_comes_to_too_much_is_not(loaded: Function, stripe: Stripe) -> None:
    name = draft(loaded)
    assert ask(loaded, f"invoices/{name}/finalize").status_code == 200
    assert ask(loaded, f"invoices/{name}/send", key="mail-1").status_code == 200
    assert ask(loaded, f"invoices/{name}/send", key="mail-1").status_code == 200
    assert made(stripe, name)["mailed"] == 1


# ---------------------------------------------------------------- items, void, delete, customers


def test_item_names_its_invoice(loaded: Function, stripe: Stripe) -> None:
    told = refused(ask(loaded, "invoiceitems/", customer="cus_1", amount=500, currency="usd"), 400, "parameter-missing")
    assert told["parameter"] == "invoice"
    name = draft(loaded, amount=700)
    stripe.fail_at("item", "close_after")
    item: dict[str, Any] = {"customer": "cus_1", "invoice": name, "amount": 500, "currency": "usd"}
    first, again = (ask(loaded, "invoiceitems/", key="order-7", **item) for _ in range(2))
    assert (first.status_code, again.json) == (200, first.json)
    assert [line["amount"] for line in made(stripe, name)["lines"]["data"]] == [700, 500]
    assert made(stripe, name)["total"] == 1200


def test_void_is_for_open_invoices_and_delete_for_drafts(loaded: Function, stripe: Stripe) -> None:
    name = draft(loaded)
    refused(ask(loaded, f"invoices/{name}/void"), 400, "upstream-rejected")
    ask(loaded, f"invoices/{name}/finalize")
    refused(ask(loaded, f"invoices/{name}", "DELETE"), 400, "upstream-rejected")
    assert (ask(loaded, f"invoices/{name}/void", key="v").json or {})["status"] == "void"
    other = draft(loaded, order="order-2")
    assert ask(loaded, f"invoices/{other}", "DELETE").json == {"id": other, "deleted": True}
    assert [one["id"] for one in stripe.made] == [name]


@pytest.mark.parametrize("keyed", [True, False])
def test_delete_whose_answer_is_lost_is_a_success(
    loaded: Function, stripe: Stripe, clock: Clock, *, keyed: bool
) -> None:
    name = draft(loaded)
    stripe.fail_at("delete", "close_after", 1)
    target = f"/stripe/invoices/{name}?name=ft-4&connection_name=stripe-1"
    headers = {"Idempotency_Key": "order-1"} if keyed else {}
    response = loaded.post(target=target, body="", method="DELETE", media=None, **headers)
    assert (response.status_code, response.json) == (200, {"id": name, "deleted": True})
    refused(loaded.post(target=target, body="", method="DELETE", media=None), 404, "upstream-rejected")
    clock.now += 1
    refused(loaded.post(target=target, body="a=1", method="DELETE"), 400, "body-malformed")


def test_customer_is_found_by_address_unless_two_have_it(loaded: Function, stripe: Stripe) -> None:
    assert ask(loaded, "customers/", "GET", email="jenny@example.com").json == {"data": []}
    made = ask(loaded, "customers/", email="jenny@example.com", name="Jenny").json
    assert ask(loaded, "customers/", "GET", email="jenny@example.com").json == {"data": [made]}
    assert ask(loaded, "customers/", "GET", email="Jenny@example.com").json == {"data": []}
    ask(loaded, "customers/", key="another", email="jenny@example.com", name="Jenny")
    for more in ({}, {"limit": "1"}):
        refused(ask(loaded, "customers/", "GET", email="jenny@example.com", **more), 422, "customer-ambiguous")
    refused(ask(loaded, "customers/", "GET"), 400, "parameter-missing")
    refused(ask(loaded, "customers/", email="nobody"), 400, "upstream-rejected")


def test_plus_that_became_a_blank_is_no_address_of_anybody(loaded: Function, stripe: Stripe) -> None:
    """Nobody would be found, and the shop make the customer again."""
    ask(loaded, "customers/", email="ann%2Bshop@example.com", name="Ann")
    said = refused(ask(loaded, "customers/", "GET", email="ann+shop@example.com"), 400, "parameter-invalid")["detail"]
    assert "write %2B" in said
    refused(ask(loaded, "customers/", email="ann+shop@example.com"), 400, "parameter-invalid")
    assert len(stripe.customers) == 1
    assert ask(loaded, "customers/", "GET", email="ann%2Bshop@example.com").json != {"data": []}


def test_what_waits_for_a_person_rouses_nobody_at_night(loaded: Function, stripe: Stripe) -> None:
    stripe.fail_next("approval")
    for _ in range(2):
        refused(ask(loaded, "invoices/", key="order-1", customer="cus_1", currency="usd"), 503, "awaiting-approval")
    told = [line for line in loaded.record.lines() if line["countersign"]["kind"] == "outcome"]
    assert [line["severity"] for line in told] == ["WARNING"] * 2
    assert all(line["message"].startswith("a person has to approve invoices.create on ") for line in told)


def test_record_says_what_was_done_and_to_which_invoice(loaded: Function) -> None:
    name = draft(loaded)
    ask(loaded, f"invoices/{name}/finalize")
    ask(loaded, f"invoices/{name}/void")
    finalized, voided = loaded.record.entries("outcome")[-2:]
    assert (finalized["created"], finalized["amount"], finalized["currency"]) == (name, 40850, "usd")
    assert voided["created"] == name
    text = loaded.record.text()
    assert f"app finalized invoice {name} of 408.50 USD on billing" in text
    assert f"app voided invoice {name} on billing" in text
    assert [entry["step"] for entry in loaded.record.entries("step")] == ["look", "finalize"]


def test_invoice_that_was_voided_meanwhile_is_told_as_that_and_an_operator_can_free_the_key(
    loaded: Function, stripe: Stripe, memory: Memory, clock: Clock
) -> None:
    name = draft(loaded)
    stripe.fail_at("finalize", "close_after")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("policies.finalizing.DRAFTS", 0)  # nothing looks within the call
        patch.setattr("gateway.upstreams.sending.PAUSES", ())
        assert ask(loaded, f"invoices/{name}/finalize", key="order-1").status_code == 504
    assert ask(loaded, f"invoices/{name}/void").status_code == 200
    refused(ask(loaded, f"invoices/{name}/finalize", key="order-1"), 409, "invoice-voided")
    (held,) = [one for one in memory._ledger.values() if one.state is State.REJECTED]
    verdict, freed = resolve(held, None, now=clock.now + LEASE)
    assert (verdict, freed and freed.state) == ("resolved", State.FREE)


# ---------------------------------------------------------------- a budget


def left(loaded: Function) -> int:
    me: dict[str, Any] = loaded.post(target="/-/me", body=b"", media=None, method="GET").json or {}
    [budget] = [one["left"] for one in me["standings"] if one["kind"] == "budget"]
    assert isinstance(budget, int)
    return budget


def test_what_is_finalized_counts_once_whoever_mails_it_later(gate: Callable[..., Function], stripe: Stripe) -> None:
    text = DOCUMENT.replace(", auto_advance: ", "")
    loaded = gate("budget: {currency: usd, amount: 130000, per: day}", text)
    first, second, third = (draft(loaded, order=f"order-{number}") for number in range(3))
    assert ask(loaded, f"invoices/{first}/finalize").status_code == 200
    assert left(loaded) == 130000 - 40850
    assert ask(loaded, f"invoices/{first}/send").status_code == 200
    assert left(loaded) == 130000 - 40850
    assert ask(loaded, f"invoices/{second}/send").status_code == 200  # a draft, which that finalizes
    assert left(loaded) == 130000 - 2 * 40850
    told = refused(ask(loaded, f"invoices/{third}/finalize"), 429, "budget-spent")
    assert told["detail"].startswith("This call may come to 500.00 USD, and 483.00 USD are left of your budget")
    assert made(stripe, third)["status"] == "draft"
    assert left(loaded) == 130000 - 2 * 40850


def test_draft_that_is_refused_gives_back_what_it_might_have_come_to(gate: Callable[..., Function]) -> None:
    loaded = gate("budget: {currency: usd, amount: 60000, per: day}", DOCUMENT.replace(", auto_advance: ", ""))
    name = draft(loaded, amount=50001)
    refused(ask(loaded, f"invoices/{name}/finalize"), 422, "total-not-granted")
    assert left(loaded) == 60000
