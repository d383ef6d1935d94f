"""Every recipe, run as it is copied: what arrives upstream is what was typed, byte for byte."""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import pytest

from console.describe import describe
from console.recipes.filling import RECIPES, fill, read
from policies import document
from sandbox.__main__ import SECRET
from tests.clients.test_sdks import tied
from tests.clients.tools import HAS_NODE_RED, RUNNERS, Copied, imported, node_red, pressed
from tests.conftest import KEY, policy, sha256
from tests.gateway.conftest import SIGNING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from sandbox.stripe import Stripe
    from tests.conftest import Server

#: What a language, a shell, a tool or a browser could take for something else than text.
NASTY: Final = (
    "=1+1", "=abc", "{{x}}", "{{ 1+1 }}", "}}", "{", "@x", "@{x}", "@@", "'; rm -rf /", "$(id)", "`id`", "${HOME}",
    "$HOME", "#{1+1}", "a\nb", "\r\n", "tab\there", "\N{GRINNING FACE}", "right\N{RIGHT-TO-LEFT OVERRIDE}left",
    "</script>", "%41", "&a=b", "+", "a;b", "trailing ", " leading", '"', '"quoted"', "\\", "\\n", "\\'", "!!", "!x",
    "e\N{COMBINING ACUTE ACCENT}", "{i}", "null", "0", "1.50", "\N{LINE SEPARATOR}", "\N{NO-BREAK SPACE}x", "-n",
    "--help", "<b>", "*", "~", "?", "#x", "//x", "/* x */", "%{x}", "{0}", "__x__",
)  # fmt: skip
PARAMETERS: Final = """
customer: {required: true}
description: {required: true, max_length: 1500}
footer:
metadata:
custom_fields:
"""
#: Three texts that begin in three dangerous ways, for what a recipe takes as an input.
INPUTS: Final = tuple(start + " ".join(NASTY) + " " for start in ("=", "@", "'"))
CUSTOMER: Final = "cus_MQqeLuPp19Qbk8"


@pytest.fixture
def text(upstream: Appgregator) -> str:
    return tied(policy(upstream.origin, parameters=PARAMETERS, idempotency="{prefix: order-}"), KEY, "billing")


@pytest.fixture
def served(server: Callable[..., Server], text: str) -> Server:
    return server(text)


def copied(text: str, port: int, fields: dict[str, str], key: str = "order-1001") -> dict[str, dict[str, Any]]:
    """Return the recipes as the page shows them, by their ids."""
    policies = document.read(text, "policy.yaml")
    caller = policies.callers[next(proof for proof in policies.callers if proof.kind == "key")]
    me = json.loads(json.dumps(describe(policies, caller, now=0, standings=None)))
    asked = read(json.dumps({"fields": fields, "key": key}).encode())
    return {one["id"]: one for one in fill(asked, root=f"http://127.0.0.1:{port}", described=me)}


def typed(description: str) -> dict[str, str]:
    """What somebody types who tries everything: each of the texts as a value, and some as a name."""
    fields = {f"metadata[v{number}]": value for number, value in enumerate(NASTY[:45])}
    fields |= {"metadata[a&b=c d]": "name", "metadata[%41+'\"$(id)]": "name", "metadata[@x{{y}}]": "name"}
    fields |= {"custom_fields[0][name]": "=1+1", "custom_fields[0][value]": "@x", "footer": "\n".join(NASTY)}
    return {"customer": CUSTOMER, "description": description, **fields}


