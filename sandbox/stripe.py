"""Stripe on a real socket: as much of its API as raises an invoice, and never kinder than the original.

    POST /v1/invoices         Authorization: Bearer KEY (or Basic KEY:), Idempotency-Key, Stripe-Account, Stripe-Version
    GET  /v1/invoices         the invoices of a `customer`, the newest first, at most `limit` (10, up to 100) of them
    GET  /v1/invoices/{id}    an invoice made here; its lines at /v1/invoices/{id}/lines
    POST /v1/invoices/{id}/add_lines, /finalize, /send, /void, and DELETE /v1/invoices/{id}: see `sandbox.drafts`
    POST and GET /v1/invoiceitems, /v1/customers: see `sandbox.items`
    GET  /v2/core/approval_requests/{id}     what became of an action that waits for a person
    GET  /_sandbox            {"calls", "invoices", "connections", "replays", "approvals": {id: status}}
    POST /_sandbox            tests and people change what happens: see `Stripe.told`

What is played, and where that is said:

    rule                                                                         source
    a create makes an empty draft of 0: lines come by other calls; no number,    API reference, upgrade notes of
    no address, auto_advance off unless asked for                                2022-08-01
    under an older version a create without lines is 400                         upgrade notes of 2022-08-01
    invoice_no_customer_line_items, unless pending items are excluded
    a key's first answer is kept for 24 hours from its first call: also of an    Idempotent requests
    execution that failed (402, 404, 500, some 400)
    a refusal before execution keeps nothing: a parameter's 400, 401, 403,       Idempotent requests,
    409, 429, 503                                                                Advanced error handling
    other parameters: 400 idempotency_error; the first still at work: 409        Idempotent requests, Error codes
    idempotency_key_in_use (its type is not documented)
    a key belongs to the account and mode of the API key, or to the connected    Idempotent requests; modes: inferred
    account; it counts for POST alone, and has at most 255 characters
    Idempotency-Key, Original-Request, Idempotent-Replayed, Stripe-Should-Retry  recorded answers of 2022, 2023, 2026
    429 has Stripe-Rate-Limited-Reason, unless a lock timed out; no Retry-After  Rate limits
    a version that does not exist is 400; at /v2 one must be sent, and a         messages in public issues and code
    `.preview` for what is in preview (404 not_found)
    a restricted key without a right: 403 more_permissions_required, before      Restricted keys, messages in public
    anything is looked at                                                        code
    days_until_due and due_date go with collection_method=send_invoice, which    API reference
    needs one of them
    test and live data are apart; the answer says `livemode`                     API keys
    approvals                                                                    `sandbox.approvals`

Faults are those of `sandbox.faults`. One marked + there keeps the true answer under the key, 200 and the invoice,
whatever the client saw: the same key again gets that invoice. Where a repeat would have been answered with an invoice,
`fail_next` replaces that answer, too, and creates nothing. Different here, or only here:

    name               what the client gets                            under the key
    approval           approval_required, with `Rules.status`          nothing, or with `Rules.kept` that answer
    action_blocked     action_blocked, with `Rules.status`             the same
    error_429          429 rate_limit, without Retry-After             nothing
    error_500_created  + 500                                           the 500
    lock_429           429 lock_timeout                                nothing
    no_line_items      400 invoice_no_customer_line_items              the 400
    working         +  the invoice after `delay` seconds               in use for `delay` seconds by the clock, then
                                                                       the invoice
    retry_409          409 lock_timeout, Stripe-Should-Retry: true     nothing
    retry_503          503, Stripe-Should-Retry: true                  nothing
    no_retry_500       500, Stripe-Should-Retry: false                 the 500
    other_key       +  the invoice, with the Idempotency-Key of        the invoice
                       another call
    other_key_400      400, with the Idempotency-Key of another call   nothing

At a later step of an invoice the same faults come by `fail_at`, or for a customer `cus_fault_at_STEP_NAME`; a step
is add_lines, finalize, send, void, delete, item (an invoice item) or customer (a create). One marked + has carried it
out; of one that is held, that is done once it was approved.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
import urllib.parse
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from sandbox import drafts, faults, invoice, items, parameters
from sandbox.approvals import DECISIONS, Approval
from sandbox.drafts import Customer
from sandbox.faults import always, approval_required, error
from sandbox.server import Answer, Head
from sandbox.upstream import FORM, STATUS, Received, Upstream, form_of, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["DEFAULT_VERSION", "FAULTS", "KEPT_SECONDS", "STEPS", "Customer", "Received", "Rules", "Stripe"]

DEFAULT_VERSION: Final = "2022-11-15"
"""The account's own API version: that of the invoices made here."""
KEPT_SECONDS: Final = 24 * 60 * 60
"""How long a key keeps its answer."""

