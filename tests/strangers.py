"""Anonymous clients who keep connections busy, and an honest one who calls meanwhile."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Final

from tests.conftest import CUSTOMER, FORM, KEY, TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.appgregator import Appgregator

_POST: Final = f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nContent-Type: {FORM}\r\n".encode()
_NO_KEY: Final = _POST + f"Content-Length: {len(CUSTOMER)}\r\n\r\n{CUSTOMER}".encode()
_PAGES: Final = b"GET /portal/docs/refusals HTTP/1.1\r\nHost: a\r\n\r\n" * 100
#: What each kind sends first, and what again and again.
KINDS: Final = {
    "lingering close": (b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b""),
    "garbage heads": (os.urandom(300).replace(b"\n", b"?") + b"\r\n\r\n" + os.urandom(99), os.urandom(99)),
    "slow heads": (b"GET /x HTTP/1.1\r\nHost: a\r\nX: ", b"y"),
    "silent": (b"", b""),
    "unread answers": (_PAGES, _PAGES),
    "endless request line": (b"GET /", b"a" * 1000),
    "slow bodies": (_POST + b"Content-Length: 500\r\n\r\nc", b"u"),
    "slow chunks": (_POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\ncust", b"o"),
    "whole calls": (_NO_KEY, _NO_KEY),  # each refused, and each takes its turn
}
TURN_SECONDS: Final = 0.2
#: The server closes what is idle for two seconds, perhaps just as the next call is on its way.
KEEPS_SECONDS: Final = 1.0
#: Who is hung up on stays that long, and comes again.
STAYS_SECONDS: Final = 2.5


class Stranger:
    """One connection of one kind, which is opened again whenever the other side has closed it."""

    def __init__(self, port: int, kind: str, seen: Counter[str]) -> None:
        self._port, self._seen = port, seen
        self._first, self._again = KINDS[kind]
        self._reads = kind != "unread answers"
        self._sock: socket.socket | None = None
        self._leaves: float | None = None

    def act(self) -> None:
        """Do a little more of what this kind does."""
        if self._sock is None:
            self._open()
        elif self._leaves is not None:
            if self._leaves < time.monotonic():
                self.close()
        elif self._over(self._sock):
            self._seen["hung up on"] += 1
            self._leaves = time.monotonic() + STAYS_SECONDS

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock = self._leaves = None

    def _open(self) -> None:
        self._sock = socket.socket()
        if not self._reads:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self._sock.settimeout(5)
        try:
            self._sock.connect(("127.0.0.1", self._port))
            self._sock.settimeout(0)
            self._sock.send(self._first)
            self._seen["opened"] += 1
        except OSError:
            self._seen["not opened"] += 1
            self.close()

    def _over(self, sock: socket.socket) -> bool:
        try:
            with suppress(BlockingIOError):
                sock.send(self._again)
            return self._reads and not sock.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            return True


@contextmanager
def strangers(port: int, kind: str, count: int) -> Iterator[Counter[str]]:
    """Have ``count`` of one kind at once; yields what became of them so far."""
    seen: Counter[str] = Counter()
    them, over = [Stranger(port, kind, seen) for _ in range(count)], threading.Event()

    def go_on() -> None:
        while not over.wait(TURN_SECONDS):
            for one in them:
                one.act()
        for one in them:
            one.close()

    acting = threading.Thread(target=go_on)
    acting.start()
    try:
        until = time.monotonic() + 30
        while seen["opened"] < count and time.monotonic() < until:
            time.sleep(0.02)
        yield seen
    finally:
        over.set()
        acting.join()


@dataclass
class Honest:
    """What an honest client saw: it never repeats a call, and gives up after ``patience`` seconds."""

    patience: float
    waits: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def calls(self, port: int, seconds: float) -> None:
        """Call, now on a connection of its own and now on one that it keeps."""
        until = time.monotonic() + seconds
        kept = HTTPConnection("127.0.0.1", port, timeout=self.patience)
        used = time.monotonic()
        with closing(kept):
            while time.monotonic() < until:
                if time.monotonic() - used > KEEPS_SECONDS:
                    kept.close()  # it is opened again
                self.call(kept)
                used = time.monotonic()
                with closing(HTTPConnection("127.0.0.1", port, timeout=self.patience)) as own:
                    self.call(own)
                time.sleep(0.05)

    def call(self, connection: HTTPConnection) -> None:
        """Make one call, with a name of its own."""
        self.names.append(f"order-{len(self.names)}")
        body = f"{CUSTOMER}&metadata[order_id]={self.names[-1]}"
        began = time.monotonic()
        try:
            connection.request("POST", TARGET, body, {"Content-Type": FORM, "x-api-key": KEY})
            response = connection.getresponse()
            response.read()
        except (OSError, HTTPException) as error:
            self.problems.append(type(error).__name__)
            connection.close()
            return
        self.waits.append(time.monotonic() - began)
        if response.status != 200:
            self.problems.append(str(response.status))

    def sent(self, upstream: Appgregator) -> Counter[int]:
        """Return how many of its calls the upstream got how often."""
        times = Counter(name for call in upstream.calls for name in self.names if call.body.endswith(name.encode()))
        return Counter(times[name] for name in self.names)
