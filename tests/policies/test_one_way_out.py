"""Form and JSON, both ways in, one way out: what is sent, read as Stripe reads forms, is what was asked."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote_plus, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies import access, document
from policies.forms import canonical
from policies.model import Kind
from policies.operations import OPERATIONS
from policies.operations.invoices_create import PARAMETERS
from policies.parameters import template_of
from tests.policies.conftest import call, only_caller, read, written

if TYPE_CHECKING:
    from policies.model import Caller, Grant, Parameter, PolicySet

CATALOGUE = OPERATIONS["invoices.create"].parameters
CHILDREN: dict[str, list[Parameter]] = {}
for _parameter in PARAMETERS:
    CHILDREN.setdefault(_parameter.path.rpartition("[")[0], []).append(_parameter)

Content = dict[str, Any]


def last(path: str) -> str:
    """The name of a parameter within its parent."""
    return path.rpartition("[")[2].removesuffix("]")


# ---------------------------------------------------------------- what is asked

#: Any text that an invoice may hold, and some that invites a mistake.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters="\t\n\r"), min_size=1, max_size=12)
TRICKY = st.sampled_from(
    [
        "a+b",
        "a b",
        "100%",
        "%20",
        "&customer=x",
        "a=b",
        "a[0]=b",
        "null",
        "true",
        "0",
        "01",
        "\r\n",
        "Zürich",
        "🧾",
        "é",
    ]
)
KEYS = st.sampled_from(["0", "1", "01", "-1", "order id", "a.b", "a&b", "a=b", "a+b", "%41", "é", "🧾", "name", "'\""])


def scalars(parameter: Parameter) -> st.SearchStrategy[Any]:
    """Values of a plain parameter, as JSON writes them."""
    match parameter.kind:
        case Kind.INTEGER:
            least = -(10**15) + 1 if parameter.minimum is None else parameter.minimum
            whole = st.integers(least, 10**15 - 1)
            return whole | whole.map(str)
        case Kind.TIMESTAMP:
            seconds = st.integers(0, 10**10 - 1)
            return seconds | seconds.map(str)
        case Kind.BOOLEAN:
            return st.sampled_from([True, False, "true", "false"])
        case Kind.CURRENCY:
            return st.sampled_from(["usd", "eur", "jpy"])
    if parameter.one_of is not None:
        return st.sampled_from(parameter.one_of)
    longest = parameter.max_length or 5000
    text = (TEXT | TRICKY).filter(lambda text: len(text) <= longest and (parameter.free or text == text.strip()))
    return text | st.sampled_from(["x" * longest, "é" * longest])


def values(parameter: Parameter) -> st.SearchStrategy[Any]:
    """Every value of a parameter that says something."""
    below = CHILDREN.get(parameter.path, [])
    if parameter.kind is Kind.ARRAY:
        [entry] = below
        value: st.SearchStrategy[Any] = st.lists(values(entry), min_size=1, max_size=3)
        if entry.kind is Kind.STRING:  # more than ten, so that their order is not that of their names
            value |= st.lists(values(entry), min_size=11, max_size=12)
    elif parameter.kind is Kind.OBJECT and below and last(below[0].path) == "{key}":
        keys = (KEYS | TEXT.filter(lambda text: not re.search(r"[\[\]\t\r\n]", text))).map(
            lambda text: text[: parameter.max_key]
        )
        value = st.dictionaries(keys, values(below[0]), min_size=1, max_size=3)
    elif parameter.kind is Kind.OBJECT:
        value = objects(below).filter(pruned) if below else st.nothing()
    else:
        value = scalars(parameter)
    return value | st.just("") if parameter.unsets else value


def objects(below: list[Parameter]) -> st.SearchStrategy[Content]:
    """Objects with the parts they need and any others; null and what is empty say nothing."""
    nothing: st.SearchStrategy[Any] = st.sampled_from([None, [], {}])
    needed = {last(child.path): values(child) for child in below if child.needed}
    others = {last(child.path): values(child) | nothing for child in below if not child.needed}
    few = st.sets(st.sampled_from(sorted(others)), max_size=3) if others else st.just(set[str]())
    return few.flatmap(lambda names: st.fixed_dictionaries({**needed, **{name: others[name] for name in names}}))


def pruned(content: Any) -> Any:
    """What was asked, as Stripe sees it: texts, and nothing where nothing was said."""
    match content:
        case dict():
            kept = {name: pruned(inner) for name, inner in content.items()}
            return {name: inner for name, inner in kept.items() if inner not in (None, {}, [])}
        case list():
            return [pruned(inner) for inner in content]
        case bool():
            return "true" if content else "false"
        case int():
            return str(content)
    return content


def pairs(content: Any, path: str = "") -> list[tuple[str, str]]:
    """Write what was asked as the fields of a form."""
    match content:
        case dict():
            return [
                pair for name, inner in content.items() for pair in pairs(inner, f"{path}[{name}]" if path else name)
            ]
        case list():
            return [pair for index, inner in enumerate(content) for pair in pairs(inner, f"{path}[{index}]")]
    return [(path, content)]


# ---------------------------------------------------------------- the same, as others spell it

BOOLEANS = {"true": ["true", "True", "TRUE", "1"], "false": ["false", "False", "FALSE", "0"]}
BLANK = ["footer", "metadata[blank]", "days_until_due", "auto_advance", "customer_account", "expand[]"]


def spelt(draw: st.DataObject, kind: Kind, value: str) -> str:
    """Spell a value in any of the ways in which Stripe reads it."""
    if kind is Kind.BOOLEAN:
        return draw.draw(st.sampled_from(BOOLEANS[value]))
    if kind is Kind.CURRENCY:
        return draw.draw(st.sampled_from([value, value.upper(), value.title()]))
    return value


def spelt_form(draw: st.DataObject, fields: list[tuple[str, str]]) -> bytes:
    """Write a form as old SDKs, web forms and Stripe's own pages write it."""
    written = []
    for path, value in fields:
        template = template_of(OPERATIONS["invoices.create"], path)
        assert template is not None
        # An entry of a list goes without its index, as long as they all do and stand in their order.
        name = path[: path.rindex("[")] + "[]" if template.endswith("[{i}]") else path
        written.append(f"{quote_plus(name)}={quote_plus(spelt(draw, CATALOGUE[template].kind, value))}")
    given = {path.partition("[")[0] for path, _ in fields}
    blanks = [path for path in BLANK if path.partition("[")[0] not in given]
    written += [
        f"{quote_plus(path)}=" for path in draw.draw(st.lists(st.sampled_from(blanks), unique=True, max_size=3))
    ]
    mark, separator, end = (draw.draw(st.sampled_from(two)) for two in (("", "\ufeff"), ("&", "&&"), ("", "&")))
    return f"{mark}{separator.join(written)}{end}".encode()


