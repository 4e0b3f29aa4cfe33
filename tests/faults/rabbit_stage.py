"""The stage of a fault test on RabbitMQ: sends tasks, starts stock workers, waits, and counts what became of them.

Callers: the `test_rabbit_*` modules, through the fixtures `rabbit_stage` (a vhost on the run's shared node, which must
stay up) and `mortal_rabbit_stage` (a vhost on a node that the test may kill, freeze and alarm); `apps/r_*` read the
environment it gives them. Guarantee: senders talk to the server itself and workers through the proxy, so that a fault
of the line hits workers only, unless a test says otherwise. Every application exists twice: `plain` is Dramatiq as it
comes, `reliq` the same actors after `reliq.install`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dramatiq.brokers.rabbitmq import RabbitmqBroker

import reliq
from reliq.testing import (
    Census,
    Entry,
    FaultProxy,
    Place,
    RabbitmqApi,
    RabbitmqServer,
    RunLog,
    Tally,
    WorkerGroup,
    eventually,
    tally,
)
from reliq.testing.plugin import MakeWorkers
from reliq.testing.rabbitmq_api import ApiError
from reliq.transport.rabbitmq.transport import RabbitTransport
from reliq.transport.settling import outgoing
from reliq.wiring import transport_of
from tests.faults.rabbit_census import STILL_S, busy, take_census, wait_idle
from tests.faults.stage import Mode, message

TASKS = "tests.faults.apps.r_tasks"
#: s within which workers that are ready have begun, on a machine that is busy with other tests.
START_S = 30


class RabbitStage:
    """One vhost, one proxy, one run log. Set `mode`, and `confirm` for plain Dramatiq, before anything is sent or
    started."""

    def __init__(
        self, server: RabbitmqApi, vhost: str, proxy: FaultProxy, make_workers: MakeWorkers, log: RunLog
    ) -> None:
        self.server = server
        self.vhost = vhost
        self.proxy = proxy
        self.log = log
        self.mode: Mode = "reliq"
        #: What plain Dramatiq's broker is given as `confirm_delivery`; reliq turns it on itself.
        self.confirm = False
        self.groups: list[WorkerGroup] = []
        self._make_workers = make_workers
        self._producer: RabbitmqBroker | None = None
        self._opened: list[RabbitmqBroker] = []
        self._twins: list[RabbitStage] = []

    def __enter__(self) -> RabbitStage:
        return self

    def __exit__(self, *_: object) -> None:
        for broker in self._opened:
            with contextlib.suppress(Exception):  # some tests leave them with a server that is gone
                close(broker)
        for twin in self._twins:
            twin.__exit__()
            for group in twin.groups:
                group.kill()
            with contextlib.suppress(ApiError):
                self.server.delete_vhost(twin.vhost)

    def twin(self, *, confirm: bool = False) -> RabbitStage:
        """A stage of plain Dramatiq on a vhost of its own, on the same server and behind the same proxy: what happens
        to one happens to both."""
        vhost = f"{self.vhost}-plain"
        self.server.add_vhost(vhost)
        log = RunLog(self.log.path.with_suffix(".plain.jsonl"))
        twin = RabbitStage(self.server, vhost, self.proxy, self._make_workers, log)
        twin.mode, twin.confirm = "plain", confirm
        self._twins.append(twin)
        return twin

    @property
    def node(self) -> RabbitmqServer:
        """The server of a `mortal_rabbit_stage`, to be killed, frozen or alarmed."""
        assert isinstance(self.server, RabbitmqServer), "the shared node must stay up; use mortal_rabbit_stage"
        return self.server

    # -- running -------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Straight to the server."""
        return self.server.url(self.vhost)

    @property
    def proxied_url(self) -> str:
        """Through the proxy."""
        return self.server.url(self.vhost, port=self.proxy.port)

    def workers(
        self,
        module: str = TASKS,
        *,
        direct: bool = False,
        mode: Mode | None = None,
        env: dict[str, str] | None = None,
        delivery: dict[str, Any] | None = None,
        **options: Any,
    ) -> WorkerGroup:
        """A stock worker process (4 threads) that is ready; `direct` goes past the proxy. `env` is for the app,
        `delivery` for its `reliq.Delivery`; other options are those of `WorkerGroup`."""
        settings = self.environment(mode=mode, direct=direct, delivery=delivery)
        group = self._make_workers(module, env={**settings, **(env or {})}, **options)
        self.groups.append(group)
        return group

    def environment(
        self, *, mode: Mode | None = None, direct: bool = False, delivery: dict[str, Any] | None = None
    ) -> dict[str, str]:
        """What a process of an application needs to know: see `apps/r_broker.py`."""
        return {
            "APP_MODE": mode or self.mode,
            "APP_URL": self.url if direct else self.proxied_url,
            "APP_CONFIRM": "1" if self.confirm else "",
            "APP_DELIVERY": json.dumps(delivery or {}),
            "APP_LOG": str(self.log.path),
        }

    def kill_workers(self) -> None:
        """SIGKILL to every group, and wait until the broker has taken back what they held."""
        for group in self.groups:
            group.kill()
        eventually(lambda: not self._unacked(), 30, 0.1, "the broker to take back what the killed held", (ApiError,))

    # -- sending -------------------------------------------------------------------------------------------------

    def broker(self, url: str | None = None, *, mode: Mode | None = None, **delivery: Any) -> RabbitmqBroker:
        """A sender's broker of this process, without middleware; closed after the test. `delivery` goes to
        `reliq.Delivery`."""
        broker = RabbitmqBroker(url=url or self.url, middleware=[], confirm_delivery=self.confirm)
        if (mode or self.mode) == "reliq":
            reliq.install(broker, reliq.Delivery(**delivery))
        self._opened.append(broker)
        return broker

    @property
    def producer(self) -> RabbitmqBroker:
        """The sender that `send` uses: straight to the server, in the stage's mode."""
        if self._producer is None:
            self._producer = self.broker()
            self._producer.declare_queue("default")
        return self._producer

    @property
    def transport(self) -> RabbitTransport:
        """The producer's, which is also a desk: letters, depths."""
        transport = transport_of(self.producer)
        assert isinstance(transport, RabbitTransport)
        return transport

    def send(
        self, actor: str, keys: Iterable[int], *, delay: int | None = None, queue: str = "default", **kwargs: Any
    ) -> list[int]:
        """Send one task per key, `kwargs` with each; returns the keys. With reliq pipelined, all confirmed."""
        sent = list(keys)
        messages = [message(actor, key, queue=queue, **kwargs) for key in sent]
        if self.mode == "plain":
            for each in messages:
                self.producer.enqueue(each, delay=delay)
            return sent
        outcomes = self.transport.publish_many([outgoing(self.transport, each, delay) for each in messages])
        assert outcomes == [None] * len(sent)
        return sent

    # -- counting ------------------------------------------------------------------------------------------------

    def census(self) -> Census:
        """What is ready in any queue now; what workers hold is not seen. Makes all of it `redelivered`: look at what
        runs with `busy`."""
        return take_census(self.server, self.vhost)

    def busy(self) -> dict[str, tuple[int, int]]:
        """Queue -> (ready, unacked) where there is anything; `.dead` and `.XQ` left out. At most 0.25 s old."""
        return busy(self.server, self.vhost)

    def unacked(self, queue: str = "default") -> int:
        """How many messages of a queue workers hold. At most 0.25 s old."""
        return self.busy().get(queue, (0, 0))[1]

    def done(self) -> int:
        """How many keys have ended."""
        return len(self.log.keys("end"))

    def finish(self, keys: list[int], timeout: float) -> Tally:
        """Wait up to `timeout` s until every key has ended, then count, whatever came of it. When all have, nothing
        but letters may be left: what is done and yet held would run again one day. Raises `TimeoutError` for that."""
        deadline = time.monotonic() + timeout
        if self.log.wait_for("end", len(set(keys)), timeout):
            self.wait_idle(max(5.0, deadline - time.monotonic()))
        return self.count(keys)

    def wait_idle(self, timeout: float) -> None:
        """Wait until no queue holds anything, ready or unacked, but those of the dead. Raises `TimeoutError`."""
        wait_idle(self.server, self.vhost, timeout)

    def give_up(self, keys: list[int], *, quiet: float, timeout: float) -> Tally:
        """For plain Dramatiq: wait until all ended, or nobody has written anything for `quiet` s, then count. What
        is stored by then although workers are idle is stuck."""
        deadline = time.monotonic() + timeout
        size, since = -1, time.monotonic()
        while time.monotonic() < deadline and self.done() < len(set(keys)):
            entries = len(self.log.entries())
            if entries != size:
                size, since = entries, time.monotonic()
            if time.monotonic() - since > quiet:
                break
            time.sleep(0.1)  # sleep-ok: what is watched for is that nothing happens
        return self.count(keys)

    def count(self, keys: Iterable[int]) -> Tally:
        """What became of the keys by now. What workers hold counts as stuck, and they are killed to see it: call it
        when they should have ended."""
        return tally(keys, self.log, self.last_census(), live=lambda holder: False)

    def last_census(self) -> Census:
        """The census, and what workers held as "unacked": if they hold anything they are killed for it."""
        time.sleep(STILL_S)  # sleep-ok: until the counts of the queues are of now
        if not self._unacked():
            return self.census()
        before = Counter(_identity(place) for place in self.census())
        self.kill_workers()
        places = []
        for place in self.census():
            before[_identity(place)] -= 1
            held = before[_identity(place)] < 0
            places.append(replace(place, state="unacked", holder="a worker") if held else place)
        return Census(tuple(places), now_ms=0)

    def starts(self, key: int) -> list[Entry]:
        """The runs of one task."""
        return [entry for entry in self.log.entries() if entry.event == "start" and entry.key == key]

    def took_since(self, mono: float) -> float:
        """Seconds from `mono` (monotonic) to the last thing that a task wrote."""
        last = max(entry.at for entry in self.log.entries())
        return max(0.0, last - (time.time() - (time.monotonic() - mono)))

    def letters(self, queue: str = "default") -> list[dict[str, Any]]:
        """Every dead letter as `reliq dlq show -o json` gives it, oldest death first."""
        return [letter.as_dict() for letter in self.transport.dead_letters(queue)]

    def _unacked(self) -> int:
        queues = self.server.queues(self.vhost)
        return sum(int(queue["messages_unacknowledged"]) for queue in queues)


def _identity(place: Place) -> tuple[str, bytes]:
    return place.queue, place.body


def close(broker: RabbitmqBroker) -> None:
    """Close whatever a broker has opened, ours or its own."""
    transport = transport_of(broker)
    if isinstance(transport, RabbitTransport):
        transport.disconnect()
    broker.close()
