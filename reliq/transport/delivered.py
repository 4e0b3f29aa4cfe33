"""A message in a worker's hands: Dramatiq's proxy, with what settling it needs.

Made by the consumers, read by `signals.py` (when its run ends) and `settling.py` (what becomes of it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dramatiq.broker import MessageProxy
from dramatiq.common import q_name
from dramatiq.encoder import Encoder
from dramatiq.message import Message

from ..message.record import KEY, Record
from ..message.verdict import Reason, Verdict

if TYPE_CHECKING:
    from .consumer import SettlingConsumer
    from .settlement import Settlement, Store


class Delivered(MessageProxy):
    """One delivery of a message, from its fetch to its settle.

    `token` names the delivery to the broker; `body` is what came, byte for byte. `queue_name` is the queue it was
    consumed from, whatever the body says: Dramatiq routes the ack by it.
    """

    # Set on few messages only: defaults live on the class, so that a plain success pays for none of them.
    verdict: Verdict | None = None
    captured: list[Store] | None = None  # sends made while it ends; None until its run has ended
    unfinished: tuple[Callable[[], None], ...] = ()  # after-hooks that must still succeed before the settle
    settlement: Settlement | None = None  # the plan, once made: settling again repeats it, never makes another
    disarmed = False  # whether time limits can no longer reach its thread
    settled = False
    ours = True  # whether the settle found the delivery still in this worker's hands
    started_mono: float | None = None
    failures_before: int | None = None  # as its options said before this run; counting again starts from here
    _record: Record | None = None

    def __init__(
        self, message: Message[Any], consumer: SettlingConsumer, token: str, body: bytes, queue_name: str
    ) -> None:
        super().__init__(message)
        self.consumer = consumer
        self.token = token
        self.body = body
        self.queue_name = queue_name
        # Here as well, because a proxy looks for what it has not itself in a way that costs a microsecond each time.
        self.actor_name = message.actor_name
        self.args = message.args
        self.kwargs = message.kwargs
        self.options = message.options
        self.message_id = message.message_id
        self.message_timestamp = message.message_timestamp

    @property
    def record(self) -> Record:
        """The message's record, read on first use. From then on it is here and no longer in the options, so that
        what callbacks copy of the message (`asdict`) does not carry it."""
        if self._record is None:
            self._record = Record(self._message.options.pop(KEY, None))
        return self._record

    @property
    def message(self) -> Message[Any]:
        """The message behind the proxy."""
        return self._message

    def stuff_exception(self, exception: BaseException) -> None:
        """Called by the worker the moment a run has raised: from here on an interrupt comes too late."""
        super().stuff_exception(exception)
        self.consumer.transport.signals.disarm(self)

    @property
    def exception(self) -> BaseException | None:
        """What the run raised, while the worker still keeps it."""
        return self._exception


class Unreadable(Exception):
    """A body that is no message for its queue. `reason` is the letter's, the text says what is wrong with it;
    `message` is what it holds all the same, where it could be decoded."""

    def __init__(self, reason: Reason, why: str, message: Message[Any] | None = None) -> None:
        super().__init__(why)
        self.reason = reason
        self.message = message


def looks_pickled(body: bytes) -> bool:
    """Whether these bytes are a pickle (protocol 2 or later). They are never loaded, only named."""
    return len(body) > 2 and body[0] == 0x80 and 2 <= body[1] <= 5 and body.endswith(b".")


def decode(body: bytes, encoder: Encoder) -> Message[Any]:
    """The message in `body`, or `Unreadable`. Every field is checked: a body of the wrong shape must not reach
    Dramatiq's threads, which it would kill."""
    try:
        fields = encoder.decode(body)
    except Exception as exc:  # an encoder may raise anything; whatever it is, the body cannot be read
        if looks_pickled(body):
            raise Unreadable("rejected", "the body is a pickle, which is never loaded; send it as JSON") from None
        raise Unreadable("malformed", f"the body cannot be decoded: {exc}") from exc
    return from_fields(fields)


def from_fields(fields: object) -> Message[Any]:
    """A message from decoded fields, each checked."""
    if not isinstance(fields, dict):
        raise Unreadable("malformed", f"the body holds a {type(fields).__name__}, not a message")
    for name, types, _ in _SHAPE:
        if not isinstance(fields.get(name), types):
            raise Unreadable("malformed", "the body is no message: " + "; ".join(_wrong(fields)))
    try:
        return Message(**{**fields, "args": tuple(fields["args"])})
    except TypeError as exc:
        raise Unreadable("malformed", f"the body is no message: {exc}") from exc


def _wrong(fields: dict[str, object]) -> list[str]:
    return [
        f"{name} is {type(fields.get(name)).__name__}, expected {expected}"
        for name, types, expected in _SHAPE
        if not isinstance(fields.get(name), types)
    ]


_SHAPE: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("queue_name", (str,), "a string"),
    ("actor_name", (str,), "a string"),
    ("args", (list, tuple), "a list"),
    ("kwargs", (dict,), "an object"),
    ("options", (dict,), "an object"),
    ("message_id", (str,), "a string"),
    ("message_timestamp", (int, float), "a number"),
)


def at_home(message: Message[Any], queue_name: str) -> Message[Any]:
    """The message as it is meant for `queue_name`: without the marks of a stock delay queue, options tidied.

    Raises `Unreadable` when the body names another queue.
    """
    canonical = q_name(queue_name)
    if message.queue_name != canonical:
        if q_name(message.queue_name) != canonical:
            why = f"the body names queue {message.queue_name!r} but lay in {canonical!r}"
            raise Unreadable("malformed", why, message)
        message = message.copy(queue_name=canonical)
    # JSON cannot hold exception classes: a list here would make Dramatiq's `isinstance` raise and the thread die.
    if "throws" in message.options and not _exception_classes(message.options["throws"]):
        del message.options["throws"]
    return message


def eta_of(message: Message[Any]) -> float | None:
    """When a delayed message is due, in ms since the epoch; None when it carries no usable `eta`."""
    eta = message.options.get("eta")
    if isinstance(eta, bool) or not isinstance(eta, (int, float)):
        return None
    try:
        return eta if math.isfinite(eta) else None
    except OverflowError:
        # An integer too large for any float is no time either.
        return None


def _exception_classes(value: object) -> bool:
    classes = value if isinstance(value, tuple) else (value,)
    return all(isinstance(item, type) and issubclass(item, BaseException) for item in classes)
