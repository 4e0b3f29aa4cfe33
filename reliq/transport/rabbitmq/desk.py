"""Reading and moving what lies in RabbitMQ: letters, depths, what goes back to plain Dramatiq, what tests drop.

Callers: `RabbitTransport`, for the desk and the command line. What is moved is published, confirmed, and only then
removed where it was: a crash between the two leaves it in both places, never in none.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any

from dramatiq.common import dq_name, xq_name
from dramatiq.errors import ConnectionClosed

from ...errors import NotSupported
from ...message.letter import DeadLetter
from ..base import RESERVED_SUFFIXES, Depth, Finding
from ..delivered import decode
from ..settlement import Publish
from . import topology
from .control import Step
from .copies import AGAIN
from .errors import LOCKED, NOT_FOUND, Refusal
from .frames import user_properties
from .letters import Death, death_of, groups_of, letter_of
from .management import Management
from .publisher import Batch, Frame
from .reading import Reading
from .subscription import Arrival
from .topology import Ladder, dead_name, target_of

if TYPE_CHECKING:
    from .transport import RabbitTransport

#: How many messages one step gives back.
PAGE = 200
#: How many rounds a flush makes until nothing is left, while messages are still on their way to it.
MOST_FLUSHES = 20


class _Letters:
    """The letters of one queue, held while they are looked at: ours and the stock ones."""

    def __init__(self, transport: RabbitTransport, queue_name: str) -> None:
        self._transport = transport
        self._readings = {
            "reliq": Reading(transport.broker.parameters, dead_name(queue_name)),
            "stock": Reading(transport.broker.parameters, xq_name(queue_name)),
        }
        self._queue_name = queue_name
        #: Letter -> where it lies: twice where a worker died after it had stored it, and its message died again.
        self._places: dict[str, list[tuple[Reading, Arrival]]] = {}

    def __iter__(self) -> Iterator[DeadLetter]:
        letters: list[DeadLetter] = []
        twins: Counter[str] = Counter()
        deaths: dict[Death, tuple[str, bool]] = {}
        for source, reading in self._readings.items():
            reading.__enter__()
            for arrival in reading.arrivals():
                letter = letter_of(arrival, self._queue_name, source, self._opened, twins)
                marked = AGAIN in (arrival.properties.headers or ())
                first, was_marked = deaths.setdefault(death_of(letter), (letter.id, marked))
                is_again = first != letter.id and (marked or was_marked)
                places = self._places.setdefault(first if is_again else letter.id, [])
                places.append((reading, arrival))
                if len(places) == 1:
                    letters.append(letter)
        letters.sort(key=lambda letter: (letter.died_at_ms or 0, letter.id))
        return iter(letters)

    def _opened(self, body: bytes) -> Any:
        return self._transport.restored(decode(body, self._transport.encoder))

    def remove(self, letter: DeadLetter) -> bool:
        places = self._places.pop(letter.id, [])
        for reading, arrival in places:
            reading.remove(arrival.tag)
        return bool(places)

    def properties(self, letter: DeadLetter) -> Any:
        """What lies beside its body; None where it is not there any more."""
        places = self._places.get(letter.id)
        return places[0][1].properties if places else None

    def close(self) -> None:
        for reading in self._readings.values():
            reading.close()


class RabbitDesk:
    """The desk's side of the RabbitMQ transport."""

    def __init__(self, transport: RabbitTransport) -> None:
        self._transport = transport
        #: Letters that are being looked at, by queue.
        self._open: dict[str, _Letters] = {}
        #: Set by the command line where a management URL is known.
        self.management: Management | None = None

    # -- letters ---------------------------------------------------------------------------------------------------

    def dead_letters(self, queue_name: str) -> Iterator[DeadLetter]:
        """Ours and plain Dramatiq's, by time of death. They are held until the last one was taken, or the iterator is
        closed; nobody else can read them meanwhile."""
        letters = _Letters(self._transport, queue_name)
        try:
            found = iter(letters)
            self._open[queue_name] = letters
            yield from found
        finally:
            if self._open.get(queue_name) is letters:
                del self._open[queue_name]
            letters.close()

    def find_letter(self, letter_id: str, queue_name: str | None = None) -> DeadLetter | None:
        """By letter id, else by message id; every letter is read."""
        by_message = None
        for queue in [queue_name] if queue_name is not None else self.queue_names():
            for letter in list(self.dead_letters(queue)):
                if letter.id == letter_id:
                    return letter
                if by_message is None and letter.message is not None and letter.message.message_id == letter_id:
                    by_message = letter
        return by_message

    def end_letter(self, letter: DeadLetter, publish: Publish | None) -> bool:
        """Publish what it becomes, then remove it; False if it is not there any more."""
        letters = self._open.get(letter.queue)
        if letters is not None:
            return self._end(letters, letter, publish)
        letters = _Letters(self._transport, letter.queue)
        try:
            iter(letters)
            return self._end(letters, letter, publish)
        finally:
            letters.close()

    def _end(self, letters: _Letters, letter: DeadLetter, publish: Publish | None) -> bool:
        properties = letters.properties(letter)
        if properties is None:
            return False
        if publish is not None:
            self._transport.publish_with(publish, properties)
        return letters.remove(letter)

    def dead_groups(self, queue_name: str) -> list[dict[str, Any]]:
        """Letters by cause."""
        return groups_of(list(self.dead_letters(queue_name)), queue_name)

    # -- queues ----------------------------------------------------------------------------------------------------

    def queue_names(self) -> list[str]:
        """Declared here, and with a management URL those of the vhost; also a catcher that holds something."""
        names = set(self._transport.declared_queues())
        if self.management is not None:
            names.update(map(_plain_name, self.management.queues()))
        elif not names:
            raise NotSupported(
                "RabbitMQ does not list queues over AMQP; name one (--queue), give the management API "
                "(--management-url http://user:password@host:15672), or the application (-b module)."
            )
        names = {name for name in names if not name.startswith(topology.OURS)}
        caught = [name for name in (Ladder("classic").unrouted, Ladder("quorum").unrouted) if self._ready(name)]
        return [*sorted(names), *caught]

    def has_queue(self, queue_name: str) -> bool:
        """Whether it stands, or its dead letters do."""
        return any(it is not None for it in self._look_at(queue_name, dead_name(queue_name), xq_name(queue_name)))

    def consumers(self, queue_name: str) -> int:
        """How many consume a queue, on whatever connection."""
        (itself,) = self._look_at(queue_name)
        return int(itself.consumer_count) if itself is not None else 0

    def depth(self, queue_name: str) -> Depth:
        """Ready and dead as the broker counts them, and of what is unacked as much as can be known: all of it if this
        process is the only one that consumes, or by the management API."""
        waiting, held = self._transport.intake.holding(queue_name)
        itself, *dead = self._look_at(queue_name, dead_name(queue_name), xq_name(queue_name))
        ready = itself.message_count if itself is not None else 0
        consumers = itself.consumer_count if itself is not None else 0
        alone = consumers and consumers == len(self._transport.intake.of(queue_name))
        unacked = held if alone or self._transport.has_worker else None
        if self.management is not None:
            unacked = self.management.unacked(queue_name, waiting)
        return Depth(
            queue=queue_name,
            ready=ready + waiting,
            unacked=unacked,
            delayed=None,
            dead=sum(each.message_count for each in dead if each is not None),
            consumers=consumers,
        )

    def _look_at(self, *queue_names: str) -> list[Any]:
        """The broker's word on each queue, in one round where all are there; None for one that is not, or is not for
        us."""
        try:
            return list(self._transport.ask([topology.passive(name) for name in queue_names]))
        except Refusal as exc:
            if exc.code not in (NOT_FOUND, LOCKED):
                raise
        # The first that is not there ends the round.
        return [None] if len(queue_names) == 1 else [self._look_at(name)[0] for name in queue_names]

    def _ready(self, queue_name: str) -> int:
        (answer,) = self._look_at(queue_name)
        return answer.message_count if answer is not None else 0

    def is_idle(self, queue_name: str) -> bool:
        """Whether nothing is ready, held here, or delayed from here."""
        if self._transport.intake.owes(queue_name) or self._transport.awaited.any(queue_name):
            return False
        return not any(it is not None and it.message_count for it in self._look_at(queue_name, dq_name(queue_name)))

    def flush(self, queue_name: str) -> None:
        """Purge the queue and those beside it, and take what is on its way to it off the ladder."""
        self._transport.awaited.forget(queue_name)
        self._flush_delays(queue_name)
        beside = [dq_name(queue_name), xq_name(queue_name), dead_name(queue_name)]
        for name in beside:
            self._purge(name)
        timeout_s = self._transport.settings.send_timeout_ms / 1000
        for _ in range(MOST_FLUSHES):
            self._purge(queue_name)
            if not self._transport.intake.drop_waiting(queue_name, timeout_s) and not self._ready(queue_name):
                return

    def _purge(self, queue_name: str) -> None:
        try:
            self._transport.ask([Step("queue_purge", {"queue": queue_name})])
        except Refusal as exc:
            if exc.code != NOT_FOUND:
                raise

    def _flush_delays(self, queue_name: str) -> None:
        """Level by level, until a look finds nothing more: messages come down meanwhile."""
        for ladder in (Ladder("classic"), Ladder("quorum")):
            while sum(self._flush_level(level, queue_name) for level in self._levels_in_use(ladder)):
                continue

    def _flush_level(self, level: str, queue_name: str) -> int:
        with Reading(self._transport.broker.parameters, level) as reading:
            unwanted = [
                arrival.tag for arrival in reading.arrivals() if target_of(level, arrival.routing_key) == queue_name
            ]
            reading.remove(*unwanted)
        return len(unwanted)

    def _levels_in_use(self, ladder: Ladder) -> list[str]:
        """Those that hold messages now, the longest first."""
        if self._look_at(ladder.unrouted) == [None]:
            return []
        levels = ladder.levels()
        return [level for level, it in zip(levels, self._look_at(*levels)) if it is not None and it.message_count]

    # -- what is unrouted, and leaving -------------------------------------------------------------------------------

    def drain_unrouted(self, known: Callable[[str], bool]) -> tuple[int, int]:
        """Give what lost its queue to the queue of that name, which is declared again. What is not `known` is left.
        Returns how many were moved and left."""
        moved = left = 0
        for ladder in (Ladder("classic"), Ladder("quorum")):
            if not self._ready(ladder.unrouted):
                continue
            with Reading(self._transport.broker.parameters, ladder.unrouted) as reading:
                while page := list(islice(iter(reading.take, None), PAGE)):
                    homes = {each.tag: target_of(each.exchange, each.routing_key) for each in page}
                    ours = [each for each in page if known(homes[each.tag])]
                    for queue_name in {homes[each.tag] for each in ours}:
                        self._transport.declared.forget(queue_name)
                    moved += self._move(reading, ours, [self._sent_home(each, homes[each.tag]) for each in ours])
                    left += len(page) - len(ours)
        return moved, left

    def _sent_home(self, arrival: Arrival, queue_name: str) -> Frame:
        """A message that lost its queue, on its way to it: declared again, and what leads to it."""
        declared = self._transport.declared
        exchange, key = "", queue_name
        if arrival.exchange == topology.DEAD_EXCHANGE:
            exchange = declared.dead(queue_name)
            key = queue_name if exchange else dead_name(queue_name)
        else:
            declared.delays(queue_name)
        return Frame(exchange, key, arrival.body, user_properties(arrival.properties))

    def to_stock(self, queue_name: str, *, letters: bool) -> Iterator[int]:
        """What is unrouted; delays end on the plain queue by themselves. Letters go to `.XQ`, where plain Dramatiq
        deletes them after 7 days."""
        caught = queue_name in (Ladder("classic").unrouted, Ladder("quorum").unrouted)
        moved, _ = self.drain_unrouted(lambda name: caught or name == queue_name)
        if moved:
            yield moved
        if not letters:
            return
        with Reading(self._transport.broker.parameters, dead_name(queue_name)) as reading:
            arrivals, to = reading.arrivals(), xq_name(queue_name)
            while page := list(islice(arrivals, PAGE)):
                to_stock = [Frame("", to, each.body, user_properties(each.properties)) for each in page]
                yield self._move(reading, page, to_stock)

    def _move(self, reading: Reading, page: list[Arrival], frames: list[Frame]) -> int:
        """Publish what each becomes, remove those that are stored; returns how many. Raises `ConnectionClosed` where
        one is not."""
        if not page:
            return 0
        batch, timeout_s = Batch(frames), self._transport.settings.send_timeout_ms / 1000
        self._transport.publisher.submit(batch)
        if not batch.done.wait(timeout_s):
            self._transport.publisher.give_up(batch, timeout_s)
        stored = [each.tag for each, outcome in zip(page, batch.outcomes) if outcome is None]
        reading.remove(*stored)
        if batch.failure is not None:
            raise ConnectionClosed(f"moving from {reading.queue_name!r}: {batch.failure}")
        return len(stored)

    def delays_until(self) -> datetime | None:
        """By when the last delay on the ladder will have come down; None when none waits."""
        longest_ms = 0
        for ladder in (Ladder("classic"), Ladder("quorum")):
            for level in self._levels_in_use(ladder):
                longest_ms = max(longest_ms, topology.UNIT_MS << (int(level.rpartition(".")[2]) + 1))
        return datetime.now(timezone.utc) + timedelta(milliseconds=longest_ms) if longest_ms else None

    def expire(self, queue_name: str, retention_ms: int) -> int:
        """Delete letters of ours that are older than the retention."""
        deleted, since_ms = 0, time.time() * 1000 - retention_ms
        twins: Counter[str] = Counter()
        if not self._ready(dead_name(queue_name)):
            return 0
        with Reading(self._transport.broker.parameters, dead_name(queue_name)) as reading:
            while (arrival := reading.take()) is not None:
                letter = letter_of(arrival, queue_name, "reliq", decode_plain, twins)
                if letter.died_at_ms is None or letter.died_at_ms >= since_ms:
                    break  # the oldest come first
                reading.remove(arrival.tag)
                deleted += 1
        return deleted

    # -- telling -----------------------------------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """What is known of the server without changing anything on it."""
        transport = self._transport
        try:
            transport.ask([Step("exchange_declare", {"exchange": "amq.direct", "passive": True})])
            reached, verdict = f"RabbitMQ {'.'.join(map(str, transport.server_version or ()))}", "ok"
        except ConnectionClosed as exc:
            reached, verdict = str(exc), "unknown"
        findings = [
            Finding(
                check="rabbitmq_reached",
                broker="rabbitmq",
                severity="critical",
                verdict=verdict,
                found=reached,
                why="nothing can be sent or consumed",
                fix="start it, or correct the broker's URL",
            )
        ]
        for name, what in sorted(transport.declared.troubles.items()):
            findings.append(
                Finding(
                    check="rabbitmq_declared",
                    broker="rabbitmq",
                    severity="critical",
                    verdict="failed",
                    found=f"{name} is not as reliq needs it",
                    why=what,
                    fix="see docs/rabbitmq.md",
                )
            )
        return findings


def decode_plain(body: bytes) -> Any:
    """No application's encoder: the record of a letter is JSON or beside it."""
    raise ValueError("read by the record alone")


def _plain_name(queue_name: str) -> str:
    for suffix in RESERVED_SUFFIXES:
        if queue_name.endswith(suffix):
            return queue_name[: -len(suffix)]
    return queue_name
