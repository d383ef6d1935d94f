"""Finds the modules of a package, so that a new operation or upstream is a new file and no table entry."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType


def of(package: str, path: Iterable[str]) -> Iterator[ModuleType]:
    """Import and yield the modules of ``package``, which lies at ``path``, in the order of their names."""
    for found in pkgutil.iter_modules(path):
        yield importlib.import_module(f"{package}.{found.name}")
