"""What a caller is told of itself: all it may do, in words, and nothing of others or of what lies behind."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from console import schemas
from console.describe import MANY, _grant, became_of, describe, entitlements, example
from console.recipes.filling import Asked, fill
from policies import document, keynames
from policies.model import WHOLESALE, Answer, Entitlement, Entry, Kind, Parameter, Rule, Seen, State
from policies.operations import OPERATIONS, meanings, words
from policies.parameters import fault, template_of
from tests.console.example import FOLDER, NOW, STANDINGS, caller, me, policies, written


def test_example_that_the_page_is_built_on_is_what_is_told() -> None:
    """If it has its reason: `python -m tests.console.example` writes it anew."""
    assert (FOLDER / "me.json").read_text("utf-8") == written()


def test_nothing_is_told_of_where_an_upstream_is_or_of_what_opens_it() -> None:
    said = json.dumps(me())
    for hidden in ("api.stripe.com", "secrets/", "stripe-live", "0a8b1c2d", "acme/"):
        assert hidden not in said


# ---------------------------------------------------------------- the words


def sendable(parameter: Parameter) -> bool:
    return parameter.kind not in {Kind.OBJECT, Kind.ARRAY} or parameter.unsets


@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_that_may_be_granted_as_a_group_has_words(operation: str) -> None:
    """The rest may say its path."""
    parameters = OPERATIONS[operation].parameters
    wordless = [
        path
        for path, parameter in parameters.items()
        if parameter.risk in WHOLESALE and sendable(parameter) and path not in words(operation)
    ]
    assert wordless == []
    assert words(operation).keys() <= parameters.keys()
    assert meanings(operation).keys() <= OPERATIONS[operation].fields.keys()


def test_words_are_written_for_people() -> None:
    for operation in OPERATIONS:
        for path, (label, means, _) in words(operation).items():
            assert re.fullmatch(r"[A-Z][^.]{2,40}", label), path
            assert re.fullmatch(r"[A-Za-z].*[.]", means), path
            assert not re.search(r"\b(parameter|header|JSON|please|invalid)\b", means), path
        assert all(text.endswith(".") for text in meanings(operation).values())


def test_a_name_that_the_policy_chose_is_its_own_label() -> None:
    fields = {one["path"]: one for one in next(iter(me()["fields"].values()))}
    assert fields["metadata[cost_center]"]["label"] == "cost_center"
    assert fields["metadata[{key}]"]["label"] == "Your own data"
    assert fields["auto_advance"]["label"] == fields["auto_advance"]["means"] == "auto_advance"


# ---------------------------------------------------------------- the fields

NUMBERS = st.builds(
    Rule,
    path=st.just("customer"),
    kind=st.sampled_from([Kind.INTEGER, Kind.TIMESTAMP]),
    minimum=st.none() | st.integers(0, 500),
    maximum=st.none() | st.integers(500, 10_000),
)
TEXTS = st.builds(
    Rule,
    path=st.just("customer"),
    kind=st.just(Kind.STRING),
    max_length=st.integers(8, 5000),
    prefix=st.none() | st.text("abc_", min_size=1, max_size=8),
    one_of=st.none() | st.frozensets(st.text("abc", min_size=1, max_size=8), min_size=1),
)


@given(NUMBERS)
def test_example_of_a_number_passes_the_rule(rule: Rule) -> None:
    value = example(rule, "30")
    assert value is not None
    assert fault(rule, value) is None


@pytest.mark.parametrize("kind", [Kind.BOOLEAN, Kind.CURRENCY, Kind.STRING])
def test_example_of_any_other_kind_is_one_of_it_whatever_the_catalogue_says(kind: Kind) -> None:
    rule = Rule("customer", kind)
    assert fault(rule, example(rule, "  ") or "") is None


@given(TEXTS, st.sampled_from(["", "cus_MQqeLuPp19Qbk8"]))
def test_example_of_a_text_passes_the_rule_if_anything_does(rule: Rule, usual: str) -> None:
    value = example(rule, usual)
    if value is None:
        assert rule.one_of is not None
        assert all(fault(rule, one) for one in rule.one_of)
    else:
        assert fault(rule, value) is None


DOCUMENT = """
connections:
  acme: {name: ft-4, connection_name: stripe-1, upstream: stripe, secret: file:key}
