"""What is said of an idempotency key, in every state that it can be in when it is said.

People act on these sentences. "Nothing was created" invites a new call, and "use a new key" a second invoice.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from policies import refusals
from policies.idempotency import LEASE, RETENTION, claim, settle, wanted
from policies.model import Answer, Entry, Outcome, State, Step
from policies.outcomes import Approval, Decision, decided, unknown, unsent
from policies.refusals import (
    AwaitingApproval,
    KeyInUse,
    KeyReused,
    KeyUsedElsewhere,
    OutcomeStillUnknown,
    PolicyRefusal,
    Refusal,
    Unavailable,
    UpstreamRejected,
)
from policies.upstreams import UPSTREAMS
from sandbox.invoice import EXAMPLE, encode
from tests.policies.conftest import decided as granted
from tests.policies.conftest import written

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from policies.model import Grant
    from policies.outcomes import Reply

HOUR, DAY = 3600, 86400
NOW = 1_000_000.0
MAY_EXIST = re.compile(r"the invoice may (come to )?exist")
NO_OTHER = "Do not use another key"
NEW_KEY = re.compile(r"\bnew key\b")
NOTHING = re.compile(r"(?<!Probably n)(?<!Probably N)othing was (created|sent|changed)|created nothing")

# ---------------------------------------------------------------- of a key that comes back


def entry(age: float, **more: object) -> Entry:
    """What the ledger holds of a call that was sent so many seconds ago."""
    sent = NOW - age
    base = Entry(State.SENT, "a", "app", "billing", "invoices.create", "print", "form", "there", sent, sent + LEASE)
    return replace(base, **more)


def settled(state: State, answer: bytes, status: int = 200) -> Entry:
    return entry(3 * HOUR, state=state, answer=Answer(status, answer), expires=NOW + RETENTION)


def problem(refusal: Refusal) -> bytes:
    return json.dumps(refusal.problem("an-id")).encode()


PROBABLY = UpstreamRejected(
    400, "Refused. Probably nothing was created. Do not use another key.", code=None, parameter=None
)
STATES = {
    "free": entry(3 * HOUR, state=State.FREE, expires=NOW + DAY),
    "running": entry(10),
    "cut off": entry(3 * HOUR),
    "unknown": entry(3 * HOUR, state=State.UNKNOWN, doubt=True),
    "muted": entry(3 * HOUR, state=State.UNKNOWN, doubt=True, mute=True),
    "waits": entry(3 * HOUR, state=State.UNKNOWN, approval="apreq_1"),
    "waits unasked": entry(3 * HOUR, state=State.UNKNOWN, approval="apreq_1", mute=True),
    "succeeded": settled(State.SUCCEEDED, b'{"id":"in_1"}'),
    "succeeded, id not granted": settled(State.SUCCEEDED, b'{"status":"draft"}'),
    "rejected": settled(State.REJECTED, problem(PROBABLY), 400),
    "rejected by a person": settled(State.REJECTED, problem(refusals.ApprovalRejected()), 403),
}
#: What differs from the first call.
ASKED = {
    "the same": {},
    "other parameters": {"fingerprint": "other", "written": "other"},
    "another place": {"place": "elsewhere"},
    "another form": {"written": "other"},
}
RUNS, REPLAY = "runs", "replay"
#: By state: what comes of each, in the order of ``ASKED``; of a pair, the first where the upstream deduplicates.
TABLE: dict[str, tuple[object, ...]] = {
    "free": (RUNS, RUNS, RUNS, RUNS),
    "running": (KeyInUse, KeyInUse, KeyInUse, KeyInUse),
    "cut off": ((RUNS, OutcomeStillUnknown), KeyReused, OutcomeStillUnknown, OutcomeStillUnknown),
    "unknown": ((RUNS, OutcomeStillUnknown), KeyReused, OutcomeStillUnknown, OutcomeStillUnknown),
    "muted": (OutcomeStillUnknown, KeyReused, OutcomeStillUnknown, OutcomeStillUnknown),
    "waits": (RUNS, KeyReused, OutcomeStillUnknown, RUNS),
    "waits unasked": (OutcomeStillUnknown, KeyReused, OutcomeStillUnknown, OutcomeStillUnknown),
    "succeeded": (REPLAY, KeyReused, KeyUsedElsewhere, REPLAY),
    "succeeded, id not granted": (REPLAY, KeyReused, KeyUsedElsewhere, REPLAY),
    "rejected": (REPLAY, KeyReused, REPLAY, REPLAY),
    "rejected by a person": (REPLAY, KeyReused, REPLAY, REPLAY),
}


def comes_back(held: Entry, asked: Mapping[str, object], resend: int = 0) -> str | Refusal:
    fresh = replace(entry(0, owner="b"), **asked)
    try:
        return RUNS if isinstance(claim(held, fresh, resend=resend, now=NOW), Entry) else REPLAY
    except Refusal as refusal:
        return refusal


def cases() -> Iterator[tuple[str, str, bool]]:
    return ((state, asked, known) for state in STATES for asked in ASKED for known in (True, False))


@pytest.mark.parametrize(("state", "asked", "deduplicates"), [*cases()])
def test_key_that_comes_back_gets_the_sentence_of_its_state(*, state: str, asked: str, deduplicates: bool) -> None:
    said = comes_back(STATES[state], ASKED[asked], DAY if deduplicates else 0)
    expected = TABLE[state][list(ASKED).index(asked)]
    if isinstance(expected, tuple):
        expected = expected[not deduplicates]
    if not isinstance(said, Refusal):
        assert said == expected
        return
    assert type(said) is expected
    detail = said.detail
    assert detail.endswith(".")
    assert not re.search(r"\d{4,}|None|\{|seconds? ago", detail)
    if STATES[state].state is State.SUCCEEDED:
        assert NEW_KEY.search(detail)
        assert not MAY_EXIST.search(detail)
    else:
        assert NO_OTHER in detail or state == "rejected by a person"
        assert not NEW_KEY.search(detail)
        assert not NOTHING.search(detail) or state == "rejected by a person"
        assert MAY_EXIST.search(detail) or state in {"running", "rejected", "rejected by a person"}


@pytest.mark.parametrize("state", [name for name, row in TABLE.items() if row[1] is KeyReused])
@pytest.mark.parametrize(
    ("age", "words"),
    [(LEASE, "just now"), (60, "1 minute ago"), (3 * HOUR, "3 hours ago"), (34 * DAY, "34 days ago")],
)
def test_key_of_another_call_says_in_words_how_old_that_is(state: str, age: float, words: str) -> None:
    held = replace(STATES[state], sent=NOW - age, lease_until=NOW - age + LEASE)
    said = comes_back(held, ASKED["other parameters"])
    assert isinstance(said, KeyReused)
    assert f"This idempotency key was used {words} for a call with other parameters" in said.detail


def test_invoice_that_was_raised_is_named_only_if_its_id_is_granted() -> None:
    for state, named in (("succeeded", True), ("succeeded, id not granted", False)):
        said = comes_back(STATES[state], ASKED["other parameters"])
        assert isinstance(said, KeyReused)
        assert ("in_1" in said.detail) == named
        assert "went through: invoice" in said.detail


def test_first_parameters_are_asked_for_again_only_where_that_brings_something() -> None:
    for state in ("cut off", "unknown", "muted", "waits", "waits unasked"):
        said = comes_back(STATES[state], ASKED["other parameters"])
        assert isinstance(said, KeyReused)
        assert "Send the first call again as it was, or ask the operator of Countersign to look." in said.detail


@pytest.mark.parametrize("state", ["cut off", "unknown", "muted"])
def test_call_that_nothing_can_prove_any_more_is_said_to_be_for_the_operator_alone(state: str) -> None:
    said = comes_back(replace(STATES[state], sent=NOW - 31 * DAY, lease_until=NOW - 31 * DAY + LEASE), {})
    assert isinstance(said, OutcomeStillUnknown)
    assert "sent 31 days ago" in said.detail
    assert "Only the operator of Countersign can still settle this" in said.detail
    assert MAY_EXIST.search(said.detail)
    assert NO_OTHER in said.detail


# ---------------------------------------------------------------- of a call that was sent

INVOICE = {**EXAMPLE, "customer": "cus_1"}
#: Status, body, and headers of every kind of answer that is no success.
ANSWERS: dict[str, tuple[int, object, dict[str, str]]] = {
    "refused": (400, {"error": {"type": "invalid_request_error"}}, {}),
    "declined": (402, {"error": {"type": "card_error", "code": "card_declined"}}, {}),
    "missing": (404, {"error": {"type": "invalid_request_error", "code": "resource_missing"}}, {}),
    "refused, kept": (400, {"error": {"type": "invalid_request_error"}}, {"idempotent-replayed": "true"}),
    "blocked": (403, {"error": {"code": "action_blocked"}}, {}),
    "other form": (400, {"error": {"type": "idempotency_error"}}, {}),
    "other words": (400, {"error": {"type": "api_error"}}, {}),
    "text": (400, "StripeConnectionError", {}),
    "unprocessable": (422, {}, {}),
    "key refused": (401, {}, {}),
    "forbidden": (403, {}, {}),
    "busy": (429, {}, {}),
    "locked": (429, {"error": {"code": "lock_timeout"}}, {}),
    "conflict": (409, {"error": {"code": "lock_timeout"}}, {}),
    "misrouted": (404, "<html>", {}),
    "moved": (307, "<html>", {}),
    "found": (302, "<html>", {}),
    "front end": (502, "<html>", {}),
    "failed": (500, {"error": {"type": "api_error"}}, {}),
    "failed, locked": (503, {"error": {"code": "lock_timeout"}}, {}),
    "failed, kept": (500, {"error": {"type": "api_error"}}, {"idempotent-replayed": "true"}),
    "waits": (403, {"error": {"code": "approval_required", "approval_request": {"id": "apreq_1"}}}, {}),
    "waits, unnamed": (400, {"error": {"code": "approval_required"}}, {}),
    "no invoice": (200, {"object": "customer", "id": "cus_1"}, {}),
    "another customer": (200, {**INVOICE, "customer": "cus_2"}, {}),
}
#: What is known of the key when the call is sent.
SENDS: dict[str, dict[str, object]] = {
    "first": {},
    "refused before": {"refused": True, "generation": 1},
    "in doubt, nothing can arrive any more": {"doubt": True},
    "in doubt": {"doubt": True, "until": NOW + LEASE},
}


def calls() -> Iterator[Grant]:
    for upstream in ("stripe", "appgregator"):
        text = written("customer:").replace("upstream: appgregator", f"upstream: {upstream}")
        yield granted(text, {"customer": "cus_1"}, key="order-1")
        yield granted(text, {"customer": "cus_1"})


def ends(grant: Grant, known: dict[str, object]) -> Iterator[tuple[str, Reply]]:
    """Every end of a send, by name."""
    dialect = UPSTREAMS[grant.entitlement.connection.upstream]
    if grant.ledger_key is None:
        step = Step("owner", resumes=False)
    else:
        held = replace(wanted(grant, owner="a", place="there", now=NOW), **known)
        step = Step(
            grant.ledger_key,
            held.generation,
            held.refused,
            held.doubt,
            held.until <= NOW,
            dialect.approvals is not None,
        )
    for name, (status, answer, headers) in ANSWERS.items():
        body = answer.encode() if isinstance(answer, str) else encode(answer)
        yield name, dialect.judge(grant, step, status, headers, body)
    yield "unsent", unsent(grant, step, "")
    yield "lost", unknown(grant, "")
    if grant.ledger_key is not None and dialect.approvals is not None:
        for decision in (Decision.WAITS, Decision.REFUSED, Decision.LAPSED):
            yield f"approval {decision.name}", decided(grant, step, "apreq_1", Approval(decision))


@pytest.mark.parametrize("known", SENDS)
def test_call_that_was_sent_is_told_no_more_than_what_its_key_then_holds(known: str) -> None:
    checked = 0
    for grant in calls():
        if grant.ledger_key is None and known != "first":
            continue
        for name, reply in ends(grant, SENDS[known]):
            assert reply.refusal is not None
            detail, outcome = reply.refusal.detail, reply.outcome
            if grant.ledger_key is not None:
                held = replace(wanted(grant, owner="a", place="there", now=NOW), **SENDS[known])
                if reply.closed:  # as ``sending`` goes on
                    reply = replace(reply, generation=held.generation + 1)  # noqa: PLW2901 - the end of that call
                ended = settle(held, owner="a", reply=reply, answer=None, retention=RETENTION)
                assert ended is not None
                state = ended.state
            else:
                state = State.FREE if outcome in {Outcome.FREED, Outcome.RELEASED} else State(outcome.value)
            case = (grant.entitlement.connection.upstream, grant.ledger_key is not None, known, name, state, detail)
            assert not NEW_KEY.search(detail), case
            checked += 1
            if state is State.FREE:
                assert NOTHING.search(detail), case
                assert not MAY_EXIST.search(detail), case
                assert NO_OTHER not in detail, case
            elif state is State.UNKNOWN:
                # The upstream carries out what it has a person approve: it may come to exist.
                assert MAY_EXIST.search(detail) or type(reply.refusal) is AwaitingApproval, case
                assert NO_OTHER in detail, case
                assert not NOTHING.search(detail), case
            elif name == "approval REFUSED":
                assert bool(MAY_EXIST.search(detail)) == ("doubt" in known), case
                assert bool(NOTHING.search(detail)) != ("doubt" in known), case
            elif state is State.REJECTED:
                assert "Probably nothing was created. This key is not sent again. Do not use another key" in detail, (
                    case
                )
    assert checked > 20


def test_refusal_that_does_not_know_the_key_says_nothing_of_what_exists() -> None:
    """A limit, a store or a secret may be in the way of any key, in whatever state that is."""

    def below(kind: type[Refusal]) -> Iterator[type[Refusal]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    for kind in (*below(Unavailable), *below(PolicyRefusal)):
        assert not re.search("created|new key|may exist", kind.sentence), kind
