"""What may come out: only what is granted, where it is granted, in the shape the catalogue gives it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import fields
from policies.fields import decoded, own, read, tree_of, trim
from policies.model import Shape
from policies.operations import OPERATIONS
from policies.operations.invoices_create import FIELDS
from sandbox.__main__ import ROOT
from sandbox.invoice import EXAMPLE
from tests.policies.conftest import entitlement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import msgspec

    from policies.model import Entitlement, Operation


def trimmed(answer: object, *paths: str) -> dict[str, object]:
    return trim(answer, tree_of(paths, FIELDS))


def test_only_what_is_granted_comes_out_in_the_order_of_the_grant() -> None:
    answer = trimmed(dict(EXAMPLE), "status", "id", "lines.data.amount", "currency")
    assert json.dumps(answer) == json.dumps(
        {"status": "draft", "id": EXAMPLE["id"], "lines": {"data": [{"amount": 2000}]}, "currency": "usd"}
    )


def test_fields_of_one_object_come_out_together() -> None:
    answer = trimmed(dict(EXAMPLE), "lines.data.id", "id", "lines.has_more", "lines.data.amount")
    assert answer == {
        "lines": {"data": [{"id": EXAMPLE["lines"]["data"][0]["id"], "amount": 2000}], "has_more": False},
        "id": EXAMPLE["id"],
    }


@pytest.mark.parametrize(
    ("answer", "path", "comes_out"),
    [
        pytest.param({}, "number", {"number": None}, id="absent"),
        pytest.param({"number": None}, "number", {"number": None}, id="null"),
        pytest.param({"customer": {"id": "cus_1", "email": "a@b"}}, "customer", {"customer": None}, id="expanded"),
        pytest.param({"customer": ["cus_1"]}, "customer", {"customer": None}, id="list for a scalar"),
        pytest.param({"paid": False}, "paid", {"paid": False}, id="false is no absence"),
        pytest.param({"amount_due": 0}, "amount_due", {"amount_due": 0}, id="nor is 0"),
        pytest.param({"footer": ""}, "footer", {"footer": ""}, id="nor is the empty text"),
        pytest.param({}, "lines.data.amount", {"lines": None}, id="absent object"),
        pytest.param({"lines": None}, "lines.data.amount", {"lines": None}, id="null for an object"),
        pytest.param({"lines": "secret"}, "lines.data.amount", {"lines": None}, id="text for an object"),
        pytest.param({"lines": {"data": []}}, "lines.data.amount", {"lines": {"data": []}}, id="empty list"),
        pytest.param({"lines": {}}, "lines.data.amount", {"lines": {"data": None}}, id="object without the list"),
        pytest.param(
            {"lines": {"data": ["x", 1, None, ["y"], {"amount": 5, "z": 6}]}},
            "lines.data.amount",
            {"lines": {"data": [*[{"amount": None}] * 4, {"amount": 5}]}},
            id="what is no object in a list",
        ),
        pytest.param({"discounts": ["di_1"]}, "discounts", {"discounts": ["di_1"]}, id="list of scalars"),
        pytest.param({"discounts": [{"id": "di_1"}]}, "discounts", {"discounts": None}, id="expanded list"),
        pytest.param({"discounts": [["di_1"]]}, "discounts", {"discounts": None}, id="list of lists"),
        pytest.param({"discounts": "di_1"}, "discounts", {"discounts": None}, id="scalar for a list"),
        pytest.param({"metadata": {"a": "b"}}, "metadata", {"metadata": {"a": "b"}}, id="object of scalars"),
        pytest.param({"metadata": {"a": {"b": "c"}}}, "metadata", {"metadata": None}, id="object in an object"),
        pytest.param({"metadata": ["a"]}, "metadata", {"metadata": None}, id="list for an object"),
        pytest.param({"discounts": ["d"] * 251}, "discounts", {"discounts": None}, id="list beyond any page"),
        pytest.param({"lines": {"data": [{}] * 251}}, "lines.data.id", {"lines": {"data": None}}, id="so of objects"),
        pytest.param(
            {"metadata": {str(number): "a" for number in range(251)}}, "metadata", {"metadata": None}, id="so an object"
        ),
        *(
            pytest.param(answer, "id", {"id": None}, id=f"{answer!r} for an answer")
            for answer in (None, [], [{"id": "in_1"}], "id", 1)
        ),
        pytest.param({"total": float("inf")}, "total", {"total": None}, id="a number that JSON does not have"),
        pytest.param({"discounts": [float("-inf")]}, "discounts", {"discounts": None}, id="one in a list"),
        pytest.param({"metadata": {"a": float("nan")}}, "metadata", {"metadata": None}, id="one in an object"),
    ],
)
def test_what_is_not_of_its_shape_is_null(answer: object, path: str, comes_out: dict[str, object]) -> None:
    assert trimmed(answer, path) == comes_out


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["id", "lines", "data", "amount", "metadata", "customer", "discounts", "period", "x"]),
        inner,
        max_size=6,
    ),
    max_leaves=30,
)  # fmt: skip
GRANTED = ["id", "customer", "lines.data.amount", "lines.data.period.end", "discounts", "metadata", "lines.has_more"]


def leaves(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield every scalar with the names that lead to it; a list has none of its own."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*place, name))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, place)
    else:
        yield place, value


def tagged(value: Any, count: Iterator[int]) -> Any:
    """Make every scalar a text that no other place has."""
    if isinstance(value, dict):
        return {name: tagged(inner, count) for name, inner in value.items()}
    return [tagged(inner, count) for inner in value] if isinstance(value, list) else f"leaf {next(count)}"


def allowed(place: tuple[str, ...], granted: Iterable[str]) -> bool:
    return any(
        ".".join(place) == path or (FIELDS[path] is Shape.MAP and len(place) == 2 and place[0] == path)
        for path in granted
    )


@settings(max_examples=300)
@given(answer=JSON, granted=st.lists(st.sampled_from(GRANTED), unique=True))
def test_nothing_comes_out_but_what_stands_at_a_granted_place(answer: object, granted: list[str]) -> None:
    marked = tagged(answer, iter(range(10_000)))
    comes_in = dict((value, place) for place, value in leaves(marked))  # noqa: C402  # the value is the key
    answer_out = trimmed(marked, *granted)
    assert list(answer_out) == list(dict.fromkeys(path.split(".")[0] for path in granted))
    for place, value in leaves(answer_out):
        if value is not None:
            assert comes_in[value] == place
            assert allowed(place, granted)


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "amount", "x"]), inner),
    max_leaves=6,
)
SCALARS = ANY.filter(lambda value: not isinstance(value, list | dict))
#: Answers that are mostly as the catalogue has them.
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "object": SCALARS,
        "id": SCALARS | ANY,
        "customer": SCALARS | ANY,
        "amount_due": SCALARS,
        "discounts": st.lists(SCALARS, max_size=3) | ANY,
        "metadata": st.dictionaries(st.text("ab", max_size=2), SCALARS, max_size=3) | ANY,
        "lines": st.fixed_dictionaries(
            {"has_more": SCALARS}, optional={"data": st.lists(st.fixed_dictionaries({"amount": SCALARS})) | ANY}
        )
        | ANY,
        "total": ANY,
    },
)


@pytest.fixture(params=[8_192, 0], ids=["with a decoder of its own", "with the shared one"], scope="module")
def _room(request: pytest.FixtureRequest) -> Iterator[None]:
    """Read with room for a decoder of each list, and with none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "_READERS", fields._Readers(request.param))
        yield


