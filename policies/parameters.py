"""Checks parameters: the operation's catalogue bounds every policy, and the policy bounds the caller."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Final

from policies import keynames, lines
from policies.forms import Fractional, Truth, canonical, nested, shown, split
from policies.model import Kind, Rule
from policies.operations import OPERATIONS
from policies.refusals import (
    Fault,
    IdempotencyKeyInvalid,
    IdempotencyKeyMissing,
    ParameterInvalid,
    ParameterMissing,
    ParameterNotGranted,
)
from policies.suggestions import closest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from policies.model import Entitlement, Operation, Parameter
    from policies.refusals import PolicyRefusal

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
#: How many faults a refusal lists: more than anybody mends in one go.
MAX_FAULTS: Final = 20
#: For how many unknown names a similar one is looked for. Each may take 10 ms in the largest catalogue.
MAX_SUGGESTED: Final = 3
#: What Stripe reads as a boolean: old Python SDKs write True and False, PHP writes 1 and 0.
BOOLEANS: Final = {
    **dict.fromkeys(("true", "True", "TRUE", "1"), "true"),
    **dict.fromkeys(("false", "False", "FALSE", "0"), "false"),
}
_STRING: Final = Kind.STRING


def approve(entitlement: Entitlement, given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what was asked, and what goes upstream: that with the policy's fixed values.

    Each value of what was asked is in its one form (see :func:`brought`), and blank ones that unset nothing are left
    out, so that all spellings of a call have one fingerprint and one key. Where an entry of a list is blank all
    through, the next ones move up; what is wrong with them is told by the numbers that the caller wrote.

    Raises :class:`ParameterNotGranted`, :class:`ParameterInvalid`, :class:`ParameterMissing`, or where a parameter is
    the key :class:`IdempotencyKeyMissing` or :class:`IdempotencyKeyInvalid`: the class of the first fault, with all.
    """
    rules = entitlement.rules
    faults: list[Fault] = []
    asked: dict[str, str] = {}
    blank = False
    for path, value in given.items():
        rule = rules.get(path) or _rule_of_part(entitlement, path)
        if rule is None:
            if not value and _is_entry(entitlement, path):
                blank = True
                continue
            faults.append(_not_granted(rules, path, sum(one.kind is ParameterNotGranted for one in faults)))
        else:
            if rule.kind is not _STRING:
                value = brought(rule.kind, value)  # noqa: PLW2901 - the same value in its one form
            if not value and not rule.unsets:
                blank = True
                continue
            asked[path] = value
            problem = fault(rule, value)
            if problem is not None:
                faults.append(Fault(ParameterInvalid, shown(path), f"{shown(path)} {problem}", accepts(rule)))
        if len(faults) == MAX_FAULTS:
            raise refusal_of(faults)
    approved = canonical({**asked, **entitlement.fixed}) if entitlement.fixed else asked
    gone = _blank_entries(entitlement, given, approved) if blank else {}
    faults += _faults_of_all(entitlement, given, asked, approved, gone)
    if entitlement.lines is not None and not any(one.parameter.startswith(("lines[", "currency")) for one in faults):
        faults += lines.faults(entitlement.lines, entitlement.amount, approved)
    if faults:
        raise refusal_of(faults)
    return (_moved_up(asked, gone), _moved_up(approved, gone)) if gone else (asked, approved)


def _blank_entries(
    entitlement: Entitlement, given: Mapping[str, str], approved: Mapping[str, str]
) -> dict[str, set[int]]:
    """Return the entries that are blank all through, by list: rows of a form that nobody has filled in.

    A list of which the policy names an entry by its number keeps its numbers.
    """
    operation, key = entitlement.operation, entitlement.idempotency.parameter
    kept = {place for path in approved for _, _, place in _places(path)}
    named = (*entitlement.rules, *(() if key is None else (key,)))
    numbered = {template_of(operation, of) for path in named for of, part, _ in _places(path) if part.isdecimal()}
    gone: defaultdict[str, set[int]] = defaultdict(set)
    for path in given:
        for of, part, place in _places(path) if path not in approved else ():
            template = template_of(operation, of)
            listed = template is not None and operation.parameters[template].kind is Kind.ARRAY
            if listed and template not in numbered and place not in kept and _INDEX.fullmatch(part):
                gone[of].add(int(part))
    return dict(gone)


