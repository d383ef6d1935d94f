"""The pages of ``docs/`` that callers need, as HTML under ``/portal/docs``, without a key and without JavaScript.

They are rendered from the Markdown files themselves, once, on the first request. Whatever is HTML in them is escaped,
and what the pages may load is what the portal may.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from markdown_it import MarkdownIt

from console.portal import sent
from console.portal.files import SITE, File, file_of
from gateway.forks import PerProcess
from policies.refusals import MethodNotAllowed, PathUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from markdown_it.token import Token

    from gateway.answering import Response

_DOCS: Final = Path(__file__).parent.parent / "docs"
#: The pages, by their names in the address: what a caller reads. What is the operator's alone stays in the repository.
PAGES: Final = ("refusals", "clients", "callers", "policy")
_ROOT: Final = "/portal/docs"


def serve(path: str, environ: Mapping[str, Any]) -> Response:
    """Answer a GET or HEAD of a page. ``path`` is decoded by nobody, and has no query.

    Raises ``PathUnknown`` (404) and ``MethodNotAllowed`` (405).
    """
    page = _PAGES.get().get(path)
    if page is None:
        raise PathUnknown("There is no such page. All of them are listed at /portal/docs.")
    if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
        raise MethodNotAllowed("A page is only read. Use GET.", allowed="GET, HEAD")
    return sent(page, environ, "no-cache")


def _pages() -> Mapping[str, File]:
    """Render all pages, by their paths. Raises ``OSError`` if a file cannot be read."""
    titles = {name: _DOCS.joinpath(f"{name}.md").read_text("utf-8") for name in PAGES}
    rendered = {name: _rendered(text) for name, text in titles.items()}
    listed = "".join(
        f'<li><a href="{{root}}portal/docs/{name}">{title}</a></li>' for name, (title, _) in rendered.items()
    )
    index = (
        f"<h1>Countersign</h1><p>To read without a key:</p><ul>{listed}"
        '<li><a href="{root}openapi.json">The API description (OpenAPI), as all have it</a></li>'
        "</ul>"
    )
    pages = {f"{_ROOT}/{name}": _file(title, body, "../../") for name, (title, body) in rendered.items()}
    for path, root in ((_ROOT, "../"), (f"{_ROOT}/", "../../")):
        pages[path] = _file("Pages", index.replace("{root}", root), root)
    return pages


#: Rendered by the first request alone: eighty strangers who ask for one at once would have it done eighty times.
_PAGES: Final = PerProcess(_pages)


def _file(title: str, body: str, root: str) -> File:
    """Return a whole page. ``root`` leads from it to where the function lies, whatever prefix is before that."""
    assets = f"{root}portal/{SITE.get().digest}"
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title} &ndash; Countersign</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" type="image/svg+xml" href="{assets}/icon.svg">
<link rel="stylesheet" href="{assets}/portal.css">
<link rel="stylesheet" href="{assets}/docs.css">
</head>
<body>
<a class="skip" href="#main">Skip to the text</a>
<header class="top"><div class="bar"><p class="brand"><a href="{root}portal">Countersign</a></p>
<nav aria-label="Pages"><a href="{root}portal/docs">All pages</a></nav></div></header>
<main id="main" tabindex="-1" class="docs">
{body}</main>
</body>
</html>
"""
    return file_of("page.html", page.encode())


# ---------------------------------------------------------------- Markdown


def _rendered(text: str) -> tuple[str, str]:
    """Return the title and the HTML of a Markdown file, its title included."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    _anchor(tokens)
    for token in tokens:
        _lead(token.children or ())
    for name, rule in _RULES.items():
        markdown.add_render_rule(name, rule)
    title = next(tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open")
    return html.escape(title), markdown.renderer.render(tokens, markdown.options, {})


_SCROLLS: Final = 'tabindex="0" role="region" aria-label="{}"'


def _pre(_: object, tokens: Sequence[Token], place: int, *_more: object) -> str:
    return f"<pre {_SCROLLS.format('Example')}><code>{html.escape(tokens[place].content)}</code></pre>\n"


def _alt(_: object, tokens: Sequence[Token], place: int, *_more: object) -> str:
    return html.escape(tokens[place].content)


#: Tables and code scroll by themselves where they are too wide, also by keyboard. Pictures stay in the repository.
_RULES: Final[Mapping[str, Callable[..., str]]] = {
    "table_open": lambda *_: f'<div class="scroll" {_SCROLLS.format("Table")}><table>\n',
    "table_close": lambda *_: "</table></div>\n",
    "fence": _pre,
    "image": _alt,
}


def _anchor(tokens: Sequence[Token]) -> None:
    """Give each heading the anchor that GitHub gives it, so that one address fits both."""
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            text = "".join(part.content for part in tokens[place + 1].children or ())
            token.attrSet("id", re.sub(r"[^a-z0-9_ -]", "", text.lower()).replace(" ", "-"))


def _lead(parts: Sequence[Token]) -> None:
    """Lead links between the files to the pages. What is no page here is left as text."""
    dropped = 0
    for part in parts:
        if part.type == "link_open":
            target = str(part.attrs["href"])
            file, mark, anchor = target.partition("#")
            if target.startswith("https://"):
                part.attrSet("rel", "noreferrer")
            elif not file or file.removesuffix(".md") in PAGES:
                part.attrSet("href", f"{file.removesuffix('.md')}{mark}{anchor}")
            else:
                part.hidden, dropped = True, 1
                part.type, part.tag = "text", ""
        elif part.type == "link_close" and dropped:
            part.type, part.tag, dropped = "text", "", 0
