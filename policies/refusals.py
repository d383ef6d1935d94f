"""All refusals.

One class for each reason, with a stable ``reason``, an HTTP status, a title, and one plain sentence for the caller.
``note`` is for the operator: it goes into the record and nowhere else.

::

    Refusal
    ├── BadCall                      the request is not a valid call
    │   ├── NotHttp                  400  only with our own worker, as the next
    │   ├── HeadersTooLarge          431
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
    ├── Unauthenticated              the caller is not known
    │   ├── CredentialMissing        401
    │   ├── CredentialsConflict      401
    │   ├── CredentialUnknown        401  also an expired or revoked key: the answer is the same
    │   ├── TokenNotAccepted         401  whatever is wrong with the token, the answer is the same
    │   └── WebhookNotVerified       401  the same
    ├── PolicyRefusal                the policy said no
    │   ├── CallerPaused             403
    │   ├── ConnectionNotGranted     403  also a connection that does not exist: the answer is the same
    │   ├── AccountNotGranted        400
    │   ├── ParameterNotGranted      400
    │   ├── ParameterInvalid         400
    │   ├── ParameterMissing         400
    │   ├── IdempotencyKeyMissing    400
    │   ├── IdempotencyKeyInvalid    400
    │   ├── TotalNotGranted          422  an invoice that is to be finalized or mailed comes to more than is granted
    │   └── QuotaRefusal             too much in a time
    │       ├── LimitReached         429
    │       ├── CeilingReached       429
    │       └── BudgetSpent          429
    ├── LedgerRefusal                the same idempotency key was used before
    │   ├── KeyInUse                 503  for Stripe's clients a conflict
    │   ├── KeyReused                422
    │   ├── KeyUsedElsewhere         422
    │   └── OutcomeStillUnknown      424
    ├── Unavailable                  we cannot serve it now; nothing was sent
    │   ├── IdentityUnavailable      503
    │   ├── SecretUnavailable        503
    │   ├── StoreUnavailable         503
    │   ├── RecordUnavailable        503
    │   ├── WaitedTooLong            503
    │   └── AskedTooOften            429  too many previews and questions; says nothing of the call
    ├── UpstreamRefusal              the upstream said no, or gave no answer that can be trusted
    │   ├── UpstreamRejected         400, 402 or 404, as the upstream answered
    │   ├── UpstreamUnreachable      503  nothing was sent; for Stripe's clients a bad gateway
    │   ├── UpstreamMisrouted        502  something else answered in its place
    │   ├── UpstreamFailed           502  for a read-only call
    │   ├── UpstreamBusy             503
    │   ├── UpstreamKeyRefused       503
    │   ├── AwaitingApproval         503  a person has to approve it; for Stripe's clients a conflict
    │   ├── ApprovalLapsed           503  nobody did in time
    │   ├── ApprovalRejected         403  a person did not
    │   ├── TotalDiffers             422  the draft was not what was asked for, and is deleted
    │   ├── InvoiceVoided            409  the invoice of this key was raised, and somebody voided it
    │   ├── EmailMissing             422  the customer has no address to mail the invoice to
    │   ├── InvoiceEmpty             422  a draft that asks for nothing is to be finalized
    │   ├── CustomerAmbiguous        422  several customers have the address that one is looked for by
    │   └── OutcomeUnknown           424  a retry would not help
    │       └── OutcomePending       504  a retry with the same key is safe, and settles it
    └── Unforeseen                   500  an internal error before the send, so nothing was sent
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from policies.wording import moment, money, when

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Standing

#: RFC 9457 wants a URI that names the kind of problem and need not resolve.
TYPE_PREFIX: Final = "urn:countersign:refusal:"


class Fault(NamedTuple):
    """One thing that is wrong with a call's parameters."""

    kind: type[PolicyRefusal]
    parameter: str
    detail: str
    """One sentence."""
    accepts: Mapping[str, object]
    """What would pass, in the words of a policy document: ``kind``, ``one_of``, ``max_length``, ``min``, ``prefix``."""

    def told(self) -> dict[str, object]:
        """Return what a problem says of it."""
        said: dict[str, object] = {"parameter": self.parameter, "detail": self.detail, "reason": self.kind.reason}
        if self.accepts:
            said["accepts"] = self.accepts
        return said


