"""There is a room for each thing that differs: how many files one more of a kind touches, as CONTRIBUTING.md says.

Each example is added to a copy of the function, where a program of its own then uses it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from sandbox.__main__ import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Example(NamedTuple):
    """One more of a kind: new files by path, what is put before something in others, and what then works."""

    files: Mapping[str, str]
    lines: Mapping[str, tuple[tuple[str, str], ...]]
    program: str


POLICY = '''
import hashlib, time
from gateway.reading import read
from policies import compiled, document
from policies.access import decide
from policies.model import Step
from policies.refusals import Refusal
from policies.upstreams import UPSTREAMS

KEY = "csk_of_somebody"
TEXT = """
connections:
  acme: {name: ft-4, connection_name: stripe-1, upstream: UPSTREAM, origin: "https://u.example", secret: file:key}
callers:
  app:
    owner: tests
    credentials: [CREDENTIAL]
    limits: [10/minute]
    grants:
      - {connection: acme, operation: OPERATION, parameters: {PARAMETERS}, response: [id], idempotency: optional}
"""


def policy(upstream="stripe", operation="invoices.create", parameters="customer: ", credential=None):
    credential = credential or f"{{key: {{id: k1, sha256: {hashlib.sha256(KEY.encode()).hexdigest()}}}}}"
    said = {"UPSTREAM": upstream, "CREDENTIAL": credential, "OPERATION": operation, "PARAMETERS": parameters}
    text = TEXT
    for word, value in said.items():
        text = text.replace(word, value)
    policies = document.read(text, "policy.yaml")
    assert compiled.read(compiled.write(policies), "policy.compiled") == policies
    return policies


def call(path="/stripe/invoices/", method="POST", body="customer=cus_1", **headers):
    import io
    target = f"{path}?name=ft-4&connection_name=stripe-1"
    environ = {"REQUEST_METHOD": method, "RAW_URI": target, "wsgi.input": io.BytesIO(body.encode()),
               "CONTENT_TYPE": "application/x-www-form-urlencoded", "CONTENT_LENGTH": str(len(body))}
    return read({**environ, **headers})


def granted(policies, asked):
    [caller] = policies.callers.values()
    return decide(policies, caller, asked)
'''

OPERATION = Example(
    files={
        "policies/operations/invoices_settle.py": """
from policies.model import Effect, Kind, Operation, Parameter, Risk
from policies.operations.invoices_create import FIELDS, IDS

OPERATION = Operation(
    id="invoices.settle", effect=Effect.CHANGES, method="POST", path="invoices/{invoice}/settle", upstreams=("stripe",),
    parameters={"invoice": Parameter("invoice", Kind.STRING, Risk.PLAIN, max_length=255)},
    fields=FIELDS, answers="invoice", noun="invoice", ids=IDS,
)
""",
    },
    lines={},
    program="""
policies = policy(operation="invoices.settle", parameters="invoice: ")
asked = call("/stripe/invoices/in_1/settle/", body="", HTTP_IDEMPOTENCY_KEY="order-1")
grant = granted(policies, asked)
assert (grant.budgets, grant.ledger_key is not None) == ((), True)
stripe = UPSTREAMS["stripe"]
outgoing = stripe.request(grant, Step(grant.ledger_key))
assert (outgoing.method, outgoing.url) == ("POST", "https://u.example/v1/invoices/in_1/settle")
assert outgoing.headers["Idempotency-Key"].startswith("countersign-")
done = stripe.judge(grant, Step("key"), 200, {}, b'{"object": "invoice", "id": "in_1"}')
assert (done.outcome, done.answer, done.created) == ("succeeded", {"id": "in_1"}, "in_1")
refused = stripe.judge(grant, Step("key"), 400, {}, b'{"error": {"type": "invalid_request_error"}}')
assert refused.refusal.detail == "The upstream refused the invoice as written. Nothing was changed."
lost = stripe.judge(grant, Step("key"), 500, {}, b"")
assert lost.outcome == "unknown"
""",
)

UPSTREAM = Example(
    files={
        "policies/upstreams/paddle.py": """
from policies import outcomes
from policies.dialect import FORM, Dialect, KeyPlace, Outgoing, Setting


class Paddle(Dialect):
    id = "paddle"
    title = "Paddle"
    settings = {"seller": Setting("[0-9]+", "write a seller's number")}

    def request(self, grant, step):
        connection = grant.entitlement.connection
        url = f"{connection.origin}/sellers/{connection.settings.get('seller', '1')}/invoices"
        return Outgoing("POST", url, KeyPlace.BEARER, {"Content-Type": FORM}, grant.form)

    def judge(self, grant, step, status, headers, body):
        return outcomes.judge(grant, step, status, headers, body, None if status == 200 else outcomes.Said())


DIALECT = Paddle()
""",
    },
    lines={
        "policies/operations/invoices_create.py": (('"stripe"),', '"paddle", '),),
    },
    program="""
grant = granted(policy("paddle, seller: 7"), call())
paddle = UPSTREAMS["paddle"]
outgoing = paddle.request(grant, Step("key"))
assert (outgoing.url, outgoing.body) == ("https://u.example/sellers/7/invoices", b"customer=cus_1")
assert paddle.judge(grant, Step("key"), 200, {}, b'{"object": "invoice", "id": "in_1"}').created == "in_1"
try:
    policy("appgregator, seller: 7")
except Exception as error:
    assert "seller means something at Paddle only. Remove it" in str(error), error
else:
    raise AssertionError
""",
)

CREDENTIAL = Example(
    files={
        "gateway/credentials/certificates.py": """
