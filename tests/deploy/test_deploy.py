"""The deploy script, its ignore file and its page: whatever they tell gcloud to do, gcloud understands."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from gateway.stores.firestore import LEDGER, WINDOWS

REPOSITORY = Path(__file__).parents[2]
SECRET = "projects/acme/secrets/appgregator-x-api-key"
SIGNING = "projects/acme-shared/secrets/n8n-signing"
ACCOUNT = "countersign@acme-prod.iam.gserviceaccount.com"
POLICY = f"""\
connections:
  acme-billing: {{secret: {SECRET}/versions/latest}}   # not projects/acme/secrets/an-old-one
"""
USUAL = {
    "--project": "acme-prod",
    "--region": "us-central1",
    "--policy": "policies/documents/acme.yaml",
    "--secret": SECRET,
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """As much of the repository as deploying needs, with a policy check that says what it was asked."""
    house = tmp_path / "house"
    (house / "policies/documents").mkdir(parents=True)
    (house / "deploy").mkdir()
    shutil.copy(REPOSITORY / "deploy/deploy", house / "deploy/deploy")
    shutil.copy(REPOSITORY / ".gcloudignore", house / ".gcloudignore")
    (house / "policies/documents/acme.yaml").write_text(POLICY)
    program(house / "countersign", 'echo "checked: $*"; exit "${CHECK:-0}"')
    return house


@pytest.fixture
def isolated(tmp_path: Path) -> dict[str, str]:
    """An environment in which gcloud knows no account and leaves ours alone."""
    return os.environ | {
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
    }


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def deploy(house: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [house / "deploy/deploy", *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | environment,
        check=False,
    )


def usual(*more: str, **instead: str) -> list[str]:
    """The usual options; `instead` replaces some, and one replaced by nothing is left out."""
    options = USUAL | {f"--{key}": value for key, value in instead.items()}
    return [word for option, value in options.items() if value for word in (option, value)] + list(more)


def dry_run(house: Path, *arguments: str) -> list[str]:
    run = deploy(house, *arguments, "--dry-run")
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def words(commands: Iterable[str], *start: str) -> list[str]:
    """The words of the one command that starts so."""
    (found,) = [w for w in map(shlex.split, commands) if w[1 : 1 + len(start)] == list(start)]
    return found


def gcloud(environment: dict[str, str], *arguments: str) -> str:
    if not shutil.which("gcloud"):
        pytest.skip("gcloud checks its own commands, and is not here: install it from cloud.google.com/sdk")
    run = subprocess.run(["gcloud", *arguments], capture_output=True, text=True, env=environment, check=True)
    return run.stdout or run.stderr


def lint(commands: Iterable[str], environment: dict[str, str], folder: Path) -> list[str]:
    """What gcloud has against these commands. It starts slowly, hence all of them in one go."""
    asked = [{"id": command, "command_string": command} for command in dict.fromkeys(commands)]
    (folder / "commands.json").write_text(json.dumps(asked))
    answer = json.loads(
        gcloud(environment, "meta", "lint-gcloud-commands", f"--commands-file={folder / 'commands.json'}")
    )
    assert len(answer) == len(asked)
    return [f"{one['command_string']}: {one['error_message']}" for one in answer if not one["success"]]


OPTION_SETS = [
    [],
    ["--allow-unauthenticated", "--min-instances=0", "--audience=https://countersign-abc.a.run.app"],
    ["--invoker=user:ann@acme.example", "--invoker", "group:billing@acme.example"],
    ["--invoker=principalSet://iam.googleapis.com/projects/12/locations/global/workloadIdentityPools/p/*"],
    ["--store=redis://10.0.0.3:6379/0", "--vpc-connector=my-connector", "--max-instances=20", "--min-instances=2"],
    ["--policy-secret=projects/acme-prod/secrets/countersign-policy"],
    ["--compile"],
    ["--store=firestore://acme-data/limits", "--max-instances=20"],
    ["--store=firestore://acme-prod"],
    ["--name=stripe", "--runtime=python314", "--concurrency=7", "--memory=1Gi", "--cpu=2", "--store=memory"],
]


def test_gcloud_accepts_every_command_of_every_dry_run(house: Path, isolated: dict[str, str], tmp_path: Path) -> None:
    commands = [line for options in OPTION_SETS for line in dry_run(house, *usual(*options))]
    assert all(line.startswith("gcloud ") for line in commands)
    assert lint(commands, isolated, tmp_path) == []


def test_gcloud_accepts_every_command_of_the_page(isolated: dict[str, str], tmp_path: Path) -> None:
    commands = page_commands()
    assert len(commands) > 15
    assert lint(commands, isolated, tmp_path) == []


def test_the_lint_can_fail(house: Path, isolated: dict[str, str], tmp_path: Path) -> None:
    broken = [f"{line} --made-up=1" for line in dry_run(house, *usual())]
    assert broken
    assert len(lint(broken, isolated, tmp_path)) == len(broken)


def page_lines() -> list[str]:
    """The shell of the page, a command a line, its variables filled in."""
    page = (REPOSITORY / "docs/deploy.md").read_text()
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    values = dict(re.findall(r"^([A-Z]+)=([\w-]+)$", shell, re.MULTILINE)) | {
        "URL": "https://countersign-abc.a.run.app",
        "KEY": "csk_0",
        "AUDIT_ID": "01JD",
        "OLD": "3",
        "MEMBER": "allUsers",
        "REVISION": "countersign-00001-abc",
    }
    return re.sub(r"\$([A-Z_]+)", lambda name: values[name[1]], shell).splitlines()


def page_commands() -> list[str]:
    """A gcloud command ends where its line does, or the bracket that it stands in."""
    commands = []
    for line in page_lines():
        for inner in re.findall(r"\$\((gcloud (?:[^()']|'[^']*')*)\)", line):
            commands.append(inner)
            line = line.replace(inner, "")  # noqa: PLW2901  what is left may hold another
        commands += re.findall(r"(?:^|\| )(gcloud .*)", line)
    return commands


def test_the_page_mentions_no_command_that_is_not_checked() -> None:
    assert sum(line.count("gcloud ") for line in page_lines()) == len(page_commands())


def test_the_dry_run_of_the_page_works(house: Path) -> None:
    (line,) = [line for line in page_lines() if line.startswith("deploy/deploy ")]
    (house / "policies/documents/acme.yaml").write_text(POLICY.replace("acme/", "acme-prod/"))
    assert line.endswith(" --dry-run")
    assert dry_run(house, *shlex.split(line)[1:-1])


@pytest.mark.parametrize("options", OPTION_SETS)
def test_the_function_may_read_its_secret_and_nothing_else(house: Path, options: list[str]) -> None:
    commands = dry_run(house, *usual(*options))
    granted = [shlex.split(line) for line in commands if "secretAccessor" in line]
    account = f"{words(commands, 'functions', 'deploy')[3]}@acme-prod.iam.gserviceaccount.com"
    held = [["countersign-policy", "--project=acme-prod"]] if "--policy-secret" in str(options) else []
    assert [one[1:5] for one in granted] == [
        ["secrets", "add-iam-policy-binding", *secret]
        for secret in [["appgregator-x-api-key", "--project=acme"], *held]
    ]
    assert f"--member=serviceAccount:{account}" in granted[0]
    assert f"--service-account={account}" in words(commands, "functions", "deploy")
    assert not any("allUsers" in line for line in commands)
    project_wide = [shlex.split(line) for line in commands if "projects add-iam-policy-binding" in line]
    assert all("--role=roles/datastore.user" in one for one in project_wide)
    assert len(project_wide) == any("firestore" in option for option in options)


def test_access_is_to_every_secret_that_the_policy_names(house: Path) -> None:
    policy = house / "policies/documents/acme.yaml"
    policy.write_text(f"{POLICY}  n8n: {{webhook: {SIGNING}/versions/latest}}\n")
    both = dry_run(house, *usual("--secret", f"{SIGNING}/versions/3", "--secret", SIGNING))
    assert len([line for line in both if "secretAccessor" in line]) == 2
    refused(deploy(house, *usual("--dry-run")), f"--secret {SIGNING}")
    policy.write_text(POLICY)
    refused(deploy(house, *usual("--secret", SIGNING, "--dry-run")), "does not name")


def test_nobody_gets_in_unless_asked(house: Path) -> None:
    assert "--no-allow-unauthenticated" in words(dry_run(house, *usual()), "functions", "deploy")
    public = words(dry_run(house, *usual("--allow-unauthenticated")), "functions", "deploy")
    assert "--allow-unauthenticated" in public
    assert "--no-allow-unauthenticated" not in public
    named = words(dry_run(house, *usual("--invoker=user:ann@acme.example")), "run", "services")
    assert {"--member=user:ann@acme.example", "--role=roles/run.invoker"} <= set(named)


@pytest.mark.parametrize("concurrency", ["1", "80", "1000"])
def test_every_call_finds_a_thread_in_the_one_instance(house: Path, concurrency: str) -> None:
    command = words(dry_run(house, *usual(concurrency=concurrency)), "functions", "deploy")
    (settings,) = [word for word in command if word.startswith("--set-env-vars=")]
    assert dict(pair.split("=") for pair in settings.removeprefix("--set-env-vars=").split(",")) == {
        "POLICY": "policies/documents/acme.compiled",
        "STORE": "memory",
        "AUDIT": "stdout",
        "THREADS": concurrency,
        "WORKERS": "1",
        "GOOGLE_CLOUD_PROJECT": "acme-prod",
        "LOG_EXECUTION_ID": "false",
        "IAM": "guards",
    }
    assert {f"--concurrency={concurrency}", "--max-instances=1", "--min-instances=1"} <= set(command)


def test_iam_is_said_to_guard_only_what_it_guards(house: Path) -> None:
    audience = "https://countersign-abc.a.run.app"
    for access, said in (("--invoker=user:ann@acme.example", ["guards"]), ("--allow-unauthenticated", [])):
        command = words(dry_run(house, *usual(access, f"--audience={audience}")), "functions", "deploy")
        (settings,) = [word for word in command if word.startswith("--set-env-vars=")]
        assert re.findall(r",IAM=(\w*)", settings) == said
        assert re.findall(r",AUDIENCE=([^,]*)", settings) == [audience]


def test_instances_that_share_a_redis_may_be_many(house: Path) -> None:
    store = "redis://10.0.0.3:6379/0"
    command = words(dry_run(house, *usual(f"--store={store}", "--vpc-connector=my-connector")), "functions", "deploy")
    assert {"--max-instances=10", "--min-instances=0", "--vpc-connector=my-connector"} <= set(command)
    (settings,) = [word for word in command if word.startswith("--set-env-vars=")]
    assert f",STORE={store}," in settings


def test_policy_in_secret_manager_is_read_from_there_and_checked_here(house: Path) -> None:
    secret = "projects/acme-prod/secrets/countersign-policy"
    run = deploy(house, *usual(f"--policy-secret={secret}/versions/3", "--dry-run"))
    command = words(run.stdout.splitlines(), "functions", "deploy")
    (settings,) = [word for word in command if word.startswith("--set-env-vars=")]
    assert settings.startswith(f"--set-env-vars=POLICY={secret}/versions/latest,STORE=")
    policy = house / "policies/documents/acme.yaml"
    policy.write_text(POLICY + "#" * 65536)
    refused(deploy(house, *usual("--policy-secret", secret, "--dry-run")), "64 KiB")
    assert dry_run(house, *usual())


def test_compiled_policy_in_secret_manager_is_bounded_by_its_own_size(house: Path) -> None:
    secret = "projects/acme-prod/secrets/countersign-policy"
    (house / "policies/documents/acme.yaml").write_text(POLICY + "#" * 65536)
    deployed = words(dry_run(house, *usual("--policy-secret", secret, "--compile")), "functions", "deploy")
    assert f"--set-env-vars=POLICY={secret}/versions/latest,STORE=" in " ".join(deployed)
    (house / "policies/documents/acme.compiled").write_text("#" * 65537)
    refused(deploy(house, *usual("--policy-secret", secret, "--compile", "--dry-run")), "64 KiB")


@pytest.mark.parametrize(
    ("store", "project", "database"),
    [
        ("firestore://acme-data/limits", "acme-data", "limits"),
        ("firestore://acme-prod", "acme-prod", "(default)"),
        ("firestore://acme-prod/(default)", "acme-prod", "(default)"),
    ],
)
def test_with_firestore_the_function_may_use_its_database_alone_and_what_expires_is_deleted(
    house: Path, store: str, project: str, database: str
) -> None:
    commands = dry_run(house, *usual(f"--store={store}"))
    (settings,) = [word for word in words(commands, "functions", "deploy") if word.startswith("--set-env-vars=")]
    assert f",STORE={store}," in settings
    binding = words(commands, "projects", "add-iam-policy-binding")
    assert binding[3] == project
    assert f"--member=serviceAccount:{ACCOUNT}" in binding
    name = f'resource.name=="projects/{project}/databases/{database}"'
    assert f"--condition=expression={name},title=countersign-{database}" in binding
    policies = [w for w in map(shlex.split, commands) if w[1:5] == ["firestore", "fields", "ttls", "update"]]
    assert [one[5:9] for one in policies] == [
        ["expire_at", f"--project={project}", f"--database={database}", f"--collection-group={collection}"]
        for collection in (LEDGER, WINDOWS)
    ]


def refused(run: subprocess.CompletedProcess[str], says: str) -> None:
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert run.stderr.startswith("deploy: ")
    assert says in run.stderr


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--max-instances", "2", "second invoice"),
        ("--audience", "http://countersign.example", "an address such as https://"),
        ("--audience", "https://a.example,IAM=guards", "an address such as https://"),
        ("--store", "redis://:hunter2@10.0.0.1", "without a password"),
        ("--store", "redis://10.0.0.1,DEBUG=1", "without a password"),
        ("--store", "firestore", "firestore://PROJECT/DATABASE"),
        ("--store", "firestore://acme-prod/x,DEBUG=1", "firestore://PROJECT/DATABASE"),
        ("--store", "firestore://acme-prod/(other)", "firestore://PROJECT/DATABASE"),
        ("--vpc-connector", "x --quiet", "name of a connector"),
        ("--store", "", "--store is missing"),
        ("--concurrency", "0", "1 to 1000"),
        ("--concurrency", "80 ", "1 to 1000"),
        ("--concurrency", "1001", "1 to 1000"),
        ("--memory", "lots", "512Mi"),
        ("--cpu", ".5", "one call at a time"),
        ("--min-instances", "2", "0 or 1"),
        ("--runtime", "nodejs22", "python313"),
        ("--name", "x; rm -rf /", "lowercase letters"),
        ("--name", "countersign\n", "lowercase letters"),
        ("--name", "--quiet", "lowercase letters"),
        ("--name", "$(id)", "lowercase letters"),
        ("--project", "acme-prod\nacme-dev", "project id"),
        ("--project", "acme-prod --impersonate-service-account=x", "project id"),
        ("--region", "us-central1,DEBUG=1", "region"),
        ("--secret", "projects/acme/secrets/a b", "projects/P/secrets/NAME"),
        ("--secret", f"{SECRET}\n", "projects/P/secrets/NAME"),
        ("--secret", "projects/acme/secrets/*", "projects/P/secrets/NAME"),
        ("--secret", "appgregator-x-api-key", "projects/P/secrets/NAME"),
        ("--policy-secret", "policies/documents/acme.yaml", "projects/P/secrets/NAME"),
        ("--policy-secret", f"{SECRET},DEBUG=1", "projects/P/secrets/NAME"),
        ("--policy", "policies/documents/none.yaml", "no file"),
        ("--policy", "policies/../tests/acme.yaml", "under policies/"),
        ("--policy", "tests/acme.yaml", "under policies/"),
        ("--policy", "policies/documents/acme.yaml,DEBUG=1", "under policies/"),
        ("--policy", "policies/documents/acme.yaml,DEBUG=1.yaml", "under policies/"),
        ("--invoker", "allUsers", "--allow-unauthenticated"),
        ("--invoker", "allAuthenticatedUsers", "--allow-unauthenticated"),
        ("--invoker", "user:ann@acme.example --role=roles/owner", "a member"),
        ("--member", "user:ann@acme.example", "not an option"),
        ("--dry-run=no", "x", "not an option"),
        ("stray", "x", "not an option"),
    ],
)
def test_a_wrong_value_is_one_clear_line(house: Path, option: str, value: str, says: str) -> None:
    refused(deploy(house, *usual("--dry-run", option, value)), says)


@pytest.mark.parametrize("option", USUAL)
def test_a_missing_option_is_named(house: Path, option: str) -> None:
    refused(deploy(house, *usual("--dry-run", **{option[2:]: ""})), option)
    refused(deploy(house, "--dry-run", option), f"{option} needs a value")


def test_public_and_invited_at_once_is_refused(house: Path) -> None:
    both = usual("--dry-run", "--allow-unauthenticated", "--invoker=user:ann@acme.example")
    refused(deploy(house, *both), "Remove one")


def test_help_lists_every_option(house: Path) -> None:
    run = deploy(house, "--help")
    assert run.returncode == 0
    source = (house / "deploy/deploy").read_text()
    assert set(re.findall(r"^    (--[a-z-]+)\)", source, re.MULTILINE)) <= set(re.findall(r"--[a-z-]+", run.stdout))


def test_a_dry_run_checks_the_policy_where_it_can(house: Path) -> None:
    assert "checked" not in deploy(house, *usual("--dry-run")).stderr
    (house / ".venv").mkdir()
    assert "checked: check policies/documents/acme.yaml" in deploy(house, *usual("--dry-run")).stderr
    wrong = deploy(house, *usual("--dry-run"), CHECK="1")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "Nothing was changed" in wrong.stderr


class Cloud:
    """A gcloud that notes what it is asked, knows some accounts, and fails at one command."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        self.notes.touch()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.path = f"{self.bin}:{os.environ['PATH']}"
        program(
            self.bin / "gcloud",
            f'echo "gcloud $*" >> {shlex.quote(str(self.notes))}\n'
            'case "$*" in\n'
            '  ${FAILS:-nothing}*) echo "denied" >&2; exit 1 ;;\n'
            '  "iam service-accounts list"*) echo "${ACCOUNTS:-}" ;;\n'
            '  "firestore fields ttls list"*) echo "${TTLS:-}" ;;\n'
            '  "functions describe"*) echo https://countersign-abc.a.run.app ;;\n'
            "esac",
        )

    def asked(self) -> list[str]:
        return [" ".join(line.split()[1:4]) for line in self.notes.read_text().splitlines()]


