"""A place of its own on a broker for each test of the desk."""

from collections.abc import Iterator

import pytest

from tests.desk import morgues
from tests.desk.support import Morgue


@pytest.fixture
def morgue(request: pytest.FixtureRequest) -> Iterator[Morgue]:
    """On Redis, or where the test's mark says (`tests/desk/morgues.py`)."""
    yield from morgues.opened(request)
