"""Tells the transport when a worker boots and stops, and checks what is declared.

The first middleware of the list: what it does before others do comes first (no more is fetched before anybody is
told of a shutdown), what it does after comes last (the last acks are sent when all is over).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Middleware

from .base import Transport, check_queue_name
from .signals import release_ending

if TYPE_CHECKING:
    from dramatiq.broker import Broker


class Lifecycle(Middleware):
    """The transport's own ear for signals. `on_boot` may refuse to boot by raising a `MiddlewareError`."""

    def __init__(self, transport: Transport[Any], on_boot: Callable[[], None]) -> None:
        self._transport = transport
        self._on_boot = on_boot

    def before_declare_actor(self, broker: Broker, actor: Any) -> None:
        """Refuse reserved names, some of which a broker takes off before it declares the queue."""
        check_queue_name(actor.queue_name)

    def before_declare_queue(self, broker: Broker, queue_name: str) -> None:
        """Refuse reserved names."""
        check_queue_name(queue_name)

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        """Before any consumer starts."""
        self._on_boot()
        self._transport.add_worker(worker)
        self._transport.start(worker)

    def before_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Before tasks are told of it."""
        self._transport.drain()

    def before_worker_thread_shutdown(self, broker: Broker, thread: Any) -> None:
        """A thread that ends has nothing left to settle."""
        release_ending()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """After consumers have closed."""
        self._transport.stop(worker)
        self._transport.remove_worker(worker)
