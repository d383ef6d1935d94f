"""The chain: that it hangs together, that any edit is found, and that nothing breaks or floods it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from console.audit import verify
from gateway.answering import respond
from gateway.chain import FLOOD, Audit, audit_id_of, line_hash
from gateway.record import Record
from policies.foresight import Would
from policies.model import Outcome
from policies.outcomes import Reply
from policies.refusals import BodyMalformed, CredentialUnknown, PathUnknown, RecordUnavailable, UpstreamBusy
from sandbox.__main__ import ROOT
from tests.conftest import TARGET
from tests.gateway.conftest import ADMISSION, SUCCEEDED, Lines, at_once, found, granted, refused, sent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Clock


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
        with Record(audit, {"RAW_URI": TARGET}) as record:
            record.caller, record.grant = grant.caller, grant
            record.preview(Would.SEND)
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
            report = verify(export[:begin] + export[end:])
            # What is missing at the beginning may be in another export.
            assert report.faults if begin else report.doubts, (begin, end)


def test_every_swap_of_two_lines_is_found(export: list[str]) -> None:
    for one in range(30):
        for other in range(one):
            swapped = export.copy()
            swapped[one], swapped[other] = swapped[other], swapped[one]
            report = verify(swapped)
            assert (report.faults, len(report.doubts)) == ([], 1), (one, other)
            assert "stand out of order" in report.doubts[0]


def test_lines_that_come_backwards_or_twice_are_no_finding(export: list[str]) -> None:
    orders = [export[::-1], export[20:] + export[:20], export + export, export[5:15] + export, export + export[::-1]]
    orders += [export[: number + 1] + export[number:] for number in range(30)]
    orders += [[*export, export[number]] for number in range(30)]
    for order in orders:
        report = verify(order)
        assert (report.lines, report.faults, report.doubts) == (30, [], [])
        assert report.repeated == len(order) - 30


def test_changed_line_that_comes_beside_the_true_one_is_found(export: list[str]) -> None:
    for number, line in enumerate(export):
        entry = json.loads(line)
        entry["countersign"]["time"] = "2001-01-01T00:00:00.000000Z"
        entry["countersign"] = fitting(entry, entry["countersign"])
        for order in ([*export, json.dumps(entry)], [json.dumps(entry), *export[::-1]]):
            assert verify(order).faults, number


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
        assert found([*export[:number], other.lines[1], *export[number + 1 :]])


def test_edit_whose_hash_was_made_to_fit_is_found_by_the_next_line(export: list[str]) -> None:
    entry = json.loads(export[1])
    entry["countersign"] = fitting(entry, entry["countersign"] | {"caller": "somebody-else"})
    assert verify([export[0], json.dumps(entry), *export[2:]]).faults


def fitting(entry: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Make a changed line hold in itself, as a forger would."""
    digest = line_hash(entry["severity"], entry["message"], content)
    return content | {"hash": digest, "audit_id": audit_id_of(content["instance"], content.get("intent") or digest)}


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
from gateway.chain import Audit
from gateway.record import Record
from gateway.sinks import to_file
from policies.refusals import PathUnknown
audit = Audit(to_file({str(tmp_path / "audit.jsonl")!r}), policy="p")
def refuse():
    with Record(audit, {{}}):
        raise PathUnknown
refuse()
child = os.fork()
refuse()
if child:
    os.waitpid(child, 0)
    refuse()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    report = verify(lines)
    assert (report.lines, report.instances, report.faults, report.doubts) == (8, 2, [], [])


def test_digest_of_a_value_tells_equal_values_apart_in_one_process_only(audit: Audit) -> None:
    assert audit.keyed_digest("cus_1") == audit.keyed_digest("cus_1") != audit.keyed_digest("cus_2")
    assert audit.keyed_digest("cus_1") != Audit(Lines(), policy="").keyed_digest("cus_1")


# ---------------------------------------------------------------- a record that cannot be written


