"""What others read our API description with finds nothing wrong, against the function itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sandbox.__main__ import ROOT
from tests.conftest import KEY, policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.secret_manager import SecretManager
    from sandbox.stripe import Stripe
    from tests.conftest import Server

TOOLS = ROOT / ".venv" / "openapi" / "python" / "bin"
IMPORTER = ROOT / ".venv" / "openapi" / "node"
PYTHON = pytest.mark.skipif(not (TOOLS / "schemathesis").exists(), reason="schemathesis is not here: make test-openapi")
NODE = pytest.mark.skipif(
    not (IMPORTER / "ready").exists() or shutil.which("node") is None,
    reason="Postman's importer is not here: install node 20 or later with npm, then make test-openapi",
)
#: Each call is about a hundredth of a second; more of them found nothing more.
EXAMPLES = os.environ.get("EXAMPLES", "300")
SEED = os.environ.get("SEED", "1")
CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection"
PARAMETERS = """
customer: {required: true, prefix: cus_}
days_until_due: {required: true, min: 1, max: 60}
description: {max_length: 200}
collection_method: {fixed: send_invoice}
currency: {one_of: [usd, eur]}
footer:
metadata[order_id]: {max_length: 64}
metadata[cost_center]: {one_of: [emea, apac]}
metadata:
custom_fields:
"""


WHOLE = {
    "operation": "invoices.issue",
    "idempotency": {"prefix": "order-"},
    "amount": {"max": 50000, "currency": ["usd", "eur"]},
    "lines": {"max": 3},
    "parameters": {"customer": {"prefix": "cus_"}, "lines[{i}][price]": None, "description": None},
    "response": ["id", "status", "total"],
}


@pytest.fixture
def running(stripe: Stripe, secret_manager: SecretManager, server: Callable[..., Server], tmp_path: Path) -> Server:
    """The function, with one caller that may raise invoices, whole ones too, and look at them."""
    written = policy(
        stripe.origin,
        upstream="stripe",
        parameters=PARAMETERS,
        retrieve="{invoice: , expand: }",
        idempotency="{prefix: order-}",
    )
    content = yaml.safe_load(written)
    grants = content["callers"]["app"]["grants"]
    grants.append(WHOLE | {"connection": grants[0]["connection"]})
    return server(yaml.safe_dump(content, sort_keys=False))


def described(server: Server, place: Path, *, key: str | None = KEY, query: str = "") -> Path:
    status, _, body = server.call(f"/openapi.json{query}", None, key=key, method="GET")
    assert status == 200
    file = place / "openapi.json"
    file.write_bytes(body)
    return file


@PYTHON
@pytest.mark.parametrize("key", [KEY, None], ids=["a caller's", "anybody's"])
def test_validator_finds_nothing(running: Server, tmp_path: Path, key: str | None) -> None:
    file = described(running, tmp_path, key=key)
    done = subprocess.run([TOOLS / "openapi-spec-validator", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, f"{file}: OK")


@PYTHON
def test_schemathesis_finds_nothing_in_good_and_bad_calls(running: Server, tmp_path: Path) -> None:
    file, tally = described(running, tmp_path), tmp_path / "tally"
    command: list[str | Path] = [
        TOOLS / "schemathesis",
        f"--config-file={ROOT / 'tests' / 'openapi' / 'schemathesis.toml'}",
        "run",
        file,
        f"--url=http://127.0.0.1:{running.port}",
        f"--header=x-api-key:{KEY}",
        "--mode=all",
        "--phases=examples,coverage,fuzzing",
        f"--checks={CHECKS}",
        f"--max-examples={EXAMPLES}",
        f"--seed={SEED}",
        "--no-color",
    ]
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.openapi.hooks",
        "POLICY": str(running.errors.parent / "policy.yaml"),
        "TALLY": str(tally),
    }
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    made = Counter(tuple(line.split()) for line in tally.read_text().splitlines())
    print(f"schemathesis: {made.total()} calls, seed {SEED}: {dict(made)}")
    for wanted in (
        ("positive", "POST", "200", "True"),
        ("positive", "POST", "200", "False"),
        ("negative", "POST", "400", "False"),
    ):
        assert made[wanted] > 10, made


@NODE
def test_postman_imports_a_call_that_works(running: Server, tmp_path: Path) -> None:
    file = described(running, tmp_path)
    done = subprocess.run(
        ["node", ROOT / "tests" / "openapi" / "postman.mjs", IMPORTER, file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported: dict[str, Any] = json.loads(done.stdout)
    told = {pair["key"]: pair["value"] for pair in imported["auth"]["apikey"]}
    assert (imported["auth"]["type"], told["key"], told["in"]) == ("apikey", "x-api-key", "header")
    raising, whole = (one for one in imported["requests"] if one["method"] == "POST")
    filled = {pair["key"]: pair["value"] for pair in whole["body"]["urlencoded"] if not pair["disabled"]}
    assert filled["currency"] in {"usd", "eur"}
    assert filled["lines[0][amount]"] == "12000"
    query = "&".join(f"{pair['key']}={pair['value']}" for pair in raising["url"]["query"] if not pair.get("disabled"))
    body = raising["body"]
    assert body["mode"] == "urlencoded"
    form = {pair["key"]: pair["value"] for pair in body["urlencoded"] if not pair["disabled"]}
    assert form == {"customer": "cus_MQqeLuPp19Qbk8", "days_until_due": "30"}
    (named,) = (pair for pair in raising["header"] if pair["key"] == "Idempotency-Key")
    assert named["value"] != "order-1001"  # a key that everybody imports would make all their calls one
    sent = "&".join(f"{name}={value}" for name, value in form.items()).encode()
    path = "/" + "/".join(raising["url"]["path"])
    status, _, answer = running.call(f"{path}?{query}", sent, {"Idempotency-Key": "order-1001"})
    assert status == 200, answer
