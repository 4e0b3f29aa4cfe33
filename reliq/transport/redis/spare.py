"""Gives back what waits here for a thread while all threads are held up, so that other workers can take it.

Caller: the keeper, at each of its rounds. What was taken ahead was taken in the belief that tasks are quick; when they
turn out to be slow, a quick one must not wait behind them. Only where another worker serves the queue: else it would
be fetched again for nothing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from dramatiq.common import iter_queue
from dramatiq.errors import ConnectionClosed
from dramatiq.logging import get_logger

from ..delivered import Delivered

if TYPE_CHECKING:
    from dramatiq.worker import Worker

    from .transport import RedisTransport

#: For how long no run has ended, before it is looked whether anybody else is there. Seconds.
HELD_UP_S = 0.05
#: How often that is asked while the threads are held up. Seconds.
ASK_EVERY_S = 1.0
#: A worker of plain Dramatiq beats with each of its commands; an idle one once a second or so. ms.
STOCK_ALIVE_MS = 5_000


class Spare:
    """What one worker process could spare."""

    def __init__(self, transport: RedisTransport) -> None:
        self._transport = transport
        self._logger = get_logger(__name__, type(self))
        self._ended = -1
        self._since = self._ask_at = 0.0

    def look(self, mono: float) -> None:
        """Give back what waits, if it has to. Raises `ConnectionClosed`."""
        pace = self._transport.pace
        waiting = sum(worker.work_queue.qsize() for worker in self._transport.workers)
        if pace is None or not waiting or pace.ended != self._ended:
            self._ended = pace.ended if pace is not None else -1
            self._since = self._ask_at = mono
            return
        if mono - self._since < HELD_UP_S or mono < self._ask_at or self._transport.draining:
            return
        self._ask_at = mono + ASK_EVERY_S
        given = sum(self._give_back(worker) for worker in self._transport.workers)
        if given:
            pace.stalls(time.monotonic() - self._since)
            self._logger.debug("%d messages that waited behind slow tasks are back in their queues.", given)

    def _give_back(self, worker: Worker) -> int:
        """What waits for the threads of one worker; returns how many went back."""
        by_queue: dict[str, list[Any]] = defaultdict(list)
        for item in iter_queue(worker.work_queue):
            worker.work_queue.task_done()
            by_queue[item.message.queue_name].append(item)
        given = 0
        for queue_name, items in by_queue.items():
            if self._transport.others_serve(queue_name, STOCK_ALIVE_MS):
                self._requeue(queue_name, [item.message for item in items])
                given += len(items)
            else:
                for item in items:
                    worker.work_queue.put(item)
        return given

    def _requeue(self, queue_name: str, messages: list[Delivered]) -> None:
        try:
            self._transport.requeue_ids(queue_name, [message.token for message in messages])
        except ConnectionClosed:
            # Whether it was done is not known: what is still held here is found again as after a lost fetch.
            self._transport.forget(queue_name, [message.token for message in messages])
            raise
        finally:
            for message in messages:
                message.consumer.release(message.token)
