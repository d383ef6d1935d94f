"""Row D12 of what went wrong: whatever logs more when it is told to, no key is in what the server writes."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from sandbox.__main__ import UPSTREAM_KEY
from tests.conftest import CUSTOMER, KEY, policy
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.secret_manager import SecretManager
    from tests.conftest import Server

#: Calls that no parser reads without a word: a key where none belongs.
MALFORMED = [
    f"POST / HTTP/1.1\r\nHost: x\r\nx-api-key {KEY}\r\n\r\n",
    f"x-api-key: {KEY}\r\n\r\n",
    f"POST /?key={KEY} HTTP/1.1\r\nHost: x\r\n x-api-key: {KEY}\r\n\r\n",
    f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {KEY}\r\n\r\n",
    f"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {KEY}\r\n\r\n",
    f"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n",
    f"{KEY} / HTTP/1.1\r\nHost: x\r\n\r\n",
    f"POST / {KEY}\r\n\r\n",
    f"POST http://[{KEY} HTTP/1.1\r\nHost: x\r\n\r\n",
    f"POST / HTTP/1.1\r\nHost: {KEY}@x\r\nExpect: {KEY}\r\n\r\n",
]

#: What makes gunicorn, Flask, Python, Google's client or gRPC say more. Those that show a key stop the start instead:
#: ``WRONG_FOR_THE_SERVER`` in tests/gateway/test_settings.py.
LOUDER = {
    "none": {},
    "the framework": {
        "DEBUG": "1",
        "FLASK_DEBUG": "1",
        "LOG_EXECUTION_ID": "true",
    },
    "gunicorn": {
        "GUNICORN_CMD_ARGS": "--log-level debug --capture-output --spew --access-logfile - --access-logformat "
        "'%({x-api-key}i)s %({authorization}i)s' --statsd-host 127.0.0.1:9",
        "LOG_EXECUTION_ID": "true",
        "FLASK_DEBUG": "1",
    },
    "Python and gRPC": {
        "PYTHONDEVMODE": "1",
        "PYTHONVERBOSE": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONWARNINGS": "always",
        "GRPC_VERBOSITY": "debug",
        "CURL_VERBOSE": "1",
    },
}


def forms(key: str) -> list[bytes]:
    """The key as it is, in base64 and in hexadecimal as gRPC writes it: without its end, which may be cut off."""
    plain = key.encode()
    return [plain[:-4], base64.b64encode(plain)[:20], plain.hex()[:-8].encode(), plain.hex(" ")[:-12].encode()]


def shown(folder: Path) -> list[str]:
    """The files in which a key stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 2
    keys = forms(KEY) + forms(UPSTREAM_KEY)
    return [path.name for path in files if any(key in path.read_bytes() for key in keys)]


@pytest.mark.parametrize("louder", LOUDER)
def test_key_is_in_nothing_that_the_server_writes(server: Callable[..., Server], tmp_path: Path, louder: str) -> None:
    running = server(**LOUDER[louder], HOME=str(tmp_path))
    assert running.call()[0] == 200
    assert running.call(key=None, headers={"Authorization": f"Basic {KEY}"})[0] == 401
    assert running.call(key=KEY + "x")[0] == 401
    running.call(body=f"{CUSTOMER}&description={KEY}".encode())
    for data in MALFORMED:
        running.raw(data.encode(), timeout=5)
    running.stop()
    assert shown(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GUNICORN_LOG_LEVEL", "warning"),
        ("GOOGLE_SDK_PYTHON_LOGGING_SCOPE", "google"),
        ("GRPC_TRACE", "api"),
        ("SSLKEYLOGFILE", "{folder}/tls"),
    ],
)
def test_setting_that_would_show_a_key_stops_the_start_before_one_is_read(
    server: Callable[..., Server], secret_manager: SecretManager, tmp_path: Path, name: str, value: str
) -> None:
    secret_manager.add("projects/acme/secrets/policy", policy("http://127.0.0.1:9").encode())
    settings = {name: value.format(folder=tmp_path), "POLICY": "projects/acme/secrets/policy/versions/latest"}
    running = server(wait=False, **settings)
    assert running.process.wait(timeout=PATIENCE) == 1
    said = running.errors.read_text().splitlines()
    assert len(said) <= 2  # gRPC says itself that it was told to trace
    assert said[-1].startswith(f"countersign cannot start: {name} must be ")
    assert secret_manager.accesses == ()
    assert not (tmp_path / "tls").exists()
