"""Fetch one queue's messages from Redis and settle their verdicts.

Callers: Dramatiq's consumer thread (`__next__`, `requeue`, `close`), worker threads (`ack`, `nack`). Nobody else.
Guarantee: a fetched message stays in the acks set until one script removes it, storing its retry or letter in the
same step. A fetch whose reply was lost is found again; an outage ends neither the consumer nor what it holds.
Not here: whether to retry (middleware/), how long to wait (policy/).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dramatiq.broker import MessageProxy
from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed

from ..consumer import SettlingConsumer
from ..delivered import Delivered, Unreadable, eta_of
from ..room import Room

if TYPE_CHECKING:
    from .transport import RedisTransport

#: How long a consumer with some places waits for more before it fetches: one round trip serves several messages.
ROOM_PATIENCE_S = 0.002
#: The most that one script fetches; Lua passes lists on its stack.
MOST_PER_FETCH = 500


class RedisConsumer(SettlingConsumer):
    """A consumer of a plain queue."""

    transport: RedisTransport

    def __init__(self, transport: RedisTransport, queue_name: str, most: int | None, timeout: int) -> None:
        super().__init__(transport, queue_name)
        #: The most that is held of this queue; None leaves it to the pace of the process.
        self._most = most
        #: Whether its messages take the places that all queues of the process share.
        self.shares_room = transport.is_paced
        self._idle_s = min(max(timeout, 1), 1_000) / 1000
        #: Fetched, not yet handed to Dramatiq.
        self._cache: deque[tuple[str, bytes]] = deque()
        #: Of this queue. Invariant: never more than `most` but for what a lost reply had hidden.
        self._room = Room()
        #: Whether the last fetch found nothing: then a message is waited for first.
        self._is_empty = False
        self._server_ms = 0
        self._failures = 0
        self._reclaim_at = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.queue_name!r} held={len(self._room)} cache={len(self._cache)}>"

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
        if self._failures or time.monotonic() >= self._reclaim_at:
            self._reclaim()
        if self._cache:
            return
        if self._is_empty and not self.transport.wait_for_message(self.queue_name, self._idle_s):
            return
        with self._places() as places:
            if places > 0 and not self.transport.draining:
                self._fetch(min(places, MOST_PER_FETCH))

    @contextmanager
    def _places(self) -> Iterator[int]:
        """How many may be fetched now; waits up to the idle time for there to be some, and a moment for several."""
        places = self._own_places()
        if places <= 0 or not self.shares_room:
            yield places
            return
        with self.transport.shared_places(self._idle_s) as shared:
            yield min(places, shared)

    def _own_places(self) -> int:
        if self._most is None:
            return MOST_PER_FETCH
        if self._room.wait(self._most - 1, self._idle_s):
            self._room.wait(self._most // 2, ROOM_PATIENCE_S)
        return self._most - len(self._room)

    def _fetch(self, places: int) -> None:
        with self.transport.held(self.queue_name) as held:
            reply = self.transport.scripts.run(
                "fetch",
                [self.transport.broker_id, self.queue_name, places, self.transport.settings.lease_ms],
                f"fetching from queue {self.queue_name!r}",
            )
            self._is_empty = not self._take(reply, held)

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
            self._room.take(token)
            if self.shares_room:
                self.transport.room.take(token)
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
        """Free the place of a delivery."""
        self._room.leave(token)
        if self.shares_room:
            self.transport.room.leave(token)

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
        """Give prefetched messages back to the head of their queue, in order. Raises `ConnectionClosed`; what was not
        given back then is found again by `_reclaim`."""
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
        try:
            self.transport.requeue_ids(self.queue_name, tokens)
        except ConnectionClosed:
            self.transport.forget(self.queue_name, tokens)
            raise
        finally:
            for token in tokens:
                self.release(token)


class RedisDelayConsumer(RedisConsumer):
    """A consumer of a stock delay queue (`q.DQ`): moves what plain Dramatiq's producers and workers put there into
    our delays. It hands nothing to Dramatiq, whose delays live in a worker's memory."""

    def __init__(self, transport: RedisTransport, queue_name: str, most: int | None, timeout: int) -> None:
        super().__init__(transport, queue_name, min(most or MOST_PER_FETCH, MOST_PER_FETCH), timeout)
        self.shares_room = False

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


def consumer_for(transport: RedisTransport, queue_name: str, most: int | None, timeout: int) -> RedisConsumer:
    """The consumer that a queue of this name needs."""
    kind = RedisConsumer if q_name(queue_name) == queue_name else RedisDelayConsumer
    return kind(transport, queue_name, most, timeout)
