"""``countersign audit verify``: finds any edit, deletion and insertion in exports of the record, and accuses nobody."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from console import exports
from console.__main__ import main
from console.audit import _as_written, _read, verify, verify_files
from gateway.chain import Audit, signed
from gateway.kept import DownError
from gateway.signing import RecordKey, new_key, text_of
from policies.model import Outcome
from policies.outcomes import Reply
from policies.refusals import PathUnknown, UpstreamBusy
from sandbox.__main__ import ROOT
from tests.conftest import TARGET
from tests.gateway.conftest import Lines, granted, refused, sent
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server


PAIR = new_key()
PEM, PUBLIC = text_of(PAIR).encode(), PAIR.public_key()

_MADE: list[tuple[str, list[str]]] = []


@pytest.fixture
def export(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, list[str]]:
    """A whole record of a real server, from start to stop, and the audit ids that its callers were given.

    It is made once, since a server takes a second to start; every test has its own copy.
    """
    if not _MADE:
        running: Server = request.getfixturevalue("server")()
        keyed = {"Idempotency-Key": "a"}
        answers = [
            running.call(headers=keyed),
            running.call(headers=keyed),
            running.call(f"{TARGET}&validate_only=true"),
            running.call(key="nobody"),
            running.call(body=b"customer=cus_fault_empty"),
        ]
        running.stop()
        _MADE.append((running.record.text(), [headers["countersign-audit-id"] for _, headers, _ in answers]))
    text, ids = _MADE[0]
    (tmp_path / "export.jsonl").write_text(text)
    return tmp_path / "export.jsonl", ids


def test_whole_record_holds(export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    path, ids = export
    assert main(["audit", "verify", str(path), *(word for one in ids for word in ("--has", one))]) == 0
    assert capsys.readouterr().out == (
        "9 lines of 1 instances: nothing was edited, removed or inserted, 0 to look at.\n"
        "No signature was checked: whoever can rewrite the record can make its hashes fit. "
        "The record has none: RECORD_KEY is not set.\n"
    )


def test_standard_input_and_the_form_that_gcloud_exports_are_read(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cloud Logging nests a line under jsonPayload and keeps whole numbers as doubles."""

    def doubles(value: object) -> object:
        match value:
            case bool() | str():
                return value
            case int():
                return float(value)
            case dict():
                return {name: doubles(inner) for name, inner in value.items()}
        return value

    path, ids = export
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    exported = "".join(
        json.dumps({"insertId": "x", "severity": line.pop("severity"), "jsonPayload": doubles(line)}) + "\n"
        for line in lines
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(exported.encode())))
    assert main(["audit", "verify", "-", "--has", ids[0]]) == 0, capsys.readouterr().out
    assert "9 lines of 1 instances" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["as written", "Cloud Logging"])
@pytest.mark.parametrize("line", range(9))
def test_what_people_read_of_a_line_is_proved_too(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], line: int, form: str
) -> None:
    path, _ = export
    entries = [json.loads(written) for written in path.read_text().splitlines()]
    labels = "logging.googleapis.com/labels"
    others: list[dict[str, Any]] = [{"message": "all is well"}, {"message": None}, {"severity": "DEBUG"}]
    others += [{labels: entries[line][labels] | {name: "mallory"}} for name in entries[line].get(labels, ())]
    for other in others:
        changed = [entry | other if number == line else entry for number, entry in enumerate(entries)]
        if form == "Cloud Logging":
            moved = [exported(json.dumps(entry), number) for number, entry in enumerate(changed)]
            changed = [one | {"labels": entry.get(labels, {})} for one, entry in zip(moved, changed, strict=True)]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in changed))
        assert main(["audit", "verify", str(path)]) == 1, other
        assert f"WRONG    {path}:{line + 1}: " in capsys.readouterr().out


