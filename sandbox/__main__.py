"""``make run``: the function under its production server, with the sandbox instead of the real services."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from sandbox.appgregator import Appgregator
from sandbox.ports import listening
from sandbox.secret_manager import SecretManager

ROOT = Path(__file__).parent.parent
POLICY = ROOT / "policies" / "documents" / "sandbox.yaml"
#: The policy document has this instead of the sandbox's address, which is only known once it runs.
PLACEHOLDER = "http://127.0.0.1:8081"
SECRET = "projects/sandbox/secrets/appgregator-x-api-key"  # noqa: S105 - where the key lies, not the key
UPSTREAM_KEY = "sandbox-upstream-key"
CALLER_KEY = "csk_sandbox_key_everybody_knows_it"
#: The function starts in about a second; a slow machine takes longer.
START_SECONDS = 60

WELCOME = """
Countersign is running on http://127.0.0.1:{port}, with a sandbox for an upstream: nothing leaves this machine.

Raise an invoice. Paste this in another terminal; pasted twice it is still one invoice:

curl -i 'http://127.0.0.1:{port}/stripe/invoices/?name=ft-4&connection_name=stripe-1' \\
  -H 'x-api-key: {key}' -H 'Idempotency-Key: order-1001' \\
  --data-urlencode 'customer=cus_MQqeLuPp19Qbk8'

This one is refused, because the policy does not let this caller choose where the money goes:

curl -i 'http://127.0.0.1:{port}/stripe/invoices/?name=ft-4&connection_name=stripe-1' \\
  -H 'x-api-key: {key}' \\
  --data-urlencode 'customer=cus_MQqeLuPp19Qbk8' --data-urlencode 'transfer_data[destination]=acct_1'

Every decision is put on record below. The policy is policies/documents/sandbox.yaml. Ctrl-C stops everything.
"""


def main() -> int:
    """Run until Ctrl-C. Returns the exit status."""
    port = os.environ.get("PORT", "8080")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        print(f"PORT must be a port number, not {port!r}. Write for example: make run PORT=8090", file=sys.stderr)
        return 2
    if listening(int(port)):
        print(f"Port {port} is in use. Stop what uses it, or choose another: make run PORT=8090", file=sys.stderr)
        return 1
    for stop in (signal.SIGINT, signal.SIGTERM):  # even if the parent process ignores Ctrl-C
        signal.signal(stop, signal.default_int_handler)
    with (
        tempfile.TemporaryDirectory() as folder,
        SecretManager() as secret_manager,
        Appgregator(keys=[UPSTREAM_KEY]) as upstream,
    ):
        secret_manager.add(SECRET, UPSTREAM_KEY.encode())
        policy = Path(folder, "sandbox.yaml")
        policy.write_text(POLICY.read_text("utf-8").replace(PLACEHOLDER, upstream.origin), "utf-8")
        settings = {"POLICY": str(policy), "SECRET_MANAGER_ENDPOINT": secret_manager.address, "STORE": "memory"}
        return _serve(int(port), settings)


def command(port: int, *, target: str = "countersign", source: Path = ROOT / "main.py") -> list[str]:
    """Return the command that serves a function as the platform does, on loopback only."""
    return [
        str(Path(sys.executable).with_name("functions-framework")),
        f"--target={target}",
        f"--source={source}",
        "--host=127.0.0.1",
        f"--port={port}",
    ]


def _serve(port: int, settings: dict[str, str]) -> int:
    # A session of its own: Ctrl-C reaches only this process, which then stops the function in an orderly way.
    function = subprocess.Popen(command(port), cwd=ROOT, env=os.environ | settings, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not listening(port):
            if function.poll() is not None:
                return 1  # it has printed why
            if time.monotonic() > deadline:
                print("The function did not start in time. See its output above, if any.", file=sys.stderr)
                return 1
            time.sleep(0.05)
        print(WELCOME.format(port=port, key=CALLER_KEY), flush=True)
        return function.wait()
    except KeyboardInterrupt:
        print("\nStopping.", flush=True)
        return 0
    finally:
        _stop(function)


def _stop(function: subprocess.Popen[bytes]) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave the function behind
    function.terminate()
    try:
        function.wait(timeout=10)
    except subprocess.TimeoutExpired:
        function.kill()
        function.wait()


if __name__ == "__main__":
    sys.exit(main())
