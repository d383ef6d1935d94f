"""The one place where a grant is made, and the order in which it says no."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from policies import access
from policies.concealed import Concealed
from policies.refusals import (
    BodyMalformed,
    CallerPaused,
    ConnectionNotGranted,
    IdempotencyKeyInvalid,
    IdempotencyKeyMissing,
    ParameterInvalid,
    ParameterMissing,
    ParameterNotGranted,
    Refusal,
)
from tests.policies.conftest import call, decided, only_caller, read, written

if TYPE_CHECKING:
    from policies.model import Call, Grant

ROOT = Path(__file__).parents[2]


def refusal_of(asked: Call, text: str | None = None) -> Refusal:
    policy_set = read(text or written("customer: {required: true, prefix: cus_}", idempotency="required"))
    with pytest.raises(Refusal) as refusal:
        access.decide(policy_set, only_caller(policy_set), asked)
    return refusal.value


def test_grant_carries_what_later_stages_need() -> None:
    text = written("customer:\ncollection_method: {fixed: send_invoice}")
    policy_set = read(text)
    caller = only_caller(policy_set)
    grant = access.decide(policy_set, caller, replace(call({"customer": "cus_1"}, key="k"), validate_only=True))
    assert grant.caller is caller
    assert grant.entitlement.connection.id == "billing"
    assert grant.parameters == {"collection_method": "send_invoice", "customer": "cus_1"}
    assert grant.form == b"collection_method=send_invoice&customer=cus_1"
    assert grant.policy == policy_set.digest
    assert grant.validate_only


def test_json_call_goes_upstream_as_a_form() -> None:
    policy_set = read(written("customer:\nmetadata:"))
    body = b'{"metadata": {"order": 7}, "customer": "cus_1"}'
    grant = access.decide(policy_set, only_caller(policy_set), call(body=body, media="json"))
    assert grant.form == b"customer=cus_1&metadata%5Border%5D=7"


@pytest.mark.parametrize(
    "place",
    [
        {"name": "nowhere"},
        {"connection_name": "nowhere"},
        {"name": "stripe-1", "connection_name": "ft-4"},
        {"connection_name": "stripe-2"},
        {"name": "FT-4"},
        {"name": "ft-4 "},
        {"operation": "invoices.remove"},
    ],
    ids=str,
)
def test_connection_of_another_caller_and_none_at_all_are_refused_alike(place: dict[str, str]) -> None:
    """stripe-2 exists, and another caller may use it."""
    text = written().replace(
        "callers:\n",
        "  other-billing:\n    name: ft-4\n    connection_name: stripe-2\n    upstream: appgregator\n"
        "    origin: https://upstream.example\n    secret: file:key\ncallers:\n",
    )
    text += """\
  other:
    owner: tests
    credentials: [{key: {id: k1, sha256: %s}}]
    limits: [1/minute]
    grants: [{connection: other-billing, operation: invoices.create, parameters: {customer: }, response: [id]}]
""" % ("ab" * 32)  # braces are YAML's here
    policy_set = read(text)
    app = next(caller for caller in policy_set.callers.values() if caller.id == "app")
    assert access.decide(policy_set, app, call({"customer": "cus_1"}))
    with pytest.raises(ConnectionNotGranted) as refusal:
        access.decide(policy_set, app, call({"customer": "cus_1"}, **place))  # type: ignore[arg-type]  # all are texts
    assert refusal.value.problem("id") == ConnectionNotGranted().problem("id")


#: A caller of two connections, one of whose keys is tied to the first of them.
TWO = """\
connections:
  billing: {name: ft-4, connection_name: stripe-1, upstream: stripe, secret: file:one}
  refunds: {name: ft-4, connection_name: stripe-2, upstream: stripe, secret: file:two}
callers:
  app:
    owner: tests
    credentials:
      - key: {id: tied, sha256: TIED, connection: billing}
      - google: {email: app@acme.example, connection: billing}
      - key: {id: free, sha256: FREE}
    limits: [1/minute]
    grants:
      - {connection: billing, operation: invoices.create, parameters: {customer: }, response: [id]}
      - {connection: refunds, operation: invoices.create, parameters: {customer: }, response: [id]}
      - {connection: refunds, operation: invoices.retrieve, parameters: {invoice: }, response: [id]}
""".replace("TIED", "ab" * 32).replace("FREE", "cd" * 32)


def connection_for(credential: str, name: str, connection_name: str) -> str:
    """Return the connection that a credential's call is granted."""
    policy_set = read(TWO)
    caller = next(caller for caller in policy_set.callers.values() if caller.credential == credential)
    asked = call({"customer": "cus_1"}, key="k", name=name, connection_name=connection_name)
    return access.decide(policy_set, caller, asked).entitlement.connection.id


