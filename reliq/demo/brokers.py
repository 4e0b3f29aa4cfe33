"""The broker of one side of the demo: the only place where the two sides differ.

Callers: the app in its workers, the sides where they send, `run` where letters are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from dramatiq.broker import Broker
from dramatiq.middleware import CurrentMessage

import reliq
from reliq.wiring import transport_of

Kind = Literal["redis", "rabbitmq"]
Name = Literal["plain", "reliq"]

QUEUE = "default"
#: How a worker is told which side it is on, where its server is, and where to log.
ENV_SIDE, ENV_URL, ENV_LOG = "RELIQ_DEMO_SIDE", "RELIQ_DEMO_URL", "RELIQ_DEMO_LOG"


def namespace_of(side: Name) -> str:
    """The prefix of a side's keys in Redis; both live on one server."""
    return f"demo-{side}"


@contextmanager
def reader(side: Name, url: str) -> Iterator[Broker]:
    """A broker with reliq at a side's place, whatever the side itself has: what reads its dead letters."""
    broker = _stock_broker(side, url)
    reliq.install(broker)
    transport = transport_of(broker)
    assert transport is not None
    try:
        yield broker
    finally:
        transport.disconnect()


def make_broker(side: Name, url: str) -> Broker:
    """Dramatiq's broker for this URL with its defaults; on the side "reliq", installed with reliq's."""
    broker = _stock_broker(side, url)
    broker.add_middleware(CurrentMessage())
    if side == "reliq":
        reliq.install(broker)
    return broker


def _stock_broker(side: Name, url: str) -> Broker:
    if url.startswith("amqp"):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=url)
    from dramatiq.brokers.redis import RedisBroker

    return RedisBroker(url=url, namespace=namespace_of(side))
