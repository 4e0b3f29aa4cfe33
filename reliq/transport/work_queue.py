"""The line between a worker's consumers and its threads, in the place of Dramatiq's priority queue.

Callers: Dramatiq's consumer threads (`put`), worker threads (`get`, `task_done`) and `Worker.join`/`stop`. As long as
all messages have one priority they pass through a queue written in C, first come first served, which costs a twentieth
of a heap behind a lock; from the first message of another priority on, they are sorted as Dramatiq sorts them.
"""

from __future__ import annotations

import heapq
import threading
import time
from queue import SimpleQueue
from typing import Any

#: How often `join` looks. Seconds.
LOOK_EVERY_S = 0.005

#: Stands in the line for the first of those that are sorted.
_TICKET = object()
#: The priority of a line with several: equal to none.
_MANY = object()


class WorkQueue:
    """What `Worker.work_queue` offers to those who use it; items have a `priority` and an order among themselves."""

    def __init__(self) -> None:
        self._line: SimpleQueue[Any] = SimpleQueue()
        #: What all items had so far; None before the first, equal to nothing once there are several.
        self._priority: Any = None
        self._sorted: list[Any] = []
        self._sorting = threading.Lock()
        #: Per thread: how many it has put, and how many it has said to be done.
        self._came = _Tally([])
        self._ended = _Tally([])

    def put(self, item: Any) -> None:
        """Add an item."""
        self._came.add()
        if self._priority is None:
            self._priority = item.priority
        if item.priority == self._priority:
            self._line.put(item)
            return
        self._priority = _MANY
        with self._sorting:
            heapq.heappush(self._sorted, item)
        self._line.put(_TICKET)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next item. Raises `queue.Empty` when none comes within `timeout` seconds."""
        item = self._line.get(block, timeout)
        if item is not _TICKET:
            return item
        with self._sorting:
            return heapq.heappop(self._sorted)

    def get_nowait(self) -> Any:
        """The next item, at once. Raises `queue.Empty`."""
        return self.get(False)

    def qsize(self) -> int:
        """How many wait."""
        return self._line.qsize()

    def empty(self) -> bool:
        """Whether none waits."""
        return self._line.empty()

    def task_done(self) -> None:
        """An item that was got has been worked on."""
        self._ended.add()

    @property
    def unfinished_tasks(self) -> int:
        """How many were put and not said to be done."""
        return self._came.total() - self._ended.total()

    def join(self) -> None:
        """Wait until all that was put has been worked on. For tests."""
        while self.unfinished_tasks > 0:
            time.sleep(LOOK_EVERY_S)


class _Tally(threading.local):
    """A count that many threads add to without a lock: each has a number of its own. `threading.local` calls this
    `__init__` once per thread, with the list that all share."""

    def __init__(self, numbers: list[list[int]]) -> None:
        self._numbers = numbers
        self._own = [0]
        numbers.append(self._own)

    def add(self) -> None:
        self._own[0] += 1

    def total(self) -> int:
        return sum(own[0] for own in self._numbers)
