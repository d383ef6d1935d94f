"""How large a figure is: the short form is for ``make figures``, the long one for ``LONG=1 make figures``."""

from __future__ import annotations

import os
from typing import Final

LONG: Final = os.environ.get("LONG") == "1"
#: Of all that is drawn by lot.
SEED: Final = int(os.environ.get("SEED", "13"))


def form(short: int, *, long: int) -> int:
    """Return how much of something this run makes."""
    return long if LONG else short
