"""A caller's form or JSON -> parameters -> the form that goes upstream.

Form and JSON are read into one flat mapping of bracket path to text, such as ``metadata[order_id]`` -> ``7``, so that
later stages see one notation. The rules of the outgoing form are those of Stripe's own clients: null is left out, lists
are indexed from 0, an empty list or object emits nothing, booleans are ``true`` and ``false``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote_plus

from policies.refusals import BodyMalformed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The whole catalogue, every list at a sensible length and 50 metadata entries, stays below this.
MAX_FIELDS: Final = 512
#: The deepest parameter of any catalogue has 7 segments.
MAX_DEPTH: Final = 8
#: Longer than the longest path of any catalogue, a 40-character metadata key included.
MAX_PATH: Final = 256
#: How many characters of a caller's text a sentence quotes: enough for the longest name of any catalogue.
MAX_SHOWN: Final = 140
#: Every amount and timestamp fits; more digits are an attack on the parser.
MAX_DIGITS: Final = 20

_PATH = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: DEL, and C0 except tab, LF and CR: no invoice needs them, and terminals interpret them.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def parse(body: bytes, media: str) -> dict[str, str]:
    """Read a body (``media`` is ``form`` or ``json``) into bracket paths and their texts, in canonical order.

    Raises :class:`BodyMalformed` for anything that two parsers could read differently.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BodyMalformed("The body is not valid UTF-8.") from None
    given = _from_form(text) if media == "form" else _from_json(text)
    _refuse_conflicts(given)
    return canonical(given)


def canonical(parameters: Mapping[str, str]) -> dict[str, str]:
    """Sort parameters for sending and comparing: by name, list entries by index."""
    return dict(sorted(parameters.items(), key=_place if nested(parameters) else None))


def nested(parameters: Iterable[str]) -> bool:
    """Whether any of these paths leads into an object or a list."""
    return "[" in "".join(parameters)


def encode(parameters: Mapping[str, str]) -> bytes:
    """Write parameters as the form that goes upstream, in UTF-8, percent-encoded."""
    return "&".join([f"{quote_plus(path)}={quote_plus(value)}" for path, value in parameters.items()]).encode("ascii")


def split(path: str) -> tuple[str, ...]:
    """Split a bracket path: ``custom_fields[0][name]`` is ``("custom_fields", "0", "name")``."""
    head, bracket, rest = path.partition("[")
    return (head, *rest[:-1].split("][")) if bracket else (head,)


def shown(name: str) -> str:
    """Make a caller's text safe to quote in a sentence: ASCII, short, no control characters."""
    short = name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "…"
    return short.encode("ascii", "backslashreplace").decode() if short.isprintable() else ascii(short)[1:-1]


def _place(item: tuple[str, str]) -> tuple[tuple[bool, int, str], ...]:
    return tuple(
        (False, int(part), part) if part.isdecimal() and part.isascii() and len(part) <= MAX_DIGITS else (True, 0, part)
        for part in split(item[0])
    )


def _from_form(text: str) -> dict[str, str]:
    if "%" in text and _BAD_ESCAPE.search(text):
        raise BodyMalformed(
            "The form has a % that is not followed by two hexadecimal digits. Write %25 for a percent sign."
        )
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise BodyMalformed("The form is not valid UTF-8.") from None
    except ValueError:
        raise BodyMalformed(
            f"The form cannot be read. Write it as name=value&name=value, with at most {MAX_FIELDS} fields."
        ) from None
    given: dict[str, str] = {}
    for path, value in pairs:
        check_path(path)
        if path in given:
            raise BodyMalformed(f"{shown(path)} is given twice. Send it once.")
        given[path] = _checked(path, value)
    return given


def _from_json(text: str) -> dict[str, str]:
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_no_fraction,
            parse_constant=_no_constant,
        )
    except json.JSONDecodeError as error:
        raise BodyMalformed(f"The body is not valid JSON: see line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise BodyMalformed("The JSON is nested too deeply.") from None
    if not isinstance(value, dict):
        raise BodyMalformed('The JSON must be an object, such as {"customer": "cus_123"}.')
    given: dict[str, str] = {}
    for name, inner in value.items():
        _flatten(name, inner, 1, given)
    return given


def _flatten(path: str, value: object, depth: int, given: dict[str, str]) -> None:
    if depth > MAX_DEPTH:
        raise BodyMalformed("The JSON is nested too deeply.")
    if isinstance(value, dict):
        for name, inner in value.items():
            _flatten(f"{path}[{name}]", inner, depth + 1, given)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _flatten(f"{path}[{index}]", inner, depth + 1, given)
    elif value is not None:
        if len(given) >= MAX_FIELDS:
            raise BodyMalformed(f"The JSON has too many values: {MAX_FIELDS} at most.")
        check_path(path)
        given[path] = _checked(path, str(value) if not isinstance(value, bool) else "true" if value else "false")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise BodyMalformed(f"{shown(twice)} is given twice. Send it once.")
    for name in result:
        if not name or "[" in name or "]" in name:
            raise BodyMalformed("A name in the JSON is empty or has brackets. Nest objects and lists instead.")
    return result


def _integer(digits: str) -> str:
    if len(digits) > MAX_DIGITS:
        raise BodyMalformed(f"A number in the JSON is too long: {MAX_DIGITS} digits at most.")
    return digits


def _no_fraction(_: str) -> str:
    raise BodyMalformed("Numbers must be whole: amounts in minor units (cents), dates in unix seconds.")


def _no_constant(_: str) -> str:
    raise BodyMalformed("NaN and Infinity are not JSON numbers.")


def check_path(path: str) -> None:
    """Check a parameter's name. Raises :class:`BodyMalformed` for one that no call could hold."""
    if len(path) > MAX_PATH:
        raise BodyMalformed("A parameter's name is too long.")
    if path.isidentifier():
        return
    if not _PATH.fullmatch(path):
        raise BodyMalformed(
            f"{shown(path) or 'An empty name'} is not a parameter's name. Write nesting as metadata[order_id], "
            "and lists with their index, as custom_fields[0][name]."
        )
    _checked("A parameter's name", path)


def _checked(path: str, value: str) -> str:
    if value.isascii() and value.isprintable():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BodyMalformed(f"{shown(path)} contains half a character (a lone surrogate). Send it whole.") from None
    if _CONTROL.search(value):
        raise BodyMalformed(f"{shown(path)} contains a control character. Remove it.")
    return value


def _refuse_conflicts(given: Mapping[str, str]) -> None:
    for path in given if nested(given) else ():
        parent = path
        while "[" in parent:
            parent = parent[: parent.rindex("[")]
            if parent in given:
                raise BodyMalformed(f"{shown(parent)} is given both as a value and as an object. Send one of them.")
