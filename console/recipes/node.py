"""Node.js 18 or later, with nothing but itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from console.recipes.languages import JAVASCRIPT, started, usage
from console.recipes.model import KEY_NAME, RUN, Recipe

if TYPE_CHECKING:
    from console.recipes.model import Holes


def arguments(holes: Holes) -> str:
    """Return the lines that take the inputs from the command line."""
    if not holes.inputs:
        return ""
    names = ", ".join(one.name for one in holes.inputs)
    said = JAVASCRIPT.literal(f"Run it as: {usage(holes, f'node {holes.noun}.mjs')}")
    return (
        f"const [{names}] = process.argv.slice(2);\n"
        f"if ({holes.inputs[-1].name} === undefined) {{\n"
        f"  console.error({said});\n"
        "  process.exit(1);\n"
        "}\n\n"
    )


#: What is done with an answer that is in ``answer``.
ANSWERED = """\
const told = await answer.text();
if (answer.ok) {
  console.log(told);
} else {
  let detail = told;
  try {
    detail = JSON.parse(told).detail ?? told;
  } catch {
    // not ours: what stands in front of it said it
  }
  console.error(detail);
  process.exitCode = 1;
}
"""


def _make(holes: Holes) -> str:
    fields = f"new URLSearchParams({JAVASCRIPT.mapping(holes.fields, 1)})"
    address, body = JAVASCRIPT.url(holes), f"  body: {fields},\n"
    if holes.method == "GET":
        address, body = f'{address} + "&" + {fields}' if holes.fields else address, ""
    return (
        f"{arguments(holes)}"
        f"const answer = await fetch({address}, {{\n"
        f"  method: {JAVASCRIPT.literal(holes.method)},\n"
        f"  headers: {JAVASCRIPT.mapping(holes.headers(''), 1, key=f'process.env.{KEY_NAME}')},\n"
        f"{body}"
        '  redirect: "error",\n'
        "  signal: AbortSignal.timeout(30000),\n"
        "});\n"
        f"{ANSWERED}"
    )


def _steps(holes: Holes) -> tuple[str, ...]:
    return (
        f"Save this as {holes.noun}.mjs. Put your caller key into the environment variable {KEY_NAME}.",
        f"Run it with Node.js 18 or later: {started(holes, f'node {holes.noun}.mjs')}",
    )


RECIPE = Recipe("node", "Node.js", "code", "text/javascript", RUN, _steps, _make)
