"""A document that says what it means is read; any other is refused with file, line and key."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies import access, document
from policies.document import MAX_SIGNERS
from policies.idempotency import RETENTION
from policies.model import DocumentError, Idempotency, Kind, PolicySet, Proof, Shape, Step
from policies.operations import OPERATIONS
from policies.operations.invoices_create import OPERATION as INVOICES_CREATE
from policies.signing import UNDATED_SECONDS
from policies.upstreams import UPSTREAMS
from tests.conftest import policy
from tests.policies.conftest import by_kind, call, documents, entitlement, everybody, only_caller, read, written
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
DOCUMENTS = ROOT / "policies" / "documents"
SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

#: A document that is right; every wrong one of the table below changes lines of it.
RIGHT = f"""\
connections:
  billing:
    name: ft-4
    connection_name: stripe-1
    upstream: appgregator
    origin: https://upstream.example
    secret: projects/acme/secrets/key/versions/latest
    ceiling: 20/second
callers:
  app:
    owner: payments@acme.example
    credentials:
      - key: {{id: k1, sha256: {SHA}, expires: 2027-03-01}}
    limits: [30/minute, 2000/day]
    grants:
      - connection: billing
        operation: invoices.create
        idempotency: required
        parameters:
          customer:
          metadata[order_id]:
        response: [id, status, audit_id]
        record: ["metadata[order_id]"]
"""
LINES = RIGHT.splitlines()
#: What is said of a webhook that is signed by the written scheme.
HMAC = "secret: file:x, scheme: hmac, header: X-Sig, encoding: hex"


def line_of(start: str) -> int:
    [number] = [number for number, line in enumerate(LINES, 1) if line.strip().startswith(start)]
    return number


def changed(line: int, *new: str) -> str:
    """Put other lines in the place of one, in its column; none at all removes it."""
    old = LINES[line - 1]
    column = old[: len(old) - len(old.lstrip())]
    return "\n".join([*LINES[: line - 1], *(column + text for text in new), *LINES[line:]]) + "\n"


def problem(text: str) -> str:
    with pytest.raises(DocumentError) as error:
        document.read(text, "acme.yaml")
    return str(error.value)


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("operation", ["invoices.finalize", "invoices.send", "invoices.issue"])
@pytest.mark.parametrize("said", ["optional", "{required: false}"])
def test_call_in_several_steps_needs_a_key(operation: str, said: str) -> None:
    named = "customer" if operation == "invoices.issue" else "invoice"
    text = written(f"{named}:", idempotency=said).replace("invoices.create", operation)
    text = text.replace("upstream: appgregator", "upstream: stripe").replace("id, status, customer", "id")
    with pytest.raises(DocumentError, match="takes several steps, which only a key holds together"):
        read(text)


def test_item_names_its_invoice_or_the_grant_is_an_error() -> None:
    text = written("customer:").replace("invoices.create", "invoiceitems.create")
    text = text.replace("upstream: appgregator", "upstream: stripe")
    with pytest.raises(DocumentError, match="every call names invoice, so none could pass"):
        read(text)


@pytest.mark.parametrize("path", sorted(DOCUMENTS.iterdir()), ids=lambda path: path.name)
def test_shipped_document_is_read(path: Path) -> None:
    policy_set = document.read(path.read_text(), path.name)
    assert policy_set.callers
    assert policy_set.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {caller.id for caller in by_kind(policy_set).values()} == policy_set.names


def test_there_are_four_shipped_documents() -> None:
    assert {path.name for path in DOCUMENTS.iterdir()} == {"example.yaml", "portal.yaml", "sandbox.yaml", "whole.yaml"}


def test_document_is_read_into_what_it_says() -> None:
    policy_set = document.read(RIGHT, "acme.yaml")
    caller = policy_set.callers[Proof("key", bytes.fromhex(SHA))]
    assert (caller.id, caller.owner, caller.credential) == ("app", "payments@acme.example", "k1")
    assert caller.expires == datetime(2027, 3, 1, tzinfo=UTC).timestamp()
    assert [limit.text for limit in caller.limits] == ["30/minute", "2000/day"]
    granted = caller.entitlements["ft-4", "stripe-1", "invoices.create"]
    connection = policy_set.connections["billing"]
    assert granted.connection == connection
    assert connection.origin == "https://upstream.example"
    assert connection.ceiling is not None
    assert (connection.ceiling.calls, connection.ceiling.seconds) == (20, 1)
    assert set(granted.rules) == {"customer", "metadata[order_id]"}
    assert granted.response == {"id": Shape.SCALAR, "status": Shape.SCALAR}
    assert granted.response_fields == ("id", "status", "audit_id")
    assert granted.audit_id_in_answer
    assert granted.record == {"metadata[order_id]"}


def test_every_kind_of_credential_leads_to_its_caller_and_is_named_on_record() -> None:
    secrets = ["projects/acme/secrets/n8n/versions/3", "projects/acme/secrets/n8n/versions/latest", "file:signing"]
    webhooks = [f"- webhook: {secret}" for secret in secrets]
    google = ["- google: billing-app@acme.iam.gserviceaccount.com", "- google: ann@acme.example"]
    policy_set = read(changed(13, *google, *webhooks, LINES[12].strip()))
    assert {email.decode(): caller.credential for email, caller in by_kind(policy_set, "google").items()} == {
        "billing-app@acme.iam.gserviceaccount.com": "google:billing-app@acme.iam.gserviceaccount.com",
        "ann@acme.example": "google:ann@acme.example",
    }
    assert policy_set.signers.keys() == {("ft-4", "stripe-1")}
    signers = {proof.value.decode(): policy_set.callers[proof] for proof in policy_set.signers["ft-4", "stripe-1"]}
    assert {secret: caller.credential for secret, caller in signers.items()} == {s: f"webhook:{s}" for s in secrets}
    callers = everybody(policy_set)
    assert len(callers) == 1 + len(google) + len(secrets)
    assert {(caller.id, caller.owner, len(caller.limits)) for caller in callers} == {
        ("app", "payments@acme.example", 2)
    }
    assert len({id(caller.entitlements) for caller in callers}) == 1


def test_credential_may_be_tied_to_a_connection_that_its_caller_has_a_grant_for() -> None:
    tied = [f"- key: {{id: k1, sha256: {SHA}, connection: billing}}"]
    tied += ["- google: {email: ann@acme.example, connection: billing}", "- google: bob@acme.example"]
    policy_set = read(changed(13, *tied))
    assert {caller.credential: caller.tied and caller.tied.id for caller in policy_set.callers.values()} == {
        "k1": "billing",
        "google:ann@acme.example": "billing",
        "google:bob@acme.example": None,
    }
    assert Proof("google", b"ann@acme.example") in policy_set.callers


def test_caller_and_connection_keep_their_first_names() -> None:
    text = changed(line_of("owner:"), LINES[line_of("owner:") - 1].strip(), "formerly: billing-app")
    text = text.replace("    ceiling:", "    formerly: {name: ft-3, connection_name: stripe-1}\n    ceiling:")
    policy_set = read(text)
    assert (only_caller(policy_set).id, only_caller(policy_set).first) == ("app", "billing-app")
    assert policy_set.names == {"app"}
    connection = policy_set.connections["billing"]
    assert (connection.name, connection.connection_name, connection.first) == ("ft-4", "stripe-1", ("ft-3", "stripe-1"))
    assert (only_caller(read(RIGHT)).first, read(RIGHT).connections["billing"].first) == ("app", ("ft-4", "stripe-1"))


#: Two callers of two connections, to whom other names are given.
TWO = """\
connections:
  one: {name: ft-4, connection_name: stripe-1, upstream: stripe, secret: file:one@ONE}
  two: {name: ft-4, connection_name: stripe-2, upstream: stripe, secret: file:two@TWO}
callers:
  app:@APP
    owner: tests
    credentials: [google: app@acme.example]
    limits: [1/minute]
    grants: [{connection: one, operation: invoices.create, parameters: {customer: }, response: [id]}]
  shop:@SHOP
    owner: tests
    credentials: [google: shop@acme.example]
    limits: [1/minute]
    grants: [{connection: two, operation: invoices.create, parameters: {customer: }, response: [id]}]
