"""A caller's form or JSON -> parameters -> the form that goes upstream.

Form and JSON are read into one flat mapping of bracket path to text, such as ``metadata[order_id]`` -> ``7``, so that
later stages see one notation. The rules of the outgoing form are those of Stripe's own clients: null is left out, lists
are indexed from 0, an empty list or object emits nothing, booleans are ``true`` and ``false``. What emits nothing is
blank where an entry of the same list comes behind it. Stripe reads lists without an index as well
(``expand[]=customer``), and so does this.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_plus, unquote_plus

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
#: The longest that JSON writers make of a double is 24 characters.
MAX_NUMBER: Final = 40

_PATH = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: DEL, and C0 except tab, LF and CR: no invoice needs them, and terminals interpret them.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NUMBER: Final = r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?"
#: How JSON begins, also where a library has sent it as the one name in a form, and no parameter's name does.
_JSON = re.compile(r"\s*(?:\{|%7[Bb]|\[\s*[\[{\]]|\"\s*\{)")
#: How a form begins, and no JSON does.
_FORM: Final = r"\s*[^\s\"'{}&=]+="
#: .NET, PowerShell and SharePoint write it before UTF-8, where it has no meaning.
_BYTE_ORDER_MARK: Final = "\ufeff"
_TOO_MANY: Final = f"The call has too many parameters: {MAX_FIELDS} at most."
_TOO_DEEP: Final = f"A parameter is nested too deeply: {MAX_DEPTH} levels at most."
_TOO_LONG: Final = "A parameter's name is too long."
_LOOKS_LIKE_JSON: Final = "This looks like JSON, but was sent as a form: send Content-Type: application/json."
_LOOKS_LIKE_A_FORM: Final = (
    "This looks like a form, but was sent as JSON: send Content-Type: application/x-www-form-urlencoded."
)


class Truth(str):
    """``true`` or ``false`` as JSON has it, and not as a text."""

    __slots__ = ()


class Fractional(str):
    """The text of a JSON number that is not whole.

    It is kept as it was written. JSON writers spell one number in several ways, so it cannot identify a call.
    """

    __slots__ = ()


class _Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


def parse(body: bytes, media: str) -> dict[str, str]:
    """Read a body (``media`` is ``form`` or ``json``) into bracket paths and their texts, in canonical order.

    Raises :class:`BodyMalformed` for anything that two parsers could read differently.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BodyMalformed("The body is not valid UTF-8. Send it in UTF-8.") from None
    if text.startswith(_BYTE_ORDER_MARK):
        text = text[1:]
    given = _from_form(text) if media == "form" else _from_json(text)
    if not nested(given):  # as most calls are
        return dict(sorted(given.items()))
    _refuse_conflicts(given)
    return canonical(given)


def canonical(parameters: Mapping[str, str]) -> dict[str, str]:
    """Sort parameters for sending and comparing: by name, list entries by index."""
    return dict(sorted(parameters.items(), key=_place if nested(parameters) else None))


def nested(parameters: Iterable[str]) -> bool:
    """Whether any of these paths leads into an object or a list."""
    return "[" in "".join(parameters)


#: The same few names come in every call.
_quoted = lru_cache(1024)(quote_plus)


def encode(parameters: Mapping[str, str]) -> bytes:
    """Write parameters as the form that goes upstream, in UTF-8, percent-encoded."""
    return "&".join([f"{_quoted(path)}={quote_plus(value)}" for path, value in parameters.items()]).encode("ascii")


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
    if _JSON.match(text):
        raise BodyMalformed(_LOOKS_LIKE_JSON)
    if "%" in text and _BAD_ESCAPE.search(text):
        raise BodyMalformed(
            "The form has a % that is not followed by two hexadecimal digits. Write %25 for a percent sign."
        )
    if text.count("&") >= MAX_FIELDS:
        raise BodyMalformed(_TOO_MANY)
    given: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for field in text.split("&"):
        if not field:  # "&&", or "&" at an end
            continue
        written, equals, value = field.partition("=")
        path = _unescaped(written)
        if not equals:
            raise BodyMalformed(f"{_named(path)} has no = in the form. Write the form as name=value&name=value.")
        if path.endswith("[]"):
            path = path[:-2]
            check_path(path)
            lists.setdefault(path, []).append(_checked(path, _unescaped(value)))
            continue
        check_path(path)
        if path in given:
            name = shown(path)
            raise BodyMalformed(f"{name} is given twice. Send it once; entries of a list are written {name}[].")
        given[path] = _checked(path, _unescaped(value))
    return _numbered(given, lists) if lists else given


def _numbered(given: dict[str, str], lists: Mapping[str, list[str]]) -> dict[str, str]:
    """Give the entries that were sent as ``name[]`` their indexes. Blank ones, as web forms send them, are left out."""
    for name in lists:
        if any(path.startswith(f"{name}[") for path in given):
            raise BodyMalformed(
                f"{shown(name)} is written both as {shown(name)}[] and with something else in the brackets. "
                "Write it one way."
            )
    for name, values in lists.items():
        given.update({f"{name}[{index}]": value for index, value in enumerate(filter(None, values))})
    return given


