"""Make the calls that stdin lists with Stripe's SDK for Python, new or old, and print what came of each."""

from __future__ import annotations

import json
import sys
from typing import Any

import stripe

try:
    from stripe import StripeError
except ImportError:  # before version 8
    from stripe.error import StripeError  # type: ignore[import-not-found,no-redef,unused-ignore]

asked: dict[str, Any] = json.load(sys.stdin)
stripe.api_base = asked["address"]
stripe.max_network_retries = asked["retries"]

told: list[dict[str, Any]] = []
for call in asked["calls"]:
    options = {"api_key": call["as"]} | ({"idempotency_key": call["key"]} if call["key"] else {})
    try:
        if call["create"] is None:
            invoice = stripe.Invoice.retrieve(told[-1]["id"], **options)
        else:
            invoice = stripe.Invoice.create(**call["create"], **options)
        told.append({"id": invoice.id, "status": invoice.status, "customer": invoice.customer})
    except StripeError as error:
        told.append(
            {
                "error": type(error).__name__,
                "status": error.http_status,
                "param": getattr(error, "param", None),
                "request": error.request_id,
                "message": error.user_message,
            }
        )
json.dump(told, sys.stdout)
