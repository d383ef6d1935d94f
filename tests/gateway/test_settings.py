"""The environment -> all that an instance needs, or one line that says what to write instead."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import redis

from console.audit import verify
from gateway.reloading import MAX_DOCUMENT
from gateway.settings import SettingError, ledger_of, load, settings_of
from gateway.signing import new_key, text_of
from gateway.stores.firestore import Firestore
from gateway.stores.redis import Redis
from sandbox.__main__ import ROOT, SECRET, UPSTREAM_KEY, command
from sandbox.redis_server import RedisServer
from tests.conftest import policy, running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.settings import Gate
    from sandbox.appgregator import Appgregator
    from sandbox.secret_manager import SecretManager
    from tests.conftest import Function, Server
    from tests.gateway.conftest import Held

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


# ---------------------------------------------------------------- PORTAL, OPERATOR


def test_portal_is_on_unless_it_is_off(document: Path) -> None:
    on = [load({"POLICY": str(document), **portal}).docs.portal for portal in ({}, {"PORTAL": ""}, {"PORTAL": "on"})]
    assert on == [True] * 3
    assert not load({"POLICY": str(document), "PORTAL": "off"}).docs.portal
    for wrong in ("no", "Off", "false", "off "):
        assert error_of(POLICY=str(document), PORTAL=wrong).startswith("PORTAL must be on or off")


def test_operator_is_a_line_that_people_can_read(document: Path) -> None:
    assert load({"POLICY": str(document)}).operator == ""
    said = "Ann in billing, +49 30 123456 or payments@acme.example"
    assert load({"POLICY": str(document), "OPERATOR": said}).operator == said
    for wrong in ("a" * 201, "two\nlines", "tab\t", "\u202e"):
        assert error_of(POLICY=str(document), OPERATOR=wrong).startswith("OPERATOR must say whom callers may ask")


# ---------------------------------------------------------------- DOCS


@pytest.mark.parametrize(
    "docs",
    [
        "https://github.com/acme/countersign/blob/main/docs/refusals.md",
        "https://docs.acme.example:8443/Refusals/",
        "https://acme.example",
    ],
)
def test_every_refusal_leads_to_its_entry_of_the_docs(function: Callable[..., Function], docs: str) -> None:
    gate = function(DOCS=docs)
    answer = gate.post(key="nobody")
    assert (answer.json or {})["help"] == f"{docs}#credential-unknown"
    answer = gate.post("/acme/stripe/v1/invoices", key="nobody")
    assert (answer.json or {})["error"]["doc_url"] == f"{docs}#credential-unknown"
    assert "help" not in (gate.post().json or {})


@pytest.mark.parametrize(
    "docs",
    [
        "http://acme.example/refusals", "acme.example/refusals", "https://", "https://acme.example/refusals#top",
        "https://acme.example/refusals?v=2", "https://acme.example/a b", "https://ann:canary@acme.example/refusals",
        "https://acme.example/r\u00e9fus", "https://acme.example/refusals\n", "docs/refusals.md",
    ],
)  # fmt: skip
def test_docs_that_no_entry_can_be_added_to_are_refused(document: Path, docs: str) -> None:
    text = error_of(POLICY=str(document), DOCS=docs)
    assert text.startswith("DOCS must be the https address of the page about refusals, without ? and #, such as https:")
    assert "canary" not in text


def test_without_docs_and_portal_no_refusal_has_help(function: Callable[..., Function]) -> None:
    for gate in (function(PORTAL="off"), function(DOCS="", PORTAL="off")):
        assert "help" not in (gate.post(key="nobody").json or {"help": ""})


def test_without_docs_help_leads_to_the_portals_page_at_the_address_that_was_called(
    function: Callable[..., Function],
) -> None:
    answer = function().post(key="nobody", Host="pay.acme.example", X_Forwarded_Proto="https")
    assert (answer.json or {})["help"] == "https://pay.acme.example/portal/docs/refusals#credential-unknown"


def test_host_that_is_none_is_in_no_answer(function: Callable[..., Function]) -> None:
    answer = function().post(Host='x.example/"><script>')
    assert (answer.json or {})["reason"] == "header-malformed"
    assert "help" not in (answer.json or {"help": ""})


# ---------------------------------------------------------------- POLICY


@pytest.mark.parametrize("environ", [{}, {"POLICY": ""}])
def test_policy_must_be_set(environ: dict[str, str]) -> None:
    assert error_of(**environ).startswith("POLICY is not set. Write POLICY=")


def test_policy_that_is_missing_is_named(tmp_path: Path) -> None:
    text = error_of(POLICY=str(tmp_path / "absent.yaml"))
    assert "absent.yaml cannot be read (there is no such file). Write the path of a file." in text


def test_policy_that_is_a_folder_is_named(tmp_path: Path) -> None:
    assert "cannot be read (the path leads to a folder)" in error_of(POLICY=str(tmp_path))


#: Settings that name a file, and what is said where it cannot be read; all else in ``settings`` is as it should be.
FILES = {
    "POLICY": "POLICY: {path} cannot be read ({why}). Write the path of a file.",
    "STORE_PASSWORD": "STORE_PASSWORD: file:{path} cannot be read: {why}. Write projects/PROJECT/secrets/NAME/versions/"
    "latest, or file:PATH of a mounted one.",
    **{
        name: f"{name}: {{path}} cannot be read ({{why}}). Write the path of a file, or remove it."
        for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "SSL_CERT_FILE")
    },
}


def named(document: Path, setting: str, path: Path) -> dict[str, str]:
    where = f"file:{path}" if setting == "STORE_PASSWORD" else str(path)
    return {"POLICY": str(document), "STORE": "redis://127.0.0.1:9"} | {setting: where}


@pytest.mark.parametrize("setting", FILES)
def test_file_that_hangs_stops_the_start_within_its_limit(
    document: Path, tmp_path: Path, hold: Callable[[Path], Held], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """D11."""
    monkeypatch.setattr("gateway.files.READ_SECONDS", 1.0)
    path = tmp_path / "held"
    path.write_text("hunter2hunter2")
    hold(path)
    why = "reading it takes longer than 1 s"
    assert error_of(**named(document, setting, path)) == FILES[setting].format(path=path, why=why)


@pytest.mark.parametrize("setting", FILES)
def test_path_of_a_pipe_stops_the_start(document: Path, tmp_path: Path, setting: str) -> None:
    """D11."""
    os.mkfifo(tmp_path / "fifo")
    says = FILES[setting].format(path=tmp_path / "fifo", why="the path leads to a pipe")
    assert error_of(**named(document, setting, tmp_path / "fifo")) == says


def test_record_key_that_hangs_leaves_the_record_unsigned_and_says_so(
    server: Callable[..., Server], tmp_path: Path, hold: Callable[[Path], Held]
) -> None:
    """The server's process forks, and has left a thread behind by then."""
    (tmp_path / "record.pem").write_text(text_of(new_key()))
    held = hold(tmp_path / "record.pem")
    started = server(RECORD_KEY=f"file:{tmp_path}/record.pem")
    assert [started.call(headers={"Idempotency-Key": f"order-{number}"})[0] for number in range(2)] == [200, 200]
    held.let_go()
    started.stop()
    (told,) = [line for line in map(json.loads, started.record.text().splitlines()) if line["severity"] == "ERROR"]
    assert told["countersign"]["secret"] == f"file:{tmp_path}/record.pem"
    assert told["countersign"]["problem"] == "reading it takes longer than 5 s"


