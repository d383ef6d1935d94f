"""What a caller is told, as bytes and headers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from gateway.address import Docs
from gateway.answering import NO_DOCS, answer_to, replayed, respond
from gateway.chain import Audit
from gateway.record import Record
from gateway.stores import Settled
from gateway.stores.memory import Memory
from policies.model import Admission, Answer, Outcome
from policies.operations import OPERATIONS
from policies.outcomes import Reply
from policies.quota import parse_limit
from policies.refusals import (
    CredentialMissing,
    LimitReached,
    MethodNotAllowed,
    PathUnknown,
    Refusal,
    UpstreamBusy,
    UpstreamRejected,
)
from tests.conftest import TARGET, Clock, policy
from tests.gateway.conftest import admit, granted

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.answering import Response
    from policies.model import Grant
    from sandbox.appgregator import Appgregator
    from tests.conftest import Function


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, line: bytes) -> None:
        pass


@pytest.fixture
def audit() -> Audit:
    return Audit(Nowhere(), policy="p" * 64)


def answered(audit: Audit, reply: Reply, limits: str = "30/minute") -> tuple[Record, Response]:
    """Take a call through a store and the record to its answer."""
    grant = granted(policy("http://127.0.0.1:9", limits=limits))
    with Record(audit, {"RAW_URI": TARGET}) as record:
        record.caller, record.grant = grant.caller, grant
        record.admission = admit(Memory(Clock()), grant)
        record.intent(record.admission)
        record.answer = answer_to(reply, grant, record.audit_id)
        record.close(reply, settled=Settled.WRITTEN)
    return record, respond(record)


def refused(audit: Audit, refusal: Refusal) -> tuple[Record, Response]:
    with Record(audit, {"RAW_URI": TARGET}) as record:
        raise refusal
    return record, respond(record)


SUCCEEDED = Reply(Outcome.SUCCEEDED, answer={"id": "in_1", "description": "é \u2028 💸"})


def test_success_is_json_with_exactly_these_headers(audit: Audit) -> None:
    record, response = answered(audit, SUCCEEDED)
    assert response.status == 200
    assert json.loads(response.body) == {
        "id": "in_1",
        "description": "é \u2028 💸",
        "audit_id": record.audit_id,
    }
    assert dict(response.headers) == {
        "Content-Type": "application/json",
        "Content-Length": str(len(response.body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Countersign-Audit-Id": record.audit_id,
        "RateLimit-Policy": '"30/minute";q=30;w=60',
        "RateLimit": '"30/minute";r=29;t=61',
    }


def test_audit_id_is_in_the_answer_only_where_the_policy_lists_it(audit: Audit) -> None:
    grant = granted(policy("http://127.0.0.1:9", response="id"))
    with Record(audit, {"RAW_URI": TARGET}) as record:
        record.caller, record.grant = grant.caller, grant
        answer = answer_to(SUCCEEDED, grant, record.audit_id)
    assert "audit_id" not in json.loads(answer.body)


def test_refusal_is_problem_json_and_says_who_said_no(audit: Audit) -> None:
    record, response = refused(audit, PathUnknown())
    assert (response.status, response.headers["Content-Type"]) == (404, "application/problem+json")
    problem = json.loads(response.body)
    assert problem["audit_id"] == response.headers["Countersign-Audit-Id"] == record.audit_id
    assert problem["status"] == 404
    assert problem["type"] == f"urn:countersign:refusal:{problem['reason']}"
    assert problem["decided_by"] == "countersign"


NODE = "application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7"


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, "problem+json"),
        ("", "problem+json"),
        ("*/*", "problem+json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "problem+json"),
        ("application/*", "problem+json"),
        ("application/json", "json"),
        ("Application/JSON;charset=utf-8", "json"),
        ("application/json, text/plain, */*", "json"),  # axios
        (NODE, "json"),
        ("text/plain, application/json;q=0.1", "json"),
        ("application/json;q=0", "problem+json"),
        ("application/json; q=0.000, */*", "problem+json"),
        ("application/json, application/problem+json", "problem+json"),
        ("application/problem+json;q=0.1, application/json", "problem+json"),
        ("application/problem+json;q=0, application/json", "json"),
        ("application/problem+json", "problem+json"),
        ("," * 200_000 + "application/json", "problem+json"),
    ],
)
def test_refusal_goes_out_as_the_json_that_was_asked_for(audit: Audit, accept: str | None, media: str) -> None:
    """n8n and others show a body only if its type is the one that they asked for."""
    environ = {"RAW_URI": TARGET, **({} if accept is None else {"HTTP_ACCEPT": accept})}
    with Record(audit, environ) as record:
        raise PathUnknown
    response = respond(record)
    assert response.headers["Content-Type"] == f"application/{media}"
    assert json.loads(response.body) == PathUnknown().problem(record.audit_id)


def test_success_is_json_whatever_was_asked_for(audit: Audit) -> None:
    grant = granted(policy("http://127.0.0.1:9"))
    with Record(audit, {"RAW_URI": TARGET, "HTTP_ACCEPT": "application/problem+json"}) as record:
        record.caller, record.grant = grant.caller, grant
        record.answer = answer_to(SUCCEEDED, grant, record.audit_id)
    assert respond(record).headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("refusal", "name", "value"),
    [
        (LimitReached(retry_after=17), "Retry-After", "17"),
        (CredentialMissing(), "WWW-Authenticate", 'Bearer realm="countersign"'),
        (MethodNotAllowed(), "Allow", "POST"),
    ],
)
def test_refusal_carries_the_header_its_status_needs(audit: Audit, refusal: Refusal, name: str, value: str) -> None:
    _, response = refused(audit, refusal)
    assert response.headers[name] == value
    assert response.headers["Cache-Control"] == "no-store"


def test_busy_upstream_is_passed_on_with_its_wait(audit: Audit) -> None:
    _, response = answered(audit, Reply(Outcome.RELEASED, refusal=UpstreamBusy(retry_after=7)))
    assert (response.status, response.headers["Retry-After"]) == (503, "7")
    assert response.headers["Content-Type"] == "application/problem+json"
    assert json.loads(response.body)["decided_by"] == "upstream"


def test_every_limit_stands_in_the_headers(audit: Audit) -> None:
    _, response = answered(audit, SUCCEEDED, limits="3/second, 100/minute")
    assert response.headers["RateLimit-Policy"] == '"3/second";q=3;w=1, "100/minute";q=100;w=60'
    assert response.headers["RateLimit"].startswith('"3/second";r=2;t=')
    assert '"100/minute";r=99;t=' in response.headers["RateLimit"]


def test_refusal_by_a_limit_shows_how_the_limits_stand(audit: Audit) -> None:
    store, grant = Memory(Clock()), granted(policy("http://127.0.0.1:9", limits="1/minute"))
    admit(store, grant)
    with Record(audit, {"RAW_URI": TARGET}) as record:
        record.caller, record.grant = grant.caller, grant
        admit(store, grant)
    response = respond(record)
    assert response.status == 429
    assert response.headers["RateLimit-Policy"] == f'"1/minute";q={parse_limit("1/minute").calls};w=60'
    assert response.headers["RateLimit"] == f'"1/minute";r=0;t={response.headers["Retry-After"]}'


def test_refusal_before_the_store_shows_no_limits(audit: Audit) -> None:
    _, response = refused(audit, PathUnknown())
    assert "RateLimit" not in response.headers
    assert "RateLimit-Policy" not in response.headers


def test_refusal_that_comes_after_an_answer_was_made_is_what_is_told(audit: Audit) -> None:
    with Record(audit, {"RAW_URI": TARGET}) as record:
        record.answer = Answer(200, b'{"id":"in_1"}')
        raise PathUnknown
    response = respond(record)
    assert (response.status, json.loads(response.body)["reason"]) == (404, "path-unknown")


def test_lone_surrogate_does_not_break_an_answer(audit: Audit) -> None:
    """JSON can name half a character, which has no UTF-8."""
    _, response = answered(audit, Reply(Outcome.SUCCEEDED, answer={"description": "a\ud83db"}))
    assert response.status == 200
    response.body.decode("utf-8")
    assert json.loads(response.body)["description"] == "a\ud83db"


def test_answer_is_passed_on_byte_for_byte(audit: Audit) -> None:
    body = '{"kept":  "as it was, é"}'.encode()
    with Record(audit, {"RAW_URI": TARGET}) as record:
        record.answer = Answer(200, body)
    response = respond(record)
    assert (response.body, response.headers["Content-Length"]) == (body, str(len(body)))


PAGE = "https://docs.example/refusals.md"
DOCS = Docs(PAGE)


def test_every_refusal_says_where_it_is_explained_if_that_is_set(audit: Audit) -> None:
    for docs, told in ((DOCS, {"help": f"{PAGE}#path-unknown"}), (Docs(), {})):
        with Record(audit, {"RAW_URI": TARGET}) as record:
            raise PathUnknown
        response = respond(record, docs)
        assert json.loads(response.body) == PathUnknown().problem(record.audit_id) | told
        assert response.headers["Content-Length"] == str(len(response.body))


def test_stripes_clients_are_told_where_a_refusal_is_explained_as_stripe_tells_it(audit: Audit) -> None:
    with Record(audit, {"RAW_URI": "/acme/stripe/v1/nothing"}) as record:
        raise PathUnknown
    assert json.loads(respond(record, DOCS).body)["error"]["doc_url"] == f"{PAGE}#path-unknown"


def kept(reply: Reply, response: str = "id, description, audit_id") -> tuple[Grant, Answer]:
    grant = granted(policy("http://127.0.0.1:9", response=response))
    return grant, answer_to(reply, grant, "the-first-call")


def replay(audit: Audit, grant: Grant, first: Answer, docs: Docs = NO_DOCS, target: str = TARGET) -> Response:
    with Record(audit, {"RAW_URI": target}) as record:
        record.caller, record.grant = grant.caller, grant
        record.admission = Admission((), "owner", 0.0, replay=first)
        record.replay()
        record.answer = replayed(first, grant)
    return respond(record, docs)


def test_replay_says_so_in_the_body_and_names_the_call_that_created(audit: Audit) -> None:
    """No-code tools show bodies and no headers."""
    grant, first = kept(SUCCEEDED)
    response = replay(audit, grant, first)
    assert json.loads(response.body) == {**json.loads(first.body), "replayed": True}
    assert json.loads(response.body)["audit_id"] == "the-first-call" != response.headers["Countersign-Audit-Id"]


def test_replay_says_so_in_the_body_only_where_the_policy_lists_the_audit_id(audit: Audit) -> None:
    grant, first = kept(SUCCEEDED, "id, description")
    response = replay(audit, grant, first)
    assert (response.body, response.headers["Idempotent-Replayed"]) == (first.body, "true")


def test_replay_of_an_answer_of_which_nothing_is_granted_any_more_is_json_still(audit: Audit) -> None:
    _, first = kept(SUCCEEDED, "id")
    grant, _ = kept(SUCCEEDED, "number, audit_id")
    assert json.loads(replay(audit, grant, first).body) == {"replayed": True}


REJECTED = Reply(Outcome.REJECTED, refusal=UpstreamRejected(402, "No.", code="card_declined", parameter=None))


def test_kept_refusal_says_that_it_is_a_replay_and_gets_the_help_of_today(audit: Audit) -> None:
    grant, first = kept(REJECTED, "id")
    response = replay(audit, grant, first, DOCS)
    assert (response.status, response.headers["Idempotent-Replayed"]) == (402, "true")
    told = {"replayed": True, "help": f"{PAGE}#upstream-rejected"}
    assert json.loads(response.body) == {**json.loads(first.body), **told}
    assert json.loads(response.body)["audit_id"] == "the-first-call"
    assert not told.keys() & json.loads(first.body)
    assert replay(audit, grant, first, DOCS).body == response.body


def test_kept_refusal_is_a_replay_to_stripes_clients_too(audit: Audit) -> None:
    grant, first = kept(REJECTED)
    error = json.loads(replay(audit, grant, first, DOCS, "/acme/stripe/v1/invoices").body)["error"]
    assert (error["replayed"], error["audit_id"]) == (True, "the-first-call")


def test_no_field_that_can_be_granted_is_taken_for_a_replay() -> None:
    assert not [operation.id for operation in OPERATIONS.values() if "replayed" in operation.fields]


def test_full_limit_is_told_by_the_clock_on_the_wall() -> None:
    wall = Clock(datetime(2026, 11, 26, 14, 0, tzinfo=UTC).timestamp())
    with Record(Audit(Nowhere(), policy="p" * 64, clock=wall), {"RAW_URI": TARGET}) as record:
        wall.tick(1.5)  # a slow store
        raise LimitReached(retry_after=290)
    problem = json.loads(respond(record).body)
    assert problem["resets_at"] == "2026-11-26T14:04:52Z"
    assert problem["detail"].endswith(" You can call again at 14:05 UTC, in 5 minutes.")


def test_no_header_of_the_upstream_is_passed_on(function: Callable[..., Function], upstream: Appgregator) -> None:
    upstream.fail_next("set_cookie")
    response = function().post()
    assert response.status_code == 200
    assert set(response.headers.keys()) == {
        "Content-Type",
        "Content-Length",
        "Cache-Control",
        "X-Content-Type-Options",
        "Countersign-Audit-Id",
        "RateLimit",
        "RateLimit-Policy",
    }


def test_replay_is_the_same_answer_and_says_so(function: Callable[..., Function], upstream: Appgregator) -> None:
    gate = function()
    first, second = (gate.post(Idempotency_Key="order-1") for _ in range(2))
    assert second.data == first.data[:-1] + b',"replayed":true}'
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert first.headers["Countersign-Audit-Id"] != second.headers["Countersign-Audit-Id"]
    assert upstream.invoices == 1
