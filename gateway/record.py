"""Records one call.

A call that is sent leaves two lines: ``intent`` before the send and ``outcome`` after it. Any other call leaves one:
``refusal``, ``replay`` or ``preview``.
"""

from __future__ import annotations

import re
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final, Self

from gateway.chain import alert
from policies.idempotency import SHORT
from policies.model import Answer, Outcome
from policies.outcomes import lost
from policies.refusals import RecordUnavailable, Refusal, Unforeseen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from gateway.chain import Audit
    from gateway.secrets import Secret
    from policies.model import Admission, Caller, Grant
    from policies.outcomes import Reply

#: The whole call, from the first byte read to the last written: below every no-code tool's own limit of 30 s.
CALL_SECONDS: Final = 25.0
#: A recorded value is truncated to this length. It only serves to find a call, and Cloud Logging takes 256 KB a line.
MAX_VALUE: Final = 200

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
_CLOUD_TRACE = re.compile(r"([0-9a-f]{32})(?:/([0-9]{1,20}))?(?:;.*)?")


class Record:
    """The record of one call, with the value of each stage so far.

    A context manager: an exception raised inside becomes :attr:`refusal` and is recorded. If that is None, the caller
    gets :attr:`answer`.
    """

    def __init__(self, audit: Audit, environ: Mapping[str, Any]) -> None:
        """``environ`` is the call's WSGI environment."""
        self._audit = audit
        self._began = audit.monotonic()
        self.now = audit.clock()
        self.deadline = self._began + CALL_SECONDS
        self.environ = environ
        self._trace = _trace(environ, audit.trace_prefix)
        self.caller: Caller | None = None
        self.grant: Grant | None = None
        self.secret: Secret | None = None
        self.admission: Admission | None = None
        self._intent: str | None = None
        self.audit_id = ""
        self.answer = Answer(500, b"")
        self.refusal: Refusal | None = None

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

    def preview(self) -> None:
        """Record a ``validate_only`` call: decided as any other, but nothing is sent or used up."""
        self._decided("preview", "INFO")

    def replay(self) -> None:
        """Record that a kept answer is given again."""
        self._decided("replay", "INFO")

    def intent(self, admission: Admission) -> None:
        """Record a call before it is sent. Raises :class:`RecordUnavailable`; then the call must not be sent."""
        self._decided("intent", "NOTICE", owner=admission.owner[:12])
        self._intent = self.audit_id.rpartition("-")[2]

    def close(self, reply: Reply, *, settled: bool) -> None:
        """Record the outcome of the send, after :attr:`answer` was set."""
        self.refusal = reply.refusal
        content: dict[str, Any] = {
            "intent": self._intent,
            "result": reply.outcome.value,
            "status": self.answer.status,
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
            # The call was made, and hiding a success would invite a second one. Its intent is on record.
            alert(f"the outcome of {self.audit_id} could not be recorded: {error.note}")

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
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
        message = f"refused {refusal.reason}"
        if self._intent is None:
            self.audit_id = self._audit.refuse(content, refusal.reason, severity, message, self._trace)
            return
        try:  # never only counted: it is the end of a call that was sent
            self._audit.write("refusal", content, severity, message, self._trace)
        except RecordUnavailable as error:
            alert(f"a refusal could not be recorded: {error.note}")

    def _decided(self, kind: str, severity: str, **more: str) -> None:
        grant = self.grant
        assert grant is not None  # noqa: S101 - a decision has been made
        caller, entitlement = grant.caller, grant.entitlement
        decision: dict[str, Any] = {
            "caller": caller.id,
            "credential": caller.credential,
            "connection": entitlement.connection.id,
            "operation": entitlement.operation.id,
            "policy": grant.policy[:16],
            "parameters": {path: self._audit.keyed_digest(value) for path, value in grant.parameters.items()},
            **more,
        }
        if entitlement.record:
            values = {p: v[:MAX_VALUE] for p, v in grant.parameters.items() if p in entitlement.record}
            if values:
                decision["values"] = values
        if grant.ledger_key is not None:
            decision["ledger"] = grant.ledger_key[:SHORT]
        if self.secret is not None:
            decision["secret"] = self.secret.version
        self.audit_id = self._write(kind, decision, severity, kind)

    def _write(self, kind: str, content: dict[str, Any], severity: str, message: str) -> str:
        if self.caller is not None:
            message = f"{message} {self.caller.id}"
        return self._audit.write(kind, content, severity, message, self._trace)


def _trace(environ: Mapping[str, Any], prefix: str) -> str:
    """Return the trace that the platform's own lines of this request carry, so that they are found together."""
    ours, googles = environ.get("HTTP_TRACEPARENT"), environ.get("HTTP_X_CLOUD_TRACE_CONTEXT")
    if ours and (match := _TRACEPARENT.fullmatch(ours)):
        trace, span = match[1], match[2]
    elif googles and (match := _CLOUD_TRACE.fullmatch(googles)):
        trace, span = match[1], f"{int(match[2] or 0) % 2**64:016x}"
    else:
        return ""
    return f',"logging.googleapis.com/trace":"{prefix}{trace}","logging.googleapis.com/spanId":"{span}"'


def _present(**members: object) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _where(error: Exception) -> str:
    """Name an exception by its type and the line that raised it. Its text may hold secrets and is left out."""
    *_, (frame, line) = walk_tb(error.__traceback__)
    return f"{type(error).__name__} in {frame.f_code.co_name}:{line}"
