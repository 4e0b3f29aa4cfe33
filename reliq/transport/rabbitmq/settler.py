"""Settles: what a delivery becomes is published and confirmed, then the delivery is acked.

Callers: `RabbitTransport.settle`, the consumers (`settle_many`). Guarantee: nothing is acked before all that it
becomes is confirmed; what is on its way is waited for and not sent twice, however often a settle is tried; for a
delivery whose channel is gone nothing is published, because the broker delivers it again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

import pika
from dramatiq.errors import ConnectionClosed
from dramatiq.logging import get_logger

from ..settlement import Publish, Settlement, Unstorable
from .consumer import RabbitDelivered
from .copies import AGAIN
from .errors import CANNOT_BE_SENT, OTHER_ARGUMENTS, Failure, Refusal
from .publisher import Batch, Frame, MaybeStored
from .sender import missed
from .subscription import Arrival, Subscription

if TYPE_CHECKING:
    from .transport import RabbitTransport

#: How long one try to settle waits for its confirm; the consumer tries again. Seconds.
SETTLE_WAIT_S = 1.0

#: How many deliveries that were settled are remembered: far more than are unacked at any time.
REMEMBERED = 10_000


#: Of a message whose queue is gone: nothing is known of how it came. Marked, in case that it comes again after all.
_NO_ARRIVAL = Arrival(0, True, pika.BasicProperties(), b"", "", "")


class Settler:
    """The settles of this process."""

    def __init__(self, transport: RabbitTransport) -> None:
        self._transport = transport
        self._logger = get_logger(__name__, type(self))
        #: What settlements store and have on its way, by token.
        self._batches: dict[str, Batch] = {}
        #: Tokens of deliveries that were settled, the latest ones.
        self._done: OrderedDict[str, None] = OrderedDict()

    def settle(self, settlement: Settlement, wait_s: float = SETTLE_WAIT_S) -> bool:
        """See `Transport.settle`."""
        if settlement.token in self._done:
            # Asked again, after an interrupt or by a caller who does not know: nothing is sent twice.
            return True
        subscription, tag = self._transport.intake.delivery(settlement.token)
        if subscription is None and self._transport.intake.queue_gone(settlement.token):
            # Nobody will deliver it again; so what it becomes is stored all the same, in the queue declared anew.
            if settlement.store:
                self._store(settlement, _NO_ARRIVAL, wait_s)
            self._is_done(settlement)
            return True
        if subscription is None:
            self._abandon(settlement)
            return False
        if settlement.outcome == "returned":
            subscription.give_back([tag], wait_s)
            return True
        if settlement.store:
            self._store(settlement, subscription.outstanding[tag], wait_s)
        self._conclude(settlement, subscription, tag)
        return True

    def settle_many(self, settlements: list[Settlement]) -> list[tuple[Settlement, bool | Unstorable | None]]:
        """Settle many, all on their way at once; with each whether it was ours, None where it has to be tried again,
        or what the broker does not take of it. Does not wait for a broker that takes nothing."""
        for settlement in settlements:
            subscription, tag = self._transport.intake.delivery(settlement.token)
            if subscription is not None and settlement.store:
                with suppress(ConnectionClosed, Unstorable):
                    self._begin(settlement, subscription.outstanding[tag])
        outcomes: list[tuple[Settlement, bool | Unstorable | None]] = []
        waits_until = time.monotonic() + (0.0 if self._transport.publisher.why else SETTLE_WAIT_S)
        for settlement in settlements:
            try:
                outcomes.append((settlement, self.settle(settlement, max(0.0, waits_until - time.monotonic()))))
            except ConnectionClosed as exc:
                self._logger.warning("Queue %r: settling waits for RabbitMQ: %s", settlement.queue_name, exc)
                outcomes.append((settlement, None))
            except Unstorable as refused:
                outcomes.append((settlement, refused))
        return outcomes

    def _begin(self, settlement: Settlement, arrival: Arrival) -> Batch:
        """Have what a settlement stores on its way; what is stored or on its way already is not sent again."""
        batch = self._batches.get(settlement.token)
        if batch is None or len(batch.frames) != len(settlement.store):
            batch = self._batches[settlement.token] = Batch(self._frames(settlement, arrival))
        if any(isinstance(outcome, MaybeStored) for outcome in batch.outcomes):
            # Sent again though it may be stored: marked, so that one of the two runs.
            batch.frames = self._frames(settlement, arrival, again=True)
            batch.alone = any(getattr(outcome, "suspect", False) for outcome in batch.outcomes)
        self._transport.publisher.submit(batch)
        return batch

    def _frames(self, settlement: Settlement, arrival: Arrival, *, again: bool = False) -> list[Frame]:
        again = again or arrival.redelivered or AGAIN in (arrival.properties.headers or ())
        frames = []
        for index, item in enumerate(settlement.store):
            # The first is what the message itself becomes; others are sent on its behalf.
            own = index == 0 and settlement.outcome != "done"
            try:
                came = arrival.properties if own else None
                frames.append(self._transport.sender.frame(item, came, again=own and again))
            except Refusal as exc:
                if exc.code in (OTHER_ARGUMENTS, CANNOT_BE_SENT):
                    raise Unstorable(str(exc), index, limit=getattr(exc, "limit", None)) from exc
                raise
            except (TypeError, ValueError, pika.exceptions.AMQPError) as exc:
                # A header that its sender could write and we cannot: the message must not be lost over it.
                self._logger.error(
                    "Queue %r: properties of a message cannot be sent again (%r); it goes on without them.",
                    settlement.queue_name,
                    exc,
                )
                frames.append(self._transport.sender.frame(item, None, again=own and again))
        return frames

    def _store(self, settlement: Settlement, arrival: Arrival, wait_s: float) -> None:
        batch = self._begin(settlement, arrival)
        doing = f"settling on queue {settlement.queue_name!r}"
        if not batch.done.wait(wait_s):
            # It stays on its way: the next try waits for the same confirm.
            raise Failure(f"{doing}: {self._transport.publisher.why or 'no confirm yet'}")
        for index, outcome in enumerate(batch.outcomes):
            if isinstance(outcome, Refusal) and outcome.code in (OTHER_ARGUMENTS, CANNOT_BE_SENT):
                self._batches.pop(settlement.token, None)
                raise Unstorable(str(outcome), index, limit=getattr(outcome, "limit", None)) from outcome
        if missed(batch):
            self._transport.sender.forget(batch, settlement.store)
            self._batches[settlement.token] = _rest_of(batch, self._frames(settlement, arrival))
        if batch.failure is not None:
            raise Failure(f"{doing}: {batch.failure}") from batch.failure

    def _conclude(self, settlement: Settlement, subscription: Subscription, tag: int) -> None:
        for item in settlement.store:
            if isinstance(item, Publish) and item.delay_ms:
                self._transport.note_delay(item)
        delivered = settlement.delivered
        if isinstance(delivered, RabbitDelivered):
            subscription.lately.append((time.monotonic(), delivered.key))
            self.remember(delivered, subscription, tag)
        if not subscription.ack(tag) and isinstance(delivered, RabbitDelivered):
            self._transport.intake.too_late(settlement.token, delivered, None)
        self._is_done(settlement)

    def _is_done(self, settlement: Settlement) -> None:
        # In this order: an interrupt may have all of it repeated.
        self._done[settlement.token] = None
        if len(self._done) > REMEMBERED:
            self._done.popitem(last=False)
        self._batches.pop(settlement.token, None)

    def remember(self, delivered: RabbitDelivered, subscription: Subscription, tag: int) -> None:
        """An attempt has ended here."""
        arrival = subscription.outstanding.get(tag)
        marked = arrival is not None and AGAIN in (arrival.properties.headers or ())
        self._transport.copies.settled(delivered.key, marked=marked)

    def _abandon(self, settlement: Settlement) -> None:
        """The delivery is not ours any more; it comes again, perhaps to this process."""
        batch = self._batches.pop(settlement.token, None)
        stored = batch is not None and batch.done.is_set() and batch.failure is None
        if batch is not None:
            self._transport.publisher.give_up(batch, 0.0)
        delivered = settlement.delivered
        if isinstance(delivered, RabbitDelivered) and settlement.outcome != "returned":
            self._transport.intake.too_late(settlement.token, delivered, None if stored else settlement)


def _rest_of(batch: Batch, frames: list[Frame]) -> Batch:
    """The same with frames made anew; what is stored stays stored."""
    rest = Batch(frames)
    rest.outcomes = list(batch.outcomes)
    return rest
