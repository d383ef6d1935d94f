"""Limits and the ledger in Redis or Valkey, shared by every instance. ``redis://``, or ``rediss://`` over TLS.

An admission of a fresh key is one script, and so one atomic step and one round trip; a settlement is another. An
entry that is there is judged by ``policies.idempotency``, here, and written over only if it has not changed since. All
runs on the server's clock. A script with an idempotency key is safe to repeat, since it knows the owner of the claim,
and is repeated once.

Every key of one deployment carries the same hash tag, so that a cluster keeps them on one node and a script may use
them together.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from gateway.stores.connecting import MENDS, Client, LostError, RedisError, RefusedError, Script
from gateway.stores.debts import Debt, Debts
from policies import idempotency
from policies.idempotency import LEASE, Held, Verdict
from policies.model import Admission, Answer, Entry, Seen, Standing
from policies.quota import (
    BUCKETS,
    Window,
    bounds_of,
    budget_of,
    ceiling_of,
    left_of,
    limits_of,
    refusal_for,
    whole_seconds,
)
from policies.refusals import LedgerRefusal, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from policies.issuing import Progress
    from policies.model import Budget, Caller, Connection, Grant, Left, Limit
    from policies.outcomes import Reply
    from policies.refusals import QuotaRefusal

#: Milliseconds that a key is kept beyond its use, so that it never expires early.
SLACK: Final = 60_000
#: Seconds that a released owner is remembered: longer than TCP tries to deliver a claim that somebody gave up on.
MARKED: Final = 1_800
#: How often a claim is judged anew, at most, because the entry has changed meanwhile.
ATTEMPTS: Final = 5

#: How many keys an operator's list reads at a time, and how many seconds that may take.
BATCH: Final = 1000
OPERATOR_SECONDS: Final = 5.0

PREFIX: Final = "{countersign}:"
#: What our time is, where that differs from the server's. The scripts use it, which carries the tag of their keys.
CLOCK: Final = f"{PREFIX}clock"
#: What our time is read from, in the order in which :meth:`Redis._read_clock` takes it.
_TIME: Final = (("TIME",), ("HMGET", CLOCK, "latest", "ahead"))
#: What an entry is read from, in the order in which :func:`_entry` takes it.
_PARTS: Final = ("e", "sent", "lease")


# policies.quota again, in Lua, to run where the data is. The contract tests hold both to the same promises. Times are
# microseconds, which a Lua number represents exactly.
_COMMON: Final = f"""
local BUCKETS = {BUCKETS}

local function exact(microseconds) return string.format('%.0f', microseconds) end

-- Our time never goes back. If Redis's clock is set back, ours goes on from where it was, ``ahead`` of it. So nothing
-- is refused for longer than it says, and no window counts less. A clock set forward is time that has passed.
local ahead, turned = 0, false

local function clock(given)
  local now = tonumber(given)
  if not now then
    local t = redis.call('TIME')
    now = tonumber(t[1]) * 1000000 + tonumber(t[2])
  end
  local kept = redis.call('HMGET', '{CLOCK}', 'latest', 'ahead')
  ahead = tonumber(kept[2] or 0)
  turned = now + ahead < tonumber(kept[1] or 0)
  if turned then ahead = tonumber(kept[1]) - now end
  return now + ahead
end

local function ticked(now) redis.call('HSET', '{CLOCK}', 'latest', exact(now), 'ahead', exact(ahead)) end

-- A window is a hash: t calls in all, f and l the first and last bucket in use, and the calls of each bucket. ``tried``
-- is the bucket of a call that is only tried, and is not written.
local function calls_in(w, bucket)
  return tonumber(redis.call('HGET', w.key, bucket) or 0) + (bucket == w.tried and 1 or 0)
end

-- Read a window, and write nothing: what has left it is removed by the next call that is counted.
local function read(key, calls, seconds, now)
  local width = seconds * 1000000 / BUCKETS
  local s = redis.call('HMGET', key, 't', 'f', 'l')
  local total, first, last = tonumber(s[1] or 0), tonumber(s[2]), tonumber(s[3])
  local w = {{key = key, calls = calls, seconds = seconds, width = width, total = 0, oldest = first}}
  local keep = math.floor(now / width) - BUCKETS
  if total <= 0 or last < keep then return w end
  while true do
    local counted = calls_in(w, first)
    if first >= keep and counted > 0 then break end
    total, first = total - counted, first + 1
    if total <= 0 then return w end
  end
  w.total, w.first = total, first
  return w
