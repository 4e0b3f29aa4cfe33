"""What the tests of this half share: an application on one Redis namespace, its senders, workers and counts.

Callers: `test_defects`, `test_delays`, `test_payloads`, `test_mixed`, `test_drain`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dramatiq.brokers.redis import RedisBroker
from dramatiq.message import Message

import reliq
from reliq.message.letter import DeadLetter
from reliq.testing import Census, RedisServer, RunLog, Tally, WorkerGroup, eventually, take_census, tally
from reliq.testing.census import State
from reliq.testing.plugin import MakeWorkers
from reliq.transport.redis.transport import RedisTransport
from reliq.transport.settling import outgoing
from reliq.wiring import transport_of

APPS = Path(__file__).parent / "apps"

MODES = ("plain", "reliq")
#: Where a message is neither done nor dead.
OPEN_STATES: tuple[State, ...] = ("ready", "unacked", "delayed", "stock_delayed", "ghost")


class Rig:
    """One application in one namespace of one Redis. (On RabbitMQ: `rabbit_rig.py`.)"""

    kind = "redis"

    def __init__(
        self,
        server: RedisServer,
        namespace: str,
        log: RunLog,
        make_workers: MakeWorkers,
        figure: Callable[[object], None],
    ) -> None:
        self.server, self.namespace, self.log = server, namespace, log
        self.client = server.client()
        self.url = server.url
        self.sent: list[Any] = []
        self._make_workers = make_workers
        self._figure = figure
        self._brokers: dict[str, RedisBroker] = {}

    # -- sending

    def broker(self, mode: str = "reliq") -> RedisBroker:
        """A sender's broker, straight to the server."""
        if mode not in self._brokers:
            client = self.server.client()
            broker = RedisBroker(client=client, namespace=self.namespace, middleware=[])
            if mode == "reliq":
                reliq.install(broker)
            broker.declare_queue("default")
            self._brokers[mode] = broker
        return self._brokers[mode]

    @property
    def transport(self) -> RedisTransport:
        """The sender's transport, which is also the desk's."""
        transport = transport_of(self.broker("reliq"))
        assert isinstance(transport, RedisTransport)
        return transport

    def message(self, actor: str, *args: Any, **options: Any) -> Message[Any]:
        """A message for queue `default`; its first argument, the key, counts as sent."""
        self.sent.append(args[0] if args else None)
        return Message(queue_name="default", actor_name=actor, args=args, kwargs={}, options=options)

    def send(self, actor: str, *args: Any, mode: str = "reliq", delay: int | None = None, **options: Any) -> str:
        """Send one message; returns its id."""
        message = self.broker(mode).enqueue(self.message(actor, *args, **options), delay=delay)
        return str(message.message_id)

    def send_many(
        self, actor: str, keys: Iterable[Any], *, delay: int | None = None, args: tuple[Any, ...] = ()
    ) -> None:
        """Send one message per key, pipelined, with reliq."""
        items = [outgoing(self.transport, self.message(actor, key, *args), delay) for key in keys]
        assert self.transport.publish_many(items) == [None] * len(items)

    def put(self, body: bytes | str | dict[str, Any], entry: str, queue: str = "default") -> None:
        """Put raw bytes on a queue, as no producer of ours would."""
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        base = f"{self.namespace}:{queue}"
        with self.client.pipeline() as pipe:
            pipe.hset(f"{base}.msgs", entry, raw)
            pipe.rpush(base, entry)
            pipe.execute()

    def body(self, actor: str = "work", *args: Any, **changes: Any) -> dict[str, Any]:
        """The fields of a good message, with changes."""
        fields = Message(queue_name="default", actor_name=actor, args=args, kwargs={}, options={}).asdict()
        fields["options"] = {"redis_message_id": f"entry-{args[0] if args else actor}"}
        return {**fields, **changes}

    # -- running

    def workers(
        self,
        mode: str = "reliq",
        *,
        env: dict[str, str] | None = None,
        threads: int = 4,
        ready: bool = True,
        url: str | None = None,
        module: str = "b_app",
        **settings: Any,
    ) -> WorkerGroup:
        """A stock worker process on this namespace; `settings` go to the app (see b_app.py)."""
        environment = {**self.environment(mode, url, settings), **(env or {})}
        return self._make_workers(module, ready=ready, cwd=APPS, threads=threads, env=environment)

    def environment(
        self, mode: str, url: str | None = None, settings: dict[str, Any] | None = None, /
    ) -> dict[str, str]:
        """What a process of the application needs to know."""
        return {
            **os.environ,
            "PYTHONPATH": str(APPS.parents[2]),
            "APP_MODE": mode,
            "APP_URL": url or self.url,
            "APP_NAMESPACE": self.namespace,
            "APP_LOG": str(self.log.path),
            "APP_SETTINGS": json.dumps(settings or {}),
        }

    # -- counting

    def census(self) -> Census:
        """What Redis holds now."""
        return take_census(self.client, self.namespace)

    def holds(self, *states: State) -> int:
        """How many messages the broker has in these states."""
        return self.census().count(*states)

    def letters(self, queue: str = "default") -> list[dict[str, Any]]:
        """Every dead letter as `reliq dlq show -o json` gives it, oldest death first."""
        return [letter.as_dict() for letter in self.raw_letters(queue)]

    def raw_letters(self, queue: str = "default") -> list[DeadLetter]:
        """Every dead letter."""
        return list(self.transport.dead_letters(queue))

    def tally(self, keys: Iterable[Any] | None = None, **options: Any) -> Tally:
        """The fate of all keys sent so far, or of some."""
        return tally(self.sent if keys is None else keys, self.log, self.census(), **options)

    def count(self, what: object) -> None:
        """Say how the test ended, in numbers."""
        self._figure(what)

    def waits_where(self, mode: str) -> int:
        """How many delayed messages have got where this kind of worker keeps them."""
        census = self.census()
        if mode == "reliq":
            return census.count("delayed")
        return sum(1 for place in census.of("unacked") if b".DQ" in place.body)

    def pause(self, seconds: float) -> None:
        """Let a fault last, or give what must not happen the time to happen."""
        time.sleep(seconds)  # sleep-ok: the fault's own length, or the time in which nothing may happen

    def wait_done(self, number: int, timeout: float = 40) -> None:
        """Wait until `number` different keys have ended."""
        assert self.log.wait_for("end", number, timeout), f"{self.log!r}; {self.census()}"

    def wait_settled(self, timeout: float = 40) -> None:
        """Wait until nothing is ready, running or delayed: all is done or dead."""
        eventually(
            lambda: self.holds(*OPEN_STATES) == 0,
            timeout,
            0.05,
            f"every message to be done or dead ({self.log!r}, {self.census()})",
        )

    def wait_for(self, condition: Callable[[], Any], what: str, timeout: float = 40) -> Any:
        """Wait for a condition."""
        return eventually(condition, timeout, 0.03, what)

    def started(self) -> dict[Any, float]:
        """Key -> the machine's time of its first start, in s."""
        first: dict[Any, float] = {}
        for entry in self.log.entries():
            if entry.event == "start" and "real" in entry.fields:
                first.setdefault(entry.key, entry.fields["real"])
        return first

    def close(self) -> None:
        """Close what the sending side has opened."""
        for broker in self._brokers.values():
            transport = transport_of(broker)
            if isinstance(transport, RedisTransport):
                transport.disconnect()
                transport.scripts.client.connection_pool.disconnect()
            broker.close()


def shared_rig(
    shared_redis: RedisServer,
    namespace: str,
    run_log: RunLog,
    worker_group: MakeWorkers,
    figure: Callable[[object], None],
) -> Iterator[Rig]:
    """A fixture function: an application on a Redis that other tests use too."""
    rig = Rig(shared_redis, namespace, run_log, worker_group, figure)
    yield rig
    rig.close()


def own_rig(
    redis_server: RedisServer, run_log: RunLog, worker_group: MakeWorkers, figure: Callable[[object], None]
) -> Iterator[Rig]:
    """A fixture function: an application on a Redis of its own, which the test may kill."""
    rig = Rig(redis_server, "dramatiq", run_log, worker_group, figure)
    yield rig
    rig.close()


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
