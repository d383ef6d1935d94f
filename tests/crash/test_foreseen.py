"""What is foreseen of a call is what becomes of it.

Each call is tried and then made, in this process, through the function as it is loaded. Policies, calls and the
upstream's answers are drawn by lot, half of them at the edge of something. Only the clock, the store, the transport and
the record's sink are the test's own.
"""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from msgspec.structs import replace

from gateway.allowance import Allowance
from gateway.chain import Audit
from gateway.secrets import Mounted, SecretManager, Secrets
from gateway.stores.firestore import Firestore
from gateway.stores.memory import Memory
from gateway.stores.redis import Redis
from gateway.upstreams.sending import Upstreams
from gateway.upstreams.transport import LostError, NotSentError, Received
from policies import document
from policies.idempotency import LEASE
from tests.conftest import FORM, KEY, Clock, Function, policy, sha256
from tests.crash.forms import SEED, form
from tests.gateway.conftest import Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gateway.stores import Store
    from policies.dialect import Outgoing
    from policies.model import PolicySet


#: What one call at the edge of a bound may say of it.
BOUNDS = {
    "days_until_due": ("{min: 1, max: 60}", ["0", "1", "2", "59", "60", "60", "61"]),
    "description": ("{max_length: 20}", ["x" * 19, "x" * 20, "x" * 21, ""]),
    "currency": ("{one_of: [usd, eur]}", ["usd", "USD", "chf"]),
    "metadata[order_id]": ("{prefix: o-}", ["o-1", "o-2", "o-3", "o-4", "o-", "p-1", "o-undefined"]),
    "collection_method": ("{fixed: send_invoice}", ["send_invoice", "charge_automatically"]),
    "footer": ("", ["thanks"]),
}
#: Seconds between two calls: half of them at the edge of a bucket, a window, a lease, or a credential.
MOMENTS = [*[0.0] * 10, 0.001, 1 / 128, 0.5, 1, 129 / 128, 4.999, 5, LEASE - 0.001, LEASE, 60, 60 * 129 / 128, 3600]
#: When the tests' credential with a last day stops working, in unix seconds.
LAST = 1_800_000_000


class KilledError(BaseException):
    """The instance is killed while the call is under way."""


class Scripted:
    """Takes the place of the transport. What it answers is drawn by lot, what it is sent is kept."""

    def __init__(self, lots: random.Random) -> None:
        self._lots = lots
        self.sent: list[Outgoing] = []

    def send(self, outgoing: Outgoing, _key: object, _seconds: float) -> Received:
        self.sent.append(outgoing)
        if "approval_requests" in outgoing.url:
            return Received(200, b'{"status":"pending"}')
        match self._lots.choices(range(9), weights=[10, 1, 1, 1, 1, 1, 1, 4, 0.5])[0]:
            case 0:
                return Received(200, self._invoice(outgoing))
            case 1:
                raise LostError("reset")
            case 2:
                raise NotSentError("refused")
            case 3:
                return Received(400, b'{"error":{"type":"invalid_request_error","code":"resource_missing"}}')
            case 4:
                said = b'{"error":{"type":"card_error","message":"no"}}'
                return Received(402, said, {"idempotent-replayed": "true"})
            case 5:
                return Received(500, b'{"error":{"type":"api_error"}}')
            case 6:
                return Received(422, b'{"error":"no"}')
            case 7:
                waits = b'{"error":{"code":"approval_required","approval_request":{"id":"apreq_1234567890"}}}'
                return Received(400, waits)
            case _:
                raise KilledError

    def _invoice(self, outgoing: Outgoing) -> bytes:
        amount = self._lots.choice([1, 99, 100, 101])
        made = {"id": f"in_{len(self.sent)}abcdefgh", "object": "invoice", "amount_due": amount, "total": amount}
        made |= {"currency": "usd", "customer": "cus_1", "status": "draft", "livemode": False}
        if outgoing.method == "GET":
            made["id"] = outgoing.url.partition("?")[0].rpartition("/")[2]
        return json.dumps(made).encode()


