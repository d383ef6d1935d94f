"""The recipes of docs/clients.md, each run as it is written, with no more replaced than the page says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sandbox.__main__ import CALLER_KEY, POLICY, ROOT, UPSTREAM_KEY
from sandbox.document import against
from tests.clients.conftest import Lossy, stripe_policy
from tests.clients.sdks import SDKS
from tests.clients.tools import HAS_NODE_RED, imported, node_red
from tests.problems import as_replayed
from tests.test_docs import blocks, recipe
from tests.tools import CURL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from sandbox.secret_manager import SecretManager
    from sandbox.stripe import Stripe
    from tests.conftest import Server

PAGE = ROOT / "docs" / "clients.md"
ADDRESS = "127.0.0.1:8080"


@pytest.fixture
def served(server: Callable[..., Server], upstream: Appgregator) -> Server:
    """The function with the policy of `make run`, which the page is written for."""
    return server(against(POLICY.read_text("utf-8"), {"appgregator": upstream.origin}))


def paste(script: str, port: int, *shell: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run what the page shows with the function's own address in it."""
    assert ADDRESS in script
    script = script.replace(ADDRESS, f"127.0.0.1:{port}")
    environ = {"PATH": os.environ["PATH"], "COUNTERSIGN_KEY": CALLER_KEY}  # none of ours: no proxy
    return subprocess.run(
        [*shell, script, *arguments], capture_output=True, text=True, env=environ, check=False, timeout=60
    )


# ---------------------------------------------------------------- curl


@CURL
@pytest.mark.parametrize("path", ["/stripe/invoices?", "/stripe/invoices/?"])
def test_command_of_the_upstreams_own_page_works_with_another_host_and_key(
    served: Server, upstream: Appgregator, path: str
) -> None:
    command = blocks(PAGE, "sh")[1]
    # Word for word what the upstream's page shows, but for those two.
    origin, key = "https://us-central1-appgregator.cloudfunctions.net", "XXX"
    assert command.replace(f"http://{ADDRESS}", origin).replace(CALLER_KEY, key) == (
        f"curl --location --request POST '{origin}/stripe/invoices?name=ft-4&connection_name=stripe-1' \\\n"
        f"--header 'x-api-key: {key}' \\\n"
        "--header 'Content-Type: application/x-www-form-urlencoded' \\\n"
        "--data-urlencode 'customer=cus_MQqeLuPp19Qbk8'\n"
    )
    told = "\n%{http_code} %{num_redirects}"
    command = command.replace("/stripe/invoices?", path).replace("curl ", f"curl --silent --write-out '{told}' ", 1)
    done = paste(command, served.port, "sh", "-c")
    answer, _, counted = done.stdout.rpartition("\n")
    assert (counted, json.loads(answer)["status"]) == ("200 0", "draft")
    assert upstream.invoices == 1


# ---------------------------------------------------------------- Stripe's SDKs


@dataclass(frozen=True)
class Script:
    """A script of the page for one of Stripe's SDKs."""

    sdk: str
    recipe: str
    suffix: str
    old: bool = False

    def text(self) -> str:
        shown = recipe(PAGE, self.recipe)
        return shown.replace("stripe.StripeError", "stripe.error.StripeError") if self.old else shown


SCRIPTS = [
    Script("python", "stripe-python", ".py"),
    Script("python5", "stripe-python", ".py", old=True),
    Script("node", "stripe-node", ".mjs"),
    Script("php", "stripe-php", ".php"),
    Script("ruby", "stripe-ruby", ".rb"),
    Script("go", "stripe-go", ".go"),
]


@pytest.fixture(params=[pytest.param(one, id=one.sdk, marks=SDKS[one.sdk].needed) for one in SCRIPTS])
def started(
    request: pytest.FixtureRequest, tmp_path: Path, served: Server
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Start a script with the function's own address in it, for a customer."""
    script: Script = request.param
    (tmp_path / "node_modules").symlink_to(SDKS["node"].folder / "node_modules")  # Node.js looks beside a script

    def start(customer: str = "cus_MQqeLuPp19Qbk8") -> subprocess.CompletedProcess[str]:
        text = script.text().replace(ADDRESS, f"127.0.0.1:{served.port}")
        # Node's SDK takes the host and the port apart.
        text = text.replace("port: 8080", f"port: {served.port}")
        assert str(served.port) in text
        program = tmp_path / f"script{script.suffix}"
        program.write_text(text, "utf-8")
        return SDKS[script.sdk].run(program, arguments=["order-1001", customer], key=CALLER_KEY)

    return start


def test_script_raises_one_invoice_however_often_it_is_started(
    started: Callable[..., subprocess.CompletedProcess[str]], upstream: Appgregator
) -> None:
    first, second = started(), started()
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("in_")
    assert first.stdout.endswith(" draft\n")
    assert second.stdout == first.stdout
    assert upstream.invoices == 1


def test_script_ends_with_a_sentence_where_it_is_refused(
    started: Callable[..., subprocess.CompletedProcess[str]], upstream: Appgregator
) -> None:
    done = started("acct_1")
    assert (done.returncode, done.stdout) == (1, "")
    said, *more = done.stderr.splitlines()
    assert said.startswith("customer must start with cus_")
    assert more in ([], ["exit status 1"])  # the go command says that, too
    assert not upstream.calls


def test_script_that_looks_at_its_invoice_works_at_stripe(
    server: Callable[..., Server], stripe_upstream: Stripe
) -> None:
    create = recipe(PAGE, "stripe-python")
    (retrieve,) = (block for block in blocks(PAGE, "python") if block.startswith("print("))
    running = server(stripe_policy(stripe_upstream.origin, key=CALLER_KEY))
    done = paste(f"{create}\n{retrieve}", running.port, sys.executable, "-c", arguments=["order-1", "cus_1"])
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] == "draft"


