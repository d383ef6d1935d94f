"""Appgregator's endpoint, as its public page describes it: the connection in the query, one key header, a form."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from gateway.upstreams.transport import FORM, Request

if TYPE_CHECKING:
    from policies.model import Connection, Grant


def request(grant: Grant, key: str, _owner: str) -> Request:
    """Return the request that raises what was granted. Every part of its address comes from the policy."""
    headers = [f"x-api-key: {key}", f"Content-Type: {FORM}", "Accept: application/json"]
    return Request("POST", _address(grant.entitlement.connection), headers, grant.form)


@lru_cache(1024)  # the same few, as long as the policy does not change
def _address(connection: Connection) -> str:
    query = urlencode({"name": connection.name, "connection_name": connection.connection_name})
    return f"{connection.origin}/stripe/invoices/?{query}"
