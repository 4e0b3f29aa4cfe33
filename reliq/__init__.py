"""Reliability for Dramatiq on any broker.

    import dramatiq, reliq
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url="redis://localhost:6379/0")
    reliq.install(broker)
    dramatiq.set_broker(broker)

The names below are loaded on first use: importing reliq imports no client library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> the module that defines it. The one list: `__all__`, `dir()` and the docs follow it.
_WHERE = {
    "DeadLetters": "reliq.middleware.dead_letters",
    "Defer": "reliq.errors",
    "Delivery": "reliq.middleware.delivery",
    "EnqueueErrors": "reliq.errors",
    "Finding": "reliq.transport.base",
    "Install": "reliq.wiring",
    "JSONEncoder": "reliq.message.encoder",
    "LetterError": "reliq.errors",
    "NotSupported": "reliq.errors",
    "OptionError": "reliq.errors",
    "Permanent": "reliq.errors",
    "Retries": "reliq.middleware.retries",
    "WiringError": "reliq.errors",
    "Without": "reliq.wiring",
    "check": "reliq.wiring",
    "enqueue_many": "reliq.sending.batches",
    "install": "reliq.wiring",
    "transient": "reliq.policy.transient",
}

__all__ = [  # noqa: PLE0604, RUF100
    "DeadLetters",
    "Defer",
    "Delivery",
    "EnqueueErrors",
    "Finding",
    "Install",
    "JSONEncoder",
    "LetterError",
    "NotSupported",
    "OptionError",
    "Permanent",
    "Retries",
    "WiringError",
    "Without",
    "__version__",
    "check",
    "enqueue_many",
    "install",
    "transient",
]

if TYPE_CHECKING:
    from .errors import Defer, EnqueueErrors, LetterError, NotSupported, OptionError, Permanent, WiringError
    from .message.encoder import JSONEncoder
    from .middleware.dead_letters import DeadLetters
    from .middleware.delivery import Delivery
    from .middleware.retries import Retries
    from .policy.transient import transient
    from .sending.batches import enqueue_many
    from .transport.base import Finding
    from .wiring import Install, Without, check, install


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'reliq' has no attribute {name!r}")
    value = getattr(import_module(where), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
