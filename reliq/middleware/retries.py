"""Retries that cannot be lost: decides, and leaves the verdict on the message; the transport stores it with the ack.

A subclass of Dramatiq's `Retries`, so that `before=` and `after=` find it, with the same options and more.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dramatiq.errors import ActorNotFound
from dramatiq.logging import get_logger
from dramatiq.middleware import Retries as StockRetries

from ..errors import OptionError
from ..message.failure import error_message, error_name, traceback_text
from ..message.letter import worker_identity
from ..message.verdict import Failure, Verdict
from ..policy.backoff import Backoff, describe_ms, horizon_ms
from ..transport.delivered import Delivered
from .decision import DEFAULT_DEFER_MAX_MS, Limits, decide, is_refusal
from .options import actor_name, check_retry_when, exception_classes, ms_or_none, retry_for_value, whole
from .part import Part, option_error

if TYPE_CHECKING:
    from dramatiq.actor import Actor
    from dramatiq.broker import Broker

_SHAPING = ("min_backoff", "max_backoff", "backoff", "jitter")


class Retries(Part, StockRetries):
    """Retries failed messages with backoff and jitter, and sends what is beyond help to the dead letters.

    Parameters, each also an actor option and (where JSON can hold it) a message option:

    - `max_retries`: attempts after the first; 20 by default. False (as an actor option: None) = no limit.
    - `min_backoff`, `max_backoff`: floor and cap of a delay in ms; 15 s and 6 h, about 31 h for 20 retries.
    - `backoff`: "exponential", "linear", "fixed" or "decorrelated"; `jitter`: "full", "equal", "none" or a share
      in (0, 1]. The formulas are in `policy/backoff.py`.
    - `retry_for`: exception classes, or a callable `(retries, exception) -> bool | int` (a number is the delay in
      ms): what is outside goes to the dead letters. `retry_for=reliq.transient` is the shipped catalogue.
    - `retry_when`: as in Dramatiq, `(retries, exception) -> bool`; it takes the place of `max_retries`.
    - `max_elapsed`: ms from the first failure to the last moment at which a retry may be due; off by default.

    Actor options only: `throws`, `on_retry_exhausted` (as in Dramatiq) and `defer_max`, the ms that a message may
    spend deferred in all (7 days).
    """

    def __init__(
        self,
        max_retries: int | bool | None = None,
        min_backoff: int | None = None,
        max_backoff: int | None = None,
        backoff: str | None = None,
        jitter: str | float | None = None,
        retry_for: Any = None,
        retry_when: Callable[[int, BaseException], bool] | None = None,
        max_elapsed: int | bool | None = None,
    ) -> None:
        given = {"min_backoff": min_backoff, "max_backoff": max_backoff, "backoff": backoff, "jitter": jitter}
        try:
            self.backoff = shape(given, Backoff())
            limit = 20 if max_retries is None else None if max_retries is False else whole("max_retries", max_retries)
            self.max_elapsed = None if max_elapsed is None or max_elapsed is False else ms_or_none(max_elapsed)
            self.retry_for = retry_for_value(retry_for)
            check_retry_when(retry_when)
        except ValueError as exc:
            raise OptionError(f"reliq.Retries: {exc}") from exc
        super().__init__(max_retries=0 if limit is None else limit, retry_when=retry_when)
        self.logger = get_logger(__name__, type(self))
        self.max_retries = limit  # type: ignore[assignment]  # None = no limit, which stock allows per actor only
        self.min_backoff, self.max_backoff = self.backoff.min_ms, self.backoff.max_ms
        self._rng = random.Random()
        self._named_refusals: set[str] = set()

    def __repr__(self) -> str:
        return f"<reliq.Retries {self.describe()}>"

    @property
    def actor_options(self) -> set[str]:
        """Dramatiq's, and ours."""
        return {*super().actor_options, "backoff", "jitter", "retry_for", "max_elapsed", "defer_max"}

    def describe(self) -> str:
        """For the boot line: how many, and how long they last."""
        if self.max_retries is None:
            return "retries without limit"
        return f"retries {self.max_retries}, about {describe_ms(horizon_ms(self.backoff, self.max_retries))}"

    def check_actor(self, actor: Actor[Any, Any]) -> None:
        """Refuse options that cannot work."""
        try:
            self._limits({}, actor.options, strict=True)
            actor_name("on_retry_exhausted", actor.options.get("on_retry_exhausted"))
        except ValueError as exc:
            raise option_error(actor, str(exc)) from exc

    def targets(self, broker: Broker) -> Iterator[tuple[str, str]]:
        """The actors that are to be told of the last failure."""
        for actor in broker.actors.values():
            name = actor_name("on_retry_exhausted", actor.options.get("on_retry_exhausted"))
            if name is not None:
                yield "on_retry_exhausted", name

    # -- the hook ------------------------------------------------------------------------------------------------

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Decide on a run that raised."""
        if exception is None or not isinstance(message, Delivered):
            return
        actor = broker.get_actor(message.actor_name)
        if message.failures_before is None:
            message.failures_before = _count_in(message.options)
        retries = message.failures_before
        assert self.transport is not None
        limits = self._limits(message.options, actor.options)
        verdict = decide(
            exception,
            retries=retries,
            record=message.record,
            limits=limits,
            stopping=self.transport.draining,
            now_ms=self.transport.now_ms(),
            rng=self._rng,
        )
        if is_refusal(exception):
            self._name_refusal(exception)
        self._leave(message, verdict, exception, retries)
        if verdict.reason == "retries_exhausted":
            self._tell_exhausted(broker, actor, message, {"retries": retries, "max_retries": limits.max_retries})

    def _leave(self, message: Delivered, verdict: Verdict, exception: BaseException, retries: int) -> None:
        """Count what the verdict says, and leave it on the message."""
        if verdict.action == "return":
            message.verdict = verdict
            return
        if verdict.action == "defer":
            if not message.record.is_newer:
                message.record.deferrals += 1
                message.record.deferred_ms += verdict.delay_ms
            message.verdict = verdict
            return
        if verdict.reason != "expired":
            self._count(message, verdict, exception, retries)
        if verdict.action == "dead":
            # The whole story is for the letter; a retry pays for its own line in the log of attempts only.
            verdict = verdict.because(Failure.of(message.actor_name, exception))
            message.fail()
        message.verdict = verdict

    def _count(self, message: Delivered, verdict: Verdict, exception: BaseException, retries: int) -> None:
        now = int(time.time() * 1000)
        began = message.started_mono
        if verdict.reason != "permanent":
            # As in Dramatiq, so that its workers in the same fleet go on counting.
            message.options["retries"] = retries + 1
            message.options["traceback"] = traceback_text(exception)
            message.options["requeue_timestamp"] = now
        assert self.transport is not None
        identity = worker_identity(self.transport.settings.version)
        message.record.add_attempt(
            at=now,
            error=error_name(exception),
            message=error_message(exception),
            duration_ms=None if began is None else int((time.monotonic() - began) * 1000),
            **identity,
        )

    def _tell_exhausted(
        self, broker: Broker, actor: Actor[Any, Any], message: Delivered, counts: dict[str, int | None]
    ) -> None:
        sent = message.options.get("on_retry_exhausted")
        name = sent or actor_name("on_retry_exhausted", actor.options.get("on_retry_exhausted"))
        if not isinstance(name, str) or not name:
            return
        try:
            target = broker.get_actor(name)
        except ActorNotFound:
            self.logger.error("Actor %r: on_retry_exhausted names %r, which is not declared.", actor.actor_name, name)
            return
        target.send(message.asdict(), counts)

    def _name_refusal(self, exception: BaseException) -> None:
        """Say once per class that a refusal is a deferral here, where plain Dramatiq would have spent a retry."""
        name = type(exception).__qualname__
        if name not in self._named_refusals:
            self._named_refusals.add(name)
            self.logger.warning(
                "%s is taken as a deferral: the message runs later and spends no retry (plain Dramatiq spends one). "
                "It is bounded by defer_max, not by max_retries. This is said once.",
                name,
            )

    # -- options -------------------------------------------------------------------------------------------------

    def _limits(self, message: Mapping[str, Any], actor: Mapping[str, Any], *, strict: bool = False) -> Limits:
        """The limits of one message: its options, then its actor's, then ours. In a message a value that cannot work
        is passed over; in an actor (`strict`) it is an error."""
        look = _Lookup(message, actor, strict)
        retry_when = actor.get("retry_when", self.retry_when)
        if strict:
            check_retry_when(retry_when)
        throws = exception_classes("throws", actor.get("throws")) if actor.get("throws") else ()
        return Limits(
            backoff=look.shape(self.backoff),
            max_retries=look.number("max_retries", self.max_retries),
            max_elapsed_ms=look.number("max_elapsed", self.max_elapsed),
            defer_max_ms=look.number("defer_max", DEFAULT_DEFER_MAX_MS),
            throws=throws,
            retry_when=retry_when,
            retry_for=retry_for_value(actor["retry_for"]) if "retry_for" in actor else self.retry_for,
        )


def _count_in(options: Mapping[str, Any]) -> int:
    """How many runs have failed, as far as a producer's word can be taken for it."""
    retries = options.get("retries")
    return retries if isinstance(retries, int) and not isinstance(retries, bool) and retries >= 0 else 0


