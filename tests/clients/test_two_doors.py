"""One rule, whichever door a call comes in by: form or JSON, one path or another, one place of the key or another."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest

from tests.conftest import CUSTOMER, FORM, KEY, OTHER_KEY, TARGET, policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from werkzeug.test import TestResponse

    from sandbox.appgregator import Appgregator
    from tests.conftest import Function

JSON = "application/json"
PARAMETERS = """
customer: {required: true, prefix: cus_}
description: {max_length: 20}
metadata:
custom_fields:
account_tax_ids:
auto_advance:
currency:
days_until_due: {min: 1, max: 60}
due_date:
metadata[order_id]: {max_length: 64}
"""


@pytest.fixture
def gate(function: Callable[..., Function], upstream: Appgregator) -> Function:
    return function(policy(upstream.origin, parameters=PARAMETERS))


def outcome(response: TestResponse, upstream: Appgregator) -> tuple[Any, ...]:
    """Return all that a caller or the upstream sees of a call, but what no two calls share."""
    body = response.get_json(force=True)
    sent = [call.body for call in upstream.calls]
    upstream.forget()
    if "error" in body:  # as Stripe's clients read it
        error = body["error"]
        said = error["message"].partition(" (audit id")[0]
        return response.status_code, error["code"].replace("_", "-"), said, error.get("param"), sent
    return response.status_code, body.get("reason"), body.get("detail"), body.get("parameter"), sent


def as_json(fields: list[tuple[str, str]]) -> str:
    """Write the JSON whose names and texts are those of a form."""
    tree: dict[str, Any] = {}
    for path, value in fields:
        *above, last = path.replace("]", "").split("[")
        inner = tree
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return json.dumps(tree)


#: What stands beside the customer, or instead of it.
FIELDS: list[list[tuple[str, str]]] = [
    *(
        [(name, value)]
        for name in ("description", "metadata[order_id]", "metadata[a]", "days_until_due", "auto_advance", "currency",
                     "due_date", "metadata", "transfer_data[destination]", "account_tax_ids", "account_tax_ids[0]")
        for value in ("", " ", "x", " 30", "30 ", "30\n", "30", "030", "30.0", "3e1", "+30", "-1", "61", "1e400",
                      "True", "FALSE", "0", "yes", "USD", "null", "None", "[]", "{}", "undefined", "é", "😀", "\x00",
                      "\x7f", "a\tb", "\u2028", "x" * 600, "1" * 25, "1767225600", "1767225600000", "a&b=c",
                      "a+b%20c", '"x"')
    ),
    *([("customer", value)] for value in ("", " cus_1", "cus_1 ", "cus_1\n", "CUS_1", "cus_", "cus_é", "xcus_1")),
    *(
        [(name, "x")]
        for name in ("Description", "descripton", " description", "description ", "metadata.a", "metadata[a b]",
                     "metadata[é]", "metadata[a\x00]", f"metadata[{'k' * 41}]", f"metadata[{'k' * 300}]", "é" * 50,
                     "😀", "a" * 300, "custom_fields[0][name]", "custom_fields[x][name]", "custom_fields[0][other]",
                     "account_tax_ids[1]", "account_tax_ids[00]", "a[b][c][d][e][f][g][h][i][j]", "metadata[a][b]")
    ),
    [("metadata[a]", "1"), ("metadata[b]", "2"), ("description", "x")],
    [("account_tax_ids[0]", "a"), ("account_tax_ids[1]", "b")],
    [("account_tax_ids[1]", "b"), ("account_tax_ids[0]", "a")],
    [(f"metadata[k{number}]", "x") for number in range(51)],
    [(f"metadata[k{number}]", "x") for number in range(600)],
]  # fmt: skip


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ascii(fields)[2:60])
def test_form_and_json_are_read_by_one_rule(
    gate: Function, upstream: Appgregator, fields: list[tuple[str, str]]
) -> None:
    if fields[0][0] != "customer":
        fields = [("customer", "cus_1"), *fields]
    form = outcome(gate.post(body=urlencode(fields)), upstream)
    assert form == outcome(gate.post(body=as_json(fields), media=JSON), upstream)


PLAIN = ["/stripe/invoices/", "/stripe/invoices", "/invoices/", "/invoices"]
AT = "?name=ft-4&connection_name=stripe-1"
OF_THE_SDK = "/ft-4/stripe-1/v1/invoices"

CALLS: dict[str, dict[str, Any]] = {
    "a form": {}, "JSON": {"body": '{"customer":"cus_1"}', "media": JSON}, "nothing": {"body": ""},
    "a list": {"body": "customer=cus_1&account_tax_ids[]=a&account_tax_ids[]=b"},
    "a Python boolean": {"body": "customer=cus_1&auto_advance=False"},
    "a byte order mark": {"body": "\ufeffcustomer=cus_1"}, "empty pairs": {"body": "&customer=cus_1&&"},
    "many faults": {"body": "custmer=cus_1&days_until_due=90"}, "no =": {"body": "customer"},
    "a parameter twice": {"body": "customer=cus_1&customer=cus_1"}, "latin-1": {"body": "customer=cus_%FC"},
    "utf8": {"media": f"{FORM}; charset=utf8"}, "odata": {"media": f"{FORM}; odata=verbose"},
    "a key in quotes": {"key": f'"{KEY}"'}, "no key": {"key": None}, "an unknown key": {"key": "nobody"},
    "an idempotency key": {"Idempotency_Key": "order-1"}, "one in UTF-8": {"Idempotency_Key": "Z\xfcrich"},
    "an empty one": {"Idempotency_Key": ""}, "a key of another": {"key": OTHER_KEY},
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_every_path_is_read_by_one_rule(gate: Function, upstream: Appgregator, call: dict[str, Any]) -> None:
    def at(target: str) -> tuple[Any, ...]:
        named = call
        if "Idempotency_Key" in call and call["Idempotency_Key"].startswith("order"):  # a new call each time
            named = {**call, "Idempotency_Key": f"order-{quote(target, safe='')}"}
        return outcome(gate.post(target, **{"body": CUSTOMER, **named}), upstream)

    first, *others = [at(path + AT) for path in PLAIN]
    assert [first] * len(others) == others
    assert at(OF_THE_SDK) == first


@pytest.mark.parametrize(
    "call", [{}, {"media": "text/plain"}, {"media": None}, {"method": "PUT"}, {"Content_Encoding": "br"}]
)
def test_refusal_of_every_path_says_the_same_where_the_sdk_has_another_status(
    gate: Function, upstream: Appgregator, call: dict[str, Any]
) -> None:
    plain, sdk = (outcome(gate.post(target, **call), upstream) for target in (TARGET, OF_THE_SDK))
    assert plain[1:] == sdk[1:]


@pytest.mark.parametrize(
    "sent",
    [KEY, "", f" {KEY} ", f'"{KEY}"', f"'{KEY}'", f"<{KEY}>", f"{KEY},{KEY}", KEY[:-1], KEY.upper(), f"{KEY}x",
     "nobody", "$KEY", "{{key}}", "null", OTHER_KEY, "k" * 2000],
    ids=lambda sent: sent[:30].replace(KEY[:30], "KEY"),
)  # fmt: skip
def test_caller_key_is_read_by_one_rule_wherever_it_stands(gate: Function, upstream: Appgregator, sent: str) -> None:
    """Its sentence names the place, so what is compared is what was wrong."""

    def by(**headers: str) -> tuple[Any, ...]:
        status, reason, said, parameter, bodies = outcome(gate.post(key=None, **headers), upstream)
        missing = reason == "credential-missing"
        return status, reason, None if missing else (said or "").partition(" Send ")[0], parameter, bodies

    sent = sent.strip()  # as a server does with a header
    doors = [
        by(x_api_key=sent),
        by(Authorization=f"Bearer {sent}".strip()),
        by(Authorization=f"bearer  {sent}".strip()),
    ]
    doors += [
        by(Authorization="Basic " + base64.b64encode(pair.encode()).decode()) for pair in (f"a:{sent}", f"{sent}:")
    ]
    if not sent:
        doors.pop(3)  # the name alone is then the key
    assert doors == doors[:1] * len(doors)