def spelt_json(draw: st.DataObject, content: Any, path: str = "") -> Any:
    """Write a content as those do whose numbers have a point, and who put booleans in quotes."""
    match content:
        case dict():
            return {
                name: spelt_json(draw, inner, f"{path}[{name}]" if path else name) for name, inner in content.items()
            }
        case list():
            return [spelt_json(draw, inner, f"{path}[{index}]") for index, inner in enumerate(content)]
        case bool():
            return draw.draw(st.sampled_from([content, int(content), float(content), str(content)]))
        case int():
            return draw.draw(st.sampled_from([content, float(content), str(content)]))
        case str():
            template = template_of(OPERATIONS["invoices.create"], path)
            assert template is not None
            return spelt(draw, CATALOGUE[template].kind, content)
    return content


# ---------------------------------------------------------------- what is sent, read as Stripe reads it


def decoded(form: bytes) -> Content:
    """Read a form in bracket notation; lists are those of the catalogue, their entries in order."""
    top: Content = {}
    for path, value in parse_qsl(form.decode("ascii"), keep_blank_values=True, strict_parsing=bool(form)):
        names = re.findall(r"[^\[\]]+", path)
        assert "".join([names[0], *(f"[{name}]" for name in names[1:])]) == path
        place = top
        for name in names[:-1]:
            place = place.setdefault(name, {})
        assert names[-1] not in place
        place[names[-1]] = value
    return {name: shaped(value, name) for name, value in top.items()}


