"""The half of a consumer that every broker shares: opening what was fetched, settling what has ended.

Callers: Dramatiq's consumer thread (`__next__`, `requeue`, `close`), worker threads (`ack`, `nack`).
Guarantee: a fetched message leaves only by a settle that the broker has accepted, or goes back to its queue. Bodies
that cannot be opened and actors that nobody knows never reach Dramatiq; they are settled here.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dramatiq.broker import Consumer, MessageProxy
from dramatiq.common import q_name
from dramatiq.errors import ActorNotFound, BrokerConnectionError
from dramatiq.logging import get_logger

from ..message.verdict import Verdict
from .delivered import Delivered, Unreadable, at_home, decode, eta_of
from .reporting import report
from .settlement import Settlement, Unstorable
from .settling import announced, bury_raw, mended, plan
from .signals import finish, release_ending
from .threads import replace_this_thread

if TYPE_CHECKING:
    from .base import Transport

T = TypeVar("T")

#: For how long a settle that fails is tried again before the thread gives its worker the error.
#: Longer than a failover or a short outage: after it Dramatiq sleeps for 5 s whether the broker is back or not.
SETTLE_PATIENCE_S = 4.0
#: The same while the worker stops, when the broker gives the message back anyway.
STOPPING_PATIENCE_S = 2.0
#: How long a message of an unknown actor waits before it is looked at again.
UNKNOWN_ACTOR_DELAY_MS = 5_000


class SettleAbandoned(Exception):
    """The worker stops and the broker cannot be reached: the message stays unacked and the broker gives it back.

    Not a connection error, because Dramatiq would keep the stopping thread waiting for those.
    """


class RunInterrupted(Exception):
    """A run that an interrupt ended outside the actor: whether it was finished is not known."""


class SettlingConsumer(Consumer):
    """A consumer whose `ack` and `nack` settle the verdict that the middlewares left."""

    delivered_class: type[Delivered] = Delivered

    def __init__(self, transport: Transport[Any], queue_name: str) -> None:
        self.transport = transport
        self.queue_name = queue_name
        self.logger = get_logger(__name__, type(self))
        #: Settlements of messages that never reach a worker thread and that the broker has not taken yet.
        self._waiting: list[Settlement] = []

    # -- what a broker provides --------------------------------------------------------------------------------

    @abstractmethod
    def acknowledge(self, message: Delivered) -> None:
        """Ack a plain success, by the flusher where there is one. Returns at once; repeating it is harmless."""

    @abstractmethod
    def release(self, token: str) -> None:
        """A delivery is over: its place in the prefetch window is free. Repeating it is harmless."""

    @abstractmethod
    def put_off(self, token: str, body: bytes, eta_ms: float) -> bool:
        """A message that is not due: see to it that it waits in the broker. False: it is due after all."""

    def spare(self, messages: list[Delivered]) -> list[Delivered]:
        """Give back messages that wait for a thread, for other workers to run; returns those that stay, because giving
        them back would harm them, or because they are nobody else's."""
        self.requeue(messages)
        return []

    # -- opening -----------------------------------------------------------------------------------------------

    def open(self, token: str, body: bytes) -> Delivered | None:
        """The message in `body`, ready for a worker thread; None when it was settled or put off instead."""
        try:
            return self._opened(token, body)
        except Unreadable as unreadable:
            self.settle_here(self._raw_settlement(token, body, unreadable))
        except Exception as exc:
            # Whatever it is about this body, those behind it are not to blame.
            self.logger.critical("Queue %r: a message cannot be opened.", self.queue_name, exc_info=True)
            unopened = Unreadable("malformed", f"the message cannot be opened: {exc}")
            self.settle_here(self._raw_settlement(token, body, unopened))
        return None

    def _opened(self, token: str, body: bytes) -> Delivered | None:
        message = at_home(self._restored(body), self.queue_name)
        if "eta" in message.options:
            eta = eta_of(message)
            del message.options["eta"]
            if eta is not None and self.put_off(token, body, eta):
                return None
        delivered = self.delivered_class(message, self, token, body, self.queue_name)
        if message.actor_name not in self.transport.broker.actors:
            return self._resolve(delivered)
        return delivered

    def _restored(self, body: bytes) -> Any:
        message = decode(body, self.transport.encoder)
        try:
            return self.transport.restored(message)
        except Exception as exc:
            raise Unreadable("malformed", f"restore() of the broker failed: {exc}") from exc

    def _resolve(self, delivered: Delivered) -> Delivered | None:
        """An actor that is not declared here: by its alias, or later on another worker, or never."""
        settings = self.transport.settings
        name = settings.aliases.get(delivered.actor_name)
        if name is not None and name in self.transport.broker.actors:
            object.__setattr__(delivered.message, "actor_name", name)
            delivered.actor_name = name
            return delivered
        record, now = delivered.record, self.transport.now_ms()
        if record.unknown_since is None and not record.is_newer:
            record.unknown_since = now
        since = now if record.unknown_since is None else record.unknown_since
        if settings.unknown_actor_grace_ms and now - since < settings.unknown_actor_grace_ms:
            delivered.verdict = Verdict.defer(UNKNOWN_ACTOR_DELAY_MS)
            self.settle_here(plan(self.transport, delivered))
            return None
        delivered.stuff_exception(ActorNotFound(delivered.actor_name))
        delivered.fail()
        delivered.verdict = Verdict.dead("unknown_actor")
        self.transport.broker.emit_before("nack", delivered)
        self.settle_here(plan(self.transport, delivered))
        self.transport.broker.emit_after("nack", delivered)
        return None

    def _raw_settlement(self, token: str, body: bytes, unreadable: Unreadable) -> Settlement:
        transport = self.transport
        bury = bury_raw(transport, q_name(self.queue_name), body, unreadable)
        if not transport.letters.wanted({}, None):
            return Settlement(self.queue_name, token, "dropped")
        return Settlement(self.queue_name, token, "dead", (bury, *announced(transport, bury)))

    def settle_here(self, settlement: Settlement) -> None:
        """Settle on the consumer thread. When the broker is away it waits here and fetching goes on."""
        self._waiting.append(settlement)
        self.settle_waiting()

    def settle_waiting(self) -> None:
        """Try the settlements that wait, in order; stops at the first that the broker does not take."""
        while self._waiting:
            settlement = self._waiting[0]
            try:
                ours = self.transport.settle(settlement)
            except BrokerConnectionError as exc:
                self.logger.warning("Queue %r: settling waits for the broker: %s", self.queue_name, exc)
                return
            self._waiting.pop(0)
            self.release(settlement.token)
            self._report(settlement, ours)

    # -- settling ----------------------------------------------------------------------------------------------

    def ack(self, message: MessageProxy) -> None:
        """The run has ended and was not rejected: settle its verdict, or ack a plain success."""
        finish(self._end, message)

    def nack(self, message: MessageProxy) -> None:
        """The message was rejected: a dead letter."""
        finish(self._end, message)

    def _end(self, message: MessageProxy) -> None:
        assert isinstance(message, Delivered)
        # The usual end of a message: nothing was decided, nothing was sent on its behalf.
        if message.verdict is None and message.captured == [] and not message.failed and not message.unfinished:
            self._acknowledge(message)
        else:
            self._conclude(message)

    def _acknowledge(self, message: Delivered) -> None:
        self.acknowledge(message)
        message.settled = True
        release_ending()
        self.release(message.token)

    def _conclude(self, message: Delivered) -> None:
        if message.captured is None and message.started_mono is not None:
            # An interrupt struck in Dramatiq's own code, between the run and its after-hooks: they run now, so that
            # a run that failed is not taken for a success.
            exception = message.exception or RunInterrupted("interrupted at the end of its run")
            replace_this_thread(self.transport.workers)
            self.transport.signals.emit_after("process_message", message, exception=exception)
        self._settle(message)
        assert message.settlement is not None
        self._report(message.settlement, message.ours)

    def _report(self, settlement: Settlement, ours: bool) -> None:
        if ours:
            report(self.transport, settlement)
            return
        self.logger.warning(
            "Queue %r: another worker took a message over before it was settled here as %s; nothing is written.",
            self.queue_name,
            settlement.outcome,
        )

    def _settle(self, message: Delivered) -> None:
        if not message.settled:
            if message.settlement is None:
                self._patiently(lambda: _finish_hooks(message))
                message.settlement = self._plan(message)
            while not message.settled:
                settlement = message.settlement
                try:
                    message.ours = self._patiently(partial(self.transport.settle, settlement))
                    message.settled = True
                except Unstorable as refused:
                    self._tell_refused(settlement, refused)
                    message.settlement = mended(self.transport, settlement, refused)
        release_ending()
        self.release(message.token)

    def _tell_refused(self, settlement: Settlement, refused: Unstorable) -> None:
        self.logger.error(
            "Queue %r: the broker does not take what a message becomes (%s): %s",
            self.queue_name,
            settlement.outcome,
            refused,
        )

    def _plan(self, message: Delivered) -> Settlement:
        try:
            return plan(self.transport, message)
        except Exception as exc:
            # Ours to mend, but the message must not wait for that.
            self.logger.critical("Message %r: its settlement cannot be planned.", message.message_id, exc_info=True)
            unreadable = Unreadable("rejected", f"its settlement could not be planned: {exc}")
            bury = bury_raw(self.transport, message.message.queue_name, message.body, unreadable)
            return Settlement(self.queue_name, message.token, "dead", (bury,), message)

    def _patiently(self, step: Callable[[], T]) -> T:
        """Do a step, again for a while when the broker cannot be reached."""
        began = time.monotonic()
        pause = 0.02
        while True:
            try:
                return step()
            except BrokerConnectionError as exc:
                patience_s = STOPPING_PATIENCE_S if self.transport.draining else SETTLE_PATIENCE_S
                if time.monotonic() + pause > began + patience_s:
                    if self.transport.draining:
                        raise SettleAbandoned(
                            f"queue {self.queue_name!r}: the worker stops and the broker cannot be reached ({exc}); "
                            "the message stays unacked and will be delivered again."
                        ) from exc
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 0.5)


def _finish_hooks(message: Delivered) -> None:
    """Run the after-hooks that failed and must not; raises the connection error of the first that fails again."""
    while message.unfinished:
        hook = message.unfinished[0]
        captured = message.captured
        assert captured is not None
        mark = len(captured)
        try:
            hook()
        except BrokerConnectionError:
            del captured[mark:]
            raise
        except Exception:
            # Trying again would not help it, and its neighbours wait.
            del captured[mark:]
            get_logger(__name__).critical(
                "Message %r cannot be counted in its group.", message.message_id, exc_info=True
            )
        message.unfinished = message.unfinished[1:]
