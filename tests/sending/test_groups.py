"""Dramatiq's groups on a broker with reliq: sent in few round trips, and otherwise as they always were."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq import group, pipeline
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import GroupCallbacks, Middleware
from dramatiq.rate_limits.backends import StubBackend as StubRates
from dramatiq.rate_limits.backends.redis import RedisBackend as RedisRates
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend as StubResults
from dramatiq.worker import Worker

import reliq
from reliq.testing import RabbitmqServer, RedisServer, eventually
from reliq.transport.rabbitmq.publisher import Publisher
from tests.transport.promises.sending import Ear, Refuser
from tests.transport.rabbit_maker import RabbitMaker
from tests.transport.redis_maker import RedisMaker
from tests.transport.rig import SOON, Stage, as_handed_out, staged, stop
from tests.transport.stub_maker import StubMaker

Make = Callable[..., Stage]


def scripts_run(stage: Stage) -> int:
    """How many scripts the Redis of a stage has run so far."""
    assert isinstance(stage.maker, RedisMaker)
    return int(stage.maker.client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


def counted() -> tuple[Any, Counter[Any]]:
    """An actor, and how often it has done what."""
    done: Counter[Any] = Counter()

    def work(*args: Any) -> int:
        done[args] += 1
        return sum(args)

    return dramatiq.actor(work, actor_name="work", store_results=True), done


# -- few round trips ---------------------------------------------------------------------------------------------------


def test_a_group_of_a_hundred_is_one_script_on_redis(shared_redis: RedisServer) -> None:
    """100 members: fewer than 10 scripts (one, and one more where the server does not know it yet); all run once."""
    with staged(RedisMaker(shared_redis)) as make:
        stage = make(more=[Results(backend=StubResults())])
        actor, done = counted()
        before = scripts_run(stage)
        group([actor.message(number) for number in range(100)]).run()
        ran = scripts_run(stage) - before
        assert ran < 10
        assert ran <= 2
        assert stage.counts() == (100, 0, 0, 0)
        stage.worker(threads=4)
        stage.broker.join("default", timeout=20_000)
        assert done == Counter((number,) for number in range(100))


def test_a_group_of_a_hundred_waits_for_confirms_once_on_rabbitmq(
    shared_rabbitmq: RabbitmqServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 members, nested groups among them: one batch of 100 is submitted; all run once."""
    maker, batches = RabbitMaker(shared_rabbitmq), []
    submit = Publisher.submit

    def watched(self: Publisher, batch: Any) -> None:
        batches.append(len(batch.frames))
        submit(self, batch)

    try:
        with staged(maker) as make:
            stage = make(more=[Results(backend=StubResults())])
            actor, done = counted()
            members: list[Any] = [actor.message(number) for number in range(80)]
            members += [group([actor.message(number) for number in range(start, start + 10)]) for start in (80, 90)]
            with monkeypatch.context() as patch:
                patch.setattr(Publisher, "submit", watched)
                group(members).run()
            assert batches == [100]
            stage.worker(threads=4)
            stage.broker.join("default", timeout=20_000)
            assert done == Counter((number,) for number in range(100))
    finally:
        maker.close()


def test_nested_groups_are_sent_with_the_outermost(shared_redis: RedisServer) -> None:
    """4 groups of 20 within one, pipelines beside them: one script."""
    with staged(RedisMaker(shared_redis)) as make:
        stage = make()
        actor = dramatiq.actor(lambda number: None, actor_name="work")
        actor.send(-1)  # the script is known
        inner = [group([actor.message(number) for number in range(20)]) for _ in range(4)]
        pipes = [actor.message(1) | actor.message_with_options(args=(2,), pipe_ignore=True) for _ in range(5)]
        before = scripts_run(stage)
        group([*inner, *pipes]).run()
        assert scripts_run(stage) - before == 1
        assert stage.counts() == (1 + 80 + 5, 0, 0, 0)


# -- as they always were -----------------------------------------------------------------------------------------------


def test_members_run_once_each_and_in_order(make: Make) -> None:
    """120 members, one thread: in their order; `run` returns the group."""
    stage, ran = make(), []
    actor = dramatiq.actor(ran.append, actor_name="work")
    members = group([actor.message(number) for number in range(120)])
    assert members.run() is members
    stage.worker(threads=1)
    stage.broker.join("default", timeout=20_000)
    assert as_handed_out(ran) == list(range(120))


def test_groups_and_pipelines_within_a_group_all_run(make: Make) -> None:
    """Messages, two levels of groups, pipelines in both: each step once, results in their places."""
    stage = make(more=[Results(backend=StubResults())])
    actor, done = counted()
    deep = group([actor.message(1), actor.message(2) | actor.message(10)])
    inner = group([actor.message(3), deep, actor.message(4) | actor.message(20)])
    outer = group([actor.message(5), inner, actor.message(6) | actor.message(30) | actor.message(40)])
    stage.worker(threads=4)
    outer.run()
    assert list(outer.get_results(block=True, timeout=10_000)) == [5, [3, [1, 12], 24], 76]
    stage.broker.join("default", timeout=10_000)
    # A pipeline's result comes after the arguments that were given.
    steps = [(1,), (2,), (10, 2), (3,), (4,), (20, 4), (5,), (6,), (30, 6), (40, 36)]
    assert done == Counter(steps)


