"""Sees to it that what a message needs is declared: its queue, the ladder, the place of its dead letters.

Caller: `RabbitTransport`. What is declared is remembered for the life of the process; a consumer that starts, and a
message that finds no queue, declare anew. Guarantee: the queues of plain Dramatiq are declared as its own broker class
would (a subclass's arguments included), so that neither ever finds the other's arguments in its way; where rights are
missing the error names what they must cover.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.logging import get_logger

from ...errors import OptionError
from . import topology
from .control import Step
from .errors import NO_RIGHT, NOT_FOUND, OTHER_ARGUMENTS, NotLetIn, Refusal
from .topology import Ladder, QueueType

#: Does steps on the broker; see `control.run`.
Run = Callable[[Sequence[Step]], Any]


#: A routing key has 255 bytes at most, of which a delay takes 48. In bytes.
LONGEST_NAME = 200
#: How many steps wait for one answer.
STEPS_AT_ONCE = 12


class Declarations:
    """What this process has declared."""

    def __init__(
        self,
        broker: RabbitmqBroker,
        run: Run,
        version: Callable[[], tuple[int, ...] | None],
        wanted: Callable[[], str | None],
    ) -> None:
        self._broker = broker
        self._run = run
        self._version = version
        #: The type that the application asked for; None follows each queue's own.
        self._wanted = wanted
        self._logger = get_logger(__name__, type(self))
        # One at a time, so that a hundred threads that fail at once declare once. Waiting for it is bounded by `run`.
        self._lock = threading.RLock()
        self._queues: set[str] = set()
        self._ladders: set[QueueType] = set()
        self._on_ladder: set[str] = set()
        self._dead: dict[str, str] = {}
        self._kinds: dict[str, QueueType] = {}
        #: Whether a queue that is there is taken as it is, whatever arguments this broker would give it.
        self.as_they_stand = False
        #: What was refused or stands in another form, for `check`: name -> what to do.
        self.troubles: dict[str, str] = {}

    # -- queues --------------------------------------------------------------------------------------------------

    def queue(self, queue_name: str) -> None:
        """A queue of plain Dramatiq with the two beside it; bound to the ladder again where this process uses one."""
        if queue_name in self._queues:
            return
        with self._lock:
            if queue_name in self._queues:
                return
            if set(queue_name.split(".")) & {"*", "#"}:
                raise OptionError(
                    f"queue {queue_name!r}: a part that is '*' or '#' means 'any' where RabbitMQ routes delays and "
                    "dead letters; rename the queue."
                )
            if len(queue_name.encode("utf-8", "replace")) > LONGEST_NAME:
                raise OptionError(
                    f"queue {queue_name[:40] + '...'!r}: its name has more than {LONGEST_NAME} bytes, and with a delay "
                    "before it RabbitMQ takes no more; give it a shorter one."
                )
            if not self.as_they_stand or not self.exists(queue_name):
                steps = stock_steps(self._broker, queue_name)
                with self._explained(queue_name):
                    self._run(steps)
            self._queues.add(queue_name)
            ladder = self.ladder
            if ladder.kind in self._ladders:
                # It may have been deleted, its delays still on the ladder.
                try:
                    self._run([ladder.bind(queue_name)])
                    self._on_ladder.add(queue_name)
                except Refusal:
                    # Not this queue's concern: the next delay, of any, declares the ladder again or is told why not.
                    self._ladders.discard(ladder.kind)
                    self._on_ladder.clear()

    @property
    def ladder(self) -> Ladder:
        """The ladder that delays of this process wait on; nothing is declared."""
        return Ladder(topology.ladder_kind(self._wanted(), self._version()))

    def delays(self, queue_name: str) -> Ladder:
        """The ladder for a queue, declared, the queue bound to its end."""
        if queue_name in self._on_ladder:
            return self.ladder
        with self._lock:
            try:
                return self._on_its_ladder(queue_name)
            except Refusal as exc:
                if exc.code != NOT_FOUND:
                    raise
            # Known here, and deleted by somebody since.
            self.forget(queue_name)
            return self._on_its_ladder(queue_name)

    def _on_its_ladder(self, queue_name: str) -> Ladder:
        self.queue(queue_name)
        ladder = self.ladder
        if ladder.kind not in self._ladders:
            what = f"exchange {ladder.level(0)!r} and the others of the ladder"
            steps = ladder.steps(self._version())
            # In parts, each with its own time to be answered: a slow broker takes a while for a hundred steps.
            for start in range(0, len(steps), STEPS_AT_ONCE):
                self._ours(steps[start : start + STEPS_AT_ONCE], what)
            self._ladders.add(ladder.kind)
        if queue_name not in self._on_ladder:
            self._ours([ladder.bind(queue_name)], f"the binding of {queue_name!r} to exchange {ladder.out!r}")
            self._on_ladder.add(queue_name)
        return ladder

    def dead(self, queue_name: str) -> str:
        """The exchange for a queue's dead letters, declared and bound: `reliq.dlx`, or `""` where only the queue
        `<queue>.dead` is there for us (its name is then the routing key)."""
        known = self._dead.get(queue_name)
        if known is not None:
            return known
        with self._lock:
            if queue_name not in self._dead:
                try:
                    self._dead[queue_name] = self._declare_dead(queue_name)
                except Refusal as exc:
                    if exc.code != NOT_FOUND:
                        raise
                    self.forget(queue_name)
                    self._dead[queue_name] = self._declare_dead(queue_name)
            return self._dead[queue_name]

    def kind(self, queue_name: str) -> QueueType:
        """Classic or quorum: as asked for, else as the queue itself is."""
        wanted = self._wanted()
        if wanted is not None:
            return "quorum" if wanted == "quorum" else "classic"
        known = self._kinds.get(queue_name)
        if known is None:
            with self._lock:
                try:
                    self.queue(queue_name)
                    known = self._kinds[queue_name] = self._look_at(queue_name)
                except Refusal as exc:
                    if exc.code == NOT_FOUND:
                        raise
                    # It stands with other arguments or is not ours to declare: the kind every server has.
                    self._logger.warning("Queue %r: its type is not known: %s", queue_name, exc)
                    return "classic"
        return known

    def forget(self, queue_name: str) -> None:
        """A queue, or what leads to it, is gone: the next use declares it again."""
        with self._lock:
            self._queues.discard(queue_name)
            self._on_ladder.discard(queue_name)
            self._kinds.pop(queue_name, None)
            self._dead.pop(queue_name, None)

    def stands(self, *, whole: bool = False) -> bool:
        """Whether the exchanges that this process has declared are still there: without them what comes off the ladder,
        and letters, end nowhere. `whole`: each step of the ladder too, which is a hundred questions."""
        names = [name for kind in self._ladders for name in (Ladder(kind).out, Ladder(kind).unrouted)]
        if topology.DEAD_EXCHANGE in self._dead.values():
            names += [topology.DEAD_EXCHANGE, Ladder("classic").unrouted]
        steps = [Step("exchange_declare", {"exchange": name, "passive": True}) for name in names]
        for kind in self._ladders if whole else ():
            for level in Ladder(kind).levels():
                steps += [Step("exchange_declare", {"exchange": level, "passive": True}), topology.passive(level)]
            steps.append(topology.passive(Ladder(kind).unrouted))
        try:
            for start in range(0, len(steps), STEPS_AT_ONCE):
                self._run(steps[start : start + STEPS_AT_ONCE])
        except Refusal as exc:
            if exc.code != NOT_FOUND:
                raise
            return False
        return True

    def forget_all(self) -> None:
        """An exchange of ours is gone: everything is declared again at its next use."""
        with self._lock:
            for known in (self._queues, self._ladders, self._on_ladder, self._dead, self._kinds):
                known.clear()

    # -- how -----------------------------------------------------------------------------------------------------

    def _look_at(self, queue_name: str) -> QueueType:
        """By the broker's refusal of a type that does not exist: it names the one that the queue has. AMQP tells no
        arguments otherwise, and a type that exists could create a queue that is gone."""
        for step in stock_steps(self._broker, queue_name):
            if step.arguments.get("queue") != queue_name:
                continue
            arguments = {**(step.arguments.get("arguments") or {}), "x-queue-type": "asked-by-reliq"}
            try:
                self._run([Step(step.method, {**step.arguments, "arguments": arguments})])
            except Refusal as exc:
                if "invalid arg" in str(exc):
                    raise Refusal(f"queue {queue_name!r} is gone", NOT_FOUND) from exc
                return "quorum" if "current is 'quorum'" in str(exc) else "classic"
        return "classic"

    def _declare_dead(self, queue_name: str) -> str:
        name = topology.dead_name(queue_name)
        kind, version = self.kind(queue_name), self._version()
        try:
            self._ours(topology.letters_exchange(), f"exchange {topology.DEAD_EXCHANGE!r}")
            try:
                self._ours([topology.declare_dead(queue_name, kind, version)], f"queue {name!r}")
            except Refusal as exc:
                if exc.code != OTHER_ARGUMENTS:
                    raise
                self._note_other_arguments(name, exc)
            self._ours([topology.bind_dead(queue_name)], f"the binding of {name!r} to {topology.DEAD_EXCHANGE!r}")
        except Refusal as exc:
            if exc.code != NO_RIGHT or not self.exists(name):
                raise
            self._logger.warning("Dead letters of queue %r go straight to queue %r: %s", queue_name, name, exc)
            return ""
        return topology.DEAD_EXCHANGE

    def _note_other_arguments(self, name: str, exc: Refusal) -> None:
        """Somebody declared it otherwise; it is kept as it is."""
        if "x-delivery-limit" in str(exc) or ("x-queue-type" in str(exc) and (self._version() or (0,)) >= (4,)):
            self.troubles[name] = (
                f"queue {name!r} stands with other arguments ({exc}); a quorum queue with a delivery limit drops "
                "letters that are read often. Move its letters, delete it and let reliq declare it, or lift the "
                "limit by a policy with delivery-limit -1"
            )
            self._logger.warning("%s", self.troubles[name])

    def exists(self, queue_name: str) -> bool:
        """Whether there is a queue of this name."""
        try:
            self._run([topology.passive(queue_name)])
        except Refusal as exc:
            if exc.code == NOT_FOUND:
                return False
            raise
        return True

    def _ours(self, steps: list[Step], what: str) -> None:
        """Declare what is reliq's own. Without the right to it, it may stand there already: declared by somebody who
        had the right."""
        try:
            self._run(steps)
        except Refusal as exc:
            if exc.code != NO_RIGHT or not self._stands(steps):
                self.troubles[what] = str(self._without_right(what, exc))
                raise self._without_right(what, exc) from exc
        self.troubles.pop(what, None)

    def _stands(self, steps: list[Step]) -> bool:
        passive = [
            Step(step.method, {**_only_name(step.arguments), "passive": True})
            for step in steps
            if step.method.endswith("_declare")
        ]
        if not passive:
            return False
        try:
            self._run(passive)
        except Refusal:
            return False
        return True

    def _without_right(self, what: str, exc: Refusal) -> Refusal:
        if isinstance(exc, NotLetIn):
            return exc
        if exc.code == OTHER_ARGUMENTS:
            return Refusal(
                f"{what} stands in another form than reliq gives it: {exc}. Somebody else has declared it: move what "
                "it holds, delete it, and let reliq declare it.",
                exc.code,
            )
        if exc.code != NO_RIGHT:
            return exc
        user_needs = "configure, write and read"
        return Refusal(
            f"RabbitMQ refuses {what}: {exc}. Give the user the rights {user_needs} on names that begin with "
            f"{topology.OURS!r} (rabbitmqctl set_permissions), or have them declared by a user who has them.",
            exc.code,
        )

    @contextmanager
    def _explained(self, queue_name: str) -> Iterator[None]:
        try:
            yield
        except Refusal as exc:
            if isinstance(exc, NotLetIn):
                raise
            if exc.code == OTHER_ARGUMENTS:
                raise Refusal(
                    f"queue {queue_name!r} (or its .DQ or .XQ) stands with other arguments than this application's "
                    f"broker gives: {exc}. Use the same broker class and options everywhere, or give the queue "
                    "another name.",
                    exc.code,
                ) from exc
            if exc.code == NO_RIGHT:
                raise Refusal(
                    f"RabbitMQ refuses queue {queue_name!r}: {exc}. Give the user the rights to configure, write and "
                    "read it and the .DQ, .XQ and .dead beside it, and to write to the exchange amq.default "
                    "(rabbitmqctl set_permissions).",
                    exc.code,
                ) from exc
            raise


class _Recorder:
    """Stands in for a channel and notes what is asked of it."""

    is_open = False

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        def note(*args: Any, **kwargs: Any) -> None:
            names = ("queue", "exchange", "routing_key") if method == "queue_bind" else (method.partition("_")[0],)
            self.steps.append(Step(method, {**dict(zip(names, args)), **kwargs}))

        return note


def stock_steps(broker: RabbitmqBroker, queue_name: str) -> list[Step]:
    """What the broker's own class declares for a queue, its delay queue and its dead letter queue. It is asked through
    a channel that only notes: so a subclass's queue arguments, or bindings of its own, are kept."""
    recorder = _Recorder()
    before = getattr(broker.state, "channel", None)
    broker.state.channel = recorder
    try:
        broker.queues_pending.add(queue_name)
        broker.declare_queue(queue_name, ensure=True)
    finally:
        if before is None:
            del broker.state.channel
        else:
            broker.state.channel = before
    return recorder.steps


def _only_name(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key in ("queue", "exchange")}
