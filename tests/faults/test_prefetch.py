"""What a worker takes ahead of its threads: never more than it was told, much while tasks are quick, next to nothing
while they are slow, and what waits behind slow ones is given to whoever else is there."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest

from reliq.sending.batches import enqueue_many
from reliq.testing import RabbitmqServer, RedisServer, Tally, WorkerGroup, eventually
from reliq.transport.pace import ENOUGH, MOST_AHEAD, Pace
from reliq.transport.rabbitmq.subscription import Subscription
from reliq.transport.rabbitmq.transport import RabbitTransport
from reliq.transport.spare import ASK_EVERY_S, HELD_UP_S, Spare
from reliq.transport.work_queue import WorkQueue
from tests.faults.rabbit_stage import RabbitStage
from tests.faults.stage import SLACK, Stage, extra_runs, stranded
from tests.transport.rabbit_maker import RabbitMaker
from tests.transport.redis_maker import RedisMaker
from tests.transport.rig import Stage as Broker
from tests.transport.rig import as_handed_out, staged

Figure = Callable[[object], None]

#: How often it is looked at what a worker holds. Seconds.
LOOK_EVERY_S = 0.01
#: Quick tasks that come when all threads are held up.
QUICK = range(100, 140)


class Scene:
    """Worker processes of 4 threads on one broker, and what they hold of the queue `default`."""

    def __init__(self, stage: Stage | RabbitStage) -> None:
        self.stage, self.log = stage, stage.log
        self.keys: list[int] = []

    def workers(self, **env: str) -> WorkerGroup:
        """One more process, ready."""
        return self.stage.workers(direct=True, env=env)

    def send(self, actor: str, keys: range, **kwargs: Any) -> None:
        """One task per key."""
        if isinstance(self.stage, Stage):
            self.stage.producer.declare_queue("default")
            messages = [dramatiq.Message("default", actor, (key,), kwargs, {}) for key in keys]
            enqueue_many(messages, broker=self.stage.producer)
        else:
            self.stage.send(actor, keys, **kwargs)
        self.keys += keys

    def held(self) -> int:
        """How many messages workers hold: on RabbitMQ at most 0.25 s ago; on Redis now, but for those that have ended,
        whose acks are on their way (2 ms)."""
        if isinstance(self.stage, RabbitStage):
            return self.stage.unacked()
        unacked = Counter(place.key for place in self.stage.census().of("unacked"))
        ended = self.log.keys("end")
        return sum(number for key, number in unacked.items() if key not in ended)

    def warm_up(self) -> None:
        """Quick tasks one by one, so that the only worker that is there takes many ahead."""
        for key in range(10_000, 10_250):
            self.send("work", range(key, key + 1))
        assert self.log.wait_for("end", 250, 20)
        eventually(lambda: self.held() == 0, 10, what="nothing to be held")

    def hold_up(self, gate: Path) -> int:
        """Slow tasks for all 4 threads of the only worker, and 40 quick ones behind them; returns how many it holds."""
        self.send("hold", range(4), gate=str(gate))
        assert self.log.wait_for(lambda entries: len({entry.key for entry in entries} & set(range(4))) == 4)
        self.send("work", QUICK)
        eventually(lambda: self.held() > 4, 10, what="some to be taken ahead")
        return self.held()

    def samples(self, until: Callable[[], Any], timeout: float = 20) -> list[int]:
        """What was held at each look, until something is so."""
        seen: list[int] = []

        def look() -> bool:
            seen.append(self.held())
            return bool(until())

        eventually(look, timeout, LOOK_EVERY_S, "the end of the looks")
        return seen

    def ended(self) -> int:
        """How many different tasks have ended."""
        return len(self.log.keys("end"))

    def ran_by(self, keys: Iterable[int]) -> Counter[int]:
        """How many of these tasks each process has ended."""
        wanted = set(keys)
        return Counter(entry.pid for entry in self.log.entries() if entry.event == "end" and entry.key in wanted)

    def finish(self, timeout: float = 20) -> Tally:
        """Wait for all, then count."""
        return self.stage.finish(self.keys, timeout * SLACK)


@pytest.fixture(params=["redis", "rabbitmq"])
def scene(request: pytest.FixtureRequest) -> Scene:
    """On each kind of broker in turn."""
    return Scene(request.getfixturevalue("stage" if request.param == "redis" else "rabbit_stage"))


def test_a_number_that_was_asked_for_is_never_exceeded(scene: Scene, figure: Figure) -> None:
    """`dramatiq_queue_prefetch=2`, 4 threads, 80 tasks of 20 ms: never more than 2 unacked, as plain Dramatiq."""
    scene.workers(dramatiq_queue_prefetch="2")
    scene.send("work", range(80), seconds=0.02)
    seen = scene.samples(lambda: scene.ended() == 80)
    counted = scene.finish()
    figure(f"{counted}; most unacked {max(seen)} in {len(seen)} looks")
    assert max(seen) == 2
    assert (counted.done, counted.lost, counted.dead, extra_runs(counted), stranded(counted)) == (80, 0, 0, 0, 0)


def test_what_waits_behind_slow_tasks_runs_on_another_worker(scene: Scene, tmp_path: Path, figure: Figure) -> None:
    """A worker whose tasks were quick has taken some of 40 ahead when 4 slow ones hold all its threads. Once another
    serves the queue, that one runs the 40 within 2 s. Each of 294 runs once, 0 are dead."""
    gate = tmp_path / "gate"
    busy = scene.workers()
    scene.warm_up()
    held = scene.hold_up(gate)
    other = scene.workers()
    began = time.monotonic()
    assert scene.log.wait_for(lambda entries: _ended(entries, QUICK) == 40, timeout=20)
    took = time.monotonic() - began
    ended = scene.ended()
    gate.touch()
    counted = scene.finish()
    figure(f"{counted}; {held} held, the other ran the 40 within {took:.2f} s")
    assert ended == 290
    assert scene.ran_by(QUICK) == {other.worker_pid: 40}
    assert scene.ran_by(range(4)) == {busy.worker_pid: 4}
    assert took <= 2 * SLACK
    assert (counted.done, counted.lost, counted.dead, counted.twice, extra_runs(counted)) == (294, 0, 0, 0, 0)
    assert stranded(counted) == 0


def test_what_waits_behind_slow_tasks_stays_where_nobody_else_is(scene: Scene, tmp_path: Path, figure: Figure) -> None:
    """Alone, a worker keeps what it has taken ahead of 4 slow tasks: for longer than it takes to ask for others nothing
    goes back to the queue. When its threads are free each of the 40 runs there, once."""
    gate = tmp_path / "gate"
    only = scene.workers()
    scene.warm_up()
    held = scene.hold_up(gate)
    until = time.monotonic() + 2 * ASK_EVERY_S
    seen = scene.samples(lambda: time.monotonic() > until)
    gate.touch()
    counted = scene.finish()
    figure(f"{counted}; alone {held}, then {min(seen)} to {max(seen)} held in {len(seen)} looks")
    assert seen == sorted(seen)
    assert min(seen) >= held
    assert scene.ran_by([*range(4), *QUICK]) == {only.worker_pid: 44}
    assert (counted.done, counted.lost, counted.dead, extra_runs(counted), stranded(counted)) == (294, 0, 0, 0, 0)


def _ended(entries: list[Any], keys: range) -> int:
    return len({entry.key for entry in entries if entry.event == "end" and entry.key in keys})


def test_nothing_is_taken_ahead_of_slow_tasks(scene: Scene, figure: Figure) -> None:
    """80 tasks of 100 ms, 4 threads: once enough have run to know it, no more than 5 are unacked (4 that run, one whose
    ack is on its way); 80 done."""
    scene.workers()
    scene.send("work", range(80), seconds=0.1)
    eventually(lambda: scene.ended() >= ENOUGH, 10, what="some that have run")
    eventually(lambda: scene.held() <= 5, 2 * SLACK, LOOK_EVERY_S, "fewer to be held")
    fewer = scene.ended()
    eventually(lambda: scene.ended() >= fewer + 8, 10, what="the end of those that were held before")
    seen = scene.samples(lambda: scene.ended() == 80)
    counted = scene.finish()
    figure(f"{counted}; after {fewer} + 8 were done at most {max(seen)} unacked in {len(seen)} looks")
    assert fewer <= 64
    assert max(seen) <= 5
    assert (counted.done, counted.lost, counted.dead, extra_runs(counted), stranded(counted)) == (80, 0, 0, 0, 0)


# -- when it is given back ---------------------------------------------------------------------------------------------


class Post:
    """A transport with one worker of 4 threads that another one would relieve, as `Spare` sees it; `came` puts messages
    into the worker's line."""

    def __init__(self, *, others: bool = True) -> None:
        self.given: list[int] = []
        self.line = WorkQueue()
        self.pace = Pace(4)
        for _ in range(50):
            self.pace.ran(0.000_01)
        self.workers = [SimpleNamespace(work_queue=self.line)]
        self.draining = False
        self.others = others
        self.keeper = Spare(self)  # type: ignore[arg-type]

    def others_serve(self, queue_name: str) -> bool:
        """As it was told."""
        return self.others

    def spare(self, messages: list[Any]) -> list[Any]:
        """All of them, noted."""
        self.given += [message.number for message in messages]
        return []

    def came(self, *numbers: int) -> None:
        """Messages that wait for a thread."""
        for number in numbers:
            message = SimpleNamespace(queue_name="default", consumer=self, number=number)
            self.line.put(SimpleNamespace(priority=0, message=message))


