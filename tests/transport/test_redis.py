"""The Redis transport keeps the contract of every transport, on a real server."""

from __future__ import annotations

import pytest

from reliq.testing import RedisServer
from tests.transport.contract import TransportContract
from tests.transport.redis_maker import RedisMaker
from tests.transport.rig import Maker


class TestRedisContract(TransportContract):
    """All of it, on Redis."""

    capabilities = frozenset({"can_be_away", "outlives_kill"})
    # Each step is one script: before it and after it there is nothing between.
    kill_points = (
        *((step, 1, when) for step in ("fetch", "settle", "ack", "publish") for when in ("before", "after")),
        ("promote", 1, "after"),
        ("requeue", 1, "after"),
    )
    more_kill_points = (
        *((step, 2, when) for step in ("fetch", "settle", "ack") for when in ("before", "after")),
        *((step, 1, when) for step in ("reap", "beat") for when in ("before", "after")),
        ("promote", 2, "before"),
        ("requeue", 1, "before"),
        ("settle", 4, "after"),
    )

    @pytest.fixture
    def maker(self, shared_redis: RedisServer) -> Maker:
        return RedisMaker(shared_redis)
