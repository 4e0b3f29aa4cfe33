"""Consume the queues of a StubBroker: messages by the prefetch window, delays by their time.

Callers: Dramatiq's consumer threads, worker threads (`ack`, `nack`), and tests that consume by hand.
Guarantee: a message counts as unfinished in its queue until it is settled, so that `join` waits for it; what a
consumer gives back is first in its queue again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from queue import Empty
from typing import TYPE_CHECKING

from dramatiq.broker import MessageProxy
from dramatiq.common import q_name

from ...message.letter import DeadLetter
from ..consumer import SettlingConsumer
from ..delivered import Delivered, Unreadable, eta_of

if TYPE_CHECKING:
    from .transport import StubTransport


class StubDelivered(Delivered):
    """Keeps what its run raised, as the stock stub broker's does: `join(fail_fast=True)` raises it, and a failing
    test shows its traceback. `letter` is the dead letter that it became."""

    letter: DeadLetter | None = None

    def clear_exception(self) -> None:
        """Does nothing."""


class StubConsumer(SettlingConsumer):
    """A consumer of a plain queue."""

    transport: StubTransport
    delivered_class = StubDelivered

    def __init__(self, transport: StubTransport, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(transport, queue_name)
        self.prefetch = prefetch
        self.queue = transport.queue(queue_name)
        self._idle_s = max(timeout, 1) / 1000
        #: Invariant: fetched and not yet over; never more than `prefetch`.
        self._window: set[str] = set()
        self._room = threading.Condition()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.queue_name!r} window={len(self._window)}>"

    def __next__(self) -> MessageProxy | None:
        give_up = time.monotonic() + self._idle_s
        if self.transport.draining:
            # What was prefetched is handed back soon; nothing more is taken.
            self.transport.stopped.wait(min(0.05, self._idle_s))
            return None
        if not self._wait_for_room():
            return None
        try:
            body = self.queue.get(timeout=max(0.0, give_up - time.monotonic()))
        except Empty:
            return None
        token = self.transport.hold(self.queue_name, body)
        with self._room:
            self._window.add(token)
        return self.open(token, body)

    def _wait_for_room(self) -> bool:
        with self._room:
            return self._room.wait_for(lambda: len(self._window) < self.prefetch, self._idle_s)

    # -- what the shared half asks for ---------------------------------------------------------------------------

    def acknowledge(self, message: Delivered) -> None:
        """Have the message counted as finished."""
        self.transport.end(message.token)

    def release(self, token: str) -> None:
        """Free the place of a delivery in the prefetch window."""
        with self._room:
            self._window.discard(token)
            self._room.notify()

    def put_off(self, token: str, body: bytes, eta_ms: float) -> bool:
        """Let a message that is not due wait among the delays of its queue."""
        if not eta_ms > time.time() * 1000:
            return False
        self.transport.put_off(token)
        self.release(token)
        return True

    # -- giving back ---------------------------------------------------------------------------------------------

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give prefetched messages back to the head of their queue, in order."""
        tokens = [message.token for message in messages if isinstance(message, Delivered)]
        self.transport.give_back(tokens)
        for token in tokens:
            self.release(token)

    def close(self) -> None:
        """Nothing is held that a worker does not know of."""


class StubDelayConsumer(StubConsumer):
    """A consumer of a delay queue (`q.DQ`): moves each message to its queue when it is due. It hands nothing to
    Dramatiq, and takes all there is, so that far delays never hold up near ones."""

    def __next__(self) -> MessageProxy | None:
        wait_s = self.transport.promote(self.queue_name)
        self.transport.expire_letters(q_name(self.queue_name))
        try:
            body = self.queue.get(timeout=self._idle_s if wait_s is None else max(0.0, min(wait_s, self._idle_s)))
        except Empty:
            return None
        self._take(body)
        return None

    def _take(self, body: bytes) -> None:
        try:
            eta = eta_of(self._restored(body)) or 0
        except Unreadable as unreadable:
            token = self.transport.hold(self.queue_name, body)
            self.settle_here(self._raw_settlement(token, body, unreadable))
            return
        self.transport.delay(self.queue_name, body, eta)

    def close(self) -> None:
        """Leave what is not due in the delay queue, for the next worker."""
        self.transport.undelay(self.queue_name)
