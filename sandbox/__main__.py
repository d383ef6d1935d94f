"""``make run``: the function under its production server, with the sandbox instead of the real services."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from sandbox.appgregator import Appgregator
from sandbox.document import Document, RefusedError, webhook_secrets
from sandbox.google import AUDIENCE, Google
from sandbox.ports import listening
from sandbox.secret_manager import SecretManager
from sandbox.shown import shown
from sandbox.stripe import Stripe

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
POLICY = ROOT / "policies" / "documents" / "sandbox.yaml"
SECRET = "projects/sandbox/secrets/appgregator-x-api-key"  # noqa: S105 - where the key lies, not the key
UPSTREAM_KEY = "sandbox-upstream-key"
CALLER_KEY = "csk_sandbox_key_everybody_knows_it"
#: What webhooks are signed with here: `whsec_` and the base64 of 25 bytes that everybody knows.
SIGNING_SECRET = "whsec_c2FuZGJveCBzZWNyZXQgZm9yIHdlYmhvb2s="  # noqa: S105 - the same
#: The function starts in about a second; a slow machine may take some.
START_SECONDS = 60
#: An edit of the policy takes over with the next call, and at the latest after this.
POLICY_SECONDS = "0.5"
_STOPS: Final = (signal.SIGINT, signal.SIGTERM)
_PORT: Final = re.compile("[0-9]{1,5}")
#: What the framework's own command reads from the environment. Its words on the command line say all of it.
_OWN: Final = ("HOST", "DEBUG", "FUNCTION_TARGET", "FUNCTION_SOURCE", "FUNCTION_SIGNATURE_TYPE", "FUNCTION_USE_ASGI")
#: Stores that cannot be anybody's but this machine's. A sandbox invoice in a real ledger would stand there as raised.
_STORE: Final = re.compile(r"(memory|(?:rediss?|valkeys?)://([^/@]*@)?(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/.*)?)?")

WELCOME = """
Countersign is running on http://127.0.0.1:{port}, with a sandbox for an upstream: nothing leaves this machine.
{before}
What a caller sees of it: http://127.0.0.1:{port}/portal{paste}

1. Raise an invoice. Paste this in another terminal; pasted twice it is still one invoice:

curl -i 'http://127.0.0.1:{port}/stripe/invoices/?name={name}&connection_name={connection_name}' \\
  -H {header} -H 'Idempotency-Key: order-1001' \\
  --data-urlencode 'customer=cus_MQqeLuPp19Qbk8'

2. This one is refused, because the policy does not let this caller choose where the money goes:

curl -i 'http://127.0.0.1:{port}/stripe/invoices/?name={name}&connection_name={connection_name}' \\
  -H {header} \\
  --data-urlencode 'customer=cus_MQqeLuPp19Qbk8' --data-urlencode 'transfer_data[destination]=acct_1'

3. Lose an answer on purpose: {lost}

