"""Who cannot see, point or read small: keyboard, screen reader, phone, zoom. axe-core looks for barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.portal.conftest import AXE, CUSTOMER, KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.portal.conftest import Tab

pytestmark = pytest.mark.browser

VIEWS = [(1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light"), (390, 844, "dark")]


def walk(one: Tab, look: Callable[[str], None]) -> None:
    """Go through the states of the page, and look at each."""
    page = one.page
    one.visit()
    look("no key")
    page.get_by_label("Caller key").fill(KEYS["shop"][:-4])
    page.keyboard.press("Enter")
    page.get_by_text("4 characters seem").wait_for()
    for summary in page.locator("summary").all():
        summary.click()
    page.get_by_role("tab").first.wait_for()
    look("wrong key, all opened")
    one.enter()
    look("start")
    one.fill(key=f"walk-{id(one)}", days="90")
    page.get_by_role("heading", name="Try it").click()
    one.head("This would be refused")
    page.get_by_text("more fields you may send").click()
    page.get_by_role("button", name="Add to").click()
    page.locator("#copy").scroll_into_view_if_needed()
    for number in range(page.get_by_role("tab").count()):
        page.get_by_role("tab").nth(number).click()
        look(f"recipe {number}")
    for summary in page.locator("#fields summary").all():
        summary.click()
    look("a fault, all opened")
    page.get_by_role("button", name="Remove").click()
    page.get_by_label("Days until due").fill("30")
    one.send()
    look("confirm")
    page.get_by_role("button", name="Yes, raise this invoice").click()
    one.head("Raised")
    part = page.locator("#became")
    part.get_by_label("Idempotency key").fill(f"order-walk-{id(one)}")
    part.get_by_role("button", name="Look it up").click()
    part.get_by_role("heading", name="Raised").wait_for()
    look("raised")


@pytest.mark.parametrize(("width", "height", "scheme"), VIEWS)
def test_axe_finds_nothing(tab: Callable[..., Tab], width: int, height: int, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not here. Install Node.js 20 or newer with npm, then: make test-portal")
    one = tab(width=width, height=height, color_scheme=scheme)
    source = AXE.read_text("utf-8")
    found: list[tuple[str, str, list[str]]] = []

    def look(state: str) -> None:
        one.page.evaluate(source)  # not a script element, which the page's policy blocks
        result: dict[str, Any] = one.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found.extend(
            (state, each["id"], [node["html"][:200] for node in each["nodes"]]) for each in result["violations"]
        )

    walk(one, look)
    assert found == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_page(tab: Callable[..., Tab], width: int) -> None:
    """320 px is 1280 px at a zoom of 400% (WCAG 1.4.10)."""
    one, wide = tab(width=width, height=700), {}

    def look(state: str) -> None:
        seen = one.page.evaluate("document.scrollingElement.scrollWidth")
        if seen > width:
            wide[state] = seen

    walk(one, look)
    assert wide == {}


def test_text_may_be_spaced_out(tab: Callable[..., Tab]) -> None:
    """WCAG 1.4.12."""
    one, wide = tab(width=320, height=700), {}
    spaced = "* { line-height: 1.5 !important; letter-spacing: .12em !important; word-spacing: .16em !important; }"

    def look(state: str) -> None:
        one.page.evaluate(
            "text => { const sheet = new CSSStyleSheet(); sheet.replaceSync(text);"
            " document.adoptedStyleSheets = [sheet]; }",
            spaced,
        )
        seen = one.page.evaluate("document.scrollingElement.scrollWidth")
        if seen > 320:
            wide[state] = seen

    walk(one, look)
    assert wide == {}


def test_keyboard_alone_leads_from_the_start_to_an_invoice(tab: Callable[..., Tab]) -> None:
    one = tab()
    page = one.visit().page
    assert page.evaluate("document.activeElement.labels?.[0].textContent") == "Caller key"

    def reach(name: str) -> None:
        """Go there by Tab alone, as far as it takes."""
        seen = []
        for _ in range(60):
            page.keyboard.press("Tab")
            here = page.evaluate(
                "(document.activeElement.labels?.[0] ?? document.activeElement).textContent.trim().slice(0, 40)"
            )
            seen.append(here)
            if here.startswith(name):
                return
        raise AssertionError((name, seen))

    page.keyboard.type(KEYS["shop"])
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="You may").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "H1"
    for field, text in (("Customer", CUSTOMER), ("Days until due", "30"), ("Idempotency key", "by-keyboard-1")):
        reach(field)
        page.keyboard.type(text)
    one.head("This would be raised")
    reach("Raise this invoice")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Raise it now?"
    reach("Yes, raise this invoice")
    page.keyboard.press("Enter")
    one.head("Raised")
    assert page.evaluate("document.activeElement.tagName") == "H3"


def test_screen_reader_hears_each_verdict_once(tab: Callable[..., Tab]) -> None:
    one = tab().enter()
    one.page.evaluate("""() => { window.heard = []; new MutationObserver(() => {
        window.heard.push(document.getElementById("status").textContent); }).observe(
        document.getElementById("status"), {childList: true, characterData: true, subtree: true}); }""")
    one.page.get_by_label("Customer needed").press_sequentially(CUSTOMER, delay=30)
    one.fill(key="heard-1", days="90")
    one.head("This would be refused")
    one.page.wait_for_timeout(1500)
    one.page.get_by_label("Days until due").fill("30")
    one.head("This would be raised")
    one.page.get_by_label("Days until due").fill("31")
    one.page.wait_for_timeout(2500)
    assert one.page.evaluate("heard")[-2:] == ["This would be refused. 1 field to fix", "This would be raised"]
    assert len(one.page.evaluate("heard")) <= 3
    assert one.page.locator("[aria-live], [role=status], [role=alert]").count() <= 4


@pytest.mark.parametrize("options", [{"forced_colors": "active"}, {"reduced_motion": "reduce"}])
def test_page_works_in_other_colours_and_without_motion(tab: Callable[..., Tab], options: dict[str, str]) -> None:
    one = tab(**options).enter().fill(key="colours-1")
    one.head("This would be raised")
    assert one.page.locator(".island").first.evaluate("element => getComputedStyle(element).borderLeftWidth") == "6px"
    if "reduced_motion" in options:
        assert one.page.locator("input").first.evaluate("e => getComputedStyle(e).transitionDuration") == "0s"


def test_targets_are_large_enough_for_a_finger(tab: Callable[..., Tab]) -> None:
    one = tab(width=390, height=844).enter().fill(key="targets-1")
    one.page.get_by_text("more fields you may send").click()
    one.page.locator("#copy").scroll_into_view_if_needed()
    one.page.get_by_role("tab").first.wait_for()
    targets = "main button, main summary, main input:not([type=radio], [type=checkbox]), main select, nav a"
    small = one.page.evaluate(
        """targets => [...document.querySelectorAll(targets)].filter((one) => one.checkVisibility())
        .filter((one) => one.getBoundingClientRect().height < 44).map((one) => one.outerHTML.slice(0, 120))""",
        targets,
    )
    assert small == []
