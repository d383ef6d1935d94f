"""The meaning of an upstream's answer.

The rule: only an answer that says plainly that nothing was created releases the key. Any other answer that is not whole
and readable is unknown. An unknown call is sent again only to an upstream that would answer it with the same invoice.
What is particular to one upstream is read by its dialect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from policies import fields
from policies.model import Effect, Outcome
from policies.operations import OPERATIONS
from policies.refusals import (
    OutcomePending,
    OutcomeUnknown,
    Refusal,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamKeyRefused,
    UpstreamRejected,
    UpstreamUnreachable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from policies.model import Grant, Step

#: Minor units, ten times any real invoice. More is a mistake or an attack, and could overflow a counter.
MAX_SPENT: Final = 10**12
#: Seconds until a retry at a busy upstream: the default without ``Retry-After``, and the cap on it.
BUSY_SECONDS: Final = 5
MAX_BUSY_SECONDS: Final = 3600

_IDS: Final = {operation.id: re.compile(operation.ids) for operation in OPERATIONS.values()}
#: The parameter that names the object of a call, by operation. A call that creates its object cannot name it.
_NAMING: Final = {
    operation.id: match[1]
    for operation in OPERATIONS.values()
    if operation.effect is not Effect.CREATES and (match := re.search(r"\{(\w+)\}", operation.path))
}

#: Used if the upstream gives no reason that may be passed on.
_REJECTED: Final = {
    400: "The upstream refused the {noun} as written",
    402: "The upstream refused the {noun}, although the call was in order",
    404: "The upstream has no such object",
}
#: What a refused call certainly did not do.
_NOTHING: Final = {Effect.CREATES: " Nothing was created.", Effect.CHANGES: " Nothing was changed.", Effect.LOOKS: ""}


class Reply(msgspec.Struct, frozen=True):
    """The result of a send: a trimmed answer, or the refusal to answer with."""

    outcome: Outcome
    answer: Mapping[str, object] | None = None
    """The granted fields of a success."""
    refusal: Refusal | None = None
    reached: bool = True
    """Whether a byte of the call may have reached the upstream; if so it counts against the limits."""
    again: bool = False
    """Whether a retry within the call may help, provided that it is safe."""
    upstream_status: int | None = None
    created: str | None = None
    """The id of what was created, for the record."""
    spent: int = 0
    """How much this counts against the caller's budget, in minor units."""
    upstream_request: str | None = None
    """The upstream's own name for the request, for the record."""
    attempts: int = 1
    alarm: str | None = None
    """What an operator must look at."""
    stray: bool = False
    """Whether this was the answer to another call, so that the next one on this connection cannot be trusted."""


class Said(msgspec.Struct, frozen=True):
    """What a dialect understood of a refusal. Only ``parameter`` is the upstream's own text."""

    code: str | None = None
    words: str | None = None
    """The code in words for the caller."""
    parameter: str | None = None
    """Passed on only if it is one that the caller sent."""
    sent_before: bool = False
    """The upstream knows the key with another form: an earlier send arrived."""


def judge(  # noqa: PLR0913, PLR0917 - the parts of an answer, and how to read its refusals
    grant: Grant, step: Step, status: int, headers: Mapping[str, str], body: bytes, said: Callable[[bytes], Said]
) -> Reply:
    """Return the result of a call that the upstream answered. ``said`` reads this upstream's refusals."""
    if 200 <= status < 300:
        return _success(grant, status, body)
    if status in _REJECTED:
        return _rejected(grant, status, said(body))
    if status in {401, 403}:
        refusal: Refusal = UpstreamKeyRefused(note=f"the upstream answered {status}")
        alarm = "the upstream refuses the key of this connection"
        return _released(grant, step, Reply(Outcome.RELEASED, refusal=refusal, upstream_status=status, alarm=alarm))
    if status == 429:
        wait = min(max(int(headers.get("retry-after", BUSY_SECONDS)), 1), MAX_BUSY_SECONDS)
        refusal = UpstreamBusy(retry_after=wait)
        return _released(grant, step, Reply(Outcome.RELEASED, refusal=refusal, upstream_status=status))
    return unknown(grant, f"the upstream answered {status}", status)


def unsent(grant: Grant, step: Step, note: str) -> Reply:
    """Return the result of a call of which no byte was written."""
    refusal = UpstreamUnreachable(retry_after=5, note=note)
    return _released(grant, step, Reply(Outcome.RELEASED, refusal=refusal, reached=False, again=True))


def unknown(grant: Grant, note: str, status: int | None = None) -> Reply:
    """Return an unknown outcome; for a read-only call, no effect.

    ``status`` is None if no answer came. A conflict (409) or a server error may be transient.
    """
    outcome = Outcome.RELEASED if grant.entitlement.operation.repeatable else Outcome.UNKNOWN
    again = status is None or status == 409 or status >= 500
    return Reply(outcome, refusal=lost(grant, note), upstream_status=status, again=again)


