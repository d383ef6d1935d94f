"""Text as a literal of each language: the interpreter itself reads back what was written."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from console.recipes import quoting

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a call may hold: no control characters but tab and line breaks, and no half characters.
TEXT: Final = st.text(
    st.one_of(
        st.sampled_from("'\"`\\$#{}%@=!&<>*~?;|-\n\r\t \u2028\u2029\u202e\ufeff\u200d\xa0\x85\U0001f600anurx0u"),
        st.characters(exclude_categories=("Cc", "Cs")),
    ),
    max_size=40,
)
#: A run of an interpreter reads this many texts.
BATCH: Final = st.lists(TEXT, min_size=1, max_size=200)
FEW: Final = settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def told(command: list[str], program: str) -> bytes:
    environ = {"PATH": os.environ["PATH"]}  # no locale: what is read must not hang on one
    return subprocess.run(command, input=program.encode(), env=environ, capture_output=True, check=True).stdout


def _joined(texts: list[str]) -> bytes:
    return "".join(f"{text}\0" for text in texts).encode()


#: A program that writes texts, each with a NUL behind it, from their literals.
PROGRAMS: Final[dict[str, tuple[list[str], Callable[[list[str]], str]]]] = {
    "sh": (
        ["sh", "-s"],
        lambda texts: "".join(f"printf '%s\\0' {quoting.shell(text)}\n" for text in texts),
    ),
    "bare sh": (
        ["sh", "-s"],
        lambda texts: "".join(f"X={quoting.bare(text)}\nprintf '%s\\0' \"$X\"\n" for text in texts),
    ),
    "python": (
        [sys.executable, "-X", "utf8", "-"],
        lambda texts: (
            "import sys\n"
            + "".join(f"sys.stdout.buffer.write(({quoting.python(text)} + chr(0)).encode())\n" for text in texts)
        ),
    ),
    "node": (
        ["node", "-"],
        lambda texts: "".join(f'process.stdout.write({quoting.javascript(text)} + "\\0");\n' for text in texts),
    ),
    "php": (
        ["php"],
        lambda texts: "<?php\n" + "".join(f'echo {quoting.php(text)}, "\\0";\n' for text in texts),
    ),
    "ruby": (
        ["ruby", "-"],
        lambda texts: "# encoding: utf-8\n" + "".join(f'print {quoting.ruby(text)}, "\\0"\n' for text in texts),
    ),
}


@pytest.mark.parametrize(
    "language",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(shutil.which(command[0]) is None, reason=f"install {command[0]} for it")
        )
        for name, (command, _) in PROGRAMS.items()
    ],
)
def test_interpreter_reads_back_every_text(language: str) -> None:
    command, program = PROGRAMS[language]

    @FEW
    @given(BATCH)
    def holds(texts: list[str]) -> None:
        assert told(command, program(texts)) == _joined(texts)

    holds()


@given(TEXT)
def test_literals_that_are_read_here_are_the_text(text: str) -> None:
    assert ast.literal_eval(quoting.python(text)) == text
    assert json.loads(quoting.javascript(text)) == text
    assert json.loads(quoting.n8n_literal(text)) == text
    for written in (quoting.python(text), quoting.javascript(text), quoting.ruby(text)):
        assert written.isprintable()


@given(TEXT, TEXT)
def test_text_of_a_no_code_tool_begins_no_expression(text: str, after: str) -> None:
    # Whatever stands behind it, such as a mapping.
    made = quoting.make(text) + "{{1.x}}"
    assert made.replace('{{"{"}}', "{").endswith("{{1.x}}")
    assert "{{" not in made.replace('{{"{"}}', "\0").removesuffix("{{1.x}}")
    assert not {"{", "}"} & set(quoting.n8n_literal(text))
    in_n8n = quoting.n8n(text)
    assert in_n8n == text or (in_n8n.startswith("{{ ") and in_n8n.count("{{") == in_n8n.count("}}") == 1)
    assert not {"&", "=", "+", "@", "{", "'", " "} & set(quoting.form(text))


@pytest.mark.parametrize(
    ("text", "written"), [("@x", "@@x"), ("a@{b}", "a@@{b}"), ("a@b", "a@b"), ("@", "@@"), ("@@{", "@@@@{")]
)
def test_text_of_power_automate_escapes_what_begins_an_expression(text: str, written: str) -> None:
    assert quoting.logic_apps(text) == written
