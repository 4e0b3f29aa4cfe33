"""Declares, binds, purges and asks: steps that the broker answers, on a channel of their own.

Callers: `declaring.py`, the desk. Steps are sent together and answered once, so that a hundred of them cost one round
trip; the first that the broker refuses ends them, and its words name it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .errors import CANNOT_BE_SENT, Failure, Refusal, refusal_of
from .link import Link


@dataclass(frozen=True)
class Step:
    """One method of AMQP with its arguments, by pika's names: `Step("queue_bind", {"queue": ..., ...})`."""

    method: str
    arguments: dict[str, Any] = field(default_factory=dict)


class _Run:
    """Steps on their way."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._channel: Any = None
        self.answers: list[Any] = []
        self.error: Failure | None = None
        self.done = threading.Event()

    def begin(self, link: Link) -> None:
        if link.connection is None or not link.connection.is_open:
            self._end(Failure(f"RabbitMQ cannot be reached: {link.why or 'connecting'}"))
            return
        link.connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        try:
            for number, step in enumerate(self._steps, 1):
                last = number == len(self._steps)
                asks = last or "passive" in step.arguments
                answered = partial(self._answered, last=last) if asks else None
                getattr(channel, step.method)(**step.arguments, callback=answered)
        except Exception as exc:
            # Arguments that AMQP has no form for.
            self._end(Refusal(f"it cannot be asked of RabbitMQ: {exc}", CANNOT_BE_SENT))
            channel.close()

    def _answered(self, frame: Any, *, last: bool) -> None:
        self.answers.append(frame.method)
        if last:
            self._end(None)
            if self._channel.is_open:
                self._channel.close()

    def _closed(self, channel: Any, exc: BaseException) -> None:
        self._end(refusal_of(exc))

    def _end(self, error: Failure | None) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()


def run(link: Link, steps: Sequence[Step], timeout_s: float) -> list[Any]:
    """Do the steps; returns the broker's answers to those that ask (the passive ones) and to the last one.

    Raises `Refusal` with the broker's words where it refuses one, `ConnectionClosed` where it cannot be reached within
    `timeout_s`.
    """
    link.wait(timeout_s)
    doing = _Run(steps)
    link.call(lambda: doing.begin(link))
    if not doing.done.wait(timeout_s):
        raise Failure(f"no answer from RabbitMQ within {timeout_s:.1f} s")
    if doing.error is not None:
        raise doing.error
    return doing.answers
