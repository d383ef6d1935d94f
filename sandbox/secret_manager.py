"""A Secret Manager that Google's own client reads from, over plain gRPC.

It speaks AccessSecretVersion and answers as the real service does:

- a secret or version that does not exist: NOT_FOUND; a malformed name: INVALID_ARGUMENT
- a version disabled or destroyed: FAILED_PRECONDITION, also when it is reached as `latest`
- anything in the project `forbidden`: PERMISSION_DENIED
- every other method: UNIMPLEMENTED
"""

import re
import threading
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Self

import google_crc32c
import grpc
from google.cloud.secretmanager_v1.types import (
    AccessSecretVersionRequest,
    AccessSecretVersionResponse,
    SecretPayload,
)

__all__ = ["SecretManager"]

_SERVICE: Final = "google.cloud.secretmanager.v1.SecretManagerService"
_PARENT: Final = r"projects/(?P<project>[^/]+)(?:/locations/[^/]+)?/secrets/[^/]+"
_NAME: Final = re.compile(rf"(?P<secret>{_PARENT})/versions/(?P<version>[^/]+)")
_THREADS: Final = 8  # more than any test's concurrent calls that wait for `delay`


class _State(Enum):
    ENABLED = "enabled"
    DISABLED = "disabled"
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class _Version:
    value: bytes
    state: _State = _State.ENABLED


class _AccessError(Exception):
    """A gRPC status and its details."""


class SecretManager:
    """A Secret Manager on 127.0.0.1; a port of 0 takes a free one, and keeps it over a restart.

    `otherwise` is what every version of a secret holds that was never added; None: there is no such secret.

    Faults, each settable while it runs: `down()` and `up()`, `corrupt` (a wrong CRC32C),
    `omit_checksum`, and `delay` (seconds before each answer).
    """

    def __init__(self, port: int = 0, *, otherwise: Callable[[str], bytes] | None = None) -> None:
        self.corrupt = False
        self.omit_checksum = False
        self.delay = 0.0
        self._port = port
        self._otherwise = otherwise
        self._lock = threading.Lock()
        self._versions: dict[str, tuple[_Version, ...]] = {}
        self._aliases: dict[tuple[str, str], int] = {}
        self._accesses: list[str] = []
        self._down: Any = None
        self._server: Any = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen. Raises RuntimeError when the port is taken."""
        access = grpc.unary_unary_rpc_method_handler(
            self._answer,
            request_deserializer=AccessSecretVersionRequest.deserialize,
            response_serializer=AccessSecretVersionResponse.serialize,
        )
        # By default gRPC shares a port with other servers; then each of them would miss calls.
        server = grpc.server(futures.ThreadPoolExecutor(_THREADS), options=(("grpc.so_reuseport", 0),))
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, {"AccessSecretVersion": access}),)
        )
        self._port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        server.start()
        self._server = server

    def stop(self) -> None:
        """Stop listening; calls under way are cut off. The secrets stay."""
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self._port}"

    @property
    def accesses(self) -> tuple[str, ...]:
        """The requested version names, in order, refused ones included."""
        return tuple(self._accesses)

    def add(self, secret: str, value: bytes) -> int:
        """Add a version to `projects/P/secrets/S`, which need not exist yet; the version's number."""
        if not re.fullmatch(_PARENT, secret):
            raise ValueError(f"{secret!r} is not like projects/P/secrets/S")
        with self._lock:
            self._versions[secret] = (*self._versions.get(secret, ()), _Version(value))
            return len(self._versions[secret])

    def disable(self, secret: str, version: int) -> None:
        """Refuse this version until it is enabled again."""
        self._move(secret, version, _State.DISABLED)

    def enable(self, secret: str, version: int) -> None:
        """Serve this version again. Raises ValueError when it was destroyed."""
        self._move(secret, version, _State.ENABLED)

    def destroy(self, secret: str, version: int) -> None:
        """Refuse this version for good."""
        self._move(secret, version, _State.DESTROYED)

    def alias(self, secret: str, name: str, version: int) -> None:
        """Let a name stand for a version number."""
        with self._lock:
            self._aliases[secret, name] = version

    def down(self, code: Any = grpc.StatusCode.UNAVAILABLE) -> None:
        """Answer every access with this gRPC status until `up()`."""
        self._down = code

    def up(self) -> None:
        """Answer again."""
        self._down = None

    def forget(self) -> None:
        """Clear `accesses`."""
        self._accesses.clear()

    def _move(self, secret: str, version: int, state: _State) -> None:
        with self._lock:
            versions = list(self._versions.get(secret, ()))
            if not 1 <= version <= len(versions):
                raise ValueError(f"{secret} has no version {version}")
            if versions[version - 1].state is _State.DESTROYED:
                raise ValueError(f"version {version} of {secret} was destroyed")
            versions[version - 1] = replace(versions[version - 1], state=state)
            self._versions[secret] = tuple(versions)

    def _answer(self, request: Any, context: Any) -> Any:
        self._accesses.append(request.name)
        time.sleep(self.delay)
        try:
            name, value = self._access(request.name)
        except _AccessError as error:
            context.abort(*error.args)
        checksum = google_crc32c.value(value) ^ self.corrupt
        payload = SecretPayload(data=value, data_crc32c=None if self.omit_checksum else checksum)
        return AccessSecretVersionResponse(name=name, payload=payload)

    def _access(self, name: str) -> tuple[str, bytes]:
        if self._down is not None:
            raise _AccessError(self._down, "The service is down, as it was told to be.")
        found = _NAME.fullmatch(name)
        if found is None:
            raise _AccessError(grpc.StatusCode.INVALID_ARGUMENT, f"Malformed resource name: {name}")
        if found["project"] == "forbidden":
            raise _AccessError(grpc.StatusCode.PERMISSION_DENIED, f"No permission to access {name}.")
        if self._otherwise is not None and found["secret"] not in self._versions:
            number = found["version"] if found["version"].isdecimal() else "1"
            return f"{found['secret']}/versions/{number}", self._otherwise(found["secret"])
        with self._lock:
            versions = self._versions.get(found["secret"], ())
            number = self._number(found["secret"], found["version"], len(versions))
        if not 1 <= number <= len(versions):
            raise _AccessError(grpc.StatusCode.NOT_FOUND, f"{name} does not exist.")
        version = versions[number - 1]
        if version.state is not _State.ENABLED:
            raise _AccessError(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is {version.state.value}.")
        return f"{found['secret']}/versions/{number}", version.value

    def _number(self, secret: str, version: str, newest: int) -> int:
        """The version number behind a name; 0, which no version has, if there is none."""
        if version == "latest":
            return newest
        if version.isdecimal():
            return int(version)
        return self._aliases.get((secret, version), 0)
