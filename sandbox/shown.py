"""The record, for people: one line of the terminal for each of its lines."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

#: What is said of a line behind its message, in this order, unless the message says it already.
_TOLD: Final = ("reason", "status")
_COLOURS: Final = {"NOTICE": "36", "WARNING": "33", "ERROR": "31", "ALERT": "1;31"}


def shown(line: str, *, colour: bool) -> str:
    """Return a line of the record as local time, severity, message, what belongs to it, and audit id.

    Whatever else is printed beside the record comes back as it is.
    """
    try:
        entry: dict[str, Any] = json.loads(line)
        content: dict[str, Any] = entry["countersign"]
        time = datetime.fromisoformat(entry["time"]).astimezone().strftime("%H:%M:%S")
        severity, message, audit_id = str(entry["severity"]), str(entry["message"]), str(content["audit_id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return line
    said = f" {message} "
    more = [str(content[name]) for name in _TOLD if name in content and f" {content[name]} " not in said]
    told = f"{', '.join([message, *more])}  {audit_id}"
    # A document's own words may be quoted in it, and a terminal obeys what it does not print.
    told = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in told)
    code = _COLOURS.get(severity) if colour else None
    return f"{time}  {severity:<7}  {told}" if code is None else f"{time}  \x1b[{code}m{severity:<7}\x1b[0m  {told}"