STEPS = [
    "services enable --project=acme-prod",
    "iam service-accounts list",
    "iam service-accounts create",
    "secrets add-iam-policy-binding appgregator-x-api-key",
    "functions deploy countersign",
    "run services add-iam-policy-binding",
    "functions describe countersign",
]
FOR_ANN = "--invoker=user:ann@acme.example"


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def test_compiled_policy_is_made_by_the_check_and_is_what_the_function_goes_by(house: Path, cloud: Cloud) -> None:
    program(house / "countersign", 'echo "checked: $*"; [[ $# -lt 4 ]] || echo compiled >"$4"')
    compiled = house / "policies/documents/acme.compiled"
    printed = dry_run(house, *usual())
    assert not compiled.exists()
    run = deploy(house, *usual(), PATH=cloud.path)
    assert "checked: check policies/documents/acme.yaml --compile policies/documents/acme.compiled" in run.stderr
    assert compiled.exists()
    assert cloud.notes.read_text().splitlines() == [" ".join(shlex.split(line)) for line in printed]
    (settings,) = [word for word in words(printed, "functions", "deploy") if word.startswith("--set-env-vars=")]
    assert settings.startswith("--set-env-vars=POLICY=policies/documents/acme.compiled,STORE=")


def test_a_deploy_runs_what_its_dry_run_printed(house: Path, cloud: Cloud) -> None:
    printed = dry_run(house, *usual(FOR_ANN))
    assert cloud.asked() == []
    run = deploy(house, *usual(FOR_ANN), PATH=cloud.path)
    assert run.returncode == 0, run.stderr
    assert cloud.asked() == STEPS
    assert cloud.notes.read_text().splitlines() == [" ".join(shlex.split(line)) for line in printed]
    assert run.stderr.index("checked: check policies/documents/acme.yaml") < run.stderr.index("gcloud ")
    assert "https://countersign-abc.a.run.app/stripe/invoices/?" in run.stderr
    assert "X-Serverless-Authorization: Bearer $(gcloud auth print-identity-token)" in run.stderr


