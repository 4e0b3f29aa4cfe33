"""A worker process that kills itself at one step of the protocol, as kill -9 would. Run by `promises/kills.py`.

Its argument is JSON: `connect` ("module:function", called with `broker`, gives a broker without reliq), `arm`
("module:function", called with the broker with reliq and a function that strikes), `point` (step, nth, when), `log`.
It stops by itself, with exit code 0, after three tasks: whoever expected it to die sees that it did not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import dramatiq
from dramatiq.broker import Broker
from dramatiq.worker import Worker

import reliq
from reliq.testing import RunLog

LEASE_MS = 1_000


def named(where: str) -> Any:
    """What a "module:name" leads to."""
    module, name = where.split(":")
    return getattr(import_module(module), name)


def declare(broker: Broker, log: RunLog, slow_after: int | None = None) -> Any:
    """The actors of victim and survivor: `work(key, how)` ends as `how` says, and is called back. Once `slow_after`
    have ended it takes 0.3 s, so that a worker which stops then has something left to give back."""
    dramatiq.set_broker(broker)

    @dramatiq.actor(actor_name="told")
    def told(message: Any, result: Any) -> None:
        log.record("end", message["args"][0] + 1_000)

    @dramatiq.actor(actor_name="sent")
    def sent(key: int) -> None:
        log.record("end", key)

    @dramatiq.actor(actor_name="work", on_success="told", min_backoff=20, max_backoff=40)
    def work(key: int, how: str) -> None:
        log.record("start", key)
        if how == "never":
            raise reliq.Permanent("never")
        if how == "flaky" and key not in log.keys("fail"):
            log.record("fail", key)
            raise ValueError("once")
        if how == "sends":
            sent.send(key + 2_000)
        slow = slow_after is not None and len(log.keys("end")) >= slow_after
        time.sleep(0.3 if slow else 0.02)  # sleep-ok: the task works, so that others are prefetched meanwhile
        log.record("end", key)

    return work


def striker(point: tuple[str, int, str]) -> Callable[[str, str], None]:
    """A function to be called around each step; it kills this process at the point."""
    step, nth, when = point
    counted = 0

    def strike(name: str, moment: str) -> None:
        nonlocal counted
        if name == step and moment == when:
            counted += 1
            if counted == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    return strike


def main() -> None:
    """Work until the point, or until three tasks are done."""
    about = json.loads(sys.argv[1])
    log = RunLog(about["log"])
    broker = named(about["connect"])(about["broker"])
    reliq.install(broker, reliq.Delivery(lease=LEASE_MS))
    declare(broker, log, about["stop_after"])
    named(about["arm"])(broker, striker(tuple(about["point"])))
    worker = Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    give_up = time.monotonic() + 20

    def goes_on() -> bool:
        # What is to be killed while it gives something back must have something to give.
        lacks = about["point"][0] == "requeue" and not worker.work_queue.qsize()
        return len(log.keys("end")) < about["stop_after"] or lacks

    while goes_on() and time.monotonic() < give_up:
        time.sleep(0.01)  # sleep-ok: a look at the log, in a process that ends by itself
    worker.stop()


if __name__ == "__main__":
    main()
