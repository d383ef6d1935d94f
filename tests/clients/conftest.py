"""Those who call, as they are in the world: Stripe's own SDK, and a network that loses answers."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Self

import pytest
import stripe

from sandbox.__main__ import ROOT, SECRET, UPSTREAM_KEY
from sandbox.stripe import Stripe
from tests.conftest import KEY, OTHER_KEY, sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.secret_manager import SecretManager

#: One caller, who may raise invoices at Stripe and look at them; and one who may raise no more than one a minute.
POLICY = """
connections:
  at-stripe:
    name: ft-4
    connection_name: stripe-1
    upstream: stripe
    origin: {origin}
    secret: {secret}/versions/latest
  not-granted:
    name: ft-4
    connection_name: stripe-2
    upstream: stripe
    origin: {origin}
    secret: {secret}/versions/latest

callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: {key}}}]
    limits: [100000/minute]
    grants:
      - connection: at-stripe
        operation: invoices.create
        parameters:
          customer: {{required: true}}
          subscription:
          auto_advance:
          account_tax_ids:
          description:
          days_until_due:
          collection_method:
          metadata:
          custom_fields:
          rendering:
        response: [{response}]
      - connection: at-stripe
        operation: invoices.retrieve
        parameters: {{invoice: {{required: true}}}}
        response: [{response}]
  once-a-minute:
    owner: tests
    credentials: [key: {{id: k1, sha256: {other_key}}}]
    limits: [1/minute]
    grants:
      - connection: not-granted
        operation: invoices.create
        parameters: {{customer: }}
        response: [id, status, customer]
"""
RESPONSE = (
    "id, object, status, amount_due, customer, subscription, description, metadata, custom_fields.name, "
    "custom_fields.value, lines.object, lines.data.amount, lines.has_more, lines.url"
)


def stripe_policy(origin: str, *, secret: str = SECRET, response: str = RESPONSE, key: str = KEY) -> str:
    """Write a policy whose connection ft-4 / stripe-1 is Stripe itself."""
    return POLICY.format(origin=origin, secret=secret, response=response, key=sha256(key), other_key=sha256(OTHER_KEY))


@pytest.fixture
def stripe_upstream() -> Iterator[Stripe]:
    with Stripe(keys=[UPSTREAM_KEY]) as running:
        yield running


@pytest.fixture
def localstripe(secret_manager: SecretManager) -> Iterator[tuple[str, str, str]]:
    """Somebody else's Stripe in a process of its own: where it is, its key, and the secret in which the key lies."""
    secret, key = "projects/sandbox/secrets/localstripe", "sk_test_localstripe"
    secret_manager.add(secret, key.encode())
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.localstripe"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        said = re.match(r"listening on (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert said, f"localstripe ended with {process.wait()}"
        yield said[1], key, secret
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
        process.stdout.close()


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Point the SDK somewhere: ``sdk("http://host/ft-4/stripe-1", key)``. It repeats calls as it does, but sooner."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.05)
    client = stripe.RequestsClient()
    monkeypatch.setattr(stripe, "default_http_client", client)

    def point(base: str, key: str = KEY) -> None:
        monkeypatch.setattr(stripe, "api_base", base)
        monkeypatch.setattr(stripe, "api_key", key)

    yield point
    client.close()  # type: ignore[no-untyped-call]  # the SDK's


class Lossy:
    """A network on 127.0.0.1 that brings every call to ``port``, but loses the first ``lose`` answers.

    ``patience`` is how many seconds it waits for an answer that it loses before it hangs up; None is until it is
    there. It passes the others on once ``go_on`` is set. For clients that make a connection a call, or hang up with it.
    """

    def __init__(
        self, port: int, *, lose: int = 0, patience: float | None = None, go_on: threading.Event | None = None
    ) -> None:
        self.calls = 0
        self._to, self._lose, self._patience, self._go_on = port, lose, patience, go_on
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes whoever waits in accept
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=30)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.calls += 1
            self._threads.append(threading.Thread(target=self._carry, args=(client, self.calls), daemon=True))
            self._threads[-1].start()

    def _carry(self, client: socket.socket, number: int) -> None:
        with closing(client), suppress(OSError), socket.create_connection(("127.0.0.1", self._to), 30) as server:
            server.sendall(_message(client))
            if number <= self._lose:
                server.settimeout(self._patience or 30)
                _message(server)  # it is there, and goes no further
            else:
                answer = _message(server)
                if self._go_on is not None:
                    self._go_on.wait(30)
                client.sendall(answer)


def _message(connection: socket.socket) -> bytes:
    """Read one HTTP message that has a Content-Length, chunks without trailers, or no body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    if re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
        while not body.endswith(b"\r\n0\r\n\r\n"):
            body += _some(connection)
        return head + b"\r\n\r\n" + body
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    while len(body) < int(length[1] if length else 0):
        body += _some(connection)
    return head + b"\r\n\r\n" + body


def _some(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise ConnectionResetError
    return chunk
