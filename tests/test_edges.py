"""Every exception that a library may raise at an edge of ours has a meaning there, and none of them gets through."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from gateway import secrets
from gateway.edges import meaning
from gateway.forks import PerProcess
from gateway.stores import connecting, firestore, redis
from policies.idempotency import wanted
from policies.model import Admission, Answer, Outcome
from policies.outcomes import Reply
from policies.refusals import StoreUnavailable
from tests.gateway.conftest import granted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.stores import Store

Table = Mapping[type[BaseException], object]

#: What Google's clients raise. grpc.aio, api_core's REST and google-auth's other transports are not used.
GOOGLE = ("google.api_core.exceptions", "google.api_core.universe", "google.auth.exceptions", "grpc", "grpc._channel")
#: Each edge's table, and the modules whose exceptions may be raised there.
EDGES: dict[str, tuple[Table, tuple[str, ...]]] = {
    "redis": (connecting.ERRORS, ("hiredis", "ssl", "_socket")),
    "firestore": (firestore.ERRORS, GOOGLE),
    "secret manager": (secrets.meanings(), GOOGLE),
}


def exceptions(modules: tuple[str, ...]) -> set[type[BaseException]]:
    """Every exception class that these modules define or hand on."""
    found = (value for module in modules for value in vars(import_module(module)).values())
    return {value for value in found if isinstance(value, type) and issubclass(value, BaseException)}


def unmapped(table: Table, modules: tuple[str, ...]) -> list[str]:
    """The names of the exceptions whose class, and every base of it, is missing in the table."""
    return sorted(kind.__qualname__ for kind in exceptions(modules) if not set(kind.__mro__) & set(table))


@pytest.mark.parametrize("edge", EDGES)
def test_every_exception_of_a_library_has_a_meaning_at_its_edge(edge: str) -> None:
    table, modules = EDGES[edge]
    assert unmapped(table, modules) == []
    assert not {Exception, BaseException} & set(table), "with these, nothing would ever be missing"


@pytest.mark.parametrize(
    ("edge", "some"),
    [
        ("redis", {"ProtocolError", "ReplyError", "SSLCertVerificationError", "gaierror", "TimeoutError"}),
        ("firestore", {"Aborted", "RetryError", "RefreshError", "_InactiveRpcError", "_MultiThreadedRendezvous"}),
    ],
)
def test_walk_finds_what_is_known_to_be_there(edge: str, some: set[str]) -> None:
    assert some <= {kind.__name__ for kind in exceptions(EDGES[edge][1])}


@pytest.mark.parametrize("edge", EDGES)
def test_exception_that_a_new_version_brings_is_named(edge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table, modules = EDGES[edge]
    known: Any = next(iter(table))
    monkeypatch.setitem(sys.modules, "newer", ModuleType("newer"))
    vars(sys.modules["newer"]).update(Novel=type("Novel", (Exception,), {}), Kin=type("Kin", (known,), {}))
    assert unmapped(table, (*modules, "newer")) == ["Novel"]


def test_meaning_is_that_of_the_nearest_class() -> None:
    table: Mapping[type[BaseException], str] = {LookupError: "lookup", KeyError: "key", OSError: "os"}
    assert meaning(table, KeyError()) == "key"
    assert meaning(table, IndexError()) == "lookup"
    assert meaning(table, FileNotFoundError()) == "os"
    assert meaning(table, ValueError()) is None


# ---------------------------------------------------------------- each of them, raised where the library is called


class Failing:
    """Stands for a library's client, or one of its methods: it raises whatever is called."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Failing:
        return self

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise self._error


def errors(edge: str) -> Iterator[BaseException]:
    """One of a subclass of each exception, however its constructor is called."""
    kinds = exceptions(EDGES[edge][1])
    assert len(kinds) > 10
    for kind in sorted(kinds, key=lambda kind: kind.__qualname__):
        yield type(kind.__name__, (kind,), {"__init__": lambda self: None, "__del__": lambda self: None})()


class FailingConnection(Failing):
    """Stands for a connection that was opened, and can be closed."""

    def close(self) -> None:
        """Nothing is open."""


def failing_redis(error: BaseException) -> Store:
    store = redis.Redis("redis://127.0.0.1:9/0")
    store._client._opened = lambda *_: FailingConnection(error)  # type: ignore[assignment, method-assign]
    return store


def failing_firestore(error: BaseException) -> Store:
    store = firestore.Firestore("firestore://acme-prod")
    store._client = PerProcess(lambda: Failing(error))
    return store


STORES = {"redis": failing_redis, "firestore": failing_firestore}
#: The words that a store has for an error; the class without one.
TOLD = {"redis": connecting.ERRORS}


@pytest.mark.parametrize("key", [None, "order-1"])
@pytest.mark.parametrize("edge", STORES)
def test_whatever_a_store_raises_the_call_is_refused_and_a_sent_one_is_still_answered(
    monkeypatch: pytest.MonkeyPatch, edge: str, key: str | None
) -> None:
    monkeypatch.setattr("gateway.stores.debts.PATIENCE", 0.0)
    grant = granted(idempotency_key=key)
    claim = None if key is None else wanted(grant, owner="o", place="there", now=0.0)
    admission = Admission((), "o", 0.0, claim)
    for error in errors(edge):
        store: Any = STORES[edge](error)
        with pytest.raises(StoreUnavailable) as caught:
            store.admit(grant, "there")
        assert caught.value.note == (meaning(TOLD[edge], error) if edge in TOLD else type(error).__name__)
        with pytest.raises(StoreUnavailable):
            list(store.held())
        with pytest.raises(StoreUnavailable):
            store.resolve("a" * 64, None)
        store.release(grant, admission)
        assert bool(store.settle(grant, admission, Reply(Outcome.SUCCEEDED), Answer(200, b"{}"))) is (key is None)
