"""What a grant lets a caller send, as JSON Schema (draft 2020-12): the inverse of ``policies.parameters``.

One tree is made of a grant's rules, and written twice: nested, as JSON is sent, and flat, as forms are. In both, what
the schema takes passes ``parameters.approve``, and whatever passes that, once each value is in its one form, is taken.
The rest is spelling, which JSON Schema has no words for: ``"30"`` for 30, ``True`` for true, blank values. Of a form
it cannot say two things: how many names a caller may choose freely, and which parts each of those needs. Of a whole
invoice it says how each line is written (of a form the first), not what all of them may come to together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from console.describe import example
from policies import keynames, lines
from policies.forms import MAX_FIELDS, split
from policies.model import Kind, Risk
from policies.operations import words
from policies.parameters import MAX_ITEMS, fault, needed, room, taken_of, template_of
from policies.wording import money

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from policies.model import Entitlement, Operation, Parameter, Rule

#: A JSON Schema: an object, or False, which takes nothing.
Schema = dict[str, Any] | bool

#: Below 10**15, which is what ``parameters.fits`` takes; and unix seconds up to the year 2286.
_LARGEST: Final = 10**15 - 1
_LATEST: Final = 10**10 - 1
#: C0 without tab, LF and CR, and DEL: what ``forms`` refuses anywhere.
_CONTROL: Final = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f"
#: White space as ``str.strip`` sees it. Spelt out, since dialects of regular expressions differ in what \s is.
_WHITE: Final = r"\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
#: What is not printable, without code points that have no character yet.
_UNSEEN: Final = (
    r"\x00-\x20\x7f-\xa0\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680\u180e\u2000-\u200f\u2028-\u202f"
    r"\u205f-\u206f\u3000\ue000-\uf8ff\ufeff\ufff9-\ufffb"
)
_PARTS: Final = keynames.SEPARATORS  # the dash comes first
_WORDS: Final = "|".join(keynames.WORDS)


def _exactly(text: str) -> str:
    """Return the pattern of one text, in the common part of all dialects: ``re.escape`` escapes too much for ECMA's."""
    return re.sub(r"[\^$\\.*+?()\[\]{}|/]", r"\\\g<0>", text)


#: The schemas that others name: what a text must not be.
SHARED: Final[Mapping[str, Schema]] = {
    "Unprintable": {"description": "Text with a control character.", "type": "string", "pattern": f"[{_CONTROL}]"},
    "Untidy": {
        "description": "Text with white space at an end, or with a control character.",
        "type": "string",
        "pattern": f"^[{_WHITE}]|[{_WHITE}]$|[{_CONTROL}]",
    },
    "NoKey": {
        "description": "What names no call: a field that a tool did not fill in, or what nobody sees at an end.",
        "type": "string",
        "pattern": "|".join(
            [
                rf"(?:^|[{_PARTS}])(?:{_WORDS})(?:[{_PARTS}]|$)",
                *map(_exactly, keynames.ANYWHERE),
                f"^[{_UNSEEN}]|[{_UNSEEN}]$",
                r"[\x00-\x1f\x7f-\x9f\u2028\u2029]",
            ]
        ),
    },
}


