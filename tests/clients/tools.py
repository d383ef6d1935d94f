"""Runs recipes as they are copied, each in its tool. For the services of others, a reader sends what the recipe says.

Each runner takes a recipe's text and the inputs that the step before would give it, and returns the status and the text
of the answer, as far as the tool shows them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import pytest
import requests

from sandbox.__main__ import ROOT
from sandbox.ports import free_port, listening
from tests.clients.sdks import INSTALLED, SDKS
from tests.tools import CURL, NODE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

ALWAYS: Final = pytest.mark.skipif(condition=False, reason="it needs nothing")
PROGRAMS: Final = ROOT / "tests" / "clients" / "programs"
NODE_RED: Final = SDKS["node"].folder / "node_modules" / "node-red" / "red.js"
N8N: Final = INSTALLED / "n8n" / "node_modules"
HAS_NODE_RED: Final = pytest.mark.skipif(
    not NODE_RED.exists() or shutil.which("node") is None,
    reason="Node-RED is not on this machine. Install Node.js 20 or newer with npm, then: make test-clients",
)
HAS_N8N: Final = pytest.mark.skipif(
    not (N8N / "n8n-nodes-base").exists() or shutil.which("node") is None,
    reason="n8n's node is not on this machine. Install Node.js 20 or newer with npm, then: make test-n8n (800 MB)",
)


@dataclass(frozen=True)
class Copied:
    """A recipe's text, and what it is run with."""

    text: str
    inputs: Mapping[str, str]
    key: str
    folder: Path


def _done(done: subprocess.CompletedProcess[str]) -> tuple[bool, str]:
    return done.returncode == 0, done.stdout if done.returncode == 0 else done.stderr


def _ran(copied: Copied, command: list[str], **environ: str) -> tuple[bool, str]:
    environ |= {"PATH": os.environ["PATH"], "COUNTERSIGN_KEY": copied.key, "SIGNING_SECRET": copied.key}
    done = subprocess.run(
        command, cwd=copied.folder, env=environ, capture_output=True, text=True, check=False, timeout=120
    )
    return _done(done)


def _file(copied: Copied, name: str) -> Path:
    file = copied.folder / name
    file.write_text(copied.text, "utf-8")
    return file


def curl(copied: Copied) -> tuple[bool, str]:
    went, told = _ran(copied, ["sh", "-c", copied.text])
    return went and "detail" not in json.loads(told), told


def python(copied: Copied) -> tuple[bool, str]:
    return _ran(copied, [sys.executable, str(_file(copied, "invoice.py")), *copied.inputs.values()])


def node(copied: Copied) -> tuple[bool, str]:
    return _ran(copied, ["node", str(_file(copied, "invoice.mjs")), *copied.inputs.values()])


def sdk(name: str, suffix: str) -> Callable[[Copied], tuple[bool, str]]:
    def run(copied: Copied) -> tuple[bool, str]:
        program = _file(copied, f"invoice.{suffix}")
        if name == "node" and not (copied.folder / "node_modules").exists():
            (copied.folder / "node_modules").symlink_to(SDKS["node"].folder / "node_modules")
        return _done(SDKS[name].run(program, arguments=list(copied.inputs.values()), key=copied.key))

    return run


def apps_script(copied: Copied) -> tuple[bool, str]:
    function = re.match(r"function (\w+)\(", copied.text)
    assert function
    given = {
        "script": copied.text,
        "key": copied.key,
        "call": {"function": function[1], "arguments": list(copied.inputs.values())},
    }
    return _done(_given(PROGRAMS / "apps_script.cjs", given))


def n8n(copied: Copied) -> tuple[bool, str]:
    recipe = json.loads(copied.text)
    (shown,) = recipe["nodes"]
    given = {"recipe": recipe, "item": copied.inputs, "key": copied.key}
    done = _given(PROGRAMS / "n8n.cjs", given, NODE_PATH=str(N8N))
    told = json.loads(done.stdout)
    # n8n's editor keeps all of it, and finds nothing to complain about.
    assert (told["kept"], told["issues"]) == (shown["parameters"], None)
    return "answer" in told, json.dumps(told.get("answer")) if "answer" in told else told["error"]


