"""The catalogue is the one that Stripe publishes, and every parameter stands in its risk group."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

import pytest

from policies.forms import MAX_DEPTH, MAX_PATH, MAX_SHOWN, split
from policies.model import WHOLESALE, Kind, Risk, Shape
from policies.operations import OPERATIONS, meanings, words
from policies.operations.invoices_create import FIELDS, PARAMETERS
from policies.operations.invoices_create import OPERATION as INVOICES_CREATE
from sandbox.invoice import EXAMPLE

#: As Stripe publishes it; Appgregator takes ``amount``, too.
CATALOGUE = {path: one for path, one in INVOICES_CREATE.parameters.items() if path != "amount"}

#: Of the published list and what came with 2026-10-28.endive, sorted by path: path, kind, choices, length, whether its
#: parent needs it, whether the empty text unsets it. Lengths of choices (which bound themselves) and of metadata (which
#: are published in words) are left out, and tested by themselves.
PUBLISHED = "d1b11adbf8240c245d7a6f3379642bb85dd2765a07c65e3ce361b716dc7b54b6"


def test_catalogue_is_the_published_list() -> None:
    listed = [
        [
            parameter.path,
            parameter.kind.value,
            sorted(parameter.one_of or ()),
            None if parameter.one_of or parameter.path.endswith("[{key}]") else parameter.max_length,
            parameter.needed,
            parameter.unsets,
        ]
        for parameter in sorted(PARAMETERS, key=lambda parameter: parameter.path)
    ]
    assert hashlib.sha256(json.dumps(listed).encode()).hexdigest() == PUBLISHED


def test_catalogue_has_154_paths_and_none_twice() -> None:
    """The digest says that something differs; the counts say what."""
    assert len(PARAMETERS) == len(CATALOGUE) == 154
    assert Counter(parameter.kind for parameter in PARAMETERS) == {
        Kind.STRING: 78,
        Kind.OBJECT: 46,
        Kind.INTEGER: 12,
        Kind.ARRAY: 9,
        Kind.TIMESTAMP: 4,
        Kind.BOOLEAN: 3,
        Kind.CURRENCY: 2,
    }
    assert Counter(parameter.risk for parameter in PARAMETERS) == {
        Risk.REROUTES: 79,
        Risk.CHANGES: 51,
        Risk.PLAIN: 20,
        Risk.COLLECTS: 2,
        Risk.WIDENS: 2,
    }


TOP = {
    Risk.PLAIN: "customer description footer metadata currency days_until_due due_date effective_at custom_fields "
    "collection_method rendering",
    Risk.REROUTES: "application_fee_amount transfer_data on_behalf_of issuer default_payment_method default_source "
    "payment_settings customer_account",
    Risk.COLLECTS: "auto_advance automatically_finalizes_at",
    Risk.CHANGES: "discounts default_tax_rates automatic_tax shipping_cost shipping_details "
    "pending_invoice_items_behavior subscription from_invoice account_tax_ids number statement_descriptor",
    Risk.WIDENS: "expand",
}


def test_each_of_the_33_top_level_parameters_stands_in_its_risk_group() -> None:
    expected = {name: risk for risk, names in TOP.items() for name in names.split()}
    assert len(expected) == 33
    assert {path: parameter.risk for path, parameter in CATALOGUE.items() if "[" not in path} == expected


def test_part_stands_in_the_group_of_its_object_but_for_tax_liability() -> None:
    """Who is liable for tax reroutes money, although working tax out only changes the price."""
    strays = {path for path, parameter in CATALOGUE.items() if parameter.risk is not CATALOGUE[split(path)[0]].risk}
    assert strays == {path for path in CATALOGUE if path.startswith("automatic_tax[liability]")}
    assert {CATALOGUE[path].risk for path in strays} == {Risk.REROUTES}


@pytest.mark.parametrize(
    ("path", "length"),
    [
        ("description", 1500),
        ("footer", 5000),
        ("number", 26),
        ("statement_descriptor", 22),
        ("custom_fields[{i}][name]", 40),
        ("custom_fields[{i}][value]", 140),
        ("metadata[{key}]", 500),
        ("shipping_cost[shipping_rate_data][metadata][{key}]", 500),
    ],
)
def test_length_is_the_documented_one(path: str, length: int) -> None:
    assert CATALOGUE[path].max_length == length


def test_entries_and_keys_are_bounded_as_documented() -> None:
    bounded = {
        path: (parameter.max_items, parameter.max_key)
        for path, parameter in CATALOGUE.items()
        if parameter.max_items or parameter.max_key
    }
    assert bounded == {
        "custom_fields": (4, None),
        "metadata": (50, 40),
        "shipping_cost[shipping_rate_data][metadata]": (50, 40),
        "shipping_cost[shipping_rate_data][fixed_amount][currency_options]": (50, 3),
    }


@pytest.mark.parametrize("path", CATALOGUE)
def test_every_part_has_its_object_in_the_catalogue(path: str) -> None:
    parent = path.rpartition("[")[0]
    if parent:
        assert CATALOGUE[parent].kind is (Kind.ARRAY if path.endswith("[{i}]") else Kind.OBJECT)
    assert CATALOGUE[path].path == path
    assert re.fullmatch(r"[a-z_]+(\[([a-z0-9_]+|\{i\}|\{key\})\])*", path)


def test_bounds_of_a_body_leave_room_for_every_parameter() -> None:
    assert max(len(split(path)) for path in CATALOGUE) <= MAX_DEPTH
    assert max(len(path.replace("{key}", "k" * 40)) for path in CATALOGUE) <= MAX_SHOWN <= MAX_PATH


@pytest.mark.parametrize(
    "field",
    [
        "amount_paid_off_stripe",
        "threshold_reason.amount_gte",
        "total_pretax_credit_amounts.amount",
        "lines.data.invoice",
        "lines.data.parent.invoice_item_details.invoice_item",
        "lines.data.pretax_credit_amounts.amount",
        "lines.data.quantity_decimal",
        "parent.subscription_details.metadata",
    ],
)
def test_field_of_the_newest_version_can_be_granted(field: str) -> None:
    assert field in FIELDS


def test_all_77_fields_of_the_published_invoice_can_be_granted() -> None:
    assert len(EXAMPLE) == 77
    assert set(EXAMPLE) <= {path.partition(".")[0] for path in FIELDS}


def test_no_field_leads_through_another() -> None:
    """A path that is both a leaf and a branch would have to be trimmed in two ways."""
    assert not [path for path in FIELDS for other in FIELDS if other.startswith(path + ".")]


def test_only_free_keyed_fields_are_granted_as_objects() -> None:
    assert {path for path, shape in FIELDS.items() if shape is Shape.MAP} == {
        "metadata",
        "lines.data.metadata",
        "lines.data.price.metadata",
        "parent.subscription_details.metadata",
    }


#: Of each: what its calls do, whether they need a key, the object that they answer with, and the path.
KNOWN = {
    "customers.create": ("creates", "customer", "POST customers"),
    "customers.list": ("looks", "list", "GET customers"),
    "invoiceitems.create": ("creates", "invoiceitem", "POST invoiceitems"),
    "invoices.create": ("creates", "invoice", "POST invoices"),
    "invoices.delete": ("changes", "invoice", "DELETE invoices/{invoice}"),
    "invoices.finalize": ("changes", "invoice", "POST invoices/{invoice}/finalize"),
    "invoices.issue": ("creates", "invoice", "POST invoices/issue"),
    "invoices.retrieve": ("looks", "invoice", "GET invoices/{invoice}"),
    "invoices.send": ("changes", "invoice", "POST invoices/{invoice}/send"),
    "invoices.void": ("changes", "invoice", "POST invoices/{invoice}/void"),
}


def test_operations_go_by_their_names() -> None:
    assert {
        name: (one.effect.value, one.answers, f"{one.method} {one.path}") for name, one in OPERATIONS.items()
    } == KNOWN
    assert all(one.id == name for name, one in OPERATIONS.items())


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_part_of_an_operation_has_its_object(name: str) -> None:
    catalogue = OPERATIONS[name].parameters
    for path, parameter in catalogue.items():
        parent = path.rpartition("[")[0]
        assert parameter.path == path
        if parent:
            assert catalogue[parent].kind is (Kind.ARRAY if path.endswith("[{i}]") else Kind.OBJECT)
    fields = OPERATIONS[name].fields
    assert not [path for path in fields for other in fields if other.startswith(path + ".")]


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_people_read_is_said_of_what_there_is(name: str) -> None:
    one = OPERATIONS[name]
    assert set(words(name)) <= set(one.parameters)
    assert set(meanings(name)) <= set(one.fields)
    wholesale = {
        path
        for path, parameter in one.parameters.items()
        if parameter.risk in WHOLESALE and (parameter.kind not in {Kind.OBJECT, Kind.ARRAY} or parameter.unsets)
    }
    assert wholesale <= set(words(name))


def test_nobody_finalizes_mails_voids_or_deletes_by_a_group() -> None:
    risks = {"finalize": Risk.COLLECTS, "send": Risk.MAILS, "void": Risk.UNDOES, "delete": Risk.UNDOES}
    assert {name: OPERATIONS[f"invoices.{name}"].parameters["invoice"].risk for name in risks} == risks
    assert not {*risks.values()} & WHOLESALE


#: As those of ``invoices.create``, of ``stripe_operations.json``.
PUBLISHED_ITEM = "3ec8b7491d7cf94c8e3801d42992a8651fd1c6185ab9596e9d316d5269983386"


def test_parameters_of_an_item_are_the_published_ones() -> None:
    listed = [
        [path, parameter.kind.value, sorted(parameter.one_of or ()), parameter.needed, parameter.unsets]
        for path, parameter in sorted(OPERATIONS["invoiceitems.create"].parameters.items())
        if path != "invoice"  # which is needed here, and is not there
    ]
    assert hashlib.sha256(json.dumps(listed).encode()).hexdigest() == PUBLISHED_ITEM
