"""Limits and the ledger in Firestore, shared by every instance. ``firestore://PROJECT/DATABASE``.

Every step reads what it needs in one call, has the policies judge it, and writes in one atomic commit, provided that
nothing it overwrites has changed since. So no lock is held in Firestore, an instance that dies half way leaves nothing
behind, and a commit that arrives twice is refused the second time. A step that was overtaken starts again, a bounded
number of times within a bounded time.

Firestore takes about one write a second to a document. A limit of more calls a second is split over several documents,
each with its own share of the calls. A call is counted in one of them that has room, and refused if all are seen full
at once. A budget lies in one document, so that what is left can be judged to the last minor unit.

The clock is Firestore's: the time of its read.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import msgspec
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore_v1.services.firestore import FirestoreClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport
from google.cloud.firestore_v1.types import Document, Precondition, Value, Write
from msgspec.structs import replace

from gateway.edges import meaning
from gateway.flights import SingleFlight
from gateway.forks import PerProcess
from gateway.stores import Settled
from gateway.stores.debts import Debt, Debts
from policies import idempotency
from policies.model import Admission, Answer, Entry, Limit, Outcome, Seen
from policies.quota import (
    BUCKETS,
    Window,
    bounds_of,
    budgets_of,
    ceiling_of,
    holds,
    left_of,
    limits_of,
    money_of,
    move,
    redecide,
    refusal_for,
    refuse_if_full,
    rise,
    shares,
    spend,
    spent_of,
    standings,
    together,
)
from policies.refusals import CeilingReached, LedgerRefusal, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from policies.idempotency import Held, Verdict
    from policies.issuing import Progress
    from policies.model import Budget, Caller, Connection, Grant, Left, Reserved
    from policies.outcomes import Reply
    from policies.quota import Full

#: The timeout of a step with all its attempts, so that a refusal takes less than a second.
TOTAL_SECONDS: Final = 0.9
#: No commit is sent with less than this share of it left: a claim whose reply came too late would block its key.
HEARING: Final = 0.3
#: How often a step is tried at most when others overtake it.
ATTEMPTS: Final = 20
#: The most documents of one limit. A call reads all of them.
MOST_SHARDS: Final = 32
#: How many documents of a ceiling a call reads first. If they are full, it reads all.
PROBES: Final = 4
#: Seconds that a document is kept beyond its use.
SLACK: Final = 60
#: How many keys an operator's listing reads at once, and how many seconds that, or resolving a key, may take.
PAGE: Final = 300
OPERATOR_SECONDS: Final = 5.0

LEDGER: Final = "countersign-ledger"
WINDOWS: Final = "countersign-windows"
#: Google's own setting; settings.py refuses it on the cloud.
EMULATOR: Final = "FIRESTORE_EMULATOR_HOST"

#: A lost connection is retried at once and often: Google's client would back off for up to two minutes.
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 2_000),
)


class _FailedError(Exception):
    """A call to Firestore failed; a commit may have been carried out. The text is the library's class."""


class _OvertakenError(_FailedError):
    """A commit was refused because another step wrote first."""


#: What the client's exceptions mean for a commit. A read is never overtaken.
ERRORS: Final[dict[type[BaseException], type[_FailedError]]] = {
    exceptions.Aborted: _OvertakenError,
    exceptions.AlreadyExists: _OvertakenError,
    exceptions.FailedPrecondition: _OvertakenError,
    exceptions.NotFound: _OvertakenError,
    exceptions.GoogleAPIError: _FailedError,
    exceptions.AsyncRestUnsupportedParameterError: _FailedError,
    GoogleAuthError: _FailedError,
    grpc.RpcError: _FailedError,
    grpc.FutureCancelledError: _FailedError,
    grpc.FutureTimeoutError: _FailedError,
    ValueError: _FailedError,  # a closed channel, an invalid universe domain
    OSError: _FailedError,  # credentials that cannot be read
}

