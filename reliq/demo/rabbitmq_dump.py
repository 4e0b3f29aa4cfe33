"""What lies in the queues of a RabbitMQ vhost: counts while workers run, bodies at the end.

Caller: `rabbitmq_side`. Counts come from the management API and touch no message. Bodies are taken without an ack and
go back to their places when the connection is closed, so they are read only where no worker consumes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pika

from reliq.testing import Place, RabbitmqApi
from reliq.testing.census import State
from reliq.testing.runlog import hashable

from .brokers import QUEUE

_STATES: dict[str, State] = {
    QUEUE: "ready",
    f"{QUEUE}.DQ": "stock_delayed",
    f"{QUEUE}.XQ": "stock_dead",
    f"{QUEUE}.dead": "dead",
}
LETTERS = (f"{QUEUE}.XQ", f"{QUEUE}.dead")


@dataclass(frozen=True)
class Counts:
    """Queue -> (ready, unacked), those that hold something."""

    queues: dict[str, tuple[int, int]]

    @property
    def dead(self) -> int:
        """Letters of both kinds."""
        return sum(sum(self.queues.get(name, (0, 0))) for name in LETTERS)

    @property
    def idle(self) -> bool:
        """Whether nothing but letters lies anywhere."""
        return self.queues.keys() <= set(LETTERS)

    @property
    def delayed_in_workers(self) -> int:
        """Delays that workers hold unacked."""
        return self.queues.get(f"{QUEUE}.DQ", (0, 0))[1]

    @property
    def on_ladder(self) -> int:
        """Delays that wait on reliq's ladder."""
        return sum(ready for name, (ready, _) in self.queues.items() if name.startswith("reliq.delay."))


def count(api: RabbitmqApi, vhost: str) -> Counts:
    """Ask the management API. Raises `ApiError`."""
    found = {queue["name"]: (queue["messages_ready"], queue["messages_unacknowledged"]) for queue in api.queues(vhost)}
    return Counts({name: numbers for name, numbers in found.items() if any(numbers)})


def bodies(url: str, names: Iterable[str]) -> list[Place]:
    """Every body that is ready in these queues; those that are not there are passed over."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        return [place for name in names for place in _bodies(connection, name)]
    finally:
        connection.close()


def consumers(url: str, name: str) -> int:
    """How many consume a queue now."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        return int(connection.channel().queue_declare(name, passive=True).method.consumer_count)
    finally:
        connection.close()


def _bodies(connection: Any, name: str) -> list[Place]:
    places = []
    channel = connection.channel()
    try:
        while (got := channel.basic_get(name))[0] is not None:
            places.append(_place(name, got[2]))
    except pika.exceptions.ChannelClosedByBroker:
        return []
    return places


def _place(name: str, body: bytes) -> Place:
    state = _STATES.get(name, "delayed" if name.startswith("reliq.delay.") else "ghost")
    try:
        args = json.loads(body)["args"]
    except ValueError:  # the undecodable one
        return Place(QUEUE, state, None, body)
    return Place(QUEUE, state, None, body, args=tuple(map(hashable, args)))