@pytest.mark.parametrize("credential", ["tied", "google:app@acme.example"])
def test_tied_credential_may_use_its_connection_named_or_not_and_no_other(credential: str) -> None:
    assert connection_for(credential, "ft-4", "stripe-1") == "billing"
    assert connection_for(credential, "", "") == "billing"
    for connection_name in ("stripe-2", "nowhere"):
        with pytest.raises(ConnectionNotGranted) as refusal:
            connection_for(credential, "ft-4", connection_name)
        assert refusal.value.problem("id") == ConnectionNotGranted().problem("id")
        assert refusal.value.note == f"{credential} of app is tied to billing"


def test_tied_credential_may_not_do_at_its_connection_what_its_caller_may_do_at_another() -> None:
    policy_set = read(TWO)
    tied = next(caller for caller in policy_set.callers.values() if caller.credential == "tied")
    for name, connection_name in (("", ""), ("ft-4", "stripe-1"), ("ft-4", "stripe-2")):
        asked = call({"invoice": "in_1"}, name=name, connection_name=connection_name, operation="invoices.retrieve")
        with pytest.raises(ConnectionNotGranted):
            access.decide(policy_set, tied, asked)


def test_other_credentials_of_its_caller_are_not_tied() -> None:
    assert [connection_for("free", "ft-4", name) for name in ("stripe-1", "stripe-2")] == ["billing", "refunds"]


def test_credential_that_is_not_tied_must_name_its_connection() -> None:
    with pytest.raises(ConnectionNotGranted) as refusal:
        connection_for("free", "", "")
    assert refusal.value.detail == (
        "This address names no connection, and your credential is not tied to one. Write /NAME/CONNECTION_NAME/v1/... "
        "instead of /v1/..., or ask the operator of Countersign to tie your credential to a connection."
    )


def test_caller_on_hold_is_refused_before_anything_else_of_its_call_is_judged() -> None:
    text = written(idempotency="required").replace("    limits:", "    paused: true\n    limits:")
    for asked in (call({"customer": "cus_1"}, key="k"), call(body=b"%", name="nowhere"), call(name="")):
        assert type(refusal_of(asked, text)) is CallerPaused
    assert decided(text.replace("paused: true", "paused: false"), {"customer": "cus_1"}, "k")


def test_first_thing_wrong_is_the_one_that_is_said() -> None:
    """Whoever may not use a connection learns nothing of what it takes."""
    wrong: list[tuple[Call, type[Refusal]]] = [
        (call(body=b"%", name="nowhere", key=","), ConnectionNotGranted),
        (call(body=b"%", key=","), BodyMalformed),
        (call({"auto_advance": "true"}, key=","), ParameterNotGranted),
        (call({"customer": "x"}, key=","), ParameterInvalid),
        (call({}, key=","), ParameterMissing),
        (call({"customer": "cus_1"}, key=","), IdempotencyKeyInvalid),
        (call({"customer": "cus_1"}), IdempotencyKeyMissing),
    ]
    assert [type(refusal_of(asked)) for asked, _ in wrong] == [kind for _, kind in wrong]


# ---------------------------------------------------------------- what makes two calls the same


def grant_of(body: bytes, media: str = "form", parameters: str = "customer:\nmetadata:", key: str = "k") -> Grant:
    policy_set = read(written(parameters))
    return access.decide(policy_set, only_caller(policy_set), call(body=body, media=media, key=key))


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"metadata[10]=b&metadata[9]=a&customer=cus_1", "form"),
        (b"customer=cus%5F1&metadata%5B9%5D=a&metadata%5b10%5d=b", "form"),
        (b'{"metadata": {"9": "a", "10": "b", "11": null}, "customer": "cus_1"}', "json"),
    ],
)
def test_fingerprint_sees_through_the_way_of_writing(body: bytes, media: str) -> None:
    first = grant_of(b"customer=cus_1&metadata[9]=a&metadata[10]=b")
    again = grant_of(body, media)
    assert again.fingerprint == first.fingerprint
    assert again.form == first.form


SPELT = "metadata:\nauto_advance:\ncurrency:\ndays_until_due:\nexpand:"


