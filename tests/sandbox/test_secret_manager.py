import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import grpc
import pytest
from google.api_core import exceptions
from google.cloud.secretmanager_v1 import SecretManagerServiceClient
from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
    SecretManagerServiceGrpcTransport,
)

from sandbox.secret_manager import SecretManager
from tests.waiting import PATIENCE

SECRET = "projects/p/secrets/s"

Access = Callable[[str], Any]


@pytest.fixture
def client(secret_manager: SecretManager) -> Iterator[Any]:
    with grpc.insecure_channel(secret_manager.address) as channel:
        yield SecretManagerServiceClient(transport=SecretManagerServiceGrpcTransport(channel=channel))


@pytest.fixture
def access(client: Any) -> Access:
    return lambda name: client.access_secret_version(name=name, retry=None, timeout=PATIENCE)


def test_googles_client_reads_a_version_with_its_checksum(secret_manager: SecretManager, access: Access) -> None:
    assert secret_manager.add(SECRET, b"one") == 1
    answer = access(f"{SECRET}/versions/1")
    assert answer.name == f"{SECRET}/versions/1"
    assert answer.payload.data == b"one"
    assert answer.payload.data_crc32c == google_crc32c.value(b"one")
    assert secret_manager.accesses == (f"{SECRET}/versions/1",)


def test_latest_is_the_newest_version_and_is_named_by_its_number(secret_manager: SecretManager, access: Access) -> None:
    secret_manager.add(SECRET, b"one")
    secret_manager.add(SECRET, b"two")
    answer = access(f"{SECRET}/versions/latest")
    assert (answer.name, answer.payload.data) == (f"{SECRET}/versions/2", b"two")


def test_latest_is_refused_while_the_newest_version_is_disabled(secret_manager: SecretManager, access: Access) -> None:
    secret_manager.add(SECRET, b"one")
    secret_manager.disable(SECRET, secret_manager.add(SECRET, b"two"))
    with pytest.raises(exceptions.FailedPrecondition, match="disabled"):
        access(f"{SECRET}/versions/latest")
    assert access(f"{SECRET}/versions/1").payload.data == b"one"
    secret_manager.enable(SECRET, 2)
    assert access(f"{SECRET}/versions/latest").payload.data == b"two"


def test_destroyed_version_never_comes_back(secret_manager: SecretManager, access: Access) -> None:
    secret_manager.destroy(SECRET, secret_manager.add(SECRET, b"one"))
    with pytest.raises(exceptions.FailedPrecondition, match="destroyed"):
        access(f"{SECRET}/versions/1")
    with pytest.raises(ValueError, match="destroyed"):
        secret_manager.enable(SECRET, 1)


def test_alias_stands_for_a_version(secret_manager: SecretManager, access: Access) -> None:
    secret_manager.add(SECRET, b"one")
    secret_manager.add(SECRET, b"two")
    secret_manager.alias(SECRET, "stable", 1)
    assert access(f"{SECRET}/versions/stable").name == f"{SECRET}/versions/1"


def test_regional_secret_is_read_too(secret_manager: SecretManager, access: Access) -> None:
    regional = "projects/p/locations/europe-west1/secrets/s"
    secret_manager.add(regional, b"one")
    assert access(f"{regional}/versions/latest").payload.data == b"one"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (f"{SECRET}/versions/2", exceptions.NotFound),
        (f"{SECRET}/versions/0", exceptions.NotFound),
        (f"{SECRET}/versions/stable", exceptions.NotFound),
        ("projects/p/secrets/other/versions/latest", exceptions.NotFound),
        ("projects/forbidden/secrets/s/versions/latest", exceptions.PermissionDenied),
        ("projects/p/secrets/s", exceptions.InvalidArgument),
    ],
)
def test_what_cannot_be_read_is_refused_as_the_service_does(
    secret_manager: SecretManager, access: Access, name: str, error: type[Exception]
) -> None:
    secret_manager.add(SECRET, b"one")
    with pytest.raises(error):
        access(name)
    assert secret_manager.accesses == (name,)


