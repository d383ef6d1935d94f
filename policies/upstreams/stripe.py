"""Stripe's own API, v1: a bearer key, a pinned version, and an idempotency key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from policies import fields, outcomes
from policies.dialect import FORM, Dialect, KeyPlace, Outgoing, Setting
from policies.idempotency import upstream_key
from policies.model import Outcome
from policies.outcomes import Said

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Grant, Step
    from policies.outcomes import Reply

#: The version that the catalogue of ``policies.operations`` was made from.
VERSION: Final = "2026-05-27.dahlia"

#: Stripe's error codes that a call can get, in words for the caller. Any other code is not passed on: an upstream's
#: text may contain anything, the key included.
CODES: Final = {
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

_HEARD: Final = frozenset({b"stripe-should-retry", b"request-id"})
_WORDS: Final = {"true": True, "false": False}
#: docs.stripe.com/keys: secret and restricted keys.
_KEY = re.compile(r"(?:sk|rk)_(live|test)_.*")
_REQUEST_ID = re.compile(r"req_[A-Za-z0-9_]{1,64}")


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
        headers = {"Accept": "application/json", "Stripe-Version": connection.settings["version"]}
        if "account" in connection.settings:
            headers["Stripe-Account"] = connection.settings["account"]
        url = f"{connection.origin}/v1/{operation.path.format_map(grant.parameters)}"
        body = None
        if operation.repeatable:
            query = grant.form.decode("ascii")
            url = f"{url}?{query}" if query else url
        else:
            headers["Content-Type"] = FORM
            headers["Idempotency-Key"] = upstream_key(step.name)
            body = grant.form
        return Outgoing(operation.method, url, KeyPlace.BEARER, headers, body, _HEARD, private=connection.private)

    def judge(self, grant: Grant, step: Step, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """See :class:`policies.dialect.Dialect`. Stripe's documentation says to obey ``Stripe-Should-Retry``."""
        reply = outcomes.judge(grant, step, status, headers, body, said)
        again = _WORDS.get(headers.get("stripe-should-retry", ""), reply.again)
        named = headers.get("request-id", "")
        return replace(
            reply,
            again=again and reply.outcome is not Outcome.SUCCEEDED,
            upstream_request=named if _REQUEST_ID.fullmatch(named) else None,
        )


def mode_of(key: str) -> str | None:
    """Return ``live`` or ``test`` as one of Stripe's keys says by its prefix, None for any other key."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


def said(body: bytes) -> Said:
    """Read a refusal as docs.stripe.com/api/errors describes it. Only known values are passed on."""
    answer = fields.decoded(body)
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return Said()
    code, parameter = error.get("code"), error.get("param")
    words = CODES.get(code) if isinstance(code, str) else None
    return Said(
        code=code if words is not None else None,
        words=words,
        parameter=parameter if isinstance(parameter, str) else None,
        sent_before=error.get("type") == "idempotency_error",
    )


DIALECT: Final = Stripe()
