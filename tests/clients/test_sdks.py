"""Stripe's official SDKs, one by one: each makes the same calls through us, and the same comes of them.

What is particular to a language is a small program in ``programs``: it makes the calls that it is given, and prints
what came of each. An SDK that is not on this machine is left out, and the run says how to get it.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import pytest

from sandbox.__main__ import ROOT
from tests.clients.conftest import Lossy, stripe_policy
from tests.clients.sdks import SDKS, Sdk
from tests.conftest import KEY, OTHER_KEY, policy, sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from sandbox.stripe import Stripe
    from tests.conftest import Server

PROGRAMS: Final = ROOT / "tests" / "clients" / "programs"
UNTIED_KEY: Final = "csk_test_tied_to_no_connection_01"
CUSTOMER: Final = "cus_MQqeLuPp19Qbk8"
#: The caller `app`, tied to the connection at Stripe; `once-a-minute`, tied to the other; and one that is not tied.
UNTIED = """
  untied:
    owner: tests
    credentials: [key: {{id: k1, sha256: {key}}}]
    limits: [1000/minute]
    grants:
      - connection: at-stripe
        operation: invoices.create
        parameters: {{customer: }}
        response: [id, status, customer]
"""


def tied(document: str, key: str, connection: str) -> str:
    """Tie a caller key of a policy document to a connection."""
    assert f"sha256: {sha256(key)}}}" in document
    return document.replace(f"sha256: {sha256(key)}}}", f"sha256: {sha256(key)}, connection: {connection}}}")


@pytest.fixture(params=[pytest.param(row, id=name, marks=row.needed) for name, row in SDKS.items()])
def sdk(request: pytest.FixtureRequest) -> Sdk:
    row: Sdk = request.param
    return row


def at(origin: str) -> str:
    """Write the policy, with Stripe at ``origin``."""
    document = tied(stripe_policy(origin), KEY, "at-stripe")
    return tied(document, OTHER_KEY, "not-granted") + UNTIED.format(key=sha256(UNTIED_KEY))


@pytest.fixture
def at_stripe(server: Callable[..., Server], stripe_upstream: Stripe) -> Server:
    return server(at(stripe_upstream.origin))


def call(create: dict[str, Any] | None, key: str | None = None, caller: str = KEY) -> dict[str, Any]:
    """Ask for an invoice with these parameters, or, with None, for the one that the call before made."""
    return {"create": create, "key": key, "as": caller}


def made(sdk: Sdk, port: int, *calls: dict[str, Any], path: str = "", retries: int = 2) -> list[dict[str, Any]]:
    """Make calls, one after the other, and return what the SDK's program tells of each."""
    asked = {"address": f"http://127.0.0.1:{port}{path}", "retries": retries, "calls": calls}
    done = sdk.run(PROGRAMS / f"client{sdk.suffix}", json.dumps(asked))
    assert done.returncode == 0, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(told) == len(calls)
    return told


def test_sdk_raises_an_invoice_and_retrieves_it(sdk: Sdk, at_stripe: Server, stripe_upstream: Stripe) -> None:
    asked = {
        "customer": CUSTOMER,
        "auto_advance": False,
        "description": None,
        "metadata": {"order_id": "1001", "Kostenstelle": "EMEA & Süd"},
        "account_tax_ids": ["txi_1", "txi_2"],
        "custom_fields": [{"name": "PO", "value": "7"}],
    }
    for path in sdk.paths:
        invoice, again = made(sdk, at_stripe.port, call(asked), call(None), path=path)
        assert invoice["id"].startswith("in_")
        assert invoice == {"id": invoice["id"], "status": "draft", "customer": CUSTOMER}
        assert again == invoice
    # However it writes booleans, lists and nothing, one form goes to Stripe.
    sent, *_ = forms = [received.body.decode("ascii") for received in stripe_upstream.calls]
    assert forms == [sent] * len(sdk.paths)
    assert parse_qsl(sent) == [
        ("account_tax_ids[0]", "txi_1"),
        ("account_tax_ids[1]", "txi_2"),
        ("auto_advance", "false"),
        ("custom_fields[0][name]", "PO"),
        ("custom_fields[0][value]", "7"),
        ("customer", CUSTOMER),
        ("metadata[Kostenstelle]", "EMEA & Süd"),
        ("metadata[order_id]", "1001"),
    ]


