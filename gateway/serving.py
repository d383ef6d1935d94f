"""How the framework's server is configured: with our worker where gunicorn is a version that it is tested with.

With any other the stock worker serves, and the function works all the same; docs/security.md says what that one lacks.
"""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gunicorn
import gunicorn.config

from gateway.arriving import MAX_LINE
from gateway.chain import alert
from gateway.underscores import Underscores

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The versions of gunicorn that our worker is tested with, by their first number; requirements.in has the same.
TESTED: Final = "27."
#: Cloud Run's own default for the calls that one instance gets at once; deploy/ sets both to the same number.
DEFAULT_THREADS: Final = "80"
#: An instance has ten seconds between SIGTERM and SIGKILL; gunicorn's master kills its worker after these.
GRACE_SECONDS: Final = 9
#: With these gunicorn starts a second worker, ends one, starts a second server, or puts a new worker in place of this
#: one. Two processes do not share a ledger in memory, and what has to be restarted is a new instance.
IGNORED: Final = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2, signal.SIGHUP)
#: In place of gunicorn's settings, whatever the framework sets and whichever worker serves. Nobody's headers change how
#: a call is read, whoever sends them; so it need not be looked at who does.
_READING: Final[Mapping[str, object]] = {
    "limit_request_line": MAX_LINE,
    "forwarded_allow_ips": ("*",),
    "forwarder_headers": Underscores(),
    "secure_scheme_headers": {},
}


def configure() -> None:
    """Configure the framework's server, which reads this after ``main.py`` is loaded."""
    for setting in gunicorn.config.KNOWN_SETTINGS:  # gunicorn 22 does not have all of them
        if setting.name in _READING:
            setting.get = staticmethod(partial(_READING.get, setting.name))
    os.environ.setdefault("THREADS", DEFAULT_THREADS)
    # The server of --debug logs the first line of every call; of one that it cannot read, that may be a key.
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    gunicorn.config.GracefulTimeout.default = GRACE_SECONDS
    gunicorn.config.WhenReady.default = staticmethod(_ignore)
    gunicorn.config.PostWorkerInit.default = staticmethod(_end_in_order)
    gunicorn.config.ChildExit.default = staticmethod(_alert_unless_stopping)
    # From 25.1 on gunicorn takes commands on a socket of its own, such as to start a second worker. It costs a thread
    # in the process that forks, and may take four of the ten seconds that an instance has to stop.
    if hasattr(gunicorn.config, "ControlSocketDisable"):
        gunicorn.config.ControlSocketDisable.default = True
    if gunicorn.__version__.startswith(TESTED):
        gunicorn.config.WorkerClass.default = "gateway.worker.Worker"
    else:
        alert(
            f"gunicorn {gunicorn.__version__} is not a version that gateway/worker.py is tested with ({TESTED}x). "
            "gunicorn's own worker serves instead: slower, and open to strangers who keep connections busy. Install "
            "the version that requirements.txt has."
        )


def _ignore(_master: object) -> None:
    for one in IGNORED:
        signal.signal(one, signal.SIG_IGN)


def _alert_unless_stopping(master: Any, _worker: object) -> None:
    """Say that the worker died: of one that was killed or has crashed, gunicorn says nothing that is written here."""
    if master.LISTENERS:  # closed first of all when it stops
        alert(
            "the process that answers calls died, and a new one takes its place. Calls that were under way got no "
            "answer: in the record they have an intent and no outcome. If it happens again, set PYTHONFAULTHANDLER=1, "
            "and standard error says where it died."
        )


def _end_in_order(worker: Any) -> None:
    """Have the worker end at SIGINT and SIGQUIT as at SIGTERM: gunicorn's own way drops the calls under way.

    What the master ignores, gunicorn's worker has set back to its default, which ends it.
    """
    _ignore(worker)
    for one in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(one, worker.handle_exit)