@dataclass(frozen=True, slots=True)
class _Node:
    """A parameter of a grant, by its place in the nesting."""

    path: str
    parameter: Parameter | None
    """None at the top, and for what the catalogue does not name, such as the entries of a list."""
    rule: Rule | None
    parts: Mapping[str, _Node]
    """Those with names of their own."""
    each: Mapping[tuple[str, ...], Rule | None] = field(default_factory=dict)
    """The rules of all other entries of a list or an object with free names."""
    listed: bool = False
    always: bool = False
    """Whether the policy itself sends a part of it."""
    never: bool = False
    """Whether the policy alone writes here."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return split(self.path)[-1]

    @property
    def plain(self) -> bool:
        """Whether it is a value."""
        return not self.parts and not self.each

    @property
    def most(self) -> int:
        """How many entries it may have."""
        return (self.parameter.max_items if self.parameter is not None else None) or MAX_ITEMS

    @property
    def longest(self) -> int | None:
        """How long a name in it may be that the caller chooses."""
        return None if self.parameter is None else self.parameter.max_key


def nested(entitlement: Entitlement) -> dict[str, Any]:
    """Return the schema of a JSON body. What the path of the address holds is left out."""
    return _Nested(entitlement).schema()


def flat(entitlement: Entitlement) -> dict[str, Any]:
    """Return the schema of a form, whose names are bracket paths. What the path of the address holds is left out."""
    return _Flat(entitlement).schema()


def in_path(operation: Operation) -> frozenset[str]:
    """Return the parameters that the path of the address holds."""
    return frozenset(part[1:-1] for part in operation.path.split("/") if part.startswith("{"))


def shown(schema: Schema) -> Any:
    """Return a value that ``nested`` takes: what every call needs, or else the first that it may have."""
    if isinstance(schema, bool):
        return None
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return shown(schema[several][0])
    if schema.get("type") == "array":
        entries = schema.get("prefixItems", [schema["items"]])
        return [shown(entry) for entry in entries[: max(1, schema["minItems"])]]
    if schema.get("type") != "object":
        return (schema.get("examples") or schema.get("enum") or [""])[0]
    named = schema.get("required", [])
    open_to_all = schema["additionalProperties"]
    first = sorted(schema["properties"], key=lambda name: "default" in schema["properties"][name])[:1]
    if not named and not first and open_to_all is not False:
        return {"example": shown(open_to_all)}
    return {name: shown(schema["properties"][name]) for name in named or first}


def spread(value: Any, path: str = "") -> dict[str, Any]:
    """Return JSON as the members of a form, as ``flat`` names them."""
    if isinstance(value, list) and not any(isinstance(inner, dict) for inner in value):
        return {f"{path}[]": value}
    if not isinstance(value, dict | list):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    form: dict[str, Any] = {}
    for name, inner in pairs:
        form |= spread(inner, _under(path, str(name)))
    return form


def value(entitlement: Entitlement, path: str) -> Schema:
    """Return the schema of one plain parameter."""
    tree = _Tree(entitlement)
    return tree.leaf(tree.find(path))


def of(rule: Rule, key: str | None = None) -> dict[str, Any]:
    """Return the schema of what ``parameters.fault`` finds no fault with, written as JSON has it.

    ``key`` is given for a parameter that is the idempotency key: how it must begin, empty if that is free.
    """
    if rule.kind in {Kind.OBJECT, Kind.ARRAY}:
        return EMPTY
    kind = _TYPES[rule.kind]
    if rule.fixed is not None:
        only = _typed(rule.kind, rule.fixed)
        # A const alone would do; importers fill in nothing but a default.
        return {**kind, "enum": [only], "default": only}
    schema: dict[str, Any] = dict(kind)
    if rule.one_of is not None:
        fitting = sorted(one for one in rule.one_of if fault(rule, one) is None)
        if key is not None:
            fitting = [one for one in fitting if one and keynames.fault(one, key) is None]
        schema["enum"] = [_typed(rule.kind, one) for one in fitting]
    elif rule.kind is Kind.STRING:
        schema |= _text(rule, key)
    elif rule.kind is Kind.CURRENCY:
        schema |= {"pattern": "^[a-z]{3}$", "minLength": 3, "maxLength": 3}
    elif rule.kind in _BOUNDS:
        least, most = _BOUNDS[rule.kind]
        schema["minimum"] = least if rule.minimum is None else max(least, rule.minimum)
        schema["maximum"] = most if rule.maximum is None else min(most, rule.maximum)
    if rule.unsets and not rule.required and key is None:
        return {"anyOf": [schema, EMPTY]}
    return schema


def key_header(prefix: str) -> dict[str, Any]:
    """Return the schema of an ``Idempotency-Key`` header that must begin with ``prefix``, or may begin as it likes."""
    # As keynames.HEADER has it. A quoted key is taken as well, but there is no need to quote one.
    schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[!#-+\--~][ -+\--~]*$"}
    return schema | _naming(prefix)


def _text(rule: Rule, key: str | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"minLength": 1}
    if rule.max_length is not None:
        schema["maxLength"] = rule.max_length
    if rule.prefix is not None:
        schema["pattern"] = f"^{_exactly(rule.prefix)}"
    if key is not None:
        schema |= _naming(key)
    tidy = not rule.free or rule.prefix is not None
    schema["not"] = {"$ref": f"#/components/schemas/{'Untidy' if tidy else 'Unprintable'}"}
    return schema


def _naming(prefix: str) -> dict[str, Any]:
    """Return what ``keynames.fault`` asks of a key."""
    rules: list[dict[str, Any]] = [{"not": {"$ref": "#/components/schemas/NoKey"}}]
    if prefix:
        begins = _exactly(prefix)
        rules.append({"pattern": f"^{begins}[{_PARTS}]*[^{_PARTS}]"})
        rules.append({"not": {"pattern": f"^{begins}(?:{_WORDS})(?:[{_PARTS}]|$)"}})
    return {"allOf": rules}


def _typed(kind: Kind, text: str) -> str | int | bool:
    """Return a value as JSON has it."""
    if kind in _BOUNDS:
        return int(text)
    return text == "true" if kind is Kind.BOOLEAN else text


#: What an object or a list may be in place of its parts, where that clears it; and a text, where that does.
EMPTY: Final[dict[str, Any]] = {"type": "string", "enum": [""], "description": "Clears what is there."}
_TYPES: Final[Mapping[Kind, dict[str, Any]]] = {
    Kind.STRING: {"type": "string"},
    Kind.CURRENCY: {"type": "string"},
    Kind.BOOLEAN: {"type": "boolean"},
    Kind.INTEGER: {"type": "integer"},
    Kind.TIMESTAMP: {"type": "integer"},
}
_BOUNDS: Final = {Kind.INTEGER: (-_LARGEST, _LARGEST), Kind.TIMESTAMP: (0, _LATEST)}


class _Tree:
    """The parameters of a grant, by their place in the nesting."""

    def __init__(self, entitlement: Entitlement) -> None:
        self.entitlement = entitlement
        self.operation = entitlement.operation
        self.key = entitlement.idempotency.parameter
        whole = () if entitlement.lines is None else (_LINES,)
        self.asked = frozenset({*entitlement.required, *whole, *(() if self.key is None else (self.key,))})
        self._words = words(self.operation.id)
        rules: dict[tuple[str, ...], Rule | None] = {split(path): rule for path, rule in entitlement.rules.items()}
        if self.key is not None and self.key not in entitlement.rules:
            rules[split(self.key)] = entitlement.rules[template_of(self.operation, self.key) or ""]
        if entitlement.stamp is not None:
            rules[split(entitlement.stamp)] = None
        self.root = self._node("", rules)

    def _node(self, path: str, rules: Mapping[tuple[str, ...], Rule | None]) -> _Node:
        own = rules.get(())
        below: dict[str, dict[tuple[str, ...], Rule | None]] = {}
        for names, rule in rules.items():
            if names:
                below.setdefault(names[0], {})[names[1:]] = rule
        template = template_of(self.operation, path) if path else None
        parameter = None if template is None else self.operation.parameters[template]
        if parameter is not None and path == _LINES and self.entitlement.lines is not None:
            parameter = replace(parameter, max_items=self.entitlement.lines.max)
        each = below.pop("{i}", None) or below.pop("{key}", None) or {}
        parts = {name: self._node(_under(path, name), {**each, **inner}) for name, inner in sorted(below.items())}
        always = (own is not None and own.fixed is not None) or any(part.always for part in parts.values())
        if parts and (always or any(part.never for part in parts.values())):
            own = None  # it cannot be cleared: the policy writes a part of it
        return _Node(
            path,
            parameter,
            own,
            parts,
            each,
            listed=parameter is not None and parameter.kind is Kind.ARRAY,
            always=always,
            never=() in rules and rules[()] is None,
        )

    def part(self, node: _Node, name: str) -> _Node | None:
        """Return the part of ``node`` with this name; None if there is none. ``{i}`` and ``{key}`` are any other."""
        if name in node.parts:
            return node.parts[name]
        return self._node(_under(node.path, name), node.each) if node.each else None

    def find(self, path: str) -> _Node:
        """Return a parameter by its path, which the grant has."""
        node = self.root
        for name in split(path):
            part = self.part(node, name)
            if part is None:
                raise KeyError(path)
            node = part
        return node

    def needs(self, node: _Node) -> list[str]:
        """Return the parts that ``node`` is refused without, as far as the policy does not send them itself."""
        if node.parameter is None:
            return []
        parts = ((name, self.part(node, name)) for name in needed(self.operation, node.parameter.path))
        return [name for name, part in parts if part is None or not part.always]

    def must(self, node: _Node) -> bool:
        """Whether every call has to send a part of ``node``, or it itself."""
        if node.path in self.asked or (node.always and self.needs(node)):
            return True
        return any(self.must(part) for part in node.parts.values())

    def leaf(self, node: _Node) -> Schema:
        """Return the schema of a plain value, with what people read of it."""
        if node.rule is None:
            return False
        prefix = self.entitlement.idempotency.prefix
        schema = {**self.said(node), **of(node.rule, prefix if node.path == self.key else None)}
        schema |= self._of_a_line(node, schema)
        read = None if node.parameter is None else self._words.get(node.parameter.path)
        shown = (
            f"{prefix}1001" if node.path == self.key and prefix else example(node.rule, read.example if read else "")
        )
        if shown is not None and fault(node.rule, shown) is None:
            value = _typed(node.rule.kind, shown)
            schema["examples"] = [min(value, schema["maximum"]) if "maximum" in schema else value]
        return schema

    def ways(self, node: _Node) -> dict[str, tuple[str, ...]]:
        """Return how a line says what it comes to, with what goes with each way; empty if ``node`` is no line."""
        if self.entitlement.lines is None or node.parameter is None or node.parameter.path != f"{_LINES}[{{i}}]":
            return {}
        return lines.ways([name for name in lines.PARTS if self.part(node, name) is not None])

    def _of_a_line(self, node: _Node, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Return the bounds that a number in a line has beside its own: no line may come to more than the invoice."""
        bounds, amount = self.entitlement.lines, self.entitlement.amount
        if bounds is None or node.parameter is None or "minimum" not in schema:
            return {}
        name = node.parameter.path.removeprefix(f"{_LINES}[{{i}}]")
        if name not in {"[amount]", "[unit_amount]", "[quantity]"}:
            return {}
        most = max(map(lines.largest, amount.currencies)) if amount is not None and amount.currencies else _LARGEST
        if amount is not None and amount.max is not None and not bounds.credit:
            most = min(most, amount.max)
        least = -most if bounds.credit and name == "[amount]" else 1
        told: dict[str, Any] = {"minimum": max(schema["minimum"], least)}
        if name != "[quantity]":
            told["maximum"] = min(schema["maximum"], most)
        return told | ({"not": {"const": 0}} if least < 0 else {})

    def said(self, node: _Node) -> dict[str, Any]:
        """Return what people read of a parameter, and its risk."""
        if node.parameter is None:
            return {}
        told: dict[str, Any] = {}
        if (read := self._words.get(node.parameter.path)) is not None:
            told = {"title": read.label, "description": read.means}
        if node.path == _LINES and self.entitlement.lines is not None:
            told = {"title": "Lines", "description": _of_all_lines(self.entitlement)}
        if node.rule is not None and node.rule.fixed is not None:
            told["description"] = "Fixed by the policy, and sent for you: leave it out."
        if node.path == self.key:
            told["description"] = _NAMES_THE_CALL
        if node.parameter.risk is not Risk.PLAIN:
            told["x-countersign-risk"] = node.parameter.risk.value
        return told

    def entries(self, node: _Node) -> dict[str, Any]:
        """Return the schema of a list of plain values."""
        return self.listed(node, self.leaf)

    def listed(self, node: _Node, write: Callable[[_Node], Schema]) -> dict[str, Any]:
        """Return the schema of a list whose entries ``write`` writes."""
        least = max((int(name) + 1 for name, part in node.parts.items() if self.must(part)), default=1)
        schema: dict[str, Any] = {"type": "array", **self.said(node), "minItems": least, "maxItems": node.most}
        if node.parts:
            first = (self.part(node, str(place)) for place in range(max(map(int, node.parts)) + 1))
            schema["prefixItems"] = [False if part is None else write(part) for part in first]
        each = self.part(node, "{i}")
        schema["items"] = False if each is None else write(each)
        return schema