_PATH: Final = "/v1/invoices"
_ITEMS: Final = "/v1/invoiceitems"
_CUSTOMERS: Final = "/v1/customers"
_STEP: Final = re.compile(r"/v1/invoices/(in_[0-9A-Za-z]+)/(add_lines|finalize|send|void)")
_LINES: Final = re.compile(r"/v1/invoices/(in_[0-9A-Za-z]+)/lines")
_ONE: Final = re.compile(r"/v1/(invoiceitems|customers)/(\w+)")
STEPS: Final = ("add_lines", "finalize", "send", "void", "delete", "item", "customer")
"""What can fail beside the create of an invoice."""
_ACTIONS: Final = {
    **{step: f"invoice.{step}" for step in ("add_lines", "finalize", "send", "void", "delete")},
    "item": "invoiceitem.create",
    "customer": "customer.create",
}
"""What an approval calls them: as it calls the create of an invoice, since no page names these."""
_AT: Final = re.compile(rf"cus_fault_at_({'|'.join(STEPS)})_(.+)")
_INVOICE: Final = re.compile(r"/v1/invoices/(in_[0-9A-Za-z]+)")
_APPROVAL: Final = re.compile(r"/v2/core/approval_requests/(\w+)")
_LIVE: Final = re.compile(r"(sk|rk)_live_")
_FIRST_PREVIEW: Final = "2026-08-26.preview"
_EXCLUDED_SINCE: Final = "2022-08-01"
_VERSION: Final = re.compile(r"20\d\d-\d\d-\d\d(\.[a-z]+)?")
_MAX_KEY: Final = 255
_MOST_LISTED: Final = 100
_RETRY: Final = "Stripe-Should-Retry: true"
_NO_RETRY: Final = "Stripe-Should-Retry: false"
_NO_LINE_ITEMS: Final = error(400, "There is nothing to invoice this customer.", code="invoice_no_customer_line_items")
_OTHER_KEY: Final = "Idempotency-Key: of-another-call"
_BROKEN: Final = error(500, "Something went wrong here.", type="api_error")

_FAULTS: Final[Mapping[str, faults.Fault]] = MappingProxyType(
    {
        **faults.FAULTS,
        "error_429": always(
            error(429, "Too many calls.", "Stripe-Rate-Limited-Reason: global-rate", code="rate_limit")
        ),
        "error_500_created": always(replace(_BROKEN, creates=True)),
        "lock_429": always(error(429, "Another call holds this customer.", code="lock_timeout")),
        "no_line_items": always(_NO_LINE_ITEMS),
        "working": faults.FAULTS["slow"],
        "retry_409": always(error(409, "Another call holds this customer.", _RETRY, code="lock_timeout")),
        "retry_503": always(error(503, "Not available for now.", _RETRY, type="api_error")),
        "no_retry_500": always(replace(_BROKEN, headers=(_NO_RETRY,))),
        "other_key": lambda ask: faults.created(ask.invoice, _OTHER_KEY),
        "other_key_400": always(error(400, "The parameter is not one we know.", _OTHER_KEY, code="parameter_unknown")),
    }
)
# Faults of the execution: their answer is kept under the key.
_EXECUTED: Final = frozenset(
    ("error_402", "error_404", "error_500", "error_500_created", "no_line_items", "no_retry_500")
)
# Faults of a rule of the account.
_RULED: Final = frozenset(("approval", "action_blocked"))
_CREATE: Final = "invoice.create"

FAULTS: Final = frozenset(_FAULTS)
"""The names of all faults."""