"""


def renamed(*, one: str = "", two: str = "", app: str = "", shop: str = "") -> str:
    """Write :data:`TWO` with what its connections and callers were called first."""
    was = {"@ONE": one and f", formerly: {one}", "@TWO": two and f", formerly: {two}"}
    was |= {"@APP": app and f"\n    formerly: {app}", "@SHOP": shop and f"\n    formerly: {shop}"}
    text = TWO
    for place, said in was.items():
        text = text.replace(place, said)
    return text


@pytest.mark.parametrize(
    ("names", "key", "words"),
    [
        ({"app": "shop"}, "callers.app.formerly", "this is or was the name of shop"),
        ({"shop": "app"}, "callers.shop.formerly", "this is or was the name of app"),
        ({"app": "first", "shop": "first"}, "callers.shop.formerly", "this is or was the name of app"),
        ({"app": "shop", "shop": "app"}, "callers.app.formerly", "this is or was the name of shop"),
        ({"app": "app"}, "callers.app.formerly", "this is its name still"),
        ({"app": "a b"}, "callers.app.formerly", "a name is up to 64"),
        ({"app": "[first]"}, "callers.app.formerly", "write a text here"),
        ({"one": "{name: ft-4, connection_name: stripe-2}"}, "connections.one.formerly", "the name of two"),
        ({"two": "{name: ft-4, connection_name: stripe-1}"}, "connections.two.formerly", "the name of one"),
        (dict.fromkeys(["one", "two"], "{name: a, connection_name: b}"), "connections.two.formerly", "the name of one"),
        ({"one": "{name: ft-4, connection_name: stripe-1}"}, "connections.one.formerly", "this is its name still"),
        ({"one": "{name: ft-3}"}, "connections.one.formerly", "connection_name is missing"),
        (
            {"one": "{name: ft-3, connection_name: a b}"},
            "connections.one.formerly.connection_name",
            "write the name that",
        ),
        ({"one": "ft-3"}, "connections.one.formerly", "write an object here"),
    ],
    ids=str,
)
def test_name_that_is_or_was_anothers_is_nobody_elses_first(names: dict[str, str], key: str, words: str) -> None:
    said = problem(renamed(**names))
    assert f" {key}: " in said
    assert words in said


def test_every_one_may_have_had_another_name_first() -> None:
    connection = "{{name: ft-3, connection_name: {}}}"
    policy_set = read(
        renamed(one=connection.format("stripe-1"), two=connection.format("stripe-2"), app="app-1", shop="shop-1")
    )
    assert {caller.id: caller.first for caller in everybody(policy_set)} == {"app": "app-1", "shop": "shop-1"}
    assert [one.first for one in policy_set.connections.values()] == [("ft-3", "stripe-1"), ("ft-3", "stripe-2")]


@pytest.mark.parametrize(("said", "mode"), [("mode: live", "live"), ("mode: test", "test"), ("", "")])
@pytest.mark.parametrize("upstream", sorted(UPSTREAMS))
def test_connection_may_say_its_mode(said: str, mode: str, upstream: str) -> None:
    text = changed(line_of("upstream:"), f"upstream: {upstream}", said)
    assert read(text).connections["billing"].mode == mode


@pytest.mark.parametrize(("said", "paused"), [("paused: true", True), ("paused: false", False), ("", False)])
def test_caller_may_be_put_on_hold(said: str, paused: bool) -> None:  # noqa: FBT001 - what the table says
    assert only_caller(read(changed(line_of("owner:"), LINES[line_of("owner:") - 1].strip(), said))).paused is paused


def test_what_is_read_cannot_be_changed() -> None:
    caller = only_caller(read(RIGHT))
    with pytest.raises(AttributeError):
        caller.id = "other"  # type: ignore[misc]  # that is the point


def test_digest_names_exactly_this_document() -> None:
    assert read(RIGHT).digest == hashlib.sha256(RIGHT.encode()).hexdigest()
    assert read(RIGHT + "# a comment\n").digest != read(RIGHT).digest


def test_both_readers_of_yaml_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where libyaml is missing, the slow reader gives the same policy and the same lines."""
    fast = read(RIGHT), problem(changed(line_of("secret:"), "secret: sk"))
    monkeypatch.setattr(document, "LOADER", yaml.SafeLoader)
    assert (read(RIGHT), problem(changed(line_of("secret:"), "secret: sk"))) == fast


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("2027-03-01", datetime(2027, 3, 1, tzinfo=UTC)),
        ("2027-03-01T12:00Z", datetime(2027, 3, 1, 12, tzinfo=UTC)),
        ("2027-03-01T12:00:30Z", datetime(2027, 3, 1, 12, 0, 30, tzinfo=UTC)),
        ("2027-03-01T12:00+02:00", datetime(2027, 3, 1, 10, tzinfo=UTC)),
        ('"2027-03-01"', datetime(2027, 3, 1, tzinfo=UTC)),
    ],
)
def test_key_expires_when_the_date_begins(said: str, seconds: datetime) -> None:
    assert only_caller(read(RIGHT.replace("2027-03-01", said))).expires == seconds.timestamp()


NOON = datetime(2027, 2, 15, 12, tzinfo=UTC).timestamp()
SECOND = f"- key: {{id: k2, sha256: {'0' * 64}"


@pytest.mark.parametrize(
    ("credentials", "line", "says"),
    [
        (["expires: 2020-01-01"], 13, "this key has expired, so nobody can call with it"),
        (["expires: 2027-02-15T12:00:00Z"], 13, "this key has expired"),
        (["expires: 2027-02-15T12:00:01Z"], 13, "this is the last key of app, and it ends in a day"),
        (["expires: 2027-02-17"], 13, "this is the last key of app, and it ends in 2 days"),
        (["expires: 2027-03-01T11:59:59Z"], 13, "this is the last key of app, and it ends in 14 days"),
        (["expires: 2027-03-01T12:00:00Z"], None, ""),
        (["expires: 2027-02-17", f"{SECOND}}}"], None, ""),
        (["expires: 2027-02-17", f"{SECOND}, expires: 2028-01-01}}"], None, ""),
        (["expires: 2027-02-17", f"{SECOND}, expires: 2027-02-20}}"], 14, "this is the last key of app"),
        (["expires: 2020-01-01", f"{SECOND}, expires: 2027-02-20}}"], 14, "this is the last key of app"),
        (["expires: 2020-01-01", f"{SECOND}}}"], 13, "this key has expired"),
        (["expires: 2027-02-17", "- google: ann@acme.example"], 13, "this is the last key of app"),
    ],
)
def test_key_that_has_expired_or_is_the_last_and_ends_soon_is_warned_of(
    credentials: list[str], line: int | None, says: str
) -> None:
    first, *more = credentials
    text = changed(13, f"- key: {{id: k1, sha256: {SHA}, {first}}}", *more)
    read(text)  # a warning is no error
    warned = {int(one.split(":")[1]): one for one in document.warnings(text, "acme.yaml", NOON)}
    if line is None:
        assert warned == {}
        return
    place = f"acme.yaml:{line}: callers.app.credentials[{line - 13}].key.expires: warning: "
    assert warned[line].startswith(place + says)
    assert warned[line].endswith(f". Make another: ./countersign key rotate app k{line - 12} --policy acme.yaml")
    assert len(warned) == max(1, sum("2020" in one for one in credentials) + (line == 14))


def test_callers_without_keys_and_keys_without_a_date_are_not_warned_of() -> None:
    for credential in ("- google: ann@acme.example", f"- key: {{id: k1, sha256: {SHA}}}"):
        assert document.warnings(changed(13, credential), "acme.yaml", NOON) == []


def test_key_without_a_date_does_not_expire() -> None:
    assert only_caller(read(RIGHT.replace(", expires: 2027-03-01", ""))).expires is None


@pytest.mark.parametrize(
    ("said", "idempotency"),
    [
        (None, Idempotency(required=True, parameter=None, seconds=RETENTION)),
        ("required", Idempotency(required=True, parameter=None, seconds=RETENTION)),
        ("optional", Idempotency(required=False, parameter=None, seconds=RETENTION)),
        ('{from: "metadata[order_id]"}', Idempotency(True, "metadata[order_id]", RETENTION)),  # noqa: FBT003
        ('{from: "metadata[order_id]", for: 72h}', Idempotency(True, "metadata[order_id]", 72 * 3600)),  # noqa: FBT003
        ("{from: customer, for: 30d}", Idempotency(True, "customer", 30 * 86400)),  # noqa: FBT003
        ("{prefix: order-}", Idempotency(True, None, RETENTION, "order-")),  # noqa: FBT003
        ("{for: 7d}", Idempotency(True, None, 7 * 86400)),  # noqa: FBT003
        ("{required: false, prefix: a}", Idempotency(False, None, RETENTION, "a")),  # noqa: FBT003
        ("{required: true, from: customer, prefix: cus_}", Idempotency(True, "customer", RETENTION, "cus_")),  # noqa: FBT003
    ],
)
def test_idempotency_is_read_in_each_of_its_forms(said: str | None, idempotency: Idempotency) -> None:
    text = changed(line_of("idempotency:"), *([] if said is None else [f"idempotency: {said}"]))
    [granted] = only_caller(read(text)).entitlements.values()
    assert granted.idempotency == idempotency


@pytest.mark.parametrize(
    "origin",
    [
        "https://us-central1-appgregator.cloudfunctions.net",
        "https://upstream.example:8443",
        "http://127.0.0.1:8081",
        "http://localhost",
        "http://[::1]:8081",
        "https://[2001:db8::1]",
    ],
)
def test_origin_is_read_as_written(origin: str) -> None:
    assert read(changed(line_of("origin:"), f'origin: "{origin}"')).connections["billing"].origin == origin


