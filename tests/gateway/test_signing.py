"""Signed checkpoints: when they are written, what they prove, and that a missing key stops nobody."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from console.audit import verify
from gateway.chain import CHECKPOINT_SECONDS, GENESIS, Audit, audit_id_of, line_hash, signed
from gateway.kept import DownError
from gateway.lines import Entry
from gateway.signing import PAUSE_SECONDS, RecordKey, key_id, new_key, private_key, public_key, text_of, verifies
from policies.refusals import PathUnknown
from tests.gateway.conftest import at_once, granted, refused, sent

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Clock
    from tests.gateway.conftest import Lines

PAIR = new_key()
PEM = text_of(PAIR).encode()
PUBLIC = PAIR.public_key()


class Place:
    """Where the key lies, and what came of reading it."""

    def __init__(self, found: bytes | DownError = PEM) -> None:
        self.found, self.reads = found, 0

    def __call__(self) -> bytes | DownError:
        self.reads += 1
        return self.found


def recording(sink: Lines, clock: Clock, place: Place) -> Audit:
    key = RecordKey("file:record-key", place.found, place, clock)
    return Audit(sink, policy="p" * 64, key=key, clock=clock, monotonic=clock)


def kinds(sink: Lines) -> list[str]:
    return [entry["kind"] for entry in sink.ours()]


# ---------------------------------------------------------------- when


def test_lone_call_is_signed_whole_and_so_is_the_end(sink: Lines, clock: Clock) -> None:
    audit = recording(sink, clock, Place())
    sent(audit)
    assert kinds(sink) == ["start", "intent", "outcome", "checkpoint"]
    clock.tick(0.5)
    sent(audit)
    assert kinds(sink)[4:] == ["intent", "outcome"]
    clock.tick(CHECKPOINT_SECONDS)
    refused(audit, PathUnknown())
    assert kinds(sink)[6:] == ["refusal", "checkpoint"]
    audit.close()
    assert kinds(sink)[8:] == ["checkpoint", "stop"]
    assert [entry.get("last") for entry in sink.ours("checkpoint")] == [None, None, True]
    for line in sink.lines:
        msgspec.json.decode(line, type=Entry)
    report = verify(sink.lines, keys=[PUBLIC])
    assert (report.lines, report.checkpoints, report.faults, report.doubts) == (10, 3, [], [])


def test_signature_covers_all_of_a_checkpoint_but_what_is_made_of_it(sink: Lines, clock: Clock) -> None:
    audit = recording(sink, clock, Place())
    sent(audit)
    (line,) = [line for line in chain_of(sink) if line["kind"] == "checkpoint"]
    assert line["key"] == key_id(PUBLIC)

    def holds(line: dict[str, Any]) -> bool:
        read = line["severity"], line["message"]
        return verifies(PUBLIC, line["signature"], signed(*read, content_of(line)))

    assert holds(line)
    for name in line.keys() - {"signature", "hash", "audit_id"}:
        assert not holds(line | {name: "other"}), name


def test_flood_is_signed_once_a_second(sink: Lines, clock: Clock) -> None:
    audit = recording(sink, clock, Place())
    for _ in range(3000):
        refused(audit, PathUnknown())
        clock.tick(0.001)
    assert len(sink.ours("checkpoint")) == 3


def test_calls_at_once_write_one_checkpoint(sink: Lines, clock: Clock) -> None:
    audit = recording(sink, clock, Place())
    at_once(16, lambda _: sent(audit))
    assert len(sink.ours("checkpoint")) == 1
    audit.close()
    assert verify(sink.lines, keys=[PUBLIC]).faults == []


def test_checkpoint_that_cannot_be_written_costs_no_call_anything_and_comes_later(sink: Lines, clock: Clock) -> None:
    audit = recording(sink, clock, Place())
    write = sink.write

    def full(line: bytes) -> None:
        if b'"checkpoint"' in line:
            raise OSError("no space left")
        write(line)

    sink.write = full  # type: ignore[method-assign]
    assert sent(audit).refusal is None
    sink.write = write  # type: ignore[method-assign]
    assert sent(audit).refusal is None
    assert kinds(sink) == ["start", "intent", "outcome", "intent", "outcome", "checkpoint"]


def test_record_without_a_key_has_no_checkpoint(audit: Audit, sink: Lines) -> None:
    sent(audit)
    audit.close()
    assert kinds(sink) == ["start", "intent", "outcome", "stop"]


# ---------------------------------------------------------------- a key that cannot be read


@pytest.mark.parametrize("found", [DownError("NotFound"), b"", b"no key", base64.b64encode(b"x" * 31)])
def test_key_that_cannot_be_read_is_reported_once_and_the_next_checkpoint_covers_the_lines(
    sink: Lines, clock: Clock, found: bytes | DownError
) -> None:
    place = Place(found)
    audit = recording(sink, clock, place)
    for _ in range(5):
        assert sent(audit).refusal is None
        clock.tick(7)
    (told,) = [json.loads(line) for line in sink.lines if json.loads(line)["severity"] == "ERROR"]
    assert (told["countersign"]["kind"], told["countersign"]["secret"]) == ("secret", "file:record-key")
    assert told["countersign"]["problem"] in {
        "NotFound", "it holds no Ed25519 private key, in PEM without a password or as base64 of 32 bytes",
    }  # fmt: skip
    assert (place.reads, sink.ours("checkpoint")) == (0, [])
    clock.tick(PAUSE_SECONDS)
    sent(audit)
    assert (place.reads, sink.ours("checkpoint")) == (1, [])
    place.found = PEM
    clock.tick(PAUSE_SECONDS)
    sent(audit)
    assert kinds(sink)[-1] == "checkpoint"
    audit.close()
    report = verify(sink.lines, keys=[PUBLIC])
    assert (report.faults, report.doubts) == ([], [])
    assert len([line for line in sink.lines if '"severity":"ERROR"' in line]) == 1


def test_record_whose_key_was_never_read_ends_and_is_something_to_look_at(sink: Lines, clock: Clock) -> None:
    audit = recording(sink, clock, Place(DownError("ServiceUnavailable")))
    sent(audit)
    audit.close()
    report = verify(sink.lines, keys=[PUBLIC])
    assert report.faults == []
    (doubt,) = report.doubts
    assert "is not signed. The key could not be read then" in doubt


def test_only_one_call_waits_for_the_key(sink: Lines, clock: Clock) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        waiting.set()
        assert go_on.wait(timeout=60)
        return PEM

    key = RecordKey("file:record-key", DownError("down"), slow, clock)
    audit = Audit(sink, policy="p" * 64, key=key, clock=clock, monotonic=clock)
    clock.tick(PAUSE_SECONDS)
    thread = threading.Thread(target=sent, args=(audit,))
    thread.start()
    assert waiting.wait(timeout=60)
    assert sent(audit).refusal is None
    go_on.set()
    thread.join(timeout=60)
    assert kinds(sink).count("checkpoint") == 1
    assert kinds(sink).count("outcome") == 2


# ---------------------------------------------------------------- what it proves


@pytest.fixture
def export(sink: Lines, clock: Clock) -> list[dict[str, Any]]:
    """Some forty lines of one chain, a checkpoint after every fourth or so."""
    audit = recording(sink, clock, Place())
    grant = granted()
    for _ in range(14):
        clock.tick(0.6)
        sent(audit, grant)
    audit.close()
    return chain_of(sink)


#: What people read of a line, beside its content.
READ = ("severity", "message")


def chain_of(sink: Lines) -> list[dict[str, Any]]:
    """All that the hashes cover, a dictionary a line."""
    return [entry["countersign"] | {name: entry[name] for name in READ} for entry in map(json.loads, sink.lines)]


def lines(chain: list[dict[str, Any]]) -> list[str]:
    return [json.dumps({**{name: line[name] for name in READ}, "countersign": content_of(line)}) for line in chain]


def content_of(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in READ}


def fitted(chain: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number and hash all lines again, as a forger does who can write but not sign."""
    intents: dict[str, str] = {}
    made, before = [], GENESIS
    for sequence, line in enumerate(chain):
        content = {k: v for k, v in line.items() if k not in {"hash", "audit_id"}}
        content |= {"sequence": sequence, "prev": before}
        if "intent" in content:
            content["intent"] = intents.get(content["intent"], content["intent"])
        before = line_hash(line["severity"], line["message"], content_of(content))
        intents[line["hash"][:24]] = before[:24]
        audit_id = audit_id_of(content["instance"], content.get("intent") or before)
        made.append(content | {"hash": before, "audit_id": audit_id})
    return made


