"""What the contract asks of a broker under test: a maker, a worker, and a hand that takes one message at a time.

A transport's test module gives a `Maker`; everything else is the same for all.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from queue import PriorityQueue
from typing import Any

import dramatiq
from dramatiq.broker import Broker, MessageProxy
from dramatiq.middleware import Middleware, default_middleware
from dramatiq.worker import ConsumerThread, Worker, WorkerThread

import reliq
from reliq.testing import eventually
from reliq.transport.base import Depth, Transport
from reliq.transport.delivered import Delivered
from reliq.wiring import transport_of

#: A retry in the contract comes soon: delays are ms.
SOON = {"min_backoff": 20, "max_backoff": 40}


class Maker(ABC):
    """Makes fresh brokers of one kind, and reaches behind them."""

    #: The stock class of the broker.
    broker_class: type[Broker]

    @abstractmethod
    def build(self, cls: type[Broker], middleware: list[Middleware]) -> Broker:
        """An instance of `cls`, empty, without reliq."""

    @abstractmethod
    def put_raw(self, broker: Broker, queue_name: str, body: bytes) -> None:
        """Put bytes into a queue (or delay queue) as a foreign producer would."""

    @abstractmethod
    def ready(self, broker: Broker, queue_name: str) -> list[bytes]:
        """The bodies that lie ready in a queue, first to run first."""

    @abstractmethod
    def stored(self, broker: Broker) -> list[bytes]:
        """Every byte string that the broker holds, wherever."""

    @abstractmethod
    def stock_twin(self, broker: Broker) -> Broker:
        """A plain Dramatiq broker object on the same queues."""

    def patch_settle(self, broker: Broker, patch: Any, error: BaseException, when: str) -> list[str]:
        """Raise `error` from the client's next settling call, `when` "before" or "after" the broker has done it.
        Returns a list that grows with what happened."""
        raise NotImplementedError

    def victim(self, broker: Broker) -> dict[str, Any]:
        """What `victim.py` needs to know to reach this broker from another process."""
        raise NotImplementedError

    def depth(self, broker: Broker, queue_name: str) -> Depth:
        """What a queue holds: the transport's own answer, with what it cannot know filled in by looking."""
        found = transport_of(broker)
        assert found is not None
        return found.depth(queue_name)

    def empty(self, broker: Broker, queue_name: str) -> None:
        """Drop all that a queue has."""
        broker.flush(queue_name)

    @abstractmethod
    def promote(self, broker: Broker, queue_name: str) -> None:
        """Do what a worker does with due delays, once, now."""


class Stage:
    """One broker with reliq, and what acts on it. Closed by its fixture."""

    def __init__(self, maker: Maker, broker: Broker) -> None:
        self.maker = maker
        self.broker = broker
        self._stack = contextlib.ExitStack()

    @property
    def transport(self) -> Transport[Any]:
        """The transport under test."""
        found = transport_of(self.broker)
        assert found is not None
        return found

    def worker(self, threads: int = 2, queues: set[str] | None = None) -> Worker:
        """Start one of Dramatiq's workers; it stops with the stage, or by `stop()`."""
        worker = Worker(self.broker, worker_timeout=50, worker_threads=threads, queues=queues)
        worker.start()
        self._stack.callback(stop, worker)
        return worker

    def hand(self, queue_name: str = "default", prefetch: int = 8) -> Hand:
        """Take and run single messages in the test's own thread."""
        return self._stack.enter_context(Hand(self, queue_name, prefetch))

    def close(self) -> None:
        """Stop what was started."""
        self._stack.close()

    # -- looking ---------------------------------------------------------------------------------------------------

    def counts(self, queue_name: str = "default") -> tuple[int | None, ...]:
        """(ready, unacked, delayed, dead) of a queue."""
        depth = self.maker.depth(self.broker, queue_name)
        return depth.ready, depth.unacked, depth.delayed, depth.dead

    def wait_for(self, *counts: int, queue_name: str = "default", timeout: float = 10) -> None:
        """Wait for (ready, unacked, delayed, dead)."""
        eventually(lambda: self.counts(queue_name) == counts, timeout, what=f"{counts} in {queue_name!r}, last seen")

    def letters(self, queue_name: str = "default") -> list[dict[str, Any]]:
        """The dead letters of a queue as users see them."""
        return [letter.as_dict() for letter in self.transport.dead_letters(queue_name)]

    def put_raw(self, body: bytes, queue_name: str = "default") -> None:
        """Put foreign bytes into a queue."""
        self.maker.put_raw(self.broker, queue_name, body)


