"""The doors of our own, beside the upstreams': the portal, the API description, and what a caller may ask about itself.

What they say is put together in ``console``, which the first request that asks for it imports: a start and a plain call
load none of it. This is the one module of ``gateway`` that may, inside its functions.

``/-/me``, and with a credential ``/-/recipes`` and ``/openapi.json``, are for callers: identified as any call is, with
the same refusals on record, so that keys are guessed here no better than by calls. A paused caller may look. The others
are the same for everybody, and leave no line: files that were made once, and what costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from gateway.address import root
from gateway.answering import JSON, Response, respond
from gateway.reading import read_own, speaks_stripe
from gateway.record import Record
from gateway.secrets import placed
from policies.idempotency import identity
from policies.keynames import unquoted
from policies.model import Answer
from policies.refusals import CallerPaused, QueryMalformed, SecretUnavailable, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.settings import Gate
    from policies.model import Entitlement

#: How a target begins that is ours, or may be: a connection may be named portal-eu.
OURS: Final = ("/portal", "/openapi.json", "/-/")

READ: Final = ("GET", "HEAD")
#: Somebody will open these in a tab: nothing in them is run, loaded or framed.
_POLICY: Final = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
#: Ledger entries that one question may read. With more grants it must say which it is about.
MOST_ENTRIES: Final = 10


def ours(gate: Gate, environ: Mapping[str, Any]) -> Response | None:
    """Answer a request for a door of ours; None if nothing of ours is at its path, which is refused as any other."""
    path: str = environ["RAW_URI"].partition("?")[0]
    door = _DOORS.get(path)
    if door is None and gate.docs.portal and f"{path}/".startswith("/portal/") and not speaks_stripe(environ):
        door = _docs if f"{path}/".startswith("/portal/docs/") else _portal
    if door is None:
        return None
    with Record(gate.audit, environ) as record:
        return door(gate, record)
    response = respond(record, gate.docs)
    return replace(response, headers={**response.headers, **_POLICY})


# ---------------------------------------------------------------- for everybody


def _health(_gate: Gate, record: Record) -> Response:
    """Say that the process answers: its policy and settings were loaded, or it would not have started."""
    read_own(record.environ, READ)
    return _said(200, {"status": "ok"})


def _ready(gate: Gate, record: Record) -> Response:
    """Say whether each part can do its work. For operators; it has no name in it, and costs what it says."""
    read_own(record.environ, READ)
    parts = gate.readiness.parts()
    ready = bool(parts) and "down" not in parts.values()
    return _said(200 if ready else 503, {"status": "ready" if ready else "not ready", "parts": parts})


def _portal(_gate: Gate, record: Record) -> Response:
    from console.portal import serve  # noqa: PLC0415 - see above

    return serve(_path(record), record.environ)


def _docs(_gate: Gate, record: Record) -> Response:
    from console.pages import serve  # noqa: PLC0415 - see above

    return serve(_path(record), record.environ)


# ---------------------------------------------------------------- for callers


def _me(gate: Gate, record: Record) -> Response:
    """Say who asks, what it may do, what is left of that and, with ``key``, what became of a key of its own."""
    from console.describe import entitlements, grant_id  # noqa: PLC0415 - see above

    asked = _identified(gate, record, READ, ("key", "grant"))
    assert record.caller is not None  # noqa: S101 - it was identified
    if "grant" in asked and asked["grant"] not in map(grant_id, entitlements(record.caller)):
        raise QueryMalformed("You have no grant of this name. Take the id of one that /-/me lists.", parameter="grant")
    described = _described(gate, record, grant=asked.get("grant"), key=asked.get("key"))
    record.look()
    return _told(gate, record, described)


def _recipes(gate: Gate, record: Record) -> Response:
    """Fill the recipes with the call in the body: for a caller in one of its grants, else as all have it."""
    from console.describe import entitlements, grant_id  # noqa: PLC0415 - see above
    from console.recipes.filling import fill, read  # noqa: PLC0415 - see above

    _identified(gate, record, ("POST",), needed=False)
    assert record.call is not None  # noqa: S101 - it was read
    call = read(record.call.body, stranger=record.caller is None)
    described = None
    if record.caller is not None:
        first = next(map(grant_id, entitlements(record.caller)), None)
        described = _described(gate, record, grant=call.grant or first)
    told = fill(call, root=root(record.environ, gate.docs.service), described=described)
    if record.caller is not None:
        record.look()
    return _told(gate, record, told)


def _openapi(gate: Gate, record: Record) -> Response:
    """Describe the API of this caller, of one of its connections; without a credential what all of them have."""
    from console.openapi import NothingThereError, document  # noqa: PLC0415 - see above
    from console.recipes.filling import Asked, fill  # noqa: PLC0415 - see above

    asked = _identified(gate, record, READ, ("connection",), needed=False)
    address = root(record.environ, gate.docs.service)
    described = None if record.caller is None else _described(gate, record, whole=True)
    try:
        told = document(
            record.caller,
            root=address,
            connection=asked.get("connection"),
            samples=lambda grant: fill(Asked(grant=grant), root=address, described=described),
        )
    except NothingThereError:
        raise QueryMalformed("You have no connection of this name.", parameter="connection") from None
    if record.caller is not None:
        record.look()
    return _told(gate, record, told)


_DOORS: Final[Mapping[str, Callable[[Gate, Record], Response]]] = {
    "/-/health": _health,
    "/-/ready": _ready,
    "/-/me": _me,
    "/-/recipes": _recipes,
    "/openapi.json": _openapi,
}


def _identified(
    gate: Gate, record: Record, allowed: tuple[str, ...], names: tuple[str, ...] = (), *, needed: bool = True
) -> dict[str, str]:
    """Read and identify as any call is; return what the query gives of ``names``. A paused caller is as good.

    Unless it is ``needed``, a request without a credential is nobody's, and ``record.caller`` stays None. Raises
    :class:`AskedTooOften`: strangers share one allowance, which takes nothing from any caller.
    """
    call, given = read_own(record.environ, allowed, names)
    record.call = call
    policies = record.policies = gate.policies.current(record.deadline)
    if needed or call.credentials:
        caller = record.caller = gate.identity.identify(policies, call, record.now, record.deadline)
        gate.allowance.take(caller.id)
    else:
        gate.allowance.take(None)
    return given


def _described(
    gate: Gate, record: Record, *, grant: str | None = None, key: str | None = None, whole: bool = False
) -> dict[str, Any]:
    """Return what a caller may do, and what became of its ``key``. Without the store, all but what is in it."""
    from console import describe  # noqa: PLC0415 - see above

    caller, policies = record.caller, record.policies
    assert caller is not None  # noqa: S101 - it was identified
    assert policies is not None  # noqa: S101 - by these
    grants = {describe.grant_id(one): one for one in describe.entitlements(caller)}
    standings, missing, became = None, None, None
    try:
        standings = gate.store.left(caller, {one.connection.id: one.connection for one in grants.values()}.values())
        if key is not None:
            became = _became(gate, record, grants if grant is None else {grant: grants[grant]}, key)
    except StoreUnavailable as refusal:
        missing = refusal.reason
    return describe.describe(
        policies,
        caller,
        now=record.now,
        standings=standings,
        missing=missing,
        became=became,
        operator=gate.operator,
        grant=grant,
        whole=whole,
    )


def _became(gate: Gate, record: Record, grants: Mapping[str, Entitlement], key: str) -> list[dict[str, Any]]:
    """Look a key up under each of these grants, as a header, a parameter or the id of a webhook brings it.

    Its name in the ledger is made of the caller's own, so nobody can ask for another's. Raises :class:`CallerPaused`:
    a kept answer is told to nobody who may not call.
    """
    from console.describe import became_of  # noqa: PLC0415 - see above

    caller = record.caller
    assert caller is not None  # noqa: S101 - it was identified
    if caller.paused:
        raise CallerPaused
    names = (unquoted(key) or key, f"webhook,{key}")
    keyed = [one for one in grants.values() if not one.operation.repeatable]
    if len(keyed) > MOST_ENTRIES:
        raise QueryMalformed("Say under which grant the key was used: &grant=ID, as /-/me lists it.", parameter="grant")
    told = []
    for one in keyed:
        places = (identity(caller.first, *one.connection.first, one.operation.id, name) for name in names)
        seen = next((found for place in places if (found := gate.store.state_of(place)) is not None), None)
        place = _place(gate, record, one) if seen is not None else None
        told.append(became_of(one, seen, now=record.clock(), place=place))
    return told


def _place(gate: Gate, record: Record, entitlement: Entitlement) -> str | None:
    """Return where a call would go today; None if the upstream's key, which shows that, cannot be read just now."""
    try:
        return placed(entitlement, gate.secrets.of(entitlement.connection, record.deadline))
    except SecretUnavailable:
        return None


def _path(record: Record) -> str:
    path: str = record.environ["RAW_URI"].partition("?")[0]
    return path


def _told(gate: Gate, record: Record, value: object) -> Response:
    """Answer a caller."""
    record.answer = Answer(200, msgspec.json.encode(value))
    response = respond(record, gate.docs)
    return replace(response, headers={**response.headers, **_POLICY})


def _said(status: int, value: object) -> Response:
    """Answer anybody."""
    body = msgspec.json.encode(value)
    headers = {"Content-Type": JSON, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
    return Response(status, {**headers, "X-Content-Type-Options": "nosniff", **_POLICY}, body)
