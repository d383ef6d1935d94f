"""The files of the portal's page: read once, on the first request, each with its ETag and a gzipped copy."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from gateway.forks import PerProcess

_PAGE: Final = Path(__file__).parent / "page"
_INDEX: Final = "index.html"
_MEDIA: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class File(msgspec.Struct, frozen=True):
    """One file as it is sent. ``etag`` is that of the plain bytes; the gzipped ones have one of their own."""

    media: str
    plain: bytes
    gzipped: bytes
    etag: str


class Site(msgspec.Struct, frozen=True):
    """All files of one version of the page."""

    digest: str
    """Names this version: every file but the page itself has it in its path."""
    assets: Mapping[str, File]
    """By name."""
    pages: Mapping[str, File]
    """The page by its path: the addresses in it are relative, so that any prefix may stand in front."""


def site() -> Site:
    """Read the files. Raises ``OSError`` if one cannot be read."""
    contents = {file.name: file.read_bytes() for file in sorted(_PAGE.iterdir()) if file.suffix in _MEDIA}
    index = contents.pop(_INDEX)
    # 12 hexadecimal digits: two versions alike by chance are one in 10^14.
    digest = hashlib.sha256(repr((index, [*contents.items()])).encode()).hexdigest()[:12]
    pages = {
        path: index.replace(b"DIGEST", digest.encode()).replace(b"ROOT/", root)
        for path, root in {"/portal": b"./", "/portal/": b"../"}.items()
    }
    return Site(
        digest=digest,
        assets={name: file_of(name, content) for name, content in contents.items()},
        pages={path: file_of(_INDEX, content) for path, content in pages.items()},
    )


#: Read by the first request alone.
SITE: Final = PerProcess(site)


def file_of(name: str, content: bytes) -> File:
    """Return the file of this name, whose end says what it is."""
    return File(
        media=_MEDIA[Path(name).suffix],
        plain=content,
        gzipped=gzip.compress(content, mtime=0),  # the same bytes on every instance
        etag=hashlib.sha256(content).hexdigest()[:32],
    )
