"""One reading for form and JSON alike, and a no for whatever two readers could take to mean different things."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import forms
from policies.operations.invoices_create import PARAMETERS
from policies.refusals import BodyMalformed


def of_form(text: str) -> dict[str, str]:
    return forms.parse(text.encode(), "form")


def of_json(value: object) -> dict[str, str]:
    return forms.parse(json.dumps(value).encode(), "json")


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("", {}),
        ("customer=cus_1", {"customer": "cus_1"}),
        ("metadata[order_id]=7", {"metadata": {"order_id": 7}}),
        ("metadata%5Border_id%5D=7", {"metadata": {"order_id": "7"}}),
        ("custom_fields[0][name]=a&custom_fields[0][value]=b", {"custom_fields": [{"value": "b", "name": "a"}]}),
        ("auto_advance=true&automatic_tax[enabled]=false", {"auto_advance": True, "automatic_tax": {"enabled": False}}),
        ("description=a+b%2Bc%26%25", {"description": "a b+c&%"}),
        ("description=Z%C3%BCrich+%F0%9F%A7%BE", {"description": "Zürich 🧾"}),
        ("description=a%0Ab%09c%0D", {"description": "a\nb\tc\r"}),
        ("footer=", {"footer": ""}),
        ("due_date=-12", {"due_date": -12}),
        ("expand[]=a&expand[]=b", {"expand": ["a", "b"]}),
        ("account_tax_ids%5B%5D=txi_1", {"account_tax_ids": ["txi_1"]}),
        ("a[b][]=1&customer=x&a[b][]=2", {"a": {"b": [1, 2]}, "customer": "x"}),
        ("expand[]=&expand[]=a&expand[]=", {"expand": ["a"]}),
        ("&&customer=cus_1&&footer=a&", {"customer": "cus_1", "footer": "a"}),
        ("&", {}),
    ],
)
def test_form_and_json_read_alike(form: str, value: object) -> None:
    assert of_form(form) == of_json(value)


def test_json_null_is_left_out_and_the_empty_string_is_kept() -> None:
    assert of_json({"footer": None, "description": "", "metadata": {"a": None, "b": ""}}) == {
        "description": "",
        "metadata[b]": "",
    }


@pytest.mark.parametrize("empty", [[], {}, [[]], [{}], {"a": []}])
def test_empty_list_or_object_emits_nothing(empty: object) -> None:
    assert of_json({"customer": "cus_1", "discounts": empty}) == {"customer": "cus_1"}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("0.0", "0"),
        ("-0.0e9", "0"),
        ("0e999", "0"),
        ("30.0", "30"),
        ("30.000", "30"),
        ("-30.0", "-30"),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("1.5e1", "15"),
        ("1.50e1", "15"),
        ("150e-1", "15"),
        ("1200e-2", "12"),
        ("1001.0", "1001"),
        ("1e19", "1" + "0" * 19),
        ("1.5", "1.5"),
        ("1.50", "1.50"),
        ("-0.5", "-0.5"),
        ("5e-1", "5e-1"),
        ("1e-999", "1e-999"),
        ("2.2250738585072014e-308", "2.2250738585072014e-308"),
    ],
)
def test_number_without_a_fraction_is_its_whole_number_and_any_other_is_as_written(written: str, read: str) -> None:
    found = forms.parse(b'{"a": %b}' % written.encode(), "json")
    assert found == {"a": read}
    assert isinstance(found["a"], forms.Fractional) is (read == written and not read.isdecimal())


@given(st.integers(-(10**19), 10**19), st.integers(0, 3), st.integers(-3, 3))
def test_every_way_to_write_a_whole_number_is_read_alike(number: int, zeros: int, shift: int) -> None:
    scaled = Decimal(number).scaleb(-shift)
    written = f"{scaled:f}" + (f".{'0' * zeros}" if zeros and "." not in f"{scaled:f}" else "") + f"e{shift}"
    assert Decimal(written) == number
    assert forms.parse(f'{{"a": {written}}}'.encode(), "json") == {"a": str(number)}


@pytest.mark.parametrize("empty", [None, {}, [], {"a": None}, {"a": {"b": []}}, [None], [[], {}]])
def test_empty_entry_before_another_is_blank_at_its_place_and_behind_all_others_nothing(empty: object) -> None:
    """Closing the gap here would move an entry to another index than the caller wrote."""
    read = of_json({"m": [empty, "x", empty, "y", empty, empty]})
    assert read == {"m[0]": "", "m[1]": "x", "m[2]": "", "m[3]": "y"} | (
        {"m[4]": "", "m[5]": ""} if empty == "" else {}
    )
    assert of_json({"m": [[empty, "x"], "y"]}) == {"m[0][0]": "", "m[0][1]": "x", "m[1]": "y"}


def test_booleans_are_written_small_and_numbers_as_they_came() -> None:
    assert of_json({"a": True, "b": False, "c": 99999999999999999999}) == {
        "a": "true",
        "b": "false",
        "c": "99999999999999999999",
    }


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"customer=A&customer=B", id="twice"),
        pytest.param(b"customer=A&customer=A", id="twice alike"),
        pytest.param(b"customer=A&%63ustomer=B", id="twice, once escaped"),
        pytest.param(b"metadata[a]=1&metadata%5Ba%5D=2", id="nested twice"),
        pytest.param(b"expand[]=A&expand[0]=B", id="list with and without index"),
        pytest.param(b"expand[1]=A&expand[]=B", id="list with and without index, in the other order"),
        pytest.param(b"expand[]=&expand[0]=B", id="list with and without index, the latter blank"),
        pytest.param(b"metadata[]=A&metadata[a]=B", id="list and object"),
        pytest.param(b"expand[]=A&expand=B", id="list and scalar"),
        pytest.param(b"custom_fields[][name]=A", id="object in a list without index"),
        pytest.param(b"expand[][]=A", id="list in a list without index"),
        pytest.param(b"[]=A", id="list without a name"),
        pytest.param(b"customer[=A", id="open bracket"),
        pytest.param(b"customer]=A", id="closing bracket"),
        pytest.param(b"metadata[a]b=A", id="text after bracket"),
        pytest.param(b"metadata[a[b]]=A", id="brackets in brackets"),
        pytest.param(b"[a]=A", id="bracket first"),
        pytest.param(b"=A", id="empty name"),
        pytest.param(b"customer", id="no value"),
        pytest.param(b"customer=%", id="bare percent"),
        pytest.param(b"customer=%4", id="half an escape"),
        pytest.param(b"customer=%zz", id="no escape"),
        pytest.param(b"%g1=A", id="no escape in a name"),
        pytest.param(b"customer=\xff", id="raw invalid UTF-8"),
        pytest.param(b"customer=%FF", id="escaped invalid UTF-8"),
        pytest.param(b"%FF=A", id="escaped invalid UTF-8 in a name"),
        pytest.param(b"customer=%C0%AF", id="overlong UTF-8"),
        pytest.param(b"customer=%ED%A0%80", id="escaped lone surrogate"),
        pytest.param(b"customer=\xed\xa0\x80", id="raw lone surrogate"),
        pytest.param(b"metadata=A&metadata[a]=B", id="scalar and object"),
        pytest.param(b"a[b][c]=A&a[b]=B", id="object and scalar"),
        pytest.param(b"a[b][c]=A&a=B", id="object and scalar far above"),
        pytest.param(b"customer=%00", id="NUL"),
        pytest.param(b"customer=\x00", id="raw NUL"),
        pytest.param(b"customer=%1B[31m", id="escape character"),
        pytest.param(b"customer=%7F", id="DEL"),
        pytest.param(b"metadata[%00]=A", id="NUL in a name"),
        pytest.param(b"%08=A", id="control character in a plain name"),
        pytest.param(b"&".join(b"a%d=1" % i for i in range(forms.MAX_FIELDS + 1)), id="too many fields"),
        pytest.param(b"a" * (forms.MAX_PATH + 1) + b"=1", id="too long a name"),
        pytest.param(b"a" + b"[a]" * 100 + b"=1", id="too long a nested name"),
    ],
)
def test_form_that_could_mean_two_things_is_refused(body: bytes) -> None:
    with pytest.raises(BodyMalformed):
        forms.parse(body, "form")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"customer=A", id="a form"),
        pytest.param(b'{"a": 1', id="cut off"),
        pytest.param(b'{"a": 1} {}', id="text after"),
        pytest.param(b"{'a': 1}", id="single quotes"),
        pytest.param(b'{"a": 01}', id="leading zero"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"a=1"', id="a text"),
        pytest.param(b"1", id="a number"),
        pytest.param(b'{"a": 1, "a": 2}', id="twice"),
        pytest.param(b'{"a": 1, "\\u0061": 1}', id="twice, once escaped"),
        pytest.param(b'{"a": null, "a": 1}', id="twice, once null"),
        pytest.param(b'{"m": {"a": 1, "a": 2}}', id="nested twice"),
        pytest.param(b'{"metadata[a]": 1}', id="brackets in a key"),
        pytest.param(b'{"m": {"[": 1}}', id="bracket in an inner key"),
        pytest.param(b'{"m": {"]": null}}', id="bracket in the key of null"),
        pytest.param(b'{"": 1}', id="empty name"),
        pytest.param(b'{"m": {"": 1}}', id="empty inner name"),
        pytest.param(b'{"a": NaN}', id="NaN"),
        pytest.param(b'{"a": Infinity}', id="Infinity"),
        pytest.param(b'{"a": -Infinity}', id="minus Infinity"),
        pytest.param(b'{"a": 1e999}', id="1e999"),
        pytest.param(b'{"a": 1e20}', id="21 digits by an exponent"),
        pytest.param(b'{"a": 1.' + b"0" * 5000 + b"}", id="5,000 digits behind the point"),
        pytest.param(b'{"a": 1e' + b"9" * 5000 + b"}", id="an exponent of 5,000 digits"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", id="5,000 digits"),
        pytest.param(b'{"a": ' + b"9" * 21 + b"}", id="21 digits"),
        pytest.param(b'{"a": ' + b"[" * 100_000, id="100,000 brackets"),
        pytest.param(b'{"a":' * 100_000, id="100,000 braces"),
        pytest.param(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="100,000 brackets, closed"),
        pytest.param(b'{"a":' * 9 + b"1" + b"}" * 9, id="9 deep"),
        pytest.param(b'{"a": "\\ud800"}', id="lone surrogate"),
        pytest.param(b'{"a": "\\udc00\\ud800"}', id="surrogates the wrong way round"),
        pytest.param(b'{"m": {"\\ud800": 1}}', id="lone surrogate in a name"),
        pytest.param(b'{"a": "\xff"}', id="invalid UTF-8"),
        pytest.param(b'{"a": "\xed\xa0\x80"}', id="raw lone surrogate"),
        pytest.param('{"a": 1}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}', id="two byte order marks"),
        pytest.param(b'{"expand[]": ["a"]}', id="brackets without index in a key"),
        pytest.param(b'{"a": "\\u0000"}', id="NUL"),
        pytest.param(b'{"a": "\x00"}', id="raw NUL"),
        pytest.param(b'{"a": "\\u001b[31m"}', id="escape character"),
        pytest.param(b'{"a": "\\u007f"}', id="DEL"),
        pytest.param(b'{"m": {"\\u0000": 1}}', id="NUL in a name"),
        pytest.param(b'{"a": [' + b"1," * forms.MAX_FIELDS + b"1]}", id="too many values"),
        pytest.param(b'{"' + b"a" * (forms.MAX_PATH + 1) + b'": 1}', id="too long a name"),
        # Whatever is below it: it would be written once more for each entry.
        pytest.param(b'{"' + b"a" * (forms.MAX_PATH + 1) + b'": [null, null]}', id="too long a name of nothing"),
        pytest.param(b'{"a": [' + b"null," * forms.MAX_FIELDS + b'"x"]}', id="too many empty entries"),
        pytest.param(b'{"a b": 1, "[": [null, 1]}', id="bracket in the name of a list with an empty entry"),
        pytest.param(b'{"m": {"' + b"a" * forms.MAX_PATH + b'": [{}]}}', id="too long a name of nothing, nested"),
    ],
)
def test_json_that_could_mean_two_things_is_refused(body: bytes) -> None:
    with pytest.raises(BodyMalformed):
        forms.parse(body, "json")


@pytest.mark.parametrize(
    ("media", "body"),
    [
        ("form", b"&".join(b"a%d=1" % i for i in range(forms.MAX_FIELDS))),
        ("json", b'{"a": [' + b"1," * (forms.MAX_FIELDS - 1) + b"1]}"),
        ("form", b"a" * forms.MAX_PATH + b"=1"),
        ("json", b'{"' + b"a" * forms.MAX_PATH + b'": 1}'),
        ("json", b'{"a":' * 8 + b"1" + b"}" * 8),
        ("json", b'{"a": ' + b"9" * 20 + b"}"),
    ],
)
def test_bounds_admit_what_lies_on_them(media: str, body: bytes) -> None:
    assert forms.parse(body, media)


@pytest.mark.parametrize(("media", "body"), [("form", b"a=1"), ("json", b'{"a": 1}')])
def test_byte_order_mark_before_a_body_has_no_meaning(media: str, body: bytes) -> None:
    assert forms.parse(b"\xef\xbb\xbf" + body, media) == {"a": "1"}


@pytest.mark.parametrize(
    ("media", "body", "said"),
    [
        ("form", '{"customer": "cus_1"}', "This looks like JSON, but was sent as a form: send Content-Type: applicat"),
        ("form", ' \n{"a": "100%"}', "This looks like JSON"),
        ("form", '{"a": "x=1&y=2"}', "This looks like JSON"),
        ("form", '[{"customer": "cus_1"}]', "This looks like JSON"),
        ("form", '"{\\"customer\\": 1}"', "This looks like JSON"),
        ("form", "%7B%22customer%22%3A%22cus_1%22%7D=", "This looks like JSON"),
        ("form", "\ufeff{}", "This looks like JSON"),
        (
            "json",
            "customer=cus_1",
            "This looks like a form, but was sent as JSON: send Content-Type: application/x-www",
        ),
        ("json", "metadata[a]=1&customer=cus_1", "This looks like a form"),
        ("json", "customer%5B%5D=", "This looks like a form"),
        ("json", "", "The body is empty. Send a JSON object, such as "),
        ("json", " \r\n", "The body is empty."),
        ("json", "{'customer': 'a=b'}", "The body is not valid JSON: see line 1, column 2."),
        ("json", '{"a": "x=1",}', "The body is not valid JSON"),
        ("json", '"{\\"customer\\": 1}"', "Send the JSON as it is, not as a text in quotes"),
        ("json", '[{"customer": "cus_1"}]', "Send a JSON object, such as "),
        ("json", '{"metadata[a]": 1}', "metadata[a] cannot be a name in JSON. Nest objects and lists"),
        ("json", '{"a": {"b": 123456789012345678901}}', "a[b] is too long a number: 20 digits at most."),
        ("form", "customer", "customer has no = in the form. Write the form as name=value&name=value."),
        ("form", "customer=a&x y", "x y has no = in the form."),
        ("form", "custom_fields[][name]=a", "custom_fields[][name] has an entry without its index. Write the index"),
        ("form", "expand[]=a&expand[0]=b", "expand is written both as expand[] and with something else in the bracke"),
        ("form", "[a]=1", "[a] is not a parameter's name. Write nesting as metadata[order_id]"),
        ("form", "expand=a&expand=b", "expand is given twice. Send it once; entries of a list are written expand[]."),
        ("form", "=1", "An empty name is not a parameter's name."),
    ],
)
def test_body_that_cannot_be_read_is_told_what_to_change(media: str, body: str, said: str) -> None:
    with pytest.raises(BodyMalformed) as refusal:
        forms.parse(body.encode(), media)
    assert refusal.value.detail.startswith(said)


def test_key_given_twice_is_found_without_comparing_every_key_with_every_other() -> None:
    """In the largest body, that took ten seconds."""
    comparisons = 0

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal comparisons
            comparisons += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [*map(str, range(1000)), "z", "z"]
    with pytest.raises(BodyMalformed) as refusal:
        forms._object([(Name(name), 1) for name in names])
    assert refusal.value.detail == "z is given twice. Send it once."
    assert comparisons < 10 * len(names)


LONG_NAME = "é" * 50 + "\u202e<script>\n" + "x" * 200


@pytest.mark.parametrize(
    ("media", "body"),
    [
        ("form", quote(LONG_NAME) + "=1&" + quote(LONG_NAME) + "=1"),
        ("form", quote(LONG_NAME) + "[][x]=1"),
        ("form", quote(LONG_NAME) + "[]=1&" + quote(LONG_NAME) + "[0]=1"),
        ("form", quote(LONG_NAME)),
        ("json", json.dumps({LONG_NAME: {"[": 1}})),
        ("form", quote("\u202e" + "é" * 99) + "=%00"),
        ("json", json.dumps({LONG_NAME: 1})[:-1] + "," + json.dumps({LONG_NAME: 1})[1:]),
        ("json", json.dumps({"\u202e" + "é" * 99: "\ud800"})),
    ],
)
def test_refusal_repeats_a_hostile_name_only_as_short_harmless_ascii(media: str, body: str) -> None:
    with pytest.raises(BodyMalformed) as refusal:
        forms.parse(body.encode(), media)
    detail = refusal.value.detail
    assert detail.isascii()
    assert detail.isprintable()
    assert len(detail) < 1600


@pytest.mark.parametrize("order", [1, -1])
def test_order_is_by_name_and_list_entries_by_index(order: int) -> None:
    paths = ["b", "a[10]", "a[9]", "a[x]", "aa", "a[9][c]"][::order]
    assert list(forms.canonical(dict.fromkeys(paths, ""))) == ["a[9]", "a[9][c]", "a[10]", "a[x]", "aa", "b"]


# ---------------------------------------------------------------- properties

#: Text that an invoice may hold: no control characters but tab, LF and CR, and no half characters.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters="\t\n\r"), max_size=30)
KEY = st.text(st.sampled_from("0123456789abé _-.[]&=%+"), min_size=1, max_size=8).map(
    lambda name: name.replace("[", "(").replace("]", ")")
)
INDEX = st.integers(0, 12).map(str)
LEAVES = [parameter.path for parameter in PARAMETERS]


@st.composite
def paths(draw: st.DrawFn) -> str:
    path = draw(st.sampled_from(LEAVES))
    while "{" in path:
        path = path.replace("{i}", draw(INDEX), 1) if "{i}" in path else path.replace("{key}", draw(KEY), 1)
    return path


def conflicting(names: list[str]) -> bool:
    return any(other.startswith(name + "[") for name in names for other in names)


PARAMETER_SETS = st.dictionaries(paths(), TEXT, max_size=12).filter(lambda asked: not conflicting(list(asked)))


def nested(parameters: dict[str, str]) -> dict[str, Any]:
    """Write bracket paths as the objects of JSON; a list as an object of its indexes, which flattens alike."""
    top: dict[str, Any] = {}
    for path, value in parameters.items():
        *parents, leaf = forms.split(path)
        node = top
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return top


@settings(max_examples=150)
@given(PARAMETER_SETS)
def test_what_is_encoded_is_read_back_the_same_from_form_and_json(asked: dict[str, str]) -> None:
    assert forms.parse(forms.encode(asked), "form") == asked
    assert of_json(nested(asked)) == asked
    assert dict(parse_qsl(forms.encode(asked).decode(), keep_blank_values=True, strict_parsing=bool(asked))) == asked


@settings(max_examples=150)
@given(st.data(), PARAMETER_SETS)
def test_canonical_form_does_not_depend_on_the_order_of_the_input(data: st.DataObject, asked: dict[str, str]) -> None:
    shuffled = dict(data.draw(st.permutations(list(asked.items()))))
    assert list(forms.canonical(shuffled).items()) == list(forms.canonical(asked).items())


def test_metadata_keys_that_are_the_same_number_keep_one_order() -> None:
    one, other = {"metadata[1]": "a", "metadata[01]": "b"}, {"metadata[01]": "b", "metadata[1]": "a"}
    assert forms.encode(forms.canonical(one)) == forms.encode(forms.canonical(other))


@settings(max_examples=200)
@given(st.sampled_from(["form", "json"]), st.binary(max_size=60) | TEXT.map(str.encode))
def test_any_bytes_are_read_or_refused(media: str, body: bytes) -> None:
    try:
        read = forms.parse(body, media)
    except BodyMalformed:
        return
    assert forms.parse(forms.encode(read), "form") == read
