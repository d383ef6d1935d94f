"""One call through every stage, through the framework's own front and under its own server."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from datetime import datetime
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from console import audit
from gateway.sinks import File
from policies.idempotency import LEASE
from sandbox import invoice
from sandbox.__main__ import SECRET, UPSTREAM_KEY
from tests.conftest import CUSTOMER, FORM, KEY, OTHER_KEY, PARAMETERS, RESPONSE, TARGET, policy, sha256
from tests.problems import as_replayed, plain, refused, stripe_refused, without_id
from tests.waiting import until
from tests.wire import answered, holding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from sandbox.redis_server import RedisServer
    from sandbox.secret_manager import SecretManager
    from tests.conftest import Clock, Function, Server

JSON = "application/json"
SDK_TARGET = "/ft-4/stripe-1/v1/invoices"
QUERY = TARGET.partition("?")[2]
OTHER_TARGET = "/stripe/invoices/?name=ft-4&connection_name=stripe-2"


def order(number: int, more: str = "") -> str:
    """Write a form that differs from every other number's."""
    return f"{CUSTOMER}&metadata[order_id]={number}{more}"


def assert_chain_holds(gate: Function | Server) -> None:
    with gate.record.path.open(encoding="ascii") as lines:
        assert audit.verify(lines).faults == []


# ---------------------------------------------------------------- the contract


