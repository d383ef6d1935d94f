"""Limits and the ledger in Redis or Valkey, shared by every instance. ``redis://``, or ``rediss://`` over TLS.

An admission of a fresh key is one script, and so one atomic step and one round trip; a settlement is another. An
entry that is there is judged by ``policies.idempotency``, here, and written over only if it has not changed since. All
runs on the server's clock. A script with an idempotency key is safe to repeat, since it knows the owner of the claim,
and is repeated once.

Every key of one deployment carries the same hash tag, so that a cluster keeps them on one node and a script may use
them together.
"""

from __future__ import annotations

import math
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from gateway.stores import Settled
from gateway.stores.connecting import MENDS, Client, LostError, RedisError, RefusedError, Script
from gateway.stores.debts import Debt, Debts
from policies import idempotency
from policies.idempotency import LEASE, Held, Verdict
from policies.model import Admission, Answer, Entry, Limit, Reserved, Seen, Standing, State
from policies.quota import (
    BUCKETS,
    Short,
    Window,
    bounds_of,
    budgets_of,
    ceiling_of,
    holds,
    left_of,
    limits_of,
    money_of,
    refusal_for,
    rise,
    spent_of,
    whole_seconds,
)
from policies.refusals import LedgerRefusal, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from policies.issuing import Progress
    from policies.model import Caller, Connection, Grant, Left
    from policies.outcomes import Reply
    from policies.quota import Full

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
_PARTS: Final = ("e", "sent", "lease", "at", "r", "m")


# policies.quota again, in Lua, to run where the data is. The contract tests hold both to the same promises. Times are
# microseconds, which a Lua number represents exactly.
_COMMON: Final = f"""
local BUCKETS = {BUCKETS}
-- Money counts from a lease later on.
local LEASE = {LEASE} * 1000000

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

-- A window is a hash: t calls in all, f and l the first and last bucket in use, and the calls of each bucket; money
-- likewise. ``tried`` is the bucket of what is only tried, ``given`` that of what is to be given back: not written.
local function calls_in(w, bucket)
  local counted = tonumber(redis.call('HGET', w.key, bucket) or 0)
  return counted + (bucket == w.tried and w.trying or 0) - (bucket == w.given and w.back or 0)
end

-- Read a window, and write nothing: what has left it is removed by the next call that is counted.
local function read(key, calls, seconds, now)
  local width = seconds * 1000000 / BUCKETS
  local s = redis.call('HMGET', key, 't', 'f', 'l')
  local total, first, last = tonumber(s[1] or 0), tonumber(s[2]), tonumber(s[3])
  local w = {{
    key = key, calls = calls, seconds = seconds, width = width, total = 0, oldest = first, back = 0, enough = 0
  }}
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

local function try(w, now, amount)
  w.tried, w.trying = math.floor(now / w.width), amount
  w.total, w.first = w.total + amount, w.first or w.tried
end

-- See what there is to give back of what was counted at a time, and has not left the window. It is not written yet.
local function give(w, at, amount)
  local bucket = math.floor(at / w.width)
  if not w.first or bucket < w.first then return end
  local back = math.min(amount, calls_in(w, bucket))
  w.given, w.back, w.total = bucket, back, w.total - back
end

local function given(w)
  if w.back == 0 then return end
  redis.call('HINCRBY', w.key, w.given, -w.back)
  redis.call('HINCRBY', w.key, 't', -w.back)
  w.given = nil
end

-- How long until more is left or, of a full window, until ``need`` would pass: -1 if it never will.
local function frees(w, now, need)
  if need > w.calls then return -1 end
  if not w.first then return 0 end
  local last, total = w.first, w.total
  while total + need > w.calls do
    total = total - calls_in(w, last)
    if total + need > w.calls then last = last + 1 end
  end
  return (last + BUCKETS + 1) * w.width - now
end

-- See what a call holds in a window, as ``holds`` says: all that is still there is enough, unless it was booked anew.
local function hold(w, holds, at, amount)
  if holds == '' or holds == 'call' then return end
  give(w, at + LEASE, amount)
  if holds == 'enough' then w.enough = w.back end
end

-- Whether a window has no room for what is wanted.
local function lacks(w) return w.amount > w.enough and w.total + w.amount > w.calls end

-- The places of the windows without room.
local function full(windows)
  local places = {{}}
  for i, w in ipairs(windows) do
    if lacks(w) then places[#places + 1] = i end
  end
  return table.concat(places, ' ')
end

local function standing(reply, windows, now)
  for _, w in ipairs(windows) do
    reply[#reply + 1] = exact(w.calls - w.total)
    reply[#reply + 1] = exact(frees(w, now, lacks(w) and w.amount or 1))
  end
  return reply
end
"""

