"""What `validate_only` answers, what is recorded of it, and how often it may be asked.

That it is what becomes of the call itself is compared in tests/crash/test_foreseen.py.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from gateway.allowance import CALLS, Allowance
from policies.refusals import AskedTooOften
from sandbox.__main__ import SECRET
from tests.conftest import CUSTOMER, OTHER_KEY, TARGET, Clock, Function, policy
from tests.crash.forms import SEED
from tests.problems import refused, stripe_refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.appgregator import Appgregator
    from sandbox.secret_manager import SecretManager as SandboxSecrets

TRIAL = f"{TARGET}&validate_only=true"


# ---------------------------------------------------------------- what is answered


def test_refusal_says_what_would_become_of_the_call(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function(policy(upstream.origin, limits="1/minute", idempotency="required"))
    wrong = f"{CUSTOMER}&days_until_due=61&colour=red"
    tried = refused(gate.post(TRIAL, wrong, Idempotency_Key="a"), 400, "parameter-not-granted")
    made = refused(gate.post(TARGET, wrong, Idempotency_Key="a"), 400, "parameter-not-granted")
    assert (tried.pop("would"), tried.pop("validate_only")) == ("refuse", True)
    assert {**tried, "audit_id": ""} == {**made, "audit_id": ""}
    assert len(tried["faults"]) == 2
    assert gate.post(Idempotency_Key="a").status_code == 200
    assert gate.post(TRIAL, Idempotency_Key="a").json == {
        **(gate.post(TARGET, Idempotency_Key="a").json or {}), "validate_only": True, "would": "replay",
    }  # fmt: skip
    waits = gate.post(TRIAL, Idempotency_Key="b")
    assert refused(waits, 429, "limit-reached")["would"] == "wait"
    assert waits.headers["Retry-After"]
    assert upstream.invoices == 1


@pytest.mark.parametrize(
    ("target", "body", "reason"),
    [
        (f"/stripe/nothing?{TRIAL.partition('?')[2]}", CUSTOMER, "path-unknown"),
        (f"{TRIAL}&utm_source=x", CUSTOMER, "query-malformed"),
        (TRIAL, "a=1&a=2", "body-malformed"),
    ],
)
def test_call_that_cannot_be_read_would_be_refused(
    function: Callable[..., Function], upstream: Appgregator, target: str, body: str, reason: str
) -> None:
    gate = function(policy(upstream.origin))
    answer = gate.post(target, body)
    assert refused(answer, answer.status_code, reason)["would"] == "refuse"
    assert "would" not in (gate.post(target.replace("validate_only=true", "validate_only=false"), body).json or {})


def test_stranger_would_be_refused_and_is_recorded_as_one_who_calls(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    gate = function(policy(upstream.origin))
    assert refused(gate.post(TRIAL, key="nobody"), 401, "credential-unknown")["would"] == "refuse"
    (line,) = gate.record.entries()
    assert line["kind"] == "refusal"
    assert line["presented"]["kind"] == "key"


def test_stripes_clients_are_told_in_their_error(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function(policy(upstream.origin))
    answer = gate.post("/ft-4/stripe-1/v1/invoices?validate_only=true", "colour=red")
    assert stripe_refused(answer, 400, "parameter-not-granted")["would"] == "refuse"


def test_record_says_what_was_foreseen(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function(policy(upstream.origin, limits="1/minute"))
    gate.post(TRIAL, Idempotency_Key="a")
    gate.post(TRIAL, "colour=red")
    gate.post(Idempotency_Key="a")
    gate.post(TRIAL, Idempotency_Key="a")
    gate.post(TRIAL, Idempotency_Key="b")
    lines = [line for line in gate.record.lines() if line["countersign"]["kind"] == "preview"]
    assert [(line["countersign"]["would"], line["countersign"].get("reason")) for line in lines] == [
        ("send", None), ("refuse", "parameter-not-granted"), ("replay", None), ("wait", "limit-reached"),
    ]  # fmt: skip
    assert {line["severity"] for line in lines} == {"INFO"}
    assert not any("reason" in line.get("logging.googleapis.com/labels", {}) for line in lines)
    assert [line["message"] for line in lines[1::2]] == [
        "app tried invoices.create on billing, which would be refused: colour is not a parameter you may send",
        "app tried invoices.create on billing, which would wait: You have reached your limit of 1 call a minute",
    ]


def test_what_is_left_is_said_as_money_and_times(function: Callable[..., Function], upstream: Appgregator) -> None:
    more = "limits: [30/minute]\n    budget: {currency: usd, amount: 500000, per: day}"
    document = policy(upstream.origin).replace("limits: [100000/minute]", more)
    gate = function(document.replace("        idempotency:", "        amount: {max: 9000}\n        idempotency:", 1))
    fresh: dict[str, Any] = gate.post(TRIAL, Idempotency_Key="a").json or {}
    assert [one["detail"] for one in fresh["left"]] == [
        "30 of 30 calls a minute are left.",
        "5,000.00 USD of 5,000.00 USD a day are left.",
    ]
    assert fresh["key"]["state"] == "new"
    assert gate.post(Idempotency_Key="a").status_code == 200
    limit, budget = (gate.post(TRIAL, Idempotency_Key="b").json or {})["left"]
    assert limit["detail"].startswith("29 of 30 calls a minute are left, 1 more in ")
    assert (limit["limit"], limit["window"], limit["left"], limit["more"]) == (30, 60, 29, 1)
    spent = 500000 - budget["left"]
    assert spent > 0
    assert (budget["kind"], budget["currency"], budget["more"]) == ("budget", "usd", spent)
    assert budget["resets_at"] > limit["resets_at"]


def test_key_of_the_upstream_that_cannot_be_read_is_foreseen(
    function: Callable[..., Function], upstream: Appgregator, tmp_path: Path
) -> None:
    gate = function(policy(upstream.origin, secret=f"file:{tmp_path / 'nothing'}"))
    tried, made = gate.post(TRIAL), gate.post(TARGET)
    assert refused(tried, 503, "secret-unavailable")["would"] == "refuse"  # nobody says that it will be there
    assert refused(made, 503, "secret-unavailable")["detail"] == (tried.json or {})["detail"]


def test_key_of_the_upstream_is_in_no_answer(
    function: Callable[..., Function], upstream: Appgregator, secret_manager: SandboxSecrets
) -> None:
    secret_manager.add(SECRET, b"canary-0123456789-canary")
    gate = function(policy(upstream.origin))
    assert b"canary" not in gate.post(TRIAL, Idempotency_Key="a").data
    assert secret_manager.accesses


# ---------------------------------------------------------------- how often


def test_ten_a_second_are_answered_and_the_next_is_told_to_wait(
    function: Callable[..., Function], upstream: Appgregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("gateway.settings.Allowance", lambda _: Allowance(clock))
    gate = function(policy(upstream.origin))
    for number in range(CALLS):
        assert gate.post(TRIAL, "colour=red" if number % 2 else CUSTOMER).status_code == (400 if number % 2 else 200)
    answer = gate.post(TRIAL)
    assert "would" not in refused(answer, 429, "asked-too-often")
    assert answer.headers["Retry-After"] == "1"
    assert gate.post().status_code == 200  # calls that are sent are not concerned
    assert gate.post("/stripe/invoices/?name=ft-4&connection_name=stripe-2&validate_only=true", key=OTHER_KEY).json
    assert [entry["reason"] for entry in gate.record.entries("refusal")] == ["asked-too-often"]
    clock.tick(1)
    assert gate.post(TRIAL).status_code == 200


def test_allowance_is_never_exceeded_in_any_second_and_forgets_who_is_silent() -> None:
    clock, lots = Clock(), random.Random(SEED)
    allowance, answered = Allowance(clock), [0.0]
    for _ in range(3000):
        clock.tick(lots.choice([0, 0.01, 0.1, 0.4]))
        allowance.take(f"another-{clock()}")
        try:
            allowance.take("app")
        except AskedTooOften:
            continue
        answered.append(clock())
    assert max(sum(begin <= one < begin + 1 for one in answered) for begin in answered) == CALLS
    clock.tick(2)
    allowance.take("app")
    assert len(allowance._asked) == 1