def forgeries(chain: list[dict[str, Any]], chance: random.Random, count: int) -> list[list[dict[str, Any]]]:
    """Edits, deletions, insertions and swaps before the last checkpoint, with hashes made to fit."""
    made = []
    last = max(number for number, line in enumerate(chain) if line["kind"] == "checkpoint")
    for number in range(count):
        forged = [dict(line) for line in chain]
        place, other = sorted(chance.sample(range(1, last), 2))
        match number % 4:
            case 0:
                forged[place]["time"] = "2001-01-01T00:00:00.000000Z"
            case 1:
                del forged[place:other]
            case 2:
                forged.insert(place, forged[other])
            case 3:
                forged[place], forged[other] = forged[other], forged[place]
        made.append(fitted(forged))
    return made


def test_honest_chain_that_is_made_to_fit_is_itself(export: list[dict[str, Any]]) -> None:
    assert fitted(export) == export
    assert verify(lines(export), keys=[PUBLIC]).doubts == []


def test_every_forgery_before_the_last_checkpoint_is_found_also_with_hashes_that_fit(
    export: list[dict[str, Any]],
) -> None:
    for forged in forgeries(export, random.Random(14), 400):
        assert verify(lines(forged)).faults == []  # nothing but the signature tells
        assert verify(lines(forged), keys=[PUBLIC]).faults