def test_any_other_method_is_unimplemented(client: Any) -> None:
    with pytest.raises(exceptions.MethodNotImplemented):
        client.get_secret(name=SECRET, retry=None, timeout=PATIENCE)


def test_service_goes_down_and_comes_up_again(secret_manager: SecretManager, access: Access) -> None:
    secret_manager.add(SECRET, b"one")
    secret_manager.down()
    with pytest.raises(exceptions.ServiceUnavailable):
        access(f"{SECRET}/versions/1")
    secret_manager.down(grpc.StatusCode.RESOURCE_EXHAUSTED)
    with pytest.raises(exceptions.ResourceExhausted):
        access(f"{SECRET}/versions/1")
    secret_manager.up()
    assert access(f"{SECRET}/versions/1").payload.data == b"one"


def test_checksum_can_be_wrong_or_missing(secret_manager: SecretManager, access: Access) -> None:
    secret_manager.add(SECRET, b"one")
    secret_manager.corrupt = True
    assert access(f"{SECRET}/versions/1").payload.data_crc32c != google_crc32c.value(b"one")
    secret_manager.omit_checksum = True
    payload = access(f"{SECRET}/versions/1").payload
    assert "data_crc32c" not in payload
    assert payload.data == b"one"


def test_answer_can_be_delayed(secret_manager: SecretManager, access: Access) -> None:
    secret_manager.add(SECRET, b"one")
    secret_manager.delay = 0.2
    start = time.monotonic()
    threads = [threading.Thread(target=access, args=(f"{SECRET}/versions/1",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start >= 0.2
    assert len(secret_manager.accesses) == 8


def test_forget_clears_the_accesses(secret_manager: SecretManager, access: Access) -> None:
    secret_manager.add(SECRET, b"one")
    access(f"{SECRET}/versions/1")
    secret_manager.forget()
    assert secret_manager.accesses == ()


def test_restart_keeps_address_and_secrets(secret_manager: SecretManager) -> None:
    secret_manager.add(SECRET, b"one")
    address = secret_manager.address
    secret_manager.stop()
    secret_manager.start()
    assert secret_manager.address == address
    with grpc.insecure_channel(address) as channel:
        client = SecretManagerServiceClient(transport=SecretManagerServiceGrpcTransport(channel=channel))
        assert client.access_secret_version(name=f"{SECRET}/versions/1", timeout=PATIENCE).payload.data == b"one"


def test_port_in_use_is_an_error(secret_manager: SecretManager) -> None:
    port = int(secret_manager.address.rpartition(":")[2])
    with pytest.raises(RuntimeError):
        SecretManager(port).start()


@pytest.mark.parametrize("secret", ["s", "projects/p/secrets/s/versions/1"])
def test_malformed_secret_cannot_be_added(secret_manager: SecretManager, secret: str) -> None:
    with pytest.raises(ValueError, match="is not like"):
        secret_manager.add(secret, b"one")


def test_version_that_is_not_there_cannot_be_disabled(secret_manager: SecretManager) -> None:
    with pytest.raises(ValueError, match="no version"):
        secret_manager.disable(SECRET, 1)


def test_secret_that_was_never_added_is_what_is_said_of_it() -> None:
    with SecretManager(otherwise=lambda name: name.upper().encode()) as any_secret:
        any_secret.add(SECRET, b"added")
        with grpc.insecure_channel(any_secret.address) as channel:
            client = SecretManagerServiceClient(transport=SecretManagerServiceGrpcTransport(channel=channel))
            for version, number in (("latest", 1), ("7", 7), ("live", 1)):
                answer = client.access_secret_version(name=f"projects/q/secrets/t/versions/{version}", timeout=PATIENCE)
                assert (answer.name, answer.payload.data) == (
                    f"projects/q/secrets/t/versions/{number}",
                    b"PROJECTS/Q/SECRETS/T",
                )
            added = client.access_secret_version(name=f"{SECRET}/versions/latest", timeout=PATIENCE)
            assert added.payload.data == b"added"
            with pytest.raises(exceptions.NotFound):
                client.access_secret_version(name=f"{SECRET}/versions/2", timeout=PATIENCE)
