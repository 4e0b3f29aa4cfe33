"""The Lua scripts, and the one way to call them.

Each `.lua` file opens with its KEYS, ARGV and result. `store.lua` is prepended to all: it holds what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import redis

from .errors import REDIS_ERRORS, closed

NAMES = (
    "ack",
    "beat",
    "expire",
    "fetch",
    "letters",
    "others",
    "promote",
    "publish",
    "reap",
    "reclaim",
    "relocate",
    "requeue",
    "settle",
    "to_stock",
)


@cache
def source(name: str) -> str:
    """The text of a script as it is sent to the server."""
    folder = resources.files(__package__)
    shared = (folder / "store.lua").read_text() if name in _STORING else ""
    return shared + (folder / f"{name}.lua").read_text()


_STORING = frozenset({"publish", "settle", "letters", "expire", "to_stock"})


class Scripts:
    """The scripts of one namespace over one client."""

    def __init__(self, client: Any, namespace: str) -> None:
        self.client = client
        self._keys = [namespace]
        self._scripts = {name: client.register_script(source(name)) for name in NAMES}

    def raw(self, name: str, args: Sequence[Any]) -> Any:
        """Run a script; the client's own errors come through."""
        return self._scripts[name](keys=self._keys, args=args)

    def run(self, name: str, args: Sequence[Any], doing: str) -> Any:
        """Run a script; raises `ConnectionClosed` for whatever the client raises."""
        try:
            return self.raw(name, args)
        except REDIS_ERRORS as exc:
            raise closed(exc, doing) from exc


def private_client(client: Any, *, timeout_s: float) -> Any:
    """A client to the same server with a pool, a timeout and no retries of its own.

    The application's client may try a command ten times (the default of `redis.Redis(host=)`), which hides an outage
    and doubles what it repeats. A client without a pool (a cluster's) is used as it is.
    """
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        return client
    options = {key: value for key, value in pool.connection_kwargs.items() if not key.startswith(_OF_ITS_POOL)}
    options.update(
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        decode_responses=False,
        encoding_errors="surrogateescape",  # ids that foreign writers chose come back as they went
        retry=None,
        retry_on_error=[],
        retry_on_timeout=False,
    )
    if issubclass(pool.connection_class, redis.UnixDomainSocketConnection):
        options.pop("socket_connect_timeout")
    own: redis.ConnectionPool
    if isinstance(pool, redis.sentinel.SentinelConnectionPool):
        own = redis.sentinel.SentinelConnectionPool(
            pool.service_name, pool.sentinel_manager, is_master=pool.is_master, **options
        )
    else:
        own = redis.ConnectionPool(connection_class=pool.connection_class, **options)
    return redis.Redis(connection_pool=own)


#: Keyword arguments that a pool makes for its own connections.
_OF_ITS_POOL = ("maint_notifications", "maintenance", "orig_", "oss_", "himport", "event_dispatcher", "connection_pool")