def _places(path: str) -> Iterator[tuple[str, str, str]]:
    """Yield what each part of a path is a part of, its name there, and the path up to it."""
    of, *parts = split(path)
    for part in parts:
        place = f"{of}[{part}]"
        yield of, part, place
        of = place


def _moved_up(parameters: Mapping[str, str], gone: Mapping[str, set[int]]) -> dict[str, str]:
    """Return parameters with the entries of lists numbered anew, without those that are gone."""
    moved = {}
    for path, value in parameters.items():
        name = path.partition("[")[0]
        for of, part, _ in _places(path):
            name += f"[{_up(part, gone[of]) if of in gone else part}]"
        moved[name] = value
    return moved


def _up(index: str, gone: set[int]) -> str:
    return str(int(index) - sum(one < int(index) for one in gone))


def _rule_of_part(entitlement: Entitlement, path: str) -> Rule | None:
    """Return the rule that a path has as a part of a list or an object, by its path in the catalogue."""
    template = template_of(entitlement.operation, path) if "[" in path else None
    if template is None:
        return None
    if "[{i}]" in template and "[{key}]" in template:  # a name that the policy chose, in an entry of a list
        first, *parts = split(path)
        chosen = [part if place == "{key}" else place for part, place in zip(parts, split(template)[1:], strict=True)]
        named = entitlement.rules.get(f"{first}[{']['.join(chosen)}]")
        if named is not None:
            return named
    return entitlement.rules.get(template)


def _is_entry(entitlement: Entitlement, path: str) -> bool:
    """Whether a path is a whole entry of a list of which the policy grants something."""
    template = template_of(entitlement.operation, path)
    if template is None or not template.endswith("[{i}]"):
        return False
    return any(one.startswith(template.removesuffix("{i}]")) for one in entitlement.rules)


def _faults_of_all(
    entitlement: Entitlement,
    given: Mapping[str, str],
    asked: Mapping[str, str],
    approved: Mapping[str, str],
    gone: Mapping[str, set[int]],
) -> list[Fault]:
    """Return what is wrong with the parameters together: the shape of objects and lists, and what is missing."""
    faults: list[Fault] = []
    if nested(approved):
        adds = entitlement.stamp is not None or entitlement.lines is not None
        taken = taken_of(entitlement) if adds else entitlement.fixed
        faults += _misshapen(entitlement.operation, approved, taken, gone)
        faults += (_ours(path) for path in asked if path in lines.OURS)
    for path in entitlement.required:
        if path not in asked and not any(name.startswith(path + "[") for name in asked):
            faults.append(_missing(entitlement.rules, path, blank=path in given))
    if entitlement.stamp is not None:
        faults += _stamped(entitlement.stamp, given)
    if entitlement.idempotency.parameter is not None:
        faults += _keyless(entitlement.idempotency.parameter, entitlement, asked)
    return faults


def ours(operation: Operation, stamp: str | None) -> frozenset[str]:
    """Return the parameters that we write in the name of every call: its stamp, and what marks a whole invoice."""
    return (lines.OURS if operation.whole else frozenset()) | ({stamp} if stamp is not None else frozenset())


def taken_of(entitlement: Entitlement) -> frozenset[str]:
    """Return the parameters that no caller need write: those of ours, and those that the policy fixes."""
    return frozenset({*ours(entitlement.operation, entitlement.stamp), *entitlement.fixed})


