"""The deploy script, its ignore file and its page: whatever they tell gcloud to do, gcloud understands."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from gateway.stores.firestore import LEDGER, WINDOWS
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.secret_manager import SecretManager
from tests.conftest import KEY, PARAMETERS, Server, policy, sha256
from tests.tools import CURL

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
    ["--docs=https://github.com/acme/countersign/blob/main/docs/refusals.md"],
    ["--operator", "Ann at payments@acme.example", "--no-portal"],
    ["--compile"],
    ["--store=firestore://acme-data/limits", "--max-instances=20"],
    ["--store=firestore://acme-prod"],
    ["--store=rediss://10.0.0.3", "--vpc-connector=c1", "--redis-password-secret=projects/acme-prod/secrets/redis"],
    ["--store=valkeys://app@10.0.0.3:6378/0", "--vpc-connector=c1", "--redis-ca-secret=projects/acme-prod/secrets/ca"],
    ["--policy-secret=projects/acme-prod/locations/europe-west3/secrets/countersign-policy/versions/latest"],
    ["--record-key-secret=projects/acme-prod/secrets/countersign-record"],
    ["--name=stripe", "--runtime=python314", "--concurrency=7", "--memory=1Gi", "--cpu=2", "--store=memory"],
]


def test_gcloud_accepts_every_command_of_every_dry_run(house: Path, isolated: dict[str, str], tmp_path: Path) -> None:
    commands = [line for options in OPTION_SETS for line in dry_run(house, *usual(*options))]
    assert all(line.startswith("gcloud ") for line in commands)
    assert lint(commands, isolated, tmp_path) == []


@pytest.mark.parametrize(("page", "least"), [("deploy", 15), ("stores", 8)])
def test_gcloud_accepts_every_command_of_the_page(
    isolated: dict[str, str], tmp_path: Path, page: str, least: int
) -> None:
    commands = page_commands(page)
    assert len(commands) > least
    assert lint(commands, isolated, tmp_path) == []


def test_the_lint_can_fail(house: Path, isolated: dict[str, str], tmp_path: Path) -> None:
    broken = [f"{line} --made-up=1" for line in dry_run(house, *usual())]
    assert broken
    assert len(lint(broken, isolated, tmp_path)) == len(broken)


def page_lines(page: str = "deploy") -> list[str]:
    """The shell of a page, a command a line, its variables filled in."""
    page = (REPOSITORY / f"docs/{page}.md").read_text()
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    values = {"PROJECT": "acme-prod", "REGION": "us-central1", "HOST": "10.0.0.3", "PORT": "6378"}
    values |= dict(re.findall(r"^([A-Z]+)=([\w-]+)$", shell, re.MULTILINE)) | {
        "STORE": "rediss://10.0.0.3:6378/0",
        "URL": "https://countersign-abc.a.run.app",
        "ME": "ann@acme.example",
        "KEY": "sk_0",
        "COUNTERSIGN_KEY": "csk_0",
        "AUDIT_ID": "01JD",
        "OLD": "3",
        "MEMBER": "allUsers",
        "REVISION": "countersign-00001-abc",
    }
    return re.sub(r"\$([A-Z_]+)", lambda name: values[name[1]], shell).splitlines()


def page_commands(page: str = "deploy") -> list[str]:
    """A gcloud command ends where its line does, or a pipe begins, or the bracket ends that it stands in."""
    commands = []
    for line in page_lines(page):
        for inner in re.findall(r"\$\((gcloud (?:[^()']|'[^']*')*)\)", line):
            commands.append(inner)
            line = line.replace(inner, "")  # noqa: PLW2901  what is left may hold another
        commands += [part for part in line.split(" | ") if part.startswith("gcloud ")]
    return commands


@pytest.mark.parametrize("page", ["deploy", "stores"])
def test_the_page_mentions_no_command_that_is_not_checked(page: str) -> None:
    assert sum(line.count("gcloud ") for line in page_lines(page)) == len(page_commands(page))


@pytest.mark.parametrize(
    ("page", "options", "store"),
    [
        (
            "stores",
            [
                '--store="$STORE"',
                '--redis-password-secret="projects/$PROJECT/secrets/redis-password"',
                '--redis-ca-secret="projects/$PROJECT/secrets/redis-ca"',
                "--vpc-connector=countersign",
            ],
            "rediss://10.0.0.3:6378/0",
        ),
        ("deploy", ['--store="firestore://$PROJECT/$NAME"'], "firestore://acme-prod/countersign"),
    ],
)
def test_options_that_a_page_adds_for_a_store_are_taken(house: Path, page: str, options: list[str], store: str) -> None:
    text = (REPOSITORY / f"docs/{page}.md").read_text()
    assert all(f"`{option}`" in text for option in options)
    filled = [
        option.replace("$STORE", store)
        .replace("$PROJECT", "acme-prod")
        .replace("$NAME", "countersign")
        .replace('"', "")
        for option in options
    ]
    (settings,) = [
        word for word in words(dry_run(house, *usual(*filled)), "functions", "deploy") if word.startswith("--set-env")
    ]
    assert f",STORE={store}," in settings


def test_the_dry_run_of_the_page_works(house: Path) -> None:
    (line,) = [line for line in page_lines() if line.startswith("deploy/deploy ")]
    (house / "policies/documents/acme.yaml").write_text(POLICY.replace("acme/", "acme-prod/"))
    assert line.endswith(" --dry-run")
    assert dry_run(house, *shlex.split(line)[1:-1])


@pytest.mark.parametrize(
    "written",
    [
        "secret: file:/run/secrets/key",
        'secret: "file:/run/secrets/key"',
        "secret:\n      file:/run/secrets/key",
        "{webhook: file:/run/secrets/key}",
        "webhook: {secret: file:/run/secrets/key, scheme: hmac}",
        "[webhook: 'file:/run/secrets/key']",
    ],
)
def test_secret_that_is_mounted_is_refused_since_the_script_mounts_none(house: Path, written: str) -> None:
    (house / "policies/documents/acme.yaml").write_text(f"{POLICY}  more: {{}}\n  # {' '.join(written.split())}\n")
    assert dry_run(house, *usual())
    (house / "policies/documents/acme.yaml").write_text(f"{POLICY}  more:\n    {written}\n")
    run = deploy(house, *usual(), "--dry-run")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        "deploy: The policy names file:/run/secrets/key, and this script mounts no file. Put the secret into Secret "
        "Manager, write projects/P/secrets/NAME/versions/latest into the policy, and add: "
        "--secret projects/P/secrets/NAME\n"
    )


def test_word_that_only_ends_in_file_is_no_mounted_secret(house: Path) -> None:
    (house / "policies/documents/acme.yaml").write_text(f"{POLICY}  more: {{owner: profile:x, ours: my_file:y}}\n")
    assert dry_run(house, *usual())


@pytest.mark.parametrize("options", OPTION_SETS)
def test_the_function_may_read_its_secret_and_nothing_else(house: Path, options: list[str]) -> None:
    commands = dry_run(house, *usual(*options))
    granted = [shlex.split(line) for line in commands if "secretAccessor" in line]
    account = f"{words(commands, 'functions', 'deploy')[3]}@acme-prod.iam.gserviceaccount.com"
    held = ["countersign-policy"] if "--policy-secret" in str(options) else []
    held += ["redis"] if "--redis-password-secret" in str(options) else []
    held += ["ca"] if "--redis-ca-secret" in str(options) else []
    held += ["countersign-record"] if "--record-key-secret" in str(options) else []
    assert [one[1:5] for one in granted] == [
        ["secrets", "add-iam-policy-binding", *secret]
        for secret in [["appgregator-x-api-key", "--project=acme"], *([one, "--project=acme-prod"] for one in held)]
    ]
    regional = ["--location=europe-west3"] if "locations/europe-west3" in str(options) else []
    assert [word for one in granted for word in one if word.startswith("--location")] == regional
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


def test_access_is_to_a_regional_secret_in_its_region(house: Path) -> None:
    secret = "projects/acme/locations/europe-west3/secrets/appgregator-x-api-key"
    (house / "policies/documents/acme.yaml").write_text(POLICY.replace(SECRET, secret))
    refused(deploy(house, *usual("--dry-run")), f"--secret {secret}")
    binding = words(dry_run(house, *usual(secret=f"{secret}/versions/latest")), "secrets", "add-iam-policy-binding")
    assert binding[3:6] == ["appgregator-x-api-key", "--project=acme", "--location=europe-west3"]


def test_nobody_gets_in_unless_asked(house: Path) -> None:
    assert "--no-allow-unauthenticated" in words(dry_run(house, *usual()), "functions", "deploy")
    public = words(dry_run(house, *usual("--allow-unauthenticated")), "functions", "deploy")
    assert "--allow-unauthenticated" in public
    assert "--no-allow-unauthenticated" not in public
    named = words(
        dry_run(house, *usual("--invoker=user:ann@acme.example")), "run", "services", "add-iam-policy-binding"
    )
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


def test_page_about_refusals_is_set_as_written_and_only_then(house: Path) -> None:
    docs = "https://github.com/acme/countersign/blob/main/docs/refusals.md"
    for options, said in (([f"--docs={docs}"], [docs]), ([], [])):
        command = words(dry_run(house, *usual(*options)), "functions", "deploy")
        (settings,) = [word for word in command if word.startswith("--set-env-vars=")]
        assert re.findall(r",DOCS=([^,]*)", settings) == said


def test_whom_to_ask_and_no_portal_are_set_only_where_they_are_said(house: Path) -> None:
    for options, said in (
        (
            ["--operator", "Ann at payments@acme.example", "--no-portal"],
            ["OPERATOR=Ann at payments@acme.example", "PORTAL=off"],
        ),
        ([], []),
    ):
        command = words(dry_run(house, *usual(*options)), "functions", "deploy")
        (settings,) = [word for word in command if word.startswith("--set-env-vars=")]
        assert [one for one in settings.split(",") if one.startswith(("OPERATOR=", "PORTAL="))] == said


def test_instances_that_share_a_redis_may_be_many(house: Path) -> None:
    store = "redis://10.0.0.3:6379/0"
    command = words(dry_run(house, *usual(f"--store={store}", "--vpc-connector=my-connector")), "functions", "deploy")
    assert {"--max-instances=10", "--min-instances=0", "--vpc-connector=my-connector"} <= set(command)
    (settings,) = [word for word in command if word.startswith("--set-env-vars=")]
    assert f",STORE={store}," in settings


def test_key_that_signs_the_record_is_named_in_the_settings(house: Path) -> None:
    secret = "projects/acme-prod/secrets/countersign-record"
    for written in (secret, f"{secret}/versions/3"):
        command = words(dry_run(house, *usual(f"--record-key-secret={written}")), "functions", "deploy")
        (settings,) = [word for word in command if word.startswith("--set-env-vars=")]
        assert f",RECORD_KEY={secret}/versions/latest," in settings
    assert "RECORD_KEY" not in "".join(dry_run(house, *usual()))


def test_password_of_redis_is_named_in_the_settings_and_never_in_them(house: Path) -> None:
    secret = "projects/acme-prod/secrets/redis"
    redis = usual("--store=redis://10.0.0.3:6379/0", "--vpc-connector=my-connector")
    for written in (secret, f"{secret}/versions/latest", f"{secret}/versions/3"):
        command = words(dry_run(house, *redis, f"--redis-password-secret={written}"), "functions", "deploy")
        (settings,) = [word for word in command if word.startswith("--set-env-vars=")]
        assert f",STORE_PASSWORD={secret}/versions/latest," in settings
    assert "STORE_PASSWORD" not in "".join(dry_run(house, *redis))


def test_ca_of_redis_is_named_in_the_settings(house: Path) -> None:
    secret = "projects/acme-prod/secrets/redis-ca"
    redis = usual("--store=rediss://10.0.0.3:6378/0", "--vpc-connector=my-connector")
    for written in (secret, f"{secret}/versions/latest"):
        command = words(dry_run(house, *redis, f"--redis-ca-secret={written}"), "functions", "deploy")
        (settings,) = [word for word in command if word.startswith("--set-env-vars=")]
        assert f",STORE_CA={secret}/versions/latest," in settings
    plain = usual("--store=redis://10.0.0.3", "--vpc-connector=c", f"--redis-ca-secret={secret}", "--dry-run")
    assert "is for --store rediss://" in deploy(house, *plain).stderr


@pytest.mark.parametrize(
    "host",
    ["10.0.0.3", "192.168.1.1", "172.16.0.1", "172.31.255.1", "100.64.0.1", "169.254.1.1", "redis.internal"],
)
def test_redis_in_a_private_network_needs_a_way_into_it(house: Path, host: str) -> None:
    for store in (f"redis://{host}", f"rediss://{host}:6380/0", f"valkey://app@{host}"):
        refused(deploy(house, *usual("--dry-run", "--store", store)), "--vpc-connector NAME")
        assert dry_run(house, *usual("--store", store, "--vpc-connector=my-connector"))


@pytest.mark.parametrize("host", ["172.32.0.1", "34.1.2.3", "100.128.0.1", "redis.example", "10.example"])
def test_redis_that_may_be_reached_needs_none(house: Path, host: str) -> None:
    assert dry_run(house, *usual(f"--store=rediss://{host}:6380/0"))


def test_modules_that_the_build_compiles_are_used_whatever_date_it_gives_them(house: Path, tmp_path: Path) -> None:
    command = words(dry_run(house, *usual()), "functions", "deploy")
    (build,) = [word.removeprefix("--set-build-env-vars=") for word in command if word.startswith("--set-build-env")]
    name, _, value = build.partition("=")
    module = tmp_path / "built" / "module.py"
    module.parent.mkdir()
    module.write_text("answer = 42\n")
    for environ, flags in (({}, 0), ({name: value}, 3)):
        compiling = [sys.executable, "-m", "compileall", "-f", "-q", str(module.parent)]  # as the buildpack does
        subprocess.run(compiling, env={"PATH": os.environ["PATH"]} | environ, check=True)
        (compiled,) = module.parent.rglob("*.pyc")
        # PEP 552: 0 for the source's date; bit 0 for its hash, bit 1 that it is compared with the source.
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == flags


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
        ("--docs", "https://a.example,IAM=guards", "an address such as https://"),
        ("--docs", "https://a.example/refusals#top", "an address such as https://"),
        ("--operator", "ann@acme.example,IAM=guards", "an address or a few words"),
        ("--store", "redis://:hunter2@10.0.0.1", "without a password"),
        ("--store", "redis://10.0.0.1,DEBUG=1", "without a password"),
        ("--store", "firestore", "firestore://PROJECT/DATABASE"),
        ("--store", "firestore://acme-prod/x,DEBUG=1", "firestore://PROJECT/DATABASE"),
        ("--store", "firestore://acme-prod/(other)", "firestore://PROJECT/DATABASE"),
        ("--store", "redis://127.0.0.1:6379", "none runs"),
        ("--store", "rediss://localhost/0", "none runs"),
        ("--redis-password-secret", "hunter22", "is for --store redis://"),
        ("--redis-ca-secret", "projects/acme-prod/secrets/ca", "is for --store rediss://"),
        ("--store", "redis://app:hunter2@10.0.0.1", "without a password"),
        ("--record-key-secret", "MC4CAQAwBQ==", "projects/P/secrets/NAME"),
        ("--secret", "projects/acme/locations/x/secrets/y", "projects/P/secrets/NAME"),
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


@pytest.mark.parametrize("wrong", ["hunter22", "projects/acme/secrets/a,DEBUG=1", "projects/acme/secrets/a b"])
def test_password_itself_is_no_secret_s_name(house: Path, wrong: str) -> None:
    run = deploy(house, *usual("--dry-run", "--store=redis://r.example", "--redis-password-secret", wrong))
    refused(run, "projects/P/secrets/NAME")


def test_public_and_invited_at_once_is_refused(house: Path) -> None:
    both = usual("--dry-run", "--allow-unauthenticated", "--invoker=user:ann@acme.example")
    refused(deploy(house, *both), "Remove one")


def test_help_lists_every_option(house: Path) -> None:
    run = deploy(house, "--help")
    assert run.returncode == 0
    source = (house / "deploy/deploy").read_text()
    assert set(re.findall(r"^    (--[a-z-]+)\)", source, re.MULTILINE)) <= set(re.findall(r"--[a-z-]+", run.stdout))


def test_a_dry_run_checks_the_policy_where_it_can(house: Path) -> None:
    unchecked = deploy(house, *usual("--dry-run")).stderr
    assert "checked: check" not in unchecked
    assert "The policy was not checked" in unchecked
    (house / ".venv").mkdir()
    assert "not checked" not in deploy(house, *usual("--dry-run")).stderr
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
            '  "run services list"*) echo "${EXISTS:-}" ;;\n'
            '  "run services get-iam-policy"*members=${OPEN:-nobody}*) echo "$OPEN" ;;\n'
            '  "firestore fields ttls list"*) echo "${TTLS:-}" ;;\n'
            '  "functions describe"*) echo "${URL:-https://countersign-abc.a.run.app}" ;;\n'
            '  "auth list"*) echo "${ME:-ann@acme.example}" ;;\n'
            '  "auth print-identity-token"*) echo a.token.of-ann ;;\n'
            '  *"--data-file=-"*) cat >/dev/null ;;\n'
            "esac",
        )

    def asked(self) -> list[str]:
        return [" ".join(line.split()[1:4]) for line in self.notes.read_text().splitlines()]


STEPS = [
    "services enable --project=acme-prod",
    "iam service-accounts list",
    "iam service-accounts create",
    "secrets add-iam-policy-binding appgregator-x-api-key",
    "run services list",
    "functions deploy countersign",
    "run services add-iam-policy-binding",
    "functions describe countersign",
    "auth list --filter=status:ACTIVE",
]
FOR_ANN = "--invoker=user:ann@acme.example"


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


INVITED, CLOSED, DEPLOYED = (
    "run services add-iam-policy-binding",
    "run services remove-iam-policy-binding",
    "functions deploy countersign",
)


@pytest.mark.parametrize("everybody", ["allUsers", "allAuthenticatedUsers"])
def test_function_that_everybody_may_reach_is_closed_before_tokens_are_trusted(
    house: Path, cloud: Cloud, everybody: str
) -> None:
    """And those who are to get in are let in before that. gcloud itself would close it once the new revision serves."""
    run = deploy(house, *usual(FOR_ANN), PATH=cloud.path, EXISTS="countersign", OPEN=everybody)
    assert run.returncode == 0, run.stderr
    assert [one for one in cloud.asked() if one in {INVITED, CLOSED, DEPLOYED}] == [INVITED, CLOSED, DEPLOYED]
    noted = cloud.notes.read_text().splitlines()
    (closed,) = [line for line in noted if CLOSED in line]
    assert f"--member={everybody} --role=roles/run.invoker --all" in closed
    (deployed,) = [line for line in noted if DEPLOYED in line]
    assert "IAM=guards" in deployed


def test_function_that_cannot_be_closed_is_not_deployed(house: Path, cloud: Cloud) -> None:
    fails = {"EXISTS": "countersign", "OPEN": "allUsers", "FAILS": CLOSED}
    assert deploy(house, *usual(FOR_ANN), PATH=cloud.path, **fails).returncode == 1
    assert DEPLOYED not in cloud.asked()
    fails["FAILS"] = "run services get-iam-policy"
    assert deploy(house, *usual(FOR_ANN), PATH=cloud.path, **fails).returncode == 1
    assert DEPLOYED not in cloud.asked()


def test_function_that_is_guarded_already_is_deployed_with_its_new_invokers_let_in(house: Path, cloud: Cloud) -> None:
    assert deploy(house, *usual(FOR_ANN), PATH=cloud.path, EXISTS="countersign").returncode == 0
    assert [one for one in cloud.asked() if one in {INVITED, CLOSED, DEPLOYED}] == [INVITED, DEPLOYED]


def test_function_is_opened_by_gcloud_once_it_trusts_no_token(house: Path, cloud: Cloud) -> None:
    run = deploy(house, *usual("--allow-unauthenticated"), PATH=cloud.path, EXISTS="countersign")
    assert run.returncode == 0, run.stderr
    assert [one for one in cloud.asked() if one.startswith("run services")] == []
    (deployed,) = [line for line in cloud.notes.read_text().splitlines() if DEPLOYED in line]
    assert "--allow-unauthenticated" in deployed
    assert "IAM=" not in deployed


def test_gcloud_accepts_what_closes_a_function(
    house: Path, cloud: Cloud, isolated: dict[str, str], tmp_path: Path
) -> None:
    run = deploy(house, *usual(FOR_ANN), PATH=cloud.path, EXISTS="countersign", OPEN="allUsers")
    printed = [line for line in run.stderr.splitlines() if line.startswith("gcloud run services ")]
    assert len(printed) == 5
    assert lint(printed, isolated, tmp_path) == []


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
    assert "Countersign is at https://countersign-abc.a.run.app\n" in run.stderr


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
        "console/__init__.py", "console/describe.py", "console/portal/page/app.js", "console/recipes/curl.py",
    }  # fmt: skip
    others = {
        ".git/config", ".venv/run", ".env", ".ruff_cache/x", "__pycache__/main.cpython-313.pyc", "policies/.secret",
        "gateway/__pycache__/x.cpython-313.pyc",
        "tests/test_x.py", "bench/x.py", "sandbox/x.py", "console/keys.py", "console/x/y.py", "docs/x.md",
        "requirements-dev.txt", "notes.txt",
    }  # fmt: skip
    for name in needed | others:
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).touch()
    assert set(gcloud(isolated, "meta", "list-files-for-upload", str(house)).split()) == needed


# ---------------------------------------------------------------- with the project's own command


@pytest.fixture
def whole(house: Path) -> Path:
    """A house with the operator's own command, and a policy that is right."""
    for name in ("console", "gateway", ".venv", "pyproject.toml"):
        (house / name).symlink_to(REPOSITORY / name)
    for path in (REPOSITORY / "policies").iterdir():
        if path.name != "documents":
            (house / "policies" / path.name).symlink_to(path)
    shutil.copy(REPOSITORY / "countersign", house / "countersign")
    (house / "policies/documents/acme.yaml").write_text(acme())
    return house


