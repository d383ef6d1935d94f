"""``./countersign`` in a shell: its exit codes, and no traceback whatever happens around it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from console.__main__ import CLOSED, INTERRUPTED, from_shell, parser
from gateway.chain import Audit
from sandbox.__main__ import POLICY, ROOT
from tests.gateway.conftest import Lines
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = ROOT / "countersign"
ENVIRONMENT = {"PATH": os.environ["PATH"]}


def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    options: dict[str, object] = {"text": True, "capture_output": True, "env": ENVIRONMENT, **settings}
    done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
        [str(one) for one in arguments], check=False, **options
    )
    return done


def parsers(top: argparse.ArgumentParser | None = None) -> Iterator[argparse.ArgumentParser]:
    top = top or parser()
    yield top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


# ---------------------------------------------------------------- exit codes


def test_every_exit_code_is_on_the_page_and_means_what_it_says(tmp_path: Path) -> None:
    sink = Lines()
    Audit(sink, policy="p" * 64).write("preview", {}, "INFO", "preview")
    (tmp_path / "running.jsonl").write_text("".join(sink.lines))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("callers: 1\n")
    found = {
        run(COMMAND, "check", POLICY).returncode: 0,
        run(COMMAND, "check", wrong).returncode: 1,
        run(COMMAND, "check", tmp_path / "absent.yaml").returncode: 1,
        run(COMMAND, "check").returncode: 2,
        run(COMMAND, "chek", POLICY).returncode: 2,
        run(COMMAND).returncode: 2,
        run(COMMAND, "audit", "verify", tmp_path / "running.jsonl").returncode: 3,
        INTERRUPTED: 130,
        CLOSED: 141,
    }
    assert all(code == expected for code, expected in found.items())
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    codes = page.partition("## Exit codes")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (\d+) \|", codes, re.MULTILINE) == [str(code) for code in sorted(set(found.values()))]


@pytest.mark.parametrize("arguments", [["check", POLICY], ["--help"], ["audit", "verify", os.devnull]])
def test_closed_pipe_ends_it_without_a_word(arguments: list[object]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(COMMAND, *arguments, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_head_gets_what_it_asks_for() -> None:
    done = run("sh", "-c", f"{shlex.quote(str(COMMAND))} check {shlex.quote(str(POLICY))} | head -n 1")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = run(COMMAND, "check", POLICY, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("It could not be written: ")


def test_output_that_nobody_opened_is_no_fault() -> None:
    done = run("sh", "-c", f"{shlex.quote(str(COMMAND))} check {shlex.quote(str(POLICY))} >&-")
    assert (done.returncode, done.stderr) == (0, "")


#: Stands in for a slow disk: it says when one of ours is about to be loaded, and takes its time.
SLOW = """
import runpy, sys, time
class Slow:
    def find_spec(name, path, target=None):
        if name == "console.audit":
            print("loading", file=sys.stderr, flush=True)
            time.sleep(20)
sys.meta_path.insert(0, Slow)
runpy.run_module("console", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("loading", [True, False])
def test_ctrl_c_ends_it_without_a_word(loading: bool) -> None:  # noqa: FBT001 - a parameter of the test
    command = [sys.executable, "-c", SLOW] if loading else [str(COMMAND), "audit", "verify", "-"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        if loading:
            assert process.stderr.readline() == b"loading\n"
        else:  # it takes what it is given once it is there
            process.stdin.write(b"{}\n" * 2**16)
            process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 130
        told = process.stderr.read().decode()
        assert not told or (not loading and told.startswith("Interrupted after") and told.count("\n") == 1)


def test_interrupted_while_it_works_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("console.__main__.main", interrupted)
    assert from_shell([]) == 130


# ---------------------------------------------------------------- where it is


def test_it_runs_through_a_link_to_a_link_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "opt").symlink_to(ROOT)
    (tmp_path / "one").symlink_to("opt/countersign")
    (tmp_path / "bin" / "countersign").symlink_to("../one")
    done = run("countersign", "--version", cwd="/", env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "countersign 0.1.0\n"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the command and an environment as an install leaves it that was cut off."""
    place = tmp_path / "a copy"
    (place / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(COMMAND, place)
    python = place / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\nexit 1\n")
    python.chmod(0o755)
    return place


def test_install_that_was_cut_off_is_said_in_one_line(copy: Path) -> None:
    done = run(copy / "countersign", "check", POLICY)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"Run 'make run' in {copy}" in done.stderr


def test_install_whose_python_is_gone_is_said_in_one_line(copy: Path) -> None:
    (copy / ".venv" / "run").touch()
    (copy / ".venv" / "bin" / "python").unlink()
    (copy / ".venv" / "bin" / "python").symlink_to(copy / "absent")
    done = run(copy / "countersign", "check", POLICY)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Run 'make clean run'" in done.stderr


def test_an_install_leaves_its_mark_at_its_end_and_takes_it_away_at_its_beginning() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in (".venv/run", ".venv/dev"):
        recipe = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
        assert recipe is not None
        steps = recipe[1].splitlines()
        assert steps[-1] == "\t@touch $@"
        first = next(n for n, step in enumerate(steps) if "pip install" in step or "-m venv" in step)
        assert "\t@rm -f $@" in steps[:first]


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize("one", list(parsers()), ids=lambda one: one.prog)
def test_every_help_has_an_example_of_its_own_that_can_be_run(one: argparse.ArgumentParser) -> None:
    (example,) = re.findall(r"^Example: (?:[A-Z]+=\S+ )?\./(countersign .*)$", one.format_help(), re.MULTILINE)
    assert example.startswith(one.prog)
    asked = parser().parse_args(shlex.split(example)[1:])
    assert callable(asked.run)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["chek"], "Did you mean check?"),
        (["keys"], "Did you mean key?"),
        (["ledger", "lst"], "Did you mean list?"),
        (["audit", "verfy"], "Did you mean verify?"),
        (["xyzzy"], "Write one of: check, recipe, audit, explain, why, key, ledger."),
    ],
)
def test_command_that_there_is_not_is_answered_with_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(f"there is no {arguments[-1]!r}. {hint}")


def test_every_command_is_on_the_page() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for one in parsers():
        if not any(isinstance(action, argparse._SubParsersAction) for action in one._actions):
            assert f"`{one.prog.replace('countersign', './countersign', 1)}" in page
