"""The operator's word on calls whose outcome nobody knows."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec.structs import replace

from console.__main__ import main
from console.audit import verify
from gateway.lines import Entry
from gateway.stores.connecting import Client
from gateway.stores.firestore import Firestore
from gateway.stores.redis import Redis
from policies.idempotency import LEASE, RETENTION
from policies.model import Answer, Outcome
from policies.outcomes import Reply
from policies.refusals import OutcomeStillUnknown, OutcomeUnknown, StoreUnavailable
from sandbox.__main__ import ROOT
from tests.conftest import RESPONSE, Clock, Record
from tests.gateway.conftest import admit, granted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from policies.model import Grant
    from sandbox.appgregator import Appgregator
    from tests.conftest import Function

UNKNOWN = Reply(Outcome.UNKNOWN, refusal=OutcomeUnknown())


#: What an operator can reach, by the fixture that prepares it.
LEDGERS: dict[str, type[Redis | Firestore]] = {"redis_url": Redis, "firestore_url": Firestore}


@pytest.fixture(params=[pytest.param(url, marks=pytest.mark.stores) for url in LEDGERS])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Redis | Firestore]:
    url: str = request.getfixturevalue(request.param)
    monkeypatch.setenv("STORE", url)
    return lambda clock=None: LEDGERS[request.param](url, clock)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Have the stores, those of the command too, go by a clock that is moved by hand."""
    clock = Clock()
    for name, kind in LEDGERS.copy().items():
        moved: Any = lambda url, _=None, kind=kind: kind(url, clock)  # noqa: E731 - it stands for a class
        monkeypatch.setattr(f"{kind.__module__}.{kind.__name__}", moved)
        monkeypatch.setitem(LEDGERS, name, moved)
    return clock.tick


@pytest.fixture
def ledger(make: Callable[..., Redis | Firestore]) -> Redis | Firestore:
    return make()


def keyed(key: str) -> Grant:
    return granted(idempotency_key=key)


def leave(store: Redis | Firestore, key: str, reply: Reply) -> str:
    """Leave a key in the state that ``reply`` leads to; return its name in the ledger."""
    grant = keyed(key)
    store.settle(grant, admit(store, grant), reply, Answer(200, b'{"id":"in_1"}'))
    assert grant.ledger_key is not None
    return grant.ledger_key


def test_list_shows_what_waits_and_nothing_else(ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "list"]) == 0
    assert capsys.readouterr().out == "No call is awaiting a decision.\n"
    unknown = leave(ledger, "unknown", UNKNOWN)
    settled = leave(ledger, "settled", Reply(Outcome.SUCCEEDED, answer={}))
    running = keyed("running")
    admit(ledger, running)
    assert main(["ledger", "list"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["KEY", "STATE", "SINCE", "AGE", "AMOUNT", "WHAT"]
    assert re.fullmatch(rf"{unknown[:16]}  unknown    \S+Z  just now +app, invoices\.create on billing", line)
    assert main(["ledger", "list", "--all"]) == 0
    states = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert states == {
        unknown[:16]: "unknown",
        settled[:16]: "succeeded",
        str(running.ledger_key)[:16]: "running",
    }


@pytest.mark.parametrize(
    ("note", "says"),
    [
        ("PermissionDenied", "Your own account needs roles/datastore.user on this database"),
        ("NotFound", "There is no such database"),
        ("DefaultCredentialsError", "Sign in: gcloud auth application-default login."),
        ("timeout", "Is STORE right, and can this machine reach it?"),
    ],
)
def test_store_that_lets_nobody_in_is_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], note: str, says: str
) -> None:
    def refuse(*_: object) -> None:
        raise StoreUnavailable(note=note)

    monkeypatch.setattr(Firestore, "held", refuse)
    monkeypatch.setenv("STORE", "firestore://acme-prod")
    assert main(["ledger", "list"]) == 1
    assert capsys.readouterr().err.startswith(f"The store does not answer ({note}). {says}")


def test_call_that_was_cut_off_waits_once_its_lease_has_run_out(make: Callable[..., Redis | Firestore]) -> None:
    clock = Clock()
    store = make(clock)
    admit(store, keyed("cut off"))
    (held,) = store.held()
    assert not held.open
    clock.tick(LEASE)
    (held,) = store.held()
    assert held.open