def test_server_whose_policy_hangs_ends_with_one_line(
    server: Callable[..., Server], document: Path, hold: Callable[[Path], Held]
) -> None:
    hold(document)
    running = server(wait=False, POLICY=str(document))
    assert running.process.wait(timeout=60) == 1
    assert running.errors.read_text() == (
        f"countersign cannot start: POLICY: {document} cannot be read (reading it takes longer than 5 s). Write the "
        "path of a file.\n"
    )


@pytest.mark.parametrize("seconds", ["0", "0.0", "-1", "61", "soon", "1e1", "inf", "nan", " 1", "1 "])
def test_policy_seconds_that_are_no_time_within_the_promise_are_refused(document: Path, seconds: str) -> None:
    error = error_of(POLICY=str(document), POLICY_SECONDS=seconds)
    assert error.startswith("POLICY_SECONDS must be the seconds within which a change")
    assert "at most 60" in error


@pytest.mark.parametrize(("seconds", "promised"), [("", 60), ("0.5", 0.5), ("60", 60)])
def test_policy_seconds_may_be_fewer_off_the_cloud(document: Path, seconds: str, promised: float) -> None:
    environ = {"POLICY": str(document), "POLICY_SECONDS": seconds}
    load(environ)
    assert settings_of(environ).promised == promised