@pytest.mark.parametrize("line", range(9))
def test_any_edit_of_any_line_is_found(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], line: int
) -> None:
    path, _ = export
    lines = path.read_text().splitlines()
    members = json.loads(lines[line])["countersign"]
    for name, value in members.items():
        changed = json.loads(lines[line])
        changed["countersign"][name] = value + 1 if isinstance(value, int) else f"{value}x"
        path.write_text("\n".join([*lines[:line], json.dumps(changed), *lines[line + 1 :]]) + "\n")
        assert main(["audit", "verify", str(path)]) == 1, name
        assert "WRONG" in capsys.readouterr().out
    added = json.loads(lines[line])
    added["countersign"]["new"] = 1
    path.write_text("\n".join([*lines[:line], json.dumps(added), *lines[line + 1 :]]) + "\n")
    assert main(["audit", "verify", str(path)]) == 1


@pytest.mark.parametrize("line", range(1, 9))
def test_removed_swapped_and_truncated_lines_are_found(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], line: int
) -> None:
    path, _ = export
    lines = path.read_text().splitlines()
    before, this, after = lines[:line], lines[line], lines[line + 1 :]
    last, swapped = line == 8, [*before[:-1], this, before[-1], *after]
    for edited, expected, says in (
        ([*before, *after], 3 if last else 1, "no stop line" if last else f"sequence {line} is missing"),
        ([*before, this[: len(this) // 2], *after], 3 if last else 1, f":{line + 1}: this is not a whole line"),
        (swapped, 3, "out of order"),
        ([*before, this, this, *after], 0, "9 lines (1 came twice)"),
    ):
        path.write_text("\n".join(edited) + "\n")
        status, told = main(["audit", "verify", str(path)]), capsys.readouterr().out
        assert (status, says in told) == (expected, True), told


def test_truncation_is_found_by_what_is_left_standing(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, ids = export
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n")  # the start, and an intent
    assert main(["audit", "verify", str(path)]) == 3
    told = capsys.readouterr().out
    assert f"look at  {path}:2: intent {ids[0]} has no outcome" in told
    assert "no stop line" in told
    assert main(["audit", "verify", str(path), "--has", ids[0], "--has", ids[4]]) == 1
    told = capsys.readouterr().out
    assert f"WRONG    audit id {ids[4]}: its line is missing" in told
    assert ids[0] not in told.replace("intent " + ids[0], "")


def test_two_instances_may_stand_mixed(export: tuple[Path, list[str]], server: Callable[..., Server]) -> None:
    path, _ = export
    other = server()
    other.call()
    other.stop()
    first, second = path.read_text().splitlines(), other.record.text().splitlines()
    mixed = [line for pair in zip(first, second, strict=False) for line in pair] + first[len(second) :]
    path.write_text("\n".join(mixed) + "\n")
    assert main(["audit", "verify", str(path)]) == 0


@pytest.mark.parametrize(
    "content", ["", "\n\n", "hello\n", '{"message": "another program\'s line"}\n', "[]\nnull\n7\n"]
)
def test_what_holds_no_record_is_not_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "export").write_text(content)
    assert main(["audit", "verify", str(tmp_path / "export")]) == 1
    assert "0 lines of 0 instances" in capsys.readouterr().out


def test_missing_export_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(tmp_path / "none")]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)


FORGED = [
    '{"countersign": {}}',
    '{"countersign": {"instance": 7}}',
    '{"countersign": {"instance": "\\ud800"}}',
    '{"countersign": {"instance": "\\u001b[2Jabcdef"}}',
    '{"countersign": {"instance": "a", "sequence": "x", "hash": []}}',
    '{"countersign": {"instance": "INSTANCE", "sequence": "x", "hash": []}}',
    '{"countersign": {"instance": "INSTANCE", "sequence": null, "hash": {"a": 1}, "intent": [1]}}',
    '{"countersign": {"instance": "INSTANCE", "sequence": 4, "hash": {"a": 1}, "intent": [1], "kind": ["stop"]}}',
    '{"countersign": {"instance": "INSTANCE", "sequence": true}}',
    '{"countersign": {"instance": "0123456789ab", "sequence": true}}',
    '{"severity":"INFO","countersign":{"instance":"INSTANCE","intent":7,"kind":[],"prev":{},"sequence":4,"hash":7}}',
    '{"countersign": {"instance": "INSTANCE", "sequence": -1}}',
    '{"countersign": {"instance": "INSTANCE", "sequence": 1e999, "kind": "intent"}}',
    '{"countersign": {"instance": "INSTANCE", "sequence": NaN}}',
    '{"countersign": {"instance": "INSTANCE", "sequence": %s}}' % ("9" * 5000),
    '{"countersign": {"instance": "INSTANCE", "sequence": 4, "x": %s}}' % ("9" * 5000),
    '{"countersign": {"instance": "INSTANCE", "sequence": 4, "x": %s}}' % ("9" * 19),
    "[" * 100_000,
    '{"countersign": {"instance": "INSTANCE", "x": ' + "[" * 800 + "]" * 800 + "}}",
    '{"countersign": {"instance": "INSTANCE", "sequence": 4, "x": "\\ud800"}}',
]


@pytest.mark.parametrize("line", FORGED, ids=lambda line: line[:80])
def test_forged_line_is_a_fault_and_never_a_crash(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], line: str
) -> None:
    path, ids = export
    with path.open("a") as lines:
        lines.write(line.replace("INSTANCE", ids[0][:12]) + "\n")
    assert main(["audit", "verify", str(path)]) == 1
    told = capsys.readouterr().out
    assert f"WRONG    {path}:10: " in told
    assert told.replace("\n", "").isprintable()