def test_show_tells_what_to_do(ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str]) -> None:
    key = leave(ledger, "unknown", UNKNOWN)
    assert main(["ledger", "show", key[:16]]) == 0
    told = capsys.readouterr().out
    assert f"key        {key}" in told
    assert f"countersign ledger resolve {key[:16]} --created INVOICE --by YOU" in told


def test_created_is_what_the_same_key_is_told_from_then_on(
    function: Callable[..., Function],
    upstream: Appgregator,
    make: Callable[..., Redis | Firestore],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = function(STORE=os.environ["STORE"])
    upstream.fail_next("close_after")
    assert gate.post(Idempotency_Key="order-1").status_code == 424
    (intent,) = gate.record.entries("intent")
    monkeypatch.delenv("AUDIT")
    assert main(["ledger", "resolve", intent["ledger"], "--created", "in_77", "--by", "Ann"]) == 0
    out, err = capfd.readouterr()
    entries = [json.loads(line)["countersign"] for line in out.splitlines()]
    assert [entry["kind"] for entry in entries] == ["start", "resolution", "resolved", "stop"]
    assert verify(out.splitlines()).doubts == []
    resolution = entries[1]
    assert (resolution["ledger"], resolution["created"], resolution["by"]) == (intent["ledger"], "in_77", "Ann")
    assert "in_77" in err
    response = gate.post(Idempotency_Key="order-1")
    granted_ = dict.fromkeys(field.partition(".")[0] for field in RESPONSE.split(", "))
    assert (response.status_code, response.json) == (200, {**granted_, "id": "in_77", "replayed": True})
    assert response.headers["Idempotent-Replayed"] == "true"
    assert upstream.invoices == 1


def test_not_created_lets_the_same_key_be_sent_again_once_nothing_can_arrive_any_more(
    later: Callable[[float], None], ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str]
) -> None:
    key = leave(ledger, "unknown", UNKNOWN)
    with pytest.raises(OutcomeStillUnknown):
        admit(ledger, keyed("unknown"))
    assert main(["ledger", "resolve", key, "--not-created", "--yes", "--by", "Ann"]) == 1
    assert "may still be running. Wait half a minute" in capsys.readouterr().err
    later(LEASE)
    assert main(["ledger", "resolve", key, "--not-created", "--yes", "--by", "Ann"]) == 0
    assert admit(ledger, keyed("unknown")).replay is None


def test_approval_is_listed_and_no_word_against_it_is_taken(
    later: Callable[[float], None], ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str]
) -> None:
    key = leave(ledger, "waits", replace(UNKNOWN, approval="apreq_1"))
    later(1000 * LEASE)
    assert main(["ledger", "list"]) == 0
    assert (
        capsys.readouterr().out.rstrip().endswith("app, invoices.create on billing, waits for apreq_1 to be approved")
    )
    assert main(["ledger", "show", key]) == 0
    assert "The upstream has a person approve this call (apreq_1)" in capsys.readouterr().out
    assert main(["ledger", "resolve", key, "--not-created", "--yes", "--by", "Ann"]) == 1
    assert "A person may still approve this call at the upstream" in capsys.readouterr().err
    assert main(["ledger", "resolve", key, "--created", "in_77", "--by", "Ann"]) == 0
    replay = admit(ledger, keyed("waits")).replay
    assert replay is not None
    assert replay.body == b'{"id":"in_77"}'


def test_approval_that_the_upstream_cannot_be_asked_about_is_ended_by_an_operator(
    later: Callable[[float], None], ledger: Redis | Firestore
) -> None:
    key = leave(ledger, "waits", replace(UNKNOWN, approval="apreq_1", mute=True))
    later(LEASE)
    with pytest.raises(OutcomeStillUnknown) as refusal:
        admit(ledger, keyed("waits"))
    assert "a person approve this call" in refusal.value.detail
    assert main(["ledger", "resolve", key, "--not-created", "--yes", "--by", "Ann"]) == 0
    assert admit(ledger, keyed("waits")).replay is None


