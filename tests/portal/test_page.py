"""The page as a person uses it: from the link and a key to a working call, and what it says when that fails."""

from __future__ import annotations

import base64
import contextlib
import re
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from policies.callerkeys import checked
from tests.clients.tools import RUNNERS, Copied
from tests.portal.conftest import CUSTOMER, KEYS, key_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Route

    from tests.portal.conftest import Tab, World

pytestmark = pytest.mark.browser

SHOP = KEYS["shop"]
BUDGET = 150_000


def ended() -> contextlib.AbstractContextManager[None]:
    """Pass over a request that the page has ended by itself: nobody waits for its answer."""
    return contextlib.suppress(pytest.importorskip("playwright.sync_api").Error)


# ---------------------------------------------------------------- the way in


@pytest.mark.parametrize(
    ("pasted", "said"),
    [
        (SHOP, ""),
        (f"  {SHOP}\n", ""),
        (f"Bearer {SHOP}", "We took out “Bearer”."),
        (f'"Bearer {SHOP}"', "We took out the quotes around it and “Bearer”."),
        (f"Bearer bearer {SHOP}", "We took out “Bearer”."),
        (f"x-api-key: {SHOP}", "We took out “x-api-key”."),
        (f"Authorization: Bearer '{SHOP}'", "We took out the quotes around it, “Authorization” and “Bearer”."),
        (f"\u201c{SHOP}\u201d", "We took out the quotes around it."),
        (f"{SHOP[:20]}\u200b{SHOP[20:]}", "We took out characters that nobody sees."),
        (f"{SHOP[:20]} {SHOP[20:]}", ""),
        ("Basic " + base64.b64encode(f":{SHOP}".encode()).decode(), "We took out “Basic”."),
    ],
)
def test_key_is_taken_however_it_was_wrapped(tab: Callable[..., Tab], pasted: str, said: str) -> None:
    one = tab().visit()
    one.page.route("**/-/me", lambda route: route.abort())
    one.page.get_by_label("Caller key").fill(pasted)
    with one.page.expect_request("**/-/me") as asked:
        one.page.get_by_role("button", name="Show what I may do").click()
    assert asked.value.headers["x-api-key"] == SHOP
    assert one.page.locator("[id$=-took]").text_content() == said


@pytest.mark.parametrize(
    "secret",
    ["sk_live_51Canary", "rk_test_51Canary", "Bearer sk_test_canary", "whsec_Q2FuYXJ5", "AIzaSyCanaryCanary",
     "Stripe key: sk_live_51Canary"],
)  # fmt: skip
def test_secret_of_another_service_does_not_leave_the_browser(tab: Callable[..., Tab], secret: str) -> None:
    one = tab().visit()
    one.page.get_by_label("Caller key").fill(secret)
    one.page.get_by_role("button", name="Show what I may do").click()
    one.page.get_by_text("It was not sent anywhere").wait_for()
    assert one.page.get_by_label("Caller key").input_value() == ""
    assert not [request for request in one.requests if "/-/" in request.url or "anary" in str(request.all_headers())]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (SHOP[:-4], "4 characters seem to be missing at its end"),
        (SHOP[:-1], "1 character seems to be missing at its end"),
        (SHOP[:30] + "Z" + SHOP[31:], "a part of it was mistyped or cut off"),
        (key_of("nobody"), "Ask whoever sent it to you for a new one"),
        ("csk_sandbox_key_of_another_form_1", "Ask whoever sent it to you for a new one"),
    ],
)
def test_key_that_is_not_known_is_answered_with_what_to_do(tab: Callable[..., Tab], key: str, said: str) -> None:
    one = tab().visit()
    one.page.get_by_label("Caller key").fill(key)
    one.page.keyboard.press("Enter")
    one.page.get_by_text(said).wait_for()
    assert one.page.evaluate("document.activeElement.id") == one.page.get_by_label("Caller key").get_attribute("id")


def test_from_the_link_and_a_key_to_a_working_call_in_six_actions(
    tab: Callable[..., Tab], world: World, record_property: Callable[[str, object], None]
) -> None:
    """Whoever knows nothing else fills in what is marked as needed, and copies what stands there."""
    one, actions, page = tab().visit(), 0, None
    page = one.page
    page.get_by_role("textbox").fill(SHOP)
    page.locator("button.main").click()
    actions += 2
    page.locator("form .field").first.wait_for()
    for field in page.locator("form .field", has=page.get_by_text("needed", exact=False)).locator("input").all():
        label = field.evaluate("input => input.labels[0].textContent")
        field.fill(CUSTOMER if "Customer" in label else "30" if "Days" in label else "link-1001")
        actions += 1
    one.head("This would be raised")
    page.get_by_role("tab", name="curl").click()
    actions += 1  # copying is the button beside it
    copied = page.locator("[role=tabpanel] pre").text_content()
    before = world.upstream.invoices
    environ = {"PATH": "/usr/bin:/bin", "COUNTERSIGN_KEY": SHOP}
    ran = subprocess.run(["sh", "-c", str(copied)], env=environ, capture_output=True, text=True, check=True)
    assert world.upstream.invoices == before + 1, ran
    record_property("actions", actions)
    assert actions <= 6


