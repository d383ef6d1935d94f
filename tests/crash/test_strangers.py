"""Hundreds of hostile connections of each kind, and an honest client beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.conftest import MAIN
from tests.crash.forms import form
from tests.strangers import KINDS, Honest, strangers

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.appgregator import Appgregator
    from tests.conftest import Server

pytestmark = pytest.mark.figures

STRANGERS: Final = form(100, long=300)
SECONDS: Final = form(5, long=15)
#: In which calls are answered; how long the client waits at most, and how many calls may take longer: what stops this
#: whole machine for a moment befalls one or two, and what strangers hold up would be all.
SECONDS_EACH, PATIENCE, LATE = 2.0, 30.0, 2


@pytest.mark.parametrize("kind", KINDS)
def test_honest_client_is_answered_beside_hostile_connections(
    server: Callable[..., Server], upstream: Appgregator, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    running = server(source=MAIN, THREADS="80")
    assert running.call()[0] == 200  # whatever is loaded with the first call is loaded
    honest = Honest(PATIENCE)
    with strangers(running.port, kind, STRANGERS) as seen:
        honest.calls(running.port, SECONDS)
        opened = seen["opened"]
    sent, late = honest.sent(upstream), sum(wait > SECONDS_EACH for wait in honest.waits)
    with capsys.disabled():
        print(
            f"\n{STRANGERS} strangers at once, {opened} in all, {kind}: {len(honest.names)} honest calls, "
            f"{len(honest.problems)} not answered, {late} not within {SECONDS_EACH:.0f} s, the slowest "
            f"{max(honest.waits):.2f} s, {sum(count for times, count in sent.items() if times > 1)} sent twice"
        )
    assert opened >= STRANGERS
    assert not honest.problems
    assert late <= LATE
    assert sent == {1: len(honest.names)}
