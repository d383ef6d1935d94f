"""What the documents promise, the code keeps: their commands run, their documents are read, their tables are whole."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from console.recipes import __main__ as writer
from gateway.credentials.webhooks import usable
from policies import document, refusals
from policies.concealed import Concealed
from policies.model import Budget, Limit
from policies.quota import Short, refusal_for
from sandbox.__main__ import POLICY, ROOT, UPSTREAM_KEY, welcome
from sandbox.google import AUDIENCE, stripped
from tests.conftest import KEY, sha256
from tests.gateway.conftest import SIGNING
from tests.gateway.test_signatures import SENDERS
from tests.test_house import SCREEN
from tests.tools import CURL, NODE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from sandbox.google import Google
    from sandbox.secret_manager import SecretManager
    from tests.conftest import Server

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text("utf-8")) if found == language]


def recipe(page: Path, name: str) -> str:
    """The text of a recipe that a page shows under its id."""
    (shown,) = re.findall(
        rf"^<!-- recipe: {name} -->\n(.*?)^<!-- end -->", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    ((_, text),) = BLOCK.findall(shown)
    return str(text)


@pytest.mark.parametrize("page", writer.PAGES, ids=lambda page: page.name)
def test_recipes_of_a_page_are_those_that_are_filled_today(page: Path) -> None:
    assert writer.written(page) == page.read_text("utf-8"), "write them anew: python -m console.recipes"


def test_readme_shows_the_calls_that_make_run_prints() -> None:
    content = yaml.load(POLICY.read_text("utf-8"), yaml.BaseLoader)  # as `make run` reads it: all of it is text
    told = welcome(8080, POLICY, content, {"appgregator": "http://127.0.0.1:8081"})
    printed = re.findall(r"^curl .*?[^\\]\n", told, re.MULTILINE | re.DOTALL)
    shown = [block for block in blocks(ROOT / "README.md", "sh") if block.startswith("curl")]
    assert len(printed) == 3
    assert len(shown) == 2
    assert shown == printed[:2]


def test_readme_fits_on_one_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 1.5 * SCREEN


def rows(page: Path) -> list[list[str]]:
    """The rows of a page's tables, cell by cell."""
    found = re.findall(r"^\| (.*) \|$", page.read_text("utf-8"), re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in found]


def test_figures_of_the_readme_are_five_lines_of_those_in_the_page_about_load() -> None:
    measured = rows(ROOT / "docs" / "load.md")
    names = {name for name, *_ in measured if name}
    shown = [row for row in rows(ROOT / "README.md") if row[0] in names]
    assert len(shown) == 5
    for name, rate, p99, cpu, start in shown:
        (found,) = (row for row in measured if row[0] == name and row[-1] == cpu)
        assert (found[1].split()[0], found[3]) == (rate, p99)
        began = "Countersign, mounted key" if name == "Countersign, memory" else name
        assert not start or f"{start.split()[0]} (" in "".join(row[1] for row in measured if row[0] == began)


def test_picture_of_the_page_about_load_shows_its_figures() -> None:
    drawn = [text for text in ET.parse(ROOT / "docs" / "load.svg").getroot().itertext() if text]
    tables = [row for row in rows(ROOT / "docs" / "load.md") if row[0] in drawn and "(" in row[1]]
    assert len(tables) > 10
    for name, middle, *_ in tables:
        unit = " ms" if middle.endswith("ms") else ""
        assert (name, f"{middle.split()[0]}{unit}") in itertools.pairwise(drawn)


def test_readme_shows_an_answer_with_the_fields_of_the_sandbox_policy() -> None:
    policy_set = document.read(POLICY.read_text("utf-8"), "sandbox.yaml")
    (caller,) = policy_set.callers.values()
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
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", page.read_text("utf-8"))) <= targets


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


@pytest.mark.parametrize("page", ["policy.md", "deploy.md"])
def test_commands_that_compile_run_as_written(tmp_path: Path, page: str) -> None:
    (command,) = re.findall(
        r"^\./countersign (check .*--compile .*)$", "\n".join(blocks(ROOT / "docs" / page, "sh")), re.MULTILINE
    )
    documents = tmp_path / "policies" / "documents"
    documents.mkdir(parents=True)
    for name in ("example.yaml", "acme.yaml"):
        shutil.copy(ROOT / "policies" / "documents" / "example.yaml", documents / name)
    done = subprocess.run(
        [ROOT / "countersign", *command.split()], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / command.split()[-1]).exists()


CALLERS = ROOT / "docs" / "callers.md"


