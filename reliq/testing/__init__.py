"""Support for testing what happens when brokers, networks and workers fail: real servers, injected faults,
counts.

Callers: reliq's own tests and the test suites of applications that use reliq.
Guarantee: every name in `__all__` is public and loaded at first use, so that importing this package loads
neither a broker's client library nor pytest.
Not here: pytest fixtures (`reliq.testing.plugin`, switched on with `pytest_plugins =
["reliq.testing.plugin"]`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliq.testing.census import Census, Place, take_census
    from reliq.testing.clock import FakeClock
    from reliq.testing.proxy import FaultProxy
    from reliq.testing.proxy_rules import Rule
    from reliq.testing.rabbitmq import RabbitmqServer
    from reliq.testing.rabbitmq_api import RabbitmqApi
    from reliq.testing.rabbitmq_binary import find_rabbitmq, install_rabbitmq
    from reliq.testing.redis_binary import ServerMissing, find_redis, install_redis
    from reliq.testing.runlog import Entry, RunLog
    from reliq.testing.servers import RedisServer, ServerFailed
    from reliq.testing.tallying import Tally, tally
    from reliq.testing.waiting import eventually
    from reliq.testing.workers import WorkerGroup

# name -> module. Invariant: the same names as in `__all__` and in the block above (held by a test).
_HOME = {
    "Census": "census",
    "Entry": "runlog",
    "FakeClock": "clock",
    "FaultProxy": "proxy",
    "Place": "census",
    "RabbitmqApi": "rabbitmq_api",
    "RabbitmqServer": "rabbitmq",
    "RedisServer": "servers",
    "Rule": "proxy_rules",
    "RunLog": "runlog",
    "ServerFailed": "servers",
    "ServerMissing": "redis_binary",
    "Tally": "tallying",
    "WorkerGroup": "workers",
    "eventually": "waiting",
    "find_rabbitmq": "rabbitmq_binary",
    "find_redis": "redis_binary",
    "install_rabbitmq": "rabbitmq_binary",
    "install_redis": "redis_binary",
    "take_census": "census",
    "tally": "tallying",
}

__all__ = [
    "Census",
    "Entry",
    "FakeClock",
    "FaultProxy",
    "Place",
    "RabbitmqApi",
    "RabbitmqServer",
    "RedisServer",
    "Rule",
    "RunLog",
    "ServerFailed",
    "ServerMissing",
    "Tally",
    "WorkerGroup",
    "eventually",
    "find_rabbitmq",
    "find_redis",
    "install_rabbitmq",
    "install_redis",
    "take_census",
    "tally",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
