"""The world of a test: the sandbox on real sockets, and the function in front of it.

``function`` loads the function as the framework does and calls it in this process; ``server`` runs it under its
production server, in a process of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import json
import os
import signal
import socket
import subprocess
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, TypeVar

import functions_framework
import hypothesis
import msgspec
import pytest

from gateway.lines import Entry
from gateway.stores.memory import Memory
from sandbox.__main__ import ROOT, SECRET, UPSTREAM_KEY, command
from sandbox.appgregator import Appgregator
from sandbox.firestore import FirestoreEmulator
from sandbox.google import Google
from sandbox.ports import free_port, listening
from sandbox.redis_server import RedisServer
from sandbox.secret_manager import SecretManager
from sandbox.stripe import Stripe
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from werkzeug.test import TestResponse

# The same lots in every run, so that a test fails by what was changed. LONG=1 draws others. No test is about its time.
hypothesis.settings.register_profile(
    "ours",
    derandomize=not os.environ.get("LONG"),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ours")

#: The caller key of every test's policy, and one of a second caller.
KEY = "csk_test_7f1c0f6f2f6d4b0f9a5c"
OTHER_KEY = "csk_test_of_another_caller_01"
TARGET = "/stripe/invoices/?name=ft-4&connection_name=stripe-1"
FORM = "application/x-www-form-urlencoded"
#: What the framework loads.
MAIN, PATIENT = ROOT / "main.py", ROOT / "tests" / "served" / "patient.py"
CUSTOMER = "customer=cus_MQqeLuPp19Qbk8"

POLICY = """
connections:
  billing:
    name: ft-4
    connection_name: stripe-1
    upstream: {upstream}
    origin: {origin}
    secret: {secret}
    ceiling: 100000/second
  other-account:
    name: ft-4
    connection_name: stripe-2
    upstream: {upstream}
    origin: {origin}
    secret: {secret}

callers:
  app:
    owner: tests
    credentials:
      - key: {{id: k1, sha256: {key}}}{credentials}
    limits: [{limits}]
    grants:
      - connection: billing
        operation: invoices.create
        idempotency: {idempotency}
        parameters:
{parameters}
        response: [{response}]
        record: ["metadata[order_id]"]
{retrieve}
  other:
    owner: tests
    credentials:
      - key: {{id: k1, sha256: {other_key}}}
    limits: [1000/minute]
    grants:
      - connection: other-account
        operation: invoices.create
        parameters: {{customer: }}
        response: [id]
"""
#: What lets the caller look at an invoice, too. Only Stripe offers it.
RETRIEVE = """\
      - connection: billing
        operation: invoices.retrieve
        parameters: {parameters}
        response: [{response}]
"""
PARAMETERS = """
customer: {required: true}
description: {max_length: 200}
days_until_due: {min: 1, max: 60}
metadata[order_id]: {max_length: 64}
metadata[cost_center]: {one_of: [emea, apac]}
custom_fields:
"""
RESPONSE = (
    "id, status, amount_due, currency, customer, description, number, hosted_invoice_url, metadata, "
    "lines.data.amount, audit_id"
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say last which tests were left out, and why."""
    skipped = ((r.nodeid.partition("::")[0], r.longrepr[2]) for r in terminalreporter.stats.get("skipped", ()))
    for (file, reason), count in sorted(Counter(skipped).items()):
        terminalreporter.write_line(f"{file}: {count} left out. {reason.removeprefix('Skipped: ')}")


def sha256(key: str) -> str:
    """Return what a policy writes of a caller key."""
    return hashlib.sha256(key.encode()).hexdigest()


def policy(
    origin: str,
    *,
    secret: str = f"{SECRET}/versions/latest",
    limits: str = "100000/minute",
    idempotency: str = "optional",
    parameters: str = PARAMETERS,
    response: str = RESPONSE,
    credentials: Sequence[str] = (),
    upstream: str = "appgregator",
    retrieve: str | None = None,
) -> str:
    """Write a policy document that allows what most tests need.

    ``credentials`` are more of them, as it writes them; ``retrieve`` are the parameters of that operation.
    """
    return POLICY.format(
        origin=origin,
        secret=secret,
        key=sha256(KEY),
        other_key=sha256(OTHER_KEY),
        limits=limits,
        idempotency=idempotency,
        parameters="\n".join(f"          {line}" for line in parameters.strip().splitlines()),
        response=response,
        upstream=upstream,
        retrieve="" if retrieve is None else RETRIEVE.format(parameters=retrieve, response=response),
        credentials="".join(f"\n      - {credential}" for credential in credentials),
    )


