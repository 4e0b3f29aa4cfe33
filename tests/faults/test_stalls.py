"""Requests whose reply never comes, a server that stands still, delayed messages over an outage.

On plain Dramatiq what such a fetch took, and what waits in a worker's memory, stays in the name of a live worker for
ever: nobody gives it back.
"""

import re
import threading
import time
from collections.abc import Callable

import pytest

from tests.faults.stage import SLACK, Mode, Stage, asks, calls, extra_runs, stranded

PLAIN = pytest.param("plain", marks=pytest.mark.full)


@pytest.mark.parametrize(
    ("mode", "delay_s"),
    [("reliq", 5), *(pytest.param(mode, 15, marks=pytest.mark.full) for mode in ("reliq", "plain"))],
)
def test_delayed_tasks_outlive_an_outage(
    stage: Stage, figure: Callable[[object], None], mode: Mode, delay_s: float
) -> None:
    """faults.md row 6: 50 tasks delayed 15 s, an outage of 2 s meanwhile: all run, none early.

    reliq: sent 50 done 50 stuck 0, 0.00 to 0.20 s late. plain: 50 stuck.
    """
    stage.mode = mode
    stage.workers()
    sent_at = {}
    for key in range(50):
        sent_at[key] = time.time()
        stage.send("work", [key], delay=delay_s * 1000)
    keys = list(sent_at)
    time.sleep(delay_s / 3)  # sleep-ok: workers have fetched what they fetch
    stage.proxy.refuse()
    time.sleep(2)  # sleep-ok: the outage's length
    stage.proxy.heal()
    if mode == "plain":
        counted = stage.give_up(keys, quiet=delay_s + 10, timeout=90)
        figure(counted)
        assert stranded(counted) == 50
        return
    counted = stage.finish(keys, (delay_s + 5) * SLACK)
    late = [entry.at - sent_at[entry.key] - delay_s for entry in stage.log.entries() if entry.event == "start"]
    figure(f"{counted}, {min(late):.2f} to {max(late):.2f} s late")
    assert (counted.done, counted.lost, stranded(counted), extra_runs(counted)) == (50, 0, 0, 0)
    assert min(late) >= 0
    assert max(late) <= 1 * SLACK


@pytest.mark.parametrize("mode", ["reliq", PLAIN])
def test_messages_whose_fetch_reply_was_lost_are_found_again(
    stage: Stage, figure: Callable[[object], None], mode: Mode
) -> None:
    """faults.md row 7: Redis has given out messages (up to 8) and the reply is lost: the worker finds them again.

    reliq: sent 100 done 100 stuck 0, extra runs 0. plain: 8 stuck.
    """
    stage.mode = mode
    fetch = calls("fetch", b"$7\r\ndefault\r\n") if mode == "reliq" else asks(b"fetch", b"$7\r\ndefault\r\n")
    keys = stage.send("work", range(100), seconds=0.02)
    # The answer to reliq's first may be that the script is not known yet; the producer has taught plain Dramatiq's.
    rule = stage.proxy.drop_replies(fetch, nth=2 if mode == "reliq" else 1)
    group = stage.workers()
    counted = stage.finish(keys, 10 * SLACK) if mode == "reliq" else stage.give_up(keys, quiet=15, timeout=60)
    figure(f"{counted} extra runs {extra_runs(counted)}, {rule.fired} fetch reply lost")
    assert rule.fired == 1
    if mode == "plain":
        assert stranded(counted) == 8
        return
    assert re.search(r"\d fetched messages whose reply was lost are found again", group.log())
    assert (counted.done, counted.lost, stranded(counted), extra_runs(counted)) == (100, 0, 0, 0)


@pytest.mark.parametrize("mode", ["reliq", PLAIN])
@pytest.mark.parametrize("how", ["DEBUG SLEEP 7", "SIGSTOP 8"])
def test_a_server_that_stands_still_strands_nothing(
    stage: Stage, figure: Callable[[object], None], how: str, mode: Mode
) -> None:
    """faults.md row 8: clients give up waiting, and the server then executes what they had asked for, unheard.

    reliq: sent 100 done 100 stuck 0 lost 0, both ways. plain: 5 and 2 stuck, 1 lost each (20 and 4 in other runs).
    """
    stage.mode = mode
    group = stage.workers()
    pid = group.worker_pid
    keys = stage.send("flaky", range(100), seconds=0.05)
    assert stage.log.wait_for("fail", 20)
    if how == "SIGSTOP 8":
        stage.server.pause()
        time.sleep(8)  # sleep-ok: the stall's length
        stage.server.resume()
    else:
        stage.server.stall(7)
    counted = stage.finish(keys, 20 * SLACK) if mode == "reliq" else stage.give_up(keys, quiet=20, timeout=90)
    figure(f"{how}: {counted} extra runs {extra_runs(counted)}")
    if mode == "plain":
        assert counted.lost + stranded(counted) > 0
        return
    assert (counted.done, counted.lost, stranded(counted)) == (100, 0, 0)
    assert (group.alive, group.worker_pids) == (True, [pid])


def test_a_freeze_longer_than_the_lease_takes_no_live_worker_for_dead(
    stage: Stage, figure: Callable[[object], None]
) -> None:
    """The server freezes for two leases at the very moment when a worker asks it to return what dead workers held, and
    answers that when every lease has run out: the request is too old to be obeyed.

    sent 40 done 40 lost 0 stuck 0, extra runs 0.
    """
    lease_s = 2
    settings = {"APP_LEASE": str(lease_s * 1000), "dramatiq_queue_prefetch": "4"}  # so that each takes its share
    groups = [stage.workers(env=settings) for _ in range(2)]
    keys = stage.send("work", range(8), seconds=4 * lease_s)
    keys += stage.send("work", range(8, 40))
    assert stage.log.wait_for("start", 8)
    assert len({entry.pid for entry in stage.log.entries()}) == 2
    frozen = threading.Event()
    stage.proxy.on_request(calls("reap"), lambda: (stage.server.pause(), frozen.set()))
    assert frozen.wait(2 * lease_s)
    time.sleep(2 * lease_s)  # sleep-ok: the freeze's length
    stage.server.resume()
    counted = stage.finish(keys, 6 * lease_s * SLACK)
    figure(f"{counted} extra runs {extra_runs(counted)}")
    assert (counted.done, counted.lost, stranded(counted)) == (40, 0, 0)
    assert (extra_runs(counted), counted.twice) == (0, 0)
    assert all(group.alive for group in groups)