def test_page_and_all_it_loads_is_small_and_from_nowhere_else(tab: Callable[..., Tab], world: World) -> None:
    one = tab()
    loaded: dict[str, int] = {}

    def note(response: Any) -> None:
        loaded[response.url] = len(response.body())

    answers: list[Any] = []
    one.page.on("response", lambda response: answers.append(response))  # noqa: PLW0108 - takes no builtin
    one.visit().page.wait_for_load_state("networkidle")
    for answer in answers:
        note(answer)
    assert len(loaded) > 10
    assert all(url.startswith(world.root) for url in loaded)
    assert sum(loaded.values()) < BUDGET
    one.enter().fill(key="1").page.wait_for_load_state("networkidle")
    assert all(request.url.startswith(world.root) for request in one.requests)


@pytest.mark.parametrize("path", ["/portal", "/portal/", "/name/portal", "/a/b/portal/"])
def test_page_works_wherever_it_stands(tab: Callable[..., Tab], world: World, path: str) -> None:
    """A platform may put a prefix in front, and take it off before the function sees it."""
    one, prefix = tab(), path.partition("/portal")[0]

    def strip(route: Route) -> None:
        with ended():
            route.fulfill(response=route.fetch(url=route.request.url.replace(world.root + prefix, world.root, 1)))

    if prefix:
        one.page.route(f"{world.root}{prefix}/**", strip)
    one.visit(path)
    one.page.get_by_label("Caller key").fill(SHOP)
    one.page.get_by_role("button", name="Show what I may do").click()
    one.fill(key="1")
    one.head("This would be raised")
    asked = {request.url for request in one.requests}
    assert asked
    assert all(url.startswith(world.root + prefix) for url in asked)


# ---------------------------------------------------------------- the form and its verdict


def test_fault_stands_at_its_field_and_goes_when_it_is_mended(tab: Callable[..., Tab]) -> None:
    one = tab().enter().fill(key="1", days="90")
    one.page.get_by_role("heading", name="Try it").click()
    one.head("This would be refused")
    field = one.page.locator(".field", has=one.page.get_by_label("Days until due")).last
    field.locator(".error", has_text="60").wait_for()
    assert "Error: " in str(field.locator(".error").text_content())
    assert one.page.get_by_label("Days until due").get_attribute("aria-invalid") == "true"
    one.page.locator(".island").get_by_role("link", name="Days until due").click()
    assert one.page.evaluate("document.activeElement.labels[0].textContent").startswith("Days until due")
    assert one.page.locator("pre mark").text_content() == "90"
    one.page.get_by_label("Days until due").fill("30")
    one.head("This would be raised")
    assert field.locator(".error").text_content() == ""
    assert one.page.locator("pre mark").count() == 0


def test_all_faults_are_listed_at_once(tab: Callable[..., Tab]) -> None:
    one = tab().enter().fill(key="1", days="0", customer="acct_1")
    one.head("This would be refused")
    assert one.page.locator(".island li").count() == 2


def test_button_says_why_not_and_leads_there(tab: Callable[..., Tab], world: World) -> None:
    one = tab().enter()
    button = one.page.get_by_role("button", name="Raise this invoice")
    assert button.get_attribute("aria-disabled") == "true"
    one.page.get_by_label("Customer needed").fill(CUSTOMER)
    one.page.get_by_label("Days until due").fill("90")
    one.head("This would be refused")
    button.click(force=True)  # it says that it is disabled, and still answers
    assert one.page.evaluate("document.activeElement.labels[0].textContent").startswith(("Days", "Idempotency"))
    assert one.sent() == []


def test_what_is_tried_is_what_is_sent(tab: Callable[..., Tab]) -> None:
    """But for one word in the address."""
    one = tab().enter().fill(key="same-bytes")
    one.page.get_by_text("more fields you may send").click()
    one.page.get_by_label("Description").fill("=1+1 {{x}} & 'quoted' \u00fc \U0001f600")
    one.page.get_by_label("emea").check()
    one.raise_it()
    tried, sent = one.sent(trial=True)[-1], one.sent()[-1]
    assert tried.url.replace("&validate_only=true", "") == sent.url
    assert tried.post_data == sent.post_data
    assert tried.headers["idempotency-key"] == sent.headers["idempotency-key"] == "order-same-bytes"
    assert "metadata%5Bcost_center%5D=emea" in str(sent.post_data)
    assert "collection_method" not in str(sent.post_data)