@pytest.mark.usefixtures("_room")
@settings(max_examples=500)
@given(answer=ANSWERS, granted=st.lists(st.sampled_from(GRANTED), unique=True, min_size=1))
def test_answer_of_which_only_what_is_granted_is_built_is_the_whole_one_trimmed(
    answer: dict[str, object], granted: list[str]
) -> None:
    grant = entitlement(response=", ".join(granted))
    members, out = read(json.dumps(answer).encode(), grant)
    assert repr(out) == repr(trim(answer, grant.response))
    assert repr([members.get(name) for name in own("invoices.create")]) == repr(
        [answer.get(name) for name in own("invoices.create")]
    )


@pytest.mark.usefixtures("_room")
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.id)
def test_every_field_of_a_real_invoice_is_read_as_it_is_trimmed(operation: Operation) -> None:
    grant = entitlement(response=", ".join(operation.fields.keys() & FIELDS.keys()))
    _, out = read(json.dumps(dict(EXAMPLE)).encode(), grant)
    assert repr(out) == repr(trim(dict(EXAMPLE), grant.response))


@pytest.mark.usefixtures("_room")
@pytest.mark.parametrize(
    "body",
    [
        b'{"id": "a", "id": "b", "customer": 1, "customer": {"x": 1}}',
        b'{"i\\u0064": "a", "\\u0063ustomer": "c"}',
        b'{"id": 1e999, "customer": -1e999}',
        b'{"id": "\\ud83d", "customer": "a"}',
        b'{"id": 1.0, "customer": 1E2, "lines": [{"data": {"amount": -0.0}}]}',
        b'{"id": "\xff"}',
        b'{"id": NaN}',
        b'{"lines": {"data": [[{"amount": 1}], {"amount": [1]}]}}',
        b' {"id": true} ',
        b"[]",
        b"",
    ],
)
def test_bytes_that_no_encoder_of_ours_writes_are_read_as_they_are_trimmed(body: bytes) -> None:
    grant = entitlement(response="id, customer, lines.data.amount")
    members, out = read(body, grant)
    assert repr(out) == repr(trim(decoded(body), grant.response))
    whole = decoded(body)
    assert members.get("id") == (whole.get("id") if isinstance(whole, dict) else None)


