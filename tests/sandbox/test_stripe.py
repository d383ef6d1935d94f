from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
import stripe as sdk

from sandbox import faults, invoice
from sandbox import stripe as box
from sandbox.stripe import DEFAULT_VERSION, FAULTS, KEPT_SECONDS, Stripe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "sandbox-upstream-key"
FORM = "application/x-www-form-urlencoded"
PATH = "/v1/invoices"
BODY = "customer=cus_1&metadata%5Border%5D=7"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json()["error"]

    @property
    def replayed(self) -> bool:
        return self.headers["idempotent-replayed"] == "true"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stripe(clock: Clock) -> Iterator[Stripe]:
    with Stripe(clock=clock) as running:
        yield running


def ask(
    stripe: Stripe, body: str | bytes, headers: dict[str, str], call: str = f"POST {PATH}", timeout: float = 5
) -> Answer:
    """One request on a connection of its own."""
    sent = {"authorization": f"Bearer {KEY}", "content-type": FORM} | headers
    address = stripe.origin.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=timeout)) as connection:
        method, _, path = call.partition(" ")
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def call(
    stripe: Stripe, body: str | bytes = BODY, *, method: str = "POST", path: str = PATH, **headers: str | None
) -> Answer:
    """One request; ``key`` among its headers is its idempotency key."""
    headers["Idempotency-Key"] = headers.pop("key", None)
    sent = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    return ask(stripe, body, sent, f"{method} {path}")


def retrieve(stripe: Stripe, name: str, query: str = "", **headers: str) -> Answer:
    return call(stripe, b"", method="GET", path=f"{PATH}/{name}{query}", **headers)


def lose(stripe: Stripe, fault: str, key: str) -> None:
    """A call whose answer does not arrive."""
    stripe.fail_next(fault)
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(stripe, BODY, {"Idempotency-Key": key}, timeout=0.2)


# --- Invoices


def test_create_answers_with_an_invoice(stripe: Stripe) -> None:
    answer = call(stripe, Stripe_Account="acct_1")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == invoice.EXAMPLE.keys()
    assert (answer.json()["customer"], answer.json()["metadata"]) == ("cus_1", {"order": "7"})
    (received,) = stripe.calls
    assert (received.path, received.body, received.created) == (PATH, BODY.encode(), True)
    assert ("Stripe-Account", "acct_1") in received.headers
    assert (stripe.invoices, stripe.replays) == (1, 0)


def test_query_and_body_are_merged_and_the_last_of_one_name_counts(stripe: Stripe) -> None:
    answer = call(stripe, "customer=cus_2&customer=cus_3", path=f"{PATH}?description=above&customer=cus_1")
    assert (answer.json()["customer"], answer.json()["description"]) == ("cus_3", "above")


def test_invoice_can_be_retrieved_as_it_was_made(stripe: Stripe) -> None:
    made = call(stripe)
    found = retrieve(stripe, made.json()["id"], "?expand%5B%5D=customer")
    assert (found.status, found.body) == (200, made.body)
    assert (len(stripe.calls), stripe.invoices) == (1, 1)


def test_invoice_that_is_not_there_is_missing(stripe: Stripe) -> None:
    made = call(stripe).json()["id"]
    for answer in (retrieve(stripe, "in_1"), retrieve(stripe, made, Stripe_Account="acct_1")):
        assert (answer.status, answer.error["code"]) == (404, "resource_missing")
    assert retrieve(stripe, made, authorization="Bearer wrong").status == 401


@pytest.mark.parametrize("scheme", ["Bearer {}", "bearer {}", "Basic {}"])
def test_key_may_come_as_bearer_or_basic(stripe: Stripe, scheme: str) -> None:
    sent = base64.b64encode(f"{KEY}:".encode()).decode() if "Basic" in scheme else KEY
    assert call(stripe, authorization=scheme.format(sent)).status == 200


