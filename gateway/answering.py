"""What a caller is told -> Flask response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Response

if TYPE_CHECKING:
    from gateway.audit import Record


def respond(record: Record) -> Response:
    """Write the answer that ``record`` holds. Every header is ours; none of the upstream's is passed on."""
    answer = record.answer
    headers = {
        "Content-Type": "application/json" if answer.status < 400 else "application/problem+json",
        "Content-Length": str(len(answer.body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Countersign-Audit-Id": record.audit_id,
        **record.headers,
    }
    if record.standings:
        # draft-ietf-httpapi-ratelimit-headers: q calls in w seconds; r are left, and in t seconds there are more.
        headers["RateLimit-Policy"] = ", ".join(
            f'"{s.limit.text}";q={s.limit.calls};w={s.limit.seconds}' for s in record.standings
        )
        headers["RateLimit"] = ", ".join(f'"{s.limit.text}";r={s.remaining};t={s.reset}' for s in record.standings)
    # An iterator, because functions-framework reads the rest of the request, without bound, before any other answer.
    return Response(iter((answer.body,)), answer.status, headers)
