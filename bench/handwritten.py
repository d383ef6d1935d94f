"""The function that most people write: Flask's request, the key from the environment, a session. No policy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import requests
from flask import Response, jsonify

if TYPE_CHECKING:
    from flask import Request

session = requests.Session()


def handwritten(request: Request) -> tuple[Response, int]:
    """Forward the form with the key, and answer a few fields."""
    answer = session.post(
        os.environ["UPSTREAM"] + "/stripe/invoices/",
        params={"name": request.args["name"], "connection_name": request.args["connection_name"]},
        data=request.form.to_dict(),
        headers={"x-api-key": os.environ["UPSTREAM_KEY"]},
        timeout=25,
    )
    invoice = answer.json()
    return jsonify({name: invoice.get(name) for name in ("id", "status", "amount_due", "currency")}), answer.status_code
