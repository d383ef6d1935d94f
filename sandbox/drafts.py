"""What Stripe does to an invoice after its create: lines, finalize, send, void, delete. Plain data in, plain data out.

What is played, and where that is said:

    rule                                                                         source
    lines go to a draft alone, 50 a call; an amount takes the invoice's          Manage bulk invoice line items, API
    currency, a price must have it; only an amount may be negative               reference of add_lines
    an answer shows 10 lines and `has_more`; `GET .../lines` shows 100           API reference
    subtotal: lines before discounts and exclusive tax; total: all in;           API reference, the invoice object
    amount_due: the total and what the customer owes from before
    a customer's own discount holds unless `discounts` is sent empty             API reference of create
    finalize works on a draft alone; it gives number, address and PDF;           Status transitions and finalization
    beneath the least charge, or above eight digits (INR 9, IDR 12), the         Supported currencies
    invoice is *paid* at once and the customer owes the sum
    send finalizes a draft, and mails an invoice of `send_invoice` to a          Integrate with the Invoicing API
    customer with an address
    void works on an open invoice, delete on a draft, each for good; a second    Status transitions and finalization
    delete is 404
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sandbox import invoice
from sandbox.faults import error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.server import Answer

__all__ = [
    "Customer",
    "RefusedError",
    "add_lines",
    "deleted",
    "draft",
    "finalized",
    "listed",
    "missing",
    "refuse",
    "sent",
    "shown",
    "summed",
    "voided",
    "want",
]

#: Lines of one call, and of one answer.
MOST: Final = 50
SHOWN: Final = 10
#: Keys of the metadata of one object, and characters of a description.
KEYS: Final = 50
LONGEST: Final = 5000
_LEAST: Final = {"usd": 50, "eur": 50, "gbp": 30, "jpy": 50}
_DIGITS: Final = {"inr": 9, "idr": 12}
_LINE: Final = re.compile(r"lines\[(\d+)\]\[([a-z_]+)\]((?:\[[^\[\]]*\])*)")
_METADATA: Final = re.compile(r"invoice_metadata\[([^\[\]]+)\]")
_WHOLE: Final = re.compile(r"-?\d{1,12}")
_TAKEN: Final = frozenset({"amount", "description", "discountable", "metadata", "pricing", "quantity", "tax_rates"})


class RefusedError(Exception):
    """Stripe refuses the call: the answer. ``executed``: it began to carry it out, so the answer is kept."""

    def __init__(self, answer: Answer, *, executed: bool = True) -> None:
        super().__init__()
        self.answer, self.executed = answer, executed


@dataclass(frozen=True, slots=True)
class Customer:
    """What an invoice takes from its customer. Sums are in minor units, rates in percent."""

    email: str | None = "account@accdemo.com"
    owes: int = 0
    """From before: what Stripe calls its balance."""
    discount: int = 0
    tax: int = 0
    """Of every invoice, on top of its lines or, with ``inclusive``, in them."""
    inclusive: bool = False
    located: bool = True
    """Whether its address is enough to work out tax."""


def draft(made: dict[str, Any], form: Mapping[str, str], customer: Customer) -> dict[str, Any]:
    """A fresh draft with what it takes from its customer. Its lines, all of them, are under ``lines.data``."""
    discount = customer.discount if "discounts" not in form else 0
    made |= {"customer_email": customer.email, "starting_balance": customer.owes, "auto_advance": False}
    made["auto_advance"] = form.get("auto_advance") in {"true", "1"}
    made["discounts"] = ["di_sandbox"] if discount else []
    return summed(made, customer)


def add_lines(made: dict[str, Any], form: Mapping[str, str], customer: Customer, prices: Mapping[str, Any]) -> None:
    """Add the lines of a form to a draft."""
    want(made, "draft", "invoice_not_editable")
    said: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for path, value in form.items():
        match = _LINE.fullmatch(path)
        if match is not None and match[2] in _TAKEN:
            said[int(match[1])][match[2] + match[3]] = value
        elif not _METADATA.fullmatch(path) and not path.startswith("expand["):
            refuse(f"There is no parameter {path}.", path, "parameter_unknown", executed=False)
    if sorted(said) != list(range(len(said))) or not said:
        refuse("The list lines has a gap, or is missing.", "lines", "parameter_missing", executed=False)
    if len(said) > MOST:
        refuse(f"At most {MOST} lines can be added at once.", "lines", executed=False)
    added = [_line(made, f"lines[{number}]", said[number], prices) for number in sorted(said)]
    metadata = {match[1]: value for path, value in form.items() if (match := _METADATA.fullmatch(path))}
    if len(made["metadata"] | metadata) > KEYS:
        refuse(f"Metadata may have {KEYS} keys.", "invoice_metadata", executed=False)
    made["lines"]["data"] += added
    made["metadata"] |= metadata
    summed(made, customer)


def _line(made: dict[str, Any], name: str, said: Mapping[str, str], prices: Mapping[str, Any]) -> dict[str, Any]:
    price = said.get("pricing[price]")
    if ("amount" in said) == (price is not None):
        refuse(f"{name} needs an amount or a price.", name, "parameters_exclusive", executed=False)
    for part in ("amount", "quantity"):
        if part in said and not _WHOLE.fullmatch(said[part]):
            refuse(f"{name}[{part}] is not an integer.", f"{name}[{part}]", "parameter_invalid_integer", executed=False)
    if len(said.get("description", "")) > LONGEST:
        refuse(f"{name}[description] may be {LONGEST} characters long.", f"{name}[description]", executed=False)
    quantity = int(said.get("quantity", "1"))
    if quantity < 0:
        refuse(f"{name}[quantity] must not be negative.", f"{name}[quantity]", executed=False)
    if price is None:
        amount = int(said["amount"])
    elif price not in prices:
        refuse(f"There is no price {price!r}.", f"{name}[pricing][price]", "resource_missing")
    elif prices[price][1] != made["currency"]:
        refuse("The price is in another currency than the invoice.", f"{name}[pricing][price]")
    else:
        amount = prices[price][0] * quantity
    line: dict[str, Any] = {
        "id": invoice.name("il_", 24),
        "object": "line_item",
        "amount": amount,
        "currency": made["currency"],
        "description": said.get("description"),
        "metadata": {path[9:-1]: value for path, value in said.items() if path.startswith("metadata[")},
        "quantity": quantity,
        "livemode": made["livemode"],
    }
    return line


def finalized(made: dict[str, Any], form: Mapping[str, str], customer: Customer, now: float) -> None:
    """Finalize a draft."""
    want(made, "draft", "invoice_not_editable")
    if not customer.located:
        failure = {"code": "customer_tax_location_invalid", "message": "The address is not enough to work out tax."}
        made["last_finalization_error"] = failure | {"type": "invalid_request_error"}
        refuse(failure["message"], "customer", failure["code"])
    if "auto_advance" in form:
        made["auto_advance"] = form["auto_advance"] in {"true", "1"}
    currency, due = made["currency"], made["amount_due"]
    paid = due < _LEAST.get(currency, 1) or due >= 10 ** _DIGITS.get(currency, 8)
    made |= {
        "status": "paid" if paid else "open",
        "paid": paid,
        "number": f"SANDBOX-{made['id'][-8:].upper()}",
        "hosted_invoice_url": f"https://invoice.stripe.com/i/{made['id']}",
        "invoice_pdf": f"https://pay.stripe.com/invoice/{made['id']}/pdf",
    }
    made["status_transitions"] = made["status_transitions"] | {"finalized_at": int(now)}
    if paid:
        made |= {"amount_due": 0, "amount_remaining": 0, "ending_balance": due}


def sent(made: dict[str, Any], customer: Customer, now: float) -> None:
    """Mail an invoice. A draft is finalized first."""
    if not made["customer_email"]:
        refuse("The customer has no e-mail address.", "customer")
    if made["collection_method"] != "send_invoice":
        refuse("Only an invoice of send_invoice can be sent.", "collection_method")
    if made["status"] == "draft":
        finalized(made, {}, customer, now)
    elif made["status"] not in {"open", "paid"}:
        refuse("This invoice cannot be sent any more.", "invoice", "invoice_not_editable")
    made["mailed"] = made.get("mailed", 0) + 1


def voided(made: dict[str, Any], now: float) -> None:
    """Void an open invoice, for good."""
    if made["status"] not in {"open", "uncollectible"}:
        refuse("Only an open invoice can be voided.", "invoice", "status_transition_invalid")
    made |= {"status": "void", "amount_remaining": 0}
    made["status_transitions"] = made["status_transitions"] | {"voided_at": int(now)}


def deleted(made: Mapping[str, Any]) -> dict[str, Any]:
    """What the deletion of a draft answers."""
    want(made, "draft", "invoice_not_editable")
    return {"id": made["id"], "object": "invoice", "deleted": True}


def shown(made: Mapping[str, Any]) -> dict[str, Any]:
    """The invoice as an answer has it: with its first lines, and without what only the sandbox knows."""
    every = made["lines"]["data"]
    some = made["lines"] | {"data": every[:SHOWN], "has_more": len(every) > SHOWN, "total_count": len(every)}
    return {name: value for name, value in made.items() if name != "mailed"} | {"lines": some}


def listed(made: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """The lines alone."""
    every = made["lines"]["data"]
    shown: dict[str, Any] = made["lines"] | {"data": every[:limit]}
    return shown | {"has_more": len(every) > limit, "total_count": len(every)}


def summed(made: dict[str, Any], customer: Customer) -> dict[str, Any]:
    """Work out what an invoice comes to from its lines, and return it."""
    subtotal = sum(line["amount"] for line in made["lines"]["data"])
    less = round(subtotal * customer.discount / 100) if made["discounts"] else 0
    tax = 0 if customer.inclusive else round((subtotal - less) * customer.tax / 100)
    total = subtotal - less + tax
    due = max(0, total + made["starting_balance"]) if total > 0 else 0
    made |= dict.fromkeys(("amount_due", "amount_remaining"), due)
    made |= dict.fromkeys(("subtotal", "subtotal_excluding_tax", "total_excluding_tax"), subtotal)
    made["total"] = total
    return made


def want(made: Mapping[str, Any], status: str, code: str) -> None:
    """Refuse what only an invoice of one status takes."""
    if made["status"] != status:
        refuse(f"This invoice is {made['status']}, and no longer a {status}.", "invoice", code)


def refuse(message: str, parameter: str, code: str | None = None, *, executed: bool = True) -> NoReturn:
    """Refuse as Stripe does; ``executed``: see :class:`RefusedError`."""
    more = {"code": code} if code else {}
    raise RefusedError(error(400, message, param=parameter, **more), executed=executed)


def missing(name: str) -> NoReturn:
    """Refuse what is about an invoice that does not exist."""
    raise RefusedError(error(404, f"There is no invoice {name!r}.", param="invoice", code="resource_missing"))
