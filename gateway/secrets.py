"""Secret Manager -> Secret, the upstream's key in hand.

Read with Google's client: the checksum compared, the version noted, one fetch however many calls wait, a short cache,
the last good value for a bounded time while Secret Manager is down, and a fresh read when the upstream refuses the key.
A version that is disabled, destroyed or no longer ours to read is not "down": it stops at once.
"""

from __future__ import annotations

import base64
import os
import re
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

import msgspec
from cachetools import TTLCache

from policies.concealed import Concealed
from policies.refusals import SecretUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from policies.model import Grant

#: How long a key is used before it is read again: one read a minute costs nothing, and a rotation is seen in that time.
FRESH_SECONDS: Final = 60.0
#: How long the last good key is used while Secret Manager cannot be reached: longer than its outages have been,
#: shorter than a working day in which somebody believes that a key is no longer in use.
LAST_GOOD_SECONDS: Final = 3600.0
#: After a failed read, and after a renewal that brought nothing new, the next one waits so long.
PAUSE_SECONDS: Final = 5.0
#: Whatever is shorter is no key, and would be found in innocent text when answers are searched for it.
MIN_LENGTH: Final = 8
MAX_LENGTH: Final = 4096

REDACTED: Final = "[redacted]"
#: A text is searched as it is, percent-decoded, and decoded again: which characters were encoded is up to the encoder.
PERCENT_ROUNDS: Final = 3

_JSON: Final = msgspec.json.Encoder()

#: What a header value may hold, RFC 9110, 5.5, without the space that no key has.
_VALUE = re.compile(rf"[!-~]{{{MIN_LENGTH},{MAX_LENGTH}}}")


class SecretGoneError(Exception):
    """There is no such secret for us: absent, disabled, destroyed, or not ours to read."""


class SecretDownError(Exception):
    """It could not be read just now."""


@dataclass(frozen=True, slots=True)
class Secret:
    """The upstream's key, and where it came from."""

    name: str
    version: str
    value: Concealed[str]
    _needles: Concealed[tuple[str, ...]]

    @classmethod
    def of(cls, name: str, version: str, data: bytes) -> Secret:
        """Make a secret of what was read. Raises :class:`SecretGoneError` for bytes that cannot be a key."""
        try:
            # A line break at the end comes from `echo KEY | gcloud secrets create`, and is not part of any key.
            value = data.decode("ascii").rstrip("\r\n")
        except UnicodeDecodeError:
            value = ""
        if not _VALUE.fullmatch(value):
            raise SecretGoneError(
                f"the value is not a key: {MIN_LENGTH} to {MAX_LENGTH} printable ASCII characters without a space"
            )
        return cls(name, version, Concealed(value), Concealed(_encodings(value)))

    def occurs_in(self, text: str) -> bool:
        """Whether the key stands in ``text``, as it is or in a common encoding."""
        for _ in range(PERCENT_ROUNDS):
            lowered = text.lower()
            for needle in self._needles.reveal():
                if needle in lowered:
                    return True
            if "%" not in text:
                return False
            text = unquote(text)
        return False

    def redacted(self, value: Any) -> Any:
        """Return what JSON can hold, with every text in it that holds the key replaced; itself where none does."""
        # One look at the whole, which nearly always is innocent.
        return self._clean(value) if self.occurs_in(_JSON.encode(value).decode()) else value

    def _clean(self, value: object) -> object:
        match value:
            case str():
                return self._clean_text(value)
            case dict():
                return {self._clean_text(name): self._clean(inner) for name, inner in value.items()}
            case list():
                return [self._clean(item) for item in value]
            case bool() | None:
                return value
            case _:
                return REDACTED if self.occurs_in(str(value)) else value

    def _clean_text(self, text: str) -> str:
        # Nothing shorter than the key can hold it.
        return REDACTED if len(text) >= MIN_LENGTH and self.occurs_in(text) else text


