"""A compiled policy document: the meaning of a document, in a form that loads quickly however many callers it has.

``countersign check --compile`` writes it from a valid document. It carries the document's digest, so that the record
names the document. Its bytes are :data:`MARK`, the SHA-256 of the rest, the fingerprint of the version that compiled
it, and MessagePack. Callers are indexed; their grants stay encoded until first use; identical grants are stored once.

The checksum detects damage, not tampering. Trust a compiled document as much as the place where it is stored, just as
the document itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Final

import msgspec

from policies import signing
from policies.callerkeys import ending
from policies.entitlements import by_place, entitlement
from policies.model import (
    Amount,
    Budget,
    Caller,
    Connection,
    DocumentError,
    Entitlement,
    Idempotency,
    Limit,
    Lines,
    PolicySet,
    Proof,
    Rule,
)
from policies.operations import OPERATIONS
from policies.upstreams import UPSTREAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The first bytes of every compiled document, whatever its edition. No UTF-8 text contains the byte C1.
MARK: Final = b"\xc1countersign"
_DIGEST: Final = hashlib.sha256().digest_size

#: Increase it when the meaning of a document changes, or when a document that was valid no longer is. Documents that
#: were compiled before are then refused. A change of the operations' catalogue, or of the members of a
#: type, is detected without it.
EDITION: Final = 7

#: A credential: its caller's number, its name in the record, when it expires, and the connection it is tied to.
_Credential = tuple[int, str, float | None, str | None]


class _Grant(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """An entitlement, with its connection and operation by name. What can be derived from these is left out."""

    connection: str
    operation: str
    idempotency: Idempotency
    rules: list[Rule]
    required: tuple[str, ...]
    response: tuple[str, ...]
    stamp: str | None
    record: frozenset[str]
    amount: Amount | None
    lines: Lines | None


class _Caller(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    owner: str
    limits: tuple[Limit, ...]
    budgets: tuple[Budget, ...]
    grants: list[int]
    paused: bool
    formerly: str | None
    """Its first name, if that is another."""


class _Policy(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    digest: str
    connections: list[Connection]
    grants: list[msgspec.Raw]
    callers: dict[str, msgspec.Raw]
    proofs: dict[str, dict[bytes, _Credential]]
    """By kind and value."""
    signers: list[tuple[str, str, list[Proof]]]


#: The types that a compiled document holds. Another version's may have other members.
_WRITTEN: Final = (_Policy, _Caller, _Grant, Connection, Limit, Budget, Idempotency, Rule)

_encode: Final = msgspec.msgpack.Encoder().encode
#: Grants contain sets, which have no fixed order.
_encode_sorted: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_decode: Final = msgspec.msgpack.Decoder(_Policy).decode
_grant: Final = msgspec.msgpack.Decoder(_Grant).decode
_caller: Final = msgspec.msgpack.Decoder(_Caller).decode


def edition() -> bytes:
    """Return the fingerprint of this version's interpretation of a document."""
    written = [(kind.__name__, kind.__struct_fields__) for kind in _WRITTEN]
    return hashlib.sha256(_encode((EDITION, written, list(UPSTREAMS), list(OPERATIONS.values())))).digest()


def recognised(data: bytes) -> bool:
    """Whether this is a compiled document, intact or not."""
    return data.startswith(MARK)


# ---------------------------------------------------------------- writing


def write(policy_set: PolicySet) -> bytes:
    """Compile a document that was read. The same document always gives the same bytes."""
    by_kind: dict[str, dict[bytes, Caller]] = {}
    for proof, caller in policy_set.callers.items():
        by_kind.setdefault(proof.kind, {})[proof.value] = caller
    tables = _Tables()
    proofs = {kind: {value: tables.credential(one) for value, one in held.items()} for kind, held in by_kind.items()}
    policy = _Policy(
        digest=policy_set.digest,
        connections=list(policy_set.connections.values()),
        grants=[msgspec.Raw(grant) for grant in tables.grants],
        callers=tables.callers,
        proofs=proofs,
        signers=[(*place, list(proofs)) for place, proofs in policy_set.signers.items()],
    )
    content = edition() + _encode(policy)
    return MARK + hashlib.sha256(content).digest() + content


class _Tables:
    """The callers and grants of a document, interned in order of first use."""

    def __init__(self) -> None:
        self.callers: dict[str, msgspec.Raw] = {}
        self.grants: dict[bytes, int] = {}
        self._numbers: dict[str, int] = {}

    def credential(self, caller: Caller) -> _Credential:
        if caller.id not in self.callers:
            self._numbers[caller.id] = len(self.callers)
            grants = [self.grants.setdefault(_written(one), len(self.grants)) for one in caller.entitlements.values()]
            formerly = caller.first if caller.first != caller.id else None
            written = _Caller(caller.owner, caller.limits, caller.budgets, grants, caller.paused, formerly)
            self.callers[caller.id] = msgspec.Raw(_encode(written))
        tied = None if caller.tied is None else caller.tied.id
        return self._numbers[caller.id], caller.credential, caller.expires, tied


def _written(one: Entitlement) -> bytes:
    grant = _Grant(
        one.connection.id, one.operation.id, one.idempotency, list(one.rules.values()),
        one.required, one.response_fields, one.stamp, one.record,
        one.amount, one.lines,
    )  # fmt: skip
    return _encode_sorted(grant)


# ---------------------------------------------------------------- reading


