"""Appgregator's endpoint, as its public page describes it: the connection in the query, one key header, a form.

The page documents no idempotency and no errors. It forwards to Stripe, so a refusal is read as Stripe's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policies import outcomes
from policies.dialect import FORM, Dialect, KeyPlace, Outgoing
from policies.upstreams.stripe import mode_of, said

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Grant, Step
    from policies.outcomes import Reply

_HEADERS: Final = {"Content-Type": FORM, "Accept": "application/json"}


class Appgregator(Dialect):
    """See :class:`policies.dialect.Dialect`."""

    id = "appgregator"
    title = "Appgregator"

    def mode_of(self, key: str) -> str | None:
        """See :class:`policies.dialect.Dialect`. Its own keys do not say; one of Stripe's may lie there by mistake."""
        return mode_of(key)

    def request(self, grant: Grant, step: Step) -> Outgoing:  # noqa: ARG002 - it deduplicates nothing
        """See :class:`policies.dialect.Dialect`."""
        connection, operation = grant.entitlement.connection, grant.entitlement.operation
        # Names need no encoding: see policies.model.NAME.
        query = f"name={connection.name}&connection_name={connection.connection_name}"
        return Outgoing(
            operation.method,
            f"{connection.origin}/stripe/{operation.path}/?{query}",
            KeyPlace.X_API_KEY,
            _HEADERS,
            grant.form,
            private=connection.private,
        )

    def judge(self, grant: Grant, step: Step, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """See :class:`policies.dialect.Dialect`."""
        return outcomes.judge(grant, step, status, headers, body, said(status, headers, body))


DIALECT: Final = Appgregator()
