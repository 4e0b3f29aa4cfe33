"""Delays wait in Redis, run when they are due by the server's clock, and outlive whoever was to run them.

Real servers and stock worker processes; lateness is a task's start minus the due time that Redis held for it, on the
one clock of this machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from dramatiq import Worker

from reliq.testing import RedisServer, RunLog
from reliq.testing.plugin import MakeWorkers
from reliq.transport.redis.keeper import Keeper
from tests.faults.b_rig import APPS, Rig, percentile, shared_rig
from tests.faults.stage import SLACK

rig = pytest.fixture(shared_rig)

HOUR_MS = 3_600_000


@pytest.fixture
def durable(
    redis_binary: str, run_log: RunLog, worker_group: MakeWorkers, figure: Callable[[object], None]
) -> Iterator[Rig]:
    """An application on a Redis of its own that has written to disk what it has accepted, so that a kill shows
    reliq's durability and not this disk's."""
    with RedisServer(binary=redis_binary, config={"appendfsync": "always"}) as server:
        rig = Rig(server, "dramatiq", run_log, worker_group, figure)
        yield rig
        rig.close()


def due_times(rig: Rig) -> dict[object, float]:
    """Key -> when Redis holds it to be due, Unix s."""
    return {place.key: (place.due_ms or 0) / 1000 for place in rig.census().of("delayed")}


def lateness(rig: Rig, due: dict[object, float]) -> list[float]:
    """Seconds between due time and first start, of all keys that have started."""
    started = rig.started()
    return [started[key] - at for key, at in due.items() if key in started]


# -- many ----------------------------------------------------------------------------------------------------------


def test_ten_thousand_far_delays_hold_up_no_near_one(rig: Rig) -> None:
    """10,000 messages are due in an hour, half of them sent before a worker was there, then 200 in 2 s: 200 start
    within 1 s of their due time, none early, and all 10,000 lie in Redis, none unacked in the worker."""
    rig.send_many("work", (f"far-{number}" for number in range(5_000)), delay=HOUR_MS)
    rig.workers()
    rig.wait_for(lambda: rig.census().count("delayed") == 5_000, "the worker to take over the stock delays")
    rig.send_many("work", (f"far-{number}" for number in range(5_000, 10_000)), delay=HOUR_MS)
    rig.send_many("work", range(200), delay=2_000)
    due = {key: at for key, at in due_times(rig).items() if isinstance(key, int)}
    rig.wait_done(200)
    late = lateness(rig, due)
    rig.wait_for(lambda: not rig.census().count("unacked"), "the acks")
    census = rig.census()
    rig.count(
        f"near {len(late)} of {len(due)} in time, worst {max(late):.2f} s late, earliest {min(late):.3f}; {census}"
    )
    assert len(due) == len(late) == 200
    assert min(late) >= 0
    assert max(late) < 1.0 * SLACK
    assert (census.count("delayed"), census.count()) == (10_000, 10_000)
    assert not census.orphans


@pytest.mark.full
def test_plain_dramatiq_runs_no_near_delay_behind_ten_thousand_far_ones(rig: Rig) -> None:
    """The same on plain Dramatiq: its worker takes 4,000 far delays into memory and looks no further: 0 of 200 near
    ones have run 10 s after they were due."""
    rig.send_many("work", (f"far-{number}" for number in range(10_000)), delay=HOUR_MS)
    rig.send_many("work", range(200), delay=2_000)
    rig.workers("plain")
    rig.pause(12)
    rig.count(f"near {len(rig.log.keys('end'))} of 200 run; {rig.census()}")
    assert len(rig.log.keys("end")) == 0
    assert rig.census().count("unacked") == 4_000


def test_promotion_moves_thousands_of_due_delays_a_second(rig: Rig) -> None:
    """6,000 delays that are due at once are moved by one worker's keeper; the rate is measured: at least a third of
    3,000 a second on a busy machine."""
    rig.client.set(f"{rig.namespace}:reliq:serving:default", "somebody")
    rig.send_many("work", range(6_000), delay=1)
    keeper = Keeper(rig.transport, Worker(rig.broker()))
    began = time.monotonic()
    while keeper.promote(["default"]) == 0.0:
        pass
    rate = 6_000 / (time.monotonic() - began)
    rig.count(f"promoted {rig.census().count('ready')} of 6000, {rate:.0f}/s")
    assert rig.census().count("ready") == 6_000
    assert rate > 1_000


# -- exact ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "longest_ms"), [pytest.param(60, 2_000), pytest.param(300, 5_000, marks=pytest.mark.full)]
)
def test_a_delay_is_never_early_and_hardly_late(rig: Rig, number: int, longest_ms: int) -> None:
    """Delays from 0.3 s up on an idle worker: all run, none early; the p99 of their lateness is measured."""
    rig.workers()
    rig.wait_for(lambda: rig.client.exists(f"{rig.namespace}:reliq:serving:default"), "the worker to serve")
    for key in range(number):
        rig.send("work", key, delay=300 + key * (longest_ms - 300) // (number - 1))
    due = due_times(rig)
    rig.wait_done(number)
    late = lateness(rig, due)
    rig.count(
        f"delays {len(late)}: p50 {percentile(late, 0.5) * 1000:.0f} p99 {percentile(late, 0.99) * 1000:.0f} ms late"
    )
    assert len(due) >= number * 0.8  # the shortest may have run before Redis was asked
    assert min(late) >= 0
    assert percentile(late, 0.99) < 0.25 * SLACK


# -- through crashes -----------------------------------------------------------------------------------------------


def test_delays_and_retries_outlive_their_worker_and_their_redis(durable: Rig) -> None:
    """20 delays and 10 retries wait 3 s; the worker is killed -9, then Redis, and both are started again: 30 done, 0
    lost, 0 early, none twice."""
    first = durable.workers()
    durable.wait_for(lambda: durable.client.exists("dramatiq:reliq:serving:default"), "the worker to serve")
    for key in range(10):
        durable.send("flaky", f"retry-{key}", min_backoff=3_000, max_backoff=3_000, jitter="none")
    for key in range(20):
        durable.send("work", f"delay-{key}", delay=3_000)
    durable.wait_for(lambda: durable.census().count("delayed") == 30, "all to wait")
    due = due_times(durable)
    first.kill()
    durable.server.restart()
    assert due_times(durable) == due
    durable.workers()
    ready = time.time()
    durable.wait_done(30)
    durable.wait_settled()
    starts = [entry for entry in durable.log.entries() if entry.event == "start"]
    last = {entry.key: entry.fields["real"] for entry in starts}
    late = [last[key] - max(at, ready) for key, at in due.items()]
    early = [key for key, at in due.items() if last[key] < at]
    durable.count(tally := durable.tally())
    assert (tally.done, tally.lost, tally.stuck, tally.dead, tally.twice) == (30, 0, 0, 0, 0)
    assert tally.runs == 40
    assert early == []
    assert max(late) < 1.0 * SLACK


# -- on wrong clocks -----------------------------------------------------------------------------------------------


def test_delays_sent_on_a_wrong_clock_run_when_the_server_says(rig: Rig) -> None:
    """One sender's clock is 20 s ahead, another's 20 s behind; 20 delays of 1.5 s each, half of each sent before a
    worker was there: 40 done, none early by the server's clock, none more than a second after it could run."""
    sent = _send_skewed(rig, 20, "ahead-early") | _send_skewed(rig, -20, "behind-early")
    rig.workers()
    rig.wait_for(lambda: rig.client.exists(f"{rig.namespace}:reliq:serving:default"), "the worker to serve")
    ready = time.time()
    sent |= _send_skewed(rig, 20, "ahead") | _send_skewed(rig, -20, "behind")
    rig.wait_done(40)
    started = rig.started()
    early = [key for key, at in sent.items() if started[key] < at + 1.5]
    late = [started[key] - max(at + 1.5, ready) for key, at in sent.items()]
    rig.count(f"sent {len(sent)} done {len(started)} early {len(early)}, at most {max(late):.3f} s late")
    assert early == []
    assert max(late) < 1.0 * SLACK


