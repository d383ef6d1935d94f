"""The outcome of a call -> Answer -> WSGI response."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.address import Docs
from gateway.reading import only_tries, speaks_stripe
from policies.fields import narrow
from policies.foresight import foresee, would_of
from policies.model import Answer
from policies.refusals import as_stripe_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from wsgiref.types import StartResponse, WSGIEnvironment

    from gateway.record import Record
    from gateway.stores import Store
    from policies.model import Grant
    from policies.outcomes import Reply
    from policies.refusals import Refusal

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
#: The header of every answer that is on record.
AUDIT_ID: Final = "Countersign-Audit-Id"
_NOTHING: Final = r"q=0(?:\.0*)?"
_LINES: Final = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_JSON: Final = msgspec.json.Encoder()
NO_DOCS: Final = Docs()
#: Longer than what any client writes; only bounds what is looked at.
MAX_ACCEPT: Final = 1024


class Response(msgspec.Struct, frozen=True):
    """A whole response. It is a WSGI application that answers with itself (PEP 3333)."""

    status: int
    headers: dict[str, str]
    body: bytes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Send it, without the body to a HEAD (RFC 9110, 9.3.2)."""
        start_response(_LINES[self.status], [*self.headers.items()])
        return () if environ["REQUEST_METHOD"] == "HEAD" else (self.body,)


def answer_to(reply: Reply, grant: Grant, audit_id: str) -> Answer:
    """Return the answer to a call that was sent, which is also what the ledger keeps."""
    if reply.refusal is not None:
        return Answer(reply.refusal.status, _json(reply.refusal.problem(audit_id)))
    answer = dict(reply.answer or {})
    if grant.entitlement.audit_id_in_answer:
        answer["audit_id"] = audit_id
    return Answer(200, _json(answer))


def previewed(record: Record, grant: Grant, store: Store, place: str) -> Answer:
    """Foresee and record a call that is only tried. Return its answer: what the real one would get, and ``would``.

    ``place`` is where it would go. Raises the refusals that the real one would meet.
    """
    admission = record.admission = store.peek(grant, place)
    would, told = foresee(
        grant, admission, store.left(grant.caller, (), grant.parameters.get("customer")), record.clock()
    )
    record.preview(would)
    if admission.replay is None:
        return Answer(200, _json({**told, "audit_id": record.audit_id}))
    kept = replayed(admission.replay, grant)
    return Answer(kept.status, _with(kept.body, told))


def replayed(kept: Answer, grant: Grant) -> Answer:
    """Return a kept answer, or what the policy still grants of it if that is less now.

    An operator's word is all that is known of its call: what else is granted is null.

    Its body says that it is a replay if bodies carry the audit id, as those of refusals always do: no-code tools show
    no header. Otherwise it is the same byte for byte.
    """
    body = kept.body
    if kept.status == 200:
        entitlement = grant.entitlement
        tree = {**entitlement.response, **({"audit_id": None} if entitlement.audit_id_in_answer else {})}
        answer = msgspec.json.decode(body)
        narrowed = narrow(answer, tree)
        if kept.partial:
            narrowed = {**dict.fromkeys(tree), **narrowed}
        if narrowed != answer:
            body = _json(narrowed)
        if not entitlement.audit_id_in_answer:
            return Answer(kept.status, body)
    return Answer(kept.status, _with(body, {"replayed": True}))


def respond(record: Record, docs: Docs = NO_DOCS) -> Response:
    """Return the refusal in ``record``, or else its answer. The upstream's headers are not passed on.

    ``docs`` is where callers read what a refusal means.
    """
    answer, admission, refusal = record.answer, record.admission, record.refusal
    standings = admission.standings if admission is not None else ()
    told: dict[str, str] = {}
    problem: dict[str, Any] | None = None
    if refusal is not None:
        problem, standings = _problem(record, refusal), standings or refusal.standings
        told |= refusal.headers
    elif admission is not None and admission.replay is not None:
        told["Idempotent-Replayed"] = "true"
        if answer.status >= 400:
            problem = msgspec.json.decode(answer.body)
    status, body, media, stripes = answer.status, answer.body, JSON, speaks_stripe(record.environ)
    if stripes:
        told["Request-Id"] = record.audit_id  # which Stripe's clients show with an error
    if problem is not None:
        status = problem["status"]
        entry = docs.entry(problem["reason"], record.environ)
        if entry is not None:  # never kept with an answer, so that it is always today's
            problem["help"] = entry
        if stripes:
            status, problem, again = as_stripe_error(problem)
            told["Stripe-Should-Retry"] = "true" if again else "false"
        else:
            media = _media(record.environ.get("HTTP_ACCEPT", "")[:MAX_ACCEPT])
        body = _json(problem)
    elif stripes:
        body = _typed(record, body)
    headers = {
        "Content-Type": media,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        AUDIT_ID: record.audit_id,
        **told,
    }
    if standings:
        # draft-ietf-httpapi-ratelimit-headers: q calls in w seconds; r are left, more in t seconds.
        policies = [f'"{s.limit.text}";q={s.limit.calls};w={s.limit.seconds}' for s in standings]
        headers["RateLimit-Policy"] = ", ".join(policies)
        headers["RateLimit"] = ", ".join([f'"{s.limit.text}";r={s.remaining};t={s.reset}' for s in standings])
    return Response(status, headers, body)


def _problem(record: Record, refusal: Refusal) -> dict[str, Any]:
    """Return the body of a refusal; for a call that is only tried, with what would become of the real one."""
    problem, call = refusal.problem(record.audit_id, record.clock()), record.call
    tried = only_tries(record.environ) if call is None else call.validate_only
    would = would_of(refusal) if tried else None
    return problem if would is None else {**problem, "validate_only": True, "would": would}


@lru_cache(64)  # clients send the same few all day
def _media(accept: str) -> str:
    """Return the media type of a refusal: no-code tools show a body only if its type is the one they asked for."""
    wanted = {kind for kind, quality in map(_weighed, accept.lower().split(",")) if quality}
    return JSON if JSON in wanted and PROBLEM not in wanted else PROBLEM


def _weighed(item: str) -> tuple[str, bool]:
    """Read one media range of an Accept header (RFC 9110, 12.5.1) and whether its weight is more than 0."""
    kind, *parameters = (part.strip() for part in item.split(";"))
    return kind, not any(re.fullmatch(_NOTHING, part) for part in parameters)


def _typed(record: Record, body: bytes) -> bytes:
    """Add ``object`` if the policy does not grant it: Stripe's clients choose the answer's class by it.

    It is the same in every answer, so it reveals nothing. The rest stays byte for byte.
    """
    grant, admission = record.grant, record.admission
    if grant is None or admission is None or "object" in grant.entitlement.response:
        return body
    if grant.validate_only and admission.replay is None:  # what would be sent is no object of theirs
        return body
    more = b"" if body == b"{}" else b","
    return b'{"object":"%b"%b%b' % (grant.entitlement.operation.answers.encode("ascii"), more, body[1:])


def _with(body: bytes, members: Mapping[str, object]) -> bytes:
    """Append members to an object in JSON, which stays as it is byte for byte."""
    return b"%b%b%b" % (body[:-1], b"" if body == b"{}" else b",", _json(members)[1:])


def _json(value: Mapping[str, object]) -> bytes:
    try:
        return _JSON.encode(value)
    except UnicodeEncodeError:  # a lone surrogate: JSON can name it, UTF-8 cannot encode it
        return json.dumps(value, separators=(",", ":")).encode("ascii")
