"""The environment -> everything one instance needs, or one line that says what to write instead."""

from __future__ import annotations

import errno
import re
import ssl
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import files
from gateway.address import Docs
from gateway.allowance import Allowance
from gateway.certificates import CERTIFICATES, Certificates
from gateway.chain import Audit
from gateway.forks import apart
from gateway.identity import Identity
from gateway.kept import DownError
from gateway.means import Means
from gateway.readiness import Readiness
from gateway.reloading import PROMISED_SECONDS, Policies, SourceError, digest_of, judge, source_of
from gateway.secrets import Mounted, Secret, SecretManager, Secrets, mending, reader_of
from gateway.signing import RecordKey
from gateway.sinks import standard_output, to_file
from gateway.stores import PORT, SHARED, Store, fault, shared, takes_ca, takes_password
from gateway.stores.memory import Memory
from gateway.tokens import Google
from gateway.upstreams.sending import Upstreams
from gateway.upstreams.transport import Transport
from policies.concealed import Concealed
from policies.model import VERSION, DocumentError, names_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.sinks import Sink
    from gateway.stores import Ledger, Shared
    from policies.model import PolicySet

#: An https address without query or fragment; or an OAuth client of your own, the audience of people's tokens. Not
#: gcloud's own client, which is the audience of everybody's gcloud tokens, for whatever service.
_HOST: Final = r"(?:[a-z0-9-]+\.)*[a-z0-9-]+"
_AUDIENCE: Final = rf"https://{_HOST}(?::{PORT})?(?:/[\w.~%/-]*)?|[0-9]+-[a-z0-9]+\.apps\.googleusercontent\.com"
#: Of a page: what follows it in ``help`` is # and a reason.
_DOCS: Final = rf"https://(?i:{_HOST})(?::{PORT})?(?:/[A-Za-z0-9._~%@/-]*)?"
_ENDPOINT: Final = rf"(?:127\.0\.0\.1|localhost|\[::1\]):{PORT}"
_SECONDS: Final = r"[0-9]{1,2}(?:\.[0-9]{1,3})?"
#: How a Secret Manager version is written, in sentences, and what looks like the beginning of one.
_VERSION: Final = "projects/PROJECT/secrets/NAME/versions/latest"
_NO_VERSION: Final = r"(?i:projects)/[^/]*/(?:.*/)?(?i:secrets?)(?:/.*)?"
_WHOLE: Final = " Write the whole name, from projects/ to /versions/latest or /versions/NUMBER."
#: What looks like a path.
_PATH: Final = r"[~.]{0,2}/.*"
#: How the place of a secret is written, in sentences.
_PLACE: Final = f"Write {_VERSION}, or file:PATH of a mounted one"
#: What is said of another content where a CA should be.
_NO_CA: Final = (
    "holds no certificates in PEM, in ASCII. Put the CA's there, with the lines BEGIN CERTIFICATE and END CERTIFICATE: "
    "of Memorystore, what gcloud redis instances describe shows as serverCaCerts."
)
#: How a shared store is written, in sentences.
_SHARED = " or ".join(written.shown for written in SHARED.values())

#: Bytes of the store's CA: as many as Secret Manager takes, which is some thirty certificates.
MAX_CA: Final = 64 * 1024
#: An address, or a short sentence with one in it.
MAX_OPERATOR: Final = 200

#: Cloud Run sends one instance no more calls at once.
MAX_THREADS: Final = 1000
#: Seconds after which the platform may cut a call off: a call takes 25 at most, and what it left behind is paid then.
LEAST_TIMEOUT: Final = 30


def _whole(least: int, most: int) -> Callable[[str], bool]:
    """Return whether a text is a whole number in these bounds."""
    return lambda text: re.fullmatch("[0-9]{1,9}", text) is not None and least <= int(text) <= most


def _like(pattern: str) -> Callable[[str], bool]:
    """Return whether a text is empty or like this."""
    return lambda text: re.fullmatch(pattern, text) is not None or not text


def _empty(text: str) -> bool:
    return not text