class _Nested(_Tree):
    """The schema of a JSON body."""

    def schema(self) -> dict[str, Any]:
        schema = self._object(self.root)
        if isinstance(schema, bool):
            return {"not": {}}
        del schema["minProperties"]
        for name in in_path(self.operation):
            schema["properties"].pop(name, None)
        if required := [name for name in schema.pop("required", ()) if name not in in_path(self.operation)]:
            schema["required"] = required
        return schema

    def _any(self, node: _Node) -> Schema:
        if node.plain:
            return self.leaf(node)
        schema = self.listed(node, self._any) if node.listed else self._object(node)
        if node.rule is None or node.rule.required or schema is False:
            return schema
        return {"anyOf": [schema, EMPTY]}

    def _object(self, node: _Node) -> Schema:
        needs = self.needs(node)
        if any(self.part(node, name) is None for name in needs):
            return False
        each = self.part(node, "{key}")
        schema: dict[str, Any] = {
            "type": "object",
            **self.said(node),
            "minProperties": 1,
            "properties": {name: self._any(part) for name, part in node.parts.items()},
            "additionalProperties": False if each is None else self._any(each),
        }
        if required := sorted({*needs, *(name for name, part in node.parts.items() if self.must(part))}):
            schema["required"] = required
        if each is not None:
            schema["maxProperties"] = room(self.operation, node.path, taken_of(self.entitlement))
            schema["propertyNames"] = {"minLength": 1, "not": {"pattern": rf"[\[\]{_CONTROL}]"}}
            if node.longest is not None:
                schema["propertyNames"]["maxLength"] = node.longest
        if ways := self.ways(node):
            return {"oneOf": [_in_one_way(schema, way, ways) for way in ways]}
        return schema


