"""An idempotency key names one thing, whatever the way it comes: rows A4, A5, A6 and A13 of what went wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CUSTOMER, policy
from tests.problems import as_replayed, refused, stripe_refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from tests.conftest import Function

JSON = "application/json"
SDK_TARGET = "/ft-4/stripe-1/v1/invoices"
ORDER = "metadata[order_id]"
#: A key, and what its refusal names.
NAMELESS = [
    ("order-undefined", "undefined"),
    ("{{ $json.order_id }}", "{{"),
    ("[object Object]", "[object"),
    ("null", "null"),
    ("NaN-7", "NaN"),
    ("orders/None", "None"),
    ("order nil", "nil"),
    ("${order}", "${"),
    ("order-<no value>", "<no value>"),
]
NAMES = ["V1--x_", "order-NANTES-1", "pi_3NaN9x", "q83v_w==", "nullable-7"]


@pytest.fixture
def by_header(function: Callable[..., Function]) -> Function:
    return function()


@pytest.fixture
def by_parameter(function: Callable[..., Function], upstream: Appgregator) -> Function:
    return function(policy(upstream.origin, idempotency=f'{{from: "{ORDER}"}}'))


def asked(order: object) -> str:
    return json.dumps({"customer": "cus_MQqeLuPp19Qbk8", "metadata": {"order_id": order}})


@pytest.mark.parametrize(("key", "named"), NAMELESS)
def test_header_that_an_automation_did_not_fill_in_is_refused(
    by_header: Function, upstream: Appgregator, key: str, named: str
) -> None:
    """A4: two orders would be one invoice."""
    problem = refused(by_header.post(Idempotency_Key=key), 400, "idempotency-key-invalid")
    assert problem["detail"].startswith(
        f"The Idempotency-Key header contains {named}, so the automation that sent it did not fill in its field. "
    )
    assert not upstream.calls


@pytest.mark.parametrize(("key", "named"), NAMELESS)
def test_parameter_that_an_automation_did_not_fill_in_is_refused(
    by_parameter: Function, upstream: Appgregator, key: str, named: str
) -> None:
    """A4, by the other door."""
    problem = refused(by_parameter.post(body=asked(key), media=JSON), 400, "idempotency-key-invalid")
    assert problem["parameter"] == ORDER
    assert problem["detail"].startswith(f"{ORDER} contains {named}, so the automation that sent it did not fill in")
    assert not upstream.calls


def test_placeholder_is_told_to_stripes_clients(by_header: Function, upstream: Appgregator) -> None:
    answer = by_header.post(SDK_TARGET, Idempotency_Key="order-undefined")
    error = stripe_refused(answer, 400, "idempotency-key-invalid")
    assert error["type"] == "invalid_request_error"
    assert not upstream.calls


@pytest.mark.parametrize("key", NAMES)
def test_key_that_looks_like_a_placeholder_and_is_none_is_taken_by_both_doors(
    function: Callable[..., Function], upstream: Appgregator, key: str
) -> None:
    assert function().post(Idempotency_Key=key).status_code == 200
    by_parameter = function(policy(upstream.origin, idempotency=f'{{from: "{ORDER}"}}'))
    assert by_parameter.post(body=asked(key), media=JSON).status_code == 200
    assert upstream.invoices == 2


@pytest.mark.parametrize("order", [" 1001", "1001\r\n", "1001 ", "\ufeff1001", "10\t01"])
@pytest.mark.parametrize("media", ["form", "json"])
def test_white_space_around_an_order_number_is_no_second_invoice(
    by_parameter: Function, upstream: Appgregator, order: str, media: str
) -> None:
    """A5."""
    assert by_parameter.post(body=asked("1001"), media=JSON).status_code == 200
    if media == "json":
        answer = by_parameter.post(body=asked(order), media=JSON)
    else:
        escaped = "".join(f"%{byte:02X}" for byte in order.encode())
        answer = by_parameter.post(body=f"{CUSTOMER}&{ORDER}={escaped}")
    problem = refused(answer, 400, "idempotency-key-invalid")
    assert problem["parameter"] == ORDER
    assert problem["detail"].endswith("Remove it.")
    assert upstream.invoices == 1


def test_order_number_is_one_key_however_it_is_written(by_parameter: Function, upstream: Appgregator) -> None:
    """A13."""
    sent = [
        by_parameter.post(body=f"{CUSTOMER}&{ORDER}=1001"),
        by_parameter.post(body=asked("1001"), media=JSON),
        *(
            by_parameter.post(body=asked(1001).replace("1001", written), media=JSON)
            for written in ("1001", "1001.0", "1.001e3")
        ),
    ]
    assert [answer.status_code for answer in sent] == [200] * len(sent)
    assert {answer.data for answer in sent[1:]} == {as_replayed(sent[0].data)}
    assert upstream.invoices == 1


@pytest.mark.parametrize("target", ["/stripe/invoices/?name=ft-4&connection_name=stripe-1", SDK_TARGET])
def test_quoted_key_is_the_key_without_its_quotation_marks(
    by_header: Function, upstream: Appgregator, target: str
) -> None:
    """A6."""
    sent = [by_header.post(target, Idempotency_Key=key) for key in ('"order-1"', "order-1", '"order-1"')]
    assert [answer.status_code for answer in sent] == [200] * 3
    assert [answer.headers.get("Idempotent-Replayed") for answer in sent] == [None, "true", "true"]
    assert upstream.invoices == 1


@pytest.mark.parametrize(
    "key",
    [
        '"order-1',
        '"',
        '"order-1";a=1',
        '"order-1" x',
        '"a","b"',
        '"a", "b"',
        r'"a\b"',
        '""',
        '" "',
        '" order-1"',
        '"order-1 "',
        '"a,b"',
        '"order-undefined"',
        '"{{ $json.order_id }}"',
        f'"{"k" * 256}"',
    ],
)
def test_anything_else_in_quotation_marks_is_refused(by_header: Function, upstream: Appgregator, key: str) -> None:
    refused(by_header.post(Idempotency_Key=key), 400, "idempotency-key-invalid")
    assert not upstream.calls


def test_key_must_have_something_behind_the_prefix_of_the_grant(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function(policy(upstream.origin, idempotency="{prefix: order-}"))
    for key in ("order-", '"order-"', "order--", "1001", "Order-1"):
        problem = refused(gate.post(Idempotency_Key=key), 400, "idempotency-key-invalid")
        assert " order-, " in problem["detail"]
    refused(gate.post(), 400, "idempotency-key-missing")
    assert not upstream.calls
    assert gate.post(Idempotency_Key="order-1001").status_code == 200


def test_parameter_must_have_something_behind_the_prefix_of_the_grant(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function(policy(upstream.origin, idempotency=f'{{from: "{ORDER}", prefix: order-}}'))
    for order in ("order-", "1001"):
        problem = refused(gate.post(body=asked(order), media=JSON), 400, "idempotency-key-invalid")
        assert problem["parameter"] == ORDER
        [fault] = problem["faults"]
        assert fault["accepts"]["prefix"] == "order-"
    assert not upstream.calls
    assert gate.post(body=asked("order-1001"), media=JSON).status_code == 200


def test_header_beside_a_parameter_that_is_the_key_is_ignored_whatever_it_says(
    by_parameter: Function, upstream: Appgregator
) -> None:
    """SDKs send one by themselves."""
    for header in ("order-undefined", '"', "a,b", "another"):
        assert by_parameter.post(body=asked("1001"), media=JSON, Idempotency_Key=header).status_code == 200
    assert upstream.invoices == 1