@pytest.mark.parametrize("seconds", ["0.5", "60"])
def test_policy_seconds_are_refused_on_the_cloud(document: Path, seconds: str) -> None:
    error = error_of(POLICY=str(document), STORE="memory", POLICY_SECONDS=seconds, **CLOUD)
    assert error.startswith("POLICY_SECONDS")
    assert "Remove it" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_policy_that_may_not_be_read_is_named(document: Path) -> None:
    document.chmod(0)
    assert "cannot be read (this process may not read it)" in error_of(POLICY=str(document))


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


STARTED = """
import os
import grpc
from gateway.settings import load
opened, opens = [], grpc.insecure_channel
grpc.insecure_channel = lambda *args, **more: opened.append(args) or opens(*args, **more)
load(os.environ)
print(opened)
"""


def test_process_that_the_server_forks_never_uses_googles_client_itself(
    secret_manager: SecretManager, tmp_path: Path
) -> None:
    """Its threads end some time after its channel; a worker that is forked meanwhile hangs with its first read."""
    secret_manager.add(POLICY_SECRET, policy("http://127.0.0.1:9").encode())
    secret_manager.add("projects/acme/secrets/redis", b"hunter2hunter2")
    secret_manager.add("projects/acme/secrets/record", text_of(new_key()).encode())
    settings = {
        "PATH": os.environ["PATH"],
        "POLICY": f"{POLICY_SECRET}/versions/latest",
        "STORE": "redis://127.0.0.1:6379",
        "STORE_PASSWORD": "projects/acme/secrets/redis/versions/1",
        "RECORD_KEY": "projects/acme/secrets/record/versions/1",
        "SECRET_MANAGER_ENDPOINT": secret_manager.address,
        "AUDIT": f"file:{tmp_path / 'audit'}",
    }
    run = subprocess.run([sys.executable, "-c", STARTED], cwd=ROOT, env=settings, capture_output=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"[]\n", b"")
    named = [settings[name] for name in ("POLICY", "STORE_PASSWORD", "RECORD_KEY")]
    assert sorted(secret_manager.accesses) == sorted(named)


def test_policy_and_keys_come_from_secret_manager_under_the_server_that_forks(
    server: Callable[..., Server], secret_manager: SecretManager, upstream: Appgregator
) -> None:
    secret_manager.add(POLICY_SECRET, policy(upstream.origin).encode())
    running = server(POLICY=f"{POLICY_SECRET}/versions/latest")
    status, _, body = running.call()
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
        "redis://127.0.0.1:9",
        "redis://127.0.0.1:9/3",
        "redis://:hunter2@127.0.0.1:9",
        "rediss://user:hunter2@[::1]:9/0",
        "valkey://127.0.0.1:9/0",
        "valkeys://user:hunter2@127.0.0.1:9/0",
    ],
)
def test_redis_is_a_store_on_the_cloud_and_off_it(document: Path, store: str) -> None:
    """One that is down must not keep instances from starting; here nobody listens."""
    assert isinstance(load({"POLICY": str(document), "STORE": store}).store, Redis)
    assert isinstance(load({"POLICY": str(document), "STORE": store} | CLOUD).store, Redis)


PASSWORD = "Sup3r#tail"
ENCODE = "write %23 for #, %3F for ?, %2F for /, %40 for @"


