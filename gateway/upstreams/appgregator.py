"""Appgregator's endpoint, as its public page describes it: query, one key header, a form.

No idempotency is documented there, so a call is sent once; only a plain refusal of the key lets it be tried again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from gateway.upstreams.transport import LostError, NotSentError
from policies.model import Outcome, Reply
from policies.outcomes import judge
from policies.refusals import OutcomeUnknown, OutcomeUnknownInTime, UpstreamUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.secrets import Secret, Secrets
    from gateway.upstreams.transport import Transport
    from policies.model import Connection, Grant

MEDIA_TYPE = "application/x-www-form-urlencoded"


@lru_cache(1024)  # the same few, as long as the policy does not change
def address(connection: Connection) -> str:
    """Return where calls of ``connection`` go. Every part of it comes from the policy."""
    query = urlencode({"name": connection.name, "connection_name": connection.connection_name})
    return f"{connection.origin}/stripe/invoices/?{query}"


def preview(grant: Grant) -> dict[str, object]:
    """Return what :meth:`Appgregator.send` would send, with the key masked."""
    return {
        "validate_only": True,
        "would_send": {
            "method": "POST",
            "url": address(grant.entitlement.connection),
            "headers": {"x-api-key": "(hidden)", "Content-Type": MEDIA_TYPE},
            "body": grant.form.decode("ascii"),
        },
        "would_answer": list(grant.entitlement.response_fields),
    }


class Appgregator:
    """Sends what was granted, once."""

    def __init__(self, transport: Transport, secrets: Secrets, clock: Callable[[], float]) -> None:
        self._transport, self._secrets, self._clock = transport, secrets, clock

    def send(self, grant: Grant, secret: Secret, deadline: float) -> Reply:
        """Send, and say what came of it; whatever happens is a reply. ``deadline`` is on the clock given at the start.

        A key that is refused is fetched afresh, and if it has changed the call is sent once more.
        """
        reply = self._attempt(grant, secret, deadline)
        if reply.upstream_status not in {401, 403}:
            return reply
        fresh = self._secrets.renew(secret, deadline)
        if fresh is None:
            return reply
        second = self._attempt(grant, fresh, deadline)
        # The first attempt reached the upstream, so the call counts, whatever becomes of the second.
        answer = None if second.answer is None else secret.redacted(second.answer)
        return replace(second, answer=answer, attempts=2, reached=True)

    def _attempt(self, grant: Grant, secret: Secret, deadline: float) -> Reply:
        headers = [
            f"x-api-key: {secret.value}",
            f"Content-Type: {MEDIA_TYPE}",
            "Accept: application/json",
            "Expect:",  # no round trip to ask whether the body is welcome
        ]
        try:
            received = self._transport.post(
                address(grant.entitlement.connection), headers, grant.form, deadline - self._clock()
            )
        except NotSentError as error:
            return Reply(Outcome.RELEASED, refusal=UpstreamUnreachable(retry_after=5, note=str(error)), reached=False)
        except LostError as error:
            refusal = OutcomeUnknownInTime if error.late else OutcomeUnknown
            return Reply(Outcome.UNKNOWN, refusal=refusal(note=str(error)))
        reply = judge(grant, received.status, received.body, received.retry_after)
        return replace(
            reply,
            answer=None if reply.answer is None else secret.redacted(reply.answer),
            created=None if reply.created is None or secret.occurs_in(reply.created) else reply.created,
        )
