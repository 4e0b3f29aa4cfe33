"""RabbitMQ: what `Transport` promises, with the broker's own means.

Callers: `wiring.py`, Dramatiq through the methods put on the broker, the desk. Accepted durably means: confirmed by
the broker (a quorum queue: by a majority of its nodes). Two connections per process, each on a thread of its own: one
publishes and declares, one consumes, so that a broker that holds up publishers does not hold up acks.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dramatiq.broker import Broker, Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import q_name
from dramatiq.errors import QueueJoinTimeout
from dramatiq.logging import get_logger
from dramatiq.message import Message

from ...message.letter import DeadLetter
from ..base import Depth, Finding, Transport
from ..settlement import Publish, Settlement
from . import topology
from .awaited import Awaited
from .consumer import RabbitDelivered, consumer_for
from .control import Step, run
from .copies import Copies
from .declaring import Declarations
from .desk import RabbitDesk
from .errors import Refusal
from .intake import Intake
from .keeper import Keeper
from .management import Management
from .publisher import Publisher
from .sender import Sender
from .settler import Settler
from .subscription import Subscription

if TYPE_CHECKING:
    from dramatiq.worker import Worker

#: The largest body by default: of RabbitMQ 4, and before it.
MAX_BODY_4, MAX_BODY_3 = 16 * 1024 * 1024, 128 * 1024 * 1024


class RabbitTransport(Transport[RabbitmqBroker]):
    """The transport of `RabbitmqBroker` and its subclasses."""

    kind = "rabbitmq"
    has_queue_types = True
    has_letter_index = False

    def __init__(self, broker: RabbitmqBroker) -> None:
        super().__init__(broker)
        self._logger = get_logger(__name__, type(self))
        self._reset()

    def attach(self) -> None:
        """Confirms are on for what an application publishes on a channel of the broker's, too."""
        super().attach()
        self.broker.confirm_delivery = True

    def _reset(self) -> None:
        """As in a process that has done nothing yet; a fork begins so too, its parent's connections left alone."""
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._publisher: Publisher | None = None
        self._keepers: dict[Worker, Keeper] = {}
        self._max_body: int | None = None
        self.copies = Copies()
        self.awaited = Awaited()
        self.intake = Intake(self.copies)
        self.sender = Sender(self)
        self.settler = Settler(self)
        self.declared = Declarations(
            self.broker, self.ask, lambda: self.server_version, lambda: self.settings.queue_type
        )
        self.desk = RabbitDesk(self)
        #: Set while no worker runs, so that a consumer that waits is not waited for.
        self.stopped = threading.Event()

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
                    publisher = Publisher(
                        self.broker.parameters, self.settings.lease_ms / 1000, self.sender.gate.passed
                    )
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
        if publisher is not None:
            publisher.stop()
        self.intake.stop()
        self.broker.close()

    @property
    def max_body(self) -> int:
        """What the server has said, else its default."""
        if self._max_body is not None:
            return self._max_body
        return MAX_BODY_4 if (self.server_version or (3,)) >= (4,) else MAX_BODY_3

    @max_body.setter
    def max_body(self, limit: int | None) -> None:
        self._max_body = limit

    # -- sending -------------------------------------------------------------------------------------------------

    def envelope(self, message: Message[Any], delay_ms: int | None) -> Message[Any]:
        """The message as it is: its delay is in where it is published. One longer than the ladder names its end."""
        message = message.copy(queue_name=q_name(message.queue_name))
        if delay_ms is not None and delay_ms > topology.LONGEST_MS:
            message = message.copy(options={"eta": self.now_ms() + delay_ms})
        return message

    def publish(self, publish: Publish) -> None:
        """Confirmed by the broker, or `ConnectionClosed` within `send_timeout`."""
        self.publish_with(publish, None)

    def publish_with(self, publish: Publish, came: Any) -> None:
        """The same, with the properties that the message had come with."""
        (outcome,) = self.sender.send([publish], f"sending to queue {publish.message.queue_name!r}", came)
        if outcome is not None:
            raise outcome

    def publish_many(self, items: list[Publish]) -> list[Exception | None]:
        """All on their way at once; large lists in parts, each within `send_timeout`."""
        return self.sender.send(items, f"sending {len(items)} messages")

    def note_delay(self, item: Publish) -> None:
        """A delay is stored: `join` waits for it."""
        self.awaited.published(q_name(item.message.queue_name), item.message.message_id, item.delay_ms or 0)

    # -- consuming -----------------------------------------------------------------------------------------------

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5_000) -> Consumer:
        """A consumer of our own."""
        return consumer_for(self, queue_name, self.most_held(prefetch), timeout)

    def places_of(self, subscription: Subscription | None) -> int:
        """How many messages a queue may have here: the broker counts for each queue alone, so the busy ones share."""
        pace = self.pace
        return max(1, math.ceil(pace.window / max(1, self.intake.busy(subscription)))) if pace is not None else 1

    def others_serve(self, queue_name: str) -> bool:
        """Whether anybody else consumes a queue."""
        return self.desk.consumers(queue_name) > len(self.intake.of(queue_name))

    def declare_for_worker(self, queue_name: str, *, anew: bool) -> None:
        """All that a worker's queue needs. Where rights for what is ours are missing the queue is consumed all the
        same: what needs them says so."""
        if anew:
            self.declared.forget(queue_name)
        self.declared.queue(queue_name)
        for declare in (self.declared.delays, self.declared.dead):
            try:
                declare(queue_name)
            except Refusal as exc:
                self._logger.error("Queue %r: %s", queue_name, exc)

    def subscribe(self, queue_name: str, prefetch: int) -> Subscription:
        """Open a consumer on the consuming connection."""
        settings = self.settings
        return self.intake.subscribe(
            self.broker.parameters, settings.lease_ms / 1000, queue_name, prefetch, settings.send_timeout_ms / 1000
        )

    def settle(self, settlement: Settlement) -> bool:
        """Publish what the delivery becomes, confirmed; then ack it. False, and nothing published, once its channel is
        gone: the broker delivers it again."""
        return self.settler.settle(settlement)

    def deliveries(self, message: MessageProxy) -> int | None:
        """1 for the first delivery; None where it is one of several, which a classic queue does not count."""
        if not isinstance(message, RabbitDelivered):
            return None
        subscription, tag = self.intake.delivery(message.token)
        arrival = subscription.outstanding.get(tag) if subscription is not None else None
        if arrival is None:
            return None
        counted = (arrival.properties.headers or {}).get("x-delivery-count")
        if isinstance(counted, int):
            return counted + 1
        return None if arrival.redelivered else 1

    def put_off(self, queue_name: str, token: str, message: Message[Any], left_ms: float) -> Settlement:
        """What a fetched message that is not due becomes: a delay of ours."""
        delay_ms = max(0, math.ceil(left_ms))
        options = {key: value for key, value in message.options.items() if key != "eta"}
        plain: Message[Any] = Message(
            **{**message.asdict(), "queue_name": q_name(message.queue_name), "options": options}
        )
        envelope = self.envelope(plain, delay_ms)
        return Settlement(queue_name, token, "moved", (Publish(envelope, self.encode(envelope), delay_ms or None),))

    # -- beside a worker -----------------------------------------------------------------------------------------

    def start(self, worker: Worker) -> None:
        """Connect for publishing before anything is consumed, so that what fails can be settled; start the keeper."""
        publisher = self.publisher
        super().start(worker)
        self.stopped.clear()
        publisher.link.is_open.wait(self.settings.send_timeout_ms / 1000)
        keeper = self._keepers[worker] = Keeper(self, worker)
        keeper.start()

    @property
    def has_worker(self) -> bool:
        """Whether a worker runs in this process."""
        return bool(self._keepers)

    def drain(self) -> None:
        """Nothing more shall come."""
        super().drain()
        self.intake.cancel()

    def stop(self, worker: Worker) -> None:
        """End what `start` started, and with the last worker the consuming connection."""
        keeper = self._keepers.pop(worker, None)
        if keeper is not None:
            keeper.stop()
        self.draining = False
        if not self._keepers:
            self.stopped.set()
            self.intake.stop()

    # -- dead letters and queues: see desk.py ----------------------------------------------------------------------

    def dead_letters(self, queue_name: str) -> Iterator[DeadLetter]:
        """Letters of a queue, oldest death first."""
        return self.desk.dead_letters(queue_name)

    def find_letter(self, letter_id: str, queue_name: str | None = None) -> DeadLetter | None:
        """A letter by its id or its message's."""
        return self.desk.find_letter(letter_id, queue_name)

    def discard(self, letter: DeadLetter) -> bool:
        """Delete a letter."""
        return self.desk.end_letter(letter, None)

    def replay(self, letter: DeadLetter, publish: Publish) -> bool:
        """Publish a letter's message, confirmed, then remove the letter."""
        return self.desk.end_letter(letter, publish)

    def dead_groups(self, queue_name: str) -> list[dict[str, Any]]:
        """Letters by cause: each is read."""
        return self.desk.dead_groups(queue_name)

    def queue_names(self) -> list[str]:
        """Queues declared here, and with a management URL all of the vhost."""
        return self.desk.queue_names()

    def depth(self, queue_name: str) -> Depth:
        """What a queue holds, as far as the broker tells."""
        return self.desk.depth(queue_name)

    def to_stock(self, queue_name: str, *, letters: bool = False) -> Iterator[int]:
        """Delays end on the plain queue by themselves; what is unrouted, and letters if asked, in steps."""
        return self.desk.to_stock(queue_name, letters=letters)

    def delays_until(self) -> datetime | None:
        """By when the last delay that waits will have come to its queue; None when none waits."""
        return self.desk.delays_until()

    def join(self, queue_name: str, min_successes: int = 3, idle_time: int = 50, *, timeout: int | None = None) -> None:
        """Wait until a queue, and the delays that this process has published to it, are done. For tests. Looks
        `min_successes` times, `idle_time` ms apart. Raises `QueueJoinTimeout`."""
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        successes = 0
        while successes < min_successes:
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(queue_name)
            successes = successes + 1 if self.desk.is_idle(queue_name) else 0
            time.sleep(idle_time / 1000)

    def flush(self, queue_name: str) -> None:
        """Drop everything of a queue, its delays included."""
        self.desk.flush(queue_name)

    def has_queue(self, queue_name: str) -> bool:
        """Whether the queue stands, or one of its dead letters."""
        return self.desk.has_queue(queue_name)

    def use_management(self, url: str) -> None:
        """Let the management API tell what AMQP does not. A URL without user and password takes the broker's."""
        parameters = self.broker.parameters
        first = parameters[0] if isinstance(parameters, (list, tuple)) else parameters
        login = first.credentials.username, first.credentials.password
        self.desk.management = Management(url, first.virtual_host, login)

    @property
    def queues_as_they_stand(self) -> bool:
        """Whether a queue that is there is taken as it is, whatever its arguments: for who only sends to it."""
        return self.declared.as_they_stand

    @queues_as_they_stand.setter
    def queues_as_they_stand(self, yes: bool) -> None:
        self.declared.as_they_stand = yes

    # -- telling ---------------------------------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """Whether the broker can be reached, and what stands in the way of letters and delays."""
        return self.desk.check()

    def describe(self) -> str:
        """Where the server is, without user and password."""
        parameters = self.broker.parameters
        first = parameters[0] if isinstance(parameters, (list, tuple)) else parameters
        scheme = "amqps" if first.ssl_options is not None else "amqp"
        more = f" (+{len(parameters) - 1})" if isinstance(parameters, (list, tuple)) and len(parameters) > 1 else ""
        return f"{scheme}://{first.host}:{first.port}/{first.virtual_host.lstrip('/')}{more}"