@pytest.mark.parametrize(
    "secret",
    [
        "projects/acme/secrets/key/versions/latest",
        "projects/acme/secrets/key/versions/12",
        "projects/example.com:acme/secrets/a_KEY-1/versions/current",
        "projects/acme/locations/europe-west3/secrets/key/versions/latest",
        "projects/123456789012/locations/us-central1/secrets/key/versions/3",
        "file:/secrets/key",
    ],
)
def test_secret_is_a_place(secret: str) -> None:
    assert read(changed(line_of("secret:"), f"secret: {secret}")).connections["billing"].secret == secret


def test_versions_of_a_regional_secret_are_one_place_and_another_region_is_another() -> None:
    secrets = [
        "projects/acme/locations/europe-west3/secrets/key/versions/3",
        "projects/acme/locations/europe-west3/secrets/key/versions/latest",
        "projects/acme/locations/europe-west4/secrets/key/versions/3",
        "projects/acme/secrets/key/versions/3",
    ]
    one, same, *others = (
        read(changed(line_of("secret:"), f"secret: {secret}")).connections["billing"].place for secret in secrets
    )
    assert one == same
    assert len({one, *others}) == 3


@pytest.mark.parametrize("said", ["no", "yes", "off", "1e3", "0x10", "2027-03-01", "1_000", "12:30:00", ".inf", "true"])
def test_text_that_yaml_would_read_otherwise_is_taken_as_written(said: str) -> None:
    """Elsewhere ``no`` is false, 1e3 a thousand, 12:30:00 a number of seconds, and a date is no text."""
    granted = entitlement(f"description: {{one_of: [{said}, other]}}\nfooter: {{fixed: {said}}}")
    assert granted.rules["description"].one_of == frozenset({said, "other"})
    assert granted.fixed == {"footer": said}
    assert only_caller(read(RIGHT.replace("payments@acme.example", said))).owner == said


@pytest.mark.parametrize("name", ["no", "1e3", "2027-03-01", "0x10"])
def test_name_that_yaml_would_read_otherwise_is_taken_as_written(name: str) -> None:
    assert read(RIGHT.replace("  app:", f"  {name}:").replace("billing", name)).names == {name}


def test_metadata_granted_whole_bounds_every_value() -> None:
    rules = entitlement("metadata: {max_length: 7, prefix: a}").rules
    assert (rules["metadata[{key}]"].max_length, rules["metadata[{key}]"].prefix) == (7, "a")
    assert rules["metadata"].unsets


def test_automatic_tax_granted_whole_leaves_its_liability_out() -> None:
    assert set(entitlement("automatic_tax:").rules) == {"automatic_tax[enabled]"}


def test_group_grants_what_can_be_sent_of_it() -> None:
    rules = entitlement(groups="plain").rules
    expected = {
        path
        for path, parameter in INVOICES_CREATE.parameters.items()
        if parameter.risk.value == "plain" and (parameter.kind not in {Kind.OBJECT, Kind.ARRAY} or parameter.unsets)
    }
    assert set(rules) == {*expected, "customer"}


def test_expand_is_granted_by_its_name_with_a_choice() -> None:
    granted = entitlement("expand: {one_of: [customer, charge]}")
    assert {path: rule.one_of for path, rule in granted.rules.items()} == {
        "expand[{i}]": frozenset({"customer", "charge"})
    }


@pytest.mark.parametrize("path", ["auto_advance", "transfer_data[destination]", "issuer[type]", "on_behalf_of"])
def test_risky_parameter_is_granted_by_its_own_name(path: str) -> None:
    assert set(entitlement(f"{path}:").rules) == {path}


def test_limits_that_all_can_be_reached_stand_together() -> None:
    caller = only_caller(read(RIGHT.replace("[30/minute, 2000/day]", "[5/second, 100/minute, 1000/hour, 20000/day]")))
    assert len(caller.limits) == 4


def test_connection_of_no_ceiling_leaves_every_limit_reachable() -> None:
    text = changed(line_of("ceiling:")).replace("30/minute", "999999999/minute").replace("2000/day", "999999999/hour")
    assert problem(text).startswith("acme.yaml:13: callers.app.limits[0]: 999999999/minute can never be reached")
    assert read(changed(line_of("ceiling:")).replace("[30/minute, 2000/day]", "[999999999/day]"))


def test_two_callers_share_a_connection_and_each_has_its_own_keys() -> None:
    second = RIGHT[RIGHT.index("  app:") :].replace("  app:", "  other:").replace(SHA, "ab" * 32)
    policy_set = read(RIGHT + second)
    assert policy_set.names == {"app", "other"}
    assert policy_set.callers[Proof("key", bytes.fromhex("ab" * 32))].id == "other"


def test_rotated_key_has_two_credentials_of_one_caller() -> None:
    text = changed(13, LINES[12].strip(), f"- key: {{id: k2, sha256: {'ab' * 32}}}")
    policy_set = read(text)
    first, second = policy_set.callers.values()
    assert second == replace(first, credential="k2", expires=None)


# ---------------------------------------------------------------- what is refused, and where

UNKNOWN_KEY = "no such key. Did you mean"
ORIGIN = "write the origin alone"
SECRET = "write where the key lies"
SHA256 = "write the key's SHA-256, 64 small hexadecimal digits; never the key itself"
DATE = "write a date, 2027-03-01"
BY_NAME = "so its parts must be granted by name, such as"
LATE = "write hours or days, such as 72h or 7d; 72h at least"
NO_VALUE = "so no value could pass"

MANY = [f"metadata[a{number}]: {{fixed: a}}" for number in range(51)]

GRANT = "callers.app.grants[0]"
PARAMETERS = f"{GRANT}.parameters"

