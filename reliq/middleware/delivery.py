"""How messages are delivered: timeouts, leases and names. The transport does it; this part carries the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from .options import whole
from .part import Part

if TYPE_CHECKING:
    from ..transport.base import Transport


class Delivery(Part):
    """Settings of the transport. Times in ms.

    - `send_timeout` (3 s): within it a send is accepted or raises `ConnectionClosed`.
    - `lease` (10 s): a worker that gives no sign of life for so long counts as dead; its messages run elsewhere.
    - `heartbeat`: how often it gives one; a quarter of the lease by default.
    - `aliases`: `{"old actor name": "new"}`, for messages that were sent before an actor was renamed.
    - `unknown_actor_grace` (10 min): for so long a message whose actor no worker knows waits for one that does, and
      then becomes a dead letter; 0 or False = at once.
    - `queue_type` (RabbitMQ): "classic" or "quorum", for the queues that reliq declares (delays, dead letters); by
      default each is of the type of the queue it belongs to.
    """

    def __init__(
        self,
        send_timeout: int | None = None,
        lease: int | None = None,
        heartbeat: int | None = None,
        aliases: Mapping[str, str] | None = None,
        unknown_actor_grace: int | bool | None = None,
        queue_type: str | None = None,
    ) -> None:
        try:
            self.send_timeout = _at_least("send_timeout", 3_000 if send_timeout is None else send_timeout, 100)
            self.lease = _at_least("lease", 10_000 if lease is None else lease, 1_000)
            self.heartbeat = None if heartbeat is None else _at_least("heartbeat", heartbeat, 100)
            grace = 600_000 if unknown_actor_grace is None else unknown_actor_grace
            self.unknown_actor_grace = 0 if grace is False else whole("unknown_actor_grace", grace)
        except ValueError as exc:
            raise OptionError(f"reliq.Delivery: {exc}") from exc
        if self.heartbeat is not None and self.heartbeat * 2 > self.lease:
            raise OptionError(
                f"reliq.Delivery: heartbeat must be at most half of lease, got {self.heartbeat:_} of {self.lease:_} "
                "ms; one late beat would let the lease run out. Lower heartbeat or raise lease."
            )
        if queue_type not in (None, "classic", "quorum"):
            raise OptionError(
                f"reliq.Delivery: queue_type must be 'classic', 'quorum' or None, got {queue_type!r}; "
                "leave it out to follow the type of each queue."
            )
        self.queue_type = queue_type
        self.aliases = _checked_aliases({} if aliases is None else aliases)

    def bind(self, transport: Transport[Any]) -> None:
        """Give the transport its settings."""
        if self.queue_type is not None and not transport.has_queue_types:
            raise OptionError(
                f"reliq.Delivery: queue_type={self.queue_type!r} is for RabbitMQ, and this broker is "
                f"{transport.kind}; leave it out."
            )
        super().bind(transport)
        transport.settings = replace(
            transport.settings,
            send_timeout_ms=self.send_timeout,
            lease_ms=self.lease,
            heartbeat_ms=self.heartbeat,
            aliases=self.aliases,
            unknown_actor_grace_ms=self.unknown_actor_grace,
            queue_type=self.queue_type,
        )


def _at_least(name: str, value: object, least: int) -> int:
    number = whole(name, value)
    if number < least:
        raise ValueError(f"{name} must be at least {least:_} ms, got {number:_}; raise it")
    return number


def _checked_aliases(aliases: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(aliases, Mapping):
        raise OptionError(
            f"reliq.Delivery: aliases must map actor names to actor names, got {aliases!r}; "
            'write for instance aliases={"old_name": "new_name"}'
        )
    for old, new in aliases.items():
        if not (isinstance(old, str) and old and isinstance(new, str) and new):
            raise OptionError(
                f"reliq.Delivery: aliases must map actor names to actor names, got {old!r}: {new!r}; "
                'write for instance aliases={"old_name": "new_name"}'
            )
        if new in aliases:
            raise OptionError(
                f"reliq.Delivery: alias {old!r} leads to {new!r}, itself an alias; write the actor that runs it"
            )
    return dict(aliases)
