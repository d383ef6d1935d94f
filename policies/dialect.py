"""The interface of a dialect: how to call its upstream, and what the answers mean.

A dialect is pure. It says *where* the upstream's key belongs and never holds it; ``gateway.upstreams`` sends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec
from msgspec.structs import replace

from policies.issuing import Stage
from policies.model import Step

if TYPE_CHECKING:
    from policies.model import Admission, Connection, Grant
    from policies.outcomes import Approval, Reply

FORM: Final = "application/x-www-form-urlencoded"


class KeyPlace(StrEnum):
    """The header line for the upstream's key, up to the key."""

    X_API_KEY = "x-api-key: "
    BEARER = "Authorization: Bearer "


class Outgoing(msgspec.Struct, frozen=True):
    """A request without the upstream's key, which is added only when it is sent."""

    method: str
    url: str
    key: KeyPlace
    headers: Mapping[str, str]
    body: bytes | None
    """None where the request has no body."""
    heard: frozenset[bytes] = frozenset()
    """The response headers that the dialect reads, in lower case. Collecting them takes a little time."""
    private: bool = False
    """Whether the host may resolve to a private address."""


class Setting(msgspec.Struct, frozen=True):
    """A key of a connection that only this upstream has. ``hint`` says what to write if ``pattern`` does not match."""

    pattern: str
    hint: str
    default: str | None = None


class Approvals(ABC):
    """How an upstream is asked what became of a call that waited for a person."""

    @abstractmethod
    def asked(self, grant: Grant, name: str) -> Outgoing:
        """Return the request that asks what became of an approval."""

    @abstractmethod
    def decided(self, status: int, body: bytes) -> Approval:
        """Read the answer to that. One that cannot be read says that it waits."""

    @abstractmethod
    def found(self, grant: Grant, name: str) -> Outgoing:
        """Return the request for what was created or changed, by its id."""

    @abstractmethod
    def shown(self, grant: Grant, status: int, body: bytes) -> tuple[int, bytes]:
        """Return the answer to that, as the call itself would have got it: of what was deleted nothing is found."""


class Dialect(ABC):
    """Everything that is particular to one upstream."""

    id: ClassVar[str]
    title: ClassVar[str]
    """Its name in sentences."""
    origin: ClassVar[str | None] = None
    """The default origin of its API; None if every connection must name one."""
    settings: ClassVar[Mapping[str, Setting]] = {}
    account: ClassVar[str] = ""
    """The setting that names the account; empty if none does."""
    account_headers: ClassVar[tuple[str, ...]] = ()
    """The headers with which its own clients name another account. A call may name the policy's only."""
    deduplicates: ClassVar[int] = 0
    """For how many seconds it repeats its answer to the same idempotency key; 0 if never.

    Within this time, sending the same call again settles an unknown outcome.
    """

    def first(self, grant: Grant, admission: Admission) -> Step:
        """Return the step with which an admitted call begins."""
        entry = admission.entry
        if entry is None or grant.ledger_key is None:
            return Step(admission.owner, resumes=False)
        quiet, resumes = admission.taken >= entry.until, self.approvals is not None
        step = Step(grant.ledger_key, entry.generation, entry.refused, entry.doubt, quiet, resumes)
        operation = grant.entitlement.operation
        if not operation.plan:
            return step
        if operation.whole:
            return replace(step, stage=Stage.CREATE if entry.id is None else Stage.LOOK, id=entry.id)
        return replace(step, stage=Stage.LOOK, id=grant.parameters["invoice"])

    @abstractmethod
    def request(self, grant: Grant, step: Step) -> Outgoing:
        """Return the request of one step. Every part of its URL comes from the policy, or was validated when read."""

    approvals: ClassVar[Approvals | None] = None
    """How to ask what became of an approval; None if it cannot be asked."""

    @abstractmethod
    def judge(self, grant: Grant, step: Step, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """Return the meaning of an answer. ``headers`` are those in the request's ``heard``, and ``retry-after``."""

    def mode_of(self, key: str) -> str | None:  # noqa: ARG002 - for dialects to say more
        """Return ``live`` or ``test`` if the upstream's ``key`` itself tells whose data it opens; else None."""
        return None

    def place(self, connection: Connection) -> str:
        """Identify the account behind a connection. Another version of the same secret is the same account."""
        secret = connection.secret.partition("/versions/")[0]
        return f"{self.id} {connection.origin} {secret} {connection.settings.get(self.account, '')}"
