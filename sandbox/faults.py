"""The faults of an upstream, by name.

A fault stands in for the answer to a call that would otherwise have created an invoice. Any client asks
for one with the customer `cus_fault_<name>`; a test in this process can also call `fail_next(name)`.
The mark + means that the invoice is created, and counted, whatever the client gets to see.

    name               what the client gets
    redirect_302, redirect_307   Location: a path here that adds to `redirected`
    html_200        +  a page of HTML with status 200
    html_404           a page of HTML with status 404, as from Google where no function is
    html_502           the same with status 502, as from a front end
    approval           400 approval_required, Stripe's: a person must approve it first. Stripe itself lets one do so
    action_blocked     400 action_blocked: a rule of the account forbids it
    gzip            +  the invoice, compressed though nobody asked
    gzip_bomb       +  about 200 KB that inflate to 200 MB of JSON
    trickle         +  one byte each 50 ms, for at most 60 s
    slow            +  the invoice after `delay` seconds
    hang            +  nothing, until the client or the server closes
    echo_key           400; its message holds the key raw, in base64 and in hex
    leak_key        +  an invoice that holds the key raw, in base64, in hex and URL-encoded
    set_cookie      +  the invoice and a cookie
    error_400, error_401, error_402, error_403, error_404, error_409, error_429 (Retry-After: 7),
    error_500, error_503   Stripe's JSON for that status
    close_before       nothing: closed. By `fail_next` already when the head is in, so it is no call
    close_after     +  nothing: closed
    reset_after     +  nothing: reset (RST)
    truncated       +  half of the declared length, then closed
    oversize        +  an invoice of about 3 MB
    not_json        +  200 application/json that is not JSON
    nan             +  an invoice with a NaN in it
    deep            +  an invoice with 100,000 nested arrays in it
    no_id           +  an invoice without its id
    array           +  a JSON array
    empty           +  200 without a body
    wrong_object    +  an invoice that says it is an error
    huge_header     +  the invoice behind a header of 400 KB
    expanded        +  an invoice whose customer is an object, with fields that no caller may see
    other_customer  +  an invoice of another customer
    other_mode      +  an invoice of the other mode, live or test
    twice           +  the invoice, and 30 ms later one of another id, which nobody asked for (`sandbox.server.Strays`)
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
import time
import urllib.parse
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from sandbox import invoice
from sandbox.approvals import Approval
from sandbox.server import Answer

__all__ = ["FAULTS", "REDIRECTED", "Ask", "Fault", "always", "approval_required", "bomb", "created", "error", "failure"]

REDIRECTED: Final = "/redirected"
_TRICKLE: Final = 0.05  # seconds between bytes
_TRICKLE_BYTES: Final = int(60 / _TRICKLE)


@dataclass(frozen=True, slots=True)
class Ask:
    """The input of a fault: the invoice that would have been the answer, and the call's context."""

    invoice: bytes
    key: str
    origin: str
    delay: float

    def changed(self, **changes: object) -> bytes:
        """The invoice with other fields."""
        return json.dumps(json.loads(self.invoice) | changes).encode()


Fault = Callable[[Ask], Answer]
_LINES: Final = invoice.EXAMPLE["lines"]
_PAGE: Final = b"<!doctype html><title>Error</title><h1>Server Error</h1><p>Please try again in 30 seconds.</p>"


def created(body: bytes, *headers: str, media: str = "application/json") -> Answer:
    """200, for an invoice that was created."""
    return Answer(200, body, headers, media, creates=True)


def error(status: int, message: str, *headers: str, **fields: object) -> Answer:
    """An error as Stripe writes it."""
    content = {"type": "invalid_request_error", "message": message} | fields
    return Answer(status, invoice.encode({"error": content}), headers)


def failure(status: int, message: str, code: str) -> Answer:
    """An error as Stripe's API v2 writes it: without a type."""
    return Answer(status, invoice.encode({"error": {"code": code, "message": message}}))


def approval_required(status: int, approval: Mapping[str, object]) -> Answer:
    """Stripe's error for an action that waits for a person."""
    message = f"A person must approve this first: {approval['id']}. Once approved, it is carried out by itself."
    return error(status, message, code="approval_required", approval_request=approval)


def _approval() -> Mapping[str, object]:
    """An approval that nobody here can give."""
    made = Approval(invoice.name("apreq_", 24), "", time.time(), livemode=False)
    return made.error(earlier=False)


def always(answer: Answer) -> Fault:
    """The same answer whatever was asked."""
    return lambda _: answer


def _redirect(status: int) -> Fault:
    return lambda ask: Answer(status, _PAGE, (f"Location: {ask.origin}{REDIRECTED}",), "text/html")


@functools.cache
def bomb() -> bytes:
    """A small gzip of a large JSON; the first call takes a while."""
    packer = zlib.compressobj(level=9, wbits=31)
    filler = b" " * 1_000_000
    body = [packer.compress(b'{"id":"in_bomb","object":"invoice","footer":"')]
    body += [packer.compress(filler) for _ in range(200)]
    return b"".join([*body, packer.compress(b'"}'), packer.flush()])


