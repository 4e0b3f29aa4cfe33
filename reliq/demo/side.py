"""One side of the demo: its workers, its line to the server, and what became of its messages.

Callers: `stage`, which does the same to both sides at the same moments.
Guarantee: `close` leaves no process; counting changes nothing and does not pass the line that faults are put on.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import dramatiq
import redis

from reliq.testing import Census, FaultProxy, RunLog, WorkerGroup, take_census
from reliq.testing.runlog import Key

from .brokers import ENV_LOG, ENV_SIDE, ENV_URL, QUEUE, Name, make_broker, namespace_of
from .plan import BAD_BODY, GROUPS, THREADS, Plan
from .server import Server
from .verdict import Outcome, key_of, outcome

#: In words, where a message lies that has not come to an end.
_WHERE = {
    "unacked": "fetched by a worker that does not run them",
    "ghost": "in no list",
    "ready": "in the queue",
    "delayed": "delayed",
    "stock_delayed": "delayed",
}


class Side:
    """Plain Dramatiq, or the same with reliq."""

    def __init__(self, name: Name, server: Server, plan: Plan, folder: Path) -> None:
        self.name = name
        self.namespace = namespace_of(name)
        self.log = RunLog(folder / f"{name}.jsonl")
        self._plan = plan
        self.census: Census | None = None
        #: Runs that the kill cut off and that have not begun anew.
        self._cut_off: set[Key] = set()
        self._killed_at_entry = 0
        with ExitStack() as stack:
            self._client = redis.Redis.from_url(server.url)
            stack.callback(self._client.close)
            self.broker = make_broker(name, server.url)
            stack.callback(self.broker.client.close)
            self._proxy = stack.enter_context(FaultProxy(server.port))
            settings = {ENV_SIDE: name, ENV_URL: self._proxy.url(), ENV_LOG: str(self.log.path)}
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
        for position, order in enumerate(self._plan.orders):
            if position == self._plan.bad_at:
                self._put_bad_body()
            settings = {"fails": order.fails, "work_ms": order.work_ms}
            self.broker.enqueue(dramatiq.Message(QUEUE, order.actor, (order.number,), settings, {}))

    def _put_bad_body(self) -> None:
        """As a producer does that is not Dramatiq."""
        with self._client.pipeline() as pipe:
            pipe.hset(f"{self.namespace}:{QUEUE}.msgs", "from-elsewhere", BAD_BODY)
            pipe.rpush(f"{self.namespace}:{QUEUE}", "from-elsewhere")
            pipe.execute()

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

    def cut(self) -> None:
        """Cut every connection of the workers and refuse new ones."""
        self._proxy.refuse()

    def heal(self) -> None:
        """Accept them again."""
        self._proxy.heal()

    # -- what became of it

    def look(self) -> Outcome:
        """Count what has happened so far."""
        self.census = take_census(self._client, self.namespace)
        return outcome(self._plan.keys, self.log.entries(), self.census)

    def pulse(self) -> tuple[int, str]:
        """Something that differs once anything has happened since."""
        return len(self.log.entries()), str(self.census)

    def left_behind(self, now: Outcome) -> str:
        """Where the last look found what had not come to an end: "8 fetched ..., 2 delayed"."""
        where = {key_of(place): _WHERE[place.state] for place in self.census or () if place.state in _WHERE}
        counts = Counter(where[key] for key in now.missing if key in where)
        return ", ".join(f"{count} {words}" for words, count in counts.most_common())

    @property
    def idle(self) -> bool:
        """Whether nothing was ready, running or delayed at the last look."""
        return self.census is not None and self.census.count("dead", "stock_dead") == len(self.census.places)

    def all_run_again(self) -> bool:
        """Whether every run that the kill cut off has begun anew; true once, then they are forgotten."""
        if not self._cut_off:
            return False
        self._cut_off -= {entry.key for entry in self.log.entries()[self._killed_at_entry :] if entry.event == "start"}
        return not self._cut_off

    def logs(self, lines: int = 15) -> str:
        """The end of what the workers wrote, for a run that went wrong."""
        return "\n".join(line for group in self.groups for line in group.log().splitlines()[-lines:])
