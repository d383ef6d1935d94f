"""The environment -> everything one instance needs, or one line that says what to write instead."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.audit import Audit, standard_output, to_file
from gateway.secrets import Mounted, SecretDownError, SecretGoneError, SecretManager, Secrets
from gateway.stores.memory import Memory
from gateway.upstreams.appgregator import Appgregator
from gateway.upstreams.transport import Transport
from policies import document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.stores import Ledger, Store
    from gateway.stores.firestore import Firestore
    from gateway.stores.redis import Redis
    from policies.model import PolicySet

#: Cloud Run's own default for the calls that one instance gets at once; deploy/ sets both to the same number.
DEFAULT_THREADS: Final = "80"
#: An instance has ten seconds between SIGTERM and SIGKILL: calls that end by then are still recorded.
GRACE_SECONDS: Final = 9
#: A document of 10,000 callers is about 4 MB.
MAX_DOCUMENT: Final = 16 * 1024 * 1024

_VERSION = re.compile(r"projects/[^/\s]+/secrets/[^/\s]+/versions/[^/\s]+")
_ENDPOINT = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}")


_REDIS = re.compile(r"rediss?://(?:[^\s/@]*@)?(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?(?:/[0-9]{0,3})?")
_FIRESTORE = re.compile(r"firestore://[a-z][a-z0-9-]{4,28}[a-z0-9](?:/(?:\(default\)|[a-z][a-z0-9-]{2,61}[a-z0-9])?)?")


class SettingError(Exception):
    """A setting that the function must not start with. The text is one line: what is wrong, and what to write."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a call passes through."""

    policies: PolicySet
    secrets: Secrets
    store: Store
    upstream: Appgregator
    audit: Audit


def load(environ: Mapping[str, str]) -> Gate:
    """Build all of it. Raises :class:`SettingError`."""
    on_cloud = "K_SERVICE" in environ
    if on_cloud and environ.get("DEBUG"):
        raise SettingError("DEBUG shows callers what exceptions say. Remove it from the function's environment.")
    if on_cloud and environ.get("FIRESTORE_EMULATOR_HOST"):
        raise SettingError(
            "FIRESTORE_EMULATOR_HOST has Firestore spoken to in the clear, on a machine that is not Google's. Remove "
            "it from the function's environment."
        )
    manager = SecretManager(_endpoint(environ))
    policies = _policies(environ, manager)
    if on_cloud and any(connection.origin.startswith("http:") for connection in policies.connections.values()):
        raise SettingError("POLICY sends calls to this machine, as the sandbox's does. Deploy a policy of your own.")
    secrets = Secrets(manager=manager, mounted=Mounted(), clock=time.monotonic)
    return Gate(
        policies=policies,
        secrets=secrets,
        store=_store(environ, on_cloud=on_cloud),
        upstream=Appgregator(Transport(), secrets, time.monotonic),
        audit=_audit(environ, policies),
    )


def _endpoint(environ: Mapping[str, str]) -> str | None:
    endpoint = environ.get("SECRET_MANAGER_ENDPOINT")
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        raise SettingError(
            "SECRET_MANAGER_ENDPOINT is spoken to in the clear, so it must be on this machine: write "
            "127.0.0.1:PORT, or remove it to use Google's Secret Manager."
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


def _store(environ: Mapping[str, str], *, on_cloud: bool) -> Store:
    store = environ.get("STORE", "")
    if not store and on_cloud:
        raise SettingError(
            "STORE is not set. On the cloud it must be asked for by name: redis://HOST:PORT or "
            "firestore://PROJECT/DATABASE, which all instances share, or memory, which counts limits and remembers "
            "idempotency keys in one instance only."
        )
    shared = _shared(store)
    if shared is not None:
        return shared
    if store not in {"", "memory"}:
        raise SettingError(
            "STORE must be memory, redis://HOST:PORT/DATABASE (rediss:// over TLS), or firestore://PROJECT/DATABASE."
        )
    if environ.get("WORKERS", "1") != "1":
        raise SettingError("WORKERS must be 1 with STORE=memory: each worker would count for itself. Raise THREADS.")
    return Memory(time.monotonic)


def _shared(store: str) -> Redis | Firestore | None:
    """Return the store that instances share, if ``store`` names one. Only then its client is loaded."""
    if _REDIS.fullmatch(store):
        from gateway.stores.redis import Redis  # noqa: PLC0415 - only paid for where it is asked for

        return Redis(store)
    if _FIRESTORE.fullmatch(store):
        from gateway.stores.firestore import Firestore  # noqa: PLC0415 - the same

        return Firestore(store)
    return None


def ledger_of(environ: Mapping[str, str]) -> Ledger:
    """Return the ledger that ``STORE`` names, for an operator. Raises :class:`SettingError`."""
    shared = _shared(environ.get("STORE", ""))
    if shared is None:
        raise SettingError(
            "Write STORE=redis://HOST:PORT/DATABASE or STORE=firestore://PROJECT/DATABASE, as the function has it. The "
            "ledger of the memory store lives inside its instance and cannot be reached from outside."
        )
    return shared


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
