"""RabbitMQ: what `Transport` promises, with the broker's own means.

Callers: `wiring.py`, Dramatiq through the methods put on the broker, the desk. Accepted durably means: confirmed by
the broker (a quorum queue: by a majority of its nodes). Two connections per process, each on a thread of its own: one
publishes and declares, one consumes, so that a broker that holds up publishers does not hold up acks.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from dramatiq.broker import Broker, Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed, QueueJoinTimeout
from dramatiq.logging import get_logger
from dramatiq.message import Message

from ...message.letter import DeadLetter
from ..base import Depth, Finding, Transport
from ..gate import AwayGate
from ..settlement import Publish, Settlement, Store
from . import topology
from .awaited import Awaited
from .consumer import RabbitDelivered, consumer_for, epoch_and_tag
from .control import Step, run
from .copies import AGAIN, Copies, Key
from .declaring import Declarations
from .desk import RabbitDesk
from .errors import NOT_FOUND, Refusal
from .frames import letter_frame, message_frame
from .keeper import Keeper
from .link import Link, prepared
from .management import Management
from .publisher import Batch, Frame, MaybeStored, Publisher, Unroutable
from .subscription import Subscription

if TYPE_CHECKING:
    from dramatiq.worker import Worker

#: How long one try to settle waits for its confirm; the consumer tries again. Seconds.
SETTLE_WAIT_S = 1.0
#: An ack that was owed so shortly before its channel was lost may not have arrived. Seconds.
UNSURE_S = 5.0
#: The largest body by default: of RabbitMQ 4, and before it.
MAX_BODY_4, MAX_BODY_3 = 16 * 1024 * 1024, 128 * 1024 * 1024


class RabbitTransport(Transport[RabbitmqBroker]):
    """The transport of `RabbitmqBroker` and its subclasses."""

    kind = "rabbitmq"
    has_queue_types = True

    def __init__(self, broker: RabbitmqBroker) -> None:
        super().__init__(broker)
        self._logger = get_logger(__name__, type(self))
        self._reset()

    def _reset(self) -> None:
        """As in a process that has done nothing yet; a fork begins so too, its parent's connections left alone."""
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._gate = AwayGate()
        self._publisher: Publisher | None = None
        self._intake: Link | None = None
        self._subscriptions: dict[int, Subscription] = {}
        #: Settlements whose messages are on their way, by token: tried again, they are waited for, not sent twice.
        self._settling: dict[str, Batch] = {}
        self._keepers: dict[Worker, Keeper] = {}
        self.copies = Copies()
        self.awaited = Awaited()
        self.declared = Declarations(
            self.broker, self.ask, lambda: self.server_version, lambda: self.settings.queue_type
        )
        #: Set while no worker runs, so that a consumer that waits is not waited for.
        self.stopped = threading.Event()
        self._desk = RabbitDesk(self)

    @classmethod
    def serves(cls, broker: Broker) -> bool:
        """Whether it is a `RabbitmqBroker`."""
        return isinstance(broker, RabbitmqBroker)

    @classmethod
    def stock_class(cls) -> type[Broker]:
        """Dramatiq's RabbitmqBroker."""
        return RabbitmqBroker

    # -- connections ---------------------------------------------------------------------------------------------

    @property
    def publisher(self) -> Publisher:
        """The publishing connection of this process, opened at first use."""
        if self._pid != os.getpid():
            self._reset()
        publisher = self._publisher
        if publisher is None:
            with self._starting:
                publisher = self._publisher
                if publisher is None:
                    publisher = Publisher(self.broker.parameters, self.settings.lease_ms / 1000)
                    publisher.link.start()
                    self._publisher = publisher
        return publisher

    @property
    def server_version(self) -> tuple[int, ...] | None:
        """As in (3, 10); None before the first connection."""
        return self._publisher.link.server_version if self._publisher is not None else None

    def ask(self, steps: Sequence[Step]) -> Any:
        """Do steps on the broker within `send_timeout`; see `control.run`."""
        return run(self.publisher.link, steps, self.settings.send_timeout_ms / 1000)

    def disconnect(self) -> None:
        """Close both connections, and those that the broker's own class has opened."""
        publisher, self._publisher = self._publisher, None
        intake, self._intake = self._intake, None
        if publisher is not None:
            publisher.stop()
        if intake is not None:
            intake.stop()
        self.broker.close()

    # -- sending -------------------------------------------------------------------------------------------------

    def envelope(self, message: Message[Any], delay_ms: int | None) -> Message[Any]:
        """The message as it is: its delay is in where it is published. One longer than the ladder names its end."""
        message = message.copy(queue_name=q_name(message.queue_name))
        if delay_ms is not None and delay_ms > topology.LONGEST_MS:
            message = message.copy(options={"eta": self.now_ms() + delay_ms})
        return message

    def publish(self, publish: Publish) -> None:
        """Confirmed by the broker, or `ConnectionClosed` within `send_timeout`."""
        (outcome,) = self._send([publish], f"sending to queue {publish.message.queue_name!r}")
        if outcome is not None:
            raise outcome

    def publish_many(self, items: list[Publish]) -> list[Exception | None]:
        """All on their way at once."""
        return self._send(items, f"sending {len(items)} messages") if items else []

    def _send(self, items: Sequence[Publish], doing: str) -> list[Exception | None]:
        refused = self._gate.refuses()
        if refused is not None:
            away = ConnectionClosed(f"{doing}: not stored, RabbitMQ has been away since an earlier send ({refused})")
            return [away] * len(items)
        timeout_s = self.settings.send_timeout_ms * 0.95 / 1000
        deadline = time.monotonic() + timeout_s
        try:
            batch = Batch([self._frame(item) for item in items])
        except ConnectionClosed as exc:
            if not isinstance(exc, Refusal):
                self._gate.failed(str(exc))
            return [ConnectionClosed(f"{doing}: not stored: {exc}")] * len(items)
        self._deliver(batch, deadline)
        if self._missed(batch):
            # A queue was deleted, or an exchange of ours: declared again, and these once more.
            for item in items:
                self.declared.forget(q_name(item.message.queue_name))
            try:
                batch.frames = [self._frame(item) for item in items]
                self._deliver(batch, deadline)
            except ConnectionClosed as exc:
                self._logger.warning("%s: what was not routed cannot be declared: %s", doing, exc)
        outcomes = [outcome and _told(doing, outcome) for outcome in batch.outcomes]
        if any(outcome is None or isinstance(outcome, Refusal) for outcome in batch.outcomes):
            self._gate.passed()
        else:
            self._gate.failed(str(batch.failure))
        for item, outcome in zip(items, outcomes):
            if item.delay_ms and outcome is None:
                self.awaited.published(item.message.queue_name, item.message.message_id, item.delay_ms)
        return outcomes

    def _deliver(self, batch: Batch, deadline: float) -> None:
        publisher = self.publisher
        waits_s = max(0.0, deadline - time.monotonic())
        publisher.submit(batch)
        if not batch.done.wait(waits_s):
            publisher.give_up(batch, waits_s)

    def _missed(self, batch: Batch) -> bool:
        """Whether anything found no queue, or no exchange, and nothing may be stored twice by trying again."""
        failures = [outcome for outcome in batch.outcomes if isinstance(outcome, Exception)]
        gone = any(isinstance(each, Refusal) and each.code == NOT_FOUND for each in failures)
        if gone:
            self.declared.forget_all()
        return (gone or any(isinstance(each, Unroutable) for each in failures)) and not any(
            isinstance(each, MaybeStored) for each in failures
        )

    def _frame(self, item: Publish, came: Any = None, *, again: bool = False) -> Frame:
        """Where an item goes, what it needs declared first."""
        queue_name = q_name(item.message.queue_name)
        if not item.delay_ms:
            self.declared.queue(queue_name)
            return message_frame(item, None, came, again=again)
        return message_frame(item, self.declared.delays(queue_name), came, again=again)

    def _store_frame(self, item: Store, came: Any = None, *, again: bool = False) -> Frame:
        if isinstance(item, Publish):
            return self._frame(item, came, again=again)
        return letter_frame(item, self.declared.dead(item.queue), came)

    # -- consuming -----------------------------------------------------------------------------------------------

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5_000) -> Consumer:
        """A consumer of our own."""
        return consumer_for(self, queue_name, prefetch, timeout)

    def declare_for_worker(self, queue_name: str, *, anew: bool) -> None:
        """All that a worker's queue needs. Where rights for what is ours are missing the queue is consumed all the
        same: what needs them says so."""
        self.declared.queue(queue_name, anew=anew)
        for declare in (self.declared.delays, self.declared.dead):
            try:
                declare(queue_name)
            except Refusal as exc:
                self._logger.error("Queue %r: %s", queue_name, exc)

    def subscribe(self, queue_name: str, prefetch: int) -> Subscription:
        """Open a consumer on the consuming connection."""
        with self._starting:
            link = self._intake
            if link is None:
                heartbeat_s = self.settings.lease_ms / 1000
                link = self._intake = Link(
                    prepared(self.broker.parameters, "consumer", heartbeat_s), _Nobody(), "consumer"
                )
                link.start()
        if not link.is_open.wait(self.settings.send_timeout_ms / 1000):
            raise ConnectionClosed(f"RabbitMQ cannot be reached: {link.why or 'connecting'}")
        subscription = Subscription(link, queue_name, prefetch)
        self._subscriptions[subscription.epoch] = subscription
        subscription.open()
        return subscription

    def lost(self, subscription: Subscription) -> None:
        """A subscription has ended: what came on it is not ours any more."""
        if self._subscriptions.pop(subscription.epoch, None) is not None:
            now = time.monotonic()
            for settled_at, key in subscription.lately:
                if now - settled_at < UNSURE_S:
                    self.copies.unacked(key)

    def delivery(self, token: str) -> tuple[Subscription | None, int]:
        """The live subscription of a delivery that is still ours, or None; and its tag."""
        epoch, tag = epoch_and_tag(token)
        subscription = self._subscriptions.get(epoch)
        if subscription is None or not subscription.alive or tag not in subscription.outstanding:
            return None, tag
        return subscription, tag

    def deliveries(self, message: MessageProxy) -> int | None:
        """1 for the first delivery; None where it is one of several, which a classic queue does not count."""
        if not isinstance(message, RabbitDelivered):
            return None
        subscription, tag = self.delivery(message.token)
        arrival = subscription.outstanding.get(tag) if subscription is not None else None
        if arrival is None:
            return None
        counted = (arrival.properties.headers or {}).get("x-delivery-count")
        if isinstance(counted, int):
            return counted + 1
        return None if arrival.redelivered else 1

    # -- settling ------------------------------------------------------------------------------------------------

    def settle(self, settlement: Settlement) -> bool:
        """Publish what the delivery becomes, confirmed; then ack it. False, and nothing published, once its channel is
        gone: the broker delivers it again."""
        subscription, tag = self.delivery(settlement.token)
        if subscription is None:
            self._abandon(settlement)
            return False
        if settlement.outcome == "returned":
            subscription.give_back([tag], SETTLE_WAIT_S)
            return True
        if settlement.store:
            self._store(settlement, subscription.outstanding[tag])
        self._conclude(settlement, subscription, tag)
        return True

    def settle_many(self, settlements: list[Settlement]) -> list[Settlement]:
        """Settle many, on their way at once; returns those that have to be tried again."""
        ready = []
        for settlement in settlements:
            subscription, tag = self.delivery(settlement.token)
            if subscription is not None:
                with suppress(ConnectionClosed):
                    self._begin(settlement, subscription.outstanding[tag])
                ready.append(settlement)
        left = []
        for settlement in ready:
            try:
                self.settle(settlement)
            except ConnectionClosed as exc:
                self._logger.warning("Queue %r: settling waits for RabbitMQ: %s", settlement.queue_name, exc)
                left.append(settlement)
        return left

    def _begin(self, settlement: Settlement, arrival: Any) -> Batch:
        """Have what a settlement stores on its way; what is stored or on its way already is not sent again."""
        batch = self._settling.get(settlement.token)
        if batch is None:
            own = settlement.delivered is not None or settlement.outcome == "moved"
            again = arrival.redelivered or AGAIN in (arrival.properties.headers or ())
            frames = [
                self._store_frame(
                    item,
                    arrival.properties if index == 0 and (own or settlement.outcome == "dead") else None,
                    again=index == 0 and own and again and settlement.outcome != "done",
                )
                for index, item in enumerate(settlement.store)
            ]
            batch = self._settling[settlement.token] = Batch(frames)
        if any(getattr(outcome, "suspect", False) for outcome in batch.outcomes):
            batch.alone = True
        self.publisher.submit(batch)
        return batch

    def _store(self, settlement: Settlement, arrival: Any) -> None:
        doing = f"settling on queue {settlement.queue_name!r}"
        batch = self._begin(settlement, arrival)
        if not batch.done.wait(SETTLE_WAIT_S):
            # It stays on its way: the next try waits for the same confirm.
            why = self.publisher.why or "no confirm yet"
            raise ConnectionClosed(f"{doing}: {why}")
        failure = batch.failure
        if failure is None:
            return
        if self._missed(batch) or isinstance(failure, Unroutable):
            self._settling.pop(settlement.token, None) if all(
                isinstance(outcome, Exception) for outcome in batch.outcomes
            ) else None
            for item in settlement.store:
                self.declared.forget(q_name(item.message.queue_name) if isinstance(item, Publish) else item.queue)
        raise ConnectionClosed(f"{doing}: {failure}") from failure

    def _conclude(self, settlement: Settlement, subscription: Subscription, tag: int) -> None:
        self._settling.pop(settlement.token, None)
        for item in settlement.store:
            if isinstance(item, Publish) and item.delay_ms:
                self.awaited.published(item.message.queue_name, item.message.message_id, item.delay_ms)
        delivered = settlement.delivered
        if isinstance(delivered, RabbitDelivered) and settlement.outcome != "moved":
            subscription.lately.append((time.monotonic(), delivered.key))
            self.remember(delivered.key, subscription, tag)
        if not subscription.ack(tag) and isinstance(delivered, RabbitDelivered):
            self.copies.unacked(delivered.key)

    def remember(self, key: Key, subscription: Subscription, tag: int) -> None:
        """An attempt has ended here, its ack is owed."""
        arrival = subscription.outstanding.get(tag)
        marked = arrival is not None and AGAIN in (arrival.properties.headers or ())
        self.copies.settled(key, marked=marked)

    def _abandon(self, settlement: Settlement) -> None:
        batch = self._settling.pop(settlement.token, None)
        if batch is not None:
            self.publisher.give_up(batch, 0.0)

    def put_off(self, queue_name: str, token: str, message: Message[Any], left_ms: float) -> Settlement:
        """What a fetched message that is not due becomes: a delay of ours."""
        delay_ms = max(0, round(left_ms + 0.5))
        options = {key: value for key, value in message.options.items() if key != "eta"}
        plain: Message[Any] = Message(
            **{**message.asdict(), "queue_name": q_name(message.queue_name), "options": options}
        )
        envelope = self.envelope(plain, delay_ms)
        publish = Publish(envelope, self.encode(envelope), min(delay_ms, topology.LONGEST_MS) or None)
        return Settlement(queue_name, token, "moved", (publish,))

    # -- beside a worker -----------------------------------------------------------------------------------------

    def start(self, worker: Worker) -> None:
        """Connect for publishing before anything is consumed, so that what fails can be settled; start the keeper."""
        super().start(worker)
        self.stopped.clear()
        self.publisher.link.is_open.wait(self.settings.send_timeout_ms / 1000)
        keeper = self._keepers[worker] = Keeper(self, worker)
        keeper.start()

    def drain(self) -> None:
        """Nothing more shall come."""
        super().drain()
        for subscription in list(self._subscriptions.values()):
            subscription.cancel()

    def stop(self, worker: Worker) -> None:
        """End what `start` started, and with the last worker the consuming connection."""
        keeper = self._keepers.pop(worker, None)
        if keeper is not None:
            keeper.stop()
        self.draining = False
        if self._keepers:
            return
        self.stopped.set()
        intake, self._intake = self._intake, None
        if intake is not None:
            intake.stop()
        self._subscriptions.clear()

    # -- dead letters and queues: see desk.py ----------------------------------------------------------------------

    def dead_letters(self, queue_name: str) -> Iterator[DeadLetter]:
        """Letters of a queue, oldest death first."""
        return self._desk.dead_letters(queue_name)

    def find_letter(self, letter_id: str, queue_name: str | None = None) -> DeadLetter | None:
        """A letter by its id or its message's."""
        return self._desk.find_letter(letter_id, queue_name)

    def discard(self, letter: DeadLetter) -> bool:
        """Delete a letter."""
        return self._desk.end_letter(letter, None)

    def replay(self, letter: DeadLetter, publish: Publish) -> bool:
        """Publish a letter's message, confirmed, then remove the letter."""
        return self._desk.end_letter(letter, partial(self.publish, publish))

    def dead_groups(self, queue_name: str) -> list[dict[str, Any]]:
        """Letters by cause: each is read."""
        return self._desk.dead_groups(queue_name)

    def queue_names(self) -> list[str]:
        """Queues declared here, and with a management URL all of the vhost."""
        return self._desk.queue_names()

    def depth(self, queue_name: str) -> Depth:
        """What a queue holds, as far as the broker tells."""
        return self._desk.depth(queue_name)

    def to_stock(self, queue_name: str, *, letters: bool = False) -> Iterator[int]:
        """Delays end on the plain queue by themselves; what is unrouted, and letters if asked, in steps."""
        return self._desk.to_stock(queue_name, letters=letters)

    def delays_until(self) -> datetime | None:
        """By when the last delay that waits will have come to its queue; None when none waits."""
        return self._desk.delays_until()

    def join(self, queue_name: str, min_successes: int = 3, idle_time: int = 50, *, timeout: int | None = None) -> None:
        """Wait until a queue, and the delays that this process has published to it, are done. For tests. Looks
        `min_successes` times, `idle_time` ms apart. Raises `QueueJoinTimeout`."""
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        successes = 0
        while successes < min_successes:
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(queue_name)
            successes = successes + 1 if self._desk.is_idle(queue_name) else 0
            time.sleep(idle_time / 1000)

    def flush(self, queue_name: str) -> None:
        """Drop everything of a queue, its delays included."""
        self._desk.flush(queue_name)

    def drain_unrouted(self, known: Callable[[str], bool]) -> int:
        """Give what lost its queue back to it; see the desk."""
        return self._desk.drain_unrouted(known)

    def expire(self, queue_name: str, retention_ms: int) -> int:
        """Delete letters older than the retention; returns how many."""
        return self._desk.expire(queue_name, retention_ms)

    def use_management(self, url: str) -> None:
        """Let the management API tell what AMQP does not."""
        parameters = self.broker.parameters
        first = parameters[0] if isinstance(parameters, (list, tuple)) else parameters
        self._desk.management = Management(url, first.virtual_host)

    def drop_waiting(self, queue_name: str) -> int:
        """Ack what has come to this process and was not handed out; returns how many. For tests."""
        return sum(
            subscription.drop_waiting(self.settings.send_timeout_ms / 1000)
            for subscription in list(self._subscriptions.values())
            if subscription.queue_name == queue_name and subscription.alive
        )

    @property
    def has_worker(self) -> bool:
        """Whether a worker runs in this process."""
        return bool(self._keepers)

    def holding(self, queue_name: str) -> tuple[int, int]:
        """Of a queue: how many have come to this process and wait, and how many its worker has."""
        here = [each for each in list(self._subscriptions.values()) if each.alive and each.queue_name == queue_name]
        return sum(each.waiting for each in here), max(0, sum(each.held for each in here))

    def owes(self, queue_name: str) -> bool:
        """Whether anything of a queue has come to this process and is not acked."""
        here = list(self._subscriptions.values())
        return any(each.outstanding for each in here if each.alive and each.queue_name == queue_name)

    def consumers_here(self, queue_name: str) -> int:
        """How many consumers of a queue this process has."""
        return sum(
            1
            for subscription in list(self._subscriptions.values())
            if subscription.alive and not subscription.cancelled and subscription.queue_name == queue_name
        )

    # -- telling ---------------------------------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """Whether the broker can be reached, and what stands in the way of letters and delays."""
        return self._desk.check()

    def describe(self) -> str:
        """Where the server is, without user and password."""
        parameters = self.broker.parameters
        first = parameters[0] if isinstance(parameters, (list, tuple)) else parameters
        scheme = "amqps" if first.ssl_options is not None else "amqp"
        more = f" (+{len(parameters) - 1})" if isinstance(parameters, (list, tuple)) and len(parameters) > 1 else ""
        return f"{scheme}://{first.host}:{first.port}/{first.virtual_host.lstrip('/')}{more}"


class _Nobody:
    """Watches the consuming connection: its channels tell of its end themselves."""

    def opened(self, connection: Any) -> None:
        """Nothing to do."""

    def lost(self, why: str) -> None:
        """Nothing to do."""


def _told(doing: str, outcome: Exception) -> ConnectionClosed:
    error = ConnectionClosed(f"{doing}: {outcome}")
    error.__cause__ = outcome
    return error
