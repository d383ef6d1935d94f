"""What comes of a call, for everything this upstream can do to it."""

from __future__ import annotations

import base64
import json
import socket
import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from gateway.secrets import Mounted, SecretManager, Secrets
from gateway.upstreams.sending import ALARM_SECONDS, Upstreams
from gateway.upstreams.transport import LostError, Received, Transport
from policies.model import Admission, Outcome, Step
from policies.refusals import (
    OutcomeUnknown,
    Refusal,
    UpstreamBusy,
    UpstreamKeyRefused,
    UpstreamMisrouted,
    UpstreamRejected,
    UpstreamUnreachable,
)
from policies.upstreams import UPSTREAMS
from sandbox.__main__ import SECRET, UPSTREAM_KEY
from sandbox.appgregator import FAULTS
from tests.conftest import KEY, Clock, policy
from tests.gateway.conftest import foreseen, granted
from tests.wire import answered, talking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policies.concealed import Concealed
    from policies.dialect import Outgoing
    from policies.outcomes import Reply
    from sandbox.appgregator import Appgregator as Upstream
    from sandbox.secret_manager import SecretManager as Sandbox

    Send = Callable[..., Reply]

ROTATED = "another-upstream-key"
ADMISSION = Admission((), "owner", 0.0)


@pytest.fixture
def secrets(secret_manager: Sandbox) -> Iterator[Secrets]:
    manager = SecretManager(secret_manager.address)
    yield Secrets(manager=manager, mounted=Mounted(), clock=time.monotonic)
    manager.close()


@pytest.fixture
def send(upstream: Upstream, secrets: Secrets) -> Send:
    sender = Upstreams(Transport(), secrets, time.monotonic, time.sleep)

    def send(body: str = "customer=cus_1", *, seconds: float = 20, origin: str | None = None) -> Reply:
        grant = granted(policy(origin or upstream.origin), body)
        secret = secrets.access(grant, time.monotonic() + 20)
        return sender.send(grant, ADMISSION, secret, time.monotonic() + seconds)

    return send


def test_success_holds_the_granted_fields_and_the_id(send: Send, upstream: Upstream) -> None:
    reply = send("customer=cus_1&metadata[order_id]=7")
    assert (reply.outcome, reply.refusal, reply.reached, reply.attempts) == (Outcome.SUCCEEDED, None, True, 1)
    assert reply.answer is not None
    assert reply.created == reply.answer["id"]
    assert reply.upstream_status == 200
    assert reply.alarm is None
    (received,) = upstream.calls
    assert received.body == b"customer=cus_1&metadata%5Border_id%5D=7"
    assert (received.path, received.query) == ("/stripe/invoices/", "name=ft-4&connection_name=stripe-1")


LOST = (Outcome.UNKNOWN, OutcomeUnknown, 424)
#: By fault: the outcome, the refusal and its status, and what the upstream answered, None where it was lost.
ROWS: dict[str, tuple[tuple[Outcome, type[Refusal] | None, int], int | None]] = {
    **dict.fromkeys(("gzip", "set_cookie", "expanded", "slow", "leak_key"), ((Outcome.SUCCEEDED, None, 200), 200)),
    **dict.fromkeys(("twice", "other_mode"), ((Outcome.SUCCEEDED, None, 200), 200)),  # the connection here says no mode
    "other_customer": (LOST, 200),
    # It forwards Stripe's own words, which prove that nothing was created.
    **dict.fromkeys(("error_400", "echo_key", "action_blocked"), ((Outcome.FREED, UpstreamRejected, 400), 400)),
    "error_402": ((Outcome.FREED, UpstreamRejected, 402), 402),
    "error_404": ((Outcome.FREED, UpstreamRejected, 404), 404),
    "approval": (LOST, 400),  # Stripe may carry it out, and cannot be asked from here
    "html_404": ((Outcome.RELEASED, UpstreamMisrouted, 502), 404),
    "redirect_307": ((Outcome.RELEASED, UpstreamMisrouted, 502), 307),
    "error_401": ((Outcome.RELEASED, UpstreamKeyRefused, 503), 401),
    "error_403": ((Outcome.RELEASED, UpstreamKeyRefused, 503), 403),
    "error_429": ((Outcome.RELEASED, UpstreamBusy, 503), 429),
    "error_409": (LOST, 409),
    "error_500": (LOST, 500),
    "error_503": (LOST, 503),
    "html_502": (LOST, 502),
    "redirect_302": (LOST, 302),
    **dict.fromkeys(("html_200", "not_json", "nan", "deep", "no_id", "array", "empty", "wrong_object"), (LOST, 200)),
    **dict.fromkeys(("close_before", "close_after", "reset_after", "truncated"), (LOST, None)),
    **dict.fromkeys(("oversize", "gzip_bomb", "huge_header"), (LOST, None)),
    **dict.fromkeys(("hang", "trickle"), (LOST, None)),
}


