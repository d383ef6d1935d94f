"""The policy document, changed while the function runs. The clock moves with the real one, and when it is told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import grpc
import pytest

from console.audit import verify
from gateway.chain import Audit
from gateway.reloading import (
    CHECK_SECONDS,
    MAX_DOCUMENT,
    MUST_SECONDS,
    PAUSE_SECONDS,
    PROMISED_SECONDS,
    REPORT_SECONDS,
    WAIT_SECONDS,
    File,
    Policies,
    judge,
)
from gateway.settings import SettingError, load
from policies import compiled, document
from policies.model import DocumentError, Proof
from sandbox.__main__ import ROOT, UPSTREAM_KEY
from tests.conftest import KEY, OTHER_KEY, TARGET, policy, sha256
from tests.gateway.conftest import Lines, at_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from policies.model import PolicySet
    from sandbox.appgregator import Appgregator
    from sandbox.secret_manager import SecretManager
    from tests.conftest import Function, Server
    from tests.gateway.conftest import Held

POLICY_SECRET = "projects/sandbox/secrets/policy"
LATEST = f"{POLICY_SECRET}/versions/latest"
HOUR = 3600.0
NEW_KEY = "csk_test_the_new_one_of_the_app"


class Moved:
    """The real clock, which may be moved on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead

    def tick(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Moved:
    moved = Moved()
    monkeypatch.setattr("gateway.settings.time", SimpleNamespace(monotonic=moved, sleep=time.sleep))
    return moved


def ended(policies: Policies) -> None:
    """Wait for a check that runs beside the calls."""
    reading = policies._kept._reading.get(policies._source.where)
    assert reading is None or reading.wait(60)


@dataclass
class Instance:
    """One instance of the function."""

    function: Function
    policies: Policies

    def status(self, key: str = KEY) -> int:
        return self.function.post(key=key).status_code

    def told(self) -> list[str]:
        """What is on record of the policy document, in short."""
        return [entry["result"] for entry in self.function.record.entries("policy")]


@pytest.fixture
def instance(function: Callable[..., Function], clock: Moved) -> Callable[..., Instance]:
    def start(document: str | None = None, **settings: str) -> Instance:
        running = function(document, **settings)
        gate = sys.modules["main"].gate
        gate.audit.monotonic = clock
        return Instance(running, gate.policies)

    return start


def changed(text: str) -> str:
    """Give the first caller another key."""
    assert sha256(KEY) in text
    return text.replace(sha256(KEY), sha256(NEW_KEY))


@dataclass
class Place:
    """Where a document lies, and how it is changed there."""

    setting: str
    write: Callable[[str], object]


@pytest.fixture(params=["file", "link", "Secret Manager"])
def place(request: pytest.FixtureRequest, tmp_path: Path, secret_manager: SecretManager) -> Place:
    match request.param:
        case "file":
            file = tmp_path / "live.yaml"
            return Place(str(file), file.write_text)
        case "link":  # as a mounted volume: the folder behind the path is another one from one moment to the next

            def turn(text: str) -> None:
                target = tmp_path / f"version{len(list(tmp_path.iterdir()))}"
                target.mkdir()
                (target / "policy.yaml").write_text(text)
                (tmp_path / "next").symlink_to(target)
                (tmp_path / "next").replace(tmp_path / "mounted")

            return Place(str(tmp_path / "mounted" / "policy.yaml"), turn)
    return Place(LATEST, lambda text: secret_manager.add(POLICY_SECRET, text.encode()))


def test_what_a_new_policy_needs_of_google_is_imported_before_a_call_meets_it(
    instance: Callable[..., Instance],
    clock: Moved,
    tmp_path: Path,
    upstream: Appgregator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported: list[tuple[str, str]] = []
    for what in ("gateway.secrets.SecretManager", "gateway.tokens.Google"):

        def prepare(what: str = what) -> None:
            imported.append((what, threading.current_thread().name))

        monkeypatch.setattr(f"{what}.prepare", prepare)
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    running = instance(policy(upstream.origin, secret=f"file:{tmp_path}/key"), AUDIENCE="https://function.example")
    assert (running.status(), imported) == (200, [])
    named = policy(upstream.origin, credentials=["google: ann@acme.example"])
    (tmp_path / "policy.yaml").write_text(named)
    clock.tick(PROMISED_SECONDS)
    assert running.status() == 200
    assert imported == [("gateway.secrets.SecretManager", "policy"), ("gateway.tokens.Google", "policy")]
    assert running.told() == ["taken"]


# ---------------------------------------------------------------- a change takes over


def test_revoked_key_is_refused_and_a_new_one_taken_within_the_promised_time_on_every_instance(
    instance: Callable[..., Instance], place: Place, upstream: Appgregator, clock: Moved
) -> None:
    place.write(policy(upstream.origin))
    instances = [instance(POLICY=place.setting) for _ in range(3)]
    assert [one.status() for one in instances] == [200] * 3
    place.write(changed(policy(upstream.origin)))
    assert [one.status() for one in instances] == [200] * 3
    clock.tick(PROMISED_SECONDS)
    assert [one.status() for one in instances] == [401] * 3
    assert [one.status(NEW_KEY) for one in instances] == [200] * 3
    assert upstream.invoices == 9


@pytest.mark.parametrize("idle", [MUST_SECONDS + 1, HOUR, 30 * 24 * HOUR])
def test_instance_that_was_idle_looks_before_it_serves(
    instance: Callable[..., Instance], place: Place, upstream: Appgregator, clock: Moved, idle: float
) -> None:
    place.write(policy(upstream.origin))
    one = instance(POLICY=place.setting)
    place.write(changed(policy(upstream.origin)))
    clock.tick(idle)
    assert one.status() == 401
    assert upstream.invoices == 0


def test_busy_instance_goes_on_while_it_looks(
    instance: Callable[..., Instance], place: Place, upstream: Appgregator, clock: Moved
) -> None:
    place.write(policy(upstream.origin))
    one = instance(POLICY=place.setting)
    place.write(changed(policy(upstream.origin)))
    assert one.status() == 200
    assert not one.policies._kept._reading
    clock.tick(CHECK_SECONDS)
    one.status()  # as it was or as it is now, whichever comes first
    ended(one.policies)
    assert one.status() == 401


def test_change_of_the_same_size_within_the_same_moment_is_seen(
    instance: Callable[..., Instance], tmp_path: Path, clock: Moved
) -> None:
    one = instance()
    file = tmp_path / "policy.yaml"
    before = file.stat()
    file.write_text(changed(file.read_text()))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    clock.tick(HOUR)
    assert one.status() == 401


def test_other_callers_do_not_notice(instance: Callable[..., Instance], tmp_path: Path, clock: Moved) -> None:
    one = instance()
    file = tmp_path / "policy.yaml"
    file.write_text(changed(file.read_text()))
    clock.tick(HOUR)
    assert (
        one.function.post(TARGET.replace("stripe-1", "stripe-2"), key=OTHER_KEY, Idempotency_Key="a").status_code == 200
    )


def test_changed_limit_and_grant_hold_from_the_next_call_on(
    instance: Callable[..., Instance], upstream: Appgregator, tmp_path: Path, clock: Moved
) -> None:
    one = instance()
    assert one.status() == 200
    (tmp_path / "policy.yaml").write_text(policy(upstream.origin, limits="1/hour", response="id"))
    clock.tick(HOUR)
    response = one.function.post()
    assert list(response.json or {}) == ["id"]
    assert one.status() == 429


def test_pinned_version_is_never_read_again(
    instance: Callable[..., Instance], secret_manager: SecretManager, upstream: Appgregator, clock: Moved
) -> None:
    secret_manager.add(POLICY_SECRET, policy(upstream.origin).encode())
    one = instance(POLICY=f"{POLICY_SECRET}/versions/1")
    secret_manager.add(POLICY_SECRET, changed(policy(upstream.origin)).encode())
    clock.tick(HOUR)
    assert one.status() == 200
    assert secret_manager.accesses.count(f"{POLICY_SECRET}/versions/1") == 1


def test_alias_may_be_moved_to_another_version(
    instance: Callable[..., Instance], secret_manager: SecretManager, upstream: Appgregator, clock: Moved
) -> None:
    for number, text in enumerate([policy(upstream.origin), changed(policy(upstream.origin))], 1):
        secret_manager.add(POLICY_SECRET, text.encode())
        secret_manager.alias(POLICY_SECRET, f"v{number}", number)
    secret_manager.alias(POLICY_SECRET, "live", 1)
    one = instance(POLICY=f"{POLICY_SECRET}/versions/live")
    assert one.status() == 200
    secret_manager.alias(POLICY_SECRET, "live", 2)
    clock.tick(HOUR)
    assert one.status() == 401


def test_crowd_at_an_idle_instance_costs_one_read_and_all_wait_for_it(
    instance: Callable[..., Instance], secret_manager: SecretManager, upstream: Appgregator, clock: Moved
) -> None:
    secret_manager.add(POLICY_SECRET, policy(upstream.origin).encode())
    one = instance(POLICY=LATEST)
    secret_manager.add(POLICY_SECRET, changed(policy(upstream.origin)).encode())
    secret_manager.forget()
    secret_manager.delay = 0.3
    clock.tick(HOUR)
    found = at_once(50, lambda _: one.policies.current(clock() + 25))
    assert secret_manager.accesses == (LATEST,)
    assert len(found) == 50
    assert all(set(policies.callers) == set(found[0].callers) for policies in found)
    assert Proof("key", bytes.fromhex(sha256(NEW_KEY))) in found[0].callers


def test_revoked_key_is_refused_by_the_server_that_forks(
    server: Callable[..., Server], secret_manager: SecretManager, upstream: Appgregator
) -> None:
    secret_manager.add(POLICY_SECRET, policy(upstream.origin).encode())
    running = server(POLICY=LATEST, POLICY_SECONDS=str(PROMISED_SECONDS / 100))
    assert running.call()[0] == 200
    secret_manager.add(POLICY_SECRET, changed(policy(upstream.origin)).encode())
    time.sleep(MUST_SECONDS / 100)
    assert [running.call()[0], running.call(key=NEW_KEY)[0]] == [401, 200]
    secret_manager.add(POLICY_SECRET, b"callers: [")
    time.sleep(MUST_SECONDS / 100)
    assert running.call(key=NEW_KEY)[0] == 200
    running.stop()
    report = verify(running.record.text().splitlines())
    assert (report.faults, report.doubts) == ([], [])
    kinds = [line["kind"] for line in running.record.entries()]
    assert [entry["result"] for entry in running.record.entries("policy")] == ["taken", "refused"]
    assert kinds == ["intent", "outcome", "policy", "refusal", "intent", "outcome", "policy", "intent", "outcome"]
    assert running.errors.read_text() == ""


# ---------------------------------------------------------------- what changes nothing


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("", ":1: the document is empty"),
        ("callers: [", "this is not YAML"),
        (f"{UPSTREAM_KEY}\n", "must be an object"),
        (f"{KEY}: 1\n", "no such key"),
        ("connections: 1\ncallers: 1\nlimits: whsec_abcdefgh\n", "no such key"),
    ],
)
def test_invalid_document_changes_nothing_and_is_on_record_once(
    instance: Callable[..., Instance], place: Place, upstream: Appgregator, clock: Moved, *, wrong: str, says: str
) -> None:
    place.write(policy(upstream.origin))
    one = instance(POLICY=place.setting)
    place.write(wrong)
    for _ in range(5):
        clock.tick(HOUR)
        assert one.status() == 200
    (line,) = [line for line in one.function.record.lines() if line["countersign"]["kind"] == "policy"]
    entry = line["countersign"]
    assert line["severity"] == "ERROR"
    assert (entry["result"], entry["document"]) == ("refused", sha256(wrong))
    assert entry["policy"] == sha256(policy(upstream.origin))
    assert entry["problem"].startswith(place.setting + ":")
    assert says in entry["problem"]
    assert KEY not in one.function.record.text()
    assert UPSTREAM_KEY not in one.function.record.text()
    place.write(changed(policy(upstream.origin)))
    clock.tick(HOUR)
    assert one.status() == 401
    assert one.told() == ["refused", "taken"]


