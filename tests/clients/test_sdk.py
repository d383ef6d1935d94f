"""Stripe's SDK for Python calls through us, with nothing changed but its base address and its key.

In depth; what every SDK does alike, whatever its language, is in ``test_sdks``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

import pytest
import stripe

from sandbox.__main__ import SECRET, UPSTREAM_KEY
from tests.clients.conftest import Lossy, stripe_policy
from tests.conftest import KEY, OTHER_KEY, policy, sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from sandbox.stripe import Stripe
    from tests.conftest import Server

E = TypeVar("E", bound=stripe.StripeError)
CUSTOMER = "cus_MQqeLuPp19Qbk8"


def base(port: int, account: str = "stripe-1") -> str:
    return f"http://127.0.0.1:{port}/ft-4/{account}"


@pytest.fixture
def through(server: Callable[..., Server], stripe_upstream: Stripe, sdk: Callable[..., None]) -> Callable[..., Server]:
    """Start the function in front of Stripe's sandbox, and point the SDK at it."""

    def start(**changes: str) -> Server:
        running = server(stripe_policy(stripe_upstream.origin, **changes))
        sdk(base(running.port))
        return running

    return start


def raised(running: Server, kind: type[E], act: Callable[..., object] = stripe.Invoice.create, **asked: Any) -> E:
    """Assert that a call raises exactly this, that people can read it, and that it names the call; return it."""
    with pytest.raises(kind) as caught:
        act(**asked)
    error = caught.value
    assert type(error) is kind
    assert error.request_id is not None
    assert error.request_id in running.record.text()
    assert error.user_message is not None
    assert re.fullmatch(rf".+\. \(audit id {error.request_id}\)", error.user_message)
    assert str(error) == f"Request {error.request_id}: {error.user_message}"
    return error


def subscribed(customer: str) -> stripe.Subscription:
    """Do what localstripe wants before it makes an invoice."""
    product = stripe.Product.create(name="Support", type="service")
    plan = stripe.Plan.create(product=product.id, amount=2000, currency="usd", interval="month")
    card = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2030, "cvc": "123"}
    method = stripe.PaymentMethod.create(type="card", card=card)  # type: ignore[arg-type]  # older than the SDK's types
    stripe.PaymentMethod.attach(method.id, customer=customer)
    settings: Any = {"default_payment_method": method.id}
    stripe.Customer.modify(customer, invoice_settings=settings)
    return stripe.Subscription.create(customer=customer, items=[{"plan": plan.id}])


# ---------------------------------------------------------------- what it asks for


def test_sdk_raises_and_retrieves_an_invoice_at_somebody_elses_stripe(
    server: Callable[..., Server], sdk: Callable[..., None], localstripe: tuple[str, str, str]
) -> None:
    origin, key, secret = localstripe
    sdk(origin, key)
    customer = stripe.Customer.create(description="Acme")
    subscription = subscribed(customer.id)

    running = server(stripe_policy(origin, secret=secret))
    sdk(base(running.port))
    asked: Any = {"customer": customer.id, "subscription": subscription.id, "description": "Support"}
    invoice = stripe.Invoice.create(**asked)
    assert type(invoice) is stripe.Invoice
    assert (invoice.customer, invoice["subscription"], invoice.status) == (customer.id, subscription.id, "draft")
    again = stripe.Invoice.retrieve(invoice.id)
    assert again == invoice
    assert [e["kind"] for e in running.record.entries()] == ["intent", "outcome"] * 2
    assert key not in running.record.text()

    sdk(origin, key)
    there = stripe.Invoice.retrieve(invoice.id)
    assert (there.customer, there.description) == (customer.id, "Support")