def _off(text: str) -> bool:
    return text.lower() in {"", "false"}


def _loopback(otherwise: str) -> str:
    return (
        "is used without encryption, so it must be on this machine: write 127.0.0.1:PORT, or remove it to use "
        f"{otherwise}."
    )


#: Settings of which one sentence says how they are written. First what functions-framework, gunicorn and other
#: libraries read from the environment: they answer some values with a traceback, serve nobody with others, and with
#: others again put keys into the log or a file, or cut off a call while it is being settled. Then ours.
_SAID: Final[dict[str, tuple[Callable[[str], object], str]]] = {
    "WORKERS": (
        _whole(1, 1),
        "must be 1: each process would count limits for itself. Raise THREADS, or the number of instances.",
    ),
    "THREADS": (
        _whole(1, MAX_THREADS),
        f"must be a whole number from 1 to {MAX_THREADS}: the calls at once in one instance, such as 80.",
    ),
    "PORT": (_whole(1, 65535), "must be a port number from 1 to 65535, such as 8080."),
    "CLOUD_RUN_TIMEOUT_SECONDS": (
        lambda text: text == "0" or _whole(LEAST_TIMEOUT, 86400)(text),
        f"must be a whole number of seconds, such as 60, at least {LEAST_TIMEOUT}: calls are cut off. Or remove it.",
    ),
    "GUNICORN_LOG_LEVEL": (
        lambda text: text.lower() in {"error", "critical"},
        "must be error or critical: with any other, gunicorn logs headers that it cannot read, keys included.",
    ),
    "THREADED_TIMEOUT_ENABLED": (
        _off,
        "must be false: it ends calls at any point, even between an invoice and its record. Remove it.",
    ),
    "FUNCTION_USE_ASGI": (_off, "must be false: the function is a WSGI application. Remove it."),
    "FUNCTION_SIGNATURE_TYPE": (
        lambda text: text in {"", "http"},
        "must be http: the function answers HTTP calls, not events. Remove it.",
    ),
    "FUNCTION_TARGET": (
        "countersign".__eq__,
        "must be countersign, the name of the function. On the cloud it is the entry point: --entry-point=countersign.",
    ),
    "SCRIPT_NAME": (_empty, "must be empty: with any other, gunicorn answers no call. Remove it."),
    "GOOGLE_SDK_PYTHON_LOGGING_SCOPE": (
        _empty,
        "must be empty: with any other, Google's client logs the upstream's key as it reads it. Remove it.",
    ),
    "GRPC_TRACE": (_empty, "must be empty: it logs calls to Google with the tokens that open all secrets. Remove it."),
    "SSLKEYLOGFILE": (
        _empty,
        "must be empty: it puts what connections are encrypted with into a file, for all to read. Remove it.",
    ),
    "AUDIT": (re.compile("stdout|file:.+").fullmatch, "must be stdout or file:PATH."),
    "DOCS": (
        _like(_DOCS),
        (
            "must be the https address of the page about refusals, without ? and #, such as "
            "https://github.com/acme/countersign/blob/main/docs/refusals.md."
        ),
    ),
    "FIRESTORE_EMULATOR_HOST": (
        _like(rf"[^\s/\"']+:{PORT}"),
        "must be HOST:PORT of an emulator, such as 127.0.0.1:8080. Write that, or remove it to use Google's Firestore.",
    ),
    "GOOGLE_CERTS_ENDPOINT": (_like(_ENDPOINT), _loopback("Google's certificates")),
    "GOOGLE_CLOUD_PROJECT": (
        _like("[a-z0-9:.-]{1,63}"),
        "must be the id of a Google Cloud project, such as acme-prod: each line of the record names it.",
    ),
    "IAM": (
        _like("guards"),
        "must be guards or unset. Write IAM=guards only where Cloud Run's IAM refuses all others.",
    ),
    "OPERATOR": (
        lambda text: not text or (len(text) <= MAX_OPERATOR and text.isprintable() and not text.isspace()),
        (
            f"must say whom callers may ask, in one line of at most {MAX_OPERATOR} characters, such as "
            "payments@acme.example."
        ),
    ),
    "PORTAL": (_like("on|off"), "must be on or off: whether there is a page for callers at /portal."),
    "SECRET_MANAGER_ENDPOINT": (_like(_ENDPOINT), _loopback("Google's Secret Manager")),
}

