"""The record, for people."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from gateway.chain import Audit
from sandbox.shown import shown

if TYPE_CHECKING:
    from collections.abc import Callable


class Kept:
    """A sink that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: bytes) -> None:
        self.lines.append(line.decode())


@pytest.fixture
def line() -> Callable[..., str]:
    def write(message: str = "shop asks for it", severity: str = "NOTICE", **content: object) -> str:
        kept = Kept()
        Audit(kept, policy="").write("intent", content, severity, message)
        return kept.lines[-1]

    return write


def test_line_has_time_severity_message_what_belongs_to_it_and_audit_id(line: Callable[..., str]) -> None:
    written = line(connection="billing", caller="shop", reason="some-reason", status=424, attempts=2)
    audit_id = json.loads(written)["countersign"]["audit_id"]
    told = shown(written, colour=False)
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  NOTICE   shop asks for it, some-reason, 424  {audit_id}", told)


def test_word_that_the_message_has_within_another_is_said_all_the_same(line: Callable[..., str]) -> None:
    assert "no reason-2, reason  " in shown(line("no reason-2", reason="reason"), colour=False)


def test_colour_is_the_severitys(line: Callable[..., str]) -> None:
    severities = ("INFO", "NOTICE", "WARNING", "ERROR", "ALERT")
    told = {severity: shown(line(severity=severity), colour=True) for severity in severities}
    assert "\x1b" not in told["INFO"]
    codes = {re.search(r"\x1b\[([0-9;]+)m" + severity, told[severity])[1] for severity in severities[1:]}  # type: ignore[index]
    assert len(codes) == 4


def test_what_a_terminal_would_obey_is_not_shown(line: Callable[..., str]) -> None:
    told = shown(line("policy refused: \x1b]0;owned\x07\nforged\u202e", reason="\x9b2J"), colour=False)
    assert told.isprintable()
    assert "owned" in told


@pytest.mark.parametrize(
    "other",
    ["", "Booting worker", "[1]", "{}", '{"severity": "ALERT", "message": "x"}', '{"countersign": 1}', "[" * 100_000,
     '{"countersign": {"audit_id": "a"}, "time": "soon", "severity": "INFO", "message": ""}'],
)  # fmt: skip
def test_what_is_no_line_of_the_record_stays_as_it_is(other: str) -> None:
    assert shown(other, colour=True) == other
