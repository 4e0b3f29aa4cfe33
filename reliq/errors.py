"""What a user raises, catches or reads: the exceptions of reliq.

Callers: actors (`Permanent`, `Defer`), applications (`OptionError`, `NotSupported`, `WiringError`), the command line.
Guarantee: every text names the thing that is wrong and ends in what to do.
"""

from __future__ import annotations

from typing import Any

from dramatiq.errors import Retry
from dramatiq.message import Message
from dramatiq.middleware import MiddlewareError


class Permanent(Exception):
    """Trying again cannot help: the message goes straight to the dead letters, reason `permanent`.

    Raise it (`raise Permanent("no such customer") from exc`) or wrap what failed (`raise Permanent(exc)`).
    """

    def __init__(self, why: object = "") -> None:
        super().__init__(why)
        if isinstance(why, BaseException):
            self.__cause__ = why


class Defer(Retry):
    """Run the message later without spending a retry.

    `delay` is in milliseconds; without one it waits min(30 s, 1 s * 2^deferrals) * U(1, 2).
    What a message may spend deferred in all is bounded by the option `defer_max`.
    """

    def __init__(self, message: str = "", delay: int | None = None) -> None:
        super().__init__(message, delay)


class OptionError(MiddlewareError, ValueError):
    """An option of an actor, a message or a part has a value that cannot work.

    A `MiddlewareError`, so that Dramatiq lets it through when an actor is declared.
    """


class WiringError(MiddlewareError):
    """The middlewares of a broker stand in an order, or a company, that cannot work."""


class NotSupported(MiddlewareError, TypeError):
    """Something that reliq cannot work with: a broker, an encoder, a way of running the workers."""


class LetterError(ValueError):
    """A dead letter that is not there, or that cannot be replayed as it is."""


class EnqueueErrors(Exception):
    """Some messages of an `enqueue_many` were not sent; all others were.

    `sent` are the messages that were, in order; `failed` is `(index, message, error)` of each that was not.
    """

    def __init__(self, sent: list[Message[Any]], failed: list[tuple[int, Message[Any], Exception]]) -> None:
        super().__init__(sent, failed)
        self.sent = sent
        self.failed = failed

    def __str__(self) -> str:
        index, message, error = self.failed[0]
        count = f"{len(self.failed)} of {len(self.failed) + len(self.sent)} messages were not sent"
        first = f"number {index} (actor {message.actor_name!r}, queue {message.queue_name!r}): "
        return (
            f"{count}; the first is {first}{type(error).__name__}: {error}. See .failed for each, .sent for the rest."
        )


# The names users see in logs and letters are the ones they import.
for _class in (Permanent, Defer, OptionError, WiringError, NotSupported, LetterError, EnqueueErrors):
    _class.__module__ = "reliq"