callers:
  app:
    owner: tests
    credentials: [key: {id: k1, sha256: %s}]
    limits: [1/minute]
    grants:
      - {connection: acme, operation: %s, %s, response: [%s]}
"""


def entitled(
    operation: str = "invoices.create",
    grant: str = "parameters: {customer: }",
    response: str = "id, metadata, audit_id",
) -> Entitlement:
    (found,) = document.read(DOCUMENT % ("0" * 64, operation, grant, response), "policy.yaml").callers.values()
    (one,) = found.entitlements.values()
    return one


def test_bounds_of_a_whole_invoice_are_told() -> None:
    bounds = "parameters: {customer: }, amount: {max: 500, currency: [usd]}, lines: {max: 3}"
    told = _grant("g", entitled("invoices.issue", bounds))
    assert (told["amount"], told["lines"]) == ({"max": 500, "currency": ["usd"]}, {"max": 3, "credit": False})
    assert told["required"] == ["customer", "currency"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_examples_of_the_catalogue_pass_it(operation: str) -> None:
    groups = ", ".join(sorted(risk.value for risk in WHOLESALE))
    named = ", ".join(f"{name}: " for name in re.findall(r"\{(\w+)\}", OPERATIONS[operation].path))
    entitlement = entitled(operation, f"groups: [{groups}], parameters: {{{named}}}", "audit_id")
    for path, rule in entitlement.rules.items():
        said = words(operation)[path].example
        if rule.kind in {Kind.OBJECT, Kind.ARRAY}:
            assert said == ""
        else:
            assert fault(rule, said) is None, path
            assert example(rule, said) == said
            assert keynames.fault(said, "") is None, path


def test_every_field_says_what_its_rule_does() -> None:
    """The page and the API description know no other rules than these."""
    grants = {one["id"]: one for one in me()["grants"]}
    told = me()["fields"]
    for entitlement in entitlements(caller()):
        grant = grants[f"{entitlement.connection.id}:{entitlement.operation.id}"]
        fields = {one["path"]: one for one in told[grant["fields"]]}
        assert fields.keys() == entitlement.rules.keys()
        for path, rule in entitlement.rules.items():
            field = fields[path]
            assert field["kind"] == rule.kind.value
            assert field.get("min") == rule.minimum
            assert field.get("max") == rule.maximum
            assert field.get("prefix") == rule.prefix
            assert field.get("fixed") == rule.fixed
            assert field.get("max_length") == rule.max_length
            assert field.get("unsets", False) == rule.unsets
            assert frozenset(field.get("one_of", ())) == (rule.one_of or frozenset())
            template = template_of(entitlement.operation, path)
            assert template is not None
            assert field["risk"] == entitlement.operation.parameters[template].risk.value


def test_what_every_call_must_send_comes_first() -> None:
    for fields in me()["fields"].values():
        needed = [field["required"] for field in fields]
        assert needed == sorted(needed, reverse=True)
    of_retrieve = me()["fields"][me()["grants"][1]["fields"]]
    assert [(one["path"], one["required"]) for one in of_retrieve] == [("invoice", True)]
    by_parameter = me()["fields"][me()["grants"][2]["fields"]]
    assert [one["path"] for one in by_parameter if one["required"]] == ["customer", "metadata[order_id]"]


# ---------------------------------------------------------------- whose and how much


def test_tied_credential_sees_its_connection_alone() -> None:
    said = describe(policies(), caller("k2"), now=NOW, standings=())
    assert [grant["connection"]["id"] for grant in said["grants"]] == ["acme-sandbox"]
    assert said["credential"] == {"id": "k2", "kind": "key", "expires": None, "tied": "acme-sandbox"}
    assert "acme-billing" not in json.dumps(said)


def test_google_identity_is_told_its_address() -> None:
    said = describe(policies(), replace(caller(), credential="google:ann@acme.example"), now=NOW, standings=())
    assert (said["credential"]["kind"], said["credential"]["id"]) == ("google", "ann@acme.example")


def test_paused_caller_is_told_that_and_all_it_may_do() -> None:
    said = describe(policies(), replace(caller(), paused=True), now=NOW, standings=STANDINGS)
    assert said == {**me(), "paused": True, "operator": None}


def test_what_is_left_is_null_and_says_why_where_it_cannot_be_read() -> None:
    said = describe(policies(), caller(), now=NOW, standings=None, missing="store-unavailable")
    assert (said["standings"], said["standings_missing"]) == (None, "store-unavailable")
    assert said["grants"] == me()["grants"]


def test_ceiling_tells_no_number_and_a_full_one_when_there_is_room() -> None:
    full = replace(STANDINGS[3], remaining=0, reset=3)
    (said,) = describe(policies(), caller(), now=NOW, standings=[full])["standings"]
    assert (said["of"], said["left"], said["more"]) == (None, 0, {"amount": None, "at": NOW + 3})
    assert "20" not in said["text"]


def test_fifty_grants_of_two_hundred_fields_are_told_one_at_a_time_and_small() -> None:
    (first, *_) = entitlements(caller())
    rules = {f"metadata[n{number}]": Rule(f"metadata[n{number}]", Kind.STRING) for number in range(200)}
    many = {
        (f"ft-{number}", "stripe-1", "invoices.create"): replace(
            first, connection=replace(first.connection, id=f"c{number}", name=f"ft-{number}"), rules=rules
        )
        for number in range(50)
    }
    whose = replace(caller(), entitlements=many)
    listed = describe(policies(), whose, now=NOW, standings=())
    assert len(listed["grants"]) == 50 > MANY
    assert {one["fields"] for one in listed["grants"]} == {None}
    assert listed["fields"] == {}
    one = describe(policies(), whose, now=NOW, standings=(), grant="c7:invoices.create")
    assert [grant["id"] for grant in one["grants"] if grant["fields"]] == ["c7:invoices.create"]
    assert [len(fields) for fields in one["fields"].values()] == [200]
    whole = describe(policies(), whose, now=NOW, standings=(), whole=True)
    assert len({grant["fields"] for grant in whole["grants"]}) == len(whole["fields"]) == 1
    assert len(msgspec.json.encode(whole)) < 100_000


# ---------------------------------------------------------------- what became of a key

ENTRY = Entry(State.SENT, "me", "app", "acme", "invoices.create", "f", "w", "", sent=1000.0, lease_until=1030.0)
PLACED = entitled()


def told(state: State = State.SENT, *, later: float = 60, **members: object) -> dict[str, object]:
    entry = replace(ENTRY, state=state, place=PLACED.connection.place, **members)
    return became_of(PLACED, Seen(entry, 1000 + later), now=NOW, place=PLACED.connection.place)


def test_what_was_raised_is_told_as_far_as_it_is_granted_today() -> None:
    answer = Answer(200, b'{"id":"in_1","status":"open","metadata":{"a":"b"}}')
    said = told(State.SUCCEEDED, later=7200, answer=answer)
    assert (said["state"], said["when"]) == ("raised", NOW - 7200)
    assert said["answer"] == {"id": "in_1", "metadata": {"a": "b"}}
    assert said["text"] == (
        "The invoice was raised 2 hours ago. The same call with this key brings back the same answer, and does nothing "
        "new."
    )


ACCOUNT = PLACED.connection.place


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ("elsewhere live", f"{ACCOUNT} live", "elsewhere"),
        (f"{ACCOUNT} test", f"{ACCOUNT} live", "elsewhere"),
        (ACCOUNT, f"{ACCOUNT} live", "elsewhere"),
        (f"{ACCOUNT} live", ACCOUNT, "elsewhere"),
        (f"{ACCOUNT} live", f"{ACCOUNT} live", "raised"),
    ],
)
def test_what_was_raised_at_another_account_or_with_other_data_is_not_told(then: str, now: str, said: str) -> None:
    entry = replace(ENTRY, state=State.SUCCEEDED, place=then, answer=Answer(200, b'{"id":"in_1"}'))
    told = became_of(PLACED, Seen(entry, 1060), now=NOW, place=now)
    assert told["state"] == said
    assert ("in_1" in json.dumps(told)) is ("answer" in told) is (said == "raised")


@pytest.mark.parametrize("members", [{"approval": "areq_1"}, {"id": "in_1", "step": "lines"}])
def test_what_is_open_at_another_account_is_not_said_to_go_on_here(members: dict[str, str]) -> None:
    entry = replace(ENTRY, state=State.UNKNOWN, place=f"{ACCOUNT} test", **members)
    told = became_of(PLACED, Seen(entry, 90_000), now=NOW, place=f"{ACCOUNT} live")
    assert told["state"] == "unknown"
    assert "the invoice may exist. Do not use another key" in told["text"]


@pytest.mark.parametrize(
    ("state", "members", "said"),
    [
        (State.SUCCEEDED, {"answer": Answer(200, b'{"id":"in_1"}')}, "unavailable"),
        (State.UNKNOWN, {"approval": "areq_1"}, "unavailable"),
        (State.UNKNOWN, {}, "unavailable"),
        (State.SENT, {}, "running"),
        (State.REJECTED, {"answer": Answer(402, b"{}")}, "refused"),
        (State.FREE, {}, "free"),
    ],
)
def test_where_a_call_would_go_today_is_not_known_and_what_does_not_rest_on_it_is_told(
    state: State, members: dict[str, object], said: str
) -> None:
    entry = replace(ENTRY, state=state, **members)
    told = became_of(PLACED, Seen(entry, 1005), now=NOW, place=None)
    assert (told["state"], told["when"]) == (said, NOW - 5)
    assert "answer" not in told


def test_why_it_was_refused_is_told_in_the_words_of_then() -> None:
    problem = b'{"title":"No","detail":"The upstream refused it.","reason":"upstream-rejected","status":402,"code":"x"}'
    said = told(State.REJECTED, answer=Answer(402, problem))
    assert said["state"] == "refused"
    assert said["refusal"] == {"title": "No", "detail": "The upstream refused it.", "reason": "upstream-rejected"}


@pytest.mark.parametrize(
    ("state", "later", "members", "said", "words"),
    [
        (State.SENT, 5, {}, "running", "is under way"),
        (State.SENT, 31, {}, "unknown", "the invoice may exist. Do not use another key"),
        (State.UNKNOWN, 5, {}, "unknown", "the invoice may exist. Do not use another key"),
        (State.UNKNOWN, 90_000, {"approval": "areq_1"}, "waiting", "waits for a person's approval"),
        (State.FREE, 60, {"refused": True}, "free", "You may use this key again"),
    ],
)
def test_what_is_known_of_a_key_and_what_to_do_is_told(
    state: State, later: float, members: dict[str, object], said: str, words: str
) -> None:
    found = told(state, later=later, **members)
    assert found["state"] == said
    assert words in str(found["text"])


def test_key_that_was_never_seen_is_told_with_for_how_long_keys_are_remembered() -> None:
    said = became_of(PLACED, None, now=NOW)
    assert (said["grant"], said["state"]) == ("acme:invoices.create", "never")
    assert said["text"] == "No invoice of yours was raised with this key. Settled calls are remembered for 3 days."


def test_what_the_path_holds_is_not_in_the_body() -> None:
    for operation in ("invoices.finalize", "invoices.void"):
        one = entitled(operation, "parameters: {invoice: {prefix: in_}, 'expand[{i}]': }", "id")
        for schema in (schemas.nested(one), schemas.flat(one)):
            assert "invoice" not in schema["properties"]
            assert "invoice" not in schema.get("required", ())


def test_recipe_for_a_delete_deletes_and_no_other_pretends_to() -> None:
    text = DOCUMENT % ("0" * 64, "invoices.delete", "parameters: {invoice: }", "id")
    policies = document.read(text, "policy.yaml")
    [caller] = policies.callers.values()
    described = describe(policies, caller, now=0, standings=[], whole=True)
    written = {one["id"]: one["text"] for one in fill(Asked(), root="https://c.example", described=described)}
    assert "--request DELETE" in written.pop("curl")
    assert not any(written.values())
