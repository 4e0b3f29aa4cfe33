"""The RabbitMQ transport keeps the contract of every transport, on a real server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import dramatiq
import pytest

import reliq
from reliq.testing import RabbitmqServer, eventually
from reliq.transport.rabbitmq.control import Step
from reliq.transport.rabbitmq.errors import Refusal
from tests.transport.contract import TransportContract
from tests.transport.rabbit_maker import RabbitMaker
from tests.transport.rig import SOON, Maker, Stage, staged

Make = Callable[..., Stage]


class TestRabbitContract(TransportContract):
    """All of it, on RabbitMQ."""

    capabilities = frozenset({"can_be_away", "hands_back_in_order", "outlives_kill"})
    stride = 8
    # A settle is two steps: what it stores, and the ack.
    kill_points = (
        *((step, 1, when) for step in ("fetch", "settle", "store", "ack", "publish") for when in ("before", "after")),
        ("requeue", 1, "after"),
    )
    more_kill_points = (
        *((step, 2, when) for step in ("fetch", "settle", "store", "ack") for when in ("before", "after")),
        ("requeue", 1, "before"),
        ("store", 4, "after"),
    )

    @pytest.fixture
    def maker(self, shared_rabbitmq: RabbitmqServer) -> Iterator[Maker]:
        maker = RabbitMaker(shared_rabbitmq)
        yield maker
        maker.close()


@pytest.mark.full
class TestRabbitQuorumContract(TestRabbitContract):
    """The same where every queue is a quorum queue, by the vhost's default; interrupts at every single line."""

    # A quorum queue hands out first what came back, in the order in which it came back.
    capabilities = frozenset({"can_be_away", "outlives_kill"})
    stride = 1

    @pytest.fixture
    def maker(self, shared_rabbitmq: RabbitmqServer) -> Iterator[Maker]:
        maker = RabbitMaker(shared_rabbitmq, "quorum")
        yield maker
        maker.close()

    def test_what_is_declared_is_of_the_queues_type(self, make: Make, maker: RabbitMaker) -> None:
        """Ladder, dead letters and their catcher: all quorum, one classic catcher of the exchange for both."""
        stage = make()
        actor = dramatiq.actor(lambda: None, actor_name="work")
        actor.send_with_options(delay=60_000)
        stage.worker()
        stage.wait_for(0, 0, 1, 0)

        def declared() -> dict[str, str]:
            return {queue["name"]: queue["type"] for queue in maker.server.queues(maker.vhost(stage.broker))}

        eventually(lambda: "default.dead" in declared(), 20, what="the worker to declare what it needs")
        found = declared()
        assert {name for name, kind in found.items() if kind == "classic"} == {"reliq.unrouted"}
        assert {"default", "default.dead", "reliq.delay.v1q.08", "reliq.unrouted.q"} <= found.keys()


class TestWhatIsDeleted:
    """Queues and exchanges that somebody deletes under a running worker."""

    @pytest.fixture
    def stage(self, shared_rabbitmq: RabbitmqServer) -> Iterator[Stage]:
        maker = RabbitMaker(shared_rabbitmq)
        with staged(maker) as make:
            yield make()
        maker.close()

    def test_a_run_that_fails_after_its_queue_was_deleted_is_stored_all_the_same(self, stage: Stage) -> None:
        """4 run when the queue goes: 4 retried in the queue that is declared again, 4 done."""
        gate, done = threading.Event(), []

        def work(number: int) -> None:
            if not gate.is_set():
                gate.wait(20)
                raise ValueError("not yet")
            done.append(number)

        actor = dramatiq.actor(work, actor_name="work", **SOON)
        stage.worker(threads=4)
        for number in range(4):
            actor.send(number)
        stage.wait_for(0, 4, 0, 0)
        (subscription,) = stage.transport.intake.of("default")
        with stage.maker.channel(stage.broker) as channel:
            channel.queue_delete("default")
        eventually(lambda: subscription.queue_gone, what="the end of the consumer")
        gate.set()
        eventually(lambda: sorted(done) == [0, 1, 2, 3], 20, what="all four")

    def test_exchanges_that_are_deleted_are_declared_again(self, stage: Stage) -> None:
        """Letters and retries find their way some seconds later."""

        def work(number: int) -> None:
            raise reliq.Permanent("never")

        actor = dramatiq.actor(work, actor_name="work")
        stage.worker()
        actor.send(1)
        stage.wait_for(0, 0, 0, 1)
        names = ["reliq.dlx", "reliq.unrouted", "reliq.delay.v1q.out"]
        with stage.maker.channel(stage.broker) as channel:
            for name in names:
                channel.exchange_delete(name)
        asked = [Step("exchange_declare", {"exchange": name, "passive": True}) for name in names]
        eventually(lambda: stage.transport.ask(asked), 20, ignore=(Refusal,), what="the exchanges")
        stage.wait_for(0, 0, 0, 1)
        actor.send_with_options(args=(2,), delay=300)
        stage.wait_for(0, 0, 0, 2, timeout=20)