def test_table_has_every_fault_of_the_sandbox() -> None:
    assert ROWS.keys() == FAULTS


@pytest.mark.parametrize("fault", sorted(ROWS))
def test_answer_is_judged_by_the_failure_table(send: Send, upstream: Upstream, fault: str) -> None:
    (outcome, refusal, status), upstream_status = ROWS[fault]
    upstream.delay = 0.1
    upstream.fail_next(fault)
    reply = send(seconds=2 if fault in {"hang", "trickle"} else 20)
    assert reply.outcome is outcome
    assert type(reply.refusal) is (refusal or type(None))
    assert (reply.refusal.status if reply.refusal else 200) == status
    assert reply.upstream_status == upstream_status
    assert reply.reached
    assert reply.attempts == 1
    assert (reply.answer is None) == (outcome is not Outcome.SUCCEEDED)
    assert len(upstream.calls) == (fault != "close_before")
    assert (reply.alarm is not None) == (
        refusal in {UpstreamKeyRefused, UpstreamMisrouted} or fault == "other_customer"
    )


def test_upstream_that_cannot_be_reached_is_released_and_not_counted(send: Send) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        reply = send(origin=f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert (reply.outcome, type(reply.refusal)) == (Outcome.RELEASED, UpstreamUnreachable)
    assert not reply.reached
    assert reply.refusal is not None
    assert (reply.refusal.status, reply.refusal.retry_after) == (503, 5)


def test_call_without_time_left_is_not_sent(send: Send, upstream: Upstream) -> None:
    reply = send(seconds=-1)
    assert (reply.outcome, reply.reached) == (Outcome.RELEASED, False)
    assert upstream.connections == 0


def test_busy_upstream_says_when_to_come_back(send: Send, upstream: Upstream) -> None:
    upstream.fail_next("error_429")
    refusal = send().refusal
    assert refusal is not None
    assert refusal.headers == {"Retry-After": "7"}


def test_connection_that_is_not_stored_upstream_frees_the_key(send: Send, upstream: Upstream) -> None:
    upstream._accounts = frozenset()
    reply = send()
    assert (reply.outcome, type(reply.refusal)) == (Outcome.FREED, UpstreamRejected)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (b"400 Bad Request", b"StripeConnectionError"),
        (b"402 Payment Required", b'{"error": {"type": "api_error"}}'),
        (b"404 Not Found", b'{"message": "no"}'),
        (b"422 Unprocessable Content", b'["no"]'),
    ],
)
def test_refusal_in_other_words_than_stripes_is_kept(send: Send, status: bytes, body: bytes) -> None:
    with talking(answered(body, status)) as (origin, requests):
        reply = send(origin=origin)
    assert (reply.outcome, type(reply.refusal), reply.attempts) == (Outcome.REJECTED, UpstreamRejected, 1)
    assert len(requests) == 1


def test_wrong_origin_raises_one_alarm_in_ten_minutes(upstream: Upstream, secrets: Secrets) -> None:
    clock = Clock()
    sender = Upstreams(Transport(), secrets, clock, clock.tick)
    grant = granted(policy(upstream.origin))
    secret = secrets.access(grant, time.monotonic() + 20)
    alarms = []
    for wait in (0, 1, ALARM_SECONDS - 2, 1, 1):
        clock.tick(wait)
        upstream.fail_next("html_404")
        alarms.append(sender.send(grant, ADMISSION, secret, clock() + 20).alarm is not None)
    assert alarms == [True, False, False, True, False]


# ---------------------------------------------------------------- a key that is refused


