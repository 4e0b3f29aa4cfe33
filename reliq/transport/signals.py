"""Dramatiq's signals on a broker that reliq serves: faster, and safe at the end of a run.

`Transport.attach` puts `emit_before` and `emit_after` of this class in the place of the broker's own. Four things
differ from stock:

- Hooks that a middleware inherits unchanged (they do nothing) are not called; the table is built anew when
  `broker.middleware` changes.
- When a run has ended, the middlewares that interrupt threads (time limits, shutdown notices) are disarmed before
  any other hook runs, and a hook that a late interrupt hits is run to its end all the same: an interrupt can no
  longer kill the thread or lose what the hook was about to send.
- A shutdown notice reaches every task that runs, also while others begin and end.
- From then until the settle, what this thread sends is captured with the message (see `Transport.enqueue`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger
from dramatiq.middleware import (
    GroupCallbacks,
    Interrupt,
    Middleware,
    MiddlewareError,
    Retries,
    ShutdownNotifications,
    TimeLimit,
)

from .delivered import Delivered
from .pace import Pace

if TYPE_CHECKING:
    from dramatiq.broker import Broker

Hook = Callable[..., Any]

#: A late interrupt comes once from each of the two that interrupt; a hook that always raises one is given up.
_MOST_INTERRUPTS = 4

#: For how long a time limit that has fired may be on its way to the thread.
IN_FLIGHT_S = 0.005

_RUN_ENDS = ("process_message", "skip_message")
_SETTLES = ("ack", "nack")


class _Ending(threading.local):
    running: Delivered | None = None
    message: Delivered | None = None


_ending = _Ending()


def running_message() -> Delivered | None:
    """The message that runs on this thread, from before its first hook to its settle."""
    return _ending.running


def ending_message() -> Delivered | None:
    """The message whose run has ended on this thread and that is not settled yet."""
    return _ending.message


def release_ending() -> None:
    """The message of this thread is settled: what is sent from here on leaves at once."""
    _ending.message = _ending.running = None


class Signals:
    """The signals of one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._logger = get_logger(__name__, type(self))
        #: Told how long runs take.
        self.pace: Pace | None = None
        self._known: list[Middleware] = []
        self._limiting: list[TimeLimit] = []
        self._before: dict[str, list[Hook]] = {}
        self._after: dict[str, list[Hook]] = {}

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call `before_<signal>` of every middleware in list order. As in Dramatiq a `MiddlewareError` goes through
        and any other exception is logged; but before an ack or nack only a connection error goes through, because
        anything else would leave the message with a worker that has forgotten it."""
        if signal == "process_message":
            release_ending()
            message = args[0]
            message.started_mono = time.monotonic()
            if isinstance(message, Delivered):
                _ending.running = message
        hooks = self._hooks(self._before, "before_", signal)
        for hook in hooks:
            try:
                hook(self._broker, *args, **kwargs)
            except MiddlewareError as exc:
                if signal in _SETTLES and not isinstance(exc, BrokerConnectionError):
                    self._log(hook, "before_" + signal)
                    continue
                raise
            except Exception:
                self._log(hook, "before_" + signal)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call `after_<signal>` of every middleware in reverse order; what raises is logged."""
        hooks = self._hooks(self._after, "after_", signal)
        if signal in _RUN_ENDS and isinstance(args[0], Delivered):
            finish(self._end_run, list(hooks), [], signal, args[0], kwargs)
            return
        for hook in hooks:
            try:
                hook(self._broker, *args, **kwargs)
            except Exception:
                self._log(hook, "after_" + signal)

    def disarm(self, message: Delivered) -> None:
        """Take this thread out of the reach of time limits and shutdown notices: its run is over."""
        for hook in self._hooks(self._after, "disarm_", "process_message"):
            finish(hook, self._broker, message)
        if not message.disarmed:
            message.disarmed = True
            if message.started_mono is None:
                return
            ran_s = time.monotonic() - message.started_mono
            if self.pace is not None:
                self.pace.ran(ran_s)
            if self._is_over_its_limit(message, ran_s * 1000):
                # The limit may have fired a moment ago and be about to raise: let it strike here, where it is caught.
                finish(time.sleep, IN_FLIGHT_S)

    def _is_over_its_limit(self, message: Delivered, ran_ms: float) -> bool:
        for middleware in self._limiting:
            actor = self._broker.actors.get(message.actor_name)
            limit = message.options.get("time_limit") or (actor and actor.options.get("time_limit"))
            limit = limit or middleware.time_limit
            if isinstance(limit, (int, float)) and ran_ms >= limit:
                return True
        return False

    def _end_run(
        self, left: list[Hook], captured: list[Any], signal: str, message: Delivered, kwargs: dict[str, Any]
    ) -> None:
        self.disarm(message)
        # Reading it takes it out of the options: what callbacks copy of the message does not carry our record.
        if message._record is None and "reliq" in message.options:
            message.record  # noqa: B018
        message.captured = captured
        _ending.message = message
        # Struck by an interrupt between two hooks, this is called again and goes on with those that are left.
        while left:
            mark = len(captured)
            try:
                left[0](self._broker, message, **kwargs)
            except BaseException as exc:
                self._hook_raised(exc, left[0], mark, signal, message, kwargs)
            del left[0]

    def _hook_raised(
        self, exc: BaseException, hook: Hook, mark: int, signal: str, message: Delivered, kwargs: dict[str, Any]
    ) -> None:
        """A hook at the end of a run has raised. `mark` is how many sends were captured before it."""
        captured = message.captured
        assert captured is not None
        for _ in range(_MOST_INTERRUPTS - 1):
            if not isinstance(exc, Interrupt):
                break
            # It begins again, so what it had sent before it was hit is taken back.
            del captured[mark:]
            self._logger.warning(
                "%s arrived after message %r had ended; it changes nothing.", type(exc).__name__, message.message_id
            )
            try:
                hook(self._broker, message, **kwargs)
                return
            except BaseException as another:
                exc = another
        if isinstance(exc, Interrupt):
            del captured[mark:]
        # Even SystemExit: stock would end the thread here and ack the message, which loses it.
        self._log(hook, "after_" + signal, exc)
        owner = getattr(hook, "__self__", None)
        if isinstance(exc, BrokerConnectionError) and isinstance(owner, GroupCallbacks):
            # Uncounted, its group would never complete: the settle waits until it is counted.
            del captured[mark:]
            message.unfinished = (*message.unfinished, partial(hook, self._broker, message, **kwargs))
        if isinstance(owner, Retries) and message.verdict is None and kwargs.get("exception") is not None:
            # Nobody has decided over a run that failed: it must not pass for a success.
            message.fail()

    def _hooks(self, table: dict[str, list[Hook]], prefix: str, signal: str) -> list[Hook]:
        # Comparing the lists compares identities: some 0.1 us, and no cleverness can make it stale.
        if self._known != self._broker.middleware:
            self._known = list(self._broker.middleware)
            self._limiting = [middleware for middleware in self._known if isinstance(middleware, TimeLimit)]
            self._before.clear()
            self._after.clear()
            for middleware in self._known:
                if isinstance(middleware, ShutdownNotifications):
                    _let_change(middleware)
        key = prefix + signal
        hooks = table.get(key)
        if hooks is None:
            hooks = table[key] = self._build(prefix, signal)
        return hooks

    def _build(self, prefix: str, signal: str) -> list[Hook]:
        if prefix == "disarm_":
            return [m.after_process_message for m in reversed(self._known) if isinstance(m, _INTERRUPTERS)]
        order = self._known if prefix == "before_" else list(reversed(self._known))
        name = prefix + signal
        ends_run = prefix == "after_" and signal in _RUN_ENDS
        return [
            getattr(middleware, name)
            for middleware in order
            if _overrides(middleware, name) and not (ends_run and isinstance(middleware, _INTERRUPTERS))
        ]

    def _log(self, hook: Hook, name: str, exc: BaseException | None = None) -> None:
        owner = getattr(hook, "__self__", hook)
        self._logger.critical("Unexpected failure in %s of %r.", name, owner, exc_info=exc or True)


