"""Stripe's own API, v1: a bearer key, a pinned version, and an idempotency key."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import msgspec
from msgspec.structs import replace

from policies import fields, forms, lines, outcomes
from policies.dialect import FORM, Approvals, Dialect, KeyPlace, Outgoing, Setting
from policies.idempotency import SHORT, upstream_key
from policies.issuing import Stage
from policies.model import Outcome
from policies.outcomes import STATUSES, Approval, Decision, InvoiceSeen, Means, Reply, Said, currency_of, sum_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Connection, Grant, Step

#: The version that the catalogue of ``policies.operations`` was made from.
VERSION: Final = "2026-10-28.endive"

#: The version of the preview that approvals are read with (docs.stripe.com, changelog of 2026-08-26).
APPROVALS: Final = "2026-08-26.preview"

#: Stripe's error codes that a call can get, in words for the caller. Any other code is not passed on: an upstream's
#: text may contain anything, the key included.
CODES: Final = {
    "action_blocked": "A rule of the upstream account blocks this, whatever is sent; who runs that account can lift it",
    "resource_missing": "The upstream has no such object",
    "parameter_missing": "The upstream says that a parameter is missing",
    "parameter_unknown": "The upstream does not know a parameter",
    "parameter_invalid_empty": "The upstream does not accept an empty value here",
    "parameter_invalid_integer": "The upstream requires a whole number here",
    "parameter_invalid_string_blank": "The upstream does not accept a blank value here",
    "parameter_invalid_string_empty": "The upstream does not accept an empty value here",
    "parameters_exclusive": "The upstream does not accept these parameters together",
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
    "payment_method_invalid_parameter": "The payment method does not accept this parameter",
    "taxes_calculation_failed": "Tax could not be worked out",
}

_HEARD: Final = frozenset({b"stripe-should-retry", b"request-id", b"idempotent-replayed", b"idempotency-key"})
#: docs.stripe.com/api/errors: the types of a refusal that had no effect; also as a library's classes are spelt, which
#: some that forward to Stripe pass on.
_BY_TYPE: Final = {
    **dict.fromkeys(
        ("invalid_request_error", "card_error", "StripeInvalidRequestError", "StripeCardError"), Means.REFUSED
    ),
    **dict.fromkeys(("idempotency_error", "StripeIdempotencyError"), Means.OTHER_FORM),
}
#: Codes that say more than their type.
_BY_CODE: Final = {
    "action_blocked": Means.BLOCKED,
    "lock_timeout": Means.LOCKED,
    # A call under the same key is under way, whatever type comes with it.
    "idempotency_key_in_use": Means.NOTHING,
}
#: The outcomes after which nothing is tried again.
_ENDED: Final = frozenset({Outcome.SUCCEEDED, Outcome.FREED, Outcome.REJECTED})
#: docs.stripe.com, "The Approval Request object" (public preview).
_APPROVAL: Final = r"(?:apreq|areq)_[A-Za-z0-9_]{1,64}"
#: In a stamp, which somebody else may have written.
_GENERATION: Final = r"[0-9]{1,6}"
_ID: Final = r"[a-z]{2,8}_[A-Za-z0-9]{1,64}"
#: Its states that end it. Any other still waits; *approved* is not carried out yet.
_DECISIONS: Final = {
    **dict.fromkeys(("succeeded", "execution_succeeded"), Decision.DONE),
    **dict.fromkeys(("rejected", "canceled"), Decision.REFUSED),
    **dict.fromkeys(("expired", "failed", "execution_failed"), Decision.LAPSED),
}
_LOOK: Final = r"https://dashboard\.stripe\.com/[A-Za-z0-9/_.?=&%-]{1,200}"
_WORDS: Final = {"true": True, "false": False}
#: docs.stripe.com/keys: secret and restricted keys.
_KEY: Final = r"(?:sk|rk)_(live|test)_.*"
_REQUEST_ID: Final = r"req_[A-Za-z0-9_]{1,64}"


class _Approvals(Approvals):
    """See :class:`policies.dialect.Approvals`."""

    def asked(self, grant: Grant, name: str) -> Outgoing:
        """See :class:`policies.dialect.Approvals`."""
        connection = grant.entitlement.connection
        return _look(connection, f"/v2/core/approval_requests/{name}", {"Stripe-Version": APPROVALS})

    def decided(self, status: int, body: bytes) -> Approval:
        """See :class:`policies.dialect.Approvals`. A state that is not known here still waits."""
        answer = fields.decoded(body) if status == 200 else None
        if not isinstance(answer, dict) or not isinstance(answer.get("status"), str):
            return Approval()
        decision = _DECISIONS.get(answer["status"], Decision.WAITS)
        if decision is Decision.WAITS:
            return Approval(look=_text(_LOOK, answer.get("dashboard_url")))
        if decision is not Decision.DONE:
            return Approval(decision)
        told: Any = answer.get("status_details")
        for name in ("succeeded", "result"):
            told = told.get(name) if isinstance(told, dict) else None
        created = _text(_ID, told.get("id")) if isinstance(told, dict) else None
        return Approval(decision, created) if created is not None else Approval()

    def found(self, grant: Grant, name: str) -> Outgoing:
        """See :class:`policies.dialect.Approvals`."""
        return _look(grant.entitlement.connection, f"/v1/{grant.entitlement.operation.path.partition('/')[0]}/{name}")

    def shown(self, grant: Grant, status: int, body: bytes) -> tuple[int, bytes]:
        """See :class:`policies.dialect.Approvals`. A draft that is there still was not deleted."""
        if not grant.entitlement.operation.idempotent:
            return status, body
        return (200, _deleted(grant)) if status == 404 else (status, b"{}")


class Stripe(Dialect):
    """See :class:`policies.dialect.Dialect`."""

    id = "stripe"
    title = "Stripe"
    origin = "https://api.stripe.com"
    settings = {  # noqa: RUF012 - a constant
        "version": Setting(
            r"20[0-9]{2}-[0-9]{2}-[0-9]{2}(\.[a-z]{1,32})?",
            f"write one of Stripe's API versions, such as {VERSION}",
            default=VERSION,
        ),
        "account": Setting(r"acct_[A-Za-z0-9]{1,64}", "write a connected account, such as acct_1032D82eZvKYlo2C"),
    }
    account = "account"
    approvals = _Approvals()
    #: docs.stripe.com/connect/authentication; the second is ``stripe_context`` in Stripe's SDKs.
    account_headers = ("Stripe-Account", "Stripe-Context")
    #: docs.stripe.com/api/idempotent_requests: a key may be removed once it is at least 24 hours old.
    deduplicates = 24 * 3600

    def mode_of(self, key: str) -> str | None:
        """See :class:`policies.dialect.Dialect`."""
        return mode_of(key)

    def request(self, grant: Grant, step: Step) -> Outgoing:
        """See :class:`policies.dialect.Dialect`.

        A call without an idempotency key gets one derived from the admission's owner, so that it can be retried within
        the call.
        """
        connection, operation = grant.entitlement.connection, grant.entitlement.operation
        if step.stage:
            return _stage(grant, step)
        headers = _headers(connection)
        url = f"{connection.origin}/v1/{operation.path.format_map(grant.parameters)}"
        body = None
        if operation.bodyless:
            query = grant.form.decode("ascii")
            url = f"{url}?{query}" if query else url
        else:
            headers["Content-Type"] = FORM
            headers["Idempotency-Key"] = upstream_key(step.name, step.generation)
            body = grant.form
        return Outgoing(operation.method, url, KeyPlace.BEARER, headers, body, _HEARD, private=connection.private)

    def judge(self, grant: Grant, step: Step, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """See :class:`policies.dialect.Dialect`.

        Stripe's documentation says to obey ``Stripe-Should-Retry``. Stripe repeats a request's ``Idempotency-Key`` in
        its answer, a refusal too, so one with another key, or with one where none was sent, is the answer to another
        call.
        """
        sent = None if grant.entitlement.operation.bodyless else _key(step)
        understood = said(status, headers, body)
        if understood is not None and step.doubt and status == 404 and grant.entitlement.operation.idempotent:
            # An earlier try of this call has deleted it.
            understood, body = None, _deleted(grant)
        if headers.get("idempotency-key", sent) != sent:
            reply = outcomes.stray(grant, "Idempotency-Key", status)
        elif step.stage and understood is None:
            reply = _seen(grant, step, status, headers, body)
        else:
            reply = outcomes.judge(grant, step, status, headers, body, understood)
        again = _WORDS.get(headers.get("stripe-should-retry", ""), reply.again) or reply.stray
        named = headers.get("request-id", "")
        return replace(
            reply,
            again=again and not reply.mute and reply.outcome not in _ENDED,
            upstream_request=named if re.fullmatch(_REQUEST_ID, named) else None,
        )


def _deleted(grant: Grant) -> bytes:
    """Return what Stripe answers once it has deleted the draft of a call."""
    return msgspec.json.encode({"id": grant.parameters["invoice"], "object": "invoice", "deleted": True})


# ---------------------------------------------------------------- the requests of a whole invoice

#: docs.stripe.com/api/invoices. A GET and a DELETE are idempotent by themselves and have no key.
_STAGES: Final = {
    Stage.FIND: ("GET", "/v1/invoices"),
    Stage.CREATE: ("POST", "/v1/invoices"),
    Stage.LINES: ("POST", "/v1/invoices/{id}/add_lines"),
    Stage.LOOK: ("GET", "/v1/invoices/{id}"),
    Stage.COUNT: ("GET", "/v1/invoices/{id}/lines?limit=100"),
    Stage.FINALIZE: ("POST", "/v1/invoices/{id}/finalize"),
    Stage.SEND: ("POST", "/v1/invoices/{id}/send"),
    Stage.DELETE: ("DELETE", "/v1/invoices/{id}"),
}
#: Parameters that do not go with the creation of the draft.
_LATER: Final = ("lines", "send", "auto_advance")


def _stage(grant: Grant, step: Step) -> Outgoing:
    """Return one request of a whole invoice."""
    connection = grant.entitlement.connection
    method, path = _STAGES[Stage(step.stage)]
    headers, body = _headers(connection), None
    if method == "POST":
        headers |= {"Content-Type": FORM, "Idempotency-Key": _key(step) or ""}
        body = forms.encode(_form(grant, step))
    url = f"{connection.origin}{path.format(id=step.id)}"
    if step.stage == Stage.FIND:
        url += f"?{urlencode({'customer': grant.parameters['customer'], 'limit': 100})}"
    return Outgoing(method, url, KeyPlace.BEARER, headers, body, _HEARD, private=connection.private)


def _form(grant: Grant, step: Step) -> dict[str, str]:
    """Return what one request of a whole invoice says.

    The draft holds nothing but what was asked for: no items that wait for the customer's next invoice, no discount of
    the customer's own, and nothing that finalizes it by itself.
    """
    parameters = grant.parameters
    match step.stage:
        case Stage.CREATE:
            draft = {path: value for path, value in parameters.items() if path.partition("[")[0] not in _LATER}
            if not any(path.partition("[")[0] == "discounts" for path in draft):
                draft["discounts"] = ""
            draft |= {"auto_advance": "false", "pending_invoice_items_behavior": "exclude"}
            return {**draft, f"metadata[{lines.STAMP}]": f"{step.name[:SHORT]}.{step.generation}"}
        case Stage.LINES:
            asked = lines.asked(parameters)
            complete = f"{asked.count}:{asked.total if asked.total is not None else ''}"
            return {**lines.form(parameters), f"invoice_metadata[{lines.COMPLETE}]": complete}
        case Stage.FINALIZE:
            return {"auto_advance": parameters.get("auto_advance", "false")} | _expanded(grant)
    return _expanded(grant)


def _expanded(grant: Grant) -> dict[str, str]:
    """Return what one that changes an invoice wants to see of it; a whole invoice says so when it is created."""
    if grant.entitlement.operation.whole:
        return {}
    return {path: value for path, value in grant.parameters.items() if path.startswith("expand[")}


def _key(step: Step) -> str | None:
    if step.stage and _STAGES[Stage(step.stage)][0] != "POST":
        return None
    return upstream_key(step.name, step.generation, "" if step.stage == Stage.CREATE else step.stage)


def _seen(grant: Grant, step: Step, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    """Judge a success of one request of a whole invoice, and read what it shows of the invoice."""
    kept = headers.get("idempotent-replayed") == "true"
    answer = fields.decoded(body)
    if not isinstance(answer, dict):
        return outcomes.unknown(grant, f"the upstream answered {status} without JSON", status)
    if step.stage in {Stage.COUNT, Stage.FIND}:
        data, more = answer.get("data"), answer.get("has_more") is True
        if answer.get("object") != "list" or not isinstance(data, list):
            return outcomes.unknown(grant, f"the upstream answered {status} without a list", status)
        if step.stage == Stage.FIND:
            generation, found = min((one for one in map(partial(_stamped, step), data) if one), default=(0, None))
            seen = InvoiceSeen("", more=more)
            return Reply(Outcome.SUCCEEDED, upstream_status=status, created=found, generation=generation, seen=seen)
        # No invoice of ours has more lines than one answer of these.
        return Reply(Outcome.SUCCEEDED, upstream_status=status, seen=InvoiceSeen("draft", lines=len(data) + more))
    if step.id is not None and answer.get("id") != step.id:
        return outcomes.stray(grant, "id", status)
    if answer.get("deleted") is True:
        return Reply(Outcome.SUCCEEDED, upstream_status=status, seen=InvoiceSeen("deleted"))
    reply = outcomes.judge(grant, step, status, headers, body, None)
    return replace(reply, kept=kept, seen=_of(answer)) if reply.outcome is Outcome.SUCCEEDED else reply


def _stamped(step: Step, invoice: Any) -> tuple[int, str] | None:
    """Return the generation and the id of an invoice of a list if it is of this call, of this generation or later."""
    metadata = invoice.get("metadata") if isinstance(invoice, dict) else None
    stamp = metadata.get(lines.STAMP) if isinstance(metadata, dict) else None
    name, _, generation = stamp.partition(".") if isinstance(stamp, str) else ("", "", "")
    if name != step.name[:SHORT] or re.fullmatch(_GENERATION, generation) is None or int(generation) < step.generation:
        return None
    found = _text(_ID, invoice.get("id"))
    return (int(generation), found) if found is not None else None


def _of(answer: Mapping[str, Any]) -> InvoiceSeen:
    listed = answer.get("lines")
    listed = listed if isinstance(listed, dict) else {}
    data, status = listed.get("data"), answer.get("status")
    return InvoiceSeen(
        status if isinstance(status, str) and status in STATUSES else "",
        currency=currency_of(answer.get("currency")),
        subtotal=sum_of(answer.get("subtotal")),
        total=sum_of(answer.get("total")),
        due=sum_of(answer.get("amount_due")),
        paid=sum_of(answer.get("amount_paid")),
        email=bool(answer.get("customer_email")),
        lines=len(data) if isinstance(data, list) else None,
        more=listed.get("has_more") is True,
    )


def _headers(connection: Connection) -> dict[str, str]:
    headers = {"Accept": "application/json", "Stripe-Version": connection.settings["version"]}
    if "account" in connection.settings:
        headers["Stripe-Account"] = connection.settings["account"]
    return headers


def _look(connection: Connection, path: str, more: Mapping[str, str] | None = None) -> Outgoing:
    headers = {**_headers(connection), **(more or {})}
    url = f"{connection.origin}{path}"
    return Outgoing("GET", url, KeyPlace.BEARER, headers, None, _HEARD, private=connection.private)


def mode_of(key: str) -> str | None:
    """Return ``live`` or ``test`` as one of Stripe's keys says by its prefix, None for any other key."""
    match = re.fullmatch(_KEY, key)
    return match[1] if match else None


