"""The house stands as it is drawn: who may import whom, what is pinned, and what a start does not load."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import pytest

from sandbox.__main__ import ROOT, UPSTREAM_KEY
from tests.conftest import CUSTOMER, FORM, KEY, TARGET, policy

if TYPE_CHECKING:
    from sandbox.appgregator import Appgregator
    from sandbox.secret_manager import SecretManager

OURS = ("main", "policies", "gateway", "console", "sandbox", "tests", "bench")
#: What each part may import of ours, itself aside.
ALLOWED: dict[str, set[str]] = {
    "policies": set(),
    "gateway": {"policies"},
    "console": {"policies", "gateway"},
    "main": {"policies", "gateway"},
    "sandbox": set(),
}
#: The one module that may import the console, inside its functions: what callers read is written there.
DOORS = ROOT / "gateway" / "doors.py"
SCREEN = 66
#: What a judge must not need: the world, or its time.
WORLD = {
    "asyncio", "concurrent", "flask", "functions_framework", "google", "grpc", "gunicorn", "http", "logging",
    "multiprocessing", "os", "pathlib", "pycurl", "random", "requests", "secrets", "select", "socket", "ssl",
    "subprocess", "sys", "tempfile", "threading", "time", "urllib3", "uuid", "werkzeug",
}  # fmt: skip
NOT_OURS = {".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__"}


def files() -> list[Path]:
    """Every file of the project, whether or not it is checked in yet."""
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS]
        found += [Path(folder, name) for name in names if name not in NOT_OURS]  # .git of a worktree is a file
    return found


def modules(part: str) -> list[Path]:
    return [ROOT / "main.py"] if part == "main" else sorted((ROOT / part).rglob("*.py"))


def imports(module: Path) -> set[str]:
    """The top-level name of everything that a module imports, wherever in it that stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import hides where it leads"
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "importlib.import_module"}:
            names.add(ast.unparse(node.args[0]).strip("'\"").partition(".")[0])
    return names


@pytest.mark.parametrize("part", ALLOWED)
def test_part_imports_only_what_stands_below_it(part: str) -> None:
    assert modules(part)
    for module in modules(part):
        found = imports(module) & set(OURS) - {part}
        if module == DOORS:
            found -= {"console"}
        assert found <= ALLOWED[part], f"{module.relative_to(ROOT)} imports {found - ALLOWED[part]}"


