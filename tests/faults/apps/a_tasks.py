"""The application of most fault tests: tasks that take a while, or fail a given number of times.

Its environment (see `stage.py`): APP_MODE plain or reliq, APP_URL, APP_LOG; optional, in ms: APP_LEASE,
APP_HEARTBEAT_TIMEOUT (Dramatiq's own), APP_MIN_BACKOFF, APP_MAX_BACKOFF; APP_MAINTENANCE, commands in a million.
"""

import os
import time
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from reliq.testing import RunLog

env = os.environ
log = RunLog(env["APP_LOG"])
broker = RedisBroker(
    url=env["APP_URL"],
    heartbeat_timeout=int(env.get("APP_HEARTBEAT_TIMEOUT", "60000")),
    maintenance_chance=int(env.get("APP_MAINTENANCE", "1000")),
)
if env["APP_MODE"] == "reliq":
    import reliq

    reliq.install(broker, reliq.Delivery(lease=int(env.get("APP_LEASE", "10000"))))
dramatiq.set_broker(broker)

FAILURES = Path(env["APP_LOG"] + ".failures")
FAILURES.mkdir(exist_ok=True)
BACKOFF = {
    "min_backoff": int(env.get("APP_MIN_BACKOFF", "500")),
    "max_backoff": int(env.get("APP_MAX_BACKOFF", "2000")),
}


def fail_until(key: int, times: int) -> None:
    """Raise `times` times in all processes together; a file per failure, so that no kill makes it forget one."""
    for number in range(times):
        try:
            os.close(os.open(FAILURES / f"{key}.{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        log.record("fail", key)
        raise RuntimeError(f"failure {number + 1} of {times}")


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
