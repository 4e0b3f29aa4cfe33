"""Brokers for the tests of Dramatiq's own behaviour: in memory, and on Redis where it could differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from reliq.testing import RedisServer
from tests.transport.redis_maker import RedisMaker
from tests.transport.rig import Maker, Stage, staged
from tests.transport.stub_maker import StubMaker


@pytest.fixture(params=["stub", "redis"])
def both(request: pytest.FixtureRequest) -> Maker:
    """Each kind of broker in turn."""
    if request.param == "stub":
        return StubMaker()
    server: RedisServer = request.getfixturevalue("shared_redis")
    return RedisMaker(server)


@pytest.fixture
def make(both: Maker) -> Iterator[Callable[..., Stage]]:
    """Makes stages on each kind of broker."""
    with staged(both) as make:
        yield make


@pytest.fixture
def make_stub() -> Iterator[Callable[..., Stage]]:
    """Makes stages in memory."""
    with staged(StubMaker()) as make:
        yield make


@pytest.fixture
def make_redis(shared_redis: RedisServer) -> Iterator[Callable[..., Stage]]:
    """Makes stages on Redis."""
    with staged(RedisMaker(shared_redis)) as make:
        yield make
