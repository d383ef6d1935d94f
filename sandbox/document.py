"""The policy document that ``make run`` names: watched, checked by ``countersign check``, and served to the function.

The function reads a copy in which every connection leads to the sandbox: its origin is the sandbox's upstream of that
kind, and a mounted secret is one of the sandbox's Secret Manager. So a document that is meant for the cloud runs here
as it is written, and nothing leaves this machine. The copy is replaced in one move, and only by a document in order.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

ROOT: Final = Path(__file__).parent.parent
#: The document is looked at so often. What was saved is taken up once it stood still for as long, so that half a file
#: that an editor is still writing is no mistake.
LOOK_SECONDS: Final = 0.2

#: Where a document's secrets are named.
_SECRETS: Final = frozenset(("secret", "webhook"))


class RefusedError(Exception):
    """The document is not in order. The text says why, for the terminal."""


class Document:
    """A policy document in a file, and the copy of it that the function reads."""

    def __init__(self, file: Path, copy: Path, origins: Mapping[str, str]) -> None:
        """``origins`` are those of the sandbox's upstreams, by the name that documents have for their kind."""
        self.file, self._copy, self._origins = file, copy, origins
        self.content: dict[str, Any] = {}
        """What the document says that was taken last: objects, lists and text."""
        self._seen: object = None

    def take(self) -> None:
        """Serve the document as it is now. Raises :class:`RefusedError`, and then the last good one stays."""
        self._seen = self._signature()
        data = None
        while data != (data := self._read()):  # saved again during the check: it was not this that was checked
            self._check()
        try:
            served = against(data.decode("utf-8-sig"), self._origins)
        except UnicodeDecodeError:  # and yet it is in order
            raise RefusedError(f"{self.file} is compiled. Name the document that it was compiled from.") from None
        except ValueError as error:
            raise RefusedError(f"{self.file}: {error}") from None
        beside = self._copy.with_suffix(".new")
        beside.write_text(served, "utf-8")
        beside.replace(self._copy)
        self.content = yaml.load(served, yaml.CBaseLoader)  # noqa: S506 - it makes nothing but text

    def watch(self, stopped: threading.Event, tell: Callable[[str], None]) -> None:
        """Take what is saved until ``stopped``, and say so; or what is wrong with it."""
        before: object = self._seen
        while not stopped.wait(LOOK_SECONDS):
            now = self._signature()
            if now != before:
                before = now
            elif now != self._seen:
                try:
                    self.take()
                except RefusedError as error:
                    tell(f"{error}\nThe last good policy stays in force.")
                else:
                    tell(f"{self.file} was saved: the next call goes by it.")

    def _signature(self) -> object:
        try:
            status = self.file.stat()
        except OSError as error:
            return type(error).__name__
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> bytes:
        try:
            return self.file.read_bytes()
        except OSError:
            return b""  # the check says why

    def _check(self) -> None:
        command = [sys.executable, "-P", "-m", "console", "check", str(self.file)]
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        if done.returncode:
            raise RefusedError(done.stderr.strip())


def against(text: str, origins: Mapping[str, str]) -> str:
    """Return a policy document in order with every connection led to the sandbox. ``origins`` are by upstream.

    Raises ValueError, whose text is a sentence, where the sandbox has no upstream of a connection's kind.
    """
    root: Any = yaml.compose(text, yaml.CSafeLoader)
    for name, connection in _member(root, "connections").value:
        kind = _member(connection, "upstream").value
        if kind not in origins:
            raise ValueError(f"connections.{name.value}: the sandbox has no upstream {kind}. Remove the connection.")
        kept = [pair for pair in connection.value if pair[0].value != "origin"]
        connection.value = [*kept, (_text("origin"), _text(origins[kind]))]
    _rewrite(root)
    written: str = yaml.serialize(root, Dumper=yaml.CSafeDumper, allow_unicode=True, width=2**16)
    return written


def _rewrite(node: Any, key: str = "") -> None:
    """Name each mounted secret as one of Secret Manager's: what is mounted elsewhere is not here. Spell out nulls.

    An empty value would be written in quotes between `{ }`, and then be an empty text.
    """
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            _rewrite(value, name.value)
    elif isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _rewrite(inner)
    elif node.tag == "tag:yaml.org,2002:null":
        node.value = "null"
    elif key in _SECRETS and node.value.startswith("file:"):
        node.value = mounted(node.value)


def mounted(place: str) -> str:
    """Return the name under which the sandbox's Secret Manager has what is mounted at ``place``."""
    return f"projects/sandbox/secrets/mounted-{hashlib.sha256(place.encode()).hexdigest()[:16]}/versions/latest"


def webhook_secrets(content: Any) -> set[str]:
    """Return the secrets, without their version, that a document's webhooks are signed with."""
    named = (
        credential["webhook"]
        for caller in content.get("callers", {}).values()
        for credential in caller["credentials"]
        if "webhook" in credential
    )
    places = (place if isinstance(place, str) else place["secret"] for place in named)
    return {(mounted(place) if place.startswith("file:") else place).partition("/versions/")[0] for place in places}


def _member(node: Any, name: str) -> Any:
    return next(value for key, value in node.value if key.value == name)


def _text(value: str) -> Any:
    return yaml.ScalarNode("tag:yaml.org,2002:str", value)
