"""The page in Chromium, against the function under its production server and the sandbox."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from policies.callerkeys import PREFIX, checked
from sandbox.__main__ import POLICY, ROOT, SECRET, UPSTREAM_KEY
from sandbox.appgregator import Appgregator
from sandbox.secret_manager import SecretManager
from sandbox.stripe import Stripe
from tests.conftest import launch, sha256
from tests.waiting import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Page, Request

    from tests.conftest import Server

CHROMIUM = shutil.which("chromium")
AXE = ROOT / ".venv" / "portal" / "node" / "node_modules" / "axe-core" / "axe.min.js"
DOCUMENT = POLICY.parent / "portal.yaml"
CUSTOMER = "cus_MQqeLuPp19Qbk8"


def key_of(name: str) -> str:
    """A caller key of the usual form."""
    return checked(PREFIX + name.ljust(43, "0"))


#: By caller. It is looked for wherever it must not be.
KEYS = {name: key_of(f"{name}CanaryKey") for name in ("shop", "paused", "expiring", "small", "stripe", "whole")}

SOON = (datetime.now(UTC) + timedelta(days=10)).date().isoformat()


def document(origins: Mapping[str, str], change: Callable[[dict[str, Any]], None] | None = None) -> str:
    """The document that `make portal` shows, with more callers."""
    content: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text("utf-8"))
    secret = f"{SECRET}/versions/latest"
    content["connections"]["acme-billing"] |= {"origin": origins["appgregator"], "secret": secret}
    content["connections"]["acme-stripe"] = {
        "name": "ft-5", "connection_name": "stripe-2", "upstream": "stripe", "origin": origins["stripe"],
        "secret": secret, "mode": "test",
    }  # fmt: skip
    shop = content["callers"]["shop"]
    shop["credentials"][0]["key"] = {"id": "k1", "sha256": sha256(KEYS["shop"])}
    for name, more in {
        "paused": {"paused": True, "credentials": [{"key": {"id": "k1", "sha256": sha256(KEYS["paused"])}}]},
        "expiring": {"credentials": [{"key": {"id": "k1", "sha256": sha256(KEYS["expiring"]), "expires": SOON}}]},
    }.items():
        content["callers"][name] = shop | more
    content["callers"]["small"] = shop | {
        "limits": ["2/hour"],
        "credentials": [{"key": {"id": "k1", "sha256": sha256(KEYS["small"])}}],
    }
    content["callers"]["stripe"] = {
        "owner": "you",
        "credentials": [{"key": {"id": "k1", "sha256": sha256(KEYS["stripe"])}}],
        "limits": ["1000/minute"],
        "grants": [
            {"connection": "acme-billing", "operation": "invoices.create", "idempotency": "optional",
             "parameters": {"customer": {"required": True}, "metadata": None, "currency": None, "auto_advance": None},
             "response": ["id", "audit_id"]},
            {"connection": "acme-stripe", "operation": "invoices.create",
             "idempotency": {"from": "metadata[order_id]"},
             "parameters": {"customer": {"required": True}, "metadata[order_id]": {"required": True}},
             "response": ["id", "number", "status", "description", "hosted_invoice_url", "metadata", "audit_id"]},
            {"connection": "acme-stripe", "operation": "invoices.retrieve",
             "parameters": {"invoice": {"prefix": "in_"}}, "response": ["id", "status", "amount_due", "currency"]},
        ],
    }  # fmt: skip
    content["callers"]["whole"] = {
        "owner": "payments@acme.example",
        "credentials": [{"key": {"id": "k1", "sha256": sha256(KEYS["whole"])}}],
        "limits": ["1000/minute"],
        "budget": {"currency": "usd", "amount": 10_000_000, "per": "day"},
        "grants": [
            {"connection": "acme-stripe", "operation": "invoices.issue",
             "idempotency": {"prefix": "order-"},
             "amount": {"max": 50000, "currency": ["jpy", "kwd", "usd"]}, "lines": {"max": 5, "credit": True},
             "parameters": {"customer": {"prefix": "cus_"}, "days_until_due": {"required": True, "min": 1, "max": 60},
                            "collection_method": {"fixed": "send_invoice"}, "send": None, "description": None,
                            "lines[{i}][price]": None, "lines[{i}][metadata][sku]": None},
             "response": ["id", "number", "status", "total", "currency", "due_date", "hosted_invoice_url", "sent",
                          "audit_id"]},
        ],
    }  # fmt: skip
    if change:
        change(content)
    return yaml.dump(json.loads(json.dumps(content, default=str)), Dumper=_Plain, sort_keys=False)


class _Plain(yaml.SafeDumper):
    """Without anchors, which the document's format has not."""

    def ignore_aliases(self, data: object) -> bool:
        return True


