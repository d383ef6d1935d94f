"""What credentials are checked with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.secrets import Secrets
    from gateway.tokens import Google


@dataclass(frozen=True, slots=True)
class Means:
    """Secrets that sign, and what checks Google's tokens."""

    secrets: Secrets
    google: Google
