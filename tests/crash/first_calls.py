"""Calls of every kind, made all at once: what a cold instance gets when everybody wakes up."""

from __future__ import annotations

import base64
import hmac
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import standardwebhooks

from console.pages import PAGES
from console.portal.files import SITE
from sandbox.__main__ import SECRET, SIGNING_SECRET, UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from sandbox.stripe import Stripe
from tests.conftest import FORM, sha256

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from sandbox.google import Google
    from sandbox.secret_manager import SecretManager
    from sandbox.server import Answer, Head

JSON: Final = "application/json"
AT_APPGREGATOR: Final = "/stripe/invoices/?name=ft-4&connection_name=stripe-1"
AT_STRIPE: Final = "/stripe/{}?name=acme&connection_name=stripe"
STRIPE_SECRET: Final = "projects/sandbox/secrets/stripe-key"
WEBHOOK, SIGNED = "projects/sandbox/secrets/webhook", "projects/sandbox/secrets/signed"
HMAC_SECRET: Final = "It is a secret to everybody"
CALLERS: Final = [f"csk_of_a_cold_start_{number}" for number in range(6)]
#: One more has a limit of so many calls, and another a budget of so many invoices.
FEW, FEW_KEY, AFFORDED, POOR_KEY = 5, "csk_of_few_calls", 3, "csk_of_little_money"
#: Seconds: at each multiple the upstreams' answers leave, all at once.
TOGETHER: Final = 0.2
#: Seconds for a call, with the start before it, on a machine that is busy with tests.
PATIENCE: Final = 60.0
#: What a door may say of a caller or of strangers who ask ten times in a second.
OFTEN: Final = (200, 429)

_FIELDS: Final = (
    "status", "amount_due", "currency", "customer", "description", "number", "hosted_invoice_url", "metadata",
    "lines.data.amount", "lines.data.price.unit_amount", "lines.data.period.start", "total", "due_date", "created",
    "status_transitions.finalized_at", "livemode",
)  # fmt: skip


# ---------------------------------------------------------------- the world


def _together(answer: Answer) -> Answer:
    """Hold an answer back until others leave, too, so that many threads read one in the same moment."""
    late = answer.after or answer.pace
    return answer if late else replace(answer, after=TOGETHER - time.monotonic() % TOGETHER)


class _Appgregator(Appgregator):
    def _answer(self, connection: int, head: Head, body: bytes) -> Answer:
        return _together(super()._answer(connection, head, body))


class _Stripe(Stripe):
    def _answer(self, connection: int, head: Head, body: bytes) -> Answer:
        answer = super()._answer(connection, head, body)
        return answer if "make-ready" in head.fields else _together(answer)