def said(status: int, headers: Mapping[str, str], body: bytes) -> Said | None:
    """Read an answer as docs.stripe.com/api/errors describes it; None for a success. Only known values are passed on.

    The code is looked at before the status: which status comes with an approval is not documented.
    """
    fine = 200 <= status < 300
    if fine and b"approval_re" not in body:
        return None
    answer = fields.decoded(body)
    error = answer.get("error") if isinstance(answer, dict) else None
    kept = headers.get("idempotent-replayed") == "true"
    if not isinstance(error, dict):
        return None if fine else Said(Means.FOREIGN if answer is None else Means.NOTHING, kept=kept)
    code, kind, request, parameter = (error.get(name) for name in ("code", "type", "approval_request", "param"))
    code, kind = code if isinstance(code, str) else "", kind if isinstance(kind, str) else ""
    if code == "approval_required" or isinstance(request, dict):
        named = request if isinstance(request, dict) else {}
        approval, look = _text(_APPROVAL, named.get("id")), _text(_LOOK, named.get("dashboard_url"))
        return Said(Means.WAITS, approval=approval, look=look)
    return Said(
        _BY_CODE.get(code) or _BY_TYPE.get(kind, Means.NOTHING),
        code=code if code in CODES else None,
        words=CODES.get(code),
        parameter=parameter if isinstance(parameter, str) else None,
        kept=kept,
    )


def _text(pattern: str, value: object) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(pattern, value) else None


DIALECT: Final = Stripe()