def test_trial_is_one_question_at_a_time_and_none_while_somebody_writes(tab: Callable[..., Tab]) -> None:
    one = tab().enter()
    one.page.get_by_label("Customer needed").press_sequentially(CUSTOMER, delay=20)
    one.page.get_by_label("Days until due").press_sequentially("30", delay=20)
    one.page.get_by_label("Idempotency key needed").press_sequentially("typing-1", delay=20)
    one.head("This would be raised")
    assert len(one.sent(trial=True)) <= 3


def test_late_verdict_of_an_older_text_is_dropped(tab: Callable[..., Tab]) -> None:
    one, held = tab().enter(), []

    def hold(route: Route) -> None:
        if "days_until_due=90" in str(route.request.post_data):
            held.append(route)
        else:
            route.continue_()

    one.page.route("**/stripe/invoices/**", hold)
    one.fill(key="1", days="90")
    one.page.wait_for_timeout(900)
    assert held
    one.page.get_by_label("Days until due").fill("30")
    one.head("This would be raised")
    with_fault = {"would": "refuse", "faults": [{"parameter": "days_until_due", "detail": "late"}], "detail": "late"}
    with ended():
        held[0].fulfill(status=400, json=with_fault)
    one.page.wait_for_timeout(300)
    assert one.page.get_by_text("late").count() == 0
    one.head("This would be raised")


def test_lists_and_free_entries_are_numbered_anew_and_named(tab: Callable[..., Tab]) -> None:
    one = tab().enter().fill(key="1")
    one.page.get_by_text("more fields you may send").click()
    add = one.page.get_by_role("button", name="Add to")
    for name in ("first", "second", "third"):
        add.click()
        one.page.get_by_label(re.compile("^Name of")).last.fill(name)
        one.page.get_by_label(re.compile("^Value of")).last.fill(f"v-{name}")
    one.page.get_by_role("button", name=re.compile("^Remove .* 1$")).click()
    sent = one.page.locator("pre.sent")
    sent.filter(has_text="custom_fields[1][value]=v-third").wait_for()
    assert "custom_fields[0][name]=second" in str(sent.first.text_content())
    assert "first" not in str(sent.first.text_content())
    assert one.page.evaluate("document.activeElement.value") == "second"


def test_free_keys_become_names(tab: Callable[..., Tab]) -> None:
    one = tab().enter("stripe")
    one.page.get_by_label("Customer needed").fill(CUSTOMER)
    one.page.get_by_text("more fields you may send").click()
    one.page.get_by_role("button", name="Add an entry").click()
    one.page.get_by_label("Name", exact=True).fill("order_id")
    one.page.get_by_label("Value", exact=True).fill("1001")
    one.page.locator("pre.sent", has_text="metadata[order_id]=1001").wait_for()
    one.page.get_by_label("Name", exact=True).fill("a[b]")
    one.page.locator(".island", has_text="A name has no square brackets.").wait_for()


def test_absent_is_not_no(tab: Callable[..., Tab]) -> None:
    one = tab().enter("stripe")
    one.page.get_by_label("Customer needed").fill(CUSTOMER)
    one.page.get_by_text("more fields you may send").click()
    choice = one.page.get_by_role("group", name=re.compile("auto_advance", re.IGNORECASE)).last
    assert choice.get_by_label("Leave out").is_checked()
    assert "auto_advance" not in str(one.page.locator("pre.sent").first.text_content())
    choice.get_by_label("No", exact=True).check()
    one.page.locator("pre.sent", has_text="auto_advance=false").wait_for()


def test_day_becomes_noon_in_utc_of_that_day(tab: Callable[..., Tab]) -> None:
    one = tab(timezone_id="Pacific/Auckland").enter().fill(key="1")
    one.page.get_by_text("more fields you may send").click()
    one.page.locator("input[type=date]").fill("2027-03-01")
    one.page.locator("pre.sent", has_text="due_date=1803902400").wait_for()


