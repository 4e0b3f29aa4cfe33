"""One opening of one consumer: a channel, what arrived on it, and what is owed to it.

Callers: `RabbitConsumer` (takes arrivals, acks), `RabbitTransport` (acks what is settled). The channel is touched on
the link's thread only. Guarantee: a delivery tag is used on the channel it came from and nowhere else, so that after
a reconnect no ack can hit another message; acks go out in batches, each at most `WINDOW_S` after it was asked for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from .errors import NOT_FOUND, Failure, Refusal, code_of, refusal_of
from .link import Link

#: An ack waits at most this long for others to go out with it.
WINDOW_S = 0.002

_epochs = count(1)


class Arrival(NamedTuple):
    """One delivery: its tag on this channel, whether it was delivered before, its properties and body."""

    tag: int
    redelivered: bool
    properties: Any
    body: bytes
    exchange: str
    routing_key: str


class Subscription:
    """A consumer as the broker sees it. `epoch` is its own in this process: with the tag it names a delivery."""

    def __init__(self, link: Link, queue_name: str, prefetch: int, *, window_s: float = WINDOW_S) -> None:
        self.epoch = next(_epochs)
        self._link = link
        self.queue_name = queue_name
        self.prefetch = prefetch
        self._window_s = window_s
        self._channel: Any = None
        self._consumer_tag = ""
        self._arrived: SimpleQueue[Arrival | None] = SimpleQueue()
        #: What came and was neither acked nor given back, in order of arrival. Added to by the link's thread.
        self.outstanding: dict[int, Arrival] = {}
        #: Of those, what was handed to a worker.
        self.handed: dict[int, Any] = {}
        self._owed: deque[int] = deque()
        #: What runs have come to that ended after the subscription had, by tag: see `intake.py`.
        self.late: dict[int, Any] = {}
        #: What was settled on it lately, with the time (monotonic seconds): the transport's memory, see `copies.py`.
        self.lately: deque[tuple[float, Any]] = deque(maxlen=1_000)
        self._scheduled = False
        #: Whether a consumer has ended whose successor has not begun.
        self._resting = False
        #: Set once the broker delivers, or has refused to.
        self.decided = threading.Event()
        #: Why nothing comes any more, or None.
        self.ended: Failure | None = None
        #: Whether it ended because its queue was deleted: then nothing that came on it comes again.
        self.queue_gone = False
        #: True once nothing more shall come; what came can still be acked.
        self.cancelled = False

    def __repr__(self) -> str:
        state = self.ended or ("cancelled" if self.cancelled else "open")
        return f"<Subscription {self.epoch} {self.queue_name!r} outstanding={len(self.outstanding)} {state}>"

    @property
    def alive(self) -> bool:
        """Whether what came on it is still ours."""
        return self.ended is None

    @property
    def waiting(self) -> int:
        """How many have arrived and were not taken."""
        return self._arrived.qsize()

    @property
    def held(self) -> int:
        """How many were taken and are not done."""
        return len(self.outstanding.keys() - self.owed) - self.waiting

    @property
    def owed(self) -> set[int]:
        """The tags whose acks are owed."""
        return set(self._owed)

    # -- from any thread -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Have it opened; `decided` tells when the broker has answered."""
        self._link.call(self._open)

    def take(self, timeout_s: float) -> Arrival | None:
        """The next arrival; None when none comes in time, or none will."""
        try:
            return self._arrived.get(timeout=timeout_s) if timeout_s > 0 else self._arrived.get_nowait()
        except Empty:
            return None

    def ack(self, tag: int) -> bool:
        """Owe an ack. Returns at once; False if the delivery is not ours any more. May be repeated."""
        if self.ended is not None or tag not in self.outstanding:
            return False
        self._owed.append(tag)
        if self.ended is not None:
            return False
        if len(self._owed) == max(1, self.prefetch // 2):
            # Half of what the broker lets us have is done: it need not wait for the window.
            self._link.call(self._flush)
        elif not self._scheduled:
            self._link.call(self._schedule)
        return True

    def limit(self, prefetch: int) -> None:
        """Have the broker give us at most so many at a time, from now on."""
        self.prefetch = prefetch
        self._link.call(self._limit)

    def drop_waiting(self, timeout_s: float) -> int:
        """Ack what was not taken; returns how many. Waits until the broker has it."""
        dropped = 0
        while (arrival := self.take(0)) is not None:
            dropped += self.ack(arrival.tag)
        self.flush(timeout_s)
        return dropped

    def give_back(self, tags: list[int], timeout_s: float) -> None:
        """Have the broker put these back where they were; waits until it has."""
        self._and_wait(partial(self._give_back, tags), timeout_s)

    def flush(self, timeout_s: float) -> None:
        """Have what is owed written, and wait until the broker has it."""
        self._and_wait(self._flush, timeout_s)

    def cancel(self) -> None:
        """Let nothing more come. What has come stays ours until the channel is closed."""
        if self.ended is None and not self.cancelled:
            self.cancelled = True
            self._link.call(self._cancel)

    def close(self, timeout_s: float) -> None:
        """Flush, and close the channel: the broker takes back what was not acked."""
        if self.ended is None:
            self._and_wait(self._flush, timeout_s)
            closed = threading.Event()
            self._link.call(partial(self._close, closed))
            closed.wait(timeout_s)

    def _and_wait(self, step: Callable[[], None], timeout_s: float) -> None:
        if self.ended is not None:
            return
        answered = threading.Event()

        def ask() -> None:
            step()
            if self.ended is None and self._channel is not None and self._channel.is_open:
                # An answer to this is an answer to all that went before it on the channel.
                self._channel.basic_qos(prefetch_count=self.prefetch, callback=lambda _: answered.set())
            else:
                answered.set()

        self._link.call(ask)
        if not answered.wait(timeout_s):
            raise Failure(f"queue {self.queue_name!r}: no answer from RabbitMQ within {timeout_s:.1f} s")

    # -- on the link's thread ------------------------------------------------------------------------------------

    def _open(self) -> None:
        connection = self._link.connection
        if connection is None or not connection.is_open:
            self.end(Failure(f"RabbitMQ cannot be reached: {self._link.why or 'connecting'}"))
            return
        connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_closed)
        channel.add_on_cancel_callback(self._on_cancelled)
        channel.basic_qos(prefetch_count=self.prefetch, callback=self._limited)

    def _limited(self, _: Any) -> None:
        if self.cancelled or not self._channel.is_open:
            self.decided.set()
            return
        self._consumer_tag = self._channel.basic_consume(
            self.queue_name, self._on_message, callback=lambda _: self.decided.set()
        )

    def _limit(self) -> None:
        """A consumer keeps the limit that it began with: it ends, and another takes its place. Not before: of two at a
        time one would overtake the other."""
        if self.ended is None and not self.cancelled and self._consumer_tag and self._channel.is_open:
            tag, self._consumer_tag = self._consumer_tag, ""
            self._channel.basic_cancel(tag, callback=self._begin_anew)

    def _begin_anew(self, _: Any) -> None:
        self._resting = True
        self._flush()

    def _end_rest(self) -> None:
        """Begin once fewer are here than the limit: what came to the one before counts for it and not for its
        successor, which would bring as many again."""
        alive = self.ended is None and not self.cancelled and self._channel.is_open
        if self._resting and alive and len(self.outstanding) < self.prefetch:
            self._resting = False
            self._channel.basic_qos(prefetch_count=self.prefetch, callback=self._limited)

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        tag = method.delivery_tag
        arrival = Arrival(tag, method.redelivered, properties, body, method.exchange, method.routing_key)
        self.outstanding[tag] = arrival
        self._arrived.put(arrival)
        if len(self._owed) > self.prefetch // 4:
            # Here anyway: a busy consumer need not wake this thread for its acks.
            self._flush()

    def _on_cancelled(self, frame: Any) -> None:
        """The broker ends it: the queue was deleted, or its node is gone."""
        self.queue_gone = True
        self.end(Refusal(f"RabbitMQ has cancelled the consumer: queue {self.queue_name!r} is gone", 404))
        if self._channel.is_open:
            self._channel.close()

    def _on_closed(self, channel: Any, exc: BaseException) -> None:
        # All that is asked of a queue on this channel is to consume it: where that finds none, it was deleted.
        self.queue_gone = self.queue_gone or code_of(exc) == NOT_FOUND
        self.end(refusal_of(exc))

    def end(self, why: Failure) -> None:
        """Nothing comes any more, and what came is not ours any more."""
        if self.ended is None:
            self.ended = why
            self.decided.set()
            self._arrived.put(None)  # wakes who waits

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._link.later(self._window_s, self._flush)

    def _flush(self) -> None:
        """Ack what is owed: all up to the first that is not done in one step, the others one by one."""
        self._scheduled = False
        if self.ended is not None or not self._channel.is_open:
            return  # what is owed stays noted: it is done, whoever asks
        done = set()
        while self._owed:
            done.add(self._owed.popleft())
        last = 0
        for tag in list(self.outstanding):
            if tag not in done:
                break
            last = tag
            done.discard(tag)
            del self.outstanding[tag]
            self.handed.pop(tag, None)
        if last:
            self._channel.basic_ack(last, multiple=True)
        for tag in sorted(done):
            self.handed.pop(tag, None)
            if self.outstanding.pop(tag, None) is not None:
                self._channel.basic_ack(tag)
        self._end_rest()

    def _give_back(self, tags: list[int]) -> None:
        self._flush()
        # The last first: each goes to the head of the queue.
        for tag in sorted(tags, reverse=True):
            self.handed.pop(tag, None)
            if self.outstanding.pop(tag, None) is not None and self._channel.is_open:
                self._channel.basic_nack(tag, requeue=True)
        self._end_rest()

    def _cancel(self) -> None:
        # Without a tag there is no consumer at the moment, and there will be none: `cancelled` says so.
        if self.ended is None and self._channel is not None and self._channel.is_open and self._consumer_tag:
            self._channel.basic_cancel(self._consumer_tag, callback=lambda _: None)

    def _close(self, closed: threading.Event) -> None:
        if self._channel is not None and self._channel.is_open:
            self._channel.add_on_close_callback(lambda *_: closed.set())
            self._channel.close()
        else:
            closed.set()
