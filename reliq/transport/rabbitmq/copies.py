"""Tells a message that comes again from one that is meant to run again.

Callers: the consumers (`comes_again` before a message is handed out), `RabbitTransport` (`settled`, `unacked`).
RabbitMQ cannot store a retry and remove its original in one step: between the confirm of the one and the ack of the
other lies a moment in which a process or a connection may die. Then the original comes again although its retry is
stored, is run, and stores the same retry a second time. What such a run stores is marked (header `x-reliq-again`);
of two messages that are alike in id, attempt, deferrals and replay, one of them marked, this process runs one.
Two sends of one id are never taken for copies: neither is marked.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from ...message.record import Record

#: The header of what a run of a redelivered message has stored.
AGAIN = "x-reliq-again"
#: How many messages that were settled are remembered, the latest ones.
REMEMBERED = 10_000

Key = tuple[str, int, int, int]


def key_of(message_id: str, options: dict[str, Any], record: Record) -> Key:
    """What one attempt of one message is known by, as its options say before it runs."""
    retries = options.get("retries")
    attempt = retries if isinstance(retries, int) and not isinstance(retries, bool) else 0
    replayed = (record.replay or {}).get("n")
    return message_id, attempt, record.deferrals, replayed if isinstance(replayed, int) else 0


class Copies:
    """What this process has settled lately."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Settled -> whether it was marked.
        self._settled: OrderedDict[Key, bool] = OrderedDict()
        self._marked = 0
        #: Settled, their next form stored, but the ack may not have reached the broker.
        self._unacked: OrderedDict[Key, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Copies settled={len(self._settled)} marked={self._marked} unacked={len(self._unacked)}>"

    @property
    def knows_any(self) -> bool:
        """Whether a message that is not marked can be a copy."""
        return self._marked > 0

    def settled(self, key: Key, *, marked: bool) -> None:
        """An attempt has ended here."""
        with self._lock:
            self._marked += int(marked) - int(self._settled.pop(key, False))
            self._settled[key] = marked
            if len(self._settled) > REMEMBERED:
                self._marked -= int(self._settled.popitem(last=False)[1])

    def unacked(self, key: Key) -> None:
        """Its next form is stored, and its ack was lost with the channel: it will come again."""
        with self._lock:
            self._unacked[key] = None
            if len(self._unacked) > REMEMBERED:
                self._unacked.popitem(last=False)

    def comes_again(self, key: Key, *, redelivered: bool, marked: bool) -> bool:
        """Whether this delivery has had its run here, and is to be acked without another."""
        with self._lock:
            if redelivered and key in self._unacked:
                del self._unacked[key]
                return True
            was_marked = self._settled.get(key)
            return was_marked is not None and (marked or was_marked)
