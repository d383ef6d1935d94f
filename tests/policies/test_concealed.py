"""A secret is its own redacted twin, whatever holds it and whoever shows that."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import pprint
import traceback
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.secrets import Secret
from policies.concealed import HIDDEN, Concealed
from policies.model import Call

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "sk_live_canary4242"


class NewStruct(msgspec.Struct, frozen=True):
    """Somebody's new struct, who did not think of the secret."""

    name: str
    key: Concealed[str]
    keys: tuple[Concealed[str], ...] = ()


@dataclasses.dataclass
class NewDataclass:
    """The same as a dataclass."""

    name: str
    key: Concealed[str]


def json_of(value: Any) -> str:
    return json.dumps(value, default=lambda each: getattr(each, "__dict__", None) or str(each))


SHOWN: dict[str, Callable[[Any], object]] = {
    "repr": repr,
    "str": str,
    "format": lambda value: f"{value} {value!r} {value!s:>40}",
    "percent": lambda value: "%s %r" % (value, value),  # noqa: UP031 - as old code formats
    "pprint": pprint.pformat,
    "json": json_of,
    "msgspec json": msgspec.json.encode,
    "msgspec msgpack": msgspec.msgpack.encode,
    "builtins": msgspec.to_builtins,
    "pickle": pickle.dumps,
    "unpickled": lambda value: pickle.loads(pickle.dumps(value)),
    "copied": lambda value: (copy.copy(value) if isinstance(value, str) else None, copy.deepcopy(value)),
    "joined": lambda value: "".join(map(str, [value, value])),
}
HOLDERS: dict[str, Any] = {
    "alone": Concealed(CANARY),
    "tuple of texts": Concealed((CANARY, CANARY[::-1])),
    "struct": NewStruct("app", Concealed(CANARY), (Concealed(CANARY),)),
    "dataclass": NewDataclass("app", Concealed(CANARY)),
    "list": [Concealed(CANARY)],
    "dict": {"key": Concealed(CANARY)},
    "secret": Secret.of("projects/p/secrets/s/versions/1", "1", CANARY.encode()),
    "call": Call("o", "n", "c", {"x-api-key": Concealed(CANARY)}, "form", b"", None, validate_only=False),
}


@pytest.mark.parametrize("way", SHOWN)
@pytest.mark.parametrize("holder", HOLDERS)
def test_secret_is_not_shown_whoever_holds_it(holder: str, way: str) -> None:
    shown = repr(SHOWN[way](HOLDERS[holder]))
    assert CANARY not in shown
    assert CANARY[::-1] not in shown
    assert "canary" not in shown.lower()


@pytest.mark.parametrize("way", SHOWN)
def test_each_of_these_ways_shows_a_plain_text(way: str) -> None:
    """So that the test above can fail."""
    assert CANARY in repr(SHOWN[way](CANARY))


def test_secret_is_not_in_a_traceback_that_shows_its_variables() -> None:
    def fails(key: Concealed[str]) -> None:
        raise ValueError(f"not {key}", key)

    with pytest.raises(ValueError, match="not") as caught:
        fails(Concealed(CANARY))
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert CANARY not in "".join(shown.format())


@given(st.text() | st.tuples(st.text(), st.text()))
def test_only_reveal_returns_it(secret: object) -> None:
    concealed = Concealed(secret)
    assert concealed.reveal() == secret
    assert str(concealed) == HIDDEN
    assert concealed == Concealed(secret)
    assert hash(concealed) == hash(Concealed(secret))
    assert concealed != Concealed(CANARY)
    assert concealed != secret
    assert concealed != HIDDEN
    assert len({concealed, Concealed(secret), Concealed(CANARY)}) == 2
