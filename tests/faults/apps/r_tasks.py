"""The application of most fault tests on RabbitMQ: tasks that take a while, or fail a given number of times."""

import os
import time

import dramatiq

from tests.faults.apps.r_broker import BACKOFF, fail_until, log


@dramatiq.actor(max_retries=20, **BACKOFF)
def flaky(key: int, times: int = 1, seconds: float = 0) -> None:
    """Fails so many times, then succeeds."""
    log.record("start", key)
    time.sleep(seconds)  # sleep-ok: the task's own work
    fail_until(key, times)
    log.record("end", key)


@dramatiq.actor(max_retries=20, **BACKOFF)
def work(key: int, seconds: float = 0) -> None:
    """Takes a while and succeeds."""
    log.record("start", key)
    time.sleep(seconds)  # sleep-ok: the task's own work
    log.record("end", key)


@dramatiq.actor(max_retries=20, **BACKOFF)
def hold(key: int, gate: str) -> None:
    """Runs until the file `gate` is there."""
    log.record("start", key)
    while not os.path.exists(gate):
        time.sleep(0.02)  # sleep-ok: polls for the file
    log.record("end", key)


@dramatiq.actor(max_retries=0)
def doomed(key: int) -> None:
    """Fails for good."""
    log.record("start", key)
    raise ValueError("for good")
