"""What the tests of whole searches share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from searches import end_all


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No search, and no trial, outlives the test that started it."""
    yield
    end_all()
