"""n8n: one HTTP Request node, to paste into the canvas."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final

from console.recipes import quoting
from console.recipes.model import Input, Recipe

if TYPE_CHECKING:
    from console.recipes.model import Holes, Value

#: The version of the node that is written: n8n has read it since 2024, and reads it today.
VERSION: Final = 4.2


def _make(holes: Holes) -> str:
    sent = [{"name": path, "value": _text(value)} for path, value in holes.fields.items()]
    headers = [{"name": "Accept", "value": "application/json"}]  # without it, a refusal arrives as one text
    if holes.key is not None:
        headers.insert(0, {"name": "Idempotency-Key", "value": _text(holes.key)})
    parameters: dict[str, Any] = {
        "method": holes.method,
        "url": _text(holes.url, encoded=True),
        "authentication": "genericCredentialType",
        "genericAuthType": "httpHeaderAuth",
        "sendHeaders": True,
        "headerParameters": {"parameters": headers},
    }
    if sent and holes.method == "GET":
        parameters |= {"sendQuery": True, "queryParameters": {"parameters": sent}}
    elif sent:
        # A form: no quotation mark in the data can break it, as it would break a JSON body that is text.
        parameters |= {"sendBody": True, "contentType": "form-urlencoded", "bodyParameters": {"parameters": sent}}
    parameters["options"] = {"timeout": 30000, "redirect": {"redirect": {"followRedirects": False}}}
    node = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, holes.root)),
        "name": f"{'Get' if holes.order is None else 'Raise'} an {holes.noun}",
        "type": "n8n-nodes-base.httpRequest",
        "typeVersion": VERSION,
        "position": [0, 0],
        "retryOnFail": True,
        "maxTries": 3,
        "waitBetweenTries": 5000,
        "parameters": parameters,
    }
    return quoting.dumped({"nodes": [node], "connections": {}}, 2) + "\n"


def _text(value: Value, *, encoded: bool = False) -> str:
    """Return a parameter's text. Text that begins with = is code there, so such a text is a literal in code."""
    if not any(isinstance(part, Input) for part in value):
        text = "".join(map(str, value))
        return f"={{{{ {quoting.n8n_literal(text)} }}}}" if text.startswith("=") else text
    taken = "{{{{ encodeURIComponent($json.{}) }}}}" if encoded else "{{{{ $json.{} }}}}"
    parts = [taken.format(part.name) if isinstance(part, Input) else quoting.n8n(part) for part in value]
    return "=" + "".join(parts)


def _steps(holes: Holes) -> tuple[str, ...]:
    item = quoting.dumped({one.name: one.example for one in holes.inputs})
    return (
        "Paste this into the canvas of a workflow.",
        (
            "Under Credential to connect with, make a Header Auth credential: its name is x-api-key, its value is your "
            "caller key. It stays with your credentials, not in the workflow."
        ),
        f"The node takes its data from the item before it, such as {item}.",
    )


RECIPE = Recipe(
    "n8n", "n8n", "flow", "application/json",
    "A test runs this in n8n's own node, where the machine has it, and else holds its parameters to that node's list.",
    _steps, _make,
)  # fmt: skip
