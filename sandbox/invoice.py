"""The invoice of the upstream's public page, and new ones made from it.

Every field of the example is kept, so that trimming is tested on all of them. A create at Stripe brings an empty draft
of 0: lines come by calls of their own (`pending_invoice_items_behavior` is `exclude` since 2022-08-01).
"""

import json
import re
import secrets
import string
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

__all__ = ["EXAMPLE", "encode", "fresh", "name"]

EXAMPLE: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "id": "in_1MZX60Iyq0PiFIhUHls7HxJ4",
        "object": "invoice",
        "account_country": "US",
        "account_name": "Appgregator",
        "account_tax_ids": None,
        "amount_due": 2000,
        "amount_paid": 0,
        "amount_remaining": 2000,
        "amount_shipping": 0,
        "application": None,
        "application_fee_amount": None,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": False,
        "automatic_tax": {
            "enabled": False,
            "status": None,
        },
        "billing_reason": "manual",
        "charge": None,
        "collection_method": "charge_automatically",
        "created": 1675937476,
        "currency": "usd",
        "custom_fields": None,
        "customer": "cus_MQqeLuPp19Qbk8",
        "customer_address": None,
        "customer_email": "account@accdemo.com",
        "customer_name": None,
        "customer_phone": None,
        "customer_shipping": None,
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discount": None,
        "discounts": [],
        "due_date": None,
        "ending_balance": None,
        "footer": None,
        "from_invoice": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "last_finalization_error": None,
        "latest_revision": None,
        "lines": {
            "object": "list",
            "data": [
                {
                    "id": "il_1MZX5tIyq0PiFIhU7aNa2IRk",
                    "object": "line_item",
                    "amount": 2000,
                    "amount_excluding_tax": 2000,
                    "currency": "usd",
                    "description": None,
                    "discount_amounts": [],
                    "discountable": True,
                    "discounts": [],
                    "invoice_item": "ii_1MZX5tIyq0PiFIhUOK0qo2dl",
                    "livemode": False,
                    "metadata": {},
                    "period": {
                        "end": 1675937469,
                        "start": 1675937469,
                    },
                    "plan": None,
                    "price": {
                        "id": "price_1MZX5tIyq0PiFIhUrMFpU69m",
                        "object": "price",
                        "active": False,
                        "billing_scheme": "per_unit",
                        "created": 1675937469,
                        "currency": "usd",
                        "custom_unit_amount": None,
                        "livemode": False,
                        "lookup_key": None,
                        "metadata": {},
                        "nickname": None,
                        "product": "prod_NKBSkWUk0npqzT",
                        "recurring": None,
                        "tax_behavior": "unspecified",
                        "tiers_mode": None,
                        "transform_quantity": None,
                        "type": "one_time",
                        "unit_amount": 2000,
                        "unit_amount_decimal": "2000",
                    },
                    "proration": False,
                    "proration_details": {
                        "credited_items": None,
                    },
                    "quantity": 1,
                    "subscription": None,
                    "tax_amounts": [],
                    "tax_rates": [],
                    "type": "invoiceitem",
                    "unit_amount_excluding_tax": "2000",
                },
            ],
            "has_more": False,
            "total_count": 1,
            "url": "/v1/invoices/in_1MZX60Iyq0PiFIhUHls7HxJ4/lines",
        },
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": None,
        "number": None,
        "on_behalf_of": None,
        "paid": False,
        "paid_out_of_band": False,
        "payment_intent": None,
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": 1675937476,
        "period_start": 1675937476,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "quote": None,
        "receipt_number": None,
        "rendering_options": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": 0,
        "statement_descriptor": None,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subscription": None,
        "subtotal": 2000,
        "subtotal_excluding_tax": 2000,
        "tax": None,
        "test_clock": None,
        "total": 2000,
        "total_discount_amounts": [],
        "total_excluding_tax": 2000,
        "total_tax_amounts": [],
        "transfer_data": None,
        "webhooks_delivered_at": None,
    }
)

# Parameters that an invoice simply echoes.
_ECHOED: Final = ("collection_method", "customer", "description", "footer", "statement_descriptor")
_METADATA: Final = re.compile(r"metadata\[([^\[\]]+)\]")
_DAY: Final = 24 * 60 * 60

# 256 letters, so that one random byte picks each. The distribution is uneven, but ids need only differ.
_BASE62: Final = ((string.digits + string.ascii_letters) * 5)[:256].encode()


# json.dumps would make an encoder for each call.
_JSON: Final = json.JSONEncoder(separators=(",", ":"))


def encode(value: object) -> bytes:
    """Compact JSON."""
    return _JSON.encode(value).encode()


# Each field of the example is encoded once: a fresh invoice then costs its changed fields and one join.
_FIELDS: Final = {name: encode({name: value})[1:-1] for name, value in EXAMPLE.items()}


_NO_LINES: Final = encode({"lines": EXAMPLE["lines"] | {"data": [], "total_count": 0}})[1:-1]
_SUMS: Final = ("amount_due", "amount_remaining", "subtotal", "subtotal_excluding_tax", "total", "total_excluding_tax")
_NOTHING: Final = dict.fromkeys(_SUMS, 0)


def name(prefix: str, length: int) -> str:
    """A random name: `length` characters after the prefix."""
    return prefix + secrets.token_bytes(length).translate(_BASE62).decode()


def fresh(form: Mapping[str, str], *, empty: bool = False, live: bool = False) -> bytes:
    """The JSON of a new draft invoice that echoes the plain parameters of a create form; `live` is its mode.

    It has the example's line, or none. Raises ValueError with the name of an integer parameter that is not an integer.
    """
    made = name("in_", 24)
    now = int(time.time())
    changes: dict[str, object] = {"id": made, "created": now, "period_end": now, "period_start": now}
    changes |= {field: form[field] or None for field in _ECHOED if field in form}
    if metadata := {found[1]: form[key] for key in form if form[key] and (found := _METADATA.fullmatch(key))}:
        changes["metadata"] = metadata
    if "auto_advance" in form:
        changes["auto_advance"] = form["auto_advance"] in ("true", "1")
    if "due_date" in form:
        changes["due_date"] = _integer(form, "due_date")
    if "days_until_due" in form:
        changes["due_date"] = now + _DAY * _integer(form, "days_until_due")
    if empty:
        changes |= _NOTHING
    lines = (_NO_LINES if empty else _FIELDS["lines"]).replace(EXAMPLE["id"].encode(), made.encode())
    if currency := form.get("currency"):
        changes["currency"] = currency
        lines = lines.replace(encode(EXAMPLE["currency"]), encode(currency))
    if live:
        changes["livemode"] = True
        lines = lines.replace(b'"livemode":false', b'"livemode":true')
    fields = _FIELDS | {"lines": lines}
    for field, value in changes.items():
        fields[field] = encode({field: value})[1:-1]
    return b"{" + b",".join(fields.values()) + b"}"


def _integer(form: Mapping[str, str], field: str) -> int:
    try:
        return int(form[field])
    except ValueError:
        raise ValueError(field) from None
