"""What Stripe does with invoice items and customers. Plain data in, plain data out.

What is played, and where that is said:

    rule                                                                         source
    an item that names an invoice is a line of it at once, a draft's alone;      API reference of invoiceitems
    one that names none waits for the customer's next invoice
    its customer and its currency are the invoice's                              API reference, Error codes
    an amount, or what one comes to and a quantity, or a price that is kept;     API reference of invoiceitems
    only an amount may be negative
    250 lines an invoice                                                         Manage bulk invoice line items
    `email` finds customers letter by letter; the newest first, 10 unless        API reference of customers
    `limit` says more, up to 100
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any, Final

from sandbox import invoice
from sandbox.drafts import refuse, summed, want

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandbox.drafts import Customer

__all__ = ["added", "customer", "found", "item"]

MOST: Final = 250
MOST_LISTED: Final = 100
_WHOLE: Final = re.compile(r"-?\d{1,12}")
_DECIMAL: Final = re.compile(r"\d{1,12}(\.\d{1,12})?")
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_ITEM: Final = re.compile(
    r"amount|currency|customer|description|discountable|invoice|quantity|quantity_decimal|tax_behavior|tax_code"
    r"|unit_amount_decimal|pricing\[price\]|tax_rates\[\d*\]|metadata(\[[^\[\]]+\])?|expand\[\d*\]|period\[(start|end)\]"
)
_CUSTOMER: Final = re.compile(
    r"balance|business_name|description|email|individual_name|name|phone|tax_exempt|payment_method|source"
    r"|preferred_locales\[\d*\]|metadata(\[[^\[\]]+\])?|expand\[\d*\]|address(\[\w+\])?|shipping(\[\w+\])+"
    r"|tax_id_data\[\d*\]\[(type|value)\]"
)
_METADATA: Final = re.compile(r"metadata\[([^\[\]]+)\]")
_WAYS: Final = ("amount", "unit_amount_decimal", "pricing[price]")


def item(form: Mapping[str, str], prices: Mapping[str, Any], now: float, *, live: bool) -> dict[str, Any]:
    """A new item. Raises :class:`sandbox.drafts.RefusedError` for a form that is not in order."""
    _known(form, _ITEM)
    if not form.get("customer"):
        refuse("A customer is required.", "customer", "parameter_missing", executed=False)
    quantity = _quantity(form)
    amount, currency = _sum(form, prices, quantity)
    return {
        "id": invoice.name("ii_", 24),
        "object": "invoiceitem",
        "amount": amount,
        "currency": currency.lower(),
        "customer": form["customer"],
        "date": int(now),
        "description": form.get("description"),
        "discountable": amount >= 0,
        "discounts": [],
        "invoice": form.get("invoice"),
        "livemode": live,
        "metadata": _metadata(form),
        "period": {"end": int(now), "start": int(now)},
        "proration": False,
        "quantity": quantity,
        "tax_rates": [],
        "test_clock": None,
    }


def _quantity(form: Mapping[str, str]) -> int:
    for name in ("amount", "quantity"):
        if name in form and not _WHOLE.fullmatch(form[name]):
            refuse(f"{name} is not an integer.", name, "parameter_invalid_integer", executed=False)
    if "amount" in form and "quantity" in form:
        refuse("quantity goes with what one comes to.", "quantity", "parameters_exclusive", executed=False)
    quantity = int(form.get("quantity", "1"))
    if quantity < 0:
        refuse("quantity must not be negative.", "quantity", executed=False)
    return quantity


def _sum(form: Mapping[str, str], prices: Mapping[str, Any], quantity: int) -> tuple[int, str]:
    """What an item comes to, and its currency."""
    match [way for way in _WAYS if way in form]:
        case ["pricing[price]"]:
            price = form["pricing[price]"]
            if price not in prices:
                refuse(f"There is no price {price!r}.", "pricing[price]", "resource_missing")
            each, currency = prices[price]
            if form.get("currency", currency).lower() != currency:
                refuse("The price is in another currency.", "currency")
            return each * quantity, currency
        case [way]:
            if "currency" not in form:
                refuse("A currency is required.", "currency", "parameter_missing", executed=False)
            if way == "amount":
                return int(form[way]), form["currency"]
            if not _DECIMAL.fullmatch(form[way]):
                refuse(f"{way} is not a decimal.", way, executed=False)
            exact = Decimal(form[way]) * quantity
            return int(exact.quantize(Decimal(1), ROUND_HALF_UP)), form["currency"]
    code = "parameters_exclusive" if "amount" in form else "parameter_missing"
    return refuse("An item is an amount, or has what one comes to, or a price.", "amount", code, executed=False)


def added(made: dict[str, Any], new: Mapping[str, Any], customer: Customer) -> None:
    """Put an item on the draft that it names."""
    want(made, "draft", "invoice_not_editable")
    if new["customer"] != made["customer"]:
        refuse("The invoice is of another customer.", "customer")
    if new["currency"] != made["currency"]:
        refuse("The invoice is in another currency.", "currency")
    if len(made["lines"]["data"]) == MOST:
        refuse(f"An invoice has {MOST} lines at most.", "invoice")
    same = ("amount", "currency", "description", "discountable", "livemode", "metadata", "period", "quantity")
    line = {name: new[name] for name in same}
    line |= {"id": invoice.name("il_", 24), "object": "line_item", "invoice_item": new["id"], "proration": False}
    made["lines"]["data"].append(line)
    summed(made, customer)


def customer(form: Mapping[str, str], now: float, *, live: bool) -> dict[str, Any]:
    """A new customer. Raises :class:`sandbox.drafts.RefusedError` for a form that is not in order."""
    _known(form, _CUSTOMER)
    if "email" in form and not (_EMAIL.fullmatch(form["email"]) and len(form["email"]) <= 512):
        refuse(f"Invalid email address: {form['email']}", "email", "email_invalid", executed=False)
    if not _WHOLE.fullmatch(form.get("balance", "0")):
        refuse("balance is not an integer.", "balance", "parameter_invalid_integer", executed=False)
    address = {path[8:-1]: value for path, value in form.items() if path.startswith("address[")}
    names = ("description", "email", "name", "phone", "business_name", "individual_name")
    return {
        "id": invoice.name("cus_", 14),
        "object": "customer",
        "address": dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state")) | address
        if address
        else None,
        "balance": int(form.get("balance", "0")),
        "created": int(now),
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "invoice_prefix": invoice.name("", 8).upper(),
        "invoice_settings": {"custom_fields": None, "default_payment_method": None, "footer": None},
        "livemode": live,
        "metadata": _metadata(form),
        **{name: form.get(name) for name in names},
        "next_invoice_sequence": 1,
        "preferred_locales": [value for path, value in form.items() if path.startswith("preferred_locales[")],
        "shipping": None,
        "tax_exempt": form.get("tax_exempt", "none"),
        "test_clock": None,
    }


def found(query: Mapping[str, str], customers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The list of those with an e-mail address, or of all. ``customers`` are all, the oldest first."""
    for name in query:
        if name not in {"email", "limit"}:
            refuse(f"There is no parameter {name}.", name, "parameter_unknown", executed=False)
    limit = query.get("limit", "10")
    if not limit.isdecimal() or not 1 <= int(limit) <= MOST_LISTED:
        refuse(f"limit must be between 1 and {MOST_LISTED}.", "limit", executed=False)
    every = [one for one in customers if query.get("email", one["email"]) == one["email"]][::-1]
    return {
        "object": "list",
        "url": "/v1/customers",
        "has_more": len(every) > int(limit),
        "data": every[: int(limit)],
    }


def _known(form: Mapping[str, str], names: re.Pattern[str]) -> None:
    for name, value in form.items():
        if not names.fullmatch(name):
            refuse(f"There is no parameter {name}.", name, "parameter_unknown", executed=False)
        if not value and not name.startswith("metadata"):
            refuse(f"{name} may not be empty.", name, "parameter_invalid_empty", executed=False)


def _metadata(form: Mapping[str, str]) -> dict[str, str]:
    return {match[1]: value for path, value in form.items() if value and (match := _METADATA.fullmatch(path))}