@pytest.mark.parametrize("sent", ["Bearer wrong", "Bearer ", "Basic !", "Basic d3Jvbmc6", KEY, ""])
def test_other_key_is_refused(stripe: Stripe, sent: str) -> None:
    answer = call(stripe, authorization=sent)
    assert (answer.status, answer.error["type"]) == (401, "invalid_request_error")
    assert (len(stripe.calls), stripe.invoices) == (1, 0)


def test_rotation_replaces_the_accepted_keys_and_keeps_the_account(stripe: Stripe) -> None:
    first = call(stripe, key="k")
    stripe.accept("next")
    assert call(stripe, key="k").status == 401
    assert call(stripe, key="k", authorization="Bearer next").body == first.body


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", PATH), ("POST", f"{PATH}/in_1"), ("POST", "/v1/charges"), ("POST", f"{PATH}/"), ("DELETE", PATH)],
)
def test_other_addresses_are_not_there(stripe: Stripe, method: str, path: str) -> None:
    answer = call(stripe, method=method, path=path)
    assert (answer.status, answer.error["type"]) == (404, "invalid_request_error")
    assert stripe.calls == ()


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ("description=x", "customer", "parameter_missing"),
        ("customer=", "customer", "parameter_missing"),
        ("customer=cus_1&colour=red", "colour", "parameter_unknown"),
        ("customer=cus_1&metadata[a][b]=x", "metadata[a][b]", "parameter_unknown"),
        ("customer=cus_1&description[a]=x", "description[a]", "parameter_unknown"),
        ("customer=cus_1&days_until_due=soon", "days_until_due", "parameter_invalid_integer"),
        ("customer=cus_1&due_date=", "due_date", "parameter_invalid_integer"),
        ("customer=cus_1&auto_advance=banana", "auto_advance", None),
        ("customer=cus_1&collection_method=by_hand", "collection_method", None),
        ("customer=cus_1&currency=dollars", "currency", None),
        (f"customer=cus_1&description={'x' * 1501}", "description", None),
        (f"customer=cus_1&metadata[a]={'x' * 501}", "metadata[a]", None),
        (f"customer=cus_1&metadata[{'x' * 41}]=a", "metadata", None),
        ("customer=cus_1&" + "&".join(f"metadata[k{n}]=a" for n in range(51)), "metadata", None),
        ("customer=cus_1&custom_fields[1][name]=a&custom_fields[1][value]=b", "custom_fields", None),
        ("customer=cus_1&custom_fields[0][name]=a", "custom_fields[0][value]", "parameter_missing"),
        ("customer=cus_1&transfer_data[amount]=1", "transfer_data[destination]", "parameter_missing"),
    ],
)
def test_parameter_that_is_wrong_is_named_and_nothing_is_kept(
    stripe: Stripe, body: str, param: str, code: str | None
) -> None:
    answer = call(stripe, body, key="k")
    assert answer.status == 400
    assert (answer.error["param"], answer.error.get("code")) == (param, code)
    assert stripe.invoices == 0
    assert call(stripe, key="k").status == 200, "nothing lies under the key"


@pytest.mark.parametrize(
    "body",
    [
        "auto_advance=1", "auto_advance=false", "metadata=", "footer=", "expand[]=customer", "expand[0]=a&expand[1]=b",
        "custom_fields[0][name]=a&custom_fields[0][value]=b", "transfer_data[destination]=acct_1", "due_date=1900000",
        "payment_settings[payment_method_options][card][request_three_d_secure]=any", "rendering[amount_tax_display]=",
        "metadata[7]=a", f"description={'x' * 1500}",
    ],
)  # fmt: skip
def test_parameter_that_is_right_is_taken(stripe: Stripe, body: str) -> None:
    assert call(stripe, f"customer=cus_1&{body}").status == 200


def test_json_is_refused(stripe: Stripe) -> None:
    assert call(stripe, '{"customer": "cus_1"}', content_type="application/json").status == 400