from policies.model import Proof
from policies.refusals import CredentialUnknown

HEADERS = (("X-Client-Certificate",),)


def caller(means, policy_set, call, now, deadline):
    header = call.credentials.get("X-Client-Certificate")
    if header is None:
        return None
    found = policy_set.callers.get(Proof("certificate", bytes.fromhex(header.reveal())))
    if found is None:
        raise CredentialUnknown
    return found
""",
    },
    lines={
        "policies/document.py": (
            (
                '    "webhook": _Kind(_webhook,',
                '    "certificate": _Kind(lambda it: _Written(bytes.fromhex(it.text()), "certificate"), "taken"),\n',
            ),
        ),
    },
    program="""
from gateway.identity import Identity
policies = policy(credential="{certificate: abcd}")
door = Identity(means=None, behind_iam=False)
caller = door.identify(policies, call(HTTP_X_CLIENT_CERTIFICATE="abcd"), time.time(), 1e12)
assert (caller.id, caller.credential) == ("app", "certificate")
for wrong in ({"HTTP_X_CLIENT_CERTIFICATE": "abce"}, {"HTTP_X_CLIENT_CERTIFICATE": "abcd", "HTTP_X_API_KEY": "k"}, {}):
    try:
        door.identify(policies, call(**wrong), time.time(), 1e12)
    except Refusal as refusal:
        assert refusal.status == 401
    else:
        raise AssertionError
""",
)

STORE = Example(
    files={
        "gateway/stores/nowhere.py": """
class Nowhere:
    def __init__(self, address):
        self.address = address
""",
    },
    lines={
        "gateway/stores/__init__.py": (
            (
                '    "firestore": _Address(',
                '    "nowhere": _Address("nowhere://[a-z]+", "nowhere://NAME", "Nowhere"),\n',
            ),
        ),
    },
    program="""
from gateway.settings import SettingError, ledger_of
assert ledger_of({"STORE": "nowhere://abc"}).address == "nowhere://abc"
try:
    ledger_of({"STORE": "nowhere"})
except SettingError as error:
    assert "nowhere://NAME" in str(error)
else:
    raise AssertionError
""",
)

RULE = Example(
    files={},
    lines={
        "policies/model.py": (("    fixed: str | None = None\n    required: bool", "    suffix: str | None = None\n"),),
        "policies/document.py": (
            ('"fixed")\n    return {} if value.empty', '"suffix", '),
            (
                '        required=_if_written(bounds, "required", _Value.boolean) or False,\n        unsets=base',
                '        suffix=_if_written(bounds, "suffix", _Value.text),\n',
            ),
        ),
        "policies/parameters.py": (
            (
                "    return None if rule.minimum is rule.maximum is None",
                """\
    if rule.suffix is not None and not value.endswith(rule.suffix):
        return f"must end with {shown(rule.suffix)}."
""",
            ),
        ),
        "docs/policy.md": (("| `prefix: cus_` |", "| `suffix: -eu` | text | what it must end with |\n"),),
    },
    program="""
policies = policy(parameters="customer: {suffix: -eu}")
assert granted(policies, call(body="customer=cus_1-eu"))
try:
    granted(policies, call(body="customer=cus_1-us"))
except Refusal as refusal:
    assert refusal.detail == "customer must end with -eu."
else:
    raise AssertionError
""",
)

#: An example of each kind: how many new files, changed files and changed places it takes.
ROOMS = {
    "operation": (OPERATION, (1, 0, 0)),
    "upstream": (UPSTREAM, (1, 1, 1)),
    "credential": (CREDENTIAL, (1, 1, 1)),
    "store": (STORE, (1, 1, 1)),
    "policy rule": (RULE, (0, 4, 5)),
}


def added(example: Example, place: Path) -> tuple[int, int, int]:
    """Add an example to a copy of the function in ``place``; return how many files are new, changed, and where."""
    for part in ("policies", "gateway", "docs"):
        shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in example.files.items():
        assert not (place / path).exists()
        (place / path).write_text(text)
    places = 0
    for path, changes in example.lines.items():
        text = (place / path).read_text("utf-8")
        for before, more in changes:
            assert text.count(before) == 1, (path, before)
            text, places = text.replace(before, more + before), places + 1
        (place / path).write_text(text, "utf-8")
    return len(example.files), len(example.lines), places


@pytest.mark.parametrize("kind", ROOMS)
def test_one_more_of_a_kind_touches_as_many_files_as_is_said(kind: str, tmp_path: Path) -> None:
    example, expected = ROOMS[kind]
    assert added(example, tmp_path) == expected
    run = subprocess.run(
        [sys.executable, "-P", "-c", POLICY + example.program],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("kind", ROOMS)
def test_without_the_addition_the_example_does_not_work(kind: str, tmp_path: Path) -> None:
    example = ROOMS[kind][0]
    added(example._replace(files={}, lines={}), tmp_path)
    run = subprocess.run(
        [sys.executable, "-P", "-c", POLICY + example.program],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode != 0


@pytest.mark.parametrize("kind", ROOMS)
def test_contributing_says_which_files(kind: str) -> None:
    """It names every file that the example touches, with a made-up name as ``NAME``."""
    [row] = re.findall(rf"^\| {kind} \|(.*)$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    example = ROOMS[kind][0]
    for path in (*example.files, *example.lines):
        named = re.sub(r"/[a-z_]+\.py$", "/NAME.py", path) if path in example.files else path
        assert f"`{named}`" in row or f"`{re.sub(r'/[a-z_]+[.]py$', '/NAME.py', path)}`" in row, path
