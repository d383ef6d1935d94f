"""Grant -> Reply: sends a granted call. Whatever happens is a reply.

A call is sent once. It is retried only where that cannot raise a second invoice: if a refused key has changed, if the
call is read-only, or if the upstream deduplicates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from gateway.upstreams.transport import LostError, NotSentError
from policies.concealed import HIDDEN
from policies.model import Outcome, Step
from policies.outcomes import unknown, unsent
from policies.upstreams import UPSTREAMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.secrets import Secret, Secrets
    from gateway.upstreams.transport import Transport
    from policies.dialect import Dialect
    from policies.model import Admission, Grant
    from policies.outcomes import Reply

#: Backoff in seconds before the second and the third try: long enough for a transient failure to pass, short enough for
#: a caller whose timeout is 30 s.
PAUSES: Final = (0.3, 1.2)
#: No retry with less time left than this.
LEAST_SECONDS: Final = 1.0

OF_THIS_CALL: Final = "(one of this call alone)"


def preview(grant: Grant) -> dict[str, object]:
    """Return what :meth:`Upstreams.send` would send, with the key masked."""
    outgoing = _dialect(grant).request(grant, Step(grant.ledger_key or ""))
    name, _, scheme = outgoing.key.partition(": ")
    headers = {name: scheme + HIDDEN, **outgoing.headers}
    if grant.ledger_key is None and "Idempotency-Key" in headers:
        headers["Idempotency-Key"] = OF_THIS_CALL
    return {
        "validate_only": True,
        "would_send": {
            "method": outgoing.method,
            "url": outgoing.url,
            "headers": headers,
            "body": (outgoing.body or b"").decode("ascii"),
        },
        "would_answer": list(grant.entitlement.response_fields),
    }


class Upstreams:
    """Sends what was granted. ``clock`` is the deadline's; ``sleep`` waits for some seconds."""

    def __init__(
        self,
        transport: Transport,
        secrets: Secrets,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._transport, self._secrets, self._clock, self._sleep = transport, secrets, clock, sleep

    def send(self, grant: Grant, admission: Admission, secret: Secret, deadline: float) -> Reply:
        """Send a call and return its result, whatever happens. ``deadline`` bounds all tries together."""
        dialect, step = _dialect(grant), Step(grant.ledger_key or admission.owner, admission.doubt)
        reached, attempts, first = False, 0, secret
        pauses = iter(PAUSES if grant.resend_seconds or grant.entitlement.operation.repeatable else ())
        while True:
            reply = self._attempt(dialect, grant, step, secret, deadline)
            attempts, reached = attempts + 1, reached or reply.reached
            if reply.upstream_status in {401, 403} and secret is first:
                # Read a refused key again. If it has changed, send the call once more.
                fresh = self._secrets.renew(grant, secret, deadline)
                if fresh is not None:
                    secret = fresh
                    continue
            if reply.outcome is Outcome.UNKNOWN:
                step = replace(step, doubt=True)
            pause = next(pauses, None) if reply.again else None
            if pause is None or deadline - self._clock() < pause + LEAST_SECONDS:
                break
            self._sleep(pause)
        if secret is not first:
            reply = _without(first, reply)
        if attempts == 1:
            return reply
        # An earlier try that reached the upstream counts, whatever happened to the last one.
        return replace(reply, attempts=attempts, reached=reached)

    def _attempt(self, dialect: Dialect, grant: Grant, step: Step, secret: Secret, deadline: float) -> Reply:
        try:
            received = self._transport.send(dialect.request(grant, step), secret.value, deadline - self._clock())
        except NotSentError as error:
            return unsent(grant, step, str(error))
        except LostError as error:
            return unknown(grant, str(error))
        return _without(secret, dialect.judge(grant, step, received.status, received.headers, received.body))


def _dialect(grant: Grant) -> Dialect:
    return UPSTREAMS[grant.entitlement.connection.upstream]


def _without(secret: Secret, reply: Reply) -> Reply:
    """Return ``reply`` without any occurrence of the key."""
    told = [reply.answer, reply.created, reply.upstream_request]
    redacted = secret.redacted(told)
    if redacted is told:
        return reply
    answer, *named = redacted
    created, request = (text if text in told else None for text in named)
    return replace(reply, answer=answer, created=created, upstream_request=request)
