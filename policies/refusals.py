"""Every way to say no.

One class a reason. Each has a stable ``reason``, an HTTP status, a title, and one plain sentence that the
caller may read. What only the operator may read goes into ``note``, which reaches the record and nobody else.

::

    Refusal
    ├── BadCall                      what arrived cannot be a call
    │   ├── PathUnknown              404
    │   ├── MethodNotAllowed         405
    │   ├── QueryMalformed           400
    │   ├── TargetTooLong            414
    │   ├── HeaderMalformed          400
    │   ├── MediaTypeUnsupported     415
    │   ├── BodyTooLarge             413
    │   ├── BodyIncomplete           400
    │   ├── BodyTimeout              408
    │   └── BodyMalformed            400
    ├── Unauthenticated              who calls is not known
    │   ├── CredentialMissing        401
    │   ├── CredentialsConflict      401
    │   ├── CredentialUnknown        401  also expired or revoked: the answers are alike
    │   ├── TokenNotAccepted         401  whatever is wrong with it: the answers are alike
    │   └── WebhookNotVerified       401  the same
    ├── PolicyRefusal                the policy said no
    │   ├── ConnectionNotGranted     403  also a connection that does not exist: the answers are alike
    │   ├── ParameterNotGranted      400
    │   ├── ParameterInvalid         400
    │   ├── ParameterMissing         400
    │   ├── IdempotencyKeyMissing    400
    │   ├── IdempotencyKeyInvalid    400
    │   ├── LimitReached             429
    │   ├── CeilingReached           429
    │   └── BudgetSpent              429
    ├── LedgerRefusal                the same idempotency key was used before
    │   ├── KeyInUse                 409
    │   ├── KeyReused                422
    │   └── OutcomeStillUnknown      424
    ├── Unavailable                  we cannot serve it now; nothing was sent
    │   ├── IdentityUnavailable      503
    │   ├── SecretUnavailable        503
    │   ├── StoreUnavailable         503
    │   └── RecordUnavailable        503
    ├── UpstreamRefusal              the upstream said no, or nothing that can be trusted
    │   ├── UpstreamRejected         400, 402 or 404, as the upstream answered
    │   ├── UpstreamUnreachable      502  nothing was sent
    │   ├── UpstreamFailed           502  nothing was to be created
    │   ├── UpstreamBusy             503
    │   ├── UpstreamKeyRefused       503
    │   └── OutcomeUnknown           424  trying again would bring nothing
    │       └── OutcomePending       504  trying again with the same key is safe, and settles it
    └── Unforeseen                   500  an error of ours; before the send, so nothing was sent
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Standing

#: RFC 9457 wants a URI that names the kind of problem and need not resolve.
TYPE_PREFIX: Final = "urn:countersign:refusal:"


class Refusal(Exception):
    """A no. ``detail`` replaces the class's sentence where a more exact one is known."""

    status: int = 500
    reason: ClassVar[str] = "refused"
    title: ClassVar[str] = "Refused"
    sentence: ClassVar[str] = "The call was refused."
    decided_by: ClassVar[str] = "countersign"
    """Who said no: ``policy``, ``upstream``, or ``countersign`` itself."""

    def __init__(
        self,
        detail: str | None = None,
        *,
        note: str | None = None,
        parameter: str | None = None,
        retry_after: int | None = None,
        standings: tuple[Standing, ...] = (),
    ) -> None:
        super().__init__(self.reason)
        self.detail = detail or self.sentence
        self.note = note
        self.parameter = parameter
        self.retry_after = retry_after
        self.standings = standings

    def problem(self, audit_id: str) -> dict[str, object]:
        """The body of the answer, as RFC 9457 ``application/problem+json`` has it."""
        problem: dict[str, object] = {
            "type": TYPE_PREFIX + self.reason,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
            "decided_by": self.decided_by,
            "audit_id": audit_id,
        }
        if self.parameter is not None:
            problem["parameter"] = self.parameter
        if self.retry_after is not None:
            problem["retry_after"] = self.retry_after
        return problem

    @property
    def headers(self) -> dict[str, str]:
        """Headers that this answer must carry beyond the usual ones."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


#: Stripe's clients wait this long at most before they repeat a call, so that a longer wait is no reason to.
PATIENCE: Final = 5


def as_stripe_error(problem: Mapping[str, Any]) -> tuple[int, dict[str, object], bool]:
    """Say a refusal as Stripe would, from its problem: the status, the body, and whether its client should repeat it.

    Its clients choose their exception by status and ``type``; docs.stripe.com/api/errors. What arrived and cannot be a
    call is a plain 400 there, and so is a key that was used before.
    """
    status, reason = problem["status"], problem["reason"]
    reused = reason == KeyReused.reason
    if reused or status in {405, 408, 413, 414, 415}:
        status = 400
    kind = _STRIPE_TYPES.get(status, "api_error")
    error: dict[str, object] = {
        "type": "idempotency_error" if reused or status == 409 else kind,
        "code": problem.get("upstream_code") or str(reason).replace("-", "_"),
        "message": f"{problem['detail']} (audit id {problem['audit_id']})",
        "decided_by": problem["decided_by"],
        "audit_id": problem["audit_id"],
    }
    if "parameter" in problem:
        error["param"] = problem["parameter"]
    return status, {"error": error}, 0 < problem.get("retry_after", 0) <= PATIENCE


_STRIPE_TYPES: Final = {
    **dict.fromkeys((400, 401, 403, 404), "invalid_request_error"),
    402: "card_error",
    429: "rate_limit_error",
}


# ---------------------------------------------------------------- what arrived cannot be a call


class BadCall(Refusal):
    """What arrived cannot be a call."""

    status = 400


class PathUnknown(BadCall):
    """No operation lives at this path."""

    status = 404
    reason = "path-unknown"
    title = "Nothing is here"
    sentence = (
        "There is nothing at this path. Invoices live at /stripe/invoices/ and, for Stripe's own clients, at "
        "/NAME/CONNECTION_NAME/v1/invoices."
    )


class MethodNotAllowed(BadCall):
    """The path exists, the method does not."""

    status = 405
    reason = "method-not-allowed"
    title = "Use another method"
    sentence = "Invoices are created with POST; no other method does anything here."

    def __init__(self, allowed: str = "POST") -> None:
        super().__init__(None if allowed == "POST" else f"Only {allowed} does anything here.")
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110, 15.5.6: a 405 says which methods are allowed."""
        return {"Allow": self.allowed}