@pytest.mark.parametrize("more", ["", "\ncollection_method: {fixed: send_invoice}"])
@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"auto_advance=False&currency=USD&days_until_due=30&expand[]=a&expand[]=b", "form"),
        (b"auto_advance=0&&currency=Usd&days_until_due=30&expand%5B%5D=a&expand[]=b&", "form"),
        (b"\xef\xbb\xbfexpand[1]=b&expand[0]=a&days_until_due=30&currency=usd&auto_advance=FALSE", "form"),
        (b'{"auto_advance": 0, "currency": "USD", "days_until_due": 3e1, "expand": ["a", "b"]}', "json"),
        (b'{"auto_advance": "False", "currency": "usd", "days_until_due": 30.0, "expand": ["a", "b"]}', "json"),
        (b'{"auto_advance":false,"currency":"usd","days_until_due":30,"expand":["a","b"],"metadata":{"a":""}}', "json"),
    ],
)  # fmt: skip
def test_spellings_of_one_call_are_one_call(body: bytes, media: str, more: str) -> None:
    first = grant_of(
        b"auto_advance=false&currency=usd&days_until_due=30&expand[0]=a&expand[1]=b",
        parameters=SPELT + more,
    )
    again = grant_of(body, media, parameters=SPELT + more)
    assert (again.form, again.fingerprint, again.ledger_key) == (first.form, first.fingerprint, first.ledger_key)


@pytest.mark.parametrize(
    "body", [b"customer=cus_2", b"customer=cus_1&metadata[a]=b", b"", b"metadata[customer]=cus_1", b"customer=cus_1_"]
)
def test_fingerprint_tells_other_parameters_apart(body: bytes) -> None:
    assert grant_of(body).fingerprint != grant_of(b"customer=cus_1").fingerprint


def test_fingerprint_survives_a_change_of_the_fixed_values() -> None:
    """A replay days later meets a newer policy, and must still find its first answer."""
    prints = {
        grant_of(b"customer=cus_1", parameters=f"customer:{fixed}").fingerprint
        for fixed in ("", "\ndays_until_due: {fixed: 14}", "\ndays_until_due: {fixed: 30}")
    }
    assert len(prints) == 1


def test_what_the_policy_fixes_is_the_same_call_sent_or_left_out() -> None:
    parameters = "customer:\ndays_until_due: {fixed: 14}"
    sent, left_out = (
        grant_of(body, parameters=parameters) for body in (b"customer=cus_1&days_until_due=14", b"customer=cus_1")
    )
    assert (sent.fingerprint, sent.form) == (left_out.fingerprint, left_out.form)


def ledger_keys(*replacements: tuple[str, str], key: str | None = "k", account: str = "stripe-1") -> str | None:
    text = written()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    policy_set = read(text)
    asked = call({"customer": "cus_1"}, key=key, connection_name=account)
    return access.decide(policy_set, only_caller(policy_set), asked).ledger_key


def test_ledger_key_differs_by_caller_connection_and_key() -> None:
    keys = {
        ledger_keys(),
        ledger_keys(("app:", "app2:")),
        ledger_keys(("stripe-1", "stripe-2"), account="stripe-2"),
        ledger_keys(key="k2"),
        ledger_keys(key="K"),
    }
    assert len(keys) == 5
    assert None not in keys


#: What an operator tidies, in a document; and under which connection_name it is called then.
TIDIED = {
    "a connection's label": ((("billing", "invoices-of-acme"),), "stripe-1"),
    "a caller's label": ((("  app:\n", "  shop:\n    formerly: app\n"),), "stripe-1"),
    "what callers write": (
        (("stripe-1\n", "acme\n    formerly: {name: ft-4, connection_name: stripe-1}\n"),),
        "acme",
    ),
    "the upstream": ((("upstream: appgregator", "upstream: stripe"),), "stripe-1"),
    "the secret": ((("secrets/key", "secrets/another"),), "stripe-1"),
}


@pytest.mark.parametrize(("replacements", "account"), TIDIED.values(), ids=TIDIED.keys())
def test_ledger_key_outlives_what_an_operator_tidies(replacements: tuple[tuple[str, str], ...], account: str) -> None:
    assert ledger_keys(*replacements, account=account) == ledger_keys()


def test_ledger_key_outlives_a_rotated_credential_and_other_parameters() -> None:
    text = written()
    first = decided(text, {"customer": "cus_1"}, "k").ledger_key
    assert decided(text.replace("id: k1", "id: k2"), {"customer": "cus_2"}, "k").ledger_key == first


def test_call_without_a_key_has_no_place_in_the_ledger() -> None:
    assert ledger_keys(key=None) is None


# ---------------------------------------------------------------- the idempotency key


@pytest.mark.parametrize("key", ["k", "!", "~", "a b", "order-7/2027:x", "k" * 255, '"quoted"', "a  b", "+-."])
def test_idempotency_key_of_printable_ascii_is_taken(key: str) -> None:
    assert decided(written(idempotency="required"), {"customer": "cus_1"}, key).ledger_key