@pytest.fixture(params=[pytest.param(name, id=name, marks=mark) for name, (_, mark) in RUNNERS.items()])
def tool(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_what_was_typed_arrives_and_another_order_is_another_invoice(
    tool: str, served: Server, upstream: Appgregator, text: str, tmp_path: Path
) -> None:
    run, _ = RUNNERS[tool]
    for number, description in enumerate(INPUTS):
        recipe = copied(text, served.port, typed(description), key=f"order-{number}7001")[tool]
        inputs = {"order_id": f"{number}7001", "customer": CUSTOMER, "description": description}
        went, told = run(Copied(recipe["text"], inputs, KEY, tmp_path))
        assert went, told
        assert dict(parse_qsl(upstream.calls[-1].body.decode(), keep_blank_values=True)) == typed(description)
        assert len(upstream.calls) == number + 1
        # The text has the order in one place at most, where the person is told to change it.
        assert recipe["text"].count("7001") <= 1
        assert f"order-{number}7001" not in recipe["text"]
    again, next_one = ({**inputs, "order_id": order} for order in (inputs["order_id"], "7002"))
    assert run(Copied(recipe["text"], again, KEY, tmp_path))[0]
    assert upstream.invoices == len(INPUTS)
    other = recipe["text"].replace(inputs["order_id"], "7002")
    assert run(Copied(other, next_one, KEY, tmp_path))[0]
    assert upstream.invoices == len(INPUTS) + 1


def test_refusal_is_told_in_its_own_words(tool: str, served: Server, text: str, tmp_path: Path) -> None:
    run, _ = RUNNERS[tool]
    inputs = {"order_id": "7001", "customer": CUSTOMER, "description": "x" * 1501}
    recipe = copied(text, served.port, {"customer": CUSTOMER, "description": "x" * 1501}, key="order-7001")[tool]
    went, told = run(Copied(recipe["text"], inputs, KEY, tmp_path))
    assert not went
    # n8n's node shows the reason of an error, and gives the rest to the branch for errors.
    assert ("parameter-invalid" if tool == "n8n" else "description is too long: 1500 characters at most.") in told


@pytest.mark.parametrize("name", ["python", "node", "stripe-python", "signed-node"])
def test_line_that_starts_a_program_has_the_inputs_as_its_words(name: str, text: str) -> None:
    recipe = copied(text, 8080, typed(INPUTS[0]))[name]
    line = next(step for step in recipe["steps"] if step.startswith("Run it"))
    words = shlex.split(line.partition(": ")[2].removesuffix(". The order must have no comma and no full stop in it."))
    assert words[2:] == ["1001", CUSTOMER, INPUTS[0]]


@pytest.mark.parametrize("name", ["signed-python", "signed-node"])
def test_signed_call_arrives_as_typed(
    name: str,
    *,
    server: Callable[..., Server],
    upstream: Appgregator,
    secret_manager: Any,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    secret_manager.add("projects/sandbox/secrets/signing", SIGNING.encode())
    credential = "webhook: projects/sandbox/secrets/signing/versions/latest"
    document_ = policy(upstream.origin, parameters=PARAMETERS, credentials=[credential])
    running = server(document_)
    recipe = copied(document_, running.port, typed(INPUTS[0]), key="order-1001")[name]
    inputs = {"order_id": "order-1001", "customer": CUSTOMER, "description": INPUTS[0]}
    run, _ = RUNNERS["python" if name == "signed-python" else "node"]
    for _ in range(2):
        went, told = run(Copied(recipe["text"], inputs, SIGNING, tmp_path))
        assert went, told
    assert upstream.invoices == 1
    assert dict(parse_qsl(upstream.calls[-1].body.decode(), keep_blank_values=True)) == typed(INPUTS[0])


@HAS_NODE_RED
def test_flows_of_node_red_send_what_was_typed_and_another_order_is_another_invoice(
    served: Server, upstream: Appgregator, text: str, tmp_path: Path
) -> None:
    with node_red(tmp_path, KEY) as port:
        for number, description in enumerate(INPUTS, 1):
            flow = copied(text, served.port, typed(description), key=f"order-{number}7001")["node-red"]["text"]
            assert flow.count("7001") == 1
            imported(port, flow)
            pressed(port, "try")
            deadline = time.monotonic() + 60
            while upstream.invoices < number:
                assert time.monotonic() < deadline, (tmp_path / "said").read_text() + served.record.text()
                time.sleep(0.05)
            assert dict(parse_qsl(upstream.calls[-1].body.decode(), keep_blank_values=True)) == typed(description)
    assert upstream.invoices == len(INPUTS)


@pytest.mark.parametrize("keyed", [True, False])
def test_door_answers_the_recipes_for_the_address_that_was_called(served: Server, text: str, *, keyed: bool) -> None:
    asked = json.dumps({"fields": typed("=1"), "key": "order-1001"}).encode()
    headers = {"Content-Type": "application/json"}
    status, _, body = served.call("/-/recipes", asked, headers, key=KEY if keyed else None)
    assert status == 200
    shown = {one["id"]: one for one in json.loads(body)}
    assert f"http://127.0.0.1:{served.port}/stripe/invoices/" in shown["curl"]["text"]
    if keyed:
        assert shown == copied(text, served.port, typed("=1"))
    else:
        assert "name=NAME&connection_name=CONNECTION_NAME" in shown["curl"]["text"]
    assert not served.record.entries("refusal")


NAMES_OF_N8N: Final = frozenset(
    ("method", "url", "authentication", "genericAuthType", "sendHeaders", "headerParameters", "sendQuery",
     "queryParameters", "sendBody", "contentType", "bodyParameters", "options")
)  # fmt: skip
"""Parameters of n8n's HTTP Request node, version 4.2, as n8n-nodes-base 2.41.0 has them."""


def test_recipe_for_n8n_has_only_parameters_that_its_node_has(text: str) -> None:
    (node,) = json.loads(copied(text, 8080, typed("=1"))["n8n"]["text"])["nodes"]
    assert (node["type"], node["typeVersion"]) == ("n8n-nodes-base.httpRequest", 4.2)
    assert node["parameters"].keys() <= NAMES_OF_N8N
    assert set(node["parameters"]["options"]) == {"timeout", "redirect"}


def test_every_recipe_is_run_or_says_that_it_was_not(text: str) -> None:
    ids = {recipe.id for recipe in RECIPES}
    assert ids == {*RUNNERS, "node-red", "node-red-repeating", "signed-python", "signed-node"}
    for recipe in copied(text, 8080, {}).values():
        said = recipe["steps"][-1]
        read = recipe["id"] in {"make", "zapier", "power-automate"}
        assert ("were read in" in said) is ("was not run in" in said) is read
        assert "A test" in said or "a test" in said
        assert KEY not in recipe["text"]


# ---------------------------------------------------------------- whole invoices

WHOLE: Final = """
connections:
  billing:
    {{name: ft-4, connection_name: stripe-1, upstream: stripe, origin: {origin}, secret: {secret}/versions/latest}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: {key}}}{more}]
    limits: [100000/minute]
    grants:
      - connection: billing
        operation: invoices.issue
        idempotency: {{prefix: order-}}
        amount: {{max: 50000, currency: [usd]}}
        lines: {{max: 20}}
        parameters:
          customer:
          description:
        response: [id, status, total]
"""
LINES: Final = {
    "lines[0][description]": "=Consulting {{x}} @x $(id)", "lines[0][quantity]": "3", "lines[0][unit_amount]": "8000",
    "lines[1][description]": "'Travel' \"&a=b", "lines[1][amount]": "1001", "lines[2][amount]": "1850",
}  # fmt: skip
TOLD: Final = [("3 x 80.00 =Consulting {{x}} @x $(id)", 24000), ("'Travel' \"&a=b", 1001), (None, 1850)]
#: Stripe's SDKs have no such call.
ISSUING: Final = [name for name in RUNNERS if not name.startswith("stripe-")]


def raised(stripe: Stripe) -> list[list[tuple[str | None, int]]]:
    assert all(made["status"] == "open" for made in stripe.made)
    return [[(line["description"], line["amount"]) for line in made["lines"]["data"]] for made in stripe.made]


def whole(stripe: Stripe, more: str = "") -> str:
    return WHOLE.format(origin=stripe.origin, secret=SECRET, key=sha256(KEY), more=more)


@pytest.mark.parametrize("name", [pytest.param(name, id=name, marks=RUNNERS[name][1]) for name in ISSUING])
@pytest.mark.parametrize("typed", [LINES, {}], ids=["lines that were typed", "none yet"])
def test_recipe_raises_a_whole_invoice_with_its_lines(
    name: str, typed: dict[str, str], server: Callable[..., Server], stripe: Stripe, tmp_path: Path
) -> None:
    text = whole(stripe)
    running = server(text)
    # The amount of a line is no order, though the order has the same digits.
    recipe = copied(text, running.port, {"customer": "cus_1", **typed}, key="order-1001")[name]
    for _ in range(2):
        went, told = RUNNERS[name][0](Copied(recipe["text"], {"order_id": "1001", "customer": "cus_1"}, KEY, tmp_path))
        assert went, told
    assert raised(stripe) == [TOLD if typed else [("Workshop in May", 12000)]]
    assert any("in their place" in step for step in recipe["steps"])
    other = recipe["text"].replace("ORDER_ID=1001", "ORDER_ID=1002").replace('"value": "1001"', '"value": "1002"', 1)
    went, told = RUNNERS[name][0](Copied(other, {"order_id": "1002", "customer": "cus_1"}, KEY, tmp_path))
    assert went, told
    assert len(raised(stripe)) == 2


@pytest.mark.parametrize("name", ["signed-python", "signed-node"])
def test_signed_call_raises_a_whole_invoice(
    name: str, server: Callable[..., Server], stripe: Stripe, secret_manager: Any, tmp_path: Path
) -> None:
    secret_manager.add("projects/sandbox/secrets/signing", SIGNING.encode())
    text = whole(stripe, ", webhook: projects/sandbox/secrets/signing/versions/latest")
    running = server(text)
    recipe = copied(text, running.port, {"customer": "cus_1", **LINES}, key="order-1001")[name]
    run, _ = RUNNERS[name.removeprefix("signed-")]
    went, told = run(Copied(recipe["text"], {"order_id": "1001", "customer": "cus_1"}, SIGNING, tmp_path))
    assert went, told
    assert raised(stripe) == [TOLD]


@HAS_NODE_RED
def test_flow_of_node_red_raises_the_lines_of_its_order(
    server: Callable[..., Server], stripe: Stripe, tmp_path: Path
) -> None:
    text = whole(stripe)
    running = server(text)
    flow = copied(text, running.port, {"customer": "cus_1", "description": "=x", **LINES})["node-red"]["text"]
    with node_red(tmp_path, KEY) as port:
        imported(port, flow)
        pressed(port, "try")
        deadline = time.monotonic() + 60
        while not [made for made in stripe.made if made["status"] == "open"]:
            assert time.monotonic() < deadline, (tmp_path / "said").read_text() + running.record.text()
            time.sleep(0.05)
    assert raised(stripe) == [TOLD]


def test_stripes_sdks_say_that_they_have_no_such_call(stripe: Stripe) -> None:
    recipes = copied(whole(stripe), 8080, {})
    for name in set(RUNNERS) - set(ISSUING):
        assert recipes[name]["text"] == ""
        assert "do not have this call" in recipes[name]["steps"][0]
