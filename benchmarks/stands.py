"""The servers that the benchmarks run on: filled, looked through, their CPU read.

Callers: `throughput.py`, `publishing.py`; the worker process (`build`). Guarantee: `verify` ends the program unless
the broker is empty, so that an ack which is never sent cannot pass for a fast one.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import dramatiq

from reliq.testing import RabbitmqServer, RedisServer, eventually

CHUNK = 1_000


def build(side: str, url: str) -> dramatiq.Broker:
    """A broker of plain Dramatiq, or the same with reliq installed as it comes. On RabbitMQ both confirm."""
    broker: dramatiq.Broker
    if url.startswith("redis"):
        from dramatiq.brokers.redis import RedisBroker

        broker = RedisBroker(url=url)
    else:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        broker = RabbitmqBroker(url=url, confirm_delivery=True)
    if side == "reliq":
        import reliq

        reliq.install(broker)
    dramatiq.set_broker(broker)
    return broker


def tasks(messages: int) -> Iterator[tuple[str, bytes]]:
    """Name and body of each task, in the form of plain Dramatiq, which both sides read."""
    for n in range(messages):
        name = f"bench-{n}"
        message: Any = dramatiq.Message("default", "noop", (n,), {}, {"redis_message_id": name})
        yield name, message.encode()


class Stand(ABC):
    """A server for a benchmark, empty before each round."""

    #: Where the brokers of this round connect to.
    url: str

    @abstractmethod
    def empty(self) -> None:
        """A fresh start."""

    @abstractmethod
    def fill(self, messages: int) -> None:
        """Put the tasks into the queue."""

    @abstractmethod
    def cpu_s(self) -> float:
        """CPU seconds that the server has used so far."""

    @abstractmethod
    def left(self) -> dict[str, int]:
        """What lies in the broker, by place; empty if nothing."""

    @abstractmethod
    def stored(self) -> int:
        """How many messages lie in the queue."""

    def verify(self, side: str, ran: int, messages: int) -> None:
        """All ran, all acked, nothing left: else there is no figure."""
        left = self.left()
        if ran != messages or left:
            sys.exit(f"{side}: ran {ran} of {messages}, left in the broker: {left or 'nothing'}; no figure")


class RedisStand(Stand):
    """A Redis that forgets."""

    def __init__(self, server: RedisServer) -> None:
        self.url = server.url
        self._client = server.client()

    def empty(self) -> None:
        self._client.flushall()

    def fill(self, messages: int) -> None:
        pipe = self._client.pipeline(transaction=False)
        for number, (name, body) in enumerate(tasks(messages), 1):
            pipe.hset("dramatiq:default.msgs", name, body)
            pipe.rpush("dramatiq:default", name)
            if number % CHUNK == 0 or number == messages:
                pipe.execute()

    def cpu_s(self) -> float:
        used: Any = self._client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])

    def left(self) -> dict[str, int]:
        client: Any = self._client
        count = {b"list": client.llen, b"hash": client.hlen, b"set": client.scard, b"zset": client.zcard}
        return {
            key.decode(): count[kind](key)
            for key in client.scan_iter("dramatiq:*")
            if b"__heartbeats__" not in key and b":reliq:" not in key
            for kind in [client.type(key)]
            if kind != b"string"
        }

    def stored(self) -> int:
        client: Any = self._client
        return int(client.llen("dramatiq:default"))


class RabbitmqStand(Stand):
    """A RabbitMQ node; each round has a vhost of its own, with durable classic queues as Dramatiq declares them."""

    def __init__(self, server: RabbitmqServer) -> None:
        self._server = server
        self._vhost: str | None = None

    def empty(self) -> None:
        if self._vhost is not None:
            self._server.delete_vhost(self._vhost)
        self._vhost = f"bench-{uuid4().hex[:8]}"
        self._server.add_vhost(self._vhost)
        self.url = self._server.url(self._vhost)

    def fill(self, messages: int) -> None:
        import pika
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        broker = RabbitmqBroker(url=self.url)
        broker.declare_queue("default", ensure=True)
        channel = broker.channel
        channel.tx_select()
        for number, (_, body) in enumerate(tasks(messages), 1):
            channel.basic_publish("", "default", body, pika.BasicProperties(delivery_mode=2))
            if number % CHUNK == 0 or number == messages:
                channel.tx_commit()
        ready = channel.queue_declare("default", passive=True).method.message_count
        broker.close()
        if ready != messages:
            sys.exit(f"the queue holds {ready} of {messages} tasks")

    def cpu_s(self) -> float:
        # The Erlang VM itself: what rabbitmqctl and the management API cost is in it, on both sides alike.
        fields = Path(f"/proc/{self._server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def left(self) -> dict[str, int]:
        """After the worker is gone: what it had not acked is ready again by then. Every queue of the vhost."""
        assert self._vhost is not None
        vhost = self._vhost
        with self._channel() as channel:

            def asked(name: str) -> Any:
                return channel.queue_declare(name, passive=True).method

            eventually(lambda: asked("default").consumer_count == 0, 10, what="the worker's consumer to be gone")
            names = [queue["name"] for queue in self._server.queues(vhost)]
            ready = {name: asked(name).message_count for name in names}
        unacked = {f"{q['name']} unacked": q["messages_unacknowledged"] for q in self._server.queues(vhost)}
        return {name: count for name, count in {**ready, **unacked}.items() if count}

    def stored(self) -> int:
        with self._channel() as channel:
            return int(channel.queue_declare("default", passive=True).method.message_count)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        import pika

        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            yield connection.channel()
        finally:
            connection.close()


@contextmanager
def stand(kind: str) -> Iterator[Stand]:
    """A server of its own: "redis" or "rabbitmq"."""
    if kind == "redis":
        with RedisServer(appendonly=False) as redis_server:
            yield RedisStand(redis_server)
    else:
        # Statistics as rare as a server has them by default: those of the tests cost the broker a tenth of a core.
        with RabbitmqServer(config={"collect_statistics_interval": "5000"}) as rabbitmq_server:
            yield RabbitmqStand(rabbitmq_server)
