"""``countersign recipe``: a call to paste, made from a policy document. It is decided in full and not sent."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from console.describe import describe, entitlements, grant_id
from console.examples import examples
from console.recipes import curl
from console.recipes.filling import Asked, filled, holes_of
from console.recipes.model import KEY_NAME
from policies import parameters
from policies.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from policies.model import Entitlement, PolicySet


class NoRecipeError(Exception):
    """There is no call to show. The text says why, and what to do."""


def recipe(policy_set: PolicySet, file: Path, url: str, *, caller: str | None, token: str | None) -> str:
    """Write a call that the policy grants to ``caller``, or to the first caller that has a key.

    ``url`` is the function's address. ``token`` is a command that prints an identity token, for a function behind
    Google's IAM. Raises :class:`NoRecipeError`.
    """
    keyed = {one.id: one for proof, one in policy_set.callers.items() if proof.kind == "key" and not one.paused}
    if not keyed:
        raise NoRecipeError(f"No active caller in {file} has a key. docs/callers.md has calls with other credentials.")
    if caller is not None and caller not in keyed:
        raise NoRecipeError(f"{caller} has no key in {file}, or is paused. Name one of: {', '.join(sorted(keyed))}.")
    chosen = keyed[caller or next(iter(keyed))]
    calls = [(one, examples(one)) for one in entitlements(chosen)]
    entitlement, given = next((call for call in calls if _approved(*call)), calls[0])
    asked = Asked(grant_id(entitlement), given, f"{entitlement.idempotency.prefix}first-try", validate_only=True)
    me = describe(policy_set, chosen, now=0, standings=None, grant=asked.grant)
    holes = replace(holes_of(asked, root=url, described=me), token=token)
    return (
        f"Try a call of {chosen.id}: it is decided in full, and nothing is sent. You need a key of {chosen.id}. It is "
        "shown once,\nwhen it is made, with what to write into the policy:\n"
        f"  ./countersign key new {chosen.id} --policy {shlex.quote(str(file))}\n"
        "Run this line alone, then paste the key and press Enter:\n"
        f"  read -rs {KEY_NAME}\n"
        f"Then paste this:\n{filled(curl.RECIPE, holes)['text'].rstrip()}"
    )


def _approved(entitlement: Entitlement, given: Mapping[str, str]) -> bool:
    try:
        parameters.approve(entitlement, given)
    except Refusal:
        return False
    return True