class _Lookup:
    """Options of a message, then of its actor."""

    def __init__(self, message: Mapping[str, Any], actor: Mapping[str, Any], strict: bool) -> None:
        self._message, self._actor, self._strict = message, actor, strict

    def number(self, name: str, default: int | None) -> int | None:
        for source in (self._message, self._actor):
            if name in source:
                value = source[name]
                if value is None:
                    return None
                try:
                    return whole(name, value)
                except ValueError:
                    if self._strict:
                        raise
        return default

    def shape(self, default: Backoff) -> Backoff:
        own = {name: self._actor[name] for name in _SHAPING if self._actor.get(name) is not None}
        sent = {name: self._message[name] for name in _SHAPING if self._message.get(name) is not None}
        if not own and not sent:
            return default
        for given in ({**own, **sent}, own):
            try:
                return shape(given, default)
            except ValueError:
                if self._strict:
                    raise
        return default


def shape(given: Mapping[str, Any], default: Backoff) -> Backoff:
    """A `Backoff` from options, None = not given. One bound given beyond the other's default moves that default:
    `max_backoff=1_000` alone means delays of at most one second, as in Dramatiq."""
    lower, upper = given.get("min_backoff"), given.get("max_backoff")
    low = default.min_ms if lower is None else whole("min_backoff", lower)
    high = default.max_ms if upper is None else whole("max_backoff", upper)
    if lower is None:
        low = min(low, high)
    elif upper is None:
        high = max(low, high)
    how, jitter = given.get("backoff"), given.get("jitter")
    return Backoff(
        low,
        high,
        default.shape if how is None else how,
        default.jitter if jitter is None else jitter,
    )