#: What is wrong: the line that is changed, what is put there, the line of the error, its key, and words of it.
WRONG: list[tuple[int, list[str], int, str, str]] = [
    # keys
    (1, ["connection:"], 1, "connection", f"{UNKNOWN_KEY} connections?"),
    (5, ["upstrem: appgregator"], 5, "connections.billing.upstrem", f"{UNKNOWN_KEY} upstream?"),
    (11, ["owners: a"], 11, "callers.app.owners", f"{UNKNOWN_KEY} owner?"),
    (13, [f"- key: {{id: k1, sha: {SHA}}}"], 13, "callers.app.credentials[0].key.sha", f"{UNKNOWN_KEY} sha256?"),
    (17, ["operations: invoices.create"], 17, f"{GRANT}.operations", f"{UNKNOWN_KEY} operation?"),
    (20, ["customer: {maxlength: 3}"], 20, f"{PARAMETERS}.customer.maxlength", f"{UNKNOWN_KEY} max_length?"),
    (18, ["idempotency: {frm: customer}"], 18, f"{GRANT}.idempotency.frm", f"{UNKNOWN_KEY} from?"),
    (8, ["<<: {a: b}"], 8, "connections.billing.<<", "no such key. Write one of: account, ceiling, connection_name"),
    (5, ["upstream: appgregator", "name: ft-4"], 6, "connections.billing.name", "this key is written twice"),
    (5, ["upstream: appgregator", '"name": ft-5'], 6, "connections.billing.name", "this key is written twice"),
    (9, ["connections: {}", "callers:"], 9, "connections", "this key is written twice"),
    (14, ["limits: [1/day]", "limits: [1/day]"], 15, "callers.app.limits", "this key is written twice"),
    (20, ["customer:", "customer:"], 21, f"{PARAMETERS}.customer", "this key is written twice"),
    (20, ["? [a]", ": b"], 20, PARAMETERS, "a key must be plain text"),
    (3, [], 2, "connections.billing", "name is missing"),
    (7, [], 2, "connections.billing", "secret is missing"),
    (11, [], 10, "callers.app", "owner is missing"),
    (14, [], 10, "callers.app", "limits is missing"),
    (17, [], 16, GRANT, "operation is missing"),
    (22, [], 16, GRANT, "response is missing"),
    (13, ["- key: {id: k1}"], 13, "callers.app.credentials[0].key", "sha256 is missing"),
    (13, [f"- key: {{sha256: {SHA}}}"], 13, "callers.app.credentials[0].key", "id is missing"),
    (18, ["idempotency: {}"], 18, f"{GRANT}.idempotency", "write required, optional, or what every key must be"),
    # shapes
    (2, ["billing: [a]", "x:"], 2, "connections.billing", "write an object here: key: value"),
    (14, ["limits: 30/minute"], 14, "callers.app.limits", "write a list here: [one, another]"),
    (14, ["limits: []"], 14, "callers.app.limits", "this list is empty"),
    (22, ["response: []"], 22, f"{GRANT}.response", "this list is empty"),
    (22, ["response: [id, [status]]"], 22, f"{GRANT}.response[1]", "write a text here"),
    (22, ["response:", "  - id", "  -", "  - status"], 24, f"{GRANT}.response[1]", "write a text here"),
    (11, ["owner:"], 11, "callers.app.owner", "write a text here"),
    (11, ['owner: ""'], 11, "callers.app.owner", "write a text here"),
    (11, ["owner: {a: b}"], 11, "callers.app.owner", "write a text here"),
    (13, ["- key: csk_live_secret"], 13, "callers.app.credentials[0].key", "write an object here"),
    (13, ["- csk_live_secret"], 13, "callers.app.credentials[0]", "write an object here"),
    # connections
    (3, ["name: ft 4"], 3, "connections.billing.name", "write the name that callers send"),
    (3, ["name: -ft"], 3, "connections.billing.name", "write the name that callers send"),
    (4, ["connection_name: a/b"], 4, "connections.billing.connection_name", "write the name that callers send"),
    (5, ["upstream: strip"], 5, "connections.billing.upstream", "Did you mean stripe?"),
    (5, ["upstream: appgregtor"], 5, "connections.billing.upstream", "Did you mean appgregator?"),
    *(
        (6, [f"origin: '{origin}'"], 6, "connections.billing.origin", ORIGIN)
        for origin in (
            "https://upstream.example/",
            "https://upstream.example/v1",
            "https://upstream.example?a=b",
            "https://upstream.example?",
            "https://upstream.example#",
            "https://user@upstream.example",
            "https://user:pass@upstream.example",
            "https://@upstream.example",
            "https://upstream.example:",
            "https://upstream.example:0",
            "https://upstream.example:99999",
            "https://upstream.example:port",
            "https://Upstream.example",
            "HTTPS://upstream.example",
            "https://",
            "https:upstream.example",
            "//upstream.example",
            "upstream.example",
            "ftp://upstream.example",
            "file:///etc/passwd",
            " https://upstream.example",
            "https://up stream.example",
            "https://upstream.example\\\\evil.example",
            "https://[::1",
            "https://übel.example",
            "https://a,b",
            "http://127.0.0.1:8081/",
        )
    ),
    *(
        (6, [f"origin: {origin}"], 6, "connections.billing.origin", "write https: the key must not travel in the clear")
        for origin in ("http://upstream.example", "http://127.0.0.1.example", "http://10.0.0.1:8081", "http://0.0.0.0")
    ),
    *(
        (7, [f"secret: '{secret}'"], 7, "connections.billing.secret", SECRET)
        for secret in (
            "sk_live_secret",
            "projects/acme/secrets/key",
            "projects/acme/secrets/key/versions/",
            "projects/acme/secrets/key/versions/latest/x",
            "projects/acme/secrets/../versions/latest",
            "/projects/acme/secrets/key/versions/latest",
            "file:",
            "env:KEY",
        )
    ),
    (6, [], 2, "connections.billing", "origin is missing"),
    (8, ["version: 2022-11-15"], 8, "connections.billing.version", "version means something at Stripe only. Remove it"),
    (8, ["account: acct_1"], 8, "connections.billing.account", "account means something at Stripe only. Remove it"),
    (17, ["operation: invoices.retrieve"], 17, f"{GRANT}.operation", "appgregator does not offer this. Write one of: "),
    (17, ["operation: invoices.remove"], 17, f"{GRANT}.operation", "Did you mean invoices."),
    (8, ["ceiling: 20 per second"], 8, "connections.billing.ceiling", "write a limit as a whole number of calls per"),
    # callers
    (10, ["app bar:"], 10, "callers.app bar", "a name is up to 64 letters"),
    (10, [f"{'a' * 65}:"], 10, f"callers.{'a' * 65}", "a name is up to 64 letters"),
    (2, ["bill/ing:"], 2, "connections.bill/ing", "a name is up to 64 letters"),
    (11, ["owner: a", "budget: {currency: usd}"], 12, "callers.app.budget", "amount is missing"),
    (
        11,
        ["owner: a", "budget: {currency: USD, amount: 1, per: day}"],
        12,
        "callers.app.budget.currency",
        "in lowercase letters",
    ),
    (
        11,
        ["owner: a", "budget: {currency: usd, amount: 0, per: day}"],
        12,
        "callers.app.budget.amount",
        "minor units",
    ),
    (
        11,
        ["owner: a", "budget: {currency: usd, amount: 1, per: week}"],
        12,
        "callers.app.budget.per",
        "Write one of: day, hour",
    ),
    *(
        (13, [f"- google: {email}"], 13, "callers.app.credentials[0].google", "in lowercase letters as Google does")
        for email in (
            "a@b", "Ann@acme.example", "ann", "ann@", '"@acme.example"', '"ann@acme.example "', "é@acme.example",
            "serviceAccount:a@acme.example", "a@acme..example", f"{'a' * 250}@acme.example", '""',
        )
    ),
    *(
        (13, [f"- webhook: {where}"], 13, "callers.app.credentials[0].webhook", "write where the key lies")
        for where in ("projects/a", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", '"file:"', "projects/a/secrets/b")
    ),
    *(
        (13, [line], 13, "callers.app.credentials[0]", "write one kind of credential in each entry")
        for line in ("- {google: a@acme.example, webhook: file:w}", "- {}")
    ),
    (13, ["- googel: a@acme.example"], 13, "callers.app.credentials[0].googel", "Did you mean google?"),
    (
        13,
        ["- google: a@acme.example", "- google: a@acme.example"],
        14,
        "callers.app.credentials[1].google",
        "a@acme.example is also an identity of app",
    ),
    (13, ["- webhook: file:w", "- webhook: file:w"], 14, "callers.app.credentials[1].webhook", "written twice"),
    (
        13,
        [f"- webhook: projects/a/secrets/w/versions/{number}" for number in range(1, MAX_SIGNERS + 2)],
        13 + MAX_SIGNERS,
        f"callers.app.credentials[{MAX_SIGNERS}].webhook",
        f"more than {MAX_SIGNERS} secrets could sign",
    ),
    *(
        (13, [f"- key: {{id: k1, sha256: {digest}}}"], 13, "callers.app.credentials[0].key.sha256", words)
        for digest, words in (
            ("csk_live_secret", SHA256),
            (SHA[:-1], SHA256),
            (SHA + "0", SHA256),
            (SHA.upper(), SHA256),
            ("g" * 64, SHA256),
            ("", SHA256),
            (hashlib.sha256(b"").hexdigest(), "this is the digest of an empty text, so the key got lost on the way"),
        )
    ),
    (8, ["mode: production"], 8, "connections.billing.mode", "Write one of: live, test"),
    (13, [f"- key: {{id: k 1, sha256: {SHA}}}"], 13, "callers.app.credentials[0].key.id", "a name is up to 64"),
    *(
        (13, [f"- {credential}"], 13, f"callers.app.credentials[0].{key}", words)
        for credential, key, words in (
            (
                f"key: {{id: k, sha256: {SHA}, connection: biling}}",
                "key.connection",
                "no grant of app is for this connection. Did you mean billing?",
            ),
            (
                "google: {email: a@b.example, connection: other}",
                "google.connection",
                "no grant of app is for this connection. Write one of: billing",
            ),
            (f"key: {{id: k, sha256: {SHA}, connection: }}", "key.connection", "write a text here"),
            (f"key: {{id: k, sha256: {SHA}, connection: [billing]}}", "key.connection", "write a text here"),
            ("google: {email: a@b.example}", "google", "connection is missing"),
            ("google: {connection: billing}", "google", "email is missing"),
            ("google: {email: A@b.example, connection: billing}", "google.email", "write the e-mail address of"),
            ("google: [a@b.example]", "google", "write the e-mail address of"),
            ("webhook: {secret: file:x, connection: billing}", "webhook", "scheme is missing"),
        )
    ),
    *(
        (13, [f"- webhook: {{{said}}}"], 13, f"callers.app.credentials[0].webhook{key}", words)
        for said, key, words in (
            ("scheme: hmac, header: X-Sig, encoding: hex", "", "secret is missing"),
            ("secret: file:x, scheme: hmac, encoding: hex", "", "header is missing"),
            ("secret: file:x, scheme: hmac, header: X-Sig", "", "encoding is missing"),
            (f"{HMAC}, secrets: [file:y]", ".secrets", "no such key. Did you mean secret?"),
            (f"{HMAC}, prefx: a", ".prefx", "no such key. Did you mean prefix?"),
            (f"{HMAC}, tolerance: 300", ".tolerance", "no such key. Write one of: connection, encoding, header"),
            (HMAC.replace("file:x", "shpss_1234"), ".secret", "write where the key lies"),
            (HMAC.replace("hmac", "hmca"), ".scheme", "Did you mean hmac?"),
            (HMAC.replace("hmac", "ed25519"), ".scheme", "Write one of: hmac"),
            (HMAC.replace(" hex", " hexx"), ".encoding", "Did you mean hex?"),
            (HMAC.replace(" hex", " base64url"), ".encoding", "Did you mean base64?"),
            (HMAC.replace(" hex", " binary"), ".encoding", "Write one of: base64, hex"),
            *(
                (HMAC.replace("X-Sig", header), ".header", "write the name of a header")
                for header in ('"X Sig"', '"X-Sig:"', "X_Sig", "1-Sig", "-Sig", "X-", "é", '"X-Sig\\n"', "X" * 65, "''")
            ),
            *(
                (HMAC.replace("X-Sig", header), ".header", f"{header} means something else already")
                for header in ("x-api-key", "X-API-Key", "Authorization", "Idempotency-Key", "svix-id", "Host")
            ),
            *(
                (f"{HMAC}, prefix: {prefix}", ".prefix", "write what stands before the signature")
                for prefix in ("", "''", '"a,"', '" a"', '"a\\n"', "é", "x" * 33)
            ),
            (f"{HMAC}, connection: biling", ".connection", "no grant of app is for this connection. Did you mean bil"),
        )
    ),
    *(
        (13, [f"- key: {{id: k, sha256: {SHA}, expires: {date}}}"], 13, "callers.app.credentials[0].key.expires", DATE)
        for date in (
            "tomorrow",
            "2027-02-30",
            "2027-13-01",
            "2027-3-1",
            "01.03.2027",
            "2027-03-01T12:00",
            "2027-03-01T25:00Z",
            "2027-03-01 12:00Z",
            '"2027-03-01\\n"',
            "1804000000",
            "\u0662\u0660\u0662\u0667-\u0660\u0663-\u0660\u0661",
            "",
        )
    ),
    (13, [f"- key: {{id: k1, sha256: {SHA}}}", f"- key: {{id: k1, sha256: {'ab' * 32}}}"], 14,
     "callers.app.credentials[1]", "the id k1 is used twice"),
    (13, [f"- key: {{id: k1, sha256: {SHA}}}", f"- key: {{id: k2, sha256: {SHA}}}"], 14,
     "callers.app.credentials[1]", "this key is also a key of app; every key belongs to one caller, once"),
    # limits
    *(
        (14, [f"limits: [{limit}]"], 14, "callers.app.limits[0]", "write a limit as a whole number of calls per second")
        for limit in ("30", "0/minute", "30/week", "-1/minute", "1.5/minute", "1e3/day")
    ),
    (14, ["limits:", "  - 30/minute", "  - 10/minute"], 16, "callers.app.limits[1]", "a limit for the same time"),
    (14, ["limits:", "  - 2000/day", "  - 1/minute"], 15, "callers.app.limits[0]",
     "2000/day can never be reached, since 1/minute is stricter. Remove it"),
    (14, ["limits: [1/minute, 1440/day]"], 14, "callers.app.limits[1]",
     "1440/day can never be reached, since 1/minute is stricter. Remove it"),
    (14, ["limits: [30/minute, 5/hour]"], 14, "callers.app.limits[0]",
     "30/minute can never be reached, since 5/hour is stricter. Remove it"),
    (14, ["limits: [2/second, 7200/hour]"], 14, "callers.app.limits[1]",
     "7200/hour can never be reached, since 2/second is stricter. Remove it"),
    (14, ["limits: [1201/minute]"], 14, "callers.app.limits[0]",
     "1201/minute can never be reached, since the connection's ceiling is stricter. Lower it"),
    (14, ["limits: [30/second, 40/minute]"], 14, "callers.app.limits[0]",
     "30/second can never be reached, since the connection's ceiling is stricter. Lower it"),
    # grants
    (16, ["- connection: biling"], 16, f"{GRANT}.connection", "Did you mean billing?"),
    (17, ["operation: invoice.create"], 17, f"{GRANT}.operation", "Did you mean invoices.create?"),
    (19, ["parameters: {}", "groups: [plain]", "x:"], 21, f"{GRANT}.x", "no such key"),
    (20, ["custommer:"], 20, f"{PARAMETERS}.custommer", "no such parameter. Did you mean customer?"),
    (20, ["metadata[a][b]:"], 20, f"{PARAMETERS}.metadata[a][b]", "no such parameter"),
    (20, ["custom_fields[name]:"], 20, f"{PARAMETERS}.custom_fields[name]", "custom_fields[{i}][name]?"),
    (20, ["default_tax_rates[00]:"], 20, f"{PARAMETERS}.default_tax_rates[00]", "no such parameter"),
    *(
        (20, [f"{name}:"], 20, f"{PARAMETERS}.{name}", f"this object reroutes money, {BY_NAME} {part}")
        for name, part in (
            ("payment_settings", "payment_settings[default_mandate]"),
            ("transfer_data", "transfer_data[amount]"),
            ("issuer", "issuer[account]"),
            ("automatic_tax[liability]", "automatic_tax[liability][account]"),
            ("payment_settings[payment_method_options]", "payment_settings[payment_method_options][acss_debit]"),
        )
    ),
    *(
        (19, [f"groups: [{group}]", "parameters:"], 19, f"{GRANT}.groups[0]",
         f"a whole group that {group} cannot be granted. Name its parameters one by one")
        for group in ("reroutes money", "triggers collection", "widens the answer")
    ),
    (19, ["groups: [plan]", "parameters:"], 19, f"{GRANT}.groups[0]", "Did you mean plain?"),
    # bounds
    *(
        (20, [f"{path}: {{{bound}}}"], 20, f"{PARAMETERS}.{path}.{bound.partition(':')[0]}", words)
        for path, bound, words in (
            ("description", "max_length: 1501", "the upstream takes 1500 characters at most"),
            ("number", "max_length: 27", "the upstream takes 26 characters at most"),
            ("metadata[a]", "max_length: 501", "the upstream takes 500 characters at most"),
            ("metadata", "max_length: 501", "the upstream takes 500 characters at most"),
            ("description", "max_length: 0", "write a length of 1 or more"),
            ("description", "max_length: 1e3", "write a whole number here"),
            ("description", "max_length: 0x10", "write a whole number here"),
            ("days_until_due", "min: 1.5", "write a whole number here"),
            ("days_until_due", "max: many", "write a whole number here"),
            ("days_until_due", "max_length: 3", "max_length cannot be said of days_until_due, whose kind is integer"),
            ("days_until_due", "prefix: 3", "prefix cannot be said of days_until_due"),
            ("auto_advance", "min: 1", "min cannot be said of auto_advance, whose kind is boolean"),
            ("auto_advance", "max_length: 5", "max_length cannot be said of auto_advance"),
            ("currency", "prefix: u", "prefix cannot be said of currency"),
            ("description", "min: 1", "min cannot be said of description, whose kind is string"),
            ("description", "max: 1", "max cannot be said of description"),
            ("customer", "required: yes", "Write one of: false, true"),
            ("customer", "required: tru", "Did you mean true?"),
            ("customer", "one_of: []", "this list is empty"),
            ("customer", "one_of: cus_1", "write a list here"),
            ("collection_method", "one_of: [send_invoise]", "does not take send_invoise. Did you mean send_invoice?"),
            ("collection_method", "fixed: send", "collection_method must be one of: charge_automatically, send_"),
            ("days_until_due", "fixed: soon", "days_until_due must be a whole number"),
            ("days_until_due", "one_of: [14, soon]", "soon could never be sent: days_until_due must be a whole number"),
            ("auto_advance", "fixed: yes", "auto_advance must be true or false."),
            ("currency", "one_of: [USD]", "USD could never be sent: currency must be a currency"),
            ("number", f"fixed: {'x' * 27}", "number is too long: 26 characters at most."),
            ("customer", "fixed: a, required: true", "a fixed value stands alone"),
            ("customer", "fixed: a, max_length: 3", "a fixed value stands alone"),
            ("days_until_due", "min: 2, max: 1", NO_VALUE),
            ("customer", "prefix: cus_, max_length: 3", NO_VALUE),
            ("customer", "one_of: [a, cus_1], prefix: cus_", "a could never be sent: customer must start with cus_."),
            ("days_until_due", "one_of: [1, 9], max: 5", "9 could never be sent: days_until_due must be at most 5."),
            ("collection_method", "prefix: sent_", NO_VALUE),
            ("collection_method", "max_length: 3", NO_VALUE),
        )
    ),
    (20, ["customer: {one_of: [a, b, a]}"], 20, f"{PARAMETERS}.customer.one_of[2]", "a is written twice"),
    (20, MANY, 19, PARAMETERS, "no call could pass: metadata has too many entries: 50 at most."),
    *(
        (20, [f"{path}: {{{bound}}}"], 20, f"{PARAMETERS}.{path}", f"no call could pass: {words}")
        for path, bound, words in (
            (f"metadata[{'a' * 41}]", "fixed: a", "metadata has a name that is too long: 40 characters at most."),
            (f"metadata[{'a' * 41}]", "max_length: 3", "metadata has a name that is too long"),
            ("custom_fields[4][name]", "max_length: 3", "custom_fields has too many entries: 4 at most."),
        )
    ),
    *(
        (20, [f"{path}: {{{bound}}}"], 20, f"{PARAMETERS}.{path}", words)
        for path, bound, words in (
            ("metadata", "fixed: a", "this can only be said of one exact parameter, such as metadata[cost_center]"),
            ("metadata[{key}]", "required: true", "this can only be said of one exact parameter"),
            ("expand", "fixed: customer", "this can only be said of one exact parameter"),
            ("rendering", "max_length: 3", "only required can be said of a whole object. Name the part that you mean"),
            ("custom_fields", "one_of: [a]", "only required can be said of a whole object"),
        )
    ),
    (20, ["customer: cus_1"], 20, f"{PARAMETERS}.customer", "write an object here"),
    # response
    (22, ["response: [id, lines]"], 22, f"{GRANT}.response[1]", "lines is an object. Name the fields in it, such as"),
    (22, ["response: [lines.data]"], 22, f"{GRANT}.response[0]", "lines.data is an object"),
    (22, ["response: [status_transitions]"], 22, f"{GRANT}.response[0]", "such as status_transitions.finalized_at"),
    (22, ["response: [id, statu]"], 22, f"{GRANT}.response[1]", "no such field. Did you mean status?"),
    (22, ["response: [lines.data.amont]"], 22, f"{GRANT}.response[0]", "Did you mean lines.data.amount?"),
    (22, ["response:", "  - id", "  - status", "  - id"], 25, f"{GRANT}.response[2]", "id is written twice"),
    (22, ["response: [audit_id, audit_id]"], 22, f"{GRANT}.response[1]", "audit_id is written twice"),
    # names of parameters whose brackets do not match
    *(
        (20, [f'"{path}":'], 20, f"{PARAMETERS}.{path}", "is not a parameter's name. Write nesting as metadata[")
        for path in (
            "metadata[order_id", "metadata[", "metadata]", "metadata[order_id]x", "metadata[a]b[c]",
            "metadata[[a]]", "metadata[a]]", "[a]", "custom_fields[0]name]", "metadata[a][", "customer[",
            "metadata[a] ",
        )
    ),
    (20, [f'"metadata[{"k" * 256}]":'], 20, f"{PARAMETERS}.metadata[{'k' * 256}]", "A parameter's name is too long."),
    (20, ['"metadata[a\\x07]":'], 20, f"{PARAMETERS}.metadata[a\x07]", "contains a control character"),
    (18, ["stamp: metadata[countersign"], 18, f"{GRANT}.stamp", "metadata[countersign is not a parameter's name"),
    (18, ["stamp: metadata[]"], 18, f"{GRANT}.stamp", "metadata[] has empty brackets"),
    (20, ['"metadata[]":'], 20, f"{PARAMETERS}.metadata[]", "metadata[] has empty brackets. Write what they hold"),
    (20, ['"expand[]":'], 20, f"{PARAMETERS}.expand[]", "expand[] has empty brackets"),
    (18, ["idempotency: {from: 'metadata[order_id'}"], 18, f"{GRANT}.idempotency.from", "is not a parameter's name"),
    (23, ['record: ["metadata[order_id"]'], 23, f"{GRANT}.record[0]", "metadata[order_id is not a parameter's name"),
    # record and idempotency
    (23, ["record: [description]"], 23, f"{GRANT}.record[0]", "description is not one of the parameters that this"),
    (23, ['record: ["metadata[{key}]"]'], 23, f"{GRANT}.record[0]", "is not one of the parameters"),
    (18, ["idempotency: sometimes"], 18, f"{GRANT}.idempotency", "Write one of: optional, required"),
    (18, ["idempotency: [required]"], 18, f"{GRANT}.idempotency", "write an object here"),
    (18, ["idempotency: {from: description}"], 18, f"{GRANT}.idempotency.from", "is not one of the parameters"),
    *(
        (18, [f"idempotency: {{from: customer, for: {time}}}"], 18, f"{GRANT}.idempotency.for", LATE)
        for time in ("71h", "2d", "1h", "72", "4320m", "72 h", "-72h", "0072h", "99999h", "")
    ),
    (23, ["- connection: billing", "  operation: invoices.create"], 23, "", "this is not YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "new", "at", "key", "words"), WRONG, ids=lambda value: str(value)[:60])
def test_error_names_file_line_and_key(line: int, new: list[str], at: int, key: str, words: str) -> None:
    said = problem(changed(line, *new))
    assert said.startswith(f"acme.yaml:{at}: {key + ': ' if key else ''}")
    assert words in said
    assert "secret" not in said or "csk_live_secret" not in said
    assert "sk_live_secret" not in said


def test_object_among_the_fields_of_a_response_is_refused_with_one_that_would_do() -> None:
    assert problem(changed(22, "response: [status_transitions]")) == (
        f"acme.yaml:22: {GRANT}.response[0]: status_transitions is an object. Name the fields in it, such as "
        "status_transitions.finalized_at"
    )


@pytest.mark.parametrize("kind", ["email", "{key}"])
def test_part_of_no_catalogue_is_refused(kind: str) -> None:
    assert "no such parameter" in problem(changed(20, f"customer[{kind}]:"))


def connection_beside(**changes: str) -> str:
    lines = ["  other:"]
    for line in LINES[2:7]:
        name = line.strip().partition(":")[0]
        lines.append(f"    {name}: {changes[name]}" if name in changes else line)
    return "\n".join([*LINES[:8], *lines, *LINES[8:]]) + "\n"


def test_connection_that_nobody_uses_is_refused_where_it_stands() -> None:
    assert problem(connection_beside(connection_name="stripe-2")) == (
        "acme.yaml:9: connections.other: no grant uses this connection. Grant it to a caller, or remove it"
    )


def test_two_connections_that_callers_could_not_tell_apart_are_refused() -> None:
    assert problem(connection_beside()) == (
        "acme.yaml:9: connections.other: billing has the same name and connection_name; a call could mean either"
    )


def test_one_connection_granted_twice_is_refused_at_the_second_grant() -> None:
    text = RIGHT + "\n".join(LINES[15:]) + "\n"
    assert problem(text) == (
        "acme.yaml:24: callers.app.grants[1]: billing and invoices.create are granted twice; write one grant"
    )


def test_ceilings_of_all_connections_of_a_caller_bound_its_limits_together() -> None:
    text = (
        connection_beside(connection_name="stripe-2").replace("30/minute, 2000/day", "2000/minute")
        + "\n".join(LINES[15:]).replace("billing", "other")
        + "\n"
    )
    assert read(text)  # the other connection has no ceiling
    both = text.replace("  other:\n", "  other:\n    ceiling: 10/second\n")
    assert "2000/minute can never be reached" in problem(both)
    assert read(both.replace("10/second", "20/second"))


def test_same_key_for_two_callers_is_refused_at_the_second() -> None:
    text = RIGHT + "\n".join(LINES[9:]).replace("  app:", "  other:") + "\n"
    assert problem(text) == (
        "acme.yaml:27: callers.other.credentials[0]: this key is also a key of app; "
        "every key belongs to one caller, once"
    )


def test_same_google_identity_for_two_callers_is_refused_at_the_second() -> None:
    first = changed(13, "- google: ann@acme.example")
    second = "\n".join(first.splitlines()[9:]).replace("  app:", "  other:")
    assert problem(f"{first}{second}\n") == (
        "acme.yaml:27: callers.other.credentials[0].google: ann@acme.example is also an identity of app; "
        "every identity belongs to one caller, once"
    )


@pytest.mark.parametrize("version", ["latest", "7"])
def test_same_signing_secret_for_two_callers_is_refused_at_the_second_whatever_its_version(version: str) -> None:
    first = changed(13, "- webhook: projects/acme/secrets/n8n/versions/latest")
    second = (
        "\n".join(first.splitlines()[9:])
        .replace("  app:", "  other:")
        .replace("n8n/versions/latest", "n8n/versions/" + version)
    )
    assert problem(f"{first}{second}\n") == (
        "acme.yaml:27: callers.other.credentials[0].webhook: this is also a secret of app; make one for each caller"
    )


@pytest.mark.parametrize("schemes", ["written", "both", "both, the other way round"])
def test_same_signing_secret_for_two_callers_is_refused_whatever_the_scheme(schemes: str) -> None:
    standard, written = "- webhook: file:x", f"- webhook: {{{HMAC}}}"
    held = {"written": (written, written), "both": (standard, written)}.get(schemes, (written, standard))
    first, second = (changed(13, one) for one in held)
    said = problem(first + "\n".join(second.splitlines()[9:]).replace("  app:", "  other:") + "\n")
    assert said.startswith("acme.yaml:27: callers.other.credentials[0]")
    assert said.endswith("this is also a secret of app; make one for each caller")


@pytest.mark.parametrize("webhook", ["{}", "{{secret: {}, scheme: hmac, header: X-Signature, encoding: hex}}"])
@pytest.mark.parametrize(
    ("key", "signs"),
    [
        ("projects/acme/secrets/key/versions/latest", "projects/acme/secrets/key/versions/latest"),
        ("projects/acme/secrets/key/versions/latest", "projects/acme/secrets/key/versions/7"),
        ("file:/keys/one", "file:/keys/one"),
    ],
)
def test_caller_does_not_sign_with_the_upstreams_key(key: str, signs: str, webhook: str) -> None:
    text = changed(13, f"- webhook: {webhook.format(signs)}")
    said = problem(text.replace("projects/acme/secrets/key/versions/latest", key, 1))
    assert said.startswith("acme.yaml:13: callers.app.credentials[0]")
    assert ": here lies the upstream's key of billing, which whoever signs with it would hold." in said
    assert said.endswith("Make a secret of its own for this caller")


def test_webhook_of_the_written_scheme_is_tied_to_a_connection() -> None:
    policy_set = read(changed(13, f"- webhook: {{{HMAC}}}"))
    caller = only_caller(policy_set)
    assert (caller.credential, caller.tied and caller.tied.id, caller.body_signed) == (
        "webhook:file:x",
        "billing",
        True,
    )
    [(place, [proof])] = policy_set.signers.items()
    assert (place, proof.kind) == (("ft-4", "stripe-1"), "hmac")
    assert policy_set.signature_headers == {"x-sig"}
    [granted] = caller.entitlements.values()
    assert granted.idempotency == Idempotency(required=True, parameter=None, seconds=UNDATED_SECONDS)


def test_webhook_of_the_written_scheme_names_its_connection_where_its_caller_may_use_several() -> None:
    def text(more: str) -> str:
        grant = "{connection: CONNECTION, operation: invoices.create, parameters: {customer: }, response: [id]}"
        grants = f"[{grant.replace('CONNECTION', 'one')}, {grant.replace('CONNECTION', 'two')}]"
        before, after = TWO.split("    grants:", 1)
        rest = after[after.index("\n") :]
        bare = re.sub("@[A-Z]+", "", f"{before}    grants: {grants}{rest}")
        return bare.replace("google: app@acme.example", f"webhook: {{{HMAC}{more}}}")

    assert problem(text("")).endswith(
        "credentials[0].webhook: what is signed does not name the connection, and app may use several. Write the one "
        "that these calls are for, such as connection: one"
    )
    policy_set = read(text(", connection: two"))
    assert [name for _, name in policy_set.signers] == ["stripe-2"]


def test_webhook_of_the_written_scheme_is_for_one_operation_that_says_all_in_its_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upstream, credential = line_of("upstream:"), f"- webhook: {{{HMAC}}}"
    text = changed(13, credential).replace(LINES[upstream - 1], "    upstream: stripe")
    create = "\n".join(text.splitlines()[14:]) + "\n"
    look = (
        "      - connection: billing\n        operation: invoices.retrieve\n        parameters: {invoice: }\n"
        "        response: [id]\n"
    )
    assert only_caller(read(text + look)).tied
    assert problem(text.replace(create, "    grants:\n" + look)).endswith(
        "credentials[0].webhook: only the body is signed, and app has no grant on billing whose calls say all in their "
        "body, such as invoices.create"
    )
    second = replace(INVOICES_CREATE, id="invoices.issue", path="invoices/issue")
    monkeypatch.setitem(OPERATIONS, "invoices.issue", second)
    two = text + look.replace("invoices.retrieve", "invoices.issue").replace("invoice:", "customer:")
    assert problem(two).endswith(
        "credentials[0].webhook: what is signed does not name the operation, and app may use several on billing: "
        "invoices.create, invoices.issue. Give these calls a caller of their own, with one of them"
    )


@pytest.mark.parametrize("empty", ["parameters: {}", "parameters:", ""])
def test_grant_of_no_parameter_is_refused(empty: str) -> None:
    text = "\n".join([*LINES[:18], *([f"        {empty}"] if empty else []), LINES[21]]) + "\n"
    said = problem(text)
    if empty == "parameters:":
        assert said == f"acme.yaml:19: {PARAMETERS}: write an object here: key: value"
    else:
        assert said.startswith(f"acme.yaml:16: {GRANT}: this grant allows no parameter, so no call could pass.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "acme.yaml:1: the document is empty"),
        ("# nothing\n", "acme.yaml:1: the document is empty"),
        ("---\n", "acme.yaml:1: the document must be an object with connections and callers"),
        ("a text", "acme.yaml:1: the document must be an object with connections and callers"),
        ("[a]", "acme.yaml:1: the document must be an object with connections and callers"),
        ("{}", "acme.yaml:1: connections: this key is missing"),
        ("callers: {}", "acme.yaml:1: connections: this key is missing"),
        ("connections: {}", "acme.yaml:1: callers: this key is missing"),
        ("\nconnections: {}\ncallers: {}", "acme.yaml:2: connections: no connection is written"),
        ("connections:\ncallers: {}", "acme.yaml:1: connections: write an object here: key: value"),
        (
            RIGHT[: RIGHT.index("callers:")] + "callers: {}",
            "acme.yaml:9: callers: no caller is written, so nobody could call",
        ),
        (RIGHT[: RIGHT.index("callers:")] + "callers:", "acme.yaml:9: callers: write an object here: key: value"),
        ("a: [\n", "acme.yaml:2: this is not YAML: "),
        ("a: b: c\n", "acme.yaml:1: this is not YAML: "),
        ("a: 1\n\tb: 2\n", "acme.yaml:2: this is not YAML: "),
        ("a: 'text\n", "acme.yaml:2: this is not YAML: "),
        ("a: \x00", "acme.yaml:1: this is not YAML"),
        (RIGHT + "---\n" + RIGHT, "acme.yaml:24: this is not YAML: "),
        (
            changed(22, "response: [id]", "record: [metadata[order_id]]").replace(LINES[22] + "\n", ""),
            "acme.yaml:23: this is not YAML: ",
        ),
        (changed(2, "billing: &b"), "acme.yaml:2: anchors (&) and aliases (*) are not part of the format"),
        (changed(11, "owner: &a x"), "acme.yaml:11: anchors (&) and aliases (*) are not part of the format"),
        (changed(11, "owner: *a"), "acme.yaml:11: anchors (&) and aliases (*) are not part of the format"),
        (changed(14, "limits: &l [1/day]"), "acme.yaml:14: anchors (&) and aliases (*) are not part of the format"),
        (changed(8, "<<: *b"), "acme.yaml:8: anchors (&) and aliases (*) are not part of the format"),
    ],
)
def test_what_is_no_document_is_refused(text: str, said: str) -> None:
    assert problem(text).startswith(said)


def test_name_with_brackets_in_a_list_is_answered_with_how_to_write_it() -> None:
    assert '"metadata[order_id]"' in problem(changed(23, "record: [metadata[order_id]]"))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}"), ("- ", "")])
def test_document_nested_without_end_is_refused(opening: str, closing: str) -> None:
    """In a process of its own: the fast reader once ended the whole process with it."""
    program = (
        "from policies import document\n"
        "try:\n"
        f"    document.read({opening!r} * 200_000 + '1' + {closing!r} * 200_000, 'acme.yaml')\n"
        "except document.DocumentError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "acme.yaml:1: the document is nested too deeply\n"), ran.stderr


@pytest.mark.parametrize(
    ("parameters", "source"),
    [
        ("customer: {fixed: cus_1}\ndescription:", "customer"),
        ("metadata:", "metadata"),
        ("custom_fields:", "custom_fields"),
        ("currency:", "currency"),
        ("auto_advance:", "auto_advance"),
        ("collection_method:", "collection_method"),
        ("description: {one_of: [order-1]}", "description"),
    ],
)
def test_idempotency_key_from_what_no_two_calls_differ_in_is_refused(parameters: str, source: str) -> None:
    """Every call after the first would be answered with the first one's invoice, or none could pass."""
    said = problem(written(parameters, idempotency=f"{{from: {source}}}"))
    assert f"{GRANT}.idempotency.from: {source} cannot tell one call from another" in said


@pytest.mark.parametrize("prefix", ["undefined-", "'{{'", "' order-'", '"a\\tb-"', "'a,'", "ö-", "k" * 255], ids=ascii)
def test_prefix_that_no_key_could_have_is_refused(prefix: str) -> None:
    said = "a key that begins so would be refused. Write the beginning of a name, such as order-"
    found = problem(written(idempotency=f"{{prefix: {prefix}}}"))
    assert found == f"acme.yaml:17: {GRANT}.idempotency.prefix: {said}"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("metadata[a]: {max_length: 6}", "metadata[a] could never begin so and have something behind it"),
        ("metadata[a]: {prefix: inv-}", "metadata[a] could never begin so"),
        ("metadata[a]: {prefix: order-2027-}", "metadata[a] could never begin so"),
        ("metadata[a]: {one_of: [order-, a]}", "metadata[a] could never begin so"),
    ],
)
def test_prefix_that_the_parameter_of_the_key_could_not_have_is_refused(parameters: str, said: str) -> None:
    found = problem(written(parameters, idempotency='{from: "metadata[a]", prefix: order-}'))
    assert f"{GRANT}.idempotency.prefix: {said}" in found


