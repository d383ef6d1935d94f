"""What a library's exception means."""

from __future__ import annotations

import pytest

from gateway.edges import meaning

TABLE: dict[type[BaseException], str] = {OSError: "far", ConnectionError: "near", KeyError: "other"}


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (OSError(), "far"),
        (FileNotFoundError(), "far"),
        (ConnectionResetError(), "near"),
        (KeyError(), "other"),
        (LookupError(), None),
        (KeyboardInterrupt(), None),
    ],
    ids=repr,
)
def test_nearest_class_of_the_table_says_what_an_error_means(error: BaseException, means: str | None) -> None:
    assert meaning(TABLE, error) == means
