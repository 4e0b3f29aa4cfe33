"""The delays that this process has published and that have not come up yet: what `join` waits for.

The broker cannot say how many delays of a queue wait on the ladder. A delay leaves this list when its message is
handed out in this process, or some time after it is due, when another process must have it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dramatiq.broker import MessageProxy

#: How long after it is due a delay that has not been seen here is taken to be elsewhere. Seconds.
GRACE_S = 2.0
#: More are not listed, for memory's sake; `join` is for tests.
MOST = 10_000


class Awaited:
    """By queue, the ids of delayed messages and when they are due (monotonic seconds)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due: dict[str, dict[str, float]] = {}

    def published(self, queue_name: str, message_id: str, delay_ms: int) -> None:
        """A delay is stored."""
        with self._lock:
            due = self._due.setdefault(queue_name, {})
            if len(due) >= MOST:
                due.pop(next(iter(due)))
            due[message_id] = time.monotonic() + delay_ms / 1000

    def arrived(self, queue_name: str, message: MessageProxy | None) -> None:
        """A message has come up here."""
        if message is None or not self._due:
            return
        with self._lock:
            due = self._due.get(queue_name)
            if due is not None and due.pop(message.message_id, None) is not None and not due:
                del self._due[queue_name]

    def any(self, queue_name: str) -> bool:
        """Whether one may still be on its way to this queue."""
        with self._lock:
            due = self._due.get(queue_name, {})
            gone = time.monotonic() - GRACE_S
            for message_id in [message_id for message_id, at in due.items() if at < gone]:
                del due[message_id]
            return bool(due)

    def forget(self, queue_name: str) -> None:
        """The queue was flushed."""
        with self._lock:
            self._due.pop(queue_name, None)