#: Firestore's name for each type of a field.
_KINDS: Final[dict[type, str]] = {
    str: "string_value",
    bool: "boolean_value",
    int: "integer_value",
    float: "double_value",
    bytes: "bytes_value",
    datetime: "timestamp_value",
}

_RANDOM: Final = random.SystemRandom()

#: A document's fields by name, and what to write by path, where None deletes a document.
Fields = dict[str, Any]
Writes = dict[str, Fields | None]
#: What a call holds of its budgets then, which of them have no room, and what to write.
_Moved = tuple["Reserved | None", "list[Full]", Writes]
T = TypeVar("T")


class _Counter(msgspec.Struct, frozen=True):
    """A limit, ceiling or budget: its documents, and each one's share of its calls."""

    limit: Limit
    parts: Mapping[str, Limit]

    @classmethod
    def of(cls, name: str, limit: Limit, parts: tuple[Limit, ...]) -> _Counter:
        return cls(limit, {f"{WINDOWS}/{name}:{place}": part for place, part in enumerate(parts)})

    def some(self, most: int) -> _Counter:
        """Return this counter with at most ``most`` of its documents, and their share of the calls."""
        if len(self.parts) <= most:
            return self
        parts = dict(_RANDOM.sample([*self.parts.items()], most))
        return _Counter(replace(self.limit, calls=sum(part.calls for part in parts.values())), parts)


class _Sight(msgspec.Struct, frozen=True):
    """A snapshot of documents at ``now``, in unix seconds."""

    now: float
    documents: Mapping[str, Fields | None]

    def windows(self, counter: _Counter) -> dict[str, Window]:
        """Return the window of each document of a counter."""
        return {
            path: Window(part, json.loads(found["buckets"]) if (found := self.documents[path]) else ())
            for path, part in counter.parts.items()
        }

    def taken(self, windows: Mapping[str, Window], amount: int = 1) -> Writes:
        """Return the write that counts an ``amount`` in one of these windows, chosen at random."""
        path, window = _RANDOM.choice([*windows.items()])
        window.take(self.now, amount)
        return {path: self._kept(window)}

    def given_back(self, counter: _Counter, taken: float) -> Writes:
        """Return the write that uncounts a call, in any document that has one in its bucket: only the sum matters."""
        windows = [*self.windows(counter).items()]
        _RANDOM.shuffle(windows)
        return next(({path: self._kept(window)} for path, window in windows if window.give_back(taken)), {})

    def money(self, limits: Mapping[str, Limit], paths: list[str]) -> dict[str, Window] | None:
        """Return the windows of budgets, by name; None if one was not read, which ``paths`` names from now on."""
        unread = [path for path in map(_place, limits) if path not in paths]
        if unread:
            paths += unread
            return None
        return {name: self.windows(_whole(name, limit))[_place(name)] for name, limit in limits.items()}

    def moved(self, money: Mapping[str, Window]) -> Writes:
        """Return the writes of windows of budgets."""
        return {_place(name): self._kept(window) for name, window in money.items()}

    def _kept(self, window: Window) -> Fields:
        seconds = window.limit.seconds
        return {
            "buckets": json.dumps(window.buckets, separators=(",", ":")),
            "expire_at": _moment(self.now + seconds + seconds / BUCKETS + SLACK),
        }


