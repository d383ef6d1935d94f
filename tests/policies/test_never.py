"""Documents of which no call could pass, or that could not do what they say: refused when they are read."""

from __future__ import annotations

import pytest

from policies import access, lines
from policies.currencies import CURRENCIES
from policies.model import DocumentError, Grant
from policies.operations import OPERATIONS
from policies.refusals import ParameterInvalid, ParameterMissing, ParameterNotGranted
from tests.policies.conftest import call, only_caller, read

DOCUMENT = """\
connections:
  billing: {{name: ft-4, connection_name: stripe-1, upstream: {upstream}, secret: file:key{origin}}}
callers:
  app:
    owner: tests
    credentials: [key: {{id: k1, sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}}]
    limits: [30/minute]
    {budget}
    grants:
      - connection: billing
        operation: {operation}
        response: [id]
        {more}
        parameters:
          customer:
          {parameters}
"""
#: Where the grant, and what a grant has under it, stand in the errors.
GRANT = "policy.yaml:10: callers.app.grants[0]"


def written(
    parameters: str = "",
    *,
    operation: str = "invoices.issue",
    upstream: str = "stripe",
    budget: str = "",
    more: str = "",
) -> str:
    """Write a document of one grant; ``parameters`` and ``more`` are what stands there, line by line."""
    return DOCUMENT.format(
        upstream=upstream,
        origin=", origin: https://upstream.example" if upstream == "appgregator" else "",
        operation=operation,
        budget=f"budget: {budget}" if budget else "",
        more="\n        ".join(more.splitlines()),
        parameters="\n          ".join(parameters.splitlines()),
    )


