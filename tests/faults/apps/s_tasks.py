"""Tasks on RabbitMQ that fail by their message's own count, so that a copy of a message fails as often as the message.

What they share with `r_tasks` is told in `r_broker`.
"""

import time

import dramatiq
from dramatiq.middleware import CurrentMessage

from tests.faults.apps.r_broker import BACKOFF, broker, fail_until, log

broker.add_middleware(CurrentMessage())


@dramatiq.actor(max_retries=20, **BACKOFF)
def flaky(key: int, times: int = 1, seconds: float = 0) -> None:
    """Fails on its first attempts, then succeeds."""
    log.record("start", key)
    time.sleep(seconds)  # sleep-ok: the task's own work
    retries = CurrentMessage.get_current_message().options.get("retries", 0)
    if retries < times:
        log.record("fail", key)
        raise RuntimeError(f"failure {retries + 1} of {times}")
    log.record("end", key)


@dramatiq.actor(max_retries=20, **BACKOFF)
def work(key: int, seconds: float = 0) -> None:
    """Takes a while and succeeds."""
    log.record("start", key)
    time.sleep(seconds)  # sleep-ok: the task's own work
    log.record("end", key)


@dramatiq.actor(max_retries=0)
def doomed(key: int) -> None:
    """Fails for good."""
    log.record("start", key)
    raise ValueError(f"for good: {key}")


@dramatiq.actor(max_retries=20, **BACKOFF)
def large(key: int, pad: str) -> None:
    """Fails once, whatever its message can remember of it."""
    log.record("start", key)
    fail_until(key, 1)
    log.record("end", key)


@dramatiq.actor(max_retries=0)
def large_and_doomed(key: int, pad: str) -> None:
    """Fails for good."""
    log.record("start", key)
    raise ValueError(f"for good: {key}")