class QueryMalformed(BadCall):
    """The query string is not exactly what the operation takes."""

    reason = "query-malformed"
    title = "The address is not complete"
    sentence = "Write name and connection_name once each in the address: ?name=ft-4&connection_name=stripe-1."


class TargetTooLong(BadCall):
    """The request target is longer than any real one."""

    status = 414
    reason = "target-too-long"
    title = "The address is too long"
    sentence = "The address is too long. Parameters go in the body, not in the address."


class HeaderMalformed(BadCall):
    """A header that we read is not what it must be."""

    reason = "header-malformed"
    title = "A header is not valid"
    sentence = "A header is not valid."


class MediaTypeUnsupported(BadCall):
    """The body is neither a form nor JSON, or is compressed."""

    status = 415
    reason = "media-type-unsupported"
    title = "Send a form or JSON"
    sentence = (
        "Send the body as application/x-www-form-urlencoded or as application/json, in UTF-8 and not compressed, "
        "and say which in Content-Type."
    )


class BodyTooLarge(BadCall):
    """The body is over the cap."""

    status = 413
    reason = "body-too-large"
    title = "The body is too large"
    sentence = "The body is too large: 256 KB at most."


class BodyIncomplete(BadCall):
    """The connection ended before the body did."""

    reason = "body-incomplete"
    title = "The body is not complete"
    sentence = "The body ended before the length it announced. Send the call again."


class BodyTimeout(BadCall):
    """The body did not arrive in time."""

    status = 408
    reason = "body-timeout"
    title = "The body took too long"
    sentence = "The body did not arrive in time. Send the call again, and check that Content-Length is right."


class BodyMalformed(BadCall):
    """The body cannot be read as what it claims to be."""

    reason = "body-malformed"
    title = "The body cannot be read"
    sentence = "The body cannot be read."


# ---------------------------------------------------------------- who calls is not known