class Refusal(Exception):
    """A refusal. ``detail`` replaces the class's sentence where a more exact one is known.

    ``faults`` is all that is wrong with the parameters; ``detail`` and ``parameter`` are about the first of them.
    """

    status: int = 500
    reason: ClassVar[str] = "refused"
    title: ClassVar[str] = "Refused"
    sentence: ClassVar[str] = "The call was refused."
    decided_by: ClassVar[str] = "countersign"
    """Who said no: ``policy``, ``upstream``, or ``countersign`` itself."""

    def __init__(  # noqa: PLR0913 - all but the first are named in the call
        self,
        detail: str | None = None,
        *,
        note: str | None = None,
        parameter: str | None = None,
        retry_after: int | None = None,
        standings: tuple[Standing, ...] = (),
        faults: tuple[Fault, ...] = (),
    ) -> None:
        super().__init__(self.reason)
        self.detail = detail or self.sentence
        self.note = note
        self.parameter = parameter
        self.retry_after = retry_after
        self.standings = standings
        self.faults = faults

    def problem(self, audit_id: str, now: float | None = None) -> dict[str, object]:  # noqa: ARG002 - a subclass's
        """The body of the answer, as RFC 9457 ``application/problem+json`` has it.

        ``now``, in unix seconds, is for refusals that say when to come back. A body that is kept to be told again later
        has none.
        """
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
        if self.faults:
            problem["faults"] = [fault.told() for fault in self.faults]
        return problem

    @property
    def headers(self) -> dict[str, str]:
        """Headers that this answer must carry beyond the usual ones."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


#: Seconds. Stripe's clients wait at most this long before a retry; if the wait is longer, they are told not to retry.
PATIENCE: Final = 5


def as_stripe_error(problem: Mapping[str, Any]) -> tuple[int, dict[str, object], bool]:
    """Translate a refusal's problem for Stripe's clients: the status, the body, and whether they should retry.

    They choose their exception by status and ``type`` (docs.stripe.com/api/errors). There an invalid request is always
    a 400, and so is a reused key. Only that one is an ``idempotency_error``, which is never worth a retry. What others
    are told with 503, since that is the only code that they repeat, has Stripe's own code here.
    """
    reason = problem["reason"]
    status = _STRIPE_STATUSES.get(reason, problem["status"])
    reused = reason == KeyReused.reason
    if reused or status in {405, 408, 413, 414, 415, 431}:
        status = 400
    kind = _STRIPE_TYPES.get(status, "api_error")
    error: dict[str, object] = {
        "type": "idempotency_error" if reused else kind,
        "code": problem.get("upstream_code") or str(reason).replace("-", "_"),
        "message": f"{problem['detail']} (audit id {problem['audit_id']})",
        "decided_by": problem["decided_by"],
        "audit_id": problem["audit_id"],
    }
    if reason == AwaitingApproval.reason:
        error["code"] = "approval_required"  # Stripe's own
    for ours, theirs in _STRIPE_MEMBERS.items():
        if ours in problem:
            error[theirs] = problem[ours]
    return status, {"error": error}, 0 < problem.get("retry_after", 0) <= PATIENCE


#: What Stripe's clients are told with a status of their own. They repeat a 409, and know an invalid request by its 400.
_STRIPE_STATUSES: Final = {
    "idempotency-key-in-use": 409,
    "awaiting-approval": 409,
    "upstream-unreachable": 502,
    **dict.fromkeys(
        ("customer-ambiguous", "email-missing", "invoice-empty", "total-differs", "total-not-granted"), 400
    ),
}
#: Members of a problem that are passed on where there are any, by what Stripe calls them.
_STRIPE_MEMBERS: Final = {"parameter": "param", "help": "doc_url", "replayed": "replayed", "would": "would"}
_STRIPE_TYPES: Final = {
    **dict.fromkeys((400, 401, 403, 404), "invalid_request_error"),
    402: "card_error",
    429: "rate_limit_error",
}


# ---------------------------------------------------------------- the request is not a valid call


class BadCall(Refusal):
    """The request is not a valid call."""

    status = 400


class NotHttp(BadCall):
    """What came cannot be read as HTTP/1.1."""

    reason = "not-http"
    title = "This is not HTTP"
    sentence = (
        "What came cannot be read as a call by HTTP/1.1. Send it with a library for HTTP; if that is set to HTTP/2, "
        "set it to HTTP/1.1. Nothing was sent on."
    )


class HeadersTooLarge(BadCall):
    """The headers are more than the server reads."""

    status = 431
    reason = "headers-too-large"
    title = "The headers are too large"
    sentence = "The headers are too large: 100 of them at most, of 8 KB each and 32 KB in all. Look for a large cookie."


class PathUnknown(BadCall):
    """No operation has this path."""

    status = 404
    reason = "path-unknown"
    title = "Nothing is here"
    sentence = (
        "There is nothing at this path. Invoices are at /stripe/invoices/ and, for Stripe's own clients, at "
        "/NAME/CONNECTION_NAME/v1/invoices."
    )


class MethodNotAllowed(BadCall):
    """The path exists, the method does not."""

    status = 405
    reason = "method-not-allowed"
    title = "Use another method"
    sentence = "This method is not supported here. Use POST to create an invoice."

    def __init__(self, detail: str | None = None, *, allowed: str = "POST") -> None:
        super().__init__(detail)
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110, 15.5.6: a 405 lists the allowed methods."""
        return {"Allow": self.allowed}