def test_what_waits_is_given_back_when_no_run_has_ended_for_a_while() -> None:
    """Not as long as runs end; 50 ms after the last has, all that waits; then the pace is that of a stall."""
    post = Post()
    post.came(1, 2, 3)
    for step in range(5):
        post.pace.ran(0.000_01)
        post.keeper.look(step * HELD_UP_S * 2)
    assert post.given == []
    for step in range(1, 4):
        post.keeper.look(5 * HELD_UP_S * 2 + step * HELD_UP_S)
    assert post.given == [1, 2, 3]
    assert (post.line.qsize(), post.line.unfinished_tasks, post.pace.window) == (0, 0, 4)


def test_what_waits_is_kept_where_nobody_else_is_and_asked_for_once_a_second() -> None:
    """Alone: it keeps its place and order; when another comes it is given back at the next time it is asked."""
    post = Post(others=False)
    post.came(1, 2, 3)
    post.keeper.look(0.0)
    post.keeper.look(HELD_UP_S * 2)
    post.others = True
    post.keeper.look(HELD_UP_S * 2 + ASK_EVERY_S / 2)
    assert (post.given, post.line.qsize(), post.line.unfinished_tasks) == ([], 3, 3)
    post.keeper.look(HELD_UP_S * 2 + ASK_EVERY_S * 1.1)
    assert post.given == [1, 2, 3]


