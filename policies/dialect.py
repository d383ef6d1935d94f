"""What every dialect says: how its upstream is asked, and what its answers mean.

A dialect is pure. It says *where* the upstream's key belongs and never holds it; ``gateway.upstreams`` sends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

if TYPE_CHECKING:
    from policies.model import Connection, Grant
    from policies.outcomes import Reply

FORM: Final = "application/x-www-form-urlencoded"


class KeyPlace(StrEnum):
    """The header line that holds the upstream's key, up to the key."""

    X_API_KEY = "x-api-key: "
    BEARER = "Authorization: Bearer "


class Step(msgspec.Struct, frozen=True):
    """One send of a granted call."""

    name: str
    """What names the call at an upstream that deduplicates: the ledger's name of its key, or the admission's owner."""
    doubt: bool = False
    """Whether an earlier send may have had an effect that nobody read."""


class Outgoing(msgspec.Struct, frozen=True):
    """A request without the upstream's key, which only sending puts in."""

    method: str
    url: str
    key: KeyPlace
    headers: Mapping[str, str]
    body: bytes | None
    """None where the request has no body."""
    heard: frozenset[bytes] = frozenset()
    """The headers of the answer that the dialect reads, in lower case. Listening costs a little."""
    private: bool = False
    """Whether the host may resolve to a private address."""


class Setting(msgspec.Struct, frozen=True):
    """A key that a connection takes at one upstream only: what it may be, and what to write instead."""

    pattern: str
    hint: str
    default: str | None = None


class Dialect(ABC):
    """Everything that is particular to one upstream."""

    id: ClassVar[str]
    title: ClassVar[str]
    """Its name in sentences."""
    origin: ClassVar[str | None] = None
    """Where its API is, unless a connection says otherwise."""
    settings: ClassVar[Mapping[str, Setting]] = {}
    account: ClassVar[str] = ""
    """The setting that says whose account is used, if one does."""
    deduplicates: ClassVar[int] = 0
    """For how many seconds it answers the same key with the same answer; 0 if it never does.

    So long an unknown outcome is proved by sending the same call again.
    """

    @abstractmethod
    def request(self, grant: Grant, step: Step) -> Outgoing:
        """Return the request of one step. Every part of its address comes from the policy, or was bounded when read."""

    @abstractmethod
    def judge(self, grant: Grant, step: Step, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """Return what an answer means. ``headers`` are those that the request asked to hear, and ``retry-after``."""

    def place(self, connection: Connection) -> str:
        """Return whose data a connection opens: another version of a secret opens the same."""
        secret = connection.secret.partition("/versions/")[0]
        return f"{self.id} {connection.origin} {secret} {connection.settings.get(self.account, '')}"
