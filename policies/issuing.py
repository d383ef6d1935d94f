"""The plan of a whole invoice: from a call's lines to one finalized invoice of the sum that was asked for, or nothing.

::

    (find) -> create -> lines -> (look, count) -> finalize -> (send) -> told
                          └────────── differs, refused ──> delete -> free

A draft that is never finalized harms nobody, and an id can be finalized once. So: while the ledger names an id, every
call with the key works with that one, and a new draft is begun only once the old one was *seen* deleted. Whoever comes
back looks first and trusts no repeated answer, since somebody may have changed the draft meanwhile. What cannot be
continued is deleted at once. A draft whose create got no answer is begun again under its key, which leads to the same
one; where the upstream no longer knows the key, it is found by its stamp. Two calls at a time, a lost ledger or a key
that the upstream has forgotten can leave a draft behind, never a second invoice.

:func:`begin` and :func:`after` say what comes next; ``gateway.upstreams.sending`` sends it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from policies import lines
from policies.model import Outcome
from policies.outcomes import LATE_SECONDS, Decision, InvoiceSeen, Reply, lost, unknown
from policies.refusals import (
    ApprovalRejected,
    EmailMissing,
    InvoiceVoided,
    OutcomePending,
    OutcomeUnknown,
    Refusal,
    TotalDiffers,
    UpstreamBusy,
)
from policies.wording import money

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from policies.lines import Asked
    from policies.model import Admission, Grant

#: What a caller is told whose call stops between two steps.
HALF_WAY: Final = (
    "The invoice was begun and is not finished: nobody has been invoiced yet, or it was not mailed. Send the same call "
    "again with the same idempotency key, and it goes on from there. Do not use another key, which might raise a "
    "second invoice."
)
#: What a caller is told of an invoice that somebody finalized as something else: no call of ours can mend that.
ANOTHER: Final = (
    "There is an invoice under this idempotency key that is not what you asked for: somebody has changed it. Do not "
    "use another key, which might raise a second invoice. The operator of Countersign has been told, and can find the "
    "call by its audit id. Once that invoice is voided, the same call says so."
)
#: So many drafts are begun in one call. Each that was given up is seen deleted first.
DRAFTS: Final = 5


class Stage(StrEnum):
    """One request of the plan. Those that change something are also how far the ledger says a call has come."""

    FIND = "find"
    CREATE = "create"
    LINES = "lines"
    LOOK = "look"
    COUNT = "count"
    FINALIZE = "finalize"
    SEND = "send"
    DELETE = "delete"


class Progress(msgspec.Struct, frozen=True):
    """What comes next, and what is known so far."""

    stage: Stage
    generation: int = 0
    id: str | None = None
    """What is worked on. None until the draft is there."""
    reached: Stage = Stage.CREATE
    """The furthest stage that may have been sent for this id: what the ledger must say before ``stage`` is sent."""
    lines_sent: bool = False
    """Whether lines may have been sent for this id, and nobody has seen what came of it."""
    remembered: bool = True
    """Whether the upstream surely remembers what earlier calls with the key have sent."""
    doubt: bool = False
    """Whether an earlier call with the key was lost, and may have come further than the ledger knows."""
    drafts: int = 1
    """How many drafts this call has begun."""
    seen: InvoiceSeen | None = None
    """The invoice as it was last seen by this call."""
    told: Reply | None = None
    """The answer that goes with it."""
    alarmed: bool = False
    """Whether an operator was told that the invoice is not as it was asked for."""
    approval: str | None = None
    """What a person was asked for. It is asked about again until what follows from the decision is seen."""
    mailed: bool | None = None
    """Whether the upstream has mailed it after a person was asked; None if nobody was, or has not decided yet."""
    why: Refusal | None = None
    """Why the draft is deleted: what the caller is told once it is gone. None if another is begun then."""

    @property
    def written(self) -> bool:
        """Whether the ledger must say how far the call has come before this stage is sent."""
        return self.stage in {Stage.LINES, Stage.FINALIZE, Stage.SEND}

    @property
    def comes_to(self) -> int | None:
        """What the invoice comes to that is finalized next, in minor units; None before any other stage."""
        return self.seen.total if self.stage is Stage.FINALIZE and self.seen is not None else None


def begin(grant: Grant, admission: Admission) -> Progress:
    """Return where a call takes up its invoice: at its first step, or with a look at what the ledger names."""
    entry = admission.entry
    if entry is None:
        return Progress(Stage.CREATE)
    remembered = admission.taken + LATE_SECONDS <= entry.sent + grant.resend_seconds
    if entry.id is None:
        lost = entry.doubt and (entry.mute or not remembered)
        stage = Stage.FIND if lost else Stage.CREATE
        return Progress(stage, entry.generation, remembered=remembered, doubt=entry.doubt)
    reached = Stage(entry.step) if entry.step else Stage.CREATE
    return Progress(
        Stage.LOOK,
        entry.generation,
        entry.id,
        reached,
        lines_sent=reached is Stage.LINES,
        remembered=remembered,
        doubt=entry.doubt,
        alarmed=entry.mute,
        approval=entry.approval,
    )


def approved(at: Progress, decision: Decision, created: str | None, reply: Reply) -> Progress | Reply:
    """Return what follows once a step that waited for a person was asked about. ``reply`` is for a lone call.

    An approved step goes on with the next; a draft whose step was not approved is deleted first. An invoice that is not
    to be mailed is finalized all the same.
    """
    match decision:
        case Decision.DONE | Decision.REFUSED | Decision.LAPSED if at.reached is Stage.SEND:
            return replace(at, stage=Stage.LOOK, mailed=decision is Decision.DONE)
        case Decision.DONE:
            return replace(at, stage=Stage.LOOK, id=at.id or created, approval=None)
        case Decision.REFUSED | Decision.LAPSED if at.id is not None:
            return replace(at, stage=Stage.DELETE, why=reply.refusal)
    return _kept(at, reply) if at.id is not None else reply


def after(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    """Return what follows from the answer to ``at.stage``: the next stage, or what the caller is told."""
    if reply.outcome is Outcome.UNKNOWN and reply.approval is not None:  # once it is approved, it goes on from here
        return _kept(at, reply) if at.id is not None else reply
    return _AFTER[at.stage](grant, at, reply)


def stopped(at: Progress, note: str) -> Reply:
    """Return the result of a call that cannot go on now. The same key goes on from here."""
    why = UpstreamBusy(note=note, retry_after=1)
    if at.stage is not Stage.CREATE:
        return _kept(at, Reply(Outcome.RELEASED, refusal=why))
    # The last draft was seen deleted, and this call has begun no other. One that was killed may have.
    if at.doubt:
        return Reply(Outcome.UNKNOWN, refusal=_half_way(why), harmless=True)
    return Reply(Outcome.FREED, refusal=why, generation=at.generation, fresh=True)


def spent(at: Progress, why: Refusal) -> Progress:
    """Return what follows where a budget has no room for what the draft comes to: it goes."""
    return replace(at, stage=Stage.DELETE, why=why)


# ---------------------------------------------------------------- each stage


def _after_find(_: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if reply.outcome is not Outcome.SUCCEEDED or reply.seen is None:
        return _kept(at, reply)
    if reply.created is not None:
        return replace(at, stage=Stage.LOOK, id=reply.created, generation=reply.generation)
    if reply.seen.more:
        unknown = OutcomeUnknown(note="the customer has more invoices than one look shows")
        return _kept(at, replace(reply, outcome=Outcome.UNKNOWN, refusal=unknown))
    return _anew(at)


def _after_create(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if reply.mute and reply.approval is None:  # it will never say whether there is a draft
        return replace(at, stage=Stage.FIND, generation=reply.generation)
    if reply.outcome is not Outcome.SUCCEEDED:
        return reply
    if reply.created is None:
        return unknown(grant, "the draft has no id that can be used", reply.upstream_status)
    draft = replace(at, generation=reply.generation, id=reply.created, reached=Stage.LINES, lines_sent=False, seen=None)
    # A repeated answer is old: the draft may have lines by now, be finalized, or be gone.
    return replace(draft, stage=Stage.LOOK if reply.kept else Stage.LINES)


def _after_lines(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if reply.outcome is Outcome.SUCCEEDED:
        # A repeated answer is old here too. Lines that are gone by now are not brought back by sending them again.
        return replace(at, stage=Stage.LOOK, lines_sent=True) if reply.kept else _checked(grant, at, reply)
    if _refused(reply):
        return replace(at, stage=Stage.DELETE, why=reply.refusal)
    if reply.outcome is Outcome.UNKNOWN:  # they may arrive yet, so they are not sent to this draft again
        return replace(at, stage=Stage.DELETE, lines_sent=True)
    return _kept(at, reply)


def _after_look(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if _gone(reply):
        return _anew(at) if at.why is None else _given_up(at, at.why)
    seen = reply.seen
    if reply.outcome is not Outcome.SUCCEEDED or seen is None:
        return _kept(at, reply)
    if seen.status != "draft":
        return _finalized(grant, at, reply)
    if at.why is not None:  # deleting it was refused, and it is a draft still
        return _kept(at, replace(reply, alarm=f"the draft {at.id} could not be deleted", refusal=lost(grant, "draft")))
    if seen.lines:
        return _checked(grant, at, reply)
    if at.lines_sent:
        return replace(at, stage=Stage.DELETE)
    return replace(at, stage=Stage.LINES, reached=Stage.LINES)


def _after_count(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if reply.outcome is not Outcome.SUCCEEDED or reply.seen is None or at.seen is None or at.told is None:
        return _kept(at, reply)
    return _judged(grant, replace(at, seen=replace(at.seen, lines=reply.seen.lines, more=False)), at.told)


def _after_finalize(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if reply.outcome is Outcome.SUCCEEDED:
        return _finalized(grant, at, reply)
    if reply.mute:  # it would be repeated for a day, and never say what happened: that is seen by deleting it
        return replace(at, stage=Stage.DELETE, why=UpstreamBusy(note="the upstream keeps a failure", retry_after=5))
    return replace(at, stage=Stage.DELETE, why=reply.refusal) if _refused(reply) else _kept(at, reply)


def _after_send(_: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if reply.outcome is Outcome.SUCCEEDED:
        return _told(at, reply, sent=True)
    ended = _refused(reply) or reply.mute
    return _told(at, at.told, sent=False) if ended and at.told is not None else _kept(at, reply)


def _after_delete(_: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    if _gone(reply):
        return _anew(at) if at.why is None else _given_up(at, at.why)
    # Refused, it is no draft any more, or has changed: look what it is.
    return (
        replace(at, stage=Stage.LOOK, why=at.why or UpstreamBusy(retry_after=1))
        if _refused(reply)
        else _kept(at, reply)
    )


_AFTER: Final[Mapping[Stage, Callable[[Grant, Progress, Reply], Progress | Reply]]] = {
    Stage.FIND: _after_find,
    Stage.CREATE: _after_create,
    Stage.LINES: _after_lines,
    Stage.LOOK: _after_look,
    Stage.COUNT: _after_count,
    Stage.FINALIZE: _after_finalize,
    Stage.SEND: _after_send,
    Stage.DELETE: _after_delete,
}


def _checked(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    """Go on with a draft that has lines: to counting them, where an answer does not show them all."""
    at = replace(at, seen=reply.seen, told=reply)
    if reply.seen is not None and reply.seen.more:
        return replace(at, stage=Stage.COUNT)
    return _judged(grant, at, reply)


def _judged(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    """Finalize a draft that is as it was asked for; delete any other."""
    assert at.seen is not None  # noqa: S101 - it was looked at
    why = differs(grant, at.seen)
    if why is not None:
        return replace(at, stage=Stage.DELETE, why=why)
    return replace(at, stage=Stage.FINALIZE, reached=Stage.FINALIZE, told=reply)


def _finalized(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    """Tell of an invoice that is finalized, or mail it first. One that is not as asked is nobody's to tell."""
    seen = reply.seen
    if seen is not None and seen.status == "void":  # for good, so that nobody owes it
        return Reply(Outcome.REJECTED, refusal=InvoiceVoided(), generation=at.generation + 1)
    if seen is None or not _as_asked(lines.asked(grant.parameters), seen):
        status = (seen.status if seen is not None else "") or "unreadable"
        note = f"the invoice {at.id} is {status} and not as it was asked for: somebody must look at it"
        told = replace(reply, outcome=Outcome.UNKNOWN, refusal=OutcomeUnknown(ANOTHER, note=note), harmless=True)
        return _kept(replace(at, alarmed=True), told if at.alarmed else replace(told, alarm=note))
    at = replace(at, seen=seen, told=reply)
    if grant.parameters.get("send") != "true":
        return _told(at, reply, sent=None)
    if at.mailed is not None:
        return _told(at, reply, sent=at.mailed)
    if at.reached is Stage.SEND and not at.remembered:  # it may have been mailed, and would be again
        return _told(at, reply, sent=False)
    return replace(at, stage=Stage.SEND, reached=Stage.SEND, approval=None)


