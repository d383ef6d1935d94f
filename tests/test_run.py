"""``make run``: one command, calls to paste, a policy to change, and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from console.audit import verify
from sandbox.__main__ import CALLER_KEY, POLICY, POLICY_SECONDS, ROOT, UPSTREAM_KEY
from sandbox.ports import free_port, listening
from tests.tools import CURL
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {"PATH": os.environ["PATH"]}  # none of ours: no proxy, no DEBUG, no POLICY


@contextmanager
def running(folder: Path, port: int, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run the sandbox in a process group of its own until it has said hello."""
    told = folder / "told"
    with told.open("wb") as out:
        process = start(port, out, **settings)
    try:
        deadline = time.monotonic() + PATIENCE
        while "Ctrl-C stops everything" not in told.read_text():
            assert process.poll() is None, told.read_text()
            assert time.monotonic() < deadline, told.read_text()
            time.sleep(0.05)
        yield process, told
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=PATIENCE)


def start(port: object, out: IO[bytes], **settings: str) -> subprocess.Popen[bytes]:
    environ = {**ENVIRONMENT, "PORT": str(port), **settings}
    return subprocess.Popen(
        [sys.executable, "-m", "sandbox"], cwd=ROOT, env=environ, stdout=out, stderr=out, start_new_session=True
    )


