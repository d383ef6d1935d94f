"""A proxy that spoils what goes through it: on loopback, for any protocol over TCP."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from typing import Final, Self

from sandbox.ports import free_port

FAULTS: Final = ("refused", "reset_before", "reset_after", "stalled", "late", "truncated", "trickle", "garbage")
"""What may go wrong between a request and its answer.

    name            the request      its answer
    refused         never made: nobody listens, and what was connected is reset
    reset_before    does not arrive  a reset
    reset_after     arrives          a reset in its place
    stalled         arrives          never
    late            arrives after whoever sent it has hung up
    truncated       arrives          its first half, then closed
    trickle         arrives          a byte every 50 ms, and then as it should
    garbage         arrives          random bytes in its place, then closed
"""
#: So long something held up waits, at most, for whoever sent it to hang up.
PATIENCE: Final = 30.0
_TRICKLE: Final = 0.05
_CHUNK: Final = 65536


class Proxy:
    """Passes on what comes to its port to another port, unless it was told to spoil it.

    What is spoilt is a request that holds ``mark`` (any, by default).
    """

    def __init__(self, target: int, *, mark: bytes = b"", seed: int = 0) -> None:
        self.port = free_port()
        self._target, self._mark, self._random = target, mark, random.Random(seed)
        self._lock = threading.Lock()
        self._fault: str | None = None
        self._skip = self._times = 0
        self._open: set[socket.socket] = set()
        self._hanging: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.spoilt = 0

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def spoil(self, fault: str, times: int, *, skip: int = 0) -> None:
        """Spoil so many requests, once so many have passed. One that refuses does so until it is told to stop."""
        with self._lock:
            self._fault, self._times, self._skip, self.spoilt = fault, times, skip, 0
        if fault == "refused":
            self.spoilt = 1
            self._close()

    def heal(self) -> int:
        """Pass everything on again; what hangs is reset. Return how many requests were spoilt."""
        with self._lock:
            fault, self._fault = self._fault, None
        for connection in tuple(self._hanging):
            _reset(connection)
        if fault == "refused":
            self._listen()
        return self.spoilt

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for connection in tuple(self._open):
            _reset(connection)

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _due(self, request: bytes) -> str | None:
        """Return how this request is spoilt, or None."""
        if self._mark not in request:
            return None
        with self._lock:
            if self._fault is None or self._times <= self.spoilt:
                return None
            if self._skip:
                self._skip -= 1
                return None
            self.spoilt += 1
            return self._fault

    def _pass_on(self, client: socket.socket) -> None:
        """Serve one connection, with a thread for each direction."""
        try:
            server = socket.create_connection(("127.0.0.1", self._target), 5)
        except OSError:
            _reset(client)
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.update((client, server))
        faults: list[str] = []
        back = threading.Thread(target=self._answers, args=(client, server, faults), daemon=True)
        back.start()
        with contextlib.suppress(OSError):
            while request := client.recv(_CHUNK):
                fault = self._due(request)
                if fault == "reset_before":
                    _reset(client)
                    break
                if fault in {"stalled", "late", "trickle"}:
                    self._hanging.add(client)
                if fault == "late":
                    server.sendall(request + _rest(client))
                    time.sleep(0.05)  # else the server may find the connection closed before it reads
                    break
                if fault is not None:
                    faults.append(fault)
                server.sendall(request)
        _shut(server)
        back.join(timeout=PATIENCE)
        self._open.difference_update((client, server))
        self._hanging.discard(client)
        for end in (client, server):
            end.close()

    def _answers(self, client: socket.socket, server: socket.socket, faults: list[str]) -> None:
        with contextlib.suppress(OSError):
            while answer := server.recv(_CHUNK):
                if not faults:
                    client.sendall(answer)
                elif faults[0] != "stalled":
                    fault = faults.pop(0)
                    _spoil(client, answer, fault, self._random)
                    if fault != "trickle":
                        return
        if not faults:
            _shut(client)


def _spoil(client: socket.socket, answer: bytes, fault: str, lot: random.Random) -> None:
    match fault:
        case "reset_after":
            _reset(client)
        case "truncated":
            client.sendall(answer[: len(answer) // 2])
            _shut(client)
        case "garbage":
            client.sendall(lot.randbytes(len(answer)))
            _shut(client)
        case "trickle":
            for byte in answer:
                client.sendall(bytes((byte,)))
                time.sleep(_TRICKLE)


def _rest(client: socket.socket) -> bytes:
    """Return what else comes, until whoever sends it hangs up."""
    client.settimeout(PATIENCE)
    rest = b""
    with contextlib.suppress(OSError):
        while more := client.recv(_CHUNK):
            rest += more
    return rest


def _reset(connection: socket.socket) -> None:
    """Close a connection with RST, in place of FIN. A thread that reads from it wakes up."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    connection.close()


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
