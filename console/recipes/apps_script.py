"""Google Apps Script, as in Google Sheets and Forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from console.recipes import quoting
from console.recipes.languages import JAVASCRIPT, Language
from console.recipes.model import KEY_NAME, Recipe

if TYPE_CHECKING:
    from console.recipes.model import Holes

#: A cell of a sheet may be a number, which a form would get as 1001.0.
_TEXT = Language(quoting.javascript, " + ", "String({})", "encodeURIComponent({})", ("{", ": ", "}"))


def _make(holes: Holes) -> str:
    names = ", ".join(one.name for one in holes.inputs)
    key = f'PropertiesService.getScriptProperties().getProperty("{KEY_NAME}")'
    address, payload = JAVASCRIPT.url(holes), f"    payload: {_TEXT.mapping(holes.fields, 2)},\n"
    if holes.method == "GET":
        parts = [
            f'"&{quoting.form_name(path)}=" + encodeURIComponent({_TEXT.joined(value)})'
            for path, value in holes.fields.items()
        ]
        address, payload = " + ".join([address, *parts]), ""
    return (
        f"function {function(holes)}({names}) {{\n"
        f"  const answer = UrlFetchApp.fetch({address}, {{\n"
        f"    method: {quoting.javascript(holes.method.lower())},\n"
        f"    headers: {_TEXT.mapping(holes.headers(''), 2, key=key)},\n"
        f"{payload}"
        "    muteHttpExceptions: true,\n"
        "    followRedirects: false,\n"
        "  });\n"
        "  const told = answer.getContentText();\n"
        "  if (answer.getResponseCode() === 200) return JSON.parse(told);\n"
        "  let detail = told;\n"
        "  try {\n"
        "    detail = JSON.parse(told).detail || told;\n"
        "  } catch (error) {\n"
        "    // not ours: what stands in front of it said it\n"
        "  }\n"
        "  throw new Error(detail);\n"
        "}\n"
    )


def function(holes: Holes) -> str:
    """Return the name of the function: ``raiseInvoice``."""
    return f"{'get' if holes.order is None else 'raise'}{holes.noun.capitalize()}"


def _steps(holes: Holes) -> tuple[str, ...]:
    given = ", ".join(quoting.javascript(one.example) for one in holes.inputs)
    return (
        f"In the script editor, under Project Settings, add the script property {KEY_NAME} with your caller key.",
        "Paste this into the script.",
        f"Call it from your own function: {function(holes)}({given})",
    )


RECIPE = Recipe(
    "apps-script",
    "Google Apps Script",
    "code",
    "text/javascript",
    "A test runs this as it is copied, in Node.js, with stand-ins for UrlFetchApp and PropertiesService.",
    _steps,
    _make,
)