def until(told: Path, words: str) -> str:
    """Wait until the terminal says something; return all that it says."""
    deadline = time.monotonic() + PATIENCE
    while words not in (text := told.read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


def pasted(told: Path) -> list[str]:
    """The calls that the welcome shows, in order."""
    return re.findall(r"^curl (?:.*\\\n)*.*$", told.read_text(), re.MULTILINE)


def approvals(told: Path) -> list[tuple[str, str]]:
    """The approval requests there are at Stripe, each with its status."""
    found: Any = counted(told)["approvals"]
    return list(found.items())


def counted(told: Path) -> dict[str, int]:
    """What the upstream says has reached it, asked as the welcome shows."""
    (command,) = re.findall(r"upstream: (curl \S+)$", told.read_text(), re.MULTILINE)
    run = subprocess.run(["sh", "-c", f"{command} -s"], capture_output=True, env=ENVIRONMENT, check=True)
    counts: dict[str, int] = json.loads(run.stdout)
    return counts


def call(
    port: int, place: str = "name=ft-4&connection_name=stripe-1", key: str = CALLER_KEY, customer: str = "cus_1"
) -> tuple[int, dict[str, object]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        headers = {
            "x-api-key": key,
            "Content-Type": "application/x-www-form-urlencoded",
            "Idempotency-Key": uuid.uuid4().hex,
        }
        connection.request("POST", f"/stripe/invoices/?{place}", f"customer={customer}", headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def shell(command: str) -> tuple[int, dict[str, object]]:
    """Paste a command; return the status and the body of what it printed."""
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    head, _, body = run.stdout.replace("\r\n", "\n").partition("\n\n")
    return int(head.split()[1]), json.loads(body)


def descendants(process: int) -> set[int]:
    """Return the processes that a process started, and those that these started."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    more = {process}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return found


def served(process: int) -> set[int]:
    """Return them once the function's worker is among them; its port is open before that is forked."""
    deadline = time.monotonic() + PATIENCE
    while len(children := descendants(process)) < 2:  # the master and its worker
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return children


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


ON_LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells whose child a process is")


@CURL
def test_first_hour_of_a_newcomer(tmp_path: Path) -> None:
    """Run, paste the calls, change a rule, see it refuse, lose an answer, see 424: as the welcome says."""
    policy = tmp_path / "sandbox.yaml"
    policy.write_bytes(POLICY.read_bytes())
    with running(tmp_path, free_port(), POLICY=str(policy)) as (_, told):
        raises, refused, loses = pasted(told)
        status, invoice = shell(raises)
        assert status == 200
        assert str(invoice["id"]).startswith("in_")
        assert set(invoice) == {
            "id", "status", "amount_due", "currency", "customer", "hosted_invoice_url", "lines", "audit_id",
        }  # fmt: skip
        assert shell(raises) == (200, {**invoice, "replayed": True})
        status, problem = shell(refused)
        assert (status, problem["reason"]) == (400, "parameter-not-granted")
        assert problem["parameter"] == "transfer_data[destination]"

        status, lost = shell(loses)
        assert (status, lost["reason"]) == (424, "outcome-unknown")
        assert shell(loses)[0] == 424
        assert counted(told) | {"connections": 0} == {"calls": 2, "invoices": 2, "connections": 0}

        text = policy.read_text("utf-8")
        assert text.count("prefix: cus_}") == 1  # what the welcome says to change
        policy.write_text(text.replace("prefix: cus_}", "prefix: cus_9}"))
        until(told, f"{policy} was saved: the next call goes by it.")
        time.sleep(float(POLICY_SECONDS))
        status, problem = shell(raises)
        assert (status, problem["reason"], problem["parameter"]) == (400, "parameter-invalid", "customer")
        assert str(invoice["audit_id"]) in told.read_text()
        assert UPSTREAM_KEY not in told.read_text()


def test_mistake_in_the_policy_is_shown_with_its_line_and_the_last_good_one_stays(tmp_path: Path) -> None:
    policy = tmp_path / "sandbox.yaml"
    text = POLICY.read_text("utf-8")
    policy.write_text(text)
    port = free_port()
    with running(tmp_path, port, POLICY=str(policy)) as (_, told):
        line = 1 + text[: text.index("        parameters:")].count("\n")
        policy.write_text(text.replace("        parameters:", "        paramters:"))
        said = until(told, "The last good policy stays in force.")
        assert f"{policy}:{line}: callers.demo-app.grants[0].paramters: no such key. Did you mean parameters?" in said
        assert call(port)[0] == 200
        policy.unlink()
        until(told, f"{policy}: it cannot be read (No such file or directory)")
        assert call(port)[0] == 200
        policy.write_text(text.replace("demo-app", "shop"))
        until(told, "was saved: the next call goes by it.")
        time.sleep(float(POLICY_SECONDS))
        assert call(port)[0] == 200
        assert "shop raised invoice in_" in until(told, "shop raised invoice in_")
        assert "Traceback" not in told.read_text()


OWN = f"""
connections:
  plain: {{name: acme-7, connection_name: main, upstream: appgregator, origin: https://invoices.invalid,
          secret: projects/acme/secrets/key/versions/7}}
  direct:
    name: acme-7
    connection_name: direct
    upstream: stripe            # no origin: Stripe's own
    secret: file:/secrets/stripe
    private: true
callers:
  shop:
    owner: shop@acme.example
    credentials:
      - key: {{id: k1, sha256: {hashlib.sha256(b"csk_of_my_own").hexdigest()}, expires: 2199-03-01}}
      - google: ann@acme.example
    limits: [30/minute]
    grants:
      - connection: plain
        operation: invoices.create
        parameters: {{customer: {{required: true}}, description: }}
        response: [id]
      - connection: direct
        operation: invoices.create
        parameters:
          customer: {{required: true}}
          auto_advance: {{fixed: "true"}}
          description:
        response: [id]
"""


def test_policy_of_ones_own_runs_against_the_sandbox(tmp_path: Path) -> None:
    policy, port = tmp_path / "mine.yaml", free_port()
    policy.write_text(OWN)
    with running(tmp_path, port, POLICY=str(policy)) as (_, told):
        for name in ("main", "direct"):
            status, invoice = call(port, f"name=acme-7&connection_name={name}", key="csk_of_my_own")
            assert (status, list(invoice)) == (200, ["id"]), invoice
            assert call(port, f"name=acme-7&connection_name={name}")[0] == 401
        assert "Set KEY to a key of shop first" in told.read_text()
        assert "name=acme-7&connection_name=main" in pasted(told)[0]
        if shutil.which("curl"):
            assert shell(f"KEY=csk_of_my_own\n{pasted(told)[0]}")[0] == 200
            assert counted(told)["invoices"] == 2


@CURL
def test_lost_answer_of_stripe_is_one_invoice_as_the_welcome_says(tmp_path: Path) -> None:
    policy, port = tmp_path / "mine.yaml", free_port()
    text = POLICY.read_text("utf-8").replace("upstream: appgregator", "upstream: stripe")
    policy.write_text(text)
    with running(tmp_path, port, POLICY=str(policy)) as (_, told):
        assert "Stripe answers with the invoice that there is" in told.read_text()
        status, invoice = shell(pasted(told)[2])
        assert (status, invoice["customer"]) == (200, "cus_fault_close_after")
        assert counted(told)["invoices"] == 1


@CURL
def test_what_waits_for_a_person_at_stripe_is_approved_as_the_welcome_says(tmp_path: Path) -> None:
    policy, port = tmp_path / "mine.yaml", free_port()
    policy.write_text(POLICY.read_text("utf-8").replace("upstream: appgregator", "upstream: stripe"))
    with running(tmp_path, port, POLICY=str(policy)) as (_, told):
        call(port, customer="cus_fault_approval")
        ((waiting, status),) = approvals(told)
        assert (status, counted(told)["invoices"]) == ("requires_review", 0)
        (command,) = re.findall(r"or reject it: (curl \S+ -d approve=)apreq_\.\.\.$", told.read_text(), re.MULTILINE)
        subprocess.run(["sh", "-c", f"{command}{waiting} -s"], capture_output=True, env=ENVIRONMENT, check=True)
        assert approvals(told) == [(waiting, "succeeded")]
        assert counted(told)["invoices"] == 1


FAULTS_NAMED = {
    "cus_fault_error_402": 402, "cus_fault_error_429": 503, "cus_fault_error_500": 424, "cus_fault_html_404": 502,
    "cus_fault_html_502": 424, "cus_fault_approval": 424, "cus_fault_leak_key": 200, "cus_missing": 404,
}  # fmt: skip


def test_every_customer_that_the_welcome_names_is_worth_trying(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, port) as (_, told):
        named = set(re.findall(r"\b(cus_(?:fault_)?[a-z]\w+)", told.read_text()))
        assert "write `prefix: cus_9` in the place of `prefix: cus_`" in told.read_text()
        assert named == {*FAULTS_NAMED, "cus_fault_close_after"}
        for customer, expected in FAULTS_NAMED.items():
            status, answer = call(port, customer=customer)
            assert status == expected, customer
            assert UPSTREAM_KEY not in json.dumps(answer)


@pytest.mark.parametrize("raw", ["", "1"])
def test_record_is_shown_for_people_or_as_it_is_kept(tmp_path: Path, raw: str) -> None:
    port = free_port()
    with running(tmp_path, port, RAW=raw) as (_, told):
        status, invoice = call(port)
        assert status == 200
        text = until(told, "demo-app raised invoice")
    lines = told.read_text()[len(text) :]
    audit_id = str(invoice["audit_id"])
    if raw:
        entries = [json.loads(line) for line in told.read_text().splitlines() if line.startswith("{")]
        assert [entry["countersign"]["kind"] for entry in entries] == ["start", "intent", "outcome", "stop"]
        report = verify([line for line in told.read_text().splitlines() if line.startswith("{")], [audit_id])
        assert (report.faults, report.doubts) == ([], [])
    else:
        assert "{" not in text[text.index("Ctrl-C") :]
        said = rf"demo-app raised invoice {invoice['id']} of 20\.00 USD on sandbox-billing, 200"
        assert re.search(rf"^\d\d:\d\d:\d\d  INFO     {said}  {audit_id}$", text, re.MULTILINE)
        assert "\x1b" not in text  # no terminal, no colour
        assert "the record of this instance ends here" in lines


@pytest.mark.parametrize(("settings", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_terminal_gets_colours_unless_it_says_no(settings: dict[str, str], *, coloured: bool) -> None:
    port, (ours, theirs) = free_port(), pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        with os.fdopen(theirs, "wb") as out:
            process = start(port, out, **settings)
        try:
            text = b""
            while b"Ctrl-C stops everything" not in text:
                text += terminal.read(4096)
            call(port)
            while b"demo-app asks for" not in text:
                text += terminal.read(4096)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=PATIENCE)
    assert (b"\x1b[36mNOTICE" in text) == coloured
    assert (b"\x1b" in text) == coloured


def test_lost_answer_is_in_the_ledger_where_the_store_is_one_that_the_command_can_reach(
    tmp_path: Path, redis_url: str
) -> None:
    port = free_port()
    with running(tmp_path, port, STORE=redis_url) as (_, told):
        assert call(port, customer="cus_fault_close_after")[0] == 424
        listed = subprocess.run(
            [ROOT / "countersign", "ledger", "list"],
            env={**ENVIRONMENT, "STORE": redis_url}, capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert re.search(r" unknown .* demo-app, invoices\.create on sandbox-billing$", listed.stdout.rstrip())
    assert "./countersign ledger list" in told.read_text()


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        ({"POLICY": "absent.yaml"}, 1, "absent.yaml: it cannot be read (No such file or directory)"),
        ({"POLICY": "README.md"}, 1, "README.md:"),
        ({"STORE": "redis://10.0.0.3:6379/0"}, 2, "STORE must be on this machine"),
        ({"STORE": "redis://:127.0.0.1@10.0.0.3/0"}, 2, "STORE must be on this machine"),
        ({"STORE": "firestore://acme-prod"}, 2, "STORE must be on this machine"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(settings: dict[str, str], status: int, words: str) -> None:
    found, text = said(free_port(), **settings)
    assert (found, text.count("\n")) == (status, 1)
    assert text.startswith(words)


def test_compiled_policy_is_not_run(tmp_path: Path) -> None:
    compiled = tmp_path / "mine.compiled"
    subprocess.run(
        [ROOT / "countersign", "check", POLICY, "--compile", compiled], stdout=subprocess.DEVNULL, check=True
    )
    status, words = said(free_port(), POLICY=str(compiled))
    assert (status, words.count("\n")) == (1, 1)
    assert "Name the document that it was compiled from." in words


@ON_LINUX
def test_nobody_left_to_read_stops_everything(tmp_path: Path) -> None:
    port = free_port()
    environ = {**ENVIRONMENT, "PORT": str(port)}
    with (tmp_path / "errors").open("wb") as errors, subprocess.Popen(
        [sys.executable, "-m", "sandbox"],
        cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while b"Ctrl-C" not in process.stdout.readline():
            assert process.poll() is None
        children = served(process.pid)
        process.stdout.close()
        call(port)
        assert process.wait(timeout=PATIENCE) == 0
    assert not [child for child in children if alive(child)]
    assert (tmp_path / "errors").read_text() == ""


@ON_LINUX
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing_behind(tmp_path: Path, stop: signal.Signals) -> None:
    port = free_port()
    with running(tmp_path, port) as (process, told):
        children = served(process.pid)
        process.send_signal(stop)
        assert process.wait(timeout=PATIENCE) == 0
        assert "Traceback" not in told.read_text()
        assert "Stopping." in told.read_text()
        assert not listening(port)
        assert not [child for child in children if alive(child)]
        behind = told.read_text().partition("Stopping.\n")[2].splitlines()
        assert not behind or "the record of this instance ends here" in behind[-1]


@ON_LINUX
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_second_ctrl_c_does_not_leave_the_function_behind(tmp_path: Path, stop: signal.Signals) -> None:
    """Nor do many, at whatever moment each of them comes."""
    port = free_port()
    with running(tmp_path, port) as (process, _):
        children = served(process.pid)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None:
            assert time.monotonic() < deadline
            process.send_signal(stop)
            time.sleep(0.0005)
        assert not listening(port)
        assert not [child for child in children if alive(child)]


def said(port: object, **settings: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "sandbox"],
        cwd=ROOT,
        env={**ENVIRONMENT, "PORT": str(port), **settings},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.stdout == ""
    return run.returncode, run.stderr


def test_port_in_use_is_said_in_one_line() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        status, words = said(port)
    assert status == 1
    assert words.count("\n") == 1
    assert f"Port {port} is in use" in words
    assert "PORT=" in words


@pytest.mark.parametrize("port", ["", "http", "65536", "-1", "\u00b2", "9" * 5000])
def test_wrong_port_is_said_in_one_line(port: str) -> None:
    status, words = said(port)
    assert status == 2
    assert words.count("\n") == 1
    assert words.startswith("PORT must be a port number")


def test_settings_of_the_frameworks_own_command_do_not_reach_it(tmp_path: Path) -> None:
    settings = {"DEBUG": "abc", "FUNCTION_USE_ASGI": "abc", "FUNCTION_SIGNATURE_TYPE": "x", "FUNCTION_TARGET": "hello"}
    port = free_port()
    with running(tmp_path, port, HOST="0.0.0.1", FUNCTION_SOURCE="/nowhere", **settings):
        assert call(port)[0] == 200
