"""What may go in: every bound admits at its edge and refuses beyond it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import parameters
from policies.model import WHOLESALE, Kind
from policies.operations.invoices_create import OPERATION as INVOICES_CREATE
from policies.operations.invoices_create import PARAMETERS
from policies.parameters import fits
from policies.refusals import (
    IdempotencyKeyMissing,
    ParameterInvalid,
    ParameterMissing,
    ParameterNotGranted,
    Refusal,
)
from tests.policies.conftest import entitlement

if TYPE_CHECKING:
    from policies.model import Entitlement, Parameter


def forwarded(granted: Entitlement, given: dict[str, str]) -> dict[str, str]:
    """Return what goes upstream."""
    _, approved = parameters.approve(granted, given)
    return approved


CATALOGUE = INVOICES_CREATE.parameters
HOLDS_PARTS = {Kind.OBJECT, Kind.ARRAY}
LEAVES = [parameter for parameter in PARAMETERS if parameter.kind not in HOLDS_PARTS]
#: An object that has parts and is granted by them cannot be unset whole.
UNSETTING = [
    parameter
    for parameter in PARAMETERS
    if parameter.unsets
    and (
        parameter.kind is not Kind.OBJECT
        or parameter.risk in WHOLESALE
        or not any(other.path.startswith(parameter.path + "[") for other in PARAMETERS)
    )
]
VALID = {
    Kind.STRING: "x",
    Kind.INTEGER: "3",
    Kind.BOOLEAN: "true",
    Kind.TIMESTAMP: "1767225600",
    Kind.CURRENCY: "usd",
}


def concrete(template: str) -> str:
    return template.replace("{i}", "0").replace("{key}", "usd")


def valid(parameter: Parameter) -> str:
    return parameter.one_of[0] if parameter.one_of else VALID[parameter.kind]


def children(template: str) -> list[Parameter]:
    return [other for other in PARAMETERS if other.path.rpartition("[")[0] == template]


def needed_beside(template: str) -> dict[str, str]:
    """What has to be sent so that every object that ``template`` lies in is whole: path to value."""
    asked: dict[str, str] = {}
    parent = template.rpartition("[")[0]
    while parent:
        for part in children(parent):
            if part.needed and part.kind in HOLDS_PARTS and not template.startswith(part.path + "["):
                first = children(part.path)[0]
                asked[first.path] = valid(first)
            elif part.needed and part.kind not in HOLDS_PARTS:
                asked[part.path] = valid(part)
        parent = parent.rpartition("[")[0]
    return asked


@pytest.mark.parametrize("parameter", LEAVES, ids=lambda parameter: parameter.path)
def test_every_parameter_can_be_granted_by_name_and_sent(parameter: Parameter) -> None:
    asked = {**needed_beside(parameter.path), parameter.path: valid(parameter)}
    granted = entitlement("\n".join(f'"{path}":' for path in asked))
    given = {concrete(path): value for path, value in asked.items()}
    assert forwarded(granted, given) == given


@pytest.mark.parametrize("parameter", UNSETTING, ids=lambda parameter: parameter.path)
def test_parameter_that_the_upstream_unsets_takes_the_empty_string(parameter: Parameter) -> None:
    asked = {**needed_beside(parameter.path), parameter.path: ""}
    granted = entitlement("\n".join(f'"{path}":' for path in asked))
    given = {concrete(path): value for path, value in asked.items()}
    assert forwarded(granted, given) == given


@pytest.mark.parametrize("parameter", [p for p in LEAVES if not p.unsets], ids=lambda parameter: parameter.path)
def test_every_other_parameter_is_left_out_where_it_is_blank(parameter: Parameter) -> None:
    granted = entitlement(f'metadata[a]:\n"{parameter.path}":')
    said = {"metadata[a]": "x"}
    assert parameters.approve(granted, {**said, concrete(parameter.path): ""}) == (said, said)


@pytest.mark.parametrize("parameter", [p for p in LEAVES if p.one_of], ids=lambda parameter: parameter.path)
def test_every_choice_of_an_enum_is_taken_and_no_other(parameter: Parameter) -> None:
    asked = {**needed_beside(parameter.path), parameter.path: ""}
    granted = entitlement("\n".join(f'"{path}":' for path in asked))
    given = {concrete(path): value for path, value in asked.items()}
    path, choices = concrete(parameter.path), parameter.one_of or ()
    for choice in choices:
        assert forwarded(granted, {**given, path: choice})[path] == choice
    for other in (choices[0].upper(), f"{choices[0]}_", "none of them"):
        with pytest.raises(ParameterInvalid) as refusal:
            forwarded(granted, {**given, path: other})
        assert refusal.value.detail.startswith(f"{path} must be one of: ")
        assert refusal.value.faults[0].accepts == {"kind": "string", "one_of": sorted(choices)}


@pytest.mark.parametrize("parameter", [p for p in LEAVES if p.max_length], ids=lambda parameter: parameter.path)
def test_catalogue_length_admits_its_last_character_and_no_more(parameter: Parameter) -> None:
    length = parameter.max_length or 0
    asked = {**needed_beside(parameter.path), parameter.path: "é" * length}
    granted = entitlement("\n".join(f'"{path}":' for path in asked))
    given = {concrete(path): value for path, value in asked.items()}
    assert forwarded(granted, given) == given
    with pytest.raises(ParameterInvalid) as refusal:
        forwarded(granted, {**given, concrete(parameter.path): "é" * (length + 1)})
    assert refusal.value.detail == f"{concrete(parameter.path)} is too long: {length} characters at most."


def test_text_without_a_published_length_is_bounded_all_the_same() -> None:
    granted = entitlement("on_behalf_of:")
    assert forwarded(granted, {"on_behalf_of": "a" * 5000})
    with pytest.raises(ParameterInvalid):
        forwarded(granted, {"on_behalf_of": "a" * 5001})


@pytest.mark.parametrize(
    ("written", "admitted", "refused"),
    [
        ("description: {max_length: 3}", ["abc", "äöü", "🧾🧾🧾"], ["abcd", "🧾🧾🧾🧾"]),
        ("days_until_due: {min: 1}", ["1", "2", "999999999999999"], ["0", "-1"]),
        ("days_until_due: {max: 60}", ["60", "0", "-60"], ["61"]),
        ("days_until_due: {min: -5, max: -5}", ["-5"], ["-4", "-6", "5"]),
        ("due_date: {min: 100, max: 200}", ["100", "200"], ["99", "201"]),
        ("days_until_due: {one_of: [14, 30]}", ["14", "30"], ["15", "140", "014"]),
        ("customer: {one_of: [cus_1, cus_2]}", ["cus_1", "cus_2"], ["cus_3", "CUS_1", "cus_1 "]),
        ("currency: {one_of: [usd, eur]}", ["usd", "eur"], ["gbp"]),
        ("customer: {prefix: cus_}", ["cus_1", "cus_"], ["cu_1", " cus_1", "CUS_1", "xcus_"]),
        ("customer: {prefix: cus_, max_length: 5}", ["cus_1"], ["cus_12", "abc_1"]),
        ("collection_method: {fixed: send_invoice}", ["send_invoice"], ["charge_automatically", "send_invoice "]),
        ("collection_method: {one_of: [send_invoice]}", ["send_invoice"], ["charge_automatically"]),
        ("description: {required: true}", ["x", " "], []),
        ("description: {required: false}", ["x"], []),
    ],
)
def test_bound_of_the_policy_admits_at_its_edge_and_refuses_beyond(
    written: str, admitted: list[str], refused: list[str]
) -> None:
    granted = entitlement(written)
    path = written.partition(":")[0]
    for value in admitted:
        assert forwarded(granted, {path: value}) == {path: value}
    for value in refused:
        with pytest.raises(ParameterInvalid) as refusal:
            forwarded(granted, {path: value})
        assert refusal.value.parameter == path
        assert refusal.value.detail.startswith(f"{path} ")


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (
            Kind.INTEGER,
            ["0", "1", "-1", "999999999999999", "-999999999999999"],
            [
                "",
                "-0",
                "+1",
                "01",
                "1.0",
                "1e3",
                " 1",
                "1 ",
                "1\n",
                "0x1",
                "1_000",
                "\u0661",
                "1000000000000000",
                "--1",
                "-",
            ],
        ),
        (
            Kind.TIMESTAMP,
            ["0", "1767225600", "9999999999"],
            ["", "-1", "10000000000", "2026-01-01", "1.5", "00", "\u0663"],
        ),
        (Kind.BOOLEAN, ["true", "false"], ["", "True", "TRUE", "1", "0", "yes", "true ", "banana"]),
        (Kind.CURRENCY, ["usd", "eur"], ["", "USD", "us", "usdd", "us1", "usd\n", "ußd"]),
        (Kind.OBJECT, [], ["", "x", "{}"]),
        (Kind.ARRAY, [], ["", "x", "[]"]),
    ],
)
def test_kind_is_written_strictly(kind: Kind, right: list[str], wrong: list[str]) -> None:
    assert [value for value in right if not fits(kind, value)] == []
    assert [value for value in wrong if fits(kind, value)] == []


# ---------------------------------------------------------------- required, fixed, exact


@pytest.mark.parametrize(
    ("written", "given", "missing"),
    [
        ("customer: {required: true}\ndescription:", {}, "customer"),
        ("customer: {required: true}\ndescription:", {"description": "x"}, "customer"),
        ("metadata[order_id]: {required: true}\nmetadata:", {"metadata[other]": "x"}, "metadata[order_id]"),
        ("metadata: {required: true}\ncustomer:", {"customer": "cus_1"}, "metadata"),
        ("rendering: {required: true}\ncustomer:", {"customer": "cus_1"}, "rendering"),
        ("custom_fields: {required: true}\ncustomer:", {}, "custom_fields"),
    ],
)
def test_required_parameter_is_missed(written: str, given: dict[str, str], missing: str) -> None:
    with pytest.raises(ParameterMissing) as refusal:
        forwarded(entitlement(written), given)
    assert refusal.value.parameter == missing
    assert refusal.value.detail == f"{missing} is missing. Send it with every call."


def test_required_parameter_that_is_blank_is_missed_and_said_to_be_empty() -> None:
    with pytest.raises(ParameterMissing) as refusal:
        forwarded(entitlement("customer: {required: true, prefix: cus_, max_length: 99}"), {"customer": ""})
    assert refusal.value.detail == "customer is empty. Send it with every call."
    assert refusal.value.faults[0].accepts == {"kind": "string", "prefix": "cus_", "max_length": 99}


def test_fixed_value_is_sent_where_the_caller_leaves_it_blank() -> None:
    """What a no-code tool sends of a field that is not filled in."""
    granted = entitlement("collection_method: {fixed: send_invoice}")
    assert parameters.approve(granted, {"collection_method": ""}) == ({}, {"collection_method": "send_invoice"})


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ("metadata: {required: true}", {"metadata[a]": "x"}),
        ("rendering: {required: true}", {"rendering[pdf][page_size]": "a4"}),
        ("custom_fields: {required: true}", {"custom_fields[0][name]": "a", "custom_fields[0][value]": "b"}),
    ],
)
def test_required_object_is_there_when_any_part_of_it_is(written: str, given: dict[str, str]) -> None:
    assert forwarded(entitlement(written), given) == given


@pytest.mark.parametrize(
    ("bounds", "may_unset"), [("", True), ("{required: false}", True), ("{required: true}", False)]
)
def test_object_may_be_unset_unless_it_is_required(bounds: str, *, may_unset: bool) -> None:
    granted = entitlement(f"metadata: {bounds}")
    if may_unset:
        assert forwarded(granted, {"metadata": ""}) == {"metadata": ""}
    else:
        with pytest.raises(ParameterInvalid, match="parameter-invalid"):
            forwarded(granted, {"metadata": ""})


def test_fixed_value_is_sent_whether_or_not_the_caller_does() -> None:
    granted = entitlement("customer:\ncollection_method: {fixed: send_invoice}")
    sent = {"collection_method": "send_invoice", "customer": "cus_1"}
    assert forwarded(granted, {"customer": "cus_1"}) == sent
    assert forwarded(granted, {"customer": "cus_1", "collection_method": "send_invoice"}) == sent
    assert list(forwarded(granted, {"customer": "cus_1"})) == sorted(sent)


def test_refusal_of_a_fixed_value_says_what_it_is_fixed_to() -> None:
    granted = entitlement("collection_method: {fixed: send_invoice}")
    with pytest.raises(ParameterInvalid) as refusal:
        forwarded(granted, {"collection_method": "charge_automatically"})
    assert refusal.value.detail == ("collection_method is fixed by the policy: leave it out or send send_invoice.")


def test_fixed_part_counts_as_sent_with_its_object() -> None:
    """A policy that fixes ``issuer[type]`` does not make every caller write it as well."""
    granted = entitlement("issuer[type]: {fixed: account}\nissuer[account]:")
    assert forwarded(granted, {"issuer[account]": "acct_1"}) == {"issuer[account]": "acct_1", "issuer[type]": "account"}


def test_fixed_list_entry_counts_as_the_entry_before_the_callers() -> None:
    granted = entitlement("expand[0]: {fixed: customer}\nexpand: {one_of: [charge, customer]}")
    assert forwarded(granted, {"expand[1]": "charge"}) == {"expand[0]": "customer", "expand[1]": "charge"}


def test_unsetting_an_object_does_not_get_round_its_fixed_part() -> None:
    """Both would go upstream, ``metadata=&metadata[team]=emea``, and which of them counts is anybody's guess."""
    granted = entitlement("metadata:\nmetadata[team]: {fixed: emea}")
    with pytest.raises(ParameterInvalid) as refusal:
        forwarded(granted, {"metadata": ""})
    assert refusal.value.parameter == "metadata"


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("whole", "exact", "path"),
    [
        ("metadata:", "metadata[team]: {one_of: [emea]}", "metadata[team]"),
        ("metadata:", "metadata[{key}]: {one_of: [emea]}", "metadata[team]"),
        ("rendering:", "rendering[template]: {one_of: [emea]}", "rendering[template]"),
        ("custom_fields:", '"custom_fields[{i}][name]": {one_of: [emea]}', "custom_fields[0][name]"),
    ],
)
def test_bound_of_a_part_holds_beside_its_whole_object_in_either_order(
    whole: str, exact: str, path: str, *, swapped: bool
) -> None:
    granted = entitlement("\n".join([exact, whole] if swapped else [whole, exact]))
    with pytest.raises(ParameterInvalid) as refusal:
        forwarded(granted, {path: "elsewhere"})
    assert refusal.value.parameter == path


