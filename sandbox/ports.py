"""Ports of this machine."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from typing import Final

#: Below those that Linux, macOS and Windows give to whoever names none, so that nobody gets one of ours just before its
#: server takes it: a client would call a stranger.
_PORTS: Final = range(10_000, 32_000)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            port = secrets.choice(_PORTS)
            probe.bind(("127.0.0.1", port))
            return port


def listening(port: int) -> bool:
    """Whether a process accepts connections on ``port``."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