def test_rotated_key_is_fetched_and_the_call_sent_once_more(
    send: Send, upstream: Upstream, secret_manager: Sandbox
) -> None:
    assert send().outcome is Outcome.SUCCEEDED  # the old key is in hand now
    upstream.forget()
    upstream.accept(ROTATED)
    secret_manager.add(SECRET, ROTATED.encode())
    reply = send()
    assert (reply.outcome, reply.attempts, reply.alarm) == (Outcome.SUCCEEDED, 2, None)
    assert [dict(received.headers)["x-api-key"] for received in upstream.calls] == [UPSTREAM_KEY, ROTATED]
    assert upstream.invoices == 1
    assert send().attempts == 1


def test_key_that_may_not_do_it_any_more_is_fetched_afresh_too(
    send: Send, upstream: Upstream, secret_manager: Sandbox
) -> None:
    send()
    upstream.accept(UPSTREAM_KEY, ROTATED)
    secret_manager.add(SECRET, ROTATED.encode())
    upstream.fail_next("error_403")
    reply = send()
    assert (reply.outcome, reply.attempts) == (Outcome.SUCCEEDED, 2)


def test_unchanged_key_is_sent_once_and_alarms(send: Send, upstream: Upstream, secret_manager: Sandbox) -> None:
    upstream.accept("another-key-altogether")
    reply = send()
    assert (reply.outcome, type(reply.refusal), reply.attempts) == (Outcome.RELEASED, UpstreamKeyRefused, 1)
    assert reply.alarm == "the upstream refuses the key of this connection"
    assert len(upstream.calls) == 1


def test_key_that_is_refused_fresh_too_is_sent_twice_and_never_a_third_time(
    send: Send, upstream: Upstream, secret_manager: Sandbox
) -> None:
    assert send().outcome is Outcome.SUCCEEDED
    upstream.forget()
    upstream.accept("another-key-altogether")
    secret_manager.add(SECRET, ROTATED.encode())
    reply = send()
    assert (reply.outcome, type(reply.refusal), reply.attempts) == (Outcome.RELEASED, UpstreamKeyRefused, 2)
    assert reply.alarm is not None
    assert len(upstream.calls) == 2


def test_second_attempt_that_is_lost_is_unknown(send: Send, upstream: Upstream, secret_manager: Sandbox) -> None:
    send()
    upstream.forget()
    upstream.accept(ROTATED)
    secret_manager.add(SECRET, ROTATED.encode())
    upstream.fail_next("close_after")
    reply = send()
    assert (reply.outcome, reply.attempts, reply.reached) == (Outcome.UNKNOWN, 2, True)
    assert upstream.invoices == 1


def test_second_attempt_that_is_not_sent_still_counts_as_reached(secrets: Secrets, secret_manager: Sandbox) -> None:
    """The first attempt was answered by the upstream, whatever became of the second."""

    class Answering:
        """A transport whose upstream answers the first call 401 and has gone away by the second."""

        def __init__(self) -> None:
            self.sent = 0

        def send(self, outgoing: Outgoing, key: Concealed[str], seconds: float) -> Received:
            self.sent += 1
            if self.sent == 1:
                return Received(401, b"")
            return Transport().send(replace(outgoing, url="http://127.0.0.1:1/"), key, seconds)

    grant = granted()
    secret = secrets.access(grant, time.monotonic() + 20)
    secret_manager.add(SECRET, ROTATED.encode())
    transport = Answering()
    sender = Upstreams(transport, secrets, time.monotonic, time.sleep)  # type: ignore[arg-type]  # its one method
    reply = sender.send(grant, ADMISSION, secret, time.monotonic() + 20)
    assert (transport.sent, reply.outcome, reply.attempts) == (2, Outcome.RELEASED, 2)
    assert reply.reached


def test_both_attempts_share_one_deadline(secrets: Secrets, secret_manager: Sandbox) -> None:
    clock = Clock()

    class Slow:
        """A transport that takes ten seconds of the injected clock, and refuses the key."""

        def __init__(self) -> None:
            self.given: list[float] = []

        def send(self, outgoing: Outgoing, key: Concealed[str], seconds: float) -> Received:
            self.given.append(seconds)
            clock.tick(10)
            if len(self.given) == 2:
                raise LostError("late")
            return Received(401, b"")

    grant = granted()
    secret = secrets.access(grant, time.monotonic() + 20)
    secret_manager.add(SECRET, ROTATED.encode())
    transport = Slow()
    sender = Upstreams(transport, secrets, clock, clock.tick)  # type: ignore[arg-type]  # a transport's one method
    reply = sender.send(grant, ADMISSION, secret, clock() + 25)
    assert transport.given == [25, 15]
    assert (reply.outcome, type(reply.refusal)) == (Outcome.UNKNOWN, OutcomeUnknown)


