"""A compiled policy document: what a document means, in a form that is read at once however many callers it has.

``countersign check --compile`` makes it of a document that is in order, and it stands for that document: it carries the
document's digest, so that the record names the document. It is :data:`MARK`, the SHA-256 of all behind it, the edition
of Countersign that it was compiled by, and MessagePack. Who calls is looked up in a table; what a caller may do stays
bytes until its first call, and grants that say the same are there once.

Its checksum finds damage. It proves nothing of whoever made it: a compiled document is to be trusted as the place where
it lies, just as the document itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from msgspec.structs import astuple

from policies import fields
from policies.model import (
    Budget,
    Caller,
    Connection,
    DocumentError,
    Entitlement,
    Idempotency,
    Kind,
    Limit,
    PolicySet,
    Rule,
)
from policies.operations import OPERATIONS
from policies.upstreams import UPSTREAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

K = TypeVar("K")

#: What every compiled document begins with, whatever its edition. No UTF-8 text has such a first byte.
MARK: Final = b"\xc1countersign"
_DIGEST: Final = hashlib.sha256().digest_size

#: To be raised when a document means something else than before, or is no longer taken: what was compiled before is
#: then refused. A change of the operations' catalogue is seen without it.
EDITION: Final = 1

_Limit = tuple[int, int, str]
_Idempotency = tuple[bool, str | None, int]
_Rule = tuple[str, Kind, int | None, int | None, int | None, frozenset[str] | None, str | None, str | None, bool, bool]
#: A credential: whose it is, what it is on record as, and when it expires.
_Credential = tuple[int, str, float | None]


class _Connection(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    id: str
    name: str
    connection_name: str
    upstream: str
    origin: str
    secret: str
    ceiling: _Limit | None
    version: str | None
    account: str | None


class _Grant(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    connection: str
    operation: str
    idempotency: _Idempotency
    rules: list[_Rule]
    required: tuple[str, ...]
    response: tuple[str, ...]
    stamp: str | None
    record: frozenset[str]


class _Caller(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    owner: str
    limits: list[_Limit]
    budget: tuple[str, _Limit] | None
    grants: list[int]


class _Policy(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    digest: str
    connections: list[_Connection]
    grants: list[msgspec.Raw]
    callers: dict[str, msgspec.Raw]
    keys: dict[bytes, _Credential]
    google: dict[str, _Credential]
    webhooks: list[tuple[str, str, dict[str, _Credential]]]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Policy).decode
_grant: Final = msgspec.msgpack.Decoder(_Grant).decode
_caller: Final = msgspec.msgpack.Decoder(_Caller).decode


def edition() -> bytes:
    """Return what tells this Countersign's understanding of a document from another's."""
    upstreams = [(upstream.id, sorted(upstream.operations)) for upstream in UPSTREAMS.values()]
    return hashlib.sha256(_encode((EDITION, upstreams, list(OPERATIONS.values())))).digest()


def recognised(data: bytes) -> bool:
    """Say whether this is, or was meant to be, a compiled document."""
    return data.startswith(MARK)


# ---------------------------------------------------------------- written


def write(policy_set: PolicySet) -> bytes:
    """Compile what was read of a document. The same document is always the same bytes."""
    tables = _Tables()
    keys = {digest: tables.credential(caller) for digest, caller in policy_set.keys.items()}
    google = {email: tables.credential(caller) for email, caller in policy_set.google.items()}
    webhooks = [
        (*place, {secret: tables.credential(caller) for secret, caller in signers.items()})
        for place, signers in policy_set.webhooks.items()
    ]
    body = _encode(
        _Policy(
            digest=policy_set.digest,
            connections=[
                _Connection(
                    one.id, one.name, one.connection_name, one.upstream.id, one.origin, one.secret,
                    None if one.ceiling is None else _limit(one.ceiling), one.version, one.account,
                )
                for one in policy_set.connections.values()
            ],
            grants=[msgspec.Raw(grant) for grant in tables.grants],
            callers=tables.callers,
            keys=keys,
            google=google,
            webhooks=webhooks,
        )
    )  # fmt: skip
    content = edition() + body
    return MARK + hashlib.sha256(content).digest() + content


class _Tables:
    """The callers and grants of a document as they come up, each written once."""

    def __init__(self) -> None:
        self.callers: dict[str, msgspec.Raw] = {}
        self.grants: dict[bytes, int] = {}
        self._numbers: dict[str, int] = {}

    def credential(self, caller: Caller) -> _Credential:
        if caller.id not in self.callers:
            self._numbers[caller.id] = len(self.callers)
            self.callers[caller.id] = msgspec.Raw(_encode(self._caller(caller)))
        return self._numbers[caller.id], caller.credential, caller.expires

    def _caller(self, caller: Caller) -> _Caller:
        return _Caller(
            owner=caller.owner,
            limits=[_limit(limit) for limit in caller.limits],
            budget=None if caller.budget is None else (caller.budget.currency, _limit(caller.budget.limit)),
            grants=[
                self.grants.setdefault(_written(entitlement), len(self.grants))
                for entitlement in caller.entitlements.values()
            ],
        )


def _written(entitlement: Entitlement) -> bytes:
    idempotency = entitlement.idempotency
    return _encode(
        (
            entitlement.connection.id,
            entitlement.operation.id,
            (idempotency.required, idempotency.parameter, idempotency.seconds),
            [_sorted(astuple(rule)) for rule in entitlement.rules.values()],
            entitlement.required,
            entitlement.response_fields,
            entitlement.stamp,
            sorted(entitlement.record),
        )
    )


def _sorted(values: tuple[object, ...]) -> list[object]:
    return [sorted(value) if isinstance(value, frozenset) else value for value in values]


def _limit(limit: Limit) -> _Limit:
    return limit.calls, limit.seconds, limit.text


# ---------------------------------------------------------------- read


def read(data: bytes, file: str) -> PolicySet:
    """Read a compiled document. ``file`` is what errors call it. Raises :class:`DocumentError`."""
    again = "Compile the document again: ./countersign check DOCUMENT --compile FILE"
    digest, content = data[len(MARK) : len(MARK) + _DIGEST], memoryview(data)[len(MARK) + _DIGEST :]
    damaged = DocumentError(f"{file}: this compiled policy is damaged or cut off. {again}")
    if hashlib.sha256(content).digest() != digest:
        raise damaged
    if content[:_DIGEST] != edition():
        raise DocumentError(
            f"{file}: this policy was compiled by another version of Countersign. {again}, with the version that is to "
            "read it"
        )
    try:
        return _policy_set(_decode(content[_DIGEST:]))
    except (msgspec.MsgspecError, LookupError, ValueError, RecursionError, MemoryError):
        raise damaged from None


def _policy_set(policy: _Policy) -> PolicySet:
    connections = {
        one.id: Connection(
            one.id, one.name, one.connection_name, UPSTREAMS[one.upstream], one.origin, one.secret,
            None if one.ceiling is None else Limit(*one.ceiling), one.version, one.account,
        )
        for one in policy.connections
    }  # fmt: skip
    book = _Book(connections, policy.grants, policy.callers)
    book.look_through()
    return PolicySet(
        digest=policy.digest,
        connections=connections,
        callers=frozenset(policy.callers),
        keys=_Callers(book, policy.keys),
        google=_Callers(book, policy.google),
        webhooks={(name, account): _Callers(book, signers) for name, account, signers in policy.webhooks},
    )


class _Book:
    """What every caller may do, read when it is asked for."""

    __slots__ = ("_callers", "_connections", "_entitlements", "_grants", "_rules")

    def __init__(
        self, connections: Mapping[str, Connection], grants: list[msgspec.Raw], callers: Mapping[str, msgspec.Raw]
    ) -> None:
        self._connections, self._grants, self._callers = connections, grants, list(callers.items())
        self._entitlements: dict[int, Entitlement] = {}
        self._rules: dict[_Rule, Rule] = {}

    def look_through(self) -> None:
        """See that all of it can be read, without keeping it. Raises LookupError and msgspec's errors."""
        fields_of = {operation.id: {*operation.fields, "audit_id"} for operation in OPERATIONS.values()}
        for raw in self._grants:
            grant = _grant(raw)
            if grant.connection not in self._connections or not fields_of[grant.operation].issuperset(grant.response):
                raise LookupError
        for _, raw in self._callers:
            if not all(0 <= number < len(self._grants) for number in _caller(raw).grants):
                raise LookupError

    def __contains__(self, number: int) -> bool:
        return 0 <= number < len(self._callers)

    def caller(self, number: int, credential: str, expires: float | None) -> Caller:
        name, raw = self._callers[number]
        caller = _caller(raw)
        entitlements = [self._entitlement(number) for number in caller.grants]
        return Caller(
            id=name,
            owner=caller.owner,
            credential=credential,
            expires=expires,
            limits=tuple(Limit(*limit) for limit in caller.limits),
            budget=None if caller.budget is None else Budget(caller.budget[0], Limit(*caller.budget[1])),
            entitlements={
                (one.connection.name, one.connection.connection_name, one.operation.id): one for one in entitlements
            },
        )

    def _entitlement(self, number: int) -> Entitlement:
        found = self._entitlements.get(number)
        if found is None:
            found = self._entitlements[number] = self._read(_grant(self._grants[number]))
        return found

    def _read(self, grant: _Grant) -> Entitlement:
        operation = OPERATIONS[grant.operation]
        # Most rules of most grants are the same: what is shared stays in the processor's cache.
        rules = [self._rules.get(rule) or self._rules.setdefault(rule, Rule(*rule)) for rule in grant.rules]
        return Entitlement(
            connection=self._connections[grant.connection],
            operation=operation,
            idempotency=Idempotency(*grant.idempotency),
            rules={rule.path: rule for rule in rules},
            required=grant.required,
            fixed={rule.path: rule.fixed for rule in rules if rule.fixed is not None},
            response=fields.tree_of((path for path in grant.response if path != "audit_id"), operation.fields),
            response_fields=grant.response,
            audit_id_in_answer="audit_id" in grant.response,
            stamp=grant.stamp,
            record=grant.record,
        )


class _Callers(Mapping[K, Caller]):
    """Callers by a credential. Threads may read the same one at once: each gets one that says the same."""

    __slots__ = ("_book", "_read", "_written")

    def __init__(self, book: _Book, written: Mapping[K, _Credential]) -> None:
        if not all(number in book for number, _, _ in written.values()):
            raise LookupError
        self._book, self._written = book, written
        self._read: dict[K, Caller] = {}

    def __getitem__(self, credential: K) -> Caller:
        found = self._read.get(credential)
        if found is None:
            found = self._read[credential] = self._book.caller(*self._written[credential])
        return found

    def __contains__(self, credential: object) -> bool:
        return credential in self._written

    def __iter__(self) -> Iterator[K]:
        return iter(self._written)

    def __len__(self) -> int:
        return len(self._written)