def test_a_thread_that_is_free_takes_what_waits_while_others_are_asked_for() -> None:
    """The question may take long: what waits lies in the line meanwhile, and is not given back once it is taken."""
    post, taken = Post(), []

    def asked(queue_name: str) -> bool:
        taken.append(post.line.get_nowait().message.number)
        return True

    post.others_serve = asked  # type: ignore[method-assign]
    post.came(1, 2, 3)
    post.keeper.look(0.0)
    post.keeper.look(HELD_UP_S * 2)
    assert (taken, post.given, post.line.qsize()) == ([1], [2, 3], 0)


def test_what_comes_to_an_idle_worker_is_not_given_back_at_once() -> None:
    """Nothing has ended for a second because nothing was there. What has just come waits for a thread that is free: no
    stall, and the pace stays what it was."""
    post = Post()
    post.keeper.look(0.0)
    post.keeper.look(HELD_UP_S / 2)
    post.came(1, 2, 3)
    post.keeper.look(1.0)
    assert (post.given, post.line.qsize(), post.pace.window) == ([], 3, 4 + MOST_AHEAD)


# -- in this process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def rabbit(shared_rabbitmq: RabbitmqServer) -> Iterator[Broker]:
    """A broker of this process on RabbitMQ."""
    maker = RabbitMaker(shared_rabbitmq)
    with staged(maker) as make:
        yield make()
    maker.close()


