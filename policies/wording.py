"""Amounts, limits and times as people say them: "30.00 USD a day", "30 calls a minute", "at 14:05 UTC"."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from policies.model import Budget

if TYPE_CHECKING:
    from policies.model import Left, Limit

#: Digits of the minor unit of currencies that have not two, as Stripe counts (docs.stripe.com/currencies). It differs
#: from ISO 4217: MGA has none, and ISK and UGX have two, although nobody pays a part of one.
_MINOR_DIGITS: Final = {
    **dict.fromkeys(
        ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"), 0
    ),
}
#: Currencies of three digits elsewhere, of which Stripe's page says nothing: a point would be a guess.
_UNSURE: Final = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
#: Sums of these are billed in steps of so many minor units (docs.stripe.com/currencies): nobody pays a hundredth of the
#: first two, and of a currency with three digits the last one is always 0.
_STEPS: Final = {**dict.fromkeys(("isk", "ugx"), 100), **dict.fromkeys(_UNSURE, 10)}
_EACH: Final = {1: "a second", 60: "a minute", 3600: "an hour", 86400: "a day"}
#: Seconds. A wait that is shorter is told in seconds, a longer one as a time of day.
_SOON: Final = 120
_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"))


def minor_digits(currency: str) -> int:
    """How many digits of an amount in minor units stand behind the point. ``currency`` is in small letters."""
    return _MINOR_DIGITS.get(currency, 2)


def step(currency: str) -> int:
    """Return of how many minor units every sum in a currency is a multiple."""
    return _STEPS.get(currency, 1)


def exponents() -> dict[str, int | None]:
    """Return :func:`minor_digits` as a table, by currency, and ``default`` for all others. None where it is a guess."""
    return {"default": minor_digits(""), **dict(sorted({**_MINOR_DIGITS, **dict.fromkeys(_UNSURE)}.items()))}


def money(amount: int, currency: str) -> str:
    """Return an amount of 0 or more minor units as ``30.00 USD``, or as it is where the digits are not known."""
    of = " of" if currency in _UNSURE else ""
    return f"{amount_in_words(amount, currency)}{of} {currency.upper()}"


def amount_in_words(amount: int, currency: str) -> str:
    """Return an amount of 0 or more minor units as ``30.00``, or ``3,000 minor units``, without its currency."""
    if currency in _UNSURE:
        return f"{amount:,} minor units"
    digits = minor_digits(currency)
    whole, part = divmod(amount, 10**digits)
    return f"{whole:,}{f'.{part:0{digits}}' if digits else ''}"


def limit_in_words(limit: Limit) -> str:
    """Return ``30/minute`` as ``30 calls a minute``."""
    return f"{_counted(limit.calls, 'call')} {_EACH[limit.seconds]}"


def budget_in_words(budget: Budget) -> str:
    """Return a budget as ``30.00 USD a day`` or ``30.00 USD a day for each customer``."""
    each = "" if budget.each is None else f" for each {budget.each}"
    return f"{money(budget.limit.calls, budget.currency)} {_EACH[budget.limit.seconds]}{each}"


def ago(seconds: float) -> str:
    """Say how long ago something was, in its largest unit: ``3 hours ago``, ``just now`` for less than a minute."""
    return f"{span(seconds)} ago" if seconds >= _UNITS[-1][0] else "just now"


def span(seconds: float) -> str:
    """Say how long a time of a minute or more is, in its largest unit, rounded down: ``3 hours``."""
    size, unit = next((size, unit) for size, unit in _UNITS if seconds >= size)
    return _counted(int(seconds // size), unit)


def when(now: float, seconds: int) -> str:
    """Say when ``seconds`` from ``now``, in unix seconds, are over.

    A short wait is ``in 12 seconds``, a longer one ``at 14:05 UTC, in 3 hours 20 minutes``. Both are rounded up.
    """
    if seconds < _SOON:
        return f"in {_counted(seconds, 'second')}"
    end = datetime.fromtimestamp(math.ceil((now + seconds) / 60) * 60, UTC)
    day = "" if end.date() == datetime.fromtimestamp(now, UTC).date() else f" on {end.day} {end:%B}"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    parts = [_counted(count, unit) for count, unit in ((hours, "hour"), (minutes, "minute")) if count]
    return f"at {end:%H:%M} UTC{day}, in {' '.join(parts)}"


def left_in_words(left: Left, now: float) -> str:
    """Say what is left of a limit or a budget: ``20.00 of 30.00 USD a day are left, 5.00 more at 14:05 UTC.``"""
    budget = Budget(left.currency, left.limit, left.each) if left.currency else None
    bound = limit_in_words(left.limit) if budget is None else budget_in_words(budget)

    def amount(count: int) -> str:
        return f"{count:,}" if budget is None else money(count, budget.currency)

    if left.remaining is None:
        return f"{bound}."
    are = "is" if left.remaining == 1 and budget is None else "are"
    said = f"{amount(left.remaining or 0)} of {bound} {are} left"
    return f"{said}, {amount(left.more)} more {when(now, left.reset)}." if left.more else f"{said}."


def moment(time: float) -> str:
    """Return a time in unix seconds as RFC 3339 writes it, rounded up to whole seconds."""
    return f"{datetime.fromtimestamp(math.ceil(time), UTC):%Y-%m-%dT%H:%M:%SZ}"


def _counted(count: int, unit: str) -> str:
    return f"{count:,} {unit}{'' if count == 1 else 's'}"
