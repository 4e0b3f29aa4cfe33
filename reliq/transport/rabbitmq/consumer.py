"""Consume one queue of RabbitMQ and settle its messages' verdicts.

Callers: Dramatiq's consumer thread (`__next__`, `requeue`, `close`), worker threads (`ack`, `nack`). Nobody else.
Guarantee: the channel belongs to another thread (`link.py`), so that heartbeats go out while this one settles or
waits; a connection that is lost, or a queue that is deleted, ends neither the consumer nor its worker; what came on a
channel that is gone is settled nowhere, because the broker delivers it again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dramatiq.broker import MessageProxy
from dramatiq.common import q_name
from dramatiq.errors import BrokerConnectionError, ConnectionClosed

from ..consumer import SettlingConsumer
from ..delivered import Delivered, Unreadable, eta_of
from ..settlement import Settlement, Unstorable
from ..settling import mended
from .copies import AGAIN, Key, key_of
from .errors import Refusal
from .intake import token_of
from .subscription import Arrival, Subscription

if TYPE_CHECKING:
    from .transport import RabbitTransport

#: A consumer that cannot be opened is tried again after a pause that grows up to this. Seconds.
LONGEST_PAUSE_S = 1.0
#: How long the broker may take to answer what a consumer asks of it. Seconds.
ANSWER_S = 5.0
#: How often a message that waits for its twin's end is looked at again. Seconds.
LOOK_AGAIN_S = 0.1
#: How often a consumer looks whether it should have more or fewer at a time. Seconds.
ADAPT_EVERY_S = 0.05
#: A quorum queue counts how often it has given a message out, and may have a limit (20 by default from 4.0 on).
MOST_SPARED = 3
#: The most that is taken from a stock delay queue at a time: it is moved on at once, never kept.
MOST_DELAYED = 500


class RabbitDelivered(Delivered):
    """One delivery, and what its attempt is known by."""

    known_by: Key | None = None  # None: as a message that was never run before

    @property
    def key(self) -> Key:
        """What this attempt is known by, whatever its run has made of its options since."""
        return self.known_by if self.known_by is not None else (self.message_id, 0, 0, 0)


class RabbitConsumer(SettlingConsumer):
    """A consumer of a plain queue."""

    transport: RabbitTransport
    delivered_class = RabbitDelivered

    def __init__(self, transport: RabbitTransport, queue_name: str, most: int | None, timeout: int) -> None:
        super().__init__(transport, queue_name)
        #: The most that is held of this queue; None leaves it to the pace of the process.
        self._most = most
        self._adapt_at = 0.0
        self._idle_s = min(max(timeout, 1), 1_000) / 1000
        self._failures = 0
        self._closed = False
        #: Messages that came while their twins were running: kept unacked until it is known what becomes of those.
        self._beside: list[tuple[Subscription, Arrival]] = []
        #: None before it is opened for the first time, and after it was closed.
        self.subscription: Subscription | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.queue_name!r} {self.subscription!r}>"

    # -- fetching ------------------------------------------------------------------------------------------------

    def __next__(self) -> MessageProxy | None:
        if self._waiting:
            self.settle_waiting()
        subscription = self._subscribed()
        if subscription is None:
            return None
        if self.transport.draining:
            # What has come and was not taken goes back with the channel, to where it was.
            self.transport.stopped.wait(min(0.05, self._idle_s))
            return None
        if self._beside:
            message = self._from_beside()
            if message is not None:
                return message
        if self._most is None:
            self._adapt(subscription)
        arrival = subscription.take(min(self._idle_s, LOOK_AGAIN_S) if self._beside else self._idle_s)
        return self._handed_out(subscription, arrival) if arrival is not None else None

    def _adapt(self, subscription: Subscription) -> None:
        """Have as many at a time as the pace of the tasks allows, shared with the other queues that are busy."""
        now = time.monotonic()
        if now < self._adapt_at:
            return
        self._adapt_at = now + ADAPT_EVERY_S
        wanted, has = self.transport.places_of(subscription), subscription.prefetch
        if wanted >= 2 * has or wanted <= 3 * has // 4:
            subscription.limit(wanted)

    def _from_beside(self) -> MessageProxy | None:
        """The first of those that wait for their twins which need not wait any more, and is to run."""
        beside, self._beside = self._beside, []
        for number, (subscription, arrival) in enumerate(beside, 1):
            message = self._handed_out(subscription, arrival) if subscription.alive else None
            if message is not None:
                self._beside += beside[number:]
                return message
        return None

    def _handed_out(self, subscription: Subscription, arrival: Arrival) -> MessageProxy | None:
        token = token_of(subscription, arrival.tag)
        message = self.open(token, arrival.body)
        self.transport.awaited.arrived(self.queue_name, message)
        if message is None:
            return None
        marked = AGAIN in (arrival.properties.headers or ())
        options = message.message.options
        subscription.handed[arrival.tag] = message
        if not (arrival.redelivered or marked or "retries" in options or "reliq" in options):
            return message
        assert isinstance(message, RabbitDelivered)
        message.known_by = key = key_of(message.message_id, options, message.record)
        answer = self.transport.copies.arrives(key, subscription.epoch, redelivered=arrival.redelivered, marked=marked)
        if answer == "run":
            return message
        del subscription.handed[arrival.tag]
        if answer == "wait":
            self._beside.append((subscription, arrival))
            return None
        settlement = self.transport.copies.result(key) if answer == "ended" else None
        if settlement is not None:
            self.settle_here(replace(settlement, token=token))
        else:
            # This ack may be lost as well.
            subscription.lately.append((time.monotonic(), key))
            subscription.ack(arrival.tag)
        self.logger.warning(
            "Queue %r: message %r came again; %s.",
            self.queue_name,
            message.message_id,
            "it is acked, for this attempt has had its run" if answer == "copy" else "it takes its first run's result",
        )
        return None

    def _subscribed(self) -> Subscription | None:
        """The subscription that delivers; opened, and opened again when it has ended."""
        subscription = self.subscription
        if subscription is not None and subscription.alive:
            return subscription
        if self.transport.draining or self._closed:
            # What was prefetched is handed back soon; nothing more is taken.
            self.transport.stopped.wait(min(0.05, self._idle_s))
            return None
        if subscription is not None:
            self.transport.intake.forget(subscription)
            self.logger.warning("Queue %r: the consumer is opened again: %s", self.queue_name, subscription.ended)
            # Said once; what keeps it from being opened says so itself.
            self.subscription = None
        try:
            self.subscription = self._opened_anew(subscription)
        except BrokerConnectionError as exc:
            self._endure(exc)
            return None
        self._failures = 0
        return self.subscription

    def _opened_anew(self, before: Subscription | None) -> Subscription:
        # Declared each time: a queue that was deleted is there again, and bound to the ladder.
        self.transport.declare_for_worker(q_name(self.queue_name), anew=before is not None or self._failures > 0)
        most = self._most if self._most is not None else self.transport.places_of(None)
        subscription = self.transport.subscribe(self.queue_name, most)
        if not subscription.decided.wait(ANSWER_S):
            self.transport.intake.forget(subscription)
            raise ConnectionClosed(f"no answer from RabbitMQ within {ANSWER_S:.0f} s")
        if subscription.ended is not None:
            self.transport.intake.forget(subscription)
            raise subscription.ended
        return subscription

    def _endure(self, exc: BrokerConnectionError) -> None:
        """The broker is away, or refuses: wait a little, go on. Dramatiq would wait 3 s."""
        self._failures += 1
        if isinstance(exc, Refusal) and self._failures == 1:
            self.logger.error("Queue %r cannot be consumed: %s", self.queue_name, exc)
        elif self._failures in (1, 10) or self._failures % 100 == 0:
            self.logger.warning("Queue %r: consuming waits for RabbitMQ: %s", self.queue_name, exc)
        self.transport.stopped.wait(min(0.05 * 2 ** min(self._failures, 5), LONGEST_PAUSE_S))

    # -- what the shared half asks for ---------------------------------------------------------------------------

    def acknowledge(self, message: Delivered) -> None:
        """Owe the ack. On a channel that is gone there is nothing to ack: the message comes again."""
        subscription, tag = self.transport.intake.delivery(message.token)
        if subscription is not None and isinstance(message, RabbitDelivered) and message.known_by is not None:
            subscription.lately.append((time.monotonic(), message.known_by))
            self.transport.settler.remember(message, subscription, tag)
        if subscription is None or not subscription.ack(tag):
            assert isinstance(message, RabbitDelivered)
            self.transport.intake.too_late(message.token, message, None)
            self.logger.warning(
                "Queue %r: message %r is done, but the channel it came on is gone; it is acked when it comes again.",
                self.queue_name,
                message.message_id,
            )

    def release(self, token: str) -> None:
        """The window is the broker's: it counts what is not acked."""

    def put_off(self, token: str, body: bytes, eta_ms: float) -> bool:
        """A message that is not due: up the ladder, for what is left of its delay."""
        left_ms = eta_ms - time.time() * 1000
        if not left_ms > 0:
            return False
        self.settle_here(self.transport.put_off(self.queue_name, token, self._restored(body), left_ms))
        return True

    def settle_waiting(self) -> None:
        """Try the settlements that wait, all at once: what is on its way holds up nobody."""
        waiting, self._waiting = self._waiting, []
        for settlement, ours in self.transport.settler.settle_many(waiting):
            if isinstance(ours, Unstorable):
                self._tell_refused(settlement, ours)
                self._waiting.append(mended(self.transport, settlement, ours))
            elif ours is None:
                self._waiting.append(settlement)
            else:
                self._report(settlement, ours)

    def _report(self, settlement: Settlement, ours: bool) -> None:
        if settlement.outcome == "moved":
            return  # no run has seen it
        super()._report(settlement, ours)

    # -- giving back ---------------------------------------------------------------------------------------------

    def spare(self, messages: list[Delivered]) -> list[Delivered]:
        """Give back what waits for a thread, but not too often. What came on a channel that is gone stays: it comes
        again, and waits for what becomes of this one."""
        subscription = self.subscription
        if subscription is not None and self._most is None:
            # First, so that they do not come here again.
            wanted = self.transport.places_of(subscription)
            if wanted < subscription.prefetch:
                subscription.limit(wanted)
        stay: list[Delivered] = []
        spared: list[Delivered] = []
        for message in messages:
            assert isinstance(message, RabbitDelivered)
            let_go = not self._was_often_spared(message) and self.transport.intake.let_go(message)
            (spared if let_go else stay).append(message)
        self.requeue(spared)
        return stay

    def _was_often_spared(self, message: Delivered) -> bool:
        subscription, tag = self.transport.intake.delivery(message.token)
        arrival = subscription.outstanding.get(tag) if subscription is not None else None
        counted = (arrival.properties.headers or {}).get("x-delivery-count", 0) if arrival is not None else 0
        return not isinstance(counted, int) or counted >= MOST_SPARED

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give prefetched messages back to where they were in their queue. Raises `ConnectionClosed`."""
        tags: dict[int, tuple[Subscription, list[int]]] = {}
        for message in messages:
            if isinstance(message, Delivered):
                subscription, tag = self.transport.intake.delivery(message.token)
                if subscription is not None:
                    tags.setdefault(subscription.epoch, (subscription, []))[1].append(tag)
        for subscription, several in tags.values():
            subscription.give_back(several, ANSWER_S)

    def close(self) -> None:
        """Send the acks that are owed and close the channel; the broker takes back what was not acked. Raises
        `ConnectionClosed`."""
        self._closed = True
        subscription, self.subscription = self.subscription, None
        if subscription is not None:
            self.transport.intake.close(subscription, ANSWER_S)


class RabbitDelayConsumer(RabbitConsumer):
    """A consumer of a stock delay queue (`q.DQ`): moves what plain Dramatiq's producers and workers put there onto the
    ladder. It hands nothing to Dramatiq, whose delays lie unacked in a worker's memory."""

    def __init__(self, transport: RabbitTransport, queue_name: str, most: int | None, timeout: int) -> None:
        super().__init__(transport, queue_name, min(most or MOST_DELAYED, MOST_DELAYED), timeout)

    def __next__(self) -> MessageProxy | None:
        if self._waiting:
            self.settle_waiting()
        subscription = self._subscribed()
        arrival = subscription.take(self._idle_s) if subscription is not None else None
        if subscription is None or arrival is None:
            return None
        moves: list[Settlement] = []
        while arrival is not None:
            move = self._move(token_of(subscription, arrival.tag), arrival.body)
            if move is not None:
                moves.append(move)
            arrival = subscription.take(0) if len(moves) < MOST_DELAYED else None
        self._waiting.extend(moves)
        self.settle_waiting()
        return None

    def _move(self, token: str, body: bytes) -> Settlement | None:
        try:
            message = self._restored(body)
            left_ms = (eta_of(message) or 0) - time.time() * 1000
            return self.transport.put_off(self.queue_name, token, message, left_ms)
        except Unreadable as unreadable:
            self.settle_here(self._raw_settlement(token, body, unreadable))
        except Exception as exc:
            unopened = Unreadable("malformed", f"the message cannot be opened: {exc}")
            self.settle_here(self._raw_settlement(token, body, unopened))
        return None


def consumer_for(transport: Any, queue_name: str, most: int | None, timeout: int) -> RabbitConsumer:
    """The consumer that a queue of this name needs."""
    kind = RabbitConsumer if q_name(queue_name) == queue_name else RabbitDelayConsumer
    return kind(transport, queue_name, most, timeout)
