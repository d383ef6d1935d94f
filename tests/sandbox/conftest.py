from collections.abc import Iterator

import pytest

from sandbox.appgregator import Appgregator
from sandbox.secret_manager import SecretManager


@pytest.fixture
def upstream() -> Iterator[Appgregator]:
    with Appgregator() as running:
        yield running


@pytest.fixture
def secret_manager() -> Iterator[SecretManager]:
    with SecretManager() as running:
        yield running
