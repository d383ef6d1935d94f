"""What would become of a call that is only tried: ``validate_only``, the portal's form, the operator's ``explain``.

Such a call goes through the very stages of a real one, which raise the very refusals. Where a real one would be
counted, ``Store.peek`` judges by the rules of ``admit``. Here is what is said of the result. It ends where the upstream
begins: what that would answer is not foreseen.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from policies import lines
from policies.concealed import HIDDEN
from policies.outcomes import awaiting
from policies.refusals import AskedTooOften, Unforeseen
from policies.upstreams import UPSTREAMS
from policies.wording import left_in_words, moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policies.model import Admission, Entry, Grant, Left
    from policies.refusals import Refusal

OF_THIS_CALL: Final = "(one of this call alone)"

_SENT: Final = (
    "This call would be sent. Nothing was sent or used up now, and what the upstream would say to it is not foreseen."
)
_NEW: Final = "This idempotency key is new."
_FREE: Final = (
    "A call with this idempotency key was refused before, and nothing was created. It would be sent as a new one."
)
_BEGUN: Final = (
    "An invoice was begun with this idempotency key, and is not finished as far as is known. The call would go on from "
    "there: with a look at it first."
)
_DOUBT: Final = (
    "A call with this idempotency key was sent before, and its outcome is not known. It would be sent again under the "
    "same key: the upstream then answers with the same invoice, if there is one."
)


class Would(StrEnum):
    """What would become of a call."""

    SEND = "send"
    REPLAY = "replay"
    """The answer of an earlier call would be given again."""
    REFUSE = "refuse"
    WAIT = "wait"
    """Not now: the same call, sent again later, is right."""


def would_of(refusal: Refusal) -> Would | None:
    """Return what would become of a call that meets ``refusal``; None for what only a tried call meets."""
    if isinstance(refusal, AskedTooOften | Unforeseen):
        return None
    return Would.REFUSE if refusal.retry_after is None else Would.WAIT


def foresee(grant: Grant, admission: Admission, left: Iterable[Left], now: float) -> tuple[Would, dict[str, object]]:
    """Return what would become of a call that ``admission`` would admit, and the members of the answer that says so.

    ``left`` is what is left to its caller before it, ``now`` in unix seconds. Of a replay there are few members, since
    they come beside those of the answer that is kept.

    Raises :class:`AwaitingApproval` for a call that waits for a person, as far as was heard last.
    """
    if admission.replay is not None:
        return Would.REPLAY, {"validate_only": True, "would": Would.REPLAY}
    dialect, entry = UPSTREAMS[grant.entitlement.connection.upstream], admission.entry
    step = dialect.first(grant, admission)
    if entry is not None and entry.approval is not None:
        waits = awaiting(step, entry.approval).refusal
        assert waits is not None  # noqa: S101 - it says why it waits
        raise waits
    outgoing = dialect.request(grant, step)
    name, _, scheme = outgoing.key.partition(": ")
    headers = {name: scheme + HIDDEN, **outgoing.headers}
    if grant.ledger_key is None and "Idempotency-Key" in headers:
        headers["Idempotency-Key"] = OF_THIS_CALL
    told: dict[str, object] = {
        "validate_only": True,
        "would": Would.SEND,
        "detail": _SENT,
        "would_send": {
            "method": outgoing.method,
            "url": outgoing.url,
            "headers": headers,
            "body": (outgoing.body or b"").decode("ascii"),
        },
        "would_answer": list(grant.entitlement.response_fields),
        "left": [_left(one, now) for one in left],
    }
    if grant.entitlement.operation.whole:
        asked = lines.asked(grant.parameters)
        told["asks_for"] = {"lines": asked.count, "total": asked.total, "currency": asked.currency}
    return Would.SEND, told if entry is None else told | {"key": _key(entry)}


def _key(claim: Entry) -> dict[str, str]:
    """Say what is known of the key of a call that would be sent, of which ``claim`` would be the entry."""
    if claim.id is not None:
        return {"state": "unknown", "detail": _BEGUN}
    if claim.doubt:
        return {"state": "unknown", "detail": _DOUBT}
    if claim.refused or claim.generation:
        return {"state": "free", "detail": _FREE}
    return {"state": "new", "detail": _NEW}


def _left(left: Left, now: float) -> dict[str, Any]:
    """Say what is left of a limit or a budget, in the members that refusals have."""
    said = {
        "kind": left.kind,
        "detail": left_in_words(left, now),
        "limit": left.limit.calls,
        "currency": left.currency or None,
        "each": left.each,
        "window": left.limit.seconds,
        "left": left.remaining,
        "more": left.more or None,
        "resets_at": moment(now + left.reset) if left.more else None,
    }
    return {name: value for name, value in said.items() if value is not None}
