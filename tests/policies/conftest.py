"""The least that a test of the policies needs: a document that says one thing, and what is read from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policies import access, document, forms
from policies.model import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Caller, Entitlement, Grant, PolicySet

DOCUMENT = """\
connections:
  billing:
    name: ft-4
    connection_name: stripe-1
    upstream: appgregator
    origin: https://upstream.example
    secret: projects/acme/secrets/key/versions/latest
callers:
  app:
    owner: tests
    credentials:
      - key: {{id: k1, sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}}
    limits: [30/minute]
    grants:
      - connection: billing
        operation: invoices.create
        idempotency: {idempotency}
        response: [{response}]
        {groups}
        parameters:
{parameters}
"""
RESPONSE = "id, status, customer, lines.data.amount, metadata, audit_id"


def written(
    parameters: str = "customer:", *, groups: str = "", idempotency: str = "optional", response: str = RESPONSE
) -> str:
    """Write a document of one caller with one grant; ``parameters`` is what stands below that key, line by line."""
    return DOCUMENT.format(
        idempotency=idempotency,
        response=response,
        groups=f"groups: [{groups}]" if groups else "",
        parameters="\n".join(f"          {line}" for line in parameters.splitlines()),
    )


def read(text: str) -> PolicySet:
    return document.read(text, "policy.yaml")


def only_caller(policy_set: PolicySet) -> Caller:
    [caller] = policy_set.keys.values()
    return caller


def entitlement(
    parameters: str = "customer:", *, groups: str = "", idempotency: str = "optional", response: str = RESPONSE
) -> Entitlement:
    """Read the one grant of such a document."""
    caller = only_caller(read(written(parameters, groups=groups, idempotency=idempotency, response=response)))
    [granted] = caller.entitlements.values()
    return granted


def call(
    asked: Mapping[str, str] | None = None,
    *,
    key: str | None = None,
    name: str = "ft-4",
    connection_name: str = "stripe-1",
    operation: str = "invoices.create",
    body: bytes | None = None,
    media: str = "form",
) -> Call:
    """Make a call that asks for ``asked``, or one with a body of its own."""
    return Call(
        operation=operation,
        name=name,
        connection_name=connection_name,
        api_key=None,
        authorization=None,
        media=media,
        body=forms.encode(asked or {}) if body is None else body,
        idempotency_key=key,
        validate_only=False,
    )


def decided(text: str, asked: Mapping[str, str], key: str | None = None) -> Grant:
    """Have the one caller of a document ask."""
    policy_set = read(text)
    return access.decide(policy_set, only_caller(policy_set), call(asked, key=key))


@pytest.fixture
def grant() -> Grant:
    """A plain approved call."""
    return decided(written("customer:\nmetadata[order_id]:"), {"customer": "cus_1", "metadata[order_id]": "7"})
