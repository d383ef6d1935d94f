"""A person has to approve one step at Stripe: each single operation that changes something, each step of an invoice.

The create of a draft by itself is A8 of ``test_second_invoice``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from policies.idempotency import LEASE
from policies.upstreams import stripe as dialect
from sandbox.__main__ import UPSTREAM_KEY
from sandbox.stripe import Rules, Stripe
from tests.conftest import KEY, sha256
from tests.problems import as_replayed, refused, stripe_refused
from tests.test_finalize import DOCUMENT, ask, draft
from tests.test_issue import SENT, TARGET, issue, written

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from werkzeug.test import TestResponse

    from gateway.stores.memory import Memory
    from tests.conftest import Clock, Function

WAITING, REJECTED, LAPSED, UNKNOWN = "awaiting-approval", "approval-rejected", "approval-lapsed", "outcome-unknown"


class Act(NamedTuple):
    """One call that is held: how Stripe names the step, and the call's method, path and form."""

    step: str
    method: str
    path: str
    form: str = ""

    def call(self, loaded: Function, name: str, *, sdk: bool = False, key: str | None = "order-9") -> TestResponse:
        path, form = self.path.format(name=name), self.form.format(name=name)
        target = (
            f"/ft-4/stripe-1/v1/{path.rstrip('/')}" if sdk else f"/stripe/{path}?name=ft-4&connection_name=stripe-1"
        )
        keyed = {"Idempotency_Key": key} if key is not None else {}
        media = None if self.method == "DELETE" else "application/x-www-form-urlencoded"
        return loaded.post(target, form, method=self.method, media=media, **keyed)


ACTS = {
    "finalize": Act("finalize", "POST", "invoices/{name}/finalize"),
    "send": Act("send", "POST", "invoices/{name}/send"),
    "send what is open": Act("send", "POST", "invoices/{name}/send"),
    "void": Act("void", "POST", "invoices/{name}/void"),
    "delete": Act("delete", "DELETE", "invoices/{name}"),
    "item": Act("item", "POST", "invoiceitems/", "customer=cus_1&invoice={name}&amount=700&currency=usd"),
    "customer": Act("customer", "POST", "customers/", "email=jenny@example.com"),
}
#: What a call in one step is held under without a key.
KEYLESS = ("void", "delete", "item", "customer")


def begun(loaded: Function, act: str) -> str:
    """Make the invoice that an act is about."""
    name = draft(loaded)
    if act in {"void", "send what is open"}:
        assert ask(loaded, f"invoices/{name}/finalize").status_code == 200
    return name


def lies(loaded: Function, stripe: Stripe) -> tuple[Any, ...]:
    """What there is at Stripe: of each invoice its status, its sum and how often it was mailed; customers."""
    there = ask(loaded, "customers/", "GET", email="jenny@example.com").json or {}
    told = [(one["status"], one["total"], one.get("mailed", 0)) for one in stripe.made]
    return told, len(there["data"])


DONE: dict[str, tuple[Any, ...]] = {
    "finalize": ([("open", 40850, 0)], 0),
    "send": ([("open", 40850, 1)], 0),
    "send what is open": ([("open", 40850, 1)], 0),
    "void": ([("void", 40850, 0)], 0),
    "delete": ([], 0),
    "item": ([("draft", 41550, 0)], 0),
    "customer": ([("draft", 40850, 0)], 1),
}


def held(loaded: Function, stripe: Stripe, act: str) -> tuple[str, str]:
    """Have a call wait for a person; return the invoice that it is about, and the name of the approval."""
    name, before = begun(loaded, act), set(stripe.approvals)
    stripe.fail_at(ACTS[act].step, "approval")
    problem = refused(ACTS[act].call(loaded, name), 503, WAITING)
    (approval,) = set(stripe.approvals) - before
    assert problem["approval"] == f"https://dashboard.stripe.com/approval_requests/{approval}"
    return name, approval


