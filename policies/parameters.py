"""Checks parameters: the operation's catalogue bounds every policy, and the policy bounds the caller."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from policies.forms import canonical, nested, shown, split
from policies.model import Kind, Rule
from policies.refusals import ParameterInvalid, ParameterMissing, ParameterNotGranted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Entitlement, Operation, Parameter

#: Whole numbers that every JSON parser reads exactly (below 2**53).
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,14})")
#: Unix seconds up to the year 2286.
_TIMESTAMP = re.compile(r"0|[1-9][0-9]{0,9}")
#: ISO 4217 in lower case, as Stripe writes it.
_CURRENCY = re.compile(r"[a-z]{3}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,2}")
#: The length of a text if the catalogue gives none: the longest that it gives for any text.
MAX_LENGTH: Final = 5000
#: The number of entries if the catalogue gives none.
MAX_ITEMS: Final = 100
#: How many granted names a refusal lists before it says "and more".
MAX_LISTED: Final = 12


def approve(entitlement: Entitlement, given: Mapping[str, str]) -> dict[str, str]:
    """Return what goes upstream: ``given`` if the grant allows all of it, with the policy's fixed values.

    Raises :class:`ParameterNotGranted`, :class:`ParameterInvalid` or :class:`ParameterMissing`, which name the
    parameter.
    """
    rules, operation = entitlement.rules, entitlement.operation
    for path, value in given.items():
        if "[" in path:
            template = template_of(operation, path)
            rule = None if template is None else rules.get(path) or rules.get(template)
        else:
            rule = rules.get(path)
        if rule is None:
            raise ParameterNotGranted(_not_granted(entitlement, path), parameter=shown(path))
        problem = fault(rule, value)
        if problem is not None:
            raise ParameterInvalid(f"{shown(path)} {problem}", parameter=shown(path))
    approved = canonical({**given, **entitlement.fixed}) if entitlement.fixed else dict(given)
    if nested(approved):
        _check_shape(operation, approved)
    for path in entitlement.required:
        if not given.get(path) and not any(name.startswith(path + "[") for name in given):
            raise ParameterMissing(f"{path} is missing. Send it with every call.", parameter=path)
    return approved


def template_of(operation: Operation, path: str) -> str | None:
    """Return ``path`` as the catalogue writes it, or None if the operation has no such parameter.

    ``custom_fields[0][name]`` is ``custom_fields[{i}][name]``; ``metadata[order_id]`` is ``metadata[{key}]``.
    """
    catalogue = operation.parameters
    template, *rest = split(path)
    for part in rest:
        if f"{template}[{{key}}]" in catalogue:
            template = f"{template}[{{key}}]"
        elif f"{template}[{{i}}]" in catalogue and (_INDEX.fullmatch(part) or part == "{i}"):
            template = f"{template}[{{i}}]"
        else:
            template = f"{template}[{part}]"
    return template if template in catalogue else None


def fits(kind: Kind, value: str) -> bool:
    """Whether ``value`` is a valid text of its kind."""
    match kind:
        case Kind.INTEGER:
            return _INTEGER.fullmatch(value) is not None and value != "-0"
        case Kind.TIMESTAMP:
            return _TIMESTAMP.fullmatch(value) is not None
        case Kind.CURRENCY:
            return _CURRENCY.fullmatch(value) is not None
        case Kind.BOOLEAN:
            return value in {"true", "false"}
        case Kind.OBJECT | Kind.ARRAY:
            return False
        case Kind.STRING:
            return True


_WRITTEN: Final = {
    Kind.INTEGER: "must be a whole number, such as 30.",
    Kind.TIMESTAMP: "must be a date in unix seconds, such as 1767225600.",
    Kind.CURRENCY: "must be a currency in three lowercase letters, such as usd.",
    Kind.BOOLEAN: "must be true or false.",
    Kind.OBJECT: "is an object: send its parts, not a value.",
    Kind.ARRAY: "is a list: send its entries with their index, starting at [0].",
}


def fault(rule: Rule, value: str) -> str | None:
    """Say what is wrong with ``value`` under ``rule``, in words that follow the parameter's name."""
    if rule.fixed is not None:
        return None if value == rule.fixed else f"is fixed by the policy: leave it out or send {shown(rule.fixed)}."
    if not value:
        return None if rule.unsets and not rule.required else "must not be empty. Leave it out instead."
    if not fits(rule.kind, value):
        return _WRITTEN[rule.kind]
    if rule.one_of is not None and value not in rule.one_of:
        return _one_of(rule.one_of)
    if rule.max_length is not None and len(value) > rule.max_length:
        return f"is too long: {rule.max_length} characters at most."
    if rule.prefix is not None and not value.startswith(rule.prefix):
        return f"must start with {shown(rule.prefix)}."
    if rule.minimum is not None and int(value) < rule.minimum:
        return f"must be at least {rule.minimum}."
    if rule.maximum is not None and int(value) > rule.maximum:
        return f"must be at most {rule.maximum}."
    return None


def _one_of(values: frozenset[str]) -> str:
    names = sorted(shown(value) for value in values)
    more = f" (and {len(names) - MAX_LISTED} more)" if len(names) > MAX_LISTED else ""
    return f"must be one of: {', '.join(names[:MAX_LISTED])}{more}."


def _not_granted(entitlement: Entitlement, path: str) -> str:
    names = sorted(entitlement.rules)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{shown(path)} is not a parameter you may send. You may send: {', '.join(names[:MAX_LISTED])}{more}."


def _check_shape(operation: Operation, given: Mapping[str, str]) -> None:
    """Check that lists run from 0 without a gap, that nothing has too many entries, and that no object lacks a part.

    ``given`` includes the values that the policy fixes, which the caller need not send.
    """
    children: defaultdict[str, set[str]] = defaultdict(set)
    for path in given:
        parent, *rest = split(path)
        for part in rest:
            children[parent].add(part)
            parent = f"{parent}[{part}]"
    for parent, parts in children.items():
        if parent in given:
            raise ParameterInvalid(
                f"{shown(parent)} cannot be emptied: the policy fixes a part of it.", parameter=shown(parent)
            )
        template = template_of(operation, parent)
        if template is not None:
            _check_parts(shown(parent), operation.parameters[template], parts)
            for name in _needed(operation, template):
                if name not in parts:
                    raise ParameterMissing(
                        f"{shown(parent)}[{name}] is missing: {shown(parent)} cannot be sent without it.",
                        parameter=f"{shown(parent)}[{name}]",
                    )


def _check_parts(parent: str, parameter: Parameter, parts: set[str]) -> None:
    most = parameter.max_items or MAX_ITEMS
    if len(parts) > most:
        raise ParameterInvalid(f"{parent} has too many entries: {most} at most.", parameter=parent)
    if parameter.kind is Kind.ARRAY and parts != {str(index) for index in range(len(parts))}:
        raise ParameterInvalid(f"{parent} must have its entries numbered from 0 without a gap.", parameter=parent)
    if parameter.max_key is not None and any(len(part) > parameter.max_key for part in parts):
        raise ParameterInvalid(
            f"{parent} has a name that is too long: {parameter.max_key} characters at most.", parameter=parent
        )


def _needed(operation: Operation, template: str) -> list[str]:
    prefix = template + "["
    return [
        path[len(prefix) : -1]
        for path, parameter in operation.parameters.items()
        if parameter.needed and path.startswith(prefix) and "[" not in path[len(prefix) :]
    ]
