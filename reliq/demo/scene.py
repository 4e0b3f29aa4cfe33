"""What differs between brokers in the demo: the server, the sides on it, and the faults that hurt there.

Callers: `stage` plays a scene, `run` says what it is. Guarantee: a scene's server, and all that it left on one, is
gone when the `with` block of `set_scene` ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from .brokers import Kind, Name
from .interrupts import Interrupts
from .plan import Plan
from .side import Side

#: Seconds after the workers were ready, and what happens then.
Cue = tuple[float, Callable[[], None]]


class Play(Protocol):
    """What a scene knows of the stage that it is played on."""

    sides: list[Side]
    #: " a side", or nothing where there is one.
    each: str

    def post(self, text: str) -> None:
        """Show that something happened. From any thread."""

    def kill_workers(self) -> None:
        """kill -9 of one worker on each side; new ones start in their place."""


class Scene(ABC):
    """A server and its faults."""

    #: What the server is and where it listens: "valkey 9.1 on 127.0.0.1:21344".
    server: str
    #: The longest wait for reliq to finish, in s.
    limit_s: float

    @abstractmethod
    def side(self, name: Name, plan: Plan, folder: Path) -> Side:
        """A side, not started."""

    @abstractmethod
    def cues(self, stage: Play) -> list[Cue]:
        """What happens, in the order of time."""

    @property
    def over(self) -> bool:
        """Whether all that the cues began has ended. Raises what went wrong there."""
        return True

    @abstractmethod
    def commands(self, name: Name) -> list[str]:
        """How to look at a side while it is kept: the options after `reliq`, then further hints."""


@contextmanager
def set_scene(kind: Kind, interrupts: Interrupts, say: Callable[[str], None]) -> Iterator[Scene]:
    """Start a server of this kind, or find one. `say` is told of what takes long. Raises `ServerMissing` with what to
    install, or `ServerFailed`."""
    if kind == "rabbitmq":
        from .rabbitmq_scene import rabbitmq_scene

        with rabbitmq_scene(interrupts, say) as scene:
            yield scene
        return
    from .redis_scene import redis_scene

    with redis_scene(interrupts) as redis:
        yield redis
