"""Commands that are killed, interrupted or cut off half way: nothing is lost, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from dramatiq import Worker
from dramatiq.brokers.redis import RedisBroker

from reliq.testing import FaultProxy, eventually
from reliq.testing.plugin import MakeProxy
from tests.cli.conftest import Cli, MakeApp
from tests.desk.morgues import both_brokers
from tests.desk.support import Morgue

COMMAND = [sys.executable, "-m", "reliq"]


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own, as a user runs it."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        **options,
    )


def killed(
    proxy: FaultProxy, request: bytes, *arguments: str, nth: int, when: Any = "before", url: str | None = None
) -> None:
    """Run a command through the proxy and kill it with -9 at its n-th such request."""
    running: list[subprocess.Popen[str]] = []
    proxy.on_request(request, lambda: running[0].kill(), nth=nth, when=when)
    running.append(start("--url", url or proxy.url(), *arguments))
    assert end_of(running[0])[0] == -signal.SIGKILL


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("moment", ["before", "replied"])
def test_a_replay_killed_half_way_and_repeated_runs_every_letter(
    cli: Cli, morgue: Morgue, fault_proxy: MakeProxy, moment: Any
) -> None:
    """kill -9 at the 26th of 50 letters, as Redis is asked to move it or when it has. Then: nothing lost, nothing
    twice, and all 50 run on a real worker."""
    for number in range(50):
        morgue.letter(number)
    proxy = fault_proxy(morgue.transport.broker.client.connection_pool.connection_kwargs["port"])
    command = ["--namespace", morgue.namespace, "dlq", "replay", "--all", "--yes"]
    killed(proxy, b"$6\r\nreplay\r\n", *command, nth=26, when=moment)
    moved, left = len(morgue.queued()), int(cli("dlq", "count").out)
    assert moved + left == 50
    assert 25 <= moved <= 26
    result = cli.json("dlq", "replay", "--all", "--yes")
    assert result == {"matched": left, "done": left, "failed": 0}
    ran = run_all(morgue, 50)
    assert sorted(ran) == list(range(50))  # sent 50, done 50, lost 0, twice 0


def run_all(morgue: Morgue, expected: int) -> list[int]:
    """What a plain Dramatiq worker runs until its queue is empty."""
    import dramatiq

    broker, ran = RedisBroker(url=morgue.url, namespace=morgue.namespace), list[int]()
    dramatiq.actor(ran.append, broker=broker, actor_name="charge")
    worker = Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    try:
        eventually(lambda: len(ran) >= expected, 20, 0.02, f"{expected} runs")
        worker.join()
    finally:
        worker.stop()
        broker.client.connection_pool.disconnect()
    return ran


def test_a_broker_that_goes_away_leaves_a_replay_partly_done(cli: Cli, morgue: Morgue, fault_proxy: MakeProxy) -> None:
    """Exit 3, what was done is told, and how to go on."""
    for number in range(10):
        morgue.letter(number)
    proxy = fault_proxy(morgue.transport.broker.client.connection_pool.connection_kwargs["port"])
    proxy.drop_requests(b"$6\r\nreplay\r\n", nth=5)
    cli.options = ("--url", proxy.url(), "--namespace", morgue.namespace)
    result = cli("dlq", "replay", "--all", "--yes", "-o", "json")
    assert (result.code, result.json) == (3, {"matched": 10, "done": 4, "failed": 0})
    assert "run the same command again to go on" in result.err
    assert "Traceback" not in result.err
    assert cli.json("dlq", "replay", "--all", "--yes")["done"] == 6
    assert len(morgue.queued()) == 10


INTERRUPTING = """
import os, signal
class CtrlC(dramatiq.Middleware):
    seen = 0
    def before_enqueue(self, broker, message, delay):
        CtrlC.seen += 1
        if CtrlC.seen == 4:
            os.kill(os.getpid(), signal.SIGINT)
