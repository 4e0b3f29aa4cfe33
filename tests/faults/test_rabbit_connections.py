"""Workers on RabbitMQ whose connections are refused, cut or gone deaf: a failed task is acked only when its retry is
stored, so nothing is lost, and the same process goes on afterwards.

Plain Dramatiq acks whatever became of the retry.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from dramatiq.errors import ConnectionClosed

from reliq.testing import WorkerGroup
from tests.faults.rabbit_stage import START_S, RabbitStage
from tests.faults.stage import SLACK, extra_runs, message, stranded

#: s after the end of an outage within which all must be done.
TARGET_S = 20
SEND_TIMEOUT_S = 3.0
N = 40


def same_process(group: WorkerGroup, pid: int) -> bool:
    return group.alive and group.worker_pids == [pid]


# -- no connection can be opened -------------------------------------------------------------------------------------


def test_no_retry_is_lost_when_no_connection_can_be_opened(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """faults.md row 9: the vhost's connection limit is reached for 6 s once the consumers are up: 40 flaky(1) are done.
    Plain Dramatiq's threads open a connection each to publish, in vain.

    sent 40 done 40 lost 0 stuck 0, extra runs 0. plain: 40 of 40 lost.
    """
    stage, plain = rabbit_stage, rabbit_stage.twin()
    for each in (stage, plain):
        each.workers()
        each.send("work", [1_000])
        assert each.log.wait_for("end", timeout=START_S)  # the connections of sender and consumers are open
        stage.server.limit_connections(each.vhost, 1)
        each.send("flaky", range(N))
    time.sleep(6)  # sleep-ok: the length of the fault
    for each in (stage, plain):
        stage.server.limit_connections(each.vhost, None)
    counted = stage.finish(list(range(N)), TARGET_S * SLACK)
    counted_plain = plain.give_up(list(range(N)), quiet=2, timeout=TARGET_S)
    figure(f"{counted} extra runs {extra_runs(counted)}; plain: {counted_plain}")
    assert (counted.done, counted.lost, stranded(counted), counted.twice, counted.fails) == (N, 0, 0, 0, N)
    assert counted_plain.lost >= N // 2


def test_workers_cut_off_while_no_connection_can_be_opened_go_on_afterwards(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """The same with every connection of the worker cut, so that it has none for 4 s: all are done by the same process.
    A process that wants to send meanwhile is told why it cannot, in time.

    sent 40 done 40 lost 0 stuck 0, done 3 s after the limit was lifted.
    """
    stage = rabbit_stage
    group = stage.workers()
    pid = group.worker_pid
    keys = stage.send("flaky", range(N), seconds=0.1)
    assert stage.log.wait_for("fail", 4, START_S)
    stage.server.limit_connections(stage.vhost, 1)
    stage.proxy.cut()
    began = time.monotonic()
    with pytest.raises(ConnectionClosed, match="not stored.*connection limit"):
        stage.broker(send_timeout=2_000).enqueue(message("work", 1_000))
    took_s = time.monotonic() - began
    time.sleep(max(0.0, 4 - took_s))  # sleep-ok: the length of the fault
    stage.server.limit_connections(stage.vhost, None)
    over = time.monotonic()
    counted = stage.finish(keys, TARGET_S * SLACK)
    took = stage.took_since(over)
    figure(
        f"{counted} extra runs {extra_runs(counted)}, done {took:.1f} s afterwards; a send was told in {took_s:.1f} s"
    )
    assert (counted.done, counted.lost, stranded(counted)) == (N, 0, 0)
    assert same_process(group, pid)
    assert took <= TARGET_S * SLACK
    assert took_s <= SEND_TIMEOUT_S


# -- the line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "seconds"),
    [("stalled", 3), *(pytest.param(how, 12, marks=pytest.mark.full) for how in ("stalled", "blackholed"))],
)
def test_a_worker_whose_line_goes_dead_recovers(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], how: str, seconds: float
) -> None:
    """Nothing comes through either way, on the connections to publish and to consume: after missed heartbeats the
    server gives them up, after some more (pika: the interval and 5 s) the worker does; when the line is back, so is the
    same worker, and all are done.

    sent 40 done 40 lost 0 stuck 0, extra runs 0 to 1, done 2 s after the line is back.
    """
    stage = rabbit_stage
    group = stage.workers(delivery={"lease": 1_000})
    pid = group.worker_pid
    keys = stage.send("flaky", range(N), seconds=0.1)
    assert stage.log.wait_for("fail", 4, START_S)
    (stage.proxy.stall if how == "stalled" else stage.proxy.blackhole)()
    time.sleep(seconds)  # sleep-ok: the length of the fault
    stage.proxy.heal()
    over = time.monotonic()
    counted = stage.finish(keys, TARGET_S * SLACK)
    took = stage.took_since(over)
    figure(f"{how} for {seconds} s: {counted} extra runs {extra_runs(counted)}, done {took:.1f} s afterwards")
    assert (counted.done, counted.lost, stranded(counted)) == (N, 0, 0)
    assert same_process(group, pid)
    assert took <= TARGET_S * SLACK


def test_tasks_that_do_not_fail_survive_an_outage_of_3_s(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """faults.md row 4: 300 done by the same process; what ran when the line was cut goes on.

    sent 300 done 300 lost 0 stuck 0; extra runs 0 (allowed: the 8 that the worker held), done 3-4 s after the outage.
    """
    stage = rabbit_stage
    group = stage.workers()
    pid = group.worker_pid
    keys = stage.send("work", range(300), seconds=0.04)
    assert stage.log.wait_for("end", 50, START_S)
    stage.proxy.refuse()
    time.sleep(3)  # sleep-ok: the outage's length
    stage.proxy.heal()
    over = time.monotonic()
    counted = stage.finish(keys, TARGET_S * SLACK)
    took = stage.took_since(over)
    figure(f"{counted} extra runs {extra_runs(counted)}, done {took:.1f} s after the outage")
    assert (counted.done, counted.lost, stranded(counted)) == (300, 0, 0)
    assert extra_runs(counted) <= 8
    assert same_process(group, pid)
    assert took <= TARGET_S * SLACK
