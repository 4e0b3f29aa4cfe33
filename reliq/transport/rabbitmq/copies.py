"""Tells a message that comes again from one that is meant to run again.

Callers: the consumers (`arrives`, before a message is handed out; `ended`), the settler (`settled`, `ended`), the
intake (`lost`). Two ways lead to a message that comes again:

- RabbitMQ cannot store a retry and remove its original in one step: between the confirm of the one and the ack of the
  other a process or a connection may die. Then the original comes again although its retry is stored, is run, and
  stores the same retry a second time. What such a run stores is marked (header `x-reliq-again`); of two messages that
  are alike in id, attempt, deferrals and replay, one of them marked, this process runs one.
- A channel is lost while messages that came on it run here (a cut, a consumer timeout). They come again, to this
  process or another. Here they wait until the run that goes on has ended, and then take its result.

Two sends of one id are never taken for copies: neither is marked, and each result is taken once.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Literal

from ...message.record import Record
from ..settlement import Settlement

#: The header of what a run of a redelivered message has stored.
AGAIN = "x-reliq-again"
#: How many messages that were settled are remembered, the latest ones.
REMEMBERED = 10_000

Key = tuple[str, int, int, int]
#: What a run has come to: a settlement that was not written, or None where there is only to ack.
Result = Settlement | None
#: What to do with an arrival: run it; ack it, it has had its run; let it wait, its twin is running; give it the result
#: of the run that has ended without it (`result`).
Answer = Literal["run", "copy", "wait", "ended"]


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
        #: Handed out and not settled, where a copy may come -> by which subscription, and whether it was marked.
        self._running: dict[Key, tuple[int, bool]] = {}
        #: Runs that go on though the channel of their delivery is gone, as long as anybody holds their messages.
        self._orphans: dict[Key, list[weakref.ref[Any]]] = {}
        #: What such runs have come to, until it is taken.
        self._ended: OrderedDict[Key, Result] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Copies settled={len(self._settled)} orphans={len(self._orphans)} ended={len(self._ended)}>"

    def arrives(self, key: Key, epoch: int, *, redelivered: bool, marked: bool) -> Answer:
        """A message comes up on subscription `epoch`; noted as running where the answer is to run it."""
        with self._lock:
            was_marked = self._settled.get(key)
            if was_marked is not None and (marked or was_marked):
                # First: the result is kept for the one that it is of, which comes again itself.
                return "copy"
            if redelivered or marked:
                if key in self._ended:
                    return "ended"
                if self._goes_on(key):
                    return "wait"
            twin = self._running.get(key)
            if twin is not None and (marked or twin[1]):
                return "wait"
            self._running[key] = epoch, marked
            return "run"

    def result(self, key: Key) -> Result:
        """What the run of an arrival that was answered "ended" has come to. It is taken once."""
        with self._lock:
            return self._ended.pop(key, None)

    def given_back(self, key: Key) -> None:
        """An arrival was not run after all: when it comes again it waits for nobody."""
        with self._lock:
            self._running.pop(key, None)

    def settled(self, key: Key, *, marked: bool) -> None:
        """An attempt has ended here, its delivery still ours."""
        with self._lock:
            self._running.pop(key, None)
            self._remember(key, marked)

    def lost(self, epoch: int, running: Iterable[tuple[Key, Any]], ended: Iterable[tuple[Key, Result]]) -> None:
        """A subscription has ended: what came on it will come again. `running` are the messages whose runs go on, by
        key; `ended` the results that did not get through."""
        with self._lock:
            for key in [key for key, (its, _) in self._running.items() if its == epoch]:
                del self._running[key]
            for key, message in running:
                self._orphans.setdefault(key, []).append(weakref.ref(message))
            for key, result in ended:
                self._keep(key, result)

    def ended(self, key: Key, message: Any, unwritten: Result = None) -> None:
        """A run whose channel was lost has ended; `unwritten` is what it would have become."""
        with self._lock:
            left = [each for each in self._orphans.pop(key, []) if each() is not message]
            if left:
                self._orphans[key] = left
            self._keep(key, unwritten)

    def _goes_on(self, key: Key) -> bool:
        alive = [each for each in self._orphans.pop(key, []) if each() is not None]
        if alive:
            self._orphans[key] = alive
        return bool(alive)

    def _remember(self, key: Key, marked: bool) -> None:
        self._settled.pop(key, None)
        self._settled[key] = marked
        if len(self._settled) > REMEMBERED:
            self._settled.popitem(last=False)

    def _keep(self, key: Key, result: Result) -> None:
        if result is None:
            self._remember(key, self._settled.get(key, False))
        self._ended[key] = result
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
