"""Whether an idempotency key can name one call.

A tool whose field was left empty sends ``order-undefined`` for each of its orders: all of them would be one call, and
all but the first would go without an invoice. White space that nobody sees does the opposite: one order would have two
keys, and two invoices. Both are refused, in whatever way the key is sent.
"""

from __future__ import annotations

import re
from typing import Final

from policies.forms import shown

#: What JavaScript, JSON, Python, Ruby and Go write for nothing, where it is a whole part: "nullable-7" is a name. Of a
#: million random ids of letters, digits, - and _ fewer than one has such a part.
WORDS: Final = ("undefined", "null", "NaN", "None", "nil")
#: What ends a part.
SEPARATORS: Final = "-_.:/# "
#: JavaScript's text of an object; fields of n8n, Make and Jinja, of JavaScript and shells, and of Go, not filled in.
ANYWHERE: Final = ("[object ", "{{", "}}", "${", "<no value>")

#: Stripe's own length; printable ASCII without a comma, since a header sent twice arrives joined by one.
HEADER: Final = re.compile(r"[ -+\--~]{1,255}")
#: RFC 9651, 3.3.3.
_QUOTED: Final = r'"((?:[ !#-\[\]-~]|\\["\\])*)"'
_ESCAPED: Final = r'\\(["\\])'
#: Each begins with a letter that re can skip to; a lookbehind there would cost five times as much.
_PLACEHOLDER: Final = "|".join(
    [rf"{word[0]}(?<![^{SEPARATORS}]{word[0]}){word[1:]}(?![^{SEPARATORS}])" for word in WORDS]
    + [re.escape(text) for text in ANYWHERE]
)
#: C0, DEL and C1, and what Unicode counts as a line break.
_CONTROL: Final = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
_NOT_FILLED_IN: Final = (
    "so the automation that sent it did not fill in its field. Put your own name for this invoice there, such as the "
    "order number, and send the call again."
)


def fault(key: str, prefix: str = "") -> str | None:
    """Say why ``key`` does not name one call, in words that follow the name of where it stands; None if it does.

    ``prefix`` is how the grant wants it to begin; it is empty if that is free. ``key`` is not empty.
    """
    if not key.isprintable() or key[0] == " " or key[-1] == " ":
        for end, character in (("start", key[0]), ("end", key[-1])):
            if character == " " or not character.isprintable():
                return f"has white space, a line break or an invisible character at its {end}. Remove it."
        if re.search(_CONTROL, key):
            return "contains a control character, such as a tab or a line break. Remove it."
    placeholder = re.search(_PLACEHOLDER, key)
    if prefix:
        begins = shown(prefix)
        if not key.startswith(prefix):
            return f"must start with {begins}, followed by your own name for this invoice, such as {begins}1001."
        rest = key[len(prefix) :]
        if not rest.strip(SEPARATORS):
            return f"has nothing behind {begins}, {_NOT_FILLED_IN}"
        placeholder = placeholder or re.search(_PLACEHOLDER, rest)
    return placeholder and f"contains {placeholder[0].rstrip()}, {_NOT_FILLED_IN}"


def unquoted(header: str) -> str | None:
    """Return the content of a header that is a string of RFC 9651, ``"order-1"``, and nothing else; else None."""
    match = re.fullmatch(_QUOTED, header)
    return re.sub(_ESCAPED, r"\1", match[1]) if match else None
