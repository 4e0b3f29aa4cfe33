"""Acks plain successes in batches, off the worker threads.

Callers: the consumers (`add`), `Transport.stop` and `close` (`flush`). One thread per process, started with the
worker. Guarantee: an id leaves `_owed` only once Redis has removed it; a crash re-runs at most what is owed.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from dramatiq.errors import ConnectionClosed
from dramatiq.logging import get_logger

if TYPE_CHECKING:
    from .transport import RedisTransport

#: An ack waits at most this long for others to share its round trip.
WINDOW_S = 0.002
MOST_PER_BATCH = 500


class Flusher:
    """What is owed to Redis: ids of messages that are done, by queue."""

    def __init__(self, transport: RedisTransport) -> None:
        self._transport = transport
        self._logger = get_logger(__name__, type(self))
        #: Invariant: appended to on the right by any thread, taken from the left by the holder of `_flushing`.
        self._owed: deque[tuple[str, str]] = deque()
        self._flushing = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Flusher owed={len(self._owed)}>"

    def add(self, queue_name: str, token: str) -> None:
        """Owe an ack. Returns at once."""
        self._owed.append((queue_name, token))
        if not self._wake.is_set():
            self._wake.set()

    def start(self) -> None:
        """Start the thread."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="reliq-flusher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Flush what is owed, as far as Redis is there, and end the thread."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            self.flush()
        except ConnectionClosed as exc:
            self._logger.warning(
                "%d acks were not taken before the stop; these messages run again: %s", len(self._owed), exc
            )

    def flush(self) -> None:
        """Send what is owed. Raises `ConnectionClosed`, keeping what was not taken."""
        with self._flushing:
            while self._owed:
                batch = list(islice(self._owed, MOST_PER_BATCH))
                tokens: dict[str, list[str]] = {}
                for queue_name, token in batch:
                    tokens.setdefault(queue_name, []).append(token)
                self._transport.ack_ids(tokens)
                for _ in batch:
                    self._owed.popleft()

    def _run(self) -> None:
        pause = WINDOW_S
        while not self._stopping.is_set():
            self._wake.wait()
            self._wake.clear()
            self._stopping.wait(pause)
            try:
                self.flush()
                pause = WINDOW_S
            except ConnectionClosed as exc:
                self._logger.warning("%d acks wait for Redis: %s", len(self._owed), exc)
                pause = min(pause * 2 + 0.05, 1.0)
                self._wake.set()
