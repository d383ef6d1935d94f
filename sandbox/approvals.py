"""Stripe's approval requests (public preview since 2026-08-26): an action waits for a person, then happens by itself.

Sources: "Set up two-party approvals" (the error, and who decides), "The Approval Request object" and the changelog of
2026-08-26 (states and fields), the SDKs' betas (the words of before). Nothing says which HTTP status the error has, nor
whether it is kept under the idempotency key: tests play each (`sandbox.stripe.Rules`).

    what the person did    status until it is carried out     then        in the words of the earlier preview
    nothing yet            requires_review                    expired     pending
    approve                requires_execution                 succeeded   approved, execution_succeeded
    fail                   requires_execution                 failed      approved, execution_failed
    reject                 rejected
    cancel                 canceled
    expire                 expired
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["DECISIONS", "EXPIRES_SECONDS", "Approval"]

EXPIRES_SECONDS: Final = 7 * 24 * 60 * 60
"""How long a request waits for a person: a week, as in the sample of its page."""

#: By decision: the status while it is not carried out yet, and the one it ends in.
DECISIONS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "approve": ("requires_execution", "succeeded"),
        "fail": ("requires_execution", "failed"),
        "reject": ("rejected", "rejected"),
        "cancel": ("canceled", "canceled"),
        "expire": ("expired", "expired"),
    }
)
_EARLIER: Final = {
    "requires_review": "pending",
    "requires_execution": "approved",
    "succeeded": "execution_succeeded",
    "failed": "execution_failed",
}
_STAMPS: Final = ("approved", "succeeded", "failed", "rejected", "canceled", "expired")
_FAILED: Final = {
    "error_code": "resource_missing",
    "error_message": "It cannot be carried out any more.",
    "error_type": "invalid_request_error",
}


@dataclass(frozen=True, slots=True)
class Approval:
    """A request to approve one action. Times are unix seconds."""

    id: str
    result: str  # the id of what it makes or changes
    created: float
    livemode: bool
    action: str = "invoice.create"
    of: str = "invoice"  # what that is
    carry_out: Callable[[], None] | None = None  # None once Stripe has carried it out, or could not
    decision: str | None = None
    decided: float = 0
    due: float = 0  # when Stripe carries out what was approved

    def decide(self, decision: str, now: float, after: float) -> Approval:
        """Have a person decide; what is approved is carried out `after` seconds.

        Raises ValueError for a decision that does not exist, or that comes too late.
        """
        if decision not in DECISIONS:
            raise ValueError(f"there is no decision {decision!r}, only {', '.join(DECISIONS)}")
        if (status := self.status(now)) != "requires_review":
            raise ValueError(f"{self.id} is {status} already")
        return replace(self, decision=decision, decided=now, due=now + after)

    def status(self, now: float) -> str:
        """The status, in the words of the public preview."""
        if self.decision is None:
            return "requires_review" if now < self.created + EXPIRES_SECONDS else "expired"
        waiting, ended = DECISIONS[self.decision]
        return waiting if now < self.due else ended

    def error(self, *, earlier: bool) -> dict[str, Any]:
        """The `approval_request` of the error that the action gets."""
        shown = self.shown(self.created, earlier=earlier)
        return {name: shown[name] for name in ("id", "object", "action", "status", "dashboard_url", "expires_at")}

    def shown(self, now: float, *, earlier: bool) -> dict[str, Any]:
        """The object, as a look-up shows it; `earlier` in the words of before the public preview."""
        status = self.status(now)
        ended = self.due if self.decision else self.created + EXPIRES_SECONDS
        times = dict.fromkeys(_STAMPS) | ({status: _time(ended)} if status in _STAMPS else {})
        if self.decision in {"approve", "fail"}:
            times["approved"] = _time(self.decided)
        details: dict[str, Any] = {
            "succeeded": {"result": {"id": self.result, "object": self.of}},
            "failed": _FAILED,
            "rejected": {"reason": "Not this month."},
        }
        return {
            "id": self.id,
            "object": "v2.core.approval_request",
            "created": _time(self.created),
            "action": self.action,
            "status": _EARLIER.get(status, status) if earlier else status,
            "reason": None,
            "dashboard_url": f"https://dashboard.stripe.com/approval_requests/{self.id}",
            "requested_by": {"type": "api_key", "api_key": {"id": "mk_sandbox", "name": "Sandbox"}},
            "expires_at": _time(self.created + EXPIRES_SECONDS),
            "livemode": self.livemode,
            "status_details": {status: details[status]} if status in details else None,
            "status_transitions": {f"{name}_at": times[name] for name in _STAMPS},
            "review": None,
        }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
