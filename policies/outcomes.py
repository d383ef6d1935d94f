"""The meaning of an upstream's answer.

The rule: only an answer that proves that nothing was created frees the key. Any other answer that is not whole and
readable is unknown. An unknown call is sent again only to an upstream that would answer it with the same invoice, and
a refusal of the second send proves nothing about the first, unless that can no longer arrive.
What is particular to one upstream is read by its dialect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from policies import fields
from policies.model import Effect, Outcome
from policies.operations import OPERATIONS
from policies.refusals import (
    ApprovalLapsed,
    ApprovalRejected,
    AwaitingApproval,
    CustomerAmbiguous,
    OutcomePending,
    OutcomeUnknown,
    Refusal,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamKeyRefused,
    UpstreamMisrouted,
    UpstreamRejected,
    UpstreamUnreachable,
)
from policies.wording import money

if TYPE_CHECKING:
    from policies.model import Grant, Step

#: Minor units, ten times any real invoice. More is a mistake or an attack, and could overflow a counter.
MAX_SPENT: Final = 10**12
#: Seconds until a retry at a busy upstream: the default without ``Retry-After``, and the cap on it.
BUSY_SECONDS: Final = 5
MAX_BUSY_SECONDS: Final = 3600

#: Seconds until somebody asks again whether a person has approved a call.
APPROVAL_SECONDS: Final = 300
#: Seconds until a request that nobody waits for any more can no longer arrive: a claim's lease.
LATE_SECONDS: Final = 30

_IDS: Final = {operation.id: re.compile(operation.ids) for operation in OPERATIONS.values()}
#: docs.stripe.com/api/invoices/object: the states of an invoice.
STATUSES: Final = frozenset({"draft", "open", "paid", "void", "uncollectible"})
#: ISO 4217 in lower case, as Stripe writes it.
_CURRENCY = re.compile(r"[a-z]{3}")
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
#: Statuses of a refusal that says nothing in the upstream's own words.
_WORDLESS: Final = frozenset({400, 402, 404, 422})
#: Statuses with which a front end says that it has no such place, if no JSON comes with them.
_MISROUTED: Final = frozenset({301, 307, 308, 404, 405, 410, 421})
#: What a refused call certainly did not do.
_NOTHING: Final = {Effect.CREATES: " Nothing was created.", Effect.CHANGES: " Nothing was changed.", Effect.LOOKS: ""}
#: What a call that was refused in unknown words did not do, as far as anybody can tell.
_PROBABLY: Final = {
    Effect.CREATES: " Probably nothing was created.",
    Effect.CHANGES: " Probably nothing was changed.",
    Effect.LOOKS: "",
}


#: What is told of an unknown outcome.
_NO_ANSWER: Final = "The call was sent, but no answer came that can be trusted, so {may}. "
_PENDING: Final = _NO_ANSWER + (
    "Send the same call again with the same idempotency key: that is safe, and settles the matter. Do not use another "
    "key, which might {twice}."
)
_UNKNOWN: Final = _NO_ANSWER + (
    "Do not use another key, which might {twice}; the same key does not. The operator of Countersign has been told, "
    "and can find the call by its audit id."
)
_IDEMPOTENT: Final = _NO_ANSWER + "Send the same call again: that is safe, and settles the matter."


class InvoiceSeen(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an answer shows of a whole invoice that is under way. Sums are in minor units; None is unreadable.

    Refusals and the record tell of it, so no text of the upstream's own is in it.
    """

    status: str
    """One of :data:`STATUSES`, or ``deleted``; empty if unreadable."""
    currency: str | None = None
    """As :func:`currency_of` reads it."""
    subtotal: int | None = None
    """The sum of the lines, before discounts and exclusive tax."""
    total: int | None = None
    due: int | None = None
    """The total, with what the customer owes from before."""
    paid: int | None = None
    email: bool = False
    """Whether there is an address to mail it to."""
    lines: int | None = None
    more: bool = False
    """Whether there are more lines than the answer shows."""


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of a send: a trimmed answer, or the refusal to answer with. Written, it is what it says."""

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
    """The id of what was created or changed, for the record."""
    amount: int | None = None
    """The sum of what was created, in minor units of ``currency``, for the record. Both or none."""
    currency: str | None = None
    spent: int | None = None
    """What a success has spent, in minor units of ``spent_in``; None if nobody knows, so that what was reserved stays.
    """
    spent_in: str = ""
    upstream_request: str | None = None
    """The upstream's own name for the request, for the record."""
    attempts: int = 1
    alarm: str | None = None
    """What an operator must look at."""
    generation: int = 0
    """The generation of the key (see ``policies.idempotency``) that was sent last."""
    doubt: bool = False
    """Whether an earlier send of that generation may have had an effect that nobody read."""
    closed: bool = False
    """The upstream keeps a refusal under this generation, which created nothing. The call may go on with the next."""
    key_refused: bool = False
    """The upstream did not take our key, and so did not look at the call."""
    mute: bool = False
    """The upstream repeats an answer that proves nothing."""
    approval: str | None = None
    """The approval that the call waits for, by the upstream's name."""
    stray: bool = False
    """Whether this was the answer to another call, so that the next one on this connection cannot be trusted."""
    kept: bool = False
    """Whether a success or a refusal is the upstream's answer to an earlier send under the same key, and may be old."""
    seen: InvoiceSeen | None = None
    """Of a call in several steps: what it works on, as this answer shows it."""
    id: str | None = None
    """Of a call in several steps that stops half way: what it works on."""
    step: str = ""
    """And how far it came."""
    harmless: bool = False
    """Whether it stops with nothing in doubt."""
    fresh: bool = False
    """Whether nothing was sent under this generation yet: the draft of the one before was seen deleted."""
    warning: str | None = None
    """What somebody should look at, though the call went through."""