def test_each_refusal_is_the_error_that_the_sdk_has_for_it(
    sdk: Sdk, at_stripe: Server, stripe_upstream: Stripe
) -> None:
    one, other = {"customer": CUSTOMER}, {"customer": "cus_other"}
    rows = [
        ("Authentication", 401, "This caller key is not known", call(one, caller="of_nobody")),
        ("Permission", 403, "Write /NAME/CONNECTION_NAME/v1/... instead of /v1/...", call(one, caller=UNTIED_KEY)),
        ("InvalidRequest", 400, "transfer_data[destination] is not a parameter you may send",
         call(one | {"transfer_data": {"destination": "acct_1"}})),
        ("InvalidRequest", 400, "The upstream has no such object (customer)", call({"customer": "cus_missing"})),
        ("Card", 402, "The card was declined", call({"customer": "cus_fault_error_402"})),
        (None, None, None, call(one, "order-1")),
        ("Idempotency", 400, "with other parameters, which went through", call(other, "order-1")),
        (None, None, None, call(one, caller=OTHER_KEY)),
        ("RateLimit", 429, "You have reached your limit", call(one, caller=OTHER_KEY)),
    ]  # fmt: skip
    told = made(sdk, at_stripe.port, *(asked for *_, asked in rows))
    for (kind, status, said, _), error in zip(rows, told, strict=True):
        if kind is not None:
            assert (error.get("error"), error["status"]) == (sdk.errors[kind], status), error
            assert said in error["message"]
            assert error["request"] in at_stripe.record.text()
    assert told[2]["param"] == "transfer_data[destination]"
    # None of them was repeated.
    assert len(stripe_upstream.calls) == 4
    assert len(at_stripe.record.entries("refusal")) == 5
    assert stripe_upstream.invoices == 2


def test_call_whose_answer_was_lost_is_repeated_and_is_one_invoice(
    sdk: Sdk, at_stripe: Server, stripe_upstream: Stripe
) -> None:
    one, own_key = {"customer": CUSTOMER}, None if sdk.repeats_lost_calls else "order-1"
    with Lossy(at_stripe.port, lose=1) as network:
        if own_key:
            (lost,) = made(sdk, network.port, call(one, own_key))
            assert (lost["error"], lost["status"]) == (sdk.errors["APIConnection"], None)
        (invoice,) = made(sdk, network.port, call(one, own_key))
        assert network.calls == 2
    assert invoice["status"] == "draft", invoice
    assert [entry["kind"] for entry in at_stripe.record.entries()] == ["intent", "outcome", "replay"]
    assert (stripe_upstream.invoices, len(stripe_upstream.calls)) == (1, 1)


def test_call_that_is_still_running_is_repeated_until_it_has_ended(
    sdk: Sdk, server: Callable[..., Server], stripe_upstream: Stripe
) -> None:
    asked, seen = call({"customer": CUSTOMER}, "order-1"), threading.Event()
    with Lossy(int(stripe_upstream.origin.rpartition(":")[2]), go_on=seen) as before_stripe:
        running = server(at(f"http://127.0.0.1:{before_stripe.port}"))
        with Lossy(running.port, lose=1, patience=0.2) as network, ThreadPoolExecutor(1) as beside:
            watched = beside.submit(wait_for, running, "refusal", seen)
            if not sdk.repeats_lost_calls:
                made(sdk, network.port, asked)
            (told,) = made(sdk, network.port, asked, retries=8)
            watched.result()
            if not sdk.repeats_answered_calls:
                assert (told["error"], told["status"]) == (sdk.errors["API"], 409)
                wait_for(running, "outcome")
                (told,) = made(sdk, network.port, asked)
    assert told.get("status") == "draft", told
    assert {entry["reason"] for entry in running.record.entries("refusal")} == {"idempotency-key-in-use"}
    assert (stripe_upstream.invoices, len(stripe_upstream.calls)) == (1, 1)


def wait_for(running: Server, kind: str, then: threading.Event | None = None) -> None:
    """Wait until something of a kind is on record, and then say so; for at most as long as a call may take."""
    until = time.monotonic() + 25
    while not running.record.entries(kind) and time.monotonic() < until:
        time.sleep(0.05)
    if then is not None:
        then.set()


def test_call_whose_outcome_another_try_would_not_tell_is_not_repeated(
    sdk: Sdk, server: Callable[..., Server], upstream: Appgregator
) -> None:
    running = server(tied(policy(upstream.origin), KEY, "billing"))
    upstream.fail_next("close_after")
    asked = call({"customer": CUSTOMER}, "order-1")
    for error in made(sdk, running.port, asked, asked):
        assert (error["error"], error["status"]) == (sdk.errors["API"], 424)
        assert "the invoice may exist" in error["message"]
    assert (upstream.invoices, len(upstream.calls)) == (1, 1)
    assert [entry["kind"] for entry in running.record.entries()] == ["intent", "outcome", "refusal"]
