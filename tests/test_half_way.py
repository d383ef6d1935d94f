"""What docs/half-way.md says of a whole invoice that stops half way, row by row."""

from __future__ import annotations

import json
import os
import re
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.request import Request, urlopen

import pytest

from policies.idempotency import LEASE
from policies.refusals import RecordUnavailable, StoreUnavailable
from sandbox.__main__ import ROOT, UPSTREAM_KEY
from sandbox.stripe import KEPT_SECONDS, Customer, Stripe
from tests.conftest import KEY
from tests.test_docs import blocks
from tests.test_issue import SENT, TARGET, issue, written
from tests.tools import CURL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from werkzeug.test import TestResponse

    from gateway.stores.memory import Memory
    from tests.conftest import Clock, Function, Server

    #: Something that happens to a call, and no longer to the next one.
    Happens = Callable[["World"], AbstractContextManager[None]]

PAGE: Final = ROOT / "docs" / "half-way.md"
#: What lies at Stripe: of each invoice its status, how many lines it has, and how often it was mailed.
LIES: Final = {
    "nothing": [],
    "an empty draft": [("draft", 0, 0)],
    "a draft with its lines": [("draft", 3, 0)],
    "the invoice": [("open", 3, 1)],
    "the invoice, of another draft": [("open", 3, 1)],
    "the invoice, not mailed": [("open", 3, 0)],
    "the invoice, not mailed yet": [("open", 3, 0)],
    "what somebody made of it": [("open", 4, 0)],
    "a void invoice": [("void", 3, 0)],
}


class World:
    """The function in front of Stripe, and what may happen to both."""

    def __init__(self, loaded: Function, stripe: Stripe, clock: Clock, patch: pytest.MonkeyPatch) -> None:
        self.loaded, self.stripe, self.clock, self.patch = loaded, stripe, clock, patch

    def call(self) -> TestResponse | None:
        """Make the call; None if the instance dies over it."""
        try:
            return issue(self.loaded, SENT)
        except KeyboardInterrupt:
            return None

    def lies(self) -> list[tuple[str, int, int]]:
        """Return what lies at Stripe."""
        return [(made["status"], len(made["lines"]["data"]), made.get("mailed", 0)) for made in self.stripe.made]

    def by_hand(self, method: str, step: str = "", body: str = "") -> None:
        """Be somebody who changes the invoice at Stripe."""
        (made,) = self.stripe.made
        url = f"{self.stripe.origin}/v1/invoices/{made['id']}{step}"
        headers = {"Authorization": f"Bearer {UPSTREAM_KEY}", "Content-Type": "application/x-www-form-urlencoded"}
        with urlopen(Request(url, body.encode() or None, headers, method=method)) as answer:
            assert answer.status == 200


def fault(name: str, step: str = "", times: int = 1) -> Happens:
    """Have Stripe fail at a step, or at the create."""

    @contextmanager
    def happens(world: World) -> Iterator[None]:
        if step:
            world.stripe.fail_at(step, name, times)
        else:
            world.stripe.fail_next(name, times)
        yield

    return happens


def busy(step: str = "") -> Happens:
    return fault("error_429", step)


def customer(known: Customer) -> Happens:
    @contextmanager
    def happens(world: World) -> Iterator[None]:
        world.stripe.customers["cus_1"] = known
        yield

    return happens


def here(what: str, value: Any) -> Happens:
    """Have something of our own be otherwise: raise, where that is an exception."""

    def fails(*_: object, **__: object) -> None:
        raise value

    @contextmanager
    def happens(world: World) -> Iterator[None]:
        with world.patch.context() as patch:
            patch.setattr(what, fails if isinstance(value, BaseException) else value)
            yield

    return happens