class Means(Enum):
    """What an answer that is no success says, in the upstream's own terms."""

    NOTHING = auto()
    """It is JSON, but none of those below."""
    FOREIGN = auto()
    """It is no JSON: something else may have answered."""
    REFUSED = auto()
    """Refused in the upstream's own words: what was sent had no effect."""
    BLOCKED = auto()
    """Refused by a rule of the account, whatever the status."""
    OTHER_FORM = auto()
    """The key was used with another form, so an earlier send arrived."""
    LOCKED = auto()
    """Something that the call needs is in use for a moment."""
    WAITS = auto()
    """A person must approve it first."""


class Decision(Enum):
    """What became of an approval."""

    WAITS = auto()
    DONE = auto()
    """Approved, and carried out by the upstream."""
    REFUSED = auto()
    LAPSED = auto()
    """Nobody decided in time, or it could not be carried out: nothing was created."""


class Approval(msgspec.Struct, frozen=True):
    """What an upstream says became of an approval."""

    decision: Decision = Decision.WAITS
    created: str | None = None
    """The id of what was created or changed."""
    look: str | None = None
    """The address where a person gives it, while it waits."""


class Said(msgspec.Struct, frozen=True):
    """What a dialect understood of an answer that is no success. Only ``parameter`` is the upstream's own text."""

    means: Means = Means.NOTHING
    code: str | None = None
    words: str | None = None
    """The code in words for the caller."""
    parameter: str | None = None
    """Passed on only if it is one that the caller sent."""
    kept: bool = False
    """Whether the upstream repeated an answer that it keeps under the key."""
    approval: str | None = None
    """The id of the approval that the call waits for."""
    look: str | None = None
    """The address where a person gives it."""


def judge(grant: Grant, step: Step, status: int, headers: Mapping[str, str], body: bytes, said: Said | None) -> Reply:  # noqa: PLR0913, PLR0917 - the parts of an answer, and what its dialect understood
    """Return the result of a call that the upstream answered. ``said`` is for answers that are no success."""
    if said is None:
        return _success(grant, status, body)
    reply = _refused(grant, step, status, headers, said)
    return reply if reply.upstream_status is not None else replace(reply, upstream_status=status)


def _refused(grant: Grant, step: Step, status: int, headers: Mapping[str, str], said: Said) -> Reply:
    means = said.means
    if means is Means.WAITS:
        return awaiting(step, said.approval, said.look)
    if means is Means.BLOCKED or (means is Means.REFUSED and status in _REJECTED):
        return _freed(grant, step, status, said)
    if step.refused and (means is Means.OTHER_FORM or (said.kept and not step.doubt)):
        # What is kept under this key is of another form, or of an earlier send, and had no effect.
        return _closed()
    if means is Means.OTHER_FORM:
        return unknown(grant, "the upstream knows the key with another form", status)
    if status in {401, 403}:
        refusal: Refusal = UpstreamKeyRefused(note=f"the upstream answered {status}")
        alarm = "the upstream refuses the key of this connection"
        return _released(grant, step, Reply(Outcome.RELEASED, refusal=refusal, alarm=alarm, key_refused=True))
    if status == 429 or (means is Means.LOCKED and status == 400):
        wait = min(max(int(headers.get("retry-after", BUSY_SECONDS)), 1), MAX_BUSY_SECONDS)
        refusal = UpstreamBusy(retry_after=wait)
        return _released(grant, step, Reply(Outcome.RELEASED, refusal=refusal, again=means is Means.LOCKED))
    if means is Means.FOREIGN and status in _MISROUTED:
        return _misrouted(grant, step, status)
    if status in _WORDLESS and not step.doubt:
        return Reply(Outcome.REJECTED, refusal=_rejection(grant, status, said, _PROBABLY))
    reply = unknown(grant, f"the upstream answered {status}", status)
    if said.kept and not grant.entitlement.operation.repeatable:
        # It would be repeated for as long as the upstream keeps the key, and never say what happened.
        return replace(reply, refusal=OutcomeUnknown(note=f"the upstream keeps {status}"), again=False, mute=True)
    return reply


