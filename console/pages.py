"""The pages of ``docs/`` that callers need, as HTML under ``/portal/docs``: readable without a key and without JavaScript.

They are rendered from the Markdown files themselves, once, on the first request. markdown-it escapes whatever is markup
in them, and the pages may run nothing and load nothing but the portal's style.
"""

from __future__ import annotations

import html
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from markdown_it import MarkdownIt

from console.portal import HEADERS, sent
from console.portal.files import File, file_of, site
from policies.refusals import MethodNotAllowed, PathUnknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.answering import Response

_DOCS: Final = Path(__file__).parent.parent / "docs"
#: The pages, by their names in the address: what a caller reads. What is the operator's alone stays in the repository.
PAGES: Final = ("refusals", "clients", "callers", "policy")
_ROOT: Final = "/portal/docs"
#: No script at all, unlike the portal's own page.
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