def test_prefix_of_a_parameter_that_is_the_key_may_be_any_text_that_it_may_be() -> None:
    for bounds, prefix in (("", "ö, "), ("{prefix: or}", "order-"), ("{one_of: [order-1, x]}", "order-")):
        one = entitlement(f"metadata[a]: {bounds}", idempotency=f"{{from: 'metadata[a]', prefix: '{prefix}'}}")
        assert one.idempotency.prefix == prefix
    assert f"{GRANT}.idempotency.prefix: prefix cannot be said of days_until_due, whose kind is integer" in problem(
        written("days_until_due:", idempotency="{from: days_until_due, prefix: '2'}")
    )


def test_key_from_a_parameter_cannot_be_optional() -> None:
    said = problem(written(idempotency="{from: customer, required: false}"))
    assert f"{GRANT}.idempotency.required: customer is the key, so every call must send it. Remove this" in said


def test_idempotency_key_comes_from_one_exact_parameter() -> None:
    said = problem(written("metadata:", idempotency='{from: "metadata[{key}]"}'))
    assert said.endswith("idempotency.from: metadata[{key}] is not one of the parameters that this grant allows")
    assert entitlement("metadata:", idempotency='{from: "metadata[a]"}').idempotency.parameter == "metadata[a]"


@settings(max_examples=50)
@given(documents())
def test_grant_means_the_same_whoever_else_has_one_like_it(text: str) -> None:
    head, callers = text.split("callers:\n")
    together = {caller.id: caller for caller in everybody(read(text))}
    for line in callers.splitlines():
        used = {"connections", *re.findall(r"connection: (\w+)", line)}
        above = [connection for connection in head.splitlines() if connection.split(":")[0].strip() in used]
        for caller in everybody(read("\n".join([*above, "callers:", line]))):
            assert caller.entitlements == together[caller.id].entitlements