def test_invalid_document_that_was_put_right_and_comes_again_is_on_record_again(
    instance: Callable[..., Instance], upstream: Appgregator, tmp_path: Path, clock: Moved
) -> None:
    one = instance()
    for text in ("callers: [", policy(upstream.origin)) * 2:
        (tmp_path / "policy.yaml").write_text(text)
        clock.tick(HOUR)
        assert one.status() == 200
    assert one.told() == ["refused", "refused"]


@pytest.mark.parametrize("content", [b"callers: \xff", b"#" * (MAX_DOCUMENT + 1)], ids=["not UTF-8", "too large"])
def test_bytes_that_are_no_document_change_nothing(
    instance: Callable[..., Instance], tmp_path: Path, clock: Moved, content: bytes
) -> None:
    one = instance()
    (tmp_path / "policy.yaml").write_bytes(content)
    clock.tick(HOUR)
    assert one.status() == 200
    (entry,) = one.function.record.entries("policy")
    assert entry["problem"].startswith("POLICY: ")


def test_what_would_stop_the_start_does_not_take_over_either(tmp_path: Path, clock: Moved) -> None:
    file, audit = tmp_path / "policy.yaml", tmp_path / "audit"
    file.write_text(policy("https://upstream.example"))
    gate = load({"POLICY": str(file), "STORE": "memory", "AUDIT": f"file:{audit}", "K_SERVICE": "stripe"})
    for wrong, problem in (
        (policy("http://127.0.0.1:9"), "POLICY sends calls to this machine"),
        (policy("https://u.example", credentials=["google: ann@acme.example"]), "POLICY names a Google identity"),
    ):
        file.write_text(wrong)
        clock.tick(HOUR)
        assert gate.policies.current(clock() + 25).connections["billing"].origin == "https://upstream.example"
        assert problem in audit.read_text()