def acme(**options: Any) -> str:
    return policy("https://upstream.example", secret=f"{SECRET}/versions/latest", **options)


#: What the function would refuse at its start, and what to write instead.
GOOGLE = ["google: billing-app@acme.iam.gserviceaccount.com"]
UNFIT = [
    (acme(credentials=GOOGLE), ["--allow-unauthenticated"], "Set AUDIENCE to the function's own address"),
    (acme().replace("https://upstream.example", "http://127.0.0.1:8081"), [], "Deploy a policy of your own"),
    (acme().replace("invoices.create", "invoices.creat"), [], "Did you mean invoices.create?"),
    (acme().replace("metadata[order_id]:", "metadata[order_id:"), [], "is not a parameter's name"),
    (acme(), ["--store=redis://r.example:99999"], "PORT must be a number from 1 to 65535"),
    (acme(), ["--allow-unauthenticated", "--audience=https://a.example//~-"], None),
    (acme(credentials=GOOGLE), [], None),
    (acme(credentials=GOOGLE), ["--allow-unauthenticated", "--audience=https://a.example"], None),
    (acme(), ["--store=redis://r.example", "--redis-password-secret=projects/acme/secrets/redis"], None),
]


@pytest.mark.parametrize(("text", "options", "says"), UNFIT)
@pytest.mark.parametrize("dry", [True, False])
def test_what_the_function_would_refuse_at_its_start_is_not_deployed(
    whole: Path, cloud: Cloud, text: str, options: list[str], says: str | None, *, dry: bool
) -> None:
    (whole / "policies/documents/acme.yaml").write_text(text)
    run = deploy(whole, *usual(*options, *(["--dry-run"] if dry else [])), PATH=cloud.path)
    if says is None:
        assert run.returncode == 0, run.stderr
        return
    assert (run.returncode, run.stdout, cloud.asked()) == (1, "", [])
    assert says in run.stderr.splitlines()[0]
    assert "Nothing was changed" in run.stderr
    assert "--audience=https://us-central1-acme-prod.cloudfunctions.net/countersign" in run.stderr