broker.add_middleware(CtrlC())
"""


@both_brokers
def test_ctrl_c_finishes_the_letter_and_says_how_to_go_on(cli: Cli, morgue: Morgue, app: MakeApp) -> None:
    """Exit 130; the letter that was under way is moved whole, the others are untouched."""
    for number in range(10):
        morgue.letter(number)
    process = start("-b", app(more=INTERRUPTING), "dlq", "replay", "--all", "--yes", "-o", "json")
    code, out, err = end_of(process)
    assert (code, json.loads(out)) == (130, {"matched": 10, "done": 4, "failed": 0}), err
    assert "interrupted: 4 of 10 dealt with, the rest is untouched\nrun the same command again to go on" in err
    assert "Traceback" not in err
    assert len(morgue.queued()) == 4
    assert cli.json("dlq", "replay", "--all", "--yes") == {"matched": 6, "done": 6, "failed": 0}


@both_brokers
def test_a_reader_whose_reader_goes_away_ends_quietly(morgue: Morgue) -> None:
    """`reliq dlq list | head -1`: no traceback, and every letter is where it was."""
    for number in range(60):
        morgue.letter(number, "x" * 2_000)
    before = morgue.dump()
    process = start(*morgue.options, "dlq", "list", "-o", "jsonl")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["args"][0] == 0
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert said == ""
    assert morgue.dump() == before


DELAYS, LETTERS = 450, 450  # a step moves 200


def in_stock(morgue: Morgue) -> tuple[int, int]:
    """Delays and letters in the form of plain Dramatiq."""
    prefix = f"{morgue.namespace}:default"
    return morgue.client.llen(f"{prefix}.DQ"), morgue.client.zcard(f"{prefix}.XQ")


def in_ours(morgue: Morgue) -> tuple[int, int]:
    """Delays and letters in our form."""
    prefix = f"{morgue.namespace}:default"
    return morgue.client.zcard(f"{prefix}.delayed"), morgue.client.zcard(f"{prefix}.dead")


def delays(morgue: Morgue, number: int) -> None:
    """Delays as a live reliq worker would have left them; the worker is gone."""
    from dramatiq.message import Message

    serving = f"{morgue.namespace}:reliq:serving:default"
    morgue.client.set(serving, "worker")
    items = [
        morgue.transport.outgoing(Message("default", "charge", (one,), {}, {}), delay=3_600_000)
        for one in range(number)
    ]
    assert not any(morgue.transport.publish_many(items))
    morgue.client.delete(serving)


def test_a_drain_killed_half_way_and_repeated_gives_everything_back(
    cli: Cli, morgue: Morgue, fault_proxy: MakeProxy
) -> None:
    """kill -9 between two steps, once among the delays and once among the letters: nothing lost, nothing twice."""
    delays(morgue, DELAYS)
    for number in range(LETTERS):
        morgue.letter(number)
    junk = morgue.raw(b"junk")
    proxy = fault_proxy(morgue.transport.broker.client.connection_pool.connection_kwargs["port"])
    command = ["queues", "drain", "--to-stock", "--letters", "--queue", "default", "--yes"]
    for kind in (b"delayed", b"dead"):
        request = b"$%d\r\n%s\r\n" % (len(kind), kind)
        killed(proxy, request, "--namespace", morgue.namespace, *command, nth=2)
        stock, ours = in_stock(morgue), in_ours(morgue)
        assert (stock[0] + ours[0], stock[1] + ours[1]) == (DELAYS, LETTERS + 1)
        assert sum(ours) > 1
    result = cli(*command, "-o", "json")
    assert result.code == 0, result.err
    assert "1 letters stay with reliq" in result.err
    assert in_stock(morgue) == (DELAYS, LETTERS)
    assert in_ours(morgue) == (0, 1)
    assert [letter["id"] for letter in cli.json("dlq", "list", "--reason", "malformed")] == [junk]
    ids = morgue.client.lrange(f"{morgue.namespace}:default.DQ", 0, -1)
    assert len(set(ids)) == DELAYS
    assert set(morgue.client.hkeys(f"{morgue.namespace}:default.DQ.msgs")) == set(ids)
