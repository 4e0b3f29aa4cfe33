"""The moment between a retry's confirm and its ack on RabbitMQ, and acks that come late: what runs twice, and what not.

RabbitMQ cannot store a retry and remove its original in one step. Whoever dies between the two leaves both; reliq knows
the copies that this makes, plain Dramatiq runs each of them. Tasks fail by their message's own count of retries.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reliq.testing import WorkerGroup, eventually, leash
from tests.faults.rabbit_census import connected
from tests.faults.rabbit_stage import STILL_S, RabbitStage
from tests.faults.stage import SLACK, Mode, extra_runs, message, stranded

TASKS = "tests.faults.apps.s_tasks"
FORKS = "tests.faults.apps.s_forks"
ROOT = Path(__file__).parents[2]
#: `basic.ack` as it goes over the line: 13 bytes of class 60, method 80.
ACK = b"\x00\x00\x00\x0d\x00\x3c\x00\x50"
#: Short, so that all copies of a message meet soon; longer than a worker takes to be there again would not be.
SOON = {"APP_MIN_BACKOFF": "100", "APP_MAX_BACKOFF": "200"}
#: A retry on its way to the broker: its key and which attempt it stores. Not one that comes off plain Dramatiq's `.DQ`.
_RETRY = re.compile(rb'"queue_name":"default(?:\.DQ)?".*?"args":\[(\d+)\].*?"retries":(\d+)', re.DOTALL)


class FirstRetries:
    """Matches the first publish of each retry of each task."""

    def __init__(self) -> None:
        self.seen: set[tuple[bytes, bytes]] = set()

    def __call__(self, piece: bytes) -> bool:
        """Whether the piece holds one that was not seen before."""
        found = {match.groups() for match in _RETRY.finditer(piece)} - self.seen
        self.seen |= found
        return bool(found)


def at_the_ack(stage: RabbitStage, strike: Callable[[], object] | None = None) -> FirstRetries:
    """Once per attempt, lose the ack that follows a retry's confirm, and its connection; `strike` before it is lost."""

    def arm() -> None:
        if strike is not None:
            stage.proxy.on_request(ACK, strike)
        stage.proxy.drop_requests(ACK)

    first = FirstRetries()
    stage.proxy.on_request(first, arm, every=True)
    return first


