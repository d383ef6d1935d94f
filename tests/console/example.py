"""``tests/portal/me.json``: what ``/-/me`` says to a caller with a bit of everything. Run it to write the file anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from console.describe import describe
from policies import document
from policies.model import Caller, Left, Limit, PolicySet
from policies.quota import parse_limit

FOLDER: Final = Path(__file__).parents[1] / "portal"
NOW: Final = 1_795_694_400.0
STANDINGS: Final = (
    Left("limit", parse_limit("30/minute"), remaining=18, more=4, reset=21, full=58),
    Left("limit", parse_limit("2000/day"), remaining=1931, more=12, reset=7200, full=85_600),
    Left("budget", Limit(500_000, 86_400, ""), remaining=124_050, more=80_000, reset=4800, full=84_600, currency="usd"),
    Left("ceiling", parse_limit("20/second"), remaining=None, more=0, reset=0, full=0, connection="acme-billing"),
)


def policies() -> PolicySet:
    return document.read((FOLDER / "policy.yaml").read_text("utf-8"), "policy.yaml")


def caller(credential: str = "k1") -> Caller:
    return next(one for one in policies().callers.values() if one.credential == credential)


def me() -> dict[str, Any]:
    return describe(policies(), caller(), now=NOW, standings=STANDINGS, operator="payments@acme.example")


def written() -> str:
    return json.dumps(me(), indent=2) + "\n"


if __name__ == "__main__":
    (FOLDER / "me.json").write_text(written(), "utf-8")
