"""What goes on record of one call, and when."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from gateway.answering import answer_to, respond
from gateway.chain import Audit
from gateway.record import MAX_VALUE, Record
from gateway.stores import Settled
from policies.model import Outcome
from policies.outcomes import Reply
from policies.refusals import CredentialUnknown, PathUnknown, UpstreamBusy
from sandbox.__main__ import UPSTREAM_KEY
from tests.conftest import KEY, TARGET
from tests.gateway.conftest import ADMISSION, SUCCEEDED, found, granted, refused, sent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from tests.conftest import Clock, Function
    from tests.gateway.conftest import Lines


LABELS = "logging.googleapis.com/labels"


# ---------------------------------------------------------------- what is written


def test_intent_is_written_before_outcome_and_both_carry_the_calls_audit_id(audit: Audit, sink: Lines) -> None:
    record = sent(audit)
    start, intent, outcome = sink.ours()
    assert [start["kind"], intent["kind"], outcome["kind"]] == ["start", "intent", "outcome"]
    assert intent["audit_id"] == outcome["audit_id"] == record.audit_id
    assert (outcome["result"], outcome["status"], outcome["created"]) == ("succeeded", 200, "in_1")
    assert (intent["caller"], intent["connection"], intent["operation"]) == ("app", "billing", "invoices.create")


def test_intent_is_on_record_when_the_upstream_is_called(
    function: Callable[..., Function], upstream: Appgregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = function()
    seen: list[list[str]] = []
    decide = upstream._decide

    def look(*call: Any) -> Any:
        seen.append([entry["kind"] for entry in gate.record.entries()])
        return decide(*call)

    monkeypatch.setattr(upstream, "_decide", look)
    assert gate.post().status_code == 200
    assert seen == [["intent"]]


def test_refusal_is_one_line_and_says_why(audit: Audit, sink: Lines) -> None:
    record = refused(audit, CredentialUnknown(note="it has expired"))
    _, line = sink.ours()
    assert (line["kind"], line["reason"], line["status"], line["note"]) == (
        "refusal",
        "credential-unknown",
        401,
        "it has expired",
    )
    response = respond(record)
    assert json.loads(response.body)["audit_id"] == line["audit_id"] == record.audit_id
    assert "expired" not in response.body.decode()


def test_line_is_one_of_cloud_loggings(audit: Audit, sink: Lines, clock: Clock) -> None:
    sent(audit)
    for line in sink.lines:
        entry = json.loads(line)
        assert entry.keys() - {LABELS} == {"severity", "time", "message", "countersign"}
        assert entry["time"] == "1970-01-12T13:46:40.000000Z"
        assert line.endswith("}\n")


@pytest.mark.parametrize(
    ("reply", "severity"),
    [
        (SUCCEEDED, "INFO"),
        (Reply(Outcome.RELEASED, refusal=UpstreamBusy()), "WARNING"),
        (Reply(Outcome.RELEASED, refusal=UpstreamBusy(), alarm="look"), "ALERT"),
        (Reply(Outcome.UNKNOWN, refusal=UpstreamBusy()), "ALERT"),
    ],
)
def test_severity_says_who_must_look(audit: Audit, sink: Lines, reply: Reply, severity: str) -> None:
    sent(audit, reply=reply)
    assert json.loads(sink.lines[-1])["severity"] == severity


def test_settlement_that_is_not_kept_alarms(audit: Audit, sink: Lines) -> None:
    grant = granted()
    with Record(audit, {"RAW_URI": TARGET}) as record:
        record.caller, record.grant = grant.caller, grant
        record.intent(ADMISSION)
        record.answer = answer_to(SUCCEEDED, grant, record.audit_id)
        record.close(SUCCEEDED, settled=Settled.OWED)
    assert respond(record).status == 200
    assert sink.ours("outcome")[0]["alarm"] == "the outcome could not be kept in the store"


# ---------------------------------------------------------------- values


def test_parameters_are_on_record_by_name_and_digest_and_by_value_only_where_listed(audit: Audit, sink: Lines) -> None:
    sent(audit, granted(body="customer=cus_secret&description=private&metadata[order_id]=order-7"))
    (intent,) = sink.ours("intent")
    assert list(intent["parameters"]) == ["customer", "description", "metadata[order_id]"]
    assert intent["values"] == {"metadata[order_id]": "order-7"}
    assert "cus_secret" not in "".join(sink.lines)
    assert "private" not in "".join(sink.lines)


HOSTILE = {
    "line breaks": 'x\r\n{"severity":"ALERT","countersign":{}}\r\n',
    "terminal": "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "unicode line breaks": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "right to left": "\u202egnp.exe",
    "quotes": '","kind":"stop","x":"\\',
    "nulls": "\0" * 50,
    "wide": "\U0001f4b8" * 500,
    "long": "x" * 1_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_value_stays_one_short_line_of_ascii(audit: Audit, sink: Lines, text: str) -> None:
    grant = granted(body="customer=cus_1&metadata[order_id]=1")
    grant.parameters["metadata[order_id]"] = text  # type: ignore[index]  # past the policy, which refuses most of these
    sent(audit, grant)
    audit.close()
    (intent,) = sink.ours("intent")
    assert intent["values"]["metadata[order_id]"] == text[:MAX_VALUE]
    for line in sink.lines:
        assert re.fullmatch(r"[ -~]+\n", line)
        assert len(line) < 4000
        assert line.splitlines() == [line[:-1]]
    assert not found(sink.lines)


def test_note_and_name_of_an_exception_are_ascii_too(audit: Audit, sink: Lines) -> None:
    refused(audit, CredentialUnknown(note="\u2028\r\n\x1b[2J é"))
    assert all(re.fullmatch(r"[ -~]+\n", line) for line in sink.lines)


# ---------------------------------------------------------------- a record that cannot be written


def test_nothing_is_sent_when_the_intent_cannot_be_written(
    function: Callable[..., Function], upstream: Appgregator, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """/dev/full takes nothing, as a disk without space."""
    gate = function(AUDIT="file:/dev/full")
    response = gate.post(Idempotency_Key="order-1")
    assert (response.status_code, response.json and response.json["reason"]) == (503, "record-unavailable")
    assert upstream.calls == ()
    assert "could not be recorded" in capfd.readouterr().err
    assert gate.post(Idempotency_Key="order-1").status_code == 503, "the key was released, not held"


def test_outcome_that_cannot_be_written_is_answered_and_cried_out(
    audit: Audit, sink: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    grant = granted()
    with Record(audit, {"RAW_URI": TARGET}) as record:
        record.caller, record.grant, record.admission = grant.caller, grant, ADMISSION
        record.intent(ADMISSION)
        sink.failing = True
        record.answer = answer_to(SUCCEEDED, grant, record.audit_id)
        record.close(SUCCEEDED, settled=Settled.WRITTEN)
    response = respond(record)
    assert response.status == 200
    assert json.loads(response.body)["id"] == "in_1"
    cried = json.loads(capsys.readouterr().err)
    assert cried["severity"] == "ALERT"
    assert cried["message"] == f"countersign: the outcome of {record.audit_id} could not be recorded: OSError"


def test_refusal_that_cannot_be_written_is_answered_all_the_same(
    audit: Audit, sink: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    sink.failing = True
    record = refused(audit, PathUnknown())
    assert respond(record).status == 404
    assert "could not be recorded" in capsys.readouterr().err


# ---------------------------------------------------------------- traces


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("environ", "trace", "span"),
    [
        ({"HTTP_TRACEPARENT": f"00-{TRACE}-00f067aa0ba902b7-01"}, TRACE, "00f067aa0ba902b7"),
        ({"HTTP_TRACEPARENT": f"01-{TRACE}-00f067aa0ba902b7-01-later"}, TRACE, "00f067aa0ba902b7"),
        ({"HTTP_X_CLOUD_TRACE_CONTEXT": f"{TRACE}/255;o=1"}, TRACE, "00000000000000ff"),
        ({"HTTP_X_CLOUD_TRACE_CONTEXT": TRACE}, TRACE, "0000000000000000"),
        ({"HTTP_X_CLOUD_TRACE_CONTEXT": f"{TRACE}/{2**64 - 1}"}, TRACE, "ffffffffffffffff"),
        ({"HTTP_X_CLOUD_TRACE_CONTEXT": f"{TRACE}/{2**64 + 1}"}, TRACE, "0000000000000001"),
        (
            {"HTTP_TRACEPARENT": "garbage", "HTTP_X_CLOUD_TRACE_CONTEXT": f"{TRACE}/1"},
            TRACE,
            "0000000000000001",
        ),
    ],
)
def test_trace_of_the_platform_is_on_every_line_of_a_call(
    sink: Lines, environ: dict[str, str], trace: str, span: str
) -> None:
    audit = Audit(sink, policy="p" * 64, project="acme")
    sent(audit, None, SUCCEEDED, **environ)
    refused(audit, PathUnknown(), **environ)
    for line in sink.lines[1:]:
        entry = json.loads(line)
        assert entry["logging.googleapis.com/trace"] == f"projects/acme/traces/{trace}"
        assert entry["logging.googleapis.com/spanId"] == span


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "garbage",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f'00-{TRACE}-00f067aa0ba902b7-01","severity":"ALERT',
        f"{TRACE}/1\r\nx",
        f"{TRACE}/{'9' * 21}",
        f"{TRACE}/\u0661",
        "\x1b[2J",
        "é" * 5000,
    ],
)
def test_garbage_for_a_trace_is_left_out(audit: Audit, sink: Lines, garbage: str) -> None:
    refused(audit, PathUnknown(), HTTP_TRACEPARENT=garbage, HTTP_X_CLOUD_TRACE_CONTEXT=garbage)
    assert json.loads(sink.lines[-1]).keys() == {"severity", "time", "message", "countersign", LABELS}


# ---------------------------------------------------------------- what nobody foresaw


def test_unforeseen_exception_is_500_and_on_record_by_type_and_place(audit: Audit, sink: Lines) -> None:
    def stumble() -> None:
        raise ZeroDivisionError(f"the key is {UPSTREAM_KEY}")

    with Record(audit, {"RAW_URI": TARGET}) as record:
        stumble()
    response = respond(record)
    assert (response.status, json.loads(response.body)["reason"]) == (500, "unforeseen")
    (line,) = sink.ours("refusal")
    assert re.fullmatch(r"ZeroDivisionError in stumble:\d+", line["note"])
    assert UPSTREAM_KEY not in "".join(sink.lines) + response.body.decode()
    assert json.loads(sink.lines[-1])["severity"] == "ERROR"


def test_unforeseen_exception_after_the_intent_is_an_unknown_outcome(audit: Audit, sink: Lines) -> None:
    grant = granted()
    with Record(audit, {"RAW_URI": TARGET}) as record:
        record.caller, record.grant, record.admission = grant.caller, grant, ADMISSION
        record.intent(ADMISSION)
        raise ZeroDivisionError(UPSTREAM_KEY)
    response = respond(record)
    assert (response.status, json.loads(response.body)["reason"]) == (424, "outcome-unknown")
    intent, end = sink.ours("intent", "refusal")
    assert end["audit_id"] == intent["audit_id"] == record.audit_id
    assert UPSTREAM_KEY not in "".join(sink.lines)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_end_of_the_process_is_not_answered(audit: Audit, sink: Lines, kind: type[BaseException]) -> None:
    with pytest.raises(kind), Record(audit, {"RAW_URI": TARGET}):
        raise kind
    assert sink.lines == []


def test_exception_of_a_stage_answers_500_through_the_framework(
    function: Callable[..., Function], upstream: Appgregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = function()

    def stumble(*_: object) -> None:
        raise LookupError(UPSTREAM_KEY)

    monkeypatch.setattr("gateway.secrets.Secrets.access", stumble)
    response = gate.post(TARGET)
    assert (response.status_code, response.json and response.json["reason"]) == (500, "unforeseen")
    assert upstream.calls == ()
    assert "LookupError in stumble" in gate.record.text()
    assert UPSTREAM_KEY not in gate.record.text() + response.text


def test_keys_are_nowhere_in_the_record_of_a_real_call(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function()
    for fault in ("leak_key", "echo_key", "error_401", "close_after", "html_502"):
        upstream.fail_next(fault)
        gate.post(body=f"customer=cus_1&description={KEY}")
    gate.post(key=KEY + "x")
    for text in (UPSTREAM_KEY, KEY, UPSTREAM_KEY[::-1], UPSTREAM_KEY.encode().hex()):
        assert text not in gate.record.text()
    assert len(gate.record.entries()) == 11