# ---------------------------------------------------------------- a source that is down


def test_last_good_policies_stay_while_the_source_is_down(
    instance: Callable[..., Instance], secret_manager: SecretManager, upstream: Appgregator, clock: Moved
) -> None:
    secret_manager.add(POLICY_SECRET, policy(upstream.origin).encode())
    one = instance(POLICY=LATEST)
    assert one.status() == 200  # the key is in hand from here on
    secret_manager.forget()
    secret_manager.down(grpc.StatusCode.UNKNOWN)  # which Google's client does not try again
    clock.tick(MUST_SECONDS + 1)
    assert [one.status() for _ in range(10)] == [200] * 10
    assert secret_manager.accesses.count(LATEST) == 1
    clock.tick(PAUSE_SECONDS)
    assert [one.status() for _ in range(10)] == [200] * 10
    assert secret_manager.accesses.count(LATEST) == 2
    assert one.told() == ["unread"]
    clock.tick(REPORT_SECONDS)
    assert [one.status() for _ in range(10)] == [200] * 10
    assert one.told() == ["unread", "unread"]
    line = next(line for line in one.function.record.lines() if line["countersign"]["kind"] == "policy")
    assert line["severity"] == "ERROR"
    assert line["countersign"]["problem"] == f"POLICY: {LATEST} cannot be read from Secret Manager: Unknown."
    assert "document" not in line["countersign"]
    secret_manager.add(POLICY_SECRET, changed(policy(upstream.origin)).encode())
    secret_manager.up()
    clock.tick(PAUSE_SECONDS)
    assert one.status() == 401


