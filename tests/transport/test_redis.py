"""The Redis transport keeps the contract of every transport, on a real server."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from dramatiq.broker import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import dq_name
from dramatiq.middleware import Middleware

from reliq.testing import RedisServer, take_census
from reliq.wiring import transport_of
from tests.transport.contract import TransportContract
from tests.transport.rig import Maker


class RedisMaker(Maker):
    """Brokers on one server, each in a namespace of its own."""

    broker_class = RedisBroker

    def __init__(self, server: RedisServer) -> None:
        self.client = server.client()

    def build(self, cls: type[Broker], middleware: list[Middleware]) -> Broker:
        return cls(client=self.client, middleware=middleware, namespace=f"contract-{uuid4().hex[:12]}")

    def put_raw(self, broker: Broker, queue_name: str, body: bytes) -> None:
        entry = str(uuid4())
        self.client.hset(f"{broker.namespace}:{queue_name}.msgs", entry, body)
        self.client.rpush(f"{broker.namespace}:{queue_name}", entry)

    def ready(self, broker: Broker, queue_name: str) -> list[bytes]:
        entries = self.client.lrange(f"{broker.namespace}:{queue_name}", 0, -1)
        return self.client.hmget(f"{broker.namespace}:{queue_name}.msgs", entries) if entries else []

    def stored(self, broker: Broker) -> list[bytes]:
        census = take_census(self.client, broker.namespace)
        return [place.body for place in census]

    def stock_twin(self, broker: Broker) -> Broker:
        return RedisBroker(client=self.client, namespace=broker.namespace)

    def patch_settle(self, broker: Broker, patch: Any, error: BaseException, when: str) -> list[str]:
        scripts = transport_of(broker).scripts
        raw, happened = scripts.raw, []

        def struck(name: str, args: Any) -> Any:
            if name != "settle" or happened:
                return raw(name, args)
            happened.append(when)
            if when == "after":
                raw(name, args)
            raise error

        patch.setattr(scripts, "raw", struck)
        return happened

    def promote(self, broker: Broker, queue_name: str) -> None:
        # Nobody is there to promote ours, so that delays are stored in plain Dramatiq's form first.
        next(broker.consume(dq_name(queue_name), timeout=1))
        transport_of(broker).scripts.run("promote", [100, queue_name], "promoting for a test")


class TestRedisContract(TransportContract):
    """All of it, on Redis."""

    capabilities = frozenset({"can_be_away", "outlives_kill"})

    @pytest.fixture
    def maker(self, shared_redis: RedisServer) -> Maker:
        return RedisMaker(shared_redis)
