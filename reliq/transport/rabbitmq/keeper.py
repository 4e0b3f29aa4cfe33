"""The thread beside a worker that looks after what no message waits for: unrouted messages, what waits here behind slow
tasks, and letters beyond their retention.

One per worker. Guarantee: a message that lost its queue is in it again some seconds after a worker has declared it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger

if TYPE_CHECKING:
    from dramatiq.worker import Worker

    from .transport import RabbitTransport

DRAIN_EVERY_S = 3.0
#: How often it is looked whether messages wait here behind slow tasks.
LOOK_EVERY_S = 0.1
#: How long unrouted messages of queues that this worker does not know are let alone.
LEAVE_FOR_S = 30.0
EXPIRE_EVERY_S = 60.0
#: How often each step of the ladder is looked at.
WHOLE_EVERY_S = 15.0


class Keeper:
    """The duties of one worker towards RabbitMQ."""

    def __init__(self, transport: RabbitTransport, worker: Worker) -> None:
        self._transport = transport
        self._worker = worker
        self._logger = get_logger(__name__, type(self))
        self._stopping = threading.Event()
        self._drain_at = self._expire_at = self._whole_at = 0.0
        self._thread = threading.Thread(target=self._run, name="reliq-keeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        tick_at = 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            try:
                if now >= tick_at:
                    tick_at = now + DRAIN_EVERY_S
                    self.tick(now)
                self._transport.spare.look(now)
            except BrokerConnectionError as exc:
                self._logger.debug("The keeper waits for RabbitMQ: %s", exc)
            except Exception:
                self._logger.critical("Unexpected failure of the keeper.", exc_info=True)
            self._stopping.wait(LOOK_EVERY_S)

    def tick(self, mono: float) -> None:
        """Do what is due at `mono` (seconds). Raises `ConnectionClosed`."""
        transport = self._transport
        queues = set(transport.declared_queues())
        whole = mono >= self._whole_at
        if whole:
            self._whole_at = mono + WHOLE_EVERY_S
        if not transport.declared.stands(whole=whole):
            self._logger.error("Exchanges or delay queues of reliq were deleted; they are declared again.")
            transport.declared.forget_all()
            for queue_name in sorted(queues):
                transport.declare_for_worker(queue_name, anew=True)
        if mono >= self._drain_at:
            moved, left = transport.desk.drain_unrouted(queues.__contains__)
            if moved:
                self._logger.warning("%d messages whose queue was gone are back in their queues.", moved)
            # What belongs to nobody here is looked at less often: each look moves it about in the broker.
            self._drain_at = mono + (LEAVE_FOR_S if left and not moved else 0.0)
        retention_ms = transport.letters.retention_ms
        if retention_ms is not None and mono >= self._expire_at:
            for queue_name in sorted(queues):
                if deleted := transport.desk.expire(queue_name, retention_ms):
                    self._logger.info("%d dead letters were older than the retention and are deleted.", deleted)
            self._expire_at = mono + EXPIRE_EVERY_S