class World:
    """What the function stands before: two upstreams, and the secrets and certificates that it reads."""

    def __init__(self, google: Google, secret_manager: SecretManager) -> None:
        self.google, self.secret_manager = google, secret_manager
        self.appgregator, self.stripe = _Appgregator([UPSTREAM_KEY], None), _Stripe([UPSTREAM_KEY])
        self.give(SECRET, STRIPE_SECRET)
        secret_manager.add(WEBHOOK, SIGNING_SECRET.encode())
        secret_manager.add(SIGNED, HMAC_SECRET.encode())

    def give(self, *secrets: str, key: str = UPSTREAM_KEY) -> None:
        """Let the upstreams take this key and no other, and put it where it is read."""
        self.appgregator.accept(key)
        self.stripe.accept(key)
        for secret in secrets:
            self.secret_manager.add(secret, key.encode())

    @property
    def reached(self) -> int:
        """How many creates have reached the upstreams."""
        return len(self.appgregator.calls) + len(self.stripe.calls)

    def document(self, lot: random.Random, name: str) -> dict[str, Any]:
        """Return a policy in which each grant of each caller has a list of fields of its own.

        ``name`` tells callers from those of other starts, so that none has used up anything.
        """

        def grant(connection: str, operation: str, *parameters: str, **more: Any) -> dict[str, Any]:
            fields = ["id", *lot.sample(_FIELDS, lot.randrange(2, 8)), "audit_id"]
            if operation.startswith(("customers", "invoiceitems")):
                fields = ["data.id"] if operation == "customers.list" else ["id"]
            named = {**dict.fromkeys(parameters), **more.pop("named", {})}
            return {"connection": connection, "operation": operation, "parameters": named, "response": fields, **more}

        def caller(key: str, *grants: dict[str, Any], **more: Any) -> dict[str, Any]:
            credentials = [{"key": {"id": "k1", "sha256": sha256(key)}}, *more.pop("credentials", ())]
            return {"owner": "tests", "credentials": credentials, "limits": ["9999/minute"], "grants": grants, **more}

        order, terms = "metadata[order_id]", {"collection_method": {"fixed": "send_invoice"}, "days_until_due": None}
        callers = {
            f"few-{name}": caller(FEW_KEY, grant("a", "invoices.create", "customer", order), limits=[f"{FEW}/hour"]),
            f"poor-{name}": caller(
                POOR_KEY,
                grant("s", "invoices.issue", "customer", order, named=terms, amount={"max": 1000, "currency": ["usd"]}),
                budget={"currency": "usd", "amount": AFFORDED * 1000, "per": "day"},
            ),
        }
        signatures: dict[int, Any] = {
            0: f"{WEBHOOK}/versions/latest",
            1: {
                "secret": f"{SIGNED}/versions/latest", "scheme": "hmac", "header": "X-Signature", "encoding": "hex",
                "connection": "a",
            },
        }  # fmt: skip
        for number, key in enumerate(CALLERS):
            amount = {"max": 1000 + number, "currency": ["usd"]}
            callers[f"app-{number}-{name}"] = caller(
                key,
                grant("a", "invoices.create", "customer", order, named={"description": {"max_length": 9 + number}}),
                grant("s", "invoices.create", "customer", "currency", order, stamp=f"metadata[by_{number}]"),
                grant("s", "invoices.issue", "customer", order, named=terms, amount=amount),
                *(grant("s", f"invoices.{step}", "invoice", amount=amount) for step in ("finalize", "send")),
                *(grant("s", f"invoices.{step}", "invoice") for step in ("retrieve", "void")),
                grant("s", "invoiceitems.create", "customer", "invoice", "amount", "currency"),
                grant("s", "customers.create", "email"),
                grant("s", "customers.list", "email"),
                credentials=[
                    {"google": f"app-{number}@acme.iam.gserviceaccount.com"},
                    *([{"webhook": signatures[number]}] if number in signatures else []),
                ],
            )
        connections = {
            "a": ("ft-4", "stripe-1", "appgregator", self.appgregator.origin, SECRET),
            "s": ("acme", "stripe", "stripe", self.stripe.origin, STRIPE_SECRET),
        }
        return {
            "connections": {
                label: {
                    "name": label_of, "connection_name": account, "upstream": upstream, "origin": origin,
                    "secret": f"{secret}/versions/latest",
                }
                for label, (label_of, account, upstream, origin, secret) in connections.items()
            },
            "callers": callers,
        }  # fmt: skip

    def at_stripe(self, method: str, path: str, **form: str) -> dict[str, Any]:
        """Make something ready at Stripe itself."""
        connection = HTTPConnection(self.stripe.origin.rpartition("/")[2], timeout=PATIENCE)
        headers = {"Authorization": f"Bearer {UPSTREAM_KEY}", "Content-Type": FORM, "Make-Ready": "1"}
        connection.request(method, path, urlencode(form), headers)
        made: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return made

    def ready(self, *, finalized: bool = False) -> str:
        """Make a draft with one item, or a finalized invoice; return its id."""
        terms = {"currency": "usd", "collection_method": "send_invoice", "days_until_due": "30"}
        order = {"metadata[order_id]": f"ready-{os.urandom(6).hex()}"}
        name: str = self.at_stripe("POST", "/v1/invoices", customer="cus_1", **terms, **order)["id"]
        self.at_stripe("POST", "/v1/invoiceitems", customer="cus_1", currency="usd", invoice=name, amount="900")
        if finalized:
            self.at_stripe("POST", f"/v1/invoices/{name}/finalize")
        return name


# ---------------------------------------------------------------- the calls


@dataclass(frozen=True)
class Call:
    """A call, and what its caller may be answered."""

    kind: str
    target: str
    allowed: Sequence[int] = (200,)
    method: str = "POST"
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    order: str = ""
    """What it raises an invoice for, if it does."""
    kept: bool = False
    """Whether its answer is given again."""

    @property
    def written(self) -> bytes:
        """What goes over the wire."""
        head = [f"{self.method} {self.target} HTTP/1.1", "Host: countersign.example"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*head, f"Content-Length: {len(self.body)}", "", ""]).encode() + self.body


