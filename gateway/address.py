"""The address at which a request reached the function, which does not know its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

#: RFC 9110, 7.2, in the forms that clients use. A proxy in front of Countersign may go by it.
HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{1,5})?")
#: The address that Cloud Functions gives a function takes its name off before the function sees the path.
_STRIPPED: Final = r"(?i)[a-z0-9-]+\.cloudfunctions\.net"


def root(environ: Mapping[str, Any], service: str) -> str:
    """Return the address below which the function lies, without a slash at its end; empty if it is not known.

    ``service`` is the function's name on the cloud. It goes by the Host header, which is the sender's own word. So it
    belongs only into an answer to that same sender which nobody keeps, and where it is no more than a link.
    """
    forwarded = environ.get("HTTP_X_FORWARDED_PROTO", "").partition(",")[0].strip()
    scheme = forwarded if forwarded in {"http", "https"} else environ.get("wsgi.url_scheme", "")
    host = environ.get("HTTP_HOST") or f"{environ.get('SERVER_NAME', '')}:{environ.get('SERVER_PORT', '')}"
    if not scheme or host == ":" or not HOST.fullmatch(host):
        return ""
    name = f"/{service}" if service and re.fullmatch(_STRIPPED, host) else ""
    return f"{scheme}://{host}{name}"


class Docs(NamedTuple):
    """Where callers read what a refusal means."""

    address: str = ""
    """Of the operator's own page; empty for none. It takes precedence."""
    portal: bool = False
    """Whether the function has that page itself."""
    service: str = ""

    def entry(self, reason: str, environ: Mapping[str, Any]) -> str | None:
        """Return the address of the entry of one refusal for whoever sent this request; None if there is none."""
        page = self.address
        if not page and self.portal and (own := root(environ, self.service)):
            page = f"{own}/portal/docs/refusals"
        return f"{page}#{reason}" if page else None
