"""The stub transport keeps the contract of every transport; and what users' tests know of StubBroker stays as it is."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
import pytest
from dramatiq.broker import MessageProxy
from dramatiq.errors import QueueNotFound

import reliq
from reliq.testing import eventually
from reliq.transport.stub.consumer import StubConsumer, StubDelivered
from reliq.transport.stub.letters import DeadLetterError
from tests.transport.contract import TransportContract
from tests.transport.promises.interrupts import LateInterrupt
from tests.transport.promises.settling import raiser
from tests.transport.rig import SOON, Maker, Stage, staged, stop
from tests.transport.stub_maker import StubMaker


class TestStubContract(TransportContract):
    """All of it, in memory."""

    capabilities = frozenset({"hands_back_in_order"})

    @pytest.fixture
    def maker(self) -> Maker:
        return StubMaker()


class TestStubAsUsersKnowIt:
    """What test suites of applications do with a StubBroker, with reliq on it."""

    @pytest.fixture
    def stage(self) -> Iterator[Stage]:
        with staged(StubMaker()) as make:
            yield make()

    def test_join_raises_what_the_actor_raised(self, stage: Stage) -> None:
        """The exception object itself, with its traceback, as fail_fast in Dramatiq."""
        error = ZeroDivisionError("mine")
        dramatiq.actor(raiser(error), actor_name="work", throws=ZeroDivisionError).send(1)
        stage.worker()
        with pytest.raises(ZeroDivisionError) as caught:
            stage.broker.join("default", timeout=10_000)
        assert caught.value is error
        assert caught.traceback[-1].name == "work"

    def test_join_without_fail_fast_leaves_the_letter_to_be_looked_at(self, stage: Stage) -> None:
        """By the argument, or by the broker's default; the proxy keeps exception, traceback and the letter."""
        sent = dramatiq.actor(raiser(ValueError("boo")), actor_name="work", max_retries=0).send(1)
        stage.worker()
        stage.broker.join("default", timeout=10_000, fail_fast=False)
        stage.broker.fail_fast_default = False
        stage.broker.join("default", timeout=10_000)
        (proxy,) = stage.broker.dead_letters
        assert stage.broker.dead_letters_by_queue["default"] == [proxy]
        assert (proxy.message_id, proxy.args, proxy.failed) == (sent.message_id, (1,), True)
        assert isinstance(proxy._exception, ValueError)
        assert "boo" in proxy.options["traceback"]
        assert proxy.letter.reason == "retries_exhausted"

    def test_join_of_a_queue_with_a_body_that_is_no_message_raises_what_is_wrong_with_it(self, stage: Stage) -> None:
        """Stock waits for ever; here the error says what lies in the queue."""
        dramatiq.actor(raiser(None), actor_name="work")
        stage.put_raw(b"garbage")
        stage.worker()
        with pytest.raises(DeadLetterError, match="malformed: the body cannot be decoded"):
            stage.broker.join("default", timeout=10_000)
        assert stage.broker.dead_letters[0].letter.body == b"garbage"

    @pytest.mark.parametrize("ask", ["join", "flush", "consume", "depth"])
    def test_a_queue_nobody_declared_is_not_found(self, stage: Stage, ask: str) -> None:
        """QueueNotFound, as stock; and from a send, before anything is told of it."""
        owner = stage.transport if ask == "depth" else stage.broker
        with pytest.raises(QueueNotFound, match="nowhere"):
            getattr(owner, ask)("nowhere")
        for delay in (None, 5):
            with pytest.raises(QueueNotFound, match="nowhere"):
                stage.broker.enqueue(dramatiq.Message("nowhere", "work", (), {}, {}), delay=delay)

    def test_queues_hold_encoded_bodies_and_count_what_is_not_done(self, stage: Stage) -> None:
        """`broker.queues[...]` as in Dramatiq: qsize, unfinished_tasks, bodies that decode."""
        actor = dramatiq.actor(raiser(None), actor_name="work")
        sent = actor.send(1)
        delayed = actor.send_with_options(args=(2,), delay=50)
        ready, delays = stage.broker.queues["default"], stage.broker.queues["default.DQ"]
        assert (ready.qsize(), ready.unfinished_tasks, delays.qsize(), delays.unfinished_tasks) == (1, 1, 1, 1)
        assert dramatiq.Message.decode(ready.queue[0]) == sent
        assert dramatiq.Message.decode(delays.queue[0]).message_id == delayed.message_id
        stage.worker()
        stage.broker.join("default", timeout=10_000)
        assert (ready.unfinished_tasks, delays.unfinished_tasks) == (0, 0)

    def test_whoever_joins_finds_what_a_message_became(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its retry and callback are stored while it still counts as unfinished: join cannot return between."""
        dramatiq.actor(lambda message, error: None, actor_name="told", queue_name="told")
        dramatiq.actor(raiser(ValueError("boo")), actor_name="work", on_failure="told").send(1)
        publish, unfinished = stage.transport.publish, []

        def seen(item: Any) -> None:
            unfinished.append(stage.broker.queues["default"].unfinished_tasks)
            publish(item)

        monkeypatch.setattr(stage.transport, "publish", seen)
        stage.hand().run()
        assert unfinished == [1, 1]
        assert stage.broker.queues["default"].unfinished_tasks == 0

    def test_what_a_worker_leaves_is_in_the_queues_again(self, stage: Stage) -> None:
        """A far delay lies in `default.DQ` after the worker stopped, and is run by the next one when due."""
        actor = dramatiq.actor(raiser(None), actor_name="work")
        actor.send_with_options(args=(1,), delay=3_600_000)
        worker = stage.worker()
        eventually(lambda: stage.broker.queues["default.DQ"].qsize() == 0, what="the worker to keep its time")
        stop(worker)
        delays = stage.broker.queues["default.DQ"]
        assert (delays.qsize(), delays.unfinished_tasks, stage.counts()) == (1, 1, (0, 0, 1, 0))

    def test_a_letter_put_there_by_hand_reads_as_one_of_others(self, stage: Stage) -> None:
        """Nulls where nothing is known, an id that stays."""
        proxy = MessageProxy(dramatiq.Message("default", "work", (1,), {}, {"retries": 3}))
        stage.broker.dead_letters_by_queue["default"].append(proxy)
        (letter,) = stage.letters()
        assert (letter["actor"], letter["args"], letter["reason"], letter["died_at"]) == ("work", [1], None, None)
        assert len(letter["id"]) == 16
        assert stage.letters() == [letter]
        found = stage.transport.find_letter(letter["id"])
        assert found is not None
        assert stage.transport.discard(found)
        assert stage.broker.dead_letters == []

    def test_references_to_the_letters_of_a_queue_stay_good(self, stage: Stage) -> None:
        """flush_all and discard empty the very list that tests hold."""
        held = stage.broker.dead_letters_by_queue["default"]
        dramatiq.actor(raiser(reliq.Permanent("no")), actor_name="work").send(1)
        stage.hand().run()
        assert len(held) == 1
        stage.broker.flush_all()
        assert held == []
        assert stage.broker.dead_letters_by_queue["default"] is held

    def test_messages_consumed_by_hand_respect_the_prefetch(self, stage: Stage) -> None:
        """prefetch=2: the third comes only when one is acked; no worker is needed."""
        actor = dramatiq.actor(raiser(None), actor_name="work")
        for number in range(3):
            actor.send(number)
        consumer = stage.broker.consume("default", prefetch=2, timeout=20)
        first, second = next(consumer), next(consumer)
        assert (first.args, second.args, next(consumer)) == ((0,), (1,), None)
        consumer.ack(first)
        assert next(consumer).args == (2,)
        assert stage.broker.queues["default"].unfinished_tasks == 2

    def test_no_thread_of_reliq_outlives_the_worker(self, stage: Stage) -> None:
        """Writer and consumers end with the worker; what is settled after that is settled all the same."""
        actor = dramatiq.actor(raiser(None), actor_name="work")
        actor.send(1)
        worker = stage.worker()
        stage.broker.join("default", timeout=10_000)
        stop(worker)
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("reliq")] == []
        actor.send(2)
        consumer = stage.broker.consume("default", timeout=20)
        consumer.ack(next(consumer))
        assert stage.counts() == (0, 0, 0, 0)

    def test_two_thousand_messages_from_many_threads_are_each_run_once(self, stage: Stage) -> None:
        """8 senders, 8 threads, 2,000 messages of which a quarter fails once: 2,000 done, queue empty."""
        done: Counter[int] = Counter()
        failed: set[int] = set()

        def work(number: int) -> None:
            if number % 4 == 0 and number not in failed:
                failed.add(number)
                raise ValueError("once")
            done[number] += 1

        actor = dramatiq.actor(work, actor_name="work", **SOON)
        logging.getLogger("dramatiq").setLevel(logging.CRITICAL)
        try:
            stage.worker(threads=8)
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(actor.send, range(2_000)))
            stage.broker.join("default", timeout=60_000)
        finally:
            logging.getLogger("dramatiq").setLevel(logging.NOTSET)
        assert done == Counter(range(2_000))
        assert stage.counts() == (0, 0, 0, 0)


def test_a_thread_that_an_interrupt_ends_is_replaced() -> None:
    """An interrupt in the one line of Dramatiq's own that nothing guards: the run is settled, and 2 threads work."""

    strikes: list[int] = []

    class Struck(StubDelivered):
        """Is struck the moment its failure is noted."""

        def stuff_exception(self, exception: BaseException) -> None:
            if not strikes:
                strikes.append(1)
                raise LateInterrupt("between run and hooks")
            super().stuff_exception(exception)

    with staged(StubMaker()) as make:
        stage, ran = make(), []

        def work(number: int) -> None:
            ran.append(number)
            if number == 1:
                raise ValueError("boo")

        actor = dramatiq.actor(work, actor_name="work", max_retries=0)
        worker = stage.worker(threads=2)
        before = set(worker.workers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StubConsumer, "delivered_class", Struck)
            patch.setattr(threading, "excepthook", lambda args: None)
            actor.send(1)
            stage.wait_for(0, 0, 0, 1)
            eventually(lambda: not all(thread.is_alive() for thread in before), what="the end of one")
        actor.send(2)
        stage.broker.join("default", fail_fast=False, timeout=10_000)
        assert (ran, [thread.is_alive() for thread in worker.workers]) == ([1, 2], [True, True])
