"""Pipelines and groups work as in Dramatiq, also when their messages fail, wait or come back."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import uuid4

import dramatiq
import pytest
from dramatiq import group, pipeline
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import StubBackend as StubRates
from dramatiq.rate_limits.backends.redis import RedisBackend as RedisRates
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend as StubResults

import reliq
from reliq.testing import eventually
from tests.transport.rig import SOON, Stage

Make = Callable[..., Stage]


def test_a_pipeline_hands_each_result_to_the_next_though_one_fails_twice(make: Make) -> None:
    """1 + 2, retried twice, * 10, 1 - that: -29."""
    stage, failures = make(more=[Results(backend=StubResults())]), []

    @dramatiq.actor(store_results=True, **SOON)
    def add(x: int, y: int) -> int:
        if len(failures) < 2:
            failures.append(1)
            raise ValueError("not yet")
        return x + y

    @dramatiq.actor(store_results=True)
    def times_ten(x: int) -> int:
        return x * 10

    @dramatiq.actor(store_results=True)
    def minus(x: int, y: int) -> int:
        return x - y

    # A result comes after the arguments that were given: minus(1, 30).
    pipe = pipeline([add.message(1, 2), times_ten.message(), minus.message(1)]).run()
    stage.worker()
    assert pipe.get_result(block=True, timeout=10_000) == 1 - 30
    assert len(failures) == 2


def test_pipe_ignore_keeps_the_result_out(make: Make) -> None:
    """The second runs after the first, without its result."""
    stage, ran = make(), []

    @dramatiq.actor
    def first() -> str:
        ran.append("first")
        return "result"

    @dramatiq.actor
    def second(*args: object) -> None:
        ran.append(args)

    pipeline([first.message(), second.message_with_options(args=(7,), pipe_ignore=True)]).run()
    stage.worker()
    eventually(lambda: len(ran) == 2, what="both")
    assert ran == ["first", (7,)]


def test_a_pipeline_can_be_sent_with_a_delay(make: Make) -> None:
    """All parts run, the first not before its delay."""
    stage, ran = make(), []

    @dramatiq.actor
    def first() -> int:
        ran.append(time.monotonic())
        return 1

    @dramatiq.actor
    def second(x: int) -> None:
        ran.append(x)

    began = time.monotonic()
    (first.message() | second.message()).run(delay=200)
    stage.worker()
    eventually(lambda: len(ran) == 2, what="both")
    assert ran[0] - began >= 0.2
    assert ran[1] == 1


def test_a_part_that_dies_ends_the_pipeline(make: Make) -> None:
    """The next one is not sent; the first is a letter that still names its target."""
    stage, ran = make(), []

    @dramatiq.actor(max_retries=0)
    def first() -> None:
        raise ValueError("no")

    second = dramatiq.actor(ran.append, actor_name="second")
    pipeline([first.message(), second.message()]).run()
    stage.worker()
    stage.wait_for(0, 0, 0, 1)
    assert ran == []
    assert stage.letters()[0]["options"]["pipe_target"]["actor_name"] == "second"


def test_a_group_calls_back_once_when_all_have_ended(make_stub: Make) -> None:
    """10 members, some failing first: one callback, after the last."""
    stage = make_stub()
    stage.broker.add_middleware(GroupCallbacks(StubRates()), before=dramatiq.middleware.Retries)
    _group_calls_back_once(stage)


def test_a_group_counted_on_redis_calls_back_once(make_redis: Make) -> None:
    """The same, its barrier on RedisBackend."""
    _group_calls_back_once(counted_on_redis(make_redis))


def counted_on_redis(make_redis: Make) -> Stage:
    """A stage on Redis whose groups are counted there too."""
    stage = make_redis()
    backend = RedisRates(client=stage.maker.client)
    stage.broker.add_middleware(GroupCallbacks(backend), before=dramatiq.middleware.Retries)
    return stage


def _group_calls_back_once(stage: Stage) -> None:
    ended: list[object] = []
    failed: set[int] = set()

    @dramatiq.actor(**SOON)
    def member(number: int) -> None:
        if number % 3 == 0 and number not in failed:
            failed.add(number)
            raise ValueError("once")
        ended.append(number)

    finished = dramatiq.actor(lambda: ended.append("finished"), actor_name="finished")
    members = group([member.message(number) for number in range(10)])
    members.add_completion_callback(finished.message())
    members.run()
    stage.worker(threads=4)
    eventually(lambda: "finished" in ended, what="the callback")
    stage.broker.join("default", timeout=10_000)
    assert ended[-1] == "finished"
    assert sorted(ended[:-1]) == list(range(10))


def test_a_member_that_comes_back_is_not_counted_twice(make_redis: Make) -> None:
    """A, A again, B, C: the callback is sent with C, not with B; C again completes again, because its callback may
    have been lost with it."""
    stage = counted_on_redis(make_redis)
    member = dramatiq.actor(lambda name: None, actor_name="member")
    told = dramatiq.actor(lambda: None, actor_name="told", queue_name="told")
    members = group([member.message(name) for name in "ABC"])
    members.add_completion_callback(told.message())
    members.run()
    a, b, c = stage.maker.ready(stage.broker, "default")
    stage.broker.flush("default")
    hand = stage.hand(prefetch=1)
    sent = []
    for body in (a, a, b, c, b, c):
        stage.put_raw(body)
        hand.run()
        sent.append(stage.counts("told")[0])
    assert sent == [0, 0, 0, 1, 1, 2]


def test_two_groups_do_not_share_a_barrier(make_redis: Make) -> None:
    """Each calls back once."""
    stage, ended = counted_on_redis(make_redis), []
    member = dramatiq.actor(lambda: None, actor_name="member")
    told = dramatiq.actor(ended.append, actor_name="told")
    for name in ("one", "two"):
        members = group([member.message() for _ in range(3)])
        members.add_completion_callback(told.message(name))
        members.run()
    stage.worker()
    stage.broker.join("default", timeout=10_000)
    eventually(lambda: sorted(ended) == ["one", "two"], what="both callbacks")


def test_a_group_s_results_come_in_order(make: Make) -> None:
    """get_results of five, one of which is retried."""
    stage, failed = make(more=[Results(backend=StubResults())]), []

    @dramatiq.actor(store_results=True, **SOON)
    def square(x: int) -> int:
        if x == 3 and not failed:
            failed.append(x)
            raise ValueError("once")
        return x * x

    stage.worker()
    members = group([square.message(x) for x in range(5)]).run()
    assert list(members.get_results(block=True, timeout=10_000)) == [0, 1, 4, 9, 16]


def test_the_result_of_a_message_that_dies_is_its_error(make: Make) -> None:
    """Nothing is stored for an attempt that will be retried; the last one's error raises ResultFailure."""
    backend = StubResults()
    stage, attempts = make(more=[Results(backend=backend)]), []

    @dramatiq.actor(store_results=True, max_retries=2, **SOON)
    def work() -> None:
        attempts.append(1)
        raise ValueError(f"attempt {len(attempts)}")

    message = work.send()
    stage.worker()
    with pytest.raises(ResultFailure, match="attempt 3"):
        message.get_result(backend=backend, block=True, timeout=10_000)
    assert len(attempts) == 3


def test_a_deferral_or_a_hand_back_stores_no_result(make: Make) -> None:
    """After a deferral no result is there; after the run that ends it is."""
    backend = StubResults()
    stage, runs = make(more=[Results(backend=backend)]), []

    @dramatiq.actor(store_results=True)
    def work() -> str:
        runs.append(1)
        if len(runs) == 1:
            raise reliq.Defer(delay=50)
        return f"after {len(runs)}"

    message = work.send()
    stage.worker()
    assert message.get_result(backend=backend, block=True, timeout=10_000) == "after 2"


def test_results_are_stored_for_what_succeeds(make: Make) -> None:
    """As in Dramatiq; a missing one is missing."""
    backend = StubResults()
    stage = make(more=[Results(backend=backend)])
    echo = dramatiq.actor(lambda x: x, actor_name=f"echo-{uuid4().hex[:6]}", store_results=True)
    stage.worker()
    value = {"a": [1, None, "é"]}
    assert echo.send(value).get_result(backend=backend, block=True, timeout=10_000) == value
