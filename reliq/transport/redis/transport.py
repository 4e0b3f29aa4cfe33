"""Redis: what `Transport` promises, each step one script.

Callers: `wiring.py`, Dramatiq through the methods put on the broker, the desk. Accepted durably means: in the
server's memory and its AOF buffer; what a power failure or a failover can still lose is said in `docs/guarantees.md`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import redis
from dramatiq.broker import Broker, Consumer
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import dq_name
from dramatiq.errors import ConnectionClosed, QueueJoinTimeout
from dramatiq.logging import get_logger
from dramatiq.message import Message

from ...message.letter import DeadLetter
from ..base import Depth, Finding, Transport
from ..gate import AwayGate
from ..room import Room
from ..settlement import Publish, Settlement
from .barriers import count_once
from .clock import ServerClock, wall_ms
from .consumer import MOST_PER_FETCH, consumer_for
from .desk import RedisDesk
from .errors import REDIS_ERRORS, closed, is_answer, is_full, is_unknown_command, may_have_arrived
from .flusher import Flusher
from .items import settlement_arguments, store_arguments
from .keeper import Keeper
from .scripts import Scripts, private_client

if TYPE_CHECKING:
    from dramatiq.worker import Worker

#: A worker of plain Dramatiq beats with each of its commands; an idle one about once a second. ms.
STOCK_ALIVE_MS = 5_000
#: One script stores at most this many messages, so that it never holds the server for long.
MOST_PER_PUBLISH = 100


class RedisTransport(Transport[RedisBroker]):
    """The transport of `RedisBroker` and its subclasses."""

    kind = "redis"

    def __init__(self, broker: RedisBroker) -> None:
        super().__init__(broker)
        self._logger = get_logger(__name__, type(self))
        self._pid = os.getpid()
        self._gate = AwayGate()
        self._clock = ServerClock()
        self._sender: Scripts | None = None
        self._steps: Scripts | None = None
        self._waiter: Any = None
        self._held: dict[str, set[str]] = {}
        self._held_lock = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}
        self._keepers: dict[Worker, Keeper] = {}
        self._polls = False
        self._turn = threading.Lock()
        #: Taken by all that this process holds of plain queues.
        self.room = Room()
        #: Set once the server knows that this worker lives; nothing is fetched before.
        self.alive = threading.Event()
        #: Set while no worker runs, so that a consumer that waits is not waited for.
        self.stopped = threading.Event()
        self.flusher = Flusher(self)
        self._desk = RedisDesk(self)

    @classmethod
    def serves(cls, broker: Broker) -> bool:
        """Whether it is a `RedisBroker`."""
        return isinstance(broker, RedisBroker)

    @classmethod
    def stock_class(cls) -> type[Broker]:
        """Dramatiq's RedisBroker."""
        return RedisBroker

    # -- clients -------------------------------------------------------------------------------------------------

    @property
    def broker_id(self) -> str:
        """The name under which this process holds messages."""
        return str(self.broker.broker_id)

    @property
    def namespace(self) -> str:
        """The prefix of every key."""
        return str(self.broker.namespace)

    @property
    def sender(self) -> Scripts:
        """Scripts over the client that sends: its timeout leaves room for a second try within `send_timeout`."""
        if self._sender is None:
            client = private_client(self.broker.client, timeout_s=self.settings.send_timeout_ms * 0.7 / 1000)
            self._sender = Scripts(client, self.namespace)
        return self._sender

    @property
    def scripts(self) -> Scripts:
        """Scripts over the client of this worker's own steps."""
        if self._steps is None:
            timeout_s = min(2.0, self.settings.lease_ms / 4000)
            self._steps = Scripts(private_client(self.broker.client, timeout_s=timeout_s), self.namespace)
        return self._steps

    # -- time ----------------------------------------------------------------------------------------------------

    def heard_time(self, server_ms: int, asked_ms: int) -> None:
        """Learn how far the server's clock is ahead of ours, which said `asked_ms` before the request left."""
        self._clock.heard(server_ms, asked_ms=asked_ms, heard_ms=wall_ms())

    def now_ms(self) -> int:
        """The server's time as far as it is known: delays are promoted on its clock."""
        return super().now_ms() + (self._clock.lead_ms or 0)

    # -- sending -------------------------------------------------------------------------------------------------

    def envelope(self, message: Message[Any], delay_ms: int | None) -> Message[Any]:
        """The form of plain Dramatiq: an id of its own, and for a delay the name of the delay queue and the eta."""
        options: dict[str, Any] = {"redis_message_id": str(uuid4())}
        if delay_ms is None:
            return message.copy(options=options)
        if self._clock.lead_ms is None and self._gate.away is None:
            self._ask_time()
        options["eta"] = self.now_ms() + delay_ms
        return message.copy(queue_name=dq_name(message.queue_name), options=options)

    def _ask_time(self) -> None:
        asked_ms = wall_ms()
        try:
            seconds, micros = self.sender.client.time()
            self.heard_time(int(seconds) * 1000 + int(micros) // 1000, asked_ms)
        except REDIS_ERRORS as exc:
            self._gate.failed(f"{type(exc).__name__}: {exc}")
            raise ConnectionClosed(
                f"asking Redis for its time: nothing was stored, it cannot be reached: {exc}"
            ) from exc

    def publish(self, publish: Publish) -> None:
        """Store one message; raises `ConnectionClosed` within `send_timeout`."""
        self._send(store_arguments([publish]), f"sending to queue {publish.message.queue_name!r}")

    def publish_many(self, items: list[Publish]) -> list[Exception | None]:
        """Store many, 100 per script; what one script could not store fails together."""
        outcomes: list[Exception | None] = []
        for start in range(0, len(items), MOST_PER_PUBLISH):
            chunk = items[start : start + MOST_PER_PUBLISH]
            try:
                self._send(store_arguments(chunk), f"sending {len(chunk)} messages")
                outcomes.extend([None] * len(chunk))
            except ConnectionClosed as exc:
                outcomes.extend([exc] * len(chunk))
        return outcomes

    def _send(self, arguments: list[Any], doing: str) -> None:
        refused = self._gate.refuses()
        if refused is not None:
            raise ConnectionClosed(f"{doing}: not stored, Redis has been away since an earlier send ({refused})")
        was_away = self._gate.away is not None
        give_up = time.monotonic() + self.settings.send_timeout_ms * 0.25 / 1000
        arrived = False
        while True:
            asked_ms = wall_ms()
            try:
                now = self.sender.raw("publish", arguments)
                self._gate.passed()
                self.heard_time(int(now), asked_ms)
                return
            except REDIS_ERRORS as exc:
                arrived = arrived or may_have_arrived(exc)
                if is_answer(exc):
                    # Only an answer that it cannot store more is worth a word of its own; all leave as one type.
                    what = "Redis is full" if is_full(exc) else "Redis refused it"
                    raise ConnectionClosed(f"{doing}: not stored, {what}: {exc}") from exc
                # Tried again only if nothing can have arrived: a worker may have run and acked it already, and then
                # nothing would show that a second one is a copy.
                if not arrived and not was_away and time.monotonic() < give_up:
                    time.sleep(0.02)
                    continue
                stored = "it may have been stored" if arrived else "not stored"
                if was_away or time.monotonic() >= give_up or not self._answers():
                    self._gate.failed(f"{type(exc).__name__}: {exc}")
                raise ConnectionClosed(f"{doing}: {stored}, Redis cannot be reached: {exc}") from exc

    def _answers(self) -> bool:
        """Whether the server is there: one reply that was lost does not make it away for the sends that follow."""
        try:
            return bool(self.sender.client.ping())
        except REDIS_ERRORS:
            return False

    # -- consuming -----------------------------------------------------------------------------------------------

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5_000) -> Consumer:
        """A consumer of our own."""
        return consumer_for(self, queue_name, self.most_held(prefetch), timeout)

    @contextmanager
    def shared_places(self, timeout_s: float) -> Iterator[int]:
        """How many messages this process may still take, waited for up to `timeout_s`; one queue takes at a time, so
        that many queues fetch as many at once as one does."""
        pace = self.pace
        if pace is None:
            yield MOST_PER_FETCH
        elif not self._turn.acquire(timeout=timeout_s):
            yield 0
        else:
            try:
                self.room.wait(pace.refill_at, timeout_s)
                yield pace.window - len(self.room)
            finally:
                self._turn.release()

    @contextmanager
    def held(self, queue_name: str) -> Iterator[set[str]]:
        """The ids of a queue that this process knows it holds; one fetch at a time may add to them."""
        with self._held_lock:
            lock = self._fetching.setdefault(queue_name, threading.Lock())
            ids = self._held.setdefault(queue_name, set())
        with lock:
            yield ids

    def forget(self, queue_name: str, tokens: list[str]) -> None:
        """These are no longer held here, or must be looked for again."""
        held = self._held.get(queue_name)
        if held is not None:
            held.difference_update(tokens)

    def wait_for_message(self, queue_name: str, timeout_s: float) -> bool:
        """Wait until a queue has a message, taking nothing: its head is moved to its head. False: none has come."""
        key = f"{self.namespace}:{queue_name}"
        if not self._polls:
            if self._waiter is None:
                self._waiter = private_client(self.broker.client, timeout_s=timeout_s + 2.0)
            try:
                return self._waiter.blmove(key, key, timeout_s, "LEFT", "LEFT") is not None
            except REDIS_ERRORS as exc:
                if not is_answer(exc):
                    raise closed(exc, f"waiting on queue {queue_name!r}") from exc
                # A full server refuses it though it stores nothing, and somebody may have unblocked it.
                self._polls = is_unknown_command(exc)  # before 6.2
        self.stopped.wait(min(0.02, timeout_s))
        return True

    def ack_ids(self, tokens: dict[str, list[str]]) -> None:
        """Remove messages that are done, by queue."""
        arguments: list[Any] = [self.broker_id]
        for queue_name, several in tokens.items():
            arguments += [queue_name, len(several), *several]
        self.scripts.run("ack", arguments, f"acking on queue {', '.join(map(repr, tokens))}")
        for queue_name, several in tokens.items():
            self.forget(queue_name, several)

    def requeue_ids(self, queue_name: str, tokens: list[str]) -> None:
        """Give messages back to the head of their queue."""
        self.scripts.run("requeue", [self.broker_id, queue_name, *tokens], f"returning to queue {queue_name!r}")
        self.forget(queue_name, tokens)

    def others_serve(self, queue_name: str) -> bool:
        """Whether another worker lives that serves a queue, or one of plain Dramatiq that may."""
        arguments = [self.broker_id, queue_name, STOCK_ALIVE_MS]
        return bool(self.scripts.run("others", arguments, f"looking for other workers of queue {queue_name!r}"))

    def relocate(self, queue_name: str, moves: list[tuple[str, float]]) -> None:
        """Move fetched messages that are not due into our delays."""
        plain = queue_name.removesuffix(".DQ")
        flat: list[Any] = [part for move in moves for part in move]
        self.scripts.run("relocate", [self.broker_id, queue_name, plain, *flat], f"putting off on queue {plain!r}")
        self.forget(queue_name, [token for token, _ in moves])

    def settle(self, settlement: Settlement) -> bool:
        """Remove the original and store what it becomes, in one script."""
        done = self.scripts.run(
            "settle",
            settlement_arguments(self.namespace, self.broker_id, settlement),
            f"settling on queue {settlement.queue_name!r}",
        )
        self.forget(settlement.queue_name, [settlement.token])
        return bool(done)

    # -- beside a worker -----------------------------------------------------------------------------------------

    def start(self, worker: Worker) -> None:
        """Start the keeper and, for the first worker of this process, the flusher."""
        super().start(worker)
        if os.getpid() != self._pid:
            # Forked after the broker was made: two processes of one name would take each other's messages for lost.
            self._pid, self.broker.broker_id = os.getpid(), str(uuid4())
        self.stopped.clear()
        for middleware in self.broker.middleware:
            count_once(middleware)
        if not self._keepers:
            self.flusher.start()
        keeper = self._keepers[worker] = Keeper(self, worker)
        keeper.start()

    @property
    def has_worker(self) -> bool:
        """Whether a worker runs in this process; without one, who consumes does so by hand."""
        return bool(self._keepers)

    def stop(self, worker: Worker) -> None:
        """Send what is owed, return what is left, and leave no trace of a live worker."""
        keeper = self._keepers.pop(worker, None)
        if keeper is None:
            return
        keeper.stop()
        if self._keepers:
            # Another worker of this process goes on, under the same name.
            self.draining = False
            return
        queues = keeper.queues
        self.stopped.set()
        self.flusher.stop()
        self.alive.clear()
        self.draining = False
        try:
            returned = self.scripts.run(
                "reap", [10**12, self.broker_id, 10**15, *queues], "saying that this worker stops"
            )
        except ConnectionClosed as exc:
            self._logger.warning("Others will find this worker dead when its lease runs out: %s", exc)
            return
        self._held.clear()
        self.room = Room()
        if returned:
            self._logger.info("%d messages that were not done are back in their queues.", returned)

    def disconnect(self) -> None:
        """Close the sending client's connections, and the application's client's."""
        clients = [self.broker.client, *([self._sender.client] if self._sender is not None else [])]
        for client in clients:
            pool = getattr(client, "connection_pool", None)
            if pool is not None:
                pool.disconnect()

    # -- dead letters and queues: see desk.py -------------------------------------------------------------------

    def dead_letters(self, queue_name: str) -> Iterator[DeadLetter]:
        """Letters of a queue, oldest death first."""
        return self._desk.dead_letters(queue_name)

    def find_letter(self, letter_id: str, queue_name: str | None = None) -> DeadLetter | None:
        """A letter by its id or its message's."""
        return self._desk.find_letter(letter_id, queue_name)

    def discard(self, letter: DeadLetter) -> bool:
        """Delete a letter."""
        return self._desk.end_letter("discard", letter, [])

    def replay(self, letter: DeadLetter, publish: Publish) -> bool:
        """Give a letter's message back to its queue, in the step that removes the letter."""
        return self._desk.end_letter("replay", letter, [publish])

    def dead_groups(self, queue_name: str) -> list[dict[str, Any]]:
        """Letters by cause, from the index."""
        return self._desk.dead_groups(queue_name)

    def queue_names(self) -> list[str]:
        """Queues declared here or found in the namespace."""
        return self._desk.queue_names()

    def depth(self, queue_name: str) -> Depth:
        """What a queue holds."""
        return self._desk.depth(queue_name)

    def to_stock(self, queue_name: str, *, letters: bool = False) -> Iterator[int]:
        """Delays, and letters if asked, in steps."""
        return self._desk.to_stock(queue_name, letters=letters)

    def join(self, queue_name: str, *, interval: int = 100, timeout: int | None = None) -> None:
        """Wait until the queue and its delays are empty. Raises `QueueJoinTimeout`."""
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while self._desk.unfinished(queue_name):
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(queue_name)
            time.sleep(interval / 1000)

    def flush(self, queue_name: str) -> None:
        """Drop everything of a queue."""
        self._desk.flush(queue_name)

    # -- telling -------------------------------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """Whether this server may lose what it accepts."""
        return self._desk.check()

    def describe(self) -> str:
        """Where the server is, without a password."""
        pool = getattr(self.broker.client, "connection_pool", None)
        options = getattr(pool, "connection_kwargs", {})
        if isinstance(pool, redis.sentinel.SentinelConnectionPool):
            return f"redis sentinel {pool.service_name}/{options.get('db', 0)}"
        if "path" in options:
            return f"unix://{options['path']}?db={options.get('db', 0)}"
        if "host" not in options:
            return "redis"
        return f"redis://{options['host']}:{options.get('port', 6379)}/{options.get('db', 0)}"