def _given(program: Path, given: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", program],
        input=json.dumps(given),
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


# ---------------------------------------------------------------- readers of what others' services would be told


def _sent(method: str, url: str, headers: Mapping[str, str], fields: object) -> tuple[bool, str]:
    with requests.Session() as session:
        session.trust_env = False
        form = {} if method == "GET" else {"Content-Type": "application/x-www-form-urlencoded"}
        given = fields if isinstance(fields, str) else urlencode(fields)  # type: ignore[arg-type]
        answer = session.request(
            method, url, headers={**headers, **form}, data=given.encode(), allow_redirects=False, timeout=60
        )
    return answer.status_code == 200, answer.text


_MAPPING = re.compile(r'\{\{(?:"(?P<text>\{)"|1\.(?P<name>\w+)|encodeURL\(1\.(?P<encoded>\w+)\))\}\}')


def make(copied: Copied) -> tuple[bool, str]:
    first, second = json.loads(copied.text)["flow"]
    assert (first["module"], first["version"]) == ("util:SetVariables", 1)
    assert (second["module"], second["version"], second["id"]) == ("http:MakeRequest", 4, 2)

    def told(text: str, variables: Mapping[str, str]) -> str:
        def of(found: re.Match[str]) -> str:
            if found["encoded"]:
                return quote(variables[found["encoded"]], safe="")
            return found["text"] or variables[found["name"]]

        assert "{{" not in _MAPPING.sub("", text)
        return _MAPPING.sub(of, text)

    variables = {one["name"]: told(one["value"], {}) for one in first["mapper"]["variables"]}
    assert variables == copied.inputs
    mapper = second["mapper"]
    headers = {one["name"]: told(one["value"], variables) for one in mapper["headers"]}
    assert headers["x-api-key"] == "COUNTERSIGN_KEY"
    fields = [(one["name"], told(one["value"], variables)) for one in mapper["urlEncodedBodyContent"]]
    assert (mapper["contentType"], mapper["allowRedirects"], mapper["stopOnHttpError"]) == ("urlEncoded", False, True)
    url = told(mapper["url"], variables)
    return _sent(mapper["method"].upper(), url, headers | {"x-api-key": copied.key}, fields)


def zapier(copied: Copied) -> tuple[bool, str]:
    cells = {cell["field"]: cell.get("value", cell.get("rows")) for cell in json.loads(copied.text)}
    assert list(cells) == ["URL", "Payload Type", "Data", "Wrap Request In Array", "Unflatten", "Headers"]
    assert [cells[name] for name in ("Payload Type", "Unflatten")] == [["Form"], ["No"]]

    def told(value: list[Any]) -> str:
        return "".join(part if isinstance(part, str) else copied.inputs[part["insert"]] for part in value)

    headers = {row["name"]: told(row["value"]) for row in cells["Headers"]}
    assert headers["x-api-key"] == "COUNTERSIGN_KEY"
    fields = [(row["name"], told(row["value"])) for row in cells["Data"]]
    return _sent("POST", told(cells["URL"]), headers | {"x-api-key": copied.key}, fields)


_EXPRESSION = re.compile(
    r"@\{(?:triggerBody\(\)\?\['(?P<name>\w+)'\]|encodeUriComponent\(string\(triggerBody\(\)\?\['(?P<encoded>\w+)'\]\)\)"
    r"|parameters\('(?P<parameter>\w+)'\)|'(?P<text>(?:[^']|'')*)')\}"
)


def power_automate(copied: Copied) -> tuple[bool, str]:
    inputs = json.loads(copied.text)["inputs"]

    def told(text: str) -> str:
        def of(found: re.Match[str]) -> str:
            if found["encoded"]:
                return quote(copied.inputs[found["encoded"]], safe="!'()*~")
            if found["parameter"]:
                return {"COUNTERSIGN_KEY": copied.key, "SIGNING_SECRET": copied.key}[found["parameter"]]
            return copied.inputs[found["name"]] if found["name"] else found["text"].replace("''", "'")

        assert not re.search(r"\A@(?!@|\{)|(?<!@)@\{", _EXPRESSION.sub("", text))
        return _EXPRESSION.sub(of, text)

    assert inputs["retryPolicy"] == {"type": "fixed", "count": 4, "interval": "PT30S"}
    headers = {name: told(value) for name, value in inputs["headers"].items()}
    return _sent(inputs["method"], told(inputs["uri"]), headers, told(inputs["body"]))


# ---------------------------------------------------------------- Node-RED


@contextmanager
def node_red(folder: Path, key: str) -> Iterator[int]:
    """Run Node-RED, without a flow in it; return its port."""
    port = free_port()
    settings = {
        "flowFile": "flows.json",
        "uiHost": "127.0.0.1",
        "uiPort": port,
        "telemetry": {"enabled": False, "updateNotification": False},
        "externalModules": {"autoInstall": False, "palette": {"allowInstall": False}},
        "credentialSecret": "of this test",
    }
    (folder / "flows.json").write_text("[]")
    (folder / "settings.js").write_text(f"module.exports = {json.dumps(settings)}")
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "COUNTERSIGN_KEY": key}
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            ["node", str(NODE_RED), "--userDir", str(folder)], cwd=folder, env=environ, stdout=said, stderr=said
        )
    try:
        deadline = time.monotonic() + 120
        # It listens before its flows run.
        while not listening(port) or "Started flows" not in (folder / "said").read_text():
            assert process.poll() is None, (folder / "said").read_text()
            assert time.monotonic() < deadline, (folder / "said").read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def imported(port: int, flow: str) -> None:
    """Import a flow as the editor does: all that runs is replaced by it."""
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Content-Type": "application/json", "Node-RED-API-Version": "v1"}
        session.post(f"http://127.0.0.1:{port}/flows", flow.encode(), headers=headers, timeout=60).raise_for_status()


def pressed(port: int, button: str) -> None:
    """Press the button of an inject node."""
    with requests.Session() as session:
        session.trust_env = False
        deadline = time.monotonic() + 60
        # A flow starts a moment after it was imported.
        while (answer := session.post(f"http://127.0.0.1:{port}/inject/{button}", timeout=60)).status_code == 404:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        answer.raise_for_status()


#: Each recipe that one run of a program, or of a reader, carries out.
RUNNERS: Final[Mapping[str, tuple[Callable[[Copied], tuple[bool, str]], pytest.MarkDecorator]]] = {
    "curl": (curl, CURL),
    "python": (python, ALWAYS),
    "node": (node, NODE),
    "n8n": (n8n, HAS_N8N),
    "make": (make, ALWAYS),
    "zapier": (zapier, ALWAYS),
    "power-automate": (power_automate, ALWAYS),
    "apps-script": (apps_script, NODE),
    "stripe-python": (sdk("python", "py"), SDKS["python"].needed),
    "stripe-node": (sdk("node", "mjs"), SDKS["node"].needed),
    "stripe-php": (sdk("php", "php"), SDKS["php"].needed),
    "stripe-ruby": (sdk("ruby", "rb"), SDKS["ruby"].needed),
    "stripe-go": (sdk("go", "go"), SDKS["go"].needed),
}