# --- Headers


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ({}, DEFAULT_VERSION),
        ({"Stripe_Version": "2024-06-20"}, "2024-06-20"),
        ({"Stripe_Version": "2026-10-28.endive"}, "2026-10-28.endive"),
        ({"Stripe_Version": "newest"}, DEFAULT_VERSION),
    ],
)
def test_answer_names_its_version(stripe: Stripe, sent: dict[str, str], answered: str) -> None:
    assert call(stripe, **sent).headers["stripe-version"] == answered
    assert {name: value for name, value in stripe.calls[0].headers if name == "Stripe-Version"} == {
        name.replace("_", "-"): value for name, value in sent.items()
    }


def test_every_answer_has_a_request_id_of_its_own(stripe: Stripe) -> None:
    answers = [
        call(stripe, key="k"),
        call(stripe, key="k"),
        call(stripe, "colour=red"),
        call(stripe, authorization="none"),
        call(stripe, path="/v1/charges"),
        call(stripe, Host="twice"),
        retrieve(stripe, "in_1"),
        call(stripe, "customer=cus_fault_error_500"),
        call(stripe, "customer=cus_fault_html_502"),
    ]
    ids = [answer.headers["request-id"] for answer in answers]
    assert len(set(ids)) == len(answers)
    assert all(re.fullmatch(r"req_[0-9A-Za-z]{14}", name) for name in ids)
    assert answers[1].headers["original-request"] == ids[0]


# --- Idempotency


def test_same_key_gets_the_same_answer_and_no_second_invoice(stripe: Stripe) -> None:
    first, second = call(stripe, key="k"), call(stripe, key="k")
    assert (second.status, second.body) == (first.status, first.body)
    assert (first.replayed, second.replayed) == (False, True)
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == "k"
    assert (len(stripe.calls), stripe.invoices, stripe.replays) == (2, 1, 1)
    assert [received.created for received in stripe.calls] == [True, False]


def test_other_key_and_no_key_make_invoices_of_their_own(stripe: Stripe) -> None:
    ids = {call(stripe, key=key).json()["id"] for key in ("a", "b", None, None)}
    assert (len(ids), stripe.invoices, stripe.replays) == (4, 4, 0)


def test_key_belongs_to_an_account(stripe: Stripe) -> None:
    accounts: list[dict[str, str]] = [{}, {"Stripe_Account": "acct_1"}, {"Stripe_Account": "acct_2"}]
    first = [call(stripe, key="k", **account).json()["id"] for account in accounts]
    again = [call(stripe, key="k", **account).json()["id"] for account in accounts]
    assert first == again
    assert (len(set(first)), stripe.invoices) == (3, 3)


def test_order_of_the_parameters_does_not_matter_but_their_values_do(stripe: Stripe) -> None:
    first = call(stripe, "customer=cus_1&description=a", key="k")
    assert call(stripe, "description=a&customer=cus_1", key="k").body == first.body
    for body in ("customer=cus_1&description=b", "customer=cus_1", "customer=cus_1&description=a&footer="):
        answer = call(stripe, body, key="k")
        assert (answer.status, answer.error["type"]) == (400, "idempotency_error")
        assert not answer.replayed
    assert (stripe.invoices, stripe.replays) == (1, 1)
    assert call(stripe, "customer=cus_1&description=a", key="k").body == first.body


@pytest.mark.parametrize(("length", "status"), [(0, 400), (1, 200), (255, 200), (256, 400)])
def test_key_has_1_to_255_characters(stripe: Stripe, length: int, status: int) -> None:
    assert call(stripe, key="k" * length).status == status


def test_key_is_forgotten_after_24_hours(stripe: Stripe, clock: Clock) -> None:
    first = call(stripe, key="k")
    clock.now += KEPT_SECONDS - 1
    assert call(stripe, key="k").body == first.body
    clock.now += 1
    assert call(stripe, key="k").body != first.body
    clock.now += KEPT_SECONDS - 1
    assert call(stripe, key="k").replayed
    assert (stripe.invoices, stripe.replays) == (2, 2)


