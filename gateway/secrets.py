"""Secret Manager -> Secret, which holds the upstream's key.

Google's client reads it, and we check its checksum. There is one read however many calls wait (single flight), a short
cache, the last good value for a bounded time while Secret Manager is down or holds no key, and a fresh read when the
upstream refuses the key. A version that is disabled, destroyed or forbidden is not "down": its key is dropped at once.
"""

from __future__ import annotations

import base64
import re
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec.structs import replace

from gateway import files
from gateway.edges import meaning
from gateway.flights import SingleFlight
from gateway.forks import PerProcess
from gateway.kept import DownError, GoneError, Kept, Lifetime
from policies.concealed import Concealed
from policies.model import MODES, VERSION
from policies.refusals import SecretUnavailable
from policies.upstreams import UPSTREAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from policies.dialect import Dialect
    from policies.model import Connection, Entitlement, Grant

T = TypeVar("T")

#: How long a key is used before it is read again: one read a minute costs nothing, and a rotation is seen in that time.
FRESH_SECONDS: Final = 60.0
#: How long the last good key is used while Secret Manager cannot be reached, or holds no key: longer than its outages
#: have been, shorter than a working day in which somebody believes that a key is no longer in use.
LAST_GOOD_SECONDS: Final = 3600.0
#: Seconds without a read after a failed one, or after a renewal that returned the same key: strangers can cause reads
#: by sending webhooks.
PAUSE_SECONDS: Final = 5.0
#: Shorter values are not keys, and redacting them would corrupt normal text.
MIN_LENGTH: Final = 8
MAX_LENGTH: Final = 4096

#: An upstream may say back the key of before a rotation. More rotations than these are rare in the life of an instance,
#: and each has a search take longer.
EARLIER: Final = 3

REDACTED: Final = "[redacted]"
#: A text is searched as it is, percent-decoded, and decoded again: which characters were encoded is up to the encoder.
PERCENT_ROUNDS: Final = 3

_JSON: Final = msgspec.json.Encoder()

#: A header value (RFC 9110, 5.5) without a space, which no key has.
_VALUE = re.compile(rf"[!-~]{{{MIN_LENGTH},{MAX_LENGTH}}}")
#: The version of a mounted secret, which does not say its own.
_MOUNTED: Final = "mounted"


class MistakenError(DownError):
    """Somebody has to put something right; the last good key is used for a while. So it is on record by itself."""


class NotAKeyError(MistakenError):
    """The version that was read holds no key: a mistake in a rotation."""


class Secret(msgspec.Struct, frozen=True):
    """The upstream's key, and where it came from."""

    name: str
    version: str
    value: Concealed[str]
    _needles: Concealed[tuple[str, ...]]
    mode: str = ""
    """``live`` or ``test`` if the key itself tells whose data it opens."""

    @classmethod
    def of(cls, name: str, version: str, data: bytes, earlier: Sequence[Concealed[str]] = ()) -> Secret:
        """Make a secret of what was read. Raises :class:`NotAKeyError` for bytes that cannot be a key.

        ``earlier`` are keys that were in its place, the newest first: texts are searched for :data:`EARLIER` of them.
        """
        try:
            # A line break at the end comes from `echo KEY | gcloud secrets create`, and is not part of any key.
            value = data.decode("ascii").rstrip("\r\n")
        except UnicodeDecodeError:
            value = ""
        if not _VALUE.fullmatch(value):
            raise NotAKeyError(
                f"{_holder(version)} holds no key: {MIN_LENGTH} to {MAX_LENGTH} printable ASCII characters without a "
                "space"
            )
        keys = [*dict.fromkeys((value, *(one.reveal() for one in earlier)))][: EARLIER + 1]
        return cls(name, version, Concealed(value), Concealed(tuple(text for key in keys for text in _encodings(key))))

    def occurs_in(self, text: str) -> bool:
        """Whether ``text`` contains the key or one before it, as it is or in a common encoding."""
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
        """Return a JSON value with every text that contains a key replaced; the value itself if none does."""
        # One search of the whole, which almost never contains the key.
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
        # A text shorter than any key cannot contain it.
        return REDACTED if len(text) >= MIN_LENGTH and self.occurs_in(text) else text


