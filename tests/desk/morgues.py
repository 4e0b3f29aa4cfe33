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
on_both_queue_types = pytest.mark.parametrize("morgue", ["rabbitmq", "quorum"], indirect=True)
everywhere = pytest.mark.parametrize("morgue", ["redis", "rabbitmq", "quorum"], indirect=True)


def opened(request: pytest.FixtureRequest) -> Iterator[Morgue]:
    """The body of the fixture `morgue`: only the server that is meant is started."""
    where, asked = getattr(request, "param", "redis"), request.getfixturevalue
    made: Morgue
    if where == "redis":
        made = RedisMorgue(asked("shared_redis").url, asked("namespace"))
    else:
        made = RabbitMorgue(asked("shared_rabbitmq"), asked("vhost"), "quorum" if where == "quorum" else None)
    yield made
    made.close()
