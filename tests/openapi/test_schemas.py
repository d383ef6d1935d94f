"""The schemas say what the judge does: what they take passes, and what passes they take."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from console import schemas
from policies import document, forms, keynames, parameters
from policies.model import DocumentError, Kind
from policies.operations import OPERATIONS
from policies.refusals import Refusal
from tests.openapi import spelling

if TYPE_CHECKING:
    from policies.model import Entitlement

CREATE = OPERATIONS["invoices.create"]


def grant(parameters: Any, *, idempotency: Any = None, stamp: str | None = None, groups: Any = ()) -> Entitlement:
    """Read a policy with one grant. Raises ``DocumentError``."""
    more = {
        **({"idempotency": idempotency} if idempotency is not None else {}),
        **({"stamp": stamp} if stamp else {}),
        **({"groups": list(groups)} if groups else {}),
        **({"parameters": parameters} if parameters else {}),
    }
    entry = {"connection": "one", "operation": CREATE.id, "response": ["id"], **more}
    text = json.dumps(
        {
            "connections": {
                "one": {
                    "name": "ft-4",
                    "connection_name": "stripe-1",
                    "upstream": "stripe",
                    "secret": "projects/p/secrets/s/versions/latest",
                }
            },
            "callers": {
                "app": {
                    "owner": "tests",
                    "limits": ["1000/minute"],
                    "credentials": [{"key": {"id": "k1", "sha256": "0" * 64}}],
                    "grants": [entry],
                }
            },
        }
    )
    (caller,) = document.read(text, "policy").callers.values()
    (entitlement,) = caller.entitlements.values()
    return entitlement


@dataclass(frozen=True)
class Said:
    """What is said of one call."""

    approved: bool
    nested: bool | None
    """None where JSON cannot be written so."""
    flat: bool


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": {"schemas": dict(schemas.SHARED)}})


def judged(entitlement: Entitlement, asked: dict[str, str]) -> Said:
    try:
        given = forms.parse(forms.encode(asked), "form")
    except Refusal:
        given = None
    approved = given is not None
    try:
        parameters.approve(entitlement, given or {})
    except Refusal:
        approved = False
    form = validator(schemas.flat(entitlement)).is_valid(spelling.flat(entitlement, asked))
    if given is None:  # a blank value and a part beside it contradict each other, although both say nothing
        return Said(approved, None, form and all(asked.values()))
    body = validator(schemas.nested(entitlement))
    return Said(approved, body.is_valid(spelling.nested(entitlement, given)), form)


# ---------------------------------------------------------------- by lot

#: Nothing that cannot be in a call at all, and no code point that has no character yet.
TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=("Cs", "Cn")), max_size=12)
LIKELY = st.sampled_from(
    [
        "", "a", "usd", "USD", "true", "false", "0", "-0", "1", "30", "60", "61", "-7", "cus_1", "cus_", "order-1",
        "order-", "order-undefined", "undefined", "x null", " a", "a ", "a\n", "\u00a0a", "a\x00b", "{{ x }}", "a" * 40,
        "a" * 41, "a" * 200, "9999999999", "10000000000", "999999999999999", "1000000000000000", "self",
        "account", "emea",
    ]
)  # fmt: skip
VALUE = LIKELY | LIKELY | TEXT | st.integers(-100, 10**16).map(str)
KEYS = st.sampled_from(["order_id", "cost_center", "x", "usd", "a" * 40, "a" * 41, "0", "é b", "a.b"])


FIXED = {
    Kind.STRING: ["emea", "cus_1"], Kind.INTEGER: ["30"], Kind.TIMESTAMP: ["1893456000"], Kind.BOOLEAN: ["true"],
    Kind.CURRENCY: ["usd"],
}  # fmt: skip


@st.composite
def bounds(draw: st.DrawFn, path: str) -> Any:
    template = parameters.template_of(CREATE, path)
    assert template is not None
    parameter = CREATE.parameters[template]
    chosen: dict[str, Any] = {}
    if parameter.kind in {Kind.OBJECT, Kind.ARRAY}:
        return draw(st.sampled_from([None, {"required": True}])) if "{" not in path else None
    if draw(st.integers(0, 4)) == 0 and "{" not in path:
        return {"fixed": draw(st.sampled_from(parameter.one_of or FIXED[parameter.kind]))}
    if draw(st.booleans()) and "{" not in path:
        chosen["required"] = draw(st.booleans())
    if parameter.kind in {Kind.INTEGER, Kind.TIMESTAMP}:
        chosen |= draw(st.sampled_from([{}, {"min": 1}, {"max": 60}, {"min": 1, "max": 60}, {"min": -7}]))
    elif parameter.kind is Kind.STRING and parameter.one_of is None:
        chosen |= draw(
            st.sampled_from(
                [{}, {"max_length": 40}, {"prefix": "cus_"}, {"one_of": ["emea", "a b"]}, {"prefix": "a.b"}]
            )
        )
    elif parameter.kind is Kind.CURRENCY:
        chosen |= draw(st.sampled_from([{}, {"one_of": ["usd", "eur"]}]))
    return chosen or None


@st.composite
def paths(draw: st.DrawFn) -> str:
    path = draw(st.sampled_from([one for one in CREATE.parameters if not one.startswith("payment_settings[payment")]))
    if "{key}" in path and draw(st.booleans()):
        path = path.replace("{key}", draw(KEYS))
    if "{i}" in path and draw(st.integers(0, 5)) == 0:
        path = path.replace("{i}", "0")
    return path


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    """Draw what ``grant`` takes."""
    # Neighbours, so that objects get several parts.
    first = draw(st.lists(paths(), min_size=1, max_size=4, unique=True))
    chosen = set(first)
    for path in first:
        top = forms.split(path)[0]
        near = [one for one in CREATE.parameters if one.startswith(f"{top}[") and len(one) < 60]
        if near:
            chosen |= draw(st.sets(st.sampled_from(near), max_size=4))
    written = {path: draw(bounds(path)) for path in sorted(chosen)}
    key = draw(st.sampled_from([None, "optional", "from", "from", "prefix"]))
    idempotency: Any = key
    if key in {"from", "prefix"}:
        source = draw(st.sampled_from(sorted(written)))
        if "{key}" in source:
            source = source.replace("{key}", "order_id")
        idempotency = {"from": source, **({"prefix": "order-"} if key == "prefix" else {})}
    stamp = draw(st.sampled_from([None, None, "metadata[countersign]"]))
    groups = draw(st.sampled_from([(), (), (), ["plain"], ["plain", "changes price or content"]]))
    return {"parameters": written, "idempotency": idempotency, "stamp": stamp, "groups": groups}


@st.composite
def calls(draw: st.DrawFn, entitlement: Entitlement) -> dict[str, str]:
    """Write a call that is nearly, or entirely, what the grant allows."""
    given: dict[str, str] = {}
    rules = entitlement.rules
    wanted = set(entitlement.required) if draw(st.integers(0, 3)) else set()
    if entitlement.idempotency.parameter and draw(st.integers(0, 7)):
        wanted.add(entitlement.idempotency.parameter)
    wanted |= draw(st.sets(st.sampled_from(sorted(rules)), max_size=5))
    if draw(st.integers(0, 9)) == 0:
        wanted.add(draw(paths()))
    for path in sorted(wanted):
        tops = [path, *(one for one in rules if one.startswith(f"{path}[") and draw(st.booleans()))]
        for one in tops:
            rows = range(draw(st.integers(1, 5))) if "{i}" in one else range(1)
            for row in rows:
                name = one.replace("{i}", str(row)).replace("{key}", draw(KEYS))
                rule = rules.get(one)
                given[name] = draw(VALUE | _fitting(rule)) if rule else draw(VALUE)
    return given


def _fitting(rule: Any) -> st.SearchStrategy[str]:
    if rule.fixed is not None:
        return st.just(rule.fixed)
    if rule.one_of:
        return st.sampled_from(sorted(rule.one_of))
    if rule.kind in {Kind.OBJECT, Kind.ARRAY}:
        return st.just("")
    by_kind = {Kind.BOOLEAN: ["true", "false"], Kind.CURRENCY: ["usd"]}
    if rule.kind in by_kind:
        return st.sampled_from(by_kind[rule.kind])
    if rule.kind is not Kind.STRING:
        low = rule.minimum if rule.minimum is not None else 0
        high = rule.maximum if rule.maximum is not None else 10**9
        return st.integers(low, high).map(str)
    return st.sampled_from([f"{rule.prefix or ''}1", f"{rule.prefix or ''}order-1", "order-77"])


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_the_schemas_take_is_what_the_judge_approves(data: st.DataObject) -> None:
    try:
        entitlement = grant(**data.draw(policies()))
    except DocumentError:
        reject()
    asked = data.draw(calls(entitlement))
    said = judged(entitlement, asked)
    if any(re.search(r"\[[0-9]+\]", path) for path in entitlement.fixed):  # an entry that JSON has to say all the same
        assert said.approved or not said.nested
    else:
        assert said.nested in {said.approved, None}
    if not any("[{key}][" in path for path in entitlement.rules):  # see console.schemas
        assert said.flat is said.approved


# ---------------------------------------------------------------- by hand


def rows(*places: int) -> dict[str, str]:
    return {f"custom_fields[{place}][{name}]": "a" for place in places for name in ("name", "value")}


ORDER = {"customer": {"required": True, "prefix": "cus_"}, "metadata[order_id]": {"required": True}}


@pytest.mark.parametrize(
    ("written", "asked", "taken"),
    [
        ({"parameters": ORDER}, {"customer": "cus_1", "metadata[order_id]": "7"}, True),
        ({"parameters": ORDER}, {"customer": "cus_1"}, False),
        ({"parameters": ORDER}, {"customer": "x", "metadata[order_id]": "7"}, False),
        ({"parameters": ORDER, "stamp": "metadata[ours]"}, {"customer": "cus_1", "metadata[order_id]": "7"}, True),
        ({"parameters": {"metadata": None}, "stamp": "metadata[ours]"}, {"metadata[ours]": "7"}, False),
        ({"parameters": {"metadata": None}, "stamp": "metadata[ours]"}, {"metadata": ""}, False),
        ({"parameters": {"metadata": None}}, {"metadata": ""}, True),
        ({"parameters": {"metadata": {"required": True}}}, {"metadata": ""}, False),
        ({"parameters": {"custom_fields": None}}, rows(0, 1), True),
        ({"parameters": {"custom_fields": None}}, rows(0, 2), False),
        ({"parameters": {"custom_fields": None}}, rows(*range(5)), False),
        ({"parameters": {"custom_fields": None}}, {"custom_fields[0][name]": "a"}, False),
        (
            {"parameters": {"custom_fields[0][name]": {"fixed": "PO"}, "custom_fields[0][value]": None}},
            {"custom_fields[0][value]": "7"},
            True,
        ),
        ({"parameters": {"custom_fields[0][name]": {"fixed": "PO"}, "custom_fields[0][value]": None}}, {}, False),
        ({"parameters": {"expand": None}}, {"expand[0]": "customer", "expand[1]": "charge"}, True),
        ({"parameters": {"expand": {"one_of": ["customer"]}}}, {"expand[0]": "charge"}, False),
        ({"parameters": {"expand[0]": {"required": True}}}, {}, False),
        ({"parameters": {"expand[0]": {"required": True}}}, {"expand[0]": "customer"}, True),
        ({"parameters": {"customer": None, "auto_advance": {"fixed": "true"}}}, {"auto_advance": "false"}, False),
        ({"parameters": {"footer": {"fixed": " a.b*c "}}}, {"footer": " a.b*c "}, True),
        (
            {"parameters": ORDER, "idempotency": {"from": "metadata[order_id]", "prefix": "order-"}},
            {"customer": "cus_1", "metadata[order_id]": "order-undefined"},
            False,
        ),
        ({"parameters": {"metadata[a.b]": {"one_of": ["x"]}, "metadata": None}}, {"metadata[a.b]": "y"}, False),
        ({"parameters": {"metadata[a.b]": {"one_of": ["x"]}, "metadata": None}}, {"metadata[acb]": "y"}, True),
    ],
)  # fmt: skip
def test_schemas_and_the_judge_agree_on(written: dict[str, Any], asked: dict[str, str], *, taken: bool) -> None:
    assert judged(grant(**written), asked) == Said(taken, taken, taken)


@pytest.mark.parametrize(
    ("prefix", "key", "taken"),
    [
        ("", "order-1001", True), ("", "null", False), ("", "a,b", False), ("", " a", False), ("", "nullable-7", True),
        ("", "x" * 256, False), ("order-", "order-1001", True), ("order-", "order-", False),
        ("order-", "order-undefined", False), ("order-", "1001", False), ("a.b", "axb1", False),
        ("order-", "order-..", False),
    ],
)  # fmt: skip
def test_schema_of_the_header_takes_what_can_name_a_call(prefix: str, key: str, *, taken: bool) -> None:
    judge = keynames.HEADER.fullmatch(key) is not None and keynames.fault(key, prefix) is None
    assert (validator(schemas.key_header(prefix)).is_valid(key), judge) == (taken, taken)


def test_every_schema_is_a_schema_and_its_own_example_passes() -> None:
    risks = ["plain", "changes price or content"]
    written: list[dict[str, Any]] = [
        {"parameters": ORDER, "groups": risks},
        {"parameters": {"custom_fields": {"required": True}, "shipping_details": {"required": True}}},
        {"parameters": {"account_tax_ids": {"required": True}, "due_date": {"max": 5}}},
        {"parameters": ORDER, "idempotency": {"from": "metadata[order_id]", "prefix": "order-"}},
        {"parameters": {"metadata": None}},
    ]
    for one in written:
        entitlement = grant(**one)
        shown = schemas.shown(schemas.nested(entitlement))
        assert forms.encode(forms.parse(json.dumps(shown).encode(), "json"))
        parameters.approve(entitlement, forms.parse(json.dumps(shown).encode(), "json"))
        for schema, example in (
            (schemas.nested(entitlement), shown),
            (schemas.flat(entitlement), schemas.spread(shown)),
        ):
            checked = validator(schema)
            Draft202012Validator.check_schema(checked.schema)
            assert checked.is_valid(example), example


# ---------------------------------------------------------------- whole invoices

ISSUE = """
connections:
  one: {{name: ft-4, connection_name: stripe-1, upstream: stripe, secret: projects/p/secrets/s/versions/latest}}
