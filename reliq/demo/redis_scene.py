"""The demo on Redis: a worker is killed, then every connection of the workers is cut for two seconds.

Caller: `scene.set_scene`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import redis

from reliq.testing import FaultProxy, take_census

from .brokers import QUEUE, Name, namespace_of
from .interrupts import Interrupts
from .plan import BAD_BODY, Plan
from .redis_server import Server, running_server
from .scene import Cue, Play, Scene
from .side import Side
from .verdict import Outcome, outcome

#: Seconds after the workers were ready.
KILL_AT_S, CUT_AT_S, HEAL_AT_S = 1.5, 3.5, 5.5


class RedisSide(Side):
    """A side in a namespace of its own, its workers behind a proxy."""

    def __init__(self, name: Name, server: Server, plan: Plan, folder: Path) -> None:
        self.namespace = namespace_of(name)
        with ExitStack() as stack:
            self._client = redis.Redis.from_url(server.url)
            stack.callback(self._client.close)
            self._proxy = stack.enter_context(FaultProxy(server.port))
            super().__init__(name, plan, folder, server.url, self._proxy.url(), stack)
        self._stack.callback(self.broker.client.close)  # type: ignore[attr-defined]

    def put_bad_body(self) -> None:
        """As a producer does that is not Dramatiq."""
        with self._client.pipeline() as pipe:
            pipe.hset(f"{self.namespace}:{QUEUE}.msgs", "from-elsewhere", BAD_BODY)
            pipe.rpush(f"{self.namespace}:{QUEUE}", "from-elsewhere")
            pipe.execute()

    def cut(self) -> None:
        """Cut every connection of the workers and refuse new ones."""
        self._proxy.refuse()

    def heal(self) -> None:
        """Accept them again."""
        self._proxy.heal()

    def look(self) -> Outcome:
        """By a census, which reads all in one step and does not pass the proxy."""
        self.census = take_census(self._client, self.namespace)
        return outcome(self.plan.keys, self.log.entries(), self.census)

    def pulse(self) -> object:
        """Entries of the log, and the counts of the census."""
        return len(self.log.entries()), str(self.census)

    @property
    def idle(self) -> bool:
        """Whether only letters were left at the last look."""
        return self.census is not None and self.census.count("dead", "stock_dead") == len(self.census.places)


class RedisScene(Scene):
    """One Redis, two namespaces."""

    #: reliq needs the lease (10 s) for what the killed worker held.
    limit_s = 35.0

    def __init__(self, server: Server) -> None:
        self._server = server
        self._sides: list[RedisSide] = []
        self.server = f"{server.name} on 127.0.0.1:{server.port}"

    def side(self, name: Name, plan: Plan, folder: Path) -> Side:
        """A side in a namespace of its own."""
        side = RedisSide(name, self._server, plan, folder)
        self._sides.append(side)
        return side

    def cues(self, stage: Play) -> list[Cue]:
        """Kill, cut, heal."""
        return [
            (KILL_AT_S, stage.kill_workers),
            (CUT_AT_S, partial(self._cut, stage)),
            (HEAL_AT_S, partial(self._heal, stage)),
        ]

    def _cut(self, stage: Play) -> None:
        for side in self._sides:
            side.cut()
        stage.post(f"the broker is gone: connections cut, new ones refused for {HEAL_AT_S - CUT_AT_S:.0f} s")

    def _heal(self, stage: Play) -> None:
        for side in self._sides:
            side.heal()
        stage.post("the broker is back")

    def commands(self, name: Name) -> list[str]:
        """By URL and namespace."""
        return [f"--url {self._server.url} --namespace {namespace_of(name)}"]


@contextmanager
def redis_scene(interrupts: Interrupts) -> Iterator[RedisScene]:
    """Start a server; it is gone after the block."""
    with ExitStack() as stack:
        with interrupts.held():
            server = stack.enter_context(running_server())
        yield RedisScene(server)