end

local function take(w, now, amount)
  local bucket = math.floor(now / w.width)
  if not w.first then
    if w.oldest then redis.call('DEL', w.key) end
  else
    for gone = w.oldest, w.first - 1 do redis.call('HDEL', w.key, gone) end
  end
  w.total, w.first = w.total + amount, w.first or bucket
  redis.call('HINCRBY', w.key, bucket, amount)
  redis.call('HSET', w.key, 't', w.total, 'f', w.first, 'l', bucket)
  redis.call('PEXPIRE', w.key, w.seconds * 1000 + math.ceil(w.width / 1000) + {SLACK})
end

local function try(w, now)
  w.tried = math.floor(now / w.width)
  w.total, w.first = w.total + 1, w.first or w.tried
end

-- How long until more is left or, of a full window, until a call would pass: a budget may be well past its amount.
local function frees(w, now)
  if not w.first then return 0 end
  local last, total = w.first, w.total
  while total >= w.calls do
    total = total - calls_in(w, last)
    if total >= w.calls then last = last + 1 end
  end
  return (last + BUCKETS + 1) * w.width - now
end
"""

# An entry of the ledger is a hash, judged in policies.idempotency alone: ``e`` is the entry, without the times in
# ``sent`` and ``lease``, which the script that writes it may set to its own clock; ``v`` is its version, which is the
# owner, the state and an operator's decision; ``taken`` is when the call was counted. It is written only over the
# version that was judged.

# KEYS: the ledger's entry, the mark of a released owner, then a window for each limit, the ceiling's, and the budget's.
# ARGV: now or '', '1' with a key, the version that was judged ('' for none), the entry to write, its version, when it
# was first sent or '', the lease, '1' to take or '0' to write nothing and answer as if; then for each window its calls,
# its seconds and '1' if the call is counted there now (in a budget it is counted later).
_ADMIT: Final = f"""{_COMMON}
local now = clock(ARGV[1])
local keyed, takes = ARGV[2] == '1', ARGV[8] == '1'
if takes and turned then ticked(now) end
local windows = {{}}
for i = 3, #KEYS do
  windows[i - 2] = read(KEYS[i], tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), now)
  windows[i - 2].counts = ARGV[3 * i + 2] == '1'
end

local function answer(verdict, ...)
  local reply = {{verdict, ...}}
  for _, w in ipairs(windows) do
    reply[#reply + 1] = w.calls - w.total
    reply[#reply + 1] = exact(frees(w, now))
  end
  return reply
end

if keyed then
  local held = redis.call('HMGET', KEYS[1], 'v', 'e', 'sent', 'lease', 'taken')
  if held[1] == ARGV[5] then return answer('admitted', held[5], held[3], held[4], '') end
  if redis.call('EXISTS', KEYS[2]) == 1 then return answer('released', '', '', '', '') end
  if (held[1] or '') ~= ARGV[3] then return answer('held', exact(now), held[3] or '', held[4] or '', held[2] or '') end
end

for i, w in ipairs(windows) do
  if w.total >= w.calls then return answer('full', i, '', '', '') end
end
for _, w in ipairs(windows) do
  if w.counts then
    if takes then take(w, now, 1) else try(w, now) end
  end
end
if takes then ticked(now) end
local sent, lease = ARGV[6], exact(now + tonumber(ARGV[7]))
if sent == '' then sent = exact(now) end
if keyed and takes then
  redis.call('HSET', KEYS[1], 'v', ARGV[5], 'e', ARGV[4], 'sent', sent, 'lease', lease, 'taken', exact(now))
  if ARGV[3] ~= '' then redis.call('PERSIST', KEYS[1]) end
end
return answer('admitted', exact(now), sent, lease, '')
"""

# KEYS as above. ARGV: now or '', '1' with a key, the version that was claimed, the entry to write ('' to delete it),
# its version, when it was first sent, for how many milliseconds it is kept or '', '1' to give back, taken, the amount
# spent; then for each window its seconds and '1' if the call was counted there. Returns 1 if the ledger now has that
# version, 0 if another call owns the key. Of a claim that is not there, or not any more, the owner is marked: it must
# not come later, nor once more.
_SETTLE: Final = f"""{_COMMON}
local keyed, taken = ARGV[2] == '1', ARGV[9]
if keyed then
  local held = redis.call('HMGET', KEYS[1], 'v', 'taken')
  if held[1] ~= ARGV[3] then
    if held[1] == ARGV[5] then return 1 end
    if ARGV[8] == '1' then redis.call('SET', KEYS[2], '1', 'EX', {MARKED}) end
    return (ARGV[8] == '1' and not held[1]) and 1 or 0
  end
  taken = held[2]
  if ARGV[4] == '' then
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[2], '1', 'EX', {MARKED})
  else
    redis.call('HSET', KEYS[1], 'v', ARGV[5], 'e', ARGV[4], 'sent', ARGV[6])
    if ARGV[7] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[7]) end
  end
