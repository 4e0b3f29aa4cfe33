"""Tells a message that comes again from one that is meant to run again.

Callers: the consumers (`arrives`, before a message is handed out), the settler (`settled`), the intake (`lost`).
RabbitMQ cannot store a retry and remove its original in one step: between the confirm of the one and the ack of the
other lies a moment in which a process or a connection may die. Then the original comes again although its retry is
stored, is run, and stores the same retry a second time. What such a run stores is marked (header `x-reliq-again`);
of two messages that are alike in id, attempt, deferrals and replay, one of them marked, this process runs one.
Two sends of one id are never taken for copies: neither is marked.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Literal

from ...message.record import Record

#: The header of what a run of a redelivered message has stored.
AGAIN = "x-reliq-again"
#: How many messages that were settled are remembered, the latest ones.
REMEMBERED = 10_000

Key = tuple[str, int, int, int]
#: What to do with an arrival: run it; ack it, it has had its run; let it wait, its twin is running.
Answer = Literal["run", "copy", "wait"]


def key_of(message_id: str, options: dict[str, Any], record: Record) -> Key:
    """What one attempt of one message is known by, as its options say before it runs."""
    retries = options.get("retries")
    attempt = retries if isinstance(retries, int) and not isinstance(retries, bool) else 0
    replayed = (record.replay or {}).get("n")
    return message_id, attempt, record.deferrals, replayed if isinstance(replayed, int) else 0


class Copies:
    """What this process runs and has settled lately."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Settled -> whether it was marked.
        self._settled: OrderedDict[Key, bool] = OrderedDict()
        #: Handed out and not settled -> by which subscription, and whether it was marked.
        self._running: dict[Key, tuple[int, bool]] = {}
        #: Settled, their next form stored, but the ack may not have reached the broker.
        self._unacked: OrderedDict[Key, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Copies settled={len(self._settled)} running={len(self._running)} unacked={len(self._unacked)}>"

    def arrives(self, key: Key, epoch: int, *, redelivered: bool, marked: bool) -> Answer:
        """A message comes up on subscription `epoch`; noted as running where the answer is to run it."""
        with self._lock:
            if redelivered and key in self._unacked:
                del self._unacked[key]
                return "copy"
            was_marked = self._settled.get(key)
            if was_marked is not None and (marked or was_marked):
                return "copy"
            twin = self._running.get(key)
            if twin is not None and (marked or twin[1]):
                return "wait"
            self._running[key] = epoch, marked
            return "run"

    def settled(self, key: Key, *, marked: bool) -> None:
        """An attempt has ended here."""
        with self._lock:
            self._running.pop(key, None)
            self._settled.pop(key, None)
            self._settled[key] = marked
            if len(self._settled) > REMEMBERED:
                self._settled.popitem(last=False)

    def unacked(self, key: Key) -> None:
        """Its next form is stored, and its ack was lost with the channel: it will come again."""
        with self._lock:
            self._unacked[key] = None
            if len(self._unacked) > REMEMBERED:
                self._unacked.popitem(last=False)

    def lost(self, epoch: int, unsure: Iterable[Key]) -> None:
        """A subscription has ended: what came on it will come again, `unsure` of it settled."""
        with self._lock:
            for key in [key for key, (its, _) in self._running.items() if its == epoch]:
                del self._running[key]
        for key in unsure:
            self.unacked(key)