def error_of(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        read(text)
    return str(caught.value)


def decided(text: str, asked: dict[str, str], operation: str = "invoices.issue") -> Grant:
    policies = read(text)
    return access.decide(policies, only_caller(policies), call(asked, key="order-1", operation=operation))


def entries(number: int, bound: str = "{fixed: a}") -> str:
    return "\n".join(f'"metadata[k{one}]": {bound}' for one in range(number))


# ---------------------------------------------------------------- what we add takes room, too

STAMP = 'stamp: "metadata[order]"'
AT_APPGREGATOR = {"operation": "invoices.create", "upstream": "appgregator"}


@pytest.mark.parametrize(
    ("more", "where", "most"),
    [
        ("", {}, 48),
        (STAMP, {}, 47),
        ("", {"operation": "invoices.create"}, 50),
        (STAMP, {"operation": "invoices.create"}, 49),
        (STAMP, AT_APPGREGATOR, 49),
        ("", AT_APPGREGATOR, 50),
    ],
)
@pytest.mark.parametrize("bound", ["{fixed: a}", "{required: true}"])
def test_metadata_that_every_call_has_leaves_room_for_what_we_add(
    more: str, where: dict[str, str], most: int, bound: str
) -> None:
    assert read(written(entries(most, bound), more=more, **where))
    said = error_of(written(entries(most + 1, bound), more=more, **where))
    assert ".parameters: no call could pass: metadata has too many entries" in said
    assert f"{most} at most" in said


def test_object_that_can_only_be_cleared_is_not_asked_for() -> None:
    blik = '"payment_settings[payment_method_options][blik]"'
    assert read(written(f"{blik}:"))
    assert read(written("custom_fields: {required: true}"))
    said = error_of(written(f"{blik}: {{required: true}}"))
    assert "payment_settings[payment_method_options][blik]: nothing can be sent in" in said
    assert "but to clear it, so no call could pass. Remove it" in said


def test_parameter_that_is_the_key_needs_room_as_well() -> None:
    from_metadata = f'{entries(49)}\n"metadata[order_id]":'
    assert read(written(from_metadata, more='idempotency: {from: "metadata[order_id]"}', **AT_APPGREGATOR))
    said = error_of(
        written(from_metadata, more=f'idempotency: {{from: "metadata[order_id]"}}\n{STAMP}', **AT_APPGREGATOR)
    )
    assert "metadata has too many entries: 49 at most" in said


LINE = {"customer": "cus_1", "currency": "usd", "lines[0][amount]": "1000"}


@pytest.mark.parametrize(
    ("parameters", "more", "where", "most"),
    [
        ("metadata:", "", {}, 48),
        ("metadata:", STAMP, {}, 47),
        (f"metadata:\n{entries(3)}", STAMP, {}, 44),
        ("metadata:", "", AT_APPGREGATOR, 50),
        ("metadata:", STAMP, AT_APPGREGATOR, 49),
        (f"metadata:\n{entries(3)}", STAMP, AT_APPGREGATOR, 46),
    ],
)
def test_caller_is_told_how_much_metadata_it_may_send_beside_what_we_write(
    parameters: str, more: str, where: dict[str, str], most: int
) -> None:
    text, operation = written(parameters, more=more, **where), where.get("operation", "invoices.issue")
    call = LINE if operation == "invoices.issue" else {"customer": "cus_1"}
    fits = call | {f"metadata[n{one}]": "x" for one in range(most)}
    assert decided(text, fits, operation)
    fixed = {f"metadata[k{one}]": "a" for one in range(3)} if entries(3) in parameters else {}
    assert decided(text, fits | fixed, operation)  # what is fixed is the same, sent or not
    for beyond in (fits | {"metadata[one]": "x"}, fits | fixed | {"metadata[one]": "x"}):
        with pytest.raises(ParameterInvalid) as refusal:
            decided(text, beyond, operation)
        assert refusal.value.detail == f"metadata has too many entries: {most} at most."
        (fault,) = refusal.value.faults
        assert (fault.parameter, fault.accepts) == ("metadata", {"max_items": most})


def test_description_of_a_line_leaves_room_for_what_is_written_before_it() -> None:
    text = written()
    each = {"customer": "cus_1", "currency": "usd", "lines[0][unit_amount]": "100000", "lines[0][quantity]": "12"}
    most = lines.LONGEST - len("12 x 1,000.00 ")
    assert decided(text, each | {"lines[0][description]": "x" * most})
    with pytest.raises(ParameterInvalid) as refusal:
        decided(text, each | {"lines[0][description]": "x" * (most + 1)})
    assert refusal.value.detail == (
        f"lines[0][description] is too long: {most} characters at most, since 12 x 1,000.00 is written before it."
    )
    assert decided(text, LINE | {"lines[0][description]": "x" * lines.LONGEST})


def test_length_of_a_description_is_that_of_the_catalogue() -> None:
    assert OPERATIONS["invoices.issue"].parameters["lines[{i}][description]"].max_length == lines.LONGEST


# ---------------------------------------------------------------- an invoice that is mailed

SENDS = "collection_method: {fixed: send_invoice}"


@pytest.mark.parametrize("send", ["send:", "send: {required: true}", "send: {fixed: true}", "send: {one_of: [true]}"])
@pytest.mark.parametrize(
    "beside",
    [
        "",
        "days_until_due:",
        SENDS,
        "collection_method:",
        "collection_method: {fixed: charge_automatically}\ndays_until_due:",
        "collection_method: {one_of: [charge_automatically]}\ndue_date:",
    ],
)
def test_mail_is_not_granted_to_invoices_that_cannot_be_mailed(send: str, beside: str) -> None:
    said = error_of(written(f"{send}\n{beside}"))
    assert said.startswith("policy.yaml:16: callers.app.grants[0].parameters.send: an invoice that is mailed needs")
    assert "collection_method: {fixed: send_invoice}, and days_until_due or due_date" in said


@pytest.mark.parametrize(
    "parameters",
    [
        f"send:\n{SENDS}\ndays_until_due:",
        f"send: {{fixed: true}}\n{SENDS}\ndue_date:",
        "send:\ncollection_method:\ndays_until_due: {required: true}",
        "send:\ncollection_method: {one_of: [send_invoice, charge_automatically]}\ndays_until_due: {fixed: 30}",
        "send: {fixed: false}",
        "send: {one_of: [false]}",
        "collection_method:",
        "days_until_due:",
        "collection_method: {fixed: charge_automatically}",
        "collection_method: {required: true, one_of: [send_invoice, charge_automatically]}",
        "collection_method: {one_of: [send_invoice]}",
    ],
)
def test_grant_some_calls_of_which_could_pass_is_read(parameters: str) -> None:
    assert read(written(parameters))


@pytest.mark.parametrize("operation", ["invoices.create", "invoices.issue"])
@pytest.mark.parametrize(
    ("parameters", "where", "said"),
    [
        (SENDS, "collection_method", "says by when it is to be paid, so no call could pass. Grant days_until_due or"),
        ("collection_method: {required: true, one_of: [send_invoice]}", "collection_method", "so no call could pass"),
        ("days_until_due: {fixed: 30}", "days_until_due", "goes with collection_method=send_invoice, which this grant"),
        ("due_date: {required: true}", "due_date", "goes with collection_method=send_invoice, which this grant"),
        (
            "days_until_due: {required: true}\ncollection_method: {fixed: charge_automatically}",
            "days_until_due",
            "so no",
        ),
    ],
)
def test_how_an_invoice_is_collected_and_when_it_is_due_go_together_at_stripe(
    operation: str, parameters: str, where: str, said: str
) -> None:
    told = error_of(written(parameters, operation=operation))
    assert told.startswith(f"policy.yaml:16: callers.app.grants[0].parameters.{where}: ")
    assert said in told
    # What is added behind Appgregator is not known.
    assert operation != "invoices.create" or read(written(parameters, **AT_APPGREGATOR))


def test_call_that_is_to_be_mailed_says_by_when_it_is_to_be_paid() -> None:
    text = written("send:\ncollection_method:\ndays_until_due:")
    asked = LINE | {"send": "true", "collection_method": "send_invoice"}
    with pytest.raises(ParameterInvalid) as refusal:
        decided(text, asked)
    assert refusal.value.detail == (
        "send mails the invoice, so it needs collection_method=send_invoice, and days_until_due or due_date."
    )
    assert decided(text, asked | {"days_until_due": "30"})


# ---------------------------------------------------------------- sums that nobody could be asked for


@pytest.mark.parametrize(
    ("amount", "parameters", "said"),
    [
        ("{max: 49, currency: [usd]}", "", "the least that can be invoiced in usd is 0.50 USD, and max is 0.49 USD."),
        ("{max: 49, currency: [chf, jpy]}", "", "in jpy is 50 JPY, and max is 49 JPY. Raise max, or leave jpy out"),
        ("{max: 29}", "currency: {fixed: gbp}", "the least that can be invoiced in gbp is 0.30 GBP"),
        ("{max: 49}", "currency: {one_of: [usd, eur]}", "the least that can be invoiced in eur is 0.50 EUR"),
    ],
)
def test_no_invoice_is_granted_that_comes_to_less_than_can_be_invoiced(amount: str, parameters: str, said: str) -> None:
    assert said in error_of(written(parameters, more=f"amount: {amount}"))
    assert read(written(parameters, more=f"amount: {amount.replace('49', '50').replace('29', '30')}"))


def test_where_any_currency_will_do_any_sum_will() -> None:
    assert read(written(more="amount: {max: 1}"))


MAX = "amount: {max: 50000, currency: [usd]}"
UNIT, AMOUNT, COUNT = '"lines[{i}][unit_amount]"', '"lines[{i}][amount]"', '"lines[{i}][quantity]"'


@pytest.mark.parametrize(
    ("parameters", "where", "said"),
    [
        (f"{UNIT}: {{min: 50001}}", UNIT, "a line with unit_amount comes to 50001 at least, and amount.max is 50000"),
        (f"{UNIT}: {{one_of: [60000, 70000]}}", UNIT, "a line with unit_amount comes to 60000 at least"),
        (f"{UNIT}: {{min: 25001}}\n{COUNT}: {{min: 2}}", UNIT, "a line with unit_amount comes to 50002 at least"),
        (f"{COUNT}: {{min: 50001}}", COUNT, "a line with unit_amount comes to 50001 at least"),
        (f"{AMOUNT}: {{min: 50001}}", AMOUNT, "a line with amount comes to 50001 at least"),
        (f"{UNIT}: {{max: 0}}", UNIT, "write 1 or more"),
        (f"{COUNT}: {{max: 0}}", COUNT, "write 1 or more"),
        (f"{AMOUNT}: {{max: -1}}", AMOUNT, "write 1 or more"),
    ],
)
def test_bounds_of_a_line_that_no_line_could_pass_are_refused(parameters: str, where: str, said: str) -> None:
    told = error_of(written(parameters, more=MAX))
    assert told.startswith(f"policy.yaml:16: callers.app.grants[0].parameters.{where[1:-1]}: ")
    assert said in told


@pytest.mark.parametrize(
    ("parameters", "more"),
    [
        (f"{UNIT}: {{max: 900000}}", MAX),
        (f"{UNIT}: {{min: 50000}}", MAX),
        (f"{UNIT}: {{min: 60000}}", f"{MAX}\nlines: {{credit: true}}"),
        (f"{AMOUNT}: {{max: -1}}", f"{MAX}\nlines: {{credit: true}}"),
        (f"{UNIT}: {{min: 60000}}", "amount: {currency: [usd]}"),
        (f"{COUNT}: {{min: 50001}}", "amount: {currency: [usd]}"),
    ],
)
def test_bounds_of_a_line_that_some_line_could_pass_are_read(parameters: str, more: str) -> None:
    assert read(written(parameters, more=more))


@pytest.mark.parametrize(
    ("budget", "parameters", "where", "least"),
    [
        (49, "", {}, "0.50 USD"),
        (49, "", {"more": MAX}, "0.50 USD"),
        (1999, f"{UNIT}: {{min: 1000}}\n{COUNT}: {{min: 2}}\n{AMOUNT}: {{min: 3000}}", {}, "20.00 USD"),
        (2999, "amount: {required: true, min: 3000}\ncurrency: {required: true}", AT_APPGREGATOR, "30.00 USD"),
        (2999, "amount: {fixed: 3000}\ncurrency: {fixed: usd}", AT_APPGREGATOR, "30.00 USD"),
    ],
)
def test_budget_without_room_for_one_invoice_is_refused(
    budget: int, parameters: str, where: dict[str, str], least: str
) -> None:
    text = written(parameters, budget=f"{{currency: usd, amount: {budget}, per: day}}", **where)
    told = error_of(text)
    assert told.startswith("policy.yaml:8: callers.app.budget: ")
    assert f"has no room for one invoice: a call of {where.get('operation', 'invoices.issue')} comes to {least}" in told
    assert read(text.replace(str(budget), str(budget + 1)))


@pytest.mark.parametrize("more", ["lines: {credit: true}", ""])
def test_line_that_lowers_the_sum_makes_room_in_a_budget(more: str) -> None:
    text = written(
        f"{UNIT}: {{min: 1000}}\n{AMOUNT}: {{min: 1000}}", budget="{currency: usd, amount: 999, per: day}", more=more
    )
    if more:
        assert read(text)
    else:
        assert "has no room for one invoice" in error_of(text)


# ---------------------------------------------------------------- currencies, and what stands twice


@pytest.mark.parametrize(
    ("written_so", "said"),
    [
        (
            written(more="amount: {currency: [usd, zzz]}"),
            ".grants[0].amount.currency[1]: there is no currency zzz. Write",
        ),
        (written(more="amount: {currency: [udx]}"), ".amount.currency[0]: there is no currency udx. Did you mean"),
        (written("currency: {one_of: [eur, zzz]}"), ".parameters.currency: there is no currency zzz"),
        (written("currency: {fixed: xxx}"), ".parameters.currency.fixed: there is no currency xxx"),
        (written(budget="{currency: zzz, amount: 5000, per: day}"), ".budget.currency: there is no currency zzz"),
        (written(more="amount: {currency: [USD]}"), ".amount.currency[0]: write a currency in lowercase letters"),
    ],
)
def test_currency_that_there_is_not_is_refused(written_so: str, said: str) -> None:
    assert said.replace(".parameters.currency:", ".parameters.currency.one_of[1]:") in error_of(written_so)


@pytest.mark.parametrize("currency", ["usd", "eur", "jpy", "isk", "kwd", "xof", "xcg", "ugx"])
def test_currency_that_there_is_is_read(currency: str) -> None:
    assert read(written(more=f"amount: {{currency: [{currency}]}}"))


def test_every_currency_has_three_small_letters() -> None:
    assert all(len(one) == 3 and one.isalpha() and one.islower() for one in CURRENCIES)
    assert len(CURRENCIES) == 160


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("amount: {currency: [usd, eur, usd]}", ".amount.currency[2]: usd is written twice"),
        ("record: [customer, customer]", ".record[1]: customer is written twice"),
        ("groups: [plain, plain]", ".groups[1]: plain is written twice"),
        ('record: ["metadata[a]", "metadata[a]"]\ngroups: [plain]', ".record[1]: metadata[a] is written twice"),
    ],
)
def test_list_that_means_a_set_has_each_once(more: str, said: str) -> None:
    assert said in error_of(written(more=more))


