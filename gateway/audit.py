"""The record: what was decided, on record before money moves.

A call that is sent leaves two lines, ``intent`` before and ``outcome`` after; everything else leaves one: ``refusal``,
``replay`` or ``preview``. A policy document that changed leaves one, ``policy``. Lines are JSON in Cloud Logging's
structure, and what is ours stands under ``countersign``.

Each line carries the hash of the one before it (``prev``) and its own (``hash``: SHA-256 of its canonical JSON,
without ``hash`` and ``audit_id``). The audit id that a caller gets is made of the hash of the call's first line, so
that whoever holds one can prove that the line, and all lines before it, read as they do. One chain runs for each
process, from its ``start`` line on; ``console.audit`` verifies an export.

Refusals past ten a second with one reason are counted, not written, so that nobody can drown the record.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import hashlib
import json
import os
import re
import select
import stat
import sys
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import msgspec

from policies.fields import narrow
from policies.idempotency import SHORT
from policies.model import Answer, Outcome
from policies.outcomes import lost
from policies.refusals import RecordUnavailable, Refusal, Unforeseen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from gateway.secrets import Secret
    from policies.model import Admission, Caller, Grant, Standing
    from policies.outcomes import Reply

#: The whole call, from the first byte read to the last written: below every no-code tool's own limit of 30 s.
CALL_SECONDS: Final = 25.0
#: Refusals of one reason that are written in any one second.
FLOOD: Final = 10
#: A log that takes nothing for so long is down, and the call is refused.
WRITE_SECONDS: Final = 0.5
#: A recorded value is cut here; Cloud Logging takes 256 KB a line, and a value is for finding a call again.
MAX_VALUE: Final = 200
#: What is said of a policy document is cut here: it may quote names of any length.
MAX_PROBLEM: Final = 400

GENESIS: Final = "0" * 64
_HASHED_APART: Final = ("hash", "audit_id")

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
#: How keys begin: ours, a webhook's, Stripe's.
_PASTED_KEY = re.compile(r"\b(?:csk|whsec|sk|rk)_[^\s,:]+")
_CLOUD_TRACE = re.compile(r"([0-9a-f]{32})(?:/([0-9]{1,20}))?(?:;.*)?")


_SORTED = msgspec.json.Encoder(order="sorted")


def canonical(content: Mapping[str, Any]) -> bytes:
    """Return the bytes that are hashed: JSON with sorted keys, no spaces, ASCII."""
    try:
        text = _SORTED.encode(content)
    except (UnicodeEncodeError, OverflowError):  # only a forged line, while it is verified, holds such a value
        text = b"\xff"
    if text.isascii():
        return text
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def line_hash(content: Mapping[str, Any]) -> str:
    """Return the hash that a line must carry."""
    return hashlib.sha256(canonical({k: v for k, v in content.items() if k not in _HASHED_APART})).hexdigest()


def audit_id_of(instance: str, digest: str) -> str:
    """Return the audit id of a call whose first line has this hash."""
    return f"{instance}-{digest[:24]}"


# ---------------------------------------------------------------- where lines go


class Sink(Protocol):
    """Takes whole lines."""

    def write(self, line: bytes) -> None:
        """Write one line. Raises OSError if it is not written."""


#: The C library's write(2), called without giving the interpreter away. One call at a time writes its line, and to give
#: it away for the few microseconds that takes lets others run into the lock, who then wait for both.
_C: Final = ctypes.PyDLL(None, use_errno=True)
_write = _C.write
_write.argtypes, _write.restype = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t), ctypes.c_ssize_t


class Descriptor:
    """Standard output, or any open file: no buffer of ours, so that a line is out when the call goes on."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._torn = self._stuck = False
        self._ready = select.poll()
        self._ready.register(descriptor, select.POLLOUT)
        self._pipe = _never_blocking(descriptor)

    def write(self, line: bytes) -> None:
        """See :class:`Sink`. A line that was cut short is ended before the next, which stays readable."""
        if self._torn:
            line = b"\n" + line
        while line:
            written = self._write(line) if self._pipe is None else _write(self._pipe, line, len(line))
            if written < 0:
                self._wait(ctypes.get_errno())
                continue
            self._stuck = False
            line = line[written:]
            self._torn = line != b""

    def _write(self, line: bytes) -> int:
        """Write what is sure to be taken at once. What no pipe is may be slow, and only the call that writes waits."""
        if not self._ready.poll(0):
            self._wait(errno.EAGAIN)
        # At most what a pipe that is ready is sure to take, so that the write cannot block.
        return os.write(self._descriptor, line[: select.PIPE_BUF])

    def _wait(self, reason: int) -> None:
        if reason not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(reason, "the record cannot be written")
        # Calls write one after the other, so of those that meet a log that takes nothing only the first waits.
        if self._stuck or not self._ready.poll(WRITE_SECONDS * 1000):
            self._stuck = True
            raise TimeoutError("nobody takes the record")