def test_bound_of_a_parameter_holds_beside_its_whole_group() -> None:
    granted = entitlement("customer: {prefix: cus_}", groups="plain")
    assert forwarded(granted, {"description": "x"}) == {"description": "x"}
    with pytest.raises(ParameterInvalid):
        forwarded(granted, {"customer": "x"})


@pytest.mark.parametrize(
    ("group", "sent"),
    [("plain", "metadata[a]"), ("plain", "custom_fields"), ("changes price or content", "automatic_tax[enabled]")],
)
def test_group_grants_its_parameters(group: str, sent: str) -> None:
    value = {"metadata[a]": "x", "custom_fields": "", "automatic_tax[enabled]": "true"}[sent]
    assert forwarded(entitlement(groups=group), {sent: value}) == {sent: value}


@pytest.mark.parametrize("group", ["plain", "changes price or content"])
def test_group_grants_nothing_of_another_group(group: str) -> None:
    granted = entitlement('"expand[0]":', groups=group)
    allowed = {risk.value for risk in WHOLESALE} & {group}
    for parameter in LEAVES:
        if parameter.risk.value not in allowed and parameter.path != "expand[{i}]":
            with pytest.raises(ParameterNotGranted):
                forwarded(granted, {concrete(parameter.path): valid(parameter)})


