"""The function under gunicorn's own worker: what it does where ours steps aside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from importlib.metadata import version
from typing import TYPE_CHECKING

import gunicorn.config
import pytest

from gateway import serving
from sandbox.__main__ import ROOT
from tests.conftest import CUSTOMER, FORM, KEY, TARGET, policy
from tests.problems import parsed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from tests.conftest import Server

#: Loaded by the framework in place of ``main.py``: as if another gunicorn were installed.
STOCK = """
import gunicorn
gunicorn.__version__ = "99.1.2"
from main import countersign
"""
WHOSE = """
import json
from gateway.serving import configure
configure()
def countersign(request):
    return json.dumps(sorted(name for name in request.environ if name.startswith("countersign.")))
"""
#: What a pip without a registry leaves of a test.
SECONDS = 60


def test_the_installed_gunicorn_is_one_that_our_worker_is_tested_with() -> None:
    assert version("gunicorn").startswith(serving.TESTED)
    low, high = re.findall(r"^gunicorn>=(\d+),<(\d+)$", (ROOT / "requirements.in").read_text(), re.MULTILINE)[0]
    assert (f"{low}.", int(high)) == (serving.TESTED, int(low) + 1)


def test_our_worker_serves_where_it_should(server: Callable[..., Server], tmp_path: Path) -> None:
    source = tmp_path / "whose.py"
    source.write_text(WHOSE)
    running = server(source=source, PYTHONPATH=str(ROOT))
    assert json.loads(running.call()[2]) == ["countersign.began", "countersign.late", "countersign.unreadable"]
    assert running.errors.read_text() == ""


@pytest.mark.parametrize("other", ["26.2.0", "28.0.0", "2.7", "270.1"])
def test_it_steps_aside_for_another_gunicorn_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    monkeypatch.setattr("gunicorn.__version__", other)
    monkeypatch.setattr(gunicorn.config.WorkerClass, "default", "theirs")
    serving.configure()
    assert gunicorn.config.WorkerClass.default == "theirs"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert other in json.loads(lines[0])["message"]


def a_call(*lines: str, target: str = TARGET) -> bytes:
    head = [f"POST {target} HTTP/1.1", "Host: a", f"x-api-key: {KEY}", f"Content-Type: {FORM}", "Connection: close"]
    return "\r\n".join([*head, f"Content-Length: {len(CUSTOMER)}", *lines, "", CUSTOMER]).encode()


def walk(running: Server, upstream: Appgregator) -> None:
    """Call as callers do: kept and not, in pieces, with a key again, and wrongly."""
    headers = {"Content-Type": FORM, "x-api-key": KEY}
    with closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as kept:
        for _ in range(3):
            kept.request("POST", TARGET, CUSTOMER, headers)
            response = kept.getresponse()
            assert response.status == 200, response.read()
            assert json.loads(response.read())["id"]
        kept.request("POST", TARGET, iter([b"customer=", CUSTOMER.encode()[9:]]), headers, encode_chunked=True)
        assert kept.getresponse().read().startswith(b"{")
    first = running.call(headers={"Idempotency-Key": "a-key-of-this-call"})
    again = running.call(headers={"Idempotency-Key": "a-key-of-this-call"})
    assert (first[0], again[0], again[1]["idempotent-replayed"]) == (200, 200, "true")
    assert running.call(key="csk_nobody")[0] == 401
    assert running.call("/elsewhere")[0] == 404
    assert running.call("/portal", None, method="GET")[0] == 200
    told = running.raw(a_call("Idempotency_Key: a-key-of-its-own"))
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"Write Idempotency-Key with a hyphen, not with an underscore. Nothing was sent." in told
    assert upstream.invoices == 5
    running.stop()
    assert running.process.returncode == 0
    kinds = [line["countersign"]["kind"] for line in running.record.lines()]
    assert kinds == ["start", *["intent", "outcome"] * 5, "replay", "refusal", "refusal", "stop"]


def test_whole_function_works_with_the_stock_worker(
    server: Callable[..., Server], upstream: Appgregator, tmp_path: Path
) -> None:
    source = tmp_path / "stock.py"
    source.write_text(STOCK)
    running = server(source=source, PYTHONPATH=str(ROOT))
    walk(running, upstream)
    said = running.errors.read_text()
    assert said.count("gunicorn 99.1.2 is not a version") == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(a_call("Stripe_Account: acct_1"), 400, id="an account with an underscore"),
        pytest.param(a_call("X_Request_Id: 1"), 200, id="another underscore"),
        pytest.param(a_call("X-Forwarded-Proto: https", "X-Forwarded-SSL: off"), 200, id="schemes that differ"),
        pytest.param(a_call("SCRIPT_NAME: /x"), 200, id="a place in the address"),
        pytest.param(a_call(target=f"{TARGET}&a={'a' * 5000}"), 414, id="an address of 5 KB"),
    ],
)
def test_stock_worker_reads_a_call_as_ours_does(
    server: Callable[..., Server], upstream: Appgregator, tmp_path: Path, sent: bytes, status: int
) -> None:
    (tmp_path / "stock.py").write_text(STOCK)
    for running in (server(), server(source=tmp_path / "stock.py", PYTHONPATH=str(ROOT))):
        assert parsed(running.raw(sent))[0] == status
    assert upstream.invoices == (2 if status == 200 else 0)


@pytest.mark.parametrize("release", ["23.0.0", "25.1.0", "26.2.0"])
def test_whole_function_works_with_another_gunicorn(
    server: Callable[..., Server], upstream: Appgregator, tmp_path: Path, release: str
) -> None:
    place = tmp_path / "other"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(place),
        f"gunicorn=={release}",
    ]
    try:
        subprocess.run(install, check=True, capture_output=True, timeout=SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("pip cannot install another gunicorn here: give it a registry.")
    running = server(PYTHONPATH=f"{place}:{ROOT}")
    walk(running, upstream)
    assert f"gunicorn {release} is not a version" in running.errors.read_text()


def test_main_is_imported_without_an_application(tmp_path: Path) -> None:
    """Tools that read the source import it; nobody serves it there."""
    (tmp_path / "policy.yaml").write_text(policy("http://127.0.0.1:9", secret=f"file:{tmp_path / 'key'}"))
    run = subprocess.run(
        [sys.executable, "-c", "import main; print(main.countersign.__name__)"],
        cwd=ROOT,
        env={"POLICY": str(tmp_path / "policy.yaml")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "countersign\n", run.stderr