def test_a_delay_holds_for_every_member(make: Make) -> None:
    """10 members and a nested group of 5, delayed a minute: 15 delayed; hooks hear of each once, with the delay."""
    ear = Ear()
    stage = make(more=[ear])
    actor = dramatiq.actor(lambda number: None, actor_name="work")
    nested = group([actor.message(number) for number in range(5)])
    group([*(actor.message(number) for number in range(10)), nested]).run(delay=60_000)
    assert stage.counts() == (0, 0, 15, 0)
    assert len(ear.before) == 15
    assert ear.before == ear.after
    assert {delay for _, delay in ear.before} == {60_000}


def test_an_empty_group_sends_nothing(make: Make) -> None:
    """No error either."""
    stage = make()
    stage.broker.declare_queue("default")
    group([]).run()
    assert stage.counts() == (0, 0, 0, 0)


def test_a_member_s_own_delay_in_a_pipeline_is_kept(make: Make) -> None:
    """A pipeline whose first step has a delay: delayed, while its neighbours are ready."""
    stage = make()
    actor = dramatiq.actor(lambda *numbers: None, actor_name="work")
    late = actor.message_with_options(args=(1,), delay=60_000) | actor.message(2)
    group([actor.message(0), late, actor.message(3)]).run()
    assert stage.counts() == (2, 0, 1, 0)


@pytest.mark.parametrize("wrong", ["unencodable", "refused"])
def test_a_member_that_cannot_be_sent_raises_and_the_others_are_sent(make: Make, wrong: str) -> None:
    """10 members, number 4 of which cannot be encoded, or is refused by a hook: what was raised comes to the caller, 9
    are sent and run once. What is sent afterwards leaves at once."""
    stage = make(more=[Refuser(dramatiq.middleware.MiddlewareError("not today"))])
    done: list[int] = []
    actor = dramatiq.actor(done.append, actor_name="work")
    refused = dramatiq.actor(lambda number: None, actor_name="refused")
    members = [actor.message(number) for number in range(10)]
    members[4] = actor.message(object()) if wrong == "unencodable" else refused.message(4)
    with pytest.raises(TypeError if wrong == "unencodable" else dramatiq.middleware.MiddlewareError):
        group(members).run()
    assert stage.counts() == (9, 0, 0, 0)
    actor.send(10)
    assert stage.counts() == (10, 0, 0, 0)
    stage.worker(threads=2)
    stage.broker.join("default", timeout=20_000)
    assert sorted(done) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]


def test_a_group_that_fails_while_it_is_put_together_sends_nothing_later(make: Make) -> None:
    """A member that is no message, and a callback without its middleware: the error comes through, and the next send
    leaves at once, alone."""
    stage = make()
    actor = dramatiq.actor(lambda number: None, actor_name="work")
    uncounted = group([actor.message(1)])
    uncounted.add_completion_callback(actor.message(2))
    with pytest.raises(RuntimeError, match="GroupCallbacks"):
        uncounted.run()
    assert stage.counts()[0] in (None, 0)
    actor.send(3)
    assert stage.counts() == (1, 0, 0, 0)


def test_threads_that_run_groups_do_not_mix_them(make: Make) -> None:
    """4 threads, each 5 groups of 20 and as many single sends between: 500 sent, each once."""
    stage = make()
    actor = dramatiq.actor(lambda number: None, actor_name="work")
    failed: list[BaseException] = []

    def send(thread: int) -> None:
        try:
            for batch in range(5):
                first = thread * 1_000 + batch * 100
                group([actor.message(first + number) for number in range(20)]).run()
                for number in range(20, 25):
                    actor.send(first + number)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    sent = Counter(dramatiq.Message.decode(body).args[0] for body in stage.maker.ready(stage.broker, "default"))
    assert sent == Counter(t * 1_000 + b * 100 + n for t in range(4) for b in range(5) for n in range(25))


# -- completion callbacks ----------------------------------------------------------------------------------------------


def calls_back_once(stage: Stage) -> None:
    """30 members, some failing first and five of them pipelines: one callback, after the last."""
    ended: list[Any] = []
    failed: set[int] = set()

    @dramatiq.actor(**SOON)
    def member(number: int, *before: Any) -> None:
        if number % 7 == 0 and number not in failed:
            failed.add(number)
            raise ValueError("once")
        ended.append(number)

    finished = dramatiq.actor(lambda: ended.append("finished"), actor_name="finished")
    parts: list[Any] = [member.message(number) for number in range(25)]
    ignoring = {"pipe_ignore": True}
    parts += [
        pipeline([member.message(n), member.message_with_options(args=(n + 5,), **ignoring)]) for n in range(25, 30)
    ]
    members = group(parts)
    members.add_completion_callback(finished.message())
    stage.worker(threads=4)
    members.run()
    eventually(lambda: "finished" in ended, 20, what="the callback")
    stage.broker.join("default", timeout=10_000)
    assert ended[-1] == "finished"
    assert sorted(ended[:-1]) == list(range(35))