def test_automatic_tax_granted_whole_does_not_grant_its_liability() -> None:
    granted = entitlement("automatic_tax:")
    assert forwarded(granted, {"automatic_tax[enabled]": "true"})
    with pytest.raises(ParameterNotGranted):
        forwarded(granted, {"automatic_tax[enabled]": "true", "automatic_tax[liability][type]": "self"})


def test_exact_metadata_key_grants_no_other() -> None:
    granted = entitlement("metadata[order_id]:")
    for other in ("metadata[order]", "metadata[{key}]", "metadata[order_id ]", "metadata[order_id][x]", "metadata"):
        with pytest.raises(ParameterNotGranted):
            forwarded(granted, {other: "x"})


def test_metadata_granted_whole_admits_any_key_but_no_object() -> None:
    granted = entitlement("metadata:")
    assert forwarded(granted, {"metadata[Z 🧾.-]": "x"})
    with pytest.raises(ParameterNotGranted):
        forwarded(granted, {"metadata[a][b]": "x"})


# ---------------------------------------------------------------- lists and objects


def custom_fields(count: int) -> dict[str, str]:
    return {f"custom_fields[{i}][{part}]": "x" for i in range(count) for part in ("name", "value")}


@pytest.mark.parametrize(
    ("whole", "given"),
    [
        ("custom_fields", custom_fields(4)),
        ("metadata", {f"metadata[k{i}]": "x" for i in range(50)}),
        ("metadata", {f"metadata[{'k' * 40}]": "x" * 500}),
        ("default_tax_rates", {f"default_tax_rates[{i}]": "txr_1" for i in range(100)}),
        ("shipping_cost", {f"shipping_cost[shipping_rate_data][metadata][{'k' * 40}]": "x" * 500,
                           "shipping_cost[shipping_rate_data][display_name]": "x"}),
    ],
)  # fmt: skip
def test_list_or_object_of_the_largest_size_is_admitted(whole: str, given: dict[str, str]) -> None:
    assert forwarded(entitlement(f"{whole}:"), given) == given