def test_a_public_function_is_tried_without_a_token(house: Path, cloud: Cloud) -> None:
    run = deploy(house, *usual("--allow-unauthenticated"), PATH=cloud.path)
    assert run.returncode == 0, run.stderr
    assert "X-Serverless-Authorization" not in run.stderr


def test_an_existing_service_account_is_not_created_again(house: Path, cloud: Cloud) -> None:
    run = deploy(house, *usual(FOR_ANN), PATH=cloud.path, ACCOUNTS=ACCOUNT)
    assert run.returncode == 0, run.stderr
    assert cloud.asked() == [step for step in STEPS if not step.endswith(" create")]


def test_what_expires_is_told_to_firestore_once(house: Path, cloud: Cloud) -> None:
    run = deploy(house, *usual("--store=firestore://acme-prod"), PATH=cloud.path, TTLS="there")
    assert run.returncode == 0, run.stderr
    asked = cloud.asked()
    assert asked.count("firestore fields ttls") == 2
    assert not any("--enable-ttl" in line for line in cloud.notes.read_text().splitlines())


def test_the_function_goes_compiled_by_its_runtimes_python_and_by_content(house: Path, cloud: Cloud) -> None:
    stale = house / "gateway/__pycache__/gone.cpython-311.pyc"
    stale.parent.mkdir(parents=True)
    stale.touch()
    for name in ("main.py", "policies/model.py", "gateway/chain.py"):
        (house / name).write_text("answer = 42\n")
    program(cloud.bin / "python3.14", f'exec {shlex.quote(sys.executable)} "$@"')
    run = deploy(house, *usual("--runtime=python314"), PATH=cloud.path)
    assert run.returncode == 0, run.stderr
    assert "cold starts" not in run.stderr
    compiled = sorted(house.rglob("*.pyc"))
    assert [path.parent.parent.relative_to(house).as_posix() for path in compiled] == [".", "gateway", "policies"]
    # PEP 552: bit 0 says that the source's hash follows, bit 1 that it is compared with the source.
    assert {path.read_bytes()[4:8] for path in compiled} == {b"\x03\0\0\0"}
    assert not stale.exists()