#: What makes an entry mean one thing to one reader and another to another. ``LINE`` is the line before its last brace.
TWO_MEANINGS = [
    ('"caller":', '"caller":"mallory","caller":'),
    ('"caller":', '"\\u0063aller":"mallory","caller":'),
    ('"countersign":', '"countersign":{"kind":"stop"},"countersign":'),
    ('"countersign":', '"countersign":7,"countersign":'),
    ('{"severity"', '{"jsonPayload":{"countersign":{}},"severity"'),
    ('{"severity"', '{"jsonPayload":null,"jsonPayload":{"countersign":{}},"severity"'),
    ('"parameters":{', '"parameters":{"customer":"a",'),
    ('{"severity"', '{"severity":"DEBUG","severity"'),
]


@pytest.mark.parametrize(("true", "forged"), TWO_MEANINGS)
@pytest.mark.parametrize("where", ["as written", "Cloud Logging"])
def test_entry_with_two_meanings_is_a_fault(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], true: str, forged: str, where: str
) -> None:
    path, _ = export
    lines = path.read_text().splitlines()
    intent = next(number for number, line in enumerate(lines) if '"kind":"intent"' in line)
    if where == "Cloud Logging":
        lines[intent] = '{"insertId":"1","severity":"NOTICE","jsonPayload":' + lines[intent] + "}"
    lines[intent] = lines[intent].replace(true, forged, 1)
    path.write_text("\n".join(lines) + "\n")
    status, told = main(["audit", "verify", str(path)]), capsys.readouterr().out
    if forged.startswith('{"jsonPayload"') and where == "Cloud Logging":  # another program's member, inside ours
        assert (status, "twice" in told) == ((1, True) if "null" in forged else (0, False))
    else:
        assert (status, f"WRONG    {path}:{intent + 1}: it has " in told) == (1, True), told


def test_content_beside_that_of_cloud_logging_is_a_fault(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = export
    lines = path.read_text().splitlines()
    forged = json.loads(lines[3])["countersign"] | {"caller": "mallory"}
    for entry in (
        {"jsonPayload": json.loads(lines[3]), "countersign": forged},
        {"countersign": forged, "jsonPayload": json.loads(lines[3])},
        {"countersign": json.loads(lines[3])["countersign"], "jsonPayload": {}},
    ):
        path.write_text("\n".join([*lines[:3], json.dumps(entry), *lines[4:]]) + "\n")
        assert main(["audit", "verify", str(path)]) == 1
        assert f"WRONG    {path}:4: it has two contents" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        '{"countersign": 7}',
        '{"message": "another program", "a": 1, "a": 2}',
        '{"jsonPayload": {"message": "another program", "a": {"b": 1, "b": 2}}, "labels": {}}',
        '{"textPayload": "half a character: \\ud800"}',
        "",
        "   \r",
        "7",
        "null",
    ],
)
def test_line_of_another_program_is_no_finding(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], line: str
) -> None:
    path, ids = export
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], line, *lines[4:]]) + "\n")
    assert main(["audit", "verify", str(path), "--has", ids[0]]) == 0, capsys.readouterr().out