def test_settings_that_are_deployed_are_those_that_were_judged(whole: Path, cloud: Cloud) -> None:
    program(whole / "countersign", 'printf "%s\\n" "$@"')
    run = deploy(whole, *usual("--allow-unauthenticated"), PATH=cloud.path)
    (judged,) = [line for line in run.stderr.splitlines() if line.startswith("POLICY=")]
    assert f"--set-env-vars={judged} " in cloud.notes.read_text()


def test_sandbox_policy_is_not_deployed(whole: Path) -> None:
    shutil.copy(REPOSITORY / "policies/documents/sandbox.yaml", whole / "policies/documents/sandbox.yaml")
    secret = "projects/sandbox/secrets/appgregator-x-api-key"
    run = deploy(whole, *usual("--dry-run", policy="policies/documents/sandbox.yaml", secret=secret))
    assert (run.returncode, run.stdout) == (1, "")
    assert "Deploy a policy of your own" in run.stderr


def pasted(script: str, folder: Path, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True, text=True, cwd=folder, env=os.environ | {"PATH": path} | environment, check=False,
        input=environment.get("TYPED", ""),
    )  # fmt: skip


@CURL
@pytest.mark.parametrize("access", ["--allow-unauthenticated", FOR_ANN])
@pytest.mark.parametrize(
    "options",
    [
        {"idempotency": "required"},
        {"idempotency": '{from: "metadata[order_id]"}'},
        {"idempotency": "required", "parameters": PARAMETERS + "\ncurrency: {required: true}\nfooter: {fixed: hello}"},
        {"parameters": "metadata: {required: true}\ncustom_fields: {required: true}\ndays_until_due: {min: 40}"},
        {"parameters": "metadata[order_id]:\ndays_until_due: {required: true, min: 40}\nnumber: {max_length: 2}"},
        {"parameters": "metadata[order_id]:\nnumber: {required: true, max_length: 2}\ncurrency: {one_of: [usd, eur]}"},
        {"parameters": "description:\nmetadata[order_id]:"},
        {"parameters": "footer: {fixed: hello}\nmetadata[order_id]:"},
    ],
    ids=str,
)
def test_call_that_is_printed_works_as_pasted(
    whole: Path, cloud: Cloud, server: Callable[..., Server], access: str, options: dict[str, str]
) -> None:
    text = acme(**options)
    (whole / "policies/documents/acme.yaml").write_text(text)
    running = server(text, **({} if access == "--allow-unauthenticated" else {"IAM": "guards"}))
    run = deploy(whole, *usual(access), PATH=cloud.path, URL=f"http://127.0.0.1:{running.port}")
    assert run.returncode == 0, run.stderr
    start = run.stderr.index("  read -rs COUNTERSIGN_KEY")
    read_key, then, call = run.stderr[start:].partition("Then paste this:\n")
    assert then
    answered = pasted(f"{read_key}\n{call}", whole, cloud.path, TYPED=f"{KEY}\n")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["validate_only"], answered.stdout
    assert ("X-Serverless-Authorization" in call) is (access == FOR_ANN)
    assert [one["kind"] for one in running.record.entries()] == ["preview"]


