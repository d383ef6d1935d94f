"""The ledger's states and its allowed moves.

::

    (nothing), FREE --claim--> SENT --settle--> SUCCEEDED | REJECTED | FREE | UNKNOWN
                                │ └--release--> FREE        nothing was sent
                                └--lease runs out--> UNKNOWN    the call that claimed it is gone

    UNKNOWN --claim--> SENT, in doubt          to an upstream that still remembers the key, or to look an approval up
    SENT, in doubt --release--> UNKNOWN        this send did nothing; an earlier one may have

SUCCEEDED and REJECTED repeat their answer. FREE runs afresh, with whatever parameters. UNKNOWN means that an invoice
may exist. An upstream that deduplicates answers a second send under the same key with the same invoice, as long as it
keeps the key. Only there, only that long, and only as the same form the call may be sent again. Otherwise it is never
sent a second time. SENT and UNKNOWN do not expire.

An operator may decide about UNKNOWN, or about REJECTED, which leads to SUCCEEDED or FREE. Until a call meets that
decision it can be taken back: the entry keeps what it was before. The first call that meets it marks it.

Some upstreams keep a refusal under its key too. So each key here has a row of keys there, its generations: where one
turns out to be closed by a refusal that is kept, the call goes on with the next. A ledger that forgets everything
begins at the first again, and so comes to the invoice that exists.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from policies.model import Answer, Entry, Outcome, State
from policies.operations import OPERATIONS
from policies.refusals import (
    ApprovalRejected,
    AwaitingApproval,
    KeyInUse,
    KeyReused,
    KeyUsedElsewhere,
    OutcomeStillUnknown,
)
from policies.wording import ago

if TYPE_CHECKING:
    from policies.issuing import Progress
    from policies.model import Grant
    from policies.outcomes import Reply

#: No-code tools repeat a call up to 40 hours later; a settled entry is kept for longer than that.
RETENTION: Final = 72 * 3600
#: A freed key is kept at least as long as any upstream here remembers what was sent under it.
LEAST_FREE: Final = 25 * 3600
#: A call has 25 s in all, so a call whose claim is older than this has ended.
LEASE: Final = 30
#: Past this the upstream's own list of what happened has ended too (docs.stripe.com/api/events), so nothing will prove
#: any more what became of a call.
PROVABLE: Final = 30 * 86400


#: Bytes of an answer that are kept for a replay: Firestore takes a document of 1 MiB, and memory is shared.
MAX_KEPT: Final = 64 * 1024
#: Of a longer answer, so long a member is kept; there are less than a hundred.
MAX_KEPT_MEMBER: Final = 512

#: How many digits of a key's ledger name the record, the operator's command and a stamp use: enough to be unique.
SHORT: Final = 16


#: How every shared store writes an entry and reads it: the format is one, and changes in one place.
packed: Final = msgspec.msgpack.Encoder().encode
unpacked: Final = msgspec.msgpack.Decoder(Entry).decode


class Held(msgspec.Struct, frozen=True):
    """What an operator sees of a key: its caller and its state, never what was asked or answered."""

    key: str
    state: State
    caller: str
    connection: str
    operation: str
    since: float
    """When it was first claimed, in unix seconds."""
    running: bool
    """Whether the call may still be under way."""
    amount: int | None = None
    """The sum of what was created, in minor units of ``currency``, where the answer that is kept has both."""
    currency: str | None = None
    said: str = ""
    """An operator's word on it, and whose."""
    approval: str | None = None
    """What it waits for at the upstream."""
    told: float = 0.0
    """When a call first met what the operator said, in unix seconds; 0 until then."""
    reopens: State | None = None
    """What it would be again if the operator's decision was taken back; None if there is none to take back."""
    id: str | None = None
    """What a call in several steps that is open has begun."""
    step: str = ""
    """How far it may have come with that."""

    @property
    def open(self) -> bool:
        """Whether it is not known what it created: it awaits an operator's decision, or a person's approval."""
        return not self.running and self.state in {State.SENT, State.UNKNOWN}

    @property
    def resolvable(self) -> bool:
        """Whether an operator may decide about it."""
        return self.open or self.state is State.REJECTED


