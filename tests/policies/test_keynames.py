"""An idempotency key can name one call: what a tool sends for an empty field, and what real systems make."""

from __future__ import annotations

import base64
import random
import string
import uuid
from typing import TYPE_CHECKING

import pytest

from policies import keynames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PASSING = (
    "V1--x_", "order-NANTES-1", "pi_3NaN9x", "q83v_w==", "nullable-7", "order-1001", "k", "-", "_", "NULL", "Nan",
    "undefined1", "nilpotent", "Nonesuch/7", "a b", "{1}", "$1", "[object]", "<no-value>", "INV.2027.7", "null7-8null",
    "Bestellung № 7, Zürich", "~!@%^&*()",
)  # fmt: skip


@pytest.mark.parametrize("key", PASSING)
def test_key_that_names_one_call_is_taken(key: str) -> None:
    assert keynames.fault(key) is None


@pytest.mark.parametrize("word", keynames.WORDS)
@pytest.mark.parametrize(
    "shape",
    ["{}", "order-{}", "{}-1", "a_{}", "{}_a", "a.{}.b", "urn:order:{}", "a/{}/b", "a#{}", "order {} x", "--{}--"],
)
def test_word_for_nothing_is_refused_as_a_whole_part(word: str, shape: str) -> None:
    said = keynames.fault(shape.format(word))
    assert said is not None
    assert said.startswith(f"contains {word}, so the automation that sent it did not fill in its field.")


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("[object Object]", "[object"),
        ("order-[object Promise]", "[object"),
        ("{{ $json.order_id }}", "{{"),
        ("order-{{id}}", "{{"),
        ("order}}", "}}"),
        ("${order}", "${"),
        ("order-${id}", "${"),
        ("order-<no value>", "<no value>"),
    ],
)
def test_template_that_nobody_filled_in_is_refused_wherever_it_stands(key: str, named: str) -> None:
    said = keynames.fault(key)
    assert said is not None
    assert said.startswith(f"contains {named}, so the automation")


@pytest.mark.parametrize(
    ("key", "where"),
    [
        (" 1001", "start"),
        ("1001 ", "end"),
        ("1001\r\n", "end"),
        ("\t1001", "start"),
        ("\ufeff1001", "start"),
        ("1001\u00a0", "end"),
        ("1001\u200b", "end"),
        (" ", "start"),
        (" order-null", "start"),
    ],
)
def test_white_space_at_an_end_is_refused(key: str, where: str) -> None:
    """The same order with and without it would be two invoices."""
    said = keynames.fault(key)
    assert said == f"has white space, a line break or an invisible character at its {where}. Remove it."


@pytest.mark.parametrize("key", ["a\tb", "a\r\nb", "a\x00b", "a\x7fb", "a\x85b", "a\u2028b"])
def test_control_character_is_refused(key: str) -> None:
    assert keynames.fault(key) == "contains a control character, such as a tab or a line break. Remove it."


def test_writing_that_needs_invisible_characters_within_a_word_is_taken() -> None:
    assert keynames.fault("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645-12") is None


@pytest.mark.parametrize("key", ["order-1", "order--1", "order-V1--x_"])
def test_key_with_something_behind_its_prefix_is_taken(key: str) -> None:
    assert keynames.fault(key, "order-") is None


@pytest.mark.parametrize("key", ["1001", "Order-1", "my-order-1", "orde"])
def test_key_without_its_prefix_is_refused(key: str) -> None:
    assert keynames.fault(key, "order-") == (
        "must start with order-, followed by your own name for this invoice, such as order-1001."
    )


@pytest.mark.parametrize("key", ["order-", "order--", "order-/"])
def test_key_with_nothing_behind_its_prefix_is_refused(key: str) -> None:
    said = keynames.fault(key, "order-")
    assert said is not None
    assert said.startswith("has nothing behind order-, so the automation that sent it did not fill in its field.")


