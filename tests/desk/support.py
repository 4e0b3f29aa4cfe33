"""Letters of every origin, put into a real broker, for the tests of the desk and of the command line."""

from __future__ import annotations

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from typing import Any

from dramatiq.broker import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.message import Message

from reliq.message.letter import death
from reliq.message.record import Record, with_record
from reliq.message.verdict import Failure, Reason
from reliq.transport.base import Transport
from reliq.transport.delivered import Unreadable
from reliq.transport.redis.items import store_arguments
from reliq.transport.settlement import Bury
from reliq.transport.settling import bury_raw
from reliq.wiring import attach, transport_of

HOUR_MS = 3_600_000


class Morgue(ABC):
    """A place of its own on a broker, its transport, and ways to put letters into it. Deaths are a second apart, the
    first one an hour ago, unless `died_at_ms` says otherwise."""

    #: The options that lead the command line here.
    options: tuple[str, ...]
    #: Python that makes a broker for here: an import, and a constructor.
    code: tuple[str, str]
    url: str
    transport: Transport[Any]

    def __init__(self) -> None:
        self._clock_ms = int(time.time() * 1000) - HOUR_MS

    def letter(
        self,
        *args: Any,
        actor: str = "charge",
        queue: str = "default",
        reason: Reason = "retries_exhausted",
        error: BaseException | None = None,
        died_at_ms: int | None = None,
        version: str | None = None,
        options: dict[str, Any] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> str:
        """One of reliq's; returns its id."""
        message: Message[Any] = Message(queue, actor, args, kwargs or {}, options or {})
        record = Record.read(message.options)
        failure = Failure.of(actor, error or ZeroDivisionError("division by zero"))
        record.add_attempt(at=self._clock_ms, error=failure.error, message=failure.message)
        record.dead = death(
            reason=reason,
            actor=actor,
            queue=queue,
            attempts=1,
            failure=failure,
            broker=self.transport.kind,
            version=version,
            died_at_ms=died_at_ms or self.tick(),
        )
        kept = message.asdict() | {"options": with_record(message.options, record) | {"retries": 1, "traceback": "x"}}
        buried: Message[Any] = Message(**kept)
        return self.put(Bury(queue, record.dead, buried.encode(), buried))

    def raw(self, body: bytes, queue: str = "default") -> str:
        """One of reliq's whose body cannot be read."""
        bury = bury_raw(self.transport, queue, body, Unreadable("malformed", "the body cannot be decoded: it is junk"))
        bury.dead["died_at"] = self.tick()
        return self.put(dataclasses.replace(bury, meta=json.dumps(bury.dead).encode()))

    def tick(self) -> int:
        """The time of the next death."""
        self._clock_ms += 1_000
        return self._clock_ms

    @abstractmethod
    def put(self, bury: Bury) -> str:
        """Store a letter; returns its id."""

    @abstractmethod
    def stock(self, *args: Any, actor: str = "charge", queue: str = "default", body: bytes | None = None) -> str:
        """One of plain Dramatiq's; returns its id."""

    def queued(self, queue: str = "default") -> list[dict[str, Any]]:
        """The messages that are ready on a queue, decoded, in order."""
        return [json.loads(body) for body in self.bodies(queue)]

    @abstractmethod
    def bodies(self, queue: str = "default") -> list[bytes]:
        """The same, as they are."""

    @abstractmethod
    def dump(self) -> dict[Any, Any]:
        """All that lies here: equal dumps mean that nothing was changed."""

    @abstractmethod
    def application(self) -> Broker:
        """A broker as an application makes it, without reliq."""

    def close_application(self, broker: Broker) -> None:
        """Its connections, once its workers have stopped."""
        transport_of(broker).disconnect()  # type: ignore[union-attr]

    @abstractmethod
    def close(self) -> None:
        """Leave nothing behind."""


class RedisMorgue(Morgue):
    """A namespace on a Redis."""

    def __init__(self, url: str, namespace: str) -> None:
        super().__init__()
        self.url = url
        self.namespace = namespace
        self.options = ("--url", url, "--namespace", namespace)
        self.code = (
            "from dramatiq.brokers.redis import RedisBroker",
            f"RedisBroker(url={url!r}, namespace={namespace!r})",
        )
        self.broker = RedisBroker(url=url, namespace=namespace, middleware=[])
        self.transport: Any = attach(self.broker)
        self.client = self.broker.client
        # The first call of a script is two requests: tests that count requests want it behind them.
        self.transport.sender.raw("letters", ["discard", "reliq", "none", "none"])

    def put(self, bury: Bury) -> str:
        """By the script that settles."""
        self.transport.sender.raw("publish", store_arguments([bury]))
        return str(bury.dead["id"])

    def stock(self, *args: Any, actor: str = "charge", queue: str = "default", body: bytes | None = None) -> str:
        """In the form of its own script."""
        message: Message[Any] = Message(queue, actor, args, {}, {"retries": 20, "traceback": "Traceback: old"})
        stored_as = f"stock-{message.message_id}"
        message = message.copy(options={"redis_message_id": stored_as})
        key = f"{self.namespace}:{queue}.XQ"
        self.client.hset(f"{key}.msgs", stored_as, message.encode() if body is None else body)
        self.client.zadd(key, {stored_as: self.tick()})
        return stored_as

    def bodies(self, queue: str = "default") -> list[bytes]:
        """From the list and the hash."""
        key = f"{self.namespace}:{queue}"
        return [self.client.hget(f"{key}.msgs", one) for one in self.client.lrange(key, 0, -1)]

    def dump(self) -> dict[bytes, Any]:
        """Every key of the namespace with its value."""
        keys = sorted(self.client.keys(f"{self.namespace}:*"))
        return {key: self.client.dump(key) for key in keys}

    def application(self) -> Broker:
        """In the namespace."""
        return RedisBroker(url=self.url, namespace=self.namespace)

    def close_application(self, broker: Broker) -> None:
        """Also those of its worker."""
        super().close_application(broker)
        transport: Any = transport_of(broker)
        for client in (transport.scripts.client, transport._waiter):
            if client is not None:
                client.connection_pool.disconnect()

    def close(self) -> None:
        """Drop the namespace's keys and the connections."""
        if keys := self.client.keys(f"{self.namespace}:*"):
            self.client.delete(*keys)
        self.transport.disconnect()
