"""The data types. Every value is frozen, and each stage of a call passes its own to the next:

``Call`` + ``Caller`` -> ``Grant`` -> ``Secret``, ``Admission`` -> ``Reply`` (which ``outcomes`` makes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from policies.concealed import Concealed

#: What names and identifiers look like, in a policy document and in a call alike.
NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")

#: A version in Secret Manager; where it has a location, of a regional secret.
VERSION: Final = re.compile(
    r"projects/(?P<project>[a-z0-9:.-]{1,63})/(?:locations/(?P<location>[a-z][a-z0-9-]{0,61}[a-z0-9])/)?"
    r"secrets/(?P<secret>[A-Za-z0-9_-]{1,255})/versions/(?P<version>[A-Za-z0-9_-]{1,63})"
)
#: One that is mounted as a file.
_MOUNTED = re.compile(r"file:.+")


def names_secret(text: str) -> bool:
    """Whether ``text`` says where a secret lies: a version, or the file of a mounted one."""
    return VERSION.fullmatch(text) is not None or _MOUNTED.fullmatch(text) is not None


#: Whose data a connection may be for.
MODES: Final = ("live", "test")

# ---------------------------------------------------------------- operations: what an upstream can do


class Kind(StrEnum):
    """The type of a parameter's value. On the wire all are text."""

    STRING = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    TIMESTAMP = "unix timestamp"
    CURRENCY = "currency"
    OBJECT = "object"
    ARRAY = "list"


class Risk(StrEnum):
    """What granting a parameter lets a caller do.

    The id in the path of an operation that does more than read or write a draft stands for what the operation does.
    """

    PLAIN = "plain"
    CHANGES = "changes price or content"
    REROUTES = "reroutes money"
    COLLECTS = "triggers collection"
    MAILS = "mails the customer"
    UNDOES = "undoes an invoice"
    WIDENS = "widens the answer"


#: Groups that a policy may grant whole; every other parameter is granted by its own name.
WHOLESALE: Final = frozenset({Risk.PLAIN, Risk.CHANGES})


class Parameter(msgspec.Struct, frozen=True):
    """One parameter of an operation. ``path`` writes a list index as ``{i}``, a free key as ``{key}``.

    ``needed``: its parent is refused without it, or at the top level the call. ``unsets``: the empty string is allowed
    and means unset.
    ``free``: text for people to read, where white space at the ends does no harm. Any other text is an id or a word.
    ``max_items`` bounds the entries of a list or a free-key object, ``max_key`` the length of a free key.
    ``upstreams``: those that take it, by the ids of their dialects; empty if all do that offer the operation.
    """

    path: str
    kind: Kind
    risk: Risk
    max_length: int | None = None
    max_items: int | None = None
    max_key: int | None = None
    one_of: tuple[str, ...] | None = None
    needed: bool = False
    unsets: bool = False
    free: bool = False
    minimum: int | None = None
    maximum: int | None = None
    upstreams: tuple[str, ...] = ()


class Words(NamedTuple):
    """What a parameter is called on a page for people, a sentence on what it means, and a value that could be real."""

    label: str
    means: str
    example: str


class Shape(StrEnum):
    """What a granted response field may hold. Anything else an upstream puts there is answered as null."""

    SCALAR = "scalar"
    SCALARS = "list of scalars"
    MAP = "object of scalars"


class Effect(StrEnum):
    """What a call of an operation does to the upstream's data. RFC 9110, 9.2.1 calls the last one safe."""

    CREATES = "creates"
    CHANGES = "changes"
    LOOKS = "looks"


class Spending(msgspec.Struct, frozen=True):
    """Which members of the answer say what a call has spent: an amount in minor units, and its currency.

    ``at`` names the upstreams where it is spent; elsewhere the same members are those of a draft, which asks nobody for
    money. None if that is everywhere.
    """

    amount: str
    currency: str
    at: tuple[str, ...] | None = None


class Verb(NamedTuple):
    """What an operation does, for sentences: "finalize", and when it is done "finalized"."""

    does: str
    done: str