def stray(grant: Grant, what: str, status: int) -> Reply:
    """Return an unknown outcome for an answer to another call, which is known by ``what``.

    Whatever it says, it says nothing of this call. Another try may help: it goes over another connection.
    """
    note = f"the upstream answered {status} to another call: not the {what} that was sent"
    return replace(unknown(grant, note, status), again=True, stray=True, alarm=note)


def lost(grant: Grant, note: str) -> Refusal:
    """Return the refusal for an unknown outcome, which says whether to try again."""
    if grant.entitlement.operation.repeatable:
        return UpstreamFailed(note=note, retry_after=5)
    # Without an idempotency key, a repeated call would be a new one.
    if grant.resend_seconds and grant.ledger_key is not None:
        return OutcomePending(note=note, retry_after=5)
    return OutcomeUnknown(note=note)


def _released(grant: Grant, step: Step, reply: Reply) -> Reply:
    """Return ``reply``, or under doubt an unknown outcome: an earlier send may have created what this one did not."""
    if not step.doubt or grant.entitlement.operation.repeatable:
        return reply
    refusal = lost(grant, f"sent before, and now {reply.refusal.reason if reply.refusal is not None else None}")
    return replace(reply, outcome=Outcome.UNKNOWN, refusal=refusal)


def _success(grant: Grant, status: int, body: bytes) -> Reply:
    entitlement = grant.entitlement
    operation = entitlement.operation
    answer, trimmed = fields.read(body, entitlement)
    if answer.get("object") != operation.answers:
        return unknown(grant, f"the upstream answered {status} without {operation.answers} in JSON", status)
    created = answer.get("id")
    if not isinstance(created, str) or not created:
        return unknown(grant, f"the upstream answered {status} without an id", status)
    another = _another(grant, answer)
    if another is not None:
        return stray(grant, another, status)
    spent, alarm = (0, None) if grant.caller.budget is None else _spent(grant, answer)
    return Reply(
        Outcome.SUCCEEDED,
        answer=trimmed,
        upstream_status=status,
        created=created if operation.effect is Effect.CREATES and _IDS[operation.id].fullmatch(created) else None,
        spent=spent,
        alarm=alarm,
    )


def _another(grant: Grant, answer: Mapping[str, Any]) -> str | None:
    """Return what shows that an answer belongs to another call, or None. Only what both name is compared."""
    entitlement, asked = grant.entitlement, grant.parameters
    sent, named = asked.get("customer"), answer.get("customer")
    if named != sent and sent is not None:
        named = named.get("id") if isinstance(named, dict) else named
        if isinstance(named, str) and named != sent:
            return "customer"
    mode = entitlement.connection.mode
    if mode and answer.get("livemode") is (mode == "test"):
        return "mode"
    if entitlement.operation.effect is not Effect.CREATES:
        naming = _NAMING.get(entitlement.operation.id)
        if naming is not None and answer["id"] != asked[naming]:
            return "id"
    # Of the metadata only what tells calls apart: those values are in one form.
    for path in (entitlement.stamp, entitlement.idempotency.parameter):
        if path is not None and path.startswith("metadata["):
            metadata = answer.get("metadata")
            named = metadata.get(path[len("metadata[") : -1]) if isinstance(metadata, dict) else None
            if isinstance(named, str) and named != asked.get(path, named):
                return path
    return None


def _spent(grant: Grant, answer: Mapping[str, Any]) -> tuple[int, str | None]:
    """Return how much an answer counts against the budget, and an alarm if it cannot be counted."""
    budget, spends = grant.budget, grant.entitlement.operation.spends
    if budget is None or spends is None:
        return 0, None
    amount = answer.get(spends.amount)
    if answer.get(spends.currency) != budget.currency or not isinstance(amount, int) or isinstance(amount, bool):
        return 0, "an invoice was created that the caller's budget does not count: another currency, or no amount"
    return min(max(amount, 0), MAX_SPENT), None


def _rejected(grant: Grant, status: int, said: Said) -> Reply:
    if said.sent_before:
        # An earlier send used this key with another form, for example before the policy's fixed values changed.
        return unknown(grant, "the upstream knows the key with another form", status)
    operation = grant.entitlement.operation
    parameter = said.parameter if said.parameter in grant.parameters else None
    words = said.words or _REJECTED[status].format(noun=operation.noun)
    detail = f"{words}{f' ({parameter})' if parameter else ''}.{_NOTHING[operation.effect]}"
    return Reply(
        Outcome.REJECTED,
        refusal=UpstreamRejected(status, detail, code=said.code, parameter=parameter),
        upstream_status=status,
    )
