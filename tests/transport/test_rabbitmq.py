"""The RabbitMQ transport keeps the contract of every transport, on a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dramatiq
import pytest

from reliq.testing import RabbitmqServer
from tests.transport.contract import TransportContract
from tests.transport.rabbit_maker import RabbitMaker
from tests.transport.rig import Maker, Stage

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
        found = {queue["name"]: queue["type"] for queue in maker.server.queues(maker.vhost(stage.broker))}
        assert {name for name, kind in found.items() if kind == "classic"} == {"reliq.unrouted"}
        assert {"default", "default.dead", "reliq.delay.v1q.08", "reliq.unrouted.q"} <= found.keys()
