"""A deploy (SIGTERM) is not a failure: what it interrupts goes back to its queue, no attempt spent.

On plain Dramatiq `Shutdown` is an exception like any other: with `max_retries=0` the message is a dead letter.
"""

import json
import time
from collections.abc import Callable

import pytest

from reliq.testing import eventually
from tests.faults.stage import SLACK, Stage, extra_runs, stranded

DEPLOY = "tests.faults.apps.a_deploy"


def deploy_into_running_tasks(stage: Stage) -> list[int]:
    """Four tasks of 3 s run and 40 wait, four of them prefetched, when their worker is told to stop. Returns the keys
    once it has ended."""
    keys = stage.send("interruptible", range(4)) + stage.send("interruptible", range(4, 44), seconds=0.05)
    old = stage.workers(args=(DEPLOY,))
    assert stage.log.wait_for("start", 4)
    eventually(lambda: stage.census().count("unacked") == 8, what="a whole prefetch in the worker's hands")
    old.terminate()
    old.wait(10 * SLACK)
    return keys


def test_a_deploy_spends_no_attempt_and_buries_nothing(stage: Stage, figure: Callable[[object], None]) -> None:
    """faults.md row 29: SIGTERM while 4 tasks with `max_retries=0, notify_shutdown=True` run and 40 wait: 0 letters,
    what has not ended is in its queue as it came, at once; on the next worker the 40 run once, the 4 start a second
    time and complete.

    sent 44 done 44 dead 0 lost 0 stuck 0 twice 0; 4 extra runs.
    """
    keys = deploy_into_running_tasks(stage)
    left = stage.census()
    interrupted = stage.log.keys("interrupted")
    assert interrupted == set(range(4))
    # A thread that is interrupted before Dramatiq has told it to stop may still run one of the prefetched.
    ended = len(stage.log.keys("end"))
    assert ended <= 4
    assert left.count("ready") == len(left.places) == 44 - ended
    assert all("reliq" not in options_of(place.body) and "retries" not in options_of(place.body) for place in left)

    stage.workers(args=(DEPLOY,))
    counted = stage.finish(keys, 10 * SLACK)
    figure(f"{counted} extra runs {extra_runs(counted)}, {len(interrupted)} interrupted, no attempt spent")
    assert (counted.done, counted.dead, counted.lost, stranded(counted), counted.twice) == (44, 0, 0, 0, 0)
    starts = stage.log.count("start")
    assert {key: starts[key] for key in keys} == {key: 2 if key in interrupted else 1 for key in keys}


@pytest.mark.full
def test_plain_dramatiq_buries_what_a_deploy_interrupts(stage: Stage, figure: Callable[[object], None]) -> None:
    """The same on plain Dramatiq: 4 dead letters."""
    stage.mode = "plain"
    keys = deploy_into_running_tasks(stage)
    counted = stage.count(keys)
    figure(counted)
    assert counted.dead == 4


def options_of(body: bytes) -> dict[str, object]:
    options = json.loads(body)["options"]
    assert isinstance(options, dict)
    return options


def test_a_deploy_while_redis_is_away_ends_in_time_and_loses_nothing(
    stage: Stage, figure: Callable[[object], None]
) -> None:
    """SIGTERM in the middle of an outage: the worker ends although nothing can be settled; what it held runs on the
    next worker once its lease is over.

    sent 40 done 40 lost 0 stuck 0, stopped after 5 s.
    """
    settings = {"APP_LEASE": "2000"}
    keys = stage.send("flaky", range(40), seconds=0.3)
    old = stage.workers(env=settings)
    assert stage.log.wait_for("fail", 4)
    stage.proxy.refuse()
    told_at = time.monotonic()
    old.terminate()
    code = old.wait(10 * SLACK)
    took = time.monotonic() - told_at
    stage.proxy.heal()
    stage.workers(env=settings)
    counted = stage.finish(keys, 15 * SLACK)
    figure(f"{counted} extra runs {extra_runs(counted)}, stopped after {took:.1f} s with code {code}")
    assert (counted.done, counted.lost, stranded(counted)) == (40, 0, 0)
    assert code == 0
    assert extra_runs(counted) <= 8