def test_key_is_in_use_while_its_first_call_is_at_work(stripe: Stripe, clock: Clock) -> None:
    stripe.delay = 30
    lose(stripe, "working", key="k")
    assert stripe.invoices == 1
    answer = call(stripe, key="k")
    assert (answer.status, answer.error["code"]) == (409, "idempotency_key_in_use")
    assert answer.error["type"] == "idempotency_error"
    assert call(stripe, "customer=cus_2", key="k").status == 400
    assert call(stripe, key="other").status == 200
    clock.now += 30
    assert call(stripe, key="k").replayed
    assert (stripe.invoices, stripe.replays) == (2, 1)


def test_call_at_work_is_answered_in_the_end() -> None:
    with Stripe() as stripe:
        stripe.delay = 0.05
        first = call(stripe, "customer=cus_fault_working", key="k")
        assert call(stripe, "customer=cus_fault_working", key="k").body == first.body
        assert (stripe.invoices, stripe.replays) == (1, 1)


def test_keys_and_invoices_outlive_a_restart(stripe: Stripe) -> None:
    first = call(stripe, key="k")
    stripe.stop()
    stripe.start()
    assert call(stripe, key="k").body == first.body
    assert retrieve(stripe, first.json()["id"]).body == first.body


def test_forget_clears_everything(stripe: Stripe) -> None:
    first = call(stripe, key="k")
    call(stripe, key="k")
    stripe.fail_next("error_500")
    stripe.forget()
    assert (stripe.calls, stripe.invoices, stripe.connections, stripe.replays) == ((), 0, 0, 0)
    assert retrieve(stripe, first.json()["id"]).status == 404
    assert call(stripe, key="k").body != first.body


def test_only_the_newest_are_remembered() -> None:
    with Stripe(keep=2) as stripe:
        first, *_ = (call(stripe, key=key) for key in "abc")
        assert len(stripe.calls) == 2
        assert retrieve(stripe, first.json()["id"]).status == 404
        assert [call(stripe, key=key).replayed for key in "bca"] == [True, True, False]


def test_many_callers_with_one_key_get_one_invoice(stripe: Stripe) -> None:
    ids: list[str] = []

    def work() -> None:
        ids.extend(call(stripe, key="k").json()["id"] for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ids), len(set(ids))) == (160, 1)
    assert (len(stripe.calls), stripe.invoices, stripe.replays) == (160, 1, 159)


# --- Faults


#: Faults that leave the true answer under the key, whatever the client got.
LOST = ("hang", "close_after", "reset_after", "truncated", "slow")
SPOILT = (
    "html_200", "gzip", "leak_key", "set_cookie", "oversize", "not_json", "nan", "deep", "no_id", "array", "empty",
    "wrong_object", "expanded", "gzip_bomb", "other_customer", "other_mode", "other_key", "twice",
)  # fmt: skip


def test_every_fault_is_documented_and_tested() -> None:
    tests = Path(__file__).read_text()
    assert faults.FAULTS.keys() < FAULTS
    for name in FAULTS:
        assert f'"{name}"' in tests
        assert name in str(faults.__doc__ if name in faults.FAULTS else box.__doc__)


@pytest.mark.parametrize("name", LOST)
def test_lost_answer_is_there_for_the_same_key(stripe: Stripe, name: str) -> None:
    stripe.delay = 30
    lose(stripe, name, key="k")
    assert (stripe.invoices, stripe.replays) == (1, 0)
    answer = call(stripe, key="k")
    assert (answer.status, answer.replayed, answer.json()["customer"]) == (200, True, "cus_1")
    assert retrieve(stripe, answer.json()["id"]).body == answer.body
    assert (stripe.invoices, stripe.replays) == (1, 1)


