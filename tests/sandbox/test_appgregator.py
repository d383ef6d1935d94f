import base64
import gzip
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox import appgregator, faults, invoice
from sandbox.appgregator import FAULTS, Appgregator
from sandbox.server import SECOND
from tests.waiting import PATIENCE, until

KEY = "sandbox-upstream-key"
FORM = "application/x-www-form-urlencoded"
PATH = "/stripe/invoices/?name=ft-4&connection_name=stripe-1"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def connected(upstream: Appgregator) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection(upstream.origin.removeprefix("http://"), timeout=PATIENCE)) as connection:
        yield connection


def ask(
    connection: http.client.HTTPConnection,
    body: str | bytes = "customer=cus_1",
    path: str = PATH,
    method: str = "POST",
    **headers: str,
) -> Answer:
    sent = {"x-api-key": KEY, "content-type": FORM} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request(method, path, body, sent)
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def call(upstream: Appgregator, body: str | bytes = "customer=cus_1", **options: str) -> Answer:
    with connected(upstream) as connection:
        return ask(connection, body, **options)


def fault(upstream: Appgregator, name: str) -> Answer:
    return call(upstream, f"customer=cus_fault_{name}")


def raw(upstream: Appgregator, request: bytes) -> bytes:
    """Everything the upstream sends until it closes."""
    address = urllib.parse.urlsplit(upstream.origin)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def request(body: bytes = b"customer=cus_1", *headers: str, line: str = f"POST {PATH} HTTP/1.1") -> bytes:
    lines = [line, "Host: sandbox", f"x-api-key: {KEY}", f"Content-Type: {FORM}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


# --- The contract of the public page


@pytest.mark.parametrize("path", [PATH, PATH.replace("/?", "?")])
def test_create_answers_with_every_field_of_the_public_page(upstream: Appgregator, path: str) -> None:
    answer = call(upstream, "customer=cus_MQqeLuPp19Qbk8&metadata%5Border%5D=7", path=path)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == invoice.EXAMPLE.keys()
    assert answer.json()["customer"] == "cus_MQqeLuPp19Qbk8"
    assert answer.json()["metadata"] == {"order": "7"}


def test_create_is_recorded_as_it_was_sent(upstream: Appgregator) -> None:
    call(upstream, "customer=cus_1", X_Odd="Value")
    (received,) = upstream.calls
    assert received.path + "?" + received.query == PATH
    assert received.body == b"customer=cus_1"
    assert ("x-api-key", KEY) in received.headers
    assert ("X-Odd", "Value") in received.headers
    assert received.created
    assert upstream.invoices == 1


def test_requests_of_one_client_share_a_connection(upstream: Appgregator) -> None:
    with connected(upstream) as connection:
        ids = {ask(connection).json()["id"] for _ in range(3)}
    call(upstream)
    assert len(ids) == 3
    assert [received.connection for received in upstream.calls] == [1, 1, 1, 2]
    assert upstream.connections == 2


def test_pipelined_requests_are_answered_in_order(upstream: Appgregator) -> None:
    bodies = (b"customer=cus_1", b"customer=cus_fault_slow", b"customer=cus_3")
    upstream.delay = 0.05
    sent = [request(body, f"Content-Length: {len(body)}") for body in bodies[:2]]
    last = request(bodies[2], f"Content-Length: {len(bodies[2])}", "Connection: close")
    answers = raw(upstream, b"".join([*sent, last]))
    assert re.findall(rb'"customer":"(\w+)"', answers) == [b"cus_1", b"cus_fault_slow", b"cus_3"]


def test_request_in_single_bytes_is_understood(upstream: Appgregator) -> None:
    address = urllib.parse.urlsplit(upstream.origin)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request(b"customer=cus_1", "Content-Length: 14"):
            connection.sendall(bytes([byte]))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_client_that_waits_for_100_continue_is_told_to_go_on(upstream: Appgregator) -> None:
    address = urllib.parse.urlsplit(upstream.origin)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as connection:
        connection.sendall(request(b"", "Content-Length: 14", "Expect: 100-continue"))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"customer=cus_1")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        ({"x_api_key": "wrong"}, 401, {}),
        ({"path": "/stripe/invoices/?name=ft-4&connection_name=stripe-2"}, 404, {}),
        ({"path": "/stripe/invoices/"}, 404, {}),
        ({"path": "/stripe/customers/"}, 404, {}),
        ({"method": "GET"}, 405, {}),
        ({"method": "PUT"}, 405, {}),
        ({"content_type": "application/json", "body": '{"customer": "cus_1"}'}, 400, {}),
        ({"body": "description=x"}, 400, {"param": "customer", "code": "parameter_missing"}),
        ({"body": "customer="}, 400, {"param": "customer", "code": "parameter_missing"}),
        ({"body": "customer=cus_missing"}, 404, {"param": "customer", "code": "resource_missing"}),
        ({"body": "customer=cus_1&due_date=x"}, 400, {"param": "due_date", "code": "parameter_invalid_integer"}),
        ({"body": "customer=cus_fault_unheard_of"}, 400, {"param": "customer"}),
    ],
)
def test_what_the_upstream_refuses_creates_nothing(
    upstream: Appgregator, options: dict[str, str], status: int, error: dict[str, str]
) -> None:
    answer = call(upstream, **options)
    assert answer.status == status
    assert answer.json()["error"].items() >= {"type": "invalid_request_error", **error}.items()
    assert upstream.invoices == 0
    assert not any(received.created for received in upstream.calls)


