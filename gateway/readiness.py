"""What ``/-/ready`` says: whether each part that a call passes through can do its work.

Anybody may ask, so each part is looked at once in :data:`LOOK_SECONDS` at most, however many ask, and nobody waits for
another's look. Nothing that has a name or a place is told.
"""

from __future__ import annotations

import threading
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, Final

from policies.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.chain import Audit
    from gateway.reloading import Policies
    from gateway.secrets import Secrets
    from gateway.stores import Store

#: A look costs one read of the store, and of one secret that is not cached.
LOOK_SECONDS: Final = 5.0
#: Half of what the usual prober waits for an answer, and enough for a slow read of a secret.
WAIT_SECONDS: Final = 2.5
#: No key has this name in the ledger.
NO_KEY: Final = "0" * 64


class State(StrEnum):
    """How a part is."""

    OK = "ok"
    BEHIND = "behind"
    """It goes on with what it had: the policy document that is to be in force is refused, or cannot be read."""
    DOWN = "down"
    """No call is served without it; without a connection's key, no call for that connection."""


class Readiness:
    """Looks at the parts of one instance."""

    def __init__(self, policies: Policies, secrets: Secrets, store: Store, audit: Audit) -> None:
        self._policies, self._secrets, self._store, self._audit = policies, secrets, store, audit
        self._lock = threading.Lock()
        self._looked = -inf
        self._found: Mapping[str, State] = {}
        self._keyless: set[str] = set()
        self._turn = 0

    def parts(self) -> Mapping[str, State]:
        """Return the state of each part, by its name, as it was at the latest look. Empty before the first is over."""
        if self._lock.acquire(blocking=False):
            try:
                now = self._audit.monotonic()
                if now - self._looked >= LOOK_SECONDS:
                    self._looked = now
                    self._found = self._look(now + WAIT_SECONDS)
            finally:
                self._lock.release()
        return self._found

    def _look(self, deadline: float) -> dict[str, State]:
        return {
            "policy": _state(lambda: self._policy(deadline)),
            "secret": _state(lambda: self._secret(deadline)),
            "store": _state(lambda: self._store.state_of(NO_KEY)),
            "record": _state(lambda: None if self._audit.writable() else State.DOWN),
        }

    def _policy(self, deadline: float) -> State:
        self._policies.current(deadline)
        return State.BEHIND if self._policies.behind else State.OK

    def _secret(self, deadline: float) -> State:
        """Look for the key of one connection, each in its turn: a policy may have thousands."""
        connections = self._policies.current(deadline).connections
        self._keyless &= connections.keys()
        self._turn = (self._turn + 1) % len(connections)
        connection = list(connections.values())[self._turn]
        try:
            self._secrets.of(connection, deadline)
            self._keyless.discard(connection.id)
        except Refusal:
            self._keyless.add(connection.id)
        return State.DOWN if self._keyless else State.OK


def _state(look: Callable[[], object]) -> State:
    """Carry out a look, which returns a state or something else that means OK."""
    try:
        found = look()
    except Exception:  # noqa: BLE001 - whatever it is, calls would meet it too
        return State.DOWN
    return found if isinstance(found, State) else State.OK