def as_handed_out(items: list[Any]) -> list[Any]:
    """The order in which one thread may run what came in this order. Dramatiq hands it on as it came from 2.2 on;
    before, its work queue sorted messages of one priority by chance."""
    return items if tuple(map(int, dramatiq.__version__.split(".")[:2])) >= (2, 2) else sorted(items)


def stop(worker: Worker) -> None:
    """Stop a worker unless it has been stopped."""
    if not getattr(worker, "stopped_by_test", False):
        worker.stopped_by_test = True  # type: ignore[attr-defined]
        worker.stop(timeout=10_000)


class Hand:
    """Dramatiq's own worker code, one step at a time, in the thread of the test.

    A worker is booted that consumes nothing, so that all runs that runs beside a worker.
    """

    def __init__(self, stage: Stage, queue_name: str, prefetch: int) -> None:
        self._left = False
        broker = stage.broker
        self._boots = Worker(broker, queues={"nothing here"}, worker_timeout=50, worker_threads=1)
        self._boots.start()
        # Not the worker's own, from which its thread would take what is run here.
        self._queue: PriorityQueue[Any] = PriorityQueue()
        self.thread = ConsumerThread(
            broker=broker,
            queue_name=queue_name,
            prefetch=prefetch,
            work_queue=self._queue,
            worker_timeout=50,
        )
        self.consumer = self.thread.consumer = broker.consume(queue_name, prefetch=prefetch, timeout=50)
        self._runner = WorkerThread(
            broker=broker,
            consumers={queue_name: self.thread},
            work_queue=self._queue,
            worker_timeout=50,
        )

    def __enter__(self) -> Hand:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Stop consuming: where a broker hands messages out by itself, an idle hand would keep those for others."""
        if not self._left:
            self._left = True
            self.thread.close()
            stop(self._boots)

    def look(self) -> MessageProxy | None:
        """What one look into the queue gives."""
        return next(self.consumer)

    def take(self) -> Delivered:
        """The next message; waits for it."""
        message = eventually(lambda: next(self.consumer), 10, 0, "a message")
        assert isinstance(message, Delivered)
        return message

    def run(self, message: MessageProxy | None = None) -> Delivered:
        """Run a message (else the next one) from `before_process_message` to the end of its ack."""
        taken = self.take() if message is None else message
        assert isinstance(taken, Delivered)
        # One unfinished task for the worker to count as done; what it holds differs between versions of Dramatiq.
        self._queue.put(0)
        self._queue.get_nowait()
        self._runner.process_message(taken)
        return taken


def installed(maker: Maker, *parts: Any, cls: type[Broker] | None = None, more: Any = (), **options: Any) -> Broker:
    """A fresh broker with the default middlewares, `more` ones, and reliq."""
    broker = maker.build(cls or maker.broker_class, [part() for part in default_middleware])
    for middleware in more:
        broker.add_middleware(middleware)
    reliq.install(broker, *parts, **options)
    dramatiq.set_broker(broker)
    return broker


@contextlib.contextmanager
def staged(maker: Maker) -> Iterator[Any]:
    """A function that makes stages, which are closed at the end. What `installed` takes, it takes."""
    with contextlib.ExitStack() as stack:

        def make(*parts: Any, **options: Any) -> Stage:
            stage = Stage(maker, installed(maker, *parts, **options))
            stack.callback(stage.close)
            return stage

        yield make