def _encodings(key: str) -> dict[str, str]:
    raw = key.encode("latin-1")
    return {
        "raw": key,
        "base64": base64.b64encode(raw).decode(),
        "hex": raw.hex(),
        "url": urllib.parse.quote(raw, safe=""),
    }


def _echo_key(ask: Ask) -> Answer:
    key = _encodings(ask.key)
    return error(400, f"Invalid API Key provided: {key['raw']} ({key['base64']}, {key['hex']})")


def _leak_key(ask: Ask) -> Answer:
    key = _encodings(ask.key)
    return created(
        ask.changed(
            account_name=key["base64"],
            description=f"Raised with {key['raw']}",
            hosted_invoice_url=f"https://pay.example/i?key={key['url']}",
            metadata=key | {key["raw"]: "as a name"},
            number=key["hex"],
        )
    )


def _truncated(ask: Ask) -> Answer:
    return Answer(200, ask.invoice, creates=True, cut=-len(ask.invoice) // 2, then="close")


def _trickle(ask: Ask) -> Answer:
    return Answer(200, ask.invoice, creates=True, pace=_TRICKLE, cut=_TRICKLE_BYTES, then="close")


def _oversize(ask: Ask) -> Answer:
    return created(ask.changed(lines=_LINES | {"data": _LINES["data"] * 3000}))


def _deep(ask: Ask) -> Answer:
    return created(ask.changed(metadata="deep").replace(b'"deep"', b"[" * 100_000 + b"]" * 100_000))


def _no_id(ask: Ask) -> Answer:
    found = json.loads(ask.invoice)
    del found["id"]
    return created(invoice.encode(found))


def _expanded(ask: Ask) -> Answer:
    found = json.loads(ask.invoice)
    customer = {
        "id": found["customer"],
        "object": "customer",
        "email": "expanded@secret.example",
        "name": "Expanded Secret",
        "phone": "+15550100",
        "invoice_settings": {"default_payment_method": "pm_secret"},
    }
    secret = {"internal_cost": 1234, "price_secret": "expanded-line-secret"}
    lines = _LINES | {"data": [line | secret for line in _LINES["data"]]}
    return created(ask.changed(customer=customer, lines=lines))


def _twice(ask: Ask) -> Answer:
    return replace(created(ask.invoice), second=Answer(200, ask.changed(id=invoice.name("in_", 24))))


_ERRORS: Final = (
    error(400, "The parameter is not one we know.", code="parameter_unknown", param="footer",
          request_log_url="https://dashboard.example/logs/req_sandbox"),
    error(401, "The API key is not valid."),
    error(402, "The card was declined.", type="card_error", code="card_declined", decline_code="do_not_honor"),
    error(403, "The API key may not do this.", code="more_permissions_required"),
    error(404, "There is no such customer.", code="resource_missing", param="customer"),
    error(409, "Another call holds this customer.", code="lock_timeout"),
    error(429, "Too many calls.", "Retry-After: 7", code="rate_limit"),
    error(500, "Something went wrong here.", type="api_error"),
    error(503, "Not available for now.", type="api_error"),
)  # fmt: skip

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        "redirect_302": _redirect(302),
        "redirect_307": _redirect(307),
        "html_200": always(created(_PAGE, media="text/html")),
        "html_404": always(Answer(404, _PAGE, media="text/html; charset=UTF-8")),
        "html_502": always(Answer(502, _PAGE, media="text/html")),
        "approval": lambda _: approval_required(400, _approval()),
        "action_blocked": always(error(400, "A rule of this account blocks it.", code="action_blocked")),
        "gzip": lambda ask: created(gzip.compress(ask.invoice), "Content-Encoding: gzip"),
        "gzip_bomb": lambda _: created(bomb(), "Content-Encoding: gzip"),
        "trickle": _trickle,
        "slow": lambda ask: Answer(200, ask.invoice, creates=True, after=ask.delay),
        "hang": always(Answer(200, creates=True, cut=0, then="hang")),
        "echo_key": _echo_key,
        "leak_key": _leak_key,
        "set_cookie": lambda ask: created(ask.invoice, "Set-Cookie: sandbox=of-another-caller; Path=/"),
        "close_before": always(Answer(200, cut=0, then="close")),
        "close_after": always(Answer(200, creates=True, cut=0, then="close")),
        "reset_after": always(Answer(200, creates=True, cut=0, then="reset")),
        "truncated": _truncated,
        "oversize": _oversize,
        "not_json": always(created(b'{"id": "in_1", "object": "invoice", "amount_due": 20')),
        "nan": lambda ask: created(ask.changed(amount_due=float("nan"))),
        "deep": _deep,
        "no_id": _no_id,
        "array": lambda ask: created(b"[" + ask.invoice + b"]"),
        "empty": always(created(b"")),
        "wrong_object": lambda ask: created(ask.changed(object="error")),
        "huge_header": lambda ask: created(ask.invoice, "X-Huge: " + "h" * 400_000),
        "expanded": _expanded,
        "other_customer": lambda ask: created(ask.changed(customer="cus_of_another_call")),
        "other_mode": lambda ask: created(ask.changed(livemode=not json.loads(ask.invoice)["livemode"])),
        "twice": _twice,
    }
    | {f"error_{answer.status}": always(answer) for answer in _ERRORS}
)
"""Every fault that both upstreams have."""
