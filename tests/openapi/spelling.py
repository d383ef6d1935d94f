"""One call, written as its schema has it: each value as the JSON of its kind, lists as lists, nothing blank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.forms import canonical, split
from policies.model import Kind
from policies.parameters import brought, fits, template_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Entitlement, Operation


def nested(entitlement: Entitlement, given: Mapping[str, str]) -> Any:
    """Return the JSON of parameters by bracket path that do not contradict each other."""
    root: dict[str, Any] = {}
    for path, value in sorted(_kept(entitlement, given).items()):
        *parents, name = split(path)
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return _lists(entitlement.operation, "", root)


def flat(entitlement: Entitlement, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the same as the members of a form, lists of plain values as one ``name[]``."""
    kept = _kept(entitlement, given)
    form: dict[str, Any] = {}
    for path in canonical(dict.fromkeys(kept, "")):
        head, bracket, last = path.rpartition("[")
        if bracket and last[:-1].isdecimal() and _is_list_of_values(entitlement.operation, head):
            form.setdefault(f"{head}[]", []).append(kept[path])
        else:
            form[path] = kept[path]
    return form


def _is_list_of_values(operation: Operation, path: str) -> bool:
    template = template_of(operation, f"{path}[0]")
    if template is None or not template.endswith("[{i}]"):
        return False
    return operation.parameters[template].kind is not Kind.OBJECT


def _kept(entitlement: Entitlement, given: Mapping[str, str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for path, text in given.items():
        template = template_of(entitlement.operation, path) or ""
        rule = entitlement.rules.get(path) or entitlement.rules.get(template)
        if rule is None:
            kept[path] = text
        elif text or rule.unsets:
            kept[path] = _typed(rule.kind, text)
    return kept


def _typed(kind: Kind, text: str) -> Any:
    value = brought(kind, text)
    if not fits(kind, value):
        return text
    if kind in {Kind.INTEGER, Kind.TIMESTAMP}:
        return int(value)
    return value == "true" if kind is Kind.BOOLEAN else value


def _lists(operation: Operation, path: str, node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    inner = {name: _lists(operation, f"{path}[{name}]" if path else name, value) for name, value in node.items()}
    parameter = operation.parameters.get(template_of(operation, path) or "") if path else None
    if parameter is not None and parameter.kind is Kind.ARRAY and inner.keys() == {str(i) for i in range(len(inner))}:
        return [inner[str(place)] for place in range(len(inner))]
    return inner
