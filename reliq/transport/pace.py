"""How many messages a worker process takes ahead of its threads: many while its tasks are quick, none while they are
slow.

Callers: the consumers (how much room is there?), `signals.py` (how long a run took). Taken ahead, a message costs its
share of one fetch instead of a whole one; but nobody else can run it. So no more is taken ahead than the threads get
through within `HORIZON_S`. Numbers only; no lock: runs that end at once may miss one another's share of the mean.
"""

from __future__ import annotations

#: How long a message that is taken ahead may have to wait for a thread, by what runs took lately. Seconds.
HORIZON_S = 0.005
#: The most that is taken ahead, however quick the tasks are.
MOST_AHEAD = 256
#: The share of the latest run in the mean: a slow one among hundreds of quick ones is not forgotten at once.
WEIGHT = 0.02
#: How many runs must have ended for their mean to be believed: the first few may be the quick ones.
ENOUGH = 30


class Pace:
    """The pace of one worker process with `threads` threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        #: What a run takes, seconds; None before the first has ended.
        self._mean_s: float | None = None
        self._stalled = False
        #: How many have ended. Not exact: only whether it moves is asked for.
        self.ended = 0

    def __repr__(self) -> str:
        return f"<Pace threads={self.threads} mean={self._mean_s} window={self.window}>"

    def ran(self, seconds: float) -> None:
        """A run has taken so long."""
        self.ended += 1
        mean = self._mean_s
        weight = max(WEIGHT, 1 / self.ended)
        self._mean_s = seconds if mean is None else mean + weight * (seconds - mean)

    def stalls(self, seconds: float) -> None:
        """All threads have been busy for so long, and none has ended: runs are no quicker than that."""
        self._stalled = True
        self._mean_s = max(seconds, self._mean_s or 0.0)

    @property
    def window(self) -> int:
        """How many messages the process may hold, those that run included. As long as little is known, twice the
        threads, as Dramatiq does."""
        mean = self._mean_s
        if mean is None or not (self.ended >= ENOUGH or self._stalled):
            return 2 * self.threads
        if mean * MOST_AHEAD <= self.threads * HORIZON_S:
            return self.threads + MOST_AHEAD
        return self.threads + int(self.threads * HORIZON_S / mean)

    @property
    def refill_at(self) -> int:
        """At how many in hand more are fetched: as soon as a thread is free, or half of what was taken ahead is."""
        ahead = self.window - self.threads
        return self.threads + ahead // 2 if ahead else self.threads - 1
