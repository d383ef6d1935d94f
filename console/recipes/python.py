"""Python, with nothing but its standard library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from console.recipes.languages import PYTHON, started, usage
from console.recipes.model import KEY_NAME, RUN, Recipe

if TYPE_CHECKING:
    from console.recipes.model import Holes


def arguments(holes: Holes) -> str:
    """Return the lines that take the inputs from the command line."""
    if not holes.inputs:
        return ""
    names = ", ".join(one.name for one in holes.inputs) + ("," if len(holes.inputs) == 1 else "")
    said = PYTHON.literal(f"Run it as: {usage(holes, f'python3 {holes.noun}.py')}")
    return (
        f"if len(sys.argv) != {len(holes.inputs) + 1}:\n"
        f"    sys.exit({said})\n"
        f"{names.removesuffix(',') if len(holes.inputs) > 1 else f'({names})'} = sys.argv[1:]\n\n"
    )


def _make(holes: Holes) -> str:
    key = f'os.environ["{KEY_NAME}"]'
    fields = f"fields = {PYTHON.mapping(holes.fields)}\n"
    if holes.method == "GET":
        address = f'{PYTHON.url(holes)} + "&" + urllib.parse.urlencode(fields)' if holes.fields else PYTHON.url(holes)
        fields, body = fields if holes.fields else "", "None"
    else:
        address, body = PYTHON.url(holes), "urllib.parse.urlencode(fields).encode()"
    return (
        "import json, os, sys, urllib.error, urllib.parse, urllib.request\n\n"
        f"{arguments(holes)}"
        f"{fields}"
        "request = urllib.request.Request(\n"
        f"    {address},\n"
        f"    {body},\n"
        f"    {PYTHON.mapping(holes.headers(''), 1, key=key)},\n"
        ")\n"
        "try:\n"
        "    with urllib.request.urlopen(request, timeout=30) as answer:\n"
        "        print(answer.read().decode())\n"
        "except urllib.error.HTTPError as refused:\n"
        "    told = refused.read().decode()\n"
        "    try:\n"
        '        told = json.loads(told)["detail"]\n'
        "    except (ValueError, KeyError):\n"
        "        pass  # not ours: what stands in front of it said it\n"
        "    sys.exit(told)\n"
    )


def _steps(holes: Holes) -> tuple[str, ...]:
    return (
        f"Save this as {holes.noun}.py. Put your caller key into the environment variable {KEY_NAME}.",
        f"Run it: {started(holes, f'python3 {holes.noun}.py')}",
    )


RECIPE = Recipe("python", "Python", "code", "text/x-python", RUN, _steps, _make)
