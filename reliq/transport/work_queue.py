"""The line between a worker's consumers and its threads, in the place of Dramatiq's priority queue.

Callers: Dramatiq's consumer threads (`put`), worker threads (`get`, `task_done`) and `Worker.join`/`stop`. As long as
all messages have one priority they pass through a queue written in C, first come first served, which costs a twentieth
of a heap behind a lock; from the first message of another priority on, they are sorted as Dramatiq sorts them.
"""

from __future__ import annotations

import contextlib
import heapq
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
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
        #: Of those who wait, a lock each that is held; the longest wait first.
        self._bells: deque[threading.Lock] = deque()
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
        else:
            self._priority = _MANY
            with self._sorting:
                heapq.heappush(self._sorted, item)
            self._line.put(_TICKET)
        if self._bells:
            self._ring()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next item. Raises `queue.Empty` when none comes within `timeout` seconds."""
        try:
            item = self._line.get_nowait()
        except Empty:
            if not block:
                raise
            item = self._waited_for(timeout)
        if item is not _TICKET:
            return item
        with self._sorting:
            return heapq.heappop(self._sorted)

    def _waited_for(self, timeout: float | None) -> Any:
        """Not by the line's own timeout: until Python 3.12, where another thread takes the item that it was woken for,
        it may wait for ever."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            # A new one each time: the one before may be about to ring.
            bell = threading.Lock()
            bell.acquire()
            self._bells.append(bell)
            # Looked at again now: who put an item in between heard of nobody waiting.
            rings = self._line.empty() and bell.acquire(
                timeout=-1 if until is None else max(0.0, until - time.monotonic())
            )
            if not rings:
                with contextlib.suppress(ValueError):  # else somebody has just taken it from the list, to ring it
                    self._bells.remove(bell)
            with contextlib.suppress(Empty):
                item = self._line.get_nowait()
                # A ring that was meant for us may be another's, if we were quicker.
                if not self._line.empty():
                    self._ring()
                return item
            if until is not None and time.monotonic() >= until:
                raise Empty

    def _ring(self) -> None:
        """Wake the one who has waited longest."""
        with contextlib.suppress(IndexError):
            self._bells.popleft().release()

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
        # In this order: what comes and ends in between counts as unfinished, never the other way round.
        ended = self._ended.total()
        return self._came.total() - ended

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
