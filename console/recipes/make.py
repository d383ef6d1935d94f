"""Make: a blueprint to import. Its names are those of public exports; Make itself was not there to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from console.recipes import quoting
from console.recipes.model import KEY_NAME, Input, Recipe

if TYPE_CHECKING:
    from console.recipes.model import Holes, Value


def _text(value: Value, *, encoded: bool = False) -> str:
    taken = "{{{{encodeURL(1.{})}}}}" if encoded else "{{{{1.{}}}}}"
    return "".join(taken.format(part.name) if isinstance(part, Input) else quoting.make(part) for part in value)


def _rows(values: dict[str, str | Value]) -> list[dict[str, str]]:
    return [
        {"name": name, "value": value if isinstance(value, str) else _text(value)} for name, value in values.items()
    ]


def _make(holes: Holes) -> str:
    variables = [{"name": one.name, "value": quoting.make(one.example)} for one in holes.inputs]
    fields = _rows(dict(holes.fields))
    mapper: dict[str, Any] = {
        "url": _text(holes.url, encoded=True),
        "method": holes.method.lower(),
        "headers": _rows(holes.headers(KEY_NAME)),
    }
    if holes.method == "GET":
        mapper["queryParameters"] = fields
    else:
        mapper |= {"contentType": "urlEncoded", "urlEncodedBodyContent": fields}
    mapper |= {
        "timeout": 30,
        "parseResponse": True,
        "stopOnHttpError": True,
        "allowRedirects": False,
        "shareCookies": False,
        "requestCompressedContent": True,
    }
    flow = [
        {
            "id": 1,
            "module": "util:SetVariables",
            "version": 1,
            "parameters": {},
            "mapper": {"variables": variables, "scope": "roundtrip"},
            "metadata": {"designer": {"x": 0, "y": 0}},
        },
        {
            "id": 2,
            "module": "http:MakeRequest",
            "version": 4,
            "parameters": {"authenticationType": "noAuth", "tlsType": ""},
            "mapper": mapper,
            "metadata": {"designer": {"x": 300, "y": 0}},
        },
    ]
    name = f"{'Get' if holes.order is None else 'Raise'} an {holes.noun}"
    return quoting.dumped({"name": name, "flow": flow, "metadata": {"version": 1}}, 2) + "\n"


def _steps(holes: Holes) -> tuple[str, ...]:
    names = " and ".join(one.name for one in holes.inputs)
    return (
        "Save this as a file. In a new scenario, open the menu and choose Import Blueprint.",
        (
            f"In the HTTP module, replace {KEY_NAME} by your caller key. Better: choose API key under Authentication "
            "type, keep the key in a keychain with the header x-api-key, and take that header out of the list."
        ),
        f"In the first module, put your own data in the place of the examples of {names}.",
    )


RECIPE = Recipe(
    "make", "Make", "flow", "application/json",
    "The names in this file were read in what others exported from Make; a test sends what the module says. It was "
    "not run in Make itself.",
    _steps, _make,
)  # fmt: skip