@pytest.mark.parametrize(
    ("store", "says"),
    [
        (f"rediss://default:{PASSWORD}@host:6379/0", ENCODE),
        *((f"redis://:Sup3r{mark}tail@host:6379/0", ENCODE) for mark in "#?/@ \n"),
        ("redis://:Sup3r#ta@il:1/x@host", ENCODE),
        ("redis://Sup3r#tail:x@host", ENCODE),
        ("redis://:Sup3rtail@host:port/0", "PORT must be a number from 1 to 65535"),
        ("redis://:Sup3rtail@host:99999", "PORT must be a number from 1 to 65535"),
        ("redis://host:0", "PORT must be"),
        ("redis://host:", "PORT must be"),
        ("redis://default:Sup3rtail", "PORT must be"),
        ("redis://:Sup3rtail@host:6379/zero", "DATABASE must be a number"),
        ("redis://:Sup3rtail@host/0?db=1", "DATABASE must be a number"),
        ("redis://:Sup3rtail@host/0000", "DATABASE must be a number"),
        ("redis://:Sup3rtail@ho_st:1", "HOST must be"),
        ("redis://:Sup3rtail@", "HOST must be"),
        ("redis://:Sup3rtail@[::::]:6379", "HOST must be"),
        ("redis://host#tail", "HOST must be"),
        ("redys://:Sup3rtail@host", "STORE must be memory"),
        ("REDIS://:Sup3rtail@host", "STORE must be memory"),
        ("redis:host:Sup3rtail", "STORE must be memory"),
    ],
)
def test_redis_address_that_is_wrong_is_one_line_without_the_password(document: Path, store: str, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        load({"POLICY": str(document), "STORE": store})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    told = str(caught.value)
    assert not any(part in told for part in ("Sup3r", "tail", "ta@il"))


def test_redis_password_with_odd_characters_is_taken_percent_encoded(document: Path) -> None:
    store = load({"POLICY": str(document), "STORE": "rediss://default:a%23b%3Fc%2Fd%40e%25@127.0.0.1:9/0"}).store
    assert isinstance(store, Redis)
    assert ("AUTH", "default", "a#b?c/d@e%") in store._client._opening


@pytest.mark.parametrize("store", ["redis://127.0.0.1:9/2", "rediss://default@127.0.0.1:9"])
@pytest.mark.parametrize("password", [PASSWORD, "a@b:c/d%41[]?&"])
def test_redis_password_is_read_from_a_secret(
    document: Path, secret_manager: SecretManager, tmp_path: Path, store: str, password: str
) -> None:
    secret_manager.add("projects/acme/secrets/redis", password.encode() + b"\n")
    (tmp_path / "password").write_text(password)
    for where in ("projects/acme/secrets/redis/versions/latest", f"file:{tmp_path / 'password'}"):
        environ = {"STORE": store, "STORE_PASSWORD": where, "SECRET_MANAGER_ENDPOINT": secret_manager.address}
        for made in (load({"POLICY": str(document)} | environ).store, ledger_of(environ)):
            assert isinstance(made, Redis)
            user = ("default",) if "default" in store else ()
            assert made._client._opening[0] == ("AUTH", *user, password)


@pytest.mark.parametrize(
    ("where", "store", "says"),
    [
        ("hunter22", "redis://h", "must say where the password lies, and not hold it"),
        ("file:", "redis://h", "must say where the password lies"),
        ("projects/acme/secrets/redis", "redis://h", "must say where the password lies"),
        ("file:/no/such", "redis://h", "STORE_PASSWORD: file:/no/such cannot be read: the file does not exist."),
        ("file:/no/such", "redis://:hunter22@h", "without a password of its own. Remove one"),
        ("file:/no/such", "memory", "STORE_PASSWORD is for STORE=redis://"),
        ("file:/no/such", "firestore://acme-prod", "STORE_PASSWORD is for STORE=redis://"),
    ],
)
def test_password_that_cannot_be_used_is_one_line(document: Path, where: str, store: str, says: str) -> None:
    text = error_of(POLICY=str(document), STORE=store, STORE_PASSWORD=where)
    assert says in text
    assert "hunter22" not in text


@pytest.mark.parametrize(
    ("where", "store", "says"),
    [
        ("-----BEGIN CERTIFICATE-----", "rediss://h", "STORE_CA must say where the CA of the certificate lies"),
        ("file:/no/such", "rediss://h", "STORE_CA: file:/no/such cannot be read: the file does not exist."),
        ("file:/no/such", "redis://h", "STORE_CA is for STORE=rediss://, which is Redis over TLS."),
        ("file:/no/such", "memory", "STORE_CA is for STORE=rediss://"),
        (f"file:{__file__}", "rediss://h", "holds no certificates in PEM, in ASCII. Put the CA's there"),
        ("file:/bin/sh", "rediss://h", "holds no certificates in PEM, in ASCII. Put the CA's there"),
    ],
)
def test_ca_that_cannot_be_used_is_one_line(document: Path, where: str, store: str, says: str) -> None:
    assert says in error_of(POLICY=str(document), STORE=store, STORE_CA=where)
    with pytest.raises(SettingError, match=re.escape(says)):
        ledger_of({"STORE": store, "STORE_CA": where})


def test_redis_that_no_waiting_brings_stops_the_start(document: Path) -> None:
    text = error_of(POLICY=str(document), STORE="redis://a..b:6379/0")
    assert text == "STORE: There is no such host. Correct HOST, which must be a name or an IP address."


def test_password_that_secret_manager_does_not_have_is_named(document: Path, secret_manager: SecretManager) -> None:
    where = "projects/acme/secrets/redis/versions/latest"
    text = error_of(
        POLICY=str(document), STORE="redis://h", STORE_PASSWORD=where, SECRET_MANAGER_ENDPOINT=secret_manager.address
    )
    assert text.startswith(f"STORE_PASSWORD: {where} cannot be read: NotFound. There is no such secret, or no such")


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
    chosen = load({"POLICY": str(document), "STORE": store} | CLOUD).store
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


#: Settings of the framework and of gunicorn: some end in a traceback there, some in a server that answers nobody.
WRONG_FOR_THE_SERVER = [
    *(("WORKERS", wrong) for wrong in ("2", "0", "", "two", "1.0", "-1", " 1", "1\n")),
    *(("THREADS", wrong) for wrong in ("abc", "0", "-1", "1e3", "", "1001", "8.5", "\u0661", "9" * 5000)),
    *(("PORT", wrong) for wrong in ("0", "65536", "-1", "http", "")),
    *(("CLOUD_RUN_TIMEOUT_SECONDS", wrong) for wrong in ("abc", "-1", "", "60s", "1e3", "1", "29")),
    *(("GUNICORN_LOG_LEVEL", wrong) for wrong in ("warning", "INFO", "debug", "loud", "")),
    *(("THREADED_TIMEOUT_ENABLED", wrong) for wrong in ("true", "TRUE", "1")),
    *(("FUNCTION_USE_ASGI", wrong) for wrong in ("true", "1")),
    *(("FUNCTION_SIGNATURE_TYPE", wrong) for wrong in ("event", "cloudevent", "typed", "HTTP")),
    *(("FUNCTION_TARGET", wrong) for wrong in ("hello", "main", "Countersign", "")),
    ("SCRIPT_NAME", "/api"),
    *(("GOOGLE_SDK_PYTHON_LOGGING_SCOPE", wrong) for wrong in ("google", "google.cloud.secretmanager_v1", " ")),
    *(("GRPC_TRACE", wrong) for wrong in ("all", "api", "http,-tcp")),
    ("SSLKEYLOGFILE", "/tmp/keys"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_FOR_THE_SERVER)
@pytest.mark.parametrize("store", ["memory", "redis://127.0.0.1", "firestore://acme-prod"])
def test_what_the_server_cannot_use_is_refused_whatever_the_store(
    document: Path, store: str, name: str, value: str
) -> None:
    assert error_of(POLICY=str(document), STORE=store, **{name: value}).startswith(f"{name} must be ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKERS", "1"), ("THREADS", "1"), ("THREADS", "1000"), ("PORT", "8080"), ("PORT", "65535"),
        ("CLOUD_RUN_TIMEOUT_SECONDS", "0"), ("CLOUD_RUN_TIMEOUT_SECONDS", "30"), ("GUNICORN_LOG_LEVEL", "ERROR"),
        ("THREADED_TIMEOUT_ENABLED", "False"), ("FUNCTION_USE_ASGI", ""), ("LOG_EXECUTION_ID", "true"),
        ("FUNCTION_SIGNATURE_TYPE", "http"), ("FUNCTION_SIGNATURE_TYPE", ""), ("FUNCTION_TARGET", "countersign"),
        ("SCRIPT_NAME", ""), ("GRPC_TRACE", ""), ("GRPC_VERBOSITY", "debug"), ("SSLKEYLOGFILE", ""),
    ],
)  # fmt: skip
def test_what_the_server_can_use_is_taken(document: Path, name: str, value: str) -> None:
    assert load({"POLICY": str(document), name: value}).policies


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
     "https://ann@a.example", "HTTPS://A.EXAMPLE", "https://a.example https://b.example", " ", ",", "*",
     "https://a.ex\nample", "32555940559.apps.googleusercontent.com"],
)  # fmt: skip
def test_audience_that_is_no_address_is_refused(document: Path, audience: str) -> None:
    for said in (audience, f"https://good.example, {audience}"):
        text = error_of(POLICY=str(document), AUDIENCE=said)
        assert text.startswith("AUDIENCE must be the function's own address")
        assert text.endswith(f" This is none: {(audience.strip(', ') or audience)!r}.")
        if not audience.strip(", "):
            break  # beside an address, nothing is nothing


