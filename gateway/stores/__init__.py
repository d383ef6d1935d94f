"""Where limits are counted and the ledger is kept. One protocol; a store is chosen by one setting."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.idempotency import Held, Verdict
    from policies.model import Admission, Answer, Grant
    from policies.outcomes import Reply


class Store(Protocol):
    """What every store does. Each method is one atomic step, on the store's clock."""

    def admit(self, grant: Grant) -> Admission:
        """Count the call against the caller's limits and the connection's ceiling, and claim its idempotency key.

        A caller whose budget is spent is not admitted. What a call spends is known, and counted, when it is settled.

        All of it happens or none. An answer to repeat comes back in ``Admission.replay`` and uses up nothing. Raises
        :class:`LimitReached`, :class:`CeilingReached`, :class:`BudgetSpent`, the refusals of ``policies.idempotency``,
        and :class:`StoreUnavailable`. Without an admission nothing is sent.
        """

    def release(self, grant: Grant, admission: Admission) -> None:
        """Undo an admission whose call was not sent. Never raises: if it fails, the claim's lease runs out."""

    def settle(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer) -> bool:
        """Write the outcome of a sent call into the ledger. Return whether it was written; never raises."""


class Ledger(Protocol):
    """An operator's access to a ledger that outlives an instance. Raises :class:`StoreUnavailable`."""

    def held(self, prefix: str = "") -> Iterator[Held]:
        """Yield the keys whose ledger name begins with ``prefix``."""

    def resolve(self, key: str, answer: Answer | None) -> Verdict:
        """Decide that an open key's invoice was created (``answer`` is what its callers get) or was not (None).

        Only an open key is changed. If its invoice was not created, the key is deleted and may be sent afresh.
        """


class Shared(Store, Ledger, Protocol):
    """A store that all instances share, and that an operator can reach."""


class _Address(NamedTuple):
    """How the address of a shared store is written."""

    pattern: str
    shown: str
    kind: str
    """The class in the module that has the store's name."""


_NAME: Final = "[a-z][a-z0-9-]"
#: By module. A store's client is loaded only if the store is used.
SHARED: Final = {
    "redis": _Address(
        r"rediss?://(?:[^\s/@]*@)?(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?(?:/[0-9]{0,3})?",
        "redis://HOST:PORT/DATABASE",
        "Redis",
    ),
    "firestore": _Address(
        rf"firestore://{_NAME}{{4,28}}[a-z0-9](?:/(?:\(default\)|{_NAME}{{2,61}}[a-z0-9])?)?",
        "firestore://PROJECT/DATABASE",
        "Firestore",
    ),
}


def shared(address: str) -> Shared | None:
    """Return the shared store with this address, None if it is the address of none."""
    for name, written in SHARED.items():
        if re.fullmatch(written.pattern, address):
            store: Shared = getattr(import_module(f"{__name__}.{name}"), written.kind)(address)
            return store
    return None