class Verdict(StrEnum):
    """The result of an operator's decision about a key, or of taking one back."""

    RESOLVED = "resolved"
    REOPENED = "reopened"
    """The decision was taken back."""
    ABSENT = "absent"
    RUNNING = "running"
    SETTLED = "settled"
    NAMED = "named"
    """The ledger names a draft: the same call, sent again, looks what became of that, and deletes or finalizes it."""
    WAITING = "waiting"
    """An approval is pending, and a person may still give it. The same call, sent again, asks what became of it."""
    TOLD = "told"
    """A call has met the decision, so it stands."""
    UNDECIDED = "undecided"
    """No operator has decided about it."""


def identity(caller: str, name: str, connection_name: str, operation: str, key: str) -> str:
    """Return the ledger's name for a key: 64 hexadecimal digits, unique to these five values.

    They are what a caller writes, each by its first name, so that an operator may tidy labels.
    """
    return hashlib.sha256(json.dumps([caller, name, connection_name, operation, key]).encode()).hexdigest()


def upstream_key(name: str, generation: int = 0, stage: str = "") -> str:
    """Return the key for a deduplicating upstream, derived from the ledger's name for the key (or from an owner).

    It depends on nothing that a store could lose: if the ledger loses an entry, the upstream still deduplicates.
    ``stage`` tells apart the requests of a call in several steps.
    """
    of = f"upstream:{name}:{generation}{f':{stage}' if stage else ''}"
    return f"countersign-{hashlib.sha256(of.encode()).hexdigest()[:48]}"


def claim(  # noqa: PLR0913 - what is held and wanted, and what the call may be told and do
    held: Entry | None, wanted: Entry, *, resend: int, now: float, names: bool = True, resumes: bool = False
) -> Entry | Answer:
    """Judge a call against its key's entry in the ledger. Return the entry to write, or the answer to repeat.

    ``wanted`` is the entry of a call with a fresh key, ``resend`` for how many seconds the upstream deduplicates, and
    ``names`` whether the caller may be told the id of what was created. ``resumes`` is true of a call that
    may be sent again also if the upstream has forgotten it, or keeps a failure of it (``Operation.resumes``).
    Raises :class:`KeyInUse` while the call that claimed it may still be running, :class:`KeyReused` for other
    parameters, :class:`KeyUsedElsewhere` for an invoice of another account, and :class:`OutcomeStillUnknown` if there
    may be an invoice and the call must not be sent again.
    """
    if held is None or over(held, now):
        return wanted
    if held.state is State.FREE:
        return _afresh(held, wanted, now)
    if _running(held, now):
        if held.owner == wanted.owner:  # our own claim; the store's reply was lost
            return held
        raise KeyInUse(retry_after=1)
    if held.fingerprint != wanted.fingerprint:
        raise KeyReused(_reused(held, now, names=names))
    if held.answer is not None:
        if held.state is State.SUCCEEDED and held.place != wanted.place:
            raise KeyUsedElsewhere
        return held.answer
    # To the account that knows the key, as the same form, and to its end while the upstream still remembers the key.
    known = resumes or (not held.mute and now + LEASE <= held.sent + resend)
    again = held.written == wanted.written and known
    asks = held.approval is not None and not held.mute
    if held.place != wanted.place or not (again or asks):
        raise OutcomeStillUnknown(_left(held, now))
    gone = held.state is State.SENT  # whoever claimed it may have sent it, and told nobody
    return replace(
        held,
        state=State.SENT,
        owner=wanted.owner,
        lease_until=wanted.lease_until,
        doubt=held.doubt or gone,
        until=max(held.until, held.lease_until) if gone else held.until,
    )


