"""The RabbitMQ transport keeps the contract of every transport, on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reliq.testing import RabbitmqServer
from tests.transport.contract import TransportContract
from tests.transport.rabbit_maker import RabbitMaker
from tests.transport.rig import Maker


class TestRabbitContract(TransportContract):
    """All of it, on RabbitMQ."""

    capabilities = frozenset({"can_be_away", "outlives_kill"})
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

    stride = 1

    @pytest.fixture
    def maker(self, shared_rabbitmq: RabbitmqServer) -> Iterator[Maker]:
        maker = RabbitMaker(shared_rabbitmq, "quorum")
        yield maker
        maker.close()