def test_several_grants_are_one_list(tab: Callable[..., Tab]) -> None:
    one = tab().enter("stripe")
    chooser = one.page.get_by_label("What do you want to do?")
    assert chooser.locator("optgroup").count() == 2
    chooser.select_option("acme-stripe:invoices.retrieve")
    one.page.get_by_label("Invoice needed").fill("in_1MtHbELkdIwHu7ixl4OzzPMv")
    one.head("This would be answered")
    assert one.page.get_by_role("button", name="Look at this invoice").get_attribute("aria-disabled") == "false"
    assert one.page.get_by_label("Idempotency key needed").count() == 0


def test_field_that_is_the_key_has_no_field_beside_it(tab: Callable[..., Tab]) -> None:
    one = tab().enter("stripe")
    one.page.get_by_label("What do you want to do?").select_option("acme-stripe:invoices.create")
    one.page.get_by_text("Your own name for this invoice").wait_for()
    assert one.page.get_by_label("Idempotency key needed").count() == 0
    one.page.get_by_label("Customer needed").fill(CUSTOMER)
    one.page.get_by_label("order_id needed").fill("own-1")
    one.head("This would be raised")


# ---------------------------------------------------------------- the real send


def test_answer_is_shown_as_a_tool_lists_it(tab: Callable[..., Tab], world: World) -> None:
    before = world.upstream.invoices
    one = tab().enter().fill(key="shown-1").raise_it()
    table = one.page.get_by_role("region", name="As your tool shows it")
    assert "lines.data.0.amount" in str(table.text_content())
    assert "20.00 USD" in str(table.get_by_role("row", name=re.compile("^amount_due")).text_content())
    assert world.upstream.invoices == before + 1
    assert one.page.evaluate("document.activeElement.textContent").endswith("Raised: 20.00 USD")
    one.page.get_by_role("button", name="Next invoice").click()
    assert one.page.get_by_label("Idempotency key needed").input_value() == ""
    assert one.page.get_by_label("Customer needed").input_value() == CUSTOMER


@pytest.mark.parametrize("twice", ["click", "keys"])
def test_yes_twice_is_sent_once(tab: Callable[..., Tab], world: World, twice: str) -> None:
    before = world.upstream.invoices
    one = tab().enter().fill(key=f"twice-{twice}").send()
    yes = one.page.get_by_role("button", name="Yes, raise this invoice")
    if twice == "click":
        yes.dblclick()
    else:
        yes.focus()
        one.page.keyboard.press("Enter")
        one.page.keyboard.press("Enter")
    one.head("Raised")
    assert len(one.sent()) == 1
    assert world.upstream.invoices == before + 1


def test_first_button_alone_raises_nothing(tab: Callable[..., Tab]) -> None:
    one = tab().enter().fill(key="alone-1").send()
    assert one.page.evaluate("document.activeElement.textContent") == "Raise it now?"
    one.page.keyboard.press("Escape")
    one.page.get_by_role("button", name="Raise this invoice").click()
    one.page.get_by_role("button", name="Not yet").click()
    one.page.get_by_role("button", name="Raise this invoice").click()
    one.page.get_by_label("Days until due").fill("31")
    one.page.get_by_role("heading", name="Raise it now?").wait_for(state="detached")
    assert one.sent() == []


def test_key_that_was_used_before_raises_nothing_new(tab: Callable[..., Tab], world: World) -> None:
    one = tab().enter().fill(key="before-1").raise_it()
    before = world.upstream.invoices
    two = tab().enter().fill(key="before-1")
    two.head("This key was used before")
    assert two.page.get_by_role("button", name="Raise this invoice").get_attribute("aria-disabled") == "true"
    assert world.upstream.invoices == before
    assert one.page.locator("tbody tr", has_text="order-before-1").count() == 1


def test_two_tabs_that_send_one_key_raise_one_invoice(tab: Callable[..., Tab], world: World) -> None:
    one, two = (tab().enter().fill(key="tabs-1").send() for _ in range(2))
    before = world.upstream.invoices
    for each in (one, two):
        each.page.get_by_role("button", name="Yes, raise this invoice").click()
        each.head("Raised")
    two.page.get_by_text("Nothing new was raised").wait_for()
    assert world.upstream.invoices == before + 1


def test_lost_answer_is_asked_for_again_with_the_same_bytes(tab: Callable[..., Tab], world: World) -> None:
    one = tab().enter().fill(key="lost-1").send()
    before = world.upstream.invoices

    def lose(route: Route) -> None:
        if "validate_only" in route.request.url:
            route.continue_()
            return
        route.fetch()
        route.abort()

    one.page.route("**/stripe/invoices/**", lose)
    one.page.get_by_role("button", name="Yes, raise this invoice").click()
    one.head("No answer came")
    assert one.page.get_by_label("Idempotency key needed").get_attribute("readonly") is not None
    one.page.unroute("**/stripe/invoices/**")
    one.page.get_by_role("button", name="Ask again with the same key").click()
    one.head("Raised")
    first, again = one.sent()
    assert (first.url, first.post_data) == (again.url, again.post_data)
    assert first.headers["idempotency-key"] == again.headers["idempotency-key"]
    one.page.get_by_text("Nothing new was raised").wait_for()
    assert world.upstream.invoices == before + 1


