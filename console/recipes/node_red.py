"""Node-RED: a flow to import. The call is made of data in a change node; no text of it is code of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from console.recipes import quoting
from console.recipes.model import KEY_NAME, Input, Recipe, tree_of

if TYPE_CHECKING:
    from console.recipes.model import Holes, Tree, Value

RUN: Final = "A test imports this into Node-RED and runs it."
#: Longer than any answer takes.
TIMEOUT: Final = 30000


def _jsonata(value: Value, *, encoded: bool = False) -> str:
    """Return an expression that is a text: JSONata's strings are JSON's."""
    taken = "$encodeUrlComponent($string(order.{}))" if encoded else "$string(order.{})"
    parts = [taken.format(part.name) if isinstance(part, Input) else quoting.javascript(part) for part in value]
    return " & ".join(parts) or '""'


def _object(tree: Tree) -> str:
    """Return an expression that is an object, with its lists and texts."""
    if isinstance(tree, tuple):
        return _jsonata(tree)
    if isinstance(tree, list):
        return f"[{', '.join(map(_object, tree))}]"
    return f"{{{', '.join(f'{quoting.javascript(name)}: {_object(part)}' for name, part in tree.items())}}}"


def _call(holes: Holes, wires: str) -> list[dict[str, Any]]:
    """Return the change node that makes the call and the request node that sends it. ``msg.order`` holds the inputs."""

    def put(place: str, kind: str, to: str) -> dict[str, str]:
        return {"t": "set", "p": place, "pt": "msg", "to": to, "tot": kind}

    headers = {"accept": "application/json"}
    if holes.method == "POST":
        headers["content-type"] = "application/json" if holes.whole else "application/x-www-form-urlencoded"
    # A form takes flat names. The lines are a list of the order, and so go as JSON.
    fields = _object(tree_of(holes.besides) if holes.whole else holes.fields)
    rules = [
        put("order", "jsonata", "$exists(order) ? order : payload"),  # kept, for when the call is repeated
        put("headers", "json", quoting.dumped(headers)),
        put('headers["x-api-key"]', "env", KEY_NAME),
    ]
    if holes.key is not None:
        rules.append(put('headers["idempotency-key"]', "jsonata", _jsonata(holes.key)))
    rules += [
        put("url", "jsonata", _jsonata(holes.url, encoded=True)),
        put("payload", "jsonata", fields),
        *([put("payload.lines", "msg", "order.lines")] if holes.whole else []),
        put("requestTimeout", "num", str(TIMEOUT)),
        put("followRedirects", "bool", "false"),
    ]
    return [
        {"id": "call", "type": "change", "z": "invoices", "name": "the call", "rules": rules,
         "x": 280, "y": 80, "wires": [["send"]]},
        {"id": "send", "type": "http request", "z": "invoices", "name": "Countersign", "method": holes.method,
         "ret": "obj", "paytoqs": "query" if holes.method == "GET" and holes.fields else "ignore", "url": "",
         "x": 450, "y": 80, "wires": [[wires]]},
    ]  # fmt: skip


def _short(holes: Holes) -> str:
    item = quoting.dumped(holes.item())
    nodes: list[dict[str, Any]] = [
        {"id": "invoices", "type": "tab", "label": "Invoices"},
        {"id": "try", "type": "inject", "z": "invoices", "name": "an order", "props": [{"p": "payload"}],
         "payload": item, "payloadType": "json", "x": 110, "y": 80, "wires": [["call"]]},
        *_call(holes, "answer"),
        {"id": "answer", "type": "debug", "z": "invoices", "name": "the answer", "active": True, "tosidebar": True,
         "complete": "payload", "targetType": "msg", "x": 630, "y": 80, "wires": []},
    ]  # fmt: skip
    return _written(nodes)


#: Repeat what was lost on the way, and what says after how many seconds to repeat it. All else is for a person.
_JUDGE: Final = """\
// Repeat what was lost on the way, and what says after how many seconds to repeat it. All else is for a person.
const lost = typeof msg.statusCode !== "number";
const seconds = lost ? 1 : Number(msg.headers["retry-after"]);
msg.tries = (msg.tries || 0) + 1;
if (seconds <= 60 && msg.tries < 5) {
    msg.delay = seconds * 1000;
    return [null, msg];
}
msg.statusCode = lost ? 502 : msg.statusCode;
msg.headers = {};
return [msg, null];"""


def _repeating(holes: Holes) -> str:
    nodes: list[dict[str, Any]] = [
        {"id": "invoices", "type": "tab", "label": "Orders to invoices"},
        {"id": "order", "type": "http in", "z": "invoices", "name": "an order", "url": "/orders", "method": "post",
         "x": 110, "y": 80, "wires": [["call"]]},
        *_call(holes, "judge"),
        {"id": "judge", "type": "function", "z": "invoices", "name": "answer or repeat", "func": _JUDGE, "outputs": 2,
         "x": 630, "y": 80, "wires": [["answer"], ["wait"]]},
        {"id": "wait", "type": "delay", "z": "invoices", "name": "as long as it says", "pauseType": "delayv",
         "timeout": "1", "timeoutUnits": "seconds", "x": 450, "y": 160, "wires": [["call"]]},
        {"id": "answer", "type": "http response", "z": "invoices", "name": "the invoice", "x": 810, "y": 80,
         "wires": []},
    ]  # fmt: skip
    return _written(nodes)


def _written(nodes: list[dict[str, Any]]) -> str:
    """Return the flow, a node a line."""
    return "[\n" + ",\n".join(f"  {quoting.dumped(node)}" for node in nodes) + "\n]\n"


_KEY: Final = f"Start Node-RED with your caller key in the environment variable {KEY_NAME}."


_LINES: Final = (
    "Each line of the order is an amount in the currency's smallest unit (12000 is 120.00 USD), or a quantity and a "
    "unit_amount, with a description."
)


def _short_steps(holes: Holes) -> tuple[str, ...]:
    return (
        _KEY,
        "Import this: menu, Import.",
        "Press the button of the first node to try it, then put your own source of orders in its place.",
        *([_LINES] if holes.whole else []),
    )


def _repeating_steps(holes: Holes) -> tuple[str, ...]:
    item = quoting.dumped(holes.item())
    return (
        _KEY,
        (
            "Import this: menu, Import. It takes orders at /orders, raises an invoice for each, and repeats a call "
            "where that may succeed."
        ),
        f"Send it an order as JSON, such as {item}.",
        *([_LINES] if holes.whole else []),
    )


def _raises(holes: Holes) -> str | None:
    return "This flow is for orders that become invoices. Take the other one." if holes.order is None else None


RECIPES: Final = (
    Recipe("node-red", "Node-RED", "flow", "application/json", RUN, _short_steps, _short, maps_lines=True),
    Recipe(
        "node-red-repeating", "Node-RED, with retries", "flow", "application/json", RUN,
        _repeating_steps, _repeating, _raises, maps_lines=True,
    ),
)  # fmt: skip
