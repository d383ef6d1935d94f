"""Who raises the invoices, as data: what each is known to do. ``gateway/upstreams`` knows how to speak to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policies.model import Upstream
from policies.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Its public page describes one endpoint, and no idempotency.
APPGREGATOR: Final = Upstream("appgregator", frozenset({"invoices.create"}), deduplicates=0)
#: docs.stripe.com/api/idempotent_requests: a key may be removed once it is at least 24 hours old.
STRIPE: Final = Upstream("stripe", frozenset(OPERATIONS), deduplicates=24 * 3600)

UPSTREAMS: Final[Mapping[str, Upstream]] = {upstream.id: upstream for upstream in (APPGREGATOR, STRIPE)}
