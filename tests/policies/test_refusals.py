"""Every way to say no is told apart, drawn in one tree, and worded for whoever called."""

from __future__ import annotations

import inspect
import json
import re
from typing import TYPE_CHECKING

import pytest

from policies import refusals
from policies.model import Limit, Standing
from policies.refusals import (
    TYPE_PREFIX,
    KeyInUse,
    OutcomePending,
    OutcomeUnknown,
    Refusal,
    UpstreamRejected,
    as_stripe_error,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = {name: kind for name, kind in vars(refusals).items() if inspect.isclass(kind) and issubclass(kind, Refusal)}
#: What is raised; the others only gather.
LEAVES = {name: kind for name, kind in ALL.items() if "reason" in vars(kind) and kind is not Refusal}
GATHERERS = [kind for name, kind in ALL.items() if name not in LEAVES]


def made(kind: type[Refusal]) -> Refusal:
    return kind(400, kind.sentence, code=None, parameter=None) if issubclass(kind, UpstreamRejected) else kind()


def drawn() -> Iterator[tuple[int, str, list[int]]]:
    """Yield the tree of the module's docstring: depth, name, statuses."""
    for line in (refusals.__doc__ or "").splitlines():
        if match := re.fullmatch(r"    ([│├└─ ]*)(\w+)(.*)", line):
            yield len(match[1]) // 4, match[2], [int(status) for status in re.findall(r"\b[45]\d\d\b", match[3])]


def test_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    above: list[str] = []
    seen = {}
    for depth, name, _ in drawn():
        del above[depth:]
        seen[name] = above[-1] if above else "Exception"
        above.append(name)
    parents = {name: kind.__bases__[0].__name__ for name, kind in ALL.items()}
    assert seen == parents


def test_statuses_in_the_docstring_are_those_of_the_classes() -> None:
    for _, name, statuses in drawn():
        kind = ALL[name]
        expected = {kind.status} if kind in LEAVES.values() else set()
        if kind is UpstreamRejected:
            expected = {400, 402, 404}
        assert set(statuses) == expected, name


def test_order_in_the_docstring_is_the_order_of_the_classes() -> None:
    assert [name for _, name, _ in drawn()] == list(ALL)


def test_every_reason_has_one_class() -> None:
    """What callers see of an unknown outcome is one thing, whether it is this call's or an earlier one's."""
    shared: dict[str, set[str]] = {}
    for name, kind in LEAVES.items():
        shared.setdefault(kind.reason, set()).add(name)
    assert {reason: names for reason, names in shared.items() if len(names) > 1} == {
        "outcome-unknown": {"OutcomeUnknown", "OutcomePending", "OutcomeStillUnknown"}
    }


@pytest.mark.parametrize("kind", LEAVES.values(), ids=lambda kind: kind.__name__)
def test_refusal_is_named_and_worded_for_people(kind: type[Refusal]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.reason)
    assert kind.title[:2].istitle()
    assert not kind.title.endswith(".")
    assert len(kind.title) < 60
    assert kind.sentence[0].isupper()
    assert kind.sentence.endswith(".")
    assert kind.sentence.isascii()
    assert kind.sentence.isprintable()
    assert len(kind.sentence) < 280
    jargon = r"(?i)error|exception|traceback|null|none|invalid|parse|payload|bad request|stack|redis|firestore|secret"
    assert not re.search(jargon, kind.sentence + kind.title)
    assert not any(name in kind.sentence for name in ALL)


@pytest.mark.parametrize("kind", LEAVES.values(), ids=lambda kind: kind.__name__)
def test_refusal_says_whether_the_policy_or_the_upstream_said_no(kind: type[Refusal]) -> None:
    groups = {"PolicyRefusal": "policy", "UpstreamRefusal": "upstream"}
    decided_by = next((groups[base.__name__] for base in kind.__mro__ if base.__name__ in groups), "countersign")
    if kind is refusals.OutcomeStillUnknown:  # the upstream's silence, met again
        decided_by = "upstream"
    assert kind.decided_by == decided_by


@pytest.mark.parametrize("kind", LEAVES.values(), ids=lambda kind: kind.__name__)
def test_problem_has_the_members_of_rfc_9457_and_ours(kind: type[Refusal]) -> None:
    problem = made(kind).problem("audit-7")
    assert problem == {
        "type": TYPE_PREFIX + kind.reason,
        "title": kind.title,
        "status": kind.status,
        "detail": kind.sentence,
        "reason": kind.reason,
        "decided_by": kind.decided_by,
        "audit_id": "audit-7",
    }
    assert json.loads(json.dumps(problem)) == problem


def test_exact_detail_parameter_and_wait_are_told_and_the_note_is_not() -> None:
    standing = Standing(Limit(1, 60, "1/minute"), 0, 60)
    refusal = refusals.LimitReached("So.", note="canary", parameter="customer", retry_after=7, standings=(standing,))
    problem = refusal.problem("id")
    assert (problem["detail"], problem["parameter"], problem["retry_after"]) == ("So.", "customer", 7)
    assert "canary" not in repr((problem, refusal.headers, str(refusal), refusal))
    assert refusal.headers == {"Retry-After": "7"}
    assert refusal.standings == (standing,)


def test_full_limit_says_when_to_come_back_in_words_and_as_data() -> None:
    told = {"limit": 30, "window": 60, "left": 0}
    problem = refusals.LimitReached("So.", retry_after=12, told=told).problem("id", 1_790_000_000.5)
    assert problem["detail"] == "So. You can call again in 12 seconds."
    assert (problem["retry_after"], problem["resets_at"]) == (12, "2026-09-21T14:13:33Z")
    assert told.items() <= problem.items()
    later = refusals.BudgetSpent("So.", retry_after=7200).problem("id", 1_790_000_000.5)
    assert later["detail"] == "So. You can call again at 16:14 UTC, in 2 hours."


def test_full_limit_tells_no_time_where_none_is_known() -> None:
    problem = refusals.CeilingReached("So.", retry_after=12).problem("id")
    assert (problem["detail"], problem["retry_after"], "resets_at" in problem) == ("So.", 12, False)


def test_help_and_a_replay_are_told_to_stripes_clients_as_well() -> None:
    problem = {**refusals.PathUnknown().problem("id"), "help": "https://x.example/#path-unknown", "replayed": True}
    _, body, _ = as_stripe_error(problem)
    error = body["error"]
    assert isinstance(error, dict)
    assert (error["doc_url"], error["replayed"]) == ("https://x.example/#path-unknown", True)
    assert "help" not in error


def test_faults_are_told_in_a_problem_and_counted_in_a_stripe_error() -> None:
    fault = refusals.Fault(refusals.ParameterMissing, "customer", "customer is missing.", {"kind": "string"})
    bare = refusals.Fault(refusals.ParameterInvalid, "expand", "expand is not right.", {})
    problem = refusals.ParameterMissing("So. 1 more thing is wrong.", faults=(fault, bare)).problem("id")
    assert problem["faults"] == [
        {
            "parameter": "customer",
            "detail": "customer is missing.",
            "reason": "parameter-missing",
            "accepts": {"kind": "string"},
        },
        {"parameter": "expand", "detail": "expand is not right.", "reason": "parameter-invalid"},
    ]
    _, error, _ = refusals.as_stripe_error(problem)
    assert "faults" not in json.dumps(error)
    assert "1 more thing is wrong" in json.dumps(error)


@pytest.mark.parametrize("status", [400, 402, 404])
def test_upstream_refusal_keeps_the_upstreams_status_and_known_code(status: int) -> None:
    problem = UpstreamRejected(status, "So.", code="card_declined", parameter="customer").problem("id")
    assert (problem["status"], problem["upstream_code"], problem["parameter"]) == (status, "card_declined", "customer")


def test_headers_that_a_status_must_carry_are_there() -> None:
    assert refusals.MethodNotAllowed().headers == {"Allow": "POST"}
    for kind in LEAVES.values():
        assert ("WWW-Authenticate" in made(kind).headers) is (kind.status == 401)


def test_only_answers_that_say_nothing_was_sent_invite_another_try() -> None:
    """An unknown outcome must never read as one that is safe to repeat."""
    for kind in (OutcomeUnknown, refusals.OutcomeStillUnknown):
        assert "may exist" in kind.sentence
        assert not re.search(r"try again|safe|send .* again|nothing was sent", kind.sentence.lower())
    assert "may exist" in OutcomePending.sentence
    assert "with the same idempotency key" in OutcomePending.sentence


def test_gathering_classes_are_never_raised_by_name() -> None:
    assert {kind.__name__ for kind in GATHERERS} == {
        "Refusal", "BadCall", "Unauthenticated", "PolicyRefusal", "QuotaRefusal", "LedgerRefusal", "Unavailable",
        "UpstreamRefusal",
    }  # fmt: skip
    assert {kind.reason for kind in GATHERERS} == {"refused"}


# ---------------------------------------------------------------- as Stripe's clients read them


def stripe_error(refusal: Refusal) -> tuple[int, str, bool]:
    """Return the status, the type, and whether the client is told to try again."""
    status, body, again = as_stripe_error(refusal.problem("id"))
    error = body["error"]
    assert isinstance(error, dict)
    return status, error["type"], again


def test_only_a_key_with_other_parameters_is_an_idempotency_error() -> None:
    types = {name: stripe_error(made(kind)) for name, kind in LEAVES.items()}
    assert [name for name, (_, kind, _) in types.items() if kind == "idempotency_error"] == ["KeyReused"]
    assert types["KeyReused"] == (400, "idempotency_error", False)


def test_key_in_use_is_an_error_that_a_retry_mends() -> None:
    assert stripe_error(KeyInUse(retry_after=1)) == (409, "api_error", True)