def room(operation: Operation, path: str, taken: Collection[str]) -> int:
    """Return how many entries of the list or object at ``path`` are left to a caller. ``taken`` are written anyway.

    The entries of a list are numbered, so what is written of it is counted with the caller's.
    """
    parameter = operation.parameters[template_of(operation, path) or path]
    most = parameter.max_items or MAX_ITEMS
    return most if parameter.kind is Kind.ARRAY else most - len(_parts(path, taken))


def _parts(parent: str, paths: Collection[str]) -> set[str]:
    """Return the names of the parts of an object that ``paths`` lead into."""
    inside = f"{parent}["
    return {path[len(inside) :].partition("]")[0] for path in paths if path.startswith(inside)}


def _ours(path: str) -> Fault:
    """Return the fault of a call that writes what we find our invoices by."""
    return Fault(ParameterNotGranted, path, f"{path} is written by Countersign itself. Leave it out.", {})


def refusal_of(faults: Iterable[Fault]) -> PolicyRefusal:
    """Return the refusal for one or more faults: the first one's, with the others in ``faults``."""
    # A required parameter that is also the key, or an object's needed part, is missing once.
    by_parameter: dict[str, Fault] = {}
    for one in faults:
        by_parameter.setdefault(one.parameter, one)
    told = tuple(by_parameter.values())[:MAX_FAULTS]
    first, *others = told
    detail = first.detail
    if others:
        count = f"At least {len(others)}" if len(told) == MAX_FAULTS else f"{len(others)}"
        detail += f" {count} more {'thing is' if len(others) == 1 else 'things are'} wrong."
    return first.kind(detail, parameter=first.parameter, faults=told)


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


def brought(kind: Kind, value: str) -> str:
    """Return the one form of a value that Stripe reads in several. Any other value is returned as it is."""
    if kind is Kind.BOOLEAN:
        return BOOLEANS.get(value, value)
    if kind is Kind.CURRENCY and value.isascii():
        return value.lower()
    return value


def fits(kind: Kind, value: str) -> bool:
    """Whether ``value`` is a valid text of its kind, in its one form."""
    match kind:
        case Kind.STRING:
            return True
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


_WRITTEN: Final = {
    Kind.INTEGER: "must be a whole number, such as 30.",
    Kind.TIMESTAMP: "must be a date in unix seconds, such as 1767225600.",
    Kind.CURRENCY: "must be a currency in three lowercase letters, such as usd.",
    Kind.BOOLEAN: "must be true or false.",
    Kind.OBJECT: "is an object: send its parts, not a value.",
    Kind.ARRAY: "is a list: send each entry by itself, with [] behind the name.",
}


def fault(rule: Rule, value: str) -> str | None:
    """Say what is wrong with ``value`` under ``rule``, in words that follow the parameter's name."""
    if value != value.strip() and not (rule.free and rule.one_of is None and rule.prefix is None):
        return f"has white space or a line break at its {'start' if value[:1].isspace() else 'end'}. Remove it."
    if rule.fixed is not None:
        return None if value == rule.fixed else f"is fixed by the policy: leave it out or send {shown(rule.fixed)}."
    if not value:
        return None if rule.unsets and not rule.required else "must not be empty."
    if not fits(rule.kind, value):
        return _WRITTEN[rule.kind]
    if rule.one_of is not None and value not in rule.one_of:
        return _one_of(rule.one_of)
    if rule.max_length is not None and len(value) > rule.max_length:
        return f"is too long: {rule.max_length} characters at most."
    if rule.path == "email" and " " in value:  # such a customer would never be found again
        return "has a blank in it. A + stands for a blank in an address and in a form: write %2B there."
    if rule.prefix is not None and not value.startswith(rule.prefix):
        return f"must start with {shown(rule.prefix)}."
    return None if rule.minimum is rule.maximum is None else _out_of_range(rule, value)


def _out_of_range(rule: Rule, value: str) -> str | None:
    if rule.minimum is not None and int(value) < rule.minimum:
        return f"must be at least {rule.minimum}."
    if rule.maximum is not None and int(value) > rule.maximum:
        return f"must be at most {rule.maximum}."
    return None