class InForce:
    """Takes the place of the policies that are read again."""

    def __init__(self) -> None:
        self.policies: PolicySet | None = None

    def current(self, _deadline: float) -> PolicySet:
        assert self.policies is not None
        return self.policies


def drawn(lots: random.Random, key: Path) -> tuple[str, list[str]]:
    """Draw a policy document, and return it with the parameters that it grants."""
    upstream = lots.choice(["stripe", "appgregator"])
    names = lots.sample(sorted(BOUNDS), lots.randint(1, len(BOUNDS)))
    if "collection_method" in names and "days_until_due" not in names:  # Stripe takes it with this alone
        names.append("days_until_due")
    bounds = {name: BOUNDS[name][0] for name in names}
    text = policy(
        "http://127.0.0.1:9", upstream=upstream, secret=f"file:{key}",
        parameters="\n".join(
            [lots.choice(["customer: {required: true}", "customer: {prefix: cus_}", "customer:"]),
             *(f"'{name}': {bound}" for name, bound in bounds.items())]
        ),
        idempotency=lots.choice(
            ["optional", "required", "{required: true, prefix: o-}", "{required: true, for: 100h}",
             *(["{from: 'metadata[order_id]'}"] if "metadata[order_id]" in names else [])]
        ),
        limits=lots.choice(["3/second", "2/second, 9/minute", "1/second, 4/minute", "100/minute"]),
        response=lots.choice(["id, status, amount_due", "id, status, audit_id", "status, customer"]),
        retrieve=lots.choice([None, "{invoice: }"]) if upstream == "stripe" else None,
        credentials=[
            f"key: {{id: k2, sha256: {sha256('csk_tied')}, connection: billing}}",
            f"key: {{id: k3, sha256: {sha256('csk_last_day')}, expires: 2027-01-15}}",
        ],
    )  # fmt: skip
    if "metadata[order_id]" not in names:
        text = text.replace('        record: ["metadata[order_id]"]\n', "")
    if upstream == "appgregator" and lots.random() < 0.9:  # at Stripe a create spends nothing
        budget = f"budget: {{currency: usd, amount: {lots.choice([100, 101, 200, 500])}, per: hour}}"
        text = text.replace("    owner: tests\n", f"    owner: tests\n    {budget}\n", 1)
        text = text.replace(
            "        idempotency:", f"        amount: {{max: {lots.choice([50, 99, 100])}}}\n        idempotency:", 1
        )
    if lots.random() < 0.3:
        text = text.replace("ceiling: 100000/second", "ceiling: 4/second")
    if lots.random() < 0.05:
        text = text.replace("    owner: tests\n", "    owner: tests\n    paused: true\n", 1)
    return text, names


def asked(lots: random.Random, granted: list[str], step: int) -> dict[str, Any]:
    """Draw the WSGI environment of a call, half of it within one unit of a bound."""
    pairs = [("customer", lots.choice(["cus_1"] * 20 + ["cus_2"] * 3 + ["", "dus_1"]))] if lots.random() < 0.97 else []
    names = lots.sample(granted, min(len(granted), lots.choice([0, 0, 1, 1, 2])))
    pairs += [(name, lots.choice(BOUNDS[name][1])) for name in names]
    if lots.random() < 0.02:
        pairs.append(("colour", "red"))
    body = urlencode(pairs).encode()
    place = "name=ft-4&connection_name=stripe-1" if lots.random() < 0.97 else "name=ft-4&connection_name=stripe-2"
    path, query, method = lots.choice(
        [("/stripe/invoices/", place, "POST")] * 6
        + [("/ft-4/stripe-1/v1/invoices", "", "POST"), ("/v1/invoices", "", "POST")]
        + [("/stripe/invoices/in_12345678", place, "GET"), ("/stripe/nothing", place, "POST")][: lots.choice([0, 1, 2])]
    )
    call = {
        "REQUEST_METHOD": method,
        "RAW_URI": f"{path}?{query}" if query else path,
        "body": b"" if method == "GET" else body,
        "CONTENT_TYPE": FORM if lots.random() < 0.99 else "text/plain",
        "HTTP_X_API_KEY": lots.choice([KEY] * 30 + ["csk_tied"] * 8 + ["csk_last_day"] * 4 + ["nobody"]),
    }
    if lots.random() < 0.8:
        key = f"o-{step // 12}{lots.choice('abc')}"
        call["HTTP_IDEMPOTENCY_KEY"] = lots.choice([key] * 20 + ["o-", "o-null", " x", f'"{key}"'])
    return call


