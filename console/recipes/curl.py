"""curl, in a POSIX shell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from console.recipes import quoting
from console.recipes.model import KEY_NAME, RUN, Input, Recipe, merged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from console.recipes.model import Holes, Value

#: Text that a shell takes as it is between double quotes.
_HARMLESS: Final = re.compile(r"[A-Za-z0-9 :/._=?&%\[\]-]*")


def _make(holes: Holes) -> str:
    ids = {part for value in holes.ids for part in value}
    # An id stands in the address, where curl encodes nothing.
    lines = [
        f"{one.name.upper()}={quoting.bare(quoting.form(one.example) if one in ids else one.example)}\n"
        for one in holes.inputs
    ]
    # The address is one line, so that it can be read and compared whole.
    call = " \\\n  ".join([f"curl {_joined(holes.url)}", *_options(holes)])
    return "".join(lines) + call + "\n"


def _options(holes: Holes) -> Iterator[str]:
    if "[" in holes.root:  # an IPv6 address, which curl would take for a pattern
        yield "--globoff"
    if holes.token is not None:
        yield f'-H "X-Serverless-Authorization: Bearer $({holes.token})"'
    yield f'-H "x-api-key: ${KEY_NAME}"'
    if holes.key is not None:
        yield f"-H {_joined(('Idempotency-Key: ', *holes.key))}"
    if holes.method == "GET":
        yield "--get"
    elif holes.method == "DELETE":
        yield "--request DELETE"
    elif not holes.fields:
        yield "--data ''"
    for path, value in holes.fields.items():
        # name=value: after a name, no @ and no = is curl's. It encodes the value and leaves the name.
        yield f"--data-urlencode {_joined((quoting.form_name(path) + '=', *value))}"


def _joined(value: Value) -> str:
    """Return one word: in double quotes where the text is harmless there, else texts in single and inputs in double."""
    if any(isinstance(part, Input) for part in value) and _HARMLESS.fullmatch("".join(_texts(value))):
        return f'"{"".join(f"${{{part.name.upper()}}}" if isinstance(part, Input) else part for part in value)}"'
    words = (f'"${part.name.upper()}"' if isinstance(part, Input) else quoting.shell(part) for part in merged(value))
    return "".join(words) or quoting.shell("")


def _texts(value: Value) -> Iterator[str]:
    return (part for part in value if isinstance(part, str))


def _steps(holes: Holes) -> tuple[str, ...]:
    names = " and ".join(one.name.upper() for one in holes.inputs)
    change = (f"Change {names} for every other call: the same order is the same {holes.noun}.",) if holes.order else ()
    return (
        (
            f"Put your caller key into the variable {KEY_NAME}: type read -rs {KEY_NAME}, press Enter, paste the key, "
            "press Enter."
        ),
        *change,
        "Paste this into the same shell.",
    )


RECIPE = Recipe("curl", "curl", "code", "text/x-sh", RUN, _steps, _make)