def test_trickled_answer_is_there_for_the_same_key(stripe: Stripe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_TRICKLE_BYTES", 2)
    stripe.fail_next("trickle")
    with pytest.raises(http.client.HTTPException):
        call(stripe, key="k")
    assert call(stripe, key="k").json()["object"] == "invoice"
    assert stripe.invoices == 1


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_answer_is_whole_for_the_same_key(stripe: Stripe, name: str) -> None:
    body = f"customer=cus_fault_{name}"
    first, second = call(stripe, body, key="k"), call(stripe, body, key="k")
    assert first.status == second.status == 200
    assert (first.replayed, second.replayed) == (False, True)
    assert (second.json()["object"], second.json()["customer"]) == ("invoice", f"cus_fault_{name}")
    assert stripe.invoices == 1


@pytest.mark.parametrize(
    ("key", "live"), [("sk_live_1", True), ("rk_live_1", True), ("sk_test_1", False), ("some-key", False)]
)
def test_mode_is_that_of_the_api_key(key: str, *, live: bool) -> None:
    with Stripe(keys=[key]) as running:
        made = call(running, authorization=f"Bearer {key}").json()
        assert {made["livemode"], *(line["livemode"] for line in made["lines"]["data"])} == {live}


@pytest.mark.parametrize("name", ["other_key", "other_key_400"])
def test_answer_names_the_key_of_another_call(stripe: Stripe, name: str) -> None:
    stripe.fail_next(name)
    assert call(stripe, key="k").headers.get_all("idempotency-key") == ["of-another-call"]
    assert call(stripe, key="k").headers.get_all("idempotency-key") == ["k"]


def test_second_answer_has_the_headers_of_the_first(stripe: Stripe) -> None:
    stripe.fail_next("twice")
    address = stripe.origin.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=5)) as connection:
        sent = {"authorization": f"Bearer {KEY}", "content-type": FORM, "Idempotency-Key": "k"}
        connection.request("POST", PATH, BODY, sent)
        first = connection.getresponse()
        first.read()
        second = http.client.HTTPResponse(connection.sock)
        second.begin()
        for name in ("idempotency-key", "request-id", "stripe-version"):
            assert second.headers[name] == first.headers[name]


def test_answer_behind_a_huge_header_is_there_for_the_same_key(stripe: Stripe) -> None:
    lose(stripe, "huge_header", key="k")
    assert call(stripe, key="k").replayed


def test_repeat_can_be_lost_too(stripe: Stripe) -> None:
    for name in ("close_after", "reset_after", "hang"):
        lose(stripe, name, key="k")
    assert (stripe.invoices, stripe.replays) == (1, 2)
    stripe.fail_next("error_503")
    assert [call(stripe, key="k").status for _ in range(2)] == [503, 200]
    assert (stripe.invoices, stripe.replays) == (1, 3)
    assert [received.created for received in stripe.calls] == [True] + [False] * 4


@pytest.mark.parametrize(
    ("name", "status", "error", "retry"),
    [
        ("error_400", 400, {"code": "parameter_unknown"}, None),
        ("error_401", 401, {"type": "invalid_request_error"}, None),
        ("error_403", 403, {"type": "invalid_request_error"}, None),
        ("error_409", 409, {"code": "lock_timeout"}, None),
        ("error_429", 429, {"code": "rate_limit"}, None),
        ("error_503", 503, {"type": "api_error"}, None),
        ("echo_key", 400, {"type": "invalid_request_error"}, None),
        ("other_key_400", 400, {"code": "parameter_unknown"}, None),
        ("retry_409", 409, {"code": "lock_timeout"}, "true"),
        ("retry_503", 503, {"type": "api_error"}, "true"),
    ],
)
def test_refusal_leaves_nothing_under_the_key(
    stripe: Stripe, name: str, status: int, error: dict[str, str], retry: str | None
) -> None:
    stripe.fail_next(name)
    answer = call(stripe, key="k")
    assert answer.status == status
    assert answer.error.items() >= error.items()
    assert answer.headers["stripe-should-retry"] == retry
    assert answer.headers["retry-after"] is None
    assert stripe.invoices == 0
    again = call(stripe, key="k")
    assert (again.status, again.replayed, stripe.invoices) == (200, False, 1)


