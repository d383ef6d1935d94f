"""The ledger's states and its allowed moves.

::

    (nothing) --claim--> SENT --settle--> SUCCEEDED | REJECTED | UNKNOWN
                          │ └--release--> (nothing)       nothing was created
                          └--lease runs out--> UNKNOWN    the call that claimed it is gone

    UNKNOWN --claim--> SENT, in doubt                     only to an upstream that still remembers the key
    SENT, in doubt --release--> UNKNOWN                   this send created nothing; an earlier one may have

SUCCEEDED and REJECTED are final: the same key gets the same answer again. UNKNOWN means that an invoice may exist. An
upstream that deduplicates answers a second send under the same key with the same invoice, as long as it keeps the key.
Only there, and only that long, the call may be sent again. Otherwise it is never sent a second time.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from policies.model import Answer, Outcome
from policies.refusals import KeyInUse, KeyReused, OutcomeStillUnknown

if TYPE_CHECKING:
    from policies.model import Grant

#: No-code tools repeat a call up to 40 hours later; a record is kept for longer than that.
RETENTION: Final = 72 * 3600
#: A call has 25 s in all, so a call whose claim is older than this has ended.
LEASE: Final = 30


#: How many digits of a key's ledger name the record, the operator's command and a stamp use: enough to be unique.
SHORT: Final = 16


class State(StrEnum):
    """The state of a key."""

    SENT = "sent"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


class Entry(msgspec.Struct, frozen=True):
    """What the ledger stores for one key. Times are on the store's clock, in seconds."""

    state: State
    owner: str
    fingerprint: str
    place: str
    """Where it was sent. Only this upstream account knows the key."""
    sent: float
    """When the key was first claimed: no send of it can be earlier."""
    lease_until: float
    expires: float
    answer: Answer | None = None
    doubt: bool = False
    """Whether an earlier send may have created an invoice."""


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

    @property
    def open(self) -> bool:
        """Whether it awaits an operator's decision."""
        return not self.running and self.state in {State.SENT, State.UNKNOWN}


class Verdict(StrEnum):
    """The result of an operator's decision about a key."""

    RESOLVED = "resolved"
    ABSENT = "absent"
    RUNNING = "running"
    SETTLED = "settled"


def identity(caller: str, connection: str, operation: str, key: str) -> str:
    """Return the ledger's name for a key: 64 hexadecimal digits, unique to these four values."""
    return hashlib.sha256(json.dumps([caller, connection, operation, key]).encode()).hexdigest()


def upstream_key(name: str) -> str:
    """Return the key for a deduplicating upstream, derived from the ledger's name for the key (or from an owner).

    It depends on nothing that a store could lose: if the ledger loses an entry, the upstream still deduplicates.
    """
    return f"countersign-{hashlib.sha256(f'upstream:{name}'.encode()).hexdigest()[:48]}"


def claim(  # noqa: PLR0913 - all are named in the call
    entry: Entry | None, *, owner: str, fingerprint: str, place: str, retention: int, resend: int, now: float
) -> Entry | Answer:
    """Judge a call against its key's entry in the ledger. Return the entry to write, or the answer to repeat.

    ``place`` is where the call would go, ``resend`` for how many seconds the upstream there deduplicates. Raises
    :class:`KeyReused` for other parameters, :class:`KeyInUse` while the first call may still be running, and
    :class:`OutcomeStillUnknown` if it may have created an invoice and must not be sent again.
    """
    if entry is None or entry.expires <= now:
        return Entry(State.SENT, owner, fingerprint, place, sent=now, lease_until=now + LEASE, expires=now + retention)
    if entry.fingerprint != fingerprint:
        raise KeyReused
    if entry.state is State.SENT:
        if now < entry.lease_until:
            if entry.owner == owner:  # our own claim; the store's reply was lost
                return entry
            raise KeyInUse(retry_after=1)
    elif entry.answer is not None:
        return entry.answer
    # The send must end while the upstream still remembers the key.
    if entry.place != place or now + LEASE > entry.sent + resend:
        raise OutcomeStillUnknown
    return replace(entry, state=State.SENT, owner=owner, lease_until=now + LEASE, doubt=True)


def claim_for(grant: Grant, entry: Entry | None, *, owner: str, now: float) -> Entry | Answer | None:
    """Judge a granted call as :func:`claim` does; None for a call without a key."""
    if grant.ledger_key is None:
        return None
    return claim(
        entry,
        owner=owner,
        fingerprint=grant.fingerprint,
        place=grant.entitlement.connection.place,
        retention=grant.entitlement.idempotency.seconds,
        resend=grant.resend_seconds,
        now=now,
    )


def settle(entry: Entry | None, *, owner: str, outcome: Outcome, answer: Answer | None) -> Entry | None:
    """Return the key's entry after a sent call has ended; None deletes it.

    A call that does not own the claim changes nothing.
    """
    if entry is None or entry.state is not State.SENT or entry.owner != owner:
        return entry
    match outcome:
        case Outcome.RELEASED:
            return replace(entry, state=State.UNKNOWN) if entry.doubt else None
        case Outcome.UNKNOWN:
            return replace(entry, state=State.UNKNOWN)
        case Outcome.SUCCEEDED:
            return replace(entry, state=State.SUCCEEDED, answer=answer)
        case Outcome.REJECTED:
            return replace(entry, state=State.REJECTED, answer=answer)