# ---------------------------------------------------------------- the key never comes back


def encodings(key: str) -> tuple[str, ...]:
    raw = key.encode()
    return key, key[::-1], raw.hex(), base64.b64encode(raw).decode().rstrip("=")


def test_key_in_an_answer_is_redacted_wherever_it_stands(send: Send, upstream: Upstream) -> None:
    upstream.fail_next("leak_key")
    reply = send("customer=cus_1&description=mine")
    assert reply.answer is not None
    told = json.dumps(reply.answer)
    for encoding in encodings(UPSTREAM_KEY):
        assert encoding not in told
    assert reply.answer["description"] == "[redacted]"
    assert reply.answer["number"] == "[redacted]"
    assert reply.answer["hosted_invoice_url"] == "[redacted]"
    assert reply.answer["customer"] == "cus_1"


def test_key_in_an_error_never_passes(send: Send, upstream: Upstream) -> None:
    upstream.fail_next("echo_key")
    refusal = send().refusal
    assert refusal is not None
    told = json.dumps(refusal.problem("id")) + str(refusal.note) + repr(refusal)
    for encoding in encodings(UPSTREAM_KEY):
        assert encoding not in told
    assert "Invalid API Key" not in told


def test_key_as_an_id_stays_out_of_the_record(secrets: Secrets, secret_manager: Sandbox) -> None:
    key = "in_live0123456789"
    body = json.dumps({"object": "invoice", "id": key}).encode()

    class Echoing:
        def send(self, outgoing: Outgoing, key: Concealed[str], seconds: float) -> Received:
            return Received(200, body)

    secret_manager.add(SECRET, key.encode())
    grant = granted()
    secret = secrets.access(grant, time.monotonic() + 20)
    sender = Upstreams(Echoing(), secrets, time.monotonic, time.sleep)  # type: ignore[arg-type]  # its one method
    reply = sender.send(grant, ADMISSION, secret, time.monotonic() + 20)
    assert (reply.outcome, reply.created) == (Outcome.SUCCEEDED, None)
    assert key not in json.dumps(reply.answer)


def test_expanded_object_is_answered_as_null(send: Send, upstream: Upstream) -> None:
    upstream.fail_next("expanded")
    reply = send()
    assert reply.answer is not None
    assert reply.answer["customer"] is None
    assert "ecret" not in json.dumps(reply.answer)


def test_key_is_in_no_repr_of_a_reply(send: Send, upstream: Upstream) -> None:
    for fault in ("leak_key", "echo_key", "error_401", "close_after"):
        upstream.fail_next(fault)
        assert UPSTREAM_KEY not in repr(send())


# ---------------------------------------------------------------- what would be sent


def test_preview_is_what_is_sent_with_the_key_masked(send: Send, upstream: Upstream) -> None:
    grant = granted(policy(upstream.origin), "customer=cus_1&description=a+b%26c")
    send("customer=cus_1&description=a+b%26c")
    (received,) = upstream.calls
    would = foreseen(grant)["would_send"]
    assert isinstance(would, dict)
    assert would["url"] == f"{upstream.origin}{received.path}?{received.query}"
    assert would["body"].encode() == received.body
    sent = dict(received.headers)
    assert would["headers"] == {"x-api-key": "(hidden)"} | {name: sent[name] for name in ("Content-Type", "Accept")}
    assert UPSTREAM_KEY not in json.dumps(foreseen(grant))
    assert KEY not in json.dumps(foreseen(grant))


def test_address_is_made_of_the_policy_alone() -> None:
    grant = granted(policy("https://us-central1-appgregator.cloudfunctions.net"))
    assert (
        UPSTREAMS["appgregator"].request(grant, Step("key")).url
        == "https://us-central1-appgregator.cloudfunctions.net/stripe/invoices/?name=ft-4&connection_name=stripe-1"
    )
