"""The doors of our own, beside the upstreams': the portal, the API description, and what a caller may ask about itself.

What they say is put together in ``console``, which the first request that asks for it imports: a start and a plain call
load none of it. This is the one module of ``gateway`` that may.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from gateway.answering import JSON, Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.settings import Gate

#: How a target begins that is ours, or may be: a connection may be named portal-eu.
OURS: Final = ("/portal", "/openapi.json", "/-/")

_OK: Final = json.dumps({"status": "ok"}).encode()
_HEALTHY: Final = Response(
    200, {"Content-Type": JSON, "Content-Length": str(len(_OK)), "Cache-Control": "no-store"}, _OK
)


def ours(_gate: Gate, environ: Mapping[str, Any]) -> Response | None:
    """Answer a request for a door of ours; None if nothing of ours is at its path, which is refused as any other."""
    path = environ["RAW_URI"].partition("?")[0]
    if path == "/-/health" and environ["REQUEST_METHOD"] in {"GET", "HEAD"}:
        return _HEALTHY
    return None
