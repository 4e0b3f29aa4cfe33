"""Dead letters in a StubBroker: `dead_letters_by_queue`, as users' tests know it, is where they live.

Caller: `StubTransport`. Each item is a message proxy, as in Dramatiq, with two attributes more: `letter`, the dead
letter, and the exception that `join(fail_fast=True)` raises. Items that others put there read as letters without a
record.
"""

from __future__ import annotations

import hashlib
from typing import Any

from dramatiq.broker import MessageProxy
from dramatiq.message import Message

from ...message.letter import DeadLetter
from ..settlement import Bury
from .consumer import StubDelivered


class DeadMessage(MessageProxy):
    """Stands among the dead letters for what never reached a worker: a body that is no message, a callback that
    cannot be sent. Its message is a placeholder where there is none."""

    letter: DeadLetter | None = None

    def clear_exception(self) -> None:
        """Does nothing: see `StubDelivered`."""


class DeadLetterError(Exception):
    """Why something died that raised nothing itself: reason, and what is wrong."""


def proxy_of(bury: Bury, delivered: StubDelivered | None) -> MessageProxy:
    """What goes into `dead_letters_by_queue` for a letter: the proxy that ran, where one did."""
    proxy: StubDelivered | DeadMessage
    if delivered is not None:
        proxy = delivered
    else:
        # "_unreadable" is no actor: the body could not say which.
        proxy = DeadMessage(bury.message or Message(bury.queue, "_unreadable", (), {}, {}))
    if proxy._exception is None:
        proxy.stuff_exception(
            DeadLetterError(f"{bury.dead['reason']}: {bury.dead['error_message'] or 'see its letter'}")
        )
    proxy.letter = bury.letter()
    return proxy


def letter_of(proxy: MessageProxy, queue_name: str) -> DeadLetter:
    """The letter behind an item of `dead_letters_by_queue`."""
    letter = proxy.__dict__.get("letter")
    if isinstance(letter, DeadLetter):
        return letter
    message = proxy._message
    body = message.encode()
    letter_id = hashlib.sha256(body).hexdigest()[:16]
    return DeadLetter(letter_id, queue_name, "stock", body, message, None, None)


def groups_of(queue_name: str, letters: list[DeadLetter]) -> list[dict[str, Any]]:
    """Letters by fingerprint, in the order of their first death. Letters of others form one group."""
    groups: dict[str | None, dict[str, Any]] = {}
    for letter in letters:
        group = groups.setdefault(
            letter.fingerprint,
            {
                "fingerprint": letter.fingerprint,
                "queue": queue_name,
                "actor": letter.actor if letter.fingerprint else None,
                "error": letter.dead.get("error") if letter.dead else None,
                "reason": letter.reason,
                "count": 0,
                "first_seen_ms": letter.died_at_ms,
                "last_seen_ms": None,
                "sample": None,
            },
        )
        group["count"] += 1
        group["last_seen_ms"] = letter.died_at_ms
        group["sample"] = letter.id
    return list(groups.values())