# ---------------------------------------------------------------- how it ends


def _told(at: Progress, reply: Reply, *, sent: bool | None) -> Reply:
    """Return the success. An invoice that is paid without a payment, or was not mailed, is told with a warning."""
    seen = reply.seen
    warning = None
    if sent is False:
        warning = f"the invoice {at.id} was finalized and not mailed"
    elif seen is not None and seen.status == "paid" and seen.total and not seen.paid:
        warning = f"the invoice {at.id} is marked as paid, and nothing was paid: its sum is below what can be charged"
    answer = dict(reply.answer or {})
    if "sent" in answer:
        answer["sent"] = bool(sent)
    return replace(reply, answer=answer, created=at.id, generation=at.generation, warning=warning)


def _given_up(at: Progress, why: Refusal) -> Reply:
    """Return the result of a draft that was seen deleted: nothing is left, and the key is free."""
    if isinstance(why, ApprovalRejected):  # a person's word stays
        return Reply(Outcome.REJECTED, refusal=why, generation=at.generation + 1)
    return Reply(Outcome.FREED, refusal=why, generation=at.generation + 1, fresh=True)


def _anew(at: Progress) -> Progress | Reply:
    """Begin another draft, once the last one was seen deleted: or find it, where another call may have begun it."""
    if at.drafts == DRAFTS:
        return _given_up(at, UpstreamBusy(retry_after=1))
    lost = at.doubt and not at.remembered and at.stage is not Stage.FIND
    return Progress(
        Stage.FIND if lost else Stage.CREATE,
        at.generation + 1,
        remembered=at.remembered,
        doubt=at.doubt,
        drafts=at.drafts + 1,
    )