def _afresh(held: Entry, wanted: Entry, now: float) -> Entry:
    """Return the entry of a call with a key that was freed."""
    if held.said:  # an operator's decision, which stands from now on
        wanted = replace(wanted, said=held.said, told=held.told or now)
    if held.place != wanted.place:
        return wanted
    # What the upstream keeps under this generation, it has kept since the refusal.
    sent = held.sent if held.refused else wanted.sent
    return replace(wanted, generation=held.generation, refused=held.refused, sent=sent)


def claim_for(grant: Grant, held: Entry | None, *, owner: str, place: str, now: float) -> Entry | Answer | None:
    """Judge a granted call as :func:`claim` does; None for a call without a key."""
    if grant.ledger_key is None:
        return None
    fresh = wanted(grant, owner=owner, place=place, now=now)
    entitlement = grant.entitlement
    names, resumes = "id" in entitlement.response, entitlement.operation.resumes
    return claim(held, fresh, resend=grant.resend_seconds, now=now, names=names, resumes=resumes)


def wanted(grant: Grant, *, owner: str, place: str, now: float) -> Entry:
    """Return the entry of a granted call whose key is fresh. ``place`` is where the call goes."""
    entitlement = grant.entitlement
    return Entry(
        State.SENT,
        owner,
        grant.caller.id,
        entitlement.connection.id,
        entitlement.operation.id,
        grant.fingerprint,
        grant.written,
        place,
        sent=now,
        lease_until=now + LEASE,
    )


def settle(held: Entry | None, *, owner: str, reply: Reply, answer: Answer | None, retention: int) -> Entry | None:
    """Return the key's entry after a call has ended. A call that does not own the claim changes nothing.

    ``retention`` is for how many seconds from its claim a settled entry is kept.
    """
    if held is None or held.state is not State.SENT or held.owner != owner:
        return held
    claimed = held.lease_until - LEASE
    ended = _at(held, reply.generation)
    ended = replace(ended, doubt=reply.doubt or ended.doubt, id=reply.id or ended.id, step=reply.step or ended.step)
    match reply.outcome:
        case Outcome.SUCCEEDED | Outcome.REJECTED:
            state = State(reply.outcome.value)
            reserved = None if gives_back(reply) else ended.reserved
            return replace(
                ended,
                state=state,
                answer=answer,
                doubt=False,
                approval=None,
                reserved=reserved,
                expires=claimed + retention,
            )
        case Outcome.RELEASED if not ended.doubt and ended.approval is None and ended.id is None:
            return free(ended, refused=ended.refused, expires=claimed + retention)
        case Outcome.RELEASED:  # this call did nothing; what was open before still is
            return replace(ended, state=State.UNKNOWN)
        case Outcome.FREED:
            return free(ended, refused=not reply.fresh, expires=claimed + retention)
        case Outcome.UNKNOWN:
            return replace(
                ended,
                state=State.UNKNOWN,
                doubt=ended.doubt or (reply.approval is None and not reply.harmless),
                until=max(held.until, held.lease_until),
                mute=reply.mute,
                approval=reply.approval,
            )


def gives_back(reply: Reply) -> bool:
    """Whether a call that ends so holds no money any more: nothing was raised, or it is known what was spent.

    What nobody knows is not given back: it counts in its budgets from when it was booked.
    """
    match reply.outcome:
        case Outcome.SUCCEEDED:
            return reply.spent is not None
        case Outcome.REJECTED:
            return isinstance(reply.refusal, ApprovalRejected)  # a person's word; no other proves that nothing was
        case Outcome.UNKNOWN:
            return False
    return True


def moves(claim: Entry | None) -> bool:
    """Whether a call that is admitted books its money now, and moves there what its key holds already.

    Not if it only asks what a person has decided: what that was it books when it knows.
    """
    return claim is None or claim.approval is None or claim.mute


def advance(held: Entry | None, progress: Progress, *, owner: str) -> Entry | None:
    """Return the entry of a call in several steps before its next one is sent; None if it is not this call's any more.

    What was seen of an earlier generation goes with it, and what a person was asked for is decided.
    """
    if held is None or held.state is not State.SENT or held.owner != owner:
        return None
    return replace(_at(held, progress.generation), id=progress.id, step=progress.reached.value, approval=None)