_UNAUTHORIZED: Final = error(401, "The API key is not valid.", 'WWW-Authenticate: Basic realm="Stripe"')
_NO_VERSION: Final = error(400, "You did not provide an API version. You need to provide an API version header.")
_NOT_IN_PREVIEW: Final = faults.failure(
    404, "There is no such API method. For a preview feature, name a .preview version in Stripe-Version.", "not_found"
)
_NO_APPROVAL: Final = faults.failure(404, "There is no such approval request.", "not_found")
_NOT_A_FORM: Final = error(400, f"The content type must be {FORM}.")
_BAD_KEY: Final = error(400, f"An Idempotency-Key has 1 to {_MAX_KEY} characters.")
_NO_CUSTOMER: Final = error(400, "A customer is required.", param="customer", code="parameter_missing")
_OTHER_PARAMETERS: Final = error(
    400, "This Idempotency-Key came with other parameters before.", type="idempotency_error"
)
_IN_USE: Final = error(
    409, "A call with this Idempotency-Key is at work.", type="idempotency_error", code="idempotency_key_in_use"
)

_Pairs = tuple[tuple[str, str], ...]


class _Place(NamedTuple):
    """Where data and idempotency keys are: an account, "" that of the API keys, and live or test mode."""

    account: str
    live: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """How the account's rules hold or block an action, as far as Stripe does not document it."""

    status: int = 400
    """Of `approval_required` and `action_blocked`."""
    kept: bool = False
    """Whether these answers are kept under the idempotency key. If not, each repeat makes one more request."""
    seconds: float = 0
    """From the approval until Stripe carries the action out."""
    earlier: bool = False
    """Whether the states have the words of the earlier preview: `pending`, `approved`, `execution_succeeded`."""


class _Act(NamedTuple):
    """What a step does at Stripe, once it may."""

    step: str
    customer: str
    result: tuple[str, str]  # the kind and the id of what it makes or changes
    told: bytes
    carry_out: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What an idempotency key keeps."""

    parameters: _Pairs
    answer: Answer
    request: str  # the id of the call that made it
    since: float
    busy_until: float


@dataclass(slots=True)
class _Books:
    """Stripe's data, each by place and name."""

    keep: int
    answers: dict[tuple[_Place, str], _Kept] = field(default_factory=dict)  # by idempotency key
    invoices: dict[tuple[_Place, str], bytes] = field(default_factory=dict)
    approvals: dict[tuple[_Place, str], Approval] = field(default_factory=dict)
    customers: dict[tuple[_Place, str], dict[str, Any]] = field(default_factory=dict)
    items: dict[tuple[_Place, str], dict[str, Any]] = field(default_factory=dict)
    replays: int = 0

    def trim(self) -> None:
        entries: dict[Any, Any]
        for entries in (self.answers, self.invoices, self.approvals, self.customers, self.items):
            while len(entries) > self.keep:
                del entries[next(iter(entries))]