class Reader:
    """Somebody who follows the recipes: has set what the page says must be set, and has a gcloud that is signed in."""

    def __init__(self, folder: Path, server: Server, google: Google) -> None:
        gcloud = folder / "gcloud"
        gcloud.write_text('#!/bin/sh\n[ "$1 $2" = "auth print-identity-token" ] && echo "$GOOGLE_TOKEN"\n')
        gcloud.chmod(0o755)
        (setting,) = (block for block in blocks(CALLERS, "sh") if block.startswith("URL="))
        self.before = setting.replace("https://countersign-abc.a.run.app", f"http://127.0.0.1:{server.port}").replace(
            "csk_your_own_key", KEY
        )
        self.google = google
        self.environ = {"PATH": f"{folder}:{os.environ['PATH']}", "URL": f"http://127.0.0.1:{server.port}"}

    def run(self, command: list[str], token: str = "", **environ: str) -> dict[str, Any]:
        environ = {**self.environ, "GOOGLE_TOKEN": token, **environ}
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def paste(self, script: str, token: str = "") -> dict[str, Any]:
        script = script.replace("http://metadata.google.internal", f"http://{self.google.address}")
        return self.run(["sh", "-c", f"{self.before}\n{script}"], token)


@pytest.fixture
def reader(
    tmp_path: Path,
    server: Callable[..., Server],
    upstream: Appgregator,
    secret_manager: SecretManager,
    google: Google,
) -> Callable[..., Reader]:
    """Somebody in front of a server that has the policy of the page."""

    def start(**environ: str) -> Reader:
        (policy,) = blocks(CALLERS, "yaml")
        policy = re.sub(r"sha256: \w+", f"sha256: {sha256(KEY)}", policy)
        policy = re.sub(r"origin: \S+", f"origin: {upstream.origin}", policy)
        secret_manager.add("projects/acme/secrets/appgregator-x-api-key", UPSTREAM_KEY.encode())
        secret_manager.add("projects/acme/secrets/n8n-signing", SIGNING.encode())
        return Reader(tmp_path, server(policy, GOOGLE_CERTS_ENDPOINT=google.address, **environ), google)

    return start


def recipes(*words: str) -> list[str]:
    found = [block for block in blocks(CALLERS, "sh") if "curl" in block and all(word in block for word in words)]
    assert found
    return found


@CURL
def test_every_recipe_for_a_key_works_as_written(reader: Callable[..., Reader], upstream: Appgregator) -> None:
    shown = [block for block in recipes("$KEY") if "gcloud" not in block]
    assert len(shown) == 3
    someone = reader(AUDIENCE=AUDIENCE)
    assert len({someone.paste(block)["id"] for block in shown}) == upstream.invoices == 3
    assert {str(someone.paste(block)["status"]) for block in shown} == {"draft"}
    assert upstream.invoices == 3


@CURL
def test_every_recipe_for_a_google_identity_works_as_written(
    reader: Callable[..., Reader], upstream: Appgregator, google: Google
) -> None:
    (metadata,), (impersonated,) = recipes("Metadata-Flavor"), recipes("--impersonate-service-account")
    someone = reader(AUDIENCE="https://countersign-abc.a.run.app")
    # The machine's metadata server is asked for a token for the address that stands there.
    real = metadata.replace("audience=$URL", "audience=https://countersign-abc.a.run.app")
    token = google.mint(audience="https://countersign-abc.a.run.app")
    assert someone.paste(real)["id"] != someone.paste(impersonated, token)["id"]
    assert upstream.invoices == 2
    assert someone.paste(real.replace("&format=full", ""))["reason"] == "token-not-accepted"
    for option in ('--audiences="$URL"', "--include-email"):  # without these, there is no such token
        assert option in impersonated


@CURL
def test_every_recipe_behind_googles_own_door_works_as_written(
    reader: Callable[..., Reader], upstream: Appgregator, google: Google
) -> None:
    shown = recipes("$(gcloud auth print-identity-token)")
    assert len(shown) == 2
    someone = reader(IAM="guards")
    gclouds = "32555940559.apps.googleusercontent.com"
    tokens = [stripped(google.mint(audience=gclouds)), stripped(google.mint("ann@acme.example", gclouds))]
    assert [str(someone.paste(*pair)["status"]) for pair in zip(shown, tokens, strict=True)] == ["draft", "draft"]
    assert (upstream.invoices, google.fetches) == (2, 0)


@pytest.mark.parametrize(
    ("name", "command"),
    [("signed-python", [sys.executable]), pytest.param("signed-node", ["node"], marks=NODE)],
)
def test_code_that_signs_a_webhook_works_as_written_and_twice_is_once(
    reader: Callable[..., Reader], upstream: Appgregator, tmp_path: Path, name: str, command: list[str]
) -> None:
    someone = reader(AUDIENCE=AUDIENCE)
    program = tmp_path / "invoice.mjs"
    program.write_text(recipe(CALLERS, name).replace("https://countersign-abc.a.run.app", someone.environ["URL"]))
    run = [*command, str(program), "order-2001", "cus_MQqeLuPp19Qbk8"]
    first, second = (someone.run(run, SIGNING_SECRET=SIGNING) for _ in range(2))
    assert second == {**first, "replayed": True}
    assert upstream.invoices == 1


