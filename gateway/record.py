"""Records one call.

A call that is sent leaves two lines: ``intent`` before the send and ``outcome`` after it. Any other call leaves one:
``refusal``, ``replay``, ``preview`` or ``look``. Each line stands alone: it says who asked for what of which
connection, and its message is a sentence. :mod:`gateway.lines` has all members.
"""

from __future__ import annotations

import re
import socket
from functools import lru_cache
from itertools import islice
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final, Self

from gateway.chain import HASH_DIGITS, alert, labels_of, without_keys
from gateway.presented import presented
from gateway.stopping import LEAST_SECONDS, STOPPING
from gateway.stores import Settled
from policies import wording
from policies.access import given
from policies.foresight import Would, would_of
from policies.forms import shown, split
from policies.idempotency import SHORT
from policies.model import Answer, Outcome
from policies.outcomes import lost
from policies.refusals import (
    AwaitingApproval,
    BodyMalformed,
    BudgetSpent,
    CeilingReached,
    LimitReached,
    PathUnknown,
    RecordUnavailable,
    Refusal,
    Unauthenticated,
    Unforeseen,
    UpstreamRejected,
    WaitedTooLong,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from gateway.chain import Audit
    from gateway.secrets import Secret
    from policies.issuing import Progress
    from policies.model import Admission, Call, Caller, Grant, PolicySet
    from policies.outcomes import Reply

#: The whole call, from the first byte read to the last written: below every no-code tool's own limit of 30 s.
CALL_SECONDS: Final = 25.0
#: Where our worker says when it learned of a call, by the monotonic clock.
BEGAN: Final = "countersign.began"
#: After this time its caller may have given up: it is asked whether it is still there. No call waits so long unless
#: something is slow.
PATIENCE_SECONDS: Final = 1.0
#: A recorded value is truncated to this length. It only serves to find a call, and Cloud Logging takes 256 KB a line.
MAX_VALUE: Final = 200
#: The same in a message, which is read in a list.
MAX_MENTIONED: Final = 60
#: A refusal's sentence: the caller may have made it long.
MAX_SENTENCE: Final = 400
#: Of a refused call, so many parameters are named, and so much of each name.
MAX_NAMES: Final = 50
MAX_NAME: Final = 100

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
_CLOUD_TRACE: Final = r"([0-9a-f]{32})(?:/([0-9]{1,20}))?(?:;.*)?"
#: What a path may hold beside names: an upstream's id, or anything long.
_ID_IN_PATH: Final = r"\b[a-z]{2,12}_[A-Za-z0-9]{8,}|[^/]{65,}"
_NAME_IN_QUERY: Final = r"(?:^|&)((?:connection_)?name=[A-Za-z0-9._-]{1,64})(?=&|$)"
#: What somebody must look at once an outcome was written down, or was not.
_ALARMS: Final = {
    Settled.OWED: "the outcome could not be kept in the store",
    Settled.OVER: "the invoices of this caller come to more than its budget now",
}
#: Cached, since many invoices have one of a few sums.
_money = lru_cache(1024)(wording.money)


class Record:
    """The record of one call, with the value of each stage so far.

    A context manager: an exception raised inside becomes :attr:`refusal` and is recorded. If that is None, the caller
    gets :attr:`answer`.
    """

    # What a stage has not set yet is shared by all calls, since most of them set most of it.
    call: Call | None = None
    policies: PolicySet | None = None
    caller: Caller | None = None
    grant: Grant | None = None
    secret: Secret | None = None
    admission: Admission | None = None
    answer: Answer = Answer(500, b"")
    refusal: Refusal | None = None
    audit_id = ""
    _intent: str | None = None
    _labels = ""

    def __init__(self, audit: Audit, environ: Mapping[str, Any]) -> None:
        """``environ`` is the call's WSGI environment."""
        self._audit = audit
        self._began: float = environ.get(BEGAN) or audit.monotonic()
        self.now = audit.clock()
        self.deadline = self._began + CALL_SECONDS
        self.environ = environ
        self._trace = _trace(environ, audit.trace_prefix)

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
            self._refuse(Unforeseen(note=_place(error)))
        else:  # the call may have been sent
            self._refuse(lost(self.grant, _place(error)))
        return True

    def clock(self) -> float:
        """Return the time, in unix seconds."""
        return self._audit.clock()

    def preview(self, would: Would) -> None:
        """Record a ``validate_only`` call: decided as any other, but nothing is sent or used up."""
        self._for_nothing("preview", "tried", would=would.value)

    def replay(self) -> None:
        """Record that a kept answer is given again."""
        self._for_nothing("replay", "got the kept answer again of")

    def look(self) -> None:
        """Record that a caller asked for what it may do, or for what became of a key of its own."""
        caller, policies = self.caller, self.policies
        assert caller is not None  # noqa: S101 - it was identified
        assert policies is not None  # noqa: S101 - by these
        counted = self._audit.counted("look", caller.id)
        if counted is None:
            asked = _asked(self.environ, None)
            content = {
                "caller": caller.id,
                "credential": caller.credential,
                "policy": policies.digest[:SHORT],
                "asked": asked,
            }
            labels = self._trace + labels_of(caller=caller.id)
            counted = self._audit.write("look", content, "INFO", f"{caller.id} looked at {asked}", labels)
        self.audit_id = counted

    def intent(self, admission: Admission) -> None:
        """Record a call before it is sent.

        Raises :class:`RecordUnavailable`, or :class:`WaitedTooLong` where it is of no use any more; then the call must
        not be sent.
        """
        now = self._audit.monotonic()
        if now - self._began > PATIENCE_SECONDS:
            if STOPPING.left(self.deadline, now) < LEAST_SECONDS:
                raise WaitedTooLong(retry_after=1)
            if _gone(self.environ.get("gunicorn.socket")):
                raise WaitedTooLong(note="the caller has hung up", retry_after=1)
        self._decide()
        self.audit_id = self._audit.write(
            "intent",
            {**self._decision, "owner": admission.owner[:12]},
            "NOTICE",
            f"{self._caller} asks for {self._what}",
            f"{self._trace}{self._labels}}}",
        )
        self._intent = self.audit_id[-HASH_DIGITS:]

    def step(self, at: Progress, reply: Reply) -> None:
        """Record what came of one step of a call in several. Raises :class:`RecordUnavailable`."""
        content = {
            **self._decision,
            "intent": self._intent,
            "step": at.stage.value,
            "result": reply.outcome.value,
            "attempts": reply.attempts,
            **_present(
                created=at.id or reply.created,
                upstream_status=reply.upstream_status,
                upstream_request=reply.upstream_request,
            ),
        }
        message = f"{self._caller} asks for {self._what}: {at.stage.value} {reply.outcome.value}"
        self._audit.write(
            "step", content, "INFO", message, f'{self._trace}{self._labels},"result":"{reply.outcome.value}"}}'
        )

    def close(self, reply: Reply, *, settled: Settled) -> None:
        """Record the outcome of the send, after :attr:`answer` was set."""
        self.refusal = reply.refusal
        result = reply.outcome.value
        content: dict[str, Any] = {
            **self._decision,
            "intent": self._intent,
            "result": result,
            "status": self.answer.status,
            "attempts": reply.attempts,
            "milliseconds": round((self._audit.monotonic() - self._began) * 1000),
        }
        if reply.refusal is None:
            severity, message = "INFO", self._raised(reply, content)
            labels = f'{self._trace}{self._labels},"result":"{result}"}}'
        else:
            severity, message = "WARNING", self._not_raised(reply, reply.refusal, content)
            labels = f'{self._trace}{self._labels},"result":"{result}","reason":"{reply.refusal.reason}"}}'
        if reply.warning is not None:
            severity, content["warning"] = "WARNING", reply.warning
        if settled is not Settled.WRITTEN or reply.alarm is not None:
            content["alarm"] = reply.alarm or _ALARMS[settled]
        waits = isinstance(reply.refusal, AwaitingApproval)  # which is known, and for a person to end
        if "alarm" in content or (reply.outcome is Outcome.UNKNOWN and not reply.harmless and not waits):
            severity = "ALERT"
        try:
            self._audit.write("outcome", content, severity, message, labels)
        except RecordUnavailable as error:
            # The call was made, and hiding a success would invite a second one. Its intent is on record.
            alert(f"the outcome of {self.audit_id} could not be recorded: {error.note}")

    def _raised(self, reply: Reply, content: dict[str, Any]) -> str:
        """Add what a success brought to its line, and return the message."""
        assert self.grant is not None  # noqa: S101 - it was sent
        operation = self.grant.entitlement.operation
        content["upstream_status"] = reply.upstream_status
        if reply.upstream_request is not None:
            content["upstream_request"] = reply.upstream_request
        named = sum_ = ""
        if reply.created is not None:
            content["created"] = reply.created
            named = f" {reply.created}"
        if reply.amount is not None and reply.currency is not None:
            content["amount"], content["currency"] = reply.amount, reply.currency
            sum_ = f" of {_money(reply.amount, reply.currency)}"
        return f"{self._caller} {operation.verb.done} {operation.noun}{named}{sum_} on {self._where}"

    def _not_raised(self, reply: Reply, refusal: Refusal, content: dict[str, Any]) -> str:
        """Add why a call that was sent did not succeed, and return the message."""
        assert self.grant is not None  # noqa: S101 - it was sent
        content |= (
            _said(refusal)
            | _full(refusal, self.grant)
            | _present(upstream_status=reply.upstream_status, upstream_request=reply.upstream_request)
        )
        if isinstance(refusal, AwaitingApproval):
            return f"a person has to approve {self._what}, which {self._caller} asked for"
        if reply.outcome is Outcome.UNKNOWN:
            return f"nobody knows what became of {self._what}, which {self._caller} asked for: {_first(refusal)}"
        return f"{self._caller} was refused {self._what}: {_first(refusal)}"

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        caller = self.caller.id if self.caller is not None else None
        # A stranger's is a refusal: keys that are tried out must not look like calls that are.
        tried = self.call is not None and self.call.validate_only and caller is not None
        would = would_of(refusal) if tried else None
        kind, reason = ("refusal", refusal.reason) if would is None else ("preview", None)
        try:
            audit_id = None if self._intent else self._audit.counted(kind, caller, reason)
            if audit_id is None:
                audit_id = self._audit.write(kind, *self._refused(refusal, would))
        except RecordUnavailable as error:
            alert(f"a refusal could not be recorded: {error.note}")
            audit_id = self._audit.unwritten()
        self.audit_id = self.audit_id or audit_id

    def _refused(self, refusal: Refusal, would: Would | None) -> tuple[dict[str, Any], str, str, str]:
        """Return the content of a refusal's line, its severity, its message, and the members beside ours.

        ``would`` is for a call that was only tried.
        """
        content = {"status": refusal.status, **_said(refusal), **_present(intent=self._intent, would=would)}
        if self.grant is not None:
            if not self._labels:
                self._decide()
            content |= self._decision | _full(refusal, self.grant)
            who, what = self._caller, self._what
        else:
            content |= self._asked()
            caller, operation, connection = (content.get(name) for name in ("caller", "operation", "connection"))
            what = f"{operation or 'a call'}{f' on {connection}' if connection else ''}"
            who = caller or "somebody unknown"
            if isinstance(refusal, Unauthenticated) and self.call is not None and self.policies is not None:
                brought = presented(self.call, self.policies, self._audit.retired, self._audit.keyed_digest)
                content["presented"] = brought
                if "caller" in brought:
                    who = f"somebody with credential {brought['credential']} of {brought['caller']}"
        labels = {name: content.get(name) for name in ("caller", "connection", "operation", "reason")}
        severity, said = "ERROR" if refusal.status >= 500 else "WARNING", f"was refused {what}"
        if would is not None:  # nobody is alarmed by a try, nor counts it as a refusal
            del labels["reason"]
            severity, said = "INFO", f"tried {what}, which would {'be refused' if would is Would.REFUSE else 'wait'}"
        return content, severity, f"{who} {said}: {_first(refusal)}", self._trace + labels_of(**labels)

    def _asked(self) -> dict[str, Any]:
        """Return what is known of a call that was refused before it was granted."""
        call, caller = self.call, self.caller
        content: dict[str, Any] = {"asked": _asked(self.environ, call)}
        if self.policies is not None:
            content["policy"] = self.policies.digest[:SHORT]
        if caller is not None:
            content |= {"caller": caller.id, "credential": caller.credential}
        if call is None or not call.operation:
            return content
        content["operation"] = call.operation
        if caller is not None and self.policies is not None:
            content |= _present(connection=_connection(self.policies, caller, call))
            names = dict(islice(_parameters(call), MAX_NAMES))
            content["parameters"] = {name: self._audit.keyed_digest(value) for name, value in names.items()}
        return content

    def _decide(self) -> None:
        """Note what every line of a granted call says."""
        grant = self.grant
        assert grant is not None  # noqa: S101 - a decision has been made
        entitlement, digest = grant.entitlement, self._audit.keyed_digest
        caller, connection, operation = grant.caller.id, entitlement.connection.id, entitlement.operation.id
        decision = self._decision = {
            "caller": caller,
            "credential": grant.caller.credential,
            "connection": connection,
            "operation": operation,
            "policy": grant.policy[:SHORT],
            "parameters": {path: digest(value) for path, value in grant.parameters.items()},
        }
        order = ""
        if entitlement.record:
            values = {p: v[:MAX_VALUE] for p, v in grant.parameters.items() if p in entitlement.record}
            if values:
                decision["values"] = values
                order = _mentioned(values)
        if grant.ledger_key is not None:
            decision["ledger"] = grant.ledger_key[:SHORT]
        if self.secret is not None:
            decision["secret"] = self.secret.version
        self._caller, self._where = caller, f"{connection}{order}"
        self._what = f"{operation} on {connection}{order}"
        self._labels = (
            f',"logging.googleapis.com/labels":{{"caller":"{caller}","connection":"{connection}",'
            f'"operation":"{operation}"'
        )

    def _for_nothing(self, kind: str, done: str, **more: str) -> None:
        """Record a call that sends nothing and takes nothing, unless there are too many of these."""
        assert self.grant is not None  # noqa: S101 - a decision has been made
        counted = self._audit.counted(kind, self.grant.caller.id)
        if counted is None:
            self._decide()
            message = f"{self._caller} {done} {self._what}"
            content = {**self._decision, **more}
            counted = self._audit.write(kind, content, "INFO", message, f"{self._trace}{self._labels}}}")
        self.audit_id = counted


def _gone(sock: socket.socket | None) -> bool:
    """Whether a caller has closed its side of the connection. What it has sent ahead is left there."""
    if sock is None:
        return False
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _said(refusal: Refusal) -> dict[str, Any]:
    """Return what a line says of a refusal, whatever it is about."""
    # That one quotes the path, which may hold an upstream's id; ``asked`` has it without.
    detail = PathUnknown.sentence if isinstance(refusal, PathUnknown) else refusal.detail
    others = [_cut(fault.detail) for fault in refusal.faults[1:]]
    return {
        "reason": refusal.reason,
        "detail": _cut(detail),
        **_present(
            note=refusal.note,
            parameter=refusal.parameter and without_keys(refusal.parameter)[:MAX_NAME],
            others=others or None,
            upstream_code=refusal.code if isinstance(refusal, UpstreamRejected) else None,
            retry_after=refusal.retry_after,
        ),
    }


def _full(refusal: Refusal, grant: Grant) -> dict[str, Any]:
    """Return which limit, ceiling or budget is used up. ``amount`` is in minor units, ``window`` in seconds."""
    ceiling = grant.entitlement.connection.ceiling
    match refusal:
        case BudgetSpent():
            return {"budget": {"amount" if name == "limit" else name: value for name, value in refusal.told.items()}}
        case CeilingReached() if ceiling is not None:
            return {"limit": ceiling.text}
        case LimitReached():
            full = [standing.limit.text for standing in refusal.standings if standing.remaining < 1]
            return {"limit": full[0]} if full else {}
    return {}


def _asked(environ: Mapping[str, Any], call: Call | None) -> str:
    """Return the method and the path as they were asked for, without ids and keys, and the connection's names."""
    path, _, query = str(environ.get("RAW_URI", "")).partition("?")
    for value in call.path_parameters.values() if call is not None else ():
        path = path.replace(f"/{value}", "/...")
    names = "&".join(re.findall(_NAME_IN_QUERY, query))
    method = environ.get("REQUEST_METHOD", "")
    asked = f"{method} {re.sub(_ID_IN_PATH, '...', path)}{f'?{names}' if names else ''}"
    return shown(without_keys(asked))


def _connection(policies: PolicySet, caller: Caller, call: Call) -> str | None:
    """Return the connection that a call is for, granted or not."""
    if not call.name:
        return None if caller.tied is None else caller.tied.id
    names = (call.name, call.connection_name)
    entitlement = caller.entitlements.get((*names, call.operation))
    if entitlement is not None:
        return entitlement.connection.id
    found = (one.id for one in policies.connections.values() if (one.name, one.connection_name) == names)
    return next(found, None)


def _parameters(call: Call) -> Iterator[tuple[str, str]]:
    """Yield the parameters of a refused call, by names that are safe to record."""
    try:
        for path, value in given(call).items():
            yield without_keys(shown(path))[:MAX_NAME], value
    except BodyMalformed:
        return


def _mentioned(values: Mapping[str, str]) -> str:
    """Return the first recorded value, in brackets: ``(order_id 1001)``."""
    path, value = next(iter(values.items()))
    return f" ({split(path)[-1]} {shown(value[:MAX_MENTIONED])})"


def _first(refusal: Refusal) -> str:
    """Return the first sentence of a refusal, without its full stop."""
    detail: str = _said(refusal)["detail"]
    return detail.partition(". ")[0].removesuffix(".")


def _cut(text: str) -> str:
    return without_keys(text)[:MAX_SENTENCE]


def _trace(environ: Mapping[str, Any], prefix: str) -> str:
    """Return the trace that the platform's own lines of this request carry, so that they are found together."""
    ours, googles = environ.get("HTTP_TRACEPARENT"), environ.get("HTTP_X_CLOUD_TRACE_CONTEXT")
    if ours and (match := _TRACEPARENT.fullmatch(ours)):
        trace, span = match[1], match[2]
    elif googles and (match := re.fullmatch(_CLOUD_TRACE, googles)):
        trace, span = match[1], f"{int(match[2] or 0) % 2**64:016x}"
    else:
        return ""
    return f',"logging.googleapis.com/trace":"{prefix}{trace}","logging.googleapis.com/spanId":"{span}"'


def _present(**members: object) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _place(error: Exception) -> str:
    """Name an exception by its type and the line that raised it. Its text may hold secrets and is left out."""
    *_, (frame, line) = walk_tb(error.__traceback__)
    return f"{type(error).__name__} in {frame.f_code.co_name}:{line}"