def test_refusal_of_the_real_send_is_said_once_in_its_own_words(tab: Callable[..., Tab]) -> None:
    one = tab().enter().fill(key="refused-1", customer="cus_fault_error_402").send()
    one.page.get_by_role("button", name="Yes, raise this invoice").click()
    one.head("It was refused")
    assert one.page.get_by_role("alert").count() == 1
    assert one.page.get_by_text("Audit id:").count() == 1


def test_outcome_that_is_not_known_is_looked_up_by_its_key(tab: Callable[..., Tab]) -> None:
    one = tab().enter().fill(key="unknown-1", customer="cus_fault_close_after").send()
    one.page.get_by_role("button", name="Yes, raise this invoice").click()
    one.head("It is not settled")
    part = one.page.locator("#became")
    part.get_by_label("Idempotency key").fill("order-unknown-1")
    part.get_by_role("button", name="Look it up").click()
    part.get_by_role("heading", name="It is not known yet").wait_for()
    part.get_by_label("Idempotency key").fill("order-never-seen")
    part.get_by_role("button", name="Look it up").click()
    part.get_by_role("heading", name="Never seen").wait_for()


def test_limit_that_is_used_up_leaves_the_form_working(tab: Callable[..., Tab]) -> None:
    one = tab().enter("small").fill(key="small-1").raise_it()
    one.page.get_by_role("button", name="Next invoice").click()
    one.fill(key="small-2").raise_it()
    one.page.get_by_text("0 of 2 left").wait_for()
    one.page.get_by_role("button", name="Next invoice").click()
    one.fill(key="small-3")
    one.head("Not now")
    one.page.get_by_text("It passes again at").wait_for()
    assert one.page.get_by_role("button", name="Raise this invoice").get_attribute("aria-disabled") == "true"


# ---------------------------------------------------------------- who may not, or not now


def test_paused_caller_sees_all_and_sends_nothing(tab: Callable[..., Tab]) -> None:
    one = tab().enter("paused")
    one.page.get_by_text("Your access is paused").first.wait_for()
    one.fill(key="paused-1")
    assert one.page.get_by_role("button", name="Raise this invoice").get_attribute("aria-disabled") == "true"


def test_key_that_ends_soon_is_said_in_time(tab: Callable[..., Tab]) -> None:
    one = tab().enter("expiring")
    one.page.get_by_text(re.compile(r"Your key works until .* \(\d+ days\)")).wait_for()


def test_policy_that_changes_while_the_page_is_open(tab: Callable[..., Tab], world: World) -> None:
    one = tab().enter().fill(key="changed-1")
    one.page.get_by_text("more fields you may send").click()
    one.page.get_by_label("Description").fill("kept")
    one.head("This would be raised")

    def change(content: dict[str, Any]) -> None:
        content["callers"]["shop"]["grants"][0]["parameters"]["days_until_due"]["max"] = 20

    try:
        world.rewrite(change)
        one.page.get_by_label("Days until due").fill("19")
        one.send()
        one.page.get_by_text("What you may do has changed").first.wait_for()
        one.page.get_by_label("Days until due").fill("25")
        assert one.page.get_by_role("button", name="Raise this invoice").get_attribute("aria-disabled") == "true"
        one.page.get_by_role("button", name="Show what applies now").click()
        one.head("This would be refused")
        assert one.page.get_by_label("Days until due").input_value() == "25"
        assert one.page.get_by_label("Description").input_value() == "kept"
        assert one.page.get_by_label("Idempotency key needed").input_value() == "changed-1"
        one.page.get_by_text("1 to 20.").first.wait_for()
    finally:
        world.rewrite()


def test_key_that_is_revoked_between_trial_and_send(tab: Callable[..., Tab], world: World) -> None:
    one = tab().enter().fill(key="revoked-1")
    with one.page.expect_response("**/-/me"):  # asked once more before the last button
        one.send()

    def revoke(content: dict[str, Any]) -> None:
        content["callers"]["shop"]["credentials"][0]["key"]["sha256"] = "0" * 64

    try:
        world.rewrite(revoke)
        before = world.upstream.invoices
        one.page.get_by_role("button", name="Yes, raise this invoice").click()
        one.page.get_by_text("Your key is not known any more").first.wait_for()
        assert world.upstream.invoices == before
        assert one.page.get_by_label("Customer needed").input_value() == CUSTOMER
    finally:
        world.rewrite()
    one.page.get_by_label("Caller key").fill(SHOP)
    one.page.get_by_role("button", name="Show what I may do").click()
    one.page.get_by_label("Caller key").wait_for(state="detached")


