"""What became of one call, in plain words."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from console.__main__ import main
from console.keys import mint
from console.lookup import Told
from console.why import _advice, _next
from gateway.chain import FLOOD
from gateway.stores.redis import Redis
from policies.idempotency import Verdict
from sandbox.__main__ import ROOT
from tests.conftest import CUSTOMER, KEY, OTHER_KEY, TARGET, policy, sha256
from tests.test_docs import every_refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from tests.conftest import Function

ORDER = f"{CUSTOMER}&metadata[order_id]=o-7"


def post(gate: Function, *arguments: Any, **headers: Any) -> str:
    """Make a call; return the audit id that its caller got."""
    audit_id: str = gate.post(*arguments, **headers).headers["Countersign-Audit-Id"]
    return audit_id


@pytest.fixture
def why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[str, list[str]]]:
    """Ask; return the paragraph and the lines below it."""

    def ask(audit_id: str, *arguments: str) -> tuple[str, list[str]]:
        capsys.readouterr()
        assert main(["why", audit_id, *(arguments or [str(tmp_path / "audit.jsonl")])]) == 0
        said, empty, *lines = capsys.readouterr().out.splitlines()
        assert empty == ""
        return said, lines

    return ask


def test_success_says_who_what_how_much_and_where_it_is(
    function: Callable[..., Function], why: Callable[..., tuple[str, list[str]]]
) -> None:
    gate = function()
    answer = gate.post(body=ORDER, Idempotency_Key="order-1")
    said, lines = why(answer.headers["Countersign-Audit-Id"])
    assert " UTC, app (credential k1) asked for invoices.create on billing, metadata[order_id] 'o-7'." in said
    assert f"invoice {(answer.json or {})['id']} of 20.00 USD. It is in the Stripe account behind billing" in said
    assert said.endswith("Nothing needs to be done.")
    assert [line.split()[1] for line in lines] == ["intent", "outcome"]


def test_success_with_a_warning_is_not_called_done() -> None:
    line = {"kind": "outcome", "result": "succeeded", "warning": "the invoice was not mailed", "time": "2026-11-27"}
    told = Told("", [line], [])
    assert list(_next(line, told)) == ["Next: see what the warning says. Only that is left to do."]
    del line["warning"]
    assert list(_next(line, told)) == ["Nothing needs to be done."]


def test_refused_parameter_says_the_sentence_the_rule_and_what_would_pass(
    function: Callable[..., Function], why: Callable[..., tuple[str, list[str]]], tmp_path: Path
) -> None:
    gate, document = function(), str(tmp_path / "policy.yaml")
    export = str(tmp_path / "audit.jsonl")
    audit_id = post(gate, body=f"{CUSTOMER}&days_until_due=90")
    said, lines = why(audit_id)
    assert "Countersign refused it with 400 parameter-invalid: \u201cdays_until_due must be at most 60.\u201d" in said
    assert "--policy FILE shows its line" in said
    said, lines = why(audit_id, export, "--policy", document)
    number = 1 + (tmp_path / "policy.yaml").read_text().splitlines().index(
        "          days_until_due: {min: 1, max: 60}"
    )
    assert f"What decided is line {number} of {document}: `days_until_due: {{min: 1, max: 60}}`." in said
    assert "What would pass: days_until_due with kind integer, min 1, max 60." in said
    assert "Next: Correct the value" in said
    assert len(lines) == 1
    said, _ = why(post(gate, body=f"{CUSTOMER}&nothing=1"), export, "--policy", document)
    assert ": `parameters:`." in said
    assert "What would pass: custom_fields, " in said


def test_another_document_than_the_one_in_force_is_not_quoted(
    function: Callable[..., Function], why: Callable[..., tuple[str, list[str]]], tmp_path: Path
) -> None:
    audit_id = post(function(), body=f"{CUSTOMER}&nothing=1")
    other = tmp_path / "other.yaml"
    other.write_text((tmp_path / "policy.yaml").read_text() + "# edited\n")
    said, _ = why(audit_id, str(tmp_path / "audit.jsonl"), "--policy", str(other))
    assert "what decided is another document" in said
    assert "What would pass" not in said


@pytest.mark.parametrize(
    ("changes", "call", "rule", "passes"),
    [
        ({"limits": "1/minute"}, {}, "limits: [1/minute]", "1 call a minute"),
        ({}, {"target": TARGET.replace("stripe-1", "stripe-2")}, "grants:", "invoices.create on billing"),
        ({}, {"body": "description=x"}, "customer: {required: true}", "customer with kind string"),
        ({"idempotency": "required"}, {}, "idempotency: required", None),
    ],
)
def test_rule_of_each_kind_is_found_in_the_document(  # noqa: PLR0917 - the fixtures
    function: Callable[..., Function],
    upstream: Appgregator,
    why: Callable[..., tuple[str, list[str]]],
    tmp_path: Path,
    changes: dict[str, str],
    call: dict[str, str],
    rule: str,
    passes: str | None,
) -> None:
    gate = function(policy(upstream.origin, **changes))
    if "limits" in changes:
        gate.post()
    audit_id = post(gate, **call)
    said, _ = why(audit_id, str(tmp_path / "audit.jsonl"), "--policy", str(tmp_path / "policy.yaml"))
    assert f": `{rule}`." in said
    assert passes is None or f"What would pass: {passes}" in said


def test_calls_of_one_key_are_told_together_and_lead_to_the_invoice(
    function: Callable[..., Function], why: Callable[..., tuple[str, list[str]]]
) -> None:
    gate = function()
    first = post(gate, body=ORDER, Idempotency_Key="order-1")
    replay = post(gate, body=ORDER, Idempotency_Key="order-1")
    reused = post(gate, body=f"{ORDER}&description=x", Idempotency_Key="order-1")
    post(gate, body=ORDER, Idempotency_Key="order-2")
    for audit_id in (replay, reused):
        said, lines = why(audit_id)
        assert "The invoice of this key was raised on " in said
        assert f"({first})" in said
        assert [line.split()[2] for line in lines] == [first, first, replay, reused]
    assert "Use a new key for another invoice" in why(reused)[0]


def test_unknown_outcome_and_each_later_refusal_of_its_key_lead_to_the_ledger(
    function: Callable[..., Function], upstream: Appgregator, why: Callable[..., tuple[str, list[str]]]
) -> None:
    gate = function()
    upstream.fail_next("close_after")
    ids = [post(gate, Idempotency_Key="order-1"), post(gate, Idempotency_Key="order-1")]
    (intent,) = gate.record.entries("intent")
    for audit_id in ids:
        said, lines = why(audit_id)
        assert f"Next: ./countersign ledger show {intent['ledger']} " in said
        assert len(lines) == 3
    assert "It was sent, and nobody knows what became of it (libcurl error" in why(ids[0])[0]
    upstream.fail_next("close_after")
    assert "The call had no idempotency key" in why(post(gate))[0]


def test_refused_key_is_told_as_whose_it_was(
    function: Callable[..., Function], why: Callable[..., tuple[str, list[str]]], upstream: Appgregator
) -> None:
    gate = function(policy(upstream.origin).replace("id: k1,", "id: k1, expires: 2020-01-01,", 1))
    assert "somebody with a key that has expired (k1 of app) asked for invoices.create" in why(post(gate))[0]
    assert "a key that this instance never knew" in why(post(gate, key="csk_wrong"))[0]
    assert "somebody who did not prove who it was asked for a call" in why(post(gate, "/nothing", key=None))[0]


def test_every_audit_id_that_a_caller_got_is_answered(
    function: Callable[..., Function],
    why: Callable[..., tuple[str, list[str]]],
    upstream: Appgregator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = function(policy(upstream.origin, limits="5/minute"))
    preview = f"{TARGET}&validate_only=true"
    with monkeypatch.context() as one_second:
        one_second.setattr("gateway.chain.Audit._next_second", lambda *_: None)
        ids = [post(gate, target) for target in (TARGET, preview) for _ in range(FLOOD * 4)]
        ids += [post(gate, key="csk_wrong") for _ in range(FLOOD * 4)]
        ids += [post(gate, body="nothing=1", key=OTHER_KEY, target=TARGET.replace("stripe-1", "stripe-2"))]
    counted = [audit_id for audit_id in ids if "-counted-" in audit_id]
    assert counted
    gate.post()  # the next line of the instance is behind those with the counts
    for audit_id in ids:
        said, lines = why(audit_id)
        assert lines
        if audit_id in counted:
            assert "past ten a second of one kind from one caller no line is written. Nothing was sent." in said
            assert "The last one with a line: " in said


# ---------------------------------------------------------------- exports


@pytest.fixture
def call(function: Callable[..., Function], tmp_path: Path) -> str:
    gate = function()
    audit_id = post(gate, body=ORDER, Idempotency_Key="order-1")
    post(gate, body=ORDER, Idempotency_Key="order-1")
    return audit_id


def entries(tmp_path: Path) -> list[dict[str, Any]]:
    """The record as Cloud Logging exports it: numbers are doubles there."""
    lines = [json.loads(line, parse_int=float) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    return [
        {"jsonPayload": {"message": line["message"], "countersign": line["countersign"]}, "timestamp": line["time"]}
        for line in lines
    ]


@pytest.mark.parametrize("form", ["lines", "array", "pretty", "gz", "several", "stdin", "shuffled", "twice"])
def test_any_export_will_do(
    why: Callable[..., tuple[str, list[str]]], call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    whole = why(call)
    exported, export = entries(tmp_path), tmp_path / "export"
    lines = "\n".join(map(json.dumps, exported))
    arguments = [str(export)]
    match form:
        case "lines":
            export.write_text(lines)
        case "array":
            export.write_text(json.dumps(exported[::-1]))
        case "pretty":
            export.write_text(json.dumps(exported[::-1], indent=2))
        case "gz":
            export.write_bytes(gzip.compress(lines.encode()))
        case "several":
            export.write_text("\n".join(map(json.dumps, exported[2:])))
            (tmp_path / "older").write_text("\n".join(map(json.dumps, exported[:2])))
            arguments.append(str(tmp_path / "older"))
        case "stdin":
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
            arguments = ["-"]
        case "shuffled":
            random.Random(7).shuffle(exported)
            export.write_text("\n".join(map(json.dumps, exported)))
        case "twice":
            export.write_text(f"{lines}\n{lines}\nnot json\n" + '{"countersign": 1}\n')
    assert why(call, *arguments) == whole


def test_without_an_export_gcloud_is_asked(
    why: Callable[..., tuple[str, list[str]]], call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = why(call)
    (tmp_path / "all.json").write_text(json.dumps(entries(tmp_path)))
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {tmp_path}/all.json\n')
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gcloud.parent}:{os.environ['PATH']}")
    said, _ = why(call, "--project", "acme")
    assert said == whole[0]
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert first == (
        f'logging read jsonPayload.countersign.audit_id="{call}" --freshness=30d --format=json --project=acme'
    )
    assert 'jsonPayload.countersign.ledger="' in second


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense", "EXPORT"], "An audit id looks like"),
        (['x" OR "', "EXPORT"], "An audit id looks like"),
        (["0" * 12 + "-" + "0" * 24, "EXPORT"], "There is no line with audit id"),
        (["0" * 12 + "-" + "0" * 24 + "-counted-1-1", "EXPORT"], "This call was counted, not written"),
        (["0" * 12 + "-" + "0" * 24, "/nowhere"], "cannot be read"),
        (["0" * 12 + "-" + "0" * 24], "Name an export of the record"),
    ],
)
def test_what_cannot_be_answered_is_said(  # noqa: PLR0917 - the fixtures
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    capsys.readouterr()
    export = str(tmp_path / "audit.jsonl")
    assert main(["why", *(export if argument == "EXPORT" else argument for argument in arguments)]) == 1
    out, err = capsys.readouterr()
    assert says in err
    assert out == ""


def test_line_that_was_edited_is_no_traceback(call: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forged = {"countersign": {"audit_id": call, "kind": "refusal", "time": 7, "instance": "x", "caller": "\x1b[2J"}}
    (tmp_path / "forged").write_text(json.dumps(forged))
    capsys.readouterr()
    assert main(["why", call, str(tmp_path / "forged")]) == 1
    assert "audit verify" in capsys.readouterr().err


def test_call_whose_line_could_not_be_written_is_answered(
    function: Callable[..., Function], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    audit_id = post(function(AUDIT="file:/dev/full"), "/nothing")
    (tmp_path / "empty").touch()
    assert main(["why", audit_id, str(tmp_path / "empty")]) == 0
    assert "its line could not be written" in capsys.readouterr().out


def test_every_refusal_has_what_to_do_next() -> None:
    reasons = {refusal.reason for refusal in every_refusal() if "reason" in vars(refusal)}
    assert [reason for reason in reasons if len(_advice(reason)) < 20] == []
    assert "](" not in "".join(map(_advice, reasons))


def test_questions_of_the_page_are_answered_by_its_commands(
    function: Callable[..., Function], upstream: Appgregator, tmp_path: Path
) -> None:
    key, order = mint(), f"{CUSTOMER}&metadata[order_id]="
    before = policy(upstream.origin).replace(sha256(KEY), sha256(key))
    gate = function(before, POLICY_SECONDS="0.001", AUDIT=f"file:{tmp_path / 'record.jsonl'}")
    wrong = post(gate, body=f"{CUSTOMER}&days_until_due=90", key=key)
    raised = (gate.post(body=f"{order}1001", key=key).json or {})["id"]
    gate.post(body=f"{order}1002", key=key)
    another = f"{{id: k2, sha256: {'0' * 64}}}"
    (tmp_path / "policy.yaml").write_text(before.replace(f"{{id: k1, sha256: {sha256(key)}}}", another))
    while gate.post(body=f"{order}1002", key=key).status_code == 200:
        pass
    (tmp_path / "policy.yaml").write_text(before)
    (tmp_path / "countersign").symlink_to(ROOT / "countersign")
    section = (ROOT / "docs" / "record.md").read_text("utf-8").partition("## Three questions")[2].partition("\n## ")[0]
    (tmp_path / "leaked").write_text(key)
    answers = [
        subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, env={"PATH": os.environ["PATH"], "AUDIT_ID": wrong},
            capture_output=True, text=True, check=True,
        ).stdout
        for command in re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    ]  # fmt: skip
    shown = re.findall(r"^```text\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert [set(map(_masked, text.splitlines())) for text in shown] == [
        set(map(_masked, answer.splitlines())) for answer in answers
    ], "\n".join(answers)
    why, whose, who, where = answers
    assert "k1 of app" in whose
    assert "days_until_due must be at most 60" in why
    assert "of policy.yaml: `days_until_due: {min: 1, max: 60}`." in why
    assert f"app raised invoice {raised} of 20.00 USD on billing" in who
    assert "somebody with credential k1 of app was refused" in who
    assert f"app raised invoice {raised} of 20.00 USD on billing (order_id 1001)" in where


def _masked(line: str) -> str:
    """Leave out of a line what is another each time."""
    line = re.sub(r"\d{1,2} [A-Z][a-z]+ \d{4} at [\d:]{8}|\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", line)
    return re.sub(r"in_\w+|[0-9a-f]{12}-[0-9a-f]{24}|line \d+", "ID", line)


@pytest.mark.stores
def test_decision_is_told_only_if_it_took_effect_and_until_it_is_taken_back(  # noqa: PLR0917 - the fixtures
    function: Callable[..., Function], upstream: Appgregator, redis_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    exports = [str(tmp_path / name) for name in ("record.jsonl", "ann.jsonl")]
    gate = function(STORE=redis_url, AUDIT=f"file:{exports[0]}")
    upstream.fail_next("close_after")
    audit_id = post(gate, Idempotency_Key="order-1")
    monkeypatch.setenv("STORE", redis_url)
    monkeypatch.setenv("AUDIT", f"file:{exports[1]}")

    def decide(*word: str) -> str:
        main(["ledger", word[0], audit_id, "--record", exports[0], *word[1:], "--yes", "--by", "Ann"])
        capsys.readouterr()
        assert main(["why", audit_id, *exports]) == 0
        return capsys.readouterr().out.partition("\n")[0]

    open_ = "Next: ./countersign ledger show "
    said = decide("resolve", "--created", "in_77")
    assert "Ann decided: it created in_77. Nothing needs to be done." in said
    assert open_ not in said
    said = decide("reopen")
    assert "Ann took a decision back (Ann: created in_77). " + open_ in said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Redis, "resolve", lambda *_: Verdict.RUNNING)
        said = decide("resolve", "--created", "in_78")
    assert "in_78" not in said
    assert open_ in said
    lines = [json.loads(line)["countersign"] for line in (tmp_path / "ann.jsonl").read_text().splitlines()]
    for line in lines:
        assert main(["why", line["audit_id"], *exports]) == 0
        assert "No caller was given this audit id. Its line says: " in capsys.readouterr().out
