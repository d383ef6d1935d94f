"""The record of one process: a chain of lines, each of which carries the hash of the one before it.

Lines are JSON in Cloud Logging's structure, with our own members under ``countersign``. ``prev`` is the hash of the
line before, ``hash`` the line's own: SHA-256 of its canonical JSON without ``hash`` and ``audit_id``. The audit id that
a caller gets contains the hash of the call's first line, so it proves that this line and all lines before it are
unchanged. Each process writes one chain, which begins with a ``start`` line; ``console.audit`` verifies an export.

Hashes can be recomputed by whoever can rewrite the lines. With a record key a ``checkpoint`` line signs the chain up to
it: after the line of a call when the last one is a second old, and before ``stop``. A key that cannot be read keeps no
call from going on; the next checkpoint covers the lines in between.

What costs a caller nothing (a refusal, a preview, a replay, a look) is counted and not written past ten a second of one
kind from one caller, so that nobody can flood the record. All strangers are one caller.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import select
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as _quoted
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

import msgspec

from gateway.forks import PerProcess
from gateway.sinks import WRITE_SECONDS, why
from policies.idempotency import SHORT
from policies.refusals import RecordUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.presented import Whose
    from gateway.signing import RecordKey
    from gateway.sinks import Sink
    from policies.model import Proof

#: How many lines of one kind from one caller are written in one second.
FLOOD: Final = 10
#: Seconds from one checkpoint to the next: a signature costs as much as a tenth of a call.
CHECKPOINT_SECONDS: Final = 1.0
#: A problem of a policy document is truncated to this length, since it may quote names of any length.
MAX_PROBLEM: Final = 400

#: How much of its first line's hash a call's audit id has.
HASH_DIGITS: Final = 24
#: What an audit id without a line of its own says: the call was counted, or its line could not be written.
COUNTED: Final = "counted"
UNWRITTEN: Final = "unwritten"
GENESIS: Final = "0" * 64
_HASHED_APART: Final = ("hash", "audit_id")
#: Keys by their prefix: ours, a webhook's, Stripe's.
_PASTED_KEY: Final = r"\b(?:csk|whsec|sk|rk)_[^\s,:]+"

_SORTED = msgspec.json.Encoder(order="sorted")


def canonical(content: Mapping[str, Any]) -> bytes:
    """Return the bytes that are hashed: JSON with sorted keys, no spaces, ASCII."""
    try:
        text = _SORTED.encode(content)
    except (UnicodeEncodeError, OverflowError):  # only a forged line that is being verified has such a value
        text = b"\xff"
    if text.isascii():
        return text
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def line_hash(severity: object, message: object, content: Mapping[str, Any]) -> str:
    """Return the hash that a line must carry.

    It covers what a person reads, too: the severity and the message. The labels repeat the content.
    """
    body = canonical({k: v for k, v in content.items() if k not in _HASHED_APART})
    return hashlib.sha256(body + _read(severity, message)).hexdigest()


def signed(severity: object, message: object, content: Mapping[str, Any]) -> bytes:
    """Return the bytes that a checkpoint's signature covers: all of it but what is made of the signature."""
    body = canonical({k: v for k, v in content.items() if k not in {*_HASHED_APART, "signature"}})
    return body + _read(severity, message)


def _read(severity: object, message: object) -> bytes:
    """Return what people read of a line, in one form."""
    return f'{json.dumps(severity)},"message":{json.dumps(message)}'.encode("ascii")


def audit_id_of(instance: str, digest: str) -> str:
    """Return the audit id of a call whose first line has this hash."""
    return f"{instance}-{digest[:HASH_DIGITS]}"


class _Kind(NamedTuple):
    """What is counted together."""

    kind: str
    reason: str | None
    caller: str | None
    """None for all who have not proved who they are."""


class _Batch(msgspec.Struct):
    """Calls that were counted and not yet reported, by the number of their ``counted`` line in this instance."""

    number: int
    count: int = 0


class _Chain(msgspec.Struct):
    """The state of one process's chain."""

    instance: str = msgspec.field(default_factory=lambda: os.urandom(6).hex())
    sequence: int = 0
    head: str = GENESIS
    #: The second of ``written``, and how many lines of each kind were written in it.
    second: int = -1
    written: Counter[_Kind] = msgspec.field(default_factory=Counter)
    counted: dict[_Kind, _Batch] = msgspec.field(default_factory=dict)
    #: How many batches were counted, and how many lines could not be written.
    batches: int = 0
    unwritten: int = 0
    #: When the last checkpoint was written, by the monotonic clock.
    checkpoint: float = -inf
    #: The sequence of a line that could not be written: no line was written since, as long as it is the next one's.
    failed: int = -1

    def id_without_line(self, why: str) -> str:
        """Return an audit id that names the last line before it, which it proves as any other does."""
        return f"{audit_id_of(self.instance, self.head)}-{why}"