#: Files that Google's client, gRPC and OpenSSL open by themselves, with a call or a lock waiting: looked at beforehand.
_OPENED_BY_LIBRARIES: Final = ("GOOGLE_APPLICATION_CREDENTIALS", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "SSL_CERT_FILE")


class SettingError(Exception):
    """A setting that the function must not start with. The text is one line: what is wrong, and what to write."""


class Settings(msgspec.Struct, frozen=True):
    """What the environment says. Nothing was opened or read."""

    on_cloud: bool
    policy: str
    store: str
    store_password: str
    """Where the password of the store lies, as secrets are named; empty for none."""
    store_ca: str
    """Where the CA of the store's certificate lies, likewise."""
    audit: str
    """The path of a file, or empty for standard output."""
    record_key: str
    """Where the key that signs the record lies, as secrets are named; empty for none."""
    audiences: tuple[str, ...]
    iam: bool
    project: str | None
    secret_manager: str | None
    """Another Secret Manager, and certificates of Google at another place: ``HOST:PORT`` on this machine."""
    certificates: str | None
    docs: Docs
    """Also whether there is a page for callers, and the function's name on the cloud."""
    operator: str
    """Whom callers may ask, for people to read; empty if that is not said."""
    promised: float
    """A change of the policy document is in force after so many seconds."""

    def judge(self, data: bytes, where: str) -> PolicySet:
        """Judge a policy document that was read at ``where``. Raises :class:`DocumentError`."""
        return judge(data, where, on_cloud=self.on_cloud, google=bool(self.audiences or self.iam))


class Gate(msgspec.Struct, frozen=True):
    """The parts that a call passes through."""

    policies: Policies
    identity: Identity
    secrets: Secrets
    store: Store
    upstreams: Upstreams
    audit: Audit
    readiness: Readiness
    allowance: Allowance
    """What previews and questions are counted against."""
    docs: Docs
    """See :class:`Settings`, also for the next one."""
    operator: str


def settings_of(environ: Mapping[str, str]) -> Settings:
    """Read the environment. Raises :class:`SettingError`."""
    on_cloud = "K_SERVICE" in environ
    for name in _SAID:
        _said(environ, name)
    if on_cloud and environ.get("DEBUG"):
        raise SettingError("DEBUG shows callers what exceptions say. Remove it from the function's environment.")
    if on_cloud and environ.get("FIRESTORE_EMULATOR_HOST"):
        raise SettingError(
            "FIRESTORE_EMULATOR_HOST names a Firestore that is not Google's, without encryption. Remove it from the "
            "function's environment."
        )
    policy = _policy(environ)
    store = _store(environ, on_cloud=on_cloud)
    return Settings(
        on_cloud=on_cloud,
        policy=policy,
        store=store,
        store_password=_store_password(environ, store),
        store_ca=_store_ca(environ, store),
        audit=_audit(environ),
        record_key=_record_key(environ),
        audiences=_audiences(environ),
        iam=bool(_said(environ, "IAM")),
        project=_said(environ, "GOOGLE_CLOUD_PROJECT") or None,
        secret_manager=_secret_manager(environ),
        certificates=_said(environ, "GOOGLE_CERTS_ENDPOINT") or None,
        docs=Docs(_said(environ, "DOCS"), _said(environ, "PORTAL") != "off", environ.get("K_SERVICE", "")),
        operator=_said(environ, "OPERATOR"),
        promised=_promised(environ, on_cloud=on_cloud),
    )