callers:
  app:
    owner: tests
    limits: [1000/minute]
    credentials: [key: {{id: k1, sha256: "{key}"}}]
    grants:
      - connection: one
        operation: invoices.issue
        response: [id]
        amount: {{max: 50000, currency: [usd]}}
        lines: {{max: 3, credit: {credit}}}
        parameters:
          customer:
          "lines[{{i}}][quantity]": {{max: 9}}
          "lines[{{i}}][price]":
          "lines[{{i}}][metadata][sku]":
"""


def issuing(*, credit: bool = False) -> Entitlement:
    text = ISSUE.format(key="0" * 64, credit=str(credit).lower())
    (caller,) = document.read(text, "policy").callers.values()
    (entitlement,) = caller.entitlements.values()
    return entitlement


PRICED = {"price": "price_1", "quantity": "1"}
ONE_LINE = (
    ({"amount": "100"}, True), ({"amount": "50000"}, True), ({"amount": "50001"}, False), ({"amount": "0"}, False),
    ({"amount": "-100"}, False), ({"amount": "100", "quantity": "1"}, False), ({"amount": "100"} | PRICED, False),
    ({"unit_amount": "100", "quantity": "3"}, True), ({"unit_amount": "100"}, False), ({"quantity": "3"}, False),
    ({"unit_amount": "100", "quantity": "0"}, False), ({"unit_amount": "100", "quantity": "10"}, False),
    ({"unit_amount": "-100", "quantity": "3"}, False), (PRICED, True), ({"price": "price_1"}, False),
    ({"unit_amount": "100"} | PRICED, False), ({"description": "x"}, False), ({"amount": "1.5"}, False),
    ({"amount": "100", "description": "x", "metadata][sku": "W"}, True), ({"amount": "100", "tax": "1"}, False),
)  # fmt: skip


@pytest.mark.parametrize(("line", "passes"), ONE_LINE, ids=lambda one: "-".join(one) if isinstance(one, dict) else None)
def test_line_passes_the_schemas_as_it_passes_the_judge(line: dict[str, str], passes: bool) -> None:  # noqa: FBT001
    call = {"customer": "cus_1", "currency": "usd"} | {f"lines[0][{part}]": value for part, value in line.items()}
    assert judged(issuing(), call) == Said(passes, passes, passes)


def test_how_many_lines_there_are_is_said() -> None:
    entitlement = issuing()
    for count, passes in ((0, False), (1, True), (3, True), (4, False)):
        call = {"customer": "cus_1", "currency": "usd"} | {f"lines[{n}][amount]": "100" for n in range(count)}
        assert judged(entitlement, call) == Said(passes, passes, passes)
    lines = schemas.nested(entitlement)["properties"]["lines"]
    assert (lines["minItems"], lines["maxItems"]) == (1, 3)
    assert "500.00 USD at most" in lines["description"]
    assert [way["required"] for way in lines["items"]["oneOf"]] == [
        ["amount"], ["quantity", "unit_amount"], ["price", "quantity"],
    ]  # fmt: skip


def test_amount_may_lower_the_sum_only_where_that_is_granted() -> None:
    entitlement = issuing(credit=True)
    call = {"customer": "cus_1", "currency": "usd", "lines[0][amount]": "-100", "lines[1][amount]": "60000"}
    call["lines[2][amount]"] = "-20000"
    assert judged(entitlement, call) == Said(approved=True, nested=True, flat=True)
    for wrong in ({"lines[2][amount]": "0"}, {"lines[2][amount]": "-100000000"}):
        said = judged(entitlement, call | wrong)
        assert said == Said(approved=False, nested=False, flat=False)


@pytest.mark.parametrize("credit", [True, False])
def test_example_of_a_whole_invoice_passes(*, credit: bool) -> None:
    entitlement = issuing(credit=credit)
    shown = schemas.shown(schemas.nested(entitlement))
    assert validator(schemas.nested(entitlement)).is_valid(shown)
    assert validator(schemas.flat(entitlement)).is_valid(schemas.spread(shown))
    parameters.approve(entitlement, forms.parse(json.dumps(shown).encode(), "json"))