def test_bound_below_what_the_catalogue_takes_is_refused_and_not_a_traceback() -> None:
    said = error_of(written("amount: {max: 0}\ncurrency:", **AT_APPGREGATOR))
    assert ".parameters.amount.max: the upstream takes 1 at least, so no value could pass" in said


# ---------------------------------------------------------------- a budget for each customer

EACH = "{currency: usd, amount: 5000, per: day, each: customer}"
ALL = "{currency: usd, amount: 9000, per: day}"
CREATES = """\
      - connection: billing
        operation: customers.create
        response: [id]
        parameters: {email: }
"""


@pytest.mark.parametrize(
    ("budget", "also", "bounds"),
    [
        (EACH, "", True),
        (f"[{EACH}, {ALL}]", CREATES, True),
        (f"[{EACH}, {ALL.replace('usd', 'eur')}]", CREATES, False),
        (EACH, CREATES, False),
        (f"[{EACH}]", CREATES, False),
    ],
)
def test_budget_for_each_customer_bounds_nothing_where_the_caller_makes_customers(
    budget: str,
    also: str,
    bounds: bool,  # noqa: FBT001 - what the table says
) -> None:
    text = written(budget=budget) + also
    if bounds:
        assert read(text)
    else:
        said = error_of(text)
        assert "this caller may also use customers.create, and each new customer has a budget of its own" in said
        assert "Write one in usd without each beside it, or take customers.create out" in said


