"""Secret Manager -> Secret, with Google's own client against a server that speaks its protocol."""

from __future__ import annotations

import base64
import logging
import os
import socket
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import grpc
import pytest
from google.auth import exceptions as auth_exceptions
from google.auth.credentials import AnonymousCredentials

from gateway.forks import PerProcess
from gateway.kept import DownError, GoneError
from gateway.secrets import (
    EARLIER,
    FRESH_SECONDS,
    LAST_GOOD_SECONDS,
    MAX_LENGTH,
    PAUSE_SECONDS,
    REDACTED,
    Mounted,
    NotAKeyError,
    Secret,
    SecretManager,
    Secrets,
    meanings,
)
from policies.refusals import SecretUnavailable
from sandbox.__main__ import SECRET, UPSTREAM_KEY
from tests.conftest import OTHER_KEY, TARGET, Clock, policy
from tests.gateway.conftest import at_once, granted
from tests.problems import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from policies.model import Grant
    from sandbox.appgregator import Appgregator
    from sandbox.secret_manager import SecretManager as Sandbox
    from tests.conftest import Function
    from tests.gateway.conftest import Held

LATEST = f"{SECRET}/versions/latest"
ROTATED = "another-upstream-key"
#: Statuses that Google's client does not try again, so that one read is one access.
ONCE = grpc.StatusCode.UNKNOWN


@pytest.fixture
def manager(secret_manager: Sandbox) -> Iterator[SecretManager]:
    source = SecretManager(secret_manager.address)
    yield source
    source.close()


@pytest.fixture
def secrets(manager: SecretManager, clock: Clock) -> Secrets:
    return Secrets(manager=manager, mounted=Mounted(), clock=clock)


@pytest.fixture
def grant() -> Grant:
    return granted()


def test_key_is_read_with_its_own_version_number(secrets: Secrets, grant: Grant, clock: Clock) -> None:
    secret = secrets.access(grant, clock() + 25)
    assert (secret.name, secret.version, secret.value.reveal()) == (LATEST, "1", UPSTREAM_KEY)


