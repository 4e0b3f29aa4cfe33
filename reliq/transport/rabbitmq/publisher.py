"""Publishes with confirms: many messages on their way at once, each caller told of its own.

Callers: `RabbitTransport` (sends, settles, replays). One link per process; the work is done on its thread.
Guarantee: an outcome of None means that the broker has confirmed the message, hence stored it, and that it was
routed to a queue. Every other outcome says whether the message may have been stored all the same.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika
from dramatiq.logging import get_logger

from .errors import CANNOT_BE_SENT, Failure, Refusal, TooLarge, code_of, explain
from .link import Link, prepared

#: How many may be on their way at once: enough to keep the line busy, few enough to be told of in time.
MOST_IN_FLIGHT = 1_000


class NotStored(Failure):
    """It has not left this process, or the broker has said no."""

    #: Whether the broker is there: it has said no.
    answered = False


class MaybeStored(Failure):
    """It has left this process, and whether the broker has stored it is not known."""

    #: Whether the broker is there: it has closed the channel.
    answered = False

    #: Whether the broker closed the channel over this one or a neighbour: it shall go alone if it is tried again.
    suspect = False


class Unroutable(Failure):
    """The broker has no queue for it; nothing is stored."""


@dataclass(frozen=True)
class Frame:
    """One message as it goes over the line. `""` is the exchange that leads to the queue named by the key."""

    exchange: str
    routing_key: str
    body: bytes
    properties: pika.BasicProperties


class _Waiting:
    def __repr__(self) -> str:
        return "waiting"


_QUEUED, _WRITTEN = _Waiting(), _Waiting()
#: How the broker names what it closes a channel over.
_SIZE = re.compile(r"message size (\d+) is larger than .*?(\d+)")
_EXCHANGE = re.compile(r"exchange '([^']*)'")


class Batch:
    """Messages that are given to the publisher together. `outcomes` are in their order, None = stored."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.outcomes: list[Any] = [NotStored("not sent yet")] * len(frames)
        self.left = 0
        self.done = threading.Event()
        #: Nothing else is on its way while this is: what the broker refuses is then known to be this.
        self.alone = False

    @property
    def failure(self) -> Failure | None:
        """The first outcome that is no success, or None."""
        return next((outcome for outcome in self.outcomes if isinstance(outcome, Failure)), None)


