"""The broker of the applications on RabbitMQ, their run log, and what their tasks share.

Their environment (see `rabbit_stage.py`): APP_MODE plain or reliq, APP_URL, APP_LOG, APP_CONFIRM (plain Dramatiq's
`confirm_delivery`), APP_DELIVERY (JSON for `reliq.Delivery`); optional, in ms: APP_MIN_BACKOFF, APP_MAX_BACKOFF.
"""

import json
import os
from pathlib import Path

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from reliq.testing import RunLog

env = os.environ
log = RunLog(env["APP_LOG"])
broker = RabbitmqBroker(url=env["APP_URL"], confirm_delivery=bool(env.get("APP_CONFIRM")))
if env["APP_MODE"] == "reliq":
    import reliq

    reliq.install(broker, reliq.Delivery(**json.loads(env.get("APP_DELIVERY", "{}"))))
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
