"""Grant -> Reply: what was granted goes out, and whatever happens is a reply.

A call is sent once. It is tried again only where that cannot raise a second invoice: when no byte of it went out, when
a refused key has changed meanwhile, when it is only to look, and at an upstream that deduplicates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from gateway.upstreams import appgregator, stripe
from gateway.upstreams.transport import LostError, NotSentError
from policies.model import Outcome, Reply
from policies.outcomes import in_doubt, judge, unknown
from policies.refusals import UpstreamUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.secrets import Secret, Secrets
    from gateway.upstreams.transport import Received, Transport
    from policies.model import Admission, Grant

REQUESTS: Final = {"appgregator": appgregator.request, "stripe": stripe.request}

#: Seconds before the second and the third try: what is over in a moment is over by then, and a caller who has 30 s
#: still gets the answer.
PAUSES: Final = (0.3, 1.2)
#: The least time that is worth a try.
LEAST_SECONDS: Final = 1.0

HIDDEN: Final = "(hidden)"
OF_THIS_CALL: Final = "(one of this call alone)"


def preview(grant: Grant) -> dict[str, object]:
    """Return what :meth:`Upstreams.send` would send, with the key masked."""
    request = REQUESTS[grant.entitlement.connection.upstream.id](grant, HIDDEN, "")
    headers = dict(header.split(": ", 1) for header in request.headers)
    if grant.ledger_key is None and "Idempotency-Key" in headers:
        headers["Idempotency-Key"] = OF_THIS_CALL
    return {
        "validate_only": True,
        "would_send": {
            "method": request.method,
            "url": request.url,
            "headers": headers,
            "body": request.body.decode("ascii"),
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
        """Send, and say what came of it; whatever happens is a reply. ``deadline`` bounds all tries together."""
        again = bool(grant.resend_seconds) or not grant.entitlement.operation.creates
        doubt, reached, attempts, first = admission.doubt, False, 0, secret
        pauses = iter(PAUSES if again else ())
        while True:
            reply, worth_another = self._attempt(grant, admission, secret, deadline)
            attempts, reached = attempts + 1, reached or reply.reached
            if doubt:
                reply = in_doubt(grant, reply)
            if reply.upstream_status in {401, 403} and secret is first:
                # A refused key is fetched afresh, and if it has changed the call is sent once more.
                fresh = self._secrets.renew(secret, deadline)
                if fresh is not None:
                    secret = fresh
                    continue
            doubt = doubt or reply.outcome is Outcome.UNKNOWN
            pause = next(pauses, None) if worth_another else None
            if pause is None or deadline - self._clock() < pause + LEAST_SECONDS:
                break
            self._sleep(pause)
        if secret is not first:
            reply = _without(first, reply)
        if attempts == 1:
            return reply
        # Whatever became of the last try, an earlier one that reached the upstream counts.
        return replace(reply, attempts=attempts, reached=reached)

    def _attempt(self, grant: Grant, admission: Admission, secret: Secret, deadline: float) -> tuple[Reply, bool]:
        """Return what came of one try, and whether another would be of use where it does no harm."""
        request = REQUESTS[grant.entitlement.connection.upstream.id](grant, secret.value, admission.owner)
        try:
            received = self._transport.send(request, deadline - self._clock())
        except NotSentError as error:
            refusal = UpstreamUnreachable(retry_after=5, note=str(error))
            return Reply(Outcome.RELEASED, refusal=refusal, reached=False), True
        except LostError as error:
            return unknown(grant, str(error)), True
        reply = judge(grant, received.status, received.body, received.retry_after)
        if received.request_id is not None:
            reply = replace(reply, upstream_request=received.request_id)
        reply = _without(secret, reply)
        return reply, reply.outcome is not Outcome.SUCCEEDED and _worth_another(received)


def _without(secret: Secret, reply: Reply) -> Reply:
    """Return ``reply`` with the key nowhere in it."""
    told = [reply.answer, reply.created, reply.upstream_request]
    redacted = secret.redacted(told)
    if redacted is told:
        return reply
    answer, *named = redacted
    created, request = (text if text in told else None for text in named)
    return replace(reply, answer=answer, created=created, upstream_request=request)


def _worth_another(received: Received) -> bool:
    """Whether the upstream would take the same call again: by its own word or, without one, by the status.

    Stripe's advanced error handling: obey ``Stripe-Should-Retry``, else repeat a conflict or a failure of its own.
    """
    if received.should_retry is not None:
        return received.should_retry
    return received.status == 409 or received.status >= 500