def test_grant_that_differs_in_one_place_is_another() -> None:
    second = RIGHT[RIGHT.index("  app:") :].replace("  app:", "  other:").replace(SHA, "ab" * 32)
    one, other = read(RIGHT + second.replace("[id, status, audit_id]", "[id, audit_id, status]")).callers.values()
    assert [e.response_fields for e in one.entitlements.values()] == [("id", "status", "audit_id")]
    assert [e.response_fields for e in other.entitlements.values()] == [("id", "audit_id", "status")]


@settings(max_examples=100)
@given(st.data())
def test_any_slip_in_a_line_is_read_or_named_with_its_file_and_line(data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(LINES)))
    line = LINES[number - 1]
    at = data.draw(st.integers(0, len(line)))
    slip = data.draw(st.text(st.sampled_from("ab:- #{}[]&*!|>'\"%@`,?\n\t~0\x07é"), max_size=3))
    cut = data.draw(st.integers(0, 3))
    text = "\n".join([*LINES[: number - 1], line[:at] + slip + line[at + cut :], *LINES[number:]])
    try:
        assert isinstance(document.read(text, "acme.yaml"), PolicySet)
    except DocumentError as error:
        file, at_line, _ = str(error).split(":", 2)
        assert file == "acme.yaml"
        assert 1 <= int(at_line) <= len(text.splitlines()) + 1


