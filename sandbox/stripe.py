"""Stripe on a real socket: as much of its API v1 as raises an invoice, deduplicates a repeat, and fails on request.

    POST /v1/invoices         Authorization: Bearer KEY (or Basic KEY:), Idempotency-Key, Stripe-Account, Stripe-Version
    GET  /v1/invoices/{id}    an invoice made here
    GET  /_sandbox            {"calls", "invoices", "connections", "replays"}

An invoice is in live mode where the API key begins with `sk_live_` or `rk_live_`, otherwise in test mode.

Idempotency, as Stripe documents it for v1. For 24 hours an account's key keeps the status and body of its first call,
errors of the execution (402, 404, 500) included. The same key again gets them with `Idempotent-Replayed: true`; with
other parameters a 400 `idempotency_error`; while the first is running a 409 `idempotency_key_in_use`. A refusal before
execution (400 of a parameter, 401, 403, 409, 429, 503) keeps nothing under the key.

Faults are those of `sandbox.faults`. One marked + there keeps the true answer under the key, 200 and the invoice,
whatever the client saw: the same key again gets that invoice. Where a repeat would have been answered with an invoice,
`fail_next` replaces that answer, too, and creates nothing. Different here, or only here:

    name               what the client gets                            under the key
    error_429          429 rate_limit, without Retry-After             nothing
    error_500_created  + 500                                           the 500
    working         +  the invoice after `delay` seconds               in use for `delay` seconds by the clock, then
                                                                       the invoice
    retry_409          409 lock_timeout, Stripe-Should-Retry: true     nothing
    retry_503          503, Stripe-Should-Retry: true                  nothing
    no_retry_500       500, Stripe-Should-Retry: false                 the 500
    other_key       +  the invoice, with the Idempotency-Key of        the invoice
                       another call
    other_key_400      400, with the Idempotency-Key of another call   nothing
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
import urllib.parse
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final

from sandbox import faults, invoice, parameters
from sandbox.faults import always, error
from sandbox.server import Answer, Head
from sandbox.upstream import FORM, Received, Upstream, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["DEFAULT_VERSION", "FAULTS", "KEPT_SECONDS", "Received", "Stripe"]

DEFAULT_VERSION: Final = "2022-11-15"
"""The account's own API version: that of the invoices made here."""
KEPT_SECONDS: Final = 24 * 60 * 60
"""How long a key keeps its answer."""

_PATH: Final = "/v1/invoices"
_INVOICE: Final = re.compile(r"/v1/invoices/(in_[0-9A-Za-z]+)")
_VERSION: Final = re.compile(r"20\d\d-\d\d-\d\d(\.[a-z]+)?")
_LIVE: Final = re.compile("[sr]k_live_")
_MAX_KEY: Final = 255
_RETRY: Final = "Stripe-Should-Retry: true"
_NO_RETRY: Final = "Stripe-Should-Retry: false"
_OTHER_KEY: Final = "Idempotency-Key: of-another-call"
_BROKEN: Final = error(500, "Something went wrong here.", type="api_error")

_FAULTS: Final[Mapping[str, faults.Fault]] = MappingProxyType(
    {
        **faults.FAULTS,
        "error_429": always(error(429, "Too many calls.", code="rate_limit")),
        "error_500_created": always(replace(_BROKEN, creates=True)),
        "working": faults.FAULTS["slow"],
        "retry_409": always(error(409, "Another call holds this customer.", _RETRY, code="lock_timeout")),
        "retry_503": always(error(503, "Not available for now.", _RETRY, type="api_error")),
        "no_retry_500": always(replace(_BROKEN, headers=(_NO_RETRY,))),
        "other_key": lambda ask: faults.created(ask.invoice, _OTHER_KEY),
        "other_key_400": always(error(400, "The parameter is not one we know.", _OTHER_KEY, code="parameter_unknown")),
    }
)
# Faults of the execution: their answer is kept under the key.
_EXECUTED: Final = frozenset(("error_402", "error_404", "error_500", "error_500_created", "no_retry_500"))

FAULTS: Final = frozenset(_FAULTS)
"""The names of all faults."""

_UNAUTHORIZED: Final = error(401, "The API key is not valid.", 'WWW-Authenticate: Basic realm="Stripe"')
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
    """Stripe's data. An account is "", that of the API key, or the one that Stripe-Account names."""

    keep: int
    answers: dict[tuple[str, str], _Kept] = field(default_factory=dict)  # by account and idempotency key
    invoices: dict[tuple[str, str], bytes] = field(default_factory=dict)  # by account and id
    replays: int = 0

    def trim(self) -> None:
        for entries in (self.answers, self.invoices):
            while len(entries) > self.keep:
                del entries[next(iter(entries))]