end
local spent = tonumber(ARGV[10])
for i = 3, #KEYS do
  local seconds, counted = tonumber(ARGV[2 * i + 5]), ARGV[2 * i + 6] == '1'
  if counted and ARGV[8] == '1' then
    local bucket = math.floor(tonumber(taken) / (seconds * 1000000 / BUCKETS))
    if tonumber(redis.call('HGET', KEYS[i], bucket) or 0) > 0 then
      redis.call('HINCRBY', KEYS[i], bucket, -1)
      redis.call('HINCRBY', KEYS[i], 't', -1)
    end
  elseif not counted and spent > 0 then
    local now = clock(ARGV[1])
    take(read(KEYS[i], spent, seconds, now), now, spent)
  end
end
return 1
"""

# KEYS: the entry. ARGV: the version that was judged, the entry to write, when it was first sent. The version stays.
_ADVANCE: Final = """
if redis.call('HGET', KEYS[1], 'v') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'e', ARGV[2], 'sent', ARGV[3])
return 1
"""

# KEYS: the entry. ARGV: the version that was judged, the entry to write, its version, for how many milliseconds it is
# kept or ''. Its times stay as they are.
_REPLACE: Final = """
if redis.call('HGET', KEYS[1], 'v') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'v', ARGV[3], 'e', ARGV[2])
if ARGV[4] == '' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return 1
"""


# Every command of the scripts above, and nothing left behind: may we do what calls will do?
_LOOK: Final = """
redis.call('TIME')
redis.call('SET', KEYS[1], '1', 'EX', 1)
redis.call('EXISTS', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'n', '1')
redis.call('HINCRBY', KEYS[1], 'n', 1)
redis.call('HGET', KEYS[1], 'n')
redis.call('HMGET', KEYS[1], 'n')
redis.call('PEXPIRE', KEYS[1], 1000)
redis.call('PERSIST', KEYS[1])
redis.call('HDEL', KEYS[1], 'n')
return 1
"""


#: A window's key, its limit, and 1 if an admission is counted in it.
_Window = tuple[str, "Limit", int]


class Redis:
    """The ``redis://`` store. ``clock`` is for tests alone; without it the server's own time is used."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None, ca: str | None = None) -> None:
        """``ca``: see :class:`gateway.stores.connecting.Client`."""
        self._clock = clock
        self._client = Client(url, ca)
        self._admit = Script(_ADMIT)
        self._settle = Script(_SETTLE)
        self._advance = Script(_ADVANCE)
        self._replace = Script(_REPLACE)
        self._debts = Debts(self._end)

    def flaw(self) -> str | None:
        """See :class:`gateway.stores.Shared`."""
        try:
            self._client.run(Script(_LOOK), [f"{PREFIX}look"], [])
        except RedisError as error:
            return MENDS.get(str(error))
        finally:
            self._client.rest()
        return None

    def admit(self, grant: Grant, place: str) -> Admission:
        """See :class:`gateway.stores.Store`."""
        return self._judged(grant, place, takes=True)

    def peek(self, grant: Grant, place: str) -> Admission:
        """See :class:`gateway.stores.Store`."""
        return self._judged(grant, place, takes=False)

    def left(self, caller: Caller, connections: Iterable[Connection]) -> tuple[Left, ...]:
        """See :class:`gateway.stores.Store`."""
        bounds = bounds_of(caller, connections)
        try:
            windows = [("HGETALL", f"{PREFIX}{bound.name}") for bound in bounds]
            *_, (time, kept, *found) = self._client.batch(("MULTI",), *_TIME, *windows, ("EXEC",))  # all at one moment
        except RedisError as error:
            raise _unavailable(error) from None
        now = self._read_clock(time, kept)
        return tuple(left_of(bound, _window(bound.limit, one), now) for bound, one in zip(bounds, found, strict=True))

    def state_of(self, key: str) -> Seen | None:
        """See :class:`gateway.stores.Store`."""
        try:
            held, now = self._read(f"{PREFIX}ledger:{key}"), self._seconds()
            return None if held is None or idempotency.over(held, now) else Seen(held, now)
        except RedisError as error:
            raise _unavailable(error) from None

    def _judged(self, grant: Grant, place: str, *, takes: bool) -> Admission:
        """Admit a call, or with ``takes`` off say what would become of it: the script and the judge are the same."""
        self._debts.pay()
        owner = os.urandom(16).hex()
        windows, held = _windows(grant), None
        # The script sets the times of a fresh claim.
        claim = None if grant.ledger_key is None else idempotency.wanted(grant, owner=owner, place=place, now=0.0)
        for _ in range(ATTEMPTS):
            try:
                admission = self._claim(grant, windows, owner, held, claim, takes=takes)
            except StoreUnavailable as unavailable:
                if takes and unavailable.lost and claim is not None:
                    self._debts.release(grant, Admission((), owner, 0.0, claim))
                raise
            if isinstance(admission, Admission):
                return admission
            found, now, standings = admission
            marked = idempotency.met(found, now=now)
            if takes and found is not None and marked is not None:
                self._write_over(f"{PREFIX}ledger:{grant.ledger_key}", found, marked, now, again=True)
                continue  # it is judged anew, marked or as it has become meanwhile
            held = found
            try:
                judged = idempotency.claim_for(grant, held, owner=owner, place=place, now=now)
            except LedgerRefusal as refusal:
                refusal.standings = standings
                raise
            if isinstance(judged, Answer):
                return Admission(standings, owner, 0.0, replay=judged)
            claim = judged
        raise StoreUnavailable(note="Contention", retry_after=1)

    def _claim(  # noqa: PLR0913 - what is judged, and whether it is for good
        self,
        grant: Grant,
        windows: list[_Window],
        owner: str,
        held: Entry | None,
        claim: Entry | None,
        *,
        takes: bool = True,
    ) -> Admission | tuple[Entry | None, float, tuple[Standing, ...]]:
        """Write a claim over what was judged. Return the admission, or what is held instead, with the time."""
        arguments: list[Any] = [self._now(), int(claim is not None), _version(held)]
        if claim is None:
            arguments += ["", "", "", 0]
        else:
            sent = "" if held is None else _micro(claim.sent)
            arguments += [idempotency.packed(claim), _version(claim), sent, LEASE * 1_000_000]
        arguments.append(int(takes))
        for _, limit, counts in windows:
            arguments += [limit.calls, limit.seconds, counts]
        verdict, first, sent, lease, entry, *standing = self._run(
            self._admit, _keys(grant, owner, windows), arguments, again=claim is not None
        )
        standings = _standings(grant.caller.limits, standing)
        match verdict:
            case b"admitted":
                if claim is not None:
                    claim = replace(claim, sent=int(sent) / 1_000_000, lease_until=int(lease) / 1_000_000)
                return Admission(standings, owner, int(first) / 1_000_000, claim)
            case b"held":
                return _entry(entry, sent, lease), int(first) / 1_000_000, standings
            case b"full":
                raise _full(grant, windows, standing, standings)
            case _:  # this owner was released: somebody has given up on it
                raise StoreUnavailable(note="Released", retry_after=1)

    def release(self, grant: Grant, admission: Admission) -> None:
        """See :class:`gateway.stores.Store`."""
        self._debts.release(grant, admission)

    def advance(self, grant: Grant, admission: Admission, progress: Progress) -> Admission | None:
        """See :class:`gateway.stores.Store`."""
        entry = idempotency.advance(admission.entry, progress, owner=admission.owner)
        if admission.entry is None or entry is None:
            return None
        arguments = [_version(admission.entry), idempotency.packed(entry), _micro(entry.sent)]
        done = self._run(self._advance, [f"{PREFIX}ledger:{grant.ledger_key}"], arguments, again=True)
        return replace(admission, entry=entry) if done else None

    def settle(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer) -> bool:
        """See :class:`gateway.stores.Store`."""
        return self._debts.settle(grant, admission, reply, answer)

    def held(self, prefix: str = "") -> Iterator[Held]:
        """See :class:`gateway.stores.Ledger`."""
        start = f"{PREFIX}ledger:"
        try:
            now = self._seconds()
            cursor = b""
            while cursor != b"0":
                scan = ("SCAN", cursor or 0, "MATCH", f"{start}{prefix}*", "COUNT", BATCH)
                cursor, keys = self._client.ask(*scan, seconds=OPERATOR_SECONDS)
                contents = self._client.batch(*(("HMGET", key, *_PARTS) for key in keys), seconds=OPERATOR_SECONDS)
                for key, content in zip(keys, contents, strict=True):
                    entry = _entry(*content)
                    if entry is not None and not idempotency.over(entry, now):
                        yield idempotency.held_of(key.decode().removeprefix(start), entry, now=now)
        except RedisError as error:
            raise _unavailable(error) from None

    def _read(self, key: Any) -> Entry | None:
        return _entry(*self._client.ask("HMGET", key, *_PARTS))

    def resolve(self, key: str, answer: Answer | None, said: str = "") -> Verdict:
        """See :class:`gateway.stores.Ledger`."""
        return self._decide(key, partial(idempotency.resolve, answer=answer, said=said))

    def reopen(self, key: str) -> Verdict:
        """See :class:`gateway.stores.Ledger`."""
        return self._decide(key, idempotency.reopen)

    def _decide(self, key: str, judge: Callable[..., tuple[Verdict, Entry | None]]) -> Verdict:
        """Write what an operator's decision makes of an entry, judged anew if that has changed meanwhile."""
        place = f"{PREFIX}ledger:{key}"
        for _ in range(ATTEMPTS):
            try:
                now = self._seconds()
                held = self._read(place)
            except RedisError as error:
                raise _unavailable(error) from None
            verdict, decided = judge(held, now=now)
            if held is None or decided is None or decided is held:
                return verdict
            if self._write_over(place, held, decided, now, again=False):
                return verdict
        raise StoreUnavailable(note="Contention", retry_after=1)

    def _write_over(self, place: str, held: Entry, entry: Entry, now: float, *, again: bool) -> bool:
        """Write an entry over the one that was judged. Return False if that has changed meanwhile."""
        arguments = [_version(held), idempotency.packed(entry), _version(entry), _kept(entry, now)]
        return bool(self._run(self._replace, [place], arguments, again=again))

    def _now(self) -> str:
        return "" if self._clock is None else _micro(self._clock())

    def _seconds(self) -> float:
        return self._read_clock(*self._client.batch(*_TIME))

    def _read_clock(self, time: list[bytes], kept: list[bytes | None]) -> float:
        """Return what the scripts' clock says."""
        seconds, microseconds = time
        latest, ahead = (int(part or 0) / 1_000_000 for part in kept)
        now = int(seconds) + int(microseconds) / 1_000_000 if self._clock is None else self._clock()
        return max(now + ahead, latest)

    def _end(self, debt: Debt) -> bool:
        grant, admission, reply, answer = debt
        claim = admission.entry
        if claim is None and reply.reached and not reply.spent:
            return True  # nothing is stored for such a call
        windows = _windows(grant)
        arguments: list[Any] = [self._now(), int(claim is not None)]
        if claim is None:
            arguments += ["", "", "", "", ""]
        else:
            ended = idempotency.settle_for(grant, claim, owner=claim.owner, reply=reply, answer=answer)
            assert ended is not None  # noqa: S101 - the claim is
            content = b"" if idempotency.blank(ended) else idempotency.packed(ended)
            arguments += [_version(claim), content, _version(ended), _micro(ended.sent)]
            arguments.append(_kept(ended, claim.lease_until - LEASE))
        arguments += [int(not reply.reached), _micro(admission.taken), reply.spent]
        for _, limit, counts in windows:
            arguments += [limit.seconds, counts]
        return bool(self._run(self._settle, _keys(grant, admission.owner, windows), arguments, again=claim is not None))

    def _run(self, script: Script, keys: list[str], arguments: list[Any], *, again: bool, lost: bool = False) -> Any:
        """Run a script. ``again``: it is safe to repeat. Raises :class:`StoreUnavailable`."""
        try:
            return self._client.run(script, keys, arguments)
        except RedisError as error:
            lost = lost or isinstance(error, LostError)
            if not again or isinstance(error, RefusedError):
                raise _unavailable(error, lost=lost) from None
        return self._run(script, keys, arguments, again=False, lost=lost)