class Unauthenticated(Refusal):
    """Who calls is not known."""

    status = 401

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110, 15.5.2: a 401 names a scheme that would do."""
        return {"WWW-Authenticate": 'Bearer realm="countersign"'}


class CredentialMissing(Unauthenticated):
    """No key at all."""

    reason = "credential-missing"
    title = "A key is missing"
    sentence = "Send your caller key in the x-api-key header."


class CredentialsConflict(Unauthenticated):
    """More than one credential, so it is not clear who calls."""

    reason = "credentials-conflict"
    title = "Two credentials were sent"
    sentence = (
        "Send one credential and send it once: a caller key in x-api-key or in Authorization, a Google token, or a "
        "signed webhook."
    )


class CredentialUnknown(Unauthenticated):
    """A key nobody has, or has any more."""

    reason = "credential-unknown"
    title = "The key is not known"
    sentence = "This caller key is not known, or no longer valid. Ask whoever runs Countersign for a new one."


class TokenNotAccepted(Unauthenticated):
    """A Google token that proves nobody the policy knows."""

    reason = "token-not-accepted"
    title = "The Google token is not accepted"
    sentence = (
        "This Google token is not accepted. Send a fresh ID token for this address, of an account that whoever runs "
        "Countersign has named in the policy."
    )


class WebhookNotVerified(Unauthenticated):
    """A webhook whose signature proves nobody the policy knows."""

    reason = "webhook-not-verified"
    title = "The webhook's signature is not right"
    sentence = (
        "The webhook's signature is not right, or older than five minutes. Sign each attempt anew, over the body "
        "exactly as it is sent."
    )


# ---------------------------------------------------------------- the policy said no


class PolicyRefusal(Refusal):
    """The policy said no."""

    status = 400
    decided_by = "policy"


class ConnectionNotGranted(PolicyRefusal):
    """The caller has no grant for it, whether or not it exists."""

    status = 403
    reason = "connection-not-granted"
    title = "You may not use this connection"
    sentence = (
        "You may not use this connection. Check name and connection_name, or ask whoever runs Countersign to grant it "
        "to you."
    )


class ParameterNotGranted(PolicyRefusal):
    """A parameter that this caller may not send, whether or not it exists."""

    reason = "parameter-not-granted"
    title = "You may not send this parameter"
    sentence = "You may not send this parameter."


class ParameterInvalid(PolicyRefusal):
    """A value outside the catalogue's or the policy's bounds."""

    reason = "parameter-invalid"
    title = "A value is not allowed"
    sentence = "A value is not allowed."


class ParameterMissing(PolicyRefusal):
    """A parameter that must be there and is not."""

    reason = "parameter-missing"
    title = "A parameter is missing"
    sentence = "A parameter is missing."


class IdempotencyKeyMissing(PolicyRefusal):
    """The grant wants a key for every call."""

    reason = "idempotency-key-missing"
    title = "An idempotency key is missing"
    sentence = (
        "Send an Idempotency-Key header: your own name for this invoice, such as the order number. It keeps a "
        "repeated call from raising a second invoice."
    )


class IdempotencyKeyInvalid(PolicyRefusal):
    """The key is not something a ledger can hold."""

    reason = "idempotency-key-invalid"
    title = "The idempotency key is not valid"
    sentence = "The idempotency key must be sent once: 1 to 255 printable ASCII characters without a comma."


class LimitReached(PolicyRefusal):
    """The caller's own limit."""

    status = 429
    reason = "limit-reached"
    title = "Too many calls"
    sentence = "You have reached your limit. Nothing was sent; try again later."


class CeilingReached(PolicyRefusal):
    """The connection's ceiling over all callers."""

    status = 429
    reason = "ceiling-reached"
    title = "The connection is busy"
    sentence = "This connection is busy. Nothing was sent; try again in a moment."


class BudgetSpent(PolicyRefusal):
    """The invoices that the caller has created come to its budget."""

    status = 429
    reason = "budget-spent"
    title = "Your budget is spent"
    sentence = "The invoices you have created come to your budget. Nothing was sent; try again later."


# ---------------------------------------------------------------- the same key was used before


class LedgerRefusal(Refusal):
    """The same idempotency key was used before."""

    status = 409


class KeyInUse(LedgerRefusal):
    """A call with this key is still running."""

    reason = "idempotency-key-in-use"
    title = "The same call is still running"
    sentence = "A call with this idempotency key is still running. Try again in a moment to get its answer."


class KeyReused(LedgerRefusal):
    """The key belongs to a call with other parameters."""

    status = 422
    reason = "idempotency-key-reused"
    title = "This key belongs to another call"
    sentence = (
        "This idempotency key was used for a call with other parameters. Use a new key for a new invoice, or send "
        "the same parameters to get the first answer again."
    )


class OutcomeStillUnknown(LedgerRefusal):
    """What came of the first call with this key is not known, and it is not sent again."""

    status = 424
    reason = "outcome-unknown"
    title = "It is not known whether the invoice exists"
    sentence = (
        "An earlier call with this idempotency key was sent and its answer never came, so the invoice may exist. "
        "It was not sent again, and there is nothing for you to do: another key might raise a second invoice. Whoever "
        "runs Countersign is told, and can find the call by its audit id."
    )
    decided_by = "upstream"


