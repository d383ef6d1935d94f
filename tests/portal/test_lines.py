"""A whole invoice on the page: its lines, what they come to, and one finalized invoice of that sum."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.tools import RUNNERS, Copied
from tests.portal.conftest import AXE, CUSTOMER, KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from playwright.sync_api import Locator, Route

    from tests.portal.conftest import Tab, World

pytestmark = pytest.mark.browser

#: A text, how many, and what each costs: 408.50 USD.
LINES = (("Consulting, October", "3", "120.00"), ("Travel", "", "30.00"), ("Hotel", "1", "18.50"))
CREDIT = ("Goodwill", "", "-20.00")


def text(one: Tab, line: int) -> Locator:
    return one.page.get_by_label(f"Text on the invoice of line {line}", exact=True)


def many(one: Tab, line: int) -> Locator:
    return one.page.get_by_label(f"How many of line {line}", exact=True)


def each(one: Tab, line: int) -> Locator:
    return one.page.get_by_label(re.compile(rf"^Each.* of line {line}$"))


def begin(one: Tab, key: str, currency: str = "USD") -> Tab:
    """Fill in all but the lines."""
    one.enter("whole").fill(key=key)
    one.page.get_by_role("radio", name=currency, exact=True).check()
    return one


def write(one: Tab, lines: Sequence[tuple[str, str, str]] = LINES) -> Tab:
    for number, (says, how_many, costs) in enumerate(lines, 1):
        if number > 1:
            one.page.get_by_role("button", name="Add a line").click()
        text(one, number).fill(says)
        many(one, number).fill(how_many)
        each(one, number).fill(costs)
    return one


def sent(one: Tab) -> dict[str, str]:
    """What would be sent, as the page shows it."""
    shown = one.page.locator("pre.sent").first.text_content() or ""
    pairs = (line.partition("=") for line in shown.partition("\n\n")[2].splitlines())
    return {name: value for name, _, value in pairs}


def sums(one: Tab) -> Locator:
    return one.page.locator(".sums")


def test_whole_invoice_of_three_lines_is_raised_and_its_link_is_shown(tab: Callable[..., Tab], world: World) -> None:
    one = write(begin(tab(), "three-1"))
    assert sums(one).text_content() == "Sum before tax408.50 USD"
    island = one.page.locator(".island").first
    one.head("This would be raised")
    island.get_by_text("One invoice of 408.50 USD before tax, with 3 lines, to").wait_for()
    island.get_by_text("After it, 99,591.50 USD of 100,000.00 USD a day are left.").wait_for()
    one.send()
    panel = one.page.locator(".panel", has=one.page.get_by_role("heading", name="Raise it now?"))
    panel.get_by_text("The invoice of 408.50 USD counts against your limits.").wait_for()
    one.page.get_by_role("button", name="Yes, raise 408.50 USD").click()
    one.head("Raised: 408.50 USD")
    link = one.page.get_by_role("link", name="Open the invoice")
    (made,) = [made for made in world.stripe.made if made["status"] != "draft"]
    assert (made["status"], made["total"]) == ("open", 40850)
    assert [(line["description"], line["amount"]) for line in made["lines"]["data"]] == [
        ("3 x 120.00 Consulting, October", 36000),
        ("Travel", 3000),
        ("1 x 18.50 Hotel", 1850),
    ]
    assert link.get_attribute("href") == made["hosted_invoice_url"]
    assert len(one.sent()) == 1
    one.page.get_by_text("99,591.50 of 100,000.00 USD left").wait_for()


#: A currency, how many, what each costs, that in minor units, and the sum.
EXACT = (
    ("USD", "3", "0.10", "10", "0.30 USD"),
    ("USD", "1", "1.15", "115", "1.15 USD"),
    ("USD", "999999999999999", "123456789012.34", "12345678901234", "123,456,789,012,339,876,543,210,987.66 USD"),
    ("JPY", "3", "1200", "1200", "3,600 JPY"),
    ("KWD", "3", "1250", "1250", "3,750 minor units of KWD"),
)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: f"{case[0]} {case[2]}")
def test_sum_is_exact_in_the_digits_of_the_currency(tab: Callable[..., Tab], case: tuple[str, ...]) -> None:
    currency, how_many, typed, minor, total = case
    one = write(begin(tab(), "exact-1", currency), [("", how_many, typed)])
    assert sums(one).text_content() == f"Sum before tax{total}"
    assert sent(one)["lines[0][unit_amount]"] == minor


@pytest.mark.parametrize(("currency", "typed"), [("USD", "1.005"), ("USD", "1,50"), ("JPY", "12.5"), ("KWD", "1.250")])
def test_amount_with_other_digits_is_neither_rounded_nor_sent(
    tab: Callable[..., Tab], currency: str, typed: str
) -> None:
    one = write(begin(tab(), "digits-1", currency), [("", "", typed)])
    each(one, 1).press("Tab")
    one.head("This would be refused")
    one.page.locator(".line .error", has_text=f"{typed} cannot be read as an amount of {currency}").wait_for()
    assert sums(one).text_content() == "Sum before taxnot known yet"
    assert "lines[0][amount]" not in sent(one)
    assert not [asked for asked in one.sent(trial=True) if "lines" in (asked.post_data or "")]


def test_lines_are_moved_and_removed_by_keyboard_and_the_focus_stays(tab: Callable[..., Tab]) -> None:
    one = begin(tab(), "moved-1")
    page = one.page
    text(one, 1).focus()
    for says in ("first", "second", "third"):
        page.keyboard.type(says)
        each(one, {"first": 1, "second": 2, "third": 3}[says]).focus()
        page.keyboard.type("1.00")
        if says != "third":
            page.keyboard.press("Enter")  # the next line
    each(one, 3).press("Alt+ArrowUp")
    assert page.evaluate("document.activeElement.labels[0].textContent") == "Each, in USD of line 2"
    page.locator("#status", has_text="Line 3 is line 2 now").wait_for(state="attached")
    assert [sent(one)[f"lines[{n}][description]"] for n in range(3)] == ["first", "third", "second"]
    page.get_by_role("button", name="Move line 1 down").press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "↓Move line 2 down"
    assert [sent(one)[f"lines[{n}][description]"] for n in range(3)] == ["third", "first", "second"]
    page.get_by_role("button", name="Move line 1 up").press("Enter")  # it is the first
    page.get_by_role("button", name="Remove line 2").press("Enter")
    assert page.evaluate("document.activeElement.labels[0].textContent") == "Text on the invoice of line 2"
    assert [sent(one)[f"lines[{n}][description]"] for n in range(2)] == ["third", "second"]
    page.get_by_role("button", name="Remove line 2").press("Enter")
    assert page.evaluate("document.activeElement.labels[0].textContent") == "Text on the invoice of line 1"
    one.head("This would be raised")


def test_empty_line_is_left_out_and_a_line_without_a_price_is_asked_for_it(tab: Callable[..., Tab]) -> None:
    one = write(begin(tab(), "empty-1"), [("first", "", "1.00"), ("", "", ""), ("last", "", "2.00")])
    one.head("This would be raised")
    assert {name: value for name, value in sent(one).items() if name.startswith("lines")} == {
        "lines[0][description]": "first",
        "lines[0][amount]": "100",
        "lines[1][description]": "last",
        "lines[1][amount]": "200",
    }
    text(one, 2).fill("middle")
    one.page.get_by_text("Write what line 2 costs.").first.wait_for()
    one.page.locator(".island").get_by_role("link", name="Each, in USD of line 2").click()
    assert one.page.evaluate("document.activeElement.labels[0].textContent") == "Each, in USD of line 2"


@pytest.mark.parametrize("late", [False, True], ids=["as the field is left", "as the verdict comes"])
def test_click_is_not_lost_because_a_fault_shows_above_it(tab: Callable[..., Tab], *, late: bool) -> None:
    one = write(begin(tab(width=320, height=700), "pressed-1"), [("first", "", "1.00"), ("second", "", "2.00")])
    one.head("This would be raised")
    held: list[Route] = []
    if late:  # the fault is of a field that was left, and is known while the button is down
        one.page.route("**/invoices/issue/*validate_only=true*", lambda route: held.append(route))  # noqa: PLW0108 - takes no builtin
    each(one, 2).fill("600.00" if late else "2.005")
    if late:
        text(one, 2).focus()
    else:
        one.page.locator(".island").get_by_text("2.005 cannot be read").wait_for()
    button = one.page.get_by_role("button", name="Add a line")
    button.scroll_into_view_if_needed()
    button.hover()
    while late and not held:
        one.page.wait_for_timeout(50)
    where = button.bounding_box()
    one.page.mouse.down()
    for route in held:
        with one.page.expect_response("**/invoices/issue/*"):
            route.continue_()
    one.page.wait_for_timeout(300)
    assert button.bounding_box() == where
    one.page.mouse.up()
    text(one, 3).wait_for()
    one.page.locator(".lines .error", has_text="at most").first.wait_for()


def test_faults_stand_at_their_line_in_words_of_money(tab: Callable[..., Tab]) -> None:
    one = write(begin(tab(), "faults-1"), [("first", "", "1.00"), ("second", "0", "2.00")])
    island = one.page.locator(".island").first
    island.get_by_role("link", name="How many of line 2").wait_for()
    many(one, 2).fill("1")
    each(one, 2).fill("499.01")
    island.get_by_text("lines come to 500.01 USD. You may raise 500.00 USD at most.").wait_for()
    assert "50000" not in (island.text_content() or "")
    each(one, 2).fill("499.00")
    one.head("This would be raised")
    assert one.page.locator(".lines .error:visible").count() == 0


def test_credit_is_told_before_it_is_sent(tab: Callable[..., Tab]) -> None:
    one = write(begin(tab(), "credit-1"), [*LINES, CREDIT])
    assert sums(one).text_content() == "Credit-20.00 USDSum before tax388.50 USD"
    one.page.locator(".island").get_by_text("It has a credit of 20.00 USD in it.").wait_for()
    one.send()
    one.page.locator(".panel").get_by_text("It has a credit of 20.00 USD in it.").wait_for()
    each(one, 4).fill("-500.00")
    one.head("This would be refused")
    one.page.get_by_text("come to nothing or less").first.wait_for()


def test_rows_of_a_sheet_become_lines_and_too_many_are_refused(tab: Callable[..., Tab]) -> None:
    one = begin(tab(), "pasted-1")

    def paste(rows: str) -> None:
        text(one, 1).evaluate(
            """(input, rows) => { const data = new DataTransfer(); data.setData("text/plain", rows);
            const how = {clipboardData: data, bubbles: true, cancelable: true};
            input.dispatchEvent(new ClipboardEvent("paste", how)); }""",
            rows,
        )

    paste("Consulting\t3\t120.00\r\nTravel\t48.50\r\n")
    assert (many(one, 1).input_value(), each(one, 2).input_value()) == ("3", "48.50")
    assert sums(one).text_content() == "Sum before tax408.50 USD"
    paste("".join(f"line {number}\t1.00\n" for number in range(6)))
    one.page.get_by_text("lines has 6 entries: 5 at most.").first.wait_for()
    assert one.page.get_by_role("button", name="Add a line").count() == 0
    one.page.get_by_role("button", name="Remove line 6").click()
    one.head("This would be raised")


def test_price_that_is_kept_at_stripe_goes_with_how_many(tab: Callable[..., Tab], world: World) -> None:
    world.stripe.prices["price_tab"] = (2500, "usd")
    one = begin(tab(), "price-1")
    one.page.get_by_label("A price kept at Stripe").check()
    many(one, 1).fill("2")
    one.page.get_by_label("Price id of line 1").fill("price_tab")
    one.head("This would be raised")
    one.page.get_by_text("If that is more than 500.00 USD, nothing is raised.").first.wait_for()
    assert sums(one).text_content() == "Sum before taxworked out at Stripe"
    one.page.get_by_role("button", name="Raise this invoice").click()
    one.page.get_by_role("button", name="Yes, raise this invoice").click()
    one.head("Raised: 50.00 USD")


def test_where_the_sums_differ_nothing_can_be_raised(tab: Callable[..., Tab]) -> None:
    one = begin(tab(), "differs-1")

    def other(route: Route) -> None:
        answer = route.fetch()
        told: dict[str, Any] = answer.json()
        if "asks_for" in told:
            told["asks_for"]["total"] += 1
        route.fulfill(response=answer, body=json.dumps(told))

    one.page.route("**/invoices/issue/*validate_only=true*", other)
    write(one, [("", "", "1.00")])
    one.head("The sums differ")
    button = one.page.get_by_role("button", name="Raise this invoice")
    assert button.get_attribute("aria-disabled") == "true"
    button.click(force=True)
    assert one.sent() == []


def test_lines_are_kept_where_the_policy_changes(tab: Callable[..., Tab], world: World) -> None:
    one = write(begin(tab(), "kept-1"), [*LINES, CREDIT])
    one.page.locator(".line").nth(1).get_by_text("More on this line").click()
    one.page.locator(".line").nth(1).get_by_label("sku").fill("T-1")
    one.head("This would be raised")
    before = sent(one)
    assert before["lines[1][metadata][sku]"] == "T-1"

    def change(content: dict[str, Any]) -> None:
        content["callers"]["whole"]["grants"][0]["lines"]["max"] = 4

    try:
        world.rewrite(change)
        one.send()
        one.page.get_by_role("button", name="Show what applies now").click()
        one.page.get_by_text("needed, 1 to 4").wait_for()
        one.head("This would be raised")
        assert sent(one) == before
    finally:
        world.rewrite()


#: Those that one run carries out from one text. Stripe's SDKs have no such call.
COPIED = [name for name in RUNNERS if name != "zapier" and not name.startswith("stripe-")]


@pytest.mark.parametrize("name", [pytest.param(name, id=name, marks=RUNNERS[name][1]) for name in COPIED])
def test_recipe_raises_the_lines_as_it_is_copied(
    tab: Callable[..., Tab], world: World, tmp_path: Path, name: str
) -> None:
    order, before = f"copied-{name}", len(world.stripe.made)
    one = write(begin(tab(permissions=["clipboard-read", "clipboard-write"]), order), [*LINES, CREDIT])
    one.head("This would be raised")
    text = one.copied(name, "Goodwill")
    inputs = {"order_id": order, "currency": "usd", "customer": CUSTOMER, "days_until_due": "30"}
    for _ in range(2):
        went, told = RUNNERS[name][0](Copied(text, inputs, KEYS["whole"], tmp_path))
        assert went, told
    (made,) = world.stripe.made[before:]
    assert (made["status"], made["total"], len(made["lines"]["data"])) == ("open", 38850, 4)


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [(1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light"), (390, 844, "dark"), (320, 700, "light")],
)
def test_lines_are_without_barriers_and_no_wider_than_the_page(
    tab: Callable[..., Tab], width: int, height: int, scheme: str
) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not here. Install Node.js 20 or newer with npm, then: make test-portal")
    one = tab(width=width, height=height, color_scheme=scheme, reduced_motion="reduce")
    page, source = one.page, AXE.read_text("utf-8")
    found: list[tuple[str, Any]] = []

    def look(state: str) -> None:
        page.evaluate(source)  # not a script element, which the page's policy blocks
        result: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found.extend(
            (state, (each["id"], [node["html"][:200] for node in each["nodes"]])) for each in result["violations"]
        )
        wide = page.evaluate("document.scrollingElement.scrollWidth")
        if wide > width:
            found.append((state, wide))
        small = page.evaluate(
            """() => [...document.querySelectorAll(".lines button, .lines summary, .lines input[type=text]")].filter(
            (one) => one.checkVisibility() && one.getBoundingClientRect().height < 44).map((one) => one.outerHTML)"""
        )
        found.extend((state, one) for one in small)

    write(begin(one, f"axe-{width}-{scheme}"), [*LINES, CREDIT])
    for summary in page.locator(".line summary").all():
        summary.click()
    one.head("This would be raised")
    look("four lines")
    each(one, 2).fill("30.005")
    each(one, 1).focus()
    one.head("This would be refused")
    look("a fault")
    each(one, 2).fill("300000.00")
    page.get_by_text("at most.").first.wait_for()
    look("too much")
    page.get_by_label("A price kept at Stripe").check()
    look("prices")
    page.get_by_label("An amount", exact=True).check()
    each(one, 2).fill("30.00")
    one.send()
    look("confirm")
    page.get_by_role("button", name="Yes, raise 388.50 USD").click()
    one.head("Raised")
    look("raised")
    assert found == []
    assert not [said for said in one.said if "Content Security Policy" in said or said.startswith("error")]
