"""Power Automate's and Logic Apps' HTTP action, as its code view shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from console.recipes import quoting
from console.recipes.model import KEY_NAME, Input, Recipe

if TYPE_CHECKING:
    from console.recipes.model import Holes, Value


def _text(value: Value) -> str:
    """Return a header's text. Beside an input, a text with ``@`` is a literal in an expression: ``@@{`` is a text."""
    if not any(isinstance(part, Input) for part in value):
        return quoting.logic_apps("".join(map(str, value)))
    return "".join(
        f"@{{triggerBody()?['{part.name}']}}"
        if isinstance(part, Input)
        else f"@{{{quoting.logic_apps_literal(part)}}}"
        if "@" in part
        else part
        for part in value
    )


def _encoded(value: Value, *, address: bool = False) -> str:
    taken = "@{{encodeUriComponent(string(triggerBody()?['{}']))}}"
    # An address is percent-encoded already, and an @ in it stands in front of no brace.
    return "".join(
        taken.format(part.name) if isinstance(part, Input) else part if address else quoting.form(part)
        for part in value
    )


def _make(holes: Holes) -> str:
    form = "&".join(f"{quoting.form(path)}={_encoded(value)}" for path, value in holes.fields.items())
    headers = {
        name: f"@{{parameters('{KEY_NAME}')}}" if isinstance(value, str) else _text(value)
        for name, value in holes.headers("").items()
    }
    inputs: dict[str, Any] = {"method": holes.method, "uri": _encoded(holes.url, address=True)}
    if holes.method == "GET":
        inputs["uri"] += f"&{form}" if form else ""
    else:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    inputs["headers"] = headers
    if holes.method != "GET":
        inputs["body"] = form
    inputs["retryPolicy"] = {"type": "fixed", "count": 4, "interval": "PT30S"}
    return quoting.dumped({"type": "Http", "inputs": inputs, "limit": {"timeout": "PT30S"}}, 2) + "\n"


def _steps(holes: Holes) -> tuple[str, ...]:
    names = " and ".join(one.name for one in holes.inputs)
    return (
        (
            "Add the action HTTP (premium). In Logic Apps, put this into its code view. In Power Automate, fill in the "
            "same fields in this order: Method, URI, Headers, Body; then Retry policy and Timeout under Settings."
        ),
        f"Keep your caller key in a secured parameter or environment variable named {KEY_NAME}.",
        f"{names}: the parts with triggerBody() take them from the trigger. Replace those by your own dynamic content.",
    )


RECIPE = Recipe(
    "power-automate", "Power Automate", "flow", "application/json",
    "The names of the fields were read in Microsoft's documentation; a test sends what they say. It was not run in "
    "Power Automate itself.",
    _steps, _make,
)  # fmt: skip
