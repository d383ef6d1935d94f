"""What can be said of a refused credential without saying any of it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from gateway.authorization import basic, bearer, looks_like_token
from gateway.credentials.google import SERVERLESS
from gateway.credentials.keys import proof
from policies.callerkeys import PREFIX, whole
from policies.refusals import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from policies.model import Call, PolicySet, Proof

#: Whose a credential was: a caller's id, and the credential's name in the record.
Whose = tuple[str, str]
#: So many credentials of earlier documents are remembered, the latest: far more than anybody revokes.
MOST_RETIRED: Final = 10_000
#: How keys begin, ours and those that are pasted by mistake. Nothing else of what was sent is said.
PREFIXES: Final = (PREFIX, "sk_live_", "sk_test_", "rk_live_", "rk_test_", "pk_live_", "pk_test_", "whsec_", "eyJ")


def retired(before: Mapping[Proof, Whose], old: PolicySet, new: PolicySet) -> dict[Proof, Whose]:
    """Return whose the credentials were that this instance's earlier documents had, and the one in force has not."""
    gone = islice(old.callers.keys() - new.callers.keys(), MOST_RETIRED)
    latest = {proof: (old.callers[proof].id, old.callers[proof].credential) for proof in gone}
    earlier = {proof: whose for proof, whose in before.items() if proof not in new.callers and proof not in latest}
    return dict(list({**earlier, **latest}.items())[-MOST_RETIRED:])


def presented(
    call: Call, policies: PolicySet, earlier: Mapping[Proof, Whose], digest: Callable[[str], str]
) -> dict[str, Any]:
    """Return what goes on record of the credential of a refused call.

    ``kind``, and of a key the ``prefix``, whether its ``checksum`` holds, a keyed ``digest`` by which two attempts with
    one key are seen to be that, and whether a policy of this instance has or had it: ``known`` is ``now``, ``earlier``
    or ``never``, with ``caller`` and ``credential`` if it did.
    """
    brought = call.credentials.keys()
    if not brought:
        return {"kind": "none"}
    header = next((name for name in ("x-api-key", "Authorization", SERVERLESS) if name in brought), None)
    if header is None:
        return {"kind": "webhook"}
    key = _key(header, call.credentials[header].reveal())
    if not key:
        return {"kind": "unreadable", "header": header}
    said: dict[str, Any] = {"kind": "key", "header": header, "digest": digest(key)}
    prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
    if prefix is not None:
        said["prefix"] = prefix
    if header != "x-api-key" and looks_like_token(key):
        return {**said, "kind": "token"}
    said["checksum"] = whole(key)
    named = proof(key)
    if (caller := policies.callers.get(named)) is not None:
        return {**said, "known": "now", "caller": caller.id, "credential": caller.credential}
    whose = earlier.get(named)
    if whose is None:
        return {**said, "known": "never"}
    return {**said, "known": "earlier", "caller": whose[0], "credential": whose[1]}


def _key(header: str, text: str) -> str | None:
    if header == "x-api-key":
        return text
    try:
        return bearer(text) or basic(text)
    except Unauthenticated:
        return None