@pytest.mark.parametrize("word", [["--not-created", "--yes"], ["--created", "in_77"]])
def test_refusal_that_proves_nothing_can_be_resolved(
    ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str], word: list[str]
) -> None:
    grant = keyed("rejected")
    rejected = Answer(400, b'{"detail":"Probably nothing was created."}')
    ledger.settle(grant, admit(ledger, grant), Reply(Outcome.REJECTED), rejected)
    assert admit(ledger, grant).replay == rejected
    key = str(grant.ledger_key)
    assert main(["ledger", "list"]) == 0
    assert capsys.readouterr().out == "No call is awaiting a decision.\n"
    assert main(["ledger", "show", key]) == 0
    assert f"countersign ledger resolve {key[:16]} --not-created --by YOU" in capsys.readouterr().out
    assert main(["ledger", "resolve", key, *word, "--by", "Ann"]) == 0
    replay = admit(ledger, grant).replay
    assert (replay and replay.body) == (b'{"id":"in_77"}' if "in_77" in word else None)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(Outcome.SUCCEEDED, answer={}), "known already"),
        (None, "may still be running"),
        (Reply(Outcome.FREED), "known already"),
    ],
)
def test_only_an_open_key_is_resolved(
    ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str], reply: Reply | None, says: str
) -> None:
    grant = keyed("k")
    admission = admit(ledger, grant)
    if reply is not None:
        ledger.settle(grant, admission, reply, Answer(200, b'{"id":"in_1"}'))
    before = list(ledger.held())
    assert main(["ledger", "resolve", str(grant.ledger_key), "--not-created", "--yes", "--by", "Ann"]) == 1
    assert says in capsys.readouterr().err
    assert list(ledger.held()) == before


def test_keys_that_begin_alike_are_not_guessed_between(
    ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str]
) -> None:
    store, grant = ledger, keyed("k")
    for end in "ab":
        admit(store, replace(grant, ledger_key="0" * 63 + end))
    assert len(list(ledger.held("0" * 16))) == 2
    assert main(["ledger", "show", "0" * 16]) == 1
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "short"], "16 hexadecimal digits"),
        (["show", "*" * 16], "16 hexadecimal digits"),
        (["resolve", "0" * 16, "--created", "1234", "--by", "Ann"], "--created takes the invoice's id"),
        (["resolve", "0" * 16, "--not-created", "--by", " "], "--by takes the name"),
        (["resolve", "0" * 16, "--not-created", "--by", "A\nB"], "--by takes the name"),
        (["show", "0" * 16], "no such key"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["ledger", *arguments]) == 1
    out, err = capsys.readouterr()
    assert says in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("store", ["", "memory", "redis://:hunter2@127.0.0.1:1", "firestore://acme-prod"])
def test_ledger_that_cannot_be_reached_is_said_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    monkeypatch.setenv("STORE", store)
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")
    assert main(["ledger", "list"]) == 1
    err = capsys.readouterr().err
    assert "STORE" in err
    assert "hunter2" not in err


# ---------------------------------------------------------------- what an operator sees


