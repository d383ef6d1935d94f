"""``countersign audit verify``: finds any edit, deletion, reordering and truncation in an export of the record."""

from __future__ import annotations

import io
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from console.__main__ import main
from sandbox.__main__ import ROOT
from tests.conftest import TARGET

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server


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
        "9 lines of 1 instances: nothing was edited, removed or reordered, 0 to look at.\n"
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
    exported = "".join(json.dumps({"insertId": "x", "jsonPayload": doubles(line)}) + "\n" for line in lines)
    monkeypatch.setattr("sys.stdin", io.StringIO(exported))
    assert main(["audit", "verify", "-", "--has", ids[0]]) == 0, capsys.readouterr().out
    assert "9 lines of 1 instances" in capsys.readouterr().out


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
def test_removed_swapped_and_doubled_lines_are_found(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], line: int
) -> None:
    path, _ = export
    lines = path.read_text().splitlines()
    before, this, after = lines[:line], lines[line], lines[line + 1 :]
    for edited in (
        [*before, *after],
        [*before[:-1], this, before[-1], *after],
        [*before, this, this, *after],
        [*before, this[: len(this) // 2], *after],
    ):
        path.write_text("\n".join(edited) + "\n")
        status, told = main(["audit", "verify", str(path)]), capsys.readouterr().out
        cut_at_the_end = line == 8 and edited == before
        assert (status, "no stop line" in told) == (0, True) if cut_at_the_end else status == 1, told


def test_truncation_is_found_by_what_is_left_standing(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, ids = export
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n")  # the start, and an intent
    assert main(["audit", "verify", str(path)]) == 0
    told = capsys.readouterr().out
    assert "has no outcome" in told
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


@pytest.mark.parametrize(
    "line",
    [
        '{"countersign": 7}',
        '{"countersign": {}}',
        '{"countersign": {"instance": 7}}',
        '{"countersign": {"instance": "a", "sequence": "x", "hash": []}}',
        '{"countersign": {"instance": "a", "sequence": null, "hash": {"a": 1}, "intent": [1]}}',
        '{"countersign": {"instance": "a", "sequence": 1e999, "kind": "intent"}}',
        '{"countersign": {"instance": "a", "sequence": NaN}}',
        "[" * 100_000,
        '{"countersign": {"instance": "a", "x": ' + "[" * 800 + "]" * 800 + "}}",
        '{"countersign": {"instance": "a", "x": "\\ud800"}}',
        '{"countersign": {"instance": "a", "sequence": %s}}' % ("9" * 5000),
    ],
    ids=lambda line: line[:60],
)
def test_forged_line_is_a_fault_and_never_a_crash(
    export: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], line: str
) -> None:
    path, _ = export
    with path.open("a") as lines:
        lines.write(line + "\n")
    status = main(["audit", "verify", str(path)])
    told = capsys.readouterr().out
    assert (status, "WRONG" in told) == ((0, False) if line == '{"countersign": 7}' else (1, True))


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