@pytest.mark.parametrize(
    ("whole", "given", "said"),
    [
        ("custom_fields", custom_fields(5), "custom_fields has too many entries: 4 at most."),
        ("metadata", {f"metadata[k{i}]": "x" for i in range(51)}, "metadata has too many entries: 50 at most."),
        ("metadata", {f"metadata[{'k' * 41}]": "x"}, "metadata has a name that is too long: 40 characters at most."),
        ("metadata", {"metadata[k]": "x" * 501}, "metadata[k] is too long: 500 characters at most."),
        ("default_tax_rates", {f"default_tax_rates[{i}]": "x" for i in range(101)},
         "default_tax_rates has too many entries: 100 at most."),
        ("default_tax_rates", {"default_tax_rates[1]": "x"},
         "default_tax_rates must have its entries numbered from 0 without a gap."),
        ("default_tax_rates", {"default_tax_rates[0]": "x", "default_tax_rates[2]": "x"},
         "default_tax_rates must have its entries numbered from 0 without a gap."),
        ("default_tax_rates", {"default_tax_rates[{i}]": "x"},
         "default_tax_rates must have its entries numbered from 0 without a gap."),
        ("custom_fields", {"custom_fields[1][name]": "x", "custom_fields[1][value]": "x"},
         "custom_fields must have its entries numbered from 0 without a gap."),
    ],
)  # fmt: skip
def test_list_or_object_beyond_its_bounds_is_refused(whole: str, given: dict[str, str], said: str) -> None:
    with pytest.raises(ParameterInvalid) as refusal:
        forwarded(entitlement(f"{whole}:"), given)
    assert refusal.value.detail == said


@pytest.mark.parametrize("index", ["00", "01", "-1", "+0", "0 ", "1000", "a", "\u0660", "0x0"])
def test_list_index_is_written_one_way_only(index: str) -> None:
    with pytest.raises(ParameterNotGranted):
        forwarded(entitlement("default_tax_rates:"), {f"default_tax_rates[{index}]": "x"})