STOPS: Final = {
    "Stripe is busy before there is a draft": busy(),
    "the draft's answer is lost": fault("close_after", times=3),
    "Stripe is busy at the lines": busy("add_lines"),
    "a line is refused": fault("error_400", "add_lines"),
    "the answer to the lines is lost": fault("close_after", "add_lines"),
    "tax, or what the customer owes, lifts the sum above `amount.max`": customer(Customer(tax=30)),
    "the customer has no e-mail address": customer(Customer(email=None)),
    "Stripe is busy at finalizing": busy("finalize"),
    "finalizing is refused": fault("error_402", "finalize"),
    "the answer to finalizing is lost": fault("close_after", "finalize"),
    "Stripe fails to finalize, and keeps that failure for a day": fault("error_500", "finalize"),
    "Stripe is busy at mailing": busy("send"),
    "mailing is refused": fault("error_400", "send"),
    "the 25 seconds of a call end between two steps": here("gateway.upstreams.sending.LEAST_SECONDS", 100.0),
    "the ledger cannot be written between two steps": here(
        "gateway.stores.memory.Memory.advance", StoreUnavailable(retry_after=1)
    ),
    "the record cannot be written between two steps": here("gateway.record.Record.step", RecordUnavailable()),
    "the instance is killed": here("policies.issuing._judged", KeyboardInterrupt()),
}


def stop(world: World, happens: Happens = busy("finalize")) -> None:  # noqa: B008 - it holds nothing
    """Make the call, which stops half way."""
    with happens(world), world.patch.context() as patch:
        patch.setattr("gateway.upstreams.sending.PAUSES", ())
        answer = world.call()
    assert answer is not None
    assert answer.status_code == 504, answer.text


def as_left(world: World) -> None:
    stop(world)


def with_a_line(world: World) -> None:
    stop(world)
    world.by_hand("POST", "/add_lines", "lines[0][amount]=100")


def deleted(world: World) -> None:
    stop(world)
    world.by_hand("DELETE")


def finalized(world: World) -> None:
    stop(world)
    world.by_hand("POST", "/finalize")


def finalized_with_a_line(world: World) -> None:
    with_a_line(world)
    world.by_hand("POST", "/finalize")


def voided(world: World) -> None:
    finalized(world)
    world.by_hand("POST", "/void")


def unnamed_for_a_day(world: World) -> None:
    stop(world, fault("close_after"))
    world.clock.tick(KEPT_SECONDS + LEASE)


def mailed_a_day_ago(world: World) -> None:
    stop(world, fault("close_after", "send"))
    world.clock.tick(KEPT_SECONDS + LEASE)


FINDS: Final[dict[str, Callable[[World], None]]] = {
    "the draft, as it was left": as_left,
    "a draft to which somebody added a line": with_a_line,
    "no draft: somebody deleted it": deleted,
    "somebody finalized it, as it was asked for": finalized,
    "somebody finalized it, with other lines": finalized_with_a_line,
    "somebody finalized it, and voided it": voided,
    "a day has passed, and no answer ever named a draft": unnamed_for_a_day,
    "a day has passed, and it may have been mailed": mailed_a_day_ago,
}


