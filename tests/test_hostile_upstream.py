"""The upstream misbehaves: never followed, never passed on, bounded in time and memory, never sent twice."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import pytest

from gateway.upstreams.transport import MAX_ANSWER
from policies.operations.invoices_create import FIELDS
from sandbox import faults, invoice
from sandbox.__main__ import SECRET, UPSTREAM_KEY
from sandbox.appgregator import FAULTS
from tests.conftest import CUSTOMER, KEY, OTHER_KEY, TARGET, policy
from tests.problems import as_replayed, refused
from tests.waiting import until
from tests.wire import answered, talking

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from sandbox.secret_manager import SecretManager
    from tests.conftest import Function, Server
    from tests.problems import Answer

#: What a call may take that gets no answer, in the place of 25 s.
SECONDS = 2.0
UNANSWERED = {"trickle", "slow", "hang"}
#: A key in which every encoding differs from every other.
HOSTILE_KEY = "sk/live+key=~51N_Ab?c%d&e"


class Case(NamedTuple):
    """What one fault must come to, and what becomes of a second call with the same key."""

    fault: str
    status: int
    reason: str | None = None
    creates: int = 0
    """Invoices that the upstream made of the first call."""
    again: str = "unknown"
    """``replay``, ``unknown``; or sent again: ``fresh`` if it was not carried out, ``freed`` if it was refused."""
    sends: int = 1


UNKNOWN = "outcome-unknown"
CASES = [
    Case("redirect_302", 424, UNKNOWN),
    Case("redirect_307", 502, "upstream-misrouted", again="fresh"),
    Case("html_200", 424, UNKNOWN, creates=1),
    Case("html_404", 502, "upstream-misrouted", again="fresh"),
    Case("html_502", 424, UNKNOWN),
    Case("approval", 424, UNKNOWN),
    Case("action_blocked", 400, "upstream-rejected", again="freed"),
    Case("gzip", 200, creates=1, again="replay"),
    Case("gzip_bomb", 424, UNKNOWN, creates=1),
    Case("trickle", 424, UNKNOWN, creates=1),
    Case("slow", 424, UNKNOWN, creates=1),
    Case("hang", 424, UNKNOWN, creates=1),
    Case("echo_key", 400, "upstream-rejected", again="freed"),
    Case("leak_key", 200, creates=1, again="replay"),
    Case("set_cookie", 200, creates=1, again="replay"),
    Case("error_400", 400, "upstream-rejected", again="freed"),
    Case("error_401", 503, "upstream-key-refused", again="fresh"),
    Case("error_402", 402, "upstream-rejected", again="freed"),
    Case("error_403", 503, "upstream-key-refused", again="fresh"),
    Case("error_404", 404, "upstream-rejected", again="freed"),
    Case("error_409", 424, UNKNOWN),
    Case("error_429", 503, "upstream-busy", again="fresh"),
    Case("error_500", 424, UNKNOWN),
    Case("error_503", 424, UNKNOWN),
    Case("close_before", 424, UNKNOWN, sends=0),
    Case("close_after", 424, UNKNOWN, creates=1),
    Case("reset_after", 424, UNKNOWN, creates=1),
    Case("truncated", 424, UNKNOWN, creates=1),
    Case("oversize", 424, UNKNOWN, creates=1),
    Case("not_json", 424, UNKNOWN, creates=1),
    Case("nan", 424, UNKNOWN, creates=1),
    Case("deep", 424, UNKNOWN, creates=1),
    Case("no_id", 424, UNKNOWN, creates=1),
    Case("array", 424, UNKNOWN, creates=1),
    Case("empty", 424, UNKNOWN, creates=1),
    Case("wrong_object", 424, UNKNOWN, creates=1),
    Case("huge_header", 424, UNKNOWN, creates=1),
    Case("expanded", 200, creates=1, again="replay"),
    Case("other_customer", 424, UNKNOWN, creates=1),
    Case("other_mode", 200, creates=1, again="replay"),  # the connection here says no mode
    Case("twice", 200, creates=1, again="replay"),
]


def test_every_fault_of_the_sandbox_has_its_case() -> None:
    assert {case.fault for case in CASES} == FAULTS


@pytest.fixture
def hostile(
    function: Callable[..., Function],
    upstream: Appgregator,
    secret_manager: SecretManager,
) -> Function:
    """The function with an awkward upstream key, and an upstream that is about to fail."""
    secret_manager.add(SECRET, HOSTILE_KEY.encode())
    upstream.accept(HOSTILE_KEY)
    upstream.delay = 60.0
    faults.bomb()  # made once, and that takes longer than a call may
    response = (
        "id, status, amount_due, customer, description, number, account_name, hosted_invoice_url, metadata, "
        "lines.data.amount, lines.data.id, audit_id"
    )
    return function(policy(upstream.origin, limits="50/minute", response=response))


def assert_no_key(*texts: str, key: str = HOSTILE_KEY) -> None:
    raw = key.encode()
    forms = {key, key[::-1], raw.hex(), quote(key, safe=""), quote(key), quote(quote(key, safe=""))}
    for lead in range(3):
        coded = base64.b64encode(b"\0" * lead + raw).decode()[4 if lead else 0 :].rstrip("=")[:-1]
        forms |= {coded, coded.replace("+", "-").replace("/", "_")}
    for text in texts:
        lowered = text.lower().replace("\\/", "/")
        assert not [form for form in forms if form.lower() in lowered]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_fault_is_answered_recorded_and_remembered(
    hostile: Function, upstream: Appgregator, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    upstream.fail_next(case.fault)
    began, worked = time.monotonic(), time.thread_time()
    with monkeypatch.context() as impatient:
        if case.fault in UNANSWERED:
            impatient.setattr("gateway.record.CALL_SECONDS", SECONDS)
        first = hostile.post(Idempotency_Key="order-1")
    assert time.monotonic() - began < 20  # what is given up later is not given up by these seconds
    assert time.thread_time() - worked < SECONDS

    assert upstream.redirected == 0
    assert upstream.invoices == case.creates
    assert len(upstream.calls) == case.sends
    if case.reason is None:
        assert first.status_code == 200, first.text
    else:
        assert refused(first, case.status, case.reason)["decided_by"] == "upstream"
    intent, outcome = hostile.record.entries()
    assert (intent["kind"], outcome["kind"], outcome["status"]) == ("intent", "outcome", case.status)
    expected = {"unknown": "unknown", "fresh": "released", "freed": "freed", "replay": "succeeded"}
    assert outcome["result"] == expected[case.again]
    if case.again == "unknown" or case.reason == "upstream-misrouted":
        assert hostile.record.lines()[-1]["severity"] == "ALERT"
    assert '"50/minute";r=49;' in first.headers["RateLimit"]
    assert outcome["audit_id"] == intent["audit_id"] == first.headers["Countersign-Audit-Id"]

    second = hostile.post(Idempotency_Key="order-1")
    assert upstream.redirected == 0
    if case.again in {"fresh", "freed"}:
        assert second.status_code == 200
        assert (upstream.invoices, len(upstream.calls)) == (1, case.sends + 1)
    else:
        assert (upstream.invoices, len(upstream.calls)) == (case.creates, case.sends)
    if case.again == "replay":
        assert (second.status_code, second.data) == (first.status_code, as_replayed(first.data))
        assert second.headers["Idempotent-Replayed"] == "true"
    if case.again == "unknown":
        assert "not sent again" in refused(second, 424, UNKNOWN)["detail"]
        assert "Retry-After" not in second.headers
    # Whatever came back, a call that reached the upstream counts.
    left = 47 if case.again in {"fresh", "freed"} else 48
    assert f'"50/minute";r={left};' in hostile.post().headers["RateLimit"]
    for answer in (first, second):
        assert_no_key(answer.text, str(answer.headers), hostile.record.text())
        assert "Set-Cookie" not in answer.headers
        assert "Location" not in answer.headers


@pytest.mark.parametrize("body", ["", "&&"], ids=["nothing", "empty pairs"])
def test_empty_form_is_sent_once_though_the_kept_connection_dies(function: Callable[..., Function], body: str) -> None:
    """libcurl would send it a second time: there is nothing to rewind."""
    with talking(answered(invoice.fresh({}))) as (origin, requests):
        gate = function(policy(origin, parameters="description:\nmetadata[order_id]:"))
        assert gate.post(body="description=a").status_code == 200
        refused(gate.post(body=body), 424, UNKNOWN)
        assert requests == [b"POST description=a", b"POST "]
    assert [(entry["attempts"], entry["result"]) for entry in gate.record.entries("outcome")] == [
        (1, "succeeded"),
        (1, "unknown"),
    ]


@pytest.mark.parametrize("target", [TARGET, TARGET.replace("stripe-1", "stripe-2")], ids=["same caller", "another"])
def test_second_answer_is_not_told_to_the_next_call(hostile: Function, upstream: Appgregator, target: str) -> None:
    """It has arrived by then: whoever calls next gets another connection."""
    upstream.fail_next("twice")
    first = hostile.post(Idempotency_Key="order-1")
    until(lambda: upstream.strays.sent)
    second = hostile.post(target, key=KEY if target == TARGET else OTHER_KEY, Idempotency_Key="order-2")
    assert (first.status_code, second.status_code) == (200, 200)
    assert [call.connection for call in upstream.calls] == [1, 2]


def test_second_answer_that_comes_during_another_customers_call_is_not_told(
    hostile: Function, upstream: Appgregator
) -> None:
    upstream.delay = 0.3
    upstream.strays.held = True
    upstream.fail_next("twice")
    upstream.fail_next("slow")
    first = hostile.post(Idempotency_Key="order-1")
    second = hostile.post(body="customer=cus_2", Idempotency_Key="order-2")
    refused(second, 424, UNKNOWN)
    assert CUSTOMER.partition("=")[2] in first.text
    assert CUSTOMER.partition("=")[2] not in second.text
    outcome = hostile.record.lines()[-1]
    assert (outcome["severity"], outcome["countersign"]["result"]) == ("ALERT", "unknown")
    assert outcome["countersign"]["alarm"] == (
        "the upstream answered 200 to another call: not the customer that was sent"
    )
    third = hostile.post(body="customer=cus_3", Idempotency_Key="order-3")
    assert (third.json or {})["customer"] == "cus_3"
    assert [call.connection for call in upstream.calls] == [1, 1, 2]


def test_second_answer_that_comes_during_a_call_for_the_same_customer_is_known_by_the_stamp(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    text = policy(upstream.origin).replace(
        '        record: ["metadata[order_id]"]', '        stamp: "metadata[countersign]"', 1
    )
    gate = function(text)
    upstream.delay = 0.3
    upstream.strays.held = True
    upstream.fail_next("twice")
    upstream.fail_next("slow")
    assert gate.post(Idempotency_Key="order-1").status_code == 200
    refused(gate.post(Idempotency_Key="order-2"), 424, UNKNOWN)
    assert "not the metadata[countersign] that was sent" in gate.record.entries("outcome")[-1]["alarm"]


def test_words_of_the_upstream_are_not_passed_on(hostile: Function, upstream: Appgregator) -> None:
    for fault in ("echo_key", "error_400", "error_402", "error_404", "error_500", "html_502"):
        upstream.fail_next(fault)
        text = hostile.post().text
        for word in ("Invalid API Key", "do_not_honor", "dashboard.example", "Server Error", "one we know", "doctype"):
            assert word not in text, fault


def test_well_known_error_code_is_told_in_our_words(hostile: Function, upstream: Appgregator) -> None:
    upstream.fail_next("error_402")
    problem = refused(hostile.post(), 402, "upstream-rejected")
    assert problem["upstream_code"] == "card_declined"
    assert problem["detail"] == "The card was declined. Nothing was created."
    upstream.fail_next("error_404")
    problem = refused(hostile.post(), 404, "upstream-rejected")
    assert (problem["upstream_code"], problem["parameter"]) == ("resource_missing", "customer")
    upstream.fail_next("error_400")
    assert "parameter" not in refused(hostile.post(), 400, "upstream-rejected")  # it names one that was not sent


def test_wait_that_the_upstream_asks_for_is_passed_on(hostile: Function, upstream: Appgregator) -> None:
    upstream.fail_next("error_429")
    response = hostile.post()
    refused(response, 503, "upstream-busy")
    assert response.headers["Retry-After"] == "7"


def test_key_that_is_refused_is_tried_once_more_only_where_it_has_changed(
    hostile: Function, upstream: Appgregator, secret_manager: SecretManager
) -> None:
    assert hostile.post().status_code == 200
    upstream.forget()
    upstream.accept("another-key-altogether")
    secret_manager.forget()
    response = hostile.post(Idempotency_Key="order-1")
    refused(response, 503, "upstream-key-refused")
    assert len(upstream.calls) == 1
    assert len(secret_manager.accesses) == 1
    outcome = hostile.record.lines()[-1]
    assert (outcome["severity"], outcome["countersign"]["result"]) == ("ALERT", "released")
    assert "refuses the key" in outcome["countersign"]["alarm"]


def test_cookie_of_one_call_is_not_sent_with_the_next(hostile: Function, upstream: Appgregator) -> None:
    upstream.fail_next("set_cookie")
    hostile.post()
    hostile.post()
    other = hostile.post(TARGET.replace("stripe-1", "stripe-2"), key=OTHER_KEY, Idempotency_Key="a")
    assert other.status_code == 200
    assert not [name for call in upstream.calls for name, _ in call.headers if name.lower() == "cookie"]
    assert "sandbox=" not in hostile.record.text()


def test_leaked_key_is_blotted_out_and_the_rest_is_answered(hostile: Function, upstream: Appgregator) -> None:
    upstream.fail_next("leak_key")
    answer = hostile.post().json
    assert answer is not None
    assert answer["account_name"] == answer["number"] == answer["description"] == "[redacted]"
    assert answer["hosted_invoice_url"] == "[redacted]"
    assert set(answer["metadata"].values()) <= {"[redacted]", "as a name"}
    assert answer["id"].startswith("in_")
    assert answer["amount_due"] == 2000


def test_expanded_object_does_not_widen_the_answer(hostile: Function, upstream: Appgregator) -> None:
    upstream.fail_next("expanded")
    response = hostile.post()
    assert response.json is not None
    assert response.json["customer"] is None
    assert set(response.json["lines"]["data"][0]) == {"amount", "id"}
    for word in ("secret", "expanded@", "+15550100", "internal_cost"):
        assert word not in response.text.lower()


def test_upstream_that_is_not_there_is_safe_to_try_again(hostile: Function, upstream: Appgregator) -> None:
    upstream.stop()
    for _ in range(2):
        response = hostile.post(Idempotency_Key="order-1")
        assert "safe to try again" in refused(response, 503, "upstream-unreachable")["detail"]
        assert response.headers["Retry-After"] == "5"
    upstream.start()
    response = hostile.post(Idempotency_Key="order-1")
    assert response.status_code == 200
    assert "r=49" in response.headers["RateLimit"]  # what was never sent used nothing up
    assert upstream.invoices == 1


def test_proxy_and_netrc_of_the_environment_have_no_effect(
    function: Callable[..., Function], upstream: Appgregator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login canary password canary\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    # A mounted key, since Google's client does obey a proxy, on its own way to Google.
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    gate = function(policy(upstream.origin, secret=f"file:{tmp_path / 'key'}"))
    assert gate.post().status_code == 200
    assert not [value for name, value in upstream.calls[0].headers if name.lower() == "authorization"]


ON_LINUX = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells another process's memory"
)


def worked_seconds(process: int) -> float:
    """Return the seconds on a processor that a process and its children have had."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent, *rest = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if process in {int(stat.parent.name), int(parent)}:
            ticks += int(rest[9]) + int(rest[10])  # in its own code, and in the kernel's
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory(process: int) -> int:
    """Return the largest resident set that a process and its children ever had, in bytes."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:  # it has ended meanwhile
            continue
        mine = re.search(rf"^(Pid|PPid):\t{process}$", text, re.MULTILINE)
        peak = re.search(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)
        total += int(peak[1]) * 1024 if mine and peak else 0
    return total


@ON_LINUX
def test_bombs_cost_little_memory_and_time(server: Callable[..., Server], upstream: Appgregator) -> None:
    running = server()
    answers: list[Answer] = [running.call()]
    before, worked = peak_memory(running.process.pid), worked_seconds(running.process.pid)
    for fault in ("gzip_bomb", "oversize", "deep", "huge_header"):
        answers += [running.call(body=f"customer=cus_fault_{fault}".encode()) for _ in range(3)]
    assert 0 < worked_seconds(running.process.pid) - worked < 6
    assert [answer[0] for answer in answers] == [200] + [424] * 12
    assert before > 10_000_000  # it was measured
    assert peak_memory(running.process.pid) - before < 30_000_000


def invoice_of(**members: bytes) -> bytes:
    """Return an invoice as a hostile upstream writes it: these members are written as they are."""
    plain = invoice.fresh({"customer": CUSTOMER.partition("=")[2], **dict.fromkeys(members, "here")})
    told = {**json.loads(plain), **dict.fromkeys(members, "here")}
    body = json.dumps(told, separators=(",", ":")).encode()
    for name, value in members.items():
        body = body.replace(b'"%b":"here"' % name.encode(), b'"%b":%b' % (name.encode(), value))
    return body


def listed(entry: bytes, times: int) -> bytes:
    return b"[" + b",".join([entry] * times) + b"]"


#: Answers of up to 1 MB, of nothing but entries.
CROWDED = {
    "empty lines": {"lines": b'{"data":' + listed(b"{}", 340_000) + b"}"},
    "numbers for lines": {"lines": b'{"data":' + listed(b"1", 500_000) + b"}"},
    "lists for lines": {"lines": b'{"data":' + listed(b"[]", 340_000) + b"}"},
    "lines of taxes": {"lines": b'{"data":' + listed(b'{"taxes":' + listed(b"{}", 250) + b"}", 250 * 5) + b"}"},
    "as many as may be": {"lines": b'{"data":' + listed(b"{}", 32_000) + b"}"},
    "discounts": {"discounts": listed(b"1", 500_000)},
    "members": {"metadata": b"{" + b",".join(b'"%x":1' % n for n in range(90_000)) + b"}"},
    "half a character beside them": {"lines": b'{"data":' + listed(b"{}", 340_000) + b"}", "footer": b'"\\ud83d"'},
}


@ON_LINUX
def test_answers_of_nothing_but_entries_cost_little_memory(server: Callable[..., Server]) -> None:
    bodies = [invoice_of(), *(invoice_of(**members) for members in CROWDED.values())]
    assert max(map(len, bodies)) <= MAX_ANSWER
    granted = ["id", "discounts", "metadata", "footer", *(path for path in FIELDS if path.startswith("lines.data."))]
    with talking(*map(answered, bodies)) as (origin, _):
        running = server(policy(origin, response=", ".join(granted)))
        assert running.call()[0] == 200
        before = peak_memory(running.process.pid)
        answers = dict(zip(CROWDED, [running.call() for _ in CROWDED], strict=True))
    assert answers.pop("as many as may be")[0] == 200
    assert {name: json.loads(body)["reason"] for name, (_, _, body) in answers.items()} == dict.fromkeys(
        answers, "outcome-unknown"
    )
    assert peak_memory(running.process.pid) - before < 60_000_000


def test_list_that_is_longer_than_any_page_is_null_and_the_invoice_is_told(function: Callable[..., Function]) -> None:
    body = invoice_of(lines=b'{"data":' + listed(b'{"amount":1}', 251) + b"}")
    with talking(answered(body)) as (origin, _):
        answer = function(policy(origin, response="id, lines.data.amount")).post()
    assert answer.status_code == 200
    assert answer.json == {"id": json.loads(body)["id"], "lines": {"data": None}}


def test_answer_of_the_real_server_and_its_streams_hold_no_key(
    server: Callable[..., Server], upstream: Appgregator
) -> None:
    running = server()
    texts = [
        str(running.call(body=f"customer=cus_fault_{fault}".encode()))
        for fault in ("echo_key", "leak_key", "set_cookie", "error_401")
    ]
    running.stop()
    texts += [running.errors.read_text(), running.record.text()]
    for key in (UPSTREAM_KEY, KEY):
        assert_no_key(*texts, key=key)
    assert "sandbox=of-another-caller" not in "".join(texts)
    assert CUSTOMER.partition("=")[2] not in running.record.text()
