"""The function as ``main.py`` has it, which waits longer for the sandbox: on a busy machine that may need seconds.

What an attempt to read a secret or Google's certificates may take is tested where that is the point.
"""

from __future__ import annotations

from unittest.mock import patch

patch("gateway.secrets.SecretManager.ATTEMPT", 20.0).start()
patch("gateway.certificates.FETCH_SECONDS", 20.0).start()

import main  # noqa: E402 - with these times

__all__ = ["countersign", "main"]

countersign = main.countersign
