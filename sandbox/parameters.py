"""Stripe's parameters for creating an invoice, by its published specification, and their valid values."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["look_up_problem", "problem"]

# `#` is a list's index, `*` any name, `**` anything below. `text` is at most 5,000 characters long where no
# length is given, and not empty; `unset` is a whole that "" empties; a trailing `!` is required where its parent is
# given.
_TABLE: Final = """
account_tax_ids                                 unset
account_tax_ids[#]                              text
application_fee_amount                          integer
auto_advance                                    boolean
automatic_tax[enabled]                          boolean !
automatic_tax[liability][account]               text
automatic_tax[liability][type]                  account|self !
automatically_finalizes_at                      integer
collection_method                               charge_automatically|send_invoice
currency                                        currency
custom_fields                                   unset
custom_fields[#][name]                          text:40 !
custom_fields[#][value]                         text:140 !
customer                                        text
customer_account                                text
days_until_due                                  integer
default_payment_method                          text
default_source                                  text
default_tax_rates[#]                            text
description                                     text:1500
discounts                                       unset
discounts[#][coupon]                            text
discounts[#][discount]                          text
discounts[#][promotion_code]                    text
due_date                                        integer
effective_at                                    integer
expand[#]                                       text
footer                                          text
from_invoice[action]                            revision !
from_invoice[invoice]                           text !
issuer[account]                                 text
issuer[type]                                    account|self !
metadata                                        unset
metadata[*]                                     text:500
number                                          text:26
on_behalf_of                                    text
payment_settings[default_mandate]               text
payment_settings[payment_method_options][**]    text
payment_settings[payment_method_types]          unset
payment_settings[payment_method_types][#]       text
pending_invoice_items_behavior                  exclude|include
rendering[amount_tax_display]                   |exclude_tax|include_inclusive_tax
rendering[pdf][page_size]                       a4|auto|letter
rendering[template]                             text
rendering[template_version]                     integer
shipping_cost[shipping_rate]                    text
shipping_cost[shipping_rate_data][**]           text
shipping_details[address][city]                 text
shipping_details[address][country]              text
shipping_details[address][line1]                text
shipping_details[address][line2]                text
shipping_details[address][postal_code]          text
shipping_details[address][state]                text
shipping_details[name]                          text !
shipping_details[phone]                         text
statement_descriptor                            text:22
subscription                                    text
transfer_data[amount]                           integer
transfer_data[destination]                      text !
"""

_PLACES: Final = {r"\#": r"\d*", r"\*": r"[^\[\]]+", r"\*\*": r".+"}
_CHECKS: Final = {"boolean": r"true|false|1|0", "currency": r"[A-Za-z]{3}", "integer": r"-?[0-9]{1,15}", "unset": ""}


def _read() -> tuple[dict[re.Pattern[str], str], dict[re.Pattern[str], str]]:
    kinds, required = {}, {}
    for line in _TABLE.strip().splitlines():
        path, kind, *marks = line.split()
        steps = [_PLACES.get(step, step) for step in re.escape(path).replace(r"\]", "").split(r"\[")]
        kinds[re.compile(steps[0] + "".join(rf"\[{step}\]" for step in steps[1:]))] = kind
        if marks:
            parent = steps[0] + "".join(rf"\[{step}\]" for step in steps[1:-1])
            required[re.compile(rf"({parent})\[.*")] = steps[-1]
    return kinds, required


_KINDS, _REQUIRED = _read()
_METADATA: Final = re.compile(r"metadata\[([^\[\]]+)\]")


def problem(form: Mapping[str, str]) -> dict[str, str] | None:
    """Stripe's validation error for a form, if it has one: `message`, `param` and perhaps `code`."""
    for name, value in form.items():
        if found := _wrong(name, value):
            return found
    return _gap(form) or _missing(form) or _metadata(form) or _due(form)


def look_up_problem(query: Iterable[str]) -> dict[str, str] | None:
    """Stripe's validation error for the names in the query of a look-up, which takes `expand` alone."""
    for name in query:
        if not re.fullmatch(r"expand\[\d*\]", name):
            return {"message": f"There is no parameter {name}.", "param": name, "code": "parameter_unknown"}
    return None


@functools.lru_cache(maxsize=1024)
def _kind(name: str) -> str | None:
    return next((kind for pattern, kind in _KINDS.items() if pattern.fullmatch(name)), None)


def _wrong(name: str, value: str) -> dict[str, str] | None:
    kind = _kind(name)
    if kind is None:
        return {"message": f"There is no parameter {name}.", "param": name, "code": "parameter_unknown"}
    if kind.startswith("text"):
        if not value and not _METADATA.fullmatch(name):
            return {"message": f"{name} may not be empty.", "param": name, "code": "parameter_invalid_empty"}
        longest = int(kind.partition(":")[2] or 5000)
        wrong = len(value) > longest and f"{name} may be {longest} characters long."
        return {"message": wrong, "param": name} if wrong else None
    if re.fullmatch(_CHECKS.get(kind, kind), value):
        return None
    code = {"code": "parameter_invalid_integer"} if kind == "integer" else {}
    return {"message": f"{name} is not a valid {kind}.", "param": name} | code


def _gap(form: Mapping[str, str]) -> dict[str, str] | None:
    lists = defaultdict(set)
    for name in form:
        if found := re.match(r"([^\[]+)\[(\d+)\]", name):
            lists[found[1]].add(int(found[2]))
    for name, indices in lists.items():
        if name != "metadata" and indices != set(range(len(indices))):
            return {"message": f"The list {name} has a gap.", "param": name}
    if len(lists["custom_fields"]) > 4:
        return {"message": "An invoice may have 4 custom fields.", "param": "custom_fields"}
    return None


def _missing(form: Mapping[str, str]) -> dict[str, str] | None:
    for pattern, step in _REQUIRED.items():
        for parent in {found[1] for name in form if (found := pattern.fullmatch(name))}:
            if (name := f"{parent}[{step}]") not in form:
                return {"message": f"{name} is required.", "param": name, "code": "parameter_missing"}
    return None


def _metadata(form: Mapping[str, str]) -> dict[str, str] | None:
    keys = [found[1] for name in form if (found := _METADATA.fullmatch(name))]
    if len(keys) > 50:
        return {"message": "Metadata may have 50 keys.", "param": "metadata"}
    if any(len(key) > 40 for key in keys):
        return {"message": "A key of metadata may be 40 characters long.", "param": "metadata"}
    return None


def _due(form: Mapping[str, str]) -> dict[str, str] | None:
    due = next((name for name in ("days_until_due", "due_date") if name in form), None)
    if (form.get("collection_method") == "send_invoice") == (due is not None):
        return None
    return {
        "message": "days_until_due or due_date goes with collection_method=send_invoice, and with no other.",
        "param": due or "days_until_due",
    }