def test_workers_on_wrong_clocks_promote_and_retry_when_the_server_says(rig: Rig) -> None:
    """One worker's clock is 20 s ahead, another's 20 s behind; 20 delays and 20 retries of 1.5 s: 40 done, none early,
    none late by more than a second, and neither worker takes the other for dead."""
    groups = [rig.workers(env={"APP_SKEW": skew}, delivery={"lease": 4_000}) for skew in ("20", "-20")]
    rig.wait_for(lambda: len(rig.census().workers) == 2, "both to be known")
    for key in range(20):
        rig.send("flaky", f"retry-{key}", min_backoff=1_500, max_backoff=1_500, jitter="none")
        rig.send("work", f"delay-{key}", delay=1_500)
    rig.wait_for(lambda: rig.census().count("delayed") == 40, "all to wait")
    due = due_times(rig)
    rig.wait_done(40)
    rig.wait_settled()
    real = {(entry.event, entry.key): entry.fields["real"] for entry in rig.log.entries() if "real" in entry.fields}
    late = [real["start", key] - at for key, at in due.items()]
    waited = [real["start", f"retry-{key}"] - real["fail", f"retry-{key}"] for key in range(20)]
    rig.count(f"{rig.tally()}; {min(late):.3f} to {max(late):.3f} s late, retries after {min(waited):.3f} s or more")
    tally = rig.tally()
    assert (tally.done, tally.twice, tally.runs) == (40, 0, 60)
    assert min(late) >= 0
    assert min(waited) >= 1.5
    assert max(late) < 1.0 * SLACK
    assert not any("are back in their queues" in group.log() for group in groups)


def _send_skewed(rig: Rig, skew_s: int, name: str) -> dict[object, float]:
    """Send 10 delays of 1.5 s in a process whose clock is wrong; key -> when the machine's clock said it was sent."""
    keys = [f"{name}-{number}" for number in range(10)]
    rig.sent.extend(keys)
    env = {**rig.environment("reliq"), "APP_SKEW": str(skew_s)}
    command = [sys.executable, str(APPS / "b_sender.py"), "1500", *keys]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=30).stdout
    return {key: float(at) for key, at in (line.split() for line in told.splitlines())}