def _unavailable(error: RedisError, *, lost: bool = False) -> StoreUnavailable:
    return StoreUnavailable(note=str(error), retry_after=1, lost=lost)


def _entry(content: bytes | None, sent: bytes | None, lease: bytes | None) -> Entry | None:
    if not content or not sent or not lease:
        return None
    return replace(idempotency.unpacked(content), sent=int(sent) / 1_000_000, lease_until=int(lease) / 1_000_000)


def _window(limit: Limit, found: list[bytes]) -> Window:
    """Return the window that a hash of the scripts holds, here as its names and values in turn."""
    pairs = zip(found[::2], found[1::2], strict=True)
    return Window(limit, sorted((int(name), int(calls)) for name, calls in pairs if name.isdigit()))


def _version(entry: Entry | None) -> str:
    if entry is None:
        return ""
    version = f"{entry.owner}:{entry.state.value}"
    return f"{version}:{entry.said}:{entry.told}" if entry.said else version


def _micro(seconds: float) -> str:
    return str(round(seconds * 1_000_000))


def _kept(entry: Entry, now: float) -> str:
    return "" if entry.expires is None else str(round((entry.expires - now) * 1000) + SLACK)


def _keys(grant: Grant, owner: str, windows: list[_Window]) -> list[str]:
    return [
        f"{PREFIX}ledger:{grant.ledger_key or 'none'}",
        f"{PREFIX}released:{owner}",
        *(key for key, _, _ in windows),
    ]


