"""Reads the policy document again while the function runs, so that a change takes effect without a restart.

An idle instance gets no CPU, so nothing here runs by itself: calls start checks. A check is a thread that reads the
document and, if it changed, judges it as at the start. What a call does depends on the age of the last check:

- up to ``CHECK_SECONDS``: it goes on with the policies at hand;
- up to ``MUST_SECONDS``: the same, and it starts a check if none runs;
- past that, as after a quiet hour: it waits for the check, ``WAIT_SECONDS`` at most for each. On a CPU-throttled
  instance the checking thread may have been frozen since it read; then one more check follows.

A document that is unreadable or invalid changes nothing and is recorded. The last good one stays in force, however old.
"""

from __future__ import annotations

import hashlib
import re
import threading
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from gateway import files
from gateway.kept import DownError, Kept, Lifetime
from gateway.presented import retired
from gateway.secrets import mending
from policies import compiled
from policies.model import VERSION, DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.chain import Audit
    from gateway.secrets import SecretManager
    from policies.model import PolicySet

#: The promise: a change is in force within this many seconds.
PROMISED_SECONDS: Final = 60.0
#: A read is cheap, but checking 10,000 callers takes seconds if they are not compiled. So a check begins early.
CHECK_SECONDS: Final = 20.0
#: Leaves Secret Manager some seconds to propagate a new version.
MUST_SECONDS: Final = PROMISED_SECONDS - 10
#: Leaves a call that waited enough of its 25 s to be made.
WAIT_SECONDS: Final = 15.0
#: Seconds between a failed read and the next.
PAUSE_SECONDS: Final = 5.0
#: A source that stays unreadable is recorded once in this many seconds.
REPORT_SECONDS: Final = 600.0

#: A document of 10,000 callers is about 7 MB.
MAX_DOCUMENT: Final = 16 * 1024 * 1024

_PINNED: Final = r".*/versions/[0-9]+"


class SourceError(Exception):
    """The document cannot be read. The text says why and what to do, in words that may go on record."""


class Source(Protocol):
    """Where the document is read."""

    where: str
    changes: bool
    """Whether its content can change."""

    def read(self) -> bytes:
        """Read all of it. Raises :class:`SourceError`."""


class File:
    """A file, or a symlink whose target may change: each read opens the path again."""

    changes = True

    def __init__(self, where: str) -> None:
        self.where = where

    def read(self) -> bytes:
        """See :class:`Source`."""
        try:
            data = files.read(self.where, MAX_DOCUMENT + 1)
        except files.UnreadableError as error:
            raise SourceError(f"cannot be read ({error}). Write the path of a file.") from None
        if len(data) > MAX_DOCUMENT:
            raise SourceError("is larger than any policy document. Write the document's path.")
        return data


class Version:
    """A Secret Manager version. A numbered version never changes; ``latest`` and aliases do."""

    def __init__(self, where: str, manager: SecretManager) -> None:
        self.where, self._manager = where, manager
        self.changes = not re.fullmatch(_PINNED, where)

    def read(self) -> bytes:
        """See :class:`Source`."""
        try:
            return self._manager.read(self.where)[1]
        except DownError as error:
            raise SourceError(f"cannot be read from Secret Manager: {error}. {mending(error)}".rstrip()) from None


def source_of(where: str, manager: SecretManager) -> Source:
    """Return the source that ``POLICY`` names."""
    return Version(where, manager) if VERSION.fullmatch(where) else File(where)


def read(data: bytes, where: str) -> PolicySet:
    """Read a policy document or a compiled one, whichever it is. Raises :class:`DocumentError`."""
    if compiled.recognised(data):
        return compiled.read(data, where)
    from policies import document  # noqa: PLC0415 - a compiled one does not need YAML's reader

    try:
        return document.read(data.decode(), where)
    except UnicodeDecodeError:
        raise DocumentError(f"POLICY: {where} is not UTF-8 text. Save it as UTF-8.") from None


def digest_of(data: bytes) -> str:
    """Return a digest that shows whether the source has changed."""
    return hashlib.sha256(data).hexdigest()


def judge(data: bytes, where: str, *, on_cloud: bool, google: bool) -> PolicySet:
    """Read a document and check that this function may use it: at the start, and after each change.

    ``google``: whether ``AUDIENCE`` or ``IAM`` is set. Raises :class:`DocumentError`.
    """
    policies = read(data, where)
    if on_cloud and any(connection.origin.startswith("http:") for connection in policies.connections.values()):
        raise DocumentError("POLICY sends calls to this machine, as the sandbox's does. Deploy a policy of your own.")
    if "google" in policies.kinds and not google:
        raise DocumentError(
            "POLICY names a Google identity, but the audience of its tokens is not set. Set AUDIENCE to the function's "
            "own address (https://...), or IAM=guards where Cloud Run's IAM refuses all others."
        )
    return policies


class Policies:
    """The policies in force."""

    def __init__(  # noqa: PLR0913 - independent dependencies
        self,
        source: Source,
        judge: Callable[[bytes], PolicySet],
        first: PolicySet,
        *,
        digest: str,
        read_at: float,
        audit: Audit,
        clock: Callable[[], float],
        promised: float = PROMISED_SECONDS,
    ) -> None:
        """``first`` was read from bytes with this ``digest``, in a read that began at ``read_at`` on ``clock``.

        A change is in force after ``promised`` seconds; all ages above are in proportion to it.
        """
        self._source, self._judge, self._audit, self._clock = source, judge, audit, clock
        # Written only by the checking thread. There is one at a time.
        self._policies, self._digest, self._as_of = first, digest, read_at
        self._refused = ""
        self._report_at = read_at
        check, self._must = (age * promised / PROMISED_SECONDS for age in (CHECK_SECONDS, MUST_SECONDS))
        lifetime = Lifetime(check, self._must, inf) if source.changes else Lifetime(inf, inf, inf)
        self._kept = Kept(
            self._check, lambda _: lifetime, pause=PAUSE_SECONDS, clock=clock, run=_on_a_thread, patience=WAIT_SECONDS
        )
        self._kept.put(source.where, first, read_at)

    def current(self, deadline: float) -> PolicySet:
        """Return the policies for one whole call, which must end by ``deadline``."""
        return self._kept.get(self._source.where, deadline)

    @property
    def behind(self) -> bool:
        """Whether the source has another document by now: one that was refused, or that cannot be read."""
        return bool(self._refused) or (self._source.changes and self._clock() - self._as_of > self._must)

    def _check(self, _where: str, _deadline: float) -> PolicySet:
        began = self._clock()
        try:
            self._look()
        except SourceError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the last good policies stay in force
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
            self._audit.retired = retired(self._audit.retired, kept, policies)
            self._audit.policy_taken(policies.digest)
            self._policies, self._digest = policies, digest

    def _report(self, problem: str) -> None:
        now = self._clock()
        if now - self._as_of >= self._must and now >= self._report_at:
            self._report_at = now + REPORT_SECONDS
            self._audit.policy_refused(self._policies.digest, f"POLICY: {self._source.where} {problem}")


def _on_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="policy").start()
