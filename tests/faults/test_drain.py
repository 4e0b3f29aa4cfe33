"""The way out: `reliq queues drain --to-stock`, killed half way and repeated, leaves plain Dramatiq all there is to do.

The command runs as a process of its own against a real Redis; afterwards only stock workers run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from dramatiq.message import Message

from reliq.testing.plugin import MakeProxy
from reliq.transport.redis.scripts import source
from tests.faults.b_rig import Rig, shared_rig
from tests.faults.stage import calls

rig = pytest.fixture(shared_rig)

DRAIN = ("queues", "drain", "--to-stock", "--queue", "default", "--yes", "-o", "json")


def command(rig: Rig, *args: str, url: str | None = None) -> subprocess.Popen[str]:
    """A `reliq` command on the rig's namespace."""
    words = [sys.executable, "-m", "reliq", "--url", url or rig.url, "--namespace", rig.namespace, *args]
    return subprocess.Popen(
        words, env=rig.environment("reliq"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def drained(rig: Rig, *more: str) -> dict[str, Any]:
    """Drain to the end: what the command says of queue `default`."""
    with command(rig, *DRAIN, *more) as process:
        told, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    (row,) = json.loads(told)
    return dict(row)


def test_a_drain_killed_half_way_and_repeated_loses_nothing(rig: Rig, fault_proxy: MakeProxy) -> None:
    """200 delays and 200 retries wait, due 8 s after they were sent; the command is killed -9 after its first step and
    run again, then stock workers only: 400 done, 0 lost, 0 early, none twice, each retry counted once."""
    worker = rig.workers()
    rig.wait_for(lambda: rig.client.exists(f"{rig.namespace}:reliq:serving:default"), "the worker to serve")
    for key in range(200):
        rig.send("flaky", f"retry-{key}", min_backoff=8_000, max_backoff=8_000, jitter="none")
        rig.send("work", f"delay-{key}", delay=8_000)
    rig.wait_for(lambda: rig.census().count("delayed") == 400, "all to wait")
    due = {place.key: (place.due_ms or 0) / 1000 for place in rig.census().of("delayed")}
    worker.terminate()
    worker.wait(20)

    proxy = fault_proxy(rig.server)
    rig.client.script_load(source("to_stock"))  # else the first request would only learn that it is not known
    victims: list[int] = []
    killed = proxy.on_request(calls("to_stock"), lambda: os.kill(victims[0], 9), nth=2)
    proxy.drop_requests(calls("to_stock"), nth=2)
    with command(rig, *DRAIN, url=proxy.url()) as process:
        victims.append(process.pid)
        process.communicate(timeout=60)
    half = rig.census()
    row = drained(rig)
    census = rig.census()
    told = (killed.fired, process.returncode, half.count("delayed"), half.count("stock_delayed"))
    assert told == (1, -9, 200, 200)
    assert row == {"queue": "default", "delays": 200, "letters": 0}
    assert (census.count("stock_delayed"), census.count(), census.orphans) == (400, 400, ())

    rig.workers("plain")
    rig.wait_done(400)
    rig.wait_settled()
    rig.count(tally := rig.tally())
    starts = [entry for entry in rig.log.entries() if entry.event == "start"]
    last = {entry.key: entry.fields for entry in starts}
    assert (tally.done, tally.lost, tally.stuck, tally.dead, tally.twice, tally.runs) == (400, 0, 0, 0, 0, 600)
    assert [key for key, at in due.items() if last[key]["real"] < at] == []
    assert {last[f"retry-{key}"]["retries"] for key in range(200)} == {1}


def test_messages_promoted_before_the_drain_are_run_by_stock_workers(rig: Rig) -> None:
    """40 delays become due while the only reliq worker is busy, so that they lie ready or prefetched when it stops: 40
    done by stock workers, none twice."""
    worker = rig.workers(threads=1)
    rig.wait_for(lambda: rig.client.exists(f"{rig.namespace}:reliq:serving:default"), "the worker to serve")
    rig.send("work", "busy", 1.5)
    rig.wait_for(lambda: rig.log.keys("start"), "the worker to be busy")
    rig.send_many("work", range(40), delay=200)
    rig.wait_for(lambda: rig.census().count("delayed") == 0, "the promotion")
    worker.terminate()
    worker.wait(20)
    done_before = len(rig.log.keys("end"))
    assert drained(rig)["delays"] == 0
    rig.workers("plain")
    rig.wait_done(41)
    rig.wait_settled()
    rig.count(f"{rig.tally()}; by stock workers {41 - done_before}")
    tally = rig.tally()
    assert (tally.done, tally.lost, tally.stuck, tally.twice) == (41, 0, 0, 0)
    assert done_before < 41


def test_a_drain_is_refused_while_a_reliq_worker_serves(rig: Rig) -> None:
    """20 delays wait and a reliq worker lives: exit 1, the reason and what to do on stderr, all 20 still where they
    were; once the worker has stopped the same command moves them."""
    worker = rig.workers()
    rig.wait_for(lambda: rig.client.exists(f"{rig.namespace}:reliq:serving:default"), "the worker to serve")
    rig.send_many("work", range(20), delay=3_600_000)
    before = rig.census().of("delayed")
    with command(rig, *DRAIN) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "default" in said
    assert "stop the workers" in said
    assert rig.census().of() == before
    worker.terminate()
    worker.wait(20)
    row = drained(rig)
    rig.count(f"refused {len(before)} moved afterwards {row['delays']}")
    assert row["delays"] == 20


def test_letters_go_to_stock_only_when_asked_for(rig: Rig) -> None:
    """5 letters and one that nobody can read: a plain drain moves none; `--letters` moves the 5 to XQ, where they keep
    their time of death and plain Dramatiq can decode them; the unreadable one stays. 0 lost."""
    rig.send_many("fails_once", range(5))
    rig.put(b"\xff{", "garbage")
    worker = rig.workers()
    rig.wait_for(lambda: rig.census().count("dead") == 6, "the letters")
    died_at = {place.key: place.due_ms for place in rig.census().of("dead") if place.args}
    worker.terminate()
    worker.wait(20)
    assert drained(rig)["letters"] == 0
    assert rig.census().count("dead") == 6
    assert drained(rig, "--letters")["letters"] == 5
    census = rig.census()
    rig.count(f"letters 6 moved {census.count('stock_dead')} left {census.count('dead')}")
    assert (census.count("stock_dead"), census.count("dead"), census.count()) == (5, 1, 6)
    assert {place.key: place.due_ms for place in census.of("stock_dead")} == died_at
    messages = [Message.decode(place.body) for place in census.of("stock_dead")]
    assert {(message.actor_name, message.options["retries"]) for message in messages} == {("fails_once", 1)}
    groups = {group["reason"]: group["count"] for group in rig.transport.dead_groups("default")}
    assert groups == {"malformed": 1, None: 5}
