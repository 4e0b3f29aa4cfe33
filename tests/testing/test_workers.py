"""The stock dramatiq command in a group of its own: run, killed, stopped, frozen, counted."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from reliq.testing import RedisServer, RunLog, WorkerGroup, eventually, take_census, tally
from reliq.testing.plugin import MakeProxy, MakeWorkers
from reliq.testing.processes import group_states

APP = """
import os, threading
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from reliq.testing import RunLog

broker = RedisBroker(url=os.environ["APP_URL"], namespace=os.environ["APP_NAMESPACE"])
dramatiq.set_broker(broker)
log = RunLog(os.environ["APP_LOG"])

@dramatiq.actor
def work(key, gate=None):
    log.record("start", key)
    while gate and not os.path.exists(gate):
        threading.Event().wait(0.01)
    log.record("end", key)

@dramatiq.actor(max_retries=3, min_backoff=50, max_backoff=50)
def flaky(key):
    if key not in log.keys("fail"):
        log.record("fail", key)
        raise RuntimeError("once")
    log.record("end", key)
"""

# Dramatiq shows what a worker prints only once it has booted; this goes to the log at once.
SLOW = "import os, threading; os.write(1, b'{text}'); threading.Event().wait(60)"


class App:
    """The app's sending side, and what its workers need to know."""

    def __init__(self, server: RedisServer, namespace: str, log: RunLog, folder: Path) -> None:
        (folder / "tiny_app.py").write_text(APP)
        self.client = server.client()
        self.namespace = namespace
        self.log = log
        self.gate = folder / "gate"
        self._broker = RedisBroker(client=self.client, namespace=namespace)
        environment = {"APP_URL": server.url, "APP_NAMESPACE": namespace, "APP_LOG": str(log.path)}
        self.options: dict[str, Any] = {"cwd": folder, "env": environment}

    def send(self, key: int, actor: str = "work", gated: bool = False) -> None:
        args = (key, str(self.gate)) if gated else (key,)
        message = dramatiq.Message(queue_name="default", actor_name=actor, args=args, kwargs={}, options={})
        self._broker.enqueue(message)


@pytest.fixture
def app(shared_redis: RedisServer, namespace: str, run_log: RunLog, tmp_path: Path) -> App:
    return App(shared_redis, namespace, run_log, tmp_path)


def test_tasks_run_and_sigterm_lets_them_end(app: App, worker_group: MakeWorkers) -> None:
    """A deploy: the running task ends, the exit code is 0, and the next start serves on."""
    group = worker_group("tiny_app", threads=2, **app.options)
    assert (group.alive, group.worker_pid != group.pid) == (True, True)
    app.send(1)
    app.send(2, gated=True)
    assert app.log.wait_for("start", 2)
    assert {entry.pid for entry in app.log.entries()} == {group.worker_pid}
    group.terminate()
    eventually(lambda: "Stopping worker process" in group.log(), what="the signal to arrive")
    app.gate.touch()
    assert group.wait(20) == 0
    assert not group.alive
    eventually(lambda: group_states(group.pid) == {}, what="helpers of the master to follow it")
    assert str(tally([1, 2], app.log, take_census(app.client, app.namespace))) == (
        "sent 2 done 2 dead 0 stuck 0 lost 0 twice 0"
    )
    group.start().wait_ready()  # not taken in by the log of the first run
    app.send(3)
    assert app.log.wait_for("end", 3)
    assert group.log().count("ready for action") == 2


def test_kill_leaves_nobody_and_the_census_shows_what_it_held(app: App, worker_group: MakeWorkers) -> None:
    """Killed in the middle: the message lies unacked with a dead holder, which is stuck, not lost."""
    group = worker_group("tiny_app:broker", threads=1, queues=["default"], **app.options)
    pids = group_states(group.pid)
    assert {group.pid, group.worker_pid} <= pids.keys()
    app.send(1, gated=True)
    assert app.log.wait_for("start", 1)
    group.kill()
    assert not group.alive
    assert group_states(group.pid) == {}
    assert group.wait(1) == -signal.SIGKILL
    census = take_census(app.client, app.namespace)
    assert [place.state for place in census] == ["unacked"]
    assert str(tally([1], app.log, census, live=lambda broker_id: False)) == (
        "sent 1 done 0 dead 0 stuck 1 lost 0 twice 0"
    )
    group.kill()  # twice is once