@dataclass(frozen=True)
class Answered:
    """What came back: status 0 and why, if nothing did."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def calls(world: World, lot: random.Random, name: str, count: int) -> list[Call]:
    """Draw some calls: an invoice as often as anything else, and always more than fit of what fits a few times.

    ``name`` tells their orders from those of other starts.
    """
    drawings = [Drawing(world, lot, f"{name}-{number}") for number in range(count)]
    kinds = ["few"] * (FEW + 2) + ["poor"] * (AFFORDED + 2)
    kinds += [lot.choice([*lot.choice([one.invoices(), one.others()])]) for one in drawings[len(kinds) :]]
    lot.shuffle(kinds)
    drawn = [one.call(kind) for one, kind in zip(drawings, kinds, strict=True)]
    first = next((call for call in drawn if call.kind == "same"), None)
    return [first if first is not None and call.kind == "same" else call for call in drawn]


class Drawing:
    """What may be drawn for one call, of ``order``, by its kind."""

    def __init__(self, world: World, lot: random.Random, order: str) -> None:
        self.world, self.lot, self.order = world, lot, order
        self.who = lot.randrange(len(CALLERS))
        self.by_key = {"x-api-key": CALLERS[self.who]}
        self.keyed = {"Idempotency-Key": order}
        self.form = {"customer": "cus_1", "metadata[order_id]": order}
        self.lines = {**self.form, "currency": "usd", "days_until_due": "30", "lines[0][amount]": "1000"}

    def call(self, kind: str) -> Call:
        """Make it."""
        return replace({**self.invoices(), **self.others(), **self._bounded()}[kind](), kind=kind)

    def others(self) -> Mapping[str, Callable[[], Call]]:
        """What is no invoice of this order."""
        return {**self._steps(), **self._doors(), **self._refused()}

    def invoices(self) -> Mapping[str, Callable[[], Call]]:
        """By each credential at Appgregator, and both ways at Stripe."""
        key, order = CALLERS[self.who], {"order": self.order, "kept": True}
        as_json = json.dumps({"customer": "cus_1", "metadata": {"order_id": self.order}}).encode()
        password = base64.b64encode(f"app:{key}".encode()).decode()
        body = urlencode(self.form)
        digest = hmac.new(HMAC_SECRET.encode(), body.encode(), "sha256").hexdigest()

        def by(headers: Mapping[str, str], body: str = body, target: str = AT_APPGREGATOR) -> Call:
            return self._form(target, body, {**self.keyed, **headers}, **order)

        return {
            "plain": lambda: by(self.by_key),
            "JSON": lambda: replace(by({**self.by_key, "Content-Type": JSON}), body=as_json),
            "bearer": lambda: by({"Authorization": f"Bearer {key}"}),
            "password": lambda: by({"Authorization": f"Basic {password}"}),
            "google": lambda: by({"Authorization": f"Bearer {self._token()}"}),
            "webhook": lambda: self._form(AT_APPGREGATOR, body, self._signed(body), **order),
            "hmac": lambda: self._form(AT_APPGREGATOR, body, {"X-Signature": digest}, **order),
            "same": lambda: replace(by(self.by_key), allowed=(200, 503)),  # it is still running
            "draft": lambda: by(self.by_key, f"{body}&currency=usd", AT_STRIPE.format("invoices/")),
            "issue": lambda: by(self.by_key, urlencode(self.lines), AT_STRIPE.format("invoices/issue")),
        }

    def _steps(self) -> Mapping[str, Callable[[], Call]]:
        """What else is done at Stripe."""
        customer = f"email={self.order}@acme.example"

        def at(path: str, body: str = "") -> Call:
            return self._form(AT_STRIPE.format(path), body, {**self.by_key, **self.keyed}, kept=True)

        def read(path: str, query: str = "") -> Call:
            return Call("", f"{AT_STRIPE.format(path)}{query}", method="GET", headers=self.by_key)

        ready = self.world.ready
        return {
            "item": lambda: at("invoiceitems/", f"customer=cus_1&invoice={ready()}&amount=100&currency=usd"),
            "finalize": lambda: at(f"invoices/{ready()}/finalize"),
            "send": lambda: at(f"invoices/{ready()}/send"),
            "void": lambda: at(f"invoices/{ready(finalized=True)}/void"),
            "customer": lambda: at("customers/", customer),
            "customers": lambda: read("customers/", f"&{customer}"),
            "retrieve": lambda: read(f"invoices/{ready()}"),
        }

    def _doors(self) -> Mapping[str, Callable[[], Call]]:
        """What a caller asks about itself, and what everybody may ask."""
        lines, assets = urlencode(self.lines), sorted(SITE.get().assets)

        def door(target: str, headers: Mapping[str, str] | None = None, **more: Any) -> Call:
            return Call("", target, **{"allowed": OFTEN, "method": "GET", "headers": headers or {}, **more})

        return {
            "me": lambda: door("/-/me", self.by_key),
            "key": lambda: door(f"/-/me?key={self.order}", self.by_key),
            "recipes": lambda: door("/-/recipes", self.by_key, method="POST", body=b'{"fields": {}}'),
            "openapi": lambda: door("/openapi.json", self.by_key),
            "tried": lambda: replace(
                self._form(f"{AT_STRIPE.format('invoices/issue')}&validate_only=true", lines, self.by_key | self.keyed),
                allowed=OFTEN,
            ),
            "openapi of strangers": lambda: door("/openapi.json"),
            "ready": lambda: door("/-/ready", allowed=(200, 503)),  # the first look is not over yet
            "health": lambda: door("/-/health"),
            "portal": lambda: door("/portal"),
            "asset": lambda: door(f"/portal/{SITE.get().digest}/{self.lot.choice(assets)}"),
            "page": lambda: door(f"/portal/docs/{self.lot.choice(PAGES)}"),
        }

    def _bounded(self) -> Mapping[str, Callable[[], Call]]:
        """What fits only a few times."""

        def by(key: str, target: str, form: Mapping[str, str]) -> Call:
            headers = {**self.keyed, "x-api-key": key}
            return self._form(target, urlencode(form), headers, order=self.order, allowed=OFTEN)

        return {
            "few": lambda: by(FEW_KEY, AT_APPGREGATOR, self.form),
            "poor": lambda: by(POOR_KEY, AT_STRIPE.format("invoices/issue"), self.lines),
        }

    def _refused(self) -> Mapping[str, Callable[[], Call]]:
        """What nobody gets."""

        def asked(status: int, target: str = AT_APPGREGATOR, key: str = CALLERS[self.who], **form: str) -> Call:
            body = urlencode({**self.form, **form})
            return self._form(target, body, {**self.keyed, "x-api-key": key}, allowed=(status,))

        return {
            "nobody": lambda: asked(401, key="csk_of_nobody"),
            "nowhere": lambda: asked(404, "/nowhere"),
            "parameter": lambda: asked(400, transfer_data="acct_1"),
            "key in the address": lambda: asked(400, f"{AT_APPGREGATOR}&api_key={CALLERS[self.who]}"),
            "declined": lambda: asked(402, AT_STRIPE.format("invoices/"), customer="cus_fault_error_402"),
        }

    def _form(self, target: str, body: str, headers: Mapping[str, str], **more: Any) -> Call:
        return Call("", target, body=body.encode(), headers={"Content-Type": FORM, **headers}, **more)

    def _token(self) -> str:
        return self.world.google.mint(f"app-{self.who}@acme.iam.gserviceaccount.com")

    def _signed(self, body: str) -> dict[str, str]:
        moment = datetime.fromtimestamp(int(time.time()), UTC)
        signature = standardwebhooks.Webhook(SIGNING_SECRET).sign(self.order, moment, body)
        stamp = {"webhook-id": self.order, "webhook-timestamp": f"{moment.timestamp():.0f}"}
        return {**stamp, "webhook-signature": signature}


def at_once(port: int, asked: Sequence[Call]) -> list[Answered]:
    """Make calls all at once, each on a connection of its own, as soon as somebody listens."""
    with ThreadPoolExecutor(len(asked)) as callers:
        return list(callers.map(partial(_ask, port), asked))


def _ask(port: int, call: Call) -> Answered:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
    with connection:
        try:
            connection.sendall(call.written)
            response = HTTPResponse(connection, method=call.method)
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answered(response.status, headers, response.read())
        except (OSError, HTTPException) as error:
            return Answered(0, {}, repr(error).encode())