def test_missing_key_is_refused(upstream: Appgregator) -> None:
    response = requests.post(upstream.origin + PATH, data={"customer": "cus_1"}, timeout=PATIENCE)
    response.close()
    assert response.status_code == 401
    assert len(upstream.calls) == 1


def test_missing_customer_is_named(upstream: Appgregator) -> None:
    assert "cus_missing" in call(upstream, "customer=cus_missing").json()["error"]["message"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(b"", "Transfer-Encoding: chunked"), 411),
        (request(b""), 411),
        (request(b"", "Content-Length: 1", "Content-Length: 1"), 400),
        (request(b"", "Content-Length: +1"), 400),
        (request(b"", "Content-Length: 99999999"), 413),
        (request(b"", "no colon"), 400),
        (request(b"", " folded: x"), 400),
        (request(b"", "Host: twice"), 400),
        (request(b"", f"X: {'x' * 70_000}"), 431),
        (request(b"", line="nonsense"), 400),
        (b"GET /_sandbox HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_malformed_http_is_refused_and_the_connection_closed(upstream: Appgregator, sent: bytes, status: int) -> None:
    assert raw(upstream, sent).startswith(f"HTTP/1.1 {status} ".encode())
    assert upstream.calls == ()


def test_client_that_leaves_before_its_body_makes_no_call(upstream: Appgregator) -> None:
    address = urllib.parse.urlsplit(upstream.origin)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as connection:
        connection.sendall(request(b"customer=", "Content-Length: 14"))
    assert call(upstream).status == 200
    assert len(upstream.calls) == 1


def test_other_keys_and_accounts_can_be_accepted() -> None:
    with Appgregator(keys=["a", "b"], accounts=[("ft-5", "stripe-9")]) as upstream:
        path = "/stripe/invoices?name=ft-5&connection_name=stripe-9"
        assert [call(upstream, path=path, x_api_key=key).status for key in ("a", "b", KEY)] == [200, 200, 401]
        assert call(upstream, x_api_key="a").status == 404


def test_rotation_replaces_the_accepted_keys(upstream: Appgregator) -> None:
    upstream.accept("next")
    assert call(upstream).status == 401
    assert call(upstream, x_api_key="next").status == 200


def test_status_tells_other_processes_the_counts(upstream: Appgregator) -> None:
    with connected(upstream) as connection:
        ask(connection)
        ask(connection, x_api_key="wrong")
        status = ask(connection, b"", path="/_sandbox", method="GET")
    assert status.json() == {"calls": 2, "invoices": 1, "connections": 1}


def test_forget_clears_counts_calls_and_faults_to_come(upstream: Appgregator) -> None:
    call(upstream)
    upstream.fail_next("error_500")
    upstream.forget()
    assert (upstream.calls, upstream.invoices, upstream.connections, upstream.redirected) == ((), 0, 0, 0)
    assert call(upstream).status == 200


def test_only_the_newest_calls_are_kept() -> None:
    with Appgregator(keep=2) as upstream:
        for number in range(3):
            call(upstream, f"customer=cus_{number}")
        assert [received.body for received in upstream.calls] == [b"customer=cus_1", b"customer=cus_2"]
        assert upstream.invoices == 3


def test_counts_are_exact_under_many_clients(upstream: Appgregator) -> None:
    def work() -> None:
        with connected(upstream) as connection:
            for _ in range(50):
                assert ask(connection).status == 200

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(upstream.calls), upstream.invoices, upstream.connections) == (400, 400, 8)


