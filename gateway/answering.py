"""What a caller is told -> WSGI response."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.reading import speaks_stripe
from policies.refusals import as_stripe_error

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from gateway.audit import Record
    from policies.model import Grant

_LINES: Final = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


class Response(msgspec.Struct, frozen=True):
    """What goes back, whole: a WSGI application that answers every request with it, as PEP 3333 has it."""

    status: int
    headers: dict[str, str]
    body: bytes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer; a HEAD without the body (RFC 9110, 9.3.2)."""
        start_response(_LINES[self.status], [*self.headers.items()])
        return () if environ["REQUEST_METHOD"] == "HEAD" else (self.body,)


def respond(record: Record) -> Response:
    """Write the answer that ``record`` holds. Every header is ours; none of the upstream's is passed on."""
    status, body, media = record.answer.status, record.answer.body, "application/json"
    told: dict[str, str] = {}
    if speaks_stripe(record.environ):
        told["Request-Id"] = record.audit_id  # which Stripe's clients show with an error
        if status >= 400:
            status, error, again = as_stripe_error(msgspec.json.decode(body))
            body = msgspec.json.encode(error)
            told["Stripe-Should-Retry"] = "true" if again else "false"
        else:
            body = _typed(record.grant, body)
    elif status >= 400:
        media = "application/problem+json"
    headers = {
        "Content-Type": media,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Countersign-Audit-Id": record.audit_id,
        **record.headers,
        **told,
    }
    standings = record.standings
    if standings:
        # draft-ietf-httpapi-ratelimit-headers: q calls in w seconds; r are left, and in t seconds there are more.
        policies = [f'"{s.limit.text}";q={s.limit.calls};w={s.limit.seconds}' for s in standings]
        headers["RateLimit-Policy"] = ", ".join(policies)
        headers["RateLimit"] = ", ".join([f'"{s.limit.text}";r={s.remaining};t={s.reset}' for s in standings])
    return Response(status, headers, body)


def _typed(grant: Grant | None, body: bytes) -> bytes:
    """Say what an answer is where the policy does not list ``object``: Stripe's clients choose its class by that.

    It tells nothing, being the same in every answer. The rest stays as it is, byte for byte.
    """
    if grant is None or grant.validate_only or "object" in grant.entitlement.response:
        return body
    more = b"" if body == b"{}" else b","
    return b'{"object":"%b"%b%b' % (grant.entitlement.operation.answers.encode("ascii"), more, body[1:])