@pytest.mark.parametrize(
    "key",
    [
        "",
        " ",
        " k",
        "k ",
        "a,b",
        ",",
        "k" * 256,
        "a\tb",
        "a\nb",
        "k\n",
        "a\x00b",
        "\x7f",
        "é",
        "ключ",
        "a\u00a0b",
        "\ud800",
    ],
)
@pytest.mark.parametrize("mode", ["required", "optional"])
def test_any_other_idempotency_key_is_refused(key: str, mode: str) -> None:
    assert type(refusal_of(call({"customer": "cus_1"}, key=key), written(idempotency=mode))) is IdempotencyKeyInvalid


FROM = written(
    "customer:\nmetadata[order_id]: {required: false}\nmetadata:", idempotency='{from: "metadata[order_id]", for: 96h}'
)


def test_key_from_a_parameter_is_its_value_whatever_the_header_says() -> None:
    """SDKs send a fresh header with every try, and would undo what the policy is for."""
    asked = {"customer": "cus_1", "metadata[order_id]": "Bestellung № 7, Zürich"}
    keys = {decided(FROM, asked, header).ledger_key for header in (None, "a", "b", "not, valid")}
    assert len(keys) == 1
    assert None not in keys
    assert decided(FROM, {**asked, "metadata[order_id]": "8"}).ledger_key not in keys


@pytest.mark.parametrize("asked", [{}, {"metadata[other]": "7"}])
def test_key_from_a_parameter_that_is_not_sent_is_missed(asked: dict[str, str]) -> None:
    refusal = refusal_of(call(asked, key="k"), FROM)
    assert type(refusal) is IdempotencyKeyMissing
    assert refusal.parameter == "metadata[order_id]"
    assert refusal.detail.startswith("Send metadata[order_id]: ")


def asked_as_json(body: bytes) -> Call:
    return call(body=body, media="json")


def test_key_from_a_parameter_is_one_however_its_number_is_written() -> None:
    keys = {
        key_of(FROM, asked_as_json(b'{"customer": "cus_1", "metadata": {"order_id": %b}}' % written))
        for written in (b"1001", b'"1001"', b"1001.0", b"1.001e3")
    }
    assert keys == {decided(FROM, {"customer": "cus_1", "metadata[order_id]": "1001"}).ledger_key}


@pytest.mark.parametrize("written", [b"1001.5", b"1e-3"])
def test_number_with_a_fraction_is_never_a_key(written: bytes) -> None:
    """It has many spellings, and each would be a key of its own. As text it has one."""
    refusal = refusal_of(asked_as_json(b'{"customer": "cus_1", "metadata": {"order_id": %b}}' % written), FROM)
    assert type(refusal) is ParameterInvalid
    assert refusal.detail == (
        "metadata[order_id] names this call, so it cannot be a number with a fraction. Send it as text, in quotes."
    )
    assert key_of(FROM, asked_as_json(b'{"customer": "cus_1", "metadata": {"order_id": "%b"}}' % written))


@pytest.mark.parametrize("written", [b"true", b"false"])
def test_truth_is_never_a_key(written: bytes) -> None:
    """It is the same for every order. Without it, two orders were one invoice."""
    refusal = refusal_of(asked_as_json(b'{"customer": "cus_1", "metadata": {"order_id": %b}}' % written), FROM)
    assert type(refusal) is IdempotencyKeyInvalid
    assert refusal.detail == (
        "metadata[order_id] names this call, so it cannot be true or false. Send what tells your orders apart."
    )


def test_number_with_a_fraction_is_text_in_a_text_and_refused_by_name_elsewhere() -> None:
    grant = grant_of(b'{"metadata": {"hours": 1.50}}', "json")
    assert grant.form == b"metadata%5Bhours%5D=1.50"
    refusal = refusal_of(asked_as_json(b'{"days_until_due": 1.5}'), written("days_until_due:"))
    assert refusal.detail == "days_until_due must be a whole number, such as 30."


def test_blank_parameter_is_no_key() -> None:
    refusal = refusal_of(call({"customer": "cus_1", "metadata[order_id]": ""}), FROM)
    assert (type(refusal), refusal.parameter) == (IdempotencyKeyMissing, "metadata[order_id]")


IDEMPOTENCY = ("required", "{prefix: order-}", "{prefix: o, required: false}", "{for: 7d}")


def key_of(text: str, asked: Call) -> str | None:
    policy_set = read(text)
    return access.decide(policy_set, only_caller(policy_set), asked).ledger_key