class QueryMalformed(BadCall):
    """The query is not exactly what the operation requires."""

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
    """A header that we read is not valid."""

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
    sentence = "The body ended before it was complete. Send the call again."


class BodyTimeout(BadCall):
    """The body did not arrive in time."""

    status = 408
    reason = "body-timeout"
    title = "The body took too long"
    sentence = "The body did not arrive in time. Send the call again, and check that Content-Length is right."


class BodyMalformed(BadCall):
    """The body cannot be read as its content type says."""

    reason = "body-malformed"
    title = "The body cannot be read"
    sentence = "The body cannot be read."


# ---------------------------------------------------------------- the caller is not known


class Unauthenticated(Refusal):
    """The caller is not known."""

    status = 401

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110, 15.5.2: a 401 names a scheme that is accepted."""
        return {"WWW-Authenticate": 'Bearer realm="countersign"'}


class CredentialMissing(Unauthenticated):
    """No credential at all."""

    reason = "credential-missing"
    title = "A key is missing"
    sentence = "Send your caller key in the x-api-key header."


class CredentialsConflict(Unauthenticated):
    """More than one credential, so the caller is ambiguous."""

    reason = "credentials-conflict"
    title = "Two credentials were sent"
    sentence = (
        "Send one credential and send it once: a caller key in x-api-key or in Authorization, a Google token, or a "
        "signed webhook."
    )


class CredentialUnknown(Unauthenticated):
    """An unknown, expired or revoked key."""

    reason = "credential-unknown"
    title = "The key is not known"
    sentence = "This caller key is not known, or no longer valid. Ask the operator of Countersign for a new one."


class TokenNotAccepted(Unauthenticated):
    """A Google token that does not prove a caller of the policy."""

    reason = "token-not-accepted"
    title = "The Google token is not accepted"
    sentence = (
        "This Google token is not accepted. Send a fresh ID token, made for this address, of an account that the "
        "policy names."
    )


class WebhookNotVerified(Unauthenticated):
    """A webhook whose signature does not prove a caller of the policy."""

    reason = "webhook-not-verified"
    title = "The webhook's signature is not valid"
    sentence = (
        "The webhook's signature is not valid, or is older than five minutes. Sign each attempt anew, over the body "
        "exactly as it is sent."
    )


# ---------------------------------------------------------------- the policy said no


class PolicyRefusal(Refusal):
    """The policy said no."""

    status = 400
    decided_by = "policy"


class CallerPaused(PolicyRefusal):
    """The operator has put this caller on hold, replays and previews included."""

    status = 403
    reason = "caller-paused"
    title = "Your access is on hold"
    sentence = (
        "The operator of Countersign has put your access on hold. Nothing was sent. Ask the operator when you can call "
        "again."
    )


class ConnectionNotGranted(PolicyRefusal):
    """The caller has no grant for this connection, whether or not it exists."""

    status = 403
    reason = "connection-not-granted"
    title = "You may not use this connection"
    sentence = (
        "You may not use this connection. Check name and connection_name, or ask the operator of Countersign to grant "
        "it to you."
    )


class AccountNotGranted(PolicyRefusal):
    """A header names another account than the policy does for this connection."""

    reason = "account-not-granted"
    title = "This connection is for another account"
    sentence = (
        "Leave out the Stripe-Account header: the policy alone says for which account this connection is. Nothing was "
        "sent. Ask the operator of Countersign for a connection of the account that you mean."
    )

    def __init__(self, header: str = "Stripe-Account") -> None:
        super().__init__(self.sentence.replace("Stripe-Account", header))


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
    """A required parameter is not there."""

    reason = "parameter-missing"
    title = "A parameter is missing"
    sentence = "A parameter is missing."


class IdempotencyKeyMissing(PolicyRefusal):
    """The grant requires a key for every call."""

    reason = "idempotency-key-missing"
    title = "An idempotency key is missing"
    sentence = (
        "Send an Idempotency-Key header: your own name for this call, such as the order number. It keeps a repeated "
        "call from doing twice what you want once, such as raising an invoice."
    )


class IdempotencyKeyInvalid(PolicyRefusal):
    """The key is not in the accepted form."""

    reason = "idempotency-key-invalid"
    title = "The idempotency key is not valid"
    sentence = "The idempotency key must be 1 to 255 printable ASCII characters without a comma. Send it once."


class TotalNotGranted(PolicyRefusal):
    """An invoice that is to be finalized or mailed comes to more than the grant allows, or is in another currency."""

    status = 422
    reason = "total-not-granted"
    title = "The invoice comes to more than you may raise"
    sentence = "The invoice comes to more than you may raise. Nothing was changed."


class QuotaRefusal(PolicyRefusal):
    """A limit, a ceiling or a budget is full; after ``retry_after`` seconds it has room.

    ``told`` are its numbers, as members of the problem: ``limit`` in ``window`` seconds and what is ``left`` of it, in
    calls or, with a ``currency``, in minor units.
    """

    status = 429

    def __init__(self, detail: str | None = None, *, told: Mapping[str, object] | None = None, **more: Any) -> None:
        super().__init__(detail, **more)
        self.told = told or {}

    def problem(self, audit_id: str, now: float | None = None) -> dict[str, object]:
        """With the numbers, and when to come back: in the sentence, and in ``resets_at`` as RFC 3339 writes it."""
        problem = {**super().problem(audit_id), **self.told}
        if now is not None and self.retry_after is not None:
            problem["detail"] = f"{self.detail} You can call again {when(now, self.retry_after)}."
            problem["resets_at"] = moment(now + self.retry_after)
        return problem


class LimitReached(QuotaRefusal):
    """The caller's own limit."""

    reason = "limit-reached"
    title = "Too many calls"
    sentence = "You have reached your limit. Nothing was sent."