#: By effect, for an operation that has no verb of its own.
_VERBS: Final = {
    Effect.CREATES: Verb("raise", "raised"),
    Effect.CHANGES: Verb("change", "changed"),
    Effect.LOOKS: Verb("look at", "looked at"),
}


class Operation(msgspec.Struct, frozen=True):
    """What may be asked of an upstream: its parameters, and the fields of its answer by dotted path."""

    id: str
    effect: Effect
    method: str
    path: str
    """Below ``/v1`` at Stripe and below ``/stripe`` here; a parameter's name in braces stands for its value."""
    upstreams: tuple[str, ...]
    """The upstreams that offer it, by the ids of their dialects."""
    parameters: Mapping[str, Parameter]
    fields: Mapping[str, Shape]
    answers: str
    """The value of ``object`` in every answer of this operation."""
    noun: str
    """The name of the object that it is about, for sentences: "invoice"."""
    ids: str
    """The pattern of the ids of that object. An id that does not match stays out of the record."""
    spends: Spending | None = None
    own_verb: Verb | None = None
    plan: str = ""
    """Of a call in several steps: the module of ``policies`` that plans them, ``issuing`` or ``finalizing``."""
    finds: str = ""
    """Of a search for one object: the parameter that it is found by. The answer is a list of those that match."""

    @property
    def verb(self) -> Verb:
        """What it does, for sentences."""
        return self.own_verb or _VERBS[self.effect]

    @property
    def may(self) -> str:
        """What may be, where it is not known what became of a call: "the invoice may exist"."""
        return f"the {self.noun} may {'exist' if self.effect is Effect.CREATES else f'have been {self.verb.done}'}"

    @property
    def twice(self) -> str:
        """What must not happen: "raise a second invoice"."""
        return f"{self.verb.does} a second {self.noun}" if self.effect is Effect.CREATES else "do it twice"

    @property
    def bodyless(self) -> bool:
        """Whether its parameters are in the address: RFC 9110, 9.3.1 and 9.3.5."""
        return self.method in {"GET", "DELETE"}

    @property
    def idempotent(self) -> bool:
        """Whether a second call changes nothing more, with or without a key (RFC 9110, 9.2.2)."""
        return self.method == "DELETE"

    @property
    def resumes(self) -> bool:
        """Whether an open call may be sent again however long ago it was sent first.

        One in several steps looks before it does anything.
        """
        return bool(self.plan) or self.idempotent

    def spends_at(self, upstream: str) -> bool:
        """Whether a call asks somebody for money at this upstream, so that budgets count it."""
        return self.spends is not None and (self.spends.at is None or upstream in self.spends.at)

    @property
    def repeatable(self) -> bool:
        """Whether a call may be sent twice without harm. Any other has an idempotency key and a ledger entry."""
        return self.effect is Effect.LOOKS

    @property
    def whole(self) -> bool:
        """Whether it raises a whole invoice: of lines, in several steps (see ``policies.issuing``)."""
        return self.plan == "issuing"


# ---------------------------------------------------------------- the policy document, read


class DocumentError(Exception):
    """What is wrong with a document: ``FILE:LINE: KEY: what to do about it``."""


class Limit(msgspec.Struct, frozen=True, array_like=True):
    """Never more than ``calls`` admitted in any ``seconds``, however they are spread."""

    calls: int
    seconds: int
    text: str


#: What a budget may be counted for each of: the name of a parameter, whose every value has a budget of its own.
EACH: Final = ("customer",)


class Budget(msgspec.Struct, frozen=True, array_like=True):
    """Invoices of any ``limit.seconds`` come to no more than ``limit.calls`` minor units of ``currency``."""

    currency: str
    limit: Limit
    each: str | None = None
    """One of :data:`EACH` if it holds for each of these by itself; None if it is the caller's in all."""


class Connection(msgspec.Struct, frozen=True, array_like=True):
    """A named upstream account. ``secret`` is the place of its key, never the key."""

    id: str
    name: str
    connection_name: str
    upstream: str
    """The id of its dialect."""
    origin: str
    secret: str
    ceiling: Limit | None = None
    private: bool = False
    """Whether the origin's host may resolve to a private address."""
    settings: Mapping[str, str] = {}
    """The settings of its dialect, such as Stripe's ``version``."""
    mode: str = ""
    """``live`` or ``test``: a key that says otherwise is not used. Empty if the policy does not tell."""
    first: tuple[str, str] = ("", "")
    """Its first ``name`` and ``connection_name``, which stay when it gets others."""
    place: str = ""
    """Identifies the account, as far as the policy tells. A new version of the same secret is the same account."""