@pytest.mark.parametrize(
    "parameter", [p for p in PARAMETERS if p.needed and p.kind not in HOLDS_PARTS], ids=lambda p: p.path
)
def test_object_is_refused_without_the_part_it_needs(parameter: Parameter) -> None:
    parent = parameter.path.rpartition("[")[0]
    beside = next((c for c in children(parent) if c.path != parameter.path and c.kind not in HOLDS_PARTS), None)
    asked = needed_beside(parameter.path)
    if beside is not None:
        asked[beside.path] = valid(beside)
    del asked[parameter.path]
    granted = entitlement("\n".join(f'"{path}":' for path in [*asked, parameter.path]))
    given = {concrete(path): value for path, value in asked.items()}
    if beside is None:  # the only part: without it there is no object at all
        assert forwarded(granted, given) == given
        return
    with pytest.raises(ParameterMissing) as refusal:
        forwarded(granted, given)
    assert refusal.value.parameter == concrete(parameter.path)


def test_object_is_refused_without_the_object_it_needs() -> None:
    with pytest.raises(ParameterMissing) as refusal:
        forwarded(entitlement("shipping_details:"), {"shipping_details[name]": "x"})
    assert refusal.value.parameter == "shipping_details[address]"


# ---------------------------------------------------------------- what a refusal says


@pytest.mark.parametrize("unknown", ["auto_advance", "no_such_thing", "expand[0]", "metadata[x]", "a[b]"])
def test_ungranted_and_unknown_parameters_are_answered_alike(unknown: str) -> None:
    """Whoever asks learns what they may send, and not what exists."""
    with pytest.raises(ParameterNotGranted) as refusal:
        forwarded(entitlement("customer:\ndescription:"), {unknown: "true"})
    assert refusal.value.parameter == unknown
    assert refusal.value.detail == (f"{unknown} is not a parameter you may send. You may send: customer, description.")
    assert refusal.value.faults[0].accepts == {"parameters": ["customer", "description"]}


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("custmer", "customer"),
        ("Customer", "customer"),
        ("customer[0]", "customer"),
        ("customer[x]", "customer"),
        ("invoice[customer]", "customer"),
        ("data[customer]", "customer"),
        ("?customer", "customer"),
        ("daysUntilDue", "days_until_due"),
        ("metadata.order_id", "metadata[order_id]"),
        ("metadata[orderid]", "metadata[order_id]"),
    ],
)
def test_unknown_parameter_is_met_with_the_granted_one_that_was_meant(unknown: str, meant: str) -> None:
    granted = entitlement("customer:\ndays_until_due:\nmetadata[order_id]:")
    with pytest.raises(ParameterNotGranted) as refusal:
        forwarded(granted, {unknown: "1"})
    assert refusal.value.detail == f"{unknown} is not a parameter you may send. Did you mean {meant}?"
    assert refusal.value.faults[0].accepts == {"did_you_mean": meant}


def test_no_parameter_is_suggested_that_is_not_granted() -> None:
    with pytest.raises(ParameterNotGranted) as refusal:
        forwarded(entitlement("customer:"), {"auto_advanc": "1"})
    assert "auto_advance" not in refusal.value.detail


# ---------------------------------------------------------------- all that is wrong, at once


def test_every_fault_is_told_in_one_pass_with_what_would_pass() -> None:
    granted = entitlement(
        "customer: {required: true}\ndescription: {required: true, max_length: 5}\ncurrency: {one_of: [usd, eur]}\n"
        "days_until_due: {min: 1, max: 60}\ncollection_method: {fixed: send_invoice}\nauto_advance:\ncustom_fields:"
    )
    given = {
        "auto_advance": "maybe",
        "collection_method": "x",
        "currency": "gbp",
        "custmer": "cus_1",
        "custom_fields[1][name]": "a",
        "days_until_due": "61",
        "description": "too long",
    }
    with pytest.raises(ParameterInvalid) as refusal:
        forwarded(granted, given)
    told = refusal.value.problem("id")
    assert told["parameter"] == "auto_advance"
    assert told["detail"] == "auto_advance must be true or false. 8 more things are wrong."
    assert told["faults"] == [
        {
            "parameter": "auto_advance",
            "detail": "auto_advance must be true or false.",
            "reason": "parameter-invalid",
            "accepts": {"kind": "boolean"},
        },
        {
            "parameter": "collection_method",
            "detail": "collection_method is fixed by the policy: leave it out or send send_invoice.",
            "reason": "parameter-invalid",
            "accepts": {"fixed": "send_invoice"},
        },
        {
            "parameter": "currency",
            "detail": "currency must be one of: eur, usd.",
            "reason": "parameter-invalid",
            "accepts": {"kind": "currency", "one_of": ["eur", "usd"]},
        },
        {
            "parameter": "custmer",
            "detail": "custmer is not a parameter you may send. Did you mean customer?",
            "reason": "parameter-not-granted",
            "accepts": {"did_you_mean": "customer"},
        },
        {
            "parameter": "days_until_due",
            "detail": "days_until_due must be at most 60.",
            "reason": "parameter-invalid",
            "accepts": {"kind": "integer", "min": 1, "max": 60},
        },
        {
            "parameter": "description",
            "detail": "description is too long: 5 characters at most.",
            "reason": "parameter-invalid",
            "accepts": {"kind": "string", "max_length": 5},
        },
        {
            "parameter": "custom_fields",
            "detail": "custom_fields must have its entries numbered from 0 without a gap.",
            "reason": "parameter-invalid",
        },
        {
            "parameter": "custom_fields[1][value]",
            "detail": "custom_fields[1][value] is missing: custom_fields[1] cannot be sent without it.",
            "reason": "parameter-missing",
            "accepts": {"kind": "string"},
        },
        {
            "parameter": "customer",
            "detail": "customer is missing. Send it with every call.",
            "reason": "parameter-missing",
            "accepts": {"kind": "string", "max_length": 5000},
        },
    ]


