"""What clients send, by client and style: each call works, or its sender is told precisely what to change.

The shapes are those of HTTP libraries, SDKs and no-code tools as they come. What each of them writes was taken down
once; here it is sent as bytes, so that no such client needs to be installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

import pytest

from tests.conftest import FORM, TARGET, policy
from tests.problems import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from tests.conftest import Function

JSON = "application/json"
PARAMETERS = """
customer: {required: true}
description:
footer:
metadata:
custom_fields:
account_tax_ids:
auto_advance:
currency:
days_until_due: {min: 1, max: 60}
due_date:
"""
TWO = "account_tax_ids[0]=txi_1&account_tax_ids[1]=txi_2&customer=cus_1"
BOM = "\ufeff"
LIKE_JSON = "This looks like JSON, but was sent as a form: send Content-Type: application/json."
FILES = "The body is multipart/form-data, which is for files. Send the same fields as application/x-www-form-urlencoded"

#: Of a shape whose body is read: the shape, media, body, and the form that goes upstream.
READ = [
    # no-code tools, as JSON
    ("nulls", JSON, '{"customer":"cus_1","description":null,"metadata":{"a":null,"b":"x"}}',
     "customer=cus_1&metadata[b]=x"),
    ("empty strings", JSON, '{"customer":"cus_1","description":"","days_until_due":"","auto_advance":""}',
     "customer=cus_1"),
    ("an empty metadata value", JSON, '{"customer":"cus_1","metadata":{"note":"","a":"1"}}',
     "customer=cus_1&metadata[a]=1"),
    ("an empty object and list", JSON, '{"customer":"cus_1","metadata":{},"account_tax_ids":[]}', "customer=cus_1"),
    ("a number as text", JSON, '{"customer":"cus_1","days_until_due":"30"}', "customer=cus_1&days_until_due=30"),
    ("30.0", JSON, '{"customer":"cus_1","days_until_due":30.0}', "customer=cus_1&days_until_due=30"),
    ("3e1", JSON, '{"customer":"cus_1","days_until_due":3e1}', "customer=cus_1&days_until_due=30"),
    ("booleans as text", JSON, '{"customer":"cus_1","auto_advance":"false"}', "auto_advance=false&customer=cus_1"),
    ('"False"', JSON, '{"customer":"cus_1","auto_advance":"False"}', "auto_advance=false&customer=cus_1"),
    ("a boolean of 0", JSON, '{"customer":"cus_1","auto_advance":0}', "auto_advance=false&customer=cus_1"),
    ("a currency in capitals", JSON, '{"customer":"cus_1","currency":"USD"}', "currency=usd&customer=cus_1"),
    ("numbers in metadata", JSON, '{"customer":"cus_1","metadata":{"h":1.5,"order":1001.0,"paid":true}}',
     "customer=cus_1&metadata[h]=1.5&metadata[order]=1001&metadata[paid]=true"),
    ("a byte order mark (.NET, PowerShell)", JSON, BOM + '{"customer":"cus_1"}', "customer=cus_1"),
    ("CRLF and indents", JSON, '{\r\n  "customer": "cus_1"\r\n}\r\n', "customer=cus_1"),
    # media types
    *((f"media {media}", media, '{"customer":"cus_1"}', "customer=cus_1") for media in (
        "application/json; charset=utf-8", "application/json;charset=UTF-8", "Application/JSON",
        'application/json; charset="utf-8"', "application/json; charset='utf-8'", "application/json; charset=utf8",
        "application/json; odata=verbose", "application/json; charset=utf-8; v=1", "application/json;",
    )),
    *((f"media {media}", media, "customer=cus_1", "customer=cus_1") for media in (
        f"{FORM}; charset=utf-8", f"{FORM};charset=UTF-8", FORM.upper(), f"{FORM}; charset=utf8",
    )),
    # forms
    ("a trailing &", FORM, "customer=cus_1&", "customer=cus_1"),
    ("a leading &", FORM, "&customer=cus_1", "customer=cus_1"),
    ("&&", FORM, "customer=cus_1&&description=a", "customer=cus_1&description=a"),
    ("a byte order mark before a form", FORM, BOM + "customer=cus_1", "customer=cus_1"),
    ("escaped brackets", FORM, "customer=cus_1&metadata%5Border_id%5D=7", "customer=cus_1&metadata[order_id]=7"),
    ("escaped brackets in lower case", FORM, "customer=cus_1&metadata%5border_id%5d=7",
     "customer=cus_1&metadata[order_id]=7"),
    ("an empty value", FORM, "customer=cus_1&description=", "customer=cus_1"),
    ("an empty metadata value (form)", FORM, "customer=cus_1&metadata[note]=", "customer=cus_1"),
    ("True and False (Python)", FORM, "customer=cus_1&auto_advance=False", "auto_advance=false&customer=cus_1"),
    ("1 and 0 (PHP http_build_query)", FORM, "customer=cus_1&auto_advance=0", "auto_advance=false&customer=cus_1"),
    ("a list with [] (axios 1, qs brackets, jQuery, Rack, httpx)", FORM,
     "account_tax_ids[]=txi_1&account_tax_ids[]=txi_2&customer=cus_1", TWO),
    ("a list with %5B%5D", FORM, "account_tax_ids%5B%5D=txi_1&customer=cus_1&account_tax_ids%5B%5D=txi_2", TWO),
    ("a list of one with []", FORM, "account_tax_ids[]=txi_1&customer=cus_1",
     "account_tax_ids[0]=txi_1&customer=cus_1"),
    ("a list with a blank first entry (Rails)", FORM,
     "account_tax_ids[]=&account_tax_ids[]=txi_1&account_tax_ids[]=txi_2&customer=cus_1", TWO),
    ("a list with indexes (Stripe's SDKs, qs indices)", FORM, TWO, TWO),
    ("raw UTF-8", FORM, "customer=cus_1&description=Zürich", "customer=cus_1&description=Zürich"),
    ("plus and %20", FORM, "customer=cus_1&description=a+b%20c", "customer=cus_1&description=a b c"),
    ("a raw space", FORM, "customer=cus_1&description=a b", "customer=cus_1&description=a b"),
]  # fmt: skip

#: Of a shape that is refused: the shape, media, body, status and reason, and how the sentence begins.
TOLD = [
    # no-code tools, as JSON
    ("a padded number", JSON, '{"customer":"cus_1","days_until_due":" 30 "}', 400, "parameter-invalid",
     "days_until_due has white space or a line break at its start. Remove it."),
    ("a leading zero", JSON, '{"customer":"cus_1","days_until_due":"030"}', 400, "parameter-invalid",
     "days_until_due must be a whole number, such as 30."),
    ("30.5", JSON, '{"customer":"cus_1","days_until_due":30.5}', 400, "parameter-invalid",
     "days_until_due must be a whole number, such as 30."),
    ("yes", JSON, '{"customer":"cus_1","auto_advance":"yes"}', 400, "parameter-invalid",
     "auto_advance must be true or false."),
    ("a date in ISO 8601", JSON, '{"customer":"cus_1","due_date":"2026-12-01"}', 400, "parameter-invalid",
     "due_date must be a date in unix seconds, such as 1767225600."),
    ("milliseconds", JSON, '{"customer":"cus_1","due_date":1767225600000}', 400, "parameter-invalid",
     "due_date must be a date in unix seconds, such as 1767225600."),
    ("brackets in names", JSON, '{"customer":"cus_1","metadata[a]":"1"}', 400, "body-malformed",
     "metadata[a] cannot be a name in JSON. Nest objects and lists instead of writing brackets"),
    ("dots in names", JSON, '{"customer":"cus_1","metadata.a":"1"}', 400, "parameter-not-granted",
     "metadata.a is not a parameter you may send. Did you mean metadata"),
    ("an object in metadata", JSON, '{"customer":"cus_1","metadata":{"o":{"a":1}}}', 400, "parameter-not-granted",
     "metadata[o][a] is not a parameter you may send."),
    ("an array around it (n8n, Make)", JSON, '[{"customer":"cus_1"}]', 400, "body-malformed",
     'Send a JSON object, such as {"customer": "cus_123"}.'),
    ("JSON in a string", JSON, r'"{\"customer\":\"cus_1\"}"', 400, "body-malformed",
     "Send the JSON as it is, not as a text in quotes"),
    ("data around it", JSON, '{"data":{"customer":"cus_1"}}', 400, "parameter-not-granted",
     "data[customer] is not a parameter you may send. Did you mean customer?"),
    ("a trailing comma", JSON, '{"customer":"cus_1",}', 400, "body-malformed",
     "The body is not valid JSON: see line 1, column 21."),
    ("single quotes", JSON, "{'customer':'cus_1'}", 400, "body-malformed",
     "The body is not valid JSON: see line 1, column 2."),
    ("UTF-16", JSON, '{"customer":"cus_1"}'.encode("utf-16"), 400, "body-malformed",
     "The body is not valid UTF-8. Send it in UTF-8."),
    ("latin-1", JSON, '{"customer":"cus_1","description":"Zürich"}'.encode("latin-1"), 400, "body-malformed",
     "The body is not valid UTF-8. Send it in UTF-8."),
    ("a key twice", JSON, '{"customer":"cus_1","customer":"cus_1"}', 400, "body-malformed",
     "customer is given twice. Send it once."),
    ("nothing", JSON, "", 400, "body-malformed", "The body is empty. Send a JSON object"),
    ("null", JSON, "null", 400, "body-malformed", "Send a JSON object"),
    # media types
    ("iso-8859-1", "application/json; charset=iso-8859-1", "{}", 415, "media-type-unsupported",
     "The charset of the body is iso-8859-1. Send it in UTF-8."),
    ("us-ascii", "application/json; charset=us-ascii", "{}", 415, "media-type-unsupported",
     "The charset of the body is us-ascii. Send it in UTF-8."),
    ("iso-8859-1 (form)", f"{FORM}; charset=ISO-8859-1", "a=b", 415, "media-type-unsupported",
     "The charset of the body is iso-8859-1. Send it in UTF-8."),
    *((f"media {media}", media, "{}", 415, "media-type-unsupported", f"Content-Type is {media.partition(';')[0]}. ")
      for media in ("text/json", "application/problem+json", "application/vnd.api+json", "text/plain",
                    "text/plain;charset=UTF-8", "application/octet-stream", "*/*", f"{FORM}, application/json")),
    ("no media type", None, "{}", 415, "media-type-unsupported",
     "Content-Type is missing. Write application/json for JSON, or application/x-www-form-urlencoded for a form."),
    ("multipart (curl -F, axios postForm, fetch FormData, requests files, PHP array)",
     "multipart/form-data; boundary=x", "--x--", 415, "media-type-unsupported", FILES),
    ("JSON as a form (curl -d, axios string)", FORM, '{"customer":"cus_1"}', 400, "body-malformed", LIKE_JSON),
    ("JSON as the one name in a form", FORM, "%7B%22customer%22%3A%22cus_1%22%7D=", 400, "body-malformed", LIKE_JSON),
    ("a form as JSON", JSON, "customer=cus_1&description=a", 400, "body-malformed",
     "This looks like a form, but was sent as JSON: send Content-Type: application/x-www-form-urlencoded."),
    # forms
    ("a file's line break (curl --data-binary @file)", FORM, "customer=cus_1\r\n", 400, "parameter-invalid",
     "customer has white space or a line break at its end. Remove it."),
    ("a line break between fields", FORM, "customer=cus_1\n&description=a", 400, "parameter-invalid",
     "customer has white space or a line break at its end. Remove it."),
    ("no =", FORM, "customer", 400, "body-malformed",
     "customer has no = in the form. Write the form as name=value&name=value."),
    ("customer[0]", FORM, "customer[0]=cus_1", 400, "parameter-not-granted",
     "customer[0] is not a parameter you may send. Did you mean customer?"),
    ("customer[]", FORM, "customer[]=cus_1", 400, "parameter-not-granted",
     "customer[0] is not a parameter you may send. Did you mean customer?"),
    ("customer twice", FORM, "customer=cus_1&customer=cus_2", 400, "body-malformed",
     "customer is given twice. Send it once; entries of a list are written customer[]."),
    ("on (a checkbox)", FORM, "customer=cus_1&auto_advance=on", 400, "parameter-invalid",
     "auto_advance must be true or false."),
    ("30.0 (old Apps Script)", FORM, "customer=cus_1&days_until_due=30.0", 400, "parameter-invalid",
     "days_until_due must be a whole number, such as 30."),
    ("a list repeated (qs repeat, requests)", FORM, "customer=cus_1&account_tax_ids=a&account_tax_ids=b", 400,
     "body-malformed",
     "account_tax_ids is given twice. Send it once; entries of a list are written account_tax_ids[]."),
    ("a list from 1", FORM, "customer=cus_1&account_tax_ids[1]=a", 400, "parameter-invalid",
     "account_tax_ids must have its entries numbered from 0 without a gap."),
    ("a list with commas (qs comma)", FORM, "customer=cus_1&account_tax_ids=a,b", 400, "parameter-invalid",
     "account_tax_ids is a list: send each entry by itself, with [] behind the name."),
    ("[object Object] (axios URLSearchParams)", FORM, "customer=cus_1&metadata=%5Bobject+Object%5D", 400,
     "parameter-invalid", "metadata is an object: send its parts, not a value."),
    ("objects with [][name] (Rack)", FORM, "customer=cus_1&custom_fields[][name]=a&custom_fields[][value]=b", 400,
     "body-malformed", "custom_fields[][name] has an entry without its index. Write the index, as custom_field"),
    ("dots", FORM, "customer=cus_1&metadata.order_id=7", 400, "parameter-not-granted",
     "metadata.order_id is not a parameter you may send."),
    ("invoice[customer] (Rails)", FORM, "invoice[customer]=cus_1", 400, "parameter-not-granted",
     "invoice[customer] is not a parameter you may send. Did you mean customer?"),
    ("utf8=✓ (Rails)", FORM, "customer=cus_1&utf8=%E2%9C%93", 400, "parameter-not-granted",
     "utf8 is not a parameter you may send. You may send: account_tax_ids"),
    ("_method and _token (Laravel)", FORM, "customer=cus_1&_method=POST&_token=x", 400, "parameter-not-granted",
     "_method is not a parameter you may send."),
    ("latin-1 %FC", FORM, "customer=cus_1&description=Z%FCrich", 400, "body-malformed",
     "The form is not valid UTF-8. Send it in UTF-8, percent-encoded."),
    ("a bare %", FORM, "customer=cus_1&description=100%", 400, "body-malformed",
     "The form has a % that is not followed by two hexadecimal digits. Write %25 for a percent sign."),
    ("a leading ?", FORM, "?customer=cus_1", 400, "parameter-not-granted",
     "?customer is not a parameter you may send. Did you mean customer?"),
    ("quotes (cmd.exe)", FORM, "'customer=cus_1'", 400, "parameter-not-granted",
     "'customer is not a parameter you may send. Did you mean customer?"),
    ("nothing (form)", FORM, "", 400, "parameter-missing", "customer is missing. Send it with every call."),
]  # fmt: skip


@pytest.fixture
def gate(function: Callable[..., Function], upstream: Appgregator) -> Function:
    return function(policy(upstream.origin, parameters=PARAMETERS))


@pytest.mark.parametrize(("media", "body", "goes_out"), [row[1:] for row in READ], ids=[row[0] for row in READ])
def test_shape_that_is_read_goes_out_as_the_one_form(
    gate: Function, upstream: Appgregator, media: str, body: str, goes_out: str
) -> None:
    response = gate.post(body=body.encode(), media=media)
    assert response.status_code == 200, response.text
    assert [unquote_plus(call.body.decode("ascii")) for call in upstream.calls] == [goes_out]


@pytest.mark.parametrize("row", [row[1:] for row in TOLD], ids=[row[0] for row in TOLD])
def test_shape_that_is_not_read_is_told_what_to_change(
    gate: Function, upstream: Appgregator, row: tuple[str | None, str | bytes, int, str, str]
) -> None:
    media, body, status, reason, said = row
    response = gate.post(body=body if isinstance(body, bytes) else body.encode(), media=media)
    problem = refused(response, status, reason)
    assert problem["detail"].startswith(said)
    assert not upstream.calls


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (
            "name=ft-4&amp;connection_name=stripe-1",
            "amp;connection_name does not belong in the address. Did you mean con",
        ),
        (
            "name=ft-4&connection_name=stripe-1&utm_source=x",
            "utm_source does not belong in the address. The address ta",
        ),
        ("name=ft-4&connection_name=stripe-1&customer=cus_1", "customer does not belong in the address. The address "),
        ("NAME=ft-4&connection_name=stripe-1", "NAME does not belong in the address. Did you mean name?"),
        ("name=ft-4&connection_name=stripe-1&api_key=k", "api_key does not belong in the address."),
    ],
)
def test_address_with_something_else_in_it_is_told_what(
    gate: Function, upstream: Appgregator, query: str, said: str
) -> None:
    problem = refused(gate.post(f"/stripe/invoices/?{query}"), 400, "query-malformed")
    assert problem["detail"].startswith(said)
    assert not upstream.calls


def test_address_with_a_trailing_ampersand_works(gate: Function) -> None:
    assert gate.post(f"{TARGET}&").status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_body_is_told_to_come_as_it_is(gate: Function, encoding: str) -> None:
    problem = refused(gate.post(Content_Encoding=encoding), 415, "media-type-unsupported")
    assert problem["detail"] == f"The body is compressed ({encoding}). Send it as it is."


@pytest.mark.parametrize(
    ("client", "accept", "media"),
    [
        ("curl", "*/*", "application/problem+json"),
        ("axios", "application/json, text/plain, */*", JSON),
        ("n8n", "application/json,text/html,application/xhtml+xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7", JSON),
        ("a browser", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/problem+json"),
    ],
)  # fmt: skip
def test_refusal_comes_as_a_type_that_the_client_shows(gate: Function, client: str, accept: str, media: str) -> None:
    plain = gate.post(body="")
    response = gate.post(body="", Accept=accept)
    assert response.headers["Content-Type"] == media, client
    assert response.json is not None
    assert plain.json is not None
    assert response.json.keys() == plain.json.keys()
    assert response.json["detail"] == plain.json["detail"]


def test_all_that_is_wrong_is_told_at_once(gate: Function, upstream: Appgregator) -> None:
    body = '{"custmer":"cus_1","days_until_due":90,"due_date":"tomorrow"}'
    problem = refused(gate.post(body=body, media=JSON), 400, "parameter-not-granted")
    assert problem["detail"] == (
        "custmer is not a parameter you may send. Did you mean customer? 3 more things are wrong."
    )
    assert [(fault["parameter"], fault["reason"]) for fault in problem["faults"]] == [
        ("custmer", "parameter-not-granted"),
        ("days_until_due", "parameter-invalid"),
        ("due_date", "parameter-invalid"),
        ("customer", "parameter-missing"),
    ]
    assert problem["faults"][1]["accepts"] == {"kind": "integer", "min": 1, "max": 60}
    assert not upstream.calls
