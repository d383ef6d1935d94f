"""Each line of the record stands alone, and is what its schema says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

import pytest

from console.audit import verify
from gateway import lines
from gateway.chain import FLOOD
from gateway.record import Record
from policies import document
from policies.callerkeys import checked
from policies.model import Outcome
from policies.outcomes import Reply
from policies.refusals import ParameterNotGranted, PathUnknown, UpstreamRejected
from sandbox.__main__ import ROOT
from tests.conftest import CUSTOMER, KEY, TARGET, policy, sha256
from tests.gateway.conftest import call, granted, sent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.chain import Audit
    from sandbox.appgregator import Appgregator
    from tests.conftest import Clock, Function
    from tests.gateway.conftest import Lines

LABELS = "logging.googleapis.com/labels"
PREVIEW = f"{TARGET}&validate_only=true"
ORDER = f"{CUSTOMER}&metadata[order_id]=o-7"


def spent(origin: str, amount: int = 5000) -> str:
    """A policy whose first caller has a budget, in US cents."""
    budget = f"    budget: {{currency: usd, amount: {amount}, per: day}}\n    limits:"
    document = policy(origin, limits="40/minute").replace("    limits:", budget, 1)
    return document.replace("        idempotency:", "        amount: {max: 2000}\n        idempotency:", 1)


def last(gate: Function) -> dict[str, Any]:
    """Return the last line as Cloud Logging gets it, our own members beside its own."""
    line = gate.record.lines()[-1]
    return {**line, **line["countersign"]}


# ---------------------------------------------------------------- the schema


def test_schema_is_made_from_the_code() -> None:
    written = (ROOT / "docs" / "record.schema.json").read_text("utf-8")
    assert written == lines.written(), "python -m gateway.lines > docs/record.schema.json"


def test_every_kind_and_every_member_is_explained_in_the_page() -> None:
    page = (ROOT / "docs" / "record.md").read_text("utf-8")
    kinds = [kind.__struct_config__.tag for kind in get_args(lines.Ours)]
    members = {field for kind in (*get_args(lines.Ours), lines.Presented) for field in kind.__struct_fields__}
    assert [name for name in (*kinds, *sorted(members)) if f"`{name}`" not in page] == []


def test_lines_of_all_kinds_of_calls_are_what_the_schema_says(
    function: Callable[..., Function], upstream: Appgregator, tmp_path: Path
) -> None:
    """``gate.record.lines`` holds each line to the schema, here and in every other test."""
    gate = function(spent(upstream.origin, 10**6), POLICY_SECONDS="0.001")
    gate.post(Idempotency_Key="order-1")
    gate.post(Idempotency_Key="order-1")
    for _ in range(FLOOD + 1):
        gate.post(PREVIEW, ORDER)
    for fault in ("close_after", "error_400", "error_401", "html_502"):
        upstream.fail_next(fault)
        gate.post(Idempotency_Key=fault)
        gate.post(Idempotency_Key=fault)
    gate.post("/nothing", key=None)
    gate.post("/stripe/invoices/")
    gate.post("/stripe/invoices/?name=ft-4&connection_name=other")
    gate.post(key=None)
    gate.post(key="csk_wrong")
    gate.post(method="GET")
    gate.post(media="text/plain")
    gate.post(body="customer=a&customer=b")
    gate.post(body="customer=cus_1&nothing=1&other=2")
    gate.post(Idempotency_Key="undefined")
    gate.post(x_api_key=KEY, Authorization=f"Bearer {KEY}", key=None)
    while gate.post().status_code == 200:
        pass
    (tmp_path / "policy.yaml").write_text(policy(upstream.origin, limits="41/minute"))
    while not gate.record.entries("policy"):
        gate.post(key="csk_wrong")
    kinds = {line["countersign"]["kind"] for line in gate.record.lines()}
    assert kinds >= {"start", "intent", "outcome", "refusal", "replay", "preview", "policy"}
    assert verify(gate.record.text().splitlines()).faults == []


# ---------------------------------------------------------------- a line stands alone


def test_every_line_of_a_call_says_who_asked_for_what_of_which_connection(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function()
    gate.post(body=ORDER, Idempotency_Key="order-1")
    gate.post(body=ORDER, Idempotency_Key="order-1")
    gate.post(PREVIEW, ORDER, Idempotency_Key="order-1")
    gate.post(body=f"{ORDER}&description=x", Idempotency_Key="order-1")
    upstream.fail_next("close_after")
    gate.post(body=ORDER, Idempotency_Key="order-2")
    gate.post(body=ORDER, Idempotency_Key="order-2")
    entries = gate.record.entries()
    kinds = [entry["kind"] for entry in entries]
    assert kinds == ["intent", "outcome", "replay", "preview", "refusal", "intent", "outcome", "refusal"]
    for entry in entries:
        assert (entry["caller"], entry["credential"]) == ("app", "k1")
        assert (entry["connection"], entry["operation"]) == ("billing", "invoices.create")
        assert {"customer", "metadata[order_id]"} <= entry["parameters"].keys()
        assert entry["values"] == {"metadata[order_id]": "o-7"}
    assert len({entry["ledger"] for entry in entries[:5]}) == len({entry["ledger"] for entry in entries[5:]}) == 1


def test_outcome_says_what_was_created_and_for_how_much(function: Callable[..., Function]) -> None:
    gate = function()
    created = (gate.post(body=ORDER).json or {})["id"]
    line = last(gate)
    assert (line["created"], line["amount"], line["currency"]) == (created, 2000, "usd")
    assert line["message"] == f"app raised invoice {created} of 20.00 USD on billing (order_id o-7)"
    assert line[LABELS] == {
        "caller": "app",
        "connection": "billing",
        "operation": "invoices.create",
        "result": "succeeded",
    }


def test_refused_parameter_is_on_record_with_its_connection_and_the_sentence(function: Callable[..., Function]) -> None:
    gate = function()
    response = gate.post(body="customer=cus_1&transfer_data[destination]=acct_1")
    line = last(gate)
    assert (line["connection"], line["parameter"]) == ("billing", "transfer_data[destination]")
    assert line["detail"] == (response.json or {})["detail"]
    assert line["parameters"].keys() == {"customer", "transfer_data[destination]"}
    assert line["policy"] == gate.record.lines()[0]["countersign"]["policy"][:16]
    assert line["message"] == (
        "app was refused invoices.create on billing: transfer_data[destination] is not a parameter you may send"
    )
    assert line[LABELS]["reason"] == "parameter-not-granted"
    assert "acct_1" not in gate.record.text()


def test_connection_that_is_not_granted_is_on_record_as_it_was_asked_for(function: Callable[..., Function]) -> None:
    gate = function()
    gate.post("/stripe/invoices/?name=ft-4&connection_name=stripe-2")
    line = last(gate)
    assert (line["caller"], line["connection"], line["operation"]) == ("app", "other-account", "invoices.create")
    assert line["asked"] == "POST /stripe/invoices/?name=ft-4&connection_name=stripe-2"
    gate.post("/stripe/invoices/?name=ft-4&connection_name=nowhere")
    assert "connection" not in last(gate)
    assert last(gate)["asked"] == "POST /stripe/invoices/?name=ft-4&connection_name=nowhere"


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("/stripe/invoicess/", "POST /stripe/invoicess/"),
        ("/stripe/invoices/in_1QqeLuPp19Qbk8/send", "POST /stripe/invoices/.../send"),
        (f"/stripe/{KEY}", "POST /stripe/[redacted]"),
        ("/stripe/" + "x" * 80, "POST /stripe/..."),
        (f"/stripe/invoices/?key={KEY}&name=ft-4", "POST /stripe/invoices/?name=ft-4"),
        (f"/stripe/invoices/?name={KEY[:60]}", "POST /stripe/invoices/?name=[redacted]"),
        ("/" + "x/" * 900, "POST /" + "x/" * 67 + "\\u2026"),
        ("/%1b[2J\u202e", "POST /%1b[2J\\u202e"),
    ],
)
def test_what_was_asked_is_on_record_without_ids_and_keys_and_in_short(
    audit: Audit, sink: Lines, target: str, asked: str
) -> None:
    with Record(audit, {"RAW_URI": target, "REQUEST_METHOD": "POST"}):
        raise PathUnknown
    assert sink.ours()[-1]["asked"] == asked


def test_upstreams_own_code_and_parameter_are_on_record(audit: Audit, sink: Lines) -> None:
    refusal = UpstreamRejected(400, "The upstream refused it.", code="resource_missing", parameter="customer")
    sent(audit, reply=Reply(Outcome.FREED, refusal=refusal, upstream_status=400))
    (outcome,) = sink.ours("outcome")
    assert (outcome["upstream_status"], outcome["upstream_code"], outcome["parameter"]) == (
        400,
        "resource_missing",
        "customer",
    )
    assert outcome["detail"] == "The upstream refused it."
    assert json.loads(sink.lines[-1])[LABELS]["reason"] == "upstream-rejected"


def test_limit_and_budget_that_refuse_are_on_record(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function(spent(upstream.origin))
    while gate.post().status_code == 200:
        pass
    line = last(gate)
    budget = {"amount": 5000, "currency": "usd", "window": 86400, "left": 1000, "asked": 2000}
    assert (line["reason"], line["budget"]) == ("budget-spent", budget)
    gate = function(policy(upstream.origin, limits="1/minute"))
    gate.post()
    gate.post()
    assert (last(gate)["reason"], last(gate)["limit"]) == ("limit-reached", "1/minute")


def test_message_of_an_unknown_outcome_says_that_nobody_knows(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function()
    upstream.fail_next("close_after")
    gate.post(body=ORDER)
    line = last(gate)
    assert line["severity"] == "ALERT"
    assert line["message"].startswith(
        "nobody knows what became of invoices.create on billing (order_id o-7), which app asked for: The call was sent"
    )
    assert line["note"]


def test_names_that_are_not_granted_are_on_record_in_short_and_their_values_never(audit: Audit, sink: Lines) -> None:
    grant = granted()
    body = "&".join(f"{'n' * 150}{number}=cus_secret" for number in range(200)) + f"&{KEY}=1"
    with Record(audit, {"RAW_URI": TARGET, "REQUEST_METHOD": "POST"}) as record:
        record.call, record.caller = call(body), grant.caller
        record.policies = document.read(policy("http://127.0.0.1:9"), "policy.yaml")
        raise ParameterNotGranted(parameter="n" * 150)
    line = sink.ours()[-1]
    assert 0 < len(line["parameters"]) <= 50
    assert max(map(len, line["parameters"])) <= 100
    assert "cus_secret" not in "".join(sink.lines)
    assert KEY not in "".join(sink.lines)
    assert len(sink.lines[-1]) < 20_000


# ---------------------------------------------------------------- a refused credential


WHOLE = checked("csk_" + "0" * 43)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"x_api_key": WHOLE}, {"kind": "key", "header": "x-api-key", "prefix": "csk_", "checksum": True}),
        ({"x_api_key": WHOLE[:-1]}, {"kind": "key", "header": "x-api-key", "prefix": "csk_", "checksum": False}),
        (
            {"Authorization": f"Bearer sk_live_{'1' * 24}"},
            {"kind": "key", "header": "Authorization", "prefix": "sk_live_", "checksum": False},
        ),
        ({"x_api_key": "hunter2"}, {"kind": "key", "header": "x-api-key", "checksum": False}),
    ],
)
def test_refused_key_is_described_without_being_said(
    function: Callable[..., Function], headers: dict[str, str], said: dict[str, Any]
) -> None:
    gate = function()
    gate.post(key=None, **headers)
    gate.post(key=None, **headers)
    first, second = gate.record.entries("refusal")
    assert first["presented"].items() >= {**said, "known": "never"}.items()
    assert first["presented"]["digest"] == second["presented"]["digest"]
    (sent_,) = headers.values()
    assert sent_.removeprefix("Bearer ") not in gate.record.text()
    assert "caller" not in first
    assert last(gate)["message"].startswith("somebody unknown was refused invoices.create: ")


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({}, "none"),
        ({"Authorization": "Digest x"}, "unreadable"),
        ({"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30.c2ln"}, "token"),
        ({"webhook_id": "msg_1", "webhook_timestamp": "1", "webhook_signature": "v1,x"}, "webhook"),
    ],
)
def test_kind_of_a_refused_credential_is_on_record(
    function: Callable[..., Function], headers: dict[str, str], kind: str
) -> None:
    gate = function()
    assert gate.post(key=None, **headers).status_code == 401
    assert last(gate)["presented"]["kind"] == kind


def test_revoked_key_is_on_record_as_whose_it_was(
    function: Callable[..., Function], upstream: Appgregator, tmp_path: Path
) -> None:
    gate = function(POLICY_SECONDS="0.001")
    assert gate.post().status_code == 200
    before = (tmp_path / "policy.yaml").read_text()
    another = f"{{id: k2, sha256: {'0' * 64}}}"
    (tmp_path / "policy.yaml").write_text(before.replace(f"{{id: k1, sha256: {sha256(KEY)}}}", another))
    while gate.post().status_code == 200:
        pass
    line = last(gate)
    assert line["presented"].items() >= {"known": "earlier", "caller": "app", "credential": "k1"}.items()
    assert line["message"].startswith("somebody with credential k1 of app was refused invoices.create: ")
    assert KEY not in gate.record.text()


def test_expired_key_is_on_record_as_whose_it_is(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function(policy(upstream.origin).replace("id: k1,", "id: k1, expires: 2020-01-01,", 1))
    gate.post()
    assert last(gate)["presented"].items() >= {"known": "now", "caller": "app", "credential": "k1"}.items()


# ---------------------------------------------------------------- what costs a caller nothing


@pytest.mark.parametrize("kind", ["preview", "replay", "refusal"])
def test_1500_calls_that_cost_nothing_are_ten_lines_a_second(
    function: Callable[..., Function], upstream: Appgregator, kind: str
) -> None:
    gate = function(policy(upstream.origin, limits="1/minute"))
    ids = [(gate.post(Idempotency_Key="order-1").json or {})["audit_id"]] if kind == "replay" else []
    target = PREVIEW if kind == "preview" else TARGET
    body = "nothing=1" if kind == "refusal" else CUSTOMER
    answers = (gate.post(target, body, Idempotency_Key="order-1") for _ in range(1500))
    ids += [answer.headers["Countersign-Audit-Id"] for answer in answers]
    assert len(set(ids)) >= 1500
    written = len(gate.record.entries(kind))
    seconds = len({entry["time"][:19] for entry in gate.record.entries()}) + 1
    assert FLOOD <= written <= FLOOD * seconds


def test_flood_of_one_caller_hides_nothing_of_another_and_strangers_are_one(
    audit: Audit, sink: Lines, clock: Clock
) -> None:
    assert [audit.counted("refusal", "a", "r") for _ in range(FLOOD)] == [None] * FLOOD
    counted = audit.counted("refusal", "a", "r")
    assert counted is not None
    head = sink.ours()[-1]["hash"][:24]
    assert counted == f"{audit.instance}-{head}-counted-1-1"
    assert audit.counted("refusal", "b", "r") is None
    assert audit.counted("preview", "a") is None
    assert audit.counted("refusal", "a", "another") is None
    for _ in range(FLOOD + 2):
        audit.counted("refusal", None, "r")
    clock.tick(1)
    audit.counted("preview", "b")
    lines_ = sink.ours("counted")
    assert [(line.get("caller"), line["counted"], line["reason"], line["count"]) for line in lines_] == [
        ("a", "refusal", "r", 1),
        (None, "refusal", "r", 2),
    ]
    assert [line["batch"] for line in lines_] == [1, 2]
