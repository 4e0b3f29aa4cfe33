"""`a_tasks` with a time limit that strikes while a failed message is being settled."""

import threading
import time

import dramatiq
from dramatiq.middleware import TimeLimit

from tests.faults.apps.a_tasks import BACKOFF, broker, fail_until, log

broker.middleware[:] = [TimeLimit(interval=50) if isinstance(m, TimeLimit) else m for m in broker.middleware]


@dramatiq.actor(time_limit=400, max_retries=20, **BACKOFF)
def late(key: int) -> None:
    """Fails 150 ms before its time limit, once."""
    log.record("start", key)
    time.sleep(0.25)  # sleep-ok: the task's own work
    fail_until(key, 1)
    log.record("end", key)


@dramatiq.actor
def roll_call(key: int) -> None:
    """Says how many worker threads are alive."""
    alive = sum(type(thread).__name__ == "WorkerThread" for thread in threading.enumerate())
    log.record("threads", key, alive=alive)
    log.record("end", key)