def test_without_a_network_the_text_is_kept(tab: Callable[..., Tab]) -> None:
    one = tab().enter()
    one.page.context.set_offline(True)
    one.fill(key="offline-1")
    one.head("No connection to this address")
    one.page.context.set_offline(False)
    one.page.get_by_label("Days until due").fill("29")
    one.head("This would be raised")


def test_without_javascript_it_says_so_and_what_may_be_read(tab: Callable[..., Tab]) -> None:
    one = tab(java_script_enabled=False)
    one.page.goto(one.root + "/portal")
    one.page.get_by_role("heading", name="Countersign raises invoices for you").wait_for()
    assert one.page.locator("main a").count() == 3


def test_modules_that_do_not_load_are_said_too(tab: Callable[..., Tab]) -> None:
    one = tab()
    one.page.route("**/money.js", lambda route: route.abort())
    one.page.goto(one.root + "/portal")
    one.page.get_by_text("This page needs JavaScript").wait_for()


# ---------------------------------------------------------------- the key, and what others write


def test_key_is_nowhere_but_in_its_header(tab: Callable[..., Tab], world: World) -> None:
    one = tab().enter().fill(key="canary-1").raise_it()
    page = one.page
    page.get_by_role("tab", name="Python", exact=True).click()
    page.get_by_text("What you may send (").click()
    found = page.evaluate("""async () => ({
        dom: document.documentElement.outerHTML,
        typed: [...document.querySelectorAll("input, textarea")].map((one) => one.value).join(),
        storage: JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, history.state, name]),
        databases: JSON.stringify(await indexedDB.databases()), caches: JSON.stringify(await caches.keys()),
        title: document.title, address: location.href })""")
    assert not [place for place, text in found.items() if SHOP in text]
    assert not [said for said in one.said if SHOP in said]
    assert SHOP not in world.server.record.text()
    for request in one.requests:
        assert request.url.startswith(world.root)
        assert SHOP not in request.url + str(request.post_data)
        others = {name: value for name, value in request.headers.items() if name != "x-api-key"}
        assert SHOP not in str(others)
    for tool in page.get_by_role("tab").all():
        tool.click()
        assert SHOP not in str(page.get_by_role("tabpanel").text_content())


@pytest.mark.parametrize("how", ["reload", "back", "forget"])
def test_key_is_gone_with_the_page(tab: Callable[..., Tab], how: str) -> None:
    one = tab().enter()
    if how == "reload":
        one.page.reload()
    elif how == "back":
        one.page.goto("about:blank")
        one.page.go_back()
    else:
        one.page.get_by_role("button", name="Forget this key").click()
    one.page.get_by_label("Caller key").wait_for()
    assert one.page.get_by_label("Caller key").input_value() == ""


def test_idle_page_forgets_the_key_and_keeps_the_text(tab: Callable[..., Tab]) -> None:
    one = tab()
    one.page.clock.install()
    one.enter().fill(key="idle-1")
    one.page.clock.run_for(15 * 60 * 1000 + 1000)
    one.page.get_by_text("forgotten after 15 minutes").first.wait_for()
    assert one.page.get_by_label("Customer needed").input_value() == CUSTOMER
    before = len(one.requests)
    one.page.get_by_label("Days until due").fill("31")
    one.page.clock.run_for(2000)
    assert not [one for one in one.requests[before:] if "x-api-key" in one.headers]


HOSTILE = "<img src=x onerror=alert(1)>"


def test_markup_of_others_stays_text(tab: Callable[..., Tab]) -> None:
    one, opened = tab().enter(), []
    one.page.on("dialog", lambda dialog: opened.append(dialog))  # noqa: PLW0108 - takes no builtin
    answer = {
        "id": f"in_{HOSTILE}", "number": HOSTILE, "status": "open\u202e", "amount_due": 1, "currency": HOSTILE,
        "hosted_invoice_url": "javascript:alert(1)", "metadata": {HOSTILE: HOSTILE, "</script>": "x"}, "audit_id": "a",
    }  # fmt: skip

    def answered(route: Route) -> None:
        if "validate_only" in route.request.url:
            route.continue_()
        else:
            route.fulfill(status=200, json=answer)

    one.page.route("**/stripe/invoices/**", answered)
    one.fill(key="markup-1", customer=f"cus_{HOSTILE}").send()
    one.page.get_by_role("button", name="Yes, raise this invoice").click()
    one.head("Raised")
    assert one.page.locator("main img, main script").count() == 0
    assert one.page.locator("a[href^='javascript']").count() == 0
    assert "open\\u202e" in str(one.page.get_by_role("region", name="As your tool shows it").text_content())
    assert opened == []