def rows(heading: str) -> dict[str, list[str]]:
    """Return the rows of the table whose first heading this is, by their first cell."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\| ?---.*\n((?:\|.*\n)+)", PAGE.read_text("utf-8"), re.MULTILINE)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    return {first: rest for first, *rest in cells}


def judge(world: World, answer: TestResponse | None, told: str, lies: str | None = None) -> None:
    """See that a caller was told what a cell says, and what lies at Stripe then."""
    if told == "no answer":
        assert answer is None
    else:
        (status, reason), *_ = re.findall(r"(\d{3})(?: `([a-z-]+)`)?", told)
        assert answer is not None
        content = answer.json or {}
        assert (answer.status_code, content.get("reason", "")) == (int(status), reason), answer.text
        assert ("sent: false" in told) == (content.get("sent") is False)
        assert "alert" not in told or world.loaded.record.lines()[-1]["severity"] == "ALERT"
    assert lies is None or world.lies() == LIES[lies]


def document_for(stripe: Stripe, folder: Path) -> str:
    (folder / "key").write_text(UPSTREAM_KEY)
    return written(stripe, folder)


@pytest.fixture
def world(  # noqa: PLR0917 - fixtures
    function: Callable[..., Function],
    stripe: Stripe,
    clock: Clock,
    memory: Memory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    return World(function(document_for(stripe, tmp_path)), stripe, clock, monkeypatch)


def test_every_row_of_the_page_is_tested() -> None:
    assert list(rows("what happens")) == list(STOPS)
    assert list(rows("what it finds")) == list(FINDS)


@pytest.mark.parametrize("what", STOPS)
def test_stops_half_way_and_goes_on_as_the_page_says(world: World, what: str) -> None:
    told, lies, again = rows("what happens")[what]
    with STOPS[what](world):
        first = world.call()
    judge(world, first, told, lies)
    *earlier, last = again.split(", then ")
    for one in earlier:
        judge(world, world.call(), one)
        world.clock.tick(LEASE)
    second = world.call()
    judge(world, second, f"{last}, sent: false" if "sent: false" in told else last)
    if "the invoice" in last:
        assert world.lies() == LIES["the invoice"]
    elif "the same answer" in last:
        assert first is not None
        assert second is not None
        assert (second.json, world.lies()) == (first.json, LIES[lies])
    else:
        assert world.lies() == LIES["nothing"]


@pytest.mark.parametrize("what", FINDS)
def test_comes_back_to_what_the_page_says(world: World, what: str) -> None:
    told, lies = rows("what it finds")[what]
    FINDS[what](world)
    judge(world, world.call(), told, lies)
    world.call()
    assert [line["severity"] for line in world.loaded.record.lines()].count("ALERT") <= 1


def test_its_caller_sees_that_an_invoice_was_begun(world: World) -> None:
    stop(world)
    target = f"{TARGET}&validate_only=true"
    form = "&".join(f"{name}={value}" for name, value in SENT.items())
    tried = world.loaded.post(target, form, Idempotency_Key="order-1").json or {}
    assert (tried["would"], tried["key"]["state"]) == ("send", "unknown")
    assert tried["key"]["detail"].startswith("An invoice was begun with this idempotency key")
    (became,) = (world.loaded.post("/-/me?key=order-1", "", method="GET", media=None).json or {})["became"]
    assert became["state"] == "unknown"
    assert became["text"].startswith("The invoice was begun just now, and it is not known whether it was finished.")


@CURL
@pytest.mark.stores
def test_commands_of_the_page_show_what_was_begun_and_finish_it(
    server: Callable[..., Server], stripe: Stripe, redis_url: str, tmp_path: Path
) -> None:
    running = server(document_for(stripe, tmp_path), STORE=redis_url)
    environ = {"PATH": os.environ["PATH"], "STORE": redis_url, "KEY": KEY, "URL": f"http://127.0.0.1:{running.port}"}

    def pasted(script: str) -> str:
        done = subprocess.run(["sh", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
        return done.stdout

    send, look, listing = blocks(PAGE, "sh")
    stripe.fail_at("finalize", "error_429")
    stopped = json.loads(pasted(send))
    assert stopped["reason"] == "outcome-unknown"
    (draft,) = stripe.made
    assert json.loads(pasted(look))["became"][0]["state"] == "unknown"
    (line,) = pasted(listing).splitlines()[1:]
    assert f"has begun {draft['id']}" in line
    shown = pasted(f"./countersign ledger show {line.split()[0]}")
    assert f"has begun {draft['id']} and may have come as far as the step finalize." in shown
    assert "--not-created" not in shown
    assert "finalize" in pasted(f"./countersign why {stopped['audit_id']} {running.record.path}")
    assert json.loads(pasted(send))["id"] == draft["id"]
    assert [(made["status"], made["total"]) for made in stripe.made] == [("open", 37500)]
    assert pasted(listing) == "No call is awaiting a decision.\n"
