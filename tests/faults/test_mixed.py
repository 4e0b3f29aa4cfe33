"""Stock workers and reliq workers on one Redis: each serves what the other has sent, kept, or left behind.

A fleet is in this state during every rollout of reliq, and while it is taken out again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reliq.testing import Place
from tests.faults.b_rig import Rig, shared_rig
from tests.faults.stage import SLACK

rig = pytest.fixture(shared_rig)

HOUR_MS = 3_600_000


def etas(places: list[Place]) -> dict[Any, float]:
    """Key -> when its body says that it is due, Unix s."""
    return {place.key: json.loads(place.body)["options"]["eta"] / 1000 for place in places if place.args}


def early(rig: Rig, due: dict[Any, float]) -> list[Any]:
    """Keys that started before they were due."""
    started = rig.started()
    return [key for key, at in due.items() if started[key] < at]


# -- one sends, the other runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sender", "runner"), [("reliq", "plain"), ("plain", "reliq")])
def test_delays_of_one_kind_are_run_by_the_other(rig: Rig, sender: str, runner: str) -> None:
    """50 delays of 0.5 to 2 s and 10 tasks without, sent with one kind while only workers of the other are there: 60
    done, 0 early, 0 lost, none twice."""
    rig.workers(runner)
    for key in range(50):
        rig.send("work", key, mode=sender, delay=500 + key * 30)
    census = rig.census()
    due = etas(census.of("stock_delayed", "delayed", "unacked"))
    for key in range(50, 60):
        rig.send("work", key, mode=sender)
    rig.wait_done(60)
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert len(due) >= 45
    assert early(rig, due) == []
    assert (tally.done, tally.lost, tally.stuck, tally.twice, tally.runs) == (60, 0, 0, 0, 60)


def test_a_fleet_of_both_kinds_counts_each_retry_once(rig: Rig) -> None:
    """100 tasks that fail twice, one stock and one reliq worker on the queue: 100 done, 300 runs, each task's attempts
    numbered 0, 1, 2 whoever ran them; 0 lost, 0 dead."""
    for key in range(100):
        rig.send("flaky", key, 2, 0.03, mode=("plain", "reliq")[key % 2])
    groups = [rig.workers(mode, ready=False).start() for mode in ("plain", "reliq")]
    for group in groups:
        group.wait_ready()
    rig.wait_done(100)
    rig.wait_settled()
    starts = [entry for entry in rig.log.entries() if entry.event == "start"]
    numbers = {key: [entry.fields["retries"] for entry in starts if entry.key == key] for key in range(100)}
    pids = {key: {entry.pid for entry in starts if entry.key == key} for key in range(100)}
    crossed = sum(1 for ran_by in pids.values() if len(ran_by) == 2)
    rig.count(f"{rig.tally()}; {crossed} tasks were run by both kinds")
    tally = rig.tally()
    assert (tally.done, tally.runs, tally.lost, tally.dead, tally.twice) == (100, 300, 0, 0, 0)
    assert all(attempts == [0, 1, 2] for attempts in numbers.values())
    assert crossed > 0
    assert {entry.pid for entry in starts} == {group.worker_pid for group in groups}


# -- what lay there before -------------------------------------------------------------------------------------------


def test_a_broker_full_of_stock_messages_is_served_after_install(rig: Rig) -> None:
    """Left behind by plain Dramatiq: 500 ready, 100 delayed 3 s, 1,000 delayed an hour, 10 dead, and garbage in each
    list: 600 done, 0 early, 1,000 wait in Redis, 2 letters for the garbage, the 11 in XQ are there to be read."""
    for key in range(10):
        rig.send("fails_once", f"dead-{key}", mode="plain")
    before = rig.workers("plain")
    rig.wait_for(lambda: rig.census().count("stock_dead") == 10, "the stock worker's dead")
    before.kill()
    rig.client.zadd(f"{rig.namespace}:default.XQ", {"garbage": rig.census().now_ms})
    rig.client.hset(f"{rig.namespace}:default.XQ.msgs", "garbage", b"\xff{")
    rig.put(b"\xff{ready", "garbage-ready")
    rig.put(b"\xff{delayed", "garbage-delayed", queue="default.DQ")
    for key in range(1_000):
        rig.send("work", f"far-{key}", mode="plain", delay=HOUR_MS)
    for key in range(500):
        rig.send("work", f"ready-{key}", mode="plain")
    for key in range(100):
        rig.send("work", f"near-{key}", mode="plain", delay=3_000)
    waiting = rig.census().of("stock_delayed")
    due = {key: at for key, at in etas(waiting).items() if str(key).startswith("near")}
    rig.workers()
    rig.wait_done(600)
    rig.wait_for(lambda: not rig.census().count("unacked", "stock_delayed"), "all to be taken over")
    census, letters = rig.census(), rig.letters()
    rig.count(f"{rig.tally()}; {census}")
    assert early(rig, due) == []
    assert len(due) == 100
    assert (census.count("delayed"), census.count("dead"), census.count("stock_dead")) == (1_000, 2, 11)
    assert (census.count("ready", "ghost"), census.orphans) == (0, ())
    assert rig.tally().lost == rig.tally().stuck == rig.tally().twice == 0
    assert len(letters) == 13
    assert [letter["reason"] for letter in letters].count("malformed") == 2
    assert {letter.body for letter in rig.raw_letters() if letter.message is None} == {
        b"\xff{",
        b"\xff{ready",
        b"\xff{delayed",
    }
    stock = [letter for letter in letters if letter["actor"] == "fails_once"]
    assert len(stock) == 10
    assert all(letter["reason"] is None and letter["args"] and letter["died_at"] for letter in stock)


# -- what dead workers leave -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dead", "left"), [("reliq", "plain"), ("plain", "reliq")])
def test_a_dead_worker_of_one_kind_is_recovered_by_the_other(rig: Rig, tmp_path: Path, dead: str, left: str) -> None:
    """A worker of one kind is killed -9 with 4 tasks running and 4 prefetched; only one of the other kind is left: 8
    done by it, 0 stuck, none twice. (The stock worker is told to look after others with every command.)"""
    gate = tmp_path / "gate"
    stock = {"maintenance_chance": 1_000_000, "heartbeat_timeout": 1_500}
    for key in range(8):
        rig.send("gated", key, str(gate))
    victim = rig.workers(dead, broker=stock, delivery={"lease": 2_000})
    assert rig.log.wait_for("start", 4)
    rig.wait_for(lambda: rig.census().count("unacked") == 8, "the prefetch")
    victim.kill()
    gate.touch()
    survivor = rig.workers(left, broker=stock, delivery={"lease": 2_000})
    rig.wait_done(8)
    rig.wait_settled()
    rig.count(tally := rig.tally(live=lambda _: False))
    assert (tally.done, tally.stuck, tally.lost, tally.twice) == (8, 0, 0, 0)
    assert {entry.pid for entry in rig.log.entries() if entry.event == "end"} == {survivor.worker_pid}


def test_a_frozen_workers_late_settles_write_nothing(rig: Rig, tmp_path: Path) -> None:
    """A worker with 2 tasks that will succeed and 2 that will fail is frozen for longer than its lease; two others run
    them to their end. When it thaws, its acks, retries and letters come too late: 2 done, 2 letters, nothing stored
    beside them, and it says of no letter that is not there."""
    gate = tmp_path / "gate"
    frozen = rig.workers(delivery={"lease": 2_000})
    for key in ("good-1", "good-2"):
        rig.send("gated", key, str(gate))
    for key in ("bad-1", "bad-2"):
        rig.send("doomed", key, "", str(gate))
    assert rig.log.wait_for("start", 4)
    frozen.freeze()
    others = [rig.workers(delivery={"lease": 2_000}) for _ in range(2)]
    gate.touch()
    rig.wait_done(2)
    rig.wait_for(lambda: rig.census().count() == rig.census().count("dead") == 2, "the others to end all four")
    letters = rig.letters()
    runs = len([entry for entry in rig.log.entries() if entry.event == "start"])
    frozen.thaw()
    assert rig.log.wait_for(lambda entries: sum(entry.event in ("end", "fail") for entry in entries) == 2 + 6 + 4)
    rig.send("work", "later")
    assert rig.log.wait_for(lambda entries: any(entry.key == "later" and entry.event == "end" for entry in entries))
    rig.wait_settled()
    rig.pause(0.5)
    late = [entry for entry in rig.log.entries() if entry.event in ("end", "fail") and entry.pid == frozen.worker_pid]
    rig.count(f"{rig.tally()}; runs {runs}, late settles {len(late)}, {rig.census()}")
    assert rig.letters() == letters
    assert {letter["attempts"] for letter in letters} == {3}
    assert rig.census().count() == 2
    assert len([entry for entry in rig.log.entries() if entry.event == "start" and entry.key != "later"]) == runs
    assert all(group.alive for group in (frozen, *others))
    assert "reliq dlq show" not in frozen.log()


def test_what_a_frozen_worker_had_prefetched_runs_elsewhere(rig: Rig, tmp_path: Path) -> None:
    """A worker with 4 tasks running and 4 prefetched is frozen for longer than its lease: another runs all 8 within the
    lease and a moment. After it thaws nothing is lost, left or stored twice; its own late runs are counted."""
    gate = tmp_path / "gate"
    frozen = rig.workers(delivery={"lease": 2_000})
    for key in range(8):
        rig.send("gated", key, str(gate))
    assert rig.log.wait_for("start", 4)
    rig.wait_for(lambda: rig.census().count("unacked") == 8, "the prefetch")
    rig.workers(delivery={"lease": 2_000})
    frozen.freeze()
    gate.touch()
    assert rig.log.wait_for("end", 8, timeout=(2 + 2) * SLACK)
    frozen.thaw()
    assert rig.log.wait_for("end", 12, distinct=False)
    rig.wait_settled()
    rig.pause(0.5)
    rig.count(tally := rig.tally())
    assert (tally.done, tally.lost, tally.stuck, tally.dead) == (8, 0, 0, 0)
    assert rig.census().count() == 0
    assert 12 <= tally.runs <= 16
