"""Beside `r_tasks`: tasks that a deploy interrupts, with no retry to spend."""

import time

import dramatiq
from dramatiq.middleware import Shutdown

from tests.faults.apps.r_broker import log


@dramatiq.actor(max_retries=0, notify_shutdown=True)
def interruptible(key: int, seconds: float = 3) -> None:
    """Works in small steps; a deploy raises `Shutdown` between two of them."""
    log.record("start", key)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            time.sleep(0.02)  # sleep-ok: the task's own work
    except Shutdown:
        log.record("interrupted", key)
        raise
    log.record("end", key)
