"""The way to Redis: one server, or the node of a cluster that has our keys. In the clear or over TLS.

A step has a time limit as a whole: looking the name up, connecting, and every byte of the answer. So a server that
trickles ends a call as soon as one that is dead. Nothing is repeated here, but where the server itself says that it has
done nothing: another node has the keys, or it does not know the script. What went wrong is told by a word for people
(:data:`ERRORS`, :data:`REPLIES`), which may go on record: it holds nothing of an address or a password.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import select
import socket
import ssl
import struct
import time
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import hiredis

from gateway.edges import meaning
from gateway.flights import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Seconds for a step. A call makes two attempts at most, so that a refusal takes less than a second.
STEP_SECONDS: Final = 0.4
#: How often one step goes on to another node: once is enough unless the keys move meanwhile.
MOST_MOVES: Final = 3
#: A connection that was used within these seconds is taken as it is; any other is looked at first.
FRESH_SECONDS: Final = 0.05
#: Bytes read at once: an answer of ours is mostly shorter.
CHUNK: Final = 16 * 1024
#: What ``CLIENT LIST`` shows of our connections.
NAME: Final = "countersign"


class _SilentError(TimeoutError):
    """A connection was opened, and then nobody answered to TLS: the server may stand still, or have none."""


#: What the libraries' exceptions mean, in a word for people. The nearest class counts.
ERRORS: Final[dict[type[BaseException], str]] = {
    ssl.SSLCertVerificationError: "certificate",
    ssl.SSLEOFError: "connection lost",
    ssl.SSLZeroReturnError: "connection lost",
    ssl.SSLError: "TLS",
    socket.gaierror: "no such host",
    socket.herror: "no such host",
    UnicodeError: "no such host",
    ConnectionRefusedError: "nobody listens",
    _SilentError: "no answer to TLS",
    TimeoutError: "timeout",
    OSError: "connection lost",
    hiredis.HiredisError: "not Redis",
    ValueError: "not Redis",  # an error that the parser cannot read
}
#: What the server's refusals mean, by how they begin. The first that fits counts; of others the code is told.
REPLIES: Final = {
    "NOAUTH": "password",
    "WRONGPASS": "password",
    "ERR AUTH": "password",
    "ERR invalid password": "password",
    "NOPERM": "permissions",
    "ERR ACL failure in script": "permissions",  # Redis from 7.2 on, and Valkey
    "ERR The user executing the script": "permissions",  # before
    "DENIED": "protected mode",
    "ERR DB index": "database",
    "ERR SELECT": "database",
    "ERR max number of clients": "too many clients",
    "LOADING": "still loading",
    "READONLY": "read-only replica",
    "MASTERDOWN": "replica without its primary",
    "CLUSTERDOWN": "cluster down",
    "MOVED": "not this node",
    "ASK": "keys are moving",
    "TRYAGAIN": "keys are moving",
    "OOM": "out of memory",
    "MISCONF": "cannot write to its disk",
    "NOREPLICAS": "too few replicas",
    "BUSY": "busy with a script",
}
#: How an error of Redis begins. What begins otherwise may hold anything, a password included.
_CODE = re.compile(r"[A-Z]{1,32}(?= |\Z)")
_MOVED = re.compile(r"MOVED [0-9]{1,5} ([^ ]{0,255}):([0-9]{1,5})")
#: What no waiting mends, and what to do about it: a function must not start with it.
MENDS: Final = {
    "certificate": (
        "Its certificate is not signed by a CA that is known here, has expired, or is for another name than HOST "
        "(certificate). Write where its CA lies: STORE_CA=projects/PROJECT/secrets/NAME/versions/latest, or file:PATH."
    ),
    "TLS": (
        "It does not take TLS there, or asks for a certificate of ours (TLS). Write redis:// if it is without TLS, or "
        "the port that has it; and set tls-auth-clients no."
    ),
    "password": (
        "It asks for a password, or does not take this one or this user (password). Write where the password lies: "
        "STORE_PASSWORD=projects/PROJECT/secrets/NAME/versions/latest, or file:PATH; and the user as redis://USER@HOST."
    ),
    "permissions": (
        "Its user may not do what Countersign does there (permissions). Give it the ACL that docs/stores.md shows."
    ),
    "protected mode": "It takes connections of its own machine alone (protected mode). Set a password there.",
    "no such host": "There is no such host. Correct HOST, which must be a name or an IP address.",
    "database": "It has no such database (database). A cluster has only /0.",
    "not Redis": "What answers there is not Redis. Correct HOST and PORT.",
    "not this node": "No node of the cluster has our keys (not this node). See what CLUSTER SHARDS says there.",
}
#: Who answers so is no primary any more: the address may name another server, which only a new connection finds.
_DEMOTED: Final = frozenset({"READONLY", "MASTERDOWN"})

T = TypeVar("T")
_STEP: Final = struct.pack("@ll", 0, int(STEP_SECONDS * 1_000_000))
#: What the parser returns when the answer has not come in full.
_MORE: Final = object()


class RedisError(Exception):
    """Redis did not do what it was asked for. The text is the word for it."""


class UnreachedError(RedisError):
    """No connection could be opened, so nothing was asked."""


class LostError(RedisError):
    """It was asked, and no readable answer came in time: it may have been done."""


class RefusedError(RedisError):
    """It answered with an error. ``code`` is how that begins; empty if it is no error of Redis."""

    def __init__(self, word: str, code: str) -> None:
        super().__init__(word)
        self.code = code

    @classmethod
    def of(cls, reply: Exception) -> RefusedError:
        """Translate an error reply."""
        said = str(reply)
        found = _CODE.match(said)
        code = found[0] if found is not None else ""
        return cls(
            next((word for begins, word in REPLIES.items() if said.startswith(begins)), code or "an error"), code
        )


class Script:
    """A script, and the name by which a server that has seen it knows it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Client:
    """A client of one Redis or cluster. Safe for threads; a connection is used by one of them at a time."""

    #: Seconds for a step that is given no other time.
    STEP = STEP_SECONDS

    def __init__(self, address: str, ca: str | None = None) -> None:
        """``ca``: the certificates, in PEM, one of which must have signed the server's. Raises ssl.SSLError for others.

        The server is then known by that CA alone, whatever name or number it has: managed ones have a CA for each
        instance, and certificates without a name. Without ``ca`` the usual CAs count, and the name must be right.
        """
        parts = urlsplit(address)
        self._tls: ssl.SSLContext | None = None
        if parts.scheme in {"rediss", "valkeys"}:
            self._tls = ssl.create_default_context(cadata=ca)
            self._tls.check_hostname = ca is None
        self._opening = _opening(unquote(parts.username or ""), unquote(parts.password or ""), parts.path.strip("/"))
        self._first = parts.hostname or "", parts.port or 6379
        self._node = _Node(*self._first)

    def ask(self, *command: Any, seconds: float | None = None) -> Any:
        """Return the answer to a command. Raises :class:`RedisError`."""
        return self._asked((command,), time.monotonic() + (seconds or self.STEP))[0]

    def batch(self, *commands: Sequence[Any], seconds: float | None = None) -> list[Any]:
        """Send commands at once, and return their answers. Raises :class:`RedisError` if one of them is an error."""
        return self._asked(commands, time.monotonic() + (seconds or self.STEP))

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Return what a script says. Raises :class:`RedisError`."""
        deadline, rest = time.monotonic() + self.STEP, (len(keys), *keys, *arguments)
        try:
            return self._asked((("EVALSHA", script.name, *rest),), deadline)[0]
        except RefusedError as error:
            if error.code != "NOSCRIPT":
                raise
        return self._asked((("EVAL", script.text, *rest),), deadline)[0]

    def rest(self) -> None:
        """Close what is not in use: a connection must not be shared with a process that is forked."""
        self._node.rest()

    def _asked(self, commands: Sequence[Sequence[Any]], deadline: float) -> list[Any]:
        data = _packed(commands)
        for _ in range(MOST_MOVES + 1):
            node = self._node
            try:
                replies = self._exchanged(node, data, len(commands), deadline)
            except (UnreachedError, LostError):
                if node.place != self._first:  # it may be gone; the others know who has its keys now
                    self._go(node, self._first)
                raise
            errors = [reply for reply in replies if isinstance(reply, hiredis.ReplyError)]
            if not errors:
                return replies
            refused = RefusedError.of(errors[0])
            if refused.code in _DEMOTED:
                self._go(node, self._first)
            place = _moved(errors[0], node.place)
            if place is None:
                break
            self._go(node, place)
        raise refused

    def _exchanged(self, node: _Node, data: bytes, count: int, deadline: float) -> list[Any]:
        connection = node.taken() or self._opened(node.place, deadline)
        try:
            replies = connection.exchange(data, count, deadline)
        except tuple(ERRORS) as error:
            connection.close()
            raise LostError(meaning(ERRORS, error)) from None
        except BaseException:
            connection.close()
            raise
        if node is self._node:
            node.idle.append(connection)
        else:
            connection.close()
        return replies

    def _opened(self, place: tuple[str, int], deadline: float) -> _Connection:
        """Raises :class:`UnreachedError`, or :class:`RefusedError` by what the server says first."""
        try:
            connection = _Connection(_connected(*place, self._tls, deadline))
        except tuple(ERRORS) as error:
            word = meaning(ERRORS, error)
            raise UnreachedError(word if place == self._first else f"not this node, {word}") from None
        try:
            said = connection.exchange(_packed(self._opening), len(self._opening), deadline)
        except tuple(ERRORS) as error:
            connection.close()
            raise UnreachedError(meaning(ERRORS, error)) from None
        refused = [RefusedError.of(reply) for reply in said if isinstance(reply, hiredis.ReplyError)]
        if refused and refused[0].code != "NOPERM":  # it goes on without a name
            connection.close()
            raise refused[0]
        return connection

    def _go(self, node: _Node, place: tuple[str, int]) -> None:
        """Ask ``place`` from now on, unless somebody has left ``node`` before."""
        if self._node is node:
            self._node = _Node(*place)
        node.rest()


def _packed(commands: Sequence[Sequence[Any]]) -> bytes:
    return b"".join([hiredis.pack_command(tuple(command)) for command in commands])


def _opening(user: str, password: str, database: str) -> list[tuple[str, ...]]:
    """Return what a connection begins with: what may be refused for good comes first."""
    said: list[tuple[str, ...]] = []
    if password:
        said.append(("AUTH", user, password) if user else ("AUTH", password))
    if int(database or 0):
        said.append(("SELECT", database))
    return [*said, ("CLIENT", "SETNAME", NAME)]


def _moved(reply: Exception, place: tuple[str, int]) -> tuple[str, int] | None:
    """Return where the keys are, by ``MOVED SLOT HOST:PORT``; None for any other error.

    A node that does not know its own host leaves that out.
    """
    found = _MOVED.fullmatch(str(reply))
    if found is None or not 0 < int(found[2]) < 1 << 16:
        return None
    return found[1] if found[1] not in {"", "?"} else place[0], int(found[2])


class _Node:
    """A server, and the connections to it that nobody uses. The latest is used first, so that the others may end."""

    def __init__(self, host: str, port: int) -> None:
        self.place = host, port
        self.idle: deque[_Connection] = deque()

    def taken(self) -> _Connection | None:
        """Return a connection that is still good, None if there is none."""
        with contextlib.suppress(IndexError):  # at the last, which another thread may take meanwhile
            while True:
                connection = self.idle.pop()
                if connection.quiet():
                    return connection
                connection.close()
        return None

    def rest(self) -> None:
        """Close the connections that nobody uses."""
        with contextlib.suppress(IndexError):  # at the last, which another thread may take meanwhile
            while True:
                self.idle.pop().close()


class _Connection:
    """A connection. Over TLS its socket never blocks; in the clear the kernel ends what blocks, after a step.

    To ask first whether an answer has come would be one more system call, and each costs more than its work: it gives
    the GIL away.
    """

    __slots__ = ("__weakref__", "_arrives", "_reader", "_sock", "_used")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        if not isinstance(sock, ssl.SSLSocket):
            sock.settimeout(None)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, _STEP)
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._arrives = select.poll()
        self._arrives.register(sock, select.POLLIN)
        self._used = 0.0
        weakref.finalize(self, sock.close).atexit = False  # at the end of the process, what is owed is still written

    def quiet(self) -> bool:
        """Whether nothing has come that was not asked for, its end included."""
        return time.monotonic() - self._used < FRESH_SECONDS or not self._arrives.poll(0)

    def exchange(self, data: bytes, count: int, deadline: float) -> list[Any]:
        """Send, and return so many answers. Raises what :data:`ERRORS` names."""
        while data:
            data = data[self._done(self._sock.send, data, select.POLLOUT, deadline) :]
        replies: list[Any] = []
        while len(replies) < count:
            reply = self._reader.gets()
            if reply is not _MORE:
                replies.append(reply)
                continue
            if not self._comes(deadline):
                self._wait(select.POLLIN, deadline)
            received = self._done(self._sock.recv, CHUNK, select.POLLIN, deadline)
            if not received:
                raise ConnectionResetError
            self._reader.feed(received)
        self._used = time.monotonic()
        return replies

    def close(self) -> None:
        self._sock.close()

    def _comes(self, deadline: float) -> bool:
        """Whether to read at once: the kernel would end that in time, or TLS has read ahead."""
        if isinstance(self._sock, ssl.SSLSocket):
            return self._sock.pending() > 0
        return deadline - time.monotonic() > STEP_SECONDS - FRESH_SECONDS

    def _done(self, work: Callable[[Any], T], what: Any, event: int, deadline: float) -> T:
        while True:
            try:
                return work(what)
            except BlockingIOError:
                self._wait(event, deadline)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline)

    def _wait(self, event: int, deadline: float) -> None:
        left, poll = deadline - time.monotonic(), self._arrives
        if event != select.POLLIN:
            poll = select.poll()
            poll.register(self._sock, event)
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError


def _connected(host: str, port: int, tls: ssl.SSLContext | None, deadline: float) -> socket.socket:
    """Return a socket at the first of the host's addresses that answers. Raises what :data:`ERRORS` names."""
    failed: Exception = TimeoutError()
    for family, address in _addresses(host, port, deadline):
        sock: socket.socket = socket.socket(family)
        try:
            sock.settimeout(_left(deadline))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                sock.settimeout(_left(deadline))
                try:
                    sock.do_handshake()  # its time limit is for all of it
                except TimeoutError:
                    raise _SilentError from None
            sock.settimeout(0)
        except (OSError, ValueError) as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failed


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


# ---------------------------------------------------------------- names


_Addresses = list[tuple[int, Any]]


_LOOKUPS: Final[SingleFlight[_Addresses]] = SingleFlight("name")


def _addresses(host: str, port: int, deadline: float) -> _Addresses:
    """Look a name up, which no time limit ends."""
    with contextlib.suppress(OSError):
        return _asked_for(host, port, socket.AI_NUMERICHOST)
    return _LOOKUPS.get((host, port), partial(_asked_for, host, port), deadline - time.monotonic())


def _asked_for(host: str, port: int, flags: int = 0) -> _Addresses:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:  # nobody could say; that may pass
            raise TimeoutError from None
        raise
    return [(family, address) for family, _, _, _, address in found]
