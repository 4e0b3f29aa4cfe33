"""How far the server's clock is ahead of this process's, learned from replies that carry its time.

Caller: `RedisTransport`. Guarantee: while both clocks run evenly the estimate is never below the truth, so that a delay
is never early by the server's clock, and above it by no more than the fastest reply took. No I/O; locks for a moment.

A reply proves two bounds. The server read its clock after the request left: the lead is at most its time minus the
time of asking. It had read it before the reply came: the lead is at least its time minus the time of hearing.
"""

from __future__ import annotations

import threading
import time


def wall_ms() -> int:
    """This process's wall time, ms since the epoch, rounded down."""
    return int(time.time() * 1000)


class ServerClock:
    """The lead in ms: the least upper bound heard so far, unless a lower bound shows that a clock was set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lead_ms: int | None = None

    def __repr__(self) -> str:
        return f"<ServerClock lead={self._lead_ms} ms>"

    @property
    def lead_ms(self) -> int | None:
        """Add it to this process's wall time; None before the first reply."""
        return self._lead_ms

    def heard(self, server_ms: int, *, asked_ms: int, heard_ms: int) -> None:
        """A reply says `server_ms`; it was asked for at `asked_ms` and came at `heard_ms` of our wall clock. All three
        are rounded down."""
        at_most, at_least = server_ms + 1 - asked_ms, server_ms - heard_ms - 1
        with self._lock:
            known = self._lead_ms
            self._lead_ms = at_most if known is None or known < at_least else min(known, at_most)
