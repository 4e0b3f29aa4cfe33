"""How long a failed message waits: the formulas row by row, their bounds for any input, and what a herd does."""

import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliq.policy.backoff import (
    JITTERS,
    LONGEST_MS,
    SHAPES,
    Backoff,
    delay_ms,
    describe_ms,
    horizon_ms,
    with_retry_after,
)

HOUR = 3_600_000
DAY = 24 * HOUR


class Fixed:
    """Chance that always falls on the same place of the interval, and remembers the intervals."""

    def __init__(self, place: float) -> None:
        self.place = place
        self.asked: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.asked.append((a, b))
        return a + (b - a) * self.place


def bounds(n: int, *, previous_ms: int | None = None, **options: Any) -> tuple[int, int]:
    """The shortest and the longest delay that chance can give."""
    backoff = Backoff(**options)
    low, high = (delay_ms(backoff, n, Fixed(place), previous_ms=previous_ms) for place in (0.0, 1.0))
    return low, high


# -------------------------------------------------------------------------------------------------- the formulas

FULL = [
    # n, options, (shortest, longest)
    (1, {}, (15_000, 30_000)),  # v = b, but m is at least 2b
    (2, {}, (15_000, 30_000)),  # v = 2b = 30 s
    (3, {}, (15_000, 60_000)),  # v = 4b
    (4, {}, (15_000, 120_000)),  # v = 8b
    (10, {}, (15_000, 7_680_000)),  # v = 512b: 2.1 h
    (11, {}, (15_000, 15_360_000)),  # v = 1,024b: the last below the cap
    (12, {}, (15_000, 21_600_000)),  # v = 2,048b = 8.5 h, capped at 6 h
    (20, {}, (15_000, 21_600_000)),
    (0, {}, (15_000, 30_000)),  # less than 1 counts as 1
    (-5, {}, (15_000, 30_000)),
    (1, {"max_ms": 20_000}, (15_000, 20_000)),  # 2b is above the cap
    (9, {"max_ms": 15_000}, (15_000, 15_000)),  # floor = cap: nothing to draw
    (1, {"min_ms": 0}, (0, 0)),  # b = 0 doubles to 0
    (3, {"shape": "linear"}, (15_000, 45_000)),  # v = 3b
    (1, {"shape": "linear"}, (15_000, 30_000)),  # m = 2b again
    (7, {"shape": "fixed"}, (15_000, 30_000)),  # v = b for ever
]
OTHER_JITTERS = [
    (1, {"jitter": "equal"}, (15_000, 30_000)),  # m/2 = b
    (4, {"jitter": "equal"}, (60_000, 120_000)),  # m/2 .. m, m = 8b
    (1, {"jitter": "equal", "max_ms": 20_000}, (15_000, 20_000)),  # m/2 = 10 s lies below the floor
    (1, {"jitter": "equal", "min_ms": 3, "max_ms": 5}, (3, 5)),  # m = 5, m/2 = 2.5 below the floor
    (3, {"jitter": "equal", "min_ms": 2, "max_ms": 7}, (4, 7)),  # m = 7, m/2 = 3.5: whole ms, never before
    (1, {"jitter": "none"}, (15_000, 15_000)),  # w = v = b, not 2b
    (3, {"jitter": "none"}, (60_000, 60_000)),
    (12, {"jitter": "none"}, (21_600_000, 21_600_000)),
    (3, {"jitter": 0.25}, (45_000, 75_000)),  # w = 60 s, less and more a quarter
    (1, {"jitter": 0.25}, (15_000, 18_750)),  # 11.25 s lies below the floor
    (12, {"jitter": 0.25}, (16_200_000, 21_600_000)),  # 7.5 h lies above the cap
    (3, {"jitter": 1}, (15_000, 120_000)),  # 0 .. 2w, above the floor
    (2, {"jitter": 0.5, "shape": "linear", "min_ms": 1}, (1, 3)),  # w = 2
]
DECORRELATED = [
    # n does not count, only the delay before.
    (1, None, {}, (15_000, 45_000)),  # prev = b at first
    (9, 15_000, {}, (15_000, 45_000)),
    (2, 40_000, {}, (15_000, 120_000)),
    (2, 5_000, {}, (15_000, 45_000)),  # b was raised since: prev counts as b
    (5, 20_000_000, {}, (15_000, 21_600_000)),  # the bound is clamped before the draw
    (5, 20_000_000, {"jitter": "none"}, (15_000, 21_600_000)),  # jitter is ignored
]