# An entry of the ledger is a hash, judged in policies.idempotency alone: ``e`` is the entry, without the times in
# ``sent`` and ``lease``, which the script that writes it may set to its own clock; ``v`` is its version, which is the
# owner, the state and an operator's decision; ``taken`` is when the call was counted; ``m`` says what money it holds,
# empty for none, but for how much (``r``) and since when (``at``). It is written only over the version that was judged.
# ``m`` changes only where money moves: a call that did not hear what it has booked does not undo it.

# KEYS: the ledger's entry, the mark of a released owner, then the windows of the limits, the ceiling and the budgets.
# ARGV: now or '', '1' with a key, the version that was judged ('' for none), the entry to write, its version, when it
# was first sent or '', the lease, '1' to take or '0' to write nothing and answer as if, how much money it is to hold or
# '', how much it holds and since when, the ``m`` to write; then for each window its calls, its seconds, how much is
# counted there, and 'call', or of money '', or 'enough' or 'anew' if what the call holds lies there.
_ADMIT: Final = f"""{_COMMON}
local now = clock(ARGV[1])
local keyed, takes, holds = ARGV[2] == '1', ARGV[8] == '1', tonumber(ARGV[10])
if takes and turned then ticked(now) end
local windows = {{}}
for i = 3, #KEYS do
  local w = read(KEYS[i], tonumber(ARGV[4 * i + 1]), tonumber(ARGV[4 * i + 2]), now)
  w.amount = tonumber(ARGV[4 * i + 3])
  w.after = ARGV[4 * i + 4] == 'call' and 0 or LEASE
  hold(w, ARGV[4 * i + 4], tonumber(ARGV[11]), holds)
  windows[i - 2] = w
end

local function answer(verdict, ...) return standing({{verdict, ...}}, windows, now) end

if keyed then
  local held = redis.call('HMGET', KEYS[1], 'v', 'e', 'sent', 'lease', 'taken', 'at', 'r', 'm')
  local at, r = held[6] or '', held[7] or ''
  if held[1] == ARGV[5] then return answer('admitted', held[5], held[3], held[4], '', at, r, '') end
  if redis.call('EXISTS', KEYS[2]) == 1 then return answer('released', '', '', '', '', '', '', '') end
  if (held[1] or '') ~= ARGV[3] then
    return answer('held', exact(now), held[3] or '', held[4] or '', held[2] or '', at, r, held[8] or '')
  end
end

local places = full(windows)
if places ~= '' then return answer('full', places, '', '', '', '', '', '') end
for _, w in ipairs(windows) do
  if takes then given(w) end
  if w.amount > 0 then
    if takes then take(w, now + w.after, w.amount) else try(w, now + w.after, w.amount) end
  end
  w.amount = 0
end
if takes then ticked(now) end
local sent, lease = ARGV[6], exact(now + tonumber(ARGV[7]))
if sent == '' then sent = exact(now) end
if keyed and takes then
  redis.call(
    'HSET', KEYS[1], 'v', ARGV[5], 'e', ARGV[4], 'sent', sent, 'lease', lease, 'taken', exact(now), 'm', ARGV[12]
  )
  if ARGV[9] ~= '' then redis.call('HSET', KEYS[1], 'at', exact(now), 'r', ARGV[9]) end
  if ARGV[3] ~= '' then redis.call('PERSIST', KEYS[1]) end
end
if ARGV[9] ~= '' then return answer('admitted', exact(now), sent, lease, '', exact(now), ARGV[9], '') end
return answer('admitted', exact(now), sent, lease, '', ARGV[11], ARGV[10], '')
"""

