"""The least that a test of the policies needs: a document that says one thing, and what is read from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st

from policies import access, document, forms
from policies.model import Call

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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


CONNECTIONS = {
    "plain": "upstream: appgregator, origin: https://upstream.example, formerly: {name: ft-3, connection_name: one}",
    "tight": "upstream: stripe, ceiling: 20/second, version: 2026-05-27.dahlia, account: acct_1032D82eZvKYlo2C",
    "wide": "upstream: stripe, mode: test, origin: http://127.0.0.1:9",
}
BOUNDS = {
    "customer": "{required: true}",
    "description": "{max_length: 200}",
    "days_until_due": "{min: 1, max: 60}",
    "collection_method": "{fixed: send_invoice}",
    "currency": "{one_of: [usd, eur, chf]}",
    "metadata": "",
    "metadata[order_id]": "{prefix: ö-}",
    "metadata[cost_center]": "{one_of: [emea, apac, '7']}",
    "custom_fields": "",
    "custom_fields[{i}][name]": "{max_length: 3}",
    "auto_advance": "",
    "transfer_data[destination]": "",
    "expand": "{one_of: [customer, charge]}",
}
BUDGETS = (
    "{currency: usd, amount: 6000, per: hour}",
    "[{currency: usd, amount: 9000, per: day}, {currency: eur, amount: 5000, per: hour}]",
    "[{currency: usd, amount: 9000, per: day}, {currency: usd, amount: 6000, per: hour, each: customer}]",
)
FIELDS = ["id", "status", "amount_due", "customer", "lines.data.amount", "lines.data.id", "metadata", "audit_id"]


def some(of: Iterable[str], most: int = 20) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(list(of)), min_size=1, max_size=most, unique=True)


@st.composite
def grants(draw: st.DrawFn, connection: str, operation: str) -> str:
    """Draw a grant that is in order, with any of what can be said in one."""
    said = [f"connection: {connection}", f"operation: {operation}"]
    paths = {*draw(some(BOUNDS)), "customer"} if operation == "invoices.create" else {"invoice"}
    paths |= {"days_until_due"} if "collection_method" in paths else set()  # which Stripe takes together only
    bounds = ", ".join(f"'{path}': {BOUNDS.get(path, '')}" for path in sorted(paths))
    said += [f"parameters: {{{bounds}}}"]
    said += [f"response: [{', '.join(draw(some(FIELDS)))}]"]
    if draw(st.booleans()):
        said += [f"record: [{', '.join(sorted(paths & {'customer', 'description', 'currency', 'invoice'}))}]"]
    if operation == "invoices.create":
        ways = ["required", "optional", "{from: customer, for: 7d}", "{prefix: order-}", None]
        said += [f"idempotency: {way}" for way in [draw(st.sampled_from(ways))] if way]
        said += draw(st.sampled_from([[], ["groups: [plain]"], ["groups: [plain, changes price or content]"]]))
        said += draw(st.sampled_from([[], ['stamp: "metadata[countersign]"']]))
        if connection == "plain":
            said += ["amount: {max: 5000}"]
    return f"{{{', '.join(said)}}}"


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Draw a document that is in order, of up to four callers with any credentials."""
    callers, used = [], set()
    possible = [(name, "invoices.create") for name in CONNECTIONS]
    possible += [(name, "invoices.retrieve") for name in ("tight", "wide")]
    for number in range(draw(st.integers(1, 4))):
        places = draw(st.lists(st.sampled_from(possible), min_size=1, max_size=3, unique=True))
        tied = places[-1][0]
        kinds = [
            f"key: {{id: k1, sha256: {number:064x}}}",
            f"key: {{id: k2, sha256: {number + 16:064x}, expires: 2027-03-0{number + 1}}}",
            f"key: {{id: k3, sha256: {number + 32:064x}, connection: {tied}}}",
            f"google: caller-{number}@acme.example",
            f"google: {{email: tied-{number}@acme.example, connection: {tied}}}",
            f"webhook: file:signing-{number}",
        ]
        if any(place == (tied, "invoices.create") for place in places):
            scheme = "scheme: hmac, header: X-Signature, encoding: hex, prefix: sha256="
            kinds += [f"webhook: {{secret: file:body-{number}, {scheme}, connection: {tied}}}"]
        used |= {name for name, _ in places}
        minute = draw(st.integers(1, 10))
        said = [
            f"owner: {draw(st.sampled_from(['ann', 'Jürgen of 東京']))}",
            f"credentials: [{', '.join(f'{{{kind}}}' for kind in draw(some(kinds)))}]",
            f"limits: [{minute}/minute, {draw(st.integers(minute + 1, minute * 100))}/day]",
            f"grants: [{', '.join(draw(grants(*place)) for place in places)}]",
        ]
        said += draw(st.sampled_from([[], [], ["paused: true"]]))
        said += draw(st.sampled_from([[], [f"formerly: first-{number}"]]))
        # At Stripe a create makes a draft, which no budget counts.
        if places == [("plain", "invoices.create")] and draw(st.booleans()):
            said += [f"budget: {draw(st.sampled_from(BUDGETS))}"]
        callers.append(f"  caller-{number}: {{{', '.join(said)}}}")
    connections = [
        f"  {name}: {{name: ft-4, connection_name: {name}, secret: file:{name}, {said}}}"
        for name, said in CONNECTIONS.items()
        if name in used
    ]
    return "\n".join(["connections:", *connections, "callers:", *callers, ""])


def read(text: str) -> PolicySet:
    return document.read(text, "policy.yaml")


def everybody(policy_set: PolicySet) -> list[Caller]:
    """Return every caller, once for each credential, in the order of these."""
    return [policy_set.callers[proof] for proof in sorted(policy_set.callers)]


def by_kind(policy_set: PolicySet, kind: str = "key") -> dict[bytes, Caller]:
    """Return the callers that a kind of credential proves, by what proves them."""
    return {proof.value: caller for proof, caller in policy_set.callers.items() if proof.kind == kind}


def only_caller(policy_set: PolicySet) -> Caller:
    [caller] = policy_set.callers.values()
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
        credentials={},
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
