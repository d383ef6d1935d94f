"""The environment -> everything one instance needs, or one line that says what to write instead."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.audit import Audit, standard_output, to_file
from gateway.google import CERTIFICATES, Certificates, Google
from gateway.identity import Identity
from gateway.secrets import Mounted, SecretDownError, SecretGoneError, SecretManager, Secrets
from gateway.stores.memory import Memory
from gateway.upstreams.appgregator import Appgregator
from gateway.upstreams.transport import Transport
from gateway.webhooks import Webhooks
from policies import document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.stores import Ledger, Store
    from policies.model import PolicySet

#: Cloud Run's own default for the calls that one instance gets at once; deploy/ sets both to the same number.
DEFAULT_THREADS: Final = "80"
#: An instance has ten seconds between SIGTERM and SIGKILL: calls that end by then are still recorded.
GRACE_SECONDS: Final = 9
#: A document of 10,000 callers is about 4 MB.
MAX_DOCUMENT: Final = 16 * 1024 * 1024

_VERSION = re.compile(r"projects/[^/\s]+/secrets/[^/\s]+/versions/[^/\s]+")
#: An https address without query or fragment; or an OAuth client of one's own, which people's tokens are made for. Not
#: gcloud's own client, for which everybody's tokens are, whatever service they were shown to.
_AUDIENCE = re.compile(
    r"https://[a-z0-9.-]+(?::[0-9]{1,5})?(?:/[\w.~%/-]*)?|[0-9]+-[a-z0-9]+\.apps\.googleusercontent\.com"
)
_ENDPOINT = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}")


_REDIS = re.compile(r"rediss?://(?:[^\s/@]*@)?(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?(?:/[0-9]{0,3})?")


class SettingError(Exception):
    """A setting that the function must not start with. The text is one line: what is wrong, and what to write."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a call passes through."""

    policies: PolicySet
    identity: Identity
    secrets: Secrets
    store: Store
    upstream: Appgregator
    audit: Audit


def load(environ: Mapping[str, str]) -> Gate:
    """Build all of it. Raises :class:`SettingError`."""
    on_cloud = "K_SERVICE" in environ
    if on_cloud and environ.get("DEBUG"):
        raise SettingError("DEBUG shows callers what exceptions say. Remove it from the function's environment.")
    manager = SecretManager(
        _on_loopback("SECRET_MANAGER_ENDPOINT", environ.get("SECRET_MANAGER_ENDPOINT"), "Google's Secret Manager")
    )
    policies = _policies(environ, manager)
    if on_cloud and any(connection.origin.startswith("http:") for connection in policies.connections.values()):
        raise SettingError("POLICY sends calls to this machine, as the sandbox's does. Deploy a policy of your own.")
    secrets = Secrets(manager=manager, mounted=Mounted(), clock=time.monotonic)
    return Gate(
        policies=policies,
        identity=_identity(environ, policies, secrets),
        secrets=secrets,
        store=_store(environ, on_cloud=on_cloud),
        upstream=Appgregator(Transport(), secrets, time.monotonic),
        audit=_audit(environ, policies),
    )


def _on_loopback(name: str, endpoint: str | None, otherwise: str) -> str | None:
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        raise SettingError(
            f"{name} is spoken to in the clear, so it must be on this machine: write 127.0.0.1:PORT, or remove it to "
            f"use {otherwise}."
        )
    return endpoint or None


def _policies(environ: Mapping[str, str], manager: SecretManager) -> PolicySet:
    where = environ.get("POLICY", "")
    if not where:
        raise SettingError("POLICY is not set. Write POLICY=policies/documents/NAME.yaml, or a Secret Manager version.")
    try:
        if _VERSION.fullmatch(where):
            text = manager.read_document(where)
        else:
            path = Path(where)
            if path.stat().st_size > MAX_DOCUMENT:
                raise SettingError(f"POLICY: {where} is larger than any policy document. Write the document's path.")
            text = path.read_text("utf-8")
        return document.read(text, where)
    except OSError as error:
        raise SettingError(
            f"POLICY: {where} cannot be read ({type(error).__name__}). Write the path of a file."
        ) from None
    except UnicodeDecodeError:
        raise SettingError(f"POLICY: {where} is not UTF-8 text. Save it as UTF-8.") from None
    except (SecretGoneError, SecretDownError) as error:
        raise SettingError(f"POLICY: {where} cannot be read from Secret Manager: {error}.") from None
    except document.DocumentError as error:
        raise SettingError(str(error)) from None


