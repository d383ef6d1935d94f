"""The lines of a whole invoice: what a call asks for, what is wrong with it, and how it goes to the upstream.

A line is an ``amount``, or a ``unit_amount`` and a ``quantity``, or a ``price`` and a ``quantity``; all amounts are in
minor units of the invoice's currency. So the sum is known before anything is sent, except where a line names a price
or tax comes on top.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from policies.refusals import Fault, ParameterInvalid, ParameterMissing, ParameterNotGranted
from policies.wording import amount_in_words, money, step

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from policies.model import Amount, Lines, Rule

#: One call adds at most so many lines (docs.stripe.com, "Manage bulk invoice line items").
MOST: Final = 50
#: Digits of a sum, in minor units (docs.stripe.com/currencies): eight, except these.
DIGITS: Final = 8
_DIGITS_OF: Final = {"inr": 9, "idr": 12}
#: The least that an invoice of some currencies can come to (docs.stripe.com/currencies, minimum charge). One that comes
#: to less is marked as paid, and the customer owes the sum with the next invoice. See :func:`least`.
_LEAST: Final = {"usd": 50, "eur": 50, "gbp": 30, "jpy": 50}

#: Characters of the description of a line, what we write before it included (docs.stripe.com/api/invoices/add_lines).
LONGEST: Final = 5000

_PART: Final = r"lines\[(\d+)\]\[(\w+)\](.*)"
#: The parts of a line that say what it comes to.
PARTS: Final = ("amount", "unit_amount", "price", "quantity")
#: Those that say it in money.
SUMS: Final = PARTS[:2]
#: The ways to say what a line comes to, and what each needs beside it.
_WAYS: Final = {"amount": (), "unit_amount": ("quantity",), "price": ("quantity",)}

#: Parameters of an invoice by which tax may come on top of its lines.
_TAXED: Final = frozenset({"automatic_tax", "default_tax_rates"})

#: The metadata of a whole invoice that are ours: whose it is, and that its lines are complete. No call of any operation
#: may write them: another's invoice would be found by them.
STAMP: Final = "countersign"
COMPLETE: Final = "countersign_lines"
OURS: Final = frozenset({f"metadata[{STAMP}]", f"metadata[{COMPLETE}]"})
#: One of these says by when an invoice is to be paid that the customer is sent; it goes with no other.
DUE: Final = ("days_until_due", "due_date")
#: What every grant of a whole invoice lets a caller say of a line; the rest is granted by name.
ALWAYS: Final = tuple(f"lines[{{i}}][{part}]" for part in ("amount", "description", "quantity", "unit_amount"))


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """What a whole invoice is held to before it is finalized: so many lines, in one currency, of one sum."""

    count: int
    currency: str
    total: int | None
    """In minor units, before tax; None if a line names a price, whose amount the upstream knows."""


class Line(msgspec.Struct, frozen=True):
    """One line as it was asked for, with the parts that go to the upstream as they are."""

    said: Mapping[str, str]
    """By the part's name: ``amount``, ``unit_amount``, ``quantity``, ``price``, ``description``."""
    more: Mapping[str, str]
    """By the rest of the path: ``[metadata][sku]``, ``[tax_rates][0]``."""
    number: int
    """By which the caller wrote it."""

    @property
    def total(self) -> int | None:
        """What the line comes to, in minor units; None if that is the upstream's to say."""
        if "amount" in self.said:
            return int(self.said["amount"])
        if "unit_amount" in self.said:
            return int(self.said["unit_amount"]) * int(self.said["quantity"])
        return None


def asked(parameters: Mapping[str, str]) -> Asked:
    """Return what the parameters of a granted call ask for."""
    lines = of(parameters)
    totals = [line.total for line in lines]
    known = [total for total in totals if total is not None]
    return Asked(len(lines), parameters["currency"], sum(known) if len(known) == len(totals) else None)


def varies(paths: Iterable[str]) -> bool:
    """Whether parameters at these paths may make an invoice come to another sum than the call names: a price, tax."""
    return any(path.partition("[")[0] in _TAXED or path.endswith("[price]") or "[tax_rates]" in path for path in paths)


