"""Builds entitlements: what a caller may ask of a connection, with all derived values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.fields import tree_of
from policies.model import Entitlement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policies.model import Amount, Connection, Idempotency, Lines, Operation, Rule


def entitlement(  # noqa: PLR0913 - the parts of a grant
    *,
    connection: Connection,
    operation: Operation,
    idempotency: Idempotency,
    rules: Iterable[Rule],
    required: tuple[str, ...],
    response: tuple[str, ...],
    stamp: str | None,
    record: frozenset[str],
    amount: Amount | None = None,
    lines: Lines | None = None,
) -> Entitlement:
    """Return an entitlement. ``response`` is the granted fields in the order of the grant, ``audit_id`` included."""
    by_path = {rule.path: rule for rule in rules}
    return Entitlement(
        connection=connection,
        operation=operation,
        idempotency=idempotency,
        rules=by_path,
        required=required,
        fixed={path: rule.fixed for path, rule in by_path.items() if rule.fixed is not None},
        response=tree_of((path for path in response if path != "audit_id"), operation.fields),
        response_fields=response,
        audit_id_in_answer="audit_id" in response,
        stamp=stamp,
        record=record,
        amount=amount,
        lines=lines,
    )


def by_place(entitlements: Iterable[Entitlement]) -> dict[tuple[str, str, str], Entitlement]:
    """Return entitlements by (name, connection_name, operation), as calls name them."""
    return {(one.connection.name, one.connection.connection_name, one.operation.id): one for one in entitlements}
