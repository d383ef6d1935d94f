"""Limits and the ledger in Redis, shared by every instance. ``redis://`` or ``rediss://``.

An admission is one script, and so one atomic step and one round trip; a settlement is another. Both run on the
server's clock. The client never repeats a command by itself, since it would also repeat one whose reply was only slow.
A script with an idempotency key is safe to repeat, since it knows the owner of the claim, and is repeated once.

Every key of one deployment carries the same hash tag, so that a cluster keeps them on one node and a script may use
them together.
"""

from __future__ import annotations

import json
import os
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from gateway.edges import meaning
from policies.idempotency import LEASE, Held, State, Verdict
from policies.model import Admission, Answer, Outcome, Standing
from policies.outcomes import Reply
from policies.quota import BUCKETS, refusal_for, whole_seconds
from policies.refusals import KeyInUse, KeyReused, LedgerRefusal, OutcomeStillUnknown, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policies.model import Budget, Grant, Limit
    from policies.refusals import QuotaRefusal

#: Two attempts at most, so that a refusal takes less than a second.
TIMEOUT_SECONDS: Final = 0.4
#: Milliseconds that a key is kept beyond its use, so that it never expires early.
SLACK: Final = 60_000

PREFIX: Final = "{countersign}:"


class Meaning(Enum):
    """What an exception of the client says about the command."""

    LOST = auto()
    """No readable answer came, so the command may have run. With an idempotency key it is safe to repeat, once."""
    DEMOTED = auto()
    """The server is now a replica. The address may name another server, which only a new connection finds."""
    REFUSED = auto()
    """An immediate retry would get the same answer."""


ERRORS: Final[dict[type[BaseException], Meaning]] = {
    exceptions.ConnectionError: Meaning.LOST,
    exceptions.TimeoutError: Meaning.LOST,
    exceptions.InvalidResponse: Meaning.LOST,
    exceptions.AuthenticationError: Meaning.REFUSED,
    exceptions.AuthorizationError: Meaning.REFUSED,
    exceptions.BusyLoadingError: Meaning.REFUSED,
    exceptions.ReadOnlyError: Meaning.DEMOTED,
    exceptions.MasterDownError: Meaning.DEMOTED,
    exceptions.RedisError: Meaning.REFUSED,
    exceptions.RedisClusterException: Meaning.REFUSED,
    exceptions.ChildDeadlockedError: Meaning.REFUSED,
    exceptions.IncorrectPolicyType: Meaning.REFUSED,
    ValueError: Meaning.REFUSED,  # a malformed host name, or an error reply that the client cannot parse
}

# policies.quota and policies.idempotency again, in Lua, to run where the data is. The contract tests hold both to the
# same promises. Times are microseconds, which a Lua number represents exactly.
_COMMON: Final = f"""
local BUCKETS = {BUCKETS}

local function exact(microseconds) return string.format('%.0f', microseconds) end

local function clock(given)
  if given ~= '' then return tonumber(given) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

-- A window is a hash: t calls in all, f and l the first and last bucket in use, and the calls of each bucket.
local function forget(key, width, now)
  local s = redis.call('HMGET', key, 't', 'f', 'l')
  local total, first, last = tonumber(s[1] or 0), tonumber(s[2]), tonumber(s[3])
  if total <= 0 or last < math.floor(now / width) - BUCKETS then
    if s[1] then redis.call('DEL', key) end
    return 0, nil
  end
  local keep = math.floor(now / width) - BUCKETS
  local moved = false
  while true do
    local calls = tonumber(redis.call('HGET', key, first) or 0)
    if first >= keep and calls > 0 then break end
    redis.call('HDEL', key, first)
    total, first, moved = total - calls, first + 1, true
    if total <= 0 then
      redis.call('DEL', key)
      return 0, nil
    end
  end
  if moved then redis.call('HSET', key, 't', total, 'f', first) end
  return total, first
end

local function take(key, seconds, width, total, first, now, amount)
  local bucket = math.floor(now / width)
  redis.call('HINCRBY', key, bucket, amount)
  redis.call('HSET', key, 't', total + amount, 'f', first or bucket, 'l', bucket)
  redis.call('PEXPIRE', key, seconds * 1000 + math.ceil(width / 1000) + {SLACK})
  return total + amount, first or bucket
end

-- How long until more is left or, of a full window, until a call would pass: a budget may be well past its amount.
local function frees(w, now)
  if not w.first then return 0 end
  local last, total = w.first, w.total
  while total >= w.calls do
    total = total - tonumber(redis.call('HGET', w.key, last) or 0)
    if total >= w.calls then last = last + 1 end
  end
  return (last + BUCKETS + 1) * w.width - now
end
"""