def _at(held: Entry, generation: int) -> Entry:
    """Return the entry at a generation that may be later than its own."""
    if generation <= held.generation:
        return held
    return replace(
        held,
        generation=generation,
        refused=False,
        doubt=False,
        approval=None,
        sent=held.sent if held.doubt else held.lease_until - LEASE,  # a call that was killed may have come as far
        id=None,
        step="",
    )


def settle_for(grant: Grant, held: Entry | None, *, owner: str, reply: Reply, answer: Answer | None) -> Entry | None:
    """Judge the end of a granted call as :func:`settle` does."""
    retention = grant.entitlement.idempotency.seconds
    return settle(held, owner=owner, reply=reply, answer=answer and kept(answer), retention=retention)


def kept(answer: Answer) -> Answer:
    """Return what the ledger keeps of an answer: all of it, or of a huge one the short members at its top."""
    if len(answer.body) <= MAX_KEPT:
        return answer
    members: dict[str, object] = msgspec.json.decode(answer.body)
    short = {name: value for name, value in members.items() if len(str(value)) <= MAX_KEPT_MEMBER}
    return Answer(answer.status, msgspec.json.encode(short))


def state_after(outcome: Outcome) -> State:
    """Return the state that an outcome leads to where nothing is in doubt."""
    return State.FREE if outcome in {Outcome.RELEASED, Outcome.FREED} else State(outcome.value)


def free(held: Entry, *, refused: bool, expires: float) -> Entry:
    """Return the entry of a key under which nothing was created."""
    return replace(
        held,
        state=State.FREE,
        refused=refused,
        doubt=False,
        until=0.0,
        mute=False,
        approval=None,
        id=None,
        step="",
        reserved=None,
        expires=max(expires, held.lease_until + LEAST_FREE),
    )


def blank(entry: Entry) -> bool:
    """Whether an entry says no more than none would: the key is free, and nothing was ever refused under it."""
    return entry.state is State.FREE and not entry.generation and not entry.refused


def resolve(held: Entry | None, answer: Answer | None, *, now: float, said: str = "") -> tuple[Verdict, Entry | None]:
    """Judge an operator's word on a key: what it created (``answer`` is what callers get), or that it did not (None).

    ``said`` is that word and whose it is, for people.

    Only an open entry is changed, or a refusal that does not prove that nothing was created. "Not created" is not
    taken while a send may still arrive, nor while a person may approve the call where the upstream can be asked of it.
    What is reserved for what was created counts on from its admission: the upstream got the call then, and an operator
    names no sum, so that to book it now would take what others may spend today.
    """
    if held is None or over(held, now):
        return Verdict.ABSENT, held
    if _running(held, now):
        return Verdict.RUNNING, held
    if held.state in {State.SUCCEEDED, State.FREE}:
        return Verdict.SETTLED, held
    decided = replace(held, said=said, told=0.0, before=held)
    if answer is not None:
        created = replace(decided, state=State.SUCCEEDED, answer=answer, approval=None, expires=now + RETENTION)
        return Verdict.RESOLVED, created
    if now < held.until:
        return Verdict.RUNNING, held
    if held.approval is not None and not held.mute:
        return Verdict.WAITING, held
    if held.id is not None:
        return Verdict.NAMED, held
    return Verdict.RESOLVED, free(decided, refused=True, expires=now + RETENTION)


def met(held: Entry | None, *, now: float) -> Entry | None:
    """Return what must be written before a call hears anything of an operator's decision; None for nothing.

    It is written once, by the first call that meets the decision, which stands from then on. A key that an operator
    has freed is marked by its claim (:func:`claim`).
    """
    if held is None or held.before is None or held.state is State.FREE or over(held, now):
        return None
    return replace(held, told=now, before=None)