# KEYS as above. ARGV: now or '', '1' with a key, the version that was claimed, the entry to write ('' to delete it),
# its version, when it was first sent, for how many milliseconds it is kept or '', '1' to give calls back, taken, '1' to
# give money back, how much it holds and since when; then for each window its calls, its seconds, 'call' if the call was
# counted there, 'money' if what it holds lies there, and the amount spent there. Returns 1 if the ledger now has that
# version, 2 if more was spent than a budget allows, 0 if another call owns the key. Of a claim that is not there, or
# not any more, the owner is marked: it must not come later, nor once more.
_SETTLE: Final = f"""{_COMMON}
local keyed, taken, holds, at = ARGV[2] == '1', ARGV[9], ARGV[11], ARGV[12]
if keyed then
  local held = redis.call('HMGET', KEYS[1], 'v', 'taken', 'at', 'r')
  if held[1] ~= ARGV[3] then
    if held[1] == ARGV[5] then return 1 end
    if ARGV[8] == '1' then redis.call('SET', KEYS[2], '1', 'EX', {MARKED}) end
    return (ARGV[8] == '1' and not held[1]) and 1 or 0
  end
  taken, at, holds = held[2], held[3] or at, held[4] or holds
  if ARGV[4] == '' then
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[2], '1', 'EX', {MARKED})
  else
    redis.call('HSET', KEYS[1], 'v', ARGV[5], 'e', ARGV[4], 'sent', ARGV[6])
    if ARGV[10] == '1' then redis.call('HSET', KEYS[1], 'm', '') end
    if ARGV[7] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[7]) end
  end
end
local now, over = clock(ARGV[1]), false
for i = 3, #KEYS do
  local w = read(KEYS[i], tonumber(ARGV[4 * i + 1]), tonumber(ARGV[4 * i + 2]), now)
  local counted, spent = ARGV[4 * i + 3], tonumber(ARGV[4 * i + 4])
  if counted == 'call' and ARGV[8] == '1' then give(w, tonumber(taken), 1) end
  if counted == 'money' and ARGV[10] == '1' then give(w, tonumber(at) + LEASE, tonumber(holds)) end
  given(w)
  if spent > 0 then
    take(w, now + LEASE, spent)
    over = over or (w.back < spent and w.total > w.calls)
  end
end
return over and 2 or 1
"""

# KEYS: the entry, then the windows of the budgets. ARGV: the version that was judged, the entry to write, when it was
# first sent, now or '', how much money it is to hold or '', the ``m`` to write or '-' if that stays; then for each
# window as for an admission. The version stays. Repeated, it finds the entry as it wrote it, and does no more.
_ADVANCE: Final = f"""{_COMMON}
local held = redis.call('HMGET', KEYS[1], 'v', 'at', 'r', 'e', 'm')
if held[1] ~= ARGV[1] then return {{'lost'}} end
if held[4] == ARGV[2] and held[5] == ARGV[6] then return {{'done', held[2] or ''}} end
local now, windows = clock(ARGV[4]), {{}}
for i = 2, #KEYS do
  local w = read(KEYS[i], tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i]), now)
  w.amount = tonumber(ARGV[4 * i + 1])
  if held[2] then hold(w, ARGV[4 * i + 2], tonumber(held[2]), tonumber(held[3])) end
  windows[i - 1] = w
end
local places = full(windows)
if places ~= '' then return standing({{'full', places}}, windows, now) end
for _, w in ipairs(windows) do
  given(w)
  if w.amount > 0 then take(w, now + LEASE, w.amount) end
end
redis.call('HSET', KEYS[1], 'e', ARGV[2], 'sent', ARGV[3])
if ARGV[6] ~= '-' then redis.call('HSET', KEYS[1], 'm', ARGV[6]) end
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'at', exact(now), 'r', ARGV[5]) end
return {{'done', exact(now)}}
"""