# KEYS: the ledger's entry, then a window for each limit, the ceiling's, and the budget's.
# ARGV: now or '', owner, fingerprint, lease, retention in ms, '1' with a key, its caller, connection and operation in
# JSON, for how long it may be sent again, and its place; then for each window its calls, its seconds and '1' if the
# call is counted there now (in a budget it is counted later).
_ADMIT: Final = f"""{_COMMON}
local now = clock(ARGV[1])
local owner, fingerprint, keyed = ARGV[2], ARGV[3], ARGV[6] == '1'
local lease, again = tonumber(ARGV[4]), false
local windows = {{}}
for i = 2, #KEYS do
  local calls, seconds, counts = tonumber(ARGV[3 * i + 4]), tonumber(ARGV[3 * i + 5]), ARGV[3 * i + 6] == '1'
  local width = seconds * 1000000 / BUCKETS
  local total, first = forget(KEYS[i], width, now)
  windows[i - 1] = {{
    key = KEYS[i], calls = calls, seconds = seconds, counts = counts, width = width, total = total, first = first
  }}
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
  local e = redis.call('HMGET', KEYS[1], 'state', 'owner', 'fingerprint', 'lease', 'expires', 'taken', 'status', 'body',
    'sent', 'doubt', 'place')
  if e[1] and tonumber(e[5]) > now then
    if e[3] ~= fingerprint then return answer('reused', '', '') end
    if e[1] == 'sent' then
      if now < tonumber(e[4]) then
        if e[2] == owner then return answer('admitted', e[6], e[10]) end
        return answer('in-use', '', '')
      end
    elseif e[1] ~= 'unknown' then
      return answer('replay', e[7], e[8])
    end
    if e[11] ~= ARGV[9] or now + lease > tonumber(e[9]) + tonumber(ARGV[8]) then return answer('unknown', '', '') end
    again = true
  end
end

for i, w in ipairs(windows) do
  if w.total >= w.calls then return answer('full', i, '') end
end
for _, w in ipairs(windows) do
  if w.counts then
    w.total, w.first = take(w.key, w.seconds, w.width, w.total, w.first, now, 1)
  end
end
if again then
  redis.call('HSET', KEYS[1], 'state', 'sent', 'owner', owner, 'taken', exact(now), 'lease', exact(now + lease),
    'doubt', '1')
elseif keyed then
  local retention = tonumber(ARGV[5])
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'state', 'sent', 'owner', owner, 'fingerprint', fingerprint, 'about', ARGV[7],
    'sent', exact(now), 'taken', exact(now), 'lease', exact(now + lease), 'expires', exact(now + retention * 1000),
    'doubt', '', 'place', ARGV[9])
  redis.call('PEXPIRE', KEYS[1], retention + {SLACK})
end
return answer('admitted', exact(now), again and '1' or '')
"""

