"""RabbitMQ brokers for the contract, and how a victim process reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pika
from dramatiq.broker import Broker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import q_name
from dramatiq.middleware import Middleware

from reliq.testing import RabbitmqServer
from reliq.transport.base import Depth
from reliq.transport.rabbitmq.control import Step
from reliq.transport.rabbitmq.publisher import Publisher
from reliq.transport.rabbitmq.settler import Settler
from reliq.transport.rabbitmq.subscription import Subscription
from reliq.transport.rabbitmq.topology import Ladder, target_of
from reliq.transport.rabbitmq.transport import RabbitTransport
from reliq.wiring import transport_of
from tests.transport.rig import Maker


class RabbitMaker(Maker):
    """Brokers on one server, each in a vhost of its own; `close` deletes them."""

    broker_class = RabbitmqBroker

    def __init__(self, server: RabbitmqServer, queue_type: str | None = None) -> None:
        self.server = server
        self._queue_type = queue_type
        self._vhosts: dict[int, str] = {}
        self._brokers: list[Broker] = []
        self._connections: dict[int, Any] = {}

    def close(self) -> None:
        """Leave nothing behind."""
        for connection in self._connections.values():
            if connection.is_open:
                connection.close()
        for broker in self._brokers:
            transport = transport_of(broker)
            if transport is not None:
                transport.disconnect()
            broker.close()
        for vhost in self._vhosts.values():
            self.server.delete_vhost(vhost)

    def build(self, cls: type[Broker], middleware: list[Middleware]) -> Broker:
        """In a vhost of its own."""
        vhost = f"contract-{uuid4().hex[:12]}"
        self.server.add_vhost(vhost, self._queue_type)
        broker = cls(url=self.server.url(vhost), middleware=middleware)
        self._vhosts[id(broker)] = vhost
        self._brokers.append(broker)
        return broker

    def vhost(self, broker: Broker) -> str:
        """Where a broker of ours lives."""
        return self._vhosts[id(broker)]

    def _connection(self, broker: Broker) -> Any:
        """Kept: the suite looks often."""
        connection = self._connections.get(id(broker))
        if connection is None or not connection.is_open:
            connection = pika.BlockingConnection(pika.URLParameters(self.server.url(self.vhost(broker))))
            self._connections[id(broker)] = connection
        return connection

    @contextmanager
    def channel(self, broker: Broker) -> Iterator[Any]:
        """A channel of the test's own."""
        channel = self._connection(broker).channel()
        try:
            yield channel
        finally:
            if channel.is_open:
                channel.close()

    def put_raw(self, broker: Broker, queue_name: str, body: bytes) -> None:
        """As any producer does."""
        transport = self._transport(broker)
        transport.declared.queue(q_name(queue_name))
        with self.channel(broker) as channel:
            channel.confirm_delivery()
            channel.basic_publish("", queue_name, body, pika.BasicProperties(delivery_mode=2), mandatory=True)

    def ready(self, broker: Broker, queue_name: str) -> list[bytes]:
        """What came to this process and waits there, then what the broker has."""
        bodies = []
        for subscription in self._transport(broker).intake.of(queue_name):
            if subscription.waiting:
                bodies += [arrival.body for arrival in list(subscription.outstanding.values())[-subscription.waiting :]]
        return bodies + [body for _, body in self._peek(broker, queue_name)]

    def stored(self, broker: Broker) -> list[bytes]:
        """Of all queues of the vhost."""
        names = [queue["name"] for queue in self.server.queues(self.vhost(broker))]
        return [body for name in names for _, body in self._peek(broker, name)]

    def stock_twin(self, broker: Broker) -> Broker:
        """On the same vhost."""
        twin = RabbitmqBroker(url=self.server.url(self.vhost(broker)), confirm_delivery=True)
        self._brokers.append(twin)
        return twin

    def depth(self, broker: Broker, queue_name: str) -> Depth:
        """The transport's, and the delays counted one by one on the ladder."""
        depth = self._transport(broker).depth(queue_name)
        transport = self._transport(broker)
        levels = [level for kind in transport.declared._ladders for level in Ladder(kind).levels()]
        looks = transport.desk._look_at(*levels, f"{queue_name}.DQ") if levels else []
        delayed = sum(look.message_count for look in looks if look is not None)
        if delayed and len(transport.declared_queues()) > 1:
            # Others may have delays as well: each message's key says whose it is.
            keys = [key for level in levels for key, _ in self._peek(broker, level)]
            delayed = sum(target_of("reliq.delay.", key) == queue_name for key in keys)
        unacked = 0 if depth.unacked is None else depth.unacked
        return Depth(queue_name, depth.ready, unacked, delayed, depth.dead, depth.oldest_age_ms, depth.consumers)

    def empty(self, broker: Broker, queue_name: str) -> None:
        """All of it, in one round."""
        transport = self._transport(broker)
        levels = [level for kind in transport.declared._ladders for level in Ladder(kind).levels()]
        transport.intake.drop_waiting(queue_name, 5)
        transport.ask([Step("queue_purge", {"queue": name}) for name in (*levels, queue_name)])
        if transport.has_queue(f"{queue_name}.dead"):
            transport.ask([Step("queue_purge", {"queue": f"{queue_name}.dead"})])

    def _peek(self, broker: Broker, queue_name: str) -> list[tuple[str, bytes]]:
        """(routing key, body) of what is ready; given back."""
        found = []
        with self.channel(broker) as channel:
            try:
                if not channel.queue_declare(queue_name, passive=True).method.message_count:
                    return []
                while (got := channel.basic_get(queue_name))[0] is not None:
                    found.append((got[0].routing_key, got[2]))
            except pika.exceptions.ChannelClosedByBroker:
                return []
        return found

    def patch_settle(self, broker: Broker, patch: Any, error: BaseException, when: str) -> list[str]:
        """Where the publisher is given the messages of a settle, and where a delivery is given back."""
        happened: list[str] = []

        def around(cls: type, name: str, wait: Callable[..., None]) -> None:
            original = getattr(cls, name)

            def struck(self: Any, *args: Any) -> None:
                if happened:
                    original(self, *args)
                    return
                happened.append(when)
                if when == "after":
                    original(self, *args)
                    wait(*args)
                raise error

            patch.setattr(cls, name, struck)

        around(Publisher, "submit", lambda batch: batch.done.wait(5))
        around(Subscription, "give_back", lambda *args: None)
        return happened

    def promote(self, broker: Broker, queue_name: str) -> None:
        """The broker does it by itself."""

    def victim(self, broker: Broker) -> dict[str, Any]:
        """By URL."""
        return {
            "connect": f"{__name__}:connect",
            "arm": f"{__name__}:arm",
            "broker": {"url": self.server.url(self.vhost(broker))},
        }

    @staticmethod
    def _transport(broker: Broker) -> RabbitTransport:
        transport = transport_of(broker)
        assert isinstance(transport, RabbitTransport)
        return transport


def connect(where: dict[str, str]) -> Broker:
    """In a victim process: the broker, without reliq."""
    return RabbitmqBroker(url=where["url"])


def arm(broker: Broker, strike: Callable[[str, str], None]) -> None:
    """In a victim process: strike around each step of the protocol: a message arrives, what a settle stores is
    published and confirmed, a delivery is acked."""

    def around(cls: type, name: str, step: str) -> None:
        original = getattr(cls, name)

        def struck(self: Any, *args: Any, **kwargs: Any) -> Any:
            strike(step, "before")
            result = original(self, *args, **kwargs)
            strike(step, "after")
            return result

        setattr(cls, name, struck)

    around(Subscription, "_on_message", "fetch")
    around(RabbitTransport, "settle", "settle")
    around(Settler, "_store", "store")
    around(Subscription, "ack", "ack")
    around(RabbitTransport, "publish", "publish")
    around(Subscription, "give_back", "requeue")
