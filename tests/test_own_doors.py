"""The doors of our own: whom each answers, with what, and what it costs and leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from console.recipes.filling import MAX_ASKED, MAX_STRANGERS
from gateway.chain import FLOOD, Audit
from gateway.readiness import LOOK_SECONDS, Readiness, State
from policies.refusals import RecordUnavailable, SecretUnavailable, StoreUnavailable
from sandbox.__main__ import ROOT, UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from tests.conftest import CUSTOMER, KEY, OTHER_KEY, TARGET, Clock, policy, sha256
from tests.problems import parsed, refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from werkzeug.test import TestResponse

    from tests.conftest import Function, Server

GRANT_OF_THE_OTHER_ACCOUNT = """\
      - connection: other-account
        operation: invoices.create
        parameters: {customer: }
        response: [id]
"""
NOTHING = "default-src 'none'; frame-ancestors 'none'"


def get(
    function: Function, target: str, *, key: str | None = None, method: str = "GET", **headers: str
) -> TestResponse:
    return function.post(target, "", key=key, media=None, method=method, **headers)


def me(function: Function, query: str = "", *, key: str = KEY) -> dict[str, Any]:
    answer = get(function, f"/-/me{query}", key=key)
    assert answer.status_code == 200, answer.data
    return said(answer)


def filled(function: Function, body: str, *, key: str | None = None) -> TestResponse:
    return function.post("/-/recipes", body, key=key, media="application/json")


def said(answer: TestResponse) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(answer.data)
    return told


# ---------------------------------------------------------------- health


def test_health_answers_whoever_asks_and_leaves_nothing_behind(function: Callable[..., Function]) -> None:
    running = function()
    for method, body in (("GET", b'{"status":"ok"}'), ("HEAD", b"")):
        answer = get(running, "/-/health", method=method)
        assert (answer.status_code, answer.data) == (200, body)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Security-Policy"] == NOTHING
    assert running.record.text() == ""


def test_health_touches_neither_store_nor_secret(function: Callable[..., Function], upstream: Appgregator) -> None:
    running = function(policy(upstream.origin, secret="file:/nowhere"), STORE="redis://127.0.0.1:1/0")
    assert get(running, "/-/health").status_code == 200
    assert said(get(running, "/-/ready"))["parts"]["secret"] == "down"


@pytest.mark.parametrize("path", ["/-/health", "/-/ready", "/-/me", "/openapi.json"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_what_is_only_read_takes_no_other_method(function: Callable[..., Function], path: str, method: str) -> None:
    answer = get(function(), path, key=KEY, method=method)
    if path == "/openapi.json" and answer.status_code == 404:
        pytest.skip("the API description is not here yet")
    problem = refused(answer, 405, "method-not-allowed")
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.headers["Content-Security-Policy"] == NOTHING
    assert "Use GET, HEAD" in problem["detail"]


def test_no_page_of_another_site_may_ask(function: Callable[..., Function]) -> None:
    running = function()
    asked = {"Origin": "https://evil.example", "Access_Control_Request_Method": "GET"}
    refused(get(running, "/-/me", method="OPTIONS", **asked), 405, "method-not-allowed")
    answer = get(running, "/-/me", key=KEY, Origin="https://evil.example")
    assert not [name for name, _ in answer.headers if name.lower().startswith("access-control")]


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "target",
    [
        "/-", "/-/", "/-/Health", "/-/health/", "//-/health", "/-//health", "/-/%68ealth", "/%2D/health",
        "/-/../-/health",
        "/-/health%00", "/-/me/../../main.py", "/stripe/-/health", "/openapi.jsonx", "/openapi.json/", "/portalx",
        "/portal-eu", "//portal", "/%70ortal", "/Portal", "http://countersign/-/health", "/-/" + "a" * 1000,
    ],
)  # fmt: skip
def test_one_spelling_of_each_path_and_nothing_beside_it(function: Callable[..., Function], target: str) -> None:
    running = function()
    environ = {"RAW_URI": target, "REQUEST_URI": target}
    answer = running.app.test_client().get("/", environ_overrides=environ, headers={"x-api-key": KEY})
    refused(answer, 404, "path-unknown")


@pytest.mark.parametrize(
    "path", ["/portal/../main.py", "/portal/x/../../keys.py", "/portal/%2e%2e/main.py", "/portal/\0"]
)
def test_nothing_is_served_by_a_path_that_leads_out_of_the_portal(function: Callable[..., Function], path: str) -> None:
    answer = function().app.test_client().get("/", environ_overrides={"RAW_URI": path, "REQUEST_URI": path})
    refused(answer, 404, "path-unknown")


def test_long_target_is_refused_before_anything_else(function: Callable[..., Function]) -> None:
    refused(get(function(), "/-/me?key=" + "a" * 2048, key=KEY), 414, "target-too-long")


def test_raw_bytes_are_refused_and_do_no_harm(server: Callable[..., Server]) -> None:
    running = server()
    for line in (b"GET /-/me\0 HTTP/1.1", b"GET \x00 HTTP/1.1", b"GET /portal/\xff HTTP/1.1", b"GET /-/me#x HTTP/1.1"):
        status, _, _ = parsed(running.raw(line + b"\r\nHost: a\r\nConnection: close\r\n\r\n"))
        assert status in {400, 401, 404}
    assert running.call("/-/health", None, key=None, method="GET")[0] == 200


@pytest.mark.parametrize("name", ["portal", "portal-eu"])
def test_connection_whose_name_begins_like_a_door_of_ours_is_still_reached(
    function: Callable[..., Function], name: str
) -> None:
    with Appgregator(keys=[UPSTREAM_KEY], accounts=None) as anybodys:
        running = function(policy(anybodys.origin).replace("ft-4", name))
        assert running.post(f"/{name}/stripe-1/v1/invoices").status_code == 200


def test_portal_that_is_off_is_not_there(function: Callable[..., Function]) -> None:
    running = function(PORTAL="off")
    for path in ("/portal", "/portal/", "/portal/docs", "/portal/docs/refusals"):
        refused(get(running, path), 404, "path-unknown")
    assert me(running)["caller"] == "app"
    assert get(running, "/-/health").status_code == 200


# ---------------------------------------------------------------- who asks


@pytest.mark.parametrize(
    "headers",
    [{}, {"x_api_key": "csk_of_nobody"}, {"x_api_key": ""}, {"x_api_key": KEY, "Authorization": f"Bearer {KEY}"},
     {"Authorization": "Bearer eyJhbGciOiJSUzI1NiJ9.eyJlIjoxfQ.c2ln"}],
)  # fmt: skip
def test_who_may_ask_is_told_as_any_call_is(function: Callable[..., Function], headers: dict[str, str]) -> None:
    running = function()
    of_call, of_door = said(running.post(key=None, **headers)), said(get(running, "/-/me", **headers))
    assert of_door.pop("audit_id") != of_call.pop("audit_id")
    assert of_door == of_call
    assert of_door["status"] == 401
    call, door = running.record.entries("refusal")
    assert door["presented"] == call["presented"]
    assert (door["reason"], door["asked"]) == (call["reason"], "GET /-/me")


def test_guessing_keys_here_is_counted_with_guessing_them_by_calls(
    function: Callable[..., Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.chain.Audit._next_second", lambda *_: None)  # it is one second all the time
    running = function()
    for number in range(30):
        refused(get(running, "/-/me", key=f"csk_guess_{number}"), 401, "credential-unknown")
        refused(running.post(key=f"csk_guess_{number}"), 401, "credential-unknown")
    written = running.record.entries("refusal")
    assert len(written) == FLOOD
    assert {line["reason"] for line in written} == {"credential-unknown"}


def test_caller_sees_its_own_and_nothing_of_others(function: Callable[..., Function]) -> None:
    running = function()
    mine, theirs = me(running), me(running, key=OTHER_KEY)
    assert (mine["caller"], theirs["caller"]) == ("app", "other")
    assert [grant["connection"]["id"] for grant in theirs["grants"]] == ["other-account"]
    assert "billing" not in json.dumps(theirs)
    assert mine["grants"][0]["connection"] == {
        "id": "billing", "name": "ft-4", "connection_name": "stripe-1", "mode": None
    }  # fmt: skip


def test_paused_caller_may_look_and_may_not_call(function: Callable[..., Function], upstream: Appgregator) -> None:
    running = function(policy(upstream.origin).replace("    owner: tests\n", "    owner: tests\n    paused: true\n", 1))
    refused(running.post(), 403, "caller-paused")
    assert me(running)["paused"] is True
    refused(get(running, "/-/me?key=order-1", key=KEY), 403, "caller-paused")  # what was kept is an answer, too


def test_key_is_found_as_it_is_written_in_the_header(function: Callable[..., Function]) -> None:
    running = function()
    assert running.post(Idempotency_Key='"order-1"').status_code == 200
    for written in ("order-1", "%22order-1%22"):
        (became,) = me(running, f"?key={written}")["became"]
        assert became["state"] == "raised"


def test_tied_credential_sees_its_connection(function: Callable[..., Function], upstream: Appgregator) -> None:
    tied = f"key: {{id: k2, sha256: {sha256('csk_tied')}, connection: billing}}"
    running = function(policy(upstream.origin, credentials=[tied]))
    told = me(running, key="csk_tied")
    assert told["credential"] == {"id": "k2", "kind": "key", "expires": None, "tied": "billing"}


def test_a_look_is_on_record_without_the_order_that_was_asked_for(function: Callable[..., Function]) -> None:
    running = function()
    answer = get(running, "/-/me?key=order-1", key=KEY)
    (look,) = running.record.lines()[1:]
    entry = look["countersign"]
    told = {name: entry[name] for name in ("kind", "caller", "credential", "asked")}
    assert told == {"kind": "look", "caller": "app", "credential": "k1", "asked": "GET /-/me"}
    assert entry["audit_id"] == answer.headers["Countersign-Audit-Id"]
    assert look["message"] == "app looked at GET /-/me"
    assert "order-1" not in running.record.text()


def test_questions_share_ten_a_second_with_previews_and_calls_go_on(
    function: Callable[..., Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.allowance.SECONDS", 1000.0)
    running = function()
    for _ in range(5):
        assert get(running, "/-/me", key=KEY).status_code == 200
        assert running.post(f"{TARGET}&validate_only=true").status_code == 200
    refused(get(running, "/-/me", key=KEY), 429, "asked-too-often")
    refused(running.post(f"{TARGET}&validate_only=true"), 429, "asked-too-often")
    assert running.post().status_code == 200
    assert me(running, key=OTHER_KEY)["caller"] == "other"
    assert get(running, "/-/health").status_code == 200


@pytest.mark.parametrize("asked", ["recipes", "openapi"])
def test_strangers_share_ten_a_second_and_take_them_from_no_caller(
    function: Callable[..., Function], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr("gateway.allowance.SECONDS", 1000.0)
    running = function()

    def ask(key: str | None = None) -> TestResponse:
        return filled(running, "{}", key=key) if asked == "recipes" else get(running, "/openapi.json", key=key)

    for number in range(10):
        assert (filled(running, "{}") if number % 2 else get(running, "/openapi.json")).status_code == 200
    problem = refused(ask(), 429, "asked-too-often")
    assert "without a caller key" in problem["detail"]
    assert ask(key=KEY).status_code == 200
    assert running.post().status_code == 200
    refused(ask(key="csk_nobody"), 401, "credential-unknown")
    for path in ("/-/health", "/-/ready", "/portal", "/portal/docs/refusals"):
        assert get(running, path).status_code == 200
    assert running.record.entries("refusal")[0]["reason"] == "asked-too-often"


def test_recipes_are_filled_with_no_more_than_a_call(function: Callable[..., Function]) -> None:
    running = function()
    for key, most in ((None, MAX_STRANGERS), (KEY, MAX_ASKED)):
        body = json.dumps({"fields": {f"metadata[k{number}]": "'" * 480 for number in range(most // 512 - 1)}})
        whole = body + " " * (most - len(body))
        answer = filled(running, whole, key=key)
        assert answer.status_code == 200
        assert len(answer.data) < 50_000 + 30 * most
        assert (
            f"{MAX_ASKED // 1024} KB" in refused(filled(running, whole + " ", key=key), 413, "body-too-large")["detail"]
        )


def test_key_in_the_address_is_refused_and_not_repeated(function: Callable[..., Function]) -> None:
    running = function()
    whole = "csk_" + "0" * 49
    answer = get(running, f"/-/me?key={whole}", key=KEY)
    refused(answer, 400, "query-malformed")
    assert whole not in answer.text + running.record.text()


@pytest.mark.parametrize(
    "query", ["?kee=1", "?key=", "?key=a&key=b", "?grant=nobody:invoices.create", "?key=%ff", "?a"]
)
def test_query_is_exactly_what_the_door_takes(function: Callable[..., Function], query: str) -> None:
    refused(get(function(), f"/-/me{query}", key=KEY), 400, "query-malformed")


def test_signed_webhook_proves_nobody_here(function: Callable[..., Function], upstream: Appgregator) -> None:
    scheme = "webhook: {secret: file:x, scheme: hmac, header: X-Shop, encoding: hex, connection: billing}"
    running = function(policy(upstream.origin, credentials=[scheme]))
    refused(get(running, "/-/me", X_Shop="0" * 64), 401, "webhook-not-verified")
    standard = {"webhook_id": "msg_1", "webhook_timestamp": "1", "webhook_signature": "v1,x"}
    refused(get(running, "/-/me", **standard), 401, "webhook-not-verified")


# ---------------------------------------------------------------- what is left, and what became of a key


def test_standings_go_down_with_calls_and_not_with_looks(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    running = function(policy(upstream.origin, limits="3/minute, 100/day"))
    running.post()
    for _ in range(5):
        limit, day, ceiling = me(running)["standings"]
    assert (limit["text"], limit["of"], limit["left"]) == ("3 calls a minute", 3, 2)
    assert limit["more"]["amount"] == 1
    assert (day["left"], ceiling["kind"], ceiling["left"]) == (99, "ceiling", None)


def test_store_that_is_down_leaves_the_rest_to_be_told(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    running = function(policy(upstream.origin), STORE="redis://127.0.0.1:1/0")
    told = me(running, "?key=order-1")
    assert (told["standings"], told["standings_missing"]) == (None, "store-unavailable")
    assert "became" not in told
    assert told["grants"]
    refused(running.post(), 503, "store-unavailable")


def test_what_became_of_a_key_is_told_to_its_caller_alone(function: Callable[..., Function]) -> None:
    running = function()
    raised = said(running.post(Idempotency_Key="order 1001+a"))
    (mine,) = me(running, "?key=order%201001%2Ba")["became"]
    assert (mine["grant"], mine["state"]) == ("billing:invoices.create", "raised")
    assert mine["answer"]["id"] == raised["id"]
    assert abs(mine["when"] - me(running)["now"]) < 60
    (never,) = me(running, "?key=order-1002")["became"]
    (others,) = me(running, "?key=order%201001%2Ba", key=OTHER_KEY)["became"]
    assert (never["state"], others["state"]) == ("never", "never")


@pytest.mark.usefixtures("memory")
def test_what_became_of_a_key_is_told_but_where_nothing_shows_whose_data_it_would_be(
    function: Callable[..., Function], upstream: Appgregator, tmp_path: Path
) -> None:
    keys = tmp_path / "one", tmp_path / "two"
    two = (
        policy(upstream.origin, secret=f"file:{keys[0]}")
        .replace(f"secret: file:{keys[0]}\n\ncallers", f"secret: file:{keys[1]}\n\ncallers")
        .replace("  other:\n", GRANT_OF_THE_OTHER_ACCOUNT + "  other:\n")
    )
    for one in keys:
        one.write_text(UPSTREAM_KEY)
    running = function(two)
    here, there = TARGET, TARGET.replace("stripe-1", "stripe-2")
    raised = [said(running.post(target, Idempotency_Key="order-1"))["id"] for target in (here, there)]
    keys[1].unlink()
    again = function(two)
    first, second = me(again, "?key=order-1")["became"]
    assert (first["state"], first["answer"]["id"]) == ("raised", raised[0])
    assert (second["grant"], second["state"]) == ("other-account:invoices.create", "unavailable")
    assert "cannot be told just now" in second["text"]
    assert raised[1] not in json.dumps(second)
    assert [one["state"] for one in me(again, "?key=order-2")["became"]] == ["never", "never"]
    refused(again.post(there, Idempotency_Key="order-1"), 503, "secret-unavailable")


def test_key_that_is_a_parameter_is_found_by_its_value(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    document = policy(upstream.origin, idempotency='{from: "metadata[order_id]"}').replace(
        "metadata[order_id]: {max_length: 64}", "metadata[order_id]: {required: true, max_length: 64}"
    )
    running = function(document)
    assert running.post(body=f"{CUSTOMER}&metadata[order_id]=1001").status_code == 200
    (found,) = me(running, "?key=1001&grant=billing:invoices.create")["became"]
    assert found["state"] == "raised"


# ---------------------------------------------------------------- readiness


def test_ready_says_which_part_is_not_and_nothing_of_where(
    function: Callable[..., Function], upstream: Appgregator
) -> None:
    answer = get(function(), "/-/ready")
    assert said(answer) == {
        "status": "ready", "parts": {"policy": "ok", "secret": "ok", "store": "ok", "record": "ok"}
    }  # fmt: skip
    assert answer.status_code == 200
    down = get(function(policy(upstream.origin), STORE="redis://127.0.0.1:1/0"), "/-/ready")
    assert (down.status_code, said(down)["status"], said(down)["parts"]["store"]) == (503, "not ready", "down")
    assert "127.0.0.1" not in down.text


def test_ready_leaves_no_line(function: Callable[..., Function]) -> None:
    running = function()
    for _ in range(3):
        get(running, "/-/ready")
    assert running.record.entries() == []


class Parts:
    """The parts of an instance, each as a test has it, and how often each was looked at."""

    def __init__(self, connections: int = 1) -> None:
        self.connections = {f"c{number}": Named(f"c{number}") for number in range(connections)}
        self.behind, self.lines, self.gone = False, True, set[str]()
        self.looks: list[str] = []
        self.clock = Clock()
        self.held = threading.Event()
        self.held.set()

    def current(self, _deadline: float) -> Parts:
        return self

    def of(self, connection: Named, _deadline: float) -> None:
        self.looks.append(connection.id)
        if connection.id in self.gone:
            raise SecretUnavailable

    def state_of(self, _key: str) -> None:
        self.held.wait(10)
        self.looks.append("store")
        if "store" in self.gone:
            raise StoreUnavailable

    def writable(self) -> bool:
        return self.lines

    def monotonic(self) -> float:
        return self.clock()


class Named:
    def __init__(self, name: str) -> None:
        self.id = name


def readiness(parts: Parts) -> Readiness:
    it: Any = parts
    return Readiness(it, it, it, it)


def test_each_part_is_looked_at_once_in_five_seconds_however_many_ask() -> None:
    parts = Parts()
    ready = readiness(parts)
    for _ in range(100):
        ready.parts()
    assert parts.looks == ["c0", "store"]
    parts.clock.tick(LOOK_SECONDS - 0.1)
    ready.parts()
    assert len(parts.looks) == 2
    parts.clock.tick(0.1)
    parts.gone.add("store")
    assert ready.parts()["store"] is State.DOWN
    assert len(parts.looks) == 4


def test_nobody_waits_for_anothers_look() -> None:
    parts = Parts()
    ready = readiness(parts)
    parts.held.clear()
    thread = threading.Thread(target=ready.parts)
    thread.start()
    while not parts.looks:
        pass
    assert ready.parts() == {}  # which is answered as not ready
    parts.held.set()
    thread.join()
    assert ready.parts()["store"] is State.OK


def test_keys_of_many_connections_are_looked_for_in_turn_and_one_that_lacks_is_remembered() -> None:
    parts = Parts(connections=3)
    ready = readiness(parts)
    parts.gone.add("c2")
    seen = []
    for _ in range(6):
        seen.append(ready.parts()["secret"])
        parts.clock.tick(LOOK_SECONDS)
    assert [look for look in parts.looks if look != "store"] == ["c1", "c2", "c0", "c1", "c2", "c0"]
    assert seen == [State.OK, *[State.DOWN] * 5]
    parts.gone.clear()
    for _ in range(2):
        last = ready.parts()["secret"]
        parts.clock.tick(LOOK_SECONDS)
    assert last is State.OK


def test_policy_that_is_refused_is_behind_and_calls_go_on(
    function: Callable[..., Function], upstream: Appgregator, tmp_path: Path
) -> None:
    running = function(policy(upstream.origin), POLICY_SECONDS="0.01")
    (tmp_path / "policy.yaml").write_text("callers: [")
    while not running.record.entries("policy"):
        assert running.post().status_code == 200
    answer = get(running, "/-/ready")
    assert (answer.status_code, said(answer)["parts"]["policy"]) == (200, "behind")


def test_record_that_could_not_be_written_is_tried_again_when_somebody_looks() -> None:
    sink = Sink()
    audit = Audit(sink, policy="0" * 64)
    audit.write("stop", {}, "INFO", "a line")
    assert audit.writable()
    sink.full = True
    with pytest.raises(RecordUnavailable):
        audit.write("stop", {}, "INFO", "a line")
    assert not audit.writable()
    sink.full = False
    assert audit.writable()
    assert audit.writable()
    assert [json.loads(line)["countersign"]["kind"] for line in sink.lines] == ["start", "stop", "resumed"]


class Sink:
    """Takes lines until it is full."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.full = False

    def write(self, line: bytes) -> None:
        if self.full:
            raise OSError
        self.lines.append(line)