def load(environ: Mapping[str, str]) -> Gate:
    """Build the gate. Raises :class:`SettingError`."""
    settings = settings_of(environ)
    _look_at_files(environ)
    manager = SecretManager(settings.secret_manager)
    began = time.monotonic()
    source = source_of(settings.policy, manager)

    def judged(data: bytes) -> PolicySet:
        policies = settings.judge(data, source.where)
        _prepare(policies)
        return policies

    def read() -> tuple[bytes, str, str, bytes | DownError]:
        password = _password(settings.store_password, manager)
        ca = _ca(settings.store_ca, manager)
        key = _signing_key(settings.record_key, manager) if settings.record_key else b""
        return source.read(), password.reveal() if password is not None else "", ca, key

    named = settings.policy, settings.store_password, settings.store_ca, settings.record_key
    try:
        if any(map(VERSION.fullmatch, named)):
            manager.prepare()
            data, password, ca, key = apart(read)
        else:
            data, password, ca, key = read()
        first = judged(data)
    except SourceError as error:
        raise SettingError(f"POLICY: {source.where} {error}") from None
    except ChildProcessError:
        raise SettingError("Secret Manager cannot be read: the process that reads it was killed.") from None
    except DocumentError as error:
        raise SettingError(str(error)) from None
    finally:
        manager.close()
    store = _opened(settings.store, settings.store_ca, Concealed(password) if password else None, ca)
    flaw = store.flaw() if store is not None else None
    if flaw is not None:
        raise SettingError(f"STORE: {flaw}")
    kept: Store = store or Memory(time.monotonic)
    audit = Audit(
        _sink(settings.audit),
        policy=first.digest,
        project=settings.project,
        key=_record_key_of(settings.record_key, manager, key),
    )
    secrets = Secrets(manager=manager, mounted=Mounted(), clock=time.monotonic, report=audit.secret_refused)
    policies = Policies(
        source,
        judged,
        first,
        digest=digest_of(data),
        read_at=began,
        audit=audit,
        clock=time.monotonic,
        promised=settings.promised,
    )
    return Gate(
        policies=policies,
        identity=Identity(Means(secrets, _google(settings)), behind_iam=settings.iam),
        secrets=secrets,
        store=kept,
        upstreams=Upstreams(Transport(), secrets, time.monotonic, time.sleep, kept),
        audit=audit,
        readiness=Readiness(policies, secrets, kept, audit),
        allowance=Allowance(time.monotonic),
        docs=settings.docs,
        operator=settings.operator,
    )


def _prepare(policies: PolicySet) -> None:
    """Import what a policy needs of Google's client, before it is in force.

    That takes a while, and where several threads import parts of it at once, some of them fail.
    """
    keys = [connection.secret for connection in policies.connections.values()]
    signing = [proof.value for proofs in policies.signers.values() for proof in proofs]
    if any(key.startswith("projects/") for key in keys) or any(b"projects/" in where for where in signing):
        SecretManager.prepare()
    if "google" in policies.kinds:
        Google.prepare()


def _look_at_files(environ: Mapping[str, str]) -> None:
    for name in _OPENED_BY_LIBRARIES:
        path = environ.get(name)
        if path:
            if wrong := _no_path(path):
                raise SettingError(f"{name} must be the path of a file.{wrong}")
            try:
                files.read(path, 1)
            except files.UnreadableError as error:
                raise SettingError(
                    f"{name}: {path} cannot be read ({error}). Write the path of a file, or remove it."
                ) from None


def _said(environ: Mapping[str, str], name: str) -> str:
    """Return a setting of :data:`_SAID`, empty if it is not set. Raises :class:`SettingError`."""
    if name not in environ:
        return ""
    text = environ[name]
    serves, says = _SAID[name]
    if not serves(text) or _around(text):
        raise SettingError(f"{name} {says}{_around(text)}")
    return text


def _around(text: str) -> str:
    """Say what a shell or a file of settings has left around a value; empty for nothing."""
    if text != text.strip() and not text.isspace():
        return " Write it without the blanks around it."
    if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'":
        return " Write it without the quotation marks around it."
    return ""


def _no_path(path: str) -> str:
    """Say what does not belong to a path, likewise."""
    if wrong := _around(path):
        return wrong
    if path.startswith("file:"):
        return " Write the path without file:."
    return "" if path.isprintable() else " There is a line break or another control character in it."