# ---------------------------------------------------------------- the single operations


@pytest.fixture
def load(
    function: Callable[..., Function], stripe: Stripe, memory: Memory, tmp_path: Path
) -> Callable[[str], Function]:
    """Load the function in front of Stripe, with the document of a text."""
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    said = {"origin": stripe.origin, "secret": tmp_path / "key", "key": sha256(KEY), "budget": ""}
    return lambda text: function(text.format(**said))


@pytest.fixture
def loaded(load: Callable[[str], Function]) -> Function:
    return load(DOCUMENT)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kept", [False, True], ids=["not kept", "kept"])
@pytest.mark.parametrize("status", [400, 403])
def test_call_that_waits_is_never_sent_again_and_told_once_it_is_carried_out(
    loaded: Function,
    stripe: Stripe,
    act: str,
    status: int,
    *,
    kept: bool,
) -> None:
    stripe.rules = Rules(status=status, kept=kept, seconds=60)
    name, approval = held(loaded, stripe, act)
    before = lies(loaded, stripe)
    for _ in range(2):
        problem = refused(ACTS[act].call(loaded, name), 503, WAITING)
        assert problem["retry_after"] == 300
        assert "Do not use another key" in problem["detail"]
        assert problem["approval"] == f"https://dashboard.stripe.com/approval_requests/{approval}"
        sdk = ACTS[act].call(loaded, name, sdk=True)
        assert stripe_refused(sdk, 409, WAITING)["type"] == "api_error"
        assert sdk.headers["Stripe-Should-Retry"] == "false"
        if stripe.approvals[approval] == "requires_review":
            stripe.decide(approval, "approve")  # which Stripe carries out a minute later
    assert lies(loaded, stripe) == before
    stripe.forward(60)
    done = ACTS[act].call(loaded, name)
    assert done.status_code == 200, done.text
    assert lies(loaded, stripe) == DONE[act]
    again = ACTS[act].call(loaded, name)
    assert (again.json, again.headers["Idempotent-Replayed"]) == (done.json, "true")
    assert (lies(loaded, stripe), list(stripe.approvals)) == (DONE[act], [approval])


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("decision", ["reject", "cancel"])
def test_call_that_a_person_refuses_stays_refused(
    loaded: Function,
    stripe: Stripe,
    act: str,
    decision: str,
) -> None:
    name, approval = held(loaded, stripe, act)
    before = lies(loaded, stripe)
    stripe.decide(approval, decision)
    first = ACTS[act].call(loaded, name)
    detail = refused(first, 403, REJECTED)["detail"]
    assert "Nothing was created or changed, and this key is not sent again" in detail
    again = ACTS[act].call(loaded, name)
    assert (again.data, again.headers["Idempotent-Replayed"]) == (as_replayed(first.data), "true")
    assert (lies(loaded, stripe), list(stripe.approvals)) == (before, [approval])


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kept", [False, True], ids=["not kept", "kept"])
@pytest.mark.parametrize("decision", ["expire", "fail"])
def test_approval_that_lapses_frees_the_key(
    loaded: Function,
    stripe: Stripe,
    act: str,
    decision: str,
    *,
    kept: bool,
) -> None:
    stripe.rules = Rules(kept=kept)
    name, approval = held(loaded, stripe, act)
    before = lies(loaded, stripe)
    stripe.decide(approval, decision)
    lapsed = refused(ACTS[act].call(loaded, name), 503, LAPSED)
    assert "Nothing was created or changed" in lapsed["detail"]
    assert lies(loaded, stripe) == before
    assert ACTS[act].call(loaded, name).status_code == 200
    assert lies(loaded, stripe) == DONE[act]
    assert ACTS[act].call(loaded, name).headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("act", ACTS)