@pytest.mark.parametrize("fault", ["removed", "forbidden"])
def test_last_good_policies_stay_when_the_file_is_gone(
    instance: Callable[..., Instance], tmp_path: Path, clock: Moved, fault: str
) -> None:
    one = instance()
    file = tmp_path / "policy.yaml"
    if fault == "removed":
        file.unlink()
    else:
        file.rename(tmp_path / "away")
        file.mkdir()
    clock.tick(HOUR)
    assert [one.status() for _ in range(5)] == [200] * 5
    (entry,) = one.function.record.entries("policy")
    assert entry["result"] == "unread"
    assert "cannot be read" in entry["problem"]


@pytest.mark.parametrize("how", ["a pipe", "no answer"])
def test_last_good_policies_stay_while_the_file_hangs_and_it_is_on_record_once(
    instance: Callable[..., Instance],
    tmp_path: Path,
    clock: Moved,
    hold: Callable[[Path], Held],
    monkeypatch: pytest.MonkeyPatch,
    *,
    how: str,
) -> None:
    """D11."""
    one = instance()
    file = tmp_path / "policy.yaml"
    if how == "a pipe":
        file.unlink()
        os.mkfifo(file)
    else:
        hold(file)
    monkeypatch.setattr("gateway.files.READ_SECONDS", 0.3)
    clock.tick(MUST_SECONDS + 1)
    for _ in range(5):
        assert at_once(10, lambda _: one.status()) == [200] * 10
        clock.tick(PAUSE_SECONDS)
    (line,) = [line for line in one.function.record.lines() if line["countersign"]["kind"] == "policy"]
    assert (line["severity"], line["countersign"]["result"]) == ("ERROR", "unread")
    why = "the path leads to a pipe" if how == "a pipe" else "reading it takes longer than 0.3 s"
    assert line["countersign"]["problem"] == f"POLICY: {file} cannot be read ({why}). Write the path of a file."


