"""Redis cannot be reached for a while, or is killed and comes back, while workers are busy.

Plain Dramatiq loses retries that fall into the outage and strands what its threads held; reliq's workers wait, and go
on.
"""

import time
from collections.abc import Callable

import pytest

from reliq.testing import WorkerGroup
from tests.faults.stage import SLACK, Stage, extra_runs, stranded

#: s after the end of an outage within which all must be done.
TARGET_S = 20
FULL = pytest.mark.full


def break_off(stage: Stage, *, after: float, seconds: float) -> float:
    """Cut and refuse for `seconds`, `after` seconds from now; returns when it ended (monotonic)."""
    time.sleep(after)  # sleep-ok: workers are to be in the middle of it
    stage.proxy.refuse()
    time.sleep(seconds)  # sleep-ok: the outage's length
    stage.proxy.heal()
    return time.monotonic()


def took_since(stage: Stage, mono: float) -> float:
    """Seconds from `mono` to the last thing that a task wrote."""
    last = max(entry.at for entry in stage.log.entries())
    return max(0.0, last - (time.time() - (time.monotonic() - mono)))


def same_process(group: WorkerGroup, pid: int) -> bool:
    return group.alive and group.worker_pids == [pid]


@pytest.mark.parametrize(
    ("number", "trial"), [(600, 0), *(pytest.param(2400, trial, marks=FULL) for trial in range(1, 5))]
)
def test_failing_tasks_survive_an_outage_of_3_s(
    stage: Stage, figure: Callable[[object], None], number: int, trial: int
) -> None:
    """faults.md row 3: 2400 flaky(2), the line cut and refused for 3 s: the same process settles all of them later.

    sent 2400 done 2400 lost 0 stuck 0, 4 of 4 trials; done 17 s after the outage, 23-41 s on two cores under a
    load of 10 (where the same work takes 31 s without any outage).
    """
    group = stage.workers()
    pid = group.worker_pid
    keys = stage.send("flaky", range(number), times=2)
    over = break_off(stage, after=1, seconds=3)
    counted = stage.finish(keys, TARGET_S * SLACK)
    took = took_since(stage, over)
    figure(f"{counted} extra runs {extra_runs(counted)}, done {took:.1f} s after the outage")
    assert (counted.done, counted.lost, counted.stuck) == (number, 0, 0)
    assert same_process(group, pid)
    assert took <= TARGET_S * SLACK


@FULL
def test_plain_dramatiq_loses_or_strands_failing_tasks(stage: Stage, figure: Callable[[object], None]) -> None:
    """The same on plain Dramatiq (26 lost and 802 stuck in 8 trials; 8 of 8 lose)."""
    stage.mode = "plain"
    stage.workers()
    keys = stage.send("flaky", range(2400), times=2)
    break_off(stage, after=1, seconds=3)
    counted = stage.give_up(keys, quiet=15, timeout=120)
    figure(counted)
    assert counted.lost + stranded(counted) > 0


def test_tasks_that_do_not_fail_survive_an_outage_of_3_s(stage: Stage, figure: Callable[[object], None]) -> None:
    """faults.md row 4: their acks wait for Redis, and what was prefetched runs meanwhile, once.

    sent 300 done 300 lost 0 stuck 0, extra runs 0, done 1 s after the outage.
    """
    group = stage.workers()
    pid = group.worker_pid
    keys = stage.send("work", range(300), seconds=0.04)
    over = break_off(stage, after=1, seconds=3)
    counted = stage.finish(keys, TARGET_S * SLACK)
    took = took_since(stage, over)
    figure(f"{counted} extra runs {extra_runs(counted)}, done {took:.1f} s after the outage")
    assert (counted.done, counted.lost, counted.stuck, counted.twice) == (300, 0, 0, 0)
    assert same_process(group, pid)
    assert took <= TARGET_S * SLACK


@pytest.mark.parametrize(
    ("away", "lease"), [(3.0, 1_500), pytest.param(10.0, 10_000, marks=FULL), pytest.param(20.0, 10_000, marks=FULL)]
)
def test_workers_go_on_when_redis_was_dead_for_longer_than_their_lease(
    stage: Stage, figure: Callable[[object], None], away: float, lease: int
) -> None:
    """Guarantee 3: Redis killed (-9) and back after 10 s with its log: the same two processes go on, 0 stranded 20 s
    later. Their leases have run out meanwhile, yet neither takes the other for dead: nothing runs twice.

    sent 400 done 400 lost 0 stuck 0, extra runs 0, done 9 s after the restart.
    """
    stage.server.client().config_set("appendfsync", "always")
    groups = [stage.workers(direct=True, env={"APP_LEASE": str(lease)}) for _ in range(2)]
    pids = [group.worker_pid for group in groups]
    keys = stage.send("work", range(4), seconds=away + 2)
    keys += stage.send("flaky", range(4, 200), seconds=0.04)
    keys += stage.send("work", range(200, 400), seconds=0.04)
    assert stage.log.wait_for("end", 50)
    stage.server.kill()
    time.sleep(away)  # sleep-ok: the outage's length
    stage.server.start()
    over = time.monotonic()
    counted = stage.finish(keys, TARGET_S * SLACK)
    took = took_since(stage, over)
    figure(f"{counted} extra runs {extra_runs(counted)}, done {took:.1f} s after {away:g} s without Redis")
    assert (counted.done, counted.lost, stranded(counted)) == (400, 0, 0)
    assert all(same_process(group, pid) for group, pid in zip(groups, pids, strict=True))
    assert took <= TARGET_S * SLACK
    assert (extra_runs(counted), counted.twice) == (0, 0)


def test_a_worker_cut_off_for_longer_than_its_lease_overwrites_nothing(
    stage: Stage, figure: Callable[[object], None]
) -> None:
    """The line of one worker of two is dead for three leases while both run failing tasks: the other takes over what it
    held. When it is back, what it settles is no longer its own: no second retry, no lost message; and it goes on.

    sent 100 done 100 lost 0 stuck 0; 8 extra runs: what the cut-off worker had in its hands, once each.
    """
    settings = {"APP_LEASE": "2000"}
    cut_off = stage.workers(env=settings)
    pid = cut_off.worker_pid
    stage.workers(direct=True, env=settings)
    keys = stage.send("flaky", range(100), seconds=0.3)
    assert stage.log.wait_for(lambda entries: {e.pid for e in entries if e.event == "fail"} >= {pid})
    stage.proxy.blackhole()
    time.sleep(6)  # sleep-ok: three leases
    stage.proxy.heal()
    counted = stage.finish(keys, TARGET_S * SLACK)
    again = stage.finish(stage.send("work", range(200, 240), seconds=0.1), TARGET_S)
    starts = stage.log.count("start")
    figure(f"{counted} extra runs {extra_runs(counted)}; {again.done} of 40 more by both")
    assert (counted.done, counted.lost, stranded(counted)) == (100, 0, 0)
    assert extra_runs(counted) <= 8
    assert max(starts[key] for key in keys) <= 3
    assert pid in {entry.pid for entry in stage.log.entries() if entry.key in range(200, 240)}