# ---------------------------------------------------------------- what it costs, and what is uploaded


def uploaded(place: Path) -> set[str]:
    """Copy what would be uploaded to ``place``; return the names. The syntax of its ignore file is git's."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    whole = place / "whole"
    for name in names:
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, whole / name)
    shutil.copy(ROOT / ".gcloudignore", whole / ".gitignore")
    subprocess.run(["git", "init", "-q"], cwd=whole, check=True)
    kept = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=whole, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in kept:
        (place / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / name, place / "up" / name)
    return set(kept)


#: What is served without a body, and what of the console it needs.
DOORS = {
    "/-/health": "__init__.py",
    "/-/ready": "__init__.py",
    "/-/me": "describe.py",
    "/openapi.json": "openapi.py",
    "/portal": "portal",
    "/portal/docs": "pages.py",
}

ASKED = f"""
import json, sys
import functions_framework
app = functions_framework.create_app("countersign", sys.argv[1])
client = app.test_client()
started = sorted(name for name in sys.modules if name.partition(".")[0] == "console")
client.post({TARGET!r}, data={CUSTOMER!r}, headers={{"x-api-key": {KEY!r}}})
called = sorted(name for name in sys.modules if name.partition(".")[0] == "console")
said = {{door: client.get(door, headers={{"x-api-key": {KEY!r}}}).status_code for door in sys.argv[2:]}}
print(json.dumps([started, called, said]))
"""


def test_what_is_uploaded_can_serve_every_door_and_holds_nothing_of_the_operators(
    tmp_path: Path, upstream: Appgregator
) -> None:
    names = uploaded(tmp_path)
    operators = {"audit", "exports", "keys", "ledger", "lookup", "rewriting", "verifying", "why", "__main__"}
    assert not names & {f"console/{name}.py" for name in operators}
    assert {"main.py", "requirements.txt", "console/describe.py", "gateway/doors.py"} <= names
    assert not [name for name in names if name.partition("/")[0] in {"tests", "bench", "sandbox", "deploy", ".ci"}]
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    (tmp_path / "policy.yaml").write_text(policy(upstream.origin, secret=f"file:{tmp_path / 'key'}"))
    environ = {
        "PATH": os.environ["PATH"],
        "POLICY": str(tmp_path / "policy.yaml"),
        "AUDIT": f"file:{tmp_path / 'audit'}",
        "PYTHONPATH": str(tmp_path / "up"),
    }
    there = [door for door, part in DOORS.items() if (ROOT / "console" / part).exists()]
    run = subprocess.run(
        [sys.executable, "-P", "-c", ASKED, str(tmp_path / "up" / "main.py"), *there],
        capture_output=True, text=True, cwd=tmp_path, env=environ, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    started, called, answered = json.loads(run.stdout.splitlines()[-1])
    assert started == called == []
    assert answered == dict.fromkeys(there, 200)