def _freed(grant: Grant, step: Step, status: int, said: Said) -> Reply:
    """Return the result of a refusal in words that prove that this send had no effect."""
    if said.kept and step.id is None:  # then no send under this key ever had one
        return _closed()
    refusal = _rejection(grant, status if status in _REJECTED else 400, said, _NOTHING)
    if step.doubt and not step.quiet:  # an earlier one may still arrive
        return _in_doubt(grant, refusal, LATE_SECONDS)
    return Reply(Outcome.FREED, refusal=refusal, kept=said.kept)


def _closed() -> Reply:
    """Return the result of a send under a key that the upstream keeps a refusal under.

    Its refusal is told only if the call cannot go on with the next generation now; the same call, repeated, then does.
    """
    return Reply(Outcome.RELEASED, refusal=UpstreamBusy(retry_after=1), closed=True)


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


def lost(grant: Grant, note: str, retry_after: int = 5) -> Refusal:
    """Return the refusal for an unknown outcome, which says whether to try again."""
    if grant.entitlement.operation.repeatable:
        return UpstreamFailed(note=note, retry_after=retry_after)
    operation = grant.entitlement.operation
    if operation.idempotent:
        return OutcomePending(_IDEMPOTENT.format(may=operation.may), note=note, retry_after=retry_after)
    # Without an idempotency key, a repeated call would be a new one.
    if grant.resend_seconds and grant.ledger_key is not None:
        said = _PENDING.format(may=operation.may, twice=operation.twice)
        return OutcomePending(said, note=note, retry_after=retry_after)
    return OutcomeUnknown(_UNKNOWN.format(may=operation.may, twice=operation.twice), note=note)


def awaiting(step: Step, approval: str | None, look: str | None = None) -> Reply:
    """Return the result of a call that waits for a person. It is never sent again: the upstream carries it out."""
    if approval is None or not step.resumes:
        refusal: Refusal = OutcomeUnknown(AwaitingApproval.where(look, approval), note="a person must approve it")
        return Reply(Outcome.UNKNOWN, refusal=refusal, approval=approval, mute=True)
    return Reply(
        Outcome.UNKNOWN,
        refusal=AwaitingApproval(look, name=approval, retry_after=APPROVAL_SECONDS),
        approval=approval,
        doubt=step.doubt,
    )


def decided(grant: Grant, step: Step, name: str, approval: Approval) -> Reply:
    """Return the result of a call that waited for a person, who has not brought anything about."""
    match approval.decision:
        case Decision.REFUSED:
            return Reply(Outcome.REJECTED, refusal=ApprovalRejected(doubt=step.doubt))
        case Decision.LAPSED if step.quiet or not step.doubt:
            # It is not sent at once: the ledger must know first under which key.
            return Reply(Outcome.RELEASED, refusal=ApprovalLapsed(retry_after=1), generation=step.generation + 1)
        case Decision.LAPSED:
            return _in_doubt(grant, None, LATE_SECONDS)
        case _:
            return awaiting(step, name, approval.look)


def found(grant: Grant, step: Step, approval: str, status: int, body: bytes) -> Reply:
    """Return the result of a call that the upstream carried out after an approval, from a look at what it created."""
    reply = _success(grant, status, body) if 200 <= status < 300 else None
    return reply if reply is not None and reply.outcome is Outcome.SUCCEEDED else awaiting(step, approval)


def _released(grant: Grant, step: Step, reply: Reply) -> Reply:
    """Return ``reply``, or under doubt an unknown outcome: an earlier send may have created what this one did not."""
    if not step.doubt or grant.entitlement.operation.repeatable:
        return reply
    open_ = _in_doubt(grant, reply.refusal)
    return replace(reply, outcome=open_.outcome, refusal=open_.refusal)


def _in_doubt(grant: Grant, refusal: Refusal | None, retry_after: int = 5) -> Reply:
    note = f"sent before, and now {refusal.reason if refusal is not None else None}"
    return Reply(Outcome.UNKNOWN, refusal=lost(grant, note, retry_after))


def _misrouted(grant: Grant, step: Step, status: int) -> Reply:
    refusal = UpstreamMisrouted(note=f"the upstream answered {status} without JSON")
    alarm = f"the origin of this connection answers {status} without JSON, as something else than the upstream would"
    return _released(grant, step, Reply(Outcome.RELEASED, refusal=refusal, alarm=alarm))


