"""Money is told as money, times as times, and limits in the words of whoever meets them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.model import Budget, Limit
from policies.quota import UNITS, parse_limit
from policies.wording import ago, amount_in_words, budget_in_words, limit_in_words, minor_digits, moment, money, when


@pytest.mark.parametrize(
    ("amount", "currency", "told"),
    [
        (3000, "usd", "30.00 USD"),
        (1, "usd", "0.01 USD"),
        (0, "eur", "0.00 EUR"),
        (500000, "eur", "5,000.00 EUR"),
        (123456789, "usd", "1,234,567.89 USD"),
        (3000, "jpy", "3,000 JPY"),
        (1, "krw", "1 KRW"),
        (3000, "kwd", "3,000 minor units of KWD"),
        (5, "tnd", "5 minor units of TND"),
        # Nobody pays a hundredth of these, but Stripe still counts in hundredths: 500 is 5 ISK.
        (500, "isk", "5.00 ISK"),
        (500, "ugx", "5.00 UGX"),
        # ISO 4217 has hundredths of the ariary; Stripe does not.
        (3000, "mga", "3,000 MGA"),
        (10**15, "usd", "10,000,000,000,000.00 USD"),
    ],
)
def test_minor_units_are_told_as_money(amount: int, currency: str, told: str) -> None:
    assert money(amount, currency) == told


def test_amount_without_its_currency_says_where_it_is_in_minor_units() -> None:
    said = [amount_in_words(5000, one) for one in ("usd", "jpy", "kwd", "isk")]
    assert said == ["50.00", "5,000", "5,000 minor units", "50.00"]


@given(st.integers(0, 10**18), st.sampled_from(["usd", "jpy", "eur"]))
def test_no_minor_unit_is_lost_in_what_is_told(amount: int, currency: str) -> None:
    figure, name = money(amount, currency).split(" ")
    whole, _, part = figure.partition(".")
    assert (int(whole.replace(",", "") + part), name) == (amount, currency.upper())
    assert len(part) == minor_digits(currency)


def test_currencies_without_hundredths_are_those_of_stripes_page() -> None:
    """docs.stripe.com/currencies, read on 26 November 2026."""
    none = ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf")
    assert {minor_digits(c) for c in none} == {0}
    assert {minor_digits(c) for c in ("usd", "eur", "huf", "twd", "isk", "ugx")} == {2}


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("30/minute", "30 calls a minute"),
        ("1/second", "1 call a second"),
        ("5/hour", "5 calls an hour"),
        ("60000/day", "60,000 calls a day"),
    ],
)
def test_limit_is_told_in_words(limit: str, told: str) -> None:
    assert limit_in_words(parse_limit(limit)) == told


def test_every_unit_of_a_limit_has_words() -> None:
    assert {limit_in_words(parse_limit(f"2/{unit}")).endswith(f" {unit}") for unit in UNITS} == {True}


def test_budget_is_told_as_money() -> None:
    assert budget_in_words(Budget("usd", Limit(3000, 86400, "3000 usd/day"))) == "30.00 USD a day"
    assert budget_in_words(Budget("jpy", Limit(500, 3600, "500 jpy/hour"))) == "500 JPY an hour"


NOW = datetime(2026, 11, 26, 10, 44, 31, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (1, "in 1 second"),
        (12, "in 12 seconds"),
        (119, "in 119 seconds"),
        (120, "at 10:47 UTC, in 2 minutes"),
        (12_009, "at 14:05 UTC, in 3 hours 21 minutes"),
        (3600, "at 11:45 UTC, in 1 hour"),
        (7260, "at 12:46 UTC, in 2 hours 1 minute"),
        (60_000, "at 03:25 UTC on 27 November, in 16 hours 40 minutes"),
        (87_075, "at 10:56 UTC on 27 November, in 24 hours 12 minutes"),
    ],
)
def test_wait_is_told_as_a_time_and_never_too_short(seconds: int, told: str) -> None:
    assert when(NOW, seconds) == told


def test_moment_is_written_for_programs_and_never_too_early() -> None:
    assert moment(NOW) == "2026-11-26T10:44:31Z"
    assert moment(NOW + 0.001) == "2026-11-26T10:44:32Z"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "just now"), (59.9, "just now"), (-5, "just now"), (60, "1 minute ago"), (119, "1 minute ago"),
        (7200, "2 hours ago"), (86_399, "23 hours ago"), (86_400, "1 day ago"), (31 * 86_400 + 7, "31 days ago"),
    ],
)  # fmt: skip
def test_age_is_told_in_its_largest_unit(seconds: float, said: str) -> None:
    assert ago(seconds) == said