def test_restart_keeps_the_port_and_a_stopped_upstream_refuses_connections(upstream: Appgregator) -> None:
    origin = upstream.origin
    upstream.stop()
    with pytest.raises(ConnectionRefusedError):
        call(upstream)
    upstream.start()
    assert upstream.origin == origin
    assert call(upstream).status == 200


def test_port_in_use_is_an_error(upstream: Appgregator) -> None:
    with pytest.raises(OSError, match="in use"):
        Appgregator(port=int(upstream.origin.rpartition(":")[2])).start()


def test_upstream_runs_as_a_process_of_its_own_until_it_is_told_to_stop() -> None:
    root = Path(appgregator.__file__).parents[1]
    command = [sys.executable, "-m", "sandbox.appgregator", "--delay", "0.01"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:")
            response = requests.get(line.split()[-1] + "/_sandbox", timeout=PATIENCE)
            response.close()
            assert response.json() == {"calls": 0, "invoices": 0, "connections": 1}
        finally:
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


# --- Faults


def test_every_fault_is_documented_and_tested() -> None:
    tests = Path(__file__).read_text()
    for name in FAULTS:
        assert name in str(faults.__doc__)
        assert f'"{name}"' in tests


def test_faults_are_asked_for_in_order_and_run_out(upstream: Appgregator) -> None:
    upstream.fail_next("error_500", times=2)
    upstream.fail_next("error_503")
    assert [call(upstream).status for _ in range(4)] == [500, 500, 503, 200]


def test_unknown_fault_cannot_be_asked_for(upstream: Appgregator) -> None:
    with pytest.raises(ValueError, match="no fault"):
        upstream.fail_next("error_418")


def test_fault_waits_for_a_call_that_would_have_created_an_invoice(upstream: Appgregator) -> None:
    upstream.fail_next("close_before")
    assert call(upstream, x_api_key="wrong").status == 401
    assert call(upstream, method="GET").status == 405
    with pytest.raises(http.client.RemoteDisconnected):
        call(upstream)
    assert call(upstream).status == 200


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("error_400", 400, {"type": "invalid_request_error", "code": "parameter_unknown"}),
        ("error_401", 401, {"type": "invalid_request_error"}),
        ("error_402", 402, {"type": "card_error", "code": "card_declined"}),
        ("error_403", 403, {"type": "invalid_request_error"}),
        ("error_404", 404, {"code": "resource_missing", "param": "customer"}),
        ("error_409", 409, {"code": "lock_timeout"}),
        ("error_429", 429, {"code": "rate_limit"}),
        ("error_500", 500, {"type": "api_error"}),
        ("error_503", 503, {"type": "api_error"}),
    ],
)
def test_error_faults_are_stripes_json_and_create_nothing(
    upstream: Appgregator, name: str, status: int, error: dict[str, str]
) -> None:
    answer = fault(upstream, name)
    assert answer.status == status
    assert answer.json()["error"].items() >= error.items()
    assert answer.headers["retry-after"] == ("7" if status == 429 else None)
    assert (len(upstream.calls), upstream.invoices) == (1, 0)