@pytest.mark.parametrize(
    "said",
    [
        "https://a.run.app, https://b.run.app",
        " https://a.run.app ,https://b.run.app,",
        "https://a.run.app,\n https://b.run.app\n",
    ],
)
def test_audiences_may_have_spaces_between_them(document: Path, said: str) -> None:
    identity = load({"POLICY": str(document), "AUDIENCE": said}).identity
    assert identity.means.google._audiences == {"https://a.run.app", "https://b.run.app"}


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


def test_audit_that_is_a_pipe_nobody_reads_stops_the_start(document: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "cannot be written" in error_of(POLICY=str(document), AUDIT=f"file:{tmp_path / 'fifo'}")


# ---------------------------------------------------------------- what whoever starts it sees


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("POLICY", "", "POLICY is not set"),
        ("STORE", "redys://127.0.0.1", "STORE must be memory"),
        ("WORKERS", "2", "WORKERS must be 1"),
        ("THREADS", "0", "THREADS must be"),
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


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("STORE", "disk", "STORE must be memory, redis://"),
        ("STORE", f"rediss://default:{PASSWORD}@host:6379/0", "STORE must be memory, redis://"),
        ("THREADS", "abc", "THREADS must be a whole number from 1 to 1000"),
        ("THREADS", "0", "THREADS must be a whole number"),
        ("THREADS", "-1", "THREADS must be a whole number"),
        ("THREADS", "1e3", "THREADS must be a whole number"),
        ("WORKERS", "two", "WORKERS must be 1"),
        ("WORKERS", "0", "WORKERS must be 1"),
        ("WORKERS", "2", "WORKERS must be 1"),
        ("CLOUD_RUN_TIMEOUT_SECONDS", "soon", "CLOUD_RUN_TIMEOUT_SECONDS must be a whole number"),
        ("GUNICORN_LOG_LEVEL", "warning", "GUNICORN_LOG_LEVEL must be error or critical"),
        ("PORT", "70000", "PORT must be a port number"),
        ("FUNCTION_USE_ASGI", "true", "FUNCTION_USE_ASGI must be false"),
        ("FUNCTION_SIGNATURE_TYPE", "cloudevent", "FUNCTION_SIGNATURE_TYPE must be http"),
        ("AUDIENCE", "https://a.example\nhttps://b.example", "AUDIENCE must be the function's own address"),
    ],
)
def test_server_that_does_not_start_says_one_line_and_no_traceback(
    server: Callable[..., Server], name: str, value: str, says: str
) -> None:
    running = server(wait=False, **{name: value})
    assert running.process.wait(timeout=60) == 1
    said = running.errors.read_text()
    assert said.startswith(f"countersign cannot start: {says}")
    assert said.count("\n") == 1
    assert "Sup3r" not in said


