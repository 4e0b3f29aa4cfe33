"""How many messages a process takes ahead, by what its runs took: numbers only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliq.transport.pace import ENOUGH, HORIZON_S, MOST_AHEAD, Pace

#: Seconds that a run may take: from less than the clock tells to a day.
SECONDS = st.floats(0, 86_400, allow_nan=False)


def after(threads: int, *runs: float) -> Pace:
    """The pace of a process whose runs took so long."""
    pace = Pace(threads)
    for seconds in runs:
        pace.ran(seconds)
    return pace


@pytest.mark.parametrize("threads", [1, 4, 64])
def test_as_long_as_nothing_is_known_it_holds_what_dramatiq_does(threads: int) -> None:
    """Twice the threads, and more are fetched when half of those ahead are gone."""
    pace = Pace(threads)
    assert (pace.window, pace.refill_at, pace.ended) == (2 * threads, threads + threads // 2, 0)


@pytest.mark.parametrize(
    ("threads", "run_s", "ahead", "refill_at"),
    [
        (1, 0.0, 256, 129),  # no time at all: the most there is, and more at half of it
        (4, 0.000_01, 256, 132),  # 4 * 5 ms / 10 us = 2,000: capped
        (1, 0.000_1, 50, 26),  # 5 ms / 100 us
        (4, 0.001, 20, 14),  # 4 * 5 ms / 1 ms
        (8, 0.001, 40, 28),
        (4, 0.005, 4, 6),  # 4 * 5 ms / 5 ms: each thread has one waiting
        (4, 0.010, 2, 5),  # 4 * 5 ms / 10 ms
        (1, 0.010, 0, 0),  # less than one: none, and the next is fetched when the thread is free
        (4, 0.100, 0, 3),  # 4 * 5 ms / 100 ms: less than one
        (64, 0.100, 3, 65),  # 64 * 5 ms / 100 ms: with many threads one is soon free
        (4, 3_600.0, 0, 3),
    ],
)
def test_no_more_is_taken_ahead_than_is_begun_within_the_horizon(
    threads: int, run_s: float, ahead: int, refill_at: int
) -> None:
    """threads * 5 ms / what a run takes, rounded down."""
    pace = after(threads, *[run_s] * 500)
    assert (pace.window, pace.refill_at) == (threads + ahead, refill_at)


def test_the_first_few_runs_change_nothing() -> None:
    """They may be the quick ones among slow ones, or the slow ones among quick ones."""
    for seconds, window in ((0.1, 4), (0.001, 4 + 20), (0.000_01, 4 + MOST_AHEAD)):
        assert after(4, *[seconds] * (ENOUGH - 1)).window == 8
        assert after(4, *[seconds] * ENOUGH).window == window


def test_the_first_runs_weigh_alike() -> None:
    """Three of 100 ms and 27 of 1 ms, in whatever order: a mean of some 11 ms, one ahead."""
    for place in range(10):
        runs = [0.001] * 30
        runs[3 * place : 3 * place + 3] = [0.1] * 3
        assert after(4, *runs).window == 4 + 1


def test_a_fifth_of_slow_ones_among_quick_ones_leaves_at_most_one_ahead() -> None:
    """4 of 1 ms, then one of 100 ms, again and again: what waits would wait for the slow ones."""
    pace, ahead = Pace(4), []
    for number in range(1_000):
        pace.ran(0.1 if number % 5 == 4 else 0.001)
        ahead.append(pace.window - 4)
    assert max(ahead[100:]) <= 1


def test_one_slow_run_is_remembered_for_a_while_and_then_forgotten() -> None:
    """One of 1 s among those of 50 us: nothing ahead for 50 runs and more, the most again before 600."""
    pace = after(4, *[0.000_05] * 500)
    assert pace.window == 4 + MOST_AHEAD
    pace.ran(1.0)
    assert pace.window == 4
    windows = []
    for _ in range(600):
        pace.ran(0.000_05)
        windows.append(pace.window - 4)
    assert max(windows[:50]) <= 2
    assert windows == sorted(windows)
    assert windows[-1] == MOST_AHEAD


def test_threads_that_are_held_up_count_though_no_run_has_ended() -> None:
    """`stalls` makes quick ones slow at once; it never makes slow ones quick, and no run is counted for it."""
    pace = after(4, *[0.000_01] * 500)
    pace.stalls(0.05)
    assert (pace.window, pace.ended) == (4, 500)
    pace.stalls(0.001)
    assert pace.window == 4
    unknown = Pace(4)
    unknown.stalls(0.001)
    assert unknown.window == 4 + 20


@given(st.integers(1, 64), st.lists(st.tuples(st.booleans(), SECONDS), min_size=1, max_size=50))
def test_the_window_has_room_for_the_threads_and_for_no_more_ahead_than_the_most(
    threads: int, told: list[tuple[bool, float]]
) -> None:
    """Whatever runs and stalls it is told of; and more is always fetched before the last is gone."""
    pace = Pace(threads)
    for stalled, seconds in told:
        (pace.stalls if stalled else pace.ran)(seconds)
        assert threads <= pace.window <= threads + MOST_AHEAD
        assert 0 <= pace.refill_at < pace.window
        assert pace.refill_at >= threads - 1
    assert pace.ended == sum(not stalled for stalled, _ in told)


@given(st.integers(1, 64), SECONDS, SECONDS)
def test_quicker_runs_never_mean_a_smaller_window(threads: int, one: float, other: float) -> None:
    """Nor do more threads; and what waits is begun within the horizon."""
    quick, slow = ([seconds] * ENOUGH for seconds in sorted((one, other)))
    assert after(threads, *quick).window >= after(threads, *slow).window
    assert after(threads + 1, *slow).window > after(threads, *slow).window
    ahead = after(threads, *slow).window - threads
    assert ahead * slow[0] / threads <= HORIZON_S * 1.000_001
