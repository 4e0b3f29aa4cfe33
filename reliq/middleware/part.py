"""What every part of reliq is: a Dramatiq middleware that also works alone.

`broker.add_middleware(reliq.Retries())` is enough: the part attaches the transport by itself, at the first actor that
is declared or when a worker boots, through a function of `wiring.py` that is imported only then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Middleware

from ..errors import OptionError

if TYPE_CHECKING:
    from dramatiq.actor import Actor
    from dramatiq.broker import Broker

    from ..transport.base import Transport


class Part(Middleware):
    """Base class of the parts."""

    transport: Transport[Any] | None = None

    def bind(self, transport: Transport[Any]) -> None:
        """Called once, when the transport is attached; a part that has settings for it passes them on here."""
        self.transport = transport

    def check_actor(self, actor: Actor[Any, Any]) -> None:
        """Raise `OptionError` for an option of this part that cannot work."""

    def targets(self, broker: Broker) -> Iterator[tuple[str, str]]:
        """(option, actor name) of the actors that options of this part name."""
        return iter(())

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Attach, if nobody has; then check the actor's options."""
        self._attach(broker)
        self.check_actor(actor)

    def after_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Attach to a broker that had actors before this part was added."""
        self._attach(broker)

    def after_process_boot(self, broker: Broker) -> None:
        """Attach to a broker without actors."""
        self._attach(broker)

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        """Attach at the last moment, for a worker that was started by hand."""
        self._attach(broker)

    def _attach(self, broker: Broker) -> None:
        if self.transport is None:
            from ..wiring import attach

            attach(broker)


def option_error(actor: Actor[Any, Any], what: str) -> OptionError:
    """The form of every complaint about an actor's option."""
    return OptionError(f"actor {actor.actor_name!r} (queue {actor.queue_name!r}): {what}")