class CeilingReached(QuotaRefusal):
    """The connection's ceiling over all callers. Its numbers are not told: others used it up."""

    reason = "ceiling-reached"
    title = "The connection is busy"
    sentence = "This connection is busy: its callers together have reached what it may take. Nothing was sent."


class BudgetSpent(QuotaRefusal):
    """The caller's invoices have used up its budget."""

    reason = "budget-spent"
    title = "Your budget is spent"
    sentence = "Your invoices have used up your budget. Nothing was sent."


# ---------------------------------------------------------------- the same key was used before


class LedgerRefusal(Refusal):
    """The same idempotency key was used before."""

    status = 422


class KeyInUse(LedgerRefusal):
    """A call with this key is still running."""

    status = 503
    reason = "idempotency-key-in-use"
    title = "The same call is still running"
    sentence = (
        "A call with this idempotency key is still running. Send the same call again in a moment to get its answer. Do "
        "not use another key, which might raise a second invoice."
    )


class KeyReused(LedgerRefusal):
    """The key belongs to a call with other parameters. What became of that is said by ``policies.idempotency``."""

    reason = "idempotency-key-reused"
    title = "This key belongs to another call"
    sentence = "This idempotency key was used for a call with other parameters."


class KeyUsedElsewhere(LedgerRefusal):
    """The key raised an invoice in another account, or with test data."""

    reason = "key-used-elsewhere"
    title = "This key was used at another account"
    sentence = (
        "This idempotency key has raised an invoice already, but at another account, or with test data in place of "
        "live. Nothing was sent. If this is another invoice, use a new key; if it may be the same one, ask the "
        "operator of Countersign first."
    )


