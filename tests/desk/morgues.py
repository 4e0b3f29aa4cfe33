"""On which broker a test's letters lie: Redis, unless one of the marks below says otherwise.

Callers: the conftests of the desk and of the command line, and their tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.desk.rabbit_support import RabbitMorgue
from tests.desk.support import Morgue, RedisMorgue

both_brokers = pytest.mark.parametrize("morgue", ["redis", "rabbitmq"], indirect=True)
on_rabbitmq = pytest.mark.parametrize("morgue", ["rabbitmq"], indirect=True)


def opened(request: pytest.FixtureRequest) -> Iterator[Morgue]:
    """The body of the fixture `morgue`: only the server that is meant is started."""
    made: Morgue
    if getattr(request, "param", "redis") == "rabbitmq":
        made = RabbitMorgue(request.getfixturevalue("shared_rabbitmq"), request.getfixturevalue("vhost"))
    else:
        made = RedisMorgue(request.getfixturevalue("shared_redis").url, request.getfixturevalue("namespace"))
    yield made
    made.close()
