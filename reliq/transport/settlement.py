"""What a settled delivery becomes, as values: made by `settling.py`, written by a transport, told by `reporting.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dramatiq.broker import MessageProxy
from dramatiq.message import Message

from ..message.letter import DeadLetter

#: "moved": it was not due, and waits elsewhere in the broker; no run has seen it.
Outcome = Literal["done", "retried", "deferred", "dead", "dropped", "returned", "moved"]


class Unstorable(Exception):
    """The broker is there and will never take item `index` of a settlement as it is. `limit` is the largest body that
    it takes, where that is why."""

    def __init__(self, why: str, index: int, limit: int | None = None) -> None:
        super().__init__(why)
        self.index = index
        self.limit = limit


@dataclass(frozen=True)
class Publish:
    """One message to give to the broker: `message` is what the hooks saw, `body` its encoded form."""

    message: Message[Any]
    body: bytes
    delay_ms: int | None = None


@dataclass(frozen=True)
class Bury:
    """One dead letter to write: `meta` is its record as JSON where the body cannot carry it, else None."""

    queue: str
    dead: dict[str, Any]
    body: bytes
    message: Message[Any] | None
    meta: bytes | None = None

    def letter(self) -> DeadLetter:
        """The letter as it will be read."""
        return DeadLetter(
            id=self.dead["id"],
            queue=self.queue,
            source="reliq",
            body=self.body,
            message=self.message,
            dead=self.dead,
            died_at_ms=self.dead["died_at"],
        )


Store = Publish | Bury


@dataclass(frozen=True)
class Settlement:
    """What one delivery becomes: the original (`queue_name`, `token`) goes, and `store` comes, in one step.

    `delivered` is the message, None where its body could not be opened.
    """

    queue_name: str
    token: str
    outcome: Outcome
    store: tuple[Store, ...] = ()
    delivered: MessageProxy | None = None
