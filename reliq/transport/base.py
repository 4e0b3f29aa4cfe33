"""The interface between the features and a broker: what a transport promises, and what it is told.

One implementation per kind of broker lives in a folder beside this file and passes `tests/transport/contract.py`.
Callers: `wiring.py` (attach, configure), Dramatiq through the methods replaced on the broker, the desk and the
command line (letters, depths). Features know this interface and never a client library.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from dramatiq.broker import Broker, Consumer, MessageProxy
from dramatiq.encoder import Encoder
from dramatiq.logging import get_logger
from dramatiq.message import Message, get_encoder
from dramatiq.worker import QUEUE_PREFETCH, ConsumerThread

from ..errors import NotSupported, OptionError
from ..message.letter import DeadLetter
from .pace import Pace
from .settlement import Publish, Settlement, Store
from .settling import captured_send, outgoing
from .signals import Signals, ending_message, running_message
from .spare import Spare
from .work_queue import WorkQueue

if TYPE_CHECKING:
    from dramatiq.worker import Worker

B = TypeVar("B", bound=Broker)

#: Suffixes that brokers, Dramatiq and reliq give to queues of their own.
RESERVED_SUFFIXES = (".dead", ".discarded", ".delayed", ".DQ", ".XQ")


class LetterPolicy(Protocol):
    """What the part `DeadLetters` says of dead letters; `KeepAll` where there is no such part."""

    retention_ms: int | None

    def wanted(self, options: Mapping[str, Any], actor: str | None) -> bool:
        """Whether a letter is kept for a message of `actor` with these options."""
        ...

    def announcements(
        self, letter: dict[str, Any], options: Mapping[str, Any], actor: str | None
    ) -> list[Message[Any]]:
        """Messages to send in the same step as the letter, which is given as it may be shown; `options` are the dead
        message's."""
        ...


class KeepAll:
    """Every letter is kept, none is announced."""

    retention_ms: int | None = None

    def wanted(self, options: Mapping[str, Any], actor: str | None) -> bool:
        """Always."""
        return True

    def announcements(
        self, letter: dict[str, Any], options: Mapping[str, Any], actor: str | None
    ) -> list[Message[Any]]:
        """None."""
        return []


@dataclass
class Settings:
    """What the part `Delivery` and `install` decide for a transport. Times in ms."""

    send_timeout_ms: int = 3_000
    lease_ms: int = 10_000
    heartbeat_ms: int | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    unknown_actor_grace_ms: int = 600_000
    queue_type: str | None = None
    version: str | None = None
    redact: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    @property
    def beat_every_ms(self) -> float:
        """How often a worker says that it lives."""
        return self.heartbeat_ms if self.heartbeat_ms is not None else self.lease_ms / 4


