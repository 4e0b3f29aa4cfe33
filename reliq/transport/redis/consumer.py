"""Fetch one queue's messages from Redis and settle their verdicts.

Callers: Dramatiq's consumer thread (`__next__`, `requeue`, `close`), worker threads (`ack`, `nack`). Nobody else.
Guarantee: a fetched message stays in the acks set until one script removes it, storing its retry or letter in the
same step. A fetch whose reply was lost is found again; an outage ends neither the consumer nor what it holds.
Not here: whether to retry (middleware/), how long to wait (policy/).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dramatiq.broker import MessageProxy
from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed

from ..consumer import SettlingConsumer
from ..delivered import Delivered, Unreadable, eta_of

if TYPE_CHECKING:
    from .transport import RedisTransport

#: How long a consumer with some room waits for more of it before it fetches: one round trip serves several messages.
ROOM_PATIENCE_S = 0.002
#: The most that one script fetches; Lua passes lists on its stack.
MOST_PER_FETCH = 500


class RedisConsumer(SettlingConsumer):
    """A consumer of a plain queue."""

    transport: RedisTransport

    def __init__(self, transport: RedisTransport, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(transport, queue_name)
        self.prefetch = prefetch
        self._idle_s = min(max(timeout, 1), 1_000) / 1000
        #: Fetched, not yet handed to Dramatiq.
        self._cache: deque[tuple[str, bytes]] = deque()
        #: Invariant: fetched and not yet over; never more than `prefetch` but for what a lost reply had hidden.
        self._window: set[str] = set()
        self._room = threading.Condition()
        self._server_ms = 0
        self._failures = 0
        self._reclaim_at = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.queue_name!r} window={len(self._window)} cache={len(self._cache)}>"

    # -- fetching ----------------------------------------------------------------------------------------------

    def __next__(self) -> MessageProxy | None:
        if self._waiting:
            self.settle_waiting()
        message = self._from_cache()
        if message is not None or not self._may_fetch():
            return message
        try:
            self._fetch_or_wait()
        except ConnectionClosed as exc:
            self._endure(exc)
            return None
        self._failures = 0
        return self._from_cache()

    def _from_cache(self) -> Delivered | None:
        while self._cache:
            token, body = self._cache.popleft()
            message = self.open(token, body)
            if message is not None:
                return message
        return None

    def _may_fetch(self) -> bool:
        if self.transport.draining:
            # What was prefetched is handed back soon; nothing more is taken.
            self._pause(0.05)
            return False
        if self.transport.has_worker and not self.transport.alive.is_set():
            # Nothing is taken before others can see that this worker lives.
            self.transport.alive.wait(self._idle_s)
            return False
        return True

    def _fetch_or_wait(self) -> None:
        room = self._wait_for_room()
        if self._failures or time.monotonic() >= self._reclaim_at:
            self._reclaim()
        if room > 0 and not self._cache and not self._fetch(room):
            self.transport.wait_for_message(self.queue_name, self._idle_s)
            if not self.transport.draining:
                self._fetch(room)

    def _wait_for_room(self) -> int:
        """How many may be fetched: waits a moment for half a window, and for at least one place up to the idle time."""
        with self._room:
            room = self.prefetch - len(self._window)
            if room <= 0:
                self._room.wait(self._idle_s)
                room = self.prefetch - len(self._window)
            if 0 < room < self.prefetch // 2:
                self._room.wait_for(lambda: self.prefetch - len(self._window) >= self.prefetch // 2, ROOM_PATIENCE_S)
                room = self.prefetch - len(self._window)
            return min(room, MOST_PER_FETCH)

    def _fetch(self, room: int) -> int:
        with self.transport.held(self.queue_name) as held:
            reply = self.transport.scripts.run(
                "fetch",
                [self.transport.broker_id, self.queue_name, room, self.transport.settings.lease_ms],
                f"fetching from queue {self.queue_name!r}",
            )
            return self._take(reply, held)

    def _reclaim(self) -> None:
        """Find what an earlier fetch took without its reply arriving. After a failure, and once per lease in case
        the server executed that fetch later still."""
        with self.transport.held(self.queue_name) as held:
            # The snapshot comes first: an id acked meanwhile is in it, and is not taken for lost.
            known = list(held)
            reply = self.transport.scripts.run(
                "reclaim",
                [self.transport.broker_id, self.queue_name, 0, *known],
                f"looking for lost replies on queue {self.queue_name!r}",
            )
            found = self._take(reply, held)
        self._reclaim_at = time.monotonic() + self.transport.settings.lease_ms / 1000
        if found:
            self.logger.warning(
                "Queue %r: %d fetched messages whose reply was lost are found again.", self.queue_name, found
            )

    def _take(self, reply: tuple[int, list[bytes], list[bytes]], held: set[str]) -> int:
        server_ms, ids, bodies = reply
        self._server_ms = int(server_ms)
        for raw_id, body in zip(ids, bodies):
            token = raw_id.decode("utf-8", "surrogateescape")
            held.add(token)
            with self._room:
                self._window.add(token)
            self._cache.append((token, body))
        return len(ids)

    def _endure(self, exc: ConnectionClosed) -> None:
        """The broker is away: keep what is held, wait a little, go on. Dramatiq would wait 3 s and forget it."""
        self._failures += 1
        if self._failures in (1, 10) or self._failures % 100 == 0:
            self.logger.warning("Queue %r: consuming waits for Redis: %s", self.queue_name, exc)
        self._pause(min(0.05 * 2 ** min(self._failures, 5), 1.0))

    def _pause(self, seconds: float) -> None:
        self.transport.stopped.wait(min(seconds, self._idle_s))

    # -- what the shared half asks for ---------------------------------------------------------------------------

    def acknowledge(self, message: Delivered) -> None:
        """Owe the ack to the flusher."""
        self.transport.flusher.add(self.queue_name, message.token)

    def release(self, token: str) -> None:
        """Free the place of a delivery in the prefetch window."""
        with self._room:
            self._window.discard(token)
            self._room.notify()

    def put_off(self, token: str, body: bytes, eta_ms: float) -> bool:
        """A foreign producer's delayed message on a plain queue: into our delays, on the server's clock, on which
        it is promoted too."""
        if not eta_ms > self._server_ms:
            return False
        try:
            self.transport.relocate(self.queue_name, [(token, eta_ms)])
        except ConnectionClosed as exc:
            self._lose_sight([token], exc)
        self.release(token)
        return True

    def _lose_sight(self, tokens: list[str], exc: ConnectionClosed) -> None:
        """Messages that could not be put off: forgotten here, they are found again by `_reclaim`."""
        self.transport.forget(self.queue_name, tokens)
        self._endure(exc)

    # -- giving back ---------------------------------------------------------------------------------------------

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give prefetched messages back to the head of their queue, in order. Raises `ConnectionClosed`."""
        tokens = [message.token for message in messages if isinstance(message, Delivered)]
        self._give_back(tokens)

    def close(self) -> None:
        """Give back what was not handed out yet and send the acks that are owed. Raises `ConnectionClosed`."""
        tokens = [token for token, _ in self._cache]
        self._cache.clear()
        self._give_back(tokens)
        self.transport.flusher.flush()

    def _give_back(self, tokens: list[str]) -> None:
        if not tokens:
            return
        self.transport.requeue_ids(self.queue_name, tokens)
        for token in tokens:
            self.release(token)


