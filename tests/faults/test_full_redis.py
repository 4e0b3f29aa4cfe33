"""A full Redis (`maxmemory`, `noeviction`) refuses what needs memory, and must still be drained.

Plain Dramatiq's every command begins with a write that a full server refuses: what is stored can never be fetched.
"""

from collections.abc import Callable

import pytest
from dramatiq.errors import ConnectionClosed

from reliq.testing import RedisServer
from tests.faults.stage import SLACK, Stage, extra_runs, stranded


def fill_up(server: RedisServer) -> None:
    """From now on the server holds more than it may."""
    client = server.client()
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "500kb")
    assert is_full(server)


def is_full(server: RedisServer) -> bool:
    memory = server.client().info("memory")
    return bool(memory["used_memory"] > memory["maxmemory"] > 0)


def test_a_full_redis_is_drained_retries_and_letters_included(stage: Stage, figure: Callable[[object], None]) -> None:
    """faults.md row 20: 2,000 messages are stored, then Redis is full: a worker that starts now runs them all, with
    their retries and letters; a send is refused, naming the reason, and works again once there is room.

    sent 2000 done 1980 dead 20 lost 0 stuck 0, extra runs 0, full all the time.
    """
    keys = stage.send("work", range(1780))
    keys += stage.send("flaky", range(1780, 1980))
    doomed = stage.send("doomed", range(1980, 2000))
    fill_up(stage.server)
    with pytest.raises(ConnectionClosed, match="not stored, Redis is full"):
        stage.send("work", [5000])
    stage.workers()
    stage.finish(keys, 20 * SLACK)
    counted = stage.count(keys + doomed)
    assert is_full(stage.server)
    stage.server.client().config_set("maxmemory", "0")
    after = stage.finish(stage.send("work", [6000]), 5 * SLACK)
    figure(f"{counted} retried {counted.retried}; one more after: {after}")
    assert (counted.done, counted.dead, counted.lost, stranded(counted)) == (1980, 20, 0, 0)
    assert (counted.retried, counted.twice, after.done) == (200, 0, 1)
    assert not stage.log.keys("start") & {5000}


@pytest.mark.full
def test_plain_dramatiq_cannot_drain_a_full_redis(stage: Stage, figure: Callable[[object], None]) -> None:
    """The same on plain Dramatiq: 0 of 2,000 can be fetched."""
    stage.mode = "plain"
    keys = stage.send("work", range(2000))
    fill_up(stage.server)
    stage.workers()
    counted = stage.give_up(keys, quiet=10, timeout=30)
    figure(counted)
    assert (counted.done, counted.waiting) == (0, 2000)


def test_workers_stay_alive_on_a_full_redis(stage: Stage, figure: Callable[[object], None]) -> None:
    """Full for longer than two leases: both workers keep their lease, neither takes the other's work.

    sent 200 done 200 lost 0 stuck 0, extra runs 0, full for 3 leases.
    """
    lease_s = 2
    settings = {"APP_LEASE": str(lease_s * 1000), "dramatiq_queue_prefetch": "4"}  # so that each takes its share
    groups = [stage.workers(env=settings) for _ in range(2)]
    keys = stage.send("work", range(8), seconds=3 * lease_s)
    keys += stage.send("work", range(8, 200))
    assert stage.log.wait_for("start", 8)
    assert len({entry.pid for entry in stage.log.entries()}) == 2
    fill_up(stage.server)
    assert stage.log.wait_for("end", 8, 3 * lease_s * SLACK)
    counted = stage.finish(keys, 10 * SLACK)
    assert is_full(stage.server)
    workers = stage.census().workers
    figure(f"{counted} extra runs {extra_runs(counted)}, {len(workers)} workers alive")
    assert (counted.done, counted.lost, stranded(counted)) == (200, 0, 0)
    assert (extra_runs(counted), len(workers)) == (0, 2)
    assert not any("lease of this worker had run out" in group.log() for group in groups)