@pytest.mark.usefixtures("_room")
@settings(max_examples=300)
@given(
    left_out=st.sets(st.sampled_from(sorted(EXAMPLE))),
    other=st.dictionaries(st.sampled_from(sorted(EXAMPLE)), ANY, max_size=2),
    granted=st.lists(st.sampled_from(sorted(FIELDS)), unique=True, min_size=1, max_size=12),
)
def test_any_list_of_any_invoice_is_read_as_the_whole_one_is_trimmed(
    left_out: set[str], other: dict[str, object], granted: list[str]
) -> None:
    answer = {**{name: value for name, value in EXAMPLE.items() if name not in left_out}, **other}
    grant = entitlement(response=", ".join(granted))
    members, out = read(json.dumps(answer).encode(), grant)
    assert repr(out) == repr(trim(answer, grant.response))
    assert repr([members.get(name) for name in own("invoices.create")]) == repr(
        [answer.get(name) for name in own("invoices.create")]
    )


@pytest.mark.usefixtures("_room")
@pytest.mark.parametrize(("entries", "many"), [(250, False), (251, True)])
@pytest.mark.parametrize("field", ["discounts", "lines.data.amount", "metadata"])
def test_more_entries_than_any_page_has_are_null(field: str, entries: int, *, many: bool) -> None:
    values: dict[str, Any] = {
        "discounts": ["d"] * entries,
        "lines": {"data": [{"amount": 1}] * entries},
        "metadata": {str(number): "a" for number in range(entries)},
    }
    grant = entitlement(response=f"id, {field}")
    members, out = read(json.dumps({"id": "in_1", **values}).encode(), grant)
    name = field.partition(".")[0]
    assert members["id"] == out["id"] == "in_1"
    assert (out[name] in (None, {"data": None})) is many
    assert repr(out) == repr(trim({"id": "in_1", **values}, grant.response))


