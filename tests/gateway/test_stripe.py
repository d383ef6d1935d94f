"""What comes of a call at Stripe, for everything it can do to one, and how often it is tried."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from gateway.secrets import Mounted, SecretManager, Secrets
from gateway.stopping import LEAST_SECONDS
from gateway.upstreams.sending import FURTHER, PAUSES, Upstreams
from gateway.upstreams.transport import LostError, NotSentError, Received, Transport
from policies.foresight import OF_THIS_CALL
from policies.idempotency import LEASE, upstream_key, wanted
from policies.model import Admission, Outcome
from policies.refusals import (
    AwaitingApproval,
    OutcomePending,
    OutcomeUnknown,
    Refusal,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamKeyRefused,
    UpstreamMisrouted,
    UpstreamRejected,
    UpstreamUnreachable,
)
from sandbox.__main__ import SECRET, UPSTREAM_KEY
from sandbox.invoice import EXAMPLE, encode
from sandbox.stripe import FAULTS
from tests.conftest import CUSTOMER, FORM, KEY, Clock, policy
from tests.gateway.conftest import foreseen, granted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from policies.concealed import Concealed
    from policies.dialect import Outgoing
    from policies.model import Grant
    from policies.outcomes import Reply
    from sandbox.secret_manager import SecretManager as Sandbox
    from sandbox.stripe import Stripe

    Send = Callable[..., Reply]
    Told = Callable[..., tuple[Reply, list[float]]]

ROTATED = "another-upstream-key"
ADMISSION = Admission((), "owner", 0.0)
NOWHERE = "http://127.0.0.1:9"
VERSION = "2026-10-28.endive"
INVOICE = encode(dict(EXAMPLE))


def asked(origin: str = NOWHERE, body: str = CUSTOMER, *, key: str | None = "order-1", more: str = "") -> Grant:
    """Have a call to Stripe granted; ``more`` is what else the policy says of the connection."""
    text = policy(origin, upstream="stripe").replace("upstream: stripe\n", f"upstream: stripe\n{more}")
    return granted(text, body, idempotency_key=key)


def looking(origin: str = NOWHERE, invoice: str = str(EXAMPLE["id"]), query: str = "") -> Grant:
    text = policy(origin, upstream="stripe", retrieve="{invoice: , expand: }")
    return granted(text, query, invoice=invoice)


def claimed(grant: Grant, **entry: object) -> Admission:
    """Have a call claim its key; ``entry`` is what the ledger holds of an earlier one."""
    if grant.ledger_key is None:
        return ADMISSION
    held = wanted(grant, owner="owner", place=grant.entitlement.connection.place, now=0.0)
    return replace(ADMISSION, entry=replace(held, **entry))


#: An earlier send may still arrive, or no longer.
DOUBT = {"doubt": True, "until": float(LEASE)}
QUIET = {"doubt": True}


@pytest.fixture
def secrets(secret_manager: Sandbox) -> Iterator[Secrets]:
    manager = SecretManager(secret_manager.address)
    yield Secrets(manager=manager, mounted=Mounted(), clock=time.monotonic)
    manager.close()


@pytest.fixture
def send(secrets: Secrets) -> Send:
    """Send at once what is granted: nothing waits between tries."""
    sender = Upstreams(Transport(), secrets, time.monotonic, lambda _: None)

    def send(grant: Grant, admission: Admission | None = None, *, seconds: float = 20) -> Reply:
        secret = secrets.access(grant, time.monotonic() + 20)
        return sender.send(grant, admission or claimed(grant), secret, time.monotonic() + seconds)

    return send


class Script:
    """A transport that answers as it is told, once each, and takes ``seconds`` of a clock for it."""

    def __init__(self, *answers: Received | Exception, clock: Clock | None = None, seconds: float = 0.0) -> None:
        self.clock = clock or Clock()
        self.hung_up: list[int] = []
        """After how many requests its connections were closed, each time."""
        self.requests: list[Outgoing] = []
        self.keys: list[str] = []
        self.given: list[float] = []
        self._answers, self._seconds = list(answers), seconds

    def send(self, outgoing: Outgoing, key: Concealed[str], seconds: float) -> Received:
        self.requests.append(outgoing)
        self.keys.append(key.reveal())
        self.given.append(seconds)
        self.clock.tick(self._seconds)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def hang_up(self) -> None:
        self.hung_up.append(len(self.requests))


@pytest.fixture
def told(secrets: Secrets) -> Told:
    """Send through a script; return what came of it, and how long was waited between the tries."""

    def told(
        script: Script, grant: Grant | None = None, *, held: Mapping[str, object] | None = None, seconds: float = 25
    ) -> tuple[Reply, list[float]]:
        grant = grant or asked()
        slept: list[float] = []

        def sleep(pause: float) -> None:
            slept.append(pause)
            script.clock.tick(pause)

        secret = secrets.access(grant, time.monotonic() + 20)
        sender = Upstreams(script, secrets, script.clock, sleep)  # type: ignore[arg-type]  # a transport's one method
        reply = sender.send(grant, claimed(grant, **(held or {})), secret, script.clock() + seconds)
        assert not script._answers  # no more and no fewer tries than answers
        assert reply.attempts == len(script.requests)
        return reply, slept

    return told


OK = Received(200, INVOICE)
LOST = LostError("libcurl error 28")
UNSENT = NotSentError("libcurl error 7")


def answered(status: int, *, again: bool | None = None, wait: int | None = None, **error: str) -> Received:
    headers = {} if wait is None else {"retry-after": str(wait)}
    return Received(status, json.dumps({"error": error}).encode(), headers if again is None else headers | said(again))


def said(again: bool) -> dict[str, str]:  # noqa: FBT001 - Stripe's one word
    return {"stripe-should-retry": str(again).lower()}


# ---------------------------------------------------------------- every fault of the sandbox

DONE = (Outcome.SUCCEEDED, None, 200)
NO = Outcome.FREED
MISROUTED = (Outcome.RELEASED, UpstreamMisrouted, 502)
PENDING = (Outcome.UNKNOWN, OutcomePending, 504)
#: By fault: the outcome, the refusal and its status; and how many tries, invoices and calls there were.
ROWS: dict[str, tuple[tuple[Outcome, type[Refusal] | None, int], tuple[int, int, int]]] = {
    **dict.fromkeys(("gzip", "set_cookie", "expanded", "slow", "leak_key", "working"), (DONE, (1, 1, 1))),
    **dict.fromkeys(
        ("error_400", "echo_key", "action_blocked", "no_line_items"),
        ((NO, UpstreamRejected, 400), (1, 0, 1)),
    ),
    "approval": ((Outcome.UNKNOWN, AwaitingApproval, 503), (1, 0, 1)),
    **dict.fromkeys(("twice", "other_mode"), (DONE, (1, 1, 1))),  # the connection here says no mode
    "error_402": ((NO, UpstreamRejected, 402), (1, 0, 1)),
    "error_404": ((NO, UpstreamRejected, 404), (1, 0, 1)),
    **dict.fromkeys(("html_404", "redirect_307"), (MISROUTED, (1, 0, 1))),
    **dict.fromkeys(("error_401", "error_403"), ((Outcome.RELEASED, UpstreamKeyRefused, 503), (1, 0, 1))),
    "error_429": ((Outcome.RELEASED, UpstreamBusy, 503), (1, 0, 1)),
    # Whatever held the lock lets go of it.
    "lock_429": (DONE, (2, 1, 2)),
    # Nothing lies under the key, or the invoice does: the second try brings it.
    **dict.fromkeys(("error_409", "error_503", "html_502", "retry_409", "retry_503"), (DONE, (2, 1, 2))),
    **dict.fromkeys(("close_after", "reset_after", "truncated"), (DONE, (2, 1, 2))),
    **dict.fromkeys(("oversize", "gzip_bomb", "huge_header"), (DONE, (2, 1, 2))),
    "close_before": (DONE, (2, 1, 1)),
    # The answer was another call's: the second try, over another connection, brings this one's.
    **dict.fromkeys(("other_customer", "other_key"), (DONE, (2, 1, 2))),
    "other_key_400": (DONE, (2, 1, 2)),
    # The failure lies under the key, and is all that there is to be had: the second try says so.
    "error_500": ((Outcome.UNKNOWN, OutcomeUnknown, 424), (2, 0, 2)),
    "error_500_created": ((Outcome.UNKNOWN, OutcomeUnknown, 424), (2, 1, 2)),
    "no_retry_500": (PENDING, (1, 0, 1)),
    "redirect_302": (PENDING, (1, 0, 1)),
    **dict.fromkeys(
        ("html_200", "not_json", "nan", "deep", "no_id", "array", "empty", "wrong_object"), (PENDING, (1, 1, 1))
    ),
    **dict.fromkeys(("hang", "trickle"), (PENDING, (1, 1, 1))),  # no time is left for a second try
}


#: What is the answer to another call, whatever it says.
STRAY = {"other_customer", "other_key", "other_key_400"}


def test_table_has_every_fault_of_the_sandbox() -> None:
    assert ROWS.keys() == FAULTS


@pytest.mark.parametrize("key", ["order-1", None], ids=["keyed", "unkeyed"])
@pytest.mark.parametrize("fault", sorted(ROWS))
def test_answer_is_judged_and_tried_again_by_the_failure_table(
    send: Send, stripe: Stripe, fault: str, key: str | None
) -> None:
    (outcome, refusal, status), (attempts, invoices, calls) = ROWS[fault]
    if refusal in {OutcomePending, AwaitingApproval} and key is None:
        refusal, status = OutcomeUnknown, 424  # nobody could send the same call again
    stripe.delay = 0.1
    stripe.fail_next(fault)
    grant = asked(stripe.origin, key=key)
    reply = send(grant, claimed(grant), seconds=2 if fault in {"hang", "trickle"} else 20)
    assert (reply.outcome, type(reply.refusal)) == (outcome, refusal or type(None))
    assert (reply.refusal.status if reply.refusal else 200) == status
    assert (reply.attempts, stripe.invoices, len(stripe.calls)) == (attempts, invoices, calls)
    assert reply.reached
    assert (reply.answer is None) == (outcome is not Outcome.SUCCEEDED)
    assert (reply.alarm is not None) == (refusal in {UpstreamKeyRefused, UpstreamMisrouted} or fault in STRAY)
    assert len({dict(call.headers)["Idempotency-Key"] for call in stripe.calls}) == 1
    assert stripe.redirected == 0
    if refusal is OutcomePending:
        assert reply.refusal is not None
        assert reply.refusal.retry_after == 5


@pytest.mark.parametrize("fault", ["close_after", "truncated", "html_502", "error_409", "error_503", "retry_503"])
def test_fault_that_stays_is_given_up_after_three_tries(send: Send, stripe: Stripe, fault: str) -> None:
    stripe.fail_next(fault, times=9)
    reply = send(asked(stripe.origin))
    assert (reply.outcome, type(reply.refusal), reply.attempts) == (Outcome.UNKNOWN, OutcomePending, 3)
    assert len(stripe.calls) == 3
    assert stripe.invoices <= 1


def test_call_that_is_still_at_work_there_is_waited_for(secrets: Secrets, stripe: Stripe, clock: Clock) -> None:
    """Its answer was given up; the second try meets a 409, the third the invoice."""
    stripe.delay = 60
    stripe.fail_next("working")
    grant = asked(stripe.origin)
    secret = secrets.access(grant, time.monotonic() + 20)
    transport = Transport()

    class Impatient:
        def send(self, outgoing: Outgoing, key: Concealed[str], seconds: float) -> Received:
            return transport.send(outgoing, key, seconds if stripe.calls else 1.5)

    def pause(seconds: float) -> None:
        clock.tick(100 * seconds)  # of a pause of 0.3 s, and one of 1.2 s

    sender = Upstreams(Impatient(), secrets, time.monotonic, pause)  # type: ignore[arg-type]  # its one method
    reply = sender.send(grant, claimed(grant), secret, time.monotonic() + 20)
    assert (reply.outcome, reply.attempts) == (Outcome.SUCCEEDED, 3)
    assert (stripe.invoices, stripe.replays) == (1, 1)


# ---------------------------------------------------------------- what goes out


def headers(stripe: Stripe) -> list[dict[str, str]]:
    seen = [{name.lower(): value for name, value in call.headers} for call in stripe.calls]
    assert all(len(one) == len(call.headers) for one, call in zip(seen, stripe.calls, strict=True))
    return seen


def test_exactly_these_headers_go_out(send: Send, stripe: Stripe) -> None:
    grant = asked(stripe.origin, "customer=cus_1&metadata[order_id]=7")
    reply = send(grant)
    assert reply.outcome is Outcome.SUCCEEDED
    assert grant.ledger_key is not None
    [sent] = headers(stripe)
    assert sent == {
        "host": urlsplit(stripe.origin).netloc,
        "user-agent": "countersign",
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": f"Bearer {UPSTREAM_KEY}",
        "stripe-version": VERSION,
        "idempotency-key": upstream_key(grant.ledger_key),
        "content-type": FORM,
        "content-length": "39",
    }
    (call,) = stripe.calls
    assert (call.path, call.query) == ("/v1/invoices", "")
    assert call.body == b"customer=cus_1&metadata%5Border_id%5D=7"
    assert reply.upstream_request is not None
    assert reply.upstream_request.startswith("req_")


def test_version_and_account_are_those_of_the_policy(send: Send, stripe: Stripe) -> None:
    send(asked(stripe.origin, more="    version: 2022-11-15\n    account: acct_1032D82eZvKYlo2C\n"))
    [sent] = headers(stripe)
    assert (sent["stripe-version"], sent["stripe-account"]) == ("2022-11-15", "acct_1032D82eZvKYlo2C")


def test_key_of_the_caller_is_never_the_upstreams(send: Send, stripe: Stripe) -> None:
    for key in ("order-1", "order-2", "order-1"):
        send(asked(stripe.origin, key=key))
    first, second, third = (sent["idempotency-key"] for sent in headers(stripe))
    assert first == third != second
    assert "order" not in first
    assert 20 < len(first) <= 255
    assert stripe.invoices == 2


def test_same_key_of_another_caller_or_connection_is_another_key_upstream() -> None:
    here = asked()
    elsewhere = asked(more="    account: acct_1\n")
    assert here.ledger_key == elsewhere.ledger_key  # what is kept of a call outlives a change of its connection
    text = policy(NOWHERE, upstream="stripe")
    labelled = granted(text.replace("billing", "another"), idempotency_key="order-1")
    assert here.ledger_key == labelled.ledger_key  # which is the operator's own name for it
    named = granted(text.replace("name: stripe-1", "name: stripe-9"), account="stripe-9", idempotency_key="order-1")
    other = granted(text.replace("  app:", "  another:"), idempotency_key="order-1")
    assert len({grant.ledger_key for grant in (here, named, other)}) == 3


def test_call_without_a_key_has_one_of_its_own_for_all_its_tries(send: Send, stripe: Stripe) -> None:
    stripe.fail_next("close_after")
    send(asked(stripe.origin, key=None), replace(ADMISSION, owner="first"))
    send(asked(stripe.origin, key=None), replace(ADMISSION, owner="second"))
    first, again, second = (sent["idempotency-key"] for sent in headers(stripe))
    assert first == again == upstream_key("first")
    assert second == upstream_key("second")
    assert stripe.invoices == 2


def test_preview_is_what_is_sent_with_the_key_masked(send: Send, stripe: Stripe) -> None:
    grant = asked(stripe.origin, "customer=cus_1&description=a+b%26c", more="    account: acct_1\n")
    send(grant)
    (call,) = stripe.calls
    would = foreseen(grant)["would_send"]
    assert isinstance(would, dict)
    assert (would["method"], would["url"]) == ("POST", f"{stripe.origin}{call.path}")
    assert would["body"].encode() == call.body
    sent = dict(call.headers)
    named = ("Accept", "Stripe-Version", "Stripe-Account", "Content-Type", "Idempotency-Key")
    assert would["headers"] == {"Authorization": "Bearer (hidden)"} | {name: sent[name] for name in named}
    for key in (UPSTREAM_KEY, KEY, "order-1"):
        assert key not in json.dumps(foreseen(grant))


def test_preview_of_a_call_without_a_key_says_that_it_will_have_one_of_its_own() -> None:
    would = foreseen(asked(key=None))["would_send"]
    assert isinstance(would, dict)
    assert would["headers"]["Idempotency-Key"] == OF_THIS_CALL


# ---------------------------------------------------------------- when it is tried again


@pytest.mark.parametrize("first", [LOST, UNSENT, answered(409), answered(500), answered(503), Received(502, b"<")])
def test_lost_unsent_and_failed_calls_are_tried_again(told: Told, first: Received | Exception) -> None:
    reply, slept = told(Script(first, OK))
    assert reply.outcome is Outcome.SUCCEEDED
    assert slept == [PAUSES[0]]


@pytest.mark.parametrize("status", [201, 204, 301, 302, 400, 402, 404, 405, 408, 418, 422, 424, 429])
def test_no_other_answer_is_tried_again(told: Told, status: int) -> None:
    told(Script(Received(status, INVOICE if status < 300 else b"")))


@pytest.mark.parametrize("status", [302, 409, 424, 429, 500, 503])
def test_word_of_stripe_decides_whatever_the_status(told: Told, status: int) -> None:
    reply, _ = told(Script(answered(status, again=True), OK))
    assert reply.outcome is Outcome.SUCCEEDED
    told(Script(answered(status, again=False)))


def test_success_is_never_sent_again_whatever_the_word(told: Told) -> None:
    """What came of the second would be told in the place of the invoice."""
    reply, _ = told(Script(replace(OK, headers=said(again=True))))
    assert reply.outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("status", [400, 402, 404])
@pytest.mark.parametrize(("kind", "outcome"), [("card_error", Outcome.FREED), ("api_error", Outcome.REJECTED)])
def test_refusal_is_never_sent_again_whatever_the_word(told: Told, status: int, kind: str, outcome: Outcome) -> None:
    reply, _ = told(Script(answered(status, again=True, type=kind)))
    assert reply.outcome is outcome


def test_pauses_grow_and_end(told: Told) -> None:
    reply, slept = told(Script(LOST, LOST, LOST))
    assert slept == list(PAUSES) == sorted(PAUSES)
    assert (reply.outcome, type(reply.refusal)) == (Outcome.UNKNOWN, OutcomePending)


def test_all_tries_share_one_deadline(told: Told) -> None:
    script = Script(LOST, LOST, LOST, seconds=7)
    told(script)
    assert script.given == pytest.approx([25, 25 - 7 - PAUSES[0], 25 - 14 - sum(PAUSES)])


@pytest.mark.parametrize("left", [PAUSES[0] + LEAST_SECONDS - 0.01, PAUSES[0], 0.0, -1.0])
def test_try_that_there_is_no_time_for_is_not_made(told: Told, left: float) -> None:
    reply, slept = told(Script(LOST, seconds=25 - left))
    assert (reply.outcome, slept) == (Outcome.UNKNOWN, [])


def test_try_that_there_is_just_time_for_is_made(told: Told) -> None:
    script = Script(LOST, OK, seconds=25 - PAUSES[0] - LEAST_SECONDS)
    told(script)
    assert script.given[1] == pytest.approx(LEAST_SECONDS)


def test_call_that_never_got_out_is_released_and_not_counted(told: Told) -> None:
    reply, _ = told(Script(UNSENT, UNSENT, UNSENT))
    assert (reply.outcome, type(reply.refusal), reply.reached) == (Outcome.RELEASED, UpstreamUnreachable, False)


# ---------------------------------------------------------------- in doubt

NOTHING = [
    (answered(429, wait=7), False),
    (answered(401), True),
    (answered(403), True),
    (UNSENT, False),
]


@pytest.mark.parametrize(("then", "alarms"), NOTHING, ids=["429", "401", "403", "unsent"])
@pytest.mark.parametrize("key", ["order-1", None], ids=["keyed", "unkeyed"])
def test_try_that_creates_nothing_says_nothing_of_one_that_was_lost(
    told: Told, then: Received | Exception, key: str | None, *, alarms: bool
) -> None:
    script = Script(LOST, then) if isinstance(then, Received) else Script(LOST, then, then)
    reply, _ = told(script, asked(key=key))
    assert (reply.outcome, type(reply.refusal)) == (Outcome.UNKNOWN, OutcomePending if key else OutcomeUnknown)
    assert reply.reached
    assert (reply.alarm is not None) == alarms


@pytest.mark.parametrize(("then", "alarms"), NOTHING, ids=["429", "401", "403", "unsent"])
def test_try_that_creates_nothing_says_nothing_of_an_earlier_call(
    told: Told, then: Received | Exception, *, alarms: bool
) -> None:
    script = Script(then) if isinstance(then, Received) else Script(then, then, then)
    reply, _ = told(script, held=QUIET)
    assert (reply.outcome, type(reply.refusal)) == (Outcome.UNKNOWN, OutcomePending)
    assert reply.reached == isinstance(then, Received)  # this call counts only where it went out
    assert (reply.alarm is not None) == alarms


REFUSED = answered(400, type="invalid_request_error", code="resource_missing")
DECLINED = answered(402, type="card_error", code="card_declined")
#: What Stripe keeps under the key.
KEPT = {"idempotent-replayed": "true"}


@pytest.mark.parametrize("held", [DOUBT, QUIET], ids=["may still arrive", "can no longer arrive"])
def test_invoice_that_lies_under_the_key_settles_a_doubt(told: Told, held: Mapping[str, object]) -> None:
    assert told(Script(LOST, OK), held=held)[0].outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("then", [REFUSED, DECLINED])
def test_refusal_settles_a_doubt_only_once_nothing_can_arrive_any_more(told: Told, then: Received) -> None:
    assert told(Script(then), held=QUIET)[0].outcome is Outcome.FREED
    for script, held in ((Script(then), DOUBT), (Script(LOST, then), QUIET), (Script(LOST, then), {})):
        reply, _ = told(script, held=held)
        assert (reply.outcome, type(reply.refusal)) == (Outcome.UNKNOWN, OutcomePending)
        assert reply.refusal is not None
        assert reply.refusal.retry_after == LEASE


@pytest.mark.parametrize("held", [DOUBT, QUIET, {"refused": True}, {}], ids=["doubt", "quiet", "refused", "fresh"])
@pytest.mark.parametrize("kept", [REFUSED, DECLINED])
def test_refusal_that_is_kept_closes_its_key_and_the_call_goes_on_with_the_next(
    told: Told, kept: Received, held: Mapping[str, object]
) -> None:
    grant = asked()
    script = Script(replace(kept, headers=KEPT), OK)
    reply, slept = told(script, grant, held=held)
    assert (reply.outcome, reply.generation, slept) == (Outcome.SUCCEEDED, 1, [0.0])
    assert reply.doubt == held.get("doubt", False)  # a call that was killed may have come as far
    assert grant.ledger_key is not None
    sent = [request.headers["Idempotency-Key"] for request in script.requests]
    assert sent == [upstream_key(grant.ledger_key, 0), upstream_key(grant.ledger_key, 1)]


def test_key_known_with_the_form_that_was_refused_is_passed_too(told: Told) -> None:
    other = answered(400, type="idempotency_error")
    reply, _ = told(Script(other, OK), held={"refused": True})
    assert (reply.outcome, reply.generation) == (Outcome.SUCCEEDED, 1)


def test_no_more_than_five_keys_are_passed_in_one_call(told: Told) -> None:
    closed = replace(REFUSED, headers=KEPT)
    reply, _ = told(Script(*[closed] * (1 + FURTHER)))
    assert (reply.outcome, reply.generation, FURTHER) == (Outcome.RELEASED, 1 + FURTHER, 5)


@pytest.mark.parametrize("doubt", [False, True])
def test_key_that_stripe_knows_with_another_form_is_unknown(told: Told, *, doubt: bool) -> None:
    script = Script(answered(400, type="idempotency_error"))
    reply, _ = told(script, held={"doubt": doubt})
    assert (reply.outcome, type(reply.refusal)) == (Outcome.UNKNOWN, OutcomePending)


def test_key_that_came_with_another_form_before_is_unknown_at_the_sandbox_too(send: Send, stripe: Stripe) -> None:
    send(asked(stripe.origin, "customer=cus_1"))
    reply = send(asked(stripe.origin, "customer=cus_2"))
    assert (reply.outcome, reply.upstream_status, stripe.invoices) == (Outcome.UNKNOWN, 400, 1)


# ---------------------------------------------------------------- a key of ours that is refused


def test_rotated_key_is_fetched_and_the_call_sent_once_more(
    send: Send, stripe: Stripe, secret_manager: Sandbox
) -> None:
    send(asked(stripe.origin, key=None))
    stripe.forget()
    stripe.accept(ROTATED)
    secret_manager.add(SECRET, ROTATED.encode())
    reply = send(asked(stripe.origin))
    assert (reply.outcome, reply.attempts, reply.alarm) == (Outcome.SUCCEEDED, 2, None)
    first, second = headers(stripe)
    assert (first["authorization"], second["authorization"]) == (f"Bearer {UPSTREAM_KEY}", f"Bearer {ROTATED}")
    assert first["idempotency-key"] == second["idempotency-key"]
    assert stripe.invoices == 1


def test_rotation_takes_nothing_of_the_other_tries(told: Told, secret_manager: Sandbox, secrets: Secrets) -> None:
    secrets.access(asked(), time.monotonic() + 20)
    secret_manager.add(SECRET, ROTATED.encode())
    script = Script(answered(401), LOST, LOST, OK)
    reply, slept = told(script)
    assert (reply.outcome, slept) == (Outcome.SUCCEEDED, list(PAUSES))
    assert {request.key for request in script.requests} == {"Authorization: Bearer "}
    assert script.keys == [UPSTREAM_KEY] + [ROTATED] * 3


def test_key_that_is_refused_after_a_loss_is_fetched_afresh_too(
    told: Told, secret_manager: Sandbox, secrets: Secrets
) -> None:
    secrets.access(asked(), time.monotonic() + 20)
    secret_manager.add(SECRET, ROTATED.encode())
    assert told(Script(LOST, answered(401), OK))[0].outcome is Outcome.SUCCEEDED


def test_neither_the_old_nor_the_fresh_key_comes_back(told: Told, secret_manager: Sandbox, secrets: Secrets) -> None:
    old, fresh = "req_live0123456789", "in_live0123456789"
    secret_manager.add(SECRET, old.encode())
    secrets.access(asked(), time.monotonic() + 20)
    secret_manager.add(SECRET, fresh.encode())
    for leaked in (old, fresh):
        body = encode({**EXAMPLE, "id": leaked, "description": f"by {old}", "metadata": {fresh: old}})
        loud = Received(200, body, {"request-id": leaked})
        reply, _ = told(Script(answered(401), loud) if leaked == old else Script(loud))
        assert (reply.outcome, reply.created, reply.upstream_request) == (Outcome.SUCCEEDED, None, None)
        assert leaked not in repr(reply)
        if leaked == old:  # while it changed, both were in hand
            assert fresh not in repr(reply)


def test_key_in_an_answer_is_redacted_and_in_no_error_passed_on(send: Send, stripe: Stripe) -> None:
    for number, fault in enumerate(("leak_key", "echo_key", "error_401", "close_after")):
        stripe.fail_next(fault)
        reply = send(asked(stripe.origin, key=f"order-{number}"))
        problem = reply.refusal.problem("id") if reply.refusal else {}
        assert UPSTREAM_KEY not in repr((reply, problem, reply.refusal and reply.refusal.note))


# ---------------------------------------------------------------- the answer to another call


@pytest.mark.parametrize("status", [200, 400, 401, 402, 403, 404, 409, 429, 500])
@pytest.mark.parametrize("again", [True, False, None])
@pytest.mark.parametrize("key", ["order-1", None])
def test_answer_under_another_key_says_nothing_of_this_call(
    told: Told, status: int, key: str | None, *, again: bool | None
) -> None:
    """A refusal neither: the other call was refused, and this one may have raised an invoice."""
    grant = asked(key=key)
    other = {
        "idempotency-key": upstream_key("another"),
        "request-id": "req_1",
        **({} if again is None else said(again)),
    }
    script = Script(*[Received(status, INVOICE if status == 200 else b"{}", other)] * 3)
    reply, _ = told(script, grant)
    assert (reply.outcome, type(reply.refusal)) == (Outcome.UNKNOWN, OutcomePending if key else OutcomeUnknown)
    assert reply.alarm == f"the upstream answered {status} to another call: not the Idempotency-Key that was sent"
    assert (reply.answer, reply.created, reply.upstream_request) == (None, None, "req_1")
    assert script.hung_up == [1, 2, 3]


def test_answer_under_the_key_that_was_sent_is_this_calls(told: Told) -> None:
    grant = asked()
    assert grant.ledger_key is not None
    own = replace(OK, headers={"idempotency-key": upstream_key(grant.ledger_key)})
    script = Script(own)
    reply, _ = told(script, grant)
    assert (reply.outcome, reply.alarm, script.hung_up) == (Outcome.SUCCEEDED, None, [])
    assert b"idempotency-key" in script.requests[0].heard


def test_own_answer_of_the_second_try_is_told_and_the_alarm_stays(told: Told) -> None:
    stray = Received(200, encode({**EXAMPLE, "customer": "cus_2"}))
    script = Script(stray, OK)
    reply, _ = told(script)
    assert (reply.outcome, reply.stray, script.hung_up) == (Outcome.SUCCEEDED, False, [1])
    assert reply.alarm == "the upstream answered 200 to another call: not the customer that was sent"


def test_stray_answer_leaves_the_call_in_doubt(told: Told) -> None:
    stray = Received(200, encode({**EXAMPLE, "customer": "cus_2"}))
    reply, _ = told(Script(stray, answered(429, wait=7)))
    assert (reply.outcome, type(reply.refusal)) == (Outcome.UNKNOWN, OutcomePending)
    assert reply.alarm is not None


def test_key_that_was_refused_to_another_call_is_not_refused_to_this_one(
    told: Told, secret_manager: Sandbox, secrets: Secrets
) -> None:
    """It is not read again, and this call stays in doubt."""
    secrets.access(asked(), time.monotonic() + 20)
    secret_manager.add(SECRET, ROTATED.encode())
    script = Script(Received(401, b"{}", {"idempotency-key": "any"}), answered(429, wait=7))
    reply, _ = told(script)
    assert (reply.outcome, script.keys) == (Outcome.UNKNOWN, [UPSTREAM_KEY] * 2)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (Received(200, encode({**EXAMPLE, "id": "in_2"})), "id"),
        (Received(200, INVOICE, {"idempotency-key": "any"}), "Idempotency-Key"),
        (Received(404, b"{}", {"idempotency-key": "any"}), "Idempotency-Key"),
    ],
    ids=["another id", "a key", "a refusal with a key"],
)
def test_look_that_gets_the_answer_to_another_call_is_tried_again_and_then_failed(
    told: Told, answer: Received, what: str
) -> None:
    script = Script(answer, answer, answer)
    reply, _ = told(script, looking())
    assert (reply.outcome, type(reply.refusal), reply.answer) == (Outcome.RELEASED, UpstreamFailed, None)
    assert reply.alarm is not None
    assert f"not the {what} that was sent" in reply.alarm
    assert script.hung_up == [1, 2, 3]
    assert told(Script(answer, OK), looking())[0].outcome is Outcome.SUCCEEDED


def test_stray_answer_drops_the_connection_it_came_by(send: Send, stripe: Stripe) -> None:
    stripe.fail_next("other_customer")
    assert send(asked(stripe.origin)).attempts == 2
    assert send(asked(stripe.origin, key="order-2")).attempts == 1
    assert [call.connection for call in stripe.calls] == [1, 2, 2]


# ---------------------------------------------------------------- a call that only looks


def test_look_goes_out_as_a_get_without_a_key_of_its_own(secrets: Secrets) -> None:
    script = Script(OK)
    grant = looking(query="expand[0]=customer&expand[1]=charge")
    secret = secrets.access(grant, time.monotonic() + 20)
    sender = Upstreams(script, secrets, script.clock, script.clock.tick)  # type: ignore[arg-type]  # its one method
    reply = sender.send(grant, ADMISSION, secret, script.clock() + 25)
    assert (reply.outcome, reply.created) == (Outcome.SUCCEEDED, None)
    (request,) = script.requests
    assert (request.method, request.body) == ("GET", None)
    assert request.url == f"{NOWHERE}/v1/invoices/{EXAMPLE['id']}?expand%5B0%5D=customer&expand%5B1%5D=charge"
    assert (request.key, script.keys) == ("Authorization: Bearer ", [UPSTREAM_KEY])
    assert request.headers == {"Accept": "application/json", "Stripe-Version": VERSION}
    would = foreseen(grant)["would_send"]
    assert isinstance(would, dict)
    assert (would["method"], would["url"], would["body"]) == ("GET", request.url, "")
    assert "Idempotency-Key" not in would["headers"]


@pytest.mark.parametrize("failure", [LOST, answered(500), answered(409)])
def test_look_that_is_lost_is_tried_again_and_then_failed(told: Told, failure: Received | Exception) -> None:
    assert told(Script(failure, failure, OK), looking())[0].outcome is Outcome.SUCCEEDED
    reply, _ = told(Script(failure, failure, failure), looking())
    assert (reply.outcome, type(reply.refusal)) == (Outcome.RELEASED, UpstreamFailed)
    assert reply.refusal is not None
    assert (reply.refusal.status, reply.refusal.retry_after) == (502, 5)


@pytest.mark.parametrize(
    ("answer", "outcome", "refusal"),
    [
        (answered(404, code="resource_missing", param="invoice"), Outcome.REJECTED, UpstreamRejected),
        (REFUSED, Outcome.FREED, UpstreamRejected),
        (answered(401), Outcome.RELEASED, UpstreamKeyRefused),
        (answered(429), Outcome.RELEASED, UpstreamBusy),
        (Received(200, b"<html>"), Outcome.RELEASED, UpstreamFailed),
        (Received(302, b""), Outcome.RELEASED, UpstreamFailed),
    ],
)
def test_look_is_judged_as_what_it_is(told: Told, answer: Received, outcome: Outcome, refusal: type[Refusal]) -> None:
    reply, _ = told(Script(answer), looking())
    assert (reply.outcome, type(reply.refusal)) == (outcome, refusal)
    assert reply.refusal is not None
    assert "Nothing was created" not in reply.refusal.detail


def test_look_that_meets_a_wrong_origin_is_told_so_and_alarms(told: Told) -> None:
    reply, _ = told(Script(Received(404, b"<html>")), looking())
    assert (reply.outcome, type(reply.refusal), reply.alarm is None) == (Outcome.RELEASED, UpstreamMisrouted, False)


def test_look_after_a_loss_is_in_no_doubt(told: Told) -> None:
    reply, _ = told(Script(LOST, answered(429)), looking())
    assert (reply.outcome, type(reply.refusal)) == (Outcome.RELEASED, UpstreamBusy)