# KEYS: the entry, then the windows in which its money lies. ARGV: the version that was judged, the entry to write, its
# version, for how many milliseconds it is kept or '', now or '', 'back' to give its money back, 'book' to book it again
# or '', the ``m`` to write then; then for each window its seconds. Its other times stay as they are.
_REPLACE: Final = f"""{_COMMON}
local held = redis.call('HMGET', KEYS[1], 'v', 'at', 'r')
if held[1] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'v', ARGV[3], 'e', ARGV[2])
if ARGV[4] == '' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
if ARGV[6] == '' then return 1 end
redis.call('HSET', KEYS[1], 'm', ARGV[7])
local now = clock(ARGV[5])
for i = 2, #KEYS do
  local w = read(KEYS[i], 0, tonumber(ARGV[6 + i]), now)
  if not held[2] then return 1 end
  if ARGV[6] == 'back' then
    give(w, tonumber(held[2]) + LEASE, tonumber(held[3]))
    given(w)
  else
    take(w, now + LEASE, tonumber(held[3]))
  end
end
if ARGV[6] == 'book' then redis.call('HSET', KEYS[1], 'at', exact(now)) end
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


class _Window(NamedTuple):
    """A window that a call is counted in."""

    key: str
    limit: Limit
    amount: int = 1
    """What is counted there: a call, or money."""
    holds: str = "call"
    """What is counted: a call, or money. Of money, whether what the call holds lies there: "", "enough", or "anew" if
    that needs room as well.
    """

    @classmethod
    def of(cls, grant: Grant, held: Reserved | None, amount: int) -> list[_Window]:
        """Return the windows of a call's money: ``amount`` goes to its budgets, and what is held comes back."""
        budgets, lies = budgets_of(grant), dict(held.windows) if held is not None else {}
        holds = "anew" if held is not None and held.anew else "enough"
        return [
            cls(f"{PREFIX}{name}", limit, amount if name in budgets else 0, holds if name in lies else "")
            for name, limit in money_of(budgets, held).items()
        ]


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

    def left(self, caller: Caller, connections: Iterable[Connection], customer: str | None = None) -> tuple[Left, ...]:
        """See :class:`gateway.stores.Store`."""
        bounds = bounds_of(caller, connections, customer)
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
        held = None
        # The script sets the times of a fresh claim.
        claim = None if grant.ledger_key is None else idempotency.wanted(grant, owner=owner, place=place, now=0.0)
        for _ in range(ATTEMPTS):
            try:
                admission = self._claim(grant, owner, held, claim, takes=takes)
            except StoreUnavailable as unavailable:
                if takes and unavailable.lost and claim is not None:
                    money = _moved(grant, claim)
                    claim = replace(claim, reserved=_booked(money)) if money else claim
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

    def _claim(
        self, grant: Grant, owner: str, held: Entry | None, claim: Entry | None, *, takes: bool = True
    ) -> Admission | tuple[Entry | None, float, tuple[Standing, ...]]:
        """Write a claim over what was judged. Return the admission, or what is held instead, with the time."""
        reserved = claim.reserved if claim is not None else None
        money, moved = _moved(grant, claim), None
        windows = _windows(grant)
        if money:
            windows += money
            moved = _booked(money)
            claim = None if claim is None else replace(claim, reserved=moved)
        arguments: list[Any] = [self._now(), int(claim is not None), _version(held)]
        if claim is None:
            arguments += ["", "", "", 0]
        else:
            sent = "" if held is None else _micro(claim.sent)
            arguments += [_content(claim), _version(claim), sent, LEASE * 1_000_000]
        arguments += [int(takes), "" if moved is None else moved.amount]
        arguments += ["", ""] if reserved is None else [reserved.amount, _micro(reserved.at)]
        arguments.append(_money(claim))
        for window in windows:
            arguments += [window.limit.calls, window.limit.seconds, window.amount, window.holds]
        verdict, first, sent, lease, entry, at, holds, lies, *standing = self._run(
            self._admit, _keys(grant, owner, windows), arguments, again=claim is not None
        )
        standings = _standings(grant.caller.limits, standing)
        match verdict:
            case b"admitted":
                if moved is not None:
                    moved = replace(moved, amount=int(holds), at=int(at) / 1_000_000)
                if claim is None:
                    return Admission(standings, owner, int(first) / 1_000_000, reserved=moved)
                claim = replace(claim, sent=int(sent) / 1_000_000, lease_until=int(lease) / 1_000_000)
                claim = claim if moved is None else replace(claim, reserved=moved)
                return Admission(standings, owner, int(first) / 1_000_000, claim)
            case b"held":
                return _entry(entry, sent, lease, at, holds, lies), int(first) / 1_000_000, standings
            case b"full":
                raise refusal_for(_full(grant, windows, first, standing), standings)
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
        amount = rise(budgets_of(grant), entry.reserved, progress.comes_to, admission.taken)
        windows: list[_Window] = []
        if amount is not None:
            windows = _Window.of(grant, entry.reserved, amount)
            entry = replace(entry, reserved=_booked(windows))
        arguments: list[Any] = [_version(admission.entry), _content(entry), _micro(entry.sent), self._now()]
        arguments.append("" if entry.reserved is None or amount is None else entry.reserved.amount)
        arguments.append("-" if amount is None else _money(entry))
        for window in windows:
            arguments += [window.limit.calls, window.limit.seconds, window.amount, window.holds]
        keys = [f"{PREFIX}ledger:{grant.ledger_key}", *(window.key for window in windows)]
        verdict, *told = self._run(self._advance, keys, arguments, again=True)
        match verdict:
            case b"lost":
                return None
            case b"full":
                raise refusal_for(_full(grant, windows, told[0], told[1:]), admission.standings, draft=True)
        if amount is not None and entry.reserved is not None:
            entry = replace(entry, reserved=replace(entry.reserved, at=int(told[0]) / 1_000_000))
        return replace(admission, entry=entry)

    def settle(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer) -> Settled:
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
        arguments = [_version(held), _content(entry), _version(entry), _kept(entry, now), self._now()]
        lies = held.reserved if entry.reserved is None else entry.reserved if held.reserved is None else None
        windows = lies.windows if lies is not None else ()
        arguments += ["" if lies is None else "back" if held.reserved is not None else "book"]
        arguments.append(_money(entry))
        arguments += [str(seconds) for _, seconds in windows]
        keys = [place, *(f"{PREFIX}{name}" for name, _ in windows)]
        return bool(self._run(self._replace, keys, arguments, again=again))

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

    def _end(self, debt: Debt) -> Settled:
        grant, admission, reply, answer = debt
        claim, known = admission.entry, idempotency.gives_back(reply)
        reserved = admission.reserved if claim is None else claim.reserved
        if claim is None and reply.reached and reserved is None and not reply.spent:
            return Settled.WRITTEN  # nothing is stored for such a call
        arguments: list[Any] = [self._now(), int(claim is not None)]
        if claim is None:
            arguments += ["", "", "", "", ""]
        else:
            ended = idempotency.settle_for(grant, claim, owner=claim.owner, reply=reply, answer=answer)
            assert ended is not None  # noqa: S101 - the claim is
            # Not by what the claim holds: its call may not have heard that more was booked.
            known = known and ended.state is not State.UNKNOWN
            content = b"" if idempotency.blank(ended) else _content(ended)
            arguments += [_version(claim), content, _version(ended), _micro(ended.sent)]
            arguments.append(_kept(ended, claim.lease_until - LEASE))
        arguments += [int(not reply.reached), _micro(admission.taken), int(known)]
        arguments += ["", ""] if reserved is None else [reserved.amount, _micro(reserved.at)]
        windows = [] if reply.reached else _windows(grant)
        for window in windows:
            arguments += [window.limit.calls, window.limit.seconds, "call", 0]
        budgets, spent = spent_of(grant, reply) if known else ({}, 0)
        lies = dict(reserved.windows) if reserved is not None else {}
        for name, limit in money_of(budgets, reserved).items():
            windows.append(_Window(f"{PREFIX}{name}", limit))
            arguments += [limit.calls, limit.seconds, "money" if name in lies else "", spent if name in budgets else 0]
        done = self._run(self._settle, _keys(grant, admission.owner, windows), arguments, again=claim is not None)
        return (Settled.OWED, Settled.WRITTEN, Settled.OVER)[done]

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


