"""Parameters that a grant takes, for a call to start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from console.describe import example
from policies import forms, parameters
from policies.model import Kind
from policies.operations import words

if TYPE_CHECKING:
    from policies.model import Entitlement, Operation, Rule


def examples(entitlement: Entitlement) -> dict[str, str]:
    """Return parameters that the grant takes: those that it asks for, or else the first that it allows."""
    operation, rules, key = entitlement.operation, entitlement.rules, entitlement.idempotency
    wanted = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    wanted += [path for path in (*entitlement.required, key.parameter) if path is not None]
    given: dict[str, str] = {}
    for path in wanted or [next(iter(rules))]:
        rule = rules.get(path) or rules.get(parameters.template_of(operation, path) or "")
        if rule is not None and rule.kind not in {Kind.OBJECT, Kind.ARRAY}:
            given[path] = _example(operation, path, rule, key.prefix if path == key.parameter else "")
            continue
        parts = [part for part in rules if part.startswith(f"{path}[")]
        needed = [
            part
            for part in parts
            if (template := parameters.template_of(operation, part)) is not None
            and operation.parameters[template].needed
        ]
        for part in needed or parts[:1]:
            given[part.replace("{i}", "0").replace("{key}", "example")] = _example(operation, part, rules[part])
    fixed = entitlement.fixed
    return forms.canonical({path: value for path, value in given.items() if path not in fixed})


def _example(operation: Operation, path: str, rule: Rule, prefix: str = "") -> str:
    """Return a value that the rule takes and that begins with ``prefix``, where one is easily found."""
    said = words(operation.id).get(parameters.template_of(operation, path) or "")
    fitting = sorted(one for one in rule.one_of or () if one.startswith(prefix))
    for value in [*fitting, f"{prefix}1001"] if prefix else []:
        if parameters.fault(rule, value) is None:
            return value
    return example(rule, said.example if said is not None else "") or ""
