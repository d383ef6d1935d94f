"""What schemathesis does to each call that it makes, loaded by ``SCHEMATHESIS_HOOKS`` in an environment of its own.

- One credential, ours: the alternatives of the document would be sent beside it.
- A key of its own for each call that has a good one: a reused key with other values is refused, and rightly.
- ``validate_only`` for every other call.
- What breaks the schema by its spelling alone is no bad call: ``"30"`` for 30, or a blank value, which is left out.
- No address that is longer than a request line: it is no call yet, and its parameters are not looked at.
"""

from __future__ import annotations

import itertools
import os
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import requests
import schemathesis
from jsonschema import Draft202012Validator

from console import schemas
from policies import document, forms
from policies.refusals import Refusal
from tests.openapi import spelling

CALLERS = document.read(Path(os.environ["POLICY"]).read_text("utf-8"), "policy").callers.values()
ENTITLEMENTS = {
    one.operation.id: one for caller in CALLERS if caller.id == "app" for one in caller.entitlements.values()
}
OURS = ("name", "connection_name")
COUNT = itertools.count()
#: Characters of an address that is a call at all: a little less than gateway/arriving.py's MAX_LINE.
LONGEST = 4000


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Leave out what is only spelt otherwise, and what is no call."""
    try:
        sent = requests.Request(**case.as_transport_kwargs(base_url="http://localhost")).prepare()
    except (ValueError, UnicodeError, requests.RequestException):
        return True
    return len(str(sent.url)) <= LONGEST and not (
        case.meta.generation.mode.value == "negative" and _only_spelt(case, sent)
    )


def _only_spelt(case: Any, sent: requests.PreparedRequest) -> bool:
    entitlement = ENTITLEMENTS.get(case.operation.definition.raw.get("operationId"))
    broken = {where.value for where, part in case.meta.components.items() if part.mode.value == "negative"}
    if entitlement is None:
        return False
    looks = entitlement.operation.repeatable
    # The one header of a look that can be broken is a credential, which before_call takes out.
    if not broken <= ({"body", "query", "header"} if looks else {"body", "query"}):
        return False
    query = parse_qsl(urlsplit(str(sent.url)).query, keep_blank_values=True)
    connection = entitlement.connection
    if sorted(pair for pair in query if pair[0] in OURS) != sorted(
        [("name", connection.name), ("connection_name", connection.connection_name)]
    ):
        return False
    rest = urlencode([pair for pair in query if pair[0] not in OURS]).encode()
    media = "json" if "json" in str(sent.headers.get("Content-Type")) else "form"
    body = sent.body.encode() if isinstance(sent.body, str) else sent.body or b""
    if rest and not looks:
        return False
    try:
        given = forms.parse(rest if looks else body, "form" if looks else media)
    except Refusal:
        return False
    written = spelling.nested(entitlement, {**(case.path_parameters or {}), **given})
    schema = {**schemas.nested(entitlement), "components": {"schemas": dict(schemas.SHARED)}}
    return Draft202012Validator(schema).is_valid(written)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Send one credential, a fresh key, and half of the calls as a trial."""
    case.headers.pop("Authorization", None)
    good = "header" not in {
        where.value for where, part in case.meta.components.items() if part.mode.value == "negative"
    }
    if good and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = f"order-{uuid.uuid4().hex}"
    if case.meta.generation.mode.value == "positive" and "/stripe/" in case.path and next(COUNT) % 2:
        kwargs["auth"] = _tried


def _tried(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Write it into the finished request: in the case itself it would break the schema."""
    request.url = f"{request.url}&validate_only=true"
    return request


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Count what came, so that the test sees that calls went through."""
    with Path(os.environ["TALLY"]).open("a") as tally:
        mode = case.meta.generation.mode.value
        tally.write(f"{mode} {case.method} {response.status_code} {'validate_only=true' in response.request.url}\n")