def test_customers_of_another_account_are_no_way_around_a_budget() -> None:
    other = "  other: {name: ft-5, connection_name: stripe-1, upstream: stripe, secret: file:other}\ncallers:"
    text = (written(budget=EACH) + CREATES.replace("billing", "other")).replace("callers:", other)
    assert read(text)


# ---------------------------------------------------------------- sums in which no invoice can be


@pytest.mark.parametrize(
    ("currency", "step"),
    [("isk", 100), ("ugx", 100), *((one, 10) for one in ("bhd", "jod", "kwd", "omr", "tnd")), ("huf", 1), ("jpy", 1)],
)
def test_line_is_a_multiple_of_what_can_be_invoiced(currency: str, step: int) -> None:
    text = written(more="lines: {credit: true}")
    fits = LINE | {"currency": currency, "lines[1][unit_amount]": str(step // 2 or 1), "lines[1][quantity]": "2"}
    fits |= {"lines[2][amount]": f"-{step}"}
    assert decided(text, fits)
    if step == 1:
        return
    for line, wrong in (("lines[0]", f"10{step + 1}"), ("lines[2]", f"-{step + 1}")):
        with pytest.raises(ParameterInvalid) as refusal:
            decided(text, fits | {f"{line}[amount]": wrong})
        assert refusal.value.detail == (
            f"{line} comes to {wrong}, which must end in {str(step)[1:]}: no smaller part of {currency.upper()} can be "
            "invoiced."
        )


def test_least_of_a_budget_and_of_a_grant_is_one_step() -> None:
    assert "in isk is 1.00 ISK, and max is 0.99 ISK" in error_of(written(more="amount: {max: 99, currency: [isk]}"))
    assert "has no room for one invoice" in error_of(written(budget="{currency: kwd, amount: 9, per: day}"))
    assert read(written(budget="{currency: kwd, amount: 10, per: day}"))


def test_line_of_a_currency_of_unknown_digits_says_minor_units() -> None:
    asked = {"customer": "cus_1", "currency": "kwd", "lines[0][unit_amount]": "5000", "lines[0][quantity]": "3"}
    assert lines.form(asked | {"lines[0][description]": "Travel"}) == {
        "lines[0][amount]": "15000",
        "lines[0][description]": "3 x 5,000 minor units Travel",
    }


# ---------------------------------------------------------------- words for what is easily got wrong


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("        response:", "\tresponse:", "There is a tab in this line: write spaces"),
        ("        operation:", "    \t  operation:", "There is a tab in this line: write spaces"),
        ("    owner:", "\N{NO-BREAK SPACE}   owner:", "There are no-break spaces here, as web pages have them"),
        ("response: [id]", "response: [metadata[a]]", 'in quotes: "metadata[order_id]"'),
    ],
)
def test_what_is_no_yaml_is_answered_with_what_is_in_the_line(old: str, new: str, said: str) -> None:
    assert said in error_of(written().replace(old, new))


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_line_that_is_no_yaml_is_named_however_lines_end(ends: str) -> None:
    text = written().replace("        response:", "\tresponse:")
    line = text[: text.index("\t")].count("\n") + 1
    said = error_of(text.replace("\n", ends))
    assert said.startswith(f"policy.yaml:{line}: this is not YAML")
    assert said.endswith("There is a tab in this line: write spaces")
    assert error_of(f"{text}{ends}[").startswith("policy.yaml:")