def _never_blocking(descriptor: int) -> int | None:
    """Open a pipe once more, so that writes to it never block and whoever shares it is left alone. None if it is none.

    Standard output is a pipe on the platform.
    """
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return None
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # no /proc, or a pipe that nobody reads yet
        return None


def standard_output() -> Sink:
    """Return the sink of ``AUDIT=stdout``."""
    return Descriptor(1)


def to_file(path: str) -> Sink:
    """Return the sink of ``AUDIT=file:PATH``, appended to and readable by its owner alone. Raises OSError."""
    return Descriptor(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))


# ---------------------------------------------------------------- the chain


class _Flood:
    """How many refusals of one reason came in the second that runs."""

    __slots__ = ("counted", "second", "written")

    def __init__(self) -> None:
        self.second, self.written, self.counted = 0, 0, 0


#: Most lines say one of the same few messages.
_quoted = lru_cache(1024)(json.dumps)


class Audit:
    """Writes the record of this process, as one chain."""

    def __init__(
        self,
        sink: Sink,
        *,
        policy: str,
        project: str | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink, self._policy = sink, policy
        self.clock, self.monotonic = clock, monotonic
        self._lock = threading.Lock()
        self._key = os.urandom(32)
        self._pid = 0
        self.instance = "none"
        self._floods: dict[str, _Flood] = {}
        self._counted = False
        self._second, self._second_written = -1, ""
        self.trace_prefix = f"projects/{project}/traces/" if project else ""

    def open(self, environ: Mapping[str, Any]) -> Record:
        """Open the record of one call, read from its WSGI environment."""
        return Record(self, environ)

    def write(self, kind: str, content: dict[str, Any], severity: str, message: str, extra: str = "") -> str:
        """Write one line and return the call's audit id. ``extra`` is JSON members for beside ours, or empty.

        Raises :class:`RecordUnavailable` if the line is not out.
        """
        with self._lock:
            self._begin()
            if self._counted:
                self._report(int(self.monotonic()))
            return self._line(kind, content, severity, message, extra)

    def refuse(self, content: dict[str, Any], reason: str, severity: str, message: str, extra: str) -> str | None:
        """Write a refusal, or count it where too many came; None means counted."""
        with self._lock:
            self._begin()
            second = int(self.monotonic())
            self._report(second)
            flood = self._floods.setdefault(reason, _Flood())
            if flood.second != second:
                flood.second, flood.written = second, 0
            if flood.written >= FLOOD:
                flood.counted += 1
                self._counted = True
                return None
            flood.written += 1
            return self._line("refusal", content, severity, message, extra)

    def policy_taken(self, digest: str) -> None:
        """Put on record that another policy document is in force from here on."""
        self._policy_line({"result": "taken", "policy": digest}, "NOTICE", f"policy taken {digest[:SHORT]}")
        self._policy = digest

    def policy_refused(self, kept: str, problem: str, *, document: str | None = None) -> None:
        """Put on record why what ``POLICY`` names changed nothing: ``kept`` is still in force.

        ``problem`` may quote the document, in which somebody may have pasted a key by mistake. ``document`` is the
        digest of what was read, None if nothing could be.
        """
        problem = _PASTED_KEY.sub("[redacted]", problem)[:MAX_PROBLEM]
        result = "unread" if document is None else "refused"
        content = {"result": result, "policy": kept, "problem": problem, **_present(document=document)}
        self._policy_line(content, "ERROR", f"policy {result}: {problem}")

    def _policy_line(self, content: dict[str, Any], severity: str, message: str) -> None:
        try:
            self.write("policy", content, severity, message)
        except RecordUnavailable as error:  # a key that was revoked must not live on because the log is full
            _cry(f"{message}; this could not be recorded: {error.note}")

    def keyed_digest(self, value: str) -> str:
        """Return a digest that tells equal values of this process's record apart, and says nothing else of them."""
        return hashlib.blake2b(value.encode(), key=self._key, digest_size=12).hexdigest()

    def close(self) -> None:
        """Report what was counted and end the chain with a ``stop`` line, so that a later cut is seen."""
        with self._lock:
            if self._pid != os.getpid():
                return
            self._report(None)
            try:
                self._line("stop", {}, "INFO", "the record of this instance ends here")
            except RecordUnavailable:
                return
            self._pid = 0

    def _begin(self) -> None:
        if self._pid == os.getpid():
            return
        # Also in the worker that gunicorn forks: two processes must not go on with one chain.
        self._pid = os.getpid()
        self.instance = os.urandom(6).hex()
        self._sequence, self._head = 0, GENESIS
        self._floods.clear()
        self._counted = False
        try:
            self._line("start", {"policy": self._policy}, "INFO", "the record of this instance begins here")
        except RecordUnavailable:
            self._pid = 0
            raise
        atexit.register(self.close)

    def _report(self, second: int | None) -> None:
        """Write what was counted before ``second``; all of it for None."""
        if not self._counted:
            return
        for reason, flood in self._floods.items():
            if flood.counted and flood.second != second:
                content = {"reason": reason, "count": flood.counted}
                try:
                    self._line("refusals", content, "WARNING", f"{flood.counted} more refusals: {reason}")
                except RecordUnavailable:
                    return  # the counts are kept and reported later
                flood.counted = 0
        self._counted = any(flood.counted for flood in self._floods.values())

    def _written(self, now: float) -> str:
        """Write a time, in unix seconds, as RFC 3339 has it; most of it stays the same for a second."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_written = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._second_written}.{int((now - second) * 1e6):06d}Z"

    def _line(self, kind: str, content: dict[str, Any], severity: str, message: str, extra: str = "") -> str:
        now = self._written(self.clock())
        body = canonical(
            {
                **content,
                "kind": kind,
                "instance": self.instance,
                "sequence": self._sequence,
                "prev": self._head,
                "time": now,
            }
        )
        digest = hashlib.sha256(body).hexdigest()
        audit_id = audit_id_of(self.instance, content.get("intent") or digest)
        line = (
            f'{{"severity":"{severity}","time":"{now}","message":{_quoted(message)}{extra},'
            f'"countersign":{body[:-1].decode("ascii")},"hash":"{digest}","audit_id":"{audit_id}"}}}}\n'
        )
        try:
            self._sink.write(line.encode("ascii"))
        except (OSError, ValueError) as error:
            raise RecordUnavailable(note=type(error).__name__, retry_after=1) from None
        self._sequence += 1
        self._head = digest
        return audit_id


# ---------------------------------------------------------------- one call


class Record:
    """One call's record, and what its caller is answered. Gathers each stage's value as the call goes down.

    Used as a context: a refusal raised inside is recorded and answered, and so is anything unforeseen.
    """

    def __init__(self, audit: Audit, environ: Mapping[str, Any]) -> None:
        self._audit = audit
        self._began = audit.monotonic()
        self.now = audit.clock()
        self.deadline = self._began + CALL_SECONDS
        self.environ = environ
        self.caller: Caller | None = None
        self.grant: Grant | None = None
        self.secret: Secret | None = None
        self.admission: Admission | None = None
        self._intent: str | None = None
        self._refused_standings: tuple[Standing, ...] = ()
        self.audit_id = ""
        self.answer = Answer(500, b"")
        self.headers: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        if error is None:
            return True
        if isinstance(error, Refusal):
            self._refuse(error)
        elif not isinstance(error, Exception):
            return False
        elif self._intent is None or self.grant is None:
            self._refuse(Unforeseen(note=_where(error)))
        else:  # the call may have been sent
            self._refuse(lost(self.grant, _where(error)))
        return True

    def preview(self, would_send: dict[str, object]) -> None:
        """Answer ``validate_only``: the whole decision, with nothing sent and nothing used up."""
        self.audit_id = self._write("preview", self._decision(), "INFO", "preview")
        self.answer = Answer(200, _json({**would_send, "audit_id": self.audit_id}))

    def replay(self, admission: Admission) -> None:
        """Answer what was answered before."""
        assert admission.replay is not None  # noqa: S101 - the caller asks for it only then
        self.audit_id = self._write("replay", self._decision(), "INFO", "replay")
        self.answer = self._still_granted(admission.replay)
        self.headers = {"Idempotent-Replayed": "true"}

    def _still_granted(self, kept: Answer) -> Answer:
        """Return a kept answer byte for byte, or what the policy still grants of it if that is less by now."""
        if kept.status != 200 or self.grant is None:
            return kept
        entitlement = self.grant.entitlement
        tree = {**entitlement.response, **({"audit_id": None} if entitlement.audit_id_in_answer else {})}
        answer = msgspec.json.decode(kept.body)
        narrowed = narrow(answer, tree)
        return kept if narrowed == answer else Answer(kept.status, _json(narrowed))

    def intent(self, admission: Admission) -> None:
        """Put on record what is about to be sent. Raises :class:`RecordUnavailable`, and then it must not be."""
        decision = self._decision()
        decision["owner"] = admission.owner[:12]
        self.audit_id = self._write("intent", decision, "NOTICE", "intent")
        self._intent = self.audit_id.rpartition("-")[2]

    def answer_to(self, reply: Reply) -> Answer:
        """Return what the caller will be told of ``reply``, which is also what the ledger keeps."""
        if reply.refusal is not None:
            return Answer(reply.refusal.status, _json(reply.refusal.problem(self.audit_id)))
        answer = dict(reply.answer or {})
        if self.grant is not None and self.grant.entitlement.audit_id_in_answer:
            answer["audit_id"] = self.audit_id
        return Answer(200, _json(answer))

    def close(self, reply: Reply, answer: Answer, *, settled: bool) -> None:
        """Put on record what came of the send, and answer it."""
        self.answer = answer
        if reply.refusal is not None:
            self.headers = reply.refusal.headers
        content: dict[str, Any] = {
            "intent": self._intent,
            "result": reply.outcome.value,
            "status": answer.status,
            "attempts": reply.attempts,
            "milliseconds": round((self._audit.monotonic() - self._began) * 1000),
            **_present(
                upstream_status=reply.upstream_status,
                upstream_request=reply.upstream_request,
                created=reply.created,
                reason=reply.refusal and reply.refusal.reason,
                note=reply.refusal and reply.refusal.note,
                alarm=reply.alarm or (None if settled else "the outcome could not be kept in the store"),
            ),
        }
        severity = "INFO" if reply.outcome is Outcome.SUCCEEDED else "WARNING"
        if "alarm" in content or reply.outcome is Outcome.UNKNOWN:
            severity = "ALERT"
        try:
            self._write("outcome", content, severity, f"outcome {reply.outcome.value}")
        except RecordUnavailable as error:
            # The call is done, and hiding a success invites a second one. Its intent is on record.
            _cry(f"the outcome of {self.audit_id} could not be recorded: {error.note}")

    @property
    def standings(self) -> tuple[Standing, ...]:
        """How the caller's limits stand, once the store has said so."""
        return self.admission.standings if self.admission is not None else self._refused_standings

    def _refuse(self, refusal: Refusal) -> None:
        self._refused_standings = refusal.standings
        content: dict[str, Any] = {
            "reason": refusal.reason,
            "status": refusal.status,
            **_present(
                note=refusal.note,
                caller=self.caller and self.caller.id,
                credential=self.caller and self.caller.credential,
                connection=self.grant and self.grant.entitlement.connection.id,
                intent=self._intent,
            ),
        }
        severity = "ERROR" if refusal.status >= 500 else "WARNING"
        audit_id = None
        try:
            message = f"refused {refusal.reason}"
            if self._intent is None:
                audit_id = self._audit.refuse(content, refusal.reason, severity, message, self._extra())
            else:  # never only counted: it is the end of a call that was sent
                self._audit.write("refusal", content, severity, message, self._extra())
        except RecordUnavailable as error:
            _cry(f"a refusal could not be recorded: {error.note}")
        # A refusal that was counted or could not be written has an id too, of the same instance.
        self.audit_id = self.audit_id or audit_id or f"{self._audit.instance}-{os.urandom(12).hex()}"
        self.answer = Answer(refusal.status, _json(refusal.problem(self.audit_id)))
        self.headers = refusal.headers

    def _decision(self) -> dict[str, Any]:
        caller, grant = self.caller, self.grant
        assert caller is not None  # noqa: S101 - a decision has been made, so both are known
        assert grant is not None  # noqa: S101
        entitlement = grant.entitlement
        decision: dict[str, Any] = {
            "caller": caller.id,
            "credential": caller.credential,
            "connection": entitlement.connection.id,
            "operation": entitlement.operation.id,
            "policy": grant.policy[:16],
            "parameters": {path: self._audit.keyed_digest(value) for path, value in grant.parameters.items()},
        }
        if entitlement.record:
            values = {p: v[:MAX_VALUE] for p, v in grant.parameters.items() if p in entitlement.record}
            if values:
                decision["values"] = values
        if grant.ledger_key is not None:
            decision["ledger"] = grant.ledger_key[:SHORT]
        if self.secret is not None:
            decision["secret"] = self.secret.version
        return decision

    def _write(self, kind: str, content: dict[str, Any], severity: str, message: str) -> str:
        if self.caller is not None:
            message = f"{message} {self.caller.id}"
        return self._audit.write(kind, content, severity, message, self._extra())

    def _extra(self) -> str:
        """The trace that the platform's own lines of this request carry, so that they are found together."""
        ours, googles = self.environ.get("HTTP_TRACEPARENT"), self.environ.get("HTTP_X_CLOUD_TRACE_CONTEXT")
        if ours and (match := _TRACEPARENT.fullmatch(ours)):
            trace, span = match[1], match[2]
        elif googles and (match := _CLOUD_TRACE.fullmatch(googles)):
            trace, span = match[1], f"{int(match[2] or 0) % 2**64:016x}"
        else:
            return ""
        return (
            f',"logging.googleapis.com/trace":"{self._audit.trace_prefix}{trace}"'
            f',"logging.googleapis.com/spanId":"{span}"'
        )


_JSON = msgspec.json.Encoder()


def _json(value: Mapping[str, object]) -> bytes:
    try:
        return _JSON.encode(value)
    except UnicodeEncodeError:  # half a character, which JSON can name though UTF-8 cannot write it
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def _present(**members: object) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _where(error: Exception) -> str:
    """Name an exception by its type and the line of ours it came from; its text may hold anything."""
    frame, place = error.__traceback__, ""
    while frame is not None:
        code = frame.tb_frame.f_code
        place = f" in {code.co_name}:{frame.tb_lineno}"
        frame = frame.tb_next
    return type(error).__name__ + place


def _cry(message: str) -> None:
    """Say on standard error, as a last resort, that the record could not be kept."""
    line = json.dumps({"severity": "ALERT", "message": f"countersign: {message}"})
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return