class Rule(msgspec.Struct, frozen=True, array_like=True):
    """What one parameter may be under one grant: the catalogue's bounds narrowed by the policy's."""

    path: str
    kind: Kind
    max_length: int | None = None
    minimum: int | None = None
    maximum: int | None = None
    one_of: frozenset[str] | None = None
    prefix: str | None = None
    fixed: str | None = None
    required: bool = False
    unsets: bool = False
    free: bool = False


class Idempotency(msgspec.Struct, frozen=True, array_like=True):
    """Where a call's idempotency key comes from, and for how many seconds its answer is kept.

    ``parameter`` names the parameter whose value is the key; without one it is the Idempotency-Key header. A call that
    creates nothing has no key.
    """

    required: bool
    parameter: str | None
    seconds: int
    prefix: str = ""
    """How every key must begin, with something behind it; empty if that is free."""


class Amount(msgspec.Struct, frozen=True, array_like=True):
    """What one invoice of a grant may come to, tax included, in minor units, and in which currencies."""

    max: int | None = None
    currencies: tuple[str, ...] = ()
    """Empty if any will do."""


class Lines(msgspec.Struct, frozen=True, array_like=True):
    """What the lines of a whole invoice may be: how many, and whether one may lower the sum."""

    max: int
    credit: bool = False


class Entitlement(msgspec.Struct, frozen=True):
    """One entry under a caller's ``grants``: what this caller may ask of one connection."""

    connection: Connection
    operation: Operation
    idempotency: Idempotency
    rules: Mapping[str, Rule]
    """By parameter path, exact (``metadata[cost_center]``) or as the catalogue writes it."""
    required: tuple[str, ...]
    fixed: Mapping[str, str]
    response: Mapping[str, Shape | Mapping[str, object]]
    response_fields: tuple[str, ...]
    audit_id_in_answer: bool
    stamp: str | None
    """The metadata entry that carries the ledger's name of the call to the upstream."""
    record: frozenset[str]
    """Parameters whose values, not only their digests, go on record."""
    amount: Amount | None = None
    lines: Lines | None = None
    """None where the operation has no lines."""


class Caller(msgspec.Struct, frozen=True):
    """A caller of the policy, with the credential that proved it.

    ``credential`` is what the record says: a key's id, ``google:EMAIL``, or ``webhook:`` and where its secret lies.
    """

    id: str
    first: str
    """Its first name, which stays when it gets another: its keys, limits and budget are kept under that."""
    owner: str
    credential: str
    expires: float | None
    """When this credential stops working, in unix seconds."""
    limits: tuple[Limit, ...]
    budgets: tuple[Budget, ...]
    entitlements: Mapping[tuple[str, str, str], Entitlement]
    """By (name, connection_name, operation)."""
    tied: Connection | None = None
    """The only connection that this credential may use, which a call then need not name."""
    paused: bool = False
    """Whether every call of this caller is refused for now."""
    body_signed: bool = False
    """Whether this credential is a signature over the body, and proves nothing of any header."""


class Proof(NamedTuple):
    """What proves who calls: the kind of credential, and what the policy document knows of it."""

    kind: str
    value: bytes


class PolicySet(msgspec.Struct, frozen=True):
    """A whole policy document, checked. ``digest`` names exactly this document in the record."""

    digest: str
    connections: Mapping[str, Connection]
    callers: Mapping[Proof, Caller]
    names: frozenset[str]
    """The ids of all callers."""
    kinds: frozenset[str]
    """The kinds of all credentials."""
    signers: Mapping[tuple[str, str], tuple[Proof, ...]]
    """By (name, connection_name): the proofs of its callers whose credential does not name them."""
    signature_headers: frozenset[str] = frozenset()
    """The headers, in lower case, of signatures in the written scheme."""


