"""An upstream that says our key back, in whatever field: no caller reads it, and nothing of ours keeps it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, get_args
from urllib.parse import unquote

import pytest
from msgspec.structs import fields
from msgspec.structs import replace as replaced

from gateway.secrets import Secret
from gateway.upstreams.sending import _without
from policies.model import Outcome, Shape, Step
from policies.operations.invoices_create import FIELDS
from policies.outcomes import InvoiceSeen, Reply, awaiting
from policies.refusals import AwaitingApproval, OutcomeUnknown
from policies.upstreams import stripe
from sandbox.appgregator import FAULTS, Appgregator
from sandbox.stripe import Stripe
from tests.conftest import KEY, policy, sha256
from tests.test_approvals import ACTS, begun
from tests.test_finalize import DOCUMENT, ask
from tests.test_hostile_upstream import assert_no_key
from tests.test_issue import DOCUMENT as ISSUE
from tests.test_issue import SENT, issue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from msgspec.structs import FieldInfo

    from sandbox.server import Answer, Head
    from sandbox.upstream import Upstream
    from tests.conftest import Clock, Function

    _Base = Upstream
else:
    _Base = object

#: Letters and digits alone, so that it can stand in any id; each encoding differs from every other.
ECHOED: Final = "EchoedKey51NAbcd9"
_PERCENT: Final = "".join(f"%{byte:02X}" for byte in ECHOED.encode())
#: Members that we act on: with the key in one of them, no later step may be reached. All others are spoilt together.
ACTED_ON: Final = frozenset({"object", "id", "status", "currency", "customer", "code"})


class Echo(_Base):
    """An upstream with the key in its answers: in the members of these names, or in all but what we act on.

    An id or an address keeps its form, which we may look at.
    """

    names: frozenset[str] | None = frozenset()
    spoilt = 0

    def _answer(self, connection: int, head: Head, body: bytes) -> Answer:
        answer = super()._answer(connection, head, body)
        try:
            told = json.loads(answer.body)
        except ValueError:
            return answer
        headers = [f"Request-Id: req_{ECHOED}", f"Stripe-Account: {ECHOED}", *answer.headers]
        return replace(answer, body=json.dumps(self._with(told)).encode(), headers=tuple(headers))

    def _with(self, value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {inner: self._with(one, inner) for inner, one in value.items()}
        if isinstance(value, list):
            return [self._with(one, name) for one in value]
        if name not in self.names if self.names is not None else name in ACTED_ON:
            return value
        if value is not None and not isinstance(value, str):
            return value
        self.spoilt += 1
        text = value or ""
        if text.startswith("https://"):
            return f"https://dashboard.stripe.com/{_PERCENT}"
        return f"{text.partition('_')[0]}_{ECHOED}" if "_" in text[:9] else ECHOED


class EchoingStripe(Echo, Stripe):
    pass


class EchoingAppgregator(Echo, Appgregator):
    pass


@pytest.fixture
def echoing(clock: Clock) -> Iterator[EchoingStripe]:
    with EchoingStripe(keys=[ECHOED], clock=clock) as stripe:
        yield stripe


@pytest.fixture
def load(
    function: Callable[..., Function], echoing: EchoingStripe, memory: object, tmp_path: Path
) -> Callable[..., Function]:
    (tmp_path / "key").write_text(ECHOED)
    said = {"origin": echoing.origin, "secret": tmp_path / "key", "key": sha256(KEY)}
    said |= {
        "budget": "budget: {currency: usd, amount: 10000000, per: day}",
        "credit": "false",
        "lines": 50,
        "most": 500000,
    }
    # Every field that is answered at all.
    every = ", ".join(path for path in FIELDS if FIELDS[path] is Shape.SCALAR or "." not in path)

    def load(text: str) -> Function:
        text = text.replace("[id, status, total]", f"[{every}]").replace(", auto_advance: }}", "}}")
        return function(text.format(**said, currency="usd, eur"))

    return load


def assert_clean(loaded: Function, memory: object, *answers: Any) -> None:
    """No answer, no line of the record and nothing that the store keeps has the key."""
    about = loaded.post("/-/me?key=order-9", "", method="GET", media=None)
    assert about.status_code == 200
    texts = [loaded.record.text(), repr(vars(memory)), about.text]
    texts += [text for answer in answers for text in (answer.text, str(answer.headers))]
    assert_no_key(*texts, *map(unquote, texts), key=ECHOED)


EACH: Final = [
    pytest.param(None, id="all others"),
    *(pytest.param(frozenset({name}), id=name) for name in sorted(ACTED_ON)),
    pytest.param(frozenset({"status", "currency"}), id="status and currency"),
    pytest.param(frozenset({"id", "dashboard_url"}), id="id and address"),
]
by_member = pytest.mark.parametrize("names", EACH)


@by_member
@pytest.mark.parametrize("act", ACTS)
def test_key_in_an_answer_to_a_single_operation_goes_no_further(
    load: Callable[..., Function], echoing: EchoingStripe, memory: object, act: str, names: frozenset[str] | None
) -> None:
    loaded = load(DOCUMENT)
    invoice = begun(loaded, act)
    echoing.names = names
    assert_clean(loaded, memory, *(ACTS[act].call(loaded, invoice) for _ in range(2)))
    assert echoing.spoilt or not names or not names & {"id", "object"}


@pytest.mark.parametrize("fault", ["echo_key", "leak_key", "error_402", "error_500_created", "action_blocked"])
@pytest.mark.parametrize("act", ACTS)
def test_key_in_what_an_operation_fails_with_goes_no_further(
    load: Callable[..., Function], echoing: EchoingStripe, memory: object, act: str, fault: str
) -> None:
    loaded = load(DOCUMENT)
    invoice = begun(loaded, act)
    echoing.fail_at(ACTS[act].step, fault)
    echoing.names = None
    assert_clean(loaded, memory, *(ACTS[act].call(loaded, invoice) for _ in range(2)))


@pytest.mark.parametrize(
    ("decision", "names"),
    [
        *(pytest.param("approve", *one.values, id=f"approve-{one.id}") for one in EACH),
        ("reject", None),
        ("expire", None),
    ],
)
@pytest.mark.parametrize("act", ACTS)
def test_key_in_what_is_said_of_an_approval_goes_no_further(  # noqa: PLR0917 - the case, and who is in it
    load: Callable[..., Function],
    echoing: EchoingStripe,
    memory: object,
    act: str,
    decision: str,
    names: frozenset[str] | None,
) -> None:
    loaded = load(DOCUMENT)
    invoice = begun(loaded, act)
    for spoilt_at in ("asked", "told"):
        before = set(echoing.approvals)
        echoing.fail_at(ACTS[act].step, "approval")
        echoing.names = names if spoilt_at == "asked" else frozenset()
        key = f"order-{spoilt_at}"
        answers = [ACTS[act].call(loaded, invoice, key=key)]
        for approval in set(echoing.approvals) - before:
            echoing.decide(approval, decision)
        echoing.names = names
        answers += [ACTS[act].call(loaded, invoice, key=key) for _ in range(2)]
        assert_clean(loaded, memory, *answers)


@by_member
@pytest.mark.parametrize("held", [None, "create", "add_lines", "finalize", "send"])
def test_key_in_an_answer_to_a_whole_invoice_goes_no_further(
    load: Callable[..., Function],
    echoing: EchoingStripe,
    memory: object,
    held: str | None,
    names: frozenset[str] | None,
) -> None:
    loaded = load(ISSUE)
    if held == "create":
        echoing.fail_next("approval")
    elif held is not None:
        echoing.fail_at(held, "approval")
    for spoilt in (names, frozenset(), names):  # the second may get further than the first
        echoing.names = spoilt
        answer = issue(loaded, SENT, order="order-9")
        for approval, status in echoing.approvals.items():
            if status == "requires_review":
                echoing.decide(approval, "approve")
        assert_clean(loaded, memory, answer)


@by_member
@pytest.mark.parametrize("path", ["customers/", "invoices/"])
def test_key_in_an_answer_to_a_create_or_a_search_goes_no_further(
    load: Callable[..., Function], echoing: EchoingStripe, memory: object, path: str, names: frozenset[str] | None
) -> None:
    loaded = load(DOCUMENT)
    echoing.names = names
    form = {"customer": "cus_1"} if path == "invoices/" else {"email": "jenny@example.com"}
    answers = [ask(loaded, path, key="order-9", **form) for _ in range(2)]
    answers.append(ask(loaded, "customers/", "GET", email="jenny@example.com"))
    assert_clean(loaded, memory, *answers)


@pytest.mark.parametrize("names", [None, ACTED_ON | {"dashboard_url"}], ids=["all others", "acted on"])
@pytest.mark.parametrize("fault", sorted(FAULTS - {"slow", "hang", "trickle", "gzip_bomb", "oversize"}))
def test_key_in_any_answer_of_appgregator_goes_no_further(
    function: Callable[..., Function], memory: object, tmp_path: Path, fault: str, names: frozenset[str] | None
) -> None:
    (tmp_path / "key").write_text(ECHOED)
    with EchoingAppgregator(keys=[ECHOED], accounts={("ft-4", "stripe-1")}) as upstream:
        loaded = function(policy(upstream.origin, secret=f"file:{tmp_path / 'key'}"))
        upstream.names = names
        upstream.fail_next(fault)
        assert_clean(loaded, memory, *(loaded.post(Idempotency_Key="order-9") for _ in range(2)))


#: In place of the key that is said back, once that one is no longer taken.
NEXT: Final = "TheNextKey52Mzyxw8"


@pytest.mark.parametrize("act", ACTS)
def test_key_that_was_rotated_goes_no_further_either(
    load: Callable[..., Function], echoing: EchoingStripe, memory: object, tmp_path: Path, act: str
) -> None:
    loaded = load(DOCUMENT)
    invoice = begun(loaded, act)
    (tmp_path / "key").write_text(NEXT)
    echoing.accept(NEXT)
    echoing.names = None
    answers = [
        ask(loaded, "customers/", "GET", email="jenny@example.com"),  # which meets the rotation, and sees both keys
        ACTS[act].call(loaded, invoice),
    ]
    assert_clean(loaded, memory, *answers)
    assert echoing.spoilt
    assert [answer.status_code for answer in answers] == [200, 200]


TEXTS: Final = [field for field in fields(Reply) if str in {field.type, *get_args(field.type)}]


@pytest.mark.parametrize("field", TEXTS, ids=lambda field: field.name)
def test_no_text_of_a_reply_keeps_the_key(field: FieldInfo) -> None:
    reply = replaced(Reply(Outcome.UNKNOWN), **{field.name: f"a {ECHOED} b"})
    clean = _without(Secret.of("name", "1", ECHOED.encode()), Step("key"), reply)
    assert_no_key(repr(clean), key=ECHOED)
    assert clean == replaced(reply, **{field.name: field.default})


def test_refusal_that_had_the_key_still_says_what_happened() -> None:
    secret = Secret.of("name", "1", ECHOED.encode())
    reply = awaiting(Step("key", resumes=True), "apreq_1", f"https://dashboard.stripe.com/{_PERCENT}")
    clean = _without(secret, Step("key", resumes=True), reply)
    assert clean.approval == "apreq_1"
    assert clean.refusal is not None
    assert clean.refusal.problem("audit") == AwaitingApproval(retry_after=300).problem("audit")


def test_approval_that_is_named_by_the_key_is_for_the_operator() -> None:
    secret, step = Secret.of("name", "1", ECHOED.encode()), Step("key", resumes=True)
    clean = _without(secret, step, awaiting(step, f"apreq_{ECHOED}", "https://dashboard.stripe.com/a"))
    assert (clean.approval, clean.mute) == (None, True)
    assert isinstance(clean.refusal, OutcomeUnknown)
    assert "https://dashboard.stripe.com/a" in clean.refusal.detail


@pytest.mark.parametrize(
    ("status", "currency", "total", "seen"),
    [
        ("open", "usd", 1200, InvoiceSeen("open", currency="usd", total=1200)),
        ("draft", "eur", -1200, InvoiceSeen("draft", currency="eur", total=-1200)),  # a credit
        (ECHOED, ECHOED, ECHOED, InvoiceSeen("")),
        ("Open", "USD", "1200", InvoiceSeen("")),
        (["open"], {"usd": 1}, True, InvoiceSeen("")),
        ("deleted", "usdollar", 10**12 + 1, InvoiceSeen("")),  # what is deleted says so in another member
        ("open\n", "usd\n", 1200.5, InvoiceSeen("")),
    ],
)
def test_what_is_told_of_an_invoice_is_never_the_upstreams_own_text(
    status: object, currency: object, total: object, seen: InvoiceSeen
) -> None:
    assert stripe._of({"status": status, "currency": currency, "total": total}) == seen
