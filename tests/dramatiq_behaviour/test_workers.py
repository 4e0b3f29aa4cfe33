"""Priorities, async actors, the current message, and who is told of letters, under a worker with reliq."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import AsyncIO, CurrentMessage
from dramatiq.middleware import Retries as StockRetries

import reliq
from reliq.testing import eventually
from reliq.wiring import transport_of
from tests.transport.rig import SOON, Stage

Make = Callable[..., Stage]


def test_a_worker_runs_the_more_urgent_first(make: Make) -> None:
    """With one thread held up, what is prefetched runs by priority (lower first), then in order."""
    stage, ran, gate, prefetched = make(), [], threading.Event(), threading.Event()

    def hold() -> None:
        prefetched.wait(10)
        gate.wait(10)

    first = dramatiq.actor(hold, actor_name="hold", queue_name="hold")
    low = dramatiq.actor(lambda number: ran.append(("low", number)), actor_name="low", priority=100)
    high = dramatiq.actor(lambda number: ran.append(("high", number)), actor_name="high", priority=1)
    first.send()
    worker = stage.worker(threads=1)
    eventually(lambda: stage.counts("hold")[1] == 1, what="the holder")
    low.send(1)
    high.send(1)
    eventually(lambda: worker.work_queue.qsize() == 2, what="the prefetch")
    prefetched.set()
    gate.set()
    eventually(lambda: len(ran) == 2, what="both")
    assert ran == [("high", 1), ("low", 1)]


def test_async_actors_are_retried_and_die_like_others(make: Make) -> None:
    """20 coroutines, 5 of which fail once and 2 for ever: 18 done, 2 letters with the coroutine's traceback."""
    stage, done, failed = make(more=[AsyncIO()]), [], set()

    @dramatiq.actor(max_retries=2, **SOON)
    async def work(number: int) -> None:
        await asyncio.sleep(0)
        if number < 2 or (number < 7 and number not in failed):
            failed.add(number)
            raise ValueError("async")
        done.append(number)

    for number in range(20):
        work.send(number)
    stage.worker(threads=4)
    stage.wait_for(0, 0, 0, 2)
    eventually(lambda: sorted(done) == list(range(2, 20)), what="the others")
    for letter in stage.letters():
        assert (letter["reason"], letter["attempts"]) == ("retries_exhausted", 3)
        assert "await asyncio.sleep" not in letter["traceback"]
        assert 'raise ValueError("async")' in letter["traceback"]


def test_the_current_message_is_known_while_it_runs(make: Make) -> None:
    """CurrentMessage gives id and options, on a retry too, and nothing afterwards."""
    stage, seen = make(more=[CurrentMessage()]), []

    @dramatiq.actor(**SOON)
    def work() -> None:
        message = CurrentMessage.get_current_message()
        seen.append((message.message_id, message.options.get("retries")))
        if len(seen) == 1:
            raise ValueError("once")

    sent = work.send()
    stage.worker()
    stage.broker.join("default", timeout=10_000)
    assert seen == [(sent.message_id, None), (sent.message_id, 1)]
    assert CurrentMessage.get_current_message() is None


