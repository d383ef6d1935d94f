"""Documents of which no call could pass, or that could not do what they say: refused when they are read."""

from __future__ import annotations

import pytest

from policies import access
from policies.lines import LONGEST
from policies.model import DocumentError, Grant
from policies.operations import OPERATIONS
from policies.refusals import ParameterInvalid
from tests.policies.conftest import call, only_caller, read

DOCUMENT = """\
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: {upstream}, secret: file:key{origin}}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}}]
    limits: [30/minute]
    {budget}
    grants:
      - connection: billing
        operation: {operation}
        response: [id]
        {more}
        parameters:
          customer:
          {parameters}
"""
#: Where the grant, and what a grant has under it, stand in the errors.
GRANT = "policy.yaml:10: callers.app.grants[0]"


def written(
    parameters: str = "",
    *,
    operation: str = "invoices.issue",
    upstream: str = "stripe",
    budget: str = "",
    more: str = "",
) -> str:
    """Write a document of one grant; ``parameters`` and ``more`` are what stands there, line by line."""
    return DOCUMENT.format(
        upstream=upstream,
        origin=", origin: https://upstream.example" if upstream == "appgregator" else "",
        operation=operation,
        budget=f"budget: {budget}" if budget else "",
        more="\n        ".join(more.splitlines()),
        parameters="\n          ".join(parameters.splitlines()),
    )


def error_of(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        read(text)
    return str(caught.value)


def decided(text: str, asked: dict[str, str], operation: str = "invoices.issue") -> Grant:
    policies = read(text)
    return access.decide(policies, only_caller(policies), call(asked, key="order-1", operation=operation))


def entries(number: int, bound: str = "{fixed: a}") -> str:
    return "\n".join(f'"metadata[k{one}]": {bound}' for one in range(number))


# ---------------------------------------------------------------- what we add takes room, too

STAMP = 'stamp: "metadata[order]"'
AT_APPGREGATOR = {"operation": "invoices.create", "upstream": "appgregator"}


@pytest.mark.parametrize(
    ("more", "where", "most"),
    [
        ("", {}, 48),
        (STAMP, {}, 47),
        ("", {"operation": "invoices.create"}, 50),
        (STAMP, {"operation": "invoices.create"}, 49),
        (STAMP, AT_APPGREGATOR, 49),
        ("", AT_APPGREGATOR, 50),
    ],
)
@pytest.mark.parametrize("bound", ["{fixed: a}", "{required: true}"])
def test_metadata_that_every_call_has_leaves_room_for_what_we_add(
    more: str, where: dict[str, str], most: int, bound: str
) -> None:
    assert read(written(entries(most, bound), more=more, **where))
    said = error_of(written(entries(most + 1, bound), more=more, **where))
    assert ".parameters: no call could pass: metadata has too many entries" in said
    assert f"{most} at most" in said


def test_parameter_that_is_the_key_needs_room_as_well() -> None:
    from_metadata = f'{entries(49)}\n"metadata[order_id]":'
    assert read(written(from_metadata, more='idempotency: {from: "metadata[order_id]"}', **AT_APPGREGATOR))
    said = error_of(
        written(from_metadata, more=f'idempotency: {{from: "metadata[order_id]"}}\n{STAMP}', **AT_APPGREGATOR)
    )
    assert "metadata has too many entries: 49 at most" in said


LINE = {"customer": "cus_1", "currency": "usd", "lines[0][amount]": "1000"}


@pytest.mark.parametrize(
    ("parameters", "more", "where", "most"),
    [
        ("metadata:", "", {}, 48),
        ("metadata:", STAMP, {}, 47),
        (f"metadata:\n{entries(3)}", STAMP, {}, 44),
        ("metadata:", "", AT_APPGREGATOR, 50),
        ("metadata:", STAMP, AT_APPGREGATOR, 49),
        (f"metadata:\n{entries(3)}", STAMP, AT_APPGREGATOR, 46),
    ],
)
def test_caller_is_told_how_much_metadata_it_may_send_beside_what_we_write(
    parameters: str, more: str, where: dict[str, str], most: int
) -> None:
    text, operation = written(parameters, more=more, **where), where.get("operation", "invoices.issue")
    call = LINE if operation == "invoices.issue" else {"customer": "cus_1"}
    fits = call | {f"metadata[n{one}]": "x" for one in range(most)}
    assert decided(text, fits, operation)
    fixed = {f"metadata[k{one}]": "a" for one in range(3)} if entries(3) in parameters else {}
    assert decided(text, fits | fixed, operation)  # what is fixed is the same, sent or not
    for beyond in (fits | {"metadata[one]": "x"}, fits | fixed | {"metadata[one]": "x"}):
        with pytest.raises(ParameterInvalid) as refusal:
            decided(text, beyond, operation)
        assert refusal.value.detail == f"metadata has too many entries: {most} at most."
        (fault,) = refusal.value.faults
        assert (fault.parameter, fault.accepts) == ("metadata", {"max_items": most})


def test_description_of_a_line_leaves_room_for_what_is_written_before_it() -> None:
    text = written()
    each = {"customer": "cus_1", "currency": "usd", "lines[0][unit_amount]": "100000", "lines[0][quantity]": "12"}
    most = LONGEST - len("12 x 1,000.00 ")
    assert decided(text, each | {"lines[0][description]": "x" * most})
    with pytest.raises(ParameterInvalid) as refusal:
        decided(text, each | {"lines[0][description]": "x" * (most + 1)})
    assert refusal.value.detail == (
        f"lines[0][description] is too long: {most} characters at most, since 12 x 1,000.00 is written before it."
    )
    assert decided(text, LINE | {"lines[0][description]": "x" * LONGEST})


def test_length_of_a_description_is_that_of_the_catalogue() -> None:
    assert OPERATIONS["invoices.issue"].parameters["lines[{i}][description]"].max_length == LONGEST