def test_approval_that_cannot_be_asked_about_still_waits(
    loaded: Function,
    stripe: Stripe,
    act: str,
) -> None:
    name, approval = held(loaded, stripe, act)
    stripe.decide(approval, "approve")
    stripe.restrict(UPSTREAM_KEY, "rak_invoice_write", "rak_customer_write")
    refused(ACTS[act].call(loaded, name), 503, WAITING)
    stripe.restrict(UPSTREAM_KEY, "rak_invoice_write", "rak_customer_write", "approval_requests.read")
    assert ACTS[act].call(loaded, name).status_code == 200
    assert (lies(loaded, stripe), list(stripe.approvals)) == (DONE[act], [approval])


@pytest.mark.parametrize("act", KEYLESS)
def test_call_without_a_key_is_for_the_operator(
    load: Callable[[str], Function],
    stripe: Stripe,
    act: str,
) -> None:
    free = r"operation: (?:invoiceitems|customers)\.create|operation: invoices\.void"
    loaded = load(re.sub(f"({free})", r"\1\n        idempotency: optional", DOCUMENT))
    name = begun(loaded, act)
    stripe.fail_at(ACTS[act].step, "approval", 2)
    detail = refused(ACTS[act].call(loaded, name, key=None), 424, UNKNOWN)["detail"]
    assert "https://dashboard.stripe.com/approval_requests/" in detail
    assert "Do not use another key" in detail
    sdk = ACTS[act].call(loaded, name, key=None, sdk=True)
    assert stripe_refused(sdk, 424, UNKNOWN)["type"] == "api_error"
    assert len(stripe.approvals) == 2


@pytest.mark.parametrize("act", ["finalize", "send"])
def test_call_in_several_steps_has_a_key_that_can_be_asked_about(
    loaded: Function,
    stripe: Stripe,
    act: str,
) -> None:
    name = begun(loaded, act)
    refused(ACTS[act].call(loaded, name, key=None), 400, "idempotency-key-missing")
    assert not stripe.approvals


# ---------------------------------------------------------------- what is true only once it was looked at


def lose_looks(stripe: Stripe) -> Callable[[], None]:
    """Have Stripe refuse to show invoices, though it says what became of an approval. Return how that ends."""
    stripe.restrict(UPSTREAM_KEY, "approval_requests.read")
    return lambda: stripe.restrict(UPSTREAM_KEY, "rak_invoice_write", "approval_requests.read")


@pytest.mark.parametrize("act", ["finalize", "send", "send what is open"])
@pytest.mark.parametrize(("decision", "status", "told"), [("approve", 200, DONE), ("reject", 403, None)])
def test_decision_that_no_look_bears_out_yet_is_not_forgotten(  # noqa: PLR0917 - the case, and who is in it
    loaded: Function,
    stripe: Stripe,
    act: str,
    decision: str,
    status: int,
    told: dict[str, Any] | None,
) -> None:
    """Else the mail would go out again, or a person be asked again."""
    name, approval = held(loaded, stripe, act)
    before = lies(loaded, stripe)
    stripe.decide(approval, decision)
    seen = lose_looks(stripe)
    refused(ACTS[act].call(loaded, name), 504, UNKNOWN)
    seen()
    assert ACTS[act].call(loaded, name).status_code == status
    stripe.restrict(UPSTREAM_KEY, "rak_invoice_write", "rak_customer_write")
    assert (lies(loaded, stripe), list(stripe.approvals)) == (told[act] if told else before, [approval])


@pytest.mark.parametrize("decision", ["reject", "fail"])
def test_invoice_that_somebody_finalized_meanwhile_is_what_was_asked_for(
    loaded: Function,
    stripe: Stripe,
    decision: str,
) -> None:
    name, approval = held(loaded, stripe, "finalize")
    assert ask(loaded, f"invoices/{name}/finalize", key="another").status_code == 200
    stripe.decide(approval, decision)
    response = ACTS["finalize"].call(loaded, name)
    assert (response.status_code, (response.json or {})["status"]) == (200, "open")


