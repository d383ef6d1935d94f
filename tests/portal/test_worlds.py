"""The page before a function that is not well, and before one with a very large policy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import TimeoutError as TooLate

from sandbox.ports import free_port
from tests.conftest import launch
from tests.portal.conftest import CUSTOMER, KEYS, Tab, document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Route

    from tests.portal.conftest import World

pytestmark = pytest.mark.browser

GRANTS, FIELDS = 50, 200


@pytest.fixture
def at(chromium: Browser, world: World, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    """A tab before another function: with a document and settings of its own."""
    servers, contexts = [], []

    def new(change: Callable[[dict[str, Any]], None] | None = None, **settings: str) -> Tab:
        said: dict[str, Any] = {"SECRET_MANAGER_ENDPOINT": world.manager.address, **settings}
        server = launch(tmp_path, document(world.origins, change), **said)
        servers.append(server)
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        contexts.append(context)
        tab = Tab(context.new_page(), f"http://127.0.0.1:{server.port}")
        tab.page.on("request", lambda request: tab.requests.append(request))  # noqa: PLW0108 - takes no builtin
        return tab

    yield new
    for context in contexts:
        context.close()
    for server in servers:
        server.stop()


def test_without_the_store_what_may_be_done_is_shown_and_nothing_is_raised(at: Callable[..., Tab]) -> None:
    one = at(STORE=f"redis://127.0.0.1:{free_port()}/0").enter()
    one.page.get_by_text("What is left cannot be read just now").wait_for()
    assert one.page.locator(".standings").count() == 0
    one.fill(key="down-1")
    one.page.get_by_role("heading", name="Try it").click()
    button = one.page.get_by_role("button", name="Raise this invoice")
    assert button.get_attribute("aria-disabled") == "true"
    assert one.page.get_by_label("Customer needed").input_value() == CUSTOMER
    assert one.sent() == []


def test_fifty_grants_of_two_hundred_fields(
    at: Callable[..., Tab], record_property: Callable[[str, object], None]
) -> None:
    def change(content: dict[str, Any]) -> None:
        first = content["connections"]["acme-billing"]
        grant = content["callers"]["shop"]["grants"][0]
        parameters = grant["parameters"] | {f"metadata[k{number}]": None for number in range(FIELDS - 10)}
        for number in range(GRANTS - 1):
            name = f"more-{number:02}"
            content["connections"][name] = first | {"name": name}
            content["callers"]["shop"]["grants"].append(grant | {"connection": name, "parameters": parameters})

    one = at(change)
    began = time.monotonic()
    one.enter()
    chooser = one.page.get_by_label("What do you want to do?")
    chooser.wait_for()
    record_property("seconds to the form", round(time.monotonic() - began, 2))
    assert chooser.locator("optgroup").count() == GRANTS
    chooser.select_option("more-31:invoices.create")
    one.page.get_by_text("more fields you may send").click()
    one.page.get_by_label("Find a field").fill("k137")
    one.page.locator("summary", has_text="Metadata").last.click()
    field = one.page.get_by_label("k137", exact=True)
    field.wait_for()
    took = one.page.evaluate(
        """() => { const input = document.querySelector("form input[type=text]"), began = performance.now();
        for (let n = 0; n < 20; n++) {
            input.value += "1";
            input.dispatchEvent(new InputEvent("input", {bubbles: true}));
        }
        return (performance.now() - began) / 20; }"""
    )
    record_property("milliseconds a key press", round(took, 1))
    field.fill("found")
    one.page.locator("pre.sent", has_text="metadata[k137]=found").first.wait_for()
    assert one.page.locator("form .field").count() >= FIELDS - 10
    answers = [request for request in one.requests if "/-/me" in request.url]
    assert max(len(request.response().body()) for request in answers if request.response()) < 200_000  # type: ignore[union-attr]


def test_old_form_takes_nothing_while_the_next_one_is_coming(at: Callable[..., Tab]) -> None:
    def change(content: dict[str, Any]) -> None:
        grants = content["callers"]["shop"]["grants"]
        parameters = grants[0]["parameters"] | {f"metadata[k{number}]": None for number in range(FIELDS)}
        for number in range(GRANTS):
            name = f"more-{number:02}"
            content["connections"][name] = content["connections"]["acme-billing"] | {"name": name}
            grants.append(grants[0] | {"connection": name, "parameters": parameters})

    one = at(change).enter()
    held: list[Route] = []
    one.page.route("**/-/me?grant=*", lambda route: held.append(route))  # noqa: PLW0108 - takes no builtin
    one.page.get_by_label("What do you want to do?").select_option("more-31:invoices.create")
    field = one.page.get_by_label("Customer needed")
    with pytest.raises(TooLate):
        field.click(timeout=1000)
    held.pop().continue_()
    one.page.get_by_label("What do you want to do?").and_(one.page.locator(":focus")).wait_for()
    field.fill("cus_typed")
    assert one.page.get_by_label("What do you want to do?").input_value() == "more-31:invoices.create"
    assert field.input_value() == "cus_typed"


def test_text_that_was_kept_outlasts_the_late_form_of_another_grant(at: Callable[..., Tab], tmp_path: Path) -> None:
    def many(content: dict[str, Any]) -> None:
        grants = content["callers"]["shop"]["grants"]
        for number in range(GRANTS):
            name = f"more-{number:02}"
            content["connections"][name] = content["connections"]["acme-billing"] | {"name": name}
            grants.append(grants[0] | {"connection": name, "parameters": grants[0]["parameters"] | {"currency": None}})

    one = at(many, POLICY_SECONDS="0.2").enter()
    one.page.get_by_label("What do you want to do?").select_option("more-31:invoices.create")
    one.fill(key="late-1")
    one.head("This would be raised")
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy.read_text().replace("max: 60", "max: 50"))
    one.page.get_by_label("Days until due").fill("29")
    one.send()
    again = one.page.get_by_role("button", name="Show what applies now")
    again.wait_for()
    held: list[Route] = []
    # The page begins with its first grant, whose form comes late.
    one.page.route("**/-/me?grant=acme-billing*", lambda route: held.append(route))  # noqa: PLW0108 - takes no builtin
    again.click()
    days = one.page.get_by_label("Days until due")
    days.wait_for()
    with one.page.expect_response("**/-/me?grant=acme-billing*"):
        held.pop().continue_()
    one.head("This would be raised")
    assert one.page.get_by_label("What do you want to do?").input_value() == "more-31:invoices.create"
    assert days.input_value() == "29"


def test_portal_that_is_off_is_not_there(at: Callable[..., Tab]) -> None:
    one = at(PORTAL="off")
    answer = one.page.goto(one.root + "/portal")
    assert answer is not None
    assert (answer.status, answer.json()["reason"]) == (404, "path-unknown")


def test_shop_is_a_caller_of_the_document_that_make_portal_shows(world: World) -> None:
    status, _, body = world.server.call("/-/me", None, key=KEYS["shop"], method="GET")
    assert status == 200
    assert b'"customer"' in body