def exported(line: str, number: int) -> dict[str, Any]:
    """An entry as Cloud Logging keeps it."""
    entry = json.loads(line)
    return {
        "insertId": f"i{number}",
        "jsonPayload": {"message": entry["message"], "countersign": entry["countersign"]},
        "resource": {"labels": {"service_name": "countersign"}, "type": "cloud_run_revision"},
        "severity": entry["severity"],
        "timestamp": entry["time"],
    }


def test_every_form_and_order_of_an_export_is_read(
    export: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, ids = export
    lines = path.read_text().splitlines()
    entries = [exported(line, number) for number, line in enumerate(lines)]
    other = {"textPayload": "} a line of somebody else {", "jsonPayload": None}
    forms = {
        "newest first": "".join(f"{line}\n" for line in reversed(lines)).encode(),
        "gcloud": json.dumps([*reversed(entries), other], indent=2, sort_keys=True).encode(),
        "indent 4": json.dumps([*entries, other], indent=4).encode(),
        "one line": json.dumps([other, *entries]).encode(),
        "jq": "\n".join(json.dumps(entry, indent=2) for entry in entries).encode(),
        "jq -c": "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries).encode(),
        "not ASCII": json.dumps([*entries, {"a": "é"}], ensure_ascii=False).encode(),
        "Windows": b"\xef\xbb\xbf" + "\r\n".join(lines).encode(),
        "Windows, two in one": b"\xef\xbb\xbf" + "\r\n".join([*lines[:4], "\ufeff" + lines[4], *lines[5:]]).encode(),
        "Windows, an array": b"\xef\xbb\xbf" + json.dumps(entries, indent=2).replace("\n", "\r\n").encode(),
        "PowerShell": "\r\n".join([*lines, ""]).encode("utf-16"),
        "PowerShell, other end first": b"\xfe\xff" + "\r\n".join(lines).encode("utf-16-be"),
        "PowerShell, gcloud": json.dumps([*entries, {"a": "\u20ac"}], indent=2, ensure_ascii=False).encode("utf-16"),
        "PowerShell, gzip": gzip.compress("\r\n".join(lines).encode("utf-16")),
        "no end": "\n".join(lines).encode(),
        "gzip": gzip.compress(path.read_bytes()),
        "gzip of two": gzip.compress(b"\n".join(path.read_bytes().splitlines()[:4]) + b"\n")
        + gzip.compress("\n".join(lines[4:]).encode())
        + bytes(512),
        "gzip of an array": gzip.compress(json.dumps(entries, indent=2).encode()),
    }
    for name, content in forms.items():
        (tmp_path / "form").write_bytes(content)
        status = main(["audit", "verify", str(tmp_path / "form"), *(word for one in ids for word in ("--has", one))])
        told = capsys.readouterr().out
        assert (name, status, told.startswith("9 lines of 1 instances: nothing")) == (name, 0, True), told


@pytest.mark.parametrize(("size", "lines"), [(1, 12), (7, 60), (1000, 202)])
def test_entry_of_any_size_is_read_across_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, lines: int
) -> None:
    sink = Lines()
    audit = Audit(sink, policy="p" * 64)
    for number in range(lines - 2):
        audit.write("preview", {"x": '}{\\"' * (number % 37)}, "INFO", "preview")
    audit.close()
    entries = [exported(line, number) for number, line in enumerate(sink.lines)]
    monkeypatch.setattr(exports, "CHUNK", size)
    for content in (
        "".join(sink.lines).encode(),
        json.dumps(entries, indent=2).encode(),
        json.dumps(entries).encode(),
        gzip.compress("".join(sink.lines).encode()),
        b"\xef\xbb\xbf" + json.dumps(entries, indent=2).encode(),
        "".join(sink.lines).encode("utf-16"),
    ):
        (tmp_path / "export").write_bytes(content)
        report = verify_files([str(tmp_path / "export")], [], [], exports.Meter(), lambda _: None)
        assert (report.lines, report.faults, report.doubts) == (lines, [], [])


