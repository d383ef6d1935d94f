"""What an upstream of the sandbox counted, by order. Nothing else is believed."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from sandbox.upstream import Upstream

#: What must be true of a call whose caller reads this.
NOTHING_SENT: Final = re.compile(r"Nothing was sent")
NOTHING_CREATED: Final = re.compile(r"(?<!Probably )[Nn]othing was created|created nothing")


def order_of(body: bytes) -> str:
    """Return the order that a call is for."""
    return dict(parse_qsl(body.decode()))["metadata[order_id]"]


def created(upstream: Upstream) -> Counter[str]:
    """Return how many invoices there are of each order."""
    return Counter(order_of(call.body) for call in upstream.calls if call.created)


def sent(upstream: Upstream) -> Counter[str]:
    """Return how many calls came for each order."""
    return Counter(order_of(call.body) for call in upstream.calls)