@pytest.mark.parametrize("before", ["callers:", "customer:", "tests"])
def test_byte_order_mark_within_a_document_is_named_with_its_line(before: str) -> None:
    text = written()
    line = text[: text.index(before)].count("\n") + 1
    assert error_of(text.replace(before, f"\ufeff{before}", 1)).startswith(
        f"policy.yaml:{line}: a byte order mark stands"
    )
    assert read(f"\ufeff{text}")


def refused(text: str, body: str, media: str, operation: str = "invoices.issue") -> tuple[str, dict[str, object]]:
    policies = read(text)
    asked = call(body=body.encode(), media=media, key="order-1", operation=operation)
    with pytest.raises(ParameterNotGranted) as refusal:
        access.decide(policies, only_caller(policies), asked)
    return refusal.value.faults[0].detail, dict(refusal.value.faults[0].accepts)


LINE_FORM = "customer=cus_1&currency=usd&lines[0][amount]=1000"


@pytest.mark.parametrize("body", [f"{LINE_FORM}&lines[0][currency]=usd", "customer=cus_1&lines[7][currency]=usd"])
def test_currency_of_a_line_is_answered_with_where_it_belongs(body: str) -> None:
    said, accepts = refused(written(), body, "form")
    path = f"lines[{body[body.rindex('lines[') + 6]}][currency]"
    assert said == (
        f"{path} does not belong to a line: all lines are in one currency. Send currency once, beside the lines."
    )
    assert accepts == {"did_you_mean": "currency"}


