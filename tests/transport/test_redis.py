"""The Redis transport keeps the contract of every transport, on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import dramatiq
import pytest

from reliq.testing import RedisServer
from tests.transport.contract import TransportContract
from tests.transport.redis_maker import RedisMaker
from tests.transport.rig import Maker, Stage, staged


class TestRedisContract(TransportContract):
    """All of it, on Redis."""

    capabilities = frozenset({"can_be_away", "hands_back_in_order", "outlives_kill"})
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


class TestLettersOfPlainDramatiq:
    """What a stock worker put aside (`.XQ`) is read and moved by the same means."""

    @pytest.fixture
    def stage(self, shared_redis: RedisServer) -> Iterator[Stage]:
        with staged(RedisMaker(shared_redis)) as make:
            stage = make()
            dramatiq.actor(lambda number: None, actor_name="work", queue_name="default")
            stock = stage.maker.stock_twin(stage.broker)
            stock.declare_queue("default")
            consumer = stock.consume("default", prefetch=3, timeout=100)
            for number in range(3):
                stock.enqueue(stage.broker.get_actor("work").message(number))
            for message in [next(consumer) for _ in range(3)]:
                consumer.nack(message)
            yield stage

    def test_they_are_read_with_nulls_and_counted(self, stage: Stage) -> None:
        """Arguments, actor and time of death are known; reason and error are null; one group without fingerprint."""
        letters = stage.letters()
        assert sorted(letter["args"][0] for letter in letters) == [0, 1, 2]
        for letter in letters:
            assert (letter["actor"], letter["reason"], letter["error"]) == ("work", None, None)
            assert letter["died_at"] is not None
        assert stage.counts() == (0, 0, 0, 3)
        (group,) = stage.transport.dead_groups("default")
        assert (group["count"], group["fingerprint"]) == (3, None)

    def test_they_can_be_replayed_and_discarded(self, stage: Stage) -> None:
        """One of each: 1 ready, 1 left."""
        first, second, third = stage.transport.dead_letters("default")
        assert first.message is not None
        publish = stage.transport.outgoing(stage.broker.get_actor("work").message(*first.message.args))
        assert stage.transport.replay(first, publish)
        assert stage.transport.discard(second)
        assert stage.counts() == (1, 0, 0, 1)
        assert [letter.id for letter in stage.transport.dead_letters("default")] == [third.id]
        found = stage.transport.find_letter(third.id)
        assert found is not None
        assert found.source == "stock"