def test_file_that_answers_again_takes_over(
    instance: Callable[..., Instance],
    tmp_path: Path,
    clock: Moved,
    hold: Callable[[Path], Held],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = instance()
    file = tmp_path / "policy.yaml"
    file.write_text(changed(file.read_text()))
    held = hold(file)
    with monkeypatch.context() as impatient:
        impatient.setattr("gateway.files.READ_SECONDS", 0.3)
        clock.tick(HOUR)
        assert one.status() == 200
    (left,) = [thread for thread in threading.enumerate() if thread.name == "file"]
    held.let_go()
    left.join(60)
    clock.tick(PAUSE_SECONDS)
    assert one.status() == 401


def test_short_failure_is_made_good_before_anybody_needs_to_know(
    instance: Callable[..., Instance], tmp_path: Path, clock: Moved
) -> None:
    one = instance()
    file = tmp_path / "policy.yaml"
    file.rename(tmp_path / "away")
    clock.tick(CHECK_SECONDS)
    assert one.status() == 200
    ended(one.policies)
    (tmp_path / "away").rename(file)
    clock.tick(PAUSE_SECONDS)
    assert one.status() == 200
    ended(one.policies)
    assert one.told() == []
    assert clock() - one.policies._as_of < PAUSE_SECONDS


# ---------------------------------------------------------------- slow, stuck and broken


@dataclass
class Slow:
    """A source and a judge that take as long as they are told to."""

    tmp_path: Path
    clock: Moved

    def __post_init__(self) -> None:
        self.source = File(str(self.tmp_path / "slow.yaml"))
        self.write(policy("https://upstream.example"))
        self.sink = Lines()
        self.go_on, self.judging, self.judged = threading.Event(), threading.Event(), 0
        self.broken: Exception | None = None
        first = self.real(self.source.read())
        audit = Audit(self.sink, policy=first.digest)
        self.policies = Policies(
            self.source, self.judge, first, digest=first.digest, read_at=self.clock(), audit=audit, clock=self.clock
        )

    def write(self, text: str) -> None:
        Path(self.source.where).write_text(text)

    def real(self, data: bytes) -> PolicySet:
        return judge(data, "slow.yaml", on_cloud=True, google=True)

    def judge(self, data: bytes) -> PolicySet:
        self.judged += 1
        self.judging.set()
        assert self.go_on.wait(60)
        if self.broken is not None:
            raise self.broken
        return self.real(data)

    def has(self, key: str, patience: float = 25) -> bool:
        return Proof("key", bytes.fromhex(sha256(key))) in self.policies.current(self.clock() + patience).callers


@pytest.fixture
def slow(tmp_path: Path, clock: Moved) -> Slow:
    return Slow(tmp_path, clock)


def test_long_judging_holds_up_nobody_until_the_policies_are_old(slow: Slow, clock: Moved) -> None:
    slow.write(changed(policy("https://upstream.example")))
    clock.tick(CHECK_SECONDS)
    assert at_once(50, lambda _: slow.has(KEY)) == [True] * 50
    assert slow.judging.wait(60)
    clock.tick(MUST_SECONDS - CHECK_SECONDS)
    assert slow.has(KEY, patience=0.1)  # it waits, as long as it can
    threading.Timer(0.1, slow.go_on.set).start()
    assert at_once(50, lambda _: slow.has(NEW_KEY)) == [True] * 50
    assert slow.judged == 1


def test_calls_wait_for_a_stuck_check_only_so_long_all_in_all(slow: Slow, clock: Moved) -> None:
    slow.write(changed(policy("https://upstream.example")))
    clock.tick(HOUR)
    assert slow.has(KEY, patience=0.05)
    clock.tick(WAIT_SECONDS)
    assert slow.has(KEY)  # would be 25 s
    assert slow.judged == 1
    slow.go_on.set()
    ended(slow.policies)
    assert slow.has(NEW_KEY)


def test_what_was_read_before_the_instance_stood_still_is_not_enough(slow: Slow, clock: Moved) -> None:
    slow.write(changed(policy("https://upstream.example")))
    clock.tick(CHECK_SECONDS)
    assert slow.has(KEY)
    assert slow.judging.wait(60)  # and here the platform takes the CPU away, for an hour
    slow.write(policy("https://upstream.example").replace(sha256(KEY), sha256("csk_third")))
    clock.tick(HOUR)
    threading.Timer(0.05, slow.go_on.set).start()
    assert slow.has("csk_third")
    assert [entry["result"] for entry in slow.sink.ours("policy")] == ["taken", "taken"]


def test_error_of_ours_changes_nothing_and_its_text_stays_inside(slow: Slow, clock: Moved) -> None:
    slow.go_on.set()
    slow.broken = ValueError(UPSTREAM_KEY)
    slow.write(changed(policy("https://upstream.example")))
    clock.tick(HOUR)
    assert slow.has(KEY)
    (entry,) = slow.sink.ours("policy")
    assert entry["problem"].endswith("cannot be read (ValueError).")
    slow.broken = None
    clock.tick(PAUSE_SECONDS)
    assert slow.has(NEW_KEY)


def test_no_more_threads_change_nothing(slow: Slow, clock: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    slow.go_on.set()
    slow.write(changed(policy("https://upstream.example")))
    clock.tick(HOUR)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        assert slow.has(KEY)
    clock.tick(PAUSE_SECONDS)
    assert slow.has(NEW_KEY)


# ---------------------------------------------------------------- the record


def test_record_says_which_document_was_in_force_when(
    instance: Callable[..., Instance], tmp_path: Path, clock: Moved
) -> None:
    one = instance()
    file = tmp_path / "policy.yaml"
    before = file.read_text()
    file.write_text(changed(before))
    clock.tick(HOUR)
    assert [one.status(), one.status(NEW_KEY)] == [401, 200]
    lines = one.function.record.lines()
    start, taken, _, intent, _ = [line["countersign"] for line in lines]
    assert (start["kind"], start["policy"]) == ("start", sha256(before))
    assert (taken["kind"], taken["result"], taken["policy"]) == ("policy", "taken", sha256(changed(before)))
    assert lines[1]["severity"] == "NOTICE"
    assert sha256(changed(before)).startswith(intent["policy"])
    assert verify(one.function.record.text().splitlines()).faults == []


def test_chain_that_begins_anew_names_the_document_in_force_by_then() -> None:
    sink = Lines()
    audit = Audit(sink, policy="a" * 64)
    audit.policy_taken("b" * 64)
    audit.close()
    audit.policy_refused("b" * 64, "x")
    audit.close()
    assert [entry["policy"] for entry in sink.ours("start")] == ["a" * 64, "b" * 64]
    assert verify(sink.lines).faults == []


def test_document_takes_over_when_the_record_is_full(
    slow: Slow, clock: Moved, capsys: pytest.CaptureFixture[str]
) -> None:
    slow.go_on.set()
    slow.sink.failing = True
    slow.write(changed(policy("https://upstream.example")))
    clock.tick(HOUR)
    assert slow.has(NEW_KEY)
    cried = json.loads(capsys.readouterr().err)
    assert cried["severity"] == "ALERT"
    assert "policy taken" in cried["message"]


@pytest.mark.parametrize(
    "pasted", ["csk_live0123456789", "whsec_MfKQ9r8GKYqrTwjU", "sk_live_4eC39HqLyjWD", "rk_live_1"]
)
def test_key_that_was_pasted_into_the_document_is_not_in_the_record(pasted: str) -> None:
    sink = Lines()
    data = policy("https://u.example").replace("    owner: tests", f"    {pasted}: tests", 1).encode()
    with pytest.raises(Exception, match=pasted) as caught:
        judge(data, "policy.yaml", on_cloud=False, google=True)
    Audit(sink, policy="").policy_refused("", str(caught.value), document="d")
    assert pasted not in "".join(sink.lines)
    assert "policy.yaml:19: callers.app.[redacted]: no such key" in sink.ours("policy")[0]["problem"]


def test_names_of_any_length_leave_a_short_line() -> None:
    sink = Lines()
    Audit(sink, policy="").policy_refused("", "x" * 1_000_000 + "\n\u2028é", document="d")
    assert max(len(line) for line in sink.lines) < 2000


# ---------------------------------------------------------------- compiled


def compiled_of(text: str) -> bytes:
    return compiled.write(document.read(text, "policy.yaml"))


@dataclass
class Compiled:
    """Where a compiled policy lies."""

    setting: str
    write: Callable[[bytes], object]


@pytest.fixture(params=["file", "Secret Manager"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path, secret_manager: SecretManager) -> Compiled:
    if request.param == "file":
        file = tmp_path / "live.policy"
        return Compiled(str(file), file.write_bytes)
    return Compiled(LATEST, lambda data: secret_manager.add(POLICY_SECRET, data))


def test_compiled_policy_serves_and_the_record_names_its_document(
    instance: Callable[..., Instance], shelf: Compiled, upstream: Appgregator, clock: Moved
) -> None:
    before, after = policy(upstream.origin), changed(policy(upstream.origin))
    shelf.write(compiled_of(before))
    one = instance(POLICY=shelf.setting)
    assert (one.status(), one.status(NEW_KEY)) == (200, 401)
    clock.tick(HOUR)
    assert one.status() == 200
    assert one.told() == []
    shelf.write(compiled_of(after))
    clock.tick(HOUR)
    assert (one.status(), one.status(NEW_KEY)) == (401, 200)
    (taken,) = one.function.record.entries("policy")
    assert (taken["result"], taken["policy"]) == ("taken", sha256(after))
    served = [entry["policy"] for entry in one.function.record.entries("intent")]
    assert served == [sha256(text)[:16] for text in (before, before, after)]


def test_damaged_compiled_policy_changes_nothing_and_is_on_record_once(
    instance: Callable[..., Instance], shelf: Compiled, upstream: Appgregator, clock: Moved
) -> None:
    data = compiled_of(policy(upstream.origin))
    shelf.write(data)
    one = instance(POLICY=shelf.setting)
    shelf.write(data[:-1])
    for _ in range(2):
        clock.tick(HOUR)
        assert one.status() == 200
    (entry,) = one.function.record.entries("policy")
    assert entry["result"] == "refused"
    assert entry["problem"].startswith(f"{shelf.setting}: this compiled policy is damaged or truncated. Compile ")
    shelf.write(data)
    clock.tick(HOUR)
    assert one.status() == 200
    assert one.told() == ["refused"]


def test_document_and_its_compiled_form_take_turns(
    instance: Callable[..., Instance], tmp_path: Path, upstream: Appgregator, clock: Moved
) -> None:
    one = instance()
    for data in (compiled_of(changed(policy(upstream.origin))), policy(upstream.origin).encode()):
        (tmp_path / "policy.yaml").write_bytes(data)
        clock.tick(HOUR)
        one.status()
        ended(one.policies)
    assert one.told() == ["taken", "taken"]
    assert (one.status(), one.status(NEW_KEY)) == (200, 401)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (policy("http://127.0.0.1:9"), "POLICY sends calls to this machine"),
        (policy("https://u.example", credentials=["google: ann@acme.example"]), "POLICY names a Google identity"),
    ],
)
def test_compiled_policy_is_judged_as_its_document_is(text: str, problem: str) -> None:
    with pytest.raises(DocumentError, match=problem):
        judge(compiled_of(text), "acme.policy", on_cloud=True, google=False)
    assert judge(compiled_of(text), "acme.policy", on_cloud=False, google=True).names == {"app", "other"}


@pytest.mark.parametrize("damage", [slice(-1), slice(20)])
def test_function_does_not_start_on_a_damaged_compiled_policy(tmp_path: Path, damage: slice) -> None:
    file = tmp_path / "acme.policy"
    file.write_bytes(compiled_of(policy("https://upstream.example"))[damage])
    with pytest.raises(SettingError, match="this compiled policy is damaged or truncated"):
        load({"POLICY": str(file)})


@pytest.mark.parametrize("form", ["compiled", "document"])
def test_yaml_is_only_loaded_for_a_document(tmp_path: Path, form: str) -> None:
    text = policy("https://upstream.example")
    (tmp_path / "acme").write_bytes(compiled_of(text) if form == "compiled" else text.encode())
    program = "import os, sys; from gateway.settings import load; load(os.environ); print('yaml' in sys.modules)"
    environ = {"PATH": os.environ["PATH"], "POLICY": str(tmp_path / "acme"), "AUDIT": f"file:{tmp_path / 'audit'}"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    assert run.stdout == f"{form == 'document'}\n"