ATTACKS = """elsewhere => new Promise((done) => setTimeout(async () => {
    const found = {};
    const attempt = async (name, act) => {
        try { await act(); found[name] = "done"; } catch { found[name] = "refused"; }
    };
    await attempt("markup", () => { document.body.innerHTML += "<b>x</b>"; });
    await attempt("handler", () => { document.createElement("p").setAttribute("onclick", "1"); });
    await attempt("script", () => { document.createElement("script").src = "/x.js"; });
    await attempt("elsewhere", () => fetch(elsewhere, { mode: "no-cors" }));
    done(found);
}))"""
FRAME = """address => new Promise((done) => {
    const frame = document.createElement("iframe");
    frame.onload = () => {
        try { done(frame.contentDocument.querySelector("#app") ? "framed" : "refused"); } catch { done("refused"); }
    };
    frame.src = address;
    document.body.append(frame);
})"""


def test_browser_refuses_what_the_page_does_not_need(tab: Callable[..., Tab], world: World) -> None:
    """In a timer of the page, which its policy binds, unlike what an inspector runs."""
    one = tab().visit()
    tried = one.page.evaluate(ATTACKS, f"{world.upstream.origin}/_sandbox")
    assert tried == dict.fromkeys(("markup", "handler", "script", "elsewhere"), "refused")
    around = tab()
    around.page.route("**/around", lambda route: route.fulfill(body="<p>x</p>", content_type="text/html"))
    around.page.goto(f"{world.root}/around")
    assert around.page.evaluate(FRAME, f"{world.root}/portal") == "refused"


# ---------------------------------------------------------------- recipes


#: Those that one run carries out. What is shown cell by cell is not copied as one text, and what takes a credential
#: that is tied to one connection has no text for this one.
COPIED = [name for name in RUNNERS if name not in {"zapier", "stripe-node", "stripe-go"}]


@pytest.mark.parametrize("name", [pytest.param(name, id=name, marks=RUNNERS[name][1]) for name in COPIED])
def test_recipe_runs_as_it_is_copied(tab: Callable[..., Tab], world: World, tmp_path: Path, name: str) -> None:
    order = f"copied-{name}"
    one = tab(permissions=["clipboard-read", "clipboard-write"]).enter().fill(key=order)
    one.head("This would be raised")
    text = one.copied(name)
    assert SHOP not in text
    before = world.upstream.invoices
    inputs = {"order_id": order, "customer": CUSTOMER, "days_until_due": "30"}
    for _ in range(2):
        went, told = RUNNERS[name][0](Copied(text, inputs, SHOP, tmp_path))
        assert went, told
    assert world.upstream.invoices == before + 1


def test_tabs_are_moved_through_by_arrows(tab: Callable[..., Tab]) -> None:
    one = tab().enter()
    one.page.locator("#copy").scroll_into_view_if_needed()
    tabs = one.page.get_by_role("tab")
    tabs.first.wait_for()
    tabs.first.focus()
    for key, index in (("ArrowRight", 1), ("End", -1), ("ArrowRight", 0), ("ArrowLeft", -1), ("Home", 0)):
        one.page.keyboard.press(key)
        expected = tabs.nth(index) if index >= 0 else tabs.last
        assert expected.get_attribute("aria-selected") == "true"
        assert one.page.evaluate("document.activeElement.id") == expected.get_attribute("id")
    assert [each.get_attribute("tabindex") for each in tabs.all()].count("0") == 1


def test_recipes_for_everybody_need_no_key(tab: Callable[..., Tab]) -> None:
    one = tab().visit()
    one.page.get_by_text("What the call looks like").click()
    one.page.get_by_role("tab", name="curl").click()
    assert "COUNTERSIGN_KEY" in str(one.page.get_by_role("tabpanel").text_content())


# ---------------------------------------------------------------- odd browsers


def test_clock_that_is_wrong_by_a_day_changes_nothing_but_what_is_called_today(tab: Callable[..., Tab]) -> None:
    one = tab()
    one.page.clock.set_system_time(datetime.now(UTC) + timedelta(days=1))
    one.enter().fill(key="clock-1").raise_it()
    # A half filled form may be tried, and is refused, which the browser notes.
    assert [said for said in one.said if "status of 400" not in said] == []