def _rejection(grant: Grant, status: int, said: Said, effect: Mapping[Effect, str]) -> UpstreamRejected:
    operation = grant.entitlement.operation
    parameter = said.parameter if said.parameter in grant.parameters else None
    words = said.words or _REJECTED.get(status, _REJECTED[400]).format(noun=operation.noun)
    detail = f"{words}{f' ({parameter})' if parameter else ''}.{effect[operation.effect]}"
    if effect is _PROBABLY and operation.effect is not Effect.LOOKS:
        detail += (
            " This key is not sent again. Do not use another key; the operator of Countersign can look at the "
            "upstream, and free this one."
        )
    return UpstreamRejected(status, detail, code=said.code, parameter=parameter)


def _success(grant: Grant, status: int, body: bytes) -> Reply:
    entitlement = grant.entitlement
    operation = entitlement.operation
    answer, trimmed = fields.read(body, entitlement)
    if answer.get("object") != operation.answers:
        return unknown(grant, f"the upstream answered {status} without {operation.answers} in JSON", status)
    if operation.finds:
        return _found_one(grant, status, body, trimmed)
    created = answer.get("id")
    if not isinstance(created, str) or not created:
        return unknown(grant, f"the upstream answered {status} without an id", status)
    another = _another(grant, answer)
    if another is not None:
        return stray(grant, another, status)
    amount = currency = None
    if (spends := operation.spends) is not None:
        try:
            amount, currency = _sum(answer.get(spends.amount), answer.get(spends.currency))
        except TypeError:  # an object or a list, in place of either
            amount = currency = None
    spent, spent_in, alarm = _spent(grant, answer) if grant.caller.budgets else (None, "", None)
    return Reply(
        Outcome.SUCCEEDED,
        answer=trimmed,
        upstream_status=status,
        created=created if _IDS[operation.id].fullmatch(created) and not operation.repeatable else None,
        amount=amount,
        currency=currency,
        spent=spent,
        spent_in=spent_in,
        alarm=alarm,
    )


def _found_one(grant: Grant, status: int, body: bytes, trimmed: Mapping[str, object]) -> Reply:
    """Return the result of a search that is to find one object, or none."""
    entitlement, listed = grant.entitlement, fields.decoded(body)
    found, finds, mode = listed.get("data"), entitlement.operation.finds, entitlement.connection.mode
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return unknown(grant, f"the upstream answered {status} without a list", status)
    for one in found:
        if one.get(finds) != grant.parameters[finds]:
            return stray(grant, finds, status)
        if mode and one.get("livemode") is (mode == "test"):
            return stray(grant, "mode", status)
    if len(found) > 1 or listed.get("has_more") is True:
        return Reply(Outcome.FREED, refusal=CustomerAmbiguous(), upstream_status=status)
    return Reply(Outcome.SUCCEEDED, answer=trimmed, upstream_status=status)


@lru_cache(1024, typed=True)  # many invoices have one of a few sums
def _sum(amount: object, currency: object) -> tuple[int, str] | tuple[None, None]:
    """Return the amount and the currency of what was created. What does not look like them stays out of the record."""
    if type(amount) is int and 0 <= amount <= MAX_SPENT and type(currency) is str and _CURRENCY.fullmatch(currency):
        return amount, currency
    return None, None


def currency_of(value: object) -> str | None:
    """Return the currency that an answer names; None if it is none."""
    return value if isinstance(value, str) and _CURRENCY.fullmatch(value) else None


def sum_of(value: object) -> int | None:
    """Return a sum in minor units, as an answer has it; None if it is none. A discount may make it negative."""
    return value if type(value) is int and abs(value) <= MAX_SPENT else None


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


def _spent(grant: Grant, answer: Mapping[str, Any]) -> tuple[int | None, str, str | None]:
    """Return what a success has spent of its caller's budgets, its currency, and an alarm if it cannot be told.

    None leaves what was reserved as it is.
    """
    entitlement, operation = grant.entitlement, grant.entitlement.operation
    spends, amount = operation.spends, entitlement.amount
    if spends is None or not operation.spends_at(entitlement.connection.upstream):
        return None, "", None
    sum_, currency = answer.get(spends.amount), answer.get(spends.currency)
    counted = any(budget.currency == currency for budget in grant.caller.budgets)
    if not counted or not isinstance(sum_, int) or isinstance(sum_, bool):
        return None, "", "an invoice was created that no budget of the caller counts: another currency, or no amount"
    spent = min(max(sum_, 0), MAX_SPENT)
    over = amount is not None and amount.max is not None and spent > amount.max
    alarm = f"an invoice of {money(spent, str(currency))} was created: more than amount.max allows" if over else None
    return spent, str(currency), alarm