def test_approved_finalize_of_what_was_voided_since_is_told_as_that(
    loaded: Function,
    stripe: Stripe,
) -> None:
    name, approval = held(loaded, stripe, "finalize")
    stripe.decide(approval, "approve")
    assert ask(loaded, f"invoices/{name}/void").status_code == 200
    refused(ACTS["finalize"].call(loaded, name), 409, "invoice-voided")


@pytest.mark.parametrize("act", ["finalize", "send"])
@pytest.mark.parametrize("decision", ["reject", "fail", "approve"])
def test_draft_that_somebody_deleted_meanwhile_ends_the_call(
    loaded: Function,
    stripe: Stripe,
    act: str,
    decision: str,
) -> None:
    name, approval = held(loaded, stripe, act)
    assert ask(loaded, f"invoices/{name}", "DELETE").status_code == 200
    stripe.decide(approval, decision)  # what is approved fails
    expected = (403, REJECTED) if decision == "reject" else (503, LAPSED)
    refused(ACTS[act].call(loaded, name), *expected)


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("act", ACTS)
def test_call_that_a_rule_blocks_is_refused_and_its_key_is_free(
    loaded: Function,
    stripe: Stripe,
    act: str,
    status: int,
) -> None:
    stripe.rules = Rules(status=status)
    name = begun(loaded, act)
    stripe.fail_at(ACTS[act].step, "action_blocked")
    refused(ACTS[act].call(loaded, name), 400, "upstream-rejected")
    assert ACTS[act].call(loaded, name).status_code == 200
    assert lies(loaded, stripe) == DONE[act]


@pytest.mark.parametrize("act", ["finalize", "send"])
def test_person_who_is_asked_without_a_name_is_asked_once_in_a_call(
    loaded: Function,
    stripe: Stripe,
    monkeypatch: pytest.MonkeyPatch,
    act: str,
) -> None:
    """An id that we cannot read cannot be asked about."""
    name = begun(loaded, act)
    monkeypatch.setattr("sandbox.stripe.invoice.name", lambda *_: "ap_1")
    stripe.fail_at(ACTS[act].step, "approval", 9)
    assert "a person approve this call" in refused(ACTS[act].call(loaded, name), 424, UNKNOWN)["detail"]
    assert len(stripe._due[ACTS[act].step]) == 8


# ---------------------------------------------------------------- the steps of a whole invoice


@pytest.fixture
def whole(function: Callable[..., Function], stripe: Stripe, memory: Memory, tmp_path: Path) -> Function:
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    return function(written(stripe, tmp_path))


def at_step(whole: Function, stripe: Stripe, step: str) -> str:
    """Have one step of an invoice wait for a person; return the name of the approval."""
    stripe.fail_next("approval") if step == "create" else stripe.fail_at(step, "approval")
    refused(issue(whole, SENT), 503, WAITING)
    (approval,) = stripe.approvals
    return approval


def state(stripe: Stripe) -> list[tuple[str, int]]:
    return [(one["status"], one.get("mailed", 0)) for one in stripe.made]


@pytest.mark.parametrize("step", ["create", "add_lines", "finalize", "send"])
@pytest.mark.parametrize("kept", [False, True], ids=["not kept", "kept"])
def test_approved_step_goes_on_with_the_next(whole: Function, stripe: Stripe, step: str, *, kept: bool) -> None:
    stripe.rules = Rules(status=403, kept=kept)
    approval = at_step(whole, stripe, step)
    problem = refused(issue(whole, SENT), 503, WAITING)
    assert problem["retry_after"] == 300
    assert problem["approval"] == f"https://dashboard.stripe.com/approval_requests/{approval}"
    form = "&".join(f"{name}={value}" for name, value in SENT.items())
    sdk = whole.post(re.sub(r"/stripe(.*)\?.*", r"/ft-4/stripe-1/v1\1", TARGET), form, Idempotency_Key="order-1")
    assert stripe_refused(sdk, 409, WAITING)["type"] == "api_error"
    assert sdk.headers["Stripe-Should-Retry"] == "false"
    stripe.decide(approval, "approve")
    done = issue(whole, SENT)
    assert (done.status_code, (done.json or {}).get("sent")) == (200, True), done.text
    assert (state(stripe), list(stripe.approvals)) == ([("open", 1)], [approval])
    assert issue(whole, SENT).headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("step", ["create", "add_lines", "finalize"])
