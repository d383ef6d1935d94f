"""The policy document of ``make run``: as the function gets it, it says what it said, and leads to the sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from policies import document
from sandbox.__main__ import POLICY, ROOT
from sandbox.document import against, mounted, webhook_secrets
from tests.test_docs import PAGES, blocks

if TYPE_CHECKING:
    from policies.model import Connection, PolicySet

ORIGINS = {"appgregator": "http://127.0.0.1:81", "stripe": "http://127.0.0.1:82"}
SHOWN = [block for page in PAGES for block in blocks(page, "yaml")]
WRITTEN = [path.read_text("utf-8") for path in sorted(POLICY.parent.glob("*.yaml"))]
ODD = """\ufeff"connections":
  'a':
    name: "no"
    connection_name: 1e3
    upstream: stripe
    secret: file:/run/secrets/key   # mounted
  b: {name: b, connection_name: ~b, upstream: appgregator, private: true, secret: projects/p/secrets/s/versions/3,
      origin: https://a.example}
callers:
  c:
    owner: Zoë <c@acme.example>
    credentials: [webhook: file:/run/secrets/hook, webhook: projects/p/secrets/w/versions/latest]
    limits: [1/minute]
    grants:
      - {connection: a, operation: invoices.create, parameters: {customer: , description: ~}, response: [id]}
      - connection: b
        operation: invoices.create
        parameters:
          customer:
          description: null
          "metadata[a]": {one_of: ["true", yes, 0x1F, 2027-01-01, ""]}
        response: [id]
""".replace("~b", "b").replace(', ""]', "]")


def led(connection: Connection) -> Connection:
    secret = mounted(connection.secret) if connection.secret.startswith("file:") else connection.secret
    return replace(connection, origin=ORIGINS[connection.upstream], secret=secret)


def normal(policies: PolicySet) -> object:
    """What a document says of connections and callers, without what differs on purpose."""
    connections = {id_: replace(led(one), place=b"") for id_, one in policies.connections.items()}
    callers = sorted(
        (caller.id, caller.credential.replace("file:/run/secrets/hook", mounted("file:/run/secrets/hook")),
         caller.owner, caller.limits, caller.budgets, caller.expires,
         [(place, each.operation.id, each.connection.id, each.rules, each.response_fields, each.record)
          for place, each in caller.entitlements.items()])
        for caller in policies.callers.values()
    )  # fmt: skip
    return connections, repr(callers)


@pytest.mark.parametrize("text", [*SHOWN, *WRITTEN, ODD])
def test_document_says_the_same_when_it_leads_to_the_sandbox(text: str) -> None:
    served = against(text.removeprefix("\ufeff"), ORIGINS)
    before, after = document.read(text, "before"), document.read(served, "after")
    assert normal(before) == normal(after)
    assert {one.origin for one in after.connections.values()} <= set(ORIGINS.values())
    assert "file:" not in served


def test_there_is_something_to_compare() -> None:
    assert len(SHOWN) > 3
    assert {path.name for path in (ROOT / "policies" / "documents").glob("*.yaml")} >= {"example.yaml", "sandbox.yaml"}


def test_upstream_that_the_sandbox_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match=r"^connections\.sandbox-billing: the sandbox has no upstream appgregator\."):
        against(POLICY.read_text("utf-8"), {"stripe": "http://127.0.0.1:82"})


def test_secrets_of_webhooks_are_told_from_keys() -> None:
    import yaml  # noqa: PLC0415 - this test alone reads one by itself

    content = yaml.load(against(ODD.removeprefix("\ufeff"), ORIGINS), yaml.BaseLoader)
    name = mounted("file:/run/secrets/hook").partition("/versions/")[0]
    assert webhook_secrets(content) == {name, "projects/p/secrets/w"}