class Firestore:
    """The ``firestore://`` store. ``clock`` and ``seconds``, for a whole step, are for tests alone."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None, seconds: float = TOTAL_SECONDS) -> None:
        project, _, database = url.removeprefix("firestore://").partition("/")
        self._database = f"projects/{project}/databases/{database or '(default)'}"
        self._clock, self._seconds = clock, seconds
        self._lock = threading.Lock()
        self._client = PerProcess(_connect)
        self._connecting: SingleFlight[Any] = SingleFlight("firestore")
        self._debts = Debts(self._end)
        self._turns: dict[tuple[str, tuple[Limit, ...], bool], threading.Semaphore] = {}

    def admit(self, grant: Grant, place: str) -> Admission:
        """See :class:`gateway.stores.Store`."""
        return self._judged(grant, place, takes=True)

    def peek(self, grant: Grant, place: str) -> Admission:
        """See :class:`gateway.stores.Store`."""
        return self._judged(grant, place, takes=False)

    def left(self, caller: Caller, connections: Iterable[Connection], customer: str | None = None) -> tuple[Left, ...]:
        """See :class:`gateway.stores.Store`."""
        bounds = bounds_of(caller, connections, customer)
        counters = [(_whole if bound.kind == "budget" else _counted)(bound.name, bound.limit) for bound in bounds]

        def judge(seen: _Sight) -> tuple[tuple[Left, ...], Writes]:
            wholes = [together(counter.limit, seen.windows(counter).values()) for counter in counters]
            return tuple(left_of(*one, seen.now) for one in zip(bounds, wholes, strict=True)), {}

        return self._step(judge, _paths(counters, None), self._deadline(), again=False)

    def state_of(self, key: str) -> Seen | None:
        """See :class:`gateway.stores.Store`."""
        path = f"{LEDGER}/{key}"

        def judge(seen: _Sight) -> tuple[Seen | None, Writes]:
            held = _entry(seen.documents[path])
            return None if held is None or idempotency.over(held, seen.now) else Seen(held, seen.now), {}

        return self._step(judge, [path], self._deadline(), again=False)

    def _judged(self, grant: Grant, place: str, *, takes: bool) -> Admission:
        """Admit a call, or with ``takes`` off say what would become of it: all is the same but the commit."""
        self._debts.pay()
        deadline, ceiling = self._deadline(), _ceiling(grant)
        claiming = _Claiming(place, os.urandom(16).hex(), takes)
        try:
            with self._turn(grant, deadline):
                try:
                    # No caller is told what is left of a ceiling, so a few documents are enough while they have room.
                    return self._admit(grant, [counter.some(PROBES) for counter in ceiling], claiming, deadline)
                except CeilingReached:
                    return self._admit(grant, ceiling, claiming, deadline)
        except StoreUnavailable as unavailable:
            if takes and unavailable.lost and claiming.claim is not None:
                self._debts.release(grant, Admission((), claiming.owner, 0.0, claiming.claim))
            raise

    def _admit(self, grant: Grant, ceiling: list[_Counter], claiming: _Claiming, deadline: float) -> Admission:
        limits, key, owner, budgets = _limits(grant), _path(grant), claiming.owner, budgets_of(grant)
        counters = [*limits, *ceiling]

        def judge(seen: _Sight) -> tuple[Admission | None, Writes]:
            now = seen.now
            parts = [seen.windows(counter) for counter in counters]
            wholes = [together(c.limit, part.values()) for c, part in zip(counters, parts, strict=True)]
            own = wholes[: len(limits)]
            found = seen.documents[key] if key is not None else None
            held = _entry(found)
            marked = idempotency.met(held, now=now)
            if claiming.takes and key is not None and found is not None and marked is not None:
                return None, {key: _document(marked) | {"taken": found["taken"]}}
            try:
                claim = idempotency.claim_for(grant, held, owner=owner, place=claiming.place, now=now)
            except LedgerRefusal as refusal:
                refusal.standings = standings(own, now)
                raise
            if isinstance(claim, Answer):
                return Admission(standings(own, now), owner, now, replay=claim), {}
            if found is not None and claim is not None and claim is held:  # already ours: the reply was lost
                return Admission(standings(own, now), owner, found["taken"], claim), {}
            moved = _moved(seen, paths, grant, claim)
            if moved is None:
                return None, {}
            reserved, full, writes = moved
            claim = claim and replace(claim, reserved=reserved)
            refuse_if_full(own, wholes[len(limits)] if ceiling else None, full, now)
            for part, whole in zip(parts[: len(limits) + len(ceiling)], wholes, strict=False):
                writes |= seen.taken({path: window for path, window in part.items() if window.remaining(now) >= 1})
                whole.take(now)
            if key is not None and claim is not None:
                writes[key] = _document(claim) | {"taken": now}
                claiming.claim = claim
            admission = Admission(standings(own, now), owner, now, claim, reserved=reserved if claim is None else None)
            return admission, writes if claiming.takes else {}

        paths = [*_paths(counters, key), *map(_place, budgets)]
        while (admitted := self._step(judge, paths, deadline, again=key is not None)) is None:
            pass  # an operator's decision was marked, or more must be read; now it is judged
        return admitted

    def release(self, grant: Grant, admission: Admission) -> None:
        """See :class:`gateway.stores.Store`."""
        self._debts.release(grant, admission)

    def advance(self, grant: Grant, admission: Admission, progress: Progress) -> Admission | None:
        """See :class:`gateway.stores.Store`."""
        key = _path(grant)
        if key is None:
            return None

        def judge(seen: _Sight) -> tuple[Admission | None, Writes]:
            found = seen.documents[key]
            entry = idempotency.advance(_entry(found), progress, owner=admission.owner)
            if found is None or entry is None:
                return None, {}
            writes: Writes = {}
            amount = rise(budgets, entry.reserved, progress.comes_to, admission.taken)
            if amount is not None:
                moved = _move(seen, paths, budgets, entry.reserved, amount)
                if moved is None:
                    return _AGAIN, {}
                reserved, full, writes = moved
                if full:
                    raise refusal_for(full, admission.standings, draft=True)
                entry = replace(entry, reserved=reserved)
            return replace(admission, entry=entry), writes | {key: _document(entry) | {"taken": found["taken"]}}

        paths, budgets, deadline = [key], budgets_of(grant), self._deadline()
        while (advanced := self._step(judge, paths, deadline, again=True)) is _AGAIN:
            pass
        return advanced

    def settle(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer) -> Settled:
        """See :class:`gateway.stores.Store`."""
        return self._debts.settle(grant, admission, reply, answer)

    def held(self, prefix: str = "") -> Iterator[Held]:
        """See :class:`gateway.stores.Ledger`."""
        # Keys are hexadecimal, so those with this prefix sort before the prefix with a "g" behind it.
        start, before = f"{LEDGER}/{prefix or '0'}", True
        end = {"values": [{"reference_value": self._name(f"{LEDGER}/{prefix}g")}], "before": True}
        try:
            while True:
                query = {
                    "from_": [{"collection_id": LEDGER}],
                    "order_by": [{"field": {"field_path": "__name__"}}],
                    "start_at": {"values": [{"reference_value": self._name(start)}], "before": before},
                    "end_at": end,
                    "limit": PAGE,
                }
                request = {"parent": f"{self._database}/documents", "structured_query": query}
                with _translated():
                    client = self._client.get()
                    replies = client.run_query(request, retry=None, timeout=OPERATOR_SECONDS, metadata=_metadata())
                    page = [reply for reply in map(_raw, replies) if reply.HasField("document")]
                for reply in page:
                    start, before = reply.document.name.removeprefix(self._name("")), False
                    one = _held(start.removeprefix(f"{LEDGER}/"), _fields(reply.document), self._now(reply.read_time))
                    if one is not None:
                        yield one
                if len(page) < PAGE:
                    return
        except _FailedError as error:
            raise StoreUnavailable(note=str(error)) from None

    def flaw(self) -> str | None:
        """See :class:`gateway.stores.Shared`. It is not looked at: gRPC's threads do not survive the fork."""
        return None

    def resolve(self, key: str, answer: Answer | None, said: str = "") -> Verdict:
        """See :class:`gateway.stores.Ledger`."""
        return self._decide(key, partial(idempotency.resolve, answer=answer, said=said))

    def reopen(self, key: str) -> Verdict:
        """See :class:`gateway.stores.Ledger`."""
        return self._decide(key, idempotency.reopen)

    def _decide(self, key: str, judge: Callable[..., tuple[Verdict, Entry | None]]) -> Verdict:
        """Write what an operator's decision makes of an entry."""
        path = f"{LEDGER}/{key}"

        def step(seen: _Sight) -> tuple[Verdict | None, Writes]:
            found = seen.documents[path]
            held = _entry(found)
            verdict, decided = judge(held, now=seen.now)
            if found is None or held is None or decided is None or decided is held:
                return verdict, {}
            back, again = held.reserved, decided.reserved
            writes: Writes = {}
            if (back is None) is not (again is None):  # it gives its money back, or books it again
                money = seen.money(money_of({}, back or again), paths)
                if money is None:
                    return None, {}
                decided = replace(decided, reserved=redecide(money, back, again, seen.now))
                writes = seen.moved(money)
            return verdict, writes | {path: _document(decided) | {"taken": found["taken"]}}

        paths, deadline = [path], time.monotonic() + OPERATOR_SECONDS
        while (verdict := self._step(step, paths, deadline, again=False)) is None:
            pass  # more must be read
        return verdict

    def _end(self, debt: Debt) -> Settled:
        grant, admission, reply, answer = debt
        key, claim, known = _path(grant), admission.entry, idempotency.gives_back(reply)
        if claim is None and reply.reached and admission.reserved is None and not reply.spent:
            return Settled.WRITTEN  # nothing is stored for such a call
        counters, deadline = [] if reply.reached else [*_limits(grant), *_ceiling(grant)], self._deadline()
        budgets, spent = spent_of(grant, reply)

        def judge(seen: _Sight) -> tuple[Settled | None, Writes]:
            writes: Writes = {}
            taken, reserved, settles = admission.taken, admission.reserved, known
            if key is not None and claim is not None:
                found = seen.documents[key]
                held = _entry(found)
                ended = idempotency.settle_for(grant, held, owner=claim.owner, reply=reply, answer=answer)
                if found is None or held is None or held.owner != claim.owner:
                    if reply.outcome is not Outcome.RELEASED:
                        return Settled.OWED, {}
                    # The claim may still be on its way. It is only written over what it was judged by, so that is
                    # changed; writing the same once more would not count as a change.
                    blank = idempotency.free(claim, refused=False, expires=seen.now)
                    mark = {"taken": found["taken"] if found is not None else seen.now, "released": claim.owner}
                    return Settled.WRITTEN if found is None else Settled.OWED, {key: _document(held or blank) | mark}
                if ended is held or ended is None:  # already settled: the reply was lost
                    done = held.state == idempotency.state_after(reply.outcome)
                    return Settled.WRITTEN if done else Settled.OWED, {}
                writes[key] = _document(ended) | {"taken": found["taken"]}
                taken, reserved, settles = found["taken"], held.reserved, ended.reserved is None
            money = seen.money(money_of(budgets, reserved) if settles else {}, paths)
            if money is None:
                return None, {}
            over = spend(budgets if settles else {}, money, reserved, spent, seen.now)
            writes |= seen.moved(money)
            for counter in counters:
                writes |= seen.given_back(counter, taken)
            return Settled.OVER if over else Settled.WRITTEN, writes

        lies = money_of(budgets, admission.reserved if claim is None else claim.reserved)
        paths = [*_paths(counters, key), *map(_place, lies)]
        with self._turn(grant, deadline) if counters or lies else contextlib.nullcontext():
            while (done := self._step(judge, paths, deadline, again=key is not None)) is None:
                pass  # more must be read
        return done

    # ---------------------------------------------------------------- one step: read, judge, commit

    def _step(
        self, judge: Callable[[_Sight], tuple[T, Writes]], paths: list[str], deadline: float, *, again: bool
    ) -> T:
        """Read the documents, let ``judge`` decide, and write what it returns: all of it or nothing.

        ``again``: the step may be repeated if the reply to its commit was lost, since ``judge`` sees that it was done.
        """
        failed, lost, overtaken = 0, False, False
        for attempt in range(ATTEMPTS):
            writes: Writes = {}
            try:
                seen, times = self._read(paths, deadline)
                result, writes = judge(seen)
                if writes:
                    self._commit(writes, times, deadline)
            except StoreUnavailable as unavailable:
                unavailable.lost = lost
                if overtaken:  # Firestore is well: the time went by on what others wrote
                    unavailable.note = "Contention"
                raise
            except _FailedError as error:
                if writes and isinstance(error, _OvertakenError):
                    overtaken = True
                    # Back off with jitter.
                    time.sleep(_RANDOM.uniform(0, 0.002) * min(attempt + 1, 10))
                    continue
                failed, lost = failed + 1, lost or bool(writes)
                if failed > 1 or (writes and not again):
                    raise StoreUnavailable(note=str(error), retry_after=1, lost=lost) from None
            else:
                return result
        raise StoreUnavailable(note="Contention", retry_after=1, lost=lost)

    @contextlib.contextmanager
    def _turn(self, grant: Grant, deadline: float) -> Iterator[None]:
        """Bound how many steps of a caller run at once, so that they seldom contend for a document."""
        with self._lock:
            place = grant.caller.first, grant.caller.limits, bool(grant.budgets)
            turn = self._turns.get(place)
            if turn is None:
                fewest = min((len(counter.parts) for counter in _limits(grant)), default=MOST_SHARDS)
                fewest = 1 if grant.budgets else fewest
                turn = self._turns[place] = threading.Semaphore(max(1, fewest // 4))
        if not turn.acquire(timeout=max(0.0, self._left(deadline) - HEARING * self._seconds)):
            raise StoreUnavailable(note="Contention", retry_after=1)
        try:
            yield
        finally:
            turn.release()

    def _read(self, paths: list[str], deadline: float) -> tuple[_Sight, dict[str, Any]]:
        """Read documents as of one moment. Return them, and when each was last written."""
        documents: dict[str, Fields | None] = dict.fromkeys(paths)
        times: dict[str, Any] = {}
        now = 0.0
        request = {"database": self._database, "documents": [self._name(path) for path in paths]}
        with _translated():
            replies = self._connected(deadline).batch_get_documents(
                request, retry=None, timeout=self._attempt(deadline), metadata=_metadata()
            )
            found = [*map(_raw, replies)]
        for reply in found:
            now = max(now, self._now(reply.read_time))
            if reply.HasField("found"):
                path = reply.found.name.removeprefix(self._name(""))
                documents[path], times[path] = _fields(reply.found), reply.found.update_time
        return _Sight(now, documents), times

    def _commit(self, writes: Writes, times: Mapping[str, Any], deadline: float) -> None:
        """Write all or nothing, provided that none of it has changed since it was read."""
        if self._left(deadline) < HEARING * self._seconds:
            raise StoreUnavailable(note="Timeout", retry_after=1)
        commands = []
        for path, document in writes.items():
            condition = Precondition(update_time=times[path]) if path in times else Precondition(exists=False)
            if document is None:
                commands.append(Write(delete=self._name(path), current_document=condition))
            else:
                values = {name: Value(**{_KINDS[type(value)]: value}) for name, value in document.items()}
                whole = Document(name=self._name(path), fields=values)
                commands.append(Write(update=whole, current_document=condition))
        request = {"database": self._database, "writes": commands}
        with _translated():
            self._connected(deadline).commit(request, retry=None, timeout=self._attempt(deadline), metadata=_metadata())

    def _deadline(self) -> float:
        return time.monotonic() + self._seconds

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise StoreUnavailable(note="Timeout", retry_after=1)
        return left

    def _attempt(self, deadline: float) -> float:
        """Return how long one call to Firestore may take: half of what is left, so that it can be repeated."""
        return self._left(deadline) / 2

    def _name(self, path: str) -> str:
        return f"{self._database}/documents/{path}"

    def _now(self, read_time: Any) -> float:
        if self._clock is not None:
            return self._clock()
        seconds: float = read_time.seconds + read_time.nanos / 1e9
        return seconds

    def _connected(self, deadline: float) -> Any:
        try:  # Google's client takes minutes to sign in where nobody answers it
            return self._connecting.make(self._client, self._left(deadline))
        except TimeoutError:
            raise StoreUnavailable(note="Timeout", retry_after=1) from None


def _connect() -> Any:
    emulator = os.environ.get(EMULATOR)
    if emulator:
        channel = grpc.insecure_channel(emulator, options=_OPTIONS)
    else:
        channel = FirestoreGrpcTransport.create_channel(options=_OPTIONS)
    return FirestoreClient(transport=FirestoreGrpcTransport(channel=channel))


# ---------------------------------------------------------------- an entry and its document


class _Claiming(msgspec.Struct):
    """A claim that is being made, for whoever has to give it back."""

    place: str
    owner: str
    takes: bool
    """Whether it is written at the end, or only tried."""
    claim: Entry | None = None
    """What was last tried to be written."""


def _entry(found: Fields | None) -> Entry | None:
    return idempotency.unpacked(found["entry"]) if found is not None else None


def _document(entry: Entry) -> Fields:
    """Return the fields that store an entry. Only one that may expire has the field by which Firestore deletes."""
    content: Fields = {"entry": idempotency.packed(entry)}
    return content if entry.expires is None else content | {"expire_at": _moment(entry.expires + SLACK)}


def _held(key: str, found: Fields, now: float) -> Held | None:
    entry = _entry(found)
    if entry is None or idempotency.over(entry, now):
        return None  # expired, and not deleted yet
    return idempotency.held_of(key, entry, now=now)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Translate the client's exceptions by :data:`ERRORS`."""
    try:
        yield
    except tuple(ERRORS) as error:
        raise (meaning(ERRORS, error) or _FailedError)(type(error).__name__) from None


def _raw(message: Any) -> Any:
    """Return the protobuf message inside one of the library's wrappers, which is read many times faster."""
    return type(message).pb(message)


def _fields(document: Any) -> Fields:
    return {name: getattr(value, value.WhichOneof("value_type")) for name, value in document.fields.items()}


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _metadata() -> tuple[tuple[str, str], ...]:
    # The emulator accepts this token for everything; Google's own client sends the same.
    return (("authorization", "Bearer owner"),) if os.environ.get(EMULATOR) else ()


# ---------------------------------------------------------------- the counters of a grant


def _paths(counters: list[_Counter], key: str | None) -> list[str]:
    return [*(path for counter in counters for path in counter.parts), *([key] if key is not None else ())]


def _path(grant: Grant) -> str | None:
    return f"{LEDGER}/{grant.ledger_key}" if grant.ledger_key is not None else None


def _limits(grant: Grant) -> list[_Counter]:
    return [_counted(*limit) for limit in limits_of(grant.caller)]


def _ceiling(grant: Grant) -> list[_Counter]:
    ceiling = ceiling_of(grant.entitlement.connection)
    return [] if ceiling is None else [_counted(*ceiling)]


def _counted(name: str, limit: Limit) -> _Counter:
    return _Counter.of(name, limit, shares(limit, MOST_SHARDS))


def _whole(name: str, limit: Limit) -> _Counter:
    return _Counter.of(name, limit, (limit,))


def _place(name: str) -> str:
    """Return the one document of a budget's window."""
    return f"{WINDOWS}/{name}:0"


def _moved(seen: _Sight, paths: list[str], grant: Grant, claim: Entry | None) -> _Moved | None:
    """Return what an admission makes of a call's money; None if more must be read for it."""
    held, budgets = claim.reserved if claim is not None else None, budgets_of(grant)
    moves = (budgets or held is not None) and idempotency.moves(claim)
    return _move(seen, paths, budgets, held, holds(grant, held)) if moves else (held, [], {})


def _move(
    seen: _Sight, paths: list[str], budgets: Mapping[str, Budget], held: Reserved | None, amount: int
) -> _Moved | None:
    money = seen.money(money_of(budgets, held), paths)
    if money is None:
        return None
    reserved, full = move(budgets, money, held, amount, seen.now)
    return reserved, full, seen.moved(money)


#: What a step returns that must read more.
_AGAIN: Final = Admission((), "", 0.0)
