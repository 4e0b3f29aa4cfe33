"""`Rig` on RabbitMQ: the same application, senders and counts in a vhost of the run's node.

Callers: `test_payloads`, `test_payloads_letters`, whose tests run on both brokers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker

import reliq
from reliq.testing import Census, RabbitmqApi, RunLog
from reliq.testing.census import State
from reliq.testing.plugin import MakeWorkers
from reliq.transport.rabbitmq.transport import RabbitTransport
from reliq.wiring import transport_of
from tests.faults.b_rig import APPS, Rig, shared_rig
from tests.faults.rabbit_census import connected, held, take_census, wait_idle

KINDS = ("redis", "rabbitmq")


class RabbitRig(Rig):
    """One application in one vhost."""

    kind = "rabbitmq"

    def __init__(
        self,
        server: RabbitmqApi,
        vhost: str,
        log: RunLog,
        make_workers: MakeWorkers,
        figure: Callable[[object], None],
    ) -> None:
        self.api, self.vhost, self.log = server, vhost, log
        self.url = server.url(vhost)
        self.sent = []
        self._make_workers = make_workers
        self._figure = figure
        self._senders: dict[str, RabbitmqBroker] = {}
        self._raw = ExitStack()
        self._channel: Any = None

    # -- sending

    def broker(self, mode: str = "reliq") -> RabbitmqBroker:  # type: ignore[override]
        """A sender's broker."""
        if mode not in self._senders:
            broker = self._senders[mode] = RabbitmqBroker(url=self.url, middleware=[])
            if mode == "reliq":
                reliq.install(broker)
            broker.declare_queue("default")
        return self._senders[mode]

    @property
    def transport(self) -> RabbitTransport:  # type: ignore[override]
        """The sender's transport, which is also the desk's."""
        transport = transport_of(self.broker("reliq"))
        assert isinstance(transport, RabbitTransport)
        return transport

    def put(self, body: bytes | str | dict[str, Any], entry: str, queue: str = "default") -> None:
        """Put raw bytes on a queue, as no producer of ours would."""
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        self.transport.declared.queue("default")
        if self._channel is None:
            self._channel = self._raw.enter_context(connected(self.api, self.vhost)).channel()
            self._channel.confirm_delivery()
        self._channel.basic_publish("", queue, raw, pika.BasicProperties(delivery_mode=2), mandatory=True)

    def body(self, actor: str = "work", *args: Any, **changes: Any) -> dict[str, Any]:
        """The fields of a good message, with changes."""
        return super().body(actor, *args, **{"options": {}, **changes})

    def environment(
        self, mode: str, url: str | None = None, settings: dict[str, Any] | None = None, /
    ) -> dict[str, str]:
        """What a process of the application needs to know."""
        return {
            **os.environ,
            "PYTHONPATH": str(APPS.parents[2]),
            "APP_MODE": mode,
            "APP_URL": url or self.url,
            "APP_LOG": str(self.log.path),
            "APP_SETTINGS": json.dumps(settings or {}),
        }

    # -- counting

    def census(self) -> Census:
        """What is in the queues now; looking makes it `redelivered`."""
        return take_census(self.api, self.vhost)

    def holds(self, *states: State) -> int:
        """How many messages the broker has in these states, with workers or not."""
        counts = held(self.api, self.vhost)
        return sum(counts[state] for state in states)

    def wait_settled(self, timeout: float = 40) -> None:
        """Wait until nothing is ready, running or delayed: all is done or dead."""
        wait_idle(self.api, self.vhost, timeout)

    def close(self) -> None:
        """Close what the sending side has opened."""
        self._raw.close()
        for broker in self._senders.values():
            transport = transport_of(broker)
            if isinstance(transport, RabbitTransport):
                transport.disconnect()
            broker.close()


def rig_of_a_kind(
    request: pytest.FixtureRequest, run_log: RunLog, worker_group: MakeWorkers, figure: Callable[[object], None]
) -> Iterator[Rig]:
    """A fixture function: an application on a server that other tests use too; on Redis unless its parameter is the
    other of `KINDS`."""
    if getattr(request, "param", "redis") == "redis":
        server, namespace = request.getfixturevalue("shared_redis"), request.getfixturevalue("namespace")
        yield from shared_rig(server, namespace, run_log, worker_group, figure)
        return
    server, vhost = request.getfixturevalue("shared_rabbitmq"), request.getfixturevalue("vhost")
    rig = RabbitRig(server, vhost, run_log, worker_group, figure)
    yield rig
    rig.close()
