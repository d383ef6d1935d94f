"""A newcomer's first hour, in a copy of the repository, with nothing to go by but README and what `make run` says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox.__main__ import ROOT
from sandbox.ports import free_port
from tests.test_run import counted, pasted, shell, until
from tests.tools import CURL
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy what git knows of, as it is now, and the environment that `make` has made."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone: its files cannot be listed by git")
    folder = tmp_path / "countersign"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():  # not deleted since
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


@contextmanager
def run(clone: Path, port: int) -> Iterator[Path]:
    """Do what `make run` does, on another port, until it says that all is ready; yield what the terminal shows."""
    (recipe,) = re.findall(
        r"^run:.*\n\t@PORT=\$\(PORT\) \$\(BIN\)/(.+)$", (clone / "Makefile").read_text(), re.MULTILINE
    )
    told = clone / "terminal"
    environ = {"PATH": os.environ["PATH"], "PORT": str(port)}
    with told.open("wb") as out:
        process = subprocess.Popen(
            [clone / ".venv/bin" / recipe.split()[0], *recipe.split()[1:]],
            cwd=clone, env=environ, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        until(told, "Ctrl-C stops everything")
        yield told
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=PATIENCE)


def shown_in(readme: str) -> list[tuple[str, int, dict[str, object]]]:
    """Return each command of the README that calls, with the status and the body that it shows for an answer."""
    found = re.findall(
        r"```sh\n(curl [^`]*)```\n.*?```http\nHTTP/1.1 (\d+)[^`]*?\n\n(\{[^\n]*\})\n```", readme, re.DOTALL
    )
    return [(command, int(status), json.loads(body)) for command, status, body in found]


@CURL
def test_clone_run_call_edit_a_rule_see_it_refuse_lose_an_answer_see_424(clone: Path) -> None:
    port = free_port()
    readme = (clone / "README.md").read_text("utf-8")
    assert "make run " in readme
    with run(clone, port) as told:
        # The README's two calls, answered as it shows.
        shown = shown_in(readme.replace("127.0.0.1:8080", f"127.0.0.1:{port}"))
        assert [status for _, status, _ in shown] == [200, 400]
        answers = []
        for command, status, body in shown:
            got, answer = shell(command)
            assert (got, answer.keys()) == (status, body.keys())
            assert {name: answer.get(name) for name in ("reason", "detail", "status", "customer")} == {
                name: body.get(name) for name in ("reason", "detail", "status", "customer")
            }
            answers.append(answer)
        raises, raised = shown[0][0], answers[0]
        replayed = {**raised, "replayed": True}
        assert shell(raises) == (200, replayed)  # "Pasted again it is still one invoice."

        # The welcome: its own calls, an answer lost on purpose, and what reached the upstream.
        again, refused, loses = pasted(told)
        assert shell(again) == (200, replayed)
        assert shell(refused)[0] == 400
        for _ in range(2):
            status, lost = shell(loses)
            assert (status, lost["reason"]) == (424, "outcome-unknown")
            assert "the invoice may exist" in str(lost["detail"])
        assert counted(told)["invoices"] == 2

        # It names a document, a rule in it, and what to write instead.
        edit = re.search(r"in (\S+)\n\s+write `(.+)` in the place of `(.+)`, save", told.read_text())
        assert edit is not None
        named, new, old = edit.groups()
        document = clone / named
        text = document.read_text("utf-8")
        assert text.count(old) == 1
        document.write_text(text.replace(old, new))
        until(told, f"{named} was saved: the next call goes by it.")
        status, problem = patient(raises, 400)
        assert (status, problem["reason"], problem["parameter"]) == (400, "parameter-invalid", "customer")
        assert new.partition(": ")[2] in str(problem["detail"])

        # And what it says to do then.
        (check,) = re.findall(r"`(\./countersign check \S+)`", told.read_text())
        said = subprocess.run(check.split(), cwd=clone, capture_output=True, text=True, check=True)
        assert said.stdout.startswith("The policy is valid")
        for audit_id in (raised["audit_id"], lost["audit_id"], problem["audit_id"]):
            assert str(audit_id) in told.read_text()
    assert "Stopping." in told.read_text()
    assert "Traceback" not in told.read_text()


def patient(command: str, expected: int) -> tuple[int, dict[str, object]]:
    """Paste a command until it is answered otherwise than before: an edit takes over within half a second."""
    deadline = time.monotonic() + PATIENCE
    while (answer := shell(command))[0] != expected:
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    return answer