def _encodings(value: str) -> tuple[str, ...]:
    """Return the ways in which a key may be written, in lower case; base64 at each place it may start in a triple."""
    raw = value.encode("ascii")
    needles = {value, value[::-1], raw.hex()}
    needles.update(_JSON.encode(text).decode()[1:-1] for text in (value, value[::-1]))  # as they stand within JSON
    for lead in range(3):
        text = base64.b64encode(b"\0" * lead + raw).decode()
        # The first and last groups mix in what stands beside the key, so only whole groups of it are looked for.
        inner = text[4 if lead else 0 : (lead + len(raw)) // 3 * 4]
        needles.update({inner, inner.replace("+", "-").replace("/", "_")})
    return tuple(needle.lower() for needle in needles)


class Source(Protocol):
    """Where secrets are read."""

    def read(self, name: str) -> Secret:
        """Read ``name``. Raises :class:`SecretGoneError` or :class:`SecretDownError`."""


class Mounted:
    """``file:PATH``: a secret mounted as a volume, which the platform reads afresh at every open."""

    def read(self, name: str) -> Secret:
        """Read the file."""
        path = Path(name.removeprefix("file:"))
        try:
            with path.open("rb") as file:
                data = file.read(MAX_LENGTH + 3)
        except FileNotFoundError:
            raise SecretGoneError("the file does not exist") from None
        except OSError as error:
            raise SecretDownError(type(error).__name__) from None
        return Secret.of(name, "mounted", data)


class SecretManager:
    """``projects/…/versions/…``, read with Google's client.

    The client is made with the first read, since its connections do not survive the fork that gunicorn makes. Importing
    it takes a third of a second, which a policy that only uses mounted secrets does not pay.
    """

    #: One attempt's time and that of all attempts, in seconds. Google's own timeout is not a total.
    ATTEMPT: Final = 1.0
    TOTAL: Final = 1.5

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._client: Any = None
        self._pid = 0

    @staticmethod
    def prepare() -> None:
        """Import Google's client, which takes a third of a second, before the first call needs it."""
        import google_crc32c  # noqa: F401, PLC0415 - a policy with mounted secrets does without it
        from google.cloud import secretmanager_v1  # noqa: F401, PLC0415

    def read(self, name: str) -> Secret:
        """Access a version that holds a key."""
        version, data = self._access(name)
        return Secret.of(name, version, data)

    def read_document(self, name: str) -> bytes:
        """Access a version that holds a policy document. Raises as :meth:`read` does."""
        return self._access(name)[1]

    def close(self) -> None:
        """Leave no connection open, as gunicorn's worker must not inherit one when it is forked."""
        with self._lock:
            if self._client is not None:
                self._client.transport.close()
            self._client = None

    def _access(self, name: str) -> tuple[str, bytes]:
        """Return a version's own number and its payload, which is checked against its checksum."""
        import google_crc32c  # noqa: PLC0415 - heavy, and only needed with Secret Manager
        from google.api_core import exceptions  # noqa: PLC0415
        from google.api_core.retry import Retry  # noqa: PLC0415
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

        gone = (
            exceptions.NotFound,
            exceptions.PermissionDenied,
            exceptions.FailedPrecondition,
            exceptions.InvalidArgument,
        )
        try:
            response = self._connected().access_secret_version(
                name=name, timeout=self.ATTEMPT, retry=Retry(initial=0.1, maximum=0.5, timeout=self.TOTAL)
            )
        except gone as error:
            raise SecretGoneError(type(error).__name__) from None
        except (exceptions.GoogleAPIError, GoogleAuthError) as error:
            raise SecretDownError(type(error).__name__) from None
        data: bytes = response.payload.data
        if "data_crc32c" not in response.payload or response.payload.data_crc32c != google_crc32c.value(data):
            raise SecretDownError("the checksum does not match")
        return response.name.rpartition("/")[2], data

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None or self._pid != os.getpid():
                from google.cloud.secretmanager_v1 import SecretManagerServiceClient  # noqa: PLC0415

                transport: Any = None
                if self._endpoint is not None:
                    import grpc  # noqa: PLC0415
                    from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (  # noqa: PLC0415
                        SecretManagerServiceGrpcTransport,
                    )

                    transport = SecretManagerServiceGrpcTransport(channel=grpc.insecure_channel(self._endpoint))
                self._client = SecretManagerServiceClient(transport=transport)
                self._pid = os.getpid()
            return self._client


class Secrets:
    """The keys in hand."""

    def __init__(self, *, manager: Source, mounted: Source, clock: Callable[[], float], most: int = 1024) -> None:
        self._manager, self._mounted, self._clock = manager, mounted, clock
        self._lock = threading.Lock()
        self._fresh: TTLCache[str, Secret] = TTLCache(most, FRESH_SECONDS, timer=clock)
        self._last_good: TTLCache[str, Secret] = TTLCache(most, LAST_GOOD_SECONDS, timer=clock)
        self._paused: TTLCache[str, bool] = TTLCache(most, PAUSE_SECONDS, timer=clock)
        self._reading: dict[str, Future[Secret]] = {}

    def access(self, grant: Grant, deadline: float) -> Secret:
        """Return the key of the granted connection. Raises :class:`SecretUnavailable`."""
        return self.named(grant.entitlement.connection.secret, deadline)

    def named(self, name: str, deadline: float) -> Secret:
        """Return the secret that lies at ``name``. Raises :class:`SecretUnavailable`."""
        with self._lock:
            try:
                return self._fresh[name]  # a fifth of what TTLCache.get takes
            except KeyError:
                kept = self._last_good.get(name)
            if kept is not None and name in self._paused:
                return kept
        try:
            return self._read_once(name, deadline)
        except SecretDownError as error:
            with self._lock:
                kept = self._last_good.get(name)
                self._paused[name] = True
            if kept is not None:
                return kept
            raise SecretUnavailable(note=str(error), retry_after=5) from None
        except SecretGoneError as error:
            raise SecretUnavailable(note=str(error)) from None

    def renew(self, refused: Secret, deadline: float) -> Secret | None:
        """Drop a key that the upstream refused and return one that differs, or None where there is none."""
        name = refused.name
        with self._lock:
            current = self._fresh.get(name)
            if current is not None and current.value != refused.value:
                return current  # another call has renewed it meanwhile
            self._fresh.pop(name, None)
            if name in self._paused:
                return None
        try:
            secret = self._read_once(name, deadline)
        except (SecretDownError, SecretGoneError):
            return None
        if secret.value != refused.value:
            return secret
        with self._lock:
            self._paused[name] = True  # so that a refused key does not cost a read a call
        return None

    def _read_once(self, name: str, deadline: float) -> Secret:
        """Read ``name``, or wait for whoever is reading it; those who wait share a failure, and nobody else does."""
        with self._lock:
            running = self._reading.get(name)
            if running is None:
                mine = self._reading[name] = Future()
        if running is not None:
            try:
                return running.result(timeout=max(0.0, deadline - self._clock()))
            except TimeoutError:
                raise SecretDownError("another call's read took too long") from None
        try:
            source = self._mounted if name.startswith("file:") else self._manager
            secret = source.read(name)
        except BaseException as error:
            with self._lock:
                del self._reading[name]
                if isinstance(error, SecretGoneError):
                    self._fresh.pop(name, None)
                    self._last_good.pop(name, None)
            mine.set_exception(error)
            raise
        with self._lock:
            del self._reading[name]
            self._fresh[name] = self._last_good[name] = secret
            self._paused.pop(name, None)
        mine.set_result(secret)
        return secret
