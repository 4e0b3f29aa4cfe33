"""Workers on RabbitMQ that are killed (-9) or told to stop: what they held runs elsewhere at once, and nothing is lost.

RabbitMQ gives back what a closed connection held, so plain Dramatiq does as well here; reliq must not do worse.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from math import inf
from pathlib import Path

import pytest

from reliq.testing import WorkerGroup, eventually
from reliq.testing.runlog import Key
from tests.faults.rabbit_stage import START_S, RabbitStage
from tests.faults.stage import SLACK, extra_runs, stranded

DEPLOY = "tests.faults.apps.r_deploy"

#: s after the kill within which all that the dead worker held must have run.
TARGET_S = 5


# -- kill -9 ----------------------------------------------------------------------------------------------------------


def test_an_idle_survivor_runs_what_a_killed_worker_held(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], tmp_path: Path
) -> None:
    """faults.md row 23: kill -9 of the only busy worker: all 8 run on the survivor, once.

    sent 8 done 8 lost 0 stuck 0; 4 extra runs (those that were cut off); done 0.1 s after the kill.
    """
    stage = rabbit_stage
    gate = tmp_path / "gate"
    keys = stage.send("hold", range(8), gate=str(gate))
    victim = stage.workers()
    assert stage.log.wait_for("start", 4, START_S)
    eventually(lambda: stage.unacked() == 8, START_S, what="a whole prefetch in the victim's hands")
    stage.workers()
    victim.kill()
    died_at = time.time()
    gate.touch()
    counted = stage.finish(keys, TARGET_S * SLACK)
    took = max(entry.at for entry in stage.log.entries()) - died_at
    figure(f"{counted} extra runs {extra_runs(counted)}, done {took:.1f} s after the kill")
    assert (counted.done, counted.lost, stranded(counted), counted.twice, extra_runs(counted)) == (8, 0, 0, 0, 4)
    assert took <= TARGET_S * SLACK


# -- a deploy ---------------------------------------------------------------------------------------------------------


def test_a_deploy_spends_no_attempt_and_buries_nothing(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """faults.md row 29: SIGTERM while 4 tasks of 3 s with `max_retries=0, notify_shutdown=True` run and 40 wait, 4 of
    them prefetched: 0 letters, what has not ended is in its queue as it came, at once; on the next worker the 40 run
    once, the 4 start a second time and complete.

    sent 44 done 44 dead 0 lost 0 stuck 0 twice 0; 4 extra runs.
    """
    stage = rabbit_stage
    keys = stage.send("interruptible", range(4)) + stage.send("interruptible", range(4, 44), seconds=0.05)
    old = stage.workers(args=(DEPLOY,))
    assert stage.log.wait_for("start", 4, START_S)
    eventually(lambda: stage.unacked() == 8, START_S, what="a whole prefetch in the worker's hands")
    old.terminate()
    old.wait(10 * SLACK)
    left = stage.last_census()
    interrupted = stage.log.keys("interrupted")
    assert interrupted == set(range(4))
    # A thread that is interrupted before Dramatiq has told it to stop may still run one of the prefetched.
    ended = len(stage.log.keys("end"))
    assert ended <= 4
    assert left.count("ready") == len(left.places) == 44 - ended
    assert [json.loads(place.body)["options"] for place in left] == [{}] * len(left.places)

    stage.workers(args=(DEPLOY,))
    counted = stage.finish(keys, 10 * SLACK)
    figure(f"{counted} extra runs {extra_runs(counted)}, {len(interrupted)} interrupted, no attempt spent")
    assert (counted.done, counted.dead, counted.lost, stranded(counted), counted.twice) == (44, 0, 0, 0, 0)
    starts = stage.log.count("start")
    assert {key: starts[key] for key in keys} == {key: 2 if key in interrupted else 1 for key in keys}


def test_a_deploy_lets_what_runs_end_and_gives_back_the_rest(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """faults.md row 29: the same with tasks that are not told of the shutdown, on two workers of which one is stopped:
    it ends when its 4 tasks of 2 s have; what it had prefetched runs on the other, and everything once.

    sent 12 done 12 lost 0 stuck 0, extra runs 0, stopped after 2-3 s.
    """
    stage = rabbit_stage
    keys = stage.send("work", range(12), seconds=2)
    groups = [stage.workers() for _ in range(2)]  # the first has taken 8
    assert stage.log.wait_for("start", 8, START_S)
    told_at = time.monotonic()
    groups[0].terminate()
    code = groups[0].wait(10 * SLACK)
    took = time.monotonic() - told_at
    counted = stage.finish(keys, 20 * SLACK)
    figure(f"{counted} extra runs {extra_runs(counted)}, stopped after {took:.1f} s with code {code}")
    assert (counted.done, counted.dead, counted.lost, stranded(counted), counted.twice) == (12, 0, 0, 0, 0)
    assert (extra_runs(counted), code) == (0, 0)


@pytest.mark.full
def test_plain_dramatiq_buries_what_a_deploy_interrupts(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """The same as the first on plain Dramatiq: 4 dead letters."""
    stage = rabbit_stage
    stage.mode = "plain"
    keys = stage.send("interruptible", range(8))
    old = stage.workers(args=(DEPLOY,))
    assert stage.log.wait_for("start", 4, START_S)
    old.terminate()
    old.wait(10 * SLACK)
    counted = stage.count(keys)
    figure(counted)
    assert counted.dead == 4


# -- a soak -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """One kill at `at` (Unix seconds), and the keys that ran in it."""

    at: float
    cut: frozenset[Key]


def kill(stage: RabbitStage, group: WorkerGroup) -> Kill:
    pid = group.worker_pid
    group.kill()
    at = time.time()
    last = {entry.key: entry.event for entry in stage.log.entries() if entry.pid == pid}
    return Kill(at, frozenset(key for key, event in last.items() if event == "start"))


def times_back(stage: RabbitStage, one: Kill) -> list[float]:
    """For each key that ran in a killed worker: seconds until it ran elsewhere."""
    entries = [entry for entry in stage.log.entries() if entry.event == "start" and entry.at > one.at]
    return [min((entry.at for entry in entries if entry.key == key), default=inf) - one.at for key in one.cut]


@pytest.mark.parametrize(
    ("number", "kills", "every_s"), [(200, 2, 2), pytest.param(800, 10, 5, marks=pytest.mark.full)]
)
def test_kills_in_a_row_lose_nothing(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], number: int, kills: int, every_s: float
) -> None:
    """faults.md row 36: two workers, 800 tasks of 200 ms of which 30 % fail once; every 5 s one is killed (-9) and
    started anew, ten times. Only what the kills cut off runs again, at once.

    sent 800 done 800 lost 0 stuck 0 twice 0; 20 extra runs (2.5 %), 20 cut off by a kill; back after 1.1 s at most.
    """
    stage = rabbit_stage
    groups = [stage.workers() for _ in range(2)]
    flaky = number * 3 // 10
    keys = stage.send("flaky", range(flaky), seconds=0.2) + stage.send("work", range(flaky, number), seconds=0.2)
    done: list[Kill] = []
    for _, group in zip(range(kills), cycle(groups)):
        time.sleep(every_s)  # sleep-ok: the interval of the kills
        done.append(kill(stage, group))
        group.start()
        group.wait_ready(30)
    counted = stage.finish(keys, 60 * SLACK)
    slowest = max(seconds for one in done for seconds in times_back(stage, one))
    cut = sum(len(one.cut) for one in done)
    figure(
        f"{counted} runs {counted.runs}; {kills} kills, extra runs {extra_runs(counted)}, {cut} of them cut off, back "
        f"after {slowest:.1f} s at most"
    )
    assert (counted.done, counted.lost, stranded(counted)) == (number, 0, 0)
    assert counted.twice <= 0.03 * number
    assert extra_runs(counted) <= cut + counted.twice  # nothing that merely waited in a dead worker ran twice
    assert slowest <= TARGET_S * SLACK
