"""Zapier: the fields of one step, in its own order. Zapier imports no single step, so they are typed or pasted in.

The text is JSON: ``[{"field", "value"}]`` and ``[{"field", "rows": [{"name", "value"}]}]``. A value is a list of texts
and ``{"insert": INPUT}``, which stands for a field of an earlier step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from console.recipes import quoting
from console.recipes.model import CELLS, KEY_NAME, Input, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from console.recipes.model import Holes, Value


def _cell(value: str | Value) -> list[str | dict[str, str]]:
    parts = (value,) if isinstance(value, str) else value
    return [{"insert": part.name} if isinstance(part, Input) else part for part in parts]


def _rows(values: Mapping[str, str | Value]) -> list[dict[str, Any]]:
    return [{"name": name, "value": _cell(value)} for name, value in values.items()]


def _make(holes: Holes) -> str:
    fields = _rows(dict(holes.fields))
    cells: list[dict[str, Any]] = [{"field": "URL", "value": _cell(holes.url)}]
    if holes.method == "GET":
        cells += [{"field": "Query String Params", "rows": fields}]
    else:
        cells += [
            {"field": "Payload Type", "value": ["Form"]},
            {"field": "Data", "rows": fields},
            {"field": "Wrap Request In Array", "value": ["No"]},
            {"field": "Unflatten", "value": ["No"]},  # it would split names at two underscores
        ]
    cells.append({"field": "Headers", "rows": _rows(holes.headers(KEY_NAME))})
    return quoting.dumped(cells, 2) + "\n"


def _steps(holes: Holes) -> tuple[str, ...]:
    names = " and ".join(one.name for one in holes.inputs)
    return (
        f"Add the action Webhooks by Zapier, and as its event {holes.method}.",
        f"Fill in its fields as below, in this order. For {names}, insert a field of an earlier step.",
        f"Under Headers, replace {KEY_NAME} by your caller key.",
    )


RECIPE = Recipe(
    "zapier", "Zapier", "cells", CELLS,
    "The names of the fields were read in Zapier's help; a test sends what they say. It was not run in Zapier itself.",
    _steps, _make,
)  # fmt: skip
