"""Senders on RabbitMQ that note what they were told of each task, and streams of them.

Callers: `test_rabbit_publishing`. With reliq any error but `ConnectionClosed` fails the test; plain Dramatiq may raise
what it likes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import ConnectionClosed

from reliq.testing import Census
from reliq.testing.runlog import Key
from reliq.transport.settling import outgoing
from reliq.wiring import transport_of
from tests.faults.stage import message

#: Between two steps of a stream, on each thread; ten times that after a failure. Seconds.
BEAT_S = 0.003


@dataclass(frozen=True)
class Outcome:
    """What a sender was told: `error` is None, or the text; `kind` its type's name."""

    key: int
    took_s: float
    error: str | None
    kind: str = ""

    @property
    def refused_at_once(self) -> bool:
        """Whether it was not even tried."""
        return self.error is not None and "has been away since" in self.error


class Sender:
    """Sends tasks with keys of its own to one queue; safe from many threads."""

    def __init__(self, broker: RabbitmqBroker, *, first_key: int = 0, queue: str = "default") -> None:
        self.queue = queue
        self.outcomes: list[Outcome] = []
        self.broker = broker
        self._transport = transport_of(broker)
        self._keys = count(first_key)
        self._lock = threading.Lock()
        self._errors: tuple[type[Exception], ...] = (ConnectionClosed,) if self._transport else (Exception,)
        broker.declare_queue(queue)

    def send(self, delay: int | None = None) -> Outcome:
        """Send the next task."""
        key = self._next()
        began = time.monotonic()
        error: Exception | None = None
        try:
            self.broker.enqueue(message("work", key, queue=self.queue), delay=delay)
        except self._errors as exc:
            error = exc
        return self._note(key, began, error)

    def send_many(self, number: int) -> Outcome:
        """Send so many as one batch, with reliq; returns what came of the last."""
        assert self._transport is not None
        keys = [self._next() for _ in range(number)]
        began = time.monotonic()
        items = [outgoing(self._transport, message("work", key, queue=self.queue), None) for key in keys]
        for key, error in zip(keys, self._transport.publish_many(items)):
            assert error is None or isinstance(error, self._errors), repr(error)
            self._note(key, began, error)
        return self.outcomes[-1]

    def accepted(self) -> set[Key]:
        """Keys whose send returned."""
        return {outcome.key for outcome in self.outcomes if outcome.error is None}

    def refused(self) -> set[Key]:
        """Keys of which the error said that they are not stored."""
        return {each.key for each in self.outcomes if each.error is not None and "not stored" in each.error}

    def unsure(self) -> set[Key]:
        """Keys of which the error said that they may be stored."""
        told = {each.key for each in self.outcomes if each.error is not None and "may have been stored" in each.error}
        return told - self.refused()

    def verdict(self, census: Census) -> Verdict:
        """What they were told, against what is stored."""
        stored = {place.key for place in census if place.queue == self.queue}
        return Verdict(
            sent=len(self.outcomes),
            accepted=len(self.accepted()),
            lost=len(self.accepted() - stored),
            refused=len(self.refused()),
            refused_but_stored=len(self.refused() & stored),
            unsure=len(self.unsure()),
            unsure_and_stored=len(self.unsure() & stored),
        )

    def _next(self) -> int:
        with self._lock:
            return next(self._keys)

    def _note(self, key: int, began: float, error: Exception | None) -> Outcome:
        kind = "" if error is None else type(error).__name__
        outcome = Outcome(key, time.monotonic() - began, None if error is None else str(error), kind)
        with self._lock:
            self.outcomes.append(outcome)
        return outcome


@dataclass(frozen=True)
class Verdict:
    """Counts of one sender's tasks."""

    sent: int
    accepted: int
    lost: int
    refused: int
    refused_but_stored: int
    unsure: int
    unsure_and_stored: int

    @property
    def true(self) -> bool:
        """Whether all that was said is so: accepted is stored, what was called not stored is not, and each error said
        which it is."""
        told = self.accepted + self.refused + self.unsure
        return self.lost == self.refused_but_stored == 0 and told == self.sent

    def __str__(self) -> str:
        return (
            f"sent {self.sent} accepted {self.accepted} lost {self.lost}; told not stored {self.refused} stored "
            f"{self.refused_but_stored}, told maybe {self.unsure} stored {self.unsure_and_stored}"
        )


@contextmanager
def streaming(*steps: Callable[[], Outcome]) -> Iterator[None]:
    """Repeat each step on a thread of its own until the block ends; what one raises is raised at the end."""
    over = threading.Event()
    failures: list[Exception] = []

    def run(step: Callable[[], Outcome]) -> None:
        try:
            while not over.is_set():
                # What is sent has to be counted; and a node that boots needs the processor.
                over.wait(BEAT_S if step().error is None else 10 * BEAT_S)
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(step,), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a send never came back"
    if failures:
        raise failures[0]
