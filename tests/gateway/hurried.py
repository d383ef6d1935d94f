"""The function as ``main.py`` has it, with a policy document that is looked at a hundred times as often."""

from __future__ import annotations

from unittest.mock import patch

from gateway import reloading

for name in ("CHECK_SECONDS", "MUST_SECONDS"):
    patch.object(reloading, name, getattr(reloading, name) / 100).start()

from main import countersign  # noqa: E402 - its gate is built with what stands above

__all__ = ["countersign"]
