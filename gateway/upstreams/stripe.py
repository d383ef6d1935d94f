"""Stripe's own API, v1: a bearer key, a pinned version, and a key by which it knows a repeated call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.upstreams.transport import FORM, Request
from policies.idempotency import upstream_key

if TYPE_CHECKING:
    from policies.model import Grant


def request(grant: Grant, key: str, owner: str) -> Request:
    """Return the request that was granted. Its address is the policy's, and what is in its path was bounded when read.

    A call without an idempotency key of its own gets one of the admission's ``owner``, so that it can be tried again
    while it lasts.
    """
    connection, operation = grant.entitlement.connection, grant.entitlement.operation
    headers = [f"Authorization: Bearer {key}", "Accept: application/json"]
    if connection.version is not None:
        headers.append(f"Stripe-Version: {connection.version}")
    if connection.account is not None:
        headers.append(f"Stripe-Account: {connection.account}")
    address = f"{connection.origin}/v1/{operation.path.format_map(grant.parameters)}"
    if not operation.creates:
        query = grant.form.decode("ascii")
        return Request(operation.method, f"{address}?{query}" if query else address, headers, b"", told_in_headers=True)
    headers += [f"Content-Type: {FORM}", f"Idempotency-Key: {upstream_key(grant.ledger_key or owner)}"]
    return Request(operation.method, address, headers, grant.form, told_in_headers=True)
