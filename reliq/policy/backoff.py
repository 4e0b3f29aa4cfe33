"""How long a failed message waits before its next attempt.

Callers: `middleware/retries.py`, with the options of the message, its actor or its own; the boot line.
Guarantee: a whole number of ms, never below `min_ms`, never above `max_ms` (only a Retry-After may exceed
it), no overflow whatever the count, and no heap: bounds are clamped before chance draws between them, so
that messages that failed at one instant do not come back at another single instant.
Not here: whether there is a next attempt (`transient.py` and `middleware/retries.py`), what reads Retry-After
(`transient.retry_after_ms`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, Protocol

SHAPES = ("exponential", "linear", "fixed", "decorrelated")
JITTERS = ("full", "equal", "none")

#: Up to here a float counts single ms (285,000 years): no draw leaves its interval by rounding.
LONGEST_MS = 2**53 - 1

#: 2**40 times any `min_backoff` of at least 1 ms is 34 years: beyond it the exponent only costs.
_HIGHEST_EXPONENT = 40

_SECOND, _MINUTE, _HOUR, _DAY = 1_000.0, 60_000.0, 3_600_000.0, 86_400_000.0
_UNITS = (
    (730 * _DAY, 365 * _DAY, "years"),
    (2 * _DAY, _DAY, "days"),
    (_HOUR, _HOUR, "h"),
    (_MINUTE, _MINUTE, "min"),
)


class Uniform(Protocol):
    """Chance, as `random.Random` offers it."""

    def uniform(self, a: float, b: float, /) -> float:
        """A number between a and b."""
        ...


@dataclass(frozen=True)
class Backoff:
    """The delays between the attempts of a message.

    - `min_ms`, `max_ms`: floor and cap of every delay, in ms (15 s and 6 h). The options `min_backoff` and
      `max_backoff`.
    - `shape`: how the delay grows with the number of failed attempts: `"exponential"` (doubles), `"linear"`,
      `"fixed"`, `"decorrelated"` (up to three times the delay before). The option `backoff`.
    - `jitter`: `"full"`, `"equal"`, `"none"`, or a share p in (0, 1] for plus or minus p; `"decorrelated"`
      ignores it.

    The defaults give 15-30 s, 15-30 s, 15-60 s, 15-120 s ... 15 s-6 h: 20 retries last about 31 h (19-44 h).
    The formula is that of `delay_ms`. A value that cannot work raises ValueError, see `validate`.
    """

    min_ms: int = 15_000
    max_ms: int = 21_600_000
    shape: str = "exponential"
    jitter: str | float = "full"

    def __post_init__(self) -> None:
        validate(self.min_ms, self.max_ms, self.shape, self.jitter)


def validate(min_ms: object, max_ms: object, shape: object, jitter: object) -> None:
    """Raise ValueError if these cannot be a `Backoff`.

    The text calls the values by the names of their options (`min_backoff`, `max_backoff`, `backoff`,
    `jitter`), says what was expected, what came and what to write; the caller puts the actor and queue in
    front.
    """
    floor, cap = _whole_ms("min_backoff", min_ms), _whole_ms("max_backoff", max_ms)
    if cap < floor:
        raise ValueError(
            f"max_backoff must be at least min_backoff, got {cap:_} < {floor:_} ms; "
            "raise max_backoff or lower min_backoff"
        )
    if not isinstance(shape, str) or shape not in SHAPES:
        raise ValueError(f"backoff must be one of {_names(SHAPES)}, got {shape!r}; {_nearest(shape, SHAPES)}")
    _check_jitter(jitter)


def delay_ms(backoff: Backoff, n: int, rng: Uniform, *, previous_ms: float | None = None) -> int:
    """The wait in ms after the n-th failed attempt (1 = the first; less counts as 1).

    With b = `min_ms`, cap = `max_ms`, and v = b*2^(n-1) (exponential), b*n (linear) or b (fixed):

    - full: U(b, m), m = max(b, min(cap, max(2b, v))). The first retry after 15-30 s, the tenth after
      15 s to 2.1 h, from the twelfth on 15 s to 6 h.
    - equal: U(max(b, m/2), m)
    - none: w = max(b, min(cap, v))
    - p: U(max(b, w(1-p)), min(cap, w(1+p)))
    - shape decorrelated: U(b, min(cap, max(b, 3*`previous_ms`))); `previous_ms` is the delay before this one,
      None at first, which counts as b.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (full, equal, decorrelated), with a floor
    as in Dramatiq: full jitter from 1 s would send 10,000 simultaneous failures back within that second.
    """
    low, high = _bounds(backoff, n, previous_ms)
    if low >= high:
        return math.ceil(low)
    # Rounding must not leave the interval; a whole number lies inside, because b, cap, m and w are whole.
    return min(math.floor(high), max(math.ceil(low), round(rng.uniform(low, high))))


def with_retry_after(after_ms: int, rng: Uniform) -> int:
    """The wait in ms when the upstream asked for `after_ms`: r + U(0, max(1 s, r/2)), never earlier.

    It may exceed `max_backoff`: who says when to come back knows better. The spread keeps all who were told
    the same moment from coming back at it (obeyed exactly, the peak was 10.8 times the upstream's capacity;
    simulated).
    """
    after = max(0, after_ms)
    return after + round(rng.uniform(0.0, max(_SECOND, after / 2)))


def horizon_ms(backoff: Backoff, retries: int) -> float:
    """The expected wait in ms of that many retries together: the sum of each delay's mean.

    20 retries with the defaults: about 31 h. Run times and waiting for a free worker come on top.
    """
    if backoff.shape == "decorrelated":
        return _decorrelated_horizon(backoff, retries)
    total, n = 0.0, 1
    while n <= retries:
        # Far out the mean is a straight line or flat: a block weighs what its middle weighs, whatever
        # `retries`.
        block = min(max(1, n // 256), retries - n + 1)
        low, high = _bounds(backoff, n + (block - 1) / 2, None)
        total += block * (low + high) / 2
        n += block
    return total


def describe_ms(ms: float) -> str:
    """A span of time for people: "250 ms", "12 s", "45 min", "31 h", "3 days"; hours up to two days."""
    if not math.isfinite(ms):
        return "for ever"
    for least, unit_ms, name in _UNITS:
        if ms >= least:
            return f"{_short(ms / unit_ms)} {name}"
    if 0 < ms < _SECOND:
        return f"{_short(ms)} ms"
    return f"{_short(ms / _SECOND)} s"


def _bounds(backoff: Backoff, n: float, previous_ms: float | None) -> tuple[float, float]:
    """The interval the delay is drawn from; equal ends mean no draw."""
    b, cap, jitter = backoff.min_ms, backoff.max_ms, backoff.jitter
    if backoff.shape == "decorrelated":
        before = previous_ms if previous_ms is not None and previous_ms > b else b
        return b, min(cap, max(b, 3 * before))
    raw = _raw(backoff, max(1, n))
    if jitter == "full" or jitter == "equal":
        most = max(b, min(cap, max(2 * b, raw)))
        return (b if jitter == "full" else max(b, most / 2)), most
    usual = max(b, min(cap, raw))
    if isinstance(jitter, str):
        return usual, usual
    return max(b, usual * (1 - jitter)), min(cap, usual * (1 + jitter))


def _raw(backoff: Backoff, n: float) -> float:
    if backoff.shape == "exponential":
        # The clamp comes before the power: 2.0**1100 is an OverflowError, and n comes from a message.
        return backoff.min_ms * 2 ** min(n - 1, _HIGHEST_EXPONENT)
    return backoff.min_ms * n if backoff.shape == "linear" else backoff.min_ms


def _decorrelated_horizon(backoff: Backoff, retries: int, points: int = 32, steps: int = 256) -> float:
    """Follow the distribution of the delay, held as `points` equally likely values, step by step.

    Its mean alone would not do: three times the mean passes the cap long before most messages do, and the
    sum of 20 comes out at 25 h, not 10. After `steps` the distribution has settled; its mean stands for the
    rest.
    """
    total = mean = 0.0
    likely: list[float] = [float(backoff.min_ms)]
    for _ in range(min(retries, steps)):
        spread = sorted(
            low + (high - low) * (i + 0.5) / points
            for low, high in (_bounds(backoff, 1, before) for before in likely)
            for i in range(points)
        )
        size = len(spread) // points
        likely = [sum(spread[i * size : (i + 1) * size]) / size for i in range(points)]
        mean = sum(likely) / points
        total += mean
    return total + mean * max(0, retries - steps)


def _whole_ms(option: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LONGEST_MS:
        raise ValueError(
            f"{option} must be a whole number of milliseconds, at least 0, got {value!r}; {_better_ms(value)}"
        )
    return value


def _better_ms(value: Any) -> str:
    if isinstance(value, timedelta) and value >= timedelta(0):
        return f"write {value // timedelta(milliseconds=1):_}"
    if isinstance(value, float) and 0 <= value <= LONGEST_MS:
        return f"write {math.ceil(value):_}, or {math.ceil(value * 1_000):_} if seconds were meant"
    return "write 15_000 for 15 s"


def _check_jitter(jitter: object) -> None:
    if isinstance(jitter, str) and jitter in JITTERS:
        return
    if isinstance(jitter, (int, float)) and not isinstance(jitter, bool) and 0 < jitter <= 1:
        return
    expected = f"jitter must be one of {_names(JITTERS)} or a share above 0 and up to 1"
    if isinstance(jitter, str):
        advice = _nearest(jitter, JITTERS)
    elif jitter is None or jitter is False or jitter == 0:
        advice = "write 'none' for delays without jitter"
    else:
        advice = "write 0.25 for plus or minus 25 %"
    raise ValueError(f"{expected}, got {jitter!r}; {advice}")


def _nearest(given: object, known: Iterable[str]) -> str:
    near = get_close_matches(given.lower(), known, n=1) if isinstance(given, str) else []
    return f"did you mean {near[0]!r}?" if near else f"write {next(iter(known))!r} for the default"


def _names(known: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in known)


def _short(value: float) -> str:
    """Two digits tell a span: 1.5, 2, 31."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}".removesuffix(".0")