@pytest.mark.parametrize(("name", "status"), [("redirect_302", 302), ("redirect_307", 307), ("html_502", 502)])
def test_answer_that_is_none_of_stripes_leaves_nothing_under_the_key(stripe: Stripe, name: str, status: int) -> None:
    stripe.fail_next(name)
    assert call(stripe, key="k").status == status
    assert (stripe.invoices, stripe.redirected) == (0, 0)
    assert not call(stripe, key="k").replayed


def test_followed_redirect_is_counted(stripe: Stripe) -> None:
    stripe.fail_next("redirect_307")
    target = call(stripe).headers["location"].removeprefix(stripe.origin)
    call(stripe, path=target)
    assert (stripe.redirected, stripe.invoices) == (1, 0)


@pytest.mark.parametrize(
    ("name", "status", "retry", "invoices"),
    [
        ("error_402", 402, None, 0),
        ("error_404", 404, None, 0),
        ("error_500", 500, None, 0),
        ("error_500_created", 500, None, 1),
        ("no_retry_500", 500, "false", 0),
    ],
)
def test_error_of_the_execution_lies_under_the_key(
    stripe: Stripe, name: str, status: int, retry: str | None, invoices: int
) -> None:
    stripe.fail_next(name)
    first, second = call(stripe, key="k"), call(stripe, key="k")
    assert first.status == second.status == status
    assert first.body == second.body
    assert first.headers["stripe-should-retry"] == second.headers["stripe-should-retry"] == retry
    assert second.replayed
    assert (stripe.invoices, stripe.replays) == (invoices, 1)
    assert call(stripe, key="other").status == 200


def test_fault_waits_while_an_error_is_repeated(stripe: Stripe) -> None:
    stripe.fail_next("error_402")
    stripe.fail_next("error_503")
    assert [call(stripe, key=key).status for key in ("k", "k", "other")] == [402, 402, 503]


def test_customer_that_is_not_there_lies_under_the_key(stripe: Stripe) -> None:
    first, second = (call(stripe, "customer=cus_missing", key="k") for _ in range(2))
    assert (first.status, first.error["param"], first.error["code"]) == (400, "customer", "resource_missing")
    assert (second.body, second.replayed) == (first.body, True)


def test_connection_closed_before_the_call_leaves_nothing(stripe: Stripe) -> None:
    lose(stripe, "close_before", key="k")
    assert (stripe.calls, stripe.invoices) == ((), 0)
    with pytest.raises(http.client.RemoteDisconnected):
        call(stripe, "customer=cus_fault_close_before")
    assert (len(stripe.calls), stripe.invoices) == (1, 0)


def test_fault_waits_for_a_call_that_would_have_created_an_invoice(stripe: Stripe) -> None:
    stripe.fail_next("error_500")
    assert call(stripe, authorization="Bearer wrong").status == 401
    assert call(stripe, "colour=red").status == 400
    assert retrieve(stripe, "in_1").status == 404
    assert call(stripe).status == 500


def test_unknown_fault_cannot_be_asked_for(stripe: Stripe) -> None:
    with pytest.raises(ValueError, match="no fault"):
        stripe.fail_next("error_418")
    assert call(stripe, "customer=cus_fault_error_418").error["param"] == "customer"


# --- The official SDK


@pytest.fixture
def client(stripe: Stripe, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., sdk.StripeClient]]:
    """Makes clients of the official SDK that wait next to nothing before they try again."""
    monkeypatch.setattr(sdk.HTTPClient, "INITIAL_DELAY", 0.001)
    with requests.Session() as session:
        session.trust_env = False

        def make(key: str = KEY, **options: Any) -> sdk.StripeClient:
            return sdk.StripeClient(
                key,
                base_addresses={"api": stripe.origin},
                http_client=sdk.RequestsClient(session=session, timeout=5),
                max_network_retries=2,
                **options,
            )

        yield make


