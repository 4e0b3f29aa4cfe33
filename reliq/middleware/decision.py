"""Retry, defer, bury or hand back: the decision on a run that raised. Pure; `retries.py` calls it.

The first rule that matches wins:

1. Shutdown, and SystemExit or a cancellation while the worker stops: handed back, nothing counted.
2. `Permanent`: a letter, `permanent`.
3. `Defer`, `RateLimitExceeded`, `CircuitBreakerError`: deferred, no attempt spent; a letter `expired` once the
   message has spent more than `defer_max` deferred.
4. `throws`: a letter, `permanent`.
5. `retry_when`: false is a letter `retries_exhausted`; true is a retry whatever the count.
6. `retry_for`: outside it, a letter `permanent`; a number is the delay.
7. `max_retries`, `max_elapsed`: a letter, `retries_exhausted`.
8. Else a retry: after the delay of `Retry(delay=)`, the `Retry-After` of the exception, or the backoff.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.logging import get_logger
from dramatiq.middleware import Shutdown

from ..errors import Defer, Permanent
from ..message.record import Record
from ..message.verdict import Verdict
from ..policy.backoff import Backoff, Uniform, delay_ms, with_retry_after
from ..policy.foreign import attribute
from ..policy.transient import retry_after_ms

RetryFor = tuple[type[BaseException], ...] | Callable[[int, BaseException], bool | int]
RetryWhen = Callable[[int, BaseException], bool]

DAY_MS = 86_400_000
DEFAULT_DEFER_MAX_MS = 7 * DAY_MS


@dataclass(frozen=True)
class Limits:
    """What bounds the retries of one message. Times in ms; None = no limit, or not set."""

    backoff: Backoff = field(default_factory=Backoff)
    max_retries: int | None = 20
    max_elapsed_ms: int | None = None
    defer_max_ms: int | None = DEFAULT_DEFER_MAX_MS
    throws: tuple[type[BaseException], ...] = ()
    retry_when: RetryWhen | None = None
    retry_for: RetryFor | None = None


def decide(
    exception: BaseException,
    *,
    retries: int,
    record: Record,
    limits: Limits,
    stopping: bool,
    now_ms: int,
    rng: Uniform,
) -> Verdict:
    """The verdict on a run that raised `exception` after `retries` earlier failures. Changes nothing."""
    if isinstance(exception, Shutdown) or (stopping and isinstance(exception, (SystemExit, CancelledError))):
        return Verdict.hand_back()
    if isinstance(exception, Permanent):
        return Verdict.dead("permanent")
    if isinstance(exception, Defer) or is_refusal(exception):
        return _deferral(exception, record, limits, rng)
    if limits.throws and isinstance(exception, limits.throws):
        return Verdict.dead("permanent")
    return _retry(exception, retries, record, limits, now_ms, rng)


def is_refusal(exception: BaseException) -> bool:
    """Whether a limit or an open breaker refused the run: it did no work, so no attempt is spent."""
    if isinstance(exception, RateLimitExceeded):
        return True
    # By name: whoever uses pybreaker has imported it, reliq need not.
    return any(cls.__name__ == "CircuitBreakerError" for cls in type(exception).__mro__)


def _deferral(exception: BaseException, record: Record, limits: Limits, rng: Uniform) -> Verdict:
    asked = attribute(exception, "delay") if isinstance(exception, Defer) else None
    delay = asked if _is_delay(asked) else min(30_000, 1_000 * 2 ** min(record.deferrals, 5)) * rng.uniform(1, 2)
    if limits.defer_max_ms is not None and record.deferred_ms + delay > limits.defer_max_ms:
        return Verdict.dead("expired")
    return Verdict.defer(int(delay))


def _retry(
    exception: BaseException, retries: int, record: Record, limits: Limits, now_ms: int, rng: Uniform
) -> Verdict:
    delay: int | None = None
    wanted = _asked(limits.retry_when, retries, exception) if limits.retry_when else None
    if wanted is False:
        return Verdict.dead("retries_exhausted")
    if limits.retry_for is not None:
        covered = _covers(limits.retry_for, retries, exception)
        if covered is False:
            return Verdict.dead("permanent")
        delay = None if covered is True else covered
    if wanted is None and limits.max_retries is not None and retries >= limits.max_retries:
        return Verdict.dead("retries_exhausted")
    if delay is None:
        delay = _delay(exception, retries, record, limits, now_ms, rng)
    began = now_ms if record.first_failed_at is None else record.first_failed_at
    if limits.max_elapsed_ms is not None and now_ms + delay - began > limits.max_elapsed_ms:
        return Verdict.dead("retries_exhausted")
    return Verdict.retry(delay)


def _delay(exception: BaseException, retries: int, record: Record, limits: Limits, now_ms: int, rng: Uniform) -> int:
    wanted = attribute(exception, "delay") if isinstance(exception, Retry) else None
    if _is_delay(wanted):
        return int(wanted)
    asked = retry_after_ms(exception, now_ms / 1000)
    if asked is not None:
        return with_retry_after(asked, rng)
    return delay_ms(limits.backoff, retries + 1, rng, previous_ms=_previous_delay(record))


def _previous_delay(record: Record) -> int | None:
    """How long the last retry waited: from that attempt to when it was due."""
    if record.eligible_at is None or not record.attempts:
        return None
    at = record.attempts[-1].get("at")
    return max(0, record.eligible_at - at) if isinstance(at, int) else None


def _covers(retry_for: RetryFor, retries: int, exception: BaseException) -> bool | int:
    if isinstance(retry_for, tuple):
        return isinstance(exception, retry_for)
    answer = _asked(retry_for, retries, exception)
    if answer is None:
        return True
    if isinstance(answer, bool):
        return answer
    return int(answer) if _is_delay(answer) else bool(answer)


def _asked(predicate: Callable[[int, BaseException], Any], retries: int, exception: BaseException) -> Any:
    """The predicate's answer; None when it raises: a broken predicate must not decide over a message."""
    try:
        answer = predicate(retries, exception)
    except BaseException:
        # Whatever it raises, SystemExit too: the run is over, only its message can be lost here.
        get_logger(__name__).critical(
            "%r raised; the message is retried as if it were not set.", predicate, exc_info=True
        )
        return None
    if isinstance(answer, (bool, int, float)):
        return answer
    return bool(answer)


def _is_delay(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**53