def _unescaped(text: str) -> str:
    if "%" not in text and "+" not in text:
        return text
    try:
        return unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        raise BodyMalformed("The form is not valid UTF-8. Send it in UTF-8, percent-encoded.") from None


def _from_json(text: str) -> dict[str, str]:
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_Number, parse_float=_Number, parse_constant=_no_constant
        )
    except json.JSONDecodeError as error:
        raise BodyMalformed(_not_json(text, error)) from None
    except RecursionError:
        raise BodyMalformed(_TOO_DEEP) from None
    if not isinstance(value, dict):
        again = (
            "the JSON as it is, not as a text in quotes"
            if isinstance(value, str) and _JSON.match(value)
            else "a JSON object"
        )
        raise BodyMalformed(f'Send {again}, such as {{"customer": "cus_123"}}.')
    given: dict[str, str] = {}
    for name, inner in value.items():
        _flatten(name, inner, 1, given)
    return given


def _not_json(text: str, error: json.JSONDecodeError) -> str:
    if not text.strip():
        return 'The body is empty. Send a JSON object, such as {"customer": "cus_123"}.'
    if re.match(_FORM, text):
        return _LOOKS_LIKE_A_FORM
    return f"The body is not valid JSON: see line {error.lineno}, column {error.colno}."


def _flatten(path: str, value: object, depth: int, given: dict[str, str]) -> None:
    if depth > MAX_DEPTH:
        raise BodyMalformed(_TOO_DEEP)
    if len(path) > MAX_PATH:  # before it is written in front of every name below it
        raise BodyMalformed(_TOO_LONG)
    if isinstance(value, dict):
        for name, inner in value.items():
            _flatten(f"{path}[{name}]", inner, depth + 1, given)
    elif isinstance(value, list):
        blank = 0
        for index, inner in enumerate(value):
            before = len(given)
            _flatten(f"{path}[{index}]", inner, depth + 1, given)
            if len(given) > before:  # it keeps its number, so what emitted nothing before it is told
                for empty in range(blank, index):
                    _put(f"{path}[{empty}]", "", given)
                blank = index + 1
    elif value is not None:
        _put(path, value, given)


def _put(path: str, value: object, given: dict[str, str]) -> None:
    if len(given) >= MAX_FIELDS:
        raise BodyMalformed(_TOO_MANY)
    check_path(path)
    given[path] = _scalar(path, value)


def _scalar(path: str, value: object) -> str:
    if isinstance(value, _Number):
        return _number(path, value)
    if isinstance(value, bool):
        return Truth("true" if value else "false")
    return _checked(path, str(value))


def _number(path: str, text: str) -> str:
    """Return a number without a fraction as its digits (``30.0`` and ``3e1`` are ``30``), any other as it is."""
    match = re.fullmatch(_NUMBER, text) if len(text) <= MAX_NUMBER else None
    if match is None:
        raise BodyMalformed(f"{shown(path)} is too long a number: {MAX_DIGITS} digits at most.")
    sign, whole, fraction, exponent = match.groups("")
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return "0"
    bare = digits.rstrip("0")
    zeros = len(digits) - len(bare) - len(fraction) + int(exponent or 0)
    if zeros < 0:
        return Fractional(text)
    if len(bare) + zeros > MAX_DIGITS:
        raise BodyMalformed(f"{shown(path)} is too long a number: {MAX_DIGITS} digits at most.")
    return sign + bare + "0" * zeros


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise BodyMalformed(f"{shown(twice)} is given twice. Send it once.")
    for name in result:
        if not name or "[" in name or "]" in name:
            raise BodyMalformed(
                f"{_named(name)} cannot be a name in JSON. Nest objects and lists instead of writing brackets, "
                'as {"metadata": {"order_id": "7"}, "expand": ["customer"]}.'
            )
    return result


def _no_constant(_: str) -> str:
    raise BodyMalformed("NaN and Infinity are not JSON numbers.")


def check_path(path: str) -> None:
    """Check a parameter's name. Raises :class:`BodyMalformed` for one that no call could hold."""
    if len(path) > MAX_PATH:
        raise BodyMalformed(_TOO_LONG)
    if path.isidentifier():
        return
    if path.count("[") >= MAX_DEPTH:
        raise BodyMalformed(_TOO_DEEP)
    if "[]" in path:
        raise BodyMalformed(
            f"{shown(path)} has an entry without its index. Write the index, as custom_fields[0][name]; only a list of "
            "plain values, such as expand[], may go without."
        )
    if not _PATH.fullmatch(path):
        raise BodyMalformed(
            f"{_named(path)} is not a parameter's name. Write nesting as metadata[order_id], and lists with their "
            "index, as custom_fields[0][name]."
        )
    _checked("A parameter's name", path)


def _named(name: str) -> str:
    return shown(name) or "An empty name"


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
    for path in given:
        parent = path
        while "[" in parent:
            parent = parent[: parent.rindex("[")]
            if parent in given:
                raise BodyMalformed(f"{shown(parent)} is given both as a value and as an object. Send one of them.")
