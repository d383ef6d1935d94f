"""The function as ``main.py`` has it, but that it keeps quiet connections for longer. Loaded by the framework.

A client of a busy machine may need longer than two seconds from one call to the next.
"""

from __future__ import annotations

import gunicorn.config

gunicorn.config.Keepalive.default = 60

from main import countersign  # noqa: E402 - with this time

__all__ = ["countersign"]