def _entry(content: bytes | None, sent: bytes | None, lease: bytes | None, *money: bytes | None) -> Entry | None:
    if not content or not sent or not lease:
        return None
    entry = idempotency.unpacked(content)
    at, holds, lies = money
    reserved = None
    if at and holds and lies:
        reserved = replace(_UNPACKED(lies), amount=int(holds), at=int(at) / 1_000_000)
    return replace(entry, sent=int(sent) / 1_000_000, lease_until=int(lease) / 1_000_000, reserved=reserved)


_UNPACKED: Final = msgspec.msgpack.Decoder(Reserved).decode


def _content(entry: Entry) -> bytes:
    """Return what is kept of an entry in ``e``."""
    return idempotency.packed(replace(entry, reserved=None) if entry.reserved is not None else entry)


def _money(entry: Entry | None) -> bytes:
    """Return what is kept in ``m`` of the money that an entry holds, empty for none."""
    return b"" if entry is None or entry.reserved is None else idempotency.packed(entry.reserved)


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
        *(window.key for window in windows),
    ]


def _windows(grant: Grant) -> list[_Window]:
    ceiling = ceiling_of(grant.entitlement.connection)
    counted = [*limits_of(grant.caller), *([ceiling] if ceiling is not None else ())]
    return [_Window(f"{PREFIX}{name}", limit) for name, limit in counted]