@dataclass(frozen=True)
class Depth:
    """How many messages a queue holds, by state. None = cannot be known. `oldest_age_ms` is of the ready ones."""

    queue: str
    ready: int | None
    unacked: int | None
    delayed: int | None
    dead: int | None
    oldest_age_ms: int | None = None
    consumers: int | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that `check` looked at: its verdict is "ok", "failed" or "unknown"; `fix` says what to do."""

    check: str
    broker: str
    severity: str
    verdict: str
    found: str
    why: str
    fix: str


class _Collecting(threading.local):
    #: What is collected on this thread, or None.
    items: list[tuple[Message[Any], int | None]] | None = None


class Transport(ABC, Generic[B]):
    """The reliable way to and from one live broker."""

    #: The word for this kind of broker in letters, logs and tables.
    kind: ClassVar[str]
    #: The largest body, in bytes, that the broker takes; None = no limit that matters.
    max_body: int | None = None
    #: Whether one letter is found without reading the others.
    has_letter_index: ClassVar[bool] = True
    #: Whether the broker has queues of several types to choose from.
    has_queue_types: ClassVar[bool] = False
    #: Whether delays outlive this process.
    durable_delays: ClassVar[bool] = True

    def __init__(self, broker: B) -> None:
        self.broker = broker
        self.settings = Settings()
        self.letters: LetterPolicy = KeepAll()
        self.signals = Signals(broker)
        #: Those that run in this process.
        self.workers: list[Worker] = []
        #: How much they take ahead; None while none runs.
        self.pace: Pace | None = None
        self.spare = Spare(self)
        self._collecting = _Collecting()
        #: True from the moment a worker begins to stop: nothing more is fetched, what cannot settle is let go.
        self.draining = False
        self._prepare: Callable[[Message[Any]], Message[Any]] | None = getattr(broker, "prepare", None)
        self._restore: Callable[[Message[Any]], Message[Any]] | None = getattr(broker, "restore", None)

    # -- attaching ---------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def serves(cls, broker: Broker) -> bool:
        """Whether `broker` is of this transport's kind."""

    @classmethod
    @abstractmethod
    def stock_class(cls) -> type[Broker]:
        """Dramatiq's class for this kind of broker, whose `enqueue` and `consume` this transport stands in for."""

    def attach(self) -> None:
        """Put this transport in the place of the broker's own methods, on the instance. Opens nothing."""
        self._refuse_overrides()
        for name in ("consume", "enqueue", "join", "flush", "flush_all"):
            setattr(self.broker, name, getattr(self, name))
        self.broker.emit_before = self.signals.emit_before  # type: ignore[method-assign]
        self.broker.emit_after = self.signals.emit_after  # type: ignore[method-assign]

    def _refuse_overrides(self) -> None:
        cls, stock = type(self.broker), self.stock_class()
        for name in ("emit_before", "emit_after"):
            if getattr(cls, name) is not getattr(stock, name):
                raise NotSupported(
                    f"{cls.__module__}.{cls.__qualname__} overrides {name!r}, which reliq replaces: what it does there "
                    "would silently not happen. Do it in a middleware instead."
                )
        if self._prepare and self._restore:
            return
        for name in ("enqueue", "consume"):
            if getattr(cls, name) is not getattr(stock, name):
                raise NotSupported(
                    f"{cls.__module__}.{cls.__qualname__} overrides {name!r}, which reliq replaces: what it does "
                    f"there would silently not happen. Define prepare(message) -> Message (called before encoding) "
                    f"and restore(message) -> Message (called after decoding) on the class instead."
                )

    # -- encoding ----------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> Encoder:
        """The application's encoder."""
        return get_encoder()

    def encode(self, message: Message[Any]) -> bytes:
        """The body of `message`."""
        return (self._prepare(message) if self._prepare else message).encode()

    def restored(self, message: Message[Any]) -> Message[Any]:
        """A decoded message as the application knows it."""
        return self._restore(message) if self._restore else message

    @abstractmethod
    def envelope(self, message: Message[Any], delay_ms: int | None) -> Message[Any]:
        """A copy of `message` with what this broker needs in the options of one it is given."""

    def now_ms(self) -> int:
        """The time that delays are counted from, in ms since the epoch, rounded up: a delay is never short."""
        return int(time.time() * 1000) + 1

    # -- sending -----------------------------------------------------------------------------------------------

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Stands in for `Broker.enqueue`. While a message ends on this thread, what its callbacks send joins its
        settle; else it is published, and `ConnectionClosed` raised within `send_timeout` where that fails."""
        captured = self._capturing()
        if captured is not None:
            return self._capture(captured, message, delay)
        collected = self._collecting.items
        if collected is not None:
            collected.append((message, delay))
            return message
        publish = self.outgoing(message, delay)
        self.publish(publish)
        self.broker.emit_after("enqueue", publish.message, delay)
        return publish.message

    def enqueue_many(self, messages: Sequence[tuple[Message[Any], int | None]]) -> list[Message[Any] | Exception]:
        """`enqueue` for many with their delays, in few round trips; one outcome per item, in order: the message as it
        was sent, or why it was not."""
        captured = self._capturing()
        if captured is not None:
            return [self._capture(captured, message, delay) for message, delay in messages]
        outcomes: list[Message[Any] | Exception] = []
        publishes: dict[int, tuple[Publish, int | None]] = {}
        for index, (message, delay) in enumerate(messages):
            outcomes.append(message)
            try:
                publishes[index] = self.outgoing(message, delay), delay
            except Exception as exc:
                outcomes[index] = exc
        told = self.publish_many([publish for publish, _ in publishes.values()])
        for (index, (publish, delay)), error in zip(publishes.items(), told):
            outcomes[index] = publish.message if error is None else error
            if error is None:
                self.broker.emit_after("enqueue", publish.message, delay)
        return outcomes

    @contextmanager
    def collecting(self) -> Iterator[list[tuple[Message[Any], int | None]]]:
        """What this thread enqueues meanwhile is not sent but collected, with its delays: for `enqueue_many`."""
        before = self._collecting.items
        items: list[tuple[Message[Any], int | None]] = []
        self._collecting.items = items
        try:
            yield items
        finally:
            self._collecting.items = before
            if before is not None:
                before.extend(items)
                items.clear()

    def outgoing(self, message: Message[Any], delay: int | None = None) -> Publish:
        """A message as it would be sent: its envelope, `before_enqueue`, its body. Nothing is written."""
        return outgoing(self, message, delay)

    def _capturing(self) -> list[Store] | None:
        """Where sends of this thread go while a message of ours ends on it; else None."""
        ending = ending_message()
        return ending.captured if ending is not None and ending.consumer.transport is self else None

    def _capture(self, captured: list[Store], message: Message[Any], delay: int | None) -> Message[Any]:
        """Keep a send for the settle of the message that is ending."""
        kept = captured_send(self, message, delay)
        captured.append(kept)
        return kept.message if isinstance(kept, Publish) else message

    @abstractmethod
    def publish(self, publish: Publish) -> None:
        """Give one message to the broker. Returns once it is accepted durably; raises `ConnectionClosed` within
        `send_timeout`, saying whether it may have been stored."""

    @abstractmethod
    def publish_many(self, items: list[Publish]) -> list[Exception | None]:
        """Give many, pipelined; one outcome per item, in order."""

    # -- consuming ---------------------------------------------------------------------------------------------

    @abstractmethod
    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> Consumer:
        """Stands in for `Broker.consume`: a consumer that settles verdicts."""

    @abstractmethod
    def settle(self, settlement: Settlement) -> bool:
        """Write a settlement: durably, once, in one atomic step where the broker can. Repeating it is harmless; False
        when the delivery was no longer ours and nothing was written.
        Raises `ConnectionClosed` when the broker cannot be reached."""

    def most_held(self, prefetch: int) -> int | None:
        """The most that the calling consumer may hold of its queue, which was asked for with `prefetch`; None where the
        pace decides alone."""
        return prefetch if QUEUE_PREFETCH or not self.is_paced else None

    @property
    def is_paced(self) -> bool:
        """Whether the pace of the tasks decides how much the calling consumer holds. Not for who consumes by hand, and
        not where actors differ in priority: that acts among what is held, so Dramatiq's number holds there."""
        if self.pace is None or not isinstance(threading.current_thread(), ConsumerThread):
            return False
        return len({actor.priority for actor in self.broker.actors.values()}) < 2

    def others_serve(self, queue_name: str) -> bool:
        """Whether another live worker could take messages of a queue."""
        return False

    def deliveries(self, message: MessageProxy) -> int | None:
        """How often this message was delivered (1 = the first time); None where the broker cannot tell."""
        return None

    def add_worker(self, worker: Worker) -> None:
        """A worker boots in this process, and has no threads yet."""
        worker.work_queue = WorkQueue()  # type: ignore[assignment]
        self._count_workers([*self.workers, worker])

    def remove_worker(self, worker: Worker) -> None:
        """A worker has stopped."""
        self._count_workers([other for other in self.workers if other is not worker])

    def _count_workers(self, workers: list[Worker]) -> None:
        self.workers = workers
        self.pace = self.signals.pace = Pace(sum(each.worker_threads for each in workers)) if workers else None

    def start(self, worker: Worker) -> None:
        """A worker boots: start what runs beside it."""
        self.draining = False

    def drain(self) -> None:
        """The worker begins to stop: fetch nothing more."""
        self.draining = True

    def stop(self, worker: Worker) -> None:
        """The worker has stopped: give back what it holds, end what `start` started."""

    def disconnect(self) -> None:
        """Close the connections that sends and the desk opened; they open again when needed. For a process that goes
        on after its last send, such as a test or a command run inside a program."""

    # -- dead letters ------------------------------------------------------------------------------------------

    @abstractmethod
    def dead_letters(self, queue_name: str) -> Iterator[DeadLetter]:
        """Every letter of a queue, oldest death first, reliq's and plain Dramatiq's; reading changes nothing."""

    @abstractmethod
    def find_letter(self, letter_id: str, queue_name: str | None = None) -> DeadLetter | None:
        """The letter with this id or this message id, looked for in one queue or in all."""

    @abstractmethod
    def discard(self, letter: DeadLetter) -> bool:
        """Delete a letter for good; False if it was gone already."""

    @abstractmethod
    def replay(self, letter: DeadLetter, publish: Publish) -> bool:
        """Give the letter's message back to its queue and remove the letter; False if it was gone already."""

    @abstractmethod
    def dead_groups(self, queue_name: str) -> list[dict[str, Any]]:
        """The letters of a queue by cause: dicts of fingerprint, queue, actor, error, reason, count, first_seen_ms,
        last_seen_ms, sample (a letter id)."""

    # -- queues ------------------------------------------------------------------------------------------------

    @abstractmethod
    def queue_names(self) -> list[str]:
        """The queues this broker holds or this application declares, sorted."""

    @abstractmethod
    def depth(self, queue_name: str) -> Depth:
        """What a queue holds."""

    @abstractmethod
    def to_stock(self, queue_name: str, *, letters: bool = False) -> Iterator[int]:
        """Give delays (and letters) back to plain Dramatiq, in steps that may be broken off and repeated; yields
        how many each step moved."""

    @abstractmethod
    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Wait until the queue is empty, delays included. For tests."""

    @abstractmethod
    def flush(self, queue_name: str) -> None:
        """Drop everything of a queue, delays and letters included. For tests."""

    def flush_all(self) -> None:
        """Drop everything of every declared queue. For tests."""
        for queue_name in self.declared_queues():
            self.flush(queue_name)

    def declared_queues(self) -> list[str]:
        """The plain queues this application declares."""
        return sorted(set(self.broker.get_declared_queues()) - set(self.broker.get_declared_delay_queues()))

    # -- telling -----------------------------------------------------------------------------------------------

    @abstractmethod
    def check(self) -> list[Finding]:
        """What `doctor` and the boot line report of the broker."""

    @abstractmethod
    def describe(self) -> str:
        """Where the broker is, fit for a log: no password."""

    def shown(self, letter: dict[str, Any]) -> dict[str, Any]:
        """A letter as it may be shown, logged or sent on: what `redact` makes of a copy of it. A redact that fails, or
        returns no dict, shows only what says nothing."""
        redact = self.settings.redact
        if redact is None:
            return letter
        try:
            redacted = redact(deepcopy(letter))
            if isinstance(redacted, dict):
                return redacted
            raise TypeError(f"redact must return a dict, got {type(redacted).__name__}")
        except Exception:
            get_logger(__name__).critical(
                "redact failed; letter %s is shown without its content.", letter["id"], exc_info=True
            )
        return {key: letter[key] for key in ("id", "queue", "actor", "reason", "died_at")}


def running_broker() -> Broker | None:
    """The broker of the message that runs on this thread, or None."""
    running = running_message()
    return running.consumer.transport.broker if running is not None else None


def check_queue_name(queue_name: str) -> None:
    """Refuse the names of queues that are made beside others."""
    for suffix in RESERVED_SUFFIXES:
        if queue_name.endswith(suffix):
            raise OptionError(
                f"queue {queue_name!r}: names ending in {suffix!r} are reserved for the queues made beside it; "
                f"rename the queue, for instance {queue_name[: -len(suffix)] or 'work'!r}."
            )