class _Flat(_Tree):
    """The schema of a form."""

    def schema(self) -> dict[str, Any]:
        self._properties: dict[str, Schema] = {}
        self._patterns: dict[str, Schema] = {}
        self._required: set[str] = set()
        self._together: list[Schema] = []
        for name, part in self.root.parts.items():
            if name not in in_path(self.operation):
                self._read(part)
        schema: dict[str, Any] = {"type": "object", "properties": dict(sorted(self._properties.items()))}
        if self._patterns:
            schema["patternProperties"] = self._patterns
            schema["maxProperties"] = MAX_FIELDS
        schema["additionalProperties"] = False
        if self._required:
            schema["required"] = sorted(self._required)
        if self._together:
            schema["allOf"] = self._together
        return schema

    def _read(self, node: _Node) -> None:
        """Take in what has a name of its own."""
        path = node.path
        if path in self.asked and path != _LINES:  # of these the first is asked for
            self._ask(self._has(node))
        if node.plain:
            if node.rule is not None:
                self._properties[path] = self.leaf(node)
            return
        if node.rule is not None and not node.rule.required:
            # As a pattern: importers fill in every property, and one that clears contradicts its parts.
            self._patterns[f"^{_exactly(path)}$"] = EMPTY
            self._together.append({"not": {"allOf": [{"required": [path]}, self._has(node, itself=False)]}})
        if self._scalars(node):
            self._properties[f"{path}[]"] = self.entries(node)
            if any(map(self.must, node.parts.values())):
                self._ask({"required": [f"{path}[]"]})
        elif node.listed:
            self._rows(node)
        else:
            self._parts(node)

    def _parts(self, node: _Node) -> None:
        for part in node.parts.values():
            self._read(part)
        self._free(node, _exactly(node.path))
        for name in self.needs(node):
            missing = self.part(node, name)
            self._if(node, False if missing is None else self._has(missing))

    def _rows(self, node: _Node) -> None:
        """Take in a list of objects: the first by its names, the others by a pattern. None may be left out between."""
        places = range(node.most) if node.each else sorted(map(int, node.parts))
        for place in places:
            row = self.part(node, str(place))
            if row is None:
                continue
            if place == 0 or str(place) in node.parts:
                self._parts(row)
                if ways := self.ways(row):
                    one = {"oneOf": [_flat_way(row.path, way, ways) for way in ways]}
                    self._ask(one) if place == 0 else self._if(row, one)
            else:
                for name in self.needs(row):
                    part = self.part(row, name)
                    self._if(row, False if part is None else self._has(part))
            if place:
                before = self.part(node, str(place - 1))
                self._if(row, False if before is None else self._has(before))
        each = self.part(node, "{i}")
        if each is not None:
            others = "".join(rf"(?!{name}\])" for name in sorted({"0", *node.parts}))
            self._pattern(each, rf"{_exactly(node.path)}\[{others}(?:{_below(node.most)})\]")

    def _free(self, node: _Node, written: str) -> None:
        """Take in the names that a caller may choose."""
        each = self.part(node, "{key}")
        if each is not None:
            taken = "".join(rf"(?!{_exactly(name)}\])" for name in node.parts)
            self._pattern(each, rf"{written}\[{taken}[^\[\]{_CONTROL}]{{1,{node.longest or ''}}}\]")

    def _pattern(self, node: _Node, written: str) -> None:
        """Take in what has no name of its own; ``written`` is what it is called."""
        if node.rule is not None:
            self._patterns[f"^{written}$"] = self.leaf(node)
        if node.listed and self._scalars(node):
            self._patterns[rf"^{written}\[\]$"] = self.entries(node)
            return
        for name, part in node.parts.items():
            self._pattern(part, rf"{written}\[{_exactly(name)}\]")
        self._free(node, written)

    def _scalars(self, node: _Node) -> bool:
        first = self.part(node, "{i}") or next(iter(node.parts.values()), None)
        return node.listed and first is not None and first.plain

    def _if(self, node: _Node, then: Schema) -> None:
        """Ask for ``then`` wherever a part of ``node`` is sent, be it by the policy itself."""
        if node.always:
            self._ask(then)
        elif then is not True:
            self._together.append({"if": self._has(node, itself=False), "then": then})

    def _ask(self, schema: Schema) -> None:
        if isinstance(schema, dict) and schema.keys() == {"required"}:
            self._required.update(schema["required"])
        elif schema is not True:
            self._together.append(schema)

    def _has(self, node: _Node, *, itself: bool = True) -> Schema:
        """Return the schema of a form that has a part of ``node``, or it ``itself``. What the policy sends counts."""
        if node.always and node.path not in self.asked:
            return True
        names = self._names(node, itself=itself)
        if names is None:
            end = r"(?:\[|$)" if itself else r"\["
            return {"not": {"propertyNames": {"not": {"pattern": f"^{_exactly(node.path)}{end}"}}}}
        if len(names) == 1:
            return {"required": names}
        return {"anyOf": [{"required": [name]} for name in names]} if names else False

    def _names(self, node: _Node, *, itself: bool = True) -> list[str] | None:
        """Return all names of ``node`` and what is below it; None if they cannot be listed."""
        names = [node.path] if itself and node.rule is not None else []
        if node.plain:
            return names
        if self._scalars(node):
            return [*names, f"{node.path}[]"]
        if node.each:
            return None
        for part in node.parts.values():
            below = self._names(part)
            if below is None:
                return None
            names += below
        return names