def _moved(grant: Grant, claim: Entry | None) -> list[_Window]:
    """Return the windows that an admission moves a call's money in, what its claim holds included."""
    held = claim.reserved if claim is not None else None
    moves = (grant.budgets or held is not None) and idempotency.moves(claim)
    return _Window.of(grant, held, holds(grant, held)) if moves else []


def _booked(windows: list[_Window]) -> Reserved | None:
    """Return what is booked in windows, at a time that the server knows."""
    lies = [window for window in windows if window.amount]
    if not lies:
        return None
    names = tuple((window.key.removeprefix(PREFIX), window.limit.seconds) for window in lies)
    return Reserved(lies[0].amount, 0.0, names)


def _standings(limits: tuple[Limit, ...], standing: list[Any]) -> tuple[Standing, ...]:
    pairs = zip(standing[::2], standing[1::2], strict=True)
    return tuple(
        Standing(limit, int(remaining), whole_seconds(int(frees) / 1_000_000))
        for limit, (remaining, frees) in zip(limits, pairs, strict=False)  # the ceiling's stays private
    )


def _full(grant: Grant, windows: list[_Window], places: bytes, standing: list[Any]) -> list[Full]:
    """Return which windows have no room, by what a script says: their places, and of each window what is left, and when
    there is room.
    """
    own = len(grant.caller.limits)
    budgets = {f"{PREFIX}{name}": budget for name, budget in budgets_of(grant).items()}
    full: list[Full] = []
    for place in (int(number) - 1 for number in places.split()):
        window, left, frees = windows[place], int(standing[2 * place]), int(standing[2 * place + 1])
        wait = math.inf if frees < 0 else frees / 1_000_000
        budget = budgets.get(window.key)
        if budget is not None:
            full.append((wait, Short(budget, left, window.amount)))
        else:
            full.append((wait, window.limit if place < own else None))
    return full
