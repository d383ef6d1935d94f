"""``countersign recipe`` and ``check --settings``: what an operator pastes, and what the function would say of it.

That the call works as pasted is shown in tests/deploy, against the function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from console.__main__ import main
from tests.conftest import policy

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://countersign-abc.a.run.app"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(policy("https://upstream.example"))
    return tmp_path / "policy.yaml"


def test_call_is_of_the_first_caller_unless_another_is_named(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", str(document), URL]) == 0
    told = capsys.readouterr().out
    assert f"curl '{URL}/stripe/invoices/?name=ft-4&connection_name=stripe-1&validate_only=true'" in told
    assert f"./countersign key new app --policy {document}" in told
    assert "gcloud" not in told
    assert main(["recipe", str(document), URL, "--caller", "other", "--token", "gcloud auth print-identity-token"]) == 0
    told = capsys.readouterr().out
    assert "&connection_name=stripe-2&" in told
    assert '-H "X-Serverless-Authorization: Bearer $(gcloud auth print-identity-token)"' in told


def test_call_is_of_a_caller_that_is_not_paused_and_on_the_connection_that_its_key_is_tied_to(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = document.read_text()
    document.write_text(text.replace("  app:\n", "  app:\n    paused: true\n"))
    assert main(["recipe", str(document), URL]) == 0
    assert "Try a call of other:" in capsys.readouterr().out
    assert main(["recipe", str(document), URL, "--caller", "app"]) == 1
    assert "app has no key in " in capsys.readouterr().err
    grant = "      - connection: other-account\n        operation: invoices.create\n        response: [id]\n"
    grant += "        parameters: {customer: }\n"
    text = text.replace("    grants:\n", f"    grants:\n{grant}", 1)
    document.write_text(text)
    assert main(["recipe", str(document), URL]) == 0
    assert "&connection_name=stripe-2&" in capsys.readouterr().out
    document.write_text(text.replace("}", ", connection: billing}", 1))
    assert main(["recipe", str(document), URL]) == 0
    assert "&connection_name=stripe-1&" in capsys.readouterr().out


def test_call_that_only_looks_is_a_get_of_its_path_without_a_key(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = policy("https://upstream.example", upstream="stripe", retrieve="{invoice: }")
    start = text.index("      - connection: billing\n        operation: invoices.create")
    end = text.index("      - connection: billing\n        operation: invoices.retrieve")
    document.write_text(text[:start] + text[end:])
    assert main(["recipe", str(document), URL]) == 0
    told = capsys.readouterr().out
    assert "INVOICE_ID=in_" in told
    assert f'"{URL}/stripe/invoices/${{INVOICE_ID}}/?name=ft-4' in told
    assert "--get" in told
    assert "Idempotency-Key" not in told
    assert "data-urlencode" not in told


def test_value_is_one_word_of_the_shell(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document.write_text(policy("https://upstream.example", parameters='metadata[order_id]: {prefix: "$(id)\' "}'))
    assert main(["recipe", str(document), URL]) == 0
    assert """--data-urlencode 'metadata[order_id]=$(id)'\\'' text'""" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("idempotency", "says"),
    [
        ("{prefix: order-}", 'first-try -H "Idempotency-Key: order-${ORDER_ID}"'),
        ("optional", 'first-try -H "Idempotency-Key: ${ORDER_ID}"'),
        (
            '{from: "metadata[order_id]", prefix: order-}',
            '1001 --data-urlencode "metadata[order_id]=order-${ORDER_ID}"',
        ),
        (
            '{from: "metadata[cost_center]", prefix: e}',
            'mea --data-urlencode "metadata[cost_center]=e${ORDER_ID}"',
        ),
    ],
)
def test_key_of_the_call_begins_as_the_grant_says(
    document: Path, capsys: pytest.CaptureFixture[str], idempotency: str, says: str
) -> None:
    document.write_text(policy("https://upstream.example", idempotency=idempotency))
    assert main(["recipe", str(document), URL]) == 0
    example, _, option = says.partition(" ")
    told = capsys.readouterr().out
    assert f"ORDER_ID={example}\n" in told
    assert option in told


@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [
        ("key:", ["--caller", "nobody"], "nobody has no key in "),
        ("google", [], "docs/callers.md has calls with other credentials."),
        ("connectoins", [], "no such key. Did you mean connections?"),
        (None, [], "it cannot be read (No such file or directory)"),
    ],
)
def test_call_that_there_is_not_is_one_line(
    document: Path, capsys: pytest.CaptureFixture[str], change: str | None, arguments: list[str], says: str
) -> None:
    text = document.read_text()
    match change:
        case None:
            document.unlink()
        case "google":
            lines = text.splitlines()
            document.write_text(
                "\n".join(
                    f"      - google: a{number}@acme.example" if "- key:" in line else line
                    for number, line in enumerate(lines)
                )
            )
        case "connectoins":
            document.write_text(text.replace("connections:", "connectoins:"))
    assert main(["recipe", str(document), URL, *arguments]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert says in told.err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("POLICY=x,STORE=memory", None),
        ("POLICY=x,STORE=memory,IAM=guards", None),
        ("POLICY=x", "STORE is not set"),
        ("STORE=memory", "POLICY is not set"),
        ("POLICY=x,STORE=memory,WORKERS=2", "WORKERS must be 1"),
        ("POLICY=x,STORE=memory,DEBUG=1", "DEBUG shows callers"),
        ("POLICY=x,STORE=memory,AUDIT=stderr", "AUDIT must be"),
    ],
)
def test_check_with_settings_refuses_what_the_function_would(
    document: Path, capsys: pytest.CaptureFixture[str], settings: str, says: str | None
) -> None:
    assert main(["check", str(document), "--settings", settings]) == (says is not None)
    told = capsys.readouterr()
    assert (told.err == "") is (says is None)
    assert says is None or told.err.startswith(says)


@pytest.mark.parametrize("settings", ["", "POLICY", "=x", "POLICY=x,", "POLICY=x,,STORE=memory"])
def test_settings_that_are_no_pairs_are_asked_for_again(
    document: Path, capsys: pytest.CaptureFixture[str], settings: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", str(document), "--settings", settings])
    assert caught.value.code == 2
    assert "write NAME=VALUE, several with commas between them" in capsys.readouterr().err