@pytest.mark.parametrize(("n", "options", "expected"), FULL + OTHER_JITTERS)
def test_the_delay_is_drawn_from(n: int, options: dict[str, Any], expected: tuple[int, int]) -> None:
    assert bounds(n, **options) == expected


@pytest.mark.parametrize(("n", "previous", "options", "expected"), DECORRELATED)
def test_decorrelated_delay_is_drawn_from(
    n: int, previous: int | None, options: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert bounds(n, previous_ms=previous, shape="decorrelated", **options) == expected


def test_no_jitter_asks_no_chance() -> None:
    chance = Fixed(0.5)
    delay_ms(Backoff(jitter="none"), 3, chance)
    assert chance.asked == []


def test_the_draw_is_even_over_the_interval() -> None:
    """The table above holds the ends only; the middle of chance is the middle of the delay."""
    assert delay_ms(Backoff(), 4, Fixed(0.5)) == 67_500  # (15 + 120) / 2


# ------------------------------------------------------------------------------------------------ for any input

shapes, jitters = st.sampled_from(SHAPES), st.sampled_from(JITTERS) | st.floats(0, 1, exclude_min=True)
counts = st.integers(-(10**3), 10**9)
long_times = st.integers(0, LONGEST_MS)


@st.composite
def backoffs(draw: st.DrawFn) -> Backoff:
    low, high = sorted((draw(long_times | st.integers(0, 10**5)), draw(long_times | st.integers(0, 10**8))))
    return Backoff(low, high, draw(shapes), draw(jitters))


@given(backoffs(), counts, st.none() | st.integers() | st.floats(), st.integers(0, 10**6))
def test_any_delay_is_whole_and_between_floor_and_cap(
    backoff: Backoff, n: int, previous: float | None, seed: int
) -> None:
    delay = delay_ms(backoff, n, random.Random(seed), previous_ms=previous)
    assert type(delay) is int
    assert backoff.min_ms <= delay <= backoff.max_ms


@given(backoffs(), counts, st.sampled_from([0.0, 1.0, 0.5, 1e-9]))
def test_jitter_never_comes_early(backoff: Backoff, n: int, place: float) -> None:
    """Rounding to whole ms stays inside the interval that the formula gives."""
    chance = Fixed(place)
    delay = delay_ms(backoff, n, chance)
    for low, high in chance.asked:
        assert low <= delay <= high or backoff.max_ms > 2**53  # beyond it floats have no whole ms


@given(st.integers(0, 10**10), st.integers(0, 10**6))
def test_retry_after_is_never_undercut(after: int, seed: int) -> None:
    delay = with_retry_after(after, random.Random(seed))
    assert after <= delay <= after + max(1_000, after / 2)


def test_retry_after_of_seconds_spreads_over_half_of_them() -> None:
    assert with_retry_after(60_000, Fixed(1.0)) == 90_000  # r + r/2
    assert with_retry_after(500, Fixed(1.0)) == 1_500  # at least a second
    assert with_retry_after(-5, Fixed(0.0)) == 0
    assert with_retry_after(DAY, Fixed(0.0)) == DAY  # above any max_backoff


# ---------------------------------------------------------------------------------------------------- the herd

HERD = 10_000


def herd(retry: int, seed: int) -> list[int]:
    """When 10,000 messages that fail at one instant come back, in ms after it."""
    rng, backoff = random.Random(f"{seed}/{retry}"), Backoff()
    return [delay_ms(backoff, retry, rng) for _ in range(HERD)]


def busiest_second(delays: list[int]) -> int:
    return max(Counter(delay // 1_000 for delay in delays).values())


def distance_from_uniform(delays: list[int], low: int, high: int) -> float:
    """Kolmogorov and Smirnov's: the largest gap between the share that has come back and the share that should."""
    ordered, count = sorted(delays), len(delays)
    shares = [(delay - low) / (high - low) for delay in ordered]
    return max(max(share - i / count, (i + 1) / count - share) for i, share in enumerate(shares))


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed-{seed}") for seed in (1, 20_260, 777_777)])
def test_ten_thousand_failures_at_one_instant_do_not_return_together(seed: int) -> None:
    """With the defaults; each retry counted from its own failure.

    The first is spread over 15 s: 667 a second expected, at most 1,000. Each of the first four: at most 1.5 times
    the expected share in any second. From the fifth on seconds hold too few to count: even over [15 s, m] instead.
    """
    assert busiest_second(herd(1, seed)) <= 1_000
    for retry in range(1, 21):
        delays, low, high = herd(retry, seed), *bounds(retry)
        assert low <= min(delays)
        assert max(delays) <= high
        if retry <= 4:
            assert busiest_second(delays) <= 1.5 * HERD * 1_000 / (high - low), retry
        else:
            assert distance_from_uniform(delays, low, high) < 0.02, retry


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed-{seed}") for seed in (1, 2)])
@pytest.mark.parametrize("options", [{"jitter": "equal"}, {"jitter": 0.5}, {"shape": "decorrelated"}], ids=str)
def test_no_jitter_makes_a_heap_at_the_cap(options: dict[str, Any], seed: int) -> None:
    """Clamping the drawn delay would put up to two thirds of a herd on one ms; the bounds are clamped instead."""
    rng, backoff = random.Random(seed), Backoff(**options)
    delays = [delay_ms(backoff, 30, rng, previous_ms=backoff.max_ms) for _ in range(HERD)]
    assert busiest_second(delays) <= 20  # spread over 3 h or more: one a second


# ------------------------------------------------------------------------------------------------- the horizon

HORIZONS = [
    ({}, 0, 0),
    ({}, 1, 22_500),  # (15 + 30) / 2
    ({"jitter": "none"}, 3, 105_000),  # 15 + 30 + 60
    ({"jitter": "none", "shape": "fixed"}, 1_000_000_000, 15_000e9),
    ({"jitter": "none", "shape": "linear"}, 100, 75_750_000),  # b * 100 * 101 / 2
    ({"jitter": "none", "shape": "linear"}, 2_000, 27_658_800_000),  # up to n = 1,440, then 560 times the cap
    ({"shape": "decorrelated"}, 1, 30_000),  # (15 + 45) / 2
    ({"shape": "decorrelated"}, 2, 82_500),  # 30 + (15 + 3 * 30) / 2
]


@pytest.mark.parametrize(("options", "retries", "expected"), HORIZONS)
def test_horizon(options: dict[str, Any], retries: int, expected: float) -> None:
    assert horizon_ms(Backoff(**options), retries) == pytest.approx(expected, rel=0.001)


def test_twenty_retries_with_the_defaults_last_about_31_hours() -> None:
    horizon = horizon_ms(Backoff(), 20)
    assert 30 * HOUR < horizon < 32 * HOUR
    assert describe_ms(horizon) == "31 h"


@pytest.mark.parametrize("jitter", [*JITTERS, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_horizon_is_what_messages_really_wait(shape: str, jitter: str | float) -> None:
    """The mean of 2,000 seeded lives of 20 retries; a life scatters by 20 to 70 %, its mean by under 2 %."""
    backoff, rng, total = Backoff(shape=shape, jitter=jitter), random.Random(7), 0
    for _ in range(2_000):
        delay = None
        for n in range(1, 21):
            delay = delay_ms(backoff, n, rng, previous_ms=delay)
            total += delay
    assert horizon_ms(backoff, 20) == pytest.approx(total / 2_000, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_billion_retries_are_summed_at_once(shape: str) -> None:
    """The boot line must not hang over `max_retries=10**9`."""
    backoff = Backoff(min_ms=1, max_ms=1_000, shape=shape)
    assert 10**9 <= horizon_ms(backoff, 10**9) <= 1_000 * 10**9


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 s"),
        (0.4, "0.4 ms"),
        (250, "250 ms"),
        (1_000, "1 s"),
        (12_000, "12 s"),
        (12_400, "12 s"),
        (60_000, "1 min"),
        (90_000, "1.5 min"),
        (2_700_000, "45 min"),
        (1.5 * HOUR, "1.5 h"),
        (31.3 * HOUR, "31 h"),
        (47 * HOUR, "47 h"),  # "2 days" would round too far
        (48 * HOUR, "2 days"),
        (3 * DAY, "3 days"),
        (30 * DAY, "30 days"),
        (3_650 * DAY, "10 years"),
        (float("inf"), "for ever"),
        (float("nan"), "for ever"),
    ],
)
def test_describe(ms: float, text: str) -> None:
    assert describe_ms(ms) == text


# ------------------------------------------------------------------------------------------- what cannot work

REFUSED = [
    # options, what the text must say: the option, what came, what to write
    ({"min_ms": -1}, ["min_backoff", "at least 0", "got -1", "15_000 for 15 s"]),
    ({"min_ms": True}, ["min_backoff", "got True"]),
    ({"min_ms": None}, ["min_backoff", "got None"]),
    ({"min_ms": "15s"}, ["min_backoff", "got '15s'"]),
    ({"min_ms": 15.0}, ["min_backoff", "got 15.0", "write 15, or 15_000 if seconds were meant"]),
    ({"max_ms": 1.5}, ["max_backoff", "whole number of milliseconds", "got 1.5"]),
    ({"max_ms": float("nan")}, ["max_backoff", "got nan"]),
    ({"max_ms": float("inf")}, ["max_backoff", "got inf"]),
    ({"max_ms": timedelta(hours=1)}, ["max_backoff", "timedelta", "write 3_600_000"]),
    ({"max_ms": LONGEST_MS + 1}, ["max_backoff"]),  # beyond it a float does not count single ms
    ({"max_ms": 5_000}, ["max_backoff must be at least min_backoff, got 5_000 < 15_000 ms"]),
    ({"shape": "exponental"}, ["backoff", "'decorrelated'", "got 'exponental'", "did you mean 'exponential'?"]),
    ({"shape": "Linear"}, ["did you mean 'linear'?"]),
    ({"shape": "zzz"}, ["got 'zzz'", "write 'exponential'"]),
    ({"shape": None}, ["backoff", "got None"]),
    ({"jitter": "ful"}, ["jitter", "'equal'", "got 'ful'", "did you mean 'full'?"]),
    ({"jitter": True}, ["jitter", "got True"]),
    ({"jitter": None}, ["jitter", "got None", "write 'none'"]),
    ({"jitter": 0}, ["jitter", "got 0", "write 'none'"]),
    ({"jitter": -0.1}, ["above 0 and up to 1", "got -0.1"]),
    ({"jitter": 25}, ["got 25", "0.25 for plus or minus 25 %"]),
    ({"jitter": float("nan")}, ["got nan"]),
    ({"jitter": ["full"]}, ["got ['full']"]),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_refused_with_what_to_write(options: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        Backoff(**options)
    for words in said:
        assert words in str(refusal.value)


def test_a_backoff_does_not_change() -> None:
    with pytest.raises(AttributeError):
        Backoff().min_ms = 1  # type: ignore[misc]
    assert Backoff() == Backoff(15_000, 21_600_000, "exponential", "full")
