"""What every refusal looks like, whatever it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from werkzeug.test import TestResponse

MEMBERS = {"type", "title", "status", "detail", "reason", "decided_by", "audit_id"}
#: What a full limit or budget tells of itself.
QUOTA = {"limit", "window", "left", "currency", "resets_at", "asked", "each"}
#: What a call that is only tried is told beside it.
TRIED = {"validate_only", "would"}
OPTIONAL = {"help", "parameter", "retry_after", "upstream_code", "faults", "approval", *QUOTA, *TRIED}

#: Status, headers with small names, body: of a real socket.
Answer = tuple[int, dict[str, str], bytes]


def plain(response: TestResponse) -> Answer:
    """Turn a response of the test client into the three parts that a socket brings."""
    return response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.data


def parsed(received: bytes) -> Answer:
    """Split what a socket brought into its three parts."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


def refused(answer: TestResponse | Answer, status: int, reason: str) -> dict[str, Any]:
    """Assert that an answer is the one refusal, whole and harmless to show, and return it."""
    got, headers, body = answer if isinstance(answer, tuple) else plain(answer)
    problem: dict[str, Any] = json.loads(body)
    assert (got, problem["status"], problem["reason"]) == (status, status, reason), problem
    assert headers["content-type"] == "application/problem+json"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert problem["type"] == f"urn:countersign:refusal:{reason}"
    assert problem["title"]
    assert problem["detail"].endswith((".", "?", problem.get("approval", ".")))
    assert problem["decided_by"] in {"countersign", "policy", "upstream"}
    assert problem["audit_id"] == headers["countersign-audit-id"]
    assert problem.keys() - OPTIONAL == MEMBERS
    # What a caller sent comes back in printable ASCII or not at all.
    assert body.isascii()
    assert problem["detail"].isprintable()
    return problem


def stripe_refused(answer: TestResponse | Answer, status: int, reason: str) -> dict[str, Any]:
    """Assert that an answer is a refusal as Stripe's own clients read it, and return its error."""
    got, headers, body = answer if isinstance(answer, tuple) else plain(answer)
    told = json.loads(body)
    assert told.keys() == {"error"}
    error: dict[str, Any] = told["error"]
    code = "approval_required" if reason == "awaiting-approval" else reason.replace("-", "_")  # Stripe's own
    assert (got, error["code"]) == (status, code), error
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert headers["request-id"] == headers["countersign-audit-id"] == error["audit_id"]
    assert headers["stripe-should-retry"] in {"true", "false"}
    assert error["audit_id"] in error["message"]
    assert error.keys() - {"param", "would", "doc_url"} == {"type", "code", "message", "decided_by", "audit_id"}
    assert body.isascii()
    return error


def without_id(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the audit id, which no two answers share."""
    return {name: value for name, value in answer.items() if name != "audit_id"}


def as_replayed(body: bytes) -> bytes:
    """Return an answer as its replay has it: a refusal, or an invoice whose audit id is granted."""
    told, where, page = body.partition(b',"help":')  # which is never kept, and comes last
    return told + b',"replayed":true' + where + page if where else body[:-1] + b',"replayed":true}'