@dataclass
class World:
    """The function, and what stands around it."""

    server: Server
    policy: Path
    origins: dict[str, str]
    upstream: Appgregator
    stripe: Stripe
    manager: SecretManager

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def rewrite(self, change: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Change the policy that the function reads, and wait until it goes by it."""
        text, before = document(self.origins, change), self._digest()
        if text == self.policy.read_text():
            return
        self.policy.write_text(text)
        until(lambda: self._digest() != before, every=0.2)  # it may be asked ten times a second

    def _digest(self) -> str:
        status, _, body = self.server.call("/-/me", None, key=KEYS["stripe"], method="GET")
        assert status == 200
        digest: str = json.loads(body)["policy"]
        return digest


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("world")
    with (
        SecretManager() as manager,
        Appgregator(keys=[UPSTREAM_KEY], accounts=None) as upstream,
        Stripe(keys=[UPSTREAM_KEY]) as stripe,
    ):
        manager.add(SECRET, UPSTREAM_KEY.encode())
        origins = {"appgregator": upstream.origin, "stripe": stripe.origin}
        server = launch(place, document(origins), SECRET_MANAGER_ENDPOINT=manager.address, POLICY_SECONDS="0.2")
        try:
            yield World(server, place / "policy.yaml", origins, upstream, stripe, manager)
        finally:
            server.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not on this machine. Install it: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make .venv/dev")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Tab:
    """One tab with the page in it, and all that it asked for and said."""

    page: Page
    root: str
    requests: list[Request] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def visit(self, path: str = "/portal") -> Tab:
        self.page.goto(self.root + path, wait_until="commit")
        self.page.get_by_label("Caller key").wait_for()
        return self

    def enter(self, caller: str = "shop") -> Tab:
        """From the link and a key to the form."""
        self.visit()
        self.page.get_by_label("Caller key").fill(KEYS[caller])
        self.page.get_by_role("button", name="Show what I may do").click()
        self.page.get_by_role("heading", name="You may").wait_for()
        return self

    def fill(self, *, key: str, customer: str = CUSTOMER, days: str = "30") -> Tab:
        self.page.get_by_label("Customer needed").fill(customer)
        self.page.get_by_label("Days until due").fill(days)
        self.page.get_by_label("Idempotency key needed").fill(key)
        return self

    def head(self, words: str) -> None:
        """Wait for the head of a verdict or of a result, by its first words."""
        self.page.get_by_role("heading", name=re.compile(f"^{words}")).wait_for()

    def send(self) -> Tab:
        """Press the first of the two buttons."""
        self.head("This would be raised")
        self.page.get_by_role("button", name="Raise this invoice").click()
        return self

    def raise_it(self) -> Tab:
        """Press both."""
        self.send()
        self.page.get_by_role("button", name="Yes, raise this invoice").click()
        self.head("Raised")
        return self

    def copied(self, name: str, words: str = "") -> str:
        """Copy a tool's recipe with the page's own button, once it has these words in it. Return what was copied."""
        self.page.locator(f"#tab-3-{name}").click()
        self.page.locator("[role=tabpanel] pre", has_text=words).wait_for()
        self.page.get_by_role("button", name="Copy", exact=True).click()
        self.page.get_by_text("Copied.", exact=True).wait_for()
        other = self.page.context.new_page()  # the page itself may not read the clipboard
        other.goto(self.root.replace("127.0.0.1", "localhost") + "/-/health")
        other.bring_to_front()
        text: str = other.evaluate("navigator.clipboard.readText()")
        return text

    def sent(self, *, trial: bool = False) -> list[Request]:
        """The calls that were made, real or tried."""
        return [
            one
            for one in self.requests
            if "/stripe/" in one.url and one.method == "POST" and ("validate_only" in one.url) == trial
        ]


@pytest.fixture
def tab(chromium: Browser, world: World) -> Iterator[Callable[..., Tab]]:
    opened: list[BrowserContext] = []

    def new(*, width: int = 1280, height: int = 900, **options: Any) -> Tab:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(PATIENCE * 1000)
        opened.append(context)
        made = Tab(context.new_page(), world.root)
        made.page.on("request", lambda request: made.requests.append(request))  # noqa: PLW0108 - takes no builtin
        made.page.on("console", lambda message: made.said.append(message.text))
        made.page.on("pageerror", lambda error: made.said.append(f"error: {error}"))
        return made

    yield new
    for context in opened:
        context.close()