@pytest.mark.parametrize(
    ("media", "body", "path"),
    [
        ("json", '{"customer": "cus_1", "currency": "usd", "lines": "1000"}', "lines"),
        ("json", '{"customer": "cus_1", "currency": "usd", "lines": 1000}', "lines"),
        ("json", '{"customer": "cus_1", "currency": "usd", "lines": ["1000"]}', "lines[0]"),
        ("form", "customer=cus_1&currency=usd&lines=1000", "lines"),
    ],
)
def test_value_in_place_of_lines_is_answered_with_their_parts(media: str, body: str, path: str) -> None:
    said, accepts = refused(written(), body, media)
    assert said == (
        f"{path} cannot be a value: send its parts, such as lines[0][amount]. In JSON, nest lists and objects."
    )
    assert "lines[0][description]" in str(accepts["parameters"])


@pytest.mark.parametrize(("more", "where"), [(STAMP, AT_APPGREGATOR), (STAMP, {}), ("", {})])
def test_metadata_in_which_we_write_is_not_emptied(more: str, where: dict[str, str]) -> None:
    operation = where.get("operation", "invoices.issue")
    body = "customer=cus_1&metadata=" if where else f"{LINE_FORM}&metadata="
    said, _ = refused(written("metadata:", more=more, **where), body, "form", operation)
    assert said == "metadata cannot be emptied: Countersign writes there itself. Leave it out, or send its entries."


