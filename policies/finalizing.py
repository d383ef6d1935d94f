"""The plan of finalizing or mailing one invoice: it is looked at, and only then changed.

::

    look -> finalize -> told
    look -> send -> told

Stripe finalizes a draft that it is told to mail (docs.stripe.com, "Integrate with the Invoicing API"), so both are
judged alike: by what the draft comes to, by its currency, and by whether there is anything on it. An invoice can be
finalized once, so a finalize may be sent again under another key; a mail may not. Whoever comes back looks first: an
invoice that is finalized by now is what was asked for.

:func:`begin` and :func:`after` say what comes next; ``gateway.upstreams.sending`` sends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from policies.issuing import DRAFTS, Progress, Stage, bound
from policies.model import Outcome
from policies.outcomes import LATE_SECONDS, Decision, Reply
from policies.refusals import (
    EmailMissing,
    InvoiceEmpty,
    InvoiceVoided,
    OutcomePending,
    OutcomeUnknown,
    Refusal,
    TotalNotGranted,
    UpstreamBusy,
)
from policies.wording import money

if TYPE_CHECKING:
    from policies.model import Admission, Grant
    from policies.outcomes import InvoiceSeen

#: What a caller is told whose call stops after something was sent.
HALF_WAY: Final = (
    "The call was sent, and it is not known yet whether the invoice was finalized or mailed. Send the same call again "
    "with the same idempotency key: that is safe, and settles the matter. Do not use another key."
)
#: What a caller is told of a mail that is never sent a second time.
MAILED: Final = (
    "The invoice may have been mailed, and nothing tells any more whether it was. It was not mailed again. Ask the "
    "operator of Countersign, who can look at the upstream."
)
_NOTHING: Final = "Nothing was changed."


class Attempt(Progress, frozen=True):
    """What comes next, and what is known so far.

    ``reached`` is *finalize* once something is to be sent that finalizes a draft, and *send* for what only mails.
    ``told`` is an answer that settled nothing, which a look is to settle. ``drafts`` counts how often this call has
    tried.
    """

    quiet: bool = True
    """Whether nothing that was sent by an earlier call may still arrive."""
    carried: bool = False
    """Whether a person has approved it, so that the upstream carries it out by itself."""

    sent: bool = False
    """Whether an earlier call, or this one, may have sent the request that changes the invoice."""

    @property
    def comes_to(self) -> int | None:
        """See :class:`Progress`. A draft that is mailed is finalized too."""
        return self.seen.total if self.reached is Stage.FINALIZE and self.seen is not None else None


def begin(grant: Grant, admission: Admission) -> Attempt:
    """Return where a call begins: always with a look."""
    entry = admission.entry
    assert entry is not None  # noqa: S101 - a call in several steps has a key
    return Attempt(
        Stage.LOOK,
        entry.generation,
        grant.parameters["invoice"],
        reached=Stage(entry.step) if entry.step else Stage.LOOK,
        remembered=not entry.mute and admission.taken + LATE_SECONDS <= entry.sent + grant.resend_seconds,
        doubt=entry.doubt,
        quiet=admission.taken >= entry.until,
        sent=bool(entry.step),
    )


def approved(at: Progress, decision: Decision, _: str | None, reply: Reply) -> Progress | Reply:
    """Return what follows once a step that waited for a person was asked about. ``reply`` is for a lone call."""
    match decision:
        case Decision.DONE:
            return replace(_attempt(at), stage=Stage.LOOK, carried=True)
        case Decision.WAITS:
            return _open(_attempt(at), reply)
    return reply


def after(grant: Grant, at: Progress, reply: Reply) -> Progress | Reply:
    """Return what follows from the answer to ``at.stage``: the next stage, or what the caller is told."""
    attempt = _attempt(at)
    if reply.outcome is Outcome.UNKNOWN and reply.approval is not None:
        return _open(replace(attempt, sent=True), reply)
    if at.stage is Stage.LOOK:
        return _looked(grant, attempt, reply)
    return _changed(grant, replace(attempt, sent=True), reply)


def stopped(at: Progress, note: str) -> Reply:
    """Return the result of a call that cannot go on now. The same key goes on from here."""
    return _open(_attempt(at), Reply(Outcome.RELEASED, refusal=UpstreamBusy(note=note, retry_after=1)))


def spent(at: Progress, why: Refusal) -> Progress | Reply:
    """Return what follows where a budget has no room for what the draft comes to: it stays a draft."""
    return _refused(_attempt(at), why)


# ---------------------------------------------------------------- each stage


def _looked(grant: Grant, at: Attempt, reply: Reply) -> Progress | Reply:
    seen = reply.seen
    if reply.outcome is Outcome.FREED and reply.refusal is not None:
        return _refused(at, reply.refusal)  # there is no such invoice, or it may not be looked at
    if reply.outcome is not Outcome.SUCCEEDED or seen is None:
        return _open(at, reply)
    if at.sent and seen.status == "void":  # for good, so that nobody owes it
        return Reply(Outcome.REJECTED, refusal=InvoiceVoided(), generation=at.generation + 1)
    draft, mails = seen.status == "draft", _mails(grant)
    if at.carried:
        return _open(at, Reply(Outcome.UNKNOWN, refusal=OutcomePending(HALF_WAY))) if draft else _told(grant, at, reply)
    if at.sent and not draft and not mails:
        return _told(grant, at, reply)
    if at.sent and not draft and (at.told is not None or not at.remembered):
        return _open(at, at.told or Reply(Outcome.UNKNOWN, refusal=OutcomeUnknown(MAILED), mute=True))
    if at.told is not None and not at.told.mute:  # it may still arrive
        return _open(at, at.told)
    why = differs(grant, seen)
    if why is not None:
        return _refused(at, why)
    return replace(
        at,
        stage=Stage.SEND if mails else Stage.FINALIZE,
        reached=at.reached if at.sent else Stage.FINALIZE if draft or not mails else Stage.SEND,
        # What the upstream has forgotten, or keeps a failure of, did not come about: it is a draft still.
        generation=at.generation + (at.told is not None or not at.remembered),
        remembered=True,
        seen=seen,
        told=None,
    )


def _changed(grant: Grant, at: Attempt, reply: Reply) -> Progress | Reply:
    match reply.outcome:
        case Outcome.SUCCEEDED:
            return _told(grant, at, reply)
        case Outcome.FREED if reply.kept and at.drafts < DRAFTS:
            # What the upstream refused under this key it would refuse for a day, whatever was mended since.
            return replace(at, generation=at.generation + 1, drafts=at.drafts + 1)
        case Outcome.FREED if reply.refusal is not None:
            return _refused(at, reply.refusal, reply)
        case Outcome.UNKNOWN if at.reached is Stage.FINALIZE and at.drafts < DRAFTS:
            return replace(at, stage=Stage.LOOK, drafts=at.drafts + 1, told=reply)
    return _open(at, reply)


# ---------------------------------------------------------------- how it ends


def _told(grant: Grant, at: Attempt, reply: Reply) -> Reply:
    """Return the success. What was changed between the look and the send is told to an operator."""
    seen = reply.seen
    why = None if seen is None else _exceeds(grant, seen)
    alarm = reply.alarm if why is None else f"the invoice {at.id} is finalized, and the policy does not allow it so"
    warning = None
    if seen is not None and seen.status == "paid" and seen.total and not seen.paid:
        warning = f"the invoice {at.id} is marked as paid, and nothing was paid: its sum is below what can be charged"
    spent = reply.spent if at.reached is Stage.FINALIZE else 0  # mailing what is finalized already asks nobody for more
    return replace(reply, generation=at.generation, alarm=alarm, warning=warning, spent=spent)


def _refused(at: Attempt, why: Refusal, reply: Reply | None = None) -> Reply:
    """Return the result of a call that changed nothing: the key is free, unless an earlier send may still arrive."""
    told = reply or Reply(Outcome.FREED)
    if at.sent and at.doubt and not at.quiet:
        pending = OutcomePending(HALF_WAY, note=f"sent before, and now {why.reason}", retry_after=LATE_SECONDS)
        return _open(at, replace(told, outcome=Outcome.RELEASED, refusal=pending))
    generation = at.generation + at.sent
    return replace(told, outcome=Outcome.FREED, refusal=why, generation=generation, kept=False, fresh=True)


def _open(at: Attempt, reply: Reply) -> Reply:
    """Return the result of a call that stops. The ledger keeps what may have been sent."""
    harmless = reply.outcome is Outcome.RELEASED or (at.stage is Stage.LOOK and at.told is None)
    refusal = reply.refusal
    if not at.sent:
        if reply.outcome is not Outcome.RELEASED:  # a look that got no answer
            refusal = UpstreamBusy(note=refusal.note if refusal is not None else None, retry_after=5)
        return replace(reply, outcome=Outcome.FREED, refusal=refusal, generation=at.generation, mute=False, fresh=True)
    if harmless and not isinstance(refusal, OutcomeUnknown):
        note = f"half way: {refusal.note or refusal.reason}" if refusal is not None else None
        refusal = OutcomePending(HALF_WAY, note=note, retry_after=refusal.retry_after if refusal is not None else 5)
    return replace(
        reply,
        outcome=Outcome.UNKNOWN,
        answer=None,
        refusal=refusal,
        generation=at.generation,
        id=at.id,
        step=at.reached.value,
        harmless=harmless,
    )


def _attempt(at: Progress) -> Attempt:
    assert isinstance(at, Attempt)  # noqa: S101 - made here
    return at


def _mails(grant: Grant) -> bool:
    return grant.entitlement.operation.id == "invoices.send"


# ---------------------------------------------------------------- whether it may be finalized


def differs(grant: Grant, seen: InvoiceSeen) -> Refusal | None:
    """Say why an invoice must not be finalized or mailed; None if it may be."""
    if seen.status == "draft":
        if seen.lines == 0:
            return InvoiceEmpty()
        if seen.total is not None and seen.due is not None and min(seen.total, seen.due) <= 0:
            return InvoiceEmpty(
                "The draft asks for nothing, by what its items come to, by a discount, or by what the customer has in "
                "credit. The upstream would mark it paid at once, and give the customer credit for what is below 0. "
                f"{_NOTHING} Mend its items, which name the invoice, and send the same call again."
            )
    if _mails(grant) and not seen.email:
        return EmailMissing(
            f"The customer has no e-mail address, so the invoice cannot be mailed. {_NOTHING} Add the address at the "
            "upstream and send the same call again."
        )
    return _exceeds(grant, seen)


def _exceeds(grant: Grant, seen: InvoiceSeen) -> Refusal | None:
    """Say why an invoice is more than the policy allows, or in another currency."""
    amount, most = grant.entitlement.amount, bound(grant)
    if amount is None:
        return None
    currency = seen.currency or ""
    if amount.currencies and currency not in amount.currencies:
        allowed = " or ".join(one.upper() for one in amount.currencies)
        return TotalNotGranted(
            f"The invoice is in {currency.upper() or 'no currency that can be read'}. You may raise invoices in "
            f"{allowed} only. {_NOTHING}"
        )
    if most is None:
        return None
    if seen.total is None or seen.due is None:
        return TotalNotGranted(f"It cannot be read what the invoice comes to. {_NOTHING}")
    for sum_, what in ((seen.total, "comes to"), (seen.due, "asks for")):
        if sum_ > most:
            return TotalNotGranted(
                f"The invoice {what} {money(sum_, currency)}, with tax and with what the customer owes from before. "
                f"You may raise {money(most, currency)} at most. {_NOTHING}"
            )
    return None