def _policy(environ: Mapping[str, str]) -> str:
    policy = environ.get("POLICY", "")
    if not policy.strip():
        raise SettingError("POLICY is not set. Write POLICY=policies/documents/NAME.yaml, or a Secret Manager version.")
    wrong = _no_path(policy)
    if not wrong and not VERSION.fullmatch(policy):
        if re.fullmatch(_NO_VERSION, policy):
            wrong = _WHOLE
        elif "://" in policy:
            wrong = " Documents are not read from other places."
    if wrong:
        raise SettingError(f"POLICY must be the path of a file, or {_VERSION}.{wrong}")
    return policy


def _secret_manager(environ: Mapping[str, str]) -> str | None:
    return _said(environ, "SECRET_MANAGER_ENDPOINT") or None


def _promised(environ: Mapping[str, str], *, on_cloud: bool) -> float:
    seconds = environ.get("POLICY_SECONDS", "")
    if not seconds:
        return PROMISED_SECONDS
    if on_cloud:
        raise SettingError(
            "POLICY_SECONDS has every call read the policy document again. Remove it from the function's environment: "
            f"a change takes over within {PROMISED_SECONDS:.0f} seconds."
        )
    if not re.fullmatch(_SECONDS, seconds) or not 0 < float(seconds) <= PROMISED_SECONDS:
        raise SettingError(
            "POLICY_SECONDS must be the seconds within which a change of the policy document takes over: write a "
            f"number above 0, such as 0.5, and at most {PROMISED_SECONDS:.0f}.{_around(seconds)}"
        )
    return float(seconds)


def _audiences(environ: Mapping[str, str]) -> tuple[str, ...]:
    said = environ.get("AUDIENCE", "")
    audiences = tuple(audience.strip() for audience in said.split(",") if audience.strip())
    for audience in audiences or ((said,) if said else ()):
        if not re.fullmatch(_AUDIENCE, audience):
            raise SettingError(
                "AUDIENCE must be the function's own address, such as https://countersign-abc.a.run.app, exactly as "
                f"callers ask Google for it; several with commas between them. This is none: {audience!r}."
            )
    return audiences


def _google(settings: Settings) -> Google:
    endpoint = settings.certificates
    address = f"http://{endpoint}/oauth2/v1/certs" if endpoint else CERTIFICATES
    return Google(Certificates(address, time.monotonic), settings.audiences)


def _store(environ: Mapping[str, str], *, on_cloud: bool) -> str:
    store = environ.get("STORE", "")
    if not store and on_cloud:
        raise SettingError(
            f"STORE is not set. On the cloud it must be asked for by name: {_SHARED}, which all instances share, or "
            "memory, which counts limits and remembers idempotency keys in one instance only."
        )
    problem = None if store in {"", "memory"} else fault(store)
    if problem is not None:
        wrong = _around(store) or f" {problem}".rstrip()
        raise SettingError(f"STORE must be memory, {_SHARED} (rediss:// is Redis over TLS).{wrong}")
    return store


def _store_password(environ: Mapping[str, str], store: str) -> str:
    where = _where("STORE_PASSWORD", environ.get("STORE_PASSWORD", ""), "the password")
    if where and not takes_password(store):
        raise SettingError(
            "STORE_PASSWORD is for STORE=redis:// or rediss:// without a password of its own. Remove one of the two."
        )
    return where


def _password(where: str, manager: SecretManager) -> Concealed[str] | None:
    if not where:
        return None
    try:
        return Secret.of(where, *reader_of(where, manager, Mounted()).read(where)).value
    except DownError as error:
        raise SettingError(_unread("STORE_PASSWORD", where, error)) from None


def _store_ca(environ: Mapping[str, str], store: str) -> str:
    where = _where("STORE_CA", environ.get("STORE_CA", ""), "the CA of the certificate")
    if where and not takes_ca(store):
        raise SettingError("STORE_CA is for STORE=rediss://, which is Redis over TLS. Write that, or remove STORE_CA.")
    return where