def test_two_faults_are_counted_as_one_more() -> None:
    with pytest.raises(ParameterInvalid) as refusal:
        forwarded(entitlement("customer: {required: true}\ndays_until_due:"), {"days_until_due": "x"})
    assert refusal.value.detail == "days_until_due must be a whole number, such as 30. 1 more thing is wrong."


@pytest.mark.parametrize(("count", "more"), [(19, "18 more"), (20, "At least 19 more"), (400, "At least 19 more")])
def test_number_of_faults_is_bounded(count: int, more: str) -> None:
    with pytest.raises(ParameterNotGranted) as refusal:
        forwarded(entitlement("description:"), {f"strange_{number:03}": "x" for number in range(count)})
    assert len(refusal.value.faults) == min(count, 20)
    assert refusal.value.detail.endswith(f" {more} things are wrong.")


def test_similar_names_are_looked_for_a_few_times_only_and_the_list_is_said_once() -> None:
    """Each look may take 10 ms."""
    with pytest.raises(ParameterNotGranted) as refusal:
        forwarded(entitlement("description:"), {f"descriptio_{number}": "x" for number in range(5)})
    few = {"did_you_mean": "description"}
    assert [fault.accepts for fault in refusal.value.faults] == [few] * 3 + [{"parameters": ["description"]}] * 2
    with pytest.raises(ParameterNotGranted) as refusal:
        forwarded(entitlement("description:"), {"a": "x", "b": "x"})
    assert [fault.detail for fault in refusal.value.faults] == [
        "a is not a parameter you may send. You may send: description.",
        "b is not a parameter you may send.",
    ]


def test_parameter_that_is_required_and_is_the_key_is_missed_once() -> None:
    granted = entitlement("metadata[order_id]: {required: true}", idempotency='{from: "metadata[order_id]"}')
    with pytest.raises(ParameterMissing) as refusal:
        forwarded(granted, {"metadata[order_id]": ""})
    assert [fault.parameter for fault in refusal.value.faults] == ["metadata[order_id]"]


def test_parameter_that_is_the_key_is_missed_together_with_others() -> None:
    granted = entitlement("customer: {required: true}\nmetadata:", idempotency='{from: "metadata[order_id]"}')
    with pytest.raises(Refusal) as refusal:
        forwarded(granted, {})
    assert [fault.kind for fault in refusal.value.faults] == [ParameterMissing, IdempotencyKeyMissing]


# ---------------------------------------------------------------- spellings


@pytest.mark.parametrize("written", ["true", "True", "TRUE", "1"])
@pytest.mark.parametrize("bounds", ["", "{fixed: true}", "{one_of: [true]}", "{required: true}"])
def test_boolean_is_read_as_stripe_reads_it_and_compared_in_its_one_form(written: str, bounds: str) -> None:
    granted = entitlement(f"auto_advance: {bounds}")
    assert parameters.approve(granted, {"auto_advance": written}) == ({"auto_advance": "true"},) * 2


@pytest.mark.parametrize("written", ["false", "False", "FALSE", "0"])
def test_boolean_that_is_false_is_read_and_compared_likewise(written: str) -> None:
    assert forwarded(entitlement("auto_advance:"), {"auto_advance": written}) == {"auto_advance": "false"}
    for bounds in ("{fixed: true}", "{one_of: [true]}"):
        with pytest.raises(ParameterInvalid):
            forwarded(entitlement(f"auto_advance: {bounds}"), {"auto_advance": written})


@pytest.mark.parametrize("written", ["yes", "on", "tRUE", "T", "t", "01", "1.0", "2", "-1", "\uff11"])
def test_any_other_boolean_is_refused(written: str) -> None:
    with pytest.raises(ParameterInvalid, match="parameter-invalid"):
        forwarded(entitlement("auto_advance:"), {"auto_advance": written})


@pytest.mark.parametrize("written", ["usd", "USD", "Usd"])
@pytest.mark.parametrize("bounds", ["", "{fixed: usd}", "{one_of: [usd, eur]}"])
def test_currency_is_read_in_any_case(written: str, bounds: str) -> None:
    assert forwarded(entitlement(f"currency: {bounds}"), {"currency": written}) == {"currency": "usd"}


