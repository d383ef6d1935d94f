"""``countersign explain``: what a policy document says of a call, without a function, a store or an upstream."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from console.documents import opened
from console.why import rule_of
from gateway.reloading import read
from policies import compiled, forms
from policies.access import decide
from policies.foresight import foresee
from policies.idempotency import wanted
from policies.model import Admission, Call, DocumentError
from policies.refusals import Fault, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.model import Caller, Entitlement, PolicySet

_EXAMPLE: Final = (
    "./countersign explain policies/documents/example.yaml --caller billing-app --key order-1001 "
    "-d customer=cus_1 -d days_until_due=30"
)


_ONLINE: Final = (
    "What is left of limits and budget, and what the idempotency key was used for, only the function knows: try the "
    "call there with validate_only=true."
)


_FIRST: Final = "This is the first of several requests. What follows depends on what the upstream answers."


class _UnclearError(Exception):
    """It is not clear which call is meant. The text says what to write."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # argparse has no public name
    """Add ``explain``."""
    explain = commands.add_parser("explain", help="say what a policy says of a call", epilog=f"Example: {_EXAMPLE}")
    explain.add_argument("policy", type=Path, metavar="POLICY")
    explain.add_argument("--caller", required=True, metavar="CALLER", help="who calls")
    explain.add_argument("--connection", metavar="CONNECTION", help="on which connection, if there are several")
    explain.add_argument("--operation", metavar="OPERATION", help="what is asked for, such as invoices.create")
    explain.add_argument("--key", metavar="KEY", help="the Idempotency-Key header")
    explain.add_argument(
        "-d", dest="data", type=_pair, action="append", default=[], metavar="NAME=VALUE", help="a parameter; repeatable"
    )
    explain.set_defaults(run=_run)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError("write NAME=VALUE")
    return name, value


def _run(asked: argparse.Namespace) -> int:
    try:
        data = opened(asked.policy)
        policy_set = read(data, str(asked.policy))
        caller = _caller(policy_set, asked.caller)
        entitlement = _meant(caller, asked.connection, asked.operation)
    except (DocumentError, _UnclearError) as error:
        print(error, file=sys.stderr)
        return 1
    where = {"caller": caller.id, "connection": entitlement.connection.id, "operation": entitlement.operation.id}

    def line(**about: str) -> str:
        found = None if compiled.recognised(data) else rule_of(data.decode(), where | about)
        return "" if found is None else f" (line {found[0]}: {found[1]})"

    try:
        grant = decide(policy_set, caller, _call(entitlement, asked.data, asked.key))
    except Refusal as refusal:
        print(f"{caller.id} would be refused {where['operation']} on {where['connection']}:")
        for one in refusal.faults or (Fault(type(refusal), "", refusal.detail, {}),):  # type: ignore[arg-type]  # any kind
            about = {"parameter": one.parameter} if one.parameter else {}
            print(f"  {one.kind.reason}: {one.detail}{line(reason=one.kind.reason, **about)}")
        return 1
    print(f"{caller.id} may ask for {where['operation']} on {where['connection']}{line()}. It would send:")
    # As a store admits a key that is new.
    new = None if grant.ledger_key is None else wanted(grant, owner="", place=entitlement.connection.place, now=0.0)
    _, told = foresee(grant, Admission((), "", 0.0, new), (), 0.0)
    print("\n".join(_shown(told["would_send"])))
    if entitlement.operation.plan:
        print(_FIRST)
    print(_ONLINE)
    return 0


def _caller(policy_set: PolicySet, name: str) -> Caller:
    """Return a caller by its id, with the credential that may do most."""
    found = [one for one in policy_set.callers.values() if one.id == name]
    if not found:
        raise _UnclearError(f"There is no caller {name!r}. Name one of: {', '.join(sorted(policy_set.names))}.")
    return min(found, key=lambda one: (one.tied is not None, one.body_signed))


def _meant(caller: Caller, connection: str | None, operation: str | None) -> Entitlement:
    meant = [
        one
        for one in caller.entitlements.values()
        if connection in {None, one.connection.id} and operation in {None, one.operation.id}
    ]
    if len(meant) != 1:
        may = ", ".join(sorted(f"{one.operation.id} on {one.connection.id}" for one in caller.entitlements.values()))
        raise _UnclearError(f"Say which with --operation and --connection. {caller.id} may ask for: {may}.")
    return meant[0]


def _call(entitlement: Entitlement, data: list[tuple[str, str]], key: str | None) -> Call:
    connection, operation = entitlement.connection, entitlement.operation
    in_path = {name: value for name, value in data if f"{{{name}}}" in operation.path}
    return Call(
        operation=operation.id,
        name=connection.name,
        connection_name=connection.connection_name,
        credentials={},
        media="form",
        body=urlencode([pair for pair in data if pair[0] not in in_path]).encode(),
        idempotency_key=key,
        validate_only=True,
        path_parameters=in_path,
    )


def _shown(request: object) -> Iterator[str]:
    assert isinstance(request, dict)  # noqa: S101 - as foresight writes it
    yield f"  {request['method']} {request['url']}"
    for name, value in forms.parse(request["body"].encode(), "form").items():
        yield f"  {name} = {forms.shown(value)}"
