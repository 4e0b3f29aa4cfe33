"""The thread beside a worker that keeps time: it says that the worker lives, promotes delays, returns what dead
workers held, spares what waits behind slow tasks, and deletes letters beyond their retention.

One per worker process. Each duty is one script; `tick` does those that are due, so that tests need no waiting.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

from dramatiq.errors import ConnectionClosed
from dramatiq.logging import get_logger

from ...message.letter import worker_identity
from .clock import wall_ms

if TYPE_CHECKING:
    from dramatiq.worker import Worker

    from .transport import RedisTransport

#: A delay is seen at most this much late by an idle worker, in seconds.
PROMOTE_EVERY_S = 0.1
#: One script moves at most this many per queue, so that it never holds the server for long.
PROMOTE_BATCH = 500
EXPIRE_EVERY_S = 60.0


class Keeper:
    """The duties of one worker towards Redis."""

    def __init__(self, transport: RedisTransport, worker: Worker) -> None:
        self._transport = transport
        self._worker = worker
        self._logger = get_logger(__name__, type(self))
        self._stopping = threading.Event()
        self._beat_at = self._expire_at = 0.0
        self._reap_at = self._once_all_have_spoken()
        #: Server time, ms: until then the lease of a worker that beat when this one did cannot have run out.
        self._reap_until_ms = 0
        self._complained_at = -60.0
        self._thread = threading.Thread(target=self._run, name="reliq-keeper", daemon=True)
        self._about = json.dumps({**worker_identity(transport.settings.version), "since": int(time.time() * 1000)})

    def start(self) -> None:
        """Start the thread; the first beat is its first act."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _once_all_have_spoken(self) -> float:
        """When the first reap may be. After an outage longer than the lease every worker looks dead: those that live
        say so first. A worker that boots cannot know whether there was one."""
        return time.monotonic() + self._transport.settings.lease_ms / 2000

    @property
    def queues(self) -> list[str]:
        """The plain queues that this worker consumes."""
        only = self._worker.consumer_whitelist
        return [name for name in self._transport.declared_queues() if not only or name in only]

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                wait_s = self.tick(time.monotonic())
            except ConnectionClosed as exc:
                wait_s = PROMOTE_EVERY_S
                self._reap_at = self._once_all_have_spoken()
                self._complain(exc)
            except Exception:
                # A thread that dies here would let the lease run out while tasks run.
                wait_s = 1.0
                self._logger.critical("Unexpected failure of the keeper.", exc_info=True)
            self._stopping.wait(wait_s)

    def tick(self, mono: float) -> float:
        """Do what is due at `mono` (seconds); returns the seconds until the next duty. Raises `ConnectionClosed`."""
        settings, queues = self._transport.settings, self.queues
        if mono >= self._beat_at:
            self.beat(queues)
            self._beat_at = mono + settings.beat_every_ms / 1000
        if not queues:
            return PROMOTE_EVERY_S
        self._transport.spare.look(mono)
        if mono >= self._reap_at:
            self.reap(queues)
            self._reap_at = mono + settings.lease_ms / 5000
        if self._transport.letters.retention_ms is not None and mono >= self._expire_at:
            self.expire(queues, self._transport.letters.retention_ms)
            self._expire_at = mono + EXPIRE_EVERY_S
        return self.promote(queues)

    def beat(self, queues: list[str]) -> None:
        """Say that this worker lives and serves these queues."""
        about = {
            **json.loads(self._about),
            "queues": queues,
            "state": "draining" if self._transport.draining else "alive",
        }
        asked_ms = wall_ms()
        held, now = self._transport.scripts.run(
            "beat",
            [self._transport.broker_id, self._transport.settings.lease_ms, json.dumps(about), *queues],
            "saying that this worker lives",
        )
        self._transport.heard_time(int(now), asked_ms)
        settings = self._transport.settings
        self._reap_until_ms = int(now + settings.lease_ms - settings.beat_every_ms)
        if not held and self._transport.alive.is_set():
            self._logger.warning("The lease of this worker had run out; others may have taken its messages.")
        self._transport.alive.set()

    def reap(self, queues: list[str]) -> None:
        """Return what dead workers held."""
        timeout_ms = int(getattr(self._transport.broker, "heartbeat_timeout", 60_000))
        returned = self._transport.scripts.run(
            "reap", [timeout_ms, "", self._reap_until_ms, *queues], "returning messages of dead workers"
        )
        if returned:
            self._logger.warning("%d messages of workers that died are back in their queues.", returned)

    def promote(self, queues: list[str]) -> float:
        """Move what is due to its queue; returns the seconds until there may be more."""
        asked_ms = wall_ms()
        moved, wait_ms, now = self._transport.scripts.run("promote", [PROMOTE_BATCH, *queues], "promoting delays")
        self._transport.heard_time(int(now), asked_ms)
        if moved >= PROMOTE_BATCH:
            return 0.0
        return PROMOTE_EVERY_S if wait_ms < 0 else min(PROMOTE_EVERY_S, float(wait_ms) / 1000 + 0.001)

    def expire(self, queues: list[str], retention_ms: int) -> None:
        """Delete letters older than the retention."""
        while deleted := self._transport.scripts.run("expire", [retention_ms, 500, *queues], "deleting old letters"):
            self._logger.info("%d dead letters were older than the retention and are deleted.", deleted)

    def _complain(self, exc: ConnectionClosed) -> None:
        mono = time.monotonic()
        if mono - self._complained_at > 5:
            self._complained_at = mono
            self._logger.warning("Redis cannot be reached: %s", exc)
