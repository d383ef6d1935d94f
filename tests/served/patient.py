"""The function as ``main.py`` has it, with the time that a busy machine needs. Loaded by the framework.

Such a machine is no measure of speed: not of Secret Manager's, Google's or Redis's, nor of a client's from one call to
the next.
"""

from __future__ import annotations

import os

import gunicorn.config

from gateway import certificates
from gateway.secrets import SecretManager

gunicorn.config.Keepalive.default = 60
setattr(certificates, "FETCH_SECONDS", 30.0)  # noqa: B010 - mypy takes no assignment to a constant
setattr(SecretManager, "ATTEMPT", 30.0)  # noqa: B010 - the same
if os.environ.get("STORE", "").startswith(("redis", "valkey")):
    from gateway.stores.connecting import Client

    Client.STEP = 10.0

from main import countersign  # noqa: E402 - with these times

__all__ = ["countersign"]