def test_a_group_calls_back_once_when_all_have_ended(make: Make) -> None:
    """Counted in memory, the worker being there before the group is."""
    stage = make()
    stage.broker.add_middleware(GroupCallbacks(StubRates()), before=dramatiq.middleware.Retries)
    calls_back_once(stage)


def test_a_group_counted_on_redis_calls_back_once(shared_redis: RedisServer) -> None:
    """Counted on RedisBackend."""
    with staged(RedisMaker(shared_redis)) as make:
        stage = make()
        backend = RedisRates(client=stage.maker.client)
        stage.broker.add_middleware(GroupCallbacks(backend), before=dramatiq.middleware.Retries)
        calls_back_once(stage)


class Grouper(Middleware):
    """Runs a group of three whenever a run of another actor has ended."""

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        if message.actor_name != "told":
            told = broker.get_actor("told")
            group([told.message(number) for number in range(3)], broker=broker).run()


def test_a_group_run_while_a_message_ends_is_stored_in_the_step_that_ends_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 members of a hook: not there before the settle, there after it."""
    stage, seen = make(more=[Grouper()]), []
    dramatiq.actor(lambda number: None, actor_name="told", queue_name="told")
    dramatiq.actor(lambda: None, actor_name="work").send()
    settle = stage.transport.settle

    def watched(settlement: Any) -> bool:
        seen.append((stage.counts("told"), len(settlement.store)))
        return settle(settlement)

    monkeypatch.setattr(stage.transport, "settle", watched)
    stage.hand().run()
    assert seen == [((0, 0, 0, 0), 3)]
    assert (stage.counts(), stage.counts("told")) == ((0, 0, 0, 0), (3, 0, 0, 0))


def test_a_group_run_by_a_task_leaves_at_once(make: Make) -> None:
    """Its members are there before the task ends."""
    stage, seen = make(), []
    told = dramatiq.actor(lambda number: None, actor_name="told", queue_name="told")

    @dramatiq.actor
    def work() -> None:
        group([told.message(number) for number in range(4)]).run()
        seen.append(stage.counts("told"))

    work.send()
    stage.hand().run()
    assert (seen, stage.counts("told")) == ([(4, 0, 0, 0)], (4, 0, 0, 0))


# -- brokers without reliq ---------------------------------------------------------------------------------------------


def test_a_group_on_a_broker_without_reliq_is_sent_one_by_one() -> None:
    """As before reliq was installed on another: each member by the broker's own `enqueue`, results and callback too;
    one that cannot be encoded stops it there, as plain Dramatiq does."""
    reliq.install(StubBroker(middleware=[]))
    broker = StubBroker()
    broker.add_middleware(Results(backend=StubResults()))
    broker.add_middleware(GroupCallbacks(StubRates()), before=dramatiq.middleware.Retries)
    dramatiq.set_broker(broker)
    enqueue, sent, ended = broker.enqueue, [], []

    def watched(message: Any, *, delay: int | None = None) -> Any:
        sent.append(message.message_id)
        return enqueue(message, delay=delay)

    broker.enqueue = watched  # type: ignore[method-assign]
    actor, done = counted()
    finished = dramatiq.actor(lambda: ended.append("finished"), actor_name="finished")
    members = group([actor.message(number) for number in range(10)])
    members.add_completion_callback(finished.message())
    assert members.run() is members
    assert sent == [message.message_id for message in members.children]
    worker = Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    try:
        assert list(members.get_results(block=True, timeout=10_000)) == list(range(10))
        eventually(lambda: ended == ["finished"], what="the callback")
        assert done == Counter((number,) for number in range(10))
        with pytest.raises(TypeError):
            group([actor.message(20), actor.message(object()), actor.message(21)]).run()
        broker.join("default", timeout=10_000)
        assert (done[20,], done[21,]) == (1, 0)
    finally:
        stop(worker)
        broker.close()


def test_a_group_within_a_group_goes_to_its_own_broker() -> None:
    """The outer on a broker with reliq, the inner on one without, and the other way round: each gets its own."""
    with staged(StubMaker()) as make:
        stage = make()
        plain = StubBroker()
        ours = dramatiq.actor(lambda number: None, actor_name="ours", queue_name="ours", broker=stage.broker)
        theirs = dramatiq.actor(lambda number: None, actor_name="theirs", queue_name="theirs", broker=plain)
        inner = group([theirs.message(number) for number in range(3)], broker=plain)
        group([ours.message(1), inner, ours.message(2)], broker=stage.broker).run()
        assert (stage.counts("ours")[0], plain.queues["theirs"].qsize()) == (2, 3)
        inner = group([ours.message(number) for number in range(3)], broker=stage.broker)
        group([theirs.message(1), inner, theirs.message(2)], broker=plain).run()
        assert (stage.counts("ours")[0], plain.queues["theirs"].qsize()) == (5, 5)