def test_sdk_creates_and_retrieves(stripe: Stripe, client: Callable[..., sdk.StripeClient]) -> None:
    invoices = client(stripe_account="acct_1").v1.invoices
    made = invoices.create(
        {
            "customer": "cus_1",
            "auto_advance": True,
            "custom_fields": [{"name": "PO", "value": "7"}],
            "metadata": {"order": "7"},
            "expand": ["customer"],
        }
    )
    assert made.customer == "cus_1"
    assert made.metadata is not None
    assert made.metadata["order"] == "7"
    assert made.auto_advance
    assert made.id is not None
    assert invoices.retrieve(made.id, {"expand": ["customer"]}).id == made.id
    headers = dict(stripe.calls[0].headers)
    assert headers["Stripe-Account"] == "acct_1"
    assert made.last_response is not None
    assert made.last_response.headers["stripe-version"] == headers["Stripe-Version"] == sdk.api_version
    assert str(made.last_response.request_id).startswith("req_")


@pytest.mark.parametrize("name", ["close_after", "reset_after", "retry_409", "retry_503", "error_409", "error_503"])
def test_sdk_tries_again_with_one_key_and_one_invoice_results(
    stripe: Stripe, client: Callable[..., sdk.StripeClient], name: str
) -> None:
    stripe.fail_next(name, times=2)
    made = client().v1.invoices.create({"customer": "cus_1"})
    assert stripe.invoices == 1
    assert len(stripe.calls) == 3
    assert len({dict(received.headers)["Idempotency-Key"] for received in stripe.calls}) == 1
    assert made.id is not None
    assert retrieve(stripe, made.id).status == 200


def test_sdk_gets_a_kept_500_each_time_it_tries_again(stripe: Stripe, client: Callable[..., sdk.StripeClient]) -> None:
    stripe.fail_next("error_500_created")
    with pytest.raises(sdk.APIError):
        client().v1.invoices.create({"customer": "cus_1"})
    assert (len(stripe.calls), stripe.invoices, stripe.replays) == (3, 1, 2)


@pytest.mark.parametrize(("name", "raised"), [("no_retry_500", sdk.APIError), ("error_429", sdk.RateLimitError)])
def test_sdk_does_not_try_again_where_stripe_says_so(
    stripe: Stripe, client: Callable[..., sdk.StripeClient], name: str, raised: type[Exception]
) -> None:
    stripe.fail_next(name)
    with pytest.raises(raised):
        client().v1.invoices.create({"customer": "cus_1"})
    assert len(stripe.calls) == 1


def test_sdk_knows_each_error_by_its_class(stripe: Stripe, client: Callable[..., sdk.StripeClient]) -> None:
    invoices = client().v1.invoices
    with pytest.raises(sdk.InvalidRequestError, match="cus_missing"):
        invoices.create({"customer": "cus_missing"})
    with pytest.raises(sdk.InvalidRequestError, match="in_missing"):
        invoices.retrieve("in_missing")
    with pytest.raises(sdk.AuthenticationError):
        client("wrong").v1.invoices.create({"customer": "cus_1"})
    invoices.create({"customer": "cus_1"}, {"idempotency_key": "k"})
    with pytest.raises(sdk.IdempotencyError):
        invoices.create({"customer": "cus_2"}, {"idempotency_key": "k"})


# --- A process of its own


def test_stripe_runs_as_a_process_of_its_own_until_it_is_told_to_stop() -> None:
    root = Path(box.__file__).parents[1]
    command = [sys.executable, "-m", "sandbox.stripe", "--port", "0", "--delay", "0.01"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:")
            response = requests.get(line.split()[-1] + "/_sandbox", timeout=5)
            response.close()
            assert response.json() == {"calls": 0, "invoices": 0, "connections": 1, "replays": 0}
        finally:
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(5) == 0