def _ca(where: str, manager: SecretManager) -> str:
    if not where:
        return ""
    try:
        return reader_of(where, manager, Mounted(MAX_CA)).read(where)[1].decode("ascii")
    except DownError as error:
        raise SettingError(_unread("STORE_CA", where, error)) from None
    except UnicodeDecodeError:
        raise SettingError(f"STORE_CA: {where} {_NO_CA}") from None


def _opened(address: str, where: str, password: Concealed[str] | None, ca: str) -> Shared | None:
    try:
        return shared(address, password, ca)
    except ssl.SSLError:
        raise SettingError(f"STORE_CA: {where} {_NO_CA}") from None


def _record_key(environ: Mapping[str, str]) -> str:
    return _where("RECORD_KEY", environ.get("RECORD_KEY", ""), "the key that signs the record")


def _where(setting: str, where: str, what: str) -> str:
    """Return ``where``, the place of a secret; empty for none. What is none is not quoted: it may be the secret."""
    wrong = _around(where)
    if where and (wrong or not names_secret(where)):
        if not wrong and re.fullmatch(_NO_VERSION, where):
            wrong = _WHOLE
        elif not wrong and re.fullmatch(_PATH, where):
            wrong = " Write file: before the path."
        raise SettingError(f"{setting} must say where {what} lies, and not hold it. {_PLACE}.{wrong}")
    return where


def _unread(setting: str, where: str, error: DownError) -> str:
    """Say that a secret cannot be read, and what to do."""
    return f"{setting}: {where} cannot be read: {error}. {mending(error) or f'{_PLACE}.'}"


def _signing_key(where: str, manager: SecretManager) -> bytes | DownError:
    """Read what should be the record key, or return why not: without it lines go on unsigned."""
    try:
        return reader_of(where, manager, Mounted()).read(where)[1]
    except DownError as error:
        return error


def _record_key_of(where: str, manager: SecretManager, first: bytes | DownError) -> RecordKey | None:
    return RecordKey(where, first, partial(_signing_key, where, manager), time.monotonic) if where else None


def ledger_of(environ: Mapping[str, str]) -> Ledger:
    """Return the ledger that ``STORE`` names, for an operator. Raises :class:`SettingError`."""
    store = _store(environ, on_cloud=False)
    manager = SecretManager(_secret_manager(environ))
    where = _store_ca(environ, store)
    found = _opened(store, where, _password(_store_password(environ, store), manager), _ca(where, manager))
    if found is None:
        raise SettingError(
            f"Write STORE={_SHARED}, as the function has it. The ledger of the memory store lives inside its instance "
            "and cannot be reached from outside."
        )
    return found


def record_of(environ: Mapping[str, str]) -> Audit:
    """Return the record of an operator's command: where ``AUDIT`` has it, signed with what ``RECORD_KEY`` names.

    A call goes on without a key that cannot be read. A person can mend that first, so here it is an error.
    Raises :class:`SettingError`.
    """
    where, manager = _record_key(environ), SecretManager(_secret_manager(environ))
    key = _record_key_of(where, manager, _signing_key(where, manager) if where else b"")
    if key is not None and not key.ready():
        raise SettingError(
            f"RECORD_KEY: {where} cannot sign what goes on record: {key.unreported()}. Correct it, or leave RECORD_KEY "
            "out: then the lines are not signed."
        )
    return Audit(_sink(_audit(environ)), policy="", key=key)


def _audit(environ: Mapping[str, str]) -> str:
    where = _said(environ, "AUDIT")
    return where.removeprefix("file:") if where != "stdout" else ""


def _sink(path: str) -> Sink:
    try:
        return to_file(path) if path else standard_output()
    except OSError as error:
        if not path:
            raise SettingError(
                "AUDIT: standard output is closed. Start it with one, or write AUDIT=file:PATH."
            ) from None
        why = "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror
        raise SettingError(f"AUDIT: file:{path} cannot be written ({why}). Write another path.") from None
