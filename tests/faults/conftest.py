"""What the fault tests share: a stage with a server, a proxy and workers, and a list of the figures they measured."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from reliq.testing import RabbitmqApi, RabbitmqServer, RedisServer, RunLog
from reliq.testing.plugin import MakeProxy, MakeWorkers
from tests.faults.rabbit_applications import Application
from tests.faults.rabbit_stage import RabbitStage
from tests.faults.stage import Stage

FIGURES = Path(__file__).parents[2] / ".cache/figures.txt"


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Prints a measured line and appends it, with the test's id, to `.cache/figures.txt`: docs/proofs.md cites it."""

    def note(line: object) -> None:
        FIGURES.parent.mkdir(exist_ok=True)
        text = f"{request.node.nodeid}: {line}\n"
        print(text, end="")
        fd = os.open(FIGURES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)  # one write: tests run side by side
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    return note


@pytest.fixture
def stage(
    redis_server: RedisServer, fault_proxy: MakeProxy, worker_group: MakeWorkers, run_log: RunLog
) -> Iterator[Stage]:
    """A server of this test's own, a proxy before it, and the means to send, run and count."""
    with Stage(redis_server, fault_proxy(redis_server), worker_group, run_log) as stage:
        yield stage


@pytest.fixture
def rabbit_stage(
    shared_rabbitmq: RabbitmqApi, vhost: str, fault_proxy: MakeProxy, worker_group: MakeWorkers, run_log: RunLog
) -> Iterator[RabbitStage]:
    """A vhost of this test's own on the run's RabbitMQ, a proxy before it, and the means to send, run and count. The
    node must stay up: other tests use it at the same time."""
    with RabbitStage(shared_rabbitmq, vhost, fault_proxy(shared_rabbitmq), worker_group, run_log) as stage:
        yield stage


@pytest.fixture(scope="session")
def _mortal_node(rabbitmq_binary: str) -> Iterator[RabbitmqServer]:
    with RabbitmqServer(binary=rabbitmq_binary) as server:
        yield server


@pytest.fixture
def mortal_rabbitmq(_mortal_node: RabbitmqServer) -> Iterator[RabbitmqServer]:
    """A RabbitMQ that this test may kill, freeze and alarm. It boots once for all tests of a process (6 s and more); it
    is brought back after each, empty."""
    yield _mortal_node
    _mortal_node.resume()
    _mortal_node.start()
    if _mortal_node.in_alarm():
        _mortal_node.clear_memory_alarm()
    for vhost in _mortal_node.api("GET", "vhosts"):
        if vhost["name"] != "/":
            _mortal_node.delete_vhost(vhost["name"])


@pytest.fixture
def mortal_rabbit_stage(
    mortal_rabbitmq: RabbitmqServer, fault_proxy: MakeProxy, worker_group: MakeWorkers, run_log: RunLog
) -> Iterator[RabbitStage]:
    """The same on a node that the test may kill, freeze and alarm: `stage.node`."""
    vhost = f"test-{uuid.uuid4().hex[:12]}"
    mortal_rabbitmq.add_vhost(vhost)
    with RabbitStage(mortal_rabbitmq, vhost, fault_proxy(mortal_rabbitmq), worker_group, run_log) as stage:
        yield stage


@pytest.fixture
def application(shared_rabbitmq: RabbitmqApi, vhost: str) -> Iterator[Callable[..., Application]]:
    """Makes applications in the test's vhost, closed after it."""
    made: list[Application] = []

    def make(
        mode: str = "reliq",
        queues: tuple[str, ...] | list[str] = ("default",),
        *,
        cls: type[RabbitmqBroker] = RabbitmqBroker,
        user: str | None = None,
        where: str = vhost,
        **options: Any,
    ) -> Application:
        made.append(Application(shared_rabbitmq.url(where, user=user), mode, list(queues), cls, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
