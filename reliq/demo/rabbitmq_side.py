"""One side of the demo on RabbitMQ, in a vhost of its own.

Caller: `rabbitmq_scene`. While the demo runs it is counted by the log and by how much lies in which queue; once that
adds up, and at the end, by the bodies themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pika
from dramatiq.errors import ConnectionClosed

from reliq.testing import Census, RabbitmqApi, eventually
from reliq.testing.rabbitmq_api import ApiError
from reliq.wiring import transport_of

from .brokers import QUEUE, Name
from .plan import BAD_BODY, Plan
from .rabbitmq_dump import LETTERS, Counts, bodies, consumers, count
from .screen import printable
from .side import Side, message_of
from .verdict import Outcome, outcome

#: How long the broker may take to notice that workers are gone, in s.
GIVEN_BACK_S = 15.0
#: What counting meets while the broker is away, or takes no connection.
UNREACHABLE = (ApiError, pika.exceptions.AMQPError, OSError)
#: Between two tries to send a message that was refused, in s.
AGAIN_AFTER_S = 0.25


class RabbitmqSide(Side):
    """Its broker, its workers, and a producer that goes on sending while the broker is in trouble."""

    def __init__(self, name: Name, api: RabbitmqApi, vhost: str, late: int, plan: Plan, folder: Path) -> None:
        """`late`: how many of the plan's orders `send` leaves for `send_late`."""
        self._api = api
        self.vhost = vhost
        self._counts: Counts | None = None
        self._seen = Outcome(len(plan.keys), done=0, dead=0, stuck=0, lost=0)
        self._on_time = len(plan.orders) - late
        self._closing = threading.Event()
        self._producer: threading.Thread | None = None
        super().__init__(name, plan, folder, api.url(vhost), api.url(vhost), ExitStack())
        transport = transport_of(self.broker)
        self._stack.callback(self.broker.close if transport is None else transport.disconnect)
        self._stack.callback(self._stop_producer)

    # -- sending

    def send(self) -> None:
        """Put what is not to be sent late."""
        self._send(self.plan.orders[: self._on_time])

    def put_bad_body(self) -> None:
        """As a producer does that is not Dramatiq. The queue is there by now: workers consume it."""
        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", QUEUE, BAD_BODY, pika.BasicProperties(delivery_mode=2), mandatory=True)
        connection.close()

    def send_late(self, post: Callable[[str], None]) -> None:
        """Put the rest on a thread of its own: what `send` refuses is sent again until it is accepted."""
        self._producer = threading.Thread(target=self._produce, args=(post,), daemon=True)
        self._producer.start()

    def _produce(self, post: Callable[[str], None]) -> None:
        orders, refusals = self.plan.orders[self._on_time :], 0
        for order in orders:
            message = message_of(order)
            while not self._closing.is_set():
                try:
                    self.broker.enqueue(message)
                    break
                except ConnectionClosed as error:
                    refusals += 1
                    if refusals == 1:
                        post(f"{self.name}: send() raises ConnectionClosed, the producer sends again until it returns:")
                        post(f"  {printable(error)}")
                self._closing.wait(AGAIN_AFTER_S)
        after = f", after {refusals} refusals" if refusals else ""
        post(f"{self.name}: send() has returned for all {len(orders)}{after}")

    @property
    def has_sent(self) -> bool:
        """Whether nothing is left to be sent."""
        return self._producer is None or not self._producer.is_alive()

    def _stop_producer(self) -> None:
        self._closing.set()
        if self._producer is not None:
            self._producer.join(10)

    # -- counting

    def look(self) -> Outcome:
        """By counts. Where these add up it is counted by keys, so that two letters of one message count once."""
        with suppress(*UNREACHABLE):  # else it stays as it was
            self._counts = count(self._api, self.vhost)
            entries = self.log.entries()
            sent = len(self.plan.keys)
            done = len({entry.key for entry in entries if entry.event == "end"})
            dead = min(self._counts.dead, sent - done)
            if done + dead == sent and self.idle:
                self._seen = self._exact(LETTERS)
            else:
                self._seen = Outcome(sent, done, dead, stuck=0, lost=0)
        return self._seen

    def last_look(self) -> Outcome:
        """By keys. What workers still hold is given back first: they are killed where anything is missing."""
        now = self.look()
        if now.complete:
            return now
        for group in self.groups:
            group.kill()
        names = [queue["name"] for queue in self._api.queues(self.vhost)]
        eventually(
            partial(self._nobody_consumes, names), GIVEN_BACK_S, what="the broker to take back what workers held"
        )
        return self._exact(names)

    def _nobody_consumes(self, names: list[str]) -> bool:
        return not any(consumers(self._url, name) for name in names)

    def _exact(self, names: list[str] | tuple[str, ...]) -> Outcome:
        self.census = Census(tuple(bodies(self._url, names)), now_ms=0)
        return outcome(self.plan.keys, self.log.entries(), self.census)

    def pulse(self) -> object:
        """Entries of the log, and the counts."""
        return len(self.log.entries()), self._counts

    @property
    def idle(self) -> bool:
        """Whether only letters were left at the last look, and nothing is to be sent."""
        return self._counts is not None and self._counts.idle and self.has_sent

    def waiting(self) -> tuple[int, int]:
        """Delays and retries now: in the workers' memory, and on the ladder."""
        counts = count(self._api, self.vhost)
        return counts.delayed_in_workers, counts.on_ladder
