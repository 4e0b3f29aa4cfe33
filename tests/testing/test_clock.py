"""A fake clock moves when told, and not otherwise."""

import pytest

from reliq.testing import FakeClock


def test_time_stands_still_until_moved() -> None:
    clock = FakeClock(now_ms=5_000)
    mono = clock.mono_ms()
    assert (clock(), clock.now_ms()) == (5_000, 5_000)
    assert clock.advance(250) == 5_250
    assert (clock(), clock.mono_ms() - mono) == (5_250, 250)
    assert repr(clock) == "FakeClock(now_ms=5250)"


def test_wall_and_monotonic_time_cannot_be_mistaken_for_each_other() -> None:
    clock = FakeClock()
    assert clock.now_ms() != clock.mono_ms()


def test_it_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        FakeClock().advance(-1)