class OutcomeStillUnknown(LedgerRefusal):
    """The outcome of an earlier call with this key is unknown, and it is not sent again."""

    status = 424
    reason = "outcome-unknown"
    title = "It is not known what became of the call"
    sentence = (
        "An earlier call with this key was sent, but no answer came that can be trusted, so the invoice may exist. "
        "It was not sent again. Do not use another key, which might raise a second invoice. The operator of "
        "Countersign has been told, and can find the call by its audit id."
    )
    decided_by = "upstream"


# ---------------------------------------------------------------- we cannot serve it now


class Unavailable(Refusal):
    """We cannot serve it now; nothing was sent."""

    status = 503


class IdentityUnavailable(Unavailable):
    """The certificates or the secret that a credential is checked with cannot be read."""

    reason = "identity-unavailable"
    title = "Your credential cannot be checked"
    sentence = "Your credential cannot be checked just now. Nothing was sent; try again in a moment."


class SecretUnavailable(Unavailable):
    """The upstream's key cannot be read."""

    reason = "secret-unavailable"
    title = "The upstream key is not available"
    sentence = "The key for this connection is not available just now. Nothing was sent; try again in a moment."


class StoreUnavailable(Unavailable):
    """The store cannot count the call or claim its key."""

    reason = "store-unavailable"
    title = "Calls cannot be counted"
    sentence = "Calls cannot be counted just now. Nothing was sent; try again in a moment."

    def __init__(
        self, detail: str | None = None, *, note: str | None = None, retry_after: int | None = None, lost: bool = False
    ) -> None:
        """``lost``: the store may have carried out what it was asked for, and its answer was lost."""
        super().__init__(detail, note=note, retry_after=retry_after)
        self.lost = lost


class RecordUnavailable(Unavailable):
    """The decision cannot be recorded: no record, no call."""

    reason = "record-unavailable"
    title = "The call cannot be recorded"
    sentence = "The call cannot be recorded just now. Nothing was sent; try again in a moment."


class WaitedTooLong(Unavailable):
    """No time is left to send it, or nobody waits for its answer any more."""

    reason = "waited-too-long"
    title = "The call waited too long"
    sentence = (
        "The call waited too long here, or the instance that had it is being stopped. Nothing was sent; try again in a "
        "moment."
    )


class AskedTooOften(Unavailable):
    """More previews and questions in a second than an instance answers one caller, or all strangers together.

    They cost it nothing else.
    """

    status = 429
    reason = "asked-too-often"
    title = "Too many questions at once"
    sentence = (
        "You have tried calls, or asked about your access, more than ten times within a second. Nothing was sent, and "
        "this says nothing about the call. Ask again in a second."
    )
    strangers: ClassVar[str] = (
        "Too many ask here without a caller key: ten times a second are answered in all. Ask again in a second, or "
        "send your caller key."
    )


# ---------------------------------------------------------------- the upstream said no


class UpstreamRefusal(Refusal):
    """The upstream said no, or gave no answer that can be trusted."""

    status = 502
    decided_by = "upstream"


class UpstreamRejected(UpstreamRefusal):
    """The upstream refused the call for good: 400, 402 or 404, passed on in our words only."""

    status = 400
    reason = "upstream-rejected"
    title = "The upstream refused the call"
    sentence = "The upstream refused the invoice. Nothing was created."

    def __init__(self, status: int, detail: str, *, code: str | None, parameter: str | None) -> None:
        super().__init__(detail, parameter=parameter)
        self.status = status
        self.code = code

    def problem(self, audit_id: str, now: float | None = None) -> dict[str, object]:
        """With the upstream's own code where it is a well-known one."""
        problem = super().problem(audit_id, now)
        if self.code is not None:
            problem["upstream_code"] = self.code
        return problem


