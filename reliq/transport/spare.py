"""Gives back what waits here for a thread while all threads are held up, so that other workers can take it.

Callers: the keepers, several times a second. What was taken ahead was taken in the
belief that tasks are quick; when they turn out to be slow, a quick one must not wait behind them. Only where another
worker serves the queue: else it would be fetched again for nothing.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from dramatiq.common import iter_queue
from dramatiq.logging import get_logger

if TYPE_CHECKING:
    from dramatiq.worker import Worker

    from .base import Transport
    from .pace import Pace

#: For how long no run has ended, before it is looked whether anybody else is there. Seconds.
HELD_UP_S = 0.05
#: How often that is asked while the threads are held up. Seconds.
ASK_EVERY_S = 1.0


class Spare:
    """What one worker process could spare."""

    def __init__(self, transport: Transport[Any]) -> None:
        self._transport = transport
        self._logger = get_logger(__name__, type(self))
        self._looking = threading.Lock()
        self._ended = -1
        self._since = self._ask_at = 0.0

    @property
    def waiting(self) -> int:
        """How many messages wait for a thread."""
        return sum(worker.work_queue.qsize() for worker in self._transport.workers)

    def look(self, mono: float) -> None:
        """Give back what waits, if it has to; `mono` is now, in monotonic seconds. Raises `ConnectionClosed`."""
        if self._looking.acquire(blocking=False):
            try:
                self._look(mono)
            finally:
                self._looking.release()

    def _look(self, mono: float) -> None:
        pace = self._transport.pace
        if pace is None or not self.waiting:
            self._ended = -1
            return
        if pace.ended != self._ended:
            self._ended, self._since, self._ask_at = pace.ended, mono, mono
            return
        if mono - self._since < HELD_UP_S or mono < self._ask_at or self._transport.draining:
            return
        self._ask_at = mono + ASK_EVERY_S
        given = sum(self._give_back(worker, pace) for worker in self._transport.workers)
        if given:
            self._logger.debug("%d messages that waited behind slow tasks are back in their queues.", given)

    def _give_back(self, worker: Worker, pace: Pace) -> int:
        """What waits for the threads of one worker; returns how many went back."""
        waiting = _drained(worker)
        _put_back(worker, waiting)
        # Asked while they lie in the line: it may take long, and a thread that is free meanwhile takes them.
        served = {name for name in {item.message.queue_name for item in waiting} if self._transport.others_serve(name)}
        if not served or self._transport.draining:
            return 0
        pace.stalls(time.monotonic() - self._since)
        waiting = _drained(worker)
        _put_back(worker, [item for item in waiting if item.message.queue_name not in served])
        left = {name: [item for item in waiting if item.message.queue_name == name] for name in served}
        given = 0
        try:
            while left:
                _, items = left.popitem()
                if items:
                    # Where it fails, they are not ours any more, or found again by their consumer.
                    stay = items[0].message.consumer.spare([item.message for item in items])
                    _put_back(worker, [item for item in items if any(item.message is each for each in stay)])
                    given += len(items) - len(stay)
        finally:
            for items in left.values():
                _put_back(worker, items)
        return given


def _drained(worker: Worker) -> list[Any]:
    items = list(iter_queue(worker.work_queue))
    for _ in items:
        worker.work_queue.task_done()
    return items


def _put_back(worker: Worker, items: list[Any]) -> None:
    for item in items:
        worker.work_queue.put(item)
