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
from sandbox.approvals import EXPIRES_SECONDS
from sandbox.stripe import DEFAULT_VERSION, FAULTS, KEPT_SECONDS, Rules, Stripe
from tests.waiting import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "sandbox-upstream-key"
FORM = "application/x-www-form-urlencoded"
PATH = "/v1/invoices"
BODY = "customer=cus_1&metadata%5Border%5D=7"
#: Faults after which the client gives up.
UNANSWERED = ("hang", "slow", "working")


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
    stripe: Stripe, body: str | bytes, headers: dict[str, str], call: str = f"POST {PATH}", timeout: float = PATIENCE
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


def tell(stripe: Stripe, form: str, status: int = 200) -> Any:
    """Change what happens, by the door that other processes have."""
    answer = call(stripe, form, path="/_sandbox", authorization=None)
    assert answer.status == status, answer.body
    return answer.json()


def lose(stripe: Stripe, fault: str, key: str) -> None:
    """A call whose answer does not arrive; it has arrived itself, unless it is closed before."""
    calls = len(stripe.calls)
    stripe.fail_next(fault)
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(stripe, BODY, {"Idempotency-Key": key}, timeout=0.2 if fault in UNANSWERED else PATIENCE)
    until(lambda: fault == "close_before" or len(stripe.calls) > calls)


# --- Invoices


def test_create_brings_an_empty_draft_of_0(stripe: Stripe) -> None:
    """Lines come by calls of their own, so a create bills nobody."""
    made = call(stripe).json()
    sums = {name: made[name] for name in made if name.startswith(("amount_", "subtotal", "total"))}
    assert {value for value in sums.values() if not isinstance(value, list)} == {0}
    assert sums.keys() >= {"amount_due", "amount_paid", "amount_remaining", "subtotal", "total", "total_excluding_tax"}
    url = f"/v1/invoices/{made['id']}/lines"
    assert made["lines"] == {"object": "list", "data": [], "has_more": False, "total_count": 0, "url": url}
    assert [made[name] for name in ("status", "number", "hosted_invoice_url", "invoice_pdf")] == ["draft", *[None] * 3]
    assert (made["auto_advance"], made["collection_method"]) == (False, "charge_automatically")
    include = call(stripe, "customer=cus_1&pending_invoice_items_behavior=include")
    assert include.json()["total"] == 0, "nobody has pending items here"


@pytest.mark.parametrize(
    ("version", "more", "status"),
    [
        ("2020-08-27", "", 400), ("2022-07-31", "", 400), ("2022-08-01", "", 200), (DEFAULT_VERSION, "", 200),
        ("2020-08-27", "&pending_invoice_items_behavior=exclude", 200),
    ],
)  # fmt: skip
def test_create_without_lines_was_refused_until_2022_08_01(
    stripe: Stripe, version: str, more: str, status: int
) -> None:
    answer = call(stripe, BODY + more, Stripe_Version=version, key="k")
    assert answer.status == status
    if status == 400:
        assert answer.error["code"] == "invoice_no_customer_line_items"
        assert call(stripe, Stripe_Version=version, key="k").replayed, "it was executed, and so lies under the key"


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


@pytest.mark.parametrize("query", ["?colour=red", "?expand=customer", "?expand[]=customer&customer=cus_1"])
def test_look_up_takes_expand_and_nothing_else(stripe: Stripe, query: str) -> None:
    answer = retrieve(stripe, call(stripe).json()["id"], query)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


def test_blank_metadata_is_none(stripe: Stripe) -> None:
    assert call(stripe, "customer=cus_1&metadata[a]=&metadata[b]=x").json()["metadata"] == {"b": "x"}


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


# --- Modes, accounts and rights

TEST, LIVE, RESTRICTED = "sk_test_51abc", "sk_live_51abc", "rk_live_51abcdefghij"


@pytest.fixture
def company() -> Iterator[Stripe]:
    """An account with keys of both modes, and a key of another account."""
    keys = (TEST, LIVE, RESTRICTED, "sk_live_other")
    with Stripe(keys=keys, accounts={"sk_live_other": "acct_other"}) as running:
        yield running


def sent_by(key: str) -> dict[str, Any]:
    return {"authorization": f"Bearer {key}", "key": "k"}


