"""Ports of this machine."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from itertools import count
from typing import Final

#: Below those that Linux, macOS and Windows give to whoever names none, so that nobody gets one of ours just before its
#: server takes it: a client would call a stranger.
_PORTS: Final = range(10_000, 32_000)
#: The golden section of their number: multiples of it lie as far apart as can be.
_SECTION: Final = 13_597


def first(process: int) -> int:
    """Return where a process begins, by its id: far from others that were started with it, who count on, too."""
    return process * _SECTION % len(_PORTS)


#: One after the other, so that none is given twice before its server takes it.
_NEXT: Final = count(first(os.getpid()))


def free_port() -> int:
    """Return a port that was free a moment ago."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            port = _PORTS[next(_NEXT) % len(_PORTS)]
            probe.bind(("127.0.0.1", port))
            return port


def listening(port: int) -> bool:
    """Whether a process accepts connections on ``port``."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
