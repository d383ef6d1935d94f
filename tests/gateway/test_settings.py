"""The environment -> all that an instance needs, or one line that says what to write instead."""

from __future__ import annotations

import math
import os
import socket
from typing import TYPE_CHECKING

import pytest

from gateway.reloading import MAX_DOCUMENT
from gateway.settings import SettingError, load
from gateway.stores.firestore import Firestore
from gateway.stores.redis import Redis
from sandbox.__main__ import SECRET, UPSTREAM_KEY
from tests.conftest import policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.settings import Gate
    from sandbox.appgregator import Appgregator
    from sandbox.secret_manager import SecretManager
    from tests.conftest import Function, Server

POLICY_SECRET = "projects/sandbox/secrets/policy"
CLOUD = {"K_SERVICE": "stripe"}


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(policy("https://upstream.example"))
    return path


def callers(gate: Gate) -> frozenset[str]:
    return gate.policies.current(math.inf).names


def error_of(**environ: str) -> str:
    with pytest.raises(SettingError) as caught:
        load(environ)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".") or "policy.yaml:" in text
    return text


def test_few_settings_are_enough_off_the_cloud(document: Path) -> None:
    assert callers(load({"POLICY": str(document)})) == {"app", "other"}


def test_all_settings_are_taken_on_the_cloud(document: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    environ = {
        "POLICY": str(document),
        "STORE": "memory",
        "AUDIT": f"file:{audit}",
        "WORKERS": "1",
        "GOOGLE_CLOUD_PROJECT": "acme",
        "SECRET_MANAGER_ENDPOINT": "",
        "DEBUG": "",
    }
    gate = load(environ | CLOUD)
    assert gate.audit.trace_prefix == "projects/acme/traces/"
    assert audit.exists()


# ---------------------------------------------------------------- POLICY


@pytest.mark.parametrize("environ", [{}, {"POLICY": ""}])
def test_policy_must_be_set(environ: dict[str, str]) -> None:
    assert error_of(**environ).startswith("POLICY is not set. Write POLICY=")


def test_policy_that_is_missing_is_named(tmp_path: Path) -> None:
    text = error_of(POLICY=str(tmp_path / "absent.yaml"))
    assert "absent.yaml cannot be read (FileNotFoundError). Write the path of a file." in text


def test_policy_that_is_a_folder_is_named(tmp_path: Path) -> None:
    assert "cannot be read (IsADirectoryError)" in error_of(POLICY=str(tmp_path))


@pytest.mark.parametrize("seconds", ["0", "0.0", "-1", "61", "soon", "1e1", "inf", "nan", " 1", "1 "])
def test_policy_seconds_that_are_no_time_within_the_promise_are_refused(document: Path, seconds: str) -> None:
    error = error_of(POLICY=str(document), POLICY_SECONDS=seconds)
    assert error.startswith("POLICY_SECONDS must be the seconds within which a change")
    assert "at most 60" in error


@pytest.mark.parametrize("seconds", ["", "0.5", "60"])
def test_policy_seconds_may_be_fewer_off_the_cloud(document: Path, seconds: str) -> None:
    load({"POLICY": str(document), "POLICY_SECONDS": seconds})


@pytest.mark.parametrize("seconds", ["0.5", "60"])
def test_policy_seconds_are_refused_on_the_cloud(document: Path, seconds: str) -> None:
    error = error_of(POLICY=str(document), STORE="memory", POLICY_SECONDS=seconds, **CLOUD)
    assert error.startswith("POLICY_SECONDS")
    assert "Remove it" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_policy_that_may_not_be_read_is_named(document: Path) -> None:
    document.chmod(0)
    assert "cannot be read (PermissionError)" in error_of(POLICY=str(document))


def test_policy_that_is_not_utf_8_says_so(document: Path) -> None:
    document.write_bytes(policy("http://127.0.0.1:9").replace("tests", "é").encode("latin-1"))
    assert "is not UTF-8 text. Save it as UTF-8." in error_of(POLICY=str(document))


def test_policy_that_is_larger_than_any_is_not_read(document: Path) -> None:
    os.truncate(document, MAX_DOCUMENT + 1)
    assert "is larger than any policy document" in error_of(POLICY=str(document))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("limits: [30/fortnight]", "write a limit as a whole number of calls per"),
        ("owner: [", "this is not YAML"),
        ("unheard_of: 1", "no such key"),
        ("", "is missing"),
    ],
)
def test_policy_that_is_wrong_is_named_by_line(document: Path, wrong: str, says: str) -> None:
    document.write_text(policy("http://127.0.0.1:9").replace("limits: [100000/minute]", wrong))
    text = error_of(POLICY=str(document))
    assert text.startswith(f"{document}:")
    assert says in text


