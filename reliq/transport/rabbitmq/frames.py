"""What goes over the line for a message or a letter: where it is published, and what stands beside its body. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pika
from dramatiq.logging import get_logger

from ..settlement import Bury, Publish
from . import topology
from .copies import AGAIN
from .publisher import Frame
from .topology import Ladder

#: Of a message that comes back: written by the broker about its past, not to be sent again. A message with an
#: `x-death` of ours would be taken for one that goes in circles, and dropped.
_BROKERS_OWN = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
#: Where its first sender wanted copies: the broker has made them, and would make them again.
_COPIES = ("CC", "BCC")
#: Kept when a message is sent again. Not `expiration`, which would end it on the ladder, nor `user_id`, which the
#: broker checks against who publishes.
_KEPT = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "message_id",
    "timestamp",
    "type",
    "app_id",
    "cluster_id",
)
#: Headers must fit into one frame with all the rest; a record that is longer goes without its traceback.
MOST_META_BYTES = 60_000
#: The most that properties may weigh as a whole, in bytes: a frame takes 128 KiB unless it was agreed otherwise.
MOST_HEADER_BYTES = 120_000
#: The header that holds the record of a body that cannot hold it.
META = "x-reliq-dead"


def message_frame(publish: Publish, ladder: Ladder | None, came: Any = None, *, again: bool = False) -> Frame:
    """A message to its queue, or up the ladder with its delay. `came` are the properties that it was delivered with;
    `again` marks what the run of a redelivered message stores."""
    queue_name = publish.message.queue_name
    headers = user_headers(came)
    if again:
        headers[AGAIN] = True
    properties = _properties(came, headers, publish.message.options.get("broker_priority"))
    if publish.delay_ms and ladder is not None:
        exchange, key = ladder.route(publish.delay_ms, queue_name)
        return Frame(exchange, key, publish.body, properties)
    return Frame("", queue_name, publish.body, properties)


def letter_frame(bury: Bury, exchange: str, came: Any = None, *, again: bool = False) -> Frame:
    """A dead letter to `reliq.dlx`, or with the exchange `""` straight to its queue; `came` and `again` as above."""
    dead = bury.dead
    about = {
        "id": dead["id"],
        "reason": dead["reason"],
        "queue": bury.queue,
        "actor": bury.message.actor_name if bury.message is not None else None,
        "error": dead["error"],
        "fingerprint": dead["fingerprint"],
        "died-at": dead["died_at"],
    }
    headers = user_headers(came)
    headers.update({f"x-reliq-{name}": _short(value) for name, value in about.items() if value is not None})
    if again:
        headers[AGAIN] = True
    if bury.meta is not None:
        headers[META] = _fitting(bury.meta)
    key = topology.dead_name(bury.queue) if exchange == "" else bury.queue
    return Frame(exchange, key, bury.body, _properties(came, headers, None))


def user_headers(came: Any) -> dict[str, Any]:
    """The headers of a message that others wrote, without those of the broker and of reliq."""
    return {name: value for name, value in _headers(came).items() if not name.startswith("x-reliq-")}


def user_properties(came: Any) -> pika.BasicProperties:
    """The properties of a message that is moved, with all that reliq wrote and nothing of the broker's."""
    return _properties(came, _headers(came), None)


def _headers(came: Any) -> dict[str, Any]:
    """What others and reliq wrote. A name that is not UTF-8 comes as bytes, and is sent as text."""
    headers: Mapping[str | bytes, Any] = getattr(came, "headers", None) or {}
    named = ((_short(name.decode("latin-1") if isinstance(name, bytes) else name), headers[name]) for name in headers)
    return {name: value for name, value in named if not name.startswith(_BROKERS_OWN) and name not in _COPIES}


def _properties(came: Any, headers: dict[str, Any], priority: Any) -> pika.BasicProperties:
    kept = {name: getattr(came, name, None) for name in _KEPT} if came is not None else {}
    if priority is None and came is not None:
        priority = came.priority
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= 255:
        priority = None
    properties = pika.BasicProperties(delivery_mode=2, priority=priority, headers=headers or None, **kept)
    if came is not None and headers and sum(map(len, properties.encode())) > MOST_HEADER_BYTES:
        # With ours beside them they would not fit into a frame, and the broker would close the connection over it.
        get_logger(__name__).warning("Headers of a message are too large to be sent again; only reliq's are kept.")
        properties.headers = {name: value for name, value in headers.items() if name.startswith("x-reliq-")} or None
    return properties


def _short(value: Any) -> Any:
    """Fit for a header: names come from bodies, which may hold what no UTF-8 does."""
    return (
        value.encode("utf-8", "backslashreplace")[:255].decode("utf-8", "ignore") if isinstance(value, str) else value
    )


def _fitting(meta: bytes) -> bytes:
    if len(meta) <= MOST_META_BYTES:
        return meta
    dead = {**json.loads(meta), "traceback": None, "cause_chain": []}
    return json.dumps(dead, separators=(",", ":")).encode()
