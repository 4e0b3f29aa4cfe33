"""The stage of a fault test on Redis: sends tasks, starts stock workers, waits, and counts what became of them.

Callers: the tests of this folder, through the fixture `stage`; `apps/` read the environment it gives them.
Guarantee: producers talk to the server itself and workers through the proxy, so that a fault of the line hits workers
only, unless a test says otherwise. Every application exists twice: `plain` is Dramatiq as it comes, `reliq` the same
actors after `reliq.install`.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import dramatiq
from dramatiq.brokers.redis import RedisBroker

import reliq
from reliq.testing import Census, Entry, FaultProxy, RedisServer, RunLog, Tally, WorkerGroup, eventually, tally
from reliq.testing import take_census as read_census
from reliq.testing.plugin import MakeWorkers
from reliq.transport.redis.scripts import source

Mode = Literal["reliq", "plain"]

TASKS = "tests.faults.apps.a_tasks"
#: A bound is three times its target: the machine that runs the tests may be busy.
SLACK = 3


class Stage:
    """One server, one proxy, one run log. Set `mode` before anything is sent or started."""

    def __init__(self, server: RedisServer, proxy: FaultProxy, make_workers: MakeWorkers, log: RunLog) -> None:
        self.server = server
        self.proxy = proxy
        self.log = log
        self.mode: Mode = "reliq"
        self._make_workers = make_workers
        self._producer: RedisBroker | None = None
        self._client = server.client()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        if self._producer is not None:
            self._producer.client.close()

    # -- running -------------------------------------------------------------------------------------------------

    def workers(
        self,
        module: str = TASKS,
        *,
        direct: bool = False,
        mode: Mode | None = None,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> WorkerGroup:
        """A stock worker process (4 threads) that is ready; `direct` goes past the proxy. `env` is for the app."""
        settings = {
            "APP_MODE": mode or self.mode,
            "APP_URL": self.server.url if direct else self.proxy.url(),
            "APP_LOG": str(self.log.path),
        }
        return self._make_workers(module, env={**settings, **(env or {})}, **options)

    # -- sending -------------------------------------------------------------------------------------------------

    @property
    def producer(self) -> RedisBroker:
        """A broker of this process that sends straight to the server, in the stage's mode."""
        if self._producer is None:
            self._producer = RedisBroker(url=self.server.url, middleware=[])
            if self.mode == "reliq":
                reliq.install(self._producer)
            self._producer.declare_queue("default")
        return self._producer

    def send(
        self, actor: str, keys: Iterable[int], *, delay: int | None = None, queue: str = "default", **kwargs: Any
    ) -> list[int]:
        """Send one task per key, `kwargs` with each; returns the keys."""
        sent = list(keys)
        for key in sent:
            self.producer.enqueue(message(actor, key, queue=queue, **kwargs), delay=delay)
        return sent

    # -- counting ------------------------------------------------------------------------------------------------

    def census(self) -> Census:
        """What the server holds now."""
        return read_census(self._client)

    def done(self) -> int:
        """How many keys have ended."""
        return len(self.log.keys("end"))

    def finish(self, keys: list[int], timeout: float) -> Tally:
        """Wait up to `timeout` s until every key has ended and nothing is left in the broker; then count, whatever
        came of it."""
        deadline = time.monotonic() + timeout
        if self.log.wait_for("end", len(set(keys)), timeout):
            with contextlib.suppress(TimeoutError):  # the count tells what is left
                eventually(self._idle, max(1.0, deadline - time.monotonic()), 0.05)
        return self.count(keys)

    def give_up(self, keys: list[int], *, quiet: float, timeout: float) -> Tally:
        """For plain Dramatiq: wait until all ended, or nobody has written anything for `quiet` s, then count. What
        is stored by then although workers are idle is stuck."""
        deadline = time.monotonic() + timeout
        size, since = -1, time.monotonic()
        while time.monotonic() < deadline and self.done() < len(set(keys)):
            entries = len(self.log.entries())
            if entries != size:
                size, since = entries, time.monotonic()
            if time.monotonic() - since > quiet:
                break
            time.sleep(0.1)  # sleep-ok: what is watched for is that nothing happens
        return self.count(keys)

    def count(self, keys: list[int]) -> Tally:
        """What became of the keys by now. Unacked counts as stuck: call it when workers should have ended."""
        return tally(keys, self.log, self.census(), live=lambda broker_id: False)

    def starts(self, key: int) -> list[Entry]:
        """The runs of one task."""
        return [entry for entry in self.log.entries() if entry.event == "start" and entry.key == key]

    def _idle(self) -> bool:
        census = self.census()
        return not census.count("ready", "unacked", "delayed", "stock_delayed", "ghost") and not census.orphans


def message(actor: str, key: int, *, queue: str = "default", **kwargs: Any) -> dramatiq.Message[Any]:
    """A task with one positional argument, its key."""
    return dramatiq.Message(queue_name=queue, actor_name=actor, args=(key,), kwargs=kwargs, options={})


def stranded(counted: Tally) -> int:
    """Tasks that are stored but that nobody has run, counted when workers have long been idle."""
    return counted.stuck + counted.waiting


def extra_runs(counted: Tally) -> int:
    """Runs that nobody had planned."""
    return counted.runs - counted.fails - counted.done


def calls(script: str, *also: bytes) -> Callable[[bytes], bool]:
    """Matches the requests that run one of reliq's scripts and contain `also`."""
    sha = hashlib.sha1(source(script).encode()).hexdigest().encode()
    return lambda request: sha in request and all(part in request for part in also)


def asks(command: bytes, *also: bytes) -> Callable[[bytes], bool]:
    """Matches plain Dramatiq's requests with this command and `also`."""
    word = b"$%d\r\n%s\r\n" % (len(command), command)
    return lambda request: b"EVALSHA" in request and word in request and all(part in request for part in also)