class World:
    """The function as it is loaded, on a clock of its own, with a store and a transport of the test's."""

    def __init__(self, loaded: Function, store: Callable[[Clock], Store], lots: random.Random, key: Path) -> None:
        self.clock, self.lots, self.key = Clock(LAST - 3600.0), lots, key
        self.app, self._make = loaded.app, store
        self.inside: dict[str, Any] = loaded.app.wsgi_app.__globals__
        self.told: Counter[str] = Counter()
        self.granted: list[str] = []
        self.renew()

    def renew(self) -> None:
        """Begin with an empty store and an empty record."""
        clock = self.clock
        secrets = Secrets(manager=SecretManager(), mounted=Mounted(), clock=clock)
        self.transport, self.policies, self.sink = Scripted(self.lots), InForce(), Lines()
        self.inside["gate"] = replace(
            self.inside["gate"],
            store=self._make(clock),
            secrets=secrets,
            upstreams=Upstreams(self.transport, secrets, clock, clock.tick),  # type: ignore[arg-type]  # its one method
            audit=Audit(self.sink, policy="p" * 64, clock=clock, monotonic=clock),
            policies=self.policies,
            allowance=Allowance(iter(range(10**9)).__next__),
        )

    def change(self) -> None:
        """Put another policy into force."""
        text, self.granted = drawn(self.lots, self.key)
        self.policies.policies = document.read(text, "policy.yaml")

    def answer(self, call: Mapping[str, Any], *, tried: bool) -> tuple[int, dict[str, str], Any]:
        """Make a call, or try it."""
        target: str = call["RAW_URI"]
        target += ("&" if "?" in target else "?") + f"validate_only={'true' if tried else 'false'}"
        body: bytes = call["body"]
        environ = {**call, "RAW_URI": target, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        del environ["body"]
        status, headers = "", {}

        def start_response(said: str, sent: list[tuple[str, str]]) -> None:
            nonlocal status, headers
            status, headers = said, dict(sent)

        told = json.loads(b"".join(self.app.wsgi_app(environ, start_response)))
        self.sink.lines.clear()
        return int(status[:3]), headers, told

    def compare(self, step: int) -> None:
        """Try a call, make it, and hold the one to the other."""
        call = asked(self.lots, self.granted, step)
        status, headers, foreseen = self.answer(call, tried=True)
        assert not self.transport.sent
        try:
            got, told, came = self.answer(call, tried=False)
        except KilledError:
            got, told, came = 0, {}, {}
        sent, self.transport.sent = self.transport.sent, []
        error = foreseen.get("error", foreseen)
        would = error.pop("would", None)
        foreseen.pop("validate_only", None)
        self.told[f"{would} {error.get('reason') or error.get('code') or status}" if would != "send" else "send"] += 1
        where = (step, call, foreseen, got, came)
        if would == "send":
            shown, first = foreseen["would_send"], sent[0]
            assert (status, shown["method"], shown["url"]) == (200, first.method, first.url), where
            assert shown["body"].encode() == (first.body or b""), where
            keys = shown["headers"].get("Idempotency-Key"), first.headers.get("Idempotency-Key")
            assert keys[0] == keys[1] or str(keys[0]).startswith("(one"), where
            if got and got not in {424, 502, 503, 504}:
                assert headers.get("RateLimit") == told.get("RateLimit"), where
            return
        assert would in {"replay", "refuse", "wait"}, where
        assert not [one for one in sent if "approval_requests" not in one.url], where
        assert (status, without_ids(headers), without_ids(foreseen)) == (got, without_ids(told), without_ids(came)), (
            where
        )


#: What no two answers share: an id is each one's own, and the sentence of a Stripe error ends with it.
OWN = {"audit_id", "message", "Countersign-Audit-Id", "Request-Id", "Content-Length"}


def without_ids(told: Mapping[str, Any]) -> dict[str, Any]:
    left = {name: value for name, value in told.items() if name not in OWN}
    return left | {"error": without_ids(left["error"])} if isinstance(left.get("error"), dict) else left


def compared(
    function: Callable[..., Function], tmp_path: Path, store: Callable[[Clock], Store], calls: int, *, seed: int
) -> Counter[str]:
    """Compare so many calls; a policy serves 40 of them, a store 400."""
    key = tmp_path / "key"
    world = World(function(), store, random.Random(f"foresight {seed}"), key)
    for step in range(calls):
        if step % 400 == 0:
            key.write_text("sandbox-upstream-key")
            world.renew()
        if step % 40 == 0:
            world.change()
        if step % 400 == 380:  # from here on nobody can read the key, until a store begins
            key.unlink()
        world.compare(step)
        world.clock.tick(world.lots.choice(MOMENTS))
        if world.clock() > LAST + 3600:
            world.clock.now = LAST - 3600.0
            world.renew()
            world.change()
    return world.told


def test_what_is_foreseen_is_what_becomes_of_the_call(function: Callable[..., Function], tmp_path: Path) -> None:
    told = compared(function, tmp_path, Memory, 1500, seed=SEED)
    assert told["send"] > 200, told
    assert len(told) >= 15, told
    assert {"replay 200", "wait budget-spent", "wait limit-reached", "wait awaiting-approval"} <= told.keys(), told


@pytest.mark.stores
def test_what_is_foreseen_with_redis_is_what_becomes_of_the_call(
    function: Callable[..., Function], tmp_path: Path, redis_url: str
) -> None:
    def empty(clock: Clock) -> Redis:
        store = Redis(redis_url, clock)
        store._client.ask("FLUSHALL")
        return store

    assert len(compared(function, tmp_path, empty, 400, seed=SEED + 1)) >= 10


@pytest.mark.stores
def test_what_is_foreseen_with_firestore_is_what_becomes_of_the_call(
    function: Callable[..., Function], tmp_path: Path, firestore_url: str
) -> None:
    assert len(compared(function, tmp_path, lambda clock: Firestore(firestore_url, clock, seconds=10), 80, seed=2)) >= 5


@pytest.mark.figures
def test_no_call_in_a_hundred_thousand_comes_to_something_else_than_was_foreseen(
    function: Callable[..., Function], tmp_path: Path
) -> None:
    calls = form(short=2_000, long=100_000)
    told = compared(function, tmp_path, Memory, calls, seed=SEED)
    print(f"\nforesight: {calls:,} calls tried and then made, 0 came to something else")
    print("  " + ", ".join(f"{count:,} {what}" for what, count in told.most_common()))


def test_comparison_notices_a_store_that_foresees_too_much(function: Callable[..., Function], tmp_path: Path) -> None:
    class Kind(Memory):
        """Does not look at the ledger when it peeks."""

        def peek(self, grant: Any, place: str) -> Any:
            return super().peek(
                type(grant)(**{n: getattr(grant, n) for n in grant.__struct_fields__} | {"ledger_key": None}), place
            )

    with pytest.raises(AssertionError):
        compared(function, tmp_path, Kind, 400, seed=SEED)