@CURL
def test_recipe_that_signs_the_body_alone_works_as_written_and_twice_is_once(
    reader: Callable[..., Reader], upstream: Appgregator, secret_manager: SecretManager
) -> None:
    (recipe,) = recipes("openssl dgst")
    secret_manager.add("projects/acme/secrets/shop-signing", b"a shop's own secret")
    someone = reader(AUDIENCE=AUDIENCE)
    someone.environ["SHOP_SECRET"] = "a shop's own secret"
    first, second = someone.paste(recipe), someone.paste(recipe)
    assert second == {**first, "replayed": True}
    assert first["status"] == "draft"
    assert upstream.invoices == 1
    someone.environ["SHOP_SECRET"] = "another's secret"
    assert someone.paste(recipe)["reason"] == "webhook-not-verified"


def test_senders_of_the_page_are_written_as_the_tests_sign_for_them() -> None:
    table = {row[0]: tuple(cell.strip("`") for cell in row[1:]) for row in rows(CALLERS) if row[0] in SENDERS}
    assert table == SENDERS


def test_the_command_that_makes_a_signing_secret_makes_one_that_signs() -> None:
    (script,) = (block for block in blocks(CALLERS, "sh") if "openssl rand -base64" in block)
    assert 'printf %s "$SIGNING_SECRET" | gcloud secrets create n8n-signing' in script
    first = script.splitlines()[0]
    done = subprocess.run(
        ["sh", "-c", f'{first}\nprintf %s "$SIGNING_SECRET"'], capture_output=True, text=True, check=True
    )
    assert usable(Concealed(done.stdout))


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


def anchors(page: Path) -> list[str]:
    """The anchors that GitHub, and what else shows Markdown, gives a page's headings of letters, spaces and dashes."""
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return [re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_help_of_every_refusal_leads_to_an_entry_of_its_own() -> None:
    """The setting DOCS is the address of this page; a refusal's help ends with # and its reason."""
    reasons = [refusal.reason for refusal in every_refusal() if "reason" in vars(refusal)]
    page = ROOT / "docs" / "refusals.md"
    found = anchors(page)
    assert [found.count(reason) for reason in reasons] == [1] * len(reasons)
    entries = re.findall(r"^### (.+)$", page.read_text("utf-8"), re.MULTILINE)
    assert sorted(entries) == sorted(set(reasons))


def test_page_about_refusals_shows_a_spent_budget_as_it_is_told() -> None:
    (shown,) = map(json.loads, blocks(ROOT / "docs" / "refusals.md", "json"))
    refusal = refusal_for([(12_009, Short(Budget("usd", Limit(3000, 86_400, "3000 usd/day")), 450, 2000))], ())
    now = datetime.fromisoformat(shown["resets_at"]).timestamp() - 12_009
    assert shown == refusal.problem(shown["audit_id"], now)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text("utf-8")):
        assert anchor in anchors(page.parent / target if target else page), (target, anchor)


def test_every_setting_is_in_the_page_about_settings() -> None:
    code = "".join((ROOT / name).read_text("utf-8") for name in ("gateway/settings.py", "gateway/serving.py"))
    read = set(re.findall(r'(?:environ(?:\.get\(|\.setdefault\(|\[)|_said\(environ, )"([A-Z_]+)"', code))
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "settings.md").read_text("utf-8"), re.MULTILINE))
    # The platform sets K_SERVICE; WORKERS and DEBUG are the framework's, and only ever refused.
    assert read - {"K_SERVICE", "WORKERS", "DEBUG"} == table


def test_every_dependency_is_justified() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    needed = [line for line in (ROOT / "requirements.in").read_text().splitlines() if not line.startswith("#")]
    assert needed
    for name in needed:
        assert f"| {re.split('[<>=]', name)[0]} |" in page


def test_commands_that_make_the_record_key_and_verify_with_it_run_as_written(
    tmp_path: Path, server: Callable[..., Server]
) -> None:
    page = blocks(ROOT / "docs" / "record.md", "sh")
    (keygen,) = (block for block in page if "keygen record.pem" in block)
    (openssl,) = (block for block in page if block.startswith("openssl"))
    (verify,) = (block for block in page if "export.jsonl --key" in block)
    environ = {"PATH": os.environ["PATH"]}

    def paste(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
        folder.mkdir(exist_ok=True)
        (folder / "countersign").unlink(missing_ok=True)
        (folder / "countersign").symlink_to(ROOT / "countersign")
        return subprocess.run(
            ["sh", "-ec", script], cwd=folder, env=environ, capture_output=True, text=True, check=False
        )

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    done = paste(keygen, ours)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert (ours / "record.pem").stat().st_mode & 0o777 == 0o600
    (ours / "record.pub").write_text(done.stdout)
    assert "exists already" in paste(keygen, ours).stderr
    pairs = [ours]
    if shutil.which("openssl"):
        assert paste(openssl, theirs).returncode == 0
        pairs.append(theirs)
    for folder in pairs:
        started = server(RECORD_KEY=f"file:{folder / 'record.pem'}")
        started.call(headers={"Idempotency-Key": "order-1"})
        started.stop()
        (folder / "export.jsonl").write_text(started.record.text())
        done = paste(verify, folder)
        assert (done.returncode, done.stdout) == (
            0,
            "6 lines of 1 instances: nothing was edited, removed or inserted, 0 to look at.\n",
        )
        assert paste(verify.replace("record.pub", "export.jsonl"), folder).returncode == 1
