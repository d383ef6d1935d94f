"""One call through every stage, through the framework's own front and under its own server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conftest import CUSTOMER, policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from tests.conftest import Function, Server


def test_call_raises_one_invoice_and_answers_the_granted_fields(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function()
    response = gate.post()
    assert response.status_code == 200, response.text
    assert upstream.invoices == 1
    assert response.json is not None
    assert list(response.json)[:3] == ["id", "status", "amount_due"]
    assert response.json["lines"] == {"data": [{"amount": 2000}]}
    assert response.json["audit_id"] == response.headers["Countersign-Audit-Id"]
    assert [entry["kind"] for entry in gate.record.entries()] == ["intent", "outcome"]


def test_call_raises_one_invoice_under_the_production_server(
    server: Callable[..., Server], upstream: Appgregator
) -> None:
    running = server(policy(upstream.origin))
    status, headers, _ = running.call(body=CUSTOMER.encode())
    assert status == 200
    assert headers["cache-control"] == "no-store"
    assert upstream.invoices == 1
