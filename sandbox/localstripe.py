"""localstripe, an independent simulation of Stripe, as a process of its own on 127.0.0.1.

Its own command binds every interface, and stores its data in a pickle in the temp folder, which it loads at the next
start. Here it does neither. It is GPL: a test starts it, and nothing else may import it.
"""

from __future__ import annotations

import argparse
import socket

from aiohttp import web
from localstripe.resources import store
from localstripe.server import app

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m sandbox.localstripe", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    listener = socket.create_server(("127.0.0.1", parser.parse_args().port))
    store.dump_to_disk = lambda: None
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    web.run_app(app, sock=listener, print=None, access_log=None)  # until SIGTERM or SIGINT
