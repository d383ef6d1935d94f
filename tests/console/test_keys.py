"""``countersign key``: what it makes is a key, what it changes is that and nothing else, and it shows a key once."""

from __future__ import annotations

import io
import os
import re
import stat
import string
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from console.__main__ import main
from console.keys import NotDoneError, _after, _Policy, mint
from policies import compiled, document
from policies.callerkeys import whole
from policies.model import Proof
from sandbox.__main__ import CALLER_KEY, ROOT
from sandbox.__main__ import POLICY as SANDBOX
from tests.conftest import KEY, policy, sha256

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Function

ORIGIN = "https://us-central1-appgregator.cloudfunctions.net"
MINTED = re.compile(r"^csk_[0-9A-Za-z]{49}$", re.MULTILINE)
VERSION = "projects/acme/secrets/policy/versions/latest"


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLICY", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(policy(ORIGIN))
    return tmp_path / "policy.yaml"


def key(*arguments: object) -> int:
    return main(["key", *(str(argument) for argument in arguments)])


def keys_of(file: Path) -> dict[str, tuple[str, float | None]]:
    """Return what a document says of each key: whose, and until when; by caller and id."""
    read = document.read(file.read_bytes().decode(), str(file))
    keys = [(proof.value.hex(), one) for proof, one in read.callers.items() if proof.kind == "key"]
    return {f"{one.id} {one.credential}": (digest, one.expires) for digest, one in keys}


def shown(told: str) -> str:
    (found,) = MINTED.findall(told)
    return str(found)


# ---------------------------------------------------------------- the key itself


def test_minted_keys_are_whole_and_differ() -> None:
    minted = {mint() for _ in range(200)}
    assert len(minted) == 200
    assert all(MINTED.fullmatch(one) and whole(one) for one in minted)
    assert len(string.digits + string.ascii_letters) ** 43 > 2**256


@given(st.data())
def test_any_one_mistyped_character_is_noticed(data: st.DataObject) -> None:
    made = mint()
    place = data.draw(st.integers(0, len(made) - 1))
    typed = data.draw(st.characters(max_codepoint=0x17F).filter(lambda typed: typed != made[place]))
    assert not whole(made[:place] + typed + made[place + 1 :])


@given(st.data())
def test_swapped_lost_doubled_and_cut_characters_are_noticed(data: st.DataObject) -> None:
    made = mint()
    place = data.draw(st.integers(0, len(made) - 2))
    swapped = made[:place] + made[place + 1] + made[place] + made[place + 2 :]
    assert swapped == made or not whole(swapped)
    for wrong in (made[:place] + made[place + 1 :], made[:place] + made[place] + made[place:], made[:place], made[1:]):
        assert not whole(wrong)


@pytest.mark.parametrize("text", ["", "csk_", CALLER_KEY, KEY, "csk_" + "0" * 49, "csk_" + "é" * 49])
def test_keys_made_otherwise_are_not_taken_for_ours(text: str) -> None:
    assert not whole(text)


# ---------------------------------------------------------------- new


