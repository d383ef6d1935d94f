"""A compiled policy document: it means what the document means, or it is not read."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import tracemalloc
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies import access, compiled
from policies.model import DocumentError, Proof
from policies.operations import OPERATIONS
from policies.refusals import Refusal
from sandbox.__main__ import ROOT
from tests.policies.conftest import BOUNDS, call, documents, everybody, read, written

if TYPE_CHECKING:
    from policies.model import Call, Caller, PolicySet

EXAMPLE = (ROOT / "policies" / "documents" / "example.yaml").read_text("utf-8")
WHOLE = compiled.write(read(EXAMPLE))
HEAD = len(compiled.MARK) + 2 * 32
#: The edition, and what the documents below come to in it.
MEANS = (7, "6bd44f7f809f81262e6b1cc5f7c91a549b9d488d51e492203ae849b6dac82fd9")


def sealed(body: bytes) -> bytes:
    """Put right around any body what is to be around one: a hostile hand can do that."""
    content = compiled.edition() + body
    return compiled.MARK + hashlib.sha256(content).digest() + content


def refused(data: bytes) -> str:
    with pytest.raises(DocumentError) as error:
        compiled.read(data, "acme.policy")
    return str(error.value)


DAMAGED = (
    "acme.policy: this compiled policy is damaged or truncated. Compile the document again: "
    "./countersign check DOCUMENT --compile FILE"
)

# ---------------------------------------------------------------- it means what the document means


def differences(one: PolicySet, other: PolicySet) -> list[str]:
    """Compare by hand and by every credential, so that nothing hangs on how mappings compare."""
    names = ("digest", "names", "kinds", "connections", "signers", "signature_headers")
    found = [name for name in names if getattr(one, name) != getattr(other, name)]
    assert list(one.signers) == list(other.signers)
    assert sorted(one.callers) == sorted(other.callers)
    for proof, a in one.callers.items():
        b = other.callers.get(proof)
        assert b is not None
        found += [f"{proof.value!r}.{f}" for f in a.__struct_fields__ if getattr(a, f) != getattr(b, f)]
        for place, granted in a.entitlements.items():
            assert list(granted.rules) == list(b.entitlements[place].rules)
            assert list(granted.response) == list(b.entitlements[place].response)
            assert granted.operation is b.entitlements[place].operation
    return found


@settings(max_examples=150)
@given(documents())
def test_compiled_policy_means_what_its_document_means_for_every_credential(text: str) -> None:
    policy_set = read(text)
    data = compiled.write(policy_set)
    again = compiled.read(data, "acme.policy")
    assert differences(policy_set, again) == []
    assert again == policy_set
    assert compiled.write(again) == data


@settings(max_examples=50)
@given(documents(), st.data())
def test_calls_are_decided_alike(text: str, data: st.DataObject) -> None:
    policy_set = read(text)
    again = compiled.read(compiled.write(policy_set), "acme.policy")
    asked = data.draw(
        st.dictionaries(
            st.sampled_from(["customer", "description", "metadata[order_id]", "currency", "auto_advance", "footer"]),
            st.sampled_from(["usd", "ö-1", "true", "cus_1", "x" * 300]),
        )
    )
    for one, other in zip(everybody(policy_set), everybody(again), strict=True):
        for name, connection_name, operation in one.entitlements:
            made = call(asked, key="a", name=name, connection_name=connection_name, operation=operation)
            assert decided(policy_set, one, made) == decided(again, other, made)


def decided(policy_set: PolicySet, caller: Caller, made: Call) -> object:
    try:
        return access.decide(policy_set, caller, made)
    except Refusal as refusal:
        return type(refusal), str(refusal)


def test_comparison_sees_a_difference() -> None:
    policy_set = read(EXAMPLE)
    proof, caller = next(iter(policy_set.callers.items()))
    other = replace(policy_set, callers={**policy_set.callers, proof: replace(caller, expires=1.0)})
    assert differences(policy_set, compiled.read(compiled.write(other), "x")) == [f"{proof.value!r}.expires"]


def test_stranger_is_nobody() -> None:
    again = compiled.read(WHOLE, "acme.policy")
    nobody, eve = Proof("key", bytes(32)), Proof("google", b"eve@acme.example")
    assert again.callers.get(nobody) is None
    assert nobody not in again.callers
    assert again.callers.get(eve) is None
    assert Proof("another kind", bytes(32)) not in again.callers
    assert ("ft-4", "nowhere") not in again.signers
    with pytest.raises(KeyError):
        again.callers[nobody]


def test_policy_without_google_identities_says_so_unread() -> None:
    assert compiled.read(compiled.write(read(written())), "acme.policy").kinds == {"key"}


def test_it_carries_the_digest_of_its_document_and_is_the_same_bytes_wherever_it_is_made() -> None:
    assert compiled.read(WHOLE, "acme.policy").digest == hashlib.sha256(EXAMPLE.encode()).hexdigest()
    program = (
        "import sys; from policies import compiled, document\n"
        "sys.stdout.buffer.write(compiled.write(document.read(sys.stdin.read(), 'x')))"
    )
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-X", "utf8", "-c", program],
            input=EXAMPLE.encode(), capture_output=True, cwd=ROOT, env={"PYTHONHASHSEED": seed}, check=True,
        )  # fmt: skip
        assert run.stdout == WHOLE


def numbered(number: int) -> Proof:
    return Proof("key", number.to_bytes(32))


def many(callers: int) -> str:
    head, caller = written().split("  app:")
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    return head + "".join(f"  app-{n}:{caller.replace(digest, f'{n:064x}')}" for n in range(callers))


def test_grants_that_say_the_same_are_there_once_and_callers_stay_bytes() -> None:
    text = many(500)
    data = compiled.write(read(text))
    assert len(data) < 80 * 500 < len(text) / 4
    again = compiled.read(data, "acme.policy")
    one, other = again.callers[numbered(7)], again.callers[numbered(8)]
    assert (one.id, other.id) == ("app-7", "app-8")
    assert next(iter(one.entitlements.values())) is next(iter(other.entitlements.values()))
    assert again.callers[numbered(7)] is one
    assert len(again.callers._read) == 2  # type: ignore[attr-defined]  # the compiled form's own mapping


def test_threads_that_ask_for_one_caller_at_once_all_get_it() -> None:
    again, found = compiled.read(compiled.write(read(many(50))), "acme.policy"), []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait(10)
        found.append([again.callers[numbered(n)].id for n in range(50)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[f"app-{n}" for n in range(50)]] * 8


# ---------------------------------------------------------------- or it is not read


@pytest.mark.parametrize("length", [*range(len(compiled.MARK), HEAD + 40), *range(HEAD + 40, len(WHOLE), 97)])
def test_cut_off_file_is_refused(length: int) -> None:
    assert compiled.recognised(WHOLE[:length])
    assert refused(WHOLE[:length]) == DAMAGED


@pytest.mark.parametrize("more", [b"\n", b"\0", WHOLE])
def test_file_with_more_behind_it_is_refused(more: bytes) -> None:
    assert refused(WHOLE + more) == DAMAGED


@given(st.integers(len(compiled.MARK), len(WHOLE) - 1), st.integers(1, 255))
def test_flipped_bits_are_refused(at: int, flip: int) -> None:
    assert refused(WHOLE[:at] + bytes([WHOLE[at] ^ flip]) + WHOLE[at + 1 :]) == DAMAGED


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(noise: bytes) -> None:
    assert refused(compiled.MARK + noise) == DAMAGED
    assert refused(sealed(noise)) == DAMAGED


HUGE = b"\xff\xff\xff\xff"
EMPTY = {"digest": b"\xa1a", "connections": b"\x90", "grants": b"\x90", "callers": b"\x80", "proofs": b"\x80"}
EMPTY |= {"signers": b"\x90"}


def body(**parts: bytes) -> bytes:
    return b"\x96" + b"".join({**EMPTY, **parts}.values())


GRANT = msgspec.msgpack.encode(["a", "invoices.create", [True, None, 1], [], [], ["id"], None, [], None, None])
CALLER = msgspec.msgpack.encode(["ann", [], [], [0], False, None])
HMAC = b"\x81\xa4hmac\x81\xc4\x02[]\x94\x00\xa1k\xc0\xa1a"
KEY = b"\x81\xa3key\x81\xc4\x01k\x94\x00\xa1k\xc0\xc0"
CONNECTION = msgspec.msgpack.encode(["a", "n", "c", "stripe", "o", "s", None, False, {}, "", ["n", "c"], "p"])


def test_smallest_sealed_policy_is_read() -> None:
    """So that the next test fails for its own reasons."""
    parts = {"connections": b"\x91" + CONNECTION, "grants": b"\x91" + GRANT, "callers": b"\x81\xa1c" + CALLER}
    assert compiled.read(sealed(body(**parts, proofs=KEY)), "x").callers[Proof("key", b"k")].entitlements


@pytest.mark.parametrize(
    "parts",
    [
        {"grants": b"\xdd" + HUGE},
        {"connections": b"\xdd" + HUGE},
        {"callers": b"\xdf" + HUGE},
        {"proofs": b"\xdf" + HUGE},
        {"signers": b"\xdd" + HUGE},
        {"digest": b"\xdb" + HUGE},
        {"digest": b"\xa1\xff"},
        {"grants": b"\x91" * 1_000_000},
        {"grants": b"\x91" + b"\x81\xa1a" * 1_000_000},
        {"signers": b"\x90\x90"},
        {"proofs": b"\x81\xa3key\xc0"},
        {"proofs": KEY},
        {"proofs": KEY, "callers": b"\x81\xa1c" + CALLER},
        {"callers": b"\x81\xa1c" + CALLER, "grants": b"\x91" + GRANT},
        {"callers": b"\x81\xa1c\x90"},
        {"grants": b"\x91\xc0", "connections": b"\x91" + CONNECTION},
        {"grants": b"\x91" + GRANT.replace(b"create", b"remove"), "connections": b"\x91" + CONNECTION},
        {"grants": b"\x91" + GRANT.replace(b"\xa2id", b"\xa2ix"), "connections": b"\x91" + CONNECTION},
        {"connections": b"\x91" + CONNECTION.replace(b"stripe", b"strypi")},
        {"callers": b"\x81\xa1c" + msgspec.msgpack.encode(["ann", [], None, [-1], False, None])},
        {"proofs": KEY.replace(b"\x94\x00", b"\x94\xff"), "callers": b"\x81\xa1c" + CALLER},
        {
            "connections": b"\x91" + CONNECTION,
            "grants": b"\x91" + GRANT,
            "callers": b"\x81\xa1c" + CALLER,
            "proofs": KEY[:-1] + b"\xa1b",
        },
        {
            "connections": b"\x91" + CONNECTION,
            "grants": b"\x91" + GRANT,
            "callers": b"\x81\xa1c" + CALLER,
            "proofs": HMAC,
            "signers": b"\x91\x93\xa1n\xa1c\x91\x92\xa4hmac\xc4\x02[]",
        },
    ],
)
def test_body_that_a_hostile_hand_has_sealed_is_read_whole_or_not_at_all(parts: dict[str, bytes]) -> None:
    tracemalloc.start()
    try:
        assert refused(sealed(body(**parts))) == DAMAGED
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


@settings(max_examples=300)
@given(st.integers(HEAD, len(WHOLE) - 1), st.binary(max_size=4), st.integers(0, 4))
def test_sealed_body_with_a_slip_in_it_is_refused_or_read_to_the_last_caller(at: int, slip: bytes, cut: int) -> None:
    try:
        policy_set = compiled.read(sealed(WHOLE[HEAD:at] + slip + WHOLE[at + cut :]), "acme.policy")
    except DocumentError as error:
        assert str(error) == DAMAGED  # noqa: PT017 - it may be read as well
    else:
        assert all(caller.id in policy_set.names for caller in everybody(policy_set))


def test_text_is_never_taken_for_a_compiled_policy() -> None:
    with pytest.raises(UnicodeDecodeError):
        compiled.MARK.decode()
    assert not compiled.recognised(EXAMPLE.encode())


# ---------------------------------------------------------------- another version's


@pytest.mark.parametrize("change", ["edition", "catalogue", "fields"])
def test_policy_compiled_by_another_version_is_refused_and_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    operation = OPERATIONS["invoices.create"]
    if change == "edition":
        monkeypatch.setattr(compiled, "EDITION", compiled.EDITION + 1)
    elif change == "catalogue":
        customer = replace(operation.parameters["customer"], max_length=3)
        other = replace(operation, parameters={**operation.parameters, "customer": customer})
        monkeypatch.setattr(compiled, "OPERATIONS", {**OPERATIONS, operation.id: other})
    else:
        monkeypatch.setattr(compiled, "OPERATIONS", {**OPERATIONS, operation.id: replace(operation, fields={})})
    assert refused(WHOLE) == (
        "acme.policy: this policy was compiled by another version of Countersign. Compile the document again: "
        "./countersign check DOCUMENT --compile FILE, with the version that will read it"
    )


def test_documents_mean_what_they_always_meant_in_this_edition() -> None:
    """If this fails, a policy that was compiled before would no longer mean what its document means.

    Raise EDITION, so that it is refused; then write what is found here. Where nothing but the catalogue was changed,
    EDITION may stay.
    """
    parameters = "\n".join(f"{path}: {bounds}" for path, bounds in BOUNDS.items())
    texts = [written(parameters), written(groups="plain, changes price or content", idempotency="required")]
    bodies = [compiled.write(replace(read(text), digest=""))[HEAD:] for text in texts]
    assert (compiled.EDITION, hashlib.sha256(b"".join(bodies)).hexdigest()) == MEANS