curl -i 'http://127.0.0.1:{port}/stripe/invoices/?name={name}&connection_name={connection_name}' \\
  -H {header} -H 'Idempotency-Key: order-1002' \\
  --data-urlencode 'customer=cus_fault_close_after'

   Other customers to try: cus_fault_error_402 (a declined card), cus_fault_error_429 (the upstream is busy),
   cus_fault_error_500 (it breaks; Stripe keeps that under the key), cus_fault_html_404 (nothing is at its address),
   cus_fault_html_502 (a front end's page), cus_fault_approval (a person must approve it first),
   cus_fault_leak_key (the answer holds the upstream's key), cus_missing.
   What has reached the upstream: curl {upstream}/_sandbox
{approve}
4. Change the policy: {edit}
   A mistake in the document is shown here, with its line, and changes nothing.

Then: `./countersign check {policy}` says who may do what.
`make run POLICY=mine.yaml` runs your own policy like this one; `make run RAW=1` shows the record as it is kept: JSON.
`make run STORE=redis://127.0.0.1:6379/0` keeps the ledger of lost answers where `./countersign ledger list` finds it,
with the same STORE.

Every decision is put on record below. Ctrl-C stops everything.
"""
_LOST: Final = {
    "appgregator": "the invoice is created, but nobody here can know. The answer is 424. Pasted twice\n"
    "   it is still one invoice: a key whose outcome is unknown is not sent again.",
    "stripe": "the invoice is created, but its answer is lost. It is sent again in the same call,\n"
    "   under the same key, and so Stripe answers with the invoice that there is.",
}
#: Only Stripe has somebody who approves.
_APPROVE: Final = """   Approve what waits there, or reject it: curl {upstream}/_sandbox -d approve=apreq_...
"""
_EDIT: Final = """in {policy}
   write `prefix: cus_9` in the place of `prefix: cus_`, save, and paste the first call again: it is refused."""
_EDIT_YOURS: Final = "edit {policy} and save. The next call goes by it."


def main() -> int:
    """Run until Ctrl-C. Returns the exit status: 0 fine, 1 not started, 2 asked wrongly."""
    port, store = os.environ.get("PORT", "8080"), os.environ.get("STORE", "")
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        print(f"PORT must be a port number, not {port[:20]!r}. Write for example: make run PORT=8090", file=sys.stderr)
        return 2
    if not _STORE.fullmatch(store):
        print(
            "STORE must be on this machine: what the sandbox raises would stand in another's ledger as raised. Write "
            "for example: make run STORE=redis://127.0.0.1:6379/0, or STORE=memory.",
            file=sys.stderr,
        )
        return 2
    if listening(int(port)):
        print(f"Port {port} is in use. Stop what uses it, or choose another: make run PORT=8090", file=sys.stderr)
        return 1
    for stop in _STOPS:  # even if the parent process ignores Ctrl-C
        signal.signal(stop, _interrupt)
    try:
        with _world() as (document, upstreams, settings):
            return _serve(int(port), document, upstreams, settings | {"STORE": store or "memory"})
    except RefusedError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before there was anything to stop
        return 0


def _interrupt(*_: object) -> None:
    """Stop everything in order. A second Ctrl-C, whenever it comes, must not leave the function behind."""
    for stop in _STOPS:
        signal.signal(stop, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _world() -> Iterator[tuple[Document, dict[str, str], dict[str, str]]]:
    """Stand in for the world: the document, the upstreams' origins, and the settings that lead the function there.

    Raises :class:`RefusedError`.
    """

    def secret(name: str) -> bytes:
        return (SIGNING_SECRET if name in webhook_secrets(document.content) else UPSTREAM_KEY).encode()

    with (
        tempfile.TemporaryDirectory() as folder,
        SecretManager(otherwise=secret) as secret_manager,
        Google() as google,
        Appgregator(keys=[UPSTREAM_KEY], accounts=None) as appgregator,
        Stripe(keys=[UPSTREAM_KEY]) as stripe,
    ):
        origins = {"appgregator": appgregator.origin, "stripe": stripe.origin}
        copy = Path(folder, "policy.yaml")
        document = Document(_shown(Path(os.environ.get("POLICY") or POLICY)), copy, origins)
        document.take()
        yield (
            document,
            origins,
            {
                "POLICY": str(copy),
                "POLICY_SECONDS": POLICY_SECONDS,
                "SECRET_MANAGER_ENDPOINT": secret_manager.address,
                "GOOGLE_CERTS_ENDPOINT": google.address,
                "AUDIENCE": os.environ.get("AUDIENCE") or AUDIENCE,
            },
        )


def _shown(file: Path) -> Path:
    """Return a path as people would write it here."""
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def command(port: int, *, target: str = "countersign", source: Path = ROOT / "main.py") -> list[str]:
    """Return the command that serves a function as the platform does, on loopback only."""
    return [
        str(Path(sys.executable).with_name("functions-framework")),
        f"--target={target}",
        f"--source={source}",
        "--host=127.0.0.1",
        f"--port={port}",
    ]


def _serve(port: int, document: Document, upstreams: dict[str, str], settings: dict[str, str]) -> int:
    # A session of its own: Ctrl-C reaches this process alone, which then stops the function in order.
    environ = {name: value for name, value in os.environ.items() if name not in _OWN} | settings
    function = subprocess.Popen(
        command(port), cwd=ROOT, env=environ, start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    stopped = threading.Event()
    reader = threading.Thread(target=_show, args=(function,), daemon=True)
    watcher = threading.Thread(target=document.watch, args=(stopped, _say), daemon=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not listening(port):
            if function.poll() is not None:
                return 1  # it has printed why
            if time.monotonic() > deadline:
                print("The function did not start in time. See its output above, if any.", file=sys.stderr)
                return 1
            time.sleep(0.05)
        _say(welcome(port, document.file, document.content, upstreams))
        reader.start()
        watcher.start()
        return function.wait()
    except KeyboardInterrupt:
        _say("\nStopping.")
        return 0
    finally:
        stopped.set()
        _stop(function)
        if reader.ident is not None:
            reader.join(timeout=5)  # the record's last line


def welcome(port: int, file: Path, content: dict[str, Any], upstreams: dict[str, str]) -> str:
    """Return what there is to try with the document in ``file``, which says ``content``."""
    name, caller, connection = _somebody(content)
    digest = hashlib.sha256(CALLER_KEY.encode()).hexdigest()
    known = any(credential.get("key", {}).get("sha256") == digest for credential in caller["credentials"])
    before = "" if known else f"\nSet KEY to a key of {name} first; `./countersign key new {name}` makes one.\n"
    if webhook_secrets(content):
        before += f"\nWebhooks are signed with {SIGNING_SECRET} here.\n"
    return WELCOME.format(
        port=port,
        before=before,
        name=connection["name"],
        connection_name=connection["connection_name"],
        paste=f", with the key {CALLER_KEY}" if known else "",
        header=f"'x-api-key: {CALLER_KEY}'" if known else '"x-api-key: $KEY"',
        lost=_LOST[connection["upstream"]],
        upstream=upstreams[connection["upstream"]],
        approve=_APPROVE.format(upstream=upstreams["stripe"]) if connection["upstream"] == "stripe" else "",
        policy=file,
        edit=(_EDIT if file == _shown(POLICY) else _EDIT_YOURS).format(policy=file),
    )


def _somebody(content: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return a caller's name, the caller, and the connection of a grant; with a key, and to raise invoices, if any."""
    found = [
        (not any("key" in one for one in caller["credentials"]), grant["operation"] != "invoices.create", name, grant)
        for name, caller in content["callers"].items()
        for grant in caller["grants"]
    ]
    *_, name, grant = min(found, key=lambda one: one[:2])
    return name, content["callers"][name], content["connections"][grant["connection"]]


def _show(function: subprocess.Popen[str]) -> None:
    """Show the function's record while it runs: for people, or as it is with `RAW=1`."""
    lines: IO[str] | None = function.stdout
    assert lines is not None  # noqa: S101 - it is a pipe
    raw = bool(os.environ.get("RAW"))
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in lines:
        _say(line.rstrip("\n") if raw else shown(line.rstrip("\n"), colour=colour))


def _say(words: str) -> None:
    """Print at once and in one piece: several threads do. With nobody left to read it, all is stopped."""
    try:
        sys.stdout.write(f"{words}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.kill(os.getpid(), signal.SIGINT)


def _stop(function: subprocess.Popen[str]) -> None:
    function.terminate()
    try:
        function.wait(timeout=10)
    except subprocess.TimeoutExpired:
        function.kill()
        function.wait()


if __name__ == "__main__":
    sys.exit(main())
