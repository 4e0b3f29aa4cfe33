"""Send many messages in few round trips: `enqueue_many`, and what Dramatiq's groups do with it.

Callers: applications, `wiring.py` (`batch_groups`). Guarantee: an item that cannot be sent keeps no other from being
sent, and is told; messages of one call come to their queues in its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import wraps
from itertools import islice
from typing import Any

from dramatiq.broker import Broker, get_broker
from dramatiq.composition import group
from dramatiq.message import Message

from ..errors import EnqueueErrors, WiringError
from ..transport.base import Transport, running_broker

#: How many are encoded and held at a time; a million need no more memory than these.
MOST_AT_A_TIME = 1_000


def enqueue_many(
    messages: Iterable[Message[Any]], *, broker: Broker | None = None, delay: int | None = None
) -> list[Message[Any]]:
    """Send messages in order, pipelined; returns them as they were sent, as `Broker.enqueue` does for one.

    `messages` may be a generator; they are made with `actor.message(...)`. `broker` is, if None, that of the message
    which runs on this thread, else Dramatiq's global one; reliq must be installed on it. `delay` is in ms, for each.

    Each is sent as safely as a single one: on Redis it is stored when this returns, on RabbitMQ confirmed. Raises
    `EnqueueErrors`, after all others are sent, if some could not be: it has the ones that were (`sent`) and
    `(index, message, error)` of each that was not (`failed`). What a generator raises comes through as it is, after up
    to 1,000 at a time were sent.
    """
    transport = _transport(broker)
    sent: list[Message[Any]] = []
    failed: list[tuple[int, Message[Any], Exception]] = []
    index = 0
    for part in _parts(messages):
        for message, outcome in zip(part, transport.enqueue_many([(message, delay) for message in part])):
            if isinstance(outcome, Exception):
                failed.append((index, message, outcome))
            else:
                sent.append(outcome)
            index += 1
    if failed:
        raise EnqueueErrors(sent, failed)
    return sent


def _transport(broker: Broker | None) -> Transport[Any]:
    from ..wiring import transport_of

    chosen = broker or running_broker() or get_broker()
    transport = transport_of(chosen)
    if transport is None:
        raise WiringError(
            f"enqueue_many: reliq is not installed on {type(chosen).__name__}; call reliq.install(broker) first, or "
            "pass broker=."
        )
    return transport


def _parts(messages: Iterable[Message[Any]]) -> Iterator[list[Message[Any]]]:
    left = iter(messages)
    while part := list(islice(left, MOST_AT_A_TIME)):
        for message in part:
            if not isinstance(message, Message):
                raise TypeError(
                    f"enqueue_many takes messages, got {type(message).__name__}; make them with actor.message(...), "
                    "and send groups and pipelines by their run()."
                )
        yield part


def batch_groups() -> None:
    """Have Dramatiq's groups send what they hold in few round trips, where their broker has reliq."""
    if not hasattr(group.run, "__wrapped__"):
        group.run = _batched(group.run)  # type: ignore[method-assign]


def _batched(run: Any) -> Any:
    @wraps(run)
    def batched(self: Any, **options: Any) -> Any:
        from ..wiring import transport_of

        transport = transport_of(self.broker)
        if transport is None:
            return run(self, **options)
        with transport.collecting() as collected:
            result = run(self, **options)
        for outcome in transport.enqueue_many(collected):
            if isinstance(outcome, Exception):
                # As a group sends one after the other, its caller hears of the first.
                raise outcome
        return result

    return batched
