"""An application on RabbitMQ in the test's own process: a broker, actors, what they have run.

Callers: the modules of fault tests that need no worker process; the fixture `application` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.worker import Worker

import reliq
from reliq.wiring import transport_of
from tests.faults.stage import message


class Application:
    """One process's half of an application: a broker, actors on its queues, and what they have run."""

    def __init__(
        self,
        url: str,
        mode: str,
        queues: list[str],
        cls: type[RabbitmqBroker],
        delivery: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.ran: list[int] = []
        send_timeout = options.pop("send_timeout", 15_000)  # the machine may be busy
        self.broker = cls(url=url, **options)
        if mode == "reliq":
            reliq.install(self.broker, reliq.Delivery(send_timeout=send_timeout, **(delivery or {})))
        for queue in queues:
            dramatiq.actor(self.ran.append, actor_name=f"work-{queue}", queue_name=queue, broker=self.broker)
            dramatiq.actor(
                self._fail, actor_name=f"doomed-{queue}", queue_name=queue, broker=self.broker, max_retries=0
            )
            dramatiq.actor(
                self._flake, actor_name=f"flaky-{queue}", queue_name=queue, broker=self.broker, min_backoff=10
            )
        self._failed: set[int] = set()

    def send(self, actor: str, queue: str, key: int, delay: int | None = None) -> None:
        """Send one task to a queue."""
        self.broker.enqueue(message(f"{actor}-{queue}", key, queue=queue), delay=delay)

    def has_run(self, number: int) -> bool:
        """Whether so many tasks have ended."""
        return len(self.ran) >= number

    @contextmanager
    def working(self, threads: int = 2) -> Iterator[None]:
        """While a worker of this application runs, in this process."""
        worker = Worker(self.broker, worker_timeout=50, worker_threads=threads)
        worker.start()
        try:
            yield
        finally:
            worker.stop(timeout=10_000)

    def close(self) -> None:
        """Close every connection."""
        transport = transport_of(self.broker)
        if transport is not None:
            transport.disconnect()
        self.broker.close()

    def _fail(self, key: int) -> None:
        raise ValueError(f"for good: {key}")

    def _flake(self, key: int) -> None:
        if key not in self._failed:
            self._failed.add(key)
            raise ValueError(f"once: {key}")
        self.ran.append(key)