@pytest.fixture
def upstream() -> Iterator[Appgregator]:
    with Appgregator(keys=[UPSTREAM_KEY], accounts={("ft-4", "stripe-1"), ("ft-4", "stripe-2")}) as appgregator:
        yield appgregator


class Clock:
    """Seconds, moved by hand."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    """What the store and Stripe go by."""
    return Clock()


@pytest.fixture
def stripe(clock: Clock) -> Iterator[Stripe]:
    with Stripe(keys=[UPSTREAM_KEY], clock=clock) as stripe:
        yield stripe


@pytest.fixture
def memory(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """The store of each function that is loaded, on the test's time. Nothing waits between tries."""
    memory = Memory(clock)
    monkeypatch.setattr("gateway.upstreams.sending.PAUSES", (0.0, 0.0))
    monkeypatch.setattr("gateway.settings.Memory", lambda _: memory)
    return memory


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process wait as long as a busy machine may need, which is no measure of anybody's speed."""
    monkeypatch.setattr("gateway.certificates.FETCH_SECONDS", 30.0)
    monkeypatch.setattr("gateway.stores.connecting.Client.STEP", 30.0)
    monkeypatch.setattr("gateway.secrets.SecretManager.ATTEMPT", 30.0)
    monkeypatch.setattr("gateway.secrets.SecretManager.TOTAL", 4.0)  # after a failure; of one that lasts it is all lost


@pytest.fixture
def secret_manager(patience: None) -> Iterator[SecretManager]:
    with SecretManager() as manager:
        manager.add(SECRET, UPSTREAM_KEY.encode())
        yield manager


@pytest.fixture
def google(patience: None) -> Iterator[Google]:
    with Google() as running:
        yield running


@dataclass
class Record:
    """The record that the function under test writes to a file."""

    path: Path

    def lines(self) -> list[dict[str, Any]]:
        """Return every line as it was written. Each is what its schema says, whatever is tested."""
        lines = self.text().splitlines()
        for line in lines:
            msgspec.json.decode(line, type=Entry)
        return [json.loads(line) for line in lines]

    def entries(self, *kinds: str) -> list[dict[str, Any]]:
        """Return what is ours of every line, of some kinds or all but ``start`` and ``stop``."""
        entries: list[dict[str, Any]] = [line["countersign"] for line in self.lines()]
        return [e for e in entries if (e["kind"] in kinds if kinds else e["kind"] not in {"start", "stop"})]

    def text(self) -> str:
        return self.path.read_text("ascii") if self.path.exists() else ""


