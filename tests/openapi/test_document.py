"""The API description of one caller says what this caller may do, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from console import openapi, schemas
from gateway.reading import MAX_TARGET
from policies import document
from tests.conftest import CUSTOMER, KEY, OTHER_KEY, TARGET, policy
from tests.test_docs import every_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from policies.model import Caller
    from tests.conftest import Function

ROOT = "https://pay.acme.example"
RAISE = "/stripe/invoices/"


def caller(name: str = "app", **more: Any) -> Caller:
    read = document.read(policy("https://stripe.example", upstream="stripe", **more), "policy")
    return next(one for one in read.callers.values() if one.id == name)


def at(described: Any, *path: str) -> Any:
    for name in path:
        described = described[name]
    return described


def test_document_holds_what_is_granted_and_no_name_of_others() -> None:
    told = openapi.document(caller(), root=ROOT)
    assert set(told["paths"]) == {"/-/health", RAISE}
    body = at(told, "paths", RAISE, "post", "requestBody", "content")
    assert list(body) == ["application/json", "application/x-www-form-urlencoded"]
    form = at(body, "application/x-www-form-urlencoded", "schema")
    assert set(form["properties"]) == {
        "customer", "description", "days_until_due", "metadata[order_id]", "metadata[cost_center]",
        "custom_fields[0][name]", "custom_fields[0][value]",
    }  # fmt: skip
    written = json.dumps(told)
    for hidden in ("other-account", "stripe-2", "stripe.example", "projects/", "transfer_data"):
        assert hidden not in written


def test_names_of_a_connection_are_filled_in() -> None:
    parameters = at(openapi.document(caller(), root=ROOT), "paths", RAISE, "post", "parameters")
    filled = {one["name"]: one["schema"].get("default") for one in parameters if one["in"] == "query"}
    assert filled == {"name": "ft-4", "connection_name": "stripe-1"}


@pytest.mark.parametrize(("bounds", "told"), [("{max_length: 50}", 50), ("", MAX_TARGET)])
def test_no_text_in_an_address_is_longer_than_an_address(bounds: str, told: int) -> None:
    described = openapi.document(caller(retrieve=f"{{invoice: , expand: {bounds}}}"), root=ROOT)
    parameters = at(described, "paths", f"{RAISE}{{invoice}}", "get", "parameters")
    [expand] = [one for one in parameters if one["name"].startswith("expand")]
    assert expand["schema"]["items"]["maxLength"] == told


@pytest.mark.parametrize(
    ("idempotency", "told"),
    [
        ("required", (True, "order-1001")),
        ("optional", (False, "order-1001")),
        ("{prefix: shop-}", (True, "shop-1001")),
        ('{from: "metadata[order_id]"}', None),
    ],
)
def test_key_is_asked_for_as_the_grant_does(idempotency: str, told: object) -> None:
    parameters = at(openapi.document(caller(idempotency=idempotency), root=ROOT), "paths", RAISE, "post", "parameters")
    found = [one for one in parameters if one["name"] == "Idempotency-Key"]
    assert [(one["required"], one["example"]) for one in found] == ([] if told is None else [told])
    assert not any("default" in one["schema"] for one in found)  # it would make all calls of an importer one


def test_several_connections_are_alternatives_and_each_has_a_document_of_its_own() -> None:
    more = "      - {connection: other-account, operation: invoices.create, parameters: {customer: }, response: [id]}"
    text = policy("https://stripe.example", upstream="stripe").replace("  other:\n", f"{more}\n  other:\n")
    app = next(one for one in document.read(text, "policy").callers.values() if one.id == "app")
    both = openapi.document(app, root=ROOT)
    alternatives = at(both, "paths", RAISE, "post", "requestBody", "content", "application/json", "schema", "anyOf")
    assert [one["title"] for one in alternatives] == ["At billing", "At other-account"]
    assert set(both["x-countersign-connections"]) == {"billing", "other-account"}
    one = openapi.document(app, root=ROOT, connection="other-account")
    assert set(
        at(one, "paths", RAISE, "post", "requestBody", "content", "application/json", "schema", "properties")
    ) == {"customer"}
    with pytest.raises(openapi.NothingThereError):
        openapi.document(app, root=ROOT, connection="nobodys")


def test_every_reason_of_a_refusal_is_told_at_its_status_and_left_open() -> None:
    told = openapi.document(caller(retrieve="{invoice: }"), root=ROOT)["components"]["responses"]
    found: dict[str, set[int]] = {}
    for status, response in told.items():
        kinds = response["content"]
        assert set(kinds) == {"application/problem+json", "application/json"}
        reason = kinds["application/json"]["schema"]["allOf"][1]["properties"]["reason"]
        assert "enum" not in reason
        for one in reason["examples"]:
            found.setdefault(one, set()).add(int(status))
    for refusal in every_refusal():
        if "reason" in vars(refusal):
            assert refusal.status in found[refusal.reason]


def test_public_document_has_no_parameters_and_nobodys_name(function: Callable[..., Function]) -> None:
    gate = function()
    answer = gate.post("/openapi.json", b"", key=None, media=None, method="GET")
    told = answer.json or {}
    assert set(told["paths"]) == {
        "/-/health",
        RAISE,
        "/stripe/customers/",
        "/stripe/invoiceitems/",
        "/stripe/invoices/issue/",
        "/stripe/invoices/{invoice}",
        "/stripe/invoices/{invoice}/finalize",
        "/stripe/invoices/{invoice}/send",
        "/stripe/invoices/{invoice}/void",
    }
    summaries = [told["paths"]["/stripe/invoices/{invoice}"][method]["summary"] for method in ("get", "delete")]
    assert summaries == ["Look at an invoice", "Delete an invoice"]
    assert "requestBody" not in told["paths"][RAISE]["post"]
    assert "ft-4" not in answer.text


def test_document_is_for_its_caller_alone(function: Callable[..., Function]) -> None:
    gate = function()
    mine, others = (gate.post("/openapi.json", b"", key=key, media=None, method="GET") for key in (KEY, OTHER_KEY))
    assert (mine.status_code, others.status_code) == (200, 200)
    assert mine.headers["Cache-Control"] == "no-store"
    assert (mine.json or {})["info"]["title"] == "What app may do at billing"
    assert (others.json or {})["info"]["title"] == "What other may do at other-account"
    asked = gate.post("/openapi.json?connection=other-account", b"", media=None, method="GET")
    assert (asked.status_code, (asked.json or {})["parameter"]) == (400, "connection")


def test_samples_are_the_recipes(function: Callable[..., Function]) -> None:
    told: Any = function().post("/openapi.json", b"", media=None, method="GET").json
    samples = told["paths"][RAISE]["post"]["x-codeSamples"]
    assert [one["lang"] for one in samples] == ["Shell", "Python", "JavaScript"]
    assert all("COUNTERSIGN_KEY" in one["source"] and KEY not in one["source"] for one in samples)


def test_answer_of_a_call_is_what_the_document_says_and_has_nothing_more(function: Callable[..., Function]) -> None:
    gate = function()
    described: Any = gate.post("/openapi.json", b"", media=None, method="GET").json
    schema = at(described, "paths", RAISE, "post", "responses", "200", "content", "application/json", "schema")
    raised = gate.post(TARGET, CUSTOMER).json or {}
    assert raised["lines"]["data"]
    closed = {
        **schema,
        "additionalProperties": False,
        "required": [one for one in schema["properties"] if one != "replayed"],
    }
    assert Draft202012Validator(closed).is_valid(raised)
    assert not Draft202012Validator(closed).is_valid({**raised, "secret": 1})


def test_shared_schemas_are_schemas() -> None:
    for schema in schemas.SHARED.values():
        Draft202012Validator.check_schema(schema)
