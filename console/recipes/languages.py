"""What recipes in programming languages share: how values, objects and lists are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from console.recipes import quoting
from console.recipes.model import Input, tree_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from console.recipes.model import Holes, Tree, Value


@dataclass(frozen=True, slots=True)
class Language:
    """How a language writes what a call is made of. ``variable`` and ``encoded`` have a place for an input's name."""

    literal: Callable[[str], str]
    concatenates: str
    variable: str
    encoded: str
    """An input, percent-encoded for a path."""
    object: tuple[str, str, str]
    """Opens, stands between a name and its value, closes."""
    list: tuple[str, str] = ("[", "]")
    indent: str = "  "

    def joined(self, value: str | Value, *, encoded: bool = False) -> str:
        """Write texts and inputs as one expression that is text."""
        parts = (value,) if isinstance(value, str) else value
        taken = self.encoded if encoded else self.variable
        written = [taken.format(p.name) if isinstance(p, Input) else self.literal(p) for p in parts]
        return self.concatenates.join(written) or self.literal("")

    def url(self, holes: Holes) -> str:
        """Write the address."""
        return self.joined(holes.url, encoded=True)

    def mapping(self, values: Mapping[str, str | Value], level: int = 0, *, key: str | None = None) -> str:
        """Write flat names and their values, a line each. ``key``: the expression that is the caller key."""
        opening, between, closing = self.object
        if not values:
            return opening + closing
        lines = [
            f"{self.indent * (level + 1)}{self.literal(name)}{between}"
            f"{key if key is not None and isinstance(value, str) else self.joined(value)},\n"
            for name, value in values.items()
        ]
        return f"{opening}\n{''.join(lines)}{self.indent * level}{closing}"

    def nested(self, fields: Mapping[str, Value], level: int = 0) -> str:
        """Write parameters as the objects and lists that their paths mean."""
        return self._tree(tree_of(fields), level)

    def _tree(self, tree: Tree, level: int) -> str:
        if isinstance(tree, tuple):
            return self.joined(tree)
        opening, between, closing = self.object
        if isinstance(tree, list):
            (opening, closing), names = self.list, [""] * len(tree)
            parts = tree
        else:
            names, parts = [f"{self.literal(name)}{between}" for name in tree], list(tree.values())
        if not parts:
            return opening + closing
        lines = [
            f"{self.indent * (level + 1)}{name}{self._tree(part, level + 1)},\n"
            for name, part in zip(names, parts, strict=True)
        ]
        return f"{opening}\n{''.join(lines)}{self.indent * level}{closing}"


PYTHON: Final = Language(
    quoting.python, " + ", "{}", 'urllib.parse.quote({}, safe="")', ("{", ": ", "}"), indent="    "
)
JAVASCRIPT: Final = Language(quoting.javascript, " + ", "{}", "encodeURIComponent({})", ("{", ": ", "}"))
PHP: Final = Language(quoting.php, " . ", "${}", "rawurlencode(${})", ("[", " => ", "]"), indent="    ")
RUBY: Final = Language(quoting.ruby, " + ", "{}", "URI.encode_uri_component({})", ("{", " => ", "}"))
GO: Final = Language(quoting.python, " + ", "{}", "url.PathEscape({})", ("{", ": ", "}"), indent="\t")


def usage(holes: Holes, command: str) -> str:
    """Return how a program is started: ``python3 invoice.py ORDER_ID CUSTOMER``."""
    return " ".join([command, *(one.name.upper() for one in holes.inputs)])


def started(holes: Holes, command: str) -> str:
    """Return the line that starts a program with the values that were typed, for a shell."""
    return " ".join([command, *(quoting.bare(one.example) for one in holes.inputs)])