def test_several_files_are_verified_together_in_any_order(
    export: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, ids = export
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "new").write_text("".join(lines[5:]))
    (tmp_path / "old.gz").write_bytes(gzip.compress("".join(lines[:5]).encode()))
    (tmp_path / "between").write_text("".join(lines[3:7]))
    new, old, between = (str(tmp_path / name) for name in ("new", "old.gz", "between"))
    for files in ([new, old], [old, new], [between, new, old], [new, old, new], [new, between, old]):
        assert main(["audit", "verify", *files, "--has", ids[0]]) == 0, capsys.readouterr().out
    assert main(["audit", "verify", new]) == 3
    assert f"look at  {new}:1: instance {ids[0][:12]} begins at sequence 5." in capsys.readouterr().out
    assert main(["audit", "verify", new, str(path), "--has", ids[0]]) == 0
    (tmp_path / "old").write_text("".join(lines[:4]))
    assert main(["audit", "verify", str(tmp_path / "old"), new]) == 1
    told = capsys.readouterr().out
    assert f"sequence 4 is missing, between {tmp_path / 'old'}:4 and {new}:1. If these files are exports of two" in told


def test_file_that_ends_in_the_middle_is_something_to_look_at(
    export: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = export
    whole = gzip.compress(path.read_bytes())
    for content, says in (
        (whole[:-9], "ends in the middle of its compressed data"),
        (whole[:400] + b"\0" * 50 + whole[450:], "is damaged"),
    ):
        (tmp_path / "cut.gz").write_bytes(content)
        assert main(["audit", "verify", str(tmp_path / "cut.gz"), str(path)]) in {1, 3}
        assert f"look at  {tmp_path / 'cut.gz'}: it {says}" in capsys.readouterr().out
    entries = [exported(line, number) for number, line in enumerate(path.read_text().splitlines())]
    (tmp_path / "cut.json").write_text(json.dumps(entries, indent=2)[:-500])
    assert main(["audit", "verify", str(tmp_path / "cut.json")]) == 3
    assert "this is not a whole line" in capsys.readouterr().out


def test_entry_of_an_array_that_was_cut_is_told_apart_from_the_next(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = export
    entries = [exported(line, number) for number, line in enumerate(path.read_text().splitlines())]
    text = json.dumps(entries, indent=2)
    begin = text.index('"i3"')
    cut = text.index('": {', text.index('"countersign"', begin))
    path.write_text(text[:cut] + text[cut + 30 :])
    assert main(["audit", "verify", str(path)]) == 1
    told = capsys.readouterr().out
    assert told.count("WRONG") == 1
    assert "sequence 3 is missing" in told
    assert f"look at  {path}:{text[:begin].count(chr(10))}: this is not a whole line" in told


def test_edit_of_an_export_in_utf_16_is_found_as_any_other(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = export
    text = path.read_text()
    path.write_bytes(text.replace('"customer"', '"customes"', 1).encode("utf-16"))
    assert main(["audit", "verify", str(path)]) == 1
    assert "WRONG" in capsys.readouterr().out
    path.write_bytes(text.encode("utf-16")[:-301])  # an odd number of bytes: half a character
    assert main(["audit", "verify", str(path)]) == 3
    assert "this is not a whole line" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_public_key_is_read_as_windows_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    sink = Lines()
    audit = Audit(sink, policy="p" * 64, key=RecordKey("k", PEM, lambda: PEM, lambda: 0.0))
    audit.write("preview", {}, "INFO", "preview")
    audit.close()
    (tmp_path / "export").write_text("".join(sink.lines))
    (tmp_path / "record.pub").write_bytes(f"{text_of(PUBLIC)}\r\n".encode(encoding))
    assert main(["audit", "verify", str(tmp_path / "export"), "--key", str(tmp_path / "record.pub")]) == 0
    assert "nothing was edited" in capsys.readouterr().out


def test_stump_that_a_full_disk_left_spoils_nothing(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, ids = export
    lines = path.read_text().splitlines(keepends=True)
    stump = lines[4][:300]
    for between, says in ((stump, ":5: it begins with the stump"), (stump + "\n", ":5: this is not a whole line")):
        path.write_text("".join([*lines[:4], between, *lines[4:]]))
        assert main(["audit", "verify", str(path), "--has", ids[4]]) == 3
        told = capsys.readouterr().out
        assert ("WRONG" in told, says in told) == (False, True)


def test_clock_that_was_set_back_is_something_to_look_at(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = export
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[5], lines[3], lines[6], lines[4], *lines[7:]]))
    assert main(["audit", "verify", str(path)]) == 3
    told = capsys.readouterr().out
    assert told.count("look at  ") == told.count("out of order") == 1


def test_memory_does_not_grow_with_the_export(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    program = f"""
import resource
from console.audit import verify_files
from console.exports import Meter
report = verify_files([{str(path)!r}], [], [], Meter(), lambda _: None)
print(report.lines, len(report.faults), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

    def peak(lines: int) -> int:
        with path.open("wb") as file:
            audit = Audit(file, policy="p" * 64)  # type: ignore[arg-type]  # its write returns something
            for _ in range(lines - 2):
                audit.write("preview", {"caller": "x" * 300}, "INFO", "preview")
            audit.close()
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
        verified, faults, kilobytes = map(int, run.stdout.split())
        assert (verified, faults) == (lines, 0)
        return kilobytes

    assert peak(60_000) - peak(1_000) < 8_000


@pytest.mark.parametrize("wrong", ["nonsense", "fa08e2d5991d", "fa08e2d5991d-be24", "'; drop table"])
def test_audit_id_that_is_none_says_so(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    assert main(["audit", "verify", str(export[0]), "--has", wrong]) == 1
    assert "it is not one of the record's. Copy all of it." in capsys.readouterr().out


def terminal(command: list[str], *, interrupt: bool = False, stdin: int | None = None) -> tuple[int, str]:
    """Run a command with a terminal in the place of standard error; return its status and what was shown there."""
    ours, theirs = pty.openpty()
    # A shell's background job ignores Ctrl-C, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, stdin=stdin, cwd=ROOT) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the other end was closed
            while chunk := os.read(ours, 4096):
                shown += chunk
                if interrupt and b"MB" in shown:
                    interrupt = False
                    process.send_signal(signal.SIGINT)
        status = process.wait(timeout=PATIENCE)
    os.close(ours)
    return status, shown.decode()


def test_progress_is_shown_on_a_terminal_and_cleared_at_the_end(export: tuple[Path, list[str]]) -> None:
    path, _ = export
    path.write_text(path.read_text() + '{"message": "another program"}\n' * 300_000)
    status, shown = terminal([str(ROOT / "countersign"), "audit", "verify", str(path)])
    assert status == 0
    assert re.search(r"\r\[[#.]{20}\] +\d+%  \d+ of 9 MB, 9 lines: nothing wrong so far\x1b\[K", shown)
    assert shown.endswith("\r\x1b[K")
    done = subprocess.run([ROOT / "countersign", "audit", "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_says_how_far_it_came(export: tuple[Path, list[str]]) -> None:
    endless = ["sh", "-c", f"cat {export[0]}; exec yes {{}}"]
    with subprocess.Popen(endless, stdout=subprocess.PIPE) as feed:
        assert feed.stdout is not None
        status, shown = terminal(
            [str(ROOT / "countersign"), "audit", "verify", "-"], interrupt=True, stdin=feed.stdout.fileno()
        )
        feed.kill()
    assert status == 130
    assert re.search(r"Interrupted after \d+ MB, \d lines: nothing wrong so far. The rest was not read.\r\n$", shown)
    assert "Traceback" not in shown


def test_script_verifies_from_any_directory(export: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, ids = export
    run = subprocess.run(
        [ROOT / "countersign", "audit", "verify", "-", "--has", ids[1]],
        input=path.read_text(),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "nothing was edited" in run.stdout


# ---------------------------------------------------------------- the fast way and the strict way

#: What a value may be in place of another: of the same meaning, written in another way, or of another.
VALUES = [
    b"1.0", b"1e0", b"-0", b"-0.0", b"0.5", b"01", b"1e999", b"NaN", b"-Infinity", b"null", b"true", b"[]", b"{}",
    b'"\xc3\xa9"', b'"\\u00e9"', b'"\\u0041"', b'"A"', b'"\\/"', b'"\\ud800"', b'"\x7f"', b'"\xff"', b'"\\u001f"', b'"',
    b'{"a":1,"a":1}', b'{"b":1,"a":1}', b'{"a":1,"b":1}', b'{"a": 1}', b"[1, 2]", b"[1.0]", b"18446744073709551616",
    b"9" * 30, b"9" * 5000, b"[" * 2000 + b"]" * 2000, b'1,"kind":"stop"', b'1,"zeal":1', b'1,"amount":1',
]  # fmt: skip


def of_all_kinds() -> list[bytes]:
    """A line of each kind that calls leave."""
    sink, grant = Lines(), granted(body="customer=cus_1&metadata[order_id]=o%227", idempotency_key="order-1")
    audit = Audit(sink, policy="p" * 64, key=RecordKey("file:k", PEM, lambda: PEM, lambda: 0.0))
    busy = Reply(Outcome.RELEASED, refusal=UpstreamBusy(retry_after=1, note="429"), upstream_status=429)
    sent(audit, grant, HTTP_TRACEPARENT=f"00-{'a' * 32}-{'b' * 16}-01")
    sent(audit, grant, busy)
    for _ in range(12):
        refused(audit, PathUnknown())
    audit.policy_refused("p" * 64, "line 3: no such key", document="d" * 64)
    audit.close()
    return [line.rstrip("\n").encode() for line in sink.lines]


def fitted(raw: bytes) -> bytes:
    """Give a line the hash of its bytes as they are, as a forger may."""
    head, begin, rest = raw.partition(b',"countersign":')
    body, hashed, _ = rest.rpartition(b',"hash":"')
    read = head.partition(b',"time":"')[0].removeprefix(b'{"severity":')
    digest = hashlib.sha256(body + b"}" + read).hexdigest()
    named = re.search(rb'"intent":"([0-9a-f]{24})"', body)
    intent = named[1].decode() if named else digest[:24]
    instance = raw.rpartition(b'"audit_id":"')[2][:12].decode("latin-1")
    ends = f'{digest}","audit_id":"{instance}-{intent}"}}}}'.encode("latin-1")
    return head + begin + body + hashed + ends


def agree(raw: bytes) -> bool:
    """Whether the fast way takes a line; fail if the strict way reads it differently, or finds a fault in it."""
    fast = _as_written(raw)
    if fast is None:
        return False
    strict = _read(raw)
    assert strict is not None
    assert strict.digest == strict.claimed, raw
    for name in ("instance", "sequence", "prev", "kind", "intent", "digest", "claimed", "audit_id", "stump"):
        assert getattr(fast, name) == getattr(strict, name), raw
    assert signed(*fast.read, msgspec.to_builtins(fast.content)) == signed(*strict.read, strict.content), raw
    return True


def test_lines_as_we_write_them_go_the_fast_way() -> None:
    lines = of_all_kinds()
    assert {json.loads(line)["countersign"]["kind"] for line in lines} == {
        "start", "intent", "outcome", "refusal", "counted", "policy", "checkpoint", "stop",
    }  # fmt: skip
    for line in lines:
        assert agree(line), line
        assert fitted(line) == line


def test_fast_way_takes_nothing_that_the_strict_way_finds_wrong() -> None:
    """Each byte of a line changed, taken out or another put in; also with a hash that fits the bytes as they are."""
    lot, taken = random.Random(14), 0
    for line in {json.loads(line)["countersign"]["kind"]: line for line in of_all_kinds()}.values():
        for place in range(len(line)):
            bits = bytes([line[place] ^ (1 << lot.randrange(8))])
            for byte in (b"", bits, line[place : place + 1] * 2, lot.choice([b" ", b"\\", b'"', b",", b"\xc3", b"0"])):
                mutated = line[:place] + byte + line[place + 1 :]
                taken += agree(mutated) + agree(fitted(mutated))
    assert taken > 1000  # a letter of a value is another letter, and the hash fits


def test_fast_way_takes_no_value_that_is_hashed_in_another_way_than_it_is_written() -> None:
    taken = 0
    for line in {json.loads(line)["countersign"]["kind"]: line for line in of_all_kinds()}.values():
        for value in re.finditer(rb'(?<=":)(?:"[^"]*"|[0-9]+|\{"(?:caller|customer)[^}]*\})', line):
            for other in VALUES:
                mutated = line[: value.start()] + other + line[value.end() :]
                taken += agree(mutated) + agree(fitted(mutated))
    assert taken > 100


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "9" * 21, "0.1e4000"])
def test_number_that_is_hashed_as_null_is_a_fault(number: str) -> None:
    sink = Lines()
    audit = Audit(sink, policy="p" * 64)
    audit.write("resolution", {"ledger": "0" * 16, "created": None}, "NOTICE", "by hand")
    audit.close()
    assert verify(sink.lines).faults == []
    sink.lines[1] = sink.lines[1].replace('"created":null', f'"created":{number}')
    assert verify(sink.lines).faults


# ---------------------------------------------------------------- honest exports


class Honest:
    """Exports that nobody touched, with all that happens to them on their way."""

    def __init__(self, chance: random.Random, folder: Path) -> None:
        self.chance, self.folder = chance, folder
        self.now = 1_000_000.0
        self.lines: list[str] = []
        self.stumps = 0

    def clock(self) -> float:
        """Tell the time: it goes on, and now and then is set back by 2 ms."""
        self.now += self.chance.choice([0.0001, 0.001, 0.01, 0.4, -0.002])
        return self.now

    def write(self, line: bytes) -> None:
        """Be a sink whose disk is full now and then."""
        if self.chance.random() < 0.02:
            self.stumps += 1
            self.lines.append(line.decode()[: self.chance.randrange(1, len(line) - 2)] + "\n")
            raise OSError("no space left")
        self.lines.append(line.decode())

    def record(self) -> list[str]:
        """Record the calls of one instance, which ends or is killed; return the audit ids."""
        first: bytes | DownError = PEM if self.chance.random() < 0.5 else DownError("down")
        key = RecordKey("file:k", first, lambda: PEM, self.clock)
        audit = Audit(self, policy="p" * 64, key=key, clock=self.clock, monotonic=self.clock)
        grant, ids = granted(), []
        for _ in range(self.chance.randrange(1, 30)):
            if self.chance.random() < 0.1:
                ids += [refused(audit, PathUnknown()).audit_id for _ in range(self.chance.choice([1, 30]))]
            else:
                ids.append(sent(audit, grant).audit_id)
        if self.chance.random() < 0.7:
            audit.close()
        return ids

    def files(self) -> list[str]:
        """Export the lines in one of the forms and orders that there are, in one file or in several."""
        lines = self.lines
        if self.chance.random() < 0.3:  # a window
            begin, end = sorted(self.chance.choices(range(len(lines) + 1), k=2))
            lines = lines[begin:end] if end - begin > 3 else lines
        in_cloud = self.chance.random() < 0.5
        if in_cloud:  # which drops what is no JSON, into textPayload
            entries = [exported(line, number) for number, line in enumerate(lines) if whole(line)]
            if self.chance.random() < 0.5:
                entries.sort(key=lambda entry: entry["timestamp"], reverse=self.chance.random() < 0.5)
            lines = [json.dumps(entry) + "\n" for entry in entries]
        lines = [line for line in lines for _ in range(1 + (self.chance.random() < 0.02))]
        cuts = sorted(self.chance.choices(range(len(lines) + 1), k=self.chance.choice([0, 0, 1, 3])))
        parts = [lines[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(lines)], strict=True)]
        self.chance.shuffle(parts)
        names = []
        for number, part in enumerate(parts):
            names.append(str(self.folder / f"part{number}"))
            text = "".join(part)
            if in_cloud and self.chance.random() < 0.5:
                text = json.dumps([json.loads(line) for line in part], indent=self.chance.choice([None, 2]))
            data = text.encode()
            (self.folder / f"part{number}").write_bytes(gzip.compress(data) if self.chance.random() < 0.2 else data)
        return names


def whole(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def honest(seeds: range, folder: Path) -> None:
    verified = 0
    for seed in seeds:
        one = Honest(random.Random(seed), folder)
        for _ in range(one.chance.choice([1, 1, 2])):
            one.record()
        report = verify_files(one.files(), [], [PUBLIC], exports.Meter(), lambda _: None)
        assert report.faults == [], seed
        verified += report.lines
    assert verified > 10 * len(seeds)


def test_honest_exports_are_never_called_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    honest(range(60), tmp_path)