@pytest.mark.parametrize(
    ("member", "options"),
    [("user:ann@acme.example", ""), ("serviceAccount:ci@acme-prod.iam.gserviceaccount.com", " --audiences=")],
)
def test_who_deploys_is_told_to_become_an_invoker_before_the_call(
    whole: Path, cloud: Cloud, isolated: dict[str, str], member: str, options: str
) -> None:
    me = member.partition(":")[2]
    run = deploy(whole, *usual("--invoker=user:bob@acme.example"), PATH=cloud.path, ME=me)
    said, _, call = run.stderr.partition("  read -rs COUNTERSIGN_KEY")
    assert "Google lets in invokers only. This line named: user:bob@acme.example." in said
    assert f"--invoker={member} added" in said
    offered = [line.strip() for line in said.splitlines() if line.startswith("  gcloud run services")]
    assert lint(offered, isolated, whole) == []
    assert f"--member={member}" in offered[0]
    assert f"Bearer $(gcloud auth print-identity-token{options}" in call
    again = deploy(whole, *usual(f"--invoker={member}"), PATH=cloud.path, ME=me)
    assert "To try a call yourself" not in again.stderr
    public = deploy(whole, *usual("--allow-unauthenticated"), PATH=cloud.path, ME=me)
    assert "invoker" not in public.stderr
    assert "auth list" not in cloud.notes.read_text().splitlines()[-1]