LIST = written(operation="customers.list").replace("customer:", "email:\n          limit:").replace("[id]", "[data.id]")


@pytest.mark.parametrize(("limit", "fits"), [("0", False), ("1", True), ("100", True), ("101", False), ("-1", False)])
def test_customers_are_listed_by_as_many_as_stripe_lists(limit: str, fits: bool) -> None:  # noqa: FBT001 - the table
    asked = {"email": "ann@example.com", "limit": limit}
    if fits:
        assert decided(LIST, asked, "customers.list")
    else:
        with pytest.raises(ParameterInvalid) as refusal:
            decided(LIST, asked, "customers.list")
        assert refusal.value.detail == f"limit must be at {'most 100' if limit == '101' else 'least 1'}."


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        ("{max: 101}", "limit.max: the upstream takes 100 at most"),
        ("{min: 101}", "limit.min: the upstream takes 100 at most, so no value could pass"),
        ("{max: 0}", "limit.max: the upstream takes 1 at least, so no value could pass"),
        ("{min: 0}", "limit.min: the upstream takes 1 at least"),
    ],
)
def test_bound_beyond_the_catalogues_is_refused(bound: str, said: str) -> None:
    assert said in error_of(LIST.replace("limit:", f"limit: {bound}"))


# ---------------------------------------------------------------- lines that nobody has filled in

BLANK = {"[amount]": "", "[description]": ""}


def lined(*said: dict[str, str]) -> dict[str, str]:
    head = {"customer": "cus_1", "currency": "usd"}
    return head | {f"lines[{number}]{part}": value for number, one in enumerate(said) for part, value in one.items()}


@pytest.mark.parametrize("at", [0, 1, 2])
def test_blank_line_is_left_out_wherever_it_stands(at: int) -> None:
    said = [{"[amount]": "1000", "[metadata][a]": "x"}, {"[amount]": "2000", "[description]": "y"}]
    text = written('"lines[{i}][metadata]":')
    plain, blank = decided(text, lined(*said)), decided(text, lined(*said[:at], BLANK, *said[at:]))
    assert (blank.form, blank.fingerprint, blank.parameters) == (plain.form, plain.fingerprint, plain.parameters)


@pytest.mark.parametrize("empty", ["null", "{}", "[]", '""', '{"amount": null, "metadata": {}}'])
def test_empty_line_in_json_is_left_out_wherever_it_stands(empty: str) -> None:
    first, second = '{"amount": 1000, "metadata": {"a": "x"}}', '{"amount": 2000, "description": "y"}'
    policies = read(written('"lines[{i}][metadata]":'))

    def granted(*said: str) -> Grant:
        body = f'{{"customer": "cus_1", "currency": "usd", "lines": [{", ".join(said)}]}}'.encode()
        asked = call(key="order-1", operation="invoices.issue", body=body, media="json")
        return access.decide(policies, only_caller(policies), asked)

    plain = granted(first, second)
    for said in ((empty, first, second), (first, empty, empty, second), (empty, first, empty, second, empty)):
        blank = granted(*said)
        assert (blank.form, blank.fingerprint, blank.parameters) == (plain.form, plain.fingerprint, plain.parameters)
    with pytest.raises(ParameterInvalid) as refusal:
        granted(first, empty, '{"amount": 0}')
    assert refusal.value.faults[0].parameter == "lines[2][amount]"
    with pytest.raises(ParameterMissing):
        granted(empty, empty)


def test_line_behind_a_blank_one_is_named_as_the_caller_wrote_it() -> None:
    with pytest.raises(ParameterInvalid) as refusal:
        decided(written(), lined({"[amount]": "1000"}, BLANK, {"[amount]": "0"}))
    assert refusal.value.faults[0].parameter == "lines[2][amount]"
    with pytest.raises(ParameterInvalid) as refusal:
        decided(written(), lined(BLANK, {"[amount]": "999999999999"}))
    assert refusal.value.faults[0].parameter == "lines[1]"


def test_invoice_of_blank_lines_has_none() -> None:
    with pytest.raises(ParameterMissing) as refusal:
        decided(written(), lined(BLANK, BLANK))
    assert refusal.value.detail.startswith("lines is missing: ")
