"""The function of ``tests/served/patient.py``, in threads that dawdle where something is done for the first time.

Two threads that meet in a function once in ten thousand starts meet there in every second one. With ``STOCK`` in the
environment gunicorn's own worker serves.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import gunicorn

if TYPE_CHECKING:
    from types import CodeType, FrameType

#: In how many of its first calls a function dawdles, and how many these are; they take no longer than a slow disk.
OFTEN, RARELY, FIRST = 0.1, 0.002, 40
MOST_SECONDS: Final = 0.002
#: Seconds for which a thread may keep the others waiting; usually 5 ms.
TURN_SECONDS: Final = 1e-6

_calls: Counter[CodeType] = Counter()
# Bound here, so that the hook itself calls nothing that is hooked.
_random, _sleep = random.random, time.sleep


def _dawdle(frame: FrameType, event: str, _argument: object) -> None:
    if event in {"call", "c_call"}:
        _calls[frame.f_code] += 1
        if _random() < (OFTEN if _calls[frame.f_code] < FIRST else RARELY):
            _sleep(_random() * MOST_SECONDS)


if "STOCK" in os.environ:
    gunicorn.__version__ = "99.1.2"
sys.setswitchinterval(TURN_SECONDS)
threading.setprofile(_dawdle)  # of the threads that are made from now on: all that answer

from tests.served.patient import countersign  # noqa: E402 - with these threads

__all__ = ["countersign"]
