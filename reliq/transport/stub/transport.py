"""StubBroker: what `Transport` promises, in the memory of one process, for users' test suites and our own.

It keeps to the places that Dramatiq's users look at: encoded bodies in `broker.queues[name]`, with
`unfinished_tasks` counting what is not settled; delayed ones in `broker.queues["<name>.DQ"]`; dead ones in
`broker.dead_letters_by_queue[name]`.
Guarantee: a settlement is written in one step by a thread that nothing interrupts (`writer.py`).
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from queue import Queue
from typing import TYPE_CHECKING, Any

from dramatiq.broker import Broker, Consumer, MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name, iter_queue, q_name
from dramatiq.errors import QueueJoinTimeout, QueueNotFound
from dramatiq.message import Message

from ...message.letter import DeadLetter
from ..base import Depth, Finding, Transport
from ..delivered import Unreadable, decode
from ..settlement import Bury, Publish, Settlement
from .consumer import StubConsumer, StubDelayConsumer, StubDelivered
from .letters import groups_of, letter_of, proxy_of
from .writer import Writer

if TYPE_CHECKING:
    from dramatiq.worker import Worker

#: How many settled deliveries are remembered, so that settling one again is told from settling what is not ours.
REMEMBERED = 1_000


class StubTransport(Transport[StubBroker]):
    """The transport of `StubBroker` and its subclasses. `max_body` may be set, to test what a broker with a limit
    would do."""

    kind = "stub"
    durable_delays = False

    def __init__(self, broker: StubBroker) -> None:
        super().__init__(broker)
        self._writer = Writer()
        self._workers: list[Worker] = []
        self._tokens = count(1)
        #: Token -> queue and body of what is fetched and not settled. Invariant: each is one `unfinished_tasks`.
        self._held: dict[str, tuple[str, bytes]] = {}
        self._settled: deque[str] = deque(maxlen=REMEMBERED)
        #: Delay queue -> heap of (eta in ms, order, body). Invariant: each is one `unfinished_tasks` of that queue.
        self._delays: dict[str, list[tuple[float, int, bytes]]] = {}
        #: Held while letters or delays are looked at or changed; only for moments.
        self._lock = threading.RLock()
        #: Set while no worker runs.
        self.stopped = threading.Event()

    def __repr__(self) -> str:
        return f"<StubTransport held={len(self._held)} delayed={sum(map(len, self._delays.values()))}>"

    @classmethod
    def serves(cls, broker: Broker) -> bool:
        """Whether it is a `StubBroker`."""
        return isinstance(broker, StubBroker)

    @classmethod
    def stock_class(cls) -> type[Broker]:
        """Dramatiq's StubBroker."""
        return StubBroker

    def queue(self, queue_name: str) -> Queue[bytes]:
        """The queue of this name, a delay queue's too. Raises `QueueNotFound`."""
        try:
            return self.broker.queues[queue_name]  # type: ignore[no-any-return]
        except KeyError:
            raise QueueNotFound(queue_name) from None

    # -- sending -------------------------------------------------------------------------------------------------

    def envelope(self, message: Message[Any], delay_ms: int | None) -> Message[Any]:
        """The form of plain Dramatiq. Raises `QueueNotFound`."""
        if delay_ms is None:
            self.queue(message.queue_name)
            return message
        queue_name = dq_name(message.queue_name)
        self.queue(queue_name)
        return message.copy(queue_name=queue_name, options={"eta": self.now_ms() + delay_ms})

    def publish(self, publish: Publish) -> None:
        """Put one message into its queue."""
        self.queue(publish.message.queue_name).put(publish.body)

    def publish_many(self, items: list[Publish]) -> list[Exception | None]:
        """Put many, in order."""
        outcomes: list[Exception | None] = []
        for item in items:
            try:
                self.publish(item)
                outcomes.append(None)
            except QueueNotFound as exc:
                outcomes.append(exc)
        return outcomes

    # -- consuming -----------------------------------------------------------------------------------------------

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 100) -> Consumer:
        """A consumer of our own. Raises `QueueNotFound`."""
        kind = StubConsumer if q_name(queue_name) == queue_name else StubDelayConsumer
        return kind(self, queue_name, prefetch, timeout)

    def hold(self, queue_name: str, body: bytes) -> str:
        """Keep what was fetched until it is settled; returns the token of the delivery."""
        token = str(next(self._tokens))
        self._held[token] = (queue_name, body)
        return token

    def end(self, token: str) -> None:
        """A message is done. Returns at once; repeating it is harmless."""
        self._writer.hand_over(partial(self._finish, token))

    def settle(self, settlement: Settlement) -> bool:
        """Store what a delivery becomes, then count it as finished, in one step."""
        return bool(self._writer.do(partial(self._settle, settlement)))

    def give_back(self, tokens: list[str]) -> None:
        """Put deliveries back to the head of their queues, in order."""
        self._writer.do(partial(self._give_back, tokens))

    def put_off(self, token: str) -> None:
        """Let a fetched message wait for its `eta` in the delay queue."""
        self._writer.do(partial(self._put_off, token))

    def _settle(self, settlement: Settlement) -> bool:
        if settlement.token not in self._held:
            return settlement.token in self._settled
        if settlement.outcome == "returned":
            self._give_back([settlement.token])
            return True
        for index, item in enumerate(settlement.store):
            if isinstance(item, Publish):
                self.publish(item)
            else:
                # The first letter of a settlement is the message's own; others are of callbacks.
                own = settlement.delivered if index == 0 and settlement.outcome == "dead" else None
                self._bury(item, own)
        # Last: whoever joins the queue finds what the message became.
        self._finish(settlement.token)
        return True

    def _finish(self, token: str) -> None:
        held = self._held.pop(token, None)
        if held is not None:
            self._settled.append(token)
            self.broker.queues[held[0]].task_done()

    def _give_back(self, tokens: list[str]) -> None:
        for token in reversed(tokens):
            held = self._held.pop(token, None)
            if held is not None:
                self._settled.append(token)
                _unget(self.broker.queues[held[0]], [held[1]])

    def _put_off(self, token: str) -> None:
        queue_name, body = self._held[token]
        self.queue(dq_name(queue_name)).put(body)
        self._finish(token)

    def _bury(self, bury: Bury, delivered: Any) -> None:
        proxy = proxy_of(bury, delivered if isinstance(delivered, StubDelivered) else None)
        with self._lock:
            self.broker.dead_letters_by_queue[bury.queue].append(proxy)

    # -- delays --------------------------------------------------------------------------------------------------

    def delay(self, queue_name: str, body: bytes, eta_ms: float) -> None:
        """Keep a message of a delay queue until it is due."""
        with self._lock:
            heapq.heappush(self._delays.setdefault(queue_name, []), (eta_ms, next(self._tokens), body))

    def promote(self, queue_name: str) -> float | None:
        """Move what is due from a delay queue to its queue; returns the seconds until more is due."""
        delayed, ready = self.queue(queue_name), self.queue(q_name(queue_name))
        with self._lock:
            heap = self._delays.get(queue_name, [])
            while heap and heap[0][0] <= time.time() * 1000:
                ready.put(heapq.heappop(heap)[2])
                delayed.task_done()
            return heap[0][0] / 1000 - time.time() if heap else None

    def undelay(self, queue_name: str) -> None:
        """Put what waits back into the delay queue: nobody keeps the time any more."""
        with self._lock:
            heap = self._delays.pop(queue_name, [])
            _unget(self.queue(queue_name), [body for _, _, body in sorted(heap)])

    # -- beside a worker -----------------------------------------------------------------------------------------

    def start(self, worker: Worker) -> None:
        """Start the writer."""
        super().start(worker)
        self.stopped.clear()
        self._workers.append(worker)
        self._writer.start()

    def stop(self, worker: Worker) -> None:
        """End the writer with the last worker, once what it was given is written."""
        self._workers.remove(worker)
        if not self._workers:
            self._writer.stop()
            self.stopped.set()
            self.draining = False

    # -- dead letters --------------------------------------------------------------------------------------------

    def dead_letters(self, queue_name: str) -> Iterator[DeadLetter]:
        """Letters of a queue, oldest death first."""
        with self._lock:
            proxies = list(self.broker.dead_letters_by_queue.get(queue_name, ()))
        letters = [letter_of(proxy, queue_name) for proxy in proxies]
        return iter(sorted(letters, key=lambda letter: letter.died_at_ms or 0))

    def find_letter(self, letter_id: str, queue_name: str | None = None) -> DeadLetter | None:
        """A letter by its id, else by its message's."""
        queues = [queue_name] if queue_name is not None else self.queue_names()
        letters = [letter for name in queues for letter in self.dead_letters(name)]
        by_message = (item for item in letters if item.message is not None and item.message.message_id == letter_id)
        return next((item for item in letters if item.id == letter_id), None) or next(by_message, None)

    def discard(self, letter: DeadLetter) -> bool:
        """Delete a letter."""
        return self._remove(letter)

    def replay(self, letter: DeadLetter, publish: Publish) -> bool:
        """Give a letter's message back to its queue and remove the letter. Raises `QueueNotFound`, changing nothing."""
        queue = self.queue(publish.message.queue_name)
        with self._lock:
            if not self._remove(letter):
                return False
            queue.put(publish.body)
            return True

    def _remove(self, letter: DeadLetter) -> bool:
        return self._remove_where(letter.queue, lambda other: other.id == letter.id) > 0

    def _remove_where(self, queue_name: str, unwanted: Callable[[DeadLetter], bool]) -> int:
        with self._lock:
            proxies: list[MessageProxy] = self.broker.dead_letters_by_queue.get(queue_name, [])
            kept = [proxy for proxy in proxies if not unwanted(letter_of(proxy, queue_name))]
            removed = len(proxies) - len(kept)
            # In place: tests keep references to the list.
            proxies[:] = kept
            return removed

    def expire_letters(self, queue_name: str) -> None:
        """Delete letters beyond the retention, if there is one."""
        retention_ms = self.letters.retention_ms
        if retention_ms is not None:
            since = time.time() * 1000 - retention_ms
            self._remove_where(queue_name, lambda letter: letter.died_at_ms is not None and letter.died_at_ms < since)

    def dead_groups(self, queue_name: str) -> list[dict[str, Any]]:
        """Letters by cause."""
        return groups_of(queue_name, list(self.dead_letters(queue_name)))

    # -- queues --------------------------------------------------------------------------------------------------

    def queue_names(self) -> list[str]:
        """Queues declared here, or with letters."""
        with self._lock:
            with_letters = {name for name, letters in self.broker.dead_letters_by_queue.items() if letters}
        return sorted({*self.declared_queues(), *with_letters})

    def depth(self, queue_name: str) -> Depth:
        """What a queue holds. Raises `QueueNotFound`."""
        ready, delay_queue = self.queue(queue_name), dq_name(queue_name)
        with self._lock:
            delayed = self.queue(delay_queue).qsize() + len(self._delays.get(delay_queue, ()))
            dead = len(self.broker.dead_letters_by_queue.get(queue_name, ()))
        serving = [
            worker
            for worker in self._workers
            if not worker.consumer_whitelist or queue_name in worker.consumer_whitelist
        ]
        return Depth(
            queue=queue_name,
            ready=ready.qsize(),
            unacked=sum(1 for name, _ in list(self._held.values()) if name == queue_name),
            delayed=delayed,
            dead=dead,
            oldest_age_ms=self._age(ready),
            consumers=len(serving),
        )

    def _age(self, ready: Queue[bytes]) -> int | None:
        with ready.mutex:
            body = ready.queue[0] if ready.queue else None
        if body is None:
            return None
        try:
            sent_at = decode(body, self.encoder).message_timestamp
        except Unreadable:
            return None
        return max(0, int(time.time() * 1000 - sent_at))

    def to_stock(self, queue_name: str, *, letters: bool = False) -> Iterator[int]:
        """Nothing to move: everything is in plain Dramatiq's places."""
        return iter(())

    def join(self, queue_name: str, *, timeout: int | None = None, fail_fast: bool | None = None) -> None:
        """Wait until a queue and its delays are empty; as in Dramatiq, raise what a dead letter of the queue raised
        (`fail_fast=False`, or `fail_fast_default` of the broker, turns that off).

        Raises `QueueNotFound`, `QueueJoinTimeout` after `timeout` ms.
        """
        queues = [self.queue(queue_name), self.queue(dq_name(queue_name))]
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while _unfinished(queues):
            for queue in queues:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                with queue.all_tasks_done:
                    if not queue.all_tasks_done.wait_for(partial(_is_done, queue), left):
                        raise QueueJoinTimeout(f"queue {queue_name!r} was not empty after {timeout} ms")
        if self.broker.fail_fast_default if fail_fast is None else fail_fast:
            for proxy in self.broker.dead_letters_by_queue[queue_name]:
                raise (proxy._exception or Exception("Message failed with unknown error")) from None

    def flush(self, queue_name: str) -> None:
        """Drop everything of a queue, delays and letters included; of a delay queue, its delays. Raises
        `QueueNotFound`."""
        names = [queue_name] if q_name(queue_name) != queue_name else [queue_name, dq_name(queue_name)]
        with self._lock:
            for name in names:
                queue = self.queue(name)
                for _ in self._delays.pop(name, []):
                    queue.task_done()
                for _ in iter_queue(queue):
                    queue.task_done()
            if queue_name in names[:1] and len(names) > 1:
                self.broker.dead_letters_by_queue[queue_name].clear()

    def flush_all(self) -> None:
        """Drop everything of every queue."""
        super().flush_all()
        # Letters may lie under names that are not declared (any more).
        for letters in list(self.broker.dead_letters_by_queue.values()):
            letters.clear()

    # -- telling -------------------------------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """That nothing outlives the process."""
        return [
            Finding(
                check="stub_memory",
                broker="stub",
                severity="info",
                verdict="ok",
                found="messages live in this process's memory",
                why="a StubBroker is for tests",
                fix="",
            )
        ]

    def describe(self) -> str:
        """There is nowhere to point to."""
        return "stub (memory)"


def _is_done(queue: Queue[bytes]) -> bool:
    return not queue.unfinished_tasks


def _unfinished(queues: list[Queue[bytes]]) -> int:
    """How many messages are in these queues, at one moment: a message that moves between two is in both for a while,
    and would be seen in neither by who looks at one after the other."""
    with ExitStack() as stack:
        for queue in queues:
            stack.enter_context(queue.mutex)
        return sum(queue.unfinished_tasks for queue in queues)


def _unget(queue: Queue[bytes], bodies: list[bytes]) -> None:
    """Put fetched bodies back to the head of a queue; they have been counted as unfinished all along."""
    with queue.mutex:
        queue.queue.extendleft(reversed(bodies))
        queue.not_empty.notify(len(bodies))