class Publisher:
    """The confirming channel of this process."""

    def __init__(self, parameters: Any, heartbeat_s: float, ready: Callable[[], None]) -> None:
        #: Called when messages can be published, the first time and after every loss.
        self.ready = ready
        self.link = Link(prepared(parameters, "publisher", heartbeat_s), self, "publisher")
        self._logger = get_logger(__name__, type(self))
        #: Guards the outcomes of every batch. Held for moments only, never while waiting.
        self._lock = threading.Lock()
        self._queue: deque[tuple[Batch, int]] = deque()
        #: Delivery tag -> what was published under it, in order. Changed on the link's thread.
        self._unconfirmed: dict[int, tuple[Batch, int]] = {}
        self._returned: dict[int, str] = {}
        self._channel: Any = None
        self._next_tag = 1
        #: Why the broker takes nothing at the moment (memory, disk), or None.
        self.blocked: str | None = None

    def __repr__(self) -> str:
        return f"<Publisher queued={len(self._queue)} unconfirmed={len(self._unconfirmed)} {self.link!r}>"

    @property
    def why(self) -> str | None:
        """Why nothing can be published now, or None."""
        if self.blocked is not None:
            return f"RabbitMQ takes no messages ({self.blocked})"
        return None if self.link.is_open.is_set() else f"RabbitMQ cannot be reached: {self.link.why or 'connecting'}"

    def submit(self, batch: Batch) -> None:
        """Send what of a batch is neither stored nor on its way. Returns at once; `batch.done` is set when each has
        its outcome. May be repeated, and broken off by an interrupt at any line: the rest is done on the link's thread,
        which nothing interrupts."""
        batch.done.clear()
        self.link.call(partial(self._accept, batch))

    def give_up(self, batch: Batch, waited_s: float) -> None:
        """Stop waiting for a batch: what has not left stays here, and each that is open gets an outcome."""
        with self._lock:
            for index, outcome in enumerate(batch.outcomes):
                if outcome is _QUEUED:
                    batch.outcomes[index] = NotStored(f"not stored, {self.why or 'the line is busy'}")
                elif outcome is _WRITTEN:
                    why = self.blocked and f", which takes no messages at the moment ({self.blocked})"
                    batch.outcomes[index] = MaybeStored(
                        f"it may have been stored, no confirm from RabbitMQ within {waited_s:.1f} s{why or ''}"
                    )
            batch.left = 0
            batch.done.set()

    def stop(self) -> None:
        """Close the connection; what is open gets its outcome."""
        self.link.stop()

    # -- on the link's thread ------------------------------------------------------------------------------------

    def opened(self, connection: pika.SelectConnection) -> None:
        """Part of `Watcher`."""
        self.blocked = None
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._open_channel(connection)

    def lost(self, why: str) -> None:
        """Part of `Watcher`."""
        self.blocked, self._channel = None, None
        self._fail_unconfirmed(
            MaybeStored(f"it may have been stored, the connection was lost before the confirm: {why}")
        )

    def _open_channel(self, connection: pika.SelectConnection) -> None:
        def opened(channel: Any) -> None:
            channel.add_on_close_callback(self._on_channel_closed)
            channel.add_on_return_callback(self._on_return)
            channel.confirm_delivery(self._on_confirm, lambda _: ready(channel))

        def ready(channel: Any) -> None:
            self._channel, self._next_tag = channel, 1
            self.ready()
            self._pump()

        connection.channel(on_open_callback=opened)

    def _on_blocked(self, connection: Any, frame: Any) -> None:
        reason = frame.method.reason
        self.blocked = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        self._logger.warning("RabbitMQ takes no messages at the moment: %s", self.blocked)

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        self.blocked = None
        self._logger.warning("RabbitMQ takes messages again.")
        self._pump()

    def _accept(self, batch: Batch) -> None:
        with self._lock:
            for index, outcome in enumerate(batch.outcomes):
                if isinstance(outcome, Exception):
                    batch.outcomes[index] = _QUEUED
                    batch.left += 1
                    self._queue.append((batch, index))
            if not batch.left:
                batch.done.set()
        self._pump()

    def _pump(self) -> None:
        """Write what is queued, as far as the broker takes it."""
        while True:
            with self._lock:
                item = self._next()
                if item is None:
                    return
                batch, index = item
                batch.outcomes[index] = _WRITTEN
            frame = batch.frames[index]
            self._unconfirmed[self._next_tag] = item
            self._next_tag += 1
            try:
                self._channel.basic_publish(
                    frame.exchange, frame.routing_key, frame.body, frame.properties, mandatory=True
                )
            except Exception as exc:
                # Something in the properties that AMQP has no form for, or a connection that has just gone.
                self._next_tag -= 1
                del self._unconfirmed[self._next_tag]
                self._outcome(item, Refusal(f"not stored, it cannot be sent: {exc}", CANNOT_BE_SENT))

    def _next(self) -> tuple[Batch, int] | None:
        if self._channel is None or not self._channel.is_open or self.blocked is not None:
            return None
        while self._queue and self._queue[0][0].outcomes[self._queue[0][1]] is not _QUEUED:
            self._queue.popleft()  # given up meanwhile
        if not self._queue or len(self._unconfirmed) >= MOST_IN_FLIGHT:
            return None
        first = next(iter(self._unconfirmed.values()), None)
        if first is not None and (first[0].alone or self._queue[0][0].alone):
            return None
        return self._queue.popleft()

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        stored = method.NAME == "Basic.Ack"
        if method.multiple:
            tags = []
            for tag in self._unconfirmed:
                if tag > method.delivery_tag:
                    break
                tags.append(tag)
        else:
            tags = [method.delivery_tag]
        for tag in tags:
            item = self._unconfirmed.pop(tag, None)
            if item is None:
                continue
            returned = self._returned.pop(tag, None) if self._returned else None
            if returned is not None:
                self._outcome(item, Unroutable(f"not stored, {returned}"))
            elif stored:
                self._outcome(item, None)
            else:
                refused = NotStored("not stored, RabbitMQ refuses it (nack): a queue is full or in trouble")
                refused.answered = True
                self._outcome(item, refused)
        if self._queue:
            self._pump()

    def _on_return(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """The broker had no queue for a message. It comes before its confirm, and without its tag; of two that are
        alike both are returned, so that the first one that is alike is meant."""
        for tag, (batch, index) in self._unconfirmed.items():
            frame = batch.frames[index]
            alike = frame.exchange == method.exchange and frame.routing_key == method.routing_key
            if tag not in self._returned and alike and frame.body == body:
                self._returned[tag] = (
                    f"exchange {method.exchange or 'default'!r} has no queue for {method.routing_key!r}"
                )
                return

    def _on_channel_closed(self, channel: Any, exc: BaseException) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        code, text = code_of(exc), explain(exc)
        if code >= 400:
            self._single_out(code, text)
        unsure = MaybeStored(f"it may have been stored, the channel was closed before the confirm: {text}")
        unsure.suspect = unsure.answered = code >= 400
        self._fail_unconfirmed(unsure)
        if self.link.connection is not None and self.link.connection.is_open:
            self._open_channel(self.link.connection)

    def _single_out(self, code: int, text: str) -> None:
        """Of what is on its way, find the one that the broker closed the channel over. It handles a channel's messages
        in order: those behind the one have not been looked at and go out again."""
        guilty = self._guilty(text)
        if guilty is None:
            return
        behind = [tag for tag in self._unconfirmed if tag > guilty]
        with self._lock:
            for tag in reversed(behind):
                batch, index = self._unconfirmed.pop(tag)
                if batch.outcomes[index] is _WRITTEN:
                    batch.outcomes[index] = _QUEUED
                    self._queue.appendleft((batch, index))
        self._outcome(self._unconfirmed.pop(guilty), self._refused(code, text))

    def _guilty(self, text: str) -> int | None:
        """Its tag, by the size or the exchange that the broker names."""
        if len(self._unconfirmed) == 1:
            return next(iter(self._unconfirmed))
        size, exchange = _SIZE.search(text), _EXCHANGE.search(text)
        for tag, (batch, index) in self._unconfirmed.items():
            frame = batch.frames[index]
            if size and len(frame.body) == int(size[1]):
                return tag
            if exchange and frame.exchange == exchange[1].replace("amq.default", ""):
                return tag
        return None

    def _refused(self, code: int, text: str) -> Refusal:
        size = _SIZE.search(text)
        said = f"not stored, RabbitMQ refuses it: {text}"
        return TooLarge(said, int(size[2])) if size else Refusal(said, code)

    def _fail_unconfirmed(self, outcome: Exception) -> None:
        items = list(self._unconfirmed.values())
        self._unconfirmed.clear()
        self._returned.clear()
        for item in items:
            self._outcome(item, outcome)

    def _outcome(self, item: tuple[Batch, int], outcome: Exception | None) -> None:
        batch, index = item
        with self._lock:
            if not isinstance(batch.outcomes[index], _Waiting):
                return  # given up
            batch.outcomes[index] = outcome
            batch.left -= 1
            if batch.left == 0:
                batch.done.set()