def test_call_raises_one_invoice_and_answers_the_granted_fields(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function()
    response = gate.post()
    assert response.status_code == 200, response.text
    assert upstream.invoices == 1
    assert response.json is not None
    assert list(response.json) == list(dict.fromkeys(name.partition(".")[0] for name in RESPONSE.split(", ")))
    assert response.json["lines"] == {"data": [{"amount": 2000}]}
    assert response.json["customer"] == "cus_MQqeLuPp19Qbk8"
    assert response.json["number"] is None
    assert response.json["audit_id"] == response.headers["Countersign-Audit-Id"]
    assert [entry["kind"] for entry in gate.record.entries()] == ["intent", "outcome"]
    assert_chain_holds(gate)


def test_call_raises_one_invoice_under_the_production_server(
    server: Callable[..., Server], upstream: Appgregator
) -> None:
    running = server()
    status, headers, body = running.call()
    assert status == 200
    assert upstream.invoices == 1
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert headers["ratelimit-policy"] == '"100000/minute";q=100000;w=60'
    assert re.fullmatch(r'"100000/minute";r=99999;t=6[01]', headers["ratelimit"])
    assert headers["countersign-audit-id"] == json.loads(body)["audit_id"]
    assert "set-cookie" not in headers
    running.stop()
    assert running.errors.read_text() == ""
    with running.record.path.open() as lines:
        report = audit.verify(lines, [headers["countersign-audit-id"]])
    assert (report.lines, report.faults, report.doubts) == (4, [], [])


@pytest.mark.parametrize("path", ["/stripe/invoices", "/stripe/invoices/", "/invoices", "/invoices/"])
def test_every_path_of_the_contract_is_the_same_call(
    function: Callable[..., Function], upstream: Appgregator, path: str
) -> None:
    assert function().post(f"{path}?{QUERY}").status_code == 200
    (call,) = upstream.calls
    assert (call.path, call.query, call.body.decode()) == ("/stripe/invoices/", QUERY, CUSTOMER)


@pytest.mark.parametrize("query", ["connection_name=stripe-1&name=ft-4", "name=ft%2D4&connection%5Fname=stripe%2d1"])
def test_query_may_be_written_in_any_way_and_goes_out_in_one(
    function: Callable[..., Function], upstream: Appgregator, query: str
) -> None:
    assert function().post(f"/stripe/invoices/?{query}").status_code == 200
    assert upstream.calls[0].query == QUERY


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_sdk_of_stripe_needs_only_another_address(
    function: Callable[..., Function], upstream: Appgregator, scheme: str
) -> None:
    response = function().post(SDK_TARGET, key=None, Authorization=f"{scheme} {KEY}", Stripe_Version="2024-06-20")
    assert response.status_code == 200, response.text
    assert (upstream.calls[0].path, upstream.calls[0].query) == ("/stripe/invoices/", QUERY)


@pytest.mark.parametrize("target", [TARGET, SDK_TARGET])
@pytest.mark.parametrize("header", ["x-api-key", "Authorization"])
def test_either_header_may_bring_the_key_at_either_path(
    function: Callable[..., Function], target: str, header: str
) -> None:
    value = {"Authorization": f"Bearer {KEY}"} if header == "Authorization" else {"x_api_key": KEY}
    assert function().post(target, key=None, **value).status_code == 200


@pytest.mark.parametrize(
    ("media", "body"),
    [
        (FORM, "description=a+b%26c&metadata[order_id]=7&days_until_due=30&customer=cus_1"),
        (FORM, "customer=cus_1&days_until_due=30&description=a%20b%26c&metadata%5Border_id%5D=7"),
        (JSON, '{"metadata": {"order_id": 7}, "days_until_due": 30, "customer": "cus_1", "description": "a b&c"}'),
        (JSON, ('{"days_until_due":"30","description":"a b\\u0026c","custom_fields":[],"customer":"cus_1",'
                '"metadata":{"order_id":"7","cost_center":null}}')),
    ],
)  # fmt: skip
def test_form_and_json_go_out_as_the_one_canonical_form(
    function: Callable[..., Function], upstream: Appgregator, media: str, body: str
) -> None:
    response = function().post(body=body, media=media)
    assert response.status_code == 200, response.text
    assert upstream.calls[0].body == b"customer=cus_1&days_until_due=30&description=a+b%26c&metadata%5Border_id%5D=7"


def test_lists_and_text_of_any_language_go_out_canonically(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    body = {"customer": "cus_1", "description": "Grüße, 世界\n", "custom_fields": [{"name": "PO", "value": "1"}]}
    response = function().post(body=json.dumps(body), media=JSON)
    assert response.json is not None
    assert response.json["description"] == "Grüße, 世界\n"
    assert upstream.calls[0].body == (
        b"custom_fields%5B0%5D%5Bname%5D=PO&custom_fields%5B0%5D%5Bvalue%5D=1&customer=cus_1"
        b"&description=Gr%C3%BC%C3%9Fe%2C+%E4%B8%96%E7%95%8C%0A"
    )


def test_no_header_of_the_caller_goes_upstream(server: Callable[..., Server], upstream: Appgregator) -> None:
    canaries = {
        name: f"canary-{number}"
        for number, name in enumerate(
            ["X-Forwarded-For", "Forwarded", "Stripe-Version", "Cookie", "Accept",
             "Accept-Encoding", "Accept-Language", "Idempotency-Key", "User-Agent", "X-Canary", "Referer", "Origin",
             "Via", "Proxy-Authorization", "X-HTTP-Method-Override", "traceparent", "Function-Execution-Id"]
        )
    }  # fmt: skip
    status, _, _ = server().call(headers={**canaries, "Host": "canary.example", "x-api-key": KEY}, key=None)
    assert status == 200
    (call,) = upstream.calls
    sent = {name.lower(): value for name, value in call.headers}
    assert len(sent) == len(call.headers)
    assert sent == {
        "host": urlsplit(upstream.origin).netloc,
        "user-agent": "countersign",
        "accept": "application/json",
        "accept-encoding": "identity",
        "x-api-key": UPSTREAM_KEY,
        "content-type": FORM,
        "content-length": str(len(CUSTOMER)),
    }


@pytest.mark.parametrize("header", ["Stripe-Account", "Stripe-Context"])
def test_account_in_a_header_is_refused_where_no_account_can_be_chosen(
    server: Callable[..., Server], upstream: Appgregator, header: str
) -> None:
    running = server()
    refused(running.call(headers={header: "acct_1"}), 400, "account-not-granted")
    assert not upstream.calls
    assert running.call(headers={header: ""})[0] == 200


# ---------------------------------------------------------------- what the policy says

FIXED = PARAMETERS + "collection_method: {fixed: send_invoice}\n"


@pytest.mark.parametrize("body", [CUSTOMER, f"{CUSTOMER}&collection_method=send_invoice"])
def test_fixed_parameter_is_sent_whatever_the_caller_writes(
    function: Callable[..., Function], upstream: Appgregator, body: str
) -> None:
    assert function(policy(upstream.origin, parameters=FIXED)).post(body=body).status_code == 200
    assert upstream.calls[0].body == b"collection_method=send_invoice&" + CUSTOMER.encode()


def test_fixed_parameter_cannot_be_changed(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function(policy(upstream.origin, parameters=FIXED))
    response = gate.post(body=f"{CUSTOMER}&collection_method=charge_automatically")
    problem = refused(response, 400, "parameter-invalid")
    assert (problem["parameter"], problem["decided_by"]) == ("collection_method", "policy")
    assert not upstream.calls


def test_unlisted_and_nonexistent_connections_are_answered_alike(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function()
    answers = [
        plain(gate.post(target))
        for target in (
            OTHER_TARGET,
            OTHER_TARGET.replace("stripe-2", "nowhere"),
            OTHER_TARGET.replace("ft-4", "nowhere"),
        )
    ]
    told = [
        stripe_refused(gate.post(target), 403, "connection-not-granted")
        for target in ("/ft-4/stripe-2/v1/invoices", "/no/where/v1/invoices")
    ]
    assert told[0].keys() == told[1].keys()
    assert told[0]["message"].partition("(")[0] == told[1]["message"].partition("(")[0]
    problems = [refused(answer, 403, "connection-not-granted") for answer in answers]
    assert all(without_id(problem) == without_id(problems[0]) for problem in problems)
    assert len({len(answer[2]) for answer in answers}) == 1
    shown = [{k: v for k, v in headers.items() if k != "countersign-audit-id"} for _, headers, _ in answers]
    assert all(headers == shown[0] for headers in shown)
    assert not upstream.calls


def test_connection_is_refused_before_the_body_is_looked_at(function: Callable[..., Function]) -> None:
    """Else the answer to a wrong body would tell which connections exist."""
    refused(function().post(OTHER_TARGET, body="customer[]=x"), 403, "connection-not-granted")


def test_unknown_revoked_and_expired_keys_are_answered_alike(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    written = f"- key: {{id: k1, sha256: {sha256(KEY)}}}"
    document = policy(upstream.origin)
    assert written in document
    new = f"- key: {{id: k2, sha256: {sha256('csk_another')}}}"
    expired = f"- key: {{id: k1, sha256: {sha256(KEY)}, expires: 2020-01-01}}"
    answers = [
        plain(function(document).post(key="csk_nobody_has_ever_had")),
        plain(function(document.replace(written, new)).post(key=KEY)),
        plain(function(document.replace(written, expired)).post(key=KEY)),
        plain(function(document.replace(written, f"{expired}\n      {new}")).post(key=KEY)),
    ]
    problems = [refused(answer, 401, "credential-unknown") for answer in answers]
    assert all(without_id(problem) == without_id(problems[0]) for problem in problems)
    shown = [{k: v for k, v in headers.items() if k != "countersign-audit-id"} for _, headers, _ in answers]
    assert all(headers == shown[0] for headers in shown)
    assert not upstream.calls


def test_several_keys_of_one_caller_work_at_once_until_each_expires(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    written = f"- key: {{id: k1, sha256: {sha256(KEY)}}}"
    keys = (
        f"- key: {{id: old, sha256: {sha256(KEY)}, expires: 2999-01-01}}\n"
        f"      - key: {{id: new, sha256: {sha256('csk_new')}}}"
    )
    gate = function(policy(upstream.origin).replace(written, keys))
    assert [gate.post(key=key).status_code for key in (KEY, "csk_new")] == [200, 200]
    assert [entry["credential"] for entry in gate.record.entries("intent")] == ["old", "new"]


# ---------------------------------------------------------------- the same key again


def test_repeated_key_is_answered_as_before_sends_nothing_and_uses_up_nothing(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function(policy(upstream.origin, limits="2/minute"))
    first = gate.post(Idempotency_Key="order-1")
    again = [gate.post(Idempotency_Key="order-1") for _ in range(5)]
    assert "Idempotent-Replayed" not in first.headers
    for response in again:
        assert (response.status_code, response.data) == (200, as_replayed(first.data))
        assert response.headers["Idempotent-Replayed"] == "true"
        assert "r=1;" in response.headers["RateLimit"]
        assert response.headers["Countersign-Audit-Id"] != first.headers["Countersign-Audit-Id"]
    assert (upstream.invoices, len(upstream.calls)) == (1, 1)
    assert [e["kind"] for e in gate.record.entries()] == ["intent", "outcome"] + ["replay"] * 5
    assert gate.post(Idempotency_Key="order-2").status_code == 200
    refused(gate.post(Idempotency_Key="order-3"), 429, "limit-reached")
    assert gate.post(Idempotency_Key="order-1").data == as_replayed(first.data)  # even with the limit used up
    assert_chain_holds(gate)


def test_repeated_key_may_come_in_another_notation(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function()
    first = gate.post(body=order(7, "&description=x"), Idempotency_Key="a")
    body = '{"description": "x", "metadata": {"order_id": 7}, "customer": "cus_MQqeLuPp19Qbk8"}'
    again = gate.post("/invoices?" + QUERY, body, media=JSON, Idempotency_Key="a")
    assert again.data == as_replayed(first.data)
    assert upstream.invoices == 1


def test_key_of_another_call_is_refused(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function()
    gate.post(body=order(1), Idempotency_Key="a")
    refused(gate.post(body=order(2), Idempotency_Key="a"), 422, "idempotency-key-reused")
    assert upstream.invoices == 1
    assert gate.post(body=order(1), Idempotency_Key="a").headers["Idempotent-Replayed"] == "true"


def test_key_of_another_caller_is_another_key(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function()
    gate.post(Idempotency_Key="a")
    assert gate.post(OTHER_TARGET, key=OTHER_KEY, Idempotency_Key="a").status_code == 200
    assert upstream.invoices == 2


def test_call_without_a_key_is_never_a_repeat(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function()
    ids = {(gate.post().json or {})["id"] for _ in range(3)}
    assert (len(ids), upstream.invoices) == (3, 3)


def test_required_key_that_is_missing_is_refused(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function(policy(upstream.origin, idempotency="required"))
    assert refused(gate.post(), 400, "idempotency-key-missing")["decided_by"] == "policy"
    assert not upstream.calls
    assert gate.post(Idempotency_Key="order-1").status_code == 200


def test_parameter_may_be_the_key(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function(policy(upstream.origin, idempotency='{from: "metadata[order_id]"}'))
    first = gate.post(body=order(7), Idempotency_Key="sdk-made-1")
    again = gate.post(body=order(7), Idempotency_Key="sdk-made-2")
    assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(first.data), "true")
    assert upstream.invoices == 1
    assert gate.post(body=order(8)).status_code == 200
    refused(gate.post(body=order(7, "&description=x")), 422, "idempotency-key-reused")
    problem = refused(gate.post(Idempotency_Key="order-1"), 400, "idempotency-key-missing")
    assert problem["parameter"] == "metadata[order_id]"
    assert upstream.invoices == 2


def test_callers_at_once_with_one_key_raise_one_invoice(server: Callable[..., Server]) -> None:
    with holding(answered(invoice.fresh(dict([CUSTOMER.split("=")])))) as held:
        running = server(policy(held.origin))
        with ThreadPoolExecutor(12) as callers:
            calls = [callers.submit(running.call, headers={"Idempotency-Key": "a"}) for _ in range(12)]
            others = [one.result() for _, one in zip(range(11), as_completed(calls), strict=False)]
            held.goes_on.set()
    assert [answer[0] for answer in others] == [503] * 11  # which every client repeats by itself
    for answer in others:
        refused(answer, 503, "idempotency-key-in-use")
        assert int(answer[1]["retry-after"]) >= 1
    assert Counter(one.result()[0] for one in calls) == {200: 1, 503: 11}
    assert len(held.requests) == 1
    assert running.call(headers={"Idempotency-Key": "a"})[1]["idempotent-replayed"] == "true"


@pytest.mark.parametrize(
    ("customer", "status", "code"),
    [("cus_fault_error_400", 400, "parameter_unknown"), ("cus_fault_error_402", 402, "card_declined"),
     ("cus_missing", 404, "resource_missing")],
)  # fmt: skip
def test_refusal_in_stripes_own_words_is_mapped_and_frees_the_key(
    function: Callable[..., Function], upstream: Appgregator, customer: str, status: int, code: str
) -> None:
    gate = function()
    first = gate.post(body=f"customer={customer}", Idempotency_Key="a")
    again = gate.post(body=f"customer={customer}", Idempotency_Key="a")
    for response in (first, again):
        problem = refused(response, status, "upstream-rejected")
        assert problem["decided_by"] == "upstream"
        assert problem["upstream_code"] == code
        assert problem["detail"].endswith("Nothing was created.")
        assert "Idempotent-Replayed" not in response.headers
    assert (upstream.invoices, len(upstream.calls)) == (0, 2)
    mended = gate.post(Idempotency_Key="a")
    assert (mended.status_code, upstream.invoices) == (200, 1)
    assert gate.post(Idempotency_Key="a").data == as_replayed(mended.data)
    assert [entry["result"] for entry in gate.record.entries("outcome")] == ["freed", "freed", "succeeded"]


# ---------------------------------------------------------------- a try without sending


def test_validate_only_shows_what_would_be_sent_and_uses_up_nothing(
    function: Callable[..., Function], upstream: Appgregator, secret_manager: SecretManager
) -> None:
    gate = function(policy(upstream.origin, limits="1/minute", parameters=FIXED))
    for _ in range(3):
        response = gate.post(f"{TARGET}&validate_only=true", order(7), Idempotency_Key="a")
        assert response.status_code == 200
        shown: dict[str, Any] = response.json or {}
        assert shown == {
            "validate_only": True,
            "would": "send",
            "detail": "This call would be sent. Nothing was sent or used up now, and what the upstream would say to it "
            "is not foreseen.",
            "would_send": {
                "method": "POST",
                "url": f"{upstream.origin}{TARGET}",
                "headers": {"x-api-key": "(hidden)", "Content-Type": FORM, "Accept": "application/json"},
                "body": "collection_method=send_invoice&customer=cus_MQqeLuPp19Qbk8&metadata%5Border_id%5D=7",
            },
            "would_answer": RESPONSE.split(", "),
            "left": [{"kind": "limit", "detail": "1 of 1 call a minute is left.", "limit": 1, "window": 60, "left": 1}],
            "key": {"state": "new", "detail": "This idempotency key is new."},
            "audit_id": response.headers["Countersign-Audit-Id"],
        }
    assert not upstream.calls
    assert len(secret_manager.accesses) == 1  # whether there is a key, and then it is kept
    assert [(entry["kind"], entry["would"]) for entry in gate.record.entries()] == [("preview", "send")] * 3
    sent = gate.post(body=order(7), Idempotency_Key="a")  # neither the key nor the one call a minute is used up
    assert (sent.status_code, "Idempotent-Replayed" in sent.headers) == (200, False)
    assert upstream.calls[0].body.decode() == shown["would_send"]["body"]
    assert_chain_holds(gate)


def test_validate_only_is_refused_for_what_the_call_would_be_refused_for(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function(policy(upstream.origin, idempotency="required"))
    trial = f"{TARGET}&validate_only=true"
    refused(gate.post(trial, Idempotency_Key="a", body=f"{CUSTOMER}&amount=1"), 400, "parameter-not-granted")
    refused(gate.post(trial), 400, "idempotency-key-missing")
    refused(gate.post(trial, key="nobody"), 401, "credential-unknown")
    refused(gate.post(f"{OTHER_TARGET}&validate_only=true"), 403, "connection-not-granted")
    assert gate.post(f"{SDK_TARGET}?validate_only=true", Idempotency_Key="a").status_code == 200
    assert gate.post(f"{TARGET}&validate_only=false", Idempotency_Key="a").status_code == 200
    assert upstream.invoices == 1


# ---------------------------------------------------------------- limits


def test_limit_is_told_kept_and_nobody_elses(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function(policy(upstream.origin, limits="3/minute, 100/hour"))
    left = [gate.post().headers["RateLimit"] for _ in range(3)]
    assert [re.findall(r'"(\S+)";r=(\d+)', text) for text in left] == [
        [("3/minute", str(2 - n)), ("100/hour", str(99 - n))] for n in range(3)
    ]
    response = gate.post()
    problem = refused(response, 429, "limit-reached")
    assert 1 <= int(response.headers["Retry-After"]) == problem["retry_after"] <= 61
    assert problem["decided_by"] == "policy"
    assert problem["detail"].startswith("You have reached your limit of 3 calls a minute. Nothing was sent. ")
    assert re.search(r" You can call again in \d+ seconds?\.$", problem["detail"])
    assert (problem["limit"], problem["window"], problem["left"]) == (3, 60, 0)
    assert response.headers["RateLimit-Policy"] == '"3/minute";q=3;w=60, "100/hour";q=100;w=3600'
    assert '"3/minute";r=0;' in response.headers["RateLimit"]
    assert upstream.invoices == 3
    assert gate.post(OTHER_TARGET, key=OTHER_KEY, Idempotency_Key="a").status_code == 200
    assert_chain_holds(gate)


def test_refused_call_uses_up_nothing(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function(policy(upstream.origin, limits="2/minute"))
    for _ in range(3):
        gate.post(body="customer[]=x")
        gate.post(body=f"{CUSTOMER}&amount=1")
        gate.post(OTHER_TARGET)
    assert "r=1;" in gate.post().headers["RateLimit"]


@pytest.mark.usefixtures("memory")
def test_call_passes_again_once_its_wait_is_over(
    function: Callable[..., Function], upstream: Appgregator, clock: Clock
) -> None:
    gate = function(policy(upstream.origin, limits="2/second"))
    assert [gate.post().status_code for _ in range(3)] == [200, 200, 429]
    clock.tick(int(gate.post().headers["Retry-After"]))
    assert gate.post().status_code == 200


def test_limit_is_exact_under_twenty_callers_at_once(server: Callable[..., Server], upstream: Appgregator) -> None:
    running = server(policy(upstream.origin, limits="25/hour"))
    with ThreadPoolExecutor(20) as callers:
        answers = list(callers.map(lambda _: running.call(), range(60)))
    assert sorted(answer[0] for answer in answers) == [200] * 25 + [429] * 35
    assert upstream.invoices == 25
    for answer in answers:
        if answer[0] == 429:
            refused(answer, 429, "limit-reached")
    assert_chain_holds(running)


def test_ceiling_of_a_connection_is_for_all_its_callers(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    document = policy(upstream.origin, limits="1/minute")
    assert "ceiling: 100000/second" in document
    document = document.replace("ceiling: 100000/second", "ceiling: 3/minute")
    third = document.partition("  other:\n")[0].partition("callers:\n")[2]
    for name, key in (("second", "csk_second"), ("third", "csk_third"), ("fourth", "csk_fourth")):
        document += third.replace("  app:", f"  {name}:").replace(sha256(KEY), sha256(key))
    gate = function(document)
    for key in (KEY, "csk_second", "csk_third"):
        assert gate.post(key=key).status_code == 200
    response = gate.post(key="csk_fourth")
    problem = refused(response, 429, "ceiling-reached")
    assert 1 <= int(response.headers["Retry-After"]) == problem["retry_after"] <= 61
    # Others used it up, and how much that was is not this caller's business.
    assert not {"limit", "window", "left"} & problem.keys()
    assert "3" not in re.sub(r" You can call again .*", "", problem["detail"])
    assert '"1/minute";r=1;' in response.headers["RateLimit"]  # its own limit is untouched
    assert gate.post(OTHER_TARGET, key=OTHER_KEY, Idempotency_Key="a").status_code == 200
    assert upstream.invoices == 4


# ---------------------------------------------------------------- the key


def test_rotated_key_is_fetched_once_the_upstream_refuses_the_old(
    function: Callable[..., Function], upstream: Appgregator, secret_manager: SecretManager
) -> None:
    gate = function()
    assert gate.post().status_code == 200
    secret_manager.add(SECRET, b"rotated-upstream-key")
    upstream.accept("rotated-upstream-key")
    assert gate.post(Idempotency_Key="a").status_code == 200
    assert gate.post().status_code == 200
    assert len(secret_manager.accesses) == 2
    keys = [value for call in upstream.calls for name, value in call.headers if name.lower() == "x-api-key"]
    assert keys == [UPSTREAM_KEY, UPSTREAM_KEY, "rotated-upstream-key", "rotated-upstream-key"]
    assert [entry["attempts"] for entry in gate.record.entries("outcome")] == [1, 2, 1]
    assert upstream.invoices == 3


def test_last_good_key_serves_while_secret_manager_is_down(
    function: Callable[..., Function],
    upstream: Appgregator,
    secret_manager: SecretManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.secrets.FRESH_SECONDS", 0.01)
    monkeypatch.setattr("gateway.secrets.PAUSE_SECONDS", 60.0)
    gate = function()
    assert gate.post().status_code == 200
    secret_manager.down()
    time.sleep(0.02)
    assert gate.post().status_code == 200
    asked = len(secret_manager.accesses)
    assert asked >= 2
    assert gate.post().status_code == 200
    assert len(secret_manager.accesses) == asked  # for a while it is not asked again
    assert upstream.invoices == 3


def test_last_good_key_serves_while_the_newest_version_holds_no_key(
    function: Callable[..., Function],
    upstream: Appgregator,
    secret_manager: SecretManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.secrets.FRESH_SECONDS", 0.01)
    monkeypatch.setattr("gateway.secrets.PAUSE_SECONDS", 0.01)
    gate = function()
    assert gate.post().status_code == 200
    secret_manager.add(SECRET, b"")
    for _ in range(3):
        time.sleep(0.02)
        assert gate.post().status_code == 200
    assert len(secret_manager.accesses) >= 3  # it was asked
    [line] = [line for line in gate.record.lines() if line["countersign"]["kind"] == "secret"]
    assert line["severity"] == "ERROR"
    assert line["message"].startswith(f"secret refused: {SECRET}/versions/latest: version 2 holds no key: ")
    assert upstream.invoices == 4
    assert_chain_holds(gate)


def test_secret_manager_that_was_never_up_means_that_nothing_is_sent(
    function: Callable[..., Function],
    upstream: Appgregator,
    secret_manager: SecretManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.secrets.PAUSE_SECONDS", 1.0)
    secret_manager.down()
    gate = function(policy(upstream.origin, limits="1/minute"))
    response = gate.post(Idempotency_Key="a")
    refused(response, 503, "secret-unavailable")
    assert int(response.headers["Retry-After"]) >= 1
    assert not upstream.calls
    secret_manager.up()
    time.sleep(int(response.headers["Retry-After"]))
    assert gate.post(Idempotency_Key="a").status_code == 200  # nothing was used up, and it is asked again


@pytest.mark.parametrize("fault", ["corrupt", "omit_checksum"])
def test_key_whose_checksum_does_not_fit_is_not_used(
    function: Callable[..., Function], upstream: Appgregator, secret_manager: SecretManager, fault: str
) -> None:
    setattr(secret_manager, fault, True)
    refused(function().post(), 503, "secret-unavailable")
    assert not upstream.calls


def test_destroyed_key_is_not_used(
    function: Callable[..., Function], upstream: Appgregator, secret_manager: SecretManager
) -> None:
    secret_manager.destroy(SECRET, 1)
    gate = function()
    refused(gate.post(), 503, "secret-unavailable")
    assert not upstream.calls
    (entry,) = gate.record.entries()
    assert entry["note"] == "FailedPrecondition"


def test_one_fetch_serves_all_who_wait_for_the_first(
    server: Callable[..., Server], upstream: Appgregator, secret_manager: SecretManager
) -> None:
    secret_manager.delay = 0.5
    running = server()
    with ThreadPoolExecutor(12) as callers:
        statuses = list(callers.map(lambda _: running.call()[0], range(12)))
    assert statuses == [200] * 12
    assert len(secret_manager.accesses) == 1


# ---------------------------------------------------------------- the record


def test_record_tells_the_decision_and_no_value_that_the_policy_does_not_list(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function()
    response = gate.post(body=order(4711, "&description=canary"), Idempotency_Key="canary-key")
    intent, outcome = gate.record.entries()
    assert intent["parameters"].keys() == {"customer", "description", "metadata[order_id]"}
    assert intent["values"] == {"metadata[order_id]": "4711"}
    assert (intent["caller"], intent["credential"], intent["connection"], intent["operation"], intent["secret"]) == (
        "app", "k1", "billing", "invoices.create", "1",
    )  # fmt: skip
    assert (outcome["result"], outcome["status"], outcome["upstream_status"]) == ("succeeded", 200, 200)
    assert outcome["created"] == (response.json or {})["id"]
    text = gate.record.text()
    for canary in ("cus_MQqeLuPp19Qbk8", "canary", KEY, UPSTREAM_KEY):
        assert canary not in text


def test_equal_values_have_equal_digests_that_another_process_does_not_share(
    function: Callable[..., Function],
) -> None:
    gate = function()
    gate.post()
    gate.post()
    first, second = (entry["parameters"]["customer"] for entry in gate.record.entries("intent"))
    assert first == second
    another = function()
    another.post()
    assert another.record.entries("intent")[-1]["parameters"]["customer"] != first


def test_audit_id_of_every_answer_leads_to_its_line(function: Callable[..., Function]) -> None:
    gate = function()
    calls: list[dict[str, Any]] = [
        {},
        {"Idempotency_Key": "a"},
        {"Idempotency_Key": "a"},
        {"target": f"{TARGET}&validate_only=true"},
        {"target": OTHER_TARGET},
        {"key": "nobody"},
        {"body": "customer=cus_missing"},
        {"body": "customer=cus_fault_empty"},
        {"media": "text/plain"},
    ]
    ids = [gate.post(**call).headers["Countersign-Audit-Id"] for call in calls]
    assert len(set(ids)) == len(calls)
    kinds = {entry["audit_id"]: entry["kind"] for entry in reversed(gate.record.entries())}
    assert [kinds[one] for one in ids] == [
        "intent", "intent", "replay", "preview", "refusal", "refusal", "intent", "intent", "refusal",
    ]  # fmt: skip
    with gate.record.path.open() as lines:
        assert audit.verify(lines, ids).faults == []
    with gate.record.path.open() as lines:
        assert audit.verify(lines, [ids[0][:-1] + "x"]).faults


def test_trace_of_the_platform_is_on_every_line(function: Callable[..., Function]) -> None:
    gate = function(GOOGLE_CLOUD_PROJECT="acme")
    gate.post(traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    gate.post(X_Cloud_Trace_Context=f"{'c' * 32}/255;o=1")
    traces = [
        (line.get("logging.googleapis.com/trace"), line.get("logging.googleapis.com/spanId"))
        for line in gate.record.lines()[1:]
    ]
    assert (
        traces
        == [(f"projects/acme/traces/{'a' * 32}", "b" * 16)] * 2
        + [(f"projects/acme/traces/{'c' * 32}", "00000000000000ff")] * 2
    )


def test_full_disk_under_the_record_means_that_nothing_is_sent(
    function: Callable[..., Function], upstream: Appgregator, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = function(AUDIT="file:/dev/full")
    for response in (gate.post(), gate.post(f"{TARGET}&validate_only=true")):
        refused(response, 503, "record-unavailable")
        assert response.headers["Countersign-Audit-Id"]
    refused(gate.post(key="nobody"), 401, "credential-unknown")  # a refusal is given all the same
    assert not upstream.calls
    cries = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {cry["severity"] for cry in cries} == {"ALERT"}
    assert "could not be recorded" in cries[0]["message"]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe: a record that fails when its reader goes, and works again when one comes back."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_record_that_breaks_mid_run_stops_sends_and_gives_all_back(
    function: Callable[..., Function], upstream: Appgregator, pipe: Path
) -> None:
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    gate = function(policy(upstream.origin, limits="2/minute"), AUDIT=f"file:{pipe}")
    assert gate.post().status_code == 200
    lines = os.read(reader, 65536)
    os.close(reader)
    began = time.monotonic()
    for _ in range(50):
        refused(gate.post(Idempotency_Key="a"), 503, "record-unavailable")
    assert time.monotonic() - began < 20  # the half a second that a full record is waited for would make it 25
    assert upstream.invoices == len(upstream.calls) == 1
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    after = gate.post(Idempotency_Key="a")
    assert (after.status_code, "Idempotent-Replayed" in after.headers) == (200, False)
    assert "r=0;" in after.headers["RateLimit"]  # of two calls, those that were not sent used none
    lines += os.read(reader, 65536)
    os.close(reader)
    assert audit.verify(lines.decode().splitlines(), [after.headers["Countersign-Audit-Id"]]).faults == []


def test_record_that_nobody_reads_is_given_up_within_a_second(
    function: Callable[..., Function], upstream: Appgregator, pipe: Path
) -> None:
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    gate = function(AUDIT=f"file:{pipe}")
    filler = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    assert gate.post().status_code == 200
    with suppress(BlockingIOError):
        while True:
            os.write(filler, b"\n" * 512)
    began = time.monotonic()
    with ThreadPoolExecutor(50) as callers:
        for response in callers.map(lambda _: gate.post(), range(50)):
            refused(response, 503, "record-unavailable")
    assert time.monotonic() - began < 20  # 0.5 s where nothing else runs; one after the other would make it 25
    assert upstream.invoices == 1
    os.close(filler)
    os.close(reader)


def test_outcome_that_cannot_be_recorded_does_not_hide_a_success(
    function: Callable[..., Function],
    upstream: Appgregator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gate = function()
    written = File.write

    def until_the_outcome(sink: File, line: bytes) -> None:
        if b'"kind":"outcome"' in line:
            raise OSError
        written(sink, line)

    monkeypatch.setattr(File, "write", until_the_outcome)
    assert gate.post().status_code == 200
    monkeypatch.undo()
    assert upstream.invoices == 1
    assert "could not be recorded" in capsys.readouterr().err


# ---------------------------------------------------------------- what nobody thought of


def test_unforeseen_error_before_the_send_is_a_500_whose_text_stays_here(
    function: Callable[..., Function],
    upstream: Appgregator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("canary " + UPSTREAM_KEY)

    gate = function()
    monkeypatch.setattr("gateway.stores.memory.Memory._claim", broken)
    response = gate.post(Idempotency_Key="a")
    refused(response, 500, "unforeseen")
    assert not upstream.calls
    (entry,) = gate.record.entries()
    assert re.fullmatch(r"ZeroDivisionError in broken:\d+", entry["note"])
    seen = response.text + gate.record.text() + "".join(capsys.readouterr())
    for word in ("canary", UPSTREAM_KEY, "Traceback", "ZeroDivisionError(", ".py"):
        assert word not in seen
    monkeypatch.undo()
    assert gate.post(Idempotency_Key="a").status_code == 200


def test_unforeseen_error_after_the_send_leaves_the_outcome_unknown(
    function: Callable[..., Function], upstream: Appgregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("canary")

    gate = function()
    monkeypatch.setattr("policies.outcomes.judge", broken)
    response = gate.post(Idempotency_Key="a")
    refused(response, 424, "outcome-unknown")
    intent, refusal = gate.record.entries()
    assert refusal["note"].startswith("ZeroDivisionError in broken")
    assert response.headers["Countersign-Audit-Id"] == intent["audit_id"] == refusal["audit_id"]
    monkeypatch.undo()
    refused(gate.post(Idempotency_Key="a"), 503, "idempotency-key-in-use")
    assert upstream.invoices == 1
    assert_chain_holds(gate)


def test_caller_that_hangs_up_gets_its_answer_when_it_comes_back(
    server: Callable[..., Server],
) -> None:
    with holding(answered(invoice.fresh(dict([CUSTOMER.split("=")])))) as held:
        running = server(policy(held.origin))
        with closing(HTTPConnection("127.0.0.1", running.port)) as caller:
            caller.request("POST", TARGET, CUSTOMER, {"Content-Type": FORM, "x-api-key": KEY, "Idempotency-Key": "a"})
            held.wait()
        held.goes_on.set()
        until(lambda: running.record.entries("outcome"))
        status, headers, _ = running.call(headers={"Idempotency-Key": "a"})
        assert (status, headers["idempotent-replayed"]) == (200, "true")
        assert len(held.requests) == 1


# ---------------------------------------------------------------- on a store that instances share


def test_two_instances_on_one_redis_raise_one_invoice_for_one_key(
    server: Callable[..., Server], upstream: Appgregator, redis_url: str
) -> None:
    first, second = server(STORE=redis_url), server(STORE=redis_url)
    headers = {"Idempotency-Key": "order-1"}
    status, _, body = first.call(headers=headers)
    again, replayed, repeated = second.call(headers=headers)
    assert (status, again) == (200, 200)
    assert repeated == as_replayed(body)
    assert replayed["idempotent-replayed"] == "true"
    assert upstream.invoices == 1


def test_two_instances_on_one_redis_share_one_limit(
    server: Callable[..., Server], upstream: Appgregator, redis_url: str
) -> None:
    text = policy(upstream.origin, limits="3/minute")
    instances = server(text, STORE=redis_url), server(text, STORE=redis_url)
    assert [instances[number % 2].call()[0] for number in range(6)] == [200, 200, 200, 429, 429, 429]


def test_store_down_is_a_503_that_sends_nothing_and_is_over_when_it_is_back(
    function: Callable[..., Function], upstream: Appgregator, redis_server: RedisServer
) -> None:
    gate = function(STORE=redis_server.url)
    redis_server.kill()
    response = gate.post(Idempotency_Key="order-1")
    refused(response, 503, "store-unavailable")
    assert response.headers["Retry-After"] == "1"
    assert not upstream.calls
    redis_server.start()
    assert gate.post(Idempotency_Key="order-1").status_code == 200
    assert upstream.invoices == 1


def test_success_is_told_even_when_it_cannot_be_kept_and_is_kept_by_the_next_call(
    function: Callable[..., Function],
    redis_server: RedisServer,
) -> None:
    """Redis is killed while the upstream is at work. What the process still owes is paid first."""
    with holding(answered(invoice.fresh(dict([CUSTOMER.split("=")])))) as held, ThreadPoolExecutor(1) as caller:
        gate = function(policy(held.origin), STORE=redis_server.url)
        call = caller.submit(gate.post, Idempotency_Key="order-1")
        held.wait()
        redis_server.kill()
        held.goes_on.set()
        response = call.result()
        assert response.status_code == 200
        (outcome,) = gate.record.entries("outcome")
        assert outcome["alarm"] == "the outcome could not be kept in the store"
        redis_server.start()
        again = gate.post(Idempotency_Key="order-1")
        assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(response.data), "true")
        assert len(held.requests) == 1


def test_kept_answer_is_trimmed_again_when_the_policy_grants_less(
    function: Callable[..., Function], upstream: Appgregator, redis_url: str
) -> None:
    document = policy(
        upstream.origin, response="id, status, customer, lines.data.amount, lines.data.currency, audit_id"
    )
    first = function(document, STORE=redis_url).post(Idempotency_Key="order-1")
    document = policy(upstream.origin, response="status, id, lines.data.amount")
    again = function(document, STORE=redis_url).post(Idempotency_Key="order-1")
    assert first.json is not None
    assert again.json == {"id": first.json["id"], "status": "draft", "lines": {"data": [{"amount": 2000}]}}
    assert again.headers["Idempotent-Replayed"] == "true"
    document = policy(
        upstream.origin, response="id, status, customer, number, lines.data.amount, lines.data.currency, audit_id"
    )
    assert function(document, STORE=redis_url).post(Idempotency_Key="order-1").data == as_replayed(first.data)
    assert upstream.invoices == 1


# ---------------------------------------------------------------- budgets


def budgeted(origin: str, currency: str) -> str:
    text = policy(origin).replace("        idempotency:", "        amount: {max: 2000}\n        idempotency:", 1)
    budget = f"budget: {{currency: {currency}, amount: 4000, per: day}}"
    return text.replace("    owner: tests\n", f"    owner: tests\n    {budget}\n", 1)


def test_caller_over_its_budget_is_refused_before_the_send(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    """The sandbox's invoices come to 2,000 each."""
    document = budgeted(upstream.origin, "usd")
    gate = function(document)
    assert [gate.post().status_code for _ in range(2)] == [200, 200]
    response = gate.post()
    problem = refused(response, 429, "budget-spent")
    wait = int(response.headers["Retry-After"])
    assert 80_000 < wait == problem["retry_after"] <= 86_400 * 129 / 128 + LEASE + 1
    assert problem["detail"].startswith("Your invoices have used up your budget of 40.00 USD a day. Nothing was sent. ")
    when = r" You can call again at \d\d:\d\d UTC on \d+ [A-Z][a-z]+, in 24 hours( \d+ minutes?)?\."
    assert re.search(f"{when}$", problem["detail"])
    assert (problem["limit"], problem["currency"], problem["window"], problem["left"]) == (4000, "usd", 86_400, 0)
    resets = datetime.fromisoformat(problem["resets_at"]).timestamp()
    assert resets == pytest.approx(time.time() + wait, abs=30)
    assert upstream.invoices == 2
    assert gate.post(OTHER_TARGET, "customer=cus_1", key=OTHER_KEY, Idempotency_Key="a").status_code == 200


def test_invoice_in_another_currency_than_the_budget_raises_an_alarm(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    document = budgeted(upstream.origin, "eur")
    gate = function(document)
    assert gate.post().status_code == 200
    (outcome,) = gate.record.entries("outcome")
    assert "no budget of the caller counts" in outcome["alarm"]


# ---------------------------------------------------------------- the stamp


def stamped(origin: str) -> str:
    parameters = "customer: {required: true}\nmetadata: "
    return policy(origin, parameters=parameters, response="id").replace(
        '        record: ["metadata[order_id]"]', '        stamp: "metadata[countersign]"', 1
    )


def test_invoice_carries_the_name_that_the_record_has_of_its_call(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function(stamped(upstream.origin))
    body = f"{CUSTOMER}&metadata[a]=1"
    assert gate.post(body=body, Idempotency_Key="order-1").status_code == 200
    (intent,) = gate.record.entries("intent")
    sent = dict(parse_qsl(upstream.calls[0].body.decode()))
    assert sent["metadata[countersign]"] == intent["ledger"]
    assert gate.post(body=body, Idempotency_Key="order-1").headers["Idempotent-Replayed"] == "true"
    assert gate.post().status_code == 200
    assert b"countersign" not in upstream.calls[1].body


@pytest.mark.parametrize("extra", ["metadata[countersign]=forged", "metadata="])
def test_caller_cannot_write_or_empty_the_stamp(
    function: Callable[..., Function], upstream: Appgregator, extra: str
) -> None:
    gate = function(stamped(upstream.origin))
    refused(gate.post(body=f"{CUSTOMER}&{extra}", Idempotency_Key="order-1"), 400, "parameter-not-granted")
    assert not upstream.calls
