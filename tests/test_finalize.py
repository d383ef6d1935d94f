"""The single operations through the function, at Stripe: a draft is judged before it is finalized, and changed once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.stores.memory import Memory
from policies.idempotency import LEASE
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import KEPT_SECONDS, Customer, Stripe
from tests.conftest import KEY, sha256
from tests.gateway.conftest import Clock
from tests.problems import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from werkzeug.test import TestResponse

    from tests.conftest import Function

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
def clock() -> Clock:
    """What the store and Stripe go by."""
    return Clock()


@pytest.fixture
def stripe(clock: Clock) -> Iterator[Stripe]:
    with Stripe(keys=[UPSTREAM_KEY], clock=clock) as stripe:
        yield stripe


@pytest.fixture
def memory(clock: Clock) -> Memory:
    return Memory(clock)


@pytest.fixture
def loaded(
    function: Callable[..., Function], stripe: Stripe, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Function:
    """The function in front of Stripe; nothing waits between tries, and the ledger's time is the test's."""
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    monkeypatch.setattr("gateway.upstreams.sending.PAUSES", (0.0, 0.0))
    monkeypatch.setattr("gateway.settings.Memory", lambda _: memory)
    return function(DOCUMENT.format(origin=stripe.origin, secret=tmp_path / "key", key=sha256(KEY)))


def ask(loaded: Function, path: str, method: str = "POST", key: str | None = None, **form: Any) -> TestResponse:
    """Call one operation, under a key of its own unless one is given."""
    query = f"/stripe/{path}?name=ft-4&connection_name=stripe-1"
    written = "&".join(f"{name}={value}" for name, value in form.items())
    headers = {} if method == "GET" else {"Idempotency_Key": key or f"{method} {path} {written}".replace("/", "-")}
    if method == "POST":
        return loaded.post(target=query, body=written, **headers)
    return loaded.post(target=f"{query}&{written}" if written else query, body="", method=method, **headers)


def draft(loaded: Function, amount: int = 40850, order: str = "order-1", **more: str) -> str:
    """Make a draft of one item, and return its id."""
    form = {"customer": "cus_1", "currency": "usd", "collection_method": "send_invoice", "days_until_due": "30", **more}
    created = ask(loaded, "invoices/", key=order, **form).json
    assert created is not None
    name: str = created["id"]
    item = {"customer": "cus_1", "invoice": name, "amount": amount, "currency": form["currency"]}
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