def test_amount_is_shown_where_the_kept_answer_has_it_and_who_said_what(
    later: Callable[[float], None], ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str]
) -> None:
    grant = keyed("settled")
    answer = Answer(200, b'{"id":"in_1","amount_due":123400,"currency":"usd"}')
    ledger.settle(grant, admit(ledger, grant), Reply(Outcome.SUCCEEDED, answer={}), answer)
    later(2 * 3600)
    unknown = leave(ledger, "unknown", UNKNOWN)
    later(LEASE)
    assert main(["ledger", "resolve", unknown, "--created", "in_77", "--by", "Ann Lee"]) == 0
    capsys.readouterr()
    assert main(["ledger", "list", "--all"]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert re.search(r"  1,234\.00 USD  app, invoices\.create on billing$", first)
    assert re.search(r"    app, invoices\.create on billing, Ann Lee: created in_77 \(can be taken back\)$", second)


def test_what_will_be_done_is_shown_before_and_not_created_is_asked_twice(
    later: Callable[[float], None],
    ledger: Redis | Firestore,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = leave(ledger, "unknown", UNKNOWN)
    later(LEASE)
    command = ["ledger", "resolve", key, "--not-created", "--by", "Ann"]
    assert main(command) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{key[:16]}  unknown" in err
    assert "What Ann says goes on record: nothing was created." in err
    assert "add --yes" in err
    assert err.endswith("Nothing was changed.\n")

    for word in ("", "y\n", "yes\n", "not\n"):
        monkeypatch.setattr("sys.stdin", Terminal(word))
        assert main(command) == 1
        assert [one.open for one in ledger.held(key)] == [True]
    monkeypatch.setattr("sys.stdin", Terminal("not-created\n"))
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert "write not-created once more" in err
    assert [json.loads(line)["message"] for line in out.splitlines()][1:3] == [
        "Ann: not created, of what app asked for with invoices.create on billing",
        "the decision took effect, of what app asked for with invoices.create on billing",
    ]


def test_decision_goes_on_record_where_audit_says(
    later: Callable[[float], None], ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    key = leave(ledger, "unknown", UNKNOWN)
    later(LEASE)
    monkeypatch.setenv("AUDIT", f"file:{tmp_path / 'none' / 'audit.jsonl'}")
    command = ["ledger", "resolve", key, "--created", "in_77", "--by", "Ann"]
    assert main(command) == 1
    assert "AUDIT" in capsys.readouterr().err
    assert [one.open for one in ledger.held(key)] == [True]
    monkeypatch.setenv("AUDIT", f"file:{tmp_path / 'audit.jsonl'}")
    assert main(command) == 0
    assert capsys.readouterr().out == ""
    entries = Record(tmp_path / "audit.jsonl").entries()
    assert [entry["kind"] for entry in entries] == ["resolution", "resolved"]
    assert all((entry["caller"], entry["connection"]) == ("app", "billing") for entry in entries)


def test_audit_id_leads_to_the_key_by_way_of_an_export(
    function: Callable[..., Function],
    upstream: Appgregator,
    ledger: Redis | Firestore,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    gate = function(STORE=os.environ["STORE"])
    upstream.fail_next("close_after")
    ids = [gate.post(Idempotency_Key="order-1").headers["Countersign-Audit-Id"] for _ in range(2)]
    ids.append(gate.post(key="csk_wrong").headers["Countersign-Audit-Id"])
    (held,) = ledger.held()
    for audit_id in ids[:2]:
        assert main(["ledger", "show", audit_id, "--record", str(tmp_path / "audit.jsonl")]) == 0
        assert f"key        {held.key}" in capsys.readouterr().out
    assert main(["ledger", "show", ids[2], "--record", str(tmp_path / "audit.jsonl")]) == 1
    assert "had no idempotency key" in capsys.readouterr().err
    assert main(["ledger", "show", ids[0], "--record", "/nowhere"]) == 1
    assert "/nowhere: it cannot be read" in capsys.readouterr().err


def test_long_list_of_redis_is_read_in_batches(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, grant = Redis(redis_url), keyed("k")
    for number in range(3000):
        admit(store, replace(grant, ledger_key=f"{number:064x}"))
    trips = 0
    asked = Client._asked

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal trips
        trips += 1
        return asked(self, *arguments)

    monkeypatch.setattr(Client, "_asked", counted)
    monkeypatch.setattr(Redis, "_read", None)
    assert len({held.key for held in store.held()}) == 3000
    assert trips < 30


# ---------------------------------------------------------------- a decision that is taken back


class Terminal(io.StringIO):
    """Somebody at a terminal, who writes this."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def decided(later: Callable[[float], None], ledger: Redis | Firestore, capfd: pytest.CaptureFixture[str]) -> str:
    """A key that Ann has decided about: its name in the ledger."""
    key = leave(ledger, "unknown", UNKNOWN)
    later(LEASE)
    assert main(["ledger", "resolve", key, "--created", "in_77", "--by", "Ann"]) == 0
    assert f"it can be taken back: countersign ledger reopen {key[:16]} --by YOU" in capfd.readouterr().err
    return key


def test_decision_is_listed_and_shown_while_it_can_be_taken_back(
    decided: str, later: Callable[[float], None], ledger: Redis | Firestore, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ledger", "list"]) == 0
    line = capfd.readouterr().out.splitlines()[1]
    assert line.startswith(f"{decided[:16]}  succeeded")
    assert line.endswith("app, invoices.create on billing, Ann: created in_77 (can be taken back)")
    assert main(["ledger", "show", decided]) == 0
    assert f"countersign ledger reopen {decided[:16]} --by YOU" in capfd.readouterr().out
    assert main(["ledger", "resolve", decided, "--not-created", "--yes", "--by", "Bob"]) == 1
    assert "take the decision back first: countersign ledger reopen" in capfd.readouterr().err
    admit(ledger, keyed("unknown"))
    later(2 * 3600)
    assert main(["ledger", "list"]) == 0
    assert capfd.readouterr().out == "No call is awaiting a decision.\n"
    assert main(["ledger", "list", "--all"]) == 0
    assert "Ann: created in_77 (first used " in capfd.readouterr().out


def test_taking_back_is_shown_before_asked_for_twice_and_recorded(
    decided: str, ledger: Redis | Firestore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["ledger", "reopen", decided[:16], "--by", "Bob"]
    assert main(command) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{decided[:16]}  succeeded" in err
    assert "That Bob takes this decision back goes on record. The call is then again what it was, of unknown" in err
    assert err.endswith("add --yes.\nNothing was changed.\n")
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    assert main(command) == 1
    assert [one.open for one in ledger.held()] == [False]
    capfd.readouterr()
    monkeypatch.setattr("sys.stdin", Terminal("reopen\n"))
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert err.endswith("Reopened. It can be resolved again.\n")
    assert [(one.open, one.said) for one in ledger.held()] == [(True, "")]
    lines = [json.loads(line) for line in out.splitlines()]
    for line in out.splitlines():
        msgspec.json.decode(line, type=Entry)
    assert [line["message"] for line in lines][1:3] == [
        "Bob: takes back what was said (Ann: created in_77), of what app asked for with invoices.create on billing",
        "the decision took effect, of what app asked for with invoices.create on billing",
    ]
    resolution, resolved = (line["countersign"] for line in lines[1:3])
    assert (resolution["kind"], resolution["takes_back"], resolution["by"]) == (
        "resolution", "Ann: created in_77", "Bob",
    )  # fmt: skip
    assert (resolved["kind"], resolved["verdict"]) == ("resolved", "reopened")
    with pytest.raises(OutcomeStillUnknown):
        admit(ledger, keyed("unknown"))
    assert main(["ledger", "resolve", decided, "--created", "in_78", "--by", "Bob"]) == 0
    assert admit(ledger, keyed("unknown")).replay == Answer(200, b'{"id":"in_78"}', partial=True)


@pytest.mark.parametrize("word", [["--created", "in_77"], ["--not-created", "--yes"]])
def test_decision_that_a_call_has_used_is_not_taken_back_and_that_says_when(
    later: Callable[[float], None], ledger: Redis | Firestore, capfd: pytest.CaptureFixture[str], word: list[str]
) -> None:
    key = leave(ledger, "unknown", UNKNOWN)
    later(LEASE)
    assert main(["ledger", "resolve", key, *word, "--by", "Ann"]) == 0
    admit(ledger, keyed("unknown"))
    later(3600)
    capfd.readouterr()
    assert main(["ledger", "reopen", key, "--yes", "--by", "Ann"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert f"A call with this key used the decision (Ann: {word[0].strip('-').replace('-', ' ')}" in err
    assert "at 1970-01-12T13:47:10Z. What a caller was told stands: the decision cannot be taken back." in err
    assert main(["ledger", "show", key]) == 0
    assert ("the decision cannot be taken back" in capfd.readouterr().out) == ("--created" in word)


def test_call_that_is_quicker_than_the_operator_has_the_decision_stand(
    decided: str, ledger: Redis | Firestore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Terminal):
        def readline(self, *_: Any) -> str:  # type: ignore[override]  # text
            assert admit(ledger, keyed("unknown")).replay is not None
            return "reopen\n"

    monkeypatch.setattr("sys.stdin", Slow())
    assert main(["ledger", "reopen", decided, "--by", "Bob"]) == 1
    out, err = capfd.readouterr()
    assert "used the decision (Ann: created in_77) " in err
    assert json.loads(out.splitlines()[2])["message"].startswith("the decision did not take effect (told)")


def test_decision_that_has_ended_or_was_never_made_is_not_taken_back(
    decided: str, later: Callable[[float], None], ledger: Redis | Firestore, capfd: pytest.CaptureFixture[str]
) -> None:
    other = leave(ledger, "another", UNKNOWN)
    assert main(["ledger", "reopen", other, "--yes", "--by", "Ann"]) == 1
    assert "No operator's decision is in force for this call" in capfd.readouterr().err
    later(RETENTION)
    assert main(["ledger", "reopen", decided, "--yes", "--by", "Ann"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "no such key any more. A decision is kept for 72 hours, and cannot be taken back after that." in err


# ---------------------------------------------------------------- a decision that is signed


def test_decisions_are_signed_like_an_instances_record(
    later: Callable[[float], None], ledger: Redis | Firestore, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    assert main(["audit", "keygen", str(tmp_path / "ann.pem")]) == 0
    (tmp_path / "ann.pub").write_text(capfd.readouterr().out)
    monkeypatch.setenv("RECORD_KEY", f"file:{tmp_path / 'ann.pem'}")
    key, export = leave(ledger, "unknown", UNKNOWN), tmp_path / "export.jsonl"
    later(LEASE)
    written = ""
    for command in (["resolve", key, "--created", "in_77"], ["reopen", key, "--yes"]):
        assert main(["ledger", *command, "--by", "Ann"]) == 0
        out = capfd.readouterr().out
        written += out
        kinds = [json.loads(line)["countersign"]["kind"] for line in out.splitlines()]
        assert kinds == ["start", "resolution", "checkpoint", "resolved", "checkpoint", "stop"]
    export.write_text(written)
    assert main(["audit", "verify", str(export), "--key", str(tmp_path / "ann.pub")]) == 0
    export.write_text(written.replace('"by":"Ann"', '"by":"Bob"'))
    assert main(["audit", "verify", str(export), "--key", str(tmp_path / "ann.pub")]) == 1


@pytest.mark.parametrize(
    ("key", "says"), [("file:/nowhere", "RECORD_KEY: file:/nowhere cannot sign"), ("secret", "RECORD_KEY must say")]
)
def test_key_that_cannot_be_read_is_said_before_anything_is_done(  # noqa: PLR0917 - the fixtures
    decided: str, ledger: Redis | Firestore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    key: str, says: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("RECORD_KEY", key)
    assert main(["ledger", "reopen", decided, "--yes", "--by", "Ann"]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err
    assert [one.open for one in ledger.held()] == [False]


@pytest.mark.stores
def test_commands_of_the_page_sign_a_decision_with_a_key_of_the_operators_own(redis_url: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "record.md").read_text("utf-8")
    (block,) = re.findall(r"^```sh\n(\./countersign audit keygen ann\.pem.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "countersign").symlink_to(ROOT / "countersign")
    key = leave(Redis(redis_url), "unknown", UNKNOWN)
    script = f"./countersign audit keygen record.pem > record.pub\n{block}"
    done = subprocess.run(
        ["sh", "-ec", script.replace("KEY --created in_…", f"{key} --created in_77")], cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "STORE": redis_url}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "6 lines of 1 instances: nothing was edited, removed or inserted, 0 to look at.\n", (
        done.stderr
    )


def test_call_that_was_only_counted_is_not_said_to_have_had_no_key(
    ledger: Redis | Firestore, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    counted = {"kind": "counted", "instance": "0" * 12, "batch": 1, "count": 7, "counted": "replay", "caller": "app"}
    counted |= {"sequence": 9, "audit_id": f"{'0' * 12}-{'0' * 24}", "time": "2026-11-26T20:23:21.457091Z"}
    (tmp_path / "export").write_text(json.dumps({"countersign": counted}))
    for end in ("counted-1-3", "unwritten-1"):
        assert main(["ledger", "show", f"{'0' * 12}-{'1' * 24}-{end}", "--record", str(tmp_path / "export")]) == 1
        assert "This call has no line of its own" in capsys.readouterr().err