def test_function_without_a_key_is_deployed_and_says_where_its_calls_are(whole: Path, cloud: Cloud) -> None:
    text = re.sub(r"key: {.*}", lambda found: f"google: a{found.start()}@acme.example", acme())
    (whole / "policies/documents/acme.yaml").write_text(text)
    run = deploy(whole, *usual(), PATH=cloud.path)
    assert run.returncode == 0, run.stderr
    assert "No active caller in policies/documents/acme.yaml has a key. docs/callers.md" in run.stderr


@CURL
def test_the_page_works_as_written(
    whole: Path, cloud: Cloud, server: Callable[..., Server], secret_manager: SecretManager
) -> None:
    """From an empty project to the last command, gcloud stood in, the function and the operator's command real."""
    page = (REPOSITORY / "docs/deploy.md").read_text()
    (document,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    document = re.sub(r"sha256: \w+", f"sha256: {sha256(KEY)}", document)
    (whole / "policies/documents/acme.yaml").write_text(document)
    for secret in re.findall(r"projects/\S+(?=/versions/)", document):
        secret_manager.add(secret, UPSTREAM_KEY.encode())
    running = server(document, IAM="guards")
    shell = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (trial,) = [place for place, block in enumerate(shell) if block.startswith("URL=")]
    (deployed,) = [place for place, block in enumerate(shell) if block.startswith("deploy/deploy")]
    shell[trial] += "echo\n"
    shell[deployed] += shell[deployed].replace(" --dry-run", "")
    given = {"OLD": "3", "MEMBER": "allUsers", "REVISION": "countersign-00001-abc", "AUDIT_ID": "01JD"}
    done = pasted(
        "\n".join(shell), whole, cloud.path, **given, URL=f"http://127.0.0.1:{running.port}",
        TYPED=f"upstream-key\n{KEY}\nanother-upstream-key\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (answer,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"validate_only"')]
    assert answer["would_send"]["body"] == "customer=cus_123"
    asked = cloud.asked()
    assert "functions deploy countersign" in asked
    assert asked.count("run services add-iam-policy-binding") == 2
    assert asked[-1].startswith("secrets delete")
