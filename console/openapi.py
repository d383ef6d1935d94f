"""OpenAPI 3.1 of what one caller may do at one connection, from the policy and the catalogue of operations.

Shapes are what importers and generators were seen to get right: a form's names are flat, a fixed value has a default,
and ``reason`` is an open text, so that a new one breaks nobody. Without a caller it holds what is public: health, the
two paths of an invoice without any parameters, and the refusals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from console import schemas
from console.describe import entitlements, grant_id
from gateway.reading import MAX_TARGET
from policies import refusals
from policies.model import NAME, Effect, Shape
from policies.operations import OPERATIONS, meanings
from policies.wording import budget_in_words, limit_in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from policies.model import Caller, Entitlement, Operation

    Samples = Callable[[str], list[dict[str, Any]]]

#: Of this document's own shape, as ``info.version`` wants one.
VERSION: Final = "1"

_JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"
_PROBLEM: Final = "application/problem+json"
_SCALAR: Final = ["string", "number", "boolean", "null"]

_SECURITY: Final = {
    "callerKey": {
        "type": "apiKey", "in": "header", "name": "x-api-key", "description": "Your caller key. It starts with csk_.",
    },
    "bearer": {"type": "http", "scheme": "bearer", "description": "Your caller key, or a Google ID token."},
    "basic": {"type": "http", "scheme": "basic", "description": "Your caller key as the password."},
}  # fmt: skip
#: What each kind of credential may be sent as, the likeliest first: importers take that.
_WAYS: Final = {"key": ("callerKey", "bearer", "basic"), "google": ("bearer",), "webhook": ()}

_HEADERS: Final[Mapping[str, dict[str, Any]]] = {
    "Countersign-Audit-Id": {
        "description": "Names this call in the record. Give it to the operator with a question.",
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": "What is left of each limit (draft-ietf-httpapi-ratelimit-headers): r calls, more in t seconds.",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {"description": "Each limit: q calls in w seconds.", "schema": {"type": "string"}},
    "Retry-After": {
        "description": "Seconds after which the same call, with the same key, may be sent again.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Idempotent-Replayed": {
        "description": "The answer of the first call with this key, given again. Nothing new was raised.",
        "schema": {"type": "string", "enum": ["true"]},
    },
}
#: The recipes that are shown as samples, and what tools call their languages.
_LANGUAGES: Final = {"curl": "Shell", "python": "Python", "node": "JavaScript"}
#: The headers of an answer, and of a refusal by its status.
_ALWAYS: Final = ("Countersign-Audit-Id",)
_QUOTA: Final = ("RateLimit", "RateLimit-Policy")

#: Refusals that only a call with an effect gets, and the one that only a call without gets.
_OF_EFFECTS: Final = (
    refusals.LedgerRefusal, refusals.OutcomeUnknown, refusals.AwaitingApproval, refusals.ApprovalLapsed,
    refusals.ApprovalRejected, refusals.IdempotencyKeyMissing, refusals.IdempotencyKeyInvalid, refusals.BudgetSpent,
)  # fmt: skip
_OF_LOOKS: Final = (refusals.UpstreamFailed,)
#: The statuses of the one refusal that has several: as the upstream answered.
_REJECTED: Final = (400, 402, 404)

_STATUS: Final[Mapping[int, str]] = {
    400: "Something in the call is not allowed or cannot be read. Nothing was created.",
    401: "The caller is not known.",
    402: "The upstream refused the call.",
    403: "You may not do this.",
    404: "There is nothing here, or not at the upstream.",
    405: "Another method is needed.",
    408: "The body took too long.",
    409: "The invoice of this key was voided since. A new key raises another.",
    413: "The body is too large.",
    414: "The address is too long.",
    415: "The body is neither a form nor JSON.",
    422: "The idempotency key was used for something else.",
    424: "It is not known whether it was created. Keep to the same key.",
    429: "A limit, a budget or a ceiling is reached. Nothing was sent.",
    431: "The headers are too large.",
    500: "Something went wrong here. Nothing was sent.",
    502: "The upstream gave no answer that can be used.",
    503: "Not possible just now. The same call, sent again after Retry-After, is safe.",
    504: "It is not known whether it was created. The same call, sent again with the same key, settles it.",
}

_PREVIEW: Final[Mapping[str, Any]] = {
    "parameter": {"name": "validate_only", "in": "query", "schema": {"type": "boolean"}},
    "description": (
        "With validate_only=true in the address the call is decided in full and nothing is sent. Where it would be "
        "sent, the answer is 200 and says what; where it would not, the refusal that the real call would get."
    ),
    "schema": {
        "type": "object",
        "properties": {
            "would": {"type": "string", "examples": ["send", "replay", "refuse", "wait"]},
            "would_send": {"type": "object", "description": "What goes to the upstream, without its key."},
            "audit_id": {"type": "string"},
        },
    },
}


class NothingThereError(Exception):
    """The caller has no grant at this connection."""


def document(
    caller: Caller | None, *, root: str, connection: str | None = None, samples: Samples | None = None
) -> dict[str, Any]:
    """Describe what ``caller`` may do at the connection with this id; None for all of them, as alternatives.

    ``root`` is the address below which everything lies, absolute or relative to the document's own. ``samples`` returns
    the filled recipes of a grant, by its id. Raises :class:`NothingThereError` if the caller has nothing at
    ``connection``.
    """
    if caller is None:
        return _public(root)
    reachable = entitlements(caller)
    places = {one.connection.id: one.connection for one in reachable}
    if connection is not None:
        if connection not in places:
            raise NothingThereError
        places = {connection: places[connection]}
    granted = [one for one in reachable if one.connection.id in places]
    kind = credential_kind(caller.credential)
    security: list[dict[str, list[str]]] = [{name: []} for name in _WAYS[kind]]
    paths: dict[str, dict[str, Any]] = {"/-/health": {"get": _HEALTH}}
    for operation in {one.operation.id: one.operation for one in granted}.values():
        alike = [one for one in granted if one.operation is operation]
        paths.setdefault(_path(operation), {})[operation.method.lower()] = _operation(caller, operation, alike, samples)
    where = f" at {next(iter(places))}" if len(places) == 1 else ""
    told: dict[str, Any] = {
        **_head(f"What {caller.id} may do{where}", root),
        "security": security,
        "paths": paths,
        "components": _components(granted_operations(granted), {name: _SECURITY[name] for name in _WAYS[kind]}),
        "x-countersign-limits": [limit_in_words(limit) for limit in caller.limits],
        "x-countersign-budgets": [budget_in_words(budget) for budget in caller.budgets],
        "x-countersign-preview": _PREVIEW,
    }
    if len(places) > 1:
        told["x-countersign-connections"] = {name: f"openapi.json?connection={name}" for name in places}
    return told


def credential_kind(credential: str) -> str:
    """Return the kind of a credential by its name in the record."""
    kind, colon, _ = credential.partition(":")
    return kind if colon and kind in _WAYS else "key"


def granted_operations(granted: Iterable[Entitlement]) -> list[Operation]:
    """Return the operations of grants, each once."""
    return list({one.operation.id: one.operation for one in granted}.values())


def _head(title: str, root: str) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": VERSION,
            "description": "Countersign raises invoices for callers that do not hold the upstream's key. What is not "
            "described here is refused.",
        },
        "servers": [{"url": root.rstrip("/") or "/"}],
    }


def _public(root: str) -> dict[str, Any]:
    operations = list(OPERATIONS.values())
    paths: dict[str, dict[str, Any]] = {"/-/health": {"get": _HEALTH}}
    for one in operations:
        bare = {
            "operationId": one.id,
            "summary": _summary(one),
            "description": "Which parameters you may send depends on your key: get this document with your key.",
            "parameters": [*_place_parameters(None), *_in_path(one)],
            "responses": {"200": {"description": f"The {one.noun}."}, **_refusals(one)},
        }
        paths.setdefault(_path(one), {})[one.method.lower()] = bare
    security = {name: _SECURITY[name] for name in _WAYS["key"]}
    return {
        **_head("Countersign", root),
        "security": [{name: []} for name in security],
        "paths": paths,
        "components": _components(operations, security),
    }


# ---------------------------------------------------------------- operations


def _operation(
    caller: Caller, operation: Operation, granted: list[Entitlement], samples: Samples | None
) -> dict[str, Any]:
    """Describe one operation as it is granted at one or several connections."""
    told: dict[str, Any] = {
        "operationId": operation.id,
        "summary": _summary(operation),
        "parameters": [*_place_parameters(granted), *_in_path(operation, granted)],
        "responses": {"200": _answer(operation, granted), **_refusals(operation)},
        "x-countersign-connection": [one.connection.id for one in granted],
    }
    if operation.effect is Effect.LOOKS:
        told["parameters"] += _query(granted)
    else:
        told["parameters"] += _idempotency_key(caller, granted)
        if operation.bodyless:
            told["parameters"] += _query(granted)
        else:
            told["requestBody"] = _body(granted)
        told["x-countersign-idempotency"] = [_idempotency(one) for one in granted]
    if samples is not None:
        filled = samples(grant_id(granted[0]))
        told["x-codeSamples"] = [
            {"lang": _LANGUAGES[one["id"]], "label": one["title"], "source": one["text"]}
            for one in filled
            if one["id"] in _LANGUAGES and one["text"]
        ]
    return told


def _summary(operation: Operation) -> str:
    verb = operation.verb.does.capitalize()
    return f"{verb} an {operation.noun}" if operation.noun[0] in "aeiou" else f"{verb} a {operation.noun}"


def _path(operation: Operation) -> str:
    return f"/stripe/{operation.path}" if "{" in operation.path else f"/stripe/{operation.path}/"


def _place_parameters(granted: list[Entitlement] | None) -> Iterator[dict[str, Any]]:
    """Yield the two names of a connection. What there is only one of is filled in."""
    said = {"name": "The connection's first name.", "connection_name": "Its second name."}
    for name, means in said.items():
        schema: dict[str, Any] = {"type": "string", "pattern": f"^(?:{NAME.pattern})$"}
        if granted is not None:
            values = sorted({getattr(one.connection, name) for one in granted})
            schema = {"type": "string", "enum": values}
            if len(values) == 1:
                schema["default"] = values[0]
        yield {"name": name, "in": "query", "required": True, "description": means, "schema": schema}


def _in_path(operation: Operation, granted: list[Entitlement] | None = None) -> Iterator[dict[str, Any]]:
    for part in operation.path.split("/"):
        if part.startswith("{"):
            name = part[1:-1]
            schema: dict[str, Any] = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,255}$"}
            if granted is not None:
                # A path takes fewer characters than a parameter's own rule.
                schema = {"allOf": [schema, _either(schemas.value(one, name) for one in granted)]}
            yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query(granted: list[Entitlement]) -> Iterator[dict[str, Any]]:
    """Yield the parameters of a call that has no body."""
    forms = [schemas.flat(one) for one in granted]
    for name in dict.fromkeys(name for form in forms for name in form["properties"]):
        schema = _either(_addressed(form["properties"][name]) for form in forms if name in form["properties"])
        required = all(name in form.get("required", ()) for form in forms)
        yield {"name": name, "in": "query", "required": required, "style": "form", "explode": True, "schema": schema}


def _addressed(schema: Any) -> Any:
    """Bound texts by what an address has room for."""
    told = dict(schema)
    if "maxLength" in told:
        told["maxLength"] = min(told["maxLength"], MAX_TARGET)
    if "items" in told:
        told["items"] = _addressed(told["items"])
    if "anyOf" in told:
        told["anyOf"] = [_addressed(one) for one in told["anyOf"]]
    return told


def _body(granted: list[Entitlement]) -> dict[str, Any]:
    """Describe the body, as JSON and as a form. Importers take the first."""
    nested = [schemas.nested(one) for one in granted]
    flat = [schemas.flat(one) for one in granted]
    example = schemas.shown(nested[0])
    if len(granted) > 1:
        for one, *both in zip(granted, nested, flat, strict=True):
            for schema in both:
                schema["title"] = f"At {one.connection.id}"
    return {
        "required": True,
        "content": {
            _JSON: {"schema": _either(nested), "example": example},
            _FORM: {"schema": _either(flat), "example": schemas.spread(example)},
        },
    }


def _either(alternatives: Iterable[schemas.Schema]) -> Any:
    """Return the schema of what fits one of several: not exactly one, since grants may be alike."""
    told: list[schemas.Schema] = []
    for one in alternatives:
        if one not in told:
            told.append(one)
    return told[0] if len(told) == 1 else {"anyOf": told}


def _idempotency_key(caller: Caller, granted: list[Entitlement]) -> Iterator[dict[str, Any]]:
    if caller.body_signed or all(one.idempotency.parameter is not None for one in granted):
        return
    prefixes = {one.idempotency.prefix for one in granted}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    yield {
        "name": "Idempotency-Key",
        "in": "header",
        "required": all(one.idempotency.required and one.idempotency.parameter is None for one in granted),
        "description": "Your own name for this call, such as the order number. Sent again, it brings back the "
        "same answer and never has a second effect.",
        "schema": schemas.key_header(prefix),
        # No default: it would make all calls of an importer one.
        "example": f"{prefix or 'order-'}1001",
    }


def _idempotency(one: Entitlement) -> dict[str, Any]:
    key = one.idempotency
    return {
        "connection": one.connection.id,
        "required": key.required,
        "from": key.parameter or "Idempotency-Key",
        "prefix": key.prefix or None,
        "seconds": key.seconds,
    }


# ---------------------------------------------------------------- answers


def _answer(operation: Operation, granted: list[Entitlement]) -> dict[str, Any]:
    told = [_tree(one.response, "", meanings(operation.id), one.audit_id_in_answer) for one in granted]
    headers = [*_ALWAYS, *_QUOTA, *(["Idempotent-Replayed"] if not operation.repeatable else [])]
    return {
        "description": f"The {operation.noun}, with the fields that you may see. Any may be null.",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {_JSON: {"schema": _either(told)}},
    }


def _tree(branch: Mapping[str, Any], path: str, means: Mapping[str, str], audit_id: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - one call
    properties: dict[str, Any] = {}
    for name, inner in branch.items():
        below = f"{path}.{name}" if path else name
        properties[name] = _tree(inner, below, means) if not isinstance(inner, Shape) else dict(_SHAPES[inner])
        if below in means:
            properties[name] = {"description": means[below], **properties[name]}
    if not path:
        if audit_id:
            properties["audit_id"] = {"type": "string", "description": "Names the call that was sent in the record."}
            properties["replayed"] = {"type": "boolean", "enum": [True], "description": "The answer is given again."}
        return {"type": "object", "properties": properties}
    return {"type": ["object", "array", "null"], "properties": properties, "items": {"properties": properties}}


_SHAPES: Final[Mapping[Shape, dict[str, Any]]] = {
    Shape.SCALAR: {"type": _SCALAR},
    Shape.SCALARS: {"type": ["array", "null"], "items": {"type": _SCALAR}},
    Shape.MAP: {"type": ["object", "null"], "additionalProperties": {"type": _SCALAR}},
}


def _every(base: type[refusals.Refusal] = refusals.Refusal) -> Iterator[type[refusals.Refusal]]:
    for below in base.__subclasses__():
        if "reason" in vars(below):
            yield below
        yield from _every(below)


def _by_status(operation: Operation) -> dict[int, list[str]]:
    """Return the reasons that a call of an operation may be refused for, by status."""
    out = _OF_EFFECTS if operation.repeatable else _OF_LOOKS
    found: dict[int, list[str]] = {}
    for refusal in _every():
        if not issubclass(refusal, out):
            statuses = _REJECTED if refusal is refusals.UpstreamRejected else (refusal.status,)
            for status in statuses:
                found.setdefault(status, []).append(refusal.reason)
    return found


def _refusals(operation: Operation) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(_by_status(operation))}


def _components(operations: Iterable[Operation], security: Mapping[str, Any]) -> dict[str, Any]:
    reasons: dict[int, dict[str, None]] = {}
    for operation in operations:
        for status, of in _by_status(operation).items():
            reasons.setdefault(status, {}).update(dict.fromkeys(of))
    return {
        "securitySchemes": dict(security),
        "headers": dict(_HEADERS),
        "schemas": {**schemas.SHARED, "Refusal": _REFUSAL, "Fault": _FAULT},
        "responses": {str(status): _refusal(status, list(of)) for status, of in sorted(reasons.items())},
    }


def _refusal(status: int, reasons: list[str]) -> dict[str, Any]:
    schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Refusal"},
            # Open: a new reason must break nobody.
            {
                "properties": {
                    "reason": {"type": "string", "examples": reasons},
                    "status": {"type": "integer", "enum": [status]},
                }
            },
        ]
    }
    headers = [*_ALWAYS, *(["Retry-After"] if status in {429, 503, 504} else []), *(_QUOTA if status == 429 else ())]
    return {
        "description": _STATUS[status],
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {_PROBLEM: {"schema": schema}, _JSON: {"schema": schema}},
    }


_FAULT: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["parameter", "detail", "reason"],
    "properties": {
        "parameter": {"type": "string"},
        "detail": {"type": "string"},
        "reason": {"type": "string"},
        "accepts": {"type": "object", "description": "What would pass, in the words of a policy document."},
    },
}
_REFUSAL: Final[Mapping[str, Any]] = {
    "description": "A refusal (RFC 9457). detail says what happened and what to do.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "reason", "decided_by", "audit_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "reason": {"type": "string"},
        "decided_by": {"type": "string", "examples": ["policy", "upstream", "countersign"]},
        "audit_id": {"type": "string"},
        "parameter": {"type": "string"},
        "retry_after": {"type": "integer", "description": "Seconds."},
        "faults": {"type": "array", "items": {"$ref": "#/components/schemas/Fault"}},
        "upstream_code": {"type": "string"},
        "approval": {"type": "string"},
        "help": {"type": "string"},
        "replayed": {"type": "boolean"},
        "limit": {"type": "integer"},
        "currency": {"type": "string"},
        "window": {"type": "integer", "description": "Seconds."},
        "left": {"type": "integer"},
        "resets_at": {"type": "string", "format": "date-time"},
    },
}
_HEALTH: Final[Mapping[str, Any]] = {
    "operationId": "health",
    "summary": "Whether Countersign has started",
    "security": [],
    "responses": {
        "200": {
            "description": "It has.",
            "content": {
                _JSON: {
                    "schema": {
                        "type": "object",
                        "required": ["status"],
                        "properties": {"status": {"type": "string", "enum": ["ok"]}},
                    }
                }
            },
        }
    },
}