def test_target_that_is_no_function_of_ours_is_one_line(document: Path) -> None:
    run = subprocess.run(
        command(9, target="hello"), env={"PATH": os.environ["PATH"], "POLICY": str(document)}, cwd=document.parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr == (
        "countersign cannot start: FUNCTION_TARGET must be countersign, the name of the function. On the cloud it is "
        "the entry point: --entry-point=countersign.\n"
    )


@pytest.mark.parametrize("name", ["PORT", "DEBUG", "FUNCTION_USE_ASGI", "FUNCTION_SIGNATURE_TYPE"])
def test_what_the_frameworks_own_command_cannot_read_it_refuses_itself_before_ours_is_loaded(
    document: Path, name: str
) -> None:
    """As docs/settings.md says."""
    words = [word for word in command(9) if "--port" not in word]
    environ = {"PATH": os.environ["PATH"], "POLICY": str(document), name: "abc"}
    run = subprocess.run(words, env=environ, cwd=document.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "Invalid value for '--" in run.stderr
    assert "Traceback" not in run.stderr


def test_key_is_in_no_word_of_a_start_that_fails(server: Callable[..., Server], secret_manager: SecretManager) -> None:
    """Somebody names the key's own secret as the policy."""
    running = server(wait=False, POLICY=f"{SECRET}/versions/latest")
    assert running.process.wait(timeout=60) == 1
    assert UPSTREAM_KEY not in running.errors.read_text()
    assert running.errors.read_text().count("\n") == 1


def test_function_works_with_a_redis_whose_password_lies_in_a_secret(
    server: Callable[..., Server], secret_manager: SecretManager, upstream: Appgregator, tmp_path: Path
) -> None:
    secret_manager.add("projects/acme/secrets/redis", PASSWORD.encode())
    with running(RedisServer(tmp_path)) as redis_server:
        with redis.Redis.from_url(redis_server.url) as client:
            client.config_set("requirepass", PASSWORD)
        started = server(STORE=redis_server.url, STORE_PASSWORD="projects/acme/secrets/redis/versions/latest")
        answers = [started.call(headers={"Idempotency-Key": "order-1"}) for _ in range(2)]
        assert [(status, headers.get("idempotent-replayed")) for status, headers, _ in answers] == [
            (200, None),
            (200, "true"),
        ]
        assert upstream.invoices == 1
        assert PASSWORD not in started.errors.read_text() + started.record.text()
        without = server(STORE=redis_server.url, wait=False)
        assert without.process.wait(timeout=60) == 1
        assert "countersign cannot start: STORE: It asks for a password" in without.errors.read_text()


@pytest.mark.parametrize("where", ["MC4CAQAwBQYDK2Vw", "record.pem", "projects/acme/secrets/record"])
def test_record_key_itself_is_no_place_of_one(document: Path, where: str) -> None:
    error = error_of(POLICY=str(document), RECORD_KEY=where)
    assert error.startswith("RECORD_KEY must say where the key that signs the record lies, and not hold it")
    assert where not in error


@pytest.mark.parametrize("lies", ["Secret Manager", "a file"])
def test_record_is_signed_under_the_server_and_its_public_key_alone_verifies_it(
    server: Callable[..., Server], secret_manager: SecretManager, tmp_path: Path, lies: str
) -> None:
    pair = new_key()
    secret_manager.add("projects/acme/secrets/record", text_of(pair).encode())
    (tmp_path / "record.pem").write_text(text_of(pair))
    where = (
        "projects/acme/secrets/record/versions/latest" if lies == "Secret Manager" else f"file:{tmp_path}/record.pem"
    )
    started = server(RECORD_KEY=where)
    answers = [started.call(headers={"Idempotency-Key": f"order-{number}"}) for number in range(2)]
    started.stop()
    ids = [headers["countersign-audit-id"] for _, headers, _ in answers]
    report = verify(started.record.text().splitlines(), ids, [pair.public_key()])
    assert (report.lines, report.checkpoints, report.faults, report.doubts) == (8, 2, [], [])


def test_function_starts_and_serves_without_its_record_key_and_says_so(
    server: Callable[..., Server], secret_manager: SecretManager
) -> None:
    started = server(RECORD_KEY="projects/acme/secrets/record/versions/latest")
    assert [started.call(headers={"Idempotency-Key": f"order-{number}"})[0] for number in range(2)] == [200, 200]
    started.stop()
    (told,) = [line for line in map(json.loads, started.record.text().splitlines()) if line["severity"] == "ERROR"]
    assert told["countersign"]["secret"] == "projects/acme/secrets/record/versions/latest"
    assert told["countersign"]["problem"] == "NotFound"
