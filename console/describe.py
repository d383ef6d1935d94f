"""What a caller may do, what is left of it, and what became of a key of its own, as data.

The only source of ``/-/me``, and of all that is made of it: the page, its recipes, the API description.
``tests/portal/me.json`` is an example with everything in it. Nothing here says where an upstream is, which secret opens
it, or that there are other callers.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec

from policies.fields import narrow
from policies.idempotency import held_of
from policies.model import Budget, Kind, State
from policies.operations import meanings, words
from policies.parameters import fault, room, taken_of, template_of
from policies.wording import ago, budget_in_words, exponents, limit_in_words, span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policies.model import Caller, Entitlement, Left, Operation, PolicySet, Rule, Seen

#: With more grants than this, fields are told for one grant at a time: 50 grants of 200 fields are over a megabyte.
MANY: Final = 10
#: Digits of a digest: of the document as the record has it, and of a list that is told once.
POLICY_DIGITS: Final = 16
LIST_DIGITS: Final = 12
#: What is fit for a kind where the catalogue has no example. The time is the end of 2027, which is still to come.
_EXAMPLES: Final = {
    Kind.STRING: "text",
    Kind.INTEGER: "1",
    Kind.BOOLEAN: "true",
    Kind.TIMESTAMP: "1830254400",
    Kind.CURRENCY: "usd",
}
_AUDIT_ID: Final = "The name of the call in the record: give it when you ask about a call."


def describe(  # noqa: PLR0913 - what the answer is made of
    policies: PolicySet,
    caller: Caller,
    *,
    now: float,
    standings: Iterable[Left] | None,
    missing: str | None = None,
    became: list[dict[str, Any]] | None = None,
    operator: str = "",
    grant: str | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """Return what ``/-/me`` answers. Times are whole unix seconds; ``now`` is when ``standings`` were read.

    ``standings`` is None where they could not be read, and ``missing`` says why. ``became`` is what
    :func:`became_of` returned for each grant, None if nothing was asked. ``operator`` is whom to ask.

    Up to :data:`MANY` grants have their fields. Of more, only the one with the id ``grant`` has; all with ``whole``.
    """
    grants = {grant_id(one): one for one in entitlements(caller)}
    told = grants.keys() if whole or (grant is None and len(grants) <= MANY) else {grant}
    fields: dict[str, list[dict[str, Any]]] = {}
    answers: dict[str, list[dict[str, Any]]] = {}
    said = {
        "caller": caller.id,
        "owner": caller.owner,
        "operator": operator or None,
        "credential": _credential(caller),
        "paused": caller.paused,
        "policy": policies.digest[:POLICY_DIGITS],
        "now": int(now),
        "exponents": exponents(),
        "standings": None if standings is None else [_standing(one, now) for one in standings],
        **({} if missing is None else {"standings_missing": missing}),
        "grants": [
            {
                **_grant(name, one),
                "fields": _once(fields, _fields(one)) if name in told else None,
                "answers": _once(answers, _answers(one)) if name in told else None,
            }
            for name, one in grants.items()
        ],
        "fields": fields,
        "answers": answers,
    }
    return said if became is None else {**said, "became": became}


def became_of(entitlement: Entitlement, seen: Seen | None, *, now: float, place: str | None = None) -> dict[str, Any]:
    """Return what became of a caller's key under one of its grants, from its ledger entry.

    ``now``, in unix seconds, is when that was seen, and ``place`` is where a call would go today, None if that is not
    known just now. What was raised is told as far as the policy grants it today, and only if it was raised there.
    """
    operation = entitlement.operation
    noun = operation.noun
    told: dict[str, Any] = {"grant": grant_id(entitlement)}
    if seen is None:
        kept = span(entitlement.idempotency.seconds)
        text = f"No {noun} of yours was {operation.verb.done} with this key. Settled calls are remembered for {kept}."
        return {**told, "state": "never", "text": text}
    entry = seen.entry
    age, held = seen.now - entry.sent, held_of("", entry, now=seen.now)
    told["when"] = int(now - age)
    body: dict[str, Any] = msgspec.json.decode(entry.answer.body) if entry.answer is not None else {}
    if entry.state is State.REJECTED:
        text = f"The call was refused {ago(age)}, and the refusal stays with this key."
        refusal = {name: body[name] for name in ("title", "detail", "reason", "decided_by", "audit_id") if name in body}
        return {**told, "state": "refused", "text": text, "refusal": refusal}
    if entry.state is State.FREE:
        return {**told, "state": "free", "text": f"Nothing came of the call of {ago(age)}. You may use this key again."}
    if held.running:
        text = "The call with this key is under way. Ask again in half a minute."
        return {**told, "state": "running", "text": text}
    if place is None:
        text = (
            f"The call with this key was sent {ago(age)}. What became of it cannot be told just now: ask again in half "
            "a minute, and if it stays so, ask the operator of Countersign. Do not use another key, which might do it "
            "twice."
        )
        return {**told, "state": "unavailable", "text": text}
    here = entry.place == place
    if entry.state is State.SUCCEEDED and here:
        done = f"The {noun} was {operation.verb.done} {ago(age)}."
        text = f"{done} The same call with this key brings back the same answer, and does nothing new."
        return {**told, "state": "raised", "text": text, "answer": narrow(body, entitlement.response)}
    if entry.state is State.SUCCEEDED:
        text = (
            f"This key was used {ago(age)}, but at another account, or with test data in place of live. If this is "
            f"another {noun}, use a new key; if it may be the same one, ask the operator of Countersign first."
        )
        return {**told, "state": "elsewhere", "text": text}
    if here and held.approval is not None:
        text = (
            f"The call of {ago(age)} waits for a person's approval. To hear what was decided, send the same call again "
            "with the same key."
        )
        return {**told, "state": "waiting", "text": text}
    if here and entry.id is not None:
        text = (
            f"The {noun} was begun {ago(age)}, and it is not known whether it was finished. Send the same call again "
            "with the same key, and it goes on from there. Do not use another key, which might do it twice."
        )
        return {**told, "state": "unknown", "text": text}
    text = (
        f"No answer came to the call of {ago(age)} that can be trusted, so {operation.may}. "
        f"Do not use another key, which might do it twice. Send the same call "
        "again with the same key: it says what is known by then."
    )
    return {**told, "state": "unknown", "text": text}


def entitlements(caller: Caller) -> list[Entitlement]:
    """Return what the credential of a caller may do: one that is tied to a connection, only there."""
    tied = caller.tied
    return [one for one in caller.entitlements.values() if tied is None or one.connection.id == tied.id]


def grant_id(entitlement: Entitlement) -> str:
    """Return the name of a grant, unique among those of a caller: ``acme-billing:invoices.create``."""
    return f"{entitlement.connection.id}:{entitlement.operation.id}"


def _credential(caller: Caller) -> dict[str, Any]:
    kind, _, name = caller.credential.rpartition(":")
    return {
        "id": name,
        "kind": kind or "key",
        "expires": None if caller.expires is None else int(caller.expires),
        "tied": None if caller.tied is None else caller.tied.id,
    }


def _standing(left: Left, now: float) -> dict[str, Any]:
    """Return what is left of one limit. A ceiling is shared with others, so of it only that it is used up is told."""
    ceiling = left.kind == "ceiling"
    if ceiling:
        text = "shared by all who use this connection"
    elif left.currency:
        text = budget_in_words(Budget(left.currency, left.limit, left.each))
    else:
        text = limit_in_words(left.limit)
    more = {"amount": left.more or None, "at": math.ceil(now + left.reset)} if left.reset else None
    return {
        "kind": left.kind,
        "text": text,
        "of": None if ceiling else left.limit.calls,
        "left": left.remaining,
        "unit": left.currency or "calls",
        "each": left.each,
        "connection": left.connection or None,
        "more": more,
        "full_at": math.ceil(now + left.full) if left.full else None,
    }


def _grant(name: str, entitlement: Entitlement) -> dict[str, Any]:
    connection, operation, key = entitlement.connection, entitlement.operation, entitlement.idempotency
    amount, lines = entitlement.amount, entitlement.lines
    return {
        "id": name,
        "connection": {
            "id": connection.id,
            "name": connection.name,
            "connection_name": connection.connection_name,
            "mode": connection.mode or None,
        },
        "operation": {
            "id": operation.id,
            "effect": operation.effect.value,
            "noun": operation.noun,
            "method": operation.method,
            "path": operation.path,
        },
        "idempotency": None
        if operation.repeatable
        else {
            "required": key.required,
            "from": key.parameter,
            "prefix": key.prefix or None,
            "seconds": key.seconds,
        },
        "required": list(entitlement.required),
        "amount": amount and {"max": amount.max, "currency": list(amount.currencies)},
        "lines": lines and {"max": lines.max, "credit": lines.credit},
    }


def _once(lists: dict[str, list[dict[str, Any]]], told: list[dict[str, Any]]) -> str:
    """Keep a list under its digest, which is returned: many grants say the same."""
    digest = hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:LIST_DIGITS]
    lists[digest] = told
    return digest


def _fields(entitlement: Entitlement) -> list[dict[str, Any]]:
    """Return the parameters that may be sent, the required ones first, each in the order of the policy."""
    key = entitlement.idempotency.parameter
    needed = {*entitlement.required, *({key} if key is not None else ())}
    told = [_field(rule, entitlement, needed) for rule in entitlement.rules.values()]
    return sorted(told, key=lambda field: not field["required"])


def _field(rule: Rule, entitlement: Entitlement, needed: set[str]) -> dict[str, Any]:
    """Return what is to be said of one parameter. What is null or false of it is left out, ``required`` aside."""
    operation = entitlement.operation
    template = template_of(operation, rule.path) or rule.path
    parameter = operation.parameters[template]
    said = words(operation.id).get(template)
    label, means = (said.label, said.means) if said is not None else (rule.path, rule.path)
    if template.endswith("[{key}]") and rule.path != template:  # a name that the policy chose
        label = rule.path[len(template) - len("{key}]") : -1]
    inside = _inside(operation, rule.path)
    told = {
        "path": rule.path,
        "label": label,
        "means": means,
        "kind": rule.kind.value,
        "risk": parameter.risk.value,
        "required": rule.required or rule.path in needed or f"{{{rule.path}}}" in operation.path,
        "fixed": rule.fixed,
        "one_of": None if rule.one_of is None else sorted(rule.one_of),
        "prefix": rule.prefix,
        "min": rule.minimum,
        "max": rule.maximum,
        "max_length": rule.max_length,
        "max_items": inside and room(operation, inside, taken_of(entitlement)),
        "max_key": inside and operation.parameters[inside].max_key,
        "needed": parameter.needed,
        "unsets": rule.unsets,
        "free": rule.free,
        "example": example(rule, said.example if said is not None else ""),
    }
    return {
        name: value for name, value in told.items() if name == "required" or (value is not None and value is not False)
    }


def _inside(operation: Operation, path: str) -> str | None:
    """Return the list or the free-key object that ``path`` is, or that its last open part is of."""
    if "[{" in path:
        return path[: path.rindex("[{")]
    return path if f"{path}[{{i}}]" in operation.parameters or f"{path}[{{key}}]" in operation.parameters else None


def example(rule: Rule, written: str = "") -> str | None:
    """Return a value that ``rule`` takes, the one that is ``written`` if it does; None if none was found."""
    if rule.fixed is not None:
        return rule.fixed
    if rule.kind in {Kind.OBJECT, Kind.ARRAY}:
        return None
    number = rule.minimum if rule.minimum is not None else rule.maximum
    prefixed = f"{rule.prefix or ''}{_EXAMPLES[rule.kind]}"
    tried = [
        written,
        *sorted(rule.one_of or ()),
        *([str(number)] if number is not None else ()),
        prefixed,
        prefixed[: rule.max_length],
    ]
    return next((value for value in tried if value and fault(rule, value) is None), None)


def _answers(entitlement: Entitlement) -> list[dict[str, Any]]:
    """Return the fields of the answer, in the order of the grant."""
    said = {"audit_id": _AUDIT_ID, **meanings(entitlement.operation.id)}
    return [{"path": path, "means": said.get(path, path)} for path in entitlement.response_fields]