def test_sink_that_fails_refuses_the_call_and_loses_no_place_in_the_chain(audit: Audit, sink: Lines) -> None:
    sent(audit)
    sink.failing = True
    record = sent(audit)
    response = respond(record)
    assert (response.status, json.loads(response.body)["reason"]) == (503, "record-unavailable")
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
    assert respond(sent(audit)).status == 503
    audit.close()
    sink.failing = False
    assert respond(sent(audit)).status == 200
    audit.close()
    assert not found(sink.lines)
    assert [entry["kind"] for entry in sink.ours()] == ["start", "intent", "outcome", "stop"]


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
    (count,) = sink.ours("counted")
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
    counted = sum(line["count"] for line in sink.ours("counted"))
    assert counted + len(sink.ours("refusal")) == 3000
    assert counted > 0


def test_what_was_counted_is_reported_at_the_end(audit: Audit, sink: Lines) -> None:
    for _ in range(FLOOD + 3):
        refused(audit, PathUnknown())
    audit.close()
    assert [entry["kind"] for entry in sink.ours()][-2:] == ["counted", "stop"]
    assert sink.ours("counted")[0]["count"] == 3


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
    assert [line["count"] for line in sink.ours("counted")] == [3]


def test_audit_id_of_a_refusal_that_was_only_counted_says_so_and_is_known(
    audit: Audit, sink: Lines, clock: Clock
) -> None:
    ids = [refused(audit, PathUnknown()).audit_id for _ in range(50)]
    assert len(set(ids)) == 50
    own = re.compile(f"{audit.instance}-[0-9a-f]{{24}}")
    assert all(own.fullmatch(audit_id) for audit_id in ids[:FLOOD])
    for number, audit_id in enumerate(ids[FLOOD:], 1):
        # It names the last line before it, which it proves, so that the refusal has its place in the record.
        assert audit_id == f"{sink.ours()[-1]['audit_id']}-counted-1-{number}"
    assert "the line with the count is not here" in "".join(verify(sink.lines, ids).doubts)
    clock.tick(1)
    refused(audit, PathUnknown())
    audit.close()
    report = verify(sink.lines, ids)
    assert (report.faults, report.doubts) == ([], [])
    forged = f"{audit.instance}-{'0' * 23}1-counted-1-1"
    assert verify(sink.lines, [forged]).faults == [f"audit id {forged}: the line that stood before it is missing"]


def test_audit_id_of_a_refusal_that_could_not_be_written_says_so(audit: Audit, sink: Lines) -> None:
    sink.failing = True
    first = refused(audit, PathUnknown()).audit_id
    sink.failing = False
    refused(audit, PathUnknown())
    sink.failing = True
    second = refused(audit, PathUnknown()).audit_id
    assert (first, second) == (
        f"{audit.instance}-{'0' * 24}-unwritten-1",
        f"{sink.ours()[-1]['audit_id']}-unwritten-2",
    )
    sink.failing = False
    audit.close()
    assert verify(sink.lines, [second]).faults == []


def test_audit_id_without_a_line_is_of_the_chain_that_was_in_force(audit: Audit, sink: Lines) -> None:
    """A chain ends at SIGTERM while calls still run; an id must not name one and prove another."""
    ids: list[str] = []

    def work(number: int) -> None:
        for _ in range(100):
            if number:
                ids.append(refused(audit, PathUnknown()).audit_id)
            else:
                audit.close()

    at_once(4, work)
    audit.close()
    assert verify(sink.lines, ids).faults == []


def test_end_of_a_sent_call_is_written_however_many_end_so(audit: Audit, sink: Lines) -> None:
    """What fails after the send is no flood: each intent keeps its end."""
    grant = granted()
    for _ in range(FLOOD + 5):
        with Record(audit, {"RAW_URI": TARGET}) as record:
            record.caller, record.grant, record.admission = grant.caller, grant, ADMISSION
            record.intent(ADMISSION)
            raise KeyError("after the send")
        assert respond(record).status == 424
    audit.close()
    assert not found(sink.lines)