class Audit:
    """Writes the record of this process."""

    def __init__(  # noqa: PLR0913 - what it is made of
        self,
        sink: Sink,
        *,
        policy: str,
        project: str | None = None,
        key: RecordKey | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``policy`` is the digest of the document in force; ``project`` the Google Cloud project that keeps traces.

        ``key`` signs checkpoints; without it there are none.
        """
        self._sink, self._policy, self._record_key = sink, policy, key
        self.clock, self.monotonic = clock, monotonic
        self.trace_prefix = f"projects/{project}/traces/" if project else ""
        #: Whose the credentials were that earlier documents of this instance had.
        self.retired: Mapping[Proof, Whose] = {}
        self._key = os.urandom(32)
        self._second, self._second_written = -1, ""
        self._lock = threading.Lock()
        self._chain = PerProcess(_Chain)  # two processes must not continue one chain

    @property
    def instance(self) -> str:
        """The name of this process's chain: the first part of its audit ids."""
        return self._chain.get().instance

    def write(self, kind: str, content: dict[str, Any], severity: str, message: str, extra: str = "") -> str:
        """Write one line and return the call's audit id. ``extra`` is JSON members beside ours, or empty.

        Raises :class:`RecordUnavailable` if the line was not written.
        """
        with self._lock:
            chain = self._begun()
            if chain.counted:
                self._next_second(chain)
            audit_id = self._line(chain, kind, content, severity, message, extra)
        if self._record_key is not None and kind != "intent":  # a call's last line, so that a lone call is signed whole
            self._checkpoint(self._record_key)
        return audit_id

    def counted(self, kind: str, caller: str | None, reason: str | None = None) -> str | None:
        """Return None for a call whose line is to be written, or count it past :data:`FLOOD` and return its audit id.

        Raises :class:`RecordUnavailable` if the record cannot even begin.
        """
        what = _Kind(kind, reason, caller)
        with self._lock:
            chain = self._begun()
            self._next_second(chain)
            if chain.written[what] < FLOOD:
                chain.written[what] += 1
                return None
            batch = chain.counted.get(what)
            if batch is None:
                chain.batches += 1
                batch = chain.counted[what] = _Batch(chain.batches)
            batch.count += 1
            return chain.id_without_line(f"{COUNTED}-{batch.number}-{batch.count}")

    def unwritten(self) -> str:
        """Return the audit id of a call whose line could not be written."""
        with self._lock:
            chain = self._chain.get()
            chain.unwritten += 1
            return chain.id_without_line(f"{UNWRITTEN}-{chain.unwritten}")

    def writable(self) -> bool:
        """Whether the last line could be written. If not, it is tried with one that says so."""
        with self._lock, suppress(RecordUnavailable):
            chain = self._begun()
            if chain.failed == chain.sequence:
                self._line(chain, "resumed", {}, "WARNING", "the record could not be written, and can be again")
            return True
        return False

    def policy_taken(self, digest: str) -> None:
        """Record that another policy document is now in force."""
        self._own_line("policy", {"result": "taken", "policy": digest}, "NOTICE", f"policy taken {digest[:SHORT]}")
        self._policy = digest

    def policy_refused(self, kept: str, problem: str, *, document: str | None = None) -> None:
        """Record why the document that ``POLICY`` names was not taken; ``kept`` is still in force.

        ``problem`` may quote the document, into which somebody may have pasted a key. ``document`` is the digest of the
        bytes that were read; None if they were not.
        """
        problem = without_keys(problem)[:MAX_PROBLEM]
        content = {"result": "unread", "policy": kept, "problem": problem}
        if document is not None:
            content |= {"result": "refused", "document": document}
        self._own_line("policy", content, "ERROR", f"policy {content['result']}: {problem}")

    def secret_refused(self, secret: str, problem: str) -> None:
        """Record why a version that was read of ``secret`` is not used. Neither text holds any part of it."""
        self._own_line(
            "secret", {"secret": secret, "problem": problem}, "ERROR", f"secret refused: {secret}: {problem}"
        )

    def _own_line(self, kind: str, content: dict[str, Any], severity: str, message: str) -> None:
        """Write a line that is about no call. A record that is full must not keep a call from going on."""
        try:
            self.write(kind, content, severity, message)
        except RecordUnavailable as error:  # a revoked key must not stay valid because the log is full
            alert(f"{message}; this could not be recorded: {error.note}")

    def keyed_digest(self, value: str) -> str:
        """Return a digest that shows whether two values in this process's record are equal, and nothing else."""
        return hashlib.blake2b(value.encode(), key=self._key, digest_size=12).hexdigest()

    def close(self) -> None:
        """Report what was counted and end the chain with a ``stop`` line, so that truncation is detected.

        The last checkpoint says that it is the last, so that nobody can cut lines and write a ``stop`` of their own.
        """
        key = self._record_key if self._record_key is not None and self._record_key.ready() else None
        with self._lock:
            chain = self._chain.made()
            if chain is None or not chain.sequence:
                return
            self._report(chain)
            with suppress(RecordUnavailable):
                if key is not None:
                    self._checkpoint_line(chain, key, last=True)
                self._line(chain, "stop", {}, "INFO", "the record of this instance ends here")
                self._chain.drop()

    def _begun(self) -> _Chain:
        """Return this process's chain, with its ``start`` line written."""
        chain = self._chain.get()
        if not chain.sequence:
            self._line(chain, "start", {"policy": self._policy}, "INFO", "the record of this instance begins here")
            atexit.register(self.close)
        return chain

    def _checkpoint(self, key: RecordKey) -> None:
        """Sign the chain if the last checkpoint is a second old. The call has its line, so a failure is not its own."""
        now, chain = self.monotonic(), self._chain.made()
        if chain is None or now - chain.checkpoint < CHECKPOINT_SECONDS:
            return
        if not key.ready():  # reads it, so not while others wait for the lock
            problem = key.unreported()
            if problem is not None:
                self.secret_refused(key.name, problem)
            return
        with self._lock, suppress(RecordUnavailable):
            # Another call may have written one by now, or the chain has ended.
            if chain is self._chain.made() and now - chain.checkpoint >= CHECKPOINT_SECONDS:
                self._checkpoint_line(chain, key)
                chain.checkpoint = now

    def _checkpoint_line(self, chain: _Chain, key: RecordKey, *, last: bool = False) -> None:
        content = {"key": key.id, **({"last": True} if last else {})}
        self._line(chain, "checkpoint", content, "INFO", "the lines before this one are signed", key=key)

    def _next_second(self, chain: _Chain) -> None:
        """Once a second, report what was counted so far and start a new count."""
        second = int(self.monotonic())
        if second != chain.second:
            chain.second = second
            chain.written.clear()
            self._report(chain)

    def _report(self, chain: _Chain) -> None:
        with suppress(RecordUnavailable):  # what is left is reported later
            for what, batch in list(chain.counted.items()):
                kind, reason, caller = what
                content = {"counted": kind, "count": batch.count, "batch": batch.number}
                content |= {} if reason is None else {"reason": reason}
                content |= {} if caller is None else {"caller": caller}
                message = f"{batch.count} more of {caller or 'strangers'}: {kind}{f' {reason}' if reason else ''}"
                labels = labels_of(caller=caller, reason=reason)
                self._line(chain, "counted", content, "WARNING", message, labels)
                del chain.counted[what]

    def _timestamp(self, now: float) -> str:
        """Format unix seconds as RFC 3339. All but the fraction is cached for a second."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_written = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._second_written}.{int((now - second) * 1e6):06d}Z"

    def _line(  # noqa: PLR0913, PLR0917 - the parts of a line
        self,
        chain: _Chain,
        kind: str,
        content: dict[str, Any],
        severity: str,
        message: str,
        extra: str = "",
        key: RecordKey | None = None,
    ) -> str:
        now = self._timestamp(self.clock())
        place = {"kind": kind, "instance": chain.instance, "sequence": chain.sequence, "prev": chain.head, "time": now}
        if key is not None:
            place["signature"] = key.sign(signed(severity, message, content | place))
        body = canonical(content | place).decode("ascii")
        read = f'"{severity}","message":{_quoted(message)}'
        digest = hashlib.sha256((body + read).encode("ascii")).hexdigest()
        audit_id = audit_id_of(chain.instance, content["intent"] if "intent" in content else digest)  # noqa: SIM401 - faster
        line = (
            f'{{"severity":{read},"time":"{now}"{extra},'
            f'"countersign":{body[:-1]},"hash":"{digest}","audit_id":"{audit_id}"}}}}\n'
        )
        try:
            self._sink.write(line.encode("ascii"))
        except (OSError, ValueError) as error:
            chain.failed = chain.sequence
            raise RecordUnavailable(note=why(error), retry_after=1) from None
        chain.sequence += 1
        chain.head = digest
        return audit_id


def without_keys(text: str) -> str:
    """Redact what looks like a key: callers and operators paste them where they do not belong."""
    return re.sub(_PASTED_KEY, "[redacted]", text)


def labels_of(**labels: str | None) -> str:
    """Return what Cloud Logging filters by, as a JSON member to append. The values need no escapes: they are names."""
    members = ",".join([f'"{name}":"{value}"' for name, value in labels.items() if value is not None])
    return f',"logging.googleapis.com/labels":{{{members}}}'


def alert(message: str) -> None:
    """Report on standard error, as a last resort, that the record could not be written.

    It may lead where the record does, to a pipe that is full: so nobody waits for it.
    """
    line = json.dumps({"severity": "ALERT", "message": f"countersign: {message}"})
    if sys.stderr is None or not _ALERTING.acquire(timeout=WRITE_SECONDS):
        return
    try:
        with suppress(OSError, ValueError):
            if _takes(sys.stderr):
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
    finally:
        _ALERTING.release()


#: One thread at a time: of two that see room for a line, one would wait.
_ALERTING: Final = threading.Lock()


def _takes(stream: TextIO) -> bool:
    """Whether a stream takes a line at once; one that is no file always does."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return True
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    return bool(ready.poll(0))