def _kept(at: Progress, reply: Reply) -> Reply:
    """Return the result of a call that stops half way: the ledger keeps what it works on."""
    harmless, refusal = reply.outcome is Outcome.RELEASED, reply.refusal
    if harmless and refusal is not None:
        refusal = _half_way(refusal)
    reached = Stage.CREATE if harmless and at.stage is Stage.LINES else at.reached
    return replace(
        reply,
        outcome=Outcome.UNKNOWN,
        answer=None,
        refusal=refusal,
        generation=at.generation,
        mute=at.alarmed,  # else a look will say more
        id=at.id,
        step=reached.value,
        harmless=(harmless and at.id is not None) or reply.harmless,
        approval=reply.approval or at.approval,
    )


def _half_way(why: Refusal) -> Refusal:
    """Return what is told in place of a refusal that is true of the last request, but not of those before."""
    note = f"half way: {why.note or why.reason}"
    return OutcomePending(HALF_WAY, note=note, retry_after=why.retry_after or 5)


def _gone(reply: Reply) -> bool:
    """Whether an answer shows that there is no such draft any more."""
    deleted = reply.outcome is Outcome.SUCCEEDED and reply.seen is not None and reply.seen.status == "deleted"
    return deleted or (_refused(reply) and reply.upstream_status == 404)


