"""Count what a vhost of RabbitMQ holds, queue by queue, from the bodies themselves.

Callers: `rabbit_stage`. RabbitMQ shows bodies only by delivering them: they are fetched without an ack and given back,
to their places. So what workers hold is not seen, and what was looked at comes `redelivered` afterwards: it is a last
step, or one for queues whose messages nobody will run.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika

from reliq.testing import Census, Place, RabbitmqApi, eventually
from reliq.testing.census import State
from reliq.testing.rabbitmq_api import ApiError
from reliq.testing.runlog import hashable
from reliq.transport.rabbitmq.frames import META
from reliq.transport.rabbitmq.topology import target_of

#: s that the broker may take to deliver what it says it has.
PATIENCE_S = 5.0
#: Two looks so far apart find nothing, where counts are at most 0.25 s old: nothing moves. Seconds.
STILL_S = 0.4
DELAYS, UNROUTED = "reliq.delay.", "reliq.unrouted"
_SUFFIXES: tuple[tuple[str, State], ...] = ((".DQ", "stock_delayed"), (".XQ", "stock_dead"), (".dead", "dead"))
#: Queues where messages rest: they are not waited for.
RESTING = (".dead", ".XQ")


@contextmanager
def connected(server: RabbitmqApi, vhost: str) -> Iterator[pika.BlockingConnection]:
    """A connection of the test's own, past every proxy."""
    connection = pika.BlockingConnection(pika.URLParameters(server.url(vhost)))
    try:
        yield connection
    finally:
        connection.close()


def take_census(server: RabbitmqApi, vhost: str) -> Census:
    """Every message that is ready in any queue.

    A place's queue is the plain one that its message belongs to. States: "ready"; "delayed" (on the ladder of either
    kind), "stock_delayed" (`.DQ`); "dead", "stock_dead" (`.XQ`); "ghost": in `reliq.unrouted`, where it stays until its
    queue is declared. `record` is what stands in a letter's header for a body that cannot hold it.
    """
    names = [queue["name"] for queue in server.queues(vhost)]
    with connected(server, vhost) as connection:
        # All is held until the end: what comes off the ladder meanwhile is not counted twice.
        places = [_place(name, *got) for name in names for got in _peek(connection.channel(), name)]
    return Census(tuple(places), now_ms=0)


def busy(server: RabbitmqApi, vhost: str) -> dict[str, tuple[int, int]]:
    """Queue -> (ready, unacked), of those that hold something and are no resting place. At most 0.25 s old."""
    counts = {
        queue["name"]: (int(queue["messages_ready"]), int(queue["messages_unacknowledged"]))
        for queue in server.queues(vhost)
    }
    return {name: both for name, both in counts.items() if any(both) and not name.endswith(RESTING)}


def wait_idle(server: RabbitmqApi, vhost: str, timeout: float) -> None:
    """Wait until no queue holds anything, ready or unacked, but those of the dead. Raises `TimeoutError`."""
    since = 0.0
    left: dict[str, tuple[int, int]] = {}

    def still() -> bool:
        nonlocal since, left
        left = busy(server, vhost)
        if left:
            since = 0.0
        elif not since:
            since = time.monotonic()
        return bool(since) and time.monotonic() - since > STILL_S

    try:
        eventually(still, timeout, 0.1, "every queue to be empty", (ApiError,))
    except TimeoutError as error:
        raise TimeoutError(f"{error}; left as (ready, unacked): {left}") from None


def held(server: RabbitmqApi, vhost: str) -> Counter[State]:
    """How many messages are in each state, in queues or with workers. At most 0.25 s old; nothing is looked at."""
    counts: Counter[State] = Counter()
    for queue in server.queues(vhost):
        number = int(queue["messages_ready"]) + int(queue["messages_unacknowledged"])
        counts[_state_of(queue["name"])] += number
    return counts


def _peek(channel: Any, queue_name: str) -> Iterator[tuple[Any, Any, bytes]]:
    left = channel.queue_declare(queue_name, passive=True).method.message_count
    if not left:
        return
    for method, properties, body in channel.consume(queue_name, inactivity_timeout=PATIENCE_S):
        if method is None:  # a worker took it meanwhile
            break
        yield method, properties, body
        left -= 1
        if not left:
            break


def _place(name: str, method: Any, properties: Any, body: bytes) -> Place:
    record = (properties.headers or {}).get(META)
    message_id, args = None, None
    try:
        fields = json.loads(body)
        message_id, args = str(fields["message_id"]), tuple(hashable(arg) for arg in fields["args"])
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return Place(
        queue=_plain_name(name, method),
        state=_state_of(name),
        holder=None,
        body=body,
        message_id=message_id,
        args=args,
        entry=message_id or "",
        record=record.encode() if isinstance(record, str) else record,
    )


def _state_of(name: str) -> State:
    if name.startswith(DELAYS):
        return "delayed"
    if name.startswith(UNROUTED):
        return "ghost"
    return next((state for suffix, state in _SUFFIXES if name.endswith(suffix)), "ready")


def _plain_name(name: str, method: Any) -> str:
    if name.startswith((DELAYS, UNROUTED)):
        return target_of(method.exchange, method.routing_key)
    return next((name[: -len(suffix)] for suffix, _ in _SUFFIXES if name.endswith(suffix)), name)
