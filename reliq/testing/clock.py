"""A clock that stands still until a test moves it.

Callers: tests of code that takes a clock as an argument.
Guarantee: time changes only through `advance`; wall and monotonic time move together; safe for several
threads.
"""

from __future__ import annotations

import threading


class FakeClock:
    """Wall and monotonic time in milliseconds, moved by hand.

    `now_ms` is the wall time it starts at (default: 2023-11-14 22:13:20 UTC). Monotonic time starts at
    another value on purpose, so that code which mixes up the two is found out. Calling the clock returns wall
    time.
    """

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._lock = threading.Lock()
        self._wall_ms = now_ms
        self._mono_ms = 1_000_000

    def __call__(self) -> int:
        """Wall time in ms, as `now_ms()`."""
        return self.now_ms()

    def now_ms(self) -> int:
        """Wall time in ms since the epoch."""
        with self._lock:
            return self._wall_ms

    def mono_ms(self) -> int:
        """Monotonic time in ms, for differences only."""
        with self._lock:
            return self._mono_ms

    def advance(self, ms: int) -> int:
        """Move both times forward by `ms` and return the new wall time; `ValueError` if negative."""
        if ms < 0:
            raise ValueError(f"FakeClock.advance: ms must be at least 0, got {ms}")
        with self._lock:
            self._wall_ms += ms
            self._mono_ms += ms
            return self._wall_ms

    def __repr__(self) -> str:
        return f"FakeClock(now_ms={self.now_ms()})"
