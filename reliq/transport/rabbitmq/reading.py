"""Look at the messages of a queue that nobody works on, and leave them, or take some away.

Callers: the desk (letters), the keeper (what is unrouted, old letters). RabbitMQ has no way to look without taking:
messages are consumed without an ack and go back, to their places, when the channel is closed. Guarantee: whatever
happens while a queue is read, what was not removed is in it afterwards; one reader at a time, a second one is told.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pika

from . import topology
from .errors import LOCKED, NO_RIGHT, NOT_FOUND, PIKA_ERRORS, Failure, Refusal, code_of, explain, refusal_of
from .link import prepared
from .subscription import Arrival

if TYPE_CHECKING:
    from typing_extensions import Self

#: How long the next message may take to come while the broker says that there are more. Seconds.
PATIENCE_S = 5.0
#: A reader may wait for a person between two messages, and answers no heartbeats meanwhile. Seconds.
HEARTBEAT_S = 600.0
#: How long the broker may take to say goodbye. Seconds.
CLOSE_S = 3.0
#: How long a message that is asked for and not wanted any more may take to come. Seconds.
STRAGGLER_S = 1.0
#: How often it is looked whether a reader before us is gone. Seconds.
LOOK_EVERY_S = 0.02
#: The most that AMQP can ask for at a time. A quorum queue that is asked for no number stops at 2,000.
WINDOW = 65_535


class Reading:
    """One queue, read by us alone. A context manager; closing it gives back what was not removed."""

    def __init__(self, parameters: Any, queue_name: str) -> None:
        self.queue_name = queue_name
        self._parameters = prepared(parameters, "desk", HEARTBEAT_S)
        self._connection: Any = None
        self._channel: Any = None
        #: How many of those that `arrivals` has asked for have not come.
        self._left = 0
        #: How many were behind the one that `take` took last.
        self._behind = 0

    def __repr__(self) -> str:
        return f"<Reading {self.queue_name!r}>"

    def __enter__(self) -> Self:
        try:
            self._connection = pika.BlockingConnection(self._parameters)
            self._channel = self._connection.channel()
        except PIKA_ERRORS as exc:
            raise self._error(exc) from exc
        return self

    def _lock(self) -> None:
        """Keep other readers away from now on, until the connection ends: a consumer alone would not keep them from
        seeing what is left of the queue while it begins and ends. Without the right to it, a consumer has to do."""
        channel = self._connection.channel()
        try:
            channel.queue_declare(topology.reading_name(self.queue_name), exclusive=True)
            channel.close()
        except pika.exceptions.ChannelClosedByBroker as exc:
            if exc.reply_code == LOCKED:
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what was not removed."""
        connection, channel, self._connection, self._channel = self._connection, self._channel, None, None
        if connection is not None and connection.is_open:
            # A server that is frozen answers no goodbye; it gives all back when it finds the connection gone.
            coming = self._consumed(channel, STRAGGLER_S) if self._left else iter(())
            closing = threading.Thread(
                target=_close, args=(connection, coming, self._left), name="reliq-desk-close", daemon=True
            )
            closing.start()
            closing.join(CLOSE_S)

    @property
    def is_open(self) -> bool:
        """Whether what was read is still held."""
        return self._channel is not None and self._channel.is_open

    def arrivals(self) -> Iterator[Arrival]:
        """All that lie in the queue now, in its order; none where there is no such queue. Raises `Refusal` when
        somebody else reads or consumes it, `ConnectionClosed` when the broker is lost."""
        try:
            self._lock()
            first = self._found()
            if first is not None:
                yield first
            if not self._left:
                return
            # What comes later stays where it is.
            self._channel.basic_qos(prefetch_count=self._left if self._left <= WINDOW else 0)
            for method, properties, body in self._consumed(self._channel, PATIENCE_S):
                if method is None:
                    missing, self._left = self._left, 0
                    self._ask_for(missing)
                    return
                self._left -= 1
                yield Arrival(
                    method.delivery_tag,
                    method.redelivered,
                    properties,
                    body,
                    method.exchange,
                    method.routing_key,
                )
                if not self._left:
                    return
        except PIKA_ERRORS as exc:
            if code_of(exc) == NOT_FOUND:
                return
            raise self._error(exc) from exc

    def _found(self) -> Arrival | None:
        """Count what lies in the queue (`_left`); the first of it where it had to be taken to be counted."""
        gone_by = time.monotonic() + CLOSE_S
        while (asked := self._asked()).consumer_count:
            # A reader before us whose end the queue has not heard of yet, or somebody else who holds what lies in it.
            if time.monotonic() >= gone_by:
                raise self._taken()
            time.sleep(LOOK_EVERY_S)
        self._left = asked.message_count
        if self._left:
            return None
        # A quorum queue that is slow to answer counts 0.
        first = self.take()
        self._left = self._behind if first is not None else 0
        return first

    def _asked(self) -> Any:
        return self._channel.queue_declare(self.queue_name, passive=True).method

    def _consumed(self, channel: Any, patience_s: float) -> Iterator[Any]:
        """What comes; called again it goes on."""
        coming: Iterator[Any] = channel.consume(self.queue_name, exclusive=True, inactivity_timeout=patience_s)
        return coming

    def _ask_for(self, missing: int) -> None:
        """Nothing came for a while: fine if the rest was purged or has expired meanwhile."""
        if self._asked().message_count:
            raise Failure(
                f"queue {self.queue_name!r}: {missing} messages were not delivered within {PATIENCE_S:.0f} s; try again"
            )

    def take(self) -> Arrival | None:
        """The first message, without keeping others away; None when there is none."""
        try:
            method, properties, body = self._channel.basic_get(self.queue_name)
        except PIKA_ERRORS as exc:
            if code_of(exc) == NOT_FOUND:
                return None
            raise self._error(exc) from exc
        if method is None:
            return None
        self._behind = method.message_count
        return Arrival(method.delivery_tag, method.redelivered, properties, body, method.exchange, method.routing_key)

    def remove(self, *tags: int) -> None:
        """Remove these for good; returns when the broker has done it."""
        try:
            for tag in tags:
                self._channel.basic_ack(tag)
            self._channel.basic_qos(prefetch_count=0)
        except PIKA_ERRORS as exc:
            raise self._error(exc) from exc

    def _error(self, exc: BaseException) -> Failure:
        if code_of(exc) == LOCKED or (code_of(exc) == NO_RIGHT and "exclusive" in explain(exc)):
            return self._taken()
        if self._channel is None:
            first = self._parameters[0]
            what = "refuses the connection" if code_of(exc) >= 400 else "cannot be reached"
            return refusal_of(exc, f"RabbitMQ {what}: {first.host}:{first.port}: ")
        return refusal_of(exc, f"reading queue {self.queue_name!r}: ")

    def _taken(self) -> Refusal:
        return Refusal(
            f"queue {self.queue_name!r} is being read by somebody else, and is read by one at a time; "
            "try again when that command has ended",
            NO_RIGHT,
        )


def _close(connection: Any, coming: Iterator[Any], left: int) -> None:
    with contextlib.suppress(*PIKA_ERRORS):  # else the channel is gone, and the broker has taken back what was ours
        # Taken to the end: pika would give back one by one what it holds, before what was handed out, and a quorum
        # queue keeps them in the order in which they come back.
        while left and next(coming)[0] is not None:
            left -= 1
    with contextlib.suppress(*PIKA_ERRORS):
        connection.close()
