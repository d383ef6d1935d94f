"""Parameters that a grant takes, for a call to start from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policies import forms, parameters
from policies.model import Kind

if TYPE_CHECKING:
    from policies.model import Entitlement, Rule

#: How ids begin at Stripe, where the policy does not say it.
_PREFIXES: Final = {"customer": "cus_", "invoice": "in_"}
_EXAMPLES: Final = {
    Kind.INTEGER: "30",
    Kind.TIMESTAMP: "1893456000",  # the year 2030
    Kind.BOOLEAN: "true",
    Kind.CURRENCY: "usd",
}


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