def of(parameters: Mapping[str, str]) -> tuple[Line, ...]:
    """Return the lines that parameters name, in their order."""
    said: defaultdict[int, dict[str, str]] = defaultdict(dict)
    more: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for path, value in parameters.items():
        match = re.fullmatch(_PART, path)
        if match is not None:
            number, part, rest = int(match[1]), match[2], match[3]
            if rest or part in {"metadata", "tax_rates"}:
                more[number][f"[{part}]{rest}"] = value
            else:
                said[number][part] = value
    return tuple(Line(said[number], more[number], number) for number in sorted(said.keys() | more.keys()))


def form(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the lines as Stripe's ``add_lines`` takes them (docs.stripe.com/api/invoices/add_lines).

    A ``unit_amount`` there would need a product; so it goes as one amount, and the description says how it came about.
    """
    currency, sent = parameters["currency"], {}
    for number, line in enumerate(of(parameters)):
        here = f"lines[{number}]"
        description = line.said.get("description", "")
        if before := _before(line, currency):
            description = f"{before}{description}".rstrip()
        if line.total is None:
            sent[f"{here}[pricing][price]"] = line.said["price"]
            sent[f"{here}[quantity]"] = line.said["quantity"]
        else:
            sent[f"{here}[amount]"] = str(line.total)
        if description:
            sent[f"{here}[description]"] = description
        sent |= {f"{here}{rest}": value for rest, value in line.more.items()}
    return sent


def _before(line: Line, currency: str) -> str:
    """Return what stands before the description of a line: how it came to its amount."""
    if "unit_amount" not in line.said:
        return ""
    return f"{line.said['quantity']} x {amount_in_words(int(line.said['unit_amount']), currency)} "


def largest(currency: str) -> int:
    """Return the largest sum that an invoice in a currency can come to, in minor units."""
    return int("9" * _DIGITS_OF.get(currency, DIGITS))


def least(currency: str) -> int:
    """Return the least sum that an invoice in a currency can come to, in minor units, as far as it is known."""
    return _LEAST.get(currency, step(currency))


def smallest(rules: Mapping[str, Rule], way: str) -> int:
    """Return the least that a line may come to under these rules, said by ``amount`` or ``unit_amount``."""
    return _smallest(rules[f"lines[{{i}}][{way}]"]) * (
        _smallest(rules["lines[{i}][quantity]"]) if way == "unit_amount" else 1
    )


def _smallest(rule: Rule) -> int:
    """Return the least whole number that passes and asks for something."""
    return max(1, rule.minimum or 1, min(map(int, rule.one_of)) if rule.one_of else 1)


def ways(granted: Container[str]) -> dict[str, tuple[str, ...]]:
    """Return how a line may say what it comes to, with what each way needs beside it. ``granted`` are its parts."""
    return {way: needed for way, needed in _WAYS.items() if way in granted}


def faults(bounds: Lines, amount: Amount | None, given: Mapping[str, str]) -> Iterator[Fault]:
    """Yield what is wrong with a whole invoice whose parameters have each been checked by themselves.

    ``given`` has the values that the policy fixes, too.
    """
    mailed = given.get("collection_method") == "send_invoice" and any(path in given for path in DUE)
    if given.get("send") == "true" and not mailed:
        said = "mails the invoice, so it needs collection_method=send_invoice, and days_until_due or due_date."
        yield _invalid("send", said)
    yield from emptied(given)
    lines, currency = of(given), given.get("currency")
    if not lines:
        said = "lines is missing: send at least one line, such as lines[0][amount] and lines[0][description]."
        yield Fault(ParameterMissing, "lines", said, {"max_items": bounds.max})
        return
    if len(lines) > bounds.max:
        yield _invalid("lines", f"has {len(lines)} entries: {bounds.max} at most.", max_items=bounds.max)
        return
    wrong = [fault for line in lines for fault in _of_line(f"lines[{line.number}]", line, bounds)]
    yield from wrong
    if wrong or currency is None:
        return
    for line in lines:
        before = _before(line, currency)
        if len(before) + len(line.said.get("description", "")) > LONGEST:
            most = LONGEST - len(before)
            said = f"is too long: {most} characters at most, since {before.rstrip()} is written before it."
            yield _invalid(f"lines[{line.number}][description]", said, max_length=most)
    yield from _of_sums({line.number: line.total for line in lines}, currency, amount)


def emptied(given: Mapping[str, str]) -> Iterator[Fault]:
    """Refuse a call that empties the metadata in which we write."""
    if "metadata" in given:
        said = "metadata cannot be emptied: Countersign writes there itself. Leave it out, or send its entries."
        yield Fault(ParameterNotGranted, "metadata", said, {})


def _of_sums(totals: Mapping[int, int | None], currency: str, amount: Amount | None) -> Iterator[Fault]:
    """Yield what is wrong with what the lines come to, by their numbers. None is for the upstream to say."""
    most = largest(currency)
    for number, total in totals.items():
        if total is not None and abs(total) > most:
            said = f"comes to more than one invoice can: {money(most, currency)} at most."
            yield _invalid(f"lines[{number}]", said, max=most)
            return
        if total is not None and total % step(currency):
            zeros = str(step(currency))[1:]
            said = (
                f"comes to {total}, which must end in {zeros}: no smaller part of {currency.upper()} can be invoiced."
            )
            yield _invalid(f"lines[{number}]", said)
            return
    if None in totals.values():
        return
    total = sum(total for total in totals.values() if total is not None)
    if total > most:
        yield _invalid("lines", f"come to more than one invoice can: {money(most, currency)} at most.", max=most)
    elif total <= 0:
        said = "come to nothing or less, so there is nothing to be invoiced. Leave the invoice out, or mend the lines."
        yield _invalid("lines", said, min=least(currency))
    elif total < least(currency):
        said = (
            f"come to {money(total, currency)}. The least that can be invoiced in this currency is "
            f"{money(least(currency), currency)}."
        )
        yield _invalid("lines", said, min=least(currency))
    elif amount is not None and amount.max is not None and total > amount.max:
        said = f"come to {money(total, currency)}. You may raise {money(amount.max, currency)} at most."
        yield _invalid("lines", said, max=amount.max)


def _of_line(name: str, line: Line, bounds: Lines) -> Iterator[Fault]:
    ways = [way for way in _WAYS if way in line.said]
    if len(ways) != 1:
        said = f"names {' and '.join(ways)}: name one of them." if ways else "says no amount."
        yield _invalid(
            name,
            f"{said} A line is an amount, or a unit_amount and a quantity, or a price and a quantity.",
            one_of=list(_WAYS),
        )
        return
    way = ways[0]
    for needed in _WAYS[way]:
        if needed not in line.said:
            said = f"{name}[{needed}] is missing: it goes with {way}."
            yield Fault(ParameterMissing, f"{name}[{needed}]", said, {"min": 1})
            return
    if way == "amount" and "quantity" in line.said:
        said = "goes with unit_amount or price. Leave it out, or write unit_amount in place of amount."
        yield _invalid(f"{name}[quantity]", said)
    elif "quantity" in line.said and int(line.said["quantity"]) < 1:
        yield _invalid(f"{name}[quantity]", "must be at least 1.", min=1)
    elif (total := line.total) is not None:
        if total == 0:
            yield _invalid(f"{name}[{way}]", "is 0. Leave the line out, or write what it comes to.")
        elif total < 0 and way == "unit_amount":
            yield _invalid(f"{name}[{way}]", "must not be negative. Only an amount may lower the sum.", min=1)
        elif total < 0 and not bounds.credit:
            said = "must not be negative: the policy does not let you lower an invoice by a line."
            yield _invalid(f"{name}[{way}]", said, min=1)


def _invalid(name: str, said: str, **bounds: object) -> Fault:
    return Fault(ParameterInvalid, name, f"{name} {said}", bounds)