# KEYS as above. ARGV: owner, the state to enter or 'released', status, body, '1' with a key, '1' to give back, taken,
# the amount spent, now or ''; then for each window its seconds and '1' if the call was counted there. Returns 1 if the
# ledger now has that state, 0 if another call owns the key.
_SETTLE: Final = f"""{_COMMON}
local owner, state, keyed = ARGV[1], ARGV[2], ARGV[5] == '1'
if keyed then
  local e = redis.call('HMGET', KEYS[1], 'state', 'owner', 'doubt')
  if e[2] ~= owner then return (not e[1] and state == 'released') and 1 or 0 end
  if state == 'released' and e[3] == '1' then state = 'unknown' end
  if e[1] ~= 'sent' then return e[1] == state and 1 or 0 end
  if state == 'released' then
    redis.call('DEL', KEYS[1])
  else
    redis.call('HSET', KEYS[1], 'state', state, 'status', ARGV[3], 'body', ARGV[4])
  end
end
local spent = tonumber(ARGV[8])
for i = 2, #KEYS do
  local seconds, counted = tonumber(ARGV[2 * i + 6]), ARGV[2 * i + 7] == '1'
  local width = seconds * 1000000 / BUCKETS
  if counted and ARGV[6] == '1' then
    local bucket = math.floor(tonumber(ARGV[7]) / width)
    if tonumber(redis.call('HGET', KEYS[i], bucket) or 0) > 0 then
      redis.call('HINCRBY', KEYS[i], bucket, -1)
      redis.call('HINCRBY', KEYS[i], 't', -1)
    end
  elseif not counted and spent > 0 then
    local now = clock(ARGV[9])
    local total, first = forget(KEYS[i], width, now)
    take(KEYS[i], seconds, width, total, first, now, spent)
  end
end
return 1
"""

# KEYS: the entry. ARGV: now or '', then the status and body to repeat; both '' if no invoice was created.
_RESOLVE: Final = f"""{_COMMON}
local now = clock(ARGV[1])
local e = redis.call('HMGET', KEYS[1], 'state', 'lease')
if not e[1] then return 'absent' end
if e[1] == 'sent' and now < tonumber(e[2]) then return 'running' end
if e[1] ~= 'sent' and e[1] ~= 'unknown' then return 'settled' end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], 'state', 'succeeded', 'status', ARGV[2], 'body', ARGV[3])
end
return 'resolved'
"""

_REFUSALS: Final[dict[bytes, type[LedgerRefusal]]] = {
    b"reused": KeyReused,
    b"in-use": KeyInUse,
    b"unknown": OutcomeStillUnknown,
}


#: A window's key, its limit, and 1 if an admission is counted in it.
_Window = tuple[str, "Limit", int]


