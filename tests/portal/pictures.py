"""Take the pictures of the docs anew: ``python -m tests.portal.pictures``. Look at them before they are committed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from sandbox.__main__ import ROOT, SECRET, UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from sandbox.secret_manager import SecretManager
from sandbox.stripe import Stripe
from tests.conftest import launch
from tests.portal.conftest import CHROMIUM, KEYS, Tab, document

DOCS = ROOT / "docs"


def main() -> None:
    """Write them into ``docs/``."""
    with (
        tempfile.TemporaryDirectory() as folder,
        SecretManager() as manager,
        Appgregator(keys=[UPSTREAM_KEY], accounts=None) as upstream,
        Stripe(keys=[UPSTREAM_KEY]) as stripe,
        sync_playwright() as playwright,
    ):
        manager.add(SECRET, UPSTREAM_KEY.encode())
        origins = {"appgregator": upstream.origin, "stripe": stripe.origin}
        server = launch(Path(folder), document(origins), SECRET_MANAGER_ENDPOINT=manager.address)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:

            def tab(width: int, height: int, scheme: Any) -> Tab:
                size: Any = {"width": width, "height": height}
                context = browser.new_context(viewport=size, color_scheme=scheme, timezone_id="Europe/Berlin")
                return Tab(context.new_page(), f"http://127.0.0.1:{server.port}").enter()

            for number in range(7):
                server.call(
                    "/stripe/invoices/?name=ft-4&connection_name=stripe-1",
                    b"customer=cus_MQqeLuPp19Qbk8&days_until_due=30",
                    {"Idempotency-Key": f"order-{number}"},
                    key=KEYS["shop"],
                )
            wide = tab(1280, 900, "light").fill(key="1001", days="90")
            wide.page.get_by_role("heading", name="Try it").click()
            wide.head("This would be refused")
            save(wide, "portal-1280.png")
            wide.page.get_by_label("Days until due").fill("30")
            wide.head("This would be raised")
            wide.page.locator("#copy").scroll_into_view_if_needed()
            wide.page.get_by_role("tab", name="n8n").click()
            wide.page.locator("#copy").screenshot(path=DOCS / "portal-recipe.png")
            small = tab(390, 844, "light").fill(key="1002", days="90")
            small.page.get_by_role("heading", name="Try it").click()
            small.head("This would be refused")
            small.page.get_by_label("Customer needed").scroll_into_view_if_needed()
            save(small, "portal-390.png")
            dark = tab(1280, 900, "dark").fill(key="1003").raise_it()
            dark.page.get_by_role("button", name="Next invoice").wait_for()
            dark.page.mouse.move(0, 0)
            dark.page.evaluate("scrollTo(0, 0)")
            save(dark, "portal-dark.png")
        finally:
            browser.close()
            server.stop()


def save(tab: Tab, name: str) -> None:
    """Save what is seen now, when it has come to rest."""
    tab.page.wait_for_timeout(700)
    tab.page.screenshot(path=DOCS / name)


if __name__ == "__main__":
    main()
