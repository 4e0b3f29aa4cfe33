"""The consuming connection of this process, and what is subscribed on it.

Callers: the consumers (`subscribe`, `delivery`, `lost`), the settler, the desk (`holding`, `owes`). One connection for
all queues: acks and deliveries are not held up by what holds up publishers, and heartbeats by nobody.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from .copies import Copies, Key, Result
from .errors import Failure
from .link import Link, prepared
from .subscription import Subscription

if TYPE_CHECKING:
    from ..settlement import Settlement
    from .consumer import RabbitDelivered

#: An ack that was owed so shortly before its channel was lost may not have arrived. Seconds.
UNSURE_S = 5.0


class Intake:
    """Subscriptions by their epoch."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        #: A run may end in the moment in which the end of its subscription is noticed.
        self._ending = threading.Lock()
        self._starting = threading.Lock()
        self._link: Link | None = None
        self._subscriptions: dict[int, Subscription] = {}
        #: Epochs of subscriptions whose queues were deleted, the latest ones.
        self._gone: deque[int] = deque(maxlen=1_000)

    def __repr__(self) -> str:
        return f"<Intake {self._link!r} {list(self._subscriptions.values())}>"

    def subscribe(
        self, parameters: Any, heartbeat_s: float, queue_name: str, prefetch: int, timeout_s: float
    ) -> Subscription:
        """Have a consumer opened. Raises `ConnectionClosed`."""
        with self._starting:
            link = self._link
            if link is None:
                link = self._link = Link(prepared(parameters, "consumer", heartbeat_s), self, "consumer")
                link.start()
        link.wait(timeout_s)
        subscription = Subscription(link, queue_name, prefetch)
        self._subscriptions[subscription.epoch] = subscription
        subscription.open()
        return subscription

    def opened(self, connection: Any) -> None:
        """Part of `Watcher`: nothing to do."""

    def lost(self, why: str) -> None:
        """Part of `Watcher`. Open channels tell of their end themselves; those that were opening do not."""
        for subscription in list(self._subscriptions.values()):
            subscription.end(Failure(f"the connection was lost: {why}"))

    def forget(self, subscription: Subscription) -> None:
        """A subscription has ended: what came on it is not ours any more, and comes again."""
        with self._ending:
            if self._subscriptions.pop(subscription.epoch, None) is None:
                return
            if subscription.queue_gone:
                self._gone.append(subscription.epoch)
                return
            since = time.monotonic() - UNSURE_S
            done = subscription.owed | subscription.late.keys()
            handed = list(subscription.handed.items())
            running = [(each.key, each) for tag, each in handed if tag not in done]
            ended: list[tuple[Key, Result]] = [(key, None) for at, key in list(subscription.lately) if at > since]
            ended += [(each.key, subscription.late.get(tag)) for tag, each in handed if tag in done]
            self._copies.lost(subscription.epoch, running, ended)

    def close(self, subscription: Subscription, timeout_s: float) -> None:
        """Flush and close a subscription that its consumer does not want any more. Raises `ConnectionClosed`."""
        try:
            subscription.close(timeout_s)
            # In order: nothing that was acked comes again, and who takes the rest may run it.
            subscription.lately.clear()
            subscription.handed.clear()
        finally:
            self.forget(subscription)

    def too_late(self, token: str, message: RabbitDelivered, unwritten: Settlement | None) -> None:
        """A run has ended whose channel is gone."""
        epoch, tag = epoch_and_tag(token)
        with self._ending:
            subscription = self._subscriptions.get(epoch)
            if subscription is not None:
                subscription.late[tag] = unwritten  # told when it is forgotten
            else:
                self._copies.ended(message.key, message, unwritten)

    def delivery(self, token: str) -> tuple[Subscription | None, int]:
        """The live subscription of a delivery that is still ours, or None; and its tag."""
        epoch, tag = epoch_and_tag(token)
        subscription = self._subscriptions.get(epoch)
        if subscription is None or not subscription.alive or tag not in subscription.outstanding:
            return None, tag
        return subscription, tag

    def let_go(self, message: RabbitDelivered) -> bool:
        """A delivery is not going to be run here. False if its channel is gone: then it counts as running."""
        epoch, tag = epoch_and_tag(message.token)
        with self._ending:
            subscription = self._subscriptions.get(epoch)
            if subscription is None or not subscription.alive or tag not in subscription.outstanding:
                return False
            subscription.handed.pop(tag, None)
            self._copies.given_back(message.key)
            return True

    def queue_gone(self, token: str) -> bool:
        """Whether a delivery that is not ours any more was of a queue that was deleted: it never comes again."""
        epoch, _ = epoch_and_tag(token)
        subscription = self._subscriptions.get(epoch)
        return epoch in self._gone or (subscription is not None and subscription.queue_gone)

    def cancel(self) -> None:
        """Let nothing more come."""
        for subscription in list(self._subscriptions.values()):
            subscription.cancel()

    def stop(self) -> None:
        """Close the connection; the next subscription opens another."""
        link, self._link = self._link, None
        if link is not None:
            link.stop()
        self._subscriptions.clear()

    # -- what is here of a queue -----------------------------------------------------------------------------------

    def of(self, queue_name: str) -> list[Subscription]:
        """Its live subscriptions."""
        here = list(self._subscriptions.values())
        return [each for each in here if each.alive and each.queue_name == queue_name]

    def busy(self, subscription: Subscription | None) -> int:
        """How many have messages here; the given one counts as one that has."""
        return sum(bool(each.outstanding) or each is subscription for each in list(self._subscriptions.values()))

    def holding(self, queue_name: str) -> tuple[int, int]:
        """How many have come to this process and wait, and how many its worker has."""
        here = self.of(queue_name)
        return sum(each.waiting for each in here), max(0, sum(each.held for each in here))

    def owes(self, queue_name: str) -> bool:
        """Whether anything has come to this process and is not acked."""
        return any(each.outstanding for each in self.of(queue_name))

    def drop_waiting(self, queue_name: str, timeout_s: float) -> int:
        """Ack what has come to this process and was not handed out; returns how many. For tests."""
        return sum(each.drop_waiting(timeout_s) for each in self.of(queue_name))


def token_of(subscription: Subscription, tag: int) -> str:
    """A delivery's name: tags begin again with every channel, epochs never."""
    return f"{subscription.epoch}.{tag}"


def epoch_and_tag(token: str) -> tuple[int, int]:
    """What `token_of` made."""
    epoch, _, tag = token.partition(".")
    return int(epoch), int(tag)
