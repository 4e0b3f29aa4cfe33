"""Beside `a_tasks`: kills the worker process right after a retry was stored, once per attempt of each task."""

import contextlib
import os
import signal
from typing import Any

import dramatiq

from tests.faults.apps.a_tasks import FAILURES, broker, log


class KillAfterRetry(dramatiq.Middleware):
    """In `after_enqueue`: the retry is in Redis, and plain Dramatiq has not acked the original yet."""

    def after_enqueue(self, broker: dramatiq.Broker, message: dramatiq.Message[Any], delay: int | None) -> None:
        if delay is None:
            return
        marker = FAILURES / f"killed-{message.args[0]}.{message.options['retries']}"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            log.record("kill", message.args[0])
            os.kill(os.getpid(), signal.SIGKILL)


broker.add_middleware(KillAfterRetry())