@dataclass
class Function:
    """The function as the framework loads it, called in this process."""

    app: Any
    record: Record

    def post(
        self,
        target: str = TARGET,
        body: str | bytes = CUSTOMER,
        *,
        key: str | None = KEY,
        media: str | None = FORM,
        method: str = "POST",
        **headers: str,
    ) -> TestResponse:
        """Make one call; header names are written with underscores."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["x-api-key"] = key
        response: TestResponse = self.app.test_client().open(
            target, method=method, data=body, headers=sent, content_type=media
        )
        return response


@pytest.fixture
def function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: Appgregator, secret_manager: SecretManager
) -> Callable[..., Function]:
    """Load the function: ``function()``, ``function(policy(...))``, or with settings as keywords."""

    def load(document: str | None = None, **settings: str) -> Function:
        (tmp_path / "policy.yaml").write_text(policy(upstream.origin) if document is None else document)
        record = Record(tmp_path / "audit.jsonl")
        for name, value in {
            "POLICY": str(tmp_path / "policy.yaml"),
            "SECRET_MANAGER_ENDPOINT": secret_manager.address,
            "STORE": "memory",
            "AUDIT": f"file:{record.path}",
            "THREADS": "8",
            **settings,
        }.items():
            monkeypatch.setenv(name, value)
        create_app: Any = functions_framework.create_app  # has no types
        monkeypatch.setattr(gc, "freeze", lambda: None)  # what main.py keeps for good, here goes with the test
        return Function(create_app("countersign", str(ROOT / "main.py")), record)

    return load


@dataclass
class Server:
    """The function under its production server."""

    process: subprocess.Popen[bytes]
    port: int
    record: Record
    errors: Path

    def call(
        self,
        target: str = TARGET,
        body: bytes | None = CUSTOMER.encode(),
        headers: Mapping[str, str] | None = None,
        *,
        key: str | None = KEY,
        method: str = "POST",
        timeout: float = PATIENCE,
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one call on a connection of its own: status, headers with small names, body."""
        sent = {"Content-Type": FORM, **({"x-api-key": key} if key else {}), **(headers or {})}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, target, body, sent)
            response = connection.getresponse()
            return response.status, {n.lower(): v for n, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def raw(self, data: bytes, timeout: float = PATIENCE) -> bytes:
        """Send bytes as they are, and return all that comes until the other side closes.

        Where it was not asked to, it may instead fall silent for a second.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            received = b""
            with contextlib.suppress(TimeoutError):
                while chunk := connection.recv(65536):
                    received += chunk
                    connection.settimeout(timeout if b"Connection: close" in data else 1)
            return received

    def stop(self) -> None:
        """Stop it as the platform does, and wait."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def launch(place: Path, document: str, *, wait: bool = True, source: Path = MAIN, **settings: str) -> Server:
    """Start the function under its production server, with a policy, a record and streams of its own in ``place``."""
    (place / "policy.yaml").write_text(document)
    record, port, errors = Record(place / "audit.jsonl"), free_port(), place / "stderr"
    environ = {
        "PATH": os.environ["PATH"],
        "POLICY": str(place / "policy.yaml"),
        "STORE": "memory",
        "AUDIT": f"file:{record.path}",
        "THREADS": "16",
        "PYTHONPATH": str(ROOT),
        **settings,
    }
    with errors.open("wb") as stderr:
        process = subprocess.Popen(command(port, source=source), cwd=ROOT, env=environ, stdout=stderr, stderr=stderr)
    server = Server(process, port, record, errors)
    deadline = time.monotonic() + PATIENCE
    while wait and not listening(port) and time.monotonic() < deadline:
        assert process.poll() is None, errors.read_text()
        time.sleep(0.05)
    return server


@pytest.fixture
def server(tmp_path: Path, upstream: Appgregator, secret_manager: SecretManager) -> Iterator[Callable[..., Server]]:
    """Start the function under functions-framework's production server; as ``function``, but in a process.

    It is as patient as a busy machine needs; with ``MAIN`` for its source it is as in production.
    """
    started: list[Server] = []

    def start(document: str | None = None, *, wait: bool = True, source: Path = PATIENT, **settings: str) -> Server:
        place = tmp_path / f"server{len(started)}"
        place.mkdir()
        settings = {"SECRET_MANAGER_ENDPOINT": secret_manager.address, **settings}
        started.append(launch(place, document or policy(upstream.origin), wait=wait, source=source, **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()
        print(server.errors.read_text("utf-8", "replace"))  # noqa: T201 - pytest shows it with a test that failed


S = TypeVar("S", RedisServer, FirestoreEmulator)


@contextlib.contextmanager
def running(server: S) -> Iterator[S]:
    """Run a store; where there is none to run, say how to get one."""
    try:
        server.start()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests that do not harm it; each begins with it empty, by way of ``redis_url``."""
    with running(RedisServer(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
def redis_url(shared_redis: RedisServer, patience: None) -> str:
    with socket.create_connection(("127.0.0.1", shared_redis.port), PATIENCE) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(64) == b"+OK\r\n"
    return shared_redis.url


@pytest.fixture
def redis_server(tmp_path: Path, patience: None) -> Iterator[RedisServer]:
    """Start a Redis of the test's own, to be killed and restarted; what it has written is on disk."""
    with running(RedisServer(tmp_path, durable=True)) as server:
        yield server


@pytest.fixture(scope="session")
def shared_firestore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of one emulator for the tests of all workers: it is heavy, and each test has its own project.

    Whoever needs it first starts it, and stops it when nobody uses it any more; a worker that dies has let go of it.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    address = folder / "firestore-address"
    with (
        contextlib.ExitStack() as ours,
        (folder / "firestore-turn").open("w") as turn,
        (folder / "firestore-users").open("w") as users,
    ):
        fcntl.flock(turn, fcntl.LOCK_EX)
        first = not address.exists()
        if first:
            address.write_text(ours.enter_context(running(FirestoreEmulator())).address)
        fcntl.flock(users, fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield address.read_text()
        if first:
            fcntl.flock(turn, fcntl.LOCK_EX)  # so that nobody joins
            fcntl.flock(users, fcntl.LOCK_EX)  # once all others have left
            address.unlink()


@pytest.fixture
def firestore_url(shared_firestore: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", shared_firestore)
    return f"firestore://test-{uuid.uuid4().hex[:20]}"


@pytest.fixture
def firestore_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[FirestoreEmulator]:
    """Start an emulator of the test's own, to be killed and restarted."""
    with running(FirestoreEmulator()) as emulator:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", emulator.address)
        yield emulator