def test_order_holds_while_the_limit_changes(rabbit: Broker, monkeypatch: pytest.MonkeyPatch, figure: Figure) -> None:
    """1,000 tasks for one thread on RabbitMQ, quick ones with a slow one here and there: the limit grows and shrinks
    under them, and they run in their order, each once."""
    ran, limits, limit = [], [], Subscription.limit

    def watched(self: Subscription, prefetch: int) -> None:
        limits.append(prefetch)
        limit(self, prefetch)

    monkeypatch.setattr(Subscription, "limit", watched)

    def work(number: int) -> None:
        if number % 300 == 299:
            time.sleep(0.1)  # sleep-ok: the task's own work
        ran.append(number)

    actor = dramatiq.actor(work, actor_name="work")
    enqueue_many([actor.message(number) for number in range(500)])
    rabbit.worker(threads=1)
    for first in range(500, 1_000, 50):
        enqueue_many([actor.message(number) for number in range(first, first + 50)])
    rabbit.broker.join("default", timeout=20_000)
    figure(f"1,000 in order, limits {limits}")
    assert as_handed_out(ran) == list(range(1_000))
    assert max(limits) > 100
    assert rabbit.counts() == (0, 0, 0, 0)


def test_a_lower_limit_takes_nothing_more(rabbit: Broker) -> None:
    """All 4 threads are held up and 8 of 100 are unacked: lowering the limit to 7, 6 and 5 leaves it at 8, for what is
    held counts against the new limit too."""
    gate = threading.Event()
    actor = dramatiq.actor(lambda number: gate.wait(20) and None, actor_name="work")
    enqueue_many([actor.message(number) for number in range(100)])
    rabbit.worker(threads=4)
    try:
        eventually(lambda: sum(len(each.outstanding) for each in _subscriptions(rabbit)) == 8, what="what is held")
        (subscription,) = _subscriptions(rabbit)
        held = []
        for limit in (7, 6, 5):
            subscription.limit(limit)
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                held.append(len(subscription.outstanding))
                gate.wait(LOOK_EVERY_S)
        assert max(held) == 8
    finally:
        gate.set()


def _subscriptions(stage: Broker) -> list[Subscription]:
    assert isinstance(stage.transport, RabbitTransport)
    return stage.transport.intake.of("default")


def test_the_more_urgent_run_first_on_rabbitmq(rabbit: Broker) -> None:
    """One thread held up, 2 prefetched of a queue: the more urgent runs first. (In memory and on Redis:
    tests/dramatiq_behaviour/test_workers.py.)"""
    ran, gate = [], threading.Event()
    first = dramatiq.actor(lambda: gate.wait(20) and None, actor_name="hold", queue_name="hold")
    low = dramatiq.actor(lambda number: ran.append(("low", number)), actor_name="low", priority=100)
    high = dramatiq.actor(lambda number: ran.append(("high", number)), actor_name="high", priority=1)
    first.send()
    worker = rabbit.worker(threads=1)
    eventually(lambda: worker.work_queue.unfinished_tasks == 1 and not worker.work_queue.qsize(), what="the holder")
    low.send(1)
    high.send(1)
    eventually(lambda: worker.work_queue.qsize() == 2, what="the prefetch")
    gate.set()
    eventually(lambda: len(ran) == 2, what="both")
    assert ran == [("high", 1), ("low", 1)]


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_where_priorities_differ_no_more_is_held_than_dramatiq_holds(request: pytest.FixtureRequest, kind: str) -> None:
    """Quick tasks, but actors of two priorities: a message that is held cannot be overtaken by one that is not, so it
    stays with twice the threads. Alike priorities of another queue count as well."""
    if kind == "rabbitmq":
        stage = request.getfixturevalue("rabbit")
        _holds_what_dramatiq_holds(stage)
        return
    with staged(RedisMaker(request.getfixturevalue("shared_redis"))) as make:
        _holds_what_dramatiq_holds(make())