def reopen(held: Entry | None, *, now: float) -> tuple[Verdict, Entry | None]:
    """Judge an operator who takes a decision back. The entry is again what it was, if no call has met the decision."""
    if held is None or over(held, now):
        return Verdict.ABSENT, held
    if held.before is None:
        return Verdict.TOLD if held.told else Verdict.UNDECIDED, held
    before = held.before
    if before.expires is not None and held.expires is not None:
        # A refusal that would have ended meanwhile is kept on: ended, it would free the key.
        before = replace(before, expires=max(before.expires, held.expires))
    if before.reserved is not None and held.reserved is None:
        before = replace(before, reserved=replace(before.reserved, anew=True))
    return Verdict.REOPENED, before


def held_of(key: str, entry: Entry, *, now: float) -> Held:
    """Return what an operator sees of an entry of a store whose clock is in unix seconds."""
    amount, currency = _sum(entry)
    return Held(
        key=key,
        state=entry.state,
        caller=entry.caller,
        connection=entry.connection,
        operation=entry.operation,
        since=entry.sent,
        running=_running(entry, now),
        amount=amount,
        currency=currency,
        said=entry.said,
        approval=entry.approval,
        told=entry.told,
        reopens=entry.before.state if entry.before is not None else None,
        id=entry.id,
        step=entry.step,
    )


def _sum(entry: Entry) -> tuple[int, str] | tuple[None, None]:
    """Return the amount and the currency of what was created, where the caller was granted both."""
    operation = OPERATIONS.get(entry.operation)
    if entry.state is not State.SUCCEEDED or entry.answer is None or operation is None or operation.spends is None:
        return None, None
    told: dict[str, Any] = msgspec.json.decode(entry.answer.body)
    amount, currency = told.get(operation.spends.amount), told.get(operation.spends.currency)
    return (amount, currency) if isinstance(amount, int) and isinstance(currency, str) else (None, None)


def over(held: Entry, now: float) -> bool:
    """Whether an entry has expired. One that is open never does."""
    return held.expires is not None and held.expires <= now


def _running(held: Entry, now: float) -> bool:
    return held.state is State.SENT and now < held.lease_until


def _reused(held: Entry, now: float, *, names: bool) -> str:
    """Say what became of the call that has this key, to somebody who brings it with other parameters."""
    operation, when = OPERATIONS[held.operation], ago(now - held.sent)
    noun = operation.noun
    told: Any = msgspec.json.decode(held.answer.body) if held.answer is not None else {}
    if held.state is State.SUCCEEDED:
        name = f" {told['id']}" if names and isinstance(told.get("id"), str) else ""
        return (
            f"This idempotency key was used {when} for a call with other parameters, which went through: {noun}{name}. "
            f"Use a new key for another {noun}, or send the same parameters to get that answer again."
        )
    if held.state is State.REJECTED:
        return (
            f"This idempotency key was used {when} for a call with other parameters, which was refused, and the "
            f"refusal stays: {told.get('detail', f'{operation.may.capitalize()}. Do not use another key.')}"
        )
    return (
        f"This idempotency key was used {when} for a call with other parameters, whose outcome is not known: "
        f"{operation.may}. Do not use another key, which might {operation.twice}. Send the first call again as it was, "
        "or ask the operator of Countersign to look."
    )


def _left(held: Entry, now: float) -> str:
    """Say what is known of a call that is not sent again."""
    if held.approval is not None:
        return AwaitingApproval.where(None)
    operation = OPERATIONS[held.operation]
    if now - held.sent < PROVABLE:
        return (
            f"An earlier call with this key was sent, but no answer came that can be trusted, so {operation.may}. It "
            f"was not sent again. Do not use another key, which might {operation.twice}. The operator of Countersign "
            "has been told, and can find the call by its audit id."
        )
    return (
        f"A call with this idempotency key was sent {ago(now - held.sent)}, and no answer came that can be trusted, so "
        f"{operation.may}. It was not sent again. Do not use another key, which might {operation.twice}. Only the "
        "operator of Countersign can still settle this: ask, and give the audit id."
    )
