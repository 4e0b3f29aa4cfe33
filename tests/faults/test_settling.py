"""Between the exception and the ack: the request that settles a failure, or its reply, is lost, or the worker dies.

On plain Dramatiq the retry is a send from a hook whose failure is swallowed, and the message is acked all the same.
"""

import threading
import time
from collections.abc import Callable

import pytest

from tests.faults.stage import SLACK, Mode, Stage, asks, calls, extra_runs, stranded

N = 200
KILLER = "tests.faults.apps.a_killer"
LATE = "tests.faults.apps.a_late"


def test_no_retry_is_lost_when_every_second_settle_request_is_lost(
    stage: Stage, figure: Callable[[object], None]
) -> None:
    """faults.md row 1: a failed message whose settle did not reach Redis is settled later, on the same worker.

    sent 200 done 200 lost 0 stuck 0, 0 swallowed: each task runs exactly twice.
    """
    rule = stage.proxy.drop_requests(calls("settle"), nth=2, every=True)
    stage.workers()
    keys = stage.send("flaky", range(N))
    counted = stage.finish(keys, 20 * SLACK)
    figure(f"{counted} runs {counted.runs}, {rule.fired} settle requests lost")
    assert rule.fired >= N // 2
    assert (counted.done, counted.lost, counted.stuck, counted.twice) == (N, 0, 0, 0)
    assert (counted.fails, extra_runs(counted)) == (N, 0)


@pytest.mark.full
def test_plain_dramatiq_loses_every_second_retry(stage: Stage, figure: Callable[[object], None]) -> None:
    """The same fault on plain Dramatiq: half of the retries are gone (100 of 200)."""
    stage.mode = "plain"
    rule = stage.proxy.drop_requests(asks(b"enqueue", b".DQ"), nth=2, every=True)
    stage.workers()
    keys = stage.send("flaky", range(N))
    counted = stage.give_up(keys, quiet=8, timeout=60)
    figure(f"{counted}, {rule.fired} requests lost")
    assert counted.lost >= N // 4


def test_a_settle_whose_reply_is_lost_is_not_repeated(stage: Stage, figure: Callable[[object], None]) -> None:
    """faults.md row 2: Redis has settled, the worker cannot know; asking again stores no second retry.

    sent 200 done 200 lost 0, extra runs 0 (allowed: one per lost reply).
    """
    rule = stage.proxy.drop_replies(calls("settle"), nth=2, every=True)
    stage.workers()
    keys = stage.send("flaky", range(N))
    counted = stage.finish(keys, 20 * SLACK)
    figure(f"{counted} extra runs {extra_runs(counted)}, {rule.fired} replies lost")
    assert rule.fired >= N // 2
    assert (counted.done, counted.lost, counted.stuck) == (N, 0, 0)
    assert extra_runs(counted) <= rule.fired


def run_killed(stage: Stage, keys: list[int], timeout: float) -> int:
    """Run the tasks on one worker of one thread, started again after each of its deaths; returns the deaths."""
    settings = {"APP_LEASE": "1000", "APP_HEARTBEAT_TIMEOUT": "1000", "APP_MAINTENANCE": "1000000"}
    group = stage.workers(threads=1, args=(KILLER,), env=settings)
    deaths = 0
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and stage.done() < len(keys):
        if not group.alive:
            deaths += 1
            group.start()
        time.sleep(0.05)  # sleep-ok: between two looks at the group
    return deaths


@pytest.mark.parametrize("number", [2, pytest.param(5, marks=pytest.mark.full)])
def test_a_worker_killed_after_the_retry_is_stored_runs_nothing_twice(
    stage: Stage, figure: Callable[[object], None], number: int
) -> None:
    """faults.md row 14: retry and removal are one step, so a kill -9 between the two cannot be: each flaky(2) has 3
    runs and 1 completion, though its worker dies after each of its two failures.

    sent 5 done 5 lost 0 stuck 0 twice 0, 15 runs, 10 kills.
    """
    keys = stage.send("flaky", range(number), times=2)
    deaths = run_killed(stage, keys, 60)
    counted = stage.finish(keys, 10)
    figure(f"{counted} runs {counted.runs}, {deaths} kills")
    assert deaths == 2 * number
    assert (counted.done, counted.lost, counted.stuck, counted.twice) == (number, 0, 0, 0)
    assert [len(stage.starts(key)) for key in keys] == [3] * number


@pytest.mark.full
def test_plain_dramatiq_runs_copies_when_killed_after_the_retry(stage: Stage, figure: Callable[[object], None]) -> None:
    """The same on plain Dramatiq: the original comes back beside its retry (8 runs instead of 3, 3 completions)."""
    stage.mode = "plain"
    keys = stage.send("flaky", range(5), times=2)
    deaths = run_killed(stage, keys, 90)
    counted = stage.give_up(keys, quiet=8, timeout=30)
    figure(f"{counted} runs {counted.runs}, {deaths} kills")
    assert extra_runs(counted) > 0


@pytest.mark.parametrize("mode", ["reliq", pytest.param("plain", marks=pytest.mark.full)])
def test_a_time_limit_that_strikes_during_the_settle_ends_no_thread(
    stage: Stage, figure: Callable[[object], None], mode: Mode
) -> None:
    """dramatiq.md D2: the limit (400 ms) falls into the settle (0.25 s + 0.3 s); the thread lives, the retry too.

    reliq: sent 40 done 40 lost 0 stuck 0, 4 threads alive. plain: all 4 threads die, 40 stuck.
    """
    stage.mode = mode
    slow = calls("settle") if mode == "reliq" else asks(b"enqueue", b".DQ")
    delay = threading.Event()
    rule = stage.proxy.on_request(slow, lambda: delay.wait(0.3), every=True)
    stage.workers(LATE)
    keys = stage.send("late", range(40))
    counted = stage.finish(keys, 20 * SLACK) if mode == "reliq" else stage.give_up(keys, quiet=6, timeout=60)
    if mode == "plain":
        figure(counted)
        assert counted.lost + stranded(counted) > 0
        return
    rule.remove()
    stage.send("roll_call", [100])
    assert stage.log.wait_for("threads")
    alive = next(entry.fields["alive"] for entry in stage.log.entries() if entry.event == "threads")
    figure(f"{counted}, {alive} threads alive, {rule.fired} slow settles")
    assert rule.fired >= 40
    assert (counted.done, counted.lost, counted.stuck, counted.twice, alive) == (40, 0, 0, 0, 4)
