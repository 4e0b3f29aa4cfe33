"""A stage on each kind of broker, for what is sent many at a time."""

from collections.abc import Callable, Iterator

import pytest

from tests.transport.rabbit_maker import RabbitMaker
from tests.transport.redis_maker import RedisMaker
from tests.transport.rig import Maker, Stage, staged
from tests.transport.stub_maker import StubMaker

Make = Callable[..., Stage]


@pytest.fixture(params=["stub", "redis", "rabbitmq"])
def maker(request: pytest.FixtureRequest) -> Iterator[Maker]:
    """Each kind of broker in turn."""
    if request.param == "stub":
        yield StubMaker()
    elif request.param == "redis":
        yield RedisMaker(request.getfixturevalue("shared_redis"))
    else:
        maker = RabbitMaker(request.getfixturevalue("shared_rabbitmq"))
        yield maker
        maker.close()


@pytest.fixture
def make(maker: Maker) -> Iterator[Make]:
    """Makes stages on each kind of broker."""
    with staged(maker) as make:
        yield make