class Stripe(Upstream):
    """Stripe on 127.0.0.1; a port of 0 takes a free one. It keeps its port and its data over a restart.

    All API keys are of one account, but those that `accounts` gives another. `sk_live_` and `rk_live_` keys are of live
    mode, all others of test mode. `clock` gives the unix seconds by which idempotency keys and approvals age; `delay`
    is what the faults `slow` and `working` wait, in seconds; `rules` says how actions are held; `keep` is how many of
    the newest calls, invoices, approvals and idempotency keys are stored.
    """

    faults: ClassVar = _FAULTS

    def __init__(
        self,
        keys: Iterable[str] = ("sandbox-upstream-key",),
        port: int = 0,
        *,
        accounts: Mapping[str, str] = MappingProxyType({}),
        keep: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(keys, port, keep)
        self.rules = Rules()
        self._accounts = accounts
        self._rights: dict[str, frozenset[str]] = {}
        self._clock = clock
        self._ahead = 0.0
        self._books = _Books(keep)
        self._due: dict[str, deque[str]] = {step: deque() for step in STEPS}
        self.customers: dict[str, Customer] = {}
        """What is known of a customer by its id; of any other the usual."""
        self.prices: dict[str, tuple[int, str]] = {}
        """What one costs, in minor units, and the currency, by the id of the price."""

    @property
    def made(self) -> list[dict[str, Any]]:
        """Every invoice that was not deleted, with all of its lines, the oldest first."""
        return [json.loads(one) for one in tuple(self._books.invoices.values())]

    def fail_at(self, step: str, name: str, times: int = 1) -> None:
        """Answer the next calls of a later step with this fault instead."""
        if name not in self.faults:
            raise ValueError(f"there is no fault {name!r}")
        self._due[step].extend([name] * times)

    @property
    def replays(self) -> int:
        """How many calls got the answer that their idempotency key kept."""
        return self._books.replays

    @property
    def invoices(self) -> int:
        """How many invoices were created, those of approved actions included."""
        done = [one.status(self._now()) for one in tuple(self._books.approvals.values()) if one.action == _CREATE]
        return super().invoices + done.count("succeeded")

    @property
    def approvals(self) -> dict[str, str]:
        """The status of each approval request, the oldest first."""
        now = self._now()
        return {one.id: one.status(now) for one in tuple(self._books.approvals.values())}

    def restrict(self, key: str, *rights: str) -> None:
        """Let an API key do no more than this: `rak_invoice_write`, which includes `rak_invoice_read`, and the like."""
        self._rights[key] = frozenset(rights)

    def forward(self, seconds: float) -> None:
        """Move the clock on."""
        self._ahead += seconds
        self._carry_out()

    def _carry_out(self) -> None:
        """Do what was approved and is due. What cannot be done any more fails."""
        for at, one in tuple(self._books.approvals.items()):
            if one.carry_out is not None and one.decision == "approve" and one.due <= self._now():
                try:
                    one.carry_out()
                except drafts.RefusedError:
                    one = replace(one, decision="fail")  # noqa: PLW2901 - it failed
                self._books.approvals[at] = replace(one, carry_out=None)

    def decide(self, approval: str, decision: str) -> None:
        """Have a person `approve`, `reject` or `cancel` a request, have it `expire`, or `fail` once it is carried out.

        Raises ValueError if there is no such request or decision, or if it was decided before.
        """
        for at, one in tuple(self._books.approvals.items()):
            if one.id == approval:
                self._books.approvals[at] = one.decide(decision, self._now(), self.rules.seconds)
                self._carry_out()
                return
        raise ValueError(f"there is no approval request {approval!r}")

    def told(self, form: Mapping[str, str]) -> None:
        """Do what the form of a `POST /_sandbox` says.

            approve=apreq_…                     or reject, cancel, expire, fail: see `decide`
            fail_next=close_after               see `fail_next`
            forward=86400                       see `forward`
            status=403, kept=true, seconds=60, earlier=true        see `Rules`

        Raises ValueError for anything else.
        """
        for name, value in form.items():
            if name in DECISIONS:
                self.decide(value, name)
            elif name == "fail_next":
                self.fail_next(value)
            elif name == "forward":
                self.forward(float(value))
            elif name == "status" and value in {"400", "402", "403"}:
                self.rules = replace(self.rules, status=int(value))
            elif name == "seconds":
                self.rules = replace(self.rules, seconds=float(value))
            elif name in {"kept", "earlier"} and value in {"true", "false"}:
                self.rules = replace(self.rules, **{name: value == "true"})
            else:
                raise ValueError(f"nothing is known of {name}={value}")

    def forget(self) -> None:
        """Clear calls, counts, the faults still to come, invoices, approvals and idempotency keys."""
        super().forget()
        self._books = _Books(self._books.keep)
        self.forget_faults()

    def forget_faults(self) -> None:
        """Clear the faults still to come."""
        self._failures.clear()
        for due in self._due.values():
            due.clear()

    def _now(self) -> float:
        return self._clock() + self._ahead

    def _counts(self) -> dict[str, object]:
        return super()._counts() | {"replays": self.replays, "approvals": self.approvals}

    def _creates(self, head: Head) -> bool:
        return head.method == "POST" and head.path == _PATH

    def _answer(self, connection: int, head: Head, body: bytes) -> Answer:
        if head.path == STATUS and head.method == "POST":
            try:
                self.told(form_of(body))
            except ValueError as problem:
                return error(400, str(problem))
            return Answer(200, invoice.encode(self._counts()))
        return super()._answer(connection, head, body)

    def _refuse(self, status: int, sentence: str) -> Answer:
        answer = super()._refuse(status, sentence)
        return replace(answer, headers=(*answer.headers, f"Request-Id: {_request()}"))

    def _decide(self, head: Head, body: bytes) -> Answer:
        request = _request()
        self._carry_out()
        answer = self._reply(head, body, request)
        version = head.fields.get("stripe-version", "")
        lines = [
            f"Request-Id: {request}",
            f"Stripe-Version: {version if _VERSION.fullmatch(version) else DEFAULT_VERSION}",
        ]
        if account := head.fields.get("stripe-account"):
            lines.append(f"Stripe-Account: {account}")
        if head.method == "POST" and (key := head.fields.get("idempotency-key")) and _OTHER_KEY not in answer.headers:
            lines.append(f"Idempotency-Key: {key}")
        second = answer.second and replace(answer.second, headers=tuple(lines))
        return replace(answer, headers=(*answer.headers, *lines), second=second)

    def _reply(self, head: Head, body: bytes, request: str) -> Answer:
        if self._creates(head):
            return self._refusal(head) or self._create(head, body, request)
        if head.method == "POST" and (found := _STEP.fullmatch(head.path)):
            return self._refusal(head) or self._keyed(
                head, body, request, partial(self._step, head, found[1], found[2])
            )
        if head.method == "DELETE" and (found := _INVOICE.fullmatch(head.path)):
            refused = self._refused(head, "rak_invoice_write")
            return refused or self._step(head, found[1], "delete", {}, self._place(head))[0]
        if head.method == "POST" and head.path in {_ITEMS, _CUSTOMERS}:
            right, create = (
                ("rak_invoice_write", self._item) if head.path == _ITEMS else ("rak_customer_write", self._customer)
            )
            return self._refusal(head, right) or self._keyed(head, body, request, partial(create, head))
        if head.method == "GET":
            return self._look(head)
        return error(404, f"There is nothing at {head.method} {head.path}.")

    def _look(self, head: Head) -> Answer:
        if head.path == _CUSTOMERS:
            return self._refused(head, "rak_customer_read") or self._customers(head)
        if head.path == _PATH:
            return self._refused(head, "rak_invoice_read") or self._every(head)
        if found := _LINES.fullmatch(head.path):
            return self._refused(head, "rak_invoice_read") or self._listed(head, found[1])
        if found := _INVOICE.fullmatch(head.path):
            return self._refused(head, "rak_invoice_read") or self._retrieve(head, found[1])
        if found := _ONE.fullmatch(head.path):
            right = "rak_customer_read" if found[1] == "customers" else "rak_invoice_read"
            return self._refused(head, right) or self._one(head, found[1], found[2])
        if found := _APPROVAL.fullmatch(head.path):
            return self._refused(head, "approval_requests.read") or self._approval(head, found[1])
        return error(404, f"There is nothing at {head.method} {head.path}.")

    def _refusal(self, head: Head, right: str = "rak_invoice_write") -> Answer | None:
        if refused := self._refused(head, right):
            return refused
        if head.media != FORM:
            return _NOT_A_FORM
        if not 0 < len(head.fields.get("idempotency-key", "none")) <= _MAX_KEY:
            return _BAD_KEY
        return None

    def _refused(self, head: Head, right: str) -> Answer | None:
        """The refusal of an API key, of a version, or for want of a right."""
        key, version = _key(head), head.fields.get("stripe-version")
        if key not in self._keys:
            return _UNAUTHORIZED
        if version is not None and not _VERSION.fullmatch(version):
            return error(400, f"Invalid Stripe API version: {version}")
        rights = self._rights.get(key)
        if rights is None or right in rights or re.sub("read$", "write", right) in rights:
            return None
        shown = f"{key[:8]}{'*' * 20}{key[-4:]}"
        message = f"The key {shown!r} has no permission for this. Having the {right!r} permission would allow it."
        return error(403, message, code="more_permissions_required")

    def _place(self, head: Head) -> _Place:
        key = _key(head)
        return _Place(head.fields.get("stripe-account") or self._accounts.get(key, ""), _LIVE.match(key) is not None)

    def _retrieve(self, head: Head, name: str) -> Answer:
        if found := parameters.look_up_problem(name for name, _ in _pairs(head.query.encode())):
            return error(400, **found)
        place = self._place(head)
        if made := self._books.invoices.get((place, name)):
            return Answer(200, _shown(json.loads(made)))
        message = f"There is no invoice {name!r}."
        if self._books.invoices.get((place._replace(live=not place.live), name)):
            message += f" One exists in {'test' if place.live else 'live'} mode, and this key is of the other."
        return error(404, message, param="invoice", code="resource_missing")

    def _one(self, head: Head, kind: str, name: str) -> Answer:
        """An invoice item or a customer."""
        books = self._books.customers if kind == "customers" else self._books.items
        found = books.get((self._place(head), name))
        if found is None:
            return error(404, f"There is nothing at {name!r}.", param="id", code="resource_missing")
        return Answer(200, invoice.encode(found))

    def _approval(self, head: Head, name: str) -> Answer:
        version = head.fields.get("stripe-version")
        if version is None:
            return _NO_VERSION
        if not version.endswith(".preview") or version < _FIRST_PREVIEW:
            return _NOT_IN_PREVIEW
        found = self._books.approvals.get((self._place(head), name))
        if found is None:
            return _NO_APPROVAL
        return Answer(200, invoice.encode(found.shown(self._now(), earlier=self.rules.earlier)))

    def _create(self, head: Head, body: bytes, request: str) -> Answer:
        return self._keyed(head, body, request, partial(self._begin, head))

    def _keyed(
        self,
        head: Head,
        body: bytes,
        request: str,
        carry_out: Callable[[Mapping[str, str], _Place], tuple[Answer, Answer | None, float]],
    ) -> Answer:
        """Answer a POST: with what its idempotency key keeps, or by carrying it out."""
        books, now, place = self._books, self._now(), self._place(head)
        given = _pairs(head.query.encode()) + _pairs(body)
        pairs = (("", head.path), *sorted(given))
        name = head.fields.get("idempotency-key", "")
        kept = books.answers.get((place, name))
        if kept is not None and now - kept.since < KEPT_SECONDS:
            return self._repeat(books, kept, pairs, _key(head), now)
        answer, under_key, busy = carry_out(dict(given), place)
        if under_key is not None and name:
            books.answers[place, name] = _Kept(pairs, under_key, request, now, now + busy)
            answer = replace(answer, headers=(*answer.headers, f"Original-Request: {request}"))
        books.trim()
        return answer

    def _begin(self, head: Head, form: Mapping[str, str], place: _Place) -> tuple[Answer, Answer | None, float]:
        if found := parameters.problem(form):
            return error(400, **found), None, 0
        if not form.get("customer"):
            return _NO_CUSTOMER, None, 0
        made = invoice.fresh(form, empty=True, live=place.live)
        if customer := self.customers.get(form["customer"]):
            made = invoice.encode(drafts.draft(json.loads(made), form, customer))
        answer, under_key, busy = self._execute(head, form, made, place)
        if answer.creates:
            self._books.invoices[place, json.loads(made)["id"]] = made
        return answer, under_key, busy

    def _step(
        self, head: Head, name: str, step: str, form: Mapping[str, str], place: _Place
    ) -> tuple[Answer, Answer | None, float]:
        """Carry out one step of an invoice, or fail to."""
        try:
            made, told = self._changed(place, name, step, form)
        except drafts.RefusedError as refused:
            return refused.answer, refused.answer if refused.executed else None, 0

        def carry_out() -> None:
            """As things are by then."""
            made, _ = self._changed(place, name, step, form)
            if step == "delete":
                del self._books.invoices[place, name]
            else:
                self._books.invoices[place, name] = invoice.encode(made)

        return self._unless(_Act(step, made["customer"], ("invoice", name), told, carry_out), head)

    def _item(self, head: Head, form: Mapping[str, str], place: _Place) -> tuple[Answer, Answer | None, float]:
        """Create an invoice item, and put it on the invoice that it names."""
        name = form.get("invoice")

        def billed() -> dict[str, Any] | None:
            """The invoice with the item on it."""
            if not name:
                return None
            found = self._books.invoices.get((place, name))
            if found is None:
                drafts.refuse(f"There is no invoice {name!r}.", "invoice", "resource_missing")
            made: dict[str, Any] = json.loads(found)
            items.added(made, new, self.customers.get(made["customer"], Customer()))
            return made

        def carry_out() -> None:
            made = billed()
            if made is not None:
                self._books.invoices[place, made["id"]] = invoice.encode(made)
            self._books.items[place, new["id"]] = new

        try:
            new = items.item(form, self.prices, self._now(), live=place.live)
            billed()
        except drafts.RefusedError as refused:
            return refused.answer, refused.answer if refused.executed else None, 0
        result = ("invoiceitem", new["id"])
        return self._unless(_Act("item", form["customer"], result, invoice.encode(new), carry_out), head)

    def _customer(self, head: Head, form: Mapping[str, str], place: _Place) -> tuple[Answer, Answer | None, float]:
        """Put a customer on file."""
        try:
            new = items.customer(form, self._now(), live=place.live)
        except drafts.RefusedError as refused:
            return refused.answer, refused.answer if refused.executed else None, 0

        def carry_out() -> None:
            self._books.customers[place, new["id"]] = new
            self.customers[new["id"]] = Customer(email=new["email"], owes=new["balance"])

        return self._unless(_Act("customer", "", ("customer", new["id"]), invoice.encode(new), carry_out), head)

    def _customers(self, head: Head) -> Answer:
        place = self._place(head)
        every = [one for (at, _), one in tuple(self._books.customers.items()) if at == place]
        try:
            return Answer(200, invoice.encode(items.found(form_of(head.query.encode()), every)))
        except drafts.RefusedError as refused:
            return refused.answer

    def _unless(self, act: _Act, head: Head) -> tuple[Answer, Answer | None, float]:
        """Carry an act out and answer so, unless a fault is due. See `_execute` for what that is."""
        true, fault = Answer(200, act.told, (_NO_RETRY,)), self._step_fault(act.step, act.customer)
        if fault in _RULED:
            answer = self._rule(fault, self._place(head), _ACTIONS[act.step], act.result, act.carry_out)
            return answer, answer if self.rules.kept else None, 0
        answer = true if fault is None else self._fail(fault, act.told, _key(head))
        if fault is None or answer.creates:
            act.carry_out()
            answer = replace(answer, creates=False)
            return answer, answer if fault in _EXECUTED else true, self.delay if fault == "working" else 0
        return answer, answer if fault in _EXECUTED else None, 0

    def _changed(self, place: _Place, name: str, step: str, form: Mapping[str, str]) -> tuple[dict[str, Any], bytes]:
        """Return an invoice as one step changes it, and what that answers. Raises :class:`drafts.RefusedError`."""
        found = self._books.invoices.get((place, name))
        if found is None:
            drafts.missing(name)
        made: dict[str, Any] = json.loads(found)
        customer, now = self.customers.get(made["customer"], Customer()), self._now()
        match step:
            case "add_lines":
                drafts.add_lines(made, form, customer, self.prices)
            case "finalize":
                drafts.finalized(made, form, customer, now)
            case "send":
                drafts.sent(made, customer, now)
            case "void":
                drafts.voided(made, now)
            case _:
                return made, invoice.encode(drafts.deleted(made))
        return made, _shown(made)

    def _step_fault(self, step: str, customer: str) -> str | None:
        if self._due[step]:
            return self._due[step].popleft()
        match = _AT.fullmatch(customer)
        return match[2] if match is not None and match[1] == step else None

    def _listed(self, head: Head, name: str) -> Answer:
        found = self._books.invoices.get((self._place(head), name))
        if found is None:
            return error(404, f"There is no invoice {name!r}.", param="invoice", code="resource_missing")
        limit = form_of(head.query.encode()).get("limit", "10")
        return Answer(200, invoice.encode(drafts.listed(json.loads(found), int(limit))))

    def _every(self, head: Head) -> Answer:
        query, place = form_of(head.query.encode()), self._place(head)
        for name in query:
            if name not in {"customer", "limit"}:
                return error(400, f"There is no parameter {name}.", param=name, code="parameter_unknown")
        limit = query.get("limit", "10")
        if not limit.isdecimal() or not 1 <= int(limit) <= _MOST_LISTED:
            return error(400, f"limit must be between 1 and {_MOST_LISTED}.", param="limit")
        every = {name: one for (at, name), one in tuple(self._books.invoices.items()) if at == place}
        wanted = query.get("customer")
        # What does not hold the text is another customer's. To decode thousands takes a quarter of a second.
        likely = (one for one in every.values() if wanted is None or wanted.encode() in one)
        shown = [drafts.shown(made) for made in map(json.loads, likely) if wanted in {None, made["customer"]}][::-1]
        more = len(shown) > int(limit)
        listed = {"object": "list", "url": _PATH, "has_more": more, "data": shown[: int(limit)]}
        return Answer(200, invoice.encode(listed))

    def _execute(
        self, head: Head, form: Mapping[str, str], made: bytes, place: _Place
    ) -> tuple[Answer, Answer | None, float]:
        """The answer; the answer to keep under the idempotency key; and the seconds until it is there."""
        customer, refused = form["customer"], None
        if customer == "cus_missing":
            refused = error(400, f"There is no customer {customer!r}.", param="customer", code="resource_missing")
        elif _takes_items(head, form):  # of which there are none here
            refused = _NO_LINE_ITEMS
        if refused is not None:
            return refused, refused, 0
        true = Answer(200, made, (_NO_RETRY,))
        fault = self._fault(customer)
        if fault is None:
            return replace(true, creates=True), true, 0
        if fault in _RULED:
            name = json.loads(made)["id"]
            make = partial(self._books.invoices.__setitem__, (place, name), made)
            answer = self._rule(fault, place, _CREATE, ("invoice", name), make)
            return answer, answer if self.rules.kept else None, 0
        answer = self._fail(fault, made, _key(head))
        if fault in _EXECUTED:
            return answer, replace(answer, creates=False), 0
        return answer, true if answer.creates else None, self.delay if fault == "working" else 0

    def _rule(
        self, fault: str, place: _Place, action: str, result: tuple[str, str], carry_out: Callable[[], None]
    ) -> Answer:
        """Hold or block an action by a rule of the account. ``result`` is the kind and the id of what comes of it."""
        if fault == "action_blocked":
            return error(self.rules.status, "A rule of this account blocks it.", code="action_blocked")
        name, (of, made) = invoice.name("apreq_", 24), result
        held = Approval(name, made, self._now(), livemode=place.live, action=action, of=of, carry_out=carry_out)
        self._books.approvals[place, name] = held
        return approval_required(self.rules.status, held.error(earlier=self.rules.earlier))

    def _repeat(self, books: _Books, kept: _Kept, pairs: _Pairs, key: str, now: float) -> Answer:
        if pairs != kept.parameters:
            return _OTHER_PARAMETERS
        if now < kept.busy_until:
            return _IN_USE
        answer = kept.answer
        # A rule holds what is executed, and a repeat is not.
        ruled = bool(self._failures) and self._failures[0] in _RULED
        if answer.status == 200 and not ruled and (fault := self._fault("")):
            answer = self._fail(fault, answer.body, key)
            if not answer.creates:
                return answer
        books.replays += 1
        lines = ("Idempotent-Replayed: true", f"Original-Request: {kept.request}")
        return replace(answer, creates=False, headers=(*answer.headers, *lines))


def _shown(made: Mapping[str, Any]) -> bytes:
    return invoice.encode(drafts.shown(made))


def _takes_items(head: Head, form: Mapping[str, str]) -> bool:
    """Whether a create takes the customer's pending items and wants some: the default until an API version."""
    version = head.fields.get("stripe-version", DEFAULT_VERSION)
    return version < _EXCLUDED_SINCE and "pending_invoice_items_behavior" not in form


def _request() -> str:
    return invoice.name("req_", 14)


def _key(head: Head) -> str:
    """The API key of a request, or an empty text."""
    scheme, _, value = head.fields.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("latin-1").partition(":")[0]
        except binascii.Error:
            return ""
    return ""


def _pairs(encoded: bytes) -> _Pairs:
    return tuple(urllib.parse.parse_qsl(encoded.decode("utf-8", "replace"), keep_blank_values=True))


if __name__ == "__main__":
    # A separate process may run for long, so it keeps less.
    run("sandbox.stripe", lambda port: Stripe(port=port, keep=10_000))