def test_page_without_its_style_sheet_still_raises_an_invoice(tab: Callable[..., Tab], world: World) -> None:
    one, before = tab(), world.upstream.invoices
    one.page.route("**/*.css", lambda route: route.abort())
    one.enter().fill(key="plain-1").raise_it()
    assert world.upstream.invoices == before + 1


def test_nothing_is_judged_while_a_character_is_composed(tab: Callable[..., Tab]) -> None:
    one = tab().enter().fill(key="composed-1", customer="")
    one.head("This would be refused")
    customer = one.page.get_by_label("Customer needed")
    customer.focus()
    asked, keyboard = len(one.sent(trial=True)), one.page.context.new_cdp_session(one.page)
    keyboard.send("Input.imeSetComposition", {"text": "cus_MQ", "selectionStart": 6, "selectionEnd": 6})
    one.page.wait_for_timeout(1000)
    assert (customer.input_value(), len(one.sent(trial=True))) == ("cus_MQ", asked)
    keyboard.send("Input.insertText", {"text": CUSTOMER})
    one.head("This would be raised")


def test_key_that_was_forgotten_has_left_the_memory(tab: Callable[..., Tab]) -> None:
    one = tab().enter().fill(key="heap-1")
    one.head("This would be raised")
    chunks: list[str] = []
    debugger = one.page.context.new_cdp_session(one.page)
    debugger.on("HeapProfiler.addHeapSnapshotChunk", lambda told: chunks.append(told["chunk"]))
    for kept in (True, False):
        if not kept:
            one.page.get_by_role("button", name="Forget this key").click()
            one.page.get_by_label("Caller key").wait_for()
        chunks.clear()
        debugger.send("HeapProfiler.collectGarbage")
        debugger.send("HeapProfiler.takeHeapSnapshot", {"reportProgress": False})
        assert (SHOP in "".join(chunks)) == kept


# ---------------------------------------------------------------- modules by themselves


def in_page(one: Tab, module: str, expression: str, *given: object) -> Any:
    """Call what a module of the page exports."""
    script = one.page.locator("script[type=module]").get_attribute("src")
    assert script is not None
    return one.page.evaluate(
        f"async ([at, given]) => {{ const call = {expression}; return call(await import(at), ...given); }}",
        [one.root + script.removeprefix(".").replace("app.js", module), list(given)],
    )


@pytest.mark.parametrize(
    ("typed", "currency", "minor"),
    [("120.00", "usd", "12000"), ("120", "usd", "12000"), ("0.5", "usd", "50"), ("0", "usd", "0"),
     ("-3", "usd", "-300"), ("5", "jpy", "5"), ("5.5", "jpy", None), ("0.001", "usd", None),
     ("1,5", "usd", None), ("1.234,56", "usd", None),
     ("1e3", "usd", None), ("1 000", "usd", None), ("0x10", "usd", None), ("", "usd", None), (".5", "usd", None),
     ("1234567890123", "usd", None), ("\u0661", "usd", None), (" 007.10 ", "usd", "710"), ("1", "kwd", "1"),
     ("1.000", "kwd", None), ("1.005", "xyz", "1005"), ("1.0005", "xyz", None), ("-0.5", "xyz", "-500")],
)  # fmt: skip
def test_amount_is_read_exactly_or_not_at_all(
    tab: Callable[..., Tab], typed: str, currency: str, minor: str | None
) -> None:
    one = tab().visit()
    exponents = {"default": 2, "jpy": 0, "kwd": None, "xyz": 3}
    assert in_page(one, "money.js", "(m, ...given) => m.minor(...given)", typed, currency, exponents) == minor
    if minor is not None:
        shown = in_page(one, "money.js", "(m, ...given) => m.shown(...given)", minor, currency, exponents)
        digits = {"usd": 2, "xyz": 3}.get(currency, 0)
        unit = "minor units of KWD" if currency == "kwd" else currency.upper()
        assert shown == f"{int(minor) / 10**digits:,.{digits}f} {unit}"


def test_page_reads_a_checksum_as_the_policy_does(tab: Callable[..., Tab]) -> None:
    one = tab().visit()
    for text in ("csk_" + "a" * 43, "csk_" + "0Zz9" * 10 + "abc", SHOP[:-6]):
        key = checked(text)
        assert in_page(one, "key.js", "(m, key) => m.flaw(key)", key) is None
        assert (
            in_page(one, "key.js", "(m, key) => m.flaw(key)", key[:-1] + ("a" if key[-1] != "a" else "b")) == "mistyped"
        )