@contextmanager
def forks(stage: RabbitStage) -> Iterator[None]:
    """Workers one after the other, through the proxy."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **stage.environment(), **SOON}
    process = subprocess.Popen([sys.executable, "-m", FORKS], env=env, start_new_session=True)
    leash.hold(process.pid)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        leash.release(process.pid)


def runs_of(stage: RabbitStage, event: str = "start") -> dict[object, int]:
    """Key -> how many runs began (or ended)."""
    return dict(Counter(entry.key for entry in stage.log.entries() if entry.event == event))


@pytest.mark.parametrize("mode", [pytest.param("plain", marks=pytest.mark.full), "reliq"])
def test_a_worker_killed_between_a_retrys_confirm_and_its_ack_makes_no_second_completion(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], mode: Mode
) -> None:
    """faults.md row 14: 5 flaky(2), the worker killed -9 once per attempt when its ack is about to leave, the next one
    begins: at most 5 runs and 1 completion each. Plain: up to 8 runs and 3 completions."""
    stage = rabbit_stage
    stage.mode, stage.confirm = mode, True
    first = at_the_ack(stage, lambda: os.kill(stage.log.entries()[-1].pid, signal.SIGKILL))
    keys = []
    with forks(stage):
        for key in range(5):
            # Each run takes longer than acks are held back, so that the next ack after a retry is its original's.
            keys += stage.send("flaky", [key], times=2, seconds=0.05)
            assert stage.log.wait_for("end", key + 1, 20 * SLACK)
            stage.wait_idle(20 * SLACK)
    counted = stage.count(keys)
    runs, ends = runs_of(stage), runs_of(stage, "end")
    figure(f"{counted}; kills {len(first.seen)}, runs {sorted(runs.values())}, completions {sorted(ends.values())}")
    assert (counted.done, counted.lost, stranded(counted), counted.dead) == (5, 0, 0, 0)
    assert len(first.seen) == 10
    if mode == "plain":
        assert max(ends.values()) > 1
        return
    assert max(runs.values()) <= 5
    assert set(ends.values()) == {1}


@pytest.mark.parametrize("mode", [pytest.param("plain", marks=pytest.mark.full), "reliq"])
def test_a_line_cut_between_a_retrys_confirm_and_its_ack_makes_no_second_completion(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], mode: Mode
) -> None:
    """The same with a worker that lives and loses its connection instead: the original comes again and is known by the
    process that has stored its retry: 3 runs and 1 completion each."""
    stage = rabbit_stage
    stage.mode, stage.confirm = mode, True
    first = at_the_ack(stage)
    stage.workers(TASKS, env={**SOON, "dramatiq_restart_delay": "100"}, threads=1)
    keys = []
    for key in range(5):
        keys += stage.send("flaky", [key], times=2, seconds=0.05)
        assert stage.log.wait_for("end", key + 1, 20 * SLACK)
        stage.wait_idle(20 * SLACK)
    counted = stage.count(keys)
    runs, ends = runs_of(stage), runs_of(stage, "end")
    figure(f"{counted}; cuts {len(first.seen)}, runs {sorted(runs.values())}, completions {sorted(ends.values())}")
    assert (counted.done, counted.lost, stranded(counted), counted.dead) == (5, 0, 0, 0)
    assert len(first.seen) == 10
    if mode == "plain":
        assert max(ends.values()) > 1
        return
    assert set(runs.values()) == {3}
    assert set(ends.values()) == {1}


def test_lines_cut_at_acks_while_others_run_lose_nothing(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """The same with 20 tasks at once on 4 threads, so that a cut meets acks of retries, of copies and of tasks that are
    done: nothing is lost or left; a task that was done may be done twice if the cut met its ack."""
    stage = rabbit_stage
    first = at_the_ack(stage)
    stage.workers(TASKS, env=SOON)
    counted = stage.finish(stage.send("flaky", range(20), times=2), 20 * SLACK)
    runs, ends = runs_of(stage), runs_of(stage, "end")
    figure(f"{counted}; cuts {len(first.seen)}, runs {sum(runs.values())}, completions {sum(ends.values())}")
    assert (counted.done, counted.lost, stranded(counted), counted.dead) == (20, 0, 0, 0)
    assert max(ends.values()) <= 2


@pytest.mark.parametrize("mode", [pytest.param("plain", marks=pytest.mark.full), "reliq"])
def test_a_lost_confirm_of_a_retry_makes_no_second_completion(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], mode: Mode
) -> None:
    """10 flaky(1); the confirm of each retry is lost with the connection it was to come on, so that the retry is sent
    again: 1 completion each. Plain: each retry is stored twice, 2 completions."""
    stage = rabbit_stage
    stage.mode, stage.confirm = mode, True
    first = FirstRetries()
    lost = stage.proxy.drop_replies(first, every=True)
    stage.workers(TASKS, env={**SOON, "dramatiq_restart_delay": "100"}, threads=1)
    counted = stage.finish(stage.send("flaky", range(10)), 20 * SLACK)
    runs, ends = runs_of(stage), runs_of(stage, "end")
    figure(f"{counted}; confirms lost {lost.fired}, runs {sum(runs.values())}, completions {sum(ends.values())}")
    assert (counted.done, counted.lost, stranded(counted), counted.dead, lost.fired) == (10, 0, 0, 0, 10)
    assert (set(ends.values()) == {1}) == (mode == "reliq")


def test_two_sends_of_one_id_both_run(rabbit_stage: RabbitStage, figure: Callable[[object], None]) -> None:
    """10 messages, each sent twice under its one id, fail once: 40 runs, 2 completions each, none taken for a copy."""
    stage = rabbit_stage
    stage.workers(TASKS, env=SOON)
    twins = [message("flaky", key) for key in range(10)]
    for twin in [*twins, *twins]:
        stage.producer.enqueue(twin)
    assert stage.log.wait_for("end", 20, 10 * SLACK, distinct=False)
    stage.wait_idle(10 * SLACK)
    ends = runs_of(stage, "end")
    counted = stage.count(list(range(10)))
    figure(f"ids 10 sent 20 done {sum(ends.values())} lost {20 - sum(ends.values())} runs {counted.runs}")
    assert set(ends.values()) == {2}
    assert counted.runs == 40


# -- D3: an ack that comes late --------------------------------------------------------------------------------------


def close_the_lines_while_1_runs(stage: RabbitStage, gates: list[Path]) -> WorkerGroup:
    """Prefetch 4, 1 thread, tasks 0 to 3, of which 1 waits for the first gate and the others after it for the second;
    the server closes all connections while 1 runs. Returns the worker once it has all again."""
    stage.send("work", [0])
    env = {"dramatiq_queue_prefetch": "4", "dramatiq_restart_delay": "100"}
    group = stage.workers(direct=True, env=env, threads=1)
    assert stage.log.wait_for("end", 1, 10 * SLACK)
    # One after the other: before Dramatiq 2.2 a worker runs what it has prefetched in no certain order.
    stage.send("hold", [1], gate=str(gates[0]))
    assert stage.log.wait_for("start", 2, 10 * SLACK)
    for key in (2, 3):
        stage.send("hold", [key], gate=str(gates[1]))
    lost = {"reliq": "Queue 'default': the consumer is opened again", "plain": "(default)] [INFO] Restarting consumer"}

    def closed() -> bool:
        stage.server.close_connections(stage.vhost)  # those of the last moments may not be known to it yet
        return lost[stage.mode] in group.log()

    eventually(closed, 10 * SLACK, 0.2, "the server to close the worker's lines")
    time.sleep(STILL_S)  # sleep-ok: until the broker has taken back what was on them
    eventually(lambda: prefetched(stage), 10 * SLACK, what="the worker to have all again")
    time.sleep(0.2)  # sleep-ok: from its socket into its hands
    return group


def prefetched(stage: RabbitStage) -> bool:
    """Whether a consumer of `default` has all that is in it."""
    with connected(stage.server, stage.vhost) as connection:
        queue = connection.channel().queue_declare("default", passive=True).method
    return bool(queue.message_count == 0 and queue.consumer_count == 1)


def test_a_late_ack_ends_no_other_message(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], tmp_path: Path
) -> None:
    """D3: 1 ends after its connection was closed and all was delivered again: every message ends once and is
    acked, and the worker goes on."""
    stage, gates = rabbit_stage, [tmp_path / "first", tmp_path / "second"]
    close_the_lines_while_1_runs(stage, gates)
    gates[1].touch()
    gates[0].touch()
    keys = [*range(4), *stage.send("work", [4])]
    counted = stage.finish(keys, 10 * SLACK)
    figure(f"{counted}; extra runs {extra_runs(counted)}")
    assert (counted.done, counted.lost, stranded(counted)) == (5, 0, 0)
    assert extra_runs(counted) == 0


@pytest.mark.parametrize("mode", [pytest.param("plain", marks=pytest.mark.full), "reliq"])
def test_a_late_ack_loses_no_other_message(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], tmp_path: Path, mode: Mode
) -> None:
    """D3: the same, and the worker is killed -9 after 1 has ended, while 2 runs; the next worker runs the rest. Plain:
    1's late ack has hit 2, which is gone."""
    stage, gates = rabbit_stage, [tmp_path / "first", tmp_path / "second"]
    stage.mode = mode
    group = close_the_lines_while_1_runs(stage, gates)
    gates[0].touch()
    assert stage.log.wait_for("start", 3, 10 * SLACK)
    assert stage.log.wait_for("end", 2, 10 * SLACK)
    time.sleep(STILL_S)  # sleep-ok: until the late ack, or what comes instead, has had its effect
    group.kill()
    gates[1].touch()
    stage.workers(direct=True)
    if mode == "plain":
        counted = stage.give_up(list(range(4)), quiet=2, timeout=30)
        figure(str(counted))
        assert (counted.lost, counted.which("lost")) == (1, {2})
        return
    counted = stage.finish(list(range(4)), 10 * SLACK)
    figure(str(counted))
    assert (counted.done, counted.lost, stranded(counted)) == (4, 0, 0)


# -- row 5: an outage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [pytest.param("plain", marks=pytest.mark.full), "reliq"])
def test_an_outage_of_3_s_swallows_no_retry(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], mode: Mode
) -> None:
    """faults.md row 5: the proxy cuts and refuses for 3 s while 300 flaky(2) run: 300 done, 0 lost, 0 swallowed.
    Plain: 14 extra runs, 3 retries swallowed."""
    stage = rabbit_stage
    stage.mode = mode
    group = stage.workers()
    keys = stage.send("flaky", range(300), times=2)
    assert stage.log.wait_for("fail", 60, 10 * SLACK)
    stage.proxy.refuse()
    time.sleep(3)  # sleep-ok: the outage
    stage.proxy.heal()
    counted = stage.finish(keys, 20 * SLACK) if mode == "reliq" else stage.give_up(keys, quiet=10, timeout=60)
    swallowed = group.log().count("Unexpected failure in after_process_message")
    figure(f"{counted}; swallowed {swallowed}, extra runs {extra_runs(counted)}")
    if mode == "plain":
        assert swallowed + counted.lost > 0
        return
    assert (counted.done, counted.lost, stranded(counted), counted.dead, swallowed) == (300, 0, 0, 0, 0)