_INTERRUPTERS = (TimeLimit, ShutdownNotifications)


class _Threads(set[Any]):
    """Who is to be told of a shutdown: goes through those that were there when it began."""

    def __iter__(self) -> Iterator[Any]:
        return iter(frozenset(self))


def _let_change(middleware: ShutdownNotifications) -> None:
    """Stock goes through a set that worker threads change meanwhile: at the first change it fails, and whoever would
    have come later is never told."""
    manager = middleware.manager
    for name, value in list(vars(manager).items()):
        if type(value) is set:
            setattr(manager, name, _Threads(value))


def _overrides(middleware: Middleware, name: str) -> bool:
    own = getattr(middleware, name, None)
    return own is not None and getattr(own, "__func__", own) is not getattr(Middleware, name, None)


def finish(step: Callable[..., Any], *args: Any) -> Any:
    """Run `step` to its end, again from the start when an interrupt hits it. `step` must bear being repeated."""
    try:
        return step(*args)
    except Interrupt as late:
        _tell_late(late)
    for _ in range(_MOST_INTERRUPTS):
        try:
            return step(*args)
        except Interrupt as late:
            _tell_late(late)
    return step(*args)


def _tell_late(late: Interrupt) -> None:
    get_logger(__name__).warning("%s arrived while a message was ending; it changes nothing.", type(late).__name__)
