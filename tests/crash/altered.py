"""The function as ``main.py`` has it, with other times. Loaded by the framework in its place.

``ALTERED`` is JSON: the places of our constants, and their values here.
"""

from __future__ import annotations

import json
import os
from unittest.mock import patch

for _place, _value in json.loads(os.environ["ALTERED"]).items():
    patch(_place, _value).start()

import main  # noqa: E402 - with these times

__all__ = ["countersign", "main"]

countersign = main.countersign