def test_new_key_is_shown_once_with_the_line_that_the_policy_takes(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_text()
    assert key("new", "app", "--policy", file, "--expires", "2999-01-01") == 0
    told = capsys.readouterr()
    assert told.err == ""
    made = shown(told.out)
    (line,) = (line for line in told.out.splitlines() if "- key:" in line)
    assert line == f"      - key: {{id: k2, sha256: {sha256(made)}, expires: 2999-01-01}}"
    assert file.read_text() == before
    old = f"      - key: {{id: k1, sha256: {sha256(KEY)}}}"
    file.write_text(before.replace(old, f"{old}\n{line}"))
    assert keys_of(file)["app k2"] == (sha256(made), datetime(2999, 1, 1, tzinfo=UTC).timestamp())


def test_new_key_fits_below_a_list_that_is_indented_or_written_otherwise(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = file.read_text()
    entry = f"key: {{id: k1, sha256: {sha256(KEY)}}}"
    for before, pattern in (
        (text.replace(f"      - {entry}", f"    - {entry}"), r"^    - key: .*$"),
        (text.replace(f"\n      - {entry}", f" [{{{entry}}}]"), r"^, \{key: .*\}$"),
    ):
        file.write_text(before)
        assert key("new", "app", "--policy", file) == 0
        (line,) = re.findall(pattern, capsys.readouterr().out, re.MULTILINE)
        after = before.replace(f"{{{entry}}}]", f"{{{entry}}}{line}]").replace(f"- {entry}\n", f"- {entry}\n{line}\n")
        file.write_text(after)
        assert "app k2" in keys_of(file)


def test_new_key_of_a_caller_that_is_not_written_yet_is_made_and_said(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert key("new", "othr", "--policy", file) == 0
    told = capsys.readouterr()
    assert shown(told.out)
    assert "id: k1" in told.out
    assert told.err == f"There is no caller othr in {file}. Did you mean other? The key is made anyway.\n"


def test_new_key_needs_no_policy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert key("new", "app") == 0
    told = capsys.readouterr()
    assert "No policy was named" in told.err
    monkeypatch.setenv("POLICY", VERSION)
    assert key("new", "app", "--id", "july") == 0
    told = capsys.readouterr()
    assert "id: july" in told.out
    assert "gcloud secrets versions add policy --project=acme --data-file=FILE" in told.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["new", "app", "--id", "k1"], "app has a key k1 already. Write another --id."),
        (["new", "app", "--expires", "2020-02-29"], "2020-02-29 has begun"),
        (["rotate", "ap", "k1"], "There is no caller ap in "),
        (["rotate", "app", "k2"], "app has no key k2 in "),
        (["rotate", "app", "k1", "--id", "k1"], "app has a key k1 already"),
        (["revoke", "app", "k2"], "Its keys: k1."),
        (["revoke", "app", "k1"], "k1 is the only credential of app, and a caller must have one."),
    ],
)
def test_what_cannot_be_done_changes_and_shows_nothing(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    before = file.read_bytes()
    assert key(*arguments, "--policy", file) == 1
    told = capsys.readouterr()
    assert says in told.err
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert file.read_bytes() == before


def test_document_as_windows_saves_it_keeps_its_mark_and_its_line_breaks(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert main(["check", str(file)]) == 0
    assert key("rotate", "app", "k1", "--policy", file) == 0
    changed = file.read_bytes()
    assert changed.startswith(b"\xef\xbb\xbf")
    assert changed.count(b"\n") == changed.count(b"\r\n")
    assert main(["check", str(file)]) == 0


@pytest.mark.parametrize("command", ["check", "key rotate app k1 --policy", "explain --caller app"])
def test_document_in_utf_16_is_one_line_that_says_what_to_do(
    file: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file.write_bytes(file.read_text().encode("utf-16"))
    assert main([*command.split(), str(file)]) == 1
    told = capsys.readouterr()
    assert not told.out
    assert told.err.endswith("is not UTF-8 text. Save it as UTF-8.\n")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["rotate", "revoke"])
def test_change_needs_a_file_that_can_be_changed(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    assert key(verb, "app", "k1") == 1
    assert capsys.readouterr().err == "Name the policy document: --policy FILE.\n"
    monkeypatch.setenv("POLICY", VERSION)
    assert key(verb, "app", "k1") == 1
    assert "Name the file that it was made from: --policy FILE." in capsys.readouterr().err
    assert key(verb, "app", "k1", "--policy", tmp_path / "none") == 1
    assert "cannot be read" in capsys.readouterr().err
    file.write_text("callers: [")
    assert key(verb, "app", "k1", "--policy", file) == 1
    assert "Correct this first" in capsys.readouterr().err
    assert file.read_text() == "callers: ["


@pytest.mark.parametrize("arguments", [["new", "app"], ["rotate", "app", "k1"], ["revoke", "app", "k1"], ["whose"]])
def test_compiled_policy_is_answered_with_where_keys_are_kept(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    data = compiled.write(document.read(file.read_text(), str(file)))
    file.write_bytes(data)
    assert key(*arguments, "--policy", file) == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"{file} is a compiled policy, which is read-only. Name the document that it was ")
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert file.read_bytes() == data


@pytest.mark.parametrize(
    "arguments",
    [
        ["new"],
        ["new", "app", "--expires", "tomorrow"],
        ["new", "app", "--expires", "2027-02-30"],
        ["new", "app", "--id", "a b"],
        ["new", "app", "--id", "null"],
        ["rotate", "app", "k1", "--days", "0"],
        ["rotate", "app", "k1", "--days", "-3"],
        ["rotate", "app", "k1", "--days", "99999999999"],
        ["revoke", "app"],
        ["whose", "csk_abc"],
    ],
)
def test_wrong_arguments_are_answered_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        key(*arguments)
    assert stopped.value.code == 2
    assert "usage: countersign" in capsys.readouterr().err


# ---------------------------------------------------------------- rotate and revoke


def test_rotation_and_revocation_take_over_in_the_running_function(
    function: Callable[..., Function], file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``POLICY`` is the file, as the function has it. It is looked at a thousand times as often as otherwise."""
    monkeypatch.setattr("gateway.reloading.CHECK_SECONDS", 0.02)
    monkeypatch.setattr("gateway.reloading.MUST_SECONDS", 0.05)
    running = function()
    assert key("rotate", "app", "k1") == 0
    new = shown(capsys.readouterr().out)
    time.sleep(0.05)
    assert [running.post(key=one).status_code for one in (KEY, new)] == [200, 200]
    assert key("revoke", "app", "k1") == 0
    time.sleep(0.05)
    assert [running.post(key=one).status_code for one in (KEY, new)] == [401, 200]
    entries = running.record.entries("intent")
    assert [entry["credential"] for entry in entries] == ["k1", "k2", "k2"]


def test_rotation_gives_the_old_key_its_last_day_and_leaves_an_earlier_one(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = datetime.now(UTC)
    assert key("rotate", "app", "k1", "--policy", file, "--days", 3) == 0
    after = datetime.now(UTC)
    told = capsys.readouterr().out
    keys = keys_of(file)
    assert keys["app k2"] == (sha256(shown(told)), None)
    ends = keys["app k1"][1]
    assert ends is not None
    assert before + timedelta(days=3) <= datetime.fromtimestamp(ends, UTC) <= after + timedelta(days=4)
    assert f"k1 works until {datetime.fromtimestamp(ends, UTC):%Y-%m-%dT00:00Z}." in told
    assert key("rotate", "app", "k1", "--policy", file, "--days", 30, "--id", "third") == 0
    assert f"{datetime.fromtimestamp(ends, UTC):%Y-%m-%dT00:00Z}" in capsys.readouterr().out
    assert keys_of(file)["app k1"][1] == ends
    assert key("rotate", "app", "k1", "--policy", file, "--days", 1) == 0
    sooner = keys_of(file)["app k1"][1]
    assert sooner is not None
    assert sooner < ends


@pytest.mark.parametrize(
    "said",
    [
        "{{id: k1, sha256: {}, connection: billing}}",
        "\n          connection: billing\n          sha256: {}\n          id: k1",
    ],
)
def test_new_key_is_tied_to_what_the_old_one_is_tied_to(
    file: Path, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    right = f"{{id: k1, sha256: {sha256(KEY)}}}"
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, said.format(sha256(KEY))))
    assert key("rotate", "app", "k1", "--policy", file) == 0
    assert sha256(shown(capsys.readouterr().out)) == keys_of(file)["app k2"][0]
    callers = document.read(file.read_text(), "policy.yaml").callers.values()
    assert [one.tied and one.tied.id for one in callers if one.id == "app"] == ["billing", "billing"]


@pytest.mark.parametrize(
    ("now", "days", "until"),
    [
        ("2026-11-22T00:00:00", 7, "2026-11-30"),
        ("2026-11-22T23:59:59", 7, "2026-11-30"),
        ("2028-02-28T12:00:00", 1, "2028-03-01"),
        ("2026-12-31T12:00:00", 1, "2027-01-02"),
    ],
)
def test_old_key_works_the_whole_of_the_days_that_were_said(now: str, days: int, until: str) -> None:
    assert _after(datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp(), days) == until


def test_file_keeps_its_permissions_and_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    file.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    assert key("rotate", "app", "k1", "--policy", link) == 0
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert len(keys_of(file)) == 3
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link.yaml", "policy.yaml"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_folder_that_may_not_be_written_is_said_and_no_key_shown(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert key("rotate", "app", "k1", "--policy", file) == 1
    tmp_path.chmod(0o700)
    told = capsys.readouterr()
    assert (told.out, "cannot be written" in told.err) == ("", True)


def test_change_of_somebody_else_at_the_same_moment_is_not_lost(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = _Policy.of(file)
    file.write_text(file.read_text() + "# theirs\n")
    with pytest.raises(NotDoneError, match="Somebody else"):
        mine.rotate("app", "k1", None, mint(), "2999-01-01")
    assert file.read_text().endswith("# theirs\n")
    assert [one.name for one in tmp_path.iterdir()] == ["policy.yaml"]


def test_layout_that_cannot_be_changed_is_left_alone_and_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = f"key: {{id: k1, sha256: {sha256(KEY)}}}"
    second = entry.replace("k1", "k2").replace(sha256(KEY), sha256("second"))
    text = file.read_text().replace(f"      - {entry}", f"      -\n        {entry}\n      - {second}")
    file.write_text(text)
    assert key("revoke", "app", "k1", "--policy", file) == 1
    told = capsys.readouterr()
    assert told.err == (
        f"{file} (line 22) has a layout that this command cannot edit. Nothing was changed. By hand: remove k1 "
        "from the credentials of app.\n"
    )
    assert file.read_text() == text
    assert key("revoke", "app", "k2", "--policy", file) == 0


# ---------------------------------------------------------------- any document


@dataclass(frozen=True)
class Written:
    """A document, and on which of its lines each key of its caller ``many`` stands."""

    text: str
    lines: dict[str, set[int]]


HEAD = f"""\
# A document with é in it, and a name like a key's: id: k1
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: appgregator, origin: https://u.example, secret: "file:k"}}
callers:
  first:
    {{owner: x, credentials: [key: {{id: k1, sha256: {sha256("first")}}}], limits: [1/day],
     grants: [{{connection: billing, operation: invoices.create, response: [id], parameters: {{customer: }}}}]}}
  many:
    owner: tests
"""
TAIL = """\
    limits: [30/minute]  # - key: {id: k1}
    grants:
      - connection: billing
        operation: invoices.create
        response: [id]
        parameters:
          customer:
"""
COMMENT = st.sampled_from(["", "  # a, note: { - } é", " #", "   "])
OWN_LINE = st.sampled_from([[], [""], ["      # - key: {id: k1}, about the next"], ["", "      # one", "   # two", ""]])
DATE = st.sampled_from([None, "2999-01-01", '"2999-01-01"', "2999-01-01T10:00:00Z"])


def members(draw: st.DrawFn, number: int, quote: str) -> list[str]:
    found = [f"id: {quote}k{number}{quote}", f"sha256: {quote}{sha256(str(number))}{quote}"]
    expires = draw(DATE)
    if expires is not None:
        found.append(f"expires: {expires}")
    return draw(st.permutations(found))


@st.composite
def documents(draw: st.DrawFn) -> Written:
    """A valid document with one caller of many keys, in any mixture of YAML's styles."""
    count, quote = draw(st.integers(1, 4)), draw(st.sampled_from(["", '"', "'"]))
    lines, where = HEAD.splitlines(), {}
    layout = draw(st.sampled_from(["block", "block", "flow", "long flow"]))
    if layout == "flow":
        singles = [", ".join(members(draw, number, quote)) for number in range(1, count + 1)]
        items = [draw(st.sampled_from(["key: {%s}", "{key: {%s}}", "{ key: { %s, } }"])) % one for one in singles]
        comma = draw(st.sampled_from([", ", ",", " , "]))
        end = draw(st.sampled_from(["", ",", " , "]))
        lines.append(f"    credentials: [{comma.join(items)}{end}]{draw(COMMENT)}")
        where = {f"k{number}": {len(lines) - 1} for number in range(1, count + 1)}
    else:
        lines.append(f"    credentials:{' [' if layout == 'long flow' else ''}{draw(COMMENT)}")
        dash = " " * draw(st.sampled_from([4, 6, 9])) + ("- " if layout == "block" else "")
        for number in range(1, count + 1):
            lines += draw(OWN_LINE)
            begin, inside = len(lines), members(draw, number, quote)
            style = draw(st.sampled_from(["line", "braces", "spread"])) if layout == "block" else "braces"
            comma = draw(st.sampled_from([",", " ,"])) if layout == "long flow" and number < count else ""
            if style == "line":
                lines.append(f"{dash}key: {{{', '.join(inside)}}}{draw(COMMENT)}")
            elif style == "braces":
                lines.append(f"{dash}{{key: {{{', '.join(inside)}}}}}{comma}{draw(COMMENT)}")
            else:
                lines.append(f"{dash}key:{draw(COMMENT)}")
                lines += [f"{' ' * (len(dash) + 2)}{member}{draw(COMMENT)}" for member in inside]
            where[f"k{number}"] = set(range(begin, len(lines)))
        if layout == "long flow":
            lines.append("    ]" + draw(COMMENT))
        lines += draw(OWN_LINE)
    newline = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    lines += TAIL.splitlines()
    text = newline.join(lines) + draw(st.sampled_from(["", newline]))
    return Written(draw(st.sampled_from(["", "", "\ufeff"])) + text, where)


def lines_of(text: str) -> list[str]:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")


def stands_in(some: list[str], lines: list[str]) -> bool:
    """Whether all of ``some`` are there, in their order."""
    rest = iter(lines)
    return all(line in rest for line in some)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(written=documents(), data=st.data())
def test_only_what_is_meant_changes_in_any_document(tmp_path: Path, written: Written, data: st.DataObject) -> None:
    file = tmp_path / "any.yaml"
    file.write_bytes(written.text.encode())
    before = document.read(written.text, "any.yaml")
    chosen = data.draw(st.sampled_from(sorted(written.lines)))
    untouched = [line for number, line in enumerate(lines_of(written.text)) if number not in written.lines[chosen]]
    new = mint()
    _Policy.of(file).rotate("many", chosen, "new", new, "2998-01-01")
    text = file.read_bytes().decode()
    after = document.read(text, "any.yaml")
    old = Proof("key", bytes.fromhex(sha256(chosen[1:])))
    ends = datetime(2998, 1, 1, tzinfo=UTC).timestamp()
    assert after == replace(
        before,
        digest=sha256(text),
        callers={
            **before.callers,
            old: replace(before.callers[old], expires=ends),
            Proof("key", bytes.fromhex(sha256(new))): replace(before.callers[old], credential="new", expires=None),
        },
    )
    assert stands_in(untouched, lines_of(text))
    assert len(lines_of(text)) <= len(lines_of(written.text)) + 2
    assert text.startswith("\ufeff") == written.text.startswith("\ufeff")
    assert text.count("\r") == (text.count("\n") if "\r" in written.text else 0)
    gone = data.draw(st.sampled_from([*written.lines, "new"]))
    revoked = Proof("key", bytes.fromhex(sha256(new if gone == "new" else gone[1:])))
    touched = written.lines[chosen] | written.lines.get(gone, set())
    untouched = [line for number, line in enumerate(lines_of(written.text)) if number not in touched]
    _Policy.of(file).revoke("many", gone)
    text = file.read_bytes().decode()
    left = document.read(text, "any.yaml").callers
    assert left == {other: one for other, one in after.callers.items() if other != revoked}
    assert stands_in(untouched, lines_of(text))
    assert text.count("\r") == (text.count("\n") if "\r" in written.text else 0)


def test_list_that_ends_on_its_last_key_is_closed_behind_the_one_before(file: Path) -> None:
    one, two = (f"{{key: {{id: {name}, sha256: {sha256(name)}}}}}" for name in ("k1", "k2"))
    text = file.read_text().replace(
        f"credentials:\n      - key: {{id: k1, sha256: {sha256(KEY)}}}",
        f"credentials: [{one},\n                  {two}]",
    )
    file.write_text(text)
    assert key("revoke", "app", "k2", "--policy", file) == 0
    assert file.read_text() == text.replace(f",\n                  {two}]", "]")


# ---------------------------------------------------------------- whose


def asked(monkeypatch: pytest.MonkeyPatch, given: str, *arguments: object) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    return key("whose", *arguments)


def test_key_is_recognised_and_never_shown(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(monkeypatch, f"  {KEY}\r\n", "--policy", file) == 0
    told = capsys.readouterr()
    assert "It is k1 of app (tests)." in told.out
    assert f"./countersign key revoke app k1 --policy {file}" in told.out
    assert KEY not in told.out + told.err
    file.write_text(file.read_text().replace(sha256(KEY) + "}", sha256(KEY) + ", expires: 2020-01-01}"))
    assert asked(monkeypatch, KEY, "--policy", file) == 0
    assert "It is k1 of app (tests), and has expired." in capsys.readouterr().out


def test_key_of_nobody_is_said_to_be_whole_or_not(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mint()
    assert asked(monkeypatch, made, "--policy", file) == 1
    assert capsys.readouterr().out == f"The key is intact: its checksum is right.\nNo caller in {file} has this key.\n"
    for wrong in (made[:-1], made[:9] + made[10:], "hello", "\udc80é", "x" * 100_000):
        assert asked(monkeypatch, wrong, "--policy", file) == 1
        told = capsys.readouterr()
        assert "Its checksum is wrong" in told.out
        assert wrong not in told.out
    assert asked(monkeypatch, "\n", "--policy", file) == 1
    assert "no key on standard input" in capsys.readouterr().err


def test_script_makes_a_key_and_recognises_it_from_a_pipe(tmp_path: Path) -> None:
    file = tmp_path / "sandbox.yaml"
    file.write_bytes(SANDBOX.read_bytes())

    def run(given: str, *arguments: str) -> str:
        done = subprocess.run(
            [ROOT / "countersign", "key", *arguments, "--policy", file.name],
            input=given,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            check=True,
        )
        assert done.stderr == ""
        return done.stdout

    made = shown(run("", "rotate", "demo-app", "k1"))
    assert "The key is intact: its checksum is right.\nIt is k2 of demo-app (you)." in run(made, "whose")
    assert "It is k1 of demo-app (you)." in run(CALLER_KEY, "whose")
    assert "was removed" in run("", "revoke", "demo-app", "k1")
    assert made not in file.read_text()