class Stripe(Upstream):
    """Stripe on 127.0.0.1; a port of 0 takes a free one. It keeps its port and its data over a restart.

    All API keys are of the same account. `clock` gives the seconds by which idempotency keys age; `delay` is what the
    faults `slow` and `working` wait, in seconds; `keep` is how many of the newest calls, invoices and idempotency keys
    are stored.
    """

    faults: ClassVar = _FAULTS

    def __init__(
        self,
        keys: Iterable[str] = ("sandbox-upstream-key",),
        port: int = 0,
        *,
        keep: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(keys, port, keep)
        self._clock = clock
        self._books = _Books(keep)

    @property
    def replays(self) -> int:
        """How many calls got the answer that their idempotency key kept."""
        return self._books.replays

    def forget(self) -> None:
        """Clear calls, counts, the faults still to come, invoices and idempotency keys."""
        super().forget()
        self._books = _Books(self._books.keep)

    def _counts(self) -> dict[str, int]:
        return super()._counts() | {"replays": self.replays}

    def _creates(self, head: Head) -> bool:
        return head.method == "POST" and head.path == _PATH

    def _refuse(self, status: int, sentence: str) -> Answer:
        answer = super()._refuse(status, sentence)
        return replace(answer, headers=(*answer.headers, f"Request-Id: {_request()}"))

    def _decide(self, head: Head, body: bytes) -> Answer:
        request = _request()
        answer = self._reply(head, body, request)
        version = head.fields.get("stripe-version", "")
        lines = [
            f"Request-Id: {request}",
            f"Stripe-Version: {version if _VERSION.fullmatch(version) else DEFAULT_VERSION}",
        ]
        if account := head.fields.get("stripe-account"):
            lines.append(f"Stripe-Account: {account}")
        if self._creates(head) and (key := head.fields.get("idempotency-key")) and _OTHER_KEY not in answer.headers:
            lines.append(f"Idempotency-Key: {key}")
        second = answer.second and replace(answer.second, headers=tuple(lines))
        return replace(answer, headers=(*answer.headers, *lines), second=second)

    def _reply(self, head: Head, body: bytes, request: str) -> Answer:
        if self._creates(head):
            return self._refusal(head) or self._create(head, body, request)
        if head.method == "GET" and (found := _INVOICE.fullmatch(head.path)):
            return self._retrieve(head, found[1])
        return error(404, f"There is nothing at {head.method} {head.path}.")

    def _refusal(self, head: Head) -> Answer | None:
        if _key(head) not in self._keys:
            return _UNAUTHORIZED
        if head.media != FORM:
            return _NOT_A_FORM
        if not 0 < len(head.fields.get("idempotency-key", "none")) <= _MAX_KEY:
            return _BAD_KEY
        return None

    def _retrieve(self, head: Head, name: str) -> Answer:
        if _key(head) not in self._keys:
            return _UNAUTHORIZED
        made = self._books.invoices.get((_account(head), name))
        if made is None:
            return error(404, f"There is no invoice {name!r}.", param="invoice", code="resource_missing")
        return Answer(200, made)

    def _create(self, head: Head, body: bytes, request: str) -> Answer:
        books, now = self._books, self._clock()
        pairs = _pairs(head.query.encode()) + _pairs(body)
        form = dict(pairs)
        place = (_account(head), head.fields.get("idempotency-key", ""))
        kept = books.answers.get(place)
        if kept is not None and now - kept.since < KEPT_SECONDS:
            return self._repeat(books, kept, tuple(sorted(pairs)), _key(head), now)
        if found := parameters.problem(form):
            return error(400, **found)
        if not form.get("customer"):
            return _NO_CUSTOMER
        made = invoice.fresh(form, live=_LIVE.match(_key(head)) is not None)
        answer, under_key, busy = self._execute(form["customer"], made, _key(head))
        if answer.creates:
            books.invoices[place[0], json.loads(made)["id"]] = made
        if under_key is not None and place[1]:
            books.answers[place] = _Kept(tuple(sorted(pairs)), under_key, request, now, now + busy)
        books.trim()
        return answer

    def _execute(self, customer: str, made: bytes, key: str) -> tuple[Answer, Answer | None, float]:
        """The answer; the answer to keep under the idempotency key; and the seconds until it is there."""
        if customer == "cus_missing":
            missing = error(400, f"There is no customer {customer!r}.", param="customer", code="resource_missing")
            return missing, missing, 0
        true = Answer(200, made)
        fault = self._fault(customer)
        if fault is None:
            return replace(true, creates=True), true, 0
        answer = self._fail(fault, made, key)
        if fault in _EXECUTED:
            return answer, replace(answer, creates=False), 0
        return answer, true if answer.creates else None, self.delay if fault == "working" else 0

    def _repeat(self, books: _Books, kept: _Kept, pairs: _Pairs, key: str, now: float) -> Answer:
        if pairs != kept.parameters:
            return _OTHER_PARAMETERS
        if now < kept.busy_until:
            return _IN_USE
        answer = kept.answer
        if answer.status == 200 and (fault := self._fault("")):
            answer = self._fail(fault, answer.body, key)
            if not answer.creates:
                return answer
        books.replays += 1
        lines = ("Idempotent-Replayed: true", f"Original-Request: {kept.request}")
        return replace(answer, creates=False, headers=(*answer.headers, *lines))


def _request() -> str:
    return invoice.name("req_", 14)


def _account(head: Head) -> str:
    return head.fields.get("stripe-account", "")


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