def _holder(version: str) -> str:
    return "the file" if version == _MOUNTED else f"version {version}"


def _encodings(value: str) -> tuple[str, ...]:
    """Return the encodings of a key, in lower case; base64 at each of the three offsets within a group."""
    raw = value.encode("ascii")
    needles = {value, value[::-1], raw.hex()}
    needles.update(_JSON.encode(text).decode()[1:-1] for text in (value, value[::-1]))  # as they stand within JSON
    for lead in range(3):
        text = base64.b64encode(b"\0" * lead + raw).decode()
        # The first and last groups also encode the neighbouring bytes, so only the groups between them are searched.
        inner = text[4 if lead else 0 : (lead + len(raw)) // 3 * 4]
        needles.update({inner, inner.replace("+", "-").replace("/", "_")})
    return tuple(needle.lower() for needle in needles)


def _signing_secret(_name: str, version: str, data: bytes) -> Concealed[str]:
    """Return the text of a signing secret, which people choose: with any characters, unlike a key in a header.

    Raises :class:`NotAKeyError` for bytes that are none.
    """
    try:
        text = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not MIN_LENGTH <= len(text) <= MAX_LENGTH:
        raise NotAKeyError(
            f"{_holder(version)} holds no signing secret: a text of {MIN_LENGTH} to {MAX_LENGTH} characters in UTF-8"
        )
    return Concealed(text)


class Source(Protocol):
    """Where secrets are read."""

    def read(self, name: str) -> tuple[str, bytes]:
        """Read ``name``; return its version and its bytes. Raises :class:`GoneError` or :class:`DownError`."""


class Mounted:
    """``file:PATH``: a secret mounted as a volume, which the platform reads afresh at every open."""

    def __init__(self, most: int = MAX_LENGTH + 3) -> None:
        """``most``: how many bytes are read of it."""
        self._most = most

    def read(self, name: str) -> tuple[str, bytes]:
        """Read the file."""
        try:
            return _MOUNTED, files.read(name.removeprefix("file:"), self._most)
        except files.MissingError:
            raise GoneError("the file does not exist") from None
        except files.UnreadableError as error:
            raise MistakenError(str(error)) from None


class SecretManager:
    """``projects/…/versions/…``, read with Google's client; a regional secret from its region's own endpoint.

    The client is made on the first read, since its connections do not survive gunicorn's fork. Importing it takes a
    third of a second, so a policy with mounted secrets alone does not.
    """

    #: The timeouts of one attempt and of all attempts, in seconds. Google's ``timeout`` is not a total.
    ATTEMPT: Final = 1.0
    TOTAL: Final = 1.5
    #: For making a client, which signs in: that takes minutes where nobody answers it.
    CONNECT: Final = 5.0

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint
        self._client: PerProcess[Any] = PerProcess(self._connect)
        self._regional: dict[str, PerProcess[Any]] = {}
        self._connecting: SingleFlight[Any] = SingleFlight("secrets")

    @staticmethod
    def prepare() -> None:
        """Import Google's client, which takes a third of a second, before the first call needs it."""
        import google_crc32c  # noqa: F401, PLC0415 - a policy with mounted secrets does not need it
        from google.cloud import secretmanager_v1  # noqa: F401, PLC0415

    def close(self) -> None:
        """Close all connections: gunicorn's forked worker must not inherit one."""
        for made in (self._client, *self._regional.values()):
            client = made.drop()
            if client is not None:
                client.transport.close()

    def read(self, name: str) -> tuple[str, bytes]:
        """Access a version, and compare its checksum."""
        import google_crc32c  # noqa: PLC0415 - heavy, and only needed with Secret Manager
        from google.api_core.retry import Retry  # noqa: PLC0415

        try:
            client = self._connecting.make(self._client_for(name), self.CONNECT)
            response = client.access_secret_version(
                name=name, timeout=self.ATTEMPT, retry=Retry(initial=0.1, maximum=0.5, timeout=self.TOTAL)
            )
        except Exception as error:  # noqa: BLE001 - any that is not in the table means "down" as well
            raise (meaning(meanings(), error) or DownError)(type(error).__name__) from None
        data: bytes = response.payload.data
        if "data_crc32c" not in response.payload or response.payload.data_crc32c != google_crc32c.value(data):
            raise DownError("the checksum does not match")
        return response.name.rpartition("/")[2], data

    def _client_for(self, name: str) -> PerProcess[Any]:
        """Return the client for a version. A regional secret can be read in its region only."""
        version = VERSION.fullmatch(name)
        location = version["location"] if version is not None else None
        if location is None or self._endpoint is not None:
            return self._client
        return self._regional.setdefault(location, PerProcess(partial(self._connect, location)))

    def _connect(self, location: str | None = None) -> Any:
        from google.cloud.secretmanager_v1 import SecretManagerServiceClient  # noqa: PLC0415

        transport: Any = None
        # https://cloud.google.com/secret-manager/regional-secrets/access-regional-secret
        options = {"api_endpoint": f"secretmanager.{location}.rep.googleapis.com"} if location is not None else None
        if self._endpoint is not None:
            import grpc  # noqa: PLC0415
            from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (  # noqa: PLC0415
                SecretManagerServiceGrpcTransport,
            )

            transport = SecretManagerServiceGrpcTransport(channel=grpc.insecure_channel(self._endpoint))
        return SecretManagerServiceClient(transport=transport, client_options=options)


@cache
def meanings() -> Mapping[type[BaseException], type[DownError]]:
    """Return what each exception of Google's client means: no such secret for us, or not readable just now."""
    import grpc  # noqa: PLC0415 - heavy, and only needed with Secret Manager
    from google.api_core import exceptions  # noqa: PLC0415
    from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

    return {
        exceptions.NotFound: GoneError,
        exceptions.PermissionDenied: GoneError,
        exceptions.FailedPrecondition: GoneError,  # disabled or destroyed
        exceptions.InvalidArgument: GoneError,
        exceptions.GoogleAPIError: DownError,
        exceptions.AsyncRestUnsupportedParameterError: DownError,
        GoogleAuthError: DownError,
        grpc.RpcError: DownError,
        grpc.FutureTimeoutError: DownError,
        grpc.FutureCancelledError: DownError,
        ValueError: DownError,  # a closed channel
    }


#: What to do about Google's client if it cannot say who asks, by the name of its exception.
SIGN_IN: Final[Mapping[str, str]] = {
    "DefaultCredentialsError": "Sign in: gcloud auth application-default login.",
    "RefreshError": "Sign in again: gcloud auth application-default login.",
}
#: The same of what it says of a version.
_MENDING: Final[Mapping[str, str]] = {
    **SIGN_IN,
    "TimeoutError": (
        "Google's client could not find out in time who asks. On a machine of your own, sign in: gcloud auth "
        "application-default login. On Google Cloud, try again."
    ),
    "NotFound": "There is no such secret, or no such version of it: correct the name, or add a version.",
    "PermissionDenied": "Give the account that reads it roles/secretmanager.secretAccessor on this secret.",
    "FailedPrecondition": "This version is disabled or destroyed: enable it, or add another.",
    "InvalidArgument": "Secret Manager takes no such name: correct it.",
    **dict.fromkeys(
        ("RetryError", "ServiceUnavailable", "DeadlineExceeded"),
        "Secret Manager does not answer: try again, and see whether this machine can reach it.",
    ),
}


def mending(error: DownError) -> str:
    """Return what to do about a secret that cannot be read, as a sentence; empty if the error itself says all."""
    return _MENDING.get(str(error), "")


def reader_of(name: str, manager: Source, mounted: Source) -> Source:
    """Return where the secret ``name`` is read."""
    return mounted if name.startswith("file:") else manager


def placed(entitlement: Entitlement, secret: Secret) -> str:
    """Identify the account that a call goes to with this key: the policy's, and whether its data are live."""
    place = entitlement.connection.place
    return f"{place} {secret.mode}" if secret.mode else place


class Secrets:
    """The keys, cached. ``report(name, problem)`` is called once for each :class:`MistakenError`."""

    def __init__(
        self,
        *,
        manager: Source,
        mounted: Source,
        clock: Callable[[], float],
        report: Callable[[str, str], None] = lambda _name, _problem: None,
    ) -> None:
        self._manager, self._mounted, self._report = manager, mounted, report
        self._reported: dict[tuple[str, str], str] = {}
        lifetime = Lifetime(renew=FRESH_SECONDS, stale=FRESH_SECONDS, good=LAST_GOOD_SECONDS)

        def kept(read: Callable[[str, str, bytes], T], mode: str) -> Kept[T]:
            return Kept(partial(self._read, read, mode), lambda _: lifetime, pause=PAUSE_SECONDS, clock=clock)

        # What is a key for live data is none for test data, so the last good one is another.
        self._keys = {
            (one.id, mode): kept(partial(self._key, one, mode), mode)
            for one in UPSTREAMS.values()
            for mode in ("", *MODES)
        }
        #: The keys that were read last, whatever their version, the newest first.
        self._known: dict[str, tuple[Concealed[str], ...]] = {}
        self._signing = kept(_signing_secret, "signing")

    def access(self, grant: Grant, deadline: float) -> Secret:
        """Return the key of the granted connection. Raises :class:`SecretUnavailable`."""
        return self.of(grant.entitlement.connection, deadline)

    def of(self, connection: Connection, deadline: float) -> Secret:
        """Return the key of a connection. Raises :class:`SecretUnavailable`."""
        return _have(self._keys[connection.upstream, connection.mode], connection.secret, deadline)

    def signing(self, name: str, deadline: float) -> Concealed[str]:
        """Return what webhooks are signed with, of the secret at ``name``. Raises :class:`SecretUnavailable`."""
        return _have(self._signing, name, deadline)

    def renew(self, grant: Grant, refused: Secret, deadline: float) -> Secret | None:
        """Drop a key that the upstream refused, and return another one; None if there is none."""
        connection = grant.entitlement.connection
        kept = self._keys[connection.upstream, connection.mode]
        kept.drop(refused.name, refused)
        try:
            secret = kept.renew(refused.name, refused, deadline)
        except DownError:
            return None
        return secret if secret.value != refused.value else None  # another version may hold the same key

    def _read(self, read: Callable[[str, str, bytes], T], mode: str, name: str, _deadline: float) -> T:
        try:
            secret = read(name, *reader_of(name, self._manager, self._mounted).read(name))
        except MistakenError as error:
            if self._reported.get((name, mode)) != str(error):
                self._reported[name, mode] = str(error)
                self._report(name, str(error))
            raise
        self._reported.pop((name, mode), None)
        return secret

    def _key(self, dialect: Dialect, mode: str, name: str, version: str, data: bytes) -> Secret:
        """Return a key; with ``mode``, one that does not itself say that it is of another one."""
        place = name.partition("/versions/")[0]
        known = self._known.get(place, ())
        secret = Secret.of(name, version, data, known)
        says = dialect.mode_of(secret.value.reveal()) or ""
        if mode and says not in {"", mode}:
            raise NotAKeyError(f"{_holder(version)} holds a {says} key, and its connection is for {mode} data")
        self._known[place] = tuple(dict.fromkeys((secret.value, *known)))[: EARLIER + 1]
        return replace(secret, mode=says)


def _have(kept: Kept[T], name: str, deadline: float) -> T:
    try:
        return kept.get(name, deadline)
    except GoneError as error:
        raise SecretUnavailable(note=str(error)) from None
    except DownError as error:
        raise SecretUnavailable(note=str(error), retry_after=int(PAUSE_SECONDS)) from None