def shaped(value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        return value
    if CATALOGUE[path].kind is Kind.ARRAY:
        assert list(value) == [str(index) for index in range(len(value))]
        return [shaped(inner, f"{path}[{{i}}]") for inner in value.values()]
    free = f"{path}[{{key}}]" in CATALOGUE
    return {name: shaped(inner, f"{path}[{{key}}]" if free else f"{path}[{name}]") for name, inner in value.items()}


# ---------------------------------------------------------------- the property


@pytest.fixture(scope="module")
def everything() -> tuple[PolicySet, Caller]:
    """Somebody who may send every parameter there is, and whatever the catalogue allows of it."""
    policy_set = read(written())
    caller = only_caller(policy_set)
    [(place, entitlement)] = caller.entitlements.items()
    rules = {
        path: document._catalogue_rule(path, parameter)
        for path, parameter in CATALOGUE.items()
        if document._sendable(parameter)
    }
    return policy_set, replace(caller, entitlements={place: replace(entitlement, rules=rules)})


def granted(everything: tuple[PolicySet, Caller], body: bytes, media: str) -> Grant:
    policy_set, caller = everything
    return access.decide(policy_set, caller, call(body=body, media=media, key="order-1"))


def check(everything: tuple[PolicySet, Caller], asked: Content, draw: st.DataObject) -> None:
    """Ask in every way, and read what would be sent."""
    expected = pruned(asked)
    fields = draw.draw(st.permutations(pairs(expected)))
    bodies = [
        (json.dumps(asked).encode(), "json"),
        (json.dumps(expected, ensure_ascii=False).encode(), "json"),
        (urlencode(fields).encode(), "form"),
        ("&".join(f"{quote_plus(path, safe='[]')}={quote_plus(value)}" for path, value in fields).encode(), "form"),
        (spelt_form(draw, pairs(expected)), "form"),
        (json.dumps(spelt_json(draw, asked)).encode(draw.draw(st.sampled_from(["utf-8", "utf-8-sig"]))), "json"),
    ]
    first, *others = [granted(everything, body, media) for body, media in bodies]
    assert decoded(first.form) == expected
    for other in others:
        assert (other.form, other.fingerprint, other.ledger_key) == (first.form, first.fingerprint, first.ledger_key)
    assert list(first.parameters) == list(canonical(first.parameters))


def asking(path: str) -> st.SearchStrategy[Content]:
    """Contents that say something at this very parameter, with whatever its parents need."""
    parameter = CATALOGUE[path]
    parent, own = path.rpartition("[")[0], values(parameter)
    while parent:
        name, inner = last(parameter.path), own
        siblings = {
            last(child.path): values(child)
            for child in CHILDREN[parent]
            if child.needed and child.path != parameter.path
        }
        if name == "{i}":
            own = inner.map(lambda value: [value])
        elif name == "{key}":
            own = inner.map(lambda value: {"é&b": value})
        else:
            own = st.fixed_dictionaries({name: inner, **siblings})
        parameter = CATALOGUE[parent]
        parent = parent.rpartition("[")[0]
    return own.map(lambda value: {parameter.path: value})


@pytest.mark.parametrize("path", CATALOGUE)
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_parameter_arrives_as_it_was_asked(
    everything: tuple[PolicySet, Caller], path: str, data: st.DataObject
) -> None:
    content = data.draw(asking(path))
    check(everything, content, data)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data(), asked=objects(CHILDREN[""]))
def test_any_parameters_together_arrive_as_they_were_asked(
    everything: tuple[PolicySet, Caller], data: st.DataObject, asked: Content
) -> None:
    check(everything, asked, data)