def _holds_what_dramatiq_holds(stage: Broker) -> None:
    gate, quick = threading.Event(), threading.Event()
    dramatiq.actor(lambda: None, actor_name="urgent", queue_name="other", priority=1)
    held = dramatiq.actor(lambda: gate.wait(20) and None, actor_name="hold")
    done = dramatiq.actor(lambda number: quick.set(), actor_name="work")
    stage.worker(threads=2)
    enqueue_many([done.message(number) for number in range(300)])
    stage.broker.join("default", timeout=20_000)
    assert stage.transport.pace is not None
    assert stage.transport.pace.window > 50
    enqueue_many([held.message(), held.message(), *(done.message(number) for number in range(60))])
    stage.wait_for(58, 4, 0, 0)
    gate.set()
    stage.broker.join("default", timeout=20_000)
    assert quick.is_set()


def test_many_queues_share_the_places_and_cost_few_round_trips(redis_server: RedisServer, figure: Figure) -> None:
    """30 queues with 40 messages each and one worker of 4 threads: 1,200 done, each once; on Redis fewer than 0.2
    scripts per task from the start of the worker to the last ack, and never more held than the window and its acks."""
    with staged(RedisMaker(redis_server)) as make:
        stage = make()
        done: Counter[int] = Counter()
        names = [f"queue-{number}" for number in range(30)]
        actors = [
            dramatiq.actor(lambda number: done.update([number]), actor_name=f"work-{name}", queue_name=name)
            for name in names
        ]
        enqueue_many([actors[number % 30].message(number) for number in range(1_200)])
        client = stage.maker.client
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        stage.worker(threads=4)
        most = 0

        def look() -> bool:
            nonlocal most
            most = max(most, len(stage.transport.room))
            return len(done) == 1_200 and not len(stage.transport.room)

        eventually(look, 20, 0.001, "all")
        eventually(lambda: not client.keys(f"{stage.broker.namespace}:__acks__.*"), 5, 0.002, "the last acks")
        scripts = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before
        figure(f"1,200 done, {scripts} scripts, {scripts / 1_200:.3f} each, at most {most} held")
        assert done == Counter(range(1_200))
        assert most <= 4 + MOST_AHEAD
        assert scripts / 1_200 < 0.2


def test_what_is_given_back_on_a_channel_that_is_gone_runs_here(rabbit: Stage, figure: Figure) -> None:
    """Two tasks hold both threads, two wait, and the connection is lost just when they are to be given back: they come
    again, and each of the four runs, once."""
    gate, ran, transport = threading.Event(), [], rabbit.transport
    hold = dramatiq.actor(lambda number: gate.wait(20) and ran.append(number), actor_name="hold")
    work = dramatiq.actor(lambda number: ran.append(number), actor_name="work")
    asked = threading.Event()

    def lost_meanwhile(queue_name: str) -> bool:
        if not asked.is_set():
            (subscription,) = transport.intake.of("default")
            subscription._link.call(subscription._link.drop)
            eventually(lambda: not subscription.alive, 10, what="the loss of the channel")
            asked.set()
            return True
        return False

    transport.others_serve = lost_meanwhile
    enqueue_many([hold.message(0), hold.message(1), work.message(2), work.message(3)])
    rabbit.worker(threads=2)
    assert asked.wait(10)
    eventually(
        lambda: [bool(each.outstanding) for each in transport.intake.of("default")] == [True], 10, what="them again"
    )
    gate.set()
    rabbit.wait_for(0, 0, 0, 0)
    figure(f"4 sent, ran {sorted(ran)}")
    assert sorted(ran) == [0, 1, 2, 3]
