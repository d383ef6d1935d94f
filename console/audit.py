"""Verifies an export of the record: finds any edit, deletion, reordering and truncation.

Each process writes one chain (see ``gateway.chain``). A truncated chain is still consistent, so truncation is found by
what is missing: the outcome of an intent, the ``stop`` line, or the line of an audit id that a caller holds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.chain import GENESIS, audit_id_of, line_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass
class Report:
    """The findings. ``faults`` prove tampering or loss; ``doubts`` may have innocent explanations."""

    lines: int = 0
    instances: int = 0
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


@dataclass
class _Chain:
    instance: str
    sequence: int = -1
    head: str = GENESIS
    last_kind: str = ""
    open_intents: dict[str, int] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)


def verify(lines: Iterable[str], anchors: Iterable[str] = ()) -> Report:
    """Verify an export: one JSON value a line, as written or as an entry of Cloud Logging, oldest first.

    ``anchors`` are audit ids that callers hold, whose lines must be there.
    """
    report = Report()
    chains: dict[str, _Chain] = {}
    for number, content in _contents(lines, report):
        report.lines += 1
        instance = content.get("instance")
        if not isinstance(instance, str):
            report.faults.append(f"line {number}: it does not say which instance wrote it")
            continue
        _link(chains.setdefault(instance, _Chain(instance)), number, content, report)
    report.instances = len(chains)
    for chain in chains.values():
        for intent, number in chain.open_intents.items():
            report.doubts.append(
                f"line {number}: intent {audit_id_of(chain.instance, intent)} has no outcome. The call was cut off, "
                "is still running, or its outcome was removed"
            )
        if chain.last_kind != "stop":
            report.doubts.append(
                f"instance {chain.instance}: no stop line after sequence {chain.sequence}. It is still running, was "
                "killed, or lines are missing at its end"
            )
    known = {audit_id for chain in chains.values() for audit_id in chain.ids}
    report.faults.extend(f"audit id {anchor}: its line is missing" for anchor in anchors if anchor not in known)
    return report


def _contents(lines: Iterable[str], report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            entry = _whole_numbers(json.loads(text))
        except (ValueError, RecursionError):
            report.faults.append(f"line {number}: this is not JSON; it was truncated or edited")
            continue
        payload = entry.get("jsonPayload", entry) if isinstance(entry, dict) else None
        content = payload.get("countersign") if isinstance(payload, dict) else None
        if isinstance(content, dict):
            yield number, content


def _link(chain: _Chain, number: int, content: dict[str, Any], report: Report) -> None:
    digest, sequence = content.get("hash"), content.get("sequence")
    where = f"line {number}, instance {chain.instance}, sequence {sequence}"
    if line_hash(content) != digest:
        report.faults.append(f"{where}: the line was edited; its hash does not match")
    elif content.get("audit_id") != audit_id_of(chain.instance, content.get("intent") or digest):
        report.faults.append(f"{where}: its audit id was edited")
    if sequence != chain.sequence + 1:
        report.faults.append(f"{where}: sequence {chain.sequence + 1} was expected; lines are missing or out of order")
    elif content.get("prev") != chain.head:
        report.faults.append(f"{where}: it does not follow the line before it")
    if isinstance(sequence, int):
        chain.sequence = sequence
    chain.head = str(digest)
    chain.last_kind = str(content.get("kind"))
    chain.ids.add(str(content.get("audit_id")))
    if chain.last_kind == "intent":
        chain.open_intents[str(digest)[:24]] = number
    chain.open_intents.pop(str(content.get("intent")), None)


def _whole_numbers(value: Any) -> Any:
    """Undo what Cloud Logging does to numbers: it keeps them as doubles, and may export 3 as 3.0."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: _whole_numbers(inner) for name, inner in value.items()}
        case list():
            return [_whole_numbers(inner) for inner in value]
    return value
