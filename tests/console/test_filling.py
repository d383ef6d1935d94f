"""What recipes are filled with: which values are inputs, what is never frozen, and what is refused."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from console.recipes.filling import RECIPES, Asked, fill, holes_of, read
from console.recipes.model import Input
from policies.operations import OPERATIONS
from policies.refusals import BodyMalformed
from sandbox.__main__ import ROOT

if TYPE_CHECKING:
    from console.recipes.model import Holes

ME: Final[dict[str, Any]] = json.loads((ROOT / "tests" / "portal" / "me.json").read_text())
CREATE, RETRIEVE, BY_FIELD = (
    "acme-billing:invoices.create",
    "acme-billing:invoices.retrieve",
    "acme-sandbox:invoices.create",
)
AT: Final = "https://us-central1-acme.cloudfunctions.net/countersign"


def holes(grant: str, fields: dict[str, str] | None = None, key: str = "", **others: Any) -> Holes:
    asked = read(json.dumps({"grant": grant, "fields": fields or {}, "key": key, **others}).encode())
    return holes_of(asked, root=AT, described=ME)


def test_order_and_needed_fields_are_inputs_and_all_else_is_text() -> None:
    typed = {"customer": "cus_1", "description": "Consulting", "collection_method": "charge_automatically"}
    filled = holes(CREATE, typed, "order-1001")
    order = Input("order_id", "1001")
    assert filled.key == ("order-", order)
    assert filled.inputs[0] == order
    assert filled.fields["customer"] == (Input("customer", "cus_1"),)
    assert filled.fields["description"] == ("Consulting",)
    # The policy fixes it, and sends it.
    assert "collection_method" not in filled.fields
    # What is needed and was not typed has the example of the catalogue.
    assert filled.fields["days_until_due"] == (Input("days_until_due", "30"),)
    assert [one.name for one in filled.inputs] == ["order_id", "customer", "days_until_due", "metadata_cost_center"]


@pytest.mark.parametrize(("key", "example"), [("order-7", "7"), ("7", "7"), ("", "1001"), ("order-", "1001")])
def test_key_is_the_prefix_of_the_policy_and_an_input(key: str, example: str) -> None:
    assert holes(CREATE, key=key).key == ("order-", Input("order_id", example))


def test_field_that_is_the_key_is_the_order_and_there_is_no_header() -> None:
    filled = holes(BY_FIELD, {"metadata[order_id]": "4711"}, "ignored")
    assert filled.key is None
    assert filled.fields["metadata[order_id]"] == (Input("order_id", "4711"),)


def test_text_that_names_the_order_names_every_order() -> None:
    typed = {"metadata[order]": "order-1001", "description": "1001", "days_until_due": "1001"}
    filled = holes(CREATE, typed, "order-1001")
    order = Input("order_id", "1001")
    assert filled.fields["metadata[order]"] == ("order-", order)
    assert filled.fields["description"] == (order,)
    assert filled.fields["days_until_due"] == (Input("days_until_due", "1001"),)
    assert holes(CREATE, typed | {"currency": "1001"}, "order-1001").fields["currency"] == ("1001",)


def test_call_that_looks_has_its_id_in_the_address_and_no_key() -> None:
    filled = holes(RETRIEVE, {"invoice": "in_1"}, "order-1001", validate_only=True)
    invoice = Input("invoice_id", "in_1")
    assert filled.url == (
        f"{AT}/stripe/invoices/", invoice, "/?name=ft-4&connection_name=stripe-1&validate_only=true",
    )  # fmt: skip
    assert (filled.key, filled.order, filled.fields, filled.ids) == (None, None, {}, ((invoice,),))


def test_sdk_that_takes_no_path_says_why_it_cannot_be_used() -> None:
    shown = {one["id"]: one for one in fill(Asked(), root="https://c.example", described=ME)}
    for name in ("stripe-node", "stripe-go"):
        assert shown[name]["text"] == ""
        assert "Ask the operator of Countersign to tie it to this connection" in shown[name]["steps"][0]
    assert shown["stripe-python"]["text"]
    tied = ME | {"credential": {"tied": "acme-billing"}}
    shown = {one["id"]: one for one in fill(Asked(), root="https://c.example", described=tied)}
    assert shown["stripe-node"]["text"]
    shown = {one["id"]: one for one in fill(Asked(), root=AT, described=tied)}
    assert "this address has a path" in shown["stripe-node"]["steps"][0]


def test_without_a_credential_the_call_is_the_one_that_all_have() -> None:
    shown = fill(read(b""), root=AT, described=None)
    assert [one["id"] for one in shown] == [recipe.id for recipe in RECIPES]
    for one in shown:
        assert one.keys() == {"id", "title", "kind", "mime", "steps", "text"}
        assert one["steps"]
        assert not one["text"] or AT in one["text"]
    assert "name=NAME&connection_name=CONNECTION_NAME" in shown[0]["text"]


def test_caller_without_a_grant_has_no_recipe() -> None:
    assert fill(Asked(), root=AT, described=ME | {"grants": []}) == []


@pytest.mark.parametrize("recipe", [one.id for one in RECIPES])
@pytest.mark.parametrize("grant", [CREATE, RETRIEVE, BY_FIELD])
def test_every_recipe_names_its_address_and_neither_key(recipe: str, grant: str) -> None:
    asked = Asked(grant=grant, fields={"metadata[order_id]": "order-774411"}, key="order-774411")
    (shown,) = (one for one in fill(asked, root=AT, described=ME) if one["id"] == recipe)
    if shown["text"]:
        assert AT in shown["text"]
        assert "order-774411" not in shown["text"] or grant == RETRIEVE or shown["text"].count("774411") == 1
    assert shown["steps"]


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b"{", b'{"fields": []}', b'{"fields": {"customer": 1}}', b'{"key": null}', b'{"frm": {}}', b"\xff",
        b'{"fields": {"a": "1", "a[b]": "2"}}', b'{"fields": {"a[": "1"}}', b'{"fields": {"": "1"}}',
        b'{"fields": {"a": "\\u0000"}}', b'{"fields": {"a": "\\ud800"}}',
        json.dumps({"key": "x" * 256}).encode(), json.dumps({"fields": {"a": "x" * 5001}}).encode(),
        json.dumps({"fields": {f"a{n}": "1" for n in range(513)}}).encode(), b'{"fields":' * 6_000,
    ],
)  # fmt: skip
def test_body_that_is_no_call_is_refused(body: bytes) -> None:
    with pytest.raises(BodyMalformed):
        read(body)


def test_grant_that_there_is_not_is_refused() -> None:
    with pytest.raises(BodyMalformed) as caught:
        fill(Asked(grant="acme-billing:nothing"), root=AT, described=ME)
    assert caught.value.detail.startswith("There is no grant acme-billing:nothing.")


#: Names that programs of recipes have for something else, and words that a language keeps for itself.
TAKEN: Final = frozenset(
    re.findall(
        r"\w+",
        """
        answer body client detail err error fields json name now os params process refused request secret signed
        stripe sys told argv argc fmt errors context base64 hashlib hmac time urllib one order_id path home user ifs
        pwd and as async await begin break case catch chan class const continue def default defer del delete do elif
        else end ensure enum eval except export extends false finally for from func function global go goto if import
        in interface is lambda let map module new next nil none not null or package pass raise range redo rescue retry
        return self select static struct super switch then throw true try type typeof undef unless until var void when
        while with yield
        """,
    )
)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_field_of_a_catalogue_has_a_name_that_a_program_uses(operation: str) -> None:
    for path in OPERATIONS[operation].parameters:
        me = {
            "grants": [
                {
                    "id": "x", "connection": {"name": "a", "connection_name": "b"},
                    "operation": {"id": operation, "noun": "invoice", "method": "POST", "path": "invoices"},
                    "idempotency": None, "fields": [{"path": path, "required": True}],
                }
            ]
        }  # fmt: skip
        (one,) = holes_of(Asked(), root=AT, described=me).inputs
        assert one.name.isidentifier()
        assert one.name.isascii()
        assert one.name not in TAKEN