@pytest.mark.parametrize("key", ["INVundefined", "INVnull-7"])
def test_word_for_nothing_begins_behind_the_prefix(key: str) -> None:
    assert (keynames.fault(key, "INV") or "").startswith("contains ")
    assert keynames.fault(key) is None


# ---------------------------------------------------------------- what real systems make

MANY = 100_000
NANOID = "useandom-26T198340PX75pxJACKVERYMINDBUSHWOLF_GQZbfghjklqvwyzrict"
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def nanoid(chance: random.Random) -> str:
    return "".join(chance.choices(NANOID, k=21))


def base64_of_bytes(chance: random.Random) -> str:
    return base64.b64encode(chance.randbytes(chance.randrange(1, 48))).decode()


def base64url_of_bytes(chance: random.Random) -> str:
    text = base64.urlsafe_b64encode(chance.randbytes(chance.randrange(1, 48))).decode()
    return text if chance.random() < 0.5 else text.rstrip("=")


def ulid(chance: random.Random) -> str:
    return "".join(chance.choices(CROCKFORD, k=26))


def uuid4(chance: random.Random) -> str:
    written = uuid.UUID(int=chance.getrandbits(128), version=4)
    return chance.choice([str(written), str(written).upper(), written.hex])


def urn(chance: random.Random) -> str:
    space = "".join(chance.choices(string.ascii_lowercase + string.digits, k=chance.randrange(2, 9)))
    return chance.choice([f"urn:uuid:{uuid4(chance)}", f"urn:{space}:{chance.randrange(10**9)}", f"urn:{space}:a/b#7"])


@pytest.mark.parametrize("make", [nanoid, base64_of_bytes, base64url_of_bytes, ulid, uuid4, urn])
def test_none_of_a_hundred_thousand_ids_is_refused(make: Callable[[random.Random], str]) -> None:
    chance = random.Random(13)
    assert [key for key in (make(chance) for _ in range(MANY)) if keynames.fault(key) is not None] == []


@pytest.mark.parametrize(
    ("length", "separators"),
    [(21, "-_"), (22, "-_"), (43, "-_"), (43, "/")],
    ids=["nanoid", "base64url of 16 bytes", "base64url of 32 bytes", "base64 of 32 bytes"],
)
def test_random_id_has_a_word_for_nothing_in_it_less_than_once_in_a_million(length: int, separators: str) -> None:
    """An id that is made of 64 characters is refused by chance so seldom that no exception for it is worth its harm.

    One that took ``Customer2027-NaN`` for random would let the second of two orders go without an invoice. A new word
    of two letters would raise this to one in fifty thousand.
    """
    assert set(separators) <= set(keynames.SEPARATORS)

    def chances() -> Iterator[float]:
        beside = len(separators) / 64
        for word in keynames.WORDS:
            for start in range(length - len(word) + 1):
                before, after = start > 0, start + len(word) < length
                yield 64 ** -len(word) * beside ** (before + after)

    assert 0 < sum(chances()) < 1e-6


# ---------------------------------------------------------------- quotation marks


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ('"order-1"', "order-1"),
        ('"a b"', "a b"),
        (r'"a\"b"', 'a"b'),
        (r'"a\\b"', r"a\b"),
        (r'"\\\""', r"\""),
        ('""', ""),
        ('" order-1"', " order-1"),
        ('"a,b"', "a,b"),
    ],
)
def test_quoted_key_is_its_content(header: str, key: str) -> None:
    assert keynames.unquoted(header) == key


@pytest.mark.parametrize(
    "header",
    [
        '"',
        '"order-1',
        '"order-1\\"',
        '"order-1";a=1',
        '"order-1" x',
        '"order-1" ',
        '"order-1""',
        '"a","b"',
        r'"a\b"',
        '"a\tb"',
        '"é"',
        '"a"\n',
    ],
)
def test_anything_else_that_begins_with_a_quotation_mark_is_no_key(header: str) -> None:
    assert keynames.unquoted(header) is None
