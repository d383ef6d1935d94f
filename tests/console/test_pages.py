"""Pages of the docs, as the function serves them: whole, linked, and nothing in them that runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest

from console.pages import PAGES
from sandbox.__main__ import ROOT
from tests.test_docs import anchors, every_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from werkzeug.test import TestResponse

    from tests.conftest import Function

PATHS = ["/portal/docs", "/portal/docs/", *(f"/portal/docs/{name}" for name in PAGES)]


class Page(HTMLParser):
    """The ids, the links and the elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "src"}:
                self.links.append(value or "")


def get(gate: Function, path: str, method: str = "GET", **headers: str) -> TestResponse:
    return gate.post(path, b"", key=None, media=None, method=method, **headers)


@pytest.mark.parametrize("path", PATHS)
def test_page_needs_neither_a_key_nor_a_script(function: Callable[..., Function], path: str) -> None:
    answer = get(function(), path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    page = Page(answer.text)
    assert not page.tags & {"script", "style", "iframe", "form", "base", "object"}
    assert not {name for name in page.attributes if name.startswith("on") or name == "style"}
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_every_link_of_every_page_leads_somewhere(function: Callable[..., Function]) -> None:
    gate = function()
    pages = {path: Page(get(gate, path).text) for path in PATHS}
    followed = 0
    for path, page in pages.items():
        for link in page.links:
            target = urljoin(f"https://host.example{path}", link)
            if not target.startswith("https://host.example/"):
                assert target.startswith("https://")
                continue
            where, _, anchor = target.removeprefix("https://host.example").partition("#")
            answer = get(gate, where)
            assert answer.status_code == 200, (path, link)
            assert not anchor or anchor in Page(answer.text).ids, (path, link)
            followed += 1
    assert followed > 50


def test_links_hold_behind_a_prefix_that_the_platform_takes_off(function: Callable[..., Function]) -> None:
    for path in PATHS:
        for link in Page(get(function(), path).text).links:
            assert not link.startswith("/")
            assert link.startswith("https://") or urljoin(f"https://host/NAME{path}", link).startswith(
                ("https://host/NAME/portal", "https://host/NAME/openapi.json")
            )


def test_every_refusal_has_its_anchor(function: Callable[..., Function]) -> None:
    ids = Page(get(function(), "/portal/docs/refusals").text).ids
    reasons = {refusal.reason for refusal in every_refusal() if "reason" in vars(refusal)}
    assert reasons <= set(ids)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", PAGES)
def test_anchors_are_those_that_github_has(function: Callable[..., Function], name: str) -> None:
    ids = Page(get(function(), f"/portal/docs/{name}").text).ids
    assert [one for one in ids if one != "main"] == anchors(ROOT / "docs" / f"{name}.md")


def test_markup_in_the_docs_is_shown_and_not_obeyed(function: Callable[..., Function]) -> None:
    text = get(function(), "/portal/docs/clients").text
    source = (ROOT / "docs" / "clients.md").read_text("utf-8")
    written = set(re.findall(r"<[a-z]+>", re.sub(r"^```.*?^```", "", source, flags=re.MULTILINE | re.DOTALL)))
    for tag in written - {"<code>"}:
        assert tag not in text or tag in {"<p>", "<ul>", "<li>"}


def test_page_is_not_sent_again_while_it_is_the_same(function: Callable[..., Function]) -> None:
    gate = function()
    first = get(gate, "/portal/docs/refusals")
    again = get(gate, "/portal/docs/refusals", If_None_Match=first.headers["ETag"])
    assert (again.status_code, again.data) == (304, b"")


def test_other_paths_and_methods_are_refused(function: Callable[..., Function]) -> None:
    gate = function()
    for path in (
        "/portal/docs/stores",
        "/portal/docs/../../main.py",
        "/portal/docs/refusals/",
        "/portal/docs/%72efusals",
    ):
        assert get(gate, path).status_code == 404, path
    answer = get(gate, "/portal/docs/refusals", "POST")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert get(function(PORTAL="off"), "/portal/docs/refusals").status_code == 404