class UpstreamUnreachable(UpstreamRefusal):
    """No connection could be opened, so nothing was sent.

    503, which every client and no-code tool repeats by itself; some do not repeat a 502.
    """

    status = 503
    reason = "upstream-unreachable"
    title = "The upstream cannot be reached"
    sentence = "The upstream cannot be reached. Nothing was sent; it is safe to try again."


class UpstreamMisrouted(UpstreamRefusal):
    """Something answered that is not the upstream: the origin leads to another place."""

    reason = "upstream-misrouted"
    title = "The connection leads to the wrong place"
    sentence = (
        "This connection does not lead to the upstream: something else answered in its place. Nothing was created, and "
        "trying again does not help. The operator of Countersign has been alerted. Once it is mended, send the same "
        "call again."
    )


class UpstreamFailed(UpstreamRefusal):
    """A read-only call got no readable answer."""

    reason = "upstream-failed"
    title = "The upstream gave no answer"
    sentence = "The upstream gave no readable answer. Nothing was changed; it is safe to try again."


class UpstreamBusy(UpstreamRefusal):
    """The upstream's own limit."""

    status = 503
    reason = "upstream-busy"
    title = "The upstream is busy"
    sentence = "The upstream is busy and created nothing. It is safe to try again later."


class UpstreamKeyRefused(UpstreamRefusal):
    """The upstream does not accept our key, even after it was read again."""

    status = 503
    reason = "upstream-key-refused"
    title = "The upstream refused our key"
    sentence = "The upstream refused the key of this connection and created nothing. The operator has been alerted."


class AwaitingApproval(UpstreamRefusal):
    """A person has to approve the call at the upstream, which then carries it out by itself."""

    status = 503
    reason = "awaiting-approval"
    title = "A person has to approve this"
    sentence = (
        "The upstream has a person approve this call, and carries it out itself once that is done. Do not use another "
        "key, which might raise a second invoice. Send the same call again later to get its answer."
    )

    def __init__(self, look: str | None = None, *, name: str | None = None, retry_after: int | None = None) -> None:
        """``look`` is the address where it is approved, if it was told, and ``name`` the approval's own."""
        super().__init__(retry_after=retry_after)
        if look is not None:
            self.detail = f"{self.sentence} It is approved at {look}"
        elif name is not None:
            self.detail = f"{self.sentence} At the upstream it waits as {name}."
        self.look = look

    @classmethod
    def where(cls, look: str | None = None, name: str | None = None) -> str:
        """Return the sentence for a caller who cannot ask again what became of the call."""
        place = f" at {look}" if look is not None else "" if name is None else f" ({name})"
        return (
            f"The upstream has a person approve this call{place}, and carries it out itself once that is done, so the "
            "invoice may come to exist. It is not sent again. Do not use another key, which might raise a second "
            "invoice. The operator of Countersign has been told, and can find the call by its audit id."
        )

    def problem(self, audit_id: str, now: float | None = None) -> dict[str, object]:
        """With the place where it is approved."""
        problem = super().problem(audit_id, now)
        if self.look is not None:
            problem["approval"] = self.look
        return problem


class ApprovalLapsed(UpstreamRefusal):
    """Nobody approved the call in time, or the upstream could not carry it out."""

    status = 503
    reason = "approval-lapsed"
    title = "Nobody has approved this in time"
    sentence = (
        "Nobody has approved this call at the upstream in time, or it could not be carried out. Nothing was created or "
        "changed. Send the same call again to have it approved anew."
    )


class ApprovalRejected(UpstreamRefusal):
    """A person did not approve the call."""

    status = 403
    reason = "approval-rejected"
    title = "A person has refused this"
    sentence = (
        "A person has refused to approve this call at the upstream. Nothing was created or changed, and this key is "
        "not sent again. If it is wanted after all, ask whoever refused it, and the operator of Countersign, who can "
        "free this key."
    )
    doubtful: ClassVar[str] = (
        "A person has refused to approve this call at the upstream. But no answer came to an earlier try that can be "
        "trusted, so the invoice may exist all the same. This key is not sent again. Do not use another key, which "
        "might raise a second invoice. The operator of Countersign can look at the upstream, and free this one."
    )

    def __init__(self, *, doubt: bool = False) -> None:
        """``doubt``: an earlier send of the same call may have had an effect that nobody read."""
        super().__init__(self.doubtful if doubt else None)


