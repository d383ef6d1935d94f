"""At Appgregator a create may say what the invoice comes to, and the grant bounds that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policies.document import read
from policies.model import DocumentError
from tests.conftest import KEY, sha256
from tests.problems import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from tests.conftest import Function

DOCUMENT = """\
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: {upstream}, origin: {origin}, secret: {secret}}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: {key}}}]
    limits: [100000/minute]
    grants:
      - connection: billing
        operation: invoices.create
        parameters: {{customer: , {parameters}}}
        amount: {{{amount}}}
        response: [id, amount_due, currency]
"""
SECRET = "projects/sandbox/secrets/appgregator-x-api-key/versions/latest"


def written(parameters: str, amount: str, upstream: str = "appgregator", origin: str = "https://u.example") -> str:
    return DOCUMENT.format(
        parameters=parameters, amount=amount, upstream=upstream, origin=origin, secret=SECRET, key=sha256(KEY)
    )


def asked(loaded: Function, body: str, order: str = "order-1") -> tuple[int, object]:
    response = loaded.post(body=body, Idempotency_Key=order)
    return response.status_code, response.json


def test_call_says_what_the_invoice_comes_to(function: Callable[..., Function], upstream: Appgregator) -> None:
    loaded = function(written("amount: , currency: ", "max: 50000, currency: [usd, eur]", origin=upstream.origin))
    status, told = asked(loaded, "customer=cus_1&amount=50000&currency=EUR")
    assert isinstance(told, dict)
    assert (status, told["amount_due"], told["currency"]) == (200, 50000, "eur")
    assert upstream.calls[0].body == b"amount=50000&currency=eur&customer=cus_1"


@pytest.mark.parametrize(
    ("body", "reason", "said"),
    [
        ("customer=cus_1&amount=50001&currency=usd", "parameter-invalid", "amount must be at most 50000."),
        ("customer=cus_1&amount=0&currency=usd", "parameter-invalid", "amount must be at least 1."),
        ("customer=cus_1&amount=-5&currency=usd", "parameter-invalid", "amount must be at least 1."),
        ("customer=cus_1&amount=12.50&currency=usd", "parameter-invalid", "must be a whole number"),
        ("customer=cus_1&amount=100&currency=chf", "parameter-invalid", "currency must be one of: eur, usd."),
        ("customer=cus_1&amount=100", "parameter-missing", "currency is missing"),
    ],
)
def test_amount_out_of_the_grant_is_refused(
    function: Callable[..., Function], upstream: Appgregator, body: str, reason: str, said: str
) -> None:
    loaded = function(written("amount: , currency: ", "max: 50000, currency: [usd, eur]", origin=upstream.origin))
    assert said in refused(loaded.post(body=body, Idempotency_Key="order-1"), 400, reason)["detail"]
    assert not upstream.calls


@pytest.mark.parametrize(
    ("parameters", "amount", "upstream", "said"),
    [
        ("amount: ", "max: 5, currency: [usd]", "appgregator", "must say its currency. Grant currency"),
        ("amount: {fixed: '6'}", "max: 5", "appgregator", "amount is 6 at least, so no call could pass"),
        ("amount: {min: 6}", "max: 5", "appgregator", "amount is 6 at least, so no call could pass"),
        ("amount: {min: 0}", "max: 5", "appgregator", "the upstream takes 1 at least"),
        ("amount: , currency: {fixed: eur}", "currency: [usd]", "appgregator", "allows none of these currencies"),
        ("amount: , currency: {one_of: [eur]}", "currency: [usd]", "appgregator", "allows none of these currencies"),
        ("amount: ", "max: 5", "stripe", "amount means something at Appgregator only"),
    ],
)
def test_document_that_could_not_be_meant_is_an_error(parameters: str, amount: str, upstream: str, said: str) -> None:
    with pytest.raises(DocumentError) as error:
        read(written(parameters, amount, upstream), "policy.yaml")
    assert said in str(error.value)
    assert str(error.value).startswith("policy.yaml:1")


def test_narrower_bound_of_the_two_holds() -> None:
    for parameters, amount, most, currencies in (
        ("amount: {max: 70}, currency: {one_of: [usd, chf]}", "max: 50, currency: [usd, eur]", 50, {"usd"}),
        ("amount: {max: 30}, currency: ", "max: 50, currency: [usd, eur]", 30, {"usd", "eur"}),
    ):
        [caller] = read(written(parameters, amount), "policy.yaml").callers.values()
        [entitlement] = caller.entitlements.values()
        assert entitlement.rules["amount"].maximum == most
        assert entitlement.rules["currency"].one_of == frozenset(currencies)