def accepts(rule: Rule) -> dict[str, object]:
    """Return what passes under ``rule``, as data, in the words of a policy document."""
    if rule.fixed is not None:
        return {"fixed": shown(rule.fixed)}
    said = {
        "kind": rule.kind.value,
        "one_of": None if rule.one_of is None else sorted(map(shown, rule.one_of)),
        "max_length": rule.max_length,
        "prefix": None if rule.prefix is None else shown(rule.prefix),
        "min": rule.minimum,
        "max": rule.maximum,
    }
    return {name: bound for name, bound in said.items() if bound is not None}


def _one_of(values: frozenset[str]) -> str:
    names = sorted(shown(value) for value in values)
    more = f" (and {len(names) - MAX_LISTED} more)" if len(names) > MAX_LISTED else ""
    return f"must be one of: {', '.join(names[:MAX_LISTED])}{more}."


def _not_granted(rules: Mapping[str, Rule], path: str, before: int) -> Fault:
    """Return the fault of an unknown or ungranted name, with ``before`` of them before it."""
    said = f"{shown(path)} is not a parameter you may send."
    if re.fullmatch(r"lines\[\d+\]\[currency\]", path) and "currency" in rules:
        said = f"{path} does not belong to a line: all lines are in one currency. Send currency once, beside the lines."
        return Fault(ParameterNotGranted, path, said, {"did_you_mean": "currency"})
    inside = re.sub(r"\[\d+\]", "[{i}]", path) + "["
    parts = [shown(one.replace("{i}", "0")) for one in rules if one.startswith(inside)][:MAX_LISTED]
    if parts:
        said = f"{shown(path)} cannot be a value: send its parts, such as {parts[0]}. In JSON, nest lists and objects."
        return Fault(ParameterNotGranted, shown(path), said, {"parameters": parts})
    close = closest(path, rules) if before < MAX_SUGGESTED else None
    if close is not None:
        return Fault(
            ParameterNotGranted, shown(path), f"{said} Did you mean {shown(close)}?", {"did_you_mean": shown(close)}
        )
    names = sorted(map(shown, rules))
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    listed = names[:MAX_LISTED]
    if not before:
        said += f" You may send: {', '.join(listed)}{more}."
    return Fault(ParameterNotGranted, shown(path), said, {"parameters": listed})


def _missing(rules: Mapping[str, Rule], path: str, *, blank: bool) -> Fault:
    rule = rules.get(path)
    said = f"{path} is {'empty' if blank else 'missing'}. Send it with every call."
    return Fault(ParameterMissing, path, said, {} if rule is None else accepts(rule))


def _stamped(stamp: str, given: Mapping[str, str]) -> Iterator[Fault]:
    """Refuse what would write where the policy names the call to the upstream."""
    if stamp in given:
        yield Fault(ParameterNotGranted, stamp, f"{stamp} is written by the policy itself. Leave it out.", {})
    yield from lines.emptied(given)


def _keyless(path: str, entitlement: Entitlement, asked: Mapping[str, str]) -> Iterator[Fault]:
    """Refuse a call whose key is the value of a parameter that does not name one call."""
    value, rule, prefix = asked.get(path), entitlement.rules.get(path), entitlement.idempotency.prefix
    bounds = {} if rule is None else accepts(rule)
    if prefix:
        bounds["prefix"] = shown(prefix)
    if not value:
        said = f"Send {path}: it is what keeps a repeated call from doing twice what you want once."
        yield Fault(IdempotencyKeyMissing, path, said, bounds)
    elif isinstance(value, Truth):
        said = f"{path} names this call, so it cannot be true or false. Send what tells your orders apart."
        yield Fault(IdempotencyKeyInvalid, path, said, bounds)
    elif isinstance(value, Fractional):
        said = f"{path} names this call, so it cannot be a number with a fraction. Send it as text, in quotes."
        yield Fault(ParameterInvalid, path, said, bounds)
    elif (problem := keynames.fault(value, prefix)) is not None:
        yield Fault(IdempotencyKeyInvalid, path, f"{path} {problem}", bounds)


