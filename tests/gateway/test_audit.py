"""The record: what is written when, that it hangs together, and that nothing breaks or drowns it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from console.audit import verify
from gateway.audit import FLOOD, MAX_VALUE, Audit, Descriptor, Record, to_file
from policies.model import Admission, Outcome
from policies.outcomes import Reply
from policies.refusals import (
    BodyMalformed,
    CredentialUnknown,
    PathUnknown,
    RecordUnavailable,
    UpstreamBusy,
)
from sandbox.__main__ import ROOT, UPSTREAM_KEY
from tests.conftest import KEY, TARGET
from tests.gateway.conftest import Clock, at_once, granted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from policies.model import Grant
    from sandbox.appgregator import Appgregator
    from tests.conftest import Function

ADMISSION = Admission((), "0123456789abcdef", 0)
SUCCEEDED = Reply(Outcome.SUCCEEDED, answer={"id": "in_1"}, created="in_1", upstream_status=200)


class Lines:
    """A sink in memory, which can be told to fail."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failing = False
        self.tries = 0

    def write(self, line: bytes) -> None:
        self.tries += 1
        if self.failing:
            raise OSError("no space left")
        self.lines.append(line.decode("ascii"))

    def ours(self, *kinds: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = [json.loads(line)["countersign"] for line in self.lines]
        return [entry for entry in entries if not kinds or entry["kind"] in kinds]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sink() -> Lines:
    return Lines()


@pytest.fixture
def audit(sink: Lines, clock: Clock) -> Audit:
    return Audit(sink, policy="p" * 64, clock=clock, monotonic=clock)


def sent(audit: Audit, grant: Grant | None = None, reply: Reply = SUCCEEDED, **environ: str) -> Record:
    """Record a call that is sent."""
    grant = grant or granted()
    with audit.open(environ) as record:
        record.caller, record.grant, record.admission = grant.caller, grant, ADMISSION
        record.intent(ADMISSION)
        answer = record.answer_to(reply)
        record.close(reply, answer, settled=True)
    return record


def refused(audit: Audit, refusal: Exception, **environ: str) -> Record:
    with audit.open(environ) as record:
        raise refusal
    return record


def found(lines: list[str], *anchors: str) -> bool:
    report = verify(lines, anchors)
    return bool(report.faults or report.doubts)


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
    assert json.loads(record.answer.body)["audit_id"] == line["audit_id"] == record.audit_id
    assert "expired" not in record.answer.body.decode()


def test_line_is_one_of_cloud_loggings(audit: Audit, sink: Lines, clock: Clock) -> None:
    sent(audit)
    for line in sink.lines:
        entry = json.loads(line)
        assert entry.keys() == {"severity", "time", "message", "countersign"}
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
    with audit.open({}) as record:
        record.caller, record.grant = grant.caller, grant
        record.intent(ADMISSION)
        record.close(SUCCEEDED, record.answer_to(SUCCEEDED), settled=False)
    assert record.answer.status == 200
    assert sink.ours("outcome")[0]["alarm"] == "the outcome could not be kept in the store"


# ---------------------------------------------------------------- values


def test_parameters_are_on_record_by_name_and_digest_and_by_value_only_where_listed(audit: Audit, sink: Lines) -> None:
    sent(audit, granted(body="customer=cus_secret&description=private&metadata[order_id]=order-7"))
    (intent,) = sink.ours("intent")
    assert list(intent["parameters"]) == ["customer", "description", "metadata[order_id]"]
    assert intent["values"] == {"metadata[order_id]": "order-7"}
    assert "cus_secret" not in "".join(sink.lines)
    assert "private" not in "".join(sink.lines)


def test_digest_of_a_value_tells_equal_values_apart_in_one_process_only(audit: Audit) -> None:
    assert audit.keyed_digest("cus_1") == audit.keyed_digest("cus_1") != audit.keyed_digest("cus_2")
    assert audit.keyed_digest("cus_1") != Audit(Lines(), policy="").keyed_digest("cus_1")


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


# ---------------------------------------------------------------- the chain


@pytest.fixture
def export(audit: Audit, sink: Lines, clock: Clock) -> list[str]:
    """Thirty lines: calls of every kind, from start to stop."""
    grant = granted(body="customer=cus_1&metadata[order_id]=o-7", idempotency_key="order-1")
    for number in range(10):
        clock.tick(0.217)
        sent(audit, grant, SUCCEEDED if number % 3 else Reply(Outcome.UNKNOWN, refusal=UpstreamBusy(note="é")))
    for refusal in (PathUnknown(), BodyMalformed(), CredentialUnknown(), PathUnknown()):
        clock.tick(1.9)
        refused(audit, refusal)
    for _ in range(2):
        with audit.open({}) as record:
            record.caller, record.grant = grant.caller, grant
            record.preview({"body": "x"})
    refused(audit, KeyError("x"))
    refused(audit, PathUnknown())
    audit.close()
    assert len(sink.lines) == 30
    return sink.lines


def test_chain_verifies(export: list[str]) -> None:
    ids = [json.loads(line)["countersign"]["audit_id"] for line in export]
    report = verify(export, ids)
    assert (report.lines, report.instances, report.faults, report.doubts) == (30, 1, [], [])


def mutants(line: str, step: int) -> Iterator[str]:
    """Every ``step``-th byte of what is hashed of a line, changed to another, where that changes what the line says."""
    content = json.loads(line)["countersign"]
    for place in range(line.index('"countersign"'), len(line) - 1, step):
        for byte in {"0" if line[place] != "0" else "1", chr(ord(line[place]) ^ 1)}:
            mutant = line[:place] + byte + line[place + 1 :]
            try:
                if json.loads(mutant).get("countersign") == content:
                    continue
            except (ValueError, AttributeError):
                pass
            yield mutant


def test_every_changed_byte_of_every_line_is_found(export: list[str]) -> None:
    anchor = json.loads(export[-2])["countersign"]["audit_id"]
    tried = 0
    for number, line in enumerate(export):
        # All bytes of the two lines of one call; of the others, ones that fall on each member in turn.
        for mutant in mutants(line, 1 if number in {1, 2} else 17):
            tried += 1
            assert found([*export[:number], mutant, *export[number + 1 :]], anchor), mutant
    assert tried > 3000


def test_every_deleted_line_is_found(export: list[str]) -> None:
    for number in range(30):
        assert found(export[:number] + export[number + 1 :]), number


def test_every_deleted_stretch_is_found(export: list[str]) -> None:
    for begin in range(29):
        for end in range(begin + 1, 30):
            assert verify(export[:begin] + export[end:]).faults


def test_every_swap_of_two_lines_is_found(export: list[str]) -> None:
    for one in range(30):
        for other in range(one):
            swapped = export.copy()
            swapped[one], swapped[other] = swapped[other], swapped[one]
            assert verify(swapped).faults, (one, other)


def test_reversed_and_repeated_lines_are_found(export: list[str]) -> None:
    assert verify(export[::-1]).faults
    for number in range(30):
        assert verify(export[: number + 1] + export[number:]).faults


def test_every_truncation_is_found_and_proven_by_an_anchor(export: list[str]) -> None:
    anchor = json.loads(export[-2])["countersign"]["audit_id"]
    assert found(export[:-1], anchor)  # only the stop line is gone
    for length in range(29):
        assert verify(export[:length], [anchor]).faults, length


def test_line_of_another_chain_is_found(export: list[str]) -> None:
    other = Lines()
    forged = Audit(other, policy="p" * 64)
    refused(forged, PathUnknown())
    forged.close()
    for number in range(1, 30):
        assert verify([*export[:number], other.lines[1], *export[number + 1 :]]).faults


def test_edit_whose_hash_was_made_to_fit_is_found_by_the_next_line(export: list[str]) -> None:
    from gateway.audit import audit_id_of, line_hash  # noqa: PLC0415 - the forger's tools

    entry = json.loads(export[1])
    content = entry["countersign"]
    content["caller"] = "somebody-else"
    content["hash"] = line_hash(content)
    content["audit_id"] = audit_id_of(content["instance"], content["hash"])
    assert verify([export[0], json.dumps(entry), *export[2:]]).faults


def doubled(value: Any) -> Any:
    """Write numbers as Cloud Logging keeps them."""
    match value:
        case bool():
            return value
        case int():
            return float(value)
        case dict():
            return {name: doubled(inner) for name, inner in value.items()}
        case list():
            return [doubled(inner) for inner in value]
    return value


def test_export_of_cloud_logging_verifies(export: list[str]) -> None:
    exported = []
    for number, line in enumerate(export):
        entry = json.loads(line)
        payload = {"message": entry["message"], "countersign": doubled(entry["countersign"])}
        exported.append(
            json.dumps({"insertId": str(number), "jsonPayload": payload, "severity": entry["severity"]}, indent=None)
        )
    exported.insert(7, json.dumps({"textPayload": "a line of somebody else"}))
    exported.insert(9, "")
    assert '"sequence": 3.0' in exported[3]
    report = verify(exported)
    assert (report.lines, report.faults, report.doubts) == (30, [], [])
    assert verify(exported[:4] + exported[5:]).faults


def test_lines_of_many_threads_are_one_chain(sink: Lines) -> None:
    audit = Audit(sink, policy="p" * 64)
    grant = granted()
    ids = at_once(20, lambda _: [sent(audit, grant).audit_id for _ in range(10)])
    audit.close()
    known = [audit_id for group in ids for audit_id in group]
    assert len(set(known)) == 200
    report = verify(sink.lines, known)
    assert (report.lines, report.faults, report.doubts) == (402, [], [])


def test_record_that_goes_on_after_its_end_begins_a_new_chain(audit: Audit, sink: Lines) -> None:
    refused(audit, PathUnknown())
    audit.close()
    audit.close()
    refused(audit, PathUnknown())
    audit.close()
    report = verify(sink.lines)
    assert (report.instances, report.faults, report.doubts) == (2, [], [])


def test_forked_process_begins_its_own_chain(tmp_path: Path) -> None:
    program = f"""
import os
from gateway.audit import Audit, to_file
from policies.refusals import PathUnknown
audit = Audit(to_file({str(tmp_path / "audit.jsonl")!r}), policy="p")
def refuse():
    with audit.open({{}}):
        raise PathUnknown
refuse()
child = os.fork()
refuse()
if child:
    os.waitpid(child, 0)
    refuse()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=20)
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    report = verify(lines)
    assert (report.lines, report.instances, report.faults, report.doubts) == (8, 2, [], [])


# ---------------------------------------------------------------- a record that cannot be written


def test_sink_that_fails_refuses_the_call_and_loses_no_place_in_the_chain(audit: Audit, sink: Lines) -> None:
    sent(audit)
    sink.failing = True
    record = sent(audit)
    assert (record.answer.status, json.loads(record.answer.body)["reason"]) == (503, "record-unavailable")
    assert record.audit_id.startswith(audit.instance)
    sink.failing = False
    sent(audit)
    audit.close()
    assert not found(sink.lines)
    assert len(sink.lines) == 6


def test_record_that_cannot_begin_refuses_and_begins_later(audit: Audit, sink: Lines) -> None:
    sink.failing = True
    with pytest.raises(RecordUnavailable):
        audit.write("intent", {}, "INFO", "intent")
    assert sent(audit).answer.status == 503
    audit.close()
    sink.failing = False
    assert sent(audit).answer.status == 200
    audit.close()
    assert not found(sink.lines)
    assert [entry["kind"] for entry in sink.ours()] == ["start", "intent", "outcome", "stop"]


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
    with audit.open({}) as record:
        record.caller, record.grant, record.admission = grant.caller, grant, ADMISSION
        record.intent(ADMISSION)
        sink.failing = True
        record.close(SUCCEEDED, record.answer_to(SUCCEEDED), settled=True)
    assert record.answer.status == 200
    assert json.loads(record.answer.body)["id"] == "in_1"
    cried = json.loads(capsys.readouterr().err)
    assert cried["severity"] == "ALERT"
    assert record.audit_id in cried["message"]


def test_refusal_that_cannot_be_written_is_answered_all_the_same(
    audit: Audit, sink: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    sink.failing = True
    record = refused(audit, PathUnknown())
    assert record.answer.status == 404
    assert "could not be recorded" in capsys.readouterr().err


def test_line_that_was_torn_does_not_spoil_the_next() -> None:
    """The reader of a log takes half a line and no more, and later all."""
    reader, writer = os.pipe()
    audit = Audit(Descriptor(writer), policy="p" * 64)
    sent(audit)
    with pytest.raises(RecordUnavailable):
        audit.write("intent", {"long": "x" * 2 * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)}, "INFO", "intent")
    lines = os.read(reader, 1_000_000)
    sent(audit)
    audit.close()
    lines += os.read(reader, 1_000_000)
    os.close(reader)
    os.close(writer)
    report = verify(lines.decode().splitlines())
    assert (report.lines, report.doubts) == (6, [])
    assert report.faults == ["line 4: this is not JSON; it was torn or edited"]


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads, full to the last page."""
    reader, writer = os.pipe()
    os.write(writer, b"x" * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_log_that_nobody_takes_refuses_calls_within_a_second_however_many_wait(full_pipe: tuple[int, int]) -> None:
    audit = Audit(Descriptor(full_pipe[1]), policy="p" * 64)
    grant = granted()

    def call(_: int) -> tuple[int, float]:
        began = time.monotonic()
        return sent(audit, grant).answer.status, time.monotonic() - began

    results = at_once(20, call)
    assert {status for status, _ in results} == {503}
    assert max(seconds for _, seconds in results) < 2


def test_log_that_is_taken_again_is_written_again(full_pipe: tuple[int, int]) -> None:
    reader, writer = full_pipe
    audit = Audit(Descriptor(writer), policy="p" * 64)
    assert sent(audit).answer.status == 503
    os.read(reader, fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    assert sent(audit).answer.status == 200
    audit.close()
    assert not found(os.read(reader, 65536).decode().splitlines())


def test_whoever_shares_the_pipe_still_waits_for_room(full_pipe: tuple[int, int]) -> None:
    """Its other writers expect a write to wait, and a flag on what they share would have theirs fail."""
    _, writer = full_pipe
    sink = Descriptor(writer)
    with pytest.raises(TimeoutError):
        sink.write(b"x")
    assert os.get_blocking(writer)


@pytest.mark.parametrize("kind", ["socket", "pipe without /proc"])
def test_log_that_is_no_pipe_of_ours_is_written_and_given_up_the_same_way(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "socket":
        left, right = socket.socketpair()
        reader, writer = left.detach(), right.detach()
    else:
        monkeypatch.setattr("gateway.audit._never_blocking", lambda _: None)
        reader, writer = os.pipe()
    sink = Descriptor(writer)
    assert sink._pipe is None
    sink.write(b"a line\n")
    assert os.read(reader, 100) == b"a line\n"
    filled = iter(lambda: sink.write(b"x" * 4000), "never")
    with pytest.raises(TimeoutError):
        list(filled)
    os.close(reader)
    with pytest.raises(OSError, match=r"pipe|reset"):
        sink.write(b"x")
    os.close(writer)


def test_pipe_whose_reader_is_gone_is_refused() -> None:
    reader, writer = os.pipe()
    sink = Descriptor(writer)
    os.close(reader)
    with pytest.raises(OSError, match="cannot be written"):
        sink.write(b"x")
    os.close(writer)


def test_line_longer_than_a_pipe_arrives_whole_while_somebody_reads() -> None:
    reader, writer = os.pipe()
    received = b""

    def read() -> None:
        nonlocal received
        while chunk := os.read(reader, 65536):
            received += chunk

    thread = threading.Thread(target=read)
    thread.start()
    sink = Descriptor(writer)
    audit = Audit(sink, policy="p" * 64)
    audit.write("intent", {"long": "x" * 300_000}, "INFO", "intent")
    audit.close()
    for end in (writer, sink._pipe):
        if end is not None:
            os.close(end)
    thread.join(timeout=30)
    os.close(reader)
    assert verify(received.decode().splitlines()).faults == []
    assert len(received) > 300_000


def test_file_is_appended_to_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(2):
        audit = Audit(to_file(str(path)), policy="p" * 64)
        refused(audit, PathUnknown())
        audit.close()
    report = verify(path.read_text().splitlines())
    assert (report.instances, report.lines, report.faults, report.doubts) == (2, 6, [], [])
    assert path.stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------- floods


def test_flood_of_one_reason_is_counted_and_others_are_written(audit: Audit, sink: Lines, clock: Clock) -> None:
    for number in range(5000):
        refused(audit, PathUnknown())
        if number % 1000 == 0:
            refused(audit, CredentialUnknown())
    assert len([line for line in sink.ours("refusal") if line["reason"] == "path-unknown"]) == FLOOD
    assert len([line for line in sink.ours("refusal") if line["reason"] == "credential-unknown"]) == 5
    clock.tick(1)
    refused(audit, PathUnknown())
    (count,) = sink.ours("refusals")
    assert (count["reason"], count["count"]) == ("path-unknown", 5000 - FLOOD)
    assert len(sink.ours("refusal")) == FLOOD + 6
    audit.close()
    assert not found(sink.lines)


def test_every_refusal_of_a_flood_is_written_or_counted_once(audit: Audit, sink: Lines, clock: Clock) -> None:
    for number in range(3000):
        refused(audit, PathUnknown())
        if number % 70 == 0:
            clock.tick(0.31)
    audit.close()
    counted = sum(line["count"] for line in sink.ours("refusals"))
    assert counted + len(sink.ours("refusal")) == 3000
    assert counted > 0


def test_what_was_counted_is_reported_at_the_end(audit: Audit, sink: Lines) -> None:
    for _ in range(FLOOD + 3):
        refused(audit, PathUnknown())
    audit.close()
    assert [entry["kind"] for entry in sink.ours()][-2:] == ["refusals", "stop"]
    assert sink.ours("refusals")[0]["count"] == 3


def test_count_that_cannot_be_written_is_kept(
    audit: Audit, sink: Lines, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(FLOOD + 3):
        refused(audit, PathUnknown())
    clock.tick(1)
    sink.failing = True
    refused(audit, PathUnknown())
    sink.failing = False
    clock.tick(1)
    refused(audit, PathUnknown())
    assert [line["count"] for line in sink.ours("refusals")] == [3]


def test_refusal_that_was_only_counted_has_an_audit_id_of_its_own(audit: Audit) -> None:
    ids = {refused(audit, PathUnknown()).audit_id for _ in range(50)}
    assert len(ids) == 50
    assert all(audit_id.startswith(f"{audit.instance}-") for audit_id in ids)


def test_end_of_a_sent_call_is_written_however_many_end_so(audit: Audit, sink: Lines) -> None:
    """What fails after the send is no flood: each intent keeps its end."""
    grant = granted()
    for _ in range(FLOOD + 5):
        with audit.open({}) as record:
            record.caller, record.grant, record.admission = grant.caller, grant, ADMISSION
            record.intent(ADMISSION)
            raise KeyError("after the send")
        assert record.answer.status == 424
    audit.close()
    assert not found(sink.lines)


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
    assert json.loads(sink.lines[-1]).keys() == {"severity", "time", "message", "countersign"}


# ---------------------------------------------------------------- what nobody foresaw


def test_unforeseen_exception_is_500_and_on_record_by_type_and_place(audit: Audit, sink: Lines) -> None:
    def stumble() -> None:
        raise ZeroDivisionError(f"the key is {UPSTREAM_KEY}")

    with audit.open({}) as record:
        stumble()
    assert (record.answer.status, json.loads(record.answer.body)["reason"]) == (500, "unforeseen")
    (line,) = sink.ours("refusal")
    assert re.fullmatch(r"ZeroDivisionError in stumble:\d+", line["note"])
    assert UPSTREAM_KEY not in "".join(sink.lines) + record.answer.body.decode()
    assert json.loads(sink.lines[-1])["severity"] == "ERROR"


def test_unforeseen_exception_after_the_intent_is_an_unknown_outcome(audit: Audit, sink: Lines) -> None:
    grant = granted()
    with audit.open({}) as record:
        record.caller, record.grant, record.admission = grant.caller, grant, ADMISSION
        record.intent(ADMISSION)
        raise ZeroDivisionError(UPSTREAM_KEY)
    assert (record.answer.status, json.loads(record.answer.body)["reason"]) == (424, "outcome-unknown")
    intent, end = sink.ours("intent", "refusal")
    assert end["audit_id"] == intent["audit_id"] == record.audit_id
    assert UPSTREAM_KEY not in "".join(sink.lines)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_end_of_the_process_is_not_answered(audit: Audit, sink: Lines, kind: type[BaseException]) -> None:
    with pytest.raises(kind), audit.open({}):
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
