"""The broker of one side of the demo: the only place where the two sides differ.

Callers: the app in its workers, the stage where it sends and reads letters.
"""

from __future__ import annotations

from typing import Literal

from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage

import reliq

Name = Literal["plain", "reliq"]

QUEUE = "default"
#: How a worker is told which side it is on, where its server is, and where to log.
ENV_SIDE, ENV_URL, ENV_LOG = "RELIQ_DEMO_SIDE", "RELIQ_DEMO_URL", "RELIQ_DEMO_LOG"


def namespace_of(side: Name) -> str:
    """The prefix of a side's keys; both live on one server."""
    return f"demo-{side}"


def make_broker(side: Name, url: str) -> RedisBroker:
    """Dramatiq's Redis broker with its defaults; on the side "reliq", installed with reliq's."""
    broker = RedisBroker(url=url, namespace=namespace_of(side))
    broker.add_middleware(CurrentMessage())
    if side == "reliq":
        reliq.install(broker)
    return broker
