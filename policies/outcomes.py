"""What an upstream's answer means: section "exactly once" of the design, row by row.

The rule beneath the rows: only an answer that says plainly that nothing was created sets the key free. Everything else
that is not a whole, readable invoice is unknown, and an unknown call is sent again only to an upstream that would
answer it with the same invoice.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from policies import fields
from policies.model import Outcome, Reply
from policies.refusals import (
    OutcomePending,
    OutcomeUnknown,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamKeyRefused,
    UpstreamRejected,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Budget, Grant
    from policies.refusals import Refusal

#: What Stripe's ids look like. An id that does not is no reason to hide a success, but it stays out of the record.
_ID = re.compile(r"[a-z]{2,12}_[A-Za-z0-9]{1,64}")

#: Stripe's error codes that a create-invoice call can meet, with words for whoever made it. A code that is not here
#: is not passed on: an upstream's text may hold anything, the key included.
_CODES: Final = {
    "resource_missing": "The upstream does not know something that the call names",
    "parameter_missing": "The upstream misses a parameter",
    "parameter_unknown": "The upstream does not know a parameter",
    "parameter_invalid_empty": "The upstream takes no empty value here",
    "parameter_invalid_integer": "The upstream wants a whole number here",
    "parameter_invalid_string_blank": "The upstream takes no blank value here",
    "parameter_invalid_string_empty": "The upstream takes no empty value here",
    "parameters_exclusive": "The upstream does not take these parameters together",
    "invoice_no_customer_line_items": "This customer has nothing to be invoiced",
    "invoice_no_subscription_line_items": "This subscription has nothing to be invoiced",
    "invoice_not_editable": "The invoice can no longer be changed",
    "customer_max_subscriptions": "This customer has too many subscriptions",
    "customer_tax_location_invalid": "The customer's address is not enough to work out tax",
    "email_invalid": "The customer's e-mail address is not valid",
    "amount_too_large": "The amount is too large",
    "amount_too_small": "The amount is too small",
    "coupon_expired": "The coupon has expired",
    "country_unsupported": "The country is not supported",
    "card_declined": "The card was declined",
    "expired_card": "The card has expired",
    "payment_method_invalid_parameter": "The payment method does not take this",
    "taxes_calculation_failed": "Tax could not be worked out",
}
#: Ten times any real invoice; more is a slip or an attack, and would only overflow a counter.
MAX_SPENT: Final = 10**12

_REJECTED: Final = {
    400: "The upstream refused the invoice as written",
    402: "The upstream refused the invoice, although the call was in order",
    404: "The upstream does not know something that the call names",
}


def judge(grant: Grant, status: int, body: bytes, retry_after: int | None) -> Reply:
    """Say what came of a call that the upstream answered with ``status`` and ``body``."""
    if 200 <= status < 300:
        return _success(grant, status, body)
    if status in _REJECTED:
        return _rejected(grant, status, body)
    if status in {401, 403}:
        return Reply(
            Outcome.RELEASED,
            refusal=UpstreamKeyRefused(note=f"the upstream answered {status}"),
            upstream_status=status,
            alarm="the upstream refuses the key of this connection",
        )
    if status == 429:
        wait = 5 if retry_after is None else min(max(retry_after, 1), 3600)
        return Reply(Outcome.RELEASED, refusal=UpstreamBusy(retry_after=wait), upstream_status=status)
    return unknown(grant, f"the upstream answered {status}", status)


def unknown(grant: Grant, note: str, status: int | None = None) -> Reply:
    """Say that nobody knows what came of a call that was sent, or that it brought nothing if it was only to look."""
    outcome = Outcome.UNKNOWN if grant.entitlement.operation.creates else Outcome.RELEASED
    return Reply(outcome, refusal=lost(grant, note), upstream_status=status)


def lost(grant: Grant, note: str) -> Refusal:
    """Return what a caller is told of such a call: whether to try again, and what may come of it."""
    if not grant.entitlement.operation.creates:
        return UpstreamFailed(note=note, retry_after=5)
    # Without a key nobody could send the same call again.
    if grant.resend_seconds and grant.ledger_key is not None:
        return OutcomePending(note=note, retry_after=5)
    return OutcomeUnknown(note=note)


def in_doubt(grant: Grant, reply: Reply) -> Reply:
    """Say what ``reply`` means of a call that was sent before, whose outcome is not known.

    That this send created nothing says nothing of the earlier one.
    """
    if reply.outcome is not Outcome.RELEASED or not grant.entitlement.operation.creates:
        return reply
    note = reply.refusal.reason if reply.refusal is not None else None
    return replace(
        unknown(grant, f"sent before, and now {note}", reply.upstream_status), reached=reply.reached, alarm=reply.alarm
    )


def _success(grant: Grant, status: int, body: bytes) -> Reply:
    entitlement = grant.entitlement
    answer, trimmed = fields.read(body, entitlement)
    if answer.get("object") != entitlement.operation.answers:
        return unknown(grant, f"the upstream answered {status} without {entitlement.operation.answers} in JSON", status)
    created = answer.get("id")
    if not isinstance(created, str) or not created:
        return unknown(grant, f"the upstream answered {status} without an id", status)
    spent, alarm = _spent(grant.budget, answer)
    return Reply(
        Outcome.SUCCEEDED,
        answer=trimmed,
        upstream_status=status,
        created=created if entitlement.operation.creates and _ID.fullmatch(created) else None,
        spent=spent,
        alarm=alarm,
    )


def _spent(budget: Budget | None, answer: Mapping[str, Any]) -> tuple[int, str | None]:
    """Return what an invoice counts against a budget, and what an operator must know of one that cannot be counted."""
    if budget is None:
        return 0, None
    amount = answer.get("amount_due")
    if answer.get("currency") != budget.currency or not isinstance(amount, int) or isinstance(amount, bool):
        return 0, "an invoice was created that the caller's budget does not count: another currency, or no amount"
    return min(max(amount, 0), MAX_SPENT), None


def _rejected(grant: Grant, status: int, body: bytes) -> Reply:
    answer = fields.decoded(body)
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict) and error.get("type") == "idempotency_error":
        # The key went out before with another form, as it does where the policy's fixed values have changed since.
        return unknown(grant, "the upstream knows the key with another form", status)
    code = error.get("code") if isinstance(error, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    code = code if isinstance(code, str) and code in _CODES else None
    param = param if isinstance(param, str) and param in grant.parameters else None
    said = _CODES[code] if code else _REJECTED[status]
    nothing = " Nothing was created." if grant.entitlement.operation.creates else ""
    detail = f"{said}{f' ({param})' if param else ''}.{nothing}"
    return Reply(
        Outcome.REJECTED,
        refusal=UpstreamRejected(status, detail, code=code, parameter=param),
        upstream_status=status,
    )
