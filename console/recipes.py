"""``countersign recipe``: a call to paste, made from a policy document. It is decided in full and not sent."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from policies import forms, parameters
from policies.model import Kind
from policies.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from policies.model import Entitlement, PolicySet, Rule

#: How ids begin at Stripe, where the policy does not say it.
_PREFIXES: Final = {"customer": "cus_", "invoice": "in_"}
_EXAMPLES: Final = {
    Kind.INTEGER: "30",
    Kind.TIMESTAMP: "1893456000",  # the year 2030
    Kind.BOOLEAN: "true",
    Kind.CURRENCY: "usd",
}


class NoRecipeError(Exception):
    """There is no call to show. The text says why, and what to do."""


def recipe(policy_set: PolicySet, file: Path, url: str, *, caller: str | None, token: str | None) -> str:
    """Write a call that the policy grants to ``caller``, or to the first caller that has a key.

    ``url`` is the function's address. ``token`` is a command that prints an identity token, for a function behind
    Google's IAM. Raises :class:`NoRecipeError`.
    """
    keyed = {one.id: one for proof, one in policy_set.callers.items() if proof.kind == "key" and not one.paused}
    if not keyed:
        raise NoRecipeError(f"No active caller in {file} has a key. docs/callers.md has calls with other credentials.")
    if caller is not None and caller not in keyed:
        raise NoRecipeError(f"{caller} has no key in {file}, or is paused. Name one of: {', '.join(sorted(keyed))}.")
    chosen = keyed[caller or next(iter(keyed))]
    tied = chosen.tied
    calls = [(one, examples(one)) for one in chosen.entitlements.values() if tied is None or tied == one.connection]
    entitlement, given = next((call for call in calls if _approved(*call)), calls[0])
    parts = " \\\n    ".join([f"curl {_address(url, entitlement, given)}", *_options(entitlement, given, token)])
    return (
        f"Try a call of {chosen.id}: it is decided in full, and nothing is sent. You need a key of {chosen.id}. It is "
        "shown once,\nwhen it is made, with what to write into the policy:\n"
        f"  ./countersign key new {chosen.id} --policy {shlex.quote(str(file))}\n"
        "Run this line alone, then paste the key and press Enter:\n"
        "  read -rs CALLER_KEY\n"
        f"Then paste this:\n  {parts}"
    )


def _address(url: str, entitlement: Entitlement, given: dict[str, str]) -> str:
    """Return the address, in double quotes, and take out of ``given`` what it holds."""
    connection, operation = entitlement.connection, entitlement.operation
    path = "/".join(
        quote(given.pop(part[1:-1], "")) if part.startswith("{") else part for part in operation.path.split("/")
    )
    query = f"name={connection.name}&connection_name={connection.connection_name}&validate_only=true"
    return f'"{url}/stripe/{path}/?{query}"'


def _options(entitlement: Entitlement, given: Mapping[str, str], token: str | None) -> Iterator[str]:
    if token is not None:
        yield f'-H "X-Serverless-Authorization: Bearer $({token})"'
    yield '-H "x-api-key: $CALLER_KEY"'
    if not entitlement.operation.repeatable and entitlement.idempotency.parameter is None:
        yield f"-H {shlex.quote(f'Idempotency-Key: {entitlement.idempotency.prefix}first-try')}"
    if entitlement.operation.method == "GET":
        yield "--get"
    elif not given:
        yield "--data ''"
    for path, value in given.items():
        yield f"--data-urlencode {shlex.quote(f'{path}={value}')}"


def _approved(entitlement: Entitlement, given: Mapping[str, str]) -> bool:
    try:
        parameters.approve(entitlement, given)
    except Refusal:
        return False
    return True


def examples(entitlement: Entitlement) -> dict[str, str]:
    """Return parameters that the grant takes: those that it asks for, or else the first that it allows."""
    operation, rules, key = entitlement.operation, entitlement.rules, entitlement.idempotency
    wanted = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    wanted += [path for path in (*entitlement.required, key.parameter) if path is not None]
    given: dict[str, str] = {}
    for path in wanted or [next(iter(rules))]:
        rule = rules.get(path) or rules.get(parameters.template_of(operation, path) or "")
        if rule is not None and rule.kind not in {Kind.OBJECT, Kind.ARRAY}:
            given[path] = _example(path, rule, key.prefix if path == key.parameter else "")
            continue
        parts = [part for part in rules if part.startswith(f"{path}[")]
        needed = [
            part
            for part in parts
            if (template := parameters.template_of(operation, part)) is not None
            and operation.parameters[template].needed
        ]
        for part in needed or parts[:1]:
            given[part.replace("{i}", "0").replace("{key}", "example")] = _example(part, rules[part])
    fixed = entitlement.fixed
    return forms.canonical({path: value for path, value in given.items() if path not in fixed})


def _example(path: str, rule: Rule, prefix: str = "") -> str:
    """Return a value that the rule takes and that begins with ``prefix``, where one is easily found."""
    if rule.one_of is not None:
        fitting = (one for one in sorted(rule.one_of) if one.startswith(prefix))
        return next((one for one in fitting if parameters.fault(rule, one) is None), "")
    if rule.kind is Kind.STRING:
        return ((prefix or rule.prefix or _PREFIXES.get(path, "")) + "123")[: rule.max_length]
    value = _EXAMPLES.get(rule.kind, "")
    if parameters.fault(rule, value) is None:
        return value
    return str(rule.minimum if rule.minimum is not None else rule.maximum)
