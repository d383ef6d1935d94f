"""What a policy says of a call, without a function: all faults, each with the line that decided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import pytest

from console.__main__ import main
from policies.operations import OPERATIONS
from sandbox.__main__ import ROOT, UPSTREAM_KEY
from tests.conftest import KEY, policy, sha256

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.stripe import Stripe
    from tests.conftest import Function

EXAMPLE = str(ROOT / "policies" / "documents" / "example.yaml")


def explained(capsys: pytest.CaptureFixture[str], file: object, *arguments: str) -> tuple[int, str, str]:
    status = main(["explain", str(file), *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_granted_call_is_shown_as_it_would_be_sent(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--caller", "billing-app", "--key", "order-1001", "-d", "customer=cus_1", "-d", "days_until_due=30"]
    status, out, _ = explained(capsys, EXAMPLE, *asked)
    assert status == 0
    assert "billing-app may ask for invoices.create on acme-billing (line 20: " in out
    assert "POST https://us-central1-appgregator.cloudfunctions.net/stripe/invoices/" in out
    assert "  collection_method = send_invoice\n  customer = cus_1\n  days_until_due = 30\n" in out


def test_every_fault_has_the_line_that_decided(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--caller", "billing-app", "-d", "customer=xus_1", "-d", "days_until_due=61"]
    status, out, _ = explained(capsys, EXAMPLE, *asked)
    lines = (ROOT / "policies" / "documents" / "example.yaml").read_text().splitlines()
    assert status == 1
    first, *faults = out.splitlines()
    assert first == "billing-app would be refused invoices.create on acme-billing:"
    assert [fault.split()[0] for fault in faults] == [
        "parameter-invalid:", "parameter-invalid:", "idempotency-key-missing:",
    ]  # fmt: skip
    for fault in faults:
        number, _, text = fault.rpartition("(line ")[2].removesuffix(")").partition(": ")
        assert lines[int(number) - 1].strip() == text


def test_paused_caller_is_told_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policy("http://127.0.0.1:9").replace("  app:\n", "  app:\n    paused: true\n"))
    status, out, _ = explained(capsys, file, "--caller", "app", "-d", "customer=cus_1")
    assert (status, "caller-paused: " in out, ": paused: true)" in out) == (1, True, True)


def test_call_that_looks_takes_its_id_from_the_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policy("http://127.0.0.1:9", upstream="stripe", retrieve="{invoice: }"))
    asked = ["--caller", "app", "--operation", "invoices.retrieve", "-d", "invoice=in_12345678"]
    status, out, _ = explained(capsys, file, *asked)
    assert (status, "GET http://127.0.0.1:9/v1/invoices/in_12345678\n" in out) == (0, True)
    status, _, err = explained(capsys, file, "--caller", "app")
    assert (status, "--operation" in err) == (1, True)


@pytest.mark.parametrize(("arguments", "says"), [(["--caller", "nobody"], "Name one of: "), (["--caller", ""], "Name")])
def test_unclear_call_is_asked_about(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    status, _, err = explained(capsys, EXAMPLE, *arguments)
    assert (status, says in err) == (1, True)


STEPS = """\
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: stripe, origin: {origin}, secret: "file:{secret}"}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: {key}}}]
    limits: [30/minute]
    grants:
      - {{connection: billing, operation: {operation}, response: [id], parameters: {{{named}}}}}
"""
LINES = {"customer": "cus_1", "currency": "usd", "lines[0][unit_amount]": "1000", "lines[0][quantity]": "3"}


@pytest.fixture
def tried(function: Callable[..., Function], stripe: Stripe, tmp_path: Path) -> Callable[..., Any]:
    """Try a call at the function, whose policy is then in ``policy.yaml``, too. Return what it would send."""

    def would_send(operation: str, data: dict[str, str]) -> Any:
        (tmp_path / "key").write_text(UPSTREAM_KEY)
        named = ", ".join(f'"{name}": ' for name in data if not name.startswith("lines"))
        text = STEPS.format(
            origin=stripe.origin, secret=tmp_path / "key", key=sha256(KEY), operation=operation, named=named
        )
        (tmp_path / "policy.yaml").write_text(text)
        body = urlencode({name: value for name, value in data.items() if name != "invoice"})
        query = "?name=ft-4&connection_name=stripe-1&validate_only=true"
        target = f"/stripe/{OPERATIONS[operation].path.format_map(data)}{query}"
        told = function(text).post(target, body, Idempotency_Key="order-1").json
        assert told is not None
        return told["would_send"]

    return would_send


@pytest.mark.parametrize(
    ("operation", "data"),
    [
        ("invoices.issue", LINES | {"metadata[a]": "b"}),
        ("invoices.create", {"customer": "cus_1", "metadata[a]": "b"}),
        ("invoices.finalize", {"invoice": "in_12345678"}),
        ("invoices.send", {"invoice": "in_12345678"}),
        ("invoices.void", {"invoice": "in_12345678"}),
    ],
)
def test_what_is_explained_is_what_a_call_that_is_only_tried_would_send(
    tried: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    operation: str,
    data: dict[str, str],
) -> None:
    would = tried(operation, data)
    arguments = [part for name, value in data.items() for part in ("-d", f"{name}={value}")]
    status, out, _ = explained(capsys, tmp_path / "policy.yaml", "--caller", "app", "--key", "order-1", *arguments)
    assert status == 0
    first, *fields = [line[2:] for line in out.splitlines() if line.startswith("  ")]
    assert first == f"{would['method']} {would['url']}"
    sent = sorted(parse_qsl(would["body"], keep_blank_values=True))
    assert sorted(tuple(field.split(" = ", 1)) for field in fields) == sent
    assert ("first of several requests" in out) is bool(OPERATIONS[operation].plan)