@pytest.mark.parametrize("content", ["", "just text", "\t- {", "a: &x 1\nb: *x\n", "connections: {}\ncallers: {}\n"])
def test_policy_that_is_no_document_at_all_is_one_line_too(document: Path, content: str) -> None:
    document.write_text(content)
    assert error_of(POLICY=str(document)).startswith(f"{document}:")


def test_policy_is_read_from_secret_manager(secret_manager: SecretManager) -> None:
    secret_manager.add(POLICY_SECRET, policy("http://127.0.0.1:9").encode())
    environ = {
        "POLICY": f"{POLICY_SECRET}/versions/latest",
        "SECRET_MANAGER_ENDPOINT": secret_manager.address,
    }
    assert callers(load(environ)) == {"app", "other"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "cannot be read from Secret Manager: NotFound."),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"connections: 1\ncallers: 2\n", ":1: connections: write an object here"),
    ],
)
def test_policy_in_secret_manager_that_is_wrong_is_named(
    secret_manager: SecretManager, value: bytes | None, says: str
) -> None:
    if value is not None:
        secret_manager.add(POLICY_SECRET, value)
    where = f"{POLICY_SECRET}/versions/latest"
    with pytest.raises(SettingError) as caught:
        load({"POLICY": where, "SECRET_MANAGER_ENDPOINT": secret_manager.address})
    assert where in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_policy_of_a_secret_manager_that_is_down_is_named() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{bound.getsockname()[1]}"
        text = error_of(POLICY=f"{POLICY_SECRET}/versions/latest", SECRET_MANAGER_ENDPOINT=endpoint)
    assert "cannot be read from Secret Manager" in text


@pytest.mark.parametrize("attempt", range(3))
def test_policy_and_keys_come_from_secret_manager_under_the_server_that_forks(
    server: Callable[..., Server], secret_manager: SecretManager, upstream: Appgregator, attempt: int
) -> None:
    """Google's client must not be carried over a fork, where it may hang; so more than once."""
    secret_manager.add(POLICY_SECRET, policy(upstream.origin).encode())
    running = server(POLICY=f"{POLICY_SECRET}/versions/latest")
    status, _, body = running.call(timeout=10)
    assert status == 200, body
    assert secret_manager.accesses == (f"{POLICY_SECRET}/versions/latest", f"{SECRET}/versions/latest")
    assert [line["kind"] for line in running.record.entries()] == ["intent", "outcome"]


# ---------------------------------------------------------------- the others


@pytest.mark.parametrize(
    "store",
    [
        "Memory",
        "redis",
        "redis://",
        "redis:// host",
        "redis://host:port",
        "redis://:hunter2@a b",
        "firestore://",
        "firestore://acme-prod/(other)",
        "firestore://acme-prod/limits/more",
        "firestore://Acme",
        " ",
    ],
)
def test_store_that_there_is_not_is_refused(document: Path, store: str) -> None:
    error = error_of(POLICY=str(document), STORE=store)
    assert error.startswith("STORE must be memory, redis://HOST:PORT/DATABASE")
    assert "hunter2" not in error


@pytest.mark.parametrize(
    "store",
    [
        "redis://127.0.0.1",
        "redis://127.0.0.1:6379/3",
        "redis://:hunter2@cache.example:6379",
        "rediss://user:hunter2@[::1]:6380/0",
    ],
)
def test_redis_is_a_store_on_the_cloud_and_off_it_also_with_many_workers(document: Path, store: str) -> None:
    """It is connected to with the first call: a Redis that is down must not keep instances from starting."""
    assert isinstance(load({"POLICY": str(document), "STORE": store, "WORKERS": "4"} | CLOUD).store, Redis)


