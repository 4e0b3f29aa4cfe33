"""The demo on RabbitMQ: a worker is killed, the broker runs short of memory and then is killed itself.

Caller: `scene.set_scene`. On a server that the environment names, and that others may use, the broker is left alone:
each side's vhost reaches its limit of connections instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

from reliq.testing import RabbitmqApi, RabbitmqServer

from .background import Background
from .brokers import Name
from .interrupts import Interrupts
from .plan import GROUPS, THREADS, Plan
from .rabbitmq_server import named_server, running_node
from .rabbitmq_side import RabbitmqSide
from .scene import Cue, Play, Scene
from .side import Side

#: Seconds after the workers were ready.
KILL_AT_S, ALARM_AT_S = 1.5, 2.0
#: How long the broker is short of memory, and the share of the messages that is sent in this time.
ALARM_S, LATE_SHARE = 3.0, 2 / 15
#: How long a vhost takes no further connection, and how many it takes: plain Dramatiq needs two for each of a worker's
#: queues (`default`, `default.DQ`) and one for each thread that publishes; one worker's threads find no room. With
#: reliq a worker needs two in all.
LIMIT_S = 6.0
CONNECTIONS = 4 * GROUPS + THREADS + 1


class RabbitmqScene(Scene):
    """One server, a vhost for each side."""

    #: A node that was killed needs 7 s and more to come back.
    limit_s = 75.0
    late_share = 0.0

    def __init__(self, api: RabbitmqApi) -> None:
        self._api = api
        self.server = f"RabbitMQ {'.'.join(map(str, api.version))} on {api.host}:{api.port}"
        self._sides: list[RabbitmqSide] = []
        self._trouble: Background | None = None
        self._closing = threading.Event()

    def side(self, name: Name, plan: Plan, folder: Path) -> Side:
        """A side in a vhost of its own."""
        vhost = f"demo-{name}-{uuid4().hex[:6]}"
        self._api.add_vhost(vhost)
        late = round(len(plan.orders) * self.late_share)
        side = RabbitmqSide(name, self._api, vhost, late, plan, folder)
        self._sides.append(side)
        return side

    def _begin(self, step: Callable[[Play], None], stage: Play) -> None:
        self._trouble = Background(partial(step, stage))

    def _tell_delays(self, stage: Play) -> None:
        told = []
        for side in self._sides:
            in_workers, in_broker = side.waiting()
            place = f"{in_workers} unacked in workers" if in_workers else f"{in_broker} in the broker, none in a worker"
            told.append(f"{place} ({side.name})")
        stage.post(f"delays that wait: {', '.join(told)}")

    @property
    def over(self) -> bool:
        """Whether the trouble is over and everything is sent."""
        trouble = self._trouble
        return trouble is not None and trouble.over and all(side.has_sent for side in self._sides)

    def commands(self, name: Name) -> list[str]:
        """By URL, and where the queues can be looked at."""
        side = next(side for side in self._sides if side.name == name)
        return [
            f"--url {self._api.url(side.vhost)} --management-url {self._api.management_url}",
            f"In a browser: http://{self._api.host}:{self._api.management_port} (vhost {side.vhost})",
        ]

    def close(self) -> None:
        """End what is still under way."""
        self._closing.set()
        if self._trouble is not None:
            self._trouble.end(self._cut_short)

    def _cut_short(self) -> None:
        """Let the trouble end at once."""


class NodeScene(RabbitmqScene):
    """A node of the demo's own, which may be alarmed and killed."""

    late_share = LATE_SHARE

    def __init__(self, node: RabbitmqServer) -> None:
        super().__init__(node)
        self._node = node

    def cues(self, stage: Play) -> list[Cue]:
        """A worker is killed; then the broker is in trouble."""
        return [(KILL_AT_S, stage.kill_workers), (ALARM_AT_S, partial(self._begin, self._strike, stage))]

    def _strike(self, stage: Play) -> None:
        self._node.alarm_memory()
        stage.post("the broker is short of memory: it reads nothing more from connections that publish")
        self._tell_delays(stage)
        for side in self._sides:
            side.send_late(stage.post)
        if self._closing.wait(ALARM_S):
            return
        self._node.kill()
        stage.post("kill -9 of the broker")
        down_at = time.monotonic()
        self._node.start()
        stage.post(f"the broker is back, {time.monotonic() - down_at:.0f} s later")

    def _cut_short(self) -> None:
        self._node.kill()


class ServerScene(RabbitmqScene):
    """A server of others."""

    def cues(self, stage: Play) -> list[Cue]:
        """A worker is killed; those that start in its place find that no further connection is taken."""
        return [(KILL_AT_S, partial(self._limit_and_kill, stage))]

    def _limit_and_kill(self, stage: Play) -> None:
        for side in self._sides:
            self._api.limit_connections(side.vhost, CONNECTIONS)
        stage.post(f"the vhosts take no more than {CONNECTIONS} connections each for {LIMIT_S:.0f} s")
        stage.kill_workers()
        self._begin(self._lift, stage)

    def _lift(self, stage: Play) -> None:
        self._tell_delays(stage)
        self._closing.wait(LIMIT_S)
        for side in self._sides:
            self._api.limit_connections(side.vhost, None)
        stage.post("the limit is lifted")

    def close(self) -> None:
        """Leave no vhost behind."""
        super().close()
        for side in self._sides:
            self._api.delete_vhost(side.vhost)


@contextmanager
def rabbitmq_scene(interrupts: Interrupts, say: Callable[[str], None]) -> Iterator[RabbitmqScene]:
    """Find or start a server; what was started or made is gone after the block."""
    with ExitStack() as stack:
        api = named_server()
        scene: RabbitmqScene
        if api is not None:
            scene = ServerScene(api)
        else:
            scene = NodeScene(stack.enter_context(running_node(interrupts, say)))
        stack.callback(scene.close)
        yield scene