def test_the_tools_together_find_a_loss_that_is_known(
    app: App, worker_group: MakeWorkers, fault_proxy: MakeProxy, shared_redis: RedisServer
) -> None:
    """Plain Dramatiq loses a task whose retry cannot be published: every 2nd request lost is every 2nd task lost."""
    proxy = fault_proxy(shared_redis)
    # EVALSHA: the first use of a script loads its text, which holds these words too
    proxy.drop_requests(
        lambda request: all(word in request for word in (b"EVALSHA", b"enqueue", b".DQ")), nth=2, every=True
    )
    app.options["env"]["APP_URL"] = proxy.url()
    group = worker_group("tiny_app", **app.options)
    for key in range(20):
        app.send(key, actor="flaky")

    def line() -> str:
        return str(tally(range(20), app.log, take_census(app.client, app.namespace)))

    eventually(lambda: line() == "sent 20 done 10 dead 0 stuck 0 lost 10 twice 0", what="the known loss")
    assert (proxy.dropped, group.alive) == (10, True)


def test_a_frozen_group_does_nothing_until_thawed(app: App, worker_group: MakeWorkers) -> None:
    group = worker_group("tiny_app", **app.options)
    group.freeze()
    assert set(group_states(group.pid).values()) == {"T"}
    assert group.alive
    app.send(1)
    assert app.log.count("start") == {}
    group.thaw()
    assert app.log.wait_for("end", 1)
    group.freeze()
    group.kill()  # also a frozen group


def test_several_processes_by_args(app: App) -> None:
    with WorkerGroup("tiny_app", args=("-p", "2"), threads=1, **app.options) as group:
        group.wait_ready(processes=2)
        assert len(set(group.worker_pids)) == 2
        assert group.worker_pid == group.worker_pids[-1]
        with pytest.raises(TimeoutError, match=r"(?s)still runs after 0 s; its log ends: .*ready for action"):
            group.wait(0)
        folder = group._folder
    assert not folder.exists()


def test_a_module_that_cannot_be_imported_is_told_at_once(worker_group: MakeWorkers) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with code 2 before it was ready.*No module named 'no_such_app'"):
        worker_group("no_such_app")


def test_not_ready_in_time_shows_the_log(tmp_path: Path) -> None:
    (tmp_path / "slow_app.py").write_text(SLOW.format(text="slowly"))
    with WorkerGroup("slow_app", cwd=tmp_path) as group:
        eventually(lambda: "slowly" in group.log(), what="the app's import to begin")
        with pytest.raises(TimeoutError, match=r"(?s)to be ready.*its log ends:.*slowly"):
            group.wait_ready(0.05)
        with pytest.raises(RuntimeError, match="no ready worker process"):
            _ = group.worker_pid


def test_before_start_there_is_nothing_to_signal() -> None:
    group = WorkerGroup("x")
    assert (group.alive, group.log()) == (False, "")
    group.kill()
    for call in (group.terminate, group.freeze, lambda: group.wait(1), lambda: group.pid):
        with pytest.raises(RuntimeError, match="was never started"):
            call()
    group.close()
    assert repr(group) == "<WorkerGroup x, down>"


OWNER = """
import sys
from reliq.testing import WorkerGroup
group = WorkerGroup("sleepy_app", cwd=sys.argv[1]).start()
print(group.pid, flush=True)
sys.stdin.read()
"""


def test_no_worker_survives_a_test_run_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "sleepy_app.py").write_text(SLOW.format(text="booting"))
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"TMPDIR": str(tmp_path)},
    ) as owner:
        assert owner.stdout is not None
        pgid = int(owner.stdout.readline())
        eventually(lambda: len(group_states(pgid)) >= 2, what="the worker process")
        owner.kill()
        owner.wait(10)
    eventually(lambda: group_states(pgid) == {}, 5, what="the orphaned workers to be killed")