class Redis:
    """The ``redis://`` store. ``clock`` is for tests alone; without it the server's own time is used."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._client = redis.Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            client_name="countersign",
        )
        self._admit: Any = self._client.register_script(_ADMIT)
        self._settle: Any = self._client.register_script(_SETTLE)
        self._resolve: Any = self._client.register_script(_RESOLVE)

    def admit(self, grant: Grant) -> Admission:
        """See :class:`gateway.stores.Store`."""
        owner = os.urandom(16).hex()
        windows = _windows(grant)
        now = self._now()
        retention = grant.entitlement.idempotency.seconds * 1000
        lease, keyed = LEASE * 1_000_000, _keyed(grant)
        resend = grant.resend_seconds * 1_000_000
        arguments: list[str | int] = [now, owner, grant.fingerprint, lease, retention, keyed, _about(grant), resend]
        arguments.append(grant.entitlement.connection.place)
        for _, limit, counts in windows:
            arguments += [limit.calls, limit.seconds, counts]
        again = grant.ledger_key is not None
        verdict, first, second, *standing = self._run(self._admit, _keys(grant, windows), arguments, again=again)
        standings = _standings(grant.caller.limits, standing)
        if verdict == b"admitted":
            return Admission(standings, owner, int(first) / 1_000_000, doubt=second == b"1")
        if verdict == b"replay":
            return Admission(standings, owner, 0.0, replay=Answer(int(first), second))
        if verdict == b"full":
            raise _full(grant, windows, standing, standings)
        refusal = _REFUSALS[verdict](retry_after=1 if verdict == b"in-use" else None)
        refusal.standings = standings
        raise refusal

    def release(self, grant: Grant, admission: Admission) -> None:
        """See :class:`gateway.stores.Store`."""
        self._end(grant, admission, Reply(Outcome.RELEASED, reached=False), None)

    def settle(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer) -> bool:
        """See :class:`gateway.stores.Store`."""
        return self._end(grant, admission, reply, answer)

    def held(self, prefix: str = "") -> Iterator[Held]:
        """See :class:`gateway.stores.Ledger`."""
        for key, entry, now in self._entries(f"{PREFIX}ledger:", prefix):
            if None not in entry:
                state, about, sent, lease = entry
                yield Held(
                    key=key,
                    state=State(state.decode()),
                    **json.loads(about),
                    since=int(sent) / 1_000_000,
                    running=state == b"sent" and now < int(lease),
                )

    def _entries(self, start: str, prefix: str) -> Iterator[tuple[str, Any, int]]:
        try:
            now = int(self._now() or self._now_there())
            for key in self._client.scan_iter(match=f"{start}{prefix}*", count=1000):
                entry = self._client.hmget(key, "state", "about", "sent", "lease")
                yield key.decode().removeprefix(start), entry, now
        except tuple(ERRORS) as error:
            raise self._unavailable(error) from None

    def resolve(self, key: str, answer: Answer | None) -> Verdict:
        """See :class:`gateway.stores.Ledger`."""
        arguments = [self._now(), *((answer.status, answer.body) if answer is not None else ("", ""))]
        said: bytes = self._run(self._resolve, [f"{PREFIX}ledger:{key}"], arguments, again=False)
        return Verdict(said.decode())

    def _now(self) -> str:
        return "" if self._clock is None else str(round(self._clock() * 1_000_000))

    def _now_there(self) -> int:
        seconds, microseconds = self._client.time()
        return int(seconds) * 1_000_000 + int(microseconds)

    def _end(self, grant: Grant, admission: Admission, reply: Reply, answer: Answer | None) -> bool:
        if grant.ledger_key is None and reply.reached and not reply.spent:
            return True  # nothing is stored for such a call
        windows = _windows(grant)
        status, body = (answer.status, answer.body) if answer is not None else ("", "")
        if reply.outcome is Outcome.UNKNOWN:
            status, body = "", ""
        taken = str(round(admission.taken * 1_000_000))
        arguments: list[Any] = [admission.owner, reply.outcome.value, status, body, _keyed(grant)]
        arguments += [int(not reply.reached), taken, reply.spent, self._now()]
        for _, limit, counts in windows:
            arguments += [limit.seconds, counts]
        try:
            return bool(self._run(self._settle, _keys(grant, windows), arguments, again=grant.ledger_key is not None))
        except StoreUnavailable:
            return False

    def _run(self, script: Any, keys: list[str], arguments: list[Any], *, again: bool) -> Any:
        """Run a script. ``again``: it is safe to repeat. Raises :class:`StoreUnavailable`."""
        try:
            return script(keys=keys, args=arguments)
        except tuple(ERRORS) as error:
            if not again or meaning(ERRORS, error) is not Meaning.LOST:
                raise self._unavailable(error) from None
        return self._run(script, keys, arguments, again=False)

    def _unavailable(self, error: BaseException) -> StoreUnavailable:
        if meaning(ERRORS, error) is Meaning.DEMOTED:
            self._client.connection_pool.disconnect()
        return StoreUnavailable(note=type(error).__name__, retry_after=1)


def _about(grant: Grant) -> str:
    entitlement = grant.entitlement
    return json.dumps(
        {"caller": grant.caller.id, "connection": entitlement.connection.id, "operation": entitlement.operation.id}
    )


def _keyed(grant: Grant) -> int:
    return int(grant.ledger_key is not None)


def _keys(grant: Grant, windows: list[_Window]) -> list[str]:
    return [f"{PREFIX}ledger:{grant.ledger_key or 'none'}", *(key for key, _, _ in windows)]


def _windows(grant: Grant) -> list[_Window]:
    connection, caller = grant.entitlement.connection, grant.caller
    windows: list[_Window] = [(f"{PREFIX}caller:{caller.first}:{limit.text}", limit, 1) for limit in caller.limits]
    if connection.ceiling is not None:
        windows.append((f"{PREFIX}connection:{connection.id}:{connection.ceiling.text}", connection.ceiling, 1))
    if grant.budget is not None:
        windows.append((f"{PREFIX}budget:{caller.first}:{grant.budget.limit.text}", grant.budget.limit, 0))
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