def test_test_and_live_data_are_apart(company: Stripe) -> None:
    test, live = (call(company, **sent_by(key)).json() for key in (TEST, LIVE))
    assert (test["livemode"], live["livemode"]) == (False, True)
    assert test["id"] != live["id"], "the key of one mode is not that of the other"
    assert call(company, **sent_by(RESTRICTED)).json()["id"] == live["id"], "of the same account and mode"
    assert retrieve(company, live["id"], authorization=f"Bearer {LIVE}").status == 200
    for key, there in ((TEST, "live"), (LIVE, "test")):
        gone = retrieve(company, (live if key == TEST else test)["id"], authorization=f"Bearer {key}")
        assert (gone.status, gone.error["code"]) == (404, "resource_missing")
        assert f"exists in {there} mode" in gone.error["message"]


def test_another_account_has_its_own_data_and_keys(company: Stripe) -> None:
    ours, theirs = (call(company, **sent_by(key)).json()["id"] for key in (LIVE, "sk_live_other"))
    assert ours != theirs
    assert retrieve(company, ours, authorization="Bearer sk_live_other").status == 404
    connected = [call(company, Stripe_Account="acct_1", **sent_by(key)) for key in (LIVE, TEST)]
    assert len({ours, theirs, *(answer.json()["id"] for answer in connected)}) == 4


@pytest.mark.parametrize(
    ("rights", "write", "read"),
    [((), 403, 403), (("rak_invoice_read",), 403, 404), (("rak_invoice_write",), 200, 404),
     (("rak_customer_write", "rak_event_read"), 403, 403)],
)  # fmt: skip
def test_restricted_key_does_what_it_has_the_right_to(
    company: Stripe, rights: tuple[str, ...], write: int, read: int
) -> None:
    """Said before the object is looked for, and nothing is kept."""
    company.restrict(RESTRICTED, *rights)
    made, found = call(company, **sent_by(RESTRICTED)), retrieve(company, "in_1", authorization=f"Bearer {RESTRICTED}")
    assert (made.status, found.status) == (write, read)
    for answer, right in ((made, "rak_invoice_write"), (found, "rak_invoice_read")):
        if answer.status == 403:
            assert (answer.error["type"], answer.error["code"]) == (
                "invalid_request_error", "more_permissions_required",
            )  # fmt: skip
            assert f"{right!r} permission" in answer.error["message"]
            assert RESTRICTED not in answer.error["message"]
    assert call(company, **sent_by(LIVE)).replayed == (write == 200)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{PATH}/upcoming"),
        ("POST", f"{PATH}/in_1"),
        ("POST", "/v1/charges"),
        ("POST", f"{PATH}/"),
        ("DELETE", PATH),
    ],
)
def test_other_addresses_are_not_there(stripe: Stripe, method: str, path: str) -> None:
    answer = call(stripe, method=method, path=path)
    assert (answer.status, answer.error["type"]) == (404, "invalid_request_error")
    assert stripe.calls == ()


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ("description=x", "customer", "parameter_missing"),
        ("customer=", "customer", "parameter_invalid_empty"),
        ("customer=cus_1&description=", "description", "parameter_invalid_empty"),
        (
            "customer=cus_1&custom_fields[0][name]=&custom_fields[0][value]=b",
            "custom_fields[0][name]",
            "parameter_invalid_empty",
        ),
        (
            "customer=cus_1" + "".join(f"&custom_fields[{n}][name]=a&custom_fields[{n}][value]=b" for n in range(5)),
            "custom_fields",
            None,
        ),
        ("customer=cus_1&colour=red", "colour", "parameter_unknown"),
        ("customer=cus_1&metadata[a][b]=x", "metadata[a][b]", "parameter_unknown"),
        ("customer=cus_1&description[a]=x", "description[a]", "parameter_unknown"),
        ("customer=cus_1&days_until_due=soon", "days_until_due", "parameter_invalid_integer"),
        ("customer=cus_1&due_date=", "due_date", "parameter_invalid_integer"),
        ("customer=cus_1&due_date=1900000", "due_date", None),
        ("customer=cus_1&days_until_due=30&collection_method=charge_automatically", "days_until_due", None),
        ("customer=cus_1&collection_method=send_invoice", "days_until_due", None),
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
        "auto_advance=1", "auto_advance=false", "metadata=", "metadata[a]=", "expand[]=customer",
        "expand[0]=a&expand[1]=b", "custom_fields[0][name]=a&custom_fields[0][value]=b",
        "transfer_data[destination]=acct_1",
        "due_date=1900000&collection_method=send_invoice", "days_until_due=30&collection_method=send_invoice",
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
        ({"Stripe_Version": "2026-08-26.preview"}, "2026-08-26.preview"),
    ],
)
def test_answer_names_its_version(stripe: Stripe, sent: dict[str, str], answered: str) -> None:
    assert call(stripe, **sent).headers["stripe-version"] == answered
    assert {name: value for name, value in stripe.calls[0].headers if name == "Stripe-Version"} == {
        name.replace("_", "-"): value for name, value in sent.items()
    }