# ---------------------------------------------------------------- no-code tools


def test_call_of_a_no_code_tool_is_taken_as_shown(served: Server, upstream: Appgregator) -> None:
    (shown,) = blocks(PAGE, "http")
    head, _, body = shown.partition("\n\n")
    first, *lines = head.splitlines()
    method, target, _ = first.split()
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers["Host"] == ADDRESS
    answers = [served.call(target, body.encode(), headers, key=None, method=method) for _ in range(2)]
    assert [status for status, _, _ in answers] == [200, 200]
    assert answers[1][2] == as_replayed(answers[0][2])
    assert upstream.invoices == 1
    assert yaml.safe_load(body)["metadata"]["order_id"] in headers["Idempotency-Key"]


def started_flow(port: int, flow: str, folder: Path) -> None:
    """Import a flow, and wait until it runs: it starts a moment after it was imported."""
    imported(port, flow)
    while "Started flows" not in (folder / "said").read_text().partition("Stopped flows")[2]:
        time.sleep(0.05)


def given(order: str, port: int) -> dict[str, Any]:
    """Give Node-RED an order with the page's own command; return what it answers."""
    done = subprocess.run(
        ["sh", "-c", order.replace("127.0.0.1:1880", f"127.0.0.1:{port}")],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
        check=True,
        timeout=60,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@HAS_NODE_RED
@CURL
def test_flow_repeats_a_call_whose_answer_was_lost_and_raises_one_invoice(
    tmp_path: Path, served: Server, upstream: Appgregator
) -> None:
    order = blocks(PAGE, "sh")[-2]
    folder = tmp_path / "node-red"
    folder.mkdir()
    flow = recipe(PAGE, "node-red-repeating")

    with Lossy(served.port, lose=1) as network, node_red(folder, CALLER_KEY) as port:
        started_flow(port, flow.replace(ADDRESS, f"127.0.0.1:{network.port}"), folder)

        def ordered(number: int, port: int) -> dict[str, Any]:
            return given(order.replace("1001", str(number)), port)

        invoice = ordered(1001, port)
        assert invoice["id"].startswith("in_")
        assert network.calls == 2
        assert [entry["kind"] for entry in served.record.entries()] == ["intent", "outcome", "replay"]
        assert upstream.invoices == 1
        assert ordered(1001, port) == invoice
        assert upstream.invoices == 1

        # What no other try would mend goes to a person, in words, and is not repeated.
        upstream.fail_next("close_after")
        problem = ordered(1002, port)
        assert (problem["status"], problem["reason"]) == (424, "outcome-unknown")
        assert "may exist" in problem["detail"]
        assert network.calls == 4
        assert len(upstream.calls) == 2


WHOLE = POLICY.with_name("whole.yaml")
THREE = [("3 x 120.00 Consulting, October", 36000), ("Travel", 3000), ("Hotel", 1850)]


def told(made: dict[str, Any]) -> list[tuple[str, int]]:
    return [(line["description"], line["amount"]) for line in made["lines"]["data"]]


@HAS_NODE_RED
@CURL
def test_flow_raises_a_whole_invoice_of_three_lines_once_though_its_first_answer_was_lost(
    tmp_path: Path, server: Callable[..., Server], stripe_upstream: Stripe, secret_manager: SecretManager
) -> None:
    secret_manager.add("projects/sandbox/secrets/stripe-key", UPSTREAM_KEY.encode())
    running = server(against(WHOLE.read_text("utf-8"), {"stripe": stripe_upstream.origin}))
    order, folder = blocks(PAGE, "sh")[-1], tmp_path / "node-red"
    folder.mkdir()
    with Lossy(running.port, lose=1) as network, node_red(folder, CALLER_KEY) as port:
        flow = recipe(PAGE, "whole/node-red-repeating").replace(ADDRESS, f"127.0.0.1:{network.port}")
        started_flow(port, flow, folder)
        invoice = given(order, port)
        assert (invoice.get("status"), invoice.get("total")) == ("open", 40850), invoice
        assert network.calls == 2
        (made,) = stripe_upstream.made
        assert (made["id"], made["hosted_invoice_url"]) == (invoice["id"], invoice["hosted_invoice_url"])
        assert told(made) == THREE
        assert given(order, port)["id"] == invoice["id"]
        assert [entry["step"] for entry in running.record.entries("step")].count("finalize") == 1

        one_line = order.replace("1001", "1002").partition("[")[0] + '[{"description": "Travel", "amount": 3000}]}\''
        assert given(one_line, port)["total"] == 3000
        too_much = order.replace("1001", "1003").replace("3000", "3000000")
        refusal = given(too_much, port)
        assert (refusal["status"], refusal["reason"]) == (400, "parameter-invalid")
        assert "You may raise 5,000.00 USD at most." in refusal["detail"]
        assert len(stripe_upstream.made) == 2
