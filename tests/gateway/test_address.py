"""The address at which a request reached the function."""

from __future__ import annotations

import pytest

from gateway.address import Docs, root

HERE = {"wsgi.url_scheme": "http", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8080"}


@pytest.mark.parametrize(
    ("sent", "service", "told"),
    [
        ({}, "", "http://127.0.0.1:8080"),
        ({"HTTP_HOST": "pay.acme.example"}, "", "http://pay.acme.example"),
        (
            {"HTTP_HOST": "pay.acme.example", "HTTP_X_FORWARDED_PROTO": "https, http"},
            "billing",
            "https://pay.acme.example",
        ),
        (
            {"HTTP_HOST": "us-central1-acme.cloudfunctions.net", "HTTP_X_FORWARDED_PROTO": "https"},
            "billing",
            "https://us-central1-acme.cloudfunctions.net/billing",
        ),
        ({"HTTP_HOST": "127.0.0.1:8080", "HTTP_X_FORWARDED_PROTO": "gopher"}, "", "http://127.0.0.1:8080"),
        ({"HTTP_HOST": "[::1]:8080"}, "", "http://[::1]:8080"),
        ({"HTTP_HOST": 'x.example/"><script>'}, "", ""),
        ({"HTTP_HOST": "a.example, b.example"}, "", ""),
    ],
)
def test_address_is_that_which_the_sender_used(sent: dict[str, str], service: str, told: str) -> None:
    assert root(HERE | sent, service) == told


def test_operators_own_page_takes_precedence_over_the_portals() -> None:
    own = "https://docs.example/refusals"
    assert Docs(own, portal=True).entry("body-malformed", HERE) == f"{own}#body-malformed"
    at_home = "http://127.0.0.1:8080/portal/docs/refusals#body-malformed"
    assert Docs(portal=True).entry("body-malformed", HERE) == at_home
    assert Docs().entry("body-malformed", HERE) is None
    assert Docs(portal=True).entry("body-malformed", {}) is None
