"""A bare pass-through with the fastest client: forwards the body with the key, and the answer. No policy."""

from __future__ import annotations

import os
import threading
from io import BytesIO
from typing import TYPE_CHECKING

import pycurl
from flask import Response

if TYPE_CHECKING:
    from flask import Request

_URL = os.environ["UPSTREAM"] + "/stripe/invoices/?"
_HEADERS = [
    f"x-api-key: {os.environ['UPSTREAM_KEY']}",
    "Content-Type: application/x-www-form-urlencoded",
    "Expect:",
]
_local = threading.local()


def bare(request: Request) -> Response:
    """Forward the bytes of the body and of the answer."""
    curl = getattr(_local, "curl", None)
    if curl is None:
        curl = _local.curl = pycurl.Curl()
        curl.setopt(pycurl.HTTPHEADER, _HEADERS)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.TIMEOUT, 25)
    answer = BytesIO()
    curl.setopt(pycurl.URL, _URL + request.query_string.decode("latin-1"))
    curl.setopt(pycurl.POSTFIELDS, request.get_data())
    curl.setopt(pycurl.WRITEDATA, answer)
    curl.perform()
    return Response(answer.getvalue(), curl.getinfo(pycurl.RESPONSE_CODE), content_type="application/json")