def test_whatever_the_sdk_nests_arrives_as_it_would_at_stripe(
    through: Callable[..., Server], stripe_upstream: Stripe, sdk: Callable[..., None]
) -> None:
    asked: Any = {
        "customer": CUSTOMER,
        "collection_method": "send_invoice",
        "days_until_due": 30,
        "description": "Grüße & 世界",
        "metadata": {"order_id": "1001", "Kostenstelle": "EMEA & Süd"},
        "custom_fields": [{"name": "PO", "value": "7"}, {"name": "Team", "value": "emea"}],
        "rendering": {"pdf": {"page_size": "a4"}},
    }
    through()
    invoice = stripe.Invoice.create(**asked)
    assert type(invoice) is stripe.Invoice
    assert type(invoice.lines) is stripe.ListObject
    assert (invoice.lines.data, invoice.amount_due) == ([], 0)  # lines come by calls of their own
    assert invoice.description == asked["description"]
    sdk(stripe_upstream.origin, UPSTREAM_KEY)
    stripe.Invoice.create(**asked)
    ours, its_own = stripe_upstream.calls
    assert sorted(parse_qsl(ours.body.decode())) == sorted(parse_qsl(its_own.body.decode()))
    sent = {name.lower(): value for name, value in ours.headers}
    assert sent["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert not [name for name in sent if "telemetry" in name or "x-stripe" in name]


def test_client_object_of_the_sdk_does_as_well(
    through: Callable[..., Server], stripe_upstream: Stripe, sdk: Callable[..., None]
) -> None:
    running = through()
    client = stripe.StripeClient(
        KEY, base_addresses={"api": base(running.port)}, http_client=stripe.default_http_client
    )
    invoice = client.v1.invoices.create({"customer": CUSTOMER})
    assert client.v1.invoices.retrieve(invoice.id).id == invoice.id
    assert stripe_upstream.invoices == 1


def test_account_of_another_is_an_invalid_request(through: Callable[..., Server], stripe_upstream: Stripe) -> None:
    running = through()
    for chosen in ("stripe_account", "stripe_context"):
        asked: dict[str, Any] = {"customer": CUSTOMER, chosen: "acct_other"}
        error = raised(running, stripe.InvalidRequestError, **asked)
        assert error.code == "account_not_granted"
    assert not stripe_upstream.calls


def test_answer_of_a_policy_without_object_is_an_invoice_all_the_same(
    through: Callable[..., Server], stripe_upstream: Stripe
) -> None:
    running = through(response="id, status")
    invoice = stripe.Invoice.create(customer=CUSTOMER, idempotency_key="order-1")
    replayed = stripe.Invoice.create(customer=CUSTOMER, idempotency_key="order-1")
    for answer in (invoice, replayed, stripe.Invoice.retrieve(invoice.id)):
        assert type(answer) is stripe.Invoice
        assert answer.to_dict() == {"object": "invoice", "id": invoice.id, "status": "draft"}
    assert invoice.refresh() == invoice
    assert stripe_upstream.invoices == 1
    # Who does not come as Stripe's clients do gets what the policy lists and nothing else.
    _, _, body = running.call(f"/stripe/invoices/{invoice.id}?name=ft-4&connection_name=stripe-1", None, method="GET")
    assert list(json.loads(body)) == ["id", "status"]


def test_sdk_reaches_an_upstream_that_is_not_stripe(
    server: Callable[..., Server], sdk: Callable[..., None], upstream: Appgregator
) -> None:
    sdk(base(server().port))
    assert stripe.Invoice.create(customer=CUSTOMER).status == "draft"
    assert (upstream.calls[0].path, upstream.invoices) == ("/stripe/invoices/", 1)


#: The usual chain, each operation granted by its name.
CHAIN = """\
connections:
  at-stripe:
    {{name: ft-4, connection_name: stripe-1, upstream: stripe, origin: {origin}, secret: {secret}/versions/latest}}
callers:
  shop:
    owner: tests
    credentials: [key: {{id: k1, sha256: {key}, connection: at-stripe}}]
    limits: [100000/minute]
    grants:
      - connection: at-stripe
        operation: customers.create
        parameters: {{email: , name: , description: }}
        response: [id, email]
      - connection: at-stripe
        operation: customers.list
        parameters: {{email: , limit: }}
        response: [data.id, data.email]
      - connection: at-stripe
        operation: invoices.create
        parameters: {{customer: , currency: , collection_method: , days_until_due: , subscription: }}
        response: [id, status, total]
      - connection: at-stripe
        operation: invoiceitems.create
        parameters: {{customer: , invoice: , amount: , currency: , description: , unit_amount_decimal: , quantity: }}
        response: [id, amount, invoice]
      - connection: at-stripe
        operation: invoices.finalize
        parameters: {{invoice: }}
        amount: {{max: 50000, currency: [usd]}}
        response: [id, status, number, total, hosted_invoice_url]
      - connection: at-stripe
        operation: invoices.send
        parameters: {{invoice: }}
        amount: {{max: 50000, currency: [usd]}}
        response: [id, status]
      - {{connection: at-stripe, operation: invoices.void, parameters: {{invoice: }}, response: [id, status]}}
      - {{connection: at-stripe, operation: invoices.delete, parameters: {{invoice: }}, response: [id, deleted]}}
      - {{connection: at-stripe, operation: invoices.retrieve, parameters: {{invoice: }}, response: [id, status]}}
"""


def customer_of(email: str) -> str:
    """Name a customer by the address, as a shop does: who is not on file yet is put there."""
    found = stripe.Customer.list(email=email, limit=1)
    assert type(found) is stripe.ListObject
    return (found.data[0] if found.data else stripe.Customer.create(email=email, name="Jenny")).id


def drafted(customer: str, *amounts: int) -> str:
    invoice = stripe.Invoice.create(
        customer=customer, currency="usd", collection_method="send_invoice", days_until_due=30
    )
    for amount in amounts:
        item = stripe.InvoiceItem.create(customer=customer, invoice=invoice.id, amount=amount, currency="usd")
        assert type(item) is stripe.InvoiceItem
        assert (item.amount, item.invoice) == (amount, invoice.id)
    return invoice.id


@pytest.mark.parametrize("way", ["", "/ft-4/stripe-1"], ids=["host alone", "with a path"])
def test_sdk_walks_its_usual_chain(
    server: Callable[..., Server], sdk: Callable[..., None], stripe_upstream: Stripe, way: str
) -> None:
    running = server(CHAIN.format(origin=stripe_upstream.origin, secret=SECRET, key=sha256(KEY)))
    sdk(f"http://127.0.0.1:{running.port}{way}")
    customer = customer_of("jenny@example.com")
    assert customer_of("jenny@example.com") == customer
    name = drafted(customer, 30000, 7500)
    done = stripe.Invoice.finalize_invoice(name)
    assert type(done) is stripe.Invoice
    assert (done.id, done.status, done.total) == (name, "open", 37500)
    assert (done.number, done.hosted_invoice_url) != (None, None)
    assert stripe.Invoice.send_invoice(name).status == "open"
    assert stripe.Invoice.void_invoice(name).status == "void"
    assert stripe.Invoice.retrieve(name).status == "void"
    other = drafted(customer, 100)
    assert stripe.Invoice.retrieve(other).delete().deleted is True
    [made] = stripe_upstream.made
    assert (made["id"], made["status"], made["mailed"]) == (name, "void", 1)
    outcomes = [entry["operation"] for entry in running.record.entries("outcome")]
    assert outcomes.count("invoiceitems.create") == 3
    assert {entry["result"] for entry in running.record.entries("outcome")} == {"succeeded"}


def test_sdk_is_told_why_it_may_not_finalize(
    server: Callable[..., Server], sdk: Callable[..., None], stripe_upstream: Stripe
) -> None:
    running = server(CHAIN.format(origin=stripe_upstream.origin, secret=SECRET, key=sha256(KEY)))
    sdk(base(running.port))
    name = drafted("cus_1", 50001)
    for act in (lambda: stripe.Invoice.finalize_invoice(name), lambda: stripe.Invoice.send_invoice(name)):
        error = raised(running, stripe.InvalidRequestError, act)
        assert error.code == "total_not_granted"
    for number in range(2):
        stripe.Customer.create(email="two@example.com", name=f"Number {number}")
    ambiguous = raised(running, stripe.InvalidRequestError, stripe.Customer.list, email="two@example.com", limit=1)
    assert ambiguous.code == "customer_ambiguous"
    loose: Any = {"customer": "cus_1", "amount": 500, "currency": "usd"}
    assert raised(running, stripe.InvalidRequestError, stripe.InvoiceItem.create, **loose).param == "invoice"
    assert [made["status"] for made in stripe_upstream.made] == ["draft"]


def test_sdk_walks_the_chain_at_somebody_elses_stripe_as_far_as_that_goes(
    server: Callable[..., Server], sdk: Callable[..., None], localstripe: tuple[str, str, str]
) -> None:
    """It knows neither finalize nor send, and invoices subscriptions alone."""
    origin, key, secret = localstripe
    running = server(CHAIN.format(origin=origin, secret=secret, key=sha256(KEY)))
    sdk(base(running.port))
    customer = customer_of("jenny@example.com")
    assert customer_of("jenny@example.com") == customer
    sdk(origin, key)
    subscription = subscribed(customer)
    sdk(base(running.port))
    asked: Any = {"customer": customer, "subscription": subscription.id}
    invoice = stripe.Invoice.create(**asked)
    assert (invoice.status, invoice["total"]) == ("draft", 2000)
    item = stripe.InvoiceItem.create(customer=customer, invoice=invoice.id, amount=500, currency="usd")
    assert (item.amount, item.invoice) == (500, invoice.id)
    assert invoice.delete().deleted is True
    error = raised(running, stripe.InvalidRequestError, lambda: stripe.Invoice.retrieve(invoice.id))
    assert error.http_status == 404
    assert key not in running.record.text()


def test_answers_that_are_lost_on_the_chain_leave_one_of_each(
    server: Callable[..., Server], sdk: Callable[..., None], stripe_upstream: Stripe
) -> None:
    """Each first answer is lost between us and the SDK, which repeats its call by itself, under its own key."""
    running = server(CHAIN.format(origin=stripe_upstream.origin, secret=SECRET, key=sha256(KEY)))
    acts: list[Callable[[], Any]] = [
        lambda: stripe.InvoiceItem.create(customer="cus_1", invoice=name, amount=700, currency="usd"),
        lambda: stripe.Invoice.finalize_invoice(name),
        lambda: stripe.Invoice.send_invoice(name),
        lambda: stripe.Invoice.void_invoice(name),
    ]
    sdk(base(running.port))
    name = drafted("cus_1", 300)
    for act in acts:
        with Lossy(running.port, lose=1) as network:
            sdk(base(network.port))
            act()
            assert network.calls == 2
    [made] = stripe_upstream.made
    assert (made["status"], made["total"], made["mailed"]) == ("void", 1000, 1)


# ---------------------------------------------------------------- how it is refused


def test_each_refusal_is_the_exception_that_the_sdk_has_for_it(
    through: Callable[..., Server], stripe_upstream: Stripe
) -> None:
    running = through()
    unknown = raised(running, stripe.AuthenticationError, customer=CUSTOMER, api_key="of_nobody")
    assert "This caller key is not known" in str(unknown)

    forbidden = raised(running, stripe.PermissionError, customer=CUSTOMER, api_key=OTHER_KEY)
    assert "You may not use this connection" in str(forbidden)

    transfer = {"destination": "acct_1"}
    ungranted = raised(running, stripe.InvalidRequestError, customer=CUSTOMER, transfer_data=transfer)
    assert "transfer_data[destination] is not a parameter you may send" in str(ungranted)
    assert (ungranted.param, ungranted.code) == ("transfer_data[destination]", "parameter_not_granted")

    wide = raised(running, stripe.InvalidRequestError, customer=CUSTOMER, expand=["customer"])
    assert wide.param == "expand[0]"

    missing = raised(running, stripe.InvalidRequestError, customer="cus_missing")
    assert "The upstream has no such object (customer)" in str(missing)
    assert (missing.param, missing.code) == ("customer", "resource_missing")

    absent = raised(running, stripe.InvalidRequestError, stripe.Invoice.retrieve, id="in_nobodyMadeThis")
    assert (absent.http_status, absent.code, absent.param) == (404, "resource_missing", "invoice")

    stripe.Invoice.create(customer=CUSTOMER, idempotency_key="order-1")
    reused = raised(running, stripe.IdempotencyError, customer="cus_other", idempotency_key="order-1")
    assert "This idempotency key was used just now for a call with other parameters, which went through" in str(reused)

    declined = raised(running, stripe.CardError, customer="cus_fault_error_402")
    assert "The card was declined" in str(declined)
    assert declined.code == "card_declined"

    # None of them was repeated: the sandbox has seen the calls that reached it once each.
    assert len(stripe_upstream.calls) == 3
    assert len(running.record.entries("refusal")) == 5
    assert stripe_upstream.invoices == 1


def test_replay_says_so_where_the_audit_id_is_granted(through: Callable[..., Server], stripe_upstream: Stripe) -> None:
    through(response="id, audit_id")
    first = stripe.Invoice.create(customer=CUSTOMER, idempotency_key="order-1")
    again = stripe.Invoice.create(customer=CUSTOMER, idempotency_key="order-1")
    assert type(again) is stripe.Invoice
    assert again.to_dict() == {**first.to_dict(), "replayed": True}
    assert again["replayed"] is True
    assert stripe_upstream.invoices == 1


def test_refusal_that_was_kept_is_the_same_exception_and_says_that_it_is_a_replay(
    through: Callable[..., Server], stripe_upstream: Stripe
) -> None:
    running = through()
    stripe_upstream.fail_next("approval")
    with pytest.raises(stripe.APIError) as waits:
        stripe.Invoice.create(customer=CUSTOMER, idempotency_key="order-1")
    assert waits.value.error is not None
    assert (waits.value.http_status, waits.value.error.code) == (409, "approval_required")
    assert len(running.record.entries("intent")) == 1  # it was not repeated: it waits for a person
    (approval,) = stripe_upstream.approvals
    stripe_upstream.decide(approval, "reject")
    told = []
    for _ in range(2):
        with pytest.raises(stripe.PermissionError) as caught:
            stripe.Invoice.create(customer=CUSTOMER, idempotency_key="order-1")
        told.append(caught.value)
    first, again = told
    assert again.user_message == first.user_message
    assert "A person has refused" in str(again.user_message)
    assert again.request_id != first.request_id
    assert isinstance(again.json_body, dict)
    assert again.json_body["error"]["replayed"] is True
    assert len(stripe_upstream.calls) == 1


def test_refusal_leads_to_its_entry_of_the_docs_by_the_sdks_own_name_for_it(
    server: Callable[..., Server], sdk: Callable[..., None], stripe_upstream: Stripe
) -> None:
    running = server(stripe_policy(stripe_upstream.origin), DOCS="https://docs.example/refusals")
    sdk(base(running.port))
    error = raised(running, stripe.AuthenticationError, customer=CUSTOMER, api_key="of_nobody").error
    assert error is not None
    assert error.doc_url == "https://docs.example/refusals#credential-unknown"


def test_limit_is_an_exception_of_its_own_and_is_not_waited_for(
    through: Callable[..., Server], sdk: Callable[..., None]
) -> None:
    running = through()
    sdk(base(running.port, "stripe-2"), OTHER_KEY)
    stripe.Invoice.create(customer=CUSTOMER)
    limited = raised(running, stripe.RateLimitError, customer=CUSTOMER)
    assert "You have reached your limit" in str(limited)
    assert limited.headers is not None
    assert int(limited.headers["retry-after"]) > 50
    assert len(running.record.entries("refusal")) == 1


@pytest.mark.parametrize("path", ["/ft-4", "/ft-4/stripe-1/", "/ft-4/stripe-1/v1"])
def test_base_address_that_is_not_quite_right_is_told_so(
    through: Callable[..., Server], sdk: Callable[..., None], path: str
) -> None:
    running = through()
    sdk(f"http://127.0.0.1:{running.port}{path}")
    told = raised(running, stripe.InvalidRequestError, customer=CUSTOMER)
    assert "at /NAME/CONNECTION_NAME/v1/invoices" in str(told)


def test_what_is_not_offered_is_refused_in_words(through: Callable[..., Server]) -> None:
    running = through()
    products = raised(running, stripe.InvalidRequestError, stripe.Product.create, name="Support")
    assert "There is nothing at this path" in str(products)
    listing = raised(running, stripe.InvalidRequestError, stripe.Invoice.list)
    assert "This method is not supported here" in str(listing)


# ---------------------------------------------------------------- when it calls again by itself


def test_call_whose_answer_was_lost_is_repeated_by_the_sdk_and_is_one_invoice(
    through: Callable[..., Server], stripe_upstream: Stripe, sdk: Callable[..., None]
) -> None:
    with Lossy(through().port, lose=2) as network:
        sdk(base(network.port))
        invoice = stripe.Invoice.create(customer=CUSTOMER)
    assert network.calls == 3
    assert invoice.last_response is not None
    assert invoice.last_response.headers["Idempotent-Replayed"] == "true"
    assert (stripe_upstream.invoices, len(stripe_upstream.calls)) == (1, 1)


@pytest.mark.parametrize(
    ("fault", "times", "reason"),
    [("error_429", 1, "upstream-busy"), ("close_after", 3, "outcome-unknown"), ("error_503", 3, "outcome-unknown")],
)
def test_answer_that_another_try_mends_is_mended_by_the_sdk(
    through: Callable[..., Server], stripe_upstream: Stripe, fault: str, times: int, reason: str
) -> None:
    running = through()
    stripe_upstream.fail_next(fault, times)
    assert stripe.Invoice.create(customer=CUSTOMER).status == "draft"
    assert [entry.get("reason") for entry in running.record.entries("outcome")] == [reason, None]
    assert stripe_upstream.invoices == 1


def test_call_whose_outcome_another_try_would_not_tell_is_not_repeated(
    server: Callable[..., Server], sdk: Callable[..., None], upstream: Appgregator
) -> None:
    running = server()
    sdk(base(running.port))
    upstream.fail_next("close_after")
    unknown = raised(running, stripe.APIError, customer=CUSTOMER, idempotency_key="order-1")
    assert "the invoice may exist" in str(unknown)
    assert unknown.http_status == 424
    assert [entry["kind"] for entry in running.record.entries()] == ["intent", "outcome"]
    assert upstream.invoices == 1
    assert raised(running, stripe.APIError, customer=CUSTOMER, idempotency_key="order-1").http_status == 424
    assert len(upstream.calls) == 1


def test_upstream_that_is_down_is_an_error_of_the_api_after_a_few_tries(
    server: Callable[..., Server], sdk: Callable[..., None], upstream: Appgregator
) -> None:
    running = server(policy(upstream.origin))
    sdk(base(running.port))
    upstream.stop()
    unreachable = raised(running, stripe.APIError, customer=CUSTOMER)
    assert "Nothing was sent" in str(unreachable)
    assert unreachable.http_status == 502
    assert len(running.record.entries("outcome")) == 3
