"""The estimate of the server's clock: never below the truth, so that no delay is early, and soon close to it."""

import random

import pytest

from reliq.transport.redis.clock import ServerClock


def hear(clock: ServerClock, at: float, lead: float, *, there: float = 0.2, back: float = 0.2) -> None:
    """A reply to a request that left at `at` (ms), took `there` ms to the server and `back` ms from it."""
    clock.heard(int(at + there + lead), asked_ms=int(at), heard_ms=int(at + there + back))


def test_before_the_first_reply_nothing_is_known() -> None:
    """No lead is made up."""
    assert ServerClock().lead_ms is None


@pytest.mark.parametrize("lead", [0, 3, -3, 900, -900, 20_000, -20_000])
@pytest.mark.parametrize("seed", range(5))
def test_the_lead_is_never_below_the_truth_and_as_exact_as_the_fastest_reply(lead: int, seed: int) -> None:
    """200 replies that take 0 to 50 ms each way, one 2 s: at every moment lead - 0 <= estimate, in the end within 5 ms
    (the fastest of 200 requests) plus 2 for rounding."""
    chance, clock, at = random.Random(seed), ServerClock(), 1_000_000.0
    for number in range(200):
        at += 100 + chance.random()
        slow = 2_000 if number == 100 else 0
        hear(clock, at, lead, there=chance.uniform(0, 50), back=chance.uniform(0, 50) + slow)
        assert clock.lead_ms is not None
        assert clock.lead_ms >= lead
    assert clock.lead_ms is not None
    assert clock.lead_ms <= lead + 5 + 2


def test_a_reply_that_is_late_by_seconds_does_not_move_the_lead() -> None:
    """A reply held up for 1.9 s says nothing of the clock: it had read its time long before."""
    clock = ServerClock()
    hear(clock, 1_000, 0)
    before = clock.lead_ms
    hear(clock, 2_000, 0, there=0.2, back=1_900)
    hear(clock, 5_000, 0, there=1_900, back=0.2)
    assert clock.lead_ms == before


@pytest.mark.parametrize("step", [-20_000, 20_000, -30, 30])
def test_a_clock_that_is_set_is_followed_at_the_next_reply(step: int) -> None:
    """Our clock or the server's jumps: the next reply gives the new lead, rounded up."""
    clock = ServerClock()
    hear(clock, 1_000, 50_000)
    hear(clock, 2_000, 50_000 + step)
    assert clock.lead_ms is not None
    assert 50_000 + step <= clock.lead_ms <= 50_000 + step + 2
