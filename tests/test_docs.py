"""What the documents promise, the code keeps: their commands run, their documents are read, their tables are whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from policies import document, refusals
from sandbox.__main__ import CALLER_KEY, POLICY, ROOT, WELCOME

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text("utf-8")) if found == language]


def test_readme_shows_the_calls_that_make_run_prints() -> None:
    printed = re.findall(r"^curl .*?[^\\]\n", WELCOME.format(port=8080, key=CALLER_KEY), re.MULTILINE | re.DOTALL)
    shown = [block for block in blocks(ROOT / "README.md", "sh") if block.startswith("curl")]
    assert len(printed) == 2
    assert shown == printed


def test_readme_shows_an_answer_with_the_fields_of_the_sandbox_policy() -> None:
    policy_set = document.read(POLICY.read_text("utf-8"), "sandbox.yaml")
    (caller,) = policy_set.keys.values()
    (entitlement,) = caller.entitlements.values()
    granted = [path.partition(".")[0] for path in entitlement.response_fields]
    answer, refusal = (json.loads(block.split("\n\n", 1)[1]) for block in blocks(ROOT / "README.md", "http"))
    assert list(answer) == granted
    assert refusal["detail"].endswith(f"You may send: {', '.join(sorted(entitlement.rules))}.")
    assert f'"{caller.limits[0].text}";q={caller.limits[0].calls}' in blocks(ROOT / "README.md", "http")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_policy_document_shown_is_one(page: Path) -> None:
    for block in blocks(page, "yaml"):
        document.read(block, page.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)", page.read_text("utf-8"))) <= targets


def test_commands_of_the_operator_run_as_written(tmp_path: Path) -> None:
    commands = {
        command
        for page in PAGES
        for command in re.findall(r"`(\./countersign check policies/[^`]+)`", page.read_text("utf-8"))
    }
    assert commands
    for command in commands:
        done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", ["policy.md", "deploy.md"])
def test_commands_that_make_and_change_keys_run_as_written(tmp_path: Path, page: str) -> None:
    commands = re.findall(r"^\./countersign (key .*)$", "\n".join(blocks(ROOT / "docs" / page, "sh")), re.MULTILINE)
    assert len(commands) >= 3
    documents = tmp_path / "policies" / "documents"
    documents.mkdir(parents=True)
    for name in ("example.yaml", "acme.yaml"):
        (documents / name).write_bytes((ROOT / "policies" / "documents" / "example.yaml").read_bytes())
    minted = "none"
    for command in commands:
        done = subprocess.run(
            [ROOT / "countersign", *command.split()],
            input=minted, capture_output=True, text=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        minted = next(iter(re.findall(r"^csk_\w{49}$", done.stdout, re.MULTILINE)), minted)
    digest = hashlib.sha256(minted.encode()).hexdigest()
    assert digest in "".join(document.read_text("utf-8") for document in documents.iterdir())


def every_refusal(base: type[refusals.Refusal] = refusals.Refusal) -> list[type[refusals.Refusal]]:
    below = base.__subclasses__()
    return [*below, *(inner for child in below for inner in every_refusal(child))]


def test_every_refusal_is_explained() -> None:
    rows = (ROOT / "docs" / "refusals.md").read_text("utf-8")
    raised = [refusal for refusal in every_refusal() if "reason" in vars(refusal)]
    assert len(raised) > 25
    for refusal in raised:
        start = f"| `{refusal.reason}` | {refusal.status}"
        assert any(row.startswith(start) and refusal.sentence in row for row in rows.splitlines()), refusal.reason


def test_every_setting_is_in_the_readme() -> None:
    code = "".join((ROOT / name).read_text("utf-8") for name in ("gateway/settings.py", "main.py"))
    read = set(re.findall(r'environ(?:\.get\(|\.setdefault\(|\[)"([A-Z_]+)"', code))
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE))
    # The platform sets K_SERVICE; WORKERS and DEBUG are the framework's, and only ever refused.
    assert read - {"K_SERVICE", "WORKERS", "DEBUG"} == table


def test_every_dependency_is_justified() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    needed = [line for line in (ROOT / "requirements.in").read_text().splitlines() if not line.startswith("#")]
    assert needed
    for name in needed:
        assert f"| {name} |" in page