#: Where the lines of a whole invoice are.
_LINES: Final = "lines"
_TITLES: Final = {
    "amount": "A line of one amount", "unit_amount": "How many, and the amount of each",
    "price": "How many, at a price that is kept upstream",
}  # fmt: skip


def _of_all_lines(entitlement: Entitlement) -> str:
    bounds, amount = entitlement.lines, entitlement.amount
    assert bounds is not None  # noqa: S101 - a whole invoice has them
    told = f"What is invoiced, in {bounds.max} {'line' if bounds.max == 1 else 'lines'} at most, all in one currency."
    if bounds.credit:
        told += " An amount may be negative: it lowers the sum."
    if amount is None or amount.max is None:
        return told
    most = amount.max
    sums = " or ".join(money(most, currency) for currency in amount.currencies) or f"{most:,} minor units"
    return f"{told} The invoice may come to {sums} at most, with tax and with what the customer owes from before."


def _others(way: str, ways: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Return the parts of a line that may not stand beside those of one way."""
    return {*ways, "quantity"} - {way, *ways[way]}


def _in_one_way(schema: Mapping[str, Any], way: str, ways: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the schema of a line that says in one way what it comes to."""
    parts = {name: part for name, part in schema["properties"].items() if name not in _others(way, ways)}
    required = sorted({*schema.get("required", ()), way, *ways[way]})
    return {**schema, "title": _TITLES[way], "properties": parts, "required": required}


def _flat_way(path: str, way: str, ways: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the schema of a form whose line at ``path`` says in one way what it comes to."""
    return {
        "title": _TITLES[way],
        "required": [_under(path, name) for name in (way, *ways[way])],
        "not": {"anyOf": [{"required": [_under(path, name)]} for name in sorted(_others(way, ways))]},
    }


_NAMES_THE_CALL: Final = (
    "Names this call: sent again with the same value, it brings back the invoice of the first call, never a second one."
)


def _under(path: str, name: str) -> str:
    return f"{path}[{name}]" if path else name


def _below(count: int) -> str:
    """Return the pattern of the whole numbers from 0 to ``count`` - 1; ``count`` is 100 at most."""
    tens, units = divmod(count - 1, 10)
    if not tens:
        return f"[0-{units}]"
    return "|".join(["[0-9]", *([f"[1-{tens - 1}][0-9]"] if tens > 1 else []), f"{tens}[0-{units}]"])