def test_without_the_runtimes_python_it_says_what_that_costs_and_goes_on(house: Path, cloud: Cloud) -> None:
    program(cloud.bin / "python3.14", "exit 127")
    run = deploy(house, *usual("--runtime=python314"), PATH=cloud.path)
    assert run.returncode == 0
    assert "deploy: python3.14 is not installed" in run.stderr
    assert "functions deploy countersign" in cloud.asked()


def test_dry_run_compiles_nothing(house: Path) -> None:
    (house / "main.py").write_text("answer = 42\n")
    dry_run(house, *usual())
    assert not list(house.rglob("*.pyc"))


@pytest.mark.parametrize("last", range(len(STEPS)))
def test_the_first_failure_stops_it(house: Path, cloud: Cloud, last: int) -> None:
    run = deploy(house, *usual(FOR_ANN), PATH=cloud.path, FAILS=STEPS[last])
    assert run.returncode == 1
    assert cloud.asked() == STEPS[: last + 1]
    assert run.stderr.count("deploy: Stopped") == 1
    assert "Countersign is at" not in run.stderr


def test_a_wrong_policy_is_not_deployed(house: Path, cloud: Cloud) -> None:
    assert deploy(house, *usual(), PATH=cloud.path, CHECK="1").returncode == 1
    assert cloud.asked() == []


def test_only_what_the_function_needs_is_uploaded(house: Path, isolated: dict[str, str]) -> None:
    needed = {
        "main.py", "requirements.txt", "policies/documents/acme.yaml", "gateway/stores/memory.py",
        "__pycache__/main.cpython-313.pyc", "gateway/__pycache__/x.cpython-313.pyc",
    }  # fmt: skip
    others = {
        ".git/config", ".venv/run", ".env", ".ruff_cache/x", "__pycache__/conftest.cpython-313.pyc", "policies/.secret",
        "tests/test_x.py", "bench/x.py", "sandbox/x.py", "console/x.py", "docs/x.md", "requirements-dev.txt",
        "notes.txt",
    }  # fmt: skip
    for name in needed | others:
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).touch()
    assert set(gcloud(isolated, "meta", "list-files-for-upload", str(house)).split()) == needed