def _identity(environ: Mapping[str, str], policies: PolicySet, secrets: Secrets) -> Identity:
    iam = environ.get("IAM", "")
    if iam not in {"", "guards"}:
        raise SettingError(
            "IAM must be guards, or not be set: write IAM=guards only where Cloud Run's IAM refuses all others."
        )
    audiences = [audience for audience in environ.get("AUDIENCE", "").split(",") if audience]
    for audience in audiences:
        if not _AUDIENCE.fullmatch(audience):
            raise SettingError(
                "AUDIENCE must be the function's own address, such as https://countersign-abc.a.run.app, exactly as "
                "callers ask Google for it; several with commas between them."
            )
    if policies.google and not audiences and not iam:
        raise SettingError(
            "POLICY names a Google identity, and nothing says whom its tokens must be made for. Write AUDIENCE and "
            "the function's own address (https://...), or IAM=guards where Cloud Run's IAM refuses all others."
        )
    endpoint = _on_loopback("GOOGLE_CERTS_ENDPOINT", environ.get("GOOGLE_CERTS_ENDPOINT"), "Google's certificates")
    address = f"http://{endpoint}/oauth2/v1/certs" if endpoint else CERTIFICATES
    google = Google(Certificates(address, time.monotonic), audiences)
    if policies.google:
        google.prepare()
    return Identity(google, Webhooks(secrets, time.monotonic), behind_iam=bool(iam))


def _store(environ: Mapping[str, str], *, on_cloud: bool) -> Store:
    store = environ.get("STORE", "")
    if not store and on_cloud:
        raise SettingError(
            "STORE is not set. On the cloud it must be asked for by name: redis://HOST:PORT, which all instances "
            "share, or memory, which counts limits and remembers idempotency keys in one instance only."
        )
    if _REDIS.fullmatch(store):
        from gateway.stores.redis import Redis  # noqa: PLC0415 - only paid for where it is asked for

        return Redis(store)
    if store not in {"", "memory"}:
        raise SettingError("STORE must be memory, or redis://HOST:PORT/DATABASE (rediss:// over TLS).")
    if environ.get("WORKERS", "1") != "1":
        raise SettingError("WORKERS must be 1 with STORE=memory: each worker would count for itself. Raise THREADS.")
    return Memory(time.monotonic)


def ledger_of(environ: Mapping[str, str]) -> Ledger:
    """Return the ledger that ``STORE`` names, for an operator. Raises :class:`SettingError`."""
    store = environ.get("STORE", "")
    if not _REDIS.fullmatch(store):
        raise SettingError(
            "Write STORE=redis://HOST:PORT/DATABASE, as the function has it. The ledger of the memory store lives "
            "inside its instance and cannot be reached from outside."
        )
    from gateway.stores.redis import Redis  # noqa: PLC0415 - the same

    return Redis(store)


def _audit(environ: Mapping[str, str], policies: PolicySet) -> Audit:
    where = environ.get("AUDIT", "stdout")
    if where == "stdout":
        sink = standard_output()
    elif where.startswith("file:") and len(where) > len("file:"):
        try:
            sink = to_file(where.removeprefix("file:"))
        except OSError as error:
            raise SettingError(
                f"AUDIT: {where} cannot be written ({type(error).__name__}). Write another path."
            ) from None
    else:
        raise SettingError("AUDIT must be stdout or file:PATH.")
    return Audit(sink, policy=policies.digest, project=environ.get("GOOGLE_CLOUD_PROJECT") or None)