@pytest.mark.parametrize(("name", "status"), [("redirect_302", 302), ("redirect_307", 307)])
def test_redirect_leads_to_a_place_that_counts(upstream: Appgregator, name: str, status: int) -> None:
    answer = fault(upstream, name)
    assert answer.status == status
    assert (upstream.redirected, upstream.invoices) == (0, 0)
    target = answer.headers["location"]
    assert target.startswith(upstream.origin)
    followed = call(upstream, path=target.removeprefix(upstream.origin))
    assert followed.json()["object"] == "invoice"
    assert (upstream.redirected, upstream.invoices) == (1, 0)


@pytest.mark.parametrize(("name", "status", "invoices"), [("html_200", 200, 1), ("html_502", 502, 0)])
def test_html_comes_instead_of_json(upstream: Appgregator, name: str, status: int, invoices: int) -> None:
    answer = fault(upstream, name)
    assert answer.status == status
    assert answer.headers["content-type"] == "text/html"
    assert answer.body.startswith(b"<!doctype html>")
    assert upstream.invoices == invoices


def test_gzip_comes_unasked(upstream: Appgregator) -> None:
    answer = fault(upstream, "gzip")
    assert answer.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(answer.body))["object"] == "invoice"
    assert upstream.invoices == 1


def test_gzip_bomb_is_small_on_the_wire_and_200_mb_inflated(upstream: Appgregator) -> None:
    answer = fault(upstream, "gzip_bomb")
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.body) < 250_000
    inflater, size, rest = zlib.decompressobj(wbits=31), 0, answer.body
    while rest:
        size += len(inflater.decompress(rest, 1_000_000))
        rest = inflater.unconsumed_tail
    assert inflater.eof
    assert 200_000_000 < size < 200_001_000
    assert upstream.invoices == 1