def _misshapen(
    operation: Operation, given: Mapping[str, str], taken: Collection[str], gone: Mapping[str, set[int]]
) -> Iterator[Fault]:
    """Yield lists that do not run from 0 without a gap, what has too many entries, and objects that lack a part.

    ``given`` includes the values that the policy fixes, which the caller need not send. These, and what we add, are
    ``taken``: the upstream counts them too. Entries that are ``gone`` from a list leave no gap.
    """
    children: defaultdict[str, set[str]] = defaultdict(set)
    for path in given:
        for of, part, _ in _places(path):
            children[of].add(part)
    for parent, parts in children.items():
        name = shown(parent)
        if parent in given:
            yield Fault(ParameterInvalid, name, f"{name} cannot be emptied: the policy fixes a part of it.", {})
            continue
        template = template_of(operation, parent)
        if template is not None:
            parameter = operation.parameters[template]
            most, theirs = parameter.max_items or MAX_ITEMS, parts
            if len(parts) + len(taken) > most and parameter.kind is Kind.OBJECT:  # which few calls come near to
                most, theirs = room(operation, parent, taken), parts - _parts(parent, taken)
            if parent in gone and all(part.isdecimal() for part in parts):
                theirs = {_up(part, gone[parent]) for part in parts}
            yield from _bad_parts(name, parameter, theirs, most)
            for missing in needed(operation, template):
                if missing not in parts:
                    part = f"{name}[{missing}]"
                    kind = operation.parameters[f"{template}[{missing}]"].kind.value
                    said = f"{part} is missing: {name} cannot be sent without it."
                    yield Fault(ParameterMissing, part, said, {"kind": kind})


def impossible(operation: Operation, paths: Iterable[str], stamp: str | None = None) -> str | None:
    """Say why no call could send these parameters together, beside what we add to it; None if one could.

    Those whose path has a placeholder, such as ``metadata[{key}]``, may be sent under many a name.
    """
    faults = _misshapen(operation, {path: "" for path in paths if "{" not in path}, ours(operation, stamp), {})
    return next((fault.detail for fault in faults if fault.accepts.keys() & {"max_items", "max_key"}), None)


def _bad_parts(parent: str, parameter: Parameter, parts: set[str], most: int) -> Iterator[Fault]:
    beyond = parameter.kind is Kind.ARRAY and any(part.isdecimal() and int(part) >= most for part in parts)
    if beyond or len(parts) > most:
        said = f"{parent} has too many entries: {most} at most."
        yield Fault(ParameterInvalid, parent, said, {"max_items": most})
    elif parameter.kind is Kind.ARRAY and parts != {str(index) for index in range(len(parts))}:
        said = f"{parent} must have its entries numbered from 0 without a gap."
        yield Fault(ParameterInvalid, parent, said, {})
    elif parameter.max_key is not None and any(len(part) > parameter.max_key for part in parts):
        said = f"{parent} has a name that is too long: {parameter.max_key} characters at most."
        yield Fault(ParameterInvalid, parent, said, {"max_key": parameter.max_key})


def needed(operation: Operation, template: str) -> tuple[str, ...]:
    """Return the names of the parts without which an object, or an entry of a list, is refused; of "", the call."""
    return _needed(operation.id).get(template, ())


@cache
def _needed(operation: str) -> Mapping[str, tuple[str, ...]]:
    """Return those of an operation, by the path of the object or of the entry; those of the call by ""."""
    parts: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    for path, parameter in OPERATIONS[operation].parameters.items():
        parent, _, name = path.rpartition("[")
        if parameter.needed:
            parts[parent] += (name.removesuffix("]"),)
    return parts