@pytest.mark.usefixtures("_room")
def test_answer_of_more_parts_than_any_has_is_none() -> None:
    grant = entitlement(response="id")
    for parts, whole in ((fields.MAX_PARTS, True), (fields.MAX_PARTS + 1, False)):
        body = b'{"id":"in_1","x":[' + b",".join([b"1"] * (parts - 2)) + b"]}"
        assert (read(body, grant)[1] == {"id": "in_1"}) is whole
        assert (decoded(body) is not None) is whole
    assert read(b'{"id":"in_1","x":"' + b"," * 60_000 + b" " * 200_000 + b'"}', grant)[1] == {"id": "in_1"}


@pytest.mark.usefixtures("_room")
@pytest.mark.parametrize("value", [b'"\xff"', b"9" * 5000, b"1e999", b'"\\ud83d"'])
def test_what_cannot_be_read_matters_only_where_it_is_granted(value: bytes) -> None:
    body = b'{"id": "in_1", "description": VALUE, "lines": {"data": [{"amount": 5, "description": VALUE}]}}'
    members, out = read(body.replace(b"VALUE", value), entitlement(response="lines.data.amount, customer"))
    assert members["id"] == "in_1"
    assert out == {"lines": {"data": [{"amount": 5}]}, "customer": None}


#: Eight threads that each read an answer for the first time, a hundred lists one after the other.
AT_ONCE = """
import sys, threading
from itertools import combinations, islice
from policies.fields import read
from policies.operations.invoices_create import FIELDS
from tests.policies.conftest import entitlement

sys.setswitchinterval(1e-6)
grants = [entitlement(response=", ".join(some)) for some in islice(combinations(FIELDS, 8), 0, 400_000, 4_000)]
turn = threading.Barrier(8)
found = []

def work():
    for grant in grants:
        turn.wait()
        found.append(read(b'{"id": "in_1", "lines": {"data": [{"amount": 1}]}}', grant)[0]["id"])

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert found == ["in_1"] * 800
"""


def test_answers_read_for_the_first_time_by_several_threads_at_once_crash_nothing() -> None:
    run = subprocess.run([sys.executable, "-c", AT_ONCE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, object]]:
    """Every type that is built for a decoder."""
    built: list[Mapping[str, object]] = []
    build = fields._type_of

    def counted(tree: Mapping[str, object]) -> type[msgspec.Struct]:
        built.append(tree)
        return build(tree)

    monkeypatch.setattr(fields, "_type_of", counted)
    return built


def read_in_turn(grants: Iterable[Entitlement]) -> None:
    body = json.dumps(dict(EXAMPLE)).encode()
    for grant in grants:
        assert read(body, grant)[1] == trim(dict(EXAMPLE), grant.response)


def grants(number: int) -> list[Entitlement]:
    """Grants that each have a response list of their own."""
    return [entitlement(response=", ".join(three)) for three in islice(combinations(FIELDS, 3), number)]


def test_many_response_lists_in_turn_build_each_decoder_once(
    built: list[Mapping[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "_READERS", fields._Readers(room=300 * 3))
    many = grants(300)
    read_in_turn(many)
    assert len(built) >= 300
    built.clear()
    read_in_turn(many)
    assert built == []


def test_response_lists_that_no_room_is_left_for_build_nothing(
    built: list[Mapping[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = grants(300)
    monkeypatch.setattr(fields, "_READERS", fields._Readers(room=3))
    read_in_turn([first, others[0]])  # the second builds what the others share, if no test has before
    built.clear()
    read_in_turn([first, *others])
    assert built == []
    assert len(fields._READERS) == 1


def test_list_that_threads_read_for_the_first_time_at_once_takes_its_room_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = grants(3)
    monkeypatch.setattr(fields, "_READERS", fields._Readers(room=4 * 3))
    turn, build = threading.Barrier(3), fields._decoder

    def at_once(operation: str, paths: Iterable[str]) -> Any:
        turn.wait()
        return build(operation, paths)

    monkeypatch.setattr(fields, "_decoder", at_once)
    threads = [threading.Thread(target=read_in_turn, args=([first],)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.setattr(fields, "_decoder", build)
    read_in_turn([second, *grants(4)])
    assert len(fields._READERS) == 4
