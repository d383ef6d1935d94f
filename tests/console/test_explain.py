"""What a policy says of a call, without a function: all faults, each with the line that decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from console.__main__ import main
from sandbox.__main__ import ROOT
from tests.conftest import policy

if TYPE_CHECKING:
    from pathlib import Path

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