def test_forger_who_drops_the_checkpoints_is_left_with_an_end_that_is_not_signed(export: list[dict[str, Any]]) -> None:
    first = next(number for number, line in enumerate(export) if line["kind"] == "checkpoint")
    kept = [line for number, line in enumerate(export) if number <= first or line["kind"] != "checkpoint"]
    kept[first + 1]["caller"] = "mallory"
    report = verify(lines(fitted(kept)), keys=[PUBLIC])
    assert report.faults == []
    assert "the stop line of instance" in report.doubts[0]
    assert f"{len(kept) - 1 - first} after its last checkpoint, sequence {first}, are not signed" in report.doubts[0]
    held = export[first + 1]["audit_id"]
    assert verify(lines(fitted(kept)), [held], [PUBLIC]).faults == [f"audit id {held}: its line is missing"]


def test_chain_that_was_cut_and_given_a_stop_line_is_something_to_look_at(export: list[dict[str, Any]]) -> None:
    first = next(number for number, line in enumerate(export) if line["kind"] == "checkpoint")
    report = verify(lines(fitted([*export[: first + 1], export[-1]])), keys=[PUBLIC])
    assert (report.faults, len(report.doubts)) == ([], 1)
    assert "or lines are missing before it" in report.doubts[0]


def test_chain_that_somebody_made_up_is_something_to_look_at(export: list[dict[str, Any]]) -> None:
    made_up = fitted([line | {"instance": "0123456789ab"} for line in export if line["kind"] != "checkpoint"])
    report = verify(lines(export) + lines(made_up), keys=[PUBLIC])
    assert (report.faults, len(report.doubts)) == ([], 1)
    assert "No line of it is signed" in report.doubts[0]


def test_checkpoint_of_another_key_is_a_fault_unless_that_is_given_too(sink: Lines, clock: Clock) -> None:
    older = new_key()
    for pair in (older, PAIR):
        key = RecordKey("file:k", text_of(pair).encode(), Place(), clock)
        audit = Audit(sink, policy="p" * 64, key=key, clock=clock, monotonic=clock)
        sent(audit)
        audit.close()
    assert verify(sink.lines, keys=[PUBLIC, older.public_key()]).faults == []
    faults = verify(sink.lines, keys=[PUBLIC]).faults
    assert len(faults) == 2
    assert all(f"was signed with another key, '{key_id(older.public_key())}'." in fault for fault in faults)


# ---------------------------------------------------------------- the key


def test_every_form_of_a_key_is_read() -> None:
    raw = base64.b64encode(PAIR.private_bytes_raw())
    for data in (PEM, raw, raw + b"\n", PEM + b"\n"):
        assert key_id(private_key(data).public_key()) == key_id(PUBLIC)
    assert public_key(f"{text_of(PUBLIC)}\n".encode()) == PUBLIC


@pytest.mark.skipif(not shutil.which("openssl"), reason="the page makes a key with openssl: install it")
def test_keys_of_openssl_are_read(tmp_path: Path) -> None:
    run = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(tmp_path / "key.pem")]
    subprocess.run(run, check=True, capture_output=True)
    subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "key.pem", "-pubout", "-out", tmp_path / "key.pub"], check=True
    )
    pair = private_key((tmp_path / "key.pem").read_bytes())
    assert pair.public_key() == public_key((tmp_path / "key.pub").read_bytes())


@pytest.mark.parametrize(
    "data", [b"", b"hello", PEM[:60], PEM.replace(b"PRIVATE", b"PUBLIC"), b"\xff" * 32], ids=range(5)
)
def test_what_is_no_key_is_refused_without_its_content(data: bytes) -> None:
    for read in (private_key, public_key):
        with pytest.raises(ValueError, match="Ed25519") as told:
            read(data)
        assert "hello" not in str(told.value)