# ---------------------------------------------------------------- one call

#: The header with the id of a signed webhook: as Standard Webhooks names it, and as Svix, where that comes from.
WEBHOOK_IDS: Final = frozenset({"webhook-id", "svix-id"})


class Call(msgspec.Struct, frozen=True):
    """What arrived, bounded and split, not yet judged."""

    operation: str
    name: str
    """Empty, and ``connection_name`` too, if the path leaves the connection to the credential."""
    connection_name: str
    credentials: Mapping[str, Concealed[str]]
    """The headers that may prove who calls, as they came, by the names that their kinds give them."""
    media: str
    """``form`` or ``json``."""
    body: bytes
    """The encoded parameters: the body or, for a GET, the rest of the query."""
    idempotency_key: str | None
    validate_only: bool
    path_parameters: Mapping[str, str] = {}
    """The parameters that the path holds."""
    accounts: Mapping[str, str] = {}
    """The account that the call is for, by each header that names one. An empty header names none."""
    environ: Mapping[str, Any] = {}
    """Where headers are looked up whose names only the policy knows."""

    def __repr__(self) -> str:
        """Leave out everything that may contain a customer's data."""
        return f"Call({self.operation!r}, {self.name!r}, {self.connection_name!r})"


class Grant(msgspec.Struct, frozen=True):
    """A call the policy approves, with all that later stages need. Only ``access.decide`` makes one."""

    caller: Caller
    entitlement: Entitlement
    parameters: Mapping[str, str]
    """By bracket path, canonical order, fixed values filled in."""
    form: bytes
    """What goes upstream, form-encoded."""
    ledger_key: str | None
    """The ledger's identity of (caller, name, connection_name, operation, idempotency key), each by its first name."""
    fingerprint: str
    """Of what was asked: the same key with another fingerprint is another call."""
    written: str
    """Of the form: what an upstream that deduplicates compares under one key."""
    policy: str
    validate_only: bool

    resend_seconds: int
    """For how long a call with this key may be sent again if its outcome is unknown."""
    reserve: int = 0
    """What it may come to, in minor units: this is booked in ``budgets`` before it is sent."""
    currency: str = ""
    """Of that sum. Empty if the call does not name one; then it is taken as that of each budget."""
    budgets: tuple[Budget, ...] = ()
    """The budgets that it counts against."""


class Standing(msgspec.Struct, frozen=True):
    """How much of one limit is left, for the RateLimit header."""

    limit: Limit
    remaining: int
    reset: int
    """Seconds until more is left than now."""


class Left(msgspec.Struct, frozen=True):
    """How much is left of a limit, a ceiling or a budget, and when there is more.

    All of it is in calls, or with a ``currency`` in minor units.
    """

    kind: str
    """``limit`` and ``budget`` are the caller's own, ``ceiling`` is the connection's."""
    limit: Limit
    remaining: int | None
    """Never below 0. None of a ceiling that has room: how much others call is not told. Likewise with ``each``."""
    more: int
    """How much more there is in ``reset`` seconds. 0 of a ceiling, and where all is left or nothing is said."""
    reset: int
    """Seconds until there is more; 0 where all is left, and of a ceiling that has room."""
    full: int
    """Seconds until all is left if nothing else is used; 0 where it is, and of a ceiling."""
    currency: str = ""
    connection: str = ""
    """The id of a ceiling's connection."""
    each: str | None = None
    """See :class:`Budget`. Where it is not said of whom, ``remaining`` is None."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a caller is told: an HTTP status and a JSON body."""

    status: int
    body: bytes
    partial: bool = False
    """Whether nobody knows more than the members in it: it is an operator's word. What else is granted is null."""


class State(StrEnum):
    """The state of a key in the ledger."""

    SENT = "sent"
    """Claimed by a call that may be under way, until its lease runs out."""
    UNKNOWN = "unknown"
    """An invoice may exist, or a person has yet to approve it."""
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    """Refused in words that do not prove that nothing was created. Not sent again by itself."""
    FREE = "free"
    """Nothing was created: the key runs fresh. The entry only says how far it has been used at the upstream."""