@pytest.mark.parametrize("mode", ["required", "optional"])
def test_id_of_a_webhook_is_its_key_whatever_the_header_says(mode: str) -> None:
    signed = replace(call({"customer": "cus_1"}), credentials={"webhook-id": Concealed("msg_1")})
    text = written(idempotency=mode)
    keys = {key_of(text, replace(signed, idempotency_key=header)) for header in (None, "a", "b", "not, valid")}
    assert len(keys) == 1
    assert None not in keys
    assert key_of(text, replace(signed, credentials={"webhook-id": Concealed("msg_2")})) not in keys
    assert key_of(text, replace(signed, credentials={"webhook-id": Concealed("msg_1")})) in keys


def test_id_of_a_webhook_is_the_same_key_by_either_name_of_its_header() -> None:
    keys = {
        key_of(written(), replace(call({"customer": "cus_1"}), credentials={name: Concealed("msg_1")}))
        for name in ("webhook-id", "svix-id")
    }
    assert len(keys) == 1
    assert None not in keys


@pytest.mark.parametrize("header", ["webhook-id", "svix-id"])
def test_id_of_a_webhook_that_names_nothing_is_refused(header: str) -> None:
    """It is filled in by a tool, too. A prefix is for the keys of callers, who do not choose this one."""
    signed = replace(call({"customer": "cus_1"}), credentials={header: Concealed("order-undefined")})
    refusal = refusal_of(signed, written())
    assert type(refusal) is IdempotencyKeyInvalid
    assert refusal.detail.startswith(f"The {header} header contains undefined, so the automation that sent it")
    named = replace(signed, credentials={header: Concealed("msg_1")})
    assert key_of(written(idempotency="{prefix: order-}"), named) == key_of(written(), named)


def test_prefix_does_not_change_which_key_it_is() -> None:
    """A prefix that is written later must not turn a repeated call into a new one."""
    keys = {decided(written(idempotency=i), {"customer": "cus_1"}, "order-1").ledger_key for i in IDEMPOTENCY}
    assert len(keys) == 1


def test_key_of_a_caller_stays_when_the_caller_gets_another_name() -> None:
    asked = call({"customer": "cus_1"}, key="k")
    shop = written().replace("  app:\n", "  shop:\n")
    first = shop.replace("    owner:", "    formerly: app\n    owner:")
    assert key_of(first, asked) == key_of(written(), asked) != key_of(shop, asked)


def test_id_of_a_webhook_is_never_the_key_of_a_header() -> None:
    asked = call({"customer": "cus_1"}, key="msg_1")
    signed = replace(asked, credentials={"webhook-id": Concealed("msg_1")})
    assert key_of(written(), signed) != key_of(written(), asked)
    spelt = replace(asked, idempotency_key="webhook,msg_1")
    assert type(refusal_of(spelt, written(idempotency="required"))) is IdempotencyKeyInvalid


def test_grant_that_takes_its_key_from_a_parameter_does_so_for_a_webhook() -> None:
    asked = call({"customer": "cus_1", "metadata[order_id]": "7"})
    keys = {key_of(FROM, replace(asked, credentials={"webhook-id": Concealed(name)})) for name in ("msg_1", "msg_2")}
    assert keys == {key_of(FROM, asked)}


# ---------------------------------------------------------------- nobody else


def calls_of(name: str, tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ((isinstance(node.func, ast.Name) and node.func.id == name)
             or (isinstance(node.func, ast.Attribute) and node.func.attr == name))
    ]  # fmt: skip


def test_only_decide_makes_a_grant() -> None:
    sources = [ROOT / "main.py"]
    for package in ("policies", "gateway", "console", "sandbox", "bench"):
        sources += (ROOT / package).rglob("*.py")
    makers = {path.relative_to(ROOT).as_posix() for path in sources if calls_of("Grant", ast.parse(path.read_text()))}
    assert makers == {"policies/access.py"}


def test_key_is_among_the_faults_so_that_all_is_mended_at_once() -> None:
    text = written("customer: {required: true}", idempotency="{required: true, prefix: order-}")
    for key, reason in ((None, "idempotency-key-missing"), ("order-null", "idempotency-key-invalid")):
        refusal = refusal_of(call({"colour": "red"}, key=key), text)
        assert type(refusal) is ParameterNotGranted
        assert [(one.parameter, one.kind.reason) for one in refusal.faults] == [
            ("colour", "parameter-not-granted"), ("customer", "parameter-missing"), ("Idempotency-Key", reason),
        ]  # fmt: skip
        assert refusal.faults[2].accepts == {"prefix": "order-"}
        assert refusal.detail.endswith(" 2 more things are wrong.")
