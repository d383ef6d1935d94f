"""What credentials are checked with."""

from __future__ import annotations

import msgspec

from gateway.secrets import Secrets
from gateway.tokens import Google


class Means(msgspec.Struct, frozen=True):
    """Secrets that sign, and what checks Google's tokens."""

    secrets: Secrets
    google: Google
