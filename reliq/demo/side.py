"""One side of the demo: its workers, its line to the server, and what became of its messages.

Callers: `stage`, which does the same to both sides at the same moments; each broker's scene makes them.
Guarantee: `close` leaves no process; counting changes nothing that a worker would see.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import dramatiq
from dramatiq.broker import Broker

from reliq.testing import Census, RunLog, WorkerGroup
from reliq.testing.runlog import Key

from .brokers import ENV_LOG, ENV_SIDE, ENV_URL, QUEUE, Name, make_broker, reader
from .plan import GROUPS, THREADS, Order, Plan
from .verdict import Outcome, key_of

#: In words, where a message lies that has not come to an end.
_WHERE = {
    "unacked": "fetched by a worker that does not run them",
    "ghost": "in no list",
    "ready": "in the queue",
    "delayed": "delayed",
    "stock_delayed": "delayed",
}


class Side(ABC):
    """Plain Dramatiq, or the same with reliq."""

    def __init__(self, name: Name, plan: Plan, folder: Path, url: str, worker_url: str, stack: ExitStack) -> None:
        """`url` is the server's, `worker_url` the workers' way to it. `stack` holds what this side needs beside its
        workers, and is closed with it."""
        self.name = name
        self._url = url
        self.broker = make_broker(name, url)
        self.log = RunLog(folder / f"{name}.jsonl")
        self.plan = plan
        self.census: Census | None = None
        #: Runs that the kill cut off and that have not begun anew.
        self._cut_off: set[Key] = set()
        self._killed_at_entry = 0
        settings = {ENV_SIDE: name, ENV_URL: worker_url, ENV_LOG: str(self.log.path)}
        self.groups = []
        for _ in range(GROUPS):
            group = WorkerGroup("reliq.demo.app", threads=THREADS, env=settings, cwd=folder)
            stack.callback(group.close)
            self.groups.append(group)
        self._stack = stack.pop_all()

    # -- its life

    def start(self) -> None:
        """Start the workers and return at once."""
        for group in self.groups:
            group.start()

    def wait_ready(self) -> None:
        """Wait until they consume."""
        for group in self.groups:
            group.wait_ready(30)

    def close(self) -> None:
        """Kill the workers, close all lines."""
        self._stack.close()

    # -- what happens to it

    def send(self) -> None:
        """Put every body of the plan, past the faulty line."""
        self._send(self.plan.orders)

    def _send(self, orders: Sequence[Order]) -> None:
        """Some of the plan's orders, in its order."""
        for order in orders:
            if order == self.plan.orders[self.plan.bad_at]:
                self.put_bad_body()
            self.broker.enqueue(message_of(order))

    @abstractmethod
    def put_bad_body(self) -> None:
        """As a producer does that is not Dramatiq."""

    def kill_worker(self) -> int:
        """kill -9 for the first group, and start a new one. Returns how many runs it cut off."""
        group = self.groups[0]
        pid = group.worker_pid
        group.kill()
        entries = self.log.entries()
        for entry in entries:
            if entry.pid == pid:
                (self._cut_off.add if entry.event == "start" else self._cut_off.discard)(entry.key)
        self._killed_at_entry = len(entries)
        group.start()
        return len(self._cut_off)

    # -- what became of it

    @abstractmethod
    def look(self) -> Outcome:
        """Count what has happened so far."""

    def last_look(self) -> Outcome:
        """Count when nothing more is waited for."""
        return self.look()

    @abstractmethod
    def pulse(self) -> object:
        """Something that differs once anything has happened since."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether nothing was ready, running or delayed at the last look."""

    def left_behind(self, now: Outcome) -> str:
        """Where the last look found what had not come to an end: "8 fetched ..., 2 delayed"."""
        where = {key_of(place): _WHERE[place.state] for place in self.census or () if place.state in _WHERE}
        counts = Counter(where[key] for key in now.missing if key in where)
        return ", ".join(f"{count} {words}" for words, count in counts.most_common())

    def all_run_again(self) -> bool:
        """Whether every run that the kill cut off has begun anew; true once, then they are forgotten."""
        if not self._cut_off:
            return False
        self._cut_off -= {entry.key for entry in self.log.entries()[self._killed_at_entry :] if entry.event == "start"}
        return not self._cut_off

    def reader(self) -> AbstractContextManager[Broker]:
        """What reads its dead letters: a broker with reliq."""
        return reader(self.name, self._url)

    def logs(self, lines: int = 15) -> str:
        """The end of what the workers wrote, for a run that went wrong."""
        return "\n".join(line for group in self.groups for line in group.log().splitlines()[-lines:])


def message_of(order: Order) -> dramatiq.Message[None]:
    """What is sent for an order."""
    settings = {"fails": order.fails, "work_ms": order.work_ms}
    return dramatiq.Message(QUEUE, order.actor, (order.number,), settings, {})