def _windows(grant: Grant) -> list[_Window]:
    ceiling, budget = ceiling_of(grant.entitlement.connection), grant.budget
    counted = [*limits_of(grant.caller), *([ceiling] if ceiling is not None else ())]
    windows: list[_Window] = [(f"{PREFIX}{name}", limit, 1) for name, limit in counted]
    if budget is not None:
        name, limit = budget_of(grant.caller, budget)
        windows.append((f"{PREFIX}{name}", limit, 0))
    return windows


def _standings(limits: tuple[Limit, ...], standing: list[Any]) -> tuple[Standing, ...]:
    pairs = zip(standing[::2], standing[1::2], strict=True)
    return tuple(
        Standing(limit, int(remaining), whole_seconds(int(frees) / 1_000_000))
        for limit, (remaining, frees) in zip(limits, pairs, strict=False)  # the ceiling's stays private
    )


def _full(grant: Grant, windows: list[_Window], standing: list[Any], standings: tuple[Standing, ...]) -> QuotaRefusal:
    limits, budget = grant.caller.limits, grant.budget
    full: list[tuple[float, Limit | Budget | None]] = []
    for place, (_, limit, _) in enumerate(windows):
        remaining, frees = standing[2 * place : 2 * place + 2]
        if int(remaining) < 1:
            own = limit if place < len(limits) else None
            spent = budget if budget is not None and limit is budget.limit else None
            full.append((int(frees) / 1_000_000, own or spent))
    return refusal_for(full, standings)
