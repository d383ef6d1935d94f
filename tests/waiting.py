"""Waiting for something, and never for a time: a busy machine may stop any process for seconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Nothing takes so long. Whoever waits in vain learns of it then.
PATIENCE: Final = 60.0


def until(done: Callable[[], object], every: float = 0.01) -> None:
    """Return once ``done``, asked every so many seconds, says something true. Fails after :data:`PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(every)
