"""What reliq declares on a RabbitMQ server beside the queues of plain Dramatiq, as steps; pure.

- The ladder: 24 levels, each an exchange and a queue of one name. The queue of level n holds a message for
  2^n * 250 ms and then passes it on (TTL and dead-letter exchange). A delay is a number of ticks of 250 ms, written in
  binary at the head of the routing key: where its bit is set a message waits on that level, else it falls through.
  Below the last level a topic exchange leads to the queue that the key ends in. So delays of any length wait in the
  broker side by side, and none waits behind a longer one.
- `reliq.dlx` leads to `<queue>.dead`, where dead letters are kept without a time limit.
- `reliq.unrouted` catches what either of them cannot route, because its queue was deleted meanwhile.

The ladder is of quorum queues whatever kind a message's own queue is: a hop from one of them to the next is confirmed.
Where a server has no such queues, or the application wants none, it is of classic ones. Both have names of their own,
and so have their catchers: a queue's kind can never be changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .control import Step

QueueType = Literal["classic", "quorum"]

LEVELS = 24
UNIT_MS = 250
#: The longest delay of the ladder, some 48 days; a longer one comes back to a worker and goes up again.
LONGEST_MS = ((1 << LEVELS) - 1) * UNIT_MS
DEAD_EXCHANGE = "reliq.dlx"
#: The first RabbitMQ whose quorum queues have a TTL and dead-letter with a confirm.
DEAD_LETTERS_SAFELY = (3, 10)
#: All exchanges and queues of ours begin so: what a user's rights must cover.
OURS = "reliq."


@dataclass(frozen=True)
class Ladder:
    """The names of one kind's ladder. Another unit or number of levels needs another version in the prefix."""

    kind: QueueType

    @property
    def prefix(self) -> str:
        """Of every level's name."""
        return "reliq.delay.v1q" if self.kind == "quorum" else "reliq.delay.v1"

    @property
    def unrouted(self) -> str:
        """Exchange and queue that catch what comes off the ladder and has no queue."""
        return "reliq.unrouted.q" if self.kind == "quorum" else "reliq.unrouted"

    @property
    def out(self) -> str:
        """The exchange below the last level."""
        return f"{self.prefix}.out"

    def level(self, number: int) -> str:
        """Exchange and queue of one level."""
        return f"{self.prefix}.{number:02d}"

    def levels(self) -> list[str]:
        """From the longest to the shortest, the way that a message takes."""
        return [self.level(number) for number in reversed(range(LEVELS))]

    def route(self, delay_ms: int, queue_name: str) -> tuple[str, str]:
        """(exchange, routing key) for a delay of 1 ms up to `LONGEST_MS`; rounded up, so that none is early."""
        ticks = min(max(1, -(-delay_ms // UNIT_MS)), (1 << LEVELS) - 1)
        bits = ".".join(format(ticks, f"0{LEVELS}b"))
        return self.level(ticks.bit_length() - 1), f"{bits}.{queue_name}"

    def steps(self, version: tuple[int, ...] | None) -> list[Step]:
        """Declare the ladder and its catcher."""
        steps = [
            *self.catcher(version),
            Step(
                "exchange_declare",
                _exchange(self.out, "topic", {"alternate-exchange": self.unrouted}),
            ),
        ]
        steps += [Step("exchange_declare", _exchange(self.level(n), "topic")) for n in range(LEVELS)]
        for number in range(LEVELS):
            down = self.level(number - 1) if number else self.out
            name = self.level(number)
            steps += [
                Step("queue_declare", _queue(name, self._waits(number, down))),
                Step("queue_bind", {"queue": name, "exchange": name, "routing_key": _bit(number, "1")}),
                Step("exchange_bind", {"destination": down, "source": name, "routing_key": _bit(number, "0")}),
            ]
        return steps

    def _waits(self, number: int, down: str) -> dict[str, Any]:
        arguments = {
            "x-queue-type": self.kind,
            "x-message-ttl": UNIT_MS << number,
            "x-dead-letter-exchange": down,
        }
        if self.kind == "quorum":
            # Without these a hop is sent without a confirm inside the broker, and a node that fails loses it.
            arguments.update({"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"})
        return arguments

    def catcher(self, version: tuple[int, ...] | None) -> list[Step]:
        """Declare the exchange and queue of what is unrouted."""
        name = self.unrouted
        return [
            Step("exchange_declare", _exchange(name, "fanout")),
            Step("queue_declare", _queue(name, kept(self.kind, version))),
            Step("queue_bind", {"queue": name, "exchange": name, "routing_key": ""}),
        ]

    def bind(self, queue_name: str) -> Step:
        """Let what comes off the ladder for a queue into it. As many stars as there are levels: `#` would also match
        the names that end in this one."""
        key = ".".join(["*"] * LEVELS) + "." + queue_name
        return Step("queue_bind", {"queue": queue_name, "exchange": self.out, "routing_key": key})


def ladder_kind(wanted: str | None, version: tuple[int, ...] | None) -> QueueType:
    """As asked for, else quorum where the server has what that needs: a classic level passes messages on unconfirmed,
    and a node that is killed loses those that have just moved."""
    if wanted is not None:
        return "quorum" if wanted == "quorum" else "classic"
    return "classic" if version is not None and version < DEAD_LETTERS_SAFELY else "quorum"


def target_of(exchange: str, routing_key: str) -> str:
    """The queue that a message was on its way to, by where it was published."""
    if exchange.startswith("reliq.delay."):
        return routing_key.split(".", LEVELS)[-1]
    return routing_key


def letters_exchange() -> list[Step]:
    """Declare the exchange of dead letters and its catcher."""
    classic = Ladder("classic")
    return [
        *classic.catcher(None),
        Step("exchange_declare", _exchange(DEAD_EXCHANGE, "topic", {"alternate-exchange": classic.unrouted})),
    ]


def reading_name(queue_name: str) -> str:
    """The exclusive queue that is there while somebody reads a queue: its name is the lock, nothing lies in it."""
    return f"{OURS}reading.{queue_name}"


def dead_name(queue_name: str) -> str:
    """The queue of a queue's dead letters."""
    return f"{queue_name}.dead"


def declare_dead(queue_name: str, kind: QueueType, version: tuple[int, ...] | None) -> Step:
    """Declare it."""
    return Step("queue_declare", _queue(dead_name(queue_name), kept(kind, version)))


def bind_dead(queue_name: str) -> Step:
    """Lead a queue's dead letters into it."""
    return Step("queue_bind", {"queue": dead_name(queue_name), "exchange": DEAD_EXCHANGE, "routing_key": queue_name})


def kept(kind: QueueType, version: tuple[int, ...] | None) -> dict[str, Any]:
    """The arguments of a queue whose messages are read more than once. Reading counts as a delivery: from RabbitMQ 4 on
    a quorum queue drops what was delivered 20 times, unless it is told not to; before, -1 would mean 'never'."""
    arguments: dict[str, Any] = {"x-queue-type": kind}
    if kind == "quorum" and (version or (0,)) >= (4,):
        arguments["x-delivery-limit"] = -1
    return arguments


def passive(queue_name: str) -> Step:
    """Ask for a queue as it is: how much is ready, how many consume."""
    return Step("queue_declare", {"queue": queue_name, "passive": True})


def _exchange(name: str, kind: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"exchange": name, "exchange_type": kind, "durable": True, "arguments": arguments}


def _queue(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"queue": name, "durable": True, "arguments": arguments}


def _bit(number: int, value: str) -> str:
    return ".".join(["*"] * (LEVELS - 1 - number) + [value] + ["*"] * number) + ".#"