@pytest.mark.parametrize(
    ("stamp", "says"),
    [
        ("metadata[order_id]", "also granted to the caller"),
        ("description", "metadata entry"),
        ("metadata", "metadata entry"),
        ("metadata[{key}]", "metadata entry"),
        ("metadata[a][b]", "metadata entry"),
    ],
)
def test_stamp_is_a_metadata_entry_that_no_caller_may_write(stamp: str, says: str) -> None:
    text = policy("https://upstream.example")
    text = text.replace('        record: ["metadata[order_id]"]', f'        stamp: "{stamp}"', 1)
    line = text[: text.index("stamp:")].count("\n") + 1
    with pytest.raises(DocumentError) as caught:
        document.read(text, "policy.yaml")
    assert str(caught.value).startswith(f"policy.yaml:{line}: callers.app.grants[0].stamp: ")
    assert says in str(caught.value)


# ---------------------------------------------------------------- Stripe itself

STRIPE = RIGHT.replace("upstream: appgregator", "upstream: stripe")
LOOK = """\
      - connection: billing
        operation: invoices.retrieve
        parameters: {invoice: {prefix: in_}}
        response: [id, status]
"""


def test_stripe_is_at_its_own_address_in_the_catalogues_version_unless_it_is_said_otherwise() -> None:
    connection = read(STRIPE.replace("    origin: https://upstream.example\n", "")).connections["billing"]
    assert connection.upstream == "stripe"
    assert connection.origin == "https://api.stripe.com"
    assert connection.settings == {"version": "2026-10-28.endive"}
    assert read(STRIPE).connections["billing"].origin == "https://upstream.example"
    appgregator = read(RIGHT).connections["billing"]
    assert (appgregator.upstream, appgregator.settings) == ("appgregator", {})