def test_trickle_sends_a_byte_at_a_time_and_ends(upstream: Appgregator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_TRICKLE", 0.01)
    monkeypatch.setattr(faults, "_TRICKLE_BYTES", 30)
    start = time.monotonic()
    body = b"customer=cus_fault_trickle"
    assert len(raw(upstream, request(body, f"Content-Length: {len(body)}"))) == 30
    assert time.monotonic() - start >= 0.3
    assert upstream.invoices == 1


def test_trickle_stops_when_the_client_goes(upstream: Appgregator) -> None:
    upstream.fail_next("trickle")
    address = urllib.parse.urlsplit(upstream.origin)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as connection:
        connection.sendall(request(b"customer=cus_1", "Content-Length: 14"))
        assert len(connection.recv(65536)) == 1
        assert len(connection.recv(65536)) == 1
    assert call(upstream).status == 200


def test_slow_waits_and_then_answers(upstream: Appgregator) -> None:
    upstream.delay = 0.2
    start = time.monotonic()
    with connected(upstream) as connection:
        assert ask(connection, "customer=cus_fault_slow").json()["object"] == "invoice"
        assert time.monotonic() - start >= 0.2
        assert ask(connection).status == 200
    assert upstream.connections == 1


def test_slow_counts_its_invoice_at_once(upstream: Appgregator) -> None:
    upstream.fail_next("slow")
    upstream.delay = 30
    with connected(upstream) as connection:
        connection.timeout = 0.2
        with pytest.raises(TimeoutError):
            ask(connection)
        until(lambda: upstream.invoices == 1)


def test_hang_never_answers_but_creates(upstream: Appgregator) -> None:
    upstream.fail_next("hang")
    with connected(upstream) as connection:
        connection.timeout = 0.2
        with pytest.raises(TimeoutError):
            ask(connection)
        until(lambda: upstream.invoices == 1)


def test_hang_ends_when_the_upstream_stops(upstream: Appgregator) -> None:
    upstream.fail_next("hang")
    with connected(upstream) as connection:
        connection.request("POST", PATH, b"customer=cus_1", {"x-api-key": KEY, "content-type": FORM})
        until(lambda: upstream.invoices == 1)
        upstream.stop()
        with pytest.raises(ConnectionError):
            connection.getresponse()


def test_echo_key_repeats_the_key_in_its_message(upstream: Appgregator) -> None:
    answer = fault(upstream, "echo_key")
    assert answer.status == 400
    message = answer.json()["error"]["message"]
    assert KEY in message
    assert base64.b64encode(KEY.encode()).decode() in message
    assert KEY.encode().hex() in message
    assert upstream.invoices == 0


def test_leak_key_hides_the_key_in_an_invoice() -> None:
    key = "k/e+y ü"
    with Appgregator(keys=[key]) as upstream:
        upstream.fail_next("leak_key")
        found = call(upstream, x_api_key=key).json()
        data = key.encode("latin-1")
        assert key in found["description"]
        assert found["number"] == data.hex()
        assert found["account_name"] == base64.b64encode(data).decode()
        assert urllib.parse.quote(data, safe="") in found["hosted_invoice_url"]
        assert {"raw", "base64", "hex", "url", key} == set(found["metadata"])
        assert upstream.invoices == 1


def test_set_cookie_comes_with_an_invoice(upstream: Appgregator) -> None:
    answer = fault(upstream, "set_cookie")
    assert answer.headers["set-cookie"].startswith("sandbox=")
    assert answer.json()["object"] == "invoice"
    assert upstream.invoices == 1


@pytest.mark.parametrize(("name", "invoices"), [("close_before", 0), ("close_after", 1)])
def test_connection_closes_without_a_byte(upstream: Appgregator, name: str, invoices: int) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        fault(upstream, name)
    assert (len(upstream.calls), upstream.invoices) == (1, invoices)


def test_close_before_asked_for_ahead_does_not_wait_for_the_body(upstream: Appgregator) -> None:
    upstream.fail_next("close_before")
    assert raw(upstream, request(b"", "Content-Length: 14")) == b""
    assert (len(upstream.calls), upstream.invoices) == (0, 0)


def test_reset_after_resets_the_connection(upstream: Appgregator) -> None:
    with pytest.raises(ConnectionResetError) as caught:
        fault(upstream, "reset_after")
    assert not isinstance(caught.value, http.client.RemoteDisconnected)
    assert upstream.invoices == 1


def test_truncated_ends_halfway(upstream: Appgregator) -> None:
    with pytest.raises(http.client.IncompleteRead) as caught:
        fault(upstream, "truncated")
    assert caught.value.partial.startswith(b'{"id":"in_')
    assert caught.value.expected
    assert upstream.invoices == 1


def test_oversize_is_a_valid_invoice_of_3_mb(upstream: Appgregator) -> None:
    answer = fault(upstream, "oversize")
    assert 2_500_000 < len(answer.body) < 3_500_000
    assert answer.json()["object"] == "invoice"
    assert upstream.invoices == 1


def test_not_json_is_none(upstream: Appgregator) -> None:
    answer = fault(upstream, "not_json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    with pytest.raises(json.JSONDecodeError):
        answer.json()
    assert upstream.invoices == 1


def test_deep_is_more_than_a_parser_can_take(upstream: Appgregator) -> None:
    answer = fault(upstream, "deep")
    assert answer.body.count(b"[") > 100_000
    with pytest.raises(RecursionError):
        answer.json()
    assert upstream.invoices == 1


def test_nan_is_in_an_amount(upstream: Appgregator) -> None:
    assert b'"amount_due": NaN' in fault(upstream, "nan").body
    assert upstream.invoices == 1


def test_no_id_lacks_only_the_id(upstream: Appgregator) -> None:
    assert fault(upstream, "no_id").json().keys() == invoice.EXAMPLE.keys() - {"id"}
    assert upstream.invoices == 1


def test_array_holds_the_invoice(upstream: Appgregator) -> None:
    assert [found["object"] for found in fault(upstream, "array").json()] == ["invoice"]
    assert upstream.invoices == 1


def test_empty_has_no_body(upstream: Appgregator) -> None:
    answer = fault(upstream, "empty")
    assert (answer.status, answer.body) == (200, b"")
    assert upstream.invoices == 1


def test_wrong_object_says_it_is_an_error(upstream: Appgregator) -> None:
    answer = fault(upstream, "wrong_object")
    assert (answer.status, answer.json()["object"]) == (200, "error")
    assert upstream.invoices == 1


def test_huge_header_is_400_kb(upstream: Appgregator) -> None:
    body = b"customer=cus_fault_huge_header"
    answer = raw(upstream, request(body, f"Content-Length: {len(body)}", "Connection: close"))
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert max(map(len, head.split(b"\r\n"))) > 400_000
    assert json.loads(rest)["object"] == "invoice"
    upstream.fail_next("huge_header")
    with pytest.raises(http.client.LineTooLong):
        call(upstream)
    assert upstream.invoices == 2


def test_address_with_nothing_at_it_is_a_page_of_html(upstream: Appgregator) -> None:
    answer = fault(upstream, "html_404")
    assert (answer.status, answer.headers["content-type"]) == (404, "text/html; charset=UTF-8")
    assert upstream.invoices == 0


@pytest.mark.parametrize(("name", "code"), [("approval", "approval_required"), ("action_blocked", "action_blocked")])
def test_rule_of_the_account_is_told_in_stripes_words(upstream: Appgregator, name: str, code: str) -> None:
    answer = fault(upstream, name)
    error = answer.json()["error"]
    assert (answer.status, error["type"], error["code"]) == (400, "invalid_request_error", code)
    assert error.get("approval_request", {}).get("status") == ("requires_review" if name == "approval" else None)
    assert upstream.invoices == 0


@pytest.mark.parametrize(
    ("name", "field", "other"),
    [("other_customer", "customer", "cus_of_another_call"), ("other_mode", "livemode", True)],
)
def test_answer_to_another_call_differs_in_what_tells_them_apart(
    upstream: Appgregator, name: str, field: str, other: object
) -> None:
    found = fault(upstream, name).json()
    assert found[field] == other
    assert found.keys() == invoice.EXAMPLE.keys()
    assert upstream.invoices == 1


def test_second_answer_follows_on_the_same_connection(upstream: Appgregator) -> None:
    upstream.fail_next("twice")
    with connected(upstream) as connection:
        first = ask(connection).json()
        second = http.client.HTTPResponse(connection.sock)
        second.begin()
        stray = json.loads(second.read())
        assert stray.pop("id") != first.pop("id")
        assert stray == first
        assert ask(connection).status == 200
    assert upstream.invoices == 2


def test_second_answer_can_wait_for_the_next_request(upstream: Appgregator) -> None:
    upstream.strays.held = True
    upstream.delay = 0.1
    upstream.fail_next("twice")
    upstream.fail_next("slow")
    with connected(upstream) as connection:
        first = ask(connection).json()
        time.sleep(2 * SECOND)
        assert upstream.strays.sent == 0
        stray = ask(connection).json()
        until(lambda: upstream.strays.sent == 1)
        assert stray.pop("id") != first.pop("id")
        assert stray == first
        late = http.client.HTTPResponse(connection.sock)
        late.begin()
        late.read()


def test_second_answer_is_never_written_into_another(upstream: Appgregator) -> None:
    upstream.delay = 0.1
    upstream.fail_next("twice")
    upstream.fail_next("slow")
    with connected(upstream) as connection:
        ask(connection)
        stray = ask(connection).json()["id"]  # what the next client on this connection is told
        late = http.client.HTTPResponse(connection.sock)
        late.begin()
        assert json.loads(late.read())["id"] != stray


def test_expanded_customer_brings_fields_that_nobody_asked_for(upstream: Appgregator) -> None:
    found = fault(upstream, "expanded").json()
    assert found["customer"]["id"] == "cus_fault_expanded"
    assert found["customer"]["email"] == "expanded@secret.example"
    assert found["lines"]["data"][0]["price_secret"] == "expanded-line-secret"
    assert upstream.invoices == 1