@pytest.mark.parametrize(
    ("store", "database"),
    [
        ("firestore://acme-prod", "projects/acme-prod/databases/(default)"),
        ("firestore://acme-prod/(default)", "projects/acme-prod/databases/(default)"),
        ("firestore://acme-prod/limits", "projects/acme-prod/databases/limits"),
    ],
)
def test_firestore_is_a_store_on_the_cloud_and_connected_to_with_the_first_call(
    document: Path, store: str, database: str
) -> None:
    chosen = load({"POLICY": str(document), "STORE": store, "WORKERS": "4"} | CLOUD).store
    assert isinstance(chosen, Firestore)
    assert (chosen._database, chosen._client.made()) == (database, None)


def test_firestore_in_the_clear_is_refused_on_the_cloud(document: Path) -> None:
    settings = {"POLICY": str(document), "STORE": "firestore://acme-prod", "FIRESTORE_EMULATOR_HOST": "127.0.0.1:8080"}
    assert load(settings).store
    error = error_of(**settings, **CLOUD)
    assert error.startswith("FIRESTORE_EMULATOR_HOST")
    assert "Remove it" in error


def test_store_must_be_asked_for_by_name_on_the_cloud(document: Path) -> None:
    error = error_of(POLICY=str(document), **CLOUD)
    assert error.startswith("STORE is not set")
    assert "memory" in error


def test_sandbox_policy_is_refused_on_the_cloud(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy("http://127.0.0.1:9"))
    assert load({"POLICY": str(path)}).policies
    assert error_of(POLICY=str(path), STORE="memory", **CLOUD).startswith("POLICY sends calls to this machine")


@pytest.mark.parametrize("workers", ["2", "0", "", "many", "1.0"])
def test_second_worker_is_refused_with_the_memory_store(document: Path, workers: str) -> None:
    assert error_of(POLICY=str(document), WORKERS=workers).startswith("WORKERS must be 1 with STORE=memory")


@pytest.mark.parametrize("debug", ["1", "true", "false", "0"])
def test_debug_is_refused_on_the_cloud_whatever_it_says(document: Path, debug: str) -> None:
    """The framework takes any text that is not empty for a yes."""
    assert error_of(POLICY=str(document), STORE="memory", DEBUG=debug, **CLOUD).startswith("DEBUG")


def test_debug_is_allowed_off_the_cloud(document: Path) -> None:
    assert load({"POLICY": str(document), "DEBUG": "1"}).policies


@pytest.mark.parametrize(
    "endpoint",
    [
        "secretmanager.googleapis.com:443",
        "10.0.0.1:8080",
        "127.0.0.1",
        "127.0.0.1:",
        "http://127.0.0.1:80",
        "127.0.0.1:80@evil.example",
        "127.0.0.1.evil.example:80",
        "localhost:80\n",
        "[::]:80",
    ],
)
def test_secret_manager_in_the_clear_must_be_on_this_machine(document: Path, endpoint: str) -> None:
    text = error_of(POLICY=str(document), SECRET_MANAGER_ENDPOINT=endpoint)
    assert "write 127.0.0.1:PORT" in text


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8080", "localhost:1", "[::1]:65535"])
def test_secret_manager_may_be_on_this_machine(document: Path, endpoint: str) -> None:
    assert load({"POLICY": str(document), "SECRET_MANAGER_ENDPOINT": endpoint}).policies


# ---------------------------------------------------------------- who calls


@pytest.mark.parametrize("endpoint", ["www.googleapis.com:443", "10.0.0.1:80", "http://127.0.0.1:80", "localhost:80\n"])
def test_google_in_the_clear_must_be_on_this_machine(document: Path, endpoint: str) -> None:
    text = error_of(POLICY=str(document), GOOGLE_CERTS_ENDPOINT=endpoint)
    assert text.startswith("GOOGLE_CERTS_ENDPOINT")
    assert "write 127.0.0.1:PORT" in text


@pytest.mark.parametrize("iam", ["guard", "GUARDS", "true", "1", "no", "guards "])
def test_iam_guards_or_nothing_is_said_of_it(document: Path, iam: str) -> None:
    assert error_of(POLICY=str(document), IAM=iam).startswith("IAM must be guards")