def test_one_module_of_the_function_reaches_up_to_the_console_and_only_when_it_is_asked() -> None:
    def of_console(tree: ast.AST) -> set[ast.ImportFrom]:
        found = {node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        return {node for node in found if (node.module or "").partition(".")[0] == "console"}

    tree = ast.parse(DOORS.read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    inside = set().union(*map(of_console, functions))
    assert of_console(tree) == inside != set()


def test_import_rule_can_fail() -> None:
    found = set().union(*(imports(module) for module in modules("tests")))
    assert {"sandbox", "gateway", "policies", "socket"} <= found


def named(module: Path) -> str:
    return ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def needs(module: Path, ours: set[str]) -> set[str]:
    """The modules of ours that a module imports, for its types alone or not."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & ours or {node.module}
    return found & ours - {named(module)}


def test_no_module_needs_one_that_needs_it() -> None:
    modules_by_name = {named(module): module for part in OURS if part != "tests" for module in modules(part)}
    needed = {name: needs(module, set(modules_by_name)) for name, module in modules_by_name.items()}
    assert needed["policies.access"] >= {"policies.model", "policies.refusals", "policies.upstreams"}
    while ready := {name for name, others in needed.items() if not others & needed.keys()}:
        for name in ready:
            del needed[name]
    assert needed == {}


def test_localstripe_is_imported_by_the_process_that_runs_it_and_by_nothing_else() -> None:
    """It is GPL."""
    importing = [module for part in OURS for module in modules(part) if "localstripe" in imports(module)]
    assert importing == [ROOT / "sandbox" / "localstripe.py"]


def test_policies_touch_neither_the_world_nor_a_clock() -> None:
    for module in modules("policies"):
        assert not imports(module) & WORLD, module.relative_to(ROOT)
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.Call)}
        assert not [c for c in calls if re.search(r"\.(now|utcnow|today)$|^(open|input|print|exec|eval)$", c)], module


def reads_a_type(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether msgspec is asked there to read values of a type."""
    if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("msgspec."):
        return False
    name = ast.unparse(node.func).rpartition(".")[2]
    return (name == "decode" and any(one.arg == "type" for one in node.keywords)) or name in {"convert", "Decoder"}


def test_types_that_answers_are_read_as_are_known_before_there_are_threads() -> None:
    """msgspec crashes if two threads read a type for the first time."""
    found = {}
    for module in [module for part in ("policies", "gateway", "console") for module in modules(part)]:
        tree = ast.parse(module.read_text("utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = [ast.unparse(node) for one in functions for node in ast.walk(one) if reads_a_type(node)]
        known = {f"type={ast.unparse(node.args[0])}" for node in ast.walk(tree) if reads_a_type(node) and node.args}
        if late := [said for said in inside if not any(one in said for one in known)]:
            found[module.relative_to(ROOT).as_posix()] = late
    # Of these two the second makes types known before it gives them away, and the first reads such types alone.
    assert found == {
        "policies/fields.py": [
            "msgspec.json.Decoder(_type_of({**dict.fromkeys(own(operation)), **tree}))",
            "msgspec.json.Decoder(made)",
        ]
    }


def test_main_fits_on_one_screen() -> None:
    assert len((ROOT / "main.py").read_text("utf-8").splitlines()) <= SCREEN


@pytest.mark.parametrize("part", [part for part in OURS if part != "tests"])
def test_every_module_says_what_it_is_for(part: str) -> None:
    for module in modules(part):
        assert ast.get_docstring(ast.parse(module.read_text("utf-8"))), module.relative_to(ROOT)


@pytest.mark.parametrize(
    ("name", "least"), [("requirements.txt", 6), ("requirements-dev.txt", 6), ("tests/clients/python5.txt", 1)]
)
def test_every_requirement_is_pinned_and_hashed_and_no_host_is_named(name: str, least: int) -> None:
    text = (ROOT / name).read_text("utf-8")
    bare = re.sub(r"#.*", "", text)
    assert not re.search(r"://|^\s*-|index-url|find-links|trusted-host|@", bare.replace("    --hash", ""), re.MULTILINE)
    requirements = [line for line in bare.replace("\\\n", " ").splitlines() if line.strip()]
    assert len(requirements) >= least
    for line in requirements:
        assert re.match(
            r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^\s*;]+( ; [^-]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*$", line
        ), line


@pytest.mark.parametrize("environment", ["node", "n8n"])
def test_every_package_of_npm_is_pinned_and_hashed_and_no_host_is_named(environment: str) -> None:
    folder = ROOT / "tests" / "clients" / environment
    direct = json.loads((folder / "package.json").read_text())["dependencies"]
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert locked.pop("")["dependencies"] == direct
    for name, version in direct.items():
        assert locked[f"node_modules/{name}"]["version"] == version
    for name, package in locked.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name


def test_every_direct_requirement_is_locked() -> None:
    direct = {
        line.strip().lower() for line in (ROOT / "requirements.in").read_text().splitlines() if line[:1].isalpha()
    }
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.txt").read_text().lower(), re.MULTILINE))
    assert {re.split(r"[\[<>=~! ]", name)[0] for name in direct} <= locked


def test_what_both_lock_files_name_is_the_same_version() -> None:
    cloud, dev = (
        dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / name).read_text().lower(), re.MULTILINE))
        for name in ("requirements.txt", "requirements-dev.txt")
    )
    shared = cloud.keys() & dev.keys()
    assert {name: cloud[name] for name in shared} == {name: dev[name] for name in shared}


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    places = re.compile(rb"(?<![\w.:/-])/(?:home|Users|root|work|workspace|mnt|private|var/folders)/\w|[A-Z]:\\\\Users")
    assert places.search(b"%b/home/ann/countersign" % b" ")
    for file in files():
        found = places.search(file.read_bytes())
        assert not found, f"{file.relative_to(ROOT)}: {found and found[0]!r}"


def test_no_installed_package_stands_before_one_of_ours() -> None:
    """The source folder comes last on the path of a deployed function, so a package of the same name would win."""
    code = "import importlib.util, sys; print([n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    deployed = ("main", "policies", "gateway")
    run = subprocess.run(
        [sys.executable, "-I", "-c", code, *deployed, "flask"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "['flask']"


LOADED = f"""
import json, sys
import functions_framework
app = functions_framework.create_app("countersign", sys.argv[1])
before = set(sys.modules)
answer = app.test_client().post({TARGET!r}, data={CUSTOMER!r}, headers={{"x-api-key": {KEY!r}}}, content_type={FORM!r})
heavy = (
    "google.auth", "cryptography", "standardwebhooks", "google.cloud.secretmanager_v1", "grpc", "requests", "sandbox",
    "console",
)
print(json.dumps([answer.status_code, [n for n in heavy if n in before], [n for n in heavy if n in sys.modules]]))
"""


def loaded(folder: Path, environ: dict[str, str]) -> tuple[int, list[str], list[str]]:
    """Make one call; return its status and which heavy modules were loaded before and after it."""
    run = subprocess.run(
        [sys.executable, "-c", LOADED, str(ROOT / "main.py")],
        capture_output=True, text=True, cwd=folder, env=environ, check=True,
    )  # fmt: skip
    status, at_start, at_end = json.loads(run.stdout.splitlines()[-1])
    return status, at_start, at_end


def test_library_for_google_identities_is_loaded_at_the_start_where_the_policy_names_one(
    tmp_path: Path, upstream: Appgregator
) -> None:
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    credentials = ["google: ann@acme.example", f"webhook: file:{tmp_path / 'signing'}"]
    document = policy(upstream.origin, secret=f"file:{tmp_path / 'key'}", credentials=credentials)
    (tmp_path / "policy.yaml").write_text(document)
    environ = {
        "PATH": os.environ["PATH"],
        "POLICY": str(tmp_path / "policy.yaml"),
        "AUDIENCE": "https://countersign.example",
        "AUDIT": f"file:{tmp_path / 'audit'}",
    }
    status, at_start, at_end = loaded(tmp_path, environ)
    assert status == 200
    assert at_start == at_end == ["google.auth", "cryptography"]


@pytest.mark.parametrize("mounted", [True, False], ids=["mounted key", "Secret Manager"])
def test_google_client_is_loaded_only_where_it_is_used(
    tmp_path: Path, upstream: Appgregator, secret_manager: SecretManager, *, mounted: bool
) -> None:
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    document = policy(upstream.origin, secret=f"file:{tmp_path / 'key'}") if mounted else policy(upstream.origin)
    (tmp_path / "policy.yaml").write_text(document)
    environ = {
        "PATH": os.environ["PATH"],
        "POLICY": str(tmp_path / "policy.yaml"),
        "SECRET_MANAGER_ENDPOINT": secret_manager.address,
        "AUDIT": f"file:{tmp_path / 'audit'}",
    }
    status, at_start, at_end = loaded(tmp_path, environ)
    assert status == 200
    assert at_start == at_end  # so that the first call does not wait
    assert "standardwebhooks" not in at_end
    assert ("google.auth" in at_end) == (not mounted)
    assert ("grpc" in at_end, "google.cloud.secretmanager_v1" in at_end) == (not mounted, not mounted)
    assert not {"sandbox", "console"} & set(at_end)