@pytest.mark.parametrize("written", ["us\u212a", "\uff35\uff33\uff24", "U$D"])
def test_currency_of_other_letters_is_refused(written: str) -> None:
    with pytest.raises(ParameterInvalid):
        forwarded(entitlement("currency:"), {"currency": written})


def test_text_that_looks_like_a_boolean_or_a_currency_is_left_alone() -> None:
    granted = entitlement("metadata:\ndescription:")
    given = {"description": "True", "metadata[a]": "USD", "metadata[b]": "0"}
    assert forwarded(granted, given) == given


@pytest.mark.parametrize("edge", ["\r\n", "\n", " ", "\t", "\u00a0", "\u2028"])
@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("customer:", "cus_1"),
        ("customer: {prefix: cus_}", "cus_1"),
        ("customer: {one_of: [cus_1]}", "cus_1"),
        ("customer: {fixed: cus_1}", "cus_1"),
        ("collection_method:", "send_invoice"),
        ("currency:", "USD"),
        ("days_until_due:", "30"),
        ("due_date:", "1767225600"),
        ("auto_advance:", "true"),
        ("subscription:", "sub_1"),
        ("transfer_data[destination]:", "acct_1"),
        ("metadata[order_id]: {prefix: order-}", "order-1"),
        ("metadata[team]: {one_of: [emea]}", "emea"),
    ],
)
def test_white_space_around_an_id_or_a_word_is_refused_and_named(written: str, value: str, edge: str) -> None:
    granted, path = entitlement(written), written.partition(":")[0]
    for sent, end in ((value + edge, "end"), (edge + value, "start")):
        with pytest.raises(ParameterInvalid) as refusal:
            forwarded(granted, {path: sent})
        assert refusal.value.detail == f"{path} has white space or a line break at its {end}. Remove it."


@pytest.mark.parametrize("path", [p.path for p in LEAVES if p.free])
def test_white_space_around_text_for_people_is_kept(path: str) -> None:
    asked = {**needed_beside(path), path: " x\r\n"}
    granted = entitlement("\n".join(f'"{one}":' for one in asked))
    given = {concrete(one): value for one, value in asked.items()}
    assert forwarded(granted, given) == given


def test_text_for_people_is_told_from_ids() -> None:
    free = {p.path.rpartition("[")[2].removesuffix("]") for p in PARAMETERS if p.free}
    assert free == {
        "description", "footer", "{key}", "name", "value", "display_name", "statement_descriptor",
        "city", "line1", "line2", "postal_code", "state", "phone", "registered_name", "reference",
    }  # fmt: skip
    assert all(p.kind is Kind.STRING and p.one_of is None for p in PARAMETERS if p.free)


def test_long_list_of_what_may_be_sent_is_cut() -> None:
    granted = entitlement("\n".join(f"metadata[k{i:02}]:" for i in range(20)))
    with pytest.raises(ParameterNotGranted) as refusal:
        forwarded(granted, {"x": "y"})
    assert refusal.value.detail.endswith("metadata[k11] and 8 more.")


def test_long_list_of_choices_is_cut() -> None:
    granted = entitlement("payment_settings[payment_method_types]:")
    with pytest.raises(ParameterInvalid) as refusal:
        forwarded(granted, {"payment_settings[payment_method_types][0]": "x"})
    assert refusal.value.detail.endswith("bancontact, billie, blik, boleto (and 39 more).")


@settings(max_examples=150)
@given(
    name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="[]"), min_size=1, max_size=250),
    shape=st.sampled_from(["{}", "metadata[{}]", "custom_fields[{}][name]", "metadata[{}][x]"]),
    value=st.text(max_size=30),
)
def test_refusal_of_a_hostile_name_is_short_printable_ascii(name: str, shape: str, value: str) -> None:
    granted = entitlement("customer:\nmetadata: {max_length: 2, prefix: a}")
    try:
        forwarded(granted, {shape.format(name): value})
    except Refusal as refusal:
        said = (refusal.detail, refusal.parameter or "")
    else:
        said = ("", "")
        assert shape == "metadata[{}]"
        assert value[:1] in {"", "a"}
    assert all(text.isascii() and text.isprintable() and len(text) <= 1600 for text in said)
    assert bool(said[0]) is bool(said[1])


def test_caller_text_in_a_value_is_never_repeated() -> None:
    granted = entitlement(
        "customer: {prefix: cus_}\ndescription: {max_length: 3}\ndays_until_due: {max: 5}\n"
        "collection_method: {fixed: send_invoice}\ncurrency:\neffective_at:\nrendering[amount_tax_display]:"
    )
    for path in granted.rules:
        with pytest.raises(ParameterInvalid) as refusal:
            forwarded(granted, {path: "canary-4242"})
        assert "canary" not in str(refusal.value.problem("id"))


# ---------------------------------------------------------------- rows of a form that nobody has filled in

ROWS = "custom_fields:\ndefault_tax_rates:"


