"""Promises to those who kill -9: between which two steps of the protocol it may strike, nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import reliq
from reliq.testing import RunLog, eventually
from tests.transport.promises.needs import needs
from tests.transport.rig import Maker, Stage
from tests.transport.victim import LEASE_MS, declare

Make = Callable[..., Stage]

ROOT = Path(__file__).parents[3]
HOWS = ("ok", "flaky", "never", "sends")
SENT = {key: HOWS[key % 4] for key in range(16)}
#: Tasks that end, their callbacks, and what they send.
DONE = {key for key, how in SENT.items() if how != "never"}
EXPECTED = DONE | {key + 1_000 for key in DONE} | {key + 2_000 for key, how in SENT.items() if how == "sends"}
DEAD = sorted(key for key, how in SENT.items() if how == "never")
#: What a worker with two threads may hold: its prefetch, and acks that were not sent yet.
HELD = 8
#: Killed around its first ack it owes that of every task that has ended, as many as the moment held.
HELD_AROUND_AN_ACK = len(EXPECTED)


class Kills:
    """A worker that dies at a step, and one that takes over."""

    #: (step, nth time, "before" or "after" the broker does it)
    kill_points: tuple[tuple[str, int, str], ...] = ()
    #: More of them, for `make test-full`.
    more_kill_points: tuple[tuple[str, int, str], ...] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test per point that the class names."""
        if "kill_point" in metafunc.fixturenames:
            more = [pytest.param(point, marks=pytest.mark.full) for point in self.more_kill_points]
            ids = ["-".join(map(str, point)) for point in (*self.kill_points, *self.more_kill_points)]
            metafunc.parametrize("kill_point", [*self.kill_points, *more], ids=ids)

    @needs("outlives_kill")
    def test_a_worker_killed_at_a_step_loses_nothing(
        self, make: Make, maker: Maker, run_log: RunLog, kill_point: tuple[str, int, str]
    ) -> None:
        """16 sent: 12 done, each called back, 4 sent on; 4 letters, once each; lost 0; run again: what was held."""
        stage = make(reliq.Delivery(lease=LEASE_MS))
        work = declare(stage.broker, run_log)
        for key, how in SENT.items():
            work.send(key, how)
        # The point is reached early in its life, or when it stops: it stops after a few tasks, all but one of these.
        stop_after = 3 if kill_point[0] in ("requeue", "reap") else len(EXPECTED)
        about = {**maker.victim(stage.broker), "log": str(run_log.path), "point": kill_point, "stop_after": stop_after}
        victim = subprocess.run(
            [sys.executable, "-m", "tests.transport.victim", json.dumps(about)],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert victim.returncode == -9, f"it did not come to {kill_point}: {victim.stderr[-2_000:]}"
        stage.worker()
        eventually(lambda: run_log.keys("end") >= EXPECTED, 15, what="what the dead worker held")
        eventually(lambda: stage.counts()[:3] == (0, 0, 0), 15, what="nothing ready, unacked or delayed")

        ends = Counter(entry.key for entry in run_log.entries() if entry.event == "end")
        assert set(ends) == EXPECTED
        assert sorted(letter["args"][0] for letter in stage.letters()) == DEAD
        twice = sum(count - 1 for count in ends.values())
        assert twice <= (HELD_AROUND_AN_ACK if kill_point[0] == "ack" else HELD), f"{twice} ran again"