def test_wrong_checksum_is_refused_and_a_right_one_taken_next(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    secret_manager.corrupt = True
    with pytest.raises(SecretUnavailable) as caught:
        secrets.access(grant, clock() + 25)
    assert caught.value.note == "the checksum does not match"
    secret_manager.corrupt = False
    clock.tick(PAUSE_SECONDS)
    assert secrets.access(grant, clock() + 25).value.reveal() == UPSTREAM_KEY


def test_omitted_checksum_is_refused(secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox) -> None:
    secret_manager.omit_checksum = True
    with pytest.raises(SecretUnavailable):
        secrets.access(grant, clock() + 25)


def test_fifty_calls_that_wait_cost_one_access(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    secret_manager.delay = 0.3
    found = at_once(50, lambda _: secrets.access(grant, clock() + 25).value.reveal())
    assert found == [UPSTREAM_KEY] * 50
    assert secret_manager.accesses == (LATEST,)


@pytest.mark.parametrize("code", [ONCE, grpc.StatusCode.NOT_FOUND], ids=["down", "gone"])
def test_failure_is_shared_by_those_who_wait_and_by_nobody_after_the_pause(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox, code: grpc.StatusCode
) -> None:
    secret_manager.delay = 0.3
    secret_manager.down(code)

    def access(_: int) -> type[BaseException] | None:
        try:
            secrets.access(grant, clock() + 25)
        except SecretUnavailable as error:
            return type(error)
        return None

    assert at_once(20, access) == [SecretUnavailable] * 20
    assert len(secret_manager.accesses) == 1
    secret_manager.up()
    clock.tick(PAUSE_SECONDS)
    assert secrets.access(grant, clock() + 25).value.reveal() == UPSTREAM_KEY


def test_waiting_for_another_calls_read_ends_at_the_deadline(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with secret_manager._lock:  # it answers nobody
            first = pool.submit(secrets.access, grant, clock() + 25)
            while not secret_manager.accesses:
                time.sleep(0.01)
            with pytest.raises(SecretUnavailable) as caught:
                secrets.access(grant, clock() + 0.1)
        assert caught.value.note == "another call's read took too long"
        assert first.result().value.reveal() == UPSTREAM_KEY
    assert secret_manager.accesses == (LATEST,)


def test_key_is_fresh_for_a_minute_and_then_read_again(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    secrets.access(grant, clock() + 25)
    secret_manager.add(SECRET, ROTATED.encode())
    clock.tick(FRESH_SECONDS - 0.001)
    assert secrets.access(grant, clock() + 25).value.reveal() == UPSTREAM_KEY
    assert len(secret_manager.accesses) == 1
    clock.tick(0.001)
    secret = secrets.access(grant, clock() + 25)
    assert (secret.value.reveal(), secret.version) == (ROTATED, "2")
    assert len(secret_manager.accesses) == 2


def test_last_good_key_is_used_while_secret_manager_is_down_with_one_attempt_in_five_seconds(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    secrets.access(grant, clock() + 25)
    secret_manager.forget()
    secret_manager.down(ONCE)
    clock.tick(FRESH_SECONDS)
    for _ in range(100):
        assert secrets.access(grant, clock() + 25).value.reveal() == UPSTREAM_KEY
        clock.tick(PAUSE_SECONDS / 100)
    assert len(secret_manager.accesses) == 1
    assert secrets.access(grant, clock() + 25).value.reveal() == UPSTREAM_KEY
    assert len(secret_manager.accesses) == 2


def test_last_good_key_is_used_for_an_hour_and_not_longer(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    secrets.access(grant, clock() + 25)
    secret_manager.down(ONCE)
    clock.tick(LAST_GOOD_SECONDS - 0.001)
    assert secrets.access(grant, clock() + 25).value.reveal() == UPSTREAM_KEY
    clock.tick(0.001)
    with pytest.raises(SecretUnavailable) as caught:
        secrets.access(grant, clock() + 25)
    assert caught.value.retry_after == 5


def test_key_is_read_again_as_soon_as_secret_manager_is_back(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    secrets.access(grant, clock() + 25)
    secret_manager.down(ONCE)
    clock.tick(FRESH_SECONDS)
    secrets.access(grant, clock() + 25)
    secret_manager.up()
    secret_manager.add(SECRET, ROTATED.encode())
    clock.tick(PAUSE_SECONDS)
    assert secrets.access(grant, clock() + 25).value.reveal() == ROTATED


@pytest.mark.parametrize("how", ["disabled", "destroyed", "forbidden", "absent", "malformed"])
def test_key_that_is_taken_away_stops_at_once(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox, how: str
) -> None:
    secrets.access(grant, clock() + 25)
    match how:
        case "disabled":
            secret_manager.disable(SECRET, 1)
        case "destroyed":
            secret_manager.destroy(SECRET, 1)
        case "forbidden":
            secret_manager.down(grpc.StatusCode.PERMISSION_DENIED)
        case "absent":
            secret_manager.down(grpc.StatusCode.NOT_FOUND)
        case _:
            secret_manager.down(grpc.StatusCode.INVALID_ARGUMENT)
    clock.tick(FRESH_SECONDS)
    with pytest.raises(SecretUnavailable):
        secrets.access(grant, clock() + 25)
    secret_manager.down(ONCE)
    clock.tick(PAUSE_SECONDS)
    with pytest.raises(SecretUnavailable):  # no last good value comes back either
        secrets.access(grant, clock() + 25)


@pytest.mark.parametrize("code", [ONCE, grpc.StatusCode.NOT_FOUND], ids=["down", "gone"])
def test_secret_that_cannot_be_had_costs_one_read_in_five_seconds_however_many_ask(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox, code: grpc.StatusCode
) -> None:
    secret_manager.down(code)
    for reads in (1, 2):
        for _ in range(20):
            with pytest.raises(SecretUnavailable):
                secrets.access(grant, clock() + 25)
        assert len(secret_manager.accesses) == reads
        clock.tick(PAUSE_SECONDS)


def test_secret_beyond_the_first_thousand_is_read_once_as_all_others(clock: Clock) -> None:
    class Counting:
        reads = 0

        def read(self, _name: str) -> tuple[str, bytes]:
            self.reads += 1
            return "1", UPSTREAM_KEY.encode()

    source, most = Counting(), 3000
    secrets = Secrets(manager=source, mounted=source, clock=clock)
    for _ in range(2):
        for number in range(most):
            secret = secrets.signing(f"projects/acme/secrets/s{number}/versions/1", clock() + 25)
            assert secret.reveal() == UPSTREAM_KEY
    assert source.reads == most


def test_secret_that_is_not_ours_or_not_there_is_unavailable(clock: Clock, secrets: Secrets) -> None:
    for name in ("projects/forbidden/secrets/s/versions/1", "projects/sandbox/secrets/none/versions/1"):
        with pytest.raises(SecretUnavailable):
            secrets.access(granted(policy("http://127.0.0.1:9", secret=name)), clock() + 25)


@pytest.mark.parametrize("silent", [True, False], ids=["accepts and says nothing", "refuses connections"])
def test_secret_manager_that_is_down_is_answered_within_three_seconds(
    grant: Grant, clock: Clock, *, silent: bool
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        manager = SecretManager(f"127.0.0.1:{listener.getsockname()[1]}")
        secrets = Secrets(manager=manager, mounted=Mounted(), clock=clock)
        manager._client.get()  # Google's client is imported once a process, and that is not counted
        began = time.monotonic()
        with pytest.raises(SecretUnavailable):
            secrets.access(grant, clock() + 25)
        assert time.monotonic() - began < 30  # on a busy machine
        manager.close()
    assert SecretManager.ATTEMPT + SecretManager.TOTAL < 3


def test_secrets_are_down_in_time_while_google_does_not_say_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked = threading.Event(), list[str]()

    def silent(*_: object, **__: object) -> tuple[Any, str]:
        asked.append("who")
        assert answer.wait(30), "somebody has waited for it"
        return AnonymousCredentials(), "acme"  # type: ignore[no-untyped-call]  # it has no types

    monkeypatch.setattr("google.auth.default", silent)
    monkeypatch.setattr(SecretManager, "CONNECT", 0.2)
    manager = SecretManager()
    manager.prepare()

    def down(number: int) -> str:
        with pytest.raises(DownError) as caught:
            manager.read(f"projects/acme/secrets/key-{number}/versions/latest")
        return str(caught.value)

    assert at_once(8, down) == ["TimeoutError"] * 8
    assert asked == ["who"]
    answer.set()
    assert manager._client.get() is manager._client.get()  # made by the thread that waited
    assert asked == ["who"]
    manager.close()


def test_closed_client_leaves_no_connection_for_a_fork_to_inherit_and_is_made_anew(
    manager: SecretManager, secret_manager: Sandbox
) -> None:
    secret_manager.add("projects/sandbox/secrets/policy", "callers: é".encode())
    assert manager.read("projects/sandbox/secrets/policy/versions/1")[1] == "callers: é".encode()
    manager.close()
    assert manager._client.made() is None
    assert manager.read(LATEST)[1].decode() == UPSTREAM_KEY


# ---------------------------------------------------------------- what Google's client raises


def test_only_what_says_that_there_is_no_such_secret_for_us_means_that_it_is_gone() -> None:
    gone = {each.__name__ for each, means in meanings().items() if means is GoneError}
    assert gone == {"NotFound", "PermissionDenied", "FailedPrecondition", "InvalidArgument"}


@pytest.mark.parametrize(
    "raised",
    [
        grpc.RpcError("injected"),
        auth_exceptions.RefreshError("injected"),  # type: ignore[no-untyped-call]
        ValueError("injected"),
        OSError("injected"),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_whatever_googles_client_raises_is_down_and_its_text_stays_inside(
    grant: Grant, clock: Clock, raised: Exception
) -> None:
    class Client:
        def access_secret_version(self, **_: object) -> None:
            raise raised

    manager = SecretManager()
    manager._client = PerProcess(Client)
    with pytest.raises(SecretUnavailable) as caught:
        Secrets(manager=manager, mounted=Mounted(), clock=clock).access(grant, clock() + 25)
    assert (caught.value.note, caught.value.retry_after) == (type(raised).__name__, PAUSE_SECONDS)
    with pytest.raises(DownError):
        manager.read(LATEST)


# ---------------------------------------------------------------- a key the upstream refused


def test_renewal_brings_the_changed_key(secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox) -> None:
    refused = secrets.access(grant, clock() + 25)
    secret_manager.add(SECRET, ROTATED.encode())
    fresh = secrets.renew(grant, refused, clock() + 25)
    assert fresh is not None
    assert fresh.value.reveal() == ROTATED
    assert secrets.access(grant, clock() + 25) is fresh
    assert len(secret_manager.accesses) == 2


def test_renewal_of_an_unchanged_key_brings_nothing_and_reads_once_in_five_seconds(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    refused = secrets.access(grant, clock() + 25)
    secret_manager.forget()
    for _ in range(100):
        assert secrets.renew(grant, refused, clock() + 25) is None
        assert secrets.access(grant, clock() + 25).value.reveal() == UPSTREAM_KEY
        clock.tick(PAUSE_SECONDS / 100 - 0.001)
    assert len(secret_manager.accesses) == 1
    secret_manager.add(SECRET, ROTATED.encode())
    clock.tick(0.2)
    fresh = secrets.renew(grant, refused, clock() + 25)
    assert fresh is not None
    assert fresh.value.reveal() == ROTATED


def test_renewal_reads_nothing_where_another_call_has_renewed(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    refused = secrets.access(grant, clock() + 25)
    secret_manager.add(SECRET, ROTATED.encode())
    first = secrets.renew(grant, refused, clock() + 25)
    secret_manager.forget()
    assert secrets.renew(grant, refused, clock() + 25) is first
    assert secret_manager.accesses == ()


def test_fifty_renewals_at_once_cost_one_read(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    refused = secrets.access(grant, clock() + 25)
    secret_manager.add(SECRET, ROTATED.encode())
    secret_manager.forget()
    secret_manager.delay = 0.2
    fresh = at_once(50, lambda _: secrets.renew(grant, refused, clock() + 25))
    assert [secret and secret.value.reveal() for secret in fresh] == [ROTATED] * 50
    assert len(secret_manager.accesses) == 1


def test_fifty_renewals_at_once_of_an_unchanged_key_cost_one_read(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    refused = secrets.access(grant, clock() + 25)
    secret_manager.forget()
    secret_manager.delay = 0.2
    assert at_once(50, lambda _: secrets.renew(grant, refused, clock() + 25)) == [None] * 50
    assert len(secret_manager.accesses) == 1


def test_refused_key_is_not_handed_out_while_it_is_renewed(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    refused = secrets.access(grant, clock() + 25)
    secret_manager.add(SECRET, ROTATED.encode())
    secret_manager.forget()
    secret_manager.delay = 0.3
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(secrets.renew, grant, refused, clock() + 25)
        while not secret_manager.accesses:
            time.sleep(0.01)
        assert secrets.access(grant, clock() + 25).value.reveal() == ROTATED
        assert renewing.result() is secrets.access(grant, clock() + 25)
    assert len(secret_manager.accesses) == 1


@pytest.mark.parametrize("code", [ONCE, grpc.StatusCode.NOT_FOUND], ids=["down", "gone"])
def test_renewal_brings_nothing_where_nothing_can_be_read(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox, code: grpc.StatusCode
) -> None:
    refused = secrets.access(grant, clock() + 25)
    secret_manager.down(code)
    assert secrets.renew(grant, refused, clock() + 25) is None


# ---------------------------------------------------------------- mounted


def test_mounted_key_is_read_and_its_rotation_seen(secrets: Secrets, clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{UPSTREAM_KEY}\n")
    grant = granted(policy("http://127.0.0.1:9", secret=f"file:{path}"))
    secret = secrets.access(grant, clock() + 25)
    assert (secret.value.reveal(), secret.version) == (UPSTREAM_KEY, "mounted")
    path.write_text(ROTATED)
    clock.tick(FRESH_SECONDS)
    assert secrets.access(grant, clock() + 25).value.reveal() == ROTATED


def test_mounted_key_that_is_missing_stops_at_once(secrets: Secrets, clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(UPSTREAM_KEY)
    grant = granted(policy("http://127.0.0.1:9", secret=f"file:{path}"))
    secrets.access(grant, clock() + 25)
    path.unlink()
    clock.tick(FRESH_SECONDS)
    with pytest.raises(SecretUnavailable) as caught:
        secrets.access(grant, clock() + 25)
    assert caught.value.note == "the file does not exist"


def test_mounted_key_that_cannot_be_read_is_down(tmp_path: Path) -> None:
    with pytest.raises(DownError, match="the path leads to a folder"):
        Mounted().read(f"file:{tmp_path}")


@pytest.mark.parametrize("how", ["a pipe", "no answer"])
def test_mounted_key_that_hangs_is_told_once_while_the_last_good_one_is_used_for_a_bounded_time(
    clock: Clock, tmp_path: Path, hold: Callable[[Path], Held], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    told: list[tuple[str, str]] = []
    secrets = Secrets(manager=Mounted(), mounted=Mounted(), clock=clock, report=lambda *said: told.append(said))
    path = tmp_path / "key"
    path.write_text(UPSTREAM_KEY)
    grant = granted(policy("http://127.0.0.1:9", secret=f"file:{path}"))
    secrets.access(grant, clock() + 25)
    if how == "a pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        hold(path)
    monkeypatch.setattr("gateway.files.READ_SECONDS", 0.3)
    clock.tick(FRESH_SECONDS)
    for _ in range(5):
        assert secrets.access(grant, clock() + 25).value.reveal() == UPSTREAM_KEY
        clock.tick(PAUSE_SECONDS)
    problem = "the path leads to a pipe" if how == "a pipe" else "reading it takes longer than 0.3 s"
    assert told == [(f"file:{path}", problem)]
    clock.tick(LAST_GOOD_SECONDS)
    with pytest.raises(SecretUnavailable) as caught:
        secrets.access(grant, clock() + 25)
    assert (caught.value.note, caught.value.retry_after) == (problem, PAUSE_SECONDS)


def test_mounted_key_that_hangs_holds_up_nobody_who_needs_another(
    function: Callable[..., Function],
    upstream: Appgregator,
    tmp_path: Path,
    hold: Callable[[Path], Held],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D11: the call gets 503, and it is on record."""
    monkeypatch.setattr("gateway.files.READ_SECONDS", 60.0)
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.write_text(UPSTREAM_KEY)
    held = hold(one)
    text = policy(upstream.origin, secret=f"file:{one}")
    first, second = text.split("  other-account:")
    gate = function(first + "  other-account:" + second.replace(f"file:{one}", f"file:{other}", 1))
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(gate.post)
        while not any(thread.name == "file" for thread in threading.enumerate()):
            time.sleep(0.001)
        answer = gate.post(TARGET.replace("stripe-1", "stripe-2"), key=OTHER_KEY, Idempotency_Key="order-1")
        assert answer.status_code == 200
        assert not stuck.done()
        held.let_go()
        assert stuck.result().status_code == 200
    assert [entry["kind"] for entry in gate.record.entries()] == ["intent", "outcome"] * 2


def test_call_whose_mounted_key_hangs_is_refused_and_both_are_on_record(
    function: Callable[..., Function],
    upstream: Appgregator,
    tmp_path: Path,
    hold: Callable[[Path], Held],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D11."""
    (tmp_path / "key").write_text(UPSTREAM_KEY)
    gate = function(policy(upstream.origin, secret=f"file:{tmp_path / 'key'}"))
    hold(tmp_path / "key")
    monkeypatch.setattr("gateway.files.READ_SECONDS", 0.3)
    refused(gate.post(), 503, "secret-unavailable")
    told, refusal = gate.record.lines()[-2:]
    assert (told["severity"], told["countersign"]["problem"]) == ("ERROR", "reading it takes longer than 0.3 s")
    assert refusal["countersign"]["reason"] == "secret-unavailable"
    assert refusal["countersign"]["note"] == "reading it takes longer than 0.3 s"
    assert not upstream.calls


# ---------------------------------------------------------------- what can be a key


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", ""])
def test_line_break_at_the_end_is_not_part_of_a_key(end: str) -> None:
    assert Secret.of("s", "1", (UPSTREAM_KEY + end).encode()).value.reveal() == UPSTREAM_KEY


@pytest.mark.parametrize("key", ["12345678", "!~" * 4, "k" * MAX_LENGTH])
def test_key_may_be_8_to_4096_printable_characters(key: str) -> None:
    assert Secret.of("s", "1", key.encode()).value.reveal() == key


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"1234567",
        b"k" * (MAX_LENGTH + 1),
        b"a key with spaces",
        b" leading-space",
        b"trailing-space ",
        b"tab\tinside-it",
        b"null\0inside-it",
        "clé-of-somebody".encode(),
        b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8",
        b"injected-key\r\nX-Admin: yes",
        b"injected-key\nX-Admin:yes",
        b"\nleading-break",
    ],
)
def test_value_that_cannot_be_a_key_is_refused_without_being_shown(data: bytes) -> None:
    with pytest.raises(NotAKeyError, match="version 1 holds no key: ") as caught:
        Secret.of("s", "1", data)
    shown = "".join(traceback.format_exception(caught.value))
    for word in ("injected", "Admin", "1234567", "somebody", "inside", "with spaces"):
        assert word not in shown.partition("holds no key")[2]
    assert caught.value.__cause__ is None


def test_unusable_value_in_secret_manager_is_unavailable(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    secret_manager.add(SECRET, b"injected-key\r\nX-Admin: yes")
    with pytest.raises(SecretUnavailable) as caught:
        secrets.access(grant, clock() + 25)
    assert "injected" not in "".join(traceback.format_exception(caught.value)) + str(caught.value.note)


# ---------------------------------------------------------------- a version that holds no key

NO_KEY = {
    "empty": b"",
    "a line break": b"\n",
    "too short": b"1234567",
    "too long": b"k" * (MAX_LENGTH + 1),
    "a control character": b"injected\x00key",
    "two lines": b"injected-key\r\nX-Admin: yes",
    "not ASCII": "clé-injected".encode(),
}
LIVE, TEST = b"sk_live_51abc", b"sk_test_51injected"


def of_mode(mode: str, **options: str) -> Grant:
    """Grant a call on a connection for data of one mode."""
    text = policy("http://127.0.0.1:9", upstream="stripe", **options)
    return granted(text.replace("    upstream: stripe\n", f"    upstream: stripe\n    mode: {mode}\n"))


@pytest.mark.parametrize("data", [*NO_KEY.values(), TEST], ids=[*NO_KEY, "of the other mode"])
@pytest.mark.parametrize("mounted", [False, True], ids=["in Secret Manager", "mounted"])
def test_last_good_key_is_used_while_a_version_holds_no_key(
    manager: SecretManager, clock: Clock, secret_manager: Sandbox, tmp_path: Path, data: bytes, *, mounted: bool
) -> None:
    """Somebody has rotated it wrongly. That is no reason to stop, and one to tell the operator."""
    told: list[tuple[str, str]] = []
    secrets = Secrets(manager=manager, mounted=Mounted(), clock=clock, report=lambda *said: told.append(said))
    name = f"file:{tmp_path / 'key'}" if mounted else LATEST

    def add(value: bytes) -> None:
        (tmp_path / "key").write_bytes(value)
        secret_manager.add(SECRET, value)

    add(LIVE)
    grant = of_mode("live", secret=name)
    assert secrets.access(grant, clock() + 25).value.reveal() == LIVE.decode()
    add(data)
    secret_manager.forget()
    clock.tick(FRESH_SECONDS)
    for reads in (1, 2, 3):
        for _ in range(20):
            assert secrets.access(grant, clock() + 25).value.reveal() == LIVE.decode()
        assert mounted or len(secret_manager.accesses) == reads
        clock.tick(PAUSE_SECONDS)
    [(named, problem)] = told  # once, however often it is read
    assert named == name
    holder = "the file holds " if mounted else "version 3 holds "
    assert problem.startswith(holder + ("a test key" if data == TEST else "no key: "))
    assert "injected" not in problem
    clock.tick(LAST_GOOD_SECONDS)
    with pytest.raises(SecretUnavailable) as caught:
        secrets.access(grant, clock() + 25)
    assert (caught.value.note, caught.value.retry_after) == (problem, PAUSE_SECONDS)
    add(LIVE + b"2")
    clock.tick(PAUSE_SECONDS)
    assert secrets.access(grant, clock() + 25).value.reveal() == (LIVE + b"2").decode()
    add(data)
    clock.tick(FRESH_SECONDS)
    assert secrets.access(grant, clock() + 25).value.reveal() == (LIVE + b"2").decode()
    assert len(told) == 2


def test_each_version_that_holds_no_key_is_told_once(
    manager: SecretManager, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    told: list[tuple[str, str]] = []
    secrets = Secrets(manager=manager, mounted=Mounted(), clock=clock, report=lambda *said: told.append(said))
    secrets.access(grant, clock() + 25)
    for _ in range(2):
        secret_manager.add(SECRET, b"")
        for _ in range(3):
            clock.tick(FRESH_SECONDS)
            secrets.access(grant, clock() + 25)
    assert [problem.partition(" holds")[0] for _, problem in told] == ["version 2", "version 3"]


def test_first_version_that_holds_no_key_costs_one_read_in_five_seconds(
    secrets: Secrets, clock: Clock, secret_manager: Sandbox
) -> None:
    secret_manager.add(SECRET, TEST)
    grant = of_mode("live")
    for reads in (1, 2):
        for _ in range(20):
            with pytest.raises(SecretUnavailable) as caught:
                secrets.access(grant, clock() + 25)
        assert caught.value.note == "version 2 holds a test key, and its connection is for live data"
        assert len(secret_manager.accesses) == reads
        clock.tick(PAUSE_SECONDS)


def test_key_is_no_key_for_a_connection_of_the_other_mode_only(
    secrets: Secrets, clock: Clock, secret_manager: Sandbox
) -> None:
    secret_manager.add(SECRET, LIVE)
    for _ in range(2):
        assert secrets.access(of_mode("live"), clock() + 25).value.reveal() == LIVE.decode()
        with pytest.raises(SecretUnavailable):
            secrets.access(of_mode("test"), clock() + 25)
        assert secrets.access(granted(), clock() + 25).value.reveal() == LIVE.decode()


def test_key_that_was_refused_is_not_followed_by_one_of_the_other_mode(
    secrets: Secrets, clock: Clock, secret_manager: Sandbox
) -> None:
    secret_manager.add(SECRET, LIVE)
    grant = of_mode("live")
    refused = secrets.access(grant, clock() + 25)
    secret_manager.add(SECRET, TEST)
    secret_manager.forget()
    for _ in range(20):
        assert secrets.renew(grant, refused, clock() + 25) is None
        assert secrets.access(grant, clock() + 25) is refused
    assert len(secret_manager.accesses) == 1


@pytest.mark.parametrize("how", ["disabled", "destroyed", "forbidden", "absent"])
def test_secret_that_is_gone_costs_one_read_in_five_seconds_for_whatever_it_is_wanted(
    secrets: Secrets, clock: Clock, secret_manager: Sandbox, how: str
) -> None:
    match how:
        case "disabled":
            secret_manager.disable(SECRET, 1)
        case "destroyed":
            secret_manager.destroy(SECRET, 1)
    name = {"forbidden": "projects/forbidden/secrets/s/versions/1", "absent": f"{SECRET}/versions/9"}.get(how, LATEST)
    grant = granted(policy("http://127.0.0.1:9", secret=name))
    refused = Secret.of(name, "1", UPSTREAM_KEY.encode())
    for reads in (1, 2, 3):
        for _ in range(20):
            with pytest.raises(SecretUnavailable) as caught:
                secrets.access(grant, clock() + 25)
            assert caught.value.retry_after is None  # nothing but the operator mends it
            assert secrets.renew(grant, refused, clock() + 25) is None
        assert len(secret_manager.accesses) == reads
        clock.tick(PAUSE_SECONDS)
    secret_manager.forget()
    for _ in range(20):
        with pytest.raises(SecretUnavailable):
            secrets.signing(name, clock() + 25)
    assert len(secret_manager.accesses) == 1


# ---------------------------------------------------------------- never shown


def test_key_shows_in_no_text_made_of_a_secret(
    secrets: Secrets, grant: Grant, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    secret = secrets.access(grant, clock() + 25)
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("%s %r", secret, secrets)
    shown = "".join(traceback.format_exception(ValueError(secret, secrets)))
    for text in (repr(secret), str(secret), f"{secret}", repr(secrets), repr([secret]), caplog.text, shown):
        assert UPSTREAM_KEY not in text
        assert not secret.occurs_in(text)
    assert LATEST in repr(secret)


def test_key_shows_in_no_exception_of_a_failed_renewal(
    secrets: Secrets, grant: Grant, clock: Clock, secret_manager: Sandbox
) -> None:
    secrets.access(grant, clock() + 25)
    secret_manager.corrupt = True
    clock.tick(LAST_GOOD_SECONDS)
    with pytest.raises(SecretUnavailable) as caught:
        secrets.access(grant, clock() + 25)
    assert UPSTREAM_KEY not in "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__)


# ---------------------------------------------------------------- redaction

#: Each has something that an encoding changes: + and / of base64, reserved characters, a length of every rest by 3.
KEYS = ["sandbox-upstream-key", "aB3+/xyz==", "k/&=%?#[]12", "AKIAIOSFODNN7EXAMPLE1", "12345678", "~~~???>>>"]


def texts(key: str) -> dict[str, str]:
    raw = key.encode()
    return {
        "raw": key,
        "upper": key.upper(),
        "reversed": key[::-1],
        "hex": raw.hex(),
        "upper hex": raw.hex().upper(),
        "percent": quote(key, safe=""),
        "percent, slash kept": quote(key),
        "percent of a form": quote_plus(key),
        "percent twice": quote(quote(key, safe=""), safe=""),
        "percent, all": "".join(f"%{byte:02X}" for byte in raw),
        "percent, some": key[:3] + f"%{raw[3]:02x}" + key[4:],
    } | {
        f"{name} after {lead} bytes": encode(b"z" * lead + raw + b"and more").decode()
        for name, encode in (("base64", base64.b64encode), ("urlsafe base64", base64.urlsafe_b64encode))
        for lead in range(7)
    }


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", texts(KEYS[0]))
def test_key_is_found_in_every_common_encoding(key: str, name: str) -> None:
    secret = Secret.of("s", "1", key.encode())
    text = texts(key)[name]
    assert secret.occurs_in(text)
    assert secret.redacted({"field": f"before {text} after"}) == {"field": REDACTED}


@pytest.mark.parametrize("lead", range(3))
def test_key_is_found_in_base64_that_ends_with_it(lead: int) -> None:
    for key in KEYS:
        encoded = base64.b64encode(b"z" * lead + key.encode()).decode()
        assert Secret.of("s", "1", key.encode()).occurs_in(encoded)
        assert Secret.of("s", "1", key.encode()).occurs_in(encoded.rstrip("="))


class Place:
    """Where secrets are read: of each the key that it holds now."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}

    def read(self, name: str) -> tuple[str, bytes]:
        return name.rpartition("/")[2], self.keys[name].encode()


@pytest.mark.parametrize("pinned", [False, True], ids=["latest", "another version in the policy"])
def test_keys_that_were_read_before_are_found_as_well(clock: Clock, *, pinned: bool) -> None:
    place = Place()
    secrets = Secrets(manager=place, mounted=Mounted(), clock=clock)
    keys = [f"{number}-{UPSTREAM_KEY}-{number}" for number in range(6)]
    for number, key in enumerate(keys):
        name = f"{SECRET}/versions/{number}" if pinned else LATEST
        place.keys[name] = key
        for _ in range(2):  # read again, it is the same
            secret = secrets.access(granted(policy("http://127.0.0.1:9", secret=name)), clock() + 25)
            clock.tick(FRESH_SECONDS)
        known = keys[max(0, number - EARLIER) : number + 1]
        assert secret.value.reveal() == key
        assert [one for one in keys if secret.occurs_in(one)] == known
        assert all(secret.occurs_in(text) for one in known for text in texts(one).values())


def test_keys_of_another_secret_are_not_looked_for(clock: Clock) -> None:
    place = Place()
    secrets = Secrets(manager=place, mounted=Mounted(), clock=clock)
    names = LATEST, LATEST.replace("/secrets/", "/secrets/other-")
    place.keys = dict(zip(names, (UPSTREAM_KEY, ROTATED), strict=True))
    one, two = (secrets.access(granted(policy("http://127.0.0.1:9", secret=name)), clock() + 25) for name in names)
    assert [one.occurs_in(UPSTREAM_KEY), one.occurs_in(ROTATED)] == [True, False]
    assert [two.occurs_in(UPSTREAM_KEY), two.occurs_in(ROTATED)] == [False, True]


def test_redaction_reaches_every_place_of_an_answer() -> None:
    secret = Secret.of("s", "1", b"12345678")
    answer: dict[str, object] = {
        "text": "it is 12345678.",
        "number": 12345678,
        "larger number": 9123456789,
        "fraction": 12345678.5,
        "list": ["12345678", 1, ["x12345678x"]],
        "nested": {"lines": [{"data": {"amount": 12345678, "id": "li_1"}}]},
        "a 12345678 key": True,
        "none": None,
    }
    assert secret.redacted(answer) == {
        "text": REDACTED,
        "number": REDACTED,
        "larger number": REDACTED,
        "fraction": REDACTED,
        "list": [REDACTED, 1, [REDACTED]],
        "nested": {"lines": [{"data": {"amount": REDACTED, "id": "li_1"}}]},
        REDACTED: True,
        "none": None,
    }


def test_innocent_answer_is_left_as_it_is() -> None:
    answer: dict[str, object] = {
        "id": "in_1MtHbELkdIwHu7ixl4OzzPMv",
        "amount_due": 2000,
        "rate": 0.25,
        "paid": False,
        "number": None,
        "description": "sandbox upstream key",
        "hosted_invoice_url": "https://pay.example/i/acct%5F1?s=ap%20x%",
        "broken escapes": "100% %zz %e9",
        "metadata": {"order": "7", "": ""},
        "lines": {"data": [{"amount": 2000}, {"amount": -5}]},
    }
    for key in KEYS:
        assert Secret.of("s", "1", key.encode()).redacted(answer) == answer


def test_text_full_of_percent_signs_is_searched_in_bounded_time() -> None:
    secret = Secret.of("s", "1", UPSTREAM_KEY.encode())
    began = time.monotonic()
    assert not secret.occurs_in("%25" * 300_000)
    assert not secret.occurs_in("%" + "25" * 300_000)
    assert time.monotonic() - began < 30  # without a bound it would be hours


def test_source_is_chosen_by_the_name(secrets: Secrets, clock: Clock, tmp_path: Path) -> None:
    class Refusing:
        def read(self, name: str) -> tuple[str, bytes]:
            raise AssertionError(name)

    path = tmp_path / "key"
    path.write_text(UPSTREAM_KEY)
    only_files = Secrets(manager=Refusing(), mounted=Mounted(), clock=clock)
    assert only_files.access(granted(policy("http://127.0.0.1:9", secret=f"file:{path}")), clock() + 25).value
    only_versions = Secrets(manager=secrets._manager, mounted=Refusing(), clock=clock)
    assert only_versions.access(granted(), clock() + 25).value.reveal() == UPSTREAM_KEY


# ---------------------------------------------------------------- regional secrets

REGIONAL = "projects/acme/locations/europe-west3/secrets/upstream-key"


def test_regional_secret_is_read(manager: SecretManager, secret_manager: Sandbox) -> None:
    secret_manager.add(REGIONAL, UPSTREAM_KEY.encode())
    assert manager.read(f"{REGIONAL}/versions/latest") == ("1", UPSTREAM_KEY.encode())


def test_regional_secret_is_asked_for_in_its_region_and_any_other_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    anonymous: Any = AnonymousCredentials
    monkeypatch.setattr("google.auth.default", lambda *_, **__: (anonymous(), "acme"))
    manager = SecretManager()
    names = [f"{REGIONAL}/versions/1", f"{REGIONAL.replace('west3', 'west4')}/versions/latest", LATEST, "nonsense"]
    clients = [manager._client_for(name).get() for name in names]
    assert [client.api_endpoint for client in clients] == [
        "secretmanager.europe-west3.rep.googleapis.com",
        "secretmanager.europe-west4.rep.googleapis.com",
        *["secretmanager.googleapis.com"] * 2,
    ]
    assert manager._client_for(f"{REGIONAL}/versions/2").get() is clients[0]
    manager.close()
    assert manager._client_for(names[0]).made() is None
