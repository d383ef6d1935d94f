"""The measured servers, in processes of their own, on loopback, and the CPU and memory of each."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import stages
from sandbox.__main__ import CALLER_KEY, POLICY, ROOT, SECRET, UPSTREAM_KEY, command
from sandbox.document import against
from sandbox.ports import free_port
from sandbox.secret_manager import SecretManager

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: More than the connections of any row but the crowd's, and the same for all.
THREADS = 16
CUSTOMER = "cus_MQqeLuPp19Qbk8"
#: The sandbox's upstream delays the answer for this customer by ``SLOW_SECONDS``.
SLOW_CUSTOMER = "cus_fault_slow"
SLOW_SECONDS = 0.3

_TICK = os.sysconf("SC_CLK_TCK")


def request(customer: str = CUSTOMER, header: str = f"x-api-key: {CALLER_KEY}") -> bytes:
    """Return the call that every server gets, with ``header`` as the caller's credential."""
    body = f"customer={customer}"
    return (
        f"POST /stripe/invoices/?name=ft-4&connection_name=stripe-1 HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and the call for it."""

    port: int
    pid: int
    call: bytes

    @property
    def cpu_seconds(self) -> float:
        """CPU that it and its children have used; 0 without /proc."""
        return sum(_cpu_seconds(pid) for pid in family(self.pid))

    @property
    def megabytes(self) -> float:
        """Memory of it and its children, each page once; 0 without /proc.

        The resident size of a worker alone leaves out what its parent loaded before the fork.
        """
        rolls = [_smaps(pid) for pid in family(self.pid)]
        files = max((roll["Rss"] - roll["Anonymous"] for roll in rolls if roll), default=0)
        return (sum(roll["Pss_Anon"] for roll in rolls if roll) + files) / 1000


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for each in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
    return found


def _smaps(pid: int) -> dict[str, int]:
    """The memory of a process, in kilobytes; empty if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def _cpu_seconds(pid: int) -> float:
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(user) + int(system)) / _TICK


@dataclass(frozen=True, slots=True)
class World:
    """What all servers share: the upstream and the Secret Manager."""

    folder: Path
    upstream: Server
    secret_manager: str

    @property
    def origin(self) -> str:
        """The upstream's address."""
        return f"http://127.0.0.1:{self.upstream.port}"

    @contextlib.contextmanager
    def function(
        self, name: str, settings: Mapping[str, str] | None = None, *, threads: int = THREADS
    ) -> Iterator[Server]:
        """Serve one of the benchmark's functions, or ``countersign``, under the framework's production server."""
        target = name.removesuffix("_secret")
        source = ROOT / "main.py" if name == "countersign" else ROOT / "bench" / f"{name}.py"
        environ = {
            "THREADS": str(threads),
            "UPSTREAM": self.origin,
            "UPSTREAM_KEY": UPSTREAM_KEY,
            "SECRET": SECRET,
            "SECRET_MANAGER_ENDPOINT": self.secret_manager,
            **(settings or {}),
        }
        if name == "handwritten_secret":
            environ["PYTHONPATH"] = str(ROOT)  # it imports its neighbour
        if name == "countersign":
            environ = {"POLICY": str(self.folder / "policy.yaml"), "STORE": "memory", **environ}
        port = free_port()
        # gunicorn keeps a socket in the home folder, so two servers need two homes.
        home = self.folder / f"home-{port}"
        home.mkdir(exist_ok=True)  # a port may be used again
        environ["HOME"] = str(home)
        with (
            log() as standard_output,
            process(command(port, target=target, source=source), environ, stdout=standard_output) as started,
        ):
            yield Server(port, started.pid, request())

    def policy(self, name: str, secret: str = f"{SECRET}/versions/latest") -> str:
        """Write the sandbox's policy with its key at ``secret``, and return where."""
        text = stages.roomy(against(POLICY.read_text("utf-8"), {"appgregator": self.origin}))
        path = self.folder / name
        path.write_text(text.replace(f"{SECRET}/versions/latest", secret))
        return str(path)


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Start the upstream and Secret Manager."""
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        secret_manager = opened.enter_context(SecretManager())
        secret_manager.add(SECRET, UPSTREAM_KEY.encode())
        arguments = [sys.executable, "-m", "bench.upstream", f"--delay={SLOW_SECONDS}"]
        upstream = opened.enter_context(process(arguments, {}, stdout=subprocess.PIPE))
        port = int(said(upstream).rpartition(":")[2])
        direct = request(header=f"x-api-key: {UPSTREAM_KEY}")
        made = World(folder, Server(port, upstream.pid, direct), secret_manager.address)
        made.policy("policy.yaml")
        yield made


@contextlib.contextmanager
def log() -> Iterator[int]:
    """Yield a pipe that is read, as the platform reads standard output."""
    command = [sys.executable, "-c", "import os\nwhile os.read(0, 65536): pass"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as reader:
        assert reader.stdin is not None
        yield reader.stdin.fileno()


@contextlib.contextmanager
def process(arguments: list[str], settings: Mapping[str, str], **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end of the context."""
    started = subprocess.Popen(arguments, cwd=ROOT, env=os.environ | settings, **pipes)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(timeout=15)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        for pipe in (started.stdin, started.stdout):
            if pipe is not None:
                pipe.close()


def said(started: subprocess.Popen[bytes]) -> str:
    """Return the next line of a program that was started with a pipe."""
    assert started.stdout is not None
    return started.stdout.readline().decode().strip()
