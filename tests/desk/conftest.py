"""A namespace of its own for each test of the desk."""

from collections.abc import Iterator

import pytest

from reliq.testing import RedisServer
from tests.desk.support import Morgue


@pytest.fixture
def morgue(shared_redis: RedisServer, namespace: str) -> Iterator[Morgue]:
    made = Morgue(shared_redis.url, namespace)
    yield made
    made.close()