class Reserved(msgspec.Struct, frozen=True, array_like=True):
    """Money that a call has booked in budgets for what it may come to."""

    amount: int
    """In minor units."""
    at: float
    """When it was booked, on the store's clock: it is given back in that bucket, and nowhere else."""
    windows: tuple[tuple[str, int], ...]
    """The windows that it was booked in: each one's name, and its length in seconds."""
    anew: bool = False
    """Booked again without being judged, since an operator took a decision back. Others may have the room by now, so
    the call that comes back is judged: what it holds is not enough by itself."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the ledger stores for one key. Times are on the store's clock, in seconds."""

    state: State
    owner: str
    """The token of the call that claimed it last."""
    caller: str
    connection: str
    operation: str
    fingerprint: str
    """Of what was asked."""
    written: str
    """Of the form that was sent. Another one is not sent while the outcome of this one is open."""
    place: str
    """Where it was sent. Only this upstream account knows the key."""
    sent: float
    """When this generation of the key was first claimed: no send of it can be earlier."""
    lease_until: float
    expires: float | None = None
    """None until it is settled: an entry that is open never expires."""
    generation: int = 0
    """How many keys derived from this one the upstream has closed by a refusal that it keeps."""
    refused: bool = False
    """Whether this generation was sent before, and refused: nothing was created, but the upstream may keep that."""
    doubt: bool = False
    """Whether a send of this generation may have had an effect that nobody read."""
    until: float = 0.0
    """When the lease of the last such send ends: none of them arrives later."""
    mute: bool = False
    """The upstream repeats an answer that proves nothing, so sending the call again would prove nothing either. With an
    ``id``: an operator was told that the invoice is not as it was asked for."""
    approval: str | None = None
    """The approval that it waits for, by the upstream's name."""
    answer: Answer | None = None
    step: str = ""
    """Of a call in several steps: the one that is or may be under way."""
    id: str | None = None
    """Of a call in several steps: what it works on."""
    said: str = ""
    """An operator's decision about it, and whose: the last one."""
    told: float = 0.0
    """When a call first met that decision, in unix seconds; 0 until then."""
    before: Entry | None = None
    """What that decision was taken about. None once a call has met it: from then on it stands."""
    reserved: Reserved | None = None
    """What it holds of the caller's budgets until it is settled."""


class Seen(NamedTuple):
    """A ledger entry that was looked at, and when: ``now`` is on the store's clock, as the entry's times are."""

    entry: Entry
    now: float


class Admission(msgspec.Struct, frozen=True):
    """The store's admission: limits taken and the ledger's entry claimed, or an earlier answer to repeat."""

    standings: tuple[Standing, ...]
    owner: str
    """Proves to the store that a settlement comes from the call that claimed."""
    taken: float
    """When the store counted the call, on the store's clock."""
    entry: Entry | None = None
    """The claim; None without a key."""
    replay: Answer | None = None
    reserved: Reserved | None = None
    """What a call without a key has booked in budgets."""


class Step(msgspec.Struct, frozen=True):
    """One send of a granted call."""

    name: str
    """Identifies the call to an upstream that deduplicates: the ledger's name of its key, or the admission's owner."""
    generation: int = 0
    """See :class:`Entry`, also for the next two."""
    refused: bool = False
    doubt: bool = False
    quiet: bool = True
    """Whether the leases of all earlier sends of unknown outcome were over when this call was admitted."""
    resumes: bool = True
    """Whether the caller can come back with the same key and be told what became of an approval."""
    stage: str = ""
    """Of a call in several steps: which request this is (``policies.issuing.Stage``)."""
    id: str | None = None
    """What that request is about."""


class Outcome(StrEnum):
    """How a sent call ended, which determines the ledger's next state."""

    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    """Refused in words that do not prove that nothing was created. Probably nothing was; it is not sent again."""
    FREED = "freed"
    """Refused in words that prove that nothing was created: the same key may be used for a mended call."""
    RELEASED = "released"
    """Not carried out, and the same call may be sent again."""
    UNKNOWN = "unknown"
    """An invoice may exist. Sent again only to an upstream that then answers with the same invoice."""
