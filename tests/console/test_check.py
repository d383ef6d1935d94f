"""``countersign check``: whether a policy document is in order, and what it grants."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from console.__main__ import main
from policies import compiled
from policies.compiled import MARK
from sandbox.__main__ import ROOT
from tests.conftest import KEY, policy, sha256

if TYPE_CHECKING:
    from pathlib import Path

ORIGIN = "https://us-central1-appgregator.cloudfunctions.net"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(policy(ORIGIN, limits="30/minute, 2000/day"))
    return tmp_path / "policy.yaml"


def test_good_document_is_told_caller_by_caller(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(document)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    lines = told.out.splitlines()
    assert lines[0].startswith("The policy is valid (digest ")
    assert "app (tests), 30 calls a minute and 2,000 calls a day, may call:" in lines
    assert "other (tests), 1,000 calls a minute, may call:" in lines
    assert "  invoices.create on billing (100,000 calls a second, of all callers together)" in lines
    sends, receives = (next(line for line in lines if line.startswith(f"    {word}")) for word in ("sends", "receives"))
    assert "metadata[cost_center]" in sends
    assert "lines.data.amount" in receives
    assert sha256(KEY) not in told.out


def test_caller_on_hold_is_told_so(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document.write_text(document.read_text().replace("  app:\n", "  app:\n    paused: true\n"))
    assert main(["check", str(document)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "app (tests), 30 calls a minute and 2,000 calls a day, is paused, and otherwise may call:" in lines
    assert "other (tests), 1,000 calls a minute, may call:" in lines


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("{currency: usd, amount: 3000, per: day}", "30.00 USD a day"),
        ("{currency: jpy, amount: 3000, per: hour}", "3,000 JPY an hour"),
    ],
)
def test_budget_is_told_as_money(document: Path, capsys: pytest.CaptureFixture[str], budget: str, told: str) -> None:
    """In minor units a figure is easily a hundred times what was meant."""
    text = document.read_text().replace("  app:\n", f"  app:\n    budget: {budget}\n")
    document.write_text(text.replace("        idempotency:", "        amount: {max: 100}\n        idempotency:", 1))
    assert main(["check", str(document)]) == 0
    assert f"app (tests), 30 calls a minute and 2,000 calls a day, {told}, may call:" in capsys.readouterr().out


def test_connection_without_a_ceiling_is_told_alone(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = document.read_text()
    assert "    ceiling: 100000/second\n" in text
    document.write_text(text.replace("    ceiling: 100000/second\n", ""))
    assert main(["check", str(document)]) == 0
    assert "  invoices.create on billing" in capsys.readouterr().out.splitlines()


def test_caller_with_two_keys_is_told_once(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = f"- key: {{id: k1, sha256: {sha256(KEY)}}}"
    two = f"{written}\n      - key: {{id: k2, sha256: {sha256('csk_second')}}}"
    document.write_text(document.read_text().replace(written, two))
    assert main(["check", str(document)]) == 0
    assert capsys.readouterr().out.count("app (tests)") == 1


def test_key_that_has_expired_is_a_warning_and_no_error(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document.write_text(document.read_text().replace(sha256(KEY), f"{sha256(KEY)}, expires: 2020-01-01"))
    assert main(["check", str(document)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    line = next(n for n, text in enumerate(document.read_text().splitlines(), 1) if "2020-01-01" in text)
    assert told.out.splitlines()[-1].startswith(f"{document}:{line}: callers.app.credentials[0].key.expires: warning: ")


@pytest.mark.parametrize(
    ("expires", "says"), [("2020-01-01", "this key has expired"), ("SOON", "this is the last key of app")]
)
def test_compiled_policy_is_warned_of_as_its_document_is(
    document: Path, capsys: pytest.CaptureFixture[str], expires: str, says: str
) -> None:
    ends = (datetime.now(UTC) + timedelta(days=3)).date().isoformat() if expires == "SOON" else expires
    document.write_text(document.read_text().replace(sha256(KEY), f"{sha256(KEY)}, expires: {ends}", 1))
    out = document.with_suffix(".compiled")
    assert main(["check", str(document), "--compile", str(out)]) == 0
    assert capsys.readouterr().out.count("warning: ") == 1
    assert main(["check", str(out)]) == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if "warning: " in line]
    assert len(warned) == 1
    assert warned[0].startswith(f"{out}: callers.app: key k1: warning: {says}")
    assert warned[0].endswith(
        ". Make another in the document it was compiled from, and compile that again: "
        "./countersign key rotate app k1 --policy DOCUMENT"
    )


@pytest.mark.parametrize("credential", ["google: ann@acme.example", "webhook: projects/p/secrets/s/versions/latest"])
def test_caller_without_a_key_is_told_as_well(
    document: Path, capsys: pytest.CaptureFixture[str], credential: str
) -> None:
    document.write_text(document.read_text().replace(f"key: {{id: k1, sha256: {sha256(KEY)}}}", credential))
    assert main(["check", str(document)]) == 0
    assert capsys.readouterr().out.count("app (tests)") == 1


@pytest.mark.parametrize(
    ("instead", "of", "says"),
    [
        ("connectoins:", "connections:", ":2: connectoins: no such key. Did you mean connections?"),
        ("limits: []", "limits: [30/minute, 2000/day]", "callers.app.limits: this list is empty"),
        ("upstream: strip", "upstream: appgregator", "connections.billing.upstream: Did you mean stripe?"),
        ("    name: [", "    name: ft-4", "this is not YAML"),
    ],
)
def test_wrong_document_is_one_line_with_file_line_and_key(
    document: Path, capsys: pytest.CaptureFixture[str], instead: str, of: str, says: str
) -> None:
    text = document.read_text()
    assert of in text
    document.write_text(text.replace(of, instead, 1))
    assert main(["check", str(document)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"{document}:")
    assert says in told.err
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not UTF-8"])
def test_unreadable_document_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "policy.yaml"
    if content is not None:
        path.write_bytes(content)
    assert main(["check", str(path)]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert str(path) in told.err


@pytest.mark.parametrize("arguments", [[], ["chek"], ["check"], ["audit"], ["audit", "verify"], ["check", "a", "b"]])
def test_wrong_arguments_are_answered_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: countersign" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sandbox.yaml", "example.yaml"])
def test_every_document_of_the_project_is_in_order(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(ROOT / "policies/documents" / name)]) == 0, capsys.readouterr().err


def test_script_works_from_any_directory(document: Path, tmp_path: Path) -> None:
    (tmp_path / "console.py").write_text("raise SystemExit('a file of the same name was run')")
    run = subprocess.run(
        [ROOT / "countersign", "check", document.name],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "app (tests)" in run.stdout


def test_script_without_its_environment_says_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "countersign"
    script.write_bytes((ROOT / "countersign").read_bytes())
    script.chmod(0o755)
    run = subprocess.run([script, "check", "x"], capture_output=True, text=True, cwd="/", check=False)
    assert run.returncode == 1
    assert "make" in run.stderr
    assert run.stderr.count("\n") == 1


# ---------------------------------------------------------------- compiled


def test_compiled_policy_is_told_as_its_document_is(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "acme.policy"
    assert main(["check", str(document), "--compile", str(out)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.splitlines()[-1] == f"It was compiled to {out}: 2 callers in {out.stat().st_size} bytes."
    assert main(["check", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == told.out.splitlines()[:-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acme.policy", "policy.yaml"]


def test_compiling_again_takes_the_place_of_what_was_compiled_before(document: Path, tmp_path: Path) -> None:
    out = tmp_path / "acme.policy"
    out.write_bytes(MARK + b"of an earlier version")
    assert main(["check", str(document), "--compile", str(out)]) == 0
    first = out.read_bytes()
    document.write_text(document.read_text().replace("30/minute", "31/minute"))
    assert main(["check", str(document), "--compile", str(out)]) == 0
    assert out.read_bytes() != first


def test_document_that_is_not_in_order_leaves_what_was_compiled_before(document: Path, tmp_path: Path) -> None:
    out = tmp_path / "acme.policy"
    assert main(["check", str(document), "--compile", str(out)]) == 0
    before = out.read_bytes()
    document.write_text("connections:")
    assert main(["check", str(document), "--compile", str(out)]) == 1
    assert out.read_bytes() == before


@pytest.mark.parametrize("out", ["policy.yaml", "notes.txt"])
def test_nothing_but_a_compiled_policy_is_ever_replaced(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    before = (tmp_path / out).read_bytes()
    assert main(["check", str(document), "--compile", str(tmp_path / out)]) == 1
    assert capsys.readouterr().err == f"{tmp_path / out} exists and is not a compiled policy. Name another file\n"
    assert (tmp_path / out).read_bytes() == before


def test_place_that_cannot_be_written_is_one_line(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(document), "--compile", str(tmp_path / "nowhere" / "acme.policy")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "cannot be written (No such file or directory)" in told


def test_compiled_policy_is_not_compiled_again(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "acme.policy"
    main(["check", str(document), "--compile", str(out)])
    capsys.readouterr()
    assert main(["check", str(out), "--compile", str(tmp_path / "other")]) == 1
    assert "is compiled already. Name the document" in capsys.readouterr().err


def test_what_would_mean_something_else_is_not_written(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = compiled.write
    monkeypatch.setattr(compiled, "write", lambda policy_set: right(replace(policy_set, callers={})))
    assert main(["check", str(document), "--compile", str(tmp_path / "acme.policy")]) == 1
    assert "the result has another meaning" in capsys.readouterr().err
    assert not (tmp_path / "acme.policy").exists()


def test_what_secret_manager_would_not_take_is_said(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("console.__main__.MAX_SECRET", 100)
    assert main(["check", str(document), "--compile", str(tmp_path / "acme.policy")]) == 0
    assert "more than the 64 KiB of a Secret Manager version" in capsys.readouterr().out


def test_damaged_compiled_policy_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "acme.policy").write_bytes(MARK)
    assert main(["check", str(tmp_path / "acme.policy")]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith(f"{tmp_path / 'acme.policy'}: this compiled policy is damaged")
