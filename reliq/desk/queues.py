"""Is there a queue of this name? Callers: the command line, where somebody has typed one."""

from __future__ import annotations

from typing import Any

from ..errors import NotSupported
from ..transport.base import Transport
from .selector import near


def unknown_queue(transport: Transport[Any], queue: str) -> str | None:
    """What to say of a queue that is not there, with the name that is near; None for one that is, and where the
    broker can tell neither. Raises `BrokerConnectionError`."""
    stands = getattr(transport, "has_queue", None)
    if stands is not None and stands(queue):
        return None
    try:
        known = transport.queue_names()
    except NotSupported:
        # It lists none, but may know of one.
        return None if stands is None else f"there is no queue {queue!r}"
    return None if queue in known else f"there is no queue {queue!r}{near(queue, known)}"
