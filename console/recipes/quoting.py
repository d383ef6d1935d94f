"""Text as a literal of each language, one function a language. What is read back is the text, byte for byte.

Characters that cannot be seen, such as those that turn the direction of writing, are escaped where the language can:
nobody should copy what is not shown.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a name may keep in a form, for people to read: brackets, which every server takes.
_SAFE_IN_NAMES: Final = "[]"
_UNQUOTED = re.compile(r"[A-Za-z0-9_./:@%+-]+")


def shell(text: str) -> str:
    """Return one word of a POSIX shell: single quotes, in which nothing is special, also where it is interactive."""
    return "'" + text.replace("'", "'\\''") + "'"


def bare(text: str) -> str:
    """Return one word of a POSIX shell, without quotes where it needs none: for a line that people read."""
    return text if _UNQUOTED.fullmatch(text) else shell(text)


def javascript(text: str) -> str:
    """Return a string of JavaScript, JSON and JSONata."""
    return dumped(text)


def python(text: str) -> str:
    """Return a string of Python and Go. A character beyond 16 bits is one escape there, not two."""

    def one_escape(code: int) -> str:
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return _shown(json.dumps(text, ensure_ascii=False), one_escape)


def php(text: str) -> str:
    """Return a string of PHP: in single quotes, in which ``$`` is text."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def ruby(text: str) -> str:
    """Return a string of Ruby. In single quotes, a carriage return of a file would be lost."""
    literal = json.dumps(text, ensure_ascii=False).replace("#", "\\#")
    return _shown(literal, lambda code: f"\\u{{{code:x}}}")


def form(text: str) -> str:
    """Return the value of a field in a form or a query, percent-encoded."""
    return quote(text, safe="")


def form_name(path: str) -> str:
    """Return the name of a field in a form or a query, percent-encoded but for its brackets."""
    return quote(path, safe=_SAFE_IN_NAMES)


def n8n(text: str) -> str:
    """Return text for the inside of an n8n expression, ``=...``. What could be taken for code goes into a literal."""
    if "{" not in text and "}" not in text and "\\" not in text:
        return text
    return "{{ " + n8n_literal(text) + " }}"


def n8n_literal(text: str) -> str:
    """Return a string for the inside of ``{{ }}``, which no brace of the text can end."""
    return javascript(text).replace("{", "\\u007b").replace("}", "\\u007d")


def make(text: str) -> str:
    """Return text for a field of Make, in which ``{{`` begins a mapping. A brace before another is a text literal."""
    return re.sub(r"\{(?=\{|\Z)", '{{"{"}}', text)


def logic_apps(text: str) -> str:
    """Return text for a field of Power Automate, in which ``@`` begins an expression, and ``@{`` wherever it stands."""
    return re.sub(r"\A@|@(?=\{)", "@@", text)


def logic_apps_literal(text: str) -> str:
    """Return a string for the inside of an expression of Power Automate."""
    return "'" + text.replace("'", "''") + "'"


def dumped(value: Any, indent: int | None = None) -> str:
    """Return JSON, in UTF-8, with what cannot be seen escaped."""

    def surrogates(code: int) -> str:
        return json.dumps(chr(code))[1:-1]

    return _shown(json.dumps(value, ensure_ascii=False, indent=indent), surrogates)


def _shown(literal: str, escaped: Callable[[int], str]) -> str:
    """Escape what cannot be seen. A line break is one of the layout: those of a text are escaped already."""
    if literal.replace("\n", "").isprintable():  # as almost all are: a recipe is made of many
        return literal
    return "".join(one if one.isprintable() or one == "\n" else escaped(ord(one)) for one in literal)