@pytest.mark.parametrize("version", ["2026-10-28.endive", "2022-11-15", '"2024-06-20"'])
def test_version_and_account_are_read_as_written(version: str) -> None:
    text = STRIPE.replace("    ceiling", f"    version: {version}\n    account: acct_1032D82eZvKYlo2C\n    ceiling")
    connection = read(text).connections["billing"]
    assert connection.settings == {"version": version.strip('"'), "account": "acct_1032D82eZvKYlo2C"}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        *(
            ("version", value, "write one of Stripe's API versions, such as 2026-10-28.endive")
            for value in ("latest", "2022", "1999-01-01", "2022-11-15.", "2022-11-15.Dahlia", '"2022-11-15\\r\\nX: y"')
        ),
        *(
            ("account", value, "write a connected account, such as acct_1032D82eZvKYlo2C")
            for value in ("me", "acct_", "acct_1-2", '"acct_1, acct_2"', '"acct_1\\nX: y"', f"acct_{'1' * 65}")
        ),
    ],
)
def test_header_that_stripe_would_not_take_is_refused(key: str, value: str, says: str) -> None:
    text = STRIPE.replace("    ceiling", f"    {key}: {value}\n    ceiling")
    assert problem(text) == f"acme.yaml:8: connections.billing.{key}: {says}"


def test_looking_is_granted_beside_creating_and_has_no_key() -> None:
    caller = only_caller(read(STRIPE + LOOK))
    assert [place[2] for place in caller.entitlements] == ["invoices.create", "invoices.retrieve"]
    looking = caller.entitlements["ft-4", "stripe-1", "invoices.retrieve"]
    assert set(looking.rules) == {"invoice"}
    assert not looking.idempotency.required
    assert looking.stamp is None


@pytest.mark.parametrize(
    ("written", "key", "says"),
    [
        ("idempotency: required", ".idempotency", "invoices.retrieve creates nothing, so this means nothing here"),
        ("idempotency: {from: invoice}", ".idempotency", "invoices.retrieve creates nothing"),
        ('stamp: "metadata[countersign]"', ".stamp", "invoices.retrieve creates nothing"),
        ("record: [customer]", ".record[0]", "customer is not one of the parameters"),
        ("groups: [widens the answer]", ".groups[0]", "a whole group that widens the answer cannot be granted"),
    ],
)
def test_what_means_nothing_for_a_look_is_refused(written: str, key: str, says: str) -> None:
    text = STRIPE + LOOK.replace("        response", f"        {written}\n        response")
    assert problem(text).startswith(f"acme.yaml:27: callers.app.grants[1]{key}: {says}")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ("{expand: }", "every call names invoice in its path, so none could pass. Grant it under parameters"),
        ("{}", "this grant allows no parameter"),
        ("{customer: }", "invoices.retrieve has no such parameter"),
        ("{invoice: {max_length: 256}}", "the upstream takes 255 characters at most"),
    ],
)
def test_look_that_could_not_pass_is_refused(parameters: str, says: str) -> None:
    assert says in problem(STRIPE + LOOK.replace("{invoice: {prefix: in_}}", parameters))


def test_group_does_not_open_the_answer_of_a_look() -> None:
    text = STRIPE + LOOK.replace("parameters: {invoice: {prefix: in_}}", "groups: [plain]")
    assert set(only_caller(read(text)).entitlements["ft-4", "stripe-1", "invoices.retrieve"].rules) == {"invoice"}


@pytest.mark.parametrize(
    ("said", "private"), [("", False), ("    private: true\n", True), ("    private: false\n", False)]
)
@pytest.mark.parametrize("text", [RIGHT, STRIPE], ids=["appgregator", "stripe"])
def test_private_address_is_allowed_where_the_connection_says_so(text: str, said: str, *, private: bool) -> None:
    policy_set = read(text.replace("    ceiling", f"{said}    ceiling"))
    assert policy_set.connections["billing"].private is private
    grant = access.decide(policy_set, only_caller(policy_set), call({"customer": "cus_1"}, key="order-1"))
    assert UPSTREAMS[grant.entitlement.connection.upstream].request(grant, Step("key")).private is private


def test_private_is_true_or_false() -> None:
    assert "connections.billing.private: Did you mean true?" in problem(
        RIGHT.replace("    ceiling", "    private: tru\n    ceiling")
    )