@pytest.mark.parametrize("version", ["newest", "2024-6-20", "2024-06-20, 2024-06-20", "", "2024-06-20; beta=v1"])
def test_version_that_does_not_exist_is_refused(stripe: Stripe, version: str) -> None:
    answer = call(stripe, Stripe_Version=version, key="k")
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert answer.error["message"] == f"Invalid Stripe API version: {version}"
    assert not call(stripe, key="k").replayed


def test_answer_says_which_call_was_the_first_of_its_key(stripe: Stripe) -> None:
    first, again, other = call(stripe, key="k"), call(stripe, key="k"), call(stripe)
    assert first.headers["original-request"] == first.headers["request-id"] == again.headers["original-request"]
    assert again.headers["request-id"] != first.headers["request-id"]
    assert other.headers["original-request"] is None
    assert first.headers["stripe-should-retry"] == other.headers["stripe-should-retry"] == "false"


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
    for body in ("customer=cus_1&description=b", "customer=cus_1", "customer=cus_1&description=a&footer=x"):
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


def test_key_is_forgotten_when_the_clock_is_moved_through_the_door(stripe: Stripe) -> None:
    first = call(stripe, key="k")
    tell(stripe, f"forward={KEPT_SECONDS - 2}")
    assert call(stripe, key="k").body == first.body
    stripe.forward(2)
    assert not call(stripe, key="k").replayed


def test_key_of_a_get_is_not_looked_at(stripe: Stripe) -> None:
    made = call(stripe, key="k")
    found = retrieve(stripe, made.json()["id"], key="k" * 256)
    assert (found.status, found.replayed, stripe.replays) == (200, False, 0)
    assert retrieve(stripe, "in_1", key="k").status == 404, "and no other parameters of the same key"


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
    faults.bomb()  # made once, and that takes longer than a call may
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
    with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
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
        ("lock_429", 429, {"type": "invalid_request_error", "code": "lock_timeout"}, None),
        ("approval", 400, {"type": "invalid_request_error", "code": "approval_required"}, None),
        ("action_blocked", 400, {"type": "invalid_request_error", "code": "action_blocked"}, None),
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
    assert (answer.headers["stripe-rate-limited-reason"] is None) == (name != "error_429")
    assert answer.headers["original-request"] is None
    assert stripe.invoices == 0
    again = call(stripe, key="k")
    assert (again.status, again.replayed, stripe.invoices) == (200, False, 1)


@pytest.mark.parametrize(
    ("name", "status"), [("redirect_302", 302), ("redirect_307", 307), ("html_404", 404), ("html_502", 502)]
)
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
        ("no_line_items", 400, None, 0),
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


# --- Approvals

PREVIEW = "2026-08-26.preview"


def held(stripe: Stripe, key: str | None = "k", **headers: str) -> dict[str, Any]:
    """Have a create held by a rule; return what Stripe says of its approval."""
    answer = call(stripe, "customer=cus_fault_approval", key=key, **headers)
    assert answer.error["code"] == "approval_required"
    request: dict[str, Any] = answer.error["approval_request"]
    return request


def approval(stripe: Stripe, name: str, version: str | None = PREVIEW, **headers: str) -> Answer:
    path = f"/v2/core/approval_requests/{name}"
    return call(stripe, b"", method="GET", path=path, Stripe_Version=version, **headers)


@pytest.mark.parametrize("status", [400, 402, 403])
def test_action_that_waits_for_a_person_is_told_and_makes_nothing(stripe: Stripe, status: int) -> None:
    stripe.rules = Rules(status=status)
    answer = call(stripe, "customer=cus_fault_approval")
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        status, "invalid_request_error", "approval_required",
    )  # fmt: skip
    request = answer.error["approval_request"]
    name = request.pop("id")
    assert re.fullmatch(r"apreq_[0-9A-Za-z]{24}", name)
    assert name in answer.error["message"]
    assert request == {
        "object": "v2.core.approval_request",
        "action": "invoice.create",
        "status": "requires_review",
        "dashboard_url": f"https://dashboard.stripe.com/approval_requests/{name}",
        "expires_at": "1970-01-08T00:16:40.000Z",
    }
    assert (stripe.invoices, stripe.approvals) == (0, {name: "requires_review"})
    shown = approval(stripe, name)
    assert shown.status == 200
    assert shown.json().items() >= request.items()
    assert (shown.json()["livemode"], shown.json()["status_details"]) == (False, None)


