"""Take the pictures of the docs anew: ``python -m tests.portal.pictures``. Look at them before they are committed."""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from sandbox.__main__ import ROOT, SECRET, UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from sandbox.secret_manager import SecretManager
from sandbox.stripe import Stripe
from tests.conftest import launch
from tests.portal.conftest import CHROMIUM, KEYS, Tab, document
from tests.portal.test_lines import begin, write

DOCS = ROOT / "docs"


def until(content: dict[str, Any]) -> None:
    """Give the key that is shown a last day."""
    content["callers"]["shop"]["credentials"][0]["key"]["expires"] = "2027-03-01"


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
        server = launch(Path(folder), document(origins, until), SECRET_MANAGER_ENDPOINT=manager.address)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:

            def closed(width: int, height: int, scheme: Any) -> Tab:
                size: Any = {"width": width, "height": height}
                context = browser.new_context(viewport=size, color_scheme=scheme, timezone_id="Europe/Berlin")
                return Tab(context.new_page(), f"http://127.0.0.1:{server.port}")

            def tab(width: int, height: int, scheme: Any) -> Tab:
                return closed(width, height, scheme).enter()

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
            wide.page.mouse.move(0, 0)
            wide.page.evaluate("document.activeElement.blur()")
            wide.page.wait_for_timeout(300)
            picture = wide.page.locator("#copy").screenshot(style="pre { max-height: 16rem }")
            (DOCS / "portal-recipe.png").write_bytes(smaller(picture))
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
            whole = write(begin(closed(1280, 900, "light"), "1004"))
            whole.head("This would be raised")
            whole.page.mouse.move(0, 0)
            whole.page.get_by_role("heading", name="Try it").evaluate("one => one.scrollIntoView()")
            save(whole, "portal-whole.png")
        finally:
            browser.close()
            server.stop()


def save(tab: Tab, name: str) -> None:
    """Save what is seen now, when it has come to rest."""
    tab.page.wait_for_timeout(700)
    (DOCS / name).write_bytes(smaller(tab.page.screenshot()))


def smaller(png: bytes) -> bytes:
    """Return a picture with a palette of its 256 most frequent colours, which is a third of the size."""
    at, data = 8, b""
    width, height = struct.unpack(">II", png[16:24])
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    raw, line = zlib.decompress(data), width * 3
    before, pixels = bytes(line), []
    for row in range(height):
        kind, now = raw[row * (line + 1)], bytearray(raw[row * (line + 1) + 1 : (row + 1) * (line + 1)])
        for index in range(line):
            left = now[index - 3] if index > 2 else 0
            up, corner = before[index], before[index - 3] if index > 2 else 0
            nearest = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
            now[index] = (now[index] + (0, left, up, (left + up) // 2, nearest)[kind]) & 255
        before = bytes(now)
        pixels += [before[index : index + 3] for index in range(0, line, 3)]
    palette = [colour for colour, _ in Counter(pixels).most_common(256)]
    index_of = {colour: index for index, colour in enumerate(palette)}
    for colour in set(pixels) - index_of.keys():
        index_of[colour] = min(
            range(len(palette)),
            key=lambda n: sum((a - b) ** 2 for a, b in zip(palette[n], colour, strict=True)),
        )
    rows = (bytes([0, *(index_of[one] for one in pixels[y * width : (y + 1) * width])]) for y in range(height))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", b"".join(palette)),
        (b"IDAT", zlib.compress(b"".join(rows), 9)),
        (b"IEND", b""),
    )
    return png[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


if __name__ == "__main__":
    main()
