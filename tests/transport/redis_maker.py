"""Redis brokers for the contract, and how a victim process reaches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from dramatiq.broker import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import dq_name
from dramatiq.middleware import Middleware

from reliq.testing import RedisServer, take_census
from reliq.transport.redis.scripts import Scripts
from reliq.wiring import transport_of
from tests.transport.rig import Maker


class RedisMaker(Maker):
    """Brokers on one server, each in a namespace of its own."""

    broker_class = RedisBroker

    def __init__(self, server: RedisServer) -> None:
        self.url = server.url
        self.client = server.client()

    def build(self, cls: type[Broker], middleware: list[Middleware]) -> Broker:
        """A broker on the shared client."""
        return cls(client=self.client, middleware=middleware, namespace=f"contract-{uuid4().hex[:12]}")

    def put_raw(self, broker: Broker, queue_name: str, body: bytes) -> None:
        """As plain Dramatiq's dispatch script does."""
        entry = str(uuid4())
        self.client.hset(f"{broker.namespace}:{queue_name}.msgs", entry, body)
        self.client.rpush(f"{broker.namespace}:{queue_name}", entry)

    def ready(self, broker: Broker, queue_name: str) -> list[bytes]:
        """By the list of ids."""
        entries = self.client.lrange(f"{broker.namespace}:{queue_name}", 0, -1)
        return self.client.hmget(f"{broker.namespace}:{queue_name}.msgs", entries) if entries else []

    def stored(self, broker: Broker) -> list[bytes]:
        """By the census."""
        return [place.body for place in take_census(self.client, broker.namespace)]

    def stock_twin(self, broker: Broker) -> Broker:
        """On the same namespace."""
        return RedisBroker(client=self.client, namespace=broker.namespace)

    def patch_settle(self, broker: Broker, patch: Any, error: BaseException, when: str) -> list[str]:
        """At the script's call."""
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
        """What is due, plain Dramatiq's delays first: with nobody there to promote ours they take that form."""
        next(broker.consume(dq_name(queue_name), timeout=1))
        transport_of(broker).scripts.run("promote", [100, queue_name], "promoting for a test")

    def victim(self, broker: Broker) -> dict[str, Any]:
        """By URL and namespace."""
        return {
            "connect": f"{__name__}:connect",
            "arm": f"{__name__}:arm",
            "broker": {"url": self.url, "namespace": broker.namespace},
        }


def connect(where: dict[str, str]) -> Broker:
    """In a victim process: the broker, without reliq."""
    return RedisBroker(url=where["url"], namespace=where["namespace"])


def arm(broker: Broker, strike: Callable[[str, str], None]) -> None:
    """In a victim process: strike around each script. One that promotes or returns nothing is no step."""
    raw = Scripts.raw

    def around(self: Scripts, name: str, args: Any) -> Any:
        strike(name, "before")
        reply = raw(self, name, args)
        if name != "promote" or reply[0]:
            strike(name, "after")
        return reply

    Scripts.raw = around  # type: ignore[method-assign]
