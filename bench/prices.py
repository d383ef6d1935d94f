"""The platform's list prices that the load profile is made with, in US dollars. docs/load.md says where from and when.

Cloud Run, on which functions run, in a region of its tier 1 and billed by request: an instance costs while it works on
at least one call, in steps of a tenth of a second.
"""

from __future__ import annotations

from typing import Final

#: What deploy/deploy asks for unless it is told otherwise.
CPUS: Final = 1
GIBIBYTES: Final = 0.5
THREADS: Final = 80

CPU_SECOND: Final = 0.000024
GIBIBYTE_SECOND: Final = 0.0000025
MILLION_CALLS: Final = 0.40
ROUNDED_TO: Final = 0.1


def million(seconds: float) -> float:
    """Return what a million calls cost, each of which keeps an instance for so many seconds of its own."""
    return MILLION_CALLS + 1e6 * seconds * (CPUS * CPU_SECOND + GIBIBYTES * GIBIBYTE_SECOND)
