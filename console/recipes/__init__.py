"""Recipes: one call, written down for each tool that people make it with, so that it works as copied.

``filling.fill`` is the only place where a value meets a recipe: for the page, the docs and the operator's command.
"""

from __future__ import annotations

from console.recipes.filling import fill

__all__ = ["fill"]