@pytest.mark.parametrize("decision", ["reject", "cancel"])
def test_step_that_a_person_refuses_leaves_nothing(whole: Function, stripe: Stripe, step: str, decision: str) -> None:
    approval = at_step(whole, stripe, step)
    stripe.decide(approval, decision)
    first = issue(whole, SENT)
    assert "Nothing was created" in refused(first, 403, REJECTED)["detail"]
    assert issue(whole, SENT).data == as_replayed(first.data)
    assert (state(stripe), list(stripe.approvals)) == ([], [approval])


@pytest.mark.parametrize("step", ["create", "add_lines", "finalize"])
@pytest.mark.parametrize("decision", ["expire", "fail"])
def test_step_whose_approval_lapses_leaves_nothing_and_the_call_runs_afresh(
    whole: Function, stripe: Stripe, step: str, decision: str
) -> None:
    stripe.decide(at_step(whole, stripe, step), decision)
    refused(issue(whole, SENT), 503, LAPSED)
    assert state(stripe) == []
    assert issue(whole, SENT).status_code == 200
    assert state(stripe) == [("open", 1)]


@pytest.mark.parametrize("decision", ["reject", "cancel", "expire", "fail"])
@pytest.mark.parametrize("kept", [False, True], ids=["not kept", "kept"])
def test_mail_that_nobody_approves_is_not_sent_and_the_invoice_stays(
    whole: Function, stripe: Stripe, decision: str, *, kept: bool
) -> None:
    stripe.rules = Rules(kept=kept)
    approval = at_step(whole, stripe, "send")
    stripe.decide(approval, decision)
    done = issue(whole, SENT)
    assert (done.status_code, (done.json or {})["sent"]) == (200, False)
    assert (state(stripe), list(stripe.approvals)) == ([("open", 0)], [approval])
    assert "was finalized and not mailed" in whole.record.entries("outcome")[-1]["warning"]


@pytest.mark.parametrize(("decision", "sent"), [("approve", True), ("reject", False)])
def test_decision_about_a_mail_that_no_look_bears_out_yet_is_not_forgotten(
    whole: Function, stripe: Stripe, decision: str, *, sent: bool
) -> None:
    approval = at_step(whole, stripe, "send")
    stripe.decide(approval, decision)
    seen = lose_looks(stripe)
    refused(issue(whole, SENT), 504, UNKNOWN)
    seen()
    assert (issue(whole, SENT).json or {})["sent"] is sent
    assert (state(stripe), list(stripe.approvals)) == ([("open", int(sent))], [approval])


def test_decision_about_one_step_is_not_taken_for_that_of_a_later_one(
    whole: Function, stripe: Stripe, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that goes on after an approved finalize is killed before it mails anything."""
    stripe.decide(at_step(whole, stripe, "finalize"), "approve")
    with monkeypatch.context() as patch:
        patch.setattr("policies.upstreams.stripe._form", killed_at("send"))
        with pytest.raises(KeyboardInterrupt):
            issue(whole, SENT)
    assert state(stripe) == [("open", 0)]
    clock.tick(LEASE)
    assert (issue(whole, SENT).json or {})["sent"] is True
    assert state(stripe) == [("open", 1)]


def killed_at(stage: str) -> Callable[..., dict[str, str]]:
    """Have the process die where it writes the form of one request."""
    form = dialect._form

    def die(grant: Any, step: Any) -> dict[str, str]:
        if step.stage == stage:
            raise KeyboardInterrupt
        return form(grant, step)

    return die