@pytest.mark.parametrize(
    ("decision", "status", "details"),
    [
        ("approve", "succeeded", {"result"}), ("fail", "failed", {"error_code", "error_message", "error_type"}),
        ("reject", "rejected", {"reason"}), ("cancel", "canceled", None), ("expire", "expired", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("door", [False, True])
def test_person_decides_and_stripe_carries_it_out(
    stripe: Stripe, decision: str, status: str, details: set[str] | None, *, door: bool
) -> None:
    name = held(stripe)["id"]
    if door:
        assert tell(stripe, f"{decision}={name}")["approvals"] == {name: status}
    else:
        stripe.decide(name, decision)
    shown = approval(stripe, name).json()
    assert shown["status"] == status
    assert shown["status_details"] == (None if details is None else {status: shown["status_details"][status]})
    assert details is None or shown["status_details"][status].keys() == details
    done = {name for name, when in shown["status_transitions"].items() if when is not None}
    assert done == ({"approved_at"} if decision in {"approve", "fail"} else set()) | {f"{status}_at"}
    assert stripe.invoices == (decision == "approve")
    with pytest.raises(ValueError, match="already"):
        stripe.decide(name, "approve")
    assert stripe.approvals == {name: status}


def test_approved_invoice_is_there_and_is_the_one_that_was_asked_for(stripe: Stripe) -> None:
    name = held(stripe)["id"]
    stripe.decide(name, "approve")
    result = approval(stripe, name).json()["status_details"]["succeeded"]["result"]
    assert result["object"] == "invoice"
    found = retrieve(stripe, result["id"]).json()
    assert (found["id"], found["customer"], found["status"]) == (result["id"], "cus_fault_approval", "draft")


@pytest.mark.parametrize(("decision", "ends"), [("approve", "succeeded"), ("fail", "failed")])
def test_approved_is_not_carried_out_yet(stripe: Stripe, clock: Clock, decision: str, ends: str) -> None:
    stripe.rules = Rules(seconds=60)
    name = held(stripe)["id"]
    stripe.decide(name, decision)
    clock.now += 59
    assert (stripe.approvals, stripe.invoices) == ({name: "requires_execution"}, 0)
    clock.now += 1
    assert (stripe.approvals, stripe.invoices) == ({name: ends}, decision == "approve")


def test_request_that_nobody_decides_expires_in_a_week(stripe: Stripe, clock: Clock) -> None:
    name = held(stripe)["id"]
    clock.now += EXPIRES_SECONDS - 1
    assert stripe.approvals == {name: "requires_review"}
    clock.now += 1
    shown = approval(stripe, name).json()
    assert (shown["status"], shown["status_transitions"]["expired_at"]) == ("expired", shown["expires_at"])
    with pytest.raises(ValueError, match="expired already"):
        stripe.decide(name, "approve")


def test_earlier_preview_has_other_words_for_the_states(stripe: Stripe) -> None:
    tell(stripe, "earlier=true&seconds=60")
    assert held(stripe)["status"] == "pending"
    first, *_ = stripe.approvals
    stripe.decide(first, "approve")
    assert approval(stripe, first).json()["status"] == "approved"
    stripe.forward(60)
    shown = approval(stripe, first).json()
    assert (shown["status"], stripe.approvals[first]) == ("execution_succeeded", "succeeded")


@pytest.mark.parametrize("fault", ["approval", "action_blocked"])
@pytest.mark.parametrize("kept", [False, True])
def test_answer_of_a_rule_is_kept_under_the_key_or_is_not(stripe: Stripe, fault: str, *, kept: bool) -> None:
    tell(stripe, f"kept={str(kept).lower()}&status=403")
    first, second = (call(stripe, f"customer=cus_fault_{fault}", key="k") for _ in range(2))
    assert (first.status, second.status, stripe.invoices) == (403, 403, 0)
    assert (first.replayed, second.replayed) == (False, kept)
    if fault == "approval":
        assert len(stripe.approvals) == (1 if kept else 2)
        for name in stripe.approvals:
            stripe.decide(name, "approve")
        assert stripe.invoices == (1 if kept else 2), "whoever repeats it raises one more"


def test_rule_holds_what_is_executed_and_no_repeat(stripe: Stripe) -> None:
    first = call(stripe, key="k")
    stripe.fail_next("approval")
    assert call(stripe, key="k").body == first.body
    assert call(stripe, key="other").error["code"] == "approval_required"


@pytest.mark.parametrize(
    ("version", "status", "code"),
    [(None, 400, None), ("2026-10-28.endive", 404, "not_found"), ("2026-05-27.preview", 404, "not_found"),
     ("2026-8-26.preview", 400, None), (PREVIEW, 200, None), ("2026-11-25.preview", 200, None)],
)  # fmt: skip
def test_approval_is_looked_up_with_a_version_of_its_preview(
    stripe: Stripe, version: str | None, status: int, code: str | None
) -> None:
    answer = approval(stripe, held(stripe)["id"], version)
    assert answer.status == status
    if status != 200:
        assert answer.error.get("code") == code
        assert ("type" in answer.error) == (status == 400), "v2 writes none"


def test_approval_is_seen_in_its_own_account_and_mode(company: Stripe) -> None:
    name = held(company, authorization=f"Bearer {LIVE}")["id"]
    assert approval(company, name, authorization=f"Bearer {LIVE}").json()["livemode"] is True
    for key in (TEST, "sk_live_other"):
        gone = approval(company, name, authorization=f"Bearer {key}")
        assert (gone.status, gone.error["code"]) == (404, "not_found")
    assert approval(company, name, authorization="Bearer wrong").status == 401
    company.restrict(RESTRICTED, "rak_invoice_write")
    assert approval(company, name, authorization=f"Bearer {RESTRICTED}").status == 403
    company.restrict(RESTRICTED, "approval_requests.write")
    assert approval(company, name, authorization=f"Bearer {RESTRICTED}").status == 200


@pytest.mark.parametrize(
    "form", ["approve=apreq_1", "adopt=apreq_1", "forward=soon", "kept=maybe", "status=418", "fail_next=x"]
)
def test_door_says_what_it_does_not_know(stripe: Stripe, form: str) -> None:
    tell(stripe, form, 400)
    assert tell(stripe, "fail_next=error_402")["approvals"] == {}
    assert call(stripe).status == 402


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
                http_client=sdk.RequestsClient(session=session, timeout=PATIENCE),
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


@pytest.mark.parametrize(
    ("status", "raised"), [(400, sdk.InvalidRequestError), (402, sdk.CardError), (403, sdk.PermissionError)]
)
def test_sdk_does_not_repeat_what_waits_for_a_person_and_finds_what_came_of_it(
    stripe: Stripe, client: Callable[..., sdk.StripeClient], status: int, raised: type[sdk.StripeError]
) -> None:
    stripe.rules = Rules(status=status)
    with pytest.raises(raised) as error:
        client().v1.invoices.create({"customer": "cus_fault_approval"})
    assert len(stripe.calls) == 1
    assert isinstance(error.value.json_body, dict)
    told = error.value.json_body["error"]
    name = told["approval_request"]["id"]
    assert told["code"] == "approval_required"
    stripe.decide(name, "approve")
    path = f"/v2/core/approval_requests/{name}"
    found = client().raw_request("get", path, stripe_version=PREVIEW)
    result = json.loads(str(found.body))["status_details"]["succeeded"]["result"]
    made = client().v1.invoices.retrieve(result["id"])
    assert (made.id, made.amount_due, made.livemode) == (result["id"], 0, False)
    with pytest.raises(sdk.InvalidRequestError):
        client().raw_request("get", path)  # the SDK's own version is no preview


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


def test_invoices_of_a_customer_are_listed_the_newest_first(
    stripe: Stripe, client: Callable[..., sdk.StripeClient]
) -> None:
    made = [client().v1.invoices.create({"customer": name}).id for name in ("cus_1", "cus_2", "cus_1", "cus_1")]
    listed = client().v1.invoices.list({"customer": "cus_1", "limit": 2})
    assert ([one.id for one in listed.data], listed.has_more) == ([made[3], made[2]], True)
    client().v1.invoices.delete(made[3])
    listed = client().v1.invoices.list({"customer": "cus_1"})
    assert ([one.id for one in listed.data], listed.has_more) == ([made[2], made[0]], False)
    for query in ("limit=101", "limit=x", "color=red"):
        assert ask(stripe, "", {}, f"GET {PATH}?{query}").status == 400


def test_stripe_runs_as_a_process_of_its_own_until_it_is_told_to_stop() -> None:
    root = Path(box.__file__).parents[1]
    command = [sys.executable, "-m", "sandbox.stripe", "--port", "0", "--delay", "0.01"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:")
            response = requests.get(line.split()[-1] + "/_sandbox", timeout=PATIENCE)
            response.close()
            assert response.json() == {
                "calls": 0, "invoices": 0, "connections": 1, "replays": 0, "approvals": {},
            }  # fmt: skip
        finally:
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
