"""The portal: one page on which a caller sees what its key may do, tries it, and copies it into a tool.

Everything here is public and the same for everybody. What a caller may do comes from ``/-/me``, with its key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from console.portal.files import SITE
from gateway.answering import Response
from policies.refusals import MethodNotAllowed, PathUnknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from console.portal.files import File

#: Every file goes out with these. The page itself holds no code and no style, so no text in it can become either.
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Permissions-Policy": (
        "clipboard-write=(self), clipboard-read=(), camera=(), microphone=(), geolocation=(), payment=(), usb=()"
    ),
}
_ASSET: Final = re.compile("/portal/([0-9a-f]{12})/([a-z]+[.][a-z]+)")
_REFUSED: Final = re.compile(r"q=0(?:\.0*)?")
_YEAR: Final = "public, max-age=31536000, immutable"


def serve(path: str, environ: Mapping[str, Any]) -> Response:
    """Answer a GET or HEAD of the page or of one of its files. ``path`` is decoded by nobody, and has no query.

    Raises ``PathUnknown`` (404) and ``MethodNotAllowed`` (405).
    """
    found = SITE.get()
    page, asset = found.pages.get(path), _ASSET.fullmatch(path)
    file = page or (found.assets.get(asset[2]) if asset else None)
    if file is None:
        raise PathUnknown("There is nothing at this path. The portal is at /portal.")
    if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
        raise MethodNotAllowed("The portal is only read. Use GET.", allowed="GET, HEAD")
    if page:
        return sent(file, environ, "no-cache")  # asked for each time, answered with 304 while it is the same
    # A page that was loaded before a new version gets today's files, which nobody may keep under the old name.
    return sent(file, environ, _YEAR if asset and asset[1] == found.digest else "no-store")


def sent(file: File, environ: Mapping[str, Any], kept: str) -> Response:
    """Return a file, zipped where that is understood. ``kept`` says for how long a browser may keep it."""
    zipped = _takes_gzip(environ.get("HTTP_ACCEPT_ENCODING", ""))
    etag = f'"{file.etag}{"-gzip" if zipped else ""}"'
    headers = {**HEADERS, "Cache-Control": kept, "Vary": "Accept-Encoding", "ETag": etag}
    if etag in {tag.strip().removeprefix("W/") for tag in environ.get("HTTP_IF_NONE_MATCH", "").split(",")}:
        return Response(304, headers, b"")
    body = file.gzipped if zipped else file.plain
    headers |= {"Content-Type": file.media, "Content-Length": str(len(body))}
    if zipped:
        headers["Content-Encoding"] = "gzip"
    return Response(200, headers, body)


def _takes_gzip(accepted: str) -> bool:
    """Read an Accept-Encoding (RFC 9110, 12.5.3)."""
    for item in accepted.lower().split(","):
        coding, _, weight = (part.strip() for part in item.partition(";"))
        if coding == "gzip":
            return _REFUSED.fullmatch(weight) is None
    return False
