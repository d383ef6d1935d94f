"""The policy document while the function runs: read again, so that a change takes over without a restart.

An idle instance gets no CPU, so nothing here runs by itself: calls start checks. A check is a thread that reads the
document and, if it changed, judges it as at the start. What a call does depends on the age of the last check:

- up to ``CHECK_SECONDS``: it goes on with the policies at hand;
- up to ``MUST_SECONDS``: the same, and it starts a check if none runs;
- past that, as after a quiet hour: it waits for the check, ``WAIT_SECONDS`` at most for each. On a CPU-throttled
  instance the checking thread may have been frozen since it read; then one more check follows.

A document that cannot be read or is not in order changes nothing, and is on record. The last good one stays for ever.
"""

from __future__ import annotations

import hashlib
import re
import threading
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from gateway.kept import DownError, Kept, Lifetime
from policies import compiled
from policies.model import VERSION, DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.chain import Audit
    from gateway.secrets import SecretManager
    from policies.model import PolicySet

#: What is promised: a change that was made this many seconds ago is in force.
PROMISED_SECONDS: Final = 60.0
#: A read costs next to nothing, but 10,000 callers take seconds to judge if they are not compiled; so a check begins
#: early.
CHECK_SECONDS: Final = 20.0
#: Leaves Secret Manager some seconds to show a new version everywhere.
MUST_SECONDS: Final = PROMISED_SECONDS - 10
#: Leaves a call that waited the time to be made.
WAIT_SECONDS: Final = 15.0
#: After a failed read the next one waits so long.
PAUSE_SECONDS: Final = 5.0
#: A source that stays unreadable is on record this often.
REPORT_SECONDS: Final = 600.0

#: A document of 10,000 callers is about 7 MB.
MAX_DOCUMENT: Final = 16 * 1024 * 1024

_PINNED = re.compile(r".*/versions/[0-9]+")


class SourceError(Exception):
    """The document cannot be read. The text says why and what to do, in words that may go on record."""


class Source(Protocol):
    """Where the document lies."""

    where: str
    changes: bool
    """Whether what is read there can ever be something else."""

    def read(self) -> bytes:
        """Read all of it. Raises :class:`SourceError`."""


class File:
    """A file, or a link that is turned to another: it is opened by its path each time, and compared by content."""

    changes = True

    def __init__(self, where: str) -> None:
        self.where = where

    def read(self) -> bytes:
        """See :class:`Source`."""
        try:
            with Path(self.where).open("rb") as file:
                data = file.read(MAX_DOCUMENT + 1)
        except OSError as error:
            raise SourceError(f"cannot be read ({type(error).__name__}). Write the path of a file.") from None
        if len(data) > MAX_DOCUMENT:
            raise SourceError("is larger than any policy document. Write the document's path.")
        return data


class Version:
    """A Secret Manager version. What a number names never changes; ``latest`` and aliases do."""

    def __init__(self, where: str, manager: SecretManager) -> None:
        self.where, self._manager = where, manager
        self.changes = not _PINNED.fullmatch(where)

    def read(self) -> bytes:
        """See :class:`Source`."""
        try:
            return self._manager.read_document(self.where)
        except DownError as error:
            raise SourceError(f"cannot be read from Secret Manager: {error}.") from None


def source_of(where: str, manager: SecretManager) -> Source:
    """Return the source that ``POLICY`` names."""
    return Version(where, manager) if VERSION.fullmatch(where) else File(where)


def read(data: bytes, where: str) -> PolicySet:
    """Read a policy document or a compiled one, whichever it is. Raises :class:`DocumentError`."""
    if compiled.recognised(data):
        return compiled.read(data, where)
    from policies import document  # noqa: PLC0415 - a compiled one does not pay for YAML's reader

    try:
        return document.read(data.decode(), where)
    except UnicodeDecodeError:
        raise DocumentError(f"POLICY: {where} is not UTF-8 text. Save it as UTF-8.") from None


def digest_of(data: bytes) -> str:
    """Return what tells one reading of the source from another."""
    return hashlib.sha256(data).hexdigest()


def judge(data: bytes, where: str, *, on_cloud: bool, google: bool) -> PolicySet:
    """Say whether the function may work by this document; at the start, and whenever it changed.

    ``google``: whether it is set what Google's tokens must be made for. Raises :class:`DocumentError`.
    """
    policies = read(data, where)
    if on_cloud and any(connection.origin.startswith("http:") for connection in policies.connections.values()):
        raise DocumentError("POLICY sends calls to this machine, as the sandbox's does. Deploy a policy of your own.")
    if "google" in policies.kinds and not google:
        raise DocumentError(
            "POLICY names a Google identity, and nothing says whom its tokens must be made for. Write AUDIENCE and "
            "the function's own address (https://...), or IAM=guards where Cloud Run's IAM refuses all others."
        )
    return policies


class Policies:
    """The policies in force."""

    def __init__(  # noqa: PLR0913 - each is another part of the world
        self,
        source: Source,
        judge: Callable[[bytes], PolicySet],
        first: PolicySet,
        *,
        digest: str,
        read_at: float,
        audit: Audit,
        clock: Callable[[], float],
    ) -> None:
        """``first`` was judged at the start, of bytes of that ``digest``, read not before ``read_at`` on ``clock``."""
        self._source, self._judge, self._audit, self._clock = source, judge, audit, clock
        # Written by the checking thread alone, of which there is one at a time.
        self._policies, self._digest, self._as_of = first, digest, read_at
        self._refused = ""
        self._report_at = read_at
        lifetime = Lifetime(CHECK_SECONDS, MUST_SECONDS, inf) if source.changes else Lifetime(inf, inf, inf)
        self._kept = Kept(
            self._check, lambda _: lifetime, pause=PAUSE_SECONDS, clock=clock, run=_on_a_thread, patience=WAIT_SECONDS
        )
        self._kept.put(source.where, first, read_at)

    def current(self, deadline: float) -> PolicySet:
        """Return the policies for one whole call, which must end by ``deadline``."""
        return self._kept.get(self._source.where, deadline)

    def _check(self, _where: str, _deadline: float) -> PolicySet:
        began = self._clock()
        try:
            self._look()
        except SourceError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the last good policies stay
            problem = f"cannot be read ({type(error).__name__})."
        else:
            self._as_of = began
            return self._policies
        self._report(problem)
        raise DownError(problem)

    def _look(self) -> None:
        data = self._source.read()
        digest, kept = digest_of(data), self._policies
        if digest == self._digest:
            self._refused = ""
        elif digest != self._refused:
            try:
                policies = self._judge(data)
            except DocumentError as error:
                self._refused = digest
                self._audit.policy_refused(kept.digest, str(error), document=digest)
                return
            self._refused = ""
            self._audit.policy_taken(policies.digest)
            self._policies, self._digest = policies, digest

    def _report(self, problem: str) -> None:
        now = self._clock()
        if now - self._as_of >= MUST_SECONDS and now >= self._report_at:
            self._report_at = now + REPORT_SECONDS
            self._audit.policy_refused(self._policies.digest, f"POLICY: {self._source.where} {problem}")


def _on_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="policy").start()
