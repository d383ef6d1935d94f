"""Grant -> Reply: sends a granted call. Whatever happens is a reply.

A call is sent once. It is retried only where that cannot raise a second invoice: if a refused key has changed, if the
call is read-only, or if the upstream deduplicates. A call that waits for a person is not sent again, but asked about.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from msgspec import structs
from msgspec.structs import replace

from gateway.stopping import LEAST_SECONDS, STOPPING
from gateway.upstreams.transport import LostError, NotSentError
from policies import finalizing, issuing
from policies.issuing import Stage
from policies.model import Outcome, Step
from policies.outcomes import Approval, Reply, awaiting, decided, found, unknown, unsent
from policies.refusals import AwaitingApproval, BudgetSpent, Refusal, UpstreamMisrouted
from policies.upstreams import UPSTREAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.secrets import Secret, Secrets
    from gateway.stores import Store
    from gateway.upstreams.transport import Transport
    from policies.dialect import Approvals, Dialect
    from policies.issuing import Progress
    from policies.model import Admission, Grant
    from policies.outcomes import Decision

#: Backoff in seconds before the second and the third try: long enough for a transient failure to pass, short enough for
#: a caller whose timeout is 30 s.
PAUSES: Final = (0.3, 1.2)
#: So many keys that a kept refusal has closed are passed in one call, at once. Each stands for a mended call.
FURTHER: Final = 5
#: A wrong origin raises one alarm per connection in this time.
ALARM_SECONDS: Final = 600
#: Steps that change nothing, so that one that was lost leaves no doubt.
_LOOKS: Final = frozenset({Stage.LOOK, Stage.COUNT})
#: Writes all that a reply says, its refusal too.
_SAID: Final = msgspec.json.Encoder(enc_hook=vars)


class Steps(Protocol):
    """Where a call in several steps is put on record."""

    admission: Admission | None

    def step(self, at: Progress, reply: Reply) -> None:
        """Record a step and what came of it. Raises :class:`RecordUnavailable`; then nothing more may be sent."""


class Plan(Protocol):
    """What comes next in a call in several steps: see ``policies.issuing``, whose functions these are."""

    def begin(self, grant: Grant, admission: Admission, /) -> Progress: ...  # noqa: D102 - see there, and below

    def approved(self, at: Progress, decision: Decision, created: str | None, reply: Reply, /) -> Progress | Reply: ...  # noqa: D102

    def after(self, grant: Grant, at: Progress, reply: Reply, /) -> Progress | Reply: ...  # noqa: D102

    def stopped(self, at: Progress, note: str, /) -> Reply: ...  # noqa: D102

    def spent(self, at: Progress, why: Refusal, /) -> Progress | Reply: ...  # noqa: D102


#: By the names that operations give them.
_PLANS: Final[Mapping[str, Plan]] = {"issuing": issuing, "finalizing": finalizing}


class Upstreams:
    """Sends what was granted. ``clock`` is the deadline's; ``sleep`` waits for some seconds.

    Only calls in several steps need a ``store``.
    """

    def __init__(
        self,
        transport: Transport,
        secrets: Secrets,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        store: Store | None = None,
    ) -> None:
        self._transport, self._secrets, self._clock, self._sleep = transport, secrets, clock, sleep
        self._store = store
        self._alarmed: dict[str, float] = {}

    def send(
        self, grant: Grant, admission: Admission, secret: Secret, deadline: float, record: Steps | None = None
    ) -> Reply:
        """Send a call and return its result, whatever happens. ``deadline`` bounds all tries together.

        Only a call in several steps needs ``record``.
        """
        dialect, entry = _dialect(grant), admission.entry
        step = dialect.first(grant, admission)
        if step.stage:
            assert record is not None and self._store is not None, "a call in several steps needs both"  # noqa: PT018, S101
            return self._walk(dialect, grant, admission, secret, deadline, record, self._store)
        if entry is not None and entry.approval is not None:
            return self._ask(dialect, grant, step, entry.approval, secret, deadline)
        return self._tries(dialect, grant, step, secret, deadline)

    def _walk(  # noqa: PLR0913, PLR0917 - a call, and what each step is written to
        self,
        dialect: Dialect,
        grant: Grant,
        admission: Admission,
        secret: Secret,
        deadline: float,
        record: Steps,
        store: Store,
    ) -> Reply:
        """Send a call in several steps, as its plan says.

        What goes wrong between two steps ends it there: the same key goes on.
        """
        plan = _PLANS[grant.entitlement.operation.plan]
        ahead, attempts = self._taken_up(dialect, plan, grant, admission, secret, deadline), 0
        while not isinstance(ahead, Reply):
            at = ahead
            reply = self._tries(dialect, grant, _step_of(grant, admission, at, dialect), secret, deadline)
            attempts += reply.attempts
            ahead = plan.after(grant, at, reply)
            try:
                record.step(at, reply)
                if not isinstance(ahead, Reply):
                    if STOPPING.left(deadline, self._clock()) < LEAST_SECONDS:
                        ahead = plan.stopped(ahead, "no time is left for the next step")
                    elif ahead.written:
                        advanced = store.advance(grant, admission, ahead)
                        if advanced is None:
                            ahead = plan.stopped(ahead, "the key has another owner")
                        else:
                            admission = record.admission = advanced
            except BudgetSpent as refusal:
                assert not isinstance(ahead, Reply)  # noqa: S101 - only what goes on is booked
                ahead = plan.spent(ahead, refusal)
            except Refusal as refusal:
                if not isinstance(ahead, Reply):
                    ahead = plan.stopped(ahead, refusal.reason)
        return replace(ahead, attempts=attempts)

    def _taken_up(  # noqa: PLR0913, PLR0917 - a call, and its plan
        self, dialect: Dialect, plan: Plan, grant: Grant, admission: Admission, secret: Secret, deadline: float
    ) -> Progress | Reply:
        """Return where a call in several steps begins, once it was asked what a person decided about it."""
        at, entry, approvals = plan.begin(grant, admission), admission.entry, dialect.approvals
        if entry is None or entry.approval is None or approvals is None:
            return at
        step = _step_of(grant, admission, at, dialect)
        approval = self._decided(approvals, grant, entry.approval, secret, deadline)
        reply = _without(secret, step, decided(grant, step, entry.approval, approval))
        return plan.approved(at, approval.decision, approval.created, reply)

    def _tries(self, dialect: Dialect, grant: Grant, step: Step, secret: Secret, deadline: float) -> Reply:
        """Send one request, as often as it may be."""
        begun = step
        reached, attempts, first, alarm, closed, paused, lost = False, 0, secret, None, 0, 0, False
        while True:
            reply = self._attempt(dialect, grant, step, secret, deadline)
            attempts, reached, alarm = attempts + 1, reached or reply.reached, reply.alarm or alarm
            if reply.outcome is Outcome.SUCCEEDED:
                break
            if reply.key_refused and secret is first:
                secret = self._renewed(grant, first, deadline)
                if secret is not first:
                    alarm = None
                    continue
            step = _after(begun, step, reply)
            closed += reply.closed
            pause = _pause(grant, step, reply, paused, closed)
            if pause is None or STOPPING.left(deadline, self._clock()) < pause + LEAST_SECONDS:
                break
            paused += not reply.closed
            # Of what creates something its own step says so.
            lost = lost or (reply.outcome is Outcome.UNKNOWN and step.id is not None and step.stage not in _LOOKS)
            self._sleep(pause)
        if reply.closed:
            reply = _stopped(grant, step, reply)
        if attempts > 1 or step.generation or step.doubt:
            # An earlier try that reached the upstream counts, whatever happened to the last one.
            reply = replace(
                reply,
                attempts=attempts,
                reached=reached,
                alarm=alarm,
                generation=max(step.generation, reply.generation),
                doubt=step.doubt or lost,
            )
        return reply if reply.refusal is None else self._quietened(grant, reply)

    def _renewed(self, grant: Grant, refused: Secret, deadline: float) -> Secret:
        """Read a key again that the upstream refused. Return it if it has not changed, or leads to another account."""
        fresh = self._secrets.renew(grant, refused, deadline)
        return fresh if fresh is not None and fresh.mode == refused.mode else refused

    def _quietened(self, grant: Grant, reply: Reply) -> Reply:
        """Alarm about a wrong origin once in a while: every call of its connection meets it."""
        if not isinstance(reply.refusal, UpstreamMisrouted):
            return reply
        name, now = grant.entitlement.connection.id, self._clock()
        if now < self._alarmed.get(name, -ALARM_SECONDS) + ALARM_SECONDS:
            return replace(reply, alarm=None)
        self._alarmed[name] = now
        return reply

    def _ask(  # noqa: PLR0913, PLR0917 - what a look needs, and what it is about
        self, dialect: Dialect, grant: Grant, step: Step, name: str, secret: Secret, deadline: float
    ) -> Reply:
        """Ask what became of a call that waits for a person. It is not sent again."""
        approvals = dialect.approvals
        if approvals is None:
            return awaiting(step, name)
        approval = self._decided(approvals, grant, name, secret, deadline)
        if approval.created is None:
            return _without(secret, step, decided(grant, step, name, approval))
        try:
            looked = self._transport.send(
                approvals.found(grant, approval.created), secret.value, STOPPING.left(deadline, self._clock())
            )
        except (NotSentError, LostError):
            return awaiting(step, name)
        return _without(secret, step, found(grant, step, name, *approvals.shown(grant, looked.status, looked.body)))

    def _decided(self, approvals: Approvals, grant: Grant, name: str, secret: Secret, deadline: float) -> Approval:
        """Ask what a person has decided. Without a readable answer, it waits."""
        try:
            asked = self._transport.send(
                approvals.asked(grant, name), secret.value, STOPPING.left(deadline, self._clock())
            )
        except (NotSentError, LostError):
            return Approval()
        approval = approvals.decided(asked.status, asked.body)
        if approval.created is not None and secret.occurs_in(approval.created):
            return Approval()  # it is no id, and would be kept
        return approval

    def _attempt(self, dialect: Dialect, grant: Grant, step: Step, secret: Secret, deadline: float) -> Reply:
        try:
            received = self._transport.send(
                dialect.request(grant, step), secret.value, STOPPING.left(deadline, self._clock())
            )
        except NotSentError as error:
            return unsent(grant, step, str(error))
        except LostError as error:
            return unknown(grant, str(error))
        reply = dialect.judge(grant, step, received.status, received.headers, received.body)
        if reply.stray:
            self._transport.hang_up()
        return _without(secret, step, reply)


def _step_of(grant: Grant, admission: Admission, at: Progress, dialect: Dialect) -> Step:
    """Return one request of a call in several steps."""
    begun = dialect.first(grant, admission)
    if at.id is not None or at.stage is Stage.FIND:
        return Step(begun.name, at.generation, resumes=begun.resumes, stage=at.stage.value, id=at.id)
    # A call that was killed may have begun the next draft, too.
    refused = begun.refused and at.generation == begun.generation
    return replace(begun, generation=at.generation, refused=refused, stage=at.stage.value, id=None)


def _after(begun: Step, step: Step, reply: Reply) -> Step:
    """Return the step of another try."""
    if step.id is not None:  # what is worked on is named, so that another try changes nothing else
        return step
    if reply.closed:  # nothing was created under this key, and nothing ever will be
        # This call has not sent the next one yet. One that was killed may have.
        return replace(begun, generation=step.generation + 1, refused=False)
    if reply.outcome is Outcome.UNKNOWN and reply.approval is None:
        return replace(step, doubt=True, quiet=False)
    return step


def _pause(grant: Grant, step: Step, reply: Reply, paused: int, closed: int) -> float | None:
    """Return the seconds until another try, None if there is none.

    ``paused`` is how often this call has waited, and ``closed`` how many keys it has passed.
    """
    if reply.closed:
        return 0.0 if closed <= FURTHER else None
    if step.stage == Stage.LINES and reply.outcome is Outcome.UNKNOWN:
        return None  # lines that may have arrived are never sent to the same draft again
    again = reply.again and (grant.resend_seconds or grant.entitlement.operation.repeatable)
    return PAUSES[paused] if again and paused < len(PAUSES) else None


def _stopped(grant: Grant, step: Step, reply: Reply) -> Reply:
    """Return the result of a call with no time left for its next key: unknown if that may have been sent before."""
    return unknown(grant, "no time is left for the next key") if step.doubt else reply


def _dialect(grant: Grant) -> Dialect:
    return UPSTREAMS[grant.entitlement.connection.upstream]


def _without(secret: Secret, step: Step, reply: Reply) -> Reply:
    """Return ``reply`` without any occurrence of the key, whichever part of it the upstream has written it into."""
    if not secret.occurs_in(_SAID.encode(reply).decode()):
        return reply
    refusal = reply.refusal
    if isinstance(refusal, AwaitingApproval) and secret.occurs_in(reply.approval or ""):
        # Without its name, it cannot be asked about.
        reply = replace(awaiting(step, None, refusal.look), upstream_status=reply.upstream_status)
    given = {field.name: (getattr(reply, field.name), field.default) for field in structs.fields(reply)}
    clean: dict[str, Any] = {
        name: default for name, (value, default) in given.items() if _named(value) and secret.occurs_in(str(value))
    }
    if reply.refusal is not None:
        _clean(secret, reply.refusal)
    return replace(reply, **clean, answer=secret.redacted(reply.answer))


def _clean(secret: Secret, refusal: Refusal) -> None:
    """Take what has the key out of a refusal, which was made for one reply. Its class still says what happened."""
    said = {name: value for name, value in vars(refusal).items() if isinstance(value, str)}
    vars(refusal).update({name: None for name, value in said.items() if secret.occurs_in(value)})
    refusal.detail = refusal.detail or refusal.sentence


def _named(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool | Enum)