def _refused(reply: Reply) -> bool:
    """Whether the upstream refused in words that prove that this request had no effect."""
    return reply.outcome is Outcome.FREED or reply.closed


# ---------------------------------------------------------------- whether it is what was asked for


def bound(grant: Grant) -> int | None:
    """Return what an invoice may come to, in minor units; None if the policy does not bound it."""
    amount = grant.entitlement.amount
    return amount.max if amount is not None else None


def _as_asked(asked: Asked, seen: InvoiceSeen) -> bool:
    return (
        seen.currency == asked.currency
        and (seen.more or seen.lines == asked.count)
        and asked.total in {None, seen.subtotal}
        and bool(seen.total)
    )


def differs(grant: Grant, seen: InvoiceSeen) -> Refusal | None:
    """Say why a draft must not be finalized; None if it is as it was asked for.

    ``subtotal`` is the sum of the lines, before discounts and exclusive tax; ``amount_due`` also has what the customer
    owes from before (docs.stripe.com/api/invoices/object).
    """
    asked = lines.asked(grant.parameters)
    if seen.currency != asked.currency:
        return TotalDiffers(
            f"The invoice would be in {_upper(seen.currency)}, not in {_upper(asked.currency)}. Nothing is left of it."
        )
    if asked.total is not None and seen.subtotal != asked.total:
        return TotalDiffers.of(asked.total, seen.subtotal, asked.currency)
    if seen.lines != asked.count:
        return TotalDiffers(
            f"The invoice would have {seen.lines} lines, not the {asked.count} that were asked for. Nothing is left "
            "of it."
        )
    if seen.total is None or seen.due is None or min(seen.total, seen.due) <= 0:
        return TotalDiffers(
            "The invoice would come to nothing, by a discount or by what the customer has in credit. Nothing is left "
            "of it."
        )
    most = bound(grant)
    for sum_, what in ((seen.total, "come to"), (seen.due, "ask for")):
        if most is not None and sum_ > most:
            return TotalDiffers(
                f"The invoice would {what} {money(sum_, asked.currency)}, with tax and with what the customer owes "
                f"from before. You may raise {money(most, asked.currency)} at most. Nothing is left of it."
            )
    if grant.parameters.get("send") == "true" and not seen.email:
        return EmailMissing()
    return None


def _upper(currency: str | None) -> str:
    return (currency or "no currency").upper()