# ---------------------------------------------------------------- we cannot serve it now


class Unavailable(Refusal):
    """We cannot serve it now; nothing was sent."""

    status = 503


class IdentityUnavailable(Unavailable):
    """What a token or a signature is checked with cannot be had."""

    reason = "identity-unavailable"
    title = "Who calls cannot be checked"
    sentence = "Who calls cannot be checked just now. Nothing was sent; try again in a moment."


class SecretUnavailable(Unavailable):
    """The upstream's key cannot be had."""

    reason = "secret-unavailable"
    title = "The upstream key is not available"
    sentence = "The key for this connection is not available just now. Nothing was sent; try again in a moment."


class StoreUnavailable(Unavailable):
    """Limits and the ledger cannot be kept."""

    reason = "store-unavailable"
    title = "Calls cannot be counted"
    sentence = "Calls cannot be counted just now. Nothing was sent; try again in a moment."


class RecordUnavailable(Unavailable):
    """The decision cannot be put on record: no record, no call."""

    reason = "record-unavailable"
    title = "The call cannot be recorded"
    sentence = "The call cannot be recorded just now. Nothing was sent; try again in a moment."


# ---------------------------------------------------------------- the upstream said no


class UpstreamRefusal(Refusal):
    """The upstream said no, or nothing that can be trusted."""

    status = 502
    decided_by = "upstream"


class UpstreamRejected(UpstreamRefusal):
    """The upstream refused the call for good: 400, 402 or 404, passed on with safe words only."""

    status = 400
    reason = "upstream-rejected"
    title = "The upstream refused the invoice"
    sentence = "The upstream refused the invoice. Nothing was created."

    def __init__(self, status: int, detail: str, *, code: str | None, parameter: str | None) -> None:
        super().__init__(detail, parameter=parameter)
        self.status = status
        self.code = code

    def problem(self, audit_id: str) -> dict[str, object]:
        """With the upstream's own code where it is a well-known one."""
        problem = super().problem(audit_id)
        if self.code is not None:
            problem["upstream_code"] = self.code
        return problem


class UpstreamUnreachable(UpstreamRefusal):
    """No connection could be opened, so nothing was sent."""

    reason = "upstream-unreachable"
    title = "The upstream cannot be reached"
    sentence = "The upstream cannot be reached. Nothing was sent; it is safe to try again."


class UpstreamFailed(UpstreamRefusal):
    """A call that creates nothing got no answer that can be read."""

    reason = "upstream-failed"
    title = "The upstream gave no answer"
    sentence = "The upstream gave no answer that can be read. Nothing was changed; it is safe to try again."


class UpstreamBusy(UpstreamRefusal):
    """The upstream's own limit."""

    status = 503
    reason = "upstream-busy"
    title = "The upstream is busy"
    sentence = "The upstream is busy and created nothing. It is safe to try again later."


class UpstreamKeyRefused(UpstreamRefusal):
    """The upstream does not take our key, not even a fresh one."""

    status = 503
    reason = "upstream-key-refused"
    title = "The upstream refused our key"
    sentence = "The upstream refused the key of this connection and created nothing. The operator has been alarmed."


class OutcomeUnknown(UpstreamRefusal):
    """The call was sent, what came of it is not known, and sending it again could raise a second invoice.

    424: the answer failed with the upstream's (RFC 4918, 11.4). Clients repeat a 5xx or a 429 by themselves, and the
    no-code tools put it on a schedule; none does that with a 424, which shows as an error for a person to look at.
    """

    status = 424
    reason = "outcome-unknown"
    title = "It is not known whether the invoice exists"
    sentence = (
        "The call was sent and no answer came that can be trusted, so the invoice may exist. There is nothing for you "
        "to do: the same key raises no second invoice, and another key might. Whoever runs Countersign is told, and "
        "can find the call by its audit id."
    )


class OutcomePending(OutcomeUnknown):
    """The same, but the upstream tells a repeated call from a new one, so that sending it again settles it.

    504, which clients and no-code tools repeat by themselves.
    """

    status = 504
    reason = OutcomeUnknown.reason
    sentence = (
        "The call was sent and no answer came that can be trusted, so the invoice may exist. Send the same call again "
        "with the same idempotency key: that is safe, raises no second invoice, and asks the upstream once more."
    )


# ---------------------------------------------------------------- an error of ours


class Unforeseen(Refusal):
    """Anything we did not think of. Fails closed."""

    reason = "unforeseen"
    title = "Something went wrong here"
    sentence = "Something went wrong here, and nothing was sent. Give the audit id to whoever runs Countersign."