@pytest.mark.parametrize(
    "audience",
    ["http://countersign.example", "countersign.example", "https://", "https://a b", "https://a?b", "https://a#b",
     "https://ann@a.example", "HTTPS://A.EXAMPLE", "https://a.example, https://b.example", " ", "*",
     "https://a.example\n", "32555940559.apps.googleusercontent.com"],
)  # fmt: skip
def test_audience_that_is_no_address_is_refused(document: Path, audience: str) -> None:
    assert error_of(POLICY=str(document), AUDIENCE=audience).startswith("AUDIENCE must be the function's own address")


@pytest.mark.parametrize(
    "audience",
    ["https://a-1.a.run.app", "https://a.example/", "https://r-p.cloudfunctions.net/stripe", "https://a.example:8443",
     "https://a.example,https://b.example", "407408718192-abc0.apps.googleusercontent.com"],
)  # fmt: skip
def test_audience_may_be_several_addresses_or_a_client_of_ones_own(document: Path, audience: str) -> None:
    identity = load({"POLICY": str(document), "AUDIENCE": audience}).identity
    assert identity.means.google._audiences == frozenset(audience.split(","))
    assert not identity.behind_iam


def test_google_identity_needs_to_know_whom_its_tokens_are_for(document: Path) -> None:
    document.write_text(policy("https://upstream.example", credentials=["google: ann@acme.example"]))
    text = error_of(POLICY=str(document))
    assert text.startswith("POLICY names a Google identity")
    assert "Set AUDIENCE" in text
    assert "IAM=guards" in text
    assert load({"POLICY": str(document), "IAM": "guards"}).identity.behind_iam
    assert not load({"POLICY": str(document), "AUDIENCE": "https://countersign.example"}).identity.behind_iam


@pytest.mark.parametrize("audit", ["", "stderr", "file:", "file", "STDOUT", "/var/log/audit"])
def test_audit_that_is_neither_stdout_nor_a_file_is_refused(document: Path, audit: str) -> None:
    assert error_of(POLICY=str(document), AUDIT=audit) == "AUDIT must be stdout or file:PATH."


@pytest.mark.parametrize("place", ["absent/audit.jsonl", "."])
def test_audit_that_cannot_be_written_is_named(document: Path, tmp_path: Path, place: str) -> None:
    text = error_of(POLICY=str(document), AUDIT=f"file:{tmp_path / place}")
    assert f"file:{tmp_path / place} cannot be written" in text
    assert text.endswith("Write another path.")


# ---------------------------------------------------------------- what whoever starts it sees


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("POLICY", "", "POLICY is not set"),
        ("STORE", "redys://127.0.0.1", "STORE must be memory"),
        ("WORKERS", "2", "WORKERS must be 1"),
        ("AUDIT", "nowhere", "AUDIT must be stdout or file:PATH"),
        ("SECRET_MANAGER_ENDPOINT", "10.0.0.1:1", "SECRET_MANAGER_ENDPOINT"),
    ],
)
def test_function_does_not_start_with_a_wrong_setting(
    function: Callable[..., Function], name: str, value: str, says: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        function(**{name: value})
    line = str(caught.value)
    assert line.startswith("countersign cannot start: ")
    assert says in line
    assert "\n" not in line


def test_server_that_does_not_start_says_one_line_and_no_traceback(server: Callable[..., Server]) -> None:
    running = server(wait=False, STORE="disk")
    assert running.process.wait(timeout=20) == 1
    assert running.errors.read_text().startswith("countersign cannot start: STORE must be memory, redis://")
    assert running.errors.read_text().count("\n") == 1


def test_key_is_in_no_word_of_a_start_that_fails(server: Callable[..., Server], secret_manager: SecretManager) -> None:
    """Somebody names the key's own secret as the policy."""
    running = server(wait=False, POLICY=f"{SECRET}/versions/latest")
    assert running.process.wait(timeout=20) == 1
    assert UPSTREAM_KEY not in running.errors.read_text()
    assert running.errors.read_text().count("\n") == 1