def read(data: bytes, file: str) -> PolicySet:
    """Read a compiled document. ``file`` is what errors call it. Raises :class:`DocumentError`."""
    again = "Compile the document again: ./countersign check DOCUMENT --compile FILE"
    digest, content = data[len(MARK) : len(MARK) + _DIGEST], memoryview(data)[len(MARK) + _DIGEST :]
    damaged = DocumentError(f"{file}: this compiled policy is damaged or truncated. {again}")
    if hashlib.sha256(content).digest() != digest:
        raise damaged
    if content[:_DIGEST] != edition():
        raise DocumentError(
            f"{file}: this policy was compiled by another version of Countersign. {again}, with the version that will "
            "read it"
        )
    try:
        return _policy_set(_decode(content[_DIGEST:]))
    except (msgspec.MsgspecError, LookupError, ValueError, RecursionError, MemoryError):
        raise damaged from None


def warnings(policy_set: PolicySet, file: str, now: float) -> list[str]:
    """Say of a compiled document what ``document.warnings`` says of the text, as far as it is known without that."""
    ends: dict[str, dict[str, float]] = {}
    for proof, caller in policy_set.callers.items():
        if proof.kind == "key":
            ends.setdefault(caller.id, {})[caller.credential] = inf if caller.expires is None else caller.expires
    return [
        f"{file}: callers.{name}: key {key}: warning: {says}. Make another in the document it was compiled from, "
        f"and compile that again: ./countersign key rotate {name} {key} --policy DOCUMENT"
        for name, keys in ends.items()
        for key, says in ending(keys, name, now)
    ]


def _policy_set(policy: _Policy) -> PolicySet:
    connections = {one.id: one for one in policy.connections}
    if any(one.upstream not in UPSTREAMS for one in policy.connections):
        raise LookupError
    callers = _Callers(policy, connections)
    signers = {(name, account): tuple(proofs) for name, account, proofs in policy.signers}
    return PolicySet(
        digest=policy.digest,
        connections=connections,
        callers=callers,
        names=frozenset(policy.callers),
        kinds=frozenset(policy.proofs),
        signers=signers,
        signature_headers=signing.headers(proof for proofs in signers.values() for proof in proofs),
    )


class _Callers(Mapping[Proof, Caller]):
    """Callers by proof, decoded on first use. Safe for threads.

    Every caller and grant is checked at construction, which raises LookupError or msgspec's errors.
    """

    __slots__ = ("_callers", "_connections", "_entitlements", "_grants", "_proofs", "_read", "_rules")

    def __init__(self, policy: _Policy, connections: Mapping[str, Connection]) -> None:
        self._connections, self._grants, self._proofs = connections, policy.grants, policy.proofs
        self._callers = list(policy.callers.items())
        self._read: dict[Proof, Caller] = {}
        self._entitlements: dict[int, Entitlement] = {}
        self._rules: dict[Rule, Rule] = {}
        fields_of = {operation.id: {*operation.fields, "audit_id"} for operation in OPERATIONS.values()}
        for raw in self._grants:
            grant = _grant(raw)
            if grant.connection not in connections or not fields_of[grant.operation].issuperset(grant.response):
                raise LookupError
        for _, raw in self._callers:
            if not all(0 <= number < len(self._grants) for number in _caller(raw).grants):
                raise LookupError
        for credentials in self._proofs.values():
            for number, _, _, tied in credentials.values():
                if not 0 <= number < len(self._callers) or (tied is not None and tied not in connections):
                    raise LookupError
        if not all(proof in self for _, _, proofs in policy.signers for proof in proofs):
            raise LookupError

    def __getitem__(self, proof: Proof) -> Caller:
        found = self._read.get(proof)
        if found is None:
            found = self._read[proof] = self._caller(
                *self._proofs[proof.kind][proof.value], body_signed=proof.kind == signing.HMAC
            )
        return found

    def _caller(
        self, number: int, credential: str, expires: float | None, tied: str | None, *, body_signed: bool
    ) -> Caller:
        name, raw = self._callers[number]
        caller = _caller(raw)
        entitlements = by_place(self._entitlement(number) for number in caller.grants)
        connection = None if tied is None else self._connections[tied]
        return Caller(
            name, caller.formerly or name, caller.owner, credential, expires,
            caller.limits, caller.budgets, entitlements, connection, caller.paused, body_signed,
        )  # fmt: skip

    def _entitlement(self, number: int) -> Entitlement:
        found = self._entitlements.get(number)
        if found is None:
            grant = _grant(self._grants[number])
            found = self._entitlements[number] = entitlement(
                connection=self._connections[grant.connection],
                operation=OPERATIONS[grant.operation],
                idempotency=grant.idempotency,
                # Most grants have the same rules: interned, they stay in the CPU's cache.
                rules=[self._rules.setdefault(rule, rule) for rule in grant.rules],
                required=grant.required,
                response=grant.response,
                stamp=grant.stamp,
                record=grant.record,
                amount=grant.amount,
                lines=grant.lines,
            )
        return found

    def __contains__(self, proof: object) -> bool:
        return isinstance(proof, Proof) and proof.value in self._proofs.get(proof.kind, ())

    def __iter__(self) -> Iterator[Proof]:
        return (Proof(kind, value) for kind, credentials in self._proofs.items() for value in credentials)

    def __len__(self) -> int:
        return sum(map(len, self._proofs.values()))