class TotalDiffers(UpstreamRefusal):
    """The draft is not what was asked for, so it was deleted. Only a person can say which of the two is right."""

    status = 422
    reason = "total-differs"
    title = "The invoice would not be what you asked for"
    sentence = "The invoice would not be what you asked for. It was not raised, and nothing is left of it."

    @classmethod
    def of(cls, asked: int, found: int | None, currency: str) -> TotalDiffers:
        """Name both sums, in minor units of ``currency``."""
        would = "another sum" if found is None or found < 0 else money(found, currency)
        return cls(
            f"You asked for {money(asked, currency)}, and the invoice would come to {would}. It was not raised, and "
            "nothing is left of it. The operator of Countersign can say what was added to it."
        )


class InvoiceVoided(UpstreamRefusal):
    """The invoice of this key was raised, and somebody voided it. A key never raises another by itself."""

    status = 409
    reason = "invoice-voided"
    title = "The invoice was voided"
    sentence = (
        "The invoice of this idempotency key was raised, and somebody has voided it since, so nobody owes it. This key "
        "raises no other. If the invoice is wanted after all, send the call with a new key."
    )


class EmailMissing(UpstreamRefusal):
    """An invoice that is to be mailed, for a customer without an address."""

    status = 422
    reason = "email-missing"
    title = "The customer has no e-mail address"
    sentence = (
        "The customer has no e-mail address, so the invoice cannot be mailed. It was not raised, and nothing is left "
        "of it. Add the address at the upstream and send the same call again, or leave out send."
    )


class InvoiceEmpty(UpstreamRefusal):
    """A draft that asks nobody for anything, and cannot be changed any more once it is finalized."""

    status = 422
    reason = "invoice-empty"
    title = "The invoice has no lines"
    sentence = (
        "The invoice has no lines, so nobody would be asked for anything, and it could not be changed any more. "
        "Nothing was changed. Add its items, which name the invoice, and send the same call again."
    )


class CustomerAmbiguous(UpstreamRefusal):
    """Several customers match what one is looked for by."""

    status = 422
    reason = "customer-ambiguous"
    title = "Several customers have this address"
    sentence = (
        "Several customers have this e-mail address, so it does not say which one is meant. Name the customer by its "
        "id, or have the operator of Countersign merge or change them at the upstream."
    )


class OutcomeUnknown(UpstreamRefusal):
    """The call was sent, its outcome is unknown, and sending it again could raise a second invoice.

    424: it failed because the upstream failed (RFC 4918, 11.4). Clients and no-code tools repeat a 5xx or a 429 by
    themselves. None repeats a 424: it is shown to a person as an error.
    """

    status = 424
    reason = "outcome-unknown"
    title = "It is not known what became of the call"
    sentence = (
        "The call was sent, but no answer came that can be trusted, so the invoice may exist. Do not use another key, "
        "which might raise a second invoice; the same key does not. The operator of Countersign has been told, and "
        "can find the call by its audit id."
    )


class OutcomePending(OutcomeUnknown):
    """The same, but the upstream deduplicates, so that sending the call again settles it.

    504, which clients and no-code tools repeat by themselves.
    """

    status = 504
    reason = OutcomeUnknown.reason
    sentence = (
        "The call was sent, but no answer came that can be trusted, so the invoice may exist. Send the same call again "
        "with the same idempotency key: that is safe, and settles the matter. Do not use another key, which might "
        "raise a second invoice."
    )


# ---------------------------------------------------------------- an internal error


class Unforeseen(Refusal):
    """An unforeseen error. Fails closed."""

    reason = "unforeseen"
    title = "Something went wrong here"
    sentence = "Something went wrong here, and nothing was sent. Give the audit id to the operator of Countersign."
