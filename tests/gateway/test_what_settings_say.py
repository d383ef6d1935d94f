"""Every setting, written as people write it by mistake: one line, which names it and says what to write instead."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pytest

from gateway.kept import DownError, GoneError
from gateway.secrets import meanings, mending
from gateway.settings import SettingError, load, settings_of
from tests.conftest import policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.secret_manager import SecretManager
    from tests.conftest import Server

ROOT = Path(__file__).parents[2]
VERSION = "projects/acme/secrets/one/versions/latest"


class Setting(NamedTuple):
    good: str
    wrong: tuple[str, ...]
    """Beside blanks and quotation marks around the good one: another case, out of range, another form."""
    empty: bool = True
    """Whether it may be empty, as if it were not set."""
    beside: tuple[tuple[str, str], ...] = ()


REDIS = (("STORE", "rediss://127.0.0.1:9"),)
ENDPOINTS = ("LOCALHOST:80", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "10.0.0.1:80", "http://127.0.0.1:80")
PLACES = ("/run/one", "File:/run/one", "projects/acme/secrets/one", "one")
ADDRESSES = ("http://a.example", "https://a.example:0", "https://a.example:65536", "https://a..example", "a.example")

#: Those of the table in docs/settings.md, and what it says of the framework's below it.
SETTINGS = {
    "POLICY": Setting(
        "policy.yaml", ("file:policy.yaml", "projects/acme/secrets/one", "https://a.example/b"), empty=False
    ),
    "POLICY_SECONDS": Setting("0.5", ("0", "61", "1e1")),
    "STORE": Setting("memory", ("Memory", "redis", "10.0.0.3:6379", "firestore://acme-prod/Limits")),
    "STORE_PASSWORD": Setting(f"file:{__file__}", PLACES, beside=REDIS),
    "STORE_CA": Setting(VERSION, PLACES, beside=REDIS),
    "AUDIT": Setting("stdout", ("STDOUT", "stderr", "/var/log/audit", "file:"), empty=False),
    "RECORD_KEY": Setting(VERSION, PLACES),
    "THREADS": Setting("80", ("0", "1001", "1e2"), empty=False),
    "AUDIENCE": Setting("https://a.example", (*ADDRESSES, "https://A.example", "https://a.example?b")),
    "DOCS": Setting("https://a.example/refusals", (*ADDRESSES, "HTTPS://a.example", "https://a.example#b")),
    "OPERATOR": Setting("payments@acme.example", ("a" * 201, "two\nlines")),
    "PORTAL": Setting("off", ("OFF", "no")),
    "IAM": Setting("guards", ("GUARDS", "on")),
    "GOOGLE_CERTS_ENDPOINT": Setting("127.0.0.1:80", ENDPOINTS),
    "SECRET_MANAGER_ENDPOINT": Setting("127.0.0.1:80", ENDPOINTS),
    "FIRESTORE_EMULATOR_HOST": Setting("10.0.0.1:80", ("127.0.0.1", "127.0.0.1:65536", "http://127.0.0.1:80")),
    "GOOGLE_CLOUD_PROJECT": Setting("acme-prod", ("Acme", 'ac"me', "projects/acme", "a" * 64, "acm\u00e9")),
    "WORKERS": Setting("1", ("0", "2"), empty=False),
    "GUNICORN_LOG_LEVEL": Setting("error", ("warning",), empty=False),
    "THREADED_TIMEOUT_ENABLED": Setting("false", ("no",)),
    "FUNCTION_USE_ASGI": Setting("false", ("no",)),
    "FUNCTION_SIGNATURE_TYPE": Setting("http", ("HTTP",)),
    "FUNCTION_TARGET": Setting("countersign", ("Countersign",), empty=False),
    "PORT": Setting("8080", ("0", "65536"), empty=False),
    "CLOUD_RUN_TIMEOUT_SECONDS": Setting("60", ("29", "86401"), empty=False),
    "SCRIPT_NAME": Setting("", ("/a",)),
    "GOOGLE_SDK_PYTHON_LOGGING_SCOPE": Setting("", ("google",)),
    "GRPC_TRACE": Setting("", ("all",)),
    "SSLKEYLOGFILE": Setting("", ("/tmp/keys",)),
    "GOOGLE_APPLICATION_CREDENTIALS": Setting(__file__, (f"file:{__file__}", "~/key.json")),
    "SSL_CERT_FILE": Setting(__file__, (f"file:{__file__}", "/no/such")),
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": Setting(__file__, (f"file:{__file__}", "/no/such")),
}


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(policy("https://upstream.example"))
    return {"POLICY": "policy.yaml"}


def told(environ: dict[str, str]) -> str:
    with pytest.raises(SettingError) as caught:
        load(environ)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_every_setting_of_the_page_is_tried_here() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    table = re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)
    assert len(table) > 10
    others = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", page)) | {"PORT", "WORKERS", "SSLKEYLOGFILE"}
    assert set(SETTINGS) == (set(table) | others) - {"FUNCTION_"}


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_as_it_should_be_is_taken(environ: dict[str, str], name: str) -> None:
    setting = SETTINGS[name]
    settings_of(environ | dict(setting.beside) | {name: setting.good})
    if setting.empty:
        settings_of(environ | {name: ""})
    else:
        assert told(environ | {name: ""}).startswith(f"{name} ")


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.good])
@pytest.mark.parametrize(
    ("around", "says"),
    [
        (" {}", "the blanks"), ("{} ", "the blanks"), ("{}\n", "the blanks"), ("{}\r", "the blanks"),
        ('"{}"', "the quotation marks"), ("'{}'", "the quotation marks"),
    ],
)  # fmt: skip
def test_what_shells_leave_around_a_value_is_named(environ: dict[str, str], name: str, around: str, says: str) -> None:
    setting = SETTINGS[name]
    asked = environ | dict(setting.beside) | {name: around.format(setting.good)}
    if name == "AUDIENCE":  # a list, in which blanks separate
        if says == "the blanks":
            settings_of(asked)
        else:
            assert told(asked).endswith(f" This is none: {asked[name]!r}.")
        return
    assert told(asked).startswith(name)
    assert told(asked).endswith(f" Write it without {says} around it.")


@pytest.mark.parametrize("name", SETTINGS)
def test_wrong_value_is_refused_by_name(environ: dict[str, str], name: str) -> None:
    setting = SETTINGS[name]
    for wrong in setting.wrong:
        asked = environ | dict(setting.beside) | {name: wrong}
        assert told(asked).startswith((f"{name} must be ", f"{name} must say ", f"{name} is used ", f"{name}: ")), wrong


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if not setting.empty or setting.good])
def test_blank_alone_is_no_value(environ: dict[str, str], name: str) -> None:
    assert told(environ | dict(SETTINGS[name].beside) | {name: " "}).startswith(name)


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("POLICY", "file:policy.yaml", "Write the path without file:."),
        ("SSL_CERT_FILE", "file:/a", "Write the path without file:."),
        *(
            (name, wrong, "Write the whole name, from projects/ to /versions/latest or /versions/NUMBER.")
            for name in ("POLICY", "STORE_PASSWORD", "STORE_CA", "RECORD_KEY")
            for wrong in (
                "projects/acme/secrets/one",
                "projects/acme/secrets/one/versions",
                "projects/acme/secrets/one/versions/",
                "Projects/acme/secrets/one/versions/latest",
                "projects/acme/secret/one/versions/latest",
                "projects/acme/locations/europe-west3/secrets/one",
            )
        ),
        *(
            (name, wrong, "Write file: before the path.")
            for name in ("STORE_PASSWORD", "STORE_CA", "RECORD_KEY")
            for wrong in ("/run/one", "./one", "~/one")
        ),
        ("POLICY", "gs://acme/policy.yaml", "Documents are not read from other places."),
        ("POLICY", "a\nb", "There is a line break or another control character in it."),
        *(
            ("STORE", f"firestore://acme-prod/{database}", "DATABASE must be (default), or 4 to 63 of a-z, 0-9")
            for database in ("abc", "a" * 64, "Limits", "4limits", "limits-", "lim_its", "limits/more", "(other)")
        ),
        *(
            ("STORE", f"firestore://{project}", "PROJECT must be the id of a project, such as acme-prod")
            for project in ("", "acme", "Acme-prod", "123456789", "acme-prod-")
        ),
        ("STORE", "Memory", "in lower case."),
        ("STORE", "Redis://10.0.0.3", "in lower case."),
        ("STORE", "10.0.0.3:6379", "Write redis:// before the host."),
        ("STORE", "firestore:acme-prod", "Write :// behind the kind of store."),
        ("STORE", "rediss:/10.0.0.3", "Write :// behind the kind of store."),
    ],
)  # fmt: skip
def test_slip_is_named(environ: dict[str, str], name: str, wrong: str, says: str) -> None:
    assert says in told(environ | dict(SETTINGS[name].beside) | {name: wrong})


def test_longest_and_shortest_names_of_a_database_are_taken(environ: dict[str, str]) -> None:
    for database in ("abcd", "a" * 63):
        assert settings_of(environ | {"STORE": f"firestore://acme-prod/{database}"}).store.endswith(database)


@pytest.mark.parametrize(
    ("place", "why"), [("absent/audit", "No such file or directory"), (".", "Is a directory"), ("fifo", "nobody reads")]
)
def test_why_the_record_cannot_be_written_is_said(environ: dict[str, str], place: str, why: str) -> None:
    os.mkfifo("fifo")
    assert f"AUDIT: file:{place} cannot be written ({why}" in told(environ | {"AUDIT": f"file:{place}"})


# ---------------------------------------------------------------- what cannot be read


def test_every_word_of_secret_manager_has_one_that_says_what_to_do() -> None:
    for exception, meaning in meanings().items():
        if meaning is GoneError:
            assert mending(GoneError(exception.__name__)).endswith(".")
    assert "roles/secretmanager.secretAccessor" in mending(GoneError("PermissionDenied"))
    assert "gcloud auth application-default login" in mending(DownError("TimeoutError"))
    assert mending(DownError("the checksum does not match")) == ""


@pytest.mark.parametrize("name", ["POLICY", "STORE_PASSWORD", "STORE_CA"])
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("PERMISSION_DENIED", "PermissionDenied. Give the account that reads it roles/secretmanager.secretAccessor"),
        ("NOT_FOUND", "NotFound. There is no such secret, or no such version of it"),
        ("FAILED_PRECONDITION", "FailedPrecondition. This version is disabled or destroyed"),
    ],
)
def test_role_or_version_that_is_missing_is_named(
    environ: dict[str, str], secret_manager: SecretManager, name: str, code: str, says: str
) -> None:
    secret_manager.down(grpc.StatusCode[code])
    asked = environ | {
        "STORE": "rediss://127.0.0.1:9",
        "SECRET_MANAGER_ENDPOINT": secret_manager.address,
        name: VERSION,
    }
    assert says in told(asked)


def test_record_stays_json_whatever_the_project_is_called(server: Callable[..., Server]) -> None:
    """A quotation mark would end the text in every line of the record."""
    started = server(GOOGLE_CLOUD_PROJECT='ac"me', wait=False)
    assert started.process.wait(timeout=60) == 1
    assert started.errors.read_text().startswith("countersign cannot start: GOOGLE_CLOUD_PROJECT must be the id of a")
    started = server(GOOGLE_CLOUD_PROJECT="acme-prod")
    assert started.call(headers={"X-Cloud-Trace-Context": f"{'1' * 32}/1"})[0] == 200
    traces = [json.loads(line).get("logging.googleapis.com/trace") for line in started.record.text().splitlines()]
    assert f"projects/acme-prod/traces/{'1' * 32}" in traces
