"""Promises about queues: what tests wait for and drop, how full they are, and a stop that costs nobody an attempt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import dramatiq
import pytest
from dramatiq.errors import QueueJoinTimeout

import reliq
from reliq.testing import eventually
from tests.transport.rig import SOON, Stage, as_handed_out, stop

Make = Callable[..., Stage]


class Queues:
    """`join`, `flush`, `flush_all`, `depth`, names, shutdown."""

    capabilities: ClassVar[frozenset[str]]

    def test_join_waits_for_retries_and_delays(self, make: Make) -> None:
        """10 that fail twice and 10 delayed: after join all 20 are done."""
        stage, done, failed = make(), [], []

        def work(number: int) -> None:
            if number < 10 and failed.count(number) < 2:
                failed.append(number)
                raise ValueError("not yet")
            done.append(number)

        actor = dramatiq.actor(work, actor_name="work", **SOON)
        stage.worker()
        for number in range(20):
            actor.send_with_options(args=(number,), delay=None if number < 10 else 100)
        stage.broker.join("default", timeout=20_000)
        assert sorted(done) == list(range(20))
        assert len(failed) == 20

    def test_join_gives_up_in_time(self, make: Make) -> None:
        """A message nobody runs: QueueJoinTimeout, and the message is still there."""
        stage = make()
        dramatiq.actor(lambda: None, actor_name="work").send()
        with pytest.raises(QueueJoinTimeout):
            stage.broker.join("default", timeout=100)
        assert stage.counts() == (1, 0, 0, 0)

    def test_flush_drops_ready_delayed_and_dead_of_one_queue_only(self, make: Make) -> None:
        """Queue a: 2 ready, 2 delayed, 1 dead; queue b: 1 ready. After flush(a): 0 and 1."""
        stage = filled(make())
        stage.broker.flush("a")
        assert (stage.counts("a"), stage.counts("b")) == ((0, 0, 0, 0), (1, 0, 0, 0))
        assert stage.letters("a") == []
        stage.broker.join("a", timeout=1_000)

    def test_flush_all_drops_everything(self, make: Make) -> None:
        """All queues at 0, no letter, and join returns at once."""
        stage = filled(make())
        stage.broker.flush_all()
        assert (stage.counts("a"), stage.counts("b")) == ((0, 0, 0, 0), (0, 0, 0, 0))
        for queue_name in ("a", "b"):
            stage.broker.join(queue_name, timeout=1_000)
            assert stage.transport.dead_groups(queue_name) == []

    def test_a_queue_that_was_flushed_goes_on_working(self, make: Make) -> None:
        """After flush_all a worker runs what comes."""
        stage, ran = make(), []
        actor = dramatiq.actor(ran.append, actor_name="work")
        stage.worker()
        actor.send_with_options(args=(1,), delay=60_000)
        stage.broker.flush_all()
        actor.send(2)
        actor.send_with_options(args=(3,), delay=20)
        stage.broker.join("default", timeout=10_000)
        assert ran == [2, 3]

    def test_depth_counts_each_state(self, make: Make) -> None:
        """ready, unacked, delayed, dead, and the age of the oldest ready one."""
        stage = filled(make())
        hand = stage.hand("a", prefetch=1)
        message = hand.take()
        stage.wait_for(1, 1, 2, 1, queue_name="a")
        depth = stage.transport.depth("a")
        # None = this broker cannot tell.
        assert depth.delayed in (2, None)
        assert 0 <= (depth.oldest_age_ms or 0) < 60_000
        hand.run(message)

    def test_queues_are_found_by_name(self, make: Make) -> None:
        """Declared queues, sorted, without the ones made beside them."""
        assert filled(make()).transport.queue_names() == ["a", "b"]

    @pytest.mark.parametrize("suffix", [".dead", ".discarded", ".delayed", ".DQ", ".XQ"])
    def test_names_of_queues_made_beside_others_are_refused(self, make: Make, suffix: str) -> None:
        """The error names the queue and the suffix and says to rename; nothing is declared."""
        stage = make()
        with pytest.raises(reliq.OptionError, match=rf"queue 'mail\{suffix}'.*rename the queue"):
            dramatiq.actor(lambda: None, actor_name="work", queue_name="mail" + suffix)
        assert "mail" + suffix not in stage.broker.get_declared_queues()
        assert "work" not in stage.broker.actors

    def test_giving_back_to_stock_is_possible_in_steps(self, make: Make) -> None:
        """`to_stock` yields how many each step moved; afterwards the delays still count."""
        stage = filled(make())
        moved = sum(stage.transport.to_stock("a"))
        assert moved in (0, 2)
        assert stage.counts("a")[2] == 2

    def test_a_stopping_worker_hands_back_what_it_had_not_begun(self, make: Make) -> None:
        """1 thread, 1 running, 7 prefetched or waiting: the running one ends, 7 are ready, in order, untouched."""
        stage, ran, gate = make(), [], threading.Event()

        def work(number: int) -> None:
            ran.append(number)
            gate.wait(10)

        actor = dramatiq.actor(work, actor_name="work", max_retries=0)
        for number in range(8):
            actor.send(number)
        bodies = stage.maker.ready(stage.broker, "default")
        worker = stage.worker(threads=1)
        eventually(lambda: len(ran) == 1 and (stage.counts()[1] or 0) >= 2, what="a prefetch")
        stopper = threading.Thread(target=stop, args=(worker,))
        stopper.start()
        eventually(lambda: not any(thread.running for thread in worker.workers), what="the stop to begin")
        gate.set()
        stopper.join(20)
        assert not stopper.is_alive()
        assert (len(ran), stage.counts()) == (1, (7, 0, 0, 0))
        left = [body for number, body in enumerate(bodies) if number != ran[0]]
        found = stage.maker.ready(stage.broker, "default")
        if "hands_back_in_order" in self.capabilities:
            assert as_handed_out(found) == as_handed_out(left)
        assert sorted(found) == sorted(left)

    def test_a_task_told_of_the_shutdown_goes_back_without_an_attempt_spent(self, make: Make) -> None:
        """notify_shutdown, max_retries=0: started twice, completed once, no letter, body unchanged."""
        stage, starts, done = make(), [], []

        def work(number: int) -> None:
            starts.append(number)
            give_up = time.monotonic() + (20 if len(starts) == 1 else 0)
            while time.monotonic() < give_up:
                pass
            done.append(number)

        dramatiq.actor(work, actor_name="work", max_retries=0, notify_shutdown=True).send(1)
        bodies = stage.maker.ready(stage.broker, "default")
        worker = stage.worker(threads=1)
        eventually(lambda: starts, what="the first start")
        stop(worker)
        assert (done, stage.counts()) == ([], (1, 0, 0, 0))
        assert stage.maker.ready(stage.broker, "default") == bodies
        stage.worker()
        stage.broker.join("default", timeout=10_000)
        assert (starts, done, stage.counts()) == ([1, 1], [1], (0, 0, 0, 0))

    def test_a_worker_started_after_another_stopped_does_the_rest(self, make: Make) -> None:
        """20 sent, some done by each of two workers in turn, 20 done once."""
        stage, ran = make(), []
        first_five = threading.Event()

        def work(number: int) -> None:
            ran.append(number)
            if len(ran) >= 5:
                first_five.set()

        actor = dramatiq.actor(work, actor_name="work")
        for number in range(20):
            actor.send_with_options(args=(number,), delay=None if number % 2 else 1)
        worker = stage.worker(threads=1)
        assert first_five.wait(10)
        stop(worker)
        stage.worker()
        stage.broker.join("default", timeout=10_000)
        assert sorted(ran) == list(range(20))

    def test_a_broker_full_of_plain_dramatiq_s_messages_is_served(self, make: Make) -> None:
        """What a stock broker object put there (ready and delayed) runs."""
        stage, ran = make(), []
        actor = dramatiq.actor(ran.append, actor_name="work")
        stock = stage.maker.stock_twin(stage.broker)
        stock.declare_queue("default")
        for number in range(5):
            stock.enqueue(actor.message(number))
            stock.enqueue(actor.message(10 + number), delay=50)
        stage.worker()
        eventually(lambda: len(ran) == 10, what="all")
        assert sorted(ran) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]


def filled(stage: Stage) -> Stage:
    """Queue a: 2 ready, 2 delayed, 1 dead; queue b: 1 ready."""

    def die(what: Any) -> None:
        if what == "die":
            raise reliq.Permanent("never")

    a = dramatiq.actor(die, actor_name="a", queue_name="a")
    b = dramatiq.actor(lambda: None, actor_name="b", queue_name="b")
    a.send("die")
    hand = stage.hand("a")
    hand.run()
    stage.wait_for(0, 0, 0, 1, queue_name="a")
    hand.leave()
    for _ in range(2):
        a.send("ready")
        a.send_with_options(args=("delayed",), delay=3_600_000)
    b.send()
    return stage
