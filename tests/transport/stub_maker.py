"""Stub brokers for the contract."""

from __future__ import annotations

from itertools import chain

from dramatiq.broker import Broker
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name
from dramatiq.middleware import Middleware

from reliq.wiring import transport_of
from tests.transport.rig import Maker


class StubMaker(Maker):
    """Brokers in memory."""

    broker_class = StubBroker

    def build(self, cls: type[Broker], middleware: list[Middleware]) -> Broker:
        """A new one has nothing in it."""
        return cls(middleware=middleware)

    def put_raw(self, broker: Broker, queue_name: str, body: bytes) -> None:
        """Into its Queue object."""
        broker.queues[queue_name].put(body)

    def ready(self, broker: Broker, queue_name: str) -> list[bytes]:
        """By looking at its deque."""
        return list(broker.queues[queue_name].queue)

    def stored(self, broker: Broker) -> list[bytes]:
        """Queues, letters, and what waits for its time in the transport."""
        transport = transport_of(broker)
        letters = [letter.body for name in broker.queues for letter in transport.dead_letters(name)]
        heaps = [body for heap in transport._delays.values() for _, _, body in heap]
        return [*chain.from_iterable(queue.queue for queue in broker.queues.values()), *letters, *heaps]

    def stock_twin(self, broker: Broker) -> Broker:
        """Sharing the Queue objects."""
        twin = StubBroker()
        twin.queues = broker.queues
        return twin

    def promote(self, broker: Broker, queue_name: str) -> None:
        """By a delay consumer's looks: one per message, and one for the time."""
        delays = broker.consume(dq_name(queue_name), timeout=1)
        while broker.queues[dq_name(queue_name)].qsize():
            next(delays)
        next(delays)
