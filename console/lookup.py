"""Looks calls up in the record: in exports, or in Cloud Logging by way of gcloud."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from console.exports import BrokenError, ExportError, ForgedError, Meter, content_of, entries
from gateway.chain import COUNTED, UNWRITTEN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

Content = dict[str, Any]

AUDIT_ID: Final = re.compile(
    rf"(?P<instance>[0-9a-f]{{12}})-(?P<head>[0-9a-f]{{24}})"
    rf"(?:-{COUNTED}-(?P<batch>[0-9]{{1,9}})-(?P<number>[0-9]{{1,9}})|-(?P<unwritten>{UNWRITTEN})-[0-9]{{1,9}})?"
)
#: How far back Cloud Logging is asked: for as long as its own bucket keeps entries, if nobody says otherwise.
FRESHNESS: Final = "30d"

#: Where a line's message is put beside our own members, none of which begins like this.
MESSAGE: Final = "-message"
EXAMPLE: Final = "./countersign why fa08e2d5991d-be24f4ed941bc48b83102598 record.jsonl"


class NoAnswerError(Exception):
    """The question cannot be answered. The text says why, and what to do."""


class Source(Protocol):
    """Where lines are looked up."""

    def find(self, **members: str) -> list[Content]:
        """Return our part of each line that has these members. Raises :class:`NoAnswerError`."""


class Files:
    """Exports in files, each read once for each question. ``-`` is standard input."""

    def __init__(self, paths: Sequence[str], stack: ExitStack) -> None:
        self._paths = [_copied(stack) if path == "-" else path for path in paths]

    def find(self, **members: str) -> list[Content]:
        """See :class:`Source`."""
        words = [value.encode() for value in members.values()]
        found = []
        try:
            for path in self._paths:
                for _, raw in entries(path, Meter()):
                    if not all(word in raw for word in words):
                        continue
                    content = _content(raw)
                    if content is not None and members.items() <= content.items():
                        found.append(content)
        except ExportError as error:
            raise NoAnswerError(f"{error}.") from None
        return in_order(found)


class CloudLogging:
    """Cloud Logging, by way of gcloud."""

    def __init__(self, project: str | None) -> None:
        self._project = project

    def find(self, **members: str) -> list[Content]:
        """See :class:`Source`."""
        wanted = " AND ".join(f'jsonPayload.countersign.{name}="{value}"' for name, value in members.items())
        command = ["gcloud", "logging", "read", wanted, f"--freshness={FRESHNESS}", "--format=json"]
        command += [f"--project={self._project}"] if self._project else []
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - ids and names alone
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise NoAnswerError(f"gcloud logging read failed: {said[-1] if said else 'it does not say why'}")
        try:
            answered = json.loads(done.stdout)
            found = [_content(json.dumps(entry).encode()) for entry in answered]
        except (ValueError, TypeError):
            raise NoAnswerError("gcloud logging read did not answer with JSON. Is gcloud up to date?") from None
        return in_order([one for one in found if one is not None and members.items() <= one.items()])


@dataclass(frozen=True)
class Told:
    """The lines that answer: the call's own, oldest first, and those of other calls with the same key."""

    audit_id: str
    own: list[Content]
    others: list[Content]

    @property
    def ledger(self) -> str | None:
        """The ledger's name of the call's key; None if it has none."""
        return next((line["ledger"] for line in self.own if "ledger" in line), None)


def source_of(exports: Sequence[str], project: str | None, stack: ExitStack, example: str = EXAMPLE) -> Source:
    """Return where to look: the exports or, without any, Cloud Logging. Raises :class:`NoAnswerError`.

    ``example`` is what to write where there is neither.
    """
    if exports:
        return Files(exports, stack)
    if shutil.which("gcloud") is None:
        raise NoAnswerError(f"Name an export of the record, such as record.jsonl: {example}")
    return CloudLogging(project)


def look_up(source: Source, audit_id: str) -> Told:
    """Find the lines of a call, and those of the other calls with its key. Raises :class:`NoAnswerError`."""
    form = AUDIT_ID.fullmatch(audit_id)
    if form is None:
        raise NoAnswerError("An audit id looks like fa08e2d5991d-be24f4ed941bc48b83102598. Copy the whole of it.")
    if form["unwritten"]:
        return Told(audit_id, [], [])
    if form["batch"]:
        return _counted(source, audit_id, form["instance"], int(form["batch"]), int(form["number"]))
    told = Told(audit_id, source.find(audit_id=audit_id), [])
    if not told.own:
        raise NoAnswerError(
            f"There is no line with audit id {audit_id} here. Export more: the day of the call, and every instance."
        )
    if told.ledger is None:
        return told
    others = [line for line in source.find(ledger=told.ledger) if line.get("audit_id") != audit_id]
    return Told(audit_id, told.own, others)


def _counted(source: Source, audit_id: str, instance: str, batch: int, number: int) -> Told:
    """Find the line that counted a call, and the last one of the same kind that was written before it."""
    for line in source.find(instance=instance, kind="counted"):
        if line["batch"] == batch and number <= line["count"]:
            same = [
                other
                for other in source.find(instance=instance, kind=line["counted"])
                if other["sequence"] < line["sequence"]
                and [other.get(name) for name in ("caller", "reason")] == [line.get("caller"), line.get("reason")]
            ]
            return Told(audit_id, [line], same[-1:])
    raise NoAnswerError(
        "This call was counted, not written: there were more than ten of the kind from this caller in a second, and "
        f"nothing was sent. The line with the count is not here: it follows the next line of instance {instance}. "
        "Export more."
    )


def _copied(stack: ExitStack) -> str:
    """Return a file with all of standard input, which is read more than once."""
    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "export"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return str(path)


def _content(raw: bytes) -> Content | None:
    """Return our part of an entry. Whether the record was forged is for ``audit verify`` to say."""
    try:
        found, _ = content_of(raw)
        content = found and found.content
    except (BrokenError, ForgedError):
        return None
    if content is None:
        return None
    try:
        entry = json.loads(raw)
    except ValueError:  # a stump stands before it
        entry = {}
    return {**whole_numbers(content), MESSAGE: entry.get("jsonPayload", entry).get("message")}


def whole_numbers(value: Any) -> Any:
    """Undo what Cloud Logging does to numbers: it keeps them as doubles."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():  # a call for each costs more than all else that is done to a line
            return {
                name: inner if type(inner) is str or type(inner) is int else whole_numbers(inner)
                for name, inner in value.items()
            }
        case list():
            return [whole_numbers(inner) for inner in value]
    return value


def in_order(lines: list[Content]) -> list[Content]:
    """Return each line once, oldest first."""
    by_place = {(line.get("instance"), line.get("sequence")): line for line in lines}
    return sorted(by_place.values(), key=lambda line: (str(line.get("time")), line.get("sequence") or 0))
