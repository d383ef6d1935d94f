"""The platform's list prices for the load profile, in US dollars. docs/load.md has their source and date.

Cloud Run, on which functions run, in a region of its tier 1 and billed by request: an instance costs while it works on
at least one call, in steps of a tenth of a second.
"""

from __future__ import annotations

from typing import Final

#: The defaults of deploy/deploy.
CPUS: Final = 1
GIBIBYTES: Final = 0.5
THREADS: Final = 80

CPU_SECOND: Final = 0.000024
GIBIBYTE_SECOND: Final = 0.0000025
MILLION_CALLS: Final = 0.40
ROUNDED_TO: Final = 0.1


def million(seconds: float) -> float:
    """Return the cost of a million calls that each take ``seconds`` of an instance's time."""
    return MILLION_CALLS + 1e6 * seconds * (CPUS * CPU_SECOND + GIBIBYTES * GIBIBYTE_SECOND)