class TestOnDeadLetter:
    """Who is told of a letter."""

    @pytest.mark.parametrize("where", ["part", "actor", "message"])
    @pytest.mark.parametrize("how", ["name", "actor"])
    def test_an_actor_is_sent_the_letter(self, make_stub: Make, where: str, how: str) -> None:
        """By name or as an actor; the message's option before the actor's before the part's."""
        got: list[tuple[str, Any]] = []
        stage = make_stub(reliq.DeadLetters(on_dead_letter="by_part"))
        for name in ("by_part", "by_actor", "by_message"):
            dramatiq.actor(lambda letter, name=name: got.append((name, letter)), actor_name=name, queue_name="told")

        def work() -> None:
            raise reliq.Permanent("no")

        by_actor = stage.broker.get_actor("by_actor") if how == "actor" else "by_actor"
        options = {"on_dead_letter": by_actor} if where in ("actor", "message") else {}
        actor = dramatiq.actor(work, actor_name="work", **options)
        actor.send_with_options(**({"on_dead_letter": "by_message"} if where == "message" else {}))
        stage.hand().run()
        stage.hand("told").run()
        ((name, letter),) = got
        assert name == f"by_{where}"
        assert (letter["actor"], letter["reason"]) == ("work", "permanent")
        assert {"args", "kwargs", "traceback"} & set(letter) == set()

    def test_a_callable_is_run_after_the_letter_is_stored(self, make: Make) -> None:
        """It sees the letter in the broker; what it raises changes nothing."""
        seen: list[Any] = []

        def told(letter: dict[str, Any]) -> None:
            seen.append((letter["id"], [stored["id"] for stored in stage.letters()]))
            raise RuntimeError("the callable is broken")

        stage = make(reliq.DeadLetters(on_dead_letter=told))

        def work() -> None:
            raise reliq.Permanent("no")

        dramatiq.actor(work).send()
        stage.hand().run()
        ((letter_id, stored),) = seen
        assert stored == [letter_id]
        assert stage.counts() == (0, 0, 0, 1)

    def test_an_actor_that_hears_of_its_own_death_does_not_hear_for_ever(self, make: Make) -> None:
        """on_dead_letter that dies itself: two letters, not more."""
        stage = make(reliq.DeadLetters(on_dead_letter="told"))

        def die(*args: Any) -> None:
            raise reliq.Permanent("no")

        dramatiq.actor(die, actor_name="told")
        dramatiq.actor(die, actor_name="work").send()
        stage.worker()
        stage.wait_for(0, 0, 0, 2)

    def test_a_name_nobody_declares_is_logged(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        """The letter is kept."""
        stage = make(reliq.DeadLetters(on_dead_letter="nobody"))

        def work() -> None:
            raise reliq.Permanent("no")

        dramatiq.actor(work).send()
        stage.hand().run()
        assert stage.counts() == (0, 0, 0, 1)
        assert any("'nobody'" in record.getMessage() for record in caplog.records)

    @pytest.mark.parametrize("where", ["actor", "message"])
    def test_a_message_whose_death_nobody_wants_to_read_about_is_dropped(self, make: Make, where: str) -> None:
        """dead_letter=False: no letter, nobody told; a message may ask for one all the same."""
        stage = make(reliq.DeadLetters(on_dead_letter="told"))
        dramatiq.actor(lambda letter: None, actor_name="told", queue_name="told")

        def work() -> None:
            raise reliq.Permanent("no")

        actor = dramatiq.actor(work, **({"dead_letter": False} if where == "actor" else {}))
        actor.send_with_options(**({"dead_letter": False} if where == "message" else {}))
        hand = stage.hand()
        hand.run()
        assert (stage.counts(), stage.counts("told")) == ((0, 0, 0, 0), (0, 0, 0, 0))
        actor.send_with_options(dead_letter=True)
        hand.run()
        assert (stage.counts(), stage.counts("told")) == ((0, 0, 0, 1), (1, 0, 0, 0))


class TestInstalling:
    """Ways to put reliq on a broker."""

    def test_install_as_a_middleware_of_a_settings_list(self, both: Any) -> None:
        """reliq.Install(...) among the middlewares: attached at the first actor, its options known."""
        broker = both.build(both.broker_class, [StockRetries(), reliq.Install(reliq.Retries(max_retries=1, **SOON))])
        dramatiq.set_broker(broker)
        assert transport_of(broker) is None
        with pytest.raises(reliq.OptionError, match="actor 'bad'"):
            dramatiq.actor(lambda: None, actor_name="bad", jitter="lots")
        dramatiq.actor(_failing, actor_name="work", jitter="none")
        self._dies_after(broker, runs=2)

    def test_a_lone_middleware_attaches_by_itself(self, both: Any) -> None:
        """broker.add_middleware(reliq.Retries()) on a stock broker: stock's goes, letters are ours."""
        from dramatiq.middleware import default_middleware

        broker = both.build(both.broker_class, [cls() for cls in default_middleware])
        broker.add_middleware(reliq.Retries(max_retries=1, **SOON))
        dramatiq.set_broker(broker)
        dramatiq.actor(_failing, actor_name="work")
        assert sum(isinstance(m, StockRetries) for m in broker.middleware) == 1
        self._dies_after(broker, runs=2)

    def test_a_lone_middleware_attaches_to_a_broker_that_has_actors(self, both: Any) -> None:
        """Added afterwards."""
        broker = both.build(both.broker_class, [StockRetries()])
        dramatiq.set_broker(broker)
        dramatiq.actor(_failing, actor_name="work")
        broker.add_middleware(reliq.Retries(max_retries=1, **SOON))
        self._dies_after(broker, runs=2)

    def _dies_after(self, broker: Any, runs: int) -> None:
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
        worker.start()
        try:
            broker.get_actor("work").send()
            transport = transport_of(broker)
            assert transport is not None
            eventually(lambda: list(transport.dead_letters("default")), what="the letter")
            (letter,) = transport.dead_letters("default")
            assert (letter.reason, letter.as_dict()["attempts"]) == ("retries_exhausted", runs)
        finally:
            worker.stop()

    def test_without_a_part_it_is_not_there(self, make_stub: Make) -> None:
        """Without(DeadLetters): no such middleware; letters are kept all the same, nobody is told."""
        stage = make_stub(reliq.Without(reliq.DeadLetters))
        assert [m for m in stage.broker.middleware if isinstance(m, reliq.DeadLetters)] == []
        dramatiq.actor(_failing, actor_name="work", max_retries=0).send()
        stage.hand().run()
        assert stage.counts() == (0, 0, 0, 1)

    def test_records_of_a_mixed_fleet_count_once(self, make: Make) -> None:
        """Stock's counts in the options are believed, and written on: 3 stock retries and max_retries=4 leave one."""
        stage = make()
        dramatiq.actor(_failing, actor_name="work", max_retries=4, **SOON)
        stage.broker.enqueue(dramatiq.Message("default", "work", (), {}, {"retries": 3, "traceback": "old"}))
        stage.worker()
        stage.wait_for(0, 0, 0, 1)
        (letter,) = stage.transport.dead_letters("default")
        assert json.loads(letter.body)["options"]["retries"] == 5
        assert letter.as_dict()["attempts"] == 5


def _failing() -> None:
    raise ValueError("always")
