"""Letters of every origin, put into a real Redis, for the tests of the desk and of the command line."""

from __future__ import annotations

import json
import time
from typing import Any

from dramatiq.brokers.redis import RedisBroker
from dramatiq.message import Message

from reliq.message.letter import death
from reliq.message.record import Record, with_record
from reliq.message.verdict import Failure, Reason
from reliq.transport.delivered import Unreadable
from reliq.transport.redis.items import store_arguments
from reliq.transport.settlement import Bury
from reliq.transport.settling import bury_raw
from reliq.wiring import attach

HOUR_MS = 3_600_000


class Morgue:
    """One namespace of a Redis, its transport, and ways to put letters into it. Deaths are a second apart, the first
    one an hour ago, unless `died_at_ms` says otherwise."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url = url
        self.namespace = namespace
        self.broker = RedisBroker(url=url, namespace=namespace, middleware=[])
        self.transport = attach(self.broker)
        self.client = self.broker.client
        # The first call of a script is two requests: tests that count requests want it behind them.
        self.transport.sender.raw("letters", ["discard", "reliq", "none", "none"])
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
            broker="redis",
            version=version,
            died_at_ms=died_at_ms or self._tick(),
        )
        kept = message.asdict() | {"options": with_record(message.options, record) | {"retries": 1, "traceback": "x"}}
        buried: Message[Any] = Message(**kept)
        return self.put(Bury(queue, record.dead, buried.encode(), buried))

    def raw(self, body: bytes, queue: str = "default") -> str:
        """One of reliq's whose body cannot be read."""
        bury = bury_raw(self.transport, queue, body, Unreadable("malformed", "the body cannot be decoded: it is junk"))
        bury.dead["died_at"] = self._tick()
        return self.put(bury)

    def stock(self, *args: Any, actor: str = "charge", queue: str = "default", body: bytes | None = None) -> str:
        """One of plain Dramatiq's."""
        message: Message[Any] = Message(queue, actor, args, {}, {"retries": 20, "traceback": "Traceback: old"})
        stored_as = f"stock-{message.message_id}"
        message = message.copy(options={"redis_message_id": stored_as})
        key = f"{self.namespace}:{queue}.XQ"
        self.client.hset(f"{key}.msgs", stored_as, message.encode() if body is None else body)
        self.client.zadd(key, {stored_as: self._tick()})
        return stored_as

    def queued(self, queue: str = "default") -> list[dict[str, Any]]:
        """The messages that are ready on a queue, decoded, in order."""
        key = f"{self.namespace}:{queue}"
        return [json.loads(self.client.hget(f"{key}.msgs", one)) for one in self.client.lrange(key, 0, -1)]

    def dump(self) -> dict[bytes, Any]:
        """Every key of the namespace with its value: equal dumps mean that nothing was changed."""
        keys = sorted(self.client.keys(f"{self.namespace}:*"))
        return {key: self.client.dump(key) for key in keys}

    def close(self) -> None:
        """Drop the namespace's keys and the connections."""
        if keys := self.client.keys(f"{self.namespace}:*"):
            self.client.delete(*keys)
        self.transport.disconnect()

    def put(self, bury: Bury) -> str:
        """Store a letter; returns its id."""
        self.transport.sender.raw("publish", store_arguments([bury]))
        return str(bury.dead["id"])

    def _tick(self) -> int:
        self._clock_ms += 1_000
        return self._clock_ms