def rows(filled: str) -> dict[str, str]:
    """Return custom fields as a form sends them: ``x`` is filled in, ``-`` is blank all through."""
    return {
        f"custom_fields[{index}][{part}]": f"{part[0]}{index}" if one == "x" else ""
        for index, one in enumerate(filled)
        for part in ("name", "value")
    }


@pytest.mark.parametrize("filled", ["-xx", "x-x", "xx-", "-x-"])
def test_entry_that_is_blank_all_through_is_left_out_wherever_it_stands(filled: str) -> None:
    left = [index for index, one in enumerate(filled) if one == "x"]
    plain: dict[str, str] = {}
    for new, old in enumerate(left):
        plain |= {f"custom_fields[{new}][name]": f"n{old}", f"custom_fields[{new}][value]": f"v{old}"}
    asked, approved = parameters.approve(entitlement(ROWS), rows(filled))
    assert list(asked.items()) == list(approved.items()) == list(plain.items())
    assert parameters.approve(entitlement(ROWS), plain) == (asked, approved)


def test_blank_entries_do_not_count() -> None:
    assert forwarded(entitlement(ROWS), rows("-xxx-x")) == custom(0, 1, 2, 3)
    with pytest.raises(ParameterInvalid) as refusal:
        forwarded(entitlement(ROWS), rows("-xxxxx"))
    assert refusal.value.detail == "custom_fields has too many entries: 4 at most."


def custom(*indexes: int) -> dict[str, str]:
    """Return those that are left of the six above, numbered anew."""
    old = dict(zip(indexes, (1, 2, 3, 5), strict=True))
    return {f"custom_fields[{i}][{part}]": f"{part[0]}{old[i]}" for i in indexes for part in ("name", "value")}


@pytest.mark.parametrize("granted", ["custom_fields:", '"custom_fields[{i}][name]":\n"custom_fields[{i}][value]":'])
def test_entry_that_is_a_blank_itself_is_left_out_too(granted: str) -> None:
    given = {"custom_fields[0]": "", "custom_fields[1][name]": "n", "custom_fields[1][value]": "v"}
    assert forwarded(entitlement(granted), given) == {"custom_fields[0][name]": "n", "custom_fields[0][value]": "v"}


def test_blank_entry_stands_for_the_one_that_the_policy_writes() -> None:
    fixed = {"custom_fields[0][name]": "n0", "custom_fields[0][value]": "v0"}
    given = {"custom_fields[1][name]": "n", "custom_fields[1][value]": "v"}
    granted = "\n".join(["custom_fields:", *(f'"{path}": {{fixed: {value}}}' for path, value in fixed.items())])
    assert forwarded(entitlement(granted), {"custom_fields[0]": "", **given}) == fixed | given


@pytest.mark.parametrize("path", ["custom_fields[0]", "custom_fields[x]", "nonsense[0]", "custom_fields", "footer"])
def test_blank_entry_of_a_list_that_is_not_granted_is_refused_as_anything_else(path: str) -> None:
    with pytest.raises(ParameterNotGranted):
        forwarded(entitlement("default_tax_rates:"), {path: ""})


def test_values_in_a_list_move_up_too_and_none_may_be_left() -> None:
    given = {"default_tax_rates[0]": "", "default_tax_rates[1]": "txr_1", "custom_fields[0][name]": ""}
    assert forwarded(entitlement(ROWS), given | {"custom_fields[0][value]": ""}) == {"default_tax_rates[0]": "txr_1"}


@pytest.mark.parametrize(
    "given",
    [
        {"default_tax_rates[1]": "txr_1"},
        {"default_tax_rates[0]": "", "default_tax_rates[2]": "txr_1"},
        {"default_tax_rates[2]": "", "default_tax_rates[1]": "txr_1"},
    ],
)
def test_gap_that_no_blank_entry_leaves_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ParameterInvalid, match="parameter-invalid") as refusal:
        forwarded(entitlement(ROWS), given)
    assert refusal.value.detail == "default_tax_rates must have its entries numbered from 0 without a gap."


def test_entry_with_one_part_is_not_blank_and_is_named_as_the_caller_wrote_it() -> None:
    given = rows("-x") | {"custom_fields[1][value]": ""}
    with pytest.raises(ParameterMissing) as refusal:
        forwarded(entitlement(ROWS), given)
    assert [one.parameter for one in refusal.value.faults] == ["custom_fields[1][value]"]


@pytest.mark.parametrize(
    "named", ["custom_fields[1][name]: {required: true}", "custom_fields[1][name]: {max_length: 9}"]
)
def test_list_of_which_the_policy_names_an_entry_by_its_number_keeps_its_numbers(named: str) -> None:
    with pytest.raises(ParameterInvalid) as refusal:
        forwarded(entitlement(f"{ROWS}\n{named}"), rows("-x"))
    assert refusal.value.detail == "custom_fields must have its entries numbered from 0 without a gap."


def test_list_whose_entry_is_the_key_keeps_its_numbers() -> None:
    granted = entitlement(ROWS, idempotency='{from: "custom_fields[1][value]"}')
    with pytest.raises(ParameterInvalid):
        forwarded(granted, rows("-x"))
    assert forwarded(granted, rows("xx"))
