"""Where limits are counted and the ledger is kept. One protocol; a store is chosen by one setting."""

from __future__ import annotations

import re
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policies.concealed import Concealed
    from policies.idempotency import Held, Verdict
    from policies.issuing import Progress
    from policies.model import Admission, Answer, Caller, Connection, Grant, Left, Seen
    from policies.outcomes import Reply


class Settled(StrEnum):
    """What became of writing an outcome down. False if it was not written."""

    OWED = ""
    WRITTEN = "written"
    OVER = "over"
    """It was, and the caller has spent more than a budget of it allows: what was told late, or came to more."""


class Store(Protocol):
    """What every store does. Each method is one atomic step, on the store's clock."""

    def admit(self, grant: Grant, place: str) -> Admission:
        """Count the call against the caller's limits and the connection's ceiling, and claim its idempotency key.

        ``place`` is where the call goes: the ledger's entry holds for that account only.

        What the call may come to is booked in its budgets, so that no two calls spend the same money. Whoever comes
        back with an open key moves what that holds to now; it is judged anew only where it has left a window.

        All of it happens or none. An answer to repeat comes back in ``Admission.replay`` and uses up nothing. Raises
        :class:`LimitReached`, :class:`CeilingReached`, :class:`BudgetSpent`, the refusals of ``policies.idempotency``,
        and :class:`StoreUnavailable`. Without an admission nothing is sent.
        """

    def peek(self, grant: Grant, place: str) -> Admission:
        """Return or raise what :meth:`admit` would now, by the same judgement. Takes nothing and claims nothing.

        What this process owes the store is paid first, as by any call, so that both judge the same.
        """

    def left(self, caller: Caller, connections: Iterable[Connection], customer: str | None = None) -> tuple[Left, ...]:
        """Return what is left of the caller's limits and budgets, and of the ceilings of these connections.

        Of budgets that each customer has, those of ``customer``; of nobody, only what each comes to is told.
        Takes nothing. Raises :class:`StoreUnavailable`.
        """

    def state_of(self, key: str) -> Seen | None:
        """Return what the ledger holds under ``key``, a grant's ``ledger_key``; None if nothing or expired.

        Raises :class:`StoreUnavailable`.
        """

    def release(self, grant: Grant, admission: Admission) -> None:
        """Undo an admission whose call was not sent. Never raises: if it fails, it is owed (``debts``)."""

    def advance(self, grant: Grant, admission: Admission, progress: Progress) -> Admission | None:
        """Write how far a call in several steps has come, before its next request is sent.

        Before an invoice is finalized its total is booked, if more than what was reserved. Return the admission with
        its new entry; None if the key is not this call's any more. Raises :class:`StoreUnavailable`. In both cases
        nothing more may be sent. Raises :class:`BudgetSpent` if a budget has no room for the total: nothing was
        written, and the draft must go.
        """

    def settle(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer) -> Settled:
        """Write the outcome of a sent call into the ledger. Return whether it was written; never raises.

        What it held is given back, and what it has spent is counted now. What nobody knows stays as it was booked. If
        the outcome was not written, it is owed (``debts``).
        """


class Ledger(Protocol):
    """An operator's access to a ledger that outlives an instance. Raises :class:`StoreUnavailable`."""

    def held(self, prefix: str = "") -> Iterator[Held]:
        """Yield the keys whose ledger name begins with ``prefix``."""

    def resolve(self, key: str, answer: Answer | None, said: str = "") -> Verdict:
        """Decide that an open key's invoice was created (``answer`` is what its callers get) or was not (None).

        ``said`` is that decision and whose it is, for people.

        Only an open key is changed. If its invoice was not created, the key is free.
        """

    def reopen(self, key: str) -> Verdict:
        """Take such a decision back: the key is what it was before, unless a call has met the decision."""


class Shared(Store, Ledger, Protocol):
    """A store that all instances share, and that an operator can reach."""

    def flaw(self) -> str | None:
        """Look at the store before the first call. Return what is wrong that no waiting mends, and what to do.

        None if nothing is, or if it cannot be told yet. Used by the process that is forked later: nothing stays open.
        """


class _Address(NamedTuple):
    """How the address of a shared store is written."""

    pattern: str
    shown: str
    kind: str
    """The class in the module that has the store's name."""
    slips: tuple[tuple[str, str], ...] = ()
    """What goes wrong when it is written, as patterns, and what to say then. The first that matches counts."""


