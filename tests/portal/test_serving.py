"""The page and its files as they are sent: addresses, caches, compression, and that nothing else is there."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from console.portal import HEADERS
from console.portal.files import site
from sandbox.__main__ import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from werkzeug.test import TestResponse

    from tests.conftest import Function

PAGE = ROOT / "console" / "portal" / "page"
BUDGET = 150_000


@pytest.fixture
def get(function: Callable[..., Function]) -> Callable[..., TestResponse]:
    app = function()

    def ask(path: str, method: str = "GET", **headers: str) -> TestResponse:
        return app.post(path, b"", key=None, media=None, method=method, **headers)

    return ask


def addresses(html: str) -> list[str]:
    return re.findall(r'(?:href|src)="([^"#]+)"', html)


@pytest.mark.parametrize(("path", "root"), [("/portal", "./"), ("/portal/", "../")])
def test_page_names_its_files_relative_to_itself(get: Callable[..., TestResponse], path: str, root: str) -> None:
    html = get(path).text
    digest = site().digest
    assert f"{root}portal/{digest}/app.js" in addresses(html)
    assert all(address.startswith(root) for address in addresses(html))
    assert "DIGEST" not in html
    assert "ROOT" not in html


def test_page_preloads_every_module_and_nothing_else_is_in_the_folder(get: Callable[..., TestResponse]) -> None:
    named = {address.rpartition("/")[2] for address in addresses(get("/portal").text) if "/docs/" not in address}
    assert named - {"openapi.json"} == {file.name for file in PAGE.iterdir()} - {"index.html", "docs.css"}


@pytest.mark.parametrize("name", sorted(file.name for file in PAGE.iterdir() if file.name != "index.html"))
def test_file_is_sent_whole_with_its_type_and_kept_for_a_year(get: Callable[..., TestResponse], name: str) -> None:
    answer = get(f"/portal/{site().digest}/{name}")
    assert answer.status_code == 200
    assert answer.data == (PAGE / name).read_bytes()
    assert answer.headers["Content-Length"] == str(len(answer.data))
    media = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[name.rpartition(".")[2]]
    assert answer.mimetype == media
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS


def test_page_is_asked_for_each_time_and_answered_with_304_while_it_is_the_same(
    get: Callable[..., TestResponse],
) -> None:
    first = get("/portal")
    assert (first.status_code, first.headers["Cache-Control"]) == (200, "no-cache")
    tag = first.headers["ETag"]
    for sent in (tag, f'"other", {tag}', f"W/{tag}"):
        again = get("/portal", If_None_Match=sent)
        assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", tag)
    assert get("/portal", If_None_Match='"other"').status_code == 200


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("GZIP", True), ("gzip;q=0", False), ("gzip; q=0.00", False),
     ("identity", False), ("", False), ("xgzip", False)],
)  # fmt: skip
def test_file_is_compressed_for_whoever_takes_it(get: Callable[..., TestResponse], accepted: str, zipped: bool) -> None:  # noqa: FBT001
    plain = get(f"/portal/{site().digest}/app.js")
    answer = get(f"/portal/{site().digest}/app.js", Accept_Encoding=accepted)
    assert answer.headers["Vary"] == "Accept-Encoding"
    if zipped:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(answer.data) == plain.data
        assert len(answer.data) < len(plain.data) / 2
        assert answer.headers["ETag"] != plain.headers["ETag"]
    else:
        assert answer.data == plain.data


def test_page_of_an_old_version_gets_the_files_of_today_and_keeps_none(get: Callable[..., TestResponse]) -> None:
    answer = get("/portal/000000000000/app.js")
    assert answer.data == (PAGE / "app.js").read_bytes()
    assert answer.headers["Cache-Control"] == "no-store"


def test_head_has_the_headers_alone_and_other_methods_are_refused(get: Callable[..., TestResponse]) -> None:
    head = get("/portal", "HEAD")
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Length"] == str(len(get("/portal").data))
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = get("/portal", method)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    ["/portal/x", "/portal/../main.py", "/portal/x/../../keys.py", "/portal/%2e%2e/main.py", "//portal", "/%70ortal",
     "/portal//", "/portal/index.html", "/Portal", "/portal/000000000000/index.html", "/portal/000000000000/",
     "/portal/000000000000/app.js/", "/portal/00000000000/app.js", "/portal/000000000000/app.js%00",
     "/portal/000000000000/../app.js", f"/portal/{'x' * 2048}"],
)  # fmt: skip
def test_nothing_else_is_there(get: Callable[..., TestResponse], path: str) -> None:
    answer = get(path)
    assert answer.status_code == 404
    assert answer.json is not None
    assert answer.json["reason"] == "path-unknown"


def test_a_query_changes_nothing(get: Callable[..., TestResponse]) -> None:
    assert get("/portal?name=x&key=csk_x").data == get("/portal").data


def test_all_of_it_is_under_the_budget() -> None:
    found = site()
    largest = max(len(page.plain) for page in found.pages.values())
    assert largest + sum(len(file.plain) for file in found.assets.values()) < BUDGET


def test_no_code_and_no_style_stands_in_the_page() -> None:
    html = (PAGE / "index.html").read_text("utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", html)
    for module in PAGE.glob("*.js"):
        code = module.read_text("utf-8")
        assert not re.search(r"(inner|outer|Adjacent)HTML|\beval\(|new Function|document\.write", code), module.name
        assert not re.search(r"localStorage|sessionStorage|indexedDB|document\.cookie", code), module.name
        assert "fetch(" not in code or module.name == "api.js"


def test_a_start_loads_none_of_it() -> None:
    """Whoever never opens the page pays nothing for it."""
    said = "import sys, gateway.doors; print([name for name in sys.modules if name.startswith('console')])"
    found = subprocess.run([sys.executable, "-c", said], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
