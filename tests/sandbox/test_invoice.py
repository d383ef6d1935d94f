import json
import re
import time

import pytest

from sandbox import invoice


def test_example_has_all_fields_of_the_public_page() -> None:
    assert len(invoice.EXAMPLE) == 77
    assert invoice.EXAMPLE["id"] == "in_1MZX60Iyq0PiFIhUHls7HxJ4"
    assert invoice.EXAMPLE["lines"]["data"][0]["price"]["unit_amount_decimal"] == "2000"


def test_fresh_invoice_differs_from_the_example_only_where_it_is_new() -> None:
    began = int(time.time())
    made = json.loads(invoice.fresh({"customer": "cus_1"}))
    assert began <= made["created"] <= time.time()
    same = {field for field in invoice.EXAMPLE if made[field] == invoice.EXAMPLE[field]}
    assert set(made) == set(invoice.EXAMPLE)
    assert set(made) - same == {"id", "created", "customer", "lines", "period_end", "period_start"}
    assert re.fullmatch(r"in_[0-9A-Za-z]{24}", made["id"])
    assert made["lines"] == invoice.EXAMPLE["lines"] | {"url": f"/v1/invoices/{made['id']}/lines"}


def test_fresh_invoices_have_different_ids() -> None:
    assert len({json.loads(invoice.fresh({}))["id"] for _ in range(1000)}) == 1000


def test_fresh_invoice_reflects_the_plain_parameters() -> None:
    made = json.loads(
        invoice.fresh(
            {
                "customer": "cus_ü",
                "description": 'say "hi"',
                "footer": "",
                "currency": "eur",
                "collection_method": "send_invoice",
                "days_until_due": "30",
                "auto_advance": "true",
                "metadata[order]": "7",
                "metadata[team]": "emea",
            }
        )
    )
    assert made["customer"] == "cus_ü"
    assert made["description"] == 'say "hi"'
    assert made["footer"] is None
    assert made["currency"] == made["lines"]["data"][0]["price"]["currency"] == "eur"
    assert made["collection_method"] == "send_invoice"
    assert made["due_date"] == made["created"] + 30 * 24 * 60 * 60
    assert made["auto_advance"] is True
    assert made["metadata"] == {"order": "7", "team": "emea"}


@pytest.mark.parametrize("name", ["due_date", "days_until_due"])
def test_fresh_invoice_refuses_an_integer_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        invoice.fresh({"customer": "cus_1", name: "soon"})