_NAME: Final = "[a-z][a-z0-9-]"
_PROJECT: Final = f"{_NAME}{{4,28}}[a-z0-9]"
#: A name, an IPv4 address, or an IPv6 address in brackets.
_HOST: Final = r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])"
#: Valkey is Redis by another name.
_SCHEME: Final = "(?:rediss?|valkeys?)"
#: A port number.
PORT: Final = "(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
#: By module. A store's client is loaded only if the store is used.
SHARED: Final = {
    "redis": _Address(
        rf"{_SCHEME}://(?:[^\s/?#@]*@)?{_HOST}(?::{PORT})?(?:/[0-9]{{0,3}})?",
        "redis://HOST:PORT/DATABASE",
        "Redis",
        (
            (
                rf"{_SCHEME}://.*[\s/?#@].*@.*",
                (
                    "In the user and the password, percent-encode what means something else in an address: write %23 "
                    "for #, %3F for ?, %2F for /, %40 for @, %25 for %. Or leave the password out, and set "
                    "STORE_PASSWORD."
                ),
            ),
            (
                rf"{_SCHEME}://(?:.*@)?{_HOST}:(?!{PORT}(?:/|$)).*",
                "PORT must be a number from 1 to 65535, such as 6379.",
            ),
            (
                rf"{_SCHEME}://(?:.*@)?{_HOST}(?::[0-9]+)?/.*",
                "DATABASE must be a number, such as 0, with nothing behind it.",
            ),
            (rf"{_SCHEME}://.*", "HOST must be a name or an IP address (IPv6 in brackets, [::1])."),
        ),
    ),
    "firestore": _Address(
        rf"firestore://{_PROJECT}(?:/(?:\(default\)|{_NAME}{{2,61}}[a-z0-9])?)?",
        "firestore://PROJECT/DATABASE",
        "Firestore",
        (
            (
                rf"firestore://{_PROJECT}/.*",
                "DATABASE must be (default), or 4 to 63 of a-z, 0-9 and -, with a letter first and no hyphen last.",
            ),
            (
                "firestore://.*",
                "PROJECT must be the id of a project, such as acme-prod: 6 to 30 of a-z, 0-9 and -.",
            ),
        ),
    ),
}

#: The same of an address that begins like none of them.
_SLIPS: Final = (
    (rf"(?i:memory|(?:{_SCHEME}|firestore)://.*)", "Write memory, or what comes before ://, in lower case."),
    (rf"{_HOST}:{PORT}(?:/.*)?", "Write redis:// before the host."),
    (rf"(?:{_SCHEME}|firestore):/?[^/].*", "Write :// behind the kind of store."),
)


def _written(address: str) -> tuple[str, _Address] | None:
    for name, written in SHARED.items():
        if "://" in address and re.fullmatch(written.pattern, address):
            return (name, written) if _splits(address) else None
    return None


def _splits(address: str) -> bool:
    try:
        urlsplit(address)  # which checks what stands in brackets
    except ValueError:
        return False
    return True


def fault(address: str) -> str | None:
    """Say what is wrong with an address, None if a shared store has it. Nothing of it is quoted: a password may be."""
    if _written(address) is not None:
        return None
    slips = (*(slip for written in SHARED.values() for slip in written.slips), *_SLIPS)
    return next((says for pattern, says in slips if re.fullmatch(pattern, address, re.DOTALL)), "")


def takes_password(address: str) -> bool:
    """Whether this is the address of a store that has a password, and does not hold one."""
    return re.fullmatch(rf"{_SCHEME}://(?:[^:@]*@)?[^@]*", address) is not None


def takes_ca(address: str) -> bool:
    """Whether this is the address of a store whose server shows a certificate that any CA may have signed."""
    return address.startswith(("rediss://", "valkeys://"))


def shared(address: str, password: Concealed[str] | None = None, ca: str = "") -> Shared | None:
    """Return the shared store with this address, None if it is the address of none.

    ``ca``: the CA that signed its server's certificate, in PEM. Raises ssl.SSLError if it is something else.
    """
    found = _written(address)
    if found is None:
        return None
    name, written = found
    if password is not None:
        scheme, _, rest = address.partition("://")
        user, _, place = rest.rpartition("@")
        address = f"{scheme}://{user}:{quote(password.reveal(), safe='')}@{place}"
    more = {"ca": ca} if ca else {}
    store: Shared = getattr(import_module(f"{__name__}.{name}"), written.kind)(address, **more)
    return store
