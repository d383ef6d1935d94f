"""The environment -> everything one instance needs, or one line that says what to write instead."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gateway.certificates import CERTIFICATES, Certificates
from gateway.chain import Audit
from gateway.identity import Identity
from gateway.means import Means
from gateway.reloading import PROMISED_SECONDS, Policies, SourceError, digest_of, judge, source_of
from gateway.secrets import Mounted, SecretManager, Secrets
from gateway.sinks import standard_output, to_file
from gateway.stores import SHARED, shared
from gateway.stores.memory import Memory
from gateway.tokens import Google
from gateway.upstreams.sending import Upstreams
from gateway.upstreams.transport import Transport
from policies.model import DocumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.reloading import Source
    from gateway.stores import Ledger, Store
    from policies.model import PolicySet

#: An https address without query or fragment; or an OAuth client of one's own, which people's tokens are made for. Not
#: gcloud's own client, for which everybody's tokens are, whatever service they were shown to.
_AUDIENCE = re.compile(
    r"https://[a-z0-9.-]+(?::[0-9]{1,5})?(?:/[\w.~%/-]*)?|[0-9]+-[a-z0-9]+\.apps\.googleusercontent\.com"
)
_ENDPOINT = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}")
_SECONDS = re.compile(r"[0-9]{1,2}(?:\.[0-9]{1,3})?")
#: How a shared store is written, in sentences.
_SHARED = " or ".join(written.shown for written in SHARED.values())


class SettingError(Exception):
    """A setting that the function must not start with. The text is one line: what is wrong, and what to write."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a call passes through."""

    policies: Policies
    identity: Identity
    secrets: Secrets
    store: Store
    upstreams: Upstreams
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
    manager = SecretManager(
        _on_loopback("SECRET_MANAGER_ENDPOINT", environ.get("SECRET_MANAGER_ENDPOINT"), "Google's Secret Manager")
    )
    audiences, iam = _audiences(environ), _iam(environ)
    promised = _promised(environ, on_cloud=on_cloud)
    began = time.monotonic()
    source = _source(environ, manager)
    judged = partial(judge, where=source.where, on_cloud=on_cloud, google=bool(audiences or iam))
    try:
        data = source.read()
        first = judged(data)
    except SourceError as error:
        raise SettingError(f"POLICY: {source.where} {error}") from None
    except DocumentError as error:
        raise SettingError(str(error)) from None
    finally:
        manager.close()
    if any(connection.secret.startswith("projects/") for connection in first.connections.values()):
        manager.prepare()
    secrets = Secrets(manager=manager, mounted=Mounted(), clock=time.monotonic)
    store = _store(environ, on_cloud=on_cloud)
    audit = _audit(environ, first)
    return Gate(
        policies=Policies(
            source,
            judged,
            first,
            digest=digest_of(data),
            read_at=began,
            audit=audit,
            clock=time.monotonic,
            promised=promised,
        ),
        identity=Identity(Means(secrets, _google(environ, audiences, prepare="google" in first.kinds)), behind_iam=iam),
        secrets=secrets,
        store=store,
        upstreams=Upstreams(Transport(), secrets, time.monotonic, time.sleep),
        audit=audit,
    )


def _on_loopback(name: str, endpoint: str | None, otherwise: str) -> str | None:
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        raise SettingError(
            f"{name} is spoken to in the clear, so it must be on this machine: write 127.0.0.1:PORT, or remove it to "
            f"use {otherwise}."
        )
    return endpoint or None


def _source(environ: Mapping[str, str], manager: SecretManager) -> Source:
    where = environ.get("POLICY", "")
    if not where:
        raise SettingError("POLICY is not set. Write POLICY=policies/documents/NAME.yaml, or a Secret Manager version.")
    return source_of(where, manager)


def _promised(environ: Mapping[str, str], *, on_cloud: bool) -> float:
    seconds = environ.get("POLICY_SECONDS", "")
    if not seconds:
        return PROMISED_SECONDS
    if on_cloud:
        raise SettingError(
            "POLICY_SECONDS has every call read the policy document again. Remove it from the function's environment: "
            f"a change takes over within {PROMISED_SECONDS:.0f} seconds."
        )
    if not _SECONDS.fullmatch(seconds) or not 0 < float(seconds) <= PROMISED_SECONDS:
        raise SettingError(
            "POLICY_SECONDS must be the seconds within which a change of the policy document takes over: write a "
            f"number above 0, such as 0.5, and at most {PROMISED_SECONDS:.0f}."
        )
    return float(seconds)


def _iam(environ: Mapping[str, str]) -> bool:
    iam = environ.get("IAM", "")
    if iam not in {"", "guards"}:
        raise SettingError(
            "IAM must be guards, or not be set: write IAM=guards only where Cloud Run's IAM refuses all others."
        )
    return bool(iam)


def _audiences(environ: Mapping[str, str]) -> list[str]:
    audiences = [audience for audience in environ.get("AUDIENCE", "").split(",") if audience]
    for audience in audiences:
        if not _AUDIENCE.fullmatch(audience):
            raise SettingError(
                "AUDIENCE must be the function's own address, such as https://countersign-abc.a.run.app, exactly as "
                "callers ask Google for it; several with commas between them."
            )
    return audiences


def _google(environ: Mapping[str, str], audiences: list[str], *, prepare: bool) -> Google:
    endpoint = _on_loopback("GOOGLE_CERTS_ENDPOINT", environ.get("GOOGLE_CERTS_ENDPOINT"), "Google's certificates")
    address = f"http://{endpoint}/oauth2/v1/certs" if endpoint else CERTIFICATES
    google = Google(Certificates(address, time.monotonic), audiences)
    if prepare:
        google.prepare()
    return google


def _store(environ: Mapping[str, str], *, on_cloud: bool) -> Store:
    store = environ.get("STORE", "")
    if not store and on_cloud:
        raise SettingError(
            f"STORE is not set. On the cloud it must be asked for by name: {_SHARED}, which all instances share, or "
            "memory, which counts limits and remembers idempotency keys in one instance only."
        )
    found = shared(store)
    if found is not None:
        return found
    if store not in {"", "memory"}:
        raise SettingError(f"STORE must be memory, {_SHARED} (rediss:// is Redis over TLS).")
    if environ.get("WORKERS", "1") != "1":
        raise SettingError("WORKERS must be 1 with STORE=memory: each worker would count for itself. Raise THREADS.")
    return Memory(time.monotonic)


def ledger_of(environ: Mapping[str, str]) -> Ledger:
    """Return the ledger that ``STORE`` names, for an operator. Raises :class:`SettingError`."""
    found = shared(environ.get("STORE", ""))
    if found is None:
        raise SettingError(
            f"Write STORE={_SHARED}, as the function has it. The ledger of the memory store lives inside its instance "
            "and cannot be reached from outside."
        )
    return found


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
