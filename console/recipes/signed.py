"""A signed webhook by Standard Webhooks, in Python and Node.js: the secret itself never travels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from console.recipes import node, python
from console.recipes.languages import JAVASCRIPT, PYTHON, started
from console.recipes.model import RUN, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from console.recipes.model import Holes, Value


def _name(holes: Holes) -> Value:
    """Return the webhook's id. It names the call; where a field is the key, that field does and this follows it."""
    if holes.key is not None:
        return holes.key
    return ("" if holes.order is None else holes.order,)


def _python(holes: Holes) -> str:
    return (
        "import base64, hashlib, hmac, json, os, sys, time, urllib.error, urllib.request\n\n"
        f"{python.arguments(holes)}"
        'secret = base64.b64decode(os.environ["SIGNING_SECRET"].removeprefix("whsec_"))\n'
        f"name = {PYTHON.joined(_name(holes))}  # names this {holes.noun}: the same when it is sent again\n"
        "now = str(int(time.time()))\n"
        f"fields = {PYTHON.nested(holes.fields)}\n"
        "body = json.dumps(fields).encode()\n"
        'signed = hmac.digest(secret, f"{name}.{now}.".encode() + body, hashlib.sha256)\n\n'
        "request = urllib.request.Request(\n"
        f"    {PYTHON.url(holes)},\n"
        "    body,\n"
        "    {\n"
        '        "Content-Type": "application/json",\n'
        '        "webhook-id": name,\n'
        '        "webhook-timestamp": now,\n'
        '        "webhook-signature": "v1," + base64.b64encode(signed).decode(),\n'
        "    },\n"
        ")\n"
        "try:\n"
        "    with urllib.request.urlopen(request, timeout=30) as answer:\n"
        "        print(answer.read().decode())\n"
        "except urllib.error.HTTPError as refused:\n"
        "    sys.exit(refused.read().decode())\n"
    )


def _node(holes: Holes) -> str:
    return (
        'import { createHmac } from "node:crypto";\n\n'
        f"{node.arguments(holes)}"
        'const secret = Buffer.from(process.env.SIGNING_SECRET.replace(/^whsec_/, ""), "base64");\n'
        f"const name = {JAVASCRIPT.joined(_name(holes))}; // names this {holes.noun}: the same when it is sent again\n"
        "const now = Math.floor(Date.now() / 1000);\n"
        f"const body = JSON.stringify({JAVASCRIPT.nested(holes.fields)});\n"
        'const signed = createHmac("sha256", secret).update(`${name}.${now}.${body}`).digest("base64");\n\n'
        f"const answer = await fetch({JAVASCRIPT.url(holes)}, {{\n"
        '  method: "POST",\n'
        "  headers: {\n"
        '    "Content-Type": "application/json",\n'
        '    "webhook-id": name,\n'
        '    "webhook-timestamp": String(now),\n'
        '    "webhook-signature": `v1,${signed}`,\n'
        "  },\n"
        "  body,\n"
        '  redirect: "error",\n'
        "  signal: AbortSignal.timeout(30000),\n"
        "});\n"
        f"{node.ANSWERED}"
    )


def _steps(file: str, command: str) -> Callable[[Holes], tuple[str, ...]]:
    def steps(holes: Holes) -> tuple[str, ...]:
        name = f"{holes.noun}.{file}"
        return (
            "This takes a signing secret in the place of a caller key. Ask the operator of Countersign for one.",
            f"Save this as {name}. Put the secret into the environment variable SIGNING_SECRET.",
            f"Run it: {started(holes, f'{command} {name}')}. The order must have no comma and no full stop in it.",
        )

    return steps


def _only_creates(holes: Holes) -> str | None:
    return "A signed call says what it asks in its body, and this one has none." if holes.method == "GET" else None


RECIPES: Final = (
    Recipe(
        "signed-python", "Signed webhook, Python", "code", "text/x-python", RUN,
        _steps("py", "python3"), _python, _only_creates,
    ),
    Recipe(
        "signed-node", "Signed webhook, Node.js", "code", "text/javascript", RUN,
        _steps("mjs", "node"), _node, _only_creates,
    ),
)  # fmt: skip