class RedisDelayConsumer(RedisConsumer):
    """A consumer of a stock delay queue (`q.DQ`): moves what plain Dramatiq's producers and workers put there into
    our delays. It hands nothing to Dramatiq, whose delays live in a worker's memory."""

    def __init__(self, transport: RedisTransport, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(transport, queue_name, min(prefetch, MOST_PER_FETCH), timeout)

    def _from_cache(self) -> Delivered | None:
        moves: list[tuple[str, float]] = []
        while self._cache:
            token, body = self._cache.popleft()
            try:
                moves.append((token, eta_of(self._restored(body)) or 0))
            except Unreadable as unreadable:
                self.settle_here(self._raw_settlement(token, body, unreadable))
            except Exception as exc:
                unopened = Unreadable("malformed", f"the message cannot be opened: {exc}")
                self.settle_here(self._raw_settlement(token, body, unopened))
        if moves:
            try:
                self.transport.relocate(self.queue_name, moves)
            except ConnectionClosed as exc:
                self._lose_sight([token for token, _ in moves], exc)
            for token, _ in moves:
                self.release(token)
        return None


def consumer_for(transport: RedisTransport, queue_name: str, prefetch: int, timeout: int) -> RedisConsumer:
    """The consumer that a queue of this name needs."""
    kind = RedisConsumer if q_name(queue_name) == queue_name else RedisDelayConsumer
    return kind(transport, queue_name, prefetch, timeout)


__all__ = ["RedisConsumer", "RedisDelayConsumer", "consumer_for"]
