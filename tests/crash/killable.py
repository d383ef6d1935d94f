"""The function as ``tests.crash.altered`` has it, with stages that die when told to. Loaded by the framework.

A file in the directory ``CRASH`` that is named like a call's Idempotency-Key and holds the name of a point ends the
process with SIGKILL when that call gets there, and is gone by then. With ``whole`` behind the name, the process that
supervises it dies too, so that nobody starts another.

If ``AHEAD`` names a file, the store's clock is ahead of this machine's by the seconds that the file says.

Everything is wrapped from outside, before ``main.py`` builds its gate: production code has no hook.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pycurl

from gateway.upstreams.sending import Upstreams
from gateway.upstreams.transport import Transport
from tests.crash.altered import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace

    from flask import Request

    from gateway.answering import Response
    from gateway.stores import Store
    from policies.dialect import Outgoing
    from policies.issuing import Progress
    from policies.model import Admission, Grant

ARMED = Path(os.environ["CRASH"])
#: The idempotency key of the call that this thread answers.
_call = threading.local()


_answer = main.countersign


def countersign(request: Request | SimpleNamespace) -> Response:
    """Answer one call, if it lives."""
    _call.key = request.environ.get("HTTP_IDEMPOTENCY_KEY", "")
    return _answer(request)


main.countersign = countersign


def _pass(point: str) -> None:
    """Go on, unless this call is to die here."""
    armed = ARMED / _call.key
    told = armed.read_text().split() if armed.is_file() else []
    if point not in told:
        return
    armed.unlink()
    if "whole" in told:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: type, stage: str, before: str, after: str) -> None:
    """Put a point before a stage and one after it."""
    real: Callable[..., Any] = getattr(owner, stage)

    @wraps(real)
    def passed(*args: Any, **kwargs: Any) -> Any:
        _pass(before)
        result = real(*args, **kwargs)
        _pass(after)
        return result

    setattr(owner, stage, passed)


def _stage_of(outgoing: Outgoing) -> str:
    """The step of a whole invoice that a request is."""
    step = outgoing.url.partition("?")[0].rpartition("/")[2]
    match outgoing.method, step:
        case "POST", "invoices":
            return "create"
        case "POST", "add_lines":
            return "lines"
        case "POST", _:
            return step
        case "GET", "invoices":
            return "find"
        case "GET", "lines":
            return "count"
        case _:
            return "delete" if outgoing.method == "DELETE" else "look"


def _stepwise(send: Callable[..., Any]) -> Callable[..., Any]:
    """Put points around each step of a whole invoice."""

    @wraps(send)
    def passed(transport: Transport, outgoing: Outgoing, *rest: Any) -> Any:
        _call.stage = _stage_of(outgoing)
        _pass(f"before-{_call.stage}")
        received = send(transport, outgoing, *rest)
        _pass(f"after-{_call.stage}")
        return received

    return passed


def _written(advance: Callable[..., Any]) -> Callable[..., Any]:
    """Put points around writing how far a whole invoice has come."""

    @wraps(advance)
    def passed(store: Store, grant: Grant, admission: Admission, progress: Progress) -> Any:
        _pass(f"before-writing-{progress.stage}")
        written = advance(store, grant, admission, progress)
        _pass(f"after-writing-{progress.stage}")
        return written

    return passed


def _watched(new_handle: Callable[..., Any]) -> Callable[..., Any]:
    """Have libcurl say when it has written a request's last byte, which is before it reads of the answer."""

    def heard(kind: int, _data: bytes) -> None:
        bare = _call.stage in {"find", "look", "count", "delete"}
        if kind == (pycurl.INFOTYPE_HEADER_OUT if bare else pycurl.INFOTYPE_DATA_OUT):
            _pass("during-send")
            _pass(f"during-{_call.stage}")

    @wraps(new_handle)
    def watched(transport: Transport, **kwargs: Any) -> Any:
        curl = new_handle(transport, **kwargs)
        curl.setopt(pycurl.VERBOSE, 1)
        curl.setopt(pycurl.DEBUGFUNCTION, heard)
        return curl

    return watched


def _ahead() -> float:
    """Tell this machine's time, and what a test puts on top of it."""
    return time.time() + float(Path(os.environ["AHEAD"]).read_text())


if "AHEAD" in os.environ:
    setattr(main.gate.store, "_clock", _ahead)  # noqa: B010 - not every store has a clock that can be set
_around(type(main.gate.store), "admit", "before-claim", "after-claim")
_around(Upstreams, "send", "before-send", "")
_around(Transport, "send", "", "after-applied")
setattr(Transport, "send", _stepwise(Transport.send))  # noqa: B010 - mypy takes no assignment to a method
setattr(type(main.gate.store), "advance", _written(type(main.gate.store).advance))  # noqa: B010 - the same
_around(type(main.gate.store), "settle", "before-settle", "after-settle")
setattr(Transport, "_new_handle", _watched(Transport._new_handle))  # noqa: B010 - mypy takes no assignment to a method
