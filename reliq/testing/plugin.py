"""Pytest fixtures for real servers, proxies and workers.

Callers: a test suite's `conftest.py`: `pytest_plugins = ["reliq.testing.plugin"]`.
Guarantee: what a fixture started is gone after the test; a missing server program is a failure that says what
to install, never a skip; a failed test shows the end of its workers' logs.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from reliq.testing.proxy import FaultProxy
from reliq.testing.rabbitmq import RabbitmqServer
from reliq.testing.rabbitmq_api import RabbitmqApi
from reliq.testing.rabbitmq_binary import install_rabbitmq
from reliq.testing.rabbitmq_shared import Landlord, ask
from reliq.testing.redis_binary import ServerMissing, install_redis
from reliq.testing.runlog import RunLog
from reliq.testing.workers import WorkerGroup

if TYPE_CHECKING:
    from reliq.testing.servers import RedisServer

ENV_RABBITMQ_URL = "RELIQ_TEST_RABBITMQ_URL"
ENV_RABBITMQ_MANAGEMENT_URL = "RELIQ_TEST_RABBITMQ_MANAGEMENT_URL"
TAIL_LINES = 60

_groups: pytest.StashKey[list[WorkerGroup]] = pytest.StashKey()
_landlord: pytest.StashKey[Landlord] = pytest.StashKey()
_LANDLORD = "reliq_rabbitmq_landlord"


class MakeProxy(Protocol):
    """What the fixture `fault_proxy` gives: call it with a server, or with a port on 127.0.0.1."""

    def __call__(self, upstream: RedisServer | RabbitmqApi | int) -> FaultProxy: ...


class MakeWorkers(Protocol):
    """What the fixture `worker_group` gives: `WorkerGroup`'s arguments; `ready=False` does not start it."""

    def __call__(self, module: str, *, ready: bool = True, **options: Any) -> WorkerGroup: ...


@pytest.fixture(scope="session")
def redis_binary() -> str:
    """Path of the server program under test; installed when this is root on Debian and there is none."""
    try:
        return install_redis()
    except ServerMissing as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture
def redis_server(redis_binary: str) -> Iterator[RedisServer]:
    """A Redis of this test's own, which it may kill, freeze and restart."""
    from reliq.testing.servers import RedisServer  # not above: a RabbitMQ user may have no redis

    with RedisServer(binary=redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def shared_redis(redis_binary: str) -> Iterator[RedisServer]:
    """A Redis for all tests of this process: leave it running, and keep to the fixture `namespace`."""
    from reliq.testing.servers import RedisServer

    with RedisServer(binary=redis_binary) as server:
        yield server


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses, for `RedisBroker(namespace=...)` on `shared_redis`."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def rabbitmq_binary() -> str:
    """Path of the server program under test; installed when this is root on Debian and there is none."""
    try:
        return install_rabbitmq()
    except ServerMissing as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture
def rabbitmq_server(rabbitmq_binary: str) -> Iterator[RabbitmqServer]:
    """A RabbitMQ node of this test's own, which it may kill, freeze, alarm and restart. Takes 6 s to boot."""
    with RabbitmqServer(binary=rabbitmq_binary) as server:
        yield server


@pytest.fixture(scope="session")
def shared_rabbitmq(request: pytest.FixtureRequest) -> Iterator[RabbitmqApi]:
    """A RabbitMQ for all tests of the run: leave it running, and keep to the fixture `vhost`.

    A `RabbitmqNode`, one for all processes of pytest-xdist, or the running server that RELIQ_TEST_RABBITMQ_URL
    names.
    """
    url = os.environ.get(ENV_RABBITMQ_URL)
    landlord = getattr(request.config, "workerinput", {}).get(_LANDLORD)
    if url:
        yield RabbitmqApi(url, os.environ.get(ENV_RABBITMQ_MANAGEMENT_URL))
    elif landlord is not None:
        try:
            yield ask(landlord)
        except RuntimeError as refused:
            pytest.fail(str(refused), pytrace=False)
    else:
        with RabbitmqServer(binary=request.getfixturevalue("rabbitmq_binary")) as server:
            yield server


@pytest.fixture
def vhost(shared_rabbitmq: RabbitmqApi) -> Iterator[str]:
    """A virtual host on `shared_rabbitmq` that no other test uses, deleted with its queues after the test."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    shared_rabbitmq.add_vhost(name)
    yield name
    shared_rabbitmq.delete_vhost(name)


@pytest.fixture
def fault_proxy() -> Iterator[MakeProxy]:
    """Makes started proxies, closed after the test. An error of one of their callbacks fails the test."""
    with ExitStack() as stack:

        def make(upstream: RedisServer | RabbitmqApi | int) -> FaultProxy:
            port = upstream if isinstance(upstream, int) else upstream.port
            host = upstream.host if isinstance(upstream, RabbitmqApi) else "127.0.0.1"
            return stack.enter_context(FaultProxy(port, upstream_host=host))

        yield make


@pytest.fixture
def worker_group(request: pytest.FixtureRequest) -> Iterator[MakeWorkers]:
    """Makes worker groups, ready for action unless `ready=False`, and killed after the test."""
    groups = request.node.stash.setdefault(_groups, [])
    with ExitStack() as stack:

        def make(module: str, *, ready: bool = True, **options: Any) -> WorkerGroup:
            group = WorkerGroup(module, **options)
            stack.callback(group.close)
            groups.append(group)
            return group.start().wait_ready() if ready else group

        yield make


@pytest.fixture
def run_log(tmp_path: Path) -> Iterator[RunLog]:
    """A run log in the test's folder; give `str(run_log.path)` to the workers."""
    log = RunLog(tmp_path / "run.jsonl")
    yield log
    log.close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist whom to ask for the run's RabbitMQ."""
    stash = node.config.stash
    if _landlord not in stash:
        stash[_landlord] = Landlord()
    node.workerinput[_LANDLORD] = stash[_landlord].address


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run's RabbitMQ."""
    landlord = config.stash.get(_landlord, None)
    if landlord is not None:
        landlord.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the workers' logs with a failure; the logs themselves go away with the fixture."""
    report = yield
    if report.failed and report.when in ("setup", "call"):
        for group in item.stash.get(_groups, []):
            tail = "\n".join(group.log().splitlines()[-TAIL_LINES:])
            report.sections.append((f"log of {group!r}", tail))
    return report
