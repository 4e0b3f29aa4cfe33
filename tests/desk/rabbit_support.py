"""Letters of every origin in a vhost of a real RabbitMQ, for the tests of the desk and of the command line."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import datetime, timezone
from typing import Any

import pika
from dramatiq.broker import Broker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.message import Message

from reliq.testing.rabbitmq_api import RabbitmqApi
from reliq.transport.rabbitmq.frames import letter_frame
from reliq.transport.settlement import Bury
from reliq.wiring import attach
from tests.desk.support import Morgue


class RabbitMorgue(Morgue):
    """A vhost on a RabbitMQ. `queue_type`: of the queues of letters."""

    def __init__(self, server: RabbitmqApi, vhost: str, queue_type: str | None = None) -> None:
        super().__init__()
        self.server = server
        self.vhost = vhost
        self.url = server.url(vhost)
        self.options = ("--url", self.url, "--management-url", server.management_url)
        self.code = (
            "from dramatiq.brokers.rabbitmq import RabbitmqBroker",
            f"RabbitmqBroker(url={self.url!r})",
        )
        self.broker = RabbitmqBroker(url=self.url, middleware=[])
        self.transport: Any = attach(self.broker)
        self.transport.settings.queue_type = queue_type
        self.transport.use_management(server.management_url)
        self._connection = pika.BlockingConnection(pika.URLParameters(self.url))
        self.channel = self._connection.channel()
        if queue_type == "quorum":
            self.channel.confirm_delivery()
        self._twins: Counter[tuple[str, str]] = Counter()

    def put(self, bury: Bury) -> str:
        """As a settle publishes it."""
        frame = letter_frame(bury, self.transport.declared.dead(bury.queue))
        self.channel.basic_publish(frame.exchange, frame.routing_key, frame.body, frame.properties)
        self._wait_for(f"{bury.queue}.dead")
        return str(bury.dead["id"])

    def stock(self, *args: Any, actor: str = "charge", queue: str = "default", body: bytes | None = None) -> str:
        """As the broker moves it, its header of the death written by hand: the broker's own would say now."""
        message: Message[Any] = Message(queue, actor, args, {}, {"retries": 20, "traceback": "Traceback: old"})
        body = message.encode() if body is None else body
        died_at = datetime.fromtimestamp(self.tick() // 1000, timezone.utc)
        death = {"count": 1, "exchange": "", "queue": queue, "reason": "rejected", "routing-keys": [queue]}
        self.transport.declared.queue(queue)
        self.channel.basic_publish(
            "",
            f"{queue}.XQ",
            body,
            pika.BasicProperties(delivery_mode=2, headers={"x-death": [{**death, "time": died_at}]}),
        )
        self._wait_for(f"{queue}.XQ")
        digest = hashlib.sha256(body).hexdigest()[:16]
        self._twins[queue, digest] += 1
        twin = self._twins[queue, digest]
        return digest if twin == 1 else f"{digest}-{twin}"

    def unrouted(self, *args: Any, queue: str) -> None:
        """As a delay comes off the ladder after its queue was deleted."""
        ladder = self.transport.declared.delays("default")
        key = ladder.route(1, queue)[1]
        body = Message(queue, "charge", args, {}, {}).encode()
        self.channel.basic_publish(ladder.out, key, body, pika.BasicProperties(delivery_mode=2))
        self._wait_for(ladder.unrouted)

    def _wait_for(self, queue: str) -> None:
        """What this channel has published there, has come there: quicker than a confirm, which waits for the disk. A
        quorum queue answers with what it has stored: there a confirm has been waited for."""
        self.channel.queue_declare(queue, passive=True)

    def bodies(self, queue: str = "default") -> list[bytes]:
        """Taken and given back."""
        return [body for _, _, body in self.lying(queue)]

    def dump(self) -> dict[str, list[tuple[str, Any, bytes]]]:
        """What every queue of the vhost holds, in order, with its headers."""
        names = sorted(queue["name"] for queue in self.server.queues(self.vhost))
        return {name: found for name in names if (found := self.lying(name))}

    def lying(self, queue: str) -> list[tuple[str, Any, bytes]]:
        """(routing key, headers, body) of what is ready, in order; given back. A quorum queue counts how often it has
        given a message out, which is left aside: nothing hangs on it in a queue without a limit."""
        channel, found = self._connection.channel(), []
        try:
            left = channel.queue_declare(queue, passive=True).method.message_count
            came = channel.basic_get(queue) if not left else None
        except pika.exceptions.ChannelClosedByBroker as exc:
            if exc.reply_code != 404:
                raise
            return []
        if came is not None and came[0] is not None:
            # A quorum queue's count knows late of what a reader gave back.
            left = 1 + came[0].message_count
            found.append(_seen(*came))
        # Not by basic_get: what several of them took does not come back to a quorum queue in its order.
        while len(found) < left:
            method, properties, body = next(channel.consume(queue, inactivity_timeout=5))
            assert method is not None, f"queue {queue!r} gives {len(found)} of {left}"
            found.append(_seen(method, properties, body))
        channel.close()
        return found

    def application(self) -> Broker:
        """In the vhost."""
        return RabbitmqBroker(url=self.url)

    def close(self) -> None:
        """The vhost is its fixture's."""
        self._connection.close()
        self.transport.disconnect()


def _seen(method: Any, properties: Any, body: bytes) -> tuple[str, Any, bytes]:
    headers = {key: value for key, value in (properties.headers or {}).items() if key != "x-delivery-count"}
    return method.routing_key, headers, body
