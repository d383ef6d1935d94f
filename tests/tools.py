"""Programs of the machine that some tests need: where one is not there, its tests are left out and say so."""

from __future__ import annotations

import shutil

import pytest

CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="what is pasted is curl: install it")
NODE = pytest.mark.skipif(shutil.which("node") is None, reason="a recipe is in Node.js: install node 18 or later")
