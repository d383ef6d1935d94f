"""Writes the recipes of docs/clients.md and docs/callers.md anew: ``python -m console.recipes``.

They stand between ``<!-- recipe: ID -->`` and ``<!-- end -->``; all else on the pages is written by hand. They are
filled with the call that ``make run`` takes, so that tests run them as they are shown; with ``whole/ID`` it is a whole
invoice.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from console.describe import describe
from console.recipes.filling import Asked, fill
from console.recipes.model import CELLS
from policies import document

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).parent.parent.parent
DOCUMENTS: Final = ROOT / "policies" / "documents"
#: What Markdown calls the languages.
_FENCES: Final = {
    "text/x-sh": "sh",
    "text/x-python": "python",
    "text/javascript": "js",
    "text/x-php": "php",
    "text/x-ruby": "ruby",
    "text/x-go": "go",
    "application/json": "json",
}
_PLACE: Final = re.compile(r"(<!-- recipe: ([a-z0-9/-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CUSTOMER: Final = {"customer": "cus_MQqeLuPp19Qbk8"}
_LINES: Final = {
    "lines[0][description]": "Consulting, October", "lines[0][quantity]": "3", "lines[0][unit_amount]": "12000",
    "lines[1][description]": "Travel", "lines[1][amount]": "3000",
    "lines[2][description]": "Hotel", "lines[2][amount]": "1850",
}  # fmt: skip
_LOCAL: Final = "http://127.0.0.1:8080"
#: The calls of each page, by what stands in front of a recipe's id: the document, the address and what is filled in.
PAGES: Final[Mapping[Path, Mapping[str, tuple[str, str, Asked]]]] = {
    ROOT / "docs" / "clients.md": {
        "": ("sandbox.yaml", _LOCAL, Asked(fields=_CUSTOMER | {"metadata[order_id]": "order-1001"}, key="order-1001")),
        "whole/": ("whole.yaml", _LOCAL, Asked(fields=_CUSTOMER | _LINES, key="order-1001")),
    },
    ROOT / "docs" / "callers.md": {
        "": ("sandbox.yaml", "https://countersign-abc.a.run.app", Asked(fields=_CUSTOMER, key="order-2001")),
    },
}


def written(page: Path) -> str:
    """Return a page with its recipes as they are today."""
    shown = {f"{before}{one['id']}": one for before, call in PAGES[page].items() for one in _filled(*call)}
    return _PLACE.sub(lambda found: f"{found[1]}{_shown(shown[found[2]])}{found[3]}", page.read_text("utf-8"))


def _filled(name: str, root: str, asked: Asked) -> list[dict[str, Any]]:
    policies = document.read((DOCUMENTS / name).read_text("utf-8"), name)
    caller = next(iter(policies.callers.values()))
    return fill(asked, root=root, described=describe(policies, caller, now=time.time(), standings=None))


def _shown(recipe: Mapping[str, Any]) -> str:
    steps = "".join(f"{number}. {step}\n" for number, step in enumerate(recipe["steps"], 1))
    if recipe["mime"] == CELLS:
        return f"\n{steps}\n{_table(json.loads(recipe['text']))}\n"
    return f"\n{steps}\n```{_FENCES[recipe['mime']]}\n{recipe['text']}```\n\n"


def _table(cells: list[dict[str, Any]]) -> str:
    """Return the fields that are typed in as a table, a row each."""
    rows = ["| field | name | value |", "|---|---|---|"]
    for cell in cells:
        for row in cell.get("rows", [{"name": "", **cell}]):
            value = "".join(f"`{part}`" if isinstance(part, str) else f" ({part['insert']}) " for part in row["value"])
            name = f"`{row['name']}`" if row["name"] else ""
            rows.append(f"| {cell['field']} | {name} | {value.strip()} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    for _page in PAGES:
        _page.write_text(written(_page), "utf-8")
